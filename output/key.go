package output

import (
	"cmp"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Key names what rows are grouped by.
type Key string

// The keys of --by and --filter. KeyLabel stands for "label:KEY", of which
// there is one for every label key.
const (
	KeyContainer Key = "container"
	KeyProject   Key = "project"
	KeyService   Key = "service"
	KeyImage     Key = "image"
	KeyPod       Key = "pod"
	KeyNamespace Key = "namespace"
	KeyOuter     Key = "outer" // the outermost container, of containers in containers
	KeyCgroup    Key = "cgroup"
	KeyProcess   Key = "process"
	KeyDevice    Key = "device"
	KeyMount     Key = "mount"
	KeyFile      Key = "file"
	KeyNFSServer Key = "nfs-server"
	KeyNFSClient Key = "nfs-client"
	KeyNFSExport Key = "nfs-export"
	KeyHost      Key = "host"
	KeySource    Key = "source"
	KeyOp        Key = "op"
	labelPrefix      = "label:"
)

// keyNames holds every key, in the order of the help text.
var keyNames = []Key{KeyContainer, KeyProject, KeyService, KeyImage, KeyPod, KeyNamespace, KeyOuter, KeyCgroup,
	KeyProcess, KeyDevice, KeyMount, KeyFile, KeyNFSServer, KeyNFSClient, KeyNFSExport, KeyHost, KeySource, KeyOp}

// KeyLabel returns the key that groups by the value of a container label.
func KeyLabel(name string) Key { return Key(labelPrefix + name) }

// LabelField is the name that a container label has in documents, where a dot would make
// an object.
func LabelField(name string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(name, ".", "_"), "\uFFFD")
}

// Label returns the label that k groups by; ok is false for the other keys.
func (k Key) Label() (name string, ok bool) { return strings.CutPrefix(string(k), labelPrefix) }

// KeyNames returns every valid key for help texts and shell completion, with
// "label:KEY" last.
func KeyNames() []string {
	names := make([]string, 0, len(keyNames)+1)
	for _, k := range keyNames {
		names = append(names, string(k))
	}
	return append(names, labelPrefix+"KEY")
}

// ParseKey reads one key. The error of an unknown key lists the known ones.
func ParseKey(s string) (Key, error) {
	s = strings.TrimSpace(s)
	k := Key(s)
	if name, ok := k.Label(); ok {
		if name == "" {
			return "", fmt.Errorf("key %q names no label: write label:KEY, such as label:com.example.team", s)
		}
		return k, nil
	}
	if !slices.Contains(keyNames, k) {
		return "", &UnknownError{What: "key", Word: s, Known: KeyNames()}
	}
	return k, nil
}

// ParseKeys reads the value of --by: one key or several, separated by commas.
// A label whose name has a comma cannot be used. Unknown and repeated keys are
// errors.
func ParseKeys(s string) ([]Key, error) {
	var keys []Key
	for part := range strings.SplitSeq(s, ",") {
		k, err := ParseKey(part)
		if err != nil {
			return nil, err
		}
		if slices.Contains(keys, k) {
			return nil, fmt.Errorf("key %q is given twice", string(k))
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// KeyValue is a group's value for one key.
type KeyValue struct {
	Key Key
	// Text names the value for people. Containers and file systems choose their
	// names freely, so that it is not safe for a terminal: see text.Safe.
	Text string
	// ID is different for different values, even if their texts are equal.
	ID string
}

// The names of rows that are not a workload.
const (
	TextKernel       = "(kernel)"
	TextUnattributed = "(unattributed)"
	TextOther        = "(other)"
	TextRest         = "(rest)"
	TextFiltered     = "(filtered out)"
)

// special returns the row name of an owner that is not a workload: it is the
// same for every key about owners. For workloads it is empty.
func special(o OwnerKind) string {
	switch o {
	case OwnerKernel:
		return TextKernel
	case OwnerUnattributed:
		return TextUnattributed
	case OwnerOther:
		return TextOther
	}
	return ""
}

// Workload reports whether o is a real owner: neither the kernel nor bytes
// without a known owner.
func (o OwnerKind) Workload() bool { return special(o) == "" }

const shortIDLen = 12

// ShortID returns the first 12 digits of a container id, as docker ps prints it.
func ShortID(id string) string { return id[:min(len(id), shortIDLen)] }

// ContainerText returns the name of a container, or its short id while the name
// is not known.
func ContainerText(c *Container) string {
	if c.Name != "" {
		return c.Name
	}
	return ShortID(c.ID)
}

func cgroupText(c *Cgroup) string {
	if c.Path != "" {
		return c.Path
	}
	if c.ID == 0 {
		return "unknown cgroup"
	}
	text := "cgroup " + strconv.FormatUint(c.ID, 10)
	if c.Gone {
		text += " (removed before its name was read)"
	}
	return text
}

// mark returns what a name has behind it if it is not the word of the machine's runtimes:
// " (user 1000)", " (in ci-1)". Nobody may take the row for another one of that name.
func mark(s *Sample, by string) string {
	c := &s.Container
	switch {
	case by == "":
		return ""
	case userOf(by) != "":
		return " (" + userOf(by) + ")"
	case c.OuterName != "":
		return " (in " + c.OuterName + ")"
	case c.Outer != "":
		return " (in " + ShortID(c.Outer) + ")"
	}
	return " (" + by + ")"
}

// ContainerName is ContainerText with a mark if the name is not the word of the machine's
// runtimes.
func ContainerName(s *Sample) string {
	text := ContainerText(&s.Container)
	if text == "" {
		return ""
	}
	return text + mark(s, s.NamedBy)
}

// userOf returns "user UID" of Sample.NamedBy, "" if that is no user's domain.
func userOf(by string) string {
	uid, ok := strings.CutPrefix(by, "user ")
	if !ok {
		return ""
	}
	uid, _, _ = strings.Cut(uid, " ")
	return "user " + uid
}

// ProjectText names a project, with a mark if it is not the word of the machine's runtimes.
func ProjectText(s *Sample) string {
	if s.Project == "" {
		return ""
	}
	return s.Project + mark(s, s.ProjectNamedBy)
}

// by returns the part of a row's id that keeps equal names by others apart.
func by(who string) string {
	if who == "" {
		return ""
	}
	return "\x00by " + who
}

// ownerValue names the owner itself: the container, else the pod, else the
// systemd unit, else the cgroup. It is the value for --by container, and for
// every other key for which the owner has no value. In that case the text of a
// container names the missing key ("web-1 (no project)"); the name of a unit or
// cgroup already shows that it is not a container.
func ownerValue(s *Sample, missing Key) (text, id string) {
	if t := special(s.Owner); t != "" {
		return t, "owner\x00" + string(s.Owner)
	}
	switch {
	case s.Owner == OwnerNFSClient:
		return clientText(&s.NFSClient), "client\x00" + s.NFSClient.Address + "\x00" + s.NFSClient.Silent
	case s.Container.ID != "" || s.Container.Name != "":
		text = ContainerName(s)
		switch {
		case s.Owner == OwnerHelper:
			// The runtime's own monitor is not the workload and has its own row.
			text += " (helper)"
		case missing != "":
			text += " (no " + missingText(missing) + ")"
		}
		id = s.Container.ID
		if id == "" {
			id = s.Container.Name
		}
		return text, "container\x00" + string(s.Owner) + "\x00" + id + by(s.NamedBy)
	case s.Pod.Name != "":
		text = podText(&s.Pod) + mark(s, s.NamedBy) + " (pod)"
		return text, "pod\x00" + s.Pod.UID + "\x00" + podText(&s.Pod) + by(s.NamedBy)
	case s.Unit != "":
		// Several users' systemd managers may have a unit of the same name.
		return s.Unit + mark(s, s.NamedBy), "unit\x00" + s.Unit + "\x00" + path.Dir(s.Cgroup.Path)
	}
	return cgroupText(&s.Cgroup), "cgroup\x00" + cgroupID(&s.Cgroup)
}

// OwnerText names the owner of s in the same way as --by container.
func OwnerText(s *Sample) string {
	text, _ := ownerValue(s, "")
	return text
}

func missingText(k Key) string {
	if name, ok := k.Label(); ok {
		return "label " + name
	}
	return string(k)
}

func podText(p *Pod) string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

func cgroupID(c *Cgroup) string {
	if c.ID != 0 {
		return strconv.FormatUint(c.ID, 10)
	}
	return c.Path
}

// serviceText names a service within its project: "shop/web".
func serviceText(s *Sample) string {
	if s.Project == "" {
		return s.Service
	}
	return s.Project + "/" + s.Service
}

func imageText(c *Container) string {
	text := c.Image
	switch algorithm, digest, _ := strings.Cut(c.Digest, ":"); {
	case c.ImageTag != "":
		text += ":" + c.ImageTag
	case digest != "":
		text += "@" + algorithm + ":" + ShortID(digest)
	}
	return text
}

// nfsPort is the port of NFS servers (RFC 7530, section 3.1).
const nfsPort = 2049

// ServerText names an NFS server, with its port if that is not the usual one: several
// servers behind tunnels have one name.
func ServerText(m *Mount) string {
	if m.NFSPort == 0 || m.NFSPort == nfsPort {
		return m.NFSServer
	}
	return net.JoinHostPort(m.NFSServer, strconv.Itoa(int(m.NFSPort)))
}

// clientText names a client of this host's NFS server. The name is the client's own word or
// that of DNS, so the address stands beside it.
func clientText(c *NFSClient) string {
	text := "nfs client " + c.Name + " (" + c.Address + ")"
	switch {
	case c.Address == "":
		text = "nfs client (address unknown)"
	case c.Name == "":
		text = "nfs client " + c.Address
	}
	if c.Silent != "" {
		text += ", " + c.Silent
	}
	return text
}

// served tells whether s is what this host's NFS server did for a client.
func (s *Sample) served() bool {
	return s.Owner == OwnerNFSClient || s.Source != SourceNFS && s.NFSClient.Address != ""
}

// exportText names an exported directory, of another server with the server in front.
func exportText(m *Mount) string {
	if m.NFSServer == "" {
		return m.NFSExport
	}
	return ServerText(m) + ":" + m.NFSExport
}

// SMBShare returns the server and the share of an SMB mount, whose source is
// //server/share, or that and a directory in it; empty for other file systems.
func SMBShare(m *Mount) (server, share string) {
	if m.FSType != "cifs" && m.FSType != "smb3" {
		return "", ""
	}
	rest := strings.TrimLeft(strings.ReplaceAll(m.Source, `\`, "/"), "/")
	server, rest, _ = strings.Cut(rest, "/")
	share, _, _ = strings.Cut(rest, "/")
	return server, share
}

// P9Tag returns the tag of a 9p mount, by which a host offers a directory to its guests;
// empty for other file systems and transports, whose source is a server's address.
func P9Tag(m *Mount) string {
	if m.FSType != "9p" || m.Transport != "virtio" && m.Transport != "xen" {
		return ""
	}
	return m.Source
}

// cephDevice is the source of a mount of CephFS as kernels since 5.17 take it: the
// cluster's fsid and a file system of it.
var cephDevice = regexp.MustCompile(`^[^@/]*@([^.=/]*)\.([^=/]*)=(.*)$`)

// CephMount returns the cluster of a mount of CephFS, its file system where the source
// says it, and the directory of it that is mounted; empty for other file systems. The
// cluster is its fsid, or, in the older kind of source, the addresses of its monitors.
func CephMount(m *Mount) (cluster, filesystem, path string) {
	if m.FSType != "ceph" {
		return "", "", ""
	}
	if f := cephDevice.FindStringSubmatch(m.Source); f != nil {
		cluster, filesystem, path = f[1], f[2], f[3]
	} else {
		cluster, path, _ = strings.Cut(m.Source, ":/")
		path = "/" + path
	}
	if cluster == "" {
		return "", "", ""
	}
	return cluster, filesystem, cmp.Or(path, "/")
}

// ProcessText names a process as name[pid].
func ProcessText(p *Process) string {
	switch {
	case p.PID == 0 && p.Name == "":
		return "(no process)"
	case p.PID == 0:
		return p.Name
	case p.Name == "":
		return "[" + strconv.FormatUint(uint64(p.PID), 10) + "]"
	}
	return p.Name + "[" + strconv.FormatUint(uint64(p.PID), 10) + "]"
}

// DeviceText names a device, with the name that its maker gave it: "dm-0 (vg0-data)".
func DeviceText(d *Device) string {
	if d.Alias != "" {
		return DeviceName(d) + " (" + d.Alias + ")"
	}
	return DeviceName(d)
}

// DeviceName is the kernel's name of a device: "sda", or "8:0" while the name is not known.
func DeviceName(d *Device) string {
	switch {
	case d.Name != "":
		return d.Name
	case d.ID != "":
		return d.ID
	}
	return "(no device)"
}

// MountText names the storage first, because several hosts and containers share
// it, then the volume or the mount point.
func MountText(s *Sample) string {
	m := &s.Mount
	text := m.Source
	switch {
	case text == "" && m.Point == "" && m.Volume == "":
		return DeviceText(&s.Device) + " (mount unknown)"
	case text == "":
		text = m.FSType
	}
	switch {
	case m.Volume != "":
		text += " volume " + m.Volume
	case m.Point != "":
		text += " on " + m.Point
	}
	return strings.TrimSpace(text)
}

// truncateCgroup keeps the first depth components of a cgroup path; 0 keeps all.
func truncateCgroup(p string, depth int) string {
	if depth <= 0 {
		return p
	}
	for i := 1; i < len(p); i++ {
		if p[i] != '/' {
			continue
		}
		if depth--; depth == 0 {
			return p[:i]
		}
	}
	return p
}

// value returns the value of s for key k. Samples with the same id share a row;
// texts may be equal although ids are not, such as two containers of one name. Of several
// hosts, what is one host's own is a row for each of them.
func (g *grouper) value(s *Sample, k Key, op Op) (text, id string) {
	text, id = g.valueOnHost(s, k, op)
	host, local := localTo(s, k, id)
	if host == (Host{}) || !local {
		return text, id
	}
	if host != s.Host || !slices.Contains(g.opt.By, KeyHost) {
		text += " (" + hostText(&host) + ")"
	}
	return text, id + "\x00on " + hostID(&host)
}

// insideContainers reports whether rows are of containers, which see files at other paths.
func (g *grouper) insideContainers() bool {
	inside := func(k Key) bool { return k == KeyContainer || k == KeyPod }
	return slices.ContainsFunc(g.opt.By, inside) || slices.ContainsFunc(g.opt.Pins, func(p KeyValue) bool { return inside(p.Key) })
}

// localTo reports whether the value of s for k exists on one host only, and on which.
// Projects, pods, images and NFS servers are the same on all hosts. What an NFS server did
// for a client that reports is on two: the storage on one, the owner on the other.
func localTo(s *Sample, k Key, id string) (Host, bool) {
	owner := s.Host
	if s.NFSClient.Host != (Host{}) {
		owner = s.NFSClient.Host
	}
	switch k {
	case KeyDevice:
		return s.Host, true
	case KeyProcess:
		return owner, true
	case KeyMount:
		return s.Host, s.Mount.NFSServer == ""
	case KeyFile:
		return s.Host, s.File.Kind == FileRegular
	case KeyNFSExport:
		if s.Mount.NFSServer == "" && s.Mount.NFSExport != "" {
			return s.Host, true
		}
	}
	kind, _, _ := strings.Cut(id, "\x00")
	return owner, kind == "container" || kind == "unit" || kind == "cgroup" || kind == "path"
}

// hostText names a host.
func hostText(h *Host) string {
	if h.Name == "" {
		return "(unnamed host)"
	}
	return h.Name
}

// hostID is the id of a host, or its name where it has none.
func hostID(h *Host) string {
	if h.ID == "" {
		return "\x01" + h.Name
	}
	return h.ID
}

// valueOnHost is value for the samples of one host.
func (g *grouper) valueOnHost(s *Sample, k Key, op Op) (text, id string) {
	switch k {
	case KeyDevice:
		text = DeviceText(&s.Device)
		if m := s.Mount.Source; s.Device.Name == "" && m != "" {
			// The device of NFS and FUSE is a number that says nothing. A mount has several
			// points, and FUSE a source of one word where the file system gives it none.
			if text = m; !strings.ContainsAny(m, "/:") {
				text = MountText(s)
			}
		}
		return text, s.Device.ID + "\x00" + s.Device.Name
	case KeyMount:
		if s.Host != (Host{}) && s.Mount.NFSServer != "" {
			// The number of the device is another one on each host, and so may be the place.
			m := Sample{Mount: s.Mount}
			m.Mount.Point = ""
			return MountText(&m), s.Mount.Source + "\x00" + s.Mount.FSType + "\x00" + s.Mount.Volume
		}
		return MountText(s), s.Mount.Source + "\x00" + s.Mount.FSType + "\x00" + s.Mount.Volume + "\x00" + s.Device.ID
	case KeyFile:
		text, id = FileText(&s.File, g.insideContainers()), fileID(&s.File)
		if s.File.Kind == FileRegular && s.File.Path == "" {
			id += "\x00" + s.Mount.Source + "\x00" + s.Device.ID // its number says nothing elsewhere
		}
		return text, id
	case KeyNFSServer:
		if s.Mount.NFSServer == "" {
			return "(not nfs)", ""
		}
		return ServerText(&s.Mount), "\x01" + ServerText(&s.Mount) + "\x00" + s.Mount.NFSAddress
	case KeyNFSExport:
		if s.Mount.NFSExport != "" {
			id = "export\x00" + exportText(&s.Mount)
			if s.Mount.NFSServer != "" { // else clients talk to several addresses of this host
				id += "\x00" + s.Mount.NFSAddress
			}
			return exportText(&s.Mount), id
		}
	case KeyHost:
		if s.Host != (Host{}) {
			return hostText(&s.Host), hostID(&s.Host)
		}
		return hostText(&g.host), hostID(&g.host)
	case KeySource:
		return string(s.Source), string(s.Source)
	case KeyOp:
		return string(op), string(op)
	}
	if t := special(s.Owner); t != "" {
		return t, "owner\x00" + string(s.Owner)
	}
	switch k {
	case KeyContainer:
		return ownerValue(s, "")
	case KeyNFSClient:
		if s.served() {
			return clientText(&s.NFSClient), "client\x00" + s.NFSClient.Address + "\x00" + s.NFSClient.Silent
		}
	case KeyOuter:
		// Nested containers count for the outermost one and share its row.
		if c := &s.Container; c.Outer != "" {
			outer := Container{ID: c.Outer, Name: c.OuterName}
			user := userOf(s.NamedBy) // the outermost one is a user's, or the machine's
			return ContainerText(&outer) + mark(s, user), "container\x00" + string(OwnerContainer) + "\x00" + c.Outer + by(user)
		}
		return ownerValue(s, "")
	case KeyProject:
		if s.Project != "" {
			return ProjectText(s), "project\x00" + s.Project + by(s.ProjectNamedBy)
		}
	case KeyService:
		if s.Service != "" {
			return serviceText(s) + mark(s, s.NamedBy), "service\x00" + s.Project + "\x00" + s.Service + by(s.NamedBy)
		}
	case KeyImage:
		if s.Container.Image != "" {
			c := &s.Container
			return imageText(c) + mark(s, s.NamedBy), "image\x00" + c.Image + "\x00" + c.ImageTag + "\x00" + c.Digest + by(s.NamedBy)
		}
	case KeyPod:
		if s.Pod.Name != "" {
			return podText(&s.Pod) + mark(s, s.NamedBy), "pod\x00" + s.Pod.UID + "\x00" + podText(&s.Pod) + by(s.NamedBy)
		}
	case KeyNamespace:
		if s.Pod.Namespace != "" {
			return s.Pod.Namespace + mark(s, s.NamedBy), "namespace\x00" + s.Pod.Namespace + by(s.NamedBy)
		}
	case KeyCgroup:
		if s.Owner == OwnerNFSClient {
			break
		}
		if g.opt.CgroupDepth > 0 && s.Cgroup.Path != "" {
			p := truncateCgroup(s.Cgroup.Path, g.opt.CgroupDepth)
			return p, "path\x00" + p
		}
		return cgroupText(&s.Cgroup), "cgroup\x00" + cgroupID(&s.Cgroup)
	case KeyProcess:
		if s.Owner == OwnerNFSClient {
			break
		}
		return ProcessText(&s.Process), strconv.FormatUint(uint64(s.Process.PID), 10) + "\x00" + s.Process.Name
	default:
		if name, ok := k.Label(); ok {
			if v, ok := s.Container.Labels[name]; ok {
				if v == "" {
					return "(empty)" + mark(s, s.NamedBy), "label\x00" + by(s.NamedBy)
				}
				return v + mark(s, s.NamedBy), "label\x00" + v + by(s.NamedBy)
			}
		}
	}
	return ownerValue(s, k)
}

// Filter keeps the samples whose value for a key matches a pattern.
type Filter struct {
	Key     Key
	Pattern string
}

// String returns the filter as ParseFilter reads it.
func (f Filter) String() string { return string(f.Key) + "=" + f.Pattern }

// ExactFilter returns a filter for the text of a group.
func ExactFilter(v KeyValue) Filter {
	escaped := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(v.Text)
	return Filter{Key: v.Key, Pattern: escaped}
}

// ParseFilter reads KEY=GLOB, where KEY is one that ParseKey takes. In the
// pattern * stands for any text, including slashes, ? for one character, [a-z]
// for one of a range; \ takes the next character literally. Upper and lower case
// are the same. An unknown key, a broken pattern, and a pattern for op that matches
// no operation are errors.
func ParseFilter(s string) (Filter, error) {
	// Label names with "=" cannot be filtered by; they are not worth a syntax.
	key, pattern, ok := strings.Cut(s, "=")
	if !ok {
		return Filter{}, fmt.Errorf("filter %q has no \"=\": write KEY=GLOB, such as project=shop or image=*/nginx", s)
	}
	k, err := ParseKey(key)
	if err != nil {
		return Filter{}, fmt.Errorf("filter %q: %w", s, err)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return Filter{}, fmt.Errorf("filter %q: pattern %q is not a valid glob: a [ has no ], or it ends in \\", s, pattern)
	}
	known := KeyValues(k)
	if known != nil && !slices.ContainsFunc(known, func(v string) bool { return matchFold(pattern, v) }) {
		return Filter{}, fmt.Errorf("filter %q matches nothing: %w", s, &UnknownError{What: string(k), Word: pattern, Known: known})
	}
	return Filter{Key: k, Pattern: pattern}, nil
}

// KeyValues returns every value that k can have. It is nil where values are
// names that users choose.
func KeyValues(k Key) []string {
	var values []string
	switch k {
	case KeyOp:
		for _, o := range Ops {
			values = append(values, string(o))
		}
	case KeySource:
		for _, s := range Sources {
			values = append(values, string(s))
		}
	}
	return values
}

// noSlashes lets * of path.Match match slashes too: in image and mount names they
// are not separators.
var noSlashes = strings.NewReplacer("/", "\x00")

// matchFold is MatchGlob for filters: upper and lower case are the same, as they are in
// the search of the screen.
func matchFold(pattern, text string) bool {
	return MatchGlob(strings.ToLower(pattern), strings.ToLower(text))
}

// MatchGlob reports whether text matches a pattern of ParseFilter. A broken
// pattern matches nothing.
func MatchGlob(pattern, text string) bool {
	ok, err := path.Match(noSlashes.Replace(pattern), noSlashes.Replace(text))
	return err == nil && ok
}

// matches reports whether s passes f. The pattern may match the text of the row
// or another name of the same thing: the id of a container, the bare name or the
// pid of a process.
func (g *grouper) matches(f Filter, s *Sample, op Op) bool {
	text, _ := g.value(s, f.Key, op)
	if matchFold(f.Pattern, text) {
		return true
	}
	if s.Host != (Host{}) {
		if text, _ = g.valueOnHost(s, f.Key, op); matchFold(f.Pattern, text) {
			return true
		}
	}
	var names [4]string
	switch f.Key {
	case KeyContainer:
		if c := &s.Container; c.ID != "" {
			names = [4]string{c.ID, ShortID(c.ID), c.Name}
		}
	case KeyOuter:
		if c := &s.Container; c.Outer != "" {
			names = [4]string{c.Outer, ShortID(c.Outer), c.OuterName}
		} else if c.ID != "" {
			names = [4]string{c.ID, ShortID(c.ID), c.Name}
		}
	case KeyHost:
		names = [4]string{s.Host.Name, s.Host.ID}
	case KeyProject:
		names[0] = s.Project
	case KeyService:
		names = [4]string{s.Service, serviceText(s)}
	case KeyImage:
		names = [4]string{s.Container.Image, imageText(&s.Container)}
	case KeyPod:
		names = [4]string{s.Pod.Name, podText(&s.Pod)}
	case KeyNamespace:
		names[0] = s.Pod.Namespace
	case KeyNFSServer:
		names = [4]string{s.Mount.NFSServer, s.Mount.NFSAddress}
	case KeyNFSClient:
		names = [4]string{s.NFSClient.Address, s.NFSClient.Name}
	case KeyNFSExport:
		names[0] = s.Mount.NFSExport
	case KeyCgroup:
		names = [4]string{s.Cgroup.Path, strconv.FormatUint(s.Cgroup.ID, 10)}
	case KeyProcess:
		names = [4]string{s.Process.Name, strconv.FormatUint(uint64(s.Process.PID), 10)}
	case KeyDevice:
		names = [4]string{s.Device.ID, "/dev/" + s.Device.Name, s.Device.Name, s.Device.Alias}
	case KeyMount:
		names = [4]string{s.Mount.Source, s.Mount.Point, s.Mount.Volume}
	case KeyFile:
		names = [4]string{s.File.Path, s.File.Inside}
	}
	if name, ok := f.Key.Label(); ok {
		names[0] = s.Container.Labels[name]
	}
	for _, n := range names {
		if n != "" && matchFold(f.Pattern, n) {
			return true
		}
	}
	return false
}

// passes applies all filters: one filter of each key must match, and so must all
// pins and the search of the screen.
func (g *grouper) passes(s *Sample, op Op) bool {
	for _, alternatives := range g.filters {
		if !slices.ContainsFunc(alternatives, func(f Filter) bool { return g.matches(f, s, op) }) {
			return false
		}
	}
	for _, p := range g.opt.Pins {
		if _, id := g.value(s, p.Key, op); id != p.ID {
			return false
		}
	}
	if g.opt.Search == "" {
		return true
	}
	return slices.ContainsFunc(g.opt.By, func(k Key) bool {
		text, _ := g.value(s, k, op)
		return strings.Contains(strings.ToLower(text), g.opt.Search)
	})
}
