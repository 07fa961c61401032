//go:build integration

package tracer

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"
)

// processor returns the CPU time that this process has used, seconds in user mode and
// in the kernel.
func processor(tb testing.TB) (user, system float64) {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(u.Utime), seconds(u.Stime)
}

// BenchmarkStart attaches everything that this kernel offers. Besides the time on the
// wall it reports CPU time: user mode is mostly reading types and relocating programs,
// the kernel's is mostly the verifier.
func BenchmarkStart(b *testing.B) {
	for _, bc := range []struct {
		name string
		opt  Options
	}{
		{"default", Options{Latency: true}},
		{"process", Options{Latency: true, ByProcess: true}},
		{"block", Options{Latency: true, Sources: []string{"block"}}},
		{"no-latency", Options{}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			u0, s0 := processor(b)
			for b.Loop() {
				tr, err := New(bc.opt)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := tr.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			u1, s1 := processor(b)
			b.ReportMetric((u1-u0)*1e3/float64(b.N), "user-ms/op")
			b.ReportMetric((s1-s0)*1e3/float64(b.N), "system-ms/op")
		})
	}
}

// TestVerified prints how many instructions the verifier processed for each program
// that this kernel loads: most of a start is spent there. A program that grows out of
// proportion shows in the table; one that the verifier gave up on fails.
func TestVerified(t *testing.T) {
	counts := map[string]uint32{}
	for _, opt := range []Options{
		{Latency: true},
		{Latency: true, ByProcess: true, ByMount: true, App: true, Records: func([]Record) {}},
	} {
		tr, err := New(opt)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range tr.attached() {
			info, err := a.program.Info()
			if err != nil {
				t.Fatal(err)
			}
			n, ok := info.VerifiedInstructions()
			if !ok {
				t.Fatal("this kernel does not count verified instructions")
			}
			counts[a.hook.program] = max(counts[a.hook.program], n)
		}
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var sum uint32
	table := ""
	for _, name := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	}) {
		sum += counts[name]
		table += fmt.Sprintf("%7d %s\n", counts[name], name)
	}
	t.Logf("instructions processed by the verifier:\n%7d all\n%s", sum, table)
}
