package elastic

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// intakeDocuments returns a document of every dataset, and where it belongs.
func intakeDocuments(t *testing.T) map[string]map[string]any {
	iv := outputtest.Cluster(time.Unix(1700000000, 0), 5)
	iv.Events = []output.Event{
		{Time: iv.End, Action: "write", IO: &output.IO{Op: "write", Sample: iv.Samples[0]}},
		{Time: iv.End, Action: "leaked", VXLAN: &output.VXLAN{Device: "vx-1", VNI: 4096}},
	}
	docs := make(map[string]map[string]any)
	for _, events := range []bool{false, true} {
		for d := range ndjson.Documents(output.Group(iv, output.GroupOptions{}), iv, ndjson.Options{Events: events}) {
			var tree map[string]any
			if err := json.Unmarshal(d.Line, &tree); err != nil {
				t.Fatal(err)
			}
			docs[d.Type+"-"+d.Dataset+"-"+d.Namespace] = tree
		}
	}
	if len(docs) != 4 {
		t.Fatalf("documents of %v", slices.Sorted(maps.Keys(docs)))
	}
	return docs
}

// intakeYAML reads a file strictly: no key twice, nothing unknown left open.
func intakeYAML(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile("../intake/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalWithOptions(b, into, yaml.Strict()); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestIntakeStreamsHaveTemplates: a stream that a file names has a template.
func TestIntakeStreamsHaveTemplates(t *testing.T) {
	for stream := range intakeDocuments(t) {
		name := strings.TrimSuffix(stream, "-default")
		b, err := templates.ReadFile("index/" + name + ".json")
		if err != nil || !strings.Contains(string(b), `"`+name+`-*"`) {
			t.Errorf("stream %s: no template, %v", stream, err)
		}
	}
}

func TestIntakeFilebeat(t *testing.T) {
	var c map[string]any
	intakeYAML(t, "filebeat.yml", &c)
	index := c["output.elasticsearch"].(map[string]any)["index"].(string)
	reference := regexp.MustCompile(`%\{\[([a-z_.]+)\]\}`)
	for stream, doc := range intakeDocuments(t) {
		got := reference.ReplaceAllStringFunc(index, func(m string) string {
			return fmt.Sprint(lookup(doc, reference.FindStringSubmatch(m)[1]))
		})
		if got != stream {
			t.Errorf("%s goes to %q", stream, got)
		}
	}
	input := c["filebeat.inputs"].([]any)[0].(map[string]any)
	parser := input["parsers"].([]any)[0].(map[string]any)["ndjson"].(map[string]any)
	if input["type"] != "filestream" || parser["target"] != "" || parser["overwrite_keys"] != true {
		t.Errorf("input %v", input)
	}
	if c["setup.template.enabled"] != false || c["setup.ilm.enabled"] != false {
		t.Error("Filebeat installs templates of its own")
	}
	for _, f := range c["processors"].([]any)[0].(map[string]any)["drop_fields"].(map[string]any)["fields"].([]any) {
		for stream, doc := range intakeDocuments(t) {
			if lookup(doc, f.(string)) != nil {
				t.Errorf("%v of %s is dropped", f, stream)
			}
		}
	}
}

func TestIntakeElasticAgent(t *testing.T) {
	type condition struct {
		Equals    map[string]string `yaml:"when.not.equals"`
		HasFields []string          `yaml:"when.not.has_fields"`
	}
	var c struct {
		Outputs map[string]map[string]any `yaml:"outputs"`
		Inputs  []struct {
			ID         string            `yaml:"id"`
			Type       string            `yaml:"type"`
			UseOutput  string            `yaml:"use_output"`
			DataStream map[string]string `yaml:"data_stream"`
			Streams    []struct {
				ID         string            `yaml:"id"`
				DataStream map[string]string `yaml:"data_stream"`
				Paths      []string          `yaml:"paths"`
				Parsers    []map[string]any  `yaml:"parsers"`
				Processors []struct {
					DropEvent condition `yaml:"drop_event"`
				} `yaml:"processors"`
			} `yaml:"streams"`
		} `yaml:"inputs"`
	}
	intakeYAML(t, "elastic-agent.yml", &c)
	in := c.Inputs[0]
	if c.Outputs[in.UseOutput] == nil {
		t.Errorf("no output %q", in.UseOutput)
	}
	ids := make(map[string]bool)
	for stream, doc := range intakeDocuments(t) {
		var taken []string
		for _, s := range in.Streams {
			ids[s.ID] = true
			match := true
			drop := s.Processors[0].DropEvent
			for path, want := range drop.Equals {
				match = match && fmt.Sprint(lookup(doc, path)) == want
			}
			for _, path := range drop.HasFields {
				match = match && lookup(doc, path) != nil
			}
			if match {
				taken = append(taken, s.DataStream["type"]+"-"+s.DataStream["dataset"]+"-"+in.DataStream["namespace"])
			}
		}
		if len(taken) != 1 || taken[0] != stream {
			t.Errorf("%s goes to %v", stream, taken)
		}
	}
	if len(ids) != len(in.Streams) {
		t.Errorf("ids of streams are not unique: %v", ids)
	}
}

func TestIntakeFluentBit(t *testing.T) {
	var c struct {
		Service  map[string]any   `yaml:"service"`
		Parsers  []map[string]any `yaml:"parsers"`
		Pipeline struct {
			Inputs  []map[string]any `yaml:"inputs"`
			Filters []map[string]any `yaml:"filters"`
			Outputs []map[string]any `yaml:"outputs"`
		} `yaml:"pipeline"`
	}
	intakeYAML(t, "fluent-bit.yaml", &c)
	b, err := os.ReadFile("../intake/fluent-bit.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^[^#]*(<<:|: [&*]\w|- [&*]\w)`).Match(b) {
		t.Error("anchors, which its reader does not know")
	}
	if c.Pipeline.Inputs[0]["parser"] != c.Parsers[0]["name"] || c.Pipeline.Inputs[0]["tag"] != c.Pipeline.Filters[0]["match"] {
		t.Errorf("input %v", c.Pipeline.Inputs[0])
	}
	rule := regexp.MustCompile(`^\$data_stream\['dataset'\] (\S+) (\S+) false$`)
	for stream, doc := range intakeDocuments(t) {
		var tag string
		for _, r := range c.Pipeline.Filters[0]["rule"].([]any) {
			m := rule.FindStringSubmatch(r.(string))
			if m == nil {
				t.Fatalf("rule %q", r)
			}
			if regexp.MustCompile(m[1]).MatchString(lookup(doc, "data_stream.dataset").(string)) {
				if tag != "" {
					t.Errorf("%s has two tags", stream)
				}
				tag = m[2]
			}
		}
		var taken []any
		for _, o := range c.Pipeline.Outputs {
			if o["match"] == tag {
				taken = append(taken, o["index"])
			}
			if o["write_operation"] != "create" || o["generate_id"] != "off" && o["generate_id"] != false {
				t.Errorf("output %v does not suit a data stream", o)
			}
		}
		if len(taken) != 1 || taken[0] != stream {
			t.Errorf("%s, tag %q, goes to %v", stream, tag, taken)
		}
		if _, err := time.Parse("2006-01-02T15:04:05.999999999Z07:00", lookup(doc, "@timestamp").(string)); err != nil {
			t.Errorf("time does not look as the parser expects: %v", err)
		}
	}
	if c.Parsers[0]["time_format"] != "%Y-%m-%dT%H:%M:%S.%L%z" || c.Parsers[0]["time_key"] != "@timestamp" {
		t.Errorf("parser %v", c.Parsers[0])
	}
}

func TestIntakeVector(t *testing.T) {
	var c struct {
		Sources    map[string]map[string]any `yaml:"sources"`
		Transforms map[string]map[string]any `yaml:"transforms"`
		Sinks      map[string]map[string]any `yaml:"sinks"`
	}
	intakeYAML(t, "vector.yaml", &c)
	known := make(map[string]bool)
	for name := range c.Sources {
		known[name] = true
	}
	for name := range c.Transforms {
		known[name] = true
	}
	for name, x := range c.Transforms {
		if !known[x["inputs"].([]any)[0].(string)] {
			t.Errorf("transform %s reads %v", name, x["inputs"])
		}
	}
	for name, s := range c.Sinks {
		if !known[s["inputs"].([]any)[0].(string)] || s["mode"] != "data_stream" || s["data_stream"].(map[string]any)["auto_routing"] != true {
			t.Errorf("sink %s: %v", name, s)
		}
		// Vector refuses smaller disk buffers.
		if size := s["buffer"].(map[string]any)["max_size"].(uint64); size < 268435488 {
			t.Errorf("sink %s: disk buffer of %d bytes", name, size)
		}
	}
}

// TestIntakeLogstash reads the file by the grammar of Logstash: sections of
// plugins of settings, whose values are strings, numbers, words, lists or
// plugins.
func TestIntakeLogstash(t *testing.T) {
	b, err := os.ReadFile("../intake/logstash.conf")
	if err != nil {
		t.Fatal(err)
	}
	p := &logstashParser{rest: string(b)}
	sections := make(map[string][]logstashPlugin)
	for p.skip(); p.rest != "" && p.err == nil; p.skip() {
		name := p.word()
		p.expect("{")
		for p.skip(); !strings.HasPrefix(p.rest, "}") && p.err == nil; p.skip() {
			sections[name] = append(sections[name], p.plugin())
		}
		p.expect("}")
	}
	if p.err != nil {
		t.Fatal(p.err)
	}
	if len(sections) != 3 || len(sections["input"]) != 1 || len(sections["filter"]) != 1 || len(sections["output"]) != 1 {
		t.Fatalf("sections: %v", sections)
	}
	in, out := sections["input"][0], sections["output"][0]
	codec, _ := in.settings["codec"].(logstashPlugin)
	if in.name != "file" || in.settings["mode"] != "tail" || codec.name != "json" {
		t.Errorf("input %+v", in)
	}
	if out.name != "elasticsearch" || out.settings["data_stream"] != "true" || out.settings["data_stream_auto_routing"] != "true" {
		t.Errorf("output %+v", out)
	}
	for _, f := range sections["filter"][0].settings["remove_field"].([]any) {
		path := strings.ReplaceAll(strings.Trim(f.(string), "[]"), "][", ".")
		for stream, doc := range intakeDocuments(t) {
			if lookup(doc, path) != nil {
				t.Errorf("%v of %s is removed", f, stream)
			}
		}
	}
}

type logstashPlugin struct {
	name     string
	settings map[string]any
}

type logstashParser struct {
	rest string
	err  error
}

var (
	logstashSpace = regexp.MustCompile(`^(\s+|#[^\n]*)+`)
	logstashWord  = regexp.MustCompile(`^[A-Za-z0-9_-]+`)
)

func (p *logstashParser) skip() { p.rest = p.rest[len(logstashSpace.FindString(p.rest)):] }

func (p *logstashParser) fail(want string) {
	if p.err == nil {
		p.err = fmt.Errorf("want %s before %q", want, cut(p.rest, 40))
	}
}

func (p *logstashParser) word() string {
	p.skip()
	w := logstashWord.FindString(p.rest)
	if w == "" {
		p.fail("a word")
	}
	p.rest = p.rest[len(w):]
	return w
}

func (p *logstashParser) expect(token string) {
	p.skip()
	rest, ok := strings.CutPrefix(p.rest, token)
	if !ok {
		p.fail(token)
	}
	p.rest = rest
}

func (p *logstashParser) plugin() logstashPlugin {
	return p.settings(p.word())
}

func (p *logstashParser) settings(name string) logstashPlugin {
	pl := logstashPlugin{name: name, settings: make(map[string]any)}
	p.expect("{")
	for p.skip(); !strings.HasPrefix(p.rest, "}") && p.err == nil; p.skip() {
		key := p.word()
		p.expect("=>")
		if pl.settings[key] != nil {
			p.fail("setting " + key + " once")
		}
		pl.settings[key] = p.value()
	}
	p.expect("}")
	return pl
}

func (p *logstashParser) value() any {
	p.skip()
	switch {
	case strings.HasPrefix(p.rest, `"`):
		s, rest, ok := strings.Cut(p.rest[1:], `"`)
		if !ok || strings.Contains(s, "\n") {
			p.fail("the end of a string")
		}
		p.rest = rest
		return s
	case strings.HasPrefix(p.rest, "["):
		p.expect("[")
		list := []any{}
		for p.err == nil {
			list = append(list, p.value())
			p.skip()
			if strings.HasPrefix(p.rest, "]") {
				break
			}
			p.expect(",")
		}
		p.expect("]")
		return list
	}
	w := p.word()
	if p.skip(); strings.HasPrefix(p.rest, "{") {
		return p.settings(w)
	}
	return w
}
