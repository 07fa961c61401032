package main

import (
	"fmt"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

const (
	// leastGrace is the shortest time that intervals of other hosts wait for one.
	leastGrace = time.Second
	// silentIntervals is after how many intervals a host counts as silent, but not before
	// leastSilence. A start may take startSilence.
	silentIntervals = 3
	leastSilence    = 3 * time.Second
	startSilence    = 30 * time.Second
	// clocksApart is the difference of two clocks that is worth a word. It is the smallest
	// one of the first intervals: one alone may have been late.
	clocksApart    = 5 * time.Second
	clockIntervals = 3
	// mostParts is how many intervals of a host one joined interval holds: none can fill the
	// memory here. The next one waits in its pipe.
	mostParts = 16
)

// gathering joins what hosts deliver, by this side's clock. Each interval of a host is in
// exactly one that it returns. Its caller tells the time.
type gathering struct {
	interval time.Duration
	hosts    []gathered
	say      func(host, what string)

	parts []recording.Part // that arrived since the last joined interval
	first time.Time        // when the first of them did
	end   time.Time        // of the last joined interval; zero: there was none
}

// gathered is the state of one host.
type gathered struct {
	name    string
	host    output.Host
	started bool      // has sent something
	twin    bool      // has the machine id of another one
	ended   bool      // sends no more
	silent  bool      // nobody waits for it
	last    time.Time // it sent something; at first when it was called
	here    time.Time // when its first part of the unfinished interval came; zero: it has none
	parts   int       // of the unfinished interval
	missed  bool      // a joined interval went without it
	late    bool      // that was said
	checked int       // intervals whose clock was looked at
	apart   time.Duration
}

func newGathering(names []string, interval time.Duration, now time.Time, say func(host, what string)) *gathering {
	g := &gathering{interval: interval, say: say}
	for _, n := range names {
		g.hosts = append(g.hosts, gathered{name: n, last: now})
	}
	return g
}

func (g *gathering) grace() time.Duration { return max(leastGrace, g.interval) }

// silence is how long h may send nothing.
func (g *gathering) silence(h *gathered) time.Duration {
	d := max(leastSilence, silentIntervals*g.interval)
	if !h.started {
		d = max(d, startSilence+g.interval)
	}
	return d
}

// arrive takes over an interval of host i. It returns the joined interval that is complete
// without or with it, or nil.
func (g *gathering) arrive(i int, host output.Host, iv *output.Interval, now time.Time) (done *output.Interval) {
	h := &g.hosts[i]
	// The second one of a host begins the next joined interval, unless it had to wait on its
	// way: then it comes right behind the first.
	if !h.here.IsZero() && (now.Sub(h.here) >= g.interval/2 || h.parts == mostParts) {
		done = g.flush(now)
	}
	g.clock(h, iv, now)
	if h.silent {
		g.say(h.name, fmt.Sprintf("sends again, after %v: what it counted is in the interval that comes", now.Sub(h.last).Round(100*time.Millisecond)))
	} else if h.missed && !h.late && h.here.IsZero() {
		g.say(h.name, "an interval came late: it is in the next one")
		h.late = true
	}
	if !h.started {
		h.twin = g.twin(i, host)
	}
	if h.twin {
		host.ID = "" // rows of one id would be one row
	}
	h.host, h.started, h.silent, h.missed, h.last = host, true, false, false, now
	if h.here.IsZero() {
		h.here = now
	}
	h.parts++
	if len(g.parts) == 0 {
		g.first = now
		if g.end.IsZero() {
			g.end = now.Add(-iv.End.Sub(iv.Start))
		}
	}
	// What a host sends is its own, whatever it says.
	for k := range iv.Samples {
		iv.Samples[k].Host = output.Host{}
	}
	g.parts = append(g.parts, recording.Part{Host: host, Interval: iv})
	if done == nil && g.complete() {
		done = g.flush(now)
	}
	return done
}

// twin says that host i has the machine id of another one: it is the same machine under two
// names, or a copy of its disk.
func (g *gathering) twin(i int, host output.Host) bool {
	for k := range g.hosts {
		if o := &g.hosts[k]; k != i && o.started && host.ID != "" && o.host.ID == host.ID {
			g.say(g.hosts[i].name, "has the machine id of "+o.name+": if it is the same machine, its numbers count twice")
			return true
		}
	}
	return false
}

// clock says once that the clock of a host differs from this one.
func (g *gathering) clock(h *gathered, iv *output.Interval, now time.Time) {
	if h.checked == clockIntervals {
		return
	}
	if d := iv.End.Sub(now); h.checked == 0 || d.Abs() < h.apart.Abs() {
		h.apart = d
	}
	if h.checked++; h.checked == clockIntervals && h.apart.Abs() > clocksApart {
		way := "behind"
		if h.apart > 0 {
			way = "ahead of"
		}
		g.say(h.name, fmt.Sprintf("its clock is %v %s the clock here, which counts", h.apart.Abs().Round(time.Second), way))
	}
}

// awaited tells whether a joined interval waits for h.
func (h *gathered) awaited() bool { return h.started && !h.ended && !h.silent }

// complete reports whether every host that is waited for has delivered.
func (g *gathering) complete() bool {
	for i := range g.hosts {
		if h := &g.hosts[i]; h.awaited() && h.here.IsZero() {
			return false
		}
	}
	return len(g.parts) > 0
}

// leave says that host i sends no more. It returns an interval that is complete by that.
func (g *gathering) leave(i int, now time.Time) *output.Interval {
	g.hosts[i].ended = true
	if g.complete() {
		return g.flush(now)
	}
	return nil
}

// look notices the hosts that are silent, and returns the joined interval that has waited
// long enough, or nil.
func (g *gathering) look(now time.Time) *output.Interval {
	for i := range g.hosts {
		h := &g.hosts[i]
		if d := now.Sub(h.last); !h.ended && !h.silent && d >= g.silence(h) {
			h.silent = true
			g.say(h.name, fmt.Sprintf("has sent nothing for %v: the others go on without it", d.Round(100*time.Millisecond)))
		}
	}
	if len(g.parts) > 0 && (now.Sub(g.first) >= g.grace() || g.complete()) {
		return g.flush(now)
	}
	return nil
}

// next returns how long look need not be called.
func (g *gathering) next(now time.Time) time.Duration {
	d := time.Minute
	if len(g.parts) > 0 {
		d = g.first.Add(g.grace()).Sub(now)
	}
	for i := range g.hosts {
		if h := &g.hosts[i]; !h.ended && !h.silent {
			d = min(d, h.last.Add(g.silence(h)).Sub(now))
		}
	}
	return max(d, 0)
}

// flush returns what has arrived as one interval, or nil. It begins where the one before
// ended, so that rates are right whenever something arrives.
func (g *gathering) flush(now time.Time) *output.Interval {
	if len(g.parts) == 0 {
		return nil
	}
	for i := range g.hosts {
		h := &g.hosts[i]
		h.missed = h.missed || h.awaited() && h.here.IsZero()
		h.here, h.parts = time.Time{}, 0
	}
	if !now.After(g.end) { // the clock was set back
		g.end = now
	}
	iv := recording.Join(g.end.UTC().Round(0), now.UTC().Round(0), g.parts, len(g.hosts) > 1)
	g.parts, g.end = nil, now
	return iv
}
