package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// No program wakes the reader of records: it looks when an eighth of the ring
// should be full, and within these bounds.
const (
	recordsSoon = time.Millisecond
	recordsLate = 50 * time.Millisecond
)

// recordsBurst is how many records a second may come in all of a sudden: a ring
// too small for recordsLate of them is looked at more often, even while idle.
const recordsBurst = 1 << 20

const (
	recordSize = int(unsafe.Sizeof(bpf.CoreIoRecord{}))
	ringHeader = 8 // BPF_RINGBUF_HDR_SZ
)

// recordsBatch is how many records are handed over at once at most.
const recordsBatch = 4096

// pace says when to look for records again.
type pace struct {
	ring int           // bytes
	late time.Duration // at the latest
	wait time.Duration // the last answer
}

func newPace(ring int) *pace {
	late := time.Duration(ring/recordSize) * time.Second / recordsBurst
	late = min(max(late, 5*recordsSoon), recordsLate)
	return &pace{ring: ring, late: late, wait: late}
}

// next takes how many records came in, and in which time.
func (p *pace) next(records int, in time.Duration) time.Duration {
	wait := p.late
	if bytes := records * recordSize; bytes > 0 {
		wait = time.Duration(float64(in) * float64(p.ring/8) / float64(bytes))
		if bytes > p.ring/2 {
			p.wait = 0 // records are about to be lost, or were
			return 0
		}
	}
	wait = min(wait, 2*p.wait) // the rate may have sunk for a moment alone
	p.wait = min(max(wait, recordsSoon), p.late)
	return p.wait
}

func (t *Tracer) startReaders(ctx context.Context) error {
	notices, err := ringbuf.NewReader(t.core.shared[bpf.CoreMapNotices])
	if err != nil {
		return fmt.Errorf("opening the ring of notices: %w", err)
	}
	t.closers = append(t.closers, notices.Close)
	t.readers.Go(func() { t.readNotices(notices) })
	if t.opt.Records == nil {
		return nil
	}
	records, err := ringbuf.NewReader(t.core.shared[bpf.CoreMapRecords])
	if err != nil {
		return fmt.Errorf("opening the ring of records: %w", err)
	}
	if _, err := bootTime(); err != nil {
		records.Close()
		return fmt.Errorf("reading the clock: %w", err)
	}
	t.flush = make(chan chan struct{})
	t.readers.Go(func() { t.readRecords(ctx, records) })
	return nil
}

// bootTime returns when CLOCK_MONOTONIC, which records are stamped with, was 0.
// That changes when the wall clock is set and with every suspend.
func bootTime() (time.Time, error) { return bootOf(monotonicTime, time.Now) }

func monotonicTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// Two clocks cannot be read at once. What we did not run for in between would be an
// error in the time of every record.
const (
	clocksApart = time.Millisecond
	clocksTries = 8
)

// bootOf returns when a clock was 0 by another one.
func bootOf(clock func() (time.Duration, error), wall func() time.Time) (boot time.Time, err error) {
	least := time.Duration(math.MaxInt64)
	for range clocksTries {
		before, err := clock()
		if err != nil {
			return time.Time{}, err
		}
		now := wall()
		after, err := clock()
		if err != nil {
			return time.Time{}, err
		}
		if apart := after - before; apart < least {
			least, boot = apart, now.Round(0).Add(-before-apart/2)
		}
		if least <= clocksApart {
			break
		}
	}
	return boot, nil
}

// FlushRecords returns once every record that is in the ring now has been handed
// to Options.Records.
func (t *Tracer) FlushRecords() error {
	if t.flush == nil {
		return nil
	}
	done := make(chan struct{})
	select {
	case t.flush <- done:
	case <-t.ctx.Done():
		return nil
	}
	select {
	case <-done:
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
	head := int(unsafe.Offsetof(bpf.CoreNotice{}.Text))
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
	defer r.Close()
	r.SetDeadline(time.Unix(0, 1)) // what is there, without waiting: poll would return for each single record
	drain := recordDrain{reader: r, out: make([]Record, 0, recordsBatch), hand: t.opt.Records}
	t.drain(ctx, newPace(r.BufferSize()), drain.run)
}

// drain takes out records again and again. Should that fail, there are none any
// more, and whoever asks for them is told so at once.
func (t *Tracer) drain(ctx context.Context, pace *pace, run func() (int, error)) {
	last := time.Now()
	timer := time.NewTimer(pace.wait)
	defer timer.Stop()
	for {
		var flushed chan struct{}
		select {
		case <-timer.C:
		case flushed = <-t.flush:
		case <-ctx.Done():
			return
		}
		n, err := run()
		if err != nil {
			t.opt.Log.Warn("reading records", "error", err)
			run = func() (int, error) { return 0, nil }
		}
		if flushed != nil {
			close(flushed)
		}
		now := time.Now()
		timer.Reset(pace.next(n, now.Sub(last)))
		last = now
	}
}

// recordDrain takes records out of the ring.
type recordDrain struct {
	reader *ringbuf.Reader
	record ringbuf.Record
	out    []Record
	hand   func([]Record)
}

// run hands over what is in the ring now, and says how many records that were.
func (d *recordDrain) run() (n int, err error) {
	boot, err := bootTime()
	if err != nil {
		return 0, err
	}
	for bytes := d.reader.AvailableBytes(); bytes > 0; {
		err := d.reader.ReadInto(&d.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return n, err
		}
		bytes -= len(d.record.RawSample) + ringHeader
		// The ring's data is 8-byte aligned and the struct has no padding.
		for sample := d.record.RawSample; len(sample) >= recordSize; sample = sample[recordSize:] {
			n++
			d.out = append(d.out, recordOf((*bpf.CoreIoRecord)(unsafe.Pointer(&sample[0])), boot))
			if len(d.out) == cap(d.out) {
				d.hand(d.out)
				d.out = d.out[:0]
			}
		}
	}
	if len(d.out) > 0 {
		d.hand(d.out)
		d.out = d.out[:0]
	}
	return n, nil
}

func recordOf(raw *bpf.CoreIoRecord, boot time.Time) Record {
	key, _, failed := keyOf(&raw.Usage)
	return Record{
		Key: key, Time: boot.Add(time.Duration(raw.Time)), Latency: time.Duration(raw.Latency),
		Offset: raw.Offset, Bytes: raw.Bytes, Error: failed,
	}
}

// takeBatches returns the records that wait for company in batches at rest, and
// empties those.
func (t *Tracer) takeBatches(generation uint32) ([]Record, error) {
	m := t.core.shared[bpf.CoreMapBatches]
	if err := m.Lookup(generation, &t.batches); err != nil {
		return nil, fmt.Errorf("reading batches of records: %w", err)
	}
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	var list []Record
	for i := range t.batches {
		b := &t.batches[i]
		for j := range b.Records[:min(b.N, uint64(len(b.Records)))] {
			list = append(list, recordOf(&b.Records[j], boot))
		}
		b.N = 0
	}
	if len(list) == 0 {
		return nil, nil
	}
	if err := m.Update(generation, t.batches, ebpf.UpdateAny); err != nil {
		return nil, fmt.Errorf("emptying batches of records: %w", err)
	}
	return list, nil
}
