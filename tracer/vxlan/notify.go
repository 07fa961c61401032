package vxlan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Attributes of a link that netlink.LinkDeserialize does not give.
const (
	iflaNewNetNSID  = 45
	iflaNewIfindex  = 49
	nlaNetNSID      = 1  // NETNSA_NSID
	nsidGroup       = 28 // RTNLGRP_NSID
	receiveBuffer   = 16 << 20
	notifyReadBytes = 256 << 10
)

// own is the number of the namespace that a socket itself is in.
const own = -1

// linkMessage is an rtnetlink notification about a vxlan device.
type linkMessage struct {
	time    time.Time
	deleted bool
	link    netlink.Link
	from    int // namespace, as the host's numbers it; own for the host's
	to      int // namespace it moves to, as "from" numbers it; -1 when it does not
	ifindex int // there
}

// notifier reads rtnetlink notifications of the host's namespace and of every
// namespace that the host's has a number for: moving a device somewhere gives
// the target one. A single socket in the host's namespace hears them all, so no
// other namespace is held.
type notifier struct {
	file    *os.File
	dropped atomic.Uint64
}

func newNotifier(host netns.NsHandle) (*notifier, error) {
	fd := -1
	err := within(host, func() (err error) {
		fd, err = openNotifier()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &notifier{file: os.NewFile(uintptr(fd), "rtnetlink")}, nil
}

func openNotifier() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("rtnetlink socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	// Without the right to a large buffer the default one serves; overruns are counted.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1); err != nil {
		return -1, fmt.Errorf("rtnetlink of all namespaces: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}); err != nil {
		return -1, fmt.Errorf("rtnetlink bind: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, nsidGroup); err != nil {
		return -1, fmt.Errorf("rtnetlink group of namespace numbers: %w", err)
	}
	return fd, nil
}

func (n *notifier) hooks() string { return "rtnetlink" }

func (n *notifier) cost() string {
	return "no process behind an event, nothing of namespaces that the host has no number for"
}

func (n *notifier) lost() uint64 { return n.dropped.Load() }

func (n *notifier) close() error { return n.file.Close() }

// run sends notifications until ctx is done. After an overrun it asks for a look
// at everything.
func (n *notifier) run(ctx context.Context, out chan<- notice) error {
	stop := context.AfterFunc(ctx, func() { _ = n.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, notifyReadBytes)
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		var size, oobSize int
		var from unix.Sockaddr
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			size, oobSize, _, from, recvErr = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(recvErr, unix.EAGAIN)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("rtnetlink: %w", err)
		}
		switch {
		case errors.Is(recvErr, unix.EINTR):
			continue
		case errors.Is(recvErr, unix.ENOBUFS):
			n.dropped.Add(1)
			send(ctx, out, notice{resync: true, overrun: true})
			continue
		case recvErr != nil:
			return fmt.Errorf("rtnetlink: %w", recvErr)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel
		}
		for _, x := range parseNotifications(buf[:size], sender(oob[:oobSize]), time.Now()) {
			send(ctx, out, x)
		}
	}
}

func send(ctx context.Context, out chan<- notice, n notice) {
	select {
	case out <- n:
	case <-ctx.Done():
	}
}

// sender is the namespace that a notification is from, as the socket's own
// numbers it.
func sender(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return own
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(m.Data)))
		}
	}
	return own
}

// parseNotifications takes the messages of one datagram apart and keeps those
// about vxlan devices and about namespaces that died.
func parseNotifications(b []byte, from int, now time.Time) []notice {
	var list []notice
	for len(b) >= unix.SizeofNlMsghdr {
		hdr := unix.NlMsghdr{Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:])}
		if hdr.Len < unix.SizeofNlMsghdr || uint64(hdr.Len) > uint64(len(b)) {
			break
		}
		body := b[unix.SizeofNlMsghdr:hdr.Len]
		b = b[min(len(b), int(hdr.Len+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		switch hdr.Type {
		case unix.RTM_DELNSID:
			// Other namespaces tell about their own numbers.
			if id, ok := namespaceNumber(body); ok && from == own {
				list = append(list, notice{dead: &id})
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			// Bridges speak of their ports in messages of the same type.
			if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
				continue
			}
			link, err := netlink.LinkDeserialize(&hdr, body)
			if err != nil || link == nil || link.Type() != Kind {
				continue
			}
			m := &linkMessage{time: now, deleted: hdr.Type == unix.RTM_DELLINK, link: link, from: from, to: -1}
			attrs, err := nl.ParseRouteAttr(body[unix.SizeofIfInfomsg:])
			if err != nil {
				continue
			}
			for _, a := range attrs {
				switch {
				case a.Attr.Type == iflaNewNetNSID && len(a.Value) >= 4:
					m.to = int(int32(binary.NativeEndian.Uint32(a.Value)))
				case a.Attr.Type == iflaNewIfindex && len(a.Value) >= 4:
					m.ifindex = int(int32(binary.NativeEndian.Uint32(a.Value)))
				}
			}
			list = append(list, notice{link: m})
		}
	}
	return list
}

// namespaceNumber reads the number from a message about one.
func namespaceNumber(body []byte) (id int, ok bool) {
	const header = 4 // struct rtgenmsg, aligned
	if len(body) < header {
		return 0, false
	}
	attributes(body[header:], func(kind uint16, value []byte) {
		if kind == nlaNetNSID && len(value) >= 4 {
			id, ok = int(int32(binary.NativeEndian.Uint32(value))), true
		}
	})
	return id, ok
}

// unreachable and above are no inode numbers, which have 32 bits, but stand for
// namespaces that no path leads to, by the number that the host's gave them.
const unreachable = 1 << 32

// Unreachable tells whether a namespace is one that exists, but that no path
// leads to, so that its inode number is not known.
func Unreachable(netNS uint64) bool { return netNS >= unreachable }

// numbering resolves the numbers that namespaces give each other.
type numbering struct {
	scanner *Scanner
	known   map[int]uint64 // by the host's number
}

// host gives the inode number behind one of the host's numbers.
func (n *numbering) host(id int) uint64 {
	if id == own {
		return n.scanner.inode
	}
	if inode := n.known[id]; inode != 0 {
		return inode
	}
	inode := n.scanner.namespaceOf(id)
	if inode == 0 {
		inode = unreachable + uint64(uint32(id))
	}
	n.known[id] = inode
	return inode
}

// dead forgets a number and gives the namespace that had it.
func (n *numbering) dead(id int) uint64 {
	inode := n.known[id]
	delete(n.known, id)
	return inode
}

// again looks for paths to the namespaces that had none, and gives those that
// have one now, with what they are.
func (n *numbering) again() map[uint64]uint64 {
	found := make(map[uint64]uint64)
	for id, inode := range n.known {
		if !Unreachable(inode) {
			continue
		}
		if now := n.scanner.namespaceOf(id); now != 0 {
			n.known[id] = now
			found[inode] = now
		}
	}
	return found
}

// of gives the inode number behind a number that belongs to the namespace "from".
func (n *numbering) of(from int, id int) uint64 {
	if from == own {
		return n.host(id)
	}
	inode := n.host(from)
	others, _, _ := n.scanner.paths()
	space, ok := others[inode]
	if !ok {
		return 0
	}
	var found uint64
	err := n.scanner.enter(space.Path, inode, func(links *netlink.Handle) error {
		found = n.scanner.byID(links, id, others)
		return nil
	})
	if err != nil {
		return 0
	}
	return found
}

// events makes events of a notification by comparing it with what the model
// knows.
func (m *linkMessage) events(model *Model, spaces *numbering) []Event {
	d := device(m.link, spaces.host(m.from))
	if id := int32(m.link.Attrs().NetNsID); id >= 0 {
		d.Underlay = spaces.of(m.from, int(id))
	}
	e := Event{Time: m.time, Device: d}
	known := model.At(Place{d.NetNS, d.Ifindex})
	if known != nil && !known.same(d) {
		known = nil
	}
	if m.deleted {
		e.Action = Deleted
		if m.to >= 0 {
			e.Action, e.ToNetNS, e.ToIfindex = Moved, spaces.of(m.from, m.to), m.ifindex
		}
		return []Event{e}
	}
	if known == nil {
		if old := model.twin(d); old != nil {
			// It left a namespace that we hear nothing from.
			e.Action, e.ToNetNS, e.ToIfindex = Moved, d.NetNS, d.Ifindex
			e.NetNS, e.Ifindex = old.NetNS, old.Ifindex
			return []Event{e}
		}
		e.Action = Created
		return []Event{e}
	}
	return changes(known.Device, e)
}

// twin finds the device at another place that d can only be itself: no two
// devices share underlay, VNI and port.
func (m *Model) twin(d Device) *Track {
	if d.VNI == 0 || d.Port == 0 || d.Underlay == 0 {
		return nil
	}
	for _, t := range m.Devices() {
		if t.VNI == d.VNI && t.Port == d.Port && t.Underlay == d.Underlay && t.Ifindex == d.Ifindex && t.NetNS != d.NetNS {
			return t
		}
	}
	return nil
}
