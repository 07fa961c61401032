package text

// Scaled is scaled, for the tests in package text_test.
var Scaled = scaled
