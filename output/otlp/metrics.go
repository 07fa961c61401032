package otlp

import (
	"math"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	pb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// scope is the instrumentation scope, and the name of the service.
const scope = "iotrace-bpf"

// metrics returns the rows of an interval, and how many data points they have. Sums and
// histograms are of the interval alone (delta temporality). Each owner is a resource.
//
// Names are those of OpenTelemetry's semantic conventions where they have one:
// container.disk.io counts what containers did on local disks. iotrace.io.* count
// everything, on every source and of every owner.
func metrics(summary *output.Summary, iv *output.Interval, version string) (*collector.ExportMetricsServiceRequest, uint64) {
	e := encoder{start: nanos(iv.Start), end: nanos(iv.End), host: iv.Host}
	var by []string
	for _, k := range summary.By {
		by = append(by, string(k))
	}
	e.grain = strings.Join(by, ",")
	request := &collector.ExportMetricsServiceRequest{}
	add := func(row *output.Row, stacked bool) {
		list := e.row(row, stacked)
		if len(list) == 0 {
			return
		}
		request.ResourceMetrics = append(request.ResourceMetrics, &pb.ResourceMetrics{
			Resource:     &resource.Resource{Attributes: e.resource(row)},
			ScopeMetrics: []*pb.ScopeMetrics{{Scope: &common.InstrumentationScope{Name: scope, Version: version}, Metrics: list}},
		})
	}
	for i := range summary.Rows {
		add(&summary.Rows[i], false)
	}
	if summary.Rest != nil {
		add(summary.Rest, false)
	}
	for i := range summary.Stacked {
		add(&summary.Stacked[i], true)
	}
	return request, e.points
}

func nanos(t time.Time) uint64 { return uint64(max(t.UnixNano(), 0)) }

type encoder struct {
	start, end uint64
	host       output.Host
	grain      string
	points     uint64
}

// attributes are attributes with a value.
type attributes []*common.KeyValue

// text adds an attribute unless it is empty. Protobuf takes valid UTF-8 alone.
func (a *attributes) text(key, value string) {
	if value != "" {
		*a = append(*a, &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: strings.ToValidUTF8(value, "\uFFFD")}}})
	}
}

func (a *attributes) flag(key string, value bool) {
	*a = append(*a, &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: value}}})
}

// resource returns who a row is.
func (e *encoder) resource(row *output.Row) attributes {
	id := row.Identity()
	var a attributes
	a.text("service.name", scope)
	a.text("host.name", e.host.Name)
	a.text("host.id", e.host.ID)
	a.text("container.id", id.Container.ID)
	a.text("container.name", id.Container.Name)
	a.text("container.runtime", id.Container.Runtime)
	a.text("container.image.name", id.Container.Image)
	a.text("k8s.namespace.name", id.Pod.Namespace)
	a.text("k8s.pod.name", id.Pod.Name)
	a.text("k8s.pod.uid", id.Pod.UID)
	a.text("iotrace.owner", string(id.Owner))
	a.text("iotrace.project.name", id.Project)
	a.text("iotrace.service.name", id.Service)
	a.text("iotrace.unit.name", id.Unit)
	a.text("iotrace.cgroup.path", id.Cgroup.Path)
	a.text("iotrace.grain", e.grain)
	a.text("iotrace.group.id", row.ID())
	a.text("iotrace.group.name", row.Text())
	return a
}

// row returns the metrics of a row.
func (e *encoder) row(row *output.Row, stacked bool) []*pb.Metric {
	delta := pb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA
	sum := func() *pb.Sum { return &pb.Sum{AggregationTemporality: delta, IsMonotonic: true} }
	disk, size, ops, errs := sum(), sum(), sum(), sum()
	latency := &pb.ExponentialHistogram{AggregationTemporality: delta}
	point := func(s *pb.Sum, n uint64, a attributes) {
		s.DataPoints = append(s.DataPoints, &pb.NumberDataPoint{Attributes: a, StartTimeUnixNano: e.start, TimeUnixNano: e.end,
			Value: &pb.NumberDataPoint_AsInt{AsInt: int64(min(n, math.MaxInt64))}})
		e.points++
	}
	for i := range row.Sources {
		su := &row.Sources[i]
		id := su.Identity()
		for _, o := range []struct {
			op    output.Op
			n     *output.Amount
			bytes bool
		}{
			{output.OpRead, &su.Usage.Read, true}, {output.OpWrite, &su.Usage.Write, true}, {output.OpDiscard, &su.Usage.Discard, true},
			{output.OpFlush, &su.Usage.Flush, false}, {output.OpMetadata, &su.Usage.Metadata, false},
		} {
			if o.n.Ops == 0 && o.n.Bytes == 0 {
				continue
			}
			var a attributes
			a.text("disk.io.direction", string(o.op))
			a.text("system.device", id.Device.Name)
			if su.Source == output.SourceBlock && su.Level == output.LevelWire && !stacked && id.Owner == output.OwnerContainer && (o.op == output.OpRead || o.op == output.OpWrite) {
				point(disk, o.n.Bytes, a)
			}
			a = a[:len(a):len(a)]
			a.text("iotrace.source", string(su.Source))
			a.text("iotrace.level", string(su.Level))
			a.flag("iotrace.device.stacked", stacked)
			a.text("iotrace.mount.source", id.Mount.Source)
			a.text("iotrace.mount.volume", id.Mount.Volume)
			a.text("iotrace.nfs.server", output.ServerText(&id.Mount))
			if o.bytes {
				point(size, o.n.Bytes, a)
			}
			point(ops, o.n.Ops, a)
			if o.n.Errors > 0 {
				point(errs, o.n.Errors, a)
			}
			if len(o.n.Latency.Buckets) > 0 {
				latency.DataPoints = append(latency.DataPoints, e.histogram(&o.n.Latency, a))
				e.points++
			}
		}
	}
	var list []*pb.Metric
	for _, m := range []struct {
		name, unit, what string
		sum              *pb.Sum
	}{
		{"container.disk.io", "By", "Bytes that a container read from and wrote to local disks", disk},
		{"iotrace.io.bytes", "By", "Bytes; those where iotrace.device.stacked is true are counted on another device, too", size},
		{"iotrace.io.operations", "{operation}", "Requests", ops},
		{"iotrace.io.errors", "{operation}", "Requests that failed", errs},
	} {
		if len(m.sum.DataPoints) > 0 {
			list = append(list, &pb.Metric{Name: m.name, Unit: m.unit, Description: m.what, Data: &pb.Metric_Sum{Sum: m.sum}})
		}
	}
	if len(latency.DataPoints) > 0 {
		list = append(list, &pb.Metric{Name: "iotrace.io.latency", Unit: "s", Description: "From issue to completion of a request",
			Data: &pb.Metric_ExponentialHistogram{ExponentialHistogram: latency}})
	}
	return list
}

// scale is that of exponential histograms: 2^3 buckets in every power of two, so that a
// latency is exact to 9 %.
const scale = 3

// histogram counts every latency at the upper bound of its bucket, because more is not
// known.
func (e *encoder) histogram(l *output.Latency, a attributes) *pb.ExponentialHistogramDataPoint {
	longest, total := float64(l.Max)/1e9, float64(l.Sum)/1e9
	d := &pb.ExponentialHistogramDataPoint{Attributes: a, StartTimeUnixNano: e.start, TimeUnixNano: e.end, Scale: scale, Sum: &total, Max: &longest}
	for _, b := range l.Buckets {
		d.Count += b.Count
		if b.UpTo == 0 {
			d.ZeroCount += b.Count
			continue
		}
		// Bucket i has the values above base^i and up to base^(i+1); base is 2^(2^-scale).
		index := int32(math.Ceil(math.Log2(float64(b.UpTo)/1e9)*(1<<scale))) - 1
		if d.Positive == nil {
			d.Positive = &pb.ExponentialHistogramDataPoint_Buckets{Offset: index}
		}
		// Bounds ascend, and so do indices: 64 bits have 512 of them.
		for int32(len(d.Positive.BucketCounts)) <= index-d.Positive.Offset {
			d.Positive.BucketCounts = append(d.Positive.BucketCounts, 0)
		}
		d.Positive.BucketCounts[index-d.Positive.Offset] += b.Count
	}
	return d
}
