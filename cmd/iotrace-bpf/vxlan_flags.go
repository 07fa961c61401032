package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

const vxlanAbout = `Such containers fail with "error creating vxlan interface: file exists". These
are the flags of list; watch and clean have pages of their own. "failed to set
link up: address already in use" means that something else has the UDP port of
the overlay networks: list and watch name it.
`

const vxlanListAbout = `A device is leaked when it has Docker's name for its VNI (vx-VNI-NETWORK), is in
the host's network namespace and has been DOWN for the grace period. A device is
stuck when it has been DOWN for that long in the namespace of its overlay
network. The kernel does not record how long a device has been DOWN. If a device
may be leaked or stuck, list and clean therefore watch it for the grace period
before they report it.

A device is blocking when it is not leaked by this rule but holds a name or a
VNI that a network needs, or its UDP port: so does a device made with "external"
while it is UP. A process that has the port open is shown as "udp:4789".
`

const vxlanCleanAbout = `Only leaked devices are deleted: "iotrace-bpf help vxlan list" says which those
are. Every device is kept that is UP, is outside the host's namespace, has been
DOWN for less than the grace period, has no name of Docker's, was created in
another namespace, is part of a bridge, or belongs to an overlay network that
works on this host. Nothing is deleted when neither a Docker engine nor the
namespaces of one are found, because it is unclear then which networks work.
Everything is checked again immediately before each deletion.
`

const vxlanExit = `Exit code: 0 no device is leaked, blocking or stuck, 1 failed, 2 wrong usage,
3 the privileges do not suffice, 4 a device is one of these (clean: afterwards).
`

// vxlanOptions are the flags of the vxlan commands.
type vxlanOptions struct {
	output     string
	grace      time.Duration
	docker     []string // sockets to ask for names of networks
	onlyListed bool
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
	fs.StringArrayVar(&o.docker, "docker-host", nil, "ask this Docker `SOCKET` for names of networks before the usual one; may be repeated")
	fs.BoolVar(&o.onlyListed, "only-listed-sockets", false, "ask no socket but those of --docker-host and DOCKER_HOST")
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

// names says where to ask for names, and where to log what cannot be asked.
func (o *vxlanOptions) names(log *slog.Logger) attribute.Options {
	opts := attribute.Options{DockerSockets: o.docker, OnlyListedSockets: o.onlyListed, Log: log}
	if v, err := viewHost(""); err == nil {
		opts = v.attributeOptions(opts)
	}
	return opts
}

// vxlanLog writes warnings to standard error.
func vxlanLog(stderr io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
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
		return &exitError{exitUnsupported, fmt.Errorf("%w (CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_BROADCAST are needed)", err)}
	}
	return err
}
