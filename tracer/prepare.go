package tracer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// prepared is a source whose module is not loaded yet: its programs are loaded and
// not attached. Programs of raw tracepoints and kprobes do not need the module for
// that: they get offsets in its structs as numbers.
type prepared struct {
	object *object // its maps
	ready  []readied
}

// readied is a signal with the programs that could be loaded.
type readied struct {
	signal
	ways [][]attached // one for each hook, the best first; then the program for the function's entry
	late bool         // some hooks have programs that need the module
}

// preparable tells whether programs of this kind can be loaded before the module.
func (k hookKind) preparable() bool {
	return k == rawTracepoint || k == tracepoint || k == kprobe || k == kretprobe
}

// openSource loads and attaches a source whose module is loaded, or that needs none.
func (c *loader) openSource(d descriptor) (*object, error) {
	if d.open != nil {
		return d.open(c)
	}
	pl, err := d.plan(c, false)
	if err != nil {
		return nil, err
	}
	now, bridges := pl.split()
	o, err := c.load(pl.spec, now, pl.extra)
	if err != nil {
		return nil, err
	}
	o.sums, o.bridges = pl.sums, bridges
	return o, nil
}

// prepare loads the programs of a source whose module is not loaded yet.
func (c *loader) prepare(d descriptor) (*prepared, error) {
	pl, err := d.plan(c, true)
	if err != nil {
		return nil, err
	}
	spec, extra := pl.spec, pl.extra
	programs, maps, err := c.makeMaps(nil, spec)
	if err != nil {
		return nil, err
	}
	p := &prepared{object: &object{maps: maps, sums: pl.sums}}
	for _, s := range pl.signals {
		r := readied{signal: s}
		var errs []error
		early := false
		for _, hk := range s.hooks {
			if !hk.kind.preparable() {
				r.late = true
				continue
			}
			way, err := c.loadWay(spec, programs, hk, maps, extra)
			if err != nil {
				c.log.Debug("cannot load a program before its module", "hook", hk.String(), "error", verbose(err))
				errs = append(errs, fmt.Errorf("%s: %w", hk, err))
				continue
			}
			if !early {
				early = c.linkEarly(d.modules[0], way)
			}
			r.ways = append(r.ways, way)
		}
		if len(r.ways) == 0 && !r.late && s.optional == (Limitation{}) {
			p.Close()
			return nil, errors.Join(errs...)
		}
		p.ready = append(p.ready, r)
	}
	return p, nil
}

// linkEarly attaches a kprobe before its module is loaded and reports whether it
// did. Where that fails, nothing is lost: the kprobe is attached with the others.
func (c *core) linkEarly(module string, way []attached) bool {
	a := &way[0]
	if len(way) != 1 || a.kind != kprobe {
		return false
	}
	if a.module != "" {
		module = a.module
	}
	k, err := newDelayedKprobe(c.tracefs, module, a.target, a.program)
	if err != nil {
		c.log.Debug("cannot attach a hook before its module is loaded", "hook", a.hook.String(), "error", err)
		return false
	}
	a.link = k
	return true
}

// loadWay loads a hook's program, and the one for its function's entry.
func (c *loader) loadWay(spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, hk hook,
	maps map[string]*ebpf.Map, extra ebpf.ProgramOptions,
) ([]attached, error) {
	prog, err := c.loadProgram(spec, programs, hk, maps, extra)
	if err != nil {
		return nil, err
	}
	way := []attached{{hook: hk, program: prog}}
	if hk.entry == "" {
		return way, nil
	}
	at := hook{kind: kprobe, target: hk.target, program: hk.entry}
	prog, err = c.loadProgram(spec, programs, at, maps, extra)
	if err != nil {
		way[0].program.Close()
		return nil, err
	}
	return append(way, attached{hook: at, program: prog}), nil
}

// attach attaches what is prepared, in the order of signals. It also returns the
// signals that are left: their programs need the loaded module. p must not be used
// afterwards.
func (p *prepared) attach() (_ *object, late []signal, err error) {
	o := p.object
	chosen, errs := make([]int, len(p.ready)), make([]error, len(p.ready))
	for i, r := range p.ready {
		chosen[i], errs[i] = r.link(0)
	}
	// After the others, because it takes a while: what was attached early counts already.
	for i, r := range p.ready {
		if n := chosen[i]; n >= 0 {
			if err := r.ways[n][0].verify(); err != nil {
				chosen[i], errs[i] = r.link(n + 1)
				errs[i] = errors.Join(err, errs[i])
			}
		}
	}
	for i, r := range p.ready {
		switch n := chosen[i]; {
		case n >= 0:
			o.hooks = append(o.hooks, r.ways[n]...)
			o.addLimitation(r.ways[n][0].limitation)
			p.ready[i].ways[n] = nil // owned by the object now
		case r.late:
			late = append(late, r.signal)
		case r.optional != (Limitation{}):
			o.addLimitation(r.optional)
		default:
			return nil, nil, errors.Join(errs[i], o.Close(), p.Close())
		}
	}
	p.object = &object{}
	return o, late, p.Close()
}

// link attaches the first of the ways, from one of them on, that can be attached, and
// returns which one: -1 for none of them, with the reasons.
func (r *readied) link(from int) (int, error) {
	var errs []error
	for n := from; n < len(r.ways); n++ {
		err := linkWay(r.ways[n])
		if err == nil {
			return n, nil
		}
		errs = append(errs, err)
	}
	return -1, errors.Join(errs...)
}

// verify detaches a probe that was attached before its module, and has no function there.
func (a *attached) verify() error {
	k, early := a.link.(*delayedKprobe)
	if !early {
		return nil
	}
	if err := k.verify(); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", a.hook, err), a.detach())
	}
	return nil
}

// linkWay attaches the programs of one hook: the one at the function's entry first.
func linkWay(way []attached) error {
	for i := len(way) - 1; i >= 0; i-- {
		if way[i].link != nil { // attached early
			continue
		}
		l, err := way[i].hook.link(way[i].program)
		if err != nil {
			for j := i + 1; j < len(way); j++ {
				_ = way[j].detach()
			}
			return fmt.Errorf("%s: %w", way[i].hook, err)
		}
		way[i].link = l
	}
	return nil
}

// keepPrepared turns an object whose module was unloaded back into a prepared one.
// It returns nil where one of its programs cannot be attached a second time.
func (c *core) keepPrepared(d descriptor, o *object) *prepared {
	p := &prepared{object: &object{maps: o.maps, limitations: o.limitations, sums: o.sums}}
	for i := 0; i < len(o.hooks); i++ {
		a := &o.hooks[i]
		if !a.kind.preparable() {
			return nil
		}
		if _, stays := a.link.(*delayedKprobe); !stays {
			_ = a.detach() // its place in the kernel is gone
		}
		way := []attached{{hook: a.hook, program: a.program, link: a.link}}
		if a.entry != "" && i+1 < len(o.hooks) {
			i++
			_ = o.hooks[i].detach()
			way = append(way, attached{hook: o.hooks[i].hook, program: o.hooks[i].program})
		}
		if a.link == nil {
			c.linkEarly(d.modules[0], way)
		}
		p.ready = append(p.ready, readied{signal: signal{hooks: []hook{a.hook}}, ways: [][]attached{way}})
	}
	o.maps, o.hooks = nil, nil
	return p
}

// attachLate attaches to an object the signals that attach left.
func (c *loader) attachLate(d descriptor, o *object, late []signal) error {
	more, err := c.loadLate(d, o, late)
	if err != nil {
		return err
	}
	return o.take(more)
}

// loadLate loads and attaches signals of a source with the maps of its object.
func (c *loader) loadLate(d descriptor, o *object, late []signal) (*object, error) {
	pl, err := d.plan(c, false)
	if err != nil {
		return nil, err
	}
	return c.loadInto(o, pl.spec, late, pl.extra)
}

// take adds hooks that were loaded with the object's own maps.
func (o *object) take(more *object) error {
	o.hooks = append(o.hooks, more.hooks...)
	for _, l := range more.limitations {
		o.addLimitation(l)
	}
	more.hooks = nil // owned by o now; the maps of more are handles of those of o
	return more.Close()
}

// Close frees the programs and maps.
func (p *prepared) Close() error {
	var errs []error
	for _, r := range p.ready {
		for _, way := range r.ways {
			for _, a := range way {
				errs = append(errs, a.detach(), a.program.Close())
			}
		}
	}
	p.ready = nil
	return errors.Join(append(errs, p.object.Close())...)
}
