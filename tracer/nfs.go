package tracer

import (
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// planNFS looks at this kernel's NFS client.
func planNFS(h *host, future bool) (*plan, error) {
	if _, err := os.Stat(sysfs + "/module/nfs"); err != nil && !future { // it has parameters: also there when built in
		return nil, &notLoadedError{"nfs"}
	}
	spec, err := bpf.LoadNFS()
	if err != nil {
		return nil, fmt.Errorf("reading the nfs object: %w", err)
	}
	types, sums, err := h.moduleTypes(future, "nfs", "sunrpc")
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(types), h.types)
	if !haveType[*btf.Struct](all, "nfs_page") {
		// Before 5.11 no kernel had type information for modules. Later ones
		// without it were built so, and what they have in memory is not known.
		if !h.pagesNameOwners() {
			return nil, fmt.Errorf("the kernel has no type information for module %q (CONFIG_DEBUG_INFO_BTF_MODULES): %w", "nfs", ErrAbsent)
		}
		if err := spec.Variables[bpf.NFSVarFixedNfsPage].Set(true); err != nil {
			return nil, err
		}
	}
	module := future || isDir(sysfs+"/module/nfs/holders") // what is built in has only parameters
	if err := spec.Variables[bpf.NFSVarFromFunctions].Set(module); err != nil {
		return nil, err
	}
	return &plan{spec, nfsSignals(h.opt, module, all), ebpf.ProgramOptions{ExtraRelocationTargets: types}, sums}, nil
}

// nfsSignals lists the hooks. Those that finish something come before those that
// begin it, so that nothing begins and ends unseen in between.
func nfsSignals(opt Options, module bool, types []*btf.Spec) []signal {
	raw := func(target, program string) []hook {
		return []hook{{kind: rawTracepoint, target: target, program: program}}
	}
	// A second program on the same tracepoint, which stands in where the first was
	// skipped. It has to be behind it: programs run in the order they were attached.
	again := func(target, program string) signal {
		return signal{hooks: raw(target, program), optional: nfsSkippedCost}
	}
	signals := []signal{
		{hooks: raw("nfs_refresh_inode_enter", bpf.NFSProgIotRefreshInode), optional: "metadata operations are not told apart by mount"},
		{hooks: raw("rpc_task_begin", bpf.NFSProgIotRpcTaskBegin), optional: "owners of asynchronous metadata operations are not known"},
		again("rpc_task_begin", bpf.NFSProgIotRpcTaskBeginAgain),
		{hooks: raw("rpc_stats_latency", bpf.NFSProgIotRpcStats), optional: "metadata operations and retransmissions are not counted"},
		again("rpc_stats_latency", bpf.NFSProgIotRpcStatsAgain),
		{hooks: raw("nfs_readpage_done", bpf.NFSProgIotReadpageDone)},
		again("nfs_readpage_done", bpf.NFSProgIotReadpageDoneAgain),
	}
	if opt.Latency {
		signals = append(signals,
			signal{hooks: raw("nfs_writeback_done", bpf.NFSProgIotWritebackDone)},
			again("nfs_writeback_done", bpf.NFSProgIotWritebackDoneAgain),
			signal{hooks: raw("nfs_commit_done", bpf.NFSProgIotCommitDone)},
			again("nfs_commit_done", bpf.NFSProgIotCommitDoneAgain))
	}
	if opt.App {
		signals = append(signals, nfsAppSignals(types)...)
	}
	signals = append(signals,
		signal{hooks: []hook{
			{kind: rawTracepoint, target: "nfs_file_write", program: bpf.NFSProgIotWriterRaw}, // since 6.18
			{kind: kprobe, target: "nfs_file_write", program: bpf.NFSProgIotWriterKprobe},
			{kind: fentry, target: "nfs_file_write", program: bpf.NFSProgIotWriterFentry},
		}, optional: "owners of delayed writes to NFS are those of the pages"},
		// Memory that was mapped before we came, or inherited.
		signal{hooks: []hook{
			{kind: kprobe, target: "nfs_vm_page_mkwrite", program: bpf.NFSProgIotWriterKprobe},
			{kind: fentry, target: "nfs_vm_page_mkwrite", program: bpf.NFSProgIotWriterFentry},
		}, optional: "owners of delayed writes to mapped NFS files are those of the pages"},
	)
	if module {
		// These see what the tracepoints do not: see iot_from_function in bpf/nfs.bpf.c.
		for _, h := range []hook{
			{kind: kprobe, target: "nfs_readpage_result", program: bpf.NFSProgIotFunctionReadDone, beside: true},
			{kind: kprobe, target: "nfs_initiate_read", program: bpf.NFSProgIotFunctionRead, beside: true},
			{kind: kprobe, target: "nfs_initiate_write", program: bpf.NFSProgIotFunctionWrite, beside: true},
			{kind: kprobe, target: "nfs_initiate_commit", program: bpf.NFSProgIotFunctionCommit, beside: true},
		} {
			signals = append(signals, signal{hooks: []hook{h}, optional: "requests to NFS servers may be missed right after the module was loaded"})
		}
	}
	return append(signals,
		signal{hooks: raw("nfs_initiate_read", bpf.NFSProgIotInitiateRead)},
		again("nfs_initiate_read", bpf.NFSProgIotInitiateReadAgain),
		signal{hooks: raw("nfs_initiate_write", bpf.NFSProgIotInitiateWrite)},
		again("nfs_initiate_write", bpf.NFSProgIotInitiateWriteAgain),
		signal{hooks: raw("nfs_initiate_commit", bpf.NFSProgIotInitiateCommit)},
		again("nfs_initiate_commit", bpf.NFSProgIotInitiateCommitAgain),
		signal{hooks: []hook{
			{kind: kprobe, target: nfsMountFunction, program: bpf.NFSProgIotGetTree},
		}, optional: "module nfs cannot be unloaded while it is traced"},
	)
}

const nfsSkippedCost = "requests to NFS servers are missed whose program the kernel skipped"

// nfsMountFunction is called for every mount, of all versions.
const nfsMountFunction = "nfs_get_tree_common"

// nfsCallsAtOnce is how many calls of one function can be waited for by a
// kretprobe: each blocks for as long as the server takes.
const nfsCallsAtOnce = 4096

// nfsAppSignals lists the hooks for what programs read and wrote.
func nfsAppSignals(types []*btf.Spec) []signal {
	const cost = "mapped memory and asynchronous direct I/O on NFS are not counted at application level"
	call := func(target, exit, ret, entry string) signal {
		return signal{
			hooks: []hook{
				{kind: fexit, target: target, program: exit, cost: cost},
				{kind: kretprobe, target: target, program: ret, entry: entry, active: nfsCallsAtOnce, cost: cost},
			},
			optional: "reads and writes of programs on NFS are not all counted at application level",
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

// nfsIdle tells whether nothing is mounted: no reference on the module is there
// but our own and those of its helpers.
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

// nfsModuleTracepoints are those of nfs itself, not of sunrpc.
var nfsModuleTracepoints = map[string]bool{
	"nfs_refresh_inode_enter": true, "nfs_readpage_done": true, "nfs_writeback_done": true, "nfs_commit_done": true,
	"nfs_file_write": true, "nfs_initiate_read": true, "nfs_initiate_write": true, "nfs_initiate_commit": true,
}

// haveType tells whether any of the specs has a type of that kind and name. A
// module may repeat a type several times.
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

// pagesNameOwners tells whether struct page points to its memory cgroup itself,
// as before 5.11, the first kernel with type information for modules.
func (h *host) pagesNameOwners() bool {
	var page *btf.Struct
	if err := h.types.TypeByName("page", &page); err != nil {
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
