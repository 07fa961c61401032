//go:build vm

package vmtests

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// TestP9 compares the rows of source 9p with what a server in the guest was asked for and
// with each cgroup's I/O, to the byte. The server is diod, over TCP; what it exports
// counts.
func TestP9(t *testing.T) {
	suite{
		source:   "9p",
		image:    "9p",
		memory:   1536,
		deadline: 40 * time.Minute, // for ten thousand small files

		// Cloud kernels have no 9p.
		flavour: vm.Generic,
		quick:   onlyOn("6.12-generic"),
		scenarios: []scenario{
			{name: "module_loaded_later", run: p9ModuleLater, smoke: true}, // before others load it
			{name: "delayed", run: p9("loose", p9Delayed), smoke: true},
			{name: "delayed_mmap", run: p9("mmap", p9Delayed), smoke: true, since: "6.12", why: "cache=mmap writes through before 6.4", quick: never},
			{name: "uncached", run: p9("none", p9Uncached), smoke: true, quick: never},
			{name: "mapped", run: p9("loose", (*p9Case).mapped), smoke: true, quick: never},
			{name: "mapped_mmap", run: p9("mmap", (*p9Case).mapped), smoke: true, quick: never},
			{name: "dead_writer", run: p9("loose", (*p9Case).deadWriter), smoke: true, quick: never},
			{name: "overwrite_written", run: p9("loose", (*p9Case).overwrite), smoke: true, quick: never},
			{name: "alternate_writers", run: p9("loose", (*p9Case).alternate), smoke: true},
			{name: "append", run: p9("loose", (*p9Case).appended), smoke: true, quick: never},
			{name: "osync", run: p9("loose", (*p9Case).osync), smoke: true, quick: never},
			{name: "read_cold", run: p9("loose", (*p9Case).readCold), smoke: true},
			{name: "read_mmap", run: p9("loose", (*p9Case).readMmap), smoke: true, quick: never},
			{name: "read_ahead", run: p9("loose", p9ReadAhead), smoke: true, quick: never},
			{name: "writers_64", run: p9("loose", p9Writers64), smoke: true, quick: never},
			{name: "mount", run: p9Named, smoke: true, quick: never},
			{name: "metadata", run: p9Metadata, smoke: true, quick: never},
			{name: "small_files", run: p9("loose", (*p9Case).smallFiles), smoke: true, quick: never},
			{name: "server_gone", run: p9ServerGone, smoke: true, quick: never},
		},
	}.test(t)
}

// p9Case is one scenario on one mount, with the bytes that each cgroup wrote and read.
type p9Case struct {
	remoteCase
	server *guest.P9Server
	m      *guest.P9Mount
	before guest.FUSECount
	late   bool // operations count from the moment on when the source is attached
}

func newP9Case(g *guest.Guest, server *guest.P9Server, cache string) *p9Case {
	c := &p9Case{remoteCase: newRemoteCase(g), server: server}
	c.before = server.Count()
	c.m = g.P9TCP(server, cache)
	c.file, c.open = c.m.File, c.readers
	c.sent = func() remoteBytes { n := c.counted(); return remoteBytes{n.ReadBytes, n.WriteBytes} }
	return c
}

// counted is what the server did since the scenario's begin.
func (c *p9Case) counted() guest.FUSECount { c.Helper(); return c.server.Count().Sub(c.before) }

// check compares rows with the server's counters and with the cgroups' I/O.
func (c *p9Case) check(r *guest.Output, id string, want guest.FUSECount) {
	c.Helper()
	for cg, n := range c.wrote {
		r.Equal("written by "+cg.Path(), r.Written("9p", id, cg), n)
	}
	for cg, n := range c.read {
		r.Equal("read by "+cg.Path(), r.Read("9p", id, cg), n)
	}
	sum := func(field string) int64 {
		return r.Sum(field, "iotrace.source", "9p", "iotrace.level", "wire", "iotrace.device.id", id)
	}
	r.Equal("written", sum("iotrace.write.bytes"), want.WriteBytes)
	r.Equal("read", sum("iotrace.read.bytes"), want.ReadBytes)
	if writes, reads := sum("iotrace.write.ops"), sum("iotrace.read.ops"); c.late {
		if writes < 1 || writes > want.WriteOps || reads > want.ReadOps {
			c.Errorf("%d writes and %d reads, want some of the %d and %d", writes, reads, want.WriteOps, want.ReadOps)
		}
		want.WriteOps, want.ReadOps = writes, reads
	}
	r.Equal("WRITE operations", sum("iotrace.write.ops"), want.WriteOps)
	r.Equal("READ operations", sum("iotrace.read.ops"), want.ReadOps)
	r.Equal("unattributed", sum("iotrace.basis.none"), 0)
	r.Equal("errors", sum("iotrace.write.errors")+sum("iotrace.read.errors"), 0)
	if want.WriteOps > 0 && sum("iotrace.write.latency.max") == 0 {
		c.Error("no write has a latency")
	}
	if want.ReadOps > 0 && sum("iotrace.read.latency.max") == 0 {
		c.Error("no read has a latency")
	}
	lost, skipped := losses(r)
	r.Equal("lost", lost, 0)
	if skipped > 0 {
		c.Logf("the kernel skipped %d runs of programs", skipped)
	}
}

// p9 runs a scenario on a mount under one tracer.
func p9(cache string, run func(*p9Case)) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		server := g.P9Server()
		g.Modprobe("9p")
		tr := g.Trace(append([]string{"--source", "9p"}, traced...)...)
		c := newP9Case(g, server, cache)
		run(c)
		c.Sync()
		id, want := c.m.ID(), c.counted()
		c.check(tr.Stop(), id, want)
	}
}

func p9ModuleLater(g *guest.Guest) {
	g.HoldWriteback()
	server := g.P9Server()
	tr := g.Trace(append([]string{"--source", "9p"}, traced...)...)
	c := newP9Case(g, server, "loose") // the mount loads the module
	// There the compiler gave the function that makes messages another name, and its
	// tracepoint cannot be attached before the module. Bytes have functions of their own.
	c.late = !g.AtLeast(6, 1)
	p9Delayed(c)
	c.Sync()
	id, want := c.m.ID(), c.counted()
	c.check(tr.Stop(), id, want)
}

// p9Delayed has an outsider write what two cgroups made dirty.
func p9Delayed(c *p9Case) {
	syncWrites(c.Guest, func() { c.writeBoth(0) }, func() int64 { return c.counted().WriteBytes })
}

// p9Uncached writes and reads without the page cache.
func p9Uncached(c *p9Case) {
	fa := c.a.Process().Open(c.m.File("a"), guest.Create)
	fa.Write(0, bytesA)
	fb := c.b.Process().Open(c.m.File("b"), guest.Create)
	fb.Write(0, bytesB)
	fa.Read(0, bytesA)
	fb.Read(0, bytesB)
	c.wrote[c.a], c.wrote[c.b] = bytesA, bytesB
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

// readers opens a file of A's and one of B's that are on the server only.
func (c *p9Case) readers(flags int) (fa, fb *guest.File) {
	c.server.Prepare("a", bytesA)
	c.server.Prepare("b", bytesB)
	return c.a.Process().Open(c.m.File("a"), os.O_RDONLY|flags), c.b.Process().Open(c.m.File("b"), os.O_RDONLY|flags)
}

// p9ReadAhead reads the first page: the kernel may ask for more.
func p9ReadAhead(c *p9Case) {
	fa, fb := c.readers(0)
	fa.ReadBlocks(0, 4096, 4096)
	c.readsAsCounted(c.a)
	fb.ReadBlocks(0, 4096, 4096)
	c.readsAsCounted(c.b)
	if c.read[c.a] < 4096 {
		c.Errorf("the server gave %d bytes for a page", c.read[c.a])
	}
}

func p9Writers64(c *p9Case) {
	for i := range int64(64) {
		cg := c.cgroup("w" + string(rune('0'+i/10)) + string(rune('0'+i%10)))
		n := 100_003 + i*1_013
		cg.Process().Open(c.m.File(filepath.Base(cg.Path())), guest.Create).Write(0, n)
		c.wrote[cg] = n
	}
	c.Sync()
}

// p9Named groups by mount: the transport is named.
func p9Named(g *guest.Guest) {
	g.HoldWriteback()
	server := g.P9Server()
	g.Modprobe("9p")
	tr := g.Trace("--by", "mount")
	c := newP9Case(g, server, "loose")
	c.writeBoth(0)
	c.Sync()
	id := c.m.ID()
	r := tr.Stop()
	r.Equal("written to the server", r.Sum("iotrace.write.bytes", "iotrace.source", "9p", "iotrace.device.id", id,
		"iotrace.9p.transport", "tcp", "iotrace.9p.tag", "", "iotrace.mount.source", "127.0.0.1"), bytesA+bytesB)
}

// p9Metadata counts operations without data for the cgroup that asks for them.
func p9Metadata(g *guest.Guest) {
	server := g.P9Server()
	g.Modprobe("9p")
	tr := g.Trace(append([]string{"--source", "9p"}, traced...)...)
	c := newP9Case(g, server, "none")
	f := c.a.Process().Open(c.m.File("a"), guest.Create)
	f.Write(0, 4096)
	f.Fsync()
	f.Fsync()
	p := c.b.Process()
	for range 10 {
		p.Open(c.m.File("a"), os.O_RDONLY).Close()
	}
	id := c.m.ID()
	r := tr.Stop()
	of := func(field string, cg *guest.Cgroup) int64 {
		return r.Sum(field, "iotrace.source", "9p", "iotrace.device.id", id, "iotrace.cgroup.path", cg.Path())
	}
	r.Equal("fsyncs of a", of("iotrace.flush.ops", c.a), 2)
	r.Equal("fsyncs of b", of("iotrace.flush.ops", c.b), 0)
	// Each open takes a walk, an open and a clunk at least.
	if n := of("iotrace.metadata.ops", c.b); n < 30 {
		g.Errorf("%d metadata operations of ten opens\n%s", n, r.Table("9p"))
	}
}

// p9ServerGone: what a server no longer answers is an error, and no bytes.
func p9ServerGone(g *guest.Guest) {
	server := g.P9Server()
	server.Prepare("b", bytesB)
	g.Modprobe("9p")
	tr := g.Trace(append([]string{"--source", "9p"}, traced...)...)
	c := newP9Case(g, server, "none")
	f := c.a.Process().Open(c.m.File("b"), os.O_RDONLY)
	f.Read(0, 8192)
	id, before := c.m.ID(), c.counted()
	server.Kill()
	if f.TryRead(8192, 4096, 4096) == "" {
		g.Error("a read from a server that is gone succeeded")
	}
	r := tr.Stop()
	r.Equal("read", r.Read("9p", id, c.a), before.ReadBytes)
	if r.Sum("iotrace.read.errors", "iotrace.source", "9p", "iotrace.device.id", id, "iotrace.cgroup.path", c.a.Path()) < 1 {
		g.Errorf("the read that failed is no error\n%s", r.Table("9p"))
	}
}

// TestP9Virtio proves the source on the directories that QEMU shares. Every scenario has a
// share of its own. What it shares is a file system on this machine that counts, and the
// guest's rows must equal its bytes exactly. Messages are not compared: the kernel of this
// machine may divide what QEMU asks of it.
func TestP9Virtio(t *testing.T) {
	s := suite{
		source:  "9p-virtio",
		hooks:   "9p",
		once:    true,
		flavour: vm.Generic,
		quick:   never, // TestP9 covers the owners
		scenarios: []scenario{
			{name: "delayed", run: p9VirtioDelayed, smoke: true},
			{name: "uncached", run: p9VirtioUncached, smoke: true},
			{name: "overwrite", run: p9VirtioOverwrite, smoke: true},
			{name: "direct", run: p9VirtioDirect, smoke: true, before: "6.12", why: "9p refuses O_DIRECT since netfs does its I/O"}, // diod refuses it always
			{name: "read", run: p9VirtioRead, smoke: true},
		},
	}
	if guest.Inside() {
		s.test(t)
		return
	}
	s.checkSection(t)
	if *flagSupport {
		return
	}
	t.Parallel()
	kernels, err := selectedOf(vm.Generic)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		names := s.expected(t, k)
		if len(names) == 0 || !s.hasModules(k) {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			counted := map[string]*guest.FUSEServer{}
			s := s
			for _, name := range names {
				dir, server := countedShare(t)
				counted[name] = server
				s.shares = append(s.shares, vm.Share{Tag: name, Dir: dir, P9: true})
			}
			o := s.boot(t, k)
			for _, name := range names {
				r := o.tests[name]
				if r == nil || r.action != "pass" {
					continue // has failed already
				}
				var got, want p9Bytes
				_, text, ok := strings.Cut(r.output.String(), p9Mark)
				if !ok || json.NewDecoder(strings.NewReader(text)).Decode(&got) != nil {
					t.Errorf("%s: the guest reported no totals:\n%s", name, r.output.String())
				}
				n := counted[name].Count()
				want = p9Bytes{n.ReadBytes, n.WriteBytes}
				if got != want || want == (p9Bytes{}) {
					t.Errorf("%s: the guest's rows say %+v, the shared file system counted %+v", name, got, want)
				}
			}
		})
	}
}

const p9Mark = "iotrace-9p: "

// p9Bytes are the sums of a guest's rows, for the host to compare.
type p9Bytes struct{ Read, Write int64 }

// p9Share is a share of the host, with a tracer.
type p9Share struct {
	*guest.Guest
	m    *guest.P9Mount
	tr   *guest.Tracer
	a, b *guest.Cgroup
}

func newP9Share(g *guest.Guest, cache string) *p9Share {
	g.HoldWriteback()
	g.Modprobe("9p")
	s := &p9Share{Guest: g, a: g.Cgroup("a"), b: g.Cgroup("b")}
	s.tr = g.Trace("--by", "cgroup,mount", "--source", "9p")
	s.m = g.P9Virtio(filepath.Base(g.Name()), cache)
	return s
}

// owns ends the tracer and compares what A and B wrote and read, of which all is.
func (s *p9Share) owns(readA, wroteA, readB, wroteB int64) {
	s.Helper()
	s.Sync()
	id := s.m.ID()
	r := s.tr.Stop()
	r.Equal("read by a", r.Read("9p", id, s.a), readA)
	r.Equal("written by a", r.Written("9p", id, s.a), wroteA)
	r.Equal("read by b", r.Read("9p", id, s.b), readB)
	r.Equal("written by b", r.Written("9p", id, s.b), wroteB)
	of := []string{"iotrace.source", "9p", "iotrace.device.id", id, "iotrace.9p.transport", "virtio", "iotrace.9p.tag", filepath.Base(s.Name())}
	b, err := json.Marshal(p9Bytes{r.Sum("iotrace.read.bytes", of...), r.Sum("iotrace.write.bytes", of...)})
	if err != nil {
		s.Fatal(err)
	}
	s.Log(p9Mark + string(b))
}

func p9VirtioDelayed(g *guest.Guest) {
	s := newP9Share(g, "loose")
	s.a.Process().Open(s.m.File("new-a"), guest.Create).Write(0, sizeA)
	s.b.Process().Open(s.m.File("new-b"), guest.Create).Write(0, sizeC)
	s.owns(0, sizeA, 0, sizeC)
}

func p9VirtioUncached(g *guest.Guest) {
	s := newP9Share(g, "none")
	s.a.Process().Open(s.m.File("new"), guest.Create).Write(0, sizeC)
	s.b.Process().Open(s.m.File("new"), os.O_RDONLY).Read(0, sizeC)
	s.owns(0, sizeC, sizeC, 0)
}

func p9VirtioDirect(g *guest.Guest) {
	s := newP9Share(g, "none")
	s.a.Process().Open(s.m.File("new"), guest.Create|guest.Direct).WriteBlocks(0, 4<<20, 1<<20)
	s.b.Process().Open(s.m.File("new"), os.O_RDONLY|guest.Direct).ReadBlocks(0, 4<<20, 1<<20)
	s.owns(0, 4<<20, 4<<20, 0)
}

// p9VirtioOverwrite: A read the file, so its pages are A's; B writes to them.
func p9VirtioOverwrite(g *guest.Guest) {
	s := newP9Share(g, "loose")
	s.a.Process().Open(s.m.File("a"), os.O_RDWR).Read(0, 4<<20)
	s.b.Process().Open(s.m.File("a"), os.O_RDWR).Write(0, 4<<20)
	s.owns(4<<20, 0, 0, 4<<20)
}

func p9VirtioRead(g *guest.Guest) {
	s := newP9Share(g, "loose")
	s.a.Process().Open(s.m.File("a"), os.O_RDONLY).Read(0, 4<<20)
	s.b.Process().Open(s.m.File("odd"), os.O_RDONLY).MapRead(0, sizeC).Touch()
	s.owns(4<<20, 0, sizeC, 0)
}
