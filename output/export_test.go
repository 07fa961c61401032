package output

// For the tests in package output_test.
type SampleKey = sampleKey

var (
	TruncateCgroup = truncateCgroup
	KeyOfSample    = keyOfSample
)

const MergeMaxEvents = mergeMaxEvents
