//go:build vm

package vmtests

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestCeph compares the rows of source ceph with the client's and the OSD's own counters
// and with each cgroup's I/O, to the byte. The cluster is in the guest: a monitor, an OSD
// that keeps its objects in memory, a metadata server.
func TestCeph(t *testing.T) {
	suite{
		source:   "ceph",
		image:    "ceph",
		memory:   3584,
		deadline: 40 * time.Minute, // most of it for the start of the cluster on a busy machine
		quick:    never,
		scenarios: []scenario{
			{name: "module_loaded_later", run: cephModuleLater}, // before others load it
			{name: "delayed", run: ceph(cephDelayed)},
			{name: "overwrite_written", run: ceph(cephOverwrite)},
			{name: "alternate_writers", run: ceph((*cephCase).alternate)},
			{name: "mapped", run: ceph(cephMapped)},
			{name: "direct", run: ceph(cephDirect)},
			{name: "osync", run: ceph((*cephCase).osync)},
			{name: "fsync_of_another", run: ceph(cephFsync)},
			{name: "dead_writer", run: ceph(cephDeadWriter)},
			{name: "read_cold", run: ceph(cephReadCold)},
			{name: "read_ahead", run: ceph(cephReadAhead)},
			{name: "read_direct", run: ceph(cephReadDirect)},
			{name: "events", run: cephEvents},
			{name: "mount", run: cephNamed},
			{name: "small_files", run: ceph((*cephCase).smallFiles)},
			{name: "osd_stalls", run: ceph(cephOSDStalls)},
			{name: "umount_force", run: cephUmountForce, since: "6.1", why: "the client of 5.10 warns of itself then (fs/ceph/caps.c)"},
		},
	}.test(t)
}

// cephCase is one scenario on one mount, with the bytes that each cgroup wrote and read.
type cephCase struct {
	remoteCase
	m      *guest.CephMount
	before guest.CephStats
}

func newCephCase(g *guest.Guest) *cephCase {
	c := &cephCase{remoteCase: newRemoteCase(g), m: g.Ceph()}
	c.file = c.m.File
	c.before = g.CephStats()
	g.Cleanup(func() { // the OSD's memory is limited
		files, _ := filepath.Glob(c.m.File("*"))
		for _, f := range files {
			if err := os.RemoveAll(f); err != nil {
				g.Error(err)
			}
		}
	})
	return c
}

// counted is what was counted since the scenario's begin.
func (c *cephCase) counted() guest.CephStats { c.Helper(); return c.CephStats().Sub(c.before) }

// check compares rows with the counters and with the cgroups' I/O.
func (c *cephCase) check(r *guest.Output, id string, want guest.CephStats) {
	c.Helper()
	var wrote, read int64
	for cg, n := range c.wrote {
		r.Equal("written by "+cg.Path(), r.Written("ceph", id, cg), n)
		wrote += n
	}
	for cg, n := range c.read {
		r.Equal("read by "+cg.Path(), r.Read("ceph", id, cg), n)
		read += n
	}
	sum := func(field string) int64 {
		return r.Sum(field, "iotrace.source", "ceph", "iotrace.level", "wire", "iotrace.device.id", id)
	}
	if !want.Counted { // then the scenario alone knows
		want.BytesWritten, want.Writes = wrote, sum("iotrace.write.ops")
	}
	r.Equal("written", sum("iotrace.write.bytes"), want.BytesWritten)
	r.Equal("written by all", wrote, want.BytesWritten)
	r.Equal("writes", sum("iotrace.write.ops"), want.Writes)
	r.Equal("read", sum("iotrace.read.bytes"), want.BytesSent)
	r.Equal("read by all", read, want.BytesSent)
	r.Equal("unattributed", sum("iotrace.basis.none"), 0)
	r.Equal("errors", sum("iotrace.write.errors")+sum("iotrace.read.errors"), 0)
	if want.Writes > 0 && sum("iotrace.write.latency.max") == 0 {
		c.Error("no write has a latency")
	}
	if sum("iotrace.metadata.ops") == 0 {
		c.Error("no operation on metadata was counted")
	}
	lost, skipped := losses(r)
	r.Equal("lost", lost, 0)
	if skipped > 0 {
		c.Logf("the kernel skipped %d runs of programs", skipped)
	}
}

// ceph runs a scenario on a mount under one tracer.
func ceph(run func(*cephCase)) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		g.CephServer()
		g.Modprobe("ceph")
		tr := g.Trace(append([]string{"--source", "ceph"}, traced...)...)
		c := newCephCase(g)
		run(c)
		c.Sync()
		id, want := c.m.ID(), c.counted()
		c.check(tr.Stop(), id, want)
	}
}

func cephModuleLater(g *guest.Guest) {
	g.HoldWriteback()
	g.CephServer()
	tr := g.Trace(append([]string{"--source", "ceph"}, traced...)...)
	c := newCephCase(g) // the mount loads the module
	cephDelayed(c)
	c.Sync()
	id, want := c.m.ID(), c.counted()
	c.check(tr.Stop(), id, want)
}

// cephDelayed has an outsider write what two cgroups made dirty.
func cephDelayed(c *cephCase) {
	syncWrites(c.Guest, func() { c.writeBoth(0) }, func() int64 { return c.CephStats().BytesWritten })
}

// cephFsync has B fsync what A wrote.
func cephFsync(c *cephCase) {
	c.a.Process().Open(c.m.File("f"), guest.Create).Write(0, bytesA)
	c.b.Process().Open(c.m.File("f"), os.O_RDWR).Fsync()
	c.wrote[c.a] = bytesA
}

func cephDirect(c *cephCase) {
	c.a.Process().Open(c.m.File("a"), guest.Create|guest.Direct).WriteBlocks(0, 8<<20, 1<<20) // two objects
	c.b.Process().Open(c.m.File("b"), guest.Create|guest.Direct).WriteBlocks(0, 2<<20, 1<<20)
	c.wrote[c.a], c.wrote[c.b] = 8<<20, 2<<20
}

// cephMapped makes pages dirty through a mapping; the page faults read holes, of which the
// OSD sends nothing.
func cephMapped(c *cephCase) {
	const n = 1 << 20
	for _, w := range []struct {
		cg   *guest.Cgroup
		name string
	}{{c.a, "a"}, {c.b, "b"}} {
		f := w.cg.Process().Open(c.m.File(w.name), guest.Create)
		f.Truncate(n)
		f.Map(0, n).Store()
	}
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = n, n
}

// cephDeadWriter flushes the dirty pages of a cgroup that is already removed.
func cephDeadWriter(c *cephCase) {
	gone := c.cgroup("gone")
	p := gone.Process()
	p.Open(c.m.File("f"), guest.Create).Write(0, bytesC)
	p.Exit()
	gone.Remove()
	c.Sync()
	c.wrote[gone] = bytesC
}

// cephOverwrite has B overwrite what A wrote and has in the cache.
func cephOverwrite(c *cephCase) {
	fa := c.a.Process().Open(c.m.File("f"), guest.Create)
	fa.Write(0, bytesB)
	fa.Fsync()
	fb := c.b.Process().Open(c.m.File("f"), os.O_RDWR)
	fb.Write(0, bytesB)
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = bytesB, bytesB
}

// cephOSDStalls flushes while the OSD does not answer.
func cephOSDStalls(c *cephCase) {
	c.writeBoth(0)
	c.CephOSD("STOP")
	wait := flushing(c.Guest)
	c.CephOSD("CONT")
	wait()
}

// cephUmountForce takes a mount away while its OSD does not answer and pages are dirty.
func cephUmountForce(g *guest.Guest) {
	g.HoldWriteback()
	g.CephServer()
	g.Modprobe("ceph")
	tr := g.Trace(append([]string{"--source", "ceph"}, traced...)...)
	c := newCephCase(g)
	p := c.a.Process()
	p.Open(c.m.File("f"), guest.Create).Write(0, bytesC)
	id := c.m.ID()
	g.CephOSD("STOP")
	wait := flushing(g)
	_, _ = g.Try("umount", "-f", c.m.Target) // fails all requests; the file keeps the mount busy
	p.Kill()
	_, _ = g.Try("umount", "-l", "-f", c.m.Target)
	g.CephOSD("CONT")
	wait()
	after := newCephCase(g)
	after.a.Process().Open(after.m.File("g"), guest.Create).Write(0, bytesA)
	g.Sync()
	checkNextMount(tr.Stop(), "ceph", id, c.a, after.m.ID(), after.a)
}

// readers opens a file of A's and one of B's that are not in the cache. An outsider wrote
// them.
func (c *cephCase) readers(flags int) (fa, fb *guest.File) {
	c.Helper()
	outside := c.cgroup("outside")
	p := outside.Process()
	for _, f := range []struct {
		name string
		n    int64
	}{{"a", bytesA}, {"b", bytesB}} {
		p.Open(c.m.File(f.name), guest.Create).Write(0, f.n)
		c.wrote[outside] += f.n
	}
	p.Exit()
	c.DropCaches()
	return c.a.Process().Open(c.m.File("a"), os.O_RDONLY|flags), c.b.Process().Open(c.m.File("b"), os.O_RDONLY|flags)
}

func cephReadCold(c *cephCase) {
	fa, fb := c.readers(0)
	fa.Read(0, bytesA)
	fb.Read(0, bytesB)
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

func cephReadDirect(c *cephCase) {
	fa, fb := c.readers(guest.Direct)
	fa.ReadBlocks(0, bytesA+1<<20, 1<<20)
	fb.ReadBlocks(0, bytesB+1<<20, 1<<20)
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

// cephReadAhead reads the first page: the kernel asks for more.
func cephReadAhead(c *cephCase) {
	fa, fb := c.readers(0)
	fa.ReadBlocks(0, 4096, 4096)
	c.read[c.a] = c.counted().BytesSent
	fb.ReadBlocks(0, 4096, 4096)
	c.read[c.b] = c.counted().BytesSent - c.read[c.a]
	if c.read[c.a] < 4096 || c.read[c.b] < 4096 {
		c.Errorf("the OSD sent %d and %d bytes for a page", c.read[c.a], c.read[c.b])
	}
}

// cephEvents compares records of single requests with the counters.
func cephEvents(g *guest.Guest) {
	g.HoldWriteback()
	g.CephServer()
	g.Modprobe("ceph")
	tr := g.Trace("--source", "ceph", "--events")
	c := newCephCase(g)
	c.writeBoth(0)
	c.Sync()
	want := c.counted()
	r := tr.Stop()
	var bytes, timed int64
	for _, d := range r.Docs {
		if d.String("event.dataset") == "iotrace.event" && d.String("iotrace.op") == "write" {
			bytes += d.Int("iotrace.request.bytes")
			if d.Int("iotrace.request.latency") > 0 {
				timed++
			}
		}
	}
	r.Equal("bytes of records", bytes, bytesA+bytesB)
	if want.Counted {
		r.Equal("bytes that the client wrote", want.BytesWritten, bytesA+bytesB)
		r.Equal("records with a latency", timed, want.Writes)
	}
	if timed == 0 {
		g.Error("no record has a latency")
	}
}

// cephNamed groups by mount: cluster and directory are named.
func cephNamed(g *guest.Guest) {
	g.HoldWriteback()
	g.CephServer()
	g.Modprobe("ceph")
	tr := g.Trace("--by", "mount")
	c := newCephCase(g)
	c.writeBoth(0)
	c.Sync()
	id := c.m.ID()
	r := tr.Stop()
	r.Equal("written to the mount", r.Sum("iotrace.write.bytes", "iotrace.source", "ceph", "iotrace.device.id", id,
		"iotrace.ceph.cluster", guest.CephMonitor, "iotrace.ceph.path", "/", "iotrace.mount.source", guest.CephMonitor+":/"), bytesA+bytesB)
}
