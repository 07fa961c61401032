package tracer

import "testing"

// TestLatencyEntries: four buckets for each group, as far as the memory of all
// CPUs allows.
func TestLatencyEntries(t *testing.T) {
	for _, c := range []struct {
		groups  uint32
		cpus    int
		entries uint32
	}{
		{1, 1, 4},
		{16384, 2, 65536},
		{16384, 32, 65536},
		{16384, 128, 21236},
		{16384, 8192, 4096},
		{1 << 22, 2, 493447},
		{1, 8192, 4},
	} {
		if got := latencyEntries(c.groups, c.cpus); got != c.entries {
			t.Errorf("%d groups, %d CPUs: %d entries, want %d", c.groups, c.cpus, got, c.entries)
		}
	}
}
