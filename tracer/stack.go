package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// stack tells the block programs about devices for which requests and their pages
// are not enough: leaf devices without requests, and dm-crypt.
type stack struct {
	core    *core
	block   *object
	devices *Devices

	look   lookout
	leaves map[Dev]bool
	crypts bool
}

func newStack(c *core, block *object, devices *Devices) *stack {
	return &stack{core: c, block: block, devices: devices, look: devices.look, leaves: map[Dev]bool{}}
}

// scan looks at all devices if they may have changed since the last scan.
func (s *stack) scan(change func(func())) error {
	if !s.look.due() {
		return nil
	}
	err := errors.Join(s.scanLeaves(change), s.scanCrypt(change))
	if err != nil {
		s.look.again()
	}
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
	ld, err := s.core.loader()
	if err != nil {
		return err
	}
	spec, err := bpf.LoadBlock()
	if err != nil {
		return err
	}
	if ld.tracepointArgs("block_bio_queue") == 2 {
		if err := spec.Variables[bpf.BlockVarBioIsSecondArg].Set(true); err != nil {
			return err
		}
	}
	o, err := ld.loadInto(s.block, spec, []signal{{hooks: []hook{
		{
			kind: rawTracepoint, target: "block_bio_queue", program: bpf.BlockProgIotBioQueue,
			limitation: Limitation{Text: "devices without a request queue (zram, pmem, brd) have no latency"},
		},
	}}}, ebpf.ProgramOptions{})
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

// scanCrypt sets the address of dm-crypt's completion function when the first
// crypt device may exist. It does so once more when all were gone and another one
// comes: the module may have been loaded at another address.
func (s *stack) scanCrypt(change func(func())) error {
	any, err := s.devices.haveCrypt()
	if err != nil || any == s.crypts {
		return err
	}
	s.crypts = any
	if !any {
		return nil
	}
	addr, err := kernelSymbol("crypt_endio")
	if err != nil {
		l := Limitation{Text: "writes to dm-crypt devices count for (kernel): " + err.Error()}
		if errors.Is(err, errHidden) {
			l.Remedy = "CAP_SYSLOG, and kernel.kptr_restrict at 0 or 1"
		}
		change(func() { s.block.addLimitation(l) })
		return nil
	}
	return s.block.maps[bpf.BlockMapCryptEnd].Update(uint32(0), addr, ebpf.UpdateAny)
}

func (d *Devices) haveCrypt() (bool, error) {
	// Any device-mapper device may be one: only cryptsetup says so in the uuid.
	if _, err := os.Stat(filepath.Join(d.sys, "module", "dm_crypt")); err != nil {
		return false, nil
	}
	devices, err := filepath.Glob(filepath.Join(d.sys, "block", "dm-*"))
	return len(devices) > 0, err
}

// errHidden is the error of kernelSymbol where /proc/kallsyms shows only zeroes.
var errHidden = errors.New("the kernel hides addresses")

// kernelSymbol returns the address of a function from /proc/kallsyms. The error
// wraps errHidden where this process may not see it (kallsyms_show_value in the
// kernel).
func kernelSymbol(name string) (uint64, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		addr, rest, _ := strings.Cut(sc.Text(), " ")
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != name {
			continue
		}
		n, err := strconv.ParseUint(addr, 16, 64)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("looking up function %q: %w", name, errHidden)
		}
		return n, nil
	}
	if err := sc.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("the kernel has no function %q", name)
}
