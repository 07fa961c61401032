package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

// replayed has the fields of a replayed line that the tests check.
type replayed struct {
	Event struct {
		Dataset  string
		Duration uint64
	}
	Iotrace struct {
		Source  string
		Sources map[string]any
		Write   struct {
			Bytes   uint64
			Latency *struct{ Max uint64 }
		}
		Request struct{ Latency uint64 }
	}
}

// incident is a recording of n seconds: in each, a kilobyte and one to a disk, two
// to an NFS server, an overlay device that leaks, and one request of each source.
func incident(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "incident")
	rec, err := recording.Create(path, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for i := range n {
		at := start.Add(time.Duration(i) * time.Second)
		iv := &output.Interval{Start: at, End: at.Add(time.Second)}
		for j, source := range []output.Source{output.SourceBlock, output.SourceNFS} {
			s := output.Sample{
				Source: source, Level: output.LevelWire, Owner: output.OwnerUnit, Unit: "cron.service",
				Write: output.Amount{Bytes: 1025 * uint64(j+1), Ops: 1, Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 1024, Count: 1}}, Sum: 1000, Max: 1000}},
			}
			iv.Samples = append(iv.Samples, s)
			iv.Sources = append(iv.Sources, output.SourceStatus{Source: source, Attached: true})
			iv.Events = append(iv.Events, output.Event{Time: iv.End, Dataset: output.DatasetEvent, Action: "write", IO: &output.IO{Sample: s, Op: "write", Latency: 1000}})
		}
		iv.Events = append(iv.Events, output.Event{Time: iv.End, Dataset: output.DatasetVXLAN, Action: "leaked", VXLAN: &output.VXLAN{Device: "vx-1", VNI: 4096}})
		if err := rec.Write(iv); err != nil {
			t.Fatal(err)
		}
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReplayFlags: a flag means the same live and for a recording.
func TestReplayFlags(t *testing.T) {
	file := incident(t, 35)
	for _, tt := range []struct {
		args                        string
		reports, vxlan, events      int
		block, nfs                  uint64
		longest                     time.Duration
		latencies, sources, samples bool // whether there are latencies, two sources, totals
	}{
		{"", 35, 35, 0, 35 * 1025, 35 * 2050, time.Second, true, true, true},
		{"--source nfs", 35, 35, 0, 0, 35 * 2050, time.Second, true, false, true},
		{"--source nfs,block --vxlan=false", 35, 0, 0, 35 * 1025, 35 * 2050, time.Second, true, true, true},
		{"--latency=false", 35, 35, 0, 35 * 1025, 35 * 2050, time.Second, false, true, true},
		{"--interval 10s", 4, 35, 0, 35 * 1025, 35 * 2050, 10 * time.Second, true, true, true},
		{"10 2", 2, 20, 0, 20 * 1025, 20 * 2050, 10 * time.Second, true, true, true},
		{"10 4", 4, 35, 0, 35 * 1025, 35 * 2050, 10 * time.Second, true, true, true},
		{"--interval 1m", 1, 35, 0, 35 * 1025, 35 * 2050, 35 * time.Second, true, true, true},
		{"--duration 7s", 7, 7, 0, 7 * 1025, 7 * 2050, time.Second, true, true, true},
		{"--duration 7s --interval 5s", 2, 7, 0, 7 * 1025, 7 * 2050, 5 * time.Second, true, true, true},
		{"--count 3", 3, 3, 0, 3 * 1025, 3 * 2050, time.Second, true, true, true},
		{"--events", 35, 35, 70, 0, 0, time.Second, true, true, false},
		{"--events --source block --latency=false", 35, 35, 35, 0, 0, time.Second, false, false, false},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"replay", file}, strings.Fields(tt.args)...)
		if code := run(t.Context(), append(args, "--output", "ndjson"), &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
			t.Errorf("%s: exit code %d, %q", tt.args, code, stderr.String())
			continue
		}
		reports, vxlan, events, latencies, sources := 0, 0, 0, false, false
		bytes, longest := map[string]uint64{}, time.Duration(0)
		for line := range strings.Lines(stdout.String()) {
			var d replayed
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
			switch d.Event.Dataset {
			case output.DatasetStatus:
				reports++
				sources = sources || len(d.Iotrace.Sources) == 2
				longest = max(longest, time.Duration(d.Event.Duration))
			case output.DatasetVXLAN:
				vxlan++
			case output.DatasetEvent:
				events++
				latencies = latencies || d.Iotrace.Request.Latency > 0
			default:
				bytes[d.Iotrace.Source] += d.Iotrace.Write.Bytes
				latencies = latencies || d.Iotrace.Write.Latency != nil
			}
		}
		if reports != tt.reports || vxlan != tt.vxlan || events != tt.events || bytes["block"] != tt.block || bytes["nfs"] != tt.nfs || longest != tt.longest ||
			latencies != tt.latencies || sources != tt.sources || tt.samples != (len(bytes) > 0) {
			t.Errorf("%s: %d intervals of up to %v, %d overlay events, %d requests, bytes %v, latencies %v, two sources %v; want %+v", tt.args, reports, longest, vxlan, events, bytes, latencies, sources, tt)
		}
	}
}

// TestReplayUsage: impossible flags are errors, and flags without effect are warnings.
func TestReplayUsage(t *testing.T) {
	file := incident(t, 2)
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "replay FILE"},
		{[]string{file, "x"}, exitUsage, "interval"},
		{[]string{file, "1", "2", "3"}, exitUsage, "unexpected argument"},
		{[]string{file, "--source", "floppy"}, exitUsage, "unknown source"},
		{[]string{file + ".not"}, exitFailed, "no such file"},
		{[]string{file, "--project-label", "team"}, exitUsage, "--project-label is not a flag of replay, but of tracing"},
		{[]string{file, "--exclude-self"}, exitUsage, "--exclude-self is not a flag of replay, but of tracing"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append([]string{"replay", "--output", "ndjson"}, tt.args...), &stdout, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%q: exit code %d, %q; want %d, %q", tt.args, code, stderr.String(), tt.code, tt.want)
		}
	}
}

// TestReplayPipe: standard input and a named pipe are replayed as the file is.
func TestReplayPipe(t *testing.T) {
	file := incident(t, 5)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	replayed := func(name string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), []string{"replay", name, "--by", "source"}, &stdout, &stderr); code != exitOK {
			t.Fatalf("%s: exit code %d: %s", name, code, stderr.String())
		}
		return stdout.String()
	}
	want := replayed(file)
	if !strings.Contains(want, "summary of ") || strings.Count(want, "TOTAL ") != 6 {
		t.Fatalf("the file gives\n%s", want)
	}

	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(fifo, content, 0) }()
	if got := replayed(fifo); got != want {
		t.Errorf("a named pipe gives\n%s", got)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, err := w.Write(content); written <- errors.Join(err, w.Close()) }()
	stdin := os.Stdin
	os.Stdin = r
	defer func() { os.Stdin = stdin; r.Close() }()
	if got := replayed("-"); got != want {
		t.Errorf("standard input gives\n%s", got)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// TestReplayDamaged: two damaged places are one line at the end, and the rest is shown.
func TestReplayDamaged(t *testing.T) {
	file := incident(t, 30)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []int{3, 2} { // a third, a half
		at := len(content) / part
		content[at] ^= 0xff
		content[at+1] ^= 0xff
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"replay", file, "--by", "source"}, &stdout, &stderr)
	if n := strings.Count(stdout.String(), "TOTAL ") - 1; code != exitFailed || n < 26 {
		t.Errorf("exit code %d, %d of 30 intervals are shown", code, n)
	}
	if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "is damaged at byte") || !strings.Contains(got, "more places") {
		t.Errorf("says %q", got)
	}
}

// TestReplaySeveral: recordings of several hosts are one run, with the bytes of each: as rows,
// as documents, and from a directory. An interval may follow.
func TestReplaySeveral(t *testing.T) {
	dir := t.TempDir()
	start := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for i, name := range []string{"web1", "web2", "web3"} {
		host := output.Host{Name: name, ID: name + "-id"}
		rec, err := recording.Create(filepath.Join(dir, name+".rec"), recording.Options{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		for k := range 20 {
			if i == 1 && k >= 5 && k < 10 {
				continue // a gap
			}
			at := start.Add(time.Duration(k)*time.Second + time.Duration(i)*300*time.Millisecond)
			if err := rec.Write(&output.Interval{Start: at, End: at.Add(time.Second), Host: host,
				Sources: []output.SourceStatus{{Source: output.SourceBlock, Attached: true}},
				Samples: []output.Sample{{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer, Project: "shop",
					Container: output.Container{ID: "c" + name, Name: "db"}, Device: output.Device{ID: "8:0", Name: "sda"},
					Write: output.Amount{Bytes: 1025 << (10 * i), Ops: 1}}}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{filepath.Join(dir, "web1.rec"), filepath.Join(dir, "web2.rec"), filepath.Join(dir, "web3.rec")}
	want := map[string]uint64{"web1": 20 * 1025, "web2": 15 * 1025 << 10, "web3": 20 * 1025 << 20}
	for _, args := range [][]string{files, {dir}, append(files[:3:3], "5")} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append(append([]string{"replay"}, args...), "--output", "ndjson", "--by", "host,project"), &stdout, &stderr); code != exitOK {
			t.Fatalf("%q: exit code %d: %s", args, code, stderr.String())
		}
		if !strings.Contains(stderr.String(), "times without numbers") || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%q: says %q", args, stderr.String())
		}
		got := map[string]uint64{}
		for line := range strings.Lines(stdout.String()) {
			var d struct {
				Host struct{ Name string }
				replayed
			}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
			if d.Event.Dataset == output.DatasetIO {
				got[d.Host.Name] += d.Iotrace.Write.Bytes
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%q: bytes by host %v, want %v", args, got, want)
		}
	}
	for by, rows := range map[string][]string{
		"project":   {"shop  "},
		"container": {"db (web1)", "db (web2)", "db (web3)"},
		"host":      {"web1", "web2", "web3"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), []string{"replay", dir, "1m", "--by", by}, &stdout, &stderr); code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr.String())
		}
		for _, r := range rows {
			if !strings.Contains(stdout.String(), "\n"+r) {
				t.Errorf("by %s: no row %q in\n%s", by, r, stdout.String())
			}
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{files[0], files[0]}, exitFailed, "given twice"},
		{[]string{t.TempDir()}, exitFailed, "has no recording"},
		{[]string{files[0], "web9.rec"}, exitUsage, "neither a recording that exists nor an interval"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append([]string{"replay", "--output", "ndjson"}, tt.args...), &stdout, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%q: exit code %d, %q; want %d, %q", tt.args, code, stderr.String(), tt.code, tt.want)
		}
	}
}

// TestReplayClusterUsage: what cannot be asked of a cluster is said before it is asked, and
// what the server refuses is one line that says what to do.
func TestReplayClusterUsage(t *testing.T) {
	status, body := http.StatusForbidden, `{"error":{"type":"security_exception","reason":"action [indices:data/read/search] is unauthorized"}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	defer server.Close()
	file := incident(t, 2)
	from := "--elasticsearch " + server.URL + " --since 1h "
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"--since 1h", exitUsage, "--since does nothing without --elasticsearch"},
		{"--elasticsearch " + server.URL + " --until 1h " + file, exitUsage, "--until does nothing without --since"},
		{"--elasticsearch " + server.URL, exitUsage, "--elasticsearch URL --since 1h"},
		{from + file, exitUsage, "is a recording: leave out one of the two"},
		{from + "--until 2h", exitUsage, "is not after --since"},
		{from + "--until 1m --follow", exitUsage, "--follow has no end"},
		{"--elasticsearch " + server.URL + " --since yesterday", exitUsage, "must be how long ago"},
		{from, exitFailed, "give the key the index privilege read"},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"replay", "--no-tui"}, strings.Fields(tt.args)...)
		if code := run(t.Context(), args, &stdout, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d, %q; want %d, %q", tt.args, code, stderr.String(), tt.code, tt.want)
		}
	}
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{http.StatusUnauthorized, `{}`, "--elasticsearch-api-key-file"},
		{http.StatusNotFound, `{"error":{"type":"index_not_found_exception"}}`, "--data-stream-namespace"},
		{http.StatusBadRequest, `{"error":{"type":"illegal_argument_exception","reason":"text fields"}}`, "iotrace-bpf elasticsearch setup"},
		{http.StatusOK, `{"timed_out":true,"_shards":{"failed":0},"aggregations":{}}`, "elasticsearch setup"},
		{http.StatusOK, `{"timed_out":false,"_shards":{"failed":1,"failures":[{"reason":{"type":"x","reason":"a shard"}}]},"aggregations":{"a":1}}`, "a shard"},
		{http.StatusOK, `[]`, "is not a search result"},
		{http.StatusOK, strings.Repeat(" ", 17<<20), "is bigger than"},
	} {
		status, body = tt.status, tt.body
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"replay", "--no-tui"}, strings.Fields(from)...), &stdout, &stderr)
		if said := stderr.String(); code != exitFailed || !strings.Contains(said, tt.want) || strings.Count(said, "\n") != 1 {
			t.Errorf("after %d %.60s: exit code %d, %q; want %q", tt.status, tt.body, code, said, tt.want)
		}
	}
}
