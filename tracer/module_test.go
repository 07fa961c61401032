package tracer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
)

// sysModules makes a sysfs with modules: name to refcnt and holders.
func sysModules(t *testing.T, modules map[string][]string) string {
	t.Helper()
	root := t.TempDir()
	for name, m := range modules {
		dir := filepath.Join(root, "module", name)
		if err := os.MkdirAll(filepath.Join(dir, "holders"), 0o755); err != nil {
			t.Fatal(err)
		}
		if m[0] != "" {
			if err := os.WriteFile(filepath.Join(dir, "refcnt"), []byte(m[0]+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range m[1:] {
			if err := os.Symlink("../../"+h, filepath.Join(dir, "holders", h)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestModuleUsers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		modules map[string][]string
		users   int
		ok      bool
	}{
		{"absent", map[string][]string{}, 0, false},
		{"built in", map[string][]string{"nfs": {""}}, 0, false},
		{"loaded alone", map[string][]string{"nfs": {"0"}}, 0, true},
		{"our links", map[string][]string{"nfs": {"7"}}, 7, true},
		{"helpers, no mount", map[string][]string{"nfs": {"9", "nfsv3", "nfsv4"}, "nfsv3": {"0"}, "nfsv4": {"0"}}, 7, true},
		{"a mount of version 3", map[string][]string{"nfs": {"10", "nfsv3", "nfsv4"}, "nfsv3": {"1"}, "nfsv4": {"0"}}, 9, true},
		{"a helper's helper", map[string][]string{"nfs": {"1", "nfsv4"}, "nfsv4": {"1", "nfs_layout_nfsv41_files"}, "nfs_layout_nfsv41_files": {"0"}}, 0, true},
		{"a user behind a helper", map[string][]string{"nfs": {"1", "nfsv4"}, "nfsv4": {"1", "nfs_layout_nfsv41_files"}, "nfs_layout_nfsv41_files": {"1"}}, 1, true},
		{"no number", map[string][]string{"nfs": {"-"}}, 0, false},
		{"a helper that went", map[string][]string{"nfs": {"1", "nfsv4"}}, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			users, ok := moduleUsers(sysModules(t, tc.modules), "nfs")
			if users != tc.users || ok != tc.ok {
				t.Errorf("moduleUsers: %d, %v, want %d, %v", users, ok, tc.users, tc.ok)
			}
		})
	}
}

// TestRestAndWake takes a program off its raw tracepoint and puts it back.
func TestRestAndWake(t *testing.T) {
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatalf("needs root: %v", err)
	}
	defer calls.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.RawTracepoint, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, calls.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	hk := hook{kind: rawTracepoint, target: "sys_enter"}
	l, err := hk.link(prog)
	if err != nil {
		t.Fatal(err)
	}
	o := &object{hooks: []attached{{hook: hk, program: prog, link: l}}}
	defer o.Close()
	counted := func() bool {
		var before, after uint64
		if err := calls.Lookup(uint32(0), &before); err != nil {
			t.Fatal(err)
		}
		os.Getppid()
		if err := calls.Lookup(uint32(0), &after); err != nil {
			t.Fatal(err)
		}
		return after > before
	}
	if !counted() {
		t.Fatal("the program does not run when attached")
	}
	if err := o.rest(); err != nil {
		t.Fatal(err)
	}
	if !o.resting || counted() {
		t.Errorf("resting %v, and the program runs: %v", o.resting, counted())
	}
	if err := o.wake(); err != nil {
		t.Fatal(err)
	}
	if o.resting || !counted() {
		t.Errorf("awake, resting %v, and the program runs: %v", o.resting, counted())
	}
}

func TestRestKeepsKprobes(t *testing.T) {
	for kind, want := range map[hookKind]bool{
		rawTracepoint: true, btfTracepoint: true, tracepoint: true, fentry: true, fexit: true, kprobe: false, kretprobe: false,
	} {
		if got := kind.pins(); got != want {
			t.Errorf("%s pins its module: %v, want %v", kind, got, want)
		}
	}
}
