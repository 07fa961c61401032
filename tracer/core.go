package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// sharedMaps are made once, by the core object, and handed to every source.
var sharedMaps = []string{
	bpf.CoreMapUsages, bpf.CoreMapUsageA, bpf.CoreMapLatencies, bpf.CoreMapLatencyA, bpf.CoreMapOverflow,
	bpf.CoreMapRowCaches, bpf.CoreMapGeneration, bpf.CoreMapLosses, bpf.CoreMapRecords, bpf.CoreMapBatches, bpf.CoreMapNotices, bpf.CoreMapNotesLive,
	bpf.CoreMapBegunAt, bpf.CoreMapDeadOwners, bpf.CoreMapLoopNotes, bpf.CoreMapComms,
	bpf.CoreMapInodeNotes, bpf.CoreMapPageNotes, bpf.CoreMapSharers, bpf.CoreMapLostInodes,
	bpf.CoreMapNfsClients, bpf.CoreMapNfsCopies, bpf.CoreMapFiles, bpf.CoreMapFileSwitch,
}

// core is what all sources share: what this kernel offers, and the maps.
type core struct {
	opt     Options
	log     *slog.Logger
	tracefs string
	shared  map[string]*ebpf.Map
	totals  map[string]*ebpf.MapSpec // of the two maps that are read and exchanged
	seats   seats
	devices *Devices // of the block source; nil without it
	byFile  atomic.Bool

	preempting bool // see preempts
}

func newCore(opt Options) *core {
	c := &core{opt: opt, log: opt.Log, shared: map[string]*ebpf.Map{}}
	for _, dir := range []string{onHost("/sys/kernel/tracing"), onHost("/sys/kernel/debug/tracing")} {
		if _, err := os.Stat(filepath.Join(dir, "events")); err == nil {
			c.tracefs = dir
			break
		}
	}
	clearProbes(c.tracefs, "/proc")
	return c
}

// loader is what loads programs: the core with the kernel's types. Those take some
// tens of MiB, so who loads makes a loader and keeps it no longer than that. Sources
// may be loaded by several goroutines at once, each with a loader of its own.
type loader struct {
	*core
	cache *btf.Cache
	types *btf.Spec // of vmlinux, decoded on demand
}

func (c *core) loader() (*loader, error) {
	cache := btf.NewCache()
	types, err := cache.Kernel()
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's types: %w", err)
	}
	return &loader{core: c, cache: cache, types: types}, nil
}

// loaderOr returns the loader l of a start while there is one, and else another one.
func (c *core) loaderOr(l *loader) (*loader, error) {
	if l != nil {
		return l, nil
	}
	return c.loader()
}

// tune sets the constants that every object has.
func (c *loader) tune(spec *ebpf.CollectionSpec) error {
	inodes, pages := c.opt.noteBits()
	values := map[string]any{
		bpf.CoreVarInodeNoteBits:  inodes,
		bpf.CoreVarPageNoteBits:   pages,
		bpf.CoreVarHierarchyId:    uint32(c.opt.Hierarchy),
		bpf.CoreVarPageShift:      uint32(bits.TrailingZeros(uint(os.Getpagesize()))),
		bpf.CoreVarByProcess:      c.opt.ByProcess,
		bpf.CoreVarByMount:        c.opt.ByMount || c.opt.ByFile,
		bpf.CoreVarByFile:         c.opt.ByFile,
		bpf.CoreVarWithLatency:    c.opt.Latency,
		bpf.CoreVarCountLatencies: c.opt.countsLatencies(),
		bpf.CoreVarWithRecords:    c.opt.Records != nil,
		bpf.CoreVarWithApp:        c.opt.App,
		// On cgroup v1 a bio's cgroup is in another hierarchy, with ids of its own.
		bpf.CoreVarBlkcgUsable: c.opt.Hierarchy == 0,
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
	if m := spec.Maps[bpf.CephMapSpilled]; m != nil && c.allocates() { // several sources have it
		m.Flags |= unix.BPF_F_NO_PREALLOC
	}
	return nil
}

// size gives the shared maps the sizes that the options ask for.
func (c *loader) size(spec *ebpf.CollectionSpec) {
	groups := c.opt.MaxGroups
	for name, entries := range map[string]uint32{
		bpf.CoreMapUsageA:   groups,
		bpf.CoreMapLatencyA: latencyEntries(groups),
		bpf.CoreMapRecords:  c.opt.RecordRing,
		bpf.CoreMapNotices:  c.opt.NoticeRing,
	} {
		spec.Maps[name].MaxEntries = entries
	}
	// Only templates: since 5.10 (134fede4eecf) the inner hashes may have any size.
	for _, name := range []string{bpf.CoreMapUsages, bpf.CoreMapLatencies, bpf.CoreMapLoopNotes} {
		spec.Maps[name].InnerMap.MaxEntries = 1
	}
	if c.allocates() {
		spec.Maps[bpf.CoreMapLatencyA].Flags |= unix.BPF_F_NO_PREALLOC
		spec.Maps[bpf.CoreMapLatencies].InnerMap.Flags |= unix.BPF_F_NO_PREALLOC
		spec.Maps[bpf.CoreMapFiles].Flags |= unix.BPF_F_NO_PREALLOC
	}
	if c.opt.Records == nil {
		spec.Maps[bpf.CoreMapRecords].MaxEntries = uint32(os.Getpagesize())
	}
	if !c.opt.countsLatencies() {
		spec.Maps[bpf.CoreMapLatencyA].MaxEntries = 1
	}
	if !c.opt.ByFile {
		spec.Maps[bpf.CoreMapFiles].MaxEntries = 1
	} else if c.opt.maxFiles != 0 {
		spec.Maps[bpf.CoreMapFiles].MaxEntries = c.opt.maxFiles
	}
	if !c.opt.ByProcess {
		spec.Maps[bpf.CoreMapComms].MaxEntries = 1
	}
	if !c.pagesHandedToParents() {
		spec.Maps[bpf.CoreMapDeadOwners].MaxEntries = 1
	}
	inodes, pages := c.opt.noteBits()
	spec.Maps[bpf.CoreMapInodeNotes].MaxEntries = 1 << inodes
	spec.Maps[bpf.CoreMapPageNotes].MaxEntries = 1 << pages
}

// preempts tells whether this kernel preempts programs on tracepoints, and skips others
// meanwhile. It does where tracepoints read their list of programs under SRCU-fast
// instead of with preemption disabled (a46023d5616e, in 7.0): no other code of the
// kernel uses this guard.
func (c *loader) preempts() bool {
	var guard *btf.Typedef
	return c.types.TypeByName("class_srcu_fast_notrace_t", &guard) == nil
}

// allocates tells whether programs may allocate the elements of maps anywhere: since
// 6.1 the kernel has an allocator for that (7c8199e24fa0). A latency whose element it
// could not allocate in an interrupt is counted as lost.
func (c *loader) allocates() bool {
	var st *btf.Struct
	return c.types.TypeByName("bpf_mem_alloc", &st) == nil
}

// maxLatencies bounds each of the two maps of latencies to some 60 MiB.
const maxLatencies = 1 << 19

// latencyEntries returns how many buckets of latencies are kept for so many
// groups. What does not fit is counted as lost, and its bytes are not.
func latencyEntries(groups uint32) uint32 { return min(groups*4, maxLatencies) }

// sharedIn returns the shared maps that an object declares.
func (c *core) sharedIn(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	maps := map[string]*ebpf.Map{}
	for name, m := range c.shared {
		if s := spec.Maps[name]; s != nil {
			s.MaxEntries, s.Flags = m.MaxEntries(), m.Flags()
			maps[name] = m
		}
	}
	return maps
}

// exists checks cheaply that a hook's place exists, before its program is loaded.
// It returns nil where only the attempt can tell.
func (c *loader) exists(hk hook) error {
	switch hk.kind {
	case rawTracepoint, btfTracepoint:
		if c.haveTracepoint(hk.target) {
			return nil
		}
		// Tracepoints of modules are not in vmlinux's types: only attaching can tell.
		if c.tracefs == "" || hk.kind == rawTracepoint && c.inTracefs(hk.target) {
			return nil
		}
		return fmt.Errorf("no tracepoint %q: %w", hk.target, ErrAbsent)
	case kprobe, kretprobe:
		// Either way leads to the kernel's probes; without both there are none.
		_, err := os.Stat(filepath.Join(sysfs, "bus/event_source/devices/kprobe"))
		if c.tracefs == "" && errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no probes of functions: %w", ErrAbsent)
		}
	}
	return nil
}

func (c *loader) haveTracepoint(name string) bool {
	var def *btf.Typedef
	return c.types.TypeByName("btf_trace_"+name, &def) == nil
}

func (c *core) inTracefs(name string) bool {
	found, err := filepath.Glob(filepath.Join(c.tracefs, "events", "*", name))
	return err != nil || len(found) > 0
}

// tracepointArgs returns how many arguments a tracepoint of vmlinux passes; 0
// when it is not known.
func (c *loader) tracepointArgs(name string) int {
	var def *btf.Typedef
	if err := c.types.TypeByName("btf_trace_"+name, &def); err != nil {
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
func (c *loader) haveFunc(name string) bool {
	var fn *btf.Func
	return c.types.TypeByName(name, &fn) == nil
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

// open makes the shared maps. attach loads and attaches what makes the dirtier notes and
// the events of cgroups and modules: the double buffers are made at the same time.
func (c *loader) open() (o *object, attach func() error, err error) {
	signals := []signal{
		{hooks: []hook{
			{kind: rawTracepoint, target: "cgroup_mkdir", program: bpf.CoreProgIotCgroupMkdir},
		}},
		{hooks: []hook{
			{kind: rawTracepoint, target: "cgroup_rmdir", program: bpf.CoreProgIotCgroupRmdir},
		}},
		{hooks: []hook{
			{kind: rawTracepoint, target: "writeback_dirty_folio", program: bpf.CoreProgIotDirtyFolio},
			{kind: rawTracepoint, target: "writeback_dirty_page", program: bpf.CoreProgIotDirtyPage},
		}, optional: Limitation{
			Text:   "a page that one cgroup cached and another one overwrites counts for the first one",
			Remedy: "a kernel with the tracepoint writeback:writeback_dirty_folio (up to 5.15: writeback_dirty_page)",
		}},
		{hooks: []hook{
			{kind: rawTracepoint, target: "module_load", program: bpf.CoreProgIotModuleLoad},
		}, optional: modulesOptional},
		{hooks: []hook{
			{kind: rawTracepoint, target: "module_free", program: bpf.CoreProgIotModuleFree},
		}, optional: modulesOptional},
	}
	signals = append(signals, c.writeSignals()...)
	if c.pagesHandedToParents() {
		signals = append(signals, signal{hooks: []hook{
			{kind: fentry, target: "mem_cgroup_css_offline", program: bpf.CoreProgIotMemcgOffline},
			{kind: kprobe, target: "mem_cgroup_css_offline", program: bpf.CoreProgIotMemcgOfflineKprobe},
		}, optional: Limitation{
			Text:   "late writeback of a removed cgroup counts for its parent cgroup",
			Remedy: needsFunctions,
		}})
	}
	spec, err := c.read(bpf.CoreObject(), signals)
	if err != nil {
		return nil, nil, err
	}
	c.size(spec)
	if err := spec.Variables[bpf.CoreVarNodes].Set(numaNodes()); err != nil {
		return nil, nil, err
	}
	c.totals = map[string]*ebpf.MapSpec{}
	for _, name := range []string{bpf.CoreMapUsageA, bpf.CoreMapLatencyA} {
		c.totals[name] = spec.Maps[name].Copy()
	}
	programs, maps, err := c.makeMaps(nil, spec)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range sharedMaps {
		if m := maps[name]; m != nil {
			c.shared[name] = m
		}
	}
	o = &object{maps: maps}
	return o, func() error { return c.attachCore(o, spec, programs, signals) }, nil
}

func (c *loader) attachCore(o *object, spec *ebpf.CollectionSpec, programs map[string]*ebpf.ProgramSpec, signals []signal) error {
	if err := c.attachSignals(o, spec, programs, signals, ebpf.ProgramOptions{}); err != nil {
		return err
	}
	if !o.has(bpf.CoreProgIotFaultFentry) && !o.has(bpf.CoreProgIotFaultKprobe) {
		if err := o.maps[bpf.CoreMapNotesLive].Update(uint32(faultsUnseen), uint32(1), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("noting that stores through mappings are not seen: %w", err)
		}
	}
	if !c.haveTracepoint("module_load") {
		// A kernel without modules has none that could be loaded later.
		o.limitations = slices.DeleteFunc(o.limitations, func(l Limitation) bool { return l == modulesOptional })
	}
	return nil
}

// faultsUnseen is IOT_FAULTS_UNSEEN in bpf/core/note.h.
const faultsUnseen = 2

// writeSignals are the hooks on calls that write into a file. They are needed where the
// page cache has folios of many pages, which become dirty once for all of them: with
// iomap (XFS) since 5.18, in ext4 since 6.16.
func (c *loader) writeSignals() (signals []signal) {
	var st *btf.Struct
	if c.types.TypeByName("folio", &st) != nil {
		return nil
	}
	limited := Limitation{
		Text:   "pages of one large folio that several cgroups write count for the first one",
		Remedy: "a kernel with the tracepoints of ext4 and iomap",
	}
	for _, w := range []struct {
		tracepoint string
		needed     bool
	}{
		{"iomap_iter", c.haveFunc("iomap_iter")},
		{"ext4_da_write_begin", c.haveFunc("ext4_set_inode_mapping_order")},
		{"ext4_write_begin", c.haveFunc("ext4_set_inode_mapping_order")},
	} {
		if w.needed {
			signals = append(signals, signal{hooks: []hook{{kind: rawTracepoint, target: w.tracepoint, program: bpf.CoreProgIotWriteCall, several: true, note: true}}, optional: limited})
		}
	}
	if c.opt.noFaults {
		return signals
	}
	return append(signals, signal{hooks: []hook{
		{kind: fentry, target: "do_page_mkwrite", program: bpf.CoreProgIotFaultFentry, note: true},
		{kind: kprobe, target: "do_page_mkwrite", program: bpf.CoreProgIotFaultKprobe, note: true},
	}, optional: Limitation{
		Text:   "pages of one large folio that several cgroups write through mappings of the file count for the first one",
		Remedy: needsFunctions,
	}})
}

var modulesOptional = Limitation{
	Text:   "a file system whose module is loaded later is not traced",
	Remedy: "load the module (modprobe nfs, modprobe fuse), then start iotrace-bpf again",
}

// Kernel options that hooks on functions need: kprobes the first, fentry and
// fexit the second.
const (
	needsKprobes   = "a kernel with CONFIG_KPROBE_EVENTS=y"
	needsFunctions = "a kernel with CONFIG_KPROBE_EVENTS=y or CONFIG_FUNCTION_TRACER=y"
)

// pagesHandedToParents tells whether the kernel is 7.1 or like it: see
// iot_offline in bpf/core/core.bpf.c.
func (c *loader) pagesHandedToParents() bool {
	var st *btf.Struct
	if err := c.types.TypeByName("mem_cgroup_per_node", &st); err != nil {
		return false
	}
	for _, m := range st.Members {
		if m.Name == "orig_objcg" {
			return true
		}
	}
	return false
}

// UnsupportedError says that this kernel, or the privileges of this process, do
// not allow tracing.
type UnsupportedError struct {
	What string // one line
	Hint string // what is missing
	Err  error  // the cause; may be nil
}

func (e *UnsupportedError) Error() string { return e.What }

func (e *UnsupportedError) Unwrap() error { return e.Err }

func cutSlash(s string) (before, after string, found bool) { return strings.Cut(s, "/") }

// explain says what the user can do about an error of an object.
func explain(err error) error {
	if errors.Is(err, unix.ENOMEM) { // names the map that did not fit
		return &UnsupportedError{
			What: fmt.Sprintf("not enough memory: %v", err),
			Hint: "the default needs a memory limit of 64 MiB, --record 80 MiB (systemd: MemoryMax=, docker run: --memory); a smaller --max-groups takes less",
			Err:  err,
		}
	}
	if errors.Is(err, os.ErrPermission) {
		return &UnsupportedError{
			What: "no permission to trace",
			Hint: "run as root or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH (and CAP_SYS_ADMIN where kernel.perf_event_paranoid demands it)",
			Err:  err,
		}
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return &UnsupportedError{What: "this kernel cannot run the BPF programs of iotrace-bpf", Hint: "Linux 5.10 or newer is needed", Err: err}
	}
	return err
}
