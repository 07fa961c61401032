package terminal

import (
	"cmp"
	"context"
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
	// Accumulate makes the screen show totals since the start at first.
	Accumulate bool
	// Labels are the container labels that the details of a row may show.
	Labels []string
	// Record starts a recording, or stops it, and returns the name of its file. Report
	// writes a page about the intervals of a timeline and returns the name of its file.
	// Where they are nil, the screen offers neither.
	Record func(start bool) (file string, err error)
	Report func(Timeline, output.GroupOptions) (file string, err error)
	// Files has intervals say which file I/O is of, or ends that: it costs something, and
	// the screen asks for it while it shows files. Nil where intervals are what they are.
	Files func(on bool) error
	// Recording is the file of a recording that runs already, or "".
	Recording string
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
// the terminal is restored, and a table stays on it: a summary of the live run, or
// what a replay showed last.
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
	v := s.last()
	if v == nil {
		return nil
	}
	t := NewTable(opt.Output, TableOptions{Location: opt.Location})
	v.summary.Rows, v.summary.Rest = output.Fold(v.summary.Rows, v.summary.Rest, 20)
	return t.write(v)
}

// last returns the table that stays on the terminal, or nil if there was nothing.
func (s *screen) last() *view {
	if s.summary == nil {
		return nil
	}
	opt := s.options()
	if s.live == nil {
		return &view{
			summary: output.Group(s.iv, opt), iv: s.iv, closing: true,
			measure: measure{level: s.summary.Level, d: s.iv.End.Sub(s.iv.Start), sort: opt.Sort},
			title:   s.iv.End.In(s.opt.Location).Format("15:04:05") + "  " + seconds(s.iv.End.Sub(s.iv.Start)),
		}
	}
	first, end := s.src.Bounds()
	var peaks output.Peaks
	for i := first; i < end; i++ {
		if iv, err := s.src.Frame(i); err == nil {
			peaks.Add(output.Group(iv, opt), iv.End.Sub(iv.Start))
		}
	}
	v := closing(s.run.upTo(end-1, &s.live.before, s.src), &peaks, opt, s.opt.Location)
	if first > 0 { // older intervals are in the sum, but their rates are gone
		start, _ := s.src.Span(first)
		v.title += ", peaks since " + start.In(s.opt.Location).Format("15:04:05")
	}
	return v
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

// below says what rows of a key consist of. Drilling down goes to the first key that
// the path does not have yet.
var below = map[output.Key][]output.Key{
	output.KeyHost:      {output.KeyProject, output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyFile, output.KeyDevice},
	output.KeyNamespace: {output.KeyPod, output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyFile, output.KeyDevice},
	output.KeyProject:   {output.KeyService, output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyFile, output.KeyDevice},
	output.KeyNFSServer: {output.KeyMount, output.KeyContainer, output.KeyProcess, output.KeyFile},
	output.KeyNFSClient: {output.KeyNFSExport, output.KeyDevice, output.KeyMount, output.KeyFile},
	output.KeyNFSExport: {output.KeyNFSClient, output.KeyDevice, output.KeyContainer, output.KeyFile},
	output.KeyMount:     {output.KeyContainer, output.KeyProcess, output.KeyFile, output.KeyDevice},
	output.KeyDevice:    {output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyFile},
	output.KeyProcess:   {output.KeyMount, output.KeyFile, output.KeyDevice},
	output.KeyFile:      {output.KeyContainer, output.KeyProcess, output.KeyDevice},
}

// belowOthers is below for the keys that are not in it.
var belowOthers = []output.Key{output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyFile, output.KeyDevice}

// menuKeys are the keys of the menu of b.
var menuKeys = []output.Key{output.KeyProject, output.KeyService, output.KeyContainer, output.KeyProcess, output.KeyMount, output.KeyFile, output.KeyDevice,
	output.KeyNFSServer, output.KeyNFSClient, output.KeyNFSExport, output.KeyImage, output.KeyPod, output.KeyNamespace, output.KeyCgroup, output.KeyOuter, output.KeySource, output.KeyOp, output.KeyHost}

// span is the time that the numbers are about.
type span int

const (
	spanLast span = iota // rates of the last interval
	span10s              // average rates
	span60s
	spanRun    // average rates since the start
	spanTotals // amounts since the start
)

var spans = []struct {
	name   string
	length time.Duration
}{{"last interval", 0}, {"average of 10 s", 10 * time.Second}, {"average of 60 s", time.Minute}, {"average since the start", 0}, {"totals since the start", 0}}

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
	editing bool // the search
	jumping bool // the time to go to
	jump    string

	iv        *output.Interval // the one at pos
	span      span
	before    span             // of the time before a was pressed
	view      *output.Interval // that the summary is of: iv, or a sum up to iv
	covered   time.Duration    // by view
	summary   *output.Summary  // idle rows included
	cells     [][]string
	active    map[string]bool // rows that did something in iv, by id
	layout    layout
	run       runSum
	history   history
	events    []event
	noted     map[int]bool // intervals of a recording whose events are in events
	sources   map[output.Source]bool
	lastNoted int    // the interval that sources describes
	selected  string // id of the marked row
	cursor    int    // its index
	offset    int    // first row on the screen
	page      int    // how many rows were drawn last

	pane      pane // instead of the rows
	menu      menu
	scroll    int // first line of the pane
	recording string
	files     bool // asked for: see ScreenOptions.Files
	noEvents  bool
	note      string // message that stays until the next key press

	// What was drawn where, for the mouse.
	headY, rowY int
	grid        grid
}

// pane is what is shown instead of the rows.
type pane int

const (
	paneRows pane = iota
	paneHelp
	paneDetails
	paneMenu
)

func newScreen(ctx context.Context, intervals <-chan *output.Interval, opt ScreenOptions) *screen {
	s := &screen{ctx: ctx, opt: opt, intervals: intervals, pos: -1, follow: true, speed: 2, group: opt.Group,
		noted: make(map[int]bool), sources: make(map[output.Source]bool), width: defaultWidth, height: 24}
	s.history.clear()
	s.group.Top = 0
	if len(s.group.By) == 0 {
		s.group.By = []output.Key{output.KeyProject}
	}
	s.recording = opt.Recording
	s.files = s.showsFiles() // asked for already
	if opt.Accumulate {
		s.span = spanTotals
	}
	if opt.Replay != nil {
		s.src = &cachedFrames{opt.Replay, make(map[int]*output.Interval)}
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
	filesMsg    struct{ err error }
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
	model, cmd := s.update(msg)
	return model, tea.Batch(cmd, s.askFiles())
}

// askFiles asks for files as soon as they are to be shown, and ends it when they are not.
func (s *screen) askFiles() tea.Cmd {
	if want := s.showsFiles(); s.opt.Files != nil && want != s.files {
		s.files = want
		return func() tea.Msg { return filesMsg{s.opt.Files(want)} }
	}
	return nil
}

func (s *screen) showsFiles() bool {
	return slices.Contains(s.group.By, output.KeyFile) ||
		slices.ContainsFunc(s.group.Pins, func(p output.KeyValue) bool { return p.Key == output.KeyFile }) ||
		slices.ContainsFunc(s.group.Filters, func(f output.Filter) bool { return f.Key == output.KeyFile })
}

func (s *screen) update(msg tea.Msg) (tea.Model, tea.Cmd) {
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
	case filesMsg:
		if msg.err != nil {
			s.note = "files cannot be told apart: " + text.Safe(msg.err.Error())
		}
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
	case tea.MouseWheelMsg:
		s.wheel(msg.Mouse())
	case tea.MouseClickMsg:
		s.note = ""
		s.click(msg.Mouse())
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
	now := output.Group(s.iv, opt)
	d := s.iv.End.Sub(s.iv.Start)
	s.history.forget(s.pos)
	s.history.put(s.pos, now, d)
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
	s.active = make(map[string]bool, len(now.Rows))
	for i := range now.Rows {
		s.active[now.Rows[i].Group()] = true
	}
	s.view, s.covered, s.summary = s.iv, d, now
	if s.span != spanLast {
		sum := s.sum(s.span)
		s.view, s.covered = sum.Interval(), sum.Covered()
		s.summary = output.Group(s.view, opt)
	}
	// Rows that do nothing now stay where the operator can see and mark them.
	s.summary.Rows = append(s.summary.Rows, s.history.idle(s.pos, s.summary)...)
	if opt.Sort.ColumnName() == "name" {
		slices.SortStableFunc(s.summary.Rows, func(a, b output.Row) int {
			order := cmp.Or(cmp.Compare(a.Text(), b.Text()), cmp.Compare(a.Group(), b.Group()))
			if opt.Sort.Reverse {
				return -order
			}
			return order
		})
	}
	s.layout.update(s.summary)
	s.cells = keyCells(s.summary.Rows)
	// The mark stays on its row when rows change places.
	if i := slices.IndexFunc(s.summary.Rows, func(r output.Row) bool { return r.Group() == s.selected }); i >= 0 {
		s.cursor = i
	}
	s.move(0)
}

// sum returns the sum of the intervals that sp is about.
func (s *screen) sum(sp span) *output.Sum {
	if sp == spanRun || sp == spanTotals {
		before := &output.Sum{}
		if s.live != nil {
			before = &s.live.before
		}
		return s.run.upTo(s.pos, before, s.src)
	}
	first, _ := s.src.Bounds()
	// Half an interval more: on a busy machine intervals are never quite as long as asked for.
	from := s.iv.End.Add(-spans[sp].length - s.iv.End.Sub(s.iv.Start)/2)
	i := s.pos
	for i > first {
		if start, _ := s.src.Span(i - 1); start.Before(from) {
			break
		}
		i--
	}
	sum := &output.Sum{}
	for ; i <= s.pos; i++ {
		if iv, err := s.src.Frame(i); err == nil {
			sum.Add(iv)
		}
	}
	if sum.Len() == 0 {
		sum.Add(s.iv)
	}
	return sum
}

// move moves the mark n rows down. The mark is always on a row and stays with it.
func (s *screen) move(n int) {
	if s.summary == nil || len(s.summary.Rows) == 0 {
		s.cursor, s.offset = 0, 0
		return
	}
	s.cursor = min(max(s.cursor+n, 0), len(s.summary.Rows)-1)
	s.selected = s.summary.Rows[s.cursor].Group()
}

// marked returns the marked row, or nil if there is none.
func (s *screen) marked() *output.Row {
	if s.summary == nil || s.cursor >= len(s.summary.Rows) {
		return nil
	}
	return &s.summary.Rows[s.cursor]
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
	switch {
	case s.editing:
		s.edit(name, msg.Text)
		return nil
	case s.jumping:
		return s.editJump(name, msg.Text)
	case s.pane == paneMenu:
		s.menuKey(name, msg.Text)
		return nil
	case s.pane == paneHelp || s.pane == paneDetails:
		if done, cmd := s.paneKey(name); done {
			return cmd
		}
	}
	switch name {
	case "q":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "?", "h", "f1":
		s.open(paneHelp)
	case "d":
		if s.marked() == nil {
			s.note = "no row is marked"
			break
		}
		s.open(paneDetails)
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
	case "@":
		s.jumping, s.jump = true, ""
	case "e":
		s.noEvents = !s.noEvents
	case "a":
		s.accumulate()
	case "b":
		s.keyMenu()
	case "i":
		s.spanMenu()
	case "s":
		s.sortMenu()
	case "v":
		s.cycleLevel()
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
	case "R":
		s.record()
	case "W":
		s.report()
	default:
		return s.timeKey(name)
	}
	return nil
}

func (s *screen) open(p pane) { s.pane, s.scroll = p, 0 }

// paneKey handles the keys of help and details. The keys of the time are left to the
// rows: done is false for them.
func (s *screen) paneKey(name string) (done bool, cmd tea.Cmd) {
	switch name {
	case "q":
		return true, tea.Quit
	case "up", "k":
		s.scroll--
	case "down", "j":
		s.scroll++
	case "pgup", "ctrl+b":
		s.scroll -= max(s.page, 1)
	case "pgdown", "ctrl+f":
		s.scroll += max(s.page, 1)
	case "g":
		s.scroll = 0
	case "G":
		s.scroll = 1 << 20
	case "space", " ", "left", "right", "[", "]", "home", "end", "+", "-", "=", "ctrl+z", "a", "R", "W":
		return s.pane == paneHelp, nil
	default:
		s.pane = paneRows
	}
	return true, nil
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

// drill shows what the marked row consists of.
func (s *screen) drill() {
	row := s.marked()
	if row == nil {
		s.note = "no row is marked"
		return
	}
	next, ok := s.next()
	if !ok {
		s.note = "there is nothing below this row: d shows its details, b groups by something else"
		return
	}
	st := step{by: s.group.By, search: s.search, selected: row.Group()}
	st.pins = slices.Clone(row.Keys)
	s.path = append(s.path, st)
	s.group.By = []output.Key{next}
	s.search, s.selected, s.cursor, s.offset = "", "", 0, 0
	s.reset()
}

// next returns the key to drill down to.
func (s *screen) next() (output.Key, bool) {
	used := slices.Clone(s.group.By)
	for _, st := range s.path {
		used = append(used, st.by...)
	}
	order, ok := below[s.group.By[len(s.group.By)-1]]
	if !ok {
		order = belowOthers
	}
	for _, k := range order {
		if slices.Contains(used, k) || k == output.KeyProcess && !s.processes() || k == output.KeyFile && !s.hasFiles() {
			continue
		}
		return k, true
	}
	return "", false
}

// processes reports whether processes were recorded.
func (s *screen) processes() bool {
	return slices.ContainsFunc(s.view.Samples, func(x output.Sample) bool { return x.Process != output.Process{} })
}

// hasFiles reports whether files are there to be shown, or can be had.
func (s *screen) hasFiles() bool {
	return s.opt.Files != nil || slices.ContainsFunc(s.view.Samples, func(x output.Sample) bool { return x.File.Kind != output.FileNotCounted })
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

// accumulate shows totals since the start, or what was shown before them.
func (s *screen) accumulate() {
	if s.span == spanTotals {
		s.span = s.before
	} else {
		s.before, s.span = s.span, spanTotals
	}
	s.regroup()
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

// record starts or stops a recording.
func (s *screen) record() {
	if s.opt.Record == nil {
		s.note = "a recording cannot be started here"
		return
	}
	start := s.recording == ""
	file, err := s.opt.Record(start)
	switch {
	case err != nil:
		s.note = text.Safe(err.Error())
	case start:
		s.recording = file
		s.note = "recording to " + text.Safe(file) + " from now on; R stops it"
	default:
		s.recording = ""
		s.note = "recorded " + text.Safe(file)
	}
}

// report writes a page about the intervals that are kept.
func (s *screen) report() {
	if s.opt.Report == nil || s.iv == nil {
		s.note = "a report cannot be written here"
		return
	}
	file, err := s.opt.Report(s.src, s.options())
	if err != nil {
		s.note = text.Safe(err.Error())
		return
	}
	first, end := s.src.Bounds()
	from, _ := s.src.Span(first)
	_, to := s.src.Span(end - 1)
	s.note = "wrote " + text.Safe(file) + ", " + from.In(s.opt.Location).Format("15:04:05") + " to " + to.In(s.opt.Location).Format("15:04:05")
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
