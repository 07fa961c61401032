package ndjson

import (
	"reflect"
	"strings"
)

// document has the fields of a document. Objects that may be absent are pointers: so
// none is written empty.
type document struct {
	Timestamp  string   `json:"@timestamp"`
	Message    string   `json:"message,omitempty"`
	ECS        docECS   `json:"ecs"`
	Event      docEvent `json:"event"`
	DataStream struct {
		Type      string `json:"type"`
		Dataset   string `json:"dataset"`
		Namespace string `json:"namespace"`
	} `json:"data_stream"`
	Host         *docHost         `json:"host,omitempty"`
	Container    *docContainer    `json:"container,omitempty"`
	Orchestrator *docOrchestrator `json:"orchestrator,omitempty"`
	Process      *docProcess      `json:"process,omitempty"`
	File         *docFile         `json:"file,omitempty"`
	Client       *docClient       `json:"client,omitempty"`
	Iotrace      docFields        `json:"iotrace"`
}

type docECS struct {
	Version string `json:"version"`
}

type docEvent struct {
	Kind     string   `json:"kind"`
	Category []string `json:"category"`
	Type     []string `json:"type"`
	Module   string   `json:"module"`
	Dataset  string   `json:"dataset"`
	Action   string   `json:"action,omitempty"`
	Outcome  string   `json:"outcome,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Start    string   `json:"start,omitempty"`
	End      string   `json:"end,omitempty"`
	Duration *int64   `json:"duration,omitempty"` // ns
}

type docHost struct {
	Name string `json:"name,omitempty"`
	ID   string `json:"id,omitempty"`
	OS   *docOS `json:"os,omitempty"`
}

type docOS struct {
	Kernel string `json:"kernel"`
}

type docContainer struct {
	ID      string            `json:"id,omitempty"`
	Name    string            `json:"name,omitempty"`
	Runtime string            `json:"runtime,omitempty"`
	Image   *docImage         `json:"image,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

type docImage struct {
	Name string   `json:"name,omitempty"`
	Tag  []string `json:"tag,omitempty"`
	Hash *docHash `json:"hash,omitempty"`
}

type docHash struct {
	All []string `json:"all"`
}

type docOrchestrator struct {
	Type      string       `json:"type"`
	Namespace string       `json:"namespace,omitempty"`
	Resource  *docResource `json:"resource,omitempty"`
}

type docResource struct {
	Type string `json:"type"`
	Name string `json:"name"`
	ID   string `json:"id,omitempty"`
}

// docFile has the fields of the Elastic Common Schema.
type docFile struct {
	Path  string `json:"path,omitempty"`
	Inode string `json:"inode,omitempty"`
}

// docFileOf is what it lacks.
type docFileOf struct {
	Kind    string `json:"kind"`
	Inside  string `json:"container_path,omitempty"`
	Links   int64  `json:"links,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
	Partial bool   `json:"partial,omitempty"`
	LogOf   string `json:"log_of,omitempty"`
}

type docProcess struct {
	PID  int64  `json:"pid,omitempty"`
	Name string `json:"name,omitempty"`
}

// docFields are the fields under iotrace, which the Elastic Common Schema does not
// have.
type docFields struct {
	Source       string               `json:"source,omitempty"`
	Level        string               `json:"level,omitempty"`
	Grain        string               `json:"grain,omitempty"` // the keys of group.name, with commas
	Group        *docGroup            `json:"group,omitempty"`
	Owner        string               `json:"owner,omitempty"`
	NamedBy      string               `json:"named_by,omitempty"`
	Project      *docProject          `json:"project,omitempty"`
	Service      *docNamed            `json:"service,omitempty"`
	Unit         *docNamed            `json:"unit,omitempty"`
	Cgroup       *docCgroup           `json:"cgroup,omitempty"`
	Device       *docDevice           `json:"device,omitempty"`
	Mount        *docMount            `json:"mount,omitempty"`
	File         *docFileOf           `json:"file,omitempty"`
	NFS          *docNFS              `json:"nfs,omitempty"`
	FUSE         *docFUSE             `json:"fuse,omitempty"`
	SMB          *docSMB              `json:"smb,omitempty"`
	P9           *docP9               `json:"9p,omitempty"`
	Ceph         *docCeph             `json:"ceph,omitempty"`
	Op           string               `json:"op,omitempty"`
	Read         *docAmount           `json:"read,omitempty"`
	Write        *docAmount           `json:"write,omitempty"`
	Discard      *docAmount           `json:"discard,omitempty"`
	Flush        *docCount            `json:"flush,omitempty"`
	Metadata     *docCount            `json:"metadata,omitempty"`
	Retransmits  int64                `json:"retransmits,omitempty"`
	Basis        *docBasis            `json:"basis,omitempty"`
	Request      *docRequest          `json:"request,omitempty"`
	Sources      map[string]docSource `json:"sources,omitempty"`
	Total        *docTotal            `json:"total,omitempty"`
	Lost         *docLost             `json:"lost,omitempty"`
	Unattributed *docBytes            `json:"unattributed,omitempty"`
	Unresolved   *docUnresolved       `json:"unresolved,omitempty"`
	Self         *docSelf             `json:"self,omitempty"`
	VXLAN        *docVXLAN            `json:"vxlan,omitempty"`
}

type docGroup struct {
	Name []string `json:"name"`
	ID   string   `json:"id"`
}

type docProject struct {
	Name    string `json:"name"`
	Rule    string `json:"rule,omitempty"`
	NamedBy string `json:"named_by,omitempty"`
}

type docNamed struct {
	Name string `json:"name"`
}

type docCgroup struct {
	ID   string `json:"id,omitempty"`
	Path string `json:"path,omitempty"`
	Gone bool   `json:"gone,omitempty"`
}

type docDevice struct {
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	Alias   string `json:"alias,omitempty"`
	Stacked bool   `json:"stacked"`
}

type docMount struct {
	Source string `json:"source,omitempty"`
	Point  string `json:"point,omitempty"`
	FSType string `json:"fstype,omitempty"`
	Volume string `json:"volume,omitempty"`
	Driver string `json:"driver,omitempty"`
}

type docNFS struct {
	Server  string `json:"server,omitempty"`
	Export  string `json:"export,omitempty"`
	Version string `json:"version,omitempty"`
	Address string `json:"address,omitempty"`
	Port    int64  `json:"port,omitempty"`

	Client *docNFSClient `json:"client,omitempty"`
}

// docNFSClient is a client of this host's NFS server.
type docNFSClient struct {
	Address string `json:"address"`
	Name    string `json:"name,omitempty"`
}

type docClient struct {
	Address string `json:"address"`
	IP      string `json:"ip"`
}

type docFUSE struct {
	Subtype string  `json:"subtype,omitempty"`
	Daemon  *docPID `json:"daemon,omitempty"`
}

type docSMB struct {
	Server string `json:"server,omitempty"`
	Share  string `json:"share,omitempty"`
}

type docP9 struct {
	Tag       string `json:"tag,omitempty"`
	Transport string `json:"transport,omitempty"`
}

type docCeph struct {
	Cluster    string `json:"cluster,omitempty"`
	Filesystem string `json:"filesystem,omitempty"`
	Path       string `json:"path,omitempty"`
}

type docPID struct {
	PID int64 `json:"pid"`
}

type docAmount struct {
	Bytes     int64       `json:"bytes"`
	Ops       int64       `json:"ops"`
	Errors    int64       `json:"errors,omitempty"`
	MetaBytes int64       `json:"meta_bytes,omitempty"`
	Latency   *docLatency `json:"latency,omitempty"`
}

// docCount is an amount without bytes.
type docCount struct {
	Ops     int64       `json:"ops"`
	Errors  int64       `json:"errors,omitempty"`
	Latency *docLatency `json:"latency,omitempty"`
}

// docLatency is in ns.
type docLatency struct {
	P50 int64 `json:"p50"`
	P95 int64 `json:"p95"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`

	Histogram docHistogram `json:"histogram"`
}

// docHistogram is a value of Elasticsearch's field type histogram, in ns.
type docHistogram struct {
	Values []int64 `json:"values"` // upper bounds of buckets, ascending
	Counts []int64 `json:"counts"`
}

// docBasis is in bytes.
type docBasis struct {
	Dirtier int64 `json:"dirtier"`
	Page    int64 `json:"page"`
	Journal int64 `json:"journal"`
	Bio     int64 `json:"bio"`
	Task    int64 `json:"task"`
	None    int64 `json:"none"`
}

type docRequest struct {
	Bytes   int64  `json:"bytes"`
	Offset  int64  `json:"offset"`
	Latency int64  `json:"latency,omitempty"` // ns
	Basis   string `json:"basis,omitempty"`
}

type docSource struct {
	Attached    bool     `json:"attached"`
	Hook        string   `json:"hook,omitempty"`
	Reason      string   `json:"reason,omitempty"`
	Limitations []string `json:"limitations,omitempty"`
}

type docTotal struct {
	Read  docBytesOps `json:"read"`
	Write docBytesOps `json:"write"`
}

type docBytesOps struct {
	Bytes int64 `json:"bytes"`
	Ops   int64 `json:"ops"`
}

type docLost struct {
	Bytes     int64 `json:"bytes"`
	Records   int64 `json:"records"`
	Notices   int64 `json:"notices"`
	Latencies int64 `json:"latencies"`
	Groups    int64 `json:"groups"`
	Walks     int64 `json:"walks"`
	Notes     int64 `json:"notes"`
	Misses    int64 `json:"misses"`
	Exports   int64 `json:"exports"`
}

type docBytes struct {
	Bytes int64 `json:"bytes"`
}

type docUnresolved struct {
	Cgroups int64 `json:"cgroups"`
}

type docSelf struct {
	BPFNanos int64 `json:"bpf_ns"`
	CPUNanos int64 `json:"cpu_ns"`
	RSSBytes int64 `json:"rss_bytes"`
	MapBytes int64 `json:"map_bytes"`

	ReadBytes  int64 `json:"read_bytes,omitempty"`
	WriteBytes int64 `json:"write_bytes,omitempty"`
}

type docVXLAN struct {
	Device       string      `json:"device,omitempty"`
	Ifindex      int64       `json:"ifindex,omitempty"`
	VNI          int64       `json:"vni"`
	NetNS        string      `json:"netns,omitempty"`
	NewNetNS     string      `json:"new_netns,omitempty"`
	Up           bool        `json:"up"`
	Network      *docNetwork `json:"network,omitempty"`
	Stack        string      `json:"stack,omitempty"`
	Services     []string    `json:"services,omitempty"`
	Culprit      string      `json:"culprit,omitempty"`
	CulpritNetNS string      `json:"culprit_netns,omitempty"`
	Error        string      `json:"error,omitempty"`
	Age          int64       `json:"age,omitempty"` // ns
}

type docNetwork struct {
	Name string `json:"name,omitempty"`
	ID   string `json:"id,omitempty"`
}

// Fields returns the path of every field that a document can have, such as
// "iotrace.read.bytes". Tests compare index templates and dashboards with it.
func Fields() []string { return jsonPaths(reflect.TypeFor[document](), "") }

// jsonPaths returns the path of every leaf that a value of type t may have in JSON. A
// map and a histogram count as leaves.
func jsonPaths(t reflect.Type, prefix string) []string {
	switch t.Kind() {
	case reflect.Struct:
		if t == reflect.TypeFor[docHistogram]() {
			break
		}
		var paths []string
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			paths = append(paths, jsonPaths(f.Type, prefix+"."+name)...)
		}
		return paths
	case reflect.Pointer, reflect.Slice:
		return jsonPaths(t.Elem(), prefix)
	}
	return []string{strings.TrimPrefix(prefix, ".")}
}
