package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

// vxlanEvents watches vxlan devices beside the I/O. It waits in the background, after the
// first interval, for an engine in swarm mode: its start takes as much CPU time as that of
// all sources. It then finds by a scan what it missed. If it cannot start, tracing goes on
// without it.
type vxlanEvents struct {
	begin   func() // starts the watch; nil when it has started or is not wanted
	cancel  context.CancelFunc
	running sync.WaitGroup

	unprivileged bool // its capabilities were given up, because no engine was in a swarm

	mu     sync.Mutex
	status output.SourceStatus
	watch  *vxlanWatcher // nil while it does not run
	events []output.Event
	lost   uint64 // events that the watch had lost at the end of the last interval
	drop   uint64 // events since then that did not fit into maxVXLANEvents
}

// maxVXLANEvents bounds the events that wait for the end of an interval.
const maxVXLANEvents = 1 << 14

// vxlanStart is when the watch starts at the latest, also within a longer first
// interval.
const vxlanStart = 300 * time.Millisecond

// prepare makes the watch ready for start.
func (o *vxlanEvents) prepare(ctx context.Context, s *session) {
	ctx, o.cancel = context.WithCancel(ctx)
	o.status = output.SourceStatus{Source: "vxlan", Reason: "no Docker engine in swarm mode was found yet"}
	o.begin = func() { o.run(ctx, s) }
}

// giveUp is called before start when the capabilities of the watch are given up.
func (o *vxlanEvents) giveUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unprivileged = true
	o.status.Reason = "no Docker engine was in swarm mode when this run started; --vxlan keeps the capabilities for one that joins a swarm later"
}

// start starts the watch that was prepared, once.
func (o *vxlanEvents) start() {
	if o.begin != nil {
		o.begin()
		o.begin = nil
	}
}

func (o *vxlanEvents) run(ctx context.Context, s *session) {
	opt := vxlanWatchOptions{
		vxlanOptions: vxlanOptions{grace: vxlan.DefaultGrace},
		names:        s.opt.names(slog.New(slog.DiscardHandler)), // the resolver warns about the same sockets
		hierarchy:    s.resolver.Hierarchy().ID,
		owner: func(cgroup uint64) *output.Sample {
			sample := s.joiner.identity(&tracer.Key{Source: tracer.Block, Cgroup: cgroup}, time.Now(), map[tracer.Dev]tracer.Device{})
			return &sample
		},
	}
	if s.opt.verbose {
		opt.names.Log = s.log
	}
	o.running.Go(func() {
		if s.resolver.WaitSwarm(ctx) != nil {
			return
		}
		if o.unprivileged {
			o.failed(s, fs.ErrPermission)
			return
		}
		w, err := newVXLANWatcher(opt)
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

// failed says that devices are not watched, on a host where they should be.
func (o *vxlanEvents) failed(s *session, err error) {
	hint := "--vxlan=false turns the watch off"
	if o.unprivileged {
		hint = "no engine was in swarm mode when this run started, so it gave up the capabilities: start it again; --vxlan keeps them from the start"
	} else if errors.Is(err, fs.ErrPermission) {
		hint = "run it as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_BROADCAST and CAP_SYSLOG as well; " + hint
	}
	s.log.Warn("overlay network devices are not watched", "error", err, "hint", hint)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status = output.SourceStatus{Source: "vxlan", Reason: err.Error()}
}

func (o *vxlanEvents) add(e output.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.events) >= maxVXLANEvents {
		o.drop++
		return
	}
	o.events = append(o.events, e)
}

// into moves what happened since the last interval into iv.
func (o *vxlanEvents) into(iv *output.Interval) {
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
func (o *vxlanEvents) Close() {
	if o.cancel != nil {
		o.cancel()
	}
	o.running.Wait()
}
