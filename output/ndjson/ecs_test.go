package ndjson

import (
	stdjson "encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// ecsTypes are the types that the Elastic Common Schema gives to the fields in
// use; "[]" marks those that the schema wants as arrays.
var ecsTypes = map[string]string{
	"@timestamp":                 "date",
	"message":                    "text",
	"ecs.version":                "keyword",
	"event.kind":                 "keyword",
	"event.category":             "keyword[]",
	"event.type":                 "keyword[]",
	"event.module":               "keyword",
	"event.dataset":              "keyword",
	"event.action":               "keyword",
	"event.outcome":              "keyword",
	"event.reason":               "keyword",
	"event.start":                "date",
	"event.end":                  "date",
	"event.duration":             "long",
	"data_stream.type":           "keyword",
	"data_stream.dataset":        "keyword",
	"data_stream.namespace":      "keyword",
	"host.name":                  "keyword",
	"host.id":                    "keyword",
	"host.os.kernel":             "keyword",
	"container.id":               "keyword",
	"container.name":             "keyword",
	"container.runtime":          "keyword",
	"container.image.name":       "keyword",
	"container.image.tag":        "keyword[]",
	"container.labels":           "object",
	"orchestrator.type":          "keyword",
	"orchestrator.namespace":     "keyword",
	"orchestrator.resource.type": "keyword",
	"orchestrator.resource.name": "keyword",
	"orchestrator.resource.id":   "keyword",
	"process.pid":                "long",
	"process.name":               "keyword",
}

// ecsAllowed are the values that the schema allows for its categories.
var ecsAllowed = map[string]map[string][]string{
	"host":    {"event.type": {"access", "change", "end", "info", "start"}},
	"network": {"event.type": {"access", "allowed", "connection", "denied", "end", "info", "protocol", "start"}},
}

// TestDocumentsECS: every field outside of iotrace.* is one of the Elastic
// Common Schema, of its type, and all of them occur.
func TestDocumentsECS(t *testing.T) {
	seen := make(map[string]bool)
	var check func(path string, v any)
	check = func(path string, v any) {
		typ, known := ecsTypes[path]
		if m, ok := v.(map[string]any); ok && typ != "object" {
			for k, v := range m {
				check(strings.TrimPrefix(path+"."+k, "."), v)
			}
			return
		}
		if path == "iotrace" || strings.HasPrefix(path, "iotrace.") {
			return
		}
		seen[path] = true
		if !known {
			t.Errorf("%s is not in ecsTypes", path)
			return
		}
		items := []any{v}
		if strings.HasSuffix(typ, "[]") {
			list, ok := v.([]any)
			if !ok {
				t.Errorf("%s is %T, not an array", path, v)
			}
			items = list
		}
		for _, item := range items {
			ok := false
			switch strings.TrimSuffix(typ, "[]") {
			case "keyword", "text", "date":
				_, ok = item.(string)
			case "long":
				n, isNumber := item.(stdjson.Number)
				_, err := n.Int64()
				ok = isNumber && err == nil
			case "object": // of keywords
				m, isMap := item.(map[string]any)
				ok = isMap
				for _, v := range m {
					_, isString := v.(string)
					ok = ok && isString
				}
			}
			if !ok {
				t.Errorf("%s is %#v, not a %s", path, item, typ)
			}
		}
	}

	s := schemas(t)
	rng := rand.New(rand.NewPCG(4, 4))
	all := outputtest.Random(rng, 200)
	all.Samples = append(all.Samples, outputtest.Shop().Samples...)
	for i := range all.Samples {
		x := all.Samples[i]
		all.Events = append(all.Events, output.Event{Time: all.End, IO: &output.IO{Sample: x, Op: "read", Latency: 1}})
	}
	for _, by := range []string{"container", "process", "pod", "image"} {
		for _, events := range []bool{false, true} {
			for d := range Documents(output.Group(all, output.GroupOptions{By: outputtest.Keys(t, by)}), all, Options{Events: events}) {
				doc := validate(t, s, d)
				for k, v := range doc {
					if k != "iotrace" {
						check(k, v)
					}
				}
				category := docField(doc, "event.category").([]any)[0].(string)
				for _, typ := range docField(doc, "event.type").([]any) {
					if !slices.Contains(ecsAllowed[category]["event.type"], typ.(string)) {
						t.Errorf("event.type %v is not allowed for category %s", typ, category)
					}
				}
			}
		}
	}
	for field := range ecsTypes {
		if !seen[field] {
			t.Errorf("no document has %s", field)
		}
	}
}
