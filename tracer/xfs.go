package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// xfsLogs attaches the programs that keep the shares of XFS's log once there is an XFS,
// and removes the logs of file systems that are gone: see bpf/block/xfs.h.
type xfsLogs struct {
	core    *core
	block   *object
	issuers *issuers
	devices *Devices

	attached bool
	failed   bool // attaching was refused: it is not tried again
	stale    map[Dev]bool
}

func newXFSLogs(c *core, devices *Devices) *xfsLogs { return &xfsLogs{core: c, devices: devices} }

// needed tells whether there may be an XFS.
func (x *xfsLogs) needed() bool {
	if x.core.opt.noJournals {
		return false
	}
	found, err := x.list()
	return len(found) > 0 || err != nil
}

// begin says which programs the scans are for.
func (x *xfsLogs) begin(i *issuers) { x.issuers, x.block = i, i.block }

var xfsOptional = Limitation{
	Text:   "the log and the metadata of XFS count for (kernel)",
	Remedy: "a kernel with the tracepoint xfs:xfs_log_ticket_ungrant and with types of XFS (CONFIG_DEBUG_INFO_BTF_MODULES)",
}

// scan looks which file systems there are. A mount is announced by no event, and the look
// is one read of a directory.
func (x *xfsLogs) scan(change func(func())) error {
	if x.core.opt.noJournals {
		return nil
	}
	found, err := x.list()
	if err != nil {
		return fmt.Errorf("looking for logs of XFS: %w", err)
	}
	if x.attached {
		x.stale, err = sweep(x.block.maps[bpf.BlockMapXfsLogs], found, x.stale)
		return err
	}
	if len(found) == 0 || x.failed {
		return nil
	}
	if err := x.attach(change); err != nil {
		x.failed = true
		x.core.log.Debug("shares of XFS's logs are not kept", "error", verbose(err))
		change(func() { x.block.addLimitation(xfsOptional) })
	}
	return nil
}

// list returns the devices with an XFS: each has a directory in sysfs, by the device's name.
func (x *xfsLogs) list() (map[Dev]bool, error) {
	entries, err := os.ReadDir(filepath.Join(x.devices.sys, "fs/xfs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[Dev]bool{}
	for _, e := range entries {
		// "stats" and "debug" are no devices.
		raw, err := os.ReadFile(filepath.Join(x.devices.sys, "class/block", e.Name(), "dev"))
		if err != nil {
			continue
		}
		if dev, ok := parseDev(strings.TrimSpace(string(raw))); ok {
			found[dev] = true
		}
	}
	return found, nil
}

// attach attaches the programs. What a log or a transaction had before is not known.
func (x *xfsLogs) attach(change func(func())) error {
	ld, err := x.core.loader()
	if err != nil {
		return err
	}
	layout, err := ld.xfsLayout()
	if err != nil {
		return err
	}
	if err := x.issuers.need(parts{journals: true, xfs: true}); err != nil {
		return err
	}
	fields := x.block.maps[bpf.BlockMapXfsLayout]
	if err := fields.Update(uint32(0), layout, ebpf.UpdateAny); err != nil {
		return err
	}
	spec, err := ld.blockSpec(allParts, false)
	if err != nil {
		return err
	}
	var signals []signal
	for _, h := range []struct {
		target, program string
		optional        bool
	}{
		{"writeback_single_inode", bpf.BlockProgIotXfsDone, true},
		{"writeback_single_inode_start", bpf.BlockProgIotXfsFlush, true},
		{"xfs_setfilesize", bpf.BlockProgIotXfsWritten, true},
		{"xfs_unwritten_convert", bpf.BlockProgIotXfsWritten, true},
		{"xfs_reflink_end_cow", bpf.BlockProgIotXfsWritten, true},
		// Since 5.14 (ab23a7768739) a kernel thread frees removed files.
		{"xfs_inode_set_reclaimable", bpf.BlockProgIotXfsDone, true},
		{"xfs_inode_set_need_inactive", bpf.BlockProgIotXfsRemoved, true},
		{"xfs_inode_inactivating", bpf.BlockProgIotXfsInactivate, true},
		{"xfs_log_ticket_regrant", bpf.BlockProgIotXfsRegrant, false},
		{"xfs_log_ticket_ungrant", bpf.BlockProgIotXfsUngrant, false},
	} {
		hk := hook{kind: rawTracepoint, target: h.target, program: h.program, shares: true, several: true}
		if h.optional && ld.exists(hk) != nil {
			continue
		}
		signals = append(signals, signal{hooks: []hook{hk}})
	}
	if err := ld.loadShares(x.block, spec, signals, change); err != nil {
		return err
	}
	x.attached = true
	if layout.Since, err = monotonic(); err != nil {
		return err
	}
	layout.Live = 1
	return fields.Update(uint32(0), layout, ebpf.UpdateAny)
}

// xfsLayout reads where the fields of XFS are: in the kernel's types or, where XFS is a
// module, in the module's.
func (c *loader) xfsLayout() (bpf.BlockXfsFields, error) {
	var l bpf.BlockXfsFields
	types := c.types
	var log *btf.Struct
	if err := types.TypeByName("xlog_ticket", &log); err != nil {
		module, err := c.cache.Module("xfs")
		if err != nil {
			return l, fmt.Errorf("types of XFS: %w", err)
		}
		types = module
	}
	t := &hopTypes{specs: []*btf.Spec{types}}
	for _, f := range []struct {
		to          *uint32
		name, field string
	}{
		{&l.Mount, "xlog", "l_mp"},
		{&l.Targ, "xlog", "l_targ"},
		{&l.Cil, "xlog", "l_cilp"},
		{&l.Sequence, "xfs_cil", "xc_current_sequence"},
		{&l.Data, "xfs_mount", "m_ddev_targp"},
		{&l.Dev, "xfs_buftarg", "bt_dev"},
		{&l.Reserved, "xlog_ticket", "t_unit_res"},
		{&l.Left, "xlog_ticket", "t_curr_res"},
		{&l.Inode, "xfs_inode", "i_vnode"},
	} {
		at := t.at(f.name, unknownOffset, f.field)
		if !at.known {
			return l, fmt.Errorf("struct %s has no member %s", f.name, f.field)
		}
		*f.to = uint32(at.bytes)
	}
	return l, nil
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
