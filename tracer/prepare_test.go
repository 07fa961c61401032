package tracer

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
)

// countingProgram loads a program for a raw tracepoint that counts its runs.
func countingProgram(t *testing.T, calls *ebpf.Map) *ebpf.Program {
	t.Helper()
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
	return prog
}

func counter(t *testing.T) *ebpf.Map {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatalf("needs root: %v", err)
	}
	t.Cleanup(func() { calls.Close() })
	return calls
}

// TestPrepared attaches what was prepared: of each signal the first way that the
// kernel accepts, the limitations of what it does not, and what is left for later.
// Then it attaches the same programs once more, as when a module is loaded again.
func TestPrepared(t *testing.T) {
	c, d := &core{log: slog.New(slog.DiscardHandler)}, descriptor{modules: []string{"none"}}
	calls := counter(t)
	way := func(target, limitation string) []attached {
		return []attached{{hook: hook{kind: rawTracepoint, target: target, limitation: Limitation{Text: limitation}}, program: countingProgram(t, calls)}}
	}
	p := &prepared{object: &object{}, ready: []readied{
		{ways: [][]attached{way("no_such_tracepoint", "never"), way("sys_enter", "second choice"), way("sys_exit", "never")}},
		{signal: signal{optional: Limitation{Text: "not there"}}, ways: [][]attached{way("no_such_tracepoint", "never")}},
		{signal: signal{hooks: []hook{{kind: fentry, target: "later"}}}, ways: [][]attached{way("no_such_tracepoint", "never")}, late: true},
	}}
	o, late, err := p.attach()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { o.Close() }()
	if len(late) != 1 || late[0].hooks[0].target != "later" {
		t.Errorf("left for later: %v", late)
	}
	if len(o.hooks) != 1 || o.hooks[0].target != "sys_enter" {
		t.Fatalf("attached: %v", o.hooks)
	}
	if want := []Limitation{{Text: "second choice"}, {Text: "not there"}}; !slices.Equal(o.limitations, want) {
		t.Errorf("limitations: %q, want %q", o.limitations, want)
	}
	for round := range 3 {
		var n uint64
		if err := calls.Lookup(uint32(0), &n); err != nil || n == 0 {
			t.Fatalf("round %d: %d runs, %v", round, n, err)
		}
		again := c.keepPrepared(d, o)
		if again == nil {
			t.Fatalf("round %d: cannot be attached again", round)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if err := calls.Update(uint32(0), uint64(0), ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
		if err := calls.Lookup(uint32(0), &n); err != nil || n != 0 {
			t.Fatalf("round %d: detached, it ran %d times, %v", round, n, err)
		}
		if o, _, err = again.attach(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPreparedFails holds that nothing stays attached when a signal that is needed
// cannot be had.
func TestPreparedFails(t *testing.T) {
	calls := counter(t)
	p := &prepared{object: &object{}, ready: []readied{
		{ways: [][]attached{{{hook: hook{kind: rawTracepoint, target: "sys_enter"}, program: countingProgram(t, calls)}}}},
		{ways: [][]attached{{{hook: hook{kind: rawTracepoint, target: "no_such_tracepoint"}, program: countingProgram(t, calls)}}}},
	}}
	if o, _, err := p.attach(); err == nil {
		o.Close()
		t.Fatal("attached")
	}
	if err := calls.Update(uint32(0), uint64(0), ebpf.UpdateAny); err != nil {
		t.Fatal(err)
	}
	var n uint64
	if err := calls.Lookup(uint32(0), &n); err != nil || n != 0 {
		t.Errorf("it still runs: %d, %v", n, err)
	}
}

// TestKeepPreparedRefuses holds that an object is not kept if one of its programs
// is bound to the module that was unloaded.
func TestKeepPreparedRefuses(t *testing.T) {
	o := &object{hooks: []attached{{hook: hook{kind: kprobe}}, {hook: hook{kind: fexit}}}}
	c, d := &core{log: slog.New(slog.DiscardHandler)}, descriptor{modules: []string{"none"}}
	if c.keepPrepared(d, o) != nil {
		t.Error("a program at fexit cannot be used for another module")
	}
	if len(o.hooks) != 2 {
		t.Error("what is not kept is to be closed with the object")
	}
}

// TestDetachSuspended ends a tracer with a suspended source.
func TestDetachSuspended(t *testing.T) {
	calls := counter(t)
	prog := countingProgram(t, calls)
	hk := hook{kind: rawTracepoint, target: "sys_enter"}
	l, err := hk.link(prog)
	if err != nil {
		t.Fatal(err)
	}
	o := &object{hooks: []attached{{hook: hk, program: prog, link: l}}}
	if err := o.suspend(); err != nil {
		t.Fatal(err)
	}
	tr := &Tracer{objects: map[string]*object{"nfs": o}}
	tr.detach()
	o.Close()
}
