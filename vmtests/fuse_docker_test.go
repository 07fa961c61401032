//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestFUSEDocker lets containers of two compose projects write to a directory on
// bindfs, a FUSE file system that is not ours.
func TestFUSEDocker(t *testing.T) {
	suite{
		image:     "docker",
		memory:    2048,
		deadline:  20 * time.Minute,
		scenarios: []scenario{{name: "docker_bind", run: fuseDockerBind}},
	}.test(t)
}

// dockerDD lets a container of a compose project write a file of this size, in
// bytes, to the mount at /data.
func dockerDD(g *guest.Guest, project string, bytes, block int64, mounts ...string) {
	g.Helper()
	g.Cleanup(func() { _, _ = g.Try("docker", "rm", "--force", project+"-web-1") })
	args := []string{"run", "--name", project + "-web-1", "--network", "none",
		"--label", "com.docker.compose.project=" + project, "--label", "com.docker.compose.service=web"}
	for _, m := range mounts {
		args = append(args, "--volume", m)
	}
	g.Exec("docker", append(args, "dd:test", "/bin/dd", "if=/dev/zero", "of=/data/file",
		fmt.Sprintf("bs=%d", block), fmt.Sprintf("count=%d", bytes/block))...)
}

func fuseDockerBind(g *guest.Guest) {
	g.HoldWriteback()
	target, from := "/mnt/bindfs", filepath.Join("/run", "bindfs")
	g.Modprobe("fuse")
	for _, dir := range []string{target, from} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			g.Fatal(err)
		}
	}
	d := g.Cgroup("bindfs").Command("bindfs", "-f", from, target)
	if err := d.Start(); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() {
		g.Unmount(target)
		_ = d.Wait()
		os.RemoveAll(from)
	})
	g.Eventually("bindfs mounted", func() bool { return g.Mounted(target) })
	startDocker(g)
	tr := g.Trace("--source", "fuse", "--by", "project,mount", "--docker-host", "unix:///var/run/docker.sock", "--only-listed-sockets")
	const block = 1_000_003
	blocks := map[string]int64{"shop": 13, "bank": 7}
	for project, n := range blocks {
		dir := filepath.Join(target, project)
		if err := os.Mkdir(dir, 0o777); err != nil {
			g.Fatal(err)
		}
		dockerDD(g, project, n*block, block, dir+":/data")
	}
	g.Sync()
	for project, n := range blocks { // what the daemon was given
		fi, err := os.Stat(filepath.Join(from, project, "file"))
		if err != nil {
			g.Fatal(err)
		}
		if fi.Size() != n*block {
			g.Errorf("bindfs has %d bytes of project %q, want %d", fi.Size(), project, n*block)
		}
	}
	r := tr.Stop()
	for project, n := range blocks {
		var written int64
		for _, doc := range r.Where("iotrace.source", "fuse", "iotrace.project.name", project) {
			written += doc.Int("iotrace.write.bytes")
			if doc.Int("iotrace.write.bytes") == 0 {
				continue
			}
			if pid := doc.Int("iotrace.fuse.daemon.pid"); pid != int64(d.Process.Pid) {
				g.Errorf("project %q: the daemon is process %d, want %d", project, pid, d.Process.Pid)
			}
			// This is the path in the container or on the host: the engine reports a
			// container's mounts later than its labels.
			if at := doc.String("iotrace.mount.point"); at != "/data" && at != target {
				g.Errorf("project %q: mounted at %q, want /data or %q", project, at, target)
			}
		}
		r.Equal("project "+project, written, n*block)
	}
	r.Equal("all", r.Sum("iotrace.write.bytes", "iotrace.source", "fuse"), 20*block)
}
