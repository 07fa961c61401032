package vxlan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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

// WatchOptions configures a Watcher.
type WatchOptions struct {
	Scan    ScanOptions
	Grace   time.Duration // 0 means DefaultGrace
	Backend Backend
	// Hierarchy is the id of the cgroup hierarchy that owners are named in: that
	// of the v1 memory controller, or 0 for cgroup2.
	Hierarchy uint32
	// Skip leaves out the hooks whose names start with one of these
	// ("fentry/", "kprobe/call_netdevice").
	Skip []string
}

// notice is what a feed tells.
type notice struct {
	event   *Event
	link    *linkMessage
	dead    *int // the number of a namespace that died
	resync  bool // something was missed: look at everything again
	overrun bool
}

// feed is a source of notices.
type feed interface {
	run(ctx context.Context, out chan<- notice) error
	hooks() string
	cost() string
	lost() uint64
	close() error
}

// Watcher tells what happens to vxlan devices.
type Watcher struct {
	scanner *Scanner
	feeds   []feed
	grace   time.Duration
	spaces  *numbering
	why     error // why the hooks are not used
	// compares: lives are told by rtnetlink, where most events are differences from
	// the model, so that what a look puts into it must be told by the look.
	compares bool

	reported chan notice

	mu    sync.Mutex // guards model
	model *Model

	lastScan time.Time
	lastLost uint64
	failures int // looks at everything that failed in a row
	hasty    int // looks of this lossPeriod that did not wait for resyncPause
}

// NewWatcher attaches to the kernel, or to rtnetlink where hooks are refused,
// and looks at what is there. It must be closed.
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
	// Only now: what happens between the first look and the first event read
	// waits in the feed's buffer.
	if err := w.resync(func(Event) {}); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Hooks says what events come from.
func (w *Watcher) Hooks() string { return w.join(feed.hooks, ", ") }

// Cost says what is not known because of the choice of hooks; "" when nothing.
func (w *Watcher) Cost() string {
	cost := w.join(feed.cost, "; ")
	if !slices.ContainsFunc(w.feeds, func(f feed) bool { _, hooked := f.(*kernel); return hooked }) {
		cost += "; no refused creations"
	}
	return cost
}

func (w *Watcher) join(text func(feed) string, separator string) string {
	var list []string
	for _, f := range w.feeds {
		if s := text(f); s != "" {
			list = append(list, s)
		}
	}
	return strings.Join(list, separator)
}

// Fallback says why the kernel's hooks are not used; nil when they are.
func (w *Watcher) Fallback() error { return w.why }

// Lost counts the events that could not be delivered. Devices are looked at
// again after each loss, so that the state is right even so.
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

// Host is the inode number of the host's namespace.
func (w *Watcher) Host() uint64 { return w.scanner.Host() }

// Path is a way into a namespace; "" when none is known.
func (w *Watcher) Path(netNS uint64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	space, _ := w.model.Namespace(netNS)
	return space.Path
}

// Report makes Run handle an event that somebody else knows of, such as a
// refused creation that only the engine told.
func (w *Watcher) Report(ctx context.Context, e Event) { send(ctx, w.reported, notice{event: &e}) }

// Findings gives the verdicts on all devices now.
func (w *Watcher) Findings(networks []Network) []Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Judge(w.model, networks, time.Now(), w.grace)
}

// resyncPause is how long a look at everything waits for more reasons to look,
// and for the events on their way: what they tell must not seem newer than what
// was seen.
const resyncPause = 250 * time.Millisecond

// losses are looked for this often.
const lossPeriod = time.Second

// maxHasty bounds what somebody makes us do who has creations refused by the
// thousand.
const maxHasty = 8

// resync looks at everything again, and emits what it finds to have happened: the
// notices of that may still be on their way, and will then say nothing new.
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

// maxFailures is how often in a row a look may fail. On a host where devices come
// and go by the thousand the kernel's lists are not always consistent.
const maxFailures = 20

// failed gives the error once there were too many in a row.
func (w *Watcher) failed(err error) error {
	if w.failures++; w.failures < maxFailures {
		return nil
	}
	return fmt.Errorf("looking at all devices: %w", err)
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
	ripe := time.NewTimer(time.Hour)
	defer ripe.Stop()
	var hold time.Time   // before this nothing is called ripe again
	var late *time.Timer // a look that is due
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
		next := w.model.NextRipe(w.grace)
		w.mu.Unlock()
		switch {
		case next.IsZero():
			ripe.Reset(time.Hour)
		case next.Before(hold):
			ripe.Reset(time.Until(hold))
		default:
			ripe.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			running--
			if ctx.Err() != nil { // that is why
				return nil
			}
			return cmp.Or(err, errors.New("events ended"))
		case n := <-notices:
			if n.overrun {
				w.mu.Lock()
				for _, inode := range w.spaces.known {
					if Unreachable(inode) { // whether it still exists, nobody knows
						w.model.forget(inode)
					}
				}
				clear(w.spaces.known)
				w.model.Doubt(time.Now())
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
				w.model.Doubt(time.Now())
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
		case <-ripe.C:
			if err := w.ripen(emit); err != nil {
				if err := w.failed(err); err != nil {
					return err
				}
				hold = time.Now().Add(resyncPause)
			}
		}
	}
}

// ripen reports what has been down for the grace period. Whether it still is
// there is looked up first: a leak is never claimed from memory.
func (w *Watcher) ripen(emit func(Event)) error {
	if err := w.resync(emit); err != nil {
		return err
	}
	now := time.Now()
	w.mu.Lock()
	var events []Event
	for _, t := range w.model.Ripe(now, w.grace) {
		f := judge(w.model, t, nil, now, w.grace)
		e := Event{Time: now, Action: Leaked, Device: t.Device, Age: f.Down, Reason: f.Reason, Actor: t.Mover}
		events = append(events, e)
	}
	w.mu.Unlock()
	for _, e := range events {
		emit(e)
	}
	return nil
}

// take handles one notice; it returns whether everything is to be looked at.
func (w *Watcher) take(n notice, emit func(Event)) (resync bool) {
	var events []Event
	switch {
	case n.event != nil:
		events = []Event{*n.event}
	case n.link != nil:
		events = n.link.events(w.model, w.spaces)
	case n.dead != nil:
		// Its devices die with it, and nobody says so.
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
		if e.Action == Refused {
			w.accuse(e, emit)
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
		_ = w.resync(emit) // without a look the model alone answers
	}
	t := w.culprit(e)
	if t == nil && fresh && w.hasty < maxHasty && (e.Name != "" || e.VNI != 0) {
		// It may be younger than the last look, and not have been told of yet: feeds
		// know nothing of each other's order.
		w.hasty++
		_ = w.resync(emit)
		t = w.culprit(e)
	}
	if t != nil {
		e.Culprit = t
		e.Reason = reasonOf(e, t)
	} else if e.Reason == "" {
		e.Reason = "what is in the way lies in no namespace that can be reached"
	}
}

// culprit gives a copy of what is in the way, as far as it is known now.
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
