package output

import "time"

// MaxSamples bounds the samples of one interval in a recording and in a Merger.
const MaxSamples = 1 << 17

// mergeMaxEvents bounds the events that a Merger holds. At either bound the
// merged interval ends early.
const mergeMaxEvents = 1 << 16

// Merger makes longer intervals of shorter ones, as if they had been reported that
// way from the beginning. An interval that is longer than asked stays as it is.
// Two machines, and times between which nothing is known, are never merged.
type Merger struct {
	every   time.Duration
	now     *Interval // being made, nil for none
	samples map[sampleKey]int
}

// NewMerger makes intervals of about this length.
func NewMerger(every time.Duration) *Merger { return &Merger{every: every} }

// sampleKey is everything of a sample but its amounts and labels.
type sampleKey struct {
	source                        Source
	level                         Level
	owner                         OwnerKind
	project, rule, service, unit  string
	id, name, runtime, image, tag string
	parent, outer, outerName      string
	pod                           Pod
	cgroup                        Cgroup
	process                       Process
	device                        Device
	mount                         Mount
}

func keyOfSample(s *Sample) sampleKey {
	c := &s.Container
	return sampleKey{
		s.Source, s.Level, s.Owner, s.Project, s.ProjectRule, s.Service, s.Unit, c.ID, c.Name, c.Runtime, c.Image, c.ImageTag,
		c.Parent, c.Outer, c.OuterName, s.Pod, s.Cgroup, s.Process, s.Device, s.Mount,
	}
}

// Add takes an interval, which is the merger's from now on. It returns the one
// before if that is complete, else nil.
func (m *Merger) Add(iv *Interval) (done *Interval) {
	if m.now != nil && !m.continues(iv) {
		done = m.Flush()
	}
	if m.now == nil {
		samples := iv.Samples
		m.now, m.samples = iv, make(map[sampleKey]int, len(samples))
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
	n.Sources = iv.Sources
	n.Events = append(n.Events, iv.Events...)
	m.add(iv.Samples)
	return done
}

// continues tells whether iv is a part of the interval that is being made.
func (m *Merger) continues(iv *Interval) bool {
	n, length := m.now, iv.End.Sub(iv.Start)
	gap := iv.Start.Sub(n.End)
	return iv.Host == n.Host && gap > -length && gap <= length/2 &&
		// Rounded to whole intervals: those of a busy machine are never quite as long as asked.
		iv.End.Sub(n.Start) <= m.every+length/2 &&
		len(n.Samples)+len(iv.Samples) <= MaxSamples && len(n.Events)+len(iv.Events) <= mergeMaxEvents
}

func (m *Merger) add(samples []Sample) {
	for i := range samples {
		s := &samples[i]
		k := keyOfSample(s)
		at, ok := m.samples[k]
		if !ok {
			m.samples[k] = len(m.now.Samples)
			m.now.Samples = append(m.now.Samples, *s)
			continue
		}
		t := &m.now.Samples[at]
		if t.Container.Labels == nil {
			t.Container.Labels = s.Container.Labels
		}
		for _, op := range Ops {
			t.Amount(op).Add(s.Amount(op))
		}
		t.MetaReadBytes += s.MetaReadBytes
		t.MetaWriteBytes += s.MetaWriteBytes
		t.Retransmits += s.Retransmits
		t.Basis.Add(&s.Basis)
	}
}

// Flush returns the interval that is being made, nil if there is none.
func (m *Merger) Flush() *Interval {
	iv := m.now
	m.now, m.samples = nil, nil
	return iv
}

func (l *Lost) Add(o *Lost) {
	l.Records += o.Records
	l.Notices += o.Notices
	l.Latencies += o.Latencies
	l.Groups += o.Groups
	l.Bytes += o.Bytes
	l.Walks += o.Walks
	l.Misses += o.Misses
	l.Exports += o.Exports
}
