//go:build integration

package attribute

import (
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

func TestPodman(t *testing.T) {
	p := enginetest.StartPodman(t)
	image := "docker.io/library/" + enginetest.Image
	run := func(t *testing.T, args ...string) (id, pid string) {
		t.Helper()
		id = p.Podman(t, append([]string{"run", "-d", "--network", "none", "--stop-signal", "KILL"}, args...)...)
		return id, p.Podman(t, "inspect", "--format", "{{.State.Pid}}", id)
	}
	sleep := []string{image, "sleep", "100000"}
	before, pid := run(t, append([]string{"--name", "db", "--label", "io.podman.compose.project=shop", "--label", "io.podman.compose.service=db",
		"-v", "dbdata:/var/lib/db"}, sleep...)...)

	r := startResolver(t, Options{DockerSockets: []string{p.Socket}, OnlyListedSockets: true})
	waitAnswered(t, r)

	t.Run("running before us", func(t *testing.T) {
		id, path := cgroupOf(t, r, pid)
		o := r.Owner(id)
		if !strings.Contains(path, "libpod-"+before) || o.Kind != KindContainer || o.Runtime != "podman" || o.ContainerID != before ||
			o.ContainerName != "db" || o.Project != "shop" || o.ProjectRule != RulePodmanCompose || o.Service != "db" ||
			o.Image != "docker.io/library/busybox" || o.ImageTag != "test" {
			t.Errorf("%s: %+v", path, o)
		}
	})
	t.Run("started after us", func(t *testing.T) {
		_, pid := run(t, append([]string{"--name", "late", "--label", "com.docker.compose.project=late"}, sleep...)...)
		id, _ := cgroupOf(t, r, pid)
		enginetest.Poll(t, patience, "named", func() bool { o := r.Owner(id); return o.ContainerName == "late" && o.Project == "late" })
	})
	t.Run("short life", func(t *testing.T) {
		id := p.Podman(t, "create", "--network", "none", "--rm", "--name", "blink", "--label", "com.docker.compose.project=flash", image, "true")
		p.Podman(t, "start", "--attach", id)
		r.CgroupCreated(1<<40, "/libpod_parent/libpod-"+id)
		r.CgroupRemoved(1<<40, "/libpod_parent/libpod-"+id)
		enginetest.Poll(t, patience, "named by its events", func() bool { o := r.Owner(1 << 40); return o.ContainerName == "blink" && o.Project == "flash" })
	})
	t.Run("pod", func(t *testing.T) {
		p.Podman(t, "pod", "create", "--name", "web", "--network", "none")
		_, pid := run2(t, p, append([]string{"run", "-d", "--pod", "web", "--name", "web-app", "--stop-signal", "KILL"}, sleep...)...)
		id, _ := cgroupOf(t, r, pid)
		enginetest.Poll(t, patience, "named with its pod", func() bool { o := r.Owner(id); return o.ContainerName == "web-app" && o.Pod == "web" })
		infra := p.Podman(t, "pod", "inspect", "--format", "{{.InfraContainerID}}", "web")
		id, path := cgroupOf(t, r, p.Podman(t, "inspect", "--format", "{{.State.Pid}}", infra))
		enginetest.Poll(t, patience, "infra container told apart", func() bool { return r.Owner(id).Kind == KindPod })
		if o := r.Owner(id); o.Pod != "web" {
			t.Errorf("%s: %+v", path, o)
		}
	})
	t.Run("endpoint", func(t *testing.T) {
		if e := endpoint(t, r, p.Socket); e.State != StateOK || e.Runtime != "podman" || !strings.HasPrefix(e.Version, "Podman Engine 4.") {
			t.Errorf("endpoint %+v", e)
		}
	})
}

func run2(t *testing.T, p *enginetest.Podman, args ...string) (id, pid string) {
	t.Helper()
	id = p.Podman(t, args...)
	return id, p.Podman(t, "inspect", "--format", "{{.State.Pid}}", id)
}
