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
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// The format of a recording.
//
// A recording is an ordinary Zstandard file (RFC 8878) whose content is a CBOR
// sequence (RFC 8742): `zstd -dc FILE` gives one CBOR item after the other, the
// first is the header, each other one an interval. Nothing else has to be
// invented for what an incident asks of it:
//
//   - Crash safety. Every interval is one complete zstd frame with its own
//     checksum, handed to the kernel by one write(2) and synced to the disk in
//     the background. Whoever kills the recorder loses the interval that was
//     not written yet. Parquet and the Arrow file format keep their index in a
//     footer that a killed recorder never writes; Avro's blocks would do, but
//     its schema language buys nothing over integer-keyed CBOR maps here, and
//     no Avro reader limits what a hostile file may allocate as tightly.
//   - A time slider. In front of each frame stands a skippable frame, which
//     every zstd tool steps over, with a small CBOR array: kind, whether
//     decoding may start here, start, end, compressed and plain size. The index
//     is read from these without decompressing anything.
//   - Growth. Interval maps have integer keys: a reader steps over keys and
//     columns that it does not know, and takes zero for those that are missing.
//     Version changes only when that is not enough.
//
// Names, labels and whole identities are written once and then referred to by
// number until the next key frame (at least every keyEvery intervals);
// amounts are columns, not rows. That pays: see BenchmarkRecordSize for the
// figures with and without.
const (
	fileFormat = "iotrace-bpf recording"
	version    = 1
	skipID     = 0x184D2A5D // one of zstd's sixteen skippable magics
	keyEvery   = 128

	kindHeader   = 1
	kindInterval = 2
)

// Limits that writer and reader share, so that a file that lies cannot make the
// reader allocate more than an honest one could.
const (
	maxEntry    = 64                // bytes of a skippable frame's content
	maxPlain    = 32 << 20          // bytes of a decompressed frame
	maxSamples  = output.MaxSamples // of an interval
	maxEvents   = 1 << 18           // events of an interval
	maxIdents   = 1 << 18           // identities between two key frames
	maxLabels   = 1 << 20           // label pairs between two key frames
	maxText     = 32 << 20          // bytes of names between two key frames
	maxElements = 1 << 21           // elements of one CBOR array
	maxIndex    = 1 << 22           // intervals of a recording with all its parts
	maxParts    = 9999              // highest number behind FILE.
	maxString   = 64 << 10          // bytes of one name; longer ones are cut
	minBytes    = 128 << 10         // smallest Options.MaxBytes
)

// syncEvery spares the disk when intervals are much shorter than a
// second. A recorder that is killed loses nothing by it, only a power cut may
// take this much more.
const syncEvery = 900 * time.Millisecond

// What Options stands for where it is zero.
const (
	DefaultRecordBytes = 256 << 20
	DefaultRecordKeep  = 7
)

var (
	// ErrTruncated: the recording stops in the middle of an interval, because
	// the recorder was killed, the disk was full or the copy is incomplete.
	ErrTruncated = errors.New("truncated")
	// ErrCorrupt: the recording's bytes contradict themselves.
	ErrCorrupt = errors.New("corrupt")
	// ErrNotRecording: the file is something else.
	ErrNotRecording = errors.New("not a recording of iotrace-bpf")
	// ErrRecordingVersion: the recording was made by a newer iotrace-bpf.
	ErrRecordingVersion = errors.New("made by a newer version of iotrace-bpf")
	// ErrTooLarge: an interval is beyond what a recording holds.
	ErrTooLarge = errors.New("too large to be recorded")
)

// Options says how much a recorder may keep and what it notes about its
// origin.
type Options struct {
	// MaxBytes is the size at which FILE becomes FILE.1 and a new FILE begins:
	// 0 means DefaultRecordBytes, less than 0 no limit. A file always holds at
	// least one interval, however large that is.
	MaxBytes int64
	// Keep is how many older files stay (FILE.1 is the youngest of them): 0
	// means DefaultRecordKeep, less than 0 none.
	Keep int
	// Tool is the version of iotrace-bpf, for the header.
	Tool string
	// Host is the machine that is recorded, for the header.
	Host output.Host
}

// Stats counts what a Writer did since it was made.
type Stats struct {
	Intervals uint64 // written
	Failed    uint64 // not written: disk full, too large ...
	Events    uint64 // events left out of written intervals: above the limit
	Bytes     uint64 // written, to all files
	Files     uint64 // begun
}

// Writer writes intervals to a file of mode 0600 (names and labels of
// containers are in it). Its methods may be called from several goroutines.
type Writer struct {
	path string
	opt  Options

	mu     sync.Mutex
	file   *os.File // nil once closed, or after a rotation that failed
	size   int64
	inFile int // intervals in file
	sinceK int // intervals since the key frame, itself included
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

// syncState asks for a file to be made durable, and closed where it is done with.
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

// fileEntry stands in front of every frame.
type fileEntry struct {
	_     struct{} `cbor:",toarray"`
	Kind  uint8
	Key   bool // names and identities begin anew with this interval
	Start int64
	End   int64
	Size  uint32 // bytes of the zstd frame that follows
	Plain uint32 // bytes of its content
}

// Create begins a recording at path. A recording that is there already,
// for instance from before a crash, is kept as path.1 like one that has reached
// its size; any other file there is an error, and so is a second recorder on
// the same path.
func Create(path string, opt Options) (*Writer, error) {
	switch {
	case opt.MaxBytes == 0:
		opt.MaxBytes = DefaultRecordBytes
	case opt.MaxBytes > 0 && opt.MaxBytes < minBytes:
		return nil, fmt.Errorf("recording '%s': size limit of %d bytes is below the smallest, %d", path, opt.MaxBytes, int64(minBytes))
	}
	switch {
	case opt.Keep == 0:
		opt.Keep = DefaultRecordKeep
	case opt.Keep < 0:
		opt.Keep = 0
	case opt.Keep > maxParts:
		return nil, fmt.Errorf("recording '%s': cannot keep %d older files, at most %d", path, opt.Keep, maxParts)
	}
	zenc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("recording '%s': %w", path, err)
	}
	enc, err := newEncoder()
	if err != nil {
		return nil, fmt.Errorf("recording '%s': %w", path, err)
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

// takeOver moves an earlier recording out of the way.
func (r *Writer) takeOver() error {
	fi, err := os.Lstat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("recording '%s': exists and is no regular file", r.path)
	}
	f, err := os.OpenFile(r.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	defer f.Close()
	// The lock goes with the file, so it also finds a recorder that has just
	// begun this one.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("recording '%s': another recorder is writing it", r.path)
		}
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	if fi.Size() == 0 {
		// What a recorder leaves when the disk is full from the start.
		return os.Remove(r.path)
	}
	if !sniff(f) {
		return fmt.Errorf("recording '%s': exists and is %w", r.path, ErrNotRecording)
	}
	if r.opt.Keep == 0 {
		return fmt.Errorf("recording '%s': exists, and no older recordings are to be kept", r.path)
	}
	return r.shift()
}

// sniff tells whether f begins as a recording does.
func sniff(f io.ReaderAt) bool {
	e, _, err := readEntry(f, 0)
	return err == nil && e.Kind == kindHeader
}

// checkParts finds out now, rather than at the first rotation, that a name is
// taken by something else.
func (r *Writer) checkParts() error {
	for n := 1; n <= r.opt.Keep; n++ {
		if _, err := r.older(n); err != nil {
			return err
		}
	}
	return nil
}

// older tells whether there is an n-th older file; one that is not a recording
// is an error.
func (r *Writer) older(n int) (bool, error) {
	name := partPath(r.path, n)
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("recording '%s': %w", r.path, err)
	}
	defer f.Close()
	if !sniff(f) {
		return false, fmt.Errorf("recording '%s': '%s' is in the way and is %w", r.path, name, ErrNotRecording)
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
			return fmt.Errorf("recording '%s': %w", r.path, err)
		}
	}
	return nil
}

// partPath is the path of the n-th older file; the 0-th is the youngest.
func partPath(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// begin creates the file and writes the header.
func (r *Writer) begin() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	fail := func(err error) error {
		f.Close()
		os.Remove(r.path)
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fail(err)
	}
	now := time.Now()
	h := fileHeader{
		Format: fileFormat, Version: version, Tool: valid(r.opt.Tool),
		Host: valid(r.opt.Host.Name), HostID: valid(r.opt.Host.ID), Kernel: valid(r.opt.Host.Kernel),
		Start: now.UnixNano(),
	}
	plain, err := r.enc.mode.Marshal(h)
	if err != nil {
		return fail(err)
	}
	frame, err := r.frame(fileEntry{Kind: kindHeader, Key: true, Start: h.Start, End: h.Start}, plain)
	if err != nil {
		return fail(err)
	}
	if _, err := f.Write(frame); err != nil {
		return fail(err)
	}
	if err := syncDir(r.path); err != nil {
		return fail(err)
	}
	r.file, r.size, r.inFile = f, int64(len(frame)), 0
	r.stats.Bytes += uint64(len(frame))
	r.stats.Files++
	r.restart()
	return nil
}

// valid makes text fit for the header, the one place where strings are
// written as they are.
func valid(s string) string {
	if len(s) > 1024 {
		s = s[:1024]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// syncDir makes a new name durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// restart makes the next interval a key frame.
func (r *Writer) restart() {
	r.enc.reset()
	r.sinceK = 0
}

// frame builds entry and zstd frame in r.buf.
func (r *Writer) frame(e fileEntry, plain []byte) ([]byte, error) {
	if len(plain) > maxPlain {
		return nil, fmt.Errorf("interval of %d bytes: %w", len(plain), ErrTooLarge)
	}
	z := r.zenc.EncodeAll(plain, r.buf[:0])
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

// Write appends one interval. After an error the recording is as it was before,
// and later intervals may succeed again (a disk that was full for a while);
// the caller counts what was not written. Text longer than 64 KiB is cut, and
// events above 262,144 are left out and counted in the recorded Lost.Exports.
// iv is not kept.
func (r *Writer) Write(iv *output.Interval) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("recording '%s': %w", r.path, os.ErrClosed)
	}
	if err := r.write(iv); err != nil {
		r.stats.Failed++
		// Names that the failed frame was to define are known to no reader.
		r.restart()
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	r.stats.Intervals++
	if err := r.takeSyncErr(); err != nil {
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	return nil
}

func (r *Writer) write(iv *output.Interval) error {
	if r.file == nil {
		// A rotation failed half-way: the old file is away, the new one is not there.
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
		// Too many names since the key frame: begin anew.
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
		// A torn frame would hide everything behind it.
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
	// The disk that is being watched may be the one that is stuck: wait for it
	// elsewhere, and do not queue up what is asked for anyway.
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
	return r.frame(fileEntry{Kind: kindInterval, Key: r.sinceK == 0, Start: w.Start, End: w.End}, r.plain.Bytes())
}

// rotate puts the full file away and begins a new one.
func (r *Writer) rotate() error {
	if r.opt.Keep == 0 {
		if err := os.Remove(r.path); err != nil {
			return err
		}
	} else if err := r.shift(); err != nil {
		return err
	}
	// Blocks only when several files wait for a stuck disk: they do not pile up.
	r.syncs <- syncState{file: r.file, close: true}
	r.file = nil
	return r.begin()
}

// syncLoop makes files durable until the channel is closed.
func (r *Writer) syncLoop() {
	defer close(r.syncDone)
	for s := range r.syncs {
		err := unix.Fdatasync(int(s.file.Fd()))
		if errors.Is(err, unix.EINVAL) {
			err = nil // a file system without it
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

// takeSyncErr returns what went wrong behind an earlier Write's back.
func (r *Writer) takeSyncErr() error {
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	err := r.syncErr
	r.syncErr = nil
	return err
}

// Stats tells what was written so far.
func (r *Writer) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Close waits until everything is on the disk. A second Close does nothing.
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
		return fmt.Errorf("recording '%s': %w", r.path, err)
	}
	return nil
}

// readEntry reads the skippable frame at off; body is where the zstd
// frame begins. io.EOF means that the file ends exactly at off.
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
		// Blocks that were allocated and never written before the power went.
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
	if e.Plain > maxPlain || e.Size > maxPlain+maxPlain/128 || e.Size == 0 ||
		e.Start < 0 || e.End < e.Start || e.Kind == 0 {
		return e, 0, fmt.Errorf("index entry out of range: %w", ErrCorrupt)
	}
	return e, off + 8 + int64(l), nil
}

// decMode refuses what no recorder writes, before anything is allocated
// for it.
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
		// A readable file in a directory that may not be listed.
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
