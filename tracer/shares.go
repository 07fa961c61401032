package tracer

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// shares attaches the programs that keep shares of file systems' journals or logs once
// there is one, and removes what is known of those that are gone.
type shares struct {
	core    *core
	first   *loader // for the first scan; nil afterwards
	block   *object
	issuers *issuers
	devices *Devices

	name     string     // of what there may be, for messages
	logs     string     // the map that has an entry for each
	optional Limitation // where the programs cannot be attached
	// list returns the file systems that there are. Unless it is whole there may be more.
	list   func() (found map[Dev]bool, whole bool, err error)
	attach func(found map[Dev]bool, change func(func())) error

	attached bool
	failed   bool // attaching was refused: it is not tried again
	stale    map[Dev]bool
}

// needed tells whether there may be such a file system.
func (s *shares) needed() bool {
	if s.core.opt.noJournals {
		return false
	}
	found, whole, err := s.list()
	return len(found) > 0 || !whole || err != nil
}

// begin says which programs the scans are for.
func (s *shares) begin(i *issuers) { s.issuers, s.block = i, i.block }

// scan looks which file systems there are. A mount is announced by no event, and the look
// is one read of a directory.
func (s *shares) scan(change func(func())) error {
	defer func() { s.first = nil }()
	if s.core.opt.noJournals {
		return nil
	}
	found, whole, err := s.list()
	if err != nil {
		return fmt.Errorf("looking for %s: %w", s.name, err)
	}
	if s.attached {
		if whole {
			s.stale, err = sweep(s.block.maps[s.logs], found, s.stale)
		}
		return err
	}
	if len(found) == 0 && whole || s.failed {
		return nil
	}
	if err := s.attach(found, change); err != nil {
		s.failed = true
		s.core.log.Debug("shares are not kept", "of", s.name, "error", verbose(err))
		change(func() { s.block.addLimitation(s.optional) })
		return nil
	}
	s.attached = true
	return nil
}

// loadShares loads and attaches programs that keep shares of a journal, with the maps of
// the block source, and adds them to it.
func (c *loader) loadShares(block *object, spec *ebpf.CollectionSpec, signals []signal, change func(func())) error {
	// The verifier's memory for these programs is on top of all maps: the peak of a start.
	debug.FreeOSMemory()
	o, err := c.loadInto(block, spec, signals, ebpf.ProgramOptions{})
	if err != nil {
		return err
	}
	for _, m := range o.maps { // handles of the maps of the block source
		m.Close()
	}
	change(func() {
		block.hooks = append(block.hooks, o.hooks...)
		for _, l := range o.limitations {
			block.addLimitation(l)
		}
	})
	return nil
}

// monotonic is the time as programs have it from bpf_ktime_get_ns, nanoseconds.
func monotonic() (uint64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, err
	}
	return uint64(now.Nano()), nil
}

// sweep removes what a map has about devices that are not in found any more: they may get
// another file system. Those that were absent only once may have been mounted after the
// list was read: they are returned, and removed the next time.
func sweep(m *ebpf.Map, found, stale map[Dev]bool) (map[Dev]bool, error) {
	absent := map[Dev]bool{}
	var errs []error
	var dev uint32
	var value []byte
	it := m.Iterate()
	for it.Next(&dev, &value) {
		if !found[Dev(dev)] {
			absent[Dev(dev)] = true
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return stale, err
	}
	for dev := range absent {
		if !stale[dev] {
			continue
		}
		if err := m.Delete(uint32(dev)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
		delete(absent, dev)
	}
	return absent, errors.Join(errs...)
}
