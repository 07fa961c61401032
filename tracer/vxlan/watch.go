package vxlan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Backend is where events come from.
type Backend string

// The backends.
const (
	Auto    Backend = ""        // the kernel's hooks where it allows them, else netlink
	Kernel  Backend = "kernel"  // hooks only; an error where there are none
	Netlink Backend = "netlink" // rtnetlink notifications only
)

// WatchOptions configures a Watcher. The zero value watches this host.
type WatchOptions struct {
	Scan    ScanOptions
	Grace   time.Duration // 0 means DefaultGrace
	Backend Backend
	// Hierarchy is the id of the cgroup hierarchy that names owners: that of the v1
	// memory controller, or 0 for cgroup2.
	Hierarchy uint32
	// Skip leaves out the hooks whose names start with one of these
	// ("fentry/", "kprobe/call_netdevice").
	Skip []string
}

// notice is one message of a feed. One of its fields is set.
type notice struct {
	event   *Event
	link    *linkMessage
	dead    *int // id of a namespace that died
	resync  bool // something was missed: a scan is needed
	overrun bool // with resync: notices were lost
}

// feed is a source of notices.
type feed interface {
	run(ctx context.Context, out chan<- notice) error
	hooks() string
	limitations() []string
	lost() uint64
	close() error
}

// Watcher reports what happens to vxlan devices.
type Watcher struct {
	scanner *Scanner
	feeds   []feed
	grace   time.Duration
	spaces  *numbering
	why     error // why the hooks are not used
	// compares: rtnetlink is the source of events, and most of its events are differences
	// from the model. What a scan puts into the model must then be reported by the scan.
	compares bool

	reported chan notice

	mu    sync.Mutex // guards model
	model *Model

	lastScan time.Time
	lastLost uint64
	failures int // scans that failed in a row
	hasty    int // scans in this lossPeriod that did not wait for resyncPause
}

// NewWatcher attaches to the kernel, or to rtnetlink where hooks are refused, and scans
// all devices. The Watcher must be closed.
func NewWatcher(opts WatchOptions) (*Watcher, error) {
	scanner, err := NewScanner(opts.Scan)
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		scanner: scanner, grace: opts.Grace, model: NewModel(scanner.Host()),
		spaces: &numbering{scanner: scanner, known: make(map[int]uint64)}, reported: make(chan notice),
	}
	if w.grace == 0 {
		w.grace = DefaultGrace
	}
	living := false
	if opts.Backend != Netlink {
		k, why := newKernel(opts.Hierarchy, opts.Skip)
		if w.why = why; k != nil {
			w.feeds, living = append(w.feeds, k), k.living
		}
	}
	if !living && opts.Backend == Kernel {
		return nil, errors.Join(w.why, w.Close())
	}
	if !living {
		n, err := newNotifier(scanner.host)
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
		w.feeds, w.compares = append(w.feeds, n), true
	}
	// Scan only now: what happens between the scan and the first read event is in the
	// buffer of a feed.
	if err := w.resync(func(Event) {}); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Hooks returns where events come from: names of hooks, or rtnetlink, separated by ", ".
func (w *Watcher) Hooks() string {
	list := make([]string, 0, len(w.feeds))
	for _, f := range w.feeds {
		list = append(list, f.hooks())
	}
	return strings.Join(list, ", ")
}

// Remedy is what lifts every limitation: the hooks on kernel functions see all.
const Remedy = "a kernel with CONFIG_KPROBE_EVENTS=y or CONFIG_FUNCTION_TRACER=y that lets BPF use it"

// Limitations returns what the chosen hooks cannot see, one text each. Remedy lifts
// them.
func (w *Watcher) Limitations() []string {
	var list []string
	hooked := false
	for _, f := range w.feeds {
		list = append(list, f.limitations()...)
		if _, ok := f.(*kernel); ok {
			hooked = true
		}
	}
	if !hooked {
		list = append(list, noRefusals, noUpRefusals)
	}
	return list
}

// Fallback returns why the kernel's hooks are not used; nil when they are.
func (w *Watcher) Fallback() error { return w.why }

// Lost returns the number of lost events. A scan after each loss corrects the state.
func (w *Watcher) Lost() uint64 {
	var sum uint64
	for _, f := range w.feeds {
		sum += f.lost()
	}
	return sum
}

// Close detaches. Run must have returned.
func (w *Watcher) Close() error {
	var errs []error
	for _, f := range w.feeds {
		errs = append(errs, f.close())
	}
	return errors.Join(append(errs, w.scanner.Close())...)
}

// Host returns the inode number of the host's namespace.
func (w *Watcher) Host() uint64 { return w.scanner.Host() }

// Path returns the path of a namespace; "" when none is known.
func (w *Watcher) Path(netNS uint64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	space, _ := w.model.Namespace(netNS)
	return space.Path
}

// Report makes Run handle an event from elsewhere, such as a refused creation that only
// the engine knows. It waits until Run takes it or ctx is done.
func (w *Watcher) Report(ctx context.Context, e Event) { send(ctx, w.reported, notice{event: &e}) }

// resyncPause is how long a scan waits for more reasons to scan, and for the events on
// their way: an old event must not look newer than the scan.
const resyncPause = 250 * time.Millisecond

// lossPeriod is how often to check for lost events.
const lossPeriod = time.Second

// maxHasty limits the scans per lossPeriod that refused creations cause at once: a user
// can have thousands of creations refused.
const maxHasty = 8

// resync scans everything and emits the changes that it finds. The notices of these may
// still be on their way and then change nothing.
func (w *Watcher) resync(emit func(Event)) error {
	snap, err := w.scanner.Scan()
	if err != nil {
		return err
	}
	found := w.spaces.again()
	w.mu.Lock()
	for inode, now := range found {
		w.model.identify(inode, now)
	}
	news := w.model.Update(snap)
	w.lastScan = snap.Time
	w.failures = 0
	w.mu.Unlock()
	if w.compares {
		for _, e := range news {
			emit(e)
		}
	}
	return nil
}

// maxFailures is how often in a row a scan may fail. Where thousands of devices come and
// go, the kernel's lists are not always consistent.
const maxFailures = 20

// failed returns the error after too many in a row.
func (w *Watcher) failed(err error) error {
	if w.failures++; w.failures < maxFailures {
		return nil
	}
	return fmt.Errorf("scanning all devices: %w", err)
}

// Run calls emit with every event, from one goroutine, until ctx is done.
func (w *Watcher) Run(ctx context.Context, emit func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	notices := make(chan notice, 4096)
	ended := make(chan error, len(w.feeds))
	for _, f := range w.feeds {
		go func() { ended <- f.run(ctx, notices) }()
	}
	running := len(w.feeds)
	defer func() {
		cancel()
		for range running {
			<-ended
		}
	}()
	tick := time.NewTicker(lossPeriod)
	defer tick.Stop()
	expiry := time.NewTimer(time.Hour)
	defer expiry.Stop()
	var hold time.Time   // no leak is reported before
	var late *time.Timer // runs when a scan is wanted
	var due <-chan time.Time
	resync := func() {
		if due == nil {
			late = time.NewTimer(resyncPause)
			due = late.C
		}
	}
	defer func() {
		if late != nil {
			late.Stop()
		}
	}()
	for {
		w.mu.Lock()
		next := w.model.NextExpiry(w.grace)
		w.mu.Unlock()
		switch {
		case next.IsZero():
			expiry.Reset(time.Hour)
		case next.Before(hold):
			expiry.Reset(time.Until(hold))
		default:
			expiry.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			running--
			if ctx.Err() != nil { // the feed ended because of it
				return nil
			}
			return cmp.Or(err, errors.New("events ended"))
		case n := <-notices:
			if n.overrun {
				w.mu.Lock()
				for _, inode := range w.spaces.known {
					if Unreachable(inode) { // it may no longer exist
						w.model.forget(inode)
					}
				}
				clear(w.spaces.known)
				w.model.MarkStale(time.Now())
				w.mu.Unlock()
			}
			if w.take(n, emit) {
				resync()
			}
		case n := <-w.reported:
			if w.take(n, emit) {
				resync()
			}
		case <-tick.C:
			w.hasty = 0
			if lost := w.Lost(); lost != w.lastLost {
				w.lastLost = lost
				w.mu.Lock()
				w.model.MarkStale(time.Now())
				w.mu.Unlock()
				resync()
			}
		case <-due:
			due = nil
			if err := w.resync(emit); err != nil {
				if err := w.failed(err); err != nil {
					return err
				}
				resync()
			}
		case <-expiry.C:
			if err := w.expire(emit); err != nil {
				if err := w.failed(err); err != nil {
					return err
				}
				hold = time.Now().Add(resyncPause)
			}
		}
	}
}

// expire reports the devices whose grace period has expired. It scans first: neither a leak
// nor a device that is stuck is reported from memory alone.
func (w *Watcher) expire(emit func(Event)) error {
	if err := w.resync(emit); err != nil {
		return err
	}
	now := time.Now()
	w.mu.Lock()
	var events []Event
	for _, t := range w.model.Expired(now, w.grace) {
		f := judge(w.model, t, nil, now, w.grace)
		e := Event{Time: now, Action: Leaked, Device: t.Device, Age: f.Down, Reason: f.Reason, Actor: t.Mover}
		if f.Verdict == Stuck {
			e.Action = WentStuck
		}
		e.Culprit = w.holder(t)
		events = append(events, e)
	}
	w.mu.Unlock()
	for _, e := range events {
		emit(e)
	}
	return nil
}

// take handles one notice. It returns whether a scan is needed.
func (w *Watcher) take(n notice, emit func(Event)) (resync bool) {
	var events []Event
	switch {
	case n.event != nil:
		events = []Event{*n.event}
	case n.link != nil:
		events = n.link.events(w.model, w.spaces)
	case n.dead != nil:
		// Its devices die with it, without notices of their own.
		w.mu.Lock()
		for _, t := range w.model.forget(w.spaces.dead(*n.dead)) {
			events = append(events, Event{
				Time: time.Now(), Action: Deleted, Device: t.Device, Reason: "its namespace is gone",
			})
		}
		w.mu.Unlock()
	}
	for i := range events {
		e := &events[i]
		switch e.Action {
		case Refused:
			w.accuse(e, emit)
		case UpRefused:
			w.explain(e, emit)
		}
		w.mu.Lock()
		w.model.Apply(e)
		_, known := w.model.Namespace(e.ToNetNS)
		w.mu.Unlock()
		if e.Action == Moved && !known {
			resync = true
		}
		emit(*e)
	}
	return resync || n.resync
}

// accuse finds out what a refused creation collided with.
func (w *Watcher) accuse(e *Event, emit func(Event)) {
	fresh := time.Since(w.lastScan) < resyncPause
	if !fresh {
		_ = w.resync(emit) // if it fails, the model alone answers
	}
	t := w.culprit(e)
	if t == nil && fresh && w.hasty < maxHasty && (e.Name != "" || e.VNI != 0) {
		// The culprit may be newer than the last scan, and its notice still on its way:
		// feeds are not ordered among each other.
		w.hasty++
		_ = w.resync(emit)
		t = w.culprit(e)
	}
	if t != nil {
		e.Culprit = t
		e.Reason = reasonOf(e, t)
	} else if e.Reason == "" {
		e.Reason = "the device in the way is in a namespace that cannot be reached"
	}
}

// explain finds out what has the UDP port of a device that could not be set UP.
func (w *Watcher) explain(e *Event, emit func(Event)) {
	if e.Err != syscall.EADDRINUSE {
		return
	}
	if w.hasty < maxHasty || time.Since(w.lastScan) >= resyncPause {
		w.hasty++
		_ = w.resync(emit) // if it fails, the model alone answers
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// An engine may have taken the device away by now, and hooks do not know every port.
	t := newTrack(e.Device, e.Time, true)
	if known := w.model.At(Place{e.NetNS, e.Ifindex}); known != nil && known.same(e.Device) {
		t.Port, t.Underlay = known.Port, known.Underlay
	}
	t.Port = cmp.Or(t.Port, DefaultPort)
	e.Port = t.Port
	text, _ := w.model.portHolder(t)
	e.Reason = cmp.Or(text, fmt.Sprintf("UDP port %d is taken, and nothing is found that has it now", t.Port))
	e.Culprit = w.holder(t)
}

// holder returns a copy of the device that has the UDP port of another one for itself, or
// nil. The model must be locked.
func (w *Watcher) holder(t *Track) *Track {
	_, device := w.model.portHolder(t)
	if device == nil {
		return nil
	}
	copied := *device
	return &copied
}

// culprit returns a copy of the device in the way, or nil when none is known.
func (w *Watcher) culprit(e *Event) *Track {
	var others []Device
	if e.Name != "" {
		w.mu.Lock()
		space, known := w.model.Namespace(e.NetNS)
		w.mu.Unlock()
		if known {
			if d, ok := w.scanner.named(space, e.Name); ok {
				others = append(others, d)
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.model.CulpritOf(e, others)
	if t == nil {
		return nil
	}
	copied := *t
	return &copied
}

func reasonOf(e *Event, t *Track) string {
	state := "DOWN"
	if t.Up {
		state = "UP"
	}
	switch {
	case t.Name == e.Name && t.NetNS == e.NetNS && t.Kind != Kind:
		return fmt.Sprintf("a device of kind %q bears the name, %s", t.Kind, state)
	case t.Name == e.Name && t.NetNS == e.NetNS:
		return fmt.Sprintf("a device of that name exists already, %s", state)
	default:
		return fmt.Sprintf("VNI %d is taken by %q, %s", t.VNI, t.Name, state)
	}
}
