//go:build integration

package tracer

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// loopOver attaches a loop device to a new file.
func loopOver(t *testing.T, file string, size int64) (path string, number Dev) {
	t.Helper()
	if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	path = run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", path) })
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return path, makeDev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// TestLoopFiles: what is written to a loop device belongs to its user on the disk below,
// and counts once, whatever the file lies on. Its path is a lie, as that of a container is,
// and leads to a file in memory or on a disk: what counts is the kernel's own structure.
func TestLoopFiles(t *testing.T) {
	const size = 8 * mib
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, 96*mib)
	over := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mount", "-t", "overlay", "-o", "lowerdir="+s.dir+"/lower,upperdir="+s.dir+"/upper,workdir="+s.dir+"/work", "none", over)
	t.Cleanup(func() { run(t, "umount", over) })
	memory := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=32m", "none", memory)
	t.Cleanup(func() { run(t, "umount", "-l", memory) })
	for _, tc := range []struct {
		name, dir string
		stacked   bool
		hide      bool // another file system covers the path
	}{
		{name: "ext4", dir: s.dir, stacked: true},
		{name: "overlay", dir: over, stacked: true},
		{name: "tmpfs", dir: memory},
		{name: "a path in memory", dir: s.dir + "/lower", stacked: true, hide: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, number := loopOver(t, filepath.Join(tc.dir, "image "+filepath.Base(t.TempDir())), size)
			run(t, "sync", "-f", s.dir)
			if tc.hide {
				run(t, "mount", "-t", "tmpfs", "none", tc.dir)
				t.Cleanup(func() { run(t, "umount", tc.dir) })
			}
			w := newWriter(t, mount, "a", path)
			tr := open(t, Options{Hierarchy: hierarchy})
			w.write(0, 64<<10, 4<<10) // the first request shows where the file is
			run(t, "blockdev", "--flushbufs", path)
			run(t, "sync", path)
			dirtiedOn(t, tr, s.dev)
			w.write(0, size, 4<<10)
			run(t, "sync", path)
			s.sync()
			iv, err := tr.Read()
			if err != nil {
				t.Fatal(err)
			}
			on := map[Dev]uint64{}
			for _, r := range iv.Rows {
				if r.Source == Block && r.Op == Write && r.Cgroup == w.cgroup && !r.Meta {
					on[r.Dev] += r.Bytes
				}
			}
			within(t, "on the loop device", on[number], size)
			if tc.stacked {
				within(t, "on the disk", on[s.dev], size)
			}
			if d := tr.Devices().Device(number); d.Stacked != tc.stacked {
				t.Errorf("%+v, want stacked %v", d, tc.stacked)
			}
		})
	}
}
