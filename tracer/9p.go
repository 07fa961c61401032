package tracer

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// p9Module is the file system; the messages are made by 9pnet, on which it depends.
const p9Module = "9p"

// plan9P looks at this kernel's 9p client.
func plan9P(c *loader, future bool) (*plan, error) {
	if !c.haveFunc("p9_client_write") && !isDir(sysfs+"/module/"+p9Module) && !future {
		return nil, &notLoadedError{p9Module}
	}
	spec, err := c.read(bpf.P9Object(), nil)
	if err != nil {
		return nil, err
	}
	types, sums, err := c.moduleTypes(future, p9Module, "9pnet", "netfs")
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(types), c.types)
	if !haveType[*btf.Struct](all, "v9fs_session_info") {
		// As for NFS: the layout without type information is known of 5.10 alone.
		if !c.pagesNameOwners() {
			return nil, fmt.Errorf("the kernel has no type information for module %q (CONFIG_DEBUG_INFO_BTF_MODULES): %w", p9Module, ErrAbsent)
		}
		if err := spec.Variables[bpf.P9VarFixed9p].Set(true); err != nil {
			return nil, err
		}
	}
	signals := p9Signals(c.opt.App)
	if netfsNamesFiles(all) {
		spec.Maps[bpf.P9MapCallers].MaxEntries = 1
	} else {
		signals = append(p9Callers(), signals...)
	}
	return &plan{spec, signals, ebpf.ProgramOptions{ExtraRelocationTargets: types}, sums}, nil
}

// netfsNamesFiles tells whether 9p's messages belong to requests of netfs, which name their
// files: since 6.8.
func netfsNamesFiles(types []*btf.Spec) bool {
	for _, s := range types {
		found, _ := s.AnyTypesByName("netfs_io_subrequest") // none is an error
		for _, t := range found {
			if hasMember(t, "io_iter") {
				return true
			}
		}
	}
	return false
}

// p9Signals lists the hooks of 9p: ends before beginnings, so that no message begins and
// ends unseen while we attach. All are kprobes if possible: a tracepoint of 9pnet keeps the
// module from being unloaded.
func p9Signals(app bool) []signal {
	optional := func(target, program, text string) signal {
		return signal{
			hooks:    []hook{{kind: kprobe, target: target, program: program}},
			optional: Limitation{Text: text, Remedy: needsKprobes},
		}
	}
	done := func(target, program, entry string) signal {
		return signal{hooks: []hook{{kind: kretprobe, target: target, program: program, entry: entry, active: nfsCallsAtOnce}}}
	}
	messages := optional("p9_client_prepare_req", bpf.P9ProgIotP9Prepare, "operations on 9p are not counted, only bytes")
	messages.hooks[0].module = "9pnet"
	messages.hooks = append(messages.hooks, hook{
		kind: rawTracepoint, target: "9p_client_req", program: bpf.P9ProgIotP9Request,
		limitation: Limitation{Text: "module 9pnet cannot be unloaded while it is traced", Remedy: needsKprobes},
	})
	signals := []signal{
		optional("v9fs_fid_lookup", bpf.P9ProgIotP9Lookup, "some requests and metadata operations on 9p are not split by mount"),
		messages,
		done("p9_client_write", bpf.P9ProgIotP9WriteDone, bpf.P9ProgIotP9Write),
		done("p9_client_read_once", bpf.P9ProgIotP9ReadDone, bpf.P9ProgIotP9Read),
	}
	if !app {
		return signals
	}
	call := func(target, program string) signal {
		return signal{
			hooks: []hook{{
				kind: kretprobe, target: target, program: program, entry: bpf.P9ProgIotP9AppEnter, active: nfsCallsAtOnce,
				limitation: Limitation{Text: "the application level (--level app) leaves out mapped memory and splice on 9p, and before Linux 6.4 mounts with cache=loose or cache=fscache"},
			}},
			optional: Limitation{Text: "the application level (--level app) misses reads or writes on 9p", Remedy: needsKprobes},
		}
	}
	return append(signals, call("v9fs_file_read_iter", bpf.P9ProgIotP9AppRead), call("v9fs_file_write_iter", bpf.P9ProgIotP9AppWrite))
}

// p9Callers lists the hooks that name the file of a message from user memory.
func p9Callers() []signal {
	var signals []signal
	for _, target := range []string{"v9fs_file_read_iter", "v9fs_file_write_iter", "v9fs_direct_IO"} {
		signals = append(signals, signal{
			hooks:    []hook{{kind: kprobe, target: target, program: bpf.P9ProgIotP9Caller, several: true}},
			optional: Limitation{Text: "requests on 9p past the page cache are not all split by mount and file", Remedy: needsKprobes},
		})
	}
	return signals
}
