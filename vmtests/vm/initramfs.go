package vm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/cavaliergopher/cpio"
)

// WriteInitramfs makes the archive that the kernel starts from: the program at
// /init, which mounts the real root, and what changes with every build. files
// maps the path in the guest, at most one directory deep, to the file here; all are executable. It is not
// compressed: unpacking costs an emulated guest more than reading.
func WriteInitramfs(path string, files map[string]string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buf)
	for _, dir := range []string{"dev", "proc", "sys", "newroot"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
			return fmt.Errorf("initramfs directory %q: %w", dir, err)
		}
	}
	made := map[string]bool{".": true}
	for _, name := range sortedKeys(files) {
		if dir := filepath.Dir(name); !made[dir] {
			made[dir] = true
			if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
				return fmt.Errorf("initramfs directory %q: %w", dir, err)
			}
		}
		if err := addFile(w, name, files[name]); err != nil {
			return fmt.Errorf("initramfs file %q: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return buf.Flush()
}

func addFile(w *cpio.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: fi.Size(), Links: 1}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
