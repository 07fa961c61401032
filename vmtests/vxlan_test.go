//go:build vm

package vmtests

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestVXLAN follows overlay devices through the steps of an engine, with every set
// of hooks, and removes a leaked device.
func TestVXLAN(t *testing.T) {
	suite{
		source: "vxlan",
		quick:  oldestAndNewest,
		scenarios: []scenario{
			// It must be first: nothing else has loaded the module yet.
			{name: "module", run: vxlanModule, smoke: true},
			{name: "life_best", run: func(g *guest.Guest) { vxlanLife(g, "call_netdevice_notifiers_info") }, smoke: true},
			{name: "life_kprobe", run: func(g *guest.Guest) {
				vxlanLife(g, "kprobe/call_netdevice_notifiers_info", "fentry/", "fexit/")
			}, smoke: true},
			{name: "life_fallback", run: func(g *guest.Guest) {
				vxlanLife(g, "register_netdevice", "fentry/call_netdevice", "kprobe/call_netdevice")
			}},
			{name: "life_fallback_kprobe", run: func(g *guest.Guest) {
				vxlanLife(g, "kprobe/{register_netdevice", "fentry/", "fexit/", "kprobe/call_netdevice")
			}},
			{name: "life_netlink", run: func(g *guest.Guest) { vxlanLife(g, "rtnetlink", "fentry/", "fexit/", "kprobe/", "raw_tp/") }},
			{name: "namespace", run: vxlanNamespace, smoke: true},
			{name: "refused_best", run: func(g *guest.Guest) { vxlanRefused(g) }, smoke: true},
			{name: "refused_kprobe", run: func(g *guest.Guest) { vxlanRefused(g, "fentry/", "fexit/") }},
			{name: "port_best", run: func(g *guest.Guest) { vxlanPort(g, true) }, smoke: true},
			{name: "port_kprobe", run: func(g *guest.Guest) { vxlanPort(g, true, "fentry/", "fexit/") }},
			{name: "port_netlink", run: func(g *guest.Guest) { vxlanPort(g, false, "fentry/", "fexit/", "kprobe/", "raw_tp/") }},
			{name: "burst", run: vxlanBurst, smoke: true},
			{name: "leak", run: vxlanLeak, smoke: true},
		},
	}.test(t)
}

// vxlanWatch is a running "iotrace-bpf vxlan watch".
type vxlanWatch struct {
	g   *guest.Guest
	cmd *exec.Cmd
	out string
	err string
}

// noLeaks is a grace period for scenarios that expect exact events: a device that
// is down is not reported as leaked, even if the next step takes long.
const noLeaks = time.Hour

// watchVXLAN starts a watch without the hooks whose names begin with these words,
// and waits until it is attached.
func watchVXLAN(g *guest.Guest, grace time.Duration, without ...string) *vxlanWatch {
	g.Helper()
	dir := g.TempDir()
	ready := filepath.Join(dir, "ready")
	args := []string{"vxlan", "watch", "--output", "ndjson", "--grace", grace.String(), "--verbose", "--ready-file", ready}
	for _, w := range without {
		args = append(args, "--without-hook", w)
	}
	w := &vxlanWatch{g: g, cmd: exec.Command(g.Tool(), args...), out: filepath.Join(dir, "out"), err: filepath.Join(dir, "err")}
	stdout, err := os.Create(w.out)
	if err != nil {
		g.Fatal(err)
	}
	defer stdout.Close()
	stderr, err := os.Create(w.err)
	if err != nil {
		g.Fatal(err)
	}
	defer stderr.Close()
	w.cmd.Stdout, w.cmd.Stderr = stdout, stderr
	if err := w.cmd.Start(); err != nil {
		g.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- w.cmd.Wait() }()
	g.Cleanup(func() {
		_ = w.cmd.Process.Signal(syscall.SIGINT)
		if err := <-exited; err != nil {
			g.Errorf("vxlan watch: %v", err)
		}
		if g.Failed() {
			g.Logf("vxlan watch said:\n%s\n%s", g.ReadFile(w.err), g.ReadFile(w.out))
		}
	})
	g.Eventually("vxlan watch is attached", func() bool {
		select {
		case err := <-exited:
			exited <- err
			g.Fatalf("vxlan watch ended: %v\n%s", err, g.ReadFile(w.err))
		default:
		}
		_, err := os.Stat(ready)
		return err == nil
	})
	return w
}

// events returns the events so far of devices whose names match.
func (w *vxlanWatch) events(names string) []guest.Doc {
	w.g.Helper()
	b := []byte(w.g.ReadFile(w.out))
	r, err := guest.ParseOutput(b[:bytes.LastIndexByte(b, '\n')+1])
	if err != nil {
		w.g.Fatal(err)
	}
	re := regexp.MustCompile("^(" + names + ")$")
	var found []guest.Doc
	for _, d := range r.Docs {
		if re.MatchString(d.String("iotrace.vxlan.device")) {
			found = append(found, d)
		}
	}
	return found
}

// await waits for n events of devices whose names match, and fails if there are more.
func (w *vxlanWatch) await(names string, n int) []guest.Doc {
	w.g.Helper()
	var found []guest.Doc
	w.g.Eventually(fmt.Sprintf("%d events of %q", n, names), func() bool {
		found = w.events(names)
		return len(found) >= n
	})
	if len(found) != n {
		w.g.Errorf("%d events of %q, want %d", len(found), names, n)
	}
	return found
}

// netNS is a namespace's inode number, as documents have it.
func netNS(g *guest.Guest, path string) string {
	g.Helper()
	info, err := os.Stat(path)
	if err != nil {
		g.Fatal(err)
	}
	return fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino)
}

// newNetNS makes a namespace with a file of its own.
func newNetNS(g *guest.Guest, name string) (inode string) {
	g.Helper()
	g.Exec("ip", "netns", "add", name)
	g.Cleanup(func() { _, _ = g.Try("ip", "netns", "del", name) })
	return netNS(g, "/run/netns/"+name)
}

const addVXLAN = "link add %s type vxlan id %d dstport 4789 nolearning proxy l2miss l3miss"

func ipVXLAN(name string, vni int) []string { return strings.Fields(fmt.Sprintf(addVXLAN, name, vni)) }

// vxlanLife takes a device through the steps of an engine. The watch must report
// every event, in order, with namespaces, VNI and process.
func vxlanLife(g *guest.Guest, hooks string, without ...string) {
	g.Modprobe("vxlan")
	overlay := newNetNS(g, "overlay")
	host := netNS(g, "/proc/1/ns/net")
	w := watchVXLAN(g, noLeaks, without...)
	if said := g.ReadFile(w.err); !strings.Contains(said, "attached ") || !strings.Contains(said, hooks) {
		g.Errorf("attached to other hooks than %q: %s", hooks, said)
	}
	noProcess := hooks == "rtnetlink"
	a := g.Cgroup("engine")
	a.Run("ip", ipVXLAN("vx-001001-m64nq", 4097)...)
	index := strings.TrimSpace(g.ReadFile("/sys/class/net/vx-001001-m64nq/ifindex"))
	a.Run("ip", "link", "set", "vx-001001-m64nq", "netns", "overlay")
	a.Run("ip", "-n", "overlay", "link", "set", "vx-001001-m64nq", "name", "vxlan0")
	a.Run("ip", "-n", "overlay", "link", "set", "vxlan0", "up")
	a.Run("ip", "-n", "overlay", "link", "set", "vxlan0", "down")
	a.Run("ip", "-n", "overlay", "link", "set", "vxlan0", "name", "vx-001001-m64nq")
	a.Run("ip", "-n", "overlay", "link", "set", "vx-001001-m64nq", "netns", "1")
	a.Run("ip", "link", "del", "vx-001001-m64nq")
	type event struct{ action, device, from, to string }
	want := []event{
		{"created", "vx-001001-m64nq", host, ""},
		{"moved", "vx-001001-m64nq", host, overlay},
		{"renamed", "vxlan0", overlay, ""},
		{"up", "vxlan0", overlay, ""},
		{"down", "vxlan0", overlay, ""},
		{"renamed", "vx-001001-m64nq", overlay, ""},
		{"moved", "vx-001001-m64nq", overlay, host},
		{"deleted", "vx-001001-m64nq", host, ""},
	}
	if strings.Contains(hooks, "register_netdevice") { // the fallback hook reports neither names nor UP and DOWN
		want = []event{want[0], want[1], want[6], want[7]}
	}
	for i, d := range w.await("vx-001001-m64nq|vxlan0", len(want)) {
		if i >= len(want) {
			break
		}
		got := event{
			d.String("event.action"), d.String("iotrace.vxlan.device"), d.String("iotrace.vxlan.netns"), d.String("iotrace.vxlan.new_netns"),
		}
		if got != want[i] {
			g.Errorf("event %d is %+v, want %+v", i, got, want[i])
		}
		if vni, n := d.Int("iotrace.vxlan.vni"), fmt.Sprint(d.Int("iotrace.vxlan.ifindex")); vni != 4097 || n != index {
			g.Errorf("event %d has VNI %d and ifindex %s, want 4097 and %s", i, vni, n, index)
		}
		if noProcess {
			continue
		}
		if name, pid, path := d.String("process.name"), d.Int("process.pid"), d.String("iotrace.cgroup.path"); name != "ip" || pid == 0 || path != a.Path() {
			g.Errorf("event %d was done by %q, pid %d, in cgroup %q; want ip in %q", i, name, pid, path, a.Path())
		}
	}
}

// vxlanNamespace deletes a namespace with a device in it.
func vxlanNamespace(g *guest.Guest) {
	g.Modprobe("vxlan")
	doomed := newNetNS(g, "doomed")
	w := watchVXLAN(g, noLeaks)
	g.Exec("ip", ipVXLAN("vx-001002-m64nq", 4098)...)
	g.Exec("ip", "link", "set", "vx-001002-m64nq", "netns", "doomed")
	g.Exec("ip", "netns", "del", "doomed")
	d := w.await("vx-001002-m64nq", 3)[2]
	if d.String("event.action") != "deleted" || d.String("iotrace.vxlan.netns") != doomed || d.Int("iotrace.vxlan.vni") != 4098 {
		g.Errorf("last event is %v", d)
	}
	if name := d.String("process.name"); !strings.HasPrefix(name, "kworker") {
		g.Errorf("deleted by %q, want a kernel thread", name)
	}
	g.Exec("ip", ipVXLAN("vx-001002-m64nq", 4098)...) // the VNI is free: the watch holds nothing
	g.Exec("ip", "link", "del", "vx-001002-m64nq")
}

// vxlanModule watches while the module is loaded, unloaded and loaded again.
func vxlanModule(g *guest.Guest) {
	if _, err := os.Stat("/sys/module/vxlan"); err == nil {
		g.Exec("modprobe", "-r", "vxlan")
	}
	w := watchVXLAN(g, noLeaks)
	for round, name := range []string{"vx-000a01-first", "vx-000a02-secnd"} {
		vni := 0xa01 + round
		g.Modprobe("vxlan")
		g.Exec("ip", ipVXLAN(name, vni)...)
		d := w.await(name, 1)[0]
		if d.String("event.action") != "created" || d.Int("iotrace.vxlan.vni") != int64(vni) {
			g.Errorf("first event is %v", d)
		}
		// A refused device names its culprit, after every load of the module.
		if out, err := g.Try("ip", ipVXLAN("taken", vni)...); err == nil {
			g.Errorf("a second device for a VNI: %s", out)
		}
		if d := w.await("taken", 1+round)[round]; d.String("iotrace.vxlan.culprit") != name {
			g.Errorf("culprit %q, want %q", d.String("iotrace.vxlan.culprit"), name)
		}
		g.Exec("modprobe", "-r", "vxlan") // not pinned; its devices go with it
		d = w.await(name, 2)[1]
		if d.String("event.action") != "deleted" || d.String("process.name") != "modprobe" {
			g.Errorf("last event is %v", d)
		}
	}
	g.Modprobe("vxlan")
}

// vxlanRefused makes devices whose name or VNI is taken.
func vxlanRefused(g *guest.Guest, without ...string) {
	g.Modprobe("vxlan")
	elsewhere := newNetNS(g, "elsewhere")
	host := netNS(g, "/proc/1/ns/net")
	maker, asker := g.Cgroup("maker"), g.Cgroup("asker")
	w := watchVXLAN(g, noLeaks, without...)
	maker.Run("ip", ipVXLAN("vx-001001-m64nq", 4097)...)
	maker.Run("ip", ipVXLAN("vx-001003-moved", 4099)...)
	maker.Run("ip", "link", "set", "vx-001003-moved", "netns", "elsewhere")
	maker.Run("ip", "-n", "elsewhere", "link", "set", "vx-001003-moved", "name", "hidden")
	g.Cleanup(func() {
		_, _ = g.Try("ip", "link", "del", "vx-001001-m64nq")
		_, _ = g.Try("ip", "link", "del", "br-taken")
	})
	g.Exec("ip", "link", "add", "br-taken", "type", "dummy")
	for _, c := range []struct {
		name          string
		vni           int
		culprit, at   string
		reason, maker string
	}{
		{"vx-001001-m64nq", 4097, "vx-001001-m64nq", host, "a device of that name exists already, DOWN", "made by ip"},
		{"vx-001001-m64nq", 5000, "vx-001001-m64nq", host, "a device of that name exists already, DOWN", "made by ip"},
		{"vx-001001-other", 4097, "vx-001001-m64nq", host, `VNI 4097 is taken by "vx-001001-m64nq", DOWN`, "made by ip"},
		{"vx-001003-other", 4099, "hidden", elsewhere, `VNI 4099 is taken by "hidden", DOWN`, "made by ip"},
		{"br-taken", 4100, "br-taken", host, `a device of kind "dummy" bears the name`, ""},
	} {
		before := len(w.refusals())
		out, err := asker.Command("ip", ipVXLAN(c.name, c.vni)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !bytes.Contains(out, []byte("exists")) {
			g.Fatalf("%s with VNI %d: %v: %s", c.name, c.vni, err, out)
		}
		g.Eventually("refusal of "+c.name, func() bool { return len(w.refusals()) > before })
		d := w.refusals()[before]
		if d.String("iotrace.vxlan.device") != c.name || d.Int("iotrace.vxlan.vni") != int64(c.vni) ||
			d.String("iotrace.vxlan.culprit") != c.culprit || d.String("iotrace.vxlan.culprit_netns") != c.at ||
			!strings.Contains(d.String("event.reason"), c.reason) || !strings.Contains(d.String("event.reason"), c.maker) ||
			d.String("process.name") != "ip" || d.String("iotrace.cgroup.path") != asker.Path() || d.String("event.outcome") != "failure" {
			g.Errorf("%s with VNI %d: %v, want %+v", c.name, c.vni, d, c)
		}
	}
	// Another port is no conflict, and the watch reports no refusal.
	before := len(w.refusals())
	g.Exec("ip", "link", "add", "port", "type", "vxlan", "id", "4097", "dstport", "4790")
	g.Exec("ip", "link", "del", "port")
	w.await("port", 2)
	if after := len(w.refusals()); after != before {
		g.Errorf("%d refusals reported, want %d", after, before)
	}
}

// vxlanPort sets devices UP whose UDP port is taken, once by an external device and once by a
// process. Hooks tell it at once; without them it is told after the grace period.
func vxlanPort(g *guest.Guest, hooked bool, without ...string) {
	g.Modprobe("vxlan")
	overlay := newNetNS(g, "1-m64nqtdens") // as Docker calls that of an overlay network
	const grace = 3 * time.Second
	asker := g.Cgroup("asker")
	w := watchVXLAN(g, grace, without...)
	// By VNI: where each step takes long, the device is stuck before it has its new name.
	action := func(vni int, want string) (found []guest.Doc) {
		for _, d := range w.events(".*") {
			if d.String("event.action") == want && d.Int("iotrace.vxlan.vni") == int64(vni) {
				found = append(found, d)
			}
		}
		return found
	}
	refuse := func(device string, vni int, culprit, reason string) {
		g.Helper()
		name := fmt.Sprintf("vx-%06x-m64nq", vni)
		asker.Run("ip", ipVXLAN(name, vni)...)
		asker.Run("ip", "link", "set", name, "netns", "1-m64nqtdens")
		asker.Run("ip", "-n", "1-m64nqtdens", "link", "set", name, "name", device)
		out, err := asker.Command("ip", "-n", "1-m64nqtdens", "link", "set", device, "up").CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("Address already in use")) {
			g.Fatalf("setting %s UP: %v: %s", device, err, out)
		}
		for _, want := range []string{"up_failed", "stuck"} {
			if want == "up_failed" && !hooked {
				continue
			}
			g.Eventually(want+" "+device, func() bool { return len(action(vni, want)) == 1 })
			d := action(vni, want)[0]
			if d.String("iotrace.vxlan.netns") != overlay || d.String("iotrace.vxlan.culprit") != culprit ||
				!strings.Contains(d.String("event.reason"), reason) {
				g.Errorf("%s: %v, want culprit %q and %q", want, d, culprit, reason)
			}
			if want == "up_failed" && (d.String("process.name") != "ip" || d.String("iotrace.cgroup.path") != asker.Path() || d.String("event.outcome") != "failure") {
				g.Errorf("%s: %v", want, d)
			}
		}
	}
	list := func(wants ...string) {
		g.Helper()
		out, err := g.Try(g.Tool(), "vxlan", "list", "--grace", "1s")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 4 {
			g.Errorf("list: %v", err)
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				g.Errorf("list does not say %q:\n%s", want, out)
			}
		}
	}
	g.Cleanup(func() { _, _ = g.Try("ip", "link", "del", "ext") })
	g.Exec("ip", "link", "add", "ext", "type", "vxlan", "external", "dstport", "4789")
	g.Exec("ip", "link", "set", "ext", "up")
	refuse("vxlan0", 4097, "ext", `UDP port 4789 is taken by device "ext"`)
	list("): blocking: it has UDP port 4789 of the host for itself", "): stuck: DOWN in its overlay's namespace")
	g.Exec("ip", "link", "del", "ext")

	taken, err := net.ListenPacket("udp4", ":4789")
	if err != nil {
		g.Fatal(err)
	}
	defer taken.Close()
	holder := fmt.Sprintf("(pid %d)", os.Getpid())
	refuse("vxlan1", 4098, "", "UDP port 4789 is taken by process")
	list("udp:4789: blocking: process", holder+" has UDP port 4789 of the host open")
	taken.Close()
	for _, device := range []string{"vxlan0", "vxlan1"} {
		g.Exec("ip", "-n", "1-m64nqtdens", "link", "set", device, "up")
	}
	if out, err := g.Try(g.Tool(), "vxlan", "list", "--grace", "1s"); err != nil || strings.Count(out, " ok\n") != 2 {
		g.Errorf("list of a host that works: %v\n%s", err, out)
	}
}

func (w *vxlanWatch) refusals() []guest.Doc {
	var found []guest.Doc
	for _, d := range w.events(".*") {
		if d.String("event.action") == "create_failed" {
			found = append(found, d)
		}
	}
	return found
}

// vxlanBurst makes and deletes devices in a burst: the watch loses no event, or counts
// the lost ones.
func vxlanBurst(g *guest.Guest) {
	const devices = 1000
	g.Modprobe("vxlan")
	w := watchVXLAN(g, noLeaks)
	var batch strings.Builder
	for i := range devices {
		fmt.Fprintf(&batch, addVXLAN+"\n", fmt.Sprintf("vx-%06x-burst", i+1), i+1)
		fmt.Fprintf(&batch, "link del vx-%06x-burst\n", i+1)
	}
	file := filepath.Join(g.TempDir(), "batch")
	g.WriteFile(file, batch.String())
	g.Exec("ip", "-batch", file)
	g.Exec("ip", ipVXLAN("vx-00ffff-after", 0xffff)...)
	w.await("vx-00ffff-after", 1)
	count := map[string]int{}
	for _, d := range w.events("vx-......-burst") {
		count[d.String("event.action")]++
	}
	if count["created"] != devices || count["deleted"] != devices || len(count) != 2 {
		lost := g.ReadFile(w.err)
		g.Errorf("reported %v, want %d created and deleted; it said %q", count, devices, lost)
	}
	g.Exec("ip", "link", "del", "vx-00ffff-after")
}

// vxlanLeak leaves a device behind, among others that must stay.
func vxlanLeak(g *guest.Guest) {
	g.Modprobe("vxlan")
	newNetNS(g, "elsewhere")
	const grace = 3 * time.Second
	w := watchVXLAN(g, grace)
	engine := g.Cgroup("engine")
	for _, keep := range []struct {
		name string
		vni  int
		up   bool
		ns   string
	}{
		{"flannel.1", 1, true, ""}, {"vxlan.calico", 4096, false, ""}, {"vx-001005-inuse", 4101, true, ""}, {"byhand", 77, false, ""},
		{"vx-001006-there", 4102, false, "elsewhere"},
	} {
		g.Exec("ip", ipVXLAN(keep.name, keep.vni)...)
		ip := []string{}
		if keep.up {
			g.Exec("ip", "link", "set", keep.name, "up")
		}
		if keep.ns != "" {
			g.Exec("ip", "link", "set", keep.name, "netns", keep.ns)
			ip = []string{"-n", keep.ns}
		}
		g.Cleanup(func() { _, _ = g.Try("ip", append(ip, "link", "del", keep.name)...) })
	}
	engine.Run("ip", ipVXLAN("vx-001001-m64nq", 4097)...)
	events := w.await("vx-001001-m64nq", 2)
	if d := events[1]; d.String("event.action") != "leaked" || d.Int("iotrace.vxlan.age") < int64(grace) || d.String("iotrace.cgroup.path") != engine.Path() {
		g.Errorf("second event is %v", d)
	}
	before := g.Exec("ip", "-o", "link", "show", "type", "vxlan")
	out, err := g.Try(g.Tool(), "vxlan", "list", "--grace", "1s")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(out, "vx-001001-m64nq (ifindex") || !strings.Contains(out, "leaked:") {
		g.Errorf("list: %v\n%s", err, out)
	}
	// Without an engine clean cannot know which devices are live, and deletes none.
	out, err = g.Try(g.Tool(), "vxlan", "clean", "--grace", "1s", "--yes")
	if now := g.Exec("ip", "-o", "link", "show", "type", "vxlan"); !errors.As(err, &exit) || exit.ExitCode() != 4 || now != before {
		g.Errorf("clean without an engine: %v\n%s\nleft:\n%s", err, out, now)
	}
	g.Exec("mkdir", "-p", "/run/docker/netns") // there is one, and it has no overlay
	g.Cleanup(func() { _, _ = g.Try("rmdir", "/run/docker/netns") })
	out, err = g.Try(g.Tool(), "vxlan", "clean", "--grace", "1s", "--yes")
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(out, "deleted") { // the two in the way are left
		g.Errorf("clean: %v\n%s", err, out)
	}
	w.await("vx-001001-m64nq", 3)
	after := g.Exec("ip", "-o", "link", "show", "type", "vxlan")
	if strings.Count(before, "\n") != strings.Count(after, "\n")+1 || strings.Contains(after, "vx-001001-m64nq") {
		g.Errorf("before clean:\n%safter:\n%s", before, after)
	}
}
