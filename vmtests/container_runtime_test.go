//go:build vm

package vmtests

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// TestRuntimes runs every container runtime that Debian packages, on a machine like
// those of users: systemd is PID 1 and owns a pure cgroup v2 tree. Two workloads of
// two owners write known bytes, and the rows must carry their names.
func TestRuntimes(t *testing.T) {
	s := suite{
		image:    "runtimes",
		line:     "6.12",
		memory:   2048,
		deadline: 40 * time.Minute,
		append:   []string{guest.SystemdInit},
		scenarios: []scenario{
			{name: "cri_systemd", run: runtimeCRI(true), smoke: true},
			{name: "cri_cgroupfs", run: runtimeCRI(false)}, // TestContainerd in attribute has this driver on cgroup v1
			{name: "docker_systemd", run: runtimeDocker, smoke: true},
			{name: "podman_rootless", run: runtimePodmanRootless, smoke: true},
			{name: "docker_rootless", run: runtimeDockerRootless},
			{name: "nspawn", run: runtimeNspawn, smoke: true},
			{name: "lxc", run: runtimeLXC, smoke: true},
			{name: "package", run: runtimePackage, smoke: true},
			{name: "image", run: runtimeImage},
		},
	}
	if k, err := selected(); err == nil && !guest.Inside() && !*flagSupport {
		if at := slices.IndexFunc(k, func(k Kernel) bool { return k.Name == s.line }); at >= 0 {
			run := s.expected(t, k[at])
			if image := slices.Contains(run, "image"); image || slices.Contains(run, "package") {
				s.shares = []vm.Share{packageShare(t, image)}
			}
		}
	}
	s.test(t)
}

// TestRuntimeVerdict proves for that guest what TestVerdict proves for all others: a
// broken guest has failed, even with systemd between the tests and the machine.
func TestRuntimeVerdict(t *testing.T) {
	s := badGuests()
	s.image, s.memory, s.append, s.deadline = "runtimes", 1024, []string{guest.SystemdInit}, 3*time.Minute
	if guest.Inside() {
		s.test(t)
		return
	}
	if *flagSupport {
		t.Skip("boots guests")
	}
	t.Parallel()
	at := slices.IndexFunc(Matrix(), func(k Kernel) bool { return k.Name == "6.12" })
	for _, tt := range []struct {
		name, scenario, problem string
		quick                   bool
	}{
		{"fails", "fail", "", false},
		{"exits", "never ended", "", true},
		{"powers_off", "", "never reported the end", false},
		{"not_there", "did not run", "", false},
	} {
		if *flagQuick && !tt.quick {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			o, err := s.run(t.Context(), "TestRuntimeVerdict", Matrix()[at], []string{tt.name})
			if err != nil {
				t.Fatal(err)
			}
			v, problems := o.verdict(tt.name), strings.Join(o.problems, "\n")
			if !strings.Contains(v, tt.scenario) || !strings.Contains(problems, tt.problem) || v == "" && problems == "" {
				t.Errorf("scenario: %q, problems: %q; want %q and %q\n%s", v, problems, tt.scenario, tt.problem, lastLines(o.console, 30))
			}
		})
	}
}

// workload is one owner's I/O: pages written past the cache and through it.
type workload struct {
	name             string
	direct, buffered int64 // pages of 4096 bytes; prime, so no two sums are the same
	uid              int   // of the user that writes
	// row has the fields that every row of it must have, with their values. "*"
	// matches any value; a value that begins with ~ matches a part of the field.
	row map[string]string
}

func (w workload) bytes() int64 { return 4096 * (w.direct + w.buffered) }

// dir is its directory on the measured disk, warm the one on the other disk.
func (w workload) dir() string  { return filepath.Join("/mnt/data", w.name) }
func (w workload) warm() string { return filepath.Join("/mnt/warm", w.name) }

// script is the shell script of its container. It writes to the other disk until
// the file go exists, so the test can wait for the name in a row. Then it writes
// the known bytes and keeps running, as a service does.
func (w workload) script() string { return w.scriptAt("/data", "/warm") }

// scriptAt is the script where the directories are data and warm.
func (w workload) scriptAt(data, warm string) string {
	return fmt.Sprintf(`until [ -e %[2]s/go ]; do dd if=/dev/zero of=%[2]s/f bs=4096 count=1 oflag=direct 2>/dev/null; sleep 1; done
dd if=/dev/zero of=%[1]s/direct bs=4096 count=%[3]d oflag=direct &&
dd if=/dev/zero of=%[1]s/buffered bs=4096 count=%[4]d &&
: >%[2]s/done
exec sleep 100000
`, data, warm, w.direct, w.buffered)
}

// runtimeTrace is a tracer and two disks with a file system.
type runtimeTrace struct {
	g          *guest.Guest
	data, warm guest.Disk
	tr         *guest.Tracer
	before     guest.IOStats // once the tracer was ready
	earlier    guest.IOStats // before it was started
	loads      []workload
}

// traceRuntimes is traceBy with a row for each cgroup.
func traceRuntimes(g *guest.Guest, loads ...workload) *runtimeTrace {
	g.Helper()
	return traceBy(g, "cgroup,device", loads...)
}

// traceBy formats the disks, makes the workloads' directories and starts the tracer, which
// looks for sockets at the usual paths.
func traceBy(g *guest.Guest, by string, loads ...workload) *runtimeTrace {
	g.Helper()
	t := &runtimeTrace{g: g, data: g.NVMe(), warm: g.Virtio(), loads: loads}
	g.HoldWriteback()
	t.data.Format("ext4")
	t.warm.Format("ext4")
	t.data.MountAt("ext4", "/mnt/data", "")
	t.warm.MountAt("ext4", "/mnt/warm", "")
	for _, w := range loads {
		for _, dir := range []string{w.dir(), w.warm()} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				g.Fatal(err)
			}
			if err := os.Chown(dir, w.uid, w.uid); err != nil {
				g.Fatal(err)
			}
		}
		g.WriteFile(filepath.Join(w.warm(), "run.sh"), w.script())
	}
	g.Sync()
	t.earlier = t.data.Stats()
	t.tr = g.Trace("--source", "block", "--by", by)
	t.before = t.data.Stats()
	return t
}

// says reports whether a row carries the names of a workload.
func (w workload) says(d guest.Doc) bool {
	for field, want := range w.row {
		got := d.String(field)
		if part, ok := strings.CutPrefix(want, "~"); ok {
			if !strings.Contains(got, part) {
				return false
			}
		} else if got != want {
			return false
		}
	}
	return true
}

// finish lets the workloads write once all of them are named. It compares the rows
// with the written bytes, and with two counts of the disk, one taken while the
// tracer ran and one that includes its start and end: the file system may write its
// journal in between. It returns the rows of the measured disk.
func (t *runtimeTrace) finish() []guest.Doc {
	g := t.g
	g.Helper()
	named := false
	g.Cleanup(func() {
		if !named {
			for _, d := range t.tr.Now().Where("iotrace.device.id", t.warm.ID()) {
				g.Logf("row: %v", d)
			}
		}
	})
	for _, w := range t.loads {
		g.Eventually("a row that names "+w.name, func() bool {
			return slices.ContainsFunc(t.tr.Now().Where("iotrace.device.id", t.warm.ID()), w.says)
		})
	}
	named = true
	for _, w := range t.loads {
		g.WriteFile(filepath.Join(w.warm(), "go"), "")
	}
	for _, w := range t.loads {
		g.Eventually(w.name+" wrote", func() bool { _, err := os.Stat(filepath.Join(w.warm(), "done")); return err == nil })
	}
	g.Sync()
	within := t.data.Stats().Sub(t.before)
	r := t.tr.Stop()
	around := t.data.Stats().Sub(t.earlier)
	rows := r.Where("iotrace.source", "block", "iotrace.device.id", t.data.ID())
	written := map[string]int64{}
	var all int64
	for _, d := range rows {
		n := d.Int("iotrace.write.bytes")
		all += n
		n -= d.Int("iotrace.write.meta_bytes") // directories, inodes: the file system's
		if n == 0 {
			continue
		}
		i := slices.IndexFunc(t.loads, func(w workload) bool { return w.says(d) })
		if i < 0 {
			g.Errorf("%d bytes of an unknown owner: %v", n, d)
			continue
		}
		written[t.loads[i].name] += n
	}
	for _, w := range t.loads {
		r.Equal(w.name, written[w.name], w.bytes())
	}
	if all < within.WriteBytes || all > around.WriteBytes {
		r.Equal(fmt.Sprintf("all rows against diskstats, %d to %d", within.WriteBytes, around.WriteBytes), all, within.WriteBytes)
	}
	if r.Lost() != r.LostOf("latencies") {
		g.Errorf("tracer lost something: %s", r.LostWhat())
	}
	return rows
}

// two are the workloads of two owners. fields makes the row of each.
func two(uid int, fields func(name string) map[string]string) []workload {
	return []workload{
		{name: "shop", direct: 211, buffered: 523, uid: uid, row: fields("shop")},
		{name: "bank", direct: 307, buffered: 401, uid: uid, row: fields("bank")},
	}
}

// checkSays fails unless iotrace-bpf check prints lines about a socket that match these
// expressions.
func checkSays(g *guest.Guest, socket string, want ...string) {
	g.Helper()
	var text string
	said := false
	defer func() {
		if !said {
			g.Logf("check says:\n%s", text)
		}
	}()
	// check waits some seconds for a runtime; one that is started by its socket may need
	// more.
	g.Eventually(fmt.Sprintf("check says %q of %s", want, socket), func() bool {
		text = g.Tracer("check", "--source", "block")
		said = !slices.ContainsFunc(want, func(w string) bool {
			return !slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
				f := strings.Fields(line)
				return len(f) > 2 && f[0] == "socket" && f[1] == socket && regexp.MustCompile("^"+w).MatchString(strings.Join(f[2:], " "))
			})
		})
		return said
	})
}

// runtimeCRI is what a Kubernetes node does: containerd's CRI plugin makes pods,
// as systemd's slices and scopes or as directories.
func runtimeCRI(systemd bool) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.Modprobe("overlay")
		socket, cgroup := "/run/k3s/containerd/containerd.sock", "~/kubepods/burstable/pod"
		if systemd {
			socket, cgroup = "/run/containerd/containerd.sock", "~/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"
		}
		c := enginetest.StartContainerd(g, enginetest.ContainerdOptions{Socket: socket, SystemdCgroup: systemd})
		loads := two(0, func(name string) map[string]string {
			return map[string]string{
				"container.name": "web", "container.runtime": "containerd", "container.image.name": "docker.io/library/busybox",
				"orchestrator.namespace": name, "orchestrator.resource.name": name + "-0",
				"iotrace.project.name": name, "iotrace.project.rule": "kubernetes", "iotrace.service.name": "front",
				"iotrace.owner": "container", "iotrace.cgroup.path": cgroup,
			}
		})
		t := traceRuntimes(g, loads...)
		for i, w := range loads {
			c.RunPod(g, enginetest.Pod{
				Namespace: w.name, Name: w.name + "-0", UID: fmt.Sprintf("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f%d", i),
				Labels: map[string]string{"app.kubernetes.io/name": "front"}, Container: "web", Command: []string{"sh", "/warm/run.sh"},
				Mounts: map[string]string{"/data": w.dir(), "/warm": w.warm()},
			})
		}
		t.finish()
		// Two pods have two sandboxes and two containers; containerd counts all four as
		// containers.
		checkSays(g, socket, `containerd: ok, containerd \S+, CRI v1, 4 containers$`, `containerd: ok, containerd \S+, 4 containers$`)
	}
}

// runtimeDocker is Docker as Debian installs it on such a machine: systemd makes
// its cgroups.
func runtimeDocker(g *guest.Guest) {
	startDocker(g)
	if driver := strings.TrimSpace(g.Exec("docker", "info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}}")); driver != "systemd 2" {
		g.Fatalf("docker uses %q", driver)
	}
	image := filepath.Join(g.TempDir(), "busybox.tar")
	g.WriteFile(image, string(enginetest.ImageArchive(g, enginetest.Image)))
	g.Exec("docker", "load", "--input", image)
	loads := two(0, composeRow("docker", "~/system.slice/docker-", "busybox"))
	t := traceRuntimes(g, loads...)
	for _, w := range loads {
		g.Exec("docker", append([]string{"run", "--detach", "--network", "none"}, composeRun(w)...)...)
		g.Cleanup(func() { _, _ = g.Try("docker", "rm", "--force", w.name+"-web-1") })
	}
	t.finish()
	checkSays(g, "/run/docker.sock", `docker: ok, \S.*, API 1\.\d+, 2 containers$`)
}

// composeRow are the names that compose gives.
func composeRow(runtime, cgroup, image string) func(string) map[string]string {
	return func(name string) map[string]string {
		return map[string]string{
			"container.name": name + "-web-1", "container.runtime": runtime, "container.image.name": image,
			"iotrace.project.name": name, "iotrace.project.rule": "compose", "iotrace.service.name": "web",
			"iotrace.owner": "container", "iotrace.cgroup.path": cgroup,
		}
	}
}

// composeRun are the arguments by which docker and podman run a workload.
func composeRun(w workload) []string {
	return []string{
		"--name", w.name + "-web-1",
		"--label", "com.docker.compose.project=" + w.name, "--label", "com.docker.compose.service=web",
		"--volume", w.dir() + ":/data", "--volume", w.warm() + ":/warm",
		enginetest.Image, "sh", "/warm/run.sh",
	}
}

// user is the image's ordinary user.
const user = 1000

// session is a user's own systemd, as a login starts it.
type session struct{ g *guest.Guest }

func startSession(g *guest.Guest) session {
	g.Helper()
	if err := os.MkdirAll("/home/app", 0o755); err != nil {
		g.Fatal(err)
	}
	if err := os.Chown("/home/app", user, user); err != nil {
		g.Fatal(err)
	}
	g.Exec("systemctl", "start", fmt.Sprintf("user@%d.service", user))
	return session{g}
}

// runtime is the directory of the user's sockets.
func (s session) runtime() string { return fmt.Sprintf("/run/user/%d", user) }

// try runs a program as the user.
func (s session) try(args ...string) (string, error) {
	s.g.Helper()
	return s.g.Try("setpriv", append([]string{"--reuid", fmt.Sprint(user), "--regid", fmt.Sprint(user), "--clear-groups", "env", "--ignore-environment",
		"PATH=/usr/bin:/usr/sbin", "HOME=/home/app", "USER=app", "XDG_RUNTIME_DIR=" + s.runtime(),
		"DBUS_SESSION_BUS_ADDRESS=unix:path=" + s.runtime() + "/bus", "DOCKER_HOST=unix://" + s.runtime() + "/docker.sock", "LC_ALL=C.UTF-8"}, args...)...)
}

func (s session) must(args ...string) string {
	s.g.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.g.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// image is an archive of busybox that the user may read.
func (s session) image(name string) string {
	s.g.Helper()
	file := "/home/app/busybox.tar"
	s.g.WriteFile(file, string(enginetest.ImageArchive(s.g, name)))
	return file
}

// cgroup is where the user's containers must be.
func (s session) cgroup() string {
	return fmt.Sprintf("~/user.slice/user-%d.slice/user@%[1]d.service/", user)
}

// row adds to a row that the names are the user's word.
func (s session) row(fields func(string) map[string]string) func(string) map[string]string {
	return func(name string) map[string]string {
		row := fields(name)
		row["iotrace.named_by"] = fmt.Sprintf("user %d", user)
		row["iotrace.project.named_by"] = row["iotrace.named_by"]
		return row
	}
}

// runtimePodmanRootless is a user's Podman: no daemon, a user namespace, cgroups
// of the user's own systemd, and a socket below /run/user.
func runtimePodmanRootless(g *guest.Guest) {
	g.Modprobe("overlay", "fuse")
	s := startSession(g)
	// conmon, which podman leaves running, must outlive the command.
	podman := []string{"systemd-run", "--user", "--pipe", "--wait", "--quiet", "--collect", "--property", "KillMode=process", "podman"}
	s.must(append(podman, "load", "--input", s.image("docker.io/library/"+enginetest.Image))...)
	s.must("systemctl", "--user", "start", "podman.socket")
	g.Cleanup(func() { _, _ = s.try(append(podman, "rm", "--all", "--force", "--time", "0")...) })

	loads := two(user, s.row(composeRow("podman", s.cgroup(), "docker.io/library/busybox")))
	t := traceRuntimes(g, loads...)
	for _, w := range loads {
		s.must(append(append(podman, "run", "--detach", "--network", "none"), composeRun(w)...)...)
	}
	t.finish()
	checkSays(g, s.runtime()+"/podman/podman.sock", `podman: ok, Podman Engine \S+, API \S+, 2 containers of user 1000$`)
}

// runtimeDockerRootless is a user's dockerd, in namespaces of rootlesskit.
func runtimeDockerRootless(g *guest.Guest) {
	g.Modprobe("overlay", "tun")
	if err := os.Chmod("/dev/net/tun", 0o666); err != nil { // udev would do this, but does not run here
		g.Fatal(err)
	}
	s := startSession(g)
	s.must("systemd-run", "--user", "--unit", "dockerd", "--property", "Delegate=yes", "--setenv", "DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns",
		"/usr/share/docker.io/contrib/dockerd-rootless.sh", "--bridge", "none", "--iptables=false", "--ip6tables=false")
	g.Cleanup(func() {
		if g.Failed() {
			out, _ := g.Try("journalctl", "--no-pager", "--lines=60", fmt.Sprintf("_UID=%d", user))
			g.Logf("journal: %s", out)
		}
		_, _ = s.try("systemctl", "--user", "stop", "dockerd")
	})
	g.Eventually("the user's dockerd answers", func() bool { _, err := s.try("docker", "version"); return err == nil })
	if info := s.must("docker", "info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}} {{.SecurityOptions}}"); !strings.HasPrefix(info, "systemd 2 ") ||
		!strings.Contains(info, "rootless") {
		g.Fatalf("docker says %q", info)
	}
	s.must("docker", "load", "--input", s.image(enginetest.Image))
	loads := two(user, s.row(composeRow("docker", s.cgroup(), "busybox")))
	t := traceRuntimes(g, loads...)
	for _, w := range loads {
		s.must(append([]string{"docker", "run", "--detach", "--network", "none"}, composeRun(w)...)...)
		g.Cleanup(func() { _, _ = s.try("docker", "rm", "--force", w.name+"-web-1") })
	}
	t.finish()
	checkSays(g, s.runtime()+"/docker.sock", `docker: ok, \S.*, API 1\.\d+, 2 containers of user 1000$`)
}

// tree unpacks busybox as the root of a container.
func tree(g *guest.Guest, dir string) {
	g.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "usr"), 0o755); err != nil { // nspawn wants one
		g.Fatal(err)
	}
	for _, d := range []string{"data", "warm", "root", "run", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			g.Fatal(err)
		}
	}
	archive := filepath.Join(g.TempDir(), "root.tar")
	g.WriteFile(archive, string(enginetest.BusyboxTar(g)))
	g.Exec("tar", "-C", dir, "-xf", archive)
}

// runtimeNspawn is systemd-nspawn in both of its forms: run by hand, when it
// registers a scope, and as a machine that is enabled as a service.
func runtimeNspawn(g *guest.Guest) {
	g.Modprobe("tun", "loop", "dm_mod") // the service needs it
	loads := two(0, func(name string) map[string]string {
		return map[string]string{"container.name": name, "container.runtime": "systemd-nspawn", "iotrace.owner": "container"}
	})
	maps.Copy(loads[0].row, map[string]string{"iotrace.cgroup.path": "~/machine.slice/machine-shop.scope"})
	maps.Copy(loads[1].row, map[string]string{
		"iotrace.cgroup.path": "~/machine.slice/systemd-nspawn@bank.service", "iotrace.project.name": "systemd-nspawn@bank.service", "iotrace.project.rule": "unit",
	})
	t := traceRuntimes(g, loads...)
	root := filepath.Join("/var/lib/machines", "shop")
	tree(g, root)
	log, err := os.Create(filepath.Join(g.TempDir(), "log"))
	if err != nil {
		g.Fatal(err)
	}
	cmd := exec.Command("systemd-nspawn", "--machine", "shop", "--directory", root, "--private-network", "--resolv-conf=off", "--timezone=off",
		"--link-journal=no", "--console=pipe", "--bind", loads[0].dir()+":/data", "--bind", loads[0].warm()+":/warm", "/bin/sh", "/warm/run.sh")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if g.Failed() {
			g.Logf("systemd-nspawn: %s", g.ReadFile(log.Name()))
		}
		log.Close()
	})

	tree(g, "/var/lib/machines/bank")
	if err := os.MkdirAll("/etc/systemd/nspawn", 0o755); err != nil {
		g.Fatal(err)
	}
	g.WriteFile("/etc/systemd/nspawn/bank.nspawn", fmt.Sprintf(`[Exec]
Boot=no
Parameters=/bin/sh /warm/run.sh
PrivateUsers=no
ResolvConf=off
Timezone=off
LinkJournal=no
[Files]
Bind=%s:/data
Bind=%s:/warm
[Network]
Private=yes
VirtualEthernet=no
`, loads[1].dir(), loads[1].warm()))
	g.Exec("systemctl", "start", "systemd-nspawn@bank.service")
	g.Cleanup(func() { _, _ = g.Try("systemctl", "kill", "--signal", "KILL", "systemd-nspawn@bank.service") })
	t.finish()
	if out := g.Exec("machinectl", "list", "--no-legend"); !strings.Contains(out, "shop") || !strings.Contains(out, "bank") {
		g.Errorf("machines: %s", out)
	}
}

// runtimeLXC is plain LXC. One container has a name with an underscore, the other one the
// name project_instance and the directory that Incus gives it.
func runtimeLXC(g *guest.Guest) {
	loads := two(0, func(name string) map[string]string {
		return map[string]string{
			"container.name": name + "_web1", "container.runtime": "lxc", "iotrace.owner": "container",
			"iotrace.project.name": "", "iotrace.cgroup.path": "~/lxc.payload." + name + "_web1",
		}
	})
	maps.Copy(loads[1].row, map[string]string{"container.name": "web1", "iotrace.project.name": "bank", "iotrace.project.rule": "lxd"})
	if err := os.MkdirAll("/var/lib/incus/containers/bank_web1", 0o711); err != nil {
		g.Fatal(err)
	}
	t := traceRuntimes(g, loads...)
	for _, w := range loads {
		name, dir := w.name+"_web1", g.TempDir()
		root := filepath.Join(dir, "root")
		tree(g, root)
		config := filepath.Join(dir, "config")
		g.WriteFile(config, fmt.Sprintf(`lxc.uts.name = %s
lxc.rootfs.path = dir:%s
lxc.init.cmd = /bin/sh /warm/run.sh
lxc.mount.auto = proc
lxc.mount.entry = %s data none bind 0 0
lxc.mount.entry = %s warm none bind 0 0
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
`, w.name, root, w.dir(), w.warm()))
		log := filepath.Join(dir, "log")
		if out, err := g.Try("lxc-start", "--name", name, "--rcfile", config, "--logfile", log, "--logpriority", "INFO"); err != nil {
			text, _ := os.ReadFile(log)
			g.Fatalf("lxc-start: %v: %s\n%s", err, out, text)
		}
		g.Cleanup(func() { _, _ = g.Try("lxc-stop", "--name", name, "--kill") })
	}
	t.finish()
}
