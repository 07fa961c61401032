//go:build integration

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// TestOverload pushes the tracer over every limit it has. Totals stay equal to
// /proc/diskstats to the byte, and what is lost is counted.
func TestOverload(t *testing.T) {
	t.Run("OneGroup", testOneGroup)
	t.Run("ManyOwners", testManyOwners)
	t.Run("SmallestRing", testSmallestRing)
	t.Run("Stopped", testStoppedReader)
	t.Run("ExcludeSelf", testExcludeSelf)
}

// owners are cgroups, and a process that writes on behalf of each.
type owners struct {
	cgroups []string // directories
	ids     []string // as documents have them
	rounds  int

	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// bytes is the number of bytes that each round writes as cgroup i.
func (o *owners) bytes(i int) uint64 { return uint64(i%5+1) * 4096 * uint64(o.rounds) }

// newOwners makes n cgroups and a process with a page of each, ready to write.
func newOwners(t testing.TB, d *disk, n, rounds int) *owners {
	t.Helper()
	h, err := attribute.FindHierarchy("")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "owners")
	mustRun(t, "go", "build", "-o", bin, "./testdata/owners")
	parent, err := os.MkdirTemp(h.Mount, "owners")
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	t.Cleanup(func() {
		for _, dir := range append(dirs, parent) {
			enginetest.Poll(t, 20*time.Second, dir+" is empty", func() bool {
				err := os.Remove(dir)
				return err == nil || errors.Is(err, fs.ErrNotExist) // the test may have removed it
			})
		}
	})
	for i := range n {
		dir := filepath.Join(parent, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return startOwners(t, bin, d, rounds, dirs)
}

// startOwners starts the process for cgroups that are there.
func startOwners(t testing.TB, bin string, d *disk, rounds int, cgroups []string) *owners {
	t.Helper()
	o := &owners{cgroups: cgroups, rounds: rounds}
	for _, dir := range cgroups {
		o.ids = append(o.ids, strconv.FormatUint(inode(t, dir), 10))
	}
	o.cmd = exec.Command(bin, append([]string{d.dev, strconv.Itoa(rounds)}, o.cgroups...)...)
	o.cmd.Stderr = os.Stderr
	var err error
	if o.in, err = o.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	o.out = bufio.NewReader(out)
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.cmd.Process.Kill(); o.cmd.Wait() })
	o.expect(t, "ready")
	return o
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func (o *owners) expect(t testing.TB, want string) {
	t.Helper()
	if line, err := o.out.ReadString('\n'); err != nil || line != want+"\n" {
		t.Fatalf("owners said %q (%v), want %q", line, err, want)
	}
}

func (o *owners) begin(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(o.in, "go\n"); err != nil {
		t.Fatal(err)
	}
}

// end ends the process, so that its cgroups can be removed.
func (o *owners) end(t testing.TB) {
	t.Helper()
	o.in.Close()
	if err := o.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// fio sends a number of write requests to a disk at full speed.
func fioCommand(d *disk, requests int) *exec.Cmd {
	return exec.Command("fio", "--name=load", "--filename="+d.dev, "--rw=randwrite", "--bs=4k", "--iodepth=64",
		"--ioengine=io_uring", "--direct=1", "--number_ios="+strconv.Itoa(requests), "--size=100%", "--norandommap",
		"--io_size=100g", "--output-format=terse")
}

// lost adds up a loss counter over all intervals.
func lost(docs []tracedDoc, which string) (n uint64) {
	for i := range docs {
		n += docs[i].Iotrace.Lost[which]
	}
	return n
}

// equalDiskstats fails unless all rows of the disk add up to what the kernel counted.
func equalDiskstats(t *testing.T, d *disk, docs []tracedDoc, before diskStat) {
	t.Helper()
	delta := d.stat(t).minus(before)
	all := sum(docs, d.match)
	if all.write != delta.writeBytes || all.read != delta.readBytes || all.discard != delta.discardBytes {
		t.Errorf("rows: %d written, %d read, %d discarded; /proc/diskstats: %d, %d, %d",
			all.write, all.read, all.discard, delta.writeBytes, delta.readBytes, delta.discardBytes)
	}
	if all.writeOps < delta.writes {
		t.Errorf("rows: %d writes; /proc/diskstats: %d", all.writeOps, delta.writes)
	}
	if n := lost(docs, "bytes") + lost(docs, "misses"); n != 0 {
		t.Errorf("%d bytes or program runs lost: %v", n, lost(docs, "bytes"))
	}
	if delta.writes < 10_000 {
		t.Errorf("%d writes are no load", delta.writes)
	}
}

// testOneGroup: with room for a single row, all other I/O counts under (other).
func testOneGroup(t *testing.T) {
	for _, flags := range [][]string{
		{"--max-groups", "1"},
		{"--max-groups", "8"},
		{"--max-groups", "8", "--latency=false"},
		{"--max-groups", "8", "--by", "process,cgroup,device"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			d := newDisk(t, 256)
			o := newOwners(t, d, 1000, 20)
			before := d.stat(t)
			args := append([]string{"--source", "block", "--interval", "100ms"}, flags...)
			if !slices.Contains(flags, "--by") {
				args = append(args, "--by", "cgroup,device")
			}
			r := trace(t, args...)
			fio := fioCommand(d, 400_000)
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			o.begin(t)
			o.expect(t, "done")
			if err := fio.Wait(); err != nil {
				t.Fatal(err)
			}
			d.flush(t)
			docs := r.stop(t)
			equalDiskstats(t, d, docs, before)
			other := sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Iotrace.Owner == "other" })
			groups := lost(docs, "groups")
			if other.write == 0 || groups < other.writeOps {
				t.Errorf("%d bytes in %d I/Os under (other), %d counted as such", other.write, other.writeOps, groups)
			}
			t.Logf("%d writes, %d of them under (other); lost %v", sum(docs, d.match).writeOps, other.writeOps, groups)
		})
	}
}

// testManyOwners: ten thousand cgroups, each with the bytes that it wrote and no others.
func testManyOwners(t *testing.T) {
	d := newDisk(t, 512)
	o := newOwners(t, d, 10_000, 2)
	before := d.stat(t)
	r := trace(t, "--source", "block", "--by", "cgroup,device", "--interval", "1s")
	fio := fioCommand(d, 400_000)
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	o.begin(t)
	o.expect(t, "done")
	if err := fio.Wait(); err != nil {
		t.Fatal(err)
	}
	d.flush(t)
	docs := r.stop(t)
	equalDiskstats(t, d, docs, before)
	if n := lost(docs, "groups"); n != 0 {
		t.Errorf("%d I/Os under (other), though there was room", n)
	}
	got := map[string]uint64{}
	for i := range docs {
		if doc := &docs[i]; doc.Event.Dataset == "iotrace.io" && d.match(doc) {
			got[doc.Iotrace.Cgroup.ID] += doc.Iotrace.Write.Bytes
		}
	}
	wrong := 0
	for i, id := range o.ids {
		if got[id] != o.bytes(i) {
			wrong++
			if wrong < 5 {
				t.Errorf("cgroup %s wrote %d bytes, reported are %d", id, o.bytes(i), got[id])
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d cgroups are wrong", wrong, len(o.ids))
	}
}

// testSmallestRing: every event that does not fit into the ring of --events counts as
// lost.
func testSmallestRing(t *testing.T) {
	for _, latency := range []string{"--latency=true", "--latency=false"} {
		t.Run(latency, func(t *testing.T) {
			d := newDisk(t, 256)
			before, others := d.stat(t), otherRequests(t, d)
			r := trace(t, "--source", "block", "--events", "--event-buffer", "4096", "--by", "cgroup,device",
				"--filter", "device="+d.name(), "--interval", "200ms", latency)
			if out, err := fioCommand(d, 150_000).CombinedOutput(); err != nil {
				t.Fatalf("fio: %v\n%s", err, out)
			}
			d.flush(t)
			docs := r.stop(t)
			equalEvents(t, d, docs, before, others)
			if lost(docs, "records") == 0 {
				t.Error("nothing lost: this was no overload")
			}
		})
	}
}

// equalEvents fails unless every request of the disk has its event or is counted
// as lost.
func equalEvents(t *testing.T, d *disk, docs []tracedDoc, before diskStat, othersBefore uint64) {
	t.Helper()
	delta, others := d.stat(t).minus(before), otherRequests(t, d)-othersBefore
	var events, bytes uint64
	for i := range docs {
		if doc := &docs[i]; doc.Event.Dataset == "iotrace.event" && d.match(doc) {
			events++
			bytes += doc.Iotrace.Request.Bytes
		}
	}
	records, latencies, misses := lost(docs, "records"), lost(docs, "latencies"), lost(docs, "misses")
	t.Logf("%d requests: %d events, %d records and %d latencies lost, %d runs skipped", delta.reads+delta.writes, events, records, latencies, misses)
	if events == 0 {
		t.Error("no event at all")
	}
	// Other disks of the machine may have lost some as well.
	got, want := events+records+latencies+misses, delta.reads+delta.writes+delta.discards
	if got < want || got > want+others {
		t.Errorf("%d events, %d lost; /proc/diskstats has %d requests, and %d of other disks", events, got-events, want, others)
	}
	for i := range docs {
		if rss := docs[i].Iotrace.Self.RSS; rss > 300*mib {
			t.Fatalf("%d bytes of memory", rss)
		}
	}
	if bytes > delta.readBytes+delta.writeBytes+delta.discardBytes {
		t.Errorf("events have %d bytes, /proc/diskstats %d", bytes, delta.writeBytes)
	}
}

// otherRequests counts the requests, flushes too, of all disks but one.
func otherRequests(t *testing.T, d *disk) (n uint64) {
	t.Helper()
	data, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if _, err := os.Stat(filepath.Join("/sys/block", f[2])); err != nil || f[2] == d.name() {
			continue
		}
		for _, i := range []int{3, 7, 14, 18} {
			ios, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				t.Fatalf("/proc/diskstats: %v", err)
			}
			n += ios
		}
	}
	return n
}

// testStoppedReader: the tracer is stopped for seconds, at full load.
func testStoppedReader(t *testing.T) {
	for _, events := range []bool{false, true} {
		t.Run(fmt.Sprintf("events=%v", events), func(t *testing.T) {
			d := newDisk(t, 256)
			o := newOwners(t, d, 2000, 20)
			before, others := d.stat(t), otherRequests(t, d)
			args := []string{"--source", "block", "--by", "cgroup,device", "--filter", "device=" + d.name(), "--interval", "100ms"}
			if events {
				args = append(args, "--events", "--event-buffer", "65536")
			}
			r := trace(t, args...)
			fio := fioCommand(d, 1_000_000)
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			o.begin(t)
			o.expect(t, "done")
			if err := fio.Wait(); err != nil {
				t.Fatal(err)
			}
			if err := r.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			d.flush(t)
			docs := r.stop(t)
			if events {
				equalEvents(t, d, docs, before, others)
				return
			}
			equalDiskstats(t, d, docs, before)
			for i, id := range o.ids {
				got := sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Iotrace.Cgroup.ID == id })
				if got.write != o.bytes(i) {
					t.Fatalf("cgroup %s wrote %d bytes, reported are %d", id, o.bytes(i), got.write)
				}
			}
		})
	}
}

// testExcludeSelf: the program's own writes are reported, but have no row.
func testExcludeSelf(t *testing.T) {
	d := newDisk(t, 256)
	d.format(t, mkExt4()...)
	before := d.stat(t)
	// With its recording on the traced disk, the program would trace its own writes for
	// ever.
	r := trace(t, "--source", "block", "--by", "process,device", "--filter", "device="+d.name(), "--interval", "50ms",
		"--record", filepath.Join(d.mount, "recording"), "--exclude-self")
	if err := os.WriteFile(filepath.Join(d.mount, "other"), make([]byte, 10*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, 30*time.Second, "some of the recording is on the disk", func() bool {
		d.flush(t)
		var own uint64
		for _, doc := range r.seen() {
			own += doc.Iotrace.Self.Write
		}
		return own > 0
	})
	docs := r.stop(t)
	delta := d.stat(t).minus(before)
	all := sum(docs, d.match)
	var own uint64
	for i := range docs {
		own += docs[i].Iotrace.Self.Write
		if p := docs[i].Process; p.PID == uint32(r.cmd.Process.Pid) {
			t.Fatalf("a row of its own: %+v", docs[i])
		}
	}
	// Only /proc/diskstats has what it wrote after its last interval.
	if all.write < 10*mib || all.write+own > delta.writeBytes {
		t.Errorf("%d bytes in rows, %d of its own; /proc/diskstats has %d", all.write, own, delta.writeBytes)
	}
	if own == 0 {
		t.Error("nothing of its own was seen")
	}
}
