package tracer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// batch is the most entries that one system call reads.
const batch = 4096

// minBatch is more than one bucket of a hash holds: the kernel reads whole
// buckets, and for a moment a small map may hold more than MaxEntries.
const minBatch = 128

// doubleBuffer is a pair of maps: programs write to the one that they find in
// outer[0], and Swap puts the other one there, so that the first can be read while
// nothing writes to it.
type doubleBuffer struct {
	outer        *ebpf.Map
	inUse, spare *ebpf.Map
	first        *ebpf.Map // owned by the object, which closes it
}

// newDoubleBuffer makes the spare map. spec is that of the first map: up to 6.2 the
// kernel swaps two maps only if both have type information, or neither.
func newDoubleBuffer(spec *ebpf.MapSpec, outer, first *ebpf.Map) (doubleBuffer, error) {
	spec = spec.Copy()
	spec.MaxEntries, spec.Flags = first.MaxEntries(), first.Flags()
	spare, err := ebpf.NewMap(spec)
	if err != nil {
		return doubleBuffer{}, fmt.Errorf("making the second totals map: %w", err)
	}
	if err := outer.Update(uint32(0), first, ebpf.UpdateAny); err != nil {
		spare.Close()
		return doubleBuffer{}, fmt.Errorf("setting the totals map: %w", err)
	}
	return doubleBuffer{outer: outer, inUse: first, spare: spare, first: first}, nil
}

// Swap gives the programs the spare map and returns the one that they wrote to.
// After it returned, no program writes to that one: the kernel's update of a map
// in a map ends with synchronize_rcu (maybe_wait_bpf_programs, since 4.20).
func (d *doubleBuffer) Swap() (*ebpf.Map, error) {
	if err := d.outer.Update(uint32(0), d.spare, ebpf.UpdateAny); err != nil {
		return nil, fmt.Errorf("exchanging the totals map: %w", err)
	}
	d.inUse, d.spare = d.spare, d.inUse
	return d.spare, nil
}

func (d *doubleBuffer) Close() error {
	for _, m := range []*ebpf.Map{d.inUse, d.spare} {
		if m != nil && m != d.first {
			return m.Close()
		}
	}
	return nil
}

// drain reads and empties a hash that no program writes to.
func drain[K, V any](m *ebpf.Map, visit func(*K, *V)) error {
	var cursor ebpf.MapBatchCursor
	n := min(max(int(m.MaxEntries()), minBatch), batch)
	keys := make([]K, n)
	values := make([]V, n)
	for {
		got, err := m.BatchLookupAndDelete(&cursor, keys, values, nil)
		for i := range got {
			visit(&keys[i], &values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading totals: %w", err)
		}
	}
}

// snapshot has the last values of counters that only grow in the kernel.
type snapshot struct {
	end      time.Time
	overflow map[bpf.CoreUsageKey]bpf.CoreUsage
	losses   [lossKinds]uint64
	programStats
}

const (
	lostRecords = iota
	lostNotices
	lostLatencies
	lostGroups
	lostWalks
	lostBytes
	notesWritten
	covered
	unseen
	lostNotes
	lostFiles
	lossKinds
)

func keyOf(k *bpf.CoreUsageKey) (key Key, failed bool) {
	key = Key{
		Source: Source(k.Source), Op: Op(k.Op), Basis: Basis(k.Basis),
		Meta: k.Flags&flagMeta != 0, App: k.Flags&flagApp != 0,
		Cgroup: k.Cgroup, Dev: Dev(k.Dev), FSDev: Dev(k.Fsdev), PID: k.Pid,
	}
	if key.Source == NFSD {
		key.FSDev, key.Export = 0, Export(k.Fsdev)
	} else if file := FileID(k.Fsdev); file.isFile() {
		key.FSDev, key.File = 0, file
	}
	return key, k.Flags&flagError != 0
}

// enum iot_flag of bpf/core/types.h
const (
	flagMeta  = 1
	flagApp   = 4
	flagError = 8
)

// Begin starts the first interval: what was counted before, while hooks were being
// attached, is thrown away. It is called once, before the first Read.
func (t *Tracer) Begin() error {
	now, err := monotonicTime()
	if err != nil {
		return fmt.Errorf("reading the clock: %w", err)
	}
	t.begun.Store(uint64(now))
	if err := t.core.shared[bpf.CoreMapBegunAt].Update(uint32(0), uint64(now), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("storing when the first interval began: %w", err)
	}
	_, err = t.read(false)
	return err
}

// Read returns what happened since the last call, or since Begin. Before it returns,
// Options.CgroupCreated and CgroupRemoved got every event of that time.
func (t *Tracer) Read() (*Interval, error) {
	t.suspendIdle()
	t.lookForModules()
	t.refresh()
	iv, err := t.read(false)
	t.flushNotices()
	return iv, err
}

// ReadLast is the last Read. It removes all hooks once the interval has ended, because
// an interval in which some hooks are gone would miss I/O. Later calls of Read return
// no rows.
func (t *Tracer) ReadLast() (*Interval, error) {
	t.refresh()
	iv, err := t.read(true)
	t.flushNotices()
	t.detach()
	if err == nil {
		_, err = t.read(false) // what was counted since the end is in no interval
	}
	return iv, err
}

// read ends an interval and reads what was counted in it.
func (t *Tracer) read(last bool) (*Interval, error) {
	cache, err := t.nextCache()
	if err != nil {
		return nil, err
	}
	// The interval ends here, not after the swap: that one waits, for up to tens of
	// milliseconds, for programs that run, while later ones use the next cache.
	iv := &Interval{Start: t.last.end, End: time.Now()}
	usage, err := t.usage.Swap() // from here on nothing writes to the old cache either
	if err != nil {
		return nil, err
	}
	rows := map[Key]*Row{}
	row := func(k Key) *Row {
		r := rows[k]
		if r == nil {
			r = &Row{Key: k}
			rows[k] = r
		}
		return r
	}
	book := func(k *bpf.CoreUsageKey, bytes, ops uint64) {
		key, failed := keyOf(k)
		r := row(key)
		if failed {
			r.Errors += ops
			return
		}
		r.Bytes += bytes
		r.Ops += ops
	}
	var caches []bpf.CoreRowCache
	err = t.core.unpreempted(func() (err error) {
		if err := drain(usage, func(k *bpf.CoreUsageKey, v *bpf.CoreUsage) { book(k, v.Bytes, v.Ops) }); err != nil {
			return err
		}
		if caches, err = t.takeCache(cache); err != nil {
			return err
		}
		return t.readOverflow(book)
	})
	if err != nil {
		return nil, err
	}
	for i := range caches {
		for j := range caches[i].Usage {
			if c := &caches[i].Usage[j]; c.Key.Source != 0 {
				book(&c.Key, c.Value.Bytes, c.Value.Ops)
			}
		}
	}
	if t.opt.Records != nil {
		if iv.Records, err = t.takeBatches(cache); err != nil {
			return nil, err
		}
	}
	if t.opt.countsLatencies() {
		if err := t.readLatency(caches, row); err != nil {
			return nil, err
		}
	}
	iv.Rows = make([]Row, 0, len(rows))
	for _, r := range rows {
		if r.Ops != 0 || r.Bytes != 0 || r.Errors != 0 || len(r.Latency.Buckets) != 0 {
			iv.Rows = append(iv.Rows, *r)
		}
	}
	if f := t.files.Load(); f != nil {
		f.saw(iv)
	}
	if last {
		t.countUnseen()
	}
	stats := t.readProgramStats() // before the losses: a covered run must not be newer than its miss
	if err := t.readLosses(iv); err != nil {
		return nil, err
	}
	t.bookProgramStats(iv, stats)
	t.last.end = iv.End
	return iv, nil
}

// refresh has sources look again at the devices of the host.
func (t *Tracer) refresh() {
	t.refreshing.Lock()
	defer t.refreshing.Unlock()
	t.mu.Lock()
	objects := maps.Clone(t.objects)
	if t.detached {
		objects = nil
	}
	t.mu.Unlock() // a source may load programs, and notices are read meanwhile
	change := func(f func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		f()
	}
	for name, o := range objects {
		if o.refresh == nil {
			continue
		}
		if err := o.refresh(change); err != nil {
			t.opt.Log.Debug("cannot look at devices", "source", name, "error", err)
		}
	}
}

// readOverflow books what did not fit into the totals map. The counters of the
// overflow map only grow.
func (t *Tracer) readOverflow(book func(*bpf.CoreUsageKey, uint64, uint64)) error {
	var key bpf.CoreUsageKey
	var now bpf.CoreUsage
	it := t.core.shared[bpf.CoreMapOverflow].Iterate()
	for it.Next(&key, &now) {
		before := t.last.overflow[key]
		if now == before {
			continue
		}
		if t.last.overflow == nil {
			t.last.overflow = map[bpf.CoreUsageKey]bpf.CoreUsage{}
		}
		t.last.overflow[key] = now
		other := key
		other.Cgroup = CgroupOther
		book(&other, now.Bytes-before.Bytes, now.Ops-before.Ops)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("reading the overflow rows: %w", err)
	}
	return nil
}

func (t *Tracer) readLatency(caches []bpf.CoreRowCache, row func(Key) *Row) error {
	m, err := t.latency.Swap()
	if err != nil {
		return err
	}
	type group struct {
		counts map[uint32]uint64 // by bucket
		sum    uint64
		max    uint64
	}
	groups := map[Key]*group{}
	book := func(k *bpf.CoreLatencyKey, v *bpf.CoreLatency) {
		if v.Count == 0 {
			return
		}
		key, _ := keyOf(&k.Usage)
		g := groups[key]
		if g == nil {
			g = &group{counts: map[uint32]uint64{}}
			groups[key] = g
		}
		g.counts[k.Bucket] += v.Count
		g.sum += v.Sum
		g.max = max(g.max, v.Max)
	}
	if err := t.core.unpreempted(func() error { return drain(m, book) }); err != nil {
		return err
	}
	for i := range caches {
		for j := range caches[i].Latency {
			if c := &caches[i].Latency[j]; c.Key.Usage.Source != 0 {
				book(&c.Key, &c.Value)
			}
		}
	}
	for key, g := range groups {
		l := Latency{Sum: g.sum, Max: g.max}
		for _, bucket := range slices.Sorted(maps.Keys(g.counts)) {
			l.Buckets = append(l.Buckets, Bucket{UpTo: bucketUpTo(bucket), Count: g.counts[bucket]})
		}
		row(key).Latency = l
	}
	return nil
}

// nextCache has the programs use the other row cache and returns the number of the
// one they used. After the next Swap nothing writes to that one.
func (t *Tracer) nextCache() (uint32, error) {
	old := t.generation
	if err := t.core.shared[bpf.CoreMapGeneration].Update(uint32(0), 1-old, ebpf.UpdateAny); err != nil {
		return 0, fmt.Errorf("exchanging the row cache: %w", err)
	}
	t.generation = 1 - old
	return old, nil
}

// takeCache reads and empties a row cache that no program writes to: one element
// per CPU.
func (t *Tracer) takeCache(generation uint32) ([]bpf.CoreRowCache, error) {
	m := t.core.shared[bpf.CoreMapRowCaches]
	if err := m.Lookup(generation, &t.caches); err != nil {
		return nil, fmt.Errorf("reading the row cache: %w", err)
	}
	if t.noCaches == nil {
		t.noCaches = make([]bpf.CoreRowCache, len(t.caches))
	}
	if err := m.Update(generation, t.noCaches, ebpf.UpdateAny); err != nil {
		return nil, fmt.Errorf("emptying the row cache: %w", err)
	}
	return t.caches, nil
}

func (t *Tracer) readLosses(iv *Interval) error {
	var now [lossKinds]uint64
	for i := range now {
		var values []uint64
		if err := t.core.shared[bpf.CoreMapLosses].Lookup(uint32(i), &values); err != nil {
			return fmt.Errorf("reading loss counters: %w", err)
		}
		for _, v := range values {
			now[i] += v
		}
	}
	delta := func(i int) uint64 { return now[i] - t.last.losses[i] }
	iv.Lost.Records = delta(lostRecords)
	iv.Lost.Notices = delta(lostNotices)
	iv.Lost.Latencies = delta(lostLatencies)
	iv.Lost.Groups = delta(lostGroups)
	iv.Lost.Walks = delta(lostWalks)
	iv.Lost.Bytes = delta(lostBytes)
	iv.Lost.Notes = delta(lostNotes)
	iv.Lost.Files = delta(lostFiles)
	iv.Notes = delta(notesWritten)
	t.last.losses = now
	return nil
}

// programStats has the time and runs of our programs, and how many runs the kernel
// skipped.
type programStats struct {
	spent             time.Duration
	runs              uint64
	misses, latencies uint64 // skipped runs; latencies: of programs that only measure latency
	notes             uint64 // of programs that only note who wrote a page
}

// readProgramStats asks the kernel about every attached program.
func (t *Tracer) readProgramStats() (now programStats) {
	for _, a := range t.attached() {
		s, err := a.program.Stats()
		if err != nil {
			continue // before 5.12 the kernel counts no skipped runs
		}
		now.spent += s.Runtime
		now.runs += s.RunCount
		switch {
		case a.latency:
			now.latencies += s.RecursionMisses
		case a.note:
			now.notes += s.RecursionMisses
		case !a.redundant:
			now.misses += s.RecursionMisses
		}
	}
	return now
}

// bookProgramStats adds to an interval what is new since the last one. Skipped
// runs that a redundant hook covered are no misses.
func (t *Tracer) bookProgramStats(iv *Interval, now programStats) {
	now.misses -= min(now.misses, t.last.losses[covered])
	now.latencies = max(now.latencies, t.last.losses[unseen]+t.unseen) // the kernel does not count all that it skips
	// The counters of a program are gone once it is closed.
	if now.spent >= t.last.spent && now.runs >= t.last.runs {
		iv.BPFNanos = uint64(now.spent - t.last.spent)
		iv.BPFRuns = now.runs - t.last.runs
	}
	if now.misses >= t.last.misses {
		iv.Lost.Misses = now.misses - t.last.misses
	}
	if now.latencies >= t.last.latencies {
		iv.Lost.Latencies += now.latencies - t.last.latencies
	}
	if now.notes >= t.last.notes {
		iv.Lost.Notes += now.notes - t.last.notes
	}
	t.last.programStats = now
}

// bucketUpTo returns the largest latency in ns that a bucket of struct latency_key
// holds: from 4 ns on there are four buckets for each power of two.
func bucketUpTo(bucket uint32) uint64 {
	if bucket < 8 {
		// 0..3 are exact; 4..7 are not used: 4 ns is in bucket 8.
		return uint64(bucket)
	}
	log, quarter := bucket>>2, uint64(bucket&3)
	return 1<<log + (quarter+1)<<(log-2) - 1
}
