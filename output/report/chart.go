package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// No charting library is used. Those for Go write fixed colours and fonts into
// every element, so that one page cannot serve light, dark and paper. They cut
// time into categories of equal width, which hides gaps. And they write names
// into SVG text themselves, while this page leaves all escaping to html/template.
// What is needed here is small: a scale, and steps from bin to bin.

// Geometry of a chart, in units of its view box.
const (
	chartWidth  = 880
	chartHeight = 260
	chartLeft   = 80
	chartRight  = 8
	chartTop    = 10
	chartBottom = 26
	chartSeries = 8 // groups with a colour of their own
)

type chartTick struct {
	Pos  string
	Text string
}

// chartShape is an area or a line; Class is its colour.
type chartShape struct {
	Class string
	Path  string
}

// chartHit is a section of time with a tooltip.
type chartHit struct {
	X, Width string
	Text     string
}

// chartSeriesRow is a row of the legend, which repeats the chart as a table.
type chartSeriesRow struct {
	Class, Name, Hint string
	Cells             []string
}

// chart is the data of one chart for the template.
type chart struct {
	ID, Title, Note, Alt string
	Width, Height        int
	Left, Right, Base    int
	YTicks, XTicks       []chartTick
	Areas, Lines         []chartShape
	Gaps                 []chartHit
	Hits                 []chartHit
	Columns              []string
	Rows                 []chartSeriesRow
	Empty                bool
}

// axis maps time to horizontal positions.
type axis struct {
	start time.Time
	scale float64 // units per second
}

func newAxis(start, end time.Time) axis {
	return axis{start: start, scale: (chartWidth - chartLeft - chartRight) / text.Seconds(end.Sub(start))}
}

func (a axis) x(t time.Time) float64 { return chartLeft + a.scale*t.Sub(a.start).Seconds() }

// num formats a coordinate briefly.
func num(v float64) string {
	s := strconv.FormatFloat(v, 'f', 1, 64)
	return strings.TrimSuffix(s, ".0")
}

// timeSteps are the possible distances between ticks.
var timeSteps = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// timeTicks marks round times between start and end.
func timeTicks(start, end time.Time, loc *time.Location) []chartTick {
	const most = 9
	length := end.Sub(start)
	step := timeSteps[len(timeSteps)-1]
	for _, s := range timeSteps {
		if length/s <= most {
			step = s
			break
		}
	}
	for length/step > most {
		step *= 2 // days
	}
	layout := "15:04"
	switch {
	case step < time.Minute:
		layout = "15:04:05"
	case step >= 24*time.Hour:
		layout = "2 Jan"
	case length > 24*time.Hour:
		layout = "2 Jan 15:04"
	}
	a := newAxis(start, end)
	local := start.In(loc)
	_, offset := local.Zone()
	shift := time.Duration(offset) * time.Second
	var ticks []chartTick
	for t := start.Add(shift).Truncate(step).Add(-shift); !t.After(end); t = t.Add(step) {
		if x := a.x(t); !t.Before(start) && x >= chartLeft+12 && x <= chartWidth-chartRight-12 {
			ticks = append(ticks, chartTick{Pos: num(x), Text: t.In(loc).Format(layout)})
		}
	}
	return ticks
}

// rateTick is a round rate in the unit of the axis.
type rateTick struct {
	value float64
	text  string
}

// rateTicks returns round rates from 0 up to the first one that is at least top.
func rateTicks(top float64) []rateTick {
	if !(top > 0) || math.IsInf(top, 1) {
		return nil
	}
	unit, u := 1.0, 0
	for top/unit >= 1000 && u < len(text.BinaryUnits)-1 {
		unit *= 1024
		u++
	}
	step := 0.0
	for _, step = range []float64{0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000} {
		if top/unit/step <= 5 {
			break
		}
	}
	var ticks []rateTick
	for i := 0; ; i++ {
		v := step * float64(i)
		label := "0"
		if i > 0 {
			label = strconv.FormatFloat(v, 'g', 6, 64) + "\u00a0" + text.BinaryUnits[u] + "B/s"
		}
		ticks = append(ticks, rateTick{v * unit, label})
		if v*unit >= top || i > 12 {
			return ticks
		}
	}
}

// rateText formats a rate for a sentence: "12.3 MiB/s".
func rateText(bytesPerSecond float64) string {
	if bytesPerSecond == 0 {
		return "0"
	}
	return spaced(text.Bytes(bytesPerSecond) + "B/s")
}

// spaced puts a no-break space between a number and its unit.
func spaced(s string) string {
	for i := range len(s) {
		if c := s[i]; c != '.' && (c < '0' || c > '9') {
			if i == 0 {
				return s
			}
			return s[:i] + "\u00a0" + s[i:]
		}
	}
	return s
}

// round removes zeros behind the point: "50.0 MiB/s" becomes "50 MiB/s".
func round(s string) string {
	number, unit, _ := strings.Cut(s, "\u00a0")
	if strings.Contains(number, ".") {
		number = strings.TrimRight(strings.TrimRight(number, "0"), ".")
	}
	if unit == "" {
		return number
	}
	return number + "\u00a0" + unit
}

// series is the data of one colour: a value for each bin.
type series struct {
	class, name, hint string
	values            []float64 // per second
	bytes             uint64
}

// frame makes an empty chart with its time axis.
func (r *Report) frame(id, title string) *chart {
	c := &chart{
		ID: id, Title: title, Width: chartWidth, Height: chartHeight,
		Left: chartLeft, Right: chartWidth - chartRight, Base: chartHeight - chartBottom,
		XTicks: timeTicks(r.start, r.end, r.opt.Location),
	}
	a := newAxis(r.start, r.end)
	for i := 1; i < len(r.bins); i++ {
		if !r.bins[i].afterGap {
			continue
		}
		from, to := r.bins[i-1].end, r.bins[i].start
		c.Gaps = append(c.Gaps, chartHit{
			X: num(a.x(from)), Width: num(max(1, a.x(to)-a.x(from))),
			Text: fmt.Sprintf("nothing recorded for %s", to.Sub(from).Round(time.Second)),
		})
	}
	return c
}

// stack draws series on top of each other, the first at the bottom.
func (r *Report) stack(id, title string, all []series) *chart {
	c := r.frame(id, title)
	n := len(r.bins)
	below := make([][]float64, len(all)+1)
	below[0] = make([]float64, n)
	top := 0.0
	for i, s := range all {
		below[i+1] = slices.Clone(below[i])
		for j, v := range s.values {
			below[i+1][j] += v
			top = max(top, below[i+1][j])
		}
	}
	ticks := rateTicks(top)
	if len(ticks) == 0 {
		c.Empty = true
		return c
	}
	ceiling := ticks[len(ticks)-1].value
	y := func(v float64) float64 { return float64(c.Base) - v/ceiling*float64(c.Base-chartTop) }
	for _, k := range ticks {
		c.YTicks = append(c.YTicks, chartTick{Pos: num(y(k.value)), Text: k.text})
	}
	for i, s := range all {
		if p := r.area(below[i], below[i+1], y); p != "" {
			c.Areas = append(c.Areas, chartShape{Class: s.class, Path: p})
		}
	}
	a := newAxis(r.start, r.end)
	for j := range r.bins {
		b := &r.bins[j]
		if below[len(all)][j] == 0 {
			continue
		}
		var t strings.Builder
		fmt.Fprintf(&t, "%s: %s", b.start.In(r.opt.Location).Format("15:04:05"), rateText(below[len(all)][j]))
		for _, s := range all {
			if s.values[j] > 0 {
				fmt.Fprintf(&t, "\n%s %s", s.name, rateText(s.values[j]))
			}
		}
		x := a.x(b.start)
		c.Hits = append(c.Hits, chartHit{X: num(x), Width: num(max(0.5, a.x(b.end)-x)), Text: t.String()})
	}
	return c
}

// area returns the path between two step curves, one piece for each section in
// which they differ.
func (r *Report) area(low, high []float64, y func(float64) float64) string {
	a := newAxis(r.start, r.end)
	var d strings.Builder
	for i := 0; i < len(r.bins); i++ {
		if high[i] <= low[i] {
			continue
		}
		first := i
		for i+1 < len(r.bins) && high[i+1] > low[i+1] && !r.bins[i+1].afterGap {
			i++
		}
		fmt.Fprintf(&d, "M%s %s", num(a.x(r.bins[first].start)), num(y(low[first])))
		for j := first; j <= i; j++ {
			// Close the fractions of a second between intervals.
			end := r.bins[j].end
			if j < i {
				end = r.bins[j+1].start
			}
			fmt.Fprintf(&d, "V%sH%s", num(y(high[j])), num(a.x(end)))
		}
		for j := i; j >= first; j-- {
			fmt.Fprintf(&d, "V%sH%s", num(y(low[j])), num(a.x(r.bins[j].start)))
		}
		d.WriteString("Z")
	}
	return d.String()
}

// lines draws latencies on a logarithmic axis, because they range from
// microseconds to seconds.
func (r *Report) lines(id, title string, all []series) *chart {
	c := r.frame(id, title)
	low, high := math.Inf(1), 0.0
	for _, s := range all {
		for _, v := range s.values {
			if v > 0 {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if high == 0 {
		c.Empty = true
		return c
	}
	from, to := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	if from == to {
		to++
	}
	y := func(v float64) float64 {
		return float64(c.Base) - (math.Log10(v)-from)/(to-from)*float64(c.Base-chartTop)
	}
	for e := from; e <= to; e++ {
		c.YTicks = append(c.YTicks, chartTick{Pos: num(y(math.Pow(10, e))), Text: round(spaced(text.Nanos(uint64(math.Pow(10, e) + 0.5))))})
	}
	a := newAxis(r.start, r.end)
	for _, s := range all {
		var d strings.Builder
		drawn := false
		for j, v := range s.values {
			b := &r.bins[j]
			if v <= 0 {
				drawn = false
				continue
			}
			if !drawn || b.afterGap {
				fmt.Fprintf(&d, "M%s %s", num(a.x(b.start)), num(y(v)))
			} else {
				fmt.Fprintf(&d, "V%s", num(y(v)))
			}
			fmt.Fprintf(&d, "H%s", num(a.x(b.end)))
			drawn = true
		}
		if d.Len() > 0 {
			c.Lines = append(c.Lines, chartShape{Class: s.class, Path: d.String()})
		}
	}
	for j := range r.bins {
		b := &r.bins[j]
		t := b.start.In(r.opt.Location).Format("15:04:05")
		any := false
		for _, s := range all {
			if s.values[j] > 0 {
				t += "\n" + s.name + " " + spaced(text.Nanos(uint64(s.values[j])))
				any = true
			}
		}
		if any {
			x := a.x(b.start)
			c.Hits = append(c.Hits, chartHit{X: num(x), Width: num(max(0.5, a.x(b.end)-x)), Text: t})
		}
	}
	return c
}

// spark draws the sparkline of a table row, 100 wide and 20 high. Each row has its
// own scale.
func (r *Report) spark(bins []readWrite) string {
	const width, height, most = 100, 20, 50
	a := newAxis(r.start, r.end)
	per := (len(r.bins) + most - 1) / most
	type point struct{ x0, x1, v float64 }
	var points []point
	top := 0.0
	for i := 0; i < len(r.bins); i += per {
		var bytes uint64
		var covered time.Duration
		last := min(i+per, len(r.bins)) - 1
		for j := i; j <= last; j++ {
			if j < len(bins) {
				bytes += bins[j].read + bins[j].write
			}
			covered += r.bins[j].covered
		}
		p := point{a.x(r.bins[i].start), a.x(r.bins[last].end), float64(bytes) / text.Seconds(covered)}
		p.x0 = (p.x0 - chartLeft) / (chartWidth - chartLeft - chartRight) * width
		p.x1 = (p.x1 - chartLeft) / (chartWidth - chartLeft - chartRight) * width
		top = max(top, p.v)
		points = append(points, p)
	}
	if top == 0 {
		return ""
	}
	var d strings.Builder
	for _, p := range points {
		if p.v > 0 {
			// At least one unit high, so that little does not look like nothing.
			fmt.Fprintf(&d, "M%s %dV%sH%sV%dZ", num(p.x0), height, num(height-max(1, p.v/top*height)), num(max(p.x1, p.x0+0.6)), height)
		}
	}
	return d.String()
}
