package tracer

import (
	"slices"
	"testing"
)

// TestSteps: what is still being loaded is told at each change, and nothing at the end.
func TestSteps(t *testing.T) {
	var told []string
	s := steps{say: func(step string) { told = append(told, step) }, names: []string{"core", "block", "fuse"}}
	s.tell()
	s.done("block")
	s.done("core")
	s.done("fuse")
	want := []string{
		"the kernel checks the programs of core, block, fuse",
		"the kernel checks the programs of core, fuse",
		"the kernel checks the programs of fuse",
	}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
