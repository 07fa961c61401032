package text

import (
	"math"
	"strconv"
	"time"
)

// NumberWidth is the most terminal cells that a rate or latency takes: "1023Mi",
// "99.9Mi". Read and write of three sources must fit into 80 columns.
const NumberWidth = 6

// None means that nothing happened. A 0 means requests without bytes.
const None = "-"

var (
	// BinaryUnits are the prefixes of powers of 1024.
	BinaryUnits  = []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	decimalUnits = []string{"", "k", "M", "G", "T", "P", "E"}
)

// scaled formats v with three significant digits and a unit.
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

// Count formats a number of things in decimal units: "12.3k".
func Count(n float64) string { return scaled(n, 1000, decimalUnits) }

// Bytes formats bytes, or bytes per second, in binary units without the "B":
// "12.3Mi".
func Bytes(v float64) string { return scaled(v, 1024, BinaryUnits) }

// PerSecond formats the rate of bytes in d in binary units: "12.3Mi" is 12.3 MiB/s.
func PerSecond(bytes uint64, d time.Duration) string {
	if bytes == 0 {
		return None
	}
	return scaled(float64(bytes)/Seconds(d), 1024, BinaryUnits)
}

// OpsPerSecond formats the rate of operations in d in decimal units: "1.20k".
func OpsPerSecond(ops uint64, d time.Duration) string {
	if ops == 0 {
		return None
	}
	return scaled(float64(ops)/Seconds(d), 1000, decimalUnits)
}

// Size formats a number of bytes in binary units: "12.3MiB".
func Size(bytes uint64) string {
	return scaled(float64(bytes), 1024, BinaryUnits) + "B"
}

// Nanos formats a latency in nanoseconds: "340us", "1.25ms", "12.3s".
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

// Percent formats part as a share of whole: "12.3 %".
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

// Seconds returns d in seconds, at least 0.001: rates divide by it.
func Seconds(d time.Duration) float64 {
	return max(d.Seconds(), 1e-3)
}

// Plural writes n with the form of its noun that agrees: "1 latency",
// "2 latencies", "0 latencies".
func Plural[N int | uint64](n N, one, many string) string {
	if n == 1 {
		many = one
	}
	return strconv.FormatUint(uint64(n), 10) + " " + many
}
