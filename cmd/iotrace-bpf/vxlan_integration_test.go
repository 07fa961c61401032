//go:build integration

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// swarmHost is a real engine in swarm mode whose host is a network namespace of
// the test's own.
type swarmHost struct {
	*vxlanHost
	engine string // folder
	socket string
	lines  lineWriter
	seen   []document
}

func startSwarm(t *testing.T) *swarmHost {
	t.Helper()
	s := startSwarmless(t)
	s.init()
	return s
}

// init makes the engine a swarm of one node.
func (s *swarmHost) init() {
	s.t.Helper()
	s.docker("swarm", "init", "--advertise-addr", "192.0.2.1")
}

// startSwarmless starts the engine, in no swarm yet.
func startSwarmless(t *testing.T) *swarmHost {
	t.Helper()
	s := &swarmHost{vxlanHost: newVXLANHost(t), lines: make(lineWriter, 4096)}
	dir, err := os.MkdirTemp("", "swarm") // not t.TempDir: the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	s.engine, s.socket = dir, filepath.Join(dir, "docker.sock")
	s.dir = filepath.Join(dir, "exec/netns")
	lo, err := s.links.LinkByName("lo")
	if err == nil {
		err = s.links.LinkSetUp(lo)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	addr, _ := netlink.ParseAddr("192.0.2.1/24")
	for _, step := range []func() error{
		func() error { return err }, func() error { return s.links.LinkAdd(bridge) },
		func() error { return s.links.AddrAdd(bridge, addr) }, func() error { return s.links.LinkSetUp(bridge) },
		func() error { return os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.ns)), "dockerd",
		"--host", "unix://"+s.socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--config-file", filepath.Join(dir, "daemon.json"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--default-ulimit", "nofile=1024:1024")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting dockerd: %v", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_, _ = s.try("swarm", "leave", "--force")
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
		if b, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("end of dockerd's log:\n%s", b[max(0, len(b)-8<<10):])
		}
		log.Close()
		s.remove()
	})
	enginetest.Poll(t, time.Minute, "dockerd answers", func() bool {
		select {
		case err := <-exited:
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("dockerd ended: %v\n%s", err, b)
		default:
		}
		_, err := s.try("version")
		return err == nil
	})
	archive := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(archive, enginetest.ImageArchive(t, enginetest.Image), 0o600); err != nil {
		t.Fatal(err)
	}
	s.docker("load", "--input", archive)
	return s
}

// trace starts the program as root runs it by default, with the engine's host as its own:
// process 1 of a new pid namespace is in the host's network namespace there.
func (s *swarmHost) trace(flags ...string) *traced {
	s.t.Helper()
	script := fmt.Sprintf("exec 9</proc/%d/fd/%d && mount --make-rprivate / && mount -t proc none /proc && exec nsenter --net=/proc/self/fd/9 \"$@\"", os.Getpid(), int(s.ns))
	args := append([]string{"-c", script, "sh", shipped(s.t), "--docker-host", "unix://" + s.socket, "--only-listed-sockets", "--interval", "200ms"}, flags...)
	cmd := exec.Command("sh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	return startNDJSON(s.t, cmd)
}

// remove unmounts what the engine left behind and removes its folder.
func (s *swarmHost) remove() {
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		b, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], s.engine+"/") {
				_ = unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
		if err = os.RemoveAll(s.engine); err == nil {
			return
		}
	}
	s.t.Errorf("cleaning up: %v", err)
}

func (s *swarmHost) try(args ...string) (string, error) {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.socket, "DOCKER_CONFIG="+filepath.Join(s.engine, "client"))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (s *swarmHost) docker(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// service starts one with a single task on a network.
func (s *swarmHost) service(name, network string) {
	s.t.Helper()
	s.docker("service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", name, "--network", network,
		"--stop-grace-period", "1s", enginetest.Image, "sleep", "100000")
}

// state is how the newest task of a service fares: "Running 2 seconds ago".
func (s *swarmHost) state(name string) string {
	out, _ := s.try("service", "ps", name, "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}")
	line, _, _ := strings.Cut(out, "\n")
	return line
}

func (s *swarmHost) running(name string) {
	s.t.Helper()
	enginetest.Poll(s.t, 2*time.Minute, name+" runs", func() bool { return strings.HasPrefix(s.state(name), "Running") })
}

// stop removes a service and waits until nothing of it is left.
func (s *swarmHost) stop(name string) {
	s.t.Helper()
	s.docker("service", "rm", name)
	enginetest.Poll(s.t, 2*time.Minute, name+" is gone", func() bool {
		out, err := s.try("ps", "--all", "--quiet", "--filter", "label=com.docker.swarm.service.name="+name)
		return err == nil && out == ""
	})
}

func (s *swarmHost) flags(grace string) []string {
	return []string{
		"--host-netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.ns)), "--netns-dir", s.dir, "--docker-host", s.socket, "--grace", grace,
	}
}

// vxlan runs one of the commands.
func (s *swarmHost) vxlan(args ...string) (code int, out string) {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	err := runVXLANWith(s.t.Context(), append(args, s.flags("2s")...), strings.NewReader(""), &stdout, &stderr)
	code = exitCode(err, &stderr)
	if stderr.Len() > 0 {
		s.t.Errorf("vxlan %s said: %s", args[0], stderr.String())
	}
	return code, stdout.String()
}

// watch starts "vxlan watch".
func (s *swarmHost) watch() {
	s.t.Helper()
	ready := filepath.Join(s.engine, "ready")
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	var stderr bytes.Buffer
	go func() {
		done <- runVXLAN(ctx, append([]string{"watch", "--output", "ndjson", "--ready-file", ready}, s.flags("2s")...), s.lines, &stderr)
	}()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("vxlan watch: %v: %s", err, stderr.String())
		}
		if s.t.Failed() {
			for _, d := range s.seen {
				s.t.Logf("event %s %+v %s", d.Event.Action, d.Iotrace.VXLAN, d.Event.Reason)
			}
		}
	})
	enginetest.Poll(s.t, time.Minute, "the watch is attached", func() bool {
		_, err := os.Stat(ready)
		return err == nil
	})
}

// event waits for the next event of that kind and gives it.
func (s *swarmHost) event(action string, ok func(document) bool) document {
	s.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case line := <-s.lines:
			d := decodeEvents(s.t, line)[0]
			s.seen = append(s.seen, d)
			if d.Event.Action == action && (ok == nil || ok(d)) {
				return d
			}
		case <-deadline:
			s.t.Fatalf("no event %q", action)
		}
	}
}

// TestVXLANWithSwarm tells the whole story of a leak with a real engine: every
// way in which a device blocks a network, found, blamed and removed, while all
// that must not be touched stays.
func TestVXLANWithSwarm(t *testing.T) {
	s := startSwarm(t)
	s.docker("network", "create", "--driver", "overlay", "--label", "com.docker.stack.namespace=shop", "fvov")
	s.docker("network", "create", "--driver", "overlay", "healthy")
	id := s.docker("network", "inspect", "--format", "{{.ID}}", "fvov")
	vni := 0
	if _, err := fmt.Sscan(s.docker("network", "inspect", "--format", `{{index .Options "com.docker.network.driver.overlay.vxlanid_list"}}`, "fvov"), &vni); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("vx-%06x-%.5s", vni, id)

	// What must survive everything: a healthy overlay, foreign devices, and one elsewhere.
	s.service("well", "healthy")
	s.running("well")
	s.add("flannel.1", 1, 8472)
	s.up("flannel.1")
	s.add("vxlan.calico", 99, 4789)
	other, err := newNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	s.add("vx-00abcd-other", 0xabcd, 4790)
	link, err := s.links.LinkByName("vx-00abcd-other")
	if err == nil {
		err = s.links.LinkSetNsFd(link, int(other))
	}
	if err != nil {
		t.Fatal(err)
	}
	keeper := exec.Command("nsenter", "--net="+fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(other)), "sleep", "100000")
	if err := keeper.Start(); err != nil { // so that a path leads there
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keeper.Process.Kill(); _ = keeper.Wait() })
	s.watch()

	t.Run("life", func(t *testing.T) {
		s.t = t
		s.service("web", "fvov")
		d := s.event("created", nil)
		if v := d.Iotrace.VXLAN; v.Device != name || v.VNI != vni || v.Network.Name != "fvov" || v.Network.ID != id {
			t.Errorf("created: %+v", d)
		}
		s.event("moved", nil)
		if d := s.event("up", nil); d.Iotrace.VXLAN.Network.Name != "fvov" {
			t.Errorf("up: %+v", d)
		}
		s.running("web")
		code, out := s.vxlan("list")
		if code != exitOK || strings.Count(out, " ok\n") != 3 { // ingress, healthy, fvov
			t.Errorf("list: exit code %d:\n%s", code, out)
		}
		if code, out := s.vxlan("clean", "--yes"); code != exitOK || !strings.Contains(out, "nothing to delete") {
			t.Errorf("clean: exit code %d:\n%s", code, out)
		}
		s.stop("web")
		s.event("down", nil)
		s.event("moved", nil)
		if d := s.event("deleted", nil); d.Iotrace.VXLAN.Device != name || d.Iotrace.VXLAN.Network.Name != "fvov" {
			t.Errorf("deleted: %+v", d)
		}
	})

	for label, c := range map[string]struct {
		device    string
		elsewhere bool
		verdict   string
		cleaned   bool
	}{
		"a, same name and VNI":            {name, false, "leaked", true},
		"b, same VNI, a name of Docker's": {fmt.Sprintf("vx-%06x-zzzzz", vni), false, "leaked", true},
		"b, same VNI, another name":       {"blocker", false, "blocking", false},
		"c, same VNI, elsewhere":          {name, true, "blocking", false},
	} {
		t.Run(label, func(t *testing.T) {
			s.t = t
			enginetest.Poll(t, time.Minute, "the engine's device of the round before is gone", func() bool {
				err := s.tryAdd(c.device, vni, 4789)
				if err != nil && !errors.Is(err, unix.EEXIST) {
					t.Fatalf("making %q: %v", c.device, err)
				}
				return err == nil
			})
			in := s.links
			blocker, err := s.links.LinkByName(c.device)
			if err != nil {
				t.Fatal(err)
			}
			if c.elsewhere {
				if err := s.links.LinkSetNsFd(blocker, int(other)); err != nil {
					t.Fatal(err)
				}
				if in, err = netlink.NewHandleAt(other, unix.NETLINK_ROUTE); err != nil {
					t.Fatal(err)
				}
				defer in.Close()
			}
			code, out := s.vxlan("list")
			if code != exitLeaked || !strings.Contains(out, c.device+" (ifindex") || !strings.Contains(out, "): "+c.verdict+": ") {
				t.Errorf("list: exit code %d:\n%s", code, out)
			}
			if !strings.Contains(out, id) && c.device != fmt.Sprintf("vx-%06x-zzzzz", vni) {
				t.Errorf("list does not name the network:\n%s", out)
			}
			s.service("web", "fvov")
			// Refusals of the round before may still be told.
			refused := s.event("create_failed", func(d document) bool { return d.Iotrace.VXLAN.Culprit == c.device })
			if v := refused.Iotrace.VXLAN; v.VNI != vni || v.Network.Name != "fvov" || refused.Event.Reason == "" {
				t.Errorf("refused: %+v", refused)
			}
			if state := s.state("web"); strings.HasPrefix(state, "Running") {
				t.Errorf("with the device in the way the service is %q", state)
			}
			before := s.names()
			code, out = s.vxlan("clean", "--yes")
			if c.cleaned {
				// The engine may make its own device already, at first in its own namespace.
				left, want := s.names(name), strings.Join(strings.Fields(strings.ReplaceAll(before, c.device, "")), " ")
				if _, err := in.LinkByIndex(blocker.Attrs().Index); code != exitOK || left != want || !errors.As(err, &netlink.LinkNotFoundError{}) {
					t.Errorf("clean: exit code %d, left %q, want %q, the device itself: %v:\n%s", code, left, want, err, out)
				}
			} else {
				if code != exitLeaked || s.names() != before || !strings.Contains(out, "clean leaves it alone: ") {
					t.Errorf("clean: exit code %d, left %q, want %q:\n%s", code, s.names(), before, out)
				}
				link, err := in.LinkByName(c.device) // as its user would
				if err == nil {
					err = in.LinkDel(link)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s.running("web") // the next start works
			s.stop("web")
		})
	}

	s.t = t
	s.running("well")
	if got := s.names(); got != "flannel.1 vxlan.calico" {
		t.Errorf("foreign devices left: %q", got)
	}
	in, err := netlink.NewHandleAt(other, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.LinkByName("vx-00abcd-other"); err != nil {
		t.Errorf("the device elsewhere: %v", err)
	}
}

// TestVXLANPortTaken: where an external device has the UDP port, a real engine starts no
// container of an overlay network ("failed to set link up: address already in use"). The
// watch says why, without hooks, list names the device, and without it the start works. A
// process on the port does the same harm.
func TestVXLANPortTaken(t *testing.T) {
	s := startSwarmless(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "ext"
	external := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 4789}
	if err := s.links.LinkAdd(external); err != nil {
		t.Fatal(err)
	}
	s.up("ext")
	s.init()
	s.docker("network", "create", "--driver", "overlay", "fvov")
	s.watch()
	starts := func(holder, culprit string) {
		t.Helper()
		s.service("web", "fvov")
		d := s.event("up_failed", func(d document) bool { return strings.Contains(d.Event.Reason, holder) })
		if v := d.Iotrace.VXLAN; v.Culprit != culprit || v.Network.Name != "fvov" {
			t.Errorf("refused: %+v", d)
		}
		enginetest.Poll(t, time.Minute, "the engine says that the port is taken", func() bool {
			out, _ := s.try("service", "ps", "web", "--no-trunc", "--format", "{{.Error}}")
			return strings.Contains(out, "address already in use")
		})
		if code, out := s.vxlan("list"); code != exitLeaked || !strings.Contains(out, "UDP port 4789 of the host") || !strings.Contains(out, noDeviceUp) {
			t.Errorf("list: exit code %d:\n%s", code, out)
		}
	}
	starts(`UDP port 4789 is taken by device "ext"`, "ext")
	link, err := s.links.LinkByName("ext")
	if err == nil {
		err = s.links.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.running("web") // the next start works
	s.stop("web")
}

const noDeviceUp = "no device of an overlay network can be set UP here"

// TestOverlayWatchGivenUp: a run that began without a swarm has given up what the watch
// needs. When an engine joins one it says so, once, and the next run watches.
func TestOverlayWatchGivenUp(t *testing.T) {
	s := startSwarmless(t)
	r := s.trace("--source", "block")
	reason := func(r *traced) (attached bool, reason string) {
		for _, d := range r.seen() {
			if v, ok := d.Iotrace.Sources["vxlan"]; ok {
				attached, reason = v.Attached, v.Reason
			}
		}
		return attached, reason
	}
	enginetest.Poll(t, time.Minute, "the run says that it does not watch", func() bool {
		_, why := reason(r)
		return strings.Contains(why, "--vxlan")
	})
	s.init()
	enginetest.Poll(t, time.Minute, "the run has seen the swarm", func() bool {
		_, why := reason(r)
		return strings.Contains(why, "permission")
	})
	next := s.trace("--source", "block")
	enginetest.Poll(t, time.Minute, "the next run watches", func() bool {
		attached, _ := reason(next)
		return attached
	})
	next.stop(t)
	r.stop(t)
	if said := r.stderr.String(); strings.Count(said, "start it again") != 1 {
		t.Errorf("it said %s", said)
	}
}

// TestOverlayWatchNeedsSwarm: a run with --vxlan watches overlay devices as soon as an
// engine is in a swarm, and not before. It has given up most privileges by then, and
// still hears what happens in all network namespaces, also where only rtnetlink tells it.
func TestOverlayWatchNeedsSwarm(t *testing.T) {
	s := startSwarmless(t)
	r := s.trace("--vxlan", "--source", "block")
	source := func() (attached bool, reason string) {
		for _, d := range r.seen() {
			if v, ok := d.Iotrace.Sources["vxlan"]; ok {
				attached, reason = v.Attached, v.Reason
			}
		}
		return attached, reason
	}
	enginetest.Poll(t, time.Minute, "the watch waits for a swarm", func() bool {
		_, reason := source()
		return strings.Contains(reason, "swarm")
	})
	s.docker("network", "create", "no-overlay") // the engine is asked once more
	before := len(r.seen())
	enginetest.Poll(t, time.Minute, "ten more documents", func() bool { return len(r.seen()) >= before+10 })
	if attached, reason := source(); attached || !strings.Contains(reason, "swarm") {
		t.Fatalf("without a swarm: attached %v, %q", attached, reason)
	}
	s.init()
	enginetest.Poll(t, time.Minute, "the watch is attached", func() bool {
		attached, _ := source()
		return attached
	})
	s.docker("network", "create", "--driver", "overlay", "fvov")
	s.service("web", "fvov")
	s.running("web")
	s.stop("web")
	for _, action := range []string{"created", "moved", "up", "down", "deleted"} {
		enginetest.Poll(t, time.Minute, "event "+action, func() bool {
			return slices.ContainsFunc(r.seen(), func(d tracedDoc) bool {
				return d.Event.Dataset == "iotrace.vxlan" && d.Event.Action == action && d.Iotrace.VXLAN.Network.Name == "fvov"
			})
		})
	}
	r.stop(t)
	if said := r.stderr.String(); strings.Contains(said, "not watched") {
		t.Errorf("it said %s", said)
	}
}

// TestOverlayWatchForbidden: where a swarm is and the watch cannot run, one line says so,
// and tracing goes on.
func TestOverlayWatchForbidden(t *testing.T) {
	s := startSwarm(t)
	cmd := asNobody(exec.Command(shipped(t), "--docker-host", "unix://"+s.socket, "--only-listed-sockets", "--source", "block", "--interval", "200ms"),
		unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE)
	r := startNDJSON(t, cmd)
	reason := ""
	enginetest.Poll(t, time.Minute, "the watch has failed", func() bool {
		for _, d := range r.seen() {
			if v, ok := d.Iotrace.Sources["vxlan"]; ok {
				reason = v.Reason
			}
		}
		return reason != "" && !strings.Contains(reason, "swarm")
	})
	before := len(r.seen())
	enginetest.Poll(t, time.Minute, "it traces", func() bool { return len(r.seen()) > before })
	r.stop(t)
	if said := r.stderr.String(); strings.Count(said, "overlay network devices are not watched") != 1 || !strings.Contains(said, "CAP_NET_BROADCAST") {
		t.Errorf("it said %s", said)
	}
}
