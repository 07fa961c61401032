package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Image says what a guest's root file system holds.
type Image struct {
	Name     string   // base, docker
	Suite    string   // Debian suite of the packages
	Packages []string // dependencies are added by apt
	// Files are written over the packages' own: path to content. A content that
	// begins with "link:" is a symbolic link. Packages are unpacked, not
	// installed: what their scripts would have made is made here.
	Files map[string]string
	// FreeMiB is the room left for tests.
	FreeMiB int64
}

// recipe is the version of the way images are built: a new one makes cached images
// stale.
const recipe = "1"

func (i Image) key(arch string) string {
	h := sha256.New()
	fmt.Fprintln(h, recipe, arch, i.Suite, i.FreeMiB, strings.Join(i.Packages, ","))
	for _, p := range sortedKeys(i.Files) {
		fmt.Fprintf(h, "%q %q\n", p, i.Files[p])
	}
	return i.Name + "-" + arch + "-" + hex.EncodeToString(h.Sum(nil))[:12]
}

// BuildImage makes the ext4 image with mmdebstrap, which resolves and verifies
// packages with apt and, in this variant, runs none of their scripts: no chroot,
// no foreign architecture to execute, the same result each time.
func BuildImage(ctx context.Context, cache string, m Mirror, arch string, img Image) (string, error) {
	dir := filepath.Join(cache, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	key := img.key(arch)
	out := filepath.Join(dir, key+".ext4")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	tree, err := os.MkdirTemp(dir, key+".tree-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tree)
	root := filepath.Join(tree, "root")
	args := []string{"--quiet", "--variant=extract", "--format=directory", "--architectures=" + arch,
		"--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\"",
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
		"--include=" + strings.Join(img.Packages, ","), img.Suite, root,
		fmt.Sprintf("deb [signed-by=%s] %s %s main", m.Keyring, m.Archive, img.Suite)}
	if m.Security != "" {
		args = append(args, fmt.Sprintf("deb [signed-by=%s] %s %s-security main", m.Keyring, m.Security, img.Suite))
	}
	if err := output(ctx, "mmdebstrap", args...); err != nil {
		return "", fmt.Errorf("image %q: %w", img.Name, err)
	}
	if err := img.finish(root); err != nil {
		return "", fmt.Errorf("image %q: %w", img.Name, err)
	}
	part := out + ".part"
	if err := ext4Image(ctx, root, part, img.FreeMiB); err != nil {
		return "", fmt.Errorf("image %q: %w", img.Name, err)
	}
	return out, os.Rename(part, out)
}

// finish adds the mount points and files, and removes what no test reads.
func (i Image) finish(root string) error {
	for _, d := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/bash-completion"} {
		if err := os.RemoveAll(filepath.Join(root, d)); err != nil {
			return err
		}
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "srv", "mnt", "lib/modules", "opt/iotrace", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for path, text := range i.Files {
		p := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		var err error
		if to, ok := strings.CutPrefix(text, "link:"); ok {
			err = os.Symlink(to, p)
		} else {
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
