package tracer

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// functionsOf returns the functions of a program, and those that it calls.
func functionsOf(program asm.Instructions) (has, calls []string) {
	for _, ins := range program {
		if fn := btf.FuncMetadata(&ins); fn != nil {
			has = append(has, fn.Name)
		}
		if ins.IsFunctionCall() {
			calls = append(calls, ins.Reference())
		}
	}
	return has, calls
}

// TestParts: a program without a part has no function of it, and every function that it
// calls; with all parts it is as it was compiled.
func TestParts(t *testing.T) {
	spec, err := bpf.LoadBlock()
	if err != nil {
		t.Fatal(err)
	}
	all := spec.Programs[bpf.BlockProgIotRqIssueBtf].Instructions
	if kept := cut(all, allParts.without()); len(kept) != len(all) {
		t.Errorf("with all parts: %d instructions of %d", len(kept), len(all))
	}
	hops := []string{"iot_follow", "iot_walk_extent", "iot_follow_stripe", "iot_follow_extent", "iot_walk_move", "iot_stripe_turn"}
	journal := []string{"iot_walk_journal", "iot_journal_owner", "iot_journal_deal", "iot_buffer_at"}
	xfs := []string{"iot_xfs_owner", "iot_xfs_deal_log"}
	for _, tt := range []struct {
		parts
		has, not []string
	}{
		{parts{}, []string{"iot_walk_step", "iot_bounced", "iot_folio_owner"}, slices.Concat(hops, journal, xfs)},
		{parts{hops: true}, hops, slices.Concat(journal, xfs)},
		{parts{journals: true}, journal, slices.Concat(hops, xfs)},
		{parts{journals: true, xfs: true}, slices.Concat(journal, xfs), hops},
		{allParts, slices.Concat(hops, journal, xfs), nil},
	} {
		has, calls := functionsOf(cut(all, tt.without()))
		for _, name := range slices.Concat(calls, tt.has) {
			if !slices.Contains(has, name) {
				t.Errorf("%+v: no function %q", tt.parts, name)
			}
		}
		for _, name := range tt.not {
			if slices.Contains(has, name) {
				t.Errorf("%+v: function %q is still there", tt.parts, name)
			}
		}
		if has[0] != bpf.BlockProgIotRqIssueBtf {
			t.Errorf("%+v: begins with %q", tt.parts, has[0])
		}
	}
}
