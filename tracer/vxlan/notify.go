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

// Attributes of a link that netlink.LinkDeserialize does not return
// (include/uapi/linux/if_link.h, net_namespace.h, rtnetlink.h).
const (
	iflaNewNetNSID  = 45
	iflaNewIfindex  = 49
	nlaNetNSID      = 1  // NETNSA_NSID
	nsidGroup       = 28 // RTNLGRP_NSID
	receiveBuffer   = 16 << 20
	notifyReadBytes = 256 << 10
)

// own stands for the namespace that a socket itself is in, which has no id there.
const own = -1

// linkMessage is an rtnetlink notification about a vxlan device.
type linkMessage struct {
	time    time.Time
	deleted bool
	link    netlink.Link
	from    int // id of its namespace in the host's namespace; own for the host's
	to      int // id in "from" of the namespace it moves to; -1 when it does not move
	ifindex int // in the namespace it moves to
}

// notifier reads rtnetlink notifications of the host's namespace and of every namespace
// that has an id there: the kernel assigns one when a device is moved to a namespace. One
// socket in the host's namespace receives them all, so no other namespace is held.
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
	// Without the privilege for a large buffer the default must do: overruns are counted.
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
		return -1, fmt.Errorf("rtnetlink group of namespace ids: %w", err)
	}
	return fd, nil
}

func (n *notifier) hooks() string { return "rtnetlink" }

func (n *notifier) limitations() []string {
	return []string{
		"events do not name the process that caused them",
		"devices in namespaces to which the host's namespace has assigned no id are not watched",
	}
}

func (n *notifier) lost() uint64 { return n.dropped.Load() }

func (n *notifier) close() error { return n.file.Close() }

// run sends notifications until ctx is done. After an overrun it asks for a new scan.
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

// sender returns the id of the namespace that a notification comes from.
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

// parseNotifications reads the messages of one datagram and keeps those about vxlan
// devices and about namespaces that died.
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
			// Notifications from other namespaces are about their own ids.
			if id, ok := namespaceID(body); ok && from == own {
				list = append(list, notice{dead: &id})
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			// Bridges describe their ports in messages of the same type.
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

// namespaceID reads the id of a namespace from a message about it.
func namespaceID(body []byte) (id int, ok bool) {
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

// unreachable plus the id stands for a namespace that has an id in the host's namespace
// but no path that leads to it. Inode numbers of namespaces have 32 bits.
const unreachable = 1 << 32

// Unreachable tells whether netNS stands for a namespace that exists but cannot be
// reached by a path, so that its inode number is not known.
func Unreachable(netNS uint64) bool { return netNS >= unreachable }

// numbering finds the namespaces behind the ids that namespaces have for each other.
type numbering struct {
	scanner *Scanner
	known   map[int]uint64 // inode number, or unreachable plus id, by the id in the host's namespace
}

// host returns the inode number behind an id in the host's namespace.
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

// dead forgets an id and returns the namespace that had it.
func (n *numbering) dead(id int) uint64 {
	inode := n.known[id]
	delete(n.known, id)
	return inode
}

// again looks for paths to the namespaces that had none. It returns the inode numbers
// of those that now have one, by what stood for them.
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

// of returns the inode number behind an id in the namespace "from"; 0 when it is not
// known.
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

// events makes events of a notification by comparing it with the model.
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
			// It left a namespace that sends us no notifications.
			e.Action, e.ToNetNS, e.ToIfindex = Moved, d.NetNS, d.Ifindex
			e.NetNS, e.Ifindex = old.NetNS, old.Ifindex
			return []Event{e}
		}
		e.Action = Created
		return []Event{e}
	}
	return changes(known.Device, e)
}

// twin returns the device at another place that must be the same as d: no two devices
// share underlay, VNI and port.
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
