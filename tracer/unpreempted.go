package tracer

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// unpreempted runs f, which reads maps, without being preempted. While a thread is in a
// system call on a map, the kernel skips kprobe programs on that CPU (bpf_prog_active). A
// kernel that preempts such a call lets others do I/O there meanwhile, unseen. The lowest
// real-time priority is above everything that is not real time. Where that is denied, the
// skipped runs are counted as ever. f must not sleep: on a single CPU the thread would
// come back before those that it has to wait for.
func (c *core) unpreempted(f func() error) error {
	if !c.preempting {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil || before.Policy != unix.SCHED_NORMAL && before.Policy != unix.SCHED_BATCH {
		return f() // somebody has chosen another one
	}
	before.Runtime = 0                            // the kernel's own choice, which would be fixed otherwise
	before.Flags |= unix.SCHED_FLAG_RESET_ON_FORK // to take it back is a privilege
	now := unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if err := unix.SchedSetAttr(0, &now, 0); err != nil {
		return f()
	}
	defer func() {
		if err := unix.SchedSetAttr(0, before, 0); err != nil {
			c.log.Warn("a thread keeps its real-time priority", "error", err)
		}
	}()
	return f()
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
