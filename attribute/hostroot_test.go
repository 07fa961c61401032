package attribute

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestHostRootSockets: under the root of a host, links are followed as they are there,
// and a socket that has two paths is returned once.
func TestHostRootSockets(t *testing.T) {
	root, err := os.MkdirTemp("", "host") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	for _, dir := range []string{"run/user/1000", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{"run/docker.sock", "run/user/1000/docker.sock"} {
		l, err := net.Listen("unix", filepath.Join(root, socket))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	spec := runtimeSpec{usual: onHost(root, dockerSockets())}
	want := []string{root + "//run/docker.sock", root + "//run/user/1000/docker.sock"}
	if got := spec.present(); !slices.Equal(got, want) {
		t.Errorf("found are %q, want %q", got, want)
	}
	if real, ok := exists(root + "//var/run/docker.sock"); !ok {
		t.Errorf("%q: a link of the host was not followed in its root", real)
	}
	if _, ok := exists(root + "//run/podman/podman.sock"); ok {
		t.Error("found a socket that is not there")
	}
	if _, err := reach(t.Context(), root+"//var/run/docker.sock"); err != nil {
		t.Errorf("connecting: %v", err)
	}
	for socket, path := range map[string]string{want[1]: "/run/user/1000/docker.sock", "/run/user/7/docker.sock": "/run/user/7/docker.sock"} {
		if got := pathInRoot(socket); got != path {
			t.Errorf("path of %q: %q", socket, got)
		}
	}
}

// TestHostRootHierarchy: the cgroups of the host are at the mount points of its process
// 1, below its root.
func TestHostRootHierarchy(t *testing.T) {
	root := t.TempDir()
	proc := filepath.Join(root, "proc")
	mkdir(t, proc, "self")
	mkdir(t, proc, "1")
	for name, body := range map[string]string{
		"self/cgroup":    "0::/\n",
		"self/mountinfo": "36 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
		"1/mountinfo":    "35 24 0:30 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
	} {
		if err := os.WriteFile(filepath.Join(proc, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err := findHierarchy(proc, root)
	if want := (Hierarchy{Version: 2, Mount: root + "/sys/fs/cgroup", Root: "/../.."}); err != nil || h != want {
		t.Errorf("got %+v, %v, want %+v", h, err, want)
	}
	if err := os.Remove(filepath.Join(proc, "1/mountinfo")); err != nil {
		t.Fatal(err)
	}
	h, err = findHierarchy(proc, root)
	if want := (Hierarchy{Version: 2, Mount: "/sys/fs/cgroup", Root: "/"}); err != nil || h != want {
		t.Errorf("without the mounts of process 1: got %+v, %v, want %+v", h, err, want)
	}
}

// TestNoHostProc: the mounts of a container's own process 1 name nothing.
func TestNoHostProc(t *testing.T) {
	proc := t.TempDir()
	mkdir(t, proc, "1")
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, none := range []bool{false, true} {
		r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), ProcRoot: proc, NoHostProc: none})
		if m, ok := r.Mount("8:1", 0); ok == none {
			t.Errorf("NoHostProc %v: mount %+v, %v", none, m, ok)
		}
	}
}
