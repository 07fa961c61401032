package tracer

import "fmt"

// host is where this process sees the files of the host. Like the root directory, it
// is the same for the whole process.
var host struct {
	root   string
	noProc bool
}

// SetHostRoot says under which directory the host's /proc, /dev, /lib/modules and
// tracefs are seen from inside of a container; "" is our own root. Without the host's
// /proc (proc false), ids of processes are not looked up in it: there they name other
// processes. It must be called before anything else in this package.
func SetHostRoot(dir string, proc bool) { host.root, host.noProc = dir, !proc }

// onHost returns where a path of the host is seen.
func onHost(path string) string { return host.root + path }

// commFile is the file with the name of a process; "" where none can be trusted.
func commFile(pid uint32) string {
	if host.noProc {
		return ""
	}
	return onHost(fmt.Sprintf("/proc/%d/comm", pid))
}

// mountsPID is the process in /proc whose mounts are the host's, as far as we see them.
func mountsPID() string {
	if host.root != "" && !host.noProc {
		return "1"
	}
	return "self"
}
