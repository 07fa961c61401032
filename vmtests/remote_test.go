//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// remoteCase is one scenario on one mount of a network file system, with the bytes that
// each cgroup wrote and read.
type remoteCase struct {
	*guest.Guest
	a, b        *guest.Cgroup
	wrote, read map[*guest.Cgroup]int64
	file        func(name string) string             // its path on the mount
	sent        func() remoteBytes                   // what the truth counted since the beginning
	open        func(flags int) (fa, fb *guest.File) // opens a file of A's and one of B's that are on the server only
}

type remoteBytes struct{ read, written int64 }

func newRemoteCase(g *guest.Guest) remoteCase {
	c := remoteCase{Guest: g, wrote: map[*guest.Cgroup]int64{}, read: map[*guest.Cgroup]int64{}}
	c.a, c.b = c.cgroup("a"), c.cgroup("b")
	return c
}

// cgroup makes a cgroup. Its rows must have the bytes that are added to wrote and read
// later, and no others.
func (c *remoteCase) cgroup(name string) *guest.Cgroup {
	cg := c.Cgroup(name)
	c.wrote[cg], c.read[cg] = 0, 0
	return cg
}

func (c *remoteCase) writeBoth(flags int) (fa, fb *guest.File) {
	fa = c.a.Process().Open(c.file("a"), guest.Create|flags)
	fa.Write(0, bytesA)
	fb = c.b.Process().Open(c.file("b"), guest.Create|flags)
	fb.Write(0, bytesB)
	c.wrote[c.a] += bytesA
	c.wrote[c.b] += bytesB
	return fa, fb
}

// readsAsCounted expects for one cgroup the reads that the truth counts: the test
// knows their owner, but not their number.
func (c *remoteCase) readsAsCounted(cg *guest.Cgroup) {
	var others int64
	for other, n := range c.read {
		if other != cg {
			others += n
		}
	}
	c.read[cg] = c.sent().read - others
}

// mapped makes pages dirty through a mapping; the page faults may read holes.
func (c *remoteCase) mapped() {
	const n = 1 << 20
	for _, w := range []struct {
		cg   *guest.Cgroup
		name string
	}{{c.a, "a"}, {c.b, "b"}} {
		f := w.cg.Process().Open(c.file(w.name), guest.Create)
		f.Truncate(n)
		f.Map(0, n).Store()
		c.readsAsCounted(w.cg)
	}
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = n, n
}

// deadWriter flushes the dirty pages of a cgroup that is already removed.
func (c *remoteCase) deadWriter() {
	const n = 1 << 20
	gone := c.cgroup("gone")
	p := gone.Process()
	f := p.Open(c.file("f"), guest.Create)
	f.Truncate(n)
	m := f.Map(0, n)
	m.Store()
	c.readsAsCounted(gone)
	p.Exit()
	gone.Remove()
	c.Sync()
	c.wrote[gone] = n
}

// overwrite has B overwrite what A wrote and has in the cache.
func (c *remoteCase) overwrite() {
	fa := c.a.Process().Open(c.file("f"), guest.Create)
	fa.Write(0, bytesB)
	fa.Fsync()
	c.wrote[c.a] = c.sent().written
	fb := c.b.Process().Open(c.file("f"), os.O_RDWR)
	fb.Write(0, bytesB)
	c.Sync()
	c.wrote[c.b] = c.sent().written - c.wrote[c.a]
	if c.wrote[c.a] != bytesB || c.wrote[c.b] < bytesB {
		c.Errorf("%d and %d bytes were sent, of %d written twice", c.wrote[c.a], c.wrote[c.b], bytesB)
	}
	c.readsAsCounted(c.b)
}

// alternate has two cgroups write every other 16 KiB of one file: requests with
// pages of both are split.
func (c *remoteCase) alternate() {
	const chunk, n = 16 << 10, 64
	fa := c.a.Process().Open(c.file("f"), guest.Create)
	fb := c.b.Process().Open(c.file("f"), os.O_RDWR)
	for i := int64(0); i < n; i++ {
		fa.Write(i*2*chunk, chunk)
		fb.Write(i*2*chunk+chunk, chunk)
	}
	c.Sync()
	c.wrote[c.a], c.wrote[c.b] = chunk*n, chunk*n
}

// appended appends to a file whose last page another cgroup has in the cache.
func (c *remoteCase) appended() {
	fa := c.a.Process().Open(c.file("f"), guest.Create)
	fa.Write(0, 1_000_001)
	fa.Fsync()
	c.wrote[c.a] = c.sent().written
	fb := c.b.Process().Open(c.file("f"), os.O_RDWR|os.O_APPEND)
	fb.Append(bytesC)
	c.Sync()
	c.wrote[c.b] = c.sent().written - c.wrote[c.a]
	if c.wrote[c.b] < bytesC {
		c.Errorf("%d bytes went out for %d appended", c.wrote[c.b], bytesC)
	}
	c.readsAsCounted(c.b)
}

func (c *remoteCase) osync() {
	c.a.Process().Open(c.file("a"), guest.Create|os.O_SYNC).Write(0, 1<<20)
	c.b.Process().Open(c.file("b"), guest.Create|os.O_SYNC).Write(0, 1<<19)
	c.wrote[c.a], c.wrote[c.b] = 1<<20, 1<<19
}

func (c *remoteCase) readCold() {
	fa, fb := c.open(0)
	fa.Read(0, bytesA)
	fb.Read(0, bytesB)
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

func (c *remoteCase) readMmap() {
	fa, fb := c.open(0)
	fa.MapRead(0, bytesA).Touch()
	fb.MapRead(0, bytesB).Touch()
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

// smallFiles has two cgroups write ten thousand files of a few bytes each.
func (c *remoteCase) smallFiles() {
	c.wrote[c.a] = writeSmallFiles(c.a, c.file("a"), 5_000)
	c.wrote[c.b] = writeSmallFiles(c.b, c.file("b"), 5_000)
}

// writeSmallFiles has a cgroup write files of a few bytes, and returns how many in all. Their
// names begin with path.
func writeSmallFiles(cg *guest.Cgroup, path string, files int) (n int64) {
	cg.Run("bash", "-c", fmt.Sprintf(`for ((i = 0; i < %d; i++)); do printf '%%0*d' $((i %% 13 + 1)) 7 > %s$i; done`, files, path))
	for i := range files {
		n += int64(i%13 + 1)
	}
	return n
}

// checkNextMount compares what rows say of a mount that was taken away with bytesC dirty
// bytes of a cgroup, and of the mount after it, to which another one wrote bytesA.
func checkNextMount(r *guest.Output, source, removed string, cg *guest.Cgroup, next string, other *guest.Cgroup) {
	r.Equal("written to the next mount", r.Written(source, next, other), bytesA)
	lost := r.Written(source, removed, cg)
	if lost > bytesC {
		r.Equal("bytes to the removed mount, which were sent more than once", lost, bytesC)
	}
	r.Equal("written in all", r.Sum("iotrace.write.bytes", "iotrace.source", source, "iotrace.level", "wire"), lost+bytesA)
}

// flushing begins to flush what is dirty, as a process outside all test cgroups, and waits
// until requests are under way. The function returned waits for the end.
func flushing(g *guest.Guest) func() {
	g.Helper()
	flush := exec.Command("sync")
	if err := flush.Start(); err != nil {
		g.Fatal(err)
	}
	g.Eventually("writeback begun", func() bool { return g.Meminfo("Writeback") > 0 })
	return func() {
		g.Helper()
		if err := flush.Wait(); err != nil {
			g.Error(err)
		}
	}
}
