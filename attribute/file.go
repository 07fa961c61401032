package attribute

import (
	"path"
	"slices"
	"strings"
	"time"
)

// FilePath is where a file is. Either path is "" when it is not known.
type FilePath struct {
	Host   string
	Inside string // in the mount namespace of the cgroup, where that has one of its own
}

// FilePath finds out where a file is from its place below the root of its file system, whose
// device is dev, for the I/O of a cgroup (0: nobody's). No file system is asked.
func (r *Resolver) FilePath(dev, below string, cgroup uint64) FilePath {
	return r.mounts.place(dev, below, cgroup)
}

func (m *mounts) place(dev, below string, id uint64) FilePath {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refresh(dev)
	var p FilePath
	// The mount with the most of the file system: others are binds of parts of it.
	p.Host = m.host.join(dev, below, func(a, b mounted) bool { return len(a.root) < len(b.root) })
	c, known := m.tree.get(id)
	if !known || !c.goneAt.IsZero() {
		return p
	}
	own := m.ownTable(&c)
	// The mount with the least of it is what was made for the container: a volume.
	p.Inside = own.join(dev, below, func(a, b mounted) bool { return len(a.root) > len(b.root) })
	if p.Inside == "" && p.Host != "" {
		p.Inside = own.throughOverlay(p.Host)
	}
	return p
}

// on returns the mounts of a device, in the order of the table.
func (t *table) on(dev string) []mounted {
	if t.onDev == nil {
		t.onDev = map[string][]mounted{}
		for _, e := range t.byPoint {
			t.onDev[e.dev] = append(t.onDev[e.dev], e)
		}
		for _, all := range t.onDev {
			slices.SortFunc(all, func(a, b mounted) int { return a.order - b.order })
		}
	}
	return t.onDev[dev]
}

// join returns the path of a file by the best of the mounts that have it; "" if none has
// it, or several that are not the same.
func (t *table) join(dev, below string, better func(a, b mounted) bool) string {
	var best mounted
	found := false
	for _, e := range t.on(dev) {
		if _, ok := under(below, e.root); !ok {
			continue
		}
		if found && e.root == best.root && e.source != best.source && strings.HasPrefix(e.fstype, "nfs") {
			// Exports on one file system of the server: each is the root of its own names.
			return ""
		}
		if !found || better(e, best) {
			best, found = e, true
		}
	}
	if !found {
		return ""
	}
	rest, _ := under(below, best.root)
	return clip(path.Join(best.point, rest), maxFilePath)
}

// maxFilePath is the longest path of a file that is kept.
const maxFilePath = 4096

// under returns what follows dir in a path.
func under(p, dir string) (rest string, ok bool) {
	if dir == "/" {
		return p, true
	}
	rest, ok = strings.CutPrefix(p, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// throughOverlay returns the path of a file of one of the layers that a namespace's overlays
// are made of: the kernel reads and writes those. Engines keep all layers in one directory.
func (t *table) throughOverlay(host string) string {
	for _, e := range t.byPoint {
		if e.upper == "" {
			continue
		}
		if rest, ok := under(host, e.upper); ok {
			return clip(path.Join(e.point, rest), maxFilePath)
		}
		// .../overlay2/<id>/diff, .../snapshots/<n>/fs
		rest, ok := under(host, path.Dir(path.Dir(e.upper)))
		if parts := strings.SplitN(rest, "/", 4); ok && len(parts) == 4 && parts[2] == path.Base(e.upper) {
			return clip(path.Join(e.point, parts[3]), maxFilePath)
		}
	}
	return ""
}

// LogOf returns the name of the container whose log a file of the host is; "" if it is none.
// Logs are where engines keep them by default, and where the kubelet does.
func (r *Resolver) LogOf(host string) string {
	parts := strings.Split(host, "/")
	name := func(id, fallback string) string {
		if c := r.registry.get(id); c != nil {
			var o Owner
			describe(&o, c, time.Now())
			switch {
			case o.Project != "" && o.Service != "":
				return o.Project + "/" + o.Service
			case o.ContainerName != "":
				return o.ContainerName
			}
		}
		return fallback
	}
	for i, p := range parts {
		rest := parts[i+1:]
		switch {
		// Docker: containers/ID/ID-json.log, containers/ID/local-logs/container.log
		case p == "containers" && len(rest) == 2 && isHex(rest[0], 64) && strings.HasPrefix(rest[1], rest[0]+"-json.log"),
			p == "containers" && len(rest) == 3 && isHex(rest[0], 64) && rest[1] == "local-logs":
			return name(rest[0], rest[0][:12])
		// Podman: overlay-containers/ID/userdata/ctr.log
		case strings.HasSuffix(p, "-containers") && len(rest) == 3 && isHex(rest[0], 64) && rest[1] == "userdata" && strings.HasPrefix(rest[2], "ctr.log"):
			return name(rest[0], rest[0][:12])
		// The kubelet: pods/NAMESPACE_POD_UID/CONTAINER/0.log
		case p == "pods" && i > 0 && parts[i-1] == "log" && len(rest) == 3:
			if pod := strings.Split(rest[0], "_"); len(pod) == 3 && strings.Contains(rest[2], ".log") {
				return pod[0] + "/" + pod[1] + "/" + rest[1]
			}
		}
	}
	return ""
}
