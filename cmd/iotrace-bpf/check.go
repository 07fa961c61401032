package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// checkTimeout bounds how long the sockets may take to answer.
const checkTimeout = 10 * time.Second

// runCheck attaches everything, says what was chosen and why, and detaches.
func runCheck(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var opt options
	if err := opt.parse(args); err != nil {
		return err
	}
	opt.callTime = checkTimeout
	s, err := openSession(ctx, &opt, stderr)
	if err != nil {
		return err
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_ = s.resolver.WaitAnswered(ctx) // what has not answered by then is shown as such

	h := s.resolver.Hierarchy()
	w := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "kernel\t%s\n", text.Safe(s.host.Kernel))
	fmt.Fprintf(w, "cgroups\tversion %d, named by hierarchy %d at %s\n", h.Version, h.ID, text.Safe(h.Mount))
	for _, st := range s.tracer.Status() {
		writeStatus(w, st)
	}
	writeStatus(w, vxlanStatus(h.ID))
	for _, e := range s.resolver.Endpoints() {
		fmt.Fprintf(w, "socket %s\t%s: %s", text.Safe(e.Socket), e.Runtime, e.State)
		if e.Version != "" {
			fmt.Fprintf(w, ", %s, %d containers", text.Safe(e.Version), e.Containers)
		}
		if e.Err != nil {
			fmt.Fprintf(w, " (%s)", text.Safe(e.Err.Error()))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func writeStatus(w io.Writer, st tracer.Status) {
	if st.Waiting {
		fmt.Fprintf(w, "source %s\twaiting: %s; attached when it is\n", st.Source, text.Safe(st.Reason))
		return
	}
	if !st.Attached {
		fmt.Fprintf(w, "source %s\tabsent: %s\n", st.Source, text.Safe(st.Reason))
		return
	}
	fmt.Fprintf(w, "source %s\t%s\n", st.Source, strings.Join(st.Hooks, ", "))
	for _, c := range st.Costs {
		fmt.Fprintf(w, "\tcosts: %s\n", c)
	}
}
