package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// StreamWriter writes a recording to a pipe, each interval at once. It is not safe for
// concurrent use.
type StreamWriter struct {
	w   Writer // its encoder alone
	out io.Writer
	err error // of a frame that was written in part: nothing can follow it
}

// NewStreamWriter writes the header. The sizes in opt have no meaning here.
func NewStreamWriter(out io.Writer, opt Options) (*StreamWriter, error) {
	s := &StreamWriter{out: out}
	s.w.opt = opt
	var err error
	if s.w.zenc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true)); err != nil {
		return nil, err
	}
	if s.w.enc, err = newEncoder(); err != nil {
		return nil, err
	}
	frame, err := s.w.header()
	if err == nil {
		_, err = out.Write(frame)
	}
	if err != nil {
		s.w.zenc.Close()
		return nil, fmt.Errorf("recording to standard output: %w", err)
	}
	s.w.restart()
	return s, nil
}

// Write writes one interval and does not keep iv. An error of the pipe stays.
func (s *StreamWriter) Write(iv *output.Interval) error {
	if s.err != nil {
		return s.err
	}
	if s.w.sinceK >= keyEvery {
		s.w.restart()
	}
	frame, err := s.w.encode(iv)
	if errors.Is(err, ErrTooLarge) && s.w.sinceK > 0 {
		s.w.restart()
		frame, err = s.w.encode(iv)
	}
	if err != nil {
		s.w.restart()
		return fmt.Errorf("recording to standard output: %w", err)
	}
	if _, err := s.out.Write(frame); err != nil {
		s.err = fmt.Errorf("recording to standard output: %w", err)
		return s.err
	}
	s.w.sinceK++
	return nil
}

// Close frees memory; it does not close the pipe.
func (s *StreamWriter) Close() error { return s.w.zenc.Close() }

// StreamReader reads a recording while it is written to a pipe. Its bounds are those of a
// Reader for one interval. It is not safe for concurrent use.
type StreamReader struct {
	in     io.Reader
	header Header
	r      *Reader // its decoder and names
	since  int     // intervals since the key frame
	behind int64   // bytes since it
	err    error
}

// NewStreamReader reads the header, for which it waits. Errors are those of Open.
func NewStreamReader(in io.Reader) (*StreamReader, error) {
	r, err := newReader()
	if err != nil {
		return nil, err
	}
	s := &StreamReader{in: in, r: r}
	e, body, _, err := s.frame()
	switch {
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("is empty: %w", ErrTruncated)
	case errors.Is(err, ErrCorrupt), err == nil && e.Kind != kindHeader:
		err = ErrNotRecording
	case err == nil:
		s.header, err = r.decodeHeader(bytes.NewReader(body), 0, e)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Header says where the recording is made.
func (s *StreamReader) Header() Header { return s.header }

// frame reads the next entry and its frame, and how many bytes both have.
func (s *StreamReader) frame() (e fileEntry, body []byte, size int64, err error) {
	cut := func(err error) error {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return ErrTruncated
		}
		return err
	}
	head := make([]byte, 8, 8+maxEntry)
	if n, err := io.ReadFull(s.in, head); err != nil {
		if n == 0 {
			return e, nil, 0, err
		}
		return e, nil, 0, cut(err)
	}
	if l := binary.LittleEndian.Uint32(head[4:]); binary.LittleEndian.Uint32(head) == skipID && l <= maxEntry {
		head = head[:8+l]
		if _, err := io.ReadFull(s.in, head[8:]); err != nil {
			return e, nil, 0, cut(err)
		}
	}
	if e, _, err = readEntry(bytes.NewReader(head), 0); err != nil {
		return e, nil, 0, err
	}
	// The buffer grows with what comes, not with what the entry promises.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, s.in, int64(e.Size)); err != nil {
		return e, nil, 0, cut(err)
	}
	return e, b.Bytes(), int64(len(head) + b.Len()), nil
}

// Next waits for the next interval; io.EOF is the end. Every other error stays: in a pipe
// nothing can be looked for behind damage.
func (s *StreamReader) Next() (*output.Interval, error) {
	if s.err != nil {
		return nil, s.err
	}
	iv, err := s.next()
	s.err = err
	return iv, err
}

func (s *StreamReader) next() (*output.Interval, error) {
	for {
		e, body, size, err := s.frame()
		if err != nil {
			return nil, err
		}
		if e.Kind != kindInterval { // a kind that a later version may add
			continue
		}
		if e.Key || s.since >= maxGroup {
			s.r.tables, s.since, s.behind = newNameTables(), 0, 0
		}
		if s.r.tables == nil {
			return nil, fmt.Errorf("begins without names: %w", ErrCorrupt)
		}
		w, err := s.r.decodeFrame(bytes.NewReader(body), 0, &fileIndex{start: e.Start, end: e.End, size: e.Size, plain: e.Plain})
		if err != nil {
			return nil, err
		}
		if err := s.r.learn(w, s.behind); err != nil {
			return nil, err
		}
		s.since++
		s.behind += size
		iv, err := s.r.tables.interval(w)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			err = fmt.Errorf("%w: %v", ErrCorrupt, err)
		}
		return iv, err
	}
}

// Close frees memory; it does not close the pipe.
func (s *StreamReader) Close() error { return s.r.Close() }
