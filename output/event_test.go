package output_test

import (
	"slices"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// TestEventString: events are sentences that need no manual.
func TestEventString(t *testing.T) {
	web := output.Sample{Source: output.SourceBlock, Owner: output.OwnerContainer, Container: output.Container{ID: "aaaa", Name: "web-1"}, Device: output.Device{Name: "sda"}}
	wrote, flushed := web, web
	wrote.Write = output.Amount{Bytes: 4096, Ops: 1}
	flushed.Flush = output.Amount{Ops: 1}
	for _, tt := range []struct {
		event output.Event
		want  string
	}{
		{output.Event{IO: &output.IO{Sample: wrote, Op: "write", Latency: 1_200_000}}, "block write of 4.00KiB to sda by web-1, took 1.20ms"},
		{output.Event{IO: &output.IO{Sample: flushed, Op: "flush", Error: true}}, "block flush on sda by web-1, failed"},
		{output.Event{Action: "moved", VXLAN: &output.VXLAN{Device: "vx0", VNI: 7, NetNS: 5, NewNetNS: 6, Services: []string{"web"}, Process: output.Process{PID: 9, Name: "dockerd"}, Owner: &web}},
			"vxlan moved vx0, vni 7, service web, from netns 5 to 6, by dockerd[9] in web-1"},
		{output.Event{Action: "deleted", VXLAN: &output.VXLAN{Device: "vx0", NewNetNS: 6, Owner: &web}}, "vxlan deleted vx0, to netns 6, by web-1"},
		{output.Event{Action: "new\nline"}, `new\nline`},
	} {
		if got := tt.event.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestLostWords: losses are named in words that agree with their number.
func TestLostWords(t *testing.T) {
	one := output.Lost{Records: 1, Notices: 1, Latencies: 1, Groups: 1, Walks: 1, Notes: 1, Misses: 1, Exports: 1}
	two := one
	two.Add(&one)
	two.Bytes = 2048
	for _, tt := range []struct {
		lost output.Lost
		want []string
	}{
		{output.Lost{}, nil},
		{one, []string{"1 skipped program run", "1 request counted as (other)", "1 request with too many owners", "1 note about a writer", "1 event record", "1 kernel event", "1 latency", "1 document not delivered"}},
		{two, []string{"2.00KiB of the totals", "2 skipped program runs", "2 requests counted as (other)", "2 requests with too many owners", "2 notes about writers", "2 event records", "2 kernel events", "2 latencies", "2 documents not delivered"}},
	} {
		if got := tt.lost.Words(); !slices.Equal(got, tt.want) {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
