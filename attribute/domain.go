package attribute

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// domain is a part of the cgroup tree with one authority over the names in it: the
// machine's runtimes (the zero value), a user to whom a subtree was delegated, or the
// runtime inside a container. A record of one domain never names a cgroup of another one.
type domain struct {
	path string // "" for the machine; the key of the container, or the user's domain
	user string // uid, or unknownUser, if a user's; "" for a container and the machine
}

// unknownUser stands for a user who cannot be found out.
const unknownUser = "?"

// key returns the key in the registry of what has this id in the domain.
func (d domain) key(id string) string {
	if d.path == "" || id == "" {
		return id
	}
	return d.path + "/" + id
}

// inside returns the domain inside a container of this domain.
func (d domain) inside(id string) domain { return domain{path: d.key(id)} }

// of returns the domain of a user. Two slashes mark it: no id has an empty part.
func (d domain) of(uid string) domain { return domain{path: d.path + "//" + uid, user: uid} }

// container tells whether the domain is the inside of a container.
func (d domain) container() bool { return d.path != "" && d.user == "" }

// String returns the domain as outputs show it: "" for the machine, "user 1000",
// "container ID", "container ID/ID" for a container in it, "user 1000 container ID".
func (d domain) String() string {
	if d.path == "" {
		return ""
	}
	var parts []string
	for i, part := range strings.Split(d.path, "//") {
		if i > 0 {
			var uid string
			uid, part, _ = strings.Cut(part, "/")
			if uid == unknownUser {
				uid = "unknown"
			}
			parts = append(parts, "user "+uid)
		}
		if part != "" {
			parts = append(parts, "container "+part)
		}
	}
	return strings.Join(parts, " ")
}

// delegated returns the user who may make cgroups in a cgroup: the uid that owns its
// directory, unless that is the owner of the whole tree. systemd gives the directory of a
// unit with Delegate= to the unit's user (systemd.resource-control(5)). A new directory
// belongs to its maker (cgroup_kn_set_ugid in kernel/cgroup/cgroup.c), so that the owner of
// the directory above says who may have made this one.
//
// A unit that is gone cannot be looked at: then the user is unknown. The directories
// between units are root's.
func (t *tree) delegated(p string) string {
	rel, ok := strings.CutPrefix(p, strings.TrimSuffix(t.base, "/"))
	if t.root == "" || !ok || rel != "" && rel[0] != '/' {
		return ""
	}
	st, err := statBelow(t.root, rel)
	switch {
	case err != nil:
		if ext := path.Ext(p); ext == ".service" || ext == ".scope" {
			return unknownUser
		}
		return ""
	case st.Uid != t.owner:
		return strconv.FormatUint(uint64(st.Uid), 10)
	case st.Mode&0o022 != 0:
		return unknownUser // a group may write, or everybody
	}
	return ""
}

// inSlices tells whether a path leads to a unit through slices only: what systemd makes,
// and nobody else may.
func inSlices(path, unit string) bool {
	unit = unit[strings.LastIndexByte(unit, '/')+1:]
	for seg := range strings.SplitSeq(path, "/") {
		switch {
		case seg == unit:
			return true
		case seg != "" && !strings.HasSuffix(seg, ".slice") && managedUser(seg) == "":
			return false
		}
	}
	return false
}

// uidOf returns the uid that owns a directory.
func uidOf(dir string) uint32 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	return st.Uid
}

// maxPath is the longest path that one system call takes (PATH_MAX with its zero byte).
const maxPath = 4095

// openBelow opens a directory below root with O_PATH, at any depth: a path longer than the
// kernel takes is opened in steps. It follows no links below root.
func openBelow(root, rel string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := unix.Open(root, flags, 0)
	for rel = strings.Trim(rel, "/"); rel != "" && err == nil; {
		step := rel
		if len(step) > maxPath {
			step = step[:strings.LastIndexByte(step[:maxPath], '/')+1]
			if step == "" {
				unix.Close(fd)
				return -1, unix.ENAMETOOLONG
			}
		}
		rel = rel[len(step):]
		var next int
		next, err = unix.Openat2(fd, step, &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH})
		unix.Close(fd)
		fd = next
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: clip(root+"/"+rel, maxText), Err: err}
	}
	return fd, nil
}

func statBelow(root, rel string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if len(root)+len(rel) <= maxPath {
		return st, unix.Lstat(root+rel, &st)
	}
	fd, err := openBelow(root, rel)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// longPath returns the path of an open directory that is too long for the kernel to say,
// from top to below: up to an ancestor whose path the kernel says.
func longPath(fd int) (string, error) {
	var below []string
	at, err := unix.Dup(fd)
	if err != nil {
		return "", err
	}
	defer func() { unix.Close(at) }()
	for range maxDepth * maxPath {
		name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(at))
		if err == nil {
			for i := len(below) - 1; i >= 0; i-- {
				name += "/" + below[i]
			}
			return name, nil
		}
		var self unix.Stat_t
		if err := unix.Fstat(at, &self); err != nil {
			return "", err
		}
		up, err := unix.Openat(at, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		unix.Close(at)
		at = up
		own, err := entryOf(up, self.Ino)
		if err != nil {
			return "", err
		}
		below = append(below, own)
	}
	return "", unix.ELOOP
}

// entryOf returns the name of the directory with an inode number in another directory.
func entryOf(dir int, ino uint64) (string, error) {
	w := walk{buf: make([]byte, 32<<10)}
	name := ""
	for name == "" {
		n, err := unix.Getdents(dir, w.buf)
		if err != nil {
			return "", err
		}
		if n <= 0 {
			return "", fs.ErrNotExist
		}
		w.entries(dir, "", w.buf[:n], func(id uint64, child string) {
			if id == ino {
				name = child[1:]
			}
		})
		w.todo = w.todo[:0]
	}
	return name, nil
}
