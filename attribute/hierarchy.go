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
func FindHierarchy(procRoot string) (Hierarchy, error) {
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

	mi, err := os.Open(filepath.Join(procRoot, "self/mountinfo"))
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
		// Prefer a mount of the whole hierarchy to a part of it, and the conventional place
		// to a copy in the file system of a container.
		whole, conventional := m.Root == "/", strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup")
		if h.Mount == "" || whole && (h.Root != "/" || conventional && !strings.HasPrefix(h.Mount, "/sys/fs/cgroup")) {
			h.Mount, h.Root = m.Mountpoint, m.Root
		}
	}
	return h, nil
}

// errNoMount says that the hierarchy exists but is not mounted in our mount namespace.
var errNoMount = errors.New("the cgroup hierarchy is not mounted here")
