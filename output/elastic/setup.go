package elastic

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"mime/multipart"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// templates fit a current Elasticsearch; adapt changes them for other servers.
//
//go:embed component/*.json index/*.json lifecycle/*.json kibana.ndjson
var templates embed.FS

// SetupOptions says what Setup installs besides templates.
type SetupOptions struct {
	// RetentionDays is the number of days after which the server deletes documents:
	// 0 means 14, a negative number never.
	RetentionDays int
	// KibanaURL is the URL of Kibana or OpenSearch Dashboards. Without it no
	// dashboard is installed.
	KibanaURL string
}

const (
	defaultRetentionDays = 14
	lifecyclePolicy      = "iotrace"
	setupTimeout         = 2 * time.Minute
	timeSeriesComponent  = "iotrace@timeseries"
)

// KibanaDashboard returns the dashboard as saved objects, one JSON object a line, to
// import by hand into Kibana or OpenSearch Dashboards.
func KibanaDashboard() []byte {
	b, err := templates.ReadFile("kibana.ndjson")
	if err != nil {
		panic(err) // it is part of the program
	}
	return b
}

// Setup installs component and index templates, the lifecycle and, with a Kibana URL,
// the dashboard, and gives data streams that exist the fields of this version. It can be
// repeated. The key needs the cluster privileges monitor, manage_index_templates and
// manage_ilm, and for data streams that exist the index privilege manage. Setup writes a
// line to progress for each step, and gives up after two minutes. It is an error if the server cannot be
// reached, is too old for data streams (Elasticsearch before 7.16, OpenSearch 1.0) or
// rejects a step; the steps before it stay in place.
func Setup(ctx context.Context, opt Options, progress io.Writer) error {
	if err := opt.setDefaults(); err != nil {
		return err
	}
	setDefault(&opt.Setup.RetentionDays, defaultRetentionDays)
	c, err := newClient(opt.URLs, opt.Credentials, opt.Flavour, opt.Logger)
	if err != nil {
		return err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	srv, err := c.detect(ctx)
	if err != nil {
		return fmt.Errorf("elasticsearch setup: %w", err)
	}
	if err := c.askNodes(ctx, srv); err != nil {
		return fmt.Errorf("elasticsearch setup: %w", err)
	}
	s := &setup{c: c, srv: srv, opt: opt.Setup, out: progress}
	s.say("server: %v", srv)
	if srv.flavour == FlavourElasticsearch && srv.version != "" && !srv.atLeast(7, 16) || srv.flavour == FlavourOpenSearch && srv.major == 1 && srv.minor == 0 {
		return fmt.Errorf("elasticsearch setup: %v is too old for data streams as used here", srv)
	}
	if err := errors.Join(s.lifecycle(ctx), s.templates(ctx)); err != nil {
		return fmt.Errorf("elasticsearch setup: %w", err)
	}
	if opt.Setup.KibanaURL == "" {
		s.say("dashboard: not installed, no Kibana URL given")
		return nil
	}
	if err := s.dashboard(ctx, opt.Credentials); err != nil {
		return fmt.Errorf("elasticsearch setup: %w", err)
	}
	return nil
}

type setup struct {
	c      *client
	srv    *server
	opt    SetupOptions
	out    io.Writer
	policy string // ILM policy for the templates; "" for servers that need none
}

func (s *setup) say(format string, args ...any) {
	fmt.Fprintf(s.out, format+"\n", args...)
}

// dataStreamLifecycle reports whether a template can hold the lifecycle itself.
func (s *setup) dataStreamLifecycle() bool {
	return s.srv.flavour == FlavourServerless ||
		s.srv.flavour == FlavourElasticsearch && (s.srv.version == "" || s.srv.atLeast(8, 14)) && !s.srv.lacks("data-streams")
}

// retention is the age, in the server's notation, at which documents are deleted.
func (s *setup) retention() string { return fmt.Sprintf("%dd", s.opt.RetentionDays) }

// lifecycle installs a policy where templates cannot hold the lifecycle. A server
// without such policies keeps documents until they are deleted by hand: lifecycle
// says so and returns no error.
func (s *setup) lifecycle(ctx context.Context) error {
	switch {
	case s.opt.RetentionDays < 0:
		s.say("lifecycle: documents are never deleted")
		return nil
	case s.dataStreamLifecycle():
		return nil // the templates hold it
	}
	file, what, api := "ilm.json", "ILM policy", "/_ilm/policy/"
	if s.srv.flavour == FlavourOpenSearch {
		file, what, api = "ism.json", "ISM policy", "/_plugins/_ism/policies/"
	}
	body, err := templates.ReadFile("lifecycle/" + file)
	if err != nil {
		return err
	}
	body = bytes.ReplaceAll(body, []byte(`"14d"`), []byte(`"`+s.retention()+`"`))
	rep, err := s.do(ctx, http.MethodPut, api+lifecyclePolicy, body)
	if err != nil {
		return err
	}
	switch {
	case rep.status < 300:
		if s.srv.flavour == FlavourElasticsearch {
			s.policy = lifecyclePolicy
		}
		s.say("%s %s: installed, documents are kept for %d days", what, lifecyclePolicy, s.opt.RetentionDays)
		return nil
	case rep.status == http.StatusConflict:
		// ISM replaces a policy only if the request names its sequence number.
		s.say("%s %s: exists already and was not changed", what, lifecyclePolicy)
		return nil
	case rep.status == http.StatusBadRequest && bytes.Contains(rep.body, []byte("no handler found")), rep.status == http.StatusNotFound, rep.status == http.StatusMethodNotAllowed:
		s.say("%s: this server has none; documents are kept until you delete them", what)
		return nil
	}
	return rep.failure("installing " + what)
}

func (s *setup) do(ctx context.Context, method, path string, body []byte) (*reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := s.c.Perform(req)
	if err != nil {
		return nil, err
	}
	return readReply(&esapi.Response{StatusCode: res.StatusCode, Header: res.Header, Body: res.Body}, pageReply)
}

// templates installs the component templates and then the index templates, which
// refer to them.
func (s *setup) templates(ctx context.Context) error {
	for _, dir := range []string{"component", "index"} {
		files, err := fs.Glob(templates, dir+"/*.json")
		if err != nil {
			return err
		}
		for _, file := range files {
			name := strings.TrimSuffix(path.Base(file), ".json")
			if name == timeSeriesComponent && !s.srv.timeSeries() {
				continue
			}
			raw, err := templates.ReadFile(file)
			if err != nil {
				return err
			}
			body, err := s.adapt(raw)
			if err != nil {
				return fmt.Errorf("template %s: %w", name, err)
			}
			var res *esapi.Response
			if dir == "component" {
				res, err = esapi.ClusterPutComponentTemplateRequest{Name: name, Body: bytes.NewReader(body)}.Do(ctx, s.c)
			} else {
				res, err = esapi.IndicesPutIndexTemplateRequest{Name: name, Body: bytes.NewReader(body)}.Do(ctx, s.c)
			}
			if err != nil {
				return fmt.Errorf("installing %s template %s: %w", dir, name, err)
			}
			rep, err := readReply(res, maxReply)
			if err != nil {
				return fmt.Errorf("installing %s template %s: %w", dir, name, err)
			}
			if rep.status != http.StatusOK {
				return rep.failure("installing " + dir + " template " + name)
			}
			s.say("%s template %s: installed", dir, name)
		}
	}
	if err := s.upgrade(ctx); err != nil {
		return err
	}
	if s.srv.timeSeries() {
		s.say("metrics-%s-*: time series", output.DatasetIO)
	} else {
		s.say("metrics-%s-*: plain data streams, this server has no time series", output.DatasetIO)
	}
	return nil
}

// upgrade gives data streams that exist the fields of this version: a template is for
// indices to come only. A key without privileges sees no stream, and changes none.
func (s *setup) upgrade(ctx context.Context) error {
	rep, err := s.do(ctx, http.MethodGet, "/_resolve/index/"+ourStreams, nil)
	if err != nil {
		return err
	}
	var found struct {
		Streams []dataStream `json:"data_streams"`
	}
	if rep.status != http.StatusOK || json.Unmarshal(rep.body, &found) != nil {
		s.say("data streams: cannot be listed (%v); those that exist get new fields with their next index", rep.failure("asking for them"))
		return nil
	}
	if len(found.Streams) == 0 {
		return nil
	}
	fields, err := s.fields()
	if err != nil {
		return err
	}
	for _, stream := range found.Streams {
		done, err := s.upgradeStream(ctx, stream, fields)
		var refused *statusError
		switch {
		case errors.As(err, &refused) && refused.status == http.StatusForbidden:
			done = "gets new fields when it rolls over, or when a key with the index privilege manage runs this"
		case errors.As(err, &refused):
			done = fmt.Sprintf("gets new fields when it rolls over (%v)", refused)
		case err != nil:
			return err
		}
		s.say("data stream %s: %s", stream.Name, done)
	}
	return nil
}

// ourStreams are the data streams of all namespaces.
const ourStreams = "metrics-iotrace.*-*,logs-iotrace.*-*"

// dataStream is a data stream with its indices, of which the last is written to.
type dataStream struct {
	Name    string
	Indices names `json:"backing_indices"`
}

// names is a list that a server may write as one string.
type names []string

// UnmarshalJSON reads a list or a string.
func (n *names) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*n = names{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(n))
}

// upgradeStream adds to each index of a data stream the fields that it lacks, and says what
// it has done. A field that an index has keeps its type for the life of the index: where the
// newest one has another type, a rollover ends it, and the template makes the next.
func (s *setup) upgradeStream(ctx context.Context, stream dataStream, fields object) (done string, err error) {
	rep, err := s.do(ctx, http.MethodGet, "/"+stream.Name+"/_mapping", nil)
	if err != nil {
		return "", err
	}
	var indices map[string]struct{ Mappings object }
	if rep.status != http.StatusOK || json.Unmarshal(rep.body, &indices) != nil {
		return "", rep.failure("asking for its fields")
	}
	added := 0
	var others []string
	for _, index := range stream.Indices {
		has, _ := indices[index].Mappings["properties"].(object)
		var other []string
		lacks := lacking(fields, has, "", &other)
		if index == stream.Indices[len(stream.Indices)-1] {
			others = other
		}
		if len(lacks) == 0 {
			continue
		}
		body, err := json.Marshal(object{"properties": lacks})
		if err != nil {
			return "", err
		}
		rep, err := s.do(ctx, http.MethodPut, "/"+index+"/_mapping", body)
		if err != nil {
			return "", err
		}
		if rep.status != http.StatusOK {
			return "", rep.failure("adding fields")
		}
		added++
	}
	done = "has the fields of this version"
	if added > 0 {
		done += fmt.Sprintf(", added to %d of %d indices", added, len(stream.Indices))
	}
	if len(others) == 0 {
		return done, nil
	}
	slices.Sort(others)
	rep, err = s.do(ctx, http.MethodPost, "/"+stream.Name+"/_rollover", nil)
	if err != nil {
		return "", err
	}
	if rep.status != http.StatusOK {
		return "", rep.failure("rolling over, because of another type of " + strings.Join(others, ", "))
	}
	return "rolled over, because its index had another type of " + strings.Join(others, ", "), nil
}

// lacking returns the part of a tree of fields that has lacks, and adds to other the paths
// of fields that have another type there.
func lacking(want, has object, prefix string, other *[]string) object {
	lacks := make(object)
	for name, v := range want {
		field, _ := v.(object)
		there, ok := has[name].(object)
		if !ok {
			lacks[name] = field
			continue
		}
		inside, nested := field["properties"].(object)
		insideThere, nestedThere := there["properties"].(object)
		switch {
		case nested && nestedThere:
			if l := lacking(inside, insideThere, prefix+name+".", other); len(l) > 0 {
				lacks[name] = object{"properties": l}
			}
		case nested != nestedThere, field["type"] != there["type"] && there["type"] != nil:
			*other = append(*other, prefix+name)
		}
	}
	return lacks
}

// fields are the fields of the component templates, as this server takes them.
func (s *setup) fields() (object, error) {
	properties := make(object)
	for _, name := range mappingComponents {
		raw, err := templates.ReadFile("component/" + name + ".json")
		if err != nil {
			return nil, err
		}
		if raw, err = s.adapt(raw); err != nil {
			return nil, fmt.Errorf("template %s: %w", name, err)
		}
		var t componentTemplate
		if err := json.Unmarshal(raw, &t); err != nil {
			return nil, fmt.Errorf("template %s: %w", name, err)
		}
		maps.Copy(properties, t.Template.Mappings.Properties)
	}
	// Each index has taken the values of these three from its first document.
	delete(properties, "data_stream")
	return properties, nil
}

// adapt changes a template so that it fits the server.
func (s *setup) adapt(raw []byte) ([]byte, error) {
	var t map[string]any
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, err
	}
	s.adaptFields(t)
	if parts, ok := t["composed_of"].([]any); ok && !s.srv.timeSeries() {
		t["composed_of"] = slices.DeleteFunc(parts, func(v any) bool { return v == timeSeriesComponent })
	}
	body, _ := t["template"].(map[string]any)
	if body == nil {
		return nil, errors.New("no object called template")
	}
	if lc, ok := body["lifecycle"].(map[string]any); ok {
		switch {
		case !s.dataStreamLifecycle() || s.opt.RetentionDays < 0:
			delete(body, "lifecycle")
		default:
			lc["data_retention"] = s.retention()
		}
		if s.policy != "" {
			body["settings"] = map[string]any{"index": map[string]any{"lifecycle": map[string]any{"name": s.policy}}}
		}
	}
	if settings, ok := body["settings"].(map[string]any); ok {
		index, ok := settings["index"].(map[string]any)
		if ok && s.srv.flavour == FlavourServerless {
			delete(index, "codec") // rejected there: Elastic chooses it
		}
		if ok && index["mode"] != nil && s.srv.lacks("data-streams") {
			// The module data-streams makes the routing path from the mapping and
			// defines the setting look_back_time.
			delete(index, "look_back_time")
			paths, err := dimensionPaths()
			if err != nil {
				return nil, err
			}
			index["routing_path"] = paths
		}
	}
	return json.Marshal(t)
}

// adaptFields replaces, in a tree of mappings, field types that the server lacks.
func (s *setup) adaptFields(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			s.adaptFields(e)
		}
	case map[string]any:
		if !s.srv.timeSeries() {
			delete(v, "time_series_metric")
			delete(v, "time_series_dimension")
		}
		switch kind, _ := v["type"].(string); {
		case kind == "constant_keyword" && (s.srv.lacks("constant-keyword") || s.srv.flavour == FlavourOpenSearch):
			// OpenSearch has the type too, but does not take its value from the
			// first document.
			v["type"] = "keyword"
		case kind == "histogram" && (s.srv.lacks("x-pack-analytics") || s.srv.flavour == FlavourOpenSearch):
			v["type"] = "object"
			v["enabled"] = false // kept, not searchable
		case kind == "flattened" && s.srv.flavour == FlavourOpenSearch:
			v["type"] = "flat_object"
			if s.srv.version != "" && !s.srv.atLeast(2, 7) {
				v["type"] = "object"
				v["enabled"] = false // kept, not searchable
			}
		}
		for _, e := range v {
			s.adaptFields(e)
		}
	}
}

// mappingComponents are the component templates that have fields.
var mappingComponents = []string{"iotrace@ecs", "iotrace@fields"}

type componentTemplate struct {
	Template struct {
		Mappings struct {
			Properties map[string]any `json:"properties"`
		} `json:"mappings"`
	} `json:"template"`
}

// mappedFields returns the mapping of every document field, by path.
func mappedFields() (map[string]map[string]any, error) {
	all := make(map[string]map[string]any)
	var walk func(prefix string, properties map[string]any)
	walk = func(prefix string, properties map[string]any) {
		for name, v := range properties {
			field, _ := v.(map[string]any)
			if sub, ok := field["properties"].(map[string]any); ok {
				walk(prefix+name+".", sub)
				continue
			}
			all[prefix+name] = field
		}
	}
	for _, name := range mappingComponents {
		raw, err := templates.ReadFile("component/" + name + ".json")
		if err != nil {
			return nil, err
		}
		var t componentTemplate
		if err := json.Unmarshal(raw, &t); err != nil {
			return nil, fmt.Errorf("template %s: %w", name, err)
		}
		walk("", t.Template.Mappings.Properties)
	}
	return all, nil
}

// dimensionPaths returns the dimensions of time series, sorted.
func dimensionPaths() ([]string, error) {
	fields, err := mappedFields()
	if err != nil {
		return nil, err
	}
	var paths []string
	for path, f := range fields {
		if f["time_series_dimension"] == true {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// dashboard imports the saved objects.
func (s *setup) dashboard(ctx context.Context, cred Credentials) error {
	c, err := newClient([]string{s.opt.KibanaURL}, cred, FlavourAuto, discardLogger())
	if err != nil {
		return fmt.Errorf("kibana: %w", err)
	}
	defer c.close()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("file", "iotrace.ndjson")
	if err != nil {
		return err
	}
	if _, err := part.Write(KibanaDashboard()); err != nil {
		return err
	}
	if err := form.Close(); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/api/saved_objects/_import?overwrite=true", &body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	// Both products reject requests without such a header, because a foreign web
	// page could make them.
	req.Header.Set("kbn-xsrf", "iotrace-bpf")
	req.Header.Set("osd-xsrf", "iotrace-bpf")
	res, err := c.Perform(req)
	if err != nil {
		return fmt.Errorf("importing dashboard: %w", err)
	}
	rep, err := readReply(&esapi.Response{StatusCode: res.StatusCode, Header: res.Header, Body: res.Body}, maxReply)
	if err != nil {
		return fmt.Errorf("importing dashboard: %w", err)
	}
	if rep.status != http.StatusOK {
		return rep.failure("importing dashboard")
	}
	var result struct {
		Success      bool `json:"success"`
		SuccessCount int  `json:"successCount"`
	}
	if err := json.Unmarshal(rep.body, &result); err != nil || !result.Success {
		return &statusError{what: "importing dashboard", status: rep.status, reason: cut(string(rep.body), 300)}
	}
	s.say("dashboard: %d saved objects imported", result.SuccessCount)
	return nil
}
