// Package recording writes intervals to a file and reads them back.
package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/file"
)

// The format of a recording.
//
// A recording is an ordinary Zstandard file (RFC 8878) whose content is a CBOR
// sequence (RFC 8742): `zstd -dc FILE` gives one CBOR item after the other, the
// first is the header, each other one an interval. These two standards give an
// incident what it needs:
//
//   - Crash safety. Every interval is one complete zstd frame with its own
//     checksum. One write(2) hands it to the kernel, and it is synced to the disk
//     in the background. A killed writer loses only the interval that it had not
//     written yet. Parquet and the Arrow file format keep their index in a footer
//     that a killed writer never writes. Avro's blocks would do, but its schema
//     language has no advantage over CBOR maps with integer keys, and no Avro
//     reader limits as tightly what a hostile file may allocate.
//   - A time slider. Before each frame there is a skippable frame, which every
//     zstd tool steps over, with a small CBOR array: kind, whether decoding may
//     start here, start, end, compressed and plain size. The index is read from
//     these, without decompression.
//   - Growth. Interval maps have integer keys: a reader steps over keys and
//     columns that it does not know, and uses zero for missing ones. The version
//     changes only when that is not enough.
//
// Names, labels and whole identities are written once; later intervals refer to
// them by number, until the next key frame (at least every keyEvery intervals).
// Each interval says how many there were before it, so that damage to one hides
// only the others that use a name which it brought.
// Amounts are columns, not rows. BenchmarkRecordSize shows what that saves.
const (
	fileFormat = "iotrace-bpf recording"
	version    = 1
	skipID     = 0x184D2A5D // one of the sixteen skippable magics of RFC 8878
	keyEvery   = 32

	kindHeader   = 1
	kindInterval = 2
)

// Limits of writer and reader. They keep a hostile file from making the reader
// allocate more than the largest honest one.
const (
	maxEntry    = 64                // bytes of a skippable frame's content
	maxPlain    = 32 << 20          // bytes of a decompressed frame
	maxSamples  = output.MaxSamples // of an interval
	maxEvents   = 1 << 18           // events of an interval
	maxIdents   = 1 << 18           // identities between two key frames
	maxLabels   = 1 << 20           // label pairs between two key frames
	maxText     = 32 << 20          // bytes of names between two key frames
	maxElements = 1 << 21           // elements of one CBOR array
	maxIndex    = 1 << 22           // intervals of a recording in all its files
	maxParts    = 9999              // highest number n of FILE.n
	maxString   = 64 << 10          // bytes of one name; longer ones are cut
	maxDamage   = 1000              // places of damage in a recording to read on behind
	maxGroup    = 1024              // intervals from one key frame to the next; a Writer has keyEvery
	maxHeader   = 64 << 10          // bytes of a decompressed header
	minBytes    = 128 << 10         // smallest Options.MaxBytes
)

// What a frame may become, in proportion to its bytes in the file: reading a small file
// takes little memory and little time, whatever is in it. Real intervals are decompressed
// to 8 times their size at most, and take 500 bytes of memory for each byte. A Writer pads
// a frame that would be beyond these limits.
const (
	plainFlat, plainFactor   = 1 << 10, 32    // decompressed bytes
	memoryFlat, memoryFactor = 16 << 10, 1024 // bytes of samples, identities, labels and events
)

// plainLimit returns how many bytes a frame of size bytes may decompress to.
func plainLimit(size int64) int64 { return plainFlat + plainFactor*size }

// memoryLimit returns how many bytes of memory may be made of size bytes of a file.
func memoryLimit(size int64) int64 { return memoryFlat + memoryFactor*size }

// padding is the magic of the skippable frame that pads another one.
const padding = 0x184D2A50

// syncEvery is the shortest time between two syncs: intervals may be much shorter
// than a second. A killed writer loses nothing by it, a power cut loses up to this
// much more.
const syncEvery = 900 * time.Millisecond

// What a zero in Options means.
const (
	DefaultMaxBytes = 256 << 20
	DefaultKeep     = 7
)

var (
	// ErrTruncated: the recording ends in the middle of an interval, because the
	// writer was killed, the disk was full or the copy is incomplete.
	ErrTruncated = errors.New("truncated")
	// ErrCorrupt: the recording's bytes contradict themselves.
	ErrCorrupt = errors.New("corrupt")
	// ErrNotRecording: the file is something else.
	ErrNotRecording = errors.New("not a recording of iotrace-bpf")
	// ErrVersion: the recording was made by a newer iotrace-bpf.
	ErrVersion = errors.New("made by a newer version of iotrace-bpf")
	// ErrTooLarge: an interval is larger than a recording can hold.
	ErrTooLarge = errors.New("too large to be recorded")
)

// Options says how much disk a recording may take, and what its header says.
type Options struct {
	// MaxBytes is the size in bytes at which FILE becomes FILE.1 and a new FILE
	// begins: 0 means DefaultMaxBytes, a negative number no limit, and the smallest
	// is 128 KiB. A file holds at least one interval, however large.
	MaxBytes int64
	// Keep is the number of older files to keep, FILE.1 (the youngest) to FILE.n: 0
	// means DefaultKeep, a negative number none, and the largest is 9999.
	Keep int
	// Tool is the version of iotrace-bpf, for the header.
	Tool string
	// Host is the machine that is recorded, for the header.
	Host output.Host
}

// Stats counts what a Writer did since Create.
type Stats struct {
	Intervals uint64 // written
	Failed    uint64 // intervals not written: disk full, too large ...
	Events    uint64 // events left out of written intervals, beyond the limit of one
	Bytes     uint64 // written to all files
	Files     uint64 // created
}

// Writer writes intervals to a file of mode 0600, because names and labels of
// containers are in it. It is safe for concurrent use.
type Writer struct {
	path string
	opt  Options

	mu     sync.Mutex
	file   *os.File // nil once closed, or after a rotation that failed
	size   int64
	inFile int // intervals in file
	sinceK int // intervals since the key frame, including it
	closed bool
	enc    *encoder
	zenc   *zstd.Encoder
	buf    []byte // frame being built
	plain  bytes.Buffer
	stats  Stats

	syncs    chan syncState
	syncDone chan struct{}
	syncMu   sync.Mutex
	syncErr  error
	lastSync time.Time
}

// syncState asks syncLoop to sync a file, and to close it if close is set.
type syncState struct {
	file  *os.File
	close bool
}

// fileHeader is the first item of every file.
type fileHeader struct {
	Format  string `cbor:"format"`
	Version uint64 `cbor:"version"`
	Tool    string `cbor:"tool,omitempty"`
	Host    string `cbor:"host,omitempty"`
	HostID  string `cbor:"host_id,omitempty"`
	Kernel  string `cbor:"kernel,omitempty"`
	Start   int64  `cbor:"start"` // ns since 1970
}

// fileEntry is the content of the skippable frame before every frame.
type fileEntry struct {
	_     struct{} `cbor:",toarray"`
	Kind  uint8
	Key   bool // this interval refers to no names and identities before it
	Start int64
	End   int64
	Size  uint32 // bytes of the zstd frame that follows
	Plain uint32 // bytes of its content
}

// Create begins a recording at path. A recording that exists there, for instance from
// before a crash, becomes path.1 like one that has reached its size. It is an error if
// path or one of the older files is something else (ErrNotRecording), if path is a
// recording and Keep is negative, or if another Writer writes to it.
func Create(path string, opt Options) (*Writer, error) {
	switch {
	case opt.MaxBytes == 0:
		opt.MaxBytes = DefaultMaxBytes
	case opt.MaxBytes > 0 && opt.MaxBytes < minBytes:
		return nil, fmt.Errorf("recording %q: size limit of %d bytes is below the minimum of %d", path, opt.MaxBytes, int64(minBytes))
	}
	switch {
	case opt.Keep == 0:
		opt.Keep = DefaultKeep
	case opt.Keep < 0:
		opt.Keep = 0
	case opt.Keep > maxParts:
		return nil, fmt.Errorf("recording %q: cannot keep %d older files, at most %d", path, opt.Keep, maxParts)
	}
	zenc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("recording %q: %w", path, err)
	}
	enc, err := newEncoder()
	if err != nil {
		return nil, fmt.Errorf("recording %q: %w", path, err)
	}
	r := &Writer{
		path: path, opt: opt, enc: enc, zenc: zenc,
		syncs:    make(chan syncState, 4),
		syncDone: make(chan struct{}),
	}
	if err := r.checkParts(); err != nil {
		return nil, err
	}
	if err := r.takeOver(); err != nil {
		return nil, err
	}
	if err := r.begin(); err != nil {
		return nil, err
	}
	go r.syncLoop()
	return r, nil
}

// takeOver renames an earlier recording at path.
func (r *Writer) takeOver() error {
	f, err := file.Open(r.path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	defer f.Close()
	// The lock belongs to the file, not to its name, so this also finds a writer that
	// has just created it.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("recording %q: another iotrace-bpf is writing it", r.path)
		}
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	if fi.Size() == 0 {
		// A writer leaves this behind when the disk was full from the start.
		return os.Remove(r.path)
	}
	if !sniff(f) {
		return fmt.Errorf("recording %q: exists and is %w", r.path, ErrNotRecording)
	}
	if r.opt.Keep == 0 {
		return fmt.Errorf("recording %q: exists, and older recordings are not kept", r.path)
	}
	return r.shift()
}

// sniff reports whether f begins like a recording.
func sniff(f io.ReaderAt) bool {
	e, _, err := readEntry(f, 0)
	return err == nil && e.Kind == kindHeader
}

// checkParts returns an error if one of the older files is not a recording: better
// now than at the first rotation.
func (r *Writer) checkParts() error {
	for n := 1; n <= r.opt.Keep; n++ {
		if _, err := r.older(n); err != nil {
			return err
		}
	}
	return nil
}

// older reports whether there is an n-th older file. It is an error if that is not a
// recording.
func (r *Writer) older(n int) (bool, error) {
	name := partPath(r.path, n)
	f, err := file.Open(name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("recording %q: %w", r.path, err)
	}
	defer f.Close()
	if !sniff(f) {
		return false, fmt.Errorf("recording %q: older file %q is %w", r.path, name, ErrNotRecording)
	}
	return true, nil
}

// shift renames FILE.n to FILE.n+1, oldest first, and FILE to FILE.1.
func (r *Writer) shift() error {
	for n := r.opt.Keep; n >= 0; n-- {
		there, err := r.older(n)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		from := partPath(r.path, n)
		if n == r.opt.Keep {
			err = os.Remove(from)
		} else {
			err = os.Rename(from, partPath(r.path, n+1))
		}
		if err != nil {
			return fmt.Errorf("recording %q: %w", r.path, err)
		}
	}
	return nil
}

// partPath returns the path of the n-th older file. For n = 0 that is path itself.
func partPath(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// begin creates the file and writes the header.
func (r *Writer) begin() error {
	f, err := file.Open(r.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	fail := func(err error) error {
		f.Close()
		os.Remove(r.path)
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fail(err)
	}
	frame, err := r.header()
	if err != nil {
		return fail(err)
	}
	if _, err := f.Write(frame); err != nil {
		return fail(err)
	}
	if err := file.SyncDir(r.path); err != nil {
		return fail(err)
	}
	r.file, r.size, r.inFile = f, int64(len(frame)), 0
	r.stats.Bytes += uint64(len(frame))
	r.stats.Files++
	r.restart()
	return nil
}

// header builds the first frame.
func (r *Writer) header() ([]byte, error) {
	h := fileHeader{
		Format: fileFormat, Version: version, Tool: valid(r.opt.Tool),
		Host: valid(r.opt.Host.Name), HostID: valid(r.opt.Host.ID), Kernel: valid(r.opt.Host.Kernel),
		Start: time.Now().UnixNano(),
	}
	plain, err := r.enc.mode.Marshal(h)
	if err != nil {
		return nil, err
	}
	return r.frame(fileEntry{Kind: kindHeader, Key: true, Start: h.Start, End: h.Start}, plain, 0)
}

// valid cuts text to 1 KiB of UTF-8, for the header: its strings are plain CBOR text.
func valid(s string) string {
	if len(s) > 1024 {
		s = s[:1024]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// restart makes the next interval a key frame.
func (r *Writer) restart() {
	r.enc.reset()
	r.sinceK = 0
}

// frame builds entry and zstd frame in r.buf. memory is how many bytes a reader needs for
// what is in plain.
func (r *Writer) frame(e fileEntry, plain []byte, memory int64) ([]byte, error) {
	if len(plain) > maxPlain {
		return nil, fmt.Errorf("interval of %d bytes: %w", len(plain), ErrTooLarge)
	}
	z := pad(r.zenc.EncodeAll(plain, r.buf[:0]), int64(len(plain)), memory)
	r.buf = z
	e.Size, e.Plain = uint32(len(z)), uint32(len(plain))
	head, err := r.enc.mode.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(head) > maxEntry {
		return nil, fmt.Errorf("entry of %d bytes: %w", len(head), ErrTooLarge)
	}
	// One buffer, so that one write(2) carries both.
	n := 8 + len(head)
	frame := append(z, make([]byte, n)...)
	copy(frame[n:], frame[:len(z)])
	binary.LittleEndian.PutUint32(frame, skipID)
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(head)))
	copy(frame[8:], head)
	r.buf = frame
	return frame, nil
}

// pad appends a skippable frame to z where it is too small for what becomes of it.
func pad(z []byte, plain, memory int64) []byte {
	size := max((plain-plainFlat+plainFactor-1)/plainFactor, (memory-memoryFlat+memoryFactor-1)/memoryFactor)
	if int64(len(z)) >= size {
		return z
	}
	n := max(0, size-int64(len(z))-8)
	z = binary.LittleEndian.AppendUint32(z, padding)
	z = binary.LittleEndian.AppendUint32(z, uint32(n))
	return append(z, make([]byte, n)...)
}

// Write appends one interval and does not keep iv. After an error the recording is as
// it was before, and a later Write may succeed, for instance when a full disk has room
// again; Stats counts the intervals that were not written. Errors are ErrTooLarge,
// os.ErrClosed, those of the file system, and the error of an earlier sync, which
// says nothing about this interval. Text longer than 64 KiB is cut. Events beyond
// 262,144 are left out and added to Lost.Exports of the recorded interval.
func (r *Writer) Write(iv *output.Interval) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("recording %q: %w", r.path, os.ErrClosed)
	}
	if err := r.write(iv); err != nil {
		r.stats.Failed++
		// No reader knows the names that the failed frame would have defined.
		r.restart()
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	r.stats.Intervals++
	if err := r.takeSyncErr(); err != nil {
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	return nil
}

func (r *Writer) write(iv *output.Interval) error {
	if r.file == nil {
		// A rotation failed half-way: the old file was renamed, the new one not created.
		if err := r.takeOver(); err != nil {
			return err
		}
		if err := r.begin(); err != nil {
			return err
		}
	}
	if r.sinceK >= keyEvery {
		r.restart()
	}
	frame, err := r.encode(iv)
	if errors.Is(err, ErrTooLarge) && r.sinceK > 0 {
		// Too many names since the key frame: make another key frame.
		r.restart()
		frame, err = r.encode(iv)
	}
	if err != nil {
		return err
	}
	if r.opt.MaxBytes > 0 && r.inFile > 0 && r.size+int64(len(frame)) > r.opt.MaxBytes {
		if err := r.rotate(); err != nil {
			return err
		}
		if frame, err = r.encode(iv); err != nil {
			return err
		}
	}
	if n, err := r.file.Write(frame); err != nil {
		// Half a frame would hide everything after it.
		if n > 0 {
			if terr := r.file.Truncate(r.size); terr != nil {
				return errors.Join(err, terr)
			}
			if _, serr := r.file.Seek(r.size, io.SeekStart); serr != nil {
				return errors.Join(err, serr)
			}
		}
		return err
	}
	r.size += int64(len(frame))
	r.stats.Bytes += uint64(len(frame))
	r.stats.Events += r.enc.left
	r.inFile++
	r.sinceK++
	// The disk may be stuck, and this may be the disk under watch: syncLoop waits for
	// it. One sync in the queue is enough.
	if now := time.Now(); len(r.syncs) == 0 && now.Sub(r.lastSync) >= syncEvery {
		r.syncs <- syncState{file: r.file}
		r.lastSync = now
	}
	return nil
}

// encode builds the frame of iv with the names known so far.
func (r *Writer) encode(iv *output.Interval) ([]byte, error) {
	w, err := r.enc.interval(iv)
	if err != nil {
		return nil, err
	}
	r.plain.Reset()
	if err := r.enc.mode.NewEncoder(&r.plain).Encode(w); err != nil {
		return nil, err
	}
	return r.frame(fileEntry{Kind: kindInterval, Key: r.sinceK == 0, Start: w.Start, End: w.End}, r.plain.Bytes(), w.memory())
}

// rotate renames the full file and begins a new one.
func (r *Writer) rotate() error {
	if r.opt.Keep == 0 {
		if err := os.Remove(r.path); err != nil {
			return err
		}
	} else if err := r.shift(); err != nil {
		return err
	}
	// Blocks only when several files wait for a stuck disk: their number is bounded.
	r.syncs <- syncState{file: r.file, close: true}
	r.file = nil
	return r.begin()
}

// syncLoop syncs files until the channel is closed.
func (r *Writer) syncLoop() {
	defer close(r.syncDone)
	for s := range r.syncs {
		err := unix.Fdatasync(int(s.file.Fd()))
		if errors.Is(err, unix.EINVAL) {
			err = nil // a file system without fdatasync
		}
		if s.close {
			err = errors.Join(err, s.file.Close())
		}
		if err != nil {
			r.syncMu.Lock()
			r.syncErr = err
			r.syncMu.Unlock()
		}
	}
}

// takeSyncErr returns the error of a sync since the last call.
func (r *Writer) takeSyncErr() error {
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	err := r.syncErr
	r.syncErr = nil
	return err
}

// Stats returns the counters.
func (r *Writer) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Close waits until everything is on the disk, and returns the error of a sync that
// no Write returned. A second Close does nothing.
func (r *Writer) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.file != nil {
		r.syncs <- syncState{file: r.file, close: true}
		r.file = nil
	}
	close(r.syncs)
	<-r.syncDone
	r.zenc.Close()
	if err := r.takeSyncErr(); err != nil {
		return fmt.Errorf("recording %q: %w", r.path, err)
	}
	return nil
}

// readEntry reads the skippable frame at off. body is the offset of the zstd frame
// after it. io.EOF means that the file ends exactly at off.
func readEntry(f io.ReaderAt, off int64) (e fileEntry, body int64, err error) {
	var b [8 + maxEntry]byte
	n, rerr := f.ReadAt(b[:], off)
	if rerr != nil && !errors.Is(rerr, io.EOF) {
		return e, 0, rerr
	}
	if n == 0 {
		return e, 0, io.EOF
	}
	if bytes.Count(b[:n], []byte{0}) == n {
		// A power cut leaves blocks that were allocated and not written.
		return e, 0, fmt.Errorf("zeros instead of an interval: %w", ErrTruncated)
	}
	if n >= 4 && binary.LittleEndian.Uint32(b[:]) != skipID {
		return e, 0, fmt.Errorf("no interval begins here: %w", ErrCorrupt)
	}
	if n < 8 {
		return e, 0, ErrTruncated
	}
	l := int(binary.LittleEndian.Uint32(b[4:]))
	if l > maxEntry {
		return e, 0, fmt.Errorf("index entry of %d bytes: %w", uint32(l), ErrCorrupt)
	}
	if n < 8+l {
		return e, 0, ErrTruncated
	}
	if err := decMode.Unmarshal(b[8:8+l], &e); err != nil {
		return e, 0, fmt.Errorf("index entry: %w: %v", ErrCorrupt, err)
	}
	if e.Plain > maxPlain || e.Size > maxPlain+maxPlain/128 || e.Size == 0 || int64(e.Plain) > plainLimit(int64(e.Size)) ||
		e.Start < 0 || e.End < e.Start || e.Kind == 0 {
		return e, 0, fmt.Errorf("index entry out of range: %w", ErrCorrupt)
	}
	return e, off + 8 + int64(l), nil
}

// decMode rejects CBOR that no Writer writes, before anything is allocated for it.
var decMode = mustDecMode()

func mustDecMode() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  8,
		MaxArrayElements: maxElements,
		MaxMapPairs:      256,
	}.DecMode()
	if err != nil {
		panic(err) // the options above are constants
	}
	return m
}

// partPaths lists the files of a recording, oldest first.
func partPaths(path string) ([]string, error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	d, err := os.Open(dir)
	if err != nil {
		// The file may be readable in a directory that we may not list.
		return []string{path}, nil
	}
	defer d.Close()
	var older []int
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			num, ok := strings.CutPrefix(name, base+".")
			if !ok {
				continue
			}
			n, err := strconv.Atoi(num)
			if err == nil && n >= 1 && n <= maxParts && strconv.Itoa(n) == num {
				older = append(older, n)
			}
		}
		if err != nil {
			break
		}
	}
	sort.Sort(sort.Reverse(sort.IntSlice(older)))
	parts := make([]string, 0, len(older)+1)
	for _, n := range older {
		parts = append(parts, partPath(path, n))
	}
	return append(parts, path), nil
}
