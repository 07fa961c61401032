package tracer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// openBlock attaches the block source.
func openBlock(h *host) (*object, error) {
	spec, err := bpf.LoadBlock()
	if err != nil {
		return nil, fmt.Errorf("reading the block object: %w", err)
	}
	if h.tracepointArgs("block_rq_issue") == 2 {
		if err := spec.Variables[bpf.BlockVarRqIsSecondArg].Set(true); err != nil {
			return nil, err
		}
	}
	signals := []signal{
		{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueBtf},
			{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssue},
		}},
		{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_requeue", program: bpf.BlockProgIotRqRequeueBtf},
			{kind: rawTracepoint, target: "block_rq_requeue", program: bpf.BlockProgIotRqRequeue},
		}},
	}
	// The program that stands in costs each request a look at what is under way.
	// Before 7.0 tracepoints cannot be preempted: there is next to nothing for it to do.
	if h.preempts {
		if err := spec.Variables[bpf.BlockVarStandsIn].Set(true); err != nil {
			return nil, err
		}
		signals = append(signals, signal{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueAgainBtf, standIn: true},
			{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueAgain, standIn: true},
		}, optional: "requests are missed whose program the kernel skipped"})
	}
	if h.opt.Latency {
		// Last: a completion whose issue was not seen counts as lost.
		signals = append(signals, signal{hooks: []hook{
			{kind: btfTracepoint, target: "block_rq_complete", program: bpf.BlockProgIotRqCompleteBtf, latency: true},
			{kind: rawTracepoint, target: "block_rq_complete", program: bpf.BlockProgIotRqComplete, latency: true},
		}})
	}
	o, err := h.load(spec, signals, ebpf.ProgramOptions{})
	if err != nil {
		return nil, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		err = o.maps[bpf.BlockMapAttachedAt].Update(uint32(0), uint64(now.Nano()), ebpf.UpdateAny)
		if err != nil {
			o.Close()
			return nil, fmt.Errorf("noting when the block source was attached: %w", err)
		}
	}
	l := newLoops(o.maps[bpf.BlockMapLoopFiles], h.shared[bpf.HostMapNotesLive])
	s := newStack(h, o)
	o.refresh = func() error { return errors.Join(l.scan(), s.scan()) }
	o.watch = l.watch
	if h.opt.Latency {
		o.unseen = func() (uint64, error) { return unseenEnds(o.maps[bpf.BlockMapInflight]) }
	}
	if err := o.refresh(); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}
