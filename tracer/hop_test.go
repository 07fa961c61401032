package tracer

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// TestHopFunctions: functions are taken from the module that has them or from the kernel
// itself, never from another module, and hidden addresses are told from missing ones.
func TestHopFunctions(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       map[string]uint64
		err        error
	}{
		{"modules and built in", "ffffffff81000010 t bio_chain_endio\n" +
			"ffffffffc0000020 t clone_endio\t[dm_mod]\n" +
			"ffffffffc0000030 t crypt_endio\t[nvme]\n" +
			"ffffffffc0000040 t btrfs_simple_end_io.llvm.1234\t[btrfs]\n" +
			"ffffffff81000050 T submit_bio\n", map[string]uint64{
			"bio_chain_endio": 0xffffffff81000010, "clone_endio": 0xffffffffc0000020, "btrfs_simple_end_io": 0xffffffffc0000040,
		}, nil},
		{"hidden", "0000000000000000 t bio_chain_endio\n", nil, errHidden},
		{"none", "ffffffff81000050 T submit_bio\n", map[string]uint64{}, nil},
		{"garbage", "\n x\nffffffff81000050\nzz t bio_chain_endio\n", nil, errHidden},
	} {
		file := filepath.Join(t.TempDir(), "kallsyms")
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := hopFunctions(file)
		if !errors.Is(err, tt.err) || !maps.Equal(got, tt.want) {
			t.Errorf("%s: %x, %v, want %x, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

// TestHopsNeeded: the table is filled once something may need it, and again when a module
// was loaded again.
func TestHopsNeeded(t *testing.T) {
	sys := t.TempDir()
	d := &Devices{sys: sys}
	make := func(dir string) {
		if err := os.MkdirAll(filepath.Join(sys, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	need := func(softCrypto bool) string {
		need, stacks, err := d.hopsNeeded(softCrypto, false)
		if err != nil {
			t.Fatal(err)
		}
		if stacks == (need == "" || strings.HasPrefix(need, " blk-crypto")) {
			t.Errorf("%q: stacks %v", need, stacks)
		}
		return need
	}
	if _, _, err := d.hopsNeeded(false, false); err == nil {
		t.Error("no error without sysfs")
	}
	make("block/sda")
	make("module/dm_mod")
	make("fs/btrfs/features")
	if got := need(false); got != "" {
		t.Errorf("a plain host needs %q", got)
	}
	if need(true) == "" {
		t.Error("nothing is needed for blk-crypto")
	}
	make("fs/btrfs/0b2d86a0-6a8a-4b80-a1a6-2b0f4c0a6f30")
	if need(false) == "" {
		t.Error("nothing is needed for a mounted btrfs")
	}
	make("block/dm-0")
	before := need(false)
	make("module/dm_crypt.new") // another inode than the one that follows
	make("module/dm_crypt")
	loaded := need(false)
	if err := os.Remove(filepath.Join(sys, "module/dm_crypt")); err != nil {
		t.Fatal(err)
	}
	gone := need(false)
	if err := os.Rename(filepath.Join(sys, "module/dm_crypt.new"), filepath.Join(sys, "module/dm_crypt")); err != nil {
		t.Fatal(err)
	}
	again := need(false)
	if before == loaded || gone != before || again == loaded {
		t.Errorf("%q, loaded %q, unloaded %q, loaded again %q", before, loaded, gone, again)
	}
}

// TestUnseenStacks: only stacks that a device uses are named.
func TestUnseenStacks(t *testing.T) {
	sys := t.TempDir()
	for module, count := range map[string]string{"dm_vdo": "1", "zfs": "0", "dm_cache": "2"} {
		dir := filepath.Join(sys, "module", module)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "refcnt"), []byte(count+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := (&Devices{sys: sys}).unseenStacks()
	if len(got) != 2 || got[0] != "VDO" || got[1] != "dm-cache (moved blocks)" {
		t.Errorf("%q", got)
	}
}

// TestOldHops: without types of modules, constants stand for the structs of 5.10 and for
// no others.
func TestOldHops(t *testing.T) {
	functions := map[string]uint64{"end_workqueue_bio": 1, "end_compressed_bio_write": 2}
	always := []string{"bio_chain_endio", "blk_crypto_fallback_encrypt_endio", "blkdev_bio_end_io", "iomap_dio_bio_end_io",
		"dio_bio_end_io", "submit_bio_wait_endio", "bio_complete", "end_bio_bh_io_sync"}
	constants := []string{"clone_endio", "raid1_end_write_request", "raid10_end_write_request", "crypt_endio", "btrfs_end_bio"}
	for old, want := range map[bool][]string{true: slices.Concat(always, constants), false: always} {
		types := &hopTypes{functions: functions, old: old}
		var got []string
		for _, row := range hopRows {
			if _, ok := row.hop(types); ok {
				got = append(got, row.ends[0])
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("old %v: %v, want %v", old, got, want)
		}
	}
}

// madeTypes are a kernel's types, here these.
func madeTypes(t *testing.T, old bool, types ...btf.Type) *hopTypes {
	t.Helper()
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return &hopTypes{specs: []*btf.Spec{spec}, old: old}
}

// TestCopyFields: the client of a server-side copy, with the structs of three generations.
func TestCopyFields(t *testing.T) {
	word := &btf.Int{Name: "unsigned long", Size: 8}
	client := &btf.Struct{Name: "nfs4_client", Size: 1400, Members: []btf.Member{{Name: "cl_addr", Type: word, Offset: 120 * 8}}}
	copied := &btf.Struct{Name: "nfsd4_copy", Size: 456, Members: []btf.Member{{Name: "cp_clp", Type: &btf.Pointer{Target: client}, Offset: 256 * 8}}}
	async := &btf.Struct{Name: "nfsd4_async_copy", Size: 896, Members: []btf.Member{{Name: "cp_copy", Type: copied, Offset: 80 * 8}}}
	for _, tt := range []struct {
		name  string
		types *hopTypes
		want  bpf.CoreCopyFields
		ok    bool
	}{
		{"7.3", madeTypes(t, false, async), bpf.CoreCopyFields{Client: 336, Address: 120}, true},
		{"6.12", madeTypes(t, false, copied), bpf.CoreCopyFields{Client: 256, Address: 120}, true},
		{"5.10, no types", madeTypes(t, true, word), bpf.CoreCopyFields{Client: copyClient510, Address: clientAddress510}, true},
		{"no types", madeTypes(t, false, word), bpf.CoreCopyFields{}, false},
	} {
		got, ok := copyFields(tt.types)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s: %+v, %t, want %+v, %t", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// TestHopCopies: a module may have a struct several times. What all copies agree on is
// known, and nothing else is.
func TestHopCopies(t *testing.T) {
	word := &btf.Int{Name: "unsigned long", Size: 8}
	pair := func(second btf.Type, at btf.Bits) *btf.Struct {
		return &btf.Struct{Name: "pair", Size: 24, Members: []btf.Member{
			{Name: "first", Type: word}, {Name: "second", Type: &btf.Pointer{Target: second}, Offset: at},
		}}
	}
	for _, tt := range []struct {
		name  string
		types []btf.Type
		at    offset
		old   bool
	}{
		{"one", []btf.Type{pair(word, 64)}, offset{8, true}, false},
		{"two", []btf.Type{pair(word, 64), pair(&btf.Struct{Name: "other", Size: 8}, 64)}, offset{8, true}, false},
		{"two that differ", []btf.Type{pair(word, 64), pair(word, 128)}, offset{}, true},
		{"none", []btf.Type{word}, offset{40, true}, true},
		{"none, and no constant", []btf.Type{word}, offset{40, false}, false},
	} {
		types := madeTypes(t, tt.old, tt.types...)
		if got := types.at("pair", 40, "second"); got != tt.at {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.at)
		}
		if size, known := types.size("pair", 40); known && len(types.find("pair")) > 0 && size != 24 {
			t.Errorf("%s: size %d", tt.name, size)
		}
	}
}
