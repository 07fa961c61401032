//go:build integration

package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dcontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// TestShortLives: 500 containers live for some 50 ms each, too short to ask the
// engine about them. Their bytes reach the disk after their end, and every byte is
// in a row with its container's own name, image and project.
func TestShortLives(t *testing.T) {
	e := enginetest.Start(t)
	d := newDisk(t, 256)
	d.format(t, "mkfs.ext4", "-q")
	// Over the API: the docker command takes longer than such a container lives.
	engine, err := client.NewClientWithOpts(client.WithHost("unix://"+e.Socket), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	lives := watchLives(t, engine)
	tr := trace(t, "--source", "block", "--by", "container,device", "--interval", "1s", "--docker-host", "unix://"+e.Socket, "--only-listed-sockets")

	const n, projects = 500, 41
	pages := func(i int) uint64 { return uint64(3 + i%11) }
	ids := make([]string, n)
	began := time.Now()
	work := make(chan int)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range work {
				made, err := engine.ContainerCreate(t.Context(), &dcontainer.Config{
					Image: enginetest.Image,
					Cmd:   []string{"dd", "if=/dev/zero", fmt.Sprintf("of=/data/f%d", i), "bs=4096", fmt.Sprintf("count=%d", pages(i)), "status=none"},
					Labels: map[string]string{
						"com.docker.compose.project": fmt.Sprintf("p%d", i%projects), "com.docker.compose.service": "flash",
					},
				}, &dcontainer.HostConfig{NetworkMode: "none", AutoRemove: true, Binds: []string{d.mount + ":/data"}}, nil, nil, fmt.Sprintf("flash%d", i))
				if err == nil {
					ids[i] = made.ID
					err = engine.ContainerStart(t.Context(), made.ID, dcontainer.StartOptions{})
				}
				if err != nil {
					t.Errorf("container %d: %v", i, err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	if t.Failed() {
		return
	}
	lives.await(t, ids)
	took := time.Since(began)
	t.Logf("%d containers in %s, %.0f a minute; half of them lived less than %s, 9 of 10 less than %s",
		n, took.Round(time.Second), n/took.Minutes(), lives.quantile(0.5).Round(time.Millisecond), lives.quantile(0.9).Round(time.Millisecond))
	d.flush(t)
	docs := tr.stop(t)

	var want uint64
	wrote := map[string]uint64{}
	for i := range docs {
		doc := &docs[i]
		if doc.Event.Dataset != "iotrace.io" || !d.match(doc) {
			continue
		}
		if id := doc.Container.ID; id != "" {
			wrote[id] += doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes
			at := slices.Index(ids, id)
			if at < 0 {
				t.Errorf("a container that we did not start: %+v", doc)
			} else if name, p := fmt.Sprintf("flash%d", at), fmt.Sprintf("p%d", at%projects); doc.Container.Name != name || doc.Iotrace.Project.Name != p ||
				doc.Iotrace.Project.Rule != "compose" || doc.Container.Image.Name != "busybox" || doc.Iotrace.Service.Name != "flash" {
				t.Errorf("row of %s in %s: %+v", name, p, doc)
			}
		} else if b := doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes; b != 0 {
			t.Errorf("%d bytes of no container: %+v", b, doc)
		}
	}
	for i, id := range ids {
		want += pages(i) * 4096
		if wrote[id] != pages(i)*4096 {
			t.Errorf("container %d wrote %d bytes, want %d", i, wrote[id], pages(i)*4096)
		}
	}
	var all uint64
	for _, b := range wrote {
		all += b
	}
	if all != want {
		t.Errorf("%d bytes in all, want %d", all, want)
	}
}

// TestBareIDs: a container that no reachable runtime knows keeps its id, and the
// status record counts it.
func TestBareIDs(t *testing.T) {
	e := enginetest.Start(t)
	d := newDisk(t, 64)
	d.format(t, "mkfs.ext4", "-q")
	tr := trace(t, "--source", "block", "--by", "container,device", "--interval", "500ms", "--docker-host", "unix:///nonexistent/docker.sock", "--only-listed-sockets")
	id := e.Run(t, "--volume", d.mount+":/data", enginetest.Image, "sh", "-c",
		"while :; do dd if=/dev/zero of=/data/f bs=4096 count=1 oflag=direct 2>/dev/null; sleep 0.1; done")
	enginetest.Poll(t, 30*time.Second, "a row with the id, and a status that counts it", func() bool {
		row, counted := false, false
		for _, doc := range tr.seen() {
			row = row || doc.Container.ID == id && doc.Container.Name == "" && d.match(&doc) && doc.Iotrace.Write.Bytes > 0
			counted = counted || row && doc.Event.Dataset == "iotrace.status" && doc.Iotrace.Unresolved.Cgroups > 0
		}
		return counted
	})
	tr.stop(t)
}

// lives holds the lifetimes of containers, as their engine reports them.
type lives struct {
	mu        sync.Mutex
	started   map[string]time.Time
	lived     []time.Duration
	destroyed map[string]bool
}

func watchLives(t *testing.T, engine *client.Client) *lives {
	t.Helper()
	l := &lives{started: map[string]time.Time{}, destroyed: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	messages, errs := engine.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "container"))})
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for {
			select {
			case <-errs:
				return
			case m := <-messages:
				l.mu.Lock()
				at := time.Unix(0, m.TimeNano)
				switch m.Action {
				case events.ActionStart:
					l.started[m.Actor.ID] = at
				case events.ActionDie:
					l.lived = append(l.lived, at.Sub(l.started[m.Actor.ID]))
				case events.ActionDestroy:
					l.destroyed[m.Actor.ID] = true
				}
				l.mu.Unlock()
			}
		}
	}()
	return l
}

// await waits until the engine removed all of them.
func (l *lives) await(t *testing.T, ids []string) {
	t.Helper()
	enginetest.Poll(t, 2*time.Minute, "all containers are gone", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !slices.ContainsFunc(ids, func(id string) bool { return !l.destroyed[id] })
	})
}

func (l *lives) quantile(q float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.lived)
	if len(l.lived) == 0 {
		return 0
	}
	return l.lived[int(q*float64(len(l.lived)-1))]
}

// TestGVisor: a container of gVisor does its I/O through processes of gVisor, which are in
// the container's cgroup: the bytes are the container's.
func TestGVisor(t *testing.T) {
	const pages = 307
	e := enginetest.StartGVisor(t)
	d := newDisk(t, 64)
	d.format(t, "mkfs.ext4", "-q")
	tr := trace(t, "--source", "block", "--by", "container,device", "--interval", "500ms", "--docker-host", "unix://"+e.Socket, "--only-listed-sockets")
	out := e.Docker(t, "run", "--network", "none", "--runtime", "runsc", "--name", "sandboxed", "--label", "com.docker.compose.project=shop",
		"--volume", d.mount+":/data", enginetest.Image, "sh", "-c",
		fmt.Sprintf("cat /proc/version; dd if=/dev/zero of=/data/f bs=4096 count=%d conv=fsync 2>/dev/null", pages))
	if !strings.Contains(out, "Linux version 4.4.0") { // what gVisor says on every host
		t.Fatalf("this is not gVisor: %q", out)
	}
	d.flush(t)
	docs := tr.stop(t)
	var wrote uint64
	for i := range docs {
		doc := &docs[i]
		if doc.Event.Dataset != "iotrace.io" || !d.match(doc) {
			continue
		}
		data := doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes
		if data > 0 && (doc.Container.Name != "sandboxed" || doc.Iotrace.Project.Name != "shop") {
			t.Errorf("%d bytes in %+v", data, doc)
		}
		wrote += data
	}
	if wrote != pages*4096 {
		t.Errorf("%d bytes, want %d", wrote, pages*4096)
	}
}

// TestSlurm: jobs of a real Slurm are rows, whatever steps and tasks they have, and each has
// the bytes that it wrote.
func TestSlurm(t *testing.T) {
	h, err := attribute.FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	s := enginetest.StartSlurm(t, h.Version)
	d := newDisk(t, 64)
	d.format(t, "mkfs.ext4", "-q")
	tr := trace(t, "--source", "block", "--by", "container,device", "--interval", "500ms", "--only-listed-sockets")
	want := map[string]uint64{}
	for i, name := range []string{"shop", "bank"} {
		pages := 211 + 96*i
		id := s.Submit(t, name, fmt.Sprintf("dd if=/dev/zero of=%[1]s/%[2]s bs=4096 count=%[3]d oflag=direct\n: >%[1]s/%[2]s.done\nexec sleep 100000\n", d.mount, name, pages))
		want["job_"+id] = uint64(pages) * 4096
		enginetest.Poll(t, time.Minute, name+" wrote", func() bool {
			_, err := os.Stat(filepath.Join(d.mount, name+".done"))
			return err == nil
		})
	}
	d.flush(t)
	got := map[string]uint64{}
	for _, doc := range tr.stop(t) {
		if doc.Event.Dataset != "iotrace.io" || !d.match(&doc) {
			continue
		}
		if b := doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes; b > 0 {
			got[doc.Container.Name] += b
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
