package vxlan

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// newLink is the part of an RTM_NEWLINK request that may collide with a device: name and
// VNI.
type newLink struct {
	Name      string
	Kind      string
	VNI       uint32
	Port      uint16
	Ifindex   int
	Elsewhere bool // to be created in another namespace than the requester's
}

var errShort = errors.New("request cut short")

// Attributes of RTM_NEWLINK that x/sys lacks (include/uapi/linux/if_link.h).
const (
	iflaInfoKind  = 1
	iflaInfoData  = 2
	iflaVxlanID   = 1
	iflaVxlanPort = 15
)

// parseNewLink reads a request from its nlmsghdr on. The request comes from a user:
// nothing in it is trusted. An error comes with what was read before it.
func parseNewLink(b []byte) (newLink, error) {
	var n newLink
	if len(b) < unix.SizeofNlMsghdr+unix.SizeofIfInfomsg {
		return n, errShort
	}
	short := false
	if size := binary.NativeEndian.Uint32(b); uint64(size) <= uint64(len(b)) {
		b = b[:max(size, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)]
	} else {
		short = true
	}
	n.Ifindex = int(int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr+4:])))
	ok := attributes(b[unix.SizeofNlMsghdr+unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			n.Name = text(value, unix.IFNAMSIZ-1)
		case unix.IFLA_NET_NS_FD, unix.IFLA_NET_NS_PID, unix.IFLA_TARGET_NETNSID:
			n.Elsewhere = true
		case unix.IFLA_LINKINFO:
			n.parseInfo(value)
		}
	})
	if short || !ok {
		return n, errShort
	}
	return n, nil
}

func (n *newLink) parseInfo(b []byte) {
	attributes(b, func(kind uint16, value []byte) {
		switch kind {
		case iflaInfoKind:
			n.Kind = text(value, 15)
		case iflaInfoData:
			attributes(value, func(kind uint16, value []byte) {
				switch {
				case kind == iflaVxlanID && len(value) >= 4:
					n.VNI = binary.NativeEndian.Uint32(value)
				case kind == iflaVxlanPort && len(value) >= 2:
					n.Port = binary.BigEndian.Uint16(value)
				}
			})
		}
	})
	if n.Kind != Kind {
		n.VNI, n.Port = 0, 0 // other kinds number their attributes differently
	}
}

// attributes calls f with each attribute. It returns false when one does not fit into b.
func attributes(b []byte, f func(kind uint16, value []byte)) bool {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < unix.SizeofRtAttr || size > len(b) {
			return false
		}
		f(kind, b[unix.SizeofRtAttr:size])
		b = b[min(len(b), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return true
}

// text returns the string up to its NUL, at most limit bytes.
func text(b []byte, limit int) string {
	for i, c := range b {
		if c == 0 || i == limit {
			return string(b[:i])
		}
	}
	return string(b)
}
