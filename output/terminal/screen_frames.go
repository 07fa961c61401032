package terminal

import (
	"fmt"
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

// liveFrames keeps the last intervals.
type liveFrames struct {
	first   int
	kept    []*output.Interval
	samples int
}

func (l *liveFrames) add(iv *output.Interval) {
	l.kept = append(l.kept, iv)
	l.samples += len(iv.Samples)
	for len(l.kept) > 1 && (len(l.kept) > keepFrames || l.samples > keepSamples) {
		l.samples -= len(l.kept[0].Samples)
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

// history holds the data of the sparklines: bytes of every group in the last
// intervals.
type history struct {
	points map[int]*point
}

type point struct {
	rows    map[string]uint64 // bytes by row id
	total   uint64
	seconds float64
}

// historyLen is how many intervals sparklines go back. Of each interval the
// historyRows largest groups are kept.
const (
	historyLen  = 120
	historyRows = 500
)

func (h *history) clear() { h.points = make(map[int]*point) }

// put stores the summary of interval i, which is d long.
func (h *history) put(i int, summary *output.Summary, d time.Duration) {
	usage := func(r *output.Row) uint64 {
		if summary.Level == output.LevelApp {
			return r.App.Bytes()
		}
		return r.Total.Bytes()
	}
	p := &point{rows: make(map[string]uint64), seconds: text.Seconds(d)}
	for j := range summary.Rows {
		if j == historyRows {
			break
		}
		p.rows[summary.Rows[j].Group()] = usage(&summary.Rows[j])
	}
	p.total = usage(&summary.Total)
	h.points[i] = p
}

// forget drops intervals that are too far from interval i to be drawn.
func (h *history) forget(i int) {
	for j := range h.points {
		if j <= i-2*historyLen || j > i+historyLen {
			delete(h.points, j)
		}
	}
}

var sparkBars = []rune("▁▂▃▄▅▆▇█")

// spark draws width cells that end with interval i. If there are more intervals
// than cells, each cell shows several, always the same ones together, so that
// bars move but do not flicker.
func (h *history) spark(i, width int, value func(*point) uint64) string {
	if width <= 0 {
		return ""
	}
	per := max(1, (historyLen+width-1)/width)
	rates := make([]float64, width)
	known := make([]bool, width)
	most := 0.0
	last := i / per
	for c := range width {
		bucket := last - width + 1 + c
		var bytes uint64
		var secs float64
		for j := bucket * per; j < (bucket+1)*per && j <= i; j++ {
			if p, ok := h.points[j]; ok && j >= 0 {
				bytes += value(p)
				secs += p.seconds
			}
		}
		if secs > 0 {
			known[c] = true
			rates[c] = float64(bytes) / secs
			most = max(most, rates[c])
		}
	}
	out := make([]rune, width)
	for c := range out {
		switch {
		case !known[c] || rates[c] == 0:
			out[c] = ' '
		default:
			out[c] = sparkBars[min(int(rates[c]/most*float64(len(sparkBars))), len(sparkBars)-1)]
		}
	}
	return string(out)
}
