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
type xfsLogs struct{ shares }

func newXFSLogs(c *loader, devices *Devices) *xfsLogs {
	x := &xfsLogs{}
	x.shares = shares{core: c.core, first: c, devices: devices, name: "logs of XFS", logs: bpf.BlockMapXfsLogs, optional: xfsOptional, list: x.list, attach: x.attach}
	return x
}

var xfsOptional = Limitation{
	Text:   "the log and the metadata of XFS count for (kernel)",
	Remedy: "a kernel with the tracepoint xfs:xfs_log_ticket_ungrant and with types of XFS (CONFIG_DEBUG_INFO_BTF_MODULES)",
}

// list returns the devices with an XFS: each has a directory in sysfs, by the device's name.
func (x *xfsLogs) list() (found map[Dev]bool, whole bool, err error) {
	entries, err := os.ReadDir(filepath.Join(x.devices.sys, "fs/xfs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	found = map[Dev]bool{}
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
	return found, true, nil
}

// attach attaches the programs. What a log or a transaction had before is not known.
func (x *xfsLogs) attach(_ map[Dev]bool, change func(func())) error {
	ld, err := x.core.loaderOr(x.first)
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
	spec, err := ld.blockSpec(allParts, false, signals)
	if err != nil {
		return err
	}
	if err := ld.loadShares(x.block, spec, signals, change); err != nil {
		return err
	}
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
