//go:build integration

package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// maxCalls is how many system calls the program may make in an interval, apart from those
// of Go's scheduler: they depend on how busy the machine is.
const maxCalls = 150

// runtimeCalls are those of Go's scheduler, its garbage collector and its clocks.
var runtimeCalls = []string{
	"futex", "nanosleep", "clock_nanosleep", "epoll_pwait", "epoll_wait", "sched_yield", "madvise", "mmap", "munmap",
	"tgkill", "getpid", "gettid", "rt_sigreturn", "rt_sigprocmask", "sigaltstack", "clone", "clone3", "restart_syscall", "exit",
	"set_robust_list", "rseq",
}

// TestSystemCalls: with ten block devices on which nothing changes, an interval takes few
// system calls, although each device has I/O in it. It took 630. The quietest interval
// counts: cgroups and devices that others on this machine make cost calls as well.
func TestSystemCalls(t *testing.T) {
	var disks []*disk
	for range 10 {
		disks = append(disks, newDisk(t, 1))
	}
	r := trace(t, "--source", "block", "--by", "device", "--interval", "1s")
	log := filepath.Join(t.TempDir(), "calls")
	watch := exec.Command("strace", "-f", "-qq", "-s", "400", "-e", "signal=none", "-o", log, "-p", fmt.Sprint(r.cmd.Process.Pid))
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	best := map[string]int{}
	most := 0
	defer func() {
		if t.Failed() {
			t.Logf("the quietest interval had %d: %v", count(best), best)
		}
	}()
	enginetest.Poll(t, 2*time.Minute, "an interval of few system calls", func() bool {
		for _, d := range disks {
			mustRun(t, "dd", "if="+d.dev, "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
		}
		data, err := os.ReadFile(log)
		if err != nil {
			return false // strace has not begun
		}
		best, most = quietest(string(data))
		return best != nil && count(best) <= maxCalls
	})
	if err := watch.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = watch.Wait() // it ends by the signal
	docs := r.stop(t)
	for _, d := range disks {
		if got := sum(docs, d.match); got.readOps == 0 {
			t.Errorf("%s has no row", d.name())
		}
	}
	names := slices.SortedFunc(maps.Keys(best), func(a, b string) int { return best[b] - best[a] })
	var list []string
	for _, name := range names {
		list = append(list, fmt.Sprintf("%s %d", name, best[name]))
	}
	t.Logf("%d system calls in the quietest interval (%s), %d in another one", count(best), strings.Join(list, ", "), most)
	if best["bpf"] == 0 {
		t.Error("no interval was read in it")
	}
}

func count(calls map[string]int) (n int) {
	for _, c := range calls {
		n += c
	}
	return n
}

// quietest returns the system calls, by name, of the interval with the fewest in strace's
// log, and the number of those with the most. An interval ends with its status document.
// The one in which strace began is left out.
func quietest(log string) (best map[string]int, most int) {
	ends := 0
	calls := map[string]int{}
	for line := range strings.Lines(log) {
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, arguments, ok := strings.Cut(strings.TrimSpace(call), "(")
		if !ok || strings.ContainsAny(name, " <+") || slices.Contains(runtimeCalls, name) {
			continue
		}
		calls[name]++
		if name != "write" || !strings.Contains(arguments, `\"dataset\":\"iotrace.status\"`) {
			continue
		}
		if ends++; ends > 1 {
			most = max(most, count(calls))
			if best == nil || count(calls) < count(best) {
				best = calls
			}
		}
		calls = map[string]int{}
	}
	return best, most
}
