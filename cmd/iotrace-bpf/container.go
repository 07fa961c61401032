package main

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// The first namespaces of a machine have fixed inode numbers: enum proc_ns of
// include/linux/proc_ns.h.
var firstNamespaces = map[string]uint64{
	"uts": 0xEFFFFFFE, "user": 0xEFFFFFFD, "pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB,
}

// hostView is what this process sees of the host: all of it, or what a container
// leaves of it.
type hostView struct {
	root string          // where the host's file system is seen; "" is our own root
	proc bool            // root/proc is the host's: its process 1 is the host's init
	own  map[string]bool // namespaces that are not the host's, by their names in /proc/PID/ns
	net  bool            // whether the network namespace is known to be the host's or not
	tree bool            // the root directory is on another file system than the host's
}

// viewHost looks at the namespaces of this process. hostRoot is --host-root; without it,
// the root of process 1 is used where that is the host's and another one than ours. The
// error is a usage error.
func viewHost(hostRoot string) (*hostView, error) {
	v := &hostView{own: map[string]bool{}}
	for name, first := range firstNamespaces {
		if ns := namespace("/proc/self/ns/" + name); ns != 0 && ns != first {
			v.own[name] = true
		}
	}
	switch {
	case hostRoot != "":
		v.root = strings.TrimRight(filepath.Clean(hostRoot), "/")
		if !filepath.IsAbs(hostRoot) {
			return nil, usagef("--host-root %q: give an absolute path", hostRoot)
		}
		if fi, err := os.Stat(v.path("/proc")); err != nil || !fi.IsDir() {
			return nil, &usageError{fmt.Errorf("--host-root %q: the host's file system is not there: no directory %q", hostRoot, v.path("/proc")),
				"mount it there: docker run --volume /:" + hostRoot + ":ro,rslave, or use --pid=host and --host-root /proc/1/root"}
		}
	case hostProc("/proc") && anotherRoot("/proc/1/root"):
		v.root = "/proc/1/root"
	}
	v.proc = hostProc(v.path("/proc"))
	if v.proc {
		v.tree = rootDevice(v.path("/proc/1/mountinfo")) != rootDevice("/proc/self/mountinfo")
		first, mine := namespace(v.path("/proc/1/ns/net")), namespace("/proc/self/ns/net")
		v.net = first != 0 && mine != 0
		v.own["net"] = v.net && mine != first
	}
	return v, nil
}

// path returns where a path of the host is seen.
func (v *hostView) path(p string) string { return v.root + p }

// contained tells whether this process runs in a container. A namespace of UTS, mounts or
// network alone does not make one: systemd gives such to units.
func (v *hostView) contained() bool {
	return v.root != "" || !v.proc || v.tree || v.own["pid"] || v.own["cgroup"] || v.own["user"]
}

// namespace returns the inode number of a namespace, 0 where it may not be read.
func namespace(link string) uint64 {
	name, err := os.Readlink(link)
	if err != nil {
		return 0
	}
	_, number, _ := strings.Cut(strings.TrimSuffix(name, "]"), "[")
	n, _ := strconv.ParseUint(number, 10, 64)
	return n
}

// hostProc tells whether a procfs is that of the machine's first pid namespace. There
// process 2 is kthreadd, a kernel thread. Unlike the namespace of process 1, every user
// may read that.
func hostProc(proc string) bool {
	const pfKthread = 0x00200000 // PF_KTHREAD, include/linux/sched.h
	stat, err := os.ReadFile(filepath.Join(proc, "2/stat"))
	if err != nil {
		return false
	}
	// pid (comm) state ppid pgrp session tty tpgid flags: comm may hold anything.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	return err == nil && flags&pfKthread != 0
}

// rootDevice returns the device of the root directory in a mount table.
func rootDevice(table string) string {
	data, _ := os.ReadFile(table)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return f[2]
		}
	}
	return ""
}

// thisHost describes the host for the commands without --host-root.
func thisHost() output.Host {
	v, err := viewHost("")
	if err != nil {
		return output.Host{}
	}
	h, _ := v.describe("")
	return h
}

// anotherRoot tells whether a directory can be used and is not our own root.
func anotherRoot(dir string) bool {
	var mine, other unix.Stat_t
	if unix.Stat("/", &mine) != nil || unix.Stat(dir+"/.", &other) != nil {
		return false
	}
	if mine.Dev == other.Dev && mine.Ino == other.Ino {
		return false
	}
	_, err := os.ReadDir(dir + "/proc/1")
	return err == nil
}

// describe returns the host that is traced. name is --host-name. known is false when
// the name is only that of this container.
func (v *hostView) describe(name string) (h output.Host, known bool) {
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Kernel = string(bytes.TrimRight(uts.Release[:], "\x00"))
	}
	id, _ := os.ReadFile(v.path("/etc/machine-id"))
	h.ID = strings.TrimSpace(string(id))
	h.Name, known = name, true
	switch {
	case name != "":
	case !v.own["uts"] || !v.contained():
		h.Name, _ = os.Hostname()
	default:
		h.Name = cmp.Or(v.initHostname(), v.fileHostname())
		if known = h.Name != ""; !known {
			h.Name, _ = os.Hostname()
		}
	}
	return h, known
}

// initHostname returns the name in the UTS namespace of process 1, which needs
// CAP_SYS_ADMIN and CAP_SYS_PTRACE; "" without them.
func (v *hostView) initHostname() string {
	if !v.proc {
		return ""
	}
	name := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it: the thread ends with this goroutine
		defer close(name)
		fd, err := unix.Open(v.path("/proc/1/ns/uts"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		if unix.Setns(fd, unix.CLONE_NEWUTS) != nil {
			return
		}
		if n, err := os.Hostname(); err == nil {
			name <- n
		}
	}()
	return <-name
}

// fileHostname returns the name in the host's /etc/hostname.
func (v *hostView) fileHostname() string {
	if v.root == "" {
		return ""
	}
	data, _ := os.ReadFile(v.path("/etc/hostname"))
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return line
		}
	}
	return ""
}

// sight is a part of the host that a container may hide.
type sight struct {
	what  string
	found string // as it is
	cost  string // what is missing because of that, "" for nothing
	cure  string // the flag or mount that changes it
	loud  bool   // the cost is one of names or totals: it is a warning, and in the status document
}

const (
	cureRoot = "docker run --volume /:/host:ro,rslave and --host-root /host"
	cureCaps = "docker run --cap-add "
)

// sights returns what this container shows of the host, in the order of check.
func (v *hostView) sights(h attribute.Hierarchy, nameKnown, vxlan bool) []sight {
	var all []sight
	add := func(s sight) { all = append(all, s) }
	ns := func(name string) string {
		if v.own[name] {
			return "its own"
		}
		return "the host's"
	}

	pid := sight{what: "pid namespace", found: ns("pid")}
	switch {
	case !v.proc:
		pid.cost = "mounts and processes have no names: /proc is not the host's"
		pid.cure, pid.loud = "docker run --pid=host, or "+cureRoot, true
	case v.own["pid"]:
		pid.found += ", the host's /proc is at " + v.path("/proc")
		pid.cost, pid.cure = "mounts that only one container has are not named, and --exclude-self does not work", "docker run --pid=host"
	}
	add(pid)

	cg := sight{what: "cgroup namespace", found: ns("cgroup")}
	files := sight{what: "host's cgroups", found: cmp.Or(h.Mount, "not mounted")}
	if whole := h.Mount != "" && h.Root == "/" && (!v.own["cgroup"] || isKernfsRoot(h.Mount)); !whole {
		files.cost, files.loud = "other cgroups have numbers instead of paths, so containers and units have no names", true
		files.cure = cureRoot + ", or --cgroupns=host and --volume /sys/fs/cgroup:/sys/fs/cgroup:ro"
		if h.Mount != "" {
			files.found += " (a part of them)"
		}
	}
	add(cg)
	add(files)

	net := sight{what: "network namespace", found: ns("net")}
	switch {
	case v.own["net"]:
		net.cost, net.cure = "overlay devices of the host are not watched without CAP_SYS_ADMIN and CAP_SYS_PTRACE; --prometheus PORT is served inside of the container", "docker run --network=host"
	case !v.net:
		net.found = "not known: process 1 may not be looked at"
		net.cure = "docker run --pid=host --cap-add SYS_PTRACE --security-opt apparmor=unconfined"
	}
	add(net)

	uts := sight{what: "UTS namespace", found: ns("uts")}
	if !nameKnown {
		uts.cost, uts.loud = "host.name is the name of this container", true
		uts.cure = "docker run --uts=host, or --host-name NAME"
	}
	add(uts)
	id := sight{what: "machine id", found: v.path("/etc/machine-id")}
	if data, err := os.ReadFile(id.found); err != nil || len(bytes.TrimSpace(data)) == 0 {
		id.found, id.cost, id.cure = "not there", "host.id is missing", cureRoot+", or --volume /etc/machine-id:/etc/machine-id:ro"
	}
	add(id)

	if v.own["user"] {
		add(sight{what: "user namespace", found: "its own", cost: "capabilities do not count for the host: nothing can be traced", cure: "docker run --userns=host", loud: true})
	} else {
		add(sight{what: "user namespace", found: "the host's"})
	}

	trace := sight{what: "tracefs", found: "not there"}
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(v.path(dir) + "/events"); err == nil {
			trace.found = v.path(dir)
			break
		}
	}
	if trace.found == "not there" {
		trace.cost = "kprobes of a killed run, on kernels that keep them in tracefs, are not cleared away"
		trace.cure = "docker run --volume /sys/kernel/tracing:/sys/kernel/tracing"
	}
	add(trace)
	add(capabilities(vxlan))

	roots := sight{what: "CA certificates", found: "found"}
	if pool, err := x509.SystemCertPool(); err != nil || pool.Equal(x509.NewCertPool()) {
		roots.found, roots.cost = "none", "no server with https can be trusted"
		roots.cure = "--elasticsearch-ca FILE, or docker run --volume /etc/ssl/certs:/etc/ssl/certs:ro"
	}
	add(roots)
	return all
}

// isKernfsRoot tells the root of a cgroup hierarchy, the first node of its kernfs.
func isKernfsRoot(dir string) bool {
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && st.Ino == 1
}

// wantedCapabilities says what each capability is good for. Without the first two
// nothing is traced.
func wantedCapabilities(vxlan bool) []struct {
	bit  uint
	name string
	cost string
} {
	type wanted = struct {
		bit  uint
		name string
		cost string
	}
	all := []wanted{
		{unix.CAP_BPF, "BPF", "nothing can be traced"},
		{unix.CAP_PERFMON, "PERFMON", "nothing can be traced"},
		{unix.CAP_DAC_READ_SEARCH, "DAC_READ_SEARCH", "cgroups are found by walking all of them"},
		{unix.CAP_SYS_PTRACE, "SYS_PTRACE", "mounts that only one container has are not named"},
	}
	if vxlan {
		for _, w := range []wanted{{unix.CAP_NET_ADMIN, "NET_ADMIN", ""}, {unix.CAP_SYS_ADMIN, "SYS_ADMIN", ""}, {unix.CAP_NET_BROADCAST, "NET_BROADCAST", ""}} {
			w.cost = "overlay devices are not watched"
			all = append(all, w)
		}
	}
	return all
}

// capabilities compares those of this process with what it can use. CAP_SYS_ADMIN
// stands for the first two, for engines that do not know them (Docker 20.10).
func capabilities(vxlan bool) sight {
	s := sight{what: "capabilities", found: "all that are used"}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		s.found = err.Error()
		return s
	}
	has := func(c uint) bool { return caps[c/32].Effective&(1<<(c%32)) != 0 }
	var missing, costs []string
	for _, w := range wantedCapabilities(vxlan) {
		if has(w.bit) || (w.bit == unix.CAP_BPF || w.bit == unix.CAP_PERFMON) && has(unix.CAP_SYS_ADMIN) {
			continue
		}
		missing = append(missing, w.name)
		if !slices.Contains(costs, w.cost) {
			costs = append(costs, w.cost)
		}
	}
	if missing != nil {
		s.found = "without " + strings.Join(missing, ", ")
		s.cost = strings.Join(costs, "; ")
		s.cure = cureCaps + strings.Join(missing, " --cap-add ") + " (Docker 20.10 knows neither BPF nor PERFMON: --cap-add SYS_ADMIN)"
	}
	return s
}

// limitations returns what names or totals lack, for warnings and status documents.
func limitations(all []sight) []tracer.Limitation {
	var list []tracer.Limitation
	for _, s := range all {
		if s.loud && s.cost != "" {
			list = append(list, tracer.Limitation{Text: s.cost, Remedy: s.cure})
		}
	}
	return list
}

// attributeOptions adds the view to where names are looked for.
func (v *hostView) attributeOptions(o attribute.Options) attribute.Options {
	o.HostRoot, o.NoHostProc = v.root, !v.proc
	if v.root != "" {
		o.ProcRoot = v.path("/proc")
	}
	return o
}

// noEngine is the sight of a container without the socket of any engine.
func noEngine(sockets []attribute.Endpoint) sight {
	s := sight{what: "engine's socket", found: "found"}
	if !slices.ContainsFunc(sockets, func(e attribute.Endpoint) bool { return !errors.Is(e.Err, fs.ErrNotExist) }) {
		s.found, s.cost = "none", "containers have ids instead of names"
		s.cure = cureRoot + ", or --volume /run/docker.sock:/run/docker.sock"
	}
	return s
}

// line returns a finding of check.
func (s sight) lines() []string {
	lines := []string{s.what + ": " + text.Safe(s.found)}
	if s.cost != "" {
		lines = append(lines, "  limitation: "+s.cost)
		if s.cure != "" {
			lines = append(lines, "    lifted by: "+s.cure)
		}
	}
	return lines
}
