package file

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// traps makes one of each thing that must not be opened, by its name.
func traps(t *testing.T, dir string) []string {
	t.Helper()
	target := filepath.Join(dir, "target")
	var paths []string
	add := func(name string, err error) {
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, name))
	}
	if err := os.WriteFile(target, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	add("link", os.Symlink(target, filepath.Join(dir, "link")))
	add("dangling", os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling")))
	add("fifo", unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	add("directory", os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(l) })
	add("socket", unix.Bind(l, &unix.SockaddrUnix{Name: filepath.Join(dir, "socket")}))
	return append(paths, "/dev/null")
}

func names(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// TestTraps: links are not followed and nothing waits for the other end of a pipe.
func TestTraps(t *testing.T) {
	dir := t.TempDir()
	paths := traps(t, dir)
	before := names(t, dir)
	for _, path := range paths {
		for _, flag := range []int{os.O_RDONLY, os.O_WRONLY | os.O_CREATE | os.O_EXCL, os.O_WRONLY | os.O_CREATE | os.O_APPEND, os.O_RDWR | os.O_CREATE | os.O_TRUNC} {
			if f, err := Open(path, flag); !errors.Is(err, ErrIrregular) {
				t.Errorf("Open %s with %#x: %v, %v", path, flag, f, err)
			}
		}
		if err := CanReplace(path); !errors.Is(err, ErrIrregular) {
			t.Errorf("CanReplace %s: %v", path, err)
		}
		if err := Replace(path, func(io.Writer) error { return nil }); !errors.Is(err, ErrIrregular) {
			t.Errorf("Replace %s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "target")); string(b) != "precious" {
		t.Errorf("the target of the link is %q, %v", b, err)
	}
	if after := names(t, dir); after != before {
		t.Errorf("%s became %s", before, after)
	}
}

// TestReplacedMeanwhile: what takes the place while the new content is written stays.
func TestReplacedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "report"), filepath.Join(dir, "target")
	err := Replace(path, func(io.Writer) error { return os.Symlink(target, path) })
	if !errors.Is(err, ErrIrregular) {
		t.Errorf("error %v", err)
	}
	if got := names(t, dir); got != "report" {
		t.Errorf("the directory has %s", got)
	}
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "report")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	content := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	broken := errors.New("broken")
	if err := Replace(path, func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if got := content(); got != "old" || names(t, dir) != "report" {
		t.Errorf("after a failure the file is %q, in a directory with %s", got, names(t, dir))
	}
	if err := CanReplace(path); err != nil || content() != "old" || names(t, dir) != "report" {
		t.Errorf("CanReplace: %v, %q, %s", err, content(), names(t, dir))
	}
	if err := Replace(path, func(w io.Writer) error {
		if got := content(); got != "old" {
			t.Errorf("while it is written the file is %q", got)
		}
		_, err := io.WriteString(w, "new")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || content() != "new" || fi.Mode().Perm() != 0o600 || names(t, dir) != "report" {
		t.Errorf("%q, %v, %v, %s", content(), fi.Mode(), err, names(t, dir))
	}
	missing := filepath.Join(dir, "no", "where")
	for _, err := range []error{CanReplace(missing), Replace(missing, func(io.Writer) error { return nil })} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
			t.Errorf("error %v does not name %s", err, missing)
		}
	}
}

func TestOpenMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	f, err := Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if _, err := Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
}

func TestReadSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for mode, exposed := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o604: true} {
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		b, got, err := ReadSmall(path)
		if string(b) != "secret" || got != exposed || err != nil {
			t.Errorf("%v: %q, exposed %v, %v", mode, b, got, err)
		}
	}
	if err := os.Truncate(path, maxSmall+1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadSmall(path); err == nil {
		t.Error("a file of more than 1 MiB was read")
	}
}
