package terminal

import (
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// cellStyle is the meaning of a piece of text; look gives its colours.
type cellStyle int

const (
	styleNone cellStyle = iota
	styleHead
	styleTotal
	styleDim
	styleAlert
	styleMarked
	styleRead
	styleWrite
	styleSlow // a latency that people notice
)

// look returns the escape sequences of a style; nil means none. The colours are from
// the first eight, which every terminal has and its owner has made readable. No
// meaning is in a colour alone.
func (s cellStyle) look() ansi.Style {
	switch s {
	case styleHead, styleTotal:
		return ansi.NewStyle().Bold()
	case styleDim:
		return ansi.NewStyle().Faint()
	case styleAlert:
		return ansi.NewStyle().Bold().ForegroundColor(ansi.Red)
	case styleMarked:
		return ansi.NewStyle().Reverse(true)
	case styleRead:
		return ansi.NewStyle().ForegroundColor(ansi.Cyan)
	case styleWrite:
		return ansi.NewStyle().ForegroundColor(ansi.Magenta)
	case styleSlow:
		return ansi.NewStyle().ForegroundColor(ansi.Red)
	}
	return nil
}

// piece is a part of a line in one style.
type piece struct {
	text  string
	style cellStyle
}

// line is one line of a table or screen, from left to right.
type line []piece

// styled returns a line of one style.
func styled(text string, style cellStyle) line { return line{{text, style}} }

// plain returns the line without styles.
func (l line) plain() string {
	var b strings.Builder
	for _, p := range l {
		b.WriteString(p.text)
	}
	return b.String()
}

func (l line) width() (n int) {
	for _, p := range l {
		n += ansi.StringWidth(p.text)
	}
	return n
}

// cut shortens the line to width cells.
func (l line) cut(width int) line {
	if l.width() <= width {
		return l
	}
	var out line
	for _, p := range l {
		w := ansi.StringWidth(p.text)
		if w <= width && (w < width || len(out) == len(l)-1) {
			out = append(out, p)
			width -= w
			continue
		}
		return append(out, piece{cutText(p.text+"…", width), p.style})
	}
	return out
}

// trim removes the spaces at the end.
func (l line) trim() line {
	for len(l) > 0 {
		last := &l[len(l)-1]
		if last.text = strings.TrimRight(last.text, " "); last.text != "" {
			break
		}
		l = l[:len(l)-1]
	}
	return l
}

// render returns the line with its escape sequences, or without any.
func (l line) render(color bool) string {
	if !color {
		return l.plain()
	}
	var b strings.Builder
	for _, p := range l {
		if look := p.style.look(); look != nil && strings.TrimSpace(p.text) != "" {
			p.text = look.Styled(p.text)
		}
		b.WriteString(p.text)
	}
	return b.String()
}

// cutText shortens safe text to width cells.
func cutText(s string, width int) string {
	if ansi.StringWidth(s) <= width {
		return s
	}
	return ansi.Truncate(s, width, "…")
}

// cutMiddle shortens a name to width cells and keeps both ends: names that begin
// alike often differ at their end.
func cutMiddle(s string, width int) string {
	w := ansi.StringWidth(s)
	if w <= width {
		return s
	}
	if width < 8 {
		return cutText(s, width)
	}
	head := width / 2
	tail := width - head - 1
	return ansi.Truncate(s, head, "") + "…" + ansi.TruncateLeft(s, w-tail, "")
}
