package vxlan

import (
	"cmp"
	"slices"
	"syscall"
	"time"
)

// Action is what happened to a device.
type Action string

// The actions, as they appear in event.action.
const (
	Created   Action = "created"
	Moved     Action = "moved" // to another network namespace
	Deleted   Action = "deleted"
	Renamed   Action = "renamed"
	WentUp    Action = "up"
	Down      Action = "down"
	Refused   Action = "create_failed" // the name or the VNI is taken
	Leaked    Action = "leaked"        // it has been left behind for the grace period
	UpRefused Action = "up_failed"     // it cannot be set UP: its UDP port is taken
	WentStuck Action = "stuck"         // it has been DOWN in its overlay's namespace for the grace period
	Cleaned   Action = "cleaned"       // vxlan clean deleted it
)

// Actor is the process that caused an event, with its cgroup.
type Actor struct {
	PID    uint32
	Comm   string
	Cgroup uint64
}

// Event is one thing that happened to a device.
type Event struct {
	Time   time.Time
	Action Action
	// Device is the state after the event. For a move, namespace and ifindex are the old
	// ones; for a refused creation it is what was requested.
	Device
	OldName   string // renamed
	ToNetNS   uint64 // moved; 0 when not known
	ToIfindex int    // moved
	Actor     *Actor // nil when it is not known
	Err       syscall.Errno
	Message   string // the kernel's message for a refusal
	Culprit   *Track // refused: the device in the way; nil when none was found
	Age       time.Duration
	Reason    string
	// Elsewhere says that the refused device was requested for another namespace than the
	// requester's: its name collided there.
	Elsewhere bool
	// InTheWay is the device that the kernel found when it refused.
	InTheWay *Device
}

// Track is a device with its known history.
type Track struct {
	Device
	// Since is when it came to its namespace. With Seen a scan found it: it may have been
	// there longer.
	Since time.Time
	Seen  bool
	// DownSince is when it went down, or was first seen down; zero while UP.
	DownSince time.Time
	Maker     *Actor // the process that created it; nil when that was before the watch
	Mover     *Actor // the process that moved it to its namespace
	reported  bool   // as leaked or stuck
}

// Place identifies a device: an ifindex is unique within a namespace.
type Place struct {
	NetNS   uint64
	Ifindex int
}

// Model keeps the state of every vxlan device. It is fed by events and by
// snapshots and is not safe for concurrent use.
type Model struct {
	host    uint64
	devices map[Place]*Track
	spaces  map[uint64]Namespace
	sockets map[uint16]Socket // Snapshot.Sockets
	engine  bool              // Snapshot.Engine
}

// NewModel returns an empty model. host is the inode number of the host's namespace.
func NewModel(host uint64) *Model {
	return &Model{host: host, devices: make(map[Place]*Track), spaces: make(map[uint64]Namespace)}
}

// Update takes over a snapshot. Devices in namespaces that could be read are as the
// snapshot says. All others are kept, because a namespace that nobody can enter still
// blocks VNIs.
//
// It returns the changes since the last snapshot that a comparison shows: new devices,
// new names, UP and DOWN. Devices that moved or went away are left out: their notices
// make events without a comparison, also when they come after the snapshot.
func (m *Model) Update(snap *Snapshot) (news []Event) {
	seen := make(map[Place]bool, len(snap.Devices))
	for _, d := range snap.Devices {
		if d.Kind != Kind {
			continue
		}
		place := Place{d.NetNS, d.Ifindex}
		seen[place] = true
		t := m.devices[place]
		if t == nil || !t.same(d) {
			// In a namespace that is read for the first time it may not be new.
			if _, read := m.spaces[d.NetNS]; read && m.twin(d) == nil {
				news = append(news, Event{Time: snap.Time, Action: Created, Device: d})
			}
			m.devices[place] = newTrack(d, snap.Time, true)
			continue
		}
		was := t.Device
		t.refresh(d, snap.Time)
		news = append(news, changes(was, Event{Time: snap.Time, Device: t.Device, Age: max(0, snap.Time.Sub(t.Since))})...)
	}
	for place := range m.devices {
		if _, read := snap.Namespaces[place.NetNS]; read && !seen[place] {
			delete(m.devices, place)
		}
	}
	m.spaces, m.sockets, m.engine = snap.Namespaces, snap.Sockets, snap.Engine
	return news
}

// changes returns the events that turned a device into what it is in e.
func changes(was Device, e Event) []Event {
	var list []Event
	if was.Name != e.Name {
		renamed := e
		renamed.Action, renamed.OldName, renamed.Up = Renamed, was.Name, was.Up
		list = append(list, renamed)
	}
	if was.Up != e.Up {
		e.Action = Down
		if e.Up {
			e.Action = WentUp
		}
		list = append(list, e)
	}
	return list
}

func newTrack(d Device, now time.Time, seen bool) *Track {
	t := &Track{Device: d, Since: now, Seen: seen}
	if !d.Up {
		t.DownSince = now
	}
	return t
}

// same tells whether d can be the device known at its place: its VNI and port never
// change.
func (t *Track) same(d Device) bool {
	if t.VNI != d.VNI && t.VNI != 0 && d.VNI != 0 {
		return false
	}
	return t.Port == d.Port || t.Port == 0 || d.Port == 0
}

// refresh takes over a later state of the same device.
func (t *Track) refresh(d Device, now time.Time) {
	if d.Name != "" {
		t.Name = d.Name
	}
	t.VNI = cmp.Or(d.VNI, t.VNI)
	t.Port = cmp.Or(d.Port, t.Port)
	t.Underlay = cmp.Or(d.Underlay, t.Underlay)
	t.Attached = d.Attached
	t.OwnSocket = t.OwnSocket || d.OwnSocket // events do not tell it, and it never changes
	if d.Up != t.Up || (!d.Up && t.DownSince.IsZero()) {
		t.setUp(d.Up, now)
	}
}

func (t *Track) setUp(up bool, now time.Time) {
	t.Up = up
	t.DownSince = time.Time{}
	if !up {
		t.DownSince = now
	} else {
		t.reported = false
	}
}

// Apply takes over one event, and fills in from the model what it lacks: old name, VNI,
// port, underlay, and the age of the device.
func (m *Model) Apply(e *Event) {
	place := Place{e.NetNS, e.Ifindex}
	t := m.devices[place]
	if e.Action == Refused {
		return
	}
	if t != nil && e.Action != Created && t.same(e.Device) {
		e.VNI = cmp.Or(e.VNI, t.VNI)
		e.Port = cmp.Or(e.Port, t.Port)
		e.Underlay = cmp.Or(e.Underlay, t.Underlay)
		e.Age = max(0, e.Time.Sub(t.Since))
		if e.Action == Renamed && e.OldName == "" && t.Name != e.Name {
			e.OldName = t.Name
		}
	}
	switch e.Action {
	case Created:
		fresh := newTrack(e.Device, e.Time, false)
		fresh.Maker, fresh.Mover = e.Actor, e.Actor
		m.devices[place] = fresh
	case Deleted, Cleaned:
		delete(m.devices, place)
	case Moved:
		delete(m.devices, place)
		if e.ToNetNS == 0 {
			break
		}
		next := e.Device
		next.NetNS, next.Ifindex = e.ToNetNS, cmp.Or(e.ToIfindex, e.Ifindex)
		fresh := newTrack(next, e.Time, false)
		fresh.Mover = e.Actor
		if t != nil {
			fresh.Maker = t.Maker
		}
		m.devices[Place{next.NetNS, next.Ifindex}] = fresh
	case Renamed, WentUp, Down:
		if t == nil || !t.same(e.Device) {
			m.devices[place] = newTrack(e.Device, e.Time, true)
			break
		}
		t.Name = e.Name
		if e.Up != t.Up {
			t.setUp(e.Up, e.Time)
		} else if e.Action == Down {
			t.setUp(false, e.Time) // it was UP in between, without an event
		}
	}
}

// Devices lists every known device, those in the host's namespace first.
func (m *Model) Devices() []*Track {
	list := make([]*Track, 0, len(m.devices))
	for _, t := range m.devices {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *Track) int {
		if hostA, hostB := a.NetNS == m.host, b.NetNS == m.host; hostA != hostB {
			if hostA {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.NetNS, b.NetNS), cmp.Compare(a.Ifindex, b.Ifindex))
	})
	return list
}

// At returns the device at a place, or nil.
func (m *Model) At(place Place) *Track { return m.devices[place] }

// Namespace returns what is known about a namespace.
func (m *Model) Namespace(inode uint64) (Namespace, bool) {
	space, ok := m.spaces[inode]
	return space, ok
}

// candidate tells whether a device looks left behind by Docker, whatever its age: of kind
// vxlan, with Docker's name for its VNI, in the host's namespace, not UP.
func (m *Model) candidate(t *Track) bool {
	vni, _, ok := ParseName(t.Name)
	return ok && vni == t.VNI && t.Kind == Kind && t.NetNS == m.host && !t.Up
}

// stuck tells whether a device is DOWN where it should be UP, whatever its age: in the
// namespace of its overlay.
func (m *Model) stuck(t *Track) bool {
	return t.Kind == Kind && !t.Up && m.spaces[t.NetNS].Overlay != ""
}

// Expired returns the devices that have been left behind or stuck for the grace period,
// each only once: they are to be reported.
func (m *Model) Expired(now time.Time, grace time.Duration) []*Track {
	var expired []*Track
	for _, t := range m.Devices() {
		if (m.candidate(t) || m.stuck(t)) && !t.reported && now.Sub(t.DownSince) >= grace {
			t.reported = true
			expired = append(expired, t)
		}
	}
	return expired
}

// forget removes the devices of a namespace and returns them.
func (m *Model) forget(netNS uint64) []*Track {
	var gone []*Track
	for _, t := range m.Devices() {
		if t.NetNS == netNS {
			gone = append(gone, t)
			delete(m.devices, Place{t.NetNS, t.Ifindex})
		}
	}
	return gone
}

// identify replaces what stood for a namespace without a path by its inode number.
func (m *Model) identify(netNS, now uint64) {
	for _, t := range m.forget(netNS) {
		t.NetNS = now
		if place := (Place{now, t.Ifindex}); m.devices[place] == nil {
			m.devices[place] = t
		}
	}
}

// inherit takes over the history of unchanged devices from an older model.
func (m *Model) inherit(old *Model) {
	for place, t := range m.devices {
		o := old.devices[place]
		if o == nil || !o.same(t.Device) || o.Name != t.Name || o.Up != t.Up {
			continue
		}
		d := t.Device
		*t = *o
		t.refresh(d, t.DownSince)
	}
}

// MarkStale is called when events were lost: a device that is DOWN may have been UP in
// between, so its grace period starts again.
func (m *Model) MarkStale(now time.Time) {
	for _, t := range m.devices {
		if !t.Up {
			t.DownSince = now
		}
	}
}

// NextExpiry returns when the next device becomes one that Expired returns; the zero time
// when none may become one.
func (m *Model) NextExpiry(grace time.Duration) time.Time {
	var next time.Time
	for _, t := range m.devices {
		if !m.candidate(t) && !m.stuck(t) || t.reported {
			continue
		}
		if at := t.DownSince.Add(grace); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// CulpritOf returns the device that a refused one collided with, or nil when none is
// known. Others are devices of any kind with the same name. A name is unique in a
// namespace; a VNI and port are unique in the namespace in which the device was created,
// wherever it is now.
func (m *Model) CulpritOf(e *Event, others []Device) *Track {
	named := func(netNS func(uint64) bool) *Track {
		for _, t := range m.Devices() {
			if t.Name == e.Name && netNS(t.NetNS) {
				return t
			}
		}
		for _, d := range others {
			if d.Name == e.Name && netNS(d.NetNS) {
				return newTrack(d, e.Time, true)
			}
		}
		return nil
	}
	if e.Name != "" && !e.Elsewhere {
		if t := named(func(inode uint64) bool { return inode == e.NetNS }); t != nil {
			return t
		}
	}
	if e.InTheWay != nil {
		d := *e.InTheWay
		if t := m.devices[Place{d.NetNS, d.Ifindex}]; t != nil && t.same(d) {
			t.refresh(d, e.Time)
			return t
		}
		return newTrack(d, e.Time, true)
	}
	if e.VNI != 0 {
		port := cmp.Or(e.Port, uint16(DefaultPort))
		for _, t := range m.Devices() {
			if t.VNI == e.VNI && t.Underlay == e.NetNS && (t.Port == port || t.Port == 0) {
				return t
			}
		}
	}
	if e.Name != "" && e.Elsewhere {
		return named(func(inode uint64) bool { return inode != e.NetNS })
	}
	return nil
}
