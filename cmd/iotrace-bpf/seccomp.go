package main

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// deniedCalls are system calls that a run never makes once everything is attached, and
// that would be of most use to an attacker who has taken it over. A list of what is allowed
// would be shorter for an attacker, but a new version of Go, of a library or of the kernel
// would end a run in the middle of an incident.
var deniedCalls = []string{
	"execve", "execveat", // programs
	"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", // other processes
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", // the kernel
	"mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"swapon", "swapoff", "acct", "quotactl", "mknodat", "unshare",
	"sethostname", "setdomainname", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
	"add_key", "request_key", "keyctl", "userfaultfd", "personality",
	"io_uring_setup", "io_uring_enter", "io_uring_register", // they make system calls that no filter sees
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid",
}

// denySystemCalls makes deniedCalls fail with EPERM in all threads (seccomp(2)). A process
// that has a filter already, from its unit or container, keeps that one alone. It needs
// no_new_privs or CAP_SYS_ADMIN.
func denySystemCalls() error {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return fmt.Errorf("looking for a filter of system calls: %w", err)
	}
	if strings.Contains(string(status), "\nSeccomp:\t2\n") || !seccomp.Supported() {
		return nil
	}
	filter, err := systemCallFilter()
	if err != nil {
		return fmt.Errorf("denying system calls: %w", err)
	}
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("denying system calls: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("denying system calls: %w", errno)
	}
	return nil
}

// systemCallFilter denies deniedCalls, and every call by the numbers of another
// architecture: 32-bit programs have numbers of their own on a 64-bit kernel.
func systemCallFilter() ([]bpf.Instruction, error) {
	native, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls:      []seccomp.SyscallGroup{{Names: deniedCalls, Action: seccomp.ActionErrno}},
	}
	denied, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	const archOffset = 4 // in struct seccomp_data
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: archOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(native.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}, denied...), nil
}
