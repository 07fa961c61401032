// Command worker is PID 1 of the guests and every process in them that does I/O.
// The tests' own program can be both too, and is on machines used in place of a
// guest. But it links everything that tests need and starts slowly on an emulated
// processor, and a scenario starts many workers.
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
