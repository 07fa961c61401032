// Package output is the model that every output shares: samples of one interval,
// and how they are grouped into rows. Each output is a package beside it. None of
// them knows BPF or containers: their caller has joined the two already.
package output

import "time"

// Source is where I/O was counted, in the one word used everywhere for it.
type Source string

// The sources. Every one is counted at wire level: the request that leaves the
// page cache, not the system call.
const (
	SourceBlock Source = "block"
	SourceNFS   Source = "nfs"
	SourceFUSE  Source = "fuse"
)

// Level tells what a sample's bytes are. Levels are never added to each other.
type Level string

const (
	LevelWire Level = "wire" // requests to the device, server or daemon
	LevelApp  Level = "app"  // what programs read and wrote through the VFS
)

// OwnerKind tells what the owner of a sample is.
type OwnerKind string

const (
	OwnerContainer    OwnerKind = "container"
	OwnerPod          OwnerKind = "pod"     // a pod's own cgroup or its sandbox
	OwnerHelper       OwnerKind = "helper"  // conmon, shims, monitors
	OwnerUnit         OwnerKind = "unit"    // a systemd service, scope or slice
	OwnerSession      OwnerKind = "session" // a login session
	OwnerMachine      OwnerKind = "machine" // a virtual machine
	OwnerCgroup       OwnerKind = "cgroup"  // any other cgroup, the root included
	OwnerKernel       OwnerKind = "kernel"  // file-system metadata and journals charged to nobody
	OwnerUnattributed OwnerKind = "unattributed"
	OwnerOther        OwnerKind = "other" // could not be keyed: a kernel map was full
)

// Container names the container of a sample. Empty fields are not known (yet).
type Container struct {
	ID       string // full id
	Name     string
	Runtime  string // docker, podman, containerd, cri-o ...
	Image    string // without tag
	ImageTag string
	Labels   map[string]string // as the runtime gave them; not all may leave the host
	Parent   string            // id of the container around this one, where nested

	Outer, OuterName string // the outermost container around this one, where nested
}

// Pod is a Kubernetes pod.
type Pod struct {
	Name, Namespace, UID string
}

// Cgroup is a cgroup in the hierarchy that the memory controller lives in.
type Cgroup struct {
	ID   uint64 // kernfs id: inode number of the directory
	Path string // from the root of the hierarchy; "" when not known
}

// Process is a user process; PID is the tgid.
type Process struct {
	PID  uint32
	Name string
}

// Device is a block device, or the anonymous device of a network file system.
type Device struct {
	ID      string // "major:minor"
	Name    string // sda, dm-0; "" when not known
	Stacked bool   // has another local block device below it: left out of totals
}

// Mount is the file system that the I/O went to, as its user knows it.
type Mount struct {
	Source string // host:/export, /dev/sda1, sshfs source
	Point  string // where it is mounted (one of the places)
	FSType string // nfs4, fuse.sshfs, ext4
	Volume string // name of the runtime's volume
	Driver string // driver of the runtime's volume

	NFSServer, NFSExport, NFSVersion string
	FUSESubtype                      string
	FUSEDaemonPID                    uint32
}

// Bucket counts latencies of at most UpTo nanoseconds and above the next lower
// bucket's UpTo.
type Bucket struct {
	UpTo  uint64
	Count uint64
}

// Latency is a histogram of nanoseconds: Buckets ascend by UpTo, none is empty.
type Latency struct {
	Buckets []Bucket
	Sum     uint64 // ns
	Max     uint64 // ns, exact
}

// Amount is what happened in an interval.
type Amount struct {
	Bytes   uint64
	Ops     uint64
	Errors  uint64  // requests that failed; they are in Ops as well
	Latency Latency // empty when latency is off or nothing completed
}

// BasisBytes tells how owners were found, in bytes, in order of trust.
type BasisBytes struct {
	Dirtier, Page, Bio, Task, None uint64
}

// Sample is one owner's I/O on one device in one interval, with everything that
// is known about it. Grouping by any key needs nothing but samples.
type Sample struct {
	Source Source
	Level  Level
	Owner  OwnerKind

	Project     string
	ProjectRule string // which rule named the project
	Service     string
	Unit        string // systemd unit, where the owner is one
	Container   Container
	Pod         Pod
	Cgroup      Cgroup
	Process     Process
	Device      Device
	Mount       Mount

	Read, Write, Discard Amount
	Flush                Amount // block flushes, NFS COMMITs, FUSE fsyncs: no bytes
	Metadata             Amount // lookups, opens, getattrs ...: no bytes
	// MetaBytes is the part of Read.Bytes and Write.Bytes that is file-system
	// metadata and journal (REQ_META), shown apart.
	MetaReadBytes, MetaWriteBytes uint64
	Retransmits                   uint64 // requests to a server that had to be sent again, in none of the amounts

	Basis BasisBytes
}

// Host is the machine the samples are from.
type Host struct {
	Name, ID, Kernel string
}

// SourceStatus tells what a source is attached to, or why it is absent.
type SourceStatus struct {
	Source   Source
	Attached bool
	Hook     string // chosen hooks, "raw_tp/block_rq_issue, ..."
	Reason   string // why absent
	// Limitations are what the chosen hooks cannot see: plain sentences, each with
	// what would lift it.
	Limitations []string
}

// Lost counts what could not be recorded in the interval. Totals are exact
// whenever only Records, Latencies and Notices are not zero.
type Lost struct {
	Records   uint64 // per-I/O records (--events): ring full
	Notices   uint64 // cgroup and vxlan events: ring full
	Latencies uint64 // completions that were not seen, or whose start was not
	Groups    uint64 // I/Os booked on (other): totals map full
	Bytes     uint64 // bytes that could not be booked at all: the only loss in totals
	Walks     uint64 // requests with more owners than the walk is allowed to see
	Misses    uint64 // program runs the kernel skipped (recursion)
	Exports   uint64 // documents an output could not deliver
}

// Self is the tracer's own cost in the interval.
type Self struct {
	BPFNanos uint64 // needs kernel.bpf_stats_enabled=1; 0 otherwise
	CPUNanos uint64 // user and system time of this process
	RSSBytes uint64
	// What this process read and wrote itself, where that is kept out of the
	// samples (--exclude-self); 0 otherwise.
	ReadBytes, WriteBytes uint64
}

// Interval is everything of one reporting interval.
type Interval struct {
	Start, End time.Time
	Host       Host
	Samples    []Sample
	Sources    []SourceStatus
	Lost       Lost
	Self       Self
	Unresolved uint64 // cgroups with I/O whose name is not known (yet): bare ids
	Events     []Event
}

// Event is one thing that happened: an I/O (--events) or a vxlan event.
type Event struct {
	Time    time.Time
	Dataset string // "iotrace.event" or "iotrace.vxlan"
	Action  string
	// IO is set for iotrace.event: one I/O as a sample with a single Amount set.
	IO *IO
	// VXLAN is set for iotrace.vxlan.
	VXLAN *VXLAN
}

// IO is one request.
type IO struct {
	Sample  Sample // identity; the amounts hold this one request
	Op      string // read, write, discard, flush, commit, metadata
	Offset  uint64 // bytes from the start of the device; 0 where it makes no sense
	Latency uint64 // ns; 0 when not measured
	Basis   string
	Error   bool
}

// VXLAN is one event in the life of an overlay device.
type VXLAN struct {
	Device       string
	Ifindex      uint32
	VNI          uint32
	NetNS        uint64 // inode number of the (old) network namespace
	NewNetNS     uint64 // for a move
	Up           bool
	Process      Process
	Owner        *Sample // identity of whoever did it, where known
	Network      string  // Docker network name
	NetworkID    string
	Stack        string
	Services     []string
	Culprit      string // for a refused creation: the device in the way
	CulpritNetNS uint64
	Reason       string
	Err          string
	AgeNanos     uint64
}
