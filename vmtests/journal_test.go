//go:build vm

package vmtests

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// Metadata and journals belong to those whose changes they hold: x changes three times
// as much as z, y has read every block first and is idle, and the root cgroup has
// mounted the file system.

// journal is a file system with a journal, and what is done to it.
type journal struct {
	load     string // shell: $1 is a directory, $2 how often
	features string // mkfs -O
	options  string
	external bool // the journal is on a second disk
	linear   bool // under device mapper, with blocks of 1 KiB
	rounds   int  // as often; 0 is once
}

const (
	appendAndSync = `i=0; while [ $i -lt $2 ]; do dd if=/dev/zero of=$1/f bs=4k count=1 oflag=append conv=notrunc,fsync status=none; i=$((i+1)); done`
	createAndSync = `i=0; while [ $i -lt $2 ]; do dd if=/dev/zero of=$1/f$i bs=4k count=1 conv=fsync status=none; i=$((i+1)); done`
	createMany    = `i=0; while [ $i -lt $2 ]; do echo > $1/f$i; i=$((i+1)); done`
)

// Operations of x and z.
const journalX, journalZ = 60, 20

// make makes the file system. It returns the directory, the disk of the file system and
// the one of the journal.
func (j journal) make(g *guest.Guest) (string, []guest.Disk) {
	g.Helper()
	d := g.NVMe()
	disks := []guest.Disk{d}
	var mkfs []string
	if j.features != "" {
		mkfs = append(mkfs, "-O", j.features)
	}
	if j.external {
		v := g.Virtio()
		disks = append(disks, v)
		g.Exec("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "journal_dev", v.Path())
		mkfs = append(mkfs, "-b", "4096", "-J", "device="+v.Path())
	}
	top := d
	if j.linear {
		top = g.DM("linear", fmt.Sprintf("0 %d linear %s 0", d.Sectors(), d.Path()))
		mkfs = append(mkfs, "-b", "1024")
	}
	top.Format("ext4", mkfs...)
	dir := "/mnt/scratch"
	top.MountAt("ext4", dir, j.options)
	return dir, disks
}

// cgroups makes x, y and z; y makes the directories of the others and is the first to
// read what they will change.
func journalCgroups(g *guest.Guest, dir string) (x, y, z *guest.Cgroup) {
	g.Helper()
	x, y, z = g.Cgroup("x"), g.Cgroup("y"), g.Cgroup("z")
	y.Run("sh", "-c", `mkdir $0/x $0/z; touch $0/x/f $0/z/f; ls -lR $0`, dir)
	g.Sync()
	return x, y, z
}

// together runs both to their ends.
func together(g *guest.Guest, commands ...*exec.Cmd) {
	g.Helper()
	for _, c := range commands {
		if err := c.Start(); err != nil {
			g.Fatal(err)
		}
	}
	for _, c := range commands {
		if err := c.Wait(); err != nil {
			g.Errorf("%q: %v", c.Args, err)
		}
	}
}

// shares compares what was written to the disks with 3/4 for x and 1/4 for z. Blocks
// are dealt out, so that some of them are left when a share is no whole number. The
// kernel has what was dirty when the tracer started, and superblocks.
func (b *blockTrace) shares(x, y, z *guest.Cgroup, permille int64) {
	b.g.Helper()
	var wx, wz, wk, all int64
	for _, d := range b.disks {
		wx, wz = wx+b.Written("block", d.ID(), x), wz+b.Written("block", d.ID(), z)
		b.Equal(d.Name+" y wrote", b.Written("block", d.ID(), y), 0)
		wk += b.Sum("iotrace.write.bytes", "iotrace.owner", "kernel", "iotrace.device.id", d.ID())
		all += b.Sum("iotrace.write.bytes", "iotrace.device.id", d.ID())
	}
	b.g.Logf("x %d, z %d, kernel %d of %d bytes: x has %d of 1000 parts of what both have", wx, wz, wk, all, wx*1000/(wx+wz))
	b.Equal("all but x, z and the kernel wrote", all-wx-wz-wk, 0)
	if parts := wx * 1000 / (wx + wz); parts < 750-permille || parts > 750+permille {
		b.Equal("parts of 1000 that x wrote", parts, 750)
	}
	if wk > all*4/100 {
		b.Equal("the kernel wrote", wk, 0)
	}
	if n := b.Sum("iotrace.basis.journal", "iotrace.cgroup.path", x.Path()); n == 0 {
		b.Equal("bytes of x with the basis journal", n, wx)
	}
}

// blockJournal: x and z change something and wait for the journal, at the same time.
func blockJournal(j journal) func(*guest.Guest) {
	return func(g *guest.Guest) {
		dir, disks := j.make(g)
		x, y, z := journalCgroups(g, dir)
		rounds := max(j.rounds, 1)
		t := traceBlock(g, disks...)
		together(g, x.Command("sh", "-c", j.load, "x", filepath.Join(dir, "x"), fmt.Sprint(rounds*journalX)),
			z.Command("sh", "-c", j.load, "z", filepath.Join(dir, "z"), fmt.Sprint(rounds*journalZ)))
		g.Unmount(dir) // and everything is written to its own place
		t.stop()
		t.shares(x, y, z, 30)
	}
}

// blockJournalShared: the changes of both are in one transaction, a third one calls sync,
// and both cgroups are gone when the blocks are written to their own places.
func blockJournalShared(g *guest.Guest) {
	dir, disks := journal{}.make(g)
	x, y, z := journalCgroups(g, dir)
	g.HoldWriteback()
	t := traceBlock(g, disks...)
	for round := range 4 {
		for _, c := range []struct {
			of    *guest.Cgroup
			name  string
			files int
		}{{x, "x", 300}, {z, "z", 100}} {
			c.of.Run("sh", "-c", "mkdir $1; "+createMany, c.name, filepath.Join(dir, c.name, fmt.Sprint(round)), fmt.Sprint(c.files))
		}
		y.Run("sync")
	}
	x.Remove()
	z.Remove()
	g.Unmount(dir)
	t.stop()
	t.shares(x, y, z, 30)
}

// blockJournalPrograms: two processes of one cgroup are told apart.
func blockJournalPrograms(g *guest.Guest) {
	dir, disks := journal{}.make(g)
	x, y, _ := journalCgroups(g, dir)
	d := disks[0]
	g.Sync()
	earlier := d.Stats()
	tr := g.Trace("--by", "process,device", "--source", "block")
	before := d.Stats()
	px, pz := x.Process(), x.Process()
	fx, fz := px.Open(filepath.Join(dir, "x/f"), guest.Create), pz.Open(filepath.Join(dir, "z/f"), guest.Create)
	for i := range int64(40) {
		for k := range int64(3) {
			fx.Write((3*i+k)<<12, 4096)
			fx.Fsync()
		}
		fz.Write(i<<12, 4096)
		fz.Fsync()
	}
	fx.Close()
	fz.Close()
	g.Sync()
	truth := d.Stats()
	r := tr.Stop()
	around := d.Stats().Sub(earlier)
	truth = truth.Sub(before)
	wrote := func(p *guest.Process) int64 {
		return r.Sum("iotrace.write.bytes", "process.pid", fmt.Sprint(p.PID()), "iotrace.device.id", d.ID())
	}
	all := r.Sum("iotrace.write.bytes", "iotrace.device.id", d.ID())
	if all < truth.WriteBytes || all > around.WriteBytes {
		r.Equal("all wrote", all, truth.WriteBytes)
	}
	r.Equal("y wrote", r.Written("block", d.ID(), y), 0)
	wx, wz := wrote(px), wrote(pz)
	g.Logf("processes wrote %d and %d of %d bytes", wx, wz, all)
	if parts := wx * 1000 / (wx + wz); parts < 720 || parts > 780 {
		r.Equal("parts of 1000 that the first process wrote", parts, 750)
	}
	if (wx+wz)*100 < all*96 {
		r.Equal("both processes wrote", wx+wz, all)
	}
}

// blockJournalUnmounted: after a file system with a journal is gone, the device's pages
// are those of who writes to it, at once, also of a program that opens it exclusively.
func blockJournalUnmounted(g *guest.Guest) {
	dir, disks := journal{}.make(g)
	x, y, z := journalCgroups(g, dir)
	d := disks[0]
	t := traceBlock(g, d)
	x.Run("sh", "-c", appendAndSync, "x", filepath.Join(dir, "x"), "3")
	g.Unmount(dir)
	z.Run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", d.Path())
	const raw = 8 << 20
	y.Run("dd", "if=/dev/zero", "of="+d.Path(), "bs=1M", fmt.Sprintf("count=%d", raw>>20), "conv=fsync", "status=none")
	t.stop()
	t.Equal("y wrote", t.Written("block", d.ID(), y), raw)
	if n := t.Written("block", d.ID(), x); n == 0 || n > 1<<20 {
		t.Equal("x wrote", n, 3*4096)
	}
	if n := t.Written("block", d.ID(), z); n < 8<<20 {
		t.Equal("z wrote", n, 16<<20)
	}
}

// TestJournalLoads: what the scenarios run in guests are programs of a shell.
func TestJournalLoads(t *testing.T) {
	for _, load := range []string{appendAndSync, createAndSync, createMany} {
		dir := t.TempDir()
		if out, err := exec.Command("sh", "-c", load, "load", dir, "3").CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", load, err, out)
		}
		files, err := filepath.Glob(filepath.Join(dir, "f*"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no file: %v", load, err)
		}
	}
}
