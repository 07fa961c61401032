package tracer

import (
	"net/netip"
	"testing"
)

// TestClientOwners: no cgroup is a client, and the number of a client is its address.
func TestClientOwners(t *testing.T) {
	tr := &Tracer{}
	for _, cgroup := range []uint64{CgroupNone, 1, 2, 1<<32 | 5, 1<<59 | 1, CgroupKernel, CgroupOther} {
		if IsClient(cgroup) || tr.Client(cgroup).IsValid() {
			t.Errorf("cgroup %#x is a client", cgroup)
		}
	}
	// In the byte order of little-endian kernels, as the programs read it: 10.1.0.2.
	const owner = 1<<60 | 0x0200010a
	if got := tr.Client(owner); !IsClient(owner) || got != netip.MustParseAddr("10.1.0.2") {
		t.Errorf("client %#x is %v", uint64(owner), got)
	}
}

// TestExportNumbers: 0 means that the export is not known.
func TestExportNumbers(t *testing.T) {
	seen := map[Export]bool{}
	for dev := range Dev(32) {
		for _, ino := range []uint64{2, 5, 128, 256, 1 << 33} {
			e := ExportOf(dev<<20|1, ino)
			if e == 0 || seen[e] {
				t.Errorf("export %d:%d has the number %d, which is 0 or another one's", dev, ino, e)
			}
			seen[e] = true
		}
	}
}
