package tracer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// loopDir is the sysfs directory of a loop device over backing.
func loopDir(t *testing.T, backing, diskseq string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "loop0")
	attach(t, dir, backing, diskseq)
	return dir
}

func attach(t *testing.T, dir, backing, diskseq string) {
	t.Helper()
	for name, text := range map[string]string{"loop/backing_file": backing, "loop/offset": "512", "diskseq": diskseq} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoopDriverAsksOnce: a question is a request to the file system's server.
func TestLoopDriverAsksOnce(t *testing.T) {
	asked := 0
	l := &loopDriver{patience: time.Minute, ask: func(_, backing string) (loopFile, error) {
		asked++
		return loopFile{fs: dev(0, 34), ino: uint64(asked), offset: uint64(len(backing))}, nil
	}}
	dir := loopDir(t, "/a", "1")
	want := func(ino, offset uint64) {
		t.Helper()
		for range 3 {
			got, err := l.file(dir, "")
			if err != nil || got != (loopFile{fs: dev(0, 34), ino: ino, offset: offset}) {
				t.Fatalf("%+v, %v, want file %d", got, err, ino)
			}
		}
	}
	want(1, 2)
	attach(t, dir, "/other", "1") // another file, or the same renamed
	want(2, 6)
	attach(t, dir, "/other", "2") // detached, and attached to the same path
	want(3, 6)
	l.forget(dir)
	want(4, 6)
	if err := os.RemoveAll(filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.file(dir, ""); !errors.Is(err, errLoopDetached) {
		t.Errorf("nothing attached: %v", err)
	}
}

// TestLoopDriverWaits: a file system that does not answer blocks only the question
// itself, which is not asked a second time.
func TestLoopDriverWaits(t *testing.T) {
	asked, answer := 0, make(chan loopFile)
	l := &loopDriver{patience: time.Millisecond, ask: func(string, string) (loopFile, error) {
		asked++
		return <-answer, nil
	}}
	dir := loopDir(t, "/hung", "1")
	l.hold(true)
	if _, err := l.file(dir, ""); !errors.Is(err, errLoopWaits) || asked != 0 {
		t.Fatalf("held: %v, asked %d times", err, asked)
	}
	l.hold(false)
	for range 3 {
		if _, err := l.file(dir, ""); !errors.Is(err, errLoopWaits) {
			t.Fatalf("no answer yet: %v", err)
		}
		l.forget(dir) // an open question stays
	}
	answer <- loopFile{ino: 7}
	l.patience = time.Minute
	for {
		got, err := l.file(dir, "")
		if errors.Is(err, errLoopWaits) {
			continue // answered, and about to be noted
		}
		if err != nil || got.ino != 7 {
			t.Fatalf("%+v, %v", got, err)
		}
		break
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// TestLoopDriverFails: what failed is asked again.
func TestLoopDriverFails(t *testing.T) {
	failed := false
	l := &loopDriver{patience: time.Minute, ask: func(string, string) (loopFile, error) {
		if !failed {
			failed = true
			return loopFile{}, fs.ErrPermission
		}
		return loopFile{ino: 7}, nil
	}}
	dir := loopDir(t, "/a", "1")
	if _, err := l.file(dir, ""); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
	if got, err := l.file(dir, ""); err != nil || got.ino != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}
