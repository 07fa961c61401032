package attribute

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	maxMounts     = 1 << 16 // of the host
	maxOwnMounts  = 1 << 12 // of one container
	maxMountinfo  = 32 << 20
	maxNamespaces = 512
	maxLayers     = 64 // directories with layers: one per engine

	reloadKnown   = 5 * time.Second        // between two reads of a changed table
	reloadUnknown = 250 * time.Millisecond // the same, when a device is missing in it
	watchEvery    = 500 * time.Millisecond // between two checks for changes
	watchShare    = 50                     // reads take at most one part in 50 of the time
	maxPast       = 1 << 12                // unmounted mounts that are kept
	ownFresh      = 30 * time.Second
)

// Mount is the file system behind a device number, as users know it.
type Mount struct {
	Source string // host:/export, user@host:dir, /dev/sda1
	Point  string // mount point: in the container, if it is a volume of one
	FSType string // nfs4, fuse.sshfs, ext4
	Volume string // name of the runtime's volume, Kubernetes volume or PVC
	Driver string // of the volume

	NFSServer, NFSExport, NFSVersion string
	NFSAddress                       string // IP address of the server, from the mount options
	NFSPort                          uint16 // 0 when the options do not say it: 2049
	FUSESubtype                      string // sshfs, glusterfs ...
	Transport                        string // of 9p: virtio, tcp, fd ...
}

// mounts joins device numbers with mount tables and the volumes of runtimes. It reads a
// table only after a change.
type mounts struct {
	procRoot string
	registry *registry
	tree     *tree
	now      func() time.Time

	mu     sync.Mutex
	watch  int    // fd of a mount table, to poll for changes; -1 without
	name   string // of that table
	closed bool
	none   bool // the tables that can be read are not this host's: see Options.NoHostProc
	dirty  bool
	loaded time.Time
	host   table
	cost   time.Duration        // processor time of the last read
	past   map[string]past      // by mount point: unmounted mounts, whose late I/O still comes
	pastOn map[string]past      // the same by device, the last of each
	own    map[uint64]*ownTable // by cgroup
	layers map[string]bool      // devices that hold or held the own files of containers
	reads  uint64
}

// table is a mount table, by device and by mount point.
type table struct {
	byDev   map[string]mounted // what all mounts of a device have in common: see shares
	byPoint map[string]mounted
	uppers  map[string]bool // directories that hold the writable layers of overlays

	onDev    map[string][]mounted // the mounts of a device, once somebody asked: see on
	untraced map[string][]string  // mount points of network file systems without a source, by type
}

type mounted struct {
	dev, source, point, fstype, options string

	root  string // what of the file system is mounted: a path in it
	order int    // in the table
	upper string // of an overlay: the directory with what was written; "" for others
}

// past is an unmounted mount.
type past struct {
	mounted
	gone time.Time
}

type ownTable struct {
	table
	read time.Time
}

func newMounts(procRoot string, g *registry, t *tree, now func() time.Time) *mounts {
	return &mounts{procRoot: procRoot, registry: g, tree: t, now: now, watch: -1, dirty: true,
		past: map[string]past{}, pastOn: map[string]past{}, own: map[uint64]*ownTable{}, layers: map[string]bool{}}
}

func (m *mounts) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.watch < 0 {
		return nil
	}
	fd := m.watch
	m.watch = -1
	return unix.Close(fd)
}

// Mount returns the mount of a cgroup's I/O on a device ("major:minor" of the file
// system's superblock). It is a mount of the host for cgroup 0, and where the cgroup's own
// mount table does not have the device. It returns false when no readable mount table has
// the device.
func (r *Resolver) Mount(dev string, cgroup uint64) (Mount, bool) {
	return r.mounts.find(dev, cgroup)
}

func (m *mounts) find(dev string, id uint64) (Mount, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refresh(dev)
	c, known := m.tree.get(id)
	var record *container
	if known {
		record = m.registry.find(c.place, c.path)
	}
	host, ok := m.host.byDev[dev]
	if !ok {
		var p past
		p, ok = m.pastOn[dev]
		host = p.mounted
	}
	if ok {
		result := host.mount()
		m.nameVolume(&result, dev, record)
		return result, true
	}
	if !known || !c.goneAt.IsZero() {
		return Mount{}, false
	}
	own, ok := m.ownTable(&c).byDev[dev]
	if !ok {
		return Mount{}, false
	}
	result := own.mount()
	if record != nil {
		for _, v := range record.volumes {
			if v.destination == own.point {
				result.Volume, result.Driver = v.name, v.driver
			}
		}
	}
	return result, true
}

// nameVolume names the volume of a container on a device. The kernel reports the device
// only: if it holds several volumes, or the container's own files too, all of them are
// named, separated by bars.
func (m *mounts) nameVolume(result *Mount, dev string, c *container) {
	var on []volume
	if c != nil {
		for _, v := range c.volumes {
			if m.of(v.source, dev).dev == dev && !ofEngine(v.destination) {
				on = append(on, v)
			}
		}
	}
	if len(on) == 0 {
		result.Volume, result.Driver = pathVolume(result.Point)
		return
	}
	// Runtimes list mounts in any order: sort, for one answer to the same question.
	slices.SortFunc(on, func(a, b volume) int { return strings.Compare(a.destination, b.destination) })
	// Mounts of one NFS server may share a superblock: the entry of the volume itself has
	// its source.
	var sources, exports []string
	for i := range on {
		v := &on[i]
		if v.name == "" {
			v.name, v.driver = pathVolume(v.source)
		}
		if e := m.of(v.source, dev); !slices.Contains(sources, e.source) {
			*result = e.mount()
			sources, exports = append(sources, e.source), append(exports, result.NFSExport)
		}
	}
	if len(sources) > 1 {
		result.Source, result.NFSExport = joined(sources), joined(slices.Compact(exports))
	}
	if m.layers[dev] {
		on = slices.Insert(on, 0, volume{destination: "/"})
	}
	result.Volume, result.Driver, result.Point = either(on)
}

// maxCandidates is the number of volumes in an ambiguous name.
const maxCandidates = 4

// either names several volumes of which one is meant: by name, or by mount point without a
// name. The driver is that of all of them, or "".
func either(on []volume) (name, driver, point string) {
	if len(on) == 1 {
		return on[0].name, on[0].driver, on[0].destination
	}
	var names, points []string
	driver = on[0].driver
	for _, v := range on {
		if v.driver != driver {
			driver = ""
		}
		names, points = append(names, cmp.Or(v.name, v.destination)), append(points, v.destination)
	}
	return joined(names), driver, joined(points)
}

// joined joins the first names of several of which one is meant.
func joined(names []string) string {
	if more := len(names) - maxCandidates; more > 0 {
		names = append(names[:maxCandidates:maxCandidates], "+"+strconv.Itoa(more))
	}
	return clip(strings.Join(names, "|"), maxText)
}

// ofEngine tells the files that engines and kubelets mount into every container: they are
// no load.
func ofEngine(destination string) bool {
	switch destination {
	case "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/run/.containerenv", "/run/secrets":
		return true
	}
	return false
}

// pathVolume names a volume that no runtime reported, by the directory where engines and
// kubelets mount it.
func pathVolume(path string) (name, driver string) {
	if _, rest, ok := strings.Cut(path, "/volumes/"); ok {
		parts := strings.Split(rest, "/")
		if strings.Contains(path, "/pods/") && len(parts) >= 2 && strings.Contains(parts[0], "~") {
			return parts[1], parts[0] // pods/<uid>/volumes/<plugin>/<name>[/mount]
		}
		if len(parts) >= 2 && parts[1] == "_data" {
			return parts[0], ""
		}
	}
	return "", ""
}

// of returns the mount of a path, or a past one there on the device.
func (m *mounts) of(path, dev string) mounted {
	if p, ok := m.past[path]; ok && p.dev == dev {
		return p.mounted
	}
	return m.host.of(path)
}

// keepGone keeps the mounts that are in the old table only: their late I/O still comes.
func (m *mounts) keepGone(old table) {
	now := m.now()
	for _, all := range []map[string]past{m.past, m.pastOn} {
		maps.DeleteFunc(all, func(_ string, p past) bool { return now.Sub(p.gone) > m.registry.keep })
	}
	for point, e := range old.byPoint {
		if e.fstype != "overlay" && m.host.byPoint[point].dev != e.dev && len(m.past) < maxPast {
			m.past[point], m.pastOn[e.dev] = past{e, now}, past{e, now}
		}
	}
}

// of returns the mount of a path.
func (t table) of(path string) mounted {
	if !strings.HasPrefix(path, "/") {
		return mounted{}
	}
	for up := path; up != ""; up = up[:strings.LastIndexByte(up, '/')] {
		if e, ok := t.byPoint[up]; ok {
			return e
		}
	}
	return t.byPoint["/"]
}

// shares reduces the first mount of a device to what it has in common with another one.
// NFS gives exports that are on one file system of the server the same superblock, and so
// the same device.
func (e mounted) shares(other mounted) mounted {
	if e.source == other.source || e.fstype != "nfs" && e.fstype != "nfs4" {
		return e
	}
	n := 0
	for n < len(e.source) && n < len(other.source) && e.source[n] == other.source[n] {
		n++
	}
	switch whole := e.source[:n]; {
	case n == len(e.source) && strings.HasPrefix(other.source[n:], "/"), n == len(other.source) && strings.HasPrefix(e.source[n:], "/"):
		e.source = whole // one is within the other
	case strings.Contains(whole, ":/"):
		e.source = whole[:strings.LastIndexByte(whole, '/')+1]
	default:
		return e // other names of the server: they cannot be compared
	}
	e.point = ""
	return e
}

func (e mounted) mount() Mount {
	m := Mount{Source: e.source, Point: e.point, FSType: e.fstype}
	switch {
	case e.fstype == "nfs" || e.fstype == "nfs4":
		m.NFSServer, m.NFSExport = splitExport(e.source)
		for opt := range strings.SplitSeq(e.options, ",") {
			if v, ok := strings.CutPrefix(opt, "vers="); ok {
				m.NFSVersion = v
			}
			if v, ok := strings.CutPrefix(opt, "addr="); ok {
				m.NFSAddress = v
			}
			if v, ok := strings.CutPrefix(opt, "port="); ok {
				port, _ := strconv.ParseUint(v, 10, 16) // the kernel wrote it
				m.NFSPort = uint16(port)
			}
		}
		m.NFSServer = cmp.Or(m.NFSServer, m.NFSAddress)
	case e.fstype == "9p":
		for opt := range strings.SplitSeq(e.options, ",") {
			if v, ok := strings.CutPrefix(opt, "trans="); ok {
				m.Transport = v
			}
		}
	case strings.HasPrefix(e.fstype, "fuse."):
		m.FUSESubtype = strings.TrimPrefix(e.fstype, "fuse.")
	case strings.HasPrefix(e.fstype, "fuseblk."):
		m.FUSESubtype = strings.TrimPrefix(e.fstype, "fuseblk.")
	}
	return m
}

// splitExport splits host:/export and [IPv6]:/export.
func splitExport(source string) (server, export string) {
	if rest, ok := strings.CutPrefix(source, "["); ok {
		if server, export, ok = strings.Cut(rest, "]:"); ok {
			return server, export
		}
	}
	if i := strings.Index(source, ":/"); i >= 0 {
		return source[:i], source[i+1:]
	}
	server, export, _ = strings.Cut(source, ":")
	return server, export
}

// refresh reads the host's table again after a change, but not too often: where containers
// come and go it changes all the time.
func (m *mounts) refresh(dev string) {
	if m.closed || m.watch < 0 && !m.open() {
		return
	}
	m.changed()
	age := m.now().Sub(m.loaded)
	_, known := m.host.byDev[dev]
	if !m.dirty || known && age < reloadKnown || age < reloadUnknown {
		return
	}
	m.read()
}

// follow reads the table after a change without a question: a mount may come and go
// between two questions. It takes at most one part in watchShare of the time.
func (m *mounts) follow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.watch < 0 && !m.open() {
		return
	}
	if m.changed(); m.dirty && m.now().Sub(m.loaded) >= watchShare*m.cost {
		m.read()
	}
}

// changed asks the kernel whether the table has changed.
func (m *mounts) changed() {
	fds := []unix.PollFd{{Fd: int32(m.watch), Events: unix.POLLPRI}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 && fds[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0 {
		m.dirty = true
	}
}

func (m *mounts) read() {
	// The kernel writes the table on our thread. Count only that thread's time: after a
	// stall by others, a pause of watchShare times its length would miss mounts.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	t, err := readTable(m.name, maxMounts)
	if err != nil {
		return
	}
	old := m.host
	m.host, m.dirty, m.loaded, m.cost = t, false, m.now(), threadTime()-began
	m.reads++
	m.keepGone(old)
	for dir := range t.uppers {
		if dev := t.of(dir).dev; dev != "" && len(m.layers) < maxLayers {
			m.layers[dev] = true
		}
	}
}

// threadTime returns the processor time of the calling thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// open opens the host's table. Not as an os.File: the kernel reports a change once, and
// Go's poller would consume it.
func (m *mounts) open() bool {
	if m.none {
		return false
	}
	for _, pid := range []string{"1", "self"} {
		name := filepath.Join(m.procRoot, pid, "mountinfo")
		if fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			m.watch, m.name, m.dirty = fd, name, true
			return true
		}
	}
	return false
}

// ownTable returns the mount table of a cgroup's processes; empty when it is the host's or
// the cgroup has no process.
func (m *mounts) ownTable(c *cgroup) *table {
	if o := m.own[c.id]; o != nil && m.now().Sub(o.read) < ownFresh {
		return &o.table
	}
	if len(m.own) >= maxNamespaces {
		clear(m.own)
	}
	o := &ownTable{read: m.now()}
	m.own[c.id] = o
	if m.none {
		return &o.table
	}
	pid, err := m.tree.process(c)
	if err != nil {
		return &o.table
	}
	ns := func(pid string) string {
		s, _ := os.Readlink(filepath.Join(m.procRoot, pid, "ns/mnt"))
		return s
	}
	if mine := ns(strconv.Itoa(pid)); mine != "" && mine == ns("1") {
		return &o.table
	}
	if t, err := readTable(filepath.Join(m.procRoot, strconv.Itoa(pid), "mountinfo"), maxOwnMounts); err == nil {
		o.table = t
		m.reads++
	}
	return &o.table
}

func readTable(name string, limit int) (table, error) {
	f, err := os.Open(name)
	if err != nil {
		return table{}, err
	}
	defer f.Close()
	t := table{byDev: map[string]mounted{}, byPoint: map[string]mounted{}, uppers: map[string]bool{}, untraced: map[string][]string{}}
	_, err = mountinfo.GetMountsFromReader(io.LimitReader(f, maxMountinfo), func(i *mountinfo.Info) (skip, stop bool) {
		if len(t.byPoint) >= limit {
			return false, true // the parser only stops at an entry that is not skipped
		}
		if pseudo(i.FSType) {
			return true, false
		}
		dev := strconv.Itoa(i.Major) + ":" + strconv.Itoa(i.Minor)
		upper := ""
		if i.FSType == "overlay" {
			upper = upperDir(i.VFSOptions)
		}
		if upper != "" && len(t.uppers) < maxLayers {
			t.uppers[layersDir(upper)] = true
		}
		point := clip(i.Mountpoint, maxText)
		e := mounted{dev, clip(i.Source, maxText), point, clip(i.FSType, maxText), clip(i.VFSOptions, maxText), clip(i.Root, maxText), len(t.byPoint), upper}
		t.byPoint[point] = e
		if networkFileSystems[i.FSType] {
			t.untraced[i.FSType] = append(t.untraced[i.FSType], point)
		}
		// Keep the first of several mounts: the others are bind mounts of it, or exports
		// of the same NFS server.
		if first, ok := t.byDev[dev]; ok {
			e = first.shares(e)
		}
		t.byDev[dev] = e
		return true, false
	})
	if err != nil {
		return table{}, fmt.Errorf("reading mounts from %q: %w", name, err)
	}
	return t, nil
}

// upperDir returns the directory of an overlay with what was written to it.
func upperDir(options string) string {
	for opt := range strings.SplitSeq(options, ",") {
		if upper, ok := strings.CutPrefix(opt, "upperdir="); ok && strings.HasPrefix(upper, "/") {
			return clip(upper, maxText)
		}
	}
	return ""
}

// layersDir returns the directory of all layers of an engine, from that of one container's
// overlay: .../overlay2/<id>/diff, .../snapshots/<n>/fs.
func layersDir(upper string) string { return filepath.Dir(filepath.Dir(upper)) }

// pseudo tells the file systems without data: a host of containers has thousands of such
// mounts.
func pseudo(fstype string) bool {
	switch fstype {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "nsfs", "bpf", "tracefs", "debugfs",
		"securityfs", "pstore", "configfs", "hugetlbfs", "binfmt_misc", "autofs", "efivarfs", "fusectl", "rpc_pipefs":
		return true
	}
	return false
}
