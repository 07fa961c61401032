//go:build integration

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/output/schema"
)

// The rig: the program itself, built as a user builds it, disks of its own that
// nothing else writes to, and containers on them.

var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "iotrace-bpf")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "iotrace-bpf")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as `make build` does
	out, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return path, nil
})

func binary(t testing.TB) string {
	t.Helper()
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// disk is a loop device over a file in memory: a leaf device of its own.
type disk struct {
	dev   string // /dev/loopN
	mount string // where a file system is mounted, if one is

	options string // of the mount
}

func mustRun(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// newDisk makes a disk in memory, its size in MiB.
func newDisk(t testing.TB, mib int) *disk {
	t.Helper()
	dir := t.TempDir()
	mustRun(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib+16), "none", dir)
	t.Cleanup(func() { mustRun(t, "umount", "-l", dir) })
	return loopOver(t, filepath.Join(dir, "disk"), mib)
}

// loopOver makes a disk over a new file.
func loopOver(t testing.TB, file string, mib int) *disk {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(mib) << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	d := &disk{dev: mustRun(t, "losetup", "--find", "--show", file)}
	t.Cleanup(func() { mustRun(t, "losetup", "--detach", d.dev) })
	return d
}

// format puts a file system on the disk and mounts it.
func (d *disk) format(t testing.TB, mkfs ...string) {
	t.Helper()
	mustRun(t, mkfs[0], append(mkfs[1:], d.dev)...)
	d.mount, d.options = t.TempDir(), "defaults"
	if strings.HasSuffix(mkfs[0], "ext4") {
		// The file system must not write on its own later: tests count every byte.
		d.options = "noinit_itable,no_prefetch_block_bitmaps"
	}
	mustRun(t, "mount", "-o", d.options, d.dev, d.mount)
	t.Cleanup(func() { mustRun(t, "umount", d.mount) })
	d.flush(t)
}

// flush writes dirty pages and waits until the disk is idle.
func (d *disk) flush(t testing.TB) {
	t.Helper()
	unix.Sync()
	before := d.stat(t)
	enginetest.Poll(t, 30*time.Second, d.dev+" is idle", func() bool {
		time.Sleep(100 * time.Millisecond) // the interval of polls, not a wait
		now := d.stat(t)
		same := now == before && now.inFlight == 0
		before = now
		return same
	})
}

// diskStat is a line of /proc/diskstats: Documentation/admin-guide/iostats.rst.
type diskStat struct {
	reads, readBytes, writes, writeBytes, discards, discardBytes, inFlight uint64
}

func (a diskStat) minus(b diskStat) diskStat {
	return diskStat{
		a.reads - b.reads, a.readBytes - b.readBytes, a.writes - b.writes, a.writeBytes - b.writeBytes,
		a.discards - b.discards, a.discardBytes - b.discardBytes, 0,
	}
}

func (d *disk) name() string { return filepath.Base(d.dev) }

func (d *disk) stat(t testing.TB) diskStat {
	t.Helper()
	data, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if f[2] != d.name() {
			continue
		}
		n := make([]uint64, len(f))
		for i := 3; i < len(f); i++ {
			if n[i], err = strconv.ParseUint(f[i], 10, 64); err != nil {
				t.Fatalf("/proc/diskstats: %v", err)
			}
		}
		return diskStat{n[3], n[5] * 512, n[7], n[9] * 512, n[14], n[16] * 512, n[11]}
	}
	t.Fatalf("%s is not in /proc/diskstats", d.name())
	return diskStat{}
}

// tracedDoc has the fields of an NDJSON line that the tests check.
type tracedDoc struct {
	Event struct {
		Dataset    string
		Action     string
		Start, End time.Time
	}
	Host      struct{ Name, ID string }
	Container struct {
		ID, Name string
		Image    struct {
			Name string
			Tag  []string
		}
		Labels map[string]string
	}
	Process struct {
		PID  uint32
		Name string
	}
	File    struct{ Path, Inode string }
	Iotrace struct {
		Source  string
		Group   struct{ Name []string }
		Owner   string
		Project struct{ Name, Rule string }
		Service struct{ Name string }
		Cgroup  struct{ ID, Path string }
		Device  struct {
			ID, Name string
			Stacked  bool
		}
		File struct {
			Kind    string
			Inside  string `json:"container_path"`
			Links   int
			Deleted bool
			LogOf   string `json:"log_of"`
		}
		Read, Write, Discard struct {
			Bytes, Ops uint64
			MetaBytes  uint64 `json:"meta_bytes"`
			Latency    struct{ P50, P99, Max uint64 }
		}
		Flush   struct{ Ops uint64 }
		Request struct{ Bytes, Offset, Latency uint64 }
		Basis   struct{ Dirtier, Page, Journal, Bio, Task, None uint64 }
		Lost    map[string]uint64
		Self    struct {
			RSS   uint64 `json:"rss_bytes"`
			Read  uint64 `json:"read_bytes"`
			Write uint64 `json:"write_bytes"`
		}
		Sources map[string]struct {
			Attached    bool
			Reason      string
			Limitations []string
		}
		VXLAN        struct{ Network struct{ Name string } }
		Unattributed struct{ Bytes uint64 }
		Unresolved   struct{ Cgroups uint64 }
	}
}

// traced is a running iotrace-bpf with NDJSON output.
type traced struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	done   chan struct{}

	mu   sync.Mutex
	docs []tracedDoc
	keep func(*tracedDoc) bool // leaves out documents that a long run need not keep; nil keeps all
	bad  error
}

// trace starts iotrace-bpf and returns when everything is attached.
func trace(t testing.TB, args ...string) *traced {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	r := &traced{done: make(chan struct{})}
	r.cmd = exec.Command(binary(t), append([]string{"--output", "ndjson", "--ready-file", ready}, args...)...)
	r.start(t)
	enginetest.Poll(t, 30*time.Second, "iotrace-bpf is attached", func() bool {
		select {
		case <-r.done:
			t.Fatalf("iotrace-bpf ended early:\n%s", r.stderr.String())
		default:
		}
		_, err := os.Stat(ready)
		return err == nil
	})
	return r
}

// start starts the program and reads what it writes.
func (r *traced) start(t testing.TB) {
	t.Helper()
	r.cmd.Stderr = &r.stderr
	r.startWith(t)
}

// startWith is start for a command that has its standard error.
func (r *traced) startWith(t testing.TB) {
	t.Helper()
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		r.read(bufio.NewReaderSize(stdout, 1<<20))
	}()
	t.Cleanup(func() { r.cmd.Process.Kill(); <-r.done; r.cmd.Wait() })
}

// read reads every line and checks it against its schema.
func (r *traced) read(in *bufio.Reader) {
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var d tracedDoc
		err = json.Unmarshal(line, &d)
		if err == nil {
			err = schema.Validate(line)
		}
		r.mu.Lock()
		if err != nil && r.bad == nil {
			r.bad = fmt.Errorf("%w\n%s", err, line)
		}
		if r.keep == nil || r.keep(&d) {
			r.docs = append(r.docs, d)
		}
		r.mu.Unlock()
	}
}

// stop ends the run as Ctrl-C does and returns its documents.
func (r *traced) stop(t testing.TB) []tracedDoc {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-r.done
	if err := r.cmd.Wait(); err != nil {
		t.Fatalf("iotrace-bpf: %v\n%s", err, r.stderr.String())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bad != nil {
		t.Fatalf("bad document: %v", r.bad)
	}
	return r.docs
}

// seen returns the documents so far.
func (r *traced) seen() []tracedDoc {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]tracedDoc(nil), r.docs...)
}

// total adds up the documents of dataset iotrace.io that match.
type total struct {
	read, write, discard                          uint64
	metaRead, metaWrite                           uint64
	readOps, writeOps                             uint64
	dirtier, page, journal, bio, task, none, docs uint64
}

func sum(docs []tracedDoc, match func(*tracedDoc) bool) total {
	var s total
	for i := range docs {
		d := &docs[i]
		if d.Event.Dataset != "iotrace.io" || !match(d) {
			continue
		}
		io := &d.Iotrace
		s.read += io.Read.Bytes
		s.write += io.Write.Bytes
		s.discard += io.Discard.Bytes
		s.readOps += io.Read.Ops
		s.writeOps += io.Write.Ops
		s.metaRead += io.Read.MetaBytes
		s.metaWrite += io.Write.MetaBytes
		s.dirtier += io.Basis.Dirtier
		s.page += io.Basis.Page
		s.journal += io.Basis.Journal
		s.bio += io.Basis.Bio
		s.task += io.Basis.Task
		s.none += io.Basis.None
		s.docs++
	}
	return s
}

// onDisk matches the I/O of a device.
func (d *disk) match(doc *tracedDoc) bool { return doc.Iotrace.Device.Name == d.name() }

// near fails unless got is within 1 % of want.
func near(t testing.TB, what string, got, want uint64) {
	t.Helper()
	diff := max(got, want) - min(got, want)
	if diff*100 > want {
		t.Errorf("%s: %d bytes, want %d within 1 %% (off by %d)", what, got, want, diff)
	}
}

// project returns the docker flags that put a container into a compose project.
func project(name, service string) []string {
	return []string{
		"--label", "com.docker.compose.project=" + name,
		"--label", "com.docker.compose.service=" + service,
	}
}

func dump(t testing.TB, docs []tracedDoc) {
	t.Helper()
	for i := range docs {
		d := &docs[i].Iotrace
		if docs[i].Event.Dataset == "iotrace.io" {
			t.Logf("%v %s %q read %d write %d (meta %d) basis %+v", d.Group.Name, d.Device.Name, docs[i].Container.Name,
				d.Read.Bytes, d.Write.Bytes, d.Write.MetaBytes, d.Basis)
		}
	}
}
