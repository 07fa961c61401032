//go:build integration

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

const mib = 1 << 20

// TestBlock compares the rows of block devices with /proc/diskstats and with the
// reads and writes of real containers.
func TestBlock(t *testing.T) {
	engine := enginetest.Start(t)
	t.Run("StackedLoop", func(t *testing.T) { testStackedLoop(t, engine) })
	t.Run("TwoProjects", func(t *testing.T) { testTwoProjects(t, engine) })
	t.Run("Overwrite", func(t *testing.T) { testOverwrite(t, engine) })
	t.Run("Reads", func(t *testing.T) { testReads(t, engine) })
	t.Run("ShortLived", func(t *testing.T) { testShortLived(t, engine) })
	t.Run("HostileNames", func(t *testing.T) { testHostileNames(t, engine) })
	t.Run("Process", func(t *testing.T) { testProcess(t, engine) })
	t.Run("Events", func(t *testing.T) { testEvents(t, engine) })
	t.Run("Zram", func(t *testing.T) { testZram(t, engine) })
	t.Run("EngineStopped", func(t *testing.T) { testEngineStopped(t, engine) })
}

func mkExt4() []string {
	return []string{"mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"}
}

// testStackedLoop writes 200 MiB through stacked block devices: they count once.
// docker stats shows 393 MB.
func testStackedLoop(t *testing.T, engine *enginetest.Engine) {
	lower := newDisk(t, 900)
	lower.format(t, mkExt4()...)
	upper := loopOver(t, filepath.Join(lower.mount, "image"), 700)
	upper.format(t, mkExt4()...)
	for round := range 3 {
		lower.flush(t)
		before := lower.stat(t)
		r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "300ms")
		name := fmt.Sprintf("story%d", round)
		engine.Docker(t, "run", "--name", name, "-v", upper.mount+":/data", enginetest.Image, "sh", "-c",
			fmt.Sprintf("dd if=/dev/zero of=/data/a%d bs=1M count=100 && dd if=/dev/zero of=/data/b%d bs=1M count=100", round, round))
		upper.flush(t)
		lower.flush(t)
		docs := r.stop(t)
		engine.Docker(t, "rm", name)
		delta := lower.stat(t).minus(before)

		mine := func(d *tracedDoc) bool { return lower.match(d) && d.Container.Name == name }
		all := sum(docs, lower.match)
		if all.write != delta.writeBytes || all.read != delta.readBytes || all.discard != delta.discardBytes {
			t.Errorf("round %d: rows of the leaf device: %d written, %d read, %d discarded; /proc/diskstats: %d, %d, %d",
				round, all.write, all.read, all.discard, delta.writeBytes, delta.readBytes, delta.discardBytes)
		}
		if all.readOps != delta.reads {
			t.Errorf("round %d: %d reads, /proc/diskstats has %d", round, all.readOps, delta.reads)
		}
		got := sum(docs, mine)
		near(t, fmt.Sprintf("round %d: container on the leaf device, without metadata", round), got.write-got.metaWrite, 200*mib)
		if t.Failed() {
			dump(t, docs)
			return
		}
		stacked := sum(docs, func(d *tracedDoc) bool { return upper.match(d) && !d.Iotrace.Device.Stacked })
		if stacked.docs != 0 {
			t.Errorf("round %d: %s is not marked as stacked", round, upper.name())
		}
	}
}

// testTwoProjects: two projects write into the page cache at the same time, and a
// third process calls sync. The bytes belong to the writers.
func testTwoProjects(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 600)
	d.format(t, mkExt4()...)
	before := d.stat(t)
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "project,service,device", "--interval", "200ms")
	write := func(p string, mibs int) *exec.Cmd {
		args := append([]string{"run", "--rm"}, project(p, "db")...)
		return engine.Command(append(args, "-v", d.mount+":/data", enginetest.Image,
			"dd", "if=/dev/zero", "of=/data/"+p, "bs=1M", fmt.Sprintf("count=%d", mibs))...)
	}
	a, b := write("shop", 151), write("blog", 67)
	for _, c := range []*exec.Cmd{a, b} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*exec.Cmd{a, b} {
		if err := c.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	d.flush(t) // the outsider's sync
	docs := r.stop(t)
	delta := d.stat(t).minus(before)
	all := sum(docs, d.match)
	if all.write != delta.writeBytes {
		t.Errorf("%d bytes in all rows, /proc/diskstats has %d", all.write, delta.writeBytes)
	}
	var named uint64
	for p, want := range map[string]uint64{"shop": 151 * mib, "blog": 67 * mib} {
		got := sum(docs, func(doc *tracedDoc) bool {
			return d.match(doc) && doc.Iotrace.Project.Name == p && doc.Iotrace.Service.Name == "db"
		})
		near(t, p, got.write-got.metaWrite, want)
		named += got.write
	}
	if rest := all.write - named; rest*100 >= all.write {
		t.Errorf("%d of %d bytes belong to no project", rest, all.write)
	}
	if t.Failed() {
		dump(t, docs)
	}
}

// testOverwrite: one file cached by A and then overwritten by B counts for B.
func testOverwrite(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 300)
	d.format(t, mkExt4()...)
	start := func(p string) string {
		args := append([]string{"run", "-d", "--rm", "--name", "over-" + p}, project(p, "app")...)
		return engine.Docker(t, append(args, "-v", d.mount+":/data", enginetest.Image, "sleep", "600")...)
	}
	a, b := start("reader"), start("writer")
	t.Cleanup(func() { engine.Docker(t, "kill", a, b) })
	engine.Docker(t, "exec", a, "sh", "-c", "dd if=/dev/zero of=/data/file bs=1M count=32 && sync && cat /data/file >/dev/null")
	d.flush(t)
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "project,device", "--interval", "200ms")
	engine.Docker(t, "exec", b, "dd", "if=/dev/zero", "of=/data/file", "bs=1M", "count=32", "conv=notrunc")
	d.flush(t)
	docs := r.stop(t)
	by := func(p string) total {
		return sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Iotrace.Project.Name == p })
	}
	if got := by("writer"); got.write-got.metaWrite != 32*mib || got.dirtier == 0 {
		t.Errorf("writer: %+v, want 32 MiB of data by dirtier", got)
	}
	if got := by("reader"); got.write > 64<<10 {
		t.Errorf("reader: %d bytes written, want none but metadata", got.write)
	}
	if t.Failed() {
		dump(t, docs)
	}
}

// testReads: every way to read counts for the reader, to the byte.
func testReads(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 300)
	d.format(t, mkExt4()...)
	const size = 24 * mib
	if err := os.WriteFile(filepath.Join(d.mount, "file"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	worker := buildReader(t)
	for _, how := range []string{"buffered", "direct", "mmap"} {
		t.Run(how, func(t *testing.T) {
			d.flush(t)
			// Not drop_caches: it would affect other tests on the machine.
			mustRun(t, "umount", d.mount)
			mustRun(t, "mount", "-o", d.options, d.dev, d.mount)
			d.flush(t)
			before := d.stat(t)
			r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "200ms")
			name := "reads-" + how
			engine.Docker(t, "run", "--name", name, "-v", d.mount+":/data", "-v", worker+":/reader", enginetest.Image,
				"/reader", how, "/data/file")
			d.flush(t)
			docs := r.stop(t)
			engine.Docker(t, "rm", name)
			got := sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Container.Name == name })
			if got.read-got.metaRead != size {
				t.Errorf("%d bytes read and %d of metadata, want %d", got.read-got.metaRead, got.metaRead, size)
				dump(t, docs)
			}
			if all, delta := sum(docs, d.match), d.stat(t).minus(before); all.read != delta.readBytes {
				t.Errorf("%d bytes in all rows, /proc/diskstats has %d", all.read, delta.readBytes)
			}
		})
	}
}

// buildReader compiles the program that reads a file in the way its first
// argument says.
func buildReader(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "reader")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/reader")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the reader: %v\n%s", err, msg)
	}
	return out
}

// testShortLived: a container that is gone at once is still named.
func testShortLived(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 200)
	d.format(t, mkExt4()...)
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "1s")
	args := append([]string{"run", "--rm", "--name", "mayfly"}, project("insects", "may")...)
	engine.Docker(t, append(args, "-v", d.mount+":/data", enginetest.Image,
		"dd", "if=/dev/zero", "of=/data/mayfly", "bs=1M", "count=3", "conv=fsync")...)
	d.flush(t)
	docs := r.stop(t)
	got := sum(docs, func(doc *tracedDoc) bool {
		return d.match(doc) && doc.Container.Name == "mayfly" && doc.Iotrace.Project.Name == "insects" &&
			doc.Container.Image.Name+":"+strings.Join(doc.Container.Image.Tag, ",") == enginetest.Image
	})
	if got.write-got.metaWrite != 3*mib {
		t.Errorf("%d bytes under the right name, image and project, want %d", got.write-got.metaWrite, 3*mib)
		dump(t, docs)
	}
}

// testHostileNames: text from outside breaks neither JSON nor the terminal.
func testHostileNames(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 200)
	d.format(t, mkExt4()...)
	evil := "a\"b\\c\n\x1b[31mred\x1b]0;title\a\u202etxt"
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "project,label:evil,device", "--interval", "200ms")
	ready := filepath.Join(t.TempDir(), "ready")
	table := exec.Command(binary(t), "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "project,label:evil",
		"--interval", "200ms", "--filter", "container=*", "--ready-file", ready)
	table.Env = append(os.Environ(), "COLUMNS=300")
	var screen strings.Builder
	table.Stdout = &screen
	if err := table.Start(); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, 30*time.Second, "the table is attached", func() bool {
		_, err := os.Stat(ready)
		return err == nil
	})
	args := append([]string{"run", "--rm", "--label", "evil=" + evil}, project(evil, "x")...)
	engine.Docker(t, append(args, "-v", d.mount+":/data", enginetest.Image,
		"dd", "if=/dev/zero", "of=/data/evil", "bs=1M", "count=2", "conv=fsync")...)
	d.flush(t)
	docs := r.stop(t) // checks every line against its schema
	if err := table.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := table.Wait(); err != nil {
		t.Fatal(err)
	}
	got := sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Iotrace.Project.Name == evil })
	if got.write-got.metaWrite != 2*mib {
		t.Errorf("%d bytes under the hostile name, want %d", got.write-got.metaWrite, 2*mib)
		dump(t, docs)
	}
	for _, bad := range []string{"\x1b[31m", "\x1b]0;", "\u202e", "\a"} {
		if strings.Contains(screen.String(), bad) {
			t.Errorf("the table holds %q:\n%q", bad, screen.String())
		}
	}
	if !strings.Contains(screen.String(), "red") {
		t.Errorf("the table does not show the project:\n%s", screen.String())
	}
}

// testProcess: buffered writes of two processes of one container.
func testProcess(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 300)
	d.format(t, mkExt4()...)
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "process,device", "--interval", "200ms")
	engine.Docker(t, "run", "--rm", "-v", d.mount+":/data", enginetest.Image, "sh", "-c",
		"dd if=/dev/zero of=/data/one bs=1M count=20; head -c 41943040 /dev/zero >/data/two")
	d.flush(t)
	docs := r.stop(t)
	for name, want := range map[string]uint64{"dd": 20 * mib, "head": 40 * mib} {
		got := sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Process.Name == name })
		near(t, name, got.write-got.metaWrite, want)
	}
	if t.Failed() {
		dump(t, docs)
	}
}

// testEvents: one document per request, with the number and bytes that the kernel
// counted, except those counted as lost.
func testEvents(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 200)
	before := d.stat(t)
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "device", "--events", "--interval", "200ms")
	mustRun(t, "dd", "if=/dev/zero", "of="+d.dev, "bs=4k", "count=1009", "oflag=direct")
	enginetest.Poll(t, 20*time.Second, "the last event arrives", func() bool {
		docs := r.seen()
		n := lost(docs, "latencies") + lost(docs, "misses")
		for i := range docs {
			if doc := &docs[i]; doc.Event.Dataset == "iotrace.event" && d.match(doc) && doc.Event.Action == "write" {
				n++
			}
		}
		return n >= 1009
	})
	docs := r.stop(t)
	delta := d.stat(t).minus(before)
	var bytes, ops uint64
	for i := range docs {
		if doc := &docs[i]; doc.Event.Dataset == "iotrace.event" && d.match(doc) && doc.Event.Action == "write" {
			bytes += doc.Iotrace.Request.Bytes
			ops++
		}
	}
	without := lost(docs, "latencies") + lost(docs, "misses") // of any disk
	if ops > 1009 || ops+without < 1009 || bytes != ops*4096 || delta.writes != 1009 {
		t.Errorf("%d events with %d bytes, %d lost; /proc/diskstats has %d writes", ops, bytes, without, delta.writes)
	}
}

// testZram: a device without requests, made while the tracer runs.
func testZram(t *testing.T, engine *enginetest.Engine) {
	d := &disk{dev: "/dev/zram0"}
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "200ms")
	if err := os.WriteFile("/sys/block/zram0/disksize", []byte("200M"), 0o200); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Other mount namespaces release it a moment later.
		enginetest.Poll(t, 30*time.Second, "zram0 is free", func() bool {
			return os.WriteFile("/sys/block/zram0/reset", []byte("1"), 0o200) == nil
		})
	})
	enginetest.Poll(t, 20*time.Second, "the device is noticed", func() bool {
		mustRun(t, "dd", "if=/dev/zero", "of="+d.dev, "bs=4k", "count=1", "oflag=direct")
		return sum(r.seen(), d.match).write > 0
	})
	d.format(t, mkExt4()...)
	r.stop(t)
	r = trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "200ms")
	start := d.stat(t)
	engine.Docker(t, "run", "--rm", "--name", "squeeze", "-v", d.mount+":/data", enginetest.Image,
		"dd", "if=/dev/zero", "of=/data/file", "bs=1M", "count=17")
	d.flush(t)
	docs := r.stop(t)
	delta := d.stat(t).minus(start)
	if all := sum(docs, d.match); all.write != delta.writeBytes || all.read != delta.readBytes {
		t.Errorf("%d bytes written and %d read in all rows, /proc/diskstats has %d and %d",
			all.write, all.read, delta.writeBytes, delta.readBytes)
	}
	got := sum(docs, func(doc *tracedDoc) bool { return d.match(doc) && doc.Container.Name == "squeeze" })
	if got.write-got.metaWrite != 17*mib {
		t.Errorf("%d bytes, want %d", got.write-got.metaWrite, 17*mib)
	}
	if t.Failed() {
		dump(t, docs)
	}
}

// testEngineStopped: rows continue without names when the engine stops, and the
// names return with it.
func testEngineStopped(t *testing.T, engine *enginetest.Engine) {
	d := newDisk(t, 200)
	d.format(t, mkExt4()...)
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,device", "--interval", "200ms")
	engine.Halt(t)
	if err := os.WriteFile(filepath.Join(d.mount, "alone"), make([]byte, 7*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	d.flush(t)
	engine.Boot(t)
	enginetest.Poll(t, time.Minute, "names come back", func() bool {
		engine.Docker(t, "run", "--rm", "--name", "back", "-v", d.mount+":/data", enginetest.Image,
			"dd", "if=/dev/zero", "of=/data/back", "bs=1M", "count=1", "conv=fsync")
		return sum(r.seen(), func(doc *tracedDoc) bool { return doc.Container.Name == "back" }).write > 0
	})
	docs := r.stop(t)
	if got := sum(docs, d.match); got.write < 8*mib {
		t.Errorf("%d bytes written in all, want at least %d", got.write, 8*mib)
	}
}
