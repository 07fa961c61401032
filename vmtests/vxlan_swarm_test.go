//go:build vm

package vmtests

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestVXLANSwarm lets a real engine in swarm mode do what vxlanLife and
// vxlanRefused do by hand. Here the hooks report the engine's own refused devices.
func TestVXLANSwarm(t *testing.T) {
	suite{
		source:    "", // the table of kernels shows TestVXLAN's
		image:     "docker",
		memory:    2048,
		deadline:  15 * time.Minute,
		scenarios: []scenario{{name: "swarm", run: vxlanSwarm}},
	}.test(t)
}

// swarm is an engine in a guest.
type swarm struct{ g *guest.Guest }

func startSwarm(g *guest.Guest) swarm {
	g.Helper()
	g.Modprobe("overlay", "bridge", "veth", "vxlan")
	g.Exec("ip", "link", "add", "uplink", "type", "dummy")
	g.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "uplink")
	g.Exec("ip", "link", "set", "uplink", "up")
	startDockerd(g, "--default-ulimit", "nofile=1024:1024")
	g.Cleanup(func() { _, _ = g.Try("docker", "swarm", "leave", "--force") })
	s := swarm{g}
	dir := g.TempDir()
	root := filepath.Join(dir, "root")
	g.Exec("mkdir", "-p", filepath.Join(root, "bin"))
	g.Exec("cp", "/bin/busybox", filepath.Join(root, "bin/sleep"))
	g.Exec("tar", "-C", root, "-cf", filepath.Join(dir, "root.tar"), ".")
	g.Exec("docker", "import", filepath.Join(dir, "root.tar"), "busybox:test")
	g.Exec("docker", "swarm", "init", "--advertise-addr", "192.0.2.1")
	return s
}

// eventually waits longer than the guest's helper does: an engine under
// emulation takes its time.
func (s swarm) eventually(what string, ok func() bool) {
	s.g.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			out, _ := s.g.Try("docker", "service", "ps", "web", "--no-trunc")
			s.g.Fatalf("never: %s\n%s", what, out)
		}
	}
}

func (s swarm) service() {
	s.g.Helper()
	s.g.Exec("docker", "service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", "web", "--network", "fvov",
		"--stop-grace-period", "1s", "busybox:test", "/bin/sleep", "100000")
}

func (s swarm) running() {
	s.g.Helper()
	s.eventually("the service runs", func() bool {
		out, _ := s.g.Try("docker", "service", "ps", "web", "--format", "{{.CurrentState}}")
		return strings.HasPrefix(out, "Running")
	})
}

func (s swarm) stop() {
	s.g.Helper()
	s.g.Exec("docker", "service", "rm", "web")
	s.eventually("the service is gone", func() bool {
		out, err := s.g.Try("docker", "ps", "--all", "--quiet")
		return err == nil && strings.TrimSpace(out) == ""
	})
}

func vxlanSwarm(g *guest.Guest) {
	s := startSwarm(g)
	g.Exec("docker", "network", "create", "--driver", "overlay", "fvov")
	id := strings.TrimSpace(g.Exec("docker", "network", "inspect", "--format", "{{.ID}}", "fvov"))
	var vni int
	text := g.Exec("docker", "network", "inspect", "--format", `{{index .Options "com.docker.network.driver.overlay.vxlanid_list"}}`, "fvov")
	if _, err := fmt.Sscan(text, &vni); err != nil {
		g.Fatalf("VNI %q: %v", text, err)
	}
	name := fmt.Sprintf("vx-%06x-%.5s", vni, id)
	host := netNS(g, "/proc/1/ns/net")
	elsewhere := newNetNS(g, "elsewhere")
	w := watchVXLAN(g, noLeaks)
	await := func(what string, ok func(guest.Doc) bool) (found guest.Doc) {
		g.Helper()
		s.eventually(what, func() bool {
			for _, d := range w.events(".*") {
				if ok(d) {
					found = d
					return true
				}
			}
			return false
		})
		if d := found; d.String("iotrace.vxlan.network.name") != "fvov" || d.Int("iotrace.vxlan.vni") != int64(vni) {
			g.Errorf("%s: %v", what, d)
		}
		return found
	}
	action := func(want string) func(guest.Doc) bool {
		return func(d guest.Doc) bool {
			return d.String("event.action") == want && d.Int("iotrace.vxlan.vni") == int64(vni)
		}
	}

	s.service()
	s.running()
	s.stop()
	for _, what := range []string{"created", "moved", "renamed", "up", "down", "deleted"} {
		if d := await(what, action(what)); d.String("process.name") != "dockerd" {
			g.Errorf("%s by %q", what, d.String("process.name"))
		}
	}

	for _, c := range []struct {
		device    string
		elsewhere bool
		cleaned   bool
	}{{name, false, true}, {"blocker", false, false}, {"hidden", true, false}} {
		g.Exec("ip", ipVXLAN(c.device, vni)...)
		ip, at := []string{}, host
		if c.elsewhere {
			g.Exec("ip", "link", "set", c.device, "netns", "elsewhere")
			ip, at = []string{"-n", "elsewhere"}, elsewhere
		}
		s.service()
		d := await("refusal because of "+c.device, func(d guest.Doc) bool {
			return d.String("event.action") == "create_failed" && d.String("iotrace.vxlan.culprit") == c.device
		})
		if d.String("iotrace.vxlan.device") != name || d.String("process.name") != "dockerd" || d.String("iotrace.vxlan.culprit_netns") != at ||
			!strings.Contains(d.String("event.reason"), "made by ip") {
			g.Errorf("refusal because of %s: %v", c.device, d)
		}
		out, err := g.Try(g.Tool(), "vxlan", "list", "--grace", "1s")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(out, c.device+" (ifindex") {
			g.Errorf("list with %s: %v\n%s", c.device, err, out)
		}
		out, err = g.Try(g.Tool(), "vxlan", "clean", "--grace", "1s", "--yes")
		if c.cleaned != (err == nil) || c.cleaned != strings.Contains(out, "deleted") {
			g.Errorf("clean with %s: %v\n%s", c.device, err, out)
		}
		if !c.cleaned {
			g.Exec("ip", append(ip, "link", "del", c.device)...)
		}
		s.running()
		if out, err := g.Try(g.Tool(), "vxlan", "clean", "--grace", "1s", "--yes"); err != nil || !strings.Contains(out, "nothing to delete") {
			g.Errorf("clean of a host that works: %v\n%s", err, out)
		}
		s.stop()
	}
}
