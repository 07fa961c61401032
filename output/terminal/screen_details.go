package terminal

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// detailRows is how many mounts, devices and processes the details list.
const detailRows = 10

// detailLines are the details of the marked row: everything that is known about it,
// where its I/O went, and what it did over time.
func (s *screen) detailLines() []line {
	row := s.marked()
	if row == nil {
		return []line{styled("no row is marked", styleAlert)}
	}
	var names []string
	for _, k := range row.Keys {
		names = append(names, text.Safe(string(k.Key))+" "+text.Safe(k.Text))
	}
	lines := []line{styled(strings.Join(names, ", "), styleHead)}
	if !s.active[row.Group()] {
		lines = append(lines, styled("idle in the last interval", styleDim))
	}
	field := func(name, value string) {
		if value == "" {
			return
		}
		const indent = 12
		for i, l := range strings.Split(ansi.Wrap(text.Safe(value), max(s.width-indent, 8), "/"), "\n") {
			if i > 0 {
				name = ""
			}
			lines = append(lines, styled(text.PadRight(name, indent)+strings.TrimRight(l, " "), styleNone))
		}
	}
	id := row.Identity()
	field("owner", string(id.Owner))
	if id.Project != "" {
		field("project", id.Project+rule(id.ProjectRule))
	}
	field("service", id.Service)
	field("unit", id.Unit)
	field("container", id.Container.Name)
	field("id", id.Container.ID)
	field("runtime", id.Container.Runtime)
	if id.Container.Image != "" {
		field("image", strings.TrimSuffix(id.Container.Image+":"+id.Container.ImageTag, ":"))
	}
	if id.Container.Outer != "" {
		field("inside", id.Container.OuterName+" "+id.Container.Outer)
	}
	if id.Pod.Name != "" {
		field("pod", id.Pod.Namespace+"/"+id.Pod.Name+" "+id.Pod.UID)
	}
	if id.Cgroup.ID != 0 {
		field("cgroup", fmt.Sprintf("%s (%d)", id.Cgroup.Path, id.Cgroup.ID))
	}
	if id.Process.PID != 0 {
		field("process", output.ProcessText(&id.Process))
	}
	if f := &id.File; f.Kind == output.FileRegular {
		field("file", output.FileText(f, false))
		if f.Inside != "" {
			field("as seen", f.Inside+" (by the container)")
		}
		field("inode", strconv.FormatUint(f.Inode, 10))
	}
	for _, l := range s.opt.Labels {
		if v, ok := id.Container.Labels[l]; ok {
			field("label", l+"="+v)
		}
	}
	field("basis", basisText(&row.At(s.summary.Level).Basis))
	if u := row.At(s.summary.Level); metaBytes(u) > 0 {
		field("metadata", text.Percent(float64(metaBytes(u)), float64(u.Bytes()))+" of the bytes")
	}
	lines = append(lines, s.detailHistory(row.Group())...)
	for _, k := range []output.Key{output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyDevice, output.KeyFile} {
		if !slices.Contains(s.group.By, k) && (k != output.KeyProcess || s.processes()) && (k != output.KeyFile || s.files) {
			lines = append(lines, s.detailTable(row, k)...)
		}
	}
	return lines
}

func rule(r string) string {
	if r == "" {
		return ""
	}
	return " (by " + r + ")"
}

// basisText says how the owner was found.
func basisText(b *output.BasisBytes) string {
	all := float64(b.Dirtier + b.Page + b.Journal + b.Bio + b.Task + b.None)
	var parts []string
	for _, p := range []struct {
		name  string
		bytes uint64
	}{{"dirtier", b.Dirtier}, {"page", b.Page}, {"journal", b.Journal}, {"bio", b.Bio}, {"task", b.Task}, {"not known", b.None}} {
		if p.bytes > 0 {
			parts = append(parts, p.name+" "+text.Percent(float64(p.bytes), all))
		}
	}
	return strings.Join(parts, ", ")
}

// detailHistory draws reads, writes and p99 over time, each on a scale of its own.
func (s *screen) detailHistory(id string) []line {
	width := min(s.width-12-16, 2*maxSpark)
	if width < minSpark {
		return nil
	}
	lines := []line{styled("LAST "+s.historyText(), styleHead)}
	add := func(name string, style cellStyle, values []float64, high func(float64) string) {
		most := slices.Max(values)
		if most <= 0 {
			lines = append(lines, styled(text.PadRight(name, 12)+"none", styleDim))
			return
		}
		lines = append(lines, line{{text.PadRight(name, 12), styleNone}, {spark(values, most), style}, {"  high " + high(most), styleNone}})
	}
	rate := func(v float64) string { return text.Bytes(v) + "/s" }
	add("read", styleRead, s.history.rates(s.pos, width, func(p *point) uint64 { return p.rows[id].read }), rate)
	add("write", styleWrite, s.history.rates(s.pos, width, func(p *point) uint64 { return p.rows[id].write }), rate)
	add("p99", styleNone, s.history.highest(s.pos, width, func(p *point) uint64 { return p.rows[id].p99 }),
		func(v float64) string { return text.Nanos(uint64(v)) })
	return lines
}

// detailTable lists what the row consists of by another key: of what is shown, or of
// the last minute where the row is idle now.
func (s *screen) detailTable(row *output.Row, by output.Key) []line {
	iv, d, title := s.view, s.covered, ""
	if row.IsIdle() {
		sum := s.sum(span60s)
		iv, d, title = sum.Interval(), sum.Covered(), " in the last "+shortDuration(sum.Covered())
	}
	opt := s.options()
	opt.By, opt.Filters, opt.Search = []output.Key{by}, slices.Clone(opt.Filters), ""
	opt.Pins = append(slices.Clone(opt.Pins), row.Keys...)
	summary := output.Group(iv, opt)
	rows := append(summary.Rows, summary.Stacked...)
	if len(rows) == 0 {
		return []line{styled(strings.ToUpper(string(by))+title+": none", styleDim)}
	}
	m := s.measure()
	m.d = d
	var l layout
	l.update(summary)
	rest := len(rows) - detailRows
	rows = rows[:min(len(rows), detailRows)]
	cells := keyCells(rows)
	m.all = summary.Total.At(m.level).Bytes()
	if summary.Filtered != nil {
		m.all -= min(m.all, summary.Filtered.At(m.level).Bytes())
	}
	summary.Filtered = nil
	g := l.fit(&m, summary, cells, nil, s.width)
	_, heads := g.heads(summary.By, &measure{sort: output.Sort{Column: "-"}})
	lines := []line{styled(cutText(heads+title, s.width), styleHead)}
	for i := range rows {
		lines = append(lines, g.row(&rows[i], cells[i], styleNone))
	}
	if rest > 0 {
		lines = append(lines, styled(fmt.Sprintf("%d more: enter lists them", rest), styleDim))
	}
	return lines
}
