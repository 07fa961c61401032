package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Header says what one file of a recording is and where it was made.
type Header struct {
	Path    string
	Version uint64 // of the format
	Tool    string // version of iotrace-bpf
	Host    output.Host
	Start   time.Time // when the file was begun, UTC
}

// DamageError says which part of a recording could not be read. errors.Is finds
// ErrTruncated or ErrCorrupt in it.
type DamageError struct {
	Path   string
	Offset int64 // in bytes, of the frame with the first bad byte
	Read   int   // intervals of the recording before the damage
	Lost   int   // intervals that cannot be read; 0 where their number is not known
	Err    error
}

// Error implements error.
func (e *DamageError) Error() string {
	lost := ""
	if e.Lost > 0 {
		lost = fmt.Sprintf(", %d lost", e.Lost)
	}
	return fmt.Sprintf("recording %q is damaged at byte %d, after %d intervals%s: %v", e.Path, e.Offset, e.Read, lost, e.Err)
}

// Unwrap returns e.Err.
func (e *DamageError) Unwrap() error { return e.Err }

// fileIndex says where one interval is. It is small because there may be millions.
type fileIndex struct {
	start, end  int64
	off         int64 // of the skippable frame
	head        uint16
	part        uint16
	size, plain uint32
	group       uint32 // the interval at which decoding begins: its key frame
}

// partFile is one file of a recording.
type partFile struct {
	path string
	file *os.File
}

// Reader reads what a Writer wrote: the older FILE.n of the same host and then FILE.
// It needs no privilege other than to read the files. Hostile files do no harm: memory and
// time are bounded in proportion to the size of the file, about 2 KiB of memory for each of
// its bytes. No file takes more than 1 GiB, which the largest honest interval may need. A
// Reader is not safe for concurrent use.
type Reader struct {
	parts   []partFile
	headers []Header
	index   []fileIndex
	damage  []*DamageError // found by scan; Read is the interval after it

	pos      int         // the interval that Next returns
	reported int         // how many of damage Next has passed
	tables   *nameTables // what the intervals from group up to at define
	group    uint32
	at       int

	zdec   *zstd.Decoder
	frame  []byte
	plain  []byte
	window []byte // of resume
	work   work

	adjust func(*output.Interval) // optional
}

// work counts what a Reader did, in bytes: the time it took, on a machine of any speed.
type work struct {
	searched int64 // of the file, for the next interval behind damage
	plain    int64 // decompressed
	memory   int64 // built of that: wireInterval.memory
}

// Adjust makes Next apply f to every interval that it returns, for instance to leave
// something out.
func (r *Reader) Adjust(f func(*output.Interval)) { r.adjust = f }

// Open opens the recording at path and reads its index, not its intervals. Errors are
// ErrNotRecording, ErrVersion, ErrTruncated for a file that ends in its header, and
// those of the file system. Damage after the header is no error here: Next reports it
// where it is.
func Open(path string) (*Reader, error) {
	r, err := newReader()
	if err != nil {
		return nil, fmt.Errorf("recording %q: %w", path, err)
	}
	parts, err := partPaths(path)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("recording %q: %w", path, err)
	}
	// The youngest first: it says whether this is a recording, and of which host.
	newest, err := r.openPart(path)
	if err != nil {
		r.Close()
		return nil, err
	}
	for _, p := range parts[:len(parts)-1] {
		// An older file that is something else only has a similar name.
		h, err := r.openPart(p)
		if err == nil && !sameMachine(h.Host, newest.Host) {
			last := len(r.parts) - 1
			r.parts[last].file.Close()
			r.parts, r.headers = r.parts[:last], r.headers[:last]
		}
	}
	// openPart has put FILE first, but it is the last in time.
	if n := len(r.parts); n > 1 {
		r.parts = append(r.parts[1:n:n], r.parts[0])
		r.headers = append(r.headers[1:n:n], r.headers[0])
	}
	for i := range r.parts {
		if err := r.scan(i); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

func newReader() (*Reader, error) {
	zdec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(maxPlain),
		zstd.WithDecoderMaxWindow(maxPlain),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	return &Reader{zdec: zdec}, nil
}

// sameMachine compares machine ids, or names if one of them has no id. The kernel may
// differ: it may have been upgraded in between.
func sameMachine(a, b output.Host) bool {
	if a.ID != "" && b.ID != "" {
		return a.ID == b.ID
	}
	return a.Name == b.Name
}

// openPart opens one file and reads its header.
func (r *Reader) openPart(path string) (Header, error) {
	fail := func(err error) (Header, error) {
		return Header{}, fmt.Errorf("recording %q: %w", path, err)
	}
	// O_NONBLOCK: opening a FIFO must not hang.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Header{}, fmt.Errorf("recording: %w", err) // names the path itself
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	return r.addPart(f, path)
}

// addPart adds an open file and reads its header. It closes f if that fails.
func (r *Reader) addPart(f *os.File, path string) (Header, error) {
	h, err := r.header(f)
	if err != nil {
		f.Close()
		return Header{}, fmt.Errorf("recording %q: %w", path, err)
	}
	h.Path = path
	r.parts = append(r.parts, partFile{path: path, file: f})
	r.headers = append(r.headers, h)
	return h, nil
}

// maxPipe is how much OpenPipe copies.
const maxPipe = 8 << 30

// OpenPipe opens a recording that comes from a pipe. It reads all of it into a temporary
// file that has no name, because an index needs random access. name is for messages.
// Errors are those of Open and those of reading the pipe; more than 8 GiB are one.
func OpenPipe(in io.Reader, name string) (_ *Reader, err error) {
	fail := func(err error) (*Reader, error) { return nil, fmt.Errorf("recording %q: %w", name, err) }
	f, err := os.CreateTemp("", "iotrace-bpf-replay-")
	if err != nil {
		return fail(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return fail(err)
	}
	n, err := io.Copy(f, io.LimitReader(in, maxPipe+1))
	if err == nil && n > maxPipe {
		err = errors.New("more than 8 GiB come from the pipe: save it as a file first")
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	r, err := newReader()
	if err != nil {
		f.Close()
		return fail(err)
	}
	if _, err := r.addPart(f, name); err != nil {
		r.Close()
		return nil, err
	}
	if err := r.scan(0); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// header reads the first frame of f.
func (r *Reader) header(f *os.File) (Header, error) {
	e, body, err := readEntry(f, 0)
	switch {
	case errors.Is(err, io.EOF):
		return Header{}, fmt.Errorf("is empty: %w", ErrTruncated)
	case errors.Is(err, ErrTruncated):
		return Header{}, fmt.Errorf("ends in its header: %w", ErrTruncated)
	case errors.Is(err, ErrCorrupt), err == nil && e.Kind != kindHeader:
		return Header{}, ErrNotRecording
	case err != nil:
		return Header{}, err
	}
	return r.decodeHeader(f, body, e)
}

// decodeHeader decodes the first frame, whose content begins at body.
func (r *Reader) decodeHeader(f io.ReaderAt, body int64, e fileEntry) (Header, error) {
	if e.Plain > maxHeader {
		return Header{}, fmt.Errorf("header of %d bytes: %w", e.Plain, ErrCorrupt)
	}
	plain, err := r.unpack(f, body, e.Size, e.Plain)
	if err != nil {
		return Header{}, fmt.Errorf("header: %w", err)
	}
	var h fileHeader
	if err := decMode.Unmarshal(plain, &h); err != nil {
		return Header{}, fmt.Errorf("header: %w: %v", ErrCorrupt, err)
	}
	if h.Format != fileFormat {
		return Header{}, ErrNotRecording
	}
	if h.Version > version {
		return Header{}, fmt.Errorf("format %d, this version reads up to %d: %w", h.Version, version, ErrVersion)
	}
	return Header{
		Version: h.Version, Tool: h.Tool, Host: output.Host{Name: h.Host, ID: h.HostID, Kernel: h.Kernel}, Start: time.Unix(0, h.Start).UTC(),
	}, nil
}

// scan adds the intervals of one file to the index.
func (r *Reader) scan(part int) error {
	p := r.parts[part]
	fi, err := p.file.Stat()
	if err != nil {
		return fmt.Errorf("recording %q: %w", p.path, err)
	}
	size := fi.Size()
	first := len(r.index) // no interval refers to names in another file
	group := first
	for off := int64(0); off < size; {
		e, body, err := readEntry(p.file, off)
		if err == nil && body+int64(e.Size) > size {
			err = fmt.Errorf("the file ends within an interval: %w", ErrTruncated)
		}
		if err == nil && len(r.index) >= maxIndex {
			err = fmt.Errorf("more than %d intervals: %w", maxIndex, ErrCorrupt)
		}
		if errors.Is(err, ErrTruncated) || errors.Is(err, ErrCorrupt) {
			r.damage = append(r.damage, &DamageError{Path: p.path, Offset: off, Read: len(r.index), Err: err})
			next, err := r.resume(p.file, off+1, size)
			if err != nil {
				return fmt.Errorf("recording %q: %w", p.path, err)
			}
			if next < 0 || len(r.damage) > maxDamage {
				return nil
			}
			off = next
			continue
		}
		if err != nil {
			return fmt.Errorf("recording %q: %w", p.path, err)
		}
		// Step over kinds that a later version may add.
		if e.Kind == kindInterval {
			// A hostile recording has no key frame: names of the intervals behind are not
			// known, but going back never has to read more than this.
			if e.Key || len(r.index)-group >= maxGroup {
				group = len(r.index)
			}
			r.index = append(r.index, fileIndex{
				start: e.Start, end: e.End, off: off, head: uint16(body - off), part: uint16(part),
				size: e.Size, plain: e.Plain, group: uint32(group),
			})
		}
		off = body + int64(e.Size)
	}
	return nil
}

// resume returns the offset of the first interval at or after off that is whole in the
// index, or -1.
func (r *Reader) resume(f io.ReaderAt, off, size int64) (int64, error) {
	const window = 64 << 10
	magic := binary.LittleEndian.AppendUint32(nil, skipID)
	// What follows the magic is looked at in the window as well.
	const ahead = 10
	if r.window == nil {
		r.window = make([]byte, window+ahead-1)
	}
	for off < size {
		n, err := f.ReadAt(r.window, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		r.work.searched += int64(n)
		for i := 0; i < min(n, window); i++ {
			at := bytes.Index(r.window[i:n], magic)
			if at < 0 || i+at >= window {
				break
			}
			i += at
			// The four bytes occur in names and in compressed data as well.
			if n-i < ahead || !mayBegin(r.window[i:n]) {
				continue
			}
			e, body, err := readEntry(f, off+int64(i))
			if err == nil && e.Kind == kindInterval && body+int64(e.Size) <= size && zstdAt(f, body) {
				return off + int64(i), nil
			}
		}
		off += window
	}
	return -1, nil
}

// mayBegin is a first look at whether b begins with the index entry of an interval: a
// length within bounds, a CBOR array, the kind.
func mayBegin(b []byte) bool {
	return binary.LittleEndian.Uint32(b[4:]) <= maxEntry && b[8]>>5 == 4 && b[9] == kindInterval
}

// zstdAt reports whether a zstd frame begins at off: RFC 8878, section 3.1.1.
func zstdAt(f io.ReaderAt, off int64) bool {
	var b [4]byte
	_, err := f.ReadAt(b[:], off)
	return err == nil && binary.LittleEndian.Uint32(b[:]) == 0xFD2FB528
}

// Headers returns the header of every file, oldest first.
func (r *Reader) Headers() []Header { return append([]Header(nil), r.headers...) }

// Header returns the header of the youngest file.
func (r *Reader) Header() Header { return r.headers[len(r.headers)-1] }

// Len returns the number of intervals in the index.
func (r *Reader) Len() int { return len(r.index) }

// Pos returns the number of the interval that Next returns, Len at the end.
func (r *Reader) Pos() int { return r.pos }

// Span returns when interval i began and ended, in UTC, without decoding it. It panics
// unless 0 <= i < Len.
func (r *Reader) Span(i int) (start, end time.Time) {
	e := &r.index[i]
	return time.Unix(0, e.start).UTC(), time.Unix(0, e.end).UTC()
}

// Find returns the first interval that ends after t, or Len if no interval does. If the
// clock was set back during the recording, several intervals may qualify.
func (r *Reader) Find(t time.Time) int {
	return sort.Search(len(r.index), func(i int) bool { return time.Unix(0, r.index[i].end).After(t) })
}

// Seek makes Next return interval i. It is an error unless 0 <= i <= Len.
func (r *Reader) Seek(i int) error {
	if i < 0 || i > len(r.index) {
		return fmt.Errorf("no interval %d in a recording of %d", i, len(r.index))
	}
	r.pos = i
	r.reported = sort.Search(len(r.damage), func(k int) bool { return r.damage[k].Read >= i })
	return nil
}

// Next returns the next interval, or io.EOF after the last. Where the recording is
// damaged it returns a *DamageError once; the call after that goes on after the damage,
// at the next interval whose names are known. The caller may modify the interval except for
// its label maps, which intervals share.
func (r *Reader) Next() (*output.Interval, error) {
	if r.reported < len(r.damage) && r.damage[r.reported].Read <= r.pos {
		r.reported++
		return nil, r.damage[r.reported-1]
	}
	if r.pos >= len(r.index) {
		return nil, io.EOF
	}
	if err := r.reach(r.pos); err != nil {
		return nil, err
	}
	w, err := r.decode(r.pos)
	if err != nil {
		return nil, r.skip(r.pos, err)
	}
	iv, err := r.tables.interval(w)
	if err != nil {
		r.tables.err = nil
		if !errors.Is(err, ErrCorrupt) {
			err = fmt.Errorf("%w: %v", ErrCorrupt, err)
		}
		return nil, r.skip(r.pos, err)
	}
	r.pos++
	if r.adjust != nil {
		r.adjust(iv)
	}
	return iv, nil
}

// reach makes the tables ready for interval i. Tables only grow within a group, so
// going back within it takes no work.
func (r *Reader) reach(i int) error {
	if g := r.index[i].group; r.tables == nil || r.group != g {
		r.tables, r.group, r.at = newNameTables(), g, int(g)
	}
	for r.at < i {
		if _, err := r.decode(r.at); err != nil {
			if errors.Is(err, errNames) {
				return r.skip(r.at, err)
			}
			r.gap() // reported when it is its turn
		}
	}
	return nil
}

// gap goes on after the interval that could not be read.
func (r *Reader) gap() {
	r.tables.gap = true
	r.at++
}

// skip reports interval i as damaged and moves to the next one: to the first key frame
// after it and after r.pos if no names are known until there.
func (r *Reader) skip(i int, err error) error {
	if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrCorrupt) {
		// An error of the disk, not of the file: later intervals may be readable.
		err = fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	e := &r.index[i]
	next := max(i, r.pos) + 1
	if errors.Is(err, errNames) {
		r.tables = nil
		for next < len(r.index) && int(r.index[next].group) != next {
			next++
		}
	} else if r.at == i {
		r.gap()
	}
	d := &DamageError{Path: r.parts[e.part].path, Offset: e.off, Read: r.pos, Lost: next - r.pos, Err: err}
	r.pos = next
	return d
}

// decode reads interval i and learns its names, unless it did so before.
func (r *Reader) decode(i int) (*wireInterval, error) {
	e := &r.index[i]
	w, err := r.decodeFrame(r.parts[e.part].file, e.off+int64(e.head), e)
	if err != nil {
		return nil, err
	}
	if i == r.at {
		if err := r.learn(w, e.off-r.index[e.group].off); err != nil {
			return nil, err
		}
		r.at++
	}
	return w, nil
}

// learn adds the names of an interval that begins so many bytes behind its key frame.
func (r *Reader) learn(w *wireInterval, behind int64) error {
	err := r.tables.learn(w, behind)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return err
}

// decodeFrame decodes the interval whose content begins at body.
func (r *Reader) decodeFrame(f io.ReaderAt, body int64, e *fileIndex) (*wireInterval, error) {
	plain, err := r.unpack(f, body, e.size, e.plain)
	if err != nil {
		return nil, err
	}
	var w wireInterval
	if err := decMode.Unmarshal(plain, &w); err != nil {
		// %v and not %w: an io.EOF of the decoder is not the end of the recording.
		return nil, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	if w.Start != e.start || w.End != e.end {
		return nil, fmt.Errorf("index and interval differ in time: %w", ErrCorrupt)
	}
	memory := w.memory()
	if memory > memoryLimit(int64(e.size)) {
		return nil, fmt.Errorf("%d bytes that become %d: %w", e.size, memory, ErrCorrupt)
	}
	r.work.memory += memory
	return &w, nil
}

// unpack reads and decompresses one zstd frame. The result is valid until the
// next call.
func (r *Reader) unpack(f io.ReaderAt, off int64, size, plain uint32) ([]byte, error) {
	if uint32(cap(r.frame)) < size {
		r.frame = make([]byte, size)
	}
	if n, err := f.ReadAt(r.frame[:size], off); n < int(size) {
		if errors.Is(err, io.EOF) {
			err = ErrTruncated
		}
		return nil, err
	}
	// The capacity bounds the result to what the index says.
	if uint32(cap(r.plain)) < plain {
		r.plain = make([]byte, plain)
	}
	out, err := r.zdec.DecodeAll(r.frame[:size], r.plain[:0:plain])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	r.work.plain += int64(len(out))
	if len(out) != int(plain) {
		return nil, fmt.Errorf("%d bytes where the index says %d: %w", len(out), plain, ErrCorrupt)
	}
	return out, nil
}

// Close closes the files.
func (r *Reader) Close() error {
	var errs []error
	for _, p := range r.parts {
		errs = append(errs, p.file.Close())
	}
	r.parts = nil
	r.zdec.Close()
	return errors.Join(errs...)
}

var _ cbor.Unmarshaler = (*wireText)(nil)

// Timeline gives random access to the intervals of a recording.
type Timeline struct{ r *Reader }

// Timeline returns the intervals of the recording by number. Its Frame moves the
// position of r.
func (r *Reader) Timeline() Timeline { return Timeline{r} }

// Bounds returns the first interval and one past the last.
func (l Timeline) Bounds() (first, end int) { return 0, l.r.Len() }

// Span returns when interval i began and ended.
func (l Timeline) Span(i int) (start, end time.Time) { return l.r.Span(i) }

// Frame returns interval i, or a *DamageError if it cannot be read.
func (l Timeline) Frame(i int) (*output.Interval, error) {
	if err := l.r.Seek(i); err != nil {
		return nil, err
	}
	iv, err := l.r.Next()
	var damage *DamageError
	if errors.As(err, &damage) {
		// Damage is reported once. The next interval may be the wanted one.
		iv, err = l.r.Next()
	}
	switch {
	case err != nil && damage != nil:
		return nil, damage
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("interval %d is after the end of the recording", i)
	case err != nil:
		return nil, err
	case l.r.Pos() != i+1:
		return nil, damageOf(damage, i)
	}
	return iv, nil
}

// damageOf returns d, or an error for interval i if there is no d.
func damageOf(d *DamageError, i int) error {
	if d != nil {
		return d
	}
	return fmt.Errorf("interval %d of the recording cannot be read", i)
}
