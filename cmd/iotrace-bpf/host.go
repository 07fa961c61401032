package main

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// selfCost measures the CPU time and memory of this process.
type selfCost struct{ cpu uint64 }

// read returns the CPU time since the last call, and the resident memory now.
func (c *selfCost) read() output.Self {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return output.Self{}
	}
	cpu := uint64(ru.Utime.Nano() + ru.Stime.Nano())
	self := output.Self{CPUNanos: cpu - c.cpu}
	c.cpu = cpu
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident uint64
		if _, err := fmt.Sscan(string(statm), &size, &resident); err == nil {
			self.RSSBytes = resident * uint64(os.Getpagesize())
		}
	}
	return self
}

func selfPID() uint32 { return uint32(os.Getpid()) }

// firstPIDs tells whether the BPF programs see the same pid of this process as the
// process itself: only in the first pid namespace.
func firstPIDs() bool {
	return namespace("/proc/self/ns/pid") == firstNamespaces["pid"]
}

// ownRows removes the rows of this process. It adds the bytes of leaf devices among
// them to self.
func (s *session) ownRows(rows []tracer.Row, self *output.Self) []tracer.Row {
	return slices.DeleteFunc(rows, func(r tracer.Row) bool {
		if r.PID != selfPID() {
			return false
		}
		if r.App || r.Source == tracer.Block && s.joiner.devices.Device(r.Dev).Stacked {
			return true
		}
		switch r.Op {
		case tracer.Read:
			self.ReadBytes += r.Bytes
		case tracer.Write:
			self.WriteBytes += r.Bytes
		}
		return true
	})
}
