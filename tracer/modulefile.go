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

// The file of a module has its type information, so programs for it can be loaded
// before the module. Once the module is loaded they are attached at once, before it
// does its first I/O.

// maxModule is the largest size of an unpacked module, in bytes.
const maxModule = 64 << 20

// errNoModule says that the kernel has no such module, loaded or not.
var errNoModule = errors.New("no such module")

// moduleTree is where the modules of the running kernel are kept.
func moduleTree() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("asking for the kernel's release: %w", err)
	}
	return filepath.Join(onHost("/lib/modules"), unix.ByteSliceToString(uts.Release[:])), nil
}

// moduleFile finds a module's file in a tree, by the list that modprobe uses
// (modules.dep). The error wraps errNoModule where the list does not name it.
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
		} else {
			file = onHost(file)
		}
		return file, nil
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("reading the list of modules: %w", err)
	}
	return "", fmt.Errorf("module %q is not in %q: %w", name, tree, errNoModule)
}

// moduleName returns the name of a module by that of its file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModuleTypes returns the type information in a module's file, the same that
// /sys/kernel/btf will have. The error wraps fs.ErrNotExist where there is none.
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
		return nil, fmt.Errorf("module %q is compressed in an unknown format", file)
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking module %q: %w", file, err)
	}
	image, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("unpacking module %q: %w", file, err)
	}
	if len(image) > maxModule {
		return nil, fmt.Errorf("module %q is larger than %d bytes", file, maxModule)
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

// typesSum has checksums of the type information that programs were made for, by
// module.
type typesSum map[string][sha256.Size]byte

// add adds the type information of a module.
func (s typesSum) add(module string, types []byte) { s[module] = sha256.Sum256(types) }

// holds tells whether the loaded modules have the same type information.
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

// moduleTypes returns the type information of modules. With future set it reads
// the files of modules that are not loaded. It leaves out modules without type
// information: all of them before 5.11, and those that are built in.
func (c *loader) moduleTypes(future bool, modules ...string) ([]*btf.Spec, typesSum, error) {
	var specs []*btf.Spec
	sums := typesSum{}
	for i, m := range modules {
		raw, err := os.ReadFile(filepath.Join(typesDir, m))
		if errors.Is(err, fs.ErrNotExist) && future && !isDir(filepath.Join(sysfs, "module", m)) {
			raw, err = futureTypes(m)
		}
		if errors.Is(err, fs.ErrNotExist) || i > 0 && errors.Is(err, errNoModule) { // older kernels do without it
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading the types of module %q: %w", m, err)
		}
		spec, err := btf.LoadSplitSpecFromReader(bytes.NewReader(raw), c.types)
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

// futureTypes returns the type information of a module that is not loaded. The
// error wraps fs.ErrNotExist where its file has none, and errNoModule where there is no file.
func futureTypes(module string) ([]byte, error) {
	tree, err := moduleTree()
	if err != nil {
		return nil, err
	}
	file, err := moduleFile(tree, module)
	if errors.Is(err, errNoModule) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%v", err) // without fs.ErrNotExist: that would mean a file without types
	}
	return readModuleTypes(file)
}

// mayLoad returns nil where a module may be loaded later, and where that cannot be
// told, as in a container without the host's modules. Else the error wraps
// errNoModule.
func mayLoad(proc, tree, module string) error {
	if _, err := os.Stat(filepath.Join(proc, "modules")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("module %q is not built in, and this kernel cannot load modules: %w", module, errNoModule)
	}
	if _, err := moduleFile(tree, module); errors.Is(err, errNoModule) {
		return err
	}
	return nil
}
