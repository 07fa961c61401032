package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// stack tells the block programs about devices for which requests and their pages
// are not enough: leaf devices without requests, and drivers that write pages of their own.
type stack struct {
	core    *core
	block   *object
	issuers *issuers
	devices *Devices

	look   lookout
	leaves map[Dev]bool
	hops   string  // what the map of hops was filled for: see hopsNeeded
	first  *loader // for the first scan; nil afterwards

	softCrypto bool // blk-crypto may encrypt in software, as fscrypt asks for from 7.x on
}

func newStack(c *loader, devices *Devices) *stack {
	return &stack{
		core: c.core, first: c, devices: devices, look: devices.look, leaves: map[Dev]bool{},
		softCrypto: c.haveFunc("blk_crypto_fallback_encrypt_endio"),
	}
}

// needed tells whether something on this host may need hops.
func (s *stack) needed() bool {
	need, _, err := s.devices.hopsNeeded(s.softCrypto, s.core.byFile.Load())
	return err != nil || need != ""
}

// begin says which programs the scans are for.
func (s *stack) begin(i *issuers) { s.issuers, s.block = i, i.block }

// scan looks at all devices if they may have changed since the last scan. What hops need
// is looked at each time: nothing tells that a btrfs is mounted.
func (s *stack) scan(change func(func())) error {
	defer func() { s.first = nil }()
	err := s.scanHops(change)
	if !s.look.due() {
		return err
	}
	if found := s.scanLeaves(change); found != nil {
		s.look.again()
		err = errors.Join(err, found)
	}
	s.scanUnseen(change)
	return err
}

// scanLeaves finds leaf devices that take bios instead of requests (zram, pmem,
// brd). It attaches their hook once the first one exists, not earlier: the hook
// runs for every bio of the host.
func (s *stack) scanLeaves(change func(func())) error {
	found, err := s.devices.bioLeaves()
	if err != nil {
		return fmt.Errorf("looking for devices without requests: %w", err)
	}
	files := s.block.maps[bpf.BlockMapBioLeaves]
	for dev := range s.leaves {
		if !found[dev] {
			if err := files.Delete(uint32(dev)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
	}
	for dev := range found {
		if !s.leaves[dev] {
			if err := files.Update(uint32(dev), uint32(1), ebpf.UpdateAny); err != nil {
				return err
			}
		}
	}
	if len(found) > 0 && !s.block.has(bpf.BlockProgIotBioQueue) {
		if err := s.attachBios(change); err != nil {
			change(func() {
				s.block.addLimitation(Limitation{Text: "devices without a request queue (zram, pmem, brd) are not counted: " + err.Error()})
			})
		}
	}
	s.leaves = found
	return nil
}

func (s *stack) attachBios(change func(func())) error {
	ld, err := s.core.loaderOr(s.first)
	if err != nil {
		return err
	}
	signals := []signal{{hooks: []hook{
		{
			kind: rawTracepoint, target: "block_bio_queue", program: bpf.BlockProgIotBioQueue,
			limitation: Limitation{Text: "devices without a request queue (zram, pmem, brd) have no latency"},
		},
	}}}
	spec, err := ld.blockSpec(allParts, false, signals)
	if err != nil {
		return err
	}
	o, err := ld.loadInto(s.block, spec, signals, ebpf.ProgramOptions{})
	if err != nil {
		return err
	}
	for _, m := range o.maps { // handles of the maps of s.block
		m.Close()
	}
	change(func() {
		s.block.hooks = append(s.block.hooks, o.hooks...)
		for _, l := range o.limitations {
			s.block.addLimitation(l)
		}
	})
	return nil
}

// bioLeaves returns the leaf devices that have no request queue.
func (d *Devices) bioLeaves() (map[Dev]bool, error) {
	entries, err := os.ReadDir(filepath.Join(d.sys, "block"))
	if err != nil {
		return nil, err
	}
	found := map[Dev]bool{}
	for _, e := range entries {
		dir := filepath.Join(d.sys, "block", e.Name())
		// A device of blk-mq shows its hardware queues here. The head of an NVMe
		// multipath has none either, but its paths are counted.
		if _, err := os.Stat(filepath.Join(dir, "mq")); !errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(e.Name(), "nvme") {
			continue
		}
		size, err := os.ReadFile(filepath.Join(dir, "size"))
		if err != nil || strings.TrimSpace(string(size)) == "0" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil {
			continue
		}
		if dev, ok := parseDev(strings.TrimSpace(string(raw))); ok && !d.Device(dev).Stacked {
			found[dev] = true
		}
	}
	return found, nil
}
