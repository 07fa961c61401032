package tracer

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
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

// moduleFreed drops the sources whose module went.
func (t *Tracer) moduleFreed(name string) {
	for _, d := range sources {
		if !slices.Contains(d.modules, name) {
			continue
		}
		t.mu.Lock()
		o := t.objects[d.name]
		if o != nil {
			delete(t.objects, d.name)
			t.absent[d.name] = notLoaded(name)
		}
		t.mu.Unlock()
		if o == nil {
			continue
		}
		if err := o.Close(); err != nil {
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
