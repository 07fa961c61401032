package attribute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	lookEvery    = 2 * time.Second // for sockets that came up
	maxEndpoints = 64

	backoffFirst = 250 * time.Millisecond
	backoffMost  = 15 * time.Second

	maxWanted   = 1024
	wantedAgain = 30 * time.Second
)

// runtimeSpec is one kind of runtime: a file of this package and a line in
// runtimeTable.
type runtimeSpec struct {
	name string
	// sockets are the places (patterns) of its sockets.
	sockets []string
	// open returns a session with the runtime behind a socket. It must not wait
	// for anything: follow does.
	open func(socket string) (session, error)
}

// session talks to one runtime behind one socket.
type session interface {
	// follow tells the feed of every container, until ctx is done or the runtime
	// fails, which is the error it returns. Each call that it makes has a
	// deadline of its own and a bound on what it reads.
	follow(ctx context.Context, f *feed) error
	close() error
}

// runtimeTable lists the runtimes that can be asked for names. Those that are
// not here (LXC, systemd-nspawn, libvirt, Garden ...) write names into paths.
func runtimeTable(opts Options) []runtimeSpec {
	docker := runtimeSpec{runtimeDocker, dockerSockets(), openDocker}
	podman := runtimeSpec{runtimePodman, podmanSockets(), openDocker}
	table := []runtimeSpec{docker, podman}
	if opts.DockerHost != "" {
		docker.sockets = []string{opts.DockerHost}
		table = []runtimeSpec{docker}
	}
	kubernetes := runtimeSpec{runtimeCRI, criSockets(), openCRI}
	if opts.CRI != "" {
		kubernetes.sockets = []string{strings.TrimPrefix(opts.CRI, "unix://")}
	}
	containerd := runtimeSpec{runtimeContainerd, containerdSockets(), openContainerd}
	if opts.containerdSockets != nil {
		containerd.sockets = opts.containerdSockets
	}
	return append(table, kubernetes, containerd)
}

// State is what a socket is found to be.
type State string

const (
	StateOK         State = "ok"
	StateConnecting State = "connecting" // not answered yet
	StateAbsent     State = "absent"
	StateForbidden  State = "forbidden"
	StateNoSocket   State = "not a socket"
	StateRefused    State = "refused"     // nobody listens
	StateHanging    State = "hanging"     // accepts and does not answer in time
	StateNotOffered State = "not offered" // answers, and does not speak this API
	StateBroken     State = "broken"      // answers, but not what a runtime answers
)

// Endpoint is a place where a runtime can be asked, for the check command.
type Endpoint struct {
	Socket     string
	Runtime    string
	State      State
	Version    string // what it says it is, "" until it answered; text from outside
	Containers int    // that it told of
	Err        error  // why the state is not ok
}

// feed is where a session puts what it learns.
type feed struct {
	registry *registry
	from     string // who tells: the runtime and the socket
	socket   string
	inside   string // container that the runtime runs in, "" for the host's own
	rank     int
	most     int    // containers that it may tell of
	since    string // where the stream of events goes on after a break
	log      *slog.Logger
	now      func() time.Time
	wanted   chan string     // ids that were seen as cgroups and are not known
	ready    func()          // called when the runtime began to answer
	nudge    func(id string) // asks the other runtimes for a container

	mu       sync.Mutex
	endpoint Endpoint
	limit    callLimit
	answered bool // since the last connection
	asked    chan struct{}
	settled  bool
}

func (f *feed) put(c container) { f.registry.put(f.own(c)) }

// own marks a record as this feed's. What an engine inside a container tells is
// kept apart from all other names: it speaks of its own containers and no others,
// and of paths in its own file system.
func (f *feed) own(c container) container {
	c.from, c.rank, c.most, c.toldAt = f.from, f.rank, f.most, f.now()
	if c.key == "" {
		c.key = c.id
	}
	if f.inside != "" {
		c.inside, c.key, c.cgroupPath = f.inside, f.key(c.key), ""
		for i := range c.volumes {
			c.volumes[i].source = ""
		}
	}
	return c
}

func (f *feed) key(id string) string {
	if f.inside != "" {
		return f.inside + "/" + id
	}
	return id
}

func (f *feed) sync(all []container, began time.Time) {
	for i := range all {
		all[i] = f.own(all[i])
	}
	f.registry.sync(f.from, all, began)
	f.mu.Lock()
	f.endpoint.Containers = len(all)
	f.mu.Unlock()
}

func (f *feed) removed(id string)      { f.registry.removed(f.from, f.key(id)) }
func (f *feed) rename(id, name string) { f.registry.rename(f.from, f.key(id), name) }

// ok takes the runtime's first complete answer of a connection.
func (f *feed) ok(runtime, version string) {
	defer f.ready()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answered = true
	f.endpoint.State, f.endpoint.Err = StateOK, nil
	f.endpoint.Runtime, f.endpoint.Version = runtime, clip(version, maxText)
	f.settle()
}

func (f *feed) failed(err error) (answered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answered, f.answered = f.answered, false
	f.endpoint.State, f.endpoint.Err = classify(err), err
	f.limit.after(answered, f.endpoint.State)
	f.settle()
	return answered
}

func (f *feed) settle() {
	if !f.settled {
		f.settled = true
		close(f.asked)
	}
}

// errGarbled is the cause of errors about answers that no runtime would give.
var errGarbled = errors.New("not an answer of a container runtime")

// errTooLarge is the cause of errors about answers beyond a bound.
var errTooLarge = errors.New("answer is too large")

func classify(err error) State {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return StateAbsent
	case errors.Is(err, fs.ErrPermission):
		return StateForbidden
	case errors.Is(err, errNotOffered):
		return StateNotOffered
	case errors.Is(err, errNotSocket):
		return StateNoSocket
	case errors.Is(err, syscall.ECONNREFUSED):
		return StateRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errHanging),
		errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, syscall.EAGAIN):
		return StateHanging
	}
	return StateBroken
}

var (
	errNotSocket = errors.New("not a socket")
	errHanging   = errors.New("no answer in time")
)

// reach connects to a unix socket once and hangs up, for an exact reason when it
// cannot be done.
func reach(ctx context.Context, socket string) error {
	path, done, err := socketPath(socket)
	if err != nil {
		return err
	}
	defer done()
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%q: %w", socket, errNotSocket)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c, err := dialSocket(ctx, socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// callTime is how long one call to a runtime may take, at first and at most: on
// the very hosts that we are called to, those short of I/O, engines are slow.
const (
	callTime     = 3 * time.Second
	callTimeMost = 30 * time.Second
)

// callLimit is how long a runtime has for a call: one that hangs has twice as long
// the next time, until it answers.
type callLimit struct{ first, now time.Duration }

func (l *callLimit) after(answered bool, s State) {
	switch {
	case answered:
		l.now = l.first
	case s == StateHanging:
		l.now = max(l.first, min(2*l.now, callTimeMost))
	}
}

func (f *feed) callTime() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limit.now
}

// call gives the context of one call.
func (f *feed) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, f.callTime())
}

// runtimes keeps a session with every runtime whose socket exists.
type runtimes struct {
	table    []runtimeSpec
	registry *registry
	tree     *tree
	procRoot string
	callTime time.Duration
	log      *slog.Logger
	now      func() time.Time
	inner    chan nestedAsk

	mu    sync.Mutex
	feeds map[string]*feed // by runtime and socket
	seen  map[string]time.Time
	first chan struct{} // closed when all sockets were looked for once
}

func newRuntimes(opts Options, g *registry, t *tree) *runtimes {
	return &runtimes{
		table: runtimeTable(opts), registry: g, tree: t, procRoot: opts.ProcRoot, callTime: cmp.Or(opts.CallTime, callTime),
		log: opts.Log, now: opts.now,
		inner: make(chan nestedAsk, 64),
		feeds: map[string]*feed{}, seen: map[string]time.Time{}, first: make(chan struct{}),
	}
}

// run looks for sockets and follows each until ctx is done.
func (rs *runtimes) run(ctx context.Context) {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		for i := range rs.table {
			spec := &rs.table[i]
			for _, socket := range present(spec.sockets) {
				if f := rs.add(spec, socket, ""); f != nil {
					sessions.Go(func() { rs.keep(ctx, spec, f) })
				}
			}
		}
		if first {
			close(rs.first)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case ask := <-rs.inner:
			// Apart, because a look into a container's file system may take long.
			sessions.Go(func() {
				err := rs.nested(ask, func(spec *runtimeSpec, socket string) {
					if f := rs.add(spec, socket, ask.parent); f != nil {
						sessions.Go(func() { rs.keep(ctx, spec, f) })
					}
				})
				if err != nil {
					rs.log.Debug("no engine found in a container", "container", ask.parent, "error", err)
				}
			})
		}
	}
}

// present expands patterns into the paths that exist. A remote address has no
// path and is always there.
func present(patterns []string) []string {
	var found []string
	for _, p := range patterns {
		if !strings.HasPrefix(p, "/") {
			found = append(found, p)
			continue
		}
		paths, _ := filepath.Glob(p) // the patterns are ours: none is malformed
		for _, path := range paths {
			if real, err := filepath.EvalSymlinks(path); err == nil {
				path = real // /var/run is /run: one socket, one session
			}
			found = append(found, path)
		}
	}
	return found
}

// add returns a feed for a socket that has none yet.
func (rs *runtimes) add(spec *runtimeSpec, socket, inside string) *feed {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	key := spec.name + " " + socket
	limit := maxEndpoints
	if inside != "" {
		limit = maxNested // whoever may start containers must not use up all places
	}
	same := 0
	for _, f := range rs.feeds {
		if (f.inside != "") == (inside != "") {
			same++
		}
	}
	if rs.feeds[key] != nil || same >= limit {
		return nil
	}
	f := &feed{
		registry: rs.registry, from: key, socket: socket, inside: inside, rank: rankRuntime, most: maxContainers,
		limit: callLimit{rs.callTime, rs.callTime}, log: rs.log, now: rs.now,
		wanted: make(chan string, maxWanted), asked: make(chan struct{}), ready: rs.askAgain,
		endpoint: Endpoint{Socket: shown(socket), Runtime: spec.name, State: StateConnecting},
	}
	switch {
	case inside != "":
		f.most = nestedMost
	case strings.HasPrefix(socket, "/run/user/"):
		f.rank, f.most = rankUser, nestedMost
	case spec.name == runtimeCRI:
		f.rank = rankCRI
	case spec.name == runtimeContainerd:
		f.rank = rankContainerd
	}
	f.nudge = func(id string) { rs.spread(id, f) }
	rs.feeds[key] = f
	return f
}

// shown is a socket as people know it.
func shown(socket string) string {
	if strings.HasPrefix(socket, "/") {
		return filepath.Clean(socket)
	}
	return socket
}

// Who made a container says more of it than who runs it, and no user may rename
// what is not theirs: of several records of one id the higher rank wins.
const (
	rankUser = iota
	rankContainerd
	rankRuntime
	rankCRI
)

// keep follows one socket for as long as we run: whatever the runtime does, it is
// asked again, later and later.
func (rs *runtimes) keep(ctx context.Context, spec *runtimeSpec, f *feed) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = backoffFirst, backoffMost
	last := ""
	for {
		err := follow(ctx, spec, f)
		if ctx.Err() != nil {
			return
		}
		if f.failed(err) {
			wait.Reset()
			last = ""
		}
		if s := err.Error(); s != last {
			last = s
			rs.log.Warn("no names from this socket for now", "socket", shown(f.socket), "runtime", spec.name, "error", clip(s, maxText))
		}
		if f.over() {
			rs.mu.Lock()
			delete(rs.feeds, f.from)
			rs.mu.Unlock()
			f.sync(nil, f.now())
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.NextBackOff()):
		}
	}
}

func follow(ctx context.Context, spec *runtimeSpec, f *feed) error {
	s, err := spec.open(f.socket)
	if err != nil {
		return err
	}
	defer s.close()
	err = s.follow(ctx, f)
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s closed the connection: %w", spec.name, io.ErrUnexpectedEOF)
	}
	return err
}

// wanted asks the runtimes for one container that was seen as a cgroup and that
// none has told of. It never waits.
func (rs *runtimes) wanted(id string) {
	if rs.fresh(id) {
		rs.spread(id, nil)
	}
}

// fresh tells whether something was not asked for recently.
func (rs *runtimes) fresh(what string) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	now := rs.now()
	if until, ok := rs.seen[what]; ok && now.Before(until) {
		return false
	}
	if len(rs.seen) >= maxWanted {
		clear(rs.seen)
	}
	rs.seen[what] = now.Add(wantedAgain)
	return true
}

// spread asks all runtimes but one.
func (rs *runtimes) spread(id string, but *feed) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, f := range rs.feeds {
		if f == but {
			continue
		}
		select {
		case f.wanted <- id:
		default:
		}
	}
}

// throttle bounds the events that are taken in a time: no engine on earth starts
// that many containers, but one that lies could keep a processor busy.
type throttle struct {
	n     int
	since time.Time
}

const (
	throttleEvents = 512
	throttleTime   = 100 * time.Millisecond
)

// take counts one event and waits when there were too many.
func (t *throttle) take(ctx context.Context) {
	if t.n++; t.n < throttleEvents {
		return
	}
	wait := throttleTime - time.Since(t.since)
	if wait > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	t.n, t.since = 0, time.Now()
}

// pacer says when the next list is due: regularly, and soon after there was news,
// but never more often than a runtime can bear.
type pacer struct {
	timer *time.Timer
	every time.Duration
	soon  bool
	last  time.Time
}

const (
	listSoon  = 200 * time.Millisecond // after news, so that a burst of them is one list
	listPause = time.Second
)

// newPacer returns a pacer whose first list is due at once.
func newPacer(every time.Duration) *pacer { return &pacer{timer: time.NewTimer(0), every: every} }

func (p *pacer) stop() { p.timer.Stop() }

// listing tells that a list is being asked for.
func (p *pacer) listing() {
	p.soon, p.last = false, time.Now()
	p.timer.Reset(p.every)
}

// news tells that there is something to be listed.
func (p *pacer) news() {
	if !p.soon {
		p.soon = true
		p.timer.Reset(max(listSoon, listPause-time.Since(p.last)))
	}
}

// askAgain lets ids be asked for that were asked for before a runtime answered.
func (rs *runtimes) askAgain() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	clear(rs.seen)
}

// endpoints returns the sockets that are followed and, as absent, the fixed
// places where none is.
func (rs *runtimes) endpoints() []Endpoint {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var all []Endpoint
	for _, f := range rs.feeds {
		f.mu.Lock()
		all = append(all, f.endpoint)
		f.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Endpoint) int { return strings.Compare(a.Socket+a.Runtime, b.Socket+b.Runtime) })
	for _, spec := range rs.table {
		for _, p := range spec.sockets {
			if strings.ContainsAny(p, "*?[") || len(present([]string{p})) > 0 {
				continue
			}
			all = append(all, Endpoint{Socket: p, Runtime: spec.name, State: StateAbsent, Err: fs.ErrNotExist})
		}
	}
	return all
}

// settle waits until every socket that exists was asked once.
func (rs *runtimes) settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-rs.first:
	}
	rs.mu.Lock()
	feeds := make([]*feed, 0, len(rs.feeds))
	for _, f := range rs.feeds {
		feeds = append(feeds, f)
	}
	rs.mu.Unlock()
	for _, f := range feeds {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.asked:
		}
	}
	return nil
}
