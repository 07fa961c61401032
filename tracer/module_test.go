package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// sysModules makes a sysfs with modules: name to refcnt and holders.
func sysModules(t *testing.T, modules map[string][]string) string {
	t.Helper()
	root := t.TempDir()
	for name, m := range modules {
		dir := filepath.Join(root, "module", name)
		if err := os.MkdirAll(filepath.Join(dir, "holders"), 0o755); err != nil {
			t.Fatal(err)
		}
		if m[0] != "" {
			if err := os.WriteFile(filepath.Join(dir, "refcnt"), []byte(m[0]+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range m[1:] {
			if err := os.Symlink("../../"+h, filepath.Join(dir, "holders", h)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestModuleUsers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		modules map[string][]string
		users   int
		ok      bool
	}{
		{"absent", map[string][]string{}, 0, false},
		{"built in", map[string][]string{"nfs": {""}}, 0, false},
		{"loaded alone", map[string][]string{"nfs": {"0"}}, 0, true},
		{"our links", map[string][]string{"nfs": {"7"}}, 7, true},
		{"helpers, no mount", map[string][]string{"nfs": {"9", "nfsv3", "nfsv4"}, "nfsv3": {"0"}, "nfsv4": {"0"}}, 7, true},
		{"a mount of version 3", map[string][]string{"nfs": {"10", "nfsv3", "nfsv4"}, "nfsv3": {"1"}, "nfsv4": {"0"}}, 9, true},
		{"a helper's helper", map[string][]string{"nfs": {"1", "nfsv4"}, "nfsv4": {"1", "nfs_layout_nfsv41_files"}, "nfs_layout_nfsv41_files": {"0"}}, 0, true},
		{"a user behind a helper", map[string][]string{"nfs": {"1", "nfsv4"}, "nfsv4": {"1", "nfs_layout_nfsv41_files"}, "nfs_layout_nfsv41_files": {"1"}}, 1, true},
		{"no number", map[string][]string{"nfs": {"-"}}, 0, false},
		{"a helper that went", map[string][]string{"nfs": {"1", "nfsv4"}}, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			users, ok := moduleUsers(sysModules(t, tc.modules), "nfs")
			if users != tc.users || ok != tc.ok {
				t.Errorf("moduleUsers: %d, %v, want %d, %v", users, ok, tc.users, tc.ok)
			}
		})
	}
}

// TestSuspendAndResume takes a program off its raw tracepoint and puts it back.
func TestSuspendAndResume(t *testing.T) {
	calls := counter(t)
	prog := countingProgram(t, calls)
	hk := hook{kind: rawTracepoint, target: "sys_enter"}
	l, err := hk.link(prog)
	if err != nil {
		t.Fatal(err)
	}
	o := &object{hooks: []attached{{hook: hk, program: prog, link: l}}}
	defer o.Close()
	counted := func() bool {
		var before, after uint64
		if err := calls.Lookup(uint32(0), &before); err != nil {
			t.Fatal(err)
		}
		os.Getppid()
		if err := calls.Lookup(uint32(0), &after); err != nil {
			t.Fatal(err)
		}
		return after > before
	}
	if !counted() {
		t.Fatal("the program does not run when attached")
	}
	if err := o.suspend(); err != nil {
		t.Fatal(err)
	}
	if !o.suspended || counted() {
		t.Errorf("suspended %v, and the program runs: %v", o.suspended, counted())
	}
	if err := o.resume(); err != nil {
		t.Fatal(err)
	}
	if o.suspended || !counted() {
		t.Errorf("resumed, suspended %v, and the program runs: %v", o.suspended, counted())
	}
}

func TestSuspendKeepsKprobes(t *testing.T) {
	for kind, want := range map[hookKind]bool{
		rawTracepoint: true, btfTracepoint: true, tracepoint: true, fentry: true, fexit: true, kprobe: false, kretprobe: false,
	} {
		if got := kind.pins(); got != want {
			t.Errorf("%s pins its module: %v, want %v", kind, got, want)
		}
	}
}

// modular returns a tracer that waits for modules, and no programs. Each source of
// these names has a module of its own name; open opens them.
func modular(t *testing.T, open func(name string) (*object, error), names ...string) *Tracer {
	t.Helper()
	was := sources
	t.Cleanup(func() { sources = was })
	opt := Options{Log: slog.New(slog.DiscardHandler)}
	tr := &Tracer{
		opt: opt, core: &core{opt: opt, log: opt.Log}, sysfs: t.TempDir(), modules: newModuleEvents(),
		objects: map[string]*object{"core": {}}, absent: map[string]error{}, waiting: map[string]*prepared{},
	}
	tr.ctx, tr.stop = context.WithCancel(context.Background())
	sources = nil
	for _, name := range names {
		sources = append(sources, descriptor{name: name, modules: []string{name}, open: func(*loader) (*object, error) { return open(name) }})
		tr.waiting[name], tr.absent[name] = nil, &notLoadedError{name}
	}
	tr.readers.Go(func() { tr.followModules(tr.ctx) })
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// insert shows a module in the sysfs of a tracer of modular.
func insert(t *testing.T, tr *Tracer, module, state string) {
	t.Helper()
	dir := filepath.Join(tr.sysfs, "module", module)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initstate"), []byte(state+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func noticeOf(kind uint32, text string) []byte {
	b := make([]byte, 16, 16+len(text)+1)
	binary.NativeEndian.PutUint32(b[8:], kind)
	binary.NativeEndian.PutUint32(b[12:], uint32(len(text)+1))
	return append(append(b, text...), 0)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("not within 30 s: " + what)
		}
	}
}

func attachedSources(tr *Tracer) (names []string) {
	for _, s := range tr.Status() {
		if s.Attached {
			names = append(names, s.Source)
		}
	}
	return names
}

// TestModuleWhilePreparing: a module that is loaded while sources are prepared is not kept
// waiting for those that come after it.
func TestModuleWhilePreparing(t *testing.T) {
	var order []string
	tr := modular(t, func(name string) (*object, error) {
		order = append(order, "attached "+name)
		return &object{}, nil
	}, "first", "second", "third")
	for i := range sources {
		d := &sources[i]
		d.plan = func(*loader, bool) (*plan, error) {
			order = append(order, "prepared "+d.name)
			if d.name == "first" {
				insert(t, tr, "third", "live")
				tr.notice(noticeOf(noticeModuleLoaded, "third"))
			}
			return nil, errors.New("no programs here")
		}
	}
	tr.stop() // the goroutine that follows modules; this one does its work
	tr.readers.Wait()
	tr.unprepared = slices.Clone(sources)
	tr.prepareRest(t.Context(), &loader{core: tr.core})
	if want := []string{"prepared first", "attached third", "prepared second"}; !slices.Equal(order, want) {
		t.Errorf("%q, want %q", order, want)
	}
	if !tr.waits("first") || !tr.waits("second") || tr.waits("third") {
		t.Error("the sources that were not attached wait, and no other")
	}
}

// TestModuleUnheard: a module whose notice was lost is found when totals are read. A
// source that could not be attached then is not tried again for each report.
func TestModuleUnheard(t *testing.T) {
	tries := make(chan string, 100)
	tr := modular(t, func(name string) (*object, error) {
		tries <- name
		if name == "broken" {
			return nil, errors.New("no")
		}
		return &object{}, nil
	}, "here", "broken", "leaving", "never")
	tr.lookForModules()
	insert(t, tr, "here", "live")
	insert(t, tr, "broken", "live")
	insert(t, tr, "leaving", "going")
	tr.lookForModules()
	tr.lookForModules() // before the first is done
	eventually(t, "the module is found", func() bool { return slices.Equal(attachedSources(tr), []string{"here"}) && !tr.waits("broken") })
	tr.lookForModules()
	tr.notice(noticeOf(noticeModuleLoaded, "here")) // heard after all
	eventually(t, "all is done", func() bool { return len(tr.modules.more) == 0 })
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	close(tries)
	var tried []string
	for name := range tries {
		tried = append(tried, name)
	}
	if slices.Sort(tried); !slices.Equal(tried, []string{"broken", "here"}) {
		t.Errorf("tried %v", tried)
	}
}

// TestNoticesWhileLoading: a source takes its time to load, and notices are read.
func TestNoticesWhileLoading(t *testing.T) {
	loading, loaded := make(chan struct{}), make(chan struct{})
	tr := modular(t, func(string) (*object, error) {
		close(loading)
		<-loaded
		return &object{}, nil
	}, "slow")
	finish := sync.OnceFunc(func() { close(loaded) })
	defer finish()
	var paths []string
	tr.opt.CgroupCreated = func(_ uint64, path string) { paths = append(paths, path) }
	resumed := &object{suspended: true}
	tr.objects["other"] = resumed
	// So does one that a device needs: see stack.attachBios.
	refreshing := make(chan struct{})
	tr.objects["device"] = &object{refresh: func(change func(func())) error {
		close(refreshing)
		<-loaded
		change(func() { tr.objects["device"].addLimitation(Limitation{Text: "late"}) })
		return nil
	}}
	insert(t, tr, "slow", "live")
	read := make(chan struct{})
	go func() {
		defer close(read)
		tr.notice(noticeOf(noticeModuleLoaded, "slow"))
		<-loading
		go tr.refresh()
		<-refreshing
		tr.notice(noticeOf(noticeCgroupCreated, "/new"))
		tr.notice(noticeOf(noticeMounting, "other"))
		tr.notice(noticeOf(noticeModuleFreed, "slow"))
	}()
	select {
	case <-read:
	case <-time.After(30 * time.Second):
		t.Fatal("notices wait for a source that is being loaded")
	}
	if !slices.Equal(paths, []string{"/new"}) || resumed.suspended {
		t.Errorf("cgroups %q; the other source is suspended: %v", paths, resumed.suspended)
	}
	if got := attachedSources(tr); got != nil {
		t.Errorf("attached while it is being loaded: %v", got)
	}
	finish()
	// In the order in which they came: loaded, then freed.
	eventually(t, "the source waits again", func() bool { return tr.waits("slow") && len(tr.modules.more) == 0 })
}

// TestArrivedDetached: what was being loaded while everything was detached does not
// stay attached.
func TestArrivedDetached(t *testing.T) {
	tr := modular(t, nil, "late")
	tr.detach()
	l := &closeCounter{}
	tr.mu.Lock()
	tr.arrived(sources[0], &object{hooks: []attached{{link: l}}})
	tr.objects["late"].hooks = nil // there is no program to close
	tr.mu.Unlock()
	if l.n != 1 {
		t.Errorf("closed %d times", l.n)
	}
}

type closeCounter struct{ n int }

func (c *closeCounter) Close() error {
	c.n++
	return nil
}

// TestLoadersApart: loads at the same time do not share the kernel's types, which go
// when a load is done.
func TestLoadersApart(t *testing.T) {
	c := &core{log: slog.New(slog.DiscardHandler)}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			l, err := c.loader()
			if err != nil {
				t.Error(err)
				return
			}
			if !l.haveFunc("vfs_read") || l.tracepointArgs("block_rq_issue") == 0 {
				t.Error("the kernel's types do not have what every kernel has")
			}
			if err := l.tune(&ebpf.CollectionSpec{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
