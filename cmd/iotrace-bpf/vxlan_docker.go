package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	dcontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

const (
	overlayCallTime  = 5 * time.Second
	overlayMaxAnswer = 32 << 20 // bytes: some 10,000 containers
	overlayVNIs      = "com.docker.network.driver.overlay.vxlanid_list"
	overlayStack     = "com.docker.stack.namespace"
	overlayService   = "com.docker.swarm.service.name"
	overlayRefusal   = "error creating vxlan interface"
)

// overlayNames asks a Docker engine about its overlay networks. Managers of a
// swarm know everything; a worker knows the networks that its own tasks use.
type overlayNames struct {
	client *client.Client
}

// refusedStart is a task that could not be started on this host because a
// device of its network could not be made.
type refusedStart struct {
	task    string
	at      time.Time
	err     string
	network string // id
	service string // id
}

// dockerSocket is where the engine listens: what the user says, what the
// environment says, or the usual place; "" when there is none.
func dockerSocket(flag string) string {
	switch {
	case flag != "" && !strings.Contains(flag, "://"):
		return "unix://" + flag
	case flag != "":
		return flag
	case os.Getenv(client.EnvOverrideHost) != "":
		return os.Getenv(client.EnvOverrideHost)
	}
	for _, path := range []string{"/run/docker.sock", "/var/run/docker.sock"} {
		if _, err := os.Stat(path); err == nil {
			return "unix://" + path
		}
	}
	return ""
}

// newOverlayNames makes a client for the engine at an address. Nothing is asked yet.
func newOverlayNames(host string) (*overlayNames, error) {
	c, err := client.NewClientWithOpts(client.WithHost(host), limitedAnswers, client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker engine at %q: %w", host, err)
	}
	return &overlayNames{client: c}, nil
}

// limitedAnswers keeps an engine from filling our memory.
func limitedAnswers(c *client.Client) error {
	h := c.HTTPClient()
	t, ok := h.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("unexpected transport %T", h.Transport)
	}
	t.DisableCompression = true // a compressed answer would have no limit
	return client.WithHTTPClient(&http.Client{Transport: limitedTransport{t}, CheckRedirect: client.CheckRedirect})(c)
}

type limitedTransport struct{ *http.Transport }

func (t limitedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, overlayMaxAnswer), resp.Body}
	}
	return resp, err
}

func (n *overlayNames) Close() error { return n.client.Close() }

// networks lists the overlay networks with all that the engine knows of them.
func (n *overlayNames) networks(ctx context.Context) ([]vxlan.Network, error) {
	ctx, cancel := context.WithTimeout(ctx, overlayCallTime)
	defer cancel()
	info, err := n.client.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("docker engine: %w", err)
	}
	found, err := n.client.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("driver", "overlay"))})
	if err != nil {
		return nil, fmt.Errorf("docker networks: %w", err)
	}
	list := make([]vxlan.Network, 0, len(found))
	index := make(map[string]*vxlan.Network, len(found))
	for _, f := range found {
		list = append(list, overlayOf(&f, &info))
	}
	for i := range list {
		index[list[i].ID] = &list[i]
	}
	// What runs here is the tool's to know even if the names of services are not.
	containers, err := n.client.ContainerList(ctx, dcontainer.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("docker containers: %w", err)
	}
	for i := range containers {
		attachedTo(&containers[i], index)
	}
	if info.Swarm.ControlAvailable {
		services, err := n.client.ServiceList(ctx, swarm.ServiceListOptions{})
		if err != nil {
			return nil, fmt.Errorf("docker services: %w", err)
		}
		for i := range services {
			servedBy(&services[i], index)
		}
	}
	for i := range list {
		slices.Sort(list[i].Services)
		list[i].Services = slices.Compact(list[i].Services)
	}
	return list, nil
}

func overlayOf(f *network.Summary, info *system.Info) vxlan.Network {
	v := vxlan.Network{ID: f.ID, Name: f.Name, Stack: f.Labels[overlayStack], VNIs: vniList(f.Options[overlayVNIs])}
	if info.Swarm.Cluster != nil && info.Swarm.Cluster.DataPathPort <= 65535 {
		v.Port = uint16(info.Swarm.Cluster.DataPathPort)
	}
	for _, c := range f.IPAM.Config {
		v.Subnets = append(v.Subnets, c.Subnet)
	}
	return v
}

// vniList reads "4097,4098".
func vniList(text string) []uint32 {
	var list []uint32
	for _, field := range strings.Split(text, ",") {
		var vni uint32
		if _, err := fmt.Sscanf(strings.TrimSpace(field), "%d", &vni); err == nil && vni != 0 && vni < 1<<24 {
			list = append(list, vni)
		}
	}
	return list
}

func attachedTo(c *dcontainer.Summary, index map[string]*vxlan.Network) {
	if c.NetworkSettings == nil {
		return
	}
	for _, end := range c.NetworkSettings.Networks {
		if end == nil || index[end.NetworkID] == nil {
			continue
		}
		n := index[end.NetworkID]
		if c.State == dcontainer.StateRunning {
			n.Running++
		}
		if s := c.Labels[overlayService]; s != "" {
			n.Services = append(n.Services, s)
		}
	}
}

func servedBy(s *swarm.Service, index map[string]*vxlan.Network) {
	add := func(id string) {
		if n := index[id]; n != nil {
			n.Services = append(n.Services, s.Spec.Name)
		}
	}
	for _, ip := range s.Endpoint.VirtualIPs {
		add(ip.NetworkID)
	}
	for _, to := range s.Spec.TaskTemplate.Networks {
		add(to.Target)
	}
}

// refusals lists the tasks of this host that failed because a device could not
// be made. A worker does not know: it gives none.
func (n *overlayNames) refusals(ctx context.Context) ([]refusedStart, error) {
	ctx, cancel := context.WithTimeout(ctx, overlayCallTime)
	defer cancel()
	info, err := n.client.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("docker engine: %w", err)
	}
	if !info.Swarm.ControlAvailable {
		return nil, nil
	}
	tasks, err := n.client.TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("node", info.Swarm.NodeID))})
	if err != nil {
		return nil, fmt.Errorf("docker tasks: %w", err)
	}
	var list []refusedStart
	for _, t := range tasks {
		if !strings.Contains(t.Status.Err, overlayRefusal) {
			continue
		}
		r := refusedStart{task: t.ID, at: t.Status.Timestamp, err: t.Status.Err, service: t.ServiceID}
		for _, a := range t.NetworksAttachments {
			if subnetIn(t.Status.Err, &a) || len(t.NetworksAttachments) == 1 {
				r.network = a.Network.ID
			}
		}
		list = append(list, r)
	}
	return list, nil
}

// subnetIn tells whether an error names a subnet of the attachment's network:
// `subnet sandbox join failed for "10.0.1.0/24"`.
func subnetIn(text string, a *swarm.NetworkAttachment) bool {
	if a.Network.IPAMOptions == nil {
		return false
	}
	return slices.ContainsFunc(a.Network.IPAMOptions.Configs, func(c swarm.IPAMConfig) bool {
		return c.Subnet != "" && strings.Contains(text, `"`+c.Subnet+`"`)
	})
}

// overlayDirectory is what the engine says of its networks, asked anew when
// it is old.
type overlayDirectory struct {
	names  *overlayNames
	stderr io.Writer

	mu       sync.Mutex
	networks []vxlan.Network
	asked    time.Time
	failed   time.Time // when it last did not answer
	said     string    // the last complaint: each is made once
}

// overlayAge is how old an answer of the engine may be in a watch.
const overlayAge = 30 * time.Second

// newOverlayDirectory never fails: without an engine, what the devices tell has
// to do.
func newOverlayDirectory(o *vxlanOptions, stderr io.Writer) *overlayDirectory {
	d := &overlayDirectory{stderr: stderr}
	host := dockerSocket(o.dockerHost)
	if host == "" {
		return d
	}
	names, err := newOverlayNames(host)
	if err != nil {
		d.complain(err)
		return d
	}
	d.names = names
	return d
}

func (d *overlayDirectory) Close() {
	if d.names != nil {
		d.names.Close()
	}
}

func (d *overlayDirectory) complain(err error) {
	if said := err.Error(); said != d.said {
		d.said = said
		fmt.Fprintf(d.stderr, "iotrace-bpf: names of networks are not known: %s\n", text.Safe(said))
	}
}

// get gives the networks, with an answer that is at most so old. An engine that
// does not answer is left alone for a while, unless the answer has to be new.
func (d *overlayDirectory) get(ctx context.Context, age time.Duration) []vxlan.Network {
	if d.names == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.asked) < age || age > 0 && time.Since(d.failed) < overlayAge {
		return d.networks
	}
	networks, err := d.names.networks(ctx)
	if err != nil {
		if d.failed = time.Now(); ctx.Err() == nil {
			d.complain(err)
		}
		return d.networks
	}
	d.networks, d.asked, d.failed = networks, time.Now(), time.Time{}
	return networks
}

// of finds the network that a device belongs to.
func (d *overlayDirectory) of(ctx context.Context, name string, vni uint32, known *vxlan.Network) *vxlan.Network {
	if known != nil {
		return known
	}
	find := func(networks []vxlan.Network) *vxlan.Network {
		_, id, named := vxlan.ParseName(name)
		for i := range networks {
			n := &networks[i]
			if named && strings.HasPrefix(n.ID, id) || !named && vni != 0 && slices.Contains(n.VNIs, vni) {
				return n
			}
		}
		return nil
	}
	if n := find(d.get(ctx, overlayAge)); n != nil {
		return n
	}
	// It may be younger than the answer.
	return find(d.get(ctx, time.Second))
}
