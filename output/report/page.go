package report

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/file"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var css string

// page is the data of the template. All of it is plain text: html/template escapes it.
type page struct {
	Title    string
	CSS      template.CSS
	Policy   string
	Facts    []fact
	Verdict  []headline
	Peaks    plainTable
	Servers  plainTable
	Notices  []notice
	Tiles    []fact
	Charts   []*chart
	Tables   []table
	Latency  plainTable
	Slow     plainTable
	Basis    plainTable
	Sources  plainTable
	Lost     plainTable
	VXLAN    plainTable
	VXLANSum string
	Self     string
	By       string
	Filters  []string
	Zone     string
	Tool     string
	Empty    bool
}

// headline answers one question about the run.
type headline struct{ Question, Answer string }

// fact is a name and its value.
type fact struct{ Name, Value, Hint string }

// notice is something that the reader of the numbers must know.
type notice struct {
	Class string // "warn" or "good"
	Text  string
}

// name is text from outside, made safe: Text is cut for display, Full is longer
// and shown as a tooltip.
type name struct{ Text, Full string }

// table shows the largest groups of a view.
type table struct {
	ID, Title, Note string
	Rows            []tableRow
	Latency         bool // has columns of latencies
	Errors          bool // has a column of errors
}

type tableRow struct {
	Name          name
	Class         string
	Spark         string
	Share         string
	Read, Write   string
	Rate, Peak    string
	PeakAt        string
	Ops, Errors   string
	ReadQ, WriteQ []string
}

// plainTable is a table of texts.
type plainTable struct {
	Columns []string
	Numbers int // how many of the last columns are numbers
	Rows    [][]string
	Note    string
}

const (
	nameShown   = 80  // cells of a name in a table
	legendShown = 40  // cells of a name beside a chart
	nameFull    = 600 // characters of a name in a tooltip
)

// safeName prepares text from outside for the page.
func safeName(s string) name {
	shown := text.Fit(s, nameShown)
	if len(s) > 8*nameFull {
		s = s[:8*nameFull]
	}
	full := text.Safe(s)
	if utf8.RuneCountInString(full) > nameFull {
		full = string([]rune(full)[:nameFull]) + "…"
	}
	if full == shown {
		full = ""
	}
	return name{Text: shown, Full: full}
}

func safeText(s string) string { return safeName(s).Text }

// WriteTo writes the page and returns the number of bytes written. After that more
// intervals can be added and the page can be written again.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	r.flush()
	t, err := template.New("page").Funcs(template.FuncMap{
		// number reports whether column i of all is one of the last n.
		"number": func(i, all, n int) bool { return i >= all-n },
		// short reports whether a cell is better kept in one line.
		"short": func(s string) bool { return len(s) <= 26 },
	}).Parse(pageHTML)
	if err != nil {
		return 0, fmt.Errorf("report: %w", err)
	}
	count := &countWriter{w: w}
	buf := bufio.NewWriterSize(count, 64<<10)
	if err := t.Execute(buf, r.page()); err != nil {
		return count.n, fmt.Errorf("writing report: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return count.n, fmt.Errorf("writing report: %w", err)
	}
	return count.n, nil
}

// WriteFile writes the page to path, as file.Replace does.
func (r *Report) WriteFile(path string) error {
	err := file.Replace(path, func(w io.Writer) error {
		_, err := r.WriteTo(w)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing report %q: %w", path, err)
	}
	return nil
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// page builds the data of the template.
func (r *Report) page() *page {
	sum := sha256.Sum256([]byte(css))
	p := &page{
		Title: safeText(r.opt.Title),
		CSS:   template.CSS(css), // #nosec G203 -- ours, embedded
		// The page may not load or run anything, even if escaping a name failed.
		Policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; img-src data:; base-uri 'none'; form-action 'none'",
		By:     joinKeys(r.opt.By),
		Zone:   r.zone(),
		Tool:   safeText(r.opt.Tool),
		Empty:  r.intervals == 0,
	}
	for _, f := range r.opt.Filters {
		p.Filters = append(p.Filters, safeText(f.String()))
	}
	p.Facts = r.facts()
	if p.Empty {
		p.Notices = r.notices()
		return p
	}
	total := r.total()
	p.Tiles = r.tiles(total)
	p.Verdict = r.verdict(total)
	p.Notices = r.notices()
	p.Charts = r.charts()
	for i, v := range r.views {
		if i > 0 && !r.process && slices.Equal(v.by, []output.Key{output.KeyProcess}) {
			continue // they were not recorded
		}
		p.Tables = append(p.Tables, r.table(i, v, total))
	}
	p.Peaks = r.peaks()
	p.Servers = r.serverTable()
	p.Latency = r.latency(total)
	p.Slow = r.slowest()
	p.Basis = r.basisTable()
	p.Sources = r.sourceTable()
	p.Lost = r.lostTable()
	p.VXLAN, p.VXLANSum = r.vxlanTable()
	if c := r.self.CPUNanos; c != 0 {
		p.Self = fmt.Sprintf("iotrace-bpf itself used %s of one CPU", text.Percent(float64(c), float64(r.covered)))
		if b := r.self.BPFNanos; b != 0 {
			p.Self += fmt.Sprintf(" in user space, %s in its BPF programs", text.Percent(float64(b), float64(r.covered)))
		}
		p.Self += fmt.Sprintf(", and at most %s of memory", spaced(text.Size(r.self.RSSBytes)))
		if b := r.self.MapBytes; b != 0 {
			p.Self += fmt.Sprintf(" and %s for BPF maps in the kernel", spaced(text.Size(b)))
		}
		p.Self += "."
	}
	return p
}

func joinKeys(keys []output.Key) string {
	var names []string
	for _, k := range keys {
		names = append(names, safeText(string(k)))
	}
	return strings.Join(names, ", ")
}

func (r *Report) zone() string {
	if r.intervals == 0 {
		return r.opt.Location.String()
	}
	return r.end.In(r.opt.Location).Format("MST (-07:00)")
}

// when formats a time with its date, without a line break between them.
func (r *Report) when(t time.Time) string {
	return t.In(r.opt.Location).Format("2006-01-02\u00a015:04:05")
}

func (r *Report) total() *output.Usage {
	var u output.Usage
	for i := range r.bins {
		u.Add(&r.bins[i].total)
	}
	return &u
}

func (r *Report) facts() []fact {
	var f []fact
	for i, h := range r.hosts {
		key := ""
		if i == 0 {
			key = "Host"
		}
		v := safeText(h.Name)
		if v == "" {
			v = "(unnamed)"
		}
		if h.Kernel != "" {
			v += ", kernel " + safeText(h.Kernel)
		}
		f = append(f, fact{Name: key, Value: v, Hint: safeText(h.ID)})
	}
	if r.moreHosts {
		f = append(f, fact{Value: "and more"})
	}
	if r.intervals > 0 {
		f = append(f, fact{Name: "From", Value: r.when(r.start)}, fact{Name: "To", Value: r.when(r.end) + " " + r.zone()},
			fact{Name: "Length", Value: r.end.Sub(r.start).Round(time.Second).String() + " in " + text.Plural(r.intervals, "interval", "intervals")})
	}
	if r.opt.Origin != "" {
		f = append(f, fact{Name: "Data", Value: safeText(r.opt.Origin)})
	}
	if !r.opt.Now.IsZero() {
		f = append(f, fact{Name: "Report created", Value: r.when(r.opt.Now)})
	}
	if r.opt.Command != "" {
		f = append(f, fact{Name: "Made with", Value: text.Fit(r.opt.Command, nameFull)})
	}
	return f
}

func (r *Report) tiles(total *output.Usage) []fact {
	rate := func(b uint64) string { return rateText(float64(b)/text.Seconds(r.covered)) + " on average" }
	ops := func(o uint64) string {
		return spaced(text.Count(float64(o)/text.Seconds(r.covered))) + " per second"
	}
	tiles := []fact{
		{"Read", spaced(text.Size(total.Read.Bytes)), rate(total.Read.Bytes)},
		{"Written", spaced(text.Size(total.Write.Bytes)), rate(total.Write.Bytes)},
		{"Operations", spaced(text.Count(float64(total.Ops()))), ops(total.Ops())},
	}
	if e := errorsOf(total); e > 0 {
		tiles = append(tiles, fact{"Failed", strconv.FormatUint(e, 10), "operations that ended in an error"})
	}
	all := total.Bytes() + r.filtered.Bytes()
	return append(tiles, fact{"Unattributed", text.Percent(float64(r.unattr), float64(all)), spaced(text.Size(r.unattr)) + " without a known owner"})
}

func errorsOf(u *output.Usage) (n uint64) {
	for _, op := range output.Ops {
		n += u.Amount(op).Errors
	}
	return n
}

// verdict answers who writes, who reads and who is slow, a sentence each.
func (r *Report) verdict(total *output.Usage) []headline {
	if total.Bytes() == 0 {
		return []headline{{"", "No bytes were read or written during this time."}}
	}
	rows := r.views[0].sorted()
	rows = slices.DeleteFunc(rows, func(g *group) bool { return g.stacked })
	var out []headline
	for _, d := range []struct {
		question, verb string
		op             output.Op
		of             func(readWrite) uint64
	}{
		{"Who writes?", "wrote", output.OpWrite, func(b readWrite) uint64 { return b.write }},
		{"Who reads?", "read", output.OpRead, func(b readWrite) uint64 { return b.read }},
	} {
		all := total.Amount(d.op).Bytes
		if all == 0 {
			out = append(out, headline{d.question, "Nobody."})
			continue
		}
		byOp := slices.Clone(rows)
		slices.SortStableFunc(byOp, func(a, b *group) int {
			return cmp.Compare(b.usage.Amount(d.op).Bytes, a.usage.Amount(d.op).Bytes)
		})
		g := byOp[0]
		peak, at := r.peakOf(g.bins, d.of)
		bytes := g.usage.Amount(d.op).Bytes
		answer := fmt.Sprintf("%s %s %s, %s of all, at most %s at %s.", safeText(g.text), d.verb, spaced(text.Size(bytes)),
			text.Percent(float64(bytes), float64(all)), rateText(peak), r.when(at))
		if len(byOp) > 1 && byOp[1].usage.Amount(d.op).Bytes > 0 {
			next := byOp[1]
			answer += fmt.Sprintf(" Next is %s with %s.", safeText(next.text), text.Percent(float64(next.usage.Amount(d.op).Bytes), float64(all)))
		}
		out = append(out, headline{d.question, answer})
	}
	return append(out, headline{"Who is slow?", r.slowest99(rows, total)})
}

// slowEnough is the least number of requests of which a 99th percentile says something.
const slowEnough = 100

// slowest99 names the group whose requests take longest.
func (r *Report) slowest99(rows []*group, total *output.Usage) string {
	var worst *group
	var most uint64
	measured := false
	for _, g := range rows {
		l := g.usage.Latency()
		n := l.Count()
		measured = measured || n > 0
		if q := l.Quantile(0.99); n >= slowEnough && q > most {
			worst, most = g, q
		}
	}
	all := total.Latency()
	switch {
	case !measured:
		return "Latencies were not measured."
	case worst == nil:
		return fmt.Sprintf("Nobody made %d requests. Of all requests, 99 of 100 took at most %s.", slowEnough, spaced(text.Nanos(all.Quantile(0.99))))
	}
	l := worst.usage.Latency()
	return fmt.Sprintf("%s: 99 of 100 requests took at most %s, the longest %s. Of all requests, 99 of 100 took at most %s.",
		safeText(worst.text), spaced(text.Nanos(most)), spaced(text.Nanos(l.Max)), spaced(text.Nanos(all.Quantile(0.99))))
}

// maxPeaks is how many peaks the page lists.
const maxPeaks = 10

// peaks lists the steps of the charts with the highest rates, and who did most then.
func (r *Report) peaks() plainTable {
	t := plainTable{Columns: []string{"Time", "Read", "Written", "Slowest of 100", "Most of it"}}
	order := make([]int, len(r.bins))
	for i := range order {
		order[i] = i
	}
	rate := func(i int) float64 { return float64(r.bins[i].total.Bytes()) / text.Seconds(r.bins[i].covered) }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rate(b), rate(a)) })
	rows := r.views[0].sorted()
	for _, i := range order[:min(len(order), maxPeaks)] {
		b := &r.bins[i]
		if b.total.Bytes() == 0 {
			break
		}
		who, most := "", uint64(0)
		for _, g := range rows {
			if !g.stacked && i < len(g.bins) && g.bins[i].read+g.bins[i].write > most {
				who, most = g.text, g.bins[i].read+g.bins[i].write
			}
		}
		lat := b.total.Latency()
		t.Rows = append(t.Rows, []string{
			r.when(b.start), rateCell(float64(b.total.Read.Bytes) / text.Seconds(b.covered)), rateCell(float64(b.total.Write.Bytes) / text.Seconds(b.covered)),
			nanosCell(lat.Quantile(0.99)), safeText(who) + ", " + text.Percent(float64(most), float64(b.total.Bytes())),
		})
	}
	return t
}

// serverTable is what the people of an NFS server ask first.
func (r *Report) serverTable() plainTable {
	t := plainTable{Columns: []string{"Server", "Most of it by", "Read", "Written", "Requests", "Sent again", "Failed", "Reads, p99", "Writes, p99"}, Numbers: 7}
	users := r.users.sorted()
	for _, g := range r.servers.sorted() {
		if len(g.id) < 2 || g.stacked {
			continue // not NFS: the id of the server, after its length, is empty
		}
		who := ""
		for _, u := range users {
			if strings.HasPrefix(u.id, g.id) { // ids of several keys follow one another
				who = strings.TrimPrefix(u.text, g.text+", ") + ", " + text.Percent(float64(u.usage.Bytes()), float64(g.usage.Bytes()))
				break
			}
		}
		u := &g.usage
		t.Rows = append(t.Rows, []string{
			safeText(g.text), safeText(who), sizeCell(u.Read.Bytes), sizeCell(u.Write.Bytes), countCell(u.Ops()), countCell(u.Retransmits), countCell(errorsOf(u)),
			nanosCell(u.Read.Latency.Quantile(0.99)), nanosCell(u.Write.Latency.Quantile(0.99)),
		})
	}
	return t
}

// peak returns the highest rate of a group in bytes per second, and its time.
func (r *Report) peak(bins []readWrite) (rate float64, at time.Time) {
	return r.peakOf(bins, func(b readWrite) uint64 { return b.read + b.write })
}

func (r *Report) peakOf(bins []readWrite, of func(readWrite) uint64) (rate float64, at time.Time) {
	for i, b := range bins {
		if v := float64(of(b)) / text.Seconds(r.bins[i].covered); v > rate {
			rate, at = v, r.bins[i].start
		}
	}
	return rate, at
}

// notices say what is wrong or missing, or that everything is there.
func (r *Report) notices() []notice {
	var n []notice
	warn := func(format string, args ...any) {
		n = append(n, notice{"warn", fmt.Sprintf(format, args...)})
	}
	for _, d := range r.damage {
		warn("%s", text.Safe(d[:min(len(d), 1000)]))
	}
	if r.intervals == 0 {
		warn("There is nothing to report: no interval was recorded.")
		return n
	}
	if r.gap > time.Second {
		warn("Nothing was recorded for %s between the first and the last interval. The numbers on this page do not include I/O of that time.", r.gap.Round(time.Second))
	}
	if r.shift > 0 {
		warn("The host's clock was set back by %s. All later times on this page are too late by that much.", r.shift.Round(time.Second))
	}
	if r.lost != (output.Lost{}) {
		exact := "Bytes and operations are still exact."
		switch l := &r.lost; {
		case l.Bytes+l.Misses > 0:
			exact = "The totals below are too small: see “What was lost”."
		case l.Groups+l.Walks+l.Notes > 0:
			exact = "Totals are exact, but some I/O is not under its real owner: see “What was lost”."
		}
		warn("Lost between %s and %s: %s. %s", r.when(r.lostFirst), r.when(r.lostLast), strings.Join(r.lost.Words(), ", "), exact)
	}
	if r.filtered.Bytes() > 0 {
		warn("Filters leave out %s, which no chart or table includes.", spaced(text.Size(r.filtered.Bytes())))
	}
	if r.unresolved > 0 {
		warn("Up to %s with I/O had no name yet and were shown by number.", text.Plural(r.unresolved, "cgroup", "cgroups"))
	}
	for _, v := range r.views {
		if v.foldMax > 0 || v.folded.groups > 0 {
			warn("By %s there were too many groups: the smallest %d were added up as %s. A row may be too small by up to %s for each time its group was one of them.",
				joinKeys(v.by), v.folded.groups, output.TextRest, spaced(text.Size(v.foldMax)))
		}
	}
	if r.lost == (output.Lost{}) && len(r.damage) == 0 {
		n = append(n, notice{"good", "Nothing was lost: every request is in the totals."})
	}
	return n
}

// charts draws writes and reads of the first view, sources and latencies.
func (r *Report) charts() []*chart {
	rows, rest, _ := r.views[0].top(r.opt.Top)
	// The largest groups have colours. On top of them are the sum of the others,
	// the kernel, and bytes without an owner.
	var groups, above []*group
	var classes, classesAbove []string
	others := group{text: output.TextRest}
	if rest != nil {
		others.absorb(rest)
	}
	special := map[output.OwnerKind]string{output.OwnerUnattributed: "none", output.OwnerOther: "none", output.OwnerKernel: "kern"}
	for _, g := range rows {
		switch {
		case special[g.owner] != "":
			above, classesAbove = append(above, g), append(classesAbove, special[g.owner])
		case len(groups) < chartSeries && g.usage.Bytes() > 0:
			groups, classes = append(groups, g), append(classes, "c"+strconv.Itoa(len(groups)))
		default:
			others.absorb(g)
		}
	}
	if others.usage.Bytes() > 0 {
		others.text = moreText(&others)
		groups, classes = append(groups, &others), append(classes, "rest")
	}
	groups, classes = append(groups, above...), append(classes, classesAbove...)
	by := joinKeys(r.opt.By)
	var out []*chart
	for _, dir := range []struct {
		id, title string
		of        func(readWrite) uint64
		sum       func(*output.Usage) uint64
	}{
		{"written", "Written, by " + by, func(b readWrite) uint64 { return b.write }, func(u *output.Usage) uint64 { return u.Write.Bytes }},
		{"read", "Read, by " + by, func(b readWrite) uint64 { return b.read }, func(u *output.Usage) uint64 { return u.Read.Bytes }},
	} {
		var all []series
		for i, g := range groups {
			if bytes := dir.sum(&g.usage); bytes > 0 {
				all = append(all, r.rates(classes[i], g.text, g.bins, bytes, dir.of))
			}
		}
		out = append(out, r.stackChart(dir.id, dir.title, all))
	}
	var all []series
	for i, s := range slices.SortedFunc(maps.Keys(r.sourceUse), output.CompareSources) {
		u := r.sourceUse[s]
		if b := u.usage.Bytes(); b > 0 && i < chartSeries {
			all = append(all, r.rates("c"+strconv.Itoa(i), string(s), u.bins, b, func(b readWrite) uint64 { return b.read + b.write }))
		}
	}
	if len(all) > 1 {
		out = append(out, r.stackChart("sources", "Read and written, by source", all))
	}
	return append(out, r.latencyChart())
}

// rates turns bytes per bin into bytes per recorded second.
func (r *Report) rates(class, label string, bins []readWrite, sum uint64, of func(readWrite) uint64) series {
	n := safeName(label)
	if short := text.Fit(label, legendShown); short != n.Text {
		n.Full = cmp.Or(n.Full, n.Text)
		n.Text = short
	}
	s := series{class: class, name: n.Text, hint: n.Full, bytes: sum, values: make([]float64, len(r.bins))}
	for i, b := range bins {
		s.values[i] = float64(of(b)) / text.Seconds(r.bins[i].covered)
	}
	return s
}

// stackChart draws the chart and its legend.
func (r *Report) stackChart(id, title string, all []series) *chart {
	c := r.stack(id, title, all)
	var sum uint64
	for _, s := range all {
		sum += s.bytes
	}
	c.Columns = []string{"Sum", "Share", "Average", "Peak"}
	for _, s := range all {
		c.Rows = append(c.Rows, chartSeriesRow{Class: s.class, Name: s.name, Hint: s.hint, Cells: []string{
			spaced(text.Size(s.bytes)), text.Percent(float64(s.bytes), float64(sum)), rateText(float64(s.bytes) / text.Seconds(r.covered)), rateText(slices.Max(s.values)),
		}})
	}
	if len(all) > 0 {
		c.Alt = fmt.Sprintf("Stacked areas of bytes per second over time. %s is the largest with %s of %s. The table below has the same numbers.",
			all[0].name, text.Percent(float64(all[0].bytes), float64(sum)), spaced(text.Size(sum)))
	}
	if n := len(r.bins); r.per > 1 && n > 0 {
		c.Note = fmt.Sprintf("One step is %d intervals (about %s); shorter peaks are averaged out.", r.per, (r.covered * time.Duration(r.per) / time.Duration(max(1, r.intervals))).Round(time.Second))
	}
	return c
}

// latencyChart shows the latency of all requests at wire level.
func (r *Report) latencyChart() *chart {
	var all []series
	for _, k := range []struct {
		class, name string
		q           float64
		of          func(*output.Usage) *output.Latency
	}{
		{"l0", "reads, p50", 0.5, func(u *output.Usage) *output.Latency { return &u.Read.Latency }},
		{"l1", "reads, p99", 0.99, func(u *output.Usage) *output.Latency { return &u.Read.Latency }},
		{"l2", "writes, p50", 0.5, func(u *output.Usage) *output.Latency { return &u.Write.Latency }},
		{"l3", "writes, p99", 0.99, func(u *output.Usage) *output.Latency { return &u.Write.Latency }},
	} {
		s := series{class: k.class, name: k.name, values: make([]float64, len(r.bins))}
		for i := range r.bins {
			s.values[i] = float64(k.of(&r.bins[i].total).Quantile(k.q))
		}
		all = append(all, s)
	}
	c := r.lines("latency", "Latency of reads and writes", all)
	c.Alt = "Lines of the median and the 99th percentile over time, on a logarithmic scale. The table below has the lowest and highest values."
	c.Columns = []string{"Lowest", "Highest"}
	for _, s := range all {
		low, high := 0.0, 0.0
		for _, v := range s.values {
			if v > 0 && (low == 0 || v < low) {
				low = v
			}
			high = max(high, v)
		}
		if high > 0 {
			c.Rows = append(c.Rows, chartSeriesRow{Class: s.class, Name: s.name, Cells: []string{spaced(text.Nanos(uint64(low))), spaced(text.Nanos(uint64(high)))}})
		}
	}
	return c
}

// table makes the table of a view.
func (r *Report) table(i int, v *view, total *output.Usage) table {
	rows, rest, stacked := v.top(r.opt.Top)
	t := table{ID: "by" + strconv.Itoa(i), Title: "By " + joinKeys(v.by)}
	all := append(slices.Clone(rows), stacked...)
	if rest != nil {
		rest.text = moreText(rest)
		all = slices.Insert(all, len(rows), rest)
	}
	for _, g := range all {
		if len(g.usage.Read.Latency.Buckets)+len(g.usage.Write.Latency.Buckets) > 0 {
			t.Latency = true
		}
		t.Errors = t.Errors || errorsOf(&g.usage) > 0
	}
	for _, g := range all {
		u := &g.usage
		peak, at := r.peak(g.bins)
		row := tableRow{
			Name: safeName(g.text), Spark: r.spark(g.bins),
			Read: sizeCell(u.Read.Bytes), Write: sizeCell(u.Write.Bytes),
			Rate: rateCell(float64(u.Bytes()) / text.Seconds(r.covered)), Peak: rateCell(peak),
			Ops:   countCell(u.Ops()),
			Share: text.Percent(float64(u.Bytes()), float64(total.Bytes())),
		}
		if peak > 0 {
			row.PeakAt = r.when(at)
		}
		if e := errorsOf(u); e > 0 {
			row.Errors = strconv.FormatUint(e, 10)
		}
		if t.Latency {
			row.ReadQ, row.WriteQ = short(&u.Read.Latency), short(&u.Write.Latency)
		}
		switch {
		case g.stacked:
			row.Class, row.Share = "stacked", ""
			row.Name.Text += " (stacked)"
		case g.owner == output.OwnerUnattributed || g.owner == output.OwnerOther:
			row.Class = "none"
		case g == rest:
			row.Class = "rest"
		}
		t.Rows = append(t.Rows, row)
	}
	if len(stacked) > 0 {
		t.Note = "A stacked device has another local device below it. Its bytes are counted there, so that no sum includes it."
	}
	return t
}

// moreText names a sum of groups.
func moreText(g *group) string { return fmt.Sprintf("%s: %d more", output.TextRest, g.groups) }

func sizeCell(b uint64) string {
	if b == 0 {
		return "–"
	}
	return spaced(text.Size(b))
}

func rateCell(v float64) string {
	if v == 0 {
		return "–"
	}
	return rateText(v)
}

func countCell(n uint64) string {
	if n == 0 {
		return "–"
	}
	return spaced(text.Count(float64(n)))
}

func nanosCell(ns uint64) string {
	if ns == 0 {
		return "–"
	}
	return spaced(text.Nanos(ns))
}

// quantiles returns p50, p95, p99 and the maximum.
func quantiles(l *output.Latency) []string {
	return []string{nanosCell(l.Quantile(0.5)), nanosCell(l.Quantile(0.95)), nanosCell(l.Quantile(0.99)), nanosCell(l.Max)}
}

// short returns p50, p99 and the maximum.
func short(l *output.Latency) []string {
	return []string{nanosCell(l.Quantile(0.5)), nanosCell(l.Quantile(0.99)), nanosCell(l.Max)}
}

// latency is the table of quantiles by source and operation.
func (r *Report) latency(total *output.Usage) plainTable {
	t := plainTable{Columns: []string{"Source", "Operation", "Requests", "p50", "p95", "p99", "Longest"}, Numbers: 5}
	add := func(source string, u *output.Usage) {
		for _, op := range output.Ops {
			l := &u.Amount(op).Latency
			if n := l.Count(); n > 0 {
				t.Rows = append(t.Rows, append([]string{source, string(op), countCell(n)}, quantiles(l)...))
			}
		}
	}
	names := slices.SortedFunc(maps.Keys(r.sourceUse), output.CompareSources)
	for _, s := range names {
		add(safeText(string(s)), &r.sourceUse[s].usage)
	}
	if len(names) > 1 {
		add("all", total)
	}
	return t
}

// slowest lists the slowest single requests, if they were recorded (--events).
func (r *Report) slowest() plainTable {
	t := plainTable{Columns: []string{"Time", "Owner", "Source", "Operation", "Device or mount", "Offset", "Size", "Latency"}, Numbers: 3}
	if r.requests > 0 {
		t.Note = fmt.Sprintf("The slowest of %s recorded individually.", text.Plural(r.requests, "request", "requests"))
	}
	for _, e := range r.slow {
		s := &e.IO.Sample
		owner := output.OwnerText(s)
		where := output.DeviceText(&s.Device)
		if s.Mount.Source != "" {
			where = output.MountText(s)
		}
		var bytes uint64
		for _, op := range output.Ops {
			bytes += s.Amount(op).Bytes
		}
		t.Rows = append(t.Rows, []string{
			e.Time.In(r.opt.Location).Format("2006-01-02\u00a015:04:05.000"), safeText(owner), safeText(string(s.Source)), safeText(e.IO.Op), safeText(where),
			strconv.FormatUint(e.IO.Offset, 10), sizeCell(bytes), nanosCell(e.IO.Latency),
		})
	}
	return t
}

// basisTable shows how owners were found, the most reliable basis first.
func (r *Report) basisTable() plainTable {
	t := plainTable{Columns: []string{"Basis", "The owner is", "Bytes", "Share"}, Numbers: 2}
	b := &r.basis
	all := b.Dirtier + b.Page + b.Journal + b.Bio + b.Task + b.None
	for _, row := range []struct {
		name, text string
		bytes      uint64
	}{
		{"dirtier", "the cgroup that changed the page before it was written back; for NFS reads, the one that read it", b.Dirtier},
		{"page", "the memory cgroup that the page is charged to", b.Page},
		{"journal", "the cgroup whose changes the file system's journal or metadata was written for, by its share of the transaction", b.Journal},
		{"bio", "the cgroup that the kernel charged the block request to", b.Bio},
		{"task", "the cgroup of the process that made the request", b.Task},
		{"none", "not known: shown as " + output.TextUnattributed, b.None},
	} {
		if row.bytes > 0 {
			t.Rows = append(t.Rows, []string{row.name, row.text, sizeCell(row.bytes), text.Percent(float64(row.bytes), float64(all))})
		}
	}
	return t
}

func (r *Report) sourceTable() plainTable {
	t := plainTable{Columns: []string{"Since", "Source", "State", "Hooks", "Limitations"}}
	for _, s := range r.status {
		state := "attached"
		if !s.Attached {
			state = "absent"
			if s.Reason != "" {
				state += ": " + safeText(s.Reason)
			}
		}
		t.Rows = append(t.Rows, []string{r.when(s.at), safeText(string(s.Source)), state, safeText(s.Hook), safeText(strings.Join(s.Limitations, "; "))})
	}
	return t
}

func (r *Report) lostTable() plainTable {
	t := plainTable{Columns: []string{"What", "Effect on the numbers", "How many"}, Numbers: 1}
	l := &r.lost
	for _, row := range []struct {
		name, text string
		n          uint64
	}{
		{"Bytes", "The totals do not include these bytes.", l.Bytes},
		{"Skipped program runs", "The kernel skipped a BPF program: the totals may lack requests.", l.Misses},
		{"Requests counted as " + output.TextOther, "The kernel's table of owners was full. Totals are exact.", l.Groups},
		{"Requests with too many owners", "Some of their bytes may be under another of their owners. Totals are exact.", l.Walks},
		{"Notes about writers", "There was no room to note who wrote so many pages or files: their bytes are " + output.TextUnattributed + ". Totals are exact.", l.Notes},
		{"Event records", "Single requests are missing from the list of events. Totals are exact.", l.Records},
		{"Kernel events", "Container or vxlan events are missing. Totals are exact.", l.Notices},
		{"Latencies", "The requests are counted, but quantiles do not include them, because their start or end was not seen.", l.Latencies},
		{"Documents not delivered", "Another output did not deliver them. Totals on this page are exact.", l.Exports},
	} {
		if row.n > 0 {
			t.Rows = append(t.Rows, []string{row.name, row.text, strconv.FormatUint(row.n, 10)})
		}
	}
	return t
}

// vxlanTable lists what happened to overlay devices.
func (r *Report) vxlanTable() (plainTable, string) {
	t := plainTable{Columns: []string{"Time", "What", "Device", "VNI", "Network", "Stack and services", "By", "Detail"}}
	for i := range r.vxlan {
		e := &r.vxlan[i]
		v := e.VXLAN
		by := output.ProcessText(&v.Process)
		if v.Owner != nil {
			owner := output.OwnerText(v.Owner)
			by = owner + ", " + by
		}
		var detail []string
		if v.Reason != "" {
			detail = append(detail, v.Reason)
		}
		if v.Err != "" {
			detail = append(detail, v.Err)
		}
		if v.Culprit != "" {
			detail = append(detail, fmt.Sprintf("blocked by %s in network namespace %d", v.Culprit, v.CulpritNetNS))
		}
		if v.NewNetNS != 0 {
			detail = append(detail, fmt.Sprintf("from network namespace %d to %d", v.NetNS, v.NewNetNS))
		}
		if v.AgeNanos != 0 {
			detail = append(detail, "age "+time.Duration(min(v.AgeNanos, 1<<62)).Round(time.Second).String())
		}
		network := v.Network
		if network == "" {
			network = output.ShortID(v.NetworkID)
		}
		stack := strings.TrimSpace(v.Stack + " " + strings.Join(v.Services[:min(len(v.Services), 8)], " "))
		t.Rows = append(t.Rows, []string{
			r.when(e.Time), safeText(e.Action), safeText(v.Device), strconv.FormatUint(uint64(v.VNI), 10), safeText(network),
			safeText(stack), safeText(by), text.Fit(strings.Join(detail, "; "), 2*nameShown),
		})
	}
	if n := r.vxlanAll - len(r.vxlan); n > 0 {
		t.Note = fmt.Sprintf("Only the first %d are shown, %d more followed.", len(r.vxlan), n)
	}
	var sum []string
	for _, a := range slices.Sorted(maps.Keys(r.actions)) {
		sum = append(sum, fmt.Sprintf("%d %s", r.actions[a], safeText(a)))
	}
	return t, strings.Join(sum, ", ")
}
