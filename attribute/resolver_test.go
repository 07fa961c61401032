package attribute

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestOwnerJoinsWhatRuntimesTold(t *testing.T) {
	root := t.TempDir()
	mkdir(t, root, "system.slice/web.service") // whose owner says who makes cgroups in it
	files := t.TempDir()
	mkdir(t, files, "var/lib/incus/containers/dev_web1")
	r := newTestResolver(t, Options{CgroupRoot: root, ProjectLabel: "team", root: files})
	r.machines.look(machineKey{runtimeLXC, "dev_web1"})
	tell := func(c container) { c.from = "test"; r.registry.put(c) }
	tell(container{id: idA, name: "shop-db-1", runtime: "docker", image: "pg", tag: "16",
		labels: map[string]string{"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}})
	inA, inLXC := domain{}.inside(idA), domain{}.inside("dev_web1")
	tell(container{key: inA.key(idB), id: idB, domain: inA, name: "inner", runtime: "docker"})
	tell(container{key: inLXC.key(idA), id: idA, domain: inLXC, name: "shop-db-1", runtime: "docker",
		labels: map[string]string{"com.docker.compose.project": "shop"}})
	tell(container{id: "test1", runtime: "containerd", cgroupPath: "/default/test1", labels: map[string]string{"team": "blue"}})
	tell(container{id: strings.Repeat("c", 64), runtime: "containerd", labels: map[string]string{
		"io.kubernetes.pod.name": "db-0", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.uid": uidP, "io.cri-containerd.kind": "sandbox"}})

	pod := "/kubepods.slice/kubepods-pod" + uidP_ + ".slice"
	tests := []struct {
		path string
		want Owner
	}{
		{"/docker/" + idA, Owner{Kind: KindContainer, Runtime: "docker", ContainerID: idA, ContainerName: "shop-db-1", Image: "pg", ImageTag: "16",
			Project: "shop", ProjectRule: RuleCompose, Service: "db"}},
		{"/docker/" + idA + "/docker/" + idB, Owner{Kind: KindContainer, Runtime: "docker", ContainerID: idB, ContainerName: "inner", Parent: idA, Outer: idA, OuterName: "shop-db-1",
			Project: "shop", ProjectRule: RuleParent, NamedBy: "container " + idA}},
		{"/docker/" + idA + "/buildkit/" + stepK, Owner{Kind: KindContainer, Runtime: "buildkit", ContainerID: stepK, Parent: idA, Outer: idA, OuterName: "shop-db-1",
			Project: "shop", ProjectRule: RuleParent, NamedBy: "container " + idA}},
		{"/default/test1", Owner{Kind: KindContainer, Runtime: "containerd", ContainerID: "test1", Project: "blue", ProjectRule: RuleLabel}},
		{"/default/test1/below/it", Owner{Kind: KindContainer, Runtime: "containerd", ContainerID: "test1", Project: "blue", ProjectRule: RuleLabel}},
		{"/default/test12", Owner{Kind: KindCgroup}},
		{pod, Owner{Kind: KindPod, PodUID: uidP, Pod: "db-0", Namespace: "prod", Project: "prod", ProjectRule: RuleKubernetes}},
		{pod + "/cri-containerd-" + strings.Repeat("d", 64) + ".scope", Owner{Kind: KindContainer, Runtime: "containerd", ContainerID: strings.Repeat("d", 64),
			PodUID: uidP, Pod: "db-0", Namespace: "prod", Project: "prod", ProjectRule: RuleKubernetes}},
		{pod + "/crio-conmon-" + idA + ".scope", Owner{Kind: KindHelper, Runtime: "cri-o", PodUID: uidP, Pod: "db-0", Namespace: "prod", Project: "prod", ProjectRule: RuleKubernetes}},
		{"/lxc.payload.dev_web1/docker/" + idA + "/docker/" + strings.Repeat("f", 64), Owner{Kind: KindContainer, Runtime: "docker", ContainerID: strings.Repeat("f", 64),
			Parent: idA, Outer: "dev_web1", OuterName: "dev_web1", Project: "shop", ProjectRule: RuleParent,
			NamedBy: "container dev_web1/" + idA, ProjectNamedBy: "container dev_web1"}},
		{"/lxc.payload.dev_web1", Owner{Kind: KindContainer, Runtime: "lxc", ContainerID: "dev_web1", ContainerName: "web1", Project: "dev", ProjectRule: RuleLXD}},
		{`/machine.slice/machine-qemu\x2d3\x2dvm1.scope`, Owner{Kind: KindMachine, Runtime: "libvirt-qemu", ContainerID: "vm1", ContainerName: "vm1"}},
		{"/system.slice/web.service/libpod-payload-" + strings.Repeat("e", 64), Owner{Kind: KindContainer, Runtime: "podman", ContainerID: strings.Repeat("e", 64),
			Unit: "web.service", Project: "web.service", ProjectRule: RuleUnit}},
	}
	for i, tt := range tests {
		id := uint64(1000 + i)
		r.CgroupCreated(id, tt.path)
		got := r.Owner(id)
		got.Labels = nil
		tt.want.Cgroup, tt.want.Path = id, tt.path
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tt.want) {
			t.Errorf("%s\n got %+v\nwant %+v", tt.path, got, tt.want)
		}
	}
	// The sandbox is the pod's, not a workload.
	r.CgroupCreated(5, pod+"/cri-containerd-"+strings.Repeat("c", 64)+".scope")
	if o := r.Owner(5); o.Kind != KindPod || o.Pod != "db-0" {
		t.Errorf("sandbox: %+v", o)
	}
}

func TestRegistryForgetsLate(t *testing.T) {
	c := newClock()
	g := newRegistry("", time.Minute, c.now)
	g.put(container{id: idA, name: "a", from: "x", toldAt: c.now()})
	c.advance(time.Second)
	began := c.now()
	c.advance(time.Second)
	g.put(container{id: idB, name: "b", from: "x", toldAt: c.now()}) // while the list was on its way
	g.put(container{id: "other", name: "o", from: "y", toldAt: began.Add(-time.Hour)})
	g.unlisted("x", began)
	if g.get(idA) == nil {
		t.Error("forgotten at once: its writeback is still to come")
	}
	c.advance(61 * time.Second)
	g.unlisted("x", began)
	if g.get(idA) != nil || g.get(idB) == nil || g.get("other") == nil {
		t.Errorf("a %v, b %v, other %v", g.get(idA), g.get(idB), g.get("other"))
	}
	g.removed("y", idB) // not the one that told of it
	c.advance(time.Hour)
	g.unlisted("y", began.Add(-2*time.Hour))
	if g.get(idB) == nil {
		t.Error("removed by an endpoint that does not have it")
	}
}

func TestRegistryRemovedWhileListed(t *testing.T) {
	c := newClock()
	g := newRegistry("", time.Minute, c.now)
	ids := []string{idA, idB}
	var listed []container
	for _, id := range ids {
		listed = append(listed, container{id: id, from: "x", toldAt: c.now()})
		g.put(listed[len(listed)-1])
	}
	g.removed("x", idB) // and created again under the same name before the list began
	c.advance(time.Second)
	began := c.now()
	c.advance(time.Second)
	g.removed("x", idA)
	l := roll{f: &feed{registry: g, from: "x", now: c.now}, began: began}
	for i := range listed {
		l.put(listed[i])
	}
	l.end()
	c.advance(time.Hour)
	g.expire()
	if g.get(idA) != nil || g.get(idB) == nil {
		t.Errorf("removed while the list was on its way: %+v; before: %+v", g.get(idA), g.get(idB))
	}
}

func TestRegistryPrefersFullRecords(t *testing.T) {
	c := newClock()
	g := newRegistry("", time.Minute, c.now)
	g.put(container{id: idA, name: "event", partial: true, from: "x", rank: 1})
	g.put(container{id: idA, name: "list", from: "x", rank: 1})
	g.put(container{id: idA, name: "event", partial: true, from: "x", rank: 1})
	g.put(container{id: idA, name: "files", from: "z", rank: 0})
	if got := g.get(idA).name; got != "list" {
		t.Errorf("name %q", got)
	}
	g.rename("x", idA, "", "new", time.Now())
	if got := g.get(idA).name; got != "new" {
		t.Errorf("name %q", got)
	}
	g.removed("x", idA)
	g.put(container{id: idA, name: "event", partial: true, from: "x", rank: 1}) // started again
	c.advance(time.Hour)
	g.removed("x", "unknown")
	if g.get(idA) == nil {
		t.Error("forgotten though it was started again")
	}
}

// What a container did before it was renamed has the name that it had then.
func TestRenamedContainer(t *testing.T) {
	began := time.Now()
	at := func(minute int) time.Time { return began.Add(time.Duration(minute) * time.Minute) }
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), OnlyListedSockets: true})
	r.CgroupCreated(2, "/docker/"+idA)
	r.registry.put(container{id: idA, name: "a", from: "x"})
	if o := r.OwnerAt(2, at(5)); o.ContainerName != "a" || o.Renamed {
		t.Errorf("before it was renamed: %+v", o)
	}
	r.registry.rename("x", idA, "a", "b", at(1))
	// A list brought the name before the event.
	r.registry.put(container{id: idA, name: "c", from: "x"})
	r.registry.rename("x", idA, "b", "c", at(2))
	r.registry.rename("y", idA, "c", "not its engine", at(2))
	for minute, want := range []string{"a", "b", "c", "c"} {
		if o := r.OwnerAt(2, at(minute)); o.ContainerName != want || !o.Renamed {
			t.Errorf("after %d minutes: %q, want %q", minute, o.ContainerName, want)
		}
	}
	for i := range 3 * maxFormer {
		r.registry.rename("x", idA, "", fmt.Sprint("d", i), at(3+i))
	}
	c := r.registry.get(idA)
	if len(c.former) != maxFormer || c.nameAt(at(100)) != "d11" || c.nameAt(at(12)) != "d9" {
		t.Errorf("after many names: %q, %+v", c.name, c.former)
	}
}

func TestTextIsBounded(t *testing.T) {
	g := newRegistry("", time.Minute, time.Now)
	labels := map[string]string{"huge": strings.Repeat("v", 64<<10), "bad": "a\xffb"}
	for i := range 1000 {
		labels[fmt.Sprintf("label%04d", i)] = "x"
	}
	g.put(container{id: idA, name: strings.Repeat("n", 64<<10), labels: labels, volumes: make([]volume, 10_000)})
	c := g.get(idA)
	if len(c.name) != maxText || len(c.labels) != maxLabels || len(c.labels["huge"]) != maxLabelValue || c.labels["bad"] != "a\uFFFDb" || len(c.volumes) != maxVolumes {
		t.Errorf("name %d bytes, %d labels, huge %d bytes, bad %q, %d volumes", len(c.name), len(c.labels), len(c.labels["huge"]), c.labels["bad"], len(c.volumes))
	}
	g.put(container{id: strings.Repeat("i", maxText+1)})
	for i := range maxContainers + 5 {
		g.put(container{id: fmt.Sprint(i)})
	}
	if n, refused := g.counts(); n != maxContainers || refused != 6 {
		t.Errorf("%d containers, %d refused", n, refused)
	}
}

func TestSplitImage(t *testing.T) {
	for _, tt := range []struct{ ref, name, tag, digest string }{
		{"busybox", "busybox", "", ""},
		{"busybox:1.36", "busybox", "1.36", ""},
		{"registry.example:5000/team/app:v1", "registry.example:5000/team/app", "v1", ""},
		{"registry.example:5000/team/app", "registry.example:5000/team/app", "", ""},
		{"app:v1@sha256:" + idA, "app", "v1", "sha256:" + idA},
		{"app@sha256:" + idA, "app", "", "sha256:" + idA},
		{"sha256:" + idA, "sha256:" + idA, "", ""},
		{"UPPER case!", "UPPER case!", "", ""},
		{"", "", "", ""},
	} {
		if name, tag, digest := splitImage(tt.ref); name != tt.name || tag != tt.tag || digest != tt.digest {
			t.Errorf("splitImage(%q) = %q, %q, %q; want %q, %q, %q", tt.ref, name, tag, digest, tt.name, tt.tag, tt.digest)
		}
	}
}

func TestCloseWithoutStartAndTwice(t *testing.T) {
	r, err := NewResolver(Options{CgroupRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	r.Start(context.Background()) // does nothing any more
	if o := r.Owner(1 << 40); o.Kind != KindUnknown {
		t.Errorf("after Close: %+v", o)
	}
}

// One tree with the paths of every runtime, those that cannot run on a test
// machine (CRI-O, ECS, Nomad, Garden) among them.
func TestTreeOfAllRuntimes(t *testing.T) {
	root := t.TempDir()
	rows := map[uint64]int{}
	for i, row := range pathRows {
		path := fillPath(row.path)
		if i == 0 || path == "" || path == "/" || strings.Contains(path, "..") || strings.HasSuffix(path, " (deleted)") {
			continue
		}
		id := mkdir(t, root, path)
		if _, twice := rows[id]; !twice {
			rows[id] = i
		}
	}
	if len(rows) < 75 {
		t.Fatalf("only %d rows have a directory", len(rows))
	}
	r := newTestResolver(t, Options{CgroupRoot: root})
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	for id, i := range rows {
		want, got := pathRows[i].want, r.Owner(id)
		if got.Kind != want.kind || got.ContainerID != want.id || got.Runtime != want.runtime || got.Parent != want.parent ||
			got.PodUID != want.podUID || got.Unit != want.unit {
			t.Errorf("row %d: %q\n got %+v\nwant %+v", i, got.Path, got, want)
		}
		if want.named && got.ContainerName == "" {
			t.Errorf("row %d: %q has no name", i, got.Path)
		}
	}
}
