//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestBlock proves the block source: totals of every leaf device equal
// /proc/diskstats to the byte and to the operation, and owners are right for every
// file system, device stack and way of writing.
func TestBlock(t *testing.T) {
	suite{
		source:   "block",
		paths:    true,
		deadline: 40 * time.Minute,
		scenarios: []scenario{
			{name: "direct", run: blockDirect, smoke: true},
			{name: "io_uring", run: blockURing},
			{name: "buffered_ext4", run: blockFileSystem("ext4"), smoke: true},
			{name: "buffered_xfs", run: blockFileSystem("xfs")},
			{name: "buffered_btrfs", run: blockFileSystem("btrfs")},
			{name: "overwrite", run: blockOverwrite, smoke: true},
			{name: "overwrite_large", run: blockOverwriteLarge},
			{name: "shared_file", run: blockSharedFile("ext4"), smoke: true},
			{name: "shared_file_xfs", run: blockSharedFile("xfs")},
			{name: "shared_mapping", run: blockSharedMapping("ext4")},
			{name: "shared_mapping_xfs", run: blockSharedMapping("xfs")},
			{name: "mmap", run: blockMmap},
			{name: "alternating", run: blockAlternating},
			{name: "alternating_cut", run: blockAlternatingCut},
			{name: "merged_bios", run: blockMergedBios},
			{name: "removed", run: blockRemoved, smoke: true},
			{name: "io_controller", run: blockIOController, cgroup: "v2", why: "only cgroup v2 has io and memory controllers in one hierarchy"},
			{name: "overlay", run: blockOverlay},
			{name: "swap", run: blockSwap},
			{name: "discard", run: blockDiscard},
			{name: "discard_cut", run: blockDiscardCut, arch: "amd64", why: "Debian's arm64 cloud kernel has no scsi_debug"},
			{name: "flush", run: blockFlush},
			{name: "requeue", run: blockRequeue, arch: "amd64", why: "Debian's arm64 cloud kernel has no scsi_debug"},
			{name: "errors", run: blockErrors, arch: "amd64", why: "Debian's arm64 cloud kernel has no scsi_debug"},
			{name: "null_blk", run: blockNullBlk},
			{name: "dm_linear", run: blockDMLinear},
			{name: "dm_thin", run: blockDMThin},
			{name: "dm_crypt", run: blockDMCrypt},
			{name: "md_raid1", run: blockMDRaid1},
			{name: "md_raid5", run: blockMDRaid5, smoke: true},
			{name: "luks_raid1", run: blockLUKSRaid1},
			{name: "luks_lvm", run: blockLUKSLinear},
			{name: "btrfs_compressed", run: blockBtrfsCompressed},
			{name: "btrfs_compressed_raid1", run: blockBtrfsCompressedRaid1},
			{name: "btrfs_compressed_shared", run: blockBtrfsCompressedShared},
			{name: "fscrypt", run: blockFscrypt},
			{name: "direct_from_file", run: blockDirectFromFile, smoke: true},
			{name: "direct_hugetlb", run: blockDirectHugetlb},
			{name: "data_journal", run: blockDataJournal},
			{name: "loop", run: blockLoop},
			{name: "loop_btrfs", run: blockLoopBtrfs},
			{name: "loop_overlay", run: blockLoopOverlay},
			{name: "zram", run: blockZram},
			{name: "nvme_paths", run: blockNVMePaths},
			{name: "files", run: blockFiles("ext4"), smoke: true, quick: oldestAndNewest},
			{name: "files_xfs", run: blockFiles("xfs")},
			{name: "files_swap", run: blockFilesSwap},
			{name: "devices_change", run: blockDevicesChange},
			{name: "many_groups", run: blockManyGroups},
			{name: "journal_append", run: blockJournal(journal{load: appendAndSync}), smoke: true},
			{name: "journal_at_once", run: blockJournalAtOnce},
			{name: "journal_create", run: blockJournal(journal{load: createAndSync})},
			{name: "journal_shared", run: blockJournalShared},
			{name: "journal_data", run: blockJournal(journal{load: appendAndSync, options: "data=journal"})},
			{name: "journal_fast_commit", run: blockJournal(journal{load: appendAndSync, features: "fast_commit"})},
			{name: "journal_external", run: blockJournal(journal{load: appendAndSync, external: true})},
			{name: "journal_dm_linear", run: blockJournal(journal{load: createAndSync, linear: true})},
			{name: "journal_programs", run: blockJournalPrograms},
			{name: "journal_unmounted", run: blockJournalUnmounted},
			{name: "journal_xfs", run: blockJournal(journal{load: appendAndSync, fs: "xfs"}), since: "6.1", why: noXFSTypes},
			// XFS makes inodes 64 at a time: x's 120 files cost two or three such chunks, z's 40 one or two.
			{name: "journal_xfs_create", run: blockJournal(journal{load: createAndSync, fs: "xfs", from: 650, to: 800}), since: "6.1", why: noXFSTypes},
			{name: "journal_xfs_luks", run: blockJournal(journal{load: appendAndSync, fs: "xfs", crypt: true}), since: "6.1", why: noXFSTypes},
		},
	}.test(t)
}

const noXFSTypes = "the kernel has no types of the module xfs, so that its log stays with (kernel)"

// blockTrace is a tracer whose totals are compared with the kernel's.
type blockTrace struct {
	*guest.Output
	g       *guest.Guest
	tr      *guest.Tracer
	disks   []guest.Disk
	before  []guest.IOStats // once the tracer was ready
	earlier []guest.IOStats // before it was started
}

// traceBlock starts the tracer. disks are the leaf devices to be compared.
func traceBlock(g *guest.Guest, disks ...guest.Disk) *blockTrace {
	g.Helper()
	g.Sync()
	b := &blockTrace{g: g, disks: disks}
	b.earlier = b.stats()
	b.tr = g.Trace("--by", "cgroup,device", "--source", "block")
	b.before = b.stats()
	return b
}

func (b *blockTrace) stats() (stats []guest.IOStats) {
	b.g.Helper()
	for _, d := range b.disks {
		stats = append(stats, d.Stats())
	}
	return stats
}

// flushers is the most tasks that flush a disk at once in a scenario: a worker, sync and a
// journal's thread.
const flushers = 3

// stop flushes dirty pages, ends the tracer and compares the totals of every leaf
// device. It returns the counts of /proc/diskstats by disk. A file system may write
// on its own while the tracer starts or ends. Its total then lies between two
// counts: one taken while the tracer ran, one that includes its start and end.
func (b *blockTrace) stop() []guest.IOStats {
	b.g.Helper()
	b.g.Sync()
	truth := b.stats()
	b.Output = b.tr.Stop()
	around := b.stats()
	for i, d := range b.disks {
		truth[i], around[i] = truth[i].Sub(b.before[i]), around[i].Sub(b.earlier[i])
		at := []string{"iotrace.source", "block", "iotrace.device.id", d.ID()}
		within, most := truth[i], around[i]
		for _, c := range []struct {
			field       string
			least, most int64
		}{
			{"read.bytes", within.ReadBytes, most.ReadBytes},
			{"read.ops", within.ReadOps, most.ReadOps},
			{"write.bytes", within.WriteBytes, most.WriteBytes},
			// diskstats counts a flush without data among the writes, although no driver receives
			// it as a write. Flushes that wait at once share one command, and only the commands are
			// counted as flushes (block/blk-flush.c).
			{"write.ops", within.WriteOps - flushers*within.FlushOps, most.WriteOps},
			{"discard.bytes", within.DiscardBytes, most.DiscardBytes},
			{"discard.ops", within.DiscardOps, most.DiscardOps},
			{"flush.ops", within.FlushOps, most.FlushOps},
		} {
			if n := b.Sum("iotrace."+c.field, at...); n < c.least || n > c.most {
				b.Equal(fmt.Sprintf("%s %s against diskstats, %d to %d", d.Name, c.field, c.least, c.most), n, c.least)
			}
		}
	}
	// From 6.18 on the kernel sometimes skips the program at the end of a request: the
	// row is right, and the latency counts as lost.
	if n := b.LostOf("latencies"); n != 0 && b.g.AtLeast(6, 18) {
		b.g.Logf("the kernel skipped the ends of %d requests", n)
	} else if n != 0 {
		b.g.Errorf("%d latencies lost", n)
	}
	if b.Lost() != b.LostOf("latencies") {
		b.g.Errorf("tracer lost something: %s", b.LostWhat())
	}
	return truth
}

// journalled is what the journal and the metadata that a cgroup changed wrote for it.
func (b *blockTrace) journalled(d guest.Disk, c *guest.Cgroup) int64 {
	return b.Sum("iotrace.basis.journal", "iotrace.source", "block", "iotrace.device.id", d.ID(), "iotrace.cgroup.path", c.Path())
}

// journalBound is how much a journal may write for a cgroup in a scenario about data: some
// blocks for each commit and each file, twice, whatever others do.
const journalBound = 512 << 10

// wrote is the data that a cgroup wrote at a leaf device. What its changes made a journal
// write is apart, and must be no more than such a change needs: else the journal would
// book on a cgroup what others do.
func (b *blockTrace) wrote(d guest.Disk, c *guest.Cgroup) int64 {
	journal := b.journalled(d, c)
	data := b.Written("block", d.ID(), c) - journal
	b.g.Logf("%s: %s wrote %d bytes of data, and %d in the journal", d.Name, c.Path(), data, journal)
	if journal > journalBound {
		b.g.Errorf("%s: %d bytes of the journal on %s, at most %d are its own", d.Name, journal, c.Path(), int64(journalBound))
	}
	return data
}

// read is the bytes that a cgroup read at a leaf device.
func (b *blockTrace) read(d guest.Disk, c *guest.Cgroup) int64 {
	return b.Output.Read("block", d.ID(), c)
}
func (b *blockTrace) discarded(d guest.Disk, c *guest.Cgroup) int64 {
	return b.Sum("iotrace.discard.bytes", "iotrace.cgroup.path", c.Path(), "iotrace.device.id", d.ID())
}

// No block size divides these sizes, and no two of them add up to a third.
const (
	sizeA = 8_000_009
	sizeB = 5_000_011
	sizeC = 3_000_017
)

// mountScratch makes a file system on a disk and mounts it.
func mountScratch(g *guest.Guest, d guest.Disk, fstype string) string {
	g.Helper()
	d.Format(fstype)
	dir := "/mnt/scratch"
	options := ""
	if fstype == "btrfs" {
		options = "nodatasum" // checksums would count as the writer's metadata
	}
	d.MountAt(fstype, dir, options)
	return dir
}

// blockDirect: direct I/O bypasses the cache, so owners are exact.
func blockDirect(g *guest.Guest) {
	disks := []guest.Disk{g.NVMe(), g.Virtio()}
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceBlock(g, disks...)
	for i, d := range disks {
		n := int64(i + 1)
		fa, fb := pa.Open(d.Path(), os.O_RDWR|guest.Direct), pb.Open(d.Path(), os.O_RDWR|guest.Direct)
		fa.WriteBlocks(0, n*101*4096, 64<<10)
		fb.WriteBlocks(16<<20, n*67*4096, 4096)
		fb.ReadBlocks(0, n*53*4096, 32<<10)
		fa.ReadBlocks(16<<20, n*31*4096, 4096)
		fa.Close()
		fb.Close()
	}
	t.stop()
	for i, d := range disks {
		n := int64(i + 1)
		t.Equal(d.Name+" a wrote", t.wrote(d, a), n*101*4096)
		t.Equal(d.Name+" b wrote", t.wrote(d, b), n*67*4096)
		t.Equal(d.Name+" a read", t.read(d, a), n*31*4096)
		t.Equal(d.Name+" b read", t.read(d, b), n*53*4096)
	}
}

// blockNVMePaths: requests are those of hidden disks, one for each path. Rows name the
// disk that users know.
func blockNVMePaths(g *guest.Guest) {
	d := g.Paths()
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceBlock(g)
	fa, fb := pa.Open(d.Path(), os.O_RDWR|guest.Direct), pb.Open(d.Path(), os.O_RDWR|guest.Direct)
	fa.WriteBlocks(0, 101*4096, 64<<10)
	fb.WriteBlocks(16<<20, 67*4096, 4096)
	fb.ReadBlocks(0, 53*4096, 32<<10)
	fa.Close()
	fb.Close()
	t.stop()
	t.Equal("a wrote", t.wrote(d, a), 101*4096)
	t.Equal("b wrote", t.wrote(d, b), 67*4096)
	t.Equal("b read", t.read(d, b), 53*4096)
	t.Equal("by the name of the disk", t.Sum("iotrace.write.bytes", "iotrace.device.name", d.Name), (101+67)*4096)
	// Else it is no test of hidden disks.
	if hidden := g.Exec("sh", "-c", "grep -l 1 /sys/block/nvme*c*n*/hidden | wc -l"); strings.TrimSpace(hidden) != "2" {
		g.Fatalf("%s hidden disks, want 2", strings.TrimSpace(hidden))
	}
}

// blockURing: requests may be issued from a worker thread of io_uring.
func blockURing(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa := pa.Open(filepath.Join(dir, "a"), guest.Create|guest.Direct)
	fb := pb.Open(filepath.Join(dir, "b"), guest.Create)
	fa.Fallocate(0, 0, 8<<20)
	t := traceBlock(g, d)
	fa.WriteURing(0, 1009*4096, 64<<10)
	fa.ReadURing(0, 499*4096, 64<<10)
	fb.WriteURing(0, sizeB, 64<<10)
	g.Sync()
	fb.Close()
	fa.Close()
	t.stop()
	t.Within("a wrote", t.wrote(d, a), 1009*4096, 100)
	t.Within("a read", t.read(d, a), 499*4096, 100)
	t.Within("b wrote", t.wrote(d, b), sizeB, 100)
}

// blockFileSystem: two cgroups write into the page cache and read cold files; a
// third process calls sync.
func blockFileSystem(fstype string) func(*guest.Guest) {
	return func(g *guest.Guest) {
		d := g.NVMe()
		dir := mountScratch(g, d, fstype)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		cold := pa.Open(filepath.Join(dir, "cold"), guest.Create)
		cold.Write(0, sizeC)
		cold.Fsync()
		cold.Close()
		g.DropCaches()
		g.HoldWriteback()

		t := traceBlock(g, d)
		fa, fb := pa.Open(filepath.Join(dir, "a"), guest.Create), pb.Open(filepath.Join(dir, "b"), guest.Create)
		fa.Write(0, sizeA)
		fb.Write(0, sizeB)
		fa.Close()
		fb.Close()
		fc := pb.Open(filepath.Join(dir, "cold"), os.O_RDONLY)
		fc.Read(0, sizeC)
		fc.Close()
		t.stop()
		t.Within("a wrote", t.wrote(d, a), sizeA, 100)
		t.Within("b wrote", t.wrote(d, b), sizeB, 100)
		// The inode and its map are read on b's behalf as well.
		t.Within("b read", t.read(d, b), sizeC, 50)
	}
}

// blockOverwrite: a cached the pages, b wrote their contents.
func blockOverwrite(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa := pa.Open(filepath.Join(dir, "f"), guest.Create)
	fa.Write(0, sizeA)
	fa.Fsync()
	g.HoldWriteback()
	t := traceBlock(g, d)
	fb := pb.Open(filepath.Join(dir, "f"), os.O_RDWR)
	fb.Write(0, sizeB)
	t.stop()
	t.Within("b wrote", t.wrote(d, b), sizeB, 100)
	if n := t.wrote(d, a); n > sizeB/100 {
		t.Equal("a wrote", n, 0)
	}
}

// blockMmap: stores to a mapping make no system call; the tracer finds the dirtier all
// the same.
func blockMmap(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa := pa.Open(filepath.Join(dir, "a"), guest.Create)
	fa.Write(0, sizeA)
	fa.Fsync()
	g.HoldWriteback()
	t := traceBlock(g, d)
	// b stores into pages that a has cached; and a into a new file.
	mb := pb.Open(filepath.Join(dir, "a"), os.O_RDWR).Map(0, 4<<20)
	mb.Store()
	fn := pa.Open(filepath.Join(dir, "new"), guest.Create)
	fn.Truncate(3 << 20)
	ma := fn.Map(0, 3<<20)
	ma.Store()
	t.stop()
	t.Within("b wrote", t.wrote(d, b), 4<<20, 100)
	t.Within("a wrote", t.wrote(d, a), 3<<20, 100)
}

// blockAlternatingCut: the device takes at most 88 KiB per request, so some
// requests begin in the middle of a vector.
func blockAlternatingCut(g *guest.Guest) {
	limit := "/sys/block/" + g.NVMe().Name + "/queue/max_sectors_kb"
	before := g.ReadFile(limit)
	g.WriteFile(limit, "88")
	g.Cleanup(func() { g.WriteFile(limit, before) })
	alternate(g)
}

// blockAlternating: a and b write the same file in turn, 64 KiB each, so that
// single requests hold pages of both.
func blockAlternating(g *guest.Guest) {
	if n := alternate(g); n >= 2*chunks {
		g.Errorf("%d requests for %d chunks: nothing was merged, this proves nothing", n, 2*chunks)
	}
}

// a and b write this many chunks each.
const chunk, chunks = 64 << 10, 61

// alternate returns the number of requests.
func alternate(g *guest.Guest) int64 {
	g.Helper()
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa := pa.Open(filepath.Join(dir, "f"), guest.Create)
	fb := pb.Open(filepath.Join(dir, "f"), os.O_RDWR)
	g.HoldWriteback()
	t := traceBlock(g, d)
	for i := int64(0); i < chunks; i++ {
		fa.Write(2*i*chunk, chunk)
		fb.Write((2*i+1)*chunk, chunk)
	}
	truth := t.stop()
	// Pages of both that happen to be neighbours in memory share a vector of the request.
	t.Within("a wrote", t.wrote(d, a), chunk*chunks, 100)
	t.Within("b wrote", t.wrote(d, b), chunk*chunks, 100)
	return truth[0].WriteOps
}

// blockMergedBios: a and b write neighbouring sectors of a slow device at the same
// time; the scheduler merges bios of both into one request.
func blockMergedBios(g *guest.Guest) {
	g.Modprobe("mq-deadline")
	g.Exec("modprobe", "null_blk", "nr_devices=1", "gb=1", "bs=512", "queue_mode=2", "submit_queues=1", "hw_queue_depth=1", "irqmode=2", "completion_nsec=20000000")
	g.Cleanup(func() { g.Exec("modprobe", "-r", "null_blk") })
	d := g.Disk("nullb0")
	g.WriteFile("/sys/block/nullb0/queue/scheduler", "mq-deadline")
	g.WriteFile("/sys/block/nullb0/queue/nr_requests", "256")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	if g.CgroupV1() { // the kernel never merges bios of two io cgroups, and blkio is the io controller of v1
		for _, p := range []*guest.Process{pa, pb} {
			g.WriteFile("/sys/fs/cgroup/blkio/cgroup.procs", fmt.Sprint(p.PID()))
		}
	}
	fa, fb := pa.Open(d.Path(), os.O_RDWR|guest.Direct), pb.Open(d.Path(), os.O_RDWR|guest.Direct)
	t := traceBlock(g, d)
	// On a busy machine the bursts may miss each other: then try another round.
	const count = 101
	writes := int64(0)
	for round := 0; round < 20 && d.Stats().Sub(t.before[0]).WriteOps >= 2*writes; round++ {
		waitA, waitB := fa.Burst(0, count, 8192, 4096), fb.Burst(4096, count, 8192, 4096)
		waitA()
		waitB()
		writes += count
	}
	fa.Close()
	fb.Close()
	truth := t.stop()
	if truth[0].WriteOps >= 2*writes {
		g.Errorf("%d requests for %d writes: nothing was merged, this proves nothing", truth[0].WriteOps, 2*writes)
	}
	t.Equal("a wrote", t.wrote(d, a), writes*4096)
	t.Equal("b wrote", t.wrote(d, b), writes*4096)
}

// blockRemoved: the cgroup is gone before its pages are written.
func blockRemoved(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	c := g.Cgroup("gone")
	g.HoldWriteback()
	t := traceBlock(g, d)
	p := c.Process()
	f := p.Open(filepath.Join(dir, "f"), guest.Create)
	f.Write(0, sizeB)
	f.Close()
	p.Exit()
	c.Remove()
	t.stop()
	t.Within("removed cgroup wrote", t.wrote(d, c), sizeB, 100)
}

// blockIOController: with the io controller on, each bio carries a cgroup, and
// writeback is split by cgroup.
func blockIOController(g *guest.Guest) {
	g.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", "+io")
	g.Cleanup(func() { g.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", "-io") })
	blockFileSystem("ext4")(g)
}

// blockOverlay: two containers on overlayfs, as Docker stacks it, over one ext4.
func blockOverlay(g *guest.Guest) {
	d := g.NVMe()
	dir := mountScratch(g, d, "ext4")
	g.Modprobe("overlay")
	if err := os.MkdirAll(dir+"/lower", 0o755); err != nil {
		g.Fatal(err)
	}
	g.WriteFile(dir+"/lower/big", strings.Repeat("0123456789abcde\n", sizeC/16))
	a, b := g.Cgroup("a"), g.Cgroup("b")
	merged := map[*guest.Cgroup]string{}
	for _, c := range []*guest.Cgroup{a, b} {
		base := dir + c.Path()
		for _, sub := range []string{"/upper", "/work"} {
			if err := os.MkdirAll(base+sub, 0o755); err != nil {
				g.Fatal(err)
			}
		}
		merged[c] = "/mnt/overlay" + c.Path()
		g.Mount("overlay", "overlay", merged[c], fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, base, base))
	}
	g.DropCaches()
	pa, pb := a.Process(), b.Process()
	g.HoldWriteback()
	t := traceBlock(g, d)
	fa := pa.Open(merged[a]+"/new", guest.Create)
	fa.Write(0, sizeA)
	fa.Close()
	// Opening for writing copies the lower file up: b reads and writes it.
	fb := pb.Open(merged[b]+"/big", os.O_RDWR)
	fb.Write(0, 1)
	fb.Close()
	t.stop()
	t.Within("a wrote", t.wrote(d, a), sizeA, 100)
	t.Within("b wrote", t.wrote(d, b), sizeC, 50)
	t.Within("b read", t.read(d, b), sizeC, 50)
}

// blockSwap: memory that is paged out belongs to the cgroup it was charged to.
func blockSwap(g *guest.Guest) {
	d := g.Virtio()
	g.Exec("mkswap", d.Path())
	g.Exec("swapon", d.Path())
	g.Cleanup(func() { g.Exec("swapoff", d.Path()) })
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	ma := pa.Alloc(24 << 20)
	b.LimitMemory(20 << 20)
	t := traceBlock(g, d)
	ma.PageOut()
	// This is more memory than b may have: some of it is swapped out, and swapped in when
	// touched.
	mb := pb.Alloc(36 << 20)
	mb.Touch()
	truth := t.stop()
	if truth[0].WriteBytes < 40<<20 || truth[0].ReadBytes < 8<<20 {
		g.Errorf("only %d bytes were swapped out and %d in", truth[0].WriteBytes, truth[0].ReadBytes)
	}
	t.Within("a wrote", t.wrote(d, a), 24<<20, 20)
	t.Within("a and b wrote", t.wrote(d, a)+t.wrote(d, b), truth[0].WriteBytes, 100)
	t.Within("b read", t.read(d, b), truth[0].ReadBytes, 100)
}

// blockDiscard: discards count separately, with the bytes of diskstats. They have
// no pages, and a kernel thread may issue them, but the waiting task is known.
func blockDiscard(g *guest.Guest) {
	d := g.Virtio()
	a := g.Cgroup("a")
	t := traceBlock(g, d)
	a.Run("blkdiscard", "-o", "1048576", "-l", "13631488", d.Path())
	truth := t.stop()
	if truth[0].DiscardBytes != 13631488 {
		g.Errorf("the device discarded %d bytes, want 13631488", truth[0].DiscardBytes)
	}
	t.Equal("a discarded", t.discarded(d, a), 13631488)
}

// blockDiscardCut: a device with a small limit gets a chain of requests, and the
// caller waits for the last one only. Zeroes that the device writes by itself are
// split alike. Requests that a kernel thread issued and the device finished before
// a task waited stay with the kernel. No other cgroup gets any of them.
func blockDiscardCut(g *guest.Guest) {
	d := scsiDebug(g, "lbpu=1", "lbpws=1", "unmap_max_blocks=2048", "write_same_length=2048")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	t := traceBlock(g, d)
	const discarded, zeroed = 13631488, 7340032
	a.Run("blkdiscard", "-o", "1048576", "-l", fmt.Sprint(discarded), d.Path())
	b.Run("blkdiscard", "-z", "-o", "20971520", "-l", fmt.Sprint(zeroed), d.Path())
	truth := t.stop()
	if n := truth[0].DiscardOps; n < 13 {
		g.Errorf("%d discards: nothing was cut, this proves nothing", n)
	}
	kernel := []string{"iotrace.owner", "kernel", "iotrace.device.id", d.ID()}
	early, earlyZeroes := t.Sum("iotrace.discard.bytes", kernel...), t.Sum("iotrace.write.bytes", kernel...)
	g.Logf("finished before a task waited: %d of %d bytes discarded, %d of %d zeroed", early, discarded, earlyZeroes, zeroed)
	t.Equal("a and the kernel discarded", t.discarded(d, a)+early, discarded)
	t.Equal("b and the kernel wrote", t.wrote(d, b)+earlyZeroes, zeroed)
	if early > discarded/2 || earlyZeroes > zeroed/2 {
		g.Errorf("the kernel has %d of %d bytes discarded and %d of %d zeroed", early, discarded, earlyZeroes, zeroed)
	}
}

// blockFlush: flushes carry no bytes and are not writes.
func blockFlush(g *guest.Guest) {
	d := g.NVMe()
	a := g.Cgroup("a")
	f := a.Process().Open(d.Path(), os.O_RDWR|guest.Direct)
	t := traceBlock(g, d)
	for i := int64(0); i < 17; i++ {
		f.WriteBlocks(i*4096, 4096, 4096)
		f.Fsync()
	}
	f.Close()
	truth := t.stop()
	t.Equal("a wrote", t.wrote(d, a), 17*4096)
	t.Equal("writes", t.Sum("iotrace.write.ops", "iotrace.device.id", d.ID()), 17)
	if truth[0].FlushOps < 17 {
		g.Errorf("the device saw %d flushes, want 17 at least", truth[0].FlushOps)
	}
}

// scsiDebug loads a SCSI disk in memory.
func scsiDebug(g *guest.Guest, options ...string) guest.Disk {
	g.Helper()
	g.Modprobe("sd_mod")
	g.Exec("modprobe", append([]string{"scsi_debug", "dev_size_mb=64", "delay=0"}, options...)...)
	g.Cleanup(func() {
		g.Eventually("scsi_debug unloads", func() bool { _, err := g.Try("modprobe", "-r", "scsi_debug"); return err == nil })
	})
	var name string
	g.Eventually("disk of scsi_debug", func() bool {
		dirs, _ := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
		for _, d := range dirs {
			name = filepath.Base(d)
		}
		return name != ""
	})
	d := g.Disk(name)
	g.Sync()
	return d
}

// blockRequeue: the driver refuses every third command; refused requests are
// reissued and must not count twice.
func blockRequeue(g *guest.Guest) {
	d := scsiDebug(g)
	a := g.Cgroup("a")
	f := a.Process().Open(d.Path(), os.O_RDWR|guest.Direct)
	t := traceBlock(g, d)
	const hostBusy = "0x8000"
	g.WriteFile("/sys/bus/pseudo/drivers/scsi_debug/opts", hostBusy)
	g.WriteFile("/sys/bus/pseudo/drivers/scsi_debug/every_nth", "3")
	f.WriteBlocks(0, 211*4096, 4096)
	f.ReadBlocks(0, 97*4096, 4096)
	g.WriteFile("/sys/bus/pseudo/drivers/scsi_debug/every_nth", "0")
	g.WriteFile("/sys/bus/pseudo/drivers/scsi_debug/opts", "0")
	f.Close()
	t.stop()
	t.Equal("a wrote", t.wrote(d, a), 211*4096)
	t.Equal("a read", t.read(d, a), 97*4096)
}

// blockErrors: a medium error ends a read half way; the tracer counts the bytes
// that the kernel counts as done.
func blockErrors(g *guest.Guest) {
	d := scsiDebug(g, "opts=2") // medium error at sector 0x1234
	a := g.Cgroup("a")
	f := a.Process().Open(d.Path(), os.O_RDWR|guest.Direct)
	t := traceBlock(g, d)
	f.WriteBlocks(0, 64*4096, 64<<10)
	out := a.Command("dd", "if="+d.Path(), "of=/dev/null", "bs=64k", "count=1", "skip=36", "iflag=direct")
	if err := out.Run(); err == nil {
		g.Error("reading the bad sector succeeded")
	}
	f.Close()
	t.stop()
	t.Equal("a wrote", t.wrote(d, a), 64*4096)
}

// blockNullBlk: a device without memory or medium.
func blockNullBlk(g *guest.Guest) {
	g.Exec("modprobe", "null_blk", "nr_devices=1", "gb=1", "queue_mode=2")
	g.Cleanup(func() { g.Exec("modprobe", "-r", "null_blk") })
	d := g.Disk("nullb0")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	fa, fb := a.Process().Open(d.Path(), os.O_RDWR|guest.Direct), b.Process().Open(d.Path(), os.O_RDWR|guest.Direct)
	t := traceBlock(g, d)
	fa.WriteBlocks(0, 1013*4096, 4096)
	fb.ReadBlocks(0, 509*4096, 4096)
	fa.Close()
	fb.Close()
	t.stop()
	t.Equal("a wrote", t.wrote(d, a), 1013*4096)
	t.Equal("b read", t.read(d, b), 509*4096)
}

// stacked writes through a stack of devices and checks the leaf devices: owners are
// right at each, and no total includes the stack.
func stacked(g *guest.Guest, top guest.Disk, leaves ...guest.Disk) {
	g.Helper()
	dir := mountScratch(g, top, "ext4")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	fa, fb := pa.Open(filepath.Join(dir, "a"), guest.Create), pb.Open(filepath.Join(dir, "b"), guest.Create|guest.Direct)
	g.HoldWriteback()
	t := traceBlock(g, leaves...)
	fa.Write(0, sizeA)
	fb.WriteBlocks(0, 1009*4096, 64<<10)
	t.stop()
	// The tracer's own total includes leaf devices only, and their rows were already
	// compared with diskstats. The root disk is a leaf too; nothing writes to it.
	var want, got int64
	for _, d := range leaves {
		t.Within(d.Name+" a wrote", t.wrote(d, a), sizeA, 100)
		t.Within(d.Name+" b wrote", t.wrote(d, b), 1009*4096, 100)
		want += t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID())
	}
	for _, doc := range t.Docs {
		if doc.String("event.dataset") == "iotrace.status" {
			got += doc.Int("iotrace.total.write.bytes")
		}
	}
	t.Equal("total of all leaf devices", got, want)
}

func blockDMLinear(g *guest.Guest) {
	d := g.NVMe()
	half := d.Sectors() / 2
	stacked(g, g.DM("linear", fmt.Sprintf("0 %d linear %s 0\n%d 65536 linear %s %d", half, d.Path(), half, d.Path(), half+2048)), d)
}

func blockDMThin(g *guest.Guest) {
	d := g.NVMe()
	g.Modprobe("dm-thin-pool")
	g.Exec("dd", "if=/dev/zero", "of="+d.Path(), "bs=4k", "count=1", "oflag=direct")
	const meta = 32768
	data := (d.Sectors() - meta) &^ 127
	md := g.DM("meta", fmt.Sprintf("0 %d linear %s 0", meta, d.Path()))
	dd := g.DM("data", fmt.Sprintf("0 %d linear %s %d", data, d.Path(), meta))
	pool := g.DM("pool", fmt.Sprintf("0 %d thin-pool %s %s 128 0", data, md.Path(), dd.Path()))
	g.Exec("dmsetup", "message", "pool", "0", "create_thin 0")
	stacked(g, g.DM("thin", "0 524288 thin "+pool.Path()+" 0"), d)
}

func blockDMCrypt(g *guest.Guest) {
	d := g.NVMe()
	stacked(g, crypt(g, d, 524288), d)
}

// crypt puts dm-crypt over the first sectors of a disk.
func crypt(g *guest.Guest, d guest.Disk, sectors int) guest.Disk {
	g.Helper()
	g.Modprobe("dm-crypt")
	return g.DM("crypt", fmt.Sprintf("0 %d crypt aes-xts-plain64 %s 0 %s 0", sectors, strings.Repeat("0123456789abcdef", 8), d.Path()))
}

func blockMDRaid1(g *guest.Guest) {
	disks := []guest.Disk{g.NVMe(), g.Virtio()}
	stacked(g, mdArray(g, "1", 262144, disks...), disks...)
}

// mdArray makes an array of the first sizeKiB of each disk, until the scenario's end.
func mdArray(g *guest.Guest, level string, sizeKiB int, disks ...guest.Disk) guest.Disk {
	g.Helper()
	module := "raid" + level
	if level == "5" || level == "6" {
		module = "raid456"
	}
	g.Modprobe(module)
	args := []string{"--create", "/dev/md0", "--run", "--level=" + level, fmt.Sprintf("--raid-devices=%d", len(disks)), "--assume-clean", "--metadata=1.2", fmt.Sprintf("--size=%d", sizeKiB), "--bitmap=none"}
	for _, d := range disks {
		args = append(args, d.Path())
	}
	g.Exec("mdadm", args...)
	g.Cleanup(func() {
		g.Exec("mdadm", "--stop", "/dev/md0")
		for _, d := range disks {
			g.Exec("mdadm", "--zero-superblock", d.Path())
		}
	})
	md := g.Disk("md0")
	// Otherwise the array writes its superblock some time after the last write.
	g.WriteFile("/sys/block/md0/md/safe_mode_delay", "0")
	return md
}

func blockLoop(g *guest.Guest) {
	d := g.NVMe()
	d.Format("ext4")
	d.MountAt("ext4", "/mnt/below", "")
	stacked(g, loopOver(g, "/mnt/below/image"), d)
}

// loopOver attaches a loop device to a new, sparse file.
func loopOver(g *guest.Guest, image string) guest.Disk {
	g.Helper()
	f, err := os.Create(image)
	if err != nil {
		g.Fatal(err)
	}
	if err := f.Truncate(256 << 20); err != nil {
		g.Fatal(err)
	}
	f.Close()
	return g.Loop(image)
}

// blockLoopBtrfs: the file is in a subvolume, whose device number is another one than
// that of the file system.
func blockLoopBtrfs(g *guest.Guest) {
	d := g.NVMe()
	d.Format("btrfs")
	d.MountAt("btrfs", "/mnt/below", "nodatasum,nodatacow")
	g.Exec("btrfs", "subvolume", "create", "/mnt/below/volume")
	stacked(g, loopOver(g, "/mnt/below/volume/image"), d)
}

// blockLoopOverlay: below overlayfs another inode has the data.
func blockLoopOverlay(g *guest.Guest) {
	d := g.NVMe()
	dir := "/mnt/below"
	d.Format("ext4")
	d.MountAt("ext4", dir, "")
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			g.Fatal(err)
		}
	}
	g.Mount("overlay", "none", "/mnt/merged", "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work")
	stacked(g, loopOver(g, "/mnt/merged/image"), d)
}

// blockZram: compressed memory has no requests; its bios are counted instead.
func blockZram(g *guest.Guest) {
	d := g.NVMe()
	g.Modprobe("zram")
	g.WriteFile("/sys/block/zram0/disksize", "134217728")
	g.Cleanup(func() { g.WriteFile("/sys/block/zram0/reset", "1") })
	z := g.Disk("zram0")
	a, b := g.Cgroup("a"), g.Cgroup("b")
	fa, fb := a.Process().Open(z.Path(), os.O_RDWR|guest.Direct), b.Process().Open(d.Path(), os.O_RDWR|guest.Direct)
	t := traceBlock(g, d, z)
	fa.WriteBlocks(0, 307*4096, 4096)
	fa.ReadBlocks(0, 101*4096, 4096)
	fb.WriteBlocks(0, 103*4096, 4096)
	fa.Close()
	fb.Close()
	t.stop()
	t.Equal("a wrote to zram", t.wrote(z, a), 307*4096)
	t.Equal("a read from zram", t.read(z, a), 101*4096)
	t.Equal("b wrote to the disk", t.wrote(d, b), 103*4096)
}

// blockDevicesChange: devices come and change while the tracer runs. It looks at them only
// after it noticed a change, so it must notice each: a zram device that is set up, a loop
// device that gets another file, a dm device that gets another table, a crypt device.
func blockDevicesChange(g *guest.Guest) {
	d, v := g.NVMe(), g.Virtio()
	dir := mountScratch(g, d, "ext4")
	image := filepath.Join(dir, "image")
	memory := g.TempDir()
	g.Mount("tmpfs", "none", memory, "")
	for _, file := range []string{image, filepath.Join(memory, "image")} {
		g.Exec("fallocate", "-l", "64M", file)
	}
	g.Modprobe("zram", "loop", "dm_mod", "dm-zero")
	z := g.Disk("zram0")
	g.Sync()
	a, b := g.Cgroup("a"), g.Cgroup("b")
	t := traceBlock(g, d, v)
	intervals := func(n int) {
		g.Helper()
		count := func() (n int) {
			for _, doc := range t.tr.Now().Docs {
				if doc.String("event.dataset") == "iotrace.status" {
					n++
				}
			}
			return n
		}
		before := count()
		g.Eventually("more intervals", func() bool { return count() >= before+n })
	}
	write := func(c *guest.Cgroup, to guest.Disk, bytes int64) {
		g.Helper()
		f := c.Process().Open(to.Path(), os.O_RDWR|guest.Direct)
		f.WriteBlocks(0, bytes, 4096)
		f.Close()
	}
	intervals(3) // the start is over

	g.WriteFile("/sys/block/zram0/disksize", "67108864")
	g.Cleanup(func() { g.WriteFile("/sys/block/zram0/reset", "1") })
	intervals(2)
	write(a, z, 307*4096)

	loop := strings.TrimSpace(g.Exec("losetup", "-f", "--show", image))
	g.Cleanup(func() { _, _ = g.Try("losetup", "-d", loop) })
	l := g.Disk(filepath.Base(loop))
	intervals(2)
	write(b, l, 1009*4096)
	g.Sync()
	intervals(2) // the rows are of this file
	g.Exec("losetup", "-d", loop)
	g.Exec("losetup", loop, filepath.Join(memory, "image"))
	intervals(2)
	write(b, l, 503*4096)

	x := g.DM("change", fmt.Sprintf("0 65536 linear %s 0", v.Path()))
	intervals(2)
	write(a, x, 211*4096)
	g.Exec("dmsetup", "reload", "change", "--table", "0 65536 zero")
	g.Exec("dmsetup", "suspend", "--noudevsync", "change")
	g.Exec("dmsetup", "resume", "--noudevsync", "change")
	intervals(2)
	write(a, x, 97*4096)

	g.Modprobe("dm-crypt")
	y := g.DM("arrives", fmt.Sprintf("0 65536 crypt aes-xts-plain64 %s 0 %s 0", strings.Repeat("0123456789abcdef", 8), v.Path()))
	intervals(2)
	write(b, y, 401*4096)
	t.stop()

	leaf := func(dev guest.Disk, c *guest.Cgroup) int64 {
		return t.Sum("iotrace.write.bytes", "iotrace.cgroup.path", c.Path(), "iotrace.device.id", dev.ID(), "iotrace.device.stacked", "")
	}
	t.Equal("a wrote to zram", leaf(z, a), 307*4096)
	t.Equal("b wrote to the loop device over memory", leaf(l, b), 503*4096)
	t.Equal("b wrote to the loop device", t.wrote(l, b), (1009+503)*4096)
	t.Within("b wrote to the disk below the loop device", t.wrote(d, b), 1009*4096, 100)
	t.Equal("a wrote to the disk below the dm device", t.wrote(v, a), 211*4096)
	t.Equal("a wrote to the dm device without one", leaf(x, a), 97*4096)
	t.Equal("b wrote to the disk below the crypt device", t.wrote(v, b), 401*4096)
}

// blockManyGroups: with room for few groups, all others still count, as (other).
func blockManyGroups(g *guest.Guest) {
	d := g.NVMe()
	g.Sync()
	tr := g.Trace("--by", "cgroup,device", "--source", "block", "--max-groups", "8")
	before := d.Stats()
	const owners = 41
	for i := 0; i < owners; i++ {
		p := g.Cgroup("many").Process()
		f := p.Open(d.Path(), os.O_RDWR|guest.Direct)
		f.WriteBlocks(int64(i)<<16, 3*4096, 4096)
		f.Close()
		p.Exit()
	}
	truth := d.Stats().Sub(before)
	r := tr.Stop()
	r.Equal("all groups together", r.Sum("iotrace.write.bytes", "iotrace.device.id", d.ID()), truth.WriteBytes)
	r.Equal("written", truth.WriteBytes, owners*3*4096)
}
