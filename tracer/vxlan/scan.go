package vxlan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Kind is the kind of a vxlan device in rtnetlink (IFLA_INFO_KIND).
const Kind = "vxlan"

// DefaultPort is the UDP port of Docker's overlay networks, unless the swarm was created
// with another one.
const DefaultPort = 4789

// Device is a network device as the kernel describes it.
type Device struct {
	Name     string
	Kind     string // "vxlan", unless the device was found by name
	Ifindex  int
	NetNS    uint64 // inode number of its namespace
	Underlay uint64 // inode number of the namespace its packets travel in; 0 when not known
	VNI      uint32
	Port     uint16 // UDP port; 0 when not known
	Up       bool   // IFF_UP
	Attached bool   // part of a bridge or bond; false when not known
	// OwnSocket says that it was made with "external" or "gbp": while it is UP it has its
	// UDP port for itself, because Docker's devices are made without (vxlan_find_sock in
	// drivers/net/vxlan compares these flags). False when not known.
	OwnSocket bool
}

// Namespace is a network namespace that could be entered.
type Namespace struct {
	Inode   uint64
	Path    string // where it can be entered
	Host    bool
	Overlay string // beginning of the network's id, if it is the namespace of a Docker overlay
	Ports   int    // veth devices that are UP: the endpoints in the namespace of an overlay
}

// Snapshot is the result of a scan.
type Snapshot struct {
	Time       time.Time
	Host       uint64 // inode number of the host's namespace
	Namespaces map[uint64]Namespace
	Devices    []Device
	Unreadable int // namespaces that exist but could not be entered or read
	// Sockets are the UDP ports of overlay devices that something else has open in the host's
	// namespace.
	Sockets map[uint16]Socket
	// Engine tells whether there is a directory with an engine's namespaces: a live
	// overlay would have been seen in it.
	Engine bool
}

// ScanOptions says where to look. The zero value looks at this host.
type ScanOptions struct {
	// HostNetNS is the path of the namespace in which devices leak. Default: that of
	// process 1, or our own where that may not be read.
	HostNetNS string
	// NetNSDirs are directories with namespace files. Default: those of Docker and of
	// ip-netns, also as process 1 sees them.
	NetNSDirs []string
	// Proc is where procfs is mounted. Default: /proc.
	Proc string
	// UdevData is the directory of udev's database, which has the age of devices in the
	// host's namespace. Default: the machine's, unless HostNetNS is set.
	UdevData string
}

// Scanner lists the devices of every network namespace that can be reached.
type Scanner struct {
	opts  ScanOptions
	host  netns.NsHandle
	inode uint64
	links *netlink.Handle // in the host's namespace

	owners map[uint64]Socket // by inode of the socket, as the last scan found them
}

// NewScanner opens the host's namespace. The Scanner must be closed.
func NewScanner(opts ScanOptions) (*Scanner, error) {
	if opts.Proc == "" {
		opts.Proc = "/proc"
	}
	if opts.NetNSDirs == nil {
		root := filepath.Join(opts.Proc, "1/root")
		opts.NetNSDirs = []string{
			"/run/docker/netns", root + "/run/docker/netns", "/run/netns", root + "/run/netns",
		}
	}
	path := opts.HostNetNS
	if path == "" {
		path = filepath.Join(opts.Proc, "1/ns/net")
		if opts.UdevData == "" {
			opts.UdevData = "/run/udev/data"
		}
	}
	host, inode, err := openNetNS(path)
	if err != nil && opts.HostNetNS == "" && errors.Is(err, fs.ErrPermission) {
		path = filepath.Join(opts.Proc, "self/ns/net")
		host, inode, err = openNetNS(path)
	}
	if err != nil {
		return nil, fmt.Errorf("host's network namespace: %w", err)
	}
	links, err := handleIn(host)
	if err != nil {
		host.Close()
		return nil, fmt.Errorf("devices of %q: %w", path, err)
	}
	opts.HostNetNS = path
	return &Scanner{opts: opts, host: host, inode: inode, links: links}, nil
}

// Close closes the namespace.
func (s *Scanner) Close() error {
	s.links.Close()
	return s.host.Close()
}

// Host returns the inode number of the host's namespace.
func (s *Scanner) Host() uint64 { return s.inode }

var errNotNetNS = errors.New("not a namespace")

// openNetNS opens a namespace file without blocking. Ended containers leave empty plain
// files behind, and such a directory may hold anything: only the type of the file system
// shows that a file is a namespace.
func openNetNS(path string) (netns.NsHandle, uint64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return netns.None(), 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var vfs unix.Statfs_t
	var st unix.Stat_t
	if err = unix.Fstatfs(fd, &vfs); err == nil {
		if vfs.Type != unix.NSFS_MAGIC {
			err = errNotNetNS
		} else if kind, _ := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); kind != unix.CLONE_NEWNET {
			err = errNotNetNS
		} else {
			err = unix.Fstat(fd, &st)
		}
	}
	if err != nil {
		unix.Close(fd)
		return netns.None(), 0, &fs.PathError{Op: "namespace", Path: path, Err: err}
	}
	return netns.NsHandle(fd), st.Ino, nil
}

// within runs f in a network namespace, on a thread of its own. If the thread cannot
// return to its namespace, it stays locked and is not used again.
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		before, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("our network namespace: %w", err)
			return
		}
		defer before.Close()
		if err := netns.Set(ns); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("entering a network namespace: %w", err)
			return
		}
		err = f()
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// handleIn opens an rtnetlink socket in a namespace.
func handleIn(ns netns.NsHandle) (links *netlink.Handle, err error) {
	err = within(ns, func() error {
		links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return links, err
}

// paths returns one path for every namespace but the host's, if possible the one that
// names an overlay network.
func (s *Scanner) paths() (found map[uint64]Namespace, unreadable int, engine bool) {
	found = make(map[uint64]Namespace)
	for _, dir := range s.opts.NetNSDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // an engine that is not installed has no directory
		}
		engine = engine || !strings.HasSuffix(dir, "/run/netns") // that is ip-netns's
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			ns, inode, err := openNetNS(path)
			if err != nil {
				if !errors.Is(err, errNotNetNS) && !errors.Is(err, fs.ErrNotExist) {
					unreadable++
				}
				continue
			}
			ns.Close()
			known := found[inode]
			if known.Path == "" {
				known = Namespace{Inode: inode, Path: path}
			}
			if id := overlayID(path); len(id) > len(known.Overlay) {
				known.Overlay, known.Path = id, path
			}
			found[inode] = known
		}
	}
	processes, err := os.ReadDir(s.opts.Proc)
	if err != nil {
		return found, unreadable + 1, engine
	}
	for _, e := range processes {
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err != nil {
			continue
		}
		path := filepath.Join(s.opts.Proc, e.Name(), "ns/net")
		link, err := os.Readlink(path)
		if err != nil {
			continue // it has ended, or it shares its namespace with processes that we may read
		}
		text, isNet := strings.CutPrefix(link, "net:[")
		inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
		if !isNet || err != nil {
			continue
		}
		if _, known := found[inode]; !known {
			found[inode] = Namespace{Inode: inode, Path: path}
		}
	}
	delete(found, s.inode)
	return found, unreadable, engine
}

// udevAge returns for how long udev has known a device of the host's namespace; ok is
// false without udev.
func (s *Scanner) udevAge(ifindex int, mono time.Duration) (age time.Duration, ok bool) {
	if s.opts.UdevData == "" {
		return 0, false
	}
	b, err := os.ReadFile(filepath.Join(s.opts.UdevData, "n"+strconv.Itoa(ifindex)))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		text, found := strings.CutPrefix(line, "I:") // microseconds of CLOCK_MONOTONIC
		if !found {
			continue
		}
		us, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil || us <= 0 || us > int64(mono/time.Microsecond) {
			return 0, false
		}
		return mono - time.Duration(us)*time.Microsecond, true
	}
	return 0, false
}

// named returns the device of any kind that has a name in a namespace, without a list of
// all devices.
func (s *Scanner) named(space Namespace, name string) (d Device, ok bool) {
	ask := func(links *netlink.Handle) error {
		link, err := links.LinkByName(name)
		if err == nil {
			d, ok = device(link, space.Inode), true
		}
		return nil // no device of that name is no error
	}
	if space.Inode == s.inode {
		_ = ask(s.links)
	} else {
		_ = s.enter(space.Path, space.Inode, ask)
	}
	return d, ok
}

// Scan lists the vxlan devices of every namespace that can be reached.
func (s *Scanner) Scan() (*Snapshot, error) {
	snap := &Snapshot{Host: s.inode, Namespaces: make(map[uint64]Namespace)}
	others, unreadable, engine := s.paths()
	snap.Unreadable, snap.Engine = unreadable, engine
	host := Namespace{Inode: s.inode, Path: s.opts.HostNetNS, Host: true}
	if err := s.list(s.links, &host, snap, others); err != nil {
		return nil, fmt.Errorf("devices of %q: %w", host.Path, err)
	}
	for inode, space := range others {
		err := s.enter(space.Path, inode, func(links *netlink.Handle) error {
			return s.list(links, &space, snap, others)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotNetNS) && !s.left(space.Path, inode) {
			snap.Unreadable++
		}
	}
	snap.Sockets = s.sockets(snap)
	slices.SortFunc(snap.Devices, func(a, b Device) int {
		if (a.NetNS == s.inode) != (b.NetNS == s.inode) {
			if a.NetNS == s.inode {
				return -1
			}
			return 1
		}
		if a.NetNS != b.NetNS {
			return int(int64(a.NetNS) - int64(b.NetNS))
		}
		return a.Ifindex - b.Ifindex
	})
	snap.Time = time.Now()
	return snap, nil
}

// left tells whether a path of a namespace belongs to a process that has ended or is now
// in another namespace. Opening it then fails with any error: the kernel also refuses
// access when the process is gone.
func (s *Scanner) left(path string, inode uint64) bool {
	if !strings.HasPrefix(path, s.opts.Proc+"/") {
		return false
	}
	link, err := os.Readlink(path)
	if err == nil {
		return link != fmt.Sprintf("net:[%d]", inode)
	}
	if errors.Is(err, fs.ErrPermission) {
		_, err = os.Stat(filepath.Dir(path))
	}
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// enter runs f with a socket in the namespace, if the path still leads to it.
func (s *Scanner) enter(path string, inode uint64, f func(*netlink.Handle) error) error {
	ns, got, err := openNetNS(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if got != inode {
		return &fs.PathError{Op: "namespace", Path: path, Err: fs.ErrNotExist}
	}
	links, err := handleIn(ns)
	if err != nil {
		return err
	}
	defer links.Close()
	return f(links)
}

// dumpTries is how often to ask for the list of devices when devices come or go while
// the kernel writes it.
const dumpTries = 8

func (s *Scanner) list(links *netlink.Handle, space *Namespace, snap *Snapshot, others map[uint64]Namespace) error {
	var list []netlink.Link
	var err error
	for range dumpTries {
		if list, err = links.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return err
	}
	for _, link := range list {
		if link.Type() == "veth" && link.Attrs().RawFlags&unix.IFF_UP != 0 {
			space.Ports++
		}
		if link.Type() != Kind {
			continue
		}
		d := device(link, space.Inode)
		if id := int32(link.Attrs().NetNsID); id >= 0 {
			d.Underlay = s.byID(links, int(id), others)
		}
		snap.Devices = append(snap.Devices, d)
	}
	snap.Namespaces[space.Inode] = *space
	return nil
}

// device translates a link. Its underlay is its own namespace, unless the kernel names
// another one.
func device(link netlink.Link, inode uint64) Device {
	a := link.Attrs()
	d := Device{
		Name: a.Name, Kind: link.Type(), Ifindex: a.Index, NetNS: inode, Up: a.RawFlags&unix.IFF_UP != 0,
		Attached: a.MasterIndex != 0,
	}
	if v, ok := link.(*netlink.Vxlan); ok {
		d.VNI, d.Port, d.OwnSocket = uint32(v.VxlanId), uint16(v.Port), v.FlowBased || v.GBP
		if int32(a.NetNsID) < 0 {
			d.Underlay = inode
		}
	}
	return d
}

// byID returns the inode number of the namespace that has an id in the namespace of
// links; 0 when no path leads to it. It tries the host's first: that is nearly always it.
func (s *Scanner) byID(links *netlink.Handle, id int, others map[uint64]Namespace) uint64 {
	if got, err := links.GetNetNsIdByFd(int(s.host)); err == nil && got == id {
		return s.inode
	}
	for inode, space := range others {
		ns, got, err := openNetNS(space.Path)
		if err != nil {
			continue
		}
		number, err := links.GetNetNsIdByFd(int(ns))
		ns.Close()
		if err == nil && number == id && got == inode {
			return inode
		}
	}
	return 0
}

// namespaceOf returns the inode number of the namespace that has an id in the host's
// namespace; 0 when no path leads to it.
func (s *Scanner) namespaceOf(id int) uint64 {
	others, _, _ := s.paths()
	return s.byID(s.links, id, others)
}
