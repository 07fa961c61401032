package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// journals tells the block programs which file systems have a journal (jbd2: ext4,
// ocfs2), and attaches the programs that keep the shares of its transactions once
// there is one: see bpf/block/journal.h.
type journals struct{ shares }

func newJournals(c *loader, devices *Devices) *journals {
	j := &journals{}
	j.shares = shares{core: c.core, first: c, devices: devices, name: "journals", logs: bpf.BlockMapJournals, optional: journalsOptional, list: j.list, attach: j.attach}
	return j
}

var journalsOptional = Limitation{
	Text:   "metadata and the journal of ext4 count for the cgroup that read a block first or mounted the file system",
	Remedy: "a kernel with the tracepoints jbd2:jbd2_handle_stats, jbd2_start_commit and jbd2_end_commit",
}

var delayedOptional = Limitation{
	Text:   "metadata of ext4 that writeback changes counts for (kernel)",
	Remedy: "a kernel with the tracepoint ext4:ext4_ext_map_blocks_enter",
}

// list returns the file systems that have a journal of jbd2's. Its directory in /proc
// has an entry for each: the name of the device and the inode of the journal, "sda1-8";
// one on a device of its own has no inode, and its file system is not known: then whole
// is false.
func (j *journals) list() (found map[Dev]bool, whole bool, err error) {
	entries, err := os.ReadDir(filepath.Join(j.devices.proc, "fs/jbd2"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	found, whole = map[Dev]bool{}, true
	for _, e := range entries {
		name, inode, ok := cutLast(e.Name(), "-")
		if !ok || strings.Trim(inode, "0123456789") != "" {
			whole = false
			continue
		}
		raw, err := os.ReadFile(filepath.Join(j.devices.sys, "class/block", name, "dev"))
		if err != nil {
			whole = false
			continue
		}
		if dev, ok := parseDev(strings.TrimSpace(string(raw))); ok {
			found[dev] = true
		}
	}
	return found, whole, nil
}

// cutLast cuts s at the last sep.
func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// attach adds the journals that are there, and then attaches the programs: a
// transaction that is running now is not seen from its beginning.
func (j *journals) attach(found map[Dev]bool, change func(func())) error {
	ld, err := j.core.loaderOr(j.first)
	if err != nil {
		return err
	}
	layout, err := ld.journalLayout()
	if err != nil {
		return err
	}
	if err := j.issuers.need(parts{journals: true}); err != nil {
		return err
	}
	layout.Since = math.MaxUint64 // until all programs are there
	maps := j.block.maps
	if err := maps[bpf.BlockMapJournalLayout].Update(uint32(0), layout, ebpf.UpdateAny); err != nil {
		return err
	}
	for dev := range found {
		switch err := maps[bpf.BlockMapJournals].Update(uint32(dev), bpf.BlockJournal{Fsdev: uint32(dev)}, ebpf.UpdateNoExist); {
		case errors.Is(err, unix.E2BIG):
			layout.Full = 1
		case err != nil && !errors.Is(err, ebpf.ErrKeyExist):
			return err
		}
	}
	raw := func(target, program string) hook {
		return hook{kind: rawTracepoint, target: target, program: program, shares: true}
	}
	signals := []signal{
		{hooks: []hook{raw("ext4_ext_map_blocks_enter", bpf.BlockProgIotMapBlocks)}, optional: delayedOptional},
	}
	// Kernels without these have no fast commits.
	if start := raw("ext4_fc_commit_start", bpf.BlockProgIotFcCommitStart); ld.exists(start) == nil {
		signals = append(signals, signal{hooks: []hook{start}},
			signal{hooks: []hook{raw("ext4_fc_commit_stop", bpf.BlockProgIotFcCommitStop)}})
	}
	signals = append(signals,
		signal{hooks: []hook{raw("jbd2_end_commit", bpf.BlockProgIotEndCommit)}},
		signal{hooks: []hook{raw("jbd2_start_commit", bpf.BlockProgIotStartCommit)}},
		signal{hooks: []hook{raw("jbd2_handle_stats", bpf.BlockProgIotHandleStats)}})
	spec, err := ld.blockSpec(allParts, false, signals)
	if err != nil {
		return err
	}
	notes, err := ebpf.NewMap(spec.Maps[bpf.BlockMapJournalNotes].InnerMap.Copy())
	if err != nil {
		return fmt.Errorf("making the map of journals' notes: %w", err)
	}
	defer notes.Close() // the outer map keeps it
	if err := maps[bpf.BlockMapJournalNotes].Update(uint32(0), notes, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("storing the map of journals' notes: %w", err)
	}
	if err := ld.loadShares(j.block, spec, signals, change); err != nil {
		return err
	}
	if layout.Since, err = monotonic(); err != nil {
		return err
	}
	layout.Live = 1
	return maps[bpf.BlockMapJournalLayout].Update(uint32(0), layout, ebpf.UpdateAny)
}

// journalLayout reads where the fields of jbd2 are: in the kernel's types or, where
// jbd2 is a module, in the module's.
func (c *loader) journalLayout() (bpf.BlockJournalFields, error) {
	var l bpf.BlockJournalFields
	types := c.types
	var head *btf.Struct
	if err := types.TypeByName("journal_head", &head); err != nil {
		module, err := c.cache.Module("jbd2")
		if err != nil {
			return l, fmt.Errorf("types of jbd2: %w", err)
		}
		types = module
	}
	for _, f := range []struct {
		to          *uint32
		name, field string
	}{
		{&l.Buffer, "journal_head", "b_bh"},
		{&l.Transaction, "journal_head", "b_transaction"},
		{&l.Checkpoint, "journal_head", "b_cp_transaction"},
		{&l.Tid, "transaction_s", "t_tid"},
		{&l.Began, "transaction_s", "t_start_time"},
		{&l.Dev, "journal_s", "j_dev"},
		{&l.Fsdev, "journal_s", "j_fs_dev"},
	} {
		var st *btf.Struct
		if err := types.TypeByName(f.name, &st); err != nil {
			return l, fmt.Errorf("looking up struct %s: %w", f.name, err)
		}
		i := slices.IndexFunc(st.Members, func(m btf.Member) bool { return m.Name == f.field })
		if i < 0 {
			return l, fmt.Errorf("struct %s has no member %s", f.name, f.field)
		}
		*f.to = st.Members[i].Offset.Bytes()
	}
	var bits *btf.Enum
	if err := types.TypeByName("jbd_state_bits", &bits); err != nil {
		return l, fmt.Errorf("looking up enum jbd_state_bits: %w", err)
	}
	i := slices.IndexFunc(bits.Values, func(v btf.EnumValue) bool { return v.Name == "BH_Shadow" })
	if i < 0 {
		return l, errors.New("enum jbd_state_bits has no BH_Shadow")
	}
	l.Shadow = uint32(bits.Values[i].Value)
	return l, nil
}
