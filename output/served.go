package output

import (
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Joiner books what the disks of NFS servers did for their clients on the owners there, in
// intervals that have the samples of both sides. A server knows which client an I/O is of. A
// client knows what each of its owners sent to that server. So a client's part of a server's
// bytes is divided among its owners as they sent bytes to that server and export. Clients
// that do not report keep their part, and so do those of which more than one may be meant.
// What the clients sent stays as it is: it is the same bytes at another place.
//
// A disk writes later than a client sends. So each owner has what it sent and what was not
// written yet, and a server's writes use that up. Where nothing is left (a journal, parts of
// blocks), what was sent recently counts. Reads are divided by what was recently read.
//
// Bytes and operations of a client stay exact. Latencies cannot be divided. A Joiner is not
// safe for concurrent use.
type Joiner struct {
	flows   map[string]map[flowKey]*flow // by the client's address
	n       int                          // flows
	stores  map[storeKey]*store
	exports map[Host]map[string]bool // on which a server did something for clients
	servers map[string]map[Host]bool // which servers have this client
	reports map[string]map[Host]bool // which hosts report that this is their address
	totals  map[Host]*ServedTotal
	turned  time.Time
}

// flowKey is a client's traffic to an export, as the client says it.
type flowKey struct {
	host                   Host
	client, server, export string // addresses, and a path
}

// flow is what the owners on a client sent to and received from a server.
type flow struct {
	flowKey
	write, read recent
	stores      map[*store]bool // that have what was written; nil of the next interval
}

// storeKey is what one device, or the wire, of a server did for a client.
type storeKey struct {
	host           Host
	source         Source
	level          Level
	device         Device
	client, server string // addresses
	export         string
}

// store is what was not written yet to a device, of what a client's owners sent.
type store struct {
	left recent
	used bool // since the last turn
}

// portion is an owner's number of bytes.
type portion struct {
	owner *Sample
	bytes uint64
}

// recent are bytes by owner, of this period and the one before.
type recent [2]map[SampleKey]portion

const (
	// joinPeriod is the length of a period: what a client sent is forgotten after one to two.
	// The kernel writes dirty pages after 30 seconds (vm.dirty_expire_centisecs), and a slow
	// disk needs time.
	joinPeriod = 2 * time.Minute
	joinOwners = 1 << 14 // of one flow
	joinFlows  = 1 << 14
	joinSilent = 1 << 12 // of one server
)

// NewJoiner returns a Joiner that has seen nothing yet.
func NewJoiner() *Joiner {
	return &Joiner{
		flows: map[string]map[flowKey]*flow{}, stores: map[storeKey]*store{}, exports: map[Host]map[string]bool{},
		servers: map[string]map[Host]bool{}, reports: map[string]map[Host]bool{}, totals: map[Host]*ServedTotal{},
	}
}

// ServedTotal is what the disks of a server, or its wire, did for NFS clients.
type ServedTotal struct {
	Host   Host
	Bytes  uint64            // read and written, of leaf devices
	Silent map[string]uint64 // the part that has no owner on a client, by "ADDRESS, why"
}

// Totals returns the sums of all servers so far, by name. It is empty where no client
// reported anything.
func (j *Joiner) Totals() []*ServedTotal {
	if len(j.reports) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Values(j.totals), func(a, b *ServedTotal) int { return strings.Compare(a.Host.Name, b.Host.Name) })
}

// Join changes iv. next is the interval behind it, nil where there is none: a disk reads
// before a client has the bytes.
func (j *Joiner) Join(iv, next *Interval) {
	host := func(s *Sample) Host {
		if s.Host == (Host{}) {
			return iv.Host
		}
		return s.Host
	}
	j.turn(iv.Start)
	work := map[storeKey][2]uint64{} // bytes written and read
	for i := range iv.Samples {
		s := &iv.Samples[i]
		switch {
		case s.isServed():
			k := storeOf(s, host(s))
			n := work[k]
			n[0] += s.Write.Bytes
			n[1] += s.Read.Bytes
			work[k] = n
			put(j.exports, k.host, k.export)
			put(j.servers, k.client, k.host)
		case s.isSent():
			j.sent(s, host(s))
		}
	}
	later := j.peek(next, host)
	shares := make(map[storeKey]*share, len(work))
	for k, n := range work {
		shares[k] = j.share(k, n, later)
	}
	samples := make([]Sample, 0, len(iv.Samples))
	for i := range iv.Samples {
		s := &iv.Samples[i]
		switch {
		case s.isServed():
			h := host(s)
			samples = j.divide(samples, s, h, shares[storeOf(s, h)])
		default:
			samples = append(samples, *s)
		}
	}
	iv.Samples = samples
}

// isServed tells whether s is what a server did for a client, itself and not as a client of
// another one.
func (s *Sample) isServed() bool {
	return s.Owner == OwnerNFSClient && s.Level == LevelWire && s.NFSClient.Address != "" && s.Mount.NFSServer == ""
}

// isSent tells whether s is what an owner sent to a server.
func (s *Sample) isSent() bool {
	return s.Source == SourceNFS && s.Level == LevelWire && s.Owner != OwnerNFSClient && s.NFSClient.Address != "" && s.Mount.NFSServer != ""
}

func put[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]bool{}
	}
	m[k][v] = true
}

// plain writes an IP address in the one usual way.
func plain(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	return a.Unmap().WithZone("").String()
}

func storeOf(s *Sample, h Host) storeKey {
	return storeKey{h, s.Source, s.Level, s.Device, plain(s.NFSClient.Address), plain(s.Mount.NFSAddress), s.Mount.NFSExport}
}

func flowOf(s *Sample, h Host) flowKey {
	return flowKey{h, plain(s.NFSClient.Address), plain(s.Mount.NFSAddress), s.Mount.NFSExport}
}

// ownerOf is s without everything but its owner.
func ownerOf(s *Sample, h Host) *Sample {
	return &Sample{
		Owner: s.Owner, Project: s.Project, ProjectRule: s.ProjectRule, NamedBy: s.NamedBy, ProjectNamedBy: s.ProjectNamedBy,
		Service: s.Service, Unit: s.Unit, Container: s.Container, Pod: s.Pod, Cgroup: s.Cgroup, Process: s.Process,
		NFSClient: NFSClient{Host: h},
	}
}

// turn begins a new period where it is time.
func (j *Joiner) turn(now time.Time) {
	passed := now.Sub(j.turned)
	if !j.turned.IsZero() && passed < joinPeriod {
		return
	}
	j.turned = now
	unused := map[*store]bool{}
	for k, st := range j.stores {
		if st.left.turn(passed); !st.used {
			delete(j.stores, k)
			unused[st] = true
		}
		st.used = false
	}
	for client, flows := range j.flows {
		for k, f := range flows {
			f.write.turn(passed)
			f.read.turn(passed)
			maps.DeleteFunc(f.stores, func(st *store, _ bool) bool { return unused[st] })
			if f.write.empty() && f.read.empty() {
				delete(flows, k)
				j.n--
			}
		}
		if len(flows) == 0 {
			delete(j.flows, client)
		}
	}
}

func (r *recent) turn(passed time.Duration) {
	r[1] = r[0]
	if passed >= 2*joinPeriod {
		r[1] = nil
	}
	r[0] = nil
}

func (r *recent) empty() bool { return len(r[0]) == 0 && len(r[1]) == 0 }

// add adds bytes of an owner. Of very many owners the rest is (other).
func (r *recent) add(k SampleKey, owner *Sample, bytes uint64) {
	if bytes == 0 {
		return
	}
	if r[0] == nil {
		r[0] = map[SampleKey]portion{}
	}
	if _, known := r[0][k]; !known && len(r[0]) >= joinOwners {
		owner = &Sample{Owner: OwnerOther, NFSClient: owner.NFSClient}
		k = KeyOfSample(owner)
	}
	p := r[0][k]
	r[0][k] = portion{owner, p.bytes + bytes}
}

// join adds the bytes of others.
func (r *recent) join(o *recent) {
	for _, m := range o {
		for k, p := range m {
			r.add(k, p.owner, p.bytes)
		}
	}
}

// sent books what an owner on a client sent.
func (j *Joiner) sent(s *Sample, h Host) {
	k := flowOf(s, h)
	put(j.reports, k.client, h)
	f := j.flows[k.client][k]
	if f == nil {
		if j.n >= joinFlows {
			return // its client's part stays with the client
		}
		f = &flow{flowKey: k, stores: map[*store]bool{}}
		if j.flows[k.client] == nil {
			j.flows[k.client] = map[flowKey]*flow{}
		}
		j.flows[k.client][k] = f
		j.n++
	}
	owner := ownerOf(s, h)
	id := KeyOfSample(owner)
	f.write.add(id, owner, s.Write.Bytes)
	f.read.add(id, owner, s.Read.Bytes)
	for st := range f.stores {
		st.left.add(id, owner, s.Write.Bytes)
	}
}

// peek collects what clients send and receive in the next interval.
func (j *Joiner) peek(next *Interval, host func(*Sample) Host) map[string]map[flowKey]*flow {
	later := map[string]map[flowKey]*flow{}
	if next == nil {
		return later
	}
	for i := range next.Samples {
		s := &next.Samples[i]
		if !s.isSent() {
			continue
		}
		h := host(s)
		k := flowOf(s, h)
		put(j.reports, k.client, h)
		if later[k.client] == nil {
			later[k.client] = map[flowKey]*flow{}
		}
		f := later[k.client][k]
		if f == nil {
			f = &flow{flowKey: k}
			later[k.client][k] = f
		}
		owner := ownerOf(s, h)
		id := KeyOfSample(owner)
		f.write.add(id, owner, s.Write.Bytes)
		f.read.add(id, owner, s.Read.Bytes)
	}
	return later
}

// Why a client's part has no owner on the client.
const (
	silentHost    = "does not report"
	silentTwice   = "an address of several hosts that report"
	silentServer  = "reports no mount of this server"
	silentWhich   = "has mounts of several servers, and which of them is this one is not known"
	silentServers = "a client of several servers, and which of them is meant is not known"
	silentExport  = "reports no mount of this export"
	silentIdle    = "reports nothing that it sent here"
)

// matching returns what a client sent that may have become what a server did; or why that
// cannot be told. later is what it sends in the next interval.
func (j *Joiner) matching(k storeKey, later map[flowKey]*flow) (found []*flow, why string) {
	hosts := j.reports[k.client]
	switch {
	case len(hosts) == 0:
		return nil, silentHost
	case len(hosts) > 1:
		return nil, silentTwice
	case k.server == "" && len(j.servers[k.client]) > 1:
		return nil, silentServers
	}
	servers, here, best := map[string]bool{}, false, 0
	for _, flows := range []map[flowKey]*flow{j.flows[k.client], later} {
		for fk, f := range flows {
			servers[fk.server] = true
			if k.server != "" && fk.server != "" && fk.server != k.server {
				continue
			}
			here = true
			class := j.exportClass(k, fk.export)
			switch {
			case class == 0 || class < best:
				continue
			case class > best:
				best, found = class, nil
			}
			found = append(found, f)
		}
	}
	switch {
	case len(servers) == 0:
		return nil, silentIdle
	case k.server == "" && len(servers) > 1:
		return nil, silentWhich
	case !here:
		return nil, silentServer
	case len(found) == 0:
		return nil, silentExport
	}
	return found, ""
}

// exportClass tells whether a mounted path leads to the export of k, and not to another one
// of its server: 0 if not, else more where it is surer.
func (j *Joiner) exportClass(k storeKey, mounted string) int {
	mine := exportRank(k.export, mounted)
	for other := range j.exports[k.host] {
		if other != k.export && exportRank(other, mounted) >= mine {
			return 0 // or it cannot be told
		}
	}
	return mine / rankBelow
}

// Ranks of a mounted path for an export: the class, and how long the match is.
const (
	rankBelow   = 1 << 13 // more than the longest path
	rankUnknown = 1 * rankBelow
	rankRoot    = 2 * rankBelow
	rankPseudo  = 3 * rankBelow
	rankPath    = 4 * rankBelow
)

// exportRank tells how well a mounted path fits to an exported directory; 0 is not at all.
// Of NFSv4 the path begins at the server's pseudo root, which may be any directory above the
// export, or the export itself (fsid=0 in exports(5)). The longest match is the best one.
func exportRank(export, mounted string) int {
	length := func(dir string) int { return min(len(dir), rankBelow-1) }
	inside := func(dir string) bool {
		return dir == "/" || mounted == dir || strings.HasPrefix(mounted, dir+"/")
	}
	switch {
	case mounted == "":
		return 0
	case export == "":
		return rankUnknown // one of several in a file system
	case inside(export):
		return rankPath + length(export)
	}
	for rest := export; ; {
		i := strings.IndexByte(rest[1:], '/')
		if i < 0 {
			return rankRoot
		}
		if rest = rest[1+i:]; inside(rest) {
			return rankPseudo + length(rest)
		}
	}
}

// share says which owners a client's bytes are divided among.
type share struct {
	write, read []portion // in a stable order
	silent      string    // why there is none
}

// share takes n bytes written and read from what the client sent.
func (j *Joiner) share(k storeKey, n [2]uint64, later map[string]map[flowKey]*flow) *share {
	flows, why := j.matching(k, later[k.client])
	if why != "" {
		return &share{silent: why}
	}
	var write, read, laterWrite, laterRead recent
	for _, f := range flows {
		if f.stores != nil {
			write.join(&f.write)
			read.join(&f.read)
		} else {
			laterWrite.join(&f.write)
			laterRead.join(&f.read)
		}
	}
	read.join(&laterRead)
	st := j.stores[k]
	if st == nil {
		st = &store{}
		j.stores[k] = st
	}
	st.used = true
	for _, f := range flows {
		if f.stores != nil && !f.stores[st] {
			f.stores[st] = true
			st.left.join(&f.write)
		}
	}
	if write.empty() {
		write = laterWrite
	}
	sh := &share{write: st.take(n[0], &write), read: read.portions()}
	// Writers cause reads as well: of the rest of a page that is written in part, and of metadata.
	if len(sh.read) == 0 {
		sh.read = write.portions()
	}
	if len(sh.write) == 0 {
		sh.write = read.portions()
	}
	if len(sh.write) == 0 {
		sh.silent = silentIdle
	}
	return sh
}

// portions returns the bytes of each owner, in a stable order.
func (r *recent) portions() (list []portion) {
	all := map[SampleKey]portion{}
	for _, m := range r {
		for k, p := range m {
			all[k] = portion{p.owner, all[k].bytes + p.bytes}
		}
	}
	for _, p := range all {
		list = append(list, p)
	}
	slices.SortFunc(list, comparePortions)
	return list
}

func comparePortions(a, b portion) int {
	if a.bytes != b.bytes {
		if a.bytes > b.bytes {
			return -1
		}
		return 1
	}
	return strings.Compare(fmt.Sprint(a.owner.Project, a.owner.Container.ID, a.owner.Cgroup.ID, a.owner.Process.PID),
		fmt.Sprint(b.owner.Project, b.owner.Container.ID, b.owner.Cgroup.ID, b.owner.Process.PID))
}

func sumOf(list []portion) (sum uint64) {
	for _, p := range list {
		sum += p.bytes
	}
	return sum
}

// take uses up n bytes of what was not written yet, and returns whose they are. What
// exceeds it is divided by what was sent recently.
func (s *store) take(n uint64, sent *recent) []portion {
	left := s.left.portions()
	total := sumOf(left)
	if n == 0 || total == 0 {
		return sent.portions()
	}
	if n < total {
		taken := parts(n, left)
		for i, p := range left {
			s.left.remove(KeyOfSample(p.owner), taken[i])
			left[i].bytes = taken[i]
		}
		return left
	}
	s.left = recent{}
	rest := sent.portions()
	if len(rest) == 0 {
		return left
	}
	for i, more := range parts(n-total, rest) {
		left = append(left, portion{rest[i].owner, more})
	}
	return merged(left)
}

// merged adds up the bytes of an owner that is there twice.
func merged(list []portion) (all []portion) {
	at := map[SampleKey]int{}
	for _, p := range list {
		k := KeyOfSample(p.owner)
		if i, ok := at[k]; ok {
			all[i].bytes += p.bytes
			continue
		}
		at[k] = len(all)
		all = append(all, p)
	}
	return all
}

// remove takes bytes from an owner, the oldest first.
func (r *recent) remove(k SampleKey, bytes uint64) {
	for i := len(r) - 1; i >= 0; i-- {
		p, ok := r[i][k]
		if !ok {
			continue
		}
		n := min(bytes, p.bytes)
		bytes -= n
		if p.bytes -= n; p.bytes == 0 {
			delete(r[i], k)
		} else {
			r[i][k] = p
		}
	}
}

// parts divides n in proportion to bytes. The sum of the parts is n.
func parts(n uint64, by []portion) []uint64 {
	list := make([]uint64, len(by))
	total := sumOf(by)
	if total == 0 {
		return list
	}
	var sum, before uint64
	for i, p := range by {
		sum += p.bytes
		hi, lo := bits.Mul64(n, sum)
		upTo, _ := bits.Div64(hi, lo, total) // sum <= total, so it fits
		list[i] = upTo - before
		before = upTo
	}
	return list
}

// divide appends to list what s becomes: a sample for each owner, and the rest of the client.
func (j *Joiner) divide(list []Sample, s *Sample, h Host, sh *share) []Sample {
	t := j.totals[h]
	if t == nil {
		t = &ServedTotal{Host: h, Silent: map[string]uint64{}}
		j.totals[h] = t
	}
	if !s.Device.Stacked {
		t.Bytes += s.Read.Bytes + s.Write.Bytes
	}
	if sh.silent != "" {
		rest := *s
		if len(j.reports) > 0 { // else this is about servers alone
			rest.NFSClient.Silent = sh.silent
		}
		if n := s.Read.Bytes + s.Write.Bytes; n > 0 && !s.Device.Stacked {
			who := s.NFSClient.Address + ", " + sh.silent
			if _, known := t.Silent[who]; !known && len(t.Silent) >= joinSilent {
				who = "others"
			}
			t.Silent[who] += n
		}
		return append(list, rest)
	}
	byOwner := map[SampleKey]int{}
	begin := len(list)
	of := func(owner *Sample) *Sample {
		k := KeyOfSample(owner)
		i, ok := byOwner[k]
		if !ok {
			i = len(list)
			byOwner[k] = i
			one := *owner
			one.Host, one.Source, one.Level, one.Device, one.Mount, one.NFSClient = s.Host, s.Source, s.Level, s.Device, s.Mount, s.NFSClient
			one.NFSClient.Host = owner.NFSClient.Host
			list = append(list, one)
		}
		return &list[i]
	}
	rest := *s
	for _, v := range []struct {
		by     []portion
		from   func(*Sample) *Amount
		amount func(*Sample) []*uint64
	}{
		{sh.write, func(o *Sample) *Amount { return &o.Write }, func(o *Sample) []*uint64 { return []*uint64{&o.MetaWriteBytes} }},
		{sh.read, func(o *Sample) *Amount { return &o.Read }, func(o *Sample) []*uint64 { return []*uint64{&o.MetaReadBytes} }},
		{sh.write, func(o *Sample) *Amount { return &o.Flush }, nil},
	} {
		if len(v.by) == 0 {
			continue
		}
		numbers := func(o *Sample) []*uint64 {
			a := v.from(o)
			all := []*uint64{&a.Bytes, &a.Ops, &a.Errors}
			if v.amount != nil {
				all = append(all, v.amount(o)...)
			}
			return all
		}
		whole := numbers(&rest)
		for i := range whole {
			for p, n := range parts(*whole[i], v.by) {
				if n > 0 {
					*numbers(of(v.by[p].owner))[i] += n
				}
			}
			*whole[i] = 0
		}
		if len(v.by) == 1 {
			v.from(of(v.by[0].owner)).Latency = v.from(&rest).Latency
		}
		v.from(&rest).Latency = Latency{}
	}
	divideBasis(list[begin:], &rest.Basis)
	rest.Basis = BasisBytes{}
	if rest.Read.Ops+rest.Write.Ops+rest.Discard.Ops+rest.Flush.Ops+rest.Metadata.Ops+rest.Retransmits > 0 || rest.Discard.Bytes > 0 {
		list = append(list, rest) // such as discards, of which a client knows nothing
	}
	return list
}

// divideBasis divides how owners were found in proportion to the bytes of the samples.
func divideBasis(list []Sample, b *BasisBytes) {
	by := make([]portion, len(list))
	for i := range list {
		by[i].bytes = list[i].Read.Bytes + list[i].Write.Bytes
	}
	fields := func(b *BasisBytes) []*uint64 {
		return []*uint64{&b.Dirtier, &b.Page, &b.Journal, &b.Bio, &b.Task, &b.None}
	}
	for f, whole := range fields(b) {
		for i, n := range parts(*whole, by) {
			*fields(&list[i].Basis)[f] += n
		}
	}
}
