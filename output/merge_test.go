package output_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// merged returns what a Merger makes of intervals.
func merged(every time.Duration, ivs ...*output.Interval) (out []*output.Interval) {
	m := output.NewMerger(every)
	for _, iv := range ivs {
		if done := m.Add(iv); done != nil {
			out = append(out, done)
		}
	}
	if last := m.Flush(); last != nil {
		out = append(out, last)
	}
	return out
}

// TestMergeSums: one merged interval has the same sums as its ten parts, by every key.
func TestMergeSums(t *testing.T) {
	rng := rand.New(rand.NewPCG(41, 42))
	owners := outputtest.Owners(rng, 60)
	make := func() (ivs []*output.Interval) {
		rng := rand.New(rand.NewPCG(43, 44))
		for i := range 95 {
			iv := outputtest.BusyInterval(rng, owners, i, 0.7)
			iv.Lost = output.Lost{Records: 1, Notices: 2, Latencies: 3, Groups: 4, Bytes: 5, Walks: 6, Misses: 7, Exports: 8, Notes: 9}
			iv.Self.BPFNanos, iv.Unresolved = 11, uint64(i%7)
			iv.Events = []output.Event{{Time: iv.Start, Action: fmt.Sprint(i), VXLAN: &output.VXLAN{}}}
			ivs = append(ivs, iv)
		}
		return ivs
	}
	whole, got := make(), merged(10*time.Second, make()...)
	if len(got) != 10 {
		t.Fatalf("%d intervals of 95 seconds, want 10", len(got))
	}
	all := &output.Interval{Host: whole[0].Host}
	for _, iv := range whole {
		all.Samples = append(all.Samples, iv.Samples...)
	}
	for _, by := range []string{"host", "container", "project,device", "mount,op", "process"} {
		opt := output.GroupOptions{By: outputtest.Keys(t, by), Stacked: true}
		want := map[string]output.Usage{}
		for _, r := range output.Group(all, opt).Rows {
			want[r.ID()] = r.Total
		}
		sums := map[string]*output.Usage{}
		for _, iv := range got {
			for _, r := range output.Group(iv, opt).Rows {
				if sums[r.ID()] == nil {
					sums[r.ID()] = &output.Usage{}
				}
				sums[r.ID()].Add(&r.Total)
			}
		}
		if len(sums) != len(want) || len(want) == 0 {
			t.Errorf("by %s: %d rows, want %d", by, len(sums), len(want))
		}
		for id, w := range want {
			if s := sums[id]; s != nil && by == "mount,op" {
				// The basis is unknown for a sample with both reads and writes, and a
				// longer interval has more of those.
				s.Basis, s.BasisUnknown, w.Basis, w.BasisUnknown = output.BasisBytes{}, false, output.BasisBytes{}, false
			}
			if s := sums[id]; s == nil || fmt.Sprintf("%+v", *s) != fmt.Sprintf("%+v", w) {
				t.Errorf("by %s: %s has\n%+v, want\n%+v", by, id, s, w)
			}
		}
	}
	action := 0
	for i, iv := range got {
		first, last := whole[10*i], whole[min(10*i+9, 94)]
		n := uint64(min(10, 95-10*i))
		if !iv.Start.Equal(first.Start) || !iv.End.Equal(last.End) || iv.Host != first.Host || !reflect.DeepEqual(iv.Sources, first.Sources) {
			t.Errorf("interval %d from %v to %v", i, iv.Start, iv.End)
		}
		if want := (output.Lost{Records: n, Notices: 2 * n, Latencies: 3 * n, Groups: 4 * n, Bytes: 5 * n, Walks: 6 * n, Misses: 7 * n, Exports: 8 * n, Notes: 9 * n}); iv.Lost != want {
			t.Errorf("interval %d lost %+v, want %+v", i, iv.Lost, want)
		}
		if iv.Self.BPFNanos != 11*n || iv.Self.RSSBytes != 41<<20 || n == 10 && iv.Unresolved != 6 {
			t.Errorf("interval %d: %+v, %d cgroups without a name", i, iv.Self, iv.Unresolved)
		}
		seen := map[output.SampleKey]bool{}
		for j := range iv.Samples {
			k := output.KeyOfSample(&iv.Samples[j])
			if seen[k] {
				t.Errorf("interval %d has two samples of %+v", i, k)
			}
			seen[k] = true
		}
		for _, e := range iv.Events {
			if e.Action != fmt.Sprint(action) {
				t.Fatalf("event %s where %d belongs", e.Action, action)
			}
			action++
		}
	}
	if action != 95 {
		t.Errorf("%d events of 95", action)
	}
}

// TestMergeApart: intervals that do not belong together are not merged.
func TestMergeApart(t *testing.T) {
	at := func(from, to float64) *output.Interval {
		s := func(sec float64) time.Time { return outputtest.Start.Add(time.Duration(sec * 1e9)) }
		return &output.Interval{Start: s(from), End: s(to), Samples: []output.Sample{{Source: output.SourceBlock, Write: output.Amount{Bytes: 1, Ops: 1}}}}
	}
	other := at(1, 2)
	other.Host.Name = "web2"
	full := func(from float64, n int) *output.Interval {
		iv := at(from, from+1)
		for i := range n {
			iv.Samples = append(iv.Samples, output.Sample{Process: output.Process{PID: uint32(from)<<20 | uint32(i)}})
		}
		return iv
	}
	many := func(from float64, n int) *output.Interval {
		iv := at(from, from+1)
		iv.Events = make([]output.Event, n)
		return iv
	}
	for _, tt := range []struct {
		name string
		ivs  []*output.Interval
		want []float64 // lengths, seconds
	}{
		{"nothing", nil, nil},
		{"one", []*output.Interval{at(0, 1)}, []float64{1}},
		{"as asked", []*output.Interval{at(0, 1), at(1, 2), at(2, 3), at(3, 4)}, []float64{2, 2}},
		{"late", []*output.Interval{at(0, 1.04), at(1.04, 2.09), at(2.09, 3.11), at(3.11, 4.2)}, []float64{2.09, 2.11}},
		{"overlap of a clock that is corrected", []*output.Interval{at(0, 1), at(0.99, 2)}, []float64{2}},
		{"longer than asked", []*output.Interval{at(0, 7), at(7, 14), at(14, 15), at(15, 16)}, []float64{7, 7, 2}},
		{"gap", []*output.Interval{at(0, 1), at(1.6, 2)}, []float64{1, 0.4}},
		{"clock set back", []*output.Interval{at(5, 6), at(0, 1), at(1, 2)}, []float64{1, 2}},
		{"another machine", []*output.Interval{at(0, 1), other}, []float64{1, 1}},
		{"too many samples", []*output.Interval{full(0, output.MaxSamples-1), full(1, 5)}, []float64{1, 1}},
		{"too many events", []*output.Interval{many(0, output.MergeMaxEvents), many(1, 1)}, []float64{1, 1}},
	} {
		var lengths []float64
		for _, iv := range merged(2*time.Second, tt.ivs...) {
			lengths = append(lengths, iv.End.Sub(iv.Start).Round(time.Millisecond).Seconds())
		}
		if !slices.Equal(lengths, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, lengths, tt.want)
		}
	}
}

// TestMergeKey: samples that differ in anything except amounts and labels are not merged.
func TestMergeKey(t *testing.T) {
	amounts := []string{"Read", "Write", "Discard", "Flush", "Metadata", "MetaReadBytes", "MetaWriteBytes", "Retransmits", "Basis"}
	fill := func() *output.Sample {
		var s output.Sample
		n := uint64(0)
		outputtest.Fill(reflect.ValueOf(&s).Elem(), &n)
		return &s
	}
	want := output.KeyOfSample(fill())
	fields := 0
	var walk func(path string, index []int, typ reflect.Type)
	walk = func(path string, index []int, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			at := append(slices.Clone(index), i)
			if len(index) == 0 && slices.Contains(amounts, f.Name) || f.Name == "Labels" {
				continue
			}
			if f.Type.Kind() == reflect.Struct {
				walk(path+f.Name+".", at, f.Type)
				continue
			}
			s := fill()
			v := reflect.ValueOf(s).Elem().FieldByIndex(at)
			switch v.Kind() {
			case reflect.String:
				v.SetString("another")
			case reflect.Bool:
				v.SetBool(!v.Bool())
			default:
				v.SetUint(v.Uint() + 1)
			}
			if output.KeyOfSample(s) == want {
				t.Errorf("samples that differ in %s%s are one", path, f.Name)
			}
			fields++
		}
	}
	walk("", nil, reflect.TypeFor[output.Sample]())
	if fields < 35 {
		t.Errorf("%d fields were tried", fields)
	}
}
