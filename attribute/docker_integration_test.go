//go:build integration

package attribute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

const patience = 30 * time.Second

// cgroupOf returns the id of a process's cgroup in the resolver's hierarchy, as
// the kernel's events would give it.
func cgroupOf(t *testing.T, r *Resolver, pid string) (id uint64, path string) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if number, rest, _ := strings.Cut(strings.TrimSpace(line), ":"); number == fmt.Sprint(r.Hierarchy().ID) {
			_, path, _ = strings.Cut(rest, ":")
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(r.Hierarchy().Mount, path), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino, path
}

func startResolver(t *testing.T, opts Options) *Resolver {
	t.Helper()
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	r, err := NewResolver(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	r.Start(ctx)
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// waitAnswered waits until every runtime that is there has answered: for WaitAnswered
// one attempt is enough, and that may have timed out.
func waitAnswered(t *testing.T, r *Resolver) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.WaitAnswered(ctx); err != nil {
		t.Fatalf("WaitAnswered: %v; endpoints %+v", err, r.Endpoints())
	}
	enginetest.Poll(t, patience, "every runtime answered", func() bool {
		return !slices.ContainsFunc(r.Endpoints(), func(e Endpoint) bool {
			switch e.State {
			case StateOK, StateAbsent, StateNotOffered:
				return false
			case StateRefused: // a socket that some runtime of this machine left behind
				return false
			}
			t.Logf("waiting for %q: %s, %v", e.Socket, e.State, e.Err)
			return true
		})
	})
}

func ownerOf(t *testing.T, e *enginetest.Engine, r *Resolver, container string) Owner {
	t.Helper()
	id, _ := cgroupOf(t, r, e.Inspect(t, container, "{{.State.Pid}}"))
	return r.Owner(id)
}

func endpoint(t *testing.T, r *Resolver, socket string) Endpoint {
	t.Helper()
	for _, e := range r.Endpoints() {
		if e.Socket == socket {
			return e
		}
	}
	t.Fatalf("no endpoint %q in %+v", socket, r.Endpoints())
	return Endpoint{}
}

func TestDocker(t *testing.T) {
	e := enginetest.Start(t)
	sleep := []string{enginetest.Image, "sleep", "1000"}
	before := e.Run(t, append([]string{"--name", "shop-db-1", "--label", "com.docker.compose.project=shop",
		"--label", "com.docker.compose.service=db", "--label", "name=hidden", "-v", "dbdata:/var/lib/db"}, sleep...)...)

	r := startResolver(t, Options{DockerSockets: []string{"unix://" + e.Socket}, OnlyListedSockets: true})
	waitAnswered(t, r)

	t.Run("running before us", func(t *testing.T) {
		o := ownerOf(t, e, r, before)
		want := Owner{
			Kind: KindContainer, Cgroup: o.Cgroup, Path: o.Path, Runtime: "docker", ContainerID: before,
			ContainerName: "shop-db-1", Image: "busybox", ImageTag: "test",
			Project: "shop", ProjectRule: RuleCompose, Service: "db",
		}
		got := o
		got.Labels = nil
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
		if o.Labels["name"] != "hidden" || len(o.Labels) != 3 {
			t.Errorf("labels %v", o.Labels)
		}
	})

	// Before others are started: whenever a list is asked for, they are in it.
	t.Run("endpoint", func(t *testing.T) {
		e := endpoint(t, r, e.Socket)
		if e.State != StateOK || e.Runtime != "docker" || !strings.Contains(e.Version, "API 1.") || e.Containers != 1 {
			t.Errorf("endpoint %+v", e)
		}
	})

	t.Run("started after us", func(t *testing.T) {
		id := e.Run(t, append([]string{"--name", "late", "--label", "com.docker.stack.namespace=st", "--label", "name=masked by the event",
			"--label", "com.docker.swarm.service.name=st_web"}, sleep...)...)
		enginetest.Poll(t, patience, "named with all labels", func() bool {
			o := ownerOf(t, e, r, id)
			return o.ContainerName == "late" && o.Project == "st" && o.Service == "web" && o.ProjectRule == RuleStack &&
				o.Labels["name"] == "masked by the event"
		})
		e.Docker(t, "rename", "late", "later")
		enginetest.Poll(t, patience, "renamed", func() bool { return ownerOf(t, e, r, id).ContainerName == "later" })
	})

	t.Run("custom parent", func(t *testing.T) {
		id := e.Run(t, append([]string{"--name", "parented", "--cgroup-parent", "/my/parent"}, sleep...)...)
		enginetest.Poll(t, patience, "named", func() bool { return ownerOf(t, e, r, id).ContainerName == "parented" })
		if o := ownerOf(t, e, r, id); o.Path != "/my/parent/"+id || o.Runtime != "docker" || o.Kind != KindContainer {
			t.Errorf("got %+v", o)
		}
	})

	t.Run("short life", func(t *testing.T) {
		// The tracer's part is played by hand: the engine makes and removes the
		// cgroup far faster than anyone could look at it.
		cid := filepath.Join(t.TempDir(), "cid")
		e.Docker(t, "run", "--rm", "--network", "none", "--name", "blink", "--cidfile", cid,
			"--label", "com.docker.compose.project=flash", enginetest.Image, "true")
		b, err := os.ReadFile(cid)
		if err != nil {
			t.Fatal(err)
		}
		id := strings.TrimSpace(string(b))
		r.CgroupCreated(1<<40, "/docker/"+id)
		r.CgroupRemoved(1<<40, "/docker/"+id)
		enginetest.Poll(t, patience, "named by its events", func() bool { return r.Owner(1<<40).ContainerName == "blink" })
		if o := r.Owner(1 << 40); o.Project != "flash" || o.Image != "busybox" || !o.Gone {
			t.Errorf("got %+v", o)
		}
	})

	t.Run("hostile text", func(t *testing.T) {
		long := strings.Repeat("x", 64<<10)
		id := e.Run(t, append([]string{"--name", "hostile", "--label", "com.docker.compose.project=a\x1b[2J\"b\n\u202ec",
			"--label", "long=" + long}, sleep...)...)
		enginetest.Poll(t, patience, "named", func() bool { return ownerOf(t, e, r, id).ContainerName == "hostile" })
		o := ownerOf(t, e, r, id)
		if o.Project != "a\x1b[2J\"b\n\u202ec" {
			t.Errorf("project %q", o.Project)
		}
		if n := len(o.Labels["long"]); n != maxLabelValue {
			t.Errorf("long label has %d bytes", n)
		}
	})

	t.Run("volume", func(t *testing.T) {
		pid := e.Inspect(t, before, "{{.State.Pid}}")
		id, _ := cgroupOf(t, r, pid)
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+pid+"/root/var/lib/db", &st); err != nil {
			t.Fatal(err)
		}
		dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		// The engine keeps volumes and containers' own files on one disk.
		m, ok := r.Mount(dev, id)
		if !ok || m.Volume != "/|dbdata" || m.Point != "/|/var/lib/db" {
			t.Errorf("Mount(%s) = %+v, %v", dev, m, ok)
		}
	})

	t.Run("volume on a disk of its own", func(t *testing.T) {
		dir := t.TempDir()
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		cid := e.Run(t, append([]string{"--name", "ondisk", "--mount", "type=volume,src=fast,dst=/fast,volume-driver=local,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=" + dir}, sleep...)...)
		t.Cleanup(func() { e.Docker(t, "rm", "--force", cid) })
		pid := e.Inspect(t, cid, "{{.State.Pid}}")
		id, _ := cgroupOf(t, r, pid)
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+pid+"/root/fast", &st); err != nil {
			t.Fatal(err)
		}
		dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		enginetest.Poll(t, patience, "the volume is named", func() bool {
			m, ok := r.Mount(dev, id)
			return ok && m.Volume == "fast" && m.Driver == "local" && m.Point == "/fast"
		})
	})

	t.Run("restart of the engine", func(t *testing.T) {
		e.Halt(t)
		enginetest.Poll(t, patience, "loss noticed", func() bool { return endpoint(t, r, e.Socket).State != StateOK })
		r.CgroupCreated(1<<41, "/docker/"+before)
		if o := r.Owner(1 << 41); o.ContainerName != "shop-db-1" {
			t.Errorf("name forgotten with the engine: %+v", o)
		}
		e.Boot(t)
		id := e.Run(t, append([]string{"--name", "reborn"}, sleep...)...)
		enginetest.Poll(t, patience, "named by the engine that came back", func() bool { return ownerOf(t, e, r, id).ContainerName == "reborn" })
	})
}

// Containers that live for milliseconds are named by what the engine's events
// said of them, and by nothing else: they are gone before they can be asked for.
func TestDockerShortLives(t *testing.T) {
	e := enginetest.Start(t)
	r := startResolver(t, Options{DockerSockets: []string{"unix://" + e.Socket}, OnlyListedSockets: true})
	waitAnswered(t, r)
	before := r.Stats().Pending // this machine's own
	const n = 60
	ids := make([]string, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out, err := e.Command("run", "--rm", "-d", "--network", "none", "--name", fmt.Sprintf("flash%d", i),
				"--label", fmt.Sprintf("com.docker.compose.project=p%d", i%7), enginetest.Image, "true").Output()
			if err != nil {
				t.Errorf("container %d: %v", i, err)
				return
			}
			ids[i] = strings.TrimSpace(string(out))
			r.CgroupCreated(uint64(1<<40+i), "/docker/"+ids[i])
			r.CgroupRemoved(uint64(1<<40+i), "/docker/"+ids[i])
		})
	}
	wg.Wait()
	enginetest.Poll(t, patience, "all gone from the engine", func() bool { return e.Docker(t, "ps", "-aq") == "" })
	enginetest.Poll(t, patience, "all named by events", func() bool { return r.Stats().Pending <= before })
	for i := range n {
		o := r.Owner(uint64(1<<40 + i))
		want := Owner{
			Kind: KindContainer, Cgroup: o.Cgroup, Path: "/docker/" + ids[i], Runtime: "docker", ContainerID: ids[i], ContainerName: fmt.Sprintf("flash%d", i),
			Image: "busybox", ImageTag: "test", Project: fmt.Sprintf("p%d", i%7), ProjectRule: RuleCompose, Gone: true,
		}
		o.Labels = nil
		if fmt.Sprintf("%+v", o) != fmt.Sprintf("%+v", want) {
			t.Errorf("container %d\n got %+v\nwant %+v", i, o, want)
		}
	}
	if s := r.Stats(); s.Pending > before {
		t.Errorf("stats %+v, %d pending before", s, before)
	}
}

// An engine that stops answering delays no one, and is followed again when it
// goes on, or is killed and started again.
func TestDockerHangs(t *testing.T) {
	e := enginetest.Start(t)
	host := "unix://" + e.Socket
	r := startResolver(t, Options{DockerSockets: []string{host}, OnlyListedSockets: true})
	waitAnswered(t, r)
	named := e.Run(t, "--name", "named", enginetest.Image, "sleep", "1000")
	enginetest.Poll(t, patience, "named", func() bool { return ownerOf(t, e, r, named).ContainerName == "named" })

	e.Signal(t, syscall.SIGSTOP)
	enginetest.Poll(t, patience, "found hanging", func() bool { return endpoint(t, r, e.Socket).State == StateHanging })
	r.CgroupCreated(1<<41, "/docker/"+named)
	r.CgroupCreated(1<<42, "/docker/"+idA)
	for range 1000 {
		if o := r.Owner(1 << 41); o.ContainerName != "named" {
			t.Fatalf("name forgotten: %+v", o)
		}
		if o := r.Owner(1 << 42); o.ContainerID != idA {
			t.Fatalf("no bare id: %+v", o)
		}
	}
	e.Signal(t, syscall.SIGCONT)
	enginetest.Poll(t, patience, "well again", func() bool { return endpoint(t, r, e.Socket).State == StateOK })
	after := e.Run(t, "--name", "after", enginetest.Image, "sleep", "1000")
	enginetest.Poll(t, patience, "named", func() bool { return ownerOf(t, e, r, after).ContainerName == "after" })
}

// A container of an engine that runs in a container shows under its own name and
// belongs to the project of the one around it, unless it has one itself.
func TestDockerInDocker(t *testing.T) {
	e := enginetest.Start(t)
	r := startResolver(t, Options{DockerSockets: []string{"unix://" + e.Socket}})
	waitAnswered(t, r)
	outer := e.RunNested(t, "outer", "--label", "com.docker.compose.project=ci")
	run := func(name string, args ...string) uint64 {
		all := append([]string{"exec", outer, "docker", "run", "-d", "--network", "none", "--stop-signal", "KILL", "--name", name}, args...)
		inner := e.Docker(t, append(all, enginetest.Image, "sleep", "100000")...)
		// Its pid in our namespace is the one whose cgroup ends in its id.
		files, err := filepath.Glob("/proc/[0-9]*/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		pid := ""
		for _, name := range files {
			if b, _ := os.ReadFile(name); strings.Contains(string(b), "/"+inner) {
				pid = filepath.Base(filepath.Dir(name))
			}
		}
		id, _ := cgroupOf(t, r, pid)
		return id
	}
	plain := run("plain")
	labelled := run("labelled", "--label", "com.docker.compose.project=own")
	enginetest.Poll(t, patience, "both named", func() bool {
		return r.Owner(plain).ContainerName == "plain" && r.Owner(labelled).ContainerName == "labelled"
	})
	if o := r.Owner(plain); o.Parent != outer || o.Outer != outer || o.OuterName != "outer" || o.Project != "ci" || o.ProjectRule != RuleParent || o.Image != "busybox" {
		t.Errorf("plain: %+v", o)
	}
	if o := r.Owner(labelled); o.Parent != outer || o.Project != "own" || o.ProjectRule != RuleCompose {
		t.Errorf("labelled: %+v", o)
	}
	e.Docker(t, "rm", "--force", outer)
	enginetest.Poll(t, patience, "its engine is no endpoint any more", func() bool {
		for _, e := range r.Endpoints() {
			if strings.HasPrefix(e.Socket, "/proc/") {
				return false
			}
		}
		return true
	})
	if o := r.Owner(plain); o.ContainerName != "plain" {
		t.Errorf("name forgotten before its late writeback: %+v", o)
	}
}

// A managed plugin is a container that docker ps does not list and whose path
// says no more than an id.
func TestDockerPlugin(t *testing.T) {
	e := enginetest.Start(t)
	cgroupOfPlugin := func(r *Resolver, plugin string) (found uint64) {
		enginetest.Poll(t, patience, "a process in the plugin's cgroup", func() bool {
			files, err := filepath.Glob("/proc/[0-9]*/cgroup")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range files {
				if b, _ := os.ReadFile(name); strings.Contains(string(b), "/"+plugin) {
					found, _ = cgroupOf(t, r, filepath.Base(filepath.Dir(name)))
					return true
				}
			}
			return false
		})
		return found
	}
	before := e.EnablePlugin(t, "example/before:1")
	r := startResolver(t, Options{DockerSockets: []string{e.Socket}, OnlyListedSockets: true})
	waitAnswered(t, r)
	o := r.Owner(cgroupOfPlugin(r, before))
	if o.Kind != KindContainer || o.Runtime != "docker-plugin" || o.ContainerID != before || o.ContainerName != "example/before:1" {
		t.Errorf("%+v", o)
	}
	after := e.EnablePlugin(t, "example/after:1")
	id := cgroupOfPlugin(r, after)
	enginetest.Poll(t, patience, "named", func() bool { return r.Owner(id).ContainerName == "example/after:1" })
}

// What happened while no one listened is asked for when the stream of events is
// opened again: a container that was made and removed meanwhile has a name.
func TestDockerEventsSince(t *testing.T) {
	e := enginetest.Start(t)
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{e.Socket}, OnlyListedSockets: true})
	spec := &runtimeSpec{name: runtimeDocker, open: openDocker}
	f := r.runtimes.add(spec, e.Socket, domain{})
	listen := func(until func() bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				err := follow(ctx, spec, f)
				if errors.Is(err, context.Canceled) {
					return
				}
				t.Logf("followed once more: %v", err) // one slow call ends a session
				time.Sleep(backoffFirst)
			}
		}()
		enginetest.Poll(t, patience, "followed", until)
		cancel()
		<-done
	}
	blink := func(name string) string {
		t.Helper()
		id := e.Docker(t, "run", "-d", "--rm", "--network", "none", "--name", name, enginetest.Image, "true")
		enginetest.Poll(t, patience, name+" is gone", func() bool { return e.Docker(t, "ps", "-aqf", "name="+name) == "" })
		return id
	}
	listen(func() bool { return endpoint(t, r, e.Socket).State == StateOK })
	for _, name := range []string{"before any event", "after one"} {
		id := blink(strings.ReplaceAll(name, " ", "-"))
		if c := r.registry.get(id); c != nil {
			t.Fatalf("told of while no one listened: %+v", c)
		}
		listen(func() bool { // its last event, not the first of them
			r.registry.mu.RLock()
			defer r.registry.mu.RUnlock()
			c := r.registry.byID[id]
			return c != nil && !c.goneAt.IsZero()
		})
		if c := r.registry.get(id); c.name != strings.ReplaceAll(name, " ", "-") {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
