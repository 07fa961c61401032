// Package terminal shows intervals as plain tables and on the interactive screen.
package terminal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// TableOptions are the options of NewTable; all may be zero.
type TableOptions struct {
	// Sort is the column to mark in the heading. Rows must already be sorted by it.
	Sort output.Sort
	// Width is the most terminal cells in a line. 0 means the width of the
	// terminal; if the output is not a terminal, $COLUMNS or else 80.
	Width int
	// Append writes each table below the last one even on a terminal.
	Append bool
	// Location is the time zone of the times shown; nil is the local one.
	Location *time.Location
	// Env looks up NO_COLOR, TERM and COLUMNS; nil is os.Getenv.
	Env func(string) string
}

// paneEvents is how many events stay below the table on a terminal.
const paneEvents = 5

// Table writes intervals as tables. On a terminal each table replaces the one
// before; elsewhere it follows below. Rates are bytes per second in binary units.
// A Table is not safe for concurrent use.
type Table struct {
	w      io.Writer
	opt    TableOptions
	layout layout
	// size returns the terminal's size; ok is false if w is not a terminal.
	size    func() (width, height int, ok bool)
	inPlace bool
	color   bool
	drawn   []int    // widths of the lines on the terminal, which the next table replaces
	events  []string // the last ones, for a terminal
}

// NewTable returns a Table that writes to w.
func NewTable(w io.Writer, opt TableOptions) *Table {
	if opt.Env == nil {
		opt.Env = os.Getenv
	}
	if opt.Location == nil {
		opt.Location = time.Local
	}
	t := &Table{w: w, opt: opt, size: func() (int, int, bool) { return 0, 0, false }}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.size = func() (int, int, bool) {
			width, height, err := term.GetSize(int(f.Fd()))
			return width, height, err == nil && width > 0 && height > 0
		}
	}
	t.detect()
	return t
}

func (t *Table) detect() {
	_, _, terminal := t.size()
	dumb := t.opt.Env("TERM") == "dumb"
	t.inPlace = terminal && !dumb && !t.opt.Append
	t.color = terminal && !dumb && t.opt.Env("NO_COLOR") == ""
}

// defaultWidth is the width of lines if there is no terminal to ask.
const defaultWidth = 80

func (t *Table) dimensions() (width, height int) {
	width, height, ok := t.size()
	if !ok {
		width, height = defaultWidth, 0
		if n, err := strconv.Atoi(t.opt.Env("COLUMNS")); err == nil && n > 0 {
			width = n
		}
	}
	if t.opt.Width > 0 {
		width = t.opt.Width
	}
	if !t.inPlace {
		height = 0
	}
	return max(width, 20), height
}

// look returns the escape sequences of a style; nil means none.
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
	}
	return nil
}

type styledLine struct {
	text  string
	style cellStyle
}

// Write shows the interval iv, of which summary holds the rows. If the reader of
// a pipe has gone, the error is syscall.EPIPE for errors.Is.
func (t *Table) Write(summary *output.Summary, iv *output.Interval) error {
	width, height := t.dimensions()
	lines := t.frame(summary, iv, width, height)
	var b bytes.Buffer
	if up := t.rowsDrawn(width); t.inPlace && up > 0 {
		b.WriteString("\r" + ansi.CursorUp(up))
	}
	t.drawn = t.drawn[:0]
	for _, l := range lines {
		t.drawn = append(t.drawn, ansi.StringWidth(l.text))
		if look := l.style.look(); t.color && look != nil && l.text != "" {
			l.text = look.Styled(l.text)
		}
		b.WriteString(l.text)
		if t.inPlace {
			b.WriteString(ansi.EraseLineRight)
		}
		b.WriteByte('\n')
	}
	if t.inPlace {
		b.WriteString(ansi.EraseScreenBelow)
	}
	if _, err := t.w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// rowsDrawn returns how many rows of the terminal the last frame takes now: if the
// terminal was made narrower, it has wrapped lines.
func (t *Table) rowsDrawn(width int) (rows int) {
	for _, w := range t.drawn {
		rows += max(1, (w+width-1)/width)
	}
	return rows
}

// Close does nothing: the last table stays on the terminal.
func (t *Table) Close() error { return nil }

// frame returns the lines of one table. If height is not 0, there are fewer lines
// than that, and rows without room are summed up.
func (t *Table) frame(summary *output.Summary, iv *output.Interval, width, height int) []styledLine {
	foot, alert := footer(iv, summary)
	footLines := wrap(foot, width)
	events := t.eventLines(iv)
	t.layout.update(summary)

	rows, rest, stacked := summary.Rows, summary.Rest, summary.Stacked
	if height > 0 {
		// Title, two headings, total, and the line of the cursor.
		chrome := 5 + len(footLines)
		if summary.Filtered != nil {
			chrome++
		}
		if len(events) > 0 {
			events = events[max(0, len(events)-max(1, height/6)):]
			chrome += 1 + len(events)
		}
		room := max(height-chrome, 2)
		if len(stacked) > 0 {
			n := min(len(stacked), max(1, room/3))
			stacked = stacked[:n]
			room -= n + 1
		}
		rows, rest = output.Fold(rows, rest, max(room, 2))
	}

	cells, stackedCells := keyCells(rows), keyCells(stacked)
	g := t.layout.fit(summary, append(cells[:len(cells):len(cells)], stackedCells...), rest, width)
	d := iv.End.Sub(iv.Start)
	title := []string{iv.End.In(t.opt.Location).Format("15:04:05"), strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"}
	if iv.Host.Name != "" {
		title = append(title, text.Safe(iv.Host.Name))
	}
	title = append(title, levelTitle(summary.Level))
	groups, heads := g.heads(summary.By, t.opt.Sort)
	lines := []styledLine{
		{cutText(strings.Join(title, "  "), width), styleDim},
		{cutText(groups, width), styleHead},
		{cutText(heads, width), styleHead},
	}
	add := func(r *output.Row, cells []string, s cellStyle) {
		lines = append(lines, styledLine{cutText(g.line(r, cells, d), width), s})
	}
	for i := range rows {
		style := styleNone
		if strings.HasPrefix(cells[i][0], "(") {
			style = styleDim
		}
		add(&rows[i], cells[i], style)
	}
	if rest != nil {
		add(rest, nil, styleDim)
	}
	if summary.Filtered != nil {
		add(summary.Filtered, nil, styleDim)
	}
	add(&summary.Total, nil, styleTotal)
	if len(stacked) > 0 {
		lines = append(lines, styledLine{cutText("stacked on the devices above, not in the total:", width), styleDim})
		for i := range stacked {
			add(&stacked[i], stackedCells[i], styleDim)
		}
	}
	style := styleDim
	if alert {
		style = styleAlert
	}
	for _, l := range footLines {
		lines = append(lines, styledLine{l, style})
	}
	if len(events) > 0 {
		lines = append(lines, styledLine{"EVENTS", styleHead})
		for _, e := range events {
			for _, l := range t.eventText(e, width) {
				lines = append(lines, styledLine{l, styleNone})
			}
		}
	}
	if !t.inPlace {
		lines = append(lines, styledLine{})
	}
	if height > 0 && len(lines) >= height {
		lines = lines[:max(height-1, 1)]
	}
	return lines
}

func levelTitle(l output.Level) string {
	switch l {
	case output.LevelApp:
		return "read and written by programs, per second"
	case output.LevelBoth:
		return "requests on the wire, and reads and writes by programs (APP), per second"
	}
	return "requests on the wire, per second"
}

// eventText returns the lines of an event: one on a terminal, where it may be cut,
// and the whole text elsewhere, where it may be the only record of the event.
func (t *Table) eventText(e string, width int) []string {
	const indent = "         "
	if t.inPlace || width <= 2*len(indent) {
		return []string{strings.TrimRight(cutText(e, width), " ")}
	}
	lines := strings.Split(ansi.Wrap(e, width-len(indent), " "), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
		if i > 0 {
			lines[i] = indent + strings.TrimLeft(lines[i], " ")
		}
	}
	return lines
}

// eventLines returns the events to show with iv: on a terminal the last few,
// elsewhere those of iv.
func (t *Table) eventLines(iv *output.Interval) []string {
	var lines []string
	for i := range iv.Events {
		e := &iv.Events[i]
		if e.VXLAN == nil {
			continue
		}
		lines = append(lines, e.Time.In(t.opt.Location).Format("15:04:05 ")+e.String())
	}
	if !t.inPlace {
		return lines
	}
	t.events = append(t.events, lines...)
	t.events = t.events[max(0, len(t.events)-paneEvents):]
	return t.events
}
