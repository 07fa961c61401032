package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Limits of what waits for one output: intervals, and samples, events and rows in them,
// each of which takes about a kilobyte. A single interval may be larger.
const (
	maxWaiting       = 8
	maxWaitingWeight = 1 << 14
)

// outlet is an output with a goroutine of its own, in which alone it is used: a file
// system or a reader that hangs for ever keeps no other output from working.
type outlet struct {
	sink sink
	name string // for messages
	all  *sinks

	exports bool // it gets what sinks.export gets; set before the first job

	mu      sync.Mutex
	queue   []job
	weight  int         // of queue
	stuck   bool        // it was waited for in vain; of sinks.write alone
	working bool        // on a job that is not in queue any more
	closing bool        // no more jobs come
	carry   output.Lost // of intervals that were dropped
	dropped uint64      // intervals, since the beginning
	warned  time.Time   // when its failure was last logged
	err     error       // the first of Write

	lost     uint64 // documents that the sink had lost when it was last asked
	reported uint64 // the part of sinks.lost that its intervals have contained

	wake     chan struct{} // has a value when there is work
	progress chan struct{} // has a value when a job was done
	failed   chan struct{} // closed after the first error
	done     chan struct{} // closed after Close
	ended    error         // of Close; valid once done is closed
}

// job is an interval to write, or something else to do with the sink.
type job struct {
	summary *output.Summary
	iv      *output.Interval
	do      func(sink)
}

func (j *job) weight() int {
	if j.iv == nil {
		return 0
	}
	return len(j.iv.Samples) + len(j.iv.Events) + len(j.summary.Rows)
}

func newOutlet(all *sinks, name string, k sink) *outlet {
	o := &outlet{
		sink: k, name: name, all: all,
		wake: make(chan struct{}, 1), progress: make(chan struct{}, 1), failed: make(chan struct{}), done: make(chan struct{}),
	}
	go o.work()
	return o
}

func signalTo(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has one already
	}
}

// put queues a job, or drops and counts it where the queue is full.
func (o *outlet) put(j job) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := j.weight()
	if len(o.queue) >= maxWaiting || len(o.queue) > 0 && o.weight+w > maxWaitingWeight {
		if j.iv == nil {
			return
		}
		o.dropped++
		o.carry.Add(&j.iv.Lost)
		o.all.lose(1)
		if o.due() { // not here: standard error may be what is stuck
			go o.all.log.Warn("an output is too slow or stuck: intervals are dropped and counted as lost", "output", o.name)
		}
		return
	}
	o.queue = append(o.queue, j)
	o.weight += w
	signalTo(o.wake)
}

// due tells whether it is time for a warning. The caller holds o.mu.
func (o *outlet) due() bool {
	if time.Since(o.warned) <= warnInterval {
		return false
	}
	o.warned = time.Now()
	return true
}

// idle tells whether the sink has written everything, ready whether there is room for
// more without a loss.
func (o *outlet) idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.working && len(o.queue) == 0
}

func (o *outlet) ready() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue) <= maxWaiting/2 && o.weight <= maxWaitingWeight/2
}

// wait returns true once state is reached, and false when late is closed before.
func (o *outlet) wait(state func() bool, late <-chan struct{}) bool {
	for !state() {
		select {
		case <-o.progress:
		case <-o.done:
			return true
		case <-late:
			return false
		}
	}
	return true
}

// work is the goroutine.
func (o *outlet) work() {
	defer close(o.done)
	for {
		o.mu.Lock()
		if len(o.queue) == 0 {
			closing := o.closing
			o.working = false
			signalTo(o.progress)
			o.mu.Unlock()
			if closing {
				o.ended = o.sink.Close()
				return
			}
			<-o.wake
			continue
		}
		j := o.queue[0]
		o.queue = append(o.queue[:0], o.queue[1:]...)
		o.weight -= j.weight()
		o.working = true
		o.mu.Unlock()
		signalTo(o.progress)
		if j.do != nil {
			j.do(o.sink)
		} else {
			o.write(j)
		}
	}
}

// write writes an interval. Its Lost.Exports contains the losses of all sinks since the
// last interval of this one: so the intervals of each sink add up to the same loss, and
// what was lost with intervals that were dropped is in the next one.
func (o *outlet) write(j job) {
	total := o.all.lose(0)
	o.mu.Lock()
	iv := *j.iv // its parts are shared with the other outputs, and only read
	iv.Lost.Add(&o.carry)
	o.carry = output.Lost{}
	iv.Lost.Exports += total - o.reported
	o.reported = total
	failed := o.err != nil && o == o.all.main
	o.mu.Unlock()
	if failed {
		return // the run is ending
	}
	if err := o.sink.Write(j.summary, &iv); o.settle(err) {
		o.all.log.Warn("writing to an output failed", "output", o.name, "error", err)
	}
}

// settle books the outcome of a Write, and tells whether to warn of it.
func (o *outlet) settle(err error) bool {
	var lost uint64
	l, counts := o.sink.(lossCounter)
	if counts {
		lost = l.lost() // may wait for a disk
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if counts {
		o.all.lose(lost - o.lost)
		o.lost = lost
	} else if err != nil {
		o.all.lose(1)
	}
	if err == nil {
		return false
	}
	if o.err == nil {
		o.err = err
		close(o.failed)
	}
	return o != o.all.main && o.due()
}

// failure returns the first error of Write.
func (o *outlet) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// finish lets the goroutine close the sink after its last job.
func (o *outlet) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closing = true
	signalTo(o.wake)
}

// close waits until the sink is closed, or until late is closed: then the sink stays as
// it is. Intervals that it lacks are an error.
func (o *outlet) close(late <-chan struct{}) error {
	select {
	case <-o.done:
	case <-late:
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case <-o.done: // perhaps both
		if o.dropped > 0 {
			return errors.Join(o.ended, fmt.Errorf("%s was too slow: %d intervals are missing in it", o.name, o.dropped))
		}
		return o.ended
	default:
	}
	missing := o.dropped + uint64(len(o.queue))
	if o.working {
		missing++
	}
	if missing == 0 {
		return fmt.Errorf("%s is stuck: it may not be complete", o.name)
	}
	return fmt.Errorf("%s is stuck: %d intervals may be missing in it", o.name, missing)
}
