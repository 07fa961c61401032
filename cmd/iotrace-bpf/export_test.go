package main

import (
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
)

// fakeExporter keeps what leaves the host as a server does: one document of an id.
type fakeExporter struct {
	server map[string]uint64 // bytes by id
	ends   []time.Time
	late   bool // another instance is first
}

func (f *fakeExporter) export(summary *output.Summary, iv *output.Interval) error {
	f.ends = append(f.ends, iv.End)
	i := 0
	for d := range ndjson.Documents(summary, iv, ndjson.Options{}) {
		if d.Dataset == output.DatasetIO {
			if _, ok := f.server[d.ID]; !ok {
				f.server[d.ID] = summary.Rows[i].Total.Write.Bytes
			}
			i++
		}
	}
	return nil
}

func (f *fakeExporter) covered() bool { return f.late }
func (f *fakeExporter) Close() error  { return nil }

// TestExportSink: intervals as they are read, at odd times, leave the host in intervals
// of the clock, without a byte lost or added, while another instance that was started
// later, reads at other times and shows other rows does the same.
func TestExportSink(t *testing.T) {
	server := map[string]uint64{}
	opened := func(late bool, args ...string) (*exportSink, *fakeExporter) {
		var o options
		if err := o.parse(append(args, "--elasticsearch", "http://127.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		f := &fakeExporter{server: server, late: late}
		return newExportSink(&o, true, f), f
	}
	first, a := opened(false, "--by", "process")
	second, b := opened(true, "--by", "project,op", "--top", "1")
	begin := time.Date(2026, 3, 4, 5, 6, 3, 250e6, time.UTC)
	// run feeds a sink from start to end; the I/O is in the middle of each second.
	run := func(s *exportSink, start, end time.Time, step time.Duration) (total uint64) {
		for at := start; at.Before(end); {
			// As the main loop does, it also reads when the clock shows ten seconds.
			next := at.Add(step)
			if full := at.Truncate(10 * time.Second).Add(10 * time.Second); full.Before(next) {
				next = full.Add(3 * time.Millisecond)
			}
			iv := &output.Interval{Start: at, End: next, Host: output.Host{Name: "web1", ID: "1"}}
			for middle := at.Truncate(time.Second).Add(500 * time.Millisecond); middle.Before(next); middle = middle.Add(time.Second) {
				if middle.Before(at) {
					continue
				}
				for i, name := range []string{"db", "web"} {
					n := uint64(middle.Second()*1000 + i)
					total += n
					iv.Samples = append(iv.Samples, output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer,
						Container: output.Container{ID: name, Name: name}, Process: output.Process{PID: uint32(middle.Second()), Name: "dd"},
						Device: output.Device{ID: "8:0", Name: "sda"}, Write: output.Amount{Bytes: n, Ops: 1}})
				}
			}
			if err := s.Write(nil, iv); err != nil {
				t.Fatal(err)
			}
			at = next
		}
		return total
	}
	end := begin.Add(65 * time.Second)
	want := run(first, begin, end, 700*time.Millisecond)
	run(second, begin.Add(14*time.Second), end.Add(-8*time.Second), 1300*time.Millisecond)
	for _, s := range []*exportSink{second, first} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var got uint64
	for _, n := range server {
		got += n
	}
	if got != want {
		t.Errorf("the server has %d bytes, want %d", got, want)
	}
	for i, at := range a.ends {
		if whole := at.Equal(at.Truncate(10 * time.Second)); whole != (i < len(a.ends)-1) {
			t.Errorf("interval %d of %d ends at %v", i, len(a.ends), at)
		}
	}
	if len(a.ends) != 7 || len(b.ends) != 5 {
		t.Errorf("exported until %v and %v", a.ends, b.ends)
	}
}
