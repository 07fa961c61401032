package tracer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// ErrAbsent is in the reason why a source cannot be traced here: the kernel
// lacks its hooks, or its module is not loaded (yet).
var ErrAbsent = errors.New("not offered by this kernel")

// sources is the table of all sources: a new one is a line here, a file beside
// this one and one in bpf/.
var sources = []descriptor{
	{id: Block, name: "block", open: openBlock},
	{id: NFS, name: "nfs", modules: []string{"nfs"}, plan: planNFS, idle: nfsIdle},
	{id: FUSE, name: fuseName, modules: []string{"fuse"}, plan: planFUSE},
	{id: SMB, name: "smb", modules: []string{smbModule}, plan: planSMB},
	{id: P9, name: "9p", modules: []string{p9Module}, plan: plan9P},
	{id: Ceph, name: cephName, modules: []string{cephName}, plan: planCeph},
	{id: NFSD, name: nfsdName, modules: []string{"nfsd"}, plan: planNFSD, named: true},
}

// descriptor tells how a source is set up.
type descriptor struct {
	id      Source
	name    string
	modules []string // once one of these kernel modules is loaded, the source can be traced
	open    func(*loader) (*object, error)

	// plan replaces open for a source that may be a kernel module. With future
	// set, the module is not loaded yet and its file is read instead.
	plan func(h *loader, future bool) (*plan, error)

	named bool // traced only where Options.Sources names it: it counts bytes that other sources count as well

	idle func(*object) bool // whether the module is unused now; nil when that cannot be told
}

// plan is what to load and attach for a source.
type plan struct {
	spec    *ebpf.CollectionSpec
	signals []signal
	extra   ebpf.ProgramOptions
	sums    typesSum // of the type information that the plan was made with
}

// split separates the bridge hooks: while the module is in use nobody needs them.
func (p *plan) split() (now, bridges []signal) {
	for _, s := range p.signals {
		if s.hooks[0].bridge {
			bridges = append(bridges, s)
		} else {
			now = append(now, s)
		}
	}
	return now, bridges
}

// SourceNames returns the names of all sources, in the order of output.
func SourceNames() []string {
	names := make([]string, len(sources))
	for i, d := range sources {
		names[i] = d.name
	}
	return names
}

// hookKind is a way to attach a program.
type hookKind uint8

const (
	rawTracepoint hookKind = iota
	btfTracepoint
	tracepoint
	fentry
	fexit
	kprobe
	kretprobe
)

func (k hookKind) String() string {
	return [...]string{"raw_tp", "tp_btf", "tracepoint", "fentry", "fexit", "kprobe", "kretprobe"}[k]
}

// hook is one program at one place of the kernel.
type hook struct {
	kind    hookKind
	target  string // "function", "tracepoint", or "group/event" for tracepoint
	program string // a name constant of package bpf
	module  string // kprobe: the module of the function, where it is not the source's first
	entry   string // kretprobe: the program for the function's entry, attached as well
	active  int    // calls that a kretprobe can follow at once; 0 is the kernel's default
	latency bool   // a run that the kernel skips loses a latency and nothing else
	several bool   // the program is loaded once for several places, which are never detached alone
	note    bool   // a run that the kernel skips loses a note about who wrote a page and nothing else

	limitation Limitation // of this choice; zero when it sees everything
	// redundant hooks run behind another one at the same place and do the work of
	// the runs that the kernel skipped there: see the covered counter.
	redundant bool
	// bridge hooks stand in for tracepoints of a module while those are not attached:
	// see module.go. Status.Hooks leaves them out.
	bridge bool
	// shares hooks count no I/O: they keep shares for those that do, and exist only where
	// there is a journal. Status.Hooks leaves them out.
	shares bool
}

func (h hook) String() string { return h.kind.String() + "/" + h.target }

// signal is an event of the kernel that a source counts, with the hooks that
// can see it: the best one first, then its fallbacks.
type signal struct {
	hooks []hook
	// optional is the limitation of a source that does without the signal; zero
	// when the source needs it.
	optional Limitation
}

// redundant returns the signal of a program that does the work of those that the kernel
// skipped at the same tracepoint: see bpf/core/redundant.h. There is none where the
// kernel skips no program: see preempts. It must be attached behind the first program,
// because the kernel runs them in that order.
func redundant(preempts bool, hooks ...hook) []signal {
	if !preempts {
		return nil
	}
	for i := range hooks {
		hooks[i].redundant = true
	}
	return []signal{{hooks: hooks, optional: Limitation{Text: "a request is not counted when the kernel skips the program that counts it"}}}
}

// attached is a signal's hook in place.
type attached struct {
	hook
	program *ebpf.Program
	link    io.Closer
}

// object is a loaded BPF object: maps of its own and the hooks in place.
type object struct {
	maps        map[string]*ebpf.Map
	hooks       []attached
	limitations []Limitation
	sums        typesSum // of the modules' types that the programs were made for
	bridges     []signal // not loaded yet: nothing was suspended

	// refresh is called before totals are read; may be nil. It changes the object's
	// hooks and limitations only in functions that it passes to change.
	refresh func(change func(func())) error
	unseen  func() (uint64, error)          // counts the missed ends of requests, before hooks are detached; may be nil
	watch   func(ctx context.Context) error // runs while the object is attached; may be nil

	// See module.go.
	suspended bool      // some hooks are detached for now
	idleSince time.Time // since when the module is unused; zero while it is in use
}

// attachedAs returns the hook that has this program already; nil where none has.
func (o *object) attachedAs(h hook) *attached {
	i := slices.IndexFunc(o.hooks, func(a attached) bool {
		return h.several && a.hook.program == h.program
	})
	if i < 0 {
		return nil
	}
	return &o.hooks[i]
}

// linkAlso attaches the program of a hook at another place as well.
func (a *attached) linkAlso(target string) error {
	at := a.hook
	at.target = target
	l, err := at.link(a.program)
	if err != nil {
		return err
	}
	a.link = links{a.link, l}
	return nil
}

// links are those of one program.
type links []io.Closer

func (l links) Close() error {
	var errs []error
	for _, one := range l {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}

// Close detaches the hooks and frees the maps that are the object's own.
func (o *object) Close() error {
	var errs []error
	for _, a := range o.hooks {
		errs = append(errs, a.detach(), a.program.Close())
	}
	o.hooks = nil
	for _, m := range o.maps {
		errs = append(errs, m.Close())
	}
	o.maps = nil
	return errors.Join(errs...)
}

// has tells whether a program is in place.
func (o *object) has(program string) bool {
	return slices.ContainsFunc(o.hooks, func(a attached) bool { return a.hook.program == program })
}

func (o *object) addLimitation(l Limitation) {
	if l != (Limitation{}) && !slices.Contains(o.limitations, l) {
		o.limitations = append(o.limitations, l)
	}
}

// read reads an object with the programs of signals; all of them where there are none. The
// lines of C are for the verifier's log, which a log of level debug shows alone.
func (c *loader) read(o bpf.Object, signals []signal) (*ebpf.CollectionSpec, error) {
	var programs []string
	for _, s := range signals {
		for _, hk := range s.hooks {
			programs = append(programs, hk.program)
			if hk.entry != "" {
				programs = append(programs, hk.entry)
			}
		}
	}
	return o.Read(c.log.Enabled(context.Background(), slog.LevelDebug), programs...)
}

// load makes the object's maps, except those that it shares with the core, then
// for each signal loads and attaches the first hook that this kernel accepts.
func (c *loader) load(spec *ebpf.CollectionSpec, signals []signal, extra ebpf.ProgramOptions) (*object, error) {
	return c.loadInto(nil, spec, signals, extra)
}

// loadInto is load with the maps of an object that is there already.
func (c *loader) loadInto(into *object, spec *ebpf.CollectionSpec, signals []signal, extra ebpf.ProgramOptions) (*object, error) {
	programs, maps, err := c.makeMaps(into, spec)
	if err != nil {
		return nil, err
	}
	o := &object{maps: maps}
	if err := c.attachSignals(o, spec, programs, signals, extra); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// attachSignals loads and attaches, for each signal, the first hook that this kernel
// accepts.
func (c *loader) attachSignals(o *object, spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, signals []signal, extra ebpf.ProgramOptions) error {
	for _, s := range signals {
		if a := o.attachedAs(s.hooks[0]); a != nil { // the same program at another place
			if err := a.linkAlso(s.hooks[0].target); err != nil {
				c.log.Debug("optional hook not attached", "hook", s.hooks[0].String(), "error", err)
				o.addLimitation(s.optional)
			}
			continue
		}
		a, err := c.attachFirst(spec, programs, s, o.maps, extra)
		switch {
		case err == nil:
			o.hooks = append(o.hooks, a...)
			o.addLimitation(a[0].limitation)
		case s.optional != (Limitation{}):
			c.log.Debug("optional hook not attached", "hook", s.hooks[0].String(), "error", err)
			o.addLimitation(s.optional)
		default:
			return err
		}
	}
	return nil
}

// makeMaps makes the maps of an object, or takes them from an object that exists
// already. It takes the programs out of spec: each is loaded by itself.
func (c *loader) makeMaps(into *object, spec *ebpf.CollectionSpec) (map[string]*ebpf.ProgramSpec, map[string]*ebpf.Map, error) {
	if err := c.tune(spec); err != nil {
		return nil, nil, err
	}
	if m := spec.Maps[bpf.FUSEMapAppCalls]; m != nil && !c.opt.App {
		m.MaxEntries = 1
	}
	programs := spec.Programs
	spec.Programs = map[string]*ebpf.ProgramSpec{}
	opts := ebpf.CollectionOptions{MapReplacements: c.sharedIn(spec), Cache: c.cache}
	if into != nil {
		for name, m := range into.maps {
			if _, ok := c.shared[name]; !ok && !strings.HasPrefix(name, ".rodata") {
				opts.MapReplacements[name] = m
			}
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("making maps: %w", err)
	}
	return programs, coll.Maps, nil
}

func (c *loader) attachFirst(spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, s signal,
	maps map[string]*ebpf.Map, extra ebpf.ProgramOptions,
) ([]attached, error) {
	var errs []error
	for _, hk := range s.hooks {
		a, err := c.attachBoth(spec, programs, hk, maps, extra)
		if err == nil {
			return a, nil
		}
		c.log.Debug("the kernel refused a hook", "hook", hk.String(), "error", verbose(err))
		errs = append(errs, fmt.Errorf("%s: %w", hk, err))
	}
	return nil, errors.Join(errs...)
}

// attachBoth attaches a hook. Where the hook depends on a program at the
// function's entry, that one is attached first.
func (c *loader) attachBoth(spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, hk hook,
	maps map[string]*ebpf.Map, extra ebpf.ProgramOptions,
) ([]attached, error) {
	if hk.entry == "" {
		a, err := c.attach(spec, programs, hk, maps, extra)
		if err != nil {
			return nil, err
		}
		return []attached{*a}, nil
	}
	entry, err := c.attach(spec, programs, hook{kind: kprobe, target: hk.target, program: hk.entry}, maps, extra)
	if err != nil {
		return nil, err
	}
	a, err := c.attach(spec, programs, hk, maps, extra)
	if err != nil {
		entry.link.Close()
		entry.program.Close()
		return nil, err
	}
	return []attached{*a, *entry}, nil
}

func (c *loader) attach(spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, hk hook,
	maps map[string]*ebpf.Map, extra ebpf.ProgramOptions,
) (*attached, error) {
	if err := c.exists(hk); err != nil {
		return nil, err
	}
	start := time.Now()
	p, err := c.loadProgram(spec, programs, hk, maps, extra)
	if err != nil {
		return nil, err
	}
	loaded := time.Now()
	l, err := hk.link(p)
	if err != nil {
		p.Close()
		return nil, err
	}
	c.log.Debug("attached", "hook", hk.String(), "load", loaded.Sub(start), "attach", time.Since(loaded))
	return &attached{hook: hk, program: p, link: l}, nil
}

func (c *loader) loadProgram(spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, hk hook,
	maps map[string]*ebpf.Map, extra ebpf.ProgramOptions,
) (*ebpf.Program, error) {
	prog, ok := programs[hk.program]
	if !ok {
		return nil, fmt.Errorf("no program %q", hk.program)
	}
	p := *prog
	p.AttachTo = hk.target
	p.Instructions = cut(p.Instructions, c.opt.withoutFiles())
	one := &ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{}, Programs: map[string]*ebpf.ProgramSpec{hk.program: &p}, Variables: map[string]*ebpf.VariableSpec{},
		Types: spec.Types, ByteOrder: spec.ByteOrder,
	}
	used := map[string]*ebpf.Map{}
	for i := range p.Instructions {
		if ins := &p.Instructions[i]; ins.IsLoadFromMap() && ins.Reference() != "" {
			name := ins.Reference()
			one.Maps[name], used[name] = spec.Maps[name], maps[name]
		}
	}
	if one.Maps[seatSection] != nil { // each program has its own
		delete(used, seatSection)
		seat := spec.Variables[bpf.BlockVarSeat].Copy()
		if err := seat.Set(c.seats.of(hk)); err != nil {
			return nil, err
		}
		one.Variables[bpf.BlockVarSeat] = seat
	}
	extra.LogDisabled = false
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{
		MapReplacements: used,
		Programs:        extra,
		Cache:           c.cache,
	})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(hk.program), nil
}

// verbose adds the verifier's log to an error that has one.
func verbose(err error) string {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return fmt.Sprintf("%+v", ve)
	}
	return err.Error()
}

func (h hook) link(p *ebpf.Program) (link.Link, error) {
	switch h.kind {
	case rawTracepoint:
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: h.target, Program: p})
	case btfTracepoint, fentry, fexit:
		return link.AttachTracing(link.TracingOptions{Program: p})
	case tracepoint:
		group, event, _ := cutSlash(h.target)
		return link.Tracepoint(group, event, p, nil)
	case kprobe:
		return link.Kprobe(h.target, p, nil)
	case kretprobe:
		return link.Kretprobe(h.target, p, &link.KprobeOptions{RetprobeMaxActive: h.active})
	}
	return nil, fmt.Errorf("unknown kind of hook %d", h.kind)
}
