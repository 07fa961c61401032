//go:build vm

package vmtests

import (
	"os"
	"path/filepath"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// blockOverwriteLarge: a cached more pages than notes about single pages would have
// room for, b wrote the contents of all of them.
func blockOverwriteLarge(g *guest.Guest) {
	const size = 288 << 20
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa := pa.Open(filepath.Join(dir, "f"), guest.Create)
	fa.Write(0, size)
	fa.Fsync()
	t := traceBlock(g, d)
	fb := pb.Open(filepath.Join(dir, "f"), os.O_RDWR)
	fb.Write(0, size)
	t.stop()
	t.Within("b wrote", t.wrote(d, b), size, 100)
	if n := t.wrote(d, a); n > size/100 {
		t.Equal("a wrote", n, 0)
	}
}

// blockSharedFile: a and b write 16 KiB each in turn in a file that a made with large
// calls: where the file system has folios of many pages, both write into each.
func blockSharedFile(fstype string) func(*guest.Guest) {
	return func(g *guest.Guest) {
		const part, parts = 16 << 10, 181
		d := g.NVMe()
		dir := mountScratch(g, d, fstype)
		a, b, c := g.Cgroup("a"), g.Cgroup("b"), g.Cgroup("c")
		pa, pb, pc := a.Process(), b.Process(), c.Process()
		fa := pa.Open(filepath.Join(dir, "f"), guest.Create)
		fa.WriteBlocks(0, 8<<20, 1<<20)
		fa.Fsync()
		fb, fc := pb.Open(filepath.Join(dir, "f"), os.O_RDWR), pc.Open(filepath.Join(dir, "f"), os.O_RDWR)
		g.HoldWriteback()
		t := traceBlock(g, d)
		for i := int64(0); i < parts; i++ {
			fa.WriteBlocks(2*i*part, part, part)
			fb.WriteBlocks((2*i+1)*part, part, part)
		}
		fc.WriteBlocks(6<<20, 1<<20, part) // behind them
		t.stop()
		t.Within("a wrote", t.wrote(d, a), parts*part, 100)
		t.Within("b wrote", t.wrote(d, b), parts*part, 100)
		t.Within("c wrote", t.wrote(d, c), 1<<20, 100)
	}
}

// blockSharedMapping: as blockSharedFile, through mappings of the file: a folio that is
// dirty already shows in faults only.
func blockSharedMapping(fstype string) func(*guest.Guest) {
	return func(g *guest.Guest) {
		const part, parts = 16 << 10, 128 // all of the file
		d := g.NVMe()
		dir := mountScratch(g, d, fstype)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		fa := pa.Open(filepath.Join(dir, "f"), guest.Create)
		fa.WriteBlocks(0, 4<<20, 1<<20)
		fa.Fsync()
		fb := pb.Open(filepath.Join(dir, "f"), os.O_RDWR)
		g.HoldWriteback()
		t := traceBlock(g, d)
		for i := int64(0); i < parts; i++ {
			ma, mb := fa.Map(2*i*part, part), fb.Map((2*i+1)*part, part)
			ma.Store()
			mb.Store()
			ma.Unmap()
			mb.Unmap()
		}
		t.stop()
		t.Within("a wrote", t.wrote(d, a), parts*part, 100)
		t.Within("b wrote", t.wrote(d, b), parts*part, 100)
	}
}
