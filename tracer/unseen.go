package tracer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// issuedBack is IOT_BACK of bpf/block.bpf.c: requeued, and not issued anew yet.
const issuedBack = 0x20

// A request may end in the very moment in which we look, and its successor take
// its place: what is believed was seen so often, so far apart, unchanged.
const (
	unseenLooks = 4
	unseenPause = 5 * time.Millisecond
)

// unseenEnds returns how many requests are noted as under way at devices that have
// nothing under way: their ends were not seen, which the kernel does not count
// among the runs it skips. Programs count those themselves whose request is issued
// anew; this is for the rest, while they are still attached.
func unseenEnds(inflight *ebpf.Map) (uint64, error) {
	return neverEnded(
		func() (issuedSet, error) { return issuedRequests(inflight) },
		func(dev Dev) bool { return deviceIdle(sysfs, dev) })
}

type issuedSet map[bpf.BlockIssued]struct{}

func neverEnded(noted func() (issuedSet, error), idle func(Dev) bool) (uint64, error) {
	left, err := noted()
	for range unseenLooks {
		if err != nil || len(left) == 0 {
			return 0, err
		}
		idles := map[Dev]bool{}
		maps.DeleteFunc(left, func(r bpf.BlockIssued, _ struct{}) bool {
			dev := Dev(r.Usage.Dev)
			if _, asked := idles[dev]; !asked {
				idles[dev] = idle(dev)
			}
			return !idles[dev]
		})
		time.Sleep(unseenPause)
		var now issuedSet
		now, err = noted()
		maps.DeleteFunc(left, func(r bpf.BlockIssued, _ struct{}) bool {
			_, still := now[r]
			return !still
		})
	}
	return uint64(len(left)), err
}

// issuedRequests returns the requests that are noted as under way. Flushes are
// left out: the kernel does not count them as being in flight.
func issuedRequests(inflight *ebpf.Map) (issuedSet, error) {
	var cursor ebpf.MapBatchCursor
	keys := make([]uint32, inflight.MaxEntries())
	values := make([]bpf.BlockIssued, len(keys))
	n, err := inflight.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("reading which requests are under way: %w", err)
	}
	found := issuedSet{}
	for _, r := range values[:n] {
		if r.Rq != 0 && r.Usage.Flags&issuedBack == 0 && Op(r.Usage.Op) != Flush {
			found[r] = struct{}{}
		}
	}
	return found, nil
}

// deviceIdle tells whether a device has no request in flight, by its own count
// (Documentation/ABI/stable/sysfs-block), which it keeps while queue/iostats is on.
func deviceIdle(sys string, dev Dev) bool {
	dir := filepath.Join(sys, "dev", "block", dev.String())
	counts, err := os.ReadFile(filepath.Join(dir, "queue", "iostats"))
	if err != nil || strings.TrimSpace(string(counts)) != "1" {
		return false
	}
	inflight, err := os.ReadFile(filepath.Join(dir, "inflight"))
	if err != nil {
		return false
	}
	for _, n := range strings.Fields(string(inflight)) {
		if n != "0" {
			return false
		}
	}
	return true
}
