package attribute

import (
	"strings"
	"testing"
)

const (
	idA    = "3f8c1d5e7a9b2c4d6e8f0a1b3c5d7e9f1a2b4c6d8e0f1a3b5c7d9e1f2a4b6c8d"
	idB    = "b1946ac92492d2347c6235b4d2611184b1946ac92492d2347c6235b4d2611184"
	uidP   = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
	uidP_  = "0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9"
	uidS   = "d41d8cd98f00b204e9800998ecf8427e"
	taskT  = "8c2f0f9d7b1e4a56a3c1d2e3f4051627"
	handle = "7f3a1b2c-9d8e-4f50-6172-8394"
	stepK  = "x7k2m9qp4w8z1n3v5b6c0d2fj"
	userU  = "/user.slice/user-1000.slice/user@1000.service/user.slice"
)

// pathRows are paths as the runtimes make them: who, which id, which pod.
var pathRows = []struct {
	path string
	want place
}{
	1:  {"/docker/A", place{kind: KindContainer, runtime: "docker", id: idA}},
	2:  {"/system.slice/docker-A.scope", place{kind: KindContainer, runtime: "docker", id: idA}},
	3:  {"/my/parent/A", place{kind: KindContainer, id: idA}},
	4:  {"U/docker-A.scope", place{kind: KindContainer, runtime: "docker", id: idA}},
	5:  {"/docker/A/docker/B", place{kind: KindContainer, runtime: "docker", id: idB, parent: idA}},
	6:  {"/system.slice/docker-A.scope/docker/B", place{kind: KindContainer, runtime: "docker", id: idB, parent: idA}},
	7:  {"/docker/A/system.slice/docker-B.scope", place{kind: KindContainer, runtime: "docker", id: idB, parent: idA}},
	8:  {"/docker/A/system.slice/nginx.service", place{kind: KindContainer, runtime: "docker", id: idA}},
	9:  {"/docker/A/init.scope", place{kind: KindContainer, runtime: "docker", id: idA}},
	10: {"/docker/buildkit/K", place{kind: KindContainer, runtime: "buildkit", id: stepK}},
	11: {"/system.slice/docker-K.scope", place{kind: KindContainer, runtime: "buildkit", id: stepK}},
	12: {"/docker/A/buildkit/K", place{kind: KindContainer, runtime: "buildkit", id: stepK, parent: idA}},
	13: {"/A", place{kind: KindContainer, id: idA}},
	14: {"/system.slice/docker.service/A", place{kind: KindContainer, id: idA}},
	15: {"/system.slice/A", place{kind: KindContainer, id: idA}},
	16: {"/system.slice/runc-A.scope", place{kind: KindContainer, runtime: "runc", id: idA}},
	17: {"/default/A", place{kind: KindContainer, runtime: "containerd", id: idA}},
	18: {"/system.slice/nerdctl-A.scope", place{kind: KindContainer, runtime: "containerd", id: idA}},
	19: {"U/nerdctl-A.scope", place{kind: KindContainer, runtime: "containerd", id: idA}},
	20: {"/kubepods/burstable/podP/A", place{kind: KindContainer, id: idA, podUID: uidP}},
	21: {"/kubepods/podP/A", place{kind: KindContainer, id: idA, podUID: uidP}},
	22: {"/kubepods/burstable/podS/A", place{kind: KindContainer, id: idA, podUID: uidS}},
	23: {"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podP_.slice/cri-containerd-A.scope",
		place{kind: KindContainer, runtime: "containerd", id: idA, podUID: uidP}},
	24: {"/kubepods.slice/kubepods-podP_.slice/cri-containerd-A.scope",
		place{kind: KindContainer, runtime: "containerd", id: idA, podUID: uidP}},
	25: {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podS.slice/docker-A.scope",
		place{kind: KindContainer, runtime: "docker", id: idA, podUID: uidS}},
	26: {"/system.slice/containerd.service/kubepods-burstable-podP_.slice:cri-containerd:A",
		place{kind: KindContainer, runtime: "containerd", id: idA, podUID: uidP}},
	27: {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_.slice/crio-A.scope",
		place{kind: KindContainer, runtime: "cri-o", id: idA, podUID: uidP}},
	28: {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_.slice/crio-A.scope/container",
		place{kind: KindContainer, runtime: "cri-o", id: idA, podUID: uidP}},
	29: {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_.slice/crio-conmon-A.scope",
		place{kind: KindHelper, runtime: "cri-o", podUID: uidP}},
	30: {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_.slice/crio-A",
		place{kind: KindPod, runtime: "cri-o", podUID: uidP, sandbox: idA}},
	31: {"/kubepods/besteffort/podP/crio-A", place{kind: KindContainer, runtime: "cri-o", id: idA, podUID: uidP}},
	32: {"/kubepods.slice/kubepods-podP_.slice", place{kind: KindPod, podUID: uidP}},
	33: {"/docker/A/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podP_.slice/cri-containerd-B.scope",
		place{kind: KindContainer, runtime: "containerd", id: idB, parent: idA, podUID: uidP}},
	34: {"/system.slice/docker-A.scope/kubelet/kubepods/besteffort/podP/B",
		place{kind: KindContainer, id: idB, parent: idA, podUID: uidP}},
	35: {"/kubepods/burstable/podP/A/docker/B",
		place{kind: KindContainer, runtime: "docker", id: idB, parent: idA, parentPod: uidP}},
	36: {"/machine.slice/libpod-A.scope/container", place{kind: KindContainer, runtime: "podman", id: idA}},
	37: {"/machine.slice/libpod-A.scope", place{kind: KindContainer, runtime: "podman", id: idA}},
	38: {"/machine.slice/libpod-conmon-A.scope", place{kind: KindHelper, runtime: "podman"}},
	39: {"/machine.slice/machine-libpod_pod_B.slice/libpod-A.scope", place{kind: KindContainer, runtime: "podman", id: idA}},
	40: {"U/libpod-A.scope/container", place{kind: KindContainer, runtime: "podman", id: idA}},
	41: {"U/user-libpod_pod_B.slice/libpod-A.scope", place{kind: KindContainer, runtime: "podman", id: idA}},
	42: {"/libpod_parent/libpod-A", place{kind: KindContainer, runtime: "podman", id: idA}},
	43: {"/libpod_parent/conmon", place{kind: KindHelper, runtime: "podman"}},
	44: {"/system.slice/web.service/libpod-payload-A", place{kind: KindContainer, runtime: "podman", id: idA, unit: "web.service"}},
	45: {"/lxc/web1", place{kind: KindContainer, runtime: "lxc", id: "web1", named: true}},
	46: {"/lxc.payload.web1", place{kind: KindContainer, runtime: "lxc", id: "web1", named: true}},
	47: {"/lxc.payload/web1", place{kind: KindContainer, runtime: "lxc", id: "web1", named: true}},
	48: {"/lxc.payload.proj_web1/system.slice/nginx.service", place{kind: KindContainer, runtime: "lxc", id: "proj_web1", named: true}},
	49: {"/lxc.payload.web1/system.slice/docker-A.scope", place{kind: KindContainer, runtime: "docker", id: idA, parent: "web1"}},
	50: {"/lxc.monitor.web1", place{kind: KindHelper, runtime: "lxc"}},
	51: {`/machine.slice/machine-deb\x2d12.scope/payload`, place{kind: KindContainer, runtime: "systemd-nspawn", id: "deb-12", named: true}},
	52: {`/machine.slice/systemd-nspawn@deb\x2d12.service/payload/system.slice/cron.service`,
		place{kind: KindContainer, runtime: "systemd-nspawn", id: "deb-12", named: true, unit: `systemd-nspawn@deb\x2d12.service`}},
	53: {"/machine.slice/systemd-nspawn@deb12.service/supervisor", place{kind: KindHelper, runtime: "systemd-nspawn"}},
	54: {`/machine.slice/machine-lxc\x2d4711\x2dweb.scope`, place{kind: KindContainer, runtime: "libvirt-lxc", id: "web", named: true}},
	55: {`/machine.slice/machine-qemu\x2d3\x2dvm1.scope/libvirt/vcpu0`, place{kind: KindMachine, runtime: "libvirt-qemu", id: "vm1", named: true}},
	56: {"/garden/G", place{kind: KindContainer, runtime: "garden", id: handle, named: true}},
	57: {"/system.slice/garden.service/garden/good/G", place{kind: KindContainer, runtime: "garden", id: handle, named: true}},
	58: {"/ecs/T/A", place{kind: KindContainer, runtime: "docker", id: idA, task: taskT}},
	59: {"/ecstasks.slice/ecstasks-T.slice/docker-A.scope", place{kind: KindContainer, runtime: "docker", id: idA, task: taskT}},
	60: {"/ecs/T/T-1234567890", place{kind: KindContainer, runtime: "ecs-fargate", id: taskT + "-1234567890", named: true, task: taskT}},
	61: {"/system.slice/ssh.service", place{kind: KindUnit, unit: "ssh.service"}},
	62: {"/user.slice/user-1000.slice/session-3.scope", place{kind: KindSession, unit: "session-3.scope"}},
	63: {"/system.slice/var-lib-docker-overlay2-A-merged.mount", place{kind: KindUnit, unit: "var-lib-docker-overlay2-" + idA + "-merged.mount"}},
	64: {"/system.slice/system-getty.slice/getty@tty1.service", place{kind: KindUnit, unit: "getty@tty1.service"}},
	65: {"/init.scope", place{kind: KindUnit, unit: "init.scope"}},
	66: {"/", place{kind: KindCgroup}},
	67: {"/../../docker/A", place{kind: KindContainer, runtime: "docker", id: idA}},
	68: {"/../A", place{kind: KindContainer, id: idA}},
	69: {"/docker/A (deleted)", place{kind: KindContainer, runtime: "docker", id: idA}},

	// Beyond the common ones.
	70: {"", place{kind: KindCgroup}},
	71: {"/docker", place{kind: KindCgroup}},
	72: {"/system.slice", place{kind: KindUnit, unit: "system.slice"}},
	73: {"/user.slice/user-1000.slice/user@1000.service/app.slice/db.service", place{kind: KindUnit, unit: "user@1000.service/db.service"}},
	74: {"/user.slice/user-1000.slice/user@1000.service/init.scope", place{kind: KindUnit, unit: "user@1000.service/init.scope"}},
	75: {"/user.slice/user-1000.slice/user@1000.service", place{kind: KindUnit, unit: "user@1000.service"}},
	76: {"/system.slice/ssh.service/worker", place{kind: KindUnit, unit: "ssh.service"}},
	77: {"/docker/A/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podP_.slice", place{kind: KindPod, podUID: uidP, parent: idA}},
	78: {"/docker/A/machine.slice/libpod-conmon-B.scope", place{kind: KindHelper, runtime: "podman", parent: idA}},
	79: {"/docker/A/lxc.payload.web1/docker/B", place{kind: KindContainer, runtime: "docker", id: idB, parent: "web1", outer: idA}},
	80: {"/nomad.slice/share.slice/P.web.scope", place{kind: KindContainer, runtime: "nomad", id: uidP + ".web", named: true, task: "web"}},
	81: {"/lxc/web1/docker", place{kind: KindContainer, runtime: "lxc", id: "web1", named: true}},
	82: {"/default/test1", place{kind: KindCgroup}},
	83: {"/docker/" + idA[:63], place{kind: KindCgroup}},             // cut off: never a wrong id
	84: {"/docker/" + strings.ToUpper(idA), place{kind: KindCgroup}}, // no runtime writes upper case
	85: {"/docker/A/docker/" + idB[:40], place{kind: KindContainer, runtime: "docker", id: idA}},
	86: {"/A/B", place{kind: KindContainer, id: idB, parent: idA}},
	87: {"/system.slice/docker.service/podman-pod-A", place{kind: KindUnit, unit: "docker.service"}},
	88: {"/kubepods.slice/kubepods-podP_.slice/crio-A/container", place{kind: KindPod, runtime: "cri-o", podUID: uidP, sandbox: idA}},
}

func fillPath(p string) string {
	segs := strings.Split(p, "/")
	for i, s := range segs {
		if s == "U" && i == 0 {
			segs[i] = userU
			continue
		}
		switch s {
		case "A (deleted)":
			s = idA + " (deleted)"
		case "A", "B", "K", "G", "T":
			s = map[string]string{"A": idA, "B": idB, "K": stepK, "G": handle, "T": taskT}[s]
		case "podP", "podS":
			s = map[string]string{"podP": "pod" + uidP, "podS": "pod" + uidS}[s]
		case "T-1234567890":
			s = taskT + "-1234567890"
		case "P.web.scope":
			s = uidP + ".web.scope"
		}
		s = strings.NewReplacer("-podP_", "-pod"+uidP_, "-podS.", "-pod"+uidS+".", "-A.scope", "-"+idA+".scope",
			"-B.scope", "-"+idB+".scope", "-K.scope", "-"+stepK+".scope", ":A", ":"+idA, "_pod_B", "_pod_"+idB,
			"ecstasks-T.", "ecstasks-"+taskT+".", "-A-merged", "-"+idA+"-merged").Replace(s)
		for _, prefix := range []string{"crio-", "libpod-", "libpod-payload-"} {
			if s == prefix+"A" {
				s = prefix + idA
			}
		}
		segs[i] = s
	}
	return strings.Join(segs, "/")
}

func TestParsePath(t *testing.T) {
	for i, row := range pathRows {
		if i == 0 {
			continue
		}
		if row.want.outer == "" {
			row.want.outer = row.want.parent // unless containers nest deeper
		}
		got := parsePath(fillPath(row.path), nil)
		got.domain, got.outermost = domain{}, "" // TestDomains
		if got != row.want {
			t.Errorf("row %d: parsePath(%q)\n got %+v\nwant %+v", i, row.path, got, row.want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, row := range pathRows {
		f.Add(fillPath(row.path))
	}
	f.Add(strings.Repeat("/docker/"+idA, 200))
	f.Add("/docker/\xff\xfe\x1b[2J/" + idA)
	f.Add("/" + strings.Repeat("pod", 2000))
	f.Add(`/machine.slice/machine-\x2d\x.scope`)
	f.Fuzz(func(t *testing.T, path string) {
		got := parsePath(path, nil)
		switch got.kind {
		case KindContainer, KindMachine:
			if got.id == "" {
				t.Errorf("%q: %s without an id", path, got.kind)
			}
		case KindPod:
			if got.podUID == "" && got.sandbox == "" {
				t.Errorf("%q: pod without uid and sandbox", path)
			}
		case KindUnit, KindSession:
			if got.unit == "" {
				t.Errorf("%q: %s without a unit", path, got.kind)
			}
		case KindHelper, KindCgroup:
		default:
			t.Errorf("%q: kind %q", path, got.kind)
		}
		if got.kind != KindContainer && got.kind != KindMachine && got.id != "" {
			t.Errorf("%q: %s with id %q", path, got.kind, got.id)
		}
		if again := parsePath(path+"//../", nil); !strings.HasSuffix(path, " (deleted)") && again != got {
			t.Errorf("%q: empty segments change %+v into %+v", path, got, again)
		}
		// Whatever a container makes below itself stays its own.
		// (A directory "lxc" in it is where a nested LXC keeps its own.)
		last := strings.TrimRight(path, "/.")
		if got.kind == KindContainer && !strings.HasSuffix(path, " (deleted)") && !strings.HasPrefix(last[strings.LastIndexByte(last, '/')+1:], "lxc") {
			if below := parsePath(path+"/zz.service", nil); below.id != got.id || below.parent != got.parent {
				t.Errorf("%q: a child directory changes %+v into %+v", path, got, below)
			}
		}
	})
}

func BenchmarkParsePath(b *testing.B) {
	paths := []string{fillPath(pathRows[2].path), fillPath(pathRows[23].path), fillPath(pathRows[36].path), "/system.slice/ssh.service"}
	b.ReportAllocs()
	for i := range b.N {
		parsePath(paths[i%len(paths)], nil)
	}
}
