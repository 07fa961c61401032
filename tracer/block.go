package tracer

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// requestsSkipped is the limitation of a source without its redundant hooks.
var requestsSkipped = Limitation{Text: "a request is not counted when the kernel skips the program that counts it"}

// openBlock attaches the block source.
func openBlock(c *loader) (*object, error) {
	spec, err := bpf.LoadBlock()
	if err != nil {
		return nil, fmt.Errorf("reading the block object: %w", err)
	}
	if c.tracepointArgs("block_rq_issue") == 2 {
		if err := spec.Variables[bpf.BlockVarRqIsSecondArg].Set(true); err != nil {
			return nil, err
		}
	}
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
			{kind: btfTracepoint, target: "block_rq_requeue", program: bpf.BlockProgIotRqRequeueBtf},
			{kind: rawTracepoint, target: "block_rq_requeue", program: bpf.BlockProgIotRqRequeue},
		}},
		signal{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueBtf},
			{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssue},
		}})
	// The redundant program looks at what is in flight, for each request. Before 7.0
	// programs on tracepoints are not preempted: there it would find next to nothing.
	if c.preempts {
		if err := spec.Variables[bpf.BlockVarHasRedundant].Set(true); err != nil {
			return nil, err
		}
		signals = append(signals, signal{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueRedundantBtf, redundant: true},
			{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueRedundant, redundant: true},
		}, optional: requestsSkipped})
	}
	o, err := c.load(spec, signals, ebpf.ProgramOptions{})
	if err != nil {
		return nil, err
	}
	w := openDeviceWatch()
	if w.deaf != nil {
		c.log.Debug("looking at all devices before each interval", "error", w.deaf)
	}
	c.devices = watchedDevices(w)
	w.loopChanged = c.devices.loopChanged
	l := newLoops(o.maps[bpf.BlockMapLoopFiles], c.shared[bpf.CoreMapNotesLive], c.devices)
	s := newStack(c.core, o, c.devices)
	o.refresh = func(change func(func())) error {
		w.poll()
		return errors.Join(l.scan(), s.scan(change))
	}
	o.watch = func(ctx context.Context) error {
		defer w.Close()
		return w.follow(ctx, l.scan)
	}
	if c.opt.Latency {
		o.unseen = func() (uint64, error) { return unseenEnds(o.maps[bpf.BlockMapInflight]) }
	}
	if err := o.refresh(func(f func()) { f() }); err != nil {
		w.Close()
		o.Close()
		return nil, err
	}
	return o, nil
}
