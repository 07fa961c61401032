package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

func noEnv(string) string { return "" }

func tableOf(w *bytes.Buffer, width int) *Table {
	return NewTable(w, TableOptions{Width: width, Location: time.UTC, Env: noEnv})
}

func TestTableGolden(t *testing.T) {
	lossy := outputtest.Shop()
	lossy.Lost = output.Lost{Bytes: 3 * outputtest.MiB, Records: 12, Groups: 3, Misses: 1}
	lossy.Events = nil
	blockOnly := outputtest.Shop()
	blockOnly.Sources = blockOnly.Sources[:1]
	blockOnly.Events = nil
	var samples []output.Sample
	for _, s := range blockOnly.Samples {
		if s.Source == output.SourceBlock {
			samples = append(samples, s)
		}
	}
	blockOnly.Samples = samples
	for _, tt := range []struct {
		name  string
		iv    *output.Interval
		opt   output.GroupOptions
		width int
	}{
		{"project", outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "project")}, 80},
		{"container-wide", outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "container,mount")}, 140},
		{"container-narrow", outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "container,mount")}, 50},
		{"device", outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "device")}, 80},
		{"both-levels", outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "project"), Level: output.LevelBoth}, 100},
		{"app-level", outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "project"), Level: output.LevelApp}, 80},
		{"top-filter", lossy, output.GroupOptions{By: outputtest.Keys(t, "container"), Top: 1, Filters: outputtest.Filters(t, "source=block"), Sort: output.Sort{Column: "write"}}, 80},
		{"block", blockOnly, output.GroupOptions{By: outputtest.Keys(t, "project"), Sort: output.Sort{Column: "read", Reverse: true}}, 80},
		{"hostile", outputtest.Hostile(), output.GroupOptions{By: outputtest.Keys(t, "container"), Sort: output.Sort{Column: "name"}}, 80},
		{"empty", &output.Interval{Start: outputtest.Shop().Start, End: outputtest.Shop().End}, output.GroupOptions{}, 80},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			table := NewTable(&b, TableOptions{Width: tt.width, Location: time.UTC, Env: noEnv, Group: tt.opt})
			if err := table.Write(output.Group(tt.iv, tt.opt), tt.iv); err != nil {
				t.Fatal(err)
			}
			outputtest.Golden(t, "table-"+tt.name+".txt", b.Bytes())
		})
	}
}

// TestTableLines: lines fit and are safe for all names, keys and widths.
func TestTableLines(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 3))
		iv := outputtest.Random(rng, rng.IntN(40))
		if seed%3 == 0 {
			iv = outputtest.Hostile()
		}
		opt := output.GroupOptions{Top: rng.IntN(9), Level: []output.Level{output.LevelWire, output.LevelApp, output.LevelBoth}[rng.IntN(3)]}
		for _, i := range rng.Perm(len(outputtest.AllKeys()))[:1+rng.IntN(4)] {
			opt.By = append(opt.By, outputtest.AllKeys()[i])
		}
		width := 20 + rng.IntN(150)
		var b bytes.Buffer
		table := tableOf(&b, width)
		for range 2 {
			if err := table.Write(output.Group(iv, opt), iv); err != nil {
				t.Fatal(err)
			}
		}
		outputtest.CheckSafe(t, strings.ReplaceAll(b.String(), "\n", ""))
		for line := range strings.SplitSeq(b.String(), "\n") {
			if w := ansi.StringWidth(line); w > width {
				t.Fatalf("seed %d: line of %d cells, %d are there: %q", seed, w, width, line)
			}
			if strings.TrimRight(line, " ") != line {
				t.Fatalf("seed %d: spaces at the end of %q", seed, line)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d, %+v", seed, opt)
		}
	}
}

// TestTableEnv: environment variables about terminals have an effect.
func TestTableEnv(t *testing.T) {
	size := func() (int, int, bool) { return 100, 30, true }
	iv := outputtest.Shop()
	for _, tt := range []struct {
		env      map[string]string
		opt      TableOptions
		terminal bool
		inPlace  bool
		color    bool
		width    int
	}{
		{nil, TableOptions{InPlace: true}, true, true, true, 100},
		{map[string]string{"NO_COLOR": "1"}, TableOptions{InPlace: true}, true, true, false, 100},
		{map[string]string{"TERM": "dumb"}, TableOptions{InPlace: true}, true, false, false, 100},
		{nil, TableOptions{}, true, false, true, 100},
		{nil, TableOptions{Width: 60, InPlace: true}, true, true, true, 60},
		{nil, TableOptions{InPlace: true}, false, false, false, noLimit},
		{map[string]string{"COLUMNS": "120"}, TableOptions{}, false, false, false, 120},
		{map[string]string{"COLUMNS": "-3"}, TableOptions{}, false, false, false, noLimit},
	} {
		var b bytes.Buffer
		tt.opt.Env = func(k string) string { return tt.env[k] }
		table := NewTable(&b, tt.opt)
		if tt.terminal {
			table.size = size
		}
		table.detect()
		for range 2 {
			if err := table.Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
				t.Fatal(err)
			}
		}
		out := b.String()
		if got := strings.Contains(out, "\x1b[J"); got != tt.inPlace {
			t.Errorf("%+v: in place is %v: %q", tt, got, out)
		}
		if got := strings.Contains(out, "\x1b[1m"); got != tt.color {
			t.Errorf("%+v: colour is %v: %q", tt, got, out)
		}
		if width, _ := table.dimensions(); width != tt.width {
			t.Errorf("%+v: width is %d", tt, width)
		}
	}
}

// TestTableHeight: on a terminal a table never scrolls. Rows without room are
// summed up, so that rows still add up to the total.
func TestTableHeight(t *testing.T) {
	iv := outputtest.Hostile()
	for height := 11; height < 60; height++ {
		table := tableOf(&bytes.Buffer{}, 100)
		table.inPlace = true
		summary := output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "container")})
		lines := table.frame(&view{summary: summary, iv: iv, measure: measure{d: iv.End.Sub(iv.Start)}}, 100, height)
		if len(lines) >= height {
			t.Errorf("%d lines on a terminal of %d", len(lines), height)
		}
		var rest, shown int
		for _, l := range lines {
			if _, n, ok := strings.Cut(l.plain(), "(rest) of "); ok {
				rest, _ = strconv.Atoi(strings.Fields(n)[0])
			}
			if strings.HasSuffix(l.plain(), "900us") || strings.HasSuffix(l.plain(), "4.00ms") || strings.HasSuffix(l.plain(), "3.00ms") {
				shown++
			}
		}
		if want := len(summary.Rows); rest == 0 && shown < want || rest > 0 && rest+shown-2 != want { // less rest and total
			t.Errorf("height %d: %d rows shown and %d summed up of %d", height, shown, rest, want)
		}
	}
}

// TestTableRedraw: each table moves up by as many rows as the last one takes now.
func TestTableRedraw(t *testing.T) {
	var b bytes.Buffer
	table := tableOf(&b, 0)
	table.opt.InPlace = true
	width := 90
	table.size = func() (int, int, bool) { return width, 40, true }
	table.detect()
	iv := outputtest.Shop()
	frame := func() string {
		b.Reset()
		if err := table.Write(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "project")}), iv); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	first := frame()
	n := strings.Count(first, "\n")
	if strings.Contains(first, "\x1b[A") || !strings.HasSuffix(first, "\x1b[J") {
		t.Errorf("first frame: %q", first)
	}
	if second := frame(); !strings.HasPrefix(second, fmt.Sprintf("\r\x1b[%dA", n)) {
		t.Errorf("second frame of %d lines begins %.20q", n, second)
	}
	width = 45
	rows := 0
	for _, w := range table.drawn {
		rows += (w + width - 1) / width
	}
	if third := frame(); rows <= n || !strings.HasPrefix(third, fmt.Sprintf("\r\x1b[%dA", rows)) {
		t.Errorf("after the terminal was made narrower: %.20q, want %d up", third, rows)
	}
}

// TestTableSteady: columns stay where they are while names and sources come
// and go.
func TestTableSteady(t *testing.T) {
	var b bytes.Buffer
	table := tableOf(&b, 100)
	head := func(iv *output.Interval) string {
		b.Reset()
		if err := table.Write(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "project")}), iv); err != nil {
			t.Fatal(err)
		}
		return strings.Split(b.String(), "\n")[2]
	}
	first := head(outputtest.Shop())
	quiet := outputtest.Shop()
	quiet.Samples, quiet.Sources = quiet.Samples[:1], nil
	if second := head(quiet); second != first {
		t.Errorf("heading changed\nfrom %q\nto   %q", first, second)
	}
}

// TestTableEvents: where tables are replaced, the last events stay, elsewhere each is written
// once.
func TestTableEvents(t *testing.T) {
	var b bytes.Buffer
	table := tableOf(&b, 100)
	iv := outputtest.Shop()
	for range 7 {
		if err := table.Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.String(), "vxlan create failed"); n != 7 {
		t.Errorf("%d events in 7 tables", n)
	}
	table.size = func() (int, int, bool) { return 100, 50, true }
	table.opt.InPlace = true
	table.detect()
	for range 7 {
		b.Reset()
		if err := table.Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
			t.Fatal(err)
		}
	}
	iv.Events = nil
	b.Reset()
	if err := table.Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "vxlan create failed"); n != paneEvents {
		t.Errorf("%d events stay, want %d", n, paneEvents)
	}
}

func BenchmarkTable(b *testing.B) {
	iv := outputtest.Random(rand.New(rand.NewPCG(1, 1)), 1000)
	var buf bytes.Buffer
	table := tableOf(&buf, 120)
	summary := output.Group(iv, output.GroupOptions{By: outputtest.Keys(b, "container,device,process"), Top: 40})
	for b.Loop() {
		buf.Reset()
		if err := table.Write(summary, iv); err != nil {
			b.Fatal(err)
		}
	}
}

// TestTableSameNames: rows with equal names look different.
func TestTableSameNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range keyCells(output.Group(outputtest.SameNames(), output.GroupOptions{Sort: output.Sort{Column: "name"}}).Rows) {
		if seen[c[0]] {
			t.Errorf("two rows show as %q", c[0])
		}
		seen[c[0]] = true
	}
}

// TestTableLost: however much was lost, the footer names all of it.
func TestTableLost(t *testing.T) {
	iv := outputtest.Shop()
	iv.Unresolved = 1
	iv.Lost = output.Lost{Bytes: 1 << 60, Records: 1 << 40, Notices: 1 << 40, Latencies: 1, Groups: 1 << 40, Walks: 1 << 40, Notes: 1 << 40, Misses: 1 << 40, Exports: 1 << 40}
	var b bytes.Buffer
	if err := tableOf(&b, 60).Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
		t.Fatal(err)
	}
	shown := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range append(iv.Lost.Words(), "1 latency,", "1 cgroup without a name") {
		if !strings.Contains(shown, want) {
			t.Errorf("the footer does not say %q:\n%s", want, b.String())
		}
	}
}

// TestTableClosedPipe: a reader that went away and a full disk are errors that
// the caller can tell from others.
func TestTableClosedPipe(t *testing.T) {
	iv := outputtest.Shop()
	summary := output.Group(iv, output.GroupOptions{})
	for w, want := range outputtest.BrokenWriters(t) {
		if err := NewTable(w, TableOptions{}).Write(summary, iv); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// TestTableWhole: to a file nothing is cut and no column is left out.
func TestTableWhole(t *testing.T) {
	iv := outputtest.Shop()
	long := strings.Repeat("a-long-name-", 30)
	iv.Samples[0].Container.Name = long
	var b bytes.Buffer
	table := NewTable(&b, TableOptions{Location: time.UTC, Env: noEnv})
	if err := table.Write(output.Group(iv, output.GroupOptions{Level: output.LevelBoth, By: outputtest.Keys(t, "container,mount,device,process")}), iv); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{long, "BLOCK", "NFS", "FUSE", "APP", "TOTALv", "SHARE", "OPS", "P99", "volume shopdata"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("a file does not get %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "…") {
		t.Errorf("something was cut:\n%s", b.String())
	}
}

// TestTableSummary: the end of a run is a summary of all its intervals, and a run of
// one table has none.
func TestTableSummary(t *testing.T) {
	opt := output.GroupOptions{By: outputtest.Keys(t, "project"), Top: 2}
	for _, accumulate := range []bool{false, true} {
		var b bytes.Buffer
		table := NewTable(&b, TableOptions{Location: time.UTC, Env: noEnv, Group: opt, Accumulate: accumulate})
		for n := range 20 {
			iv := incidentAt(n)
			if err := table.Write(output.Group(iv, opt), iv); err != nil {
				t.Fatal(err)
			}
		}
		before := b.Len()
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		name := "table-summary.txt"
		if accumulate {
			name = "table-accumulated.txt"
			outputtest.Golden(t, name, []byte(b.String()[strings.LastIndex(b.String()[:before-2], "\n\n")+2:]))
			continue
		}
		outputtest.Golden(t, name, b.Bytes()[before:])
	}
	var b bytes.Buffer
	table := tableOf(&b, 80)
	iv := outputtest.Shop()
	if err := table.Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
		t.Fatal(err)
	}
	before := b.Len()
	if err := table.Close(); err != nil || b.Len() != before {
		t.Errorf("after one table: %v, %q", err, b.String()[before:])
	}
}
