package main

import (
	"errors"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// exporter takes the intervals that leave the host.
type exporter interface {
	export(*output.Summary, *output.Interval) error
	// covered tells whether another instance of this program has delivered the last
	// intervals of this host before this one did.
	covered() bool
	Close() error
}

// exportSink joins what it gets into intervals that end when the clock shows a multiple
// of every, in rows of its own grain, whatever the terminal shows. Two instances on one
// host so make the same documents, which a server stores once. It is used by one
// goroutine at a time.
type exportSink struct {
	exporter
	every time.Duration
	group output.GroupOptions
	live  bool                        // another instance may export the same
	hosts map[output.Host]*exportHost // a replay may have several
}

// exportHost is what is not exported yet of a host.
type exportHost struct {
	merger *output.Merger
	last   time.Time        // end of the interval before; zero: there is none
	held   *output.Interval // is exported after the next one has ended, or nil
	n      int              // intervals that were exported
}

func newExportSink(o *options, live bool, e exporter) *exportSink {
	group := o.exportGroup
	group.Filters, group.Level, group.CgroupDepth = o.group.Filters, o.group.Level, o.group.CgroupDepth
	return &exportSink{exporter: e, every: o.exportInterval, group: group, live: live, hosts: make(map[output.Host]*exportHost)}
}

// endless is the length of intervals of a merger that this file ends.
const endless = 1000 * time.Hour

// firstHeld is how many intervals a run exports late, until it knows that it is alone.
const firstHeld = 2

func (s *exportSink) Write(_ *output.Summary, iv *output.Interval) error {
	h := s.hosts[iv.Host]
	if h == nil {
		h = &exportHost{merger: output.NewMerger(endless)}
		s.hosts[iv.Host] = h
	}
	var errs []error
	// It ends early where there was a gap, or where it has become too large. Its end is
	// where it is then, and it is no duplicate of another one.
	if done := h.merger.Add(iv.Clone()); done != nil {
		errs = append(errs, s.release(h), s.put(done))
		h.last = time.Time{}
	}
	// What was counted up to a moment after the full second is of the interval before: the
	// clock is read a little later than it was asked for.
	end := iv.End.UTC().Truncate(s.every)
	start := h.last
	if start.IsZero() {
		start = h.merger.Start()
	}
	if !end.After(start) {
		return errors.Join(errs...)
	}
	whole := h.merger.Flush()
	errs = append(errs, s.release(h))
	whole.Start, whole.End, h.last = start, end, end
	// Where another instance exports this host it should be first, always: this one began
	// in the middle of an interval, and later both read the counters at the full second,
	// but not at the same nanosecond.
	if s.live && (h.n < firstHeld || s.covered()) {
		h.held = whole
		return errors.Join(errs...)
	}
	h.n++
	return errors.Join(append(errs, s.put(whole))...)
}

// release exports the interval that was held.
func (s *exportSink) release(h *exportHost) error {
	iv := h.held
	h.held = nil
	if iv == nil {
		return nil
	}
	h.n++
	return s.put(iv)
}

func (s *exportSink) put(iv *output.Interval) error {
	return s.export(output.Group(iv, s.group), iv)
}

// Close exports what is left. The part of an interval that ends with the run has a time
// of its own, so that the next run can export the other part.
func (s *exportSink) Close() error {
	var errs []error
	for _, h := range s.hosts {
		errs = append(errs, s.release(h))
		iv := h.merger.Flush()
		if iv == nil || s.covered() {
			continue
		}
		if !h.last.IsZero() {
			iv.Start = h.last
		}
		errs = append(errs, s.put(iv))
	}
	return errors.Join(append(errs, s.exporter.Close())...)
}

// lost is that of the exporter.
func (s *exportSink) lost() uint64 {
	if l, ok := s.exporter.(lossCounter); ok {
		return l.lost()
	}
	return 0
}
