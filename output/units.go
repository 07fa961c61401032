package output

import (
	"math"
	"strconv"
	"time"
)

// The numbers of tables are at most six cells wide, so that read and write of
// three sources fit side by side into 80 columns: "1023Mi", "99.9Mi", "1.50Gi".

// noValue stands for "nothing happened"; a 0 says that something did, of no size.
const noValue = "-"

var (
	binaryUnits  = []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	decimalUnits = []string{"", "k", "M", "G", "T", "P", "E"}
)

// scaled writes v with three significant digits and a unit.
func scaled(v, base float64, units []string) string {
	if v < 0 || math.IsNaN(v) {
		return noValue
	}
	i := 0
	// 0.5 below the base: what would round up to it belongs to the next unit.
	for v >= base-0.5 && i < len(units)-1 {
		v /= base
		i++
	}
	switch {
	case v >= 99.95 || i == 0 && v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64) + units[i]
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64) + units[i]
	}
	return strconv.FormatFloat(v, 'f', 2, 64) + units[i]
}

// perSecond writes bytes in d as a rate in binary units: "12.3Mi" is 12.3 MiB/s.
func perSecond(bytes uint64, d time.Duration) string {
	if bytes == 0 {
		return noValue
	}
	return scaled(float64(bytes)/seconds(d), 1024, binaryUnits)
}

// opsPerSecond writes operations in d as a rate in decimal units.
func opsPerSecond(ops uint64, d time.Duration) string {
	if ops == 0 {
		return noValue
	}
	return scaled(float64(ops)/seconds(d), 1000, decimalUnits)
}

// sizeText writes a number of bytes in binary units: "12.3MiB".
func sizeText(bytes uint64) string {
	return scaled(float64(bytes), 1024, binaryUnits) + "B"
}

// nanosText writes a latency: "340us", "1.25ms", "12.3s".
func nanosText(ns uint64) string {
	if ns == 0 {
		return noValue
	}
	v, unit := float64(ns), "ns"
	for _, next := range []string{"us", "ms", "s"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, next
	}
	switch {
	case v >= 99.95 || unit == "ns":
		return strconv.FormatFloat(v, 'f', 0, 64) + unit
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64) + unit
	}
	return strconv.FormatFloat(v, 'f', 2, 64) + unit
}

// percentText writes part of whole as a share.
func percentText(part, whole float64) string {
	if whole <= 0 || part <= 0 {
		return "0 %"
	}
	p := 100 * part / whole
	if p > 0 && p < 0.1 {
		return "<0.1 %"
	}
	return strconv.FormatFloat(p, 'f', 1, 64) + " %"
}

// seconds is d in seconds, never zero: an interval cut short still has a length.
func seconds(d time.Duration) float64 {
	return max(d.Seconds(), 1e-3)
}
