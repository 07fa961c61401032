//go:build integration

package elastic

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic/testserver"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// These tests run real servers: see package testserver.

func TestElasticsearchRealServer(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(*testing.T) *testserver.Server
	}{
		{"elasticsearch", func(t *testing.T) *testserver.Server { return testserver.Elasticsearch(t, nil) }},
		{"opensearch", func(t *testing.T) *testserver.Server { return testserver.OpenSearch(t) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			testOutage(t, c.start(t))
		})
	}
}

// testOutage ships documents while the server is killed twice and our own
// process is replaced once in between, and asks the server for the sums.
func testOutage(t *testing.T, s *testserver.Server) {
	opt := testOptions(t, lossyProxy(t, s.URL))
	opt.BatchBytes = minBatchBytes // many requests: some are cut off half-way
	opt.QueueBytes = 4 << 20
	opt.retry = retryRange{20 * time.Millisecond, 500 * time.Millisecond}
	opt.slowRetry = opt.retry

	// Without templates nothing is stored and nothing is lost.
	e := start(t, opt)
	first := outputtest.Cluster(time.Now().Add(-time.Hour), 3)
	want := newTotals()
	want.ship(t, e, first)
	outputtest.Until(t, "a complaint about templates", func() bool { return e.Stats().Failing })
	if msg := e.Stats().LastError; !strings.Contains(msg, "404") {
		t.Errorf("without templates: %s", msg)
	}
	var progress bytes.Buffer
	for range 2 {
		if err := Setup(t.Context(), opt, &progress); err != nil {
			t.Fatalf("%v\n%s", err, progress.String())
		}
	}
	t.Log(progress.String())
	outputtest.Until(t, "the first documents", func() bool { return e.Stats().Pending == 0 })

	stored := func() uint64 { s := e.Stats(); return s.Delivered + s.Duplicates }
	base := time.Now().Add(-30 * time.Minute)
	send := func(from, to int) {
		for i := from; i < to; i++ {
			// A busy disk takes its time, and what no longer fits is dropped.
			outputtest.Until(t, "room in the queue", func() bool { return e.Stats().QueueBytes <= opt.QueueBytes/2 })
			want.ship(t, e, outputtest.Cluster(base.Add(time.Duration(i)*time.Second), uint64(i)))
		}
	}
	done := stored()
	send(0, 40)
	outputtest.Until(t, "some documents stored", func() bool { return stored() > done })
	s.Kill() // with requests on their way
	send(40, 80)
	outputtest.Until(t, "documents on disk", func() bool { st := e.Stats(); return st.Failing && st.Spooled > 0 })
	before := closeAll(t, e)
	if before.Pending == 0 || before.Dropped != 0 {
		t.Fatalf("before our restart: %+v", before)
	}
	e = start(t, opt)
	send(80, 100)
	s.Start()
	done = stored()
	outputtest.Until(t, "some documents stored", func() bool { return stored() > done })
	s.Kill()
	send(100, 120)
	s.Start()
	outputtest.Until(t, "everything stored", func() bool { return e.Stats().Pending == 0 })
	after := closeAll(t, e)
	t.Logf("before our restart %+v\nafter it %+v", before, after)
	if after.Lost() != 0 || before.Lost() != 0 || after.Conflicts+before.Conflicts != 0 || after.SoftFailures != 0 {
		t.Error("documents lost or refused")
	}
	if after.Recovered != before.Pending {
		t.Errorf("recovered %d documents of %d", after.Recovered, before.Pending)
	}
	if before.Duplicates+after.Duplicates == 0 {
		t.Error("no reply was lost: the test did not try what it is there for")
	}
	for stream, n := range want.docs {
		if got := s.Count(stream); got != n {
			t.Errorf("%s has %d documents, want %d", stream, got, n)
		}
	}
	const wire = `{"bool":{"filter":[{"term":{"iotrace.level":"wire"}}],"must_not":[{"term":{"iotrace.device.stacked":true}}]}}`
	for field, sums := range map[string]map[string]uint64{"iotrace.write.bytes": want.written, "iotrace.read.bytes": want.read} {
		if got := s.Sums(testIO, "iotrace.project.name", field, wire); !maps.Equal(got, sums) {
			t.Errorf("%s by project: %v, want %v", field, got, sums)
		}
	}
	if got := s.Sums(testEvents, "iotrace.project.name", "iotrace.request.bytes", `{"match_all":{}}`); !maps.Equal(got, want.events) {
		t.Errorf("bytes of requests by project: %v, want %v", got, want.events)
	}
	checkMapping(t, s)
	checkDashboard(t, s)
}

// TestElasticsearchUpgrade: data streams of an earlier version have documents without a
// grain, one of them a field of another type as well. After setup both take documents of
// this version, whose new fields are found, and keep the earlier ones.
func TestElasticsearchUpgrade(t *testing.T) {
	t.Run("elasticsearch", func(t *testing.T) { testUpgrade(t, testserver.Elasticsearch(t, nil)) })
	t.Run("opensearch", func(t *testing.T) { testUpgrade(t, testserver.OpenSearch(t)) })
}

func testUpgrade(t *testing.T, s *testserver.Server) {
	const plain, clash, series = "metrics-iotrace.io-plain", "metrics-iotrace.io-clash", "metrics-iotrace.io-series"
	now := time.Now().UTC()
	put := func(stream string, n int, fields string) {
		t.Helper()
		s.Ask(http.MethodPost, "/"+stream+"/_doc", fmt.Sprintf(`{"@timestamp":%q,"host":{"name":"web1"},"iotrace":{"source":"block",%s,"write":{"bytes":%d}}}`,
			now.Add(time.Duration(n)*time.Second).Format(time.RFC3339), fields, n), nil)
	}
	settings := map[string]string{plain: `{}`, clash: `{}`}
	if s.TimeSeries {
		settings[series] = `{"index":{"mode":"time_series","routing_path":["host.name"]}}`
	}
	for stream, set := range settings {
		grain, dimension := "", ""
		switch stream {
		case clash:
			grain = `,"grain":{"type":"ip","ignore_malformed":true}`
		case series:
			dimension = `,"time_series_dimension":true`
		}
		s.Ask(http.MethodPut, "/_index_template/metrics-iotrace.io", `{"index_patterns":["metrics-iotrace.io-*"],"priority":250,"data_stream":{},"template":{"settings":`+set+`,
			"mappings":{"dynamic":false,"properties":{"@timestamp":{"type":"date"},"host":{"properties":{"name":{"type":"keyword"`+dimension+`}}},
			"iotrace":{"properties":{"group":{"properties":{"by":{"type":"keyword"}}},"write":{"properties":{"bytes":{"type":"long"}}}`+grain+`}}}}}}`, nil)
		put(stream, 3, `"group":{"by":["container"]}`)
	}
	setup := func() string {
		t.Helper()
		var progress bytes.Buffer
		if err := Setup(t.Context(), testOptions(t, s.URL), &progress); err != nil {
			t.Fatalf("%v\n%s", err, progress.String())
		}
		return progress.String()
	}
	said := setup()
	for stream := range settings {
		want := "data stream " + stream + ": has the fields of this version, added to 1 of 1 indices\n"
		if stream == clash {
			want = "data stream " + stream + ": rolled over, because its index had another type of iotrace.grain\n"
		}
		if !strings.Contains(said, want) {
			t.Errorf("setup does not say %q:\n%s", want, said)
		}
	}
	for stream := range settings {
		put(stream, 5, `"grain":"container,device,mount","group":{"id":"a"},"level":"wire","device":{"stacked":false}`)
		for query, want := range map[string]uint64{
			`{"term":{"iotrace.grain":"container,device,mount"}}`: 5,
			`{"term":{"iotrace.group.by":"container"}}`:           3,
			`{"match_all":{}}`: 8,
		} {
			// The clashing type does not know the value that is asked for.
			if stream == clash && strings.Contains(query, "grain") {
				query = `{"range":{"@timestamp":{"gt":"` + now.Add(4*time.Second).Format(time.RFC3339) + `"}}}`
			}
			var sum uint64
			for _, n := range s.Sums(stream, "host.name", "iotrace.write.bytes", query) {
				sum += n
			}
			if sum != want {
				t.Errorf("%s, %s: %d bytes, want %d", stream, query, sum, want)
			}
		}
	}
	if said := setup(); strings.Count(said, ": has the fields of this version\n") != len(settings) {
		t.Errorf("the second setup says\n%s", said)
	}
}

// lossyProxy passes requests on and loses every fifth reply to a bulk request:
// the server has stored the documents, we do not know.
func lossyProxy(t *testing.T, server string) string {
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	var bulks atomic.Int64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Path == "/_bulk" && bulks.Add(1)%5 == 0 {
				io.Copy(io.Discard, r.Body)
				return errors.New("reply is lost")
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { hangUp(w) },
	}
	p := httptest.NewServer(proxy)
	t.Cleanup(p.Close)
	return p.URL
}

// totals is what was shipped.
type totals struct {
	docs                  map[string]int
	written, read, events map[string]uint64
}

func newTotals() *totals {
	return &totals{map[string]int{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}}
}

// ship sends the documents of an interval, totals and single requests alike.
func (w *totals) ship(t *testing.T, e *Shipper, iv *output.Interval) {
	t.Helper()
	project := func(s *output.Sample) string {
		if s.Project == "" {
			return "(none)"
		}
		return s.Project
	}
	for i := range iv.Samples {
		s := &iv.Samples[i]
		if !s.Device.Stacked {
			w.written[project(s)] += s.Write.Bytes
			w.read[project(s)] += s.Read.Bytes
		}
		io := &output.IO{Sample: *s, Op: "write", Offset: uint64(i) << 12, Latency: 1000, Basis: "page"}
		io.Sample.Read, io.Sample.Discard, io.Sample.Flush, io.Sample.Metadata = output.Amount{}, output.Amount{}, output.Amount{}, output.Amount{}
		w.events[project(s)] += s.Write.Bytes
		iv.Events = append(iv.Events, output.Event{Time: iv.End.Add(time.Duration(i)), Dataset: output.DatasetEvent, Action: "write", IO: io})
	}
	iv.Events = append(iv.Events, output.Event{Time: iv.End, Dataset: output.DatasetVXLAN, Action: "leaked", VXLAN: &output.VXLAN{Device: "vx-001000-abcde", VNI: 4096, NetNS: 1 << 63}})
	for _, events := range []bool{false, true} {
		r := output.Group(iv, output.GroupOptions{By: []output.Key{output.KeyContainer}, Stacked: true})
		if events {
			iv.Events = iv.Events[:len(iv.Events)-1] // the vxlan event once only
		}
		for d := range ndjson.Documents(r, iv, ndjson.Options{Events: events}) {
			if events && d.Dataset == output.DatasetStatus {
				continue // once as well: a server would refuse the second
			}
			stream := d.Type + "-" + d.Dataset + "-" + d.Namespace
			if err := e.Ship(stream, d.ID, d.Line); err != nil {
				t.Fatal(err)
			}
			w.docs[stream]++
		}
	}
}

// checkMapping wants the types of the templates in the index, and a document
// to come back whole.
func checkMapping(t *testing.T, s *testserver.Server) {
	var caps map[string]struct {
		Mappings struct{ Properties map[string]any }
	}
	s.Ask(http.MethodGet, "/"+testIO+"/_mapping", "", &caps)
	if len(caps) == 0 {
		t.Fatal("no backing index")
	}
	for index, m := range caps {
		if !strings.HasPrefix(index, ".ds-"+testIO) {
			t.Errorf("%s is not a backing index of a data stream", index)
		}
		io, _ := m.Mappings.Properties["iotrace"].(map[string]any)
		read := lookup(io, "properties.read.properties.bytes.type")
		dim := lookup(io, "properties.group.properties.id.time_series_dimension")
		if read != "long" || (dim == true) != s.TimeSeries {
			t.Errorf("mapping: read.bytes is %v, group.id is a dimension: %v", read, dim)
		}
	}
	var found struct {
		Hits struct {
			Hits []struct {
				Source json.RawMessage `json:"_source"`
			}
		}
	}
	s.Ask(http.MethodPost, "/"+testIO+"/_search", `{"size":1,"query":{"term":{"iotrace.project.name":"project-1"}}}`, &found)
	if len(found.Hits.Hits) != 1 {
		t.Fatal("no document of project-1")
	}
	var doc map[string]any
	if err := json.Unmarshal(found.Hits.Hits[0].Source, &doc); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"@timestamp", "container.id", "container.labels.com_docker_compose_project", "iotrace.cgroup.id", "iotrace.group.name", "iotrace.write.latency.p99", "host.os.kernel"} {
		if lookup(doc, p) == nil {
			t.Errorf("document came back without %s: %s", p, found.Hits.Hits[0].Source)
		}
	}
}

// checkDashboard runs every aggregation of the dashboard.
func checkDashboard(t *testing.T, s *testserver.Server) {
	objects := savedObjects(t)
	ran := 0
	for name, o := range objects {
		if o.Type != "visualization" {
			continue
		}
		var vis struct{ Aggs []visAgg }
		if err := json.Unmarshal([]byte(o.Attributes.VisState), &vis); err != nil {
			t.Fatal(err)
		}
		if len(vis.Aggs) == 0 {
			continue // lists of values to choose from
		}
		metrics, order := make(map[string]any), ""
		for _, a := range vis.Aggs {
			if a.Schema == "metric" {
				metrics[a.ID] = map[string]any{a.Type: map[string]any{"field": a.Params.Field}}
			}
		}
		aggs := metrics
		for _, a := range slices.Backward(vis.Aggs) {
			switch {
			case a.Schema == "metric":
				continue
			case a.Type == "date_histogram":
				aggs = map[string]any{a.ID: map[string]any{a.Type: map[string]any{"field": a.Params.Field, "fixed_interval": "30s", "min_doc_count": 1}, "aggs": aggs}}
			default:
				order = "_key"
				if _, ok := aggs[a.Params.OrderBy]; ok {
					order = a.Params.OrderBy
				}
				aggs = map[string]any{a.ID: map[string]any{a.Type: map[string]any{"field": a.Params.Field, "size": a.Params.Size, "missing": "(none)", "order": map[string]any{order: "desc"}}, "aggs": aggs}}
			}
		}
		body, err := json.Marshal(map[string]any{"size": 0, "aggs": aggs})
		if err != nil {
			t.Fatal(err)
		}
		index := ""
		for _, r := range o.References {
			index = strings.TrimPrefix(titleOf(objects, r.Type+"/"+r.ID), "")
		}
		var r struct {
			Aggregations map[string]struct {
				Value   *float64
				Buckets []any
			}
		}
		s.Ask(http.MethodPost, "/"+url.PathEscape(index)+"/_search", string(body), &r)
		for id, a := range r.Aggregations {
			if a.Value == nil && len(a.Buckets) == 0 {
				t.Errorf("%s: aggregation %s finds nothing in %s", name, id, index)
			}
		}
		ran++
	}
	if ran != 8 {
		t.Errorf("%d visualizations, want 8", ran)
	}
}

func titleOf(objects map[string]savedObject, name string) string {
	return objects[name].Attributes.Title
}

// TestElasticsearchRealSecurity uses a server with TLS and passwords, and a
// user who may write to our streams and do nothing else.
func TestElasticsearchRealSecurity(t *testing.T) {
	const password = "changeme-iotrace"
	ca := newTestCA(t)
	cert := ca.issue(t, "localhost", net.IPv4(127, 0, 0, 1))
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	s := testserver.Elasticsearch(t, &testserver.Security{
		Password: password,
		Cert:     append(block("CERTIFICATE", cert.Certificate[0]), block("CERTIFICATE", cert.Certificate[1])...),
		Key:      block("PRIVATE KEY", key),
		Client:   &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}},
		Writer:   "writer",
		Role:     "iotrace_writer:\n  cluster: []\n  indices:\n    - names: ['metrics-iotrace.*', 'logs-iotrace.*']\n      privileges: [create_doc, auto_configure]\n",
	})
	fingerprint := fmt.Sprintf("%x", sha256.Sum256(ca.cert.Raw))
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, block("CERTIFICATE", ca.cert.Raw), 0o600); err != nil {
		t.Fatal(err)
	}
	admin := testOptions(t, s.URL)
	admin.Credentials = Credentials{Username: "elastic", Password: password, Fingerprint: fingerprint}
	var progress bytes.Buffer
	if err := Setup(t.Context(), admin, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	writer := testOptions(t, s.URL)
	writer.Credentials = Credentials{Username: "writer", Password: password, CAFile: caFile}
	e := start(t, writer)
	ship(t, e, testEvents, 0, 10)
	outputtest.Until(t, "documents stored", func() bool { return e.Stats().Pending == 0 })
	if st := closeAll(t, e); st.Delivered != 10 {
		t.Errorf("%+v", st)
	}
	for _, c := range []struct {
		name, stream, want string
		spoil              func(*Options)
	}{
		// The user may not write to this stream: its documents wait for the
		// privilege and are not rejected for good.
		{"stream", "logs-other-default", "403", func(*Options) {}},
		{"password", testEvents, "401", func(o *Options) { o.Credentials.Password = "wrong" }},
		{"key", testEvents, "401", func(o *Options) {
			o.Credentials.Username, o.Credentials.Password, o.Credentials.APIKey = "", "", "wrong:key"
		}},
		{"authority", testEvents, "certificate", func(o *Options) { o.Credentials.CAFile = "" }},
	} {
		opt := writer
		opt.SpoolDir = filepath.Join(t.TempDir(), "spool")
		c.spoil(&opt)
		e := start(t, opt)
		ship(t, e, c.stream, 0, 3)
		outputtest.Until(t, "a failure", func() bool { return e.Stats().Failing })
		if st := closeAll(t, e); st.Pending != 3 || st.DeadLettered != 0 || !strings.Contains(st.LastError, c.want) {
			t.Errorf("wrong %s: %+v", c.name, st)
		}
	}
}

// TestElasticsearchDiskFull runs the spool on a file system of 3 MiB.
func TestElasticsearchDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	f := newFakeServer(t)
	f.mu.Lock()
	away := true
	f.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		if away {
			w.WriteHeader(503)
		}
		return away
	}
	f.mu.Unlock()
	opt := testOptions(t, f.URL)
	opt.SpoolDir, opt.QueueBytes, opt.BatchBytes = filepath.Join(dir, "spool"), 1<<20, 256<<10
	e := start(t, opt)
	n := 0
	outputtest.Until(t, "a full disk and a full queue", func() bool {
		for range 200 {
			doc := incompressible("", 300).Body
			if err := e.Ship(testEvents, "", fmt.Appendf(nil, `{"n":%d,"x":"%x"}`, n, doc)); err != nil {
				t.Fatal(err)
			}
			n++
		}
		s := e.Stats()
		return s.Dropped > 0 && s.Spooled > 0
	})
	f.mu.Lock()
	away = false
	f.mu.Unlock()
	outputtest.Until(t, "everything that was kept", func() bool { return e.Stats().Pending == 0 })
	s := closeAll(t, e)
	if got := uint64(f.count()); got != s.Delivered || s.Delivered+s.Dropped != uint64(n) || s.Delivered < 1000 || s.Duplicates != 0 {
		t.Errorf("server has %d documents; %+v", got, s)
	}
}

// BenchmarkElasticsearchReal ships documents of single requests to a real server,
// the one that $IOTRACE_TEST_ELASTICSEARCH names or one of its own, and beside that
// sends it the same requests, made in advance and one after the other, by which we
// see what the server itself is capable of.
func BenchmarkElasticsearchReal(b *testing.B) {
	target := os.Getenv("IOTRACE_TEST_ELASTICSEARCH")
	if target == "" {
		target = testserver.Elasticsearch(b, nil).URL
	}
	opt := Options{URLs: []string{target}, QueueBytes: 64 << 20}
	if err := Setup(b.Context(), opt, io.Discard); err != nil {
		b.Fatal(err)
	}
	doc := benchmarkDoc()
	b.Run("shipper", func(b *testing.B) {
		e, err := New(b.Context(), opt)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(doc)))
		before := outputtest.CPUTime(b)
		for b.Loop() {
			for e.Stats().QueueBytes > 32<<20 {
				time.Sleep(time.Millisecond)
			}
			if err := e.Ship(testEvents, "", doc); err != nil {
				b.Fatal(err)
			}
		}
		if err := e.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		if s := e.Stats(); s.Delivered != uint64(b.N) {
			b.Fatalf("%+v", s)
		}
		outputtest.DocRates(b, float64(b.N), before)
	})
	b.Run("server's limit", func(b *testing.B) {
		const batch = 4000
		client, err := newClient(opt.URLs, opt.Credentials, opt.Flavour, discardLogger())
		if err != nil {
			b.Fatal(err)
		}
		defer client.close()
		srv, err := client.detect(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		docs := make([]spooled, batch)
		for i := range docs {
			// Ids are the server's here.
			docs[i] = spooled{Stream: testEvents, Body: bytes.TrimSuffix(doc, []byte("\n"))}
		}
		body, err := bulkBody(docs, srv)
		if err != nil {
			b.Fatal(err)
		}
		body = gunzip(b, body)
		body = bytes.ReplaceAll(body, []byte(`,"_id":""`), nil)
		b.SetBytes(int64(len(doc)))
		sent := 0
		for b.Loop() {
			if sent++; sent%batch != 1 {
				continue
			}
			res, err := http.Post(target+"/_bulk?filter_path=errors", "application/x-ndjson", bytes.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			reply, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(reply) != `{"errors":false}` {
				b.Fatalf("%s", cut(string(reply), 500))
			}
		}
		full := (sent + batch - 1) / batch * batch
		b.ReportMetric(float64(full)/b.Elapsed().Seconds(), "docs/s")
	})
}

func gunzip(b *testing.B, body []byte) []byte {
	zr, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	body, err = io.ReadAll(zr)
	if err != nil {
		b.Fatal(err)
	}
	return body
}
