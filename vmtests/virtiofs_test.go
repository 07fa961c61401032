//go:build vm

package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// TestVirtioFS proves the fuse source on virtiofs: the guest's kernel talks to a
// virtiofsd on the host, through a queue instead of /dev/fuse. Every scenario has a
// share and a virtiofsd of its own. The daemon shares a FUSE file system on this
// machine that counts, and the guest's rows must equal its bytes exactly. The
// daemon adds operations of its own, so the guest's operations are compared with
// the requests in the daemon's log.
func TestVirtioFS(t *testing.T) {
	s := suite{
		source: "virtiofs",
		hooks:  "fuse",
		once:   true,
		quick:  oldestAndNewest,
		scenarios: []scenario{
			{name: "write_through", run: virtiofsWrites(false), smoke: true},
			{name: "write_back", run: virtiofsWrites(true), smoke: true},
			{name: "overwrite_write_back", run: virtiofsOverwrite},
			{name: "shared_file_write_back", run: virtiofsShared},
			{name: "direct", run: virtiofsDirect, arch: "amd64", why: "O_DIRECT differs in value between arm64 and the virtiofsd on the host"},
			{name: "mapped", run: virtiofsMapped},
			{name: "mapped_write_back", run: virtiofsMapped},
			{name: "read", run: virtiofsReads},
			{name: "mount", run: virtiofsNamed},
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
	kernels, err := selected()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		names := s.expected(t, k)
		if len(names) == 0 {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			counted := map[string]*guest.FUSEServer{}
			said := map[string]*bytes.Buffer{}
			s := s
			for _, name := range names {
				dir, server := countedShare(t)
				counted[name], said[name] = server, &bytes.Buffer{}
				s.shares = append(s.shares, vm.Share{Tag: name, Dir: dir, Writeback: strings.HasSuffix(name, "write_back"), Log: said[name]})
			}
			o := s.boot(t, k)
			if o == nil {
				return
			}
			for _, name := range names {
				want := counted[name].Count()
				want.ReadOps, want.WriteOps = virtiofsRequests(said[name], 15), virtiofsRequests(said[name], 16)
				r := o.tests[name]
				if r == nil || r.action != "pass" {
					continue // has failed already
				}
				var got virtiofsTotals
				_, text, ok := strings.Cut(r.output.String(), virtiofsMark)
				if !ok || json.NewDecoder(strings.NewReader(text)).Decode(&got) != nil {
					t.Errorf("%s: the guest reported no totals:\n%s", name, r.output.String())
				} else if got.FUSECount != want || want == (guest.FUSECount{}) {
					t.Errorf("%s: the guest's rows say %+v, the shared file system counted %+v", name, got.FUSECount, want)
				}
				for file, n := range got.Files {
					if took := counted[name].Written(file); n != took {
						t.Errorf("%s: the writer of %s has %d bytes in the guest's rows, the shared file system counted %d", name, file, n, took)
					}
				}
			}
		})
	}
}

// virtiofsRequests counts the requests of a kind (FUSE_READ is 15, FUSE_WRITE 16) in the
// log of a virtiofsd: "opcode: WRITE (16)" or, the newer one, "opcode=Write (16)".
func virtiofsRequests(log *bytes.Buffer, opcode int) int64 {
	return int64(len(regexp.MustCompile(fmt.Sprintf(`opcode[:=] ?\w+ \(%d\)`, opcode)).FindAll(log.Bytes(), -1)))
}

const virtiofsMark = "iotrace-virtiofs: "

// virtiofsTotals are a guest's rows, for the host to compare.
type virtiofsTotals struct {
	guest.FUSECount
	Files map[string]int64 // bytes of the cgroup that alone wrote a file, by the file's name
}

// Files that are in every share before the guest boots, cold, by size.
var virtiofsFiles = map[string]int64{"a": 4 << 20, "b": 2 << 20, "odd": sizeC}

// countedShare makes a directory to be shared, of a file system that counts.
func countedShare(t *testing.T) (string, *guest.FUSEServer) {
	t.Helper()
	backing, target := t.TempDir(), t.TempDir()
	for name, size := range virtiofsFiles {
		if err := os.WriteFile(filepath.Join(backing, name), []byte(strings.Repeat("x", int(size))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := guest.ServeFUSE(target, guest.FUSEOptions{Backing: backing, DirectIO: true, MaxWrite: 1 << 20})
	if err != nil {
		t.Fatalf("counting file system: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Errorf("counting file system: %v", err)
		}
	})
	return target, s
}

// virtiofs mounts the scenario's share.
func virtiofs(g *guest.Guest) (dir string) {
	g.Helper()
	g.Modprobe("fuse", "virtiofs")
	tag := filepath.Base(g.Name())
	dir = "/mnt/" + tag
	g.Mount("virtiofs", tag, dir, "")
	return dir
}

// virtiofsTrace is a tracer whose totals are sent to the host.
type virtiofsTrace struct {
	*fuseTrace
	writers map[string]*guest.Cgroup // of files that one cgroup alone writes, by the file's name
}

func traceVirtioFS(g *guest.Guest, dir string) virtiofsTrace {
	g.Helper()
	t := &fuseTrace{g: g, id: g.MountDevice(dir)}
	t.tr = g.Trace("--by", "cgroup,device", "--source", "fuse")
	return virtiofsTrace{fuseTrace: t}
}

func (t virtiofsTrace) stop() guest.FUSECount {
	t.g.Helper()
	t.g.Sync()
	t.end()
	total := guest.FUSECount{ReadOps: t.sum("read.ops"), ReadBytes: t.sum("read.bytes"), WriteOps: t.sum("write.ops"), WriteBytes: t.sum("write.bytes")}
	t.Equal("unattributed bytes", t.Sum("iotrace.write.bytes", "iotrace.device.id", t.id, "iotrace.owner", "unattributed")+
		t.Sum("iotrace.read.bytes", "iotrace.device.id", t.id, "iotrace.owner", "unattributed"), 0)
	t.lossless()
	files := map[string]int64{}
	for name, c := range t.writers {
		files[name] = t.of("write.bytes", c)
	}
	b, err := json.Marshal(virtiofsTotals{total, files})
	if err != nil {
		t.g.Fatal(err)
	}
	t.g.Log(virtiofsMark + string(b))
	return total
}

// virtiofsWrites: two cgroups write; with the write-back cache a flusher thread
// sends the data when a third process calls sync.
func virtiofsWrites(writeback bool) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		dir := virtiofs(g)
		a, b := g.Cgroup("a"), g.Cgroup("b")
		pa, pb := a.Process(), b.Process()
		t := traceVirtioFS(g, dir)
		fa, fb := pa.Open(dir+"/new-a", guest.Create), pb.Open(dir+"/new-b", guest.Create)
		fa.Write(0, sizeA)
		fb.Write(0, sizeB)
		// The number of dirty pages says little: FUSE may use little of the page cache,
		// and from 6.18 on nearly all are under writeback already. A write-back cache
		// gathers writes into large requests.
		total := t.stop()
		if gathered := total.WriteBytes > total.WriteOps*(128<<10); writeback != gathered {
			g.Errorf("%d bytes in %d requests: the share's write-back cache is not %v", total.WriteBytes, total.WriteOps, writeback)
		}
		t.owns("a", a, 0, sizeA)
		t.owns("b", b, 0, sizeB)
	}
}

// virtiofsOverwrite: a read the file, so its pages are a's; b writes to them.
func virtiofsOverwrite(g *guest.Guest) {
	g.HoldWriteback()
	dir := virtiofs(g)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceVirtioFS(g, dir)
	pa.Open(dir+"/a", os.O_RDWR).Read(0, 4<<20)
	pb.Open(dir+"/a", os.O_RDWR).Write(0, 4<<20)
	t.stop()
	t.owns("a", a, 4<<20, 0)
	t.owns("b", b, 0, 4<<20)
}

// virtiofsShared: three cgroups write one file in turn, so that single requests
// hold pages of all.
func virtiofsShared(g *guest.Guest) {
	g.HoldWriteback()
	dir := virtiofs(g)
	a, b, c := g.Cgroup("a"), g.Cgroup("b"), g.Cgroup("c")
	pa, pb, pc := a.Process(), b.Process(), c.Process()
	t := traceVirtioFS(g, dir)
	fa := pa.Open(dir+"/new", guest.Create)
	fb, fc := pb.Open(dir+"/new", os.O_RDWR), pc.Open(dir+"/new", os.O_RDWR)
	const page, turns = 4096, 101
	for i := int64(0); i < turns; i++ {
		fa.WriteBlocks(i*6*page, 3*page, 3*page)
		fb.WriteBlocks((i*6+3)*page, 2*page, 2*page)
		fc.WriteBlocks((i*6+5)*page, page, page)
	}
	if total := t.stop(); total.WriteOps >= turns {
		g.Errorf("%d requests for %d turns: none has several owners, this proves nothing", total.WriteOps, turns)
	}
	t.owns("a", a, 0, turns*3*page)
	t.owns("b", b, 0, turns*2*page)
	t.owns("c", c, 0, turns*page)
}

// virtiofsDirect: O_DIRECT, small and large blocks.
func virtiofsDirect(g *guest.Guest) {
	dir := virtiofs(g)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceVirtioFS(g, dir)
	fa := pa.Open(dir+"/new-a", guest.Create|guest.Direct)
	fb := pb.Open(dir+"/new-b", guest.Create|guest.Direct)
	fa.WriteBlocks(0, 48*128<<10, 128<<10)
	fb.WriteBlocks(0, 2*4<<20, 4<<20)
	fb.ReadBlocks(0, 3*128<<10, 128<<10)
	fa.ReadBlocks(0, 4<<20, 4<<20)
	t.stop()
	t.owns("a", a, 4<<20, 48*128<<10)
	t.owns("b", b, 3*128<<10, 8<<20)
}

// virtiofsMapped: stores to mappings, written by msync or by a flusher thread.
func virtiofsMapped(g *guest.Guest) {
	g.HoldWriteback()
	dir := virtiofs(g)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceVirtioFS(g, dir)
	t.writers = map[string]*guest.Cgroup{"a": a, "b": b}
	ma, mb := pa.Open(dir+"/a", os.O_RDWR).Map(0, 4<<20), pb.Open(dir+"/b", os.O_RDWR).Map(0, 2<<20)
	ma.Touch() // all of it is there before the first page is dirty
	mb.Touch()
	ma.Store()
	mb.Store()
	ma.Msync()
	total := t.stop()
	t.Equal("a read", t.of("read.bytes", a), 4<<20)
	t.Equal("b read", t.of("read.bytes", b), 2<<20)
	// A page that is flushed while a program fills it is written twice. The shared
	// file system counts by file, and no page may be missing.
	for c, size := range map[*guest.Cgroup]int64{a: 4 << 20, b: 2 << 20} {
		if wrote := t.of("write.bytes", c); wrote < size {
			g.Errorf("%s wrote %d bytes, want at least %d", c.Path(), wrote, size)
		}
	}
	t.Equal("both wrote", t.of("write.bytes", a)+t.of("write.bytes", b), total.WriteBytes)
}

// virtiofsReads: cold reads, buffered, by sendfile and by page faults.
func virtiofsReads(g *guest.Guest) {
	dir := virtiofs(g)
	a, b := g.Cgroup("a"), g.Cgroup("b")
	pa, pb := a.Process(), b.Process()
	t := traceVirtioFS(g, dir)
	pa.Open(dir+"/a", os.O_RDONLY).ReadBlocks(0, 4<<20, 128<<10)
	pa.Open(dir+"/odd", os.O_RDONLY).Sendfile(0, sizeC)
	pb.Open(dir+"/b", os.O_RDONLY).MapRead(0, 2<<20).Touch()
	t.stop()
	t.owns("a", a, 4<<20+sizeC, 0)
	t.owns("b", b, 2<<20, 0)
}

// virtiofsNamed: the mount is named; it has a tag and no daemon on this machine.
func virtiofsNamed(g *guest.Guest) {
	dir := virtiofs(g)
	pa := g.Cgroup("a").Process()
	tr := g.Trace("--by", "mount", "--source", "fuse")
	pa.Open(dir+"/new", guest.Create).Write(0, sizeC)
	g.Sync()
	r := tr.Stop()
	at := []string{"iotrace.mount.point", dir}
	r.Equal("bytes on the mount", r.Sum("iotrace.write.bytes", at...), sizeC)
	for _, d := range r.Where(at...) {
		if d.Int("iotrace.fuse.daemon.pid") != 0 || d.String("iotrace.mount.fstype") != "virtiofs" {
			g.Errorf("daemon %d and file system %q, want none and virtiofs: %v", d.Int("iotrace.fuse.daemon.pid"), d.String("iotrace.mount.fstype"), d)
		}
	}
	b, err := json.Marshal(virtiofsTotals{FUSECount: guest.FUSECount{ReadOps: r.Sum("iotrace.read.ops", at...), ReadBytes: r.Sum("iotrace.read.bytes", at...), WriteOps: r.Sum("iotrace.write.ops", at...), WriteBytes: sizeC}})
	if err != nil {
		g.Fatal(err)
	}
	g.Log(virtiofsMark + string(b))
}
