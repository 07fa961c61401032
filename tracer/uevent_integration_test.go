//go:build integration

package tracer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func sparse(t *testing.T, dir string, mib int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk")
	if err == nil {
		err = f.Truncate(mib << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return f.Name()
}

func freeLoop(t *testing.T) string { t.Helper(); return filepath.Base(tool(t, "losetup", "--find")) }

func control(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// changes polls a real watch and tells whether anything changed.
func changes(w *deviceWatch) bool {
	before := w.number
	w.poll()
	return w.number != before
}

// TestDeviceWatch: real devices are attached, resized, set up, reset and removed. The
// watch notices each step by the time that its system call has returned.
func TestDeviceWatch(t *testing.T) {
	w := openDeviceWatch()
	defer w.Close()
	if w.deaf != nil {
		t.Fatal(w.deaf)
	}
	var loops []string
	w.loopChanged = func(name string) { loops = append(loops, name) }
	w.poll()
	small, big := sparse(t, t.TempDir(), 4), sparse(t, t.TempDir(), 4)
	loop := freeLoop(t)
	zram := "zram" + strings.TrimSpace(string(mustRead(t, "/sys/class/zram-control/hot_add")))
	removed := false
	t.Cleanup(func() {
		_ = exec.Command("losetup", "--detach", "/dev/"+loop).Run()
		if !removed {
			_ = os.WriteFile("/sys/class/zram-control/hot_remove", []byte(strings.TrimPrefix(zram, "zram")), 0)
		}
	})
	w.poll()
	for _, step := range []struct {
		what string
		do   func()
		loop bool
	}{
		{"a loop device is attached", func() { tool(t, "losetup", "/dev/"+loop, small) }, false},
		{"its file grows", func() {
			if err := os.Truncate(small, 8<<20); err != nil {
				t.Fatal(err)
			}
			tool(t, "losetup", "--set-capacity", "/dev/"+loop)
		}, true},
		{"it is detached", func() { tool(t, "losetup", "--detach", "/dev/"+loop) }, true},
		{"it is attached to another file", func() { tool(t, "losetup", "/dev/"+loop, big) }, false},
		{"it is detached again", func() { tool(t, "losetup", "--detach", "/dev/"+loop) }, true},
		{"a zram device is set up, which the kernel does not announce", func() {
			control(t, "/sys/block/"+zram+"/disksize", "8M")
		}, false},
		{"it is reset", func() { control(t, "/sys/block/"+zram+"/reset", "1") }, false},
		{"it is removed", func() {
			control(t, "/sys/class/zram-control/hot_remove", strings.TrimPrefix(zram, "zram"))
			removed = true
		}, false},
	} {
		loops = nil
		step.do()
		if !changes(w) {
			t.Errorf("%s: not noticed", step.what)
		}
		if step.loop && !strings.Contains(strings.Join(loops, " "), loop) {
			t.Errorf("%s: events about %q, want %q", step.what, loops, loop)
		}
	}
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDeviceWatchOverflow: events that did not fit into the socket are a change, and
// every loop device may have another file.
func TestDeviceWatchOverflow(t *testing.T) {
	w := openDeviceWatch()
	defer w.Close()
	if w.deaf != nil {
		t.Fatal(w.deaf)
	}
	var lost bool
	w.loopChanged = func(name string) { lost = lost || name == "" }
	if err := w.raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	w.poll()
	for range 100 {
		control(t, "/sys/block/"+freeLoop(t)+"/uevent", "change")
	}
	if !changes(w) || !lost {
		t.Errorf("an overflow: noticed %v", lost)
	}
}

// TestDeviceWatchDeaf: the kernel sends no events to a network namespace of another user
// namespace. Where they would be heard, a namespace of its own does not matter.
func TestDeviceWatchDeaf(t *testing.T) {
	for flags, deaf := range map[uintptr]bool{unix.CLONE_NEWNET: false, unix.CLONE_NEWNET | unix.CLONE_NEWUSER: true} {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		err := hearsEvents(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if (err != nil) != deaf {
			t.Errorf("flags %#x: %v, want deaf %v", flags, err, deaf)
		}
	}
}

// TestDevicesChange: while the tracer runs, a zram device is set up and a loop device gets
// another file. The rows are right from the interval in which that happens.
func TestDevicesChange(t *testing.T) {
	tr, err := New(Options{Sources: []string{"block"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Begin(); err != nil {
		t.Fatal(err)
	}
	read := func() []Row {
		t.Helper()
		iv, err := tr.Read()
		if err != nil {
			t.Fatal(err)
		}
		return iv.Rows
	}
	for range 3 { // until nothing is left of the start
		read()
		time.Sleep(deviceSettle / 2) // between two polls
	}
	zram := "zram" + strings.TrimSpace(string(mustRead(t, "/sys/class/zram-control/hot_add")))
	t.Cleanup(func() {
		_ = os.WriteFile("/sys/block/"+zram+"/reset", []byte("1"), 0)
		_ = os.WriteFile("/sys/class/zram-control/hot_remove", []byte(strings.TrimPrefix(zram, "zram")), 0)
	})
	read()
	control(t, "/sys/block/"+zram+"/disksize", "16M")
	read() // this one finds it
	tool(t, "dd", "if=/dev/zero", "of=/dev/"+zram, "bs=64k", "count=37", "oflag=direct")
	number, ok := parseDev(strings.TrimSpace(string(mustRead(t, "/sys/block/"+zram+"/dev"))))
	if !ok {
		t.Fatal("no device number")
	}
	var wrote uint64
	for _, r := range read() {
		if r.Dev == number && r.Op == Write {
			wrote += r.Bytes
		}
	}
	if wrote != 37*64<<10 {
		t.Errorf("%d bytes written to %s, want %d", wrote, zram, 37*64<<10)
	}

	memory := t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "-o", "size=16m", "none", memory)
	t.Cleanup(func() { tool(t, "umount", "-l", memory) })
	loop := freeLoop(t)
	number, ok = parseDev(strings.TrimSpace(string(mustRead(t, "/sys/block/"+loop+"/dev"))))
	if !ok {
		t.Fatal("no device number")
	}
	for _, file := range []struct {
		name    string
		stacked bool
	}{{sparse(t, memory, 4), false}, {sparse(t, t.TempDir(), 4), true}, {sparse(t, memory, 4), false}} {
		tool(t, "losetup", "/dev/"+loop, file.name)
		read()
		if d := tr.Devices().Device(number); d.Stacked != file.stacked || d.Name != loop {
			t.Errorf("over %q: %+v, want stacked %v", file.name, d, file.stacked)
		}
		tool(t, "losetup", "--detach", "/dev/"+loop)
	}
}
