package main

import (
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
	"github.com/spf13/pflag"
)

// options are the values of all flags. The groups are those of the usage text.
type options struct {
	// what to show
	by      string
	filters []string
	sort    string
	top     int
	level   string
	depth   int

	// how long
	interval time.Duration
	count    int
	duration time.Duration

	// what to trace
	sources []string
	latency bool
	events  bool

	// where it goes
	output       string
	namespace    string
	exportLabels []string
	noScreen     bool

	elasticsearch  []string
	spool          string
	esCA           string
	esFingerprint  string
	esUser         string
	esAPIKeyFile   string
	esPasswordFile string
	prometheus     string
	record         string
	recordSize     int64 // MiB
	report         string

	excludeSelf bool

	vxlan  bool
	screen bool // the interactive screen is the output

	// names
	dockerHost   string
	cri          string
	projectLabel string

	// limits
	maxGroups  uint32
	ringSize   uint32
	readyFile  string
	callTime   time.Duration // of runtimes; 0 is the resolver's choice
	cpuProfile string
	verbose    bool

	group output.GroupOptions // by, filters, sort, top, level and depth, read
}

const minInterval = 10 * time.Millisecond

// flags returns the flag set that fills o. Every command that traces or replays
// shares it.
func (o *options) flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("iotrace-bpf", pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // run says what is wrong, once
	fs.SortFlags = false
	fs.Usage = func() {}

	fs.StringVar(&o.by, "by", "container", "what a row is: "+strings.Join(output.KeyNames(), ", ")+"; several with commas")
	fs.StringArrayVar(&o.filters, "filter", nil, "KEY=GLOB: only what matches; may repeat")
	fs.StringVar(&o.sort, "sort", "total", "column to sort by: "+strings.Join(output.SortColumns(), ", "))
	fs.IntVar(&o.top, "top", 0, "show so many rows and sum up the rest (0 is all that fit)")
	fs.StringVar(&o.level, "level", string(output.LevelWire), "wire (what storage is asked for), app (what programs read and write) or both")
	fs.IntVar(&o.depth, "cgroup-depth", 0, "cut cgroup paths to so many components (0 is none)")

	fs.DurationVar(&o.interval, "interval", time.Second, "time between two reports")
	fs.IntVar(&o.count, "count", 0, "end after so many reports (0 is never)")
	fs.DurationVar(&o.duration, "duration", 0, "end after so long (0 is never)")

	fs.StringSliceVar(&o.sources, "source", nil, "trace only these: "+strings.Join(tracer.SourceNames(), ", "))
	fs.BoolVar(&o.latency, "latency", true, "measure latency; false leaves one probe per I/O")
	fs.BoolVar(&o.excludeSelf, "exclude-self", false, "keep what this program reads and writes out of the rows; the status tells it")
	fs.BoolVar(&o.events, "events", false, "with ndjson: one document per I/O instead of totals")

	fs.StringVar(&o.output, "output", "", "table or ndjson (default the screen on a terminal, else table)")
	fs.BoolVar(&o.noScreen, "no-tui", false, "a plain table even on a terminal")
	fs.StringVar(&o.namespace, "namespace", "default", "namespace of the data streams that documents name")
	fs.StringArrayVar(&o.exportLabels, "export-label", nil, "put this container label into documents as well; may repeat")

	fs.StringSliceVar(&o.elasticsearch, "elasticsearch", nil, "ship documents to this server; several are nodes of one cluster")
	fs.StringVar(&o.esAPIKeyFile, "elasticsearch-api-key-file", "", "file with the API key, or $IOTRACE_ELASTICSEARCH_API_KEY")
	fs.StringVar(&o.esUser, "elasticsearch-username", "", "for basic authentication")
	fs.StringVar(&o.esPasswordFile, "elasticsearch-password-file", "", "file with the password, or $IOTRACE_ELASTICSEARCH_PASSWORD")
	fs.StringVar(&o.esCA, "elasticsearch-ca", "", "PEM file with the CA to trust")
	fs.StringVar(&o.esFingerprint, "elasticsearch-fingerprint", "", "SHA-256 of the CA or of the server's certificate")
	fs.StringVar(&o.spool, "elasticsearch-spool", "", "directory that keeps documents through an outage")
	fs.StringVar(&o.prometheus, "prometheus", "", "serve /metrics on [HOST]:PORT; without HOST on loopback only")
	fs.StringVar(&o.record, "record", "", "record everything into this file, for replay")
	fs.Int64Var(&o.recordSize, "record-size", 0, "MiB after which a new file of the recording begins (0 is 256, -1 never)")
	fs.StringVar(&o.report, "report", "", "write a page for the ticket to this file, at the end")
	fs.BoolVar(&o.vxlan, "vxlan", true, "watch overlay devices as well, where there is an engine in swarm mode")

	fs.StringVar(&o.dockerHost, "docker-host", "", "ask this Docker or Podman socket for names (default: all that exist)")
	fs.StringVar(&o.cri, "cri", "", "ask this CRI socket for names (default: all that exist)")
	fs.StringVar(&o.projectLabel, "project-label", "", "container label that names the project, before all other rules")

	fs.Uint32Var(&o.maxGroups, "max-groups", 16384, "owners times devices times operations kept apart per interval")
	fs.Uint32Var(&o.ringSize, "event-buffer", 8<<20, "bytes of buffer for --events, a power of two")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "say what is tried and chosen, with the verifier's log")
	fs.StringVar(&o.readyFile, "ready-file", "", "create this file once everything is attached and the runtimes were asked")
	fs.StringVar(&o.cpuProfile, "cpu-profile", "", "write a CPU profile of this process")
	for _, hidden := range []string{"ready-file", "cpu-profile"} {
		fs.Lookup(hidden).Hidden = true
	}
	return fs
}

// parse reads the command line. Errors are usage errors or pflag.ErrHelp.
func (o *options) parse(args []string) error {
	fs := o.flags()
	if err := o.parseSet(fs, args); err != nil {
		return err
	}
	return o.positional(fs.Args())
}

// parseSet reads flags and leaves the other arguments to the caller.
func (o *options) parseSet(fs *pflag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		if err == pflag.ErrHelp {
			return err
		}
		return &usageError{err}
	}
	return o.check(fs)
}

// positional reads [INTERVAL [COUNT]], as iostat has it: seconds, or with a unit.
func (o *options) positional(args []string) error {
	if len(args) > 2 {
		return usagef("unexpected argument %q", args[2])
	}
	if len(args) > 0 {
		d, err := parseInterval(args[0])
		if err != nil {
			return err
		}
		if d < minInterval {
			return usagef("interval %v is too short: at least %v", d, minInterval)
		}
		o.interval = d
	}
	if len(args) > 1 {
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 1 {
			return usagef("count %q is not a number above 0", args[1])
		}
		o.count = n
	}
	return nil
}

func parseInterval(s string) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return d, nil
	}
	seconds, err := strconv.ParseFloat(s, 64)
	if err != nil || !(seconds > 0 && seconds < 1e6) {
		return 0, usagef("%q is neither a command nor an interval in seconds", s)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func (o *options) check(fs *pflag.FlagSet) error {
	var err error
	if o.group.By, err = output.ParseKeys(o.by); err != nil {
		return usagef("--by: %w", err)
	}
	for _, s := range o.filters {
		f, err := output.ParseFilter(s)
		if err != nil {
			return usagef("--filter: %w", err)
		}
		o.group.Filters = append(o.group.Filters, f)
	}
	if o.group.Sort, err = output.ParseSort(o.sort); err != nil {
		return usagef("--sort: %w", err)
	}
	if o.group.Level, err = output.ParseLevel(o.level); err != nil {
		return usagef("--level: %w", err)
	}
	o.group.Top, o.group.CgroupDepth = o.top, o.depth
	switch {
	case o.interval < minInterval:
		return usagef("interval %v is too short: at least %v", o.interval, minInterval)
	case o.count < 0:
		return usagef("--count %d: must not be negative", o.count)
	case o.duration < 0:
		return usagef("--duration %v: must not be negative", o.duration)
	case o.top < 0:
		return usagef("--top %d: must not be negative", o.top)
	case o.depth < 0:
		return usagef("--cgroup-depth %d: must not be negative", o.depth)
	case o.maxGroups < 1 || o.maxGroups > 1<<22:
		return usagef("--max-groups %d: must be from 1 to %d", o.maxGroups, 1<<22)
	case o.recordSize < -1 || o.recordSize > 1<<30:
		return usagef("--record-size %d: must be -1 or from 0 to %d", o.recordSize, 1<<30)
	case o.ringSize < 4096 || o.ringSize&(o.ringSize-1) != 0 || o.ringSize > 1<<30:
		return usagef("--event-buffer %d: must be a power of two from 4096 to %d", o.ringSize, 1<<30)
	}
	for _, s := range o.sources {
		if !slices.Contains(tracer.SourceNames(), s) {
			return usagef("--source: unknown source %q: use %s", s, strings.Join(tracer.SourceNames(), ", "))
		}
	}
	switch o.output {
	case "", "table", "ndjson":
	default:
		return usagef("--output: unknown output %q: use table or ndjson", o.output)
	}
	if o.events && o.output != "ndjson" {
		return usagef("--events needs --output ndjson")
	}
	if fs.Changed("source") && len(o.sources) == 0 {
		return usagef("--source: name at least one of %s", strings.Join(tracer.SourceNames(), ", "))
	}
	return nil
}

// wants tells whether rows, filters or the level need a key of what is traced.
func (o *options) wants(key output.Key) bool {
	if slices.Contains(o.group.By, key) {
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
	return o.output == "" && !o.noScreen && o.count == 0 && o.duration == 0 && terminal.Interactive(os.Stdin, stdout, nil)
}
