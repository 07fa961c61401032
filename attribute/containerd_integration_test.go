//go:build integration

package attribute

import (
	"fmt"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

func TestContainerd(t *testing.T) {
	c := enginetest.StartContainerd(t, enginetest.ContainerdOptions{})
	image := "docker.io/library/" + enginetest.Image
	c.Ctr(t, "run", "--detach", "--label", "com.docker.compose.project=plain", image, "test1", "sleep", "100000")

	r := startResolver(t, Options{CRISockets: []string{c.Socket}, ContainerdSockets: []string{c.Socket}, OnlyListedSockets: true})
	waitAnswered(t, r)

	t.Run("free-text id", func(t *testing.T) {
		id, path := cgroupOf(t, r, c.Task(t, "default", "test1"))
		o := r.Owner(id)
		if path != "/default/test1" || o.Kind != KindContainer || o.ContainerID != "test1" || o.ContainerName != "test1" ||
			o.Runtime != "containerd" || o.Project != "plain" || o.Image != "docker.io/library/busybox" || o.ImageTag != "test" {
			t.Errorf("%s: %+v", path, o)
		}
	})
	t.Run("created after us", func(t *testing.T) {
		c.Ctr(t, "run", "--detach", "--label", "nerdctl/name=late", image, idA, "sleep", "100000")
		id, _ := cgroupOf(t, r, c.Task(t, "default", idA))
		enginetest.Poll(t, patience, "named by an event", func() bool { return r.Owner(id).ContainerName == "late" })
	})

	t.Run("pods of two namespaces", func(t *testing.T) {
		for i, namespace := range []string{"prod", "stage"} {
			uid := fmt.Sprintf("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f%d", i)
			ctr, box := c.RunPod(t, enginetest.Pod{
				Namespace: namespace, Name: "db-0", UID: uid, Labels: map[string]string{"app.kubernetes.io/name": "postgres"},
				Container: "pg", Command: []string{"sleep", "100000"},
			})
			id, path := cgroupOf(t, r, c.Task(t, "k8s.io", ctr))
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
			id, _ = cgroupOf(t, r, c.Task(t, "k8s.io", box))
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
