package vxlan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultGrace is how long a device may be DOWN in the host's namespace before it
// counts as leaked. Docker deletes its own within milliseconds.
const DefaultGrace = 10 * time.Second

// Verdict says whether a device is in order.
type Verdict string

// The verdicts. Leaked, Blocking and Stuck keep containers from starting or from reaching
// others.
const (
	OK       Verdict = "ok"       // where it belongs
	Settling Verdict = "settling" // looks leaked or stuck, but has not been DOWN for the grace period
	IsLeaked Verdict = "leaked"   // left behind by Docker
	Blocking Verdict = "blocking" // not leaked by that rule, but holds a name, a VNI or a UDP port that a network needs
	Stuck    Verdict = "stuck"    // DOWN in its overlay's namespace for the grace period
	Foreign  Verdict = "foreign"  // belongs to no overlay network of Docker
)

// Network is an overlay network as the engine describes it.
type Network struct {
	ID       string
	Name     string
	VNIs     []uint32 // one per subnet, in the order of Subnets
	Port     uint16   // UDP port of the swarm's data path; 0 means DefaultPort
	Stack    string
	Services []string
	Subnets  []string
	Running  int // containers attached to it that run on this host
}

// Finding is a device with the verdict on it.
type Finding struct {
	Track
	Verdict Verdict
	Reason  string
	// NetworkID is the network's id, or its beginning where only the name of the device
	// or of its namespace tells it.
	NetworkID string
	Network   *Network // nil when the engine did not describe it
	// Keep says why Observer.Delete keeps the device; "" when it may be deleted.
	Keep string
	// Age is the time since it came to its namespace, Down the time since it went DOWN.
	// With AtLeast, Age is a lower bound.
	Age, Down time.Duration
	AtLeast   bool
}

// Judge returns the verdict on every device in the model. Networks are those of the
// engine, nil when no engine answered.
func Judge(m *Model, networks []Network, now time.Time, grace time.Duration) []Finding {
	var list []Finding
	for _, t := range m.Devices() {
		list = append(list, judge(m, t, networks, now, grace))
	}
	for _, port := range slices.Sorted(maps.Keys(m.sockets)) {
		if n, needed := m.needs(port, networks); needed {
			s := m.sockets[port]
			list = append(list, Finding{
				Track: Track{
					Device: Device{Name: fmt.Sprintf("udp:%d", port), Kind: "socket", NetNS: m.host, Underlay: m.host, Port: port, Up: true},
					Since:  now, Seen: true,
				},
				Verdict: Blocking, Reason: s.String() + " has UDP port " + strconv.Itoa(int(port)) + " of the host open: " + noDeviceUp,
				Network: n, Keep: "it is a socket and no device", AtLeast: true,
			})
		}
	}
	return list
}

const noDeviceUp = "no device of an overlay network can be set UP here"

func judge(m *Model, t *Track, networks []Network, now time.Time, grace time.Duration) Finding {
	f := Finding{Track: *t, Age: max(0, now.Sub(t.Since)), AtLeast: t.Seen}
	if !t.Up {
		f.Down = max(0, now.Sub(t.DownSince))
	}
	nameVNI, id, docker := ParseName(t.Name)
	docker = docker && nameVNI == t.VNI && t.Kind == Kind
	space := m.spaces[t.NetNS]
	f.Network = networkOf(networks, t, id, docker, space.Overlay)
	switch {
	case f.Network != nil:
		f.NetworkID = f.Network.ID
	case space.Overlay != "":
		f.NetworkID = space.Overlay
	case docker:
		f.NetworkID = id
	}
	switch {
	case t.NetNS != m.host:
		judgeElsewhere(m, &f, docker, space, networks, grace)
	case docker:
		judgeHost(m, &f, grace, networks != nil)
	default:
		f.Keep = "its name is not one of Docker's"
		judgeForeign(m, &f, networks)
	}
	if f.Verdict == IsLeaked || f.Verdict == Stuck {
		if holder, _ := m.portHolder(t); holder != "" {
			f.Reason += "; " + holder
		}
	}
	return f
}

// judgeHost judges a device with Docker's name in the host's namespace. Whether its
// overlay network is live is known only if the engine answered or its namespaces were
// found.
func judgeHost(m *Model, f *Finding, grace time.Duration, answered bool) {
	live := liveOverlay(m, f.NetworkID, f.Network)
	switch {
	case f.Up && live != "":
		f.Verdict, f.Reason = Foreign, "UP in the host's namespace, while "+live
		f.Keep = "it is UP"
	case f.Up:
		f.Verdict, f.Reason = Blocking, "UP in the host's namespace, but Docker needs its name and VNI"
		f.Keep = "it is UP"
	case f.Underlay != m.host || f.Attached:
		f.Verdict, f.Reason = Blocking, "it has a name like Docker's in the host's namespace, but Docker did not create it like that"
		f.Keep = "it was created in another namespace"
		if f.Attached {
			f.Keep = "it is part of a bridge or bond"
		}
	case f.Down < grace:
		f.Verdict, f.Reason = Settling, fmt.Sprintf("DOWN in the host's namespace, but not for %s yet", grace)
		f.Keep = "it is younger than the grace period"
	case live != "":
		f.Verdict, f.Reason = IsLeaked, "DOWN in the host's namespace, while "+live
		f.Keep = "its overlay is live on this host: " + live
	default:
		f.Verdict, f.Reason = IsLeaked, "left behind DOWN in the host's namespace: no container of its network can start here"
		if !answered && !m.engine {
			f.Keep = "neither an engine nor its namespaces were found, so its overlay may be live (give them with --docker-host and --netns-dir)"
		}
	}
}

// judgeElsewhere judges a device outside the host's namespace.
func judgeElsewhere(m *Model, f *Finding, docker bool, space Namespace, networks []Network, grace time.Duration) {
	f.Keep = "it is outside the host's namespace"
	switch {
	case space.Overlay != "" && (f.Network == nil || strings.HasPrefix(f.Network.ID, space.Overlay)):
		switch {
		case f.Up:
			f.Verdict, f.Reason = OK, "in its overlay's namespace"
		case f.Down < grace:
			f.Verdict, f.Reason = Settling, fmt.Sprintf("DOWN in its overlay's namespace, but not for %s yet", grace)
		default:
			f.Verdict, f.Reason = Stuck, "DOWN in its overlay's namespace: containers of its network do not reach other hosts"
		}
	case docker && f.Underlay == m.host && f.Port == dataPort(f.Network) && liveOverlay(m, f.NetworkID, f.Network) == "":
		f.Verdict = Blocking
		f.Reason = "it has a name like Docker's and holds its VNI on the host, but is not in the namespace of an overlay"
	default:
		judgeForeign(m, f, networks)
	}
}

// judgeForeign judges a device that has nothing of Docker's but perhaps the VNI or the UDP
// port.
func judgeForeign(m *Model, f *Finding, networks []Network) {
	f.Verdict, f.Reason = Foreign, "not an overlay device of Docker"
	if f.Up && f.OwnSocket && f.Underlay == m.host {
		if n, needed := m.needs(f.Port, networks); needed {
			f.Verdict, f.Network = Blocking, n
			f.Reason = fmt.Sprintf("it has UDP port %d of the host for itself, as devices made with \"external\" or \"gbp\" do: %s", f.Port, noDeviceUp)
			return
		}
	}
	if f.Network == nil || f.Underlay != m.host {
		return
	}
	if f.Port != dataPort(f.Network) {
		return
	}
	if liveOverlay(m, f.Network.ID, f.Network) == "" {
		f.Verdict, f.Reason = Blocking, fmt.Sprintf("it holds VNI %d on the host, which network %q needs", f.VNI, f.Network.Name)
	}
}

// dataPort returns the UDP port of a network's devices, DefaultPort when the engine did
// not say.
func dataPort(n *Network) uint16 {
	if n == nil {
		return DefaultPort
	}
	return cmp.Or(n.Port, DefaultPort)
}

// networkOf returns the network that a device belongs to or blocks: by the id in its
// name or namespace, else by its VNI.
func networkOf(networks []Network, t *Track, id string, docker bool, overlay string) *Network {
	for i := range networks {
		n := &networks[i]
		if overlay != "" && strings.HasPrefix(n.ID, overlay) {
			return n
		}
		if docker && strings.HasPrefix(n.ID, id) {
			return n
		}
	}
	if docker {
		return nil // its name is of another network
	}
	for i := range networks {
		for _, vni := range networks[i].VNIs {
			if vni == t.VNI && t.VNI != 0 {
				return &networks[i]
			}
		}
	}
	return nil
}

// liveOverlay says what shows that a network works on this host; "" when nothing does.
// The id may be the beginning of the network's.
func liveOverlay(m *Model, id string, n *Network) string {
	if n != nil && n.Running > 0 {
		return fmt.Sprintf("%d of its containers run here", n.Running)
	}
	if id == "" {
		return ""
	}
	for inode, space := range m.spaces {
		if space.Overlay == "" || !(strings.HasPrefix(id, space.Overlay) || strings.HasPrefix(space.Overlay, id)) {
			continue
		}
		if space.Ports > 0 {
			return fmt.Sprintf("its overlay's namespace has %d endpoints that are UP", space.Ports)
		}
		for place, t := range m.devices {
			if place.NetNS == inode && t.Up {
				return fmt.Sprintf("its overlay's namespace has device %q UP", t.Name)
			}
		}
	}
	return ""
}
