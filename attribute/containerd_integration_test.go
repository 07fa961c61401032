//go:build integration

package attribute

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// taskPid returns the pid of a containerd task.
func taskPid(t *testing.T, c *enginetest.Containerd, namespace, id string) string {
	t.Helper()
	for line := range strings.Lines(c.Ctr(t, "--namespace", namespace, "tasks", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[1]
		}
	}
	t.Fatalf("no task %q in %q", id, namespace)
	return ""
}

func TestContainerd(t *testing.T) {
	c := enginetest.StartContainerd(t)
	image := "docker.io/library/" + enginetest.Image
	c.Ctr(t, "run", "--detach", "--label", "com.docker.compose.project=plain", image, "test1", "sleep", "100000")

	r := startResolver(t, Options{DockerHost: "/nonexistent", CRI: c.Socket, containerdSockets: []string{c.Socket}})
	settle(t, r)

	t.Run("free-text id", func(t *testing.T) {
		id, path := cgroupOf(t, r, taskPid(t, c, "default", "test1"))
		o := r.Owner(id)
		if path != "/default/test1" || o.Kind != KindContainer || o.ContainerID != "test1" || o.ContainerName != "test1" ||
			o.Runtime != "containerd" || o.Project != "plain" || o.Image != "docker.io/library/busybox" || o.ImageTag != "test" {
			t.Errorf("%s: %+v", path, o)
		}
	})
	t.Run("created after us", func(t *testing.T) {
		c.Ctr(t, "run", "--detach", "--label", "nerdctl/name=late", image, idA, "sleep", "100000")
		id, _ := cgroupOf(t, r, taskPid(t, c, "default", idA))
		enginetest.Poll(t, patience, "named by an event", func() bool { return r.Owner(id).ContainerName == "late" })
	})

	s, err := openCRI(c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	kubelet := s.(*criSession).client
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	runPod := func(t *testing.T, pod, namespace, uid string) (container, sandbox string) {
		config := &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: pod, Namespace: namespace, Uid: uid},
			Labels: map[string]string{"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid,
				"app.kubernetes.io/name": "postgres"},
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent:    "/kubepods/burstable/pod" + uid,
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
			},
		}
		box, err := kubelet.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		made, err := kubelet.CreateContainer(ctx, &cri.CreateContainerRequest{
			PodSandboxId: box.PodSandboxId, SandboxConfig: config,
			Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "pg"},
				Image:    &cri.ImageSpec{Image: image},
				Command:  []string{"sleep", "100000"},
				Labels:   map[string]string{"io.kubernetes.container.name": "pg", "io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid},
				Linux:    &cri.LinuxContainerConfig{},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kubelet.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
			t.Fatal(err)
		}
		return made.ContainerId, box.PodSandboxId
	}

	t.Run("pods of two namespaces", func(t *testing.T) {
		for i, namespace := range []string{"prod", "stage"} {
			uid := fmt.Sprintf("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f%d", i)
			ctr, box := runPod(t, "db-0", namespace, uid)
			id, path := cgroupOf(t, r, taskPid(t, c, "k8s.io", ctr))
			enginetest.Poll(t, patience, "container named by CRI", func() bool { return r.Owner(id).Service == "postgres" })
			o := r.Owner(id)
			o.Labels = nil
			want := Owner{
				Kind: KindContainer, Cgroup: id, Path: path, Runtime: "containerd", ContainerID: ctr, ContainerName: "pg",
				Image: "docker.io/library/busybox", ImageTag: "test", Pod: "db-0", Namespace: namespace, PodUID: uid,
				Project: namespace, ProjectRule: RuleKubernetes, Service: "postgres",
			}
			if fmt.Sprintf("%+v", o) != fmt.Sprintf("%+v", want) {
				t.Errorf("container\n got %+v\nwant %+v", o, want)
			}
			id, _ = cgroupOf(t, r, taskPid(t, c, "k8s.io", box))
			if o := r.Owner(id); o.Kind != KindPod || o.Pod != "db-0" || o.Namespace != namespace {
				t.Errorf("sandbox: %+v", o)
			}
		}
	})
	t.Run("endpoints", func(t *testing.T) {
		seen := 0
		for _, e := range r.Endpoints() {
			if e.Socket == c.Socket && e.State == StateOK && strings.HasPrefix(e.Version, "containerd ") {
				seen++
			}
		}
		if seen != 2 {
			t.Errorf("want CRI and containerd itself to be ok: %+v", r.Endpoints())
		}
	})
}
