package text

// Scaled is scaled, for the tests.
var Scaled = scaled
