package attribute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	lookEvery    = 2 * time.Second // between two searches for new sockets
	maxEndpoints = 64

	backoffFirst = 250 * time.Millisecond
	backoffMost  = 15 * time.Second

	maxWanted   = 1024
	wantedAgain = 30 * time.Second
)

// runtimeSpec is one kind of runtime: a file of this package and a line in
// runtimeTable.
type runtimeSpec struct {
	name   string
	api    string   // kinds with the same API share their sockets: each is asked once
	listed []string // sockets that the user named
	usual  []string // patterns of the paths where the runtime listens by default
	// open returns a session with the runtime behind a socket. It does not connect:
	// follow does.
	open func(socket string) (session, error)
}

// session talks to one runtime behind one socket.
type session interface {
	// follow reports every container to the feed until ctx is done or the runtime fails,
	// and returns that error. Each of its calls has a deadline and a limit on what it
	// reads.
	follow(ctx context.Context, f *feed) error
	close() error
}

// runtimeTable lists the runtimes that can be asked for names. Others (LXC,
// systemd-nspawn, libvirt, Garden ...) write names into paths.
func runtimeTable(opts Options) []runtimeSpec {
	table := []runtimeSpec{
		{runtimeDocker, apiDocker, opts.listedDocker(), dockerSockets(), openDocker},
		{runtimePodman, apiDocker, nil, podmanSockets(), openDocker},
		{runtimeCRI, apiCRI, opts.listed(nil, "option", opts.CRISockets, false), criSockets(), openCRI},
		{runtimeContainerd, apiContainerd, opts.listed(nil, "option", opts.ContainerdSockets, false), containerdSockets(), openContainerd},
	}
	if opts.HostRoot != "" {
		for i := range table {
			table[i].usual = append(onHost(opts.HostRoot, table[i].usual), table[i].usual...)
		}
	}
	if opts.OnlyListedSockets {
		for i := range table {
			table[i].usual = nil
		}
	}
	return table
}

// The APIs that runtimes are asked by.
const (
	apiDocker     = "docker"
	apiCRI        = "cri"
	apiContainerd = "containerd"
)

// State is the state of a socket.
type State string

const (
	StateOK         State = "ok"
	StateConnecting State = "connecting" // no answer yet
	StateAbsent     State = "absent"
	StateForbidden  State = "forbidden"
	StateNoSocket   State = "not a socket"
	StateRefused    State = "refused"     // nobody listens
	StateHanging    State = "hanging"     // accepts connections but does not answer in time
	StateNotOffered State = "not offered" // answers, but does not offer this API
	StateBroken     State = "broken"      // answers, but not as a runtime does
)

// Endpoint is a socket where a runtime can be asked, for the check command.
type Endpoint struct {
	Socket     string
	Runtime    string
	User       string // uid, if a user runs it: it names only his containers
	Inside     string // id of the container that it runs in: it names only those in there
	State      State
	Version    string // its own name and version, "" until it answers; untrusted text
	Containers int    // number that it reported
	Err        error  // why the state is not ok
}

// runtimes keeps a session with every runtime whose socket exists.
type runtimes struct {
	table     []runtimeSpec
	registry  *registry
	tree      *tree
	procRoot  string
	hierarchy int // number in /proc/PID/cgroup, -1 if that does not count
	callTime  time.Duration
	log       *slog.Logger
	now       func() time.Time
	inner     chan nestedAsk // nil when engines inside containers are not asked

	mu       sync.Mutex
	feeds    map[string]*feed // by runtime and socket
	seen     map[string]time.Time
	siblings map[uint64]sibling // by cgroup
	first    chan struct{}      // closed after the first search for sockets

	swarm   chan struct{} // closed once an engine is a node of a swarm
	isSwarm sync.Once
}

func newRuntimes(opts Options, g *registry, t *tree, h Hierarchy) *runtimes {
	if opts.CgroupRoot != "" && !t.kernfs {
		h.ID = -1
	}
	rs := &runtimes{
		hierarchy: h.ID,
		table:     runtimeTable(opts), registry: g, tree: t, procRoot: opts.ProcRoot, callTime: cmp.Or(opts.CallTime, callTime),
		log: opts.Log, now: opts.now,
		feeds: map[string]*feed{}, seen: map[string]time.Time{}, siblings: map[uint64]sibling{}, first: make(chan struct{}), swarm: make(chan struct{}),
	}
	if !opts.OnlyListedSockets {
		rs.inner = make(chan nestedAsk, 64)
	}
	return rs
}

// run searches for sockets and follows each until ctx is done.
func (rs *runtimes) run(ctx context.Context) {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var discovered time.Time
	for first := true; ; first = false {
		for i := range rs.table {
			spec := &rs.table[i]
			for _, socket := range spec.present() {
				if f := rs.add(spec, socket, domain{}); f != nil {
					sessions.Go(func() { rs.keep(ctx, spec, f) })
				}
			}
		}
		if now := rs.now(); rs.inner != nil && now.Sub(discovered) >= discoverEvery {
			discovered = now
			rs.discover(func(api, socket string) {
				spec := rs.spec(api)
				if f := rs.add(spec, socket, domain{}); f != nil {
					sessions.Go(func() { rs.keep(ctx, spec, f) })
				}
			})
		}
		if first {
			close(rs.first)
			rs.warnAbsent()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case ask := <-rs.inner:
			// In the background: the file system of a container may be slow.
			sessions.Go(func() {
				err := rs.nested(&ask, func(spec *runtimeSpec, socket string) {
					if f := rs.add(spec, socket, ask.around); f != nil {
						sessions.Go(func() { rs.keep(ctx, spec, f) })
					}
				})
				if err != nil {
					rs.log.Debug("no engine found in a container", "container", ask.around.path, "error", err)
				}
			})
		}
	}
}

// add returns a new feed for a socket, or nil when it has one or there are too many. The
// domain is that of the container that the runtime runs in.
func (rs *runtimes) add(spec *runtimeSpec, socket string, inside domain) *feed {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	key := cmp.Or(spec.api, spec.name) + " " + socket
	if rs.feeds[key] != nil {
		return nil
	}
	// Containers and users must not use up the endpoints of the host.
	uid := socketUser(pathInRoot(socket))
	if who := holder(socket); uid == "" && who != unknownUser && isPath(socket) && !inside.container() {
		uid = who
	}
	limit := maxEndpoints
	if inside.container() {
		limit = maxNested
	}
	same := 0
	for _, f := range rs.feeds {
		f.mu.Lock()
		if f.inner == inside.container() && (f.endpoint.User != "") == (uid != "") {
			same++
		}
		f.mu.Unlock()
	}
	if same >= limit {
		return nil
	}
	f := &feed{
		registry: rs.registry, from: key, socket: socket, inner: inside.container(), domain: inside, rank: rankRuntime, most: maxContainers,
		cgroupOf: rs.cgroupOf,
		limit:    callLimit{rs.callTime, rs.callTime}, log: rs.log, now: rs.now,
		wanted: make(chan string, maxWanted), tried: make(chan struct{}), swarmed: make(chan struct{}), ready: rs.askAgain,
		endpoint: Endpoint{Socket: shown(socket), Runtime: spec.name, State: StateConnecting},
	}
	if !inside.container() && uid == "" {
		// The overlay devices of other engines are not in the host's network namespace.
		f.inSwarm = func() { rs.isSwarm.Do(func() { close(rs.swarm) }) }
	}
	switch {
	case inside.container():
		f.most, f.endpoint.Inside = nestedMost, inside.path[strings.LastIndexByte(inside.path, '/')+1:]
	case uid != "":
		f.byUser(uid)
	}
	switch {
	case inside.container():
	case spec.name == runtimeCRI:
		f.rank = rankCRI
	case spec.name == runtimeContainerd:
		f.rank = rankContainerd
	}
	f.nudge = func(id string) { rs.spread(id, f) }
	rs.feeds[key] = f
	return f
}

// socketUser returns the uid of a socket in a user's own directory (XDG_RUNTIME_DIR), or
// "".
func socketUser(socket string) string {
	rest, ok := strings.CutPrefix(socket, "/run/user/")
	if uid, _, in := strings.Cut(rest, "/"); ok && in && isDigits(uid) && uid != "0" {
		return uid
	}
	return ""
}

// cgroupOf returns the cgroup of a process, from the root of the hierarchy that names
// owners. It returns "" unless the id is in it: the runtime may count pids otherwise.
func (rs *runtimes) cgroupOf(pid int, id string) string {
	p := rs.pathOf(pid)
	if id == "" || !strings.Contains(p, id) {
		return ""
	}
	return p
}

// shown returns a socket as it is shown to users.
func shown(socket string) string {
	if strings.HasPrefix(socket, "/") {
		return filepath.Clean(socket)
	}
	return socket
}

// Of several records of one id the highest rank wins: the creator of a container knows
// more about it than its runtime.
const (
	rankContainerd = iota
	rankRuntime
	rankCRI
)

// keep follows one socket until ctx is done. It tries again after each error, with longer
// and longer pauses.
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
			f.begin().end()
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

// wanted asks the runtimes about a container whose cgroup was seen but that has no name.
// It never waits.
func (rs *runtimes) wanted(id string) {
	if rs.fresh(id) {
		rs.spread(id, nil)
	}
}

// fresh tells whether a question was not asked recently.
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

// spread asks all runtimes but one about a container.
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

// warnAbsent logs the listed sockets that do not exist. They are asked once they do.
func (rs *runtimes) warnAbsent() {
	for i := range rs.table {
		for _, socket := range rs.table[i].listed {
			if _, ok := exists(socket); !ok {
				rs.log.Warn("this socket does not exist yet", "socket", socket, "runtime", rs.table[i].name)
			}
		}
	}
}

// askAgain allows questions again that were asked before a runtime answered.
func (rs *runtimes) askAgain() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	clear(rs.seen)
}

// endpoints returns the sockets that are followed, then the absent ones.
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
	for i := range rs.table {
		for _, p := range rs.table[i].absent() {
			all = append(all, Endpoint{Socket: p, Runtime: rs.table[i].name, State: StateAbsent, Err: fs.ErrNotExist})
		}
	}
	return all
}

// waitAnswered waits until each socket that exists has answered or failed once.
// maySwarm tells whether an engine of the machine is a node of a swarm, or has not said
// that it is none.
func (rs *runtimes) maySwarm(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	case <-rs.first:
	}
	var engines []*feed
	rs.mu.Lock()
	for _, f := range rs.feeds {
		if f.inSwarm != nil && strings.HasPrefix(f.from, apiDocker+" ") {
			engines = append(engines, f)
		}
	}
	rs.mu.Unlock()
	for _, f := range engines {
		select {
		case <-ctx.Done():
			return true
		case <-f.swarmed:
		}
	}
	select {
	case <-rs.swarm:
		return true
	default:
		return false
	}
}

func (rs *runtimes) waitAnswered(ctx context.Context) error {
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
		case <-f.tried:
		}
	}
	return nil
}
