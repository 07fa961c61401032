//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// unknown is how many bytes written to a disk have no owner.
func (b *blockTrace) unknown(d guest.Disk) int64 {
	return b.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID(), "iotrace.owner", "unattributed")
}

// blockMDRaid5: an array over logical volumes writes stripes from pages of its own. Data are their writers',
// and parity is shared out among the writers of its stripe: on four disks a third of
// whole stripes, and as much as the data where a write changes one disk only.
func blockMDRaid5(g *guest.Guest) {
	disks := []guest.Disk{g.NVMe(), g.Virtio()}
	var legs []guest.Disk
	for i := range 4 { // two on each disk
		legs = append(legs, g.DM(fmt.Sprintf("leg%d", i), fmt.Sprintf("0 147456 linear %s %d", disks[i%2].Path(), i/2*262144)))
	}
	md := mdArray(g, "5", 65536, legs...)
	dir := mountScratch(g, md, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa, fb := pa.Open(filepath.Join(dir, "a"), guest.Create), pb.Open(filepath.Join(dir, "b"), guest.Create|guest.Direct)
	g.HoldWriteback()
	t := traceBlock(g, disks...)
	mdBefore := md.Stats()
	const sizeDirect = 1009 * 4096
	fa.Write(0, sizeA)
	fb.WriteBlocks(0, sizeDirect, 64<<10)
	t.stop()
	toArray := md.Stats().Sub(mdBefore).WriteBytes
	var wroteA, wroteB, unknown, all int64
	for _, d := range disks {
		wroteA, wroteB, unknown = wroteA+t.wrote(d, a), wroteB+t.wrote(d, b), unknown+t.unknown(d)
		all += t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID())
	}
	g.Logf("a %d, b %d, unattributed %d of %d bytes; %d written to the array, %d more", wroteA, wroteB, unknown, all, toArray, all-toArray-unknown)
	// A stripe that is written has a page of parity, and a page of data at least. Of each direct
	// write one page is written twice, with its parity: on 6.12 the disks had 1,072 pages of b's
	// data and 1,074 of parity, in 64 writes of 1,009 pages in all, which is what md0 counted.
	for _, w := range []struct {
		who                string
		wrote, data, twice int64
	}{{"a", wroteA, sizeA, 0}, {"b", wroteB, sizeDirect, (sizeDirect + 64<<10 - 1) / (64 << 10) * 4096}} {
		if most := 2*(w.data+w.twice) + 64<<10; w.wrote < w.data*133/100 || w.wrote > most {
			t.Equal(fmt.Sprintf("%s wrote, data and a third to all of it as parity, at most %d", w.who, most), w.wrote, w.data)
		}
	}
	// To compute parity the array reads old data, for those who write: for a page at most two.
	// For a page of the journal or of metadata the kernel does.
	journal := t.Sum("iotrace.basis.journal", "iotrace.source", "block")
	reads := func(owner string) int64 {
		return t.Sum("iotrace.read.bytes", "iotrace.source", "block", "iotrace.owner", owner)
	}
	t.Equal("read for nobody", reads("unattributed"), 0)
	if n := reads("kernel"); n > 2*journal {
		t.Equal("read by the kernel, at most twice what it wrote", n, 2*journal)
	}
	t.Within("a and b wrote", wroteA+wroteB, all, 50) // the rest is metadata
	if unknown > all/1000 {
		t.Equal("unattributed", unknown, 0)
	}
}

// blockLUKSRaid1: dm-crypt writes copies, which the array below it clones.
func blockLUKSRaid1(g *guest.Guest) {
	disks := []guest.Disk{g.NVMe(), g.Virtio()}
	md := mdArray(g, "1", 262144, disks...)
	stacked(g, crypt(g, md, 500000), disks...)
}

// blockLUKSLinear: a logical volume below dm-crypt.
func blockLUKSLinear(g *guest.Guest) {
	d := g.NVMe()
	lv := g.DM("lv", fmt.Sprintf("0 524288 linear %s 2048", d.Path()))
	stacked(g, crypt(g, lv, 524288), d)
}

// mountCompressed mounts a new btrfs that compresses. Checksums of data count as their
// writer's metadata.
func mountCompressed(g *guest.Guest, d guest.Disk, options ...string) string {
	g.Helper()
	d.Format("btrfs", options...)
	d.MountAt("btrfs", "/mnt/scratch", "compress-force=zstd")
	return "/mnt/scratch"
}

// text makes a file of n bytes, at least, that a quarter can be saved of.
func text(g *guest.Guest, file string, n int) {
	g.Helper()
	g.Exec("sh", "-c", fmt.Sprintf("head -c %d /dev/urandom | base64 -w0 > %s", n*3/4+3, file))
}

// packed checks that a disk has fewer bytes than a and b wrote, and each its share of them.
func packed(g *guest.Guest, t *blockTrace, d guest.Disk, a, b *guest.Cgroup, wantA, wantB, part int64) {
	g.Helper()
	wroteA, wroteB := t.wrote(d, a), t.wrote(d, b)
	all := t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID())
	g.Logf("%s: a %d, b %d, unattributed %d of %d bytes", d.Name, wroteA, wroteB, t.unknown(d), all)
	t.Equal(d.Name+" unattributed", t.unknown(d), 0)
	if wroteA+wroteB > (wantA+wantB)*9/10 {
		g.Errorf("%d bytes on disk for %d: nothing was compressed, this proves nothing", wroteA+wroteB, wantA+wantB)
	}
	t.Within(d.Name+" a's share of 10,000", wroteA*10000/(wroteA+wroteB), wantA*10000/(wantA+wantB), part)
}

func compressed(g *guest.Guest, dir string, disks ...guest.Disk) {
	g.Helper()
	source := g.TempDir() + "/text"
	text(g, source, sizeA)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	g.HoldWriteback()
	t := traceBlock(g, disks...)
	a.Run("dd", "if="+source, "of="+dir+"/a", "bs=1M", "count=6", "status=none")
	b.Run("dd", "if="+source, "of="+dir+"/b", "bs=1M", "count=4", "status=none")
	t.stop()
	for _, d := range disks {
		packed(g, t, d, a, b, 6<<20, 4<<20, 100)
	}
}

func blockBtrfsCompressed(g *guest.Guest) {
	d := g.NVMe()
	compressed(g, mountCompressed(g, d), d)
}

// blockBtrfsCompressedRaid1: each of two disks gets every byte.
func blockBtrfsCompressedRaid1(g *guest.Guest) {
	disks := []guest.Disk{g.NVMe(), g.Virtio()}
	compressed(g, mountCompressed(g, disks[0], "-d", "raid1", "-m", "raid1", disks[1].Path()), disks...)
}

// blockBtrfsCompressedShared: each compressed extent has data of two writers.
func blockBtrfsCompressedShared(g *guest.Guest) {
	d := g.NVMe()
	dir := mountCompressed(g, d)
	source := g.TempDir() + "/text"
	text(g, source, 4<<20)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	g.HoldWriteback()
	t := traceBlock(g, d)
	pieces := func(c *guest.Cgroup, first int) { // of 64 KiB: half an extent
		c.Run("sh", "-c", fmt.Sprintf("for i in $(seq %d 2 63); do dd if=%s of=%s/f bs=64k seek=$i skip=$i count=1 conv=notrunc status=none; done", first, source, dir))
	}
	pieces(a, 0)
	pieces(b, 1)
	t.stop()
	// An extent has whole pages: 25 for both halves, or 13 for one that is written alone.
	packed(g, t, d, a, b, 2<<20, 2<<20, 25)
}

// blockFscrypt: encrypted files are written from pages of the file system's own.
func blockFscrypt(g *guest.Guest) {
	d := g.NVMe()
	d.Format("ext4", "-O", "encrypt")
	d.MountAt("ext4", "/mnt/scratch", "")
	dir := "/mnt/scratch/secret"
	if err := os.Mkdir(dir, 0o755); err != nil {
		g.Fatal(err)
	}
	g.Encrypt(dir)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	fa, fb := a.Process().Open(filepath.Join(dir, "a"), guest.Create), b.Process().Open(filepath.Join(dir, "b"), guest.Create)
	g.HoldWriteback()
	t := traceBlock(g, d)
	fa.Write(0, sizeA)
	fb.Write(0, sizeB)
	t.stop()
	t.Within("a wrote", t.wrote(d, a), sizeA, 100)
	t.Within("b wrote", t.wrote(d, b), sizeB, 100)
	t.Equal("unattributed", t.unknown(d), 0)
}

// blockDirectFromFile: b writes with O_DIRECT from a mapping of a file that a cached, and
// reads into another one. All of it is b's: else any container could book its I/O on
// another that shares an image layer with it.
func blockDirectFromFile(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	for _, name := range []string{"layer", "target"} {
		f := pa.Open(filepath.Join(dir, name), guest.Create)
		f.Write(0, 4<<20)
		f.Fsync()
		f.Close()
	}
	out := pb.Open(filepath.Join(dir, "out"), guest.Create|guest.Direct)
	out.Fallocate(0, 0, 4<<20)
	layer := pb.Open(filepath.Join(dir, "layer"), os.O_RDONLY).MapRead(0, 4<<20)
	layer.Touch()
	target := pb.Open(filepath.Join(dir, "target"), os.O_RDWR).Map(0, 4<<20)
	target.Touch()
	g.HoldWriteback()
	t := traceBlock(g, d)
	layer.WriteTo(out, 0, 4<<20)
	target.ReadFrom(out, 0, 4<<20)
	target.Unmap()
	t.stop()
	t.Within("b read", t.read(d, b), 4<<20, 1000)
	if n := t.read(d, a); n != 0 {
		t.Equal("a read", n, 0)
	}
	// b made the pages of the target dirty, which a had cached.
	t.Within("a and b wrote", t.wrote(d, a)+t.wrote(d, b), 8<<20, 100)
	if n := t.wrote(d, b); n < 4<<20 {
		t.Equal("b wrote", n, 4<<20)
	}
}

// blockDirectHugetlb: shared huge pages, as databases have them, are charged to nobody.
func blockDirectHugetlb(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	g.Knob("/proc/sys/vm/nr_hugepages", "4")
	g.Mount("hugetlbfs", "none", "/mnt/huge", "")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	shared := func(p *guest.Process) *guest.Mapping {
		f := p.Open("/mnt/huge/pool", os.O_CREATE|os.O_RDWR)
		f.Truncate(4 << 20)
		return f.Map(0, 4<<20)
	}
	ma, mb := shared(pa), shared(pb)
	ma.Store()
	file := filepath.Join(dir, "table")
	fa, fb := pa.Open(file, guest.Create|guest.Direct), pb.Open(file, os.O_RDWR|guest.Direct)
	fa.WriteBlocks(0, 10<<20, 1<<20)
	g.HoldWriteback()
	t := traceBlock(g, d)
	mb.WriteTo(fb, 0, 4<<20)
	ma.WriteTo(fa, 8<<20, 2<<20)
	ma.ReadFrom(fa, 0, 3<<20)
	mb.ReadFrom(fb, 8<<20, 1<<20)
	t.stop()
	ma.Unmap()
	mb.Unmap()
	if err := os.Remove("/mnt/huge/pool"); err != nil {
		g.Error(err)
	}
	t.Within("a wrote", t.wrote(d, a), 2<<20, 100)
	t.Within("b wrote", t.wrote(d, b), 4<<20, 100)
	t.Equal("a read", t.read(d, a), 3<<20)
	t.Equal("b read", t.read(d, b), 1<<20)
}

// blockDataJournal: with data=journal, pages of files are written without the mark of
// writeback, some by a task that needs room in the journal. That is no direct I/O: the
// task that happens to write does not own them.
func blockDataJournal(g *guest.Guest) {
	d := g.NVMe()
	d.Format("ext4", "-J", "size=4")
	d.MountAt("ext4", "/mnt/scratch", "data=journal,noinit_itable")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	fa := a.Process().Open("/mnt/scratch/a", guest.Create)
	fb := b.Process().Open("/mnt/scratch/b", guest.Create)
	t := traceBlock(g, d)
	for i := int64(0); i < 16; i++ {
		fa.Write(i<<20, 1<<20)
	}
	for i := int64(0); i < 400; i++ { // each needs room, for which a's pages are written
		fb.Write(i<<12, 4096)
		if i%20 == 0 {
			fb.Fsync()
		}
	}
	t.stop()
	if n := t.Written("block", d.ID(), b); n > 8<<20 {
		g.Errorf("b wrote 1.6 MiB, which is %d bytes with the journal", n)
		t.Equal("b wrote", n, 4<<20)
	}
}

// TestNoMemoryController proves owners where no memory is charged, as on Raspberry Pi OS.
func TestNoMemoryController(t *testing.T) {
	suite{
		line:   "6.12",
		append: []string{"cgroup_disable=memory"},
		scenarios: []scenario{
			{name: "read", run: blockNoMemory, smoke: true},
			{name: "io_at_slice", run: blockIOAtSlice, smoke: true},
		},
	}.test(t)
}

// blockNoMemory: no page has an owner; the reader is the current task, and a note says
// who wrote.
func blockNoMemory(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	f := pa.Open(filepath.Join(dir, "f"), guest.Create)
	f.Write(0, sizeB)
	f.Fsync()
	g.DropCaches()
	g.HoldWriteback()
	t := traceBlock(g, d)
	pb.Open(filepath.Join(dir, "f"), os.O_RDONLY).Read(0, sizeB)
	pa.Open(filepath.Join(dir, "new"), guest.Create).Write(0, sizeC)
	t.stop()
	t.Within("b read", t.read(d, b), sizeB, 50)
	t.Within("a wrote", t.wrote(d, a), sizeC, 50)
}

// blockIOAtSlice: the io controller ends at a slice, so bios carry the slice's cgroup,
// not that of the unit in it.
func blockIOAtSlice(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	g.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", "+io")
	g.Cleanup(func() { g.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", "-io") })
	slice := g.Cgroup("slice")
	unit := g.CgroupAt(strings.TrimPrefix(slice.Path(), "/") + "/unit")
	p := unit.Process()
	f := p.Open(filepath.Join(dir, "f"), guest.Create)
	f.Write(0, sizeB)
	f.Fsync()
	g.DropCaches()
	direct := p.Open(d.Path(), unix.O_RDONLY|guest.Direct)
	t := traceBlock(g, d)
	p.Open(filepath.Join(dir, "f"), os.O_RDONLY).Read(0, sizeB)
	direct.ReadBlocks(512<<20, 1<<20, 64<<10)
	t.stop()
	t.Within("the unit read", t.read(d, unit), sizeB+1<<20, 50)
	if n := t.read(d, slice); n > sizeB/100 {
		t.Equal("the slice read", n, 0)
	}
}
