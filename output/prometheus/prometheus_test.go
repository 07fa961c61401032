package prometheus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"mime"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

func servePrometheus(t testing.TB, opt Options) *Exporter {
	t.Helper()
	p, err := New("0", opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return p
}

// scrape returns what a client with the given Accept header gets.
func (p *Exporter) scrape(t testing.TB, accept string) (body []byte, contentType string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+p.Addr()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %d, %v: %s", res.StatusCode, err, body)
	}
	return body, res.Header.Get("Content-Type")
}

const acceptProto = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"

func (p *Exporter) families(t testing.TB, accept string) map[string]*dto.MetricFamily {
	t.Helper()
	body, contentType := p.scrape(t, accept)
	format := expfmt.ResponseFormat(http.Header{"Content-Type": {contentType}})
	dec := expfmt.NewDecoder(bytes.NewReader(body), format)
	families := make(map[string]*dto.MetricFamily)
	for {
		var f dto.MetricFamily
		if err := dec.Decode(&f); err == io.EOF {
			return families
		} else if err != nil {
			t.Fatalf("%s: %v\n%s", contentType, err, fmt.Sprintf("%.2000s", string(body)))
		}
		families[f.GetName()] = &f
	}
}

// sumOf adds up the counters of a family that match, by one label.
func sumOf(f *dto.MetricFamily, by string, match ...string) map[string]uint64 {
	sums := make(map[string]uint64)
	for _, m := range f.GetMetric() {
		labels := make(map[string]string)
		for _, l := range m.Label {
			labels[l.GetName()] = l.GetValue()
		}
		ok := true
		for i := 0; i < len(match); i += 2 {
			ok = ok && labels[match[i]] == match[i+1]
		}
		if ok {
			sums[labels[by]] += uint64(m.GetCounter().GetValue())
		}
	}
	return sums
}

func TestPrometheusAddress(t *testing.T) {
	for addr, want := range map[string]string{
		"9435": "127.0.0.1:9435", ":9435": "127.0.0.1:9435", "localhost:1": "localhost:1", "0.0.0.0:2": "0.0.0.0:2", "[::]:3": "[::]:3", "192.0.2.1:0": "192.0.2.1:0",
	} {
		if got, err := listenAddress(addr); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", addr, got, err, want)
		}
	}
	for _, addr := range []string{"", "host", "::1", "1.2.3.4", "host:http", ":99999", "70000", ":-1", "a:b:c"} {
		if got, err := listenAddress(addr); err == nil {
			t.Errorf("%q is taken for %q", addr, got)
		}
	}
	p := servePrometheus(t, Options{})
	if !strings.HasPrefix(p.Addr(), "127.0.0.1:") {
		t.Errorf("listens at %s without being told to", p.Addr())
	}
	if second, err := New(p.Addr(), Options{}); err == nil {
		second.Close(t.Context())
		t.Error("two listen at one address")
	}
}

// TestPrometheusSums observes random samples and compares every counter with an
// independent sum.
func TestPrometheusSums(t *testing.T) {
	for _, limit := range []int{0, 7} {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			p := servePrometheus(t, Options{MaxSeries: limit})
			written, read, ops, stacked := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
			var latencies uint64
			for i := range uint64(20) {
				iv := outputtest.Cluster(time.Now(), i*i)
				for j := range iv.Samples {
					s := &iv.Samples[j]
					source := string(s.Source)
					if s.Device.Stacked {
						stacked[source] += s.Write.Bytes
						continue
					}
					written[source] += s.Write.Bytes
					read[source] += s.Read.Bytes
					ops["write"] += s.Write.Ops
					ops["read"] += s.Read.Ops
					latencies += s.Write.Latency.Count()
				}
				p.Observe(iv)
			}
			for _, accept := range []string{"", acceptProto} {
				f := p.families(t, accept)
				if got := sumOf(f["iotrace_io_bytes_total"], "source", "operation", "write"); fmt.Sprint(got) != fmt.Sprint(written) {
					t.Errorf("%q: written %v, want %v", accept, got, written)
				}
				if got := sumOf(f["iotrace_io_bytes_total"], "source", "operation", "read"); fmt.Sprint(got) != fmt.Sprint(read) {
					t.Errorf("%q: read %v, want %v", accept, got, read)
				}
				if got := sumOf(f["iotrace_io_operations_total"], "operation"); fmt.Sprint(got) != fmt.Sprint(ops) {
					t.Errorf("%q: operations %v, want %v", accept, got, ops)
				}
				if got := sumOf(f["iotrace_stacked_io_bytes_total"], "source", "operation", "write"); fmt.Sprint(got) != fmt.Sprint(stacked) {
					t.Errorf("%q: stacked %v, want %v", accept, got, stacked)
				}
				count := uint64(0)
				for _, m := range f["iotrace_io_latency_seconds"].GetMetric() {
					count += m.GetHistogram().GetSampleCount()
				}
				if count != latencies {
					t.Errorf("%q: %d latencies, want %d", accept, count, latencies)
				}
				projects := sumOf(f["iotrace_io_bytes_total"], "project")
				if limit == 0 && (len(projects) != 4 || projects[output.TextOther] != 0) {
					t.Errorf("projects: %v", projects)
				}
				if limit > 0 {
					// One series above the limit for each family and source.
					if projects[output.TextOther] == 0 || len(p.usage) > limit+3 {
						t.Errorf("%d series for a limit of %d, projects %v", len(p.usage), limit, projects)
					}
					if f["iotrace_series_overflow_total"].Metric[0].Counter.GetValue() == 0 {
						t.Error("overflow is not counted")
					}
				}
			}
		})
	}
}

// TestPrometheusIdle: series of dead containers are removed to make room.
func TestPrometheusIdle(t *testing.T) {
	p := servePrometheus(t, Options{MaxSeries: 10, IdleTime: time.Nanosecond})
	for i := range 1000 {
		p.Observe(&output.Interval{End: time.Now(), Samples: []output.Sample{{Source: output.SourceNFS, Level: output.LevelWire, Owner: output.OwnerContainer,
			Container: output.Container{ID: fmt.Sprint("id-", i), Name: fmt.Sprint("job-", i)}, Write: output.Amount{Bytes: 10, Ops: 1}}}})
	}
	if len(p.usage) > 10 || p.overflow != 0 {
		t.Errorf("%d series, overflow %d", len(p.usage), p.overflow)
	}
	if _, ok := sumOf(p.families(t, "")["iotrace_io_bytes_total"], "container")["job-999"]; !ok {
		t.Error("the newest container has no series")
	}
}

// TestPrometheusIdleLeaves: a container without I/O for longer than the idle time is in no
// scrape any more, with everything that is known about it.
func TestPrometheusIdleLeaves(t *testing.T) {
	p := servePrometheus(t, Options{IdleTime: time.Hour})
	observe := func(name string) {
		p.Observe(&output.Interval{End: time.Now(), Samples: []output.Sample{{Source: output.SourceNFS, Level: output.LevelWire, Owner: output.OwnerContainer,
			Container: output.Container{ID: name, Name: name}, Mount: output.Mount{Source: name + ":/export"}, Write: output.Amount{Bytes: 10, Ops: 1}}}})
	}
	observe("old")
	observe("new")
	past := time.Now().Add(-61 * time.Minute)
	p.mu.Lock()
	p.pruned = past
	for k, u := range p.usage {
		if k.container == "old" {
			u.seen = past
		}
	}
	for c := range p.containers {
		if c.name == "old" {
			p.containers[c] = past
		}
	}
	for m := range p.mounts {
		if m.mount == "old:/export" {
			p.mounts[m] = past
		}
	}
	p.mu.Unlock()
	observe("new")
	body, _ := p.scrape(t, "")
	if strings.Contains(string(body), `"old`) || !strings.Contains(string(body), `"new"`) {
		t.Errorf("scrape:\n%s", body)
	}
	if got := sumOf(p.families(t, "")["iotrace_io_bytes_total"], "container")["new"]; got != 20 {
		t.Errorf("the other container has %d bytes", got)
	}
}

func TestPrometheusInfosBounded(t *testing.T) {
	p := servePrometheus(t, Options{MaxSeries: 1})
	var iv output.Interval
	for i := range maxInfos + 100 {
		iv.Samples = append(iv.Samples, output.Sample{Source: output.SourceFUSE, Owner: output.OwnerContainer, Container: output.Container{ID: fmt.Sprint(i)}, Mount: output.Mount{Source: fmt.Sprint("m", i)}})
	}
	p.Observe(&iv)
	if len(p.containers) != maxInfos || len(p.mounts) != maxInfos {
		t.Errorf("%d containers, %d mounts, limit %d", len(p.containers), len(p.mounts), maxInfos)
	}
}

func TestPrometheusNegotiation(t *testing.T) {
	p := servePrometheus(t, Options{Version: "1.2.3"})
	p.Observe(outputtest.Cluster(time.Now(), 5))
	body, contentType := p.scrape(t, "application/openmetrics-text;version=1.0.0")
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "application/openmetrics-text" || params["version"] != "1.0.0" || params["charset"] != "utf-8" {
		t.Errorf("content type %q, %v", contentType, err)
	}
	text := string(body)
	if !strings.HasSuffix(text, "# EOF\n") || !strings.Contains(text, "# TYPE iotrace_io_bytes counter\n") || !strings.Contains(text, `iotrace_build_info{version="1.2.3"} 1`) {
		t.Errorf("no OpenMetrics: %s", fmt.Sprintf("%.1000s", text))
	}
	body, contentType = p.scrape(t, "")
	if !strings.HasPrefix(contentType, "text/plain; version=0.0.4") || strings.Contains(string(body), "# EOF") {
		t.Errorf("content type %q", contentType)
	}
	if !strings.Contains(string(body), `iotrace_io_latency_seconds_bucket{container="p0-c0",device="sda",`) {
		t.Error("text format has no fixed buckets")
	}
	res, err := http.Get("http://" + p.Addr() + "/other")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("unknown page: %d", res.StatusCode)
	}
}

// TestPrometheusNativeBuckets compares the bucket index with its definition.
func TestPrometheusNativeBuckets(t *testing.T) {
	base := math.Exp2(math.Exp2(-latencySchema))
	check := func(v float64) {
		i := nativeBucket(v)
		low, high := math.Pow(base, float64(i-1)), math.Pow(base, float64(i))
		// Pow itself is not exact to the last bit.
		if v <= low*(1-1e-12) || v > high*(1+1e-12) {
			t.Errorf("%g is in bucket %d, which is (%g, %g]", v, i, low, high)
		}
	}
	for range 100000 {
		check(math.Exp2(rand.Float64()*60 - 30))
	}
	for exp := -30; exp <= 30; exp++ {
		if got := nativeBucket(math.Ldexp(1, exp)); got != exp*8 {
			t.Errorf("2^%d is in bucket %d, want %d", exp, got, exp*8)
		}
	}
}

func TestPrometheusHistogram(t *testing.T) {
	p := servePrometheus(t, Options{})
	s := output.Sample{Source: output.SourceNFS, Owner: output.OwnerContainer, Project: "shop", Read: output.Amount{Ops: 111, Bytes: 1, Latency: output.Latency{
		Buckets: []output.Bucket{{UpTo: 0, Count: 1}, {UpTo: 1_000_000, Count: 100}, {UpTo: 20_000_000_000, Count: 10}}, Sum: 123_000_000_000, Max: 19_000_000_000}}}
	for range 3 {
		p.Observe(&output.Interval{End: time.Now(), Samples: []output.Sample{s}})
	}
	h := p.families(t, acceptProto)["iotrace_io_latency_seconds"].Metric[0].Histogram
	if h.GetSampleCount() != 333 || h.GetSampleSum() != 369 || h.GetZeroCount() != 3 || h.GetSchema() != latencySchema {
		t.Errorf("count %d, sum %g, zero %d, schema %d", h.GetSampleCount(), h.GetSampleSum(), h.GetZeroCount(), h.GetSchema())
	}
	// Deltas of spans add up to the counts of their buckets.
	index, value, counts := 0, int64(0), map[int]int64{}
	next := 0
	for _, span := range h.PositiveSpan {
		index += int(span.GetOffset())
		for range span.GetLength() {
			value += h.PositiveDelta[next]
			counts[index] = value
			next++
			index++
		}
	}
	if counts[nativeBucket(1e-3)] != 300 || counts[nativeBucket(20)] != 30 {
		t.Errorf("native buckets %v, want 300 at %d and 30 at %d", counts, nativeBucket(1e-3), nativeBucket(20))
	}
	for _, b := range h.Bucket {
		want := uint64(3)
		if b.GetUpperBound() >= 1e-3 {
			want = 303 // 20 s are above every bound
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("bucket up to %g has %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want)
		}
	}
	if len(h.Bucket) != len(classicBounds) {
		t.Errorf("%d fixed buckets", len(h.Bucket))
	}
}

func TestPrometheusHostileNames(t *testing.T) {
	p := servePrometheus(t, Options{})
	evil := "a\"} 1\nevil_metric{x=\"\\\x00\xff\x1b[2J" + strings.Repeat("é", 10000)
	s := output.Sample{Source: output.SourceNFS, Owner: output.OwnerContainer, Project: evil, Service: evil, Unit: evil, Container: output.Container{ID: evil, Name: evil, Image: evil},
		Pod: output.Pod{Name: evil, Namespace: evil}, Mount: output.Mount{Source: evil, Volume: evil}, Write: output.Amount{Bytes: 7, Ops: 1}}
	p.Observe(&output.Interval{End: time.Now(), Host: output.Host{Name: evil}, Samples: []output.Sample{s}, Events: []output.Event{{Action: evil, VXLAN: &output.VXLAN{}}},
		Sources: []output.SourceStatus{{Source: output.Source(evil)}, {Source: output.Source(evil)}}})
	for _, accept := range []string{"", "application/openmetrics-text", acceptProto} {
		body, _ := p.scrape(t, accept)
		if accept != acceptProto && bytes.Contains(body, []byte("\nevil_metric")) {
			t.Errorf("%q: a name became a metric", accept)
		}
		if len(body) > 200<<10 {
			t.Errorf("%q: scrape of %d bytes", accept, len(body))
		}
	}
	f := p.families(t, "")
	for name, fam := range f {
		if !model.UTF8Validation.IsValidMetricName(name) {
			t.Errorf("metric name %q", name)
		}
		for _, m := range fam.Metric {
			for _, l := range m.Label {
				if !model.LabelValue(l.GetValue()).IsValid() || len(l.GetValue()) > maxLabelLength+3 {
					t.Errorf("%s: label %s of %d bytes", name, l.GetName(), len(l.GetValue()))
				}
			}
		}
	}
	if got := f["iotrace_io_bytes_total"].Metric[0].Counter.GetValue(); got != 7 {
		t.Errorf("counter is %g, want 7", got)
	}
}

func TestPrometheusHealth(t *testing.T) {
	p := servePrometheus(t, Options{Elasticsearch: func() Shipping {
		return Shipping{Delivered: 5, Dropped: 2, Pending: 9, SpoolBytes: 4096, Failing: true}
	}})
	if f := p.families(t, ""); f["iotrace_last_interval_timestamp_seconds"] != nil {
		t.Error("there is a time before the first interval")
	}
	for range 2 {
		p.Observe(&output.Interval{End: time.UnixMilli(1700000000500), Unresolved: 4, Lost: output.Lost{Records: 1, Bytes: 10, Misses: 3}, Self: output.Self{CPUNanos: 5e8, BPFNanos: 1e9, RSSBytes: 77, MapBytes: 78},
			Sources: []output.SourceStatus{{Source: output.SourceNFS, Attached: true}, {Source: output.SourceFUSE}}, Events: []output.Event{{Action: "leaked", VXLAN: &output.VXLAN{}}, {IO: &output.IO{}}}})
	}
	f := p.families(t, "")
	one := func(name string, labels ...string) float64 {
		for _, m := range f[name].GetMetric() {
			if len(labels) == 0 || m.Label[0].GetValue() == labels[0] {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		t.Errorf("no %s %v", name, labels)
		return -1
	}
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{2, "iotrace_lost_total", []string{"records"}}, {6, "iotrace_lost_total", []string{"misses"}}, {20, "iotrace_lost_bytes_total", nil},
		{1, "iotrace_self_cpu_seconds_total", nil}, {2, "iotrace_self_bpf_seconds_total", nil}, {77, "iotrace_self_resident_bytes", nil}, {78, "iotrace_self_map_bytes", nil},
		{4, "iotrace_unresolved_cgroups", nil}, {1700000000.5, "iotrace_last_interval_timestamp_seconds", nil}, {2, "iotrace_intervals_total", nil},
		{1, "iotrace_source_attached", []string{"nfs"}}, {0, "iotrace_source_attached", []string{"fuse"}}, {2, "iotrace_vxlan_events_total", []string{"leaked"}},
		{5, "iotrace_elasticsearch_documents_total", []string{"delivered"}}, {2, "iotrace_elasticsearch_documents_total", []string{"dropped"}},
		{9, "iotrace_elasticsearch_pending_documents", nil}, {4096, "iotrace_elasticsearch_spool_bytes", nil}, {1, "iotrace_elasticsearch_failing", nil},
	} {
		if got := one(c.name, c.labels...); got != c.want {
			t.Errorf("%s %v is %g, want %g", c.name, c.labels, got, c.want)
		}
	}
	if f["process_resident_memory_bytes"] == nil || f["go_goroutines"] == nil {
		t.Error("there are no metrics of the process itself")
	}
}

func TestPrometheusConcurrent(t *testing.T) {
	p := servePrometheus(t, Options{MaxSeries: 20})
	var wg sync.WaitGroup
	for g := range uint64(3) {
		wg.Go(func() {
			for i := range uint64(50) {
				p.Observe(outputtest.Cluster(time.Now(), g*50+i))
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			p.families(t, acceptProto)
		}
	})
	wg.Wait()
	want := uint64(0)
	for i := range uint64(150) {
		for _, s := range outputtest.Cluster(time.Now(), i).Samples {
			if !s.Device.Stacked {
				want += s.Write.Bytes
			}
		}
	}
	got := uint64(0)
	for _, n := range sumOf(p.families(t, acceptProto)["iotrace_io_bytes_total"], "source", "operation", "write") {
		got += n
	}
	if got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
}

// grafanaPanel is a panel of the dashboard.
type grafanaPanel struct {
	Title   string
	Targets []struct{ Expr string }
}

func grafanaPanels(t *testing.T) []grafanaPanel {
	b, err := os.ReadFile("../grafana/iotrace.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Panels []grafanaPanel }
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d.Panels
}

// TestGrafanaMetricsExist: a scrape has every metric that the dashboard uses. An
// integration test runs its queries in a real Prometheus.
func TestGrafanaMetricsExist(t *testing.T) {
	p := servePrometheus(t, Options{Elasticsearch: func() Shipping { return Shipping{} }})
	iv := outputtest.Cluster(time.Now(), 5)
	iv.Events = []output.Event{{Action: "leaked", VXLAN: &output.VXLAN{}}}
	p.Observe(iv)
	f := p.families(t, "")
	rules, err := os.ReadFile("../../packaging/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	// Names with colons are of recording rules.
	for _, m := range regexp.MustCompile(`[^:\w](iotrace_\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if f[m[1]] == nil {
			t.Errorf("rules.yml: no metric %s", m[1])
		}
	}
	panels := grafanaPanels(t)
	if len(panels) < 10 {
		t.Fatalf("%d panels", len(panels))
	}
	for _, panel := range panels {
		for _, target := range panel.Targets {
			names := 0
			for word := range strings.FieldsFuncSeq(target.Expr, func(r rune) bool { return !(r == '_' || r >= 'a' && r <= 'z') }) {
				if !strings.HasPrefix(word, "iotrace_") {
					continue
				}
				names++
				if f[strings.TrimSuffix(word, "_bucket")] == nil {
					t.Errorf("panel %q: no metric %s", panel.Title, word)
				}
			}
			if names == 0 {
				t.Errorf("panel %q asks for nothing: %s", panel.Title, target.Expr)
			}
		}
	}
}

func BenchmarkPrometheusObserve(b *testing.B) {
	p := servePrometheus(b, Options{})
	iv := outputtest.Cluster(time.Now(), 5)
	b.ReportAllocs()
	for b.Loop() {
		p.Observe(iv)
	}
	b.ReportMetric(float64(len(iv.Samples)*b.N)/b.Elapsed().Seconds(), "samples/s")
}

func BenchmarkPrometheusScrape(b *testing.B) {
	p := servePrometheus(b, Options{})
	for i := range 1000 {
		p.Observe(&output.Interval{End: time.Now(), Samples: []output.Sample{{Source: output.SourceNFS, Level: output.LevelWire, Owner: output.OwnerContainer, Project: "p",
			Container: output.Container{ID: fmt.Sprint("id-", i), Name: fmt.Sprint("c-", i)}, Write: output.Amount{Bytes: 10, Ops: 1, Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 1 << 20, Count: 1}}, Sum: 1 << 19}}}}})
	}
	b.ReportAllocs()
	for b.Loop() {
		p.scrape(b, "")
	}
}

// TestPrometheusLeaked: the gauge is for alerts, so that a device that was deleted
// or is used again must not be counted.
func TestPrometheusLeaked(t *testing.T) {
	p := servePrometheus(t, Options{})
	at := func(action string, ifindex uint32) output.Event {
		return output.Event{Action: action, VXLAN: &output.VXLAN{NetNS: 4026531840, Ifindex: ifindex}}
	}
	for i, step := range []struct {
		events []output.Event
		want   int
	}{
		{[]output.Event{at("created", 1), at("leaked", 1), at("leaked", 2), at("leaked", 2), at("leaked", 3), at("leaked", 4)}, 4},
		{[]output.Event{at("renamed", 1), at("down", 1), at("create_failed", 0)}, 4},
		{[]output.Event{at("deleted", 1), at("cleaned", 2), at("moved", 3), at("deleted", 99)}, 1},
		{[]output.Event{at("up", 4)}, 0},
	} {
		p.Observe(&output.Interval{Events: step.events})
		if len(p.leaked) != step.want {
			t.Errorf("after step %d: %d devices are leaked, want %d", i, len(p.leaked), step.want)
		}
	}
	for i, step := range []struct {
		event output.Event
		want  int
	}{{at("up_failed", 5), 0}, {at("stuck", 5), 1}, {at("stuck", 5), 1}, {at("up", 5), 0}, {at("stuck", 6), 1}, {at("deleted", 6), 0}} {
		p.Observe(&output.Interval{Events: []output.Event{step.event}})
		if len(p.stuck) != step.want {
			t.Errorf("after event %d: %d devices are stuck, want %d", i, len(p.stuck), step.want)
		}
	}
	for i := range uint32(3 * maxLeaked) {
		p.Observe(&output.Interval{Events: []output.Event{at("leaked", i)}})
	}
	if len(p.leaked) != maxLeaked {
		t.Errorf("%d devices are remembered, want %d", len(p.leaked), maxLeaked)
	}
}
