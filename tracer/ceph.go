package tracer

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// cephName is the source's name and that of the file system's module.
const cephName = "ceph"

// planCeph looks at this kernel's CephFS client.
func planCeph(c *loader, future bool) (*plan, error) {
	if !c.haveFunc("ceph_mdsc_submit_request") && !isDir(sysfs+"/module/"+cephName) && !future {
		return nil, &notLoadedError{cephName}
	}
	spec, err := c.read(bpf.CephObject(), nil)
	if err != nil {
		return nil, err
	}
	types, sums, err := c.moduleTypes(future, cephName, "libceph")
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(types), c.types)
	if !haveType[*btf.Struct](all, "ceph_osd_request") {
		// As for NFS: the layout without type information is known of 5.10 alone.
		if !c.pagesNameOwners() {
			return nil, fmt.Errorf("the kernel has no type information for module %q (CONFIG_DEBUG_INFO_BTF_MODULES): %w", "libceph", ErrAbsent)
		}
		if err := spec.Variables[bpf.CephVarFixedCeph].Set(true); err != nil {
			return nil, err
		}
	}
	return &plan{spec, cephSignals(c.opt.App), ebpf.ProgramOptions{ExtraRelocationTargets: types}, sums}, nil
}

// cephSignals lists the hooks: the end of requests before their beginning, so that none
// begins and ends unseen while we attach.
func cephSignals(app bool) []signal {
	probe := func(target, module, program string) hook {
		return hook{kind: kprobe, target: target, module: module, program: program}
	}
	signals := []signal{
		{hooks: []hook{probe("__complete_request", "libceph", bpf.CephProgIotCephDone)}},
		{hooks: []hook{probe("ceph_osdc_start_request", "libceph", bpf.CephProgIotCephStart)}},
		{
			hooks:    []hook{probe("ceph_mdsc_submit_request", cephName, bpf.CephProgIotCephSubmit)},
			optional: Limitation{Text: "requests to the metadata servers of Ceph are not counted", Remedy: needsKprobes},
		},
	}
	if !app {
		return signals
	}
	call := func(target, program string) signal {
		return signal{
			hooks: []hook{{
				kind: kretprobe, target: target, program: program, entry: bpf.CephProgIotCephAppEnter, active: nfsCallsAtOnce,
				limitation: Limitation{Text: "the application level (--level app) leaves out mapped memory and splice on CephFS"},
			}},
			optional: Limitation{Text: "the application level (--level app) misses reads or writes on CephFS", Remedy: needsKprobes},
		}
	}
	return append(signals, call("ceph_read_iter", bpf.CephProgIotCephAppRead), call("ceph_write_iter", bpf.CephProgIotCephAppWrite))
}
