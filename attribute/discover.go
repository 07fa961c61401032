package attribute

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	discoverEvery = 30 * time.Second // between two looks at all processes
	maxCmdline    = 64 << 10
)

// daemons are the programs whose command line or configuration says where a runtime
// listens, by the names of their processes.
var daemons = map[string]func(d *daemon) (apis []string, sockets []string){
	"dockerd": func(d *daemon) ([]string, []string) {
		var config struct{ Hosts []string }
		file := "/etc/docker/daemon.json"
		if set := d.flags("--config-file"); len(set) > 0 {
			file = set[len(set)-1]
		}
		_ = json.Unmarshal(d.file(file), &config) // without one, flags and usual places remain
		return []string{apiDocker}, append(d.flags("--host", "-H"), config.Hosts...)
	},
	"containerd": func(d *daemon) ([]string, []string) {
		if d.parent == "dockerd" {
			return nil, nil // it has Docker's containers only, and Docker knows more
		}
		file := "/etc/containerd/config.toml"
		if set := d.flags("--config", "-c"); len(set) > 0 {
			file = set[len(set)-1]
		}
		return []string{apiCRI, apiContainerd}, append(d.flags("--address", "-a"), grpcAddress(d.file(file)))
	},
	"kubelet": func(d *daemon) ([]string, []string) {
		sockets := d.flags("--container-runtime-endpoint")
		for _, file := range d.flags("--config") {
			for line := range strings.Lines(string(d.file(file))) {
				// kubelet.config.k8s.io/v1beta1: a key of the first level, on a line of its own.
				if v, ok := strings.CutPrefix(line, "containerRuntimeEndpoint:"); ok {
					sockets = append(sockets, strings.Trim(strings.TrimSpace(v), `"'`))
				}
			}
		}
		return []string{apiCRI}, sockets
	},
}

// daemon is a running process of root.
type daemon struct {
	root   string // its root directory in ours: "" if it is the same
	args   []string
	parent string // name of its parent process
}

// grpcAddress returns the address in the section grpc of containerd's configuration, ""
// without one.
func grpcAddress(toml []byte) string {
	section := ""
	for line := range strings.Lines(string(toml)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		if k, v, ok := strings.Cut(line, "="); ok && section == "[grpc]" && strings.TrimSpace(k) == "address" {
			return strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return ""
}

// flags returns the values of a flag, under any of its names.
func (d *daemon) flags(names ...string) []string {
	var values []string
	for i, arg := range d.args {
		for _, name := range names {
			rest, ok := strings.CutPrefix(arg, name)
			switch {
			case !ok:
			case rest == "" && i+1 < len(d.args):
				values = append(values, d.args[i+1])
			case strings.HasPrefix(rest, "="):
				values = append(values, rest[1:])
			case rest != "" && !strings.HasPrefix(name, "--"):
				values = append(values, rest) // -Hunix:///run/other.sock
			}
		}
	}
	return values
}

// file returns the beginning of a file as the process sees it, nil if it cannot be read.
func (d *daemon) file(name string) []byte {
	if !strings.HasPrefix(name, "/") {
		return nil
	}
	path, done, err := socketPath(d.socket(name))
	if err != nil {
		return nil
	}
	defer done()
	// A FIFO or a device must not block or act.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(f, maxAnswer))
	return b
}

// socket returns a path of the process in our file system.
func (d *daemon) socket(path string) string {
	if d.root == "" {
		return path
	}
	return inRoot(d.root, filepath.Clean(path))
}

// discover calls found for the sockets that the runtimes of this machine listen at
// according to their processes. It leaves out what runs in a container (see nested) and
// what is not root's: a user's runtimes have sockets in /run/user.
func (rs *runtimes) discover(found func(api, socket string)) {
	names, err := os.ReadDir(rs.procRoot)
	if err != nil {
		return
	}
	mine, _ := os.Readlink(filepath.Join(rs.procRoot, "self/ns/mnt"))
	for _, n := range names {
		if !isDigits(n.Name()) {
			continue
		}
		dir := filepath.Join(rs.procRoot, n.Name())
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		ask := daemons[strings.TrimSuffix(string(comm), "\n")]
		if ask == nil || uidOf(dir) != rs.tree.owner {
			continue
		}
		pid, _ := strconv.Atoi(n.Name())
		if p := parsePath(rs.pathOf(pid), rs.tree.delegated); p.id != "" || p.domain != (domain{}) {
			continue
		}
		d := daemon{args: cmdline(dir)}
		if up, err := rs.parentOf(pid); err == nil {
			b, _ := os.ReadFile(filepath.Join(rs.procRoot, strconv.Itoa(up), "comm"))
			d.parent = strings.TrimSuffix(string(b), "\n")
		}
		// Without CAP_SYS_PTRACE neither the namespace nor the root of others can be read.
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err == nil && ns != mine {
			d.root = filepath.Join(dir, "root")
		}
		apis, sockets := ask(&d)
		slices.Sort(sockets)
		for _, socket := range slices.Compact(sockets) {
			if !strings.HasPrefix(socket, "unix://") && !strings.HasPrefix(socket, "/") {
				continue // fd:// is at a usual place; tcp:// is asked when the user lists it
			}
			path := strings.TrimPrefix(socket, "unix://")
			if !strings.HasPrefix(path, "/") || len(path) > maxText {
				continue
			}
			path = d.socket(path)
			if d.root == "" {
				path, _ = exists(path)
			}
			if real, done, err := socketPath(path); err == nil {
				_, err := os.Lstat(real)
				done()
				if err == nil {
					for _, api := range apis {
						found(api, path)
					}
				}
			}
		}
	}
}

func cmdline(dir string) []string {
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxCmdline))
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	return args
}

// spec returns the runtime of the table that is asked by an API.
func (rs *runtimes) spec(api string) *runtimeSpec {
	return &rs.table[slices.IndexFunc(rs.table, func(s runtimeSpec) bool { return s.api == api })]
}
