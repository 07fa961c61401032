package tracer

import (
	"context"
	"errors"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// openBlock attaches the block source.
func openBlock(c *loader) (*object, error) {
	// Ends come first: a request that is noted when it is issued, and whose end nobody
	// sees yet, would count as lost when its tag is issued again.
	var signals []signal
	if c.opt.Latency {
		signals = append(signals, signal{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_complete", program: bpf.BlockProgIotRqCompleteBtf, latency: true},
			{kind: rawTracepoint, target: "block_rq_complete", program: bpf.BlockProgIotRqComplete, latency: true},
		}})
	}
	signals = append(signals,
		signal{hooks: []hook{
			{kind: rawTracepoint, target: "block_rq_requeue", program: bpf.BlockProgIotRqRequeue},
		}},
		signal{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueBtf},
			{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssue},
		}})
	signals = append(signals, redundant(c.preempts(),
		hook{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueRedundantBtf},
		hook{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueRedundant},
	)...)
	w := openDeviceWatch()
	if w.deaf != nil {
		c.log.Debug("looking at all devices before each interval", "error", w.deaf)
	}
	devices := watchedDevices(w)
	s, j, x := newStack(c, devices), newJournals(c, devices), newXFSLogs(c, devices)
	i, err := c.loadBlock(parts{hops: s.needed(), journals: j.needed() || x.needed(), xfs: x.needed()}, signals)
	if err != nil {
		w.Close()
		return nil, err
	}
	o := i.block
	c.devices = devices
	s.begin(i)
	j.begin(i)
	x.begin(i)
	l := newLoops(c, i, devices)
	w.loopChanged = l.changed
	o.refresh = func(change func(func())) error {
		w.poll()
		return errors.Join(l.scan(change), s.scan(change), j.scan(change), x.scan(change))
	}
	o.watch = func(ctx context.Context) error {
		defer w.Close()
		return w.follow(ctx, func() error { return l.scan(nil) })
	}
	if c.opt.Latency {
		o.unseen = func() (uint64, error) { return unseenEnds(o.maps[bpf.BlockMapFlights]) }
	}
	if err := o.refresh(func(f func()) { f() }); err != nil {
		w.Close()
		o.Close()
		return nil, err
	}
	return o, nil
}
