// Package file makes the files of iotrace-bpf, so that each is private and no other
// file is hit: the program runs as root, and others may be able to write where a file
// of it goes.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrIrregular means that a path is there and is a symbolic link, a directory, a named
// pipe, a socket or a device.
var ErrIrregular = errors.New("exists and is not a regular file")

// Open opens or makes a file, with the flags of os.OpenFile and, if it makes it, mode
// 0600. It follows no symbolic link at the end of path and waits for no named pipe:
// all but regular files are ErrIrregular.
func Open(path string, flag int) (*os.File, error) {
	if err := regular(path); err != nil {
		return nil, err
	}
	// Between the two calls path may have become something else: O_NONBLOCK keeps the
	// opening of a named pipe from waiting for its other end, see open(2).
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, &fs.PathError{Op: "open", Path: path, Err: ErrIrregular})
	}
	return f, nil
}

// regular returns an error if path is there and is not a regular file.
func regular(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return &fs.PathError{Op: "open", Path: path, Err: ErrIrregular}
	}
	return nil
}

// Replace makes the file at path, or replaces it as a whole, with what write writes. It
// writes a temporary file of mode 0600 in the same directory, and gives it the name
// when it is complete and on the disk. After an error the file at path is as before and
// the temporary one is gone.
func Replace(path string, write func(io.Writer) error) error {
	f, err := temporary(path)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it has another name by then, or is of no use
	if err := errors.Join(write(f), sync(f), f.Close()); err != nil {
		return err
	}
	if err := regular(path); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(path)
}

// CanReplace returns the error that Replace would begin with, so that a run does not
// end with it.
func CanReplace(path string) error {
	f, err := temporary(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func temporary(path string) (*os.File, error) {
	if err := regular(path); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".iotrace-bpf-")
	var p *fs.PathError
	if errors.As(err, &p) {
		p.Path = path // the temporary name tells nobody anything
	}
	return f, err
}

// SyncDir makes the name of a file durable.
func SyncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return sync(d)
}

// sync is fsync(2), on file systems that have it.
func sync(f *os.File) error {
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// maxSmall is the largest file in bytes that ReadSmall reads.
const maxSmall = 1 << 20

// ReadSmall reads a file of at most 1 MiB that the user has named, which may be a link
// or a pipe. exposed tells whether it is a regular file that every user may read.
func ReadSmall(path string) (content []byte, exposed bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err != nil {
		return nil, false, fmt.Errorf("reading %q: %w", path, err)
	}
	if len(b) > maxSmall {
		return nil, false, fmt.Errorf("file %q is bigger than %d bytes", path, maxSmall)
	}
	return b, fi.Mode().IsRegular() && fi.Mode().Perm()&0o004 != 0, nil
}
