package recording

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/file"
)

// InDirectory returns the recordings in a directory, by name. Older files of a recording
// that is there (FILE.1) belong to it, and everything that is no recording is left out. It
// is an error if there is none.
func InDirectory(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("recordings: %w", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	var found []string
	for _, e := range entries {
		base, number, ok := cutLast(e.Name(), ".")
		if n, err := strconv.Atoi(number); ok && err == nil && n >= 1 && n <= maxParts && names[base] {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := file.Open(path, os.O_RDONLY)
		if err != nil {
			continue // a directory, a link, a socket
		}
		if sniff(f) {
			found = append(found, path)
		}
		f.Close()
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("directory %q has no recording", dir)
	}
	return found, nil
}

// cutLast is strings.Cut at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// MaxSet is how many recordings a Set may have.
const MaxSet = 4096

// Set reads several recordings as one: of several hosts, or of one host. Intervals of
// different recordings become one interval where more than half of the shorter one lies in
// the longer one, by the clocks of their hosts. No byte of a recording is left out or
// counted twice. What two recordings of one host counted at the same time is there twice.
// A Set is not safe for concurrent use.
type Set struct {
	readers []*Reader
	hosts   []output.Host // of each reader
	many    bool          // more than one machine
	slots   []slot
	members []member // of all slots, one behind the other

	slot, member int // that Next reads next
	parts        []part
}

// slot is one interval of a Set.
type slot struct {
	start, end int64 // ns since 1970
	first      int   // in Set.members; it ends where the next slot begins
}

// member is an interval of a recording. There may be millions.
type member struct{ reader, index uint32 }

// part is an interval that was read.
type part struct {
	reader uint32
	iv     *output.Interval
}

// NewSet joins recordings, which Close closes. It looks at their indexes only. Two with
// the same files, or more than MaxSet, are an error; then nothing is closed.
func NewSet(readers []*Reader) (*Set, error) {
	if len(readers) == 0 || len(readers) > MaxSet {
		return nil, fmt.Errorf("%d recordings: from 1 to %d can be shown together", len(readers), MaxSet)
	}
	if p, twice := sharedFile(readers); twice {
		return nil, fmt.Errorf("recording %q is given twice: its numbers would count twice", p)
	}
	s := &Set{readers: readers}
	for _, r := range readers {
		h := r.Header().Host
		for _, other := range s.hosts {
			if sameMachine(h, other) {
				h = other // the kernel may be another one, the machine is not
				break
			}
		}
		s.many = s.many || len(s.hosts) > 0 && h != s.hosts[0]
		s.hosts = append(s.hosts, h)
	}
	s.plan()
	return s, nil
}

// sharedFile returns a file that two recordings have.
func sharedFile(readers []*Reader) (path string, shared bool) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	for _, r := range readers {
		for _, p := range r.parts {
			var st unix.Stat_t
			if unix.Fstat(int(p.file.Fd()), &st) != nil {
				continue
			}
			id := inode{uint64(st.Dev), st.Ino}
			if seen[id] {
				return p.path, true
			}
			seen[id] = true
		}
	}
	return "", false
}

// plan divides the time into slots.
func (s *Set) plan() {
	total := 0
	for _, r := range s.readers {
		total += len(r.index)
	}
	s.members = make([]member, 0, total)
	next := make([]int, len(s.readers))
	end := int64(-1 << 63) // of the slot before
	for len(s.members) < total {
		// The slot begins with the earliest interval that is left, and is as long as the
		// longest one that begins in it.
		var start, length int64
		found := false
		for i, r := range s.readers {
			if next[i] == len(r.index) {
				continue
			}
			if e := &r.index[next[i]]; !found || e.start < start {
				start, length, found = e.start, e.end-e.start, true
			}
		}
		start = max(start, end)
		for i, r := range s.readers {
			if next[i] == len(r.index) {
				continue
			}
			if e := &r.index[next[i]]; e.start < start+length {
				length = max(length, e.end-e.start)
			}
		}
		end = start + length
		s.slots = append(s.slots, slot{start: start, end: end, first: len(s.members)})
		before := len(s.members)
		earliest, at := -1, int64(0)
		for i, r := range s.readers {
			for ; next[i] < len(r.index); next[i]++ {
				e := &r.index[next[i]]
				if middle := e.start + (e.end-e.start)/2; middle >= end {
					if earliest < 0 || e.start < at {
						earliest, at = i, e.start
					}
					break
				}
				s.members = append(s.members, member{uint32(i), uint32(next[i])})
			}
		}
		if len(s.members) == before && earliest >= 0 {
			// An interval of no length, or one at the end of the slot before.
			s.members = append(s.members, member{uint32(earliest), uint32(next[earliest])})
			next[earliest]++
		}
	}
}

// of returns the intervals of slot i.
func (s *Set) of(i int) []member {
	last := len(s.members)
	if i+1 < len(s.slots) {
		last = s.slots[i+1].first
	}
	return s.members[s.slots[i].first:last]
}

// Adjust makes Next and Frame apply f to every interval of a recording before it is
// joined with others.
func (s *Set) Adjust(f func(*output.Interval)) {
	for _, r := range s.readers {
		r.Adjust(f)
	}
}

// Host returns the host of the recordings. It is zero if there are several.
func (s *Set) Host() output.Host {
	if s.many {
		return output.Host{}
	}
	return s.hosts[0]
}

// Next returns the next interval, or io.EOF after the last. Damage is as in Reader.Next: it
// is reported once, and the call after that goes on.
func (s *Set) Next() (*output.Interval, error) {
	for ; s.slot < len(s.slots); s.slot, s.member = s.slot+1, 0 {
		members := s.of(s.slot)
		for s.member < len(members) {
			m := members[s.member]
			r := s.readers[m.reader]
			if r.Pos() > int(m.index) { // lost by damage that was reported
				s.member++
				continue
			}
			iv, err := r.Next()
			if err != nil {
				var damage *DamageError
				if !errors.As(err, &damage) {
					s.member++
				}
				return nil, err
			}
			s.parts = append(s.parts, part{m.reader, iv})
			s.member++
		}
		if len(s.parts) > 0 {
			iv := s.join(s.slot, s.parts)
			s.parts = nil
			s.slot, s.member = s.slot+1, 0
			return iv, nil
		}
	}
	for _, r := range s.readers { // damage behind the last interval
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return nil, io.EOF
}

// join makes one interval of those of a slot.
func (s *Set) join(i int, parts []part) *output.Interval {
	of := make([]Part, 0, len(parts))
	for _, p := range parts {
		of = append(of, Part{s.hosts[p.reader], p.iv})
	}
	start, end := s.Span(i)
	return Join(start, end, of, s.many)
}

// Part is what one host counted.
type Part struct {
	Host     output.Host
	Interval *output.Interval
}

// Join makes one interval of those of hosts and takes them over. With many, everything in it
// says of which host it is.
func Join(start, end time.Time, parts []Part, many bool) *output.Interval {
	out := &output.Interval{Start: start, End: end}
	if !many && len(parts) > 0 {
		out.Host = parts[0].Host
	}
	n, events := 0, 0
	for _, p := range parts {
		n += len(p.Interval.Samples)
		events += len(p.Interval.Events)
	}
	if n > 0 {
		out.Samples = make([]output.Sample, 0, n)
	}
	if events > 0 {
		out.Events = make([]output.Event, 0, events)
	}
	for _, p := range parts {
		if many {
			onHost(p.Interval, p.Host)
		}
		out.Samples = append(out.Samples, p.Interval.Samples...)
		out.Events = append(out.Events, p.Interval.Events...)
		out.Sources = joinSources(out.Sources, p.Interval.Sources)
		out.Lost.Add(&p.Interval.Lost)
		out.Self.Add(&p.Interval.Self)
		out.Unresolved += p.Interval.Unresolved
	}
	slices.SortStableFunc(out.Events, func(a, b output.Event) int { return a.Time.Compare(b.Time) })
	return out
}

// onHost says of everything in iv that it is of host, unless it says another one.
func onHost(iv *output.Interval, host output.Host) {
	put := func(h *output.Host) {
		if *h == (output.Host{}) {
			*h = host
		}
	}
	for i := range iv.Samples {
		put(&iv.Samples[i].Host)
	}
	for i := range iv.Events {
		e := &iv.Events[i]
		put(&e.Host)
		if e.IO != nil {
			put(&e.IO.Sample.Host)
		}
		if e.VXLAN != nil && e.VXLAN.Owner != nil {
			put(&e.VXLAN.Owner.Host)
		}
	}
}

// maxLimitations is how many different limitations of a source a joined interval keeps.
const maxLimitations = 32

// joinSources adds the sources of another host: one that is attached anywhere is attached.
func joinSources(all, more []output.SourceStatus) []output.SourceStatus {
	for _, o := range more {
		i := slices.IndexFunc(all, func(s output.SourceStatus) bool { return s.Source == o.Source })
		if i < 0 {
			o.Limitations = slices.Clone(o.Limitations)
			all = append(all, o)
			continue
		}
		s := &all[i]
		if o.Attached && !s.Attached {
			s.Attached, s.Hook, s.Reason = true, o.Hook, ""
		}
		for _, l := range o.Limitations {
			if len(s.Limitations) < maxLimitations && !slices.Contains(s.Limitations, l) {
				s.Limitations = append(s.Limitations, l)
			}
		}
	}
	return all
}

// Close closes the recordings.
func (s *Set) Close() error {
	var errs []error
	for _, r := range s.readers {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// Bounds returns the first interval and one past the last.
func (s *Set) Bounds() (first, end int) { return 0, len(s.slots) }

// Span returns when interval i began and ended.
func (s *Set) Span(i int) (start, end time.Time) {
	return time.Unix(0, s.slots[i].start).UTC(), time.Unix(0, s.slots[i].end).UTC()
}

// Frame returns interval i, without the recordings that cannot be read there. It is a
// *DamageError if none can.
func (s *Set) Frame(i int) (*output.Interval, error) {
	var parts []part
	var first error
	for _, m := range s.of(i) {
		iv, err := s.readers[m.reader].Timeline().Frame(int(m.index))
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		parts = append(parts, part{m.reader, iv})
	}
	if len(parts) == 0 {
		return nil, first
	}
	return s.join(i, parts), nil
}

// Coverage says what one recording of a Set has.
type Coverage struct {
	Path       string
	Host       output.Host
	Start, End time.Time     // UTC, by the clock of the host
	Gaps       int           // times without intervals
	Gap        time.Duration // all gaps together
	SetBack    time.Duration // by how much the clock was set back, all together
	// Twice is for how long an earlier recording of the Set has the same host: what both
	// counted counts twice.
	Twice time.Duration
}

// Coverage describes the recordings in their order, from their indexes. How much the
// clocks of two hosts differ cannot be seen in their recordings.
func (s *Set) Coverage() []Coverage {
	all := make([]Coverage, 0, len(s.readers))
	for i, r := range s.readers {
		c := Coverage{Path: r.Header().Path, Host: s.hosts[i]}
		for k := range r.index {
			start, end := r.Span(k)
			if k == 0 {
				c.Start, c.End = start, end
				continue
			}
			switch d := start.Sub(c.End); {
			case d > max(time.Second, end.Sub(start)/2):
				c.Gaps++
				c.Gap += d
			case d < -time.Second:
				c.SetBack -= d
			}
			c.End = end
		}
		for _, o := range all {
			if o.Host != c.Host || o.Start.IsZero() || c.Start.IsZero() {
				continue
			}
			from, to := c.Start, c.End
			if o.Start.After(from) {
				from = o.Start
			}
			if o.End.Before(to) {
				to = o.End
			}
			c.Twice = max(c.Twice, to.Sub(from))
		}
		all = append(all, c)
	}
	return all
}
