package elastic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/iotrace-bpf/iotrace-bpf/output/file"
)

// spooled is one document that the server does not have yet.
type spooled struct {
	_      struct{} `cbor:",toarray"`
	Stream string   // data stream
	ID     string   // document id; the same at every attempt
	Body   []byte   // one JSON object without line end
}

// size is about the number of bytes that the document takes in a bulk request.
func (d *spooled) size() int { return len(d.Body) + len(d.Stream) + len(d.ID) + bulkActionOverhead }

// spool keeps documents on disk, oldest first, in compressed chunks with checksums.
// The store is bbolt: its transactions survive a crash of the process and of the
// machine, and its file lock keeps a second process out. A spool belongs to one
// goroutine.
type spool struct {
	path  string
	limit int64
	db    *bbolt.DB
	enc   *zstd.Encoder
	dec   *zstd.Decoder

	chunks []spoolChunk // ascending keys
	bytes  int64        // sum of the chunks' sizes
	docs   uint64       // sum of the chunks' documents
	held   int          // chunks at the front that are being sent: never dropped
	next   uint64       // key of the next chunk
	// garbage are keys that no longer count, but that a full or broken disk did not
	// let us delete. The next transaction that works deletes them.
	garbage []uint64
}

type spoolChunk struct {
	key  uint64
	size int64
	docs uint32
}

const (
	spoolFile        = "spool.db"
	spoolFormat      = 1
	spoolHeader      = 1 + 4    // format, number of documents
	spoolChunkMemory = 64 << 20 // bytes of the largest chunk, decompressed
	spoolChunkDocs   = 1 << 16
	spoolLockWait    = 2 * time.Second
	// An empty store above this size in bytes is replaced: bbolt files never shrink.
	spoolShrinkSize = 16 << 20
	spoolMinLimit   = 1 << 20
)

var (
	spoolBucket = []byte("chunks")

	errSpoolDamaged = errors.New("spool is damaged")
	errSpoolFull    = errors.New("spool is full")
)

// openSpool opens or creates the spool in directory dir. It takes about limit bytes
// of disk at most. A damaged store is renamed to moved, and an empty one takes its
// place; otherwise moved is "".
func openSpool(dir string, limit int64) (s *spool, moved string, err error) {
	if limit < spoolMinLimit {
		return nil, "", fmt.Errorf("spool limit of %d bytes is below the minimum of %d", limit, spoolMinLimit)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("creating spool directory: %w", err)
	}
	s = &spool{path: filepath.Join(dir, spoolFile), limit: limit}
	if s.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true)); err != nil {
		return nil, "", err
	}
	if s.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(spoolChunkMemory)); err != nil {
		return nil, "", err
	}
	err = s.open()
	if errors.Is(err, errSpoolDamaged) {
		if moved, err = s.moveAside(); err == nil {
			err = s.open()
		}
	}
	if err != nil {
		s.dec.Close()
		return nil, moved, err
	}
	return s, moved, nil
}

func (s *spool) open() error {
	s.chunks, s.bytes, s.docs, s.held, s.next, s.garbage = nil, 0, 0, 0, 1, nil
	return guard(func() error {
		db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{
			Timeout:      spoolLockWait,
			FreelistType: bbolt.FreelistMapType,
			NoStatistics: true,
			OpenFile:     func(path string, flag int, _ os.FileMode) (*os.File, error) { return file.Open(path, flag) },
			// The file needs room above the limit: chunks are rounded up to pages,
			// and freed pages can be used again one transaction later.
			MaxSize: int(s.limit + s.limit/2 + 4<<20),
		})
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return fmt.Errorf("spool %q is in use by another process", s.path)
		case errors.Is(err, os.ErrPermission), errors.Is(err, file.ErrIrregular):
			return fmt.Errorf("opening spool: %w", err)
		case err != nil:
			return fmt.Errorf("%w: opening %q: %w", errSpoolDamaged, s.path, err)
		}
		s.db = db
		err = db.Update(func(tx *bbolt.Tx) error {
			// Reading mapped pages behind the end of a truncated file would fault.
			st, err := os.Stat(s.path)
			if err != nil {
				return err
			}
			if st.Size() < tx.Size() {
				return fmt.Errorf("%w: file of %d bytes, %d expected", errSpoolDamaged, st.Size(), tx.Size())
			}
			// Check every page now: bbolt panics on a damaged one when it needs it.
			var damage error
			for err := range tx.Check() {
				if damage == nil {
					damage = fmt.Errorf("%w: %w", errSpoolDamaged, err)
				}
			}
			if damage != nil {
				return damage
			}
			b, err := tx.CreateBucketIfNotExists(spoolBucket)
			if err != nil {
				return fmt.Errorf("%w: %w", errSpoolDamaged, err)
			}
			return b.ForEach(func(k, v []byte) error {
				if len(k) != 8 || len(v) < spoolHeader {
					return fmt.Errorf("%w: key of %d bytes, value of %d", errSpoolDamaged, len(k), len(v))
				}
				s.next = binary.BigEndian.Uint64(k) + 1
				s.append(spoolChunk{key: s.next - 1, size: spoolSize(v), docs: binary.BigEndian.Uint32(v[1:])})
				return nil
			})
		})
		if err != nil {
			_ = db.Close()
			s.db = nil
		}
		return err
	})
}

// guard runs f and turns a panic or a fault in mapped memory into an error: bbolt
// answers so when its file is damaged or changes while it is open.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errSpoolDamaged, p)
		}
	}()
	return f()
}

// moveAside renames a damaged store, for an operator to look at. It replaces the
// one that was renamed before.
func (s *spool) moveAside() (string, error) {
	if s.db != nil {
		_ = guard(s.db.Close)
		s.db = nil
	}
	to := s.path + ".damaged"
	if err := os.Rename(s.path, to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("moving damaged spool aside: %w", err)
	}
	return to, nil
}

// reset replaces a store that turned out to be damaged by an empty one. It returns
// the number of documents that were in it.
func (s *spool) reset() (lost uint64, err error) {
	lost = s.docs
	if _, err := s.moveAside(); err != nil {
		return lost, err
	}
	return lost, s.open()
}

// spoolSize is the number of bytes that a value takes in the file: whole pages as
// soon as it is too big to share one.
func spoolSize(v []byte) int64 {
	const page, overhead = 4096, 64
	n := int64(len(v)) + overhead
	if n <= page/4 {
		return n
	}
	return (n + page - 1) / page * page
}

func (s *spool) append(c spoolChunk) {
	s.chunks = append(s.chunks, c)
	s.bytes += c.size
	s.docs += uint64(c.docs)
}

func (s *spool) encode(docs []spooled) ([]byte, error) {
	raw, err := cbor.Marshal(docs)
	if err != nil {
		return nil, err
	}
	head := make([]byte, spoolHeader, spoolHeader+len(raw)/4)
	head[0] = spoolFormat
	binary.BigEndian.PutUint32(head[1:], uint32(len(docs)))
	return s.enc.EncodeAll(raw, head), nil
}

func (s *spool) decode(v []byte) ([]spooled, error) {
	if len(v) < spoolHeader || v[0] != spoolFormat {
		return nil, fmt.Errorf("%w: chunk of unknown format", errSpoolDamaged)
	}
	raw, err := s.dec.DecodeAll(v[spoolHeader:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSpoolDamaged, err)
	}
	var docs []spooled
	if err := cbor.Unmarshal(raw, &docs); err != nil {
		return nil, fmt.Errorf("%w: %w", errSpoolDamaged, err)
	}
	if uint32(len(docs)) != binary.BigEndian.Uint32(v[1:]) {
		return nil, fmt.Errorf("%w: chunk of %d documents holds %d", errSpoolDamaged, binary.BigEndian.Uint32(v[1:]), len(docs))
	}
	return docs, nil
}

// put adds docs as the newest chunk. To make room it drops the oldest chunks that
// are not being sent. It returns how many documents it dropped, after an error too.
func (s *spool) put(docs []spooled) (dropped uint64, err error) {
	v, err := s.encode(docs)
	if err != nil {
		return 0, err
	}
	c := spoolChunk{key: s.next, size: spoolSize(v), docs: uint32(len(docs))}
	need := s.bytes + c.size - s.limit
	for {
		n, freed := 0, int64(0)
		for s.held+n < len(s.chunks) && freed < need {
			freed += s.chunks[s.held+n].size
			n++
		}
		if freed < need {
			return dropped, fmt.Errorf("%w: chunk of %d bytes", errSpoolFull, c.size)
		}
		victims := slices.Clone(s.chunks[s.held : s.held+n])
		err := s.update(func(b *bbolt.Bucket) error {
			for _, v := range victims {
				if err := b.Delete(spoolKey(v.key)); err != nil {
					return err
				}
			}
			return b.Put(spoolKey(c.key), v)
		})
		if err == nil {
			dropped += s.forget(s.held, n)
			s.append(c)
			s.next++
			return dropped, nil
		}
		if !errors.Is(err, bolterrors.ErrMaxSizeReached) || len(s.chunks) == s.held {
			return dropped, fmt.Errorf("writing to spool: %w", err)
		}
		// The sum of sizes fits, the pages do not: a transaction that only deletes
		// frees pages for the next one.
		victim := s.chunks[s.held].key
		if err := s.update(func(b *bbolt.Bucket) error { return b.Delete(spoolKey(victim)) }); err != nil {
			return dropped, fmt.Errorf("writing to spool: %w", err)
		}
		dropped += s.forget(s.held, 1)
		need = s.bytes + c.size - s.limit
	}
}

// hold returns the oldest documents, about max bytes of them but at least one chunk.
// Their chunks stay until finishBatch or release. A chunk that cannot be read is
// removed; lost counts its documents.
func (s *spool) hold(max int) (docs []spooled, lost uint64, err error) {
	bytes := 0
	for s.held < len(s.chunks) {
		var v []byte
		key := spoolKey(s.chunks[s.held].key)
		err := guard(func() error {
			return s.db.View(func(tx *bbolt.Tx) error {
				v = slices.Clone(tx.Bucket(spoolBucket).Get(key))
				return nil
			})
		})
		if err != nil {
			s.held = 0
			return nil, lost, err
		}
		next, err := s.decode(v)
		if err != nil {
			if err := s.update(func(b *bbolt.Bucket) error { return b.Delete(key) }); err != nil {
				s.held = 0
				return nil, lost, err
			}
			lost += s.forget(s.held, 1)
			continue
		}
		size := 0
		for i := range next {
			size += next[i].size()
		}
		if s.held > 0 && (bytes+size > max || len(docs)+len(next) > spoolChunkDocs) {
			break
		}
		docs = append(docs, next...)
		bytes += size
		s.held++
	}
	return docs, lost, nil
}

// finishBatch replaces the held chunks by the unsent documents among theirs: as the
// oldest chunk or, with last, as the newest. It reports whether the unsent documents
// are on disk. The held chunks no longer count in any case.
func (s *spool) finishBatch(unsent []spooled, last bool) (kept bool, err error) {
	n := s.held
	if n == 0 {
		return len(unsent) == 0, nil
	}
	var v []byte
	if len(unsent) > 0 {
		if v, err = s.encode(unsent); err != nil {
			return false, err
		}
	}
	keys := make([]uint64, n)
	for i := range keys {
		keys[i] = s.chunks[i].key
	}
	s.forget(0, n)
	s.held = 0
	key, at := keys[0], 0
	if last {
		key, at = s.next, len(s.chunks)
	}
	err = s.update(func(b *bbolt.Bucket) error {
		for _, k := range keys {
			if err := b.Delete(spoolKey(k)); err != nil {
				return err
			}
		}
		if v == nil {
			return nil
		}
		return b.Put(spoolKey(key), v)
	})
	if err != nil {
		s.garbage = append(s.garbage, keys...)
		return false, fmt.Errorf("writing to spool: %w", err)
	}
	if v != nil {
		c := spoolChunk{key: key, size: spoolSize(v), docs: uint32(len(unsent))}
		s.chunks = slices.Insert(s.chunks, at, c)
		s.next = max(s.next, key+1)
		s.bytes += c.size
		s.docs += uint64(c.docs)
	}
	return true, s.shrink()
}

// release ends hold and changes no chunk.
func (s *spool) release() { s.held = 0 }

// forget no longer counts the n chunks from position at on. It returns the number of
// their documents.
func (s *spool) forget(at, n int) (docs uint64) {
	for _, c := range s.chunks[at : at+n] {
		s.bytes -= c.size
		docs += uint64(c.docs)
	}
	s.docs -= docs
	s.chunks = slices.Delete(s.chunks, at, at+n)
	return docs
}

// update runs f in a transaction that also deletes the garbage.
func (s *spool) update(f func(*bbolt.Bucket) error) error {
	err := guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(spoolBucket)
			for _, k := range s.garbage {
				if err := b.Delete(spoolKey(k)); err != nil {
					return err
				}
			}
			return f(b)
		})
	})
	if err == nil {
		s.garbage = nil
	}
	return err
}

// shrink gives disk space back when the spool is empty.
func (s *spool) shrink() error {
	if len(s.chunks) > 0 || len(s.garbage) > 0 {
		return nil
	}
	st, err := os.Stat(s.path)
	if err != nil || st.Size() < spoolShrinkSize {
		return err
	}
	if err := s.db.Close(); err != nil {
		return err
	}
	s.db = nil
	if err := os.Remove(s.path); err != nil {
		return err
	}
	return s.open()
}

// Close leaves the documents on disk for the next openSpool.
func (s *spool) Close() error {
	s.dec.Close()
	if s.db == nil {
		return nil
	}
	return guard(s.db.Close)
}

func spoolKey(k uint64) []byte { return binary.BigEndian.AppendUint64(nil, k) }
