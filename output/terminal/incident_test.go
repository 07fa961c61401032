package terminal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// incidentAt is second n of an incident. The project "reports" reads 64 MiB every third
// second, which makes it the culprit; "shop" is written back every fifth second;
// "media" and "shop" use one NFS mount; a short-lived "import" writes 200 MiB in the
// seconds 20 and 21; "chat" writes a little all the time.
func incidentAt(n int) *output.Interval {
	start := time.Date(2026, 3, 4, 5, 6, 0, 0, time.UTC).Add(time.Duration(n) * time.Second)
	ext4 := output.Mount{Source: "/dev/sda1", Point: "/", FSType: "ext4"}
	nfs := output.Mount{Source: "nas1:/export/media", Point: "/srv/media", FSType: "nfs4", NFSServer: "nas1", NFSExport: "/export/media", NFSVersion: "4.2"}
	nfsDevice := output.Device{ID: "0:52"}
	iv := &output.Interval{Start: start, End: start.Add(time.Second), Host: output.Host{Name: "web1", ID: "5d1c6a3f0b0e4b9c8a7f6e5d4c3b2a10"},
		Sources: []output.SourceStatus{{Source: output.SourceBlock, Attached: true}, {Source: output.SourceNFS, Attached: true}, {Source: output.SourceFUSE, Attached: true}},
		Self:    output.Self{CPUNanos: 4_000_000, RSSBytes: 41 * outputtest.MiB}}
	add := func(project, service, id string, pid uint32, source output.Source, d output.Device, m output.Mount, read, write uint64) {
		s := outputtest.WithIO(outputtest.ComposeContainer(project, service, id), source, d, m, read, write)
		s.Process = output.Process{PID: pid, Name: service}
		iv.Samples = append(iv.Samples, s)
	}
	add("chat", "server", "aaaa11110000", 101, output.SourceBlock, outputtest.DiskSDA, ext4, 0, 12<<10)
	if n%3 == 1 {
		add("reports", "nightly", "bbbb22220000", 102, output.SourceBlock, outputtest.DiskSDA, ext4, 64*outputtest.MiB, 0)
	}
	if n%5 == 2 {
		add("shop", "db", "cccc33330000", 103, output.SourceBlock, outputtest.DiskSDA, ext4, 0, 40*outputtest.MiB)
	}
	add("shop", "web", "dddd44440000", 104, output.SourceNFS, nfsDevice, nfs, 2*outputtest.MiB, 0)
	add("media", "transcoder-with-a-long-name", "eeee55550000", 105, output.SourceNFS, nfsDevice, nfs, 3*outputtest.MiB, 1*outputtest.MiB)
	if n == 20 || n == 21 {
		add("import", "once", "ffff66660000", 106, output.SourceBlock, outputtest.DiskSDA, ext4, 0, 100*outputtest.MiB)
	}
	return iv
}

func incident(n int) (ivs []*output.Interval) {
	for i := range n {
		ivs = append(ivs, incidentAt(i))
	}
	return ivs
}

// TestViews draws each view at four sizes.
func TestViews(t *testing.T) {
	views := []struct {
		name string
		keys []string
	}{
		{"rows", nil},
		{"totals", []string{"a"}},
		{"average", []string{"i", "home", "down", "down", "enter"}},
		{"mount", append(by("mount"), "enter")},
		{"details", []string{"a", "d"}},
		{"menu", []string{"b", "down", "space", "down", "space"}},
		{"help", []string{"?"}},
		{"nothing", []string{"/no such name", "enter"}},
		{"paused", []string{"space", "[", "[", "[", "w"}},
	}
	for _, size := range [][2]int{{60, 15}, {80, 24}, {120, 40}, {200, 50}} {
		for _, v := range views {
			name := fmt.Sprintf("view-%s-%dx%d.txt", v.name, size[0], size[1])
			t.Run(name, func(t *testing.T) {
				s := liveScreen(t, size[0], size[1], ScreenOptions{}, incident(60)...)
				press(s, v.keys...)
				checkLines(t, s)
				if n := len(s.lines()); n != size[1] {
					t.Errorf("%d lines on a screen of %d", n, size[1])
				}
				outputtest.Golden(t, name, []byte(shown(s)))
			})
		}
	}
}

// TestCulprit: the totals name the culprit first and are what was read and written,
// although the culprit is idle in the last interval.
func TestCulprit(t *testing.T) {
	ivs := incident(60)
	s := liveScreen(t, 100, 30, ScreenOptions{}, ivs...)
	if got := names(s)[0]; got == "reports" {
		t.Fatalf("in the last interval %q is first: this test needs one in which it is idle", got)
	}
	if !slices.Contains(names(s), "reports") {
		t.Errorf("the idle culprit is not among %q", names(s))
	}
	press(s, "a")
	if got, want := names(s), []string{"reports", "shop", "media", "import", "chat"}; !slices.Equal(got, want) {
		t.Errorf("totals are in the order %q, want %q", got, want)
	}
	var want uint64
	for _, iv := range ivs {
		for i := range iv.Samples {
			want += iv.Samples[i].Read.Bytes + iv.Samples[i].Write.Bytes
		}
	}
	if got := s.summary.Total.Total.Bytes(); got != want {
		t.Errorf("the total is %d bytes, want %d", got, want)
	}
	if got, want := s.summary.Rows[0].Total.Read.Bytes, uint64(20*64*outputtest.MiB); got != want {
		t.Errorf("the culprit read %d bytes, want %d", got, want)
	}
	// The rate of the culprit over a minute is a third of its bursts.
	press(s, "i", "home", "down", "down", "enter")
	if got := names(s)[0]; got != "reports" || s.covered != time.Minute {
		t.Errorf("the average of a minute names %q first, of %v", got, s.covered)
	}
	// Going back in time, totals are those of that time.
	press(s, "a", "space", "left", "left")
	want = 0
	for _, iv := range ivs[:58] {
		for i := range iv.Samples {
			want += iv.Samples[i].Read.Bytes + iv.Samples[i].Write.Bytes
		}
	}
	if got := s.summary.Total.Total.Bytes(); got != want {
		t.Errorf("two seconds before, the total is %d bytes, want %d", got, want)
	}
}

// TestSumOfLongRun: totals stay exact when the first intervals are no longer kept.
func TestSumOfLongRun(t *testing.T) {
	s := liveScreen(t, 100, 30, ScreenOptions{})
	var want uint64
	for n := range keepFrames + 300 {
		iv := incidentAt(n)
		for i := range iv.Samples {
			want += iv.Samples[i].Read.Bytes + iv.Samples[i].Write.Bytes
		}
		s.Update(intervalMsg{iv})
		if n == 500 {
			press(s, "a")
		}
	}
	if got := s.summary.Total.Total.Bytes(); got != want {
		t.Errorf("the total is %d bytes, want %d", got, want)
	}
	press(s, "space", "left", "right")
	if got := s.summary.Total.Total.Bytes(); got != want {
		t.Errorf("after going back and forth the total is %d bytes, want %d", got, want)
	}
	v := s.last()
	if got := v.summary.Total.Total.Bytes(); got != want || !strings.Contains(v.title, "peaks since 05:11:00") {
		t.Errorf("the closing summary %q has %d bytes, want %d", v.title, got, want)
	}
}

// TestIdleRows: rows stay in the same order while they do nothing, and the mark stays
// on its row.
func TestIdleRows(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, incident(31)...)
	press(s, "g")
	for s.marked().Text() != "reports" {
		press(s, "down")
	}
	for n := 31; n < 49; n++ {
		s.Update(intervalMsg{incidentAt(n)})
		if got := s.marked().Text(); got != "reports" {
			t.Fatalf("second %d: the mark went to %q", n, got)
		}
		idle := names(s)
		idle = slices.DeleteFunc(idle, func(name string) bool {
			i := slices.Index(names(s), name)
			return s.active[s.summary.Rows[i].Group()]
		})
		for i, name := range idle {
			if order := []string{"reports", "import"}; slices.Contains(order, name) && i > 0 && name == "reports" {
				t.Errorf("second %d: idle rows are in the order %q", n, idle)
			}
		}
	}
	// Enter acts on the marked row although it is idle in this interval.
	if s.active[s.selected] {
		t.Fatal("this test needs an interval in which the marked row is idle")
	}
	press(s, "enter")
	if got := s.pathText(); got != "all > project reports" || !slices.Equal(names(s), []string{"reports/nightly"}) {
		t.Errorf("the path is %q with %q", got, names(s))
	}
}

// TestDrillEveryKey: each key leads on to something, and back.
func TestDrillEveryKey(t *testing.T) {
	for _, key := range outputtest.AllKeys() {
		s := liveScreen(t, 120, 30, ScreenOptions{Group: output.GroupOptions{By: []output.Key{key}}}, incident(5)...)
		before := names(s)
		depth := 0
		for {
			press(s, "enter")
			if len(s.path) == depth {
				break
			}
			depth++
		}
		if depth == 0 {
			t.Errorf("%s: nothing below", key)
		}
		for range depth {
			press(s, "backspace")
		}
		if !slices.Equal(names(s), before) || len(s.path) != 0 {
			t.Errorf("%s: after going back %q, before %q", key, names(s), before)
		}
	}
	// Who uses this mount?
	s := liveScreen(t, 120, 30, ScreenOptions{Group: output.GroupOptions{By: []output.Key{output.KeyMount}}}, incident(5)...)
	for !strings.HasPrefix(s.marked().Text(), "nas1:") {
		press(s, "down")
	}
	press(s, "enter")
	if got, want := names(s), []string{"media-transcoder-with-a-long-name-1", "shop-web-1"}; !slices.Equal(got, want) {
		t.Errorf("the mount is used by %q, want %q", got, want)
	}
	press(s, "enter")
	if got, want := names(s), []string{"transcoder-with-a-long-name[105]"}; !slices.Equal(got, want) {
		t.Errorf("in its first container by %q, want %q", got, want)
	}
}

// TestMouse: a click marks a row, a second one opens it, one on a heading sorts.
func TestMouse(t *testing.T) {
	s := liveScreen(t, 100, 30, ScreenOptions{}, incident(31)...)
	shown(s) // places are known once it was drawn
	click := func(x, y int) { s.Update(tea.MouseClickMsg{X: x, Y: y, Button: tea.MouseLeft}); shown(s) }
	click(3, s.rowY+1)
	if s.cursor != 1 || len(s.path) != 0 {
		t.Errorf("a click on the second row marks row %d", s.cursor)
	}
	want := s.marked().Text()
	click(3, s.rowY+1)
	if got := s.pathText(); got != "all > project "+want {
		t.Errorf("a second click leads to %q", got)
	}
	press(s, "backspace")
	click(strings.Index(strings.Split(shown(s), "\n")[s.headY+1], "WRITE"), s.headY+1)
	if got := s.group.Sort.ColumnName(); got != "write" {
		t.Errorf("a click on WRITE sorts by %q", got)
	}
	s.Update(tea.MouseWheelMsg{Button: tea.MouseWheelDown})
	if s.cursor != 4 {
		t.Errorf("the wheel moves the mark to %d", s.cursor)
	}
	click(3, s.rowY+20)
	if s.cursor != 4 || len(s.path) != 0 {
		t.Error("a click below the rows did something")
	}
}

// TestJump: a time leads to its interval.
func TestJump(t *testing.T) {
	s := liveScreen(t, 100, 30, ScreenOptions{}, incident(60)...)
	for _, tt := range []struct {
		at, end, note string
	}{
		{"05:06:10", "05:06:11", ""},
		{"5:06", "05:06:01", ""},
		{"2026-03-04 05:06:30", "05:06:31", ""},
		{"04:00", "05:06:01", "nothing is kept"},
		{"07:00", "05:07:00", "has not come"},
		{"99", "05:07:00", "not a time"},
	} {
		press(s, "@", tt.at, "enter")
		if got := s.iv.End.Format("15:04:05"); got != tt.end || !strings.Contains(s.note, tt.note) || (tt.note == "") != (s.note == "") {
			t.Errorf("%q leads to %s with %q, want %s with %q", tt.at, got, s.note, tt.end, tt.note)
		}
	}
}

// TestRecordAndReport: the screen starts and stops what the caller provides, and says
// what came of it.
func TestRecordAndReport(t *testing.T) {
	dir := t.TempDir()
	var asked []bool
	s := liveScreen(t, 100, 30, ScreenOptions{
		Record: func(start bool) (string, error) { asked = append(asked, start); return "x.rec", nil },
		Report: func(tl Timeline, opt output.GroupOptions) (string, error) {
			first, end := tl.Bounds()
			file := filepath.Join(dir, "x.html")
			return file, os.WriteFile(file, fmt.Appendf(nil, "%d %d %v", first, end, opt.By), 0o600)
		},
	}, incident(5)...)
	press(s, "R")
	if got := shown(s); !strings.Contains(got, "REC") || !strings.Contains(got, "recording to x.rec") {
		t.Errorf("while recording:\n%s", got)
	}
	press(s, "R")
	if got := shown(s); strings.Contains(got, "  REC") || !slices.Equal(asked, []bool{true, false}) {
		t.Errorf("after recording, asked for %v:\n%s", asked, got)
	}
	press(s, "W")
	if got, err := os.ReadFile(filepath.Join(dir, "x.html")); err != nil || string(got) != "0 5 [project]" {
		t.Errorf("the report is %q, %v", got, err)
	}
}

// TestSumBounds: a sum of ever new processes is bounded and exact.
func TestSumBounds(t *testing.T) {
	var sum output.Sum
	rng := rand.New(rand.NewPCG(1, 2))
	var want uint64
	for n := range 60 {
		iv := outputtest.Random(rng, 1000)
		for i := range iv.Samples {
			s := &iv.Samples[i]
			s.Process.PID = uint32(n*1000 + i + 1)
			want += s.Read.Bytes + s.Write.Bytes
		}
		sum.Add(iv)
	}
	var got uint64
	for _, s := range sum.Interval().Samples {
		got += s.Read.Bytes + s.Write.Bytes
	}
	if n := len(sum.Interval().Samples); got != want || n > 1<<15+1000 {
		t.Errorf("%d samples with %d bytes, want %d", n, got, want)
	}
}

// files gives the I/O of an incident files, as a tracer does that was asked for them.
func files(iv *output.Interval) *output.Interval {
	by := map[string]output.File{
		"db":      {Path: "/var/lib/docker/volumes/shop_db/_data/pg_wal/000000010000000A000000FE", Inside: "/var/lib/postgresql/data/pg_wal/000000010000000A000000FE", Inode: 4711, Links: 1},
		"web":     {Path: "/srv/media/covers/large/0815.jpg", Inside: "/covers/large/0815.jpg", Inode: 1 << 40, Links: 2},
		"server":  {Path: "/var/lib/docker/containers/aaaa11110000/aaaa11110000-json.log", Inode: 99, Links: 1, LogOf: "chat/server"},
		"nightly": {Path: "/tmp/sort\x1b[31mXX", Inode: 98, Removed: true},
	}
	for i := range iv.Samples {
		s := &iv.Samples[i]
		s.File = by[s.Service]
		s.File.Kind = output.FileRegular
	}
	return iv
}

// TestFilesView drills from a project down to the file. The screen asks for files when it
// is to show them, and no longer when it shows something else.
func TestFilesView(t *testing.T) {
	for _, size := range [][2]int{{60, 15}, {80, 24}, {120, 40}, {200, 50}} {
		name := fmt.Sprintf("view-files-%dx%d.txt", size[0], size[1])
		t.Run(name, func(t *testing.T) {
			var asked []bool
			s := liveScreen(t, size[0], size[1], ScreenOptions{Files: func(on bool) error { asked = append(asked, on); return nil }}, incident(58)...)
			send := func(keys ...string) {
				t.Helper()
				for _, k := range keys {
					if cmd := press(s, k); cmd != nil {
						if batch, ok := cmd().(tea.BatchMsg); ok {
							for _, c := range batch {
								if c != nil {
									s.Update(c())
								}
							}
						} else if msg, ok := cmd().(filesMsg); ok {
							s.Update(msg)
						}
					}
				}
			}
			// project -> service -> container -> process -> mount -> file
			send("/shop", "enter", "enter", "/db", "enter", "enter", "enter", "enter", "enter")
			if !slices.Equal(s.group.By, []output.Key{output.KeyFile}) || len(asked) == 0 || !asked[0] {
				t.Fatalf("by %v, asked %v", s.group.By, asked)
			}
			if got := names(s); len(got) != 1 || got[0] != "(not counted by file)" {
				t.Errorf("before there are files: %q", got)
			}
			s.Update(intervalMsg{files(incidentAt(62))})
			checkLines(t, s)
			outputtest.Golden(t, name, []byte(shown(s)))
			send("esc", "esc")
			if last := asked[len(asked)-1]; last || slices.Contains(s.group.By, output.KeyFile) {
				t.Errorf("by %v, asked %v", s.group.By, asked)
			}
		})
	}
	s := liveScreen(t, 120, 40, ScreenOptions{}, files(incidentAt(1)), files(incidentAt(2)))
	press(s, by(output.KeyFile)...)
	checkLines(t, s)
	outputtest.Golden(t, "view-byfile-120x40.txt", []byte(shown(s)))
	press(s, "d")
	checkLines(t, s)
	outputtest.Golden(t, "view-filedetails-120x40.txt", []byte(shown(s)))
}
