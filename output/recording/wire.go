package recording

import (
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/fxamacker/cbor/v2"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// wireInterval is an interval as it is written. Numbers called string, label set,
// identity or bound are indices into tables. The intervals from the key frame to this
// one fill the tables in their order. String 0 is "" and label set 0 is empty; neither
// is written.
type wireInterval struct {
	Start int64 `cbor:"1,keyasint"` // ns since 1970
	End   int64 `cbor:"2,keyasint"`

	Host       []uint64 `cbor:"3,keyasint,omitempty"` // name, id, kernel: strings
	Unresolved uint64   `cbor:"4,keyasint,omitempty"`
	Lost       []uint64 `cbor:"5,keyasint,omitempty"` // records, notices, latencies, groups, walks, misses, exports, bytes
	Self       []uint64 `cbor:"6,keyasint,omitempty"` // ns in BPF, ns of CPU, bytes of memory, read, written
	Sources    []uint64 `cbor:"7,keyasint,omitempty"` // source, attached, hook, reason, limitations

	// What this interval adds to the tables.
	Strings []wireText `cbor:"8,keyasint,omitempty"`
	Labels  [][]uint64 `cbor:"9,keyasint,omitempty"`  // key, value, key, value ...: strings
	Width   uint64     `cbor:"10,keyasint,omitempty"` // numbers of one identity
	Idents  []uint64   `cbor:"11,keyasint,omitempty"` // Width numbers each
	Bounds  []uint64   `cbor:"12,keyasint,omitempty"` // ns

	// Rows are identities: first those of the samples, then those of the events.
	Rows    []uint64    `cbor:"13,keyasint,omitempty"`
	Samples uint64      `cbor:"14,keyasint,omitempty"`
	Read    wireAmounts `cbor:"15,keyasint"`
	Write   wireAmounts `cbor:"16,keyasint"`
	Discard wireAmounts `cbor:"17,keyasint"`
	Flush   wireAmounts `cbor:"18,keyasint"`
	Meta    wireAmounts `cbor:"19,keyasint"`
	// One number per row, left out where all are 0.
	MetaRead  []uint64   `cbor:"20,keyasint,omitempty"`
	MetaWrite []uint64   `cbor:"21,keyasint,omitempty"`
	Basis     [][]uint64 `cbor:"22,keyasint,omitempty"` // dirtier, page, bio, task, none, journal; the first recordings have no journal

	Events wireEvents `cbor:"23,keyasint"`

	Retransmits []uint64 `cbor:"24,keyasint,omitempty"` // as MetaRead

	// The sizes of the tables of strings, label sets, identities and bounds before this
	// interval, and Start of the key frame. The first recordings have none.
	Base []uint64 `cbor:"25,keyasint,omitempty"`

	// Hosts of intervals of several: name, id and kernel of each (strings), and of each
	// row and each event the number of its host, 0 for none. The first is 1.
	Hosts     []uint64 `cbor:"26,keyasint,omitempty"`
	RowHost   []uint64 `cbor:"27,keyasint,omitempty"` // as MetaRead
	EventHost []uint64 `cbor:"28,keyasint,omitempty"`
}

// baseWidth is the length of wireInterval.Base.
const baseWidth = 5

// wireAmounts holds the rows whose Amount is not all zero.
// Columns of wireInterval.Basis, now and in the first recordings.
const bases, oldBases = 6, 5

type wireAmounts struct {
	Rows    []uint64 `cbor:"1,keyasint,omitempty"` // row number minus the one before
	Bytes   []uint64 `cbor:"2,keyasint,omitempty"` // this one and those below: left out where all are 0
	Ops     []uint64 `cbor:"3,keyasint,omitempty"`
	Errors  []uint64 `cbor:"4,keyasint,omitempty"`
	Sum     []uint64 `cbor:"5,keyasint,omitempty"` // ns
	Max     []uint64 `cbor:"6,keyasint,omitempty"` // ns
	Buckets []uint64 `cbor:"7,keyasint,omitempty"` // how many the row has
	Bound   []uint64 `cbor:"8,keyasint,omitempty"` // bounds of all rows' buckets
	Count   []uint64 `cbor:"9,keyasint,omitempty"` // and their counts
}

// wireEvents holds events as columns. A column of zeros is left out.
type wireEvents struct {
	Time    []int64  `cbor:"1,keyasint,omitempty"` // ns since the event before, the first since Start
	Dataset []uint64 `cbor:"2,keyasint,omitempty"` // string
	Action  []uint64 `cbor:"3,keyasint,omitempty"` // string
	Row     []uint64 `cbor:"4,keyasint,omitempty"` // of IO.Sample, plus 1; 0 without IO
	Op      []uint64 `cbor:"5,keyasint,omitempty"` // string
	Offset  []uint64 `cbor:"6,keyasint,omitempty"` // bytes
	Latency []uint64 `cbor:"7,keyasint,omitempty"` // ns
	Basis   []uint64 `cbor:"8,keyasint,omitempty"` // string
	Error   []uint64 `cbor:"9,keyasint,omitempty"`
	// VXLAN has VXLANWidth numbers for each event with a 1 in HasVXLAN.
	HasVXLAN   []uint64   `cbor:"10,keyasint,omitempty"`
	VXLANWidth uint64     `cbor:"11,keyasint,omitempty"`
	VXLAN      []uint64   `cbor:"12,keyasint,omitempty"`
	Services   [][]uint64 `cbor:"13,keyasint,omitempty"` // strings, per VXLAN
}

// Bytes of memory that are taken by a sample and an event, and about those of a label and
// an empty label set.
const (
	sampleBytes   = int64(unsafe.Sizeof(output.Sample{})) + 8
	eventBytes    = int64(unsafe.Sizeof(output.Event{})+unsafe.Sizeof(output.IO{})) - sampleBytes
	vxlanBytes    = int64(unsafe.Sizeof(output.VXLAN{}))
	labelBytes    = 48
	labelSetBytes = 64
)

// memory returns about how many bytes a reader needs for what is in w, without its text.
// It looks at lengths only, so that it can be asked before anything is built.
func (w *wireInterval) memory() int64 {
	n := int64(len(w.Rows)+len(w.Idents)/minIdentWidth) * sampleBytes
	n += int64(len(w.Events.Time))*eventBytes + int64(len(w.Events.Services))*vxlanBytes
	for _, s := range w.Events.Services {
		n += int64(len(s)) * 16
	}
	for _, l := range w.Labels {
		n += labelSetBytes + int64(len(l)/2)*labelBytes
	}
	for _, a := range []*wireAmounts{&w.Read, &w.Write, &w.Discard, &w.Flush, &w.Meta} {
		n += int64(len(a.Bound)) * 16
	}
	return n
}

// How many numbers an identity, a vxlan event and a source have.
const (
	identWidth    = 57
	p9Width       = 56 // without the alias of a device
	fileWidth     = 55 // without the transport of 9p
	servedWidth   = 48 // without the file
	clientWidth   = 44 // without the host of an NFS client, and why its owner is not known
	serverWidth   = 42 // without the client of this host's NFS server
	oldIdentWidth = 36 // without who named it, digest, address and port of the server, gone
	minIdentWidth = 34 // in the first recordings
	vxlanWidth    = 17
	srcWidth      = 5
)

// wireText is a CBOR text string where the bytes are UTF-8 and a byte string otherwise:
// process names and paths may hold any bytes, and a replay shows the same ones.
type wireText string

// MarshalCBOR implements cbor.Marshaler.
func (t wireText) MarshalCBOR() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return cbor.Marshal(string(t))
	}
	return cbor.Marshal([]byte(t))
}

// UnmarshalCBOR implements cbor.Unmarshaler.
func (t *wireText) UnmarshalCBOR(b []byte) error {
	// Short texts are most of them, and cheap: RFC 8949, section 3.
	if len(b) > 1 && len(b) == 1+int(b[0]&0x1f) && len(b) <= 24 {
		if major := b[0] >> 5; major == 2 || major == 3 && utf8.Valid(b[1:]) {
			*t = wireText(b[1:])
			return nil
		}
	}
	if len(b) > 0 && b[0]>>5 == 2 {
		var raw []byte
		if err := decMode.Unmarshal(b, &raw); err != nil {
			return err
		}
		*t = wireText(raw)
		return nil
	}
	return decMode.Unmarshal(b, (*string)(t))
}

// encoder turns intervals into wireIntervals and remembers the tables.
type encoder struct {
	mode cbor.EncMode

	strings map[string]uint64
	labels  map[string]uint64 // by the packed pairs
	idents  map[string]uint64 // by the packed numbers
	bounds  map[uint64]uint64
	text    int   // bytes of strings
	pairs   int   // of labels
	began   int64 // Start of the key frame

	w    *wireInterval
	left uint64 // events left out of the last interval
	// sets are the label sets of maps seen in this interval, by the address of the
	// map. In another interval that map may have changed, or be another one.
	sets map[unsafe.Pointer]uint64

	key   []byte   // scratch
	row   []uint64 // scratch
	names []string // scratch
}

func newEncoder() (*encoder, error) {
	mode, err := cbor.EncOptions{}.EncMode()
	if err != nil {
		return nil, err
	}
	e := &encoder{mode: mode, sets: map[unsafe.Pointer]uint64{}}
	e.reset()
	return e, nil
}

// reset forgets the tables: the next interval is a key frame.
func (e *encoder) reset() {
	e.strings = map[string]uint64{"": 0}
	e.labels = map[string]uint64{}
	e.idents = map[string]uint64{}
	e.bounds = map[uint64]uint64{}
	clear(e.sets)
	e.text, e.pairs = 0, 0
}

// interval encodes iv. After an error the caller must reset the tables.
func (e *encoder) interval(iv *output.Interval) (*wireInterval, error) {
	if len(iv.Samples) > maxSamples {
		return nil, fmt.Errorf("interval of %d samples: %w", len(iv.Samples), ErrTooLarge)
	}
	start := iv.Start.UnixNano()
	if iv.Start.Year() < 1970 || iv.Start.Year() > 2200 {
		return nil, fmt.Errorf("interval that starts at %s: years before 1970 and after 2200 cannot be recorded", iv.Start.UTC().Format(time.RFC3339))
	}
	// Sub uses the monotonic clock if it can: the wall clock may have been set.
	end := start + max(0, int64(iv.End.Sub(iv.Start)))
	w := &wireInterval{Start: start, End: end, Unresolved: iv.Unresolved, Samples: uint64(len(iv.Samples))}
	e.w = w
	if len(e.strings) == 1 {
		e.began = start
	}
	w.Base = []uint64{uint64(len(e.strings)), uint64(len(e.labels)) + 1, uint64(len(e.idents)), uint64(len(e.bounds)), uint64(e.began)}
	clear(e.sets)

	events := iv.Events
	e.left = 0
	if len(events) > maxEvents {
		e.left = uint64(len(events) - maxEvents)
		events = events[:maxEvents]
	}
	w.Host = noneIfZero([]uint64{e.str(iv.Host.Name), e.str(iv.Host.ID), e.str(iv.Host.Kernel)})
	l := iv.Lost
	w.Lost = noneIfZero([]uint64{l.Records, l.Notices, l.Latencies, l.Groups, l.Walks, l.Misses, l.Exports + e.left, l.Bytes, l.Notes})
	w.Self = noneIfZero([]uint64{iv.Self.BPFNanos, iv.Self.CPUNanos, iv.Self.RSSBytes, iv.Self.ReadBytes, iv.Self.WriteBytes, iv.Self.MapBytes})
	for _, s := range iv.Sources {
		w.Sources = append(w.Sources, e.str(string(s.Source)), bit(s.Attached), e.str(s.Hook), e.str(s.Reason), e.str(joinLimitations(s.Limitations)))
	}

	n := len(iv.Samples)
	rows := make([]*output.Sample, 0, n+len(events))
	for i := range iv.Samples {
		rows = append(rows, &iv.Samples[i])
	}
	rows, err := e.events(events, start, rows)
	if err != nil {
		return nil, err
	}
	w.Rows = make([]uint64, len(rows))
	for i, s := range rows {
		w.Rows[i] = e.ident(s)
	}
	if len(e.idents) > maxIdents || e.text > maxText/2 || e.pairs > maxLabels {
		return nil, fmt.Errorf("names of %d identities in %d bytes: %w", len(e.idents), e.text, ErrTooLarge)
	}

	e.hosts(rows, events)
	w.MetaRead = make([]uint64, len(rows))
	w.MetaWrite = make([]uint64, len(rows))
	w.Retransmits = make([]uint64, len(rows))
	basis := make([][]uint64, bases)
	for i := range basis {
		basis[i] = make([]uint64, len(rows))
	}
	for i, s := range rows {
		w.MetaRead[i], w.MetaWrite[i], w.Retransmits[i] = s.MetaReadBytes, s.MetaWriteBytes, s.Retransmits
		b := &s.Basis
		for k, v := range [bases]uint64{b.Dirtier, b.Page, b.Bio, b.Task, b.None, b.Journal} {
			basis[k][i] = v
		}
	}
	w.MetaRead, w.MetaWrite, w.Retransmits = noneIfZero(w.MetaRead), noneIfZero(w.MetaWrite), noneIfZero(w.Retransmits)
	used := false
	for i := range basis {
		basis[i] = noneIfZero(basis[i])
		used = used || basis[i] != nil
	}
	if used {
		w.Basis = basis
	}
	for _, a := range []struct {
		to   *wireAmounts
		from func(*output.Sample) *output.Amount
	}{
		{&w.Read, func(s *output.Sample) *output.Amount { return &s.Read }},
		{&w.Write, func(s *output.Sample) *output.Amount { return &s.Write }},
		{&w.Discard, func(s *output.Sample) *output.Amount { return &s.Discard }},
		{&w.Flush, func(s *output.Sample) *output.Amount { return &s.Flush }},
		{&w.Meta, func(s *output.Sample) *output.Amount { return &s.Metadata }},
	} {
		if err := e.amounts(a.to, rows, a.from); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// hosts says of which hosts rows and events are.
func (e *encoder) hosts(rows []*output.Sample, events []output.Event) {
	w := e.w
	numbers := map[output.Host]uint64{{}: 0}
	number := func(h output.Host) uint64 {
		n, ok := numbers[h]
		if !ok {
			n = uint64(len(numbers))
			numbers[h] = n
			w.Hosts = append(w.Hosts, e.str(h.Name), e.str(h.ID), e.str(h.Kernel))
		}
		return n
	}
	w.RowHost, w.EventHost = make([]uint64, len(rows)), make([]uint64, len(events))
	for i, s := range rows {
		w.RowHost[i] = number(s.Host)
	}
	for i := range events {
		w.EventHost[i] = number(events[i].Host)
	}
	w.RowHost, w.EventHost = noneIfZero(w.RowHost), noneIfZero(w.EventHost)
}

// amounts fills to with one Amount of each row.
func (e *encoder) amounts(to *wireAmounts, rows []*output.Sample, from func(*output.Sample) *output.Amount) error {
	last := 0
	for i, s := range rows {
		a := from(s)
		h := &a.Latency
		if a.Bytes|a.Ops|a.Errors|h.Sum|h.Max == 0 && len(h.Buckets) == 0 {
			continue
		}
		to.Rows = append(to.Rows, uint64(i-last))
		last = i
		to.Bytes = append(to.Bytes, a.Bytes)
		to.Ops = append(to.Ops, a.Ops)
		to.Errors = append(to.Errors, a.Errors)
		to.Sum = append(to.Sum, h.Sum)
		to.Max = append(to.Max, h.Max)
		to.Buckets = append(to.Buckets, uint64(len(h.Buckets)))
		for j, b := range h.Buckets {
			if b.Count == 0 || j > 0 && b.UpTo <= h.Buckets[j-1].UpTo {
				return fmt.Errorf("latency buckets of container %q are empty or not in ascending order", s.Container.Name)
			}
			n, ok := e.bounds[b.UpTo]
			if !ok {
				n = uint64(len(e.bounds))
				e.bounds[b.UpTo] = n
				e.w.Bounds = append(e.w.Bounds, b.UpTo)
			}
			to.Bound = append(to.Bound, n)
			to.Count = append(to.Count, b.Count)
		}
	}
	if len(to.Count) > maxElements {
		return fmt.Errorf("interval of %d latency buckets: %w", len(to.Count), ErrTooLarge)
	}
	to.Bytes, to.Ops, to.Errors = noneIfZero(to.Bytes), noneIfZero(to.Ops), noneIfZero(to.Errors)
	to.Sum, to.Max, to.Buckets = noneIfZero(to.Sum), noneIfZero(to.Max), noneIfZero(to.Buckets)
	return nil
}

// events fills w.Events and appends the samples that they carry to rows.
func (e *encoder) events(events []output.Event, start int64, rows []*output.Sample) ([]*output.Sample, error) {
	n := len(events)
	if n == 0 {
		return rows, nil
	}
	w := &e.w.Events
	w.Time = make([]int64, n)
	cols := make([]uint64, 9*n)
	w.Dataset, w.Action, w.Row = cols[:n], cols[n:2*n], cols[2*n:3*n]
	w.Op, w.Offset, w.Latency = cols[3*n:4*n], cols[4*n:5*n], cols[5*n:6*n]
	w.Basis, w.Error, w.HasVXLAN = cols[6*n:7*n], cols[7*n:8*n], cols[8*n:]
	last := start
	for i := range events {
		ev := &events[i]
		t := last
		if y := ev.Time.Year(); y >= 1970 && y <= 2200 {
			t = ev.Time.UnixNano()
		}
		w.Time[i] = t - last
		last = t
		w.Dataset[i], w.Action[i] = e.str(ev.Dataset), e.str(ev.Action)
		if io := ev.IO; io != nil {
			rows = append(rows, &io.Sample)
			w.Row[i] = uint64(len(rows))
			w.Op[i], w.Offset[i], w.Latency[i] = e.str(io.Op), io.Offset, io.Latency
			w.Basis[i], w.Error[i] = e.str(io.Basis), bit(io.Error)
		}
		if v := ev.VXLAN; v != nil {
			w.HasVXLAN[i] = 1
			w.VXLANWidth = vxlanWidth
			var owner uint64
			if v.Owner != nil {
				rows = append(rows, v.Owner)
				owner = uint64(len(rows))
			}
			w.VXLAN = append(w.VXLAN, e.str(v.Device), uint64(v.Ifindex), uint64(v.VNI), v.NetNS, v.NewNetNS, bit(v.Up),
				uint64(v.Process.PID), e.str(v.Process.Name), owner, e.str(v.Network), e.str(v.NetworkID), e.str(v.Stack),
				e.str(v.Culprit), v.CulpritNetNS, e.str(v.Reason), e.str(v.Err), v.AgeNanos)
			var services []uint64
			for _, s := range v.Services {
				services = append(services, e.str(s))
			}
			w.Services = append(w.Services, services)
		}
	}
	if len(w.VXLAN) > maxElements {
		return nil, fmt.Errorf("interval of %d vxlan events: %w", len(w.Services), ErrTooLarge)
	}
	for _, c := range []*[]uint64{&w.Dataset, &w.Action, &w.Row, &w.Op, &w.Offset, &w.Latency, &w.Basis, &w.Error, &w.HasVXLAN} {
		*c = noneIfZero(*c)
	}
	return rows, nil
}

// ident returns the identity of s: the number of everything in it but amounts.
func (e *encoder) ident(s *output.Sample) uint64 {
	c, m := &s.Container, &s.Mount
	e.row = append(e.row[:0],
		e.str(string(s.Source)), e.str(string(s.Level)), e.str(string(s.Owner)),
		e.str(s.Project), e.str(s.ProjectRule), e.str(s.Service), e.str(s.Unit),
		e.str(c.ID), e.str(c.Name), e.str(c.Runtime), e.str(c.Image), e.str(c.ImageTag), e.labelSet(c.Labels), e.str(c.Parent),
		e.str(s.Pod.Name), e.str(s.Pod.Namespace), e.str(s.Pod.UID),
		s.Cgroup.ID, e.str(s.Cgroup.Path),
		uint64(s.Process.PID), e.str(s.Process.Name),
		e.str(s.Device.ID), e.str(s.Device.Name), bit(s.Device.Stacked),
		e.str(m.Source), e.str(m.Point), e.str(m.FSType), e.str(m.Volume), e.str(m.Driver),
		e.str(m.NFSServer), e.str(m.NFSExport), e.str(m.NFSVersion), e.str(m.FUSESubtype), uint64(m.FUSEDaemonPID),
		e.str(c.Outer), e.str(c.OuterName),
		e.str(s.NamedBy), e.str(s.ProjectNamedBy), e.str(c.Digest), e.str(m.NFSAddress), uint64(m.NFSPort), bit(s.Cgroup.Gone),
		e.str(s.NFSClient.Address), e.str(s.NFSClient.Name),
		e.str(s.NFSClient.Host.Name), e.str(s.NFSClient.Host.ID), e.str(s.NFSClient.Host.Kernel), e.str(s.NFSClient.Silent),
		e.str(string(s.File.Kind)), e.str(s.File.Path), e.str(s.File.Inside), s.File.Inode, uint64(s.File.Links),
		bit(s.File.Removed)|bit(s.File.Partial)<<1, e.str(s.File.LogOf),
		e.str(m.Transport), e.str(s.Device.Alias))
	key := packInts(e.key[:0], e.row)
	e.key = key
	n, ok := e.idents[string(key)]
	if !ok {
		n = uint64(len(e.idents))
		e.idents[string(key)] = n
		e.w.Width = identWidth
		e.w.Idents = append(e.w.Idents, e.row...)
	}
	return n
}

// str returns the number of a string, of at most maxString bytes.
func (e *encoder) str(s string) uint64 {
	if s == "" {
		return 0
	}
	if n, ok := e.strings[s]; ok {
		return n
	}
	if len(s) > maxString {
		s = s[:maxString]
		if n, ok := e.strings[s]; ok {
			return n
		}
	}
	n := uint64(len(e.strings))
	s = strings.Clone(s) // s may be a part of a larger string
	e.strings[s] = n
	e.text += len(s)
	e.w.Strings = append(e.w.Strings, wireText(s))
	return n
}

// labelSet returns the number of a set of labels. Maps of the same content have the same
// number.
func (e *encoder) labelSet(labels map[string]string) uint64 {
	if len(labels) == 0 {
		return 0
	}
	address := reflect.ValueOf(labels).UnsafePointer()
	if n, ok := e.sets[address]; ok {
		return n
	}
	e.names = slices.AppendSeq(e.names[:0], maps.Keys(labels))
	slices.Sort(e.names)
	pairs := make([]uint64, 0, 2*len(labels))
	for _, k := range e.names {
		pairs = append(pairs, e.str(k), e.str(labels[k]))
	}
	key := packInts(e.key[:0], pairs)
	e.key = key
	n, ok := e.labels[string(key)]
	if !ok {
		n = uint64(len(e.labels)) + 1
		e.labels[string(key)] = n
		e.pairs += len(labels)
		e.w.Labels = append(e.w.Labels, pairs)
	}
	e.sets[address] = n
	return n
}

// joinLimitations makes one text of the limitations of a source, a line each. The
// first recordings hold a single text in this place, and a reader of that time
// wants a single text there: so each version reads what the other one wrote, and
// the format keeps its number.
func joinLimitations(limitations []string) string { return strings.Join(limitations, "\n") }

// splitLimitations is the reverse of joinLimitations. The text of an old
// recording has one line and becomes one limitation.
func splitLimitations(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// packInts appends numbers to b, for a map key.
func packInts(b []byte, numbers []uint64) []byte {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// noneIfZero returns c, or nil if it has zeros only.
func noneIfZero(c []uint64) []uint64 {
	for _, v := range c {
		if v != 0 {
			return c
		}
	}
	return nil
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// nameTables are the tables of the reader.
type nameTables struct {
	strings []string
	labels  []map[string]string
	idents  []output.Sample
	bounds  []uint64
	text    int
	pairs   int
	err     error // the first index beyond its table

	began uint64      // Start of the key frame, where the recording says so
	gap   bool        // an interval of the group could not be read
	holes [4][][2]int // numbers of strings, label sets, identities and bounds that it defined
}

func newNameTables() *nameTables {
	return &nameTables{strings: []string{""}, labels: []map[string]string{nil}}
}

// errNames: the names of an interval were defined in one that cannot be read. Those of
// the following ones are not known either, until the next key frame.
var errNames = fmt.Errorf("the names of this interval were in a damaged one: %w", ErrCorrupt)

// errName is errNames for an interval of which only some names are missing.
var errName = fmt.Errorf("a name in this interval was in a damaged one: %w", ErrCorrupt)

// pad makes the tables as large as they were when w was written. What damaged intervals
// defined becomes holes. span is how many bytes of the file there are from the key frame to
// w: they bound what those intervals can have defined.
func (t *nameTables) pad(w *wireInterval, span int64) error {
	if len(w.Base) < baseWidth {
		if t.gap {
			return errNames
		}
		return nil
	}
	if began := w.Base[4]; began != t.began {
		if began != uint64(w.Start) {
			return errNames
		}
		*t = *newNameTables()
		t.began = began
		span = 0 // nothing was defined before a key frame
	}
	have := [4]int{len(t.strings), len(t.labels), len(t.idents), len(t.bounds)}
	most := [4]uint64{maxElements, maxIdents, maxIdents, maxElements}
	for i, n := range have {
		switch base := w.Base[i]; {
		case base > most[i] || base < uint64(n):
			return errNames
		}
	}
	if memory := int64(w.Base[0])*16 + int64(w.Base[1])*8 + int64(w.Base[2])*sampleBytes + int64(w.Base[3])*8; memory > memoryLimit(span) {
		return errNames
	}
	for i, n := range have {
		if base := w.Base[i]; base > uint64(n) {
			t.holes[i] = append(t.holes[i], [2]int{n, int(base)})
		}
	}
	t.strings = append(t.strings, make([]string, int(w.Base[0])-have[0])...)
	t.labels = append(t.labels, make([]map[string]string, int(w.Base[1])-have[1])...)
	t.idents = append(t.idents, make([]output.Sample, int(w.Base[2])-have[2])...)
	t.bounds = append(t.bounds, make([]uint64, int(w.Base[3])-have[3])...)
	return nil
}

// The tables in nameTables.holes.
const (
	holeString = iota
	holeLabels
	holeIdent
	holeBound
)

// known fails if entry n of a table is in a hole.
func (t *nameTables) known(table int, n uint64) {
	holes := t.holes[table]
	if len(holes) == 0 {
		return
	}
	// The first hole that ends behind n.
	i := sort.Search(len(holes), func(i int) bool { return uint64(holes[i][1]) > n })
	if i < len(holes) && n >= uint64(holes[i][0]) && t.err == nil {
		t.err = errName
	}
}

// undo forgets what an interval defined that could not be learned.
func (t *nameTables) undo(strings, labels, idents, bounds int) {
	t.strings, t.labels, t.idents, t.bounds = t.strings[:strings], t.labels[:labels], t.idents[:idents], t.bounds[:bounds]
	t.err = nil
}

// fail keeps the first error. What is decoded after it is not used.
func (t *nameTables) fail(format string, args ...any) {
	if t.err == nil {
		t.err = fmt.Errorf(format, args...)
	}
}

func (t *nameTables) str(n uint64) string {
	if n >= uint64(len(t.strings)) {
		t.fail("string %d of %d", n, len(t.strings))
		return ""
	}
	t.known(holeString, n)
	return t.strings[n]
}

func (t *nameTables) u32(n uint64) uint32 {
	if n > 1<<32-1 {
		t.fail("number %d where 32 bits are expected", n)
	}
	return uint32(n)
}

// learn adds to the tables what w defines, and builds no samples. After an error the
// tables lack all of it. span is as for pad.
func (t *nameTables) learn(w *wireInterval, span int64) error {
	if err := t.pad(w, span); err != nil {
		return err
	}
	strings, labels, idents, bounds := len(t.strings), len(t.labels), len(t.idents), len(t.bounds)
	err := t.define(w)
	if err != nil {
		t.undo(strings, labels, idents, bounds)
	}
	return err
}

func (t *nameTables) define(w *wireInterval) error {
	for _, s := range w.Strings {
		t.text += len(s)
		t.strings = append(t.strings, string(s))
	}
	for _, l := range w.Labels {
		t.pairs += len(l) / 2
	}
	if t.text > maxText || t.pairs > maxLabels || len(t.labels)+len(w.Labels) > maxIdents {
		return fmt.Errorf("%d bytes of names, %d labels: more than a recording may have", t.text, t.pairs)
	}
	for _, l := range w.Labels {
		if len(l)%2 != 0 {
			return fmt.Errorf("label set of %d strings", len(l))
		}
		set := make(map[string]string, len(l)/2)
		for i := 0; i < len(l); i += 2 {
			set[t.str(l[i])] = t.str(l[i+1])
		}
		t.labels = append(t.labels, set)
	}
	t.bounds = append(t.bounds, w.Bounds...)
	if len(t.bounds) > maxElements {
		return fmt.Errorf("%d latency bounds: more than a recording may have", len(t.bounds))
	}
	if len(w.Idents) == 0 {
		return t.err
	}
	if w.Width < minIdentWidth || w.Width > 1024 || uint64(len(w.Idents))%w.Width != 0 {
		return fmt.Errorf("identities of %d numbers in rows of %d", len(w.Idents), w.Width)
	}
	width := int(w.Width)
	if len(t.idents)+len(w.Idents)/width > maxIdents {
		return fmt.Errorf("more than %d identities", maxIdents)
	}
	t.idents = slices.Grow(t.idents, len(w.Idents)/width)
	for c := range slices.Chunk(w.Idents, width) {
		t.idents = append(t.idents, t.ident(c))
	}
	return t.err
}

// ident is the reverse of encoder.ident.
func (t *nameTables) ident(c []uint64) output.Sample {
	var labels map[string]string
	if c[12] < uint64(len(t.labels)) {
		t.known(holeLabels, c[12])
		labels = t.labels[c[12]]
	} else {
		t.fail("label set %d of %d", c[12], len(t.labels))
	}
	var outer [2]string
	if len(c) >= oldIdentWidth {
		outer = [2]string{t.str(c[34]), t.str(c[35])}
	}
	s := output.Sample{
		Source: output.Source(t.str(c[0])), Level: output.Level(t.str(c[1])), Owner: output.OwnerKind(t.str(c[2])),
		Project: t.str(c[3]), ProjectRule: t.str(c[4]), Service: t.str(c[5]), Unit: t.str(c[6]),
		Container: output.Container{
			ID: t.str(c[7]), Name: t.str(c[8]), Runtime: t.str(c[9]), Image: t.str(c[10]), ImageTag: t.str(c[11]),
			Labels: labels, Parent: t.str(c[13]), Outer: outer[0], OuterName: outer[1],
		},
		Pod:     output.Pod{Name: t.str(c[14]), Namespace: t.str(c[15]), UID: t.str(c[16])},
		Cgroup:  output.Cgroup{ID: c[17], Path: t.str(c[18])},
		Process: output.Process{PID: t.u32(c[19]), Name: t.str(c[20])},
		Device:  output.Device{ID: t.str(c[21]), Name: t.str(c[22]), Stacked: c[23] != 0},
		Mount: output.Mount{
			Source: t.str(c[24]), Point: t.str(c[25]), FSType: t.str(c[26]), Volume: t.str(c[27]), Driver: t.str(c[28]),
			NFSServer: t.str(c[29]), NFSExport: t.str(c[30]), NFSVersion: t.str(c[31]),
			FUSESubtype: t.str(c[32]), FUSEDaemonPID: t.u32(c[33]),
		},
	}
	if len(c) >= identWidth {
		s.Device.Alias = t.str(c[56])
	}
	if len(c) >= p9Width {
		s.Mount.Transport = t.str(c[55])
	}
	if len(c) >= fileWidth {
		s.File = output.File{
			Kind: output.FileKind(t.str(c[48])), Path: t.str(c[49]), Inside: t.str(c[50]), Inode: c[51], Links: t.u32(c[52]),
			Removed: c[53]&1 != 0, Partial: c[53]&2 != 0, LogOf: t.str(c[54]),
		}
	}
	if len(c) >= clientWidth {
		s.NFSClient = output.NFSClient{Address: t.str(c[42]), Name: t.str(c[43])}
	}
	if len(c) >= servedWidth {
		s.NFSClient.Host = output.Host{Name: t.str(c[44]), ID: t.str(c[45]), Kernel: t.str(c[46])}
		s.NFSClient.Silent = t.str(c[47])
	}
	if len(c) >= serverWidth {
		s.NamedBy, s.ProjectNamedBy, s.Container.Digest = t.str(c[36]), t.str(c[37]), t.str(c[38])
		s.Mount.NFSAddress, s.Cgroup.Gone = t.str(c[39]), c[41] != 0
		if c[40] > 1<<16-1 {
			t.fail("port %d", c[40])
		}
		s.Mount.NFSPort = uint16(c[40])
	}
	return s
}

// column fails unless c has n numbers, or was left out.
func (t *nameTables) column(name string, c []uint64, n int) {
	if len(c) != 0 && len(c) != n {
		t.fail("%s: %d numbers for %d rows", name, len(c), n)
	}
}

// at reads a column that may have been left out.
func at(c []uint64, i int) uint64 {
	if i < len(c) {
		return c[i]
	}
	return 0
}

// interval builds the interval; learn has been called with w.
func (t *nameTables) interval(w *wireInterval) (*output.Interval, error) {
	n, events := len(w.Rows), len(w.Events.Time)
	switch {
	case w.Samples > uint64(n) || w.Samples > maxSamples:
		return nil, fmt.Errorf("%d samples in %d rows", w.Samples, n)
	case events > maxEvents:
		return nil, fmt.Errorf("%d events", events)
	case n > int(w.Samples)+2*events:
		return nil, fmt.Errorf("%d rows for %d samples and %d events", n, w.Samples, events)
	case len(w.Sources)%srcWidth != 0 || len(w.Sources) > 64*srcWidth:
		return nil, fmt.Errorf("sources of %d numbers", len(w.Sources))
	case w.Start < 0 || w.End < w.Start:
		return nil, fmt.Errorf("interval from %d to %d", w.Start, w.End)
	}
	for i, h := range w.Rows {
		if h >= uint64(len(t.idents)) {
			return nil, fmt.Errorf("identity %d of %d in row %d", h, len(t.idents), i)
		}
		t.known(holeIdent, h)
	}
	t.column("metadata read", w.MetaRead, n)
	t.column("retransmits", w.Retransmits, n)
	t.column("metadata written", w.MetaWrite, n)
	t.column("hosts of rows", w.RowHost, n)
	t.column("hosts of events", w.EventHost, events)
	hosts := t.hosts(w)
	var basis [bases][]uint64
	if len(w.Basis) > 0 && len(w.Basis) < oldBases {
		t.fail("basis of %d columns", len(w.Basis))
	}
	for i := 0; i < len(basis) && i < len(w.Basis); i++ {
		basis[i] = w.Basis[i]
		t.column("basis", basis[i], n)
	}
	if t.err != nil {
		return nil, t.err
	}

	iv := &output.Interval{
		Start: time.Unix(0, w.Start).UTC(), End: time.Unix(0, w.End).UTC(),
		Host:       output.Host{Name: t.str(at(w.Host, 0)), ID: t.str(at(w.Host, 1)), Kernel: t.str(at(w.Host, 2))},
		Unresolved: w.Unresolved,
		Lost: output.Lost{
			Records: at(w.Lost, 0), Notices: at(w.Lost, 1), Latencies: at(w.Lost, 2), Groups: at(w.Lost, 3),
			Walks: at(w.Lost, 4), Misses: at(w.Lost, 5), Exports: at(w.Lost, 6), Bytes: at(w.Lost, 7), Notes: at(w.Lost, 8),
		},
		Self: output.Self{BPFNanos: at(w.Self, 0), CPUNanos: at(w.Self, 1), RSSBytes: at(w.Self, 2), ReadBytes: at(w.Self, 3), WriteBytes: at(w.Self, 4), MapBytes: at(w.Self, 5)},
	}
	for c := range slices.Chunk(w.Sources, srcWidth) {
		iv.Sources = append(iv.Sources, output.SourceStatus{
			Source: output.Source(t.str(c[0])), Attached: c[1] != 0, Hook: t.str(c[2]), Reason: t.str(c[3]), Limitations: splitLimitations(t.str(c[4])),
		})
	}
	fill := func(s *output.Sample, i int) {
		*s = t.idents[w.Rows[i]]
		s.Host = hosts(at(w.RowHost, i))
		s.MetaReadBytes, s.MetaWriteBytes, s.Retransmits = at(w.MetaRead, i), at(w.MetaWrite, i), at(w.Retransmits, i)
		s.Basis = output.BasisBytes{
			Dirtier: at(basis[0], i), Page: at(basis[1], i), Bio: at(basis[2], i), Task: at(basis[3], i), None: at(basis[4], i), Journal: at(basis[5], i),
		}
	}
	if w.Samples > 0 {
		iv.Samples = make([]output.Sample, w.Samples)
	}
	rows := make([]*output.Sample, n)
	for i := range iv.Samples {
		rows[i] = &iv.Samples[i]
		fill(rows[i], i)
	}
	// Each row behind the samples belongs to exactly one event.
	if err := t.events(iv, w, func(number uint64, s *output.Sample) {
		i := int(min(number, uint64(n)+1)) - 1
		if i < int(w.Samples) || i >= n || rows[i] != nil {
			t.fail("event that refers to row %d of %d", number, n)
			return
		}
		rows[i] = s
		fill(s, i)
	}); err != nil {
		return nil, err
	}
	for i := range iv.Events {
		iv.Events[i].Host = hosts(at(w.EventHost, i))
	}
	for i, s := range rows {
		if s == nil {
			return nil, fmt.Errorf("row %d belongs to no event", i)
		}
	}
	for _, a := range []struct {
		from *wireAmounts
		to   func(*output.Sample) *output.Amount
	}{
		{&w.Read, func(s *output.Sample) *output.Amount { return &s.Read }},
		{&w.Write, func(s *output.Sample) *output.Amount { return &s.Write }},
		{&w.Discard, func(s *output.Sample) *output.Amount { return &s.Discard }},
		{&w.Flush, func(s *output.Sample) *output.Amount { return &s.Flush }},
		{&w.Meta, func(s *output.Sample) *output.Amount { return &s.Metadata }},
	} {
		if err := t.amounts(a.from, rows, a.to); err != nil {
			return nil, err
		}
	}
	return iv, t.err
}

// hosts is the reverse of encoder.hosts: it returns the host of a number.
func (t *nameTables) hosts(w *wireInterval) func(uint64) output.Host {
	if len(w.Hosts)%3 != 0 || len(w.Hosts) > 3*MaxSet {
		t.fail("hosts of %d numbers", len(w.Hosts))
	}
	all := make([]output.Host, 1, 1+len(w.Hosts)/3)
	for c := range slices.Chunk(w.Hosts[:len(w.Hosts)/3*3], 3) {
		all = append(all, output.Host{Name: t.str(c[0]), ID: t.str(c[1]), Kernel: t.str(c[2])})
	}
	return func(n uint64) output.Host {
		if n >= uint64(len(all)) {
			t.fail("host %d of %d", n, len(all)-1)
			return output.Host{}
		}
		return all[n]
	}
}

// amounts is the reverse of encoder.amounts.
func (t *nameTables) amounts(from *wireAmounts, rows []*output.Sample, to func(*output.Sample) *output.Amount) error {
	n := len(from.Rows)
	t.column("bytes", from.Bytes, n)
	t.column("ops", from.Ops, n)
	t.column("errors", from.Errors, n)
	t.column("latency sum", from.Sum, n)
	t.column("latency maximum", from.Max, n)
	t.column("bucket numbers", from.Buckets, n)
	if len(from.Bound) != len(from.Count) {
		t.fail("%d bucket bounds and %d counts", len(from.Bound), len(from.Count))
	}
	if t.err != nil {
		return t.err
	}
	// All rows share one array. A row's part of it has no spare capacity.
	all := make([]output.Bucket, len(from.Bound))
	for i, b := range from.Bound {
		if b >= uint64(len(t.bounds)) {
			return fmt.Errorf("latency bound %d of %d", b, len(t.bounds))
		}
		t.known(holeBound, b)
		if from.Count[i] == 0 {
			return fmt.Errorf("latency bucket with a count of 0")
		}
		all[i] = output.Bucket{UpTo: t.bounds[b], Count: from.Count[i]}
	}
	pos, taken := uint64(0), uint64(0)
	for i, d := range from.Rows {
		if i > 0 && d == 0 || d >= uint64(len(rows)) || pos+d >= uint64(len(rows)) {
			return fmt.Errorf("amount of row %d+%d of %d", pos, d, len(rows))
		}
		pos += d
		buckets := at(from.Buckets, i)
		if buckets > uint64(len(all))-taken {
			return fmt.Errorf("%d latency buckets of a row, and only %d are left", buckets, uint64(len(all))-taken)
		}
		a := to(rows[pos])
		a.Bytes, a.Ops, a.Errors = at(from.Bytes, i), at(from.Ops, i), at(from.Errors, i)
		a.Latency.Sum, a.Latency.Max = at(from.Sum, i), at(from.Max, i)
		if buckets > 0 {
			a.Latency.Buckets = all[taken : taken+buckets : taken+buckets]
			taken += buckets
		}
		for j := 1; j < len(a.Latency.Buckets); j++ {
			if a.Latency.Buckets[j].UpTo <= a.Latency.Buckets[j-1].UpTo {
				return fmt.Errorf("latency buckets are not in ascending order")
			}
		}
	}
	if taken != uint64(len(all)) {
		return fmt.Errorf("%d latency buckets belong to no row", uint64(len(all))-taken)
	}
	return nil
}

// events is the reverse of encoder.events; fill gives a sample its row.
func (t *nameTables) events(iv *output.Interval, w *wireInterval, fill func(uint64, *output.Sample)) error {
	ev := &w.Events
	n := len(ev.Time)
	for _, c := range [][]uint64{ev.Dataset, ev.Action, ev.Row, ev.Op, ev.Offset, ev.Latency, ev.Basis, ev.Error, ev.HasVXLAN} {
		t.column("events", c, n)
	}
	vxlan := 0
	for _, h := range ev.HasVXLAN {
		if h != 0 {
			vxlan++
		}
	}
	width := int(min(ev.VXLANWidth, 1024))
	if vxlan > 0 && (width < vxlanWidth || len(ev.VXLAN) != vxlan*width || len(ev.Services) != vxlan) {
		t.fail("%d vxlan events in %d numbers and %d lists of services", vxlan, len(ev.VXLAN), len(ev.Services))
	}
	services := 0
	for _, s := range ev.Services {
		services += len(s)
	}
	if services > maxLabels {
		t.fail("%d services of vxlan events", services)
	}
	if t.err != nil || n == 0 {
		return t.err
	}
	iv.Events = make([]output.Event, n)
	last := w.Start
	vxlan = 0
	for i := range iv.Events {
		e := &iv.Events[i]
		last += ev.Time[i]
		e.Time = time.Unix(0, last).UTC()
		e.Dataset, e.Action = t.str(at(ev.Dataset, i)), t.str(at(ev.Action, i))
		if r := at(ev.Row, i); r != 0 {
			e.IO = &output.IO{
				Op: t.str(at(ev.Op, i)), Offset: at(ev.Offset, i), Latency: at(ev.Latency, i),
				Basis: t.str(at(ev.Basis, i)), Error: at(ev.Error, i) != 0,
			}
			fill(r, &e.IO.Sample)
		}
		if at(ev.HasVXLAN, i) != 0 {
			c := ev.VXLAN[vxlan*width:]
			e.VXLAN = &output.VXLAN{
				Device: t.str(c[0]), Ifindex: t.u32(c[1]), VNI: t.u32(c[2]), NetNS: c[3], NewNetNS: c[4], Up: c[5] != 0,
				Process: output.Process{PID: t.u32(c[6]), Name: t.str(c[7])},
				Network: t.str(c[9]), NetworkID: t.str(c[10]), Stack: t.str(c[11]),
				Culprit: t.str(c[12]), CulpritNetNS: c[13], Reason: t.str(c[14]), Err: t.str(c[15]), AgeNanos: c[16],
			}
			if c[8] != 0 {
				e.VXLAN.Owner = new(output.Sample)
				fill(c[8], e.VXLAN.Owner)
			}
			for _, s := range ev.Services[vxlan] {
				e.VXLAN.Services = append(e.VXLAN.Services, t.str(s))
			}
			vxlan++
		}
		if t.err != nil {
			return t.err
		}
	}
	return nil
}
