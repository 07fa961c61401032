package tracer

import (
	"strconv"
	"strings"
)

// parseDev reads "major:minor".
func parseDev(s string) (Dev, bool) {
	major, minor, ok := strings.Cut(s, ":")
	if !ok {
		return 0, false
	}
	ma, err1 := strconv.ParseUint(major, 10, 12)
	mi, err2 := strconv.ParseUint(minor, 10, 20)
	return Dev(ma<<20 | mi), err1 == nil && err2 == nil
}
