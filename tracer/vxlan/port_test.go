package vxlan

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// external makes a device that shares its UDP port with none of Docker's, and sets it UP.
func (s *space) external(name string, port int) {
	s.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	s.must(s.links.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: port}))
	s.up(name)
}

// ownProc is a procfs with this process alone: all others on the machine have nothing to do
// with a test's namespaces.
func ownProc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"thread-self", fmt.Sprint(os.Getpid())} {
		if err := os.Symlink(filepath.Join("/proc", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// listen opens a UDP port in the namespace.
func (s *space) listen(port int) net.PacketConn {
	s.t.Helper()
	var conn net.PacketConn
	s.must(within(s.ns, func() (err error) {
		conn, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		return err
	}))
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// inOverlay puts a device into the namespace of its overlay, as the engine does before it
// sets it UP, which the kernel refuses.
func inOverlay(t *testing.T, host, overlay *space, dir string) {
	t.Helper()
	overlay.bind(dir, "1-m64nqtdens")
	host.vxlan("vx-001001-m64nq", 4097, 4789)
	host.move("vx-001001-m64nq", overlay)
	overlay.rename("vx-001001-m64nq", "vxlan0")
	if err := overlay.links.LinkSetUp(overlay.link("vxlan0")); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("the kernel set a device UP whose port is taken: %v", err)
	}
}

// TestPortTaken: whatever has the UDP port of the overlay networks is found and named, and
// nothing is blamed that does no harm.
func TestPortTaken(t *testing.T) {
	ours := fmt.Sprintf("(pid %d)", os.Getpid())
	swarm := []Network{{ID: "m64nqtdensevuks21ik6089dc", Name: "fvov", VNIs: []uint32{4097}}}
	otherPort := []Network{{ID: "m64nqtdensevuks21ik6089dc", Name: "fvov", VNIs: []uint32{4097}, Port: 7777}}
	for label, c := range map[string]struct {
		make     func(t *testing.T, host, overlay *space, dir string)
		networks []Network
		want     map[string]string // verdict and a part of the reason, by name; all others are harmless
	}{
		"external, no network is up yet": {
			func(t *testing.T, host, _ *space, _ string) { host.external("ext", 4789) }, swarm,
			map[string]string{"ext": `blocking: it has UDP port 4789 of the host for itself`},
		},
		"external, elsewhere": {
			func(t *testing.T, host, overlay *space, dir string) {
				overlay.bind(dir, "3f29e1c7a0bd")
				host.external("ext", 4789)
				host.move("ext", overlay)
				overlay.up("ext")
			}, swarm,
			map[string]string{"ext": `blocking: it has UDP port 4789 of the host for itself`},
		},
		"external, and a device that cannot be set UP": {
			func(t *testing.T, host, overlay *space, dir string) {
				host.external("ext", 4789)
				inOverlay(t, host, overlay, dir)
			}, nil,
			map[string]string{
				"ext":    "blocking: it has UDP port 4789 of the host for itself",
				"vxlan0": `stuck: DOWN in its overlay's namespace: containers of its network do not reach other hosts; UDP port 4789 is taken by device "ext"`,
			},
		},
		"a process": {
			func(t *testing.T, host, _ *space, _ string) { host.listen(4789) }, swarm,
			map[string]string{"udp:4789": ours + " has UDP port 4789 of the host open"},
		},
		"a process, and a device that cannot be set UP": {
			func(t *testing.T, host, overlay *space, dir string) {
				host.listen(4789)
				inOverlay(t, host, overlay, dir)
			}, nil,
			map[string]string{"udp:4789": ours, "vxlan0": "stuck: DOWN in its overlay's namespace: containers of its network do not reach other hosts; UDP port 4789 is taken by process"},
		},
		"left behind because the port is taken": {
			func(t *testing.T, host, _ *space, _ string) {
				host.listen(4789)
				host.vxlan("vx-001001-m64nq", 4097, 4789)
			}, swarm,
			map[string]string{"udp:4789": ours, "vx-001001-m64nq": "; UDP port 4789 is taken by process"},
		},
		"external, and no swarm": {
			func(t *testing.T, host, _ *space, _ string) { host.external("ext", 4789); host.listen(4790) }, []Network{}, nil,
		},
		"a process, and no swarm": {func(t *testing.T, host, _ *space, _ string) { host.listen(4789) }, nil, nil},
		"another port":            {func(t *testing.T, host, _ *space, _ string) { host.external("ext", 4789) }, otherPort, nil},
		"external, DOWN": {
			func(t *testing.T, host, _ *space, _ string) {
				host.external("ext", 4789)
				host.down("ext")
			}, swarm, nil,
		},
		"not external: it shares the port": {
			func(t *testing.T, host, _ *space, _ string) { host.vxlan("cilium", 99, 4789); host.up("cilium") }, swarm, nil,
		},
	} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			host, overlay, dir := newSpace(t), newSpace(t), t.TempDir()
			host.t, overlay.t = t, t
			c.make(t, host, overlay, dir)
			o := observe(t, WatchOptions{Scan: scanOptions(host, dir, ownProc(t)), Grace: testGrace})
			list, _, err := o.Findings(c.networks)
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, f := range list {
				harmless := f.Verdict == OK || f.Verdict == Foreign
				want, bad := c.want[f.Name]
				if bad == harmless || bad && !strings.Contains(string(f.Verdict)+": "+f.Reason, want) || f.Keep == "" && f.Verdict != IsLeaked {
					t.Errorf("%q is %s: %s; want %q", f.Name, f.Verdict, f.Reason, want)
				}
				if bad {
					found++
				}
			}
			if found != len(c.want) {
				t.Errorf("%d of %d found in %+v", found, len(c.want), list)
			}
		})
	}
}

// TestWatchReportsStuck: without hooks, a device that cannot be set UP is reported when its
// grace period has expired, once, with what has its port; and when it goes UP after all.
func TestWatchReportsStuck(t *testing.T) {
	host, overlay, dir := newSpace(t), newSpace(t), t.TempDir()
	host.external("ext", 4789)
	s := watch(t, WatchOptions{Scan: scanOptions(host, dir, ownProc(t)), Grace: testGrace, Backend: Netlink})
	inOverlay(t, host, overlay, dir)
	e := s.next("stuck", action(WentStuck))
	if e.VNI != 4097 || e.NetNS != overlay.inode || e.Age < testGrace || e.Culprit == nil || e.Culprit.Name != "ext" || !strings.Contains(e.Reason, `taken by device "ext"`) {
		t.Errorf("stuck: %+v, culprit %+v", e, e.Culprit)
	}
	host.down("ext")
	overlay.up("vxlan0")
	s.next("up", func(e Event) bool { return e.Action == WentUp && e.VNI == 4097 })
	overlay.down("vxlan0")
	host.up("ext")
	s.next("stuck once more", action(WentStuck))
	n := 0
	for _, e := range s.seen {
		if e.Action == WentStuck {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d events, want one each time: %s", n, s.list())
	}
}

// TestWatchExplainsUpRefused: what a hook or an engine says about a device that could not be
// set UP gets the holder of its port, also where the event names no port.
func TestWatchExplainsUpRefused(t *testing.T) {
	host, dir := newSpace(t), t.TempDir()
	s := watch(t, WatchOptions{Scan: scanOptions(host, dir, ownProc(t)), Grace: time.Hour, Backend: Netlink})
	refused := Event{Time: time.Now(), Action: UpRefused, Err: unix.EADDRINUSE, Device: Device{Name: "vxlan0", Kind: Kind, Ifindex: 77, NetNS: host.inode, Underlay: host.inode, VNI: 4097}}
	s.w.Report(t.Context(), refused)
	if e := s.next("refused, nothing has the port", action(UpRefused)); e.Culprit != nil || !strings.Contains(e.Reason, "nothing is found") || e.Port != DefaultPort {
		t.Errorf("%+v", e)
	}
	conn := host.listen(4789)
	s.w.Report(t.Context(), refused)
	if e := s.next("refused, a process has the port", action(UpRefused)); e.Culprit != nil || !strings.Contains(e.Reason, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("%+v", e)
	}
	conn.Close()
	host.external("ext", 4789)
	s.w.Report(t.Context(), refused)
	if e := s.next("refused, a device has the port", action(UpRefused)); e.Culprit == nil || e.Culprit.Name != "ext" {
		t.Errorf("%+v", e)
	}
	refused.Err = unix.EADDRNOTAVAIL
	s.w.Report(t.Context(), refused)
	if e := s.next("refused for another reason", action(UpRefused)); e.Culprit != nil || e.Reason != "" {
		t.Errorf("%+v", e)
	}
}

func TestReadPorts(t *testing.T) {
	const table = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  102: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31337 2 0000000000000000 0
  103: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0 0
  104: 00000000:ZZZZ 0:0 07 0:0 0:0 0 0 0 8 2 0 0
  105: 12B5 short
`
	open := map[uint16]uint64{}
	readPorts(strings.NewReader(table), map[uint16]bool{4789: true, 1: true}, open)
	if len(open) != 1 || open[4789] != 31337 {
		t.Errorf("read %v", open)
	}
}
