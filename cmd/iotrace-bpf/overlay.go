package main

import (
	"context"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

// overlayEvents watches overlay devices beside the I/O. It starts in the
// background, once the first report is out: it needs as much CPU time for that as
// all sources, and finds what it missed by looking at what there is. What keeps
// it from starting is no reason not to trace.
type overlayEvents struct {
	begin   func() // nil unless it is to start, and has not
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	status output.SourceStatus
	watch  *overlayWatch
	events []output.Event
	lost   uint64 // what the watch had lost at the last report
	drop   uint64 // events too many since then
}

// maxOverlayEvents bounds the events that wait for the end of an interval.
const maxOverlayEvents = 1 << 14

// overlayStart is when the watch starts at the latest, should the first report
// be later.
const overlayStart = 300 * time.Millisecond

// prepare has start start the watch.
func (o *overlayEvents) prepare(ctx context.Context, s *session, stderr io.Writer) {
	ctx, o.cancel = context.WithCancel(ctx)
	o.status = output.SourceStatus{Source: "vxlan", Reason: "starting"}
	o.begin = func() { o.run(ctx, s, stderr) }
}

// start starts the watch, unless it was started.
func (o *overlayEvents) start() {
	if o.begin != nil {
		o.begin()
		o.begin = nil
	}
}

func (o *overlayEvents) run(ctx context.Context, s *session, stderr io.Writer) {
	opt := overlayOptions{
		vxlanOptions: vxlanOptions{grace: vxlan.DefaultGrace, dockerHost: s.opt.dockerHost},
		hierarchy:    s.resolver.Hierarchy().ID,
		owner: func(cgroup uint64) *output.Sample {
			sample := s.joiner.identity(&tracer.Key{Source: tracer.Block, Cgroup: cgroup}, map[tracer.Dev]tracer.Device{})
			return &sample
		},
		stderr: io.Discard,
	}
	if s.opt.verbose {
		opt.stderr = stderr
	}
	o.running.Go(func() {
		w, err := newOverlayWatch(opt)
		if err != nil {
			o.failed(s, err)
			return
		}
		defer w.Close()
		debug.FreeOSMemory() // the kernel's types were read once more
		o.mu.Lock()
		o.watch, o.status = w, w.status()
		o.mu.Unlock()
		err = w.run(ctx, o.add)
		o.mu.Lock()
		o.watch = nil
		o.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			o.failed(s, err)
		}
	})
}

func (o *overlayEvents) failed(s *session, err error) {
	s.log.Debug("not watching overlay devices", "error", err)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status = output.SourceStatus{Source: "vxlan", Reason: err.Error()}
}

func (o *overlayEvents) add(e output.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.events) >= maxOverlayEvents {
		o.drop++
		return
	}
	o.events = append(o.events, e)
}

// into moves what happened since the last report into iv.
func (o *overlayEvents) into(iv *output.Interval) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cancel == nil {
		return
	}
	iv.Events = append(iv.Events, o.events...)
	o.events = nil
	iv.Sources = append(iv.Sources, o.status)
	iv.Lost.Notices += o.drop
	o.drop = 0
	if o.watch != nil {
		now := o.watch.lost()
		iv.Lost.Notices += now - o.lost
		o.lost = now
	}
}

// Close ends the watch.
func (o *overlayEvents) Close() {
	if o.cancel != nil {
		o.cancel()
	}
	o.running.Wait()
}
