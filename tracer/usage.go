// Package tracer loads the BPF programs, attaches them to what this kernel
// offers, and reads what they counted. It knows kernels, not containers: owners
// are cgroup ids here.
package tracer

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Source says where I/O was counted.
type Source uint8

// The sources, as enum iot_source in bpf/core/types.h.
const (
	Block Source = 1
	NFS   Source = 2
	FUSE  Source = 3
	SMB   Source = 4
	P9    Source = 5
	NFSD  Source = 6
	Ceph  Source = 7
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

// The operations, as enum iot_op in bpf/core/types.h.
const (
	Read     Op = 1
	Write    Op = 2
	Discard  Op = 3
	Flush    Op = 4 // block flush, NFS COMMIT, FUSE FSYNC: no bytes
	Metadata Op = 5 // lookups, opens ...: no bytes
	// Retransmit counts messages that were sent once more. Its operations are not in
	// the others, and its bytes are those of whole messages.
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

// The bases, as enum iot_basis in bpf/core/types.h.
const (
	ByNone    Basis = 0
	ByDirtier Basis = 1
	ByPage    Basis = 2
	ByBio     Basis = 3
	ByTask    Basis = 4
	ByJournal Basis = 5
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
	case ByJournal:
		return "journal"
	}
	return fmt.Sprintf("basis(%d)", uint8(b))
}

// Owners that are no cgroup.
const (
	CgroupNone   uint64 = 0
	CgroupKernel uint64 = ^uint64(0)
	CgroupOther  uint64 = ^uint64(1) // the owner had no room in a map
)

// Dev is a device number as the kernel keeps it: major << 20 | minor.
type Dev uint32

// Major returns the major number.
func (d Dev) Major() uint32 { return uint32(d) >> 20 }

// Minor returns the minor number.
func (d Dev) Minor() uint32 { return uint32(d) & (1<<20 - 1) }

func (d Dev) String() string { return fmt.Sprintf("%d:%d", d.Major(), d.Minor()) }

// Key identifies a row.
type Key struct {
	Source Source
	Op     Op
	Basis  Basis
	Meta   bool   // the file system marked it as metadata or journal
	App    bool   // application level instead of the wire level
	Cgroup uint64 // kernfs id in the hierarchy of Options, one of the Cgroup constants, or a client (IsClient)
	Dev    Dev    // disk, or the superblock's device for network file systems
	FSDev  Dev    // block only: the superblock's device, with Options.ByMount
	File   FileID // with Options.ByFile; it takes the place of FSDev
	Export Export // nfsd only
	PID    uint32 // tgid, with Options.ByProcess; 0 when unknown
}

// Bucket counts latencies of at most UpTo ns that are above those of the bucket
// before.
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
	Errors  uint64 // failed ones among Ops; needs Options.Latency
	Latency Latency
}

// Lost counts what is missing from an interval. Only Bytes and Misses are missing
// from the totals.
type Lost struct {
	Records   uint64 // records of single I/Os: the ring was full
	Notices   uint64 // events of cgroups and modules: the ring was full
	Latencies uint64 // requests without a latency: their issue or their completion was missed
	Groups    uint64 // I/Os booked on CgroupOther
	Walks     uint64 // requests with more owners than were looked at
	Files     uint64 // requests booked on FileOther
	Notes     uint64 // pages and files whose dirtier found no room to be noted: their bytes are unattributed
	Bytes     uint64 // bytes that could not be booked at all
	Misses    uint64 // skipped program runs (recursion) that lost more than a latency
}

// Interval is what happened between two calls of Tracer.Read, or between Begin and
// the first one.
type Interval struct {
	Start, End time.Time
	Rows       []Row
	Records    []Record // those that Options.Records did not get
	Lost       Lost
	Notes      uint64 // pages that another one than the file's first dirtier made dirty
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

// parseDev reads "major:minor".
func parseDev(s string) (Dev, bool) {
	major, minor, ok := strings.Cut(s, ":")
	if !ok {
		return 0, false
	}
	ma, err1 := strconv.ParseUint(major, 10, 12)
	mi, err2 := strconv.ParseUint(minor, 10, 20)
	return Dev(ma<<20 | mi), err1 == nil && err2 == nil
}
