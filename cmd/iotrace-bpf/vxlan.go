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

	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

// exitLeaked is the exit code when a vxlan device, or what takes its UDP port, keeps
// containers from starting or from reaching others.
const exitLeaked = 4

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

// bad tells whether a device keeps containers from starting or from reaching others.
func bad(f *vxlan.Finding) bool {
	return f.Verdict == vxlan.IsLeaked || f.Verdict == vxlan.Blocking || f.Verdict == vxlan.Stuck
}

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
	fmt.Fprintf(&b, "\n%s: %s: %s\n", deviceText(f), f.Verdict, text.Safe(f.Reason))
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

// deviceText names a device by what the kernel never gives to two at once; a socket has no
// ifindex.
func deviceText(f *vxlan.Finding) string {
	if f.Ifindex == 0 {
		return text.Safe(f.Name)
	}
	return fmt.Sprintf("%s (ifindex %d)", text.Safe(f.Name), f.Ifindex)
}

func devices(n int) string { return text.Plural(n, "device", "devices") }

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
		fmt.Fprintf(stderr, "iotrace-bpf: %s could not be read\n", text.Plural(n, "network namespace", "network namespaces"))
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
