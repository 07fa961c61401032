package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
)

// exitLeaked is the exit code when a vxlan device keeps containers from starting.
const exitLeaked = 4

const vxlanUsage = `Finds the vxlan devices that keep containers of a Docker Swarm from starting
("error creating vxlan interface: file exists").

Usage:
  iotrace-bpf vxlan [list] [flags]   list the devices with network and verdict
  iotrace-bpf vxlan watch [flags]    print what happens, and who did it
  iotrace-bpf vxlan clean [flags]    delete the leaked devices, after asking

A device is leaked when it has Docker's name for its VNI (vx-VNI-NETWORK), is in
the host's network namespace and has been DOWN for the grace period. The kernel
does not record how long a device has been DOWN. If a device may be leaked, list
and clean therefore watch it for the grace period before they report it. A device
is blocking when it is not leaked by this rule but holds a name or a VNI that a
network needs.

clean deletes leaked devices only. It keeps every device that is UP, is outside
the host's namespace, has been DOWN for less than the grace period, has no name of
Docker's, was created in another namespace, is part of a bridge, or belongs to an
overlay network that works on this host. It deletes nothing when it finds neither
a Docker engine nor the namespaces of one, because it cannot tell then which
networks work. It checks everything again immediately before each deletion.

Flags:
`

const vxlanUsageTail = `
Exit status: 0 no device is leaked or blocking, 1 failed, 2 wrong usage, 3 the
privileges do not suffice, 4 a device is leaked or blocking (clean: afterwards).
`

// vxlanOptions are the values of the flags of "vxlan".
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

func (o *vxlanOptions) flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("vxlan", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	fs.Usage = func() {}
	fs.StringVar(&o.output, "output", "table", "table or ndjson")
	fs.DurationVar(&o.grace, "grace", vxlan.DefaultGrace, "how long a device must be DOWN to count as leaked")
	fs.BoolVar(&o.yes, "yes", false, "clean: delete without asking")
	fs.BoolVar(&o.dryRun, "dry-run", false, "clean: show what would be deleted, delete nothing")
	fs.DurationVar(&o.duration, "duration", 0, "watch: stop after this time (0: never)")
	fs.BoolVar(&o.netlink, "netlink", false, "watch: use rtnetlink notifications instead of kernel hooks")
	fs.StringArrayVar(&o.docker, "docker-host", nil, "ask this Docker socket for names of networks first (may be repeated)")
	fs.BoolVar(&o.onlyListed, "only-listed-sockets", false, "ask no socket but those of --docker-host and DOCKER_HOST")
	fs.StringVar(&o.hostNetNS, "host-netns", "", "path of the host's network namespace (default: that of process 1)")
	fs.StringSliceVar(&o.netNSDirs, "netns-dir", nil, "directories with namespace files (default: those of Docker and ip-netns)")
	fs.StringVar(&o.namespace, "namespace", "default", "data stream namespace of the documents")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "watch: show the attached hooks, and why better ones are missing")
	fs.StringSliceVar(&o.without, "without-hook", nil, "leave out hooks whose names start with this")
	fs.StringVar(&o.readyFile, "ready-file", "", "create this file once everything is attached")
	for _, hidden := range []string{"without-hook", "ready-file"} {
		fs.Lookup(hidden).Hidden = true
	}
	return fs
}

func (o *vxlanOptions) scan() vxlan.ScanOptions {
	return vxlan.ScanOptions{HostNetNS: o.hostNetNS, NetNSDirs: o.netNSDirs}
}

// names says where to ask for names, and where to log what cannot be asked.
func (o *vxlanOptions) names(log *slog.Logger) attribute.Options {
	return attribute.Options{DockerSockets: o.docker, OnlyListedSockets: o.onlyListed, Log: log}
}

// vxlanLog writes warnings to standard error.
func vxlanLog(stderr io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// runVXLAN is "iotrace-bpf vxlan".
func runVXLAN(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return runVXLANWith(ctx, args, os.Stdin, stdout, stderr)
}

func runVXLANWith(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	verbs := map[string]func(context.Context, *vxlanOptions, io.Reader, io.Writer, io.Writer) error{
		"list": vxlanList, "watch": vxlanWatch, "clean": vxlanClean,
	}
	verb := vxlanList
	name := "list"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name = args[0]
		if verb = verbs[name]; verb == nil {
			return usagef("unknown command %q of vxlan (known: list, watch, clean)", name)
		}
		args = args[1:]
	}
	var o vxlanOptions
	fs := o.flags()
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			_, err := fmt.Fprint(stdout, vxlanUsage+fs.FlagUsagesWrapped(80)+vxlanUsageTail)
			return err
		}
		return &usageError{err}
	}
	switch {
	case fs.NArg() > 0:
		return usagef("unexpected argument %q", fs.Arg(0))
	case o.output != "table" && o.output != "ndjson":
		return usagef("unknown output %q (known: table, ndjson)", o.output)
	case o.grace <= 0:
		return usagef("--grace %s: must be longer than 0s", o.grace)
	case name != "clean" && (o.yes || o.dryRun):
		return usagef("--yes and --dry-run are for clean")
	case name != "watch" && (o.duration != 0 || o.netlink):
		return usagef("--duration and --netlink are for watch")
	case o.yes && o.dryRun:
		return usagef("--yes and --dry-run contradict each other")
	}
	err := verb(ctx, &o, stdin, stdout, stderr)
	if errors.Is(err, os.ErrPermission) {
		return &exitError{exitUnsupported, fmt.Errorf("%w (CAP_NET_ADMIN and CAP_SYS_ADMIN are needed)", err)}
	}
	return err
}

// netNSText names a network namespace: "host", its inode number, "unreachable" or "?".
func netNSText(inode, host uint64) string {
	switch {
	case inode == 0:
		return "?"
	case inode == host:
		return "host"
	case vxlan.Unreachable(inode):
		return "unreachable"
	}
	return fmt.Sprint(inode)
}

// idOf returns a namespace's inode number for documents; 0 when it is not known.
func idOf(inode uint64) uint64 {
	if vxlan.Unreachable(inode) {
		return 0
	}
	return inode
}

func stateText(up bool) string {
	if up {
		return "UP"
	}
	return "DOWN"
}

// ageText formats an age for a column.
func ageText(age time.Duration, atLeast bool) string {
	var text string
	switch {
	case age < time.Minute:
		text = fmt.Sprintf("%.1fs", age.Seconds())
	case age < 48*time.Hour:
		text = age.Round(time.Second).String()
	default:
		text = fmt.Sprintf("%dd", age/(24*time.Hour))
	}
	if atLeast {
		return ">" + text
	}
	return text
}

func networkText(f *vxlan.Finding) string {
	switch {
	case f.Network != nil:
		return f.Network.Name
	case f.NetworkID != "":
		return f.NetworkID + "..."
	}
	return "-"
}

// bad tells whether a device keeps containers from starting.
func bad(f *vxlan.Finding) bool { return f.Verdict == vxlan.IsLeaked || f.Verdict == vxlan.Blocking }

func badCount(findings []vxlan.Finding) int {
	n := 0
	for i := range findings {
		if bad(&findings[i]) {
			n++
		}
	}
	return n
}

func writeFindings(w io.Writer, findings []vxlan.Finding, host uint64) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tIFINDEX\tVNI\tPORT\tNETNS\tSTATE\tAGE\tNETWORK\tVERDICT")
	for i := range findings {
		f := &findings[i]
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n", text.Safe(f.Name), f.Ifindex, f.VNI, f.Port,
			netNSText(f.NetNS, host), stateText(f.Up), ageText(f.Age, f.AtLeast), text.Safe(networkText(f)), f.Verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range findings {
		if f := &findings[i]; bad(f) || f.Verdict == vxlan.Settling {
			if err := writeFinding(w, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeFinding writes what is wrong with a device, and what is known about the network
// that it blocks.
func writeFinding(w io.Writer, f *vxlan.Finding) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s (ifindex %d): %s: %s\n", text.Safe(f.Name), f.Ifindex, f.Verdict, text.Safe(f.Reason))
	if n := f.Network; n != nil {
		fmt.Fprintf(&b, "  network %s, id %s", text.Safe(n.Name), text.Safe(n.ID))
		for _, part := range []struct{ name, value string }{
			{"stack", n.Stack}, {"services", strings.Join(n.Services, ", ")}, {"subnets", strings.Join(n.Subnets, ", ")},
		} {
			if part.value != "" {
				fmt.Fprintf(&b, ", %s %s", part.name, text.Safe(part.value))
			}
		}
		b.WriteByte('\n')
	}
	switch {
	case f.Keep == "":
		b.WriteString("  iotrace-bpf vxlan clean deletes it\n")
	case bad(f):
		fmt.Fprintf(&b, "  clean leaves it alone: %s\n", text.Safe(f.Keep))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// counted returns "1 device", "2 devices".
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func devices(n int) string { return counted(n, "device", "devices") }

// findingEvent makes an event of a verdict.
func findingEvent(f *vxlan.Finding, action string, now time.Time) output.Event {
	v := &output.VXLAN{
		Device: f.Name, Ifindex: uint32(f.Ifindex), VNI: f.VNI, NetNS: idOf(f.NetNS), Up: f.Up, Reason: f.Reason,
		NetworkID: f.NetworkID, AgeNanos: uint64(f.Age),
	}
	fillNetwork(v, f.Network)
	return output.Event{Time: now, Dataset: output.DatasetVXLAN, Action: action, VXLAN: v}
}

func fillNetwork(v *output.VXLAN, n *vxlan.Network) {
	if n == nil {
		return
	}
	v.Network, v.NetworkID, v.Stack, v.Services = n.Name, n.ID, n.Stack, n.Services
}

// writeEvents writes the documents of dataset iotrace.vxlan, and no others.
func writeEvents(w io.Writer, namespace string, host output.Host, events ...output.Event) error {
	now := time.Now()
	iv := &output.Interval{Start: now, End: now, Host: host, Events: events}
	for d := range ndjson.Documents(output.Group(iv, output.GroupOptions{}), iv, ndjson.Options{Namespace: namespace}) {
		if d.Dataset != output.DatasetVXLAN {
			continue
		}
		if _, err := w.Write(d.Line); err != nil {
			return err
		}
	}
	return nil
}

// vxlanList lists every vxlan device.
func vxlanList(ctx context.Context, o *vxlanOptions, _ io.Reader, stdout, stderr io.Writer) error {
	networks := newVXLANNetworks(o.names(vxlanLog(stderr)))
	seen, err := vxlan.Observe(ctx, vxlan.WatchOptions{Scan: o.scan(), Grace: o.grace})
	if err != nil {
		return err
	}
	defer seen.Close()
	findings, unreadable, err := seen.Findings(networks.get(ctx, 0))
	if err != nil {
		return err
	}
	sayUnreadable(stderr, unreadable)
	if o.output == "ndjson" {
		events := make([]output.Event, 0, len(findings))
		for i := range findings {
			events = append(events, findingEvent(&findings[i], string(findings[i].Verdict), time.Now()))
		}
		err = writeEvents(stdout, o.namespace, thisHost(), events...)
	} else {
		err = writeFindings(stdout, findings, seen.Host())
	}
	if err != nil {
		return err
	}
	if badCount(findings) > 0 {
		return &exitError{code: exitLeaked}
	}
	return nil
}

func sayUnreadable(stderr io.Writer, n int) {
	if n > 0 {
		fmt.Fprintf(stderr, "iotrace-bpf: %s could not be read\n", counted(n, "network namespace", "network namespaces"))
	}
}

// vxlanClean deletes the leaked devices.
func vxlanClean(ctx context.Context, o *vxlanOptions, stdin io.Reader, stdout, stderr io.Writer) error {
	networks := newVXLANNetworks(o.names(vxlanLog(stderr)))
	seen, err := vxlan.Observe(ctx, vxlan.WatchOptions{Scan: o.scan(), Grace: o.grace})
	if err != nil {
		return err
	}
	defer seen.Close()
	findings, unreadable, err := seen.Findings(networks.get(ctx, 0))
	if err != nil {
		return err
	}
	sayUnreadable(stderr, unreadable)
	human := stdout
	if o.output == "ndjson" {
		human = stderr // standard output has documents only
	}
	var doomed []vxlan.Finding
	for i := range findings {
		f := &findings[i]
		if !bad(f) && f.Verdict != vxlan.Settling {
			continue
		}
		if err := writeFinding(human, f); err != nil {
			return err
		}
		if f.Verdict == vxlan.IsLeaked && f.Keep == "" {
			doomed = append(doomed, *f)
		}
	}
	left := badCount(findings)
	switch {
	case len(doomed) == 0:
		fmt.Fprintln(human, "nothing to delete")
	case o.dryRun:
		fmt.Fprintf(human, "\n%s would be deleted\n", devices(len(doomed)))
	default:
		agreed := o.yes
		if !agreed {
			if agreed, err = ask(ctx, stdin, human, fmt.Sprintf("\ndelete %s? [y/N] ", devices(len(doomed)))); err != nil {
				return err
			}
		}
		if agreed {
			if left, err = cleanUp(ctx, o, seen, networks, doomed, stdout, human); err != nil {
				return err
			}
		}
	}
	if left > 0 {
		fmt.Fprintf(human, "still leaking or blocking: %s\n", devices(left))
		return &exitError{code: exitLeaked}
	}
	return nil
}

// ask asks the user. Standard input must be a terminal, unless it is no file (tests).
func ask(ctx context.Context, stdin io.Reader, w io.Writer, question string) (bool, error) {
	if f, ok := stdin.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return false, usagef("standard input is not a terminal, so nobody can be asked: use --yes to delete without asking")
	}
	fmt.Fprint(w, question)
	type answer struct {
		text string
		err  error
	}
	// A read from a terminal cannot be interrupted: if ctx ends first, this goroutine
	// ends with the process.
	got := make(chan answer, 1)
	go func() {
		text, err := bufio.NewReader(stdin).ReadString('\n')
		got <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case a := <-got:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return false, fmt.Errorf("reading the answer: %w", a.err)
		}
		text := strings.ToLower(strings.TrimSpace(a.text))
		return text == "y" || text == "yes", nil
	}
}

// cleanUp deletes devices and reports each. It returns how many devices are leaked or
// blocking afterwards.
func cleanUp(ctx context.Context, o *vxlanOptions, seen *vxlan.Observer, networks *vxlanNetworks,
	doomed []vxlan.Finding, stdout, human io.Writer,
) (left int, err error) {
	var failed error
	for i := range doomed {
		f := &doomed[i]
		// Ask the engine again for each: a dead network may have come to life.
		err := seen.Delete(*f, networks.get(ctx, 0))
		var kept *vxlan.KeptError
		switch {
		case err == nil:
			fmt.Fprintf(human, "%s (ifindex %d): deleted\n", text.Safe(f.Name), f.Ifindex)
			if o.output == "ndjson" {
				event := findingEvent(f, string(vxlan.Cleaned), time.Now())
				failed = errors.Join(failed, writeEvents(stdout, o.namespace, thisHost(), event))
			}
		case errors.Is(err, vxlan.ErrGone), errors.Is(err, vxlan.ErrChanged), errors.As(err, &kept):
			fmt.Fprintf(human, "%s (ifindex %d): not deleted: %s\n", text.Safe(f.Name), f.Ifindex, text.Safe(err.Error()))
		default:
			failed = errors.Join(failed, err)
		}
	}
	findings, _, err := seen.Findings(networks.get(ctx, 0))
	return badCount(findings), errors.Join(failed, err)
}
