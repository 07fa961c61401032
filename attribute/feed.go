package attribute

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// feed takes what a session learns.
type feed struct {
	registry *registry
	from     string // name of the endpoint: API and socket
	socket   string
	inner    bool // the runtime runs in a container
	rank     int
	most     int // containers that it may report
	cgroupOf func(pid int, id string) string
	since    string // time at which the stream of events continues after a break
	log      *slog.Logger
	now      func() time.Time
	wanted   chan string     // ids that were seen as cgroups and have no name
	ready    func()          // called when the runtime has begun to answer
	nudge    func(id string) // asks the other runtimes about a container
	inSwarm  func()          // called when the engine is a node of a swarm; may be nil
	swarmed  chan struct{}   // closed once the engine has said whether it is in a swarm
	swarmOne sync.Once

	mu       sync.Mutex
	domain   domain // where its word counts
	endpoint Endpoint
	limit    callLimit
	answered bool          // since the last connection
	tried    chan struct{} // closed once it has answered or failed
	try      sync.Once
}

func (f *feed) put(c container) { f.registry.put(f.own(c)) }

// own marks a record as this feed's. Records of an engine of a user or inside a container
// are kept apart from all others: it knows only its own containers, and inside a container
// paths in its own file system.
func (f *feed) own(c container) container {
	c.from, c.rank, c.toldAt = f.from, f.rank, f.now()
	if c.key == "" {
		c.key = c.id
	}
	f.mu.Lock()
	c.domain, c.most = f.domain, f.most
	f.mu.Unlock()
	c.key = c.domain.key(c.key)
	if c.domain != (domain{}) {
		c.cgroupPath = ""
	}
	if f.inner {
		for i := range c.volumes {
			c.volumes[i].source = ""
		}
	}
	return c
}

func (f *feed) key(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.domain.key(id)
}

// reach connects to the runtime's socket and hangs up. Who listens there, and who may put
// another socket in its place, decides whose containers the runtime may name.
func (f *feed) reach(ctx context.Context) error {
	uid, err := reach(ctx, f.socket)
	if err != nil || f.inner {
		return err
	}
	user := holder(f.socket)
	if user == "" && !trusted(uid) {
		user = strconv.Itoa(uid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.domain, f.most, f.endpoint.User = domain{}, maxContainers, ""
	if user != "" {
		f.byUser(user)
	}
	return nil
}

// trusted tells whether a user may speak for the machine: root, and who runs the tracer and
// so controls what it shows.
func trusted(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// holder returns the user who may replace a socket, because a directory on the way to it is
// that user's; "" if that is nobody but root.
func holder(socket string) string {
	for dir := filepath.Dir(filepath.Clean(socket)); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		switch err := unix.Lstat(dir, &st); {
		case err != nil:
			return unknownUser
		case !trusted(int(st.Uid)):
			return strconv.Itoa(int(st.Uid))
		case st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o002 != 0 && st.Mode&unix.S_ISVTX == 0:
			return unknownUser
		}
	}
	return ""
}

// byUser makes the feed that of a user. The lock is held.
func (f *feed) byUser(uid string) {
	f.domain, f.most, f.endpoint.User = domain{}.of(uid), nestedMost, uid
}

// roll takes a list of all containers, one after the other.
type roll struct {
	f     *feed
	began time.Time
	n     int
	full  bool // the last one did not fit
}

// begin is called before a runtime is asked for its list.
func (f *feed) begin() *roll { return &roll{f: f, began: f.now()} }

// put takes one container of the list, unless it was removed since the list began.
func (r *roll) put(c container) {
	r.n++
	if c = r.f.own(c); !r.f.registry.removedAfter(c.from, c.key, r.began) {
		r.full = !r.f.registry.put(c)
	}
}

// end is called when the list is complete, or full. What it lacks is gone.
func (r *roll) end() {
	if !r.full { // else it may have ended early
		r.f.registry.unlisted(r.f.from, r.began)
	}
	r.f.mu.Lock()
	r.f.endpoint.Containers = r.n
	r.f.mu.Unlock()
}

func (f *feed) removed(id string) { f.registry.removed(f.from, f.key(id)) }

func (f *feed) rename(id, former, name string, at time.Time) {
	f.registry.rename(f.from, f.key(id), former, name, at)
}

// ok is called after the first complete answer of a connection.
func (f *feed) ok(runtime, version string) {
	defer f.ready()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answered = true
	f.endpoint.State, f.endpoint.Err = StateOK, nil
	f.endpoint.Runtime, f.endpoint.Version = runtime, clip(version, maxText)
	f.try.Do(func() { close(f.tried) })
}

func (f *feed) failed(err error) (answered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answered, f.answered = f.answered, false
	f.endpoint.State, f.endpoint.Err = classify(err), err
	f.limit.after(answered, f.endpoint.State)
	f.try.Do(func() { close(f.tried) })
	return answered
}

// errGarbled is the cause of errors about answers that no runtime gives.
var errGarbled = errors.New("not an answer of a container runtime")

// errTooLarge is the cause of errors about answers above a limit.
var errTooLarge = errors.New("answer is too large")

// classify returns the state that an error shows.
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

// reach connects to a unix socket and hangs up. It returns the uid of the process that
// listens there (SO_PEERCRED in unix(7)). Its errors are exact where those of a client are
// not.
func reach(ctx context.Context, socket string) (uid int, err error) {
	path, done, err := socketPath(socket)
	if err != nil {
		return 0, err
	}
	defer done()
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return 0, fmt.Errorf("%q: %w", socket, errNotSocket)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c, err := dialSocket(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	uid, err = peer(c)
	if err != nil {
		return 0, fmt.Errorf("asking who listens at %q: %w", socket, err)
	}
	return uid, nil
}

// peer returns the uid of the process that made a connection's other end, or that listens
// there.
func peer(c net.Conn) (uid int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("unexpected connection %T", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if optErr != nil {
		return 0, optErr
	}
	return int(cred.Uid), nil
}

// callTime is how long one call to a runtime may take, at first and at most: engines are
// slow on hosts with too much I/O.
const (
	callTime     = 3 * time.Second
	callTimeMost = 30 * time.Second
	listCalls    = 4 // a list may take as long as this many calls
)

// callLimit is how long a call to a runtime may take. It doubles with each timeout until
// the runtime answers.
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

// listCall returns the context of a list of all containers. It may take longer than other
// calls, and longer still while the runtime does not answer in time.
func (f *feed) listCall(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, max(listTime, listCalls*f.callTime()))
}

// call returns the context of one call.
func (f *feed) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, f.callTime())
}

// throttle limits the rate of events. No engine starts that many containers, but a hostile
// one could keep a processor busy.
type throttle struct {
	n     int
	since time.Time
}

const (
	throttleEvents = 512
	throttleTime   = 100 * time.Millisecond
)

// take counts one event and waits after too many.
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

// pacer says when the next list is due: regularly, and soon after news, but at most once
// per listPause.
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

// listing is called when a list is requested.
func (p *pacer) listing() {
	p.soon, p.last = false, time.Now()
	p.timer.Reset(p.every)
}

// news is called when there is something new to list.
func (p *pacer) news() {
	if !p.soon {
		p.soon = true
		p.timer.Reset(max(listSoon, listPause-time.Since(p.last)))
	}
}
