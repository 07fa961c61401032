package output

import "slices"

// Merge adds o to l. Only buckets with equal bounds are added up, so that
// quantiles of the sum are as precise as those of the parts.
func (l *Latency) Merge(o *Latency) {
	l.Sum += o.Sum
	l.Max = max(l.Max, o.Max)
	if len(o.Buckets) == 0 {
		return
	}
	// Usually l has all bounds of o already, which needs no memory.
	i, missing := 0, 0
	for _, b := range o.Buckets {
		for i < len(l.Buckets) && l.Buckets[i].UpTo < b.UpTo {
			i++
		}
		if i == len(l.Buckets) || l.Buckets[i].UpTo != b.UpTo {
			missing++
			continue
		}
		l.Buckets[i].Count += b.Count
	}
	if missing == 0 {
		return
	}
	merged := make([]Bucket, 0, len(l.Buckets)+missing)
	i = 0
	for _, b := range o.Buckets {
		for i < len(l.Buckets) && l.Buckets[i].UpTo < b.UpTo {
			merged = append(merged, l.Buckets[i])
			i++
		}
		if i == len(l.Buckets) || l.Buckets[i].UpTo != b.UpTo {
			merged = append(merged, b)
		}
	}
	l.Buckets = append(merged, l.Buckets[i:]...)
}

func (l Latency) clone() Latency {
	l.Buckets = slices.Clone(l.Buckets)
	return l
}

// Count returns how many latencies the histogram holds.
func (l Latency) Count() uint64 {
	var n uint64
	for _, b := range l.Buckets {
		n += b.Count
	}
	return n
}

// Quantile returns, in nanoseconds, the upper bound of the bucket with quantile q
// (0 to 1), but never more than the exact maximum. At least the share q of all
// latencies is not longer. It returns 0 if the histogram is empty.
func (l Latency) Quantile(q float64) uint64 {
	n := l.Count()
	if n == 0 {
		return 0
	}
	rank := uint64(q * float64(n))
	if float64(rank) < q*float64(n) {
		rank++
	}
	rank = min(max(rank, 1), n)
	var seen uint64
	for _, b := range l.Buckets {
		if seen += b.Count; seen >= rank {
			if l.Max != 0 {
				return min(b.UpTo, l.Max)
			}
			return b.UpTo
		}
	}
	return l.Max
}
