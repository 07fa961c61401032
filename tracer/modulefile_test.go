package tracer

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// anyELF is a file that has type information in the section that modules have it in.
const anyELF = "../bpf/nfs_x86_bpfel.o"

// TestReadModuleTypes reads types from files packed in every way that modules are.
func TestReadModuleTypes(t *testing.T) {
	image, err := os.ReadFile(anyELF)
	if err != nil {
		t.Fatal(err)
	}
	e, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	want, err := e.Section(".BTF").Data()
	if err != nil {
		t.Fatal(err)
	}
	for ext, pack := range map[string]func(io.Writer) (io.WriteCloser, error){
		"":     func(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil },
		".xz":  func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
		".gz":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		".zst": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	} {
		t.Run("ko"+ext, func(t *testing.T) {
			var packed bytes.Buffer
			w, err := pack(&packed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(image); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "nfs.ko"+ext)
			if err := os.WriteFile(file, packed.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := readModuleTypes(file)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, error %v, want the section's %d bytes", len(got), err, len(want))
			}
			// Cut short it is an error, not a module without types.
			if err := os.WriteFile(file, packed.Bytes()[:packed.Len()/2], 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := readModuleTypes(file); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("half a file: error %v", err)
			}
		})
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func TestReadModuleTypesWithout(t *testing.T) {
	dir := t.TempDir()
	stripped := filepath.Join(dir, "plain.ko")
	// A test binary is an ELF file without such a section.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stripped, self, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readModuleTypes(stripped); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a module without types: error %v", err)
	}
	for _, name := range []string{"text.ko", "text.ko.xz", "text.ko.gz", "text.ko.zst", "text.ko.lzma"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("no module at all\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readModuleTypes(file); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestModuleFile(t *testing.T) {
	tree := t.TempDir()
	if _, err := moduleFile(tree, "nfs"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoModule) {
		t.Errorf("without a list: error %v", err)
	}
	list := "kernel/fs/nfs/nfsv4.ko.xz: kernel/fs/nfs/nfs.ko.xz\n" +
		"kernel/fs/nfs/nfs.ko.xz: kernel/net/sunrpc/sunrpc.ko.xz\n" +
		"/lib/modules/6.1/extra/fuse.ko:\n" +
		"kernel/drivers/net/dm-thin-pool.ko.zst: kernel/a.ko\n" +
		"broken line without a colon\n"
	if err := os.WriteFile(filepath.Join(tree, "modules.dep"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"nfs":          filepath.Join(tree, "kernel/fs/nfs/nfs.ko.xz"),
		"nfsv4":        filepath.Join(tree, "kernel/fs/nfs/nfsv4.ko.xz"),
		"fuse":         "/lib/modules/6.1/extra/fuse.ko",
		"dm_thin_pool": filepath.Join(tree, "kernel/drivers/net/dm-thin-pool.ko.zst"),
	} {
		if got, err := moduleFile(tree, name); got != want || err != nil {
			t.Errorf("moduleFile(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"nf", "sunrpc", "a"} {
		if got, err := moduleFile(tree, name); !errors.Is(err, errNoModule) {
			t.Errorf("moduleFile(%q) = %q, %v", name, got, err)
		}
	}
}

// TestMayLoad: a source waits for a module that may be loaded later, and not for one
// that never can be.
func TestMayLoad(t *testing.T) {
	proc, bare, tree := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(proc, "modules"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "modules.dep"), []byte("kernel/fs/nfs/nfs.ko:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, proc, tree, module string
		never                    bool
	}{
		{"in the list", proc, tree, "nfs", false},
		{"not in the list", proc, tree, "fuse", true},
		{"no list, as in a container", proc, bare, "nfs", false},
		{"a kernel without modules", bare, tree, "nfs", true},
	} {
		if err := mayLoad(tc.proc, tc.tree, tc.module); errors.Is(err, errNoModule) != tc.never {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestTypesSum(t *testing.T) {
	dir := t.TempDir()
	write := func(module, types string) {
		if err := os.WriteFile(filepath.Join(dir, module), []byte(types), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sums := typesSum{}
	if !sums.holds(dir) {
		t.Error("programs that were made without types need none")
	}
	sums.add("nfs", []byte("one"))
	sums.add("sunrpc", []byte("two"))
	if sums.holds(dir) {
		t.Error("nothing is there")
	}
	write("nfs", "one")
	write("sunrpc", "two")
	if !sums.holds(dir) {
		t.Error("both are there as they were")
	}
	write("sunrpc", "three")
	if sums.holds(dir) {
		t.Error("one of them is another one now")
	}
}
