package tracer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// FileID names the file of a row: one of the constants, or a file that Tracer.File knows.
type FileID uint32

// What is no file, as in bpf/core/types.h.
const (
	FileUnknown  FileID = 0 // nothing tells, or the request is no file's: a flush, say
	FileSwap            = FileID(fileBit | 1)
	FileMetadata        = FileID(fileBit | 2) // of a file system
	FileJournal         = FileID(fileBit | 3)
	FileDevice          = FileID(fileBit | 4) // direct I/O of a block device
	FileOther           = FileID(fileBit | 5) // it had no room in the map

	fileBit   = 1 << 31
	fileFirst = FileID(fileBit | 16)
)

func (f FileID) isFile() bool { return f&fileBit != 0 }

// File is what the kernel knows of a file.
type File struct {
	Dev    Dev // of its superblock
	Inode  uint64
	Device Dev // a block device: its blocks in the page cache; else 0

	// Path is where the file is below the root of its file system, with a slash before
	// each name: "" where the kernel remembers no name, or is reused for another file.
	Path    string
	Partial bool   // the upper part of Path is missing
	Removed bool   // the name, or the file, was removed
	Links   uint32 // names that the file has; Path is one of them
}

// How long a name is believed, and a file without I/O is remembered.
const (
	nameFresh  = 2 * time.Second
	fileIdle   = time.Minute
	namesAtOne = 4096 // most names that are looked up in one interval
)

// Bits of the state of a name: enum iot_name_state in bpf/core/types.h.
const (
	nameGone = 1 << iota
	nameNone
	nameRemoved
	namePartial
)

// Kinds of inodes: include/uapi/linux/stat.h
const (
	modeMask  = 0o170000
	modeBlock = 0o060000
)

// files names the files of rows. The programs know numbers only.
type files struct {
	table   *ebpf.Map // by number
	names   *ebpf.Map
	program *ebpf.Program
	now     func() time.Time

	mu    sync.Mutex
	known map[FileID]*knownFile
	// forgotten are files that were taken out of the table, but may be in rows that the
	// programs counted before.
	forgotten map[FileID]*knownFile
	left      int // names that may be looked up in this interval
}

type knownFile struct {
	File
	record bpf.CoreFileRecord
	named  time.Time // zero: never
	used   time.Time
}

// openFiles loads the program that names files.
func (c *loader) openFiles() (*files, error) {
	spec, err := c.read(bpf.NamesObject(), nil)
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: c.sharedIn(spec), Cache: c.cache})
	if err != nil {
		return nil, fmt.Errorf("loading the program that names files: %w", err)
	}
	defer coll.Close()
	return &files{
		table: c.shared[bpf.CoreMapFiles], names: coll.DetachMap(bpf.NamesMapFileNames), program: coll.DetachProgram(bpf.NamesProgIotFileName),
		now: time.Now, known: map[FileID]*knownFile{}, forgotten: map[FileID]*knownFile{}, left: namesAtOne,
	}, nil
}

func (f *files) Close() error { return errors.Join(f.names.Close(), f.program.Close()) }

// CountFiles begins or ends keeping rows by file, with Options.ByFile: Key.File takes the
// place of Key.FSDev. The first time it loads a program.
func (t *Tracer) CountFiles(on bool) error {
	if !t.opt.ByFile {
		return errors.New("the programs were loaded without files")
	}
	if on && t.files.Load() == nil {
		l, err := t.core.loader()
		if err != nil {
			return fmt.Errorf("naming files: %w", err)
		}
		f, err := l.openFiles()
		if err != nil {
			return explain(err)
		}
		t.mu.Lock()
		t.closers = append(t.closers, f.Close)
		t.mu.Unlock()
		t.files.Store(f)
	}
	t.core.byFile.Store(on) // direct I/O is followed from the next look at devices on
	var value uint32
	if on {
		value = 1
		t.refresh()
	}
	if err := t.core.shared[bpf.CoreMapFileSwitch].Update(uint32(0), value, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("keeping rows by file: %w", err)
	}
	return nil
}

// File describes a file of a row of the last interval. It returns false for what is no
// file, and for one that is not known any more. The name is at most two seconds old; no
// file system is asked for it.
func (t *Tracer) File(id FileID) (File, bool) {
	f := t.files.Load()
	if f == nil || id < fileFirst {
		return File{}, false
	}
	return f.file(id)
}

func (f *files) file(id FileID) (File, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k, ok := f.known[id]
	if !ok { // of a single record, and of no row yet
		k = f.meet(id)
		k.used = f.now()
		f.known[id] = k
	}
	if k.record.Dev == 0 {
		return File{}, false
	}
	if f.now().Sub(k.named) > nameFresh && f.left > 0 {
		f.left--
		f.name(id, k)
	}
	return k.File, true
}

// saw learns which files an interval has, and forgets those without I/O. The records of
// files are read now: afterwards a number may stand for another file.
func (f *files) saw(iv *Interval) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	f.left = namesAtOne
	look := func(id FileID) {
		if id < fileFirst {
			return
		}
		k := f.known[id]
		if k == nil {
			k = f.meet(id)
			f.known[id] = k
		}
		k.used = now
	}
	for i := range iv.Rows {
		look(iv.Rows[i].File)
	}
	for i := range iv.Records {
		look(iv.Records[i].File)
	}
	for id, k := range f.forgotten {
		if now.Sub(k.used) > 2*fileIdle {
			delete(f.forgotten, id)
		}
	}
	if uint32(len(f.known)) < f.table.MaxEntries()/2 {
		return
	}
	// Those that were idle longest, and no file that was in use a moment ago.
	for id, k := range f.known {
		if now.Sub(k.used) > fileIdle {
			if err := f.table.Delete(uint32(id)); err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
				f.forgotten[id] = k
				delete(f.known, id)
			}
		}
	}
}

// meet reads what a number stands for.
func (f *files) meet(id FileID) *knownFile {
	k := &knownFile{}
	before := f.forgotten[id]
	err := f.table.Lookup(uint32(id), &k.record)
	switch {
	case err != nil && before != nil:
		return before // its last I/O came as it was forgotten
	case err != nil:
		return k
	case before != nil && !sameFile(&before.record, &k.record):
		return &knownFile{} // some of the bytes are one's, some the other's
	}
	k.Dev, k.Inode = Dev(k.record.Dev), k.record.Ino
	if k.record.Mode&modeMask == modeBlock {
		k.Device = Dev(k.record.Rdev)
		k.Dev = k.Device
	}
	return k
}

func sameFile(a, b *bpf.CoreFileRecord) bool {
	return a.Ino == b.Ino && a.Dev == b.Dev && a.Generation == b.Generation && a.More == b.More
}

// name asks the program for a file's name. A name that was known is kept where the inode
// left the memory of the kernel since: nothing says that it has changed.
func (f *files) name(id FileID, k *knownFile) {
	if k.Inode == 0 || k.Device != 0 {
		return
	}
	k.named = f.now()
	var n bpf.NamesFileName
	for range 2 { // once more where it was being renamed
		if _, err := f.program.Run(&ebpf.RunOptions{Context: []uint64{uint64(id)}}); err != nil {
			return
		}
		if err := f.names.Lookup(uint32(0), &n); err != nil {
			return
		}
		if n.State&nameGone == 0 {
			break
		}
	}
	if n.State&nameGone != 0 {
		return
	}
	k.Links, k.Removed, k.Partial = n.Links, n.State&nameRemoved != 0, n.State&namePartial != 0
	if n.State&nameNone == 0 {
		k.Path = joinNames(n.Text[:], n.Bytes, n.Depth)
	}
}

// joinNames makes a path of names from the last one up, each of which ends with NUL.
func joinNames(text []int8, used, depth uint32) string {
	b := make([]byte, min(int(used), len(text)))
	for i := range b {
		b[i] = byte(text[i])
	}
	parts := bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0})
	if depth == 0 || len(parts) != int(depth) {
		return ""
	}
	slices.Reverse(parts)
	var path strings.Builder
	for _, p := range parts {
		path.WriteByte('/')
		path.Write(p)
	}
	return path.String()
}
