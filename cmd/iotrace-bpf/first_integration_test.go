//go:build integration

package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// A steady load: so many writers, each with one request of this size at a time. The
// pause keeps the load far below what the machine can do, so that it stays steady.
const (
	steadyWriters = 8
	steadyRequest = 16 << 10
	steadyPause   = time.Millisecond
)

// steadyLoad writes to the disk until the test ends.
func steadyLoad(t *testing.T, d *disk) {
	t.Helper()
	f, err := os.OpenFile(d.dev, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i := range steadyWriters {
		data, err := unix.Mmap(-1, 0, steadyRequest, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			defer unix.Munmap(data)
			for {
				select {
				case <-stop:
					return
				case <-time.After(steadyPause):
				}
				if _, err := f.WriteAt(data, int64(i)*steadyRequest); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		close(stop)
		writers.Wait()
		f.Close()
	})
}

// sample is what the kernel had written to a disk at a moment between before and after.
type sample struct {
	before, after time.Time
	bytes         uint64
}

// sampleDisk looks at /proc/diskstats every few milliseconds until stop is called,
// which returns what it saw.
func sampleDisk(t *testing.T, d *disk) (stop func() []sample) {
	t.Helper()
	end, ended := make(chan struct{}), make(chan struct{})
	var seen []sample
	go func() {
		defer close(ended)
		for {
			before := time.Now()
			bytes := d.stat(t).writeBytes
			seen = append(seen, sample{before, time.Now(), bytes})
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() []sample {
		close(end)
		<-ended
		return seen
	}
}

// writtenBetween returns the least and the most that can have been written between two
// moments: between the samples just inside, and between those just outside.
func writtenBetween(t *testing.T, seen []sample, start, end time.Time) (least, most uint64) {
	t.Helper()
	var outer, inner [2]*sample
	for i := range seen {
		s := &seen[i]
		if !s.after.After(start) {
			outer[0] = s
		}
		if inner[0] == nil && !s.before.Before(start) {
			inner[0] = s
		}
		if !s.after.After(end) {
			inner[1] = s
		}
		if outer[1] == nil && !s.before.Before(end) {
			outer[1] = s
		}
	}
	if outer[0] == nil || outer[1] == nil || inner[0] == nil || inner[1] == nil {
		t.Fatalf("no samples around %v to %v", start, end)
	}
	if inner[1].bytes > inner[0].bytes {
		least = inner[1].bytes - inner[0].bytes
	}
	return least, outer[1].bytes - outer[0].bytes
}

// TestFirstInterval: the first interval has the I/O between its start and its end, as
// /proc/diskstats saw it, and nothing of what happened while hooks were being attached.
// Requests that were under way then are not lost: they never were ours.
func TestFirstInterval(t *testing.T) {
	for _, seconds := range []string{"0.2", "1", "5"} {
		t.Run(seconds, func(t *testing.T) {
			d := newDisk(t, 64)
			steadyLoad(t, d)
			stop := sampleDisk(t, d)
			cmd := exec.Command(binary(t), "--by", "device", "--output", "ndjson", seconds, "1")
			r := &traced{cmd: cmd, done: make(chan struct{})}
			r.start(t)
			<-r.done
			if err := cmd.Wait(); err != nil {
				t.Fatalf("iotrace-bpf: %v\n%s", err, r.stderr.String())
			}
			seen := stop()
			docs := r.seen()
			if len(docs) == 0 {
				t.Fatal("no document")
			}
			start, end := docs[0].Event.Start, docs[0].Event.End
			for i := range docs {
				if e := &docs[i].Event; !e.Start.Equal(start) || !e.End.Equal(end) {
					t.Fatalf("two intervals: %v to %v, %v to %v", start, end, e.Start, e.End)
				}
			}
			want, err := time.ParseDuration(seconds + "s")
			if err != nil {
				t.Fatal(err)
			}
			// The program may be held up before its clock and after it, by a busy machine.
			if got := end.Sub(start); got < want-50*time.Millisecond {
				t.Errorf("the interval is %v long, want %v", got, want)
			}
			least, most := writtenBetween(t, seen, start, end)
			// We count a request at its issue, diskstats at its completion.
			const underWay = steadyWriters * steadyRequest
			got := sum(docs, d.match).write
			t.Logf("%v: %d bytes in rows; /proc/diskstats: %d to %d, and up to %d under way", end.Sub(start), got, least, most, underWay)
			if got+underWay < least || got > most+underWay {
				t.Errorf("%d bytes in rows; /proc/diskstats has between %d and %d", got, least, most)
			}
			if n := lost(docs, "latencies"); n != 0 {
				t.Errorf("%d latencies lost", n)
			}
		})
	}
}

// TestNamesAfterStall: while the tracer is stopped, cgroups come, write and go. Only
// the kernel's events name them, and those are read before the rows are named.
func TestNamesAfterStall(t *testing.T) {
	const n = 1000
	h, err := attribute.FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp(h.Mount, "stall")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		enginetest.Poll(t, 20*time.Second, parent+" is empty", func() bool { return os.Remove(parent) == nil })
	})
	d := newDisk(t, 64)
	bin := filepath.Join(t.TempDir(), "owners")
	mustRun(t, "go", "build", "-o", bin, "./testdata/owners")
	before := d.stat(t)
	r := trace(t, "--source", "block", "--by", "cgroup,device", "--filter", "device="+d.name(), "--interval", "100ms")
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{} // by id
	var dirs []string
	for i := range n {
		dir := filepath.Join(parent, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
		names[strconv.FormatUint(inode(t, dir), 10)] = fmt.Sprintf("/%s/%d", filepath.Base(parent), i)
	}
	o := startOwners(t, bin, d, 1, dirs)
	o.begin(t)
	o.expect(t, "done")
	o.end(t)
	for _, dir := range dirs {
		enginetest.Poll(t, 20*time.Second, dir+" is empty", func() bool { return os.Remove(dir) == nil })
	}
	if err := r.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.flush(t)
	docs := r.stop(t)
	if all, delta := sum(docs, d.match), d.stat(t).minus(before); all.write != delta.writeBytes {
		t.Errorf("%d bytes in rows; /proc/diskstats has %d", all.write, delta.writeBytes)
	}
	rows, nameless := 0, 0
	for i := range docs {
		doc := &docs[i]
		want, ours := names[doc.Iotrace.Cgroup.ID]
		if doc.Event.Dataset != "iotrace.io" || !ours {
			continue
		}
		rows++
		if doc.Iotrace.Cgroup.Path != want {
			nameless++
			if nameless < 5 {
				t.Errorf("cgroup %s is %q, want %q", doc.Iotrace.Cgroup.ID, doc.Iotrace.Cgroup.Path, want)
			}
		}
	}
	if rows != n || nameless > 0 {
		t.Errorf("%d rows, want %d; %d of them without their name", rows, n, nameless)
	}
}

// TestContainersAfterStall: while the tracer is stopped, containers write and go, others
// come under the same name with another image of the same name, one is renamed, and
// thousands of cgroups come and go. Every byte has the name of its time: a row that of
// the interval's start, an event that of its moment.
func TestContainersAfterStall(t *testing.T) {
	const storm = 5000
	e := enginetest.Start(t)
	d := newDisk(t, 64)
	dir := t.TempDir()
	e.Import(t, "app:1")
	n := 0
	run := func(name, project string) string {
		n++
		script := fmt.Sprintf("n=%d; i=1; while :; do until [ -e /data/go-$n-$i ]; do sleep 0.05; done; "+
			"dd if=/dev/zero of=/dev/disk bs=4096 count=$(cat /data/go-$n-$i) oflag=direct 2>/dev/null; : >/data/done-$n-$i; i=$((i+1)); done", n)
		return e.Run(t, "--name", name, "--label", "com.docker.compose.project="+project, "--volume", dir+":/data", "--device", d.dev+":/dev/disk", "app:1", "sh", "-c", script)
	}
	rounds := map[int]int{}
	// write lets the container that was started as number at write.
	write := func(at, pages int) uint64 {
		t.Helper()
		rounds[at]++
		file := fmt.Sprintf("%d-%d", at, rounds[at])
		part := filepath.Join(dir, "part") // it must not read an empty file
		if err := os.WriteFile(part, []byte(strconv.Itoa(pages)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(part, filepath.Join(dir, "go-"+file)); err != nil {
			t.Fatal(err)
		}
		enginetest.Poll(t, time.Minute, "container "+file+" wrote", func() bool {
			_, err := os.Stat(filepath.Join(dir, "done-"+file))
			return err == nil
		})
		return uint64(pages) * 4096
	}
	type named struct{ id, name, project string }
	rows, events := map[named]uint64{}, map[named]uint64{}
	book := func(bytes uint64, row, event named) {
		rows[row] += bytes
		events[event] += bytes
	}

	web, batch := run("web", "shop"), run("batch", "night") // 1, 2
	flags := []string{"--docker-host", "unix://" + e.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "300ms",
		"--source", "block", "--filter", "device=" + d.name()}
	tracers := []*traced{trace(t, flags...), trace(t, append(flags, "--events")...)}
	signal := func(sig syscall.Signal) {
		t.Helper()
		for _, r := range tracers {
			if err := r.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	first := named{web, "web", "shop"}
	book(write(1, 211), first, first)
	e.Docker(t, "rm", "--force", "web")
	e.Import(t, "app:1")                                 // from now on, the engine's list has the first image by its id
	second := named{run("web", "shop2"), "web", "shop2"} // 3
	book(write(3, 307), second, second)
	e.Docker(t, "rm", "--force", "web")
	third := named{run("web", "shop3"), "web", "shop3"} // 4
	book(write(4, 101), third, third)
	before, after := named{batch, "batch", "night"}, named{batch, "batch-old", "night"}
	book(write(2, 401), before, before)
	e.Docker(t, "rename", "batch", "batch-old")
	day := named{run("batch", "day"), "batch", "day"} // 5
	book(write(5, 103), day, day)
	book(write(2, 53), before, after) // the row began before the new name
	makeAndRemoveCgroups(t, storm)
	signal(syscall.SIGCONT)
	for _, r := range tracers {
		enginetest.Poll(t, time.Minute, "the interval of the stall", func() bool {
			return slices.ContainsFunc(r.seen(), func(doc tracedDoc) bool { return doc.Container.ID == batch })
		})
	}
	book(write(2, 67), after, after)
	d.flush(t)
	docs := append(tracers[0].stop(t), tracers[1].stop(t)...)

	gotRows, gotEvents := map[named]uint64{}, map[named]uint64{}
	for i := range docs {
		doc := &docs[i]
		k := named{doc.Container.ID, doc.Container.Name, doc.Iotrace.Project.Name}
		if k.id == "" || !d.match(doc) {
			continue
		}
		switch doc.Event.Dataset {
		case "iotrace.io":
			gotRows[k] += doc.Iotrace.Write.Bytes
		case "iotrace.event":
			gotEvents[k] += doc.Iotrace.Request.Bytes
		}
		if doc.Container.Image.Name != "app" || !slices.Equal(doc.Container.Image.Tag, []string{"1"}) {
			t.Errorf("image of %v: %+v", k, doc.Container.Image)
		}
	}
	if !maps.Equal(gotRows, rows) {
		t.Errorf("rows:\n got %v\nwant %v", gotRows, rows)
	}
	if !maps.Equal(gotEvents, events) {
		t.Errorf("events:\n got %v\nwant %v", gotEvents, events)
	}
}

// makeAndRemoveCgroups makes cgroups and removes them all.
func makeAndRemoveCgroups(t *testing.T, n int) {
	t.Helper()
	h, err := attribute.FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp(h.Mount, "storm")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := os.Mkdir(filepath.Join(parent, strconv.Itoa(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if err := os.Remove(filepath.Join(parent, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
}
