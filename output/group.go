package output

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
)

// Op is the kind of a request.
type Op string

// The operations of --by op and --filter op=. NFS COMMITs and FUSE fsyncs count
// as flushes.
const (
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpDiscard  Op = "discard"
	OpFlush    Op = "flush"
	OpMetadata Op = "metadata"
)

// Ops lists every operation.
var Ops = []Op{OpRead, OpWrite, OpDiscard, OpFlush, OpMetadata}

// Sources lists the known sources in the order of columns.
var Sources = []Source{SourceBlock, SourceNFS, SourceFUSE, SourceSMB, Source9P, SourceCeph, SourceNFSD}

func sourceRank(s Source) int {
	if i := slices.Index(Sources, s); i >= 0 {
		return i
	}
	return len(Sources)
}

// CompareSources orders sources as Sources does; unknown ones come last, by name.
func CompareSources(a, b Source) int {
	return cmp.Or(cmp.Compare(sourceRank(a), sourceRank(b)), cmp.Compare(a, b))
}

// Sort is a column to sort rows by: largest value first, names from a to z.
type Sort struct {
	Column  string // one of SortColumns; "" is total
	Reverse bool
}

// SortColumns returns every value of --sort.
func SortColumns() []string {
	columns := []string{"total", "read", "write", "ops", "latency", "name"}
	for _, s := range Sources {
		columns = append(columns, string(s))
	}
	return columns
}

// ColumnName returns the column to sort by, with the default filled in.
func (s Sort) ColumnName() string {
	if s.Column == "" {
		return "total"
	}
	return s.Column
}

// ParseSort reads the value of --sort: a column, with "-" in front for the
// opposite order. The error of an unknown column lists the known ones.
func ParseSort(s string) (Sort, error) {
	column, reverse := strings.CutPrefix(s, "-")
	if !slices.Contains(SortColumns(), column) {
		return Sort{}, &UnknownError{What: "column", Word: column, Known: SortColumns()}
	}
	return Sort{Column: column, Reverse: reverse}, nil
}

// LevelBoth asks Group for both levels, side by side and never added up.
const LevelBoth Level = "both"

// ParseLevel reads the value of --level: wire, app or both. Anything else is an
// error that explains them.
func ParseLevel(s string) (Level, error) {
	if !slices.Contains(LevelNames(), s) {
		return "", &UnknownError{What: "level", Word: s, Known: LevelNames()}
	}
	return Level(s), nil
}

// LevelNames returns every value that --level takes.
func LevelNames() []string { return []string{string(LevelWire), string(LevelApp), string(LevelBoth)} }

// GroupOptions says how to turn samples into rows.
type GroupOptions struct {
	By      []Key // empty: by container
	Filters []Filter
	Sort    Sort
	Top     int   // rows to keep; the others are summed up in Summary.Rest. 0 keeps all
	Level   Level // "" is LevelWire
	// CgroupDepth is how many components of a cgroup path to keep; 0 keeps all.
	CgroupDepth int
	// Stacked asks for the rows of stacked devices (Summary.Stacked) even where
	// neither a key nor a filter is about devices.
	Stacked bool

	// Pins are groups that samples must belong to. Unlike a Filter a pin is exact:
	// two things with the same name have different IDs.
	Pins   []KeyValue
	Search string // lower-case text that one of the keys must contain
}

// Usage is what a group did on one source, or on all of one level together.
type Usage struct {
	Read, Write, Discard, Flush, Metadata Amount

	// The part of Read.Bytes and Write.Bytes that is file-system metadata.
	MetaReadBytes, MetaWriteBytes uint64
	Retransmits                   uint64

	// Samples have one Basis for all operations. BasisUnknown is set when the
	// reads of a sample were separated from its writes (--by op, --filter op=),
	// because their share of the basis is not known.
	Basis        BasisBytes
	BasisUnknown bool
}

// Bytes returns bytes read and written. Discards move no data and do not count.
func (u *Usage) Bytes() uint64 { return u.Read.Bytes + u.Write.Bytes }

// Ops returns the number of all operations, including those without bytes.
func (u *Usage) Ops() uint64 {
	return u.Read.Ops + u.Write.Ops + u.Discard.Ops + u.Flush.Ops + u.Metadata.Ops
}

// Latency returns the latencies of reads and writes together.
func (u *Usage) Latency() Latency {
	l := u.Read.Latency.clone()
	l.Merge(&u.Write.Latency)
	return l
}

// Amount returns the amount of one operation, to read or to change.
func (u *Usage) Amount(o Op) *Amount {
	switch o {
	case OpRead:
		return &u.Read
	case OpWrite:
		return &u.Write
	case OpDiscard:
		return &u.Discard
	case OpFlush:
		return &u.Flush
	}
	return &u.Metadata
}

// Amount returns the amount of one operation, to read or to change.
func (s *Sample) Amount(o Op) *Amount {
	switch o {
	case OpRead:
		return &s.Read
	case OpWrite:
		return &s.Write
	case OpDiscard:
		return &s.Discard
	case OpFlush:
		return &s.Flush
	}
	return &s.Metadata
}

// Add adds o to a, latencies included.
func (a *Amount) Add(o *Amount) {
	a.Bytes += o.Bytes
	a.Ops += o.Ops
	a.Errors += o.Errors
	a.Latency.Merge(&o.Latency)
}

func (a *Amount) empty() bool { return a.Bytes == 0 && a.Ops == 0 && a.Errors == 0 }

// Add adds o to b.
func (b *BasisBytes) Add(o *BasisBytes) {
	b.Dirtier += o.Dirtier
	b.Page += o.Page
	b.Journal += o.Journal
	b.Bio += o.Bio
	b.Task += o.Task
	b.None += o.None
}

// Add adds o to u.
func (u *Usage) Add(o *Usage) {
	for _, op := range Ops {
		u.Amount(op).Add(o.Amount(op))
	}
	u.MetaReadBytes += o.MetaReadBytes
	u.MetaWriteBytes += o.MetaWriteBytes
	u.Retransmits += o.Retransmits
	u.Basis.Add(&o.Basis)
	u.BasisUnknown = u.BasisUnknown || o.BasisUnknown
}

// AddSample adds all operations of s to u.
func (u *Usage) AddSample(s *Sample) {
	for _, op := range Ops {
		u.Amount(op).Add(s.Amount(op))
	}
	u.MetaReadBytes += s.MetaReadBytes
	u.MetaWriteBytes += s.MetaWriteBytes
	u.Retransmits += s.Retransmits
	u.Basis.Add(&s.Basis)
}

// addOp adds one operation of s.
func (u *Usage) addOp(s *Sample, op Op) {
	a := s.Amount(op)
	u.Amount(op).Add(a)
	switch op {
	case OpRead:
		u.MetaReadBytes += s.MetaReadBytes
	case OpWrite:
		u.MetaWriteBytes += s.MetaWriteBytes
	}
	if a.Bytes == 0 {
		return
	}
	for _, other := range Ops {
		if other != op && s.Amount(other).Bytes != 0 {
			u.BasisUnknown = true
			return
		}
	}
	u.Basis.Add(&s.Basis)
}

// SourceUsage is a group's usage of one source at one level.
type SourceUsage struct {
	Source Source
	Level  Level
	Usage

	common common
}

// Row is one group of a Summary.
type Row struct {
	Keys    []KeyValue    // one for each key; empty for sums
	Label   string        // name of a sum, such as "(rest)"; empty for groups
	Sources []SourceUsage // wire before app, in the order of columns
	Total   Usage         // all sources at wire level
	App     Usage         // all sources at app level; never part of Total
	Groups  int           // how many groups the row stands for

	id     string
	common common
}

// ID returns 32 hex digits: equal for the same group in every interval, and
// different for different groups even if their names are equal.
func (r *Row) ID() string {
	sum := sha256.Sum256([]byte(r.id))
	return hex.EncodeToString(sum[:16])
}

// Group returns the group's identity, equal for the same group in every
// interval. It is binary data; ID is the form for documents.
func (r *Row) Group() string { return r.id }

// Idle returns the row of the same group without any usage.
func (r *Row) Idle() Row { return Row{Keys: r.Keys, Groups: r.Groups, id: r.id, common: r.common} }

// IsIdle reports whether the group did nothing.
func (r *Row) IsIdle() bool { return len(r.Sources) == 0 }

// Text returns the row's key values in one line; it is not safe for a terminal.
func (r *Row) Text() string {
	if r.Label != "" {
		return r.Label
	}
	var b strings.Builder
	for i, k := range r.Keys {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(k.Text)
	}
	return b.String()
}

// Source returns the row's usage of a source at level l, or nil if it has none.
func (r *Row) Source(s Source, l Level) *Usage {
	for i := range r.Sources {
		if r.Sources[i].Source == s && r.Sources[i].Level == l {
			return &r.Sources[i].Usage
		}
	}
	return nil
}

// usage returns the row's usage of a source and adds it if it is missing. The
// pointer is valid until the next call.
func (r *Row) usage(s Source, l Level) *SourceUsage {
	for i := range r.Sources {
		if r.Sources[i].Source == s && r.Sources[i].Level == l {
			return &r.Sources[i]
		}
	}
	r.Sources = append(r.Sources, SourceUsage{Source: s, Level: l})
	return &r.Sources[len(r.Sources)-1]
}

// addRow adds o to a sum.
func (r *Row) addRow(o *Row) {
	for i := range o.Sources {
		su := &o.Sources[i]
		r.usage(su.Source, su.Level).Usage.Add(&su.Usage)
	}
	r.Groups += o.Groups
}

// finish sorts the sources and adds them up.
func (r *Row) finish() {
	slices.SortFunc(r.Sources, func(a, b SourceUsage) int {
		return cmp.Or(-cmp.Compare(a.Level, b.Level), CompareSources(a.Source, b.Source))
	})
	r.Total, r.App, r.common = Usage{}, Usage{}, common{}
	for i := range r.Sources {
		r.common.join(&r.Sources[i].common)
		if r.Sources[i].Level == LevelApp {
			r.App.Add(&r.Sources[i].Usage)
		} else {
			r.Total.Add(&r.Sources[i].Usage)
		}
	}
}

// Summary is an interval as rows. The sum of Rows, Rest and Filtered is exactly
// Total.
type Summary struct {
	By       []Key
	Level    Level
	Sources  []Source // those attached or with samples, in the order of columns
	Rows     []Row    // sorted, cut to the top ones
	Rest     *Row     // sum of the rows below the top, or nil
	Filtered *Row     // sum of what the filters left out, or nil
	Total    Row      // leaf devices only
	// Stacked holds the rows of devices that have another local device below
	// them. Their bytes are counted there, so no sum includes these rows.
	Stacked []Row

	grouper *grouper // the filters, for single requests
	stacked bool
}

// Has reports whether a single request passes the level and the filters.
func (r *Summary) Has(io *IO) bool {
	s := &io.Sample
	level := s.Level
	if level == "" {
		level = LevelWire
	}
	if r.Level != LevelBoth && level != r.Level || s.Device.Stacked && !r.stacked {
		return false
	}
	op := Op(io.Op)
	if op == "commit" {
		op = OpFlush
	}
	return r.grouper.passes(s, op)
}

// Unattributed returns the bytes read and written at wire level whose owner is
// not known. Filters do not matter here.
func (iv *Interval) Unattributed() (bytes uint64) {
	for i := range iv.Samples {
		s := &iv.Samples[i]
		if s.Owner == OwnerUnattributed && s.Level != LevelApp && !s.Device.Stacked {
			bytes += s.Read.Bytes + s.Write.Bytes
		}
	}
	return bytes
}

type grouper struct {
	opt     GroupOptions
	host    Host
	filters [][]Filter // alternatives, by key
	byOp    bool       // samples are split by operation
	leaf    map[string]*Row
	stacked map[string]*Row
	left    Row // what the filters leave out
	buf     []byte
}

// Group turns the samples of an interval into rows. The summary keeps pointers
// to the samples, which must not change while it is in use.
func Group(iv *Interval, opt GroupOptions) *Summary {
	if len(opt.By) == 0 {
		opt.By = []Key{KeyContainer}
	}
	if opt.Level == "" {
		opt.Level = LevelWire
	}
	g := &grouper{
		opt:     opt,
		host:    iv.Host,
		leaf:    make(map[string]*Row),
		stacked: make(map[string]*Row),
		left:    Row{Label: TextFiltered, id: TextFiltered},
	}
	g.byOp = slices.Contains(opt.By, KeyOp) || slices.ContainsFunc(opt.Pins, func(p KeyValue) bool { return p.Key == KeyOp })
	stacked := opt.Stacked || slices.Contains(opt.By, KeyDevice) ||
		slices.ContainsFunc(opt.Pins, func(p KeyValue) bool { return p.Key == KeyDevice })
	seen := make(map[Key]int)
	for _, f := range opt.Filters {
		i, ok := seen[f.Key]
		if !ok {
			i = len(g.filters)
			seen[f.Key] = i
			g.filters = append(g.filters, nil)
		}
		g.filters[i] = append(g.filters[i], f)
		g.byOp = g.byOp || f.Key == KeyOp
		stacked = stacked || f.Key == KeyDevice
	}

	used := make(map[Source]bool)
	for _, s := range iv.Sources {
		if s.Attached && slices.Contains(Sources, s.Source) { // vxlan has events and no bytes
			used[s.Source] = true
		}
	}
	for i := range iv.Samples {
		s := &iv.Samples[i]
		level := s.Level
		if level == "" {
			level = LevelWire
		}
		used[s.Source] = true
		if opt.Level != LevelBoth && level != opt.Level {
			continue
		}
		if s.Device.Stacked && !stacked {
			continue
		}
		if !g.byOp {
			g.addAll(s, level)
			continue
		}
		for _, op := range Ops {
			if !s.Amount(op).empty() {
				g.addOne(s, level, op)
			}
		}
	}
	summary := g.summary(slices.SortedFunc(maps.Keys(used), CompareSources))
	summary.grouper, summary.stacked = g, stacked
	return summary
}

func (g *grouper) addAll(s *Sample, level Level) {
	if !g.passes(s, "") {
		if !s.Device.Stacked {
			g.left.usage(s.Source, level).AddSample(s)
		}
		return
	}
	u := g.row(s, "").usage(s.Source, level)
	u.AddSample(s)
	u.common.add(s)
}

func (g *grouper) addOne(s *Sample, level Level, op Op) {
	if !g.passes(s, op) {
		if !s.Device.Stacked {
			g.left.usage(s.Source, level).addOp(s, op)
		}
		return
	}
	u := g.row(s, op).usage(s.Source, level)
	u.addOp(s, op)
	u.common.add(s)
}

// row returns the row that s belongs to and creates it if needed.
func (g *grouper) row(s *Sample, op Op) *Row {
	g.buf = g.buf[:0]
	var texts [4]KeyValue
	keys := texts[:0]
	for _, k := range g.opt.By {
		text, id := g.value(s, k, op)
		keys = append(keys, KeyValue{Key: k, Text: text, ID: id})
		// The length in front keeps different lists of ids different.
		g.buf = binary.AppendUvarint(g.buf, uint64(len(id)))
		g.buf = append(g.buf, id...)
	}
	rows := g.leaf
	if s.Device.Stacked {
		rows = g.stacked
	}
	r, ok := rows[string(g.buf)]
	if !ok {
		id := string(g.buf)
		r = &Row{Keys: slices.Clone(keys), Groups: 1, id: id}
		rows[id] = r
	}
	return r
}

func (g *grouper) summary(used []Source) *Summary {
	summary := &Summary{By: g.opt.By, Level: g.opt.Level, Sources: used}
	summary.Total = Row{Label: textTotal}
	summary.Rows = g.sorted(g.leaf)
	tellServersApart(summary.Rows)
	for i := range summary.Rows {
		summary.Total.addRow(&summary.Rows[i])
	}
	summary.Rows, summary.Rest = g.cut(summary.Rows)
	if len(g.left.Sources) > 0 {
		g.left.finish()
		summary.Filtered = &g.left
		summary.Total.addRow(summary.Filtered)
	}
	summary.Total.finish()
	summary.Stacked = g.sorted(g.stacked)
	if g.opt.Top > 0 && len(summary.Stacked) > g.opt.Top {
		summary.Stacked = summary.Stacked[:g.opt.Top]
	}
	return summary
}

// cut keeps the top rows and sums up the others. Rows of bytes without an owner
// are always kept, because an operator must not overlook them.
func (g *grouper) cut(rows []Row) ([]Row, *Row) {
	if g.opt.Top <= 0 || len(rows) <= g.opt.Top {
		return rows, nil
	}
	kept := rows[:g.opt.Top:g.opt.Top]
	rest := &Row{Label: TextRest, id: TextRest}
	for i := g.opt.Top; i < len(rows); i++ {
		r := &rows[i]
		if o := r.common.identity().Owner; (o == OwnerUnattributed || o == OwnerOther) && r.Total.Bytes() > 0 {
			kept = append(kept, *r)
			continue
		}
		rest.addRow(r)
	}
	if rest.Groups == 0 {
		return kept, nil
	}
	rest.finish()
	return kept, rest
}

// Fold shortens rows to at most room lines, including the sum of the rows that
// it removed. rest is the sum that already belongs to rows, or nil.
func Fold(rows []Row, rest *Row, room int) ([]Row, *Row) {
	taken := 0
	if rest != nil {
		taken = 1
	}
	if len(rows)+taken <= room {
		return rows, rest
	}
	n := max(room-1, 1)
	if n >= len(rows) {
		return rows, rest
	}
	sum := &Row{Label: TextRest, id: TextRest}
	for i := n; i < len(rows); i++ {
		sum.addRow(&rows[i])
	}
	if rest != nil {
		sum.addRow(rest)
	}
	sum.finish()
	return rows[:n], sum
}

// tellServersApart adds the address to NFS servers of one name, such as the nodes of a
// cluster.
func tellServersApart(rows []Row) {
	ids := map[string]string{}
	twice := map[string]bool{}
	for i := range rows {
		for _, k := range rows[i].Keys {
			if k.Key != KeyNFSServer {
				continue
			}
			if id, seen := ids[k.Text]; seen && id != k.ID {
				twice[k.Text] = true
			}
			ids[k.Text] = k.ID
		}
	}
	if len(twice) == 0 {
		return
	}
	for i := range rows {
		for j := range rows[i].Keys {
			k := &rows[i].Keys[j]
			if _, address, ok := strings.Cut(k.ID, "\x00"); ok && address != "" && k.Key == KeyNFSServer && twice[k.Text] {
				k.Text += " (" + address + ")"
			}
		}
	}
}

func (g *grouper) sorted(m map[string]*Row) []Row {
	type entry struct {
		row   *Row
		value uint64
		name  string
	}
	entries := make([]entry, 0, len(m))
	for _, r := range m {
		r.finish()
		entries = append(entries, entry{row: r, value: g.opt.Sort.value(r, g.opt.Level), name: r.Text()})
	}
	slices.SortFunc(entries, func(a, b entry) int {
		order := cmp.Compare(b.value, a.value)
		if g.opt.Sort.Column == "name" {
			order = cmp.Compare(a.name, b.name)
		}
		if g.opt.Sort.Reverse {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.name, b.name), cmp.Compare(a.row.id, b.row.id))
	})
	rows := make([]Row, len(entries))
	for i, e := range entries {
		rows[i] = *e.row
	}
	return rows
}

// value returns the number that r is sorted by, larger first.
func (s Sort) value(r *Row, level Level) uint64 {
	u := &r.Total
	if level == LevelApp {
		u = &r.App
	}
	switch s.Column {
	case "", "total":
		return u.Bytes()
	case "read":
		return u.Read.Bytes
	case "write":
		return u.Write.Bytes
	case "ops":
		return u.Ops()
	case "latency":
		l := u.Latency()
		return l.Quantile(0.99)
	case "name":
		return 0
	}
	if level != LevelApp {
		level = LevelWire
	}
	if u := r.Source(Source(s.Column), level); u != nil {
		return u.Bytes()
	}
	return 0
}

// textTotal names the row of all bytes.
const textTotal = "TOTAL"

// Reserved reports whether text is the name of a row that is not a workload,
// such as "(kernel)" or "TOTAL".
func Reserved(text string) bool {
	switch text {
	case TextKernel, TextUnattributed, TextOther, TextRest, TextFiltered, textTotal:
		return true
	}
	return false
}
