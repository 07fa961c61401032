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
	line, _, _ := strings.Cut(got.stderr, "\n")
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
func waitsInPipe(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	for _, name := range threads {
		if where, _ := os.ReadFile(name); strings.Contains(string(where), "pipe_write") {
			return true
		}
	}
	return false
}

func TestCheck(t *testing.T) {
	got := finish(t, exec.Command(binary(t), "check"))
	if got.code != exitOK || !strings.Contains(got.stdout, "source block") || !strings.Contains(got.stdout, "block_rq_issue") {
		t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
