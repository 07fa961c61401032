// Package tracer loads the BPF programs, attaches them to what this kernel
// offers, and reads what they counted. It knows kernels, not containers: owners
// are cgroup ids here.
package tracer

import (
	"fmt"
	"time"
)

// Source says where I/O was counted.
type Source uint8

// The sources, as enum iot_source in bpf/iotrace.h.
const (
	Block Source = 1
	NFS   Source = 2
	FUSE  Source = 3
)

func (s Source) String() string {
	for _, d := range sources {
		if d.id == s {
			return d.name
		}
	}
	return fmt.Sprintf("source(%d)", uint8(s))
}

// Op is a kind of operation.
type Op uint8

// The operations, as enum iot_op in bpf/iotrace.h.
const (
	Read     Op = 1
	Write    Op = 2
	Discard  Op = 3
	Flush    Op = 4 // block flush, NFS COMMIT, FUSE FSYNC: no bytes
	Metadata Op = 5 // lookups, opens ...: no bytes
	// Retransmit counts what had to be sent again: its operations are in none of
	// the others, its bytes are those of whole messages.
	Retransmit Op = 6
)

func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Discard:
		return "discard"
	case Flush:
		return "flush"
	case Metadata:
		return "metadata"
	case Retransmit:
		return "retransmit"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Basis says how the owner was found.
type Basis uint8

// The bases in order of trust, as enum iot_basis in bpf/iotrace.h.
const (
	ByNone    Basis = 0
	ByDirtier Basis = 1
	ByPage    Basis = 2
	ByBio     Basis = 3
	ByTask    Basis = 4
)

func (b Basis) String() string {
	switch b {
	case ByNone:
		return "none"
	case ByDirtier:
		return "dirtier"
	case ByPage:
		return "page"
	case ByBio:
		return "bio"
	case ByTask:
		return "task"
	}
	return fmt.Sprintf("basis(%d)", uint8(b))
}

// Owners that are no cgroup.
const (
	CgroupNone   uint64 = 0
	CgroupKernel uint64 = ^uint64(0)
	CgroupOther  uint64 = ^uint64(1) // could not be keyed: a map was full
)

// Dev is a device number as the kernel keeps it: major << 20 | minor.
type Dev uint32

// Major returns the major number.
func (d Dev) Major() uint32 { return uint32(d) >> 20 }

// Minor returns the minor number.
func (d Dev) Minor() uint32 { return uint32(d) & (1<<20 - 1) }

func (d Dev) String() string { return fmt.Sprintf("%d:%d", d.Major(), d.Minor()) }

// Key is what I/O is counted under.
type Key struct {
	Source Source
	Op     Op
	Basis  Basis
	Meta   bool   // marked by the file system as metadata or journal
	App    bool   // application level, not the wire
	Cgroup uint64 // kernfs id in the hierarchy of Options, or one of the Cgroup constants
	Dev    Dev    // disk, or the superblock's device for network file systems
	FSDev  Dev    // block only: the superblock's device, with Options.ByMount
	PID    uint32 // tgid, with Options.ByProcess; 0 when unknown
}

// Bucket counts latencies of at most UpTo ns and above those of the bucket before.
type Bucket struct {
	UpTo  uint64
	Count uint64
}

// Latency is the histogram of the requests that completed in an interval.
type Latency struct {
	Buckets []Bucket // ascending, none empty
	Sum     uint64   // ns
	Max     uint64   // ns
}

// Row is what was counted under one key in one interval.
type Row struct {
	Key
	Bytes   uint64
	Ops     uint64
	Errors  uint64 // of Ops, those that failed; needs Options.Latency
	Latency Latency
}

// Lost counts what could not be kept in an interval. Only Bytes takes anything
// away from the totals.
type Lost struct {
	Records   uint64 // per-I/O records, ring full
	Notices   uint64 // cgroup and module events, ring full
	Latencies uint64 // completions whose issue was not seen, or that the kernel skipped, whether it counted them or not
	Groups    uint64 // I/Os booked on CgroupOther
	Walks     uint64 // requests with more owners than were looked at
	Bytes     uint64 // bytes that could not be booked at all
	Misses    uint64 // program runs that the kernel skipped (recursion), where more than a latency was lost
}

// Interval is what happened between two calls of Tracer.Read.
type Interval struct {
	Start, End time.Time
	Rows       []Row
	Records    []Record // that Options.Records was not called with
	Lost       Lost
	Notes      uint64 // pages made dirty by another cgroup than their own
	BPFNanos   uint64 // time spent in the programs; 0 unless kernel.bpf_stats_enabled
	BPFRuns    uint64
}

// Record is one I/O.
type Record struct {
	Key
	Time    time.Time // when it was issued
	Latency time.Duration
	Offset  uint64 // bytes
	Bytes   uint64
	Error   bool
}
