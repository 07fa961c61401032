package tracer

// bucketUpTo returns the largest latency in ns of a bucket of struct
// latency_key: four buckets to a power of two, from 4 ns on.
func bucketUpTo(bucket uint32) uint64 {
	if bucket < 8 {
		// 0..3 are exact; 4..7 are not in use: 4 ns is in bucket 8.
		return uint64(bucket)
	}
	log, quarter := bucket>>2, uint64(bucket&3)
	return 1<<log + (quarter+1)<<(log-2) - 1
}
