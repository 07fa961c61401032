package tracer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// Options say what to trace and how. The zero value traces every source of the
// host, without latency.
type Options struct {
	Sources   []string // names; empty means all that the host has, but for nfsd
	Hierarchy int      // number of the cgroup hierarchy that names owners; 0 is cgroup2
	ByProcess bool     // fill Key.PID
	ByMount   bool     // fill Key.FSDev
	ByFile    bool     // rows may be kept by file: see Tracer.CountFiles
	Latency   bool
	App       bool           // count system calls as well: rows with Key.App
	Records   func([]Record) // called with most I/Os, in batches, from one goroutine; the slice is reused

	// LatencyOfRecords leaves latencies to the records: rows have none. It saves a
	// quarter of the time that an I/O with a record takes.
	LatencyOfRecords bool

	CgroupCreated func(id uint64, path string) // called from one goroutine
	CgroupRemoved func(id uint64, path string)

	MaxGroups  uint32 // distinct keys per interval that are kept apart; 0 means 16384
	RecordRing uint32 // bytes, a power of two; 0 means 8 MiB
	NoticeRing uint32 // bytes, a power of two; 0 means 1 MiB

	Step func(string) // called with what New does next; may be nil
	Log  *slog.Logger // nil discards

	inodeNoteBits, pageNoteBits uint32 // for tests of what happens when there is no room
	noFaults                    bool   // for tests: as where do_page_mkwrite cannot be hooked
	noJournals                  bool   // for a benchmark: keep no shares of journals
	maxFiles                    uint32 // likewise
}

// countsLatencies tells whether rows have latencies.
func (o *Options) countsLatencies() bool { return o.Latency && !o.LatencyOfRecords }

// noteBits returns the sizes of the maps of notes about who made pages dirty, in bits:
// bpf/core/note.h.
func (o *Options) noteBits() (inodes, pages uint32) {
	return cmp.Or(o.inodeNoteBits, 14), cmp.Or(o.pageNoteBits, 14)
}

func (o *Options) wants(d descriptor) bool {
	return len(o.Sources) == 0 && !d.named || slices.Contains(o.Sources, d.name)
}

// Status says how a source is traced, or why it is not.
type Status struct {
	Source      string
	Attached    bool
	Hooks       []string // as "kind/place", in the order in which they were attached
	Waiting     bool     // it will be attached when its module is loaded
	Reason      string   // why it is absent, in one line
	Limitations []Limitation
}

// Limitation is something that the chosen hooks cannot see.
type Limitation struct {
	Text   string // what is missed or counted less exactly
	Remedy string // what would lift it: kernel version or option, privilege, module; "" where nothing does
}

// Tracer is a set of attached programs.
type Tracer struct {
	opt  Options
	core *core

	mu       sync.Mutex // guards these four, and the hooks and limitations of objects: modules and devices come and go
	objects  map[string]*object
	absent   map[string]error
	waiting  map[string]*prepared // sources whose module may be loaded later; nil where nothing could be prepared
	detached bool                 // nothing is attached any more

	unprepared []descriptor // sources for prepareRest; not changed after the start

	sysfs      string
	modules    *moduleEvents
	refreshing sync.Mutex // held while sources look at devices and may load programs; taken before mu

	usage, latency doubleBuffer
	generation     uint32 // of the row cache that programs use
	caches         []bpf.CoreRowCache
	noCaches       []bpf.CoreRowCache // zeroes
	last           snapshot
	files          atomic.Pointer[files] // nil until files were asked for
	unseen         uint64                // missed ends of requests, found when the hooks were detached
	batches        []bpf.CoreRecordBatch
	flush          chan chan struct{} // asks for the records in the ring; nil unless somebody wants them
	begun          atomic.Uint64      // CLOCK_MONOTONIC at Begin, ns; 0 before: older records are not handed out
	notices        *ringbuf.Reader
	noticesFlush   chan chan struct{} // asks for the notices in the ring
	noticesEnd     chan struct{}      // closed when no notice is read any more

	ctx     context.Context // done when the tracer is closed
	stop    context.CancelFunc
	readers sync.WaitGroup
	memory  mapMemory
	closers []func() error
}

// New loads and attaches. It fails when no source can be traced, or when a source
// named in Options.Sources cannot be: with an *UnsupportedError where kernel or
// privileges are the cause. A source whose module is not loaded is no failure: it
// is attached as soon as the module is there. The caller calls Begin before the
// first Read.
func New(opt Options) (*Tracer, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.MaxGroups == 0 {
		opt.MaxGroups = 16384
	}
	if opt.RecordRing == 0 {
		opt.RecordRing = 8 << 20
	}
	if opt.NoticeRing == 0 {
		opt.NoticeRing = 1 << 20
	}
	for _, name := range opt.Sources {
		if !slices.Contains(SourceNames(), name) {
			return nil, fmt.Errorf("unknown source %q (known: %s)", name, strings.Join(SourceNames(), ", "))
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil { // needed until 5.11
		opt.Log.Debug("cannot raise the limit of locked memory", "error", err)
	}
	if opt.Step == nil {
		opt.Step = func(string) {}
	}
	opt.Step("reading the kernel's types")
	c := newCore(opt)
	l, err := c.loader()
	if err != nil {
		return nil, &UnsupportedError{
			What: "this kernel has no BTF type information",
			Hint: "/sys/kernel/btf/vmlinux is missing: use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
			Err:  err,
		}
	}
	c.preempting = l.preempts()
	c.allowRealTime()
	t := &Tracer{
		opt: opt, core: c, sysfs: sysfs, modules: newModuleEvents(),
		objects: map[string]*object{}, absent: map[string]error{}, waiting: map[string]*prepared{},
		noticesFlush: make(chan chan struct{}, 1), noticesEnd: make(chan struct{}),
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	coreObject, attach, err := l.open()
	if err != nil {
		t.stop()
		return nil, explain(err)
	}
	t.objects["core"] = coreObject
	if err := t.openAll(l, attach); err != nil {
		t.Close()
		return nil, err
	}
	if err := t.startReaders(t.ctx, l); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Devices returns the block devices of this host. While the block source is attached,
// they are looked at again only after a change.
func (t *Tracer) Devices() *Devices {
	if t.core.devices != nil {
		return t.core.devices
	}
	return NewDevices()
}

// openAll attaches everything: the core, which makes the notes, and then each source. Two
// goroutines must not load programs: the types of a module refer to those of the kernel,
// which cilium/ebpf 0.22 then decodes without a lock. The double buffers need no types, and
// the kernel waits long for each.
func (t *Tracer) openAll(l *loader, attachCore func() error) error {
	wanted := slices.DeleteFunc(slices.Clone(sources), func(d descriptor) bool { return !t.opt.wants(d) })
	var all sync.WaitGroup
	var buffers [2]error
	// Until these are there, rows are lost: all that is before Begin.
	all.Go(func() {
		t.usage, buffers[0] = newDoubleBuffer(t.core.totals[bpf.CoreMapUsageA], t.core.shared[bpf.CoreMapUsages], t.core.shared[bpf.CoreMapUsageA])
	})
	all.Go(func() {
		t.latency, buffers[1] = newDoubleBuffer(t.core.totals[bpf.CoreMapLatencyA], t.core.shared[bpf.CoreMapLatencies], t.core.shared[bpf.CoreMapLatencyA])
	})
	t.opt.Step("the kernel checks the programs that every source needs")
	err := attachCore()
	refused := make([]error, len(wanted))
	waits := make([]bool, len(wanted))
	for i, d := range wanted {
		if err != nil {
			break
		}
		t.opt.Step("the kernel checks the programs of source " + d.name)
		if refused[i] = t.openSource(l, d); refused[i] != nil {
			waits[i] = t.await(l, d, refused[i])
		}
	}
	all.Wait()
	t.closers = append(t.closers, t.usage.Close, t.latency.Close)
	if err := errors.Join(err, buffers[0], buffers[1]); err != nil {
		return explain(err)
	}
	t.findCopies(l)
	opened := 0
	for i, d := range wanted {
		if err := refused[i]; err != nil {
			if waits[i] {
				continue
			}
			if slices.Contains(t.opt.Sources, d.name) && len(d.modules) == 0 || !errors.Is(err, ErrAbsent) && len(t.opt.Sources) > 0 {
				return fmt.Errorf("source %q: %w", d.name, explain(err))
			}
			continue
		}
		opened++
	}
	var missing []error
	for _, name := range t.opt.Sources {
		if err := t.absent[name]; err != nil && !t.waits(name) {
			missing = append(missing, fmt.Errorf("source %q: %w", name, explain(err)))
		}
	}
	if len(missing) > 0 {
		return errors.Join(missing...)
	}
	if opened == 0 && !slices.ContainsFunc(t.opt.Sources, t.waits) {
		var errs []error
		for name, err := range t.absent {
			errs = append(errs, fmt.Errorf("source %q: %w", name, err))
		}
		return &UnsupportedError{What: "no source can be traced on this kernel", Hint: "iotrace-bpf --verbose shows what was tried", Err: errors.Join(errs...)}
	}
	return nil
}

func (t *Tracer) openSource(l *loader, d descriptor) error {
	o, err := l.openSource(d)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.opt.Log.Debug("source cannot be traced", "source", d.name, "error", err)
		t.absent[d.name] = err
		return err
	}
	t.arrived(d, o)
	if o.watch != nil {
		t.readers.Go(func() {
			if err := o.watch(t.ctx); err != nil {
				t.opt.Log.Debug("cannot watch devices", "source", d.name, "error", err)
			}
		})
	}
	return nil
}

// Status describes every source of Options.Sources.
func (t *Tracer) Status() []Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Status
	for _, d := range sources {
		if !t.opt.wants(d) {
			continue
		}
		s := Status{Source: d.name}
		if o := t.objects[d.name]; o != nil {
			s.Attached = true
			for _, a := range o.hooks {
				if name := a.hook.String(); !a.bridge && !a.shares && !slices.Contains(s.Hooks, name) { // some have two programs
					s.Hooks = append(s.Hooks, name)
				}
			}
			s.Limitations = append(slices.Clone(o.limitations), t.objects["core"].limitations...)
		} else if err := t.absent[d.name]; err != nil {
			_, s.Waiting = t.waiting[d.name]
			s.Reason = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		list = append(list, s)
	}
	return list
}

// countUnseen counts the missed ends of requests that no program will notice any more.
func (t *Tracer) countUnseen() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, o := range t.objects {
		if o.unseen == nil {
			continue
		}
		n, err := o.unseen()
		if err != nil {
			t.opt.Log.Debug("cannot count missed ends of requests", "source", name, "error", err)
		}
		t.unseen += n
	}
}

// detach removes all hooks, and no further ones are attached.
func (t *Tracer) detach() {
	t.refreshing.Lock()
	defer t.refreshing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.detached = true
	for _, o := range t.objects {
		for i := range o.hooks {
			_ = o.hooks[i].detach()
		}
	}
}

// Close detaches all hooks and frees programs and maps.
func (t *Tracer) Close() error {
	t.detach()
	t.stop()
	var errs []error
	for _, c := range t.closers {
		errs = append(errs, c())
	}
	t.readers.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.objects {
		for _, a := range o.hooks {
			errs = append(errs, a.program.Close())
		}
		for _, m := range o.maps {
			errs = append(errs, m.Close())
		}
	}
	t.objects = map[string]*object{}
	for _, p := range t.waiting {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	t.waiting = map[string]*prepared{}
	return errors.Join(errs...)
}

// attached returns every hook in place.
func (t *Tracer) attached() []attached {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []attached
	for _, o := range t.objects {
		list = append(list, o.hooks...)
	}
	return list
}

// Comm returns the name of a process that did I/O, also after its end; "" when it
// is not known. It needs Options.ByProcess.
func (t *Tracer) Comm(pid uint32) string {
	var c bpf.CoreComm
	if err := t.core.shared[bpf.CoreMapComms].Lookup(pid, &c); err == nil {
		name := make([]byte, 0, len(c.Name))
		for _, b := range c.Name {
			if b == 0 {
				break
			}
			name = append(name, byte(b))
		}
		return string(name)
	}
	name, err := os.ReadFile(commFile(pid))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(name, []byte("\n")))
}
