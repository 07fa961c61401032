//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// TestRefusedByKernel lets the kernel refuse one bpf(2) call after the other while
// everything is loaded and attached. A refused source does not stop the others;
// otherwise the run ends with one line. Nothing is left behind.
func TestRefusedByKernel(t *testing.T) {
	before := programs(t)
	log := filepath.Join(t.TempDir(), "strace")
	run := func(inject ...string) ended {
		args := append([]string{"-f", "-o", log, "-e", "trace=bpf"}, inject...)
		return finish(t, exec.Command("strace", append(args, binary(t), "--vxlan=false", "--output", "ndjson", "0.05", "1")...))
	}
	whole := attachedSources(t, run())
	if len(whole) < 2 {
		t.Fatalf("sources %v: at least two are needed here, block and FUSE", whole)
	}
	codes := map[int]int{}
	partial := map[string]int{}
	all := func() bool {
		return codes[exitOK] > 0 && codes[exitFailed]+codes[exitUnsupported] > 0 && len(partial) > 0
	}
	// strace counts the calls of each thread, so a run has several refused calls, and
	// not the same ones each time.
	for n := 0; n < 30 || n < 90 && !all(); n++ {
		i := 1 + n%30*3 + n/30
		errno := []string{"EPERM", "ENOMEM", "EINVAL"}[i/3%3]
		got := run("-e", fmt.Sprintf("inject=bpf:error=%s:when=%d", errno, i))
		codes[got.code]++
		switch got.code {
		case exitOK:
			if now := attachedSources(t, got); len(now) < len(whole) {
				partial[strings.Join(now, " ")]++
			}
		case exitFailed, exitUnsupported:
			if !strings.HasPrefix(got.stderr, "iotrace-bpf: ") {
				t.Errorf("call %d, %s: exit code %d and %q", i, errno, got.code, got.stderr)
			}
		default:
			t.Errorf("call %d, %s: exit code %d and %q", i, errno, got.code, got.stderr)
		}
	}
	nothingLeft(t, before)
	t.Logf("exit codes %v; went on with fewer sources: %v", codes, partial)
	if !all() {
		t.Errorf("exit codes %v, fewer sources %v: each kind of end should be there", codes, partial)
	}
}

// attachedSources returns the sources of a run's last status.
func attachedSources(t *testing.T, got ended) (attached []string) {
	t.Helper()
	var status struct {
		Iotrace struct {
			Sources map[string]struct{ Attached bool }
		}
	}
	for line := range strings.Lines(got.stdout) {
		if strings.Contains(line, `"iotrace.status"`) {
			if err := json.Unmarshal([]byte(line), &status); err != nil {
				t.Fatal(err)
			}
		}
	}
	if status.Iotrace.Sources == nil {
		t.Fatalf("no interval: exit code %d, %s", got.code, got.stderr)
	}
	for name, s := range status.Iotrace.Sources {
		if s.Attached {
			attached = append(attached, name)
		}
	}
	slices.Sort(attached)
	return attached
}

// TestTermFlushes: after SIGTERM, as from systemd, every output is complete.
func TestTermFlushes(t *testing.T) {
	dir := t.TempDir()
	d := newDisk(t, 128)
	before := d.stat(t)
	recording, page, spool := filepath.Join(dir, "recording"), filepath.Join(dir, "report.html"), filepath.Join(dir, "spool")
	r := trace(t, "--source", "block", "--by", "device", "--interval", "1h", "--filter", "device="+d.name(),
		"--record", recording, "--report", page, "--elasticsearch", "http://127.0.0.1:1", "--elasticsearch-spool", spool)
	mustRun(t, "dd", "if=/dev/zero", "of="+d.dev, "bs=64k", "count=997", "oflag=direct")
	d.flush(t)
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-r.done
	err := r.cmd.Wait()
	t.Logf("ended: %v\n%s", err, r.stderr.String())
	want := d.stat(t).minus(before).writeBytes
	if want != 997*64<<10 {
		t.Fatalf("/proc/diskstats has %d bytes", want)
	}
	if got := sum(r.seen(), d.match).write; got != want {
		t.Errorf("standard output has %d bytes, want %d", got, want)
	}
	replay := finish(t, exec.Command(binary(t), "replay", recording, "--output", "ndjson", "--by", "device", "--filter", "device="+d.name()))
	var docs []tracedDoc
	for line := range strings.Lines(replay.stdout) {
		var doc tracedDoc
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		docs = append(docs, doc)
	}
	if got := sum(docs, d.match).write; got != want || replay.code != exitOK {
		t.Errorf("the recording has %d bytes (exit code %d), want %d\n%s", got, replay.code, want, replay.stderr)
	}
	html, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(html, []byte("</html>")) || !bytes.Contains(html, []byte(d.name())) {
		t.Errorf("the report is not whole (%d bytes, %v)", len(html), err)
	}
	var spooled int64
	filepath.Walk(spool, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			spooled += info.Size()
			if info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s can be read by others: %v", path, info.Mode())
			}
		}
		return nil
	})
	if spooled == 0 {
		t.Error("the spool is empty")
	}
	for _, path := range []string{recording, page} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v: not private", path, info.Mode(), err)
		}
	}
}

// TestRecordFullDisk: a full disk ends the recording, not the run.
func TestRecordFullDisk(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, "mount", "-t", "tmpfs", "-o", "size=64k", "none", dir)
	t.Cleanup(func() { mustRun(t, "umount", dir) })
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 56<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, 64)
	before := d.stat(t)
	r := trace(t, "--source", "block", "--by", "process,device", "--interval", "20ms", "--record", filepath.Join(dir, "recording"))
	enginetest.Poll(t, 30*time.Second, "the recording's loss is reported", func() bool {
		mustRun(t, "dd", "if=/dev/zero", "of="+d.dev, "bs=4k", "count=101", "oflag=direct")
		return lost(r.seen(), "exports") > 0
	})
	d.flush(t)
	delta := d.stat(t).minus(before)
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-r.done
	r.cmd.Wait() // the recording's end may not fit either
	if got := sum(r.seen(), d.match).write; got != delta.writeBytes {
		t.Errorf("rows have %d bytes, /proc/diskstats %d", got, delta.writeBytes)
	}
	if s := r.stderr.String(); !strings.Contains(s, "no space left") || strings.Contains(s, "panic") {
		t.Errorf("standard error: %q", s)
	}
}

// TestDeviceRemoved: a disk is removed under load; its rows keep its name.
func TestDeviceRemoved(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, "mount", "-t", "tmpfs", "-o", "size=100m", "none", dir)
	t.Cleanup(func() { mustRun(t, "umount", "-l", dir) })
	file := filepath.Join(dir, "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64*mib); err != nil {
		t.Fatal(err)
	}
	d := &disk{dev: mustRun(t, "losetup", "--find", "--show", file)}
	before := d.stat(t)
	r := trace(t, "--source", "block", "--by", "device", "--interval", "100ms")
	fio := exec.Command("fio", "--name=load", "--filename="+d.dev, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=io_uring",
		"--direct=1", "--thread", "--time_based", "--runtime=60", "--output-format=terse")
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, 30*time.Second, "there is load", func() bool { return d.stat(t).minus(before).writes > 20_000 })
	mustRun(t, "losetup", "--detach", d.dev) // it goes with its last user
	fio.Process.Kill()
	fio.Wait()
	enginetest.Poll(t, 20*time.Second, d.dev+" is gone", func() bool {
		_, err := os.Stat("/sys/block/" + d.name() + "/loop")
		return os.IsNotExist(err)
	})
	d.flush(t)
	docs := r.stop(t)
	equalDiskstats(t, d, docs, before)
}

// TestCgroupStorm: thousands of cgroups are made, write and are removed within an
// interval.
func TestCgroupStorm(t *testing.T) {
	d := newDisk(t, 256)
	r := trace(t, "--source", "block", "--by", "cgroup,device", "--interval", "10s", "--filter", "device="+d.name())
	before := d.stat(t)
	o := newOwners(t, d, 5000, 1)
	o.begin(t)
	o.expect(t, "done")
	o.in.Close()
	if err := o.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range o.cgroups {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	paths := o.cgroups
	o.cgroups = nil // gone
	d.flush(t)
	docs := r.stop(t)
	equalDiskstats(t, d, docs, before)
	got, path := map[string]uint64{}, map[string]string{} // a slow machine needs several intervals
	for i := range docs {
		if doc := &docs[i]; doc.Event.Dataset == "iotrace.io" && d.match(doc) {
			c := doc.Iotrace.Cgroup
			got[c.ID] += doc.Iotrace.Write.Bytes
			path[c.ID] = c.Path
		}
	}
	h, err := attribute.FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for i, id := range o.ids {
		if got[id] != o.bytes(i) || path[id] != strings.TrimPrefix(paths[i], h.Mount) {
			wrong++
		}
	}
	if wrong != 0 || lost(docs, "notices") != 0 {
		t.Errorf("%d of %d dead cgroups without their bytes or their name; %d notices lost", wrong, len(o.ids), lost(docs, "notices"))
	}
}

// TestSoak is a day in half a minute: cgroups, processes and disks come and go all the
// time, at an interval of 20 ms. Memory and open files do not grow. SOAK=2h makes
// it longer.
func TestSoak(t *testing.T) {
	length := 25 * time.Second
	if d, err := time.ParseDuration(os.Getenv("SOAK")); err == nil {
		length = d
	}
	h, err := attribute.FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp(h.Mount, "soak")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		enginetest.Poll(t, 20*time.Second, parent+" is empty", func() bool { return os.Remove(parent) == nil })
	})
	d := newDisk(t, 64)
	before := d.stat(t)
	ready := filepath.Join(t.TempDir(), "ready")
	var stderr bytes.Buffer
	sums := &soakSums{disk: d}
	cmd := exec.Command(binary(t), "--output", "ndjson", "--by", "container,process,device", "--interval", "20ms",
		"--ready-file", ready, "--record", filepath.Join(t.TempDir(), "recording"), "--record-size", "1MiB")
	cmd.Stdout, cmd.Stderr = sums, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	enginetest.Poll(t, 30*time.Second, "iotrace-bpf is attached", func() bool {
		_, err := os.Stat(ready)
		return err == nil
	})
	var memory, files []int
	rounds := 0
	pace := time.NewTicker(10 * time.Millisecond) // a hundred cgroups a second
	defer pace.Stop()
	for end := time.Now().Add(length); time.Now().Before(end); rounds++ {
		<-pace.C
		// Make a cgroup with a container's name, write in it, and remove it.
		dir := filepath.Join(parent, fmt.Sprintf("docker-%064x.scope", rounds))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		mustRun(t, "sh", "-c", fmt.Sprintf("echo $$ >%s/cgroup.procs; exec dd if=/dev/zero of=%s bs=4k count=7 oflag=direct status=none", dir, d.dev))
		enginetest.Poll(t, 10*time.Second, dir+" is empty", func() bool { return os.Remove(dir) == nil })
		if rounds%50 == 0 {
			churnDisk(t)
		}
		if rounds%10 == 0 {
			memory = append(memory, residentKiB(t, cmd.Process.Pid))
			open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, len(open))
		}
	}
	d.flush(t)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	want := d.stat(t).minus(before).writeBytes
	if sums.bytes != want || want != uint64(rounds)*7*4096 {
		t.Errorf("%d bytes in all intervals, /proc/diskstats has %d", sums.bytes, want)
	}
	quarter := len(memory) / 4
	first, last := slices.Max(memory[:quarter]), slices.Max(memory[len(memory)-quarter:])
	t.Logf("%d containers, %d intervals; resident %d KiB in the first quarter, %d in the last; files %d, %d",
		rounds, sums.reports, first, last, slices.Max(files[:quarter]), slices.Max(files[len(files)-quarter:]))
	if last > first+first/4+4096 {
		t.Errorf("resident memory grew from %d to %d KiB: %v", first, last, memory)
	}
	if a, b := slices.Max(files[:quarter]), slices.Max(files[len(files)-quarter:]); b > a+2 {
		t.Errorf("open files grew from %d to %d", a, b)
	}
}

// churnDisk makes a disk, uses it and removes it.
func churnDisk(t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	dev := mustRun(t, "losetup", "--find", "--show", file)
	mustRun(t, "dd", "if=/dev/zero", "of="+dev, "bs=4k", "count=3", "oflag=direct", "status=none")
	mustRun(t, "losetup", "--detach", dev)
}

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// soakSums adds up what is printed without keeping it.
type soakSums struct {
	disk    *disk
	part    []byte
	bytes   uint64
	reports int
}

func (s *soakSums) Write(p []byte) (int, error) {
	s.part = append(s.part, p...)
	for {
		i := bytes.IndexByte(s.part, '\n')
		if i < 0 {
			return len(p), nil
		}
		var doc tracedDoc
		if err := json.Unmarshal(s.part[:i], &doc); err != nil {
			return 0, err
		}
		s.part = append(s.part[:0], s.part[i+1:]...)
		switch {
		case doc.Event.Dataset == "iotrace.status":
			s.reports++
		case s.disk.match(&doc):
			s.bytes += doc.Iotrace.Write.Bytes
		}
	}
}
