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

// batch is how many entries one system call reads at most.
const batch = 4096

// minBatch is more than one bucket of a hash holds: the kernel reads whole
// buckets, and those of a small map may for a moment have more than it allows.
const minBatch = 128

// doubleBuffer is a map that can be read at rest: programs find the map to
// write to in outer[0], and Swap puts the spare one there.
type doubleBuffer struct {
	outer        *ebpf.Map
	inUse, spare *ebpf.Map
	cpus         int
	first        *ebpf.Map // belongs to the object, not to us
}

// newDoubleBuffer makes the spare map. spec is that of the first: up to 6.2 the
// kernel takes two maps for one another only if both have types, or neither.
func newDoubleBuffer(spec *ebpf.MapSpec, outer, first *ebpf.Map) (doubleBuffer, error) {
	spec = spec.Copy()
	spec.MaxEntries, spec.Flags = first.MaxEntries(), first.Flags()
	spare, err := ebpf.NewMap(spec)
	if err != nil {
		return doubleBuffer{}, fmt.Errorf("making the second totals map: %w", err)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		spare.Close()
		return doubleBuffer{}, err
	}
	if err := outer.Update(uint32(0), first, ebpf.UpdateAny); err != nil {
		spare.Close()
		return doubleBuffer{}, fmt.Errorf("setting the totals map: %w", err)
	}
	if first.Type() == ebpf.Hash {
		cpus = 1 // one value for all
	}
	return doubleBuffer{outer: outer, inUse: first, spare: spare, first: first, cpus: cpus}, nil
}

// Swap hands the spare map to the programs and returns the one they wrote to.
// When it returns no program writes to that any more: the kernel's update of a
// map in a map ends with synchronize_rcu (maybe_wait_bpf_programs, since 4.20).
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

// drain reads and empties a per-CPU hash at rest, calling visit with the values
// of all CPUs for each key.
func drain[K, V any](m *ebpf.Map, cpus int, visit func(*K, []V)) error {
	var cursor ebpf.MapBatchCursor
	n := min(max(int(m.MaxEntries()), minBatch), batch)
	keys := make([]K, n)
	values := make([]V, n*cpus)
	for {
		got, err := m.BatchLookupAndDelete(&cursor, keys, values, nil)
		for i := range got {
			visit(&keys[i], values[i*cpus:(i+1)*cpus])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading totals: %w", err)
		}
	}
}

// snapshot is what only grows in the kernel: the last values seen.
type snapshot struct {
	end      time.Time
	overflow map[bpf.HostUsageKey]bpf.HostUsage
	losses   [lossKinds]uint64
	cost
}

// debt is what requeued requests still have to give back: they were counted in
// an earlier interval and their row is gone.
type debt struct{ bytes, ops uint64 }

const (
	lostRecords = iota
	lostNotices
	lostLatencies
	lostGroups
	lostWalks
	lostBytes
	notesWritten
	stoodIn
	unseen
	lossKinds
)

func keyOf(k *bpf.HostUsageKey) (key Key, requeued, failed bool) {
	return Key{
		Source: Source(k.Source), Op: Op(k.Op), Basis: Basis(k.Basis),
		Meta: k.Flags&flagMeta != 0, App: k.Flags&flagApp != 0,
		Cgroup: k.Cgroup, Dev: Dev(k.Dev), FSDev: Dev(k.Fsdev), PID: k.Pid,
	}, k.Flags&flagRequeued != 0, k.Flags&flagError != 0
}

// enum iot_flag of bpf/iotrace.h
const (
	flagMeta     = 1
	flagRequeued = 2
	flagApp      = 4
	flagError    = 8
)

// Read returns what happened since the call before, or since New.
func (t *Tracer) Read() (*Interval, error) {
	t.restIdle()
	start := t.last.end
	if start.IsZero() {
		start = t.start
	}
	t.refresh()
	cache, err := t.nextCache()
	if err != nil {
		return nil, err
	}
	usage, err := t.usage.Swap() // from here on the old cache is at rest as well
	if err != nil {
		return nil, err
	}
	iv := &Interval{Start: start, End: time.Now()}
	rows := map[Key]*Row{}
	row := func(k Key) *Row {
		r := rows[k]
		if r == nil {
			r = &Row{Key: k}
			rows[k] = r
		}
		return r
	}
	book := func(k *bpf.HostUsageKey, bytes, ops uint64) {
		key, requeued, failed := keyOf(k)
		switch {
		case requeued:
			d := t.debts[key]
			t.debts[key] = debt{d.bytes + bytes, d.ops + ops}
		case failed:
			row(key).Errors += ops
		default:
			r := row(key)
			r.Bytes += bytes
			r.Ops += ops
		}
	}
	err = drain(usage, t.usage.cpus, func(k *bpf.HostUsageKey, values []bpf.HostUsage) {
		var bytes, ops uint64
		for i := range values {
			bytes += values[i].Bytes
			ops += values[i].Ops
		}
		book(k, bytes, ops)
	})
	if err != nil {
		return nil, err
	}
	caches, err := t.takeCache(cache)
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
	if err := t.readOverflow(book); err != nil {
		return nil, err
	}
	if t.opt.countsLatencies() {
		if err := t.readLatency(caches, row); err != nil {
			return nil, err
		}
	}
	t.settle(rows)
	iv.Rows = make([]Row, 0, len(rows))
	for _, r := range rows {
		if r.Ops != 0 || r.Bytes != 0 || r.Errors != 0 || len(r.Latency.Buckets) != 0 {
			iv.Rows = append(iv.Rows, *r)
		}
	}
	cost := t.readCost() // before the losses: no work that was stood in for is newer than its miss
	if err := t.readLosses(iv); err != nil {
		return nil, err
	}
	t.settleCost(iv, cost)
	t.last.end = iv.End
	return iv, nil
}

// refresh brings what sources know of the host up to date.
func (t *Tracer) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, o := range t.objects {
		if o.refresh == nil {
			continue
		}
		if err := o.refresh(); err != nil {
			t.opt.Log.Debug("refreshing", "source", name, "error", err)
		}
	}
}

// settle takes what was requeued from the rows it was counted under, or, where
// those are of an earlier interval, from what the same device does next.
func (t *Tracer) settle(rows map[Key]*Row) {
	pay := func(r *Row, d debt) debt {
		bytes, ops := min(r.Bytes, d.bytes), min(r.Ops, d.ops)
		r.Bytes -= bytes
		r.Ops -= ops
		return debt{d.bytes - bytes, d.ops - ops}
	}
	for key, d := range t.debts {
		if r := rows[key]; r != nil {
			d = pay(r, d)
		}
		for k, r := range rows {
			if d == (debt{}) {
				break
			}
			if k.Source == key.Source && k.Dev == key.Dev && k.Op == key.Op && k.App == key.App {
				d = pay(r, d)
			}
		}
		if d == (debt{}) {
			delete(t.debts, key)
		} else {
			t.debts[key] = d
		}
	}
}

// readOverflow books what did not fit into the totals map; that map only grows.
func (t *Tracer) readOverflow(book func(*bpf.HostUsageKey, uint64, uint64)) error {
	var key bpf.HostUsageKey
	var values []bpf.HostUsage
	it := t.host.shared[bpf.HostMapOverflow].Iterate()
	for it.Next(&key, &values) {
		var now bpf.HostUsage
		for _, v := range values {
			now.Bytes += v.Bytes
			now.Ops += v.Ops
		}
		before := t.last.overflow[key]
		if now == before {
			continue
		}
		if t.last.overflow == nil {
			t.last.overflow = map[bpf.HostUsageKey]bpf.HostUsage{}
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

func (t *Tracer) readLatency(caches []bpf.HostRowCache, row func(Key) *Row) error {
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
	book := func(k *bpf.HostLatencyKey, v *bpf.HostLatency) {
		if v.Count == 0 {
			return
		}
		key, _, _ := keyOf(&k.Usage)
		g := groups[key]
		if g == nil {
			g = &group{counts: map[uint32]uint64{}}
			groups[key] = g
		}
		g.counts[k.Bucket] += v.Count
		g.sum += v.Sum
		g.max = max(g.max, v.Max)
	}
	err = drain(m, t.latency.cpus, func(k *bpf.HostLatencyKey, values []bpf.HostLatency) {
		for i := range values {
			book(k, &values[i])
		}
	})
	if err != nil {
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

// nextCache has the programs use the other row cache, and returns the number of
// the one they used. It is at rest after the next Swap.
func (t *Tracer) nextCache() (uint32, error) {
	old := t.generation
	if err := t.host.shared[bpf.HostMapGeneration].Update(uint32(0), 1-old, ebpf.UpdateAny); err != nil {
		return 0, fmt.Errorf("exchanging the row cache: %w", err)
	}
	t.generation = 1 - old
	return old, nil
}

// takeCache reads and empties a row cache at rest, one element per CPU.
func (t *Tracer) takeCache(generation uint32) ([]bpf.HostRowCache, error) {
	m := t.host.shared[bpf.HostMapRowCaches]
	if err := m.Lookup(generation, &t.caches); err != nil {
		return nil, fmt.Errorf("reading the row cache: %w", err)
	}
	if t.noCaches == nil {
		t.noCaches = make([]bpf.HostRowCache, t.usage.cpus)
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
		if err := t.host.shared[bpf.HostMapLosses].Lookup(uint32(i), &values); err != nil {
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
	iv.Notes = delta(notesWritten)
	t.last.losses = now
	return nil
}

// cost is what our programs have cost so far and how often the kernel skipped one.
type cost struct {
	spent             time.Duration
	runs              uint64
	misses, latencies uint64 // of those that are for latencies alone, the second
}

// readCost asks the kernel.
func (t *Tracer) readCost() (c cost) {
	for _, a := range t.attached() {
		s, err := a.program.Stats()
		if err != nil {
			continue // before 5.12 there are no misses, before 5.1 nothing
		}
		c.spent += s.Runtime
		c.runs += s.RunCount
		switch {
		case a.latency:
			c.latencies += s.RecursionMisses
		case !a.standIn:
			c.misses += s.RecursionMisses
		}
	}
	return c
}

// settleCost books what is new of it, of misses those that nobody stood in for.
func (t *Tracer) settleCost(iv *Interval, c cost) {
	c.misses -= min(c.misses, t.last.losses[stoodIn])
	c.latencies = max(c.latencies, t.last.losses[unseen]+t.unseen) // the kernel does not count all that it skips
	// Programs that were closed took their figures with them.
	if c.spent >= t.last.spent && c.runs >= t.last.runs {
		iv.BPFNanos = uint64(c.spent - t.last.spent)
		iv.BPFRuns = c.runs - t.last.runs
	}
	if c.misses >= t.last.misses {
		iv.Lost.Misses = c.misses - t.last.misses
	}
	if c.latencies >= t.last.latencies {
		iv.Lost.Latencies += c.latencies - t.last.latencies
	}
	t.last.cost = c
}
