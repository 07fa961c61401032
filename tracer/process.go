package tracer

import (
	"bytes"
	"fmt"
	"os"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// Comm returns the name of a process that did I/O, also when it is gone; "" when
// nobody noted it. It needs Options.ByProcess.
func (t *Tracer) Comm(pid uint32) string {
	var c bpf.HostComm
	if err := t.host.shared[bpf.HostMapComms].Lookup(pid, &c); err == nil {
		name := make([]byte, 0, len(c.Name))
		for _, b := range c.Name {
			if b == 0 {
				break
			}
			name = append(name, byte(b))
		}
		return string(name)
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(name, []byte("\n")))
}
