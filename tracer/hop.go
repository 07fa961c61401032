package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// Kinds of hops: enum iot_hop_kind in bpf/core/types.h.
const (
	hopClone = iota + 1
	hopCopy
	hopFallback
	hopStripe
	hopExtent
	hopSubmitter
	hopMetadata
)

// hopRow is a function in which bios of a stacked driver or file system end, and how to
// get from such a bio to the one, or to the file, that its data come from.
type hopRow struct {
	ends   []string // names of the function; kernels have renamed some
	module string   // that has the function, unless it is built in
	// hop says where to go. It returns false where this kernel's structs are not as
	// they must be.
	hop func(*hopTypes) (bpf.BlockHop, bool)
}

// hopRows is the table of all hops: what is to be followed through another stack is a
// row here. Each was seen on the kernels of the test matrix that have it.
var hopRows = []hopRow{
	// block/bio.c: a bio that was split points to the rest.
	{ends: []string{"bio_chain_endio"}, hop: func(*hopTypes) (bpf.BlockHop, bool) {
		return bpf.BlockHop{Kind: hopClone, FromPrivate: 1}, true
	}},
	// drivers/md/dm.c: the clone is in a dm_target_io, which leads to the dm_io.
	{ends: []string{"clone_endio"}, module: "dm_mod", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		io := t.between("dm_target_io", "clone", "io", -40)
		return t.loads(bpf.BlockHop{Kind: hopClone}, io, t.at("dm_io", 24, "orig_bio"))
	}},
	// drivers/md/raid1.h and raid10.h
	{ends: []string{"raid1_end_write_request"}, module: "raid1", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.loads(bpf.BlockHop{Kind: hopClone, FromPrivate: 1}, t.at("r1bio", 40, "master_bio"))
	}},
	{ends: []string{"raid10_end_write_request"}, module: "raid10", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.loads(bpf.BlockHop{Kind: hopClone, FromPrivate: 1}, t.at("r10bio", 40, "master_bio"))
	}},
	// drivers/md/md.c: clones for the statistics of an array; 5.10 makes none.
	{ends: []string{"md_end_clone_io"}, module: "md_mod", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.loads(bpf.BlockHop{Kind: hopClone}, t.between("md_io_clone", "bio_clone", "orig_bio", unknownOffset))
	}},
	{ends: []string{"md_end_io_acct"}, module: "md_mod", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.loads(bpf.BlockHop{Kind: hopClone}, t.between("md_io_acct", "bio_clone", "orig_bio", unknownOffset))
	}},
	// drivers/md/dm-crypt.c
	{ends: []string{"crypt_endio"}, module: "dm_crypt", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.loads(bpf.BlockHop{Kind: hopCopy, FromPrivate: 1}, t.at("dm_crypt_io", 8, "base_bio"))
	}},
	// drivers/md/raid5.h: a stripe_head with an r5dev for each device.
	{ends: []string{"raid5_end_write_request"}, module: "raid456", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.stripe("written", 80, "written", 80)
	}},
	{ends: []string{"raid5_end_read_request"}, module: "raid456", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.stripe("toread", 56, "towrite", 72)
	}},
	// fs/btrfs
	{ends: []string{"btrfs_simple_end_io", "btrfs_orig_write_end_io"}, module: "btrfs", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.extent(bpf.BlockHop{Kind: hopExtent})
	}},
	{ends: []string{"btrfs_clone_write_end_io"}, module: "btrfs", hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		h, ok := t.loads(bpf.BlockHop{Kind: hopExtent, FromPrivate: 1},
			t.at("btrfs_io_stripe", unknownOffset, "bioc"), t.at("btrfs_io_context", unknownOffset, "orig_bio"))
		if !ok {
			return h, false
		}
		return t.extent(h)
	}},
	{ends: []string{"btrfs_end_bio"}, module: "btrfs", hop: oldBtrfsHop},
	// block/blk-crypto-fallback.c: fscrypt since 7.x; before, its pages lead to the originals.
	{ends: []string{"blk_crypto_fallback_encrypt_endio"}, hop: func(*hopTypes) (bpf.BlockHop, bool) {
		return bpf.BlockHop{Kind: hopFallback, FromPrivate: 1}, true
	}},
	// Direct I/O, and zeroes: pages without an owner are the submitter's.
	{ends: []string{"submit_bio_wait_endio"}, hop: func(*hopTypes) (bpf.BlockHop, bool) {
		return bpf.BlockHop{Kind: hopSubmitter}, true
	}},
	// The same of a block device, and not of a file on it: iot_direct_file.
	{ends: []string{"blkdev_bio_end_io", "blkdev_bio_end_io_async", "blkdev_bio_end_io_simple"}, hop: func(*hopTypes) (bpf.BlockHop, bool) {
		return bpf.BlockHop{Kind: hopSubmitter, Base: 1}, true
	}},
	// Direct I/O of files leads to the inode.
	{ends: []string{"iomap_dio_bio_end_io"}, hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.submitter(t.at("iomap_dio", unknownOffset, "iocb"), t.at("kiocb", unknownOffset, "ki_filp"), t.at("file", unknownOffset, "f_inode"))
	}},
	{ends: []string{"dio_bio_end_io", "dio_bio_end_aio"}, hop: func(t *hopTypes) (bpf.BlockHop, bool) {
		return t.submitter(t.at("dio", unknownOffset, "inode"))
	}},
	// fs/buffer.c: a buffer head's page without a mapping is a journal's copy.
	{ends: []string{"end_bio_bh_io_sync"}, hop: func(*hopTypes) (bpf.BlockHop, bool) {
		return bpf.BlockHop{Kind: hopMetadata}, true
	}},
	// drivers/md/dm-bufio.c: metadata of dm-thin, dm-cache and others.
	{ends: []string{"bio_complete"}, module: "dm_bufio", hop: func(*hopTypes) (bpf.BlockHop, bool) {
		return bpf.BlockHop{Kind: hopMetadata}, true
	}},
}

// submitter returns a hop of direct I/O that leads to the inode of its file, for --by file;
// without it where the kernel's structs are not as they must be.
func (t *hopTypes) submitter(at ...offset) (bpf.BlockHop, bool) {
	if h, ok := t.loads(bpf.BlockHop{Kind: hopSubmitter, FromPrivate: 1}, at...); ok {
		return h, true
	}
	return bpf.BlockHop{Kind: hopSubmitter}, true
}

// stripe returns a hop to a stripe with two lists of bios in each r5dev. In that struct two
// bios come first, each with a vector; the lists are so many bytes behind the bios.
func (t *hopTypes) stripe(own string, ownAt int32, others string, othersAt int32) (bpf.BlockHop, bool) {
	h := bpf.BlockHop{Kind: hopStripe, FromPrivate: 1}
	bio, ok := t.size("bio", unknownOffset)
	for _, f := range []struct {
		to *uint32
		offset
	}{
		{&h.Disks, t.at("stripe_head", 88, "disks")},
		{&h.Devs, t.at("stripe_head", 224, "dev")},
		{&h.Own, t.at("r5dev", 2*bio+ownAt, own)},
		{&h.Others, t.at("r5dev", 2*bio+othersAt, others)},
		{&h.Sector, t.at("r5dev", 2*bio+88, "sector")},
	} {
		*f.to = uint32(f.bytes)
		ok = ok && f.known
	}
	size, known := t.size("r5dev", 2*bio+112)
	h.DevSize = uint32(size)
	return h, ok && known
}

// oldBtrfsHop is the way of 5.10: from a bio's struct btrfs_bio through btrfs_end_io_wq to
// compressed_bio. The functions noted in the first two must be the expected ones.
func oldBtrfsHop(t *hopTypes) (bpf.BlockHop, bool) {
	h := bpf.BlockHop{
		Kind: hopExtent, FromPrivate: 1, Loads: 2,
		Load: [3]bpf.BlockHopLoad{
			{Check: t.functions["end_workqueue_bio"], CheckAt: 24, At: 40},
			{Check: t.functions["end_compressed_bio_write"], CheckAt: 8, At: 16},
		},
		Inode: 16, Start: 24, Length: 32, Packed: 40,
	}
	return h, t.old && h.Load[0].Check != 0 && h.Load[1].Check != 0
}

// extent completes a hop that leads to the bio in a struct btrfs_bio: from there to the
// compressed_bio, which says of which file and range the data are.
func (t *hopTypes) extent(h bpf.BlockHop) (bpf.BlockHop, bool) {
	bio := t.at("btrfs_bio", unknownOffset, "bio")
	start, length, packed := t.at("compressed_bio", unknownOffset, "start"), t.at("compressed_bio", unknownOffset, "len"), t.at("compressed_bio", unknownOffset, "compressed_len")
	h.Length, h.Packed = length.bytes, packed.bytes // 7.x: the bio has the size
	h.Start = start.bytes
	if bbio := t.at("compressed_bio", unknownOffset, "bbio"); bbio.known {
		inode, again := t.at("btrfs_bio", unknownOffset, "inode"), t.at("btrfs_bio", unknownOffset, "file_offset")
		vfs := offset{known: true}
		if t.pointsTo("btrfs_bio", "inode", "btrfs_inode") {
			vfs = t.at("btrfs_inode", unknownOffset, "vfs_inode")
		}
		h.Base = -bio.bytes - bbio.bytes
		h.Inode, h.VfsInode = bbio.bytes+inode.bytes, vfs.bytes
		h.Start, h.StartAgain = bbio.bytes+again.bytes, start.bytes
		return h, bio.known && inode.known && again.known && vfs.known
	}
	// Up to 6.2 or so the btrfs_bio points to it, and names the function that takes it.
	private, end := t.at("btrfs_bio", unknownOffset, "private"), t.at("btrfs_bio", unknownOffset, "end_io")
	inode := t.at("compressed_bio", unknownOffset, "inode")
	takes := t.functions["end_compressed_bio_write"]
	h.Load[h.Loads] = bpf.BlockHopLoad{Check: takes, CheckAt: end.bytes - bio.bytes, At: private.bytes - bio.bytes}
	h.Loads++
	h.Inode = inode.bytes
	return h, bio.known && start.known && private.known && end.known && inode.known && takes != 0
}

// hopTypes knows the structs of this kernel and its modules, and addresses of functions.
type hopTypes struct {
	specs     []*btf.Spec
	functions map[string]uint64
	// old: a kernel like 5.10, which has no types of modules. Constants stand for them.
	old bool
}

// offset is a place in a struct.
type offset struct {
	bytes int32
	known bool
}

// unknownOffset stands for a struct that kernels like 5.10 do not have.
const unknownOffset = -1 << 31

func (t *hopTypes) constant(old int32) offset {
	return offset{old, t.old && old != unknownOffset}
}

// find returns a struct of that name: all of it that there are, where the types of a module
// have it several times. Those of btrfs in 7.3 do, because each copy points to another
// copy of a struct.
func (t *hopTypes) find(name string) (found []*btf.Struct) {
	for _, spec := range t.specs {
		all, err := spec.AnyTypesByName(name)
		if err != nil {
			continue
		}
		for _, one := range all {
			if s, ok := one.(*btf.Struct); ok {
				found = append(found, s)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	return found
}

// same returns what all copies of a struct agree on.
func same(copies []*btf.Struct, number func(*btf.Struct) (uint32, bool)) offset {
	var o offset
	for i, s := range copies {
		n, ok := number(s)
		if !ok || i > 0 && o.bytes != int32(n) {
			return offset{}
		}
		o = offset{int32(n), true}
	}
	return o
}

// at returns the offset of a field. old is the one on kernels without types of modules.
func (t *hopTypes) at(name string, old int32, field string) offset {
	copies := t.find(name)
	if len(copies) == 0 {
		return t.constant(old)
	}
	return same(copies, func(s *btf.Struct) (uint32, bool) { return memberOffset(s.Members, field) })
}

// pointsTo tells whether a field is a pointer to a struct of that name.
func (t *hopTypes) pointsTo(name, field, target string) bool {
	for _, s := range t.find(name) {
		for _, m := range s.Members {
			if m.Name == field {
				ptr, ok := btf.UnderlyingType(m.Type).(*btf.Pointer)
				return ok && ptr.Target.TypeName() == target
			}
		}
	}
	return false
}

// between returns the offset of a field from another field of the same struct.
func (t *hopTypes) between(name, from, to string, old int32) offset {
	if len(t.find(name)) == 0 {
		return t.constant(old)
	}
	a, b := t.at(name, unknownOffset, from), t.at(name, unknownOffset, to)
	return offset{b.bytes - a.bytes, a.known && b.known}
}

func (t *hopTypes) size(name string, old int32) (int32, bool) {
	o := t.constant(old)
	if copies := t.find(name); len(copies) > 0 {
		o = same(copies, func(s *btf.Struct) (uint32, bool) { return s.Size, true })
	}
	return o.bytes, o.known
}

// loads adds pointers to be followed.
func (t *hopTypes) loads(h bpf.BlockHop, at ...offset) (bpf.BlockHop, bool) {
	for _, o := range at {
		if !o.known {
			return h, false
		}
		h.Load[h.Loads].At = o.bytes
		h.Loads++
	}
	return h, true
}

// memberOffset finds a field, also in structs and unions without a name.
func memberOffset(members []btf.Member, field string) (uint32, bool) {
	for _, m := range members {
		if m.Name == field {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if at, ok := memberOffset(inner, field); ok {
			return m.Offset.Bytes() + at, true
		}
	}
	return 0, false
}

// scanHops fills the map of hops when something that needs it may be here, and fills it
// again when a module may be at another address.
func (s *stack) scanHops(change func(func())) error {
	need, stacks, err := s.devices.hopsNeeded(s.softCrypto, s.core.byFile.Load())
	if err != nil || need == s.hops {
		return err
	}
	if need != "" {
		if err := s.issuers.need(parts{hops: true}); err != nil {
			s.hops = need // it is not tried again and again
			change(func() {
				s.block.addLimitation(Limitation{Text: "writes of drivers and file systems that send pages of their own count for (unattributed)"})
			})
			return err
		}
		if err := s.fillHops(stacks, change); err != nil {
			return err
		}
	}
	s.hops = need
	return nil
}

// hopsNeeded tells what on this host may write pages of a driver's own; "" for nothing.
// The answer changes when a module is loaded again. stacks is false where only encrypted
// files may be here.
func (d *Devices) hopsNeeded(softCrypto, files bool) (need string, stacks bool, err error) {
	entries, err := os.ReadDir(filepath.Join(d.sys, "block"))
	if err != nil {
		return "", false, fmt.Errorf("looking for stacked devices: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "dm-") || strings.HasPrefix(e.Name(), "md") || strings.HasPrefix(e.Name(), "bcache") {
			need = "stacked"
			break
		}
	}
	// A mounted btrfs has a directory by its UUID.
	if mounted, _ := filepath.Glob(filepath.Join(d.sys, "fs", "btrfs", "*-*-*-*")); len(mounted) > 0 {
		need += " btrfs"
	}
	stacks = need != ""
	if softCrypto {
		need += " blk-crypto"
	}
	if files {
		need += " files"
	}
	if need == "" {
		return "", false, nil
	}
	for _, row := range hopRows {
		info, err := os.Stat(filepath.Join(d.sys, "module", row.module))
		if row.module == "" || err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok { // another one each time that it is loaded
			need += fmt.Sprintf(" %s:%d", row.module, st.Ino)
		}
	}
	return need, stacks, nil
}

// fillHops writes the rows that this kernel has.
func (s *stack) fillHops(stacks bool, change func(func())) error {
	table := s.block.maps[bpf.BlockMapHops]
	functions, err := hopFunctions("/proc/kallsyms")
	if s.core.byFile.Load() && errors.Is(err, errHidden) {
		change(func() {
			s.block.addLimitation(Limitation{
				Text:   "direct I/O counts for (file unknown): " + err.Error(),
				Remedy: "CAP_SYSLOG, and kernel.kptr_restrict at 0 or 1",
			})
		})
	}
	if errors.Is(err, errHidden) && !stacks {
		return nil
	} else if errors.Is(err, errHidden) {
		change(func() {
			s.block.addLimitation(Limitation{
				Text:   "writes through dm-crypt and RAID 4, 5 and 6, of compressed files of btrfs and, from 7.x on, of encrypted files count for (unattributed): " + err.Error(),
				Remedy: "CAP_SYSLOG, and kernel.kptr_restrict at 0 or 1",
			})
		})
	} else if err != nil {
		return err
	}
	ld, err := s.core.loaderOr(s.first)
	if err != nil {
		return err
	}
	rows := map[uint64]bpf.BlockHop{}
	if stacks {
		rows[0] = bpf.BlockHop{} // pages that nothing leads from are not taken for the submitter's
	}
	for _, row := range hopRows {
		t := &hopTypes{specs: []*btf.Spec{ld.types}, functions: functions, old: ld.chargesPages()}
		if row.module != "" {
			if types, err := ld.cache.Module(row.module); err == nil {
				t.specs = append([]*btf.Spec{types}, t.specs...)
			}
		}
		for _, end := range row.ends {
			if functions[end] == 0 {
				continue
			}
			if hop, ok := row.hop(t); ok {
				rows[functions[end]] = hop
			} else {
				ld.log.Debug("the kernel's structs are not as expected", "hop", end)
			}
		}
	}
	var stale uint64
	for it, hop := table.Iterate(), (bpf.BlockHop{}); it.Next(&stale, &hop); {
		if _, ok := rows[stale]; !ok {
			if err := table.Delete(stale); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("forgetting a hop: %w", err)
			}
		}
	}
	for end, hop := range rows {
		if err := table.Update(end, hop, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("storing a hop: %w", err)
		}
	}
	return nil
}

// chargesPages tells whether the kernel is like 5.10: a page points to its mem_cgroup, and
// modules have no types.
func (c *loader) chargesPages() bool {
	var st *btf.Struct
	if c.types.TypeByName("page", &st) != nil {
		return false
	}
	_, ok := memberOffset(st.Members, "mem_cgroup")
	return ok
}

// errHidden is the error of hopFunctions where /proc/kallsyms shows only zeroes.
var errHidden = errors.New("the kernel hides addresses")

// hopFunctions returns the addresses of all functions that hops need. The error is
// errHidden where this process may not see them (kallsyms_show_value in the kernel).
func hopFunctions(kallsyms string) (map[string]uint64, error) {
	modules := map[string]string{"end_workqueue_bio": "btrfs", "end_compressed_bio_write": "btrfs"}
	for _, row := range hopRows {
		for _, end := range row.ends {
			modules[end] = row.module
		}
	}
	f, err := os.Open(kallsyms)
	if err != nil {
		return nil, fmt.Errorf("looking up functions: %w", err)
	}
	defer f.Close()
	found := map[string]uint64{}
	hidden := false
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// "ffffffffc0a1b2c3 t crypt_endio	[dm_crypt]"
		addr, rest, _ := strings.Cut(sc.Text(), " ")
		_, rest, _ = strings.Cut(rest, " ")
		name, module, _ := strings.Cut(rest, "\t")
		name, _, _ = strings.Cut(name, ".llvm.") // link time optimization
		want, ok := modules[name]
		module = strings.Trim(module, "[]")
		if !ok || module != "" && module != want {
			continue
		}
		n, err := strconv.ParseUint(addr, 16, 64)
		if err != nil || n == 0 {
			hidden = true
			continue
		}
		found[name] = n
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("looking up functions: %w", err)
	}
	if hidden && len(found) == 0 {
		return nil, errHidden
	}
	return found, nil
}

// unseenStacks are modules that write data in pages of their own, which nothing leads
// from: by the name of the module, whose use count says whether a device has it.
var unseenStacks = map[string]string{
	"dm_writecache": "dm-writecache",
	"dm_snapshot":   "dm-snapshot (copies of old data)",
	"dm_integrity":  "dm-integrity",
	"dm_cache":      "dm-cache (moved blocks)",
	"dm_vdo":        "VDO",
	"kvdo":          "VDO",
	"bcache":        "bcache (write-back)",
	"zfs":           "ZFS",
}

// scanUnseen says which stacks of this host hide the owners of their writes.
func (s *stack) scanUnseen(change func(func())) {
	for _, name := range s.devices.unseenStacks() {
		change(func() {
			s.block.addLimitation(Limitation{Text: "writes that " + name + " makes on its own count for (unattributed)"})
		})
	}
}

func (d *Devices) unseenStacks() []string {
	used := map[string]bool{}
	for module, name := range unseenStacks {
		count, err := os.ReadFile(filepath.Join(d.sys, "module", module, "refcnt"))
		if err == nil && strings.TrimSpace(string(count)) != "0" {
			used[name] = true
		}
	}
	return slices.Sorted(maps.Keys(used))
}
