//go:build vm

package vmtests

import (
	"cmp"
	"fmt"
	"os"
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
	load     journalLoad
	features string // mkfs -O
	options  string
	external bool   // the journal is on a second disk
	linear   bool   // under device mapper, with blocks of 1 KiB
	fs       string // "" is ext4
	crypt    bool   // under dm-crypt on a logical volume
	from, to int64  // parts of 1000 that x has; 0 is 730 and 770
}

// journalLoad does something in a directory that a commit must follow, for the ith time.
type journalLoad func(p *guest.Process, dir string, i int64)

// appendAndSync makes a file a page longer.
func appendAndSync(p *guest.Process, dir string, i int64) {
	f := p.Open(filepath.Join(dir, "f"), os.O_RDWR)
	f.Write(i<<12, 4096)
	f.Fsync()
	f.Close()
}

// createAndSync makes a file of a page.
func createAndSync(p *guest.Process, dir string, i int64) {
	f := p.Open(filepath.Join(dir, fmt.Sprint("f", i)), guest.Create)
	f.Write(0, 4096)
	f.Fsync()
	f.Close()
}

// Programs of a shell: $1 is a directory, $2 how often.
const (
	appendAtOnce = `i=0; while [ $i -lt $2 ]; do dd if=/dev/zero of=$1/f bs=4k count=1 oflag=append conv=notrunc,fsync status=none; i=$((i+1)); done`
	createMany   = `i=0; while [ $i -lt $2 ]; do echo > $1/f$i; i=$((i+1)); done`
)

// Operations of z; x has three times as many.
const journalZ = 40

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
	if j.crypt {
		lv := g.DM("lv", fmt.Sprintf("0 819200 linear %s 2048", d.Path()))
		top = crypt(g, lv, 819200)
	}
	fs := cmp.Or(j.fs, "ext4")
	top.Format(fs, mkfs...)
	dir := "/mnt/scratch"
	top.MountAt(fs, dir, j.options)
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

// shares compares what was written to the disks with 3/4 for x and 1/4 for z, in parts of
// 1000 of what both wrote. Blocks
// are dealt out, so that some of them are left when a share is no whole number. The
// kernel has what was dirty when the tracer started, and superblocks. most is what the
// others may have: who unmounts an XFS writes its counters and an end of the log.
func (b *blockTrace) shares(x, y, z *guest.Cgroup, from, to, most int64) {
	b.g.Helper()
	var wx, wz, wk, all int64
	for _, d := range b.disks {
		wx, wz = wx+b.Written("block", d.ID(), x), wz+b.Written("block", d.ID(), z)
		b.Equal(d.Name+" y wrote", b.Written("block", d.ID(), y), 0)
		wk += b.Sum("iotrace.write.bytes", "iotrace.owner", "kernel", "iotrace.device.id", d.ID())
		all += b.Sum("iotrace.write.bytes", "iotrace.device.id", d.ID())
	}
	b.g.Logf("x %d, z %d, kernel %d of %d bytes: x has %d of 1000 parts of what both have", wx, wz, wk, all, wx*1000/(wx+wz))
	if rest := all - wx - wz - wk; rest > most {
		b.Equal("all but x, z and the kernel wrote", rest, most)
	}
	if parts := wx * 1000 / (wx + wz); parts < from || parts > to {
		b.Equal(fmt.Sprintf("parts of 1000 that x wrote, %d to %d", from, to), parts, 750)
	}
	if wk > all*4/100 {
		b.Equal("the kernel wrote", wk, 0)
	}
	if n := b.Sum("iotrace.basis.journal", "iotrace.cgroup.path", x.Path()); n == 0 {
		b.Equal("bytes of x with the basis journal", n, wx)
	}
}

// blockJournal: x and z change something and wait for the journal, in turn, so that x
// causes three of four commits.
func blockJournal(j journal) func(*guest.Guest) {
	return func(g *guest.Guest) {
		dir, disks := j.make(g)
		x, y, z := journalCgroups(g, dir)
		px, pz := x.Process(), z.Process()
		t := traceBlock(g, disks...)
		for i := range int64(journalZ) {
			for k := range int64(3) {
				j.load(px, filepath.Join(dir, "x"), 3*i+k)
			}
			j.load(pz, filepath.Join(dir, "z"), i)
		}
		g.Unmount(dir) // and everything is written to its own place
		t.stop()
		var most int64
		if j.fs == "xfs" {
			most = 64 << 10
		}
		t.shares(x, y, z, cmp.Or(j.from, 730), cmp.Or(j.to, 770), most)
	}
}

// blockJournalAtOnce: x and z do not wait for each other. A commit that both wait for costs
// each of them half of what one alone pays for a descriptor and an end, and x pays for the
// others alone: of what both write to the journal x has 75 % by right where no commit is
// shared, and 83 % where z has none of its own.
func blockJournalAtOnce(g *guest.Guest) {
	dir, disks := journal{}.make(g)
	x, y, z := journalCgroups(g, dir)
	t := traceBlock(g, disks...)
	together(g, x.Command("sh", "-c", appendAtOnce, "x", filepath.Join(dir, "x"), fmt.Sprint(3*journalZ)),
		z.Command("sh", "-c", appendAtOnce, "z", filepath.Join(dir, "z"), fmt.Sprint(journalZ)))
	g.Unmount(dir)
	t.stop()
	t.shares(x, y, z, 730, 850, 0)
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
		}{{x, "x", 600}, {z, "z", 200}} {
			c.of.Run("sh", "-c", "mkdir $1; "+createMany, c.name, filepath.Join(dir, c.name, fmt.Sprint(round)), fmt.Sprint(c.files))
		}
		y.Run("sync")
	}
	x.Remove()
	z.Remove()
	g.Unmount(dir)
	t.stop()
	t.shares(x, y, z, 730, 770, 0)
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
	if parts := wx * 1000 / (wx + wz); parts < 730 || parts > 770 {
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
	x.Run("sh", "-c", appendAtOnce, "x", filepath.Join(dir, "x"), "3")
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
	for _, load := range []string{appendAtOnce, createMany} {
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
