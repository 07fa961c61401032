package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

// fakeSink keeps the losses in the intervals it gets, and fails when a test wants it to.
type fakeSink struct {
	exports []uint64
	fail    func(n int) error
}

func (s *fakeSink) Write(_ *output.Summary, iv *output.Interval) error {
	s.exports = append(s.exports, iv.Lost.Exports)
	if s.fail == nil {
		return nil
	}
	return s.fail(len(s.exports))
}

func (s *fakeSink) Close() error { return nil }

// laterSink loses documents some time after it took them.
type laterSink struct {
	fakeSink
	n uint64
}

func (s *laterSink) lost() uint64 { return s.n }

func (s *fakeSink) sum() (n uint64) {
	for _, e := range s.exports {
		n += e
	}
	return n
}

// TestSinksLosses: every output reports the loss of one output once, also the ones
// that write before it.
func TestSinksLosses(t *testing.T) {
	early, main := &fakeSink{}, &fakeSink{}
	failing := &fakeSink{fail: func(n int) error {
		if n%2 == 0 {
			return errors.New("no room")
		}
		return nil
	}}
	later := &laterSink{}
	var log bytes.Buffer
	s := newSinks(t.Context(), main, false, slog.New(slog.NewTextHandler(&log, nil)))
	s.add("early", early)
	s.add("failing", failing)
	s.add("later", later)
	for i := range 10 {
		if i == 3 {
			later.n += 7 // between two intervals
		}
		iv := &output.Interval{}
		if i == 5 {
			iv.Lost.Exports = 100 // a recording says that its own run lost these
		}
		if err := s.write(&output.Summary{}, iv); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.write(&output.Summary{}, &output.Interval{}); err != nil {
		t.Fatal(err)
	}
	const want = 100 + 5 + 7
	for name, k := range map[string]*fakeSink{"early": early, "failing": failing, "later": &later.fakeSink, "main": main} {
		if got := k.sum(); got != want {
			t.Errorf("intervals of %s have %d losses, want %d: %v", name, got, want, k.exports)
		}
	}
	if main.exports[3] != 1+7 {
		t.Errorf("intervals of main have %v", main.exports)
	}
	if n := strings.Count(log.String(), "no room"); n != 1 {
		t.Errorf("%d warnings within a minute", n)
	}
}

// TestSinksMainFails: without its main output a run ends.
func TestSinksMainFails(t *testing.T) {
	other := &fakeSink{}
	s := newSinks(t.Context(), &fakeSink{fail: func(int) error { return io.ErrClosedPipe }}, false, slog.New(slog.DiscardHandler))
	s.add("other", other)
	if err := s.write(&output.Summary{}, &output.Interval{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
	if len(other.exports) != 1 {
		t.Error("the other output did not get the interval")
	}
}

// TestServerNeverThere: for a whole run no server answers. Memory stays within
// bounds, and every document that was not delivered is counted, in the documents
// of standard output as well as at the end.
func TestServerNeverThere(t *testing.T) {
	var opt options
	if err := opt.parse([]string{"--output", "ndjson", "--by", "container", "--export-by", "container", "--export-interval", "1s", "--elasticsearch", "http://127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	s, err := opt.openSinks(t.Context(), opt.printer(&stdout), output.Host{}, "a recording", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	es := s.others[0].sink.(*exportSink).exporter.(*elasticsearchSink).es
	iv := &output.Interval{}
	for i := range 200 {
		iv.Samples = append(iv.Samples, output.Sample{
			Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer, Container: output.Container{ID: fmt.Sprintf("%064x", i), Name: fmt.Sprint("web-", i)},
			Device: output.Device{ID: "8:0", Name: "sda"}, Write: output.Amount{Bytes: 4096, Ops: 1},
		})
	}
	const limit = 32 << 20 // the queue of elastic.Options
	for start := time.Now().Truncate(time.Second); ; {
		iv.Start, iv.End, iv.Lost = start, start.Add(time.Second), output.Lost{}
		if err := s.write(output.Group(iv, opt.group), iv); err != nil {
			t.Fatal(err)
		}
		st := es.Stats()
		if st.QueueBytes > limit {
			t.Fatalf("%d bytes in the queue", st.QueueBytes)
		}
		if start = iv.End; st.Dropped > 1000 {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = es.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "documents were not delivered and are lost") {
		t.Errorf("closing: %v", err)
	}
	// One more interval, which the server does not get: it has the remaining losses.
	iv.Start, iv.End, iv.Lost = iv.End, iv.End.Add(time.Second), output.Lost{}
	if err := s.write(output.Group(iv, opt.group), iv); err != nil {
		t.Fatal(err)
	}
	var exports, docs uint64
	for line := range strings.Lines(stdout.String()) {
		var doc struct {
			Iotrace struct{ Lost struct{ Exports uint64 } }
		}
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		docs++
		exports += doc.Iotrace.Lost.Exports
	}
	if st := es.Stats(); exports != docs || st.Delivered != 0 || st.Pending != 0 {
		t.Errorf("%d documents, %d of them reported as lost; %+v", docs, exports, st)
	}
}

// recordingOf makes a recording of n seconds.
func recordingOf(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recording")
	rec, err := recording.Create(path, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for i := range n {
		at := start.Add(time.Duration(i) * time.Second)
		iv := &output.Interval{Start: at, End: at.Add(time.Second), Samples: []output.Sample{{
			Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerUnit, Unit: "cron.service", Write: output.Amount{Bytes: 4099, Ops: 1},
		}}}
		if err := rec.Write(iv); err != nil {
			t.Fatal(err)
		}
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// goneAfter is a pipe whose reader closes it after so many lines.
type goneAfter struct{ lines int }

func (w *goneAfter) Write(p []byte) (int, error) {
	if w.lines--; w.lines < 0 {
		return 0, syscall.EPIPE
	}
	return len(p), nil
}

// TestClosedOutputEndsTheRest: when standard output is closed the run ends, with
// every other output whole up to there.
func TestClosedOutputEndsTheRest(t *testing.T) {
	dir := t.TempDir()
	copied, page := filepath.Join(dir, "copy"), filepath.Join(dir, "page.html")
	var stderr bytes.Buffer
	// Each interval has two lines: its row and its status.
	code := run(t.Context(), []string{"replay", recordingOf(t, 100), "--output", "ndjson", "--record", copied, "--report", page}, &goneAfter{lines: 2 * 7}, &stderr)
	if code != exitFailed || !strings.Contains(stderr.String(), "standard output was closed") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	rec, err := recording.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	n := 0
	for ; ; n++ {
		if _, err := rec.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n != 8 { // the one that could not be printed is the last
		t.Errorf("the recording has %d intervals", n)
	}
	b, err := os.ReadFile(page)
	if err != nil || !bytes.HasSuffix(bytes.TrimSpace(b), []byte("</html>")) || !bytes.Contains(b, []byte("cron.service")) {
		t.Errorf("page of %d bytes, %v", len(b), err)
	}
}

// TestPortIsNamed: where the system chooses the port of /metrics, the operator is told
// which one it is; a port that was asked for needs no message.
func TestPortIsNamed(t *testing.T) {
	for _, address := range []string{"0", "127.0.0.1:0"} {
		var said bytes.Buffer
		o := &options{prometheus: address}
		s, err := o.openSinks(t.Context(), &fakeSink{}, output.Host{}, live, slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn})))
		if err != nil {
			t.Fatal(err)
		}
		addr := s.others[0].sink.(prometheusSink).Addr()
		if !strings.Contains(said.String(), addr) {
			t.Errorf("%s: says %q, not %s", address, said.String(), addr)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		said.Reset()
		o.prometheus = addr
		if s, err = o.openSinks(t.Context(), &fakeSink{}, output.Host{}, live, slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))); err != nil {
			t.Fatal(err)
		}
		if said.Len() > 0 {
			t.Errorf("%s: says %q", addr, said.String())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRecordSwitch: what the screen records between two key presses is a recording of
// just those intervals.
func TestRecordSwitch(t *testing.T) {
	t.Chdir(t.TempDir())
	s := &recordSwitch{opt: newOptions()}
	write := func(n int) {
		t.Helper()
		for range n {
			if err := s.Write(nil, &output.Interval{Start: time.Now(), End: time.Now()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(2)
	name, err := s.Switch(true)
	if err != nil {
		t.Fatal(err)
	}
	write(3)
	if stopped, err := s.Switch(false); err != nil || stopped != name {
		t.Fatalf("stopped %q, %v", stopped, err)
	}
	write(2)
	r, err := recording.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Len() != 3 {
		t.Errorf("%d intervals are recorded, want 3", r.Len())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
