// Package vm boots distribution kernels in QEMU: it finds them on the machine's
// own Debian mirror, builds the root file system they run on, starts the virtual
// machine and says whether its kernel stayed in one piece. It knows nothing of
// the tests that run inside; package vmtests does.
package vm
