//go:build integration

package attribute

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// attacker is a user of this machine.
const attacker = 1234

// as makes a command that of a user.
func as(cmd *exec.Cmd, uid uint32) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// delegate makes a cgroup below root that belongs to a user, as systemd does for a unit
// with Delegate=.
func delegate(t *testing.T, root, path string, uid int) string {
	t.Helper()
	dir := root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		dir = filepath.Join(dir, part)
		err := os.Mkdir(dir, 0o755)
		if os.IsExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeCgroups(dir) })
	}
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// removeCgroups removes a cgroup and those below it.
func removeCgroups(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeCgroups(filepath.Join(dir, e.Name()))
		}
	}
	os.Remove(dir)
}

// hierarchies are the cgroup file systems of this machine that can be found by id.
func hierarchies(t *testing.T) map[string]Options {
	t.Helper()
	all := map[string]Options{"found": {}}
	for _, m := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(m, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			all["cgroup2"] = Options{CgroupRoot: m}
		}
	}
	return all
}

// A user to whom a cgroup was delegated makes cgroups with the names of others. In no
// hierarchy, neither alive nor gone, has one of them the name of a victim.
func TestForgedCgroups(t *testing.T) {
	forged := []string{
		"docker/" + idA, "docker-" + idA + ".scope", "system.slice/docker-" + idA + ".scope", idA,
		"machine.slice/libpod-" + idA + ".scope/container", "crio-" + idA + ".scope", "cri-containerd-" + idA + ".scope",
		"kubepods/pod" + uidP + "/" + idA, "kubepods.slice/kubepods-pod" + uidP_ + ".slice", "default/test1",
		"lxc.payload.victim", "lxc/victim", "machine-victim.scope", `machine-qemu\x2d3\x2dvictim.scope`,
		"postgres.service", "user@1.service/docker-" + idA + ".scope",
	}
	for name, opts := range hierarchies(t) {
		for _, place := range []string{
			"user.slice/user-1234.slice/user@1234.service/app.slice", // by its own manager
			"iotrace-forge.slice/ci.service",                         // a service with User= and Delegate=
			"iotrace-forge",                                          // chown by hand
		} {
			t.Run(name+"/"+place, func(t *testing.T) {
				opts.OnlyListedSockets = true
				r := newTestResolver(t, opts)
				root := r.Hierarchy().Mount
				for _, c := range []container{
					{id: idA, name: "victim", labels: map[string]string{"com.docker.compose.project": "victim",
						"io.kubernetes.pod.uid": uidP, "io.kubernetes.pod.name": "victim", "io.kubernetes.pod.namespace": "victim"}},
					{id: "test1", name: "victim", cgroupPath: "/default/test1"},
				} {
					c.from = "host"
					r.registry.put(c)
				}
				dir := delegate(t, root, place, attacker)
				for i, f := range forged {
					made := filepath.Join(dir, f)
					out, err := as(exec.Command("mkdir", "-p", made), attacker).CombinedOutput()
					if err != nil {
						t.Fatalf("the user may not make a cgroup: %v, %s", err, out)
					}
					path := strings.TrimPrefix(made, root)
					check := func(what string, r *Resolver, id uint64) {
						t.Helper()
						o := r.Owner(id)
						unit := o.Unit == "postgres.service" && o.NamedBy != "" && o.ProjectNamedBy == o.NamedBy
						if named := unit || o.ContainerID != "" || o.ContainerName != "" || o.PodUID != ""; named != (o.NamedBy == "user 1234") {
							t.Errorf("%s, %s: named by %q: %+v", path, what, o.NamedBy, o)
						}
						if o.Project == "victim" || (o.Project == "postgres.service" || o.Unit == "postgres.service") && !unit || o.Pod != "" || len(o.Labels) > 0 {
							t.Errorf("%s, %s: has the names of a victim: %+v", path, what, o)
						}
					}
					id := inode(t, made)
					check("by its id", r, id)
					event := uint64(1)<<50 + uint64(i)
					r.CgroupCreated(event, path)
					check("by its event", r, event)
					removeCgroups(filepath.Join(dir, strings.SplitN(f, "/", 2)[0]))
					r.CgroupCreated(event+1<<20, path)
					check("by its event, when it is gone", r, event+1<<20)
				}
				// Its unit is gone as well: then nobody can say who made it.
				removeCgroups(dir)
				if strings.HasSuffix(place, ".service") {
					r.CgroupCreated(1<<51, "/"+place+"/docker/"+idA)
					if o := r.Owner(1 << 51); o.ContainerName != "" || o.NamedBy != "user unknown" {
						t.Errorf("without its unit: %+v", o)
					}
				}
			})
		}
	}
}

// A user's own Podman claims the project, the name and the id of others. Its words count
// for the user's cgroups only, and show whose they are.
func TestRootlessEngine(t *testing.T) {
	p := enginetest.StartRootlessPodman(t, attacker)
	claimed := p.Podman(t, "create", "--network", "none", "--name", "shop-db-1", "--label", "com.docker.compose.project=shop",
		"--label", "com.docker.compose.service=db", "docker.io/library/"+enginetest.Image, "sleep", "1000")
	for name, opts := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			opts.DockerSockets, opts.OnlyListedSockets = []string{p.Socket}, true
			r := startResolver(t, opts)
			waitAnswered(t, r)
			root := r.Hierarchy().Mount
			e := endpoint(t, r, p.Socket)
			if e.State != StateOK || e.User != fmt.Sprint(attacker) || e.Containers != 1 {
				t.Errorf("endpoint %+v", e)
			}
			own := delegate(t, root, "user.slice/user-1234.slice/user@1234.service/user.slice", attacker)
			if out, err := as(exec.Command("mkdir", "-p", filepath.Join(own, "libpod-"+claimed+".scope/container")), attacker).CombinedOutput(); err != nil {
				t.Fatalf("%v, %s", err, out)
			}
			o := r.Owner(inode(t, filepath.Join(own, "libpod-"+claimed+".scope/container")))
			if o.ContainerName != "shop-db-1" || o.Project != "shop" || o.NamedBy != "user 1234" || o.ProjectNamedBy != "user 1234" {
				t.Errorf("the user's own container: %+v", o)
			}
			// The machine's container of the same id and another user's are not his.
			theirs := delegate(t, root, "user.slice/user-1235.slice/user@1235.service/user.slice", attacker+1)
			for i, path := range []string{"/machine.slice/libpod-" + claimed + ".scope", "/docker/" + claimed, strings.TrimPrefix(theirs, root) + "/libpod-" + claimed + ".scope"} {
				r.CgroupCreated(1<<50+uint64(i), path)
				if o := r.Owner(1<<50 + uint64(i)); o.ContainerName != "" || o.Project != "" || o.NamedBy == "user 1234" {
					t.Errorf("%s: %+v", path, o)
				}
			}
		})
	}
}

// The rootless engines of two users have a container of the same name and project each.
// Neither is the other's, nor is one of the machine.
func TestRootlessEnginesOfUsers(t *testing.T) {
	var opts Options
	opts.OnlyListedSockets = true
	users := []int{attacker, attacker + 1}
	ids := map[int]string{}
	for _, uid := range users {
		p := enginetest.StartRootlessPodman(t, uint32(uid))
		opts.DockerSockets = append(opts.DockerSockets, p.Socket)
		ids[uid] = p.Podman(t, "create", "--network", "none", "--name", "shop-db-1", "--label", "com.docker.compose.project=shop",
			"docker.io/library/"+enginetest.Image, "sleep", "1000")
	}
	r := startResolver(t, opts)
	waitAnswered(t, r)
	for i, uid := range users {
		if e := endpoint(t, r, opts.DockerSockets[i]); e.State != StateOK || e.User != fmt.Sprint(uid) || e.Containers != 1 {
			t.Errorf("endpoint %+v", e)
		}
		own := delegate(t, r.Hierarchy().Mount, fmt.Sprintf("user.slice/user-%d.slice/user@%[1]d.service/user.slice", uid), uid)
		for whose, id := range ids {
			dir := filepath.Join(own, "libpod-"+id+".scope")
			if out, err := as(exec.Command("mkdir", dir), uint32(uid)).CombinedOutput(); err != nil {
				t.Fatalf("%v, %s", err, out)
			}
			by := fmt.Sprint("user ", uid)
			o := r.Owner(inode(t, dir))
			if whose == uid && (o.ContainerName != "shop-db-1" || o.Project != "shop" || o.NamedBy != by || o.ProjectNamedBy != by) {
				t.Errorf("user %d's own container: %+v", uid, o)
			}
			if whose != uid && (o.ContainerName != "" || o.Project != "" || o.NamedBy != by) {
				t.Errorf("user %d with the id of user %d's container: %+v", uid, whose, o)
			}
		}
	}
}

// A container with an engine of its own, as root and privileged, makes cgroups with the
// names of its neighbours.
func TestForgedInContainer(t *testing.T) {
	e := enginetest.Start(t)
	victim := e.Run(t, "--name", "victim", "--label", "com.docker.compose.project=victim", enginetest.Image, "sleep", "1000")
	r := startResolver(t, Options{DockerSockets: []string{"unix://" + e.Socket}})
	waitAnswered(t, r)
	outer := e.RunNested(t, "outer", "--label", "com.docker.compose.project=ci")
	if o := ownerOf(t, e, r, victim); o.ContainerName != "victim" || o.Project != "victim" || o.NamedBy != "" {
		t.Fatalf("victim: %+v", o)
	}
	at, path := cgroupOf(t, r, e.Inspect(t, outer, "{{.State.Pid}}"))
	if o := r.Owner(at); o.Project != "ci" {
		t.Fatalf("outer: %+v", o)
	}
	var made []string
	for _, f := range []string{"docker/" + victim, "docker-" + victim + ".scope", victim, "system.slice/docker-" + victim + ".scope",
		"lxc.payload.victim", "machine.slice/machine-victim.scope"} {
		dir := filepath.Join(r.Hierarchy().Mount, path, f)
		mount := "/sys/fs/cgroup"
		if r.Hierarchy().Version == 1 {
			mount += "/memory"
		}
		e.Docker(t, "exec", outer, "mkdir", "-p", filepath.Join(mount, f))
		made = append(made, dir)
	}
	t.Cleanup(func() {
		for _, dir := range made {
			removeCgroups(dir)
		}
	})
	for _, dir := range made {
		id := inode(t, dir)
		for range 3 { // its neighbour's engine was asked, and says where that is
			o := r.Owner(id)
			if o.Project != "ci" || o.ProjectNamedBy != "" || o.NamedBy != "container "+outer || o.Parent != outer ||
				o.ContainerName == "victim" && o.Runtime == "docker" {
				t.Errorf("%s: %+v", dir, o)
			}
			waitAnswered(t, r)
		}
	}
	// The engine in it claims the project of the neighbour.
	e.Docker(t, "exec", outer, "docker", "run", "-d", "--network", "none", "--stop-signal", "KILL", "--name", "victim",
		"--label", "com.docker.compose.project=victim", enginetest.Image, "sleep", "100000")
	inner := e.Docker(t, "exec", outer, "docker", "inspect", "--format", "{{.Id}}", "victim")
	id := inode(t, filepath.Join(r.Hierarchy().Mount, path, "docker", inner))
	enginetest.Poll(t, patience, "named by its engine", func() bool { return r.Owner(id).ContainerName == "victim" })
	if o := r.Owner(id); o.Project != "victim" || o.ProjectNamedBy != "container "+outer || o.NamedBy != "container "+outer || o.OuterName != "outer" {
		t.Errorf("got %+v", o)
	}
}

// docker run --cgroup-parent puts a container below another one. Its engine's word counts
// there: it says that it did.
func TestCgroupParentInContainer(t *testing.T) {
	e := enginetest.Start(t)
	around := e.Run(t, "--name", "around", enginetest.Image, "sleep", "1000")
	r := startResolver(t, Options{DockerSockets: []string{"unix://" + e.Socket}, OnlyListedSockets: true})
	waitAnswered(t, r)
	_, path := cgroupOf(t, r, e.Inspect(t, around, "{{.State.Pid}}"))
	job := e.Run(t, "--name", "job", "--cgroup-parent", path, "--label", "com.docker.compose.project=jobs", enginetest.Image, "sleep", "1000")
	enginetest.Poll(t, patience, "named", func() bool { return ownerOf(t, e, r, job).ContainerName == "job" })
	if o := ownerOf(t, e, r, job); o.Path != path+"/"+job || o.Parent != around || o.NamedBy != "" || o.Project != "jobs" || o.ProjectNamedBy != "" {
		t.Errorf("got %+v", o)
	}
}

// An engine in a container that shares the cgroup namespace of the machine puts its
// containers beside the container that it runs in, not below it.
func TestSiblingEngine(t *testing.T) {
	e := enginetest.Start(t)
	r := startResolver(t, Options{DockerSockets: []string{"unix://" + e.Socket}})
	waitAnswered(t, r)
	outer := e.RunNested(t, "outer", "--label", "com.docker.compose.project=ci", "--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw")
	inner := e.Docker(t, "exec", outer, "docker", "run", "-d", "--network", "none", "--stop-signal", "KILL", "--name", "beside", enginetest.Image, "sleep", "100000")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(files, func(name string) bool {
		b, _ := os.ReadFile(name)
		return strings.Contains(string(b), "/"+inner)
	})
	if i < 0 {
		t.Fatal("no process of the inner container")
	}
	id, path := cgroupOf(t, r, filepath.Base(filepath.Dir(files[i])))
	if strings.Contains(path, outer) {
		t.Fatalf("it is below the outer one: %s", path)
	}
	enginetest.Poll(t, patience, "named by the engine beside it", func() bool { return r.Owner(id).ContainerName == "beside" })
	if o := r.Owner(id); o.Parent != outer || o.OuterName != "outer" || o.Project != "ci" || o.ProjectRule != RuleParent || o.NamedBy != "container "+outer {
		t.Errorf("got %+v", o)
	}
}

// A socket of root in a directory of a user may be another one at any moment: it names the
// user's containers only. So does one at which a user listens, wherever it is.
func TestSocketsOfUsers(t *testing.T) {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	says := func(socket string) string {
		t.Helper()
		f := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, socket, domain{})
		if err := f.reach(t.Context()); err != nil {
			t.Fatal(err)
		}
		return f.domain.String() + f.endpoint.User
	}
	if got := says(listen(t, filepath.Join(dir, "root/d.sock"))); got != "" {
		t.Errorf("root's own: %q", got)
	}
	theirs := listen(t, filepath.Join(dir, "theirs/below/d.sock"))
	if err := os.Chown(filepath.Join(dir, "theirs"), attacker, attacker); err != nil {
		t.Fatal(err)
	}
	if got := says(theirs); got != "user 12341234" {
		t.Errorf("in a user's directory: %q", got)
	}
	open := listen(t, filepath.Join(dir, "open/d.sock"))
	if err := os.Chmod(filepath.Join(dir, "open"), 0o777); err != nil {
		t.Fatal(err)
	}
	if got := says(open); got != "user unknown?" {
		t.Errorf("in a directory of everybody: %q", got)
	}
	p := enginetest.StartRootlessPodman(t, attacker)
	link := filepath.Join(dir, "root/link.sock")
	if err := os.Symlink(p.Socket, link); err != nil {
		t.Fatal(err)
	}
	if got := says(link); got != "user 12341234" {
		t.Errorf("a user's engine behind a link of root: %q", got)
	}
}

// A user who leads many links to places of his own uses up nobody's endpoints but his.
func TestUsersDoNotUseUpEndpoints(t *testing.T) {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, attacker, attacker); err != nil {
		t.Fatal(err)
	}
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	added := 0
	for i := range 3 * maxEndpoints {
		if r.runtimes.add(&runtimeSpec{name: runtimeDocker}, fmt.Sprintf("%s/%d.sock", dir, i), domain{}) != nil {
			added++
		}
	}
	if added != maxEndpoints {
		t.Errorf("%d endpoints of users, want %d", added, maxEndpoints)
	}
	if r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/docker.sock", domain{}) == nil {
		t.Error("no place for the machine's engine")
	}
}

// A user's own containerd is found in the user's runtime directory, as nerdctl sets it up.
// Its names count for that user's containers only.
func TestRootlessContainerd(t *testing.T) {
	home, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	runtimeDir := fmt.Sprintf("/run/user/%d", attacker)
	for _, dir := range []string{home, runtimeDir, runtimeDir + "/containerd"} {
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, attacker, attacker); err != nil {
			t.Fatal(err)
		}
	}
	socket := runtimeDir + "/containerd/containerd.sock"
	config := filepath.Join(home, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n"+
		"[plugins.\"io.containerd.internal.v1.opt\"]\n  path = %q\n", home+"/root", home+"/state", socket, home+"/opt"), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	engine := as(exec.Command("unshare", "--user", "--map-root-user", "--mount", "--kill-child", "--fork", "containerd", "--config", config), attacker)
	engine.Stdout, engine.Stderr, engine.Dir, engine.Env = log, log, home, append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+runtimeDir)
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = engine.Process.Kill()
		_ = engine.Wait()
		if b, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("end of containerd's log:\n%s", b[max(0, len(b)-4<<10):])
		}
	})
	// The clients are in the engine's user namespace in nerdctl's setup; here the user is root
	// in one of the same kind.
	ctr := func(args ...string) error {
		cmd := as(exec.Command("unshare", append([]string{"--user", "--map-root-user", "ctr", "--address", socket}, args...)...), attacker)
		cmd.Dir, cmd.Env = home, append(os.Environ(), "HOME="+home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	enginetest.Poll(t, patience, "the user's containerd answers", func() bool { return ctr("version") == nil })
	r := startResolver(t, Options{})
	for i, id := range []string{idA, idB} {
		err := ctr("containers", "create", "--rootfs",
			"--label", fmt.Sprintf("nerdctl/name=shop-web-%d", i+1), "--label", "com.docker.compose.project=shop", home, id, "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
	}
	enginetest.Poll(t, patience, "both containers are reported", func() bool {
		for _, e := range r.Endpoints() {
			if e.Socket == socket && e.State == StateOK && e.Runtime == runtimeContainerd && e.User == fmt.Sprint(attacker) {
				r.runtimes.wanted("list again")
				return r.registry.get(domain{}.of(fmt.Sprint(attacker)).key(idB)) != nil
			}
		}
		return false
	})
	own := delegate(t, r.Hierarchy().Mount, "user.slice/user-1234.slice/user@1234.service/user.slice", attacker)
	for i, id := range []string{idA, idB} {
		dir := filepath.Join(own, "nerdctl-"+id+".scope")
		if out, err := as(exec.Command("mkdir", dir), attacker).CombinedOutput(); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		o := r.Owner(inode(t, dir))
		if o.ContainerName != fmt.Sprintf("shop-web-%d", i+1) || o.Project != "shop" || o.Runtime != runtimeContainerd || o.NamedBy != "user 1234" || o.ProjectNamedBy != "user 1234" {
			t.Errorf("the user's own container: %+v", o)
		}
		for j, path := range []string{"/system.slice/nerdctl-" + id + ".scope", "/default/" + id} {
			r.CgroupCreated(1<<50+uint64(10*i+j), path)
			if o := r.Owner(1<<50 + uint64(10*i+j)); o.ContainerName != "" || o.Project == "shop" || o.NamedBy != "" {
				t.Errorf("the machine's %s: %+v", path, o)
			}
		}
	}
}
