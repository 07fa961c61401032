// Package text makes names safe to print and formats numbers for people.
package text

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// maxMarks is how many combining marks in a row are printed. Scripts need two or
// three on one letter; many of them would paint over other lines.
const maxMarks = 3

// Safe returns s for a terminal or a log line. Characters that could move the
// cursor, change colours, reorder or hide text become visible escapes: \n, \x1b,
// \u202e, or \xff for a byte that is not UTF-8. Printable text of every script
// stays as it is.
func Safe(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	marks := maxMarks // a mark at the start would land on the previous column
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size <= 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
			marks = maxMarks
		case unicode.Is(unicode.M, r) && Visible(r):
			if marks < maxMarks {
				b.WriteRune(r)
				marks++
			} else {
				escape(&b, r)
			}
		case Visible(r):
			b.WriteRune(r)
			marks = 0
		default:
			escape(&b, r)
			marks = maxMarks
		}
		s = s[size:]
	}
	return b.String()
}

// plain reports whether s is printable ASCII, as nearly all names are.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Visible reports whether r prints something and has no other effect.
// unicode.IsPrint is false for control and format characters (bidi overrides,
// zero-width joiners), private use, surrogates, separators and all spaces except
// the ASCII one. Visible is false for invisible letters (fillers) too.
func Visible(r rune) bool {
	return unicode.IsPrint(r) && r != 0x2800 && // braille blank
		!unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

func escape(b *strings.Builder, r rune) {
	switch {
	case r == '\n':
		b.WriteString(`\n`)
	case r == '\t':
		b.WriteString(`\t`)
	case r == '\r':
		b.WriteString(`\r`)
	case r < 0x100:
		fmt.Fprintf(b, `\x%02x`, r)
	case r < 0x10000:
		fmt.Fprintf(b, `\u%04x`, r)
	default:
		fmt.Fprintf(b, `\U%08x`, r)
	}
}

// Fit returns Safe(s) cut to at most width terminal cells. Text that was cut ends
// in "…".
func Fit(s string, width int) string {
	if width <= 0 {
		return ""
	}
	// A cell needs only a few bytes: do not measure megabytes.
	if limit := 64 * (width + 1); len(s) > limit {
		s = s[:limit]
	}
	s = Safe(s)
	if ansi.StringWidth(s) <= width {
		return s
	}
	return ansi.Truncate(s, width, "…")
}

// PadRight returns s, which must be safe, with spaces behind it up to width cells.
func PadRight(s string, width int) string {
	if n := width - ansi.StringWidth(s); n > 0 {
		return s + strings.Repeat(" ", n)
	}
	return s
}

// PadLeft is PadRight with the spaces in front, for numbers.
func PadLeft(s string, width int) string {
	if n := width - ansi.StringWidth(s); n > 0 {
		return strings.Repeat(" ", n) + s
	}
	return s
}
