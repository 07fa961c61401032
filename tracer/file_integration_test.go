//go:build integration

package tracer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// byFile opens a tracer that keeps rows by file.
func byFile(t *testing.T, opt Options) *Tracer {
	t.Helper()
	opt.ByFile = true
	tr := open(t, opt)
	if err := tr.CountFiles(true); err != nil {
		t.Fatal(err)
	}
	return tr
}

// fileText names a file of a row.
func fileText(tr *Tracer, id FileID) string {
	switch id {
	case FileUnknown:
		return "unknown"
	case FileSwap:
		return "swap"
	case FileMetadata:
		return "metadata"
	case FileJournal:
		return "journal"
	case FileDevice:
		return "device"
	case FileOther:
		return "other"
	}
	f, ok := tr.File(id)
	switch {
	case !ok:
		return "forgotten"
	case f.Device != 0:
		return "blocks of a device"
	case f.Path == "":
		return fmt.Sprintf("inode %d", f.Inode)
	case f.Removed:
		return f.Path + " (removed)"
	case f.Links > 1:
		return fmt.Sprintf("%s (%d links)", f.Path, f.Links)
	}
	return f.Path
}

// written is what was written to a device, by file, and all of it.
func written(t *testing.T, tr *Tracer, dev Dev) (files map[string]uint64, all uint64, lost Lost) {
	t.Helper()
	iv, err := tr.Read()
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]uint64{}
	for _, r := range iv.Rows {
		if r.Source == Block && r.Dev == dev && r.Op == Write {
			files[fileText(tr, r.File)] += r.Bytes
			all += r.Bytes
		}
	}
	t.Logf("%v, lost %+v", files, iv.Lost)
	return files, all, iv.Lost
}

// sectorsWritten is what /proc/diskstats has of a device, in bytes.
func sectorsWritten(t *testing.T, dev Dev) (bytes uint64) {
	t.Helper()
	stat, err := os.ReadFile("/sys/dev/block/" + dev.String() + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat))
	if _, err := fmt.Sscan(fields[6], &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes << 9
}

// TestFiles: each byte is of the file that it was written to, which has the name that it
// has when it is written back, and no byte is missing.
func TestFiles(t *testing.T) {
	hierarchy, _ := anyHierarchy(t)
	s := newScratch(t, 256*mib)
	at := func(name string) string { return filepath.Join(s.dir, name) }
	put := func(name string, n int) *os.File {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(at(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.Write(bytes.Repeat([]byte("x"), n)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Names of all depths are known to the kernel: they were made just now.
	deep := strings.Repeat("d/", 70)
	tr := byFile(t, Options{Hierarchy: hierarchy, Latency: true})
	before := sectorsWritten(t, s.dev)
	want := map[string]int{}
	put("plain", 3*mib)
	want["/plain"] = 3 * mib
	for i := range 40 { // the kernel joins requests of small files
		name := fmt.Sprintf("small/%02d", i)
		n := 4096 * (1 + i%3)
		put(name, n)
		want["/"+name] = n
	}
	put("before", mib)
	must(os.Rename(at("before"), at("small/after")))
	want["/small/after"] = mib
	put("one", 2*mib)
	must(os.Link(at("one"), at("two")))
	removed := put("gone", mib)
	must(os.Remove(at("gone")))
	must(removed.Sync())
	want["/gone (removed)"] = mib
	put("odd\x1b[31m\n name", 64<<10)
	want["/odd\x1b[31m\n name"] = 64 << 10
	put(deep+"deep", 128<<10)
	s.sync()
	direct, err := unix.Open(at("direct"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o600)
	must(err)
	t.Cleanup(func() { unix.Close(direct) })
	page, err := unix.Mmap(-1, 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(err)
	t.Cleanup(func() { _ = unix.Munmap(page) })
	_, err = unix.Pwrite(direct, page, 0)
	must(err)
	want["/direct"] = mib
	// Pages of another file as memory of direct I/O: the bytes are of the file that is written.
	plain, err := os.OpenFile(at("plain"), os.O_RDWR, 0)
	must(err)
	t.Cleanup(func() { plain.Close() })
	mapped, err := unix.Mmap(int(plain.Fd()), 0, mib, unix.PROT_READ, unix.MAP_SHARED)
	must(err)
	t.Cleanup(func() { _ = unix.Munmap(mapped) })
	_, err = unix.Pwrite(direct, mapped, mib)
	must(err)
	want["/direct"] += mib
	s.sync()

	files, all, lost := written(t, tr, s.dev)
	if lost != (Lost{}) {
		t.Errorf("lost %+v", lost)
	}
	for name, n := range want {
		if files[name] != uint64(n) {
			t.Errorf("%q: %d bytes, want %d", name, files[name], n)
		}
		delete(files, name)
	}
	links := files["/one (2 links)"] + files["/two (2 links)"]
	if links != 2*mib {
		t.Errorf("hard links: %d bytes, want %d", links, 2*mib)
	}
	for name, n := range files {
		switch {
		case strings.HasSuffix(name, " (2 links)"):
		case strings.HasSuffix(name, "/d/d/deep") && n == 128<<10:
		case name == "journal", name == "metadata", name == "blocks of a device":
		default:
			t.Errorf("%q: %d bytes that nobody wrote", name, n)
		}
	}
	if files["journal"] == 0 {
		t.Error("the journal has no bytes")
	}
	if now := sectorsWritten(t, s.dev) - before; all != now {
		t.Errorf("all files have %d bytes, the device %d", all, now)
	}
}

// TestFilesMany: where there is no room for one more file its bytes are in the row of the
// others, and none is missing.
func TestFilesMany(t *testing.T) {
	hierarchy, _ := anyHierarchy(t)
	s := newScratch(t, 128*mib)
	tr := byFile(t, Options{Hierarchy: hierarchy, maxFiles: 16})
	before := sectorsWritten(t, s.dev)
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(s.dir, fmt.Sprint(i)), make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.sync()
	files, all, lost := written(t, tr, s.dev)
	if files["other"] < 150*8192 || lost.Files == 0 || len(files) < 10 {
		t.Errorf("of 200 files with 8192 bytes each %d bytes are in the row of the others, %d lost", files["other"], lost.Files)
	}
	for name, n := range files {
		if strings.HasPrefix(name, "/") && n != 8192 {
			t.Errorf("%q: %d bytes, want 8192", name, n)
		}
	}
	if now := sectorsWritten(t, s.dev) - before; all != now {
		t.Errorf("all files have %d bytes, the device %d", all, now)
	}
}

// TestFilesReused: a removed file and its successor with the same number have a row each.
func TestFilesReused(t *testing.T) {
	hierarchy, _ := anyHierarchy(t)
	s := newScratch(t, 128*mib)
	tr := byFile(t, Options{Hierarchy: hierarchy})
	var inodes []uint64
	name := filepath.Join(s.dir, "f")
	for i := range 5 {
		f, err := os.Create(fmt.Sprint(name, i))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(make([]byte, (i+1)<<16)); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, st.Ino)
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if i < 4 {
			if err := os.Remove(fmt.Sprint(name, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if inodes[0] != inodes[4] {
		t.Fatalf("the file system did not use a number again: %v", inodes)
	}
	iv, err := tr.Read()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, r := range iv.Rows {
		if f, ok := tr.File(r.File); ok && r.Dev == s.dev && r.Op == Write && f.Device == 0 {
			if f.Inode != inodes[0] || f.Dev != s.dev {
				t.Errorf("a file has inode %d of %v, want %d of %v", f.Inode, f.Dev, inodes[0], s.dev)
			}
			got[f.Path] += r.Bytes
		}
	}
	// The names of those that are gone are not known: the kernel has forgotten them with the files.
	if got["/f4"] != 5<<16 || got[""] != (1+2+3+4)<<16 || len(got) != 2 {
		t.Errorf("%v", got)
	}
}
