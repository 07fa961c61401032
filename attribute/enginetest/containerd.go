//go:build integration || vm

package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Containerd is a running containerd with its CRI plugin.
type Containerd struct {
	Socket string // path of its unix socket, for its own API and for CRI

	dir     string
	systemd bool
}

// ContainerdOptions are what tests want of a containerd.
type ContainerdOptions struct {
	Socket        string // where it listens, "" for a place of its own
	SystemdCgroup bool   // pods are systemd's scopes and slices
	// Plugins is the directory of CNI's plugins. With it pods have a network of their own,
	// 10.88.0.0/24 as this machine sees it.
	Plugins string
}

// podNetwork is the CNI configuration of pods: a veth pair to this machine for each.
const podNetwork = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
	{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.88.0.0/24", "dataDir": %q, "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

// StartContainerd runs a containerd, which has Image in the namespaces "default"
// and "k8s.io", until the test ends.
func StartContainerd(t testing.TB, opts ContainerdOptions) *Containerd {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{Socket: opts.Socket, dir: dir, systemd: opts.SystemdCgroup}
	if c.Socket == "" {
		c.Socket = filepath.Join(dir, "containerd.sock")
	}
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	plugins, networks := filepath.Join(dir, "cni"), filepath.Join(dir, "cni")
	if opts.Plugins != "" {
		plugins = opts.Plugins
		if err := os.Mkdir(networks, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(networks, "pods.conflist"), fmt.Appendf(nil, podNetwork, filepath.Join(dir, "addresses")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = %t
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.Socket, "docker.io/library/"+Image,
		plugins, networks, c.systemd, filepath.Join(dir, "opt"))
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", filepath.Join(dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting containerd: %v", err)
	}
	var waitErr error // once exited is closed
	exited := make(chan struct{})
	go func() { waitErr = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		c.removeAll(t)
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(stopTime):
			cmd.Process.Kill()
			<-exited
		}
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("end of containerd's log:\n%s", b[max(0, len(b)-8<<10):])
		}
		log.Close()
		removeDir(t, dir)
	})
	Poll(t, startTime, "containerd answers", func() bool {
		select {
		case <-exited:
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("containerd ended: %v\n%s", waitErr, b)
		default:
		}
		return c.Command("version").Run() == nil
	})
	archive := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(archive, ImageArchive(t, "docker.io/library/"+Image), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"default", "k8s.io"} {
		c.Ctr(t, "--namespace", ns, "images", "import", archive)
	}
	return c
}

// Command returns a ctr command that talks to this containerd.
func (c *Containerd) Command(args ...string) *exec.Cmd {
	return exec.Command("ctr", append([]string{"--address", c.Socket}, args...)...)
}

// Ctr runs a ctr command and returns what it printed. The test fails when the
// command does.
func (c *Containerd) Ctr(t testing.TB, args ...string) string {
	t.Helper()
	return output(t, c.Command(args...))
}

// Task returns the pid of a task.
func (c *Containerd) Task(t testing.TB, namespace, id string) string {
	t.Helper()
	for line := range strings.Lines(c.Ctr(t, "--namespace", namespace, "tasks", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[1]
		}
	}
	t.Fatalf("no task %q in %q", id, namespace)
	return ""
}

// Pod is a pod with one container, of Image.
type Pod struct {
	Namespace, Name, UID string
	Labels               map[string]string // of the pod, as its user wrote them
	Container            string
	Command              []string
	Mounts               map[string]string // path on the host by path in the container
}

// RunPod asks for a pod as the kubelet does, over CRI, and starts its container.
func (c *Containerd) RunPod(t testing.TB, p Pod) (container, sandbox string) {
	t.Helper()
	client := c.client(t)
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()

	labels := map[string]string{"io.kubernetes.pod.name": p.Name, "io.kubernetes.pod.namespace": p.Namespace, "io.kubernetes.pod.uid": p.UID}
	own := maps.Clone(labels)
	own["io.kubernetes.container.name"] = p.Container
	maps.Copy(labels, p.Labels)
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: p.UID},
		Labels:   labels,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    c.parent("burstable", p.UID),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		},
	}
	box, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	var mounts []*cri.Mount
	for in, from := range p.Mounts {
		mounts = append(mounts, &cri.Mount{ContainerPath: in, HostPath: from})
	}
	made, err := client.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: box.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: p.Container},
			Image:    &cri.ImageSpec{Image: "docker.io/library/" + Image},
			Command:  p.Command,
			Labels:   own,
			Mounts:   mounts,
			Linux:    &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return made.ContainerId, box.PodSandboxId
}

// removeAll ends whatever the test left running, shims included.
func (c *Containerd) removeAll(t testing.TB) {
	for _, ns := range []string{"default", "k8s.io"} {
		tasks, _ := c.Command("--namespace", ns, "tasks", "ls", "--quiet").Output()
		for _, id := range strings.Fields(string(tasks)) {
			c.Command("--namespace", ns, "tasks", "kill", "--signal", "KILL", id).Run()
			Poll(t, stopTime, "task "+id+" is gone", func() bool {
				c.Command("--namespace", ns, "tasks", "delete", id).Run()
				out, _ := c.Command("--namespace", ns, "tasks", "ls", "--quiet").Output()
				return !strings.Contains(string(out), id)
			})
		}
		all, _ := c.Command("--namespace", ns, "containers", "ls", "--quiet").Output()
		for _, id := range strings.Fields(string(all)) {
			c.Command("--namespace", ns, "containers", "delete", id).Run()
		}
	}
}

// ImageArchive returns the image of busybox under a name, as docker save writes
// it: docker, podman and ctr all load it.
func ImageArchive(t testing.TB, name string) []byte {
	t.Helper()
	layer := BusyboxTar(t)
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": []string{"sleep", "100000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct {
		name string
		body []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.body)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
