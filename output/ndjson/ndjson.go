// Package ndjson turns intervals into documents with the field names of the Elastic
// Common Schema (ECS), one JSON object a line.
package ndjson

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/segmentio/encoding/json"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// ecsVersion is the version of the Elastic Common Schema whose names are used.
const ecsVersion = "9.4.0"

// module is the event.module of every document.
const module = "iotrace"

// Options says how documents are made.
type Options struct {
	// Namespace is the namespace of the data stream, "default" if empty.
	Namespace string
	// ExportLabels are globs of container labels that go into documents, besides
	// those that name project, service and pod. All others stay on the host, because
	// labels hold secrets and file names.
	ExportLabels []string
	// ExportFiles puts the paths of files into documents, which may be secret.
	ExportFiles bool
	// Events makes a document of every request instead of totals (--events).
	Events bool
}

// Document is one JSON object for one data stream.
type Document struct {
	Type      string // of the data stream: metrics or logs
	Dataset   string
	Namespace string
	Time      time.Time
	Line      []byte // the object and a line feed; the receiver may keep it
	// ID is the same for two documents of which a sum must contain one: of one host, time,
	// grain and series. It is empty for events.
	ID string
}

// Writer writes documents as lines of JSON. It is not safe for concurrent use.
type Writer struct {
	w   io.Writer
	opt Options
}

// New returns a Writer that writes to w, each line in one call of w.Write.
func New(w io.Writer, opt Options) *Writer {
	return &Writer{w: w, opt: opt}
}

// Write writes the documents of an interval. The error is that of the underlying
// writer: errors.Is finds syscall.EPIPE in it when the reader of a pipe has closed it.
func (n *Writer) Write(r *output.Summary, iv *output.Interval) error {
	for d := range documents(r, iv, n.opt, true) {
		if _, err := n.w.Write(d.Line); err != nil {
			return fmt.Errorf("writing %s document: %w", d.Dataset, err)
		}
	}
	return nil
}

// Close does nothing: Write keeps no line back.
func (n *Writer) Close() error { return nil }

// Documents returns the documents of an interval: one of dataset iotrace.io for every
// row, source and level, one of iotrace.status, and one of iotrace.vxlan for every
// event of an overlay device. With opt.Events, one of iotrace.event for every request
// takes the place of those of iotrace.io.
//
// Rows beyond --top are there as "(rest)", so documents add up to the total. Rows that
// a filter excludes are not there. Rows of stacked devices have iotrace.device.stacked
// and must not be added to the others.
func Documents(r *output.Summary, iv *output.Interval, opt Options) iter.Seq[Document] {
	return documents(r, iv, opt, false)
}

// documents returns the documents of an interval. With reuse, the next document
// overwrites Line.
func documents(r *output.Summary, iv *output.Interval, opt Options, reuse bool) iter.Seq[Document] {
	return func(yield func(Document) bool) {
		e := newEncoder(r, iv, opt)
		var line []byte
		emit := func(kind, dataset string, t time.Time) bool {
			if !reuse {
				line = make([]byte, 0, cap(line))
			}
			line = e.line(line[:0])
			d := Document{Type: kind, Dataset: dataset, Namespace: e.doc.DataStream.Namespace, Time: t, Line: line}
			if !reuse {
				d.ID = e.id()
			}
			return yield(d)
		}
		if !opt.Events {
			for row, stacked := range documentRows(r) {
				for i := range row.Sources {
					e.io(row, &row.Sources[i], stacked)
					if !emit("metrics", output.DatasetIO, iv.End) {
						return
					}
				}
			}
		}
		e.status()
		if !emit("logs", output.DatasetStatus, iv.End) {
			return
		}
		for i := range iv.Events {
			ev := &iv.Events[i]
			switch {
			case ev.VXLAN != nil:
				e.vxlan(ev)
			case ev.IO != nil && opt.Events && r.Has(ev.IO):
				e.event(ev)
			default:
				continue
			}
			if !emit("logs", datasetOf(ev), ev.Time) {
				return
			}
		}
	}
}

// datasetOf returns the dataset that fits the content of an event.
func datasetOf(e *output.Event) string {
	if e.VXLAN != nil {
		return output.DatasetVXLAN
	}
	return output.DatasetEvent
}

// documentRows returns the rows that become documents. The second value says that a
// row is of stacked devices.
func documentRows(r *output.Summary) iter.Seq2[*output.Row, bool] {
	return func(yield func(*output.Row, bool) bool) {
		for i := range r.Rows {
			if !yield(&r.Rows[i], false) {
				return
			}
		}
		if r.Rest != nil && !yield(r.Rest, false) {
			return
		}
		for i := range r.Stacked {
			if !yield(&r.Stacked[i], true) {
				return
			}
		}
	}
}

// encoder makes documents, one at a time, in the same memory.
type encoder struct {
	doc document
	r   *output.Summary
	iv  *output.Interval

	end          string
	start        string
	duration     int64
	grain        string
	exportLabels []string
	exportFiles  bool
	host         *docHost
	byProcess    bool

	// The pointers of doc point to these.
	container    docContainer
	image        docImage
	orchestrator docOrchestrator
	resource     docResource
	process      docProcess
	group        docGroup
	project      docProject
	service      docNamed
	unit         docNamed
	cgroup       docCgroup
	device       docDevice
	mount        docMount
	nfs          docNFS
	client       docClient
	nfsClient    docNFSClient
	fuse         docFUSE
	smb          docSMB
	p9           docP9
	ceph         docCeph
	daemon       docPID
	file         docFile
	fileOf       docFileOf
	amounts      [3]docAmount
	counts       [2]docCount
	latencies    [5]docLatency
	basis        docBasis
	request      docRequest
	took         int64
	exported     map[string]map[string]string // labels by container id; read-only
}

func newEncoder(r *output.Summary, iv *output.Interval, opt Options) *encoder {
	e := &encoder{r: r, iv: iv, exportLabels: opt.ExportLabels, exportFiles: opt.ExportFiles}
	e.start, e.end = timestamp(iv.Start), timestamp(iv.End)
	e.duration = max(int64(iv.End.Sub(iv.Start)), 0)
	var by []string
	for _, k := range r.By {
		by = append(by, string(k))
	}
	e.grain = strings.Join(by, ",")
	e.byProcess = slices.Contains(r.By, output.KeyProcess)
	e.host = hostOf(&iv.Host)
	e.doc.DataStream.Namespace = opt.Namespace
	if opt.Namespace == "" {
		e.doc.DataStream.Namespace = "default"
	}
	return e
}

// hostOf returns the fields of a host, nil if it is zero.
func hostOf(h *output.Host) *docHost {
	if *h == (output.Host{}) {
		return nil
	}
	d := &docHost{Name: h.Name, ID: h.ID}
	if h.Kernel != "" {
		d.OS = &docOS{Kernel: h.Kernel}
	}
	return d
}

// timestamp returns t in UTC with all nine digits of nanoseconds: so lines sort by
// time.
func timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// long returns n, at most the largest value of an Elasticsearch field of type long.
func long(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// idText returns an id of 64 bits as text, because JSON readers round large numbers.
// 0 is "".
func idText(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// id returns Document.ID.
func (e *encoder) id() string {
	f := &e.doc.Iotrace
	parts := []string{e.doc.DataStream.Dataset, e.doc.Timestamp, e.grain, f.Source, f.Level, f.Op}
	if h := e.doc.Host; h != nil {
		parts = append(parts, h.Name, h.ID)
	}
	switch {
	case f.Group != nil:
		parts = append(parts, f.Group.ID, strconv.FormatBool(f.Device.Stacked))
	case e.doc.DataStream.Dataset != output.DatasetStatus:
		return ""
	}
	var all []byte
	for _, p := range parts {
		all = append(binary.AppendUvarint(all, uint64(len(p))), p...)
	}
	sum := sha256.Sum256(all)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// line appends the document and a line feed to buf. Invalid UTF-8 becomes U+FFFD.
// github.com/segmentio/encoding uses the struct tags of encoding/json and takes a
// third of its time (BenchmarkNDJSON).
func (e *encoder) line(buf []byte) []byte {
	buf, err := json.Append(buf, &e.doc, json.SortMapKeys)
	if err != nil {
		// A document holds only strings, integers and booleans.
		panic("encoding a document: " + err.Error())
	}
	return append(escapeInvisible(buf), '\n')
}

// escapeInvisible escapes characters that JSON allows in strings, but that a terminal
// acts upon or a reader does not see: DEL, C1 controls, bidi overrides and the like.
// Outside of strings a line is ASCII and stays as it is.
func escapeInvisible(line []byte) []byte {
	i := slices.IndexFunc(line, func(c byte) bool { return c >= 0x7f })
	if i < 0 {
		return line
	}
	rest := string(line[i:])
	line = line[:i]
	for _, r := range rest {
		if r < 0x7f || text.Visible(r) {
			line = utf8.AppendRune(line, r)
			continue
		}
		for _, u := range utf16.AppendRune(nil, r) {
			line = fmt.Appendf(line, `\u%04x`, u)
		}
	}
	return line
}

var (
	categoryHost    = []string{"host"}
	categoryNetwork = []string{"network"}
	typeInfo        = []string{"info"}
	typeAccess      = []string{"access"}
	typeStart       = []string{"start"}
	typeEnd         = []string{"end"}
)

// reset begins a document.
func (e *encoder) reset(stream, dataset, kind string, category, typ []string) {
	namespace := e.doc.DataStream.Namespace
	e.doc = document{Timestamp: e.end, ECS: docECS{Version: ecsVersion}, Host: e.host}
	e.doc.DataStream.Type, e.doc.DataStream.Dataset, e.doc.DataStream.Namespace = stream, dataset, namespace
	e.doc.Event = docEvent{Kind: kind, Category: category, Type: typ, Module: module, Dataset: dataset}
}

// interval sets the time that a document covers.
func (e *encoder) interval() {
	e.doc.Event.Start, e.doc.Event.End, e.doc.Event.Duration = e.start, e.end, &e.duration
}

func (e *encoder) io(row *output.Row, su *output.SourceUsage, stacked bool) {
	e.reset("metrics", output.DatasetIO, "metric", categoryHost, typeInfo)
	e.interval()
	f := &e.doc.Iotrace
	f.Source, f.Level = string(su.Source), string(su.Level)
	f.Grain = e.grain
	e.group = docGroup{Name: e.group.Name[:0], ID: row.ID()}
	if row.Label != "" {
		e.group.Name = append(e.group.Name, row.Label)
	}
	for _, k := range row.Keys {
		e.group.Name = append(e.group.Name, k.Text)
		if k.Key == output.KeyOp {
			f.Op = k.Text
		}
	}
	f.Group = &e.group
	identity := su.Identity()
	if !e.byProcess {
		// One process may be the only one of its container with I/O by chance.
		identity.Process = output.Process{}
	}
	e.identity(&identity)
	if f.Device == nil {
		e.device = docDevice{}
		f.Device = &e.device
	}
	f.Device.Stacked = stacked // always there: a filter for false finds what may be added up
	e.keyLabels(row)

	u := &su.Usage
	f.Read = e.amount(0, &u.Read, u.MetaReadBytes)
	f.Write = e.amount(1, &u.Write, u.MetaWriteBytes)
	if u.Discard.Ops > 0 {
		f.Discard = e.amount(2, &u.Discard, 0)
	}
	if u.Flush.Ops > 0 {
		f.Flush = e.count(0, &u.Flush)
	}
	if u.Metadata.Ops > 0 {
		f.Metadata = e.count(1, &u.Metadata)
	}
	f.Retransmits = long(u.Retransmits)
	if !u.BasisUnknown {
		b := &u.Basis
		e.basis = docBasis{long(b.Dirtier), long(b.Page), long(b.Journal), long(b.Bio), long(b.Task), long(b.None)}
		f.Basis = &e.basis
	}
}

func (e *encoder) amount(i int, a *output.Amount, meta uint64) *docAmount {
	e.amounts[i] = docAmount{Bytes: long(a.Bytes), Ops: long(a.Ops), Errors: long(a.Errors),
		MetaBytes: long(meta), Latency: e.latency(i, &a.Latency)}
	return &e.amounts[i]
}

func (e *encoder) count(i int, a *output.Amount) *docCount {
	e.counts[i] = docCount{Ops: long(a.Ops), Errors: long(a.Errors), Latency: e.latency(len(e.amounts)+i, &a.Latency)}
	return &e.counts[i]
}

func (e *encoder) latency(i int, l *output.Latency) *docLatency {
	if len(l.Buckets) == 0 {
		return nil
	}
	d := &e.latencies[i]
	h := docHistogram{Values: d.Histogram.Values[:0], Counts: d.Histogram.Counts[:0]}
	for _, b := range l.Buckets {
		h.Values, h.Counts = append(h.Values, long(b.UpTo)), append(h.Counts, long(b.Count))
	}
	*d = docLatency{P50: long(l.Quantile(0.5)), P95: long(l.Quantile(0.95)), P99: long(l.Quantile(0.99)), Max: long(l.Max), Histogram: h}
	return d
}

// identity sets the fields that say whose I/O it is and on which device or mount.
func (e *encoder) identity(id *output.Identity) {
	d, f := &e.doc, &e.doc.Iotrace
	if h := hostOf(&id.Host); h != nil {
		d.Host = h
	}
	f.Owner, f.NamedBy = string(id.Owner), id.NamedBy
	if id.Project != "" {
		e.project = docProject{id.Project, id.ProjectRule, id.ProjectNamedBy}
		f.Project = &e.project
	}
	if id.Service != "" {
		e.service = docNamed{id.Service}
		f.Service = &e.service
	}
	if id.Unit != "" {
		e.unit = docNamed{id.Unit}
		f.Unit = &e.unit
	}
	if id.Cgroup != (output.Cgroup{}) {
		e.cgroup = docCgroup{idText(id.Cgroup.ID), id.Cgroup.Path, id.Cgroup.Gone}
		f.Cgroup = &e.cgroup
	}
	if id.Device != (output.Device{}) {
		e.device = docDevice{id.Device.ID, id.Device.Name, id.Device.Alias, id.Device.Stacked}
		f.Device = &e.device
	}
	e.mountOf(&id.Mount)
	e.pathOf(&id.File)
	e.clientOf(&id.NFSClient)
	e.containerOf(&id.Container)
	if p := &id.Pod; *p != (output.Pod{}) {
		e.orchestrator = docOrchestrator{Type: "kubernetes", Namespace: p.Namespace}
		if p.Name != "" {
			e.resource = docResource{Type: "pod", Name: p.Name, ID: p.UID}
			e.orchestrator.Resource = &e.resource
		}
		d.Orchestrator = &e.orchestrator
	}
	e.processOf(&id.Process)
}

func (e *encoder) processOf(p *output.Process) {
	if *p == (output.Process{}) {
		return
	}
	e.process = docProcess{int64(p.PID), p.Name}
	e.doc.Process = &e.process
}

func (e *encoder) mountOf(m *output.Mount) {
	f := &e.doc.Iotrace
	mount := docMount{m.Source, m.Point, m.FSType, m.Volume, m.Driver}
	if mount != (docMount{}) {
		e.mount = mount
		f.Mount = &e.mount
	}
	nfs := docNFS{m.NFSServer, m.NFSExport, m.NFSVersion, m.NFSAddress, int64(m.NFSPort), nil}
	if nfs != (docNFS{}) {
		e.nfs = nfs
		f.NFS = &e.nfs
	}
	if m.FUSESubtype != "" || m.FUSEDaemonPID != 0 {
		e.fuse = docFUSE{Subtype: m.FUSESubtype}
		if m.FUSEDaemonPID != 0 {
			e.daemon = docPID{int64(m.FUSEDaemonPID)}
			e.fuse.Daemon = &e.daemon
		}
		f.FUSE = &e.fuse
	}
	if server, share := output.SMBShare(m); server != "" {
		e.smb = docSMB{server, share}
		f.SMB = &e.smb
	}
	if m.Transport != "" {
		e.p9 = docP9{output.P9Tag(m), m.Transport}
		f.P9 = &e.p9
	}
	if cluster, filesystem, path := output.CephMount(m); cluster != "" {
		e.ceph = docCeph{cluster, filesystem, path}
		f.Ceph = &e.ceph
	}
}

// pathOf sets the fields of a file, which leave the host only if that was asked for.
func (e *encoder) pathOf(f *output.File) {
	if !e.exportFiles || f.Kind == output.FileNotCounted {
		return
	}
	e.fileOf = docFileOf{string(f.Kind), f.Inside, int64(f.Links), f.Removed, f.Partial, f.LogOf}
	e.doc.Iotrace.File = &e.fileOf
	if f.Kind == output.FileRegular {
		e.file = docFile{f.Path, idText(f.Inode)}
		e.doc.File = &e.file
	}
}

func (e *encoder) clientOf(c *output.NFSClient) {
	if c.Address == "" {
		return
	}
	f := &e.doc.Iotrace
	if f.NFS == nil {
		e.nfs = docNFS{}
		f.NFS = &e.nfs
	}
	e.nfsClient = docNFSClient{c.Address, c.Name}
	e.nfs.Client = &e.nfsClient
	e.client = docClient{c.Address, c.Address}
	e.doc.Client = &e.client
}

func (e *encoder) containerOf(c *output.Container) {
	if c.ID == "" && c.Name == "" && c.Image == "" {
		return
	}
	e.container = docContainer{ID: c.ID, Name: c.Name, Runtime: c.Runtime, Labels: e.labelsOf(c)}
	if c.Image != "" || c.ImageTag != "" {
		e.image = docImage{Name: c.Image, Tag: e.image.Tag[:0]}
		if c.ImageTag != "" {
			e.image.Tag = append(e.image.Tag, c.ImageTag)
		}
		if c.Digest != "" {
			e.image.Hash = &docHash{All: []string{c.Digest}}
		}
		e.container.Image = &e.image
	}
	e.doc.Container = &e.container
}

// exportedLabels are the labels that name project, service and pod. None of them holds
// a secret.
var exportedLabels = map[string]bool{
	"com.docker.compose.project":               true,
	"com.docker.compose.service":               true,
	"com.docker.compose.container-number":      true,
	"com.docker.compose.oneoff":                true,
	"com.docker.compose.version":               true,
	"com.docker.stack.namespace":               true,
	"com.docker.swarm.service.name":            true,
	"com.docker.swarm.service.id":              true,
	"com.docker.swarm.task.name":               true,
	"com.docker.swarm.task.id":                 true,
	"com.docker.swarm.node.id":                 true,
	"io.podman.compose.project":                true,
	"io.podman.compose.service":                true,
	"io.kubernetes.pod.name":                   true,
	"io.kubernetes.pod.namespace":              true,
	"io.kubernetes.pod.uid":                    true,
	"io.kubernetes.container.name":             true,
	"com.hashicorp.nomad.job_name":             true,
	"com.hashicorp.nomad.task_group_name":      true,
	"com.hashicorp.nomad.task_name":            true,
	"com.hashicorp.nomad.namespace":            true,
	"com.amazonaws.ecs.cluster":                true,
	"com.amazonaws.ecs.task-definition-family": true,
	"com.amazonaws.ecs.container-name":         true,
	"io.rancher.stack.name":                    true,
	"io.rancher.stack_service.name":            true,
	"coolify.projectName":                      true,
	"coolify.resourceName":                     true,
	"coolify.serviceName":                      true,
	"com.dokku.app-name":                       true,
	"com.dokku.process-type":                   true,
	"com.gitlab.gitlab-runner.project.id":      true,
	"com.gitlab.gitlab-runner.job.id":          true,
	"iotrace.project":                          true,
}

// labelsOf returns the exported labels of a container. It makes them once for each
// container, because they do not change within an interval.
func (e *encoder) labelsOf(c *output.Container) map[string]string {
	if len(c.Labels) == 0 {
		return nil
	}
	if c.ID == "" {
		return e.labels(c.Labels)
	}
	labels, ok := e.exported[c.ID]
	if !ok {
		if e.exported == nil {
			e.exported = make(map[string]map[string]string)
		}
		labels = e.labels(c.Labels)
		e.exported[c.ID] = labels
	}
	return labels
}

// labels returns the labels that may leave the host, with underscores for the dots in
// their keys. Elasticsearch takes dots for objects: com.docker.compose.project would be
// a value and, because of com.docker.compose.project.config_files, an object as well.
func (e *encoder) labels(all map[string]string) map[string]string {
	var out map[string]string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if k == "" || !exportedLabels[k] && !slices.ContainsFunc(e.exportLabels, func(p string) bool { return output.MatchGlob(p, k) }) {
			continue
		}
		if out == nil {
			out = make(map[string]string)
		}
		putLabel(out, k, all[k])
	}
	return out
}

// putLabel sets a label. The first of two keys that differ only in dots wins.
func putLabel(m map[string]string, key, value string) {
	key = output.LabelField(key)
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// keyLabels sets the labels that rows are grouped by, whether exported or not.
func (e *encoder) keyLabels(row *output.Row) {
	for _, k := range row.Keys {
		name, ok := k.Key.Label()
		if !ok || !strings.HasPrefix(k.ID, "label\x00") {
			continue
		}
		if e.doc.Container == nil {
			e.container = docContainer{}
			e.doc.Container = &e.container
		}
		if e.container.Labels = maps.Clone(e.container.Labels); e.container.Labels == nil {
			e.container.Labels = make(map[string]string)
		}
		putLabel(e.container.Labels, name, strings.TrimPrefix(k.ID, "label\x00"))
	}
}

func (e *encoder) status() {
	e.reset("logs", output.DatasetStatus, "state", categoryHost, typeInfo)
	e.interval()
	f, iv := &e.doc.Iotrace, e.iv
	f.Sources = make(map[string]docSource, len(iv.Sources))
	for _, s := range iv.Sources {
		f.Sources[string(s.Source)] = docSource{s.Attached, s.Hook, s.Reason, s.Limitations}
	}
	t := &e.r.Total.Total
	if e.r.Level == output.LevelApp {
		t = &e.r.Total.App
	}
	f.Level, f.Grain = string(e.r.Level), e.grain
	f.Total = &docTotal{
		Read:  docBytesOps{long(t.Read.Bytes), long(t.Read.Ops)},
		Write: docBytesOps{long(t.Write.Bytes), long(t.Write.Ops)},
	}
	l := &iv.Lost
	f.Lost = &docLost{Bytes: long(l.Bytes), Records: long(l.Records), Notices: long(l.Notices), Latencies: long(l.Latencies),
		Groups: long(l.Groups), Walks: long(l.Walks), Notes: long(l.Notes), Misses: long(l.Misses), Exports: long(l.Exports)}
	f.Unattributed = &docBytes{long(iv.Unattributed())}
	f.Unresolved = &docUnresolved{long(iv.Unresolved)}
	self := &iv.Self
	f.Self = &docSelf{long(self.BPFNanos), long(self.CPUNanos), long(self.RSSBytes), long(self.MapBytes), long(self.ReadBytes), long(self.WriteBytes)}
}

func (e *encoder) event(ev *output.Event) {
	io := ev.IO
	e.reset("logs", output.DatasetEvent, "event", categoryHost, typeAccess)
	e.doc.Timestamp = timestamp(ev.Time)
	e.doc.Event.Action = io.Op
	e.doc.Event.Outcome = outcome(io.Error)
	if io.Latency > 0 {
		e.took = long(io.Latency)
		e.doc.Event.Duration = &e.took
	}
	s := &io.Sample
	f := &e.doc.Iotrace
	f.Source, f.Level, f.Op = string(s.Source), string(s.Level), io.Op
	if f.Level == "" {
		f.Level = string(output.LevelWire)
	}
	id := s.Identity()
	e.identity(&id)
	e.request = docRequest{Bytes: long(io.Amount().Bytes), Offset: long(io.Offset), Latency: long(io.Latency), Basis: io.Basis}
	f.Request = &e.request
}

func outcome(failed bool) string {
	if failed {
		return "failure"
	}
	return "success"
}

func (e *encoder) vxlan(ev *output.Event) {
	v := ev.VXLAN
	typ := typeInfo
	switch ev.Action {
	case "created":
		typ = typeStart
	case "deleted", "cleaned":
		typ = typeEnd
	}
	e.reset("logs", output.DatasetVXLAN, "event", categoryNetwork, typ)
	e.doc.Timestamp = timestamp(ev.Time)
	e.doc.Message = ev.String()
	e.doc.Event.Action = ev.Action
	e.doc.Event.Outcome = outcome(v.Err != "" || ev.Action == "create_failed" || ev.Action == "up_failed")
	e.doc.Event.Reason = v.Reason
	if h := hostOf(&ev.Host); h != nil {
		e.doc.Host = h
	}
	if v.Owner != nil {
		id := v.Owner.Identity()
		id.Device, id.Mount, id.Process = output.Device{}, output.Mount{}, output.Process{}
		e.identity(&id)
	}
	e.processOf(&v.Process)
	f := &docVXLAN{
		Device: v.Device, Ifindex: int64(v.Ifindex), VNI: int64(v.VNI), NetNS: idText(v.NetNS), NewNetNS: idText(v.NewNetNS),
		Up: v.Up, Stack: v.Stack, Services: v.Services, Culprit: v.Culprit, CulpritNetNS: idText(v.CulpritNetNS),
		Error: v.Err, Age: long(v.AgeNanos),
	}
	if v.Network != "" || v.NetworkID != "" {
		f.Network = &docNetwork{v.Network, v.NetworkID}
	}
	e.doc.Iotrace.VXLAN = f
}
