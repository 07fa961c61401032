package output

// What the tests look at from outside of the package.
type SampleKey = sampleKey

var (
	TruncateCgroup = truncateCgroup
	KeyOfSample    = keyOfSample
)

const MergeMaxEvents = mergeMaxEvents
