package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

// vxlanWatcher makes events of what happens to vxlan devices, with the names that the
// engine and cgroups give.
type vxlanWatcher struct {
	watcher  *vxlan.Watcher
	networks *vxlanNetworks
	owner    func(cgroup uint64) *output.Sample
	polled   map[string]bool // refused tasks that became an event
}

// vxlanWatchOptions configures a watch. Of vxlanOptions it uses grace, netlink, without
// and those of the scan.
type vxlanWatchOptions struct {
	vxlanOptions
	names     attribute.Options                  // where to ask for names of networks
	hierarchy int                                // id of the cgroup hierarchy that names owners
	owner     func(cgroup uint64) *output.Sample // nil: owners have no names
}

func newVXLANWatcher(o vxlanWatchOptions) (*vxlanWatcher, error) {
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
	return &vxlanWatcher{watcher: w, networks: newVXLANNetworks(o.names), owner: o.owner, polled: make(map[string]bool)}, nil
}

func (w *vxlanWatcher) Close() error { return w.watcher.Close() }

// status says what the watch is attached to.
func (w *vxlanWatcher) status() output.SourceStatus {
	return output.SourceStatus{Source: "vxlan", Attached: true, Hook: w.watcher.Hooks(), Limitations: w.watcher.Limitations()}
}

// lost counts events that could not be delivered.
func (w *vxlanWatcher) lost() uint64 { return w.watcher.Lost() }

// refusedPeriod is how often the engine is asked for refused starts where no hook sees
// them.
const refusedPeriod = 5 * time.Second

// run calls emit with every event, from one goroutine, until ctx is done.
func (w *vxlanWatcher) run(ctx context.Context, emit func(output.Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var polling sync.WaitGroup
	defer polling.Wait()
	unseen := map[vxlan.Action]bool{
		vxlan.Refused:   !strings.Contains(w.watcher.Hooks(), "rtnl_newlink"),
		vxlan.UpRefused: !strings.Contains(w.watcher.Hooks(), "__dev_change_flags"),
	}
	if unseen[vxlan.Refused] || unseen[vxlan.UpRefused] {
		polling.Go(func() { w.poll(ctx, unseen) })
	}
	defer cancel()
	return w.watcher.Run(ctx, func(e vxlan.Event) { emit(w.event(ctx, &e)) })
}

// poll makes events of the refused starts that the engine knows, of the kinds that no hook
// sees.
func (w *vxlanWatcher) poll(ctx context.Context, unseen map[vxlan.Action]bool) {
	start := time.Now()
	tick := time.NewTicker(refusedPeriod)
	defer tick.Stop()
	for {
		list := w.networks.refusals(ctx)
		slices.SortFunc(list, func(a, b attribute.Refusal) int { return a.Time.Compare(b.Time) })
		for i := range list {
			if r := &list[i]; !w.polled[r.Task] && !r.Time.Before(start) {
				w.polled[r.Task] = true
				w.refused(ctx, r, unseen)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *vxlanWatcher) refused(ctx context.Context, r *attribute.Refusal, unseen map[vxlan.Action]bool) {
	e := vxlan.Event{Time: r.Time, Action: vxlan.Refused, Message: r.Err}
	if strings.Contains(r.Err, unix.EADDRINUSE.Error()) {
		e.Action, e.Err = vxlan.UpRefused, unix.EADDRINUSE
	}
	if !unseen[e.Action] {
		return
	}
	networks := w.networks.get(ctx, networksAge)
	for i := range networks {
		n := &networks[i]
		if n.ID != r.Network {
			continue
		}
		for _, vni := range refusedVNIs(n, r.Err) {
			e.Device = vxlan.Device{
				Name: fmt.Sprintf("vx-%06x-%.5s", vni, n.ID), Kind: vxlan.Kind, NetNS: w.watcher.Host(), Underlay: w.watcher.Host(),
				VNI: vni, Port: n.Port,
			}
			w.watcher.Report(ctx, e)
		}
		return
	}
}

// refusedVNIs returns the VNI of the subnet that an error names: the engine lists both in
// the same order. If it names none, it may be any of them.
func refusedVNIs(n *vxlan.Network, text string) []uint32 {
	for i, subnet := range n.Subnets {
		if i < len(n.VNIs) && strings.Contains(text, `"`+subnet+`"`) {
			return n.VNIs[i : i+1]
		}
	}
	return n.VNIs
}

// event makes an output event with names.
func (w *vxlanWatcher) event(ctx context.Context, e *vxlan.Event) output.Event {
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
	fillNetwork(v, w.networks.find(ctx, name, e.VNI))
	if v.NetworkID == "" {
		_, v.NetworkID, _ = vxlan.ParseName(name)
	}
	return output.Event{Time: e.Time, Dataset: output.DatasetVXLAN, Action: string(e.Action), VXLAN: v}
}

// history says where a culprit is, since when, and which process created it.
func (w *vxlanWatcher) history(c *vxlan.Track) string {
	text := ", in namespace " + netNSText(c.NetNS, w.watcher.Host())
	if space := w.watcher.Path(c.NetNS); space != "" && c.NetNS != w.watcher.Host() {
		text += " (" + space + ")"
	}
	if c.Seen {
		text += ", since before " + c.Since.Format(time.RFC3339)
	} else {
		text += ", since " + c.Since.Format(time.RFC3339)
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

// vxlanStatus attaches a watch, says to what, and detaches.
func vxlanStatus(hierarchy int) tracer.Status {
	w, err := vxlan.NewWatcher(vxlan.WatchOptions{Hierarchy: uint32(hierarchy)})
	if err != nil {
		return tracer.Status{Source: "vxlan", Reason: err.Error()}
	}
	defer w.Close()
	st := tracer.Status{Source: "vxlan", Attached: true, Hooks: strings.Split(w.Hooks(), ", ")}
	for _, limitation := range w.Limitations() {
		st.Limitations = append(st.Limitations, tracer.Limitation{Text: limitation, Remedy: vxlan.Remedy})
	}
	return st
}

func sayLimitations(stderr io.Writer, w *vxlan.Watcher) {
	for _, limitation := range w.Limitations() {
		fmt.Fprintf(stderr, "iotrace-bpf: limitation: %s\n", limitation)
	}
}

// vxlanWatch prints what happens to vxlan devices.
func vxlanWatch(ctx context.Context, o *vxlanOptions, _ io.Reader, stdout, stderr io.Writer) error {
	resolver, err := attribute.NewResolver(o.names(nil)) // the watcher below warns about the same sockets
	if err != nil {
		return err
	}
	defer resolver.Close()
	resolver.Start(ctx)
	if err := resolver.Walk(); err != nil {
		fmt.Fprintf(stderr, "iotrace-bpf: walking the cgroups: %s\n", text.Safe(err.Error()))
	}
	j := joiner{resolver: resolver}
	w, err := newVXLANWatcher(vxlanWatchOptions{
		vxlanOptions: *o, names: o.names(vxlanLog(stderr)), hierarchy: resolver.Hierarchy().ID,
		owner: func(cgroup uint64) *output.Sample {
			s := &output.Sample{}
			j.name(s, cgroup, time.Now())
			return s
		},
	})
	if err != nil {
		return err
	}
	if o.verbose {
		fmt.Fprintf(stderr, "iotrace-bpf: attached %s\n", w.watcher.Hooks())
		sayLimitations(stderr, w.watcher)
		if why := w.watcher.Fallback(); why != nil {
			fmt.Fprintf(stderr, "iotrace-bpf: %s\n", text.Safe(why.Error()))
		}
	} else if w.watcher.Fallback() != nil {
		fmt.Fprintf(stderr, "iotrace-bpf: this kernel allows only %s\n", w.watcher.Hooks())
		sayLimitations(stderr, w.watcher)
	}
	if o.readyFile != "" {
		if err := writeReady(o.readyFile); err != nil {
			return errors.Join(err, w.Close())
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
		fmt.Fprintf(stderr, "iotrace-bpf: %s lost\n", text.Plural(lost, "event", "events"))
	}
	return err
}
