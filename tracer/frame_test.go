package tracer

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// What the verifier grants a chain of calls: MAX_BPF_STACK and MAX_CALL_FRAMES. Later
// kernels count the frames of global functions apart; 5.10 does not.
const (
	maxStack  = 512
	maxFrames = 8
)

// frame is how many bytes of stack a function uses at most: each frame has a multiple of
// 32, and at least 32 (check_max_stack_depth in kernel/bpf/verifier.c).
func frame(body asm.Instructions) int {
	deepest := 1
	for _, ins := range body {
		at := 0
		switch class := ins.OpCode.Class(); {
		case class.IsLoad() && ins.Src == asm.RFP, class.IsStore() && ins.Dst == asm.RFP:
			at = int(ins.Offset)
		case class.IsALU() && ins.OpCode.ALUOp() == asm.Add && ins.OpCode.Source() == asm.ImmSource && ins.Constant >= -maxStack:
			at = int(ins.Constant) // of a copy of the frame pointer, or of a number that is negative
		}
		deepest = max(deepest, -at)
	}
	return (deepest + 31) / 32 * 32
}

// TestFrames: no chain of calls needs more stack, or is longer, than 5.10 allows. There a
// program that does is refused; this kernel may not notice.
func TestFrames(t *testing.T) {
	for _, load := range []func() (*ebpf.CollectionSpec, error){bpf.LoadCore, bpf.LoadBlock, bpf.LoadNFS, bpf.LoadFUSE, bpf.LoadSMB, bpf.LoadP9, bpf.LoadCeph, bpf.LoadNFSD, bpf.LoadNames, bpf.LoadVXLAN} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, program := range spec.Programs {
			bodies := map[string]asm.Instructions{}
			at := ""
			for _, ins := range program.Instructions {
				if fn := btf.FuncMetadata(&ins); fn != nil {
					at = fn.Name
				}
				bodies[at] = append(bodies[at], ins)
			}
			known := map[string][]string{}
			bytes := func(chain []string) (sum int) {
				for _, f := range chain {
					sum += frame(bodies[f])
				}
				return sum
			}
			// deepest and longest chain of calls that begin in a function
			var deepest, longest func(string) []string
			chain := func(better func(a, b []string) bool, from func(string) []string, kind string) func(string) []string {
				return func(f string) []string {
					if c, ok := known[kind+f]; ok {
						return c
					}
					var best []string
					for _, ins := range bodies[f] {
						if ins.IsFunctionCall() {
							if c := from(ins.Reference()); better(c, best) {
								best = c
							}
						}
					}
					known[kind+f] = append([]string{f}, best...)
					return known[kind+f]
				}
			}
			deepest = chain(func(a, b []string) bool { return bytes(a) > bytes(b) }, func(f string) []string { return deepest(f) }, "stack ")
			longest = chain(func(a, b []string) bool { return len(a) > len(b) }, func(f string) []string { return longest(f) }, "calls ")
			first := btf.FuncMetadata(&program.Instructions[0]).Name
			if c := deepest(first); bytes(c) > maxStack {
				t.Errorf("%s needs %d bytes of stack, of %d: %s", name, bytes(c), maxStack, strings.Join(c, ", "))
			}
			if c := longest(first); len(c) > maxFrames {
				t.Errorf("%s calls %d functions deep, of %d: %s", name, len(c), maxFrames, strings.Join(c, ", "))
			}
			if first == bpf.BlockProgIotRqIssueBtf && !slices.Contains(deepest(first), "iot_walk_step") {
				t.Errorf("the deepest calls of %s are %q: this test does not see calls", first, deepest(first))
			}
		}
	}
}
