package attribute

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseSocket(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text   string
		remote bool
		want   string // "" for an error
	}{
		{"/run/docker.sock", true, "/run/docker.sock"},
		{"unix:///run/docker.sock", false, "/run/docker.sock"},
		{"/run//x/../docker.sock", false, "/run/docker.sock"},
		{"docker.sock", false, dir + "/docker.sock"},
		{"tcp://127.0.0.1:2375", true, "tcp://127.0.0.1:2375"},
		{"tcp://127.0.0.1:2375", false, ""},
		{"ssh://user@host", true, ""},
		{"ssh://user@host", false, ""},
		{"npipe:////./pipe/docker", true, ""},
		{"unix://", true, ""},
	} {
		got, err := parseSocket(tt.text, tt.remote)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("parseSocket(%q, %v) = %q, %v; want %q", tt.text, tt.remote, got, err, tt.want)
		}
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", tt.text)) {
			t.Errorf("the error does not name %q: %v", tt.text, err)
		}
	}
}

// Listed sockets add to the usual ones, or take their place.
func TestListedSockets(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///env.sock")
	opts := Options{
		DockerSockets: []string{"", "/a.sock", "unix:///a.sock", "/b.sock", "/env.sock"}, CRISockets: []string{"unix:///c.sock"},
		ContainerdSockets: []string{"/d.sock"}, Log: slog.New(slog.DiscardHandler),
	}
	want := [][]string{{"/a.sock", "/b.sock", "/env.sock"}, nil, {"/c.sock"}, {"/d.sock"}}
	for _, opts.OnlyListedSockets = range []bool{false, true} {
		for i, spec := range runtimeTable(opts) {
			if fmt.Sprint(spec.listed) != fmt.Sprint(want[i]) || (spec.usual == nil) != opts.OnlyListedSockets {
				t.Errorf("only listed %v: %s: listed %q, usual %q", opts.OnlyListedSockets, spec.name, spec.listed, spec.usual)
			}
		}
	}
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), OnlyListedSockets: true})
	if r.runtimes.inside(domain{}.inside(idA), cgroup{}); r.runtimes.inner != nil {
		t.Error("engines inside containers are asked")
	}
}

// A socket is asked once, even if several names for it are listed.
func TestSocketIsAskedOnce(t *testing.T) {
	socket := hostile(t, "honest")
	link := socket + ".link"
	if err := os.Symlink(socket, link); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(filepath.Dir(socket), "absent")
	t.Setenv("DOCKER_HOST", "unix://"+link)
	r := newTestResolver(t, Options{
		CgroupRoot: t.TempDir(), DockerSockets: []string{link, "unix://" + socket, absent, socket}, OnlyListedSockets: true, CallTime: patientCall,
	})
	r.runtimes.table[0].usual = []string{socket + "*", absent}
	r.runtimes.table[1].usual = []string{link} // as podman-docker has it
	r.Start(context.Background())
	if err := r.WaitAnswered(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := r.Endpoints()
	if len(all) != 2 || all[0].Socket != socket || all[0].State != StateOK || all[1].Socket != absent || all[1].State != StateAbsent {
		t.Errorf("endpoints %+v", all)
	}
}

// DOCKER_HOST is one more socket to ask for names.
func TestDockerHostOfEnvironment(t *testing.T) {
	socket := hostile(t, "honest")
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	e, err := look(Options{OnlyListedSockets: true, CallTime: patientCall}, socket)
	if err != nil || e.State != StateOK {
		t.Errorf("endpoint %+v, %v", e, err)
	}
}

// What cannot be asked is logged once, with the reason, and keeps nothing else from
// being asked.
func TestUnusableSocketsAreLogged(t *testing.T) {
	t.Setenv("DOCKER_HOST", "ssh://user@host")
	absent := filepath.Join(t.TempDir(), "absent")
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	r, err := NewResolver(Options{
		CgroupRoot: t.TempDir(), DockerSockets: []string{absent}, CRISockets: []string{"tcp://127.0.0.1:1"}, OnlyListedSockets: true, Log: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Start(context.Background())
	err = errors.Join(r.WaitAnswered(t.Context()), r.Close())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"DOCKER_HOST", "ssh://user@host", "tcp://127.0.0.1:1", absent} {
		if n := strings.Count(log.String(), want); n != 1 {
			t.Errorf("%d times %q in the log:\n%s", n, want, &log)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 3 {
		t.Errorf("%d warnings, want 3:\n%s", n, &log)
	}
}
