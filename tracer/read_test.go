package tracer

import (
	"math/bits"
	"math/rand/v2"
	"testing"
)

// bucketOf is iot_bucket of bpf/account.h in Go.
func bucketOf(ns uint64) uint32 {
	if ns < 4 {
		return uint32(ns)
	}
	log := uint32(bits.Len64(ns) - 1)
	return log<<2 | uint32(ns>>(log-2))&3
}

// TestBuckets: every latency is at most its bucket's bound, above the bound of
// the bucket before, and the bound is at most 25 % too high.
func TestBuckets(t *testing.T) {
	check := func(ns uint64) {
		b := bucketOf(ns)
		up := bucketUpTo(b)
		if ns > up {
			t.Fatalf("%d ns is in bucket %d, up to %d", ns, b, up)
		}
		if ns >= 4 && (up-ns)*4 > ns {
			t.Fatalf("%d ns is taken for %d", ns, up)
		}
		if ns > 8 {
			if below := bucketUpTo(bucketOf(up) - 1); below >= ns {
				t.Fatalf("%d ns is in bucket %d, but the bucket before goes to %d", ns, b, below)
			}
		}
	}
	for ns := range uint64(100_000) {
		check(ns)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		check(r.Uint64() >> r.UintN(60))
	}
}

// TestSubtractRequeued: what was requeued is taken from its own row, else from the same
// device's, else from what comes later; totals never go below zero.
func TestSubtractRequeued(t *testing.T) {
	key := func(cgroup uint64, op Op) Key {
		return Key{Source: Block, Op: op, Cgroup: cgroup, Dev: dev(8, 0), Basis: ByPage}
	}
	tr := &Tracer{requeued: map[Key]amount{
		key(1, Write): {bytes: 4096, ops: 1},
		key(2, Write): {bytes: 8192, ops: 2},
		key(3, Read):  {bytes: 512, ops: 1},
	}}
	rows := map[Key]*Row{
		key(1, Write): {Key: key(1, Write), Bytes: 8192, Ops: 2},
		key(4, Write): {Key: key(4, Write), Bytes: 65536, Ops: 4},
	}
	tr.subtractRequeued(rows)
	var bytes, ops uint64
	for _, r := range rows {
		bytes += r.Bytes
		ops += r.Ops
	}
	if bytes != 8192+65536-4096-8192 || ops != 6-3 {
		t.Errorf("%d bytes in %d operations are left", bytes, ops)
	}
	if len(tr.requeued) != 1 || tr.requeued[key(3, Read)] != (amount{512, 1}) {
		t.Errorf("requeued %+v, want the read's", tr.requeued)
	}
	later := map[Key]*Row{key(5, Read): {Key: key(5, Read), Bytes: 512, Ops: 1}}
	tr.subtractRequeued(later)
	if len(tr.requeued) != 0 || later[key(5, Read)].Bytes != 0 {
		t.Errorf("requeued %+v, row %+v", tr.requeued, later[key(5, Read)])
	}
}
