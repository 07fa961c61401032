package tracer

import (
	"math/bits"
	"math/rand/v2"
	"testing"
)

// bucketOf is iot_bucket of bpf/core/account.h in Go.
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
