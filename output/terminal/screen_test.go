package terminal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

// liveScreen is a screen of the given size that has received intervals.
func liveScreen(t testing.TB, width, height int, opt ScreenOptions, ivs ...*output.Interval) *screen {
	t.Helper()
	opt.Location = time.UTC
	s := newScreen(t.Context(), nil, opt)
	s.Update(tea.WindowSizeMsg{Width: width, Height: height})
	for _, iv := range ivs {
		s.Update(intervalMsg{iv})
	}
	return s
}

// press sends keys, named as Bubble Tea names them or typed if they are longer.
func press(s *screen, names ...string) (cmd tea.Cmd) {
	special := map[string]tea.Key{"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "backspace": {Code: tea.KeyBackspace}, "up": {Code: tea.KeyUp},
		"down": {Code: tea.KeyDown}, "left": {Code: tea.KeyLeft}, "right": {Code: tea.KeyRight}, "home": {Code: tea.KeyHome}, "end": {Code: tea.KeyEnd},
		"pgdown": {Code: tea.KeyPgDown}, "pgup": {Code: tea.KeyPgUp}, "space": {Code: tea.KeySpace, Text: " "}, "ctrl+c": {Code: 'c', Mod: tea.ModCtrl},
		"ctrl+u": {Code: 'u', Mod: tea.ModCtrl}, "ctrl+w": {Code: 'w', Mod: tea.ModCtrl}}
	for _, n := range names {
		if k, ok := special[n]; ok {
			_, cmd = s.Update(tea.KeyPressMsg(k))
			continue
		}
		for _, r := range n {
			_, cmd = s.Update(tea.KeyPressMsg{Code: r, Text: string(r)})
		}
	}
	return cmd
}

// shown returns the screen without styles.
func shown(s *screen) string {
	var b strings.Builder
	for _, l := range s.lines() {
		b.WriteString(l.trim().plain() + "\n")
	}
	return b.String()
}

// names returns the texts of the rows that a screen has.
func names(s *screen) (out []string) {
	for i := range s.summary.Rows {
		out = append(out, s.summary.Rows[i].Text())
	}
	return out
}

// later returns the shop n intervals of two seconds on, with other amounts.
func later(n int) *output.Interval {
	iv := outputtest.Shop()
	d := time.Duration(n) * 2 * time.Second
	iv.Start, iv.End = iv.Start.Add(d), iv.End.Add(d)
	for i := range iv.Samples {
		iv.Samples[i].Write.Bytes *= uint64(1 + n%4)
	}
	for i := range iv.Events {
		iv.Events[i].Time = iv.Events[i].Time.Add(d)
	}
	return iv
}

func TestScreenGolden(t *testing.T) {
	var ivs []*output.Interval
	for n := range 60 {
		iv := later(n)
		if n > 0 {
			iv.Events = nil
		}
		if n == 30 {
			iv.Lost = output.Lost{Records: 7, Latencies: 2}
		}
		if n >= 40 {
			iv.Sources[2] = output.SourceStatus{Source: output.SourceFUSE, Reason: "module is not loaded"}
		}
		ivs = append(ivs, iv)
	}
	for _, tt := range []struct {
		name          string
		width, height int
		keys          []string
	}{
		{"80x24", 80, 24, nil},
		{"wide", 130, 24, []string{"down", "enter"}},
		{"paused", 100, 20, []string{"space", "[", "n"}},
		{"narrow", 40, 12, by("container")},
		{"filter", 100, 18, []string{"/op=write sh"}},
		{"device", 100, 22, append(by("device"), "w")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := liveScreen(t, tt.width, tt.height, ScreenOptions{}, ivs...)
			press(s, tt.keys...)
			if lines := s.lines(); len(lines) > tt.height {
				t.Errorf("%d lines on a screen of %d", len(lines), tt.height)
			}
			outputtest.Golden(t, "screen-"+tt.name+".txt", []byte(shown(s)))
		})
	}
}

// by returns the keys that group by a key through the menu.
func by(key output.Key) []string {
	keys := []string{"b", "home"}
	for range slices.Index(menuKeys, key) {
		keys = append(keys, "down")
	}
	return append(keys, "enter")
}

// TestScreenDrill goes all the way down and back.
func TestScreenDrill(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, outputtest.Shop())
	at := func(what string, by output.Key, want ...string) {
		t.Helper()
		if !slices.Equal(s.group.By, []output.Key{by}) || !slices.Equal(names(s), want) {
			t.Fatalf("%s: by %v with rows %q, want by %s with %q", what, s.group.By, names(s), by, want)
		}
		outputtest.CheckTotals(t, s.summary, s.iv, output.GroupOptions{})
	}
	at("start", output.KeyProject, "shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)")
	press(s, "enter")
	at("project shop", output.KeyService, "shop/db", "shop/web")
	if got := s.pathText(); got != "all > project shop" {
		t.Errorf("path is %q", got)
	}
	press(s, "enter")
	at("service db", output.KeyContainer, "shop-db-1")
	press(s, "enter")
	at("container", output.KeyProcess, "postgres[4321]")
	press(s, "enter")
	at("process", output.KeyMount, "/dev/sda1 on /")
	press(s, "enter")
	at("mount", output.KeyDevice, "sda")
	press(s, "enter")
	at("nothing below", output.KeyDevice, "sda")
	if !strings.Contains(shown(s), "nothing below this row") {
		t.Error("no word on why nothing happened")
	}
	press(s, "backspace")
	if got := s.pathText(); got != "all > project shop > service shop/db > container shop-db-1 > process postgres[4321]" {
		t.Errorf("path is %q", got)
	}
	press(s, "backspace", "backspace", "backspace")
	at("back at services", output.KeyService, "shop/db", "shop/web")
	press(s, "down", "enter")
	at("service web", output.KeyContainer, "shop-web-1")
	press(s, "esc")
	at("back by esc", output.KeyService, "shop/db", "shop/web")
	if s.cursor != 1 {
		t.Errorf("the mark is on row %d, not where it was", s.cursor)
	}
	press(s, "backspace", "backspace", "backspace")
	at("top", output.KeyProject, "shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)")
	press(s, "G", "enter")
	at("container without project", output.KeyService, "scratch (no service)")
}

// TestScreenDrillExact: drilling down separates things with equal names, which a
// filter by name cannot.
func TestScreenDrillExact(t *testing.T) {
	a := outputtest.WithIO(outputtest.ComposeContainer("p", "s", "aaaa11110000"), output.SourceBlock, outputtest.DiskSDA, output.Mount{Source: "/dev/a"}, 2, 0)
	b := outputtest.WithIO(outputtest.ComposeContainer("p", "s", "bbbb22220000"), output.SourceBlock, outputtest.DiskSDA, output.Mount{Source: "/dev/b"}, 1, 0)
	s := liveScreen(t, 100, 24, ScreenOptions{Group: output.GroupOptions{By: []output.Key{output.KeyContainer}}}, &output.Interval{Samples: []output.Sample{a, b}})
	press(s, "down", "enter")
	if got := names(s); !slices.Equal(got, []string{"/dev/b"}) { // there are no processes to go through
		t.Errorf("rows of the second p-s-1: %q", got)
	}
}

func TestScreenSort(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, outputtest.Shop())
	first := func(key, want string) {
		t.Helper()
		press(s, key)
		if got := names(s)[0]; got != want {
			t.Errorf("after %q the first row is %q, want %q", key, got, want)
		}
	}
	first("n", "(kernel)")
	first("n", "shop")
	first("r", "shop")
	first("r", "(kernel)")
	first("w", "shop")
	first("o", "shop")
	first("p", "blog") // as slow as shop at the 99th percentile, first by name
	first("t", "shop")
	// The menu offers the sources that there are: the shop has no SMB share, no 9p, no CephFS and no NFS server.
	columns := slices.DeleteFunc(output.SortColumns(), func(c string) bool {
		return c == string(output.SourceNFSD) || c == string(output.SourceSMB) || c == string(output.Source9P) || c == string(output.SourceCeph)
	})
	// Whatever is sorted by is marked, at every width.
	for _, width := range []int{60, 80, 120, 200} {
		s.Update(tea.WindowSizeMsg{Width: width, Height: 30})
		for i, column := range columns {
			press(s, "s", "home")
			for range i {
				press(s, "down")
			}
			press(s, "enter")
			if s.group.Sort.ColumnName() != column {
				t.Fatalf("the menu sorts by %q, want %q", s.group.Sort.ColumnName(), column)
			}
			lines := strings.Split(shown(s), "\n")
			if heads := lines[s.headY] + lines[s.headY+1]; !strings.ContainsAny(heads, "v^") {
				t.Errorf("%d cells wide, sorted by %s: no mark in %q", width, column, heads)
			}
		}
	}
}

// TestScreenFilter: rows follow what is typed, and still add up.
func TestScreenFilter(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, outputtest.Shop())
	for _, tt := range []struct {
		keys []string
		want []string
	}{
		{[]string{"/", "s"}, []string{"shop", "postfix.service", "scratch (no project)"}},
		{[]string{"H"}, []string{"shop"}},
		{[]string{"backspace"}, []string{"shop", "postfix.service", "scratch (no project)"}},
		{[]string{"ctrl+u", "source=nfs"}, []string{"shop"}},
		{[]string{"ctrl+u", "op=write o"}, []string{"shop", "blog", "postfix.service", "scratch (no project)"}},
		{[]string{"ctrl+w"}, []string{"shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)"}},
		{[]string{"ctrl+u", "container=shop-*-1"}, []string{"shop"}},
		{[]string{"enter", "q"[:0], "esc"}, []string{"shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)"}},
		{[]string{"/q?"}, nil},
		{[]string{"esc"}, []string{"shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)"}},
	} {
		press(s, tt.keys...)
		if got := names(s); !slices.Equal(got, tt.want) {
			t.Errorf("after %q: rows %q, want %q", tt.keys, got, tt.want)
		}
		outputtest.CheckTotals(t, s.summary, s.iv, output.GroupOptions{})
		checkLines(t, s)
	}
	press(s, "/")
	s.Update(tea.PasteMsg{Content: "sh\x1b[2J\n" + strings.Repeat("x", 5000)})
	if len(s.search) > maxSearch || strings.ContainsAny(s.search, "\x1b\n") {
		t.Errorf("pasted %q", s.search)
	}
	checkLines(t, s)
}

// checkLines checks that nothing on the screen is unsafe or too wide.
func checkLines(t testing.TB, s *screen) {
	t.Helper()
	v := s.View()
	if n := strings.Count(v.Content, "\n") + 1; n > s.height {
		t.Errorf("%d lines on a screen of %d", n, s.height)
	}
	for line := range strings.SplitSeq(v.Content, "\n") {
		outputtest.CheckSafe(t, ansi.Strip(line))
		if w := ansi.StringWidth(line); w > s.width {
			t.Errorf("a line of %d cells on a screen of %d: %q", w, s.width, line)
		}
	}
}

// TestScreenTime: pausing stops the view and nothing else.
func TestScreenTime(t *testing.T) {
	s := liveScreen(t, 100, 24, ScreenOptions{}, later(0), later(1), later(2))
	at := func(what string, n int, follow bool) {
		t.Helper()
		if !s.iv.End.Equal(later(n).End) || s.follow != follow {
			t.Fatalf("%s: shows %v, following is %v; want %v, %v", what, s.iv.End, s.follow, later(n).End, follow)
		}
	}
	at("live", 2, true)
	press(s, "space")
	s.Update(intervalMsg{later(3)})
	at("paused", 2, false)
	if !strings.Contains(shown(s), "PAUSED") || !strings.Contains(shown(s), "3/4") {
		t.Errorf("paused screen:\n%s", shown(s))
	}
	press(s, "left")
	at("one back", 1, false)
	press(s, "home")
	at("first", 0, false)
	press(s, "left")
	at("not before the first", 0, false)
	press(s, "right", "right")
	at("two on", 2, false)
	press(s, "]")
	at("not behind the last", 3, false)
	press(s, "[")
	at("ten back", 0, false)
	press(s, "end")
	at("live again", 3, true)
	press(s, "left", "space")
	at("live by space", 3, true)
	s.Update(intervalMsg{later(4)})
	at("next", 4, true)
}

// TestScreenKeeps: memory is bounded, and a view that grows too old moves on.
func TestScreenKeeps(t *testing.T) {
	s := liveScreen(t, 100, 24, ScreenOptions{}, later(0))
	press(s, "space")
	for n := 1; n <= keepFrames+10; n++ {
		iv := later(n)
		iv.Samples = iv.Samples[:1]
		s.Update(intervalMsg{iv})
	}
	first, end := s.src.Bounds()
	if end-first != keepFrames || s.pos != first {
		t.Errorf("keeps %d to %d and shows %d", first, end, s.pos)
	}
	big := outputtest.Random(rand.New(rand.NewPCG(1, 1)), 12_000)
	for range 5 {
		s.Update(intervalMsg{big})
	}
	if s.live.samples > keepSamples {
		t.Errorf("keeps %d samples", s.live.samples)
	}
	if n := len(s.history.points); n > 3*historyLen {
		t.Errorf("keeps %d points of sparklines", n)
	}
	for range 3 * keepEvents {
		s.Update(noticeMsg{"hostile \x1b[2J line"})
	}
	if len(s.events) > keepEvents {
		t.Errorf("keeps %d events", len(s.events))
	}
	checkLines(t, s)
}

// TestScreenSpark: bars show the rates over time on the scale that is asked for, and
// nothing for unknown intervals.
func TestScreenSpark(t *testing.T) {
	h := history{points: make(map[int]*point)}
	for i := range 8 {
		h.points[112+i] = &point{rows: map[string]moment{"a": {read: uint64(i) * 10}}, seconds: 1}
	}
	a := func(p *point) uint64 { return p.rows["a"].bytes() }
	for _, tt := range []struct {
		i, width int
		of       func(*point) uint64
		most     float64
		want     string
	}{
		{119, historyLen, a, 70, strings.Repeat(" ", 113) + "▂▃▄▅▆▇█"},
		{119, historyLen, a, 70000, strings.Repeat(" ", 113) + "▁▁▁▁▁▁▁"},
		{119, 30, a, 55, strings.Repeat(" ", 28) + "▃█"},
		{119, 10, func(*point) uint64 { return 0 }, 70, strings.Repeat(" ", 10)},
		{3, 10, a, 70, strings.Repeat(" ", 10)},
	} {
		if got := spark(h.rates(tt.i, tt.width, tt.of), tt.most); got != tt.want {
			t.Errorf("%d cells up to %d: got %q, want %q", tt.width, tt.i, got, tt.want)
		}
	}
}

// TestScreenEvents: events of overlay devices, losses and detached sources are
// shown in the order of time, up to the interval on the screen.
func TestScreenEvents(t *testing.T) {
	ivs := []*output.Interval{later(0), later(1), later(2)}
	ivs[1].Events, ivs[2].Events = nil, nil
	ivs[1].Lost = output.Lost{Bytes: 5 * outputtest.MiB}
	ivs[2].Sources[1] = output.SourceStatus{Source: output.SourceNFS, Reason: "module is \x1bnot loaded"}
	s := liveScreen(t, 200, 40, ScreenOptions{}, ivs...)
	got := shown(s)
	vxlan, lost, gone := strings.Index(got, "vxlan create failed"), strings.Index(got, "lost 5.00MiB of the totals"), strings.Index(got, `nfs detached: module is \x1bnot loaded`)
	if vxlan < 0 || lost < vxlan || gone < lost {
		t.Errorf("events at %d, %d, %d:\n%s", vxlan, lost, gone, got)
	}
	press(s, "left")
	if got := shown(s); strings.Contains(got, "nfs detached") || !strings.Contains(got, "lost 5.00MiB") {
		t.Errorf("one interval back:\n%s", got)
	}
	press(s, "e")
	if strings.Contains(shown(s), "EVENTS") {
		t.Error("events are still there")
	}
}

// TestScreenAnything presses random keys with hostile data: lines fit the screen
// for every size.
func TestScreenAnything(t *testing.T) {
	all := []string{"enter", "esc", "backspace", "up", "down", "left", "right", "home", "end", "pgdown", "pgup", "space", "ctrl+u", "ctrl+w",
		"/", "s", "t", "r", "w", "o", "p", "n", "b", "v", "e", "g", "G", "?", "[", "]", "+", "-", "x", "op=read", "漢",
		"a", "i", "d", "@", "05:06:09", "R", "W", "click", "wheel"}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		s := liveScreen(t, 20+rng.IntN(150), 4+rng.IntN(50), ScreenOptions{})
		checkLines(t, s)
		var pressed []string
		for range 120 {
			if rng.IntN(6) == 0 {
				iv := outputtest.Random(rng, rng.IntN(30))
				if rng.IntN(3) == 0 {
					iv = outputtest.Hostile()
				}
				s.Update(intervalMsg{iv})
			}
			if rng.IntN(10) == 0 {
				s.Update(tea.WindowSizeMsg{Width: rng.IntN(200), Height: rng.IntN(60)})
			}
			key := all[rng.IntN(len(all))]
			pressed = append(pressed, key)
			switch key {
			case "click":
				s.Update(tea.MouseClickMsg{X: rng.IntN(100), Y: rng.IntN(40), Button: tea.MouseLeft})
			case "wheel":
				s.Update(tea.MouseWheelMsg{Button: []tea.MouseButton{tea.MouseWheelUp, tea.MouseWheelDown}[rng.IntN(2)]})
			default:
				press(s, key)
			}
			checkLines(t, s)
			if s.summary != nil {
				outputtest.CheckTotals(t, s.summary, s.view, output.GroupOptions{Level: s.summary.Level})
			}
			if t.Failed() {
				t.Fatalf("seed %d, %dx%d, after %q:\n%s", seed, s.width, s.height, pressed, shown(s))
			}
		}
	}
}

// recordingOf returns a recording of intervals.
func recordingOf(t testing.TB, ivs ...*output.Interval) *recording.Reader {
	t.Helper()
	path := filepath.Join(t.TempDir(), "incident")
	rec, err := recording.Create(path, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, iv := range ivs {
		if err := rec.Write(iv); err != nil {
			t.Fatal(err)
		}
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := recording.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestScreenReplay: a replay shows the same rows as the live screen, at every interval.
func TestScreenReplay(t *testing.T) {
	var ivs []*output.Interval
	for n := range 40 {
		iv := later(n)
		if n != 7 {
			iv.Events = nil
		}
		ivs = append(ivs, iv)
	}
	s := newScreen(t.Context(), nil, ScreenOptions{Replay: recordingOf(t, ivs...).Timeline(), Location: time.UTC})
	s.Update(tea.WindowSizeMsg{Width: 100, Height: 24})
	s.Init()
	if !s.iv.End.Equal(ivs[0].End) || !s.follow || !strings.Contains(shown(s), "REPLAY x1") || !strings.Contains(shown(s), "1/40") {
		t.Fatalf("at the start:\n%s", shown(s))
	}
	// A tick shows the next interval, one from before a key press does not.
	stale := s.ticking
	press(s, "space", "space")
	s.Update(tickMsg{stale})
	if s.pos != 0 {
		t.Errorf("a stale tick moved to %d", s.pos)
	}
	if _, cmd := s.Update(tickMsg{s.ticking}); s.pos != 1 || cmd == nil {
		t.Errorf("a tick moved to %d, next tick %v", s.pos, cmd)
	}
	for i, iv := range ivs {
		s.follow = false
		s.show(i)
		if got, want := outputtest.RowTexts(s.summary.Rows), outputtest.RowTexts(output.Group(iv, output.GroupOptions{By: []output.Key{output.KeyProject}}).Rows); !slices.Equal(got, want) {
			t.Fatalf("interval %d: got %q, want %q", i, got, want)
		}
		checkLines(t, s)
	}
	outputtest.Golden(t, "screen-replay.txt", []byte(shown(s)))
	press(s, "home", "]")
	if s.pos != 10 || !strings.Contains(shown(s), "vxlan create failed") {
		t.Errorf("at %d:\n%s", s.pos, shown(s))
	}
	press(s, "[", "right", "right")
	if s.pos != 2 || strings.Contains(shown(s), "vxlan create failed") {
		t.Errorf("at %d, before the event:\n%s", s.pos, shown(s))
	}
	press(s, "end", "space") // play from the start again
	if s.pos != 0 || !s.follow {
		t.Errorf("playing again starts at %d", s.pos)
	}
	press(s, "enter", "+", "+")
	if got := shown(s); !strings.Contains(got, "REPLAY x5") || !strings.Contains(got, "shop/db") {
		t.Errorf("drilled down in a replay:\n%s", got)
	}
}

// TestScreenEnd: q, ctrl+c and the end of intervals end the program.
func TestScreenEnd(t *testing.T) {
	s := liveScreen(t, 80, 24, ScreenOptions{}, outputtest.Shop())
	for _, cmd := range []tea.Cmd{press(s, "q"), press(s, "ctrl+c"), press(s, "/", "ctrl+c"), second(s.Update(endMsg{}))} {
		if cmd == nil || cmd() != tea.Quit() {
			t.Error("a key that ends the program did not")
		}
	}
	ch := make(chan *output.Interval)
	ctx, cancel := context.WithCancel(t.Context())
	s = newScreen(ctx, ch, ScreenOptions{})
	close(ch)
	if msg := s.awaitInterval()(); msg != (endMsg{}) {
		t.Errorf("a closed channel gives %#v", msg)
	}
	s.intervals = nil
	cancel()
	if msg := s.awaitInterval()(); msg != nil {
		t.Errorf("an ended context gives %#v", msg)
	}
}

func second(_ tea.Model, cmd tea.Cmd) tea.Cmd { return cmd }

func BenchmarkScreen(b *testing.B) {
	for _, n := range []int{100, 5000} {
		b.Run(fmt.Sprintf("samples=%d", n), func(b *testing.B) {
			iv := outputtest.Random(rand.New(rand.NewPCG(1, 1)), n)
			s := liveScreen(b, 120, 40, ScreenOptions{})
			for b.Loop() {
				s.Update(intervalMsg{iv})
				s.View()
			}
		})
	}
}
