package attribute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	dcontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/system"
)

const (
	overlayTime    = 5 * time.Second // for all calls of one question
	overlayVNIs    = "com.docker.network.driver.overlay.vxlanid_list"
	overlayStack   = "com.docker.stack.namespace"
	overlayService = "com.docker.swarm.service.name"

	maxVNI = 1<<24 - 1 // RFC 7348, section 5

	maxSubnets  = 256  // of a network
	maxRefusals = 1024 // in one answer
)

// overlayRefusals begin what an engine says when it cannot make a vxlan device or cannot set it
// UP (libnetwork, drivers/overlay and osl).
var overlayRefusals = []string{"error creating vxlan interface", "failed to set link up"}

// ErrNoEngine says that no Docker socket exists at a place that may be asked.
var ErrNoEngine = errors.New("no Docker engine found")

// Network is an overlay network as a Docker engine describes it.
type Network struct {
	ID       string
	Name     string
	VNIs     []uint32 // one per subnet, in the order of Subnets
	Port     uint16   // UDP port of the swarm's data path; 0 when the engine did not say
	Stack    string
	Services []string // sorted
	Subnets  []string // in CIDR notation
	Running  int      // containers attached to it that run on this host
}

// Refusal is a task that did not start on this host because a vxlan device of its
// network could not be created or set UP.
type Refusal struct {
	Task    string // id
	Time    time.Time
	Err     string // the engine's message
	Network string // id; "" when the message does not tell which of several it was
}

// Overlay asks a Docker engine about overlay networks: the first listed socket that
// accepts a connection, else the machine's usual one. A manager of a swarm knows all
// networks, a worker those that its own tasks use. Its methods may be called from any
// goroutine.
type Overlay struct {
	listed, usual []string
	timeout       time.Duration
	log           *slog.Logger

	mu     sync.Mutex
	warned map[string]string // last warning by socket: each is logged once
}

// NewOverlay returns an Overlay that asks the Docker sockets of opts. It connects to
// none of them yet.
func NewOverlay(opts Options) *Overlay {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	o := &Overlay{
		listed: opts.listedDocker(), timeout: cmp.Or(opts.CallTime, overlayTime), log: opts.Log, warned: map[string]string{},
	}
	if !opts.OnlyListedSockets {
		o.usual = machineDockerSockets()
		if opts.HostRoot != "" {
			o.usual = append(onHost(opts.HostRoot, o.usual), o.usual...)
		}
	}
	return o
}

// passedOver is an engine that did not accept a connection.
type passedOver struct {
	socket string
	err    error
}

// engine opens a session with the first engine that accepts a connection. Without
// any socket the error is ErrNoEngine.
func (o *Overlay) engine(ctx context.Context) (*docker, error) {
	var failed []passedOver
	tried := map[string]bool{} // a socket may have two paths
	for i, socket := range append(slices.Clip(o.listed), o.usual...) {
		real, _ := exists(socket)
		if tried[real] {
			continue
		}
		tried[real] = true
		err := reachable(ctx, socket)
		if err == nil {
			o.warn(failed)
			return newDocker(socket)
		}
		if i < len(o.listed) || !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, passedOver{socket, fmt.Errorf("docker engine at %q: %w", socket, err)})
		}
	}
	if failed == nil {
		return nil, ErrNoEngine
	}
	errs := make([]error, len(failed))
	for i, f := range failed {
		errs[i] = f.err
	}
	return nil, errors.Join(errs...)
}

func reachable(ctx context.Context, socket string) error {
	if !isPath(socket) {
		return nil
	}
	_, err := reach(ctx, socket)
	return err
}

// warn logs why engines are passed over for another one.
func (o *Overlay) warn(failed []passedOver) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range failed {
		if text := f.err.Error(); o.warned[f.socket] != text {
			o.warned[f.socket] = text
			o.log.Warn("asking another Docker engine about networks", "error", text)
		}
	}
}

// Networks returns the overlay networks with all that the engine knows about them; the
// list is not nil unless there is an error. All calls together take at most 5 s.
func (o *Overlay) Networks(ctx context.Context) ([]Network, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	d, err := o.engine(ctx)
	if err != nil {
		return nil, err
	}
	defer d.close()
	info, err := d.client.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("docker engine: %w", garbled(err))
	}
	list := []Network{}
	err = each(ctx, d, d.versioned("/networks"), only("driver", "overlay"), func(n *listedNetwork) {
		list = append(list, networkOf(n, &info))
	})
	if err != nil {
		return nil, fmt.Errorf("docker networks: %w", err)
	}
	index := make(map[string]*Network, len(list))
	for i := range list {
		index[list[i].ID] = &list[i]
	}
	// The engine of a worker does not know services, but which of its containers run.
	err = each(ctx, d, d.versioned("/containers/json"), url.Values{"all": {"1"}}, func(c *listedContainer) { attach(c, index) })
	if err != nil {
		return nil, fmt.Errorf("docker containers: %w", err)
	}
	if info.Swarm.ControlAvailable {
		err = each(ctx, d, d.versioned("/services"), nil, func(s *listedService) { serve(s, index) })
		if err != nil {
			return nil, fmt.Errorf("docker services: %w", err)
		}
	}
	for i := range list {
		slices.Sort(list[i].Services)
		list[i].Services = slices.Compact(list[i].Services)
	}
	return list, nil
}

// only is the query for the elements of a list that have this value.
func only(key, value string) url.Values {
	text, err := filters.ToJSON(filters.NewArgs(filters.Arg(key, value)))
	if err != nil {
		panic(err) // strings always have a JSON form
	}
	return url.Values{"filters": {text}}
}

func networkOf(f *listedNetwork, info *system.Info) Network {
	n := Network{
		ID: clip(f.ID, maxText), Name: clip(f.Name, maxText), Stack: clip(f.Labels[overlayStack], maxText),
		VNIs: vniList(f.Options[overlayVNIs]),
	}
	if info.Swarm.Cluster != nil && info.Swarm.Cluster.DataPathPort <= 1<<16-1 {
		n.Port = uint16(info.Swarm.Cluster.DataPathPort)
	}
	for _, c := range f.IPAM.Config[:min(len(f.IPAM.Config), maxSubnets)] {
		n.Subnets = append(n.Subnets, clip(c.Subnet, maxText))
	}
	return n
}

// vniList reads "4097,4098" and leaves out what is not a VNI.
func vniList(text string) []uint32 {
	var list []uint32
	for field := range strings.SplitSeq(text, ",") {
		if len(list) == maxSubnets {
			break
		}
		if vni, err := strconv.ParseUint(strings.TrimSpace(field), 10, 32); err == nil && vni != 0 && vni <= maxVNI {
			list = append(list, uint32(vni))
		}
	}
	return list
}

// attach adds a container to the networks that it is attached to.
func attach(c *listedContainer, index map[string]*Network) {
	for _, end := range c.NetworkSettings.Networks {
		n := index[end.NetworkID]
		if n == nil {
			continue
		}
		if c.State == string(dcontainer.StateRunning) {
			n.Running++
		}
		if s := c.Labels[overlayService]; s != "" {
			n.Services = append(n.Services, clip(s, maxText))
		}
	}
}

// serve adds a service to its networks.
func serve(s *listedService, index map[string]*Network) {
	add := func(id string) {
		if n := index[id]; n != nil {
			n.Services = append(n.Services, clip(s.Spec.Name, maxText))
		}
	}
	for _, ip := range s.Endpoint.VirtualIPs {
		add(ip.NetworkID)
	}
	for _, to := range s.Spec.TaskTemplate.Networks {
		add(to.Target)
	}
}

// Refusals returns the tasks of this host that failed because a vxlan device could not
// be created or set UP. Only managers of a swarm know them: other engines return none.
// All calls together take at most 5 s.
func (o *Overlay) Refusals(ctx context.Context) ([]Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	d, err := o.engine(ctx)
	if err != nil {
		return nil, err
	}
	defer d.close()
	info, err := d.client.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("docker engine: %w", garbled(err))
	}
	if !info.Swarm.ControlAvailable {
		return nil, nil
	}
	var list []Refusal
	err = each(ctx, d, d.versioned("/tasks"), only("node", info.Swarm.NodeID), func(t *listedTask) {
		refused := slices.ContainsFunc(overlayRefusals, func(text string) bool { return strings.Contains(t.Status.Err, text) })
		if !refused || len(list) == maxRefusals {
			return
		}
		r := Refusal{Task: clip(t.ID, maxText), Err: clip(t.Status.Err, maxText)}
		r.Time, _ = time.Parse(time.RFC3339Nano, t.Status.Timestamp)
		for j := range t.NetworksAttachments {
			if a := &t.NetworksAttachments[j]; subnetIn(t.Status.Err, a) || len(t.NetworksAttachments) == 1 {
				r.Network = clip(a.Network.ID, maxText)
			}
		}
		list = append(list, r)
	})
	if err != nil {
		return nil, fmt.Errorf("docker tasks: %w", err)
	}
	return list, nil
}

// subnetIn tells whether an error names a subnet of the attachment's network:
// `subnet sandbox join failed for "10.0.1.0/24"`.
func subnetIn(text string, a *listedAttachment) bool {
	return slices.ContainsFunc(a.Network.IPAMOptions.Configs, func(c listedSubnet) bool {
		return c.Subnet != "" && strings.Contains(text, `"`+c.Subnet+`"`)
	})
}
