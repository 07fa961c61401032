package tracer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// prepared is a source whose module is not there: its programs are loaded, and
// nothing is attached. What a program may use of a module it gets as numbers, so
// that neither a raw tracepoint's nor a kprobe's needs the module itself.
type prepared struct {
	object *object // its maps
	ready  []readied
}

// readied is a signal with the programs of those hooks that could be loaded.
type readied struct {
	signal
	ways [][]attached // the best first; of several programs the first is the hook's own
	late bool         // it has hooks as well whose programs need the module
}

// preparable tells whether programs of this kind can be loaded before the module.
func (k hookKind) preparable() bool {
	return k == rawTracepoint || k == tracepoint || k == kprobe || k == kretprobe
}

// openSource loads and attaches a source whose module is there, or needs none.
func (h *host) openSource(d descriptor) (*object, error) {
	if d.open != nil {
		return d.open(h)
	}
	pl, err := d.plan(h, false)
	if err != nil {
		return nil, err
	}
	o, err := h.load(pl.spec, pl.signals, pl.extra)
	if err != nil {
		return nil, err
	}
	o.sums = pl.sums
	return o, nil
}

// prepare loads the programs of a source whose module is still to come.
func (h *host) prepare(d descriptor) (*prepared, error) {
	pl, err := d.plan(h, true)
	if err != nil {
		return nil, err
	}
	spec, extra := pl.spec, pl.extra
	programs, maps, err := h.makeMaps(nil, spec)
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
			way, err := h.loadWay(spec, programs, hk, maps, extra)
			if err != nil {
				h.log.Debug("hook not prepared", "hook", hk.String(), "error", verbose(err))
				errs = append(errs, fmt.Errorf("%s: %w", hk, err))
				continue
			}
			if !early {
				early = h.linkEarly(d.modules[0], way)
			}
			r.ways = append(r.ways, way)
		}
		if len(r.ways) == 0 && !r.late && s.optional == "" {
			p.Close()
			return nil, errors.Join(errs...)
		}
		p.ready = append(p.ready, r)
	}
	return p, nil
}

// linkEarly attaches a way before the module is there, where it is one that can be.
// Nothing is lost where it cannot: it is attached with the others then.
func (h *host) linkEarly(module string, way []attached) bool {
	a := &way[0]
	if len(way) != 1 || a.kind != kprobe {
		return false
	}
	k, err := newDelayedKprobe(h.tracefs, module, a.target, a.program)
	if err != nil {
		h.log.Debug("hook not attached early", "hook", a.hook.String(), "error", err)
		return false
	}
	a.link = k
	return true
}

// loadWay loads a hook's program, and the one for its function's entry.
func (h *host) loadWay(spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, hk hook,
	maps map[string]*ebpf.Map, extra ebpf.ProgramOptions,
) ([]attached, error) {
	prog, err := h.loadProgram(spec, programs, hk, maps, extra)
	if err != nil {
		return nil, err
	}
	way := []attached{{hook: hk, program: prog}}
	if hk.entry == "" {
		return way, nil
	}
	at := hook{kind: kprobe, target: hk.target, program: hk.entry}
	prog, err = h.loadProgram(spec, programs, at, maps, extra)
	if err != nil {
		way[0].program.Close()
		return nil, err
	}
	return append(way, attached{hook: at, program: prog}), nil
}

// attach attaches what is prepared, in the order of signals. It returns as well
// the signals that are left, whose programs need the module to be there. What it
// was called on is used up.
func (p *prepared) attach() (_ *object, late []signal, err error) {
	o := p.object
	for i, r := range p.ready {
		chosen := -1
		var errs []error
		for j, way := range r.ways {
			if err := linkWay(way); err != nil {
				errs = append(errs, err)
				continue
			}
			chosen = j
			break
		}
		switch {
		case chosen >= 0:
			o.hooks = append(o.hooks, r.ways[chosen]...)
			o.addCost(r.ways[chosen][0].cost)
			p.ready[i].ways[chosen] = nil // belongs to the object now
		case r.late:
			late = append(late, r.signal)
		case r.optional != "":
			o.addCost(r.optional)
		default:
			return nil, nil, errors.Join(append(errs, o.Close(), p.Close())...)
		}
	}
	p.object = &object{}
	return o, late, p.Close()
}

// linkWay attaches the programs of one hook, that of the entry before it.
func linkWay(way []attached) error {
	for i := len(way) - 1; i >= 0; i-- {
		if way[i].link != nil { // early
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

// again takes an object whose module went back to what it was before it came.
// It returns nil where a program of it cannot be attached a second time.
func (h *host) again(d descriptor, o *object) *prepared {
	p := &prepared{object: &object{maps: o.maps, costs: o.costs, sums: o.sums}}
	for i := 0; i < len(o.hooks); i++ {
		a := &o.hooks[i]
		if !a.kind.preparable() {
			return nil
		}
		if _, stays := a.link.(*delayedKprobe); !stays {
			_ = a.detach() // of a place that is gone
		}
		way := []attached{{hook: a.hook, program: a.program, link: a.link}}
		if a.entry != "" && i+1 < len(o.hooks) {
			i++
			_ = o.hooks[i].detach()
			way = append(way, attached{hook: o.hooks[i].hook, program: o.hooks[i].program})
		}
		if a.link == nil {
			h.linkEarly(d.modules[0], way)
		}
		p.ready = append(p.ready, readied{signal: signal{hooks: []hook{a.hook}}, ways: [][]attached{way}})
	}
	o.maps, o.hooks = nil, nil
	return p
}

// attachLate attaches to an object the signals that attach left.
func (h *host) attachLate(d descriptor, o *object, late []signal) error {
	pl, err := d.plan(h, false)
	if err != nil {
		return err
	}
	more, err := h.loadInto(o, pl.spec, late, pl.extra)
	if err != nil {
		return err
	}
	o.hooks = append(o.hooks, more.hooks...)
	for _, c := range more.costs {
		o.addCost(c)
	}
	more.hooks = nil // its maps are those of o
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
