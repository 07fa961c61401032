package output

// For the tests in package output_test.
var TruncateCgroup = truncateCgroup

const MergeMaxEvents = mergeMaxEvents
