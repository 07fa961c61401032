package tracer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// sharedMaps are made once, by the host object, and handed to every source.
var sharedMaps = []string{
	bpf.HostMapUsages, bpf.HostMapUsageA, bpf.HostMapLatencies, bpf.HostMapLatencyA, bpf.HostMapOverflow,
	bpf.HostMapRowCaches, bpf.HostMapGeneration, bpf.HostMapLosses, bpf.HostMapRecords, bpf.HostMapBatches, bpf.HostMapNotices, bpf.HostMapNotes, bpf.HostMapNotesLive,
	bpf.HostMapDeadOwners, bpf.HostMapLoopNotes, bpf.HostMapComms, bpf.HostMapInodeNotes,
}

// host is the kernel that we run on: what it offers, and the maps that all
// objects share.
type host struct {
	opt      Options
	log      *slog.Logger
	cache    *btf.Cache
	types    *btf.Spec // of vmlinux, decoded as far as was asked for
	tracefs  string
	haveLoop bool
	preempts bool // programs on tracepoints, so that it skips some: since 7.0
	shared   map[string]*ebpf.Map
}

func newHost(opt Options) (*host, error) {
	h := &host{opt: opt, log: opt.Log, shared: map[string]*ebpf.Map{}}
	if err := h.acquire(); err != nil {
		return nil, &UnsupportedError{
			What: "this kernel has no BTF type information",
			Hint: "a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed: /sys/kernel/btf/vmlinux is missing",
			Err:  err,
		}
	}
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(filepath.Join(dir, "events")); err == nil {
			h.tracefs = dir
			break
		}
	}
	clearProbes(h.tracefs, "/proc")
	h.haveLoop = features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnLoop) == nil
	if version, err := features.LinuxVersionCode(); err == nil {
		h.preempts = version >= 7<<16
	}
	return h, nil
}

// acquire reads the kernel's types; release gives the memory back, some tens of
// MiB, once everything is loaded.
func (h *host) acquire() (err error) {
	if h.cache != nil {
		return nil
	}
	cache := btf.NewCache()
	if h.types, err = cache.Kernel(); err != nil {
		return err
	}
	h.cache = cache
	return nil
}

func (h *host) release() { h.cache, h.types = nil, nil }

// tune sets the constants that every object has.
func (h *host) tune(spec *ebpf.CollectionSpec) error {
	values := map[string]any{
		bpf.HostVarHierarchyId:    uint32(h.opt.Hierarchy),
		bpf.HostVarByProcess:      h.opt.ByProcess,
		bpf.HostVarByMount:        h.opt.ByMount,
		bpf.HostVarWithLatency:    h.opt.Latency,
		bpf.HostVarCountLatencies: h.opt.countsLatencies(),
		bpf.HostVarWithRecords:    h.opt.Records != nil,
		bpf.HostVarWithApp:        h.opt.App,
		bpf.HostVarHaveBpfLoop:    h.haveLoop,
		// On cgroup v1 a bio's cgroup is in another hierarchy, with ids of its own.
		bpf.HostVarBlkcgUsable: h.opt.Hierarchy == 0,
		bpf.HostVarSelfPid:     uint32(os.Getpid()),
	}
	for name, value := range values {
		v, ok := spec.Variables[name]
		if !ok { // the object does not use it
			continue
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("setting %q: %w", name, err)
		}
	}
	return nil
}

// size gives the shared maps the sizes that the options ask for.
func (h *host) size(spec *ebpf.CollectionSpec) {
	groups := h.opt.MaxGroups
	for name, entries := range map[string]uint32{
		bpf.HostMapUsageA:   groups,
		bpf.HostMapLatencyA: latencyEntries(groups),
		bpf.HostMapRecords:  h.opt.RecordRing,
		bpf.HostMapNotices:  h.opt.NoticeRing,
	} {
		spec.Maps[name].MaxEntries = entries
	}
	// A template alone; hashes of any size fit where it says (134fede4eecf, 5.10).
	spec.Maps[bpf.HostMapUsages].InnerMap.MaxEntries = 1
	spec.Maps[bpf.HostMapLatencies].InnerMap.MaxEntries = 1
	if h.opt.Records == nil {
		spec.Maps[bpf.HostMapRecords].MaxEntries = uint32(os.Getpagesize())
	}
	if !h.opt.countsLatencies() {
		spec.Maps[bpf.HostMapLatencyA].MaxEntries = 1
	}
	if !h.opt.ByProcess {
		spec.Maps[bpf.HostMapComms].MaxEntries = 1
	}
}

// maxLatencies bounds each of the two maps of latencies to some 60 MiB.
const maxLatencies = 1 << 19

// latencyEntries returns how many buckets of latencies are kept for so many
// groups. What does not fit is counted as lost, and its bytes are not.
func latencyEntries(groups uint32) uint32 { return min(groups*4, maxLatencies) }

// sharedIn returns the shared maps that an object declares.
func (h *host) sharedIn(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	maps := map[string]*ebpf.Map{}
	for name, m := range h.shared {
		if s := spec.Maps[name]; s != nil {
			s.MaxEntries, s.Flags = m.MaxEntries(), m.Flags()
			maps[name] = m
		}
	}
	return maps
}

// exists tells cheaply whether a hook's place exists, so that no load is tried
// in vain. A place whose existence cannot be told is left to the attempt.
func (h *host) exists(hk hook) error {
	switch hk.kind {
	case rawTracepoint, btfTracepoint:
		if h.haveTracepoint(hk.target) {
			return nil
		}
		// Tracepoints of modules are not in vmlinux's types: attaching will tell.
		if h.tracefs == "" || hk.kind == rawTracepoint && h.inTracefs(hk.target) {
			return nil
		}
		return fmt.Errorf("no tracepoint %q: %w", hk.target, ErrAbsent)
	}
	return nil
}

func (h *host) haveTracepoint(name string) bool {
	var def *btf.Typedef
	return h.types.TypeByName("btf_trace_"+name, &def) == nil
}

func (h *host) inTracefs(name string) bool {
	found, err := filepath.Glob(filepath.Join(h.tracefs, "events", "*", name))
	return err != nil || len(found) > 0
}

// tracepointArgs returns how many arguments a tracepoint of vmlinux passes; 0
// when it is not known.
func (h *host) tracepointArgs(name string) int {
	var def *btf.Typedef
	if err := h.types.TypeByName("btf_trace_"+name, &def); err != nil {
		return 0
	}
	ptr, ok := def.Type.(*btf.Pointer)
	if !ok {
		return 0
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	if !ok {
		return 0
	}
	return len(proto.Params) - 1 // the first is the tracepoint's own data pointer
}

// haveFunc tells whether vmlinux has a function of that name.
func (h *host) haveFunc(name string) bool {
	var fn *btf.Func
	return h.types.TypeByName(name, &fn) == nil
}

// numaNodes returns how many memory nodes are possible.
func numaNodes() uint32 {
	data, err := os.ReadFile("/sys/devices/system/node/possible")
	if err != nil {
		return 1
	}
	s := strings.TrimSpace(string(data))
	if i := strings.LastIndexAny(s, "-,"); i >= 0 {
		s = s[i+1:]
	}
	var last uint32
	if _, err := fmt.Sscanf(s, "%d", &last); err != nil {
		return 1
	}
	return last + 1
}

// open loads the host object: the shared maps, the dirtier notes, and the
// events of cgroups and modules.
func (h *host) open() (*object, error) {
	spec, err := bpf.LoadHost()
	if err != nil {
		return nil, fmt.Errorf("reading the host object: %w", err)
	}
	h.size(spec)
	if err := spec.Variables[bpf.HostVarNodes].Set(numaNodes()); err != nil {
		return nil, err
	}
	if err := spec.Variables[bpf.HostVarNoteInodes].Set(h.opt.needsInodes()); err != nil {
		return nil, err
	}
	signals := []signal{
		{hooks: []hook{
			{kind: rawTracepoint, target: "cgroup_mkdir", program: bpf.HostProgIotCgroupMkdir},
		}},
		{hooks: []hook{
			{kind: rawTracepoint, target: "cgroup_rmdir", program: bpf.HostProgIotCgroupRmdir},
		}},
		{hooks: []hook{
			{kind: rawTracepoint, target: "writeback_dirty_folio", program: bpf.HostProgIotDirtyFolio},
			{kind: rawTracepoint, target: "writeback_dirty_page", program: bpf.HostProgIotDirtyPage},
		}, optional: "pages cached by one cgroup and overwritten by another count for the first"},
		{hooks: []hook{
			{kind: rawTracepoint, target: "module_load", program: bpf.HostProgIotModuleLoad},
		}, optional: modulesOptional},
		{hooks: []hook{
			{kind: rawTracepoint, target: "module_free", program: bpf.HostProgIotModuleFree},
		}, optional: modulesOptional},
	}
	if h.pagesHandedToParents() {
		signals = append(signals, signal{hooks: []hook{
			{kind: fentry, target: "mem_cgroup_css_offline", program: bpf.HostProgIotMemcgOffline},
			{kind: kprobe, target: "mem_cgroup_css_offline", program: bpf.HostProgIotMemcgOfflineKprobe},
		}, optional: "late writeback of a removed cgroup counts for its parent"})
	}
	o, err := h.load(spec, signals, ebpf.ProgramOptions{})
	if err != nil {
		return nil, err
	}
	for _, name := range sharedMaps {
		if m := o.maps[name]; m != nil {
			h.shared[name] = m
		}
	}
	if !h.haveTracepoint("module_load") {
		// A kernel without modules loses nothing by not being told of them.
		o.costs = without(o.costs, modulesOptional)
	}
	return o, nil
}

const modulesOptional = "file systems whose module is loaded later are not noticed"

func without(list []string, drop string) []string {
	var kept []string
	for _, s := range list {
		if s != drop {
			kept = append(kept, s)
		}
	}
	return kept
}

// pagesHandedToParents tells whether the kernel is 7.1 or like it: see
// iot_offline in bpf/host.bpf.c.
func (h *host) pagesHandedToParents() bool {
	var st *btf.Struct
	if err := h.types.TypeByName("mem_cgroup_per_node", &st); err != nil {
		return false
	}
	for _, m := range st.Members {
		if m.Name == "orig_objcg" {
			return true
		}
	}
	return false
}

// UnsupportedError says that this kernel, or these privileges, cannot trace.
type UnsupportedError struct {
	What string // one line
	Hint string // what is missing
	Err  error
}

func (e *UnsupportedError) Error() string { return e.What }

func (e *UnsupportedError) Unwrap() error { return e.Err }

func cutSlash(s string) (before, after string, found bool) { return strings.Cut(s, "/") }

// explain turns a refusal of the first object into what the user can do about it.
func explain(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return &UnsupportedError{
			What: "no permission to trace",
			Hint: "run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH (CAP_SYS_ADMIN before 5.8 or where perf_event_paranoid asks for it)",
			Err:  err,
		}
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return &UnsupportedError{What: "this kernel cannot run the programs", Hint: "5.10 or newer is needed", Err: err}
	}
	return err
}
