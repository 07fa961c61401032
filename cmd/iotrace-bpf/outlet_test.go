package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
)

// stuckSink hangs in every call until it is let go.
type stuckSink struct {
	fakeSink
	free chan struct{}
}

func (s *stuckSink) Write(summary *output.Summary, iv *output.Interval) error {
	<-s.free
	return s.fakeSink.Write(summary, iv)
}

func (s *stuckSink) Close() error { <-s.free; return nil }

// TestStuckOutput: whichever output hangs, the others get every interval, the run waits
// for patience once, and the end for lastTime. What was dropped is counted, in the
// intervals of every output and at the end.
func TestStuckOutput(t *testing.T) {
	const intervals = 100
	for _, which := range []string{"main", "other"} {
		t.Run(which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				stuck, healthy := &stuckSink{free: make(chan struct{})}, &fakeSink{}
				main, other := sink(stuck), sink(healthy)
				if which == "other" {
					main, other = healthy, stuck
				}
				s := newSinks(ctx, main, true, slog.New(slog.DiscardHandler))
				s.add("other", other)
				begin := time.Now()
				for range intervals {
					if err := s.write(&output.Summary{}, &output.Interval{Lost: output.Lost{Records: 1}}); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(begin); took != patience { // of the bubble's clock
					t.Errorf("the run waited %v, want %v", took, patience)
				}
				synctest.Wait()
				if got := len(healthy.exports); got != intervals {
					t.Errorf("the other output got %d intervals of %d", got, intervals)
				}
				// One is being written, maxWaiting wait.
				// The loss of the last one may be in an interval that does not come any more.
				if got := healthy.sum(); got != intervals-maxWaiting-1 && got != intervals-maxWaiting-2 {
					t.Errorf("losses of %d", got)
				}
				cancel()
				begin = time.Now()
				err := s.Close()
				if took := time.Since(begin); took != lastTime || err == nil || !strings.Contains(err.Error(), " is stuck: 100 intervals may be missing in it") {
					t.Errorf("closing took %v: %v", took, err)
				}
				close(stuck.free)
				synctest.Wait()
				if len(stuck.exports) != maxWaiting+1 {
					t.Errorf("afterwards the output got %d intervals", len(stuck.exports))
				}
			})
		})
	}
}

// TestCarriedLosses: an output that comes back learns from its next interval what the
// dropped ones had lost.
func TestCarriedLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &keepLost{stuckSink: stuckSink{free: make(chan struct{})}}
		s := newSinks(t.Context(), &fakeSink{}, true, slog.New(slog.DiscardHandler))
		s.add("slow", slow)
		write := func() {
			if err := s.write(&output.Summary{}, &output.Interval{Lost: output.Lost{Records: 1, Bytes: 10}}); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			write()
		}
		close(slow.free)
		synctest.Wait()
		write()
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), "slow was too slow: 11 intervals are missing in it") {
			t.Errorf("closing: %v", err)
		}
		if want := (output.Lost{Records: 21, Bytes: 210, Exports: 11}); slow.sum != want {
			t.Errorf("losses %+v, want %+v", slow.sum, want)
		}
	})
}

type keepLost struct {
	stuckSink
	sum output.Lost
}

func (s *keepLost) Write(summary *output.Summary, iv *output.Interval) error {
	s.sum.Add(&iv.Lost)
	return s.stuckSink.Write(summary, iv)
}

// TestSlowReplay: a recording waits for its outputs, so that nothing is dropped, but not
// when the user wants to end.
func TestSlowReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		main, slow := &fakeSink{}, &stuckSink{free: make(chan struct{})}
		s := newSinks(ctx, main, false, slog.New(slog.DiscardHandler))
		s.add("slow", slow)
		go func() {
			for range 50 {
				time.Sleep(time.Hour)
				slow.free <- struct{}{}
			}
			time.Sleep(time.Hour)
			cancel()
		}()
		for range 50 {
			if err := s.write(&output.Summary{}, &output.Interval{}); err != nil {
				t.Fatal(err)
			}
		}
		if len(slow.exports) != 50 || len(main.exports) != 50 {
			t.Errorf("%d and %d intervals", len(slow.exports), len(main.exports))
		}
		if err := s.write(&output.Summary{}, &output.Interval{}); err != nil || ctx.Err() == nil {
			t.Errorf("%v, %v", err, ctx.Err())
		}
		close(slow.free)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestStuckPipe writes to a full pipe that nobody reads, with intervals as large as they
// are on a host with many cgroups. Memory has a bound.
func TestStuckPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	var opt options
	if err := opt.parse([]string{"--output", "ndjson", "--record", filepath.Join(t.TempDir(), "recording")}); err != nil {
		t.Fatal(err)
	}
	s, err := opt.openSinks(t.Context(), ndjson.New(w, opt.documents()), output.Host{}, live, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	write := func(n int) {
		for range n {
			iv := &output.Interval{Start: time.Now(), End: time.Now()}
			for range 4096 {
				iv.Samples = append(iv.Samples, output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerUnit, Unit: strings.Repeat("u", 64), Write: output.Amount{Bytes: 1, Ops: 1}})
			}
			if err := s.write(output.Group(iv, opt.group), iv); err != nil {
				t.Fatal(err)
			}
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	write(30) // the queue is full
	before := heap()
	write(100)
	const room = 16 << 20 // an interval is 4 MiB
	if after := heap(); after > before+room {
		t.Errorf("memory grew from %d to %d bytes", before, after)
	}
	r.Close() // the reader is gone: the write fails
	<-s.main.failed
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "intervals are missing") {
		t.Errorf("closing: %v", err)
	}
	if got := s.others[0].dropped; got != 0 {
		t.Errorf("the recording lacks %d intervals", got)
	}
}

// TestOutletsShareIntervals runs every kind of output on the same intervals, for the race
// detector.
func TestOutletsShareIntervals(t *testing.T) {
	dir := t.TempDir()
	var opt options
	if err := opt.parse([]string{"--output", "table", "--by", "container,device", "--top", "2", "--accumulate", "--prometheus", "127.0.0.1:0", "--elasticsearch", "http://127.0.0.1:1",
		"--record", filepath.Join(dir, "recording"), "--report", filepath.Join(dir, "report")}); err != nil {
		t.Fatal(err)
	}
	var stdout syncBuffer
	s, err := opt.openSinks(t.Context(), opt.printer(&stdout), output.Host{}, live, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for i := range 20 {
		iv := &output.Interval{Start: start.Add(time.Duration(i) * time.Second), End: start.Add(time.Duration(i+1) * time.Second)}
		for j := range 10 {
			l := output.Latency{Buckets: []output.Bucket{{UpTo: 1024, Count: 1}}, Sum: 1000, Max: 1000}
			iv.Samples = append(iv.Samples, output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerUnit, Unit: strings.Repeat("u", 1+j),
				Write: output.Amount{Bytes: uint64(j), Ops: 1, Latency: l}})
		}
		if err := s.write(output.Group(iv, opt.group), iv); err != nil {
			t.Fatal(err)
		}
	}
	err = s.Close()
	if err == nil || !strings.Contains(err.Error(), "documents were not delivered and are lost") || strings.Contains(err.Error(), "missing") {
		t.Errorf("closing: %v", err)
	}
	if n := strings.Count(stdout.String(), "TOTAL"); n < 20 {
		t.Errorf("%d tables", n)
	}
}

// syncBuffer is a buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var _ io.Writer = (*syncBuffer)(nil)
