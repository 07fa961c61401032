//go:build vm

package vmtests

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestWorkload proves the harness itself on every kernel: the kernel's own counters
// show exactly the I/O that the workload programs were asked to do. It needs no
// tracer.
func TestWorkload(t *testing.T) {
	suite{
		source:   "",
		noTracer: true,
		quick:    oldestAndNewest,
		scenarios: []scenario{
			{name: "direct", run: workloadDirect, smoke: true},
			{name: "buffered", run: workloadBuffered, smoke: true},
			{name: "charged", run: workloadCharged, smoke: true},
			{name: "nfs", run: workloadNFS, smoke: true},
			{name: "fuse", run: workloadFUSE, smoke: true},
			{name: "fuse_passthrough", run: workloadPassthrough, since: "6.12", why: "FUSE passthrough came with 6.9"},
			{name: "programs", run: workloadPrograms, smoke: true},
		},
	}.test(t)
}

// workloadDirect writes and reads exact bytes on both scratch disks.
func workloadDirect(g *guest.Guest) {
	p := g.Cgroup("a").Process()
	for _, d := range []guest.Disk{g.NVMe(), g.Virtio()} {
		f := p.Open(d.Path(), os.O_RDWR|guest.Direct)
		before := d.Stats()
		f.WriteBlocks(0, 13<<16, 1<<16)
		f.ReadBlocks(0, 7<<16, 1<<16)
		f.WriteURing(1<<20, 5<<16, 1<<16)
		f.ReadURing(1<<20, 3<<16, 1<<16)
		got := d.Stats().Sub(before)
		want := guest.IOStats{WriteOps: 18, WriteBytes: 18 << 16, ReadOps: 10, ReadBytes: 10 << 16}
		if got != want {
			g.Errorf("%s counted %+v, want %+v", d.Name, got, want)
		}
		f.Close()
	}
}

// workloadBuffered sees nothing on the disk until a sync.
func workloadBuffered(g *guest.Guest) {
	d := g.NVMe()
	g.HoldWriteback()
	p := g.Cgroup("a").Process()
	f := p.Open(d.Path(), os.O_RDWR)
	before := d.Stats()
	f.Write(0, 5<<20)
	if got := d.Stats().Sub(before).WriteBytes; got != 0 {
		g.Errorf("%d bytes were written before the sync", got)
	}
	g.Sync()
	if got := d.Stats().Sub(before).WriteBytes; got != 5<<20 {
		g.Errorf("%d bytes were written, want %d", got, 5<<20)
	}
	f.Close()
}

// workloadCharged checks that a worker's memory belongs to its cgroup.
func workloadCharged(g *guest.Guest) {
	// Otherwise the worker's own heap may begin a huge page in between: 2 MiB more.
	g.Knob("/sys/kernel/mm/transparent_hugepage/enabled", "never")
	c := g.Cgroup("a")
	p := c.Process()
	kind := "anon"
	if g.CgroupV1() {
		kind = "rss"
	}
	// This reads a part of the charge only: pages of the worker's program may be read in
	// between.
	read := func() int64 {
		for line := range strings.Lines(g.ReadFile(c.File("memory.stat"))) {
			if n, ok := strings.CutPrefix(line, kind+" "); ok {
				bytes, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
				if err != nil {
					g.Fatalf("memory.stat: %v", err)
				}
				return bytes
			}
		}
		g.Fatalf("no %q in memory.stat", kind)
		return 0
	}
	before := read()
	p.Alloc(32 << 20) // the kernel's own count is exact only to a batch of pages
	if got := read() - before; got < 31<<20 || got > 33<<20 {
		g.Errorf("32 MiB of memory charged %d bytes to the cgroup", got)
	}
	p.Exit()
	c.Remove()
}

// workloadNFS compares what workers wrote and read with the client's counters.
func workloadNFS(g *guest.Guest) {
	g.HoldWriteback()
	for _, version := range []string{"3", "4.2"} {
		m := g.NFS(version)
		p := g.Cgroup("a").Process()
		f := p.Open(m.File("f"+version), guest.Create)
		f.Write(0, 1_000_003)
		if got := m.Stats().ServerWrite; got != 0 {
			g.Errorf("v%s: %d bytes went to the server before the sync", version, got)
		}
		g.Sync()
		if got := m.Stats().ServerWrite; got != 1_000_003 {
			g.Errorf("v%s: %d bytes went to the server, want 1000003", version, got)
		}
		f.Close()
		m.DropCaches()
		f = p.Open(m.File("f"+version), os.O_RDONLY)
		if n := f.Read(0, 2_000_000); n != 1_000_003 {
			g.Errorf("v%s: read %d bytes, want 1000003", version, n)
		}
		if got := m.Stats().ServerRead; got != 1_000_003 {
			g.Errorf("v%s: %d bytes came from the server, want 1000003", version, got)
		}
		f.Close()
	}
}

// workloadFUSE compares what workers wrote and read with the daemon's own count.
func workloadFUSE(g *guest.Guest) {
	for _, o := range []guest.FUSEOptions{{}, {Writeback: true}, {DirectIO: true}} {
		m := g.FUSE(o)
		p := g.Cgroup("a").Process()
		f := p.Open(m.File("f"), guest.Create)
		f.Write(0, 1_000_003)
		// With writeback the kernel chooses the time: FUSE may use little of the page cache.
		if got := m.Count().WriteBytes; !o.Writeback && got != 1_000_003 {
			g.Errorf("%+v: daemon had %d bytes when write(2) returned", o, got)
		}
		g.Sync()
		f.Close()
		g.DropCaches()
		f = p.Open(m.File("f"), os.O_RDONLY)
		f.Read(0, 2_000_000)
		f.Close()
		if got := m.Count(); got.WriteBytes != 1_000_003 || got.ReadBytes != 1_000_003 {
			g.Errorf("%+v: daemon counted %+v, want 1000003 bytes each way", o, got)
		}
	}
}

// workloadPassthrough sees no request at the daemon.
func workloadPassthrough(g *guest.Guest) {
	g.NVMe().Format("ext4")
	g.NVMe().MountAt("ext4", "/mnt/backing", "")
	m := g.FUSE(guest.FUSEOptions{Passthrough: true, Backing: "/mnt/backing"})
	p := g.Cgroup("a").Process()
	f := p.Open(m.File("f"), guest.Create)
	f.Write(0, 1_000_003)
	f.Read(0, 1_000_003)
	f.Close()
	if got := m.Count(); got != (guest.FUSECount{}) {
		g.Errorf("daemon counted %+v, want nothing", got)
	}
}

// workloadPrograms checks that the programs of the image run.
func workloadPrograms(g *guest.Guest) {
	c := g.Cgroup("a")
	d := g.Virtio()
	before := d.Stats()
	c.Run("fio", "--name=w", "--filename="+d.Path(), "--rw=randwrite", "--bs=4k", "--size=1m", "--ioengine=libaio", "--direct=1", "--iodepth=8", "--output=/dev/null")
	if got := d.Stats().Sub(before).WriteBytes; got != 1<<20 {
		g.Errorf("fio wrote %d bytes, want %d", got, 1<<20)
	}
	for _, cmd := range []string{"dmsetup version", "cryptsetup --version", "mdadm --version", "sshfs --version", "mkfs.btrfs --version", "mkfs.xfs -V", "ip -V", "losetup --version"} {
		c.Run("sh", "-c", cmd)
	}
}
