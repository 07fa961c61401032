package tracer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// A raw tracepoint's link holds a reference on the module that has it: as long
// as it is there, the module cannot be unloaded. So a source whose module nobody
// uses rests: its pinning links are closed, its programs stay loaded, and a
// kprobe, which holds no reference, tells when something is mounted.

// pins tells whether a link of this kind keeps the hook's module from being unloaded.
func (k hookKind) pins() bool { return k != kprobe && k != kretprobe }

// pinnedByProgram tells whether the program alone does so, link or no link.
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

// rest closes the links that pin modules.
func (o *object) rest() error {
	var errs []error
	for i := range o.hooks {
		if o.hooks[i].kind.pins() {
			errs = append(errs, o.hooks[i].detach())
		}
	}
	o.resting = true
	return errors.Join(errs...)
}

// wake attaches again what rest has detached, in the order of old: some programs
// must run behind others.
func (o *object) wake() error {
	var errs []error
	for i := range o.hooks {
		a := &o.hooks[i]
		if a.link != nil {
			continue
		}
		l, err := a.hook.link(a.program)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a.link = l
	}
	o.resting, o.idleSince = false, time.Time{}
	return errors.Join(errs...)
}

// restAfter is how long nobody may have used a module before its source rests:
// mounts that come and go do not find it asleep.
const restAfter = 5 * time.Second

// restIdle lets sources rest whose modules nobody has used for a while.
func (t *Tracer) restIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range sources {
		o := t.objects[d.name]
		if o == nil || d.idle == nil || o.resting {
			continue
		}
		if !d.idle(o) {
			o.idleSince = time.Time{}
			continue
		}
		if o.idleSince.IsZero() {
			o.idleSince = time.Now()
		}
		if time.Since(o.idleSince) < restAfter {
			continue
		}
		if err := o.rest(); err != nil {
			t.opt.Log.Warn("source not put to rest", "source", d.name, "error", err)
		}
		t.opt.Log.Debug("source rests: nobody uses its module", "source", d.name)
		if !d.idle(o) { // a mount came in between
			t.wake(d.name, o)
		}
	}
}

// mounting attaches a resting source again: something is being mounted.
func (t *Tracer) mounting(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.objects[source]; o != nil && o.resting {
		t.wake(source, o)
	}
}

func (t *Tracer) wake(source string, o *object) {
	if err := o.wake(); err != nil {
		t.opt.Log.Warn("source not attached again", "source", source, "error", err)
		return
	}
	t.opt.Log.Debug("source attached again", "source", source)
}

// await tells whether a source that could not be opened, because of err, will come
// with its module; if so it is prepared for that.
func (t *Tracer) await(d descriptor, err error) bool {
	var absent *notLoadedError
	if !errors.As(err, &absent) || !t.objects["host"].has(bpf.HostProgIotModuleLoad) {
		return false
	}
	tree, terr := moduleTree()
	if terr != nil {
		t.opt.Log.Debug("looking for modules", "error", terr)
		return false
	}
	if never := mayLoad("/proc", tree, absent.module); never != nil {
		t.mu.Lock()
		t.absent[d.name] = fmt.Errorf("%w: %w", err, never)
		t.mu.Unlock()
		return false
	}
	if slices.Contains(t.opt.Sources, d.name) {
		t.opt.Log.Warn("source waits for its module to be loaded", "source", d.name, "module", absent.module)
	}
	p, perr := t.host.prepare(d)
	if perr != nil {
		// It will be loaded when the module is there, which takes a moment.
		t.opt.Log.Debug("source not prepared", "source", d.name, "error", perr)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[d.name] = p
	return true
}

// waits tells whether a source will come with its module.
func (t *Tracer) waits(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.waiting[name]
	return ok
}

// arrived puts a source among those that are traced. t.mu is held.
func (t *Tracer) arrived(d descriptor, o *object) {
	delete(t.absent, d.name)
	delete(t.waiting, d.name)
	t.objects[d.name] = o
}

// moduleLoaded attaches the sources that waited for the module.
func (t *Tracer) moduleLoaded(name string) {
	for _, d := range sources {
		if !t.opt.wants(d.name) || !slices.Contains(d.modules, name) {
			continue
		}
		t.mu.Lock()
		_, there := t.objects[d.name]
		p := t.waiting[d.name]
		gone := !isDir(filepath.Join(sysfs, "module", name)) // again, before we heard: wait for the next time
		if !gone {
			delete(t.waiting, d.name)
		}
		t.mu.Unlock()
		if there || gone {
			continue
		}
		begin := time.Now()
		err := t.attachPrepared(d, p)
		how := "prepared"
		if err != nil {
			t.opt.Log.Debug("source not attached as prepared", "source", d.name, "error", err)
			err = t.openSource(d)
			how = "anew"
		}
		if err != nil {
			t.opt.Log.Warn("source not attached after its module was loaded", "source", d.name, "module", name, "error", err)
		} else {
			t.opt.Log.Log(t.ctx, t.arrivalLevel(d.name), "source attached", "source", d.name, "module", name, "programs", how, "took", time.Since(begin))
		}
		t.host.release()
	}
}

// arrivalLevel is a warning's where one said that the source is awaited.
func (t *Tracer) arrivalLevel(source string) slog.Level {
	if slices.Contains(t.opt.Sources, source) {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// attachPrepared attaches what was prepared for a module that is there now.
func (t *Tracer) attachPrepared(d descriptor, p *prepared) error {
	if p == nil {
		return errors.New("nothing was prepared")
	}
	if !p.object.sums.holds(typesDir) {
		return errors.Join(errors.New("the module is another one than its file"), p.Close())
	}
	o, late, err := p.attach()
	if err != nil {
		return err
	}
	if len(late) > 0 {
		if err := t.host.acquire(); err != nil {
			return errors.Join(err, o.Close())
		}
		if err := t.host.attachLate(d, o, late); err != nil {
			return errors.Join(err, o.Close())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.arrived(d, o)
	return nil
}

// moduleFreed takes the sources away whose module went, and keeps their programs
// for when it comes again.
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
			t.waiting[d.name] = t.host.again(d, o)
		}
		t.mu.Unlock()
		if o == nil {
			continue
		}
		if err := o.Close(); err != nil { // nothing, where all of it is kept
			t.opt.Log.Debug("closing a source", "source", d.name, "error", err)
		}
		t.opt.Log.Info("source gone with its module", "source", d.name, "module", name)
	}
}

// moduleUsers returns how many references there are on a module beside those of
// the modules that depend on it; ok is false where that cannot be told, as for
// one that is built in.
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

// notLoadedError is why a source is absent whose module is not loaded.
type notLoadedError struct{ module string }

func (e *notLoadedError) Error() string { return fmt.Sprintf("module %q is not loaded", e.module) }

// Is makes it one of the reasons that are no failure.
func (e *notLoadedError) Is(target error) bool { return target == ErrAbsent }
