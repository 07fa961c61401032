//go:build integration

package attribute

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Real cgroups in every hierarchy of this machine that can be found by id.
func TestRealCgroups(t *testing.T) {
	h, err := FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	roots := map[string]Options{"found": {}}
	for _, m := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(m, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			roots["cgroup2"] = Options{CgroupRoot: m}
		}
	}
	for name, opts := range roots {
		t.Run(name, func(t *testing.T) {
			root := opts.CgroupRoot
			if root == "" {
				root = h.Mount
			}
			name := fmt.Sprintf("iotrace-test-%d", os.Getpid())
			long := strings.Repeat("x", 200)
			dir := filepath.Join(root, name, long, long, long, long, long, long, idA) // longer than the kernel's events hold
			id := mkdir(t, dir)
			t.Cleanup(func() {
				for d := dir; d != root; d = filepath.Dir(d) {
					os.Remove(d)
				}
			})
			r := newTestResolver(t, opts)
			if o := r.Owner(id); o.ContainerID != idA || o.Path != strings.TrimPrefix(dir, root) {
				t.Errorf("unknown id: %+v", o)
			}
			if s := r.Stats(); s.Lookups != 1 || s.Steps != 0 {
				t.Errorf("one question to the kernel was expected: %+v", s)
			}
			top := inode(t, filepath.Join(root, name))
			r.CgroupCreated(top, "") // an event whose path did not fit
			if o := r.Owner(top); o.Path != "/"+name {
				t.Errorf("empty path: %+v", o)
			}
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
			r.CgroupRemoved(id, "")
			if o := r.Owner(id); !o.Gone || o.ContainerID != idA {
				t.Errorf("removed: %+v", o)
			}
			other := newTestResolver(t, opts)
			if o := other.Owner(id); o.Kind != KindUnknown || !o.Gone {
				t.Errorf("removed before we looked: %+v", o)
			}
			if err := other.Walk(); err != nil {
				t.Fatal(err)
			}
			before := other.Stats().Lookups
			if o := other.Owner(top); o.Path != "/"+name || other.Stats().Lookups != before {
				t.Errorf("after the walk: %+v", o)
			}
		})
	}
}

// A mount made while we run is found, by the kernel's own word.
func TestRealMounts(t *testing.T) {
	r := newTestResolver(t, Options{})
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	dev := func(d uint64) string { return fmt.Sprintf("%d:%d", unix.Major(d), unix.Minor(d)) }
	if m, ok := r.Mount(dev(st.Dev), 0); !ok || m.Point != "/" {
		t.Errorf("root: %+v, %v", m, ok)
	}
	dir := t.TempDir()
	if err := unix.Mount("some source", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	poll(t, "the new mount is known", func() bool {
		m, ok := r.Mount(dev(st.Dev), 0)
		return ok && m == Mount{Source: "some source", Point: dir, FSType: "tmpfs"}
	})
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	mounted = false
	reads := r.mounts.reads
	poll(t, "the end of it is noticed", func() bool {
		r.Mount(dev(st.Dev), 0)
		r.mounts.mu.Lock()
		defer r.mounts.mu.Unlock()
		_, ok := r.mounts.host.byDev[dev(st.Dev)]
		return !ok
	})
	if m, ok := r.Mount(dev(st.Dev), 0); !ok || m.Point != dir {
		t.Errorf("for late I/O it should keep its name: %+v, %v", m, ok)
	}
	if r.mounts.reads != reads+1 {
		t.Errorf("the table was read %d times for one change", r.mounts.reads-reads)
	}
}

// A path longer than one system call takes has its name all the same: by its id, by the
// walk, and by an event that does not hold it.
func TestRealCgroupOfLongPath(t *testing.T) {
	for name, opts := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			r := newTestResolver(t, opts)
			root := r.Hierarchy().Mount
			top := filepath.Join(root, fmt.Sprintf("iotrace-long-%d", os.Getpid()))
			path, fds := strings.TrimPrefix(top, root), []int{}
			mkdir(t, top)
			t.Cleanup(func() {
				if out, err := exec.Command("find", top, "-depth", "-type", "d", "-execdir", "rmdir", "{}", ";").CombinedOutput(); err != nil {
					t.Errorf("removing the cgroups: %v, %s", err, out)
				}
			})
			// One directory after the other: mkdir(2) does not take the whole path.
			at, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, at)
			defer func() {
				for _, fd := range fds {
					unix.Close(fd)
				}
			}()
			var st unix.Stat_t
			for _, part := range append(slices.Repeat([]string{strings.Repeat("x", 200)}, 25), idA, "below") {
				if err := unix.Mkdirat(at, part, 0o755); err != nil {
					t.Fatal(err)
				}
				if at, err = unix.Openat(at, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
					t.Fatal(err)
				}
				fds = append(fds, at)
				path += "/" + part
			}
			if err := unix.Fstat(at, &st); err != nil {
				t.Fatal(err)
			}
			id := st.Ino
			check := func(how string, r *Resolver) {
				t.Helper()
				if o := r.Owner(id); o.Path != path || o.ContainerID != idA || o.NamedBy != "" {
					t.Errorf("%s: %+v", how, o)
				}
			}
			check("by its id", r)
			walked := newTestResolver(t, opts)
			if err := walked.Walk(); err != nil {
				t.Fatal(err)
			}
			before := walked.Stats().Lookups
			if check("by the walk", walked); walked.Stats().Lookups != before {
				t.Error("the walk did not come to it")
			}
			event := newTestResolver(t, opts)
			event.CgroupCreated(id, "") // the kernel's buffer has 1024 bytes
			check("by its event", event)
			// Its processes are found.
			c, _ := r.tree.get(id)
			if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/cgroup.procs", at), []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
			defer os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(fmt.Sprint(os.Getpid())), 0)
			if pid, err := r.tree.process(&c); err != nil || pid != os.Getpid() {
				t.Errorf("process %d, %v", pid, err)
			}
		})
	}
}
