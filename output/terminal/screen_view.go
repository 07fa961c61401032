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

// The width of sparklines in cells.
const (
	minSpark = 6
	maxSpark = 30
)

// markSign ends the marked row.
const markSign = " <"

// View implements tea.Model.
func (s *screen) View() tea.View {
	lines := s.lines()
	for i, l := range lines {
		lines[i].text = cutText(l.text, s.width)
	}
	lines = lines[:min(len(lines), s.height)]
	styled := make([]string, len(lines))
	for i, l := range lines {
		styled[i] = l.text
		if look := l.style.look(); look != nil && l.text != "" {
			styled[i] = look.Styled(l.text)
		}
	}
	v := tea.NewView(strings.Join(styled, "\n"))
	v.AltScreen = true
	v.WindowTitle = "iotrace-bpf"
	if s.editing {
		v.Cursor = tea.NewCursor(min(ansi.StringWidth(s.pathText()), s.width-1), 2)
	}
	return v
}

// lines returns the lines of the screen, from top to bottom.
func (s *screen) lines() []styledLine {
	if s.help {
		return s.helpLines()
	}
	if s.summary == nil {
		return []styledLine{{"iotrace-bpf: waiting for the first interval", styleDim}, {"q quits", styleDim}}
	}
	foot := s.footLines()
	head := s.headLines()
	// On a small screen a few rows and the last line (messages and keys) are more
	// important than the rest of the footer.
	for len(foot) > 1 && len(head)+4+len(foot) > s.height {
		foot = foot[1:]
	}
	rows := s.rowLines(max(s.height-len(head)-len(foot), 3))
	lines := append(head, rows...)
	lines = lines[:min(len(lines), max(s.height-len(foot), 1))]
	for len(lines)+len(foot) < s.height {
		lines = append(lines, styledLine{})
	}
	return append(lines, foot...)
}

// headLines are the title, the totals, and the path that the user drilled down.
func (s *screen) headLines() []styledLine {
	d := s.iv.End.Sub(s.iv.Start)
	title := []string{"iotrace-bpf"}
	if s.iv.Host.Name != "" {
		title = append(title, text.Safe(s.iv.Host.Name))
	}
	title = append(title, s.iv.End.In(s.opt.Location).Format("2006-01-02 15:04:05"), fmt.Sprintf("%.1f s", d.Seconds()), s.state())

	u := &s.summary.Total.Total
	if s.summary.Level == output.LevelApp {
		u = &s.summary.Total.App
	}
	lat := u.Latency()
	total := fmt.Sprintf("total %s/s  read %s/s  write %s/s  %s ops/s  p99 %s", rate(&output.Amount{Bytes: u.Bytes(), Ops: u.Ops()}, d),
		rate(&u.Read, d), rate(&u.Write, d), text.OpsPerSecond(u.Ops(), d), text.Nanos(lat.Quantile(0.99)))
	if room := s.width - ansi.StringWidth(total) - 2; room >= minSpark {
		total += "  " + s.history.spark(s.pos, min(room, maxSpark), func(p *point) uint64 { return p.total })
	}
	return []styledLine{
		{strings.Join(title, "  "), styleHead},
		{strings.TrimRight(total, " "), styleNone},
		{s.pathText(), styleNone},
	}
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

// pathText says which part of the I/O is shown: the path that was drilled down,
// filters and the search, which must be last because the cursor is at its end.
func (s *screen) pathText() string {
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
func (s *screen) rowLines(height int) []styledLine {
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

	g := s.layout.fit(summary, append(cells[:len(cells):len(cells)], stackedCells...), nil, s.width-len(markSign))
	spark := min(s.width-len(markSign)-g.keysWidth()-g.numbers()-2, maxSpark)
	if spark < minSpark {
		spark = 0
	}
	d := s.iv.End.Sub(s.iv.Start)
	groups, heads := g.heads(summary.By, s.group.Sort)
	if spark > 0 {
		back := "LAST " + s.historyText()
		if len(back) > spark {
			back = s.historyText()
		}
		heads = text.PadRight(heads, g.keysWidth()+g.numbers()) + "  " + cutText(back, spark)
	}
	lines := []styledLine{{groups, styleHead}, {heads, styleHead}}
	add := func(r *output.Row, cells []string, style cellStyle, value func(*point) uint64) {
		line := g.line(r, cells, d)
		if spark > 0 && value != nil {
			line = text.PadRight(line, g.keysWidth()+g.numbers()) + "  " + s.history.spark(s.pos, spark, value)
		}
		lines = append(lines, styledLine{strings.TrimRight(line, " "), style})
	}
	for i := range rows {
		style := styleNone
		if strings.HasPrefix(cells[i][0], "(") {
			style = styleDim
		}
		if s.offset+i == s.cursor {
			style = styleMarked
		}
		id := rows[i].Group()
		add(&rows[i], cells[i], style, func(p *point) uint64 { return p.rows[id] })
		if style == styleMarked {
			// The mark covers the whole width; its sign shows it without colours too.
			l := &lines[len(lines)-1]
			l.text = text.PadRight(l.text, s.width-len(markSign)) + markSign
		}
	}
	if summary.Filtered != nil {
		add(summary.Filtered, nil, styleDim, nil)
	}
	add(&summary.Total, nil, styleTotal, nil)
	if len(stacked) > 0 {
		lines = append(lines, styledLine{"stacked on the devices above, not in the total:", styleDim})
		for i := range stacked {
			add(&stacked[i], stackedCells[i], styleDim, nil)
		}
	}
	return lines
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

// footLines are the footer of the table, events, the time line and the keys.
func (s *screen) footLines() []styledLine {
	foot, alert := footer(s.iv, s.summary)
	style := styleDim
	if alert {
		style = styleAlert
	}
	var lines []styledLine
	for _, l := range wrap(foot, s.width) {
		lines = append(lines, styledLine{l, style})
	}
	if !s.noEvents && s.height >= 16 {
		lines = append(lines, s.eventLines(min(5, s.height/5))...)
	}
	if s.live == nil || !s.follow {
		lines = append(lines, styledLine{s.sliderText(), styleNone})
	}
	if s.note != "" {
		return append(lines, styledLine{s.note, styleAlert})
	}
	return append(lines, styledLine{s.keysText(), styleDim})
}

// eventLines are the last n events up to the interval shown.
func (s *screen) eventLines(n int) []styledLine {
	end := len(s.events)
	for end > 0 && s.events[end-1].frame > s.pos {
		end--
	}
	if end == 0 {
		return []styledLine{{"EVENTS  none", styleDim}}
	}
	lines := []styledLine{{"EVENTS", styleHead}}
	for _, e := range s.events[max(0, end-n):end] {
		style := styleNone
		if e.alert {
			style = styleAlert
		}
		lines = append(lines, styledLine{strings.TrimRight(cutText(e.line, s.width), " "), style})
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
	if s.editing {
		return "type part of a name, or KEY=GLOB such as op=write; enter keeps it, esc clears it"
	}
	keys := []string{"q quit", "? help", "enter drill down", "backspace up", "/ filter", "s sort", "b group by", "space pause", "arrows"}
	if s.live == nil {
		keys = []string{"q quit", "? help", "enter drill down", "backspace up", "/ filter", "s sort", "space play", "left/right time", "+/- speed"}
	}
	return strings.Join(wrap(keys, s.width)[:1], "")
}

// helpLines is the help: the keys and the meaning of the numbers.
func (s *screen) helpLines() []styledLine {
	help := `iotrace-bpf: keys

up down, j k, pgup pgdn    move the mark           g G    first, last row
enter        drill down: project > service > container > process > mount
backspace    back up
b B          group by the next, previous key (device, image, nfs-server ...)
s S          sort by the next, previous column
t r w o p n  sort by total, read, write, ops, p99, name; again: reverse
/            filter as you type: part of a name, or KEY=GLOB; esc clears it
v            level: wire, wire and app side by side, app
space        pause, continue; in a replay: play, pause
left right   previous, next interval    [ ]  ten      home end  first, last
+ -          replay faster, slower
e            show, hide events          ctrl+z  suspend       q  quit

Rates are bytes per second in binary units, for requests on the wire: to the
disk, the NFS server or the FUSE daemon. TOTAL includes what filters hide, and
counts every byte once: of stacked devices (dm, md, loop) only the lowest one.
Disk and NFS I/O of a FUSE daemon belongs to the daemon. (kernel) is
file-system metadata without a known owner, (unattributed) is data without a
known owner, (other) did not fit into the kernel's table (--max-groups).

any key closes this help`
	var lines []styledLine
	for i, l := range strings.Split(help, "\n") {
		style := styleNone
		if i == 0 {
			style = styleHead
		}
		lines = append(lines, styledLine{l, style})
	}
	return lines
}
