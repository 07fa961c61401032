package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// gatherRig delivers intervals at times that a test chooses.
type gatherRig struct {
	t     *testing.T
	g     *gathering
	start time.Time
	said  []string
	sent  map[string]uint64
	shown map[string]uint64
	spans []string // of the joined intervals: when, and who is in them
	ends  time.Time
	skew  map[string]time.Duration
}

func newGatherRig(t *testing.T, names ...string) *gatherRig {
	r := &gatherRig{t: t, start: time.Unix(1_800_000_000, 0), sent: map[string]uint64{}, shown: map[string]uint64{}, skew: map[string]time.Duration{}}
	r.g = newGathering(names, time.Second, r.start, func(host, what string) { r.said = append(r.said, host+": "+what) })
	return r
}

// at is a time after the start.
func (r *gatherRig) at(ms int) time.Time { return r.start.Add(time.Duration(ms) * time.Millisecond) }

// send lets a host deliver what it counted in length.
func (r *gatherRig) send(ms int, name string, bytes uint64, length time.Duration) {
	r.look(ms)
	i := slices.IndexFunc(r.g.hosts, func(h gathered) bool { return h.name == name })
	now := r.at(ms)
	end := now.Add(r.skew[name])
	iv := &output.Interval{Start: end.Add(-length), End: end, Samples: []output.Sample{{Source: output.SourceBlock, Write: output.Amount{Bytes: bytes, Ops: 1}}}}
	r.sent[name] += bytes
	r.take(r.g.arrive(i, output.Host{Name: name, ID: name + "-id"}, iv, now), ms)
}

func (r *gatherRig) look(ms int) { r.take(r.g.look(r.at(ms)), ms) }

func (r *gatherRig) take(iv *output.Interval, ms int) {
	if iv == nil {
		return
	}
	if !r.ends.IsZero() && !iv.Start.Equal(r.ends) {
		r.t.Errorf("an interval begins at %v, the one before ended at %v", iv.Start, r.ends)
	}
	r.ends = iv.End
	var names []string
	for _, s := range iv.Samples {
		r.shown[s.Host.Name] += s.Write.Bytes
		names = append(names, s.Host.Name)
	}
	r.spans = append(r.spans, fmt.Sprintf("%d %s", ms, strings.Join(names, "+")))
}

func (r *gatherRig) check(spans, said []string) {
	r.t.Helper()
	if spans != nil && !slices.Equal(r.spans, spans) {
		r.t.Errorf("joined\n%s\nwant\n%s", strings.Join(r.spans, "\n"), strings.Join(spans, "\n"))
	}
	if !slices.Equal(r.said, said) {
		r.t.Errorf("said\n%s\nwant\n%s", strings.Join(r.said, "\n"), strings.Join(said, "\n"))
	}
	if fmt.Sprint(r.sent) != fmt.Sprint(r.shown) {
		r.t.Errorf("shown %v, sent %v", r.shown, r.sent)
	}
}

func TestGatherInTime(t *testing.T) {
	r := newGatherRig(t, "a", "b")
	for s := 1; s <= 3; s++ {
		r.send(1000*s, "a", 100, time.Second)
		r.send(1000*s+300, "b", 7, time.Second)
	}
	// The first one does not know that there will be another host.
	r.take(r.g.flush(r.at(3400)), 3400)
	r.check([]string{"1000 a", "2000 b+a", "3000 b+a", "3400 b"}, nil)
}

func TestGatherLate(t *testing.T) {
	r := newGatherRig(t, "a", "b")
	r.send(1000, "a", 1, time.Second)
	r.send(1100, "b", 2, time.Second)
	r.send(2000, "a", 4, time.Second)
	r.send(3000, "a", 8, time.Second)
	r.send(4000, "a", 16, time.Second) // b is late: what came before is shown without it
	r.send(4050, "b", 32, time.Second)
	r.send(4150, "b", 64, time.Second) // and what waited behind it comes at once
	r.send(5000, "a", 128, time.Second)
	r.take(r.g.flush(r.at(5500)), 5500)
	r.check(nil, []string{"b: an interval came late: it is in the next one"})
}

func TestGatherSilentAndBack(t *testing.T) {
	r := newGatherRig(t, "a", "b")
	r.send(1000, "a", 1, time.Second)
	r.send(1010, "b", 2, time.Second)
	for s := 2; s <= 9; s++ {
		r.send(1000*s, "a", 10, time.Second)
		if wait := r.g.next(r.at(1000 * s)); wait > time.Minute {
			t.Errorf("next look in %v", wait)
		}
	}
	// Since it is silent, nobody waits for it: an interval is shown when it comes.
	if last := r.spans[len(r.spans)-1]; last != "9000 a" {
		t.Errorf("the last one was joined at %q", last)
	}
	r.send(9500, "b", 1000, 8490*time.Millisecond)
	r.send(10000, "a", 10, time.Second)
	r.send(10500, "b", 3, time.Second)
	r.take(r.g.flush(r.at(10600)), 10600)
	r.check(nil, []string{
		"b: has sent nothing for 4s: the others go on without it",
		"b: sends again, after 8.5s: what it counted is in the interval that comes",
	})
}

// TestGatherFlood: a host that sends without end fills no memory, and nothing is left out.
func TestGatherFlood(t *testing.T) {
	r := newGatherRig(t, "a", "b")
	r.send(1000, "a", 1, time.Second)
	r.send(1010, "b", 2, time.Second)
	for range 10 * mostParts {
		r.send(1020, "b", 3, time.Second)
		if n := len(r.g.parts); n > mostParts {
			t.Fatalf("%d intervals wait", n)
		}
	}
	r.take(r.g.flush(r.at(1500)), 1500)
	r.check(nil, nil)
}

func TestGatherDies(t *testing.T) {
	r := newGatherRig(t, "a", "b", "c")
	for i, n := range []string{"a", "b", "c"} {
		r.send(1000+i, n, 1, time.Second)
	}
	r.send(2000, "a", 2, time.Second)
	r.send(2001, "c", 2, time.Second)
	r.send(2900, "a", 3, time.Second)
	r.take(r.g.leave(1, r.at(2902)), 2902) // that was what the others waited for
	r.send(4000, "a", 3, time.Second)
	r.send(4001, "c", 3, time.Second)
	r.take(r.g.flush(r.at(9000)), 9000)
	r.check(nil, nil)
	if !slices.ContainsFunc(r.spans, func(s string) bool { return strings.HasPrefix(s, "2902 ") }) {
		t.Errorf("nothing was shown when the host left: %q", r.spans)
	}
}

func TestGatherNeverStarts(t *testing.T) {
	r := newGatherRig(t, "a", "b")
	for s := 1; s <= 40; s++ {
		r.send(1000*s, "a", 1, time.Second)
	}
	if len(r.spans) != 40 {
		t.Errorf("%d joined intervals of 40", len(r.spans))
	}
	r.check(nil, []string{"b: has sent nothing for 31s: the others go on without it"})
}

func TestGatherClocks(t *testing.T) {
	r := newGatherRig(t, "a", "b", "c")
	r.skew["a"], r.skew["b"], r.skew["c"] = time.Hour, -2*time.Second, -7*time.Second
	for s := 1; s <= 6; s++ {
		for i, n := range []string{"a", "b", "c"} {
			r.send(1000*s+i, n, 5, time.Second)
		}
	}
	r.take(r.g.flush(r.at(9000)), 9000)
	r.check(nil, []string{"a: its clock is 1h0m0s ahead of the clock here, which counts", "c: its clock is 7s behind the clock here, which counts"})
}

// TestGatherAnything delivers at any time, with hosts that hang and leave: no byte is lost
// or counted twice, and none waits longer than the grace time.
func TestGatherAnything(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		names := []string{"a", "b", "c", "d"}
		r := newGatherRig(t, names...)
		gone := map[string]bool{}
		for ms := 0; ms < 60_000; ms += 1 + rnd.IntN(400) {
			n := names[rnd.IntN(len(names))]
			switch {
			case gone[n]:
			case rnd.IntN(200) == 0:
				gone[n] = true
				r.take(r.g.leave(slices.Index(names, n), r.at(ms)), ms)
			default:
				r.send(ms, n, rnd.Uint64N(1<<40), time.Duration(rnd.IntN(3000))*time.Millisecond)
			}
			r.look(ms)
			if len(r.g.parts) > 0 && r.at(ms).Sub(r.g.first) >= r.g.grace() {
				t.Fatalf("seed %d: what came at %v still waits at %v", seed, r.g.first, r.at(ms))
			}
		}
		r.take(r.g.flush(r.at(61_000)), 61_000)
		if fmt.Sprint(r.sent) != fmt.Sprint(r.shown) {
			t.Fatalf("seed %d: shown %v, sent %v", seed, r.shown, r.sent)
		}
	}
}
