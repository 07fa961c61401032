package output

import (
	"slices"
	"strconv"
	"testing"
)

func TestFileText(t *testing.T) {
	for _, tt := range []struct {
		f            File
		text, inside string
	}{
		{File{}, "(not counted by file)", "(not counted by file)"},
		{File{Kind: FileJournal}, "(journal)", "(journal)"},
		{File{Kind: FileOther}, "(other files)", "(other files)"},
		{File{Kind: FileRegular, Path: "/a/b", Inode: 5, Links: 1}, "/a/b", "/a/b"},
		{File{Kind: FileRegular, Path: "/srv/a", Inside: "/data/a", Inode: 5, Links: 3}, "/srv/a (1 of 3 names)", "/data/a (1 of 3 names)"},
		{File{Kind: FileRegular, Path: "/srv/a", Removed: true, Links: 2}, "/srv/a (deleted)", "/srv/a (deleted)"},
		{File{Kind: FileRegular, Path: "/a", Partial: true}, ".../a", ".../a"},
		{File{Kind: FileRegular, Inode: 77}, "inode 77 (name unknown)", "inode 77 (name unknown)"},
		{File{Kind: FileRegular, Inode: 77, Removed: true}, "inode 77 (deleted)", "inode 77 (deleted)"},
		{File{Kind: FileRegular, Path: "/c/x-json.log", LogOf: "shop/web"}, "/c/x-json.log (log of shop/web)", "/c/x-json.log (log of shop/web)"},
	} {
		if got := FileText(&tt.f, false); got != tt.text {
			t.Errorf("%+v: %q, want %q", tt.f, got, tt.text)
		}
		if got := FileText(&tt.f, true); got != tt.inside {
			t.Errorf("%+v inside: %q, want %q", tt.f, got, tt.inside)
		}
	}
}

// TestByFile: files of one path are one row, those without a path are told apart by their
// numbers, and filters know both paths.
func TestByFile(t *testing.T) {
	iv := &Interval{}
	add := func(container string, f File, n uint64) {
		iv.Samples = append(iv.Samples, Sample{
			Source: SourceBlock, Level: LevelWire, Owner: OwnerContainer, Container: Container{ID: container, Name: container},
			Device: Device{ID: "8:0", Name: "sda"}, File: f, Write: Amount{Bytes: n, Ops: 1},
		})
	}
	add("web", File{Kind: FileRegular, Path: "/srv/log", Inside: "/log", Inode: 1}, 1)
	add("web", File{Kind: FileRegular, Path: "/srv/log", Inside: "/log", Inode: 2}, 2) // rotated
	add("db", File{Kind: FileRegular, Path: "/srv/log", Inside: "/logs/web", Inode: 2}, 4)
	add("db", File{Kind: FileRegular, Path: "/srv/log", Inside: "/logs/web", Inode: 1, Removed: true}, 8)
	add("db", File{Kind: FileRegular, Inode: 3}, 16)
	add("db", File{Kind: FileRegular, Inode: 4}, 32)
	add("db", File{Kind: FileMetadata}, 64)
	for _, tt := range []struct {
		by     []Key
		filter string
		want   []string
	}{
		{[]Key{KeyFile}, "", []string{"(metadata)=64", "inode 4 (name unknown)=32", "inode 3 (name unknown)=16", "/srv/log (deleted)=8", "/srv/log=7"}},
		{[]Key{KeyContainer, KeyFile}, "file=/log", []string{"web,/log=3"}},
		{[]Key{KeyContainer, KeyFile}, "file=/srv/*", []string{"db,/logs/web (deleted)=8", "db,/logs/web=4", "web,/log=3"}},
		{[]Key{KeyContainer}, "file=(metadata)", []string{"db=64"}},
	} {
		opt := GroupOptions{By: tt.by}
		if tt.filter != "" {
			f, err := ParseFilter(tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			opt.Filters = []Filter{f}
		}
		var got []string
		s := Group(iv, opt)
		for _, r := range s.Rows {
			text := ""
			for i, k := range r.Keys {
				if i > 0 {
					text += ","
				}
				text += k.Text
			}
			got = append(got, text+"="+strconv.FormatUint(r.Total.Write.Bytes, 10))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("by %v, %q:\n got %q\nwant %q", tt.by, tt.filter, got, tt.want)
		}
		if s.Total.Total.Write.Bytes != 127 {
			t.Errorf("the total is %d", s.Total.Total.Write.Bytes)
		}
	}
}
