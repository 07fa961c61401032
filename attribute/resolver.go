package attribute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	defaultKeep = 5 * time.Minute
	// minKeep is as long as writeback is delayed: I/O of a removed cgroup comes up to a
	// minute later.
	minKeep = time.Minute

	checkEvery = time.Second
	checkCount = 8 // cgroups checked each time
)

// Options tells a Resolver and an Overlay where to look. The zero value asks this
// machine.
type Options struct {
	CgroupRoot string // "" finds it in /proc/self/mountinfo
	ProcRoot   string // "" means /proc
	// HostRoot is the directory under which the host's file system is seen, from inside of
	// a container: the usual sockets and the cgroups are looked for there first. "" means
	// that it is our own root.
	HostRoot string
	// NoHostProc says that ProcRoot is that of a container: its process 1 is not the
	// host's, so neither its mounts nor its processes name anything.
	NoHostProc bool

	// Sockets to ask besides those found at the usual places (Docker, rootless Docker,
	// Podman, containerd, CRI-O ...): each is a path or unix:///PATH, for Docker also
	// tcp://HOST:PORT without TLS. DOCKER_HOST in the environment counts as one more of
	// DockerSockets. Of several paths to one socket the first is used; what cannot be
	// used is logged as a warning.
	DockerSockets     []string // of Docker or Podman
	CRISockets        []string
	ContainerdSockets []string
	// OnlyListedSockets asks the sockets above and no others. With none above, no
	// runtime is asked.
	OnlyListedSockets bool

	ProjectLabel string        // label that names the project before all other rules
	Keep         time.Duration // how long a removed cgroup keeps its name; 0 means 5 min, at least 60 s
	CallTime     time.Duration // limit of the first call to a runtime, longer after each timeout; 0 means 3 s
	Log          *slog.Logger  // messages; nil discards them

	now  func() time.Time // for tests
	root string           // directory with /etc and /var of this machine, for tests; "" means /
}

// Resolver names the owners of cgroup ids. Its methods may be called from any goroutine.
// Only WaitAnswered and Close wait for anything but the local kernel.
type Resolver struct {
	opts      Options
	hierarchy Hierarchy
	tree      *tree
	registry  *registry
	mounts    *mounts
	machines  *machines
	runtimes  *runtimes
	log       *slog.Logger

	mu     sync.Mutex
	cancel context.CancelFunc
	done   sync.WaitGroup
	closed bool
}

// NewResolver returns an empty Resolver: Walk adds the existing cgroups, Start the names
// from the runtimes. It does not connect to a socket yet. Close must be called. The error
// is about opts, or about a machine without cgroups (fs.ErrNotExist).
func NewResolver(opts Options) (*Resolver, error) {
	if opts.ProcRoot == "" {
		opts.ProcRoot = "/proc"
	}
	if opts.Keep == 0 {
		opts.Keep = defaultKeep
	}
	if opts.Keep < minKeep {
		return nil, fmt.Errorf("keeping the names of removed cgroups for %v: less than %v loses late writeback", opts.Keep, minKeep)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.now == nil {
		opts.now = time.Now
	}
	h := Hierarchy{Version: 2, Mount: opts.CgroupRoot, Root: "/"}
	if opts.CgroupRoot == "" {
		var err error
		if h, err = findHierarchy(opts.ProcRoot, opts.HostRoot); err != nil {
			return nil, err
		}
	}
	r := &Resolver{
		opts: opts, hierarchy: h, log: opts.Log,
		tree:     newTree(h.Mount, h.Root, opts.Keep, opts.now),
		registry: newRegistry(opts.ProjectLabel, opts.Keep, opts.now),
	}
	r.tree.isBare = r.bare
	r.mounts = newMounts(opts.ProcRoot, r.registry, r.tree, opts.now)
	r.machines = newMachines(cmp.Or(opts.root, opts.HostRoot, "/"), opts.now)
	r.mounts.none = opts.NoHostProc
	r.runtimes = newRuntimes(opts, r.registry, r.tree, h)
	return r, nil
}

// Hierarchy returns the hierarchy of the ids that the Resolver names.
func (r *Resolver) Hierarchy() Hierarchy { return r.hierarchy }

// Walk adds all existing cgroups. Call it once, after the tracepoints that feed
// CgroupCreated are attached, so that no cgroup is missed. If it fails, ids are still
// resolved one by one where the kernel allows it.
func (r *Resolver) Walk() error { return r.tree.walkAll() }

// Start asks the runtimes for names in the background until ctx is done or the Resolver is
// closed. A socket that is absent, hangs or lies delays nothing else.
func (r *Resolver) Start(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.cancel != nil {
		return
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.done.Go(func() { r.runtimes.run(ctx) })
	go r.machines.run(ctx) // Close does not wait for it: a file system may hang
	r.done.Go(func() {
		tick := time.NewTicker(checkEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.tree.check(checkCount)
			}
		}
	})
	r.done.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.mounts.follow()
			}
		}
	})
}

// CgroupCreated adds a cgroup from the kernel's cgroup_mkdir event. The path is relative
// to the root of the hierarchy and may be cut off or empty.
func (r *Resolver) CgroupCreated(id uint64, path string) { r.tree.created(id, path) }

// CgroupRemoved marks a cgroup removed, from the kernel's cgroup_rmdir event. Its name is
// kept for Options.Keep.
func (r *Resolver) CgroupRemoved(id uint64, path string) { r.tree.removed(id, path) }

// Owner returns the owner of a cgroup id as far as it is known now. It never waits for a
// runtime: a name that is not known yet is empty, and filled in on a later call. An id
// that is not a cgroup of this machine has KindUnknown.
func (r *Resolver) Owner(id uint64) Owner { return r.OwnerAt(id, r.opts.now()) }

// OwnerAt returns the same with the name that the owner had at a time: a container may
// have been renamed since then.
func (r *Resolver) OwnerAt(id uint64, when time.Time) Owner {
	c, ok := r.tree.get(id)
	if !ok {
		return Owner{Cgroup: id, Gone: r.tree.isGone(id)}
	}
	p := c.place
	o := Owner{
		Kind: p.kind, Cgroup: id, Path: c.path, Gone: !c.goneAt.IsZero(),
		Runtime: p.runtime, ContainerID: p.id, Parent: p.parent,
		Outer: p.outer, Unit: p.unit, PodUID: p.podUID,
	}
	d := p.domain
	if p.outer != "" {
		o.OuterName = r.nameOf(p.outer, p.outermost, when)
	}
	if p.named {
		r.nameByPath(&o, p)
		return r.inherit(o, d)
	}
	m := r.registry.find(p, c.path)
	if m == nil && d != (domain{}) && r.registry.get(p.id) != nil {
		r.runtimes.wanted(p.id) // its engine says where it is: perhaps here
	}
	switch {
	case m == nil && d.container():
		r.runtimes.inside(d, c)
	case m == nil && d == (domain{}) && p.id != "":
		if s, ok := r.runtimes.sibling(c); ok {
			d = s.around
			m = r.registry.get(d.key(p.id))
			o.Parent, o.Outer, o.OuterName = s.parent, s.outer, r.nameOf(s.outer, s.outermost, when)
		}
	}
	if m != nil {
		describe(&o, m, when)
		d = m.domain
	}
	if pod := r.registry.pod(d, o.PodUID); pod != nil {
		o.Pod, o.Namespace = pod.naming.pod, pod.naming.namespace
		if o.Project == "" {
			o.Project, o.ProjectRule = pod.naming.project, pod.naming.rule
		}
	}
	if o.ContainerID != "" && o.Runtime == "" && o.PodUID == "" {
		r.runtimes.wanted(o.ContainerID)
	}
	return r.inherit(o, d)
}

// nameOf returns the name of a container that others run in, "" when it is not known.
func (r *Resolver) nameOf(id, key string, when time.Time) string {
	if m := r.registry.get(key); m != nil {
		return m.nameAt(when)
	}
	if !isHex(id, 64) {
		return id // not a hash: a name that a person chose
	}
	return ""
}

// nameByPath fills in an owner that is named by its path alone.
func (r *Resolver) nameByPath(o *Owner, p *place) {
	o.ContainerName = p.id
	switch p.runtime {
	case runtimeLXC, runtimeProxmox:
		if p.domain != (domain{}) {
			break // its files are not those of this machine
		}
		f := r.machines.get(p.runtime, p.id)
		o.ContainerName = cmp.Or(f.name, p.id)
		if f.project != "" {
			o.Project, o.ProjectRule = f.project, RuleLXD
		}
	case runtimeNomad:
		o.Service = p.task
	}
}

// describe fills in what the runtime reported.
func describe(o *Owner, m *container, when time.Time) {
	if o.ContainerID == "" && m.kind == KindContainer {
		// The runtime says it of a path that no rule knows.
		o.Kind, o.ContainerID = m.kind, m.id
		o.Unit = ""
	}
	if m.kind == KindPod {
		o.Kind = KindPod
	}
	if m.runtime != "" {
		o.Runtime = m.runtime
	}
	o.Renamed = len(m.former) > 0
	o.ContainerName, o.Image, o.ImageTag, o.ImageDigest, o.Labels = m.nameAt(when), m.image, m.tag, m.digest, m.labels
	n := &m.naming
	o.Project, o.ProjectRule, o.Service = n.project, n.rule, n.service
	o.Pod, o.Namespace = n.pod, n.namespace
	if o.PodUID == "" {
		o.PodUID = n.podUID
	}
	if o.Unit == "" && n.unit != "" {
		o.Unit = n.unit
		if m.domain.user != "" {
			o.Unit = "user@" + m.domain.user + ".service/" + n.unit // of his own manager
		}
	}
}

// inherit notes who named an owner, and names the project of one that has none: by the
// container around it, else by its systemd unit.
func (r *Resolver) inherit(o Owner, d domain) Owner {
	o.NamedBy = d.String()
	if o.Project != "" {
		o.ProjectNamedBy = o.NamedBy
		return o
	}
	if parent := r.registry.get(d.path); d.container() && parent != nil && parent.naming.project != "" {
		o.Project, o.ProjectRule, o.ProjectNamedBy = parent.naming.project, RuleParent, parent.domain.String()
		return o
	}
	if o.Unit != "" {
		o.Project, o.ProjectRule = o.Unit, RuleUnit
		if d.container() || o.Kind == KindUnit {
			o.ProjectNamedBy = o.NamedBy
		}
	}
	return o
}

// bare tells whether only the id of a container is known.
func (r *Resolver) bare(p *place) bool {
	return p.kind == KindContainer && !p.named && r.registry.find(p, "") == nil
}

// WaitAnswered waits until each socket that existed when Start was called has answered
// or failed once. It returns the error of ctx when that ends first.
func (r *Resolver) WaitAnswered(ctx context.Context) error { return r.runtimes.waitAnswered(ctx) }

// WaitSwarm waits until a Docker engine of this machine is a node of a swarm: engines are
// asked when they are reached, when they make a network, and every ten seconds. It returns
// the error of ctx when that ends first.
func (r *Resolver) WaitSwarm(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.runtimes.swarm:
		return nil
	}
}

// MaySwarm tells whether an engine of this machine is a node of a swarm, or has not said
// until ctx ends that it is none. Without an engine's socket it is false.
func (r *Resolver) MaySwarm(ctx context.Context) bool { return r.runtimes.maySwarm(ctx) }

// Endpoints returns every socket that is or could be asked for names, with its state. A
// socket that does not exist has StateAbsent.
func (r *Resolver) Endpoints() []Endpoint { return r.runtimes.endpoints() }

// Close stops asking and frees everything. It waits for the background work to end, which
// takes as long as closing sockets.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	r.done.Wait()
	return errors.Join(r.mounts.close(), r.tree.close())
}
