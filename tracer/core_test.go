package tracer

import "testing"

// TestLatencyEntries: four buckets for each group, within bounds.
func TestLatencyEntries(t *testing.T) {
	for groups, entries := range map[uint32]uint32{1: 4, 16384: 65536, 1 << 22: maxLatencies} {
		if got := latencyEntries(groups); got != entries {
			t.Errorf("%d groups: %d entries, want %d", groups, got, entries)
		}
	}
}
