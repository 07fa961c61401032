package attribute

import (
	"strings"
	"testing"
)

// Who speaks for a path, as far as the path alone says it.
func TestDomains(t *testing.T) {
	const manager = "/user.slice/user-1000.slice/user@1000.service"
	for _, tt := range []struct{ path, key, says string }{
		{"/docker/A", idA, ""},
		{"/system.slice/docker-A.scope", idA, ""},
		{"/user.slice/user-1000.slice/docker-A.scope", idA, ""}, // docker run --cgroup-parent user-1000.slice
		{"/user.slice/user-0.slice/user@0.service/app.slice/libpod-A.scope", idA, ""},
		{"/machine.slice/user@.service/docker-A.scope", idA, ""},
		{"U/docker-A.scope", "//1000/" + idA, "user 1000"},
		{manager + "/user@1001.service/docker-A.scope", "//1000/" + idA, "user 1000"}, // he made that name
		{manager + "/docker-A.scope/docker/B", "//1000/" + idA + "/" + idB, "user 1000 container " + idA},
		{manager + "/lxc.payload.victim", "//1000/victim", "user 1000"},
		{manager + "/machine-victim.scope", "//1000/victim", "user 1000"},
		{manager + "/kubepods/podP/A", "//1000/" + idA, "user 1000"},
		{"/docker/A/docker/B", idA + "/" + idB, "container " + idA},
		{"/docker/A/system.slice/docker-B.scope", idA + "/" + idB, "container " + idA},
		{"/docker/A/machine-victim.scope", idA + "/victim", "container " + idA},
		{"/docker/A/lxc.payload.victim", idA + "/victim", "container " + idA},
		{"/docker/A/kubepods/podP/B", idA + "/" + idB, "container " + idA},
		{"/docker/A" + manager + "/docker-B.scope", idA + "//1000/" + idB, "container " + idA + " user 1000"},
		{"/lxc.payload.web1/docker/A/docker/B", "web1/" + idA + "/" + idB, "container web1/" + idA},
		{"/lxc.payload.1000/docker/A", "1000/" + idA, "container 1000"}, // not the user
		{`/machine.slice/machine-qemu\x2d3\x2dvm1.scope/libvirt/docker/A`, "vm1/" + idA, "container vm1"},
		{"/machine.slice/systemd-nspawn@deb12.service/supervisor", "", ""},
	} {
		p := parsePath(fillPath(tt.path), nil)
		if p.key() != tt.key || p.domain.String() != tt.says {
			t.Errorf("%s: key %q, named by %q; want %q, %q", tt.path, p.key(), p.domain, tt.key, tt.says)
		}
	}
}

// What a unit's processes call the cgroups that they make is not the name of a unit.
func TestUnitsAreNotBelowUnits(t *testing.T) {
	for path, want := range map[string]string{
		"/system.slice/ci.service/postgres.service":                                            "ci.service",
		"/system.slice/ci.service/system.slice/postgres.service":                               "ci.service",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/ci.service/sshd.service":      "user@1000.service/ci.service",
		"/user.slice/user-1000.slice/user@1000.service/user@0.service/sshd.service":            "user@1000.service/user@0.service",
		"/user.slice/user-1000.slice/session-3.scope/postgres.service":                         "session-3.scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/web.service/libpod-payload-A": "user@1000.service/web.service",
	} {
		if p := parsePath(fillPath(path), nil); p.unit != want {
			t.Errorf("%s is unit %q, want %q", path, p.unit, want)
		}
	}
}

func TestDomainText(t *testing.T) {
	d := domain{}.inside("web1").of("1000").inside(idA).inside(idB)
	if got, want := d.String(), "container web1 user 1000 container "+idA+"/"+idB; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (domain{}).of(unknownUser).String(); got != "user unknown" {
		t.Errorf("got %q", got)
	}
	if !d.container() || (domain{}).container() || d.of("1").container() {
		t.Error("wrong kinds of domains")
	}
	if strings.Contains((domain{}).key(idA), "/") {
		t.Error("the machine's keys are bare ids")
	}
}

// The same word from two places means two things.
func TestUsersAndContainersSpeakForThemselves(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	host := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/docker.sock", domain{})
	user := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/user/1000/docker.sock", domain{})
	inner := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/proc/9/root//run/docker.sock", domain{}.inside(idB))
	compose := func(project string) map[string]string {
		return map[string]string{"com.docker.compose.project": project, "com.docker.compose.service": "db",
			"io.kubernetes.pod.uid": uidP, "io.kubernetes.pod.name": project + "-pod", "io.kubernetes.pod.namespace": ""}
	}
	idC := strings.Repeat("5e", 32)
	host.put(container{id: idA, name: "shop-db-1", labels: compose("shop")})
	host.put(container{id: idB, name: "ci", labels: map[string]string{"com.docker.compose.project": "ci"}})
	for _, f := range []*feed{user, inner} {
		f.put(container{id: idA, name: "shop-db-1", labels: compose("shop"), cgroupPath: "/system.slice"})
		f.put(container{id: idC, name: "plain"})
	}
	type names struct{ name, project, rule, by, projectBy string }
	for path, want := range map[string]names{
		"/docker/A":                      {"shop-db-1", "shop", RuleCompose, "", ""},
		"U/docker-A.scope":               {"shop-db-1", "shop", RuleCompose, "user 1000", "user 1000"},
		"/docker/B/docker/A":             {"shop-db-1", "shop", RuleCompose, "container " + idB, "container " + idB},
		"/docker/B/docker/" + idC:        {"plain", "ci", RuleParent, "container " + idB, ""},
		"U/docker-" + idC + ".scope":     {"plain", "", "", "user 1000", ""},
		"/docker/A/docker/B":             {"", "shop", RuleParent, "container " + idA, ""},
		"U/docker-A.scope/docker/" + idC: {"", "shop", RuleParent, "user 1000 container " + idA, "user 1000"},
		"/system.slice":                  {"", "system.slice", RuleUnit, "", ""},
	} {
		id := uint64(len(path)+1) << 32
		r.CgroupCreated(id, fillPath(path))
		o := r.Owner(id)
		if got := (names{o.ContainerName, o.Project, o.ProjectRule, o.NamedBy, o.ProjectNamedBy}); got != want {
			t.Errorf("%s\n got %+v\nwant %+v", path, got, want)
		}
		r.CgroupRemoved(id, fillPath(path))
	}
	// A pod of a user has the name that he gave it, and so has the machine's.
	for path, want := range map[string]string{"/kubepods/podP": "shop-pod", "U/kubepods/podP": "shop-pod", "/docker/A/kubepods/podP": ""} {
		id := uint64(len(path)+1) << 40
		r.CgroupCreated(id, fillPath(path))
		if o := r.Owner(id); o.Pod != want || o.Kind != KindPod {
			t.Errorf("%s: %+v", path, o)
		}
	}
	listAll(user)
	if c := r.registry.get(idA); !c.goneAt.IsZero() {
		t.Error("a user's engine took the machine's container away")
	}
}

// An engine says where it put a container that is below another one. Without that a
// container of the engine is not below another one.
func TestPlacedBelowAnother(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir()})
	host := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, "/run/docker.sock", domain{})
	path := fillPath("/docker/A/B")
	r.CgroupCreated(7, path)
	host.put(container{id: idB, name: "job", labels: map[string]string{"com.docker.compose.project": "jobs"}})
	if o := r.Owner(7); o.ContainerName != "" || o.NamedBy != "container "+idA {
		t.Errorf("named although nobody said that it is here: %+v", o)
	}
	select {
	case id := <-host.wanted:
		if id != idB {
			t.Errorf("asked about %q", id)
		}
	default:
		t.Error("its engine was not asked where it is")
	}
	host.put(container{id: idB, name: "job", labels: map[string]string{"com.docker.compose.project": "jobs"}, cgroupPath: path})
	host.put(container{id: idB, name: "job", labels: map[string]string{"com.docker.compose.project": "jobs"}}) // the next list
	if o := r.Owner(7); o.ContainerName != "job" || o.NamedBy != "" || o.Project != "jobs" || o.ProjectNamedBy != "" || o.Parent != idA {
		t.Errorf("got %+v", o)
	}
	r.CgroupCreated(8, fillPath("/docker/A/docker/B"))
	if o := r.Owner(8); o.ContainerName != "" {
		t.Errorf("another place has its name: %+v", o)
	}
}
