package main

import (
	"sync"

	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// A report takes so many records at most, and is made before its time when there
// are as many: an event with all that is known of it takes a kilobyte, so it is
// better to write some than to collect all.
const eventsAtOnce = 1 << 14

// recordsKept is how many records wait for that at most. With more, the reader of
// the kernel's ring waits too, and what does not fit there the kernel counts as
// lost.
const recordsKept = 1 << 17

// recordBuffer is a queue of records between the tracer's reader and the reports.
type recordBuffer struct {
	many chan struct{} // has a value when a report's worth is there

	mu     sync.Mutex
	room   sync.Cond
	ring   []tracer.Record
	first  int // index of the oldest
	n      int
	closed bool
	taken  []tracer.Record
}

func newRecordBuffer() *recordBuffer {
	b := &recordBuffer{many: make(chan struct{}, 1), ring: make([]tracer.Record, recordsKept)}
	b.room.L = &b.mu
	return b
}

// add takes in a batch, and waits while there is no room.
func (b *recordBuffer) add(batch []tracer.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(batch) > 0 {
		for b.n == len(b.ring) && !b.closed {
			b.room.Wait()
		}
		if b.closed {
			return
		}
		at := (b.first + b.n) % len(b.ring)
		n := copy(b.ring[at:min(len(b.ring), at+len(b.ring)-b.n)], batch)
		batch = batch[n:]
		b.n += n
		b.tell()
	}
}

func (b *recordBuffer) tell() {
	if b.n < eventsAtOnce {
		return
	}
	select {
	case b.many <- struct{}{}:
	default: // told already
	}
}

// take returns the oldest records, at most limit; they are good until the next call.
func (b *recordBuffer) take(limit int) []tracer.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = b.taken[:0]
	for b.n > 0 && len(b.taken) < limit {
		n := min(b.n, limit-len(b.taken), len(b.ring)-b.first)
		b.taken = append(b.taken, b.ring[b.first:b.first+n]...)
		b.first = (b.first + n) % len(b.ring)
		b.n -= n
	}
	b.room.Broadcast()
	b.tell()
	return b.taken
}

// left tells whether there are records to take.
func (b *recordBuffer) left() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n > 0
}

// close lets go of an add that waits.
func (b *recordBuffer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.room.Broadcast()
}
