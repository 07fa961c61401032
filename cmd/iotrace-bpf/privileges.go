package main

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptCapabilities returns the capabilities that a run may still need after
// everything is attached: with watch, those of the watch of overlay devices.
func keptCapabilities(watch, sourceAbsent bool) []uint {
	kept := []uint{
		unix.CAP_BPF, unix.CAP_PERFMON, // sources whose module is loaded later; before 5.19 also reading maps
		unix.CAP_DAC_READ_SEARCH, // cgroups by their id, devices, other users' /proc
		unix.CAP_DAC_OVERRIDE,    // sockets of other users' engines; the next files of a recording in other users' directories
		unix.CAP_SYS_PTRACE,      // mounts and descriptors of other users' processes
		unix.CAP_SYSLOG,          // addresses of kernel symbols: of stacked drivers and file systems that come later
	}
	if watch {
		kept = append(kept,
			unix.CAP_SYS_ADMIN,     // entering network namespaces
			unix.CAP_NET_ADMIN,     // a receive buffer large enough for all notifications
			unix.CAP_NET_BROADCAST, // notifications of all namespaces (NETLINK_LISTEN_ALL_NSID)
		)
	} else if sourceAbsent {
		kept = append(kept, unix.CAP_SYS_ADMIN) // type information, by BTF id, of a module that is loaded later
	}
	return kept
}

// errLinkedWithC is the error of dropPrivileges in a program that links C code.
var errLinkedWithC = errors.New("this program was built with cgo and cannot change all of its threads: build it with CGO_ENABLED=0, as make build does")

// dropPrivileges gives up every capability that is not in kept, and the way to
// new ones by exec. Capabilities belong to threads, so it changes all threads at
// once. The error is errLinkedWithC where that is not possible.
func dropPrivileges(kept []uint) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	permitted := func(c uint) bool { return caps[c/32].Permitted&(1<<(c%32)) != 0 }
	if slices.Contains(kept, unix.CAP_BPF) && !permitted(unix.CAP_BPF) {
		// An engine that does not know CAP_BPF (Docker 20.10) gave CAP_SYS_ADMIN in its
		// place: maps and programs that are made later need it.
		kept = append(slices.Clone(kept), unix.CAP_SYS_ADMIN)
	}
	var mask [2]uint32
	for _, c := range kept {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range caps {
		caps[i].Permitted &= mask[i]
		caps[i].Effective &= mask[i]
		caps[i].Inheritable = 0
	}
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == unix.ENOTSUP { // of package syscall, not of the kernel
		return errLinkedWithC
	}
	if errno != 0 {
		return fmt.Errorf("setting no_new_privs: %w", errno)
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&caps[0])), 0)
	if errno != 0 {
		return fmt.Errorf("giving up capabilities: %w", errno)
	}
	return nil
}
