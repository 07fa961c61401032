package tracer

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// unpreempted has the calling goroutine keep its CPU until the returned function is called.
// While a thread is in a system call on a map, the kernel skips kprobe programs on that
// CPU (bpf_prog_active). A kernel that preempts such a call lets others do I/O there
// meanwhile, unseen. The lowest real-time priority is above everything that is not real
// time. Where that is denied, the skipped runs are counted as ever.
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
	before.Runtime = 0                            // the kernel's own choice, which would be fixed otherwise
	before.Flags |= unix.SCHED_FLAG_RESET_ON_FORK // to take it back is a privilege
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

// allowRealTime lets this process use the lowest real-time priority, also after it gave up
// its privileges.
func (c *core) allowRealTime() {
	var limit unix.Rlimit
	if !c.preempting || unix.Getrlimit(unix.RLIMIT_RTPRIO, &limit) == nil && limit.Cur > 0 {
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: 1, Max: max(1, limit.Max)}); err != nil {
		c.log.Debug("cannot read the kernel's maps without being preempted", "error", err)
	}
}
