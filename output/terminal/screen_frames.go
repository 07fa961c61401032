package terminal

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// Timeline holds the intervals that a screen can show. They are numbered in the
// order of time, and an interval keeps its number when older ones are dropped.
// Frame and Span take numbers within Bounds.
type Timeline interface {
	// Bounds returns the number of the first interval and the one after the last.
	Bounds() (first, end int)
	// Frame returns interval i, or an error if it cannot be read. The caller must
	// not change it.
	Frame(i int) (*output.Interval, error)
	// Span returns when interval i began and ended.
	Span(i int) (start, end time.Time)
}

// How much a live screen keeps for going back in time: 15 minutes at one interval
// a second, less on hosts with thousands of samples in an interval. A sample
// takes 1 to 3 KB.
const (
	keepFrames  = 900
	keepSamples = 30_000
)

// liveFrames keeps the last intervals, and the sum of those before them.
type liveFrames struct {
	first   int
	kept    []*output.Interval
	samples int
	before  output.Sum
}

func (l *liveFrames) add(iv *output.Interval) {
	l.kept = append(l.kept, iv)
	l.samples += len(iv.Samples)
	for len(l.kept) > 1 && (len(l.kept) > keepFrames || l.samples > keepSamples) {
		l.samples -= len(l.kept[0].Samples)
		l.before.Add(l.kept[0])
		l.kept[0] = nil // so that the garbage collector can free it
		l.kept = l.kept[1:]
		l.first++
	}
}

func (l *liveFrames) Bounds() (first, end int) { return l.first, l.first + len(l.kept) }

func (l *liveFrames) Frame(i int) (*output.Interval, error) {
	if i < l.first || i >= l.first+len(l.kept) {
		return nil, fmt.Errorf("interval %d is no longer kept", i)
	}
	return l.kept[i-l.first], nil
}

func (l *liveFrames) Span(i int) (start, end time.Time) {
	iv := l.kept[i-l.first]
	return iv.Start, iv.End
}

// cachedFrames remembers the last intervals that were read from a recording: sparklines
// and averages look at the same ones again for each step.
type cachedFrames struct {
	Timeline
	kept map[int]*output.Interval
}

func (c *cachedFrames) Frame(i int) (*output.Interval, error) {
	if iv := c.kept[i]; iv != nil {
		return iv, nil
	}
	iv, err := c.Timeline.Frame(i)
	if err != nil {
		return nil, err
	}
	if len(c.kept) >= 3*historyLen {
		for j := range c.kept {
			if j < i-historyLen || j > i+historyLen {
				delete(c.kept, j)
			}
		}
	}
	c.kept[i] = iv
	return iv, nil
}

// runSum is the sum of a run from its start up to an interval.
type runSum struct {
	sum *output.Sum
	end int // the first interval that is not in it
}

// upTo returns the sum of all intervals up to i. Going forward takes one addition,
// going back begins at the start.
func (r *runSum) upTo(i int, before *output.Sum, src Timeline) *output.Sum {
	first, _ := src.Bounds()
	if r.sum == nil || r.end > i+1 || r.end < first {
		r.sum, r.end = before.Clone(), first
	}
	for ; r.end <= i; r.end++ {
		if iv, err := src.Frame(r.end); err == nil {
			r.sum.Add(iv)
		}
	}
	return r.sum
}

// history holds the data of the sparklines, and which rows there were: what every
// group did in each of the last intervals.
type history struct {
	points map[int]*point
	rows   map[string]*output.Row // without usage, by id
}

type point struct {
	rows    map[string]moment // by row id
	total   moment
	seconds float64
}

// moment is what a group did in an interval.
type moment struct{ read, write, p99 uint64 } // bytes, bytes, ns

func (m moment) bytes() uint64 { return m.read + m.write }

// historyLen is how many intervals sparklines go back. Of each interval the
// historyRows largest groups are kept.
const (
	historyLen  = 120
	historyRows = 500
)

func (h *history) clear() {
	h.points = make(map[int]*point)
	h.rows = make(map[string]*output.Row)
}

// put stores the summary of interval i, which is d long.
func (h *history) put(i int, summary *output.Summary, d time.Duration) {
	of := func(r *output.Row) moment {
		u := r.At(summary.Level)
		lat := u.Latency()
		return moment{u.Read.Bytes, u.Write.Bytes, lat.Quantile(0.99)}
	}
	p := &point{rows: make(map[string]moment), seconds: text.Seconds(d)}
	for j := range summary.Rows {
		if j == historyRows {
			break
		}
		r := &summary.Rows[j]
		p.rows[r.Group()] = of(r)
		if h.rows[r.Group()] == nil {
			idle := r.Idle()
			h.rows[r.Group()] = &idle
		}
	}
	p.total = of(&summary.Total)
	h.points[i] = p
}

// forget drops intervals that are too far from interval i to be drawn.
func (h *history) forget(i int) {
	for j := range h.points {
		if j <= i-2*historyLen || j > i+historyLen {
			delete(h.points, j)
		}
	}
	if len(h.rows) > 4*historyRows {
		for id := range h.rows {
			if !h.has(id) {
				delete(h.rows, id)
			}
		}
	}
}

func (h *history) has(id string) bool {
	for _, p := range h.points {
		if _, ok := p.rows[id]; ok {
			return true
		}
	}
	return false
}

// idle returns the rows of the historyLen intervals up to i that are not in summary,
// those with the most bytes first: rows that come and go keep a steady order.
func (h *history) idle(i int, summary *output.Summary) []output.Row {
	bytes := make(map[string]uint64)
	for j, p := range h.points {
		if j > i-historyLen && j <= i {
			for id, m := range p.rows {
				bytes[id] += m.bytes()
			}
		}
	}
	for j := range summary.Rows {
		delete(bytes, summary.Rows[j].Group())
	}
	rows := make([]output.Row, 0, len(bytes))
	for id := range bytes {
		rows = append(rows, *h.rows[id])
	}
	slices.SortFunc(rows, func(a, b output.Row) int {
		return cmp.Or(cmp.Compare(bytes[b.Group()], bytes[a.Group()]), cmp.Compare(a.Text(), b.Text()), cmp.Compare(a.Group(), b.Group()))
	})
	return rows[:min(len(rows), historyRows)]
}

var sparkBars = []rune("▁▂▃▄▅▆▇█")

// rates returns bytes per second of width cells that end with
// interval i. If there are more intervals than cells, each cell shows several, always
// the same ones together, so that bars move but do not flicker. What is not known is
// negative.
func (h *history) rates(i, width int, value func(*point) uint64) []float64 {
	return h.cells(i, width, func(cell []*point) float64 {
		var bytes uint64
		var seconds float64
		for _, p := range cell {
			bytes += value(p)
			seconds += p.seconds
		}
		return float64(bytes) / seconds
	})
}

// highest is rates for values that are not added up.
func (h *history) highest(i, width int, value func(*point) uint64) []float64 {
	return h.cells(i, width, func(cell []*point) float64 {
		var most uint64
		for _, p := range cell {
			most = max(most, value(p))
		}
		return float64(most)
	})
}

func (h *history) cells(i, width int, value func([]*point) float64) []float64 {
	if width <= 0 {
		return nil
	}
	per := max(1, (historyLen+width-1)/width)
	values := make([]float64, width)
	last := i / per
	var cell []*point
	for c := range width {
		bucket := last - width + 1 + c
		cell = cell[:0]
		for j := max(bucket*per, 0); j < (bucket+1)*per && j <= i; j++ {
			if p, ok := h.points[j]; ok {
				cell = append(cell, p)
			}
		}
		values[c] = -1
		if len(cell) > 0 {
			values[c] = value(cell)
		}
	}
	return values
}

// spark draws rates so that the highest bar is most. Whatever is not zero has a bar.
func spark(rates []float64, most float64) string {
	out := make([]rune, len(rates))
	for c, v := range rates {
		out[c] = ' '
		if v > 0 && most > 0 {
			out[c] = sparkBars[min(int(v/most*float64(len(sparkBars))), len(sparkBars)-1)]
		}
	}
	return string(out)
}
