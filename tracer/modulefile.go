package tracer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/btf"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// A module's types can be read before it is loaded: from its file. So programs
// for it are made beforehand, and are attached within the time that the module
// itself needs to begin.

// maxModule bounds what is unpacked of a module's file, in bytes.
const maxModule = 64 << 20

// errNoModule says that the kernel has no such module, loaded or not.
var errNoModule = errors.New("no such module")

// moduleTree is where the modules of the running kernel are kept.
func moduleTree() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("asking for the kernel's release: %w", err)
	}
	return filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:])), nil
}

// moduleFile finds a module's file in a tree, by the list that modprobe uses.
// The error is errNoModule where the list is there and does not name it.
func moduleFile(tree, name string) (string, error) {
	f, err := os.Open(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, _, ok := strings.Cut(lines.Text(), ":")
		if !ok || moduleName(file) != name {
			continue
		}
		if !path.IsAbs(file) { // some installers write absolute paths
			file = filepath.Join(tree, file)
		}
		return file, nil
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("reading the list of modules: %w", err)
	}
	return "", fmt.Errorf("%q is not among the modules in %q: %w", name, tree, errNoModule)
}

// moduleName returns the name of a module by that of its file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModuleTypes returns the type information in a module's file, as it will be
// in /sys/kernel/btf. The error is fs.ErrNotExist where the file has none.
func readModuleTypes(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(file) {
	case ".ko":
	case ".xz":
		r, err = xz.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, fmt.Errorf("module %q is packed in an unknown way", file)
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking module %q: %w", file, err)
	}
	image, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("unpacking module %q: %w", file, err)
	}
	if len(image) > maxModule {
		return nil, fmt.Errorf("module %q has more than %d bytes", file, maxModule)
	}
	e, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("module %q: %w", file, err)
	}
	section := e.Section(".BTF")
	if section == nil {
		return nil, fmt.Errorf("module %q has no type information: %w", file, fs.ErrNotExist)
	}
	types, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %q: %w", file, err)
	}
	return types, nil
}

// typesSum recognises the type information that programs were made for.
type typesSum map[string][sha256.Size]byte

// add puts in the type information of a module.
func (s typesSum) add(module string, types []byte) { s[module] = sha256.Sum256(types) }

// holds tells whether the modules that are loaded now are those.
func (s typesSum) holds(dir string) bool {
	for module, sum := range s {
		types, err := os.ReadFile(filepath.Join(dir, module))
		if err != nil || sha256.Sum256(types) != sum {
			return false
		}
	}
	return true
}

// sysfs is where the kernel shows its modules.
const sysfs = "/sys"

// typesDir is where the kernel shows the type information of itself and its modules.
const typesDir = sysfs + "/kernel/btf"

// moduleTypes returns the type information of modules; with future set, of those
// that are not loaded from their files. Modules without any are left out: before
// 5.11 no kernel had it, and what is built in has it in vmlinux.
func (h *host) moduleTypes(future bool, modules ...string) ([]*btf.Spec, typesSum, error) {
	var specs []*btf.Spec
	sums := typesSum{}
	for _, m := range modules {
		raw, err := os.ReadFile(filepath.Join(typesDir, m))
		if errors.Is(err, fs.ErrNotExist) && future && !isDir(filepath.Join(sysfs, "module", m)) {
			raw, err = futureTypes(m)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading the types of module %q: %w", m, err)
		}
		spec, err := btf.LoadSplitSpecFromReader(bytes.NewReader(raw), h.types)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the types of module %q: %w", m, err)
		}
		specs = append(specs, spec)
		sums.add(m, raw)
	}
	return specs, sums, nil
}

func isDir(name string) bool {
	fi, err := os.Stat(name)
	return err == nil && fi.IsDir()
}

// futureTypes returns the type information of a module that is not loaded; the
// error is fs.ErrNotExist where its file has none.
func futureTypes(module string) ([]byte, error) {
	tree, err := moduleTree()
	if err != nil {
		return nil, err
	}
	file, err := moduleFile(tree, module)
	if err != nil {
		return nil, fmt.Errorf("%v", err) // not that the file has none
	}
	return readModuleTypes(file)
}

// mayLoad tells whether a module that is not loaded may yet be: nil, also where
// that cannot be told, as in a container without the host's modules.
func mayLoad(proc, tree, module string) error {
	if _, err := os.Stat(filepath.Join(proc, "modules")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it is not built in and this kernel loads no modules: %w", errNoModule)
	}
	if _, err := moduleFile(tree, module); errors.Is(err, errNoModule) {
		return err
	}
	return nil
}
