//go:build integration

package recording

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
	"github.com/iotrace-bpf/iotrace-bpf/output/report"
)

// TestRecorderNoSpace records onto a file system that is full for a while:
// what is there stays readable, what is lost is counted, what comes after is
// recorded.
func TestRecorderNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=640k"); err != nil {
		t.Fatalf("mounting a tmpfs (this test needs root): %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.recording")
	r, err := Create(path, Options{MaxBytes: 140 << 10, Keep: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rng := rand.New(rand.NewPCG(23, 24))
	owners := outputtest.Owners(rng, 300)
	written := map[int]*output.Interval{}
	failed := 0
	for i := range 200 {
		iv := outputtest.BusyInterval(rng, owners, i, 1)
		err := r.Write(iv)
		switch {
		case err == nil:
			written[i] = iv
		case errors.Is(err, syscall.ENOSPC):
			if failed++; failed == 15 {
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
			}
		default:
			t.Fatal(err)
		}
		// A renamed file is closed in the background, and its removal frees no space
		// while it is open: the next interval might find no room.
		outputtest.Until(t, "renamed files to be closed", func() bool { return !stillOpen(t, path+".") })
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if s := r.Stats(); failed != 15 || s.Failed != 15 || s.Intervals != uint64(len(written)) {
		t.Errorf("%d failed, stats %+v", failed, s)
	}
	got, damage := replay(t, path)
	if len(got) == 0 || len(damage) != 0 {
		t.Fatalf("read %d intervals, damage %v", len(got), damage)
	}
	for _, iv := range got {
		i := int(iv.Start.Sub(outputtest.Start).Seconds())
		if written[i] == nil {
			t.Fatalf("interval %d was not recorded", i)
		}
		mustEqual(t, fmt.Sprintf("interval %d", i), iv, written[i])
	}
	if last := got[len(got)-1]; !last.Start.Equal(written[199].Start) {
		t.Errorf("the last interval is from %s", last.Start)
	}
}

// stillOpen tells whether this process has a file open whose path begins
// with prefix, also one that is removed.
func stillOpen(t *testing.T, prefix string) bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		file, err := os.Readlink("/proc/self/fd/" + fd.Name())
		return err == nil && strings.HasPrefix(file, prefix)
	})
}

// TestReplayUnprivileged replays as nobody, without any capability.
func TestReplayUnprivileged(t *testing.T) {
	if n, path := os.Getenv("REPLAY_COUNT"), os.Getenv("REPLAY_PATH"); path != "" {
		if os.Geteuid() == 0 {
			t.Fatal("still root")
		}
		ivs, damage := replay(t, path)
		if fmt.Sprint(len(ivs)) != n || len(damage) != 0 {
			t.Fatalf("read %d intervals of %s, damage %v", len(ivs), n, damage)
		}
		r := report.New(report.Options{})
		for _, iv := range ivs {
			r.Add(iv)
		}
		if _, err := r.WriteTo(io.Discard); err != nil {
			t.Fatal(err)
		}
		fmt.Println("replayed")
		return
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("/tmp", "replay")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(dir, "child")
	if err := os.WriteFile(child, b, 0o755); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(25, 26))
	owners := outputtest.Owners(rng, 50)
	var ivs []*output.Interval
	for i := range 20 {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 1))
	}
	path := filepath.Join(dir, "a.recording")
	record(t, path, Options{}, ivs...)

	run := func() (string, error) {
		cmd := exec.Command(child, "-test.run=^TestReplayUnprivileged$")
		cmd.Dir = dir
		cmd.Env = []string{"REPLAY_PATH=" + path, fmt.Sprintf("REPLAY_COUNT=%d", len(ivs)), "TMPDIR=/tmp"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// It is root's, and nobody else may read it ...
	if out, err := run(); err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("reads what only root may: %v\n%s", err, out)
	}
	// ... until root hands it over.
	if err := os.Chown(path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err != nil || !strings.Contains(out, "replayed") {
		t.Errorf("%v\n%s", err, out)
	}
}
