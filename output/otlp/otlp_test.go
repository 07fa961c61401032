package otlp

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	pb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// receiver is an OTLP receiver over HTTP, with the types that the specification generates.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	statuses []int // of the next answers; 0 closes the connection
	rejects  int64
	requests int
	got      []*collector.ExportMetricsServiceRequest
	header   http.Header
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests++
		if len(r.statuses) > 0 {
			status := r.statuses[0]
			r.statuses = r.statuses[1:]
			if status == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(status)
			return
		}
		if req.Method != http.MethodPost || req.URL.Path != "/v1/metrics" || req.Header.Get("Content-Type") != "application/x-protobuf" || req.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s %s %v", req.Method, req.URL, req.Header)
		}
		zr, err := gzip.NewReader(req.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body, err := io.ReadAll(zr)
		if err != nil {
			t.Error(err)
		}
		var m collector.ExportMetricsServiceRequest
		if err := (proto.UnmarshalOptions{}).Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		r.got, r.header = append(r.got, &m), req.Header
		answer, err := proto.Marshal(&collector.ExportMetricsServiceResponse{PartialSuccess: &collector.ExportMetricsPartialSuccess{RejectedDataPoints: r.rejects, ErrorMessage: "no\x1b[2J"}})
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		w.Write(answer)
	}))
	t.Cleanup(r.Server.Close)
	return r
}

func start(t *testing.T, opt Options) *Exporter {
	t.Helper()
	opt.wait = time.Millisecond
	e, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e.Close(ctx)
	})
	return e
}

func export(t *testing.T, e *Exporter, iv *output.Interval) {
	t.Helper()
	by := []output.Key{output.KeyContainer, output.KeyDevice, output.KeyMount}
	if err := e.Export(output.Group(iv, output.GroupOptions{By: by, Level: output.LevelBoth}), iv); err != nil {
		t.Fatal(err)
	}
}

func value(list []*common.KeyValue, key string) string {
	for _, a := range list {
		if a.Key == key {
			if _, ok := a.Value.Value.(*common.AnyValue_BoolValue); ok {
				return fmt.Sprint(a.Value.GetBoolValue())
			}
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// TestSums: what a receiver has is what the samples were, to the byte, after answers that
// ask for another attempt.
func TestSums(t *testing.T) {
	r := newReceiver(t)
	r.statuses = []int{503, 429, 0, 502}
	e := start(t, Options{URL: r.URL, Headers: "Authorization=ApiKey%20abc, X-Scope=shop"})
	written, containers := map[string]uint64{}, map[string]uint64{}
	var latencies uint64
	for i := range uint64(20) {
		iv := outputtest.Cluster(time.Unix(1_700_000_000+int64(i)*10, 0), i)
		for j := range iv.Samples {
			s := &iv.Samples[j]
			latencies += s.Read.Latency.Count() + s.Write.Latency.Count() + s.Discard.Latency.Count() + s.Flush.Latency.Count() + s.Metadata.Latency.Count()
			written[fmt.Sprint(s.Project, s.Source, s.Level, s.Device.Stacked)] += s.Write.Bytes
			if s.Owner == output.OwnerContainer && s.Source == output.SourceBlock && s.Level != output.LevelApp && !s.Device.Stacked {
				containers[s.Container.ID] += s.Write.Bytes
			}
		}
		export(t, e, iv)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	gotWritten, gotContainers := map[string]uint64{}, map[string]uint64{}
	var gotLatencies uint64
	points := uint64(0)
	for _, m := range r.got {
		for _, rm := range m.ResourceMetrics {
			res := rm.Resource.Attributes
			if value(res, "host.name") == "" || value(res, "iotrace.grain") != "container,device,mount" || value(res, "service.name") != "iotrace-bpf" {
				t.Fatalf("resource %v", res)
			}
			for _, metric := range rm.ScopeMetrics[0].Metrics {
				if s := metric.GetSum(); s != nil && (!s.IsMonotonic || s.AggregationTemporality != pb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA) {
					t.Errorf("%s is no counter of an interval", metric.Name)
				}
				for _, p := range metric.GetSum().GetDataPoints() {
					points++
					if p.TimeUnixNano <= p.StartTimeUnixNano {
						t.Errorf("%s: from %d to %d", metric.Name, p.StartTimeUnixNano, p.TimeUnixNano)
					}
					if value(p.Attributes, "disk.io.direction") != "write" {
						continue
					}
					switch metric.Name {
					case "iotrace.io.bytes":
						level := value(p.Attributes, "iotrace.level")
						gotWritten[value(res, "iotrace.project.name")+value(p.Attributes, "iotrace.source")+level+value(p.Attributes, "iotrace.device.stacked")] += uint64(p.GetAsInt())
					case "container.disk.io":
						gotContainers[value(res, "container.id")] += uint64(p.GetAsInt())
					}
				}
				for _, p := range metric.GetExponentialHistogram().GetDataPoints() {
					points++
					n := p.ZeroCount
					for _, c := range p.Positive.GetBucketCounts() {
						n += c
					}
					if n != p.Count {
						t.Errorf("buckets hold %d of %d", n, p.Count)
					}
					gotLatencies += p.Count
				}
			}
		}
	}
	nothing := func(_ string, n uint64) bool { return n == 0 }
	for _, m := range []map[string]uint64{written, containers, gotWritten, gotContainers} {
		maps.DeleteFunc(m, nothing)
	}
	if !maps.Equal(gotWritten, written) || len(written) == 0 {
		t.Errorf("written %v, want %v", gotWritten, written)
	}
	if !maps.Equal(gotContainers, containers) || len(containers) == 0 {
		t.Errorf("container.disk.io %v, want %v", gotContainers, containers)
	}
	if gotLatencies != latencies || latencies == 0 {
		t.Errorf("%d latencies, want %d", gotLatencies, latencies)
	}
	if s := e.Stats(); s.Delivered != points || s.Lost() != 0 || s.Pending != 0 || s.Failing || r.requests != 24 {
		t.Errorf("%+v, %d points, %d requests", s, points, r.requests)
	}
	if r.header.Get("Authorization") != "ApiKey abc" || r.header.Get("X-Scope") != "shop" {
		t.Errorf("headers %v", r.header)
	}
}

// TestHistogram: every latency is in the bucket that the specification says, so that the
// quantile of merged histograms is right within one bucket.
func TestHistogram(t *testing.T) {
	var l output.Latency
	for i := range 64 {
		l.Buckets = append(l.Buckets, output.Bucket{UpTo: 1<<i + uint64(i)*3, Count: uint64(i) + 1})
	}
	l.Buckets = append([]output.Bucket{{UpTo: 0, Count: 7}}, l.Buckets...)
	d := (&encoder{}).histogram(&l, nil)
	base := math.Pow(2, math.Pow(2, -float64(d.Scale)))
	want := map[int32]uint64{}
	for _, b := range l.Buckets[1:] {
		found := false
		for i := range d.Positive.BucketCounts {
			index := d.Positive.Offset + int32(i)
			low, high := math.Pow(base, float64(index)), math.Pow(base, float64(index+1))
			if v := float64(b.UpTo) / 1e9; v > low*(1-1e-9) && v <= high*(1+1e-9) {
				want[index] += b.Count
				found = true
				break
			}
		}
		if !found {
			t.Errorf("no bucket for %d ns", b.UpTo)
		}
	}
	var n uint64
	for _, c := range d.Positive.BucketCounts {
		n += c
	}
	if n+d.ZeroCount != l.Count() || d.ZeroCount != 7 || d.Count != l.Count() || len(d.Positive.BucketCounts) > 520 {
		t.Errorf("%d and %d zeroes of %d, %d buckets", n, d.ZeroCount, l.Count(), len(d.Positive.BucketCounts))
	}
	for index, c := range want {
		if got := d.Positive.BucketCounts[index-d.Positive.Offset]; got != c {
			t.Errorf("bucket %d has %d, want %d", index, got, c)
		}
	}
}

// TestLosses: what a receiver refuses, and what finds no room, is counted; memory is
// bounded.
func TestLosses(t *testing.T) {
	r := newReceiver(t)
	r.statuses = []int{400}
	r.rejects = 3
	e := start(t, Options{URL: r.URL})
	iv := outputtest.Cluster(time.Unix(1_700_000_000, 0), 1)
	export(t, e, iv)
	export(t, e, iv)
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := e.Stats()
	if total := s.Delivered + s.Rejected; s.Rejected != total/2+3 || s.Dropped != 0 || s.Pending != 0 {
		t.Errorf("%+v", s)
	}
	if err := e.Export(output.Group(iv, output.GroupOptions{}), iv); err == nil {
		t.Error("export after the end: no error")
	}

	const room = 64 << 10
	gone := start(t, Options{URL: "http://127.0.0.1:1", QueueBytes: room})
	for range 500 {
		export(t, gone, iv)
		gone.mu.Lock()
		queued := gone.queued
		gone.mu.Unlock()
		if queued > room {
			t.Fatalf("%d bytes wait", queued)
		}
	}
	before := gone.Stats()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := gone.Close(ctx); err == nil || !strings.Contains(err.Error(), "data points were not delivered") {
		t.Errorf("closing: %v", err)
	}
	if after := gone.Stats(); before.Dropped == 0 || after.Pending != 0 || after.Dropped != before.Dropped+before.Pending || after.Delivered != 0 {
		t.Errorf("%+v, then %+v", before, after)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{}, {URL: "localhost:4318"}, {URL: "ftp://a"}, {URL: "http://"}, {URL: "http://a:secret@b"}, {URL: "http://a", Headers: "secret"}, {URL: "http://a", Headers: "a=%zz"}} {
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "secret") && !strings.Contains(o.URL, "localhost") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// FuzzReply reads what a receiver may answer.
func FuzzReply(f *testing.F) {
	for _, p := range []*collector.ExportMetricsPartialSuccess{nil, {RejectedDataPoints: 3, ErrorMessage: "no\x1b[2J"}, {RejectedDataPoints: -1}} {
		body, err := proto.Marshal(&collector.ExportMetricsServiceResponse{PartialSuccess: p})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, reason := refusedPoints(body)
		if n > math.MaxInt64 || len(reason) > 4*200+2 || strings.ContainsFunc(reason, unicode.IsControl) {
			t.Errorf("%d points refused, reason %q", n, reason)
		}
	})
}
