package vxlan

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// DefaultGrace is how long a device may lie DOWN in the host's namespace before
// it counts as leaked. Docker deletes one within milliseconds.
const DefaultGrace = 10 * time.Second

// Verdict is what is to be thought of a device.
type Verdict string

// The verdicts. Leaked and Blocking keep containers from starting.
const (
	OK       Verdict = "ok"       // where it belongs
	Settling Verdict = "settling" // looks leaked, but is too young to tell
	IsLeaked Verdict = "leaked"   // Docker left it behind
	Blocking Verdict = "blocking" // not leaked by the rule, but holds what a network needs
	Foreign  Verdict = "foreign"  // no overlay of Docker's
)

// Network is an overlay network as the engine knows it.
type Network struct {
	ID       string
	Name     string
	VNIs     []uint32 // one per subnet
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
	// NetworkID is the network's id, or as much of it as the device's name or
	// namespace tells.
	NetworkID string
	Network   *Network // nil when the engine did not name it
	// Keep says why the device must not be deleted by us; "" for one that may be.
	Keep string
	// Age is the time since it came to its namespace, Down since it went down; at
	// least that long where AtLeast is true.
	Age, Down time.Duration
	AtLeast   bool
}

// Judge gives the verdict on every device that the model knows. Networks are
// those that the engine knows of, nil when no engine answered.
func Judge(m *Model, networks []Network, now time.Time, grace time.Duration) []Finding {
	var list []Finding
	for _, t := range m.Devices() {
		list = append(list, judge(m, t, networks, now, grace))
	}
	return list
}

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
		judgeElsewhere(m, &f, docker, space)
	case docker:
		judgeHost(m, &f, grace, networks != nil)
	default:
		f.Keep = "its name is not one that Docker gives"
		judgeForeign(m, &f)
	}
	return f
}

// judgeHost is for a device of Docker's in the host's namespace. Unless the
// engine answered or its namespaces were seen, nobody knows what is live.
func judgeHost(m *Model, f *Finding, grace time.Duration, answered bool) {
	live := liveOverlay(m, f.NetworkID, f.Network)
	switch {
	case f.Up && live != "":
		f.Verdict, f.Reason = Foreign, "UP in the host's namespace, while "+live
		f.Keep = "it is UP"
	case f.Up:
		f.Verdict, f.Reason = Blocking, "UP in the host's namespace, where Docker needs its name and VNI to be free"
		f.Keep = "it is UP"
	case f.Underlay != m.host || f.Attached:
		f.Verdict, f.Reason = Blocking, "bears Docker's name in the host's namespace, but Docker did not leave it like that"
		f.Keep = "it was made in another namespace"
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
			f.Keep = "neither an engine nor its namespaces were found, so its overlay may be live (--docker-host and --netns-dir say where they are)"
		}
	}
}

// judgeElsewhere is for a device outside the host's namespace.
func judgeElsewhere(m *Model, f *Finding, docker bool, space Namespace) {
	f.Keep = "it is outside the host's namespace"
	switch {
	case space.Overlay != "" && (f.Network == nil || strings.HasPrefix(f.Network.ID, space.Overlay)):
		f.Verdict, f.Reason = OK, "in its overlay's namespace"
		if !f.Up {
			f.Reason += ", not UP yet"
		}
	case docker && f.Underlay == m.host && f.Port == dataPort(f.Network) && liveOverlay(m, f.NetworkID, f.Network) == "":
		f.Verdict = Blocking
		f.Reason = "bears Docker's name, but lies in a namespace that is no overlay's, and holds its VNI on the host"
	default:
		judgeForeign(m, f)
	}
}

// judgeForeign is for a device that nothing ties to Docker but, maybe, its VNI.
func judgeForeign(m *Model, f *Finding) {
	f.Verdict, f.Reason = Foreign, "no overlay device of Docker's"
	if f.Network == nil || f.Underlay != m.host {
		return
	}
	if f.Port != dataPort(f.Network) {
		return
	}
	if liveOverlay(m, f.Network.ID, f.Network) == "" {
		f.Verdict, f.Reason = Blocking, fmt.Sprintf("holds VNI %d on the host, which network %q needs", f.VNI, f.Network.Name)
	}
}

// dataPort is the UDP port of a network's devices, as far as it is known.
func dataPort(n *Network) uint16 {
	if n == nil {
		return DefaultPort
	}
	return cmp.Or(n.Port, DefaultPort)
}

// networkOf finds the network that a device belongs to or is in the way of: by
// the id in its name or namespace, and by its VNI.
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
		return nil // its name says another network
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

// liveOverlay tells by what a network is seen to work on this host; "" when by
// nothing. The network's id may be just its beginning.
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
