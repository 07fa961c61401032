// Command worker is PID 1 of the guests and every process in them that does I/O.
// The tests' own program can be both as well, and is on machines that stand in for
// a guest; but it links all that tests need, whose start an emulated processor
// feels, and a scenario starts many workers.
package main

import (
	"fmt"
	"os"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

func main() {
	guest.Main()
	fmt.Fprintln(os.Stderr, "worker: this runs in the guests of vmtests only")
	os.Exit(2)
}
