package tracer

import (
	"slices"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

func targets(signals []signal) []string {
	var list []string
	for _, s := range signals {
		list = append(list, s.hooks[0].target)
	}
	return list
}

// TestNFSSignalOrder holds that nothing can begin and end unseen while hooks are
// attached one by one: what notes a request's end is there before what notes its
// beginning, and what names owners before what asks for them.
func TestNFSSignalOrder(t *testing.T) {
	got := targets(nfsSignals(Options{Latency: true}, true, false, nil))
	for _, order := range [][2]string{
		{"nfs_readpage_done", "nfs_initiate_read"},
		{"nfs_writeback_done", "nfs_initiate_write"},
		{"nfs_commit_done", "nfs_initiate_commit"},
		{"nfs_file_write", "nfs_initiate_write"},
		{"nfs_vm_page_mkwrite", "nfs_initiate_write"},
		{"rpc_task_begin", "rpc_stats_latency"},
	} {
		first, second := slices.Index(got, order[0]), slices.Index(got, order[1])
		if first < 0 || second < 0 || first > second {
			t.Errorf("%q is hook %d, %q is hook %d", order[0], first, order[1], second)
		}
	}
}

// TestNFSRedundant holds that redundant programs are attached only where the kernel can
// skip the first one, and each behind it.
func TestNFSRedundant(t *testing.T) {
	for _, preempts := range []bool{false, true} {
		seen, second := map[string]bool{}, 0
		for _, s := range nfsSignals(Options{Latency: true}, preempts, true, nil) {
			h := s.hooks[0]
			if h.redundant {
				second++
				if !seen[h.target] {
					t.Errorf("%q: the redundant program is attached first", h.target)
				}
			}
			seen[h.target] = true
		}
		if want := map[bool]int{true: 8}[preempts]; second != want {
			t.Errorf("%d redundant programs, want %d", second, want)
		}
	}
}

// TestNFSLatencyOff holds that without latencies no hook is attached for them. Reads
// are counted when they come back in any case.
func TestNFSLatencyOff(t *testing.T) {
	got := targets(nfsSignals(Options{}, true, false, nil))
	for _, name := range []string{"nfs_writeback_done", "nfs_commit_done"} {
		if slices.Contains(got, name) {
			t.Errorf("%q is attached without latency", name)
		}
	}
	if !slices.Contains(got, "nfs_readpage_done") {
		t.Error("reads are not counted")
	}
}

// TestNFSPrograms holds that every program that a signal names is in the object,
// and that no program of the object is left unused.
func TestNFSPrograms(t *testing.T) {
	spec, err := bpf.LoadNFS()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{bpf.NFSProgIotAppSplice: true, bpf.NFSProgIotAppEnterFile: true} // only where the module has the function
	for _, s := range nfsSignals(Options{Latency: true, App: true}, true, true, nil) {
		for _, h := range s.hooks {
			for _, name := range []string{h.program, h.entry} {
				if name == "" {
					continue
				}
				used[name] = true
				if spec.Programs[name] == nil {
					t.Errorf("%s: no program %q", h, name)
				}
			}
		}
	}
	for name := range spec.Programs {
		if !used[name] {
			t.Errorf("program %q is never attached", name)
		}
	}
}

// TestNFSIdle holds that a source is never suspended if it could not be resumed, or if
// its programs pin the module themselves.
func TestNFSIdle(t *testing.T) {
	for name, o := range map[string]*object{
		"no way to notice a mount": {hooks: []attached{{hook: hook{kind: rawTracepoint, target: "nfs_initiate_write"}}}},
		"fexit pins by itself": {hooks: []attached{
			{hook: hook{kind: kprobe, target: nfsMountFunction}}, {hook: hook{kind: fexit, target: "nfs_file_read"}},
		}},
	} {
		if nfsIdle(o) {
			t.Errorf("%s: idle", name)
		}
	}
}
