//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestNFSDocker asks the question that users ask: containers of two compose
// projects write to Docker volumes of type nfs. Which project loads the server?
func TestNFSDocker(t *testing.T) {
	suite{
		image:     "docker",
		memory:    2048,
		deadline:  20 * time.Minute,
		scenarios: []scenario{{name: "docker_volume", run: nfsDockerVolume}},
	}.test(t)
}

// startDocker runs an engine without networks until the scenario's end, with an
// image of busybox.
func startDocker(g *guest.Guest) {
	g.Helper()
	g.Modprobe("overlay")
	startDockerd(g)
	root := filepath.Join(g.TempDir(), "root")
	g.Exec("mkdir", "-p", filepath.Join(root, "bin"))
	g.Exec("cp", "/bin/busybox", filepath.Join(root, "bin/dd"))
	g.Exec("cp", "/bin/busybox", filepath.Join(root, "bin/sleep"))
	g.Exec("tar", "-C", root, "-cf", root+".tar", ".")
	g.Exec("docker", "import", root+".tar", "dd:test")
}

// startDockerd runs dockerd without networks of its own until the scenario's end. Its
// containerd is a process beside it, as in Debian's units, unless args name another one: a
// dockerd that starts its own gives up after 15 seconds, which a busy emulator needs.
func startDockerd(g *guest.Guest, args ...string) {
	g.Helper()
	if !slices.Contains(args, "--containerd") {
		args = append(args, "--containerd", startContainerd(g))
	}
	startDaemon(g, exec.Command("dockerd", append([]string{"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"}, args...)...),
		exec.Command("docker", "version"))
}

// startContainerd runs a containerd for an engine until the scenario's end, and returns
// its socket.
func startContainerd(g *guest.Guest) string {
	g.Helper()
	// Not g.TempDir: the path of a unix socket must be short.
	dir, err := os.MkdirTemp("", "containerd")
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, config := filepath.Join(dir, "socket"), filepath.Join(dir, "config.toml")
	g.WriteFile(config, fmt.Sprintf("version = 2\nroot = \"/var/lib/containerd\"\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n",
		filepath.Join(dir, "state"), socket))
	startDaemon(g, exec.Command("containerd", "--config", config), exec.Command("ctr", "--address", socket, "version"))
	return socket
}

// startDaemon starts a program, which it ends with the scenario, and waits until a command
// of its client succeeds.
func startDaemon(g *guest.Guest, cmd, client *exec.Cmd) {
	g.Helper()
	name := filepath.Base(cmd.Path)
	log := filepath.Join(g.TempDir(), name+".log")
	f, err := os.Create(log)
	if err != nil {
		g.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	g.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		f.Close()
		if g.Failed() {
			text := g.ReadFile(log)
			g.Logf("end of the log of %s:\n%s", name, text[max(0, len(text)-8<<10):])
		}
	})
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if exec.Command(client.Path, client.Args[1:]...).Run() == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			g.Fatalf("%s ended: %v", name, err)
		default:
		}
		if time.Now().After(end) {
			g.Fatalf("%s does not answer", name)
		}
	}
}

// writeToVolume has a container of a compose project write n blocks to a volume.
func writeToVolume(g *guest.Guest, project, volume string, block, n int64) {
	g.Helper()
	// It keeps the volume mounted: the engine unmounts a volume with its last
	// container, and a mount that is gone when the interval ends has lost its name.
	g.Exec("docker", "run", "--detach", "--name", project+"-idle-1", "--network", "none", "--volume", volume+":/data", "dd:test", "/bin/sleep", "100000")
	g.Cleanup(func() { _, _ = g.Try("docker", "rm", "--force", project+"-idle-1") })
	g.Exec("docker", "run", "--name", project+"-web-1", "--network", "none",
		"--label", "com.docker.compose.project="+project, "--label", "com.docker.compose.service=web",
		"--volume", volume+":/data", "dd:test", "/bin/dd", "if=/dev/zero", "of=/data/file", fmt.Sprintf("bs=%d", block), fmt.Sprintf("count=%d", n))
}

func nfsDockerVolume(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3") // starts the server
	startDocker(g)
	tr := g.Trace("--source", "nfs", "--by", "project,mount", "--docker-host", "unix:///var/run/docker.sock", "--only-listed-sockets")
	const block = 1_000_003
	blocks := map[string]int64{"shop": 13, "bank": 7}
	for project, n := range blocks {
		volume := project + "_data"
		if err := os.MkdirAll(filepath.Join("/srv", project), 0o777); err != nil {
			g.Fatal(err)
		}
		g.Exec("docker", "volume", "create", "--driver", "local", "--opt", "type=nfs",
			"--opt", "o=addr=127.0.0.1,vers=4.2,rw,nosharecache", "--opt", "device=:/"+project, volume)
		writeToVolume(g, project, volume, block, n)
	}
	g.Sync()
	for project, n := range blocks { // what the server has
		fi, err := os.Stat(filepath.Join("/srv", project, "file"))
		if err != nil {
			g.Fatal(err)
		}
		if fi.Size() != n*block {
			g.Errorf("the server has %d bytes of project %q, want %d", fi.Size(), project, n*block)
		}
	}
	r := tr.Stop()
	for project, n := range blocks {
		rows := r.Where("iotrace.source", "nfs", "iotrace.project.name", project)
		var written int64
		for _, d := range rows {
			written += d.Int("iotrace.write.bytes")
			if d.Int("iotrace.write.bytes") == 0 {
				continue
			}
			for field, want := range map[string]string{
				"iotrace.mount.volume": project + "_data", "iotrace.nfs.server": "127.0.0.1", "iotrace.nfs.export": "/" + project, "iotrace.nfs.version": "4.2",
			} {
				if got := d.String(field); got != want {
					g.Errorf("project %q: %s is %q, want %q", project, field, got, want)
				}
			}
		}
		r.Equal("project "+project, written, n*block)
	}
	r.Equal("all", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs"), 20*block)
}
