package tracer

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

func issued(id uint64, dev Dev, op Op, state uint32) bpf.BlockFlight {
	r := bpf.BlockFlight{Id: id, State: state}
	r.Usage.Dev, r.Usage.Op = uint32(dev), uint8(op)
	return r
}

// TestNeverEnded: a request that is noted at every look, at a device that is idle at
// every look, has ended unseen. Its tag, issued again, is another request.
func TestNeverEnded(t *testing.T) {
	const idle, busy, calms = Dev(7 << 20), Dev(7<<20 | 1), Dev(7<<20 | 2)
	look := 0
	noted := func() (issuedSet, error) {
		look++
		set := issuedSet{
			issued(1, idle, Write, 0):             {},
			issued(2, busy, Write, 0):             {},
			issued(3, calms, Write, 0):            {},
			issued(4, idle, Read, uint32(look)&7): {},
		}
		if look < unseenLooks {
			set[issued(5, idle, Write, 0)] = struct{}{}
		}
		return set, nil
	}
	asked := map[Dev]int{}
	n, err := neverEnded(noted, func(dev Dev) bool {
		asked[dev]++
		return dev == idle || dev == calms && asked[dev] > 1
	})
	if n != 1 || err != nil {
		t.Errorf("%d, %v; want 1", n, err)
	}
	if want := map[Dev]int{idle: unseenLooks, busy: 1, calms: 1}; !maps.Equal(asked, want) {
		t.Errorf("asked about %v, want %v", asked, want)
	}
}

// TestIssuedRequests reads what programs note; it needs root.
func TestIssuedRequests(t *testing.T) {
	counter(t) // raises the limit of locked memory
	spec, err := bpf.LoadBlock()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(spec.Maps[bpf.BlockMapFlights])
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	under, last := issued(8, 1, Write, 2), issued(9, 1, Read, 0)
	for slot, r := range map[uint32]bpf.BlockFlight{
		0: under, m.MaxEntries() - 1: last,
		5: issued(0, 1, Write, 0), 6: issued(10, 1, Write, flightBack), 7: issued(11, 1, Flush, 0),
	} {
		var set bpf.BlockFlightSet
		set.Way[int(slot)%len(set.Way)] = r
		if err := m.Put(slot, set); err != nil {
			t.Fatal(err)
		}
	}
	got, err := issuedRequests(m)
	if want := (issuedSet{under: {}, last: {}}); err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestDeviceIdle(t *testing.T) {
	sys := t.TempDir()
	for dev, files := range map[string][2]string{
		"7:0": {"1\n", "       0        0\n"}, "7:1": {"1\n", "       0        3\n"}, "7:2": {"0\n", "       0        0\n"},
	} {
		dir := filepath.Join(sys, "dev", "block", dev)
		if err := os.MkdirAll(filepath.Join(dir, "queue"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"queue/iostats": files[0], "inflight": files[1]} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for minor, want := range []bool{true, false, false, false} { // idle, busy, not counted, not there
		if got := deviceIdle(sys, Dev(7<<20|minor)); got != want {
			t.Errorf("device 7:%d is idle: %t, want %t", minor, got, want)
		}
	}
}
