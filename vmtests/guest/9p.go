package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// P9Server is a 9p server in the guest, diod. What it exports is a FUSE file system that
// counts what diod reads and writes, each message as one request.
type P9Server struct {
	g       *Guest
	counts  *FUSEMount
	backing string
	cmd     *exec.Cmd
}

// p9Port is 5640 in the notation of /proc/net/tcp; state 0A is LISTEN.
const p9Port = ":1608"

// P9Server starts a server until the scenario's end. It does not load the client's module.
func (g *Guest) P9Server() *P9Server {
	g.Helper()
	g.loops++
	// Before 6.x the client keeps a handle of the server for each file that it has cached.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		g.Fatal(err)
	}
	s := &P9Server{g: g, backing: fmt.Sprintf("/run/9p-%d-%d", g.serial, g.loops)}
	if err := os.MkdirAll(s.backing, 0o755); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { os.RemoveAll(s.backing) })
	s.counts = g.FUSE(FUSEOptions{Backing: s.backing, DirectIO: true, MaxWrite: 1 << 20})
	s.Start()
	g.Cleanup(s.stop)
	return s
}

// Start starts the server again, after Kill.
func (s *P9Server) Start() {
	s.g.Helper()
	var said strings.Builder
	s.cmd = exec.Command("diod", "-f", "-n", "-N", "-l", "127.0.0.1:5640", "-e", s.counts.Target, "-c", "/dev/null")
	s.cmd.Stderr = &said
	if err := s.cmd.Start(); err != nil {
		s.g.Fatalf("diod: %v", err)
	}
	s.g.Eventually("diod listening", p9Listens)
}

func p9Listens() bool {
	b, _ := os.ReadFile("/proc/net/tcp")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], p9Port) && f[3] == "0A" {
			return true
		}
	}
	return false
}

// Kill ends the server as kill -9 does: its connections break.
func (s *P9Server) Kill() {
	s.g.Helper()
	s.stop()
}

func (s *P9Server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Count is what the server was asked to do and did.
func (s *P9Server) Count() FUSECount { s.g.Helper(); return s.counts.Count() }

// Prepare makes a file on the server, which no client has seen, without being counted.
func (s *P9Server) Prepare(name string, n int) {
	s.g.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i>>12 + i)
	}
	if err := os.WriteFile(filepath.Join(s.backing, name), data, 0o644); err != nil {
		s.g.Fatal(err)
	}
}

// P9Mount is a mount of a 9p server's directory.
type P9Mount struct {
	g      *Guest
	Target string
}

// P9TCP mounts what the server exports until the scenario's end. cache is none, loose, mmap
// and so on.
func (g *Guest) P9TCP(s *P9Server, cache string) *P9Mount {
	g.Helper()
	options := []string{"trans=tcp", "port=5640", "version=9p2000.L", "uname=root", "access=any", "aname=" + s.counts.Target, "msize=65536", "cache=" + cache}
	if g.AtLeast(6, 4) {
		// diod has no versions of files, and without this nothing is cached.
		options = append(options, "ignoreqv")
	}
	return g.p9("127.0.0.1", options)
}

// P9Virtio mounts a share of the host.
func (g *Guest) P9Virtio(tag, cache string) *P9Mount {
	g.Helper()
	g.Modprobe("9pnet_virtio")
	options := []string{"trans=virtio", "version=9p2000.L", "access=any", "msize=131072", "cache=" + cache}
	if g.AtLeast(6, 4) {
		options = append(options, "ignoreqv")
	}
	return g.p9(tag, options)
}

func (g *Guest) p9(source string, options []string) *P9Mount {
	g.Helper()
	g.loops++
	m := &P9Mount{g, fmt.Sprintf("/mnt/9p-%d-%d", g.serial, g.loops)}
	g.Mount("9p", source, m.Target, strings.Join(options, ","))
	return m
}

// File is the path of a file on the mount.
func (m *P9Mount) File(name string) string { return filepath.Join(m.Target, name) }

// ID is the mount's anonymous device, major:minor.
func (m *P9Mount) ID() string { m.g.Helper(); return m.g.MountDevice(m.Target) }
