package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// ScreenOptions are the options of RunScreen; all may be zero.
type ScreenOptions struct {
	// Group is how rows are grouped at first: by project if By is empty. Top is
	// ignored, because the user can scroll to all rows.
	Group output.GroupOptions
	// Replay is what the screen plays; nil means to show received intervals.
	Replay Timeline
	// Notices are lines to show among the events, or nil. Nothing else may write
	// to the terminal while the screen is on it.
	Notices <-chan string
	// Location is the time zone of the times shown; nil is the local one.
	Location *time.Location
	// Input and Output are the terminal; nil means standard input and output.
	Input  io.Reader
	Output io.Writer
}

// RunScreen shows intervals on an interactive screen. It returns nil when the user
// quits, intervals is closed, ctx ends, or the process gets SIGINT, SIGTERM,
// SIGHUP or SIGQUIT. A panic of the screen is returned as an error. In all cases
// the terminal is restored, and the last state stays on it as a plain table.
//
// RunScreen receives nothing from intervals after it has returned.
func RunScreen(ctx context.Context, intervals <-chan *output.Interval, opt ScreenOptions) error {
	if opt.Location == nil {
		opt.Location = time.Local
	}
	if opt.Output == nil {
		opt.Output = os.Stdout
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	s := newScreen(ctx, intervals, opt)
	options := []tea.ProgramOption{tea.WithOutput(opt.Output), tea.WithoutSignalHandler()}
	if opt.Input != nil {
		options = append(options, tea.WithInput(opt.Input))
	}
	p := tea.NewProgram(s, options...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		p.Quit()
	}()
	_, err := p.Run()
	stop() // ends ctx
	<-done
	if err != nil {
		return fmt.Errorf("screen: %w", err)
	}
	if s.summary == nil {
		return nil
	}
	last := NewTable(opt.Output, TableOptions{Append: true, Location: opt.Location, Sort: s.group.Sort})
	summary := *s.summary
	summary.Rows, summary.Rest = output.Fold(summary.Rows, summary.Rest, 20)
	return errors.Join(last.Write(&summary, s.iv), last.Close())
}

// Interactive reports whether a screen can be shown: in and out are a terminal
// that can move its cursor. env looks up TERM; nil is os.Getenv.
func Interactive(in, out *os.File, env func(string) string) bool {
	if env == nil {
		env = os.Getenv
	}
	switch env("TERM") {
	case "", "dumb":
		return false
	}
	return term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd()))
}

// drillOrder is the order of keys when the user drills down.
var drillOrder = []output.Key{output.KeyProject, output.KeyService, output.KeyContainer, output.KeyProcess, output.KeyMount}

// cycleOrder is the order of keys that b and B step through.
var cycleOrder = []output.Key{output.KeyProject, output.KeyService, output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyDevice, output.KeyImage, output.KeyNFSServer, output.KeyPod, output.KeyNamespace, output.KeyCgroup, output.KeySource, output.KeyOp}

// step is a view that the user drilled down from.
type step struct {
	by       []output.Key
	pins     []output.KeyValue
	search   string
	selected string
}

type event struct {
	frame int // shown from this interval on
	line  string
	alert bool
}

// keepEvents is how many events can be scrolled back to.
const keepEvents = 500

// screen is the state of the interactive screen.
type screen struct {
	ctx       context.Context
	opt       ScreenOptions
	intervals <-chan *output.Interval
	live      *liveFrames // nil during a replay
	src       Timeline

	width, height int

	pos     int  // interval shown
	follow  bool // live: show every new interval; replay: play
	speed   int  // of a replay: index of speeds
	ticking int  // number of the tick to wait for; other ticks are stale

	group   output.GroupOptions
	path    []step
	search  string
	editing bool

	iv        *output.Interval
	summary   *output.Summary
	cells     [][]string
	layout    layout
	history   history
	events    []event
	noted     map[int]bool // intervals of a recording whose events are in events
	sources   map[output.Source]bool
	lastNoted int    // the interval that sources describes
	selected  string // id of the marked row
	cursor    int    // its index
	offset    int    // first row on the screen
	page      int    // how many rows were drawn last

	help     bool
	noEvents bool
	note     string // message that stays until the next key press
}

func newScreen(ctx context.Context, intervals <-chan *output.Interval, opt ScreenOptions) *screen {
	s := &screen{ctx: ctx, opt: opt, intervals: intervals, pos: -1, follow: true, speed: 2, group: opt.Group,
		noted: make(map[int]bool), sources: make(map[output.Source]bool), width: defaultWidth, height: 24}
	s.history.clear()
	s.group.Top = 0
	if len(s.group.By) == 0 {
		s.group.By = []output.Key{output.KeyProject}
	}
	if opt.Replay != nil {
		s.src = opt.Replay
	} else {
		s.live = &liveFrames{}
		s.src = s.live
	}
	return s
}

type (
	intervalMsg struct{ iv *output.Interval }
	endMsg      struct{} // no more intervals
	noticeMsg   struct{ line string }
	tickMsg     struct{ n int }
)

// Init implements tea.Model.
func (s *screen) Init() tea.Cmd {
	cmds := []tea.Cmd{s.awaitNotice()}
	if s.live != nil {
		cmds = append(cmds, s.awaitInterval())
	} else {
		s.show(0)
		cmds = append(cmds, s.tick())
	}
	return tea.Batch(cmds...)
}

func (s *screen) awaitInterval() tea.Cmd {
	return func() tea.Msg {
		select {
		case iv, ok := <-s.intervals:
			if !ok {
				return endMsg{}
			}
			return intervalMsg{iv}
		case <-s.ctx.Done():
			return nil
		}
	}
}

func (s *screen) awaitNotice() tea.Cmd {
	if s.opt.Notices == nil {
		return nil
	}
	return func() tea.Msg {
		select {
		case line, ok := <-s.opt.Notices:
			if !ok {
				return nil
			}
			return noticeMsg{line}
		case <-s.ctx.Done():
			return nil
		}
	}
}

// speeds of a replay, as multiples of real time.
var speeds = []float64{0.25, 0.5, 1, 2, 5, 10, 30, 60}

// tick waits for the next interval of a replay.
func (s *screen) tick() tea.Cmd {
	s.ticking++
	_, end := s.src.Bounds()
	if s.live != nil || !s.follow || s.pos+1 >= end {
		return nil
	}
	_, now := s.src.Span(max(s.pos, 0))
	_, next := s.src.Span(s.pos + 1)
	// At most 5 s, so that gaps are skipped; at least 40 ms, so that every interval is seen.
	wait := time.Duration(float64(next.Sub(now)) / speeds[s.speed])
	wait = min(max(wait, 40*time.Millisecond), 5*time.Second)
	n := s.ticking
	return tea.Tick(wait, func(time.Time) tea.Msg { return tickMsg{n} })
}

// Update implements tea.Model.
func (s *screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		s.width, s.height = max(msg.Width, 1), max(msg.Height, 1)
	case intervalMsg:
		s.live.add(msg.iv)
		first, end := s.live.Bounds()
		s.noteEvents(end-1, msg.iv)
		if s.follow {
			s.show(end - 1)
		} else if s.pos < first {
			s.note = "this interval is no longer kept: showing the oldest one"
			s.show(first)
		}
		return s, s.awaitInterval()
	case endMsg:
		return s, tea.Quit
	case noticeMsg:
		s.addEvent(event{frame: max(s.pos, 0), line: text.Safe(msg.line)})
		return s, s.awaitNotice()
	case tickMsg:
		if msg.n != s.ticking {
			return s, nil
		}
		s.show(s.pos + 1)
		if _, end := s.src.Bounds(); s.pos+1 >= end {
			s.follow = false
		}
		return s, s.tick()
	case tea.PasteMsg:
		if s.editing {
			s.typed(msg.Content)
		}
	case tea.KeyPressMsg:
		s.note = ""
		return s, s.key(msg)
	}
	return s, nil
}

// show shows interval i, or the nearest one that exists.
func (s *screen) show(i int) {
	first, end := s.src.Bounds()
	if end == first {
		return
	}
	i = min(max(i, first), end-1)
	iv, err := s.src.Frame(i)
	s.pos = i
	if err != nil {
		s.note = text.Safe(err.Error())
		start, end := s.src.Span(i)
		iv = &output.Interval{Start: start, End: end}
	}
	s.iv = iv
	if s.live == nil {
		s.noteEvents(i, iv)
	}
	s.regroup()
}

// options returns how samples are grouped at the moment.
func (s *screen) options() output.GroupOptions {
	opt := s.group
	for _, p := range s.path {
		opt.Pins = append(opt.Pins, p.pins...)
	}
	filters, search := parseSearch(s.search)
	opt.Filters = append(slices.Clone(opt.Filters), filters...)
	opt.Search = search
	return opt
}

// parseSearch splits what was typed: words of the form KEY=TEXT are filters, the
// others are searched for in the names of rows.
func parseSearch(s string) (filters []output.Filter, search string) {
	var words []string
	for word := range strings.FieldsSeq(s) {
		f, err := output.ParseFilter(word)
		if err != nil {
			words = append(words, word)
			continue
		}
		if !strings.ContainsAny(f.Pattern, `*?[\`) {
			f.Pattern = "*" + f.Pattern + "*"
		}
		filters = append(filters, f)
	}
	return filters, strings.ToLower(strings.Join(words, " "))
}

// reset is regroup after keys or filters have changed, so that the sparklines are
// no longer valid.
func (s *screen) reset() {
	s.history.clear()
	s.layout.keyWidths = nil
	s.regroup()
}

// regroup computes the rows again.
func (s *screen) regroup() {
	if s.iv == nil {
		return
	}
	opt := s.options()
	s.summary = output.Group(s.iv, opt)
	s.layout.update(s.summary)
	s.cells = keyCells(s.summary.Rows)
	s.history.forget(s.pos)
	s.history.put(s.pos, s.summary, s.iv.End.Sub(s.iv.Start))
	first, _ := s.src.Bounds()
	for i := max(first, s.pos-historyLen+1); i < s.pos; i++ {
		if s.history.points[i] != nil {
			continue
		}
		iv, err := s.src.Frame(i)
		if err != nil {
			continue
		}
		if s.live == nil {
			s.noteEvents(i, iv)
		}
		s.history.put(i, output.Group(iv, opt), iv.End.Sub(iv.Start))
	}
	// The mark stays on its row when rows change places.
	if i := slices.IndexFunc(s.summary.Rows, func(r output.Row) bool { return r.Group() == s.selected }); i >= 0 {
		s.cursor = i
	}
	s.move(0)
}

// move moves the mark n rows down.
func (s *screen) move(n int) {
	if s.summary == nil || len(s.summary.Rows) == 0 {
		s.cursor, s.offset = 0, 0
		return
	}
	s.cursor = min(max(s.cursor+n, 0), len(s.summary.Rows)-1)
	if n != 0 {
		s.selected = s.summary.Rows[s.cursor].Group()
	}
}

// noteEvents adds the events of interval i: overlay devices, losses, and sources
// that were attached or detached.
func (s *screen) noteEvents(i int, iv *output.Interval) {
	if s.live == nil {
		if s.noted[i] {
			return
		}
		s.noted[i] = true
	}
	for j := range iv.Events {
		if e := &iv.Events[j]; e.VXLAN != nil {
			s.addEvent(event{i, e.Time.In(s.opt.Location).Format("15:04:05 ") + e.String(), false})
		}
	}
	at := iv.End.In(s.opt.Location).Format("15:04:05 ")
	if lost := lostText(&iv.Lost); lost != "" {
		s.addEvent(event{i, at + "lost " + lost, true})
	}
	for _, src := range iv.Sources {
		was, known := s.sources[src.Source]
		if known && was != src.Attached && i == s.lastNoted+1 {
			line := at + text.Safe(string(src.Source)) + " attached: " + text.Safe(src.Hook)
			if !src.Attached {
				line = at + text.Safe(string(src.Source)) + " detached: " + text.Safe(src.Reason)
			}
			s.addEvent(event{i, line, false})
		}
		s.sources[src.Source] = src.Attached
	}
	s.lastNoted = i
}

func (s *screen) addEvent(e event) {
	at := len(s.events)
	for at > 0 && s.events[at-1].frame > e.frame {
		at--
	}
	s.events = slices.Insert(s.events, at, e)
	if len(s.events) > keepEvents {
		s.events = slices.Delete(s.events, 0, len(s.events)-keepEvents)
	}
}

// key handles a key press.
func (s *screen) key(msg tea.KeyPressMsg) tea.Cmd {
	name := msg.String()
	if name == "ctrl+c" {
		return tea.Quit
	}
	if s.editing {
		s.edit(name, msg.Text)
		return nil
	}
	if s.help {
		s.help = false
		if name == "q" {
			return tea.Quit
		}
		return nil
	}
	switch name {
	case "q":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "?", "h", "f1":
		s.help = true
	case "up", "k":
		s.move(-1)
	case "down", "j":
		s.move(1)
	case "pgup", "ctrl+b":
		s.move(-max(s.page, 1))
	case "pgdown", "ctrl+f":
		s.move(max(s.page, 1))
	case "g":
		s.move(-len(s.cells))
	case "G":
		s.move(len(s.cells))
	case "enter":
		s.drill()
	case "backspace":
		s.back()
	case "esc":
		if s.search != "" {
			s.search = ""
			s.reset()
		} else {
			s.back()
		}
	case "/":
		s.editing = true
	case "e":
		s.noEvents = !s.noEvents
	case "b":
		s.cycleKey(1)
	case "B":
		s.cycleKey(-1)
	case "v":
		s.cycleLevel()
	case "s":
		s.cycleSort(1)
	case "S":
		s.cycleSort(-1)
	case "t":
		s.sortBy("total")
	case "r":
		s.sortBy("read")
	case "w":
		s.sortBy("write")
	case "o":
		s.sortBy("ops")
	case "p":
		s.sortBy("latency")
	case "n":
		s.sortBy("name")
	default:
		return s.timeKey(name)
	}
	return nil
}

// timeKey handles the keys that move through time.
func (s *screen) timeKey(name string) tea.Cmd {
	first, end := s.src.Bounds()
	if end == first {
		return nil
	}
	stop := func(i int) {
		s.follow = false
		s.show(i)
	}
	switch name {
	case "space", " ":
		s.follow = !s.follow
		if s.follow && s.live != nil {
			s.show(end - 1)
		}
		if s.follow && s.live == nil && s.pos == end-1 {
			s.show(first)
		}
	case "left":
		stop(s.pos - 1)
	case "right":
		stop(s.pos + 1)
	case "[":
		stop(s.pos - 10)
	case "]":
		stop(s.pos + 10)
	case "home":
		stop(first)
	case "end":
		stop(end - 1)
		s.follow = s.live != nil
	case "+", "=":
		s.speed = min(s.speed+1, len(speeds)-1)
	case "-":
		s.speed = max(s.speed-1, 0)
	default:
		return nil
	}
	return s.tick()
}

// drill shows what the marked row consists of, by the next key of drillOrder.
func (s *screen) drill() {
	if s.summary == nil || s.cursor >= len(s.summary.Rows) {
		return
	}
	row := &s.summary.Rows[s.cursor]
	last := s.group.By[len(s.group.By)-1]
	i := slices.Index(drillOrder, last)
	if i == len(drillOrder)-1 {
		s.note = "there is nothing below a mount"
		return
	}
	next := output.KeyContainer
	if i >= 0 {
		next = drillOrder[i+1]
	}
	if next == output.KeyProcess && !slices.ContainsFunc(s.iv.Samples, func(x output.Sample) bool { return x.Process != output.Process{} }) {
		next = output.KeyMount // processes were not recorded
	}
	st := step{by: s.group.By, search: s.search, selected: row.Group()}
	st.pins = slices.Clone(row.Keys)
	s.path = append(s.path, st)
	s.group.By = []output.Key{next}
	s.search, s.selected, s.cursor, s.offset = "", "", 0, 0
	s.reset()
}

// back undoes the last drill.
func (s *screen) back() {
	if len(s.path) == 0 {
		return
	}
	st := s.path[len(s.path)-1]
	s.path = s.path[:len(s.path)-1]
	s.group.By, s.search, s.selected = st.by, st.search, st.selected
	s.reset()
}

func (s *screen) cycleKey(n int) {
	i := slices.Index(cycleOrder, s.group.By[0])
	if i < 0 && n < 0 {
		i = 0
	}
	s.group.By = []output.Key{cycleOrder[(i+n+len(cycleOrder))%len(cycleOrder)]}
	s.selected, s.cursor, s.offset = "", 0, 0
	s.reset()
}

func (s *screen) cycleLevel() {
	switch s.group.Level {
	case output.LevelBoth:
		s.group.Level = output.LevelApp
	case output.LevelApp:
		s.group.Level = output.LevelWire
	default:
		s.group.Level = output.LevelBoth
	}
	s.layout.latency = false
	s.reset()
}

// sortBy sorts by a column, or reverses the order if it is sorted by it already.
func (s *screen) sortBy(column string) {
	reverse := s.group.Sort.ColumnName() == column && !s.group.Sort.Reverse
	s.group.Sort = output.Sort{Column: column, Reverse: reverse}
	s.regroup()
}

func (s *screen) cycleSort(n int) {
	columns := slices.DeleteFunc(output.SortColumns(), func(c string) bool {
		source := slices.Contains(output.Sources, output.Source(c))
		return source && !slices.Contains(s.layout.sources, output.Source(c))
	})
	i := slices.Index(columns, s.group.Sort.ColumnName())
	s.group.Sort = output.Sort{Column: columns[(i+n+len(columns))%len(columns)]}
	s.regroup()
}

// edit changes the search. It does not use the text input of the bubbles library,
// which looks for clipboard programs in $PATH: a program that runs as root must
// not start those.
func (s *screen) edit(name, typed string) {
	switch name {
	case "enter":
		s.editing = false
		return
	case "esc":
		s.editing, s.search = false, ""
	case "backspace":
		runes := []rune(s.search)
		s.search = string(runes[:max(len(runes)-1, 0)])
	case "ctrl+u":
		s.search = ""
	case "ctrl+w":
		s.search = strings.TrimRight(s.search, " ")
		s.search = s.search[:strings.LastIndexByte(s.search, ' ')+1]
	default:
		if typed != "" {
			s.typed(typed)
		}
		return
	}
	s.reset()
}

// maxSearch is the longest search, in bytes.
const maxSearch = 256

func (s *screen) typed(input string) {
	for _, r := range input {
		if unicode.IsPrint(r) && len(s.search) < maxSearch {
			s.search += string(r)
		}
	}
	s.reset()
}
