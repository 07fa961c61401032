package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

// overlayWatch follows vxlan devices and makes events of what happens to them,
// with the names that engine and cgroups give.
type overlayWatch struct {
	watcher   *vxlan.Watcher
	directory *overlayDirectory
	owner     func(cgroup uint64) *output.Sample
	polled    map[string]bool // refused tasks that were told
}

// overlayOptions is what a watch needs of its surroundings.
type overlayOptions struct {
	vxlanOptions
	hierarchy int                                // that owners are named in
	owner     func(cgroup uint64) *output.Sample // nil: owners have no names
	stderr    io.Writer
}

func newOverlayWatch(o overlayOptions) (*overlayWatch, error) {
	backend := vxlan.Auto
	if o.netlink {
		backend = vxlan.Netlink
	}
	w, err := vxlan.NewWatcher(vxlan.WatchOptions{
		Scan: o.scan(), Grace: o.grace, Backend: backend, Hierarchy: uint32(o.hierarchy), Skip: o.without,
	})
	if err != nil {
		return nil, err
	}
	return &overlayWatch{
		watcher: w, directory: newOverlayDirectory(&o.vxlanOptions, o.stderr), owner: o.owner, polled: make(map[string]bool),
	}, nil
}

func (w *overlayWatch) Close() error {
	w.directory.Close()
	return w.watcher.Close()
}

// status says what the watch is attached to.
func (w *overlayWatch) status() output.SourceStatus {
	return output.SourceStatus{Source: "vxlan", Attached: true, Hook: w.watcher.Hooks(), Cost: w.watcher.Cost()}
}

// lost counts events that could not be delivered.
func (w *overlayWatch) lost() uint64 { return w.watcher.Lost() }

// refusedPeriod is how often the engine is asked for starts that were refused,
// where the kernel does not tell.
const refusedPeriod = 5 * time.Second

// run calls emit with every event, from one goroutine, until ctx is done.
func (w *overlayWatch) run(ctx context.Context, emit func(output.Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var polling sync.WaitGroup
	defer polling.Wait()
	if w.directory.names != nil && !strings.Contains(w.watcher.Hooks(), "rtnl_newlink") {
		polling.Go(func() { w.poll(ctx) })
	}
	defer cancel()
	return w.watcher.Run(ctx, func(e vxlan.Event) { emit(w.event(ctx, &e)) })
}

// poll turns refused starts, as the engine tells them, into refused creations.
func (w *overlayWatch) poll(ctx context.Context) {
	start := time.Now()
	tick := time.NewTicker(refusedPeriod)
	defer tick.Stop()
	for {
		list, err := w.directory.names.refusals(ctx)
		if err != nil && ctx.Err() == nil {
			w.directory.mu.Lock()
			w.directory.complain(err)
			w.directory.mu.Unlock()
		}
		slices.SortFunc(list, func(a, b refusedStart) int { return a.at.Compare(b.at) })
		for _, r := range list {
			if w.polled[r.task] || r.at.Before(start) {
				continue
			}
			w.polled[r.task] = true
			w.refused(ctx, &r)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *overlayWatch) refused(ctx context.Context, r *refusedStart) {
	networks := w.directory.get(ctx, overlayAge)
	for i := range networks {
		n := &networks[i]
		if n.ID != r.network {
			continue
		}
		for _, vni := range refusedVNIs(n, r.err) {
			w.watcher.Report(ctx, vxlan.Event{
				Time: r.at, Action: vxlan.Refused, Message: r.err,
				Device: vxlan.Device{
					Name: fmt.Sprintf("vx-%06x-%.5s", vni, n.ID), Kind: vxlan.Kind, NetNS: w.watcher.Host(), VNI: vni, Port: n.Port,
				},
			})
		}
		return
	}
}

// refusedVNIs picks the VNI of the subnet that an error names: the engine lists
// both in the same order. Should it name none, it may be any of them.
func refusedVNIs(n *vxlan.Network, text string) []uint32 {
	for i, subnet := range n.Subnets {
		if i < len(n.VNIs) && strings.Contains(text, `"`+subnet+`"`) {
			return n.VNIs[i : i+1]
		}
	}
	return n.VNIs
}

// event translates, and fills in the names.
func (w *overlayWatch) event(ctx context.Context, e *vxlan.Event) output.Event {
	v := &output.VXLAN{
		Device: e.Name, Ifindex: uint32(e.Ifindex), VNI: e.VNI, NetNS: idOf(e.NetNS), NewNetNS: idOf(e.ToNetNS), Up: e.Up,
		Reason: e.Reason, AgeNanos: uint64(max(0, e.Age)), Err: e.Message,
	}
	if e.Err != 0 && v.Err == "" {
		v.Err = e.Err.Error()
	}
	if e.Action == vxlan.Renamed && e.OldName != "" {
		v.Reason = fmt.Sprintf("was %q", e.OldName)
	}
	if e.Actor != nil {
		v.Process = output.Process{PID: e.Actor.PID, Name: e.Actor.Comm}
		if w.owner != nil {
			v.Owner = w.owner(e.Actor.Cgroup)
		}
	}
	if c := e.Culprit; c != nil {
		v.Culprit, v.CulpritNetNS = c.Name, idOf(c.NetNS)
		v.Reason += w.history(c)
	}
	name := e.Name
	if _, _, named := vxlan.ParseName(name); !named && e.OldName != "" {
		name = e.OldName
	}
	fillNetwork(v, w.directory.of(ctx, name, e.VNI, nil))
	if v.NetworkID == "" {
		_, v.NetworkID, _ = vxlan.ParseName(name)
	}
	return output.Event{Time: e.Time, Dataset: output.DatasetVXLAN, Action: string(e.Action), VXLAN: v}
}

// history says where a culprit is, since when, and who made it.
func (w *overlayWatch) history(c *vxlan.Track) string {
	text := ", in namespace " + netNSText(c.NetNS, w.watcher.Host())
	if space := w.watcher.Path(c.NetNS); space != "" && c.NetNS != w.watcher.Host() {
		text += " (" + space + ")"
	}
	if c.Seen {
		text += ", there before " + c.Since.Format(time.RFC3339)
	} else {
		text += ", there since " + c.Since.Format(time.RFC3339)
	}
	if c.Maker != nil {
		text += fmt.Sprintf(", made by %s (pid %d)", c.Maker.Comm, c.Maker.PID)
		if w.owner != nil {
			if s := w.owner(c.Maker.Cgroup); s != nil && s.Container.Name != "" {
				text += " of container " + s.Container.Name
			}
		}
	}
	return text
}

// overlayStatus attaches a watch, says to what, and detaches.
func overlayStatus(hierarchy int) tracer.Status {
	w, err := vxlan.NewWatcher(vxlan.WatchOptions{Hierarchy: uint32(hierarchy)})
	if err != nil {
		return tracer.Status{Source: "vxlan", Reason: err.Error()}
	}
	defer w.Close()
	st := tracer.Status{Source: "vxlan", Attached: true, Hooks: strings.Split(w.Hooks(), ", ")}
	if cost := w.Cost(); cost != "" {
		for text := range strings.SplitSeq(cost, "; ") {
			st.Limitations = append(st.Limitations, tracer.Limitation{Text: text})
		}
	}
	return st
}

// vxlanWatch tells what happens to vxlan devices.
func vxlanWatch(ctx context.Context, o *vxlanOptions, _ io.Reader, stdout, stderr io.Writer) error {
	resolver, err := attribute.NewResolver(attribute.Options{DockerHost: o.dockerHost})
	if err != nil {
		return err
	}
	defer resolver.Close()
	resolver.Start(ctx)
	if err := resolver.Walk(); err != nil {
		fmt.Fprintf(stderr, "iotrace-bpf: walking the cgroups: %s\n", output.SafeText(err.Error()))
	}
	j := joiner{resolver: resolver}
	w, err := newOverlayWatch(overlayOptions{
		vxlanOptions: *o, hierarchy: resolver.Hierarchy().ID, stderr: stderr,
		owner: func(cgroup uint64) *output.Sample {
			s := &output.Sample{}
			j.name(s, cgroup)
			return s
		},
	})
	if err != nil {
		return err
	}
	if o.verbose {
		fmt.Fprintf(stderr, "iotrace-bpf: attached %s; not known: %s\n", w.watcher.Hooks(), cmp.Or(w.watcher.Cost(), "nothing"))
		if why := w.watcher.Fallback(); why != nil {
			fmt.Fprintf(stderr, "iotrace-bpf: %s\n", output.SafeText(why.Error()))
		}
	} else if w.watcher.Fallback() != nil {
		fmt.Fprintf(stderr, "iotrace-bpf: this kernel lets us attach %s only: %s\n", w.watcher.Hooks(), w.watcher.Cost())
	}
	if o.readyFile != "" {
		if err := os.WriteFile(o.readyFile, nil, 0o600); err != nil {
			return errors.Join(fmt.Errorf("creating the ready file: %w", err), w.Close())
		}
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	host := thisHost()
	var written error
	err = w.run(ctx, func(e output.Event) {
		if written != nil {
			return
		}
		if o.output == "ndjson" {
			written = writeEvents(stdout, o.namespace, host, e)
		} else {
			_, written = fmt.Fprintf(stdout, "%s %s\n", e.Time.Format("15:04:05.000"), e.String())
		}
		if written != nil {
			stop()
		}
	})
	lost := w.lost()
	err = errors.Join(err, written, w.Close())
	if lost > 0 {
		fmt.Fprintf(stderr, "iotrace-bpf: %d events were lost\n", lost)
	}
	return err
}
