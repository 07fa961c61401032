package tracer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// planNFS looks at this kernel's NFS client.
func planNFS(c *loader, future bool) (*plan, error) {
	if _, err := os.Stat(sysfs + "/module/nfs"); err != nil && !future { // exists also when built in: nfs has parameters
		return nil, &notLoadedError{"nfs"}
	}
	spec, err := c.read(bpf.NFSObject(), nil)
	if err != nil {
		return nil, err
	}
	types, sums, err := c.moduleTypes(future, "nfs", "sunrpc")
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(types), c.types)
	if !haveType[*btf.Struct](all, "nfs_page") {
		// Before 5.11 no kernel had type information for modules. Later kernels
		// can be built without it, and their structs' layout is not known.
		if !c.pagesNameOwners() {
			return nil, fmt.Errorf("the kernel has no type information for module %q (CONFIG_DEBUG_INFO_BTF_MODULES): %w", "nfs", ErrAbsent)
		}
		if err := spec.Variables[bpf.NFSVarFixedNfsPage].Set(true); err != nil {
			return nil, err
		}
	}
	module := future || isDir(sysfs+"/module/nfs/holders") // a built-in one has only parameters there
	if err := spec.Variables[bpf.NFSVarFromFunctions].Set(module); err != nil {
		return nil, err
	}
	return &plan{spec, nfsSignals(c.opt, c.preempts(), module, all), ebpf.ProgramOptions{ExtraRelocationTargets: types}, sums}, nil
}

// nfsSignals lists the hooks. Hooks that see ends come before those that see
// beginnings: no request may begin and end unseen while we attach.
func nfsSignals(opt Options, preempts, module bool, types []*btf.Spec) []signal {
	raw := func(target, program string) []hook {
		return []hook{{kind: rawTracepoint, target: target, program: program}}
	}
	var signals []signal
	// add adds a tracepoint with its program and the redundant one.
	add := func(target, program, second string, optional Limitation) {
		signals = append(signals, signal{hooks: raw(target, program), optional: optional})
		signals = append(signals, redundant(preempts, raw(target, second)...)...)
	}
	needed := Limitation{}
	signals = append(signals, signal{hooks: raw("nfs_refresh_inode_enter", bpf.NFSProgIotRefreshInode), optional: Limitation{
		Text: "metadata operations are not split by mount", Remedy: "a kernel with the tracepoint nfs:nfs_refresh_inode_enter",
	}})
	add("rpc_task_begin", bpf.NFSProgIotRpcTaskBegin, bpf.NFSProgIotRpcTaskBeginRedundant, Limitation{
		Text: "asynchronous metadata operations are unattributed", Remedy: "a kernel with the tracepoint sunrpc:rpc_task_begin",
	})
	add("rpc_stats_latency", bpf.NFSProgIotRpcStats, bpf.NFSProgIotRpcStatsRedundant, Limitation{
		Text: "metadata operations and retransmissions are not counted", Remedy: "a kernel with the tracepoint sunrpc:rpc_stats_latency",
	})
	add("nfs_readpage_done", bpf.NFSProgIotReadpageDone, bpf.NFSProgIotReadpageDoneRedundant, needed)
	if opt.Latency {
		add("nfs_writeback_done", bpf.NFSProgIotWritebackDone, bpf.NFSProgIotWritebackDoneRedundant, needed)
		add("nfs_commit_done", bpf.NFSProgIotCommitDone, bpf.NFSProgIotCommitDoneRedundant, needed)
	}
	if opt.App {
		signals = append(signals, nfsAppSignals(types)...)
	}
	signals = append(signals,
		signal{hooks: []hook{
			{kind: rawTracepoint, target: "nfs_file_write", program: bpf.NFSProgIotWriterRaw}, // since 6.18
			{kind: kprobe, target: "nfs_file_write", program: bpf.NFSProgIotWriterKprobe},
			{kind: fentry, target: "nfs_file_write", program: bpf.NFSProgIotWriterFentry},
		}, optional: Limitation{
			Text:   "a delayed write to NFS counts for the cgroup that owns the page, not for the one that wrote it",
			Remedy: needsFunctions + ", or Linux 6.18 or newer",
		}},
		// For memory that was mapped before we attached, or inherited.
		signal{hooks: []hook{
			{kind: kprobe, target: "nfs_vm_page_mkwrite", program: bpf.NFSProgIotWriterKprobe},
			{kind: fentry, target: "nfs_vm_page_mkwrite", program: bpf.NFSProgIotWriterFentry},
		}, optional: Limitation{
			Text:   "a delayed write to a mapped NFS file counts for the cgroup that owns the page, not for the one that wrote it",
			Remedy: needsFunctions,
		}},
	)
	if module {
		// These see what the tracepoints do not: see iot_from_function in bpf/nfs/wire.h.
		for _, h := range []hook{
			{kind: kprobe, target: "nfs_readpage_result", program: bpf.NFSProgIotFunctionReadDone, bridge: true},
			{kind: kprobe, target: "nfs_initiate_read", program: bpf.NFSProgIotFunctionRead, bridge: true},
			{kind: kprobe, target: "nfs_initiate_write", program: bpf.NFSProgIotFunctionWrite, bridge: true},
			{kind: kprobe, target: "nfs_initiate_commit", program: bpf.NFSProgIotFunctionCommit, bridge: true},
		} {
			signals = append(signals, signal{hooks: []hook{h}, optional: Limitation{
				Text: "requests to NFS servers may be missed right after the module is loaded", Remedy: needsKprobes,
			}})
		}
	}
	add("nfs_initiate_read", bpf.NFSProgIotInitiateRead, bpf.NFSProgIotInitiateReadRedundant, needed)
	add("nfs_initiate_write", bpf.NFSProgIotInitiateWrite, bpf.NFSProgIotInitiateWriteRedundant, needed)
	add("nfs_initiate_commit", bpf.NFSProgIotInitiateCommit, bpf.NFSProgIotInitiateCommitRedundant, needed)
	return append(signals,
		signal{hooks: []hook{
			{kind: kprobe, target: nfsMountFunction, program: bpf.NFSProgIotGetTree},
		}, optional: Limitation{
			Text: "module nfs cannot be unloaded while it is traced", Remedy: needsKprobes,
		}},
	)
}

// NFSSource returns the address from which the requests to the file system dev are sent:
// the address of this host that its server sees, if nobody translates it. It is not valid
// where it is not known: before the first reply, over RDMA, without source nfs.
func (t *Tracer) NFSSource(dev Dev) netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.objects["nfs"]
	if o == nil {
		return netip.Addr{}
	}
	var a bpf.NFSSourceAddress
	if err := o.maps[bpf.NFSMapSources].Lookup(uint32(dev), &a); err != nil {
		return netip.Addr{} // no such row
	}
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], a.Address.Word[0])
	binary.NativeEndian.PutUint64(b[8:], a.Address.Word[1])
	if a.Family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b).Unmap()
}

// nfsMountFunction is what the kernel calls for every mount, of every NFS version.
const nfsMountFunction = "nfs_get_tree_common"

// nfsCallsAtOnce is how many calls of one function a kretprobe can follow at
// once: each call blocks for as long as the server takes.
const nfsCallsAtOnce = 4096

// nfsAppSignals lists the hooks of the application level: read and write calls.
func nfsAppSignals(types []*btf.Spec) []signal {
	limitation := Limitation{Text: "the application level (--level app) leaves out mapped memory and asynchronous direct I/O on NFS"}
	call := func(target, exit, ret, entry string) signal {
		return signal{
			hooks: []hook{
				{kind: fexit, target: target, program: exit, limitation: limitation},
				{kind: kretprobe, target: target, program: ret, entry: entry, active: nfsCallsAtOnce, limitation: limitation},
			},
			optional: Limitation{
				Text:   "the application level (--level app) misses reads or writes on NFS",
				Remedy: needsFunctions,
			},
		}
	}
	signals := []signal{
		call("nfs_file_read", bpf.NFSProgIotAppRead, bpf.NFSProgIotAppReadReturn, bpf.NFSProgIotAppEnterIocb),
		call("nfs_file_write", bpf.NFSProgIotAppWrite, bpf.NFSProgIotAppWriteReturn, bpf.NFSProgIotAppEnterIocb),
	}
	// Until 6.4 there is none, and splice(2) and sendfile(2) go through nfs_file_read.
	if splice := "nfs_file_splice_read"; haveType[*btf.Func](types, splice) {
		signals = append(signals, call(splice, bpf.NFSProgIotAppSplice, bpf.NFSProgIotAppReadReturn, bpf.NFSProgIotAppEnterFile))
	}
	return signals
}

// nfsIdle tells whether nothing is mounted: nobody holds a reference on the module
// except our own hooks and the modules that depend on it.
func nfsIdle(o *object) bool {
	own, watched := 0, false
	for _, a := range o.hooks {
		switch {
		case a.kind.pinnedByProgram():
			return false
		case a.target == nfsMountFunction:
			watched = true
		case a.link != nil && a.kind.pins() && nfsModuleTracepoints[a.target]:
			own++
		}
	}
	users, ok := moduleUsers(sysfs, "nfs")
	return ok && watched && users <= own
}

// nfsModuleTracepoints are our tracepoints in module nfs, not in sunrpc.
var nfsModuleTracepoints = map[string]bool{
	"nfs_refresh_inode_enter": true, "nfs_readpage_done": true, "nfs_writeback_done": true, "nfs_commit_done": true,
	"nfs_file_write": true, "nfs_initiate_read": true, "nfs_initiate_write": true, "nfs_initiate_commit": true,
}

// haveType tells whether any of the specs has a type of that kind and name. A
// module may have a type several times.
func haveType[T btf.Type](specs []*btf.Spec, name string) bool {
	for _, s := range specs {
		found, err := s.AnyTypesByName(name)
		for _, t := range found {
			if _, ok := t.(T); ok && err == nil {
				return true
			}
		}
	}
	return false
}

// pagesNameOwners tells whether struct page has a plain pointer to its memory
// cgroup. It has one before 5.11, the first kernel with type information for modules.
func (c *loader) pagesNameOwners() bool {
	var page *btf.Struct
	if err := c.types.TypeByName("page", &page); err != nil {
		return false
	}
	return hasMember(page, "mem_cgroup")
}

// hasMember looks for a member also in unnamed structs and unions.
func hasMember(t btf.Type, name string) bool {
	var members []btf.Member
	switch v := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = v.Members
	case *btf.Union:
		members = v.Members
	}
	for _, m := range members {
		if m.Name == name || m.Name == "" && hasMember(m.Type, name) {
			return true
		}
	}
	return false
}
