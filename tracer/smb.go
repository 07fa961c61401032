package tracer

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// smbModule is the SMB client; the source has its own name, as the protocol has.
const smbModule = "cifs"

// planSMB looks at this kernel's SMB client.
func planSMB(c *loader, future bool) (*plan, error) {
	if !c.haveFunc("smb2_async_writev") && !isDir(sysfs+"/module/"+smbModule) && !future {
		return nil, &notLoadedError{smbModule}
	}
	spec, err := c.read(bpf.SMBObject(), nil)
	if err != nil {
		return nil, err
	}
	types, sums, err := c.moduleTypes(future, smbModule, "netfs")
	if err != nil {
		return nil, err
	}
	extra := ebpf.ProgramOptions{ExtraRelocationTargets: types}
	all := append(slices.Clone(types), c.types)
	if haveType[*btf.Struct](all, "cifs_io_subrequest") { // since 6.10
		return &plan{spec, append(smbSignals(c.preempts()), smbCalls(c.opt.App)...), extra, sums}, nil
	}
	if !haveType[*btf.Struct](all, "cifs_writedata") {
		// As for NFS: the layout without type information is known of 5.10 alone.
		if !c.pagesNameOwners() {
			return nil, fmt.Errorf("the kernel has no type information for module %q (CONFIG_DEBUG_INFO_BTF_MODULES): %w", smbModule, ErrAbsent)
		}
		if err := spec.Variables[bpf.SMBVarFixedCifs].Set(true); err != nil {
			return nil, err
		}
	}
	return &plan{spec, append(smbOldSignals(), smbCalls(c.opt.App)...), extra, sums}, nil
}

// smbSignals lists the hooks of 6.10 and later.
func smbSignals(preempts bool) []signal {
	const target = "netfs_sreq"
	return append([]signal{{hooks: []hook{{kind: rawTracepoint, target: target, program: bpf.SMBProgIotNetfsSreq}}}},
		redundant(preempts, hook{kind: rawTracepoint, target: target, program: bpf.SMBProgIotNetfsSreqRedundant})...)
}

// smbOldSignals lists the hooks before 6.10: ends before beginnings, so that no
// request begins and ends unseen while we attach.
func smbOldSignals() []signal {
	probe := func(program string, targets ...string) signal {
		var s signal
		for _, target := range targets {
			s.hooks = append(s.hooks, hook{kind: kprobe, target: target, program: program})
		}
		return s
	}
	call := func(target, program string, text string) signal {
		return signal{
			hooks:    []hook{{kind: kretprobe, target: target, program: program, entry: bpf.SMBProgIotSmbSyncEnter, active: nfsCallsAtOnce}},
			optional: Limitation{Text: text, Remedy: needsKprobes},
		}
	}
	return []signal{
		probe(bpf.SMBProgIotSmbWriteDone, "cifs_writev_complete"),
		probe(bpf.SMBProgIotSmbWriteDone, "cifs_uncached_writev_complete"),
		probe(bpf.SMBProgIotSmbReadDone, "cifs_readv_complete", "cifs_readahead_complete"), // the latter since 6.3
		probe(bpf.SMBProgIotSmbReadDone, "cifs_uncached_readv_complete"),
		call("smb2_sync_write", bpf.SMBProgIotSmbSyncWriteLeave, "writes of parts of pages to SMB servers are not counted"),
		call("smb2_sync_read", bpf.SMBProgIotSmbSyncReadLeave, "reads of single pages from SMB servers are not counted"),
		probe(bpf.SMBProgIotSmbAsyncRead, "smb2_async_readv"),
		probe(bpf.SMBProgIotSmbAsyncWrite, "smb2_async_writev"),
	}
}

// smbCalls lists the hooks of what has no data, and of the application level. All are
// kprobes: a tracepoint of cifs would keep its module from being unloaded.
func smbCalls(app bool) []signal {
	signals := []signal{{
		hooks: []hook{{
			kind: kprobe, target: "compound_send_recv", program: bpf.SMBProgIotSmbSend,
			limitation: Limitation{Text: "metadata operations on SMB are not split by mount"},
		}},
		optional: Limitation{Text: "metadata operations on SMB are not counted", Remedy: needsKprobes},
	}}
	if !app {
		return signals
	}
	call := func(target, program string) signal {
		return signal{
			hooks: []hook{{
				kind: kretprobe, target: target, program: program, entry: bpf.SMBProgIotSmbAppEnter, active: nfsCallsAtOnce,
				limitation: Limitation{Text: "the application level (--level app) leaves out mapped memory, splice, and SMB mounts with cache=none or cache=loose"},
			}},
			optional: Limitation{Text: "the application level (--level app) misses reads or writes on SMB", Remedy: needsKprobes},
		}
	}
	return append(signals, call("cifs_strict_readv", bpf.SMBProgIotSmbAppRead), call("cifs_strict_writev", bpf.SMBProgIotSmbAppWrite))
}
