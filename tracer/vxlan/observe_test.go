package vxlan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// testGrace is long enough that a test can act within it.
const testGrace = 600 * time.Millisecond

func observe(t *testing.T, opts WatchOptions) *Observer {
	t.Helper()
	o, err := Observe(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func find(t *testing.T, o *Observer, networks []Network, name string) Finding {
	t.Helper()
	list, unreadable, err := o.Findings(networks)
	if err != nil || unreadable != 0 {
		t.Fatalf("Findings: %v, %d namespaces unreadable", err, unreadable)
	}
	for _, f := range list {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no verdict on %q in %+v", name, list)
	return Finding{}
}

// TestVerdicts goes through everything that can be met, with real devices. What
// is removable is deleted, and for all else deletion must be refused and the
// device must still be there.
func TestVerdicts(t *testing.T) {
	network := Network{ID: "m64nqtdensevuks21ik6089dc", Name: "fvov", VNIs: []uint32{4097}}
	running := network
	running.Running = 1
	ownPort := network
	ownPort.Port = 8472
	const name = "vx-001001-m64nq"
	type world struct {
		host, overlay, other *space
		dir                  string
	}
	for label, c := range map[string]struct {
		make     func(w world) (device string, in *space)
		networks []Network
		verdict  Verdict
		keep     string // "" for the one case that may be deleted
		id       string
	}{
		"leaked": {
			make: func(w world) (string, *space) { w.host.vxlan(name, 4097, 4789); return name, w.host }, verdict: IsLeaked,
			id: "m64nq",
		},
		"leaked, the engine names its network": {
			make:     func(w world) (string, *space) { w.host.vxlan(name, 4097, 4789); return name, w.host },
			networks: []Network{{ID: "zzzz", Name: "other", VNIs: []uint32{4098}}, network}, verdict: IsLeaked, id: network.ID,
		},
		"leaked, back from its overlay": {
			make: func(w world) (string, *space) {
				w.host.vxlan(name, 4097, 4789)
				w.host.move(name, w.overlay)
				w.overlay.rename(name, "vxlan0")
				w.overlay.up("vxlan0")
				w.overlay.down("vxlan0")
				w.overlay.rename("vxlan0", name)
				w.overlay.move(name, w.host)
				return name, w.host
			}, verdict: IsLeaked, id: "m64nq",
		},
		"leaked, its overlay's namespace is a ruin without endpoints": {
			make: func(w world) (string, *space) {
				w.overlay.bind(w.dir, "1-m64nqtdens")
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "br0"
				w.overlay.must(w.overlay.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
				w.overlay.up("br0")
				w.host.vxlan(name, 4097, 4789)
				return name, w.host
			}, verdict: IsLeaked, id: "m64nq",
		},
		"leaked, another VNI of the same network": {
			make: func(w world) (string, *space) {
				w.host.vxlan("vx-001002-m64nq", 4098, 4789)
				return "vx-001002-m64nq", w.host
			},
			networks: []Network{network}, verdict: IsLeaked, id: network.ID,
		},
		"UP": {
			make: func(w world) (string, *space) {
				w.host.vxlan(name, 4097, 4789)
				w.host.up(name)
				return name, w.host
			}, verdict: Blocking, keep: "it is UP", id: "m64nq",
		},
		"part of a bridge": {
			make: func(w world) (string, *space) {
				w.host.vxlan(name, 4097, 4789)
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "br0"
				w.host.must(w.host.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
				w.host.must(w.host.links.LinkSetMaster(w.host.link(name), w.host.link("br0")))
				return name, w.host
			}, verdict: Blocking, keep: "it is part of a bridge or bond", id: "m64nq",
		},
		"made in another namespace": {
			make: func(w world) (string, *space) {
				w.other.vxlan(name, 4097, 4789)
				w.other.move(name, w.host)
				return name, w.host
			}, verdict: Blocking, keep: "it was created in another namespace", id: "m64nq",
		},
		"its overlay has endpoints": {
			make: func(w world) (string, *space) {
				w.overlay.bind(w.dir, "1-m64nqtdens")
				w.overlay.endpoint("veth0")
				w.host.vxlan(name, 4097, 4789)
				return name, w.host
			}, verdict: IsLeaked, keep: "its overlay is live on this host: its overlay's namespace has 1 endpoints that are UP", id: "m64nq",
		},
		"its overlay has a device of its own": {
			make: func(w world) (string, *space) {
				w.overlay.bind(w.dir, "1-m64nqtdens")
				w.host.vxlan("tmp", 4097, 8472)
				w.host.move("tmp", w.overlay)
				w.overlay.rename("tmp", "vxlan0")
				w.overlay.up("vxlan0")
				w.host.vxlan(name, 4097, 4789)
				return name, w.host
			}, verdict: IsLeaked, keep: `its overlay is live on this host: its overlay's namespace has device "vxlan0" UP`, id: "m64nq",
		},
		"containers of its network run": {
			make:     func(w world) (string, *space) { w.host.vxlan(name, 4097, 4789); return name, w.host },
			networks: []Network{running}, verdict: IsLeaked, keep: "its overlay is live on this host: 1 of its containers run here", id: network.ID,
		},
		"in its overlay": {
			make: func(w world) (string, *space) {
				w.overlay.bind(w.dir, "1-m64nqtdens")
				w.host.vxlan(name, 4097, 4789)
				w.host.move(name, w.overlay)
				w.overlay.rename(name, "vxlan0")
				w.overlay.up("vxlan0")
				return "vxlan0", w.overlay
			}, networks: []Network{network}, verdict: OK, keep: "it is outside the host's namespace", id: network.ID,
		},
		"in its overlay, DOWN, with its old name": {
			make: func(w world) (string, *space) {
				w.overlay.bind(w.dir, "1-m64nqtdens")
				w.host.vxlan(name, 4097, 4789)
				w.host.move(name, w.overlay)
				return name, w.overlay
			}, verdict: Stuck, keep: "it is outside the host's namespace", id: "m64nqtdens",
		},
		"moved to some namespace, variant c": {
			make: func(w world) (string, *space) {
				w.other.bind(w.dir, "3f29e1c7a0bd")
				w.host.vxlan(name, 4097, 4789)
				w.host.move(name, w.other)
				return name, w.other
			}, verdict: Blocking, keep: "it is outside the host's namespace", id: "m64nq",
		},
		"moved to some namespace, another port": {
			make: func(w world) (string, *space) {
				w.other.bind(w.dir, "3f29e1c7a0bd")
				w.host.vxlan(name, 4097, 4790)
				w.host.move(name, w.other)
				return name, w.other
			}, verdict: Foreign, keep: "it is outside the host's namespace", id: "m64nq",
		},
		"moved to some namespace under another name": {
			make: func(w world) (string, *space) {
				w.other.bind(w.dir, "3f29e1c7a0bd")
				w.host.vxlan("foo", 4097, 4789)
				w.host.move("foo", w.other)
				return "foo", w.other
			}, networks: []Network{network}, verdict: Blocking, keep: "it is outside the host's namespace", id: network.ID,
		},
		"a network's VNI under a foreign name, variant b": {
			make:     func(w world) (string, *space) { w.host.vxlan("blocker", 4097, 4789); return "blocker", w.host },
			networks: []Network{network}, verdict: Blocking, keep: "its name is not one of Docker's", id: network.ID,
		},
		"the same with another port, variant f": {
			make:     func(w world) (string, *space) { w.host.vxlan("other", 4097, 4790); return "other", w.host },
			networks: []Network{network}, verdict: Foreign, keep: "its name is not one of Docker's", id: network.ID,
		},
		"a swarm with a data path port of its own": {
			make:     func(w world) (string, *space) { w.host.vxlan("blocker", 4097, 8472); return "blocker", w.host },
			networks: []Network{ownPort}, verdict: Blocking, keep: "its name is not one of Docker's", id: network.ID,
		},
		"a name with another VNI in it": {
			make: func(w world) (string, *space) { w.host.vxlan(name, 4098, 4789); return name, w.host }, verdict: Foreign,
			keep: "its name is not one of Docker's",
		},
		"flannel": {
			make: func(w world) (string, *space) {
				w.host.vxlan("flannel.1", 1, 8472)
				w.host.up("flannel.1")
				return "flannel.1", w.host
			}, networks: []Network{network}, verdict: Foreign, keep: "its name is not one of Docker's",
		},
		"calico, DOWN": {
			make: func(w world) (string, *space) {
				w.host.vxlan("vxlan.calico", 4096, 4789)
				return "vxlan.calico", w.host
			},
			networks: []Network{network}, verdict: Foreign, keep: "its name is not one of Docker's",
		},
		"made by hand, DOWN, almost Docker's name": {
			make: func(w world) (string, *space) {
				w.host.vxlan("vx-001001-m64n", 4097, 4789)
				return "vx-001001-m64n", w.host
			}, verdict: Foreign,
			keep: "its name is not one of Docker's",
		},
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			w := world{newSpace(t), newSpace(t), newSpace(t), t.TempDir()}
			for _, s := range []*space{w.host, w.overlay, w.other} {
				s.t = t
			}
			device, in := c.make(w)
			// An unrelated device that must be there before and after.
			w.host.vxlan("bystander", 99, 4789)
			o := observe(t, WatchOptions{Scan: scanOptions(w.host, w.dir, t.TempDir()), Grace: testGrace})
			f := find(t, o, c.networks, device)
			if f.Verdict != c.verdict || f.Keep != c.keep || f.NetworkID != c.id || f.Reason == "" {
				t.Errorf("verdict %q (%s), keep %q, network %q; want %q, %q, %q", f.Verdict, f.Reason, f.Keep, f.NetworkID,
					c.verdict, c.keep, c.id)
			}
			err := o.Delete(f, c.networks)
			var kept *KeptError
			switch {
			case c.keep == "" && err != nil:
				t.Errorf("Delete: %v", err)
			case c.keep != "" && !errors.As(err, &kept):
				t.Errorf("Delete: %v, want a refusal", err)
			}
			if in.has(device) != (c.keep != "") {
				t.Errorf("after Delete the device exists: %v", in.has(device))
			}
			if !w.host.has("bystander") {
				t.Error("Delete took another device")
			}
		})
	}
}

// TestTooYoung: the time that a device has been DOWN counts from its last
// change, not from the first look at it.
func TestTooYoung(t *testing.T) {
	const name = "vx-001001-m64nq"
	for label, c := range map[string]struct {
		change func(h *space)
		last   Action // of the change
	}{
		"was UP meanwhile": {func(h *space) { h.up(name); h.down(name) }, Down},
		"created again":    {func(h *space) { h.del(name); h.vxlan(name, 4097, 4789) }, Created},
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			host := newSpace(t)
			host.t = t
			host.vxlan(name, 4097, 4789)
			opts := scanOptions(host, t.TempDir(), t.TempDir())
			w, err := NewWatcher(WatchOptions{Scan: opts, Grace: time.Hour, Backend: Netlink})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			seen := make(chan Action, 16)
			o := &Observer{watcher: w, scanner: newScanner(t, opts), cancel: cancel, done: make(chan struct{})}
			go func() { defer close(o.done); o.err = w.Run(ctx, func(e Event) { seen <- e.Action }) }()
			t.Cleanup(func() { cancel(); <-o.done; w.Close() })

			changed := time.Now()
			c.change(host)
			for <-seen != c.last {
			}
			f := find(t, o, nil, name)
			if f.Verdict != Settling || f.Keep == "" {
				t.Errorf("verdict %q, keep %q", f.Verdict, f.Keep)
			}
			if f.Down > time.Since(changed) {
				t.Errorf("DOWN for %v, but it was made or UP %v ago", f.Down, time.Since(changed))
			}
			var kept *KeptError
			if err := o.Delete(f, nil); !errors.As(err, &kept) || !host.has(name) {
				t.Errorf("Delete: %v; device exists: %v", err, host.has(name))
			}
		})
	}
}

// TestDeleteLooksAgain: between the question and the answer anything may happen.
func TestDeleteLooksAgain(t *testing.T) {
	const name = "vx-001001-m64nq"
	refused := func(err error) bool {
		var kept *KeptError
		return errors.As(err, &kept)
	}
	for label, c := range map[string]struct {
		change func(host, other *space, dir string)
		check  func(error) bool
		after  bool // the name exists in the host's namespace afterwards
	}{
		"went UP": {
			func(h, _ *space, _ string) { h.up(name) }, refused, true,
		},
		"went away": {
			func(h, _ *space, _ string) { h.del(name) }, func(err error) bool { return errors.Is(err, ErrGone) }, false,
		},
		"moved away": {
			func(h, o *space, _ string) { h.move(name, o) }, func(err error) bool { return errors.Is(err, ErrGone) }, false,
		},
		"renamed": {
			func(h, _ *space, _ string) { h.rename(name, "vx-001001-zzzzz") }, func(err error) bool { return errors.Is(err, ErrChanged) }, false,
		},
		"its overlay came to life": {
			func(_, o *space, dir string) { o.endpoint("veth0"); o.bind(dir, "1-m64nqtdens") },
			refused, true,
		},
		"replaced by one with another VNI under the same ifindex": {
			func(h, _ *space, _ string) {
				index := h.index(name)
				h.del(name)
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.Index = name, index
				h.must(h.links.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 4098, Port: 4789}))
			}, func(err error) bool { return errors.Is(err, ErrChanged) }, true,
		},
		"replaced by one of another kind under the same ifindex": {
			func(h, _ *space, _ string) {
				index := h.index(name)
				h.del(name)
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.Index = name, index
				h.must(h.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
			}, func(err error) bool { return errors.Is(err, ErrGone) }, true,
		},
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			host, other, dir := newSpace(t), newSpace(t), t.TempDir()
			host.t, other.t = t, t
			host.vxlan(name, 4097, 4789)
			o := observe(t, WatchOptions{Scan: scanOptions(host, dir, t.TempDir()), Grace: testGrace})
			f := find(t, o, nil, name)
			if f.Verdict != IsLeaked || f.Keep != "" {
				t.Fatalf("verdict %q, keep %q", f.Verdict, f.Keep)
			}
			c.change(host, other, dir)
			if err := o.Delete(f, nil); !c.check(err) {
				t.Errorf("Delete: %v", err)
			}
			if host.has(name) != c.after {
				t.Errorf("after Delete the name exists: %v", host.has(name))
			}
		})
	}
}

func TestObserveReturnsAtOnceWhenNothingLooksLeaked(t *testing.T) {
	host := newSpace(t)
	host.vxlan("flannel.1", 1, 8472)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // waiting for the grace period would give this back
	o, err := Observe(ctx, WatchOptions{Scan: scanOptions(host, t.TempDir(), t.TempDir()), Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	host.vxlan("vx-001001-m64nq", 4097, 4789)
	if _, err := Observe(ctx, WatchOptions{Scan: scanOptions(host, t.TempDir(), t.TempDir()), Grace: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("Observe of a candidate: %v, want %v", err, context.Canceled)
	}
}

// TestAgeFromUdev: no snapshot knows the age of a device, but udev may.
func TestAgeFromUdev(t *testing.T) {
	host := newSpace(t)
	mono := time.Duration(monotonic())
	opts := scanOptions(host, t.TempDir(), t.TempDir())
	opts.UdevData = t.TempDir()
	for name, c := range map[string]struct {
		data string
		want time.Duration // 0: not from udev
	}{
		"flannel.1": {"E:ID_NET_DRIVER=vxlan\nI:1000000\nG:systemd\n", mono - time.Second},
		"none":      {"E:ID_NET_DRIVER=vxlan\n", 0},
		"garbage":   {"I:99x\n", 0},
		"future":    {"I:9223372036854775807\n", 0},
		"negative":  {"I:-5\n", 0},
	} {
		index := host.vxlan(name, len(name), 8472)
		host.must(os.WriteFile(fmt.Sprintf("%s/n%d", opts.UdevData, index), []byte(c.data), 0o600))
		o, err := Observe(t.Context(), WatchOptions{Scan: opts, Grace: testGrace})
		if err != nil {
			t.Fatal(err)
		}
		f := find(t, o, nil, name)
		if c.want > 0 && (f.AtLeast || f.Age < c.want) || c.want == 0 && (!f.AtLeast || f.Age > time.Minute) {
			t.Errorf("%s: age %v, at least %v; want %v", name, f.Age, f.AtLeast, c.want)
		}
		host.must(o.Close())
		host.del(name)
	}
}

// TestNothingToGoBy: where neither an engine nor its namespaces are found, nobody
// knows which overlay is live.
func TestNothingToGoBy(t *testing.T) {
	const name = "vx-001001-m64nq"
	host := newSpace(t)
	host.vxlan(name, 4097, 4789)
	ipNetNS := t.TempDir() + "/run/netns" // says nothing about Docker
	host.must(os.MkdirAll(ipNetNS, 0o700))
	for _, dir := range []string{"/nowhere", ipNetNS} {
		o, err := Observe(t.Context(), WatchOptions{Scan: scanOptions(host, dir, t.TempDir()), Grace: testGrace})
		if err != nil {
			t.Fatal(err)
		}
		f := find(t, o, nil, name)
		var kept *KeptError
		if err := o.Delete(f, nil); f.Verdict != IsLeaked || f.Keep == "" || !errors.As(err, &kept) || !host.has(name) {
			t.Errorf("verdict %q, keep %q; Delete: %v", f.Verdict, f.Keep, err)
		}
		// An engine that answers and knows no network of that name is enough.
		if f := find(t, o, []Network{}, name); f.Keep != "" {
			t.Errorf("keep %q", f.Keep)
		}
		host.must(o.Close())
	}
}

func TestSnapshotOfDeadNamespace(t *testing.T) {
	host, other, dir := newSpace(t), newSpace(t), t.TempDir()
	other.bind(dir, "3f29e1c7a0bd")
	s := newScanner(t, scanOptions(host, dir, t.TempDir()))
	found, _, _ := s.paths()
	host.must(unix.Unmount(found[other.inode].Path, unix.MNT_DETACH))
	if err := s.enter(found[other.inode].Path, other.inode, func(*netlink.Handle) error { return nil }); err == nil {
		t.Error("a plain file was entered as a namespace")
	}
}
