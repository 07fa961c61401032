//go:build vm

package vmtests

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestRemoteDocker is TestNFSDocker for Docker volumes of types cifs and ceph.
func TestRemoteDocker(t *testing.T) {
	suite{
		image:    "docker-remote",
		line:     "6.12",
		memory:   4096,
		deadline: 40 * time.Minute,
		quick:    never,
		scenarios: []scenario{
			{name: "cifs_volume", run: smbDockerVolume},
			{name: "ceph_volume", run: cephDockerVolume},
		},
	}.test(t)
}

// remoteVolumes has containers of two compose projects write to volumes of the engine's
// driver "local" and compares rows with what the server has. options and device are those
// of a project's volume, fields those of its rows.
func remoteVolumes(g *guest.Guest, source, fstype, dir string, options, device func(project string) string, fields func(project string) map[string]string) {
	g.Helper()
	startDocker(g)
	tr := g.Trace("--source", source, "--by", "project,mount", "--docker-host", "unix:///var/run/docker.sock", "--only-listed-sockets")
	const block = 1_000_003
	blocks := map[string]int64{"shop": 13, "bank": 7}
	for project, n := range blocks {
		volume := project + "_data"
		if err := os.MkdirAll(filepath.Join(dir, project), 0o777); err != nil {
			g.Fatal(err)
		}
		g.Exec("docker", "volume", "create", "--driver", "local", "--opt", "type="+fstype, "--opt", "o="+options(project), "--opt", "device="+device(project), volume)
		g.Cleanup(func() { _, _ = g.Try("docker", "volume", "rm", "--force", volume) })
		writeToVolume(g, project, volume, block, n)
	}
	g.Sync()
	for project, n := range blocks {
		fi, err := os.Stat(filepath.Join(dir, project, "file"))
		if err != nil {
			g.Fatal(err)
		}
		if fi.Size() != n*block {
			g.Errorf("the server has %d bytes of project %q, want %d", fi.Size(), project, n*block)
		}
	}
	r := tr.Stop()
	for project, n := range blocks {
		var written int64
		for _, d := range r.Where("iotrace.source", source, "iotrace.level", "wire", "iotrace.project.name", project) {
			if d.Int("iotrace.write.bytes") == 0 {
				continue
			}
			written += d.Int("iotrace.write.bytes")
			for field, want := range fields(project) {
				if got := d.String(field); got != want {
					g.Errorf("project %q: %s is %q, want %q", project, field, got, want)
				}
			}
		}
		r.Equal("project "+project, written, n*block)
	}
	r.Equal("all", r.Sum("iotrace.write.bytes", "iotrace.source", source, "iotrace.level", "wire"), 20*block)
}

func smbDockerVolume(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	remoteVolumes(g, "smb", "cifs", guest.SMBDir,
		func(string) string { return "username=guest,password=,vers=3.1.1,nosharesock" },
		func(project string) string { return "//127.0.0.1/share/" + project },
		func(project string) map[string]string {
			return map[string]string{"iotrace.mount.volume": project + "_data", "iotrace.smb.server": "127.0.0.1", "iotrace.smb.share": "share"}
		})
}

func cephDockerVolume(g *guest.Guest) {
	g.HoldWriteback()
	m := g.Ceph() // where an administrator makes the directories of volumes
	remoteVolumes(g, "ceph", "ceph", m.Target,
		func(string) string { return "name=admin,mount_timeout=300,noshare" },
		func(project string) string { return guest.CephMonitor + ":/" + project },
		func(project string) map[string]string {
			return map[string]string{"iotrace.mount.volume": project + "_data", "iotrace.ceph.cluster": guest.CephMonitor, "iotrace.ceph.path": "/" + project}
		})
}
