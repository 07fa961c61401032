//go:build integration

package attribute

import (
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// A second dockerd and a containerd at unusual places are found by their processes. Each
// names its own containers, beside those that the user lists.
func TestEnginesAreFound(t *testing.T) {
	first, second := enginetest.Start(t), enginetest.Start(t)
	c := enginetest.StartContainerd(t, enginetest.ContainerdOptions{})
	a := first.Run(t, "--name", "one", enginetest.Image, "sleep", "1000")
	b := second.Run(t, "--name", "two", enginetest.Image, "sleep", "1000")
	pod, _ := c.RunPod(t, enginetest.Pod{Namespace: "prod", Name: "db-0", UID: uidP, Container: "db", Command: []string{"sleep", "1000"}})
	r := startResolver(t, Options{DockerSockets: []string{first.Socket}})
	waitAnswered(t, r)
	if o := ownerOf(t, first, r, a); o.ContainerName != "one" {
		t.Errorf("of the listed engine: %+v", o)
	}
	if o := ownerOf(t, second, r, b); o.ContainerName != "two" {
		t.Errorf("of the second engine: %+v", o)
	}
	id, _ := cgroupOf(t, r, c.Task(t, "k8s.io", pod))
	if o := r.Owner(id); o.ContainerName != "db" || o.Pod != "db-0" || o.NamedBy != "" {
		t.Errorf("of containerd: %+v", o)
	}
	for socket, want := range map[string]int{first.Socket: 1, second.Socket: 1} {
		if e := endpoint(t, r, socket); e.State != StateOK || e.Containers != want || e.User != "" {
			t.Errorf("endpoint %+v", e)
		}
	}
}
