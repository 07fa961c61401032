package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// checkTimeout is how long check waits for the sockets to answer. An engine that is started
// by its socket may need half a minute on a host with too much I/O.
const checkTimeout = 30 * time.Second

// runCheck attaches everything, says what it found and chose, and detaches.
func runCheck(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opt := newOptions()
	if err := opt.parseSet(opt.checkFlags(), args); err != nil {
		return err
	}
	if opt.flags.NArg() > 0 {
		return usagef("check takes no argument: %q", opt.flags.Arg(0))
	}
	opt.flags.sayWarnings(stderr)
	opt.callTime = checkTimeout
	s, err := openSession(ctx, opt, stderr)
	if err != nil {
		return err
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	slow := newSlowStart(stderr, startPatience)
	slow.begin("waiting for container engines to answer")
	_ = s.resolver.WaitAnswered(ctx) // a socket without an answer until then is shown as such
	slow.end()

	found := findings{
		kernel: s.host.Kernel, hierarchy: s.resolver.Hierarchy(),
		sources: s.tracer.Status(), sockets: s.resolver.Endpoints(), untraced: s.untraced(),
	}
	found.sources = append(found.sources, vxlanStatus(found.hierarchy.ID))
	if opt.view.contained() {
		found.container = append(s.sights, noEngine(found.sockets))
	}
	return found.write(stdout, opt.verbose)
}

// findings is what check found on this host.
type findings struct {
	kernel    string
	hierarchy attribute.Hierarchy
	sources   []tracer.Status
	sockets   []attribute.Endpoint
	container []sight // nil outside of a container
	untraced  []attribute.Untraced
}

// write prints one line for each finding, and one for each limitation. Sockets that
// do not exist are left out unless verbose is set.
func (f *findings) write(out io.Writer, verbose bool) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "kernel\t%s\n", text.Safe(f.kernel))
	fmt.Fprintf(w, "cgroups\tversion %d, named by hierarchy %d at %s\n",
		f.hierarchy.Version, f.hierarchy.ID, cmp.Or(text.Safe(f.hierarchy.Mount), "(not mounted)"))
	for _, st := range f.sources {
		writeStatus(w, st)
	}
	for _, u := range f.untraced {
		fmt.Fprintf(w, "not traced\t%s\n", text.Safe(u.FSType+" at "+somePoints(u)+": its I/O is in no row"))
	}
	first := "container"
	for _, s := range f.container {
		for _, line := range s.lines() {
			fmt.Fprintf(w, "%s\t%s\n", first, line)
			first = ""
		}
	}
	absent := 0
	for _, e := range f.sockets {
		if e.State == attribute.StateAbsent {
			absent++
			if !verbose {
				continue
			}
		}
		writeSocket(w, e)
	}
	if absent > 0 && absent == len(f.sockets) && !verbose {
		fmt.Fprintf(w, "sockets\tno container engine found, containers are shown by their ids (%s tried: -v lists them)\n", text.Plural(absent, "socket", "sockets"))
	}
	return w.Flush()
}

func writeStatus(w io.Writer, st tracer.Status) {
	switch {
	case st.Waiting:
		fmt.Fprintf(w, "source %s\twaiting: %s; traced as soon as it is loaded\n", st.Source, text.Safe(st.Reason))
	case !st.Attached:
		fmt.Fprintf(w, "source %s\tabsent: %s\n", st.Source, text.Safe(st.Reason))
	default:
		fmt.Fprintf(w, "source %s\t%s\n", st.Source, strings.Join(st.Hooks, ", "))
		for _, l := range st.Limitations {
			fmt.Fprintf(w, "\tlimitation: %s\n", text.Safe(l.Text))
			if l.Remedy != "" {
				fmt.Fprintf(w, "\t  lifted by: %s\n", l.Remedy)
			}
		}
	}
}

func writeSocket(w io.Writer, e attribute.Endpoint) {
	fmt.Fprintf(w, "socket %s\t%s: %s", text.Safe(e.Socket), e.Runtime, e.State)
	if e.Version != "" {
		fmt.Fprintf(w, ", %s, %s", text.Safe(e.Version), text.Plural(e.Containers, "container", "containers"))
		switch {
		case e.User != "":
			fmt.Fprintf(w, " of user %s", text.Safe(e.User))
		case e.Inside != "":
			fmt.Fprintf(w, " inside container %s", text.Safe(output.ShortID(e.Inside)))
		}
	}
	if e.Err != nil {
		fmt.Fprintf(w, " (%s)", text.Safe(e.Err.Error()))
	}
	fmt.Fprintln(w)
}
