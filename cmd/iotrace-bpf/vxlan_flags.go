package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

const vxlanAbout = `Such containers fail with "error creating vxlan interface: file exists". These
are the flags of list; watch and clean have pages of their own.
`

const vxlanListAbout = `A device is leaked when all of this is true: it is of kind vxlan; its name is
one that Docker gives (vx-VNI-NETWORK), with its own VNI in it; it is in the
network namespace of the host; it has been DOWN for the grace period. The kernel
does not keep for how long a device has been DOWN. So list and clean watch a
suspicious one for the grace period before they call it leaked. A device is
blocking when it is not leaked, but has the name or the VNI that a network
needs.
`

const vxlanCleanAbout = `Only leaked devices are deleted: "iotrace-bpf help vxlan list" says which those
are. Never deleted are devices that are UP, younger than the grace period,
outside of the host's network namespace, not named by Docker, made in another
namespace, part of a bridge, or part of an overlay that works on this host.
Nothing is deleted where neither an engine nor its namespaces can be found to
tell that. Each device is looked at again immediately before it is deleted.
`

const vxlanExit = `Exit code: 0 no device leaks or blocks, 1 failed, 2 wrong usage, 3 these
privileges are not enough, 4 a device leaks or blocks (after clean: still).
`

// vxlanOptions are the flags of the vxlan commands.
type vxlanOptions struct {
	output     string
	grace      time.Duration
	dockerHost string
	hostNetNS  string
	netNSDirs  []string
	yes        bool
	dryRun     bool
	duration   time.Duration
	netlink    bool
	without    []string
	readyFile  string
	namespace  string
	verbose    bool
}

func newVXLANOptions() *vxlanOptions { return &vxlanOptions{grace: vxlan.DefaultGrace} }

func (o *vxlanOptions) listFlags(command string) *flagSet {
	f := newFlagSet(command)
	f.group("Flags", o.graceFlags, o.outputFlags)
	f.group("Where to look", o.placeFlags)
	f.general()
	return f
}

func (o *vxlanOptions) watchFlags() *flagSet {
	f := newFlagSet("vxlan watch")
	f.group("Flags", o.eventFlags, o.graceFlags, o.outputFlags)
	f.group("Where to look", o.placeFlags)
	f.general(func(fs *pflag.FlagSet) {
		fs.BoolVarP(&o.verbose, "verbose", "v", false, "print what was attached, and why nothing better")
	})
	return f
}

func (o *vxlanOptions) cleanFlags() *flagSet {
	f := newFlagSet("vxlan clean")
	f.group("Flags", func(fs *pflag.FlagSet) {
		fs.BoolVar(&o.yes, "yes", false, "delete without a question")
		fs.BoolVar(&o.dryRun, "dry-run", false, "print what would be deleted, and delete nothing")
	}, o.graceFlags, o.outputFlags)
	f.group("Where to look", o.placeFlags)
	f.general()
	return f
}

func (o *vxlanOptions) graceFlags(fs *pflag.FlagSet) {
	fs.Var(duration{&o.grace, ""}, "grace", "a device is leaked when it has been DOWN for `TIME`")
}

func (o *vxlanOptions) outputFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.output, "output", "table", "`FORMAT` of standard output: table or ndjson")
	defineNamespace(fs, &o.namespace)
}

func (o *vxlanOptions) placeFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.dockerHost, "docker-host", "", "ask the Docker `SOCKET` for names of networks (default: the usual one)")
	fs.StringVar(&o.hostNetNS, "host-netns", "", "`FILE` of the host's network namespace (default: that of process 1)")
	fs.StringArrayVar(&o.netNSDirs, "netns-dir", nil, "look for files of network namespaces in `DIR`; may be repeated (default: where Docker and ip-netns keep them)")
}

func (o *vxlanOptions) eventFlags(fs *pflag.FlagSet) {
	fs.Var(duration{&o.duration, "never"}, "duration", "stop after `TIME`: 30 (seconds), 10m, 1h30m")
	fs.BoolVar(&o.netlink, "netlink", false, "attach nothing to the kernel: events come later, and without the process")
	fs.StringArrayVar(&o.without, "without-hook", nil, "leave out hooks whose names begin with `PREFIX`")
	fs.StringVar(&o.readyFile, "ready-file", "", "create `FILE` once everything is attached")
	hide(fs, "without-hook", "ready-file")
}

func (o *vxlanOptions) scan() vxlan.ScanOptions {
	return vxlan.ScanOptions{HostNetNS: o.hostNetNS, NetNSDirs: o.netNSDirs}
}

// runVXLAN is "iotrace-bpf vxlan", with or without a further word.
func runVXLAN(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return runVXLANWith(ctx, args, os.Stdin, stdout, stderr)
}

// runVXLANVerb is "iotrace-bpf vxlan VERB".
func runVXLANVerb(verb string) func(context.Context, []string, io.Writer, io.Writer) error {
	return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
		return runVXLAN(ctx, append([]string{verb}, args...), stdout, stderr)
	}
}

func runVXLANWith(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newVXLANOptions()
	run, f := vxlanList, o.listFlags("vxlan list")
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "list":
		case "watch":
			run, f = vxlanWatch, o.watchFlags()
		case "clean":
			run, f = vxlanClean, o.cleanFlags()
		default:
			return &usageError{err: &output.UnknownError{What: "command of vxlan", Word: args[0], Known: []string{"list", "watch", "clean"}}}
		}
		args = args[1:]
	}
	if err := f.parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return usagef("unexpected argument %q", f.Arg(0))
	case o.grace <= 0:
		return usagef("%s: the grace period must be longer than %s", f.origin("grace"), o.grace)
	case o.yes && o.dryRun:
		return usagef("--yes and --dry-run contradict each other")
	}
	if err := checkOutput(f, o.output); err != nil {
		return err
	}
	if err := f.needs(o.output == "ndjson", "--output ndjson", "data-stream-namespace"); err != nil {
		return err
	}
	f.sayWarnings(stderr)
	err := run(ctx, o, stdin, stdout, stderr)
	if errors.Is(err, os.ErrPermission) {
		return &exitError{exitUnsupported, fmt.Errorf("%w (CAP_NET_ADMIN and CAP_SYS_ADMIN are needed)", err)}
	}
	return err
}
