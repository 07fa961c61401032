package tracer

import (
	"os"
	"path/filepath"
	"testing"
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

// TestSuspendAndResume takes a program off its raw tracepoint and puts it back.
func TestSuspendAndResume(t *testing.T) {
	calls := counter(t)
	prog := countingProgram(t, calls)
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
	if err := o.suspend(); err != nil {
		t.Fatal(err)
	}
	if !o.suspended || counted() {
		t.Errorf("suspended %v, and the program runs: %v", o.suspended, counted())
	}
	if err := o.resume(); err != nil {
		t.Fatal(err)
	}
	if o.suspended || !counted() {
		t.Errorf("resumed, suspended %v, and the program runs: %v", o.suspended, counted())
	}
}

func TestSuspendKeepsKprobes(t *testing.T) {
	for kind, want := range map[hookKind]bool{
		rawTracepoint: true, btfTracepoint: true, tracepoint: true, fentry: true, fexit: true, kprobe: false, kretprobe: false,
	} {
		if got := kind.pins(); got != want {
			t.Errorf("%s pins its module: %v, want %v", kind, got, want)
		}
	}
}
