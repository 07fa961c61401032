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
	// Group is how the rows that are written are grouped.
	Group output.GroupOptions
	// Accumulate makes each table show bytes and operations since the start instead
	// of the rates of its interval.
	Accumulate bool
	// InPlace makes each table replace the one before if the output is a terminal.
	InPlace bool
	// Width is the most terminal cells in a line. 0 means the width of the terminal; if
	// the output is not a terminal, $COLUMNS, or else nothing is cut.
	Width int
	// Location is the time zone of the times shown; nil is the local one.
	Location *time.Location
	// Env looks up NO_COLOR, TERM and COLUMNS; nil is os.Getenv.
	Env func(string) string
}

// paneEvents is how many events stay below a table that is replaced.
const paneEvents = 5

// Table writes intervals as tables, one below the other or in place. Rates are bytes
// per second in binary units. A Table is not safe for concurrent use.
type Table struct {
	w      io.Writer
	opt    TableOptions
	layout layout
	// size returns the terminal's size; ok is false if w is not a terminal.
	size    func() (width, height int, ok bool)
	inPlace bool
	color   bool
	drawn   []int    // widths of the lines on the terminal, which the next table replaces
	events  []string // the last ones, for tables in place

	sum   output.Sum // the whole run
	peaks output.Peaks
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
	t.inPlace = terminal && !dumb && t.opt.InPlace
	t.color = terminal && !dumb && t.opt.Env("NO_COLOR") == ""
}

// defaultWidth is the width of a screen before its size is known.
const defaultWidth = 80

func (t *Table) dimensions() (width, height int) {
	width, height, ok := t.size()
	if !ok {
		width, height = noLimit, 0
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

// Write shows the interval iv, of which summary holds the rows. If the reader of
// a pipe has gone, the error is syscall.EPIPE for errors.Is.
func (t *Table) Write(summary *output.Summary, iv *output.Interval) error {
	d := iv.End.Sub(iv.Start)
	t.sum.Add(iv)
	whole := summary
	if t.opt.Group.Top > 0 { // the peak of a row may be when it is not among the top ones
		all := t.opt.Group
		all.Top = 0
		whole = output.Group(iv, all)
	}
	t.peaks.Add(whole, d)
	v := view{summary: summary, iv: iv, events: t.eventLines(iv)}
	v.measure = measure{level: summary.Level, d: d, sort: t.opt.Group.Sort}
	v.title = fmt.Sprintf("%s  %s", t.clock(iv.End), seconds(d))
	if t.opt.Accumulate {
		v.summary, v.iv = output.Group(t.sum.Interval(), t.opt.Group), t.sum.Interval()
		v.measure.d, v.measure.totals = t.sum.Covered(), true
		v.title = fmt.Sprintf("%s  totals of %s since %s", t.clock(iv.End), seconds(t.sum.Covered()), t.clock(v.iv.Start))
	}
	return t.write(&v)
}

// Close writes a closing summary of the run, unless it would repeat the only table.
func (t *Table) Close() error {
	if t.sum.Len() < 2 {
		return nil
	}
	t.drawn = nil // it goes below the last table
	t.layout.keyWidths = nil
	return t.write(closing(&t.sum, &t.peaks, t.opt.Group, t.opt.Location))
}

// closing returns the summary of a whole run: totals, shares, highest rates.
func closing(sum *output.Sum, peaks *output.Peaks, group output.GroupOptions, location *time.Location) *view {
	iv := sum.Interval()
	clock := func(at time.Time) string { return at.In(location).Format("15:04:05") }
	return &view{
		summary: output.Group(iv, group), iv: iv, closing: true,
		measure: measure{level: group.Level, d: sum.Covered(), totals: true, sort: group.Sort, peaks: peaks},
		title:   fmt.Sprintf("summary of %s to %s, %s", clock(iv.Start), clock(iv.End), seconds(sum.Covered())),
	}
}

func (t *Table) clock(at time.Time) string { return at.In(t.opt.Location).Format("15:04:05") }

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s" }

// view is one table to draw.
type view struct {
	title   string
	summary *output.Summary
	iv      *output.Interval // that the summary is of
	measure measure
	events  []string
	closing bool
}

func (t *Table) write(v *view) error {
	width, height := t.dimensions()
	lines := t.frame(v, width, height)
	var b bytes.Buffer
	if up := t.rowsDrawn(width); t.inPlace && up > 0 {
		b.WriteString("\r" + ansi.CursorUp(up))
	}
	t.drawn = t.drawn[:0]
	for _, l := range lines {
		t.drawn = append(t.drawn, l.width())
		b.WriteString(l.render(t.color))
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

// frame returns the lines of one table. If height is not 0, there are fewer lines
// than that, and rows without room are summed up.
func (t *Table) frame(v *view, width, height int) []line {
	summary := v.summary
	foot, alert := footer(v.iv, summary)
	footLines := wrap(append(foot, overhead(v.iv, v.measure.d)), width)
	events := v.events
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
	m := v.measure
	m.all = summary.Total.At(m.level).Bytes()
	g := t.layout.fit(&m, summary, append(cells[:len(cells):len(cells)], stackedCells...), rest, width)
	title := []string{v.title}
	if v.iv.Host.Name != "" {
		title = append(title, text.Safe(v.iv.Host.Name))
	}
	title = append(title, levelTitle(summary.Level))
	groups, heads := g.heads(summary.By, &m)
	lines := []line{styled(strings.Join(title, "  "), styleDim), styled(groups, styleHead), styled(heads, styleHead)}
	add := func(r *output.Row, cells []string, s cellStyle) { lines = append(lines, g.row(r, cells, s)) }
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
	if len(rows) == 0 && summary.Filtered != nil {
		lines = append(lines, styled("nothing matches the filter in this time", styleAlert))
	}
	if len(stacked) > 0 {
		lines = append(lines, styled("stacked on the devices above, not in the total:", styleDim))
		for i := range stacked {
			add(&stacked[i], stackedCells[i], styleDim)
		}
	}
	style := styleDim
	if alert {
		style = styleAlert
	}
	for _, l := range footLines {
		lines = append(lines, styled(l, style))
	}
	if len(events) > 0 {
		lines = append(lines, styled("EVENTS", styleHead))
		for _, e := range events {
			for _, l := range t.eventText(e, width) {
				lines = append(lines, styled(l, styleNone))
			}
		}
	}
	if !t.inPlace && !v.closing {
		lines = append(lines, line{})
	}
	if height > 0 && len(lines) >= height {
		lines = lines[:max(height-1, 1)]
	}
	for i := range lines {
		lines[i] = lines[i].cut(width)
	}
	return lines
}

func levelTitle(l output.Level) string {
	switch l {
	case output.LevelApp:
		return "read and written by programs"
	case output.LevelBoth:
		return "requests on the wire, and reads and writes by programs (APP)"
	}
	return "requests on the wire"
}

// eventText returns the lines of an event: one where tables are replaced, which may be
// cut, and the whole text elsewhere, where it may be the only record of the event.
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

// eventLines returns the events to show with iv: the last few where tables are
// replaced, else those of iv.
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
