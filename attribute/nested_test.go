package attribute

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listAll is a complete list of an endpoint.
func listAll(f *feed, all ...container) {
	l := f.begin()
	for _, c := range all {
		l.put(c)
	}
	l.end()
}

// An engine inside a container can name its own containers and nothing else.
func TestNestedEngineNamesOnlyItsOwn(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	host := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/docker.sock", domain{})
	inner := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/proc/9/root//run/docker.sock", domain{}.inside(idA))
	host.put(container{id: idA, name: "outer", runtime: runtimeDocker})
	host.put(container{id: idB, name: "honest", runtime: runtimeDocker, labels: map[string]string{"io.kubernetes.pod.uid": uidP, "io.kubernetes.pod.name": "honest"}})
	lie := container{id: idB, name: "lie", runtime: runtimeDocker, cgroupPath: "/system.slice",
		labels:  map[string]string{"io.kubernetes.pod.uid": uidP, "io.kubernetes.pod.name": "lie", "io.kubernetes.pod.namespace": "lie"},
		volumes: []volume{{name: "lie", source: "/", destination: "/"}}}
	inner.put(lie)
	listAll(inner, lie)
	inner.rename(idB, "", "still a lie", time.Now())
	inner.removed(idA)

	name := func(path string) string {
		id := uint64(len(path)) << 32
		r.CgroupCreated(id, path)
		o := r.Owner(id)
		return o.ContainerName + " " + o.Pod
	}
	for path, want := range map[string]string{
		"/docker/" + idB:                          "honest honest",
		"/docker/" + idA:                          "outer ",
		"/system.slice/ssh.service":               " ",
		"/kubepods/pod" + uidP:                    " honest",
		"/docker/" + idA + "/docker/" + idB:       "still a lie lie",
		"/docker/" + idA + "/kubepods/pod" + uidP: " lie",
	} {
		if got := name(path); got != want {
			t.Errorf("%s is named %q, want %q", path, got, want)
		}
	}
	if c := r.registry.get(idA); c == nil || !c.goneAt.IsZero() {
		t.Errorf("the outer container was taken away from inside: %+v", c)
	}
}

// A user's own engine cannot rename the containers of the machine's.
func TestUserEngineRenamesNobody(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	user := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/user/1000/docker.sock", domain{})
	host := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/docker.sock", domain{})
	user.put(container{id: idA, name: "lie"}) // it may come first
	host.put(container{id: idA, name: "honest"})
	user.put(container{id: idA, name: "lie"})
	user.removed(idA)
	if c := r.registry.get(idA); c.name != "honest" || !c.goneAt.IsZero() {
		t.Errorf("got %+v", c)
	}
	for path, want := range map[string]string{
		"/docker/" + idA:                                                        "honest",
		"/system.slice/docker-" + idA + ".scope":                                "honest",
		userU + "/docker-" + idA + ".scope":                                     "lie",
		userU + "/docker-" + idA + ".scope/docker/" + idA:                       "", // in his container
		strings.ReplaceAll(userU, "1000", "1001") + "/docker-" + idA + ".scope": "", // another user's
	} {
		id := uint64(len(path)) << 32
		r.CgroupCreated(id, path)
		if o := r.Owner(id); o.ContainerName != want {
			t.Errorf("%s is named %q, want %q", path, o.ContainerName, want)
		}
		r.CgroupRemoved(id, path)
	}
	for i := range nestedMost + 100 {
		user.put(container{id: fmt.Sprint(i)})
	}
	if n, refused := r.registry.counts(); n != nestedMost+1 || refused != 101 {
		t.Errorf("%d records, %d refused", n, refused)
	}
}

func TestNestedEnginesAreBounded(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	added := 0
	for i := range 10 * maxNested {
		if r.runtimes.add(&runtimeSpec{name: runtimeDocker}, fmt.Sprintf("/proc/%d/root//run/docker.sock", i), domain{}.inside(idA)) != nil {
			added++
		}
	}
	if added != maxNested {
		t.Errorf("%d were added", added)
	}
	if r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/docker.sock", domain{}) == nil {
		t.Error("no place left for the host's engine")
	}
}

// A link in a container leads to what the container has there, never to ours.
func TestNestedSocketStaysInItsRoot(t *testing.T) {
	dir, err := os.MkdirTemp("", "n")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ours := filepath.Join(dir, "ours.sock")
	l, err := net.Listen("unix", ours)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	root := filepath.Join(dir, "proc/9/root")
	mkdir(t, root, "run")
	name := filepath.Join(root, "run/docker.sock")
	if err := os.Symlink(ours, name); err != nil {
		t.Fatal(err)
	}
	socket := inRoot(root, "/run/docker.sock")
	if c, err := dialSocket(context.Background(), socket); err == nil {
		c.Close()
		t.Error("a link led out of the container")
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unexpected error %v", err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	inside, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	c, err := dialSocket(context.Background(), socket)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// The process that is asked for its root is the container's init, not a shim or
// a monitor of the host that has the container's name in its path too.
func TestNestedFindsTheInit(t *testing.T) {
	proc, root := t.TempDir(), t.TempDir()
	id := mkdir(t, root, "lxc.payload.web1", "docker", idA)
	write := func(name, text string) {
		t.Helper()
		mkdir(t, filepath.Dir(name))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	process := func(pid, parent int, cgroup string) {
		dir := filepath.Join(proc, fmt.Sprint(pid))
		write(filepath.Join(dir, "stat"), fmt.Sprintf("%d (a) (b) S %d 1 1", pid, parent))
		write(filepath.Join(dir, "cgroup"), "4:memory:"+cgroup+"\n0::/\n")
	}
	write(filepath.Join(root, "lxc.payload.web1/docker", idA, "cgroup.procs"), "50\n")
	process(50, 40, "/lxc.payload.web1/docker/"+idA)
	process(40, 30, "/lxc.payload.web1/system.slice/docker.service")
	process(30, 20, "/lxc.payload.web1/init.scope")
	process(20, 1, "/lxc.monitor.web1")
	process(1, 0, "/")
	write(filepath.Join(proc, "30/root/run/docker.sock"), "")
	write(filepath.Join(proc, "20/root/run/docker.sock"), "")

	r := newTestResolver(t, Options{CgroupRoot: root, ProcRoot: proc})
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	c, _ := r.tree.get(id)
	var found []string
	err := r.runtimes.nested(&nestedAsk{domain{}.inside("web1"), c}, func(_ *runtimeSpec, socket string) { found = append(found, socket) })
	if want := filepath.Join(proc, "30/root") + "//run/docker.sock"; err != nil || len(found) != 1 || found[0] != want {
		t.Errorf("found %q, %v; want %q", found, err, want)
	}

	// A cgroup with the name of a container, whose processes are in no container: they see
	// the machine's own engine, which does not speak for it.
	mkdir(t, proc, "1")
	if err := os.Symlink("../30/root", filepath.Join(proc, "1/root")); err != nil {
		t.Fatal(err)
	}
	found = nil
	if err := r.runtimes.nested(&nestedAsk{domain{}.inside("web1"), c}, func(_ *runtimeSpec, socket string) { found = append(found, socket) }); !errors.Is(err, fs.ErrNotExist) || len(found) > 0 {
		t.Errorf("in the machine's root: found %q, %v", found, err)
	}
}
