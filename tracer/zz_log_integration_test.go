//go:build integration

package tracer

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

func TestZZLog(t *testing.T) {
	tr := open(t, Options{Latency: true})
	l, err := tr.core.loader()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spec func() (*ebpf.CollectionSpec, error)
		hks  []hook
	}{
		{bpf.LoadBlock, []hook{
			{kind: btfTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssueBtf},
			{kind: btfTracepoint, target: "block_rq_complete", program: bpf.BlockProgIotRqCompleteBtf},
		}},
		{bpf.LoadFUSE, []hook{
			{kind: rawTracepoint, target: "fuse_request_send", program: bpf.FUSEProgIotFuseRequestSend},
			{kind: rawTracepoint, target: "fuse_request_end", program: bpf.FUSEProgIotFuseRequestEnd},
			{kind: rawTracepoint, target: "fuse_request_end", program: bpf.FUSEProgIotFuseRequestEndSecond},
		}},
	} {
		spec, err := c.spec()
		if err != nil {
			t.Fatal(err)
		}
		programs, maps, err := l.makeMaps(nil, spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, hk := range c.hks {
			p, err := l.loadProgram(spec, programs, hk, maps, ebpf.ProgramOptions{LogLevel: ebpf.LogLevelBranch | ebpf.LogLevelInstruction | ebpf.LogLevelStats, LogSizeStart: 64 << 20})
			if err != nil {
				t.Error(err)
				continue
			}
			os.WriteFile("/tmp/vlog-"+hk.program, []byte(p.VerifierLog), 0o644)
			insn := regexp.MustCompile(`^\d+: \([0-9a-f]{2}\)`)
			cur := "main"
			n := map[string]int{}
			var order []string
			for _, line := range strings.Split(p.VerifierLog, "\n") {
				if strings.HasPrefix(line, "Validating ") {
					cur = strings.Fields(line)[1]
				}
				if insn.MatchString(line) {
					if n[cur] == 0 {
						order = append(order, cur)
					}
					n[cur]++
				}
				if strings.HasPrefix(line, "processed") || strings.HasPrefix(line, "verification time") {
					fmt.Println(line)
				}
			}
			fmt.Println(hk.program)
			for _, o := range order {
				fmt.Println("   ", n[o], o)
			}
		}
	}
}
