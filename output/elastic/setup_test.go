package elastic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// formerFields are in documents of earlier versions, which must stay readable.
var formerFields = []string{"iotrace.group.by"}

// TestElasticTemplatesCoverDocuments wants a mapping for every field that a
// document can have, of a type that fits, and no others.
func TestElasticTemplatesCoverDocuments(t *testing.T) {
	fields, err := mappedFields()
	if err != nil {
		t.Fatal(err)
	}
	paths := ndjson.Fields()
	if len(paths) < 100 {
		t.Fatalf("only %d fields found in documents", len(paths))
	}
	for _, p := range paths {
		if fields[p] == nil {
			t.Errorf("document field %q has no mapping", p)
		}
	}
	for p, f := range fields {
		if !slices.Contains(paths, p) && !slices.Contains(formerFields, p) {
			t.Errorf("mapping of %q, which no document has", p)
		}
		if f["time_series_dimension"] == true && f["time_series_metric"] != nil {
			t.Errorf("%q is dimension and metric", p)
		}
	}
}

// TestElasticDimensionsTellDocumentsApart: a time series stream keeps one of two
// documents with the same time and dimensions.
func TestElasticDimensionsTellDocumentsApart(t *testing.T) {
	dims, err := dimensionPaths()
	if err != nil {
		t.Fatal(err)
	}
	iv := outputtest.Cluster(time.Unix(1700000000, 0), 7)
	for _, by := range [][]output.Key{{output.KeyContainer}, {output.KeyProject}, {output.KeyService}, {output.KeyCgroup}, {output.KeyProcess}, {output.KeyDevice}, {output.KeyMount}, {output.KeyHost}, {output.KeySource},
		{output.KeyOp}, {output.KeyImage}, {output.KeyPod}, {output.KeyNamespace}, {output.KeyNFSServer}, {output.KeyContainer, output.KeyDevice}, {output.KeyProject, output.KeyOp}, {output.KeyLabel("team")}} {
		for _, top := range []int{0, 2} {
			r := output.Group(iv, output.GroupOptions{By: by, Top: top, Stacked: true})
			seen := make(map[string]string)
			n := 0
			for d := range ndjson.Documents(r, iv, ndjson.Options{}) {
				if d.Dataset != output.DatasetIO {
					continue
				}
				n++
				var tree map[string]any
				if err := json.Unmarshal(d.Line, &tree); err != nil {
					t.Fatal(err)
				}
				var key []string
				for _, p := range dims {
					key = append(key, fmt.Sprint(lookup(tree, p)))
				}
				k := strings.Join(key, "|")
				if other, ok := seen[k]; ok {
					t.Errorf("by %v: same dimensions %s for\n%s%s", by, k, other, d.Line)
				}
				seen[k] = string(d.Line)
			}
			if n == 0 {
				t.Errorf("by %v: no documents", by)
			}
		}
	}
}

func lookup(tree map[string]any, path string) any {
	var v any = tree
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// fakeCluster answers setup requests and keeps the bodies.
type fakeCluster struct {
	*httptest.Server
	info    string
	modules string
	answer  map[string]int    // path -> status
	reply   map[string]string // path -> body
	mu      sync.Mutex
	got     map[string]string
	header  http.Header
}

func newFakeCluster(t *testing.T, info, modules string) *fakeCluster {
	f := &fakeCluster{info: info, modules: modules, answer: map[string]int{}, reply: map[string]string{}, got: make(map[string]string)}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/":
			io.WriteString(w, f.info)
		case strings.HasPrefix(r.URL.Path, "/_nodes/"):
			io.WriteString(w, f.modules)
		case r.URL.Path == "/api/saved_objects/_import":
			f.header = r.Header
			_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
			form, err := multipart.NewReader(r.Body, params["boundary"]).ReadForm(1 << 20)
			if err != nil || len(form.File["file"]) != 1 {
				http.Error(w, "no file", http.StatusBadRequest)
				return
			}
			file, _ := form.File["file"][0].Open()
			b, _ := io.ReadAll(file)
			f.got[r.URL.Path] = string(b)
			if f.answer[r.URL.Path] == 0 {
				io.WriteString(w, `{"success":true,"successCount":13}`)
			} else {
				io.WriteString(w, `{"success":false,"errors":[{"error":{"type":"conflict"}}]}`)
			}
		default:
			b, _ := io.ReadAll(r.Body)
			f.got[r.URL.Path] = string(b)
			if s := f.answer[r.URL.Path]; s != 0 {
				w.WriteHeader(s)
				if s >= 300 {
					io.WriteString(w, `{"error":{"type":"x","reason":"no handler found for uri"}}`)
					return
				}
			}
			if body, ok := f.reply[r.URL.Path]; ok {
				io.WriteString(w, body)
				return
			}
			io.WriteString(w, `{"acknowledged":true}`)
		}
	}))
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fakeCluster) setup(t *testing.T, s SetupOptions) (progress string, err error) {
	var out bytes.Buffer
	err = Setup(t.Context(), Options{URLs: []string{f.URL}, Setup: s}, &out)
	return out.String(), err
}

func TestElasticsearchSetupCurrent(t *testing.T) {
	f := newFakeCluster(t, infoES8, `{"nodes":{"a":{"version":"8.19.16","modules":[{"name":"data-streams"},{"name":"constant-keyword"}]}}}`)
	out, err := f.setup(t, SetupOptions{RetentionDays: 3, KibanaURL: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	ts := f.got["/_component_template/iotrace@timeseries"]
	if !strings.Contains(ts, `"mode":"time_series"`) || !strings.Contains(ts, `"look_back_time":"7d"`) || strings.Contains(ts, "routing_path") {
		t.Errorf("time series settings: %s", ts)
	}
	io := f.got["/_index_template/metrics-iotrace.io"]
	if !strings.Contains(io, `"data_retention":"3d"`) || !strings.Contains(io, "iotrace@timeseries") {
		t.Errorf("index template: %s", io)
	}
	if !strings.Contains(f.got["/_component_template/iotrace@fields"], `"time_series_dimension":true`) ||
		!strings.Contains(f.got["/_component_template/iotrace@ecs"], `"constant_keyword"`) {
		t.Error("fields are not what a time series needs")
	}
	for path := range f.got {
		if strings.Contains(path, "_ilm") || strings.Contains(path, "_plugins") {
			t.Errorf("unneeded policy %s", path)
		}
	}
	if f.got["/api/saved_objects/_import"] != string(KibanaDashboard()) || f.header.Get("kbn-xsrf") == "" || f.header.Get("osd-xsrf") == "" {
		t.Errorf("dashboard is not imported: %v", f.header)
	}
	if !strings.Contains(out, "13 saved objects imported") || !strings.Contains(out, "elasticsearch 8.19.16") {
		t.Errorf("progress: %s", out)
	}
	f.answer["/api/saved_objects/_import"] = 1
	if _, err := f.setup(t, SetupOptions{KibanaURL: f.URL}); err == nil || !strings.Contains(err.Error(), "conflict") {
		t.Errorf("import with errors: %v", err)
	}
	f.answer["/_index_template/metrics-iotrace.io"] = 403
	if _, err := f.setup(t, SetupOptions{}); err == nil || !strings.Contains(err.Error(), "metrics-iotrace.io: server said 403") {
		t.Errorf("template refused: %v", err)
	}
}

// TestElasticsearchSetupUpgrades: an index gets the fields that it lacks and no others; a
// key that may not add them is told, and templates are installed all the same.
func TestElasticsearchSetupUpgrades(t *testing.T) {
	f := newFakeCluster(t, infoES8, `{}`)
	f.reply["/_resolve/index/"+ourStreams] = `{"data_streams":[{"name":"logs-iotrace.status-x","backing_indices":"one"},{"name":"metrics-iotrace.io-x","backing_indices":["one","two"]}]}`
	f.reply["/logs-iotrace.status-x/_mapping"] = `{"one":{"mappings":{}}}`
	f.reply["/metrics-iotrace.io-x/_mapping"] = `{"one":{"mappings":{"properties":{"host":{"properties":{"name":{"type":"text"}}}}}},"two":{"mappings":{"properties":{"host":{"properties":{"name":{"type":"keyword"}}}}}}}`
	f.answer["/one/_mapping"] = 403
	out, err := f.setup(t, SetupOptions{})
	if err != nil || strings.Count(out, "when a key with the index privilege manage runs this\n") != 2 {
		t.Errorf("refused: %v\n%s", err, out)
	}
	delete(f.answer, "/one/_mapping")
	out, err = f.setup(t, SetupOptions{})
	if err != nil || !strings.Contains(out, "data stream metrics-iotrace.io-x: has the fields of this version, added to 2 of 2 indices\n") {
		t.Errorf("%v\n%s", err, out)
	}
	var sent struct{ Properties map[string]any }
	if err := json.Unmarshal([]byte(f.got["/two/_mapping"]), &sent); err != nil {
		t.Fatal(err)
	}
	if lookup(sent.Properties, "host.properties.name") != nil || lookup(sent.Properties, "host.properties.id.type") != "keyword" || lookup(sent.Properties, "iotrace.properties.grain.type") != "keyword" || sent.Properties["data_stream"] != nil {
		t.Errorf("fields for an index that has host.name: %s", f.got["/two/_mapping"])
	}
	if _, ok := f.got["/metrics-iotrace.io-x/_rollover"]; ok {
		t.Error("a rollover because of an index that is not written to")
	}
	f.reply["/metrics-iotrace.io-x/_mapping"] = `{"two":{"mappings":{"properties":{"host":{"type":"object","enabled":false},"message":{"type":"keyword"}}}}}`
	if out, err = f.setup(t, SetupOptions{}); err != nil || !strings.Contains(out, "metrics-iotrace.io-x: rolled over, because its index had another type of host, message\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestElasticsearchSetupOlder(t *testing.T) {
	f := newFakeCluster(t, `{"version":{"number":"7.17.29"}}`, `{}`)
	if _, err := f.setup(t, SetupOptions{RetentionDays: 5}); err != nil {
		t.Fatal(err)
	}
	if p := f.got["/_ilm/policy/iotrace"]; !strings.Contains(p, `"5d"`) || strings.Contains(p, `"14d"`) {
		t.Errorf("policy: %s", p)
	}
	all := fmt.Sprint(f.got)
	for _, bad := range []string{"time_series", "data_retention", "iotrace@timeseries"} {
		if strings.Contains(all, bad) {
			t.Errorf("%q is sent to a server that does not know it", bad)
		}
	}
	if io := f.got["/_index_template/metrics-iotrace.io"]; !strings.Contains(io, `"lifecycle":{"name":"iotrace"}`) {
		t.Errorf("template does not name the policy: %s", io)
	}

	old := newFakeCluster(t, `{"version":{"number":"7.9.3"}}`, `{}`)
	if _, err := old.setup(t, SetupOptions{}); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("7.9: %v", err)
	}
}

func TestElasticsearchSetupServerless(t *testing.T) {
	f := newFakeCluster(t, `{"version":{"number":"8.11.0","build_flavor":"serverless"}}`, `{"error":"gone"}`)
	if _, err := f.setup(t, SetupOptions{}); err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprint(f.got)
	if !strings.Contains(all, "time_series") || !strings.Contains(all, `"data_retention":"14d"`) || strings.Contains(all, "codec") || strings.Contains(all, "_ilm") {
		t.Errorf("sent: %s", all)
	}
}

func TestElasticsearchSetupOpenSearch(t *testing.T) {
	f := newFakeCluster(t, infoOpenSearch, `{}`)
	if _, err := f.setup(t, SetupOptions{}); err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprint(f.got)
	for _, bad := range []string{"time_series", "data_retention", "flattened", `"type":"histogram"`, "constant_keyword"} {
		if strings.Contains(all, bad) {
			t.Errorf("%q is sent to OpenSearch", bad)
		}
	}
	if !strings.Contains(all, "flat_object") || !strings.Contains(f.got["/_plugins/_ism/policies/iotrace"], `"14d"`) {
		t.Errorf("sent: %s", all)
	}
	for status, want := range map[int]string{400: "this server has none", 409: "was not changed"} {
		f.answer["/_plugins/_ism/policies/iotrace"] = status
		if out, err := f.setup(t, SetupOptions{}); err != nil || !strings.Contains(out, want) {
			t.Errorf("policy answered with %d: %v, progress %s", status, err, out)
		}
	}
	f.answer["/_plugins/_ism/policies/iotrace"] = 500
	if _, err := f.setup(t, SetupOptions{}); err == nil {
		t.Error("policy answered with 500: no error")
	}
	older := newFakeCluster(t, `{"version":{"number":"2.5.0","distribution":"opensearch"}}`, `{}`)
	if _, err := older.setup(t, SetupOptions{RetentionDays: -1}); err != nil {
		t.Fatal(err)
	}
	if all := fmt.Sprint(older.got); strings.Contains(all, "flat_object") || strings.Contains(all, "constant_keyword") || strings.Contains(all, "_ism") {
		t.Errorf("sent to 2.5: %s", all)
	}
}

// savedObject is a line of the dashboard file.
type savedObject struct {
	ID, Type   string
	Attributes struct {
		Title, VisState, PanelsJSON string
		Columns                     []string
		Meta                        struct{ SearchSourceJSON string } `json:"kibanaSavedObjectMeta"`
	}
	References []struct{ Name, Type, ID string }
}

// queryField matches a field in a query of a saved object.
var queryField = regexp.MustCompile(`([a-z_.]+) : `)

type visAgg struct {
	ID, Type, Schema string
	Params           struct {
		Field, OrderBy string
		Size           int
	}
}

func savedObjects(t *testing.T) map[string]savedObject {
	objects := make(map[string]savedObject)
	for line := range bytes.Lines(KibanaDashboard()) {
		var o savedObject
		dec := json.NewDecoder(bytes.NewReader(line))
		if err := dec.Decode(&o); err != nil {
			t.Fatal(err)
		}
		objects[o.Type+"/"+o.ID] = o
	}
	return objects
}

// TestKibanaDashboard checks that every reference leads somewhere and every
// field exists. The integration tests run its aggregations on real servers.
func TestKibanaDashboard(t *testing.T) {
	fields, err := mappedFields()
	if err != nil {
		t.Fatal(err)
	}
	objects := savedObjects(t)
	panels := 0
	var controls []string
	for name, o := range objects {
		for _, r := range o.References {
			if _, ok := objects[r.Type+"/"+r.ID]; !ok {
				t.Errorf("%s refers to %s/%s, which is not there", name, r.Type, r.ID)
			}
		}
		switch o.Type {
		case "visualization":
			var vis struct {
				Aggs   []visAgg
				Params struct {
					Controls     []struct{ FieldName, IndexPatternRefName string }
					SeriesParams []struct{ Data struct{ ID string } }
				}
			}
			if err := json.Unmarshal([]byte(o.Attributes.VisState), &vis); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, c := range vis.Params.Controls {
				controls = append(controls, c.FieldName)
				if f := fields[c.FieldName]; f == nil || f["type"] != "keyword" {
					t.Errorf("%s: a list of values of %q, which is no keyword", name, c.FieldName)
				}
				if !slices.ContainsFunc(o.References, func(r struct{ Name, Type, ID string }) bool { return r.Name == c.IndexPatternRefName }) {
					t.Errorf("%s: no index pattern %s", name, c.IndexPatternRefName)
				}
			}
			for _, m := range queryField.FindAllStringSubmatch(o.Attributes.Meta.SearchSourceJSON, -1) {
				if fields[m[1]] == nil {
					t.Errorf("%s: no field %q in its query", name, m[1])
				}
			}
			for _, a := range vis.Aggs {
				f := fields[a.Params.Field]
				if f == nil {
					t.Errorf("%s: no field %q", name, a.Params.Field)
				}
				if kind := f["type"]; (a.Type == "sum" || a.Type == "max") != (kind == "long") {
					t.Errorf("%s: %s of %s field %q", name, a.Type, kind, a.Params.Field)
				}
			}
			for _, s := range vis.Params.SeriesParams {
				if !slices.ContainsFunc(vis.Aggs, func(a visAgg) bool { return a.ID == s.Data.ID && a.Schema == "metric" }) {
					t.Errorf("%s: a series without metric %s", name, s.Data.ID)
				}
			}
		case "search":
			for _, c := range o.Attributes.Columns {
				if fields[c] == nil {
					t.Errorf("%s: no field %q", name, c)
				}
			}
		case "dashboard":
			var list []struct{ PanelRefName string }
			if err := json.Unmarshal([]byte(o.Attributes.PanelsJSON), &list); err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				panels++
				if !slices.ContainsFunc(o.References, func(r struct{ Name, Type, ID string }) bool { return r.Name == p.PanelRefName }) {
					t.Errorf("panel %q has no reference", p.PanelRefName)
				}
			}
		}
		if src := o.Attributes.Meta.SearchSourceJSON; src != "" && !json.Valid([]byte(src)) {
			t.Errorf("%s: search source is no JSON", name)
		}
	}
	if panels != 10 {
		t.Errorf("dashboard has %d panels, want 10", panels)
	}
	if want := []string{"host.name", "iotrace.project.name", "iotrace.nfs.server"}; !slices.Equal(controls, want) {
		t.Errorf("the dashboard can be narrowed by %v, want %v", controls, want)
	}
}
