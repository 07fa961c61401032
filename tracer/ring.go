package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// recordsPoll is how long a record may wait in the ring: programs wake the
// reader only when a quarter of it is full.
const recordsPoll = 50 * time.Millisecond

// recordsBatch is how many records are handed over at once at most.
const recordsBatch = 4096

func (t *Tracer) startReaders(ctx context.Context) error {
	notices, err := ringbuf.NewReader(t.host.shared[bpf.HostMapNotices])
	if err != nil {
		return fmt.Errorf("opening the ring of notices: %w", err)
	}
	t.closers = append(t.closers, notices.Close)
	t.readers.Go(func() { t.readNotices(notices) })
	if t.opt.Records == nil {
		return nil
	}
	records, err := ringbuf.NewReader(t.host.shared[bpf.HostMapRecords])
	if err != nil {
		return fmt.Errorf("opening the ring of records: %w", err)
	}
	t.closers = append(t.closers, records.Close)
	t.records, t.flushed = records, make(chan struct{})
	if _, err := bootTime(); err != nil {
		return fmt.Errorf("reading the clock: %w", err)
	}
	t.readers.Go(func() { t.readRecords(ctx, records) })
	return nil
}

// bootTime returns when CLOCK_MONOTONIC, which records are stamped with, was 0.
// That changes when the wall clock is set and with every suspend.
func bootTime() (time.Time, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Time{}, err
	}
	return time.Now().Round(0).Add(-time.Duration(ts.Nano())), nil
}

// FlushRecords returns once every record that is in the ring now has been handed
// to Options.Records.
func (t *Tracer) FlushRecords() error {
	if t.records == nil {
		return nil
	}
	if err := t.records.Flush(); err != nil {
		return fmt.Errorf("flushing the ring of records: %w", err)
	}
	select {
	case <-t.flushed:
	case <-t.ctx.Done():
	}
	return nil
}

// enum iot_notice_kind of bpf/iotrace.h
const (
	noticeCgroupCreated = 1
	noticeCgroupRemoved = 2
	noticeModuleLoaded  = 3
	noticeModuleFreed   = 4
	noticeMounting      = 5
)

func (t *Tracer) readNotices(r *ringbuf.Reader) {
	var rec ringbuf.Record
	head := int(unsafe.Offsetof(bpf.HostNotice{}.Text))
	for {
		if err := r.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) {
				return
			}
			t.opt.Log.Warn("reading notices", "error", err)
			return
		}
		b := rec.RawSample
		if len(b) < head {
			continue
		}
		cgroup := binary.NativeEndian.Uint64(b[0:])
		kind := binary.NativeEndian.Uint32(b[8:])
		n := int(binary.NativeEndian.Uint32(b[12:]))
		text := ""
		if n > 0 && head+n <= len(b) {
			text = string(b[head : head+n-1]) // without the NUL
		}
		switch kind {
		case noticeCgroupCreated:
			if t.opt.CgroupCreated != nil {
				t.opt.CgroupCreated(cgroup, text)
			}
		case noticeCgroupRemoved:
			if t.opt.CgroupRemoved != nil {
				t.opt.CgroupRemoved(cgroup, text)
			}
		case noticeModuleLoaded:
			t.moduleLoaded(text)
		case noticeModuleFreed:
			t.moduleFreed(text)
		case noticeMounting:
			t.mounting(text)
		}
	}
}

func (t *Tracer) readRecords(ctx context.Context, r *ringbuf.Reader) {
	var rec ringbuf.Record
	out := make([]Record, 0, recordsBatch)
	boot, _ := bootTime() // that it can be read was seen before
	flush := func() {
		boot, _ = bootTime()
		if len(out) > 0 {
			t.opt.Records(out)
			out = out[:0]
		}
	}
	r.SetDeadline(time.Now().Add(recordsPoll))
	for {
		err := r.ReadInto(&rec)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			flush()
			if ctx.Err() != nil {
				return
			}
			r.SetDeadline(time.Now().Add(recordsPoll))
			continue
		case errors.Is(err, ringbuf.ErrFlushed):
			flush()
			select {
			case t.flushed <- struct{}{}:
			case <-ctx.Done():
			}
			continue
		case err != nil:
			flush()
			if !errors.Is(err, ringbuf.ErrClosed) {
				t.opt.Log.Warn("reading records", "error", err)
			}
			return
		}
		if len(rec.RawSample) < int(unsafe.Sizeof(bpf.HostIoRecord{})) {
			continue
		}
		// The ring's data is 8-byte aligned and the struct has no padding.
		raw := (*bpf.HostIoRecord)(unsafe.Pointer(&rec.RawSample[0]))
		key, _, failed := keyOf(&raw.Usage)
		out = append(out, Record{
			Key: key, Time: boot.Add(time.Duration(raw.Time)), Latency: time.Duration(raw.Latency),
			Offset: raw.Offset, Bytes: raw.Bytes, Error: failed,
		})
		if len(out) == cap(out) {
			flush()
		}
	}
}
