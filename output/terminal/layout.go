package terminal

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// Tables have a layout of their own. text/tabwriter counts characters instead of
// terminal cells, so that one Chinese container name would shift every column.
// lipgloss/table chooses new widths for every frame, so that columns would jump
// at each refresh. x/ansi measures and cuts the cells.

// Key columns are never narrower than this: columns of numbers are dropped first.
const (
	minKeyWidth      = 16 // of a single key
	minKeyWidthMulti = 10 // of each of several
)

// measure says what the numbers of a table are: rates, or totals.
type measure struct {
	level  output.Level
	d      time.Duration // that the amounts are from
	totals bool          // amounts instead of rates
	all    uint64        // bytes that shares are of
	peaks  *output.Peaks // not nil: a column for the highest rates
	sort   output.Sort
}

// bytes writes an amount, or the rate of it. Requests without bytes show as 0.
func (m *measure) bytes(a *output.Amount) string {
	switch {
	case a.Bytes == 0 && a.Ops > 0:
		return "0"
	case a.Bytes == 0:
		return text.None
	case m.totals:
		return text.Bytes(float64(a.Bytes))
	}
	return text.PerSecond(a.Bytes, m.d)
}

func (m *measure) ops(n uint64) string {
	if m.totals && n > 0 {
		return text.Count(float64(n))
	}
	return text.OpsPerSecond(n, m.d)
}

// share writes the part of all bytes: a scale that is the same for each row.
func (m *measure) share(bytes uint64) string {
	switch p := 100 * float64(bytes) / float64(max(m.all, 1)); {
	case bytes == 0:
		return text.None
	case p < 0.1:
		return "<0.1%"
	case p >= 99.95:
		return "100%"
	default:
		return strconv.FormatFloat(p, 'f', 1, 64) + "%"
	}
}

// unit names what bytes and operations are in.
func (m *measure) unit() string {
	if m.totals {
		return "bytes"
	}
	return "bytes/s"
}

// column is one column of numbers.
type column struct {
	group string // heading over this and its neighbours of the same group
	head  string
	sorts []string // values of --sort that this column shows
	by    []string // values of --sort that the group shows
	drop  int      // the highest is dropped first if there is no room; 0 never is
	style cellStyle
	value func(r *output.Row) string
}

// The order in which columns are dropped.
const (
	dropNever = iota
	dropTotal
	dropApp
	dropMeta
	dropPeak
	dropShare
	dropLatency
	dropOps
)

// layout remembers what must not change from frame to frame. The zero value is
// ready to use.
type layout struct {
	sources   []output.Source // that had I/O so far
	latency   bool            // any latency was seen
	meta      bool            // metadata was more than a tenth of a row
	keyWidths []int           // widest text seen in each key column
}

// update remembers the sources and keys of a summary. Sources without reads and
// writes get no columns: their room goes to the others.
func (l *layout) update(summary *output.Summary) {
	for i := range summary.Total.Sources {
		s := &summary.Total.Sources[i]
		if (s.Read.Ops+s.Write.Ops > 0 || s.Bytes() > 0) && !slices.Contains(l.sources, s.Source) {
			l.sources = append(l.sources, s.Source)
		}
	}
	slices.SortFunc(l.sources, output.CompareSources)
	for _, u := range []*output.Usage{&summary.Total.Total, &summary.Total.App} {
		l.latency = l.latency || len(u.Read.Latency.Buckets)+len(u.Write.Latency.Buckets) > 0
	}
	for i := range summary.Rows {
		r := &summary.Rows[i]
		// All of (kernel) is metadata.
		if u := r.At(summary.Level); 10*metaBytes(u) > u.Bytes() && r.Identity().Owner.Workload() {
			l.meta = true
		}
	}
	if len(l.keyWidths) != len(summary.By) {
		l.keyWidths = make([]int, len(summary.By))
		for i, k := range summary.By {
			l.keyWidths[i] = ansi.StringWidth(text.Safe(string(k)))
		}
		l.keyWidths[0] = max(l.keyWidths[0], len("bytes/s"))
	}
}

func metaBytes(u *output.Usage) uint64 { return u.MetaReadBytes + u.MetaWriteBytes }

// columns returns the columns of numbers. With joined set, one pair of columns is for
// all sources together.
func (l *layout) columns(m *measure, joined bool) []column {
	var cols []column
	pair := func(name string, drop int, by []string, get func(*output.Row) *output.Usage) {
		cell := func(op output.Op) func(*output.Row) string {
			return func(r *output.Row) string {
				u := get(r)
				if u == nil {
					return text.None
				}
				return m.bytes(u.Amount(op))
			}
		}
		var read, write []string
		if drop == dropNever { // not of another level
			read, write = []string{"read"}, []string{"write"}
		}
		cols = append(cols, column{name, "READ", read, by, drop, styleRead, cell(output.OpRead)},
			column{name, "WRITE", write, by, drop, styleWrite, cell(output.OpWrite)})
	}
	main := func(r *output.Row) *output.Usage { return r.At(m.level) }
	sourceLevel := output.LevelWire
	if m.level == output.LevelApp {
		sourceLevel = output.LevelApp
	}
	one := func(group, head, sort string, drop int, value func(*output.Row) string) {
		c := column{group: group, head: head, drop: drop, value: value}
		if sort != "" {
			c.sorts = []string{sort}
		}
		if m.sort.ColumnName() == sort {
			c.drop = dropNever
		}
		cols = append(cols, c)
	}
	total := func(r *output.Row) string {
		u := main(r)
		return m.bytes(&output.Amount{Bytes: u.Bytes(), Ops: u.Read.Ops + u.Write.Ops})
	}
	switch {
	case len(l.sources) == 0:
		pair("", dropNever, nil, main)
	case len(l.sources) == 1:
		pair(strings.ToUpper(string(l.sources[0])), dropNever, []string{string(l.sources[0])}, main)
	case joined:
		pair("", dropNever, nil, main)
		if s := output.Source(m.sort.ColumnName()); slices.Contains(l.sources, s) {
			one("", strings.ToUpper(string(s)), string(s), dropNever, func(r *output.Row) string {
				u := r.Source(s, sourceLevel)
				if u == nil {
					return text.None
				}
				return m.bytes(&output.Amount{Bytes: u.Bytes(), Ops: u.Read.Ops + u.Write.Ops})
			})
		}
	default:
		for _, s := range l.sources {
			pair(strings.ToUpper(string(s)), dropNever, []string{string(s)}, func(r *output.Row) *output.Usage { return r.Source(s, sourceLevel) })
		}
	}
	one("", "TOTAL", "total", dropTotal, total)
	one("", "SHARE", "", dropShare, func(r *output.Row) string { return m.share(main(r).Bytes()) })
	if m.peaks != nil {
		one("", "PEAK/s", "", dropPeak, func(r *output.Row) string {
			if v := m.peaks.Of(r); v > 0 {
				return text.Bytes(v)
			}
			return text.None
		})
	}
	if l.meta {
		one("", "META", "", dropMeta, func(r *output.Row) string { return m.bytes(&output.Amount{Bytes: metaBytes(main(r))}) })
	}
	if m.level == output.LevelBoth {
		pair("APP", dropApp, nil, func(r *output.Row) *output.Usage { return &r.App })
	}
	one("", "OPS", "ops", dropOps, func(r *output.Row) string { return m.ops(main(r).Ops()) })
	if l.latency {
		one("", "P99", "latency", dropLatency, func(r *output.Row) string {
			lat := main(r).Latency()
			return text.Nanos(lat.Quantile(0.99))
		})
	}
	return cols
}

// grid is a layout for one frame of a given width.
type grid struct {
	cols []column
	keys []int // widths of the key columns
	gap  int   // cells before a group of columns
}

// wideWidth is the width from which on each row has its latency.
const wideWidth = 98

// noLimit is the width of lines that go to a file or a pipe.
const noLimit = 1 << 20

// fit chooses columns and widths for rows and remembers the widths.
func (l *layout) fit(m *measure, summary *output.Summary, rows [][]string, rest *output.Row, width int) grid {
	for _, r := range rows {
		for i, text := range r {
			l.keyWidths[i] = max(l.keyWidths[i], ansi.StringWidth(text))
		}
	}
	least := minKeyWidth
	if n := len(summary.By); n > 1 {
		least = n*minKeyWidthMulti + n - 1
	}
	// One pair of columns for all sources is worse than a pair for each, and better than
	// none of a source. On wide terminals latencies come before pairs.
	first := dropLatency
	if width >= wideWidth {
		first = dropOps
	}
	g := grid{cols: l.columns(m, false)}
	if !g.narrow(width, least, first) {
		g.cols = l.columns(m, true)
		g.narrow(width, least, dropNever+1)
	}
	if g.gap = 1; width-g.numbers() >= least+8 {
		g.gap = 2
	}
	room := max(width-g.numbers(), 1)
	g.keys = share(l.keyWidths, room)
	// The names of sums run across all key columns.
	for _, r := range []*output.Row{rest, summary.Filtered} {
		if r != nil {
			g.keys[len(g.keys)-1] += max(0, min(room, len(sumText(r)))-g.keysWidth())
		}
	}
	return g
}

// narrow drops columns until the keys have the least width, but none that is dropped
// later than limit. It reports whether that was enough.
func (g *grid) narrow(width, least, limit int) bool {
	for width-g.numbers() < least {
		worst := 0
		for _, c := range g.cols {
			worst = max(worst, c.drop)
		}
		if worst < limit {
			return false
		}
		// Columns that are dropped at the same time are one.
		g.cols = slices.DeleteFunc(g.cols, func(c column) bool { return c.drop == worst })
	}
	return true
}

// numbers returns how many cells the columns of numbers take, gaps included.
func (g *grid) numbers() int {
	n := 0
	for i := range g.cols {
		n += text.NumberWidth + g.gapBefore(i)
	}
	return n
}

func (g *grid) gapBefore(i int) int {
	if g.gap == 2 && (i == 0 || g.cols[i].group != g.cols[i-1].group || g.cols[i].group == "") {
		return 2
	}
	return 1
}

// share gives every column the width that it wants if there is room for all, else
// it cuts the widest ones to equal widths. One cell stays free between columns.
func share(want []int, width int) []int {
	room := max(width-(len(want)-1), len(want))
	got := slices.Clone(want)
	sum := func(limit int) (n int) {
		for _, w := range want {
			n += min(w, limit)
		}
		return n
	}
	limit := slices.Max(want)
	for limit > 1 && sum(limit) > room {
		limit--
	}
	for i := range got {
		got[i] = min(got[i], limit)
	}
	// Cells left over by rounding go to the first columns that want more.
	for i := range got {
		for got[i] < want[i] && sumOf(got) < room {
			got[i]++
		}
	}
	return got
}

func sumOf(n []int) (sum int) {
	for _, v := range n {
		sum += v
	}
	return sum
}

// keyCells returns the safe texts of the rows' key columns. Rows with equal names
// that are different things get a suffix (#id), and so does a container that has
// the name of a reserved row, such as "(kernel)".
func keyCells(rows []output.Row) [][]string {
	cells := make([][]string, len(rows))
	count := make(map[string]int, len(rows))
	for i := range rows {
		cells[i] = make([]string, len(rows[i].Keys))
		for k := range rows[i].Keys {
			cell := text.Safe(rows[i].Keys[k].Text)
			if strings.TrimSpace(cell) == "" {
				cell = `"` + cell + `"`
			}
			cells[i][k] = cell
		}
		count[strings.Join(cells[i], "\x00")]++
	}
	for i := range rows {
		if len(cells[i]) == 0 {
			continue
		}
		id := rows[i].Identity()
		spoof := output.Reserved(cells[i][0]) && id.Owner.Workload()
		if !spoof && count[strings.Join(cells[i], "\x00")] == 1 {
			continue
		}
		mark := rows[i].ID()[:6]
		if id := id.Container.ID; id != "" {
			mark = text.Safe(output.ShortID(id))
		}
		cells[i][0] += " #" + mark
	}
	return cells
}

// heads returns the two lines above the rows: groups and units, and the columns. What
// rows are sorted by is marked.
func (g *grid) heads(by []output.Key, m *measure) (groups, heads string) {
	var a, b strings.Builder
	mark := "v"
	if m.sort.Reverse != (m.sort.ColumnName() == "name") {
		mark = "^"
	}
	keys := make([]string, len(by))
	for i, k := range by {
		keys[i] = strings.ToUpper(text.Safe(string(k)))
		if i == 0 && m.sort.ColumnName() == "name" {
			keys[i] += mark
		}
	}
	b.WriteString(g.keyText(keys))
	a.WriteString(text.PadRight(cutText(m.unit(), g.keysWidth()), g.keysWidth()))
	for i := 0; i < len(g.cols); {
		name, span := g.cols[i].group, 0
		if name != "" && slices.Contains(g.cols[i].by, m.sort.ColumnName()) {
			name += mark
		}
		for first := i; i < len(g.cols) && (i == first || name != "" && g.cols[i].group == g.cols[first].group); i++ {
			c := &g.cols[i]
			head := c.head
			if slices.Contains(c.sorts, m.sort.ColumnName()) {
				head += mark
			}
			span += text.NumberWidth + g.gapBefore(i)
			b.WriteString(strings.Repeat(" ", g.gapBefore(i)) + text.PadLeft(head, text.NumberWidth))
		}
		a.WriteString(text.PadLeft(cutText(name, span), span))
	}
	return strings.TrimRight(a.String(), " "), strings.TrimRight(b.String(), " ")
}

// columnAt returns what a click on the heading at cell x sorts by, or "".
func (g *grid) columnAt(x int) string {
	at := g.keysWidth()
	if x < at {
		return "name"
	}
	for i := range g.cols {
		if at += g.gapBefore(i) + text.NumberWidth; x < at {
			if len(g.cols[i].sorts) > 0 {
				return g.cols[i].sorts[0]
			}
			return ""
		}
	}
	return ""
}

func (g *grid) keysWidth() int { return sumOf(g.keys) + len(g.keys) - 1 }

func (g *grid) keyText(cells []string) string {
	var b strings.Builder
	for i, cell := range cells {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(text.PadRight(cutMiddle(cell, g.keys[i]), g.keys[i]))
	}
	return b.String()
}

// slowNanos is the latency from which on it is shown as slow.
const slowNanos = 100_000_000

// row returns a row as a line without trailing spaces. Its numbers have colours unless
// style says how the whole line looks.
func (g *grid) row(r *output.Row, cells []string, style cellStyle) line {
	name := g.keyText(cells)
	if r.Label != "" {
		name = text.PadRight(cutText(sumText(r), g.keysWidth()), g.keysWidth())
	}
	out := line{{name, style}}
	for i, c := range g.cols {
		value := c.value(r)
		look := style
		switch {
		case style != styleNone:
		case value == text.None:
			look = styleDim
		case c.head == "P99" && slow(value):
			look = styleSlow
		default:
			look = c.style
		}
		out = append(out, piece{strings.Repeat(" ", g.gapBefore(i)) + text.PadLeft(value, text.NumberWidth), look})
	}
	return out.trim()
}

// slow reports whether a latency as text.Nanos writes it is at least slowNanos.
func slow(latency string) bool {
	d, err := time.ParseDuration(latency)
	return err == nil && d.Nanoseconds() >= slowNanos
}

func sumText(r *output.Row) string {
	if r.Label == output.TextRest {
		return fmt.Sprintf("%s of %d", output.TextRest, r.Groups)
	}
	return r.Label
}

// footer says how far the numbers can be trusted: losses, bytes without an owner,
// missing names. alert is set if anything was lost. The parts are short, so that they
// can be wrapped.
func footer(iv *output.Interval, summary *output.Summary) (parts []string, alert bool) {
	if lost := lostText(&iv.Lost); lost == "" {
		parts = append(parts, "nothing lost")
	} else {
		alert = true
		parts = append(parts, "LOST "+lost)
	}
	if summary.Level != output.LevelApp {
		unattributed := iv.Unattributed()
		parts = append(parts, "unattributed "+text.Percent(float64(unattributed), float64(summary.Total.Total.Bytes())))
	}
	if iv.Unresolved > 0 {
		parts = append(parts, text.Plural(iv.Unresolved, "cgroup without a name", "cgroups without a name"))
	}
	return parts, alert
}

// overhead says what the tracer itself needed in d.
func overhead(iv *output.Interval, d time.Duration) string {
	s := "overhead: CPU " + text.Percent(float64(iv.Self.CPUNanos), float64(d))
	if iv.Self.BPFNanos > 0 {
		s += ", BPF " + text.Percent(float64(iv.Self.BPFNanos), float64(d))
	}
	s += ", " + text.Size(iv.Self.RSSBytes)
	if iv.Self.MapBytes > 0 {
		s += " + " + text.Size(iv.Self.MapBytes) + " maps"
	}
	if own := iv.Self.ReadBytes + iv.Self.WriteBytes; own > 0 {
		s += ", " + text.Size(own) + " I/O not shown"
	}
	return s
}

// lostText names all losses. It is empty if there are none.
func lostText(l *output.Lost) string { return strings.Join(l.Words(), ", ") }

// wrap joins parts with two spaces into lines of at most width cells. A part that
// is longer than a line continues on the next one.
func wrap(parts []string, width int) []string {
	var lines []string
	for _, p := range parts {
		if n := len(lines); n > 0 && ansi.StringWidth(lines[n-1])+2+ansi.StringWidth(p) <= width {
			lines[n-1] += "  " + p
			continue
		}
		for l := range strings.SplitSeq(ansi.Wrap(p, width, ""), "\n") {
			lines = append(lines, strings.TrimRight(l, " "))
		}
	}
	return lines
}
