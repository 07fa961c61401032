package tracer

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

const sysfs = "/sys"

func notLoaded(module string) error {
	return fmt.Errorf("module %q is not loaded: %w", module, ErrAbsent)
}

// openNFS attaches the nfs source.
func openNFS(h *host) (*object, error) {
	if _, err := os.Stat(sysfs + "/module/nfs"); err != nil { // it has parameters: also there when built in
		return nil, notLoaded("nfs")
	}
	spec, err := bpf.LoadNFS()
	if err != nil {
		return nil, fmt.Errorf("reading the nfs object: %w", err)
	}
	types, err := moduleTypes("nfs", "sunrpc")
	if err != nil {
		return nil, err
	}
	if !haveType[*btf.Struct](append(types, h.types), "nfs_page") {
		// Before 5.11 no kernel had type information for modules. Later ones
		// without it were built so, and what they have in memory is not known.
		if !h.pagesNameOwners() {
			return nil, fmt.Errorf("the kernel has no type information for module %q (CONFIG_DEBUG_INFO_BTF_MODULES): %w", "nfs", ErrAbsent)
		}
		if err := spec.Variables[bpf.NFSVarFixedNfsPage].Set(true); err != nil {
			return nil, err
		}
	}
	return h.load(spec, nfsSignals(h.opt, append(types, h.types)), ebpf.ProgramOptions{ExtraRelocationTargets: types})
}

// nfsSignals lists the hooks. Those that finish something come before those that
// begin it, so that nothing begins and ends unseen in between.
func nfsSignals(opt Options, types []*btf.Spec) []signal {
	raw := func(target, program string) []hook {
		return []hook{{kind: rawTracepoint, target: target, program: program}}
	}
	signals := []signal{
		{hooks: raw("nfs_refresh_inode_enter", bpf.NFSProgIotRefreshInode), optional: "metadata operations are not told apart by mount"},
		{hooks: raw("rpc_task_begin", bpf.NFSProgIotRpcTaskBegin), optional: "owners of asynchronous metadata operations are not known"},
		{hooks: raw("rpc_stats_latency", bpf.NFSProgIotRpcStats), optional: "metadata operations and retransmissions are not counted"},
		{hooks: raw("nfs_readpage_done", bpf.NFSProgIotReadpageDone)},
	}
	if opt.Latency {
		signals = append(signals,
			signal{hooks: raw("nfs_writeback_done", bpf.NFSProgIotWritebackDone)},
			signal{hooks: raw("nfs_commit_done", bpf.NFSProgIotCommitDone)})
	}
	if opt.App {
		signals = append(signals, nfsAppSignals(types)...)
	}
	return append(signals,
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
		// Behind the one that it stands in for: programs run in the order they were attached.
		signal{hooks: raw("nfs_readpage_done", bpf.NFSProgIotReadpageDoneAgain), optional: nfsSkippedCost},
		signal{hooks: raw("nfs_initiate_read", bpf.NFSProgIotInitiateRead)},
		signal{hooks: raw("nfs_initiate_write", bpf.NFSProgIotInitiateWrite)},
		signal{hooks: raw("nfs_initiate_write", bpf.NFSProgIotInitiateWriteAgain), optional: nfsSkippedCost},
		signal{hooks: raw("nfs_initiate_commit", bpf.NFSProgIotInitiateCommit)},
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

// moduleTypes returns the type information of those modules that have any.
func moduleTypes(modules ...string) ([]*btf.Spec, error) {
	var specs []*btf.Spec
	for _, m := range modules {
		spec, err := btf.LoadKernelModuleSpec(m)
		if errors.Is(err, os.ErrNotExist) { // built in, or a kernel before 5.11
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the types of module %q: %w", m, err)
		}
		specs = append(specs, spec)
	}
	return specs, nil
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
