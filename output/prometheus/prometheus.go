// Package prometheus serves intervals as counters on /metrics.
package prometheus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Options are the options of New. The zero value of a field is its default.
type Options struct {
	// MaxSeries is the most label sets that have counters of their own: 2000 by
	// default, some 10 MB of text. I/O of other label sets is counted in a series whose labels are
	// "(other)", so that sums stay right.
	MaxSeries int
	// IdleTime is how long a label set may have no I/O before it is removed: an hour by
	// default. Its counters disappear, like those of a restarted process.
	IdleTime time.Duration
	// WebConfig is the path of a file that says how clients are served: TLS and passwords,
	// in the format of all exporters of Prometheus. It is read again for every
	// connection. Without one, everybody who can connect may read.
	WebConfig string
	// Version is the version label of iotrace_build_info.
	Version string
	// Elasticsearch returns the state of that output at every scrape; nil means
	// that there is none.
	Elasticsearch func() Shipping
	// Logger receives errors of scrapes; nil discards them.
	Logger *slog.Logger
}

// Shipping is the state of an output that ships documents to a server, counted
// in documents since the start.
type Shipping struct {
	Delivered    uint64 // stored by the server
	Duplicates   uint64 // already stored before
	SoftFailures uint64 // stored in the failure store of the stream
	DeadLettered uint64 // rejected by the server and kept in a file
	Dropped      uint64 // lost: no room in memory or on disk
	Pending      uint64 // waiting in memory or on disk, or being sent
	SpoolBytes   int64  // disk space of waiting documents, in bytes
	Failing      bool   // the last attempt failed
}

const (
	DefaultMaxSeries = 2000
	DefaultIdleTime  = time.Hour
	// maxLabelLength is the most bytes of a label value; longer ones are cut.
	maxLabelLength = 256
	// maxInfos bounds the label sets of each info metric.
	maxInfos = 10000
	// latencySchema is the schema of native histograms: 2^3 buckets in every power
	// of two, so that a latency is exact to 9 %.
	latencySchema = 3
)

// Exporter serves the sums of all observed intervals as counters. It is safe for
// concurrent use.
//
// Levels and stacked devices have metrics of their own instead of a label, so that
// the sum of one metric never counts a byte twice.
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
	pruned     time.Time // when idle ones were last removed
	overflow   uint64    // samples counted in "(other)"
	intervals  uint64
	last       *output.Interval // without samples and events
	lost       output.Lost
	self       output.Self
	events     map[string]uint64 // by action
	leaked     map[overlayKey]struct{}
	stuck      map[overlayKey]struct{}
}

// family is the group of metrics that a sample is counted in.
type family uint8

const (
	familyIO      family = iota // requests to devices, servers and daemons
	familyStacked               // the same bytes again, on devices above a leaf device
	familyApp                   // what programs read and wrote
)

var familyNames = [...]struct{ prefix, where string }{
	familyIO:      {"iotrace_io_", "at wire level (requests to devices, NFS, SMB, 9p and Ceph servers and FUSE daemons)"},
	familyStacked: {"iotrace_stacked_io_", "on stacked devices (iotrace_io_ metrics count the same I/O on the device below)"},
	familyApp:     {"iotrace_app_io_", "at app level (what programs read and wrote, cached or not)"},
}

// usageKey holds the labels of the counters, in the order of usageLabels,
// except for the operation.
type usageKey struct {
	family                                          family
	source, owner, project, service, namespace, pod string
	container, unit, device, mount, server          string
}

var usageLabels = []string{"source", "owner", "project", "service", "namespace", "pod", "container", "unit", "device", "mount", "nfs_server"}

func (k *usageKey) labels(more ...string) []string {
	return append([]string{k.source, k.owner, k.project, k.service, k.namespace, k.pod, k.container, k.unit, k.device, k.mount, k.server}, more...)
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
	latency            *histogram // nil if none was measured
}

type containerInfo struct{ id, name, runtime, image, tag, namespace, pod, project, service string }

type mountInfo struct{ mount, fstype, volume, driver, server string }

// New serves /metrics at addr, which is "port", ":port" or "host:port". Without a
// host it listens on 127.0.0.1 only. It returns an error if the address is invalid
// or cannot be listened on, or if an option is negative.
func New(addr string, opt Options) (*Exporter, error) {
	opt.MaxSeries = cmp.Or(opt.MaxSeries, DefaultMaxSeries)
	opt.IdleTime = cmp.Or(opt.IdleTime, DefaultIdleTime)
	if opt.MaxSeries < 1 || opt.IdleTime < 0 {
		return nil, errors.New("the series limit and the idle time of the Prometheus output must not be negative")
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	addr, err := listenAddress(addr)
	if err != nil {
		return nil, err
	}
	if err := web.Validate(opt.WebConfig); err != nil {
		return nil, fmt.Errorf("reading the web configuration %q: %w", opt.WebConfig, err)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serving metrics: %w", err)
	}
	p := &Exporter{
		opt: opt, listener: listener, done: make(chan struct{}), registry: prometheus.NewRegistry(), started: time.Now(),
		usage: make(map[usageKey]*seriesUsage), containers: make(map[containerInfo]time.Time), mounts: make(map[mountInfo]time.Time),
		events: make(map[string]uint64),
		leaked: make(map[overlayKey]struct{}), stuck: make(map[overlayKey]struct{}),
	}
	p.registry.MustRegister(p, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	errorLog := slog.NewLogLogger(opt.Logger.Handler(), slog.LevelError)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", newScrapes().handler(promhttp.InstrumentMetricHandler(p.registry, promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{
		ErrorLog:          errorLog,
		EnableOpenMetrics: true,
	}))))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintln(w, `<!DOCTYPE html><title>iotrace-bpf</title><p>iotrace-bpf: <a href="metrics">metrics</a>`)
	})
	clients := &conns{open: make(map[net.Conn]*place)}
	p.server = &http.Server{
		Handler:           sameHost(listener.Addr(), mux),
		ConnState:         clients.state,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      scrapeTurn + scrapeTime,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          errorLog,
	}
	go func() {
		defer close(p.done)
		served := &web.FlagConfig{WebConfigFile: &opt.WebConfig}
		if err := web.Serve(listener, p.server, served, slog.New(noInfo{opt.Logger.Handler()})); !errors.Is(err, http.ErrServerClosed) {
			opt.Logger.Error("metrics are no longer served", "error", err)
		}
	}()
	return p, nil
}

// noInfo drops messages that are no warnings.
type noInfo struct{ slog.Handler }

func (h noInfo) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

// listenAddress adds the loopback address if no host is given. Metrics contain
// names of customers, so that they are not offered to the network by default.
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

// Close stops serving. Running scrapes may finish until ctx ends; if they do not,
// Close ends them and returns an error.
func (p *Exporter) Close(ctx context.Context) error {
	err := p.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, p.server.Close())
	}
	<-p.done
	return err
}

// maxLeaked bounds the sets of leaked and of stuck devices.
const maxLeaked = 4096

// overlayKey identifies a device: an ifindex is unique in its network namespace.
type overlayKey struct {
	netNS   uint64
	ifindex uint32
}

// noteLeak updates the sets of leaked and of stuck devices: those that were found and have not
// been deleted, moved, set up or created again since.
func (p *Exporter) noteLeak(ev *output.Event) {
	key := overlayKey{ev.VXLAN.NetNS, ev.VXLAN.Ifindex}
	switch ev.Action {
	case "leaked":
		if len(p.leaked) < maxLeaked {
			p.leaked[key] = struct{}{}
		}
	case "stuck":
		if len(p.stuck) < maxLeaked {
			p.stuck[key] = struct{}{}
		}
	case "deleted", "cleaned", "moved", "up", "created":
		delete(p.leaked, key)
		delete(p.stuck, key)
	}
}

// Observe adds an interval to the counters. The caller may reuse iv afterwards.
func (p *Exporter) Observe(iv *output.Interval) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.intervals++
	if now.Sub(p.pruned) > p.opt.IdleTime/8 {
		p.prune(now)
	}
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
	p.self.MapBytes = iv.Self.MapBytes
	p.last = &output.Interval{Start: iv.Start, End: iv.End, Host: iv.Host, Sources: slices.Clone(iv.Sources), Unresolved: iv.Unresolved}
}

// keyOf returns the labels of a sample. Paths, processes and other values without
// a bound on their number are not labels: such owners share a series by kind.
func keyOf(s *output.Sample) usageKey {
	k := usageKey{
		source: labelValue(string(s.Source)), owner: labelValue(string(s.Owner)), project: labelValue(output.ProjectText(s)), service: labelValue(s.Service),
		namespace: labelValue(s.Pod.Namespace), pod: labelValue(s.Pod.Name), container: labelValue(output.ContainerName(s)), unit: labelValue(s.Unit),
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
		k.device = labelValue(output.DeviceName(&s.Device))
	} else {
		k.mount, k.server = labelValue(mountLabel(s)), labelValue(output.ServerText(&s.Mount))
	}
	return k
}

// mountLabel names storage that is not a local disk, such as the export of a server.
func mountLabel(s *output.Sample) string {
	if s.Mount.Source != "" {
		return s.Mount.Source
	}
	return output.DeviceName(&s.Device)
}

// labelValue returns s as valid UTF-8 of bounded length. The exposition formats
// escape everything else.
func labelValue(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > maxLabelLength {
		s = strings.ToValidUTF8(s[:maxLabelLength], "") + "..."
	}
	return s
}

// otherKey returns the labels for samples beyond MaxSeries.
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
			u = p.usage[k] // one for each source and family, beyond the limit
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

// makeRoom removes idle label sets, and tells whether there were any.
func (p *Exporter) makeRoom(now time.Time) bool {
	before := len(p.usage)
	p.prune(now)
	return len(p.usage) < before
}

// prune removes everything that had no I/O for longer than IdleTime.
func (p *Exporter) prune(now time.Time) {
	p.pruned = now
	maps.DeleteFunc(p.usage, func(_ usageKey, u *seriesUsage) bool { return now.Sub(u.seen) > p.opt.IdleTime })
	idle := func(seen time.Time) bool { return now.Sub(seen) > p.opt.IdleTime }
	maps.DeleteFunc(p.containers, func(_ containerInfo, seen time.Time) bool { return idle(seen) })
	maps.DeleteFunc(p.mounts, func(_ mountInfo, seen time.Time) bool { return idle(seen) })
}

func (u *seriesUsage) add(s *output.Sample) {
	for i, op := range countedOps {
		t, a := &u.ops[i], s.Amount(op)
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
	u.basis.Add(&s.Basis)
}

// noteInfo keeps the properties of a container or mount, which queries join to the
// counters.
func (p *Exporter) noteInfo(s *output.Sample, now time.Time) {
	if c := &s.Container; c.ID != "" && s.Owner == output.OwnerContainer {
		note(p.containers, containerInfo{labelValue(c.ID), labelValue(output.ContainerName(s)), labelValue(c.Runtime), labelValue(c.Image), labelValue(c.ImageTag),
			labelValue(s.Pod.Namespace), labelValue(s.Pod.Name), labelValue(output.ProjectText(s)), labelValue(s.Service)}, now, p.opt.IdleTime)
	}
	if m := &s.Mount; s.Source != output.SourceBlock {
		server, _ := output.SMBShare(m)
		cluster, _, _ := output.CephMount(m)
		note(p.mounts, mountInfo{labelValue(mountLabel(s)), labelValue(m.FSType), labelValue(m.Volume), labelValue(m.Driver), labelValue(cmp.Or(m.NFSServer, server, cluster))}, now, p.opt.IdleTime)
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

// histogram accumulates latencies in both kinds of buckets: native ones for the
// protobuf format, and a few fixed ones for the text formats.
type histogram struct {
	native  map[int]uint64
	classic [len(classicBounds)]uint64 // not cumulative
	zero    uint64                     // latencies of 0
	count   uint64
	sum     float64 // seconds
}

// classicBounds are upper bounds in seconds.
var classicBounds = [...]float64{50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10}

func newHistogram() *histogram { return &histogram{native: make(map[int]uint64)} }

// add counts every latency at the upper bound of its bucket, because more is not
// known: quantiles are too long by one bucket at most.
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

// nativeBucket returns the index i of the native bucket (base^(i-1), base^i] that
// contains v, in seconds; base is 2^(2^-schema), as the data model of Prometheus
// defines it.
func nativeBucket(v float64) int {
	const perDouble = 1 << latencySchema
	frac, exp := math.Frexp(v) // v = frac * 2^exp, frac in [0.5, 1)
	i := (exp-1)*perDouble + int(math.Ceil(math.Log2(frac*2)*perDouble))
	// Next to a boundary Log2 may be off by the last bit.
	if math.Exp2(float64(i-1)/perDouble) >= v {
		i--
	} else if math.Exp2(float64(i)/perDouble) < v {
		i++
	}
	return i
}

// metric returns h as a metric with both kinds of buckets.
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

// nativeZeroThreshold is the default of the library: no latency is that short.
var nativeZeroThreshold = prometheus.DefNativeHistogramZeroThreshold

// histogramMetric adds fixed buckets to a native histogram, because the constant
// histograms of the library have only one kind of buckets.
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

// newDesc describes a metric with variable labels.
func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// with appends to a copy of usageLabels.
func with(more ...string) []string { return append(slices.Clone(usageLabels), more...) }

// The descriptions of all metrics. A collector must use the same ones at every
// scrape.
var (
	familyDesc = func() (d [len(familyNames)]familyDescs) {
		for i, f := range familyNames {
			d[i] = familyDescs{
				bytes:   newDesc(f.prefix+"bytes_total", "Bytes "+f.where+".", with("operation")...),
				ops:     newDesc(f.prefix+"operations_total", "Operations "+f.where+".", with("operation")...),
				errors:  newDesc(f.prefix+"errors_total", "Failed operations "+f.where+".", with("operation")...),
				meta:    newDesc(f.prefix+"metadata_bytes_total", "Bytes of file-system metadata and journals "+f.where+". "+f.prefix+"bytes_total includes them.", with("operation")...),
				basis:   newDesc(f.prefix+"basis_bytes_total", "Bytes by how their owner was found, "+f.where+".", "source", "basis"),
				latency: newDesc(f.prefix+"latency_seconds", "Time from the start of a request to its completion, "+f.where+".", with("operation")...),
			}
		}
		return d
	}()
	descContainer   = newDesc("iotrace_container_info", "Properties of a container with I/O, as labels.", "container_id", "container", "runtime", "image", "image_tag", "namespace", "pod", "project", "service")
	descMount       = newDesc("iotrace_mount_info", "Properties of a mount with I/O, as labels.", "mount", "fstype", "volume", "driver", "server")
	descSource      = newDesc("iotrace_source_attached", "Whether the source is attached (1) or absent on this host (0).", "source")
	descLost        = newDesc("iotrace_lost_total", "What could not be recorded, by kind. Totals are still exact, except for what=\"misses\" (BPF program runs that the kernel skipped).", "what")
	descLostBytes   = newDesc("iotrace_lost_bytes_total", "Bytes that could not be counted: all totals lack them.")
	descUnresolved  = newDesc("iotrace_unresolved_cgroups", "Cgroups with I/O in the last interval whose name is not known.")
	descBPF         = newDesc("iotrace_self_bpf_seconds_total", "Time spent in the BPF programs of the tracer; 0 unless the sysctl kernel.bpf_stats_enabled is 1.")
	descCPU         = newDesc("iotrace_self_cpu_seconds_total", "CPU time of the tracer.")
	descRSS         = newDesc("iotrace_self_resident_bytes", "Resident memory of the tracer.")
	descMaps        = newDesc("iotrace_self_map_bytes", "Kernel memory of the BPF maps of the tracer.")
	descIntervals   = newDesc("iotrace_intervals_total", "Intervals counted.")
	descLast        = newDesc("iotrace_last_interval_timestamp_seconds", "End of the last counted interval, as Unix time.")
	descSeries      = newDesc("iotrace_series", "Label sets with counters of their own.")
	descSeriesLimit = newDesc("iotrace_series_limit", "Most label sets with counters of their own; I/O of others counts as (other).")
	descOverflow    = newDesc("iotrace_series_overflow_total", "Samples counted as (other) because of iotrace_series_limit.")
	descVXLAN       = newDesc("iotrace_vxlan_events_total", "Events of overlay (vxlan) devices.", "action")
	descStuck       = newDesc("iotrace_vxlan_stuck_devices", "Overlay (vxlan) devices that stay DOWN in their network's namespace: its containers do not reach other hosts.")
	descLeaked      = newDesc("iotrace_vxlan_leaked_devices", "Overlay (vxlan) devices that were left behind and keep containers from starting.")
	descBuild       = newDesc("iotrace_build_info", "Version of the tracer.", "version")
	descHost        = newDesc("iotrace_host_info", "Properties of the traced machine, as labels.", "host", "host_id", "kernel")
	descES          = newDesc("iotrace_elasticsearch_documents_total", "Documents for Elasticsearch by outcome.", "outcome")
	descESPending   = newDesc("iotrace_elasticsearch_pending_documents", "Documents that are not yet delivered to Elasticsearch.")
	descESSpool     = newDesc("iotrace_elasticsearch_spool_bytes", "Disk space of documents that are not yet delivered to Elasticsearch.")
	descESFailing   = newDesc("iotrace_elasticsearch_failing", "Whether the last attempt to deliver to Elasticsearch failed (1) or not (0).")
)

// Describe implements prometheus.Collector.
func (p *Exporter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range familyDesc {
		for _, m := range []*prometheus.Desc{d.bytes, d.ops, d.errors, d.meta, d.basis, d.latency} {
			ch <- m
		}
	}
	for _, d := range []*prometheus.Desc{descContainer, descMount, descSource, descLost, descLostBytes, descUnresolved, descBPF, descCPU, descRSS, descMaps, descIntervals, descLast,
		descSeries, descSeriesLimit, descOverflow, descVXLAN, descLeaked, descStuck, descBuild, descHost, descES, descESPending, descESSpool, descESFailing} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *Exporter) Collect(ch chan<- prometheus.Metric) {
	// Metrics are created under the lock and sent without it, so that a slow
	// scrape does not delay Observe.
	for _, m := range p.metrics() {
		ch <- m
	}
}

// metricList collects metrics. A metric that cannot be created becomes an error of
// the scrape.
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
		b.Add(&u.basis)
		bases[basisKey{k.family, k.source}] = b
	}
	for k, b := range bases {
		for _, v := range []struct {
			name  string
			bytes uint64
		}{{"dirtier", b.Dirtier}, {"page", b.Page}, {"journal", b.Journal}, {"bio", b.Bio}, {"task", b.Task}, {"none", b.None}} {
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
		{"walks", p.lost.Walks}, {"notes", p.lost.Notes}, {"misses", p.lost.Misses}, {"exports", p.lost.Exports}} {
		l.counter(descLost, float64(v.n), p.started, v.what)
	}
	l.counter(descLostBytes, float64(p.lost.Bytes), p.started)
	l.gauge(descLeaked, float64(len(p.leaked)))
	l.gauge(descStuck, float64(len(p.stuck)))
	for action, n := range p.events {
		l.counter(descVXLAN, float64(n), p.started, action)
	}
	l.counter(descBPF, float64(p.self.BPFNanos)/1e9, p.started)
	l.counter(descCPU, float64(p.self.CPUNanos)/1e9, p.started)
	l.gauge(descRSS, float64(p.self.RSSBytes))
	l.gauge(descMaps, float64(p.self.MapBytes))
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
			continue // a series may occur only once
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
