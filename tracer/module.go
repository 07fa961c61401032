package tracer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// A raw tracepoint's link holds a reference on the tracepoint's module: the module
// cannot be unloaded meanwhile. Therefore a source is suspended while nobody uses
// its module: its pinning links are closed, and its programs stay loaded. A kprobe,
// which holds no reference, sees the next mount and resumes the source. Until the
// tracepoints are attached again, bridge hooks see requests: kprobes at the functions
// that contain the tracepoints. Afterwards they would only cost time.

// pins tells whether the module of the hook's place cannot be unloaded while there
// is a link of this kind.
func (k hookKind) pins() bool { return k != kprobe && k != kretprobe }

// pinnedByProgram tells whether the program alone pins the module, even without a
// link.
func (k hookKind) pinnedByProgram() bool { return k == btfTracepoint || k == fentry || k == fexit }

// detach closes the link, if there is one.
func (a *attached) detach() error {
	if a.link == nil {
		return nil
	}
	err := a.link.Close()
	a.link = nil
	return err
}

// dropBridges detaches the hooks that are not needed while all others are attached.
func (o *object) dropBridges() error {
	var errs []error
	for i := range o.hooks {
		if o.hooks[i].bridge {
			errs = append(errs, o.hooks[i].detach())
		}
	}
	return errors.Join(append(errs, o.bridgesDown(1))...)
}

// bridgesDown notifies the programs whether bridge hooks are attached: 0 before the
// first one is, 1 after the last one was.
func (o *object) bridgesDown(down uint32) error {
	m := o.maps[bpf.NFSMapBridgesDown]
	if m == nil {
		return nil // a source without bridge hooks
	}
	return m.Put(uint32(0), down)
}

// attachAll attaches the detached hooks that pick wants, in their order: some programs
// must run behind others.
func (o *object) attachAll(pick func(hook) bool) error {
	var errs []error
	for i := range o.hooks {
		a := &o.hooks[i]
		if a.link != nil || !pick(a.hook) {
			continue
		}
		l, err := a.hook.link(a.program)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a.link = l
	}
	return errors.Join(errs...)
}

// suspend closes the links that pin modules.
func (o *object) suspend() error {
	errs := []error{o.bridgesDown(0), o.attachAll(func(h hook) bool { return h.bridge })}
	for i := range o.hooks {
		if o.hooks[i].kind.pins() {
			errs = append(errs, o.hooks[i].detach())
		}
	}
	o.suspended = true
	return errors.Join(errs...)
}

// resume attaches again what suspend has detached.
func (o *object) resume() error {
	err := o.attachAll(func(h hook) bool { return !h.bridge })
	if err == nil {
		err = o.dropBridges()
	}
	o.suspended, o.idleSince = false, time.Time{}
	return err
}

// suspendAfter is how long a module must be unused before its source is suspended:
// mounts that come and go in quick succession do not suspend it each time.
const suspendAfter = 5 * time.Second

// suspendIdle suspends the sources whose modules have been unused for a while.
func (t *Tracer) suspendIdle() {
	for _, d := range sources {
		if o := t.unused(d); o != nil && t.loadBridges(d, o) {
			t.suspend(d, o)
		}
	}
}

// unused returns the object of a source whose module has been unused for a while; nil
// if it is not, or is suspended already.
func (t *Tracer) unused(d descriptor) *object {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.objects[d.name]
	if t.detached || o == nil || d.idle == nil || o.suspended {
		return nil
	}
	if !d.idle(o) {
		o.idleSince = time.Time{}
		return nil
	}
	if o.idleSince.IsZero() {
		o.idleSince = time.Now()
	}
	if time.Since(o.idleSince) < suspendAfter {
		return nil
	}
	return o
}

// loadBridges loads and attaches the hooks that a suspended source needs, the first
// time. It returns false where that failed: the source must not be suspended then.
func (t *Tracer) loadBridges(d descriptor, o *object) bool {
	t.refreshing.Lock() // before t.mu, which nobody must hold for as long as loading takes
	defer t.refreshing.Unlock()
	if len(o.bridges) == 0 {
		return true
	}
	l, err := t.core.loader()
	if err != nil {
		return false
	}
	if err := o.bridgesDown(0); err != nil {
		return false
	}
	more, err := l.loadLate(d, o, o.bridges)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.opt.Log.Debug("cannot load the hooks that a suspended source needs", "source", d.name, "error", err)
		return false
	}
	o.bridges = nil
	if t.detached || t.objects[d.name] != o { // while they were loaded
		_ = more.Close()
		return false
	}
	_ = o.take(more)
	return true
}

func (t *Tracer) suspend(d descriptor, o *object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.detached || t.objects[d.name] != o || !d.idle(o) { // meanwhile
		return
	}
	if err := o.suspend(); err != nil {
		t.opt.Log.Warn("cannot suspend a source: its module cannot be unloaded", "source", d.name, "error", err)
	}
	t.opt.Log.Debug("source suspended: its module is unused", "source", d.name)
	if !d.idle(o) { // a mount came meanwhile
		t.resume(d.name, o)
	}
}

// mounting resumes a suspended source: something is being mounted.
func (t *Tracer) mounting(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.objects[source]; o != nil && o.suspended && !t.detached {
		t.resume(source, o)
	}
}

func (t *Tracer) resume(source string, o *object) {
	if err := o.resume(); err != nil {
		t.opt.Log.Warn("cannot resume a source: some of its I/O is not counted", "source", source, "error", err)
		return
	}
	t.opt.Log.Debug("source resumed", "source", source)
}

// await decides what happens to a source that could not be opened because of err. It
// returns true where its module is not loaded but may be later. A source that was asked
// for is prepared for that at once; prepareRest prepares the others.
func (t *Tracer) await(l *loader, d descriptor, err error) bool {
	var absent *notLoadedError
	if !errors.As(err, &absent) || !t.objects["core"].has(bpf.CoreProgIotModuleLoad) {
		return false
	}
	tree, terr := moduleTree()
	if terr != nil {
		t.opt.Log.Debug("cannot look for modules", "error", terr)
		return false
	}
	if never := mayLoad("/proc", tree, absent.module); never != nil {
		t.mu.Lock()
		t.absent[d.name] = fmt.Errorf("%w: %w", err, never)
		t.mu.Unlock()
		return false
	}
	t.mu.Lock()
	t.waiting[d.name] = nil
	t.mu.Unlock()
	if slices.Contains(t.opt.Sources, d.name) {
		t.opt.Log.Warn("source waits for its module to be loaded", "source", d.name, "module", absent.module)
		t.prepare(l, d)
	} else {
		t.unprepared = append(t.unprepared, d)
	}
	return true
}

// prepare prepares a source that waits for its module.
func (t *Tracer) prepare(l *loader, d descriptor) {
	p, err := l.prepare(d)
	if err != nil {
		// Its programs will be loaded after the module, which takes a moment.
		t.opt.Log.Debug("cannot load programs before the module", "source", d.name, "error", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[d.name] = p
}

// prepareRest prepares the sources that nobody asked for and whose modules are not loaded.
// That takes longer than all else of a start, so it is done while the first interval
// runs. A module that is loaded meanwhile comes first: its source is attached after it.
func (t *Tracer) prepareRest(ctx context.Context, l *loader) {
	for _, d := range t.unprepared {
		t.handleModules(ctx)
		if ctx.Err() != nil {
			return
		}
		if t.waits(d.name) {
			t.prepare(l, d)
		}
	}
	if len(t.unprepared) > 0 {
		debug.FreeOSMemory() // the kernel's types
		t.opt.Log.Debug("sources are ready for their modules")
	}
}

// waits tells whether a source waits for its module.
func (t *Tracer) waits(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.waiting[name]
	return ok
}

// arrived adds a source to those that are traced. The caller holds t.mu.
func (t *Tracer) arrived(d descriptor, o *object) {
	delete(t.absent, d.name)
	delete(t.waiting, d.name)
	t.objects[d.name] = o
	if err := o.dropBridges(); err != nil {
		t.opt.Log.Warn("cannot detach hooks that are not needed any more", "source", d.name, "error", err)
	}
	if t.detached { // while it was loaded
		for i := range o.hooks {
			_ = o.hooks[i].detach()
		}
	}
}

// moduleEvent says that a module was loaded or unloaded.
type moduleEvent struct {
	name  string
	freed bool
	found bool // nobody said so: it is there
}

// moduleEvents is a queue: adding never waits.
type moduleEvents struct {
	mu   sync.Mutex
	list []moduleEvent
	more chan struct{} // has an element while the list may have one
}

func newModuleEvents() *moduleEvents { return &moduleEvents{more: make(chan struct{}, 1)} }

func (q *moduleEvents) add(e moduleEvent) {
	q.mu.Lock()
	q.list = append(q.list, e)
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *moduleEvents) take() []moduleEvent {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.list
	q.list = nil
	return list
}

// followModules attaches and removes sources as their modules come and go.
func (t *Tracer) followModules(ctx context.Context) {
	for {
		select {
		case <-t.modules.more:
		case <-ctx.Done():
			return
		}
		t.handleModules(ctx)
	}
}

func (t *Tracer) handleModules(ctx context.Context) {
	for _, e := range t.modules.take() {
		if ctx.Err() != nil {
			return
		}
		if e.freed {
			t.moduleFreed(e.name)
		} else {
			t.moduleLoaded(e.name, e.found)
		}
	}
}

// lookForModules finds the modules that sources wait for and whose arrival nobody
// told us: notices may be lost. A module that is on its way in or out is not there
// yet, or not any more: its notice may still come.
func (t *Tracer) lookForModules() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range sources {
		if _, waits := t.waiting[d.name]; !waits || t.detached {
			continue
		}
		for _, m := range d.modules {
			state, err := os.ReadFile(filepath.Join(t.sysfs, "module", m, "initstate"))
			if err == nil && strings.TrimSpace(string(state)) == "live" {
				t.modules.add(moduleEvent{name: m, found: true})
			}
		}
	}
}

func (t *Tracer) moduleIsLoaded(name string) bool {
	return isDir(filepath.Join(t.sysfs, "module", name))
}

// moduleLoaded attaches the sources that waited for the module. Where it was found
// and not heard of, a source that could not be attached before is not tried again.
func (t *Tracer) moduleLoaded(name string, found bool) {
	if name == nfsdName && !found {
		if l, err := t.core.loader(); err == nil {
			t.findCopies(l)
		}
	}
	for _, d := range sources {
		if !t.opt.wants(d) || !slices.Contains(d.modules, name) {
			continue
		}
		t.mu.Lock()
		_, there := t.objects[d.name]
		p, waits := t.waiting[d.name]
		gone := !t.moduleIsLoaded(name) || t.detached // unloaded meanwhile: wait for the next time
		if !gone {
			delete(t.waiting, d.name)
		}
		t.mu.Unlock()
		if there || gone || found && !waits {
			continue
		}
		begin := time.Now()
		err := t.attachPrepared(d, p)
		how := "prepared"
		if err != nil {
			t.opt.Log.Debug("cannot attach the programs that were loaded before the module", "source", d.name, "error", err)
			how = "late"
			var l *loader
			if l, err = t.core.loader(); err == nil {
				err = t.openSource(l, d)
			}
		}
		if err != nil {
			t.opt.Log.Warn("cannot trace a source although its module is loaded now", "source", d.name, "module", name, "error", err)
		} else {
			t.opt.Log.Log(t.ctx, t.arrivalLevel(d.name), "source attached", "source", d.name, "module", name, "programs", how, "took", time.Since(begin))
		}
	}
}

// arrivalLevel is the level of the message that a source is traced now. It is a
// warning where a warning said before that the source's module is not loaded.
func (t *Tracer) arrivalLevel(source string) slog.Level {
	if slices.Contains(t.opt.Sources, source) {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// attachPrepared attaches what was prepared for a module that is loaded now.
func (t *Tracer) attachPrepared(d descriptor, p *prepared) error {
	if p == nil {
		return errors.New("nothing was prepared")
	}
	if !p.object.sums.holds(typesDir) {
		return errors.Join(errors.New("the loaded module differs from its file"), p.Close())
	}
	o, late, err := p.attach()
	if err != nil {
		return err
	}
	if len(late) > 0 {
		l, err := t.core.loader()
		if err != nil {
			return errors.Join(err, o.Close())
		}
		if err := l.attachLate(d, o, late); err != nil {
			return errors.Join(err, o.Close())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.arrived(d, o)
	return nil
}

// moduleFreed removes the sources of a module that was unloaded. It keeps their
// programs for the next time.
func (t *Tracer) moduleFreed(name string) {
	for _, d := range sources {
		if !slices.Contains(d.modules, name) {
			continue
		}
		t.mu.Lock()
		o := t.objects[d.name]
		if o != nil {
			delete(t.objects, d.name)
			t.absent[d.name] = &notLoadedError{name}
			t.waiting[d.name] = t.core.keepPrepared(d, o)
		}
		t.mu.Unlock()
		if o == nil {
			continue
		}
		if err := o.Close(); err != nil { // does nothing where everything was kept
			t.opt.Log.Debug("cannot close a source", "source", d.name, "error", err)
		}
		t.opt.Log.Info("module was unloaded: its source is not traced any more", "source", d.name, "module", name)
	}
}

// moduleUsers returns how many references a module has, without those of the
// modules that depend on it. ok is false where that cannot be told, as for a module
// that is built in.
func moduleUsers(sysfs, name string) (users int, ok bool) {
	dir := filepath.Join(sysfs, "module", name)
	data, err := os.ReadFile(filepath.Join(dir, "refcnt"))
	if err != nil {
		return 0, false
	}
	count, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, false
	}
	holders, err := os.ReadDir(filepath.Join(dir, "holders"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, false
	}
	for _, h := range holders {
		n, ok := moduleUsers(sysfs, h.Name())
		if !ok {
			return 0, false
		}
		count += n - 1
	}
	return count, true
}

// notLoadedError is the reason of a source that needs a module to be loaded.
type notLoadedError struct{ module string }

func (e *notLoadedError) Error() string { return fmt.Sprintf("module %q is not loaded", e.module) }

// Is makes it an ErrAbsent.
func (e *notLoadedError) Is(target error) bool { return target == ErrAbsent }
