//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// byFile are the arguments of a tracer that tells files apart.
var byFile = []string{"--by", "file", "--export-files"}

// fileCase has two cgroups write files in a directory, and knows what each file got.
type fileCase struct {
	*guest.Guest
	dir    string
	source string
	device string
	local  bool // of this host: removed files keep their names
	links  bool
	wrote  map[string]int64 // by path
}

func (c *fileCase) at(name string) string { return filepath.Join(c.dir, name) }

// write writes files of all sizes; nothing of the buffered ones has to be written back when it returns.
func (c *fileCase) write() {
	c.Helper()
	must := func(err error) {
		c.Helper()
		if err != nil {
			c.Fatal(err)
		}
	}
	c.wrote = map[string]int64{}
	a, b := c.Cgroup("files-a").Process(), c.Cgroup("files-b").Process()
	put := func(p *guest.Process, name string, n int64) *guest.File {
		c.Helper()
		f := p.Open(c.at(name), guest.Create)
		f.Write(0, n)
		c.wrote[c.at(name)] += n
		return f
	}
	must(os.Mkdir(c.at("dir"), 0o777))
	for i := range int64(24) { // the kernel joins requests of small files
		p := a
		if i%3 == 0 {
			p = b
		}
		put(p, fmt.Sprintf("dir/small-%d", i), 4096*(1+i%4))
	}
	put(b, "large", 3<<20)
	put(b, "shared", 1<<20)
	a.Open(c.at("shared"), os.O_RDWR).Write(1<<20, 1<<20)
	c.wrote[c.at("shared")] += 1 << 20
	put(a, "before", 512<<10)
	must(os.Rename(c.at("before"), c.at("dir/after")))
	if c.links {
		put(a, "one", 768<<10)
		must(os.Link(c.at("one"), c.at("two")))
	}
	if c.local {
		f := put(b, "removed", 640<<10)
		must(os.Remove(c.at("removed")))
		f.Fsync() // what nobody can read any more would never be written
	}
	direct := a.Open(c.at("direct"), guest.Create|guest.Direct)
	direct.WriteBlocks(0, 2<<20, 1<<20)
	c.wrote[c.at("direct")] = 2 << 20
	c.Sync()
}

// check compares the tracer's documents, after its end, with what was written, and all
// files together with what the server or device got.
func (c *fileCase) check(r *guest.Output, all int64) {
	c.Helper()
	where := []string{"iotrace.source", c.source, "iotrace.device.id", c.device}
	sum := func(path string) int64 {
		return r.Sum("iotrace.write.bytes", append(where, "file.path", path)...)
	}
	moved, linked := c.at("dir/after"), c.at("two")
	for path, n := range c.wrote {
		got := sum(path)
		switch path {
		case c.at("before"): // a server gets it before the name changes, or afterwards
			got += sum(moved)
		case c.at("one"):
			got += sum(linked)
		}
		c.Check(path, got, n)
	}
	var files, rest int64
	for _, d := range r.Where(where...) {
		n := d.Int("iotrace.write.bytes")
		kind := d.String("iotrace.file.kind")
		switch {
		case kind == "":
			c.Errorf("%d bytes without a kind of file", n)
		case kind != "file":
			rest += n
		case n > 0 && c.wrote[d.String("file.path")] == 0 && d.String("file.path") != moved && d.String("file.path") != linked:
			c.Errorf("%d bytes of %q (inode %s), which nobody wrote", n, d.String("file.path"), d.String("file.inode"))
		}
		if kind == "file" {
			files += n
		}
		if kind == "unknown" && n > 0 {
			c.Errorf("%d bytes of an unknown file", n)
		}
		if n > 0 && d.String("file.path") == c.at("removed") && d["iotrace.file.deleted"] != true {
			c.Error("a removed file is not said to be one")
		}
	}
	c.Logf("files %d bytes, others %d", files, rest)
	c.Check("all files and others", files+rest, all)
	if !c.local && rest != 0 {
		c.Errorf("%d bytes of no file", rest)
	}
	lost, _ := losses(r)
	r.Equal("lost", lost, 0)
}

// Check compares bytes.
func (c *fileCase) Check(what string, got, want int64) {
	c.Helper()
	if got != want {
		c.Errorf("%s: %d bytes, want %d", what, got, want)
	}
}

func blockFiles(fstype string) func(*guest.Guest) {
	return func(g *guest.Guest) {
		d := g.NVMe()
		c := &fileCase{Guest: g, dir: mountScratch(g, d, fstype), source: "block", device: d.ID(), local: true, links: true}
		g.Sync()
		g.HoldWriteback()
		tr := g.Trace(append(byFile, "--source", "block")...)
		before := d.Stats()
		c.write()
		all := d.Stats().Sub(before).WriteBytes
		r := tr.Stop()
		c.check(r, all)
		kinds := map[string]int64{}
		for _, doc := range r.Where("iotrace.source", "block", "iotrace.device.id", d.ID()) {
			kinds[doc.String("iotrace.file.kind")] += doc.Int("iotrace.write.bytes")
		}
		g.Logf("by kind: %v", kinds)
		if kinds["metadata"]+kinds["journal"] == 0 || fstype == "ext4" && kinds["journal"] == 0 {
			g.Errorf("no metadata or no journal: %v", kinds)
		}
	}
}

func nfsFiles(version string) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		m := g.NFS(version)
		tr := g.Trace(append(byFile, "--source", "nfs")...)
		c := &fileCase{Guest: g, dir: m.Target, source: "nfs", device: m.ID(), links: true}
		before := m.Stats().ServerWrite
		c.write()
		all := m.Stats().ServerWrite - before
		c.check(tr.Stop(), all)
	}
}

func fuseFiles(o guest.FUSEOptions) func(*guest.Guest) {
	return func(g *guest.Guest) {
		m := g.FUSE(o)
		tr := g.Trace(append(byFile, "--source", "fuse")...)
		c := &fileCase{Guest: g, dir: m.Target, source: "fuse", device: m.ID()}
		before := m.Count()
		c.write()
		all := m.Count().Sub(before).WriteBytes
		c.check(tr.Stop(), all)
	}
}

func smbFiles(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	g.Modprobe("cifs")
	tr := g.Trace(append(byFile, "--source", "smb")...)
	s := newSMBCase(g, "strict")
	c := &fileCase{Guest: g, dir: s.m.Target, source: "smb", device: s.m.ID()}
	before := g.SMBStats().BytesWritten
	c.write()
	all := g.SMBStats().BytesWritten - before
	c.check(tr.Stop(), all)
}

// blockFilesSwap: what is swapped out is of no file.
func blockFilesSwap(g *guest.Guest) {
	const size = 24 << 20
	d := g.Virtio()
	g.Exec("mkswap", d.Path())
	g.Exec("swapon", d.Path())
	g.Cleanup(func() { g.Exec("swapoff", d.Path()) })
	m := g.Cgroup("a").Process().Alloc(size)
	tr := g.Trace(append(byFile, "--source", "block")...)
	before := d.Stats()
	m.PageOut()
	all := d.Stats().Sub(before).WriteBytes
	r := tr.Stop()
	if all < size {
		g.Errorf("only %d bytes were swapped out", all)
	}
	r.Equal("swapped out", r.Sum("iotrace.write.bytes", "iotrace.device.id", d.ID(), "iotrace.file.kind", "swap"), all)
}
