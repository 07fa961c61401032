package main

import (
	"fmt"
	"strings"

	"github.com/hbollon/go-edlib"
)

// didYouMean asks for the known word that is nearest to a mistyped one; it is ""
// where none is near. The prefix is what all of them begin with, such as "--".
func didYouMean(prefix, word string, known []string) string {
	if len(word) < 2 || len(word) > 64 {
		return ""
	}
	const alike = 0.6 // of 1: two letters of five may differ
	best, err := edlib.FuzzySearchThreshold(word, known, alike, edlib.OSADamerauLevenshtein)
	if err != nil {
		return ""
	}
	if best == "" {
		// A part of one word, and of no other.
		const telling = 5 // letters, for a part from the middle
		for _, k := range known {
			if !strings.HasPrefix(k, word) && (len(word) < telling || !strings.Contains(k, word)) {
				continue
			}
			if best != "" {
				return ""
			}
			best = k
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", prefix+best)
}
