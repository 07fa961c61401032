//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// programs counts our programs in the kernel.
func programs(t testing.TB) int {
	t.Helper()
	out := mustRun(t, "bpftool", "prog", "show", "-j")
	var list []struct{ Name string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range list {
		if strings.HasPrefix(p.Name, "iot_") {
			n++
		}
	}
	return n
}

// nothingLeft fails when programs stay behind. The kernel frees them a moment
// after they are closed.
func nothingLeft(t *testing.T, before int) {
	t.Helper()
	enginetest.Poll(t, 10*time.Second, "all programs are gone", func() bool { return programs(t) <= before })
}

type ended struct {
	code           int
	stdout, stderr string
}

// finish runs the program to its end.
func finish(t testing.TB, cmd *exec.Cmd) ended {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if s := stderr.String(); strings.Contains(s, "goroutine ") || strings.Contains(s, "panic") {
		t.Errorf("a stack trace:\n%s", s)
	}
	return ended{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func oneLine(t *testing.T, got ended, code int, want string) {
	t.Helper()
	line, rest, _ := strings.Cut(got.stderr, "\n")
	for strings.HasPrefix(line, "iotrace-bpf: still starting") { // on a busy machine
		line, rest, _ = strings.Cut(rest, "\n")
	}
	if got.code != code || !strings.HasPrefix(line, "iotrace-bpf: ") || !strings.Contains(line, want) {
		t.Errorf("exit code %d and %q, want %d and %q", got.code, got.stderr, code, want)
	}
}

func TestUnprivileged(t *testing.T) {
	before := programs(t)
	dir := filepath.Dir(binary(t))
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t), "1", "1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	got := finish(t, cmd)
	oneLine(t, got, exitUnsupported, "permission")
	if !strings.Contains(got.stderr, "hint: ") || !strings.Contains(got.stderr, "CAP_BPF") {
		t.Errorf("no hint at the missing capability: %q", got.stderr)
	}
	nothingLeft(t, before)
}

// TestNoBTF hides the kernel's type information behind an empty mount.
func TestNoBTF(t *testing.T) {
	before := programs(t)
	got := finish(t, exec.Command("unshare", "--mount", "sh", "-c",
		`mount -t tmpfs none /sys/kernel/btf && exec "$0" 1 1`, binary(t)))
	oneLine(t, got, exitUnsupported, "BTF")
	nothingLeft(t, before)
}

func TestReadyFileUnwritable(t *testing.T) {
	before := programs(t)
	got := finish(t, exec.Command(binary(t), "--ready-file", filepath.Join(t.TempDir(), "no", "where"), "1", "1"))
	oneLine(t, got, exitFailed, "ready file")
	nothingLeft(t, before)
}

// TestIrregularFiles: no link is followed and no named pipe waited for, and nothing stays
// attached.
func TestIrregularFiles(t *testing.T) {
	before := programs(t)
	dir := t.TempDir()
	fifo, link, target := filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "target")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--report", "--record", "--ready-file", "--cpu-profile"} {
		for _, path := range []string{fifo, link} {
			oneLine(t, finish(t, exec.Command(binary(t), flag, path, "0.1", "1")), exitFailed, "not a regular file")
		}
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link was followed: %v", err)
	}
	nothingLeft(t, before)
}

// TestClosedOutput is `iotrace-bpf ... | head -1`.
func TestClosedOutput(t *testing.T) {
	before := programs(t)
	for _, output := range []string{"table", "ndjson"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(binary(t), "--output", output, "--interval", "50ms")
		cmd.Stdout = w
		go func() {
			buf := make([]byte, 1)
			r.Read(buf)
			r.Close()
		}()
		got := finish(t, cmd)
		w.Close()
		oneLine(t, got, exitFailed, "standard output was closed")
	}
	nothingLeft(t, before)
}

// TestFullDisk: a report that cannot be written ends the run, clearly.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := exec.Command(binary(t), "--output", "ndjson", "--interval", "50ms")
	cmd.Stdout = full
	oneLine(t, finish(t, cmd), exitFailed, "no space left on device")
}

// TestReportFullDisk: a report that does not fit on the disk is an error, and the exit
// status says so. The report of the day before is still there.
func TestReportFullDisk(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, "mount", "-t", "tmpfs", "-o", "size=8k", "none", dir)
	t.Cleanup(func() { mustRun(t, "umount", dir) })
	page := filepath.Join(dir, "page.html")
	if err := os.WriteFile(page, []byte("yesterday"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := finish(t, exec.Command(binary(t), "replay", recordingOf(t, 3), "--report", page))
	oneLine(t, got, exitFailed, "no space left on device")
	if b, err := os.ReadFile(page); string(b) != "yesterday" {
		t.Errorf("the report is %q, %v", b, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestKilled: nothing stays attached after SIGKILL.
func TestKilled(t *testing.T) {
	before := programs(t)
	r := trace(t, "--interval", "100ms")
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.done
	nothingLeft(t, before)
}

// TestPipeToJQ is an example of the help.
func TestPipeToJQ(t *testing.T) {
	out := mustRun(t, "sh", "-c", `"$0" --by project --output ndjson 0.2 3 | jq -r .event.dataset | sort | uniq -c`, binary(t))
	if !strings.Contains(out, "3 iotrace.status") {
		t.Errorf("jq counted:\n%s", out)
	}
}

// TestTerms: Ctrl-C and SIGTERM print the last interval and end with 0.
func TestTerms(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		r := trace(t, "--interval", "1h")
		if err := r.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		<-r.done
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", sig, err, r.stderr.String())
		}
		n := 0
		for _, d := range r.seen() {
			if d.Event.Dataset == "iotrace.status" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%v: %d status documents, want the last interval's", sig, n)
		}
	}
}

// TestSecondSignal: the reader of standard output has stopped, and the program waits for
// it in write(2). A second signal ends the program all the same, and its BPF programs.
func TestSecondSignal(t *testing.T) {
	before := programs(t)
	for _, second := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(binary(t), "--output", "ndjson", "--interval", "10ms")
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		enginetest.Poll(t, 60*time.Second, "a write waits for the reader", func() bool { return waitsInPipe(cmd.Process.Pid) })
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = cmd.Wait() }()
		enginetest.Poll(t, 30*time.Second, "the second signal ends it", func() bool {
			select {
			case <-ended:
				return true
			case <-time.After(2 * oneSignal):
				_ = cmd.Process.Signal(second)
				return false
			}
		})
		if got := cmd.ProcessState.ExitCode(); got != 128+int(second) {
			t.Errorf("exit code %d after %v", got, second)
		}
	}
	nothingLeft(t, before)
}

// waitsInPipe tells whether a thread of the process sleeps in a write to a pipe.
func waitsInPipe(pid int) bool { return waitsIn(pid, "pipe_write") }

// waitsIn tells whether a thread of the process sleeps in a function of the kernel.
func waitsIn(pid int, function string) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, name := range threads {
		if stack, _ := os.ReadFile(name); strings.Contains(string(stack), function) {
			return true
		}
	}
	return false
}

// TestFrozenRecording records to a file system that is frozen during the run: every other
// output goes on, and SIGINT is obeyed. A second one ends all but the thread that waits
// for the file system, which no signal wakes.
func TestFrozenRecording(t *testing.T) {
	before := programs(t)
	d := newDisk(t, 64)
	d.format(t, "mkfs.ext4", "-q")
	r := trace(t, "--interval", "100ms", "--record", filepath.Join(d.mount, "recording"), "--report", filepath.Join(t.TempDir(), "report"))
	mustRun(t, "fsfreeze", "--freeze", d.mount)
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			mustRun(t, "fsfreeze", "--unfreeze", d.mount)
		}
	}
	t.Cleanup(thaw)
	enginetest.Poll(t, 60*time.Second, "the recording waits for the file system", func() bool { return waitsIn(r.cmd.Process.Pid, "percpu_") })
	status := func() (n int, lost uint64) {
		for _, doc := range r.seen() {
			if doc.Event.Dataset == "iotrace.status" {
				n++
				lost += doc.Iotrace.Lost["exports"]
			}
		}
		return n, lost
	}
	enginetest.Poll(t, 60*time.Second, "standard output shows what the recording lost", func() bool { _, lost := status(); return lost >= 20 })
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	// While the file system is still frozen, and after the outputs were waited for.
	enginetest.Poll(t, lastTime+30*time.Second, "all programs are gone", func() bool { return programs(t) <= before })
	thaw()
	<-r.done
	err := r.cmd.Wait()
	if s := r.stderr.String(); err == nil || !strings.Contains(s, "--record is stuck: ") || strings.Contains(s, "--report") || !strings.Contains(s, "an output is too slow or stuck") {
		t.Errorf("%v\n%s", err, s)
	}
}

// TestFrozenSecondSignal: the BPF programs are gone while the process still waits for a
// frozen file system.
func TestFrozenSecondSignal(t *testing.T) {
	before := programs(t)
	d := newDisk(t, 64)
	d.format(t, "mkfs.ext4", "-q")
	r := trace(t, "--interval", "100ms", "--record", filepath.Join(d.mount, "recording"))
	mustRun(t, "fsfreeze", "--freeze", d.mount)
	defer func() { <-r.done; _ = r.cmd.Wait() }()
	defer mustRun(t, "fsfreeze", "--unfreeze", d.mount)
	enginetest.Poll(t, 60*time.Second, "the recording waits for the file system", func() bool { return waitsIn(r.cmd.Process.Pid, "percpu_") })
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, before)
}

func TestCheck(t *testing.T) {
	got := finish(t, exec.Command(binary(t), "check"))
	if got.code != exitOK || !strings.Contains(got.stdout, "source block") || !strings.Contains(got.stdout, "block_rq_issue") {
		t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
