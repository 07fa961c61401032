package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// DefaultGrain is what the documents of exporters are grouped by, so that those of several
// runs can be added up.
const DefaultGrain = "container,device,mount"

// QueryOptions says which documents a Reader reads.
type QueryOptions struct {
	Namespace    string    // of the data streams; "" is "default"
	Since, Until time.Time // documents whose interval ended after Since, and not after Until
	Labels       []string  // container labels that samples are to have
	Latency      bool      // samples are to have latencies, where the server has histograms
}

// Reader asks a server for what iotrace-bpf shipped to it. The server adds up: no document
// is fetched, and a reply has at most pageSize groups. A Reader is safe for concurrent use.
type Reader struct {
	c       *client
	opt     QueryOptions
	timeout time.Duration
	grain   string // "" where documents do not say it
	hosts   []HostState
	// Old are documents of a version that does not say its grain.
	Old bool
	// Unmapped are fields that the server does not know, and so leaves out: its templates
	// are older than this program.
	Unmapped []string

	log        *slog.Logger
	histograms []output.Op // whose latencies the server can add up

	mu     sync.Mutex
	labels map[string]map[string]string // by container, where there are any; nil: not asked for
}

// HostState is what the server has of a host.
type HostState struct {
	Host output.Host
	Last time.Time // end of its last interval
	Lost output.Lost
}

const (
	// Groups of a reply. Servers make at most 65,535 buckets for a question, and each group
	// with latencies has one for each of latencyRanges.
	pageSize   = 1000
	rangesSize = 500
	pageReply  = 16 << 20 // bytes
	maxHosts   = 10_000   // that a Reader tells apart
	maxLabels  = 50_000   // containers whose labels a Reader keeps
)

// OpenReader asks which hosts and which grain there are in the time of q. Its errors are one
// line with what to do: the server cannot be reached, the key may not read, nothing was ever
// shipped there, the templates are too old.
func OpenReader(ctx context.Context, opt Options, q QueryOptions) (*Reader, error) {
	if err := opt.setDefaults(); err != nil {
		return nil, err
	}
	if q.Namespace == "" {
		q.Namespace = "default"
	}
	c, err := newClient(opt.URLs, opt.Credentials, opt.Flavour, opt.Logger)
	if err != nil {
		return nil, err
	}
	r := &Reader{c: c, opt: q, timeout: opt.RequestTimeout, log: opt.Logger}
	if err := r.look(ctx); err != nil {
		c.close()
		return nil, fmt.Errorf("reading from Elasticsearch: %w", err)
	}
	return r, nil
}

// Close closes idle connections.
func (r *Reader) Close() error {
	r.c.close()
	return nil
}

// Grain returns what the documents that are read are grouped by, "" where they do not say.
func (r *Reader) Grain() string { return r.grain }

// Hosts returns the hosts that have documents from twice the length of the time on, by name.
func (r *Reader) Hosts() []HostState { return slices.Clone(r.hosts) }

// Latencies reports whether samples can have latencies: the server adds up histograms.
func (r *Reader) Latencies() bool { return len(r.histograms) > 0 }

// Range returns the time that is read.
func (r *Reader) Range() (since, until time.Time) { return r.opt.Since, r.opt.Until }

// object is a part of a request or of a reply.
type object = map[string]any

// timeRange is the filter for documents whose time is in (from, to].
func timeRange(from, to time.Time) object {
	return object{"range": object{"@timestamp": object{"gt": from.UnixMilli(), "lte": to.UnixMilli(), "format": "epoch_millis"}}}
}

// search runs a search without hits and decodes its aggregations.
func (r *Reader) search(ctx context.Context, stream string, filters []object, aggs object, into any) error {
	body, err := json.Marshal(object{
		"size": 0, "track_total_hits": false, "query": object{"bool": object{"filter": filters}}, "aggs": aggs,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	res, err := esapi.SearchRequest{Index: []string{stream + "-" + r.opt.Namespace}, Body: bytes.NewReader(body)}.Do(ctx, r.c)
	if err != nil {
		return err
	}
	rep, err := readReply(res, pageReply)
	if err != nil {
		return err
	}
	if rep.status != http.StatusOK {
		return r.explain(stream, rep.failure("search"))
	}
	err = readSearch(rep.body, into)
	var partial *statusError
	if errors.As(err, &partial) {
		return r.explain(stream, partial)
	}
	return err
}

// readSearch decodes the aggregations of a search. The error is a *statusError where the
// server searched only some of its shards.
func readSearch(body []byte, into any) error {
	var whole struct {
		TimedOut bool `json:"timed_out"`
		Shards   struct {
			Failed   int
			Failures []struct{ Reason struct{ Type, Reason string } }
		} `json:"_shards"`
		Aggregations json.RawMessage
	}
	if err := json.Unmarshal(body, &whole); err != nil {
		return errors.New("the server's reply is not a search result")
	}
	// A sum of some shards is no total.
	if whole.TimedOut || whole.Shards.Failed > 0 {
		e := &statusError{what: "search", status: http.StatusOK, reason: fmt.Sprintf("%d shards failed", whole.Shards.Failed)}
		if f := whole.Shards.Failures; len(f) > 0 {
			e.kind, e.reason = f[0].Reason.Type, f[0].Reason.Reason
		}
		return e
	}
	if len(whole.Aggregations) == 0 {
		return nil // no shard: nothing was asked
	}
	if err := json.Unmarshal(whole.Aggregations, into); err != nil {
		return errors.New("the server's reply is not a search result")
	}
	return nil
}

// errNoStream: nothing was ever shipped to this data stream.
var errNoStream = errors.New("there is no such data stream")

// explain says what to do about a refusal.
func (r *Reader) explain(stream string, e *statusError) error {
	name := stream + "-" + r.opt.Namespace
	switch {
	case e.status == http.StatusForbidden:
		return fmt.Errorf("%w; give the key the index privilege read on %q and %q", e, "metrics-iotrace.io-*", "logs-iotrace.status-*")
	case e.status == http.StatusUnauthorized:
		return fmt.Errorf("%w; give --elasticsearch-api-key-file, or --elasticsearch-username with a password", e)
	case e.status == http.StatusNotFound:
		return fmt.Errorf("%w: %q; is the server the one that hosts ship to, and the namespace theirs (--data-stream-namespace)?", errNoStream, name)
	case e.status == http.StatusBadRequest, e.status == http.StatusOK:
		return fmt.Errorf("%w; if the templates are older than this version: iotrace-bpf elasticsearch setup", e)
	}
	return e
}

// bucket is one group of a composite aggregation.
type bucket struct {
	Key    map[string]any
	Sums   map[string]float64 `json:"-"`
	Labels map[string]string  `json:"-"` // of the document that was asked for
	Ranges []rangeCount       `json:"-"`
}

// rangeCount is a bucket of a range aggregation.
type rangeCount struct {
	To    *float64
	Count uint64 `json:"doc_count"`
}

// UnmarshalJSON reads the key and all sums beside it.
func (b *bucket) UnmarshalJSON(raw []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return err
	}
	b.Sums = make(map[string]float64, len(all))
	for name, v := range all {
		if name == "key" {
			if err := json.Unmarshal(v, &b.Key); err != nil {
				return err
			}
			continue
		}
		var sum struct {
			Value   *float64
			Buckets []rangeCount
			Hits    struct {
				Hits []struct {
					Source struct {
						Container struct{ Labels map[string]string }
					} `json:"_source"`
				}
			}
		}
		switch {
		case json.Unmarshal(v, &sum) != nil:
		case sum.Value != nil:
			b.Sums[name] = *sum.Value
		case sum.Buckets != nil:
			b.Ranges = sum.Buckets
		case len(sum.Hits.Hits) > 0:
			b.Labels = sum.Hits.Hits[0].Source.Container.Labels
		}
	}
	return nil
}

// keyText is the same for two buckets of one key.
func (b *bucket) keyText() string {
	text, err := json.Marshal(b.Key)
	if err != nil {
		panic(err) // it came from JSON
	}
	return string(text)
}

// text returns a part of the key, "" where documents have no such field.
func (b *bucket) text(field string) string {
	switch v := b.Key[field].(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return ""
}

func (b *bucket) number(field string) uint64 {
	if v, ok := b.Key[field].(float64); ok && v >= 0 && v < 1<<63 {
		return uint64(v)
	}
	n, _ := strconv.ParseUint(b.text(field), 10, 64)
	return n
}

func (b *bucket) flag(field string) bool {
	v, ok := b.Key[field].(bool) // OpenSearch may give a number
	return ok && v || b.text(field) == "true" || b.text(field) == "1"
}

func (b *bucket) sum(name string) uint64 {
	if v := b.Sums[name]; v > 0 && v < 1<<63 {
		return uint64(v)
	}
	return 0
}

// page is a part of the reply to a composite aggregation.
type page struct {
	Groups struct {
		AfterKey json.RawMessage `json:"after_key"`
		Buckets  []bucket
	}
}

// groups asks for all groups of some fields with sums of others, page by page, and gives
// each to f.
func (r *Reader) groups(ctx context.Context, stream string, filters []object, by, sums []string, extra object, f func(*bucket) error) error {
	var sources []object
	for _, field := range by {
		sources = append(sources, object{field: object{"terms": object{"field": field, "missing_bucket": true}}})
	}
	inner := object{}
	for _, field := range sums {
		inner[field] = object{"sum": object{"field": field}}
	}
	for name, agg := range extra {
		inner[name] = agg
	}
	size := pageSize
	if extra["ranges"] != nil {
		size = rangesSize
	}
	var after json.RawMessage
	for {
		composite := object{"size": size, "sources": sources}
		if after != nil {
			composite["after"] = after
		}
		var reply page
		if err := r.search(ctx, stream, filters, object{"groups": object{"composite": composite, "aggs": inner}}, &reply); err != nil {
			return err
		}
		for i := range reply.Groups.Buckets {
			if err := f(&reply.Groups.Buckets[i]); err != nil {
				return err
			}
		}
		if len(reply.Groups.Buckets) < size || len(reply.Groups.AfterKey) == 0 || bytes.Equal(after, reply.Groups.AfterKey) {
			return nil
		}
		after = reply.Groups.AfterKey
	}
}

// lostFields are the fields of Lost in documents.
var lostFields = map[string]func(*output.Lost) *uint64{
	"iotrace.lost.bytes":     func(l *output.Lost) *uint64 { return &l.Bytes },
	"iotrace.lost.records":   func(l *output.Lost) *uint64 { return &l.Records },
	"iotrace.lost.notices":   func(l *output.Lost) *uint64 { return &l.Notices },
	"iotrace.lost.latencies": func(l *output.Lost) *uint64 { return &l.Latencies },
	"iotrace.lost.groups":    func(l *output.Lost) *uint64 { return &l.Groups },
	"iotrace.lost.walks":     func(l *output.Lost) *uint64 { return &l.Walks },
	"iotrace.lost.notes":     func(l *output.Lost) *uint64 { return &l.Notes },
	"iotrace.lost.misses":    func(l *output.Lost) *uint64 { return &l.Misses },
	"iotrace.lost.exports":   func(l *output.Lost) *uint64 { return &l.Exports },
}

const (
	ioStream     = "metrics-iotrace.io"
	statusStream = "logs-iotrace.status"
)

// look finds grain, hosts, and what the hosts lost.
func (r *Reader) look(ctx context.Context) error {
	in := []object{timeRange(r.opt.Since, r.opt.Until)}
	var grains struct {
		Grains struct{ Buckets []struct{ Key string } }
		Old    struct {
			Count int `json:"doc_count"`
		}
	}
	if err := r.search(ctx, ioStream, in, object{
		"grains": object{"terms": object{"field": "iotrace.grain", "size": 100}},
		"old":    object{"filter": object{"bool": object{"must_not": object{"exists": object{"field": "iotrace.grain"}}}}},
	}, &grains); err != nil {
		return err
	}
	r.Old = grains.Old.Count > 0
	if err := r.unmapped(ctx); err != nil {
		return err
	}
	for i, g := range grains.Grains.Buckets { // the most frequent first
		if i == 0 || g.Key == DefaultGrain {
			r.grain = g.Key
		}
	}
	// Who was there before is silent now.
	before := r.opt.Since.Add(r.opt.Since.Sub(r.opt.Until))
	err := r.groups(ctx, ioStream, []object{timeRange(before, r.opt.Until)}, []string{"host.name", "host.id"}, nil,
		object{"last": object{"max": object{"field": "@timestamp"}}}, func(b *bucket) error {
			if len(r.hosts) >= maxHosts {
				return fmt.Errorf("more than %d hosts", maxHosts)
			}
			r.hosts = append(r.hosts, HostState{
				Host: output.Host{Name: b.text("host.name"), ID: b.text("host.id")}, Last: time.UnixMilli(int64(b.sum("last"))).UTC(),
			})
			return nil
		})
	if err != nil {
		return err
	}
	return r.lost(ctx, r.opt.Since, r.opt.Until, func(h output.Host, l *output.Lost) {
		for i := range r.hosts {
			if r.hosts[i].Host == h {
				r.hosts[i].Lost.Add(l)
			}
		}
	})
}

// unmapped asks which fields no index knows. A server answers as if documents did not have
// them.
func (r *Reader) unmapped(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	fields := slices.Concat(identityFields, amountFields)
	asked := slices.Clone(fields)
	for _, op := range output.Ops {
		asked = append(asked, histogramField(op))
	}
	res, err := esapi.FieldCapsRequest{Index: []string{ioStream + "-" + r.opt.Namespace}, Fields: asked}.Do(ctx, r.c)
	if err != nil {
		return err
	}
	rep, err := readReply(res, pageReply)
	if err != nil {
		return err
	}
	if rep.status != http.StatusOK {
		return r.explain(ioStream, rep.failure("asking for fields"))
	}
	var known struct {
		Fields map[string]map[string]json.RawMessage // by type
	}
	if err := json.Unmarshal(rep.body, &known); err != nil {
		return errors.New("the server's reply is no list of fields")
	}
	for _, f := range fields {
		if known.Fields[f] == nil {
			r.Unmapped = append(r.Unmapped, f)
		}
	}
	for _, op := range output.Ops {
		if types := known.Fields[histogramField(op)]; len(types) == 1 && types["histogram"] != nil {
			r.histograms = append(r.histograms, op)
		}
	}
	return nil
}

// lost asks for what hosts lost.
func (r *Reader) lost(ctx context.Context, from, to time.Time, f func(output.Host, *output.Lost)) error {
	fields := make([]string, 0, len(lostFields))
	for field := range lostFields {
		fields = append(fields, field)
	}
	slices.Sort(fields)
	err := r.groups(ctx, statusStream, []object{timeRange(from, to)}, []string{"host.name", "host.id"}, fields, nil, func(b *bucket) error {
		var l output.Lost
		for field, of := range lostFields {
			*of(&l) = b.sum(field)
		}
		f(output.Host{Name: b.text("host.name"), ID: b.text("host.id")}, &l)
		return nil
	})
	if errors.Is(err, errNoStream) {
		return nil // a shipper without status documents
	}
	return err
}

// identityFields say whose I/O a document is about, and where it went.
var identityFields = []string{
	"host.name", "host.id", "iotrace.source", "iotrace.level", "iotrace.device.stacked", "iotrace.owner", "iotrace.named_by",
	"iotrace.project.name", "iotrace.project.rule", "iotrace.project.named_by", "iotrace.service.name", "iotrace.unit.name",
	"container.id", "container.name", "container.runtime", "container.image.name", "container.image.tag", "container.image.hash.all",
	"orchestrator.namespace", "orchestrator.resource.name", "orchestrator.resource.id",
	"iotrace.cgroup.id", "iotrace.cgroup.path", "process.pid", "process.name", "iotrace.device.id", "iotrace.device.name", "iotrace.device.alias",
	"iotrace.mount.source", "iotrace.mount.point", "iotrace.mount.fstype", "iotrace.mount.volume", "iotrace.mount.driver",
	"iotrace.nfs.server", "iotrace.nfs.export", "iotrace.nfs.version", "iotrace.nfs.address", "iotrace.nfs.port", "iotrace.fuse.subtype", "iotrace.9p.transport",
	"iotrace.nfs.client.address", "iotrace.nfs.client.name",
	"file.path", "file.inode", "iotrace.file.kind", "iotrace.file.container_path", "iotrace.file.links", "iotrace.file.deleted", "iotrace.file.partial", "iotrace.file.log_of",
}

// amountFields are the sums of a group.
var amountFields = func() (fields []string) {
	for _, op := range output.Ops {
		for _, what := range []string{"bytes", "ops", "errors", "meta_bytes"} {
			if what == "ops" || what == "errors" || op == output.OpRead || op == output.OpWrite || op == output.OpDiscard && what == "bytes" {
				fields = append(fields, "iotrace."+string(op)+"."+what)
			}
		}
	}
	for _, basis := range []string{"dirtier", "page", "journal", "bio", "task", "none"} {
		fields = append(fields, "iotrace.basis."+basis)
	}
	return append(fields, "iotrace.retransmits")
}()

// Interval returns what all hosts did from one time to another, and lost. Documents belong
// to the time at which their interval ended. More than output.MaxSamples groups are an error.
func (r *Reader) Interval(ctx context.Context, from, to time.Time) (*output.Interval, error) {
	iv := &output.Interval{Start: from.UTC(), End: to.UTC()}
	filters := []object{timeRange(from, to)}
	if r.grain != "" {
		filters = append(filters, object{"term": object{"iotrace.grain": r.grain}})
	}
	one := len(r.hosts) == 1
	index := make(map[string]int) // of samples, by key
	err := r.groups(ctx, ioStream, filters, identityFields, amountFields, nil, func(b *bucket) error {
		if len(iv.Samples) >= output.MaxSamples {
			return fmt.Errorf("more than %d groups from %s to %s: give a shorter --interval or a later --since", output.MaxSamples, from.Format(time.RFC3339), to.Format(time.RFC3339))
		}
		s := sampleOf(b)
		if one {
			iv.Host, s.Host = s.Host, output.Host{}
		}
		index[b.keyText()] = len(iv.Samples)
		iv.Samples = append(iv.Samples, s)
		return nil
	})
	if err == nil && r.opt.Latency {
		err = r.latencies(ctx, filters, func(b *bucket) *output.Sample {
			if i, ok := index[b.keyText()]; ok {
				return &iv.Samples[i]
			}
			return nil // a document has come since
		})
	}
	if err == nil {
		err = r.lost(ctx, from, to, func(_ output.Host, l *output.Lost) { iv.Lost.Add(l) })
	}
	if err == nil {
		err = r.label(ctx, iv)
	}
	if err != nil {
		return nil, fmt.Errorf("reading from Elasticsearch: %w", err)
	}
	return iv, nil
}

// histogramField is where documents have the latencies of an operation.
func histogramField(op output.Op) string { return "iotrace." + string(op) + ".latency.histogram" }

// latencyRanges are the buckets of latencies, four for each power of two from 1 us to
// 2 min, as hosts count them. A value of a histogram in a document is the upper end of one,
// so that the server's counts by range are those of the hosts, added up.
var latencyRanges = func() (ranges []object) {
	ranges = append(ranges, object{"to": 1 << 10})
	for log := 10; log < 37; log++ {
		for quarter := range 4 {
			ranges = append(ranges, object{"from": (4 + quarter) << (log - 2), "to": (5 + quarter) << (log - 2)})
		}
	}
	return append(ranges, object{"from": 1 << 37})
}()

// latencies asks for the latencies of each group, and adds them to its sample. A server
// that refuses has its other sums all the same.
func (r *Reader) latencies(ctx context.Context, filters []object, sample func(*bucket) *output.Sample) error {
	for _, op := range r.histograms {
		field := histogramField(op)
		longest := "iotrace." + string(op) + ".latency.max"
		extra := object{
			"ranges": object{"range": object{"field": field, "ranges": latencyRanges}},
			longest:  object{"max": object{"field": longest}},
		}
		has := append(slices.Clone(filters), object{"exists": object{"field": field}})
		err := r.groups(ctx, ioStream, has, identityFields, nil, extra, func(b *bucket) error {
			s := sample(b)
			if s == nil {
				return nil
			}
			l := output.Latency{Max: b.sum(longest)}
			for _, c := range b.Ranges {
				upTo := l.Max
				if c.To != nil {
					upTo = uint64(*c.To) - 1
				}
				if c.Count > 0 {
					l.Buckets = append(l.Buckets, output.Bucket{UpTo: upTo, Count: c.Count})
				}
			}
			s.Amount(op).Latency.Merge(&l)
			return nil
		})
		var refused *statusError
		if errors.As(err, &refused) {
			r.log.Warn("the server does not add up latencies", "error", err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// label gives the containers of an interval the labels that were asked for. A server cannot
// group by a label everywhere (OpenSearch), so the documents of a container are asked for
// theirs: one document each, once.
func (r *Reader) label(ctx context.Context, iv *output.Interval) error {
	if len(r.opt.Labels) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := func(s *output.Sample) bool {
		_, ok := r.labels[s.Container.ID]
		return ok || s.Container.ID == ""
	}
	if slices.ContainsFunc(iv.Samples, func(s output.Sample) bool { return !known(&s) }) {
		if r.labels == nil || len(r.labels) > maxLabels {
			r.labels = make(map[string]map[string]string)
		}
		if err := r.askLabels(ctx, iv.Start, iv.End); err != nil {
			return err
		}
	}
	for i := range iv.Samples {
		s := &iv.Samples[i]
		if !known(s) {
			r.labels[s.Container.ID] = nil
		}
		s.Container.Labels = r.labels[s.Container.ID]
	}
	return nil
}

// askLabels asks for the labels of all containers of a time that have any.
func (r *Reader) askLabels(ctx context.Context, from, to time.Time) error {
	const field = "container.labels"
	newest := object{"top_hits": object{"size": 1, "_source": object{"includes": []string{field}}}}
	filters := []object{timeRange(from, to), {"exists": object{"field": "container.id"}}}
	return r.groups(ctx, ioStream, filters, []string{"container.id"}, nil, object{"newest": newest}, func(b *bucket) error {
		labels := make(map[string]string)
		for _, name := range r.opt.Labels {
			if v, ok := b.Labels[output.LabelField(name)]; ok {
				labels[name] = v
			}
		}
		r.labels[b.text("container.id")] = labels
		return nil
	})
}

// sampleOf is the reverse of what package ndjson makes of a row.
func sampleOf(b *bucket) output.Sample {
	s := output.Sample{
		Host:   output.Host{Name: b.text("host.name"), ID: b.text("host.id")},
		Source: output.Source(b.text("iotrace.source")), Level: output.Level(b.text("iotrace.level")), Owner: output.OwnerKind(b.text("iotrace.owner")),
		NamedBy: b.text("iotrace.named_by"),
		Project: b.text("iotrace.project.name"), ProjectRule: b.text("iotrace.project.rule"), ProjectNamedBy: b.text("iotrace.project.named_by"),
		Service: b.text("iotrace.service.name"), Unit: b.text("iotrace.unit.name"),
		Container: output.Container{
			ID: b.text("container.id"), Name: b.text("container.name"), Runtime: b.text("container.runtime"),
			Image: b.text("container.image.name"), ImageTag: b.text("container.image.tag"), Digest: b.text("container.image.hash.all"),
		},
		Pod:       output.Pod{Name: b.text("orchestrator.resource.name"), Namespace: b.text("orchestrator.namespace"), UID: b.text("orchestrator.resource.id")},
		Cgroup:    output.Cgroup{ID: b.number("iotrace.cgroup.id"), Path: b.text("iotrace.cgroup.path")},
		Device:    output.Device{ID: b.text("iotrace.device.id"), Name: b.text("iotrace.device.name"), Alias: b.text("iotrace.device.alias"), Stacked: b.flag("iotrace.device.stacked")},
		NFSClient: output.NFSClient{Address: b.text("iotrace.nfs.client.address"), Name: b.text("iotrace.nfs.client.name")},
		Process: output.Process{
			PID: uint32(min(b.number("process.pid"), 1<<32-1)), Name: b.text("process.name"),
		},
		Mount: output.Mount{
			Source: b.text("iotrace.mount.source"), Point: b.text("iotrace.mount.point"), FSType: b.text("iotrace.mount.fstype"),
			Volume: b.text("iotrace.mount.volume"), Driver: b.text("iotrace.mount.driver"),
			NFSServer: b.text("iotrace.nfs.server"), NFSExport: b.text("iotrace.nfs.export"), NFSVersion: b.text("iotrace.nfs.version"),
			NFSAddress: b.text("iotrace.nfs.address"), NFSPort: uint16(min(b.number("iotrace.nfs.port"), 1<<16-1)), FUSESubtype: b.text("iotrace.fuse.subtype"),
			Transport: b.text("iotrace.9p.transport"),
		},
		File: output.File{
			Kind: output.FileKind(b.text("iotrace.file.kind")), Path: b.text("file.path"), Inside: b.text("iotrace.file.container_path"),
			Inode: b.number("file.inode"), Links: uint32(min(b.number("iotrace.file.links"), 1<<32-1)),
			Removed: b.flag("iotrace.file.deleted"), Partial: b.flag("iotrace.file.partial"), LogOf: b.text("iotrace.file.log_of"),
		},
		MetaReadBytes: b.sum("iotrace.read.meta_bytes"), MetaWriteBytes: b.sum("iotrace.write.meta_bytes"), Retransmits: b.sum("iotrace.retransmits"),
		Basis: output.BasisBytes{
			Dirtier: b.sum("iotrace.basis.dirtier"), Page: b.sum("iotrace.basis.page"), Journal: b.sum("iotrace.basis.journal"),
			Bio: b.sum("iotrace.basis.bio"), Task: b.sum("iotrace.basis.task"), None: b.sum("iotrace.basis.none"),
		},
	}
	for _, op := range output.Ops {
		prefix := "iotrace." + string(op) + "."
		*s.Amount(op) = output.Amount{Bytes: b.sum(prefix + "bytes"), Ops: b.sum(prefix + "ops"), Errors: b.sum(prefix + "errors")}
	}
	return s
}

// ClusterTimeline divides a time into steps, each of which is asked for when it is looked
// at. It is package terminal's Timeline.
type ClusterTimeline struct {
	ctx  context.Context
	r    *Reader
	step time.Duration
}

// Timeline returns the intervals of the Reader's time, each of the length step. ctx ends
// the questions.
func (r *Reader) Timeline(ctx context.Context, step time.Duration) *ClusterTimeline {
	return &ClusterTimeline{ctx: ctx, r: r, step: step}
}

// Bounds returns the first interval and one past the last.
func (t *ClusterTimeline) Bounds() (first, end int) {
	return 0, int((t.r.opt.Until.Sub(t.r.opt.Since) + t.step - 1) / t.step)
}

// Span returns when interval i begins and ends.
func (t *ClusterTimeline) Span(i int) (start, end time.Time) {
	start = t.r.opt.Since.Add(time.Duration(i) * t.step)
	end = start.Add(t.step)
	if end.After(t.r.opt.Until) {
		end = t.r.opt.Until
	}
	return start, end
}

// Frame asks the server for interval i.
func (t *ClusterTimeline) Frame(i int) (*output.Interval, error) {
	start, end := t.Span(i)
	return t.r.Interval(t.ctx, start, end)
}

// Silent returns the hosts that were there and whose last interval ended more than
// patience before the end of the time.
func (r *Reader) Silent(patience time.Duration) (silent []HostState) {
	for _, h := range r.hosts {
		if h.Last.Before(r.opt.Until.Add(-patience)) {
			silent = append(silent, h)
		}
	}
	return silent
}

// LostWords names what a host reported as lost, "" for nothing.
func (h *HostState) LostWords() string { return strings.Join(h.Lost.Words(), ", ") }
