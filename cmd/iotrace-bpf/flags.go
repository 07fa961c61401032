package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
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

	// names
	dockerHost   string
	cri          string
	projectLabel string

	// limits
	maxGroups  uint32
	ringSize   uint32
	readyFile  string
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
	fs.BoolVar(&o.events, "events", false, "with ndjson: one document per I/O instead of totals")

	fs.StringVar(&o.output, "output", "", "table or ndjson (default table)")
	fs.StringVar(&o.namespace, "namespace", "default", "namespace of the data streams that documents name")
	fs.StringArrayVar(&o.exportLabels, "export-label", nil, "put this container label into documents as well; may repeat")

	fs.StringVar(&o.dockerHost, "docker-host", "", "ask this Docker or Podman socket for names (default: all that exist)")
	fs.StringVar(&o.cri, "cri", "", "ask this CRI socket for names (default: all that exist)")
	fs.StringVar(&o.projectLabel, "project-label", "", "container label that names the project, before all other rules")

	fs.Uint32Var(&o.maxGroups, "max-groups", 16384, "owners times devices times operations kept apart per interval")
	fs.Uint32Var(&o.ringSize, "event-buffer", 8<<20, "bytes of buffer for --events, a power of two")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "say what is tried and chosen, with the verifier's log")
	fs.StringVar(&o.readyFile, "ready-file", "", "create this file once everything is attached")
	fs.StringVar(&o.cpuProfile, "cpu-profile", "", "write a CPU profile of this process")
	for _, hidden := range []string{"ready-file", "cpu-profile"} {
		fs.Lookup(hidden).Hidden = true
	}
	return fs
}

// parse reads the command line. Errors are usage errors or pflag.ErrHelp.
func (o *options) parse(args []string) error {
	fs := o.flags()
	if err := fs.Parse(args); err != nil {
		if err == pflag.ErrHelp {
			return err
		}
		return &usageError{err}
	}
	if err := o.positional(fs.Args()); err != nil {
		return err
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
	case o.ringSize < 4096 || o.ringSize&(o.ringSize-1) != 0 || o.ringSize > 1<<30:
		return usagef("--event-buffer %d: must be a power of two from 4096 to %d", o.ringSize, 1<<30)
	}
	for _, s := range o.sources {
		if !slices.Contains(tracer.SourceNames(), s) {
			return usagef("--source: unknown source %q: use %s", s, strings.Join(tracer.SourceNames(), ", "))
		}
	}
	switch o.output {
	case "":
		o.output = "table"
	case "table", "ndjson":
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

func (o *options) String() string { return fmt.Sprintf("%+v", *o) }
