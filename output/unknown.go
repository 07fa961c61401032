package output

import (
	"fmt"
	"strings"
)

// UnknownError is a word that is not one of a fixed set.
type UnknownError struct {
	What  string   // what the word should be: "key", "column"
	Word  string   // as the user wrote it
	Known []string // the whole set
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("unknown %s %q: use %s", e.What, e.Word, strings.Join(e.Known, ", "))
}
