package ndjson

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
	"github.com/iotrace-bpf/iotrace-bpf/output/schema"
)

// schemas returns the compiled schema of every dataset.
func schemas(t testing.TB) map[string]*jsonschema.Schema {
	t.Helper()
	datasets, err := schema.Datasets()
	if err != nil {
		t.Fatal(err)
	}
	for _, dataset := range []string{output.DatasetIO, output.DatasetStatus, output.DatasetEvent, output.DatasetVXLAN} {
		if datasets[dataset] == nil {
			t.Fatalf("no schema for %q", dataset)
		}
	}
	return datasets
}

// validate checks a document against the schema of its dataset, and that its type,
// dataset and namespace are the same in all places. It returns the document.
func validate(t testing.TB, schemas map[string]*jsonschema.Schema, d Document) map[string]any {
	t.Helper()
	line, ok := bytes.CutSuffix(d.Line, []byte("\n"))
	if !ok || bytes.ContainsAny(line, "\n\r") || !utf8.Valid(line) {
		t.Fatalf("not one line of UTF-8: %q", d.Line)
	}
	outputtest.CheckSafe(t, string(line))
	if !stdjson.Valid(line) {
		t.Fatalf("not JSON: %s", line)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if err := schemas[d.Dataset].Validate(v); err != nil {
		t.Fatalf("%s\n%#v", line, err)
	}
	doc := v.(map[string]any)
	stream := doc["data_stream"].(map[string]any)
	event := doc["event"].(map[string]any)
	if stream["type"] != d.Type || stream["dataset"] != d.Dataset || stream["namespace"] != d.Namespace || event["dataset"] != d.Dataset {
		t.Errorf("document for %s-%s-%s says %v and %v", d.Type, d.Dataset, d.Namespace, stream, event)
	}
	if at, err := time.Parse(time.RFC3339Nano, doc["@timestamp"].(string)); err != nil || !at.Equal(d.Time) {
		t.Errorf("document of %v has time stamp %v (%v)", d.Time, doc["@timestamp"], err)
	}
	noDots(t, doc)
	return doc
}

// noDots fails on keys with dots, which Elasticsearch takes for objects.
func noDots(t testing.TB, v any) {
	t.Helper()
	m, _ := v.(map[string]any)
	for k, v := range m {
		if strings.Contains(k, ".") || k == "" {
			t.Errorf("key %q", k)
		}
		noDots(t, v)
	}
}

// docField returns the value under a path such as "iotrace.read.bytes".
func docField(v any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[part]
	}
	return v
}

func docNumber(t testing.TB, v any, path string) uint64 {
	t.Helper()
	n, ok := docField(v, path).(stdjson.Number)
	if !ok {
		return 0
	}
	i, err := n.Int64()
	if err != nil {
		t.Fatalf("%s is %v: %v", path, n, err)
	}
	return uint64(i)
}

func TestNDJSONGolden(t *testing.T) {
	var b bytes.Buffer
	n := New(&b, Options{})
	iv := outputtest.Shop()
	if err := n.Write(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "project,device"), Filters: outputtest.Filters(t, "project=*o*")}), iv); err != nil {
		t.Fatal(err)
	}
	outputtest.Golden(t, "project-device.ndjson", b.Bytes())

	b.Reset()
	iv.Samples = iv.Samples[:1]
	if err := n.Write(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "container"), Level: output.LevelBoth}), iv); err != nil {
		t.Fatal(err)
	}
	outputtest.Golden(t, "container.ndjson", b.Bytes())
}

// TestDocumentsFields looks at the fields that dashboards are built on.
func TestDocumentsFields(t *testing.T) {
	iv := outputtest.Shop()
	s := schemas(t)
	var docs []map[string]any
	for d := range Documents(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "container")}), iv, Options{Namespace: "prod"}) {
		docs = append(docs, validate(t, s, d))
	}
	db := docs[0]
	for path, want := range map[string]string{
		"@timestamp": "2026-03-04T05:06:07.123456789Z", "ecs.version": "9.4.0", "event.kind": "metric", "event.module": "iotrace",
		"event.category": "[host]", "event.type": "[info]", "event.dataset": "iotrace.io",
		"event.start": "2026-03-04T05:06:05.123456789Z", "event.end": "2026-03-04T05:06:07.123456789Z", "event.duration": "2000000000",
		"data_stream.type": "metrics", "data_stream.dataset": "iotrace.io", "data_stream.namespace": "prod",
		"host.name": "web1", "host.id": "5d1c6a3f0b0e4b9c8a7f6e5d4c3b2a10", "host.os.kernel": "6.12.48",
		"container.name": "shop-db-1", "container.runtime": "docker", "container.image.name": "registry.example/db", "container.image.tag": "[1.2]",
		"container.labels":      "map[com_docker_compose_project:shop com_docker_compose_service:db]",
		"iotrace.source":        "block",
		"iotrace.level":         "wire",
		"iotrace.owner":         "container",
		"iotrace.project.name":  "shop",
		"iotrace.project.rule":  "com.docker.compose.project",
		"iotrace.service.name":  "db",
		"iotrace.cgroup":        "map[id:4097 path:/docker/aaaa11110000]",
		"iotrace.device":        "map[id:8:0 name:sda stacked:false]",
		"iotrace.mount":         "map[fstype:ext4 point:/ source:/dev/sda1]",
		"iotrace.read.bytes":    "3145728",
		"iotrace.read.ops":      "49",
		"iotrace.read.latency":  "map[histogram:map[counts:[45 4] values:[675000 1125000]] max:900000 p50:675000 p95:900000 p99:900000]",
		"iotrace.write.bytes":   "94371840",
		"iotrace.write.ops":     "721",
		"iotrace.write.latency": "map[histogram:map[counts:[649 72] values:[3000000 5000000]] max:4000000 p50:3000000 p95:4000000 p99:4000000]",
		"iotrace.flush.ops":     "40",
		"iotrace.basis":         "map[bio:0 dirtier:94371840 journal:0 none:0 page:3145728 task:0]",
		"iotrace.grain":         "container",
		"iotrace.group.name":    "[shop-db-1]",
		"process":               "<nil>",
		"iotrace.write.errors":  "<nil>",
	} {
		if got := fmt.Sprint(docField(db, path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	web := docs[1]
	for path, want := range map[string]string{
		"iotrace.source":       "nfs",
		"iotrace.nfs":          "map[export:/export/shop server:nas1 version:4.2]",
		"iotrace.mount.volume": "shopdata",
		"iotrace.metadata.ops": "523",
	} {
		if got := fmt.Sprint(docField(web, path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	for _, d := range docs {
		if docField(d, "iotrace.source") == "fuse" && fmt.Sprint(docField(d, "iotrace.fuse")) != "map[daemon:map[pid:812] subtype:sshfs]" {
			t.Errorf("iotrace.fuse is %v", docField(d, "iotrace.fuse"))
		}
		if docField(d, "event.dataset") == output.DatasetStatus {
			for path, want := range map[string]string{
				"event.kind": "state", "data_stream.type": "logs", "iotrace.sources.nfs": "map[attached:true hook:raw_tp/nfs_initiate_write limitations:[no retransmissions]]",
				"iotrace.unattributed.bytes": "20480", "iotrace.unresolved.cgroups": "2", "iotrace.total.write.bytes": "149753856",
				"iotrace.self": "map[bpf_ns:3000000 cpu_ns:11000000 map_bytes:17825792 rss_bytes:42991616]", "iotrace.lost.records": "0",
			} {
				if got := fmt.Sprint(docField(d, path)); got != want {
					t.Errorf("%s is %s, want %s", path, got, want)
				}
			}
		}
	}
	if got := docField(docs[len(docs)-1], "message"); got != "vxlan create failed vx-001002-abcde, vni 4098, network shop_default, stack shop, services shop_web shop_db, netns 4026531840, "+
		"by dockerd[901], blocked by vx-001002-fffff in netns 4026531840, reason: left behind in the host namespace, error: file exists, age 90.0s" {
		t.Errorf("message is %q", got)
	}
}

// TestDocumentsLabels: only labels that were asked for leave the host.
func TestDocumentsLabels(t *testing.T) {
	iv := outputtest.Shop()
	iv.Samples[2].Source = output.SourceBlock // both of the project on one source
	labels := func(opt output.GroupOptions, exported ...string) string {
		for d := range Documents(output.Group(iv, opt), iv, Options{ExportLabels: exported}) {
			var doc any
			if err := stdjson.Unmarshal(d.Line, &doc); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(docField(doc, "container.labels"))
		}
		return ""
	}
	for _, tt := range []struct{ got, want string }{
		{labels(output.GroupOptions{}), "map[com_docker_compose_project:shop com_docker_compose_service:db]"},
		{labels(output.GroupOptions{}, "com.example.*"), "map[com_docker_compose_project:shop com_docker_compose_service:db com_example_team:shop-team]"},
		{labels(output.GroupOptions{By: outputtest.Keys(t, "label:com.example.team")}), "map[com_example_team:shop-team]"},
		{labels(output.GroupOptions{By: outputtest.Keys(t, "source")}), "<nil>"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
}

// TestDocumentsHostile puts every hostile name everywhere, under every key.
func TestDocumentsHostile(t *testing.T) {
	s := schemas(t)
	iv := outputtest.Hostile()
	for _, k := range append(outputtest.AllKeys(), output.KeyLabel(outputtest.HostileNames[1]), output.KeyLabel("com.docker.compose.project")) {
		for _, events := range []bool{false, true} {
			summary := output.Group(iv, output.GroupOptions{By: []output.Key{k}, Stacked: true})
			n := make(map[string]int)
			for d := range Documents(summary, iv, Options{ExportLabels: []string{"*"}, Events: events}) {
				doc := validate(t, s, d)
				n[d.Dataset]++
				if m, ok := doc["message"].(string); ok {
					outputtest.CheckSafe(t, m)
				}
			}
			want := map[string]int{output.DatasetStatus: 1, output.DatasetVXLAN: len(outputtest.HostileNames)}
			if events {
				want[output.DatasetEvent] = len(outputtest.HostileNames)
			} else {
				want[output.DatasetIO] = len(summary.Rows)
			}
			if fmt.Sprint(n) != fmt.Sprint(want) {
				t.Errorf("by %q: got documents %v, want %v", string(k), n, want)
			}
		}
	}
}

// TestDocumentsSums: documents add up to the samples, and no two of them have
// the identity that a time series database keeps apart.
func TestDocumentsSums(t *testing.T) {
	s := schemas(t)
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		iv := outputtest.Random(rng, 1+rng.IntN(50))
		opt := output.GroupOptions{Top: rng.IntN(4), Level: []output.Level{output.LevelWire, output.LevelApp, output.LevelBoth}[rng.IntN(3)]}
		for _, i := range rng.Perm(len(outputtest.AllKeys()))[:1+rng.IntN(2)] {
			opt.By = append(opt.By, outputtest.AllKeys()[i])
		}
		want := make(map[string]uint64)
		for i := range iv.Samples {
			x := &iv.Samples[i]
			level := x.Level
			if level == "" {
				level = output.LevelWire
			}
			if x.Device.Stacked || opt.Level != output.LevelBoth && level != opt.Level {
				continue
			}
			k := fmt.Sprintf("%s %s ", x.Source, level)
			want[k+"read"] += x.Read.Bytes
			want[k+"write"] += x.Write.Bytes
			want[k+"writes"] += x.Write.Ops
			want[k+"flushes"] += x.Flush.Ops
		}
		got := make(map[string]uint64)
		seen := make(map[string]bool)
		for d := range Documents(output.Group(iv, opt), iv, Options{}) {
			doc := validate(t, s, d)
			if d.Dataset != output.DatasetIO {
				continue
			}
			stacked := docField(doc, "iotrace.device.stacked") == true
			series := fmt.Sprint(docField(doc, "iotrace.source"), docField(doc, "iotrace.level"), docField(doc, "iotrace.group.id"), stacked)
			if seen[series] {
				t.Errorf("seed %d: two documents of %s", seed, series)
			}
			seen[series] = true
			if stacked {
				continue
			}
			k := fmt.Sprintf("%s %s ", docField(doc, "iotrace.source"), docField(doc, "iotrace.level"))
			got[k+"read"] += docNumber(t, doc, "iotrace.read.bytes")
			got[k+"write"] += docNumber(t, doc, "iotrace.write.bytes")
			got[k+"writes"] += docNumber(t, doc, "iotrace.write.ops")
			got[k+"flushes"] += docNumber(t, doc, "iotrace.flush.ops")
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("seed %d, %+v: documents add up to\n%v\nsamples to\n%v", seed, opt, got, want)
		}
	}
}

func TestDocumentsEvents(t *testing.T) {
	iv := outputtest.Shop()
	iv.Events = nil
	for i := range iv.Samples {
		op, a := "write", iv.Samples[i].Write
		if a.Ops == 0 {
			op, a = "read", iv.Samples[i].Read
		}
		x := iv.Samples[i]
		x.Read, x.Write, x.Discard, x.Flush, x.Metadata = output.Amount{}, output.Amount{}, output.Amount{}, output.Amount{}, output.Amount{}
		*x.Amount(output.Op(op)) = output.Amount{Bytes: a.Bytes, Ops: 1}
		iv.Events = append(iv.Events, output.Event{Time: iv.Start.Add(time.Duration(i)), Dataset: output.DatasetEvent, Action: op,
			IO: &output.IO{Sample: x, Op: op, Offset: 4096, Latency: 1500, Basis: "page", Error: i == 0}})
	}
	s := schemas(t)
	count := func(opt output.GroupOptions) (n int, first map[string]any) {
		for d := range Documents(output.Group(iv, opt), iv, Options{Events: true}) {
			doc := validate(t, s, d)
			if d.Dataset == output.DatasetIO {
				t.Error("totals beside events")
			}
			if d.Dataset == output.DatasetEvent {
				if n == 0 {
					first = doc
				}
				n++
			}
		}
		return n, first
	}
	n, first := count(output.GroupOptions{})
	if n != 8 { // ten samples, less the stacked one and the one of programs
		t.Errorf("%d events", n)
	}
	for path, want := range map[string]string{
		"event.action": "write", "event.outcome": "failure", "event.duration": "1500", "event.type": "[access]", "iotrace.op": "write",
		"iotrace.request": "map[basis:page bytes:94371840 latency:1500 offset:4096]", "process.pid": "4321", "container.name": "shop-db-1",
		"iotrace.device.name": "sda", "@timestamp": "2026-03-04T05:06:05.123456789Z",
	} {
		if got := fmt.Sprint(docField(first, path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	for f, want := range map[string]int{"project=shop": 2, "op=read": 1, "device=dm-0": 1} {
		if n, _ := count(output.GroupOptions{Filters: outputtest.Filters(t, f)}); n != want {
			t.Errorf("%s: %d events, want %d", f, n, want)
		}
	}
	if n, _ := count(output.GroupOptions{Level: output.LevelBoth}); n != 9 {
		t.Errorf("%d events of both levels", n)
	}
}

// TestDocumentsText: valid text reads back unchanged.
func TestDocumentsText(t *testing.T) {
	for _, name := range outputtest.HostileNames {
		iv := &output.Interval{Samples: []output.Sample{{Source: output.SourceBlock, Owner: output.OwnerContainer, Container: output.Container{ID: "x", Name: name}, Write: output.Amount{Ops: 1}}}}
		for d := range Documents(output.Group(iv, output.GroupOptions{}), iv, Options{}) {
			var doc any
			if err := stdjson.Unmarshal(d.Line, &doc); err != nil {
				t.Fatal(err)
			}
			if got, _ := docField(doc, "container.name").(string); utf8.ValidString(name) && got != name {
				t.Errorf("%+q reads back as %+q", name, got)
			}
			break
		}
	}
}

// TestDocumentsKeep: a receiver may queue documents, and stop early.
func TestDocumentsKeep(t *testing.T) {
	iv := outputtest.Shop()
	summary := output.Group(iv, output.GroupOptions{})
	var kept []Document
	var lines []string
	for d := range Documents(summary, iv, Options{}) {
		kept = append(kept, d)
		lines = append(lines, string(d.Line))
	}
	for i, d := range kept {
		if string(d.Line) != lines[i] {
			t.Fatalf("document %d changed after it was handed out", i)
		}
	}
	for range Documents(summary, iv, Options{}) {
		break
	}
}

// TestDocumentsLimits: a number above the range of a long becomes the largest long.
func TestDocumentsLimits(t *testing.T) {
	iv := &output.Interval{Samples: []output.Sample{{Source: output.SourceBlock, Owner: output.OwnerContainer, Write: output.Amount{Bytes: 1<<64 - 1, Ops: 1<<64 - 1}, Cgroup: output.Cgroup{ID: 1<<64 - 1}}}}
	s := schemas(t)
	for d := range Documents(output.Group(iv, output.GroupOptions{}), iv, Options{}) {
		doc := validate(t, s, d)
		if d.Dataset == output.DatasetIO && (docNumber(t, doc, "iotrace.write.bytes") != 1<<63-1 || docField(doc, "iotrace.cgroup.id") != "18446744073709551615") {
			t.Errorf("%s", d.Line)
		}
	}
}

// TestSchemaRefuses: the schemas reject wrong documents.
func TestSchemaRefuses(t *testing.T) {
	s := schemas(t)
	iv := outputtest.Shop()
	var line string
	for d := range Documents(output.Group(iv, output.GroupOptions{}), iv, Options{}) {
		line = string(d.Line)
		break
	}
	for old, changed := range map[string]string{
		`"bytes":94371840`:       `"bytes":"94371840"`,
		`"ops":721`:              `"ops":721.5`,
		`"source":"block"`:       `"sources":"block"`,
		`"id":"4097"`:            `"id":4097`,
		`"dataset":"iotrace.io"`: `"dataset":"iotrace.status"`,
		`"@timestamp":"2026-03-04T05:06:07.123456789Z",`: ``,
		`"com_docker_compose_project"`:                   `"com.docker.compose.project"`,
		`"level":"wire"`:                                 `"level":"both"`,
	} {
		bad := strings.Replace(line, old, changed, 1)
		if bad == line {
			t.Fatalf("%s does not occur in %s", old, line)
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(bad))
		if err != nil {
			t.Fatal(err)
		}
		if s[output.DatasetIO].Validate(v) == nil {
			t.Errorf("%s passes for %s", changed, old)
		}
	}
}

// countingWriter keeps each call's bytes apart.
type countingWriter struct{ calls [][]byte }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.calls = append(w.calls, slices.Clone(p))
	return len(p), nil
}

func TestNDJSONOneWritePerLine(t *testing.T) {
	var w countingWriter
	iv := outputtest.Shop()
	if err := New(&w, Options{}).Write(output.Group(iv, output.GroupOptions{}), iv); err != nil {
		t.Fatal(err)
	}
	if want := 8 + 1 + 1; len(w.calls) != want { // blog has two sources
		t.Errorf("%d writes, want %d", len(w.calls), want)
	}
	for _, p := range w.calls {
		if bytes.Count(p, []byte("\n")) != 1 || p[len(p)-1] != '\n' {
			t.Errorf("a write that is not one line: %q", p)
		}
	}
}

// TestClosedPipe: `| head -1` ends with an error that the caller can tell from
// others, and so does a full disk.
func TestClosedPipe(t *testing.T) {
	iv := outputtest.Shop()
	summary := output.Group(iv, output.GroupOptions{})
	for w, want := range outputtest.BrokenWriters(t) {
		if err := New(w, Options{}).Write(summary, iv); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// BenchmarkNDJSON compares the encoder in use with the standard library on the
// same documents.
func BenchmarkNDJSON(b *testing.B) {
	iv := outputtest.Random(rand.New(rand.NewPCG(1, 1)), 5000)
	summary := output.Group(iv, output.GroupOptions{By: outputtest.Keys(b, "container,device,mount,process")})
	n, size := 0, 0
	for d := range Documents(summary, iv, Options{}) {
		n++
		size += len(d.Line)
	}
	report := func(b *testing.B, before time.Duration) {
		b.SetBytes(int64(size))
		outputtest.DocRates(b, float64(n)*float64(b.N), before)
		b.ReportMetric(float64(size)/float64(n), "bytes/doc")
	}
	b.Run("write", func(b *testing.B) {
		w := New(io.Discard, Options{})
		b.ReportAllocs()
		before := outputtest.CPUTime(b)
		for b.Loop() {
			if err := w.Write(summary, iv); err != nil {
				b.Fatal(err)
			}
		}
		report(b, before)
	})
	each := func(encode func(e *encoder)) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			before := outputtest.CPUTime(b)
			for b.Loop() {
				e := newEncoder(summary, iv, Options{})
				for row, stacked := range documentRows(summary) {
					for i := range row.Sources {
						e.io(row, &row.Sources[i], stacked)
						encode(e)
					}
				}
			}
			report(b, before)
		}
	}
	var buf []byte
	b.Run("encoder=segmentio", each(func(e *encoder) { buf = e.line(buf[:0]) }))
	std := stdjson.NewEncoder(io.Discard)
	b.Run("encoder=encoding-json", each(func(e *encoder) {
		if err := std.Encode(&e.doc); err != nil {
			b.Fatal(err)
		}
	}))
	b.Run("encoder=none", each(func(*encoder) {}))

	for i := range iv.Samples {
		iv.Events = append(iv.Events, output.Event{Time: iv.End, IO: &output.IO{Sample: iv.Samples[i], Op: "write", Offset: uint64(i) << 12, Latency: 1 << 20, Basis: "page"}})
	}
	n, size = 0, 0
	for d := range Documents(summary, iv, Options{Events: true}) {
		n++
		size += len(d.Line)
	}
	b.Run("events", func(b *testing.B) {
		w := New(io.Discard, Options{Events: true})
		b.ReportAllocs()
		before := outputtest.CPUTime(b)
		for b.Loop() {
			if err := w.Write(summary, iv); err != nil {
				b.Fatal(err)
			}
		}
		report(b, before)
	})
}

// TestDocumentID: a server stores a document once, however often it comes, and stores the
// documents of different hosts, times and grains beside each other.
func TestDocumentID(t *testing.T) {
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	ids := func(host string, end time.Time, by ...output.Key) (all []string) {
		sample := output.Sample{Source: output.SourceBlock, Owner: output.OwnerKernel, Host: output.Host{Name: host},
			Device: output.Device{ID: "259:0", Name: "nvme0n1"}, Write: output.Amount{Bytes: 4096, Ops: 1}}
		iv := &output.Interval{Start: end.Add(-10 * time.Second), End: end, Samples: []output.Sample{sample}}
		for d := range Documents(output.Group(iv, output.GroupOptions{By: by, Level: output.LevelWire}), iv, Options{}) {
			if d.Dataset == output.DatasetIO {
				all = append(all, d.ID)
			}
		}
		if len(all) != 1 || all[0] == "" {
			t.Fatalf("ids %q, want one", all)
		}
		return all
	}
	grain := []output.Key{output.KeyContainer, output.KeyDevice}
	first := ids("web1", at, grain...)
	if again := ids("web1", at, grain...); !slices.Equal(again, first) {
		t.Errorf("%q and then %q for the same document", first, again)
	}
	for what, other := range map[string][]string{
		"another host":  ids("web2", at, grain...),
		"another time":  ids("web1", at.Add(10*time.Second), grain...),
		"another grain": ids("web1", at, output.KeyDevice),
	} {
		if slices.Equal(other, first) {
			t.Errorf("%s has the same id", what)
		}
	}
}

// TestFiles: paths are in documents only if that was asked for, and what is no file has a kind.
func TestFiles(t *testing.T) {
	iv := outputtest.Shop()
	for i := range iv.Samples {
		iv.Samples[i].File = output.File{Kind: output.FileRegular, Path: "/srv/secret\x1b[31m", Inside: "/data/secret", Inode: 1 << 60, Links: 2, Removed: true, LogOf: "shop/web"}
	}
	iv.Samples[0].File = output.File{Kind: output.FileJournal}
	summary := output.Group(iv, output.GroupOptions{By: []output.Key{output.KeyContainer, output.KeyFile}})
	count := func(opt Options) (files, kinds, secret int) {
		t.Helper()
		for d := range Documents(summary, iv, opt) {
			if err := schema.Validate(d.Line); err != nil {
				t.Errorf("%v\n%s", err, d.Line)
			}
			var doc struct {
				File    struct{ Path, Inode string }
				Iotrace struct {
					File struct {
						Kind    string
						Inside  string `json:"container_path"`
						Links   int
						Deleted bool
						LogOf   string `json:"log_of"`
					}
				}
			}
			if err := stdjson.Unmarshal(d.Line, &doc); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(d.Line), "\x1b") {
				t.Errorf("a control character in %s", d.Line)
			}
			if strings.Contains(string(d.Line), "secret") && doc.File.Path != "" {
				secret++
			}
			if f := doc.Iotrace.File; f.Kind != "" {
				kinds++
				if f.Kind == "file" {
					files++
					if doc.File.Path != "/srv/secret\x1b[31m" || doc.File.Inode != "1152921504606846976" || f.Inside != "/data/secret" || f.Links != 2 || !f.Deleted || f.LogOf != "shop/web" {
						t.Errorf("%+v", doc)
					}
				}
			}
		}
		return files, kinds, secret
	}
	if files, kinds, _ := count(Options{ExportFiles: true}); files == 0 || kinds <= files {
		t.Errorf("%d documents of files, %d with a kind", files, kinds)
	}
	if files, kinds, secret := count(Options{}); files+kinds+secret != 0 {
		t.Errorf("without --export-files %d documents have a file", files+kinds+secret)
	}
}
