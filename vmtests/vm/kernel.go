package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Kernel is a distribution kernel, unpacked and ready to boot.
type Kernel struct {
	Arch    string // Debian's word: amd64, arm64
	Release string // what uname -r says: 6.12.117+deb13-cloud-amd64
	Image   string // file for QEMU's -kernel
	Modules string // ext4 image to be mounted at /lib/modules

	// Early are the modules that the kernel needs to reach its root, in the order in
	// which they must be loaded. Cloud kernels have all of that built in.
	Early []string
}

// Flavours of Debian's kernels.
const (
	Cloud   = ""        // for virtual machines: fewer drivers, quick to boot
	Generic = "generic" // with every module that Debian has
	RT      = "rt"      // PREEMPT_RT
	Pages16 = "16k"     // arm64 with pages of 16 KiB
)

// suffix is how Debian ends the names of a flavour's packages.
func suffix(flavour, arch string) string {
	switch flavour {
	case Cloud:
		return "cloud-" + arch
	case RT:
		return "rt-" + arch
	case Pages16:
		return arch + "-16k"
	}
	return arch
}

// ErrNoKernel means that no suite of the mirror holds a complete kernel of the series.
var ErrNoKernel = errors.New("no complete kernel of this series on the mirror")

// releasePattern splits linux-image-6.12.117+deb13-cloud-amd64. The group is the release.
func releasePattern(series, flavour, arch string) *regexp.Regexp {
	return regexp.MustCompile(`^linux-image-(` + regexp.QuoteMeta(series) + `\.\d[^_-]*(?:-[0-9.deb]+)?-` + regexp.QuoteMeta(suffix(flavour, arch)) + `)$`)
}

// candidates returns the releases of a series, newest first. rest are all
// package names of the archive that begin with "linux-". A kernel of the split
// kind counts only with all of its packages: archives drop modules first.
func candidates(series, flavour, arch string, names []string, newer func(a, b string) bool) []string {
	have := make(map[string]bool, len(names))
	for _, n := range names {
		have[n] = true
	}
	re := releasePattern(series, flavour, arch)
	var out []string
	for _, n := range names {
		m := re.FindStringSubmatch(n)
		if m == nil {
			continue
		}
		rel := m[1]
		// Backports of a later release to an older suite: same kernel, other
		// compiler. They are welcome only when nothing else has the series.
		if strings.Contains(rel, "0.deb11") {
			continue
		}
		if split := have["linux-binary-"+rel] || have["linux-modules-"+rel]; split &&
			!(have["linux-base-"+rel] && have["linux-binary-"+rel] && have["linux-modules-"+rel]) {
			continue
		}
		out = append(out, rel)
	}
	for i := 1; i < len(out); i++ { // insertion sort: newer may run a program, lists are short
		for j := i; j > 0 && newer(out[j], out[j-1]); j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func debianNewer(a, b string) bool {
	return exec.Command("dpkg", "--compare-versions", a, "gt", b).Run() == nil
}

// series619 is the first series whose packages are split into base (the list of built-in modules, the configuration), binary and
// modules; before it one package holds all.
var series619 = regexp.MustCompile(`^(6\.(19|[2-9]\d)|[7-9]\.|[1-9]\d+\.)`)

// FetchKernel finds the newest kernel of a series ("6.12") and flavour, downloads it and
// builds the image of its modules. Everything is kept in the cache directory.
func FetchKernel(ctx context.Context, cache string, m Mirror, arch, series, flavour string, refresh bool) (Kernel, error) {
	a, err := openArchive(ctx, cache, arch, m, refresh)
	if err != nil {
		return Kernel{}, err
	}
	names, err := a.packages(ctx, "linux-")
	if err != nil {
		return Kernel{}, err
	}
	var last error = ErrNoKernel
	for _, rel := range candidates(series, flavour, arch, names, debianNewer) {
		k, err := a.unpack(ctx, cache, rel)
		if err == nil {
			return k, nil
		}
		// The index can name a package that the archive has dropped since:
		// the next older one may be complete.
		last = fmt.Errorf("kernel %s: %w", rel, err)
		if ctx.Err() != nil {
			break
		}
	}
	return Kernel{}, fmt.Errorf("kernel series %q for %s: %w", series, arch, last)
}

func (a *archive) unpack(ctx context.Context, cache, rel string) (Kernel, error) {
	dir := filepath.Join(cache, "kernels", rel)
	k := Kernel{Arch: a.arch, Release: rel, Image: filepath.Join(dir, "vmlinuz"), Modules: filepath.Join(dir, "modules.ext4")}
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil {
		k.Early, err = filepath.Glob(filepath.Join(dir, earlyDir, "*.ko"))
		return k, err
	}
	packages := []string{"linux-image-" + rel}
	if series619.MatchString(rel) {
		packages = []string{"linux-base-" + rel, "linux-binary-" + rel, "linux-modules-" + rel}
	}
	tree := filepath.Join(dir, "tree")
	if err := os.RemoveAll(dir); err != nil {
		return Kernel{}, err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return Kernel{}, err
	}
	defer os.RemoveAll(tree)
	for _, p := range packages {
		deb, err := a.download(ctx, p)
		if err != nil {
			return Kernel{}, err
		}
		if err := output(ctx, "dpkg-deb", "-x", deb, tree); err != nil {
			return Kernel{}, err
		}
		os.Remove(deb)
	}
	vmlinuz, modules := "", ""
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir() && (strings.HasPrefix(d.Name(), "vmlinuz") || strings.HasPrefix(d.Name(), "vmlinux-")):
			vmlinuz = p
		case d.IsDir() && d.Name() == rel && filepath.Base(filepath.Dir(p)) == "modules":
			modules = p
		}
		return nil
	})
	if err != nil {
		return Kernel{}, err
	}
	if vmlinuz == "" || modules == "" {
		return Kernel{}, fmt.Errorf("packages %v hold no kernel image or no modules", packages)
	}
	if err := os.Rename(vmlinuz, k.Image); err != nil {
		return Kernel{}, err
	}
	if err := prepareModules(ctx, modules, rel); err != nil {
		return Kernel{}, err
	}
	if k.Early, err = keepEarly(modules, filepath.Join(dir, earlyDir)); err != nil {
		return Kernel{}, err
	}
	if err := ext4Image(ctx, filepath.Dir(modules), k.Modules, 32); err != nil {
		return Kernel{}, err
	}
	return k, os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644)
}

// prepareModules makes a module tree usable by modprobe: packages leave the
// dependency index to their install script. Modules are unpacked here, once,
// rather than in every emulated guest.
func prepareModules(ctx context.Context, modules, rel string) error {
	for ext, tool := range map[string][]string{".xz": {"xz", "-d", "-q"}, ".zst": {"zstd", "-d", "-q", "--rm"}} {
		var files []string
		err := filepath.WalkDir(modules, func(p string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(p, ".ko"+ext) {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return err
		}
		for len(files) > 0 {
			n := min(len(files), 500)
			if err := output(ctx, tool[0], append(tool[1:len(tool):len(tool)], files[:n]...)...); err != nil {
				return err
			}
			files = files[n:]
		}
	}
	// Newer packages keep vmlinuz in the modules' directory; build and source are dangling
	// links.
	for _, name := range []string{"build", "source", "vmlinuz"} {
		os.Remove(filepath.Join(modules, name))
	}
	// depmod -b wants BASE/lib/modules; BASE/usr/lib/modules is what newer packages ship.
	base := filepath.Dir(filepath.Dir(filepath.Dir(modules)))
	return output(ctx, "depmod", "-b", base, rel)
}

// earlyDir has the modules that the initramfs needs, numbered in the order of loading.
const earlyDir = "early"

// earlyModules is what a guest needs to reach its root: disks on NVMe with ext4. crc32c
// has implementations of several names, and ext4 finds one by its algorithm.
var earlyModules = []string{"nvme", "crc32c-intel", "crc32c_generic", "crc32c-cryptoapi", "libcrc32c", "ext4"}

// keepEarly copies the modules of earlyModules that the kernel does not have built in,
// and what they depend on, to dir.
func keepEarly(modules, dir string) ([]string, error) {
	deps := map[string][]string{} // by name: the module's own file, then what must be loaded before, the first last
	index, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(index)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		deps[strings.TrimSuffix(filepath.Base(file), ".ko")] = append([]string{file}, strings.Fields(rest)...)
	}
	var order []string
	for _, m := range earlyModules {
		for _, file := range slices.Backward(deps[m]) {
			if !slices.Contains(order, file) {
				order = append(order, file)
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var kept []string
	for i, file := range order {
		b, err := os.ReadFile(filepath.Join(modules, file))
		if err != nil {
			return nil, err
		}
		to := filepath.Join(dir, fmt.Sprintf("%02d-%s", i, filepath.Base(file)))
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return nil, err
		}
		kept = append(kept, to)
	}
	return kept, nil
}

// ext4Image packs a directory tree. Times and identifiers are fixed, so that
// the same tree gives the same image. extraMiB is free room in it.
func ext4Image(ctx context.Context, tree, image string, extraMiB int64) error {
	var size, files int64
	err := filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files++
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			size += (fi.Size() + 4095) &^ 4095
		}
		return nil
	})
	if err != nil {
		return err
	}
	mib := (size+files*512)>>20 + extraMiB + 16
	mib += mib / 16
	const uuid = "6d0a6f5e-0000-4000-8000-000000000001"
	os.Remove(image)
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-d", tree, "-U", uuid, "-m", "0",
		"-O", "^has_journal,^metadata_csum,^resize_inode", "-N", fmt.Sprint(files+8192),
		"-E", "hash_seed="+uuid+",lazy_itable_init=0,root_owner=0:0", image, fmt.Sprintf("%dM", mib))
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1000000000", "SOURCE_DATE_EPOCH=1000000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs %q: %w\n%s", image, err, tail(out, 2000))
	}
	return nil
}

// output runs a program and keeps what it says for the error only.
func output(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, tail(out, 2000))
	}
	return nil
}
