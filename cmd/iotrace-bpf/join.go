package main

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// joiner makes samples from what the tracer counted and what the resolver knows:
// the only place where the two meet.
type joiner struct {
	resolver *attribute.Resolver
	devices  *tracer.Devices
	comm     func(pid uint32) string
	mount    func(dev tracer.Dev, cgroup uint64) output.Mount
	byMount  bool // mounts are asked for

	client func(cgroup uint64) output.NFSClient // of this host's NFS server
	export func(k *tracer.Key) string           // the exported directory of a client's I/O; "" when not known
	source func(dev tracer.Dev) string          // this host's address, as the server of an NFS mount sees it; "" when not known
	listen func(client string) string           // this host's address to which a client of its NFS server talks; "" when not known
	file   func(id tracer.FileID, cgroup uint64) (f output.File, dev tracer.Dev)
	byFile bool // all rows say which file they are of
}

// sampleKey identifies a sample, which has all operations and bases in it.
type sampleKey struct {
	source     tracer.Source
	app        bool
	cgroup     uint64
	dev, fsdev tracer.Dev
	pid        uint32
	export     tracer.Export
	file       tracer.FileID
	none       bool // no data of a file: see output.FileNone
}

func (j *joiner) keyOf(k *tracer.Key) sampleKey {
	none := j.byFile && k.File == tracer.FileUnknown && k.Op != tracer.Read && k.Op != tracer.Write
	return sampleKey{k.Source, k.App, k.Cgroup, k.Dev, k.FSDev, k.PID, k.Export, k.File, none}
}

// samples joins the rows of an interval, in a stable order. Who was renamed in it has the
// name of its start.
func (j *joiner) samples(rows []tracer.Row, start time.Time) []output.Sample {
	seen := map[tracer.Dev]tracer.Device{}
	index := make(map[sampleKey]int, len(rows))
	list := make([]output.Sample, 0, len(rows))
	for i := range rows {
		r := &rows[i]
		k := j.keyOf(&r.Key)
		at, ok := index[k]
		if !ok {
			at = len(list)
			index[k] = at
			list = append(list, j.identity(&r.Key, start, seen))
		}
		add(&list[at], r)
	}
	slices.SortFunc(list, func(a, b output.Sample) int {
		return cmp.Or(cmp.Compare(a.Cgroup.ID, b.Cgroup.ID), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.Device.ID, b.Device.ID), cmp.Compare(a.Process.PID, b.Process.PID),
			cmp.Compare(a.NFSClient.Address, b.NFSClient.Address), cmp.Compare(a.Mount.NFSExport, b.Mount.NFSExport),
			cmp.Compare(a.File.Kind, b.File.Kind), cmp.Compare(a.File.Path, b.File.Path), cmp.Compare(a.File.Inode, b.File.Inode))
	})
	return list
}

// add books a row on its sample.
func add(s *output.Sample, r *tracer.Row) {
	var a *output.Amount
	switch r.Op {
	case tracer.Retransmit:
		s.Retransmits += r.Ops
		return
	case tracer.Read:
		a = &s.Read
	case tracer.Write:
		a = &s.Write
	case tracer.Discard:
		a = &s.Discard
	case tracer.Flush:
		a = &s.Flush
	default:
		a = &s.Metadata
	}
	a.Bytes += r.Bytes
	a.Ops += r.Ops
	a.Errors += r.Errors
	if len(r.Latency.Buckets) > 0 {
		l := output.Latency{Sum: r.Latency.Sum, Max: r.Latency.Max}
		for _, b := range r.Latency.Buckets {
			l.Buckets = append(l.Buckets, output.Bucket(b))
		}
		a.Latency.Merge(&l)
	}
	if r.Op != tracer.Read && r.Op != tracer.Write {
		return
	}
	if r.Meta {
		if r.Op == tracer.Read {
			s.MetaReadBytes += r.Bytes
		} else {
			s.MetaWriteBytes += r.Bytes
		}
	}
	switch r.Basis {
	case tracer.ByDirtier:
		s.Basis.Dirtier += r.Bytes
	case tracer.ByPage:
		s.Basis.Page += r.Bytes
	case tracer.ByJournal:
		s.Basis.Journal += r.Bytes
	case tracer.ByBio:
		s.Basis.Bio += r.Bytes
	case tracer.ByTask:
		s.Basis.Task += r.Bytes
	default:
		s.Basis.None += r.Bytes
	}
}

// identity returns an empty sample with the key's owner, device and mount, and the names
// of a time. seen has the devices that were looked up already: each lookup takes some
// twenty system calls.
func (j *joiner) identity(k *tracer.Key, when time.Time, seen map[tracer.Dev]tracer.Device) output.Sample {
	s := output.Sample{Source: output.Source(k.Source.String()), Level: output.LevelWire}
	if k.App {
		s.Level = output.LevelApp
	}
	switch k.Cgroup {
	case tracer.CgroupNone:
		s.Owner = output.OwnerUnattributed
	case tracer.CgroupKernel:
		s.Owner = output.OwnerKernel
	case tracer.CgroupOther:
		s.Owner = output.OwnerOther
	default:
		if tracer.IsClient(k.Cgroup) {
			s.Owner, s.NFSClient = output.OwnerNFSClient, j.client(k.Cgroup)
		} else {
			j.name(&s, k.Cgroup, when)
		}
	}
	if k.PID != 0 {
		s.Process = output.Process{PID: k.PID, Name: j.comm(k.PID)}
	}
	fsdev := k.FSDev
	switch {
	case k.File != tracer.FileUnknown:
		s.File, fsdev = j.file(k.File, k.Cgroup)
	case !j.byFile:
	case k.Op == tracer.Read || k.Op == tracer.Write:
		s.File.Kind = output.FileUnknown
	default:
		s.File.Kind = output.FileNone
	}
	s.Device.ID = k.Dev.String()
	if k.Source == tracer.Block {
		d, ok := seen[k.Dev]
		if !ok {
			d = j.devices.Device(k.Dev)
			seen[k.Dev] = d
		}
		s.Device.Name, s.Device.Alias, s.Device.Stacked = d.Name, d.Alias, d.Stacked
		dev := k.Dev
		if d.Head != 0 {
			dev = d.Head
			s.Device.ID = dev.String()
		}
		switch {
		case fsdev != 0:
			s.Mount = j.mount(fsdev, k.Cgroup)
		case j.byMount:
			// Direct I/O names no file system. Where one is mounted on the very device of the
			// request, the device has no partitions in use: it is the only one.
			s.Mount = j.mount(dev, k.Cgroup)
		}
	} else {
		s.Mount = j.mount(k.Dev, k.Cgroup)
	}
	if k.Source == tracer.NFSD || tracer.IsClient(k.Cgroup) {
		// Of what clients do on a file system of another server, this is the directory here.
		s.Mount.NFSServer, s.Mount.NFSAddress, s.Mount.NFSPort = "", j.listen(s.NFSClient.Address), 0
		s.Mount.NFSExport = j.export(k)
	}
	if k.Source == tracer.NFS && !tracer.IsClient(k.Cgroup) {
		s.NFSClient.Address = j.source(k.Dev)
	}
	return s
}

// ownerKinds translates between the two packages, which use the same words.
var ownerKinds = map[attribute.Kind]output.OwnerKind{
	attribute.KindContainer: output.OwnerContainer,
	attribute.KindPod:       output.OwnerPod,
	attribute.KindHelper:    output.OwnerHelper,
	attribute.KindUnit:      output.OwnerUnit,
	attribute.KindSession:   output.OwnerSession,
	attribute.KindMachine:   output.OwnerMachine,
	attribute.KindCgroup:    output.OwnerCgroup,
	attribute.KindUnknown:   output.OwnerCgroup,
}

// name sets the owner of a sample to that of a cgroup.
func (j *joiner) name(s *output.Sample, cgroup uint64, when time.Time) {
	o := j.resolver.OwnerAt(cgroup, when)
	s.Owner = ownerKinds[o.Kind]
	s.Cgroup = output.Cgroup{ID: cgroup, Path: o.Path, Gone: o.Gone && o.Path == ""}
	s.NamedBy, s.ProjectNamedBy = o.NamedBy, o.ProjectNamedBy
	s.Project, s.ProjectRule, s.Service, s.Unit = o.Project, o.ProjectRule, o.Service, o.Unit
	s.Container = output.Container{
		ID: o.ContainerID, Name: o.ContainerName, Runtime: o.Runtime,
		Image: o.Image, ImageTag: o.ImageTag, Digest: o.ImageDigest, Labels: o.Labels, Parent: o.Parent, Outer: o.Outer, OuterName: o.OuterName,
	}
	s.Pod = output.Pod{Name: o.Pod, Namespace: o.Namespace, UID: o.PodUID}
}

// unnamed counts the cgroups with I/O and without a name: those whose path is not
// known, and containers and pods that no runtime has named yet.
func unnamed(samples []output.Sample) uint64 {
	found := map[uint64]struct{}{}
	for i := range samples {
		s := &samples[i]
		bare := s.Cgroup.Path == "" || s.Owner == output.OwnerContainer && s.Container.Name == "" || s.Owner == output.OwnerPod && s.Pod.Name == ""
		if s.Cgroup.ID != 0 && bare {
			found[s.Cgroup.ID] = struct{}{}
		}
	}
	return uint64(len(found))
}

// events makes an event of each record and adds them to the interval.
func (j *joiner) events(iv *output.Interval, records []tracer.Record) {
	if len(records) == 0 {
		return
	}
	seen := map[tracer.Dev]tracer.Device{}
	type named struct {
		output.Sample
		renamed bool
	}
	known := map[sampleKey]*named{} // naming each single I/O would take system calls
	ios := make([]output.IO, len(records))
	iv.Events = slices.Grow(iv.Events, len(records))
	for i := range records {
		r := &records[i]
		k := j.keyOf(&r.Key)
		identity := known[k]
		if identity == nil {
			identity = &named{Sample: j.identity(&r.Key, r.Time, seen)}
			identity.renamed = identity.Container.ID != "" && j.resolver.Owner(r.Cgroup).Renamed
			known[k] = identity
		}
		io := &ios[i]
		io.Sample = identity.Sample
		if identity.renamed {
			io.Sample.Container.Name = j.resolver.OwnerAt(r.Cgroup, r.Time).ContainerName
		}
		io.Op, io.Basis = r.Op.String(), r.Basis.String()
		io.Offset, io.Latency, io.Error = r.Offset, uint64(r.Latency), r.Error
		row := tracer.Row{Key: r.Key, Bytes: r.Bytes, Ops: 1}
		if r.Error {
			row.Errors = 1
		}
		add(&io.Sample, &row)
		iv.Events = append(iv.Events, output.Event{Time: r.Time, Dataset: output.DatasetEvent, Action: io.Op, IO: io})
	}
}

// sourceStatus describes a source in an interval.
func sourceStatus(st tracer.Status) output.SourceStatus {
	var limitations []string
	for _, l := range st.Limitations {
		limitations = append(limitations, l.Text)
	}
	return output.SourceStatus{
		Source: output.Source(st.Source), Attached: st.Attached, Hook: strings.Join(st.Hooks, ", "),
		Reason: st.Reason, Limitations: limitations,
	}
}

// pidText names a process whose name is not known.
func pidText(pid uint32) string { return "pid " + strconv.FormatUint(uint64(pid), 10) }
