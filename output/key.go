package output

import (
	"fmt"
	"path"
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
	KeyNFSServer Key = "nfs-server"
	KeyHost      Key = "host"
	KeySource    Key = "source"
	KeyOp        Key = "op"
	labelPrefix      = "label:"
)

// keyNames holds every key, in the order of the help text.
var keyNames = []Key{KeyContainer, KeyProject, KeyService, KeyImage, KeyPod, KeyNamespace, KeyOuter, KeyCgroup,
	KeyProcess, KeyDevice, KeyMount, KeyNFSServer, KeyHost, KeySource, KeyOp}

// KeyLabel returns the key that groups by the container label name.
func KeyLabel(name string) Key { return Key(labelPrefix + name) }

// Label returns the label that k groups by.
func (k Key) Label() (name string, ok bool) { return strings.CutPrefix(string(k), labelPrefix) }

// KeyNames returns every valid key for a help text or for shell completion,
// with "label:KEY" last.
func KeyNames() []string {
	names := make([]string, 0, len(keyNames)+1)
	for _, k := range keyNames {
		names = append(names, string(k))
	}
	return append(names, labelPrefix+"KEY")
}

// ParseKey reads one key.
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
		return "", fmt.Errorf("unknown key %q: use %s", s, strings.Join(KeyNames(), ", "))
	}
	return k, nil
}

// ParseKeys reads the value of --by: one key or several, separated by commas.
// A label key that itself holds a comma cannot be named.
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
	// Text names the value for people. It holds whatever a container or a file
	// system was named: see text.Safe.
	Text string
	// ID tells values apart that have the same text.
	ID string
}

// The texts of owners that are not a workload.
const (
	TextKernel       = "(kernel)"
	TextUnattributed = "(unattributed)"
	TextOther        = "(other)"
	TextRest         = "(rest)"
	TextFiltered     = "(filtered out)"
)

// special names the owners that have no identity of their own: the same row
// whatever the key.
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

// Workload tells whether o is somebody's I/O: neither the kernel's nor bytes
// without a known owner.
func (o OwnerKind) Workload() bool { return special(o) == "" }

const shortIDLen = 12

func ShortID(id string) string { return id[:min(len(id), shortIDLen)] }

// ContainerText is the name of a container, or what docker ps would print
// while the name is not known.
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
	return "cgroup " + strconv.FormatUint(c.ID, 10)
}

// ownerValue names the owner itself: the container, else the pod, else the
// systemd unit, else the cgroup. It is the value for --by container, and for
// every other key that the owner has nothing to say about. The text of a
// container that lacks the key tells so ("web-1 (no project)"); a unit or
// cgroup needs no such word, its name shows what it is.
func ownerValue(s *Sample, missing Key) (text, id string) {
	if t := special(s.Owner); t != "" {
		return t, "owner\x00" + string(s.Owner)
	}
	switch {
	case s.Container.ID != "" || s.Container.Name != "":
		text = ContainerText(&s.Container)
		switch {
		case s.Owner == OwnerHelper:
			// The runtime's own monitor, not the workload: never one row with it.
			text += " (helper)"
		case missing != "":
			text += " (no " + missingText(missing) + ")"
		}
		id = s.Container.ID
		if id == "" {
			id = s.Container.Name
		}
		return text, "container\x00" + string(s.Owner) + "\x00" + id
	case s.Pod.Name != "":
		text = podText(&s.Pod) + " (pod)"
		return text, "pod\x00" + s.Pod.UID + "\x00" + podText(&s.Pod)
	case s.Unit != "":
		// The same unit name may live under several users' managers.
		return s.Unit, "unit\x00" + s.Unit + "\x00" + path.Dir(s.Cgroup.Path)
	}
	return cgroupText(&s.Cgroup), "cgroup\x00" + cgroupID(&s.Cgroup)
}

// OwnerText names the owner of s as --by container does.
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
	if c.ImageTag == "" {
		return c.Image
	}
	return c.Image + ":" + c.ImageTag
}

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

func DeviceText(d *Device) string {
	switch {
	case d.Name != "":
		return d.Name
	case d.ID != "":
		return d.ID
	}
	return "(no device)"
}

// MountText names the storage first, because that is what several hosts and
// containers have in common, then the place.
func MountText(s *Sample) string {
	m := &s.Mount
	text := m.Source
	switch {
	case text == "" && m.Point == "" && m.Volume == "":
		return DeviceText(&s.Device) + " (no mount)"
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

// value returns what s is grouped under by key k. Rows are told apart by id,
// so that a container named like a unit, or two containers of one name, never
// share a row.
func (g *grouper) value(s *Sample, k Key, op Op) (text, id string) {
	switch k {
	case KeyDevice:
		return DeviceText(&s.Device), s.Device.ID + "\x00" + s.Device.Name
	case KeyMount:
		return MountText(s), s.Mount.Source + "\x00" + s.Mount.FSType + "\x00" + s.Mount.Volume + "\x00" + s.Device.ID
	case KeyNFSServer:
		if s.Mount.NFSServer == "" {
			return "(not nfs)", ""
		}
		return s.Mount.NFSServer, "\x01" + s.Mount.NFSServer
	case KeyHost:
		if g.host.Name == "" {
			return "(unnamed host)", g.host.ID
		}
		return g.host.Name, g.host.ID
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
	case KeyOuter:
		// What is nested counts for the container around it all, in that one's row.
		if c := &s.Container; c.Outer != "" {
			outer := Container{ID: c.Outer, Name: c.OuterName}
			return ContainerText(&outer), "container\x00" + string(OwnerContainer) + "\x00" + c.Outer
		}
		return ownerValue(s, "")
	case KeyProject:
		if s.Project != "" {
			return s.Project, "project\x00" + s.Project
		}
	case KeyService:
		if s.Service != "" {
			return serviceText(s), "service\x00" + s.Project + "\x00" + s.Service
		}
	case KeyImage:
		if s.Container.Image != "" {
			return imageText(&s.Container), "image\x00" + s.Container.Image + "\x00" + s.Container.ImageTag
		}
	case KeyPod:
		if s.Pod.Name != "" {
			return podText(&s.Pod), "pod\x00" + s.Pod.UID + "\x00" + podText(&s.Pod)
		}
	case KeyNamespace:
		if s.Pod.Namespace != "" {
			return s.Pod.Namespace, "namespace\x00" + s.Pod.Namespace
		}
	case KeyCgroup:
		if g.opt.CgroupDepth > 0 && s.Cgroup.Path != "" {
			p := truncateCgroup(s.Cgroup.Path, g.opt.CgroupDepth)
			return p, "path\x00" + p
		}
		return cgroupText(&s.Cgroup), "cgroup\x00" + cgroupID(&s.Cgroup)
	case KeyProcess:
		return ProcessText(&s.Process), strconv.FormatUint(uint64(s.Process.PID), 10) + "\x00" + s.Process.Name
	default:
		if name, ok := k.Label(); ok {
			if v, ok := s.Container.Labels[name]; ok {
				if v == "" {
					return "(empty)", "label\x00"
				}
				return v, "label\x00" + v
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

// ParseFilter reads KEY=GLOB. Keys are those of ParseKeys, with source and op
// among them. In the pattern * stands for any text, slashes included, ? for one
// character, [a-z] for one of a range; \ takes the next character as it is.
func ParseFilter(s string) (Filter, error) {
	// A label key may hold "=", but nothing is lost when it cannot be named.
	key, pattern, ok := strings.Cut(s, "=")
	if !ok {
		return Filter{}, fmt.Errorf("filter %q has no \"=\": write KEY=GLOB, such as project=shop or image=*/nginx", s)
	}
	k, err := ParseKey(key)
	if err != nil {
		return Filter{}, fmt.Errorf("filter %q: %w", s, err)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return Filter{}, fmt.Errorf("filter %q: pattern %q is not a valid glob (a [ or \\ with nothing after it)", s, pattern)
	}
	if k == KeyOp && !slices.ContainsFunc(Ops, func(o Op) bool { return MatchGlob(pattern, string(o)) }) {
		return Filter{}, fmt.Errorf("filter %q matches no operation: there are %s", s, joinOps())
	}
	return Filter{Key: k, Pattern: pattern}, nil
}

// unslash lets * of path.Match run across slashes: image and mount names are
// full of them and nobody means them as separators here.
var unslash = strings.NewReplacer("/", "\x00")

func MatchGlob(pattern, text string) bool {
	ok, err := path.Match(unslash.Replace(pattern), unslash.Replace(text))
	return err == nil && ok
}

// matches tells whether s passes f. Besides the text of its row a thing answers
// to its other names: a container to its id, a process to its bare name or pid.
func (g *grouper) matches(f Filter, s *Sample, op Op) bool {
	text, _ := g.value(s, f.Key, op)
	if MatchGlob(f.Pattern, text) {
		return true
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
	case KeyService:
		names[0] = s.Service
	case KeyImage:
		names[0] = s.Container.Image
	case KeyPod:
		names[0] = s.Pod.Name
	case KeyCgroup:
		names = [4]string{s.Cgroup.Path, strconv.FormatUint(s.Cgroup.ID, 10)}
	case KeyProcess:
		names = [4]string{s.Process.Name, strconv.FormatUint(uint64(s.Process.PID), 10)}
	case KeyDevice:
		names = [4]string{s.Device.ID, "/dev/" + s.Device.Name}
	case KeyMount:
		names = [4]string{s.Mount.Source, s.Mount.Point, s.Mount.Volume}
	}
	for _, n := range names {
		if n != "" && MatchGlob(f.Pattern, n) {
			return true
		}
	}
	return false
}

// passes applies all filters: those of one key are alternatives, those of
// different keys must all hold. Pins and the search of a screen must hold too.
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
