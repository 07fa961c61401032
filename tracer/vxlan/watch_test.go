package vxlan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// stream is a running watcher whose events a test reads one by one.
type stream struct {
	t      *testing.T
	w      *Watcher
	events chan Event
	seen   []Event
}

func watch(t *testing.T, opts WatchOptions, change ...func(*Watcher)) *stream {
	t.Helper()
	w, err := NewWatcher(opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(w)
	}
	s := &stream{t: t, w: w, events: make(chan Event, 8192)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, func(e Event) { s.events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, w.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// next waits for the first event that ok accepts.
func (s *stream) next(what string, ok func(e Event) bool) Event {
	s.t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case e := <-s.events:
			s.seen = append(s.seen, e)
			if ok(e) {
				return e
			}
		case <-deadline:
			s.t.Fatalf("no event %q; seen: %s", what, s.list())
		}
	}
}

func (s *stream) list() string {
	var b strings.Builder
	for _, e := range s.seen {
		fmt.Fprintf(&b, "\n%s %+v old %q to %d/%d culprit %+v", e.Action, e.Device, e.OldName, e.ToNetNS, e.ToIfindex, e.Culprit)
	}
	return b.String()
}

func action(a Action) func(Event) bool { return func(e Event) bool { return e.Action == a } }

// TestModelTellsNews: what a look finds to have happened is told, and what it may
// have been like for long is not.
func TestModelTellsNews(t *testing.T) {
	const host, other, late = 100, 200, 300
	start := time.Unix(1000, 0)
	dev := func(netNS uint64, index int, name string, up bool) Device {
		return Device{Name: name, Kind: Kind, Ifindex: index, NetNS: netNS, Underlay: host, VNI: uint32(index), Port: 4789, Up: up}
	}
	m := NewModel(host)
	look := func(at time.Time, devices ...Device) []Event {
		snap := &Snapshot{Time: at, Host: host, Namespaces: map[uint64]Namespace{host: {Inode: host}, other: {Inode: other}}, Devices: devices}
		for _, d := range devices {
			snap.Namespaces[d.NetNS] = Namespace{Inode: d.NetNS}
		}
		return m.Update(snap)
	}
	if news := look(start, dev(host, 2, "a", false), dev(host, 3, "b", true), dev(host, 4, "c", true)); len(news) != 0 {
		t.Errorf("the first look tells of %+v", news)
	}
	// One is new, one was renamed and went UP, one went DOWN, one moved, and one is
	// in a namespace that was not read before.
	now := start.Add(time.Second)
	news := look(now, dev(host, 2, "A", true), dev(host, 3, "b", false), dev(other, 4, "c", true), dev(host, 5, "new", false), dev(late, 6, "old", true))
	want := []Event{
		{Time: now, Action: Renamed, Device: dev(host, 2, "A", false), OldName: "a", Age: time.Second},
		{Time: now, Action: WentUp, Device: dev(host, 2, "A", true), Age: time.Second},
		{Time: now, Action: Down, Device: dev(host, 3, "b", false), Age: time.Second},
		{Time: now, Action: Created, Device: dev(host, 5, "new", false)},
	}
	if fmt.Sprintf("%+v", news) != fmt.Sprintf("%+v", want) {
		t.Errorf("the second look tells of\n%+v, want\n%+v", news, want)
	}
	if news := look(now, dev(host, 2, "A", true), dev(host, 3, "b", false), dev(other, 4, "c", true), dev(host, 5, "new", false), dev(late, 6, "old", true)); len(news) != 0 {
		t.Errorf("nothing happened: %+v", news)
	}
}

// TestLookComesFirst: a look may see what happened before its notice is read. Then
// the look tells of it, and the notice does not tell it again.
func TestLookComesFirst(t *testing.T) {
	host, other, hidden, dir := newSpace(t), newSpace(t), newSpace(t), t.TempDir()
	other.bind(dir, "3f29e1c7a0bd")
	w, err := NewWatcher(WatchOptions{Scan: scanOptions(host, dir, t.TempDir()), Backend: Netlink})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	notices, ended := make(chan notice, 4096), make(chan error, 1)
	go func() { ended <- w.feeds[0].run(ctx, notices) }()
	defer func() {
		cancel()
		host.must(errors.Join(<-ended, w.Close()))
	}()
	const name = "vx-001001-m64nq"
	look := func(emit func(Event)) { host.must(w.resync(emit)) }
	for i, step := range []struct {
		what  string
		do    func()
		look  func(emit func(Event))
		found []Action // by the look
		told  []Action // by notices
	}{
		{"created", func() { host.vxlan(name, 4097, 4789) }, look, []Action{Created}, nil},
		{"renamed", func() { host.rename(name, "vx-001001-other") }, look, []Action{Renamed}, nil},
		{"UP", func() { host.up("vx-001001-other") }, func(emit func(Event)) { host.must(w.expire(emit)) }, []Action{WentUp}, nil},
		{"DOWN", func() { host.down("vx-001001-other") }, func(emit func(Event)) {
			w.lastScan = time.Time{}
			w.take(notice{event: &Event{Action: Refused, Device: Device{NetNS: host.inode, VNI: 77}}}, emit)
		}, []Action{Down, Refused}, nil},
		{"moved", func() { host.move("vx-001001-other", other) }, look, nil, []Action{Moved}},
		{"deleted", func() { other.del("vx-001001-other") }, look, nil, []Action{Deleted}},
		{"created again", func() { host.vxlan(name, 4098, 4789) }, look, []Action{Created}, nil},
		{"moved where no path leads", func() { host.move(name, hidden) }, look, nil, []Action{Moved}},
		{"renamed where a path leads now", func() {
			hidden.rename(name, "vxlan0")
			hidden.bind(dir, "1-m64nqtdens")
		}, look, []Action{Renamed}, nil},
	} {
		var found, told []Action
		step.do()
		step.look(func(e Event) { found = append(found, e.Action) })
		if !slices.Equal(found, step.found) {
			t.Errorf("%s: the look tells %v, want %v", step.what, found, step.found)
		}
		// All notices of the step come before those of the next device.
		last := fmt.Sprintf("last%d", i)
		host.vxlan(last, i+1, 4789)
		for done := false; !done; {
			w.take(<-notices, func(e Event) {
				if done = done || e.Name == last; !done {
					told = append(told, e.Action)
				}
			})
		}
		if !slices.Equal(told, step.told) {
			t.Errorf("%s: notices tell %v, want %v", step.what, told, step.told)
		}
	}
}

// TestCulpritYoungerThanTheLook: what a creation collided with is found although it
// came after the last look, and its own notice was not read yet.
func TestCulpritYoungerThanTheLook(t *testing.T) {
	host := newSpace(t)
	w, err := NewWatcher(WatchOptions{Scan: scanOptions(host, t.TempDir(), t.TempDir()), Backend: Netlink})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { host.must(w.Close()) }()
	index := host.vxlan("first", 4097, 4789)
	refuse := func(d Device) (got Event) {
		d.NetNS, w.lastScan = host.inode, time.Now()
		w.take(notice{event: &Event{Action: Refused, Device: d}}, func(e Event) { got = e })
		return got
	}
	if e := refuse(Device{Name: "second", VNI: 4097}); e.Culprit == nil || e.Culprit.Ifindex != index {
		t.Errorf("culprit %+v, %s", e.Culprit, e.Reason)
	}
	for range 2 * maxHasty { // each of them in vain
		refuse(Device{Name: "third", VNI: 77})
	}
	if w.hasty != maxHasty {
		t.Errorf("%d looks that did not wait, want %d", w.hasty, maxHasty)
	}
}

// deaf hears no notice but that something was missed.
type deaf struct {
	feed
	missed chan struct{}
}

func (d deaf) run(ctx context.Context, out chan<- notice) error {
	for {
		select {
		case <-d.missed:
			send(ctx, out, notice{resync: true})
		case <-ctx.Done():
			return nil
		}
	}
}

// TestWatchTellsWhatItMissed: after a loss a running watch tells what came meanwhile.
func TestWatchTellsWhatItMissed(t *testing.T) {
	host := newSpace(t)
	missed := make(chan struct{})
	s := watch(t, WatchOptions{Scan: scanOptions(host, t.TempDir(), t.TempDir()), Backend: Netlink},
		func(w *Watcher) { w.feeds[0] = deaf{w.feeds[0], missed} })
	host.vxlan("vx-001001-m64nq", 4097, 4789)
	missed <- struct{}{}
	if e := s.next("created", action(Created)); e.Name != "vx-001001-m64nq" || e.NetNS != host.inode || e.Time.IsZero() {
		t.Errorf("created: %+v", e)
	}
}

// TestWatchByNetlink follows one device through its life as Docker gives it.
func TestWatchByNetlink(t *testing.T) {
	host, overlay, dir := newSpace(t), newSpace(t), t.TempDir()
	overlay.bind(dir, "1-m64nqtdens")
	s := watch(t, WatchOptions{Scan: scanOptions(host, dir, t.TempDir()), Backend: Netlink})
	if s.w.Hooks() != "rtnetlink" || len(s.w.Limitations()) == 0 || s.w.Fallback() != nil {
		t.Errorf("hooks %q, limitations %q, fallback %v", s.w.Hooks(), s.w.Limitations(), s.w.Fallback())
	}

	const name = "vx-001001-m64nq"
	index := host.vxlan(name, 4097, 4789)
	host.move(name, overlay)
	overlay.rename(name, "vxlan0")
	overlay.up("vxlan0")
	overlay.down("vxlan0")
	overlay.rename("vxlan0", name)
	overlay.move(name, host)
	host.rename(name, "vx-001001-other")
	host.del("vx-001001-other")

	in := func(s *space, name string, up bool) Device {
		return Device{
			Name: name, Kind: Kind, Ifindex: index, NetNS: s.inode, Underlay: host.inode, VNI: 4097, Port: 4789, Up: up,
		}
	}
	s.next("deleted", action(Deleted))
	want := []Event{
		{Action: Created, Device: in(host, name, false)},
		{Action: Moved, Device: in(host, name, false), ToNetNS: overlay.inode, ToIfindex: index},
		{Action: Renamed, Device: in(overlay, "vxlan0", false), OldName: name},
		{Action: WentUp, Device: in(overlay, "vxlan0", true)},
		{Action: Down, Device: in(overlay, "vxlan0", false)},
		{Action: Renamed, Device: in(overlay, name, false), OldName: "vxlan0"},
		{Action: Moved, Device: in(overlay, name, false), ToNetNS: host.inode, ToIfindex: index},
		{Action: Renamed, Device: in(host, "vx-001001-other", false), OldName: name},
		{Action: Deleted, Device: in(host, "vx-001001-other", false)},
	}
	if len(s.seen) != len(want) {
		t.Fatalf("%d events, want %d: %s", len(s.seen), len(want), s.list())
	}
	for i, e := range s.seen {
		if e.Time.IsZero() || time.Since(e.Time) > time.Hour {
			t.Errorf("event %d is of %v", i, e.Time)
		}
		e.Time, e.Age = time.Time{}, 0
		if !equal(e, want[i]) {
			t.Errorf("event %d is %+v, want %+v", i, e, want[i])
		}
	}
	if lost := s.w.Lost(); lost != 0 {
		t.Errorf("%d events lost", lost)
	}
}

func equal(a, b Event) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

func TestWatchReportsLeakOnce(t *testing.T) {
	host := newSpace(t)
	host.vxlan("vx-001001-m64nq", 4097, 4789)
	host.vxlan("flannel.1", 1, 8472)
	s := watch(t, WatchOptions{Scan: scanOptions(host, t.TempDir(), t.TempDir()), Backend: Netlink, Grace: testGrace})
	e := s.next("leaked", action(Leaked))
	if e.Name != "vx-001001-m64nq" || e.Age < testGrace || e.Reason == "" || e.NetNS != host.inode || e.VNI != 4097 {
		t.Errorf("leaked: %+v", e)
	}
	// A second one is reported, the first is not again, the foreign one never.
	host.vxlan("vx-001002-m64nq", 4098, 4789)
	s.next("leaked", func(e Event) bool { return e.Action == Leaked && e.Name == "vx-001002-m64nq" })
	host.up("vx-001001-m64nq")
	host.down("vx-001001-m64nq")
	s.next("leaked again, after it was UP", func(e Event) bool { return e.Action == Leaked && e.Name == "vx-001001-m64nq" })
	leaks := slices.DeleteFunc(slices.Clone(s.seen), func(e Event) bool { return e.Action != Leaked })
	if len(leaks) != 3 {
		t.Errorf("%d leaks reported, want 3: %s", len(leaks), s.list())
	}
}

// TestWatchSeesNamespaceDie: what lay in it is told to be deleted, whether a
// path leads to the namespace or not, and the watch does not keep it alive.
func TestWatchSeesNamespaceDie(t *testing.T) {
	for label, bound := range map[string]bool{"reachable": true, "unreachable": false} {
		t.Run(label, func(t *testing.T) {
			host, other, dir := newSpace(t), newSpace(t), t.TempDir()
			host.t = t
			if bound {
				other.bind(dir, "3f29e1c7a0bd")
			}
			s := watch(t, WatchOptions{Scan: scanOptions(host, dir, t.TempDir()), Backend: Netlink})
			host.vxlan("vx-001001-m64nq", 4097, 4789)
			host.move("vx-001001-m64nq", other)
			moved := s.next("moved", action(Moved))
			if (moved.ToNetNS == other.inode) != bound || Unreachable(moved.ToNetNS) == bound {
				t.Errorf("moved: %+v", moved)
			}
			other.rename("vx-001001-m64nq", "vxlan0")
			renamed := s.next("renamed", action(Renamed))
			if renamed.NetNS != moved.ToNetNS || renamed.OldName != "vx-001001-m64nq" {
				t.Errorf("renamed: %+v", renamed)
			}
			if bound {
				host.must(unix.Unmount(dir+"/3f29e1c7a0bd", unix.MNT_DETACH))
			}
			other.close()
			deleted := s.next("deleted", action(Deleted))
			if deleted.NetNS != moved.ToNetNS || deleted.Name != "vxlan0" {
				t.Errorf("deleted: %+v", deleted)
			}
			// The VNI is free once the namespace is dead.
			deadline := time.Now().Add(60 * time.Second)
			for host.tryVXLAN("vx-001001-m64nq", 4097, 4789) != nil {
				if time.Now().After(deadline) {
					t.Fatal("the watch keeps the namespace alive")
				}
				time.Sleep(20 * time.Millisecond)
			}
			if e := s.next("created", action(Created)); e.NetNS != host.inode {
				t.Errorf("created: %+v", e)
			}
			if len(s.seen) != 5 {
				t.Errorf("%d events, want 5: %s", len(s.seen), s.list())
			}
		})
	}
}

func TestWatchCountsBurst(t *testing.T) {
	const devices = 199
	host := newSpace(t)
	s := watch(t, WatchOptions{Scan: scanOptions(host, t.TempDir(), t.TempDir()), Backend: Netlink})
	for i := range devices {
		host.vxlan(fmt.Sprintf("vx-%06x-burst", i+1), i+1, 4789)
		host.del(fmt.Sprintf("vx-%06x-burst", i+1))
	}
	host.vxlan("last", devices+1, 4789)
	s.next("the last", func(e Event) bool { return e.Name == "last" })
	var created, deleted int
	for _, e := range s.seen {
		switch e.Action {
		case Created:
			created++
		case Deleted:
			deleted++
		}
	}
	if created != devices+1 || deleted != devices || s.w.Lost() != 0 {
		t.Errorf("%d created, %d deleted, %d lost; want %d, %d, 0", created, deleted, s.w.Lost(), devices+1, devices)
	}
}

// TestRefusalOnThisKernel: at the least, a refused VNI is told with the process
// and the kernel's words; where rtnl_newlink can be hooked, with everything.
func TestRefusalOnThisKernel(t *testing.T) {
	host := newSpace(t)
	dir := t.TempDir()
	s := watch(t, WatchOptions{Scan: scanOptions(host, dir, realProc)})
	if !slices.ContainsFunc(s.w.feeds, func(f feed) bool { _, ok := f.(*kernel); return ok }) {
		if err := s.w.Fallback(); errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) {
			t.Skipf("no hooks at all here: %v", err)
		}
		t.Fatalf("no hooks: %v", s.w.Fallback())
	}
	t.Logf("hooks: %s; limitations: %q", s.w.Hooks(), s.w.Limitations())
	index := host.vxlan("first", 4097, 4789)
	if err := host.tryVXLAN("second", 4097, 4789); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("a second device for a VNI: %v", err)
	}
	e := s.next("refused", func(e Event) bool { return e.Action == Refused && e.Actor != nil && e.Actor.PID == uint32(os.Getpid()) })
	if e.Err != unix.EEXIST || e.Actor.Comm == "" || e.Actor.Cgroup == 0 || e.Reason == "" || time.Since(e.Time).Abs() > time.Hour {
		t.Errorf("refused: %+v by %+v", e, e.Actor)
	}
	if strings.Contains(s.w.Hooks(), "rtnl_newlink") {
		if e.Name != "second" || e.VNI != 4097 || e.NetNS != host.inode || e.Culprit == nil || e.Culprit.Ifindex != index {
			t.Errorf("refused: %+v, culprit %+v", e, e.Culprit)
		}
	} else if e.Message != vniTaken || e.Culprit != nil {
		t.Errorf("refused: %+v, culprit %+v", e, e.Culprit)
	}
}

func TestHooksThatDoNotExist(t *testing.T) {
	host := newSpace(t)
	opts := WatchOptions{
		Scan: scanOptions(host, t.TempDir(), t.TempDir()), Backend: Kernel, Skip: []string{"fentry/", "fexit/", "kprobe/", "raw_tp/"},
	}
	w, err := NewWatcher(opts)
	if err == nil {
		w.Close()
		t.Fatal("a watcher without hooks")
	}
}
