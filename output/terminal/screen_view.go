package terminal

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// The width of sparklines in cells. In twoSparks cells there are two, of reads and
// writes. Two intervals in a cell are enough: a burst is still seen.
const (
	minSpark  = 6
	maxSpark  = historyLen / 2
	twoSparks = 44
)

// markSign ends the marked row.
const markSign = " <"

// View implements tea.Model.
func (s *screen) View() tea.View {
	lines := s.lines()
	lines = lines[:min(len(lines), s.height)]
	drawn := make([]string, len(lines))
	for i, l := range lines {
		drawn[i] = l.cut(s.width).render(true)
	}
	v := tea.NewView(strings.Join(drawn, "\n"))
	v.AltScreen = true
	v.MouseMode = tea.MouseModeCellMotion
	v.WindowTitle = "iotrace-bpf"
	if s.editing || s.jumping {
		v.Cursor = tea.NewCursor(min(ansi.StringWidth(s.pathText()), s.width-1), 2)
	}
	return v
}

// lines returns the lines of the screen, from top to bottom.
func (s *screen) lines() []line {
	if s.summary == nil && s.pane != paneHelp {
		return []line{styled("iotrace-bpf: waiting for the first interval", styleDim), styled("q quits", styleDim)}
	}
	if s.summary == nil {
		return s.scrolled(helpLines(), s.height)
	}
	head := s.headLines()
	foot := s.footLines(len(head))
	room := max(s.height-len(head)-len(foot), 3)
	var body []line
	switch s.pane {
	case paneHelp:
		body = s.scrolled(helpLines(), room)
	case paneDetails:
		body = s.scrolled(s.detailLines(), room)
	case paneMenu:
		body = s.menu.lines(room)
	default:
		s.headY = len(head)
		s.rowY = s.headY + 2
		body = s.rowLines(room)
	}
	lines := append(head, body...)
	lines = lines[:min(len(lines), max(s.height-len(foot), 1))]
	for len(lines)+len(foot) < s.height {
		lines = append(lines, line{})
	}
	return append(lines, foot...)
}

// scrolled returns the part of a long text that fits, and says how much follows.
func (s *screen) scrolled(all []line, height int) []line {
	s.page = max(height-1, 1)
	if len(all) <= height {
		s.scroll = 0
		return all
	}
	s.scroll = min(max(s.scroll, 0), len(all)-s.page)
	part := slices.Clone(all[s.scroll : s.scroll+s.page])
	more := fmt.Sprintf("-- lines %d to %d of %d: arrows and pgdn scroll --", s.scroll+1, s.scroll+s.page, len(all))
	return append(part, styled(more, styleDim))
}

// headLines are the title, the totals, and the path that the user drilled down.
func (s *screen) headLines() []line {
	title := []string{"iotrace-bpf"}
	if s.iv.Host.Name != "" {
		title = append(title, text.Fit(s.iv.Host.Name, max(s.width/6, 8)))
	}
	title = append(title, s.iv.End.In(s.opt.Location).Format("2006-01-02 15:04:05"), s.state(), s.spanText())
	head := styled(strings.Join(title, "  "), styleHead)
	if s.recording != "" {
		head = append(head, piece{"  REC", styleAlert})
	}

	m := s.measure()
	u := s.summary.Total.At(m.level)
	lat := u.Latency()
	per := "/s"
	if m.totals {
		per = ""
	}
	total := line{{"total " + m.bytes(&output.Amount{Bytes: u.Bytes(), Ops: u.Ops()}) + per, styleTotal}}
	more := line{
		{"  read " + m.bytes(&u.Read) + per, styleRead}, {"  write " + m.bytes(&u.Write) + per, styleWrite},
		{"  p99 " + text.Nanos(lat.Quantile(0.99)), styleNone}, {"  " + m.ops(u.Ops()) + " ops" + per, styleNone},
	}
	for _, p := range more {
		if total.width()+ansi.StringWidth(p.text) <= s.width {
			total = append(total, p)
		}
	}
	if room := s.width - total.width() - 2; room >= minSpark {
		rates := s.history.rates(s.pos, min(room, maxSpark), func(p *point) uint64 { return p.total.bytes() })
		total = append(total, piece{"  " + spark(rates, slices.Max(rates)), styleNone}).trim()
	}
	return []line{head, total, styled(s.pathText(), styleNone)}
}

// state says whether the screen is live, paused or a replay.
func (s *screen) state() string {
	switch {
	case s.live == nil && s.follow:
		return fmt.Sprintf("REPLAY x%g", speeds[s.speed])
	case s.live == nil:
		return fmt.Sprintf("REPLAY x%g PAUSED", speeds[s.speed])
	case s.follow:
		return "LIVE"
	}
	return "PAUSED"
}

// spanText says which time the numbers are about.
func (s *screen) spanText() string {
	switch s.span {
	case spanLast:
		return "last " + seconds(s.covered)
	case spanTotals:
		return "TOTALS of " + shortDuration(s.covered)
	}
	return "average of " + shortDuration(s.covered)
}

// measure says what the numbers on the screen are.
func (s *screen) measure() measure {
	m := measure{level: s.summary.Level, d: s.covered, totals: s.span == spanTotals, sort: s.group.Sort}
	m.all = s.summary.Total.At(m.level).Bytes()
	return m
}

// pathText says which part of the I/O is shown: the path that was drilled down,
// filters and the search, which must be last because the cursor is at its end.
func (s *screen) pathText() string {
	if s.jumping {
		return "go to the time (15:04, 15:04:05): " + s.jump
	}
	parts := []string{"all"}
	for _, st := range s.path {
		for _, p := range st.pins {
			parts = append(parts, text.Safe(string(p.Key))+" "+text.Safe(p.Text))
		}
	}
	line := strings.Join(parts, " > ")
	for _, f := range s.group.Filters {
		line += "  " + text.Safe(f.String())
	}
	if l := s.summary; l != nil && l.Level != output.LevelWire {
		line += "  level " + string(l.Level)
	}
	if s.editing || s.search != "" {
		line += "  filter: " + text.Safe(s.search)
	}
	return line
}

// rowLines are the headings, as many rows as fit into height, and the total.
func (s *screen) rowLines(height int) []line {
	summary := s.summary
	tail := 1
	if summary.Filtered != nil {
		tail++
	}
	stacked := summary.Stacked
	room := max(height-2-tail, 1)
	if len(stacked) > 0 {
		n := min(len(stacked), max(1, room/3))
		stacked = stacked[:n]
		room = max(room-n-1, 1)
	}
	s.page = room
	s.offset = min(s.offset, max(len(summary.Rows)-room, 0), s.cursor)
	s.offset = max(s.offset, s.cursor-room+1)
	end := min(s.offset+room, len(summary.Rows))
	rows, cells := summary.Rows[s.offset:end], s.cells[s.offset:end]
	stackedCells := keyCells(stacked)

	m := s.measure()
	g := s.layout.fit(&m, summary, append(cells[:len(cells):len(cells)], stackedCells...), nil, s.width-len(markSign))
	s.grid = g
	sparks := s.sparklines(s.width - len(markSign) - g.keysWidth() - g.numbers())
	groups, heads := g.heads(summary.By, &m)
	if len(sparks) > 0 {
		groups, heads = text.PadRight(groups, g.keysWidth()+g.numbers()), text.PadRight(heads, g.keysWidth()+g.numbers())
		for _, k := range sparks {
			groups += "  " + text.PadRight(k.scale, k.width)
			heads += "  " + text.PadRight(k.head, k.width)
		}
	}
	lines := []line{styled(groups, styleHead).trim(), styled(heads, styleHead).trim()}
	if len(summary.Rows) == 0 {
		word := "no reads or writes yet"
		if s.search != "" || len(s.group.Filters) > 0 {
			word = "nothing matches the filter"
		}
		lines = append(lines, styled(word, styleAlert))
	}
	for i := range rows {
		style := styleNone
		id := rows[i].Group()
		if strings.HasPrefix(cells[i][0], "(") || !s.active[id] {
			style = styleDim
		}
		l := g.row(&rows[i], cells[i], style)
		if len(sparks) > 0 {
			l = append(l, piece{strings.Repeat(" ", max(0, g.keysWidth()+g.numbers()-l.width())), styleNone})
			for _, k := range sparks {
				look := k.style
				if style == styleDim {
					look = styleDim
				}
				l = append(l, piece{"  " + spark(s.history.rates(s.pos, k.width, k.of(id)), k.most), look})
			}
		}
		if s.offset+i == s.cursor {
			// The mark covers the whole width; its sign shows it without colours too.
			l = styled(text.PadRight(l.cut(s.width-len(markSign)).plain(), s.width-len(markSign))+markSign, styleMarked)
		}
		lines = append(lines, l.trim())
	}
	if summary.Filtered != nil {
		lines = append(lines, g.row(summary.Filtered, nil, styleDim))
	}
	lines = append(lines, g.row(&summary.Total, nil, styleTotal))
	if len(stacked) > 0 {
		lines = append(lines, styled("stacked on the devices above, not in the total:", styleDim))
		for i := range stacked {
			lines = append(lines, g.row(&stacked[i], stackedCells[i], styleDim))
		}
	}
	return lines
}

// sparkColumn is a column of sparklines on a common scale.
type sparkColumn struct {
	head, scale string
	width       int
	style       cellStyle
	of          func(id string) func(*point) uint64
	most        float64 // bytes per second of the highest bar
}

// sparklines returns the columns that fit into room cells.
func (s *screen) sparklines(room int) []sparkColumn {
	back := "LAST " + s.historyText()
	column := func(head string, style cellStyle, of func(moment) uint64) sparkColumn {
		return sparkColumn{head: head, style: style, of: func(id string) func(*point) uint64 {
			return func(p *point) uint64 { return of(p.rows[id]) }
		}}
	}
	cols := []sparkColumn{column(back, styleNone, moment.bytes)}
	if room >= twoSparks {
		cols = []sparkColumn{
			column("READ, "+back, styleRead, func(m moment) uint64 { return m.read }),
			column("WRITE, "+back, styleWrite, func(m moment) uint64 { return m.write }),
		}
	}
	width := min(room/len(cols)-2, maxSpark)
	if width < minSpark {
		return nil
	}
	most := 0.0
	for i := range s.summary.Rows[:min(len(s.summary.Rows), 100)] {
		id := s.summary.Rows[i].Group()
		for _, c := range cols {
			most = max(most, slices.Max(s.history.rates(s.pos, width, c.of(id))))
		}
	}
	for i := range cols {
		c := &cols[i]
		c.width, c.most = width, most
		for _, shorter := range []string{back, s.historyText(), ""} {
			if len(c.head) > width {
				c.head = shorter
			}
		}
		if scale := "high: " + text.Bytes(most) + "/s"; most > 0 && len(scale) <= width {
			c.scale = scale
		}
	}
	return cols
}

// historyText returns how far back sparklines go.
func (s *screen) historyText() string {
	first, _ := s.src.Bounds()
	start, _ := s.src.Span(max(first, s.pos-historyLen+1))
	return shortDuration(s.iv.End.Sub(start))
}

func shortDuration(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}

// footLines are what numbers lack, the overhead, events, the time line and the keys.
// On a small screen rows are more important than the last events and the overhead, but
// not than what is missing.
func (s *screen) footLines(head int) []line {
	foot, alert := footer(s.view, s.summary)
	style := styleDim
	if alert {
		style = styleAlert
	}
	var honest, cost, slider []line
	for _, l := range wrap(foot, s.width) {
		honest = append(honest, styled(l, style))
	}
	own := overhead(s.view, s.covered)
	if last := &honest[len(honest)-1]; last.width()+2+ansi.StringWidth(own) <= s.width {
		*last = append(*last, piece{"  " + own, styleDim})
	} else {
		for _, l := range wrap([]string{own}, s.width) {
			cost = append(cost, styled(l, styleDim))
		}
	}
	if s.live == nil || !s.follow {
		slider = []line{styled(s.sliderText(), styleNone)}
	}
	last := styled(s.keysText(), styleDim)
	if s.note != "" {
		last = styled(s.note, styleAlert)
	}
	const rows = 6 // two headings, three rows, the total
	room := s.height - head - rows - 1
	fits := func(lines []line) []line {
		if len(lines) > room {
			return nil
		}
		room -= len(lines)
		return lines
	}
	honest = fits(honest)
	slider = fits(slider)
	cost = fits(cost)
	var events []line
	if !s.noEvents && s.height >= 16 {
		events = fits(s.eventLines(min(5, s.height/5)))
	}
	return append(slices.Concat(honest, cost, events, slider), last)
}

// eventLines are the last n events up to the interval shown.
func (s *screen) eventLines(n int) []line {
	end := len(s.events)
	for end > 0 && s.events[end-1].frame > s.pos {
		end--
	}
	if end == 0 {
		return nil
	}
	lines := []line{styled("EVENTS", styleHead)}
	for _, e := range s.events[max(0, end-n):end] {
		style := styleNone
		if e.alert {
			style = styleAlert
		}
		lines = append(lines, styled(strings.TrimRight(cutText(e.line, s.width), " "), style))
	}
	return lines
}

// sliderText draws the time line with the position of the interval shown.
func (s *screen) sliderText() string {
	first, end := s.src.Bounds()
	start, _ := s.src.Span(first)
	_, last := s.src.Span(end - 1)
	layout := "15:04:05"
	if y, m, d := start.In(s.opt.Location).Date(); !slices.Equal([]int{y, int(m), d}, dateOf(last.In(s.opt.Location))) {
		layout = "01-02 15:04"
	}
	left, right := start.In(s.opt.Location).Format(layout)+" [", "] "+last.In(s.opt.Location).Format(layout)
	right += fmt.Sprintf("  %d/%d", s.pos-first+1, end-first)
	room := s.width - len(left) - len(right)
	if room < 5 {
		return strings.TrimPrefix(right, "] ")
	}
	at := 0
	if end-first > 1 {
		at = (s.pos - first) * (room - 1) / (end - first - 1)
	}
	return left + strings.Repeat("=", at) + "o" + strings.Repeat("-", room-1-at) + right
}

func dateOf(t time.Time) []int {
	y, m, d := t.Date()
	return []int{y, int(m), d}
}

func (s *screen) keysText() string {
	switch {
	case s.editing:
		return "type part of a name, or KEY=GLOB such as op=write; enter keeps it, esc clears it"
	case s.jumping:
		return "enter goes to that time, esc stays here"
	case s.pane == paneMenu && s.menu.many:
		return strings.Join(wrap([]string{"enter picks", "space combines", "esc closes", "a letter goes to a word"}, s.width)[:1], "")
	case s.pane == paneMenu:
		return strings.Join(wrap([]string{"enter picks", "esc closes", "a letter goes to a word"}, s.width)[:1], "")
	case s.pane != paneRows:
		return strings.Join(wrap([]string{"q quit", "esc closes", "arrows, pgup, pgdn scroll"}, s.width)[:1], "")
	}
	keys := []string{"q quit", "? help", "enter drill", "bksp back", "/ filter", "a totals", "b by", "s sort", "i average", "d details", "space pause", "@ time", "R record", "W report"}
	if s.live == nil {
		keys = []string{"q quit", "? help", "enter drill", "bksp back", "/ filter", "space play", "left/right time", "a totals", "b by", "s sort", "d details", "@ time", "+/- speed", "W report"}
	}
	return strings.Join(wrap(keys, s.width)[:1], "")
}

// helpLines is the help: the keys and the meaning of the numbers. No line is longer
// than 58 cells.
func helpLines() []line {
	help := `ROWS
 up down j k     move the mark; so does the mouse wheel
 pgup pgdn g G   a page; the first, the last row
 enter           what the marked row consists of: a project
                 of services, a mount of its containers ...
 backspace esc   back
 d               details of the marked row
 b               group by other keys; space combines them
 /               filter as you type: a part of a name, or
                 KEY=GLOB; esc clears it
 click           marks a row; again: opens it
                 on a heading: sorts by it
NUMBERS
 a               totals since the start, and back to rates
 i               last interval, averages, totals
 s               sort by a column
 t r w o p n     sort by total, read, write, operations,
                 p99, name; again: the other way round
 v               wire; wire and app; app
TIME
 space           pause, continue; in a replay: play
 left right      the interval before, after    [ ]  ten
 home end        the first, the last one
 @               go to a time
 + -             replay faster, slower
OTHER
 R               start, stop a recording
 W               write a report of what is kept
 e               show, hide events
 ctrl+z          suspend                 q  quit

Numbers are of requests on the wire: to the disk, the server
(NFS, SMB, 9p, Ceph) or the FUSE daemon. READ, WRITE, TOTAL: bytes
per second in binary units, or bytes after "a". SHARE is of
all bytes, those that filters hide included. Bars of all rows
have one scale: "high" is the highest bar. Dim rows did
nothing in the last interval. Every byte counts once: of
stacked devices (dm, md, loop) only the lowest one. Disk and
NFS I/O of a FUSE daemon belongs to the daemon. META is the
part that is metadata of file systems. (kernel) is metadata
without a known owner, (unattributed) data without a known
owner, (other) did not fit into the kernel's table
(--max-groups).`
	var lines []line
	for l := range strings.SplitSeq(help, "\n") {
		style := styleNone
		if l != "" && l == strings.ToUpper(l) && !strings.HasPrefix(l, " ") {
			style = styleHead
		}
		lines = append(lines, styled(l, style))
	}
	return lines
}
