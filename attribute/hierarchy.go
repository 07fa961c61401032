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

// Hierarchy is the cgroup hierarchy whose ids name everything: the one that the
// memory controller lives in. Ids of different hierarchies collide, so there is
// exactly one.
type Hierarchy struct {
	ID      int    // 0 = cgroup2, else the number in /proc/self/cgroup
	Version int    // 1 or 2
	Mount   string // where it is mounted; "" when it is not mounted here
	Root    string // cgroup that is at Mount, "/" unless a container sees a part only
}

// FindHierarchy finds the hierarchy of the memory controller: cgroup2, or memory
// on cgroup v1 (also beside a cgroup2 mount, "hybrid"). Where memory is nowhere
// it is cgroup2. procRoot is "" for /proc. The error wraps fs.ErrNotExist when
// the machine has no cgroups at all.
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
		// A mount of the whole hierarchy is worth more than a part of it, and the
		// conventional place more than a copy in some container's file system.
		whole, conventional := m.Root == "/", strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup")
		if h.Mount == "" || whole && (h.Root != "/" || conventional && !strings.HasPrefix(h.Mount, "/sys/fs/cgroup")) {
			h.Mount, h.Root = m.Mountpoint, m.Root
		}
	}
	return h, nil
}

// errNoMount tells that the hierarchy is there but not mounted where we can see.
var errNoMount = errors.New("the cgroup hierarchy is not mounted here")
