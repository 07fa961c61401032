//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestEngines runs what else of Debian keeps workloads in cgroups, on a machine like that
// of TestRuntimes: Slurm, a user's containerd and LXD. Beside two owners a user
// gives a cgroup of his own the name of one of them.
func TestEngines(t *testing.T) {
	suite{
		image:    "engines",
		line:     "6.12",
		memory:   2048,
		deadline: 40 * time.Minute,
		append:   []string{guest.SystemdInit},
		quick:    never,
		scenarios: []scenario{
			{name: "slurm", run: engineSlurm},
			{name: "containerd_rootless", run: engineContainerdRootless},
			{name: "lxd", run: engineLXD},
		},
	}.test(t)
}

// impostor is a user who gives a cgroup of his own a name, and writes in it.
func impostor(cgroup, runtime, name string) workload {
	by := fmt.Sprintf("user %d", user)
	return workload{name: "impostor", direct: 97, buffered: 151, uid: user, row: map[string]string{
		"container.name": name, "container.runtime": runtime, "iotrace.owner": "container", "iotrace.named_by": by,
		"iotrace.cgroup.path": fmt.Sprintf("~/user@%d.service/app.slice/impostor.service/%s", user, cgroup),
	}}
}

// startImpostor runs him in a unit that systemd delegated to him. His cgroups have the memory
// controller, as those of engines have it: without it his pages would be his unit's.
func startImpostor(g *guest.Guest, s session, w workload, cgroup string) {
	g.Helper()
	script := filepath.Join(w.warm(), "run.sh")
	g.WriteFile(script, fmt.Sprintf(`cd /sys/fs/cgroup$(sed s/^0::// /proc/self/cgroup)
mkdir -p '%[1]s' && echo $$ >'%[1]s/cgroup.procs' || exit
up='%[1]s'
while [ "$up" != . ]; do up=$(dirname "$up"); all="$up $all"; done
for up in $all; do echo +memory >"$up/cgroup.subtree_control" || exit; done
%[2]s`, cgroup, w.scriptAt(w.dir(), w.warm())))
	s.must("systemd-run", "--user", "--collect", "--unit", "impostor", "--property", "Delegate=yes", "sh", script)
	g.Cleanup(func() {
		if g.Failed() {
			out, _ := g.Try("journalctl", "--no-pager", "--lines=20", fmt.Sprintf("_UID=%d", user))
			g.Logf("journal: %s", out)
		}
		_, _ = s.try("systemctl", "--user", "stop", "impostor.service")
	})
}

// engineSlurm is a cluster of one node with Slurm's plugin for cgroup v2: jobs are below a
// scope of the node.
func engineSlurm(g *guest.Guest) {
	g.Exec("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
	g.Exec("ip", "link", "set", "lo", "up")
	s := enginetest.StartSlurm(g, 2)
	loads := two(0, func(name string) map[string]string {
		return map[string]string{"container.runtime": "slurm", "iotrace.owner": "container", "iotrace.named_by": ""}
	})
	const forged = "guest_slurmstepd.scope/job_1"
	loads = append(loads, impostor(forged, "slurm", "job_1"))
	t := traceBy(g, "container,device", loads...)
	for _, w := range loads[:2] {
		id := s.Submit(g, w.name, w.scriptAt(w.dir(), w.warm()))
		w.row["container.name"] = "job_" + id
		w.row["iotrace.cgroup.path"] = "~/system.slice/guest_slurmstepd.scope/job_" + id + "/step_batch/"
	}
	if got := loads[0].row["container.name"]; got != "job_1" {
		g.Fatalf("the first job is %s", got)
	}
	startImpostor(g, startSession(g), loads[2], forged)
	finishRows(t)
}

// finishRows finishes, and fails unless each owner has one row.
func finishRows(t *runtimeTrace) {
	t.g.Helper()
	seen := map[string]bool{}
	for _, d := range t.finish() {
		for _, w := range t.loads {
			if key := d.String("event.end") + " " + w.name; w.says(d) {
				if seen[key] {
					t.g.Errorf("%s has a second row: %v", w.name, d)
				}
				seen[key] = true
			}
		}
	}
}

// engineContainerdRootless is a user's containerd with the cgroups of the user's own systemd,
// set up as nerdctl's containerd-rootless.sh does it: in namespaces of rootlesskit.
func engineContainerdRootless(g *guest.Guest) {
	g.Modprobe("overlay", "tun")
	if err := os.Chmod("/dev/net/tun", 0o666); err != nil { // udev would do this, but does not run here
		g.Fatal(err)
	}
	s := startSession(g)
	socket := s.runtime() + "/containerd/containerd.sock"
	g.WriteFile("/home/app/containerd.toml", `version = 2
root = "/home/app/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/home/app/opt"
`)
	s.must("systemd-run", "--user", "--unit", "containerd", "--property", "Delegate=yes",
		"rootlesskit", "--state-dir", s.runtime()+"/containerd-rootless", "--net", "slirp4netns", "--mtu", "65520", "--disable-host-loopback",
		"--copy-up", "/etc", "--copy-up", "/run", "--copy-up", "/var/lib", "--propagation", "rslave",
		"sh", "-c", `rm -f /run/containerd && mkdir -p /run/containerd "$XDG_RUNTIME_DIR/containerd" &&
mount --bind "$XDG_RUNTIME_DIR/containerd" /run/containerd && exec containerd --config /home/app/containerd.toml`)
	g.Cleanup(func() {
		if g.Failed() {
			out, _ := g.Try("journalctl", "--no-pager", "--lines=60", fmt.Sprintf("_UID=%d", user))
			g.Logf("journal: %s", out)
		}
		_, _ = s.try("systemctl", "--user", "stop", "containerd")
	})
	pid := s.runtime() + "/containerd-rootless/child_pid"
	ctr := func(args ...string) (string, error) {
		child, err := os.ReadFile(pid)
		if err != nil {
			return "", err
		}
		return s.try(append([]string{"nsenter", "--user", "--preserve-credentials", "--mount", "--net", "--target", strings.TrimSpace(string(child)), "ctr", "--address", socket}, args...)...)
	}
	must := func(args ...string) {
		g.Helper()
		if out, err := ctr(args...); err != nil {
			g.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	g.Eventually("the user's containerd answers", func() bool { _, err := ctr("version"); return err == nil })
	must("images", "import", s.image("docker.io/library/"+enginetest.Image))
	loads := two(user, s.row(composeRow("containerd", s.cgroup(), "docker.io/library/busybox")))
	t := traceBy(g, "container,device", loads...)
	for i, w := range loads {
		id := strings.Repeat(fmt.Sprintf("c0de%04d", i), 8)
		must("run", "--detach", "--null-io", "--runc-systemd-cgroup", "--cgroup", "user.slice:nerdctl:"+id,
			"--label", "nerdctl/name="+w.name+"-web-1", "--label", "com.docker.compose.project="+w.name, "--label", "com.docker.compose.service=web",
			"--mount", "type=bind,src="+w.dir()+",dst=/data,options=rbind:rw", "--mount", "type=bind,src="+w.warm()+",dst=/warm,options=rbind:rw",
			"docker.io/library/"+enginetest.Image, id, "sh", "/warm/run.sh")
		g.Cleanup(func() { _, _ = ctr("tasks", "kill", "--signal", "SIGKILL", id) })
	}
	finishRows(t)
	checkSays(g, socket, `containerd: ok, containerd \S+, 2 containers of user 1000$`)
}

// engineLXD is Debian's LXD with one instance in each of two projects, of the same name.
// They are unprivileged.
func engineLXD(g *guest.Guest) {
	const mapped = 1000000 // root of an instance, by /etc/subuid
	g.Modprobe("fuse")
	g.Exec("systemctl", "start", "lxd.service")
	g.Cleanup(func() { _, _ = g.Try("systemctl", "stop", "lxd.socket", "lxd.service", "lxcfs.service") })
	dir := g.TempDir()
	preseed := filepath.Join(dir, "preseed.yaml")
	g.WriteFile(preseed, `storage_pools:
- name: default
  driver: dir
profiles:
- name: default
  devices:
    root: {path: /, pool: default, type: disk}
`)
	g.Exec("sh", "-c", "lxd init --preseed <"+preseed)
	tree(g, filepath.Join(dir, "rootfs"))
	g.WriteFile(filepath.Join(dir, "metadata.yaml"), "architecture: x86_64\ncreation_date: 1700000000\n")
	if err := os.Mkdir(filepath.Join(dir, "rootfs/sbin"), 0o755); err != nil {
		g.Fatal(err)
	}
	g.WriteFile(filepath.Join(dir, "rootfs/sbin/init"), "#!/bin/sh\nexec sh /warm/run.sh\n")
	g.Exec("chmod", "755", filepath.Join(dir, "rootfs/sbin/init"))
	g.Exec("tar", "-C", dir, "-cf", filepath.Join(dir, "image.tar"), "metadata.yaml", "rootfs")
	g.Exec("lxc", "image", "import", filepath.Join(dir, "image.tar"), "--alias", "busybox")
	loads := two(mapped, func(name string) map[string]string {
		return map[string]string{
			"container.name": "web1", "container.runtime": "lxc", "iotrace.owner": "container", "iotrace.named_by": "",
			"iotrace.project.name": name, "iotrace.project.rule": "lxd", "iotrace.project.named_by": "",
			"iotrace.cgroup.path": "~/lxc.payload." + name + "_web1",
		}
	})
	const forged = "lxc.payload.shop_web1"
	loads = append(loads, impostor(forged, "lxc", "shop_web1"))
	t := traceBy(g, "container,device", loads...)
	for _, w := range loads[:2] {
		g.Exec("lxc", "project", "create", w.name, "--config", "features.images=false", "--config", "features.profiles=false")
		g.Exec("lxc", "init", "busybox", "web1", "--project", w.name)
		g.Exec("lxc", "config", "device", "add", "web1", "data", "disk", "source="+w.dir(), "path=/data", "--project", w.name)
		g.Exec("lxc", "config", "device", "add", "web1", "warm", "disk", "source="+w.warm(), "path=/warm", "--project", w.name)
		if out, err := g.Try("lxc", "start", "web1", "--project", w.name); err != nil {
			log, _ := g.Try("lxc", "info", "web1", "--show-log", "--project", w.name)
			g.Fatalf("lxc start: %v: %s\n%s", err, out, log)
		}
		g.Cleanup(func() { _, _ = g.Try("lxc", "stop", "web1", "--force", "--project", w.name) })
	}
	startImpostor(g, startSession(g), loads[2], forged)
	finishRows(t)
}
