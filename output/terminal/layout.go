package terminal

import (
	"fmt"
	"slices"
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

// cellStyle is the meaning of a piece of text; look gives its colours.
type cellStyle int

const (
	styleNone cellStyle = iota
	styleHead
	styleTotal
	styleDim
	styleAlert
	styleMarked
)

// column is one column of numbers.
type column struct {
	group    string // heading over this and its neighbours of the same group
	head     string
	sort     string   // its name in --sort; "" if it cannot be sorted by
	sorts    []string // names of the group in --sort
	priority int      // the highest is dropped first if there is no room; 0 never is
	value    func(r *output.Row, d time.Duration) string
}

// layout remembers what must not change from frame to frame. The zero value is
// ready to use.
type layout struct {
	sources   []output.Source // seen so far
	latency   bool            // any latency was seen
	keyWidths []int           // widest text seen in each key column
}

// update remembers the sources and keys of a summary.
func (l *layout) update(summary *output.Summary) {
	for _, s := range summary.Sources {
		if !slices.Contains(l.sources, s) {
			l.sources = append(l.sources, s)
		}
	}
	slices.SortFunc(l.sources, output.CompareSources)
	for _, u := range []*output.Usage{&summary.Total.Total, &summary.Total.App} {
		l.latency = l.latency || len(u.Read.Latency.Buckets)+len(u.Write.Latency.Buckets) > 0
	}
	if len(l.keyWidths) != len(summary.By) {
		l.keyWidths = make([]int, len(summary.By))
		for i, k := range summary.By {
			l.keyWidths[i] = ansi.StringWidth(text.Safe(string(k)))
		}
	}
}

// columns returns the columns of numbers that a level has.
func (l *layout) columns(level output.Level) []column {
	var cols []column
	pair := func(name string, priority int, read, write string, sorts []string, get func(*output.Row) *output.Usage) {
		cell := func(op output.Op) func(*output.Row, time.Duration) string {
			return func(r *output.Row, d time.Duration) string {
				u := get(r)
				if u == nil {
					return text.None
				}
				return rate(u.Amount(op), d)
			}
		}
		cols = append(cols, column{name, "READ", read, sorts, priority, cell(output.OpRead)},
			column{name, "WRITE", write, sorts, priority, cell(output.OpWrite)})
	}
	main := func(r *output.Row) *output.Usage { return &r.Total }
	sourceLevel := output.LevelWire
	if level == output.LevelApp {
		main = func(r *output.Row) *output.Usage { return &r.App }
		sourceLevel = output.LevelApp
	}
	switch len(l.sources) {
	case 0:
		pair("", 0, "read", "write", nil, main)
	case 1:
		name := string(l.sources[0])
		pair(strings.ToUpper(name), 0, "read", "write", []string{name, "total"}, main)
	default:
		for _, s := range l.sources {
			pair(strings.ToUpper(string(s)), 1, "", "", []string{string(s)}, func(r *output.Row) *output.Usage { return r.Source(s, sourceLevel) })
		}
		cols = append(cols, column{"", "TOTAL", "total", nil, 0, func(r *output.Row, d time.Duration) string {
			u := main(r)
			return rate(&output.Amount{Bytes: u.Bytes(), Ops: u.Read.Ops + u.Write.Ops}, d)
		}})
	}
	if level == output.LevelBoth {
		pair("APP", 2, "", "", nil, func(r *output.Row) *output.Usage { return &r.App })
	}
	cols = append(cols, column{"", "OPS", "ops", nil, 3, func(r *output.Row, d time.Duration) string {
		return text.OpsPerSecond(main(r).Ops(), d)
	}})
	if l.latency {
		cols = append(cols, column{"", "P99", "latency", nil, 4, func(r *output.Row, _ time.Duration) string {
			lat := main(r).Latency()
			return text.Nanos(lat.Quantile(0.99))
		}})
	}
	return cols
}

// rate writes bytes per second. Requests without bytes show as 0.
func rate(a *output.Amount, d time.Duration) string {
	if a.Bytes == 0 && a.Ops > 0 {
		return "0"
	}
	return text.PerSecond(a.Bytes, d)
}

// grid is a layout for one frame of a given width.
type grid struct {
	cols []column
	keys []int // widths of the key columns
	gap  int   // cells before a group of columns
}

// fit chooses columns and widths for rows and remembers the widths.
func (l *layout) fit(summary *output.Summary, rows [][]string, rest *output.Row, width int) grid {
	for _, r := range rows {
		for i, text := range r {
			l.keyWidths[i] = max(l.keyWidths[i], ansi.StringWidth(text))
		}
	}
	g := grid{cols: l.columns(summary.Level)}
	least := minKeyWidth
	if n := len(summary.By); n > 1 {
		least = n*minKeyWidthMulti + n - 1
	}
	for width-g.numbers() < least {
		// Columns of one priority are dropped together.
		worst := 0
		for _, c := range g.cols {
			worst = max(worst, c.priority)
		}
		if worst == 0 {
			break
		}
		g.cols = slices.DeleteFunc(g.cols, func(c column) bool { return c.priority == worst })
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

// heads returns the two lines above the rows. The column that rows are sorted by
// is marked.
func (g *grid) heads(by []output.Key, sort output.Sort) (groups, heads string) {
	var a, b strings.Builder
	mark := "v"
	if sort.Reverse != (sort.ColumnName() == "name") {
		mark = "^"
	}
	keys := make([]string, len(by))
	for i, k := range by {
		keys[i] = strings.ToUpper(text.Safe(string(k)))
		if i == 0 && sort.ColumnName() == "name" {
			keys[i] += mark
		}
	}
	b.WriteString(g.keyText(keys))
	a.WriteString(strings.Repeat(" ", g.keysWidth()))
	for i := 0; i < len(g.cols); {
		name, span := g.cols[i].group, 0
		if slices.Contains(g.cols[i].sorts, sort.ColumnName()) {
			name += mark
		}
		for first := i; i < len(g.cols) && (i == first || name != "" && g.cols[i].group == g.cols[first].group); i++ {
			c := &g.cols[i]
			head := c.head
			if c.sort != "" && c.sort == sort.ColumnName() {
				head += mark
			}
			span += text.NumberWidth + g.gapBefore(i)
			b.WriteString(strings.Repeat(" ", g.gapBefore(i)) + text.PadLeft(head, text.NumberWidth))
		}
		a.WriteString(text.PadLeft(cutText(name, span), span))
	}
	return strings.TrimRight(a.String(), " "), strings.TrimRight(b.String(), " ")
}

func (g *grid) keysWidth() int { return sumOf(g.keys) + len(g.keys) - 1 }

func (g *grid) keyText(cells []string) string {
	var b strings.Builder
	for i, cell := range cells {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(text.PadRight(cutText(cell, g.keys[i]), g.keys[i]))
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

// line returns a row as a line without trailing spaces.
func (g *grid) line(r *output.Row, cells []string, d time.Duration) string {
	var b strings.Builder
	if r.Label != "" {
		b.WriteString(text.PadRight(cutText(sumText(r), g.keysWidth()), g.keysWidth()))
	} else {
		b.WriteString(g.keyText(cells))
	}
	for i, c := range g.cols {
		b.WriteString(strings.Repeat(" ", g.gapBefore(i)) + text.PadLeft(c.value(r, d), text.NumberWidth))
	}
	return strings.TrimRight(b.String(), " ")
}

func sumText(r *output.Row) string {
	if r.Label == output.TextRest {
		return fmt.Sprintf("%s of %d", output.TextRest, r.Groups)
	}
	return r.Label
}

// footer says how far the numbers can be trusted: bytes without an owner, losses,
// missing names, and the overhead of the tracer. alert is set if anything was
// lost. The parts are short, so that they can be wrapped.
func footer(iv *output.Interval, summary *output.Summary) (parts []string, alert bool) {
	d := iv.End.Sub(iv.Start)
	if summary.Level != output.LevelApp {
		unattributed := iv.Unattributed()
		parts = append(parts, "unattributed "+text.Percent(float64(unattributed), float64(summary.Total.Total.Bytes())))
	}
	if lost := lostText(&iv.Lost); lost == "" {
		parts = append(parts, "nothing lost")
	} else {
		alert = true
		parts = append(parts, "LOST "+lost)
	}
	if iv.Unresolved > 0 {
		parts = append(parts, text.Plural(iv.Unresolved, "cgroup without a name", "cgroups without a name"))
	}
	overhead := "overhead: CPU " + text.Percent(float64(iv.Self.CPUNanos), float64(d))
	if iv.Self.BPFNanos > 0 {
		overhead += ", BPF " + text.Percent(float64(iv.Self.BPFNanos), float64(d))
	}
	overhead += ", " + text.Size(iv.Self.RSSBytes)
	if own := iv.Self.ReadBytes + iv.Self.WriteBytes; own > 0 {
		overhead += ", " + text.Size(own) + " I/O not shown"
	}
	return append(parts, overhead), alert
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
