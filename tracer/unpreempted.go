package tracer

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// unpreempted has the calling goroutine keep its CPU until the returned function is called.
// While a thread is in a system call on a map, the kernel skips kprobe programs on that
// CPU (bpf_prog_active). A kernel that preempts such a call lets others do I/O there
// meanwhile, unseen. The lowest real-time priority is above everything that is not real
// time. It needs CAP_SYS_NICE: without it, the skipped runs are counted as ever.
func (c *core) unpreempted() (restore func()) {
	if !c.preempting {
		return func() {}
	}
	runtime.LockOSThread()
	restore = runtime.UnlockOSThread
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil || before.Policy != unix.SCHED_NORMAL && before.Policy != unix.SCHED_BATCH {
		return restore // somebody has chosen another one
	}
	before.Runtime = 0 // the kernel's own choice, which would be fixed otherwise
	now := unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if err := unix.SchedSetAttr(0, &now, 0); err != nil {
		return restore
	}
	return func() {
		if err := unix.SchedSetAttr(0, before, 0); err == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with its goroutine
	}
}
