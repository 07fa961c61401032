//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestFUSE proves the fuse source: totals of a mount equal its daemon's count of
// reads and writes, to the byte and to the operation, and owners are right to the
// byte for every way to read or write a file.
func TestFUSE(t *testing.T) {
	suite{
		source: "fuse",
		quick:  oldestAndNewest,
		scenarios: []scenario{
			{name: "write_through", run: fuseWrites(guest.FUSEOptions{}), smoke: true},
			{name: "write_back", run: fuseWrites(guest.FUSEOptions{Writeback: true}), smoke: true},
			{name: "write_unbuffered", run: fuseWrites(guest.FUSEOptions{DirectIO: true})},
			{name: "direct", run: fuseDirect(guest.FUSEOptions{})},
			{name: "direct_write_back", run: fuseDirect(guest.FUSEOptions{Writeback: true})},
			{name: "direct_unbuffered", run: fuseDirect(guest.FUSEOptions{DirectIO: true})},
			{name: "read", run: fuseReads(guest.FUSEOptions{}), smoke: true},
			{name: "read_write_back", run: fuseReads(guest.FUSEOptions{Writeback: true})},
			{name: "read_unbuffered", run: fuseReads(guest.FUSEOptions{DirectIO: true})},
			{name: "answered_at_once", run: fuseAnswered, smoke: true},
			{name: "read_mapped", run: fuseReadMapped},
			{name: "mapped", run: fuseMapped(guest.FUSEOptions{})},
			{name: "mapped_write_back", run: fuseMapped(guest.FUSEOptions{Writeback: true})},
			{name: "overwrite", run: fuseOverwrite, smoke: true},
			{name: "shared_file", run: fuseShared},
			{name: "libaio", run: fuseLibaio(guest.FUSEOptions{})},
			{name: "libaio_write_back", run: fuseLibaio(guest.FUSEOptions{Writeback: true})},
			{name: "io_uring", run: fuseURing},
			{name: "waiting", run: fuseWaiting},
			{name: "copy_file_range", run: fuseCopy},
			{name: "fsync_by_other", run: fuseFsync},
			{name: "removed", run: fuseRemoved},
			{name: "before_start", run: fuseBeforeStart},
			{name: "small_files", run: fuseSmallFiles},
			{name: "many_cgroups", run: fuseManyCgroups},
			{name: "daemon_killed", run: fuseKilled},
			{name: "daemon_killed_write_back", run: fuseKilledWriteBack},
			{name: "aborted", run: fuseAborted},
			{name: "process", run: fuseProcess},
			{name: "mount", run: fuseMountNamed, smoke: true},
			{name: "events", run: fuseEvents},
			{name: "turns", run: fuseTurns},
			{name: "files", run: fuseFiles(guest.FUSEOptions{}), smoke: true, quick: onlyOn("7.3")},
			{name: "files_write_back", run: fuseFiles(guest.FUSEOptions{Writeback: true})},
			{name: "files_unbuffered", run: fuseFiles(guest.FUSEOptions{DirectIO: true})},
			{name: "loop", run: fuseLoop},
			{name: "loop_hangs", run: fuseLoopHangs},
			{name: "application", run: fuseApplication},
			{name: "passthrough", run: fusePassthrough, since: "6.12", why: "FUSE passthrough came with 6.9"},
			{name: "over_io_uring", run: fuseOverURing(false), since: "6.18", why: "FUSE over io_uring came with 6.14"},
			{name: "over_io_uring_write_back", run: fuseOverURing(true), since: "6.18", why: "FUSE over io_uring came with 6.14"},
			{name: "module", run: fuseModule, before: "6.12", why: "Debian builds FUSE into the kernel from 6.12 on"},
			{name: "module_at_once", run: fuseModuleAtOnce, before: "6.12", why: "Debian builds FUSE into the kernel from 6.12 on"},
			{name: "cost", run: fuseCost},
			{name: "bindfs", run: fuseBindfs},
			{name: "sshfs", run: fuseSSHFS},
		},
	}.test(t)
}

// fuseTrace is a tracer whose totals are compared with the daemon's.
type fuseTrace struct {
	*guest.Output
	g      *guest.Guest
	m      *guest.FUSEMount
	id     string
	tr     *guest.Tracer
	before guest.FUSECount // once the tracer was ready
	// earlier is the count before the tracer started, if requests may have come in
	// between.
	earlier guest.FUSECount
}

func traceFUSE(g *guest.Guest, m *guest.FUSEMount, args ...string) *fuseTrace {
	g.Helper()
	t := &fuseTrace{g: g, m: m, id: m.ID()}
	t.tr = g.Trace(append([]string{"--by", "cgroup,device", "--source", "fuse"}, args...)...)
	t.before = m.Count()
	t.earlier = t.before
	return t
}

// stop flushes dirty pages, ends the tracer and compares the totals.
func (t *fuseTrace) stop() guest.FUSECount {
	t.g.Helper()
	t.g.Sync()
	count := t.m.Count()
	truth, most := count.Sub(t.before), count.Sub(t.earlier)
	t.end()
	for _, c := range []struct {
		field       string
		least, most int64
	}{
		{"read.bytes", truth.ReadBytes, most.ReadBytes}, {"read.ops", truth.ReadOps, most.ReadOps},
		{"write.bytes", truth.WriteBytes, most.WriteBytes}, {"write.ops", truth.WriteOps, most.WriteOps},
	} {
		if n := t.sum(c.field); n < c.least || n > c.most {
			t.Equal(fmt.Sprintf("%s against the daemon, %d to %d", c.field, c.least, c.most), n, c.least)
		}
	}
	t.Equal("unattributed bytes", t.Sum("iotrace.write.bytes", "iotrace.device.id", t.id, "iotrace.owner", "unattributed")+
		t.Sum("iotrace.read.bytes", "iotrace.device.id", t.id, "iotrace.owner", "unattributed"), 0)
	t.lossless()
	return truth
}

// lossless fails if anything was lost. From 6.18 on the kernel sometimes skips runs,
// and lossless logs them: totals stay right, because programs without a redundant
// one only note who submitted a request and who made a page dirty.
func (t *fuseTrace) lossless() {
	t.g.Helper()
	for _, d := range t.Docs {
		for key := range d {
			switch {
			case !strings.HasPrefix(key, "iotrace.lost.") || d.Int(key) == 0:
			case key == "iotrace.lost.misses" && t.g.AtLeast(6, 18):
				t.g.Logf("the kernel skipped %d runs of programs without a redundant one", d.Int(key))
			default:
				t.g.Errorf("tracer lost something: %s is %d", key, d.Int(key))
			}
		}
	}
}

// end ends the tracer and compares nothing.
func (t *fuseTrace) end() { t.g.Helper(); t.Output = t.tr.Stop() }

// sum adds a field up over all owners.
func (t *fuseTrace) sum(field string) int64 {
	return t.Sum("iotrace."+field, "iotrace.source", "fuse", "iotrace.level", "wire", "iotrace.device.id", t.id)
}

func (t *fuseTrace) total(field string, want int64) {
	t.g.Helper()
	t.Equal(field+" against the daemon", t.sum(field), want)
}

func (t *fuseTrace) of(field string, c *guest.Cgroup) int64 {
	return t.at("wire", field, c)
}

func (t *fuseTrace) at(level, field string, c *guest.Cgroup) int64 {
	return t.Sum("iotrace."+field, "iotrace.source", "fuse", "iotrace.level", level, "iotrace.device.id", t.id, "iotrace.cgroup.path", c.Path())
}

// owns fails unless a cgroup read and wrote exactly these bytes.
func (t *fuseTrace) owns(name string, c *guest.Cgroup, read, write int64) {
	t.g.Helper()
	t.Equal(name+" read", t.of("read.bytes", c), read)
	t.Equal(name+" wrote", t.of("write.bytes", c), write)
}

func (t *fuseTrace) errors(c *guest.Cgroup) int64 {
	return t.of("read.errors", c) + t.of("write.errors", c) + t.of("metadata.errors", c)
}

// failed fails unless requests of a cgroup failed. A failing call may not reach its
// read or write: write(2) asks for an extended attribute first.
func (t *fuseTrace) failed(name string, c *guest.Cgroup) {
	t.g.Helper()
	if n := t.errors(c); n < 1 {
		t.g.Errorf("%s shows %d errors, want at least one", name, n)
	}
}

// fuseWrites: two cgroups write; with the write-back cache a third process makes
// the kernel flush, and the daemon never writes for itself.
func fuseWrites(o guest.FUSEOptions) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		m := g.FUSE(o)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		t := traceFUSE(g, m)
		fa, fb := pa.Open(m.File("a"), guest.Create), pb.Open(m.File("b"), guest.Create)
		fa.Write(0, sizeA)
		fb.Write(0, sizeB)
		if got := m.Count().Sub(t.before).WriteBytes; !o.Writeback && got != sizeA+sizeB {
			g.Errorf("the daemon got %d bytes of writes that do not wait, want %d", got, sizeA+sizeB)
		}
		t.stop()
		t.owns("a", a, 0, sizeA)
		t.owns("b", b, 0, sizeB)
		t.owns("daemon", m.Daemon, 0, 0)
	}
}

// fuseDirect: O_DIRECT, in small and in large blocks.
func fuseDirect(o guest.FUSEOptions) func(*guest.Guest) {
	return func(g *guest.Guest) {
		m := g.FUSE(o)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		t := traceFUSE(g, m)
		fa := pa.Open(m.File("a"), guest.Create|guest.Direct)
		fb := pb.Open(m.File("b"), guest.Create|guest.Direct)
		fa.WriteBlocks(0, 48*128<<10, 128<<10)
		fb.WriteBlocks(0, 2*4<<20, 4<<20)
		fb.ReadBlocks(0, 3*128<<10, 128<<10)
		fa.ReadBlocks(0, 4<<20, 4<<20)
		t.stop()
		t.owns("a", a, 4<<20, 48*128<<10)
		t.owns("b", b, 3*128<<10, 8<<20)
	}
}

// fuseAnswered: many small synchronous requests, one right after the other. If the
// daemon answers before the caller sleeps, the next request begins while the tracer
// still handles the end of the previous one.
func fuseAnswered(g *guest.Guest) {
	const block, blocks = 4096, 401
	m := g.FUSE(guest.FUSEOptions{})
	var cgroups []*guest.Cgroup
	var files []*guest.File
	for i := range 4 {
		c := g.Cgroup(fmt.Sprintf("writer-%d", i))
		cgroups = append(cgroups, c)
		files = append(files, c.Process().Open(m.File(fmt.Sprint(i)), guest.Create|guest.Direct))
	}
	t := traceFUSE(g, m)
	var all sync.WaitGroup
	for _, f := range files {
		all.Go(func() {
			f.WriteBlocks(0, blocks*block, block)
			f.ReadBlocks(0, blocks*block, block)
		})
	}
	all.Wait()
	t.stop()
	for i, c := range cgroups {
		t.owns(fmt.Sprintf("writer %d", i), c, blocks*block, blocks*block)
	}
}

// fuseReads: cold reads in blocks, by sendfile and direct; one cgroup reads each
// file, and the last read of a file returns fewer bytes than requested.
func fuseReads(o guest.FUSEOptions) func(*guest.Guest) {
	return func(g *guest.Guest) {
		m := g.FUSE(o)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		setup := g.Cgroup("setup").Process()
		for name, n := range map[string]int64{"a": sizeA, "b": sizeB, "sent": sizeC, "direct": sizeC} {
			f := setup.Open(m.File(name), guest.Create)
			f.Write(0, n)
			f.Close()
		}
		g.DropCaches()
		t := traceFUSE(g, m)
		pa.Open(m.File("a"), os.O_RDONLY).ReadBlocks(0, sizeA, 128<<10)
		pb.Open(m.File("b"), os.O_RDONLY).ReadBlocks(0, sizeB, 1<<20)
		pa.Open(m.File("sent"), os.O_RDONLY).Sendfile(0, sizeC)
		pb.Open(m.File("direct"), os.O_RDONLY|guest.Direct).ReadBlocks(0, 1<<20, 256<<10)
		t.stop()
		t.owns("a", a, sizeA+sizeC, 0)
		t.owns("b", b, sizeB+1<<20, 0)
	}
}

// fuseReadMapped: page faults read.
func fuseReadMapped(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	setup := g.Cgroup("setup").Process()
	for name, n := range map[string]int64{"a": 4 << 20, "b": 2 << 20} {
		f := setup.Open(m.File(name), guest.Create)
		f.Write(0, n)
		f.Close()
	}
	g.DropCaches()
	t := traceFUSE(g, m)
	pa.Open(m.File("a"), os.O_RDONLY).MapRead(0, 4<<20).Touch()
	pb.Open(m.File("b"), os.O_RDONLY).MapRead(0, 2<<20).Touch()
	t.stop()
	t.owns("a", a, 4<<20, 0)
	t.owns("b", b, 2<<20, 0)
}

// fuseMapped: stores to a mapping are written by msync or by a flusher thread.
func fuseMapped(o guest.FUSEOptions) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		m := g.FUSE(o)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		t := traceFUSE(g, m)
		fa, fb := pa.Open(m.File("a"), guest.Create), pb.Open(m.File("b"), guest.Create)
		fa.Truncate(4 << 20)
		fb.Truncate(2 << 20)
		ma, mb := fa.Map(0, 4<<20), fb.Map(0, 2<<20)
		ma.Store()
		mb.Store()
		ma.Msync()
		truth := t.stop()
		// The kernel first reads missing pages, one by one or by read-ahead. A page that
		// is flushed while a program fills it is written twice. The daemon counts by
		// file, and no page may be missing.
		for c, w := range map[*guest.Cgroup]struct {
			file string
			size int64
		}{a: {"a", 4 << 20}, b: {"b", 2 << 20}} {
			took := m.Written(w.file)
			t.Equal(w.file+" wrote", t.of("write.bytes", c), took)
			if took < w.size {
				g.Errorf("the daemon took %d bytes for %s, want %d", took, w.file, w.size)
			}
		}
		t.Equal("both wrote", t.of("write.bytes", a)+t.of("write.bytes", b), truth.WriteBytes)
		t.Equal("both read", t.of("read.bytes", a)+t.of("read.bytes", b), truth.ReadBytes)
	}
}

// fuseOverwrite: a read the file, so its pages are a's; b writes to them.
func fuseOverwrite(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true, KeepCache: true})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	setup := g.Cgroup("setup").Process()
	f := setup.Open(m.File("f"), guest.Create)
	f.Write(0, 4<<20)
	f.Fsync()
	g.DropCaches()
	t := traceFUSE(g, m)
	fa := pa.Open(m.File("f"), os.O_RDWR)
	fa.Read(0, 4<<20)
	fb := pb.Open(m.File("f"), os.O_RDWR)
	fb.Write(0, 4<<20)
	t.stop()
	t.owns("a", a, 4<<20, 0)
	t.owns("b", b, 0, 4<<20)
}

// fuseShared: a and b write the same file in turn, so that single requests hold
// pages of both.
func fuseShared(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true, KeepCache: true, MaxWrite: 1 << 20})
	a, b, c := g.Cgroup("a"), g.Cgroup("b"), g.Cgroup("c")
	pa, pb, pc := a.Process(), b.Process(), c.Process()
	t := traceFUSE(g, m)
	fa := pa.Open(m.File("f"), guest.Create)
	fb, fc := pb.Open(m.File("f"), os.O_RDWR), pc.Open(m.File("f"), os.O_RDWR)
	const page, turns = 4096, 101
	for i := int64(0); i < turns; i++ {
		fa.WriteBlocks(i*6*page, 3*page, 3*page)
		fb.WriteBlocks((i*6+3)*page, 2*page, 2*page)
		fc.WriteBlocks((i*6+5)*page, page, page)
	}
	truth := t.stop()
	if truth.WriteOps >= turns {
		g.Errorf("%d requests for %d turns: none has several owners, this proves nothing", truth.WriteOps, turns)
	}
	t.owns("a", a, 0, turns*3*page)
	t.owns("b", b, 0, turns*2*page)
	t.owns("c", c, 0, turns*page)
}

// fuseTurns: a and b overwrite the same pages one after the other, with a flush in
// between.
func fuseTurns(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true, KeepCache: true})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa, fb := pa.Open(m.File("f"), guest.Create), pb.Open(m.File("f"), guest.Create)
	t := traceFUSE(g, m)
	for range 3 {
		fa.Write(0, 1<<20)
		fa.Fsync()
		fb.Write(0, 1<<20)
		fa.Fsync()
	}
	t.stop()
	t.owns("a", a, 0, 3<<20)
	t.owns("b", b, 0, 3<<20)
}

// fuseLoop: a loop device keeps its disk in a file on FUSE. The loop driver's
// thread reads and writes that file for the device's users.
func fuseLoop(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	setup := g.Cgroup("setup").Process()
	f := setup.Open(m.File("image"), guest.Create)
	f.Write(0, 16<<20)
	f.Close()
	g.Modprobe("loop")
	loop := g.Loop(m.File("image")).Path()
	g.DropCaches()
	t := traceFUSE(g, m, "--source", "block")
	pa.Open(loop, os.O_RDWR|guest.Direct).WriteBlocks(0, 2<<20, 64<<10)
	pb.Open(loop, os.O_RDWR|guest.Direct).ReadBlocks(8<<20, 1<<20, 64<<10)
	g.Eventually("intervals", func() bool { return intervals(t.tr.Now()) > 4 })
	truth := t.stop()
	t.owns("a", a, 0, 2<<20)
	t.Equal("b wrote", t.of("write.bytes", b), 0)
	// The kernel reads the file ahead of b's requests.
	t.Equal("b read", t.of("read.bytes", b), truth.ReadBytes)
	// The tracer asks for the loop device's file, and so the driver asks the daemon for
	// attributes, which are cached for a second here.
	n := t.Sum("iotrace.metadata.ops", "iotrace.source", "fuse", "iotrace.device.id", t.id, "iotrace.cgroup.path", "/driver")
	if n > 2 {
		g.Errorf("the tracer itself made %d requests to the daemon", n)
	}
}

// fuseLoopHangs: a loop device over a file of a daemon that does not answer delays
// neither the tracer's start nor its intervals.
func fuseLoopHangs(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a, stuck := g.Cgroup("a").Process(), g.Cgroup("stuck").Process()
	f := stuck.Open(m.File("image"), guest.Create)
	f.Write(0, 16<<20)
	g.Loop(m.File("image"))
	disk := g.NVMe()
	m.Suspend()
	g.Cleanup(m.Resume)
	// Pages are cached: a read waits only once the file's attributes are stale.
	var enough atomic.Bool
	read := make(chan struct{})
	go func() {
		defer close(read)
		for !enough.Load() {
			f.TryRead(0, 4096, 4096)
		}
	}()
	g.Eventually("attributes stale", stuck.Waiting)
	tr := g.Trace("--by", "cgroup,device")
	a.Open(disk.Path(), os.O_RDWR|guest.Direct).WriteBlocks(0, 1<<20, 64<<10)
	seen := func(r *guest.Output) int64 {
		return r.Sum("iotrace.write.bytes", "iotrace.device.id", disk.ID(), "iotrace.source", "block")
	}
	g.Eventually("an interval while the daemon hangs", func() bool { return seen(tr.Now()) == 1<<20 })
	before := intervals(tr.Now())
	g.Eventually("more intervals", func() bool { return intervals(tr.Now()) > before+1 })
	r := tr.Stop()
	r.Equal("written", seen(r), 1<<20)
	enough.Store(true)
	m.Resume()
	<-read
}

// intervals returns the number of intervals in the output.
func intervals(r *guest.Output) int {
	n := 0
	for _, d := range r.Docs {
		if d.String("event.dataset") == "iotrace.status" {
			n++
		}
	}
	return n
}

// fuseLibaio: many requests in flight, which complete while the caller does not run.
func fuseLibaio(o guest.FUSEOptions) func(*guest.Guest) {
	return func(g *guest.Guest) {
		o.Background = 4 // fewer than are submitted: the others wait for the daemon
		m := g.FUSE(o)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa := a.Process()
		f := pa.Open(m.File("b"), guest.Create)
		f.Write(0, 4<<20)
		f.Close()
		g.DropCaches()
		t := traceFUSE(g, m)
		fio := func(file, rw, size string) []string {
			return []string{"--name=j", "--filename=" + m.File(file), "--rw=" + rw, "--bs=64k", "--size=" + size,
				"--ioengine=libaio", "--direct=1", "--iodepth=16", "--fallocate=none", "--end_fsync=0", "--output=/dev/null"}
		}
		ca, cb := a.Command("fio", fio("a", "write", "8m")...), b.Command("fio", fio("b", "read", "4m")...)
		for _, c := range []interface{ Start() error }{ca, cb} {
			if err := c.Start(); err != nil {
				g.Fatal(err)
			}
		}
		for _, c := range []interface{ Wait() error }{ca, cb} {
			if err := c.Wait(); err != nil {
				g.Fatal(err)
			}
		}
		t.stop()
		t.owns("a", a, t.of("read.bytes", a), 8<<20)
		t.owns("b", b, 4<<20, 0)
		t.owns("daemon", m.Daemon, 0, 0)
	}
}

// fuseURing: io_uring submits from the task or from a worker thread of its own.
func fuseURing(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceFUSE(g, m)
	fa := pa.Open(m.File("a"), guest.Create|guest.Direct)
	fb := pb.Open(m.File("b"), guest.Create)
	fa.WriteURing(0, 101*4096, 64<<10)
	fa.ReadURing(0, 51*4096, 64<<10)
	fb.WriteURing(0, sizeB, 64<<10)
	t.stop()
	t.owns("a", a, 51*4096, 101*4096)
	t.owns("b", b, 0, sizeB)
}

// fuseWaiting: one background request at a time, so that nearly all of them are
// sent from the daemon's context.
func fuseWaiting(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true, Background: 1})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	setup := g.Cgroup("setup").Process()
	f := setup.Open(m.File("cold"), guest.Create)
	f.Write(0, sizeA)
	f.Close()
	g.DropCaches()
	t := traceFUSE(g, m)
	pa.Open(m.File("a"), guest.Create).Write(0, sizeB)
	pb.Open(m.File("b"), guest.Create).Write(0, sizeC)
	pb.Open(m.File("cold"), os.O_RDONLY).ReadBlocks(0, sizeA, 1<<20)
	t.stop()
	t.owns("a", a, 0, sizeB)
	t.owns("b", b, sizeA, sizeC)
	t.owns("daemon", m.Daemon, 0, 0)
}

// fuseCopy: the daemon copies by itself, and the copied bytes count as written by the
// caller.
func fuseCopy(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a := g.Cgroup("a")
	pa := a.Process()
	setup := g.Cgroup("setup").Process()
	f := setup.Open(m.File("from"), guest.Create)
	f.Write(0, sizeC)
	f.Close()
	t := traceFUSE(g, m)
	from, to := pa.Open(m.File("from"), os.O_RDONLY), pa.Open(m.File("to"), guest.Create)
	from.CopyTo(to, sizeC)
	t.stop()
	t.owns("a", a, 0, sizeC)
}

// fuseFsync: b flushes the file that a wrote; the bytes are a's, the flush is b's.
func fuseFsync(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true, KeepCache: true})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceFUSE(g, m)
	fa := pa.Open(m.File("f"), guest.Create)
	fa.Write(0, sizeA)
	fb := pb.Open(m.File("f"), os.O_RDWR)
	fb.Fsync()
	t.stop()
	t.owns("a", a, 0, sizeA)
	t.owns("b", b, 0, 0)
	t.Equal("flushes of b", t.of("flush.ops", b), 1)
	t.Equal("flushes of a", t.of("flush.ops", a), 0)
}

// fuseRemoved: the cgroup is gone before its pages are written.
func fuseRemoved(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true})
	c := g.Cgroup("gone")
	keep := g.Cgroup("keep").Process()
	t := traceFUSE(g, m)
	p := c.Process()
	f := p.Open(m.File("f"), guest.Create)
	f.Write(0, sizeB)
	// Closing the last descriptor would flush: another process keeps the file.
	mapping := keep.Open(m.File("f"), os.O_RDWR).Map(0, 4096)
	p.Kill()
	c.Remove()
	t.stop()
	mapping.Unmap()
	t.owns("removed cgroup", c, 0, sizeB)
}

// fuseBeforeStart: pages became dirty and files were opened before the tracer started.
func fuseBeforeStart(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true, KeepCache: true})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa, fb := pa.Open(m.File("f"), guest.Create), pb.Open(m.File("f"), guest.Create)
	fa.Write(0, 3<<20)
	earlier := m.Count()
	t := traceFUSE(g, m)
	t.earlier = earlier
	fb.Write(3<<20, sizeC)
	t.stop()
	// The kernel may have flushed some pages before or during the tracer's start.
	t.Equal("a read", t.of("read.bytes", a), 0)
	if n := t.of("write.bytes", a); n < 3<<20-t.before.WriteBytes || n > 3<<20-t.earlier.WriteBytes {
		g.Errorf("a wrote %d, want %d to %d", n, 3<<20-t.before.WriteBytes, 3<<20-t.earlier.WriteBytes)
	}
	t.owns("b", b, 0, sizeC)
	t.Equal("both wrote", t.of("write.bytes", a)+t.of("write.bytes", b), t.sum("write.bytes"))
}

// fuseSmallFiles: ten thousand files.
func fuseSmallFiles(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	t := traceFUSE(g, m)
	script := func(dir string, n, size int) string {
		return fmt.Sprintf(`mkdir %[1]s && cd %[1]s && i=0; while [ $i -lt %[2]d ]; do printf %%0%[3]dd $i > f$i || exit 1; i=$((i+1)); done`, m.File(dir), n, size)
	}
	const files = 10_000
	ca, cb := a.Command("sh", "-c", script("a", files, 101)), b.Command("sh", "-c", script("b", files/10, 4099))
	for _, c := range []interface{ Start() error }{ca, cb} {
		if err := c.Start(); err != nil {
			g.Fatal(err)
		}
	}
	for _, c := range []interface{ Wait() error }{ca, cb} {
		if err := c.Wait(); err != nil {
			g.Fatal(err)
		}
	}
	t.stop()
	t.owns("a", a, 0, files*101)
	t.owns("b", b, 0, files/10*4099)
	// Each file has at least a lookup, a create and a release.
	if n := t.of("metadata.ops", a); n < 3*files {
		g.Errorf("%d metadata operations for %d new files", n, files)
	}
	if n := t.of("flush.ops", a); n < files {
		g.Errorf("%d flushes for %d closed files", n, files)
	}
}

// fuseManyCgroups: 64 writers in 64 cgroups on one mount.
func fuseManyCgroups(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true})
	const writers = 64
	var cgroups [writers]*guest.Cgroup
	var processes [writers]*guest.Process
	for i := range cgroups {
		cgroups[i] = g.Cgroup(fmt.Sprintf("w%d", i))
		processes[i] = cgroups[i].Process()
	}
	t := traceFUSE(g, m)
	size := func(i int) int64 { return int64(i+1) * 10_007 }
	for i, p := range processes {
		p.Open(m.File(fmt.Sprintf("f%d", i)), guest.Create).Write(0, size(i))
	}
	t.stop()
	for i, c := range cgroups {
		t.owns(fmt.Sprintf("writer %d", i), c, 0, size(i))
	}
}

// fuseKilled: the daemon is killed while requests wait for it. They count as errors
// of the requesting cgroup, and as no bytes.
func fuseKilled(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	setup := g.Cgroup("setup").Process()
	f := setup.Open(m.File("cold"), guest.Create)
	f.Write(0, sizeA)
	f.Close()
	g.DropCaches()
	t := traceFUSE(g, m)
	fa, fb := pa.Open(m.File("a"), guest.Create), pb.Open(m.File("cold"), os.O_RDONLY)
	fa.Write(0, sizeC)
	truth := m.Count().Sub(t.before)
	m.Suspend()
	failed := make(chan string, 2)
	go func() { failed <- fa.TryWrite(sizeA, 1<<20, 1<<20) }()
	go func() { failed <- fb.TryRead(0, 1<<20, 1<<20) }()
	g.Eventually("requests waiting", func() bool { return pa.Waiting() && pb.Waiting() })
	m.Kill()
	for range 2 {
		if msg := <-failed; msg == "" {
			g.Error("a call succeeded without a daemon")
		}
	}
	t.end()
	t.total("read.bytes", truth.ReadBytes)
	t.total("write.bytes", truth.WriteBytes)
	t.owns("a", a, 0, sizeC)
	t.owns("b", b, 0, 0)
	t.failed("a", a)
	t.failed("b", b)
	t.Equal("errors of the daemon", t.errors(m.Daemon), 0)
}

// fuseKilledWriteBack: the daemon dies while pages are dirty. Their flush fails,
// and the errors belong to the writer.
func fuseKilledWriteBack(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true})
	a := g.Cgroup("a")
	pa := a.Process()
	t := traceFUSE(g, m)
	fa := pa.Open(m.File("a"), guest.Create)
	fa.Write(0, sizeC)
	fa.Fsync()
	truth := m.Count().Sub(t.before)
	fa.Write(0, sizeC)
	m.Suspend()
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		fa.TryFsync()
	}()
	g.Eventually("fsync waiting", pa.Waiting)
	m.Kill()
	<-synced
	t.end()
	t.total("write.bytes", truth.WriteBytes)
	t.owns("a", a, 0, sizeC)
	t.failed("a", a)
}

// fuseAborted: a mount that hangs is unmounted by force, and mounted again.
func fuseAborted(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a := g.Cgroup("a")
	pa := a.Process()
	t := traceFUSE(g, m)
	fa := pa.Open(m.File("a"), guest.Create)
	fa.Write(0, sizeC)
	m.Suspend()
	done := make(chan string, 1)
	go func() { done <- fa.TryWrite(sizeC, 64<<10, 64<<10) }()
	g.Eventually("write waiting", pa.Waiting)
	if out, err := g.Try("umount", "-f", m.Target); err != nil && !strings.Contains(out, "busy") {
		g.Fatalf("umount -f: %v: %s", err, out)
	}
	if msg := <-done; msg == "" {
		g.Error("a write succeeded on a mount that was aborted")
	}
	pa.Exit()
	m.Resume()
	g.Unmount(m.Target)
	second := g.FUSE(guest.FUSEOptions{})
	pb := a.Process()
	pb.Open(second.File("b"), guest.Create).Write(0, sizeB)
	id := second.ID()
	t.end()
	t.owns("a", a, 0, map[bool]int64{true: sizeC + sizeB, false: sizeC}[id == t.id])
	t.Equal("a on the second mount", t.Sum("iotrace.write.bytes", "iotrace.device.id", id, "iotrace.cgroup.path", a.Path()),
		map[bool]int64{true: sizeC + sizeB, false: sizeB}[id == t.id])
	t.failed("a", a)
}

// fuseProcess: two processes of one cgroup, told apart.
func fuseProcess(g *guest.Guest) {
	g.HoldWriteback()
	m := g.FUSE(guest.FUSEOptions{Writeback: true})
	a := g.Cgroup("a")
	p1, p2 := a.Process(), a.Process()
	t := &fuseTrace{g: g, m: m, id: m.ID()}
	t.tr = g.Trace("--by", "process,device", "--source", "fuse")
	t.before = m.Count()
	p1.Open(m.File("a"), guest.Create).Write(0, sizeA)
	p2.Open(m.File("b"), guest.Create|guest.Direct).WriteBlocks(0, 3<<20, 1<<20)
	t.stop()
	for pid, want := range map[int]int64{p1.PID(): sizeA, p2.PID(): 3 << 20} {
		t.Equal(fmt.Sprintf("process %d wrote", pid), t.Sum("iotrace.write.bytes", "iotrace.device.id", t.id, "process.pid", fmt.Sprint(pid)), want)
	}
}

// fuseMountNamed: a row by mount names the mounted file system, its path and its
// daemon.
func fuseMountNamed(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	pa := g.Cgroup("a").Process()
	tr := g.Trace("--by", "mount", "--source", "fuse")
	pa.Open(m.File("a"), guest.Create).Write(0, sizeC)
	r := tr.Stop()
	at := []string{"iotrace.mount.point", m.Target}
	r.Equal("bytes on the mount", r.Sum("iotrace.write.bytes", at...), sizeC)
	for _, d := range r.Where(at...) {
		if d.String("iotrace.fuse.subtype") != "counting" || d.Int("iotrace.fuse.daemon.pid") != int64(m.PID()) {
			g.Errorf("subtype %q and daemon %d, want counting and %d", d.String("iotrace.fuse.subtype"), d.Int("iotrace.fuse.daemon.pid"), m.PID())
		}
	}
}

// fuseEvents: one document per request, with where in the file it was.
func fuseEvents(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	a := g.Cgroup("a")
	pa := a.Process()
	id := m.ID()
	tr := g.Trace("--events", "--source", "fuse")
	fa := pa.Open(m.File("a"), guest.Create|guest.Direct)
	fa.WriteBlocks(1<<20, 10*64<<10, 64<<10)
	fa.Close()
	writes := func(r *guest.Output) (docs []guest.Doc) {
		for _, d := range r.Docs {
			if d.String("event.dataset") == "iotrace.event" && d.String("iotrace.device.id") == id && d.String("event.action") == "write" {
				docs = append(docs, d)
			}
		}
		return docs
	}
	g.Eventually("events", func() bool { return len(writes(tr.Now())) >= 10 })
	r := tr.Stop()
	var n, bytes int64
	offsets := map[int64]bool{}
	for _, d := range writes(r) {
		n++
		bytes += d.Int("iotrace.request.bytes")
		offsets[d.Int("iotrace.request.offset")] = true
		if d.String("iotrace.cgroup.path") != a.Path() {
			g.Errorf("a request of %q, want %q", d.String("iotrace.cgroup.path"), a.Path())
		}
		if d.Int("iotrace.request.latency") <= 0 {
			g.Errorf("a request without latency: %v", d)
		}
	}
	r.Equal("write events", n, 10)
	r.Equal("bytes of write events", bytes, 10*64<<10)
	for i := int64(0); i < 10; i++ {
		if !offsets[1<<20+i*64<<10] {
			g.Errorf("no write at offset %d", 1<<20+i*64<<10)
		}
	}
}

// fuseApplication: compares the programs' reads and writes with the requests to the
// daemon. Reads from the cache appear at the application level only.
func fuseApplication(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{KeepCache: true})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	setup := g.Cgroup("setup").Process()
	f := setup.Open(m.File("cold"), guest.Create)
	f.Write(0, sizeC)
	f.Close()
	g.DropCaches()
	t := traceFUSE(g, m, "--level", "both")
	pa.Open(m.File("a"), guest.Create).WriteBlocks(0, sizeA, 32<<10)
	cold := pb.Open(m.File("cold"), os.O_RDONLY)
	cold.Read(0, sizeC)
	cold.Read(0, sizeC)
	cold.Sendfile(0, sizeC)
	pb.Open(m.File("b"), guest.Create|guest.Direct).WriteBlocks(0, 1<<20, 256<<10)
	b.Run("fio", "--name=j", "--filename="+m.File("aio"), "--rw=write", "--bs=64k", "--size=2m",
		"--ioengine=libaio", "--direct=1", "--iodepth=8", "--fallocate=none", "--output=/dev/null")
	t.stop()
	t.owns("a", a, 0, sizeA)
	t.Equal("b's application wrote", t.at("app", "write.bytes", b), 3<<20)
	t.Equal("b's wire wrote", t.at("wire", "write.bytes", b), 3<<20)
	t.Equal("a's application wrote", t.at("app", "write.bytes", a), sizeA)
	t.Equal("a's application's calls", t.at("app", "write.ops", a), (sizeA+32<<10-1)/(32<<10))
	t.Equal("b's application read", t.at("app", "read.bytes", b), 3*sizeC)
	t.Equal("b's wire read", t.at("wire", "read.bytes", b), sizeC)
}

// fusePassthrough: the kernel reads and writes the backing file by itself. There is
// no request, so the wire level shows nothing; the application level shows the
// bytes.
func fusePassthrough(g *guest.Guest) {
	g.NVMe().Format("ext4")
	g.NVMe().MountAt("ext4", "/mnt/backing", "")
	m := g.FUSE(guest.FUSEOptions{Passthrough: true, Backing: "/mnt/backing"})
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceFUSE(g, m, "--level", "both")
	fa := pa.Open(m.File("f"), guest.Create)
	fa.Write(0, sizeA)
	pb.Open(m.File("f"), os.O_RDONLY).Read(0, sizeA)
	fa.Sendfile(0, sizeC)
	t.stop()
	t.owns("a", a, 0, 0)
	t.owns("b", b, 0, 0)
	t.Equal("a's application wrote", t.at("app", "write.bytes", a), sizeA)
	t.Equal("a's application read", t.at("app", "read.bytes", a), sizeC)
	t.Equal("b's application read", t.at("app", "read.bytes", b), sizeA)
}

// fuseOverURing: requests come to the daemon as completions of its ring; background
// requests hit no tracepoint when they are sent.
func fuseOverURing(writeback bool) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		g.Modprobe("fuse")
		g.Knob("/sys/module/fuse/parameters/enable_uring", "Y")
		m := g.FUSE(guest.FUSEOptions{URing: true, Writeback: writeback})
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		setup := g.Cgroup("setup").Process()
		f := setup.Open(m.File("cold"), guest.Create)
		f.Write(0, sizeA)
		f.Close()
		g.DropCaches()
		t := traceFUSE(g, m)
		pa.Open(m.File("a"), guest.Create).Write(0, sizeB)
		pb.Open(m.File("b"), guest.Create|guest.Direct).WriteBlocks(0, 3<<20, 1<<20)
		pb.Open(m.File("cold"), os.O_RDONLY).ReadBlocks(0, sizeA, 128<<10)
		g.Sync()
		truth := m.Count().Sub(t.before)
		t.end()
		if ops := truth.ReadOps + truth.WriteOps; truth.URing < ops {
			g.Errorf("%d of %d requests came over io_uring", truth.URing, ops)
		}
		t.total("read.bytes", truth.ReadBytes)
		t.total("read.ops", truth.ReadOps)
		t.total("write.bytes", truth.WriteBytes)
		t.total("write.ops", truth.WriteOps)
		t.owns("a", a, 0, sizeB)
		t.owns("b", b, sizeA, 3<<20)
		t.owns("daemon", m.Daemon, 0, 0)
	}
}

// fuseCost measures the time of the programs per request, and that of a block
// request for comparison. In an emulated guest only their ratio counts.
func fuseCost(g *guest.Guest) {
	g.HoldWriteback()
	g.Knob("/proc/sys/kernel/bpf_stats_enabled", "1")
	disk := g.NVMe()
	for _, writeback := range []bool{false, true} {
		m := g.FUSE(guest.FUSEOptions{Writeback: writeback})
		a := g.Cgroup("a")
		p := a.Process()
		t := traceFUSE(g, m, "--source", "block")
		block := blockCost(g, disk)
		f := p.Open(m.File("f"), guest.Create)
		const size = 16 << 20
		// Requests of all kinds: most write(2) also ask for an extended attribute.
		requests := func() int64 { return runsOf(g, "iot_fuse_request_end", "iot_fuse_end_") }
		fuse := []string{"iot_fuse_"}
		write := measureCost(g, fuse, requests, func() {
			f.Write(0, size)
			f.Fsync()
		})
		read := measureCost(g, fuse, requests, func() {
			g.DropCaches()
			f.Read(0, size)
		})
		g.Logf("write-back cache %v: a FUSE request while writing %.0f ns, %.1f times a block request; while reading %.0f ns, %.1f times; block request %.0f ns",
			writeback, write, write/block, read, read/block, block)
		t.stop()
		t.owns("a", a, costRounds*size, costRounds*size)
		f.Close()
		p.Exit()
	}
}

// fuseModule: the module is loaded after the tracer, unloaded, and loaded again.
// The tracer does not prevent the unloading.
func fuseModule(g *guest.Guest) {
	_, _ = g.Try("umount", "/sys/fs/fuse/connections")
	g.Exec("modprobe", "-r", "fuse")
	a := g.Cgroup("a")
	pa := a.Process()
	tr := g.Trace("--by", "cgroup,device")
	for round := int64(1); round <= 2; round++ {
		g.Exec("modprobe", "fuse")
		g.Eventually("source attached", func() bool { return strings.Count(tr.Stderr(), "source attached") >= int(round) })
		m := g.FUSE(guest.FUSEOptions{})
		id := m.ID()
		f := pa.Open(m.File("f"), guest.Create)
		f.Write(0, round*1_000_003)
		f.Close()
		if got := m.Count().WriteBytes; got != round*1_000_003 {
			g.Fatalf("round %d: the daemon counted %d bytes", round, got)
		}
		g.Eventually("bytes counted", func() bool {
			return tr.Now().Sum("iotrace.write.bytes", "iotrace.source", "fuse", "iotrace.device.id", id, "iotrace.cgroup.path", a.Path()) >= round*1_000_003
		})
		g.Unmount(m.Target)
		g.Eventually("module unloaded", func() bool {
			_, err := g.Try("modprobe", "-r", "fuse")
			return err == nil
		})
	}
	r := tr.Stop()
	r.Equal("a wrote in both rounds", r.Sum("iotrace.write.bytes", "iotrace.source", "fuse", "iotrace.cgroup.path", a.Path()), 3*1_000_003)
}

// fuseModuleAtOnce names the source before its module is loaded, and writes as soon
// as the mount exists, without waiting for the tracer.
func fuseModuleAtOnce(g *guest.Guest) {
	_, _ = g.Try("umount", "/sys/fs/fuse/connections")
	unload := func() {
		g.Helper()
		g.Eventually("module unloaded", func() bool {
			_, err := g.Try("modprobe", "-r", "fuse")
			return err == nil
		})
	}
	unload()
	a := g.Cgroup("a")
	tr := g.Trace("--by", "cgroup,device", "--source", "fuse")
	if !strings.Contains(tr.Stderr(), `msg="source waits for its module to be loaded" source=fuse`) {
		g.Error("nothing says that the source waits")
	}
	var truth guest.FUSECount
	const rounds = 6
	for i := range int64(rounds) {
		p := a.Process()
		m := g.FUSE(guest.FUSEOptions{})
		f := p.Open(m.File("f"), guest.Create)
		f.Write(0, 100_003+i)
		f.Close()
		g.DropCaches()
		p.Open(m.File("f"), os.O_RDONLY).Read(0, 100_003+i)
		p.Exit()
		n := m.Count()
		truth.ReadBytes += n.ReadBytes
		truth.ReadOps += n.ReadOps
		truth.WriteBytes += n.WriteBytes
		truth.WriteOps += n.WriteOps
		g.Unmount(m.Target)
		unload()
	}
	r := tr.Stop()
	sum := func(field string) int64 {
		return r.Sum("iotrace."+field, "iotrace.source", "fuse", "iotrace.cgroup.path", a.Path())
	}
	if want := int64(rounds*100_003 + rounds*(rounds-1)/2); truth.WriteBytes != want {
		g.Errorf("the daemon got %d bytes, want %d", truth.WriteBytes, want)
	}
	r.Equal("read", sum("read.bytes"), truth.ReadBytes)
	r.Equal("READ operations", sum("read.ops"), truth.ReadOps)
	r.Equal("written", sum("write.bytes"), truth.WriteBytes)
	r.Equal("WRITE operations", sum("write.ops"), truth.WriteOps)
	for _, line := range strings.Split(tr.Stderr(), "\n") {
		if strings.Contains(line, `msg="source attached"`) {
			g.Log(line)
		}
	}
}

// fuseForeign runs two cgroups over a file system that is not ours.
func fuseForeign(g *guest.Guest, target string) {
	g.Helper()
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	id := g.MountDevice(target)
	t := &fuseTrace{g: g, id: id}
	t.tr = g.Trace("--by", "cgroup,device", "--source", "fuse")
	fa, fb := pa.Open(target+"/a", guest.Create), pb.Open(target+"/b", guest.Create)
	fa.Write(0, sizeA)
	fb.Write(0, sizeB)
	fa.Close()
	fb.Close()
	g.DropCaches()
	pa.Open(target+"/b", os.O_RDONLY).ReadBlocks(0, sizeB, 128<<10)
	g.Sync()
	t.end()
	t.owns("a", a, sizeB, sizeA)
	t.owns("b", b, 0, sizeB)
	t.total("write.bytes", sizeA+sizeB)
	t.total("read.bytes", sizeB)
}

func fuseBindfs(g *guest.Guest) {
	target, from := "/mnt/bindfs", g.TempDir()
	g.Modprobe("fuse")
	if err := os.MkdirAll(target, 0o755); err != nil {
		g.Fatal(err)
	}
	d := g.Cgroup("bindfs").Command("bindfs", "-f", from, target)
	if err := d.Start(); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { g.Unmount(target) })
	g.Eventually("bindfs mounted", func() bool { return g.Mounted(target) })
	fuseForeign(g, target)
}

func fuseSSHFS(g *guest.Guest) {
	target, home := "/mnt/sshfs", g.TempDir()
	g.Modprobe("fuse")
	for _, dir := range []string{target, "/run/sshd", home + "/files"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			g.Fatal(err)
		}
	}
	g.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home+"/key")
	g.WriteFile(home+"/authorized", g.ReadFile(home+"/key.pub"))
	sshd := g.Cgroup("sshd").Command("/usr/sbin/sshd", "-D", "-e", "-p", "2222", "-f", "/dev/null", "-h", home+"/key",
		"-o", "ListenAddress=127.0.0.1", "-o", "AuthorizedKeysFile="+home+"/authorized", "-o", "StrictModes=no", "-o", "UsePAM=no",
		"-o", "PidFile=none", "-o", "Subsystem=sftp internal-sftp")
	if err := sshd.Start(); err != nil {
		g.Fatal(err)
	}
	options := "port=2222,IdentityFile=" + home + "/key,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
	mounter := g.Cgroup("sshfs")
	g.Eventually("sshfs mounted", func() bool {
		d := mounter.Command("sshfs", "-o", options, "root@127.0.0.1:"+home+"/files", target)
		_ = d.Run()
		return g.Mounted(target)
	})
	g.Cleanup(func() { g.Unmount(target) })
	fuseForeign(g, target)
}
