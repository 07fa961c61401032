package attribute

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxNested   = 32 // engines inside containers that are asked at the same time
	maxAncestry = 128
	nestedMost  = 1 << 12 // containers that one of them, or a user's engine, may report
)

// nestedAsk is a container inside a container that no runtime has named.
type nestedAsk struct {
	around domain // inside of the container around it; zero if its ancestors must tell
	cgroup cgroup
}

// nestedTable lists the runtimes to look for inside a container (Docker-in-Docker, kind),
// at their usual places in its own file system.
func nestedTable() []runtimeSpec {
	return []runtimeSpec{
		{runtimeDocker, apiDocker, nil, machineDockerSockets()[:1], openDocker},
		{runtimePodman, apiDocker, nil, podmanSockets()[:1], openDocker},
		{runtimeCRI, apiCRI, nil, criSockets(), openCRI},
		{runtimeContainerd, apiContainerd, nil, machineContainerdSockets(), openContainerd},
	}
}

// inside starts a search for the engine in the container around a container. It never
// waits.
func (rs *runtimes) inside(around domain, c cgroup) {
	rs.ask("inside "+around.path, nestedAsk{around, c})
}

// ask asks a question about a cgroup that was not asked recently.
func (rs *runtimes) ask(what string, ask nestedAsk) {
	if rs.inner == nil || !ask.cgroup.goneAt.IsZero() || !rs.fresh(what) {
		return
	}
	select {
	case rs.inner <- ask:
	default:
	}
}

// nested calls found with the sockets of engines in the container around ask.cgroup.
func (rs *runtimes) nested(ask *nestedAsk, found func(spec *runtimeSpec, socket string)) error {
	pid, err := rs.tree.process(&ask.cgroup)
	if err != nil {
		return err
	}
	if ask.around == (domain{}) {
		if pid, ask.around, err = rs.adopt(&ask.cgroup, pid); err != nil {
			return err
		}
	}
	// The topmost process in the parent is its init: it has the parent's file system and
	// lives as long as the parent.
	top := 0
	for range maxAncestry {
		if pid <= 1 || !rs.runsIn(pid, ask.around) {
			break
		}
		top = pid
		if pid, err = rs.parentOf(pid); err != nil {
			return err
		}
	}
	if top == 0 {
		return fmt.Errorf("no process of container %q: %w", clip(ask.around.path, 64), fs.ErrNotExist)
	}
	// Who may make cgroups may make one with a container's name without a container. What
	// listens in the machine's own root does not speak for it.
	if rs.sameRoot(top, 1) {
		return fmt.Errorf("container %q has the root directory of the machine: %w", clip(ask.around.path, 64), fs.ErrNotExist)
	}
	table := nestedTable()
	for i := range table {
		for _, p := range table[i].usual {
			socket := inRoot(filepath.Join(rs.procRoot, strconv.Itoa(top), "root"), p)
			if _, hang, err := socketPath(socket); err == nil {
				hang()
				found(&table[i], socket)
			}
		}
	}
	return nil
}

// sameRoot tells whether two processes have the same root directory.
func (rs *runtimes) sameRoot(a, b int) bool {
	var st [2]unix.Stat_t
	for i, pid := range []int{a, b} {
		if unix.Stat(filepath.Join(rs.procRoot, strconv.Itoa(pid), "root"), &st[i]) != nil {
			return false
		}
	}
	return st[0].Dev == st[1].Dev && st[0].Ino == st[1].Ino
}

// runsIn tells whether a process is in a container, or in one inside it. Helpers do not
// count, although their paths contain the container's name.
func (rs *runtimes) runsIn(pid int, around domain) bool {
	p := parsePath(rs.pathOf(pid), rs.tree.delegated)
	return p.kind != KindHelper && (p.key() == around.path || p.domain == around)
}

// pathOf returns the cgroup of a process, from the root of the hierarchy that names owners;
// "" when it is not known. Of a copy of a tree it is the first path that is not the root.
func (rs *runtimes) pathOf(pid int) string {
	b, err := os.ReadFile(filepath.Join(rs.procRoot, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		number, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if _, path, ok := strings.Cut(rest, ":"); ok && (number == strconv.Itoa(rs.hierarchy) || rs.hierarchy < 0 && path != "/") {
			return path
		}
	}
	return ""
}

func (rs *runtimes) parentOf(pid int) (int, error) {
	b, err := os.ReadFile(filepath.Join(rs.procRoot, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// pid (comm) state ppid: comm may hold anything, parentheses too.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 2 {
		return 0, fmt.Errorf("stat of process %d is cut off", pid)
	}
	return strconv.Atoi(f[1])
}

// inRoot returns the name of a socket in the root of another process. Two slashes mark
// where that root ends: cleaned paths have none.
func inRoot(root, path string) string { return root + "/" + path }

// socketPath returns a path to connect to, valid until done is called. A socket in another
// process's root is looked up in that root, so that no link in a container leads out of
// it.
func socketPath(socket string) (path string, done func(), err error) {
	dir, path, ok := strings.Cut(socket, "//")
	if !ok {
		return socket, func() {}, nil
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Clean(socket), Err: err}
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), func() { unix.Close(fd) }, nil
}

// dialSocket connects to a unix socket.
func dialSocket(ctx context.Context, socket string) (net.Conn, error) {
	path, done, err := socketPath(socket)
	if err != nil {
		return nil, err
	}
	defer done()
	d := net.Dialer{Timeout: callTime}
	return d.DialContext(ctx, "unix", path)
}

// over tells whether the process is gone in whose root a socket is.
func (f *feed) over() bool {
	if !isPath(f.socket) || !strings.Contains(f.socket, "//") {
		return false
	}
	_, done, err := socketPath(f.socket)
	if err == nil {
		done()
	}
	return errors.Is(err, fs.ErrNotExist)
}
