package attribute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
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
	rank     int
	log      *slog.Logger
	now      func() time.Time
	wanted   chan string     // ids that were seen as cgroups and are not known
	ready    func()          // called when the runtime began to answer
	nudge    func(id string) // asks the other runtimes for a container

	mu       sync.Mutex
	endpoint Endpoint
	answered bool // since the last connection
	asked    chan struct{}
	settled  bool
}

func (f *feed) put(c container) {
	c.from, c.rank, c.toldAt = f.from, f.rank, f.now()
	f.registry.put(c)
}

func (f *feed) sync(all []container, began time.Time) {
	for i := range all {
		all[i].from, all[i].rank, all[i].toldAt = f.from, f.rank, f.now()
	}
	f.registry.sync(f.from, all, began)
	f.mu.Lock()
	f.endpoint.Containers = len(all)
	f.mu.Unlock()
}

func (f *feed) removed(id string)      { f.registry.removed(f.from, id) }
func (f *feed) rename(id, name string) { f.registry.rename(f.from, id, name) }

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
	var syntax interface{ Timeout() bool }
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
		errors.As(err, &syntax) && syntax.Timeout(), errors.Is(err, syscall.EAGAIN):
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
	st, err := os.Stat(socket)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%q: %w", socket, errNotSocket)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// callTime is how long one call to a runtime may take.
const callTime = 3 * time.Second

// runtimes keeps a session with every runtime whose socket exists.
type runtimes struct {
	table    []runtimeSpec
	registry *registry
	log      *slog.Logger
	now      func() time.Time

	mu    sync.Mutex
	feeds map[string]*feed // by runtime and socket
	seen  map[string]time.Time
	first chan struct{} // closed when all sockets were looked for once
}

func newRuntimes(opts Options, g *registry) *runtimes {
	return &runtimes{
		table: runtimeTable(opts), registry: g, log: opts.Log, now: opts.now,
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
				if f := rs.add(spec, socket); f != nil {
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
func (rs *runtimes) add(spec *runtimeSpec, socket string) *feed {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	key := spec.name + " " + socket
	if rs.feeds[key] != nil || len(rs.feeds) >= maxEndpoints {
		return nil
	}
	f := &feed{
		registry: rs.registry, from: key, socket: socket, rank: 1, log: rs.log, now: rs.now,
		wanted: make(chan string, maxWanted), asked: make(chan struct{}), ready: rs.askAgain,
		endpoint: Endpoint{Socket: socket, Runtime: spec.name, State: StateConnecting},
	}
	f.nudge = func(id string) { rs.spread(id, f) }
	rs.feeds[key] = f
	return f
}

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
			rs.log.Warn("no names from this socket for now", "socket", f.socket, "runtime", spec.name, "error", clip(s, maxText))
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
	rs.mu.Lock()
	defer rs.mu.Unlock()
	now := rs.now()
	if until, ok := rs.seen[id]; ok && now.Before(until) {
		return
	}
	if len(rs.seen) >= maxWanted {
		clear(rs.seen)
	}
	rs.seen[id] = now.Add(wantedAgain)
	rs.send(id, nil)
}

// spread asks all runtimes but one.
func (rs *runtimes) spread(id string, but *feed) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.send(id, but)
}

func (rs *runtimes) send(id string, but *feed) {
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
