package main

import (
	big "encoding/binary"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const deniedEnv = "IOTRACE_TEST_DENIED"

// TestDeniedCalls: once the filter is there no thread executes a program, also one that
// was there before or is made later, and files can still be opened.
func TestDeniedCalls(t *testing.T) {
	if os.Getenv(deniedEnv) == "" { // the filter is for ever: a process of its own
		cmd := exec.Command(os.Args[0], "-test.run=^TestDeniedCalls$", "-test.v")
		cmd.Env = append(os.Environ(), deniedEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestDeniedCalls") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := exec.Command("/bin/true").Run(); err != nil {
		t.Fatalf("before: %v", err)
	}
	const threads = 8
	var begun, done sync.WaitGroup
	denied := make(chan struct{})
	try := func(when string) {
		defer done.Done()
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		begun.Done()
		<-denied
		if err := exec.Command("/bin/true").Run(); !errors.Is(err, unix.EPERM) {
			t.Errorf("a thread that was made %s the filter executes a program: %v", when, err)
		}
		if err := unix.Unshare(unix.CLONE_NEWUSER); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: unshare: %v", when, err)
		}
		if _, err := unix.PtraceGetEventMsg(os.Getppid()); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: ptrace: %v", when, err)
		}
	}
	for range threads {
		begun.Add(1)
		done.Add(1)
		go try("before")
	}
	begun.Wait()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := denySystemCalls(); err != nil {
		t.Fatal(err)
	}
	close(denied)
	begun.Add(1)
	done.Add(1)
	go try("after")
	done.Wait()
	if err := denySystemCalls(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := os.ReadFile("/proc/self/stat"); err != nil {
		t.Errorf("files: %v", err)
	}
}

// TestDeniedCallsExist on each architecture: the filter refuses a name that it does not know.
func TestDeniedCallsExist(t *testing.T) {
	for _, a := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		for _, name := range deniedCalls {
			if _, ok := a.SyscallNames[name]; !ok {
				t.Errorf("%s: no system call %q", a.Name, name)
			}
		}
	}
}

// TestFilteredArchitectures: numbers of 32-bit programs do not lead around the filter.
func TestFilteredArchitectures(t *testing.T) {
	native, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	filter, err := systemCallFilter()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(filter)
	if err != nil {
		t.Fatal(err)
	}
	const allow, deny = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | int(unix.EPERM)
	for _, c := range []struct {
		arch *arch.Info
		call string
		want int
	}{
		{native, "read", allow},
		{native, "bpf", allow},
		{native, "setns", allow},
		{native, "execve", deny},
		{native, "io_uring_setup", deny},
		{arch.I386, "execve", deny},
		{arch.I386, "read", deny},
		{arch.ARM, "execve", deny},
	} {
		data := make([]byte, 64) // struct seccomp_data; the machine of the test reads big-endian numbers
		big.BigEndian.PutUint32(data, uint32(c.arch.SyscallNames[c.call]))
		big.BigEndian.PutUint32(data[4:], uint32(c.arch.ID))
		if got, err := vm.Run(data); err != nil || got != c.want {
			t.Errorf("%s of %s: %#x, %v; want %#x", c.call, c.arch.Name, got, err, c.want)
		}
	}
}
