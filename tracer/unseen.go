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

// flightBack is IOT_BACK of bpf/core/types.h: requeued, and not issued again yet.
const flightBack = 8

// A request may end at the moment of a look, and another one take its place. So a
// request counts only if this many looks, this far apart, saw it unchanged.
const (
	unseenLooks = 4
	unseenPause = 5 * time.Millisecond
)

// unseenEnds returns how many requests are noted as in flight at devices that have
// nothing in flight: the kernel skipped the programs at their ends without counting
// it. The programs themselves notice a missed end when the request is issued again;
// this is for the others. The programs must still be attached.
func unseenEnds(flights *ebpf.Map) (uint64, error) {
	return neverEnded(
		func() (issuedSet, error) { return issuedRequests(flights) },
		func(dev Dev) bool { return deviceIdle(sysfs, dev) })
}

type issuedSet map[bpf.BlockFlight]struct{}

func neverEnded(noted func() (issuedSet, error), idle func(Dev) bool) (uint64, error) {
	left, err := noted()
	for range unseenLooks {
		if err != nil || len(left) == 0 {
			return 0, err
		}
		idles := map[Dev]bool{}
		maps.DeleteFunc(left, func(r bpf.BlockFlight, _ struct{}) bool {
			dev := Dev(r.Usage.Dev)
			if _, asked := idles[dev]; !asked {
				idles[dev] = idle(dev)
			}
			return !idles[dev]
		})
		time.Sleep(unseenPause)
		var now issuedSet
		now, err = noted()
		maps.DeleteFunc(left, func(r bpf.BlockFlight, _ struct{}) bool {
			_, still := now[r]
			return !still
		})
	}
	return uint64(len(left)), err
}

// issuedRequests returns the requests that are noted as in flight. It leaves out
// flushes: the kernel does not count them as in flight.
func issuedRequests(flights *ebpf.Map) (issuedSet, error) {
	var cursor ebpf.MapBatchCursor
	keys := make([]uint32, flights.MaxEntries())
	values := make([]bpf.BlockFlightSet, len(keys))
	n, err := flights.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("reading which requests are in flight: %w", err)
	}
	found := issuedSet{}
	for _, set := range values[:n] {
		for _, r := range set.Way {
			if r.Id != 0 && r.State&flightBack == 0 && Op(r.Usage.Op) != Flush {
				found[r] = struct{}{}
			}
		}
	}
	return found, nil
}

// deviceIdle tells whether a device has no request in flight by its own count
// (Documentation/ABI/stable/sysfs-block). It has one only while queue/iostats is on.
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
