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

// Kind is what rtnetlink calls a vxlan device.
const Kind = "vxlan"

// DefaultPort is the UDP port that Docker's overlays use unless the swarm was
// made with another one.
const DefaultPort = 4789

// Device is a network device as the kernel describes it.
type Device struct {
	Name     string
	Kind     string // "vxlan", unless it was looked for by name
	Ifindex  int
	NetNS    uint64 // inode number of the namespace it lies in
	Underlay uint64 // inode number of the namespace its packets travel in; 0 when not known
	VNI      uint32
	Port     uint16 // UDP port; 0 when not known
	Up       bool   // IFF_UP
	Attached bool   // part of a bridge or bond, as far as netlink told
}

// Namespace is a network namespace that could be entered.
type Namespace struct {
	Inode   uint64
	Path    string // where it can be entered
	Host    bool
	Overlay string // start of the network's id, for the namespace of a Docker overlay
	Ports   int    // veth devices that are UP: endpoints, in an overlay's namespace
}

// Snapshot is what was there when somebody looked.
type Snapshot struct {
	Time       time.Time
	Host       uint64 // inode number of the host's namespace
	Namespaces map[uint64]Namespace
	Devices    []Device
	Unreadable int // namespaces that exist but could not be entered or read
	// Engine tells whether a folder with an engine's namespaces was there, so that
	// an overlay that works would have been seen.
	Engine bool
}

// ScanOptions tells where to look. The zero value looks at this host.
type ScanOptions struct {
	// HostNetNS is a path to the namespace in which leaked devices lie. Default:
	// that of process 1, or our own where that may not be read.
	HostNetNS string
	// NetNSDirs are folders with namespace files. Default: those of Docker and of
	// ip-netns, also as process 1 sees them.
	NetNSDirs []string
	// Proc is where procfs is mounted. Default: /proc.
	Proc string
	// UdevData is udev's database, which knows since when a device has been in the
	// host's namespace. Default: the machine's, unless HostNetNS is set.
	UdevData string
}

// Scanner looks into every network namespace that can be reached.
type Scanner struct {
	opts  ScanOptions
	host  netns.NsHandle
	inode uint64
	links *netlink.Handle // in the host's namespace
}

// NewScanner opens the host's namespace. It must be closed.
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

// Close gives the namespace back.
func (s *Scanner) Close() error {
	s.links.Close()
	return s.host.Close()
}

// Host is the inode number of the host's namespace.
func (s *Scanner) Host() uint64 { return s.inode }

var errNotNetNS = errors.New("not a namespace")

// openNetNS opens a namespace file. Ended containers leave plain empty files
// behind, and anything may lie in such a folder: nothing is trusted to be a
// namespace before the file system says so, and no open blocks.
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

// within runs f in a network namespace. It has a thread for this alone: should
// there be no way back, the thread stays locked and is never used again.
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

// handleIn opens rtnetlink in a namespace.
func handleIn(ns netns.NsHandle) (links *netlink.Handle, err error) {
	err = within(ns, func() error {
		links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return links, err
}

// paths gives one way into every namespace but the host's, and says which file
// of an overlay names it.
func (s *Scanner) paths() (found map[uint64]Namespace, unreadable int, engine bool) {
	found = make(map[uint64]Namespace)
	for _, dir := range s.opts.NetNSDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // an engine that is not there has no folder
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
			continue // it ended, or is a process that shares its namespace with ones we may read
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

// udevAge tells for how long udev has known a device of the host's namespace;
// ok is false where there is no udev.
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

// named finds the device of any kind that bears a name in a namespace, by a
// question about this one.
func (s *Scanner) named(space Namespace, name string) (d Device, ok bool) {
	ask := func(links *netlink.Handle) error {
		link, err := links.LinkByName(name)
		if err == nil {
			d, ok = device(link, space.Inode), true
		}
		return nil // that there is none is an answer
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

// left tells whether a path into a namespace is that of a process that ended or is
// in another one now. To open it may then fail in any way: the kernel refuses access
// where it finds no process any more.
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

// enter runs f with a socket in the namespace, if it still is the one meant.
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

// dumpTries is how often a list of devices is asked for anew when devices came
// or went while the kernel wrote it.
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

// device translates a link. Its underlay is the namespace that it lies in,
// unless the kernel names another one.
func device(link netlink.Link, inode uint64) Device {
	a := link.Attrs()
	d := Device{
		Name: a.Name, Kind: link.Type(), Ifindex: a.Index, NetNS: inode, Up: a.RawFlags&unix.IFF_UP != 0,
		Attached: a.MasterIndex != 0,
	}
	if v, ok := link.(*netlink.Vxlan); ok {
		d.VNI, d.Port = uint32(v.VxlanId), uint16(v.Port)
		if int32(a.NetNsID) < 0 {
			d.Underlay = inode
		}
	}
	return d
}

// byID finds the namespace that the one of links knows by a number; 0 when no
// path leads to it. The host's comes first: it nearly always is that.
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

// namespaceOf finds the namespace that the host's knows by a number; 0 when no
// path leads to it.
func (s *Scanner) namespaceOf(id int) uint64 {
	others, _, _ := s.paths()
	return s.byID(s.links, id, others)
}
