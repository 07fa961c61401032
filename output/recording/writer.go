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
// number until the next key frame (at least every recordKeyEvery intervals);
// amounts are columns, not rows. That pays: see BenchmarkRecordSize for the
// figures with and without.
const (
	recordFormat   = "iotrace-bpf recording"
	recordVersion  = 1
	recordSkipID   = 0x184D2A5D // one of zstd's sixteen skippable magics
	recordKeyEvery = 128

	recordKindHeader   = 1
	recordKindInterval = 2
)

// Limits that writer and reader share, so that a file that lies cannot make the
// reader allocate more than an honest one could.
const (
	recordMaxEntry    = 64        // bytes of a skippable frame's content
	recordMaxPlain    = 32 << 20  // bytes of a decompressed frame
	recordMaxSamples  = 1 << 17   // samples of an interval
	recordMaxEvents   = 1 << 18   // events of an interval
	recordMaxIdents   = 1 << 18   // identities between two key frames
	recordMaxLabels   = 1 << 20   // label pairs between two key frames
	recordMaxText     = 32 << 20  // bytes of names between two key frames
	recordMaxElements = 1 << 21   // elements of one CBOR array
	recordMaxIndex    = 1 << 22   // intervals of a recording with all its parts
	recordMaxParts    = 9999      // highest number behind FILE.
	recordMaxString   = 64 << 10  // bytes of one name; longer ones are cut
	recordMinBytes    = 128 << 10 // smallest RecorderOptions.MaxBytes
)

// recordSyncEvery spares the disk when intervals are much shorter than a
// second. A recorder that is killed loses nothing by it, only a power cut may
// take this much more.
const recordSyncEvery = 900 * time.Millisecond

// What RecorderOptions stands for where it is zero.
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

// RecorderOptions says how much a recorder may keep and what it notes about its
// origin.
type RecorderOptions struct {
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

// RecorderStats counts what a Recorder did since it was made.
type RecorderStats struct {
	Intervals uint64 // written
	Failed    uint64 // not written: disk full, too large ...
	Events    uint64 // events left out of written intervals: above the limit
	Bytes     uint64 // written, to all files
	Files     uint64 // begun
}

// Recorder writes intervals to a file of mode 0600 (names and labels of
// containers are in it). Its methods may be called from several goroutines.
type Recorder struct {
	path string
	opt  RecorderOptions

	mu     sync.Mutex
	file   *os.File // nil once closed, or after a rotation that failed
	size   int64
	inFile int // intervals in file
	sinceK int // intervals since the key frame, itself included
	closed bool
	enc    *recordEncoder
	zenc   *zstd.Encoder
	buf    []byte // frame being built
	plain  bytes.Buffer
	stats  RecorderStats

	syncs    chan recordSync
	syncDone chan struct{}
	syncMu   sync.Mutex
	syncErr  error
	lastSync time.Time
}

// recordSync asks for a file to be made durable, and closed where it is done with.
type recordSync struct {
	file  *os.File
	close bool
}

// recordHeader is the first item of every file.
type recordHeader struct {
	Format  string `cbor:"format"`
	Version uint64 `cbor:"version"`
	Tool    string `cbor:"tool,omitempty"`
	Host    string `cbor:"host,omitempty"`
	HostID  string `cbor:"host_id,omitempty"`
	Kernel  string `cbor:"kernel,omitempty"`
	Start   int64  `cbor:"start"` // ns since 1970
}

// recordEntry stands in front of every frame.
type recordEntry struct {
	_     struct{} `cbor:",toarray"`
	Kind  uint8
	Key   bool // names and identities begin anew with this interval
	Start int64
	End   int64
	Size  uint32 // bytes of the zstd frame that follows
	Plain uint32 // bytes of its content
}

// NewRecorder begins a recording at path. A recording that is there already,
// for instance from before a crash, is kept as path.1 like one that has reached
// its size; any other file there is an error, and so is a second recorder on
// the same path.
func NewRecorder(path string, opt RecorderOptions) (*Recorder, error) {
	switch {
	case opt.MaxBytes == 0:
		opt.MaxBytes = DefaultRecordBytes
	case opt.MaxBytes > 0 && opt.MaxBytes < recordMinBytes:
		return nil, fmt.Errorf("recording '%s': size limit of %d bytes is below the smallest, %d", path, opt.MaxBytes, int64(recordMinBytes))
	}
	switch {
	case opt.Keep == 0:
		opt.Keep = DefaultRecordKeep
	case opt.Keep < 0:
		opt.Keep = 0
	case opt.Keep > recordMaxParts:
		return nil, fmt.Errorf("recording '%s': cannot keep %d older files, at most %d", path, opt.Keep, recordMaxParts)
	}
	zenc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("recording '%s': %w", path, err)
	}
	enc, err := newRecordEncoder()
	if err != nil {
		return nil, fmt.Errorf("recording '%s': %w", path, err)
	}
	r := &Recorder{
		path: path, opt: opt, enc: enc, zenc: zenc,
		syncs:    make(chan recordSync, 4),
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
func (r *Recorder) takeOver() error {
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
	if !recordSniff(f) {
		return fmt.Errorf("recording '%s': exists and is %w", r.path, ErrNotRecording)
	}
	if r.opt.Keep == 0 {
		return fmt.Errorf("recording '%s': exists, and no older recordings are to be kept", r.path)
	}
	return r.shift()
}

// recordSniff tells whether f begins as a recording does.
func recordSniff(f io.ReaderAt) bool {
	e, _, err := readRecordEntry(f, 0)
	return err == nil && e.Kind == recordKindHeader
}

// checkParts finds out now, rather than at the first rotation, that a name is
// taken by something else.
func (r *Recorder) checkParts() error {
	for n := 1; n <= r.opt.Keep; n++ {
		if _, err := r.older(n); err != nil {
			return err
		}
	}
	return nil
}

// older tells whether there is an n-th older file; one that is not a recording
// is an error.
func (r *Recorder) older(n int) (bool, error) {
	name := recordPart(r.path, n)
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("recording '%s': %w", r.path, err)
	}
	defer f.Close()
	if !recordSniff(f) {
		return false, fmt.Errorf("recording '%s': '%s' is in the way and is %w", r.path, name, ErrNotRecording)
	}
	return true, nil
}

// shift renames FILE.n to FILE.n+1, oldest first, and FILE to FILE.1.
func (r *Recorder) shift() error {
	for n := r.opt.Keep; n >= 0; n-- {
		there, err := r.older(n)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		from := recordPart(r.path, n)
		if n == r.opt.Keep {
			err = os.Remove(from)
		} else {
			err = os.Rename(from, recordPart(r.path, n+1))
		}
		if err != nil {
			return fmt.Errorf("recording '%s': %w", r.path, err)
		}
	}
	return nil
}

// recordPart is the path of the n-th older file; the 0-th is the youngest.
func recordPart(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// begin creates the file and writes the header.
func (r *Recorder) begin() error {
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
	h := recordHeader{
		Format: recordFormat, Version: recordVersion, Tool: recordValid(r.opt.Tool),
		Host: recordValid(r.opt.Host.Name), HostID: recordValid(r.opt.Host.ID), Kernel: recordValid(r.opt.Host.Kernel),
		Start: now.UnixNano(),
	}
	plain, err := r.enc.mode.Marshal(h)
	if err != nil {
		return fail(err)
	}
	frame, err := r.frame(recordEntry{Kind: recordKindHeader, Key: true, Start: h.Start, End: h.Start}, plain)
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

// recordValid makes text fit for the header, the one place where strings are
// written as they are.
func recordValid(s string) string {
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
func (r *Recorder) restart() {
	r.enc.reset()
	r.sinceK = 0
}

// frame builds entry and zstd frame in r.buf.
func (r *Recorder) frame(e recordEntry, plain []byte) ([]byte, error) {
	if len(plain) > recordMaxPlain {
		return nil, fmt.Errorf("interval of %d bytes: %w", len(plain), ErrTooLarge)
	}
	z := r.zenc.EncodeAll(plain, r.buf[:0])
	r.buf = z
	e.Size, e.Plain = uint32(len(z)), uint32(len(plain))
	head, err := r.enc.mode.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(head) > recordMaxEntry {
		return nil, fmt.Errorf("entry of %d bytes: %w", len(head), ErrTooLarge)
	}
	// One buffer, so that one write(2) carries both.
	n := 8 + len(head)
	frame := append(z, make([]byte, n)...)
	copy(frame[n:], frame[:len(z)])
	binary.LittleEndian.PutUint32(frame, recordSkipID)
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
func (r *Recorder) Write(iv *output.Interval) error {
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

func (r *Recorder) write(iv *output.Interval) error {
	if r.file == nil {
		// A rotation failed half-way: the old file is away, the new one is not there.
		if err := r.takeOver(); err != nil {
			return err
		}
		if err := r.begin(); err != nil {
			return err
		}
	}
	if r.sinceK >= recordKeyEvery {
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
	if now := time.Now(); len(r.syncs) == 0 && now.Sub(r.lastSync) >= recordSyncEvery {
		r.syncs <- recordSync{file: r.file}
		r.lastSync = now
	}
	return nil
}

// encode builds the frame of iv with the names known so far.
func (r *Recorder) encode(iv *output.Interval) ([]byte, error) {
	w, err := r.enc.interval(iv)
	if err != nil {
		return nil, err
	}
	r.plain.Reset()
	if err := r.enc.mode.NewEncoder(&r.plain).Encode(w); err != nil {
		return nil, err
	}
	return r.frame(recordEntry{Kind: recordKindInterval, Key: r.sinceK == 0, Start: w.Start, End: w.End}, r.plain.Bytes())
}

// rotate puts the full file away and begins a new one.
func (r *Recorder) rotate() error {
	if r.opt.Keep == 0 {
		if err := os.Remove(r.path); err != nil {
			return err
		}
	} else if err := r.shift(); err != nil {
		return err
	}
	// Blocks only when several files wait for a stuck disk: they do not pile up.
	r.syncs <- recordSync{file: r.file, close: true}
	r.file = nil
	return r.begin()
}

// syncLoop makes files durable until the channel is closed.
func (r *Recorder) syncLoop() {
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
func (r *Recorder) takeSyncErr() error {
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	err := r.syncErr
	r.syncErr = nil
	return err
}

// Stats tells what was written so far.
func (r *Recorder) Stats() RecorderStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Close waits until everything is on the disk. A second Close does nothing.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.file != nil {
		r.syncs <- recordSync{file: r.file, close: true}
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

// readRecordEntry reads the skippable frame at off; body is where the zstd
// frame begins. io.EOF means that the file ends exactly at off.
func readRecordEntry(f io.ReaderAt, off int64) (e recordEntry, body int64, err error) {
	var b [8 + recordMaxEntry]byte
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
	if n >= 4 && binary.LittleEndian.Uint32(b[:]) != recordSkipID {
		return e, 0, fmt.Errorf("no interval begins here: %w", ErrCorrupt)
	}
	if n < 8 {
		return e, 0, ErrTruncated
	}
	l := int(binary.LittleEndian.Uint32(b[4:]))
	if l > recordMaxEntry {
		return e, 0, fmt.Errorf("index entry of %d bytes: %w", uint32(l), ErrCorrupt)
	}
	if n < 8+l {
		return e, 0, ErrTruncated
	}
	if err := recordDecMode.Unmarshal(b[8:8+l], &e); err != nil {
		return e, 0, fmt.Errorf("index entry: %w: %v", ErrCorrupt, err)
	}
	if e.Plain > recordMaxPlain || e.Size > recordMaxPlain+recordMaxPlain/128 || e.Size == 0 ||
		e.Start < 0 || e.End < e.Start || e.Kind == 0 {
		return e, 0, fmt.Errorf("index entry out of range: %w", ErrCorrupt)
	}
	return e, off + 8 + int64(l), nil
}

// recordDecMode refuses what no recorder writes, before anything is allocated
// for it.
var recordDecMode = mustRecordDecMode()

func mustRecordDecMode() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  8,
		MaxArrayElements: recordMaxElements,
		MaxMapPairs:      256,
	}.DecMode()
	if err != nil {
		panic(err) // the options above are constants
	}
	return m
}

// recordParts lists the files of a recording, oldest first.
func recordParts(path string) ([]string, error) {
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
			if err == nil && n >= 1 && n <= recordMaxParts && strconv.Itoa(n) == num {
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
		parts = append(parts, recordPart(path, n))
	}
	return append(parts, path), nil
}
