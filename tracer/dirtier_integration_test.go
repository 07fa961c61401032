//go:build integration

package tracer

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// writerFile names the file that this test binary writes into when it is a writer.
const writerFile = "IOTRACE_TEST_WRITER"

// A writer is a process of a cgroup of its own. It reads what to write, one offset,
// length and size of each call a line, and answers each line. Size 0 is a store into each
// page of a mapping.
func init() {
	name := os.Getenv(writerFile)
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	data := make([]byte, 1<<20)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var offset, n, step int64
		if _, err := fmt.Sscan(in.Text(), &offset, &n, &step); err != nil {
			panic(err)
		}
		if step == 0 {
			m, err := unix.Mmap(int(f.Fd()), offset, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				panic(err)
			}
			for i := 0; i < len(m); i += os.Getpagesize() {
				m[i]++
			}
			n = 0 // it stays mapped
		}
		for n > 0 {
			part := min(n, step)
			if _, err := f.WriteAt(data[:part], offset); err != nil {
				panic(err)
			}
			offset, n = offset+part, n-part
		}
		fmt.Println("written")
	}
	os.Exit(0)
}

type writer struct {
	t      *testing.T
	cgroup uint64
	pid    int
	in     io.WriteCloser
	out    *bufio.Reader
}

// newWriter starts a writer in a cgroup below mount.
func newWriter(t *testing.T, mount, cgroup, file string) *writer {
	t.Helper()
	dir := filepath.Join(mount, fmt.Sprintf("iotrace-test-%d-%s", os.Getpid(), cgroup))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$1"`, dir, self)
	cmd.Env = append(os.Environ(), writerFile+"="+file)
	cmd.Stderr = os.Stderr
	w := &writer{t: t, cgroup: st.Ino}
	if w.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.pid = cmd.Process.Pid
	t.Cleanup(func() {
		w.in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// write writes n bytes from offset on, step bytes in each call: with small ones the kernel
// takes small folios.
func (w *writer) write(offset, n, step int64) {
	w.t.Helper()
	fmt.Fprintln(w.in, offset, n, step)
	if line, err := w.out.ReadString('\n'); line != "written\n" {
		w.t.Fatalf("the writer answered %q: %v", line, err)
	}
}

// scratch is a file system on a loop device over a file on tmpfs.
type scratch struct {
	t   testing.TB
	dir string
	dev Dev
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func newScratch(t testing.TB, size int64) *scratch {
	t.Helper()
	return newScratchOf(t, "ext4", size)
}

func newScratchOf(t testing.TB, fsType string, size int64) *scratch {
	t.Helper()
	base := t.TempDir()
	mem, dir := filepath.Join(base, "mem"), filepath.Join(base, "mnt")
	for _, d := range []string{mem, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size+size/8), "none", mem)
	t.Cleanup(func() { run(t, "umount", "-l", mem) }) // others may still have the loop device open for a moment
	image := filepath.Join(mem, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	device := run(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	mkfs := []string{"-q", device}
	if fsType == "ext4" { // the kernel must not write on its own later
		mkfs = append(mkfs, "-E", "lazy_itable_init=0,lazy_journal_init=0")
	}
	run(t, "mkfs."+fsType, mkfs...)
	run(t, "mount", "-t", fsType, "-o", "noatime", device, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	return &scratch{t: t, dir: dir, dev: makeDev(unix.Major(st.Rdev), unix.Minor(st.Rdev))}
}

func (s *scratch) sync() {
	s.t.Helper()
	run(s.t, "sync", "-f", s.dir)
}

// flush writes a part of a file back; the rest stays dirty.
func (s *scratch) flush(file string, offset, n int64) {
	s.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	how := unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(f.Fd()), offset, n, how); err != nil {
		s.t.Fatal(err)
	}
}

func makeDev(major, minor uint32) Dev { return Dev(major<<20 | minor) }

// dirtied is what was written to a device, metadata left out, since the tracer began.
type dirtied struct {
	cgroup map[uint64]uint64
	pid    map[uint32]uint64
	basis  map[Basis]uint64
	lost   Lost
}

func dirtiedOn(t *testing.T, tr *Tracer, dev Dev) dirtied {
	t.Helper()
	iv, err := tr.Read()
	if err != nil {
		t.Fatal(err)
	}
	d := dirtied{cgroup: map[uint64]uint64{}, pid: map[uint32]uint64{}, basis: map[Basis]uint64{}, lost: iv.Lost}
	for _, r := range iv.Rows {
		if r.Source == Block && r.Dev == dev && r.Op == Write && !r.Meta {
			d.cgroup[r.Cgroup] += r.Bytes
			d.pid[r.PID] += r.Bytes
			d.basis[r.Basis] += r.Bytes
		}
	}
	t.Logf("by cgroup %v, by process %v, lost %+v", d.cgroup, d.pid, d.lost)
	return d
}

// within checks a number of bytes to a hundredth of what is wanted, metadata that is
// not marked as such included.
func within(t *testing.T, what string, got uint64, want int64) {
	t.Helper()
	if diff := int64(got) - want; diff > want/100+64<<10 || diff < -want/100 {
		t.Errorf("%s: %d bytes, want %d", what, got, want)
	}
}

const mib = 1 << 20

// TestOverwriteLarge: one writer made the pages of a large file, another one
// overwrites all of them.
func TestOverwriteLarge(t *testing.T) {
	const size = 1100 * mib
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, size+size/8)
	file := filepath.Join(s.dir, "f")
	a, b := newWriter(t, mount, "a", file), newWriter(t, mount, "b", file)
	a.write(0, size, 4<<10)
	s.sync()
	tr := open(t, Options{Hierarchy: hierarchy})
	b.write(0, size, 4<<10)
	s.sync()
	d := dirtiedOn(t, tr, s.dev)
	within(t, "b", d.cgroup[b.cgroup], size)
	within(t, "a", d.cgroup[a.cgroup], 0)
}

// TestProcessLarge: with rows by process, all of a large file has one.
func TestProcessLarge(t *testing.T) {
	const size = 1100 * mib
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, size+size/8)
	a := newWriter(t, mount, "a", filepath.Join(s.dir, "f"))
	tr := open(t, Options{Hierarchy: hierarchy, ByProcess: true})
	a.write(0, size, 4<<10)
	s.sync()
	d := dirtiedOn(t, tr, s.dev)
	within(t, "the writer", d.pid[uint32(a.pid)], size)
}

// TestSharedFile: pages belong to the one that made them dirty, in a file that was clean,
// in one that was dirty before the tracer began, and in one that two write in turn.
func TestSharedFile(t *testing.T) {
	const page = 4 << 10
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, 128*mib)
	file := filepath.Join(s.dir, "f")
	a, b := newWriter(t, mount, "a", file), newWriter(t, mount, "b", file)
	for _, byProcess := range []bool{false, true} {
		t.Run(fmt.Sprintf("process=%t", byProcess), func(t *testing.T) {
			for _, tc := range []struct {
				name  string
				dirty func() // before the tracer begins
				write func()
				a, b  int64
			}{
				{"second in a clean file", nil, func() {
					a.write(0, 3*mib, page)
					b.write(3*mib, 2*mib, page)
				}, 3 * mib, 2 * mib},
				{"first comes back", nil, func() {
					b.write(0, 3*mib, page)
					a.write(3*mib, 2*mib, page)
					b.write(5*mib, 1*mib, page)
				}, 2 * mib, 4 * mib},
				{"in turn", nil, func() {
					for i := range int64(701) {
						a.write(2*i*page, page, page)
						b.write((2*i+1)*page, page, page)
					}
				}, 701 * page, 701 * page},
				{"clean in between", nil, func() {
					a.write(0, 3*mib, page)
					b.write(3*mib, 2*mib, page)
					s.sync()
					b.write(0, 3*mib, page)
					a.write(3*mib, 2*mib, page)
				}, 5 * mib, 5 * mib},
				{"written back in part", nil, func() {
					a.write(0, 3*mib, page)
					b.write(3*mib, 2*mib, page)
					s.flush(file, 0, 3*mib)
					b.write(0, mib, page)
					a.write(mib, mib, page)
				}, 4 * mib, 3 * mib},
				{"dirty before", func() { a.write(0, 2*mib, page) }, func() {
					b.write(2*mib, 3*mib, page)
					a.write(5*mib, mib, page)
				}, 3 * mib, 3 * mib},
			} {
				t.Run(tc.name, func(t *testing.T) {
					// Every page is cached, charged to a and clean; folios are small.
					s.sync()
					if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
						t.Fatal(err)
					}
					a.write(0, 8*mib, page)
					s.sync()
					if tc.dirty != nil {
						tc.dirty()
					}
					tr := open(t, Options{Hierarchy: hierarchy, ByProcess: byProcess})
					tc.write()
					s.sync()
					d := dirtiedOn(t, tr, s.dev)
					within(t, "a", d.cgroup[a.cgroup], tc.a)
					within(t, "b", d.cgroup[b.cgroup], tc.b)
					if byProcess && tc.dirty == nil { // the process before nobody saw
						within(t, "a's process", d.pid[uint32(a.pid)], tc.a)
						within(t, "b's process", d.pid[uint32(b.pid)], tc.b)
					}
					if d.lost != (Lost{}) {
						t.Errorf("lost %+v", d.lost)
					}
				})
			}
		})
	}
}

// TestSharedFolios: two write into the same large folios, which the kernel marks as
// dirty once.
func TestSharedFolios(t *testing.T) {
	const page = 4 << 10
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, 128*mib)
	file := filepath.Join(s.dir, "f")
	a, b := newWriter(t, mount, "a", file), newWriter(t, mount, "b", file)
	inTurn := func(from, n, step int64) {
		for i := range n {
			w := a
			if i%2 == 1 {
				w = b
			}
			w.write(from+i*step, step, step)
		}
	}
	for _, byProcess := range []bool{false, true} {
		for _, tc := range []struct {
			name   string
			before func()
			write  func()
			a, b   int64
		}{
			{"pages in turn", nil, func() { inTurn(0, 1402, page) }, 701 * page, 701 * page},
			{"b after a", nil, func() {
				a.write(0, 4*mib, mib)
				b.write(mib, mib, page)
				a.write(mib, mib/4, page)
			}, 3*mib + mib/4, mib - mib/4},
			{"appending", nil, func() { inTurn(8*mib, 404, 3*page) }, 202 * 3 * page, 202 * 3 * page},
			{"dirty before", func() { a.write(0, 4*mib, mib) }, func() { inTurn(0, 512, page) }, 3 * mib, mib},
		} {
			t.Run(fmt.Sprintf("process=%t/%s", byProcess, tc.name), func(t *testing.T) {
				a.write(0, page, page)
				s.sync()
				if err := os.Truncate(file, 0); err != nil {
					t.Fatal(err)
				}
				a.write(0, 8*mib, mib) // large folios, charged to a
				s.sync()
				if tc.before != nil {
					tc.before()
				}
				tr := open(t, Options{Hierarchy: hierarchy, ByProcess: byProcess})
				tc.write()
				s.sync()
				d := dirtiedOn(t, tr, s.dev)
				within(t, "a", d.cgroup[a.cgroup], tc.a)
				within(t, "b", d.cgroup[b.cgroup], tc.b)
				if byProcess {
					within(t, "b's process", d.pid[uint32(b.pid)], tc.b)
				}
				if d.lost != (Lost{}) {
					t.Errorf("lost %+v", d.lost)
				}
			})
		}
	}
}

// TestSharedMapping: two store in turn through mappings of a file in large folios. Where the
// kernel does not tell the page of a store, a folio goes to the first one, and its basis says
// that this is no fact: it is not dirtier.
func TestSharedMapping(t *testing.T) {
	const part, parts = 16 << 10, 256
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, 128*mib)
	file := filepath.Join(s.dir, "f")
	a, b := newWriter(t, mount, "a", file), newWriter(t, mount, "b", file)
	for _, hidden := range []bool{true, false} {
		t.Run(fmt.Sprintf("hidden=%t", hidden), func(t *testing.T) {
			a.write(0, parts*part, mib) // large folios, charged to a
			s.sync()
			tr := open(t, Options{Hierarchy: hierarchy, noFaults: hidden})
			for i := range int64(parts) {
				w := b
				if i%2 == 1 {
					w = a
				}
				w.write(i*part, part, 0)
			}
			s.sync()
			d := dirtiedOn(t, tr, s.dev)
			within(t, "a and b", d.cgroup[a.cgroup]+d.cgroup[b.cgroup], parts*part)
			seen := slices.ContainsFunc(tr.attached(), func(a attached) bool { return a.hook.target == "do_page_mkwrite" })
			if seen {
				within(t, "b", d.cgroup[b.cgroup], parts*part/2)
				within(t, "by dirtier", d.basis[ByDirtier], parts*part)
			} else {
				within(t, "by dirtier", d.basis[ByDirtier], 0)
				within(t, "by page", d.basis[ByPage], parts*part)
			}
			// Nothing of it is left for writes of one who does not map the file.
			c := newWriter(t, mount, "c", filepath.Join(s.dir, "other"))
			c.write(0, mib, mib)
			s.sync()
			d = dirtiedOn(t, tr, s.dev)
			within(t, "c by dirtier", d.basis[ByDirtier], mib)
		})
	}
}

// TestNotesFull: what found no room is counted, and its pages have no owner; none has a
// wrong one.
func TestNotesFull(t *testing.T) {
	const page = 4 << 10
	hierarchy, mount := anyHierarchy(t)
	s := newScratch(t, 256*mib)

	t.Run("pages", func(t *testing.T) {
		file := filepath.Join(s.dir, "f")
		a, b := newWriter(t, mount, "a", file), newWriter(t, mount, "b", file)
		a.write(0, 64*mib, page)
		s.sync()
		tr := open(t, Options{Hierarchy: hierarchy, pageNoteBits: 2}) // 32 blocks: 4 MiB
		for i := range int64(64) {
			a.write(i*mib, mib/2, page)
			b.write(i*mib+mib/2, mib/2, page)
		}
		s.sync()
		d := dirtiedOn(t, tr, s.dev)
		if d.lost.Notes == 0 {
			t.Error("no note was counted as lost")
		}
		if d.cgroup[a.cgroup] > 32*mib+mib || d.cgroup[b.cgroup] > 32*mib+mib {
			t.Error("a or b has more than it wrote")
		}
		if d.cgroup[0] < 48*mib {
			t.Errorf("%d bytes are unattributed", d.cgroup[0])
		}
		// Once the file is clean there is room again.
		b.write(0, mib, page)
		a.write(mib, mib, page)
		s.sync()
		d = dirtiedOn(t, tr, s.dev)
		within(t, "a", d.cgroup[a.cgroup], mib)
		within(t, "b", d.cgroup[b.cgroup], mib)
		if d.lost.Notes != 0 {
			t.Errorf("%d notes lost", d.lost.Notes)
		}
	})

	t.Run("files", func(t *testing.T) {
		const files, size = 100, 64 << 10
		var as, bs []*writer
		for i := range files {
			file := filepath.Join(s.dir, fmt.Sprint(i))
			as = append(as, newWriter(t, mount, fmt.Sprint("a", i), file))
			bs = append(bs, newWriter(t, mount, fmt.Sprint("b", i), file))
			as[i].write(0, size, page)
		}
		s.sync()
		tr := open(t, Options{Hierarchy: hierarchy, inodeNoteBits: 2}) // 32 files, those of others included
		for _, b := range bs {
			b.write(0, size, page)
		}
		s.sync()
		d := dirtiedOn(t, tr, s.dev)
		var named int
		for i, b := range bs {
			if n := d.cgroup[b.cgroup]; n >= size {
				named++
			}
			if n := d.cgroup[as[i].cgroup]; n != 0 {
				t.Errorf("file %d: %d bytes under the one that only cached it", i, n)
			}
		}
		if named > 32 {
			t.Errorf("%d of %d files have their owner", named, files)
		}
		if want := uint64(files-named) * size; d.cgroup[0] < want {
			t.Errorf("%d bytes are unattributed, want %d", d.cgroup[0], want)
		}
		if int(d.lost.Notes) < files-named {
			t.Errorf("%d notes lost, want %d", d.lost.Notes, files-named)
		}
	})
}
