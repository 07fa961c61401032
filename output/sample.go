// Package output is the model that all outputs share: the samples of one interval
// and how they are grouped into rows. Each output is a package below it. None of
// them knows BPF or containers: the caller has joined the two already.
package output

import (
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// Source is where I/O was counted.
type Source string

// The sources. All are counted at wire level: the request that leaves the page
// cache, not the system call.
const (
	SourceBlock Source = "block"
	SourceNFS   Source = "nfs"
	SourceFUSE  Source = "fuse"
	SourceSMB   Source = "smb"
	Source9P    Source = "9p"
	SourceCeph  Source = "ceph"
	SourceNFSD  Source = "nfsd" // what clients of this host's NFS server ask for
)

// Level is where a sample was counted. Levels are never added to each other.
type Level string

const (
	LevelWire Level = "wire" // requests to the device, server or daemon
	LevelApp  Level = "app"  // what programs read and wrote through the VFS
)

// OwnerKind is the kind of a sample's owner.
type OwnerKind string

const (
	OwnerContainer    OwnerKind = "container"
	OwnerPod          OwnerKind = "pod"        // a pod's own cgroup or its sandbox
	OwnerHelper       OwnerKind = "helper"     // conmon, shims, monitors
	OwnerUnit         OwnerKind = "unit"       // a systemd service, scope or slice
	OwnerSession      OwnerKind = "session"    // a login session
	OwnerMachine      OwnerKind = "machine"    // a virtual machine
	OwnerCgroup       OwnerKind = "cgroup"     // any other cgroup, the root included
	OwnerNFSClient    OwnerKind = "nfs-client" // a client of this host's NFS server
	OwnerKernel       OwnerKind = "kernel"     // file-system metadata and journals without a known owner
	OwnerUnattributed OwnerKind = "unattributed"
	OwnerOther        OwnerKind = "other" // had no room of its own: a kernel map was full
)

// Container names the container of a sample. Empty fields are not known (yet).
type Container struct {
	ID       string // full id
	Name     string
	Runtime  string // docker, podman, containerd, cri-o ...
	Image    string // without tag
	ImageTag string
	Digest   string            // of the image (sha256:...), if it was named by that
	Labels   map[string]string // all that the runtime has; only some may leave the host
	Parent   string            // id of the container around this one, if it is nested

	Outer, OuterName string // the outermost container around this one, if it is nested
}

// Pod is a Kubernetes pod.
type Pod struct {
	Name, Namespace, UID string
}

// Cgroup is a cgroup in the hierarchy that the memory controller lives in.
type Cgroup struct {
	ID   uint64 // kernfs id: inode number of the directory
	Path string // from the root of the hierarchy; "" when not known
	Gone bool   // it was removed before its path was known
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
	Alias   string // which its maker gave it: vg0-data of device mapper, pool/image of Ceph's RBD
	Stacked bool   // has another local block device below it: left out of totals
}

// NFSClient is a client of this host's NFS server. In samples of source nfs it is this host,
// as the server sees it, without a name.
type NFSClient struct {
	Address string // IP address
	Name    string // "" when not known; a client says it itself, or DNS does

	// These two are set by a Joiner alone.
	Host   Host   // the client's, which reports the owner
	Silent string // why the client's owner is not known: "does not report"
}

// Mount is the file system that the I/O went to.
type Mount struct {
	Source string // host:/export, /dev/sda1, sshfs source
	Point  string // one of the places where it is mounted
	FSType string // nfs4, fuse.sshfs, ext4
	Volume string // name of the container runtime's volume, if it is one
	Driver string // driver of that volume

	// Without an NFSServer it is this host that exports the directory.
	NFSServer, NFSExport, NFSVersion string
	NFSAddress                       string // IP address of the server, that the client talks to
	NFSPort                          uint16 // 0 is the usual one, 2049
	FUSESubtype                      string
	Transport                        string // of 9p: virtio, tcp, fd ...
	FUSEDaemonPID                    uint32
}

// Bucket counts the latencies of at most UpTo nanoseconds that are above the
// UpTo of the bucket before it.
type Bucket struct {
	UpTo  uint64
	Count uint64
}

// Latency is a histogram in nanoseconds. Buckets ascend by UpTo; none is empty.
type Latency struct {
	Buckets []Bucket
	Sum     uint64 // ns
	Max     uint64 // ns, exact
}

// Amount is how much of one operation was done in an interval.
type Amount struct {
	Bytes   uint64
	Ops     uint64
	Errors  uint64  // failed requests; Ops includes them
	Latency Latency // from issue to completion; empty if latency is off or nothing completed
}

// BasisBytes says how owners were found: bytes by basis, the most reliable first.
type BasisBytes struct {
	Dirtier, Page, Journal, Bio, Task, None uint64
}

// Sample is one owner's I/O on one device in one interval, with everything that
// is known about it: grouping needs nothing else.
type Sample struct {
	// Host is the machine, in an interval of several. It is zero where Interval.Host says it.
	Host   Host
	Source Source
	Level  Level
	Owner  OwnerKind

	Project     string
	ProjectRule string // the rule that named the project
	// NamedBy says whose word the owner's names are: "" for the runtimes and the systemd
	// of the machine, "user 1000", "container ID" for a runtime inside a container. The
	// same names by others mean other things. The name of a project may be of another one.
	NamedBy, ProjectNamedBy string
	Service                 string
	Unit                    string // systemd unit, if the owner is one
	Container               Container
	Pod                     Pod
	Cgroup                  Cgroup
	Process                 Process
	NFSClient               NFSClient
	Device                  Device
	Mount                   Mount
	File                    File

	Read, Write, Discard Amount
	Flush                Amount // block flushes, NFS COMMITs, FUSE fsyncs: no bytes
	Metadata             Amount // lookups, opens, getattrs ...: no bytes
	// The part of Read.Bytes and Write.Bytes that is file-system metadata and
	// journal (REQ_META in the kernel, and what has the basis journal).
	MetaReadBytes, MetaWriteBytes uint64
	Retransmits                   uint64 // requests that were sent to a server again; no amount includes them

	Basis BasisBytes
}

// Host is the machine that the samples are from.
type Host struct {
	Name, ID, Kernel string
}

// SourceStatus says what a source is attached to, or why it is absent.
type SourceStatus struct {
	Source   Source
	Attached bool
	Hook     string // chosen hooks, "raw_tp/block_rq_issue, ..."
	Reason   string // why absent
	// Limitations are what the chosen hooks cannot see: plain sentences, each with
	// what would lift it.
	Limitations []string
}

// Lost counts what could not be recorded in the interval. Bytes and Misses make
// totals too small. Groups and Walks leave totals exact, but put bytes under the
// wrong owner; Notes leave bytes unattributed. The others affect no bytes at all.
type Lost struct {
	Records   uint64 // records of single I/Os (--events): the ring buffer was full
	Notices   uint64 // cgroup and vxlan events: the ring buffer was full
	Latencies uint64 // requests whose start or completion was not seen
	Groups    uint64 // requests counted as (other): the totals map was full
	Bytes     uint64 // bytes that no total includes
	Walks     uint64 // requests with more owners than the BPF program looks at
	Notes     uint64 // pages or files whose dirtier found no room to be noted: (unattributed)
	Misses    uint64 // BPF program runs that the kernel skipped (recursion)
	Exports   uint64 // documents, or whole intervals, that an output did not deliver
}

// Add adds o to l.
func (l *Lost) Add(o *Lost) {
	l.Records += o.Records
	l.Notices += o.Notices
	l.Latencies += o.Latencies
	l.Groups += o.Groups
	l.Bytes += o.Bytes
	l.Walks += o.Walks
	l.Notes += o.Notes
	l.Misses += o.Misses
	l.Exports += o.Exports
}

// Words names every loss for people, the worst first: "1 skipped program run",
// "2 latencies". It returns nothing if nothing was lost.
func (l *Lost) Words() []string {
	var lost []string
	if l.Bytes > 0 {
		lost = append(lost, text.Size(l.Bytes)+" of the totals")
	}
	for _, c := range []struct {
		n         uint64
		one, many string
	}{
		{l.Misses, "skipped program run", "skipped program runs"},
		{l.Groups, "request counted as " + TextOther, "requests counted as " + TextOther},
		{l.Walks, "request with too many owners", "requests with too many owners"},
		{l.Notes, "note about a writer", "notes about writers"},
		{l.Records, "event record", "event records"},
		{l.Notices, "kernel event", "kernel events"},
		{l.Latencies, "latency", "latencies"},
		{l.Exports, "document not delivered", "documents not delivered"},
	} {
		if c.n > 0 {
			lost = append(lost, text.Plural(c.n, c.one, c.many))
		}
	}
	return lost
}

// Self is the overhead of the tracer in the interval.
type Self struct {
	BPFNanos uint64 // needs kernel.bpf_stats_enabled=1; 0 otherwise
	CPUNanos uint64 // user and system time of this process
	RSSBytes uint64 // resident memory of this process
	MapBytes uint64 // kernel memory of its BPF maps
	// What this process read and wrote itself if the samples do not include it
	// (--exclude-self); 0 otherwise.
	ReadBytes, WriteBytes uint64
}

// Add adds the overhead of another tracer.
func (s *Self) Add(o *Self) {
	s.BPFNanos += o.BPFNanos
	s.CPUNanos += o.CPUNanos
	s.RSSBytes += o.RSSBytes
	s.MapBytes += o.MapBytes
	s.ReadBytes += o.ReadBytes
	s.WriteBytes += o.WriteBytes
}

// Interval is one reading of the tracer: everything since the reading before.
type Interval struct {
	Start, End time.Time
	Host       Host // zero where each sample and each event says it
	Samples    []Sample
	Sources    []SourceStatus
	Lost       Lost
	Self       Self
	Unresolved uint64 // cgroups with I/O whose name is not known (yet); they show as ids
	Events     []Event
}

// Event is a single I/O (--events) or a vxlan event.
type Event struct {
	Time    time.Time
	Dataset string // "iotrace.event" or "iotrace.vxlan"
	Action  string
	Host    Host // as Sample.Host
	// IO is set for iotrace.event.
	IO *IO
	// VXLAN is set for iotrace.vxlan.
	VXLAN *VXLAN
}

// IO is one request.
type IO struct {
	Sample  Sample // who and where; exactly one Amount is set, for this request
	Op      string // read, write, discard, flush, commit, metadata
	Offset  uint64 // bytes from the start of the device; 0 if the request has none
	Latency uint64 // ns; 0 if not measured
	Basis   string
	Error   bool
}

// VXLAN is something that happened to an overlay (vxlan) device.
type VXLAN struct {
	Device       string
	Ifindex      uint32
	VNI          uint32
	NetNS        uint64 // inode number of the network namespace; for a move, of the old one
	NewNetNS     uint64 // of the new one after a move, else 0
	Up           bool
	Process      Process
	Owner        *Sample // identity of the process's owner; nil if not known
	Network      string  // Docker network name
	NetworkID    string
	Stack        string
	Services     []string
	Culprit      string // for a failed creation: the device that blocks it
	CulpritNetNS uint64
	Reason       string
	Err          string
	AgeNanos     uint64
}
