// Package prometheus serves intervals as counters on /metrics.
package prometheus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	dto "github.com/prometheus/client_model/go"
)

// Options bounds what a scrape can hold. The zero value of a field
// is its default.
type Options struct {
	// MaxSeries is the number of label sets with counters of their own: 10000
	// by default. I/O of further ones is counted in a series whose labels say
	// "(other)", so that sums stay right.
	MaxSeries int
	// IdleTime is for how long a label set must have been silent before it
	// makes room for a new one once MaxSeries are in use: 15 minutes by
	// default. Its counters disappear, as those of a restarted process do.
	IdleTime time.Duration
	// Version is told in iotrace_build_info.
	Version string
	// Elasticsearch, if it is set, is asked for the state of that output at
	// every scrape.
	Elasticsearch func() Shipping
	// Logger gets errors of scrapes; nil discards them.
	Logger *slog.Logger
}

// Shipping is the state of an output that ships documents to a server, counted
// in documents since the start.
type Shipping struct {
	Delivered    uint64 // stored by the server
	Duplicates   uint64 // the server had them already
	SoftFailures uint64 // stored in the failure store of the stream
	DeadLettered uint64 // rejected by the server and kept in a file
	Dropped      uint64 // lost: no room in memory or on disk
	Pending      uint64 // waiting in memory, on disk or under way
	SpoolBytes   int64  // disk space that waiting documents use
	Failing      bool   // the last attempt failed
}

const (
	defaultMaxSeries = 10000
	defaultIdleTime  = 15 * time.Minute
	// maxLabelLength cuts label values: names have no business being longer.
	maxLabelLength = 256
	// maxInfos bounds the label sets of each of the info metrics.
	maxInfos = 10000
	// latencySchema divides every power of two into 2^3 buckets, so that a
	// latency is known to 9 %.
	latencySchema = 3
)

// Exporter serves counters for scraping. What was observed accumulates:
// intervals are the source, counters the result.
//
// Levels and stacked devices are metrics of their own instead of labels: a sum
// over any one metric never counts a byte twice.
type Exporter struct {
	opt      Options
	listener net.Listener
	server   *http.Server
	done     chan struct{}
	registry *prometheus.Registry

	mu         sync.Mutex
	started    time.Time
	usage      map[usageKey]*seriesUsage
	containers map[containerInfo]time.Time
	mounts     map[mountInfo]time.Time
	overflow   uint64 // samples counted in "(other)"
	intervals  uint64
	last       *output.Interval // without samples and events
	lost       output.Lost
	self       output.Self
	events     map[string]uint64 // by action
	leaked     map[overlayKey]struct{}
}

// family tells which metric a sample's bytes belong to.
type family uint8

const (
	familyIO      family = iota // what reaches device, server or daemon
	familyStacked               // the same bytes again, above a leaf device
	familyApp                   // what programs asked for
)

var familyNames = [...]struct{ prefix, what string }{
	familyIO:      {"iotrace_io_", "at the wire: requests to devices, servers and daemons"},
	familyStacked: {"iotrace_stacked_io_", "of devices on top of other devices, which iotrace_io counts again below"},
	familyApp:     {"iotrace_app_io_", "of programs as they asked for it, cached or not"},
}

// usageKey holds the labels of the counters, in the order of usageLabels,
// except for the operation.
type usageKey struct {
	family                                          family
	source, owner, project, service, namespace, pod string
	container, unit, device, mount                  string
}

var usageLabels = []string{"source", "owner", "project", "service", "namespace", "pod", "container", "unit", "device", "mount"}

func (k *usageKey) labels(more ...string) []string {
	return append([]string{k.source, k.owner, k.project, k.service, k.namespace, k.pod, k.container, k.unit, k.device, k.mount}, more...)
}

type seriesUsage struct {
	created time.Time
	seen    time.Time // when the last I/O was observed

	ops                 [len(countedOps)]amount
	metaRead, metaWrite uint64
	basis               output.BasisBytes
}

var countedOps = [...]output.Op{output.OpRead, output.OpWrite, output.OpDiscard, output.OpFlush, output.OpMetadata}

type amount struct {
	bytes, ops, errors uint64
	latency            *histogram // nil: none measured
}

type containerInfo struct{ id, name, runtime, image, tag, namespace, pod, project, service string }

type mountInfo struct{ mount, fstype, volume, driver, server string }

// New serves /metrics at addr, which is "port", ":port" or
// "host:port". Without a host it listens on the loopback address only.
func New(addr string, opt Options) (*Exporter, error) {
	opt.MaxSeries = cmp.Or(opt.MaxSeries, defaultMaxSeries)
	opt.IdleTime = cmp.Or(opt.IdleTime, defaultIdleTime)
	if opt.MaxSeries < 1 || opt.IdleTime < 0 {
		return nil, errors.New("a limit of the Prometheus output is negative")
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	addr, err := listenAddress(addr)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serving metrics: %w", err)
	}
	p := &Exporter{
		opt: opt, listener: listener, done: make(chan struct{}), registry: prometheus.NewRegistry(), started: time.Now(),
		usage: make(map[usageKey]*seriesUsage), containers: make(map[containerInfo]time.Time), mounts: make(map[mountInfo]time.Time),
		events: make(map[string]uint64),
		leaked: make(map[overlayKey]struct{}),
	}
	p.registry.MustRegister(p, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	errorLog := slog.NewLogLogger(opt.Logger.Handler(), slog.LevelError)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(p.registry, promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{
		ErrorLog:            errorLog,
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 3,
	})))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintln(w, `<!DOCTYPE html><title>iotrace-bpf</title><p>iotrace-bpf: <a href="metrics">metrics</a>`)
	})
	p.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          errorLog,
	}
	go func() {
		defer close(p.done)
		if err := p.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			opt.Logger.Error("metrics are no longer served", "error", err)
		}
	}()
	return p, nil
}

// listenAddress adds the loopback address where no host is given. Who wants
// metrics on the network says so: they tell names of customers and files.
func listenAddress(addr string) (string, error) {
	if _, err := strconv.ParseUint(addr, 10, 16); err == nil {
		addr = ":" + addr
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("address %q for metrics: want port, :port or host:port: %w", addr, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("address %q for metrics: port %q is not a number up to 65535", addr, port)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// Addr returns the address that metrics are served at.
func (p *Exporter) Addr() string { return p.listener.Addr().String() }

// Close stops serving; scrapes under way have until ctx ends.
func (p *Exporter) Close(ctx context.Context) error {
	err := p.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, p.server.Close())
	}
	<-p.done
	return err
}

// maxLeaked bounds the devices that are remembered to be leaked.
const maxLeaked = 4096

// overlayKey is one device: ifindexes are unique within a network namespace.
type overlayKey struct {
	netNS   uint64
	ifindex uint32
}

// noteLeak follows which devices are leaked: those that were reported and have
// not gone, moved or come up since.
func (p *Exporter) noteLeak(ev *output.Event) {
	key := overlayKey{ev.VXLAN.NetNS, ev.VXLAN.Ifindex}
	switch ev.Action {
	case "leaked":
		if len(p.leaked) < maxLeaked {
			p.leaked[key] = struct{}{}
		}
	case "deleted", "cleaned", "moved", "up", "created":
		delete(p.leaked, key)
	}
}

// Observe adds an interval to the counters. It keeps nothing of iv that the
// caller may change.
func (p *Exporter) Observe(iv *output.Interval) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.intervals++
	for i := range iv.Samples {
		s := &iv.Samples[i]
		p.usageOf(s, now).add(s)
		p.noteInfo(s, now)
	}
	for i := range iv.Events {
		if ev := &iv.Events[i]; ev.VXLAN != nil {
			if action := labelValue(ev.Action); p.events[action] > 0 || len(p.events) < 32 {
				p.events[action]++
			}
			p.noteLeak(ev)
		}
	}
	p.lost.Add(&iv.Lost)
	p.self.BPFNanos += iv.Self.BPFNanos
	p.self.CPUNanos += iv.Self.CPUNanos
	p.self.RSSBytes = iv.Self.RSSBytes
	p.last = &output.Interval{Start: iv.Start, End: iv.End, Host: iv.Host, Sources: slices.Clone(iv.Sources), Unresolved: iv.Unresolved}
}

// keyOf returns the labels of a sample. No label is a path, a process or
// anything else of which there is no end: such owners are told by kind.
func keyOf(s *output.Sample) usageKey {
	k := usageKey{
		source: labelValue(string(s.Source)), owner: labelValue(string(s.Owner)), project: labelValue(s.Project), service: labelValue(s.Service),
		namespace: labelValue(s.Pod.Namespace), pod: labelValue(s.Pod.Name), container: labelValue(output.ContainerText(&s.Container)), unit: labelValue(s.Unit),
	}
	if s.Owner == output.OwnerSession {
		k.unit = "" // a new one for every login
	}
	switch {
	case s.Level == output.LevelApp:
		k.family = familyApp
	case s.Device.Stacked:
		k.family = familyStacked
	}
	if s.Source == output.SourceBlock {
		k.device = labelValue(output.DeviceText(&s.Device))
	} else {
		k.mount = labelValue(mountLabel(s))
	}
	return k
}

// mountLabel names storage that is not a local disk: the export of a server.
func mountLabel(s *output.Sample) string {
	if s.Mount.Source != "" {
		return s.Mount.Source
	}
	return output.DeviceText(&s.Device)
}

// labelValue makes text fit for a label: the exposition formats are UTF-8 and
// escape the rest.
func labelValue(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > maxLabelLength {
		s = strings.ToValidUTF8(s[:maxLabelLength], "") + "..."
	}
	return s
}

// otherKey is where a sample goes whose labels have no room.
func otherKey(k usageKey) usageKey {
	other := usageKey{family: k.family, source: k.source, owner: output.TextOther, project: output.TextOther, service: output.TextOther, container: output.TextOther}
	if k.source == string(output.SourceBlock) {
		other.device = output.TextOther
	} else {
		other.mount = output.TextOther
	}
	return other
}

// usageOf returns the counters for a sample.
func (p *Exporter) usageOf(s *output.Sample, now time.Time) *seriesUsage {
	k := keyOf(s)
	u := p.usage[k]
	if u == nil {
		if len(p.usage) >= p.opt.MaxSeries && !p.makeRoom(now) {
			p.overflow++
			k = otherKey(k)
			u = p.usage[k] // one for each source and family, above the limit
		}
		if u == nil {
			u = &seriesUsage{created: now}
			if p.intervals <= 1 {
				u.created = p.started
			}
			p.usage[k] = u
		}
	}
	u.seen = now
	return u
}

// makeRoom forgets the label sets that have been silent for long enough. It
// looks for all of them at once, so that its cost is shared by those to come.
func (p *Exporter) makeRoom(now time.Time) bool {
	before := len(p.usage)
	for k, u := range p.usage {
		if now.Sub(u.seen) > p.opt.IdleTime {
			delete(p.usage, k)
		}
	}
	return len(p.usage) < before
}

func (u *seriesUsage) add(s *output.Sample) {
	for i, a := range [...]*output.Amount{&s.Read, &s.Write, &s.Discard, &s.Flush, &s.Metadata} {
		t := &u.ops[i]
		t.bytes += a.Bytes
		t.ops += a.Ops
		t.errors += a.Errors
		if len(a.Latency.Buckets) > 0 {
			if t.latency == nil {
				t.latency = newHistogram()
			}
			t.latency.add(&a.Latency)
		}
	}
	u.metaRead += s.MetaReadBytes
	u.metaWrite += s.MetaWriteBytes
	u.basis.Dirtier += s.Basis.Dirtier
	u.basis.Page += s.Basis.Page
	u.basis.Bio += s.Basis.Bio
	u.basis.Task += s.Basis.Task
	u.basis.None += s.Basis.None
}

// noteInfo keeps what is constant for a container or mount; queries join it
// to the counters.
func (p *Exporter) noteInfo(s *output.Sample, now time.Time) {
	if c := &s.Container; c.ID != "" && s.Owner == output.OwnerContainer {
		note(p.containers, containerInfo{labelValue(c.ID), labelValue(output.ContainerText(c)), labelValue(c.Runtime), labelValue(c.Image), labelValue(c.ImageTag),
			labelValue(s.Pod.Namespace), labelValue(s.Pod.Name), labelValue(s.Project), labelValue(s.Service)}, now, p.opt.IdleTime)
	}
	if m := &s.Mount; s.Source != output.SourceBlock {
		note(p.mounts, mountInfo{labelValue(mountLabel(s)), labelValue(m.FSType), labelValue(m.Volume), labelValue(m.Driver), labelValue(m.NFSServer)}, now, p.opt.IdleTime)
	}
}

func note[K comparable](m map[K]time.Time, k K, now time.Time, idle time.Duration) {
	if _, ok := m[k]; !ok && len(m) >= maxInfos {
		for old, seen := range m {
			if now.Sub(seen) > idle {
				delete(m, old)
			}
		}
		if len(m) >= maxInfos {
			return
		}
	}
	m[k] = now
}

// histogram accumulates latencies in buckets of both kinds: native ones
// for whoever can read them, and a few fixed ones for the text formats.
type histogram struct {
	native  map[int]uint64
	classic [len(classicBounds)]uint64 // not cumulative
	zero    uint64                     // too short for the clock
	count   uint64
	sum     float64 // seconds
}

// classicBounds are upper bounds in seconds.
var classicBounds = [...]float64{50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10}

func newHistogram() *histogram { return &histogram{native: make(map[int]uint64)} }

// add counts every latency at the upper end of its bucket, which is as much
// as is known: quantiles err on the slow side, by a bucket at most.
func (h *histogram) add(l *output.Latency) {
	for _, b := range l.Buckets {
		seconds := float64(b.UpTo) / 1e9
		if b.UpTo == 0 {
			h.zero += b.Count
		} else {
			h.native[nativeBucket(seconds)] += b.Count
		}
		if i, _ := slices.BinarySearch(classicBounds[:], seconds); i < len(classicBounds) {
			h.classic[i] += b.Count
		}
		h.count += b.Count
	}
	h.sum += float64(l.Sum) / 1e9
}

// nativeBucket returns the index of the bucket (base^(i-1), base^i] that v is
// in, where base is 2^(2^-schema).
func nativeBucket(v float64) int {
	const perDouble = 1 << latencySchema
	frac, exp := math.Frexp(v) // v = frac * 2^exp, frac in [0.5, 1)
	i := (exp-1)*perDouble + int(math.Ceil(math.Log2(frac*2)*perDouble))
	// Log2 may be off by the last bit next to a boundary.
	if math.Exp2(float64(i-1)/perDouble) >= v {
		i--
	} else if math.Exp2(float64(i)/perDouble) < v {
		i++
	}
	return i
}

// metric makes a histogram with both kinds of buckets.
func (h *histogram) metric(desc *prometheus.Desc, created time.Time, labels []string) (prometheus.Metric, error) {
	positive := make(map[int]int64, len(h.native))
	for i, n := range h.native {
		positive[i] = int64(n)
	}
	m, err := prometheus.NewConstNativeHistogram(desc, h.count, h.sum, positive, nil, h.zero, latencySchema, nativeZeroThreshold, created, labels...)
	if err != nil {
		return nil, err
	}
	buckets := make([]*dto.Bucket, len(classicBounds))
	cumulative := uint64(0)
	for i, bound := range classicBounds {
		cumulative += h.classic[i]
		n := cumulative
		buckets[i] = &dto.Bucket{UpperBound: &bound, CumulativeCount: &n}
	}
	return &histogramMetric{Metric: m, classic: buckets}, nil
}

// nativeZeroThreshold is the library's default: no latency is that short.
var nativeZeroThreshold = prometheus.DefNativeHistogramZeroThreshold

// histogramMetric adds fixed buckets to a native histogram. The library makes
// constant histograms of one kind or the other only.
type histogramMetric struct {
	prometheus.Metric
	classic []*dto.Bucket
}

// Write implements prometheus.Metric.
func (m *histogramMetric) Write(out *dto.Metric) error {
	if err := m.Metric.Write(out); err != nil {
		return err
	}
	out.Histogram.Bucket = m.classic
	return nil
}

type familyDescs struct{ bytes, ops, errors, meta, basis, latency *prometheus.Desc }

// newDesc describes a metric whose labels vary.
func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// with appends to a copy of usageLabels.
func with(more ...string) []string { return append(slices.Clone(usageLabels), more...) }

// promDescs describes every metric; a collector must name them the same way
// at every scrape.
var (
	familyDesc = func() (d [len(familyNames)]familyDescs) {
		for i, f := range familyNames {
			d[i] = familyDescs{
				bytes:   newDesc(f.prefix+"bytes_total", "Bytes of I/O "+f.what+".", with("operation")...),
				ops:     newDesc(f.prefix+"operations_total", "Operations "+f.what+".", with("operation")...),
				errors:  newDesc(f.prefix+"errors_total", "Failed operations "+f.what+".", with("operation")...),
				meta:    newDesc(f.prefix+"metadata_bytes_total", "File-system metadata and journal, which the bytes include, "+f.what+".", with("operation")...),
				basis:   newDesc(f.prefix+"basis_bytes_total", "Bytes by how their owner was found, "+f.what+".", "source", "basis"),
				latency: newDesc(f.prefix+"latency_seconds", "Time from request to completion "+f.what+".", with("operation")...),
			}
		}
		return d
	}()
	descContainer   = newDesc("iotrace_container_info", "What is known of a container that had I/O.", "container_id", "container", "runtime", "image", "image_tag", "namespace", "pod", "project", "service")
	descMount       = newDesc("iotrace_mount_info", "What is known of a mount that had I/O.", "mount", "fstype", "volume", "driver", "server")
	descSource      = newDesc("iotrace_source_attached", "Whether the source is counted (1) or absent on this host (0).", "source")
	descLost        = newDesc("iotrace_lost_total", "What could not be recorded; totals are exact all the same, except for iotrace_lost_bytes_total and missed runs.", "what")
	descLostBytes   = newDesc("iotrace_lost_bytes_total", "Bytes that are in no total.")
	descUnresolved  = newDesc("iotrace_unresolved_cgroups", "Control groups with I/O in the last interval whose name is not known.")
	descBPF         = newDesc("iotrace_self_bpf_seconds_total", "Time spent in our BPF programs; needs the sysctl kernel.bpf_stats_enabled.")
	descCPU         = newDesc("iotrace_self_cpu_seconds_total", "CPU time of the tracer.")
	descRSS         = newDesc("iotrace_self_resident_bytes", "Memory of the tracer.")
	descIntervals   = newDesc("iotrace_intervals_total", "Intervals counted.")
	descLast        = newDesc("iotrace_last_interval_timestamp_seconds", "End of the last interval that is counted.")
	descSeries      = newDesc("iotrace_series", "Label sets with counters of their own.")
	descSeriesLimit = newDesc("iotrace_series_limit", "Limit of iotrace_series.")
	descOverflow    = newDesc("iotrace_series_overflow_total", "Times that I/O was counted as (other) because of the limit.")
	descVXLAN       = newDesc("iotrace_vxlan_events_total", "Events in the life of overlay devices.", "action")
	descLeaked      = newDesc("iotrace_vxlan_leaked_devices", "Overlay devices that were left behind and keep containers from starting.")
	descBuild       = newDesc("iotrace_build_info", "Version of the tracer.", "version")
	descHost        = newDesc("iotrace_host_info", "The machine that is traced.", "host", "host_id", "kernel")
	descES          = newDesc("iotrace_elasticsearch_documents_total", "Documents for Elasticsearch by what became of them.", "outcome")
	descESPending   = newDesc("iotrace_elasticsearch_pending_documents", "Documents that wait for Elasticsearch.")
	descESSpool     = newDesc("iotrace_elasticsearch_spool_bytes", "Disk space of documents that wait for Elasticsearch.")
	descESFailing   = newDesc("iotrace_elasticsearch_failing", "Whether the last attempt to reach Elasticsearch failed.")
)

// Describe implements prometheus.Collector.
func (p *Exporter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range familyDesc {
		for _, m := range []*prometheus.Desc{d.bytes, d.ops, d.errors, d.meta, d.basis, d.latency} {
			ch <- m
		}
	}
	for _, d := range []*prometheus.Desc{descContainer, descMount, descSource, descLost, descLostBytes, descUnresolved, descBPF, descCPU, descRSS, descIntervals, descLast,
		descSeries, descSeriesLimit, descOverflow, descVXLAN, descLeaked, descBuild, descHost, descES, descESPending, descESSpool, descESFailing} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *Exporter) Collect(ch chan<- prometheus.Metric) {
	// Metrics are made under the lock and sent without it: whoever scrapes
	// slowly must not hold up Observe.
	for _, m := range p.metrics() {
		ch <- m
	}
}

// metricList collects metrics; what cannot be made becomes an error of the
// scrape.
type metricList []prometheus.Metric

func (l *metricList) put(m prometheus.Metric, err error, d *prometheus.Desc) {
	if err != nil {
		m = prometheus.NewInvalidMetric(d, err)
	}
	*l = append(*l, m)
}

func (l *metricList) counter(d *prometheus.Desc, v float64, created time.Time, labels ...string) {
	m, err := prometheus.NewConstMetricWithCreatedTimestamp(d, prometheus.CounterValue, v, created, labels...)
	l.put(m, err, d)
}

func (l *metricList) gauge(d *prometheus.Desc, v float64, labels ...string) {
	m, err := prometheus.NewConstMetric(d, prometheus.GaugeValue, v, labels...)
	l.put(m, err, d)
}

func (p *Exporter) metrics() []prometheus.Metric {
	var es *Shipping
	if p.opt.Elasticsearch != nil {
		s := p.opt.Elasticsearch()
		es = &s
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := make(metricList, 0, 8*len(p.usage)+len(p.containers)+64)
	type basisKey struct {
		family family
		source string
	}
	bases := make(map[basisKey]output.BasisBytes)
	for k, u := range p.usage {
		p.collectUsage(&l, &k, u)
		b := bases[basisKey{k.family, k.source}]
		b.Dirtier += u.basis.Dirtier
		b.Page += u.basis.Page
		b.Bio += u.basis.Bio
		b.Task += u.basis.Task
		b.None += u.basis.None
		bases[basisKey{k.family, k.source}] = b
	}
	for k, b := range bases {
		for _, v := range []struct {
			name  string
			bytes uint64
		}{{"dirtier", b.Dirtier}, {"page", b.Page}, {"bio", b.Bio}, {"task", b.Task}, {"none", b.None}} {
			l.counter(familyDesc[k.family].basis, float64(v.bytes), p.started, k.source, v.name)
		}
	}
	for c := range p.containers {
		l.gauge(descContainer, 1, c.id, c.name, c.runtime, c.image, c.tag, c.namespace, c.pod, c.project, c.service)
	}
	for m := range p.mounts {
		l.gauge(descMount, 1, m.mount, m.fstype, m.volume, m.driver, m.server)
	}
	p.collectHealth(&l)
	if es != nil {
		p.collectElasticsearch(&l, es)
	}
	return l
}

func (p *Exporter) collectUsage(l *metricList, k *usageKey, u *seriesUsage) {
	d := &familyDesc[k.family]
	for i := range u.ops {
		a, op := &u.ops[i], string(countedOps[i])
		if a.ops == 0 && a.bytes == 0 && a.errors == 0 {
			continue
		}
		labels := k.labels(op)
		if countedOps[i] == output.OpRead || countedOps[i] == output.OpWrite || countedOps[i] == output.OpDiscard {
			l.counter(d.bytes, float64(a.bytes), u.created, labels...)
		}
		l.counter(d.ops, float64(a.ops), u.created, labels...)
		if a.errors > 0 {
			l.counter(d.errors, float64(a.errors), u.created, labels...)
		}
		if a.latency != nil {
			m, err := a.latency.metric(d.latency, u.created, labels)
			l.put(m, err, d.latency)
		}
	}
	if u.metaRead > 0 {
		l.counter(d.meta, float64(u.metaRead), u.created, k.labels(string(output.OpRead))...)
	}
	if u.metaWrite > 0 {
		l.counter(d.meta, float64(u.metaWrite), u.created, k.labels(string(output.OpWrite))...)
	}
}

func (p *Exporter) collectHealth(l *metricList) {
	for _, v := range []struct {
		what string
		n    uint64
	}{{"records", p.lost.Records}, {"notices", p.lost.Notices}, {"latencies", p.lost.Latencies}, {"groups", p.lost.Groups},
		{"walks", p.lost.Walks}, {"misses", p.lost.Misses}, {"exports", p.lost.Exports}} {
		l.counter(descLost, float64(v.n), p.started, v.what)
	}
	l.counter(descLostBytes, float64(p.lost.Bytes), p.started)
	l.gauge(descLeaked, float64(len(p.leaked)))
	for action, n := range p.events {
		l.counter(descVXLAN, float64(n), p.started, action)
	}
	l.counter(descBPF, float64(p.self.BPFNanos)/1e9, p.started)
	l.counter(descCPU, float64(p.self.CPUNanos)/1e9, p.started)
	l.gauge(descRSS, float64(p.self.RSSBytes))
	l.counter(descIntervals, float64(p.intervals), p.started)
	l.counter(descOverflow, float64(p.overflow), p.started)
	l.gauge(descSeries, float64(len(p.usage)))
	l.gauge(descSeriesLimit, float64(p.opt.MaxSeries))
	l.gauge(descBuild, 1, labelValue(p.opt.Version))
	if p.last == nil {
		return
	}
	l.gauge(descLast, float64(p.last.End.UnixMilli())/1000)
	l.gauge(descUnresolved, float64(p.last.Unresolved))
	l.gauge(descHost, 1, labelValue(p.last.Host.Name), labelValue(p.last.Host.ID), labelValue(p.last.Host.Kernel))
	for i, s := range p.last.Sources {
		if slices.ContainsFunc(p.last.Sources[:i], func(o output.SourceStatus) bool { return o.Source == s.Source }) {
			continue // a series can be there only once
		}
		v := 0.0
		if s.Attached {
			v = 1
		}
		l.gauge(descSource, v, labelValue(string(s.Source)))
	}
}

func (p *Exporter) collectElasticsearch(l *metricList, s *Shipping) {
	for _, v := range []struct {
		outcome string
		n       uint64
	}{{"delivered", s.Delivered}, {"duplicate", s.Duplicates}, {"failure_store", s.SoftFailures}, {"dead_letter", s.DeadLettered}, {"dropped", s.Dropped}} {
		l.counter(descES, float64(v.n), p.started, v.outcome)
	}
	l.gauge(descESPending, float64(s.Pending))
	l.gauge(descESSpool, float64(s.SpoolBytes))
	failing := 0.0
	if s.Failing {
		failing = 1
	}
	l.gauge(descESFailing, failing)
}
