package attribute

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Hierarchy is the cgroup hierarchy whose ids name owners: that of the memory controller.
// Ids of different hierarchies collide, so only one is used.
type Hierarchy struct {
	ID      int    // 0 for cgroup2, else the number in /proc/self/cgroup
	Version int    // 1 or 2
	Mount   string // where it is mounted; "" when it is not mounted here
	Root    string // path of the cgroup at Mount, "/" unless a container sees only a part
}

// FindHierarchy returns the hierarchy of the memory controller: cgroup2, or memory on
// cgroup v1 (also beside a cgroup2 mount, "hybrid"). Without a memory controller it is
// cgroup2. procRoot "" means /proc. The error wraps fs.ErrNotExist when the machine has no
// cgroups.
func FindHierarchy(procRoot string) (Hierarchy, error) { return findHierarchy(procRoot, "") }

// findHierarchy also finds the cgroups of a host whose file system is seen under hostRoot.
func findHierarchy(procRoot, hostRoot string) (Hierarchy, error) {
	if procRoot == "" {
		procRoot = "/proc"
	}
	h := Hierarchy{Version: 2, Root: "/"}
	f, err := os.Open(filepath.Join(procRoot, "self/cgroup"))
	if err != nil {
		return h, fmt.Errorf("finding the cgroup hierarchy: %w", err)
	}
	defer f.Close()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		id, rest, _ := strings.Cut(s.Text(), ":")
		controllers, _, _ := strings.Cut(rest, ":")
		if n, err := strconv.Atoi(id); err == nil && n > 0 && slices.Contains(strings.Split(controllers, ","), "memory") {
			h.ID, h.Version = n, 1
		}
	}
	if lines == 0 {
		return h, fmt.Errorf("finding the cgroup hierarchy: %q is empty: %w", f.Name(), fs.ErrNotExist)
	}

	if hostRoot != "" {
		if found, err := findMount(filepath.Join(procRoot, "1/mountinfo"), hostRoot, h); err == nil && found.Mount != "" {
			return found, nil
		}
	}
	return findMount(filepath.Join(procRoot, "self/mountinfo"), "", h)
}

// findMount completes h with the place where it is mounted. The mount points in a mount
// table are below hostRoot.
func findMount(table, hostRoot string, h Hierarchy) (Hierarchy, error) {
	mi, err := os.Open(table)
	if err != nil {
		return h, fmt.Errorf("finding the cgroup mount: %w", err)
	}
	defer mi.Close()
	mounts, err := mountinfo.GetMountsFromReader(mi, func(m *mountinfo.Info) (skip, stop bool) {
		if h.Version == 2 {
			return m.FSType != "cgroup2", false
		}
		return m.FSType != "cgroup" || !slices.Contains(strings.Split(m.VFSOptions, ","), "memory"), false
	})
	if err != nil {
		return h, fmt.Errorf("finding the cgroup mount: %w", err)
	}
	for _, m := range mounts {
		m.Mountpoint = filepath.Join(hostRoot, m.Mountpoint)
		if wholeFromOutside(m) {
			h.Mount, h.Root = m.Mountpoint, "/"
			return h, nil
		}
		// Prefer a mount of the whole hierarchy to a part of it, and the conventional place
		// to a copy in the file system of a container.
		whole, conventional := m.Root == "/", strings.HasPrefix(m.Mountpoint, filepath.Join(hostRoot, "/sys/fs/cgroup"))
		if h.Mount == "" || whole && (h.Root != "/" || conventional && !strings.HasPrefix(h.Mount, filepath.Join(hostRoot, "/sys/fs/cgroup"))) {
			h.Mount, h.Root = m.Mountpoint, m.Root
		}
	}
	return h, nil
}

// wholeFromOutside tells whether a mount shows the whole hierarchy to a process in a
// cgroup namespace of its own. Its mount table then says that the root of the mount is
// above its own cgroup (/../..), and its own part of the hierarchy has the root "/". The
// root of a hierarchy is the first node that kernfs made, with inode number 1.
func wholeFromOutside(m *mountinfo.Info) bool {
	if m.Root != "/.." && !strings.HasPrefix(m.Root, "/../") {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(m.Mountpoint, &st) == nil && st.Ino == 1
}

// errNoMount says that the hierarchy exists but is not mounted in our mount namespace.
var errNoMount = errors.New("the cgroup hierarchy is not mounted here")
