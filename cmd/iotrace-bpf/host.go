package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// thisHost describes the machine that we run on.
func thisHost() output.Host {
	var h output.Host
	h.Name, _ = os.Hostname()
	id, _ := os.ReadFile("/etc/machine-id")
	h.ID = strings.TrimSpace(string(id))
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Kernel = string(bytes.TrimRight(uts.Release[:], "\x00"))
	}
	return h
}

// selfCost measures what this process costs.
type selfCost struct{ cpu uint64 }

// read returns the cost since the call before.
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
