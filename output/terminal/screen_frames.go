package terminal

import (
	"fmt"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// Timeline is the intervals that a screen can show, numbered from the first
// that ever was. Those that are no longer kept are not in bounds.
type Timeline interface {
	// Bounds returns the first and one past the last interval there is.
	Bounds() (first, end int)
	// Frame returns interval i. It is never nil without an error.
	Frame(i int) (*output.Interval, error)
	// Span tells when interval i began and ended.
	Span(i int) (start, end time.Time)
}

// What a live screen keeps to go back in time: a quarter of an hour at one
// interval a second, less on hosts where an interval holds thousands of
// samples. A sample takes 1 to 3 KB.
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
		l.kept[0] = nil // append moves the slice's start, not its memory
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

// history holds what sparklines are drawn from: bytes of every group in the
// last intervals.
type history struct {
	points map[int]*point
}

type point struct {
	rows    map[string]uint64 // bytes by row id
	total   uint64
	seconds float64
}

// historyLen is how many intervals sparklines reach back, and historyRows how
// many groups of each are kept, the largest ones.
const (
	historyLen  = 120
	historyRows = 500
)

func (h *history) clear() { h.points = make(map[int]*point) }

// put notes what a report says of interval i.
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

// forget drops what is too old to be drawn at interval i, or too far ahead.
func (h *history) forget(i int) {
	for j := range h.points {
		if j <= i-2*historyLen || j > i+historyLen {
			delete(h.points, j)
		}
	}
}

var sparkBars = []rune("▁▂▃▄▅▆▇█")

// spark draws width cells that end with interval i. Cells hold several
// intervals where more are kept than there is room, always the same ones, so
// that bars move but do not flicker.
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
