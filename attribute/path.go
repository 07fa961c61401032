package attribute

import "strings"

// Runtimes, by their names in every output.
const (
	runtimeDocker     = "docker"
	runtimePlugin     = "docker-plugin"
	runtimeBuildKit   = "buildkit"
	runtimePodman     = "podman"
	runtimeContainerd = "containerd"
	runtimeCRIO       = "cri-o"
	runtimeCRI        = "cri" // a runtime of Kubernetes that has not told its name yet
	runtimeRunc       = "runc"
	runtimeLXC        = "lxc"
	runtimeNspawn     = "systemd-nspawn"
	runtimeLibvirtLXC = "libvirt-lxc"
	runtimeQEMU       = "libvirt-qemu"
	runtimeProxmox    = "proxmox-qemu"
	runtimeSlurm      = "slurm"
	runtimeKata       = "kata"
	runtimeGarden     = "garden"
	runtimeNomad      = "nomad"
	runtimeFargate    = "ecs-fargate"
)

// place is what a cgroup's path says about its owner. Strings are parts of the path where
// possible, to save copies.
type place struct {
	kind    Kind
	runtime string // "" when the path does not tell
	id      string // container id or name, machine name
	parent  string // id of the container around this one
	outer   string // id of the outermost one

	podUID    string
	parentPod string // pod of the container around this one
	task      string // ECS task
	unit      string
	sandbox   string // id of a pod's sandbox

	// named says that the id is a name that a person chose: it is unique only in its
	// runtime, and no API can be asked about it.
	named bool

	// domain says whose word counts here. Who may make a cgroup may give it any name, so
	// a name is believed only from those to whom this part of the tree belongs.
	domain domain
	// outermost is the key of the container outer.
	outermost string
}

// key returns the key of the place's container in the registry.
func (p *place) key() string { return p.domain.key(p.id) }

// parsePath reads a cgroup path, from the root of its hierarchy. It goes through the
// segments from the left, and the last match wins: of nested containers the inner one is
// the owner and the outer one its parent. It leaves empty what the path does not say.
//
// delegated returns the user to whom a cgroup was delegated (see tree.delegated). Without
// it (nil) only the path says so.
func parsePath(path string, delegated func(path string) string) place {
	p := pathParser{podAt: -2, matchAt: -2}
	path = strings.TrimSuffix(path, " (deleted)")
	for rest := path; rest != ""; {
		var seg string
		seg, rest, _ = strings.Cut(rest, "/")
		if seg == "" || seg == "." || seg == ".." {
			continue
		}
		matched := p.matchAt
		p.segment(seg)
		if rest != "" {
			p.enter(seg, path[:len(path)-len(rest)-1], p.matchAt != matched, delegated)
		}
	}
	return p.place()
}

type pathParser struct {
	n            int    // index of the current segment
	prev, before string // the two segments before it

	outer    string // the first container
	match    place  // innermost container, machine or helper so far
	matched  bool
	matchAt  int
	pod      string // uid of the last pod segment
	podAt    int
	podOwner string // container around that pod segment

	domain    domain // of the current segment
	podDomain domain // of the last pod segment
	outermost string // key of the outer container

	slice, unit, manager string
	session              bool
	unitDomain           domain
}

// enter sets the domain of what is below a segment. path ends with that segment.
func (p *pathParser) enter(seg, path string, matched bool, delegated func(string) string) {
	switch {
	case matched && (p.match.kind == KindContainer || p.match.kind == KindMachine):
		p.domain = p.match.domain.inside(p.match.id)
	case matched || p.domain.user != "":
		// A helper has nothing below it. What a user makes belongs to him at any depth.
	default:
		user := managedUser(seg)
		if user == "" && delegated != nil && p.domain == (domain{}) {
			user = delegated(path)
		}
		if user != "" && user != "0" {
			p.domain = p.domain.of(user)
		}
	}
}

// managedUser returns the uid in user@UID.service, below which a user's own systemd makes
// cgroups, or "".
func managedUser(seg string) string {
	uid, ok := strings.CutPrefix(seg, "user@")
	if uid, unit := strings.CutSuffix(uid, ".service"); ok && unit && isDigits(uid) {
		return uid
	}
	return ""
}

func (p *pathParser) segment(seg string) {
	if slice, rest, ok := strings.Cut(seg, ":"); ok {
		// A cgroupfs runtime took a systemd cgroup path literally: the directory
		// "slice:prefix:id" stands for two levels.
		if prefix, id, ok := strings.Cut(rest, ":"); ok && strings.HasSuffix(slice, ".slice") && !strings.Contains(id, ":") {
			p.single(slice)
			p.single(prefix + "-" + id + ".scope")
			return
		}
	}
	p.single(seg)
}

func (p *pathParser) single(seg string) {
	if !strings.HasSuffix(seg, ".mount") {
		p.classify(seg)
	}
	if !p.matched {
		p.noteUnit(seg)
	}
	p.before, p.prev = p.prev, seg
	p.n++
}

// classify updates the match if the segment is one.
func (p *pathParser) classify(seg string) {
	if uid := podUID(seg); uid != "" {
		p.pod, p.podAt, p.podOwner, p.podDomain = uid, p.n, "", p.domain
		if p.matched {
			p.podOwner = p.match.id
		}
		return
	}
	if task, ok := strings.CutPrefix(seg, "ecstasks-"); ok {
		if task, ok = strings.CutSuffix(task, ".slice"); ok && isHex(task, 32) {
			p.match.task = task
		}
	}
	name, scope := strings.CutSuffix(seg, ".scope")
	switch m, ok := p.named(name, scope); {
	case ok:
		p.take(m)
	case isHex(name, 64):
		p.take(place{kind: KindContainer, runtime: p.bareRuntime(), id: name})
	}
}

// named recognises segments that name the runtime.
func (p *pathParser) named(name string, scope bool) (place, bool) {
	if i := len(name) - 64; i > 1 && name[i-1] == '-' && isHex(name[i:], 64) {
		id := name[i:]
		switch prefix := name[:i-1]; prefix {
		case "docker":
			return place{kind: KindContainer, runtime: runtimeDocker, id: id}, true
		case "cri-containerd", "nerdctl":
			return place{kind: KindContainer, runtime: runtimeContainerd, id: id}, true
		case "libpod", "libpod-payload":
			m := place{kind: KindContainer, runtime: runtimePodman, id: id}
			if prefix == "libpod-payload" {
				m.unit = p.unitName() // quadlet: the container is this service
			}
			return m, true
		case "runc":
			return place{kind: KindContainer, runtime: runtimeRunc, id: id}, true
		case "crio":
			if !scope && strings.HasSuffix(p.prev, ".slice") {
				return place{kind: KindPod, runtime: runtimeCRIO, sandbox: id}, true
			}
			return place{kind: KindContainer, runtime: runtimeCRIO, id: id}, true
		case "libpod-conmon":
			return place{kind: KindHelper, runtime: runtimePodman}, true
		case "crio-conmon":
			return place{kind: KindHelper, runtime: runtimeCRIO}, true
		}
	}
	if step, ok := strings.CutPrefix(name, "docker-"); ok && isBuildStep(step) {
		return place{kind: KindContainer, runtime: runtimeBuildKit, id: step}, true
	}
	if p.prev == "buildkit" && isBuildStep(name) {
		return place{kind: KindContainer, runtime: runtimeBuildKit, id: name}, true
	}
	if name == "conmon" && p.prev == "libpod_parent" {
		return place{kind: KindHelper, runtime: runtimePodman}, true
	}
	if name == "supervisor" && p.matchAt == p.n-1 && p.match.runtime == runtimeNspawn {
		return place{kind: KindHelper, runtime: runtimeNspawn}, true
	}
	if m, ok := p.lxc(name); ok {
		return m, true
	}
	if m, ok := machine(name, scope); ok {
		return m, true
	}
	if m, ok := p.virtual(name, scope); ok {
		return m, true
	}
	return p.orchestrated(name)
}

// virtual recognises virtual machines that systemd-machined does not know.
func (p *pathParser) virtual(name string, scope bool) (place, bool) {
	switch {
	case scope && p.prev == "qemu.slice" && isDigits(name):
		return place{kind: KindMachine, runtime: runtimeProxmox, id: name, named: true}, true
	case strings.HasSuffix(name, ".libvirt-qemu"): // cgroup v1 without systemd: /machine/NAME.libvirt-qemu
		vm := strings.TrimSuffix(name, ".libvirt-qemu")
		if rest, ok := strings.CutPrefix(vm, "qemu-"); ok {
			if number, named, ok := strings.Cut(rest, "-"); ok && isDigits(number) && named != "" {
				vm = named
			}
		}
		if vm != "" && (p.prev == "machine" || p.prev == "qemu") {
			return place{kind: KindMachine, runtime: runtimeQEMU, id: vm, named: true}, true
		}
	case strings.HasSuffix(name, ".libvirt-lxc"): // the same of a container: /machine/lxc-NUMBER-NAME.libvirt-lxc
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(name, ".libvirt-lxc"), "lxc-"); ok && p.prev == "machine" {
			if number, vm, ok := strings.Cut(rest, "-"); ok && isDigits(number) && vm != "" {
				return place{kind: KindContainer, runtime: runtimeLibvirtLXC, id: vm, named: true}, true
			}
		}
	case strings.HasPrefix(name, "kata_") && isHex(name[len("kata_"):], 64):
		return place{kind: KindPod, runtime: runtimeKata, sandbox: name[len("kata_"):]}, true
	case p.prev == "kata_overhead" && isHex(name, 64):
		// The hypervisor of a sandbox and its shim, where they are not in the pod's cgroup.
		return place{kind: KindPod, runtime: runtimeKata, sandbox: name}, true
	}
	return place{}, false
}

func (p *pathParser) lxc(name string) (place, bool) {
	if strings.HasPrefix(name, "lxc.monitor") || name == "lxc.pivot" || p.prev == "lxc.monitor" {
		return place{kind: KindHelper, runtime: runtimeLXC}, true
	}
	payload, ok := strings.CutPrefix(name, "lxc.payload.")
	if !ok && (p.prev == "lxc" || p.prev == "lxc.payload") && p.matchAt != p.n-1 {
		payload, ok = name, true
	}
	if !ok || payload == "" {
		return place{}, false
	}
	return place{kind: KindContainer, runtime: runtimeLXC, id: payload, named: true}, true
}

// machine recognises the machines of systemd-machined and libvirt.
func machine(name string, scope bool) (place, bool) {
	if service, ok := strings.CutSuffix(name, ".service"); ok {
		if esc, ok := strings.CutPrefix(service, "systemd-nspawn@"); ok && esc != "" {
			return place{kind: KindContainer, runtime: runtimeNspawn, id: unescapeUnit(esc), named: true, unit: name}, true
		}
		return place{}, false
	}
	esc, ok := strings.CutPrefix(name, "machine-")
	if !ok || !scope || esc == "" {
		return place{}, false
	}
	id := unescapeUnit(esc)
	if driver, rest, ok := strings.Cut(id, "-"); ok {
		if number, vm, ok := strings.Cut(rest, "-"); ok && isDigits(number) && vm != "" {
			switch driver {
			case "qemu":
				return place{kind: KindMachine, runtime: runtimeQEMU, id: vm, named: true}, true
			case "lxc":
				return place{kind: KindContainer, runtime: runtimeLibvirtLXC, id: vm, named: true}, true
			}
		}
	}
	return place{kind: KindContainer, runtime: runtimeNspawn, id: id, named: true}, true
}

// orchestrated recognises Garden, ECS Fargate and Nomad's own drivers.
func (p *pathParser) orchestrated(name string) (place, bool) {
	if p.prev == "garden" || p.before == "garden" && (p.prev == "good" || p.prev == "bad") {
		if isGUID(name, 4) || isGUID(name, 12) {
			return place{kind: KindContainer, runtime: runtimeGarden, id: name, named: true}, true
		}
	}
	if p.before == "ecs" && isHex(p.prev, 32) {
		if i := strings.IndexByte(name, '-'); i == 32 && isHex(name[:i], 32) && isDigits(name[i+1:]) {
			return place{kind: KindContainer, runtime: runtimeFargate, id: name, named: true, task: p.prev}, true
		}
	}
	if job, ok := strings.CutPrefix(name, "job_"); ok && isDigits(job) && p.ofSlurm() {
		return place{kind: KindContainer, runtime: runtimeSlurm, id: name, named: true}, true
	}
	if p.before == "nomad" || p.before == "nomad.slice" {
		if len(name) > 37 && name[36] == '.' && isGUID(name[:36], 12) {
			return place{kind: KindContainer, runtime: runtimeNomad, id: name, named: true, task: name[37:]}, true
		}
	}
	return place{}, false
}

// ofSlurm tells whether the segment before is one that Slurm keeps its jobs in:
// [NODE_]slurmstepd.scope (plugin cgroup/v2), slurm[_NODE]/uid_N (cgroup/v1).
func (p *pathParser) ofSlurm() bool {
	scope := p.prev == "slurmstepd.scope" || strings.HasSuffix(p.prev, "_slurmstepd.scope")
	uid, ok := strings.CutPrefix(p.prev, "uid_")
	return scope || ok && isDigits(uid) && (p.before == "slurm" || strings.HasPrefix(p.before, "slurm_"))
}

// bareRuntime returns the runtime of a directory whose name is just 64 hex digits.
func (p *pathParser) bareRuntime() string {
	switch {
	case p.prev == "docker":
		return runtimeDocker
	case p.before == "ecs" && isHex(p.prev, 32):
		p.match.task = p.prev
		return runtimeDocker
	case p.podAt == p.n-1:
		return "" // some CRI runtime
	case p.n == 1 && !strings.HasSuffix(p.prev, ".slice") && !strings.HasSuffix(p.prev, ".service") && !isHex(p.prev, 64):
		return runtimeContainerd // /<namespace>/<id>
	}
	return "" // a custom parent or a managed plugin: only the runtime knows
}

func (p *pathParser) take(m place) {
	m.domain = p.domain
	if m.task == "" {
		m.task = p.match.task
	}
	if p.matched {
		if p.match.id != "" {
			m.parent, m.parentPod = p.match.id, p.match.podUID
		} else {
			m.parent, m.parentPod = p.match.parent, p.match.parentPod
		}
	}
	if m.kind == KindHelper && p.matched && p.match.runtime == runtimeNspawn && m.runtime == runtimeNspawn {
		m.parent, m.domain = p.match.parent, p.match.domain // the supervisor is beside the payload, not inside
	}
	if p.podAt == p.n-1 {
		m.podUID = p.pod
		if p.podOwner != "" {
			m.parent = p.podOwner
		}
	}
	if m.parent != "" {
		m.outer, m.outermost = p.outer, p.outermost
	}
	if p.outer == "" {
		p.outer, p.outermost = m.id, m.key()
	}
	p.match, p.matched, p.matchAt = m, true, p.n
}

// noteUnit keeps the systemd unit of a path without a container so far: the first one, as
// what is below a unit is made by its processes under any name. The units of a user are
// below the one of his manager.
func (p *pathParser) noteUnit(seg string) {
	if p.unit != "" && p.unit != p.manager {
		return
	}
	dot := strings.LastIndexByte(seg, '.')
	if dot <= 0 {
		return
	}
	switch seg[dot:] {
	case ".slice":
		p.slice = seg
		return
	case ".service":
		if strings.HasPrefix(seg, "user@") && p.manager == "" {
			p.manager = seg
		}
	case ".scope", ".mount", ".swap", ".socket":
	default:
		return
	}
	p.unit, p.unitDomain = seg, domain{}
	if p.manager == "" {
		p.unitDomain = p.domain
	}
	p.session = strings.HasPrefix(seg, "session-") && strings.HasSuffix(seg, ".scope") && strings.HasPrefix(p.prev, "user-")
}

func (p *pathParser) place() place {
	if p.matched && p.podAt < p.matchAt {
		return p.match
	}
	if p.pod != "" && (!p.matched || p.podAt > p.matchAt) {
		m := place{kind: KindPod, podUID: p.pod, parent: p.podOwner, domain: p.podDomain}
		if p.matched {
			m.parentPod = p.match.podUID
		}
		if m.parent != "" {
			m.outer, m.outermost = p.outer, p.outermost
		}
		return m
	}
	if p.matched {
		return p.match
	}
	switch {
	case p.session:
		return place{kind: KindSession, unit: p.unit}
	case p.unit != "":
		return place{kind: KindUnit, unit: p.unitName(), domain: p.unitDomain}
	case p.slice != "":
		return place{kind: KindUnit, unit: p.slice}
	}
	return place{kind: KindCgroup}
}

// unitName returns the unit, of a user with his manager: each user may have a unit of that
// name.
func (p *pathParser) unitName() string {
	if p.manager != "" && p.unit != p.manager && p.unit != "" {
		return p.manager + "/" + p.unit
	}
	return p.unit
}

// podUID returns the uid in the name of a kubelet's pod directory, with dashes, or "".
func podUID(seg string) string {
	seg = strings.TrimSuffix(seg, ".slice")
	i := strings.LastIndex(seg, "pod")
	for ; i >= 0; i = strings.LastIndex(seg[:i], "pod") {
		if i > 0 && (seg[i-1] != '-' || !strings.Contains(seg, "kubepods")) {
			continue
		}
		uid := seg[i+len("pod"):]
		if isHex(uid, 32) {
			return uid
		}
		if isGUID(uid, 12) {
			return strings.ReplaceAll(uid, "_", "-")
		}
	}
	return ""
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// isGUID tells whether s is 8-4-4-4-last hex digits, with dashes or underscores.
func isGUID(s string, last int) bool {
	if len(s) != 24+last {
		return false
	}
	sep := s[8]
	return (sep == '-' || sep == '_') && s[13] == sep && s[18] == sep && s[23] == sep &&
		isHex(s[:8], 8) && isHex(s[9:13], 4) && isHex(s[14:18], 4) && isHex(s[19:23], 4) && isHex(s[24:], last)
}

// isBuildStep tells whether s looks like BuildKit's id of a step.
func isBuildStep(s string) bool {
	if len(s) != 25 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// unescapeUnit undoes the \xNN escapes in names of systemd units (systemd.unit(5)).
func unescapeUnit(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' && isHex(s[i+2:i+4], 2) {
			b.WriteByte(unhex(s[i+2])<<4 | unhex(s[i+3]))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unhex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}
