package output

import (
	"slices"
	"time"
)

// MaxSamples bounds the samples of one interval in a recording and in a Merger.
const MaxSamples = 1 << 17

// mergeMaxEvents bounds the events in a Merger. A merged interval ends early when
// it reaches either bound.
const mergeMaxEvents = 1 << 16

// Merger joins short intervals into longer ones, as if they had been read at that
// rate from the beginning. An interval that is longer than asked for stays as it
// is. Intervals of two machines, or with a gap between them, are never merged.
// It is not safe for concurrent use.
type Merger struct {
	every   time.Duration
	now     *Interval // the unfinished interval, or nil
	samples map[SampleKey]int
}

// NewMerger returns a Merger for intervals of about the length every.
func NewMerger(every time.Duration) *Merger { return &Merger{every: every} }

// SampleKey is everything in a sample except amounts and labels: samples that differ in
// one of its fields must not be added up.
type SampleKey struct {
	host                          Host
	source                        Source
	level                         Level
	owner                         OwnerKind
	project, rule, service, unit  string
	by, projectBy                 string
	id, name, runtime, image, tag string
	digest                        string
	parent, outer, outerName      string
	pod                           Pod
	cgroup                        Cgroup
	process                       Process
	device                        Device
	mount                         Mount
	file                          File
	client                        NFSClient
}

// KeyOfSample returns the identity of a sample.
func KeyOfSample(s *Sample) SampleKey {
	c := &s.Container
	return SampleKey{
		s.Host, s.Source, s.Level, s.Owner, s.Project, s.ProjectRule, s.Service, s.Unit, s.NamedBy, s.ProjectNamedBy,
		c.ID, c.Name, c.Runtime, c.Image, c.ImageTag, c.Digest,
		c.Parent, c.Outer, c.OuterName, s.Pod, s.Cgroup, s.Process, s.Device, s.Mount, s.File, s.NFSClient,
	}
}

// Add takes over an interval; the caller must not use it any more. It returns the
// merged interval before it if that is now complete, else nil.
func (m *Merger) Add(iv *Interval) (done *Interval) {
	if m.now != nil && !m.continues(iv) {
		done = m.Flush()
	}
	if m.now == nil {
		samples := iv.Samples
		m.now, m.samples = iv, make(map[SampleKey]int, len(samples))
		iv.Samples = make([]Sample, 0, len(samples))
		m.add(samples)
		return done
	}
	n := m.now
	n.End = iv.End
	n.Unresolved = max(n.Unresolved, iv.Unresolved)
	n.Lost.Add(&iv.Lost)
	n.Self.BPFNanos += iv.Self.BPFNanos
	n.Self.CPUNanos += iv.Self.CPUNanos
	n.Self.ReadBytes += iv.Self.ReadBytes
	n.Self.WriteBytes += iv.Self.WriteBytes
	n.Self.RSSBytes = max(n.Self.RSSBytes, iv.Self.RSSBytes)
	n.Self.MapBytes = max(n.Self.MapBytes, iv.Self.MapBytes)
	n.Sources = iv.Sources
	n.Events = append(n.Events, iv.Events...)
	m.add(iv.Samples)
	return done
}

// continues reports whether iv belongs to the unfinished interval.
func (m *Merger) continues(iv *Interval) bool {
	n, length := m.now, iv.End.Sub(iv.Start)
	gap := iv.Start.Sub(n.End)
	return iv.Host == n.Host && gap > -length && gap <= length/2 &&
		// Rounded to whole intervals: on a busy machine they are never quite as long as asked for.
		iv.End.Sub(n.Start) <= m.every+length/2 &&
		len(n.Samples)+len(iv.Samples) <= MaxSamples && len(n.Events)+len(iv.Events) <= mergeMaxEvents
}

func (m *Merger) add(samples []Sample) {
	for i := range samples {
		s := &samples[i]
		k := KeyOfSample(s)
		at, ok := m.samples[k]
		if !ok {
			m.samples[k] = len(m.now.Samples)
			m.now.Samples = append(m.now.Samples, *s)
			continue
		}
		m.now.Samples[at].add(s)
	}
}

// Clone returns a copy that a Merger may take over. It shares with iv what a Merger does
// not change: labels, the states of sources, and what events point to.
func (iv *Interval) Clone() *Interval {
	c := *iv
	c.Samples = make([]Sample, len(iv.Samples))
	for i := range iv.Samples {
		s := &c.Samples[i]
		*s = iv.Samples[i]
		for _, op := range Ops {
			a := s.Amount(op)
			a.Latency = a.Latency.clone()
		}
	}
	c.Events = slices.Clone(iv.Events)
	return &c
}

// add adds the amounts of o, a sample of the same identity.
func (s *Sample) add(o *Sample) {
	if s.Container.Labels == nil {
		s.Container.Labels = o.Container.Labels
	}
	for _, op := range Ops {
		s.Amount(op).Add(o.Amount(op))
	}
	s.MetaReadBytes += o.MetaReadBytes
	s.MetaWriteBytes += o.MetaWriteBytes
	s.Retransmits += o.Retransmits
	s.Basis.Add(&o.Basis)
}

// Start returns the start of the unfinished interval, or the zero time.
func (m *Merger) Start() time.Time {
	if m.now == nil {
		return time.Time{}
	}
	return m.now.Start
}

// Flush returns the unfinished interval, or nil, and begins a new one.
func (m *Merger) Flush() *Interval {
	iv := m.now
	m.now, m.samples = nil, nil
	return iv
}
