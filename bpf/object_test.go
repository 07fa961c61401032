package bpf

import (
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// TestRead: a program is the same when the others of its object are not read, and so are
// maps and variables.
func TestRead(t *testing.T) {
	for _, tc := range []struct {
		object Object
		all    func() (*ebpf.CollectionSpec, error)
	}{
		{CoreObject(), LoadCore}, {BlockObject(), LoadBlock}, {NFSObject(), LoadNFS}, {FUSEObject(), LoadFUSE}, {SMBObject(), LoadSMB},
		{P9Object(), LoadP9}, {CephObject(), LoadCeph}, {NFSDObject(), LoadNFSD}, {NamesObject(), LoadNames},
	} {
		t.Run(tc.object.name, func(t *testing.T) {
			all, err := tc.all()
			if err != nil {
				t.Fatal(err)
			}
			read := func(lines bool, programs ...string) *ebpf.CollectionSpec {
				t.Helper()
				spec, err := tc.object.Read(lines, programs...)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := slices.Sorted(maps.Keys(spec.Maps)), slices.Sorted(maps.Keys(all.Maps)); !slices.Equal(got, want) {
					t.Errorf("maps %q, want %q", got, want)
				}
				if got, want := slices.Sorted(maps.Keys(spec.Variables)), slices.Sorted(maps.Keys(all.Variables)); !slices.Equal(got, want) {
					t.Errorf("variables %q, want %q", got, want)
				}
				return spec
			}
			whole := read(true)
			if len(whole.Programs) != len(all.Programs) {
				t.Errorf("%d programs of %d", len(whole.Programs), len(all.Programs))
			}
			for name, p := range whole.Programs {
				if _, ok := p.Instructions[0].Source().(*btf.Line); !ok {
					t.Errorf("%s has no lines", name)
				}
			}
			fewer := false
			for name, want := range all.Programs {
				part := read(false, name)
				fewer = fewer || len(part.Programs) < len(all.Programs)
				got := part.Programs[name]
				if got == nil {
					t.Fatalf("no program %q", name)
				}
				if !slices.EqualFunc(got.Instructions, want.Instructions, same) {
					t.Errorf("%s has other instructions", name)
				}
				for i := range got.Instructions {
					ins, fn := &got.Instructions[i], btf.FuncMetadata(&got.Instructions[i])
					if fn == nil && ins.Source() != nil || fn != nil && ins.Source() != asm.Comment(fn.Name) {
						t.Fatalf("instruction %d of %s has the line %v", i, name, ins.Source())
					}
				}
			}
			if len(all.Programs) > 1 && !fewer {
				t.Error("every program came with all others")
			}
		})
	}
}

// same tells whether two instructions do the same, whatever is known of their source.
func same(a, b asm.Instruction) bool {
	return a.OpCode == b.OpCode && a.Dst == b.Dst && a.Src == b.Src && a.Offset == b.Offset && a.Constant == b.Constant &&
		a.Symbol() == b.Symbol() && a.Reference() == b.Reference()
}
