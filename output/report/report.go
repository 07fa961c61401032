// Package report makes the page of --report: one self-contained HTML file that
// can be attached to a ticket.
package report

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Defaults of Options.
const (
	defaultTop  = 20
	defaultBins = 240
)

// Bounds on the memory of a report.
const (
	maxGroups  = 2048    // groups of a table; above that, the smaller half is summed up
	maxMerged  = 1 << 16 // identities to keep before they are grouped
	maxBuckets = 2048    // latency buckets of a histogram
	maxEvents  = 200     // vxlan events shown
	maxSlow    = 15      // single requests shown
	maxStatus  = 32      // states of sources shown
	maxHosts   = 8
	maxGaps    = 1000 // gaps that are kept when bins are merged
)

// Options are the options of New; all may be zero.
type Options struct {
	Title string // "" means "I/O report"
	// By, Filters and CgroupDepth are those of output.GroupOptions. By is the
	// grouping of the charts and the first table; empty means by project. There are
	// always tables by project, service, container, device and mount, one by process
	// if processes were recorded, and one of NFS servers if there are any.
	By          []output.Key
	Filters     []output.Filter
	CgroupDepth int
	Top         int // rows of a table; 0 means 20
	Bins        int // most points on the time axis, at least 16; 0 means 240
	// Tool is the version of iotrace-bpf.
	Tool string
	// Origin says where the data is from: the name of the recording, or "live".
	Origin string
	// Location is the time zone of the page; nil means UTC.
	Location *time.Location
	// Command is the command line that made the page; "" leaves it out.
	Command string
	// Now is the time at which the report is created; zero leaves it out. See Made.
	Now time.Time
}

// Report collects intervals into one self-contained page: see WriteTo. Its memory
// does not grow with the number of intervals. If there are more intervals than
// bins, neighbouring bins are merged. If a table has too many groups, the small
// ones are summed up, and the page says so. A Report is not safe for concurrent
// use.
type Report struct {
	opt   Options
	views []*view
	// NFS servers, and which containers use them. They have no table of their own kind.
	servers, users *view

	bins []timeBin
	per  int // intervals in a full bin

	// What was added since the last flush, one sample per identity.
	merged  map[output.SampleKey]*output.Sample
	passing *output.Summary // empty; used to filter single requests
	process bool            // processes were recorded
	last    time.Time
	shift   time.Duration // how far the clock was set back

	intervals  int
	start, end time.Time
	covered    time.Duration // sum of the intervals' lengths
	gap        time.Duration // between start and end, but not in any interval
	filtered   output.Usage
	host       output.Host // of merged samples that do not say it
	hosts      []output.Host
	moreHosts  bool
	status     []sourceStatus
	lost       output.Lost
	lostFirst  time.Time
	lostLast   time.Time
	unresolved uint64
	self       output.Self // sums; RSSBytes and MapBytes are the largest
	unattr     uint64
	basis      output.BasisBytes
	damage     []string

	vxlan     []output.Event
	vxlanAll  int
	actions   map[string]int
	slow      []output.Event // by latency, the longest first
	requests  int
	sourceUse map[output.Source]*sourceSeries
}

// sourceSeries is the usage of one source.
type sourceSeries struct {
	usage output.Usage
	bins  []readWrite
}

// sourceStatus is a state of a source and when it was first seen.
type sourceStatus struct {
	at time.Time
	output.SourceStatus
}

// readWrite is the bytes of a group in a bin.
type readWrite struct{ read, write uint64 }

// timeBin is a section of the time axis.
type timeBin struct {
	start, end time.Time
	covered    time.Duration
	intervals  int
	afterGap   bool
	total      output.Usage
}

// view is one grouping: a table, and for the first view the charts too.
type view struct {
	by      []output.Key
	stacked bool
	groups  map[string]*group
	folded  group  // sum of the groups that were dropped
	foldMax uint64 // bytes of the largest of them
}

// group is one row of a table.
type group struct {
	id      string
	text    string
	owner   output.OwnerKind
	stacked bool
	usage   output.Usage
	bins    []readWrite
	groups  int
}

// New returns an empty report.
func New(opt Options) *Report {
	if len(opt.By) == 0 {
		opt.By = []output.Key{output.KeyProject}
	}
	if opt.Top <= 0 {
		opt.Top = defaultTop
	}
	if opt.Bins <= 0 {
		opt.Bins = defaultBins
	}
	opt.Bins = max(opt.Bins, 16)
	if opt.Location == nil {
		opt.Location = time.UTC
	}
	if opt.Title == "" {
		opt.Title = "I/O report"
	}
	r := &Report{
		opt: opt, per: 1,
		merged:    map[output.SampleKey]*output.Sample{},
		actions:   map[string]int{},
		sourceUse: map[output.Source]*sourceSeries{},
	}
	r.addView(opt.By)
	for _, k := range []output.Key{output.KeyProject, output.KeyService, output.KeyContainer, output.KeyProcess, output.KeyDevice, output.KeyMount} {
		if !slices.Equal(opt.By, []output.Key{k}) {
			r.addView([]output.Key{k})
		}
	}
	r.servers, r.users = newView([]output.Key{output.KeyNFSServer}), newView([]output.Key{output.KeyNFSServer, output.KeyContainer})
	r.passing = output.Group(&output.Interval{}, output.GroupOptions{Filters: opt.Filters, CgroupDepth: opt.CgroupDepth})
	return r
}

func (r *Report) addView(by []output.Key) { r.views = append(r.views, newView(by)) }

func newView(by []output.Key) *view {
	return &view{by: by, stacked: slices.Contains(by, output.KeyDevice), groups: map[string]*group{}}
}

// Made sets the time at which the page is made.
func (r *Report) Made(at time.Time) { r.opt.Now = at }

// Damage makes the page say that a part of the recording could not be read. err is
// a *recording.DamageError of recording.Reader.Next.
func (r *Report) Damage(err error) {
	if len(r.damage) < maxStatus {
		r.damage = append(r.damage, err.Error())
	}
}

// Add adds one interval. Of iv the report keeps only strings, label maps and the
// contents of events; the caller may reuse the rest.
func (r *Report) Add(iv *output.Interval) {
	length := max(0, iv.End.Sub(iv.Start))
	start := iv.Start.Add(r.shift)
	if r.intervals > 0 && start.Before(r.last) {
		// The wall clock was set back, or intervals overlap slightly: the time axis
		// continues where it was.
		if d := r.last.Sub(start); d > time.Second {
			r.shift += d
		}
		start = r.last
	}
	end := start.Add(length)
	gap := time.Duration(0)
	if r.intervals > 0 {
		gap = start.Sub(r.last)
		r.gap += max(0, gap)
	} else {
		r.start = start
	}
	r.last, r.end = end, end
	r.intervals++
	r.covered += length
	r.bin(start, end, length, gap > max(5*time.Second, 3*length))

	r.addMeta(iv)
	if iv.Host != r.host {
		r.flush()
		r.host = iv.Host
	}
	for i := range iv.Samples {
		r.merge(&iv.Samples[i])
	}
	for i := range iv.Events {
		r.addEvent(&iv.Events[i])
	}
	if len(r.merged) > maxMerged {
		r.flush()
	}
}

// bin adds one interval to the time axis.
func (r *Report) bin(start, end time.Time, length time.Duration, gap bool) {
	if n := len(r.bins); n > 0 && r.bins[n-1].intervals < r.per && !gap {
		b := &r.bins[n-1]
		b.end = end
		b.covered += length
		b.intervals++
		return
	}
	r.flush()
	r.bins = append(r.bins, timeBin{start: start, end: end, covered: length, intervals: 1, afterGap: gap})
	if len(r.bins) > r.opt.Bins {
		r.halve()
	}
}

// halve merges neighbouring bins, but not across a gap unless there are too many
// gaps.
func (r *Report) halve() {
	r.per *= 2
	gaps := 0
	for i := range r.bins {
		if r.bins[i].afterGap {
			gaps++
		}
	}
	keep := gaps < min(r.opt.Bins/2, maxGaps)
	to := make([]int, len(r.bins)) // the new number of each bin
	var out []timeBin
	for i := range r.bins {
		b := &r.bins[i]
		n := len(out)
		if n > 0 && out[n-1].intervals+b.intervals <= r.per && !(b.afterGap && keep) {
			o := &out[n-1]
			o.end = b.end
			o.covered += b.covered
			o.intervals += b.intervals
			o.total.Add(&b.total)
			trimUsage(&o.total)
			to[i] = n - 1
			continue
		}
		out = append(out, *b)
		to[i] = n
	}
	r.bins = out
	remap := func(old []readWrite) []readWrite {
		if len(old) == 0 {
			return nil
		}
		nw := make([]readWrite, to[len(old)-1]+1)
		for i, b := range old {
			nw[to[i]].read += b.read
			nw[to[i]].write += b.write
		}
		return nw
	}
	for _, v := range append(slices.Clone(r.views), r.servers, r.users) {
		for _, g := range v.groups {
			g.bins = remap(g.bins)
		}
		v.folded.bins = remap(v.folded.bins)
	}
	for _, s := range r.sourceUse {
		s.bins = remap(s.bins)
	}
}

// addHost adds a host, unless it is zero or was added before.
func (r *Report) addHost(h output.Host) {
	switch {
	case h == output.Host{} || slices.Contains(r.hosts, h):
	case len(r.hosts) < maxHosts:
		r.hosts = append(r.hosts, h)
	default:
		r.moreHosts = true
	}
}

// addMeta adds hosts, sources, losses and overhead of an interval.
func (r *Report) addMeta(iv *output.Interval) {
	r.addHost(iv.Host)
	for i := range iv.Samples {
		r.addHost(iv.Samples[i].Host)
	}
	for _, s := range iv.Sources {
		i := len(r.status) - 1
		for i >= 0 && r.status[i].Source != s.Source {
			i--
		}
		if (i < 0 || !reflect.DeepEqual(r.status[i].SourceStatus, s)) && len(r.status) < maxStatus {
			r.status = append(r.status, sourceStatus{at: iv.Start, SourceStatus: s})
		}
	}
	l := iv.Lost
	if l != (output.Lost{}) {
		if r.lost == (output.Lost{}) {
			r.lostFirst = iv.Start
		}
		r.lostLast = iv.End
	}
	r.lost.Add(&l)
	r.unresolved = max(r.unresolved, iv.Unresolved)
	r.self.BPFNanos += iv.Self.BPFNanos
	r.self.CPUNanos += iv.Self.CPUNanos
	r.self.RSSBytes = max(r.self.RSSBytes, iv.Self.RSSBytes)
	r.self.MapBytes = max(r.self.MapBytes, iv.Self.MapBytes)
	r.unattr += iv.Unattributed()
}

// merge adds a sample to the sum of its identity.
func (r *Report) merge(s *output.Sample) {
	if s.Level == output.LevelApp {
		return // reads and writes of the page cache are not the load of the storage
	}
	k := output.KeyOfSample(s)
	r.process = r.process || s.Process != output.Process{}
	m := r.merged[k]
	if m == nil {
		m = new(output.Sample)
		*m = *s
		m.Read, m.Write, m.Discard, m.Flush, m.Metadata = output.Amount{}, output.Amount{}, output.Amount{}, output.Amount{}, output.Amount{}
		m.MetaReadBytes, m.MetaWriteBytes, m.Retransmits, m.Basis = 0, 0, 0, output.BasisBytes{}
		r.merged[k] = m
	}
	for _, op := range output.Ops {
		a := m.Amount(op)
		a.Add(s.Amount(op))
		trim(&a.Latency)
	}
	m.MetaReadBytes += s.MetaReadBytes
	m.MetaWriteBytes += s.MetaWriteBytes
	m.Retransmits += s.Retransmits
	m.Basis.Add(&s.Basis)
}

// trim bounds the size of a histogram, because a recording may hold one with
// millions of buckets: it joins neighbours under the upper bound.
func trim(l *output.Latency) {
	for len(l.Buckets) > maxBuckets {
		half := l.Buckets[:0]
		for i := 0; i < len(l.Buckets); i += 2 {
			b := l.Buckets[i]
			if i+1 < len(l.Buckets) {
				b = output.Bucket{UpTo: l.Buckets[i+1].UpTo, Count: b.Count + l.Buckets[i+1].Count}
			}
			half = append(half, b)
		}
		l.Buckets = half
	}
}

func trimUsage(u *output.Usage) {
	for _, op := range output.Ops {
		trim(&u.Amount(op).Latency)
	}
}

// flush groups the merged samples and adds them to the last bin.
func (r *Report) flush() {
	if len(r.merged) == 0 {
		return
	}
	iv := &output.Interval{Host: r.host, Samples: make([]output.Sample, 0, len(r.merged))}
	for _, s := range r.merged {
		iv.Samples = append(iv.Samples, *s)
	}
	clear(r.merged)
	bin := len(r.bins) - 1
	for i, v := range append(slices.Clone(r.views), r.servers, r.users) {
		summary := output.Group(iv, output.GroupOptions{By: v.by, Filters: r.opt.Filters, CgroupDepth: r.opt.CgroupDepth})
		for j := range summary.Rows {
			v.add(&summary.Rows[j], bin, false)
		}
		if v.stacked {
			for j := range summary.Stacked {
				v.add(&summary.Stacked[j], bin, true)
			}
		}
		v.fold()
		if i == 0 {
			r.addTotals(summary, bin)
		}
	}
}

// addTotals adds the rows of the first view, which passed the filters, to the totals.
func (r *Report) addTotals(summary *output.Summary, bin int) {
	if summary.Filtered != nil {
		r.filtered.Add(&summary.Filtered.Total)
		trimUsage(&r.filtered)
	}
	t := &r.bins[bin].total
	for i := range summary.Rows {
		row := &summary.Rows[i]
		t.Add(&row.Total)
		for j := range row.Sources {
			su := &row.Sources[j]
			s := r.sourceUse[su.Source]
			if s == nil {
				if len(r.sourceUse) >= maxStatus {
					continue // there are three, but a damaged file may have thousands
				}
				s = new(sourceSeries)
				r.sourceUse[su.Source] = s
			}
			s.usage.Add(&su.Usage)
			trimUsage(&s.usage)
			s.bins = addBin(s.bins, bin, &su.Usage)
		}
	}
	trimUsage(t)
	for i := range summary.Rows {
		if u := &summary.Rows[i].Total; !u.BasisUnknown {
			r.basis.Add(&u.Basis)
		}
	}
}

func addBin(bins []readWrite, i int, u *output.Usage) []readWrite {
	for len(bins) <= i {
		bins = append(bins, readWrite{})
	}
	bins[i].read += u.Read.Bytes
	bins[i].write += u.Write.Bytes
	return bins
}

// add adds one row of a grouping.
func (v *view) add(row *output.Row, bin int, stacked bool) {
	id := row.Group()
	if stacked {
		id = "stacked\x00" + id
	}
	g := v.groups[id]
	if g == nil {
		g = &group{id: id, text: row.Text(), owner: row.Identity().Owner, stacked: stacked, groups: 1}
		v.groups[id] = g
	}
	g.usage.Add(&row.Total)
	trimUsage(&g.usage)
	g.bins = addBin(g.bins, bin, &row.Total)
}

// fold drops the smaller half of the groups if there are too many. A group that
// comes back later begins at zero; the page says how much its row may lack.
func (v *view) fold() {
	if len(v.groups) <= maxGroups {
		return
	}
	for _, g := range v.sorted()[maxGroups/2:] {
		if !g.stacked {
			v.folded.absorb(g)
			v.foldMax = max(v.foldMax, g.usage.Bytes())
		}
		delete(v.groups, g.id)
	}
}

// absorb adds another group to the sum g.
func (g *group) absorb(o *group) {
	g.usage.Add(&o.usage)
	trimUsage(&g.usage)
	for len(g.bins) < len(o.bins) {
		g.bins = append(g.bins, readWrite{})
	}
	for i, b := range o.bins {
		g.bins[i].read += b.read
		g.bins[i].write += b.write
	}
	g.groups += o.groups
}

// sorted returns the groups sorted by bytes, then operations, then name.
func (v *view) sorted() []*group {
	return slices.SortedFunc(maps.Values(v.groups), func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.usage.Bytes(), a.usage.Bytes()), cmp.Compare(b.usage.Ops(), a.usage.Ops()),
			cmp.Compare(a.text, b.text), cmp.Compare(a.id, b.id))
	})
}

// top returns the largest n groups and the sum of the others, or nil. Groups
// without an owner are always shown, however small. Stacked devices are separate,
// because no sum includes them.
func (v *view) top(n int) (rows []*group, rest *group, stacked []*group) {
	sum := group{text: output.TextRest}
	if v.folded.groups > 0 {
		sum.absorb(&v.folded)
	}
	for _, g := range v.sorted() {
		switch {
		case g.stacked:
			if len(stacked) < n {
				stacked = append(stacked, g)
			}
		case len(rows) < n || (g.owner == output.OwnerUnattributed || g.owner == output.OwnerOther) && g.usage.Bytes() > 0:
			rows = append(rows, g)
		default:
			sum.absorb(g)
		}
	}
	if sum.groups > 0 {
		rest = &sum
	}
	return rows, rest, stacked
}

// addEvent keeps the events that the page can show.
func (r *Report) addEvent(e *output.Event) {
	if e.VXLAN != nil {
		r.vxlanAll++
		if len(r.actions) < maxStatus || r.actions[e.Action] > 0 {
			r.actions[e.Action]++
		}
		if len(r.vxlan) < maxEvents {
			r.vxlan = append(r.vxlan, *e)
		}
	}
	if e.IO == nil || !r.passing.Has(e.IO) {
		return
	}
	r.requests++
	if e.IO.Latency == 0 || len(r.slow) == maxSlow && r.slow[maxSlow-1].IO.Latency >= e.IO.Latency {
		return
	}
	i, _ := slices.BinarySearchFunc(r.slow, e.IO.Latency, func(s output.Event, l uint64) int {
		return cmp.Or(cmp.Compare(l, s.IO.Latency), -1) // after equal ones
	})
	io := *e.IO
	r.slow = slices.Insert(r.slow, i, output.Event{Time: e.Time, IO: &io})
	if len(r.slow) > maxSlow {
		r.slow[maxSlow] = output.Event{}
		r.slow = r.slow[:maxSlow]
	}
}
