package tracer

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// TestJournalList: the directory of jbd2 names file systems, and journals on devices
// of their own.
func TestJournalList(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []string
		want    map[Dev]bool
		whole   bool
	}{
		{name: "none", want: map[Dev]bool{}, whole: true},
		{name: "several", entries: []string{"sda1-8", "dm-0-8", "loop3-131"}, want: map[Dev]bool{8<<20 | 1: true, 253 << 20: true, 7<<20 | 3: true}, whole: true},
		{name: "a slash in the name", entries: []string{"cciss!c0d0-8"}, want: map[Dev]bool{104 << 20: true}, whole: true},
		{name: "a journal of its own", entries: []string{"sda1-8", "sdb"}, want: map[Dev]bool{8<<20 | 1: true}},
		{name: "a journal of its own on a dm device", entries: []string{"dm-0"}, want: map[Dev]bool{}},
		{name: "a device that is gone", entries: []string{"sdz-8"}, want: map[Dev]bool{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &Devices{sys: t.TempDir(), proc: t.TempDir()}
			for name, dev := range map[string]string{"sda1": "8:1", "sdb": "8:16", "dm-0": "253:0", "loop3": "7:3", "cciss!c0d0": "104:0"} {
				put(t, filepath.Join(d.sys, "class/block", name, "dev"), dev+"\n")
			}
			for _, name := range c.entries {
				put(t, filepath.Join(d.proc, "fs/jbd2", name, "info"), "")
			}
			if len(c.entries) == 0 {
				if err := os.MkdirAll(filepath.Join(d.proc, "fs/jbd2"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			found, whole, err := newJournals(&loader{core: &core{}}, d).list()
			if err != nil || !maps.Equal(found, c.want) || whole != c.whole {
				t.Errorf("found %v, whole %v, %v; want %v, %v", found, whole, err, c.want, c.whole)
			}
		})
	}
	d := &Devices{sys: t.TempDir(), proc: t.TempDir()}
	if found, whole, err := newJournals(&loader{core: &core{}}, d).list(); len(found) != 0 || !whole || err != nil {
		t.Errorf("without jbd2: found %v, whole %v, %v", found, whole, err)
	}
}

// put writes a file and the directories above it.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
