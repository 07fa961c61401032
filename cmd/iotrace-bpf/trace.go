package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/file"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// runTrace is the main job: it traces, names and shows.
func runTrace(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var opt options
	if err := opt.parse(args); err != nil {
		return err
	}
	if opt.version {
		return writeVersion(stdout)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // a quarter less memory at the peak, for CPU time too small to see
	}
	if opt.cpuProfile != "" {
		f, err := file.Open(opt.cpuProfile, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return fmt.Errorf("writing the profile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if opt.endWithStdin {
		var end context.CancelFunc
		ctx, end = context.WithCancel(ctx)
		defer end()
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			end()
		}()
	}
	stdoutFile, _ := stdout.(*os.File)
	opt.screen = stdoutFile != nil && opt.wantsScreen(stdoutFile)
	messages := &messageLines{lines: make(chan string, 64)}
	if opt.screen {
		stderr = messages // the screen has the terminal
	}
	opt.flags.sayWarnings(stderr)
	if len(opt.hosts) > 0 {
		return opt.runHosts(ctx, stdout, stdoutFile, stderr, messages.lines)
	}
	if opt.record == recordStdout {
		if err := notTerminal(stdout); err != nil {
			return err
		}
	}
	s, err := openSession(ctx, &opt, stderr)
	if err != nil {
		return err
	}
	defer s.Close()
	if opt.screen {
		return s.runScreen(ctx, stdoutFile, messages.lines)
	}
	main, err := opt.mainSink(stdout, s.host)
	if err != nil {
		return err
	}
	return s.runWith(ctx, main, nil)
}

// runWith writes to main and to the other outputs until the end.
func (s *session) runWith(ctx context.Context, main sink, record *recordSwitch) error {
	out, err := s.opt.openSinks(ctx, main, s.host, live, s.log)
	if err != nil {
		return err
	}
	if record != nil {
		out.add("the recording of the screen", record)
	}
	absent := slices.ContainsFunc(s.tracer.Status(), func(st tracer.Status) bool { return !st.Attached })
	if err := errors.Join(dropPrivileges(keptCapabilities(s.mayWatch(ctx), absent)), denySystemCalls()); err != nil {
		s.log.Warn("keeping privileges that are not needed any more", "error", err)
	}
	if s.opt.readyFile != "" {
		// A test that waits for the file may start containers that live too short to wait for.
		asked, cancel := context.WithTimeout(ctx, readyNames)
		_ = s.resolver.WaitAnswered(asked)
		cancel()
	}
	return errors.Join(s.run(ctx, out), out.Close())
}

// swarmAnswer is how long an engine may take to say that it is in no swarm, before it is
// assumed that it is in one.
const swarmAnswer = 500 * time.Millisecond

// mayWatch tells whether overlay devices may be watched later: their capabilities cannot
// be had back. --vxlan on the command line or in the environment keeps them for a swarm
// that is joined later.
func (s *session) mayWatch(ctx context.Context) bool {
	if !s.opt.vxlan || s.opt.flags.Changed("vxlan") {
		return s.opt.vxlan
	}
	ctx, cancel := context.WithTimeout(ctx, swarmAnswer)
	defer cancel()
	if s.resolver.MaySwarm(ctx) {
		return true
	}
	s.vxlan.giveUp()
	return false
}

// runScreen traces until the user leaves the screen.
func (s *session) runScreen(ctx context.Context, stdout *os.File, messages <-chan string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	show := &screenSink{intervals: make(chan *output.Interval), gone: ctx.Done()}
	ended := make(chan error, 1)
	record := &recordSwitch{opt: s.opt, host: s.host}
	go func() { ended <- s.runWith(ctx, show, record) }()
	opt := s.opt.screenOptions(s.host, live, stdout)
	opt.Notices, opt.Record = messages, s.opt.recordFrom(record)
	if !s.opt.wantsFiles() {
		opt.Files = s.countFiles
	}
	err := terminal.RunScreen(ctx, show.intervals, opt)
	cancel()
	return errors.Join(err, <-ended)
}

// logger writes what happens to standard error, never to standard output.
func (o *options) logger(stderr io.Writer) *slog.Logger {
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
}

// names says where to ask for names, and where to log what cannot be asked.
func (o *options) names(log *slog.Logger) attribute.Options {
	opts := attribute.Options{
		DockerSockets: o.dockerHosts, CRISockets: o.criSockets, ContainerdSockets: o.containerdSockets,
		OnlyListedSockets: o.onlyListedSockets, ProjectLabel: o.projectLabel, CallTime: o.callTime, Log: log,
	}
	if o.view != nil {
		opts = o.view.attributeOptions(opts)
	}
	return opts
}

// session is a tracer with names.
type session struct {
	opt        *options
	log        *slog.Logger
	tracer     *tracer.Tracer
	resolver   *attribute.Resolver
	joiner     joiner
	daemons    map[tracer.Dev]uint32 // of FUSE file systems
	host       output.Host
	sights     []sight // what a container shows of the host; nil outside of one
	cost       selfCost
	asked      map[uint64]bool // containers whose name was waited for once
	records    *recordBuffer   // nil without --events
	parts      *output.Merger  // of the unfinished interval; nil where exporters have none of their own
	shown      bool            // whether an interval was shown yet
	vxlan      vxlanEvents
	warned     map[string]bool // types of file systems that are not traced
	served     *attribute.Served
	filesSince atomic.Pointer[time.Time] // when rows began to be kept by file; nil or zero: they are not
}

// openSession attaches everything. It walks the tree of cgroups after the
// tracepoints are attached, so that no cgroup is missed in between.
func openSession(ctx context.Context, opt *options, stderr io.Writer) (_ *session, err error) {
	if opt.excludeSelf && !firstPIDs() {
		return nil, &exitError{exitUnsupported, errors.New("--exclude-self: in a pid namespace of its own, this program cannot tell which I/O is its own")}
	}
	if opt.view, err = viewHost(opt.hostRoot); err != nil {
		return nil, err
	}
	tracer.SetHostRoot(opt.view.root, opt.view.proc)
	s := &session{opt: opt, log: opt.logger(stderr), asked: map[uint64]bool{}, warned: map[string]bool{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	s.resolver, err = attribute.NewResolver(opt.names(s.log))
	if err != nil {
		return nil, err
	}
	s.resolver.Start(ctx)
	s.served = attribute.NewServed(opt.names(s.log), !opt.noDNS)
	topt := tracer.Options{
		Sources:       opt.sources,
		Hierarchy:     s.resolver.Hierarchy().ID,
		ByProcess:     opt.wants(output.KeyProcess) || opt.detailed() || opt.excludeSelf,
		ByMount:       opt.wants(output.KeyMount) || opt.wants(output.KeyNFSExport) || opt.detailed(),
		ByFile:        opt.wantsFiles() || opt.screen,
		Latency:       opt.latency,
		App:           opt.group.Level != output.LevelWire,
		CgroupCreated: s.resolver.CgroupCreated,
		CgroupRemoved: s.resolver.CgroupRemoved,
		MaxGroups:     opt.maxGroups,
		RecordRing:    uint32(opt.eventBuffer),
		Log:           s.log,
	}
	if opt.events {
		s.records = newRecordBuffer()
		topt.Records = s.records.add
		topt.LatencyOfRecords = !opt.detailed() && opt.prometheus == "" // the outputs that have totals as well
	}
	slow := newSlowStart(stderr, startPatience)
	defer slow.end()
	topt.Step = slow.begin
	if s.tracer, err = tracer.New(topt); err != nil {
		return nil, err
	}
	if opt.wantsFiles() {
		if err := s.countFiles(true); err != nil {
			return nil, err
		}
	}
	slow.begin("looking at the cgroups of this host")
	if opt.group.Level == output.LevelApp {
		if err := countsApp(s.tracer.Status()); err != nil {
			return nil, err
		}
	}
	if err := s.resolver.Walk(); err != nil {
		s.log.Warn("walking the cgroups", "error", err)
	}
	s.joiner = joiner{resolver: s.resolver, devices: s.tracer.Devices(), comm: s.comm, mount: s.mount, byMount: topt.ByMount, client: s.client, export: s.export, source: s.source, listen: s.listen, file: s.file}
	s.lookAtHost()
	s.hidden()
	go debug.FreeOSMemory() // tens of MiB of the kernel's types are not needed any more
	if opt.vxlan {
		s.vxlan.prepare(ctx, s)
	}
	return s, nil
}

// countsApp returns an error if no source counts what programs read and write: a table
// would stay empty.
func countsApp(status []tracer.Status) error {
	var why []string
	for _, st := range status {
		missing := slices.IndexFunc(st.Limitations, func(l tracer.Limitation) bool { return strings.Contains(l.Text, "--level app") })
		switch {
		case st.Source == tracer.Block.String():
			why = append(why, "block counts requests to devices only")
		case st.Source == tracer.NFSD.String():
			why = append(why, "nfsd counts what its clients ask for, and no programs of this host")
		case !st.Attached:
			why = append(why, st.Source+" is absent: "+st.Reason)
		case missing >= 0:
			why = append(why, st.Source+": "+st.Limitations[missing].Text)
		default:
			return nil
		}
	}
	return &exitError{exitUnsupported, errors.New("--level app: no source can count what programs read and write here (" + strings.Join(why, "; ") + "). Leave it out, or use --level both")}
}

// lookAtHost says which host this is, and warns of what a container hides.
func (s *session) lookAtHost() {
	view := s.opt.view
	var known bool
	s.host, known = view.describe(s.opt.hostName)
	if !view.contained() {
		return
	}
	s.sights = view.sights(s.resolver.Hierarchy(), known, s.opt.vxlan)
	for _, l := range limitations(s.sights) {
		s.log.Warn("in this container: "+l.Text, "lifted by", l.Remedy)
	}
}

// hidden returns what no source can see on this host, and warns of it the first time.
func (s *session) hidden() []string {
	var list []string
	for _, l := range limitations(s.sights) {
		list = append(list, l.Text)
	}
	for _, u := range s.untraced() {
		if !s.warned[u.FSType] {
			s.warned[u.FSType] = true
			s.log.Warn(untracedText(u))
		}
		list = append(list, untracedText(u))
	}
	return list
}

// untraced returns the mounted network file systems that no source counts here.
func (s *session) untraced() []attribute.Untraced {
	return withoutTraced(s.resolver.Untraced(), s.tracer.Status())
}

// withoutTraced leaves out the file systems that have a source, unless this kernel does
// not offer it. A source that was not asked for is not missed.
func withoutTraced(list []attribute.Untraced, sources []tracer.Status) []attribute.Untraced {
	missing := func(source output.Source) bool {
		return slices.ContainsFunc(sources, func(st tracer.Status) bool {
			return st.Source == string(source) && !st.Attached && !st.Waiting
		})
	}
	return slices.DeleteFunc(list, func(u attribute.Untraced) bool {
		source, ok := tracedAs[u.FSType]
		return ok && !missing(source)
	})
}

// tracedAs are the sources of the network file systems that have one which not every kernel offers.
var tracedAs = map[string]output.Source{
	"cifs": output.SourceSMB, "smb3": output.SourceSMB,
	"9p": output.Source9P, "ceph": output.SourceCeph,
}

// untracedPoints is how many mount points of a file system are named.
const untracedPoints = 4

func untracedText(u attribute.Untraced) string {
	return fmt.Sprintf("I/O on %s is not traced and is in no row: mounted at %s", u.FSType, somePoints(u))
}

func somePoints(u attribute.Untraced) string {
	points := u.Points
	more := ""
	if n := len(points) - untracedPoints; n > 0 {
		points, more = points[:untracedPoints], fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(points, ", ") + more
}

func (s *session) Close() {
	s.vxlan.Close()
	if s.records != nil {
		s.records.close() // before the tracer, whose reader may wait for room
	}
	if s.tracer != nil {
		if err := s.tracer.Close(); err != nil {
			s.log.Debug("detaching", "error", err)
		}
	}
	if s.served != nil {
		s.served.Close()
	}
	if s.resolver != nil {
		s.resolver.Close()
	}
}

// run begins the first interval and shows every interval until the end: by count, by
// duration or by the user. What happened since the last full interval is shown as well.
func (s *session) run(ctx context.Context, out *sinks) error {
	tick := time.NewTicker(s.opt.interval)
	defer tick.Stop()
	var export <-chan time.Time // when the clock shows a multiple of the interval of exporters
	if s.opt.exports() {
		s.parts = output.NewMerger(endless)
		export = s.opt.nextExport()
	}
	var end <-chan time.Time
	if s.opt.duration > 0 {
		end = time.After(s.opt.duration)
	}
	if err := s.tracer.Begin(); err != nil {
		return err
	}
	s.cost.read() // the cost of the start is in no interval
	if name := s.opt.readyFile; name != "" {
		if err := writeReady(name); err != nil {
			return err
		}
	}
	watch := time.After(vxlanStart)
	var many <-chan struct{} // records enough for an interval of their own
	if s.records != nil {
		many = s.records.many
	}
	for n := 1; ; {
		select {
		case <-tick.C:
			if s.opt.count > 0 && n >= s.opt.count {
				return s.last(out)
			}
			n++
		case <-many:
		case <-export:
			export = s.opt.nextExport()
			read, err := s.tracer.Read()
			if err != nil {
				return err
			}
			part := s.interval(read)
			out.export(part.Clone())
			if early := s.parts.Add(part); early != nil { // too large already
				if err := out.writePart(output.Group(early, s.opt.group), early, nil); err != nil {
					return err
				}
			}
			continue
		case <-watch:
			s.vxlan.start()
			continue
		case <-end:
			return s.last(out)
		case <-ctx.Done():
			return s.last(out)
		case <-out.main.failed:
			return out.failure()
		}
		read, err := s.tracer.Read()
		if err != nil {
			return err
		}
		if err := s.show(out, read); err != nil {
			return err
		}
		s.vxlan.start()
	}
}

// nextExport returns a channel that has a value when the interval of exporters ends.
func (o *options) nextExport() <-chan time.Time {
	now := time.Now()
	return time.After(now.Truncate(o.exportInterval).Add(o.exportInterval).Sub(now.Round(0)))
}

// writeReady says that everything is attached.
func writeReady(name string) error {
	f, err := file.Open(name, os.O_WRONLY|os.O_CREATE) // not synced: the disk may be slow
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("creating the ready file: %w", err)
	}
	return nil
}

// last detaches all hooks and shows the last interval, with all records that are left.
func (s *session) last(out *sinks) error {
	read, err := s.tracer.ReadLast()
	if err != nil {
		return err
	}
	if s.records == nil {
		return s.show(out, read)
	}
	show := func() error {
		if read == nil { // shown already
			if read, err = s.tracer.Read(); err != nil {
				return err
			}
		}
		defer func() { read = nil }()
		return s.show(out, read)
	}
	flushed := make(chan error, 1)
	go func() { flushed <- s.tracer.FlushRecords() }()
	for {
		select {
		case err := <-flushed:
			if err != nil {
				return err
			}
			for more := true; more; more = s.records.left() {
				if err := show(); err != nil {
					return err
				}
			}
			return nil
		case <-s.records.many:
			if err := show(); err != nil {
				return err
			}
		}
	}
}

// show writes what the tracer counted to all outputs.
func (s *session) show(out *sinks, read *tracer.Interval) error {
	iv := s.interval(read)
	if s.parts == nil {
		return out.write(output.Group(iv, s.opt.group), iv)
	}
	part := iv.Clone()
	if early := s.parts.Add(iv); early != nil {
		if err := out.writePart(output.Group(early, s.opt.group), early, nil); err != nil {
			return err
		}
	}
	iv = s.parts.Flush()
	return out.writePart(output.Group(iv, s.opt.group), iv, part)
}

// interval joins what the tracer counted with names.
func (s *session) interval(read *tracer.Interval) *output.Interval {
	self := s.cost.read()
	self.BPFNanos = read.BPFNanos
	self.MapBytes = s.tracer.MapBytes()
	if s.opt.excludeSelf {
		read.Rows = s.ownRows(read.Rows, &self)
	}
	s.awaitNames(read.Rows)
	s.daemons = s.tracer.FUSEDaemons()
	since := s.filesSince.Load()
	s.joiner.byFile = since != nil && !since.IsZero() && !read.Start.Before(*since)
	iv := &output.Interval{
		Start: read.Start, End: read.End, Host: s.host,
		Samples: s.joiner.samples(read.Rows, read.Start),
		Lost: output.Lost{
			Records: read.Lost.Records, Notices: read.Lost.Notices, Latencies: read.Lost.Latencies,
			Groups: read.Lost.Groups + read.Lost.Files, Walks: read.Lost.Walks, Notes: read.Lost.Notes, Misses: read.Lost.Misses, Bytes: read.Lost.Bytes,
		},
		Self: self,
	}
	hidden := s.hidden()
	for _, st := range s.tracer.Status() {
		status := sourceStatus(st)
		if st.Attached {
			status.Limitations = append(status.Limitations, hidden...)
		}
		iv.Sources = append(iv.Sources, status)
	}
	iv.Unresolved = unnamed(iv.Samples)
	s.vxlan.into(iv)
	if s.records != nil {
		records := append(s.records.take(eventsAtOnce), read.Records...)
		if s.opt.excludeSelf {
			records = slices.DeleteFunc(records, func(r tracer.Record) bool { return r.PID == selfPID() })
		}
		s.joiner.events(iv, records)
	}
	return iv
}

// firstNames is how long the first interval waits for the runtimes to answer,
// laterNames how long an interval waits for the name of a container that has I/O
// for the first time, readyNames how long --ready-file waits for the runtimes.
const (
	readyNames = 10 * time.Second
	firstNames = 500 * time.Millisecond
	laterNames = 200 * time.Millisecond
)

// awaitNames gives the runtimes a moment, once for each container: the kernel
// sees a container before its runtime announces it. Numbers never wait for names
// longer than that.
func (s *session) awaitNames(rows []tracer.Row) {
	ctx, cancel := context.WithTimeout(context.Background(), firstNames)
	defer cancel()
	if !s.shown {
		s.shown = true
		_ = s.resolver.WaitAnswered(ctx) // at the worst, names are missing
	}
	if !slices.ContainsFunc(s.resolver.Endpoints(), func(e attribute.Endpoint) bool {
		return e.State == attribute.StateOK || e.State == attribute.StateConnecting
	}) {
		return // nobody to wait for
	}
	var nameless []uint64
	looked := map[uint64]bool{}
	for i := range rows {
		id := rows[i].Cgroup
		if s.asked[id] || looked[id] || tracer.IsClient(id) {
			continue
		}
		looked[id] = true
		if o := s.resolver.Owner(id); o.Kind == attribute.KindContainer && o.ContainerName == "" {
			nameless = append(nameless, id)
		}
	}
	if len(s.asked) > 1<<16 {
		clear(s.asked)
	}
	deadline := time.Now().Add(laterNames)
	for _, id := range nameless {
		s.asked[id] = true
	}
	for len(nameless) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
		nameless = slices.DeleteFunc(nameless, func(id uint64) bool {
			return s.resolver.Owner(id).ContainerName != ""
		})
	}
}

func (s *session) comm(pid uint32) string {
	if name := s.tracer.Comm(pid); name != "" {
		return name
	}
	return pidText(pid)
}

// client names a client of this host's NFS server.
func (s *session) client(cgroup uint64) output.NFSClient {
	addr := s.tracer.Client(cgroup)
	if !addr.IsValid() {
		return output.NFSClient{}
	}
	return output.NFSClient{Address: addr.String(), Name: s.served.ClientName(addr)}
}

// source returns the address of this host that the server of an NFS mount sees.
func (s *session) source(dev tracer.Dev) string {
	if addr := s.tracer.NFSSource(dev); addr.IsValid() {
		return addr.String()
	}
	return ""
}

// listen returns the address of this host to which a client of its NFS server talks.
func (s *session) listen(client string) string {
	addr, err := netip.ParseAddr(client)
	if err != nil {
		return ""
	}
	if at := s.served.Address(addr); at.IsValid() {
		return at.String()
	}
	return ""
}

// export names the exported directory of I/O that a client did. Block I/O says only which
// file system it was: the directory is known if no other one of it is exported.
func (s *session) export(k *tracer.Key) string {
	found := ""
	for _, e := range s.served.Exports() {
		dev := tracer.Dev(unix.Major(e.Dev)<<20 | unix.Minor(e.Dev))
		switch {
		case k.Source == tracer.NFSD && tracer.ExportOf(dev, e.Ino) == k.Export:
			return e.Path
		case k.Source == tracer.NFSD || k.FSDev != dev:
		case found != "":
			return ""
		default:
			found = e.Path
		}
	}
	return found
}

// countFiles begins or ends keeping rows by file.
func (s *session) countFiles(on bool) error {
	if err := s.tracer.CountFiles(on); err != nil {
		return err
	}
	var since time.Time
	if on {
		since = time.Now()
	}
	s.filesSince.Store(&since)
	return nil
}

// fileKinds are what is no file.
var fileKinds = map[tracer.FileID]output.FileKind{
	tracer.FileSwap: output.FileSwap, tracer.FileMetadata: output.FileMetadata, tracer.FileJournal: output.FileJournal,
	tracer.FileDevice: output.FileDevice, tracer.FileOther: output.FileOther,
}

// file names a file of a cgroup's I/O, and returns the device of its file system.
func (s *session) file(id tracer.FileID, cgroup uint64) (output.File, tracer.Dev) {
	if kind, ok := fileKinds[id]; ok {
		return output.File{Kind: kind}, 0
	}
	f, ok := s.tracer.File(id)
	switch {
	case !ok:
		return output.File{Kind: output.FileUnknown}, 0
	case f.Device != 0 && s.mount(f.Device, 0) != (output.Mount{}):
		return output.File{Kind: output.FileMetadata}, f.Device // blocks of the device that a file system cached
	case f.Device != 0:
		return output.File{Kind: output.FileDevice}, 0
	}
	named := output.File{Kind: output.FileRegular, Inode: f.Inode, Links: f.Links, Removed: f.Removed, Partial: f.Partial}
	if f.Path == "" {
		return named, f.Dev
	}
	named.Path = f.Path
	if !f.Partial {
		at := s.resolver.FilePath(f.Dev.String(), f.Path, cgroup)
		named.Path, named.Inside = at.Host, at.Inside
		if named.Path == "" { // a mount of that namespace only, or of one that nobody knows
			named.Path, named.Inside = at.Inside, ""
		}
		if named.Path == "" {
			named.Path, named.Partial = f.Path, true
		}
	}
	if named.Inside == named.Path {
		named.Inside = ""
	}
	named.LogOf = s.resolver.LogOf(named.Path)
	return named, f.Dev
}

func (s *session) mount(dev tracer.Dev, cgroup uint64) output.Mount {
	m, ok := s.resolver.Mount(dev.String(), cgroup)
	if !ok {
		return output.Mount{}
	}
	return output.Mount{
		Source: m.Source, Point: m.Point, FSType: m.FSType, Volume: m.Volume, Driver: m.Driver,
		NFSServer: m.NFSServer, NFSExport: m.NFSExport, NFSVersion: m.NFSVersion, NFSAddress: m.NFSAddress, NFSPort: m.NFSPort, FUSESubtype: m.FUSESubtype, Transport: m.Transport,
		FUSEDaemonPID: s.daemons[dev],
	}
}
