package elastic

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
)

// searcher stands in for a server with the field type histogram, which the servers of the
// integration tests do not have. Its range aggregation does what the documentation says:
// it adds up the counts of a histogram's values from "from" to below "to".
type searcher struct {
	*httptest.Server
	docs   []object
	refuse bool // range aggregations
	asked  int  // searches with one
}

func newSearcher(t *testing.T) *searcher {
	s := &searcher{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
		answer := object{}
		var ask struct {
			Query struct{ Bool struct{ Filter []object } }
			Aggs  object
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/_field_caps"):
			known := object{}
			fields, err := mappedFields()
			if err != nil {
				t.Error(err)
			}
			for path, f := range fields {
				known[path] = object{f["type"].(string): object{}}
			}
			answer["fields"] = known
		case strings.HasPrefix(r.URL.Path, "/logs-"):
			w.WriteHeader(http.StatusNotFound)
		default:
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
				t.Error(err)
			}
			groups, composite := ask.Aggs["groups"].(object)
			if !composite {
				answer["aggregations"] = object{"grains": object{"buckets": []object{{"key": DefaultGrain}}}, "old": object{"doc_count": 0}}
				break
			}
			aggs := groups["aggs"].(object)
			if _, ok := aggs["ranges"]; ok {
				s.asked++
				if s.refuse {
					w.WriteHeader(http.StatusBadRequest)
					answer = object{"error": object{"type": "illegal_argument_exception", "reason": "no"}}
					break
				}
			}
			answer["aggregations"] = object{"groups": s.composite(groups["composite"].(object), aggs, ask.Query.Bool.Filter)}
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *searcher) composite(c, aggs object, filters []object) object {
	groups := make(map[string][]object)
	for _, doc := range s.docs {
		if slices.ContainsFunc(filters, func(f object) bool {
			exists, ok := f["exists"].(object)
			return ok && lookup(doc, exists["field"].(string)) == nil
		}) {
			continue
		}
		key := object{}
		for _, source := range c["sources"].([]any) {
			for name, terms := range source.(object) {
				key[name] = lookup(doc, terms.(object)["terms"].(object)["field"].(string))
				if list, ok := key[name].([]any); ok {
					key[name] = list[0]
				}
			}
		}
		text, _ := json.Marshal(key)
		groups[string(text)] = append(groups[string(text)], doc)
	}
	keys := slices.Sorted(maps.Keys(groups))
	if after, ok := c["after"]; ok {
		text, _ := json.Marshal(after)
		keys = keys[slices.Index(keys, string(text))+1:]
	}
	keys = keys[:min(len(keys), int(c["size"].(float64)))]
	buckets := []object{}
	for _, k := range keys {
		b := object{"key": json.RawMessage(k), "doc_count": len(groups[k])}
		for name, agg := range aggs {
			for kind, v := range agg.(object) {
				b[name] = aggregate(kind, v.(object), groups[k])
			}
		}
		buckets = append(buckets, b)
	}
	reply := object{"buckets": buckets}
	if len(keys) > 0 {
		reply["after_key"] = json.RawMessage(keys[len(keys)-1])
	}
	return reply
}

func aggregate(kind string, agg object, docs []object) object {
	field := agg["field"].(string)
	if kind == "range" {
		var values, counts []float64
		for _, doc := range docs {
			h := lookup(doc, field).(object)
			for i, v := range h["values"].([]any) {
				values, counts = append(values, v.(float64)), append(counts, h["counts"].([]any)[i].(float64))
			}
		}
		buckets := []object{}
		for _, v := range agg["ranges"].([]any) {
			within := v.(object)
			from, to := 0.0, 1e300
			if f, ok := within["from"].(float64); ok {
				from = f
			}
			if f, ok := within["to"].(float64); ok {
				to = f
			}
			n := 0.0
			for i, v := range values {
				if v >= from && v < to {
					n += counts[i]
				}
			}
			b := object{"doc_count": n}
			maps.Copy(b, within)
			buckets = append(buckets, b)
		}
		return object{"buckets": buckets}
	}
	total, longest := 0.0, 0.0
	for _, doc := range docs {
		switch v := lookup(doc, field).(type) {
		case float64:
			total, longest = total+v, max(longest, v)
		case string:
			if at, err := time.Parse(time.RFC3339, v); err == nil {
				longest = max(longest, float64(at.UnixMilli()))
			}
		}
	}
	if kind == "max" {
		return object{"value": longest}
	}
	return object{"value": total}
}

// TestClusterLatencies: latencies of several hosts and intervals have the quantiles of all of
// them together, exactly, over several pages. A server that refuses still has the bytes.
func TestClusterLatencies(t *testing.T) {
	s := newSearcher(t)
	rng := rand.New(rand.NewPCG(22, 1))
	end := time.Now().Truncate(time.Minute)
	latency := func() (l output.Latency) {
		counts := make(map[uint64]uint64)
		for i := range 40 {
			log := 8 + rng.UintN(29)
			if i == 0 {
				log = 38 // above the highest bucket of the question
			}
			counts[uint64(5+rng.UintN(4))<<(log-2)-1]++
		}
		for _, upTo := range slices.Sorted(maps.Keys(counts)) {
			l.Buckets = append(l.Buckets, output.Bucket{UpTo: upTo, Count: counts[upTo]})
			l.Max = upTo - 1
		}
		return l
	}
	group := output.GroupOptions{By: []output.Key{output.KeyContainer, output.KeyDevice, output.KeyMount}}
	want := make(map[string]*output.Sample)
	for i := range 2 {
		for host := range 2 {
			iv := &output.Interval{Start: end.Add(time.Duration(i-3) * 10 * time.Second), End: end.Add(time.Duration(i-2) * 10 * time.Second), Host: output.Host{Name: fmt.Sprint("web", host), ID: fmt.Sprint(host)}}
			for c := range 270 {
				project := fmt.Sprint("p", c%3)
				x := output.Sample{Source: output.SourceNFS, Level: output.LevelWire, Owner: output.OwnerContainer, Project: project,
					Container: output.Container{ID: fmt.Sprintf("%d%063d", host, c), Name: fmt.Sprint("c", c)}, Device: output.Device{ID: "0:50"}, Mount: output.Mount{Source: "nas1:/e", FSType: "nfs4", NFSServer: "nas1"},
					Read: output.Amount{Bytes: uint64(c), Ops: 40, Latency: latency()}, Metadata: output.Amount{Ops: 40, Latency: latency()}}
				if want[project] == nil {
					want[project] = new(output.Sample)
				}
				want[project].Read.Add(&x.Read)
				want[project].Metadata.Add(&x.Metadata)
				iv.Samples = append(iv.Samples, x)
			}
			for d := range ndjson.Documents(output.Group(iv, group), iv, ndjson.Options{}) {
				if d.Dataset == output.DatasetIO {
					var doc object
					if err := json.Unmarshal(d.Line, &doc); err != nil {
						t.Fatal(err)
					}
					s.docs = append(s.docs, doc)
				}
			}
		}
	}
	read := func(q QueryOptions, log *slog.Logger) map[string]*output.Sample {
		t.Helper()
		q.Since, q.Until = end.Add(-time.Minute), end
		r, err := OpenReader(t.Context(), Options{URLs: []string{s.URL}, Logger: log}, q)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if !r.Latencies() || len(r.Unmapped) > 0 {
			t.Errorf("latencies %v, unmapped %v", r.Latencies(), r.Unmapped)
		}
		iv, err := r.Interval(t.Context(), q.Since, q.Until)
		if err != nil {
			t.Fatal(err)
		}
		if len(iv.Samples) != 540 {
			t.Errorf("%d samples, want 540", len(iv.Samples))
		}
		got := make(map[string]*output.Sample)
		for i := range iv.Samples {
			x := &iv.Samples[i]
			if got[x.Project] == nil {
				got[x.Project] = new(output.Sample)
			}
			got[x.Project].Read.Add(&x.Read)
			got[x.Project].Metadata.Add(&x.Metadata)
		}
		return got
	}
	got := read(QueryOptions{Latency: true}, nil)
	for project, w := range want {
		for _, op := range []output.Op{output.OpRead, output.OpMetadata} {
			a, b := got[project].Amount(op), w.Amount(op)
			if a.Bytes != b.Bytes || a.Ops != b.Ops || a.Latency.Count() != b.Latency.Count() || a.Latency.Count() != 180*40*2 {
				t.Errorf("%s %s: %d bytes, %d ops, %d latencies, want %d, %d, %d", project, op, a.Bytes, a.Ops, a.Latency.Count(), b.Bytes, b.Ops, b.Latency.Count())
			}
			for _, q := range []float64{0.25, 0.5, 0.95} { // within the buckets of the question
				if x, y := a.Latency.Quantile(q), b.Latency.Quantile(q); x != y || x == 0 {
					t.Errorf("%s %s: quantile %v is %d, want %d", project, op, q, x, y)
				}
			}
			if x, y := a.Latency.Quantile(1), b.Latency.Max; x != y {
				t.Errorf("%s %s: the longest is %d, want %d", project, op, x, y)
			}
		}
	}
	s.asked = 0
	if without := read(QueryOptions{}, nil); s.asked != 0 || without["p1"].Read.Latency.Count() != 0 || without["p1"].Read.Bytes != want["p1"].Read.Bytes {
		t.Errorf("without latencies the server was asked %d times for them", s.asked)
	}
	s.refuse = true
	var said strings.Builder
	refused := read(QueryOptions{Latency: true}, slog.New(slog.NewTextHandler(&said, nil)))
	if refused["p2"].Read.Bytes != want["p2"].Read.Bytes || strings.Count(said.String(), "does not add up latencies") != 1 || s.asked != 1 {
		t.Errorf("a server that refuses: %d bytes, %d questions, says %s", refused["p2"].Read.Bytes, s.asked, said.String())
	}
}
