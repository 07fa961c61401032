package vxlan

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is a network namespace that a test made.
type space struct {
	t     *testing.T
	ns    netns.NsHandle
	inode uint64
	links *netlink.Handle
}

// newSpace makes a network namespace of the test's own: no test touches the
// devices of the machine that it runs on.
func newSpace(t *testing.T) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	ns, err := newNetNS()
	if err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	s := &space{t: t, ns: ns}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.ns), &st); err != nil {
		t.Fatal(err)
	}
	s.inode = st.Ino
	if s.links, err = netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE); err != nil {
		t.Fatalf("netlink in a new namespace: %v", err)
	}
	t.Cleanup(s.close)
	return s
}

// newNetNS makes a namespace and leaves the thread where it was.
func newNetNS() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer before.Close()
	made, err := netns.New()
	return made, errors.Join(err, netns.Set(before))
}

// close lets the namespace die, unless a file keeps it.
func (s *space) close() {
	if s.links != nil {
		s.links.Close()
		s.ns.Close()
		s.links = nil
	}
}

func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.ns)) }

// bind gives the namespace a file, as engines and ip-netns do.
func (s *space) bind(dir, name string) {
	s.t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Mount(s.path(), path, "", unix.MS_BIND, ""); err != nil {
		s.t.Fatalf("binding a namespace to %q: %v", path, err)
	}
	s.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func (s *space) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// vxlan makes a device and returns its ifindex.
func (s *space) vxlan(name string, vni, port int) int {
	s.t.Helper()
	s.must(s.tryVXLAN(name, vni, port))
	return s.index(name)
}

func (s *space) tryVXLAN(name string, vni, port int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := s.links.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: port, Learning: true, Proxy: true, L3miss: true, L2miss: true})
	if err != nil {
		return fmt.Errorf("making vxlan device %q: %w", name, err)
	}
	return nil
}

func (s *space) index(name string) int {
	s.t.Helper()
	return s.link(name).Attrs().Index
}

func (s *space) link(name string) netlink.Link {
	s.t.Helper()
	link, err := s.links.LinkByName(name)
	if err != nil {
		s.t.Fatalf("device %q: %v", name, err)
	}
	return link
}

func (s *space) has(name string) bool {
	s.t.Helper()
	_, err := s.links.LinkByName(name)
	var none netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &none) {
		s.t.Fatalf("device %q: %v", name, err)
	}
	return err == nil
}

func (s *space) up(name string)         { s.t.Helper(); s.must(s.links.LinkSetUp(s.link(name))) }
func (s *space) down(name string)       { s.t.Helper(); s.must(s.links.LinkSetDown(s.link(name))) }
func (s *space) del(name string)        { s.t.Helper(); s.must(s.links.LinkDel(s.link(name))) }
func (s *space) rename(old, now string) { s.t.Helper(); s.must(s.links.LinkSetName(s.link(old), now)) }
func (s *space) move(name string, to *space) {
	s.t.Helper()
	s.must(s.links.LinkSetNsFd(s.link(name), int(to.ns)))
}

// endpoint adds an UP veth pair, as a running container has in its overlay.
func (s *space) endpoint(name string) {
	s.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	s.must(s.links.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
	s.up(name)
}

// realProc lets a scan find the test's own namespaces by its processes; an
// empty folder lets it find only what has a file.
const realProc = "/proc"

func scanOptions(host *space, dir, proc string) ScanOptions {
	return ScanOptions{HostNetNS: host.path(), NetNSDirs: []string{dir}, Proc: proc}
}

func newScanner(t *testing.T, opts ScanOptions) *Scanner {
	t.Helper()
	s, err := NewScanner(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestScan(t *testing.T) {
	host, overlay, other := newSpace(t), newSpace(t), newSpace(t)
	dir := t.TempDir()
	overlay.bind(dir, "1-m64nqtdens")
	other.bind(dir, "3f29e1c7a0bd")
	// What engines leave behind, and what anybody may put there.
	host.must(os.WriteFile(filepath.Join(dir, "2-abcdefghij"), nil, 0o600))
	host.must(os.Mkdir(filepath.Join(dir, "lb_m64nqtden"), 0o700))
	host.must(unix.Mkfifo(filepath.Join(dir, "3-fifofifofi"), 0o600))
	host.must(os.Symlink("/proc/self/ns/mnt", filepath.Join(dir, "4-mountspace")))
	host.must(os.Symlink("/nowhere", filepath.Join(dir, "5-danglingxx")))

	host.vxlan("vx-001001-m64nq", 4097, 4789)
	host.move("vx-001001-m64nq", overlay)
	overlay.rename("vx-001001-m64nq", "vxlan0")
	overlay.up("vxlan0")
	overlay.endpoint("veth0")
	host.vxlan("flannel.1", 1, 8472)
	host.up("flannel.1")
	host.vxlan("vx-001002-zzzzz", 4098, 4789)
	other.vxlan("own0", 7, 4789)

	snap, err := newScanner(t, scanOptions(host, dir, t.TempDir())).Scan()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Device{
		"vxlan0":          {Name: "vxlan0", Kind: Kind, NetNS: overlay.inode, Underlay: host.inode, VNI: 4097, Port: 4789, Up: true},
		"flannel.1":       {Name: "flannel.1", Kind: Kind, NetNS: host.inode, Underlay: host.inode, VNI: 1, Port: 8472, Up: true},
		"vx-001002-zzzzz": {Name: "vx-001002-zzzzz", Kind: Kind, NetNS: host.inode, Underlay: host.inode, VNI: 4098, Port: 4789},
		"own0":            {Name: "own0", Kind: Kind, NetNS: other.inode, Underlay: other.inode, VNI: 7, Port: 4789},
	}
	for _, d := range snap.Devices {
		w, ok := want[d.Name]
		if !ok {
			t.Errorf("unexpected device %+v", d)
			continue
		}
		delete(want, d.Name)
		in := map[uint64]*space{host.inode: host, overlay.inode: overlay, other.inode: other}[d.NetNS]
		if in == nil {
			t.Errorf("device %q in namespace %d", d.Name, d.NetNS)
			continue
		}
		w.Ifindex = in.index(d.Name)
		if d != w {
			t.Errorf("device %+v, want %+v", d, w)
		}
	}
	for name := range want {
		t.Errorf("device %q was not found", name)
	}
	if got := snap.Namespaces[overlay.inode]; got.Overlay != "m64nqtdens" || got.Ports != 1 || got.Host {
		t.Errorf("overlay's namespace is %+v", got)
	}
	if got := snap.Namespaces[host.inode]; !got.Host || got.Overlay != "" {
		t.Errorf("host's namespace is %+v", got)
	}
	if len(snap.Namespaces) != 3 {
		t.Errorf("namespaces %+v, want 3", snap.Namespaces)
	}
	if snap.Unreadable != 0 {
		t.Errorf("%d namespaces unreadable, want 0", snap.Unreadable)
	}
	if age := time.Since(snap.Time); age < 0 || age > time.Minute {
		t.Errorf("snapshot of %v", snap.Time)
	}
}

// TestScanHoldsNothing: a namespace that a scan kept would not die, and its
// devices would go on blocking their VNIs.
func TestScanHoldsNothing(t *testing.T) {
	host, other := newSpace(t), newSpace(t)
	dir := t.TempDir()
	s := newScanner(t, scanOptions(host, dir, realProc))
	host.vxlan("vx-001001-m64nq", 4097, 4789)
	host.move("vx-001001-m64nq", other)
	snap, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	_ = snap
	if err := host.tryVXLAN("again", 4097, 4789); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("a second device for a VNI: %v, want %v", err, unix.EEXIST)
	}
	other.close()
	deadline := time.Now().Add(30 * time.Second)
	for host.tryVXLAN("again", 4097, 4789) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the namespace is still alive")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestNamed(t *testing.T) {
	host, other, dir := newSpace(t), newSpace(t), t.TempDir()
	other.bind(dir, "3f29e1c7a0bd")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vx-001001-m64nq"
	host.must(host.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	index := other.vxlan("vx-001001-m64nq", 4097, 4789)
	s := newScanner(t, scanOptions(host, dir, t.TempDir()))
	snap, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	d, ok := s.named(snap.Namespaces[host.inode], "vx-001001-m64nq")
	if want := (Device{Name: "vx-001001-m64nq", Kind: "bridge", Ifindex: host.index("vx-001001-m64nq"), NetNS: host.inode}); !ok || d != want {
		t.Errorf("in the host's namespace: %+v, %v, want %+v", d, ok, want)
	}
	d, ok = s.named(snap.Namespaces[other.inode], "vx-001001-m64nq")
	if !ok || d.Kind != Kind || d.Ifindex != index || d.NetNS != other.inode || d.VNI != 4097 {
		t.Errorf("elsewhere: %+v, %v", d, ok)
	}
	if d, ok := s.named(snap.Namespaces[host.inode], "none"); ok {
		t.Errorf("no such name: %+v", d)
	}
}

func TestNoHostNamespace(t *testing.T) {
	for _, path := range []string{"/nowhere", "/dev/null", "/proc/self/ns/mnt", t.TempDir()} {
		s, err := NewScanner(ScanOptions{HostNetNS: path})
		if err == nil {
			s.Close()
			t.Errorf("NewScanner took %q for a network namespace", path)
		}
	}
}

// TestLeftNamespace: that a process ended while everything was looked at makes no
// namespace one that cannot be read.
func TestLeftNamespace(t *testing.T) {
	proc := t.TempDir()
	s := &Scanner{opts: ScanOptions{Proc: proc}}
	process := func(pid, link string) string {
		path := filepath.Join(proc, pid, "ns/net")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Symlink(link, path)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	there, elsewhere := process("7", "net:[42]"), process("8", "net:[43]")
	for path, want := range map[string]bool{
		there: false, elsewhere: true, filepath.Join(proc, "9/ns/net"): true, filepath.Join(t.TempDir(), "1-m64nqtdens"): false,
	} {
		if got := s.left(path, 42); got != want {
			t.Errorf("%s: left %v, want %v", path, got, want)
		}
	}
}
