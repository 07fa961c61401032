package output

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemas compiles the schema of every dataset.
func schemas(t testing.TB) map[string]*jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	names, err := fs.Glob(Schemas, "schema/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := Schemas.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := c.AddResource("https://schema.invalid/"+strings.TrimPrefix(name, "schema/"), doc); err != nil {
			t.Fatal(err)
		}
	}
	out := make(map[string]*jsonschema.Schema)
	for _, dataset := range []string{DatasetIO, DatasetStatus, DatasetEvent, DatasetVXLAN} {
		if out[dataset], err = c.Compile("https://schema.invalid/" + dataset + ".json"); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// validate checks a document against the schema of its dataset, and that what
// it says of itself is the same everywhere. It returns the document.
func validate(t testing.TB, schemas map[string]*jsonschema.Schema, d Document) map[string]any {
	t.Helper()
	line, ok := bytes.CutSuffix(d.Line, []byte("\n"))
	if !ok || bytes.ContainsAny(line, "\n\r") || !utf8.Valid(line) {
		t.Fatalf("not one line of UTF-8: %q", d.Line)
	}
	checkSafe(t, string(line))
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
	n := NewNDJSON(&b, NDJSONOptions{})
	iv := shop()
	if err := n.Write(Group(iv, GroupOptions{By: keys(t, "project,device"), Filters: filters(t, "project=*o*")}), iv); err != nil {
		t.Fatal(err)
	}
	golden(t, "project-device.ndjson", b.Bytes())

	b.Reset()
	iv.Samples = iv.Samples[:1]
	if err := n.Write(Group(iv, GroupOptions{By: keys(t, "container"), Level: LevelBoth}), iv); err != nil {
		t.Fatal(err)
	}
	golden(t, "container.ndjson", b.Bytes())
}

// TestDocumentsFields looks at the fields that dashboards are built on.
func TestDocumentsFields(t *testing.T) {
	iv := shop()
	s := schemas(t)
	var docs []map[string]any
	for d := range Documents(Group(iv, GroupOptions{By: keys(t, "container")}), iv, NDJSONOptions{Namespace: "prod"}) {
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
		"container.labels":       "map[com_docker_compose_project:shop com_docker_compose_service:db]",
		"iotrace.source":         "block",
		"iotrace.level":          "wire",
		"iotrace.owner":          "container",
		"iotrace.project.name":   "shop",
		"iotrace.project.rule":   "com.docker.compose.project",
		"iotrace.service.name":   "db",
		"iotrace.cgroup":         "map[id:4097 path:/docker/aaaa11110000]",
		"iotrace.device":         "map[id:8:0 name:sda]",
		"iotrace.mount":          "map[fstype:ext4 point:/ source:/dev/sda1]",
		"iotrace.read.bytes":     "3145728",
		"iotrace.read.ops":       "49",
		"iotrace.read.latency":   "map[max:900000 p50:675000 p95:900000 p99:900000]",
		"iotrace.write.bytes":    "94371840",
		"iotrace.write.ops":      "721",
		"iotrace.write.latency":  "map[max:4000000 p50:3000000 p95:4000000 p99:4000000]",
		"iotrace.flush.ops":      "40",
		"iotrace.basis":          "map[bio:0 dirtier:94371840 none:0 page:3145728 task:0]",
		"iotrace.group.by":       "[container]",
		"iotrace.group.name":     "[shop-db-1]",
		"process":                "<nil>",
		"iotrace.write.errors":   "<nil>",
		"iotrace.device.stacked": "<nil>",
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
		if docField(d, "event.dataset") == DatasetStatus {
			for path, want := range map[string]string{
				"event.kind": "state", "data_stream.type": "logs", "iotrace.sources.nfs": "map[attached:true cost:no retransmissions hook:raw_tp/nfs_initiate_write]",
				"iotrace.unattributed.bytes": "20480", "iotrace.unresolved.cgroups": "2", "iotrace.total.write.bytes": "149753856",
				"iotrace.self": "map[bpf_ns:3000000 cpu_ns:11000000 rss_bytes:42991616]", "iotrace.lost.records": "0",
			} {
				if got := fmt.Sprint(docField(d, path)); got != want {
					t.Errorf("%s is %s, want %s", path, got, want)
				}
			}
		}
	}
	if got := docField(docs[len(docs)-1], "message"); got != "vxlan create failed vx-001002-abcde vni 4098 network shop_default stack shop services shop_web,shop_db netns 4026531840 "+
		"by dockerd[901] because of vx-001002-fffff in netns 4026531840 reason: left behind in the host namespace error: file exists after 90.0s" {
		t.Errorf("message is %q", got)
	}
}

// TestDocumentsLabels: no label leaves the host that was not asked for.
func TestDocumentsLabels(t *testing.T) {
	iv := shop()
	iv.Samples[2].Source = SourceBlock // both of the project on one source
	labels := func(opt GroupOptions, exported ...string) string {
		for d := range Documents(Group(iv, opt), iv, NDJSONOptions{ExportLabels: exported}) {
			var doc any
			if err := stdjson.Unmarshal(d.Line, &doc); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(docField(doc, "container.labels"))
		}
		return ""
	}
	for _, tt := range []struct{ got, want string }{
		{labels(GroupOptions{}), "map[com_docker_compose_project:shop com_docker_compose_service:db]"},
		{labels(GroupOptions{}, "com.example.*"), "map[com_docker_compose_project:shop com_docker_compose_service:db com_example_team:shop-team]"},
		{labels(GroupOptions{By: keys(t, "label:com.example.team")}), "map[com_example_team:shop-team]"},
		{labels(GroupOptions{By: keys(t, "source")}), "<nil>"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
}

// TestDocumentsHostile puts every hostile name everywhere, under every key.
func TestDocumentsHostile(t *testing.T) {
	s := schemas(t)
	iv := hostile()
	for _, k := range append(slices.Clone(keyNames), KeyLabel(hostileNames[1]), KeyLabel("com.docker.compose.project")) {
		for _, events := range []bool{false, true} {
			rep := Group(iv, GroupOptions{By: []Key{k}, Stacked: true})
			n := make(map[string]int)
			for d := range Documents(rep, iv, NDJSONOptions{ExportLabels: []string{"*"}, Events: events}) {
				doc := validate(t, s, d)
				n[d.Dataset]++
				if m, ok := doc["message"].(string); ok {
					checkSafe(t, m)
				}
			}
			want := map[string]int{DatasetStatus: 1, DatasetVXLAN: len(hostileNames)}
			if events {
				want[DatasetEvent] = len(hostileNames)
			} else {
				want[DatasetIO] = len(rep.Rows)
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
		iv := random(rng, 1+rng.IntN(50))
		opt := GroupOptions{Top: rng.IntN(4), Level: []Level{LevelWire, LevelApp, LevelBoth}[rng.IntN(3)]}
		for _, i := range rng.Perm(len(keyNames))[:1+rng.IntN(2)] {
			opt.By = append(opt.By, keyNames[i])
		}
		want := make(map[string]uint64)
		for i := range iv.Samples {
			x := &iv.Samples[i]
			level := x.Level
			if level == "" {
				level = LevelWire
			}
			if x.Device.Stacked || opt.Level != LevelBoth && level != opt.Level {
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
		for d := range Documents(Group(iv, opt), iv, NDJSONOptions{}) {
			doc := validate(t, s, d)
			if d.Dataset != DatasetIO {
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
	iv := shop()
	iv.Events = nil
	for i := range iv.Samples {
		op, a := "write", iv.Samples[i].Write
		if a.Ops == 0 {
			op, a = "read", iv.Samples[i].Read
		}
		x := iv.Samples[i]
		x.Read, x.Write, x.Discard, x.Flush, x.Metadata = Amount{}, Amount{}, Amount{}, Amount{}, Amount{}
		*x.amount(Op(op)) = Amount{Bytes: a.Bytes, Ops: 1}
		iv.Events = append(iv.Events, Event{Time: iv.Start.Add(time.Duration(i)), Dataset: DatasetEvent, Action: op,
			IO: &IO{Sample: x, Op: op, Offset: 4096, Latency: 1500, Basis: "page", Error: i == 0}})
	}
	s := schemas(t)
	count := func(opt GroupOptions) (n int, first map[string]any) {
		for d := range Documents(Group(iv, opt), iv, NDJSONOptions{Events: true}) {
			doc := validate(t, s, d)
			if d.Dataset == DatasetIO {
				t.Error("totals beside events")
			}
			if d.Dataset == DatasetEvent {
				if n == 0 {
					first = doc
				}
				n++
			}
		}
		return n, first
	}
	n, first := count(GroupOptions{})
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
		if n, _ := count(GroupOptions{Filters: filters(t, f)}); n != want {
			t.Errorf("%s: %d events, want %d", f, n, want)
		}
	}
	if n, _ := count(GroupOptions{Level: LevelBoth}); n != 9 {
		t.Errorf("%d events of both levels", n)
	}
}

// TestDocumentsText: what was valid text reads back as it was.
func TestDocumentsText(t *testing.T) {
	for _, name := range hostileNames {
		iv := &Interval{Samples: []Sample{{Source: SourceBlock, Owner: OwnerContainer, Container: Container{ID: "x", Name: name}, Write: Amount{Ops: 1}}}}
		for d := range Documents(Group(iv, GroupOptions{}), iv, NDJSONOptions{}) {
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
	iv := shop()
	rep := Group(iv, GroupOptions{})
	var kept []Document
	var lines []string
	for d := range Documents(rep, iv, NDJSONOptions{}) {
		kept = append(kept, d)
		lines = append(lines, string(d.Line))
	}
	for i, d := range kept {
		if string(d.Line) != lines[i] {
			t.Fatalf("document %d changed after it was handed out", i)
		}
	}
	for range Documents(rep, iv, NDJSONOptions{}) {
		break
	}
}

// TestDocumentsLimits: what no field of type long can hold is cut to the
// largest it can.
func TestDocumentsLimits(t *testing.T) {
	iv := &Interval{Samples: []Sample{{Source: SourceBlock, Owner: OwnerContainer, Write: Amount{Bytes: 1<<64 - 1, Ops: 1<<64 - 1}, Cgroup: Cgroup{ID: 1<<64 - 1}}}}
	s := schemas(t)
	for d := range Documents(Group(iv, GroupOptions{}), iv, NDJSONOptions{}) {
		doc := validate(t, s, d)
		if d.Dataset == DatasetIO && (docNumber(t, doc, "iotrace.write.bytes") != 1<<63-1 || docField(doc, "iotrace.cgroup.id") != "18446744073709551615") {
			t.Errorf("%s", d.Line)
		}
	}
}

// TestSchemaRefuses: the schemas are worth something.
func TestSchemaRefuses(t *testing.T) {
	s := schemas(t)
	iv := shop()
	var line string
	for d := range Documents(Group(iv, GroupOptions{}), iv, NDJSONOptions{}) {
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
		if s[DatasetIO].Validate(v) == nil {
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
	iv := shop()
	if err := NewNDJSON(&w, NDJSONOptions{}).Write(Group(iv, GroupOptions{}), iv); err != nil {
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
// others; so does a full disk.
func TestClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	iv := shop()
	rep := Group(iv, GroupOptions{})
	for _, tt := range []struct {
		w    io.Writer
		want error
	}{{w, syscall.EPIPE}, {full, syscall.ENOSPC}} {
		if err := NewNDJSON(tt.w, NDJSONOptions{}).Write(rep, iv); !errors.Is(err, tt.want) {
			t.Errorf("NDJSON: got %v, want %v", err, tt.want)
		}
		if err := NewTable(tt.w, TableOptions{}).Write(rep, iv); !errors.Is(err, tt.want) {
			t.Errorf("table: got %v, want %v", err, tt.want)
		}
	}
}

// BenchmarkNDJSON compares the encoder in use with the standard library on the
// same documents.
func BenchmarkNDJSON(b *testing.B) {
	iv := random(rand.New(rand.NewPCG(1, 1)), 5000)
	rep := Group(iv, GroupOptions{By: keys(b, "container,device,mount,process")})
	n, size := 0, 0
	for d := range Documents(rep, iv, NDJSONOptions{}) {
		n++
		size += len(d.Line)
	}
	report := func(b *testing.B, before time.Duration) {
		b.SetBytes(int64(size))
		reportDocs(b, float64(n)*float64(b.N), before)
		b.ReportMetric(float64(size)/float64(n), "bytes/doc")
	}
	b.Run("write", func(b *testing.B) {
		w := NewNDJSON(io.Discard, NDJSONOptions{})
		b.ReportAllocs()
		before := cpuTime(b)
		for b.Loop() {
			if err := w.Write(rep, iv); err != nil {
				b.Fatal(err)
			}
		}
		report(b, before)
	})
	each := func(encode func(e *docEncoder)) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				e := newDocEncoder(rep, iv, NDJSONOptions{})
				for row, stacked := range rep.documentRows() {
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
	b.Run("encoder=segmentio", each(func(e *docEncoder) { buf = e.line(buf[:0]) }))
	std := stdjson.NewEncoder(io.Discard)
	b.Run("encoder=encoding-json", each(func(e *docEncoder) {
		if err := std.Encode(&e.doc); err != nil {
			b.Fatal(err)
		}
	}))
	b.Run("encoder=none", each(func(*docEncoder) {}))

	for i := range iv.Samples {
		iv.Events = append(iv.Events, Event{Time: iv.End, IO: &IO{Sample: iv.Samples[i], Op: "write", Offset: uint64(i) << 12, Latency: 1 << 20, Basis: "page"}})
	}
	n, size = 0, 0
	for d := range Documents(rep, iv, NDJSONOptions{Events: true}) {
		n++
		size += len(d.Line)
	}
	b.Run("events", func(b *testing.B) {
		w := NewNDJSON(io.Discard, NDJSONOptions{Events: true})
		b.ReportAllocs()
		before := cpuTime(b)
		for b.Loop() {
			if err := w.Write(rep, iv); err != nil {
				b.Fatal(err)
			}
		}
		report(b, before)
	})
}
