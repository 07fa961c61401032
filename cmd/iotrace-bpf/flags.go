package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/otlp"
	"github.com/iotrace-bpf/iotrace-bpf/output/prometheus"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// options are the values of the flags of every command but vxlan. The groups
// are those of the help pages.
type options struct {
	// what to show
	by      string
	filters []string
	sort    string
	top     int // 0: as many as fit
	level   string
	depth   int // 0: whole paths

	// how long
	interval time.Duration // 0, in a replay alone: as recorded
	count    int           // 0: no end
	duration time.Duration // 0: no end

	// what to trace
	sources     []string
	latency     bool
	events      bool
	excludeSelf bool
	vxlan       bool

	// where it goes
	output       string
	namespace    string
	exportLabels []string
	exportFiles  bool
	noScreen     bool
	inPlace      bool
	accumulate   bool
	screen       bool // the interactive screen is the output

	// other hosts instead of this one
	hosts        []string
	hostsCommand string
	sshConfig    string

	// what leaves the host
	exportBy       string
	exportInterval time.Duration
	exportGroup    output.GroupOptions // by exportBy

	elasticsearch  []string
	spool          string
	esCA           string
	esFingerprint  string
	esUser         string
	esAPIKeyFile   string
	esPasswordFile string
	setup          elastic.SetupOptions
	printDashboard bool
	otlp           string
	prometheus     string
	promMaxSeries  int
	promIdle       time.Duration
	promWebConfig  string
	record         string
	recordSize     int64 // bytes; -1: never a new file
	report         string

	// names
	dockerHosts       []string
	criSockets        []string
	containerdSockets []string
	onlyListedSockets bool
	projectLabel      string
	noDNS             bool

	// the host, from inside of a container
	hostRoot string
	hostName string
	view     *hostView // nil until it was looked at

	// limits
	maxGroups   uint32
	eventBuffer int64 // bytes

	// what a replay reads from Elasticsearch
	since, until time.Time // zero: not given
	follow       bool

	callTime     time.Duration // of runtimes; 0 is the resolver's choice
	readyFile    string
	cpuProfile   string
	endWithStdin bool
	verbose      bool
	version      bool

	group output.GroupOptions // by, filters, sort, top, level and depth, read
	flags *flagSet            // that were parsed
}

const (
	minInterval       = 10 * time.Millisecond
	minExportInterval = 100 * time.Millisecond
	maxExportInterval = 24 * time.Hour
)

// exportGrain is what rows are, wherever documents of several runs are added up.
const exportGrain = "container,device,mount"

// newOptions returns the values of a command that lacks the flags for them.
func newOptions() *options {
	return &options{promMaxSeries: prometheus.DefaultMaxSeries, promIdle: prometheus.DefaultIdleTime, exportBy: exportGrain, exportInterval: 10 * time.Second, by: string(output.KeyContainer), sort: "total", level: string(output.LevelWire),
		interval: time.Second, latency: true, vxlan: true, maxGroups: 16384, eventBuffer: 8 << 20, recordSize: 256 << 20}
}

// traceFlags are the flags of tracing, which needs no command.
func (o *options) traceFlags() *flagSet {
	f := newFlagSet("")
	f.group("What to show", o.showFlags)
	f.group("How long", o.timeFlags)
	f.group("What to trace", o.sourceFlags, o.latencyFlags, o.vxlanFlags, o.selfFlags)
	f.group("Where it goes", o.outputFlags)
	f.group("Elasticsearch and OpenSearch", o.serverFlags, o.shipFlags)
	f.group("OpenTelemetry", o.otlpFlags)
	f.group("What servers get", o.exportFlags)
	f.group("Prometheus", o.prometheusFlags)
	f.group("Recording", o.recordFlags)
	f.group("Report", o.reportFlags)
	f.group("Other hosts", o.hostsFlags)
	f.group("Names of containers", o.socketFlags, o.projectFlags)
	f.group("Names of NFS clients", o.dnsFlags)
	f.group("In a container", o.hostFlags)
	f.group("Limits", o.limitFlags)
	f.general(o.verboseFlags, o.versionFlags, o.testFlags)
	return f
}

// replayFlags leave out how to trace and whom to ask for names: a recording has
// settled both.
func (o *options) replayFlags() *flagSet {
	f := newFlagSet("replay")
	f.group("What to show", o.showFlags)
	f.group("How long", func(fs *pflag.FlagSet) {
		o.interval = 0
		fs.Var(duration{&o.interval, "recorded"}, "interval", "join the recorded intervals into ones of `TIME`: 5 (seconds), 10m")
	}, o.endFlags)
	f.group("What to take from the recording", o.sourceFlags, o.latencyFlags, o.vxlanFlags)
	f.group("From a cluster instead of a recording", o.clusterFlags)
	f.group("Where it goes", o.outputFlags)
	f.group("Elasticsearch and OpenSearch", o.serverFlags, o.shipFlags)
	f.group("OpenTelemetry", o.otlpFlags)
	f.group("What servers get", o.exportFlags)
	f.group("Prometheus", o.prometheusFlags)
	f.group("Recording", o.recordFlags)
	f.group("Report", o.reportFlags)
	f.general(o.verboseFlags)
	return f
}

func (o *options) checkFlags() *flagSet {
	f := newFlagSet("check")
	f.group("What to check", o.sourceFlags, o.latencyFlags, o.levelFlags)
	f.group("Names of containers", o.socketFlags)
	f.group("In a container", o.hostFlags)
	f.general(o.verboseFlags)
	return f
}

func (o *options) setupFlags() *flagSet {
	f := newFlagSet("elasticsearch setup")
	f.group("The server", o.serverFlags)
	f.group("What to install", o.installFlags)
	f.general(o.verboseFlags)
	return f
}

func (o *options) showFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.by, "by", o.by, "one row for each `KEY`: "+strings.Join(output.KeyNames(), ", ")+"; several keys with commas")
	fs.StringArrayVar(&o.filters, "filter", nil, "only what matches `KEY=GLOB`, such as project=shop or image=*/nginx. "+
		"May be repeated: one filter of each key must match")
	fs.StringVar(&o.sort, "sort", o.sort, "sort by `COLUMN`: "+strings.Join(output.SortColumns(), ", ")+"; the opposite order with - in front")
	fs.Var(number{&o.top, "all", 0}, "top", "show the first `N` rows and the sum of the others; all shows what fits on the terminal")
	o.levelFlags(fs)
	fs.Var(number{&o.depth, "all", 0}, "cgroup-depth", "with --by cgroup: keep only the first `N` parts of each path, so that 2 makes one row of /a/b/c and /a/b/d")
}

func (o *options) levelFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.level, "level", o.level, "count at this `LEVEL`: wire (what storage is asked for), app (what programs read and write) or both")
}

func (o *options) timeFlags(fs *pflag.FlagSet) {
	fs.Var(duration{&o.interval, ""}, "interval", "show numbers every `TIME`: 5 (seconds), 500ms, 10m")
	o.endFlags(fs)
}

func (o *options) endFlags(fs *pflag.FlagSet) {
	fs.Var(number{&o.count, "never", 0}, "count", "stop after `N` intervals")
	fs.Var(duration{&o.duration, "never"}, "duration", "stop after `TIME`: 30 (seconds), 10m, 1h30m")
}

func (o *options) sourceFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.sources, "source", nil, "only the sources in `LIST`: "+strings.Join(tracer.SourceNames(), ", ")+" (default: all that are there, but for nfsd, whose bytes the others count as well)")
}

func (o *options) latencyFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.latency, "latency", o.latency, "also the latency of requests; --latency=false leaves it out, which makes tracing cheaper")
}

func (o *options) vxlanFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.vxlan, "vxlan", o.vxlan, "also events of overlay network devices, on hosts of a Docker Swarm; --vxlan=false leaves them out")
}

func (o *options) selfFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.excludeSelf, "exclude-self", false, "leave the reads and writes of iotrace-bpf itself out of the rows; status documents still count them")
}

func (o *options) outputFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.output, "output", "", "`FORMAT` of standard output: table or ndjson (default: the live screen on a terminal, else table)")
	fs.BoolVar(&o.noScreen, "no-tui", false, "print plain tables, one below the other, even on a terminal")
	fs.BoolVar(&o.inPlace, "in-place", false, "with plain tables on a terminal: each one replaces the one before")
	fs.BoolVar(&o.accumulate, "accumulate", false, "show bytes and requests since the start instead of rates")
	fs.BoolVar(&o.events, "events", false, "with --output ndjson: a document for each request instead of totals")
	o.namespaceFlag(fs)
	fs.StringArrayVar(&o.exportLabels, "export-label", nil, "copy the container label `KEY` into documents; may be repeated")
	fs.BoolVar(&o.exportFiles, "export-files", false, "let paths of files, which may be secret, leave this host: in documents and, where rows are of files, with --otlp")
}

func (o *options) namespaceFlag(fs *pflag.FlagSet) {
	defineNamespace(fs, &o.namespace)
}

// defineNamespace is shared with the vxlan commands.
func defineNamespace(fs *pflag.FlagSet, value *string) {
	fs.StringVar(value, "data-stream-namespace", "default", "documents go to data streams such as metrics-iotrace.io-`NAME`")
}

func (o *options) serverFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.elasticsearch, "elasticsearch", nil, "send documents to the server at `URL`; several URLs are nodes of one cluster")
	fs.StringVar(&o.esAPIKeyFile, "elasticsearch-api-key-file", "", "read the API key from `FILE`, or put the key itself into "+elastic.EnvAPIKey)
	fs.StringVar(&o.esUser, "elasticsearch-username", "", "log in as `NAME`, with a password instead of an API key")
	fs.StringVar(&o.esPasswordFile, "elasticsearch-password-file", "", "read the password from `FILE`, or put it into "+elastic.EnvPassword)
	fs.StringVar(&o.esCA, "elasticsearch-ca", "", "trust the certificates in this PEM `FILE` instead of the system's")
	fs.StringVar(&o.esFingerprint, "elasticsearch-fingerprint", "", "trust the server or CA whose certificate has this SHA-256 `HASH`")
}

func (o *options) shipFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.spool, "elasticsearch-spool", "", "keep documents in `DIR` while the server cannot be reached")
}

func (o *options) otlpFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.otlp, "otlp", "", "send metrics to the OpenTelemetry receiver at `URL`, such as http://localhost:4318; headers such as Authorization are in "+otlp.EnvHeaders)
}

func (o *options) exportFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.exportBy, "export-by", o.exportBy, "count apart by `KEY` for --elasticsearch and --otlp, whatever --by shows here. Dashboards add up documents of the default alone")
	fs.Var(duration{&o.exportInterval, ""}, "export-interval", "send totals of every `TIME` of the clock, whatever --interval is; the same on all hosts")
}

func (o *options) installFlags(fs *pflag.FlagSet) {
	o.setup.RetentionDays = 14
	fs.Var(number{&o.setup.RetentionDays, "forever", -1}, "retention-days", "delete documents after `N` days, or keep them forever")
	fs.StringVar(&o.setup.KibanaURL, "kibana", "", "also install the dashboard into the Kibana or OpenSearch Dashboards at `URL`")
	fs.BoolVar(&o.printDashboard, "print-dashboard", false, "print the dashboard for an import by hand, and install nothing")
}

func (o *options) prometheusFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.prometheus, "prometheus", "", "serve /metrics at `ADDRESS`: HOST:PORT, or only PORT for readers on this machine")
	fs.IntVar(&o.promMaxSeries, "prometheus-max-series", o.promMaxSeries, "keep counters of at most `N` combinations of labels; the I/O of others is counted under the label (other)")
	fs.Var(duration{&o.promIdle, ""}, "prometheus-idle", "drop the counters of what had no I/O for `TIME`")
	fs.StringVar(&o.promWebConfig, "prometheus-web-config", "", "TLS and passwords of /metrics, as in this web configuration `FILE` of the Prometheus exporter toolkit")
}

func (o *options) recordFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.record, "record", "", "write everything to `FILE`, for iotrace-bpf replay; - is standard output")
	fs.Var(size{&o.recordSize, "never"}, "record-size", "begin a new file of the recording after `SIZE`, or never")
}

func (o *options) reportFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.report, "report", "", "write an HTML page to `FILE` at the end")
}

func (o *options) dnsFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.noDNS, "no-dns", false, "on an NFS server: do not ask DNS for the names of clients that do not say their own (NFSv3)")
}

func (o *options) socketFlags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&o.dockerHosts, "docker-host", nil, "also ask the Docker or Podman `SOCKET` for names; may be repeated")
	fs.StringArrayVar(&o.criSockets, "cri", nil, "also ask the CRI `SOCKET` of a kubelet; may be repeated")
	fs.StringArrayVar(&o.containerdSockets, "containerd", nil, "also ask the containerd `SOCKET`; may be repeated")
	fs.BoolVar(&o.onlyListedSockets, "only-listed-sockets", false, "ask only the sockets of these three flags and DOCKER_HOST, and not those in the usual places")
}

func (o *options) projectFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.projectLabel, "project-label", "", "the container label `KEY` names the project, before any other rule")
}

func (o *options) hostFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.hostRoot, "host-root", "", "the host's file system is mounted at `DIR`: look there for /proc, cgroups, sockets, /etc, /dev and /lib/modules "+
		"(default: the root of process 1 where --pid=host shows it)")
	fs.StringVar(&o.hostName, "host-name", "", "`NAME` of the host in documents, recordings and reports (default: the host's own)")
}

func (o *options) limitFlags(fs *pflag.FlagSet) {
	fs.Uint32Var(&o.maxGroups, "max-groups", o.maxGroups, "count at most `N` combinations of cgroup, device and operation apart in one interval; the rest goes to the row (other)")
	fs.Var(size{&o.eventBuffer, ""}, "event-buffer", "with --events: hold `SIZE` of records between kernel and program, a power of two")
}

func (o *options) verboseFlags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "print what is tried and chosen")
}

func (o *options) versionFlags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.version, "version", "V", false, "show the version and end")
}

func (o *options) testFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.readyFile, "ready-file", "", "create `FILE` once everything is attached and the runtimes were asked")
	fs.StringVar(&o.cpuProfile, "cpu-profile", "", "write a CPU profile of this process to `FILE`")
	fs.BoolVar(&o.endWithStdin, "end-with-stdin", false, "end when standard input does, as launch wants it")
	hide(fs, "ready-file", "cpu-profile", "end-with-stdin")
}

// parse reads the command line of tracing. Errors are usage errors or
// pflag.ErrHelp.
func (o *options) parse(args []string) error {
	*o = *newOptions()
	if err := o.parseSet(o.traceFlags(), args); err != nil || o.version {
		return err
	}
	return o.positional(o.flags.Args())
}

// parseSet reads flags and leaves the other arguments to the caller.
func (o *options) parseSet(f *flagSet, args []string) error {
	o.flags = f
	if err := f.parse(args); err != nil {
		return err
	}
	return o.check()
}

// positional reads [INTERVAL [COUNT]], as iostat has it: seconds, or with a unit.
func (o *options) positional(args []string) error {
	if len(args) > 2 {
		return usagef("unexpected argument %q", args[2])
	}
	if len(args) > 0 {
		d, err := parseDuration(args[0])
		switch {
		case err != nil:
			return notAnInterval(args[0])
		case o.flags.given["interval"]:
			return usagef("two intervals: %q and --interval %v", args[0], o.interval)
		case d < minInterval:
			return tooShort(d)
		}
		o.interval = d
	}
	if len(args) > 1 {
		n, err := strconv.Atoi(args[1])
		switch {
		case err != nil || n < 1:
			return usagef("count %q is not a number above 0", args[1])
		case o.flags.given["count"]:
			return usagef("two counts: %q and --count %d", args[1], o.count)
		}
		o.count = n
	}
	return nil
}

func tooShort(d time.Duration) error {
	return usagef("interval %v is too short: at least %v", d, minInterval)
}

// notAnInterval says what an argument may have been meant as.
func notAnInterval(word string) error {
	names := commandNames()
	switch {
	case slices.Contains(names, word):
		return &usageError{fmt.Errorf("%q must be the first word", word), "write iotrace-bpf " + word + " and then its flags"}
	case word == "true" || word == "false":
		return &usageError{fmt.Errorf("unexpected argument %q", word), "a flag takes it with an equals sign: --latency=" + word}
	}
	return &usageError{fmt.Errorf("%q is neither a command nor an interval in seconds", word), didYouMean("", word, names)}
}

// check holds what was parsed against what can be.
func (o *options) check() error {
	var err error
	if o.group.By, err = output.ParseKeys(o.by); err != nil {
		return usagef("%s: %w", o.flags.origin("by"), err)
	}
	if o.exportGroup.By, err = output.ParseKeys(o.exportBy); err != nil {
		return usagef("%s: %w", o.flags.origin("export-by"), err)
	}
	for _, s := range o.filters {
		f, err := output.ParseFilter(s)
		if err != nil {
			return usagef("%s: %w", o.flags.origin("filter"), err)
		}
		o.group.Filters = append(o.group.Filters, f)
	}
	if o.group.Sort, err = output.ParseSort(o.sort); err != nil {
		return usagef("%s: %w", o.flags.origin("sort"), err)
	}
	if o.group.Level, err = output.ParseLevel(o.level); err != nil {
		return usagef("%s: %w", o.flags.origin("level"), err)
	}
	o.group.Top, o.group.CgroupDepth = o.top, o.depth
	if o.exportInterval < minExportInterval || o.exportInterval > maxExportInterval {
		return usagef("%s %v: must be from %v to %v", o.flags.origin("export-interval"), o.exportInterval, minExportInterval, maxExportInterval)
	}
	const mostSeries = 1 << 20
	switch {
	case o.promMaxSeries < 1 || o.promMaxSeries > mostSeries:
		return usagef("%s %d: must be from 1 to %d", o.flags.origin("prometheus-max-series"), o.promMaxSeries, mostSeries)
	case o.promIdle < time.Second:
		return usagef("%s %v: must be at least 1s", o.flags.origin("prometheus-idle"), o.promIdle)
	}
	const maxGroups, minBuffer, maxBuffer, minRecord = 1 << 22, 4 << 10, 1 << 30, 1 << 20
	switch {
	case o.interval < minInterval && !(o.interval == 0 && o.flags.command == "replay"):
		return tooShort(o.interval)
	case o.maxGroups < 1 || o.maxGroups > maxGroups:
		return usagef("%s %d: must be from 1 to %d", o.flags.origin("max-groups"), o.maxGroups, maxGroups)
	case o.recordSize >= 0 && o.recordSize < minRecord:
		return usagef("%s %v: must be at least 1MiB", o.flags.origin("record-size"), size{value: &o.recordSize})
	case o.eventBuffer < minBuffer || o.eventBuffer&(o.eventBuffer-1) != 0 || o.eventBuffer > maxBuffer:
		return usagef("%s %v: must be a power of two from 4KiB to 1GiB", o.flags.origin("event-buffer"), size{value: &o.eventBuffer})
	}
	for _, s := range o.sources {
		if !slices.Contains(tracer.SourceNames(), s) {
			return usagef("%s: %w", o.flags.origin("source"), &output.UnknownError{What: "source", Word: s, Known: tracer.SourceNames()})
		}
	}
	if slices.Contains(o.sources, tracer.NFSD.String()) && len(o.sources) > 1 {
		return usagef("%s: nfsd must be the only source: disks are read and written for the same bytes, and totals would have them twice. Leave nfsd out to see the disks: clients are rows there as well", o.flags.origin("source"))
	}
	if o.flags.Changed("source") && len(o.sources) == 0 {
		return usagef("%s: name at least one of %s", o.flags.origin("source"), strings.Join(tracer.SourceNames(), ", "))
	}
	if err := checkOutput(o.flags, o.output); err != nil {
		return err
	}
	return o.checkTogether()
}

// outputNames are the values of --output.
var outputNames = []string{"table", "ndjson"}

func checkOutput(f *flagSet, value string) error {
	if value != "" && !slices.Contains(outputNames, value) {
		return usagef("%s: %w", f.origin("output"), &output.UnknownError{What: "output", Word: value, Known: outputNames})
	}
	return nil
}

// checkTogether looks for flags that contradict each other or do nothing.
func (o *options) checkTogether() error {
	f := o.flags
	if o.events && o.output != "ndjson" {
		return usagef("%s needs --output ndjson", f.origin("events"))
	}
	if err := o.checkFiles(); err != nil {
		return err
	}
	if err := o.checkHosts(); err != nil {
		return err
	}
	var ofServer []string
	f.VisitAll(func(flag *pflag.Flag) {
		if strings.HasPrefix(flag.Name, "elasticsearch-") {
			ofServer = append(ofServer, flag.Name)
		}
	})
	documents := o.output == "ndjson" || len(o.elasticsearch) > 0
	for _, err := range []error{
		f.needs(len(o.elasticsearch) > 0, "--elasticsearch", ofServer...),
		f.needs(len(o.elasticsearch) > 0 || o.otlp != "", "--elasticsearch or --otlp", "export-by", "export-interval"),
		f.needs(documents, "--output ndjson or --elasticsearch", "data-stream-namespace", "export-label"),
		f.needs(documents || o.otlp != "", "--output ndjson, --elasticsearch or --otlp", "export-files"),
		f.needs(o.prometheus != "", "--prometheus", "prometheus-max-series", "prometheus-idle", "prometheus-web-config"),
		f.needs(o.record != "", "--record", "record-size"),
		f.needs(len(o.elasticsearch) > 0, "--elasticsearch", "since", "until", "follow"),
		f.needs(o.fromCluster(), "--since", "until"),
		f.needs(o.output != "ndjson", "the table or the screen", "in-place", "accumulate"),
		f.needs(o.events, "--events", "event-buffer"),
	} {
		if err != nil {
			return err
		}
	}
	if f.Changed("cgroup-depth") && o.output != "" && o.report == "" && !o.wants(output.KeyCgroup) {
		f.warnings = append(f.warnings, f.origin("cgroup-depth")+" does nothing without --by cgroup")
	}
	if !o.latency && o.group.Sort.Column == "latency" {
		f.warnings = append(f.warnings, "--sort latency does nothing: latencies are left out")
	}
	if o.onlyListedSockets && len(o.dockerHosts)+len(o.criSockets)+len(o.containerdSockets) == 0 {
		f.warnings = append(f.warnings, f.origin("only-listed-sockets")+" without a socket: no container engine is asked for names")
	}
	return nil
}

// checkFiles refuses to send paths that nobody said may leave the host.
func (o *options) checkFiles() error {
	if o.exportFiles {
		return nil
	}
	for _, out := range []struct {
		flag string
		by   bool
	}{
		{"output", o.output == "ndjson" && slices.Contains(o.group.By, output.KeyFile)},
		{"export-by", o.exports() && slices.Contains(o.exportGroup.By, output.KeyFile)},
	} {
		if out.by {
			return usagef("%s would send the paths of files, which may be secret: add --export-files if they may leave this host", o.flags.origin(out.flag))
		}
	}
	return nil
}

// wantsFiles tells whether rows have to say which file they are of.
func (o *options) wantsFiles() bool {
	return o.wants(output.KeyFile) || o.exportFiles && o.events
}

// exports tells whether totals leave the host, in intervals of their own.
func (o *options) exports() bool { return len(o.elasticsearch) > 0 && !o.events || o.otlp != "" }

// wants tells whether rows, filters or exporters need a key of what is traced.
func (o *options) wants(key output.Key) bool {
	if slices.Contains(o.group.By, key) || o.exports() && slices.Contains(o.exportGroup.By, key) || o.prometheus != "" && key == output.KeyMount {
		return true
	}
	return slices.ContainsFunc(o.group.Filters, func(f output.Filter) bool { return f.Key == key })
}

// detailed tells whether rows may be grouped by other keys later: on the screen,
// in a replay, in a report.
func (o *options) detailed() bool { return o.screen || o.record != "" || o.report != "" }

// wantsScreen tells whether the interactive screen is the output: on a terminal,
// for a run without an end, unless something else was asked for.
func (o *options) wantsScreen(stdout *os.File) bool {
	return o.output == "" && o.record != recordStdout && !o.noScreen && o.count == 0 && o.duration == 0 && terminal.Interactive(os.Stdin, stdout, nil)
}
