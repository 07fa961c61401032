package text

import (
	"math"
	"strconv"
	"time"
)

// NumberWidth is the most terminal cells that a number of this package takes, so
// that read and write of three sources fit side by side into 80 columns:
// "1023Mi", "99.9Mi", "1.50Gi".
const NumberWidth = 6

// None stands for "nothing happened"; a 0 says that something did, of no size.
const None = "-"

var (
	BinaryUnits  = []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	decimalUnits = []string{"", "k", "M", "G", "T", "P", "E"}
)

// scaled writes v with three significant digits and a unit.
func scaled(v, base float64, units []string) string {
	if v < 0 || math.IsNaN(v) {
		return None
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

// Count writes a number of things in decimal units: "12.3k".
func Count(n float64) string { return scaled(n, 1000, decimalUnits) }

// Bytes writes a number of bytes, or of bytes per second, in binary units
// and without a letter for them: "12.3Mi".
func Bytes(v float64) string { return scaled(v, 1024, BinaryUnits) }

// PerSecond writes bytes in d as a rate in binary units: "12.3Mi" is 12.3 MiB/s.
func PerSecond(bytes uint64, d time.Duration) string {
	if bytes == 0 {
		return None
	}
	return scaled(float64(bytes)/Seconds(d), 1024, BinaryUnits)
}

// OpsPerSecond writes operations in d as a rate in decimal units.
func OpsPerSecond(ops uint64, d time.Duration) string {
	if ops == 0 {
		return None
	}
	return scaled(float64(ops)/Seconds(d), 1000, decimalUnits)
}

// Size writes a number of bytes in binary units: "12.3MiB".
func Size(bytes uint64) string {
	return scaled(float64(bytes), 1024, BinaryUnits) + "B"
}

// Nanos writes a latency: "340us", "1.25ms", "12.3s".
func Nanos(ns uint64) string {
	if ns == 0 {
		return None
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

// Percent writes part of whole as a share.
func Percent(part, whole float64) string {
	if whole <= 0 || part <= 0 {
		return "0 %"
	}
	p := 100 * part / whole
	if p > 0 && p < 0.1 {
		return "<0.1 %"
	}
	return strconv.FormatFloat(p, 'f', 1, 64) + " %"
}

// Seconds is d in seconds, never zero: an interval cut short still has a length.
func Seconds(d time.Duration) float64 {
	return max(d.Seconds(), 1e-3)
}
