package attribute

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const fileMounts = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 254:0 /srv/shop /mnt/shop rw - ext4 /dev/vda rw
31 27 254:1 /sub/vol /only/part rw - ext4 /dev/vdb rw
60 27 0:50 / /mnt/data rw - nfs4 nas:/exports/data rw,vers=4.2
61 27 0:51 / /mnt/a rw - nfs nas:/a rw,vers=3
62 27 0:51 / /mnt/b rw - nfs nas:/b rw,vers=3
63 27 0:60 / /var/lib/docker/overlay2/AAAA/merged rw - overlay overlay rw,lowerdir=LOWER,upperdir=/var/lib/docker/overlay2/AAAA/diff,workdir=/var/lib/docker/overlay2/AAAA/work
`

const fileMountsInside = `90 80 0:60 / / rw - overlay overlay rw,lowerdir=LOWER,upperdir=/var/lib/docker/overlay2/AAAA/diff,workdir=/var/lib/docker/overlay2/AAAA/work
91 90 254:0 /var/lib/docker/volumes/db/_data /data rw - ext4 /dev/vda rw
92 90 254:0 /var/lib/docker/volumes/db/_data/inner /inner rw - ext4 /dev/vda rw
93 90 0:50 /sub /nfs rw - nfs4 nas:/exports/data rw,vers=4.2
94 90 0:70 / /own rw - fuse.rclone remote: rw
`

func TestFilePath(t *testing.T) {
	proc, root := t.TempDir(), t.TempDir()
	mkdir(t, proc, "1")
	lower := strings.Repeat("/var/lib/docker/overlay2/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ:", 100) // longer than what is kept of options
	write := func(name, text string) {
		t.Helper()
		mkdir(t, filepath.Dir(name))
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(text, "LOWER", lower)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(proc, "1/mountinfo"), fileMounts)
	r := newTestResolver(t, Options{CgroupRoot: root, ProcRoot: proc})
	id := mkdir(t, root, "docker", idA)
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(root, "docker", idA, "cgroup.procs"), "77\n")
	write(filepath.Join(proc, "77/mountinfo"), fileMountsInside)
	for _, tt := range []struct {
		dev, below   string
		cgroup       uint64
		host, inside string
	}{
		{"254:0", "/srv/shop/x", 0, "/srv/shop/x", ""},
		{"254:0", "/a", 0, "/a", ""},
		{"254:1", "/sub/vol/f", 0, "/only/part/f", ""},
		{"254:1", "/sub/vol", 0, "/only/part", ""},
		{"254:1", "/sub/volume/f", 0, "", ""}, // not below the part that is mounted
		{"0:50", "/sub/f", 0, "/mnt/data/sub/f", ""},
		{"0:51", "/f", 0, "", ""}, // of which export is not known
		{"0:99", "/f", 0, "", ""},
		{"254:0", "/var/lib/docker/volumes/db/_data/t/1", id, "/var/lib/docker/volumes/db/_data/t/1", "/data/t/1"},
		{"254:0", "/var/lib/docker/volumes/db/_data/inner/1", id, "/var/lib/docker/volumes/db/_data/inner/1", "/inner/1"},
		{"254:0", "/var/lib/docker/overlay2/AAAA/diff/tmp/x", id, "/var/lib/docker/overlay2/AAAA/diff/tmp/x", "/tmp/x"},
		{"254:0", "/var/lib/docker/overlay2/BBBB/diff/bin/sh", id, "/var/lib/docker/overlay2/BBBB/diff/bin/sh", "/bin/sh"}, // of the image
		{"254:0", "/var/lib/docker/overlay2/BBBB/work/x", id, "/var/lib/docker/overlay2/BBBB/work/x", ""},
		{"254:0", "/etc/passwd", id, "/etc/passwd", ""},
		{"0:50", "/sub/f", id, "/mnt/data/sub/f", "/nfs/f"},
		{"0:50", "/other/f", id, "/mnt/data/other/f", ""},
		{"0:70", "/f", id, "", "/own/f"},
		{"254:0", "/a\x1b[31m", 0, "/a\x1b[31m", ""}, // what is not safe for a terminal stays as it is here
	} {
		if got := r.FilePath(tt.dev, tt.below, tt.cgroup); got != (FilePath{tt.host, tt.inside}) {
			t.Errorf("FilePath(%q, %q, %d) = %+v, want %q, %q", tt.dev, tt.below, tt.cgroup, got, tt.host, tt.inside)
		}
	}
	// What was in the namespace of a container that is gone, the host still tells.
	r.CgroupRemoved(id, "")
	if got := r.FilePath("254:0", "/var/lib/docker/volumes/db/_data/1", id); got != (FilePath{Host: "/var/lib/docker/volumes/db/_data/1"}) {
		t.Errorf("%+v", got)
	}
}

func TestLogOf(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), ProcRoot: t.TempDir()})
	r.registry.put(container{id: idA, name: "shop-web-1", from: "test", kind: KindContainer,
		labels: map[string]string{"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}})
	r.registry.put(container{id: idB, name: "alone", from: "test", kind: KindContainer})
	for file, want := range map[string]string{
		"/var/lib/docker/containers/" + idA + "/" + idA + "-json.log":                         "shop/web",
		"/data/docker/containers/" + idB + "/" + idB + "-json.log.1.gz":                       "alone",
		"/var/lib/docker/containers/" + idA + "/local-logs/container.log":                     "shop/web",
		"/var/lib/containers/storage/overlay-containers/" + idB + "/userdata/ctr.log":         "alone",
		"/var/lib/docker/containers/" + strings.Repeat("f", 64) + "/local-logs/container.log": "ffffffffffff",
		"/var/log/pods/prod_db-0_" + uidP + "/mysql/0.log":                                    "prod/db-0/mysql",
		"/var/lib/docker/containers/" + idA + "/config.v2.json":                               "",
		"/var/lib/docker/containers/" + idA + "/" + idB + "-json.log":                         "",
		"/var/log/syslog": "",
		"":                "",
	} {
		if got := r.LogOf(file); got != want {
			t.Errorf("LogOf(%q) = %q, want %q", file, got, want)
		}
	}
}
