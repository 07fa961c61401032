package output

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
)

// liveScreen is a screen of the given size that has received intervals.
func liveScreen(t testing.TB, width, height int, opt ScreenOptions, ivs ...*Interval) *screen {
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

// text returns the screen without styles.
func text(s *screen) string {
	var b strings.Builder
	for _, l := range s.lines() {
		b.WriteString(l.text + "\n")
	}
	return b.String()
}

// names returns the texts of the rows that a screen has.
func names(s *screen) (out []string) {
	for i := range s.rep.Rows {
		out = append(out, s.rep.Rows[i].Text())
	}
	return out
}

// later returns the shop n intervals of two seconds on, with other amounts.
func later(n int) *Interval {
	iv := shop()
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
	var ivs []*Interval
	for n := range 60 {
		iv := later(n)
		if n > 0 {
			iv.Events = nil
		}
		if n == 30 {
			iv.Lost = Lost{Records: 7, Latencies: 2}
		}
		if n >= 40 {
			iv.Sources[2] = SourceStatus{Source: SourceFUSE, Reason: "module is not loaded"}
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
		{"narrow", 40, 12, []string{"b", "b"}},
		{"help", 80, 30, []string{"?"}},
		{"filter", 100, 18, []string{"/op=write sh"}},
		{"device", 100, 22, []string{"b", "b", "b", "b", "b", "w"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := liveScreen(t, tt.width, tt.height, ScreenOptions{}, ivs...)
			press(s, tt.keys...)
			lines := s.lines()
			if len(lines) > tt.height && tt.name != "help" {
				t.Errorf("%d lines on a screen of %d", len(lines), tt.height)
			}
			golden(t, "screen-"+tt.name+".txt", []byte(text(s)))
		})
	}
}

// TestScreenDrill goes all the way down and back.
func TestScreenDrill(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, shop())
	at := func(what string, by Key, want ...string) {
		t.Helper()
		if !slices.Equal(s.group.By, []Key{by}) || !slices.Equal(names(s), want) {
			t.Fatalf("%s: by %v with rows %q, want by %s with %q", what, s.group.By, names(s), by, want)
		}
		checkSum(t, s.rep, s.iv, GroupOptions{})
	}
	at("start", KeyProject, "shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)")
	press(s, "enter")
	at("project shop", KeyService, "shop/db", "shop/web")
	if got := s.pathText(); got != "all > project shop" {
		t.Errorf("path is %q", got)
	}
	press(s, "enter")
	at("service db", KeyContainer, "shop-db-1")
	press(s, "enter")
	at("container", KeyProcess, "postgres[4321]")
	press(s, "enter")
	at("process", KeyMount, "/dev/sda1 on /")
	press(s, "enter")
	at("nothing below", KeyMount, "/dev/sda1 on /")
	if !strings.Contains(text(s), "nothing below a mount") {
		t.Error("no word on why nothing happened")
	}
	if got := s.pathText(); got != "all > project shop > service shop/db > container shop-db-1 > process postgres[4321]" {
		t.Errorf("path is %q", got)
	}
	press(s, "backspace", "backspace", "backspace")
	at("back at services", KeyService, "shop/db", "shop/web")
	press(s, "down", "enter")
	at("service web", KeyContainer, "shop-web-1")
	press(s, "esc")
	at("back by esc", KeyService, "shop/db", "shop/web")
	if s.cursor != 1 {
		t.Errorf("the mark is on row %d, not where it was", s.cursor)
	}
	press(s, "backspace", "backspace", "backspace")
	at("top", KeyProject, "shop", "blog", "(kernel)", "postfix.service", "(unattributed)", "scratch (no project)")
	press(s, "G", "enter")
	at("container without project", KeyService, "scratch (no service)")
}

// TestScreenDrillExact: drilling down keeps things of one name apart, which no
// filter by name can.
func TestScreenDrillExact(t *testing.T) {
	a := composeContainer("p", "s", "aaaa11110000").with(SourceBlock, diskSDA, Mount{Source: "/dev/a"}, 2, 0)
	b := composeContainer("p", "s", "bbbb22220000").with(SourceBlock, diskSDA, Mount{Source: "/dev/b"}, 1, 0)
	s := liveScreen(t, 100, 24, ScreenOptions{Group: GroupOptions{By: []Key{KeyContainer}}}, &Interval{Samples: []Sample{a, b}})
	press(s, "down", "enter")
	if got := names(s); !slices.Equal(got, []string{"/dev/b"}) { // there are no processes to go through
		t.Errorf("rows of the second p-s-1: %q", got)
	}
}

func TestScreenSort(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, shop())
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
	seen := make(map[string]bool)
	for range len(SortColumns()) {
		seen[s.group.Sort.column()] = true
		press(s, "s")
	}
	if len(seen) != len(SortColumns()) || s.group.Sort.column() != "total" {
		t.Errorf("s goes through %v and ends at %q", seen, s.group.Sort.column())
	}
	press(s, "S")
	if got := s.group.Sort.column(); got != "fuse" {
		t.Errorf("S goes to %q", got)
	}
}

// TestScreenFilter: rows follow what is typed, and still add up.
func TestScreenFilter(t *testing.T) {
	s := liveScreen(t, 120, 30, ScreenOptions{}, shop())
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
		checkSum(t, s.rep, s.iv, GroupOptions{})
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
		checkSafe(t, ansi.Strip(line))
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
	if !strings.Contains(text(s), "PAUSED") || !strings.Contains(text(s), "3/4") {
		t.Errorf("paused screen:\n%s", text(s))
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
	first, end := s.src.bounds()
	if end-first != keepFrames || s.pos != first {
		t.Errorf("keeps %d to %d and shows %d", first, end, s.pos)
	}
	big := random(rand.New(rand.NewPCG(1, 1)), 12_000)
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

// TestScreenSpark: bars show what was when, empty where nothing is known.
func TestScreenSpark(t *testing.T) {
	h := history{points: make(map[int]*point)}
	for i := range 8 {
		h.points[112+i] = &point{rows: map[string]uint64{"a": uint64(i) * 10}, seconds: 1}
	}
	a := func(p *point) uint64 { return p.rows["a"] }
	if got := h.spark(119, historyLen, a); got != strings.Repeat(" ", 113)+"▂▃▄▅▆▇█" {
		t.Errorf("got %q", got)
	}
	if got := h.spark(119, 30, a); got != strings.Repeat(" ", 28)+"▃█" {
		t.Errorf("by four: got %q", got)
	}
	if got := h.spark(119, 10, func(*point) uint64 { return 0 }); got != strings.Repeat(" ", 10) {
		t.Errorf("of nothing: got %q", got)
	}
	if got := h.spark(3, 10, a); got != strings.Repeat(" ", 10) {
		t.Errorf("before the beginning: got %q", got)
	}
}

// TestScreenEvents: overlay devices, losses and sources that go are told, in
// the order of time, and only what was known at the interval shown.
func TestScreenEvents(t *testing.T) {
	ivs := []*Interval{later(0), later(1), later(2)}
	ivs[1].Events, ivs[2].Events = nil, nil
	ivs[1].Lost = Lost{Bytes: 5 * mib}
	ivs[2].Sources[1] = SourceStatus{Source: SourceNFS, Reason: "module is \x1bnot loaded"}
	s := liveScreen(t, 200, 40, ScreenOptions{}, ivs...)
	got := text(s)
	vxlan, lost, gone := strings.Index(got, "vxlan create failed"), strings.Index(got, "lost 5.00MiB of totals"), strings.Index(got, `nfs is gone: module is \x1bnot loaded`)
	if vxlan < 0 || lost < vxlan || gone < lost {
		t.Errorf("events at %d, %d, %d:\n%s", vxlan, lost, gone, got)
	}
	press(s, "left")
	if got := text(s); strings.Contains(got, "nfs is gone") || !strings.Contains(got, "lost 5.00MiB") {
		t.Errorf("one interval back:\n%s", got)
	}
	press(s, "e")
	if strings.Contains(text(s), "EVENTS") {
		t.Error("events are still there")
	}
}

// TestScreenAnything presses keys at random on hostile data: the screen keeps
// within its bounds whatever its size.
func TestScreenAnything(t *testing.T) {
	all := []string{"enter", "esc", "backspace", "up", "down", "left", "right", "home", "end", "pgdown", "pgup", "space", "ctrl+u", "ctrl+w",
		"/", "s", "S", "t", "r", "w", "o", "p", "n", "b", "B", "v", "e", "g", "G", "?", "[", "]", "+", "-", "x", "op=read", "漢"}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		s := liveScreen(t, 20+rng.IntN(150), 4+rng.IntN(50), ScreenOptions{})
		checkLines(t, s)
		var pressed []string
		for range 120 {
			if rng.IntN(6) == 0 {
				iv := random(rng, rng.IntN(30))
				if rng.IntN(3) == 0 {
					iv = hostile()
				}
				s.Update(intervalMsg{iv})
			}
			if rng.IntN(10) == 0 {
				s.Update(tea.WindowSizeMsg{Width: rng.IntN(200), Height: rng.IntN(60)})
			}
			key := all[rng.IntN(len(all))]
			pressed = append(pressed, key)
			press(s, key)
			checkLines(t, s)
			if s.rep != nil {
				checkSum(t, s.rep, s.iv, GroupOptions{Level: s.rep.Level})
			}
			if t.Failed() {
				t.Fatalf("seed %d, %dx%d, after %q:\n%s", seed, s.width, s.height, pressed, text(s))
			}
		}
	}
}

// recordingOf returns a recording of intervals.
func recordingOf(t testing.TB, ivs ...*Interval) *Recording {
	t.Helper()
	path := filepath.Join(t.TempDir(), "incident")
	rec, err := NewRecorder(path, RecorderOptions{})
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
	r, err := OpenRecording(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestScreenReplay: a recording shows what the live screen did, at every place.
func TestScreenReplay(t *testing.T) {
	var ivs []*Interval
	for n := range 40 {
		iv := later(n)
		if n != 7 {
			iv.Events = nil
		}
		ivs = append(ivs, iv)
	}
	s := newScreen(t.Context(), nil, ScreenOptions{Recording: recordingOf(t, ivs...), Location: time.UTC})
	s.Update(tea.WindowSizeMsg{Width: 100, Height: 24})
	s.Init()
	if !s.iv.End.Equal(ivs[0].End) || !s.follow || !strings.Contains(text(s), "REPLAY x1") || !strings.Contains(text(s), "1/40") {
		t.Fatalf("at the start:\n%s", text(s))
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
		if got, want := texts(s.rep.Rows), texts(Group(iv, GroupOptions{By: []Key{KeyProject}}).Rows); !slices.Equal(got, want) {
			t.Fatalf("interval %d: got %q, want %q", i, got, want)
		}
		checkLines(t, s)
	}
	golden(t, "screen-replay.txt", []byte(text(s)))
	press(s, "home", "]")
	if s.pos != 10 || !strings.Contains(text(s), "vxlan create failed") {
		t.Errorf("at %d:\n%s", s.pos, text(s))
	}
	press(s, "[", "right", "right")
	if s.pos != 2 || strings.Contains(text(s), "vxlan create failed") {
		t.Errorf("at %d, before the event:\n%s", s.pos, text(s))
	}
	press(s, "end", "space") // play from the start again
	if s.pos != 0 || !s.follow {
		t.Errorf("playing again starts at %d", s.pos)
	}
	press(s, "enter", "+", "+")
	if got := text(s); !strings.Contains(got, "REPLAY x5") || !strings.Contains(got, "shop/db") {
		t.Errorf("drilled down in a replay:\n%s", got)
	}
}

// TestScreenEnd: q, ctrl+c and the end of intervals end the program.
func TestScreenEnd(t *testing.T) {
	s := liveScreen(t, 80, 24, ScreenOptions{}, shop())
	for _, cmd := range []tea.Cmd{press(s, "q"), press(s, "ctrl+c"), press(s, "/", "ctrl+c"), second(s.Update(endMsg{}))} {
		if cmd == nil || cmd() != tea.Quit() {
			t.Error("a key that ends the program did not")
		}
	}
	ch := make(chan *Interval)
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
			iv := random(rand.New(rand.NewPCG(1, 1)), n)
			s := liveScreen(b, 120, 40, ScreenOptions{})
			for b.Loop() {
				s.Update(intervalMsg{iv})
				s.View()
			}
		})
	}
}
