package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptCapabilities are what a run may still need once everything is attached.
func (o *options) keptCapabilities(sourceAbsent bool) []uint {
	kept := []uint{
		unix.CAP_BPF, unix.CAP_PERFMON, // sources whose module comes later; before 5.19 reading maps as well
		unix.CAP_DAC_READ_SEARCH, // cgroups by their id, devices, other users' /proc
		unix.CAP_DAC_OVERRIDE,    // sockets of other users' engines; further files of a recording beside their files
		unix.CAP_SYS_PTRACE,      // mounts and descriptors of other users' processes
	}
	if o.vxlan {
		kept = append(kept, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SYSLOG) // namespaces, their devices, kernel symbols
	} else if sourceAbsent {
		kept = append(kept, unix.CAP_SYS_ADMIN) // types of a module that is not there yet, by their BTF id
	}
	return kept
}

// dropPrivileges gives up every capability of this process that is not in kept,
// and the gaining of others by exec. Capabilities belong to threads: all of
// them are told at once, which a program linked with C cannot do.
func dropPrivileges(kept []uint) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("asking for capabilities: %w", err)
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
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("giving up new privileges: %w", errno)
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&caps[0])), 0)
	if errno != 0 {
		return fmt.Errorf("giving up capabilities: %w", errno)
	}
	return nil
}
