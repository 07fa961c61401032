//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestNFS compares the rows of source nfs with the client's own mountstats and with
// each cgroup's I/O, to the byte.
func TestNFS(t *testing.T) {
	suite{
		source: "nfs",
		memory: 1536,
		quick:  oldestAndNewest,
		// The whole list takes long on a shared, emulated processor.
		deadline: nfsDeadline,
		scenarios: []scenario{
			// These run first: later ones leave the module loaded.
			{name: "module_loaded_later", run: nfsModuleLater, smoke: true},
			{name: "module_reloaded", run: nfsModuleReloaded},
			{name: "module_waited_for", run: nfsModuleWaited, smoke: true, quick: onlyOn("7.3")},
			{name: "module_by_mount", run: nfsModuleByMount, smoke: true, quick: onlyOn("5.10")}, // where modules have no type information
			{name: "delayed", run: nfs(nfsDelayed), smoke: true},
			{name: "close", run: nfs(nfsClose)},
			{name: "fsync", run: nfs(nfsFsync)},
			{name: "direct", run: nfs(nfsDirect), smoke: true},
			{name: "direct_foreign_memory", run: nfs(nfsDirectForeign)},
			{name: "mmap_msync", run: nfs(nfsMmapMsync)},
			{name: "mmap_delayed", run: nfs(nfsMmapDelayed)},
			{name: "removed_cgroup", run: nfs(nfsRemovedCgroup)},
			{name: "append", run: nfs(nfsAppend)},
			{name: "overwrite_written", run: nfs(nfsOverwriteWritten)},
			{name: "overwrite_read", run: nfs(nfsOverwriteRead)},
			{name: "alternate_writers", run: nfs(nfsAlternate), smoke: true},
			{name: "same_range_twice", run: nfs(nfsSameRange)},
			{name: "osync", run: nfs(nfsOSync)},
			{name: "sync_mount", run: nfsSyncMount},
			{name: "one_page_many_writes", run: nfs(nfsOnePage)},
			{name: "inherited_descriptor", run: nfs(nfsInherited)},
			{name: "read_cold", run: nfs(nfsReadCold), smoke: true},
			{name: "read_mmap", run: nfs(nfsReadMmap)},
			{name: "read_sendfile", run: nfs(nfsReadSendfile)},
			{name: "read_direct", run: nfs(nfsReadDirect)},
			{name: "read_warm", run: nfs(nfsReadWarm)},
			{name: "read_ahead", run: nfs(nfsReadAhead)},
			{name: "files", run: nfsFiles("4.2"), smoke: true},
			{name: "files_v3", run: nfsFiles("3")},
			{name: "io_uring", run: nfs(nfsURing)},
			{name: "mounted_before", run: nfsMountedBefore},
			{name: "remount", run: nfsRemount},
			{name: "server_down_at_flush", run: nfs(nfsServerDown)},
			{name: "server_restarted", run: nfs(nfsServerRestarted)},
			{name: "umount_force", run: nfsUmountForce},
			{name: "small_files", run: nfsSmallFiles},
			{name: "writers_64", run: nfs(nfsWriters64)},
			{name: "no_memory_controller", run: nfsNoMemory, cgroup: "v2", why: "cgroup v1 cannot switch the memory controller off for one cgroup"},
			{name: "metadata", run: nfsMetadata},
			{name: "app_level", run: nfsAppLevel},
			{name: "no_latency", run: nfsNoLatency},
			{name: "by_process", run: nfsByProcess},
			{name: "events", run: nfsEvents},
			{name: "blog", run: nfsBlog, smoke: true},
			{name: "cost", run: nfsCost},
		},
	}.test(t)
}

const nfsDeadline = 40 * 60 * 1e9

// Sizes that cannot be mistaken for each other.
const (
	bytesA = 5_000_011
	bytesB = 3_000_017
	bytesC = 2_000_003
)

// nfsCase is one scenario on one mount, with the bytes that each cgroup wrote and read.
type nfsCase struct {
	*guest.Guest
	version string
	m       *guest.NFSMount
	a, b    *guest.Cgroup
	before  guest.NFSStats
	wrote   map[*guest.Cgroup]int64
	read    map[*guest.Cgroup]int64

	restarted bool // the server was down: RPCs were sent more than once
}

func newNFSCase(g *guest.Guest, version string, options ...string) *nfsCase {
	c := &nfsCase{Guest: g, version: version, m: g.NFS(version, options...), wrote: map[*guest.Cgroup]int64{}, read: map[*guest.Cgroup]int64{}}
	c.a, c.b = c.cgroup("a"), c.cgroup("b")
	c.before = c.m.Stats()
	g.Cleanup(func() { // the server's memory is limited
		files, _ := filepath.Glob(filepath.Join("/srv", c.name("*")))
		for _, f := range files {
			if err := os.RemoveAll(f); err != nil {
				g.Error(err)
			}
		}
	})
	return c
}

// cgroup makes a cgroup. Its rows must have the bytes that are added to wrote and read
// later, and no others.
func (c *nfsCase) cgroup(name string) *guest.Cgroup {
	cg := c.Cgroup(name)
	c.wrote[cg], c.read[cg] = 0, 0
	return cg
}

// resetCounters excludes all I/O up to now from the comparison. Rows cannot be
// taken back, so it is for I/O from before the tracer's start.
func (c *nfsCase) resetCounters() { c.before = c.m.Stats() }

// finishedCase is a case with a quiet mount, ready to be checked.
type finishedCase struct {
	c  *nfsCase
	id string
	d  guest.NFSStats
}

func (c *nfsCase) finish() finishedCase {
	c.Sync()
	return finishedCase{c, c.m.ID(), c.m.Stats().Sub(c.before)}
}

// check compares rows with mountstats and with the cgroups' I/O.
func (s finishedCase) check(r *guest.Output) {
	s.c.Helper()
	v := "v" + s.c.version + " "
	for cg, n := range s.c.wrote {
		r.Equal(v+"written by "+cg.Path(), r.Written("nfs", s.id, cg), n)
	}
	for cg, n := range s.c.read {
		r.Equal(v+"read by "+cg.Path(), r.Read("nfs", s.id, cg), n)
	}
	sum := func(field string) int64 {
		return r.Sum(field, "iotrace.source", "nfs", "iotrace.level", "wire", "iotrace.device.id", s.id)
	}
	r.Equal(v+"server write", sum("iotrace.write.bytes"), s.d.ServerWrite)
	r.Equal(v+"server read", sum("iotrace.read.bytes"), s.d.ServerRead)
	r.Equal(v+"unattributed", sum("iotrace.basis.none"), 0)
	if s.c.version == "3" { // version 4 adds the client's own operations to each of its mounts
		var retried int64
		for _, op := range s.d.Ops {
			retried += op.Transmissions - op.Ops
		}
		r.Equal(v+"retransmissions", sum("iotrace.retransmits"), retried)
	}
	if s.c.restarted { // the client counts a restarted RPC twice
		if got, tried := sum("iotrace.write.ops"), s.d.Ops["WRITE"].Ops; got > tried {
			s.c.Errorf("%s%d WRITE operations, %d were tried", v, got, tried)
		}
		return
	}
	r.Equal(v+"WRITE operations", sum("iotrace.write.ops"), s.d.Ops["WRITE"].Ops)
	r.Equal(v+"READ operations", sum("iotrace.read.ops"), s.d.Ops["READ"].Ops+s.d.Ops["READ_PLUS"].Ops)
	r.Equal(v+"COMMIT operations", sum("iotrace.flush.ops"), s.d.Ops["COMMIT"].Ops)
}

// traced are the arguments that all scenarios share.
var traced = []string{"--by", "cgroup,device"}

// nfs runs a scenario on a mount of each version under one tracer.
func nfs(run func(*nfsCase)) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		g.NFS("3") // loads the module and starts the server
		tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
		var cases []finishedCase
		for _, version := range []string{"3", "4.2"} {
			c := newNFSCase(g, version)
			run(c)
			cases = append(cases, c.finish())
		}
		r := tr.Stop()
		for _, s := range cases {
			s.check(r)
		}
		lost, skipped := losses(r)
		r.Equal("lost", lost, 0)
		if skipped > 0 {
			g.Logf("the kernel skipped %d runs of programs", skipped)
		}
	}
}

// losses adds up everything that the tracer reported as lost, and separately the
// program runs that the kernel skipped: from 7.x on it may preempt a program, and
// skips other runs of it on that processor in the meantime. If a skipped run would
// have counted bytes, the comparison with mountstats fails.
func losses(r *guest.Output) (lost, skipped int64) {
	for _, d := range r.Docs {
		if d.String("event.dataset") != "iotrace.status" {
			continue
		}
		for k := range d {
			switch {
			case k == "iotrace.lost.misses":
				skipped += d.Int(k)
			case strings.HasPrefix(k, "iotrace.lost."):
				lost += d.Int(k)
			}
		}
	}
	return lost, skipped
}

// writeBoth lets A and B write a file each and keeps them open.
func (c *nfsCase) writeBoth(flags int) (fa, fb *guest.File) {
	fa = c.a.Process().Open(c.path("a"), guest.Create|flags)
	fa.Write(0, bytesA)
	fb = c.b.Process().Open(c.path("b"), guest.Create|flags)
	fb.Write(0, bytesB)
	c.wrote[c.a] += bytesA
	c.wrote[c.b] += bytesB
	return fa, fb
}

func nfsDelayed(c *nfsCase) {
	syncWrites(c.Guest, func() { c.writeBoth(0) }, func() int64 { return c.m.Stats().ServerWrite })
}

// syncWrites has the sync of an outsider write to a server what two cgroups made dirty:
// bytesA and bytesB. onServer is how much the server has got so far.
func syncWrites(g *guest.Guest, write func(), onServer func() int64) {
	g.Helper()
	for range 3 {
		before := onServer()
		write()
		early := onServer() - before
		g.Sync()
		if early < bytesA+bytesB {
			return
		}
		// A kernel short of memory may begin by itself, also in kernel threads.
		g.Log("all bytes were written before the sync")
	}
	g.Error("three times the sync found nothing left to write")
}

func nfsClose(c *nfsCase) {
	fa, fb := c.writeBoth(0)
	fa.Close()
	fb.Close()
}

func nfsFsync(c *nfsCase) {
	fa, fb := c.writeBoth(0)
	fa.Fsync()
	fb.Fsync()
}

func nfsOSync(c *nfsCase) { c.writeBoth(os.O_SYNC) }

func nfsDirect(c *nfsCase) {
	fa := c.a.Process().Open(c.path("a"), guest.Create|guest.Direct)
	fa.WriteBlocks(0, 4194304, 1<<20)
	fb := c.b.Process().Open(c.path("b"), guest.Create|guest.Direct)
	fb.WriteBlocks(0, 2097152, 1<<20)
	c.wrote[c.a], c.wrote[c.b] = 4194304, 2097152
}

// nfsDirectForeign writes by O_DIRECT from memory that says nothing about the
// writer: the zero page, a huge page, shared memory that belongs to another.
func nfsDirectForeign(c *nfsCase) {
	pa, pb := c.a.Process(), c.b.Process()
	zero := pb.AllocUntouched(1 << 20)
	zero.WriteTo(pb.Open(c.path("zero"), guest.Create|guest.Direct), 0, 1<<20)
	huge := pb.AllocHuge(4 << 20)
	huge.WriteTo(pb.Open(c.path("huge"), guest.Create|guest.Direct), 0, 4<<20)
	shm := filepath.Join("/dev/shm", "nfs-"+c.version)
	sa := pa.Open(shm, guest.Create)
	sa.Truncate(2 << 20)
	sa.Map(0, 2<<20).Store()
	sb := pb.Open(shm, os.O_RDWR)
	sb.Map(0, 2<<20).WriteTo(pb.Open(c.path("shm"), guest.Create|guest.Direct), 0, 2<<20)
	c.wrote[c.b] = 7 << 20
	if err := os.Remove(shm); err != nil {
		c.Error(err)
	}
}

// mapped makes a file of n bytes with every page of it dirty through a mapping.
// The page faults read the file's holes from the server.
func (c *nfsCase) mapped(cg *guest.Cgroup, name string, n int64) (*guest.Process, *guest.Mapping) {
	p := cg.Process()
	f := p.Open(c.path(name), guest.Create)
	f.Truncate(n)
	m := f.Map(0, n)
	m.Store()
	c.wrote[cg] += n
	return p, m
}

// readsAsCounted expects for one cgroup the reads that mountstats counted: the test
// knows their owner, but not their number.
func (c *nfsCase) readsAsCounted(cg *guest.Cgroup) {
	var others int64
	for other, n := range c.read {
		if other != cg {
			others += n
		}
	}
	c.read[cg] = c.m.Stats().Sub(c.before).ServerRead - others
}

func nfsMmapMsync(c *nfsCase) {
	_, ma := c.mapped(c.a, "a", bytesA)
	c.readsAsCounted(c.a)
	_, mb := c.mapped(c.b, "b", bytesB)
	c.readsAsCounted(c.b)
	ma.Msync()
	mb.Msync()
}

func nfsMmapDelayed(c *nfsCase) {
	c.mapped(c.a, "a", bytesA)
	c.readsAsCounted(c.a)
	c.mapped(c.b, "b", bytesB)
	c.readsAsCounted(c.b)
	c.Sync()
}

// nfsRemovedCgroup flushes the dirty pages of a cgroup that is already removed.
func nfsRemovedCgroup(c *nfsCase) {
	gone := c.cgroup("gone")
	p, _ := c.mapped(gone, "f", bytesC)
	c.readsAsCounted(gone)
	p.Exit()
	gone.Remove()
	c.Sync()
}

// nfsAppend appends to a file whose last page another cgroup has in the cache.
func nfsAppend(c *nfsCase) {
	fa := c.a.Process().Open(c.path("f"), guest.Create)
	fa.Write(0, 1_000_001)
	fa.Fsync()
	c.wrote[c.a] = c.m.Stats().Sub(c.before).ServerWrite
	fb := c.b.Process().Open(c.path("f"), os.O_RDWR|os.O_APPEND)
	fb.Append(bytesC)
	c.Sync()
	c.wrote[c.b] = c.m.Stats().Sub(c.before).ServerWrite - c.wrote[c.a]
	if c.wrote[c.b] < bytesC {
		c.Errorf("%d bytes went out for %d appended", c.wrote[c.b], bytesC)
	}
	c.readsAsCounted(c.b)
}

func nfsOverwriteWritten(c *nfsCase) {
	fa := c.a.Process().Open(c.path("f"), guest.Create)
	fa.Write(0, bytesB)
	fa.Fsync()
	fb := c.b.Process().Open(c.path("f"), os.O_RDWR)
	fb.Write(0, bytesB)
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = bytesB, bytesB
	c.readsAsCounted(c.b)
}

func nfsOverwriteRead(c *nfsCase) {
	c.prepare("f", bytesB)
	c.a.Process().Open(c.path("f"), os.O_RDONLY).Read(0, bytesB)
	c.readsAsCounted(c.a)
	c.b.Process().Open(c.path("f"), os.O_RDWR).Write(0, bytesB)
	c.Sync()
	c.wrote[c.b] = bytesB
	c.readsAsCounted(c.b)
}

// path is the file of this case on its mount: all mounts show the same export.
func (c *nfsCase) path(name string) string { return c.m.File(c.name(name)) }

func (c *nfsCase) name(name string) string { return filepath.Base(c.m.Target) + "-" + name }

// prepare makes a file on the server, which the client has not seen.
func (c *nfsCase) prepare(name string, n int) {
	c.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i>>12 + i)
	}
	if err := os.WriteFile(filepath.Join("/srv", c.name(name)), data, 0o644); err != nil {
		c.Fatal(err)
	}
}

// nfsAlternate lets two cgroups write every other 16 KiB of one file: RPCs with
// pages of both are split.
func nfsAlternate(c *nfsCase) {
	const chunk, n = 16 << 10, 128
	fa := c.a.Process().Open(c.path("f"), guest.Create)
	fb := c.b.Process().Open(c.path("f"), os.O_RDWR)
	for i := int64(0); i < n; i++ {
		fa.Write(i*2*chunk, chunk)
		fb.Write(i*2*chunk+chunk, chunk)
	}
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = chunk*n, chunk*n
}

// nfsSameRange lets B rewrite a range that A made dirty and that is not flushed
// yet: it is written once and counts for A, the first to make it dirty.
func nfsSameRange(c *nfsCase) {
	fa := c.a.Process().Open(c.path("f"), guest.Create)
	fa.Write(0, 1<<20)
	fb := c.b.Process().Open(c.path("f"), os.O_RDWR)
	sent := c.m.Stats().Sub(c.before).ServerWrite // an open may flush (close-to-open)
	fb.Write(0, 1<<20)
	c.Sync()
	if sent == 0 {
		c.wrote[c.a] = c.m.Stats().Sub(c.before).ServerWrite
	} else {
		c.wrote[c.a], c.wrote[c.b] = 1<<20, 1<<20
	}
	c.readsAsCounted(c.b)
}

func nfsSyncMount(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	c := newNFSCase(g, "3", "sync")
	c.a.Process().Open(c.path("a"), guest.Create).Write(0, 1_000_001)
	c.b.Process().Open(c.path("b"), guest.Create).Write(0, 500_001)
	c.wrote[c.a], c.wrote[c.b] = 1_000_001, 500_001
	s := c.finish()
	s.check(tr.Stop())
}

// nfsOnePage writes 100 bytes a thousand times: the server gets them once.
func nfsOnePage(c *nfsCase) {
	fa := c.a.Process().Open(c.path("a"), guest.Create)
	fb := c.b.Process().Open(c.path("b"), guest.Create)
	for range 1000 {
		fa.WriteBlocks(0, 100, 100)
		fb.WriteBlocks(0, 100, 100)
	}
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = 100, 100
}

// nfsInherited writes in B to a descriptor that A opened.
func nfsInherited(c *nfsCase) {
	script := fmt.Sprintf(`exec 3<>%s; (echo $BASHPID > %s; exec dd if=/dev/zero bs=65536 count=16 status=none >&3)`,
		c.path("f"), c.b.File("cgroup.procs"))
	c.a.Run("bash", "-c", script)
	c.wrote[c.b] = 1 << 20
}

// readers opens a file of A's and one of B's that are on the server only.
func (c *nfsCase) readers(flags int) (fa, fb *guest.File) {
	c.prepare("a", bytesA)
	c.prepare("b", bytesB)
	return c.a.Process().Open(c.path("a"), os.O_RDONLY|flags), c.b.Process().Open(c.path("b"), os.O_RDONLY|flags)
}

func (c *nfsCase) readBoth() { c.read[c.a], c.read[c.b] = bytesA, bytesB }

func nfsReadCold(c *nfsCase) {
	fa, fb := c.readers(0)
	fa.Read(0, bytesA)
	fb.Read(0, bytesB)
	c.readBoth()
}

func nfsReadMmap(c *nfsCase) {
	fa, fb := c.readers(0)
	fa.MapRead(0, bytesA).Touch()
	fb.MapRead(0, bytesB).Touch()
	c.readBoth()
}

func nfsReadSendfile(c *nfsCase) {
	fa, fb := c.readers(0)
	fa.Sendfile(0, bytesA)
	fb.Sendfile(0, bytesB)
	c.readBoth()
}

func nfsReadDirect(c *nfsCase) {
	fa, fb := c.readers(guest.Direct)
	fa.ReadBlocks(0, bytesA+1<<20, 1<<20)
	fb.ReadBlocks(0, bytesB+1<<20, 1<<20)
	c.readBoth()
}

func nfsReadWarm(c *nfsCase) {
	fa, fb := c.readers(0)
	for range 3 {
		fa.Read(0, bytesA)
		fb.Read(0, bytesB)
	}
	c.readBoth()
}

// nfsReadAhead reads the first page: the kernel asks for more.
func nfsReadAhead(c *nfsCase) {
	fa, fb := c.readers(0)
	fa.ReadBlocks(0, 4096, 4096)
	c.readsAsCounted(c.a)
	fb.ReadBlocks(0, 4096, 4096)
	c.readsAsCounted(c.b)
	if c.read[c.a] < 4096 {
		c.Errorf("the server gave %d bytes for a page", c.read[c.a])
	}
}

func nfsURing(c *nfsCase) {
	fa := c.a.Process().Open(c.path("a"), guest.Create)
	fa.WriteURing(0, bytesA, 1<<16)
	fb := c.b.Process().Open(c.path("b"), guest.Create|guest.Direct)
	fb.WriteURing(0, 13<<16, 1<<16)
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = bytesA, 13<<16
	fb.ReadURing(0, 7<<16, 1<<16)
	c.read[c.b] = 7 << 16
}

// nfsMountedBefore starts the tracer on a mount in use: with dirty pages, a
// mapping and open files.
func nfsMountedBefore(g *guest.Guest) {
	g.HoldWriteback()
	for _, version := range []string{"3", "4.2"} {
		c := newNFSCase(g, version)
		fa := c.a.Process().Open(c.path("a"), guest.Create)
		fa.Write(0, 1<<20)
		fa.Fsync()
		fb := c.b.Process().Open(c.path("b"), guest.Create)
		fb.Truncate(bytesB)
		mb := fb.Map(0, bytesB)
		dirty := c.cgroup("dirty")
		dirty.Process().Open(c.path("d"), guest.Create).Write(0, bytesC)
		c.resetCounters()
		tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
		fa.Write(0, bytesA)
		mb.Store()
		c.readsAsCounted(c.b)
		c.Sync()
		c.wrote[c.a], c.wrote[c.b], c.wrote[dirty] = bytesA, bytesB, bytesC
		s := c.finish()
		s.check(tr.Stop())
	}
}

func nfsRemount(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	a := g.Cgroup("a")
	var want, ops int64
	for i := range int64(3) {
		for _, version := range []string{"3", "4.2"} {
			m := g.NFS(version)
			f := a.Process().Open(m.File("f"), guest.Create)
			f.Write(0, bytesC+i)
			g.Sync()
			d := m.Stats()
			want += d.ServerWrite // a file that is there already may grow by pages
			ops += d.Ops["WRITE"].Ops
			f.Close()
			g.Unmount(m.Target)
		}
	}
	r := tr.Stop()
	r.Equal("written by a", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs", "iotrace.cgroup.path", a.Path()), want)
	r.Equal("written in all", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs"), want)
	r.Equal("WRITE operations", r.Sum("iotrace.write.ops", "iotrace.source", "nfs"), ops)
}

// unloadNFS takes the client's modules out of the kernel.
func unloadNFS(g *guest.Guest) {
	g.Helper()
	var out string
	g.Eventually("unloading the NFS client", func() bool {
		if _, err := os.Stat("/sys/module/nfs"); err != nil {
			return true
		}
		for _, m := range []string{"nfsv4", "nfsv3", "nfs"} {
			if o, err := g.Try("rmmod", m); err != nil {
				out = o
			}
		}
		return false
	})
	_ = out
}

// awaitNFS waits until the tracer says that it has attached to the module.
func awaitNFS(g *guest.Guest, tr *guest.Tracer, times int) {
	g.Helper()
	g.Eventually("source nfs attached", func() bool {
		return strings.Count(tr.Stderr(), `msg="source attached" source=nfs`) >= times
	})
}

func nfsModuleLater(g *guest.Guest) {
	g.HoldWriteback()
	unloadNFS(g)
	tr := g.Trace(traced...)
	g.Modprobe("nfs")
	awaitNFS(g, tr, 1)
	var cases []finishedCase
	for _, version := range []string{"3", "4.2"} {
		c := newNFSCase(g, version)
		nfsDelayed(c)
		cases = append(cases, c.finish())
	}
	r := tr.Stop()
	for _, s := range cases {
		s.check(r)
	}
}

// nfsModuleReloaded unloads the module under a running tracer, twice.
func nfsModuleReloaded(g *guest.Guest) {
	g.HoldWriteback()
	unloadNFS(g)
	tr := g.Trace(traced...)
	a := g.Cgroup("a")
	var want int64
	for i := range 3 {
		g.Modprobe("nfs")
		awaitNFS(g, tr, i+1)
		for range 2 { // the second mount resumes a source that may be suspended
			m := g.NFS("3")
			f := a.Process().Open(m.File("f"), guest.Create)
			f.Write(0, bytesC+int64(i))
			f.Close()
			if got := m.Stats().ServerWrite; got != bytesC+int64(i) {
				g.Errorf("%d bytes written, want %d", got, bytesC+int64(i))
			}
			want += bytesC + int64(i)
			g.Unmount(m.Target)
			if i == 0 { // let it go to rest, so that the next mount has to wake it
				g.Eventually("source suspended", func() bool { return strings.Contains(tr.Stderr(), "source suspended") })
			}
		}
		unloadNFS(g)
	}
	r := tr.Stop()
	r.Equal("written by a", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs", "iotrace.cgroup.path", a.Path()), want)
	r.Equal("written in all", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs"), want)
}

// nfsModuleWaited names the source before its module is there.
func nfsModuleWaited(g *guest.Guest) {
	g.HoldWriteback()
	unloadNFS(g)
	if out := g.Tracer("check", "--source", "nfs"); !strings.Contains(out, "waiting: module \"nfs\" is not loaded") {
		g.Errorf("check says %q", out)
	}
	// A killed tracer leaves its probes in the kernel's list; the next one removes them.
	killed := g.Trace("--source", "nfs")
	if err := syscall.Kill(killed.PID(), syscall.SIGKILL); err != nil {
		g.Fatal(err)
	}
	g.Eventually("the end of a tracer", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", killed.PID()))
		return err != nil
	})
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	probes, of := g.ReadFile("/sys/kernel/tracing/kprobe_events"), func(tr *guest.Tracer) string { return fmt.Sprintf("iotrace_bpf_%d/", tr.PID()) }
	if strings.Contains(probes, of(killed)) || !strings.Contains(probes, of(tr)) {
		g.Errorf("process %d was killed, %d waits; probes:\n%s", killed.PID(), tr.PID(), probes)
	}
	if !strings.Contains(tr.Stderr(), `msg="source waits for its module to be loaded" source=nfs`) {
		g.Error("nothing says that the source waits")
	}
	g.Eventually("the status", func() bool {
		for _, d := range tr.Now().Docs {
			if strings.Contains(d.String("iotrace.sources.nfs.reason"), "not loaded") {
				return true
			}
		}
		return false
	})
	g.Modprobe("nfs")
	awaitNFS(g, tr, 1)
	var cases []finishedCase
	for _, version := range []string{"3", "4.2"} {
		c := newNFSCase(g, version)
		nfsDelayed(c)
		cases = append(cases, c.finish())
	}
	r := tr.Stop()
	for _, s := range cases {
		s.check(r)
	}
}

// nfsModuleByMount lets a mount load the module, and writes and reads as soon as
// the mount exists, without waiting for the tracer.
func nfsModuleByMount(g *guest.Guest) {
	g.HoldWriteback()
	g.NFSServer()
	unloadNFS(g)
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	data := make([]byte, 65_537)
	var wrote, read, writes, reads int64
	const rounds = 4
	for i := range rounds {
		version := []string{"4.2", "3"}[i%2]
		m := g.NFSMountNow(version, fmt.Sprintf("/mnt/now-%d", i))
		name := m.File(fmt.Sprintf("now-%d", i))
		if err := os.WriteFile(name, data, 0o644); err != nil { // flushed when it is closed
			g.Fatal(err)
		}
		m.DropCaches()
		if _, err := os.ReadFile(name); err != nil {
			g.Fatal(err)
		}
		s := m.Stats()
		wrote, writes = wrote+s.ServerWrite, writes+s.Ops["WRITE"].Ops
		read, reads = read+s.ServerRead, reads+s.Ops["READ"].Ops+s.Ops["READ_PLUS"].Ops
		if err := os.Remove(name); err != nil {
			g.Error(err)
		}
		g.Unmount(m.Target)
		unloadNFS(g)
	}
	r := tr.Stop()
	if wrote != rounds*65_537 || read < wrote/2 { // a page may have stayed in the cache
		g.Errorf("the server got %d bytes and gave %d", wrote, read)
	}
	r.Equal("written", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs"), wrote)
	r.Equal("read", r.Sum("iotrace.read.bytes", "iotrace.source", "nfs"), read)
	r.Equal("WRITE operations", r.Sum("iotrace.write.ops", "iotrace.source", "nfs"), writes)
	r.Equal("READ operations", r.Sum("iotrace.read.ops", "iotrace.source", "nfs"), reads)
	if left := g.ReadFile("/sys/kernel/tracing/kprobe_events"); strings.Contains(left, "iotrace") {
		g.Errorf("probes were left behind:\n%s", left)
	}
	for _, line := range strings.Split(tr.Stderr(), "\n") {
		if strings.Contains(line, `msg="source attached"`) || strings.Contains(line, "cannot attach a hook before its module") {
			g.Log(line)
		}
		if strings.Contains(line, "programs=late") {
			g.Error("the programs were not prepared")
		}
	}
}

// nfsServerDown flushes while the server does not answer.
func nfsServerDown(c *nfsCase) {
	f := c.a.Process().Open(c.path("f"), guest.Create)
	f.Write(0, bytesC)
	c.NFSServerDown()
	c.restarted = true
	flush := exec.Command("sync")
	if err := flush.Start(); err != nil {
		c.Fatal(err)
	}
	c.Eventually("writeback begun", func() bool { return c.Meminfo("Writeback") > 0 })
	c.NFSServerUp()
	if err := flush.Wait(); err != nil {
		c.Error(err)
	}
	c.Sync()
	c.wrote[c.a] = bytesC
}

// nfsServerRestarted restarts the server between WRITE and COMMIT.
func nfsServerRestarted(c *nfsCase) {
	f := c.a.Process().Open(c.path("f"), guest.Create)
	f.Write(0, bytesC)
	f.StartWriteback()
	c.restarted = true
	c.NFSServerDown()
	c.NFSServerUp()
	f.Fsync()
	c.wrote[c.a] = c.m.Stats().Sub(c.before).ServerWrite // more if the server lost data
	if c.wrote[c.a] < bytesC {
		c.Errorf("%d bytes written, want at least %d", c.wrote[c.a], bytesC)
	}
}

// nfsUmountForce takes a mount away while its server is down and pages are dirty.
func nfsUmountForce(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	c := newNFSCase(g, "3", "soft")
	p := c.a.Process()
	f := p.Open(c.path("f"), guest.Create)
	f.Write(0, bytesC)
	id := c.m.ID()
	g.NFSServerDown()
	flush := exec.Command("sync")
	if err := flush.Start(); err != nil {
		g.Fatal(err)
	}
	g.Eventually("writeback begun", func() bool { return g.Meminfo("Writeback") > 0 })
	_, _ = g.Try("umount", "-f", c.m.Target) // fails all requests; the file keeps the mount busy
	p.Kill()
	_, _ = g.Try("umount", "-l", "-f", c.m.Target)
	if err := flush.Wait(); err != nil {
		g.Error(err)
	}
	g.NFSServerUp()
	after := newNFSCase(g, "3")
	after.a.Process().Open(after.path("g"), guest.Create).Write(0, bytesA)
	g.Sync()
	got := after.m.Stats().ServerWrite
	r := tr.Stop()
	r.Equal("the next mount", got, bytesA)
	r.Equal("written to the next mount", r.Written("nfs", after.m.ID(), after.a), bytesA)
	// Bytes for the removed mount count once, even if they were sent several times.
	lost := r.Written("nfs", id, c.a)
	if lost > bytesC {
		g.Errorf("a wrote %d bytes to the removed mount, of %d", lost, bytesC)
	}
	r.Equal("written in all", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs"), lost+bytesA)
}

func nfsSmallFiles(g *guest.Guest) {
	const files = 10_000
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	c := newNFSCase(g, "3")
	c.wrote[c.a] = writeSmallFiles(c.a, c.path("a"), files/2)
	c.wrote[c.b] = writeSmallFiles(c.b, c.path("b"), files/2)
	s := c.finish()
	r := tr.Stop()
	s.check(r)
	r.Equal("WRITEs of a", r.Sum("iotrace.write.ops", "iotrace.source", "nfs", "iotrace.cgroup.path", c.a.Path()), files/2)
	if got := r.Sum("iotrace.metadata.ops", "iotrace.source", "nfs", "iotrace.cgroup.path", c.b.Path()); got < files/2 {
		g.Errorf("b made %d files with %d metadata operations", files/2, got)
	}
}

func nfsWriters64(c *nfsCase) {
	for i := range int64(64) {
		cg := c.cgroup("w" + strconv.FormatInt(i, 10))
		f := cg.Process().Open(c.path(fmt.Sprintf("f%d", i)), guest.Create)
		f.Write(0, 100_003+i*1_013)
		c.wrote[cg] = 100_003 + i*1_013
	}
	c.Sync()
}

// nfsNoMemory switches the memory controller off, so no page knows its cgroup.
func nfsNoMemory(g *guest.Guest) {
	g.HoldWriteback()
	const control = "/sys/fs/cgroup/cgroup.subtree_control"
	g.WriteFile(control, "-memory")
	g.Cleanup(func() {
		if err := os.WriteFile(control, []byte("+memory"), 0o644); err != nil {
			g.Error(err)
		}
	})
	nfs(func(c *nfsCase) {
		c.writeBoth(0)
		c.Sync()
	})(g)
}

// nfsMetadata compares operations without data with mountstats.
func nfsMetadata(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs"}, traced...)...)
	type result struct {
		c    *nfsCase
		want int64
	}
	var results []result
	for _, version := range []string{"3", "4.2"} {
		c := newNFSCase(g, version)
		script := `mkdir %[1]s; cd %[1]s; for i in 1 2 3 4 5 6 7; do mkdir d$i; : > d$i/f; ln -s f d$i/l; done; ls -lR > /dev/null; mv d1 e1; rm -r d2; stat nothere 2> /dev/null; true`
		c.a.Run("bash", "-c", fmt.Sprintf(script, c.path("a")))
		c.b.Run("bash", "-c", fmt.Sprintf(script, c.path("b")))
		d := c.m.Stats().Sub(c.before)
		var want int64
		for name, op := range d.Ops {
			switch name {
			case "READ", "READ_PLUS", "WRITE", "COMMIT", "SEQUENCE", "RENEW": // the last two keep the lease
			default:
				want += op.Ops
			}
		}
		results = append(results, result{c, want})
	}
	r := tr.Stop()
	for _, x := range results {
		ops := func(cg *guest.Cgroup) int64 {
			return r.Sum("iotrace.metadata.ops", "iotrace.source", "nfs", "iotrace.cgroup.path", cg.Path())
		}
		r.Equal("v"+x.c.version+" operations of a and b", ops(x.c.a)+ops(x.c.b), x.want)
		if a, b := ops(x.c.a), ops(x.c.b); a < 40 || b < 40 {
			g.Errorf("v%s: a did %d operations, b %d: at least 40 each", x.c.version, a, b)
		}
	}
}

// nfsAppLevel compares the programs' I/O with the requests to the server.
func nfsAppLevel(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs", "--level", "both"}, traced...)...)
	c := newNFSCase(g, "3")
	c.prepare("r", bytesB)
	fa := c.a.Process().Open(c.path("a"), guest.Create)
	for range 1000 {
		fa.WriteBlocks(0, 100, 100)
	}
	fb := c.b.Process().Open(c.path("r"), os.O_RDONLY)
	fb.Read(0, bytesB)
	fb.Read(0, bytesB) // from the cache
	fb.Sendfile(0, bytesB)
	id := c.m.ID()
	g.Sync()
	d := c.m.Stats().Sub(c.before)
	r := tr.Stop()
	at := func(level, field string, cg *guest.Cgroup) int64 {
		return r.Sum(field, "iotrace.source", "nfs", "iotrace.level", level, "iotrace.device.id", id, "iotrace.cgroup.path", cg.Path())
	}
	r.Equal("wire write", at("wire", "iotrace.write.bytes", c.a), 100)
	r.Equal("app write", at("app", "iotrace.write.bytes", c.a), 100_000)
	r.Equal("app writes", at("app", "iotrace.write.ops", c.a), 1000)
	r.Equal("wire read", at("wire", "iotrace.read.bytes", c.b), bytesB)
	r.Equal("app read", at("app", "iotrace.read.bytes", c.b), 3*bytesB)
	r.Equal("server", d.ServerWrite+d.ServerRead, 100+bytesB)
}

// nfsNoLatency traces without the programs that note the ends of writes.
func nfsNoLatency(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace(append([]string{"--source", "nfs", "--latency=false"}, traced...)...)
	var cases []finishedCase
	for _, version := range []string{"3", "4.2"} {
		c := newNFSCase(g, version)
		c.prepare("r", bytesC)
		for range 3 { // requests use the same memory again
			fa, fb := c.writeBoth(0)
			fa.Fsync()
			fb.Fsync()
		}
		c.a.Process().Open(c.path("r"), os.O_RDONLY).Read(0, bytesC)
		c.read[c.a] = bytesC
		cases = append(cases, c.finish())
	}
	r := tr.Stop()
	for _, s := range cases {
		s.check(r)
	}
}

func nfsByProcess(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace("--source", "nfs", "--by", "cgroup,device,process")
	c := newNFSCase(g, "3")
	pa, pb := c.a.Process(), c.b.Process()
	pa.Open(c.path("a"), guest.Create).Write(0, bytesA)
	pb.Open(c.path("b"), guest.Create).Write(0, bytesB)
	c.wrote[c.a], c.wrote[c.b] = bytesA, bytesB
	s := c.finish()
	r := tr.Stop()
	s.check(r)
	for p, n := range map[*guest.Process]int64{pa: bytesA, pb: bytesB} {
		r.Equal("by process", r.Sum("iotrace.write.bytes", "iotrace.source", "nfs", "process.pid", strconv.Itoa(p.PID())), n)
	}
}

// nfsEvents compares one record per RPC with mountstats.
func nfsEvents(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	tr := g.Trace("--source", "nfs", "--events")
	c := newNFSCase(g, "4.2")
	c.prepare("r", bytesC)
	c.writeBoth(0)
	c.Sync()
	c.b.Process().Open(c.path("r"), os.O_RDONLY).Read(0, bytesC)
	s := c.finish()
	r := tr.Stop()
	type total struct{ ops, bytes, slow int64 }
	got := map[string]total{}
	for _, d := range r.Docs {
		if d.String("event.dataset") != "iotrace.event" || d.String("iotrace.device.id") != s.id {
			continue
		}
		op := d.String("iotrace.op")
		t := got[op]
		t.ops++
		t.bytes += d.Int("iotrace.request.bytes")
		if d.Int("iotrace.request.latency") > 0 {
			t.slow++
		}
		got[op] = t
	}
	w, rd := s.d.Ops["WRITE"].Ops, s.d.Ops["READ"].Ops+s.d.Ops["READ_PLUS"].Ops
	if want := (total{w, bytesA + bytesB, w}); got["write"] != want {
		g.Errorf("write records %+v, want %+v", got["write"], want)
	}
	if want := (total{rd, bytesC, rd}); got["read"] != want {
		g.Errorf("read records %+v, want %+v", got["read"], want)
	}
	if g.Failed() {
		g.Logf("records: %+v", got)
	}
}

// nfsBlog repeats the experiment that this project began with: NFS is mounted on a
// directory of an ext4 file system on a loop device, and a container writes there.
// The loop device, the obvious place to look, shows nothing.
func nfsBlog(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	g.Exec("truncate", "-s", "64M", "/tmp/disk.img")
	loop := g.Loop("/tmp/disk.img")
	loop.Format("ext4")
	loop.MountAt("ext4", "/mnt/blog", "")
	g.Cleanup(func() { os.Remove("/tmp/disk.img") })
	g.Exec("mkdir", "-p", "/mnt/blog/data")
	g.Sync()
	tr := g.Trace(traced...)
	for _, version := range []string{"3", "4.2"} {
		a := g.Cgroup("a")
		m := g.NFSAt(version, "/mnt/blog/data")
		before, disk := m.Stats(), loop.Stats()
		a.Run("dd", "if=/dev/zero", "of=/mnt/blog/data/file", "bs=1000003", "count=13", "status=none")
		g.Sync()
		d, moved := m.Stats().Sub(before), loop.Stats().Sub(disk)
		id := m.ID()
		g.Eventually("the row", func() bool { return tr.Now().Written("nfs", id, a) == d.ServerWrite })
		r := tr.Now()
		r.Equal("mountstats", d.ServerWrite, 13*1000003)
		r.Equal("the container's row", r.Written("nfs", id, a), d.ServerWrite)
		r.Equal("the loop device's row", r.Written("block", loop.ID(), a), 0)
		if moved.WriteBytes > 64<<10 { // the superblock, now and then
			g.Errorf("the loop device wrote %d bytes", moved.WriteBytes)
		}
		g.Unmount(m.Target)
	}
	tr.Stop()
}

// nfsCost measures the time of the programs per RPC, and that of a block request
// for comparison. In an emulated guest only their ratio counts.
func nfsCost(g *guest.Guest) {
	g.HoldWriteback()
	g.NFS("3")
	g.Knob("/proc/sys/kernel/bpf_stats_enabled", "1")
	disk := g.NVMe()
	tr := g.Trace(append([]string{"--source", "nfs,block"}, traced...)...)
	block := blockCost(g, disk)
	c := newNFSCase(g, "3")
	p := c.a.Process()
	f := p.Open(c.path("f"), guest.Create)
	const size = 16 << 20
	ops := func(names ...string) func() int64 {
		return func() (n int64) {
			for _, name := range names {
				n += c.m.Stats().Ops[name].Ops
			}
			return n
		}
	}
	rpc := []string{"iot_function_", "iot_initiate_", "iot_writeback_", "iot_readpage_", "iot_commit_", "iot_rpc_", "iot_refresh_"}
	write := measureCost(g, rpc, ops("WRITE"), func() {
		f.Write(0, size)
		f.Fsync()
		c.wrote[c.a] += size
	})
	read := measureCost(g, rpc, ops("READ", "READ_PLUS"), func() {
		g.DropCaches()
		f.Read(0, size)
		c.read[c.a] += size
	})
	g.Logf("NFS WRITE %.0f ns, %.1f times a block request; NFS READ %.0f ns, %.1f times; block request %.0f ns",
		write, write/block, read, read/block, block)
	s := c.finish()
	s.check(tr.Stop())
}
