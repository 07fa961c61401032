package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// Programs do not wake the reader of records. It looks when an eighth of the ring
// should be full, but not sooner or later than this.
const (
	recordsSoon = time.Millisecond
	recordsLate = 50 * time.Millisecond
)

// recordsBurst is how many records a second may suddenly come in. A ring that
// cannot hold so many for recordsLate is read more often, even while idle.
const recordsBurst = 1 << 20

const (
	recordSize = int(unsafe.Sizeof(bpf.CoreIoRecord{}))
	ringHeader = 8 // BPF_RINGBUF_HDR_SZ
)

// recordsBatch is the most records that Options.Records gets at once.
const recordsBatch = 4096

// pace decides when the ring of records is read next.
type pace struct {
	ring int           // bytes
	late time.Duration // longest wait
	wait time.Duration // the last wait
}

func newPace(ring int) *pace {
	late := time.Duration(ring/recordSize) * time.Second / recordsBurst
	late = min(max(late, 5*recordsSoon), recordsLate)
	return &pace{ring: ring, late: late, wait: late}
}

// next returns how long to wait, given how many records came in during which time.
func (p *pace) next(records int, in time.Duration) time.Duration {
	wait := p.late
	if bytes := records * recordSize; bytes > 0 {
		wait = time.Duration(float64(in) * float64(p.ring/8) / float64(bytes))
		if bytes > p.ring/2 {
			p.wait = 0 // records are about to be lost, or were
			return 0
		}
	}
	wait = min(wait, 2*p.wait) // the rate may have dropped only for a moment
	p.wait = min(max(wait, recordsSoon), p.late)
	return p.wait
}

// startReaders starts what runs beside the reports. l is the loader of the start.
func (t *Tracer) startReaders(ctx context.Context, l *loader) error {
	notices, err := ringbuf.NewReader(t.core.shared[bpf.CoreMapNotices])
	if err != nil {
		return fmt.Errorf("opening the ring of notices: %w", err)
	}
	t.closers = append(t.closers, notices.Close)
	t.notices = notices
	t.readers.Go(func() { t.readNotices(notices) })
	t.readers.Go(func() {
		t.prepareRest(ctx, l)
		t.followModules(ctx)
	})
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

// bootTime returns the wall-clock time at which CLOCK_MONOTONIC was 0: records have
// times of that clock. It changes when the wall clock is set and with every suspend
// of the machine.
func bootTime() (time.Time, error) { return bootOf(monotonicTime, time.Now) }

func monotonicTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// Two clocks cannot be read at the same instant. A pause of this process between the
// two readings would be an error in the time of every record.
const (
	clocksApart = time.Millisecond
	clocksTries = 8
)

// bootOf returns the time of the wall clock at which the other clock was 0.
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

// FlushRecords returns after Options.Records got every record that is in the ring
// now, or when the tracer is closed. The error is always nil.
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

// enum iot_notice_kind of bpf/core/types.h
const (
	noticeCgroupCreated = 1
	noticeCgroupRemoved = 2
	noticeModuleLoaded  = 3
	noticeModuleFreed   = 4
	noticeMounting      = 5
)

// flushNotices returns after every notice that is in the ring now was read.
func (t *Tracer) flushNotices() {
	done := make(chan struct{})
	select {
	case t.noticesFlush <- done:
	case <-t.noticesEnd:
		return
	}
	if err := t.notices.Flush(); err != nil {
		return // closed
	}
	select {
	case <-done:
	case <-t.noticesEnd:
	}
}

func (t *Tracer) readNotices(r *ringbuf.Reader) {
	defer close(t.noticesEnd)
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrFlushed) {
				close(<-t.noticesFlush)
				continue
			}
			if errors.Is(err, ringbuf.ErrClosed) {
				return
			}
			t.opt.Log.Warn("cannot read events of cgroups and modules any more", "error", err)
			return
		}
		t.notice(rec.RawSample)
	}
}

// notice handles a struct notice. It never loads a program, which may take seconds:
// more notices than the ring holds may come in meanwhile.
func (t *Tracer) notice(b []byte) {
	head := int(unsafe.Offsetof(bpf.CoreNotice{}.Text))
	if len(b) < head {
		return
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
		t.modules.add(moduleEvent{name: text})
	case noticeModuleFreed:
		t.modules.add(moduleEvent{name: text, freed: true})
	case noticeMounting:
		t.mounting(text)
	}
}

func (t *Tracer) readRecords(ctx context.Context, r *ringbuf.Reader) {
	defer r.Close()
	r.SetDeadline(time.Unix(0, 1)) // never wait: poll would return for each single record
	drain := recordDrain{reader: r, begun: &t.begun, out: make([]Record, 0, recordsBatch), hand: t.opt.Records}
	t.drain(ctx, newPace(r.BufferSize()), drain.run)
}

// drain reads records until the end. After an error it reads no more, and every
// flush returns at once.
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
			t.opt.Log.Warn("cannot read records any more", "error", err)
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

// recordDrain reads records from the ring.
type recordDrain struct {
	reader *ringbuf.Reader
	begun  *atomic.Uint64 // Tracer.begun
	record ringbuf.Record
	out    []Record
	hand   func([]Record)
}

// run passes on what is in the ring now and returns the number of records.
func (d *recordDrain) run() (n int, err error) {
	boot, err := bootTime()
	if err != nil {
		return 0, err
	}
	begun := d.begun.Load()
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
			raw := (*bpf.CoreIoRecord)(unsafe.Pointer(&sample[0]))
			if !issuedSince(raw, begun) {
				continue
			}
			d.out = append(d.out, recordOf(raw, boot))
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

// issuedSince tells whether an I/O was issued after Begin, whose time begun is: 0 means
// that it was not called yet.
func issuedSince(raw *bpf.CoreIoRecord, begun uint64) bool { return begun != 0 && raw.Time >= begun }

func recordOf(raw *bpf.CoreIoRecord, boot time.Time) Record {
	key, failed := keyOf(&raw.Usage)
	return Record{
		Key: key, Time: boot.Add(time.Duration(raw.Time)), Latency: time.Duration(raw.Latency),
		Offset: raw.Offset, Bytes: raw.Bytes, Error: failed,
	}
}

// takeBatches returns the records in batches that are not full yet, of a generation
// that no program writes to, and empties the batches.
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
	var n uint64
	begun := t.begun.Load()
	for i := range t.batches {
		b := &t.batches[i]
		for j := range b.Records[:min(b.N, uint64(len(b.Records)))] {
			if issuedSince(&b.Records[j], begun) {
				list = append(list, recordOf(&b.Records[j], boot))
			}
		}
		n += b.N
		b.N = 0
	}
	if n == 0 {
		return nil, nil
	}
	if err := m.Update(generation, t.batches, ebpf.UpdateAny); err != nil {
		return nil, fmt.Errorf("emptying batches of records: %w", err)
	}
	return list, nil
}
