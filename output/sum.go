package output

import (
	"cmp"
	"slices"
	"time"
)

// sumSamples is how many identities a Sum keeps apart: some 60 MB of memory at the
// worst. A machine that starts a thousand processes a second reaches it soon.
const sumSamples = 1 << 15

// textManyProcesses names the processes that a full Sum no longer keeps apart.
const textManyProcesses = "(many processes)"

// Sum adds up the intervals of a run. Bytes and operations of the sum stay exact
// however long the run is: when there are too many identities, the smallest ones lose
// their file first, then their process, and are counted as (other) after that. The zero value is empty.
// It is not safe for concurrent use.
type Sum struct {
	iv      Interval
	n       int
	covered time.Duration
	index   map[SampleKey]int
}

// Add adds an interval. It does not change iv and keeps of it only strings and label
// maps.
func (s *Sum) Add(iv *Interval) {
	if s.n == 0 {
		s.index = make(map[SampleKey]int)
		s.iv.Start = iv.Start
	}
	s.n++
	s.covered += max(0, iv.End.Sub(iv.Start))
	t := &s.iv
	t.End, t.Host, t.Sources = iv.End, iv.Host, iv.Sources
	t.Unresolved = max(t.Unresolved, iv.Unresolved)
	t.Lost.Add(&iv.Lost)
	t.Self.BPFNanos += iv.Self.BPFNanos
	t.Self.CPUNanos += iv.Self.CPUNanos
	t.Self.ReadBytes += iv.Self.ReadBytes
	t.Self.WriteBytes += iv.Self.WriteBytes
	t.Self.RSSBytes = max(t.Self.RSSBytes, iv.Self.RSSBytes)
	t.Self.MapBytes = max(t.Self.MapBytes, iv.Self.MapBytes)
	for i := range iv.Samples {
		s.sample(&iv.Samples[i])
	}
	if len(t.Samples) > sumSamples {
		s.shrink()
	}
}

func (s *Sum) sample(o *Sample) {
	k := KeyOfSample(o)
	if at, ok := s.index[k]; ok {
		s.iv.Samples[at].add(o)
		return
	}
	s.index[k] = len(s.iv.Samples)
	c := *o
	for _, op := range Ops {
		a := c.Amount(op)
		a.Latency = a.Latency.clone()
	}
	s.iv.Samples = append(s.iv.Samples, c)
}

// shrink joins the smaller half of the samples.
func (s *Sum) shrink() {
	all := s.iv.Samples
	slices.SortStableFunc(all, func(a, b Sample) int {
		return cmp.Compare(b.Read.Bytes+b.Write.Bytes, a.Read.Bytes+a.Write.Bytes)
	})
	for _, join := range []func(*Sample){
		func(x *Sample) {
			if x.File.Kind == FileRegular {
				x.File = File{Kind: FileOther}
			}
		},
		func(x *Sample) {
			if x.Process != (Process{}) {
				x.Process = Process{Name: textManyProcesses}
			}
		},
		func(x *Sample) {
			*x = Sample{Host: x.Host, Source: x.Source, Level: x.Level, Owner: OwnerOther, Device: x.Device,
				Read: x.Read, Write: x.Write, Discard: x.Discard, Flush: x.Flush, Metadata: x.Metadata,
				MetaReadBytes: x.MetaReadBytes, MetaWriteBytes: x.MetaWriteBytes, Retransmits: x.Retransmits, Basis: x.Basis}
		},
	} {
		for i := len(all) / 2; i < len(all); i++ {
			join(&all[i])
		}
		s.iv.Samples, s.index = make([]Sample, 0, len(all)), make(map[SampleKey]int, len(all))
		for i := range all {
			s.sample(&all[i])
		}
		if all = s.iv.Samples; len(all) <= sumSamples*3/4 {
			return
		}
	}
}

// Interval returns the sum as one interval, from the start of the first to the end of
// the last. It is valid until the next Add and must not be changed.
func (s *Sum) Interval() *Interval { return &s.iv }

// Covered returns the sum of the lengths of the intervals. It is less than the time
// from start to end if there were gaps between them.
func (s *Sum) Covered() time.Duration { return s.covered }

// Len returns how many intervals were added.
func (s *Sum) Len() int { return s.n }

// Clone returns a copy that can be added to.
func (s *Sum) Clone() *Sum {
	c := &Sum{}
	if s.n > 0 {
		c.Add(&s.iv)
		c.n, c.covered = s.n, s.covered
	}
	return c
}

// Peaks remembers the highest rate of each group of a run. The zero value is empty.
type Peaks struct {
	rows  map[string]float64 // bytes per second
	total float64
}

// Add looks at the rows of an interval that is d long.
func (p *Peaks) Add(summary *Summary, d time.Duration) {
	if p.rows == nil {
		p.rows = make(map[string]float64)
	}
	seconds := max(d.Seconds(), 1e-3)
	rate := func(r *Row) float64 { return float64(r.At(summary.Level).Bytes()) / seconds }
	p.total = max(p.total, rate(&summary.Total))
	for i := range summary.Rows {
		r := &summary.Rows[i]
		if was, ok := p.rows[r.id]; ok || len(p.rows) < sumSamples {
			p.rows[r.id] = max(was, rate(r))
		}
	}
}

// Of returns the highest rate of a row in bytes per second. It is 0 where it is not
// known: sums of groups other than the total have their peaks at different times.
func (p *Peaks) Of(r *Row) float64 {
	if r.Label == textTotal {
		return p.total
	}
	return p.rows[r.id]
}

// At returns the usage that a summary of level l is about: that of programs for
// LevelApp, else that on the wire.
func (r *Row) At(l Level) *Usage {
	if l == LevelApp {
		return &r.App
	}
	return &r.Total
}
