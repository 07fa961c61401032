//go:build vm

package vmtests

import (
	"os"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestWorkload proves the harness itself on every kernel: that the workload
// programs do the I/O they are told to, where they are told to, as the kernel's
// own counters see it. No tracer is needed.
func TestWorkload(t *testing.T) {
	suite{
		source:   "",
		noTracer: true,
		scenarios: []scenario{
			{name: "direct", run: workloadDirect, smoke: true},
			{name: "buffered", run: workloadBuffered, smoke: true},
			{name: "charged", run: workloadCharged, smoke: true},
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

// workloadBuffered sees nothing on the disk until it is asked for.
func workloadBuffered(g *guest.Guest) {
	d := g.NVMe()
	g.HoldWriteback()
	p := g.Cgroup("a").Process()
	f := p.Open(d.Path(), os.O_RDWR)
	before := d.Stats()
	f.Write(0, 5<<20)
	if got := d.Stats().Sub(before).WriteBytes; got != 0 {
		g.Errorf("%d bytes were written before anyone asked", got)
	}
	g.Sync()
	if got := d.Stats().Sub(before).WriteBytes; got != 5<<20 {
		g.Errorf("%d bytes were written, want %d", got, 5<<20)
	}
	f.Close()
}

// workloadCharged checks that a worker's memory belongs to its cgroup.
func workloadCharged(g *guest.Guest) {
	c := g.Cgroup("a")
	p := c.Process()
	usage := "memory.current"
	if g.CgroupV1() {
		usage = "memory.usage_in_bytes"
	}
	read := func() int64 { return g.Int(c.File(usage)) }
	before := read()
	p.Alloc(32 << 20) // the kernel's own count is exact only to a batch of pages
	if got := read() - before; got < 31<<20 || got > 33<<20 {
		g.Errorf("32 MiB of memory charged %d bytes to the cgroup", got)
	}
	p.Exit()
	c.Remove()
}
