package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
)

// exitLeaked says that an overlay device keeps containers from starting.
const exitLeaked = 4

const vxlanUsage = `Finds the overlay devices that keep containers of a Docker Swarm from starting
("error creating vxlan interface: file exists").

Usage:
  iotrace-bpf vxlan [list] [flags]   every vxlan device, its network and the verdict on it
  iotrace-bpf vxlan watch [flags]    what happens to them, and who did it
  iotrace-bpf vxlan clean [flags]    delete the leaked ones, after asking

A device is leaked when it is of kind vxlan, bears the name that Docker gives
(vx-VNI-NETWORK) with its own VNI in it, lies in the host's network namespace and
has been DOWN for the grace period. How long a device has been DOWN is not kept
by the kernel: when there is one that may be leaked, list and clean watch it for
the grace period before they say so. A device is blocking when it is not leaked
by that rule but holds the name or the VNI that a network needs.

clean deletes leaked devices and nothing else: none that is UP, outside the
host's namespace, younger than the grace period, not Docker's by name, made in
another namespace, part of a bridge, or of an overlay that works on this host; and
nothing where neither an engine nor its namespaces are found to tell that. It looks
at everything again, immediately before each deletion.

Flags:
`

const vxlanUsageTail = `
Exit status: 0 nothing leaks or blocks, 1 failed, 2 wrong usage, 3 these
privileges cannot look or watch, 4 a device leaks or blocks (clean: still).
`

// vxlanOptions are the flags of "vxlan".
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

func (o *vxlanOptions) flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("vxlan", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	fs.Usage = func() {}
	fs.StringVar(&o.output, "output", "table", "table or ndjson")
	fs.DurationVar(&o.grace, "grace", vxlan.DefaultGrace, "how long a device must have been DOWN to be leaked")
	fs.BoolVar(&o.yes, "yes", false, "clean: do not ask")
	fs.BoolVar(&o.dryRun, "dry-run", false, "clean: say what would be deleted, delete nothing")
	fs.DurationVar(&o.duration, "duration", 0, "watch: end after so long (0 is never)")
	fs.BoolVar(&o.netlink, "netlink", false, "watch: without hooks in the kernel")
	fs.StringVar(&o.dockerHost, "docker-host", "", "ask this Docker socket for names of networks (default: the usual one)")
	fs.StringVar(&o.hostNetNS, "host-netns", "", "the host's network namespace (default: that of process 1)")
	fs.StringSliceVar(&o.netNSDirs, "netns-dir", nil, "folders with namespace files (default: those of Docker and ip-netns)")
	fs.StringVar(&o.namespace, "namespace", "default", "namespace of the data streams that documents name")
	fs.BoolVarP(&o.verbose, "verbose", "v", false, "watch: say what is attached, and why nothing better")
	fs.StringSliceVar(&o.without, "without-hook", nil, "leave out hooks that start with this")
	fs.StringVar(&o.readyFile, "ready-file", "", "create this file once everything is attached")
	for _, hidden := range []string{"without-hook", "ready-file"} {
		fs.Lookup(hidden).Hidden = true
	}
	return fs
}

func (o *vxlanOptions) scan() vxlan.ScanOptions {
	return vxlan.ScanOptions{HostNetNS: o.hostNetNS, NetNSDirs: o.netNSDirs}
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
		return usagef("the grace period must be longer than %s", o.grace)
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

// netNSText names a network namespace for people.
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

// idOf is a namespace's inode number for documents; 0 when it is not known.
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

// ageText is short and exact enough for a column.
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

// writeFinding says what is wrong with a device, and all that is known of the
// network that suffers from it.
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

// devices counts in words.
func devices(n int) string {
	if n == 1 {
		return "1 device"
	}
	return fmt.Sprintf("%d devices", n)
}

// findingEvent makes a document's content of a verdict.
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

// writeEvents writes documents of iotrace.vxlan and no others.
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

// vxlanList shows every vxlan device.
func vxlanList(ctx context.Context, o *vxlanOptions, _ io.Reader, stdout, stderr io.Writer) error {
	directory := newOverlayDirectory(o, stderr)
	defer directory.Close()
	seen, err := vxlan.Observe(ctx, vxlan.WatchOptions{Scan: o.scan(), Grace: o.grace})
	if err != nil {
		return err
	}
	defer seen.Close()
	findings, unreadable, err := seen.Findings(directory.get(ctx, 0))
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
		fmt.Fprintf(stderr, "iotrace-bpf: %d network namespaces could not be looked into\n", n)
	}
}

// vxlanClean deletes what is leaked.
func vxlanClean(ctx context.Context, o *vxlanOptions, stdin io.Reader, stdout, stderr io.Writer) error {
	directory := newOverlayDirectory(o, stderr)
	defer directory.Close()
	seen, err := vxlan.Observe(ctx, vxlan.WatchOptions{Scan: o.scan(), Grace: o.grace})
	if err != nil {
		return err
	}
	defer seen.Close()
	findings, unreadable, err := seen.Findings(directory.get(ctx, 0))
	if err != nil {
		return err
	}
	sayUnreadable(stderr, unreadable)
	human := stdout
	if o.output == "ndjson" {
		human = stderr // standard output is for documents alone
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
			if left, err = cleanUp(ctx, o, seen, directory, doomed, stdout, human); err != nil {
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

// ask waits for an answer of the user's. Without a user there is none.
func ask(ctx context.Context, stdin io.Reader, w io.Writer, question string) (bool, error) {
	if f, ok := stdin.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return false, usagef("nobody to ask: standard input is no terminal; --yes deletes without asking")
	}
	fmt.Fprint(w, question)
	type answer struct {
		text string
		err  error
	}
	// A read of a terminal cannot be interrupted: should ctx end first, this
	// goroutine ends with the process.
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

// cleanUp deletes and says so; it returns how many devices leak or block
// afterwards.
func cleanUp(ctx context.Context, o *vxlanOptions, seen *vxlan.Observer, directory *overlayDirectory,
	doomed []vxlan.Finding, stdout, human io.Writer,
) (left int, err error) {
	var failed error
	for i := range doomed {
		f := &doomed[i]
		// Asked again for each: what was dead a moment ago may live now.
		err := seen.Delete(*f, directory.get(ctx, 0))
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
	findings, _, err := seen.Findings(directory.get(ctx, 0))
	return badCount(findings), errors.Join(failed, err)
}
