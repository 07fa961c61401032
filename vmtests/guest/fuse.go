package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FUSEOptions choose how the daemon behaves.
type FUSEOptions struct {
	Writeback   bool // CAP_WRITEBACK_CACHE: the kernel collects writes and flushes later
	KeepCache   bool // FOPEN_KEEP_CACHE: cached pages survive an open
	DirectIO    bool // FOPEN_DIRECT_IO
	Passthrough bool // reads and writes bypass the daemon, since 6.9
	MaxWrite    int  // bytes; 0 is the library's default
	Background  int  // background requests at once; 0 is the library's default
	URing       bool // requests come over io_uring, since 6.14; the module's enable_uring must be on
	Backing     string
}

// FUSECount is what the daemon was asked to do and did.
type FUSECount struct {
	ReadOps, ReadBytes, WriteOps, WriteBytes int64
	URing                                    int64 // requests of any kind that came over io_uring
}

// Sub is what was counted since.
func (c FUSECount) Sub(old FUSECount) FUSECount {
	return FUSECount{c.ReadOps - old.ReadOps, c.ReadBytes - old.ReadBytes, c.WriteOps - old.WriteOps, c.WriteBytes - old.WriteBytes, c.URing - old.URing}
}

// FUSEMount is a mount of a loopback file system that counts.
type FUSEMount struct {
	g      *Guest
	Target string
	Daemon *Cgroup // where the daemon runs
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
}

// FUSE starts a FUSE daemon in a cgroup of its own, over a directory on tmpfs
// (or o.Backing), and mounts it until the scenario's end.
func (g *Guest) FUSE(o FUSEOptions) *FUSEMount {
	g.Helper()
	g.Modprobe("fuse")
	g.loops++
	name := fmt.Sprintf("fuse-%d-%d", g.serial, g.loops)
	if o.Backing == "" {
		o.Backing = "/run/" + name
		g.Cleanup(func() { os.RemoveAll(o.Backing) })
	}
	m := &FUSEMount{g: g, Target: "/mnt/" + name, Daemon: g.Cgroup("fuse-daemon")}
	for _, d := range []string{o.Backing, m.Target} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			g.Fatal(err)
		}
	}
	config, err := json.Marshal(o)
	if err != nil {
		g.Fatal(err)
	}
	m.cmd = m.Daemon.Command(self(), "fuse", m.Target, string(config))
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		g.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		g.Fatal(err)
	}
	m.out = bufio.NewReader(out)
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	if err := m.cmd.Start(); err != nil {
		g.Fatalf("fuse daemon: %v", err)
	}
	if line, err := m.out.ReadString('\n'); err != nil || line != "mounted\n" {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		g.Fatalf("fuse daemon: %q %v\n%s", line, err, stderr.String())
	}
	g.Cleanup(func() { g.Unmount(m.Target) })
	return m
}

// File is the path of a file on the mount.
func (m *FUSEMount) File(name string) string { return filepath.Join(m.Target, name) }

// ID is the mount's anonymous device, major:minor.
func (m *FUSEMount) ID() string { m.g.Helper(); return m.g.MountDevice(m.Target) }

// PID is the daemon's process.
func (m *FUSEMount) PID() int { return m.cmd.Process.Pid }

// Kill ends the daemon as kill -9 does: the kernel aborts every request.
func (m *FUSEMount) Kill() {
	m.g.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.g.Fatalf("fuse daemon: %v", err)
	}
	_ = m.cmd.Wait()
}

// Suspend stops all threads of the daemon, so requests wait until Resume.
func (m *FUSEMount) Suspend() {
	m.g.Helper()
	m.signal(syscall.SIGSTOP)
	m.g.Eventually("fuse daemon stopped", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", m.PID()))
		for _, t := range tasks {
			stat, _ := os.ReadFile(t)
			if _, rest, ok := strings.Cut(string(stat), ") "); ok && !strings.HasPrefix(rest, "T") {
				return false
			}
		}
		return len(tasks) > 0
	})
}

// Resume lets a suspended daemon continue.
func (m *FUSEMount) Resume() { m.g.Helper(); m.signal(syscall.SIGCONT) }

func (m *FUSEMount) signal(s syscall.Signal) {
	m.g.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.g.Fatalf("fuse daemon: %v", err)
	}
}

// Count asks the daemon for its counters.
func (m *FUSEMount) Count() FUSECount {
	m.g.Helper()
	var c FUSECount
	m.ask("count", &c)
	return c
}

// Written asks the daemon how many bytes it took for files of this name.
func (m *FUSEMount) Written(name string) int64 {
	m.g.Helper()
	var n int64
	m.ask("written "+name, &n)
	return n
}

func (m *FUSEMount) ask(question string, answer any) {
	m.g.Helper()
	if _, err := io.WriteString(m.in, question+"\n"); err != nil {
		m.g.Fatalf("fuse daemon: %v", err)
	}
	line, err := m.out.ReadBytes('\n')
	if err != nil {
		m.g.Fatalf("fuse daemon: %v", err)
	}
	if err := json.Unmarshal(line, answer); err != nil {
		m.g.Fatalf("fuse daemon said %q: %v", line, err)
	}
}

// counting wraps a file system and counts reads and writes as the kernel sent them.
type counting struct {
	fuse.RawFileSystem
	o                                        FUSEOptions
	readOps, readBytes, writeOps, writeBytes atomic.Int64

	mu      sync.Mutex
	names   map[uint64]string // by node: the name of its creation or lookup
	written map[string]int64  // bytes, by these names
}

func (c *counting) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	r, st := c.RawFileSystem.Read(cancel, in, buf)
	if st.Ok() {
		// The bytes themselves, not the requested number: it is larger at the end of a file.
		b, st := r.Bytes(make([]byte, len(buf)))
		if !st.Ok() {
			return nil, st
		}
		c.readOps.Add(1)
		c.readBytes.Add(int64(len(b)))
		return fuse.ReadResultData(b), fuse.OK
	}
	return r, st
}

func (c *counting) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, st := c.RawFileSystem.Write(cancel, in, data)
	if st.Ok() {
		c.writeOps.Add(1)
		c.writeBytes.Add(int64(n))
		c.mu.Lock()
		if name, ok := c.names[in.NodeId]; ok {
			c.written[name] += int64(n)
		}
		c.mu.Unlock()
	}
	return n, st
}

// CopyFileRange counts as a write of what was copied.
func (c *counting) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	n, st := c.RawFileSystem.CopyFileRange(cancel, in)
	if st.Ok() {
		c.writeOps.Add(1)
		c.writeBytes.Add(int64(n))
	}
	return n, st
}

// Writev sends everything through Write, where it is counted.
func (c *counting) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (c *counting) flags(out *fuse.OpenOut) {
	if c.o.KeepCache {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	if c.o.DirectIO {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
}

func (c *counting) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if c.o.Writeback {
		// With the writeback cache the kernel reads pages before it writes into them, and
		// appends by itself.
		if in.Flags&uint32(os.O_WRONLY) != 0 {
			in.Flags = in.Flags&^uint32(os.O_WRONLY) | uint32(os.O_RDWR)
		}
		in.Flags &^= uint32(os.O_APPEND)
	}
	// The kernel handles O_DIRECT; the tmpfs below supports it only since 6.6.
	in.Flags &^= unix.O_DIRECT
	st := c.RawFileSystem.Open(cancel, in, out)
	c.flags(out)
	return st
}

func (c *counting) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	in.Flags &^= unix.O_DIRECT
	st := c.RawFileSystem.Create(cancel, in, name, out)
	if st.Ok() {
		c.named(out.NodeId, name)
	}
	c.flags(&out.OpenOut)
	return st
}

func (c *counting) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	st := c.RawFileSystem.Lookup(cancel, header, name, out)
	if st.Ok() {
		c.named(out.NodeId, name)
	}
	return st
}

func (c *counting) named(node uint64, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[node] = name
}

// FUSEServer is the daemon: a loopback file system that counts.
type FUSEServer struct {
	counting *counting
	server   *fuse.Server
	uring    *uringFUSE // instead of server
}

// ServeFUSE mounts the daemon's file system and answers its requests until it is
// unmounted.
func ServeFUSE(target string, o FUSEOptions) (*FUSEServer, error) {
	root, err := fs.NewLoopbackRoot(o.Backing)
	if err != nil {
		return nil, err
	}
	second := time.Second
	mo := fuse.MountOptions{DirectMountStrict: true, AllowOther: true, FsName: "counting", Name: "counting", MaxWrite: o.MaxWrite, MaxBackground: o.Background}
	if o.Writeback {
		mo.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	if o.Passthrough {
		mo.MaxStackDepth = 1
	} else {
		mo.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	c := &counting{RawFileSystem: fs.NewNodeFS(root, &fs.Options{AttrTimeout: &second, EntryTimeout: &second}), o: o,
		names: map[uint64]string{}, written: map[string]int64{}}
	if o.URing {
		u, err := serveURing(target, c, &mo)
		if err != nil {
			return nil, err
		}
		return &FUSEServer{counting: c, uring: u}, nil
	}
	server, err := fuse.NewServer(c, target, &mo)
	if err != nil {
		return nil, err
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return nil, err
	}
	return &FUSEServer{counting: c, server: server}, nil
}

// Count is what it was asked to do and did.
func (s *FUSEServer) Count() FUSECount {
	c := s.counting
	n := FUSECount{ReadOps: c.readOps.Load(), ReadBytes: c.readBytes.Load(), WriteOps: c.writeOps.Load(), WriteBytes: c.writeBytes.Load()}
	if s.uring != nil {
		n.URing = s.uring.requests.Load()
	}
	return n
}

// Written is the number of bytes that files of this name got.
func (s *FUSEServer) Written(name string) int64 {
	s.counting.mu.Lock()
	defer s.counting.mu.Unlock()
	return s.counting.written[name]
}

// Unmount ends it; it fails while the file system is in use.
func (s *FUSEServer) Unmount() error { return s.server.Unmount() }

func (s *FUSEServer) wait() {
	if s.uring != nil {
		<-s.uring.done
		return
	}
	s.server.Wait()
}

// fuseDaemon is a worker: MOUNTPOINT OPTIONS. It answers "count" and "written NAME"
// on standard input and ends when it is unmounted.
func fuseDaemon(args []string) error {
	if len(args) != 2 {
		return errors.New("fuse: mount point and options wanted")
	}
	var o FUSEOptions
	if err := json.Unmarshal([]byte(args[1]), &o); err != nil {
		return err
	}
	s, err := ServeFUSE(args[0], o)
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	go func() {
		enc := json.NewEncoder(os.Stdout)
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			if name, ok := strings.CutPrefix(lines.Text(), "written "); ok {
				_ = enc.Encode(s.Written(name))
				continue
			}
			_ = enc.Encode(s.Count())
		}
	}()
	s.wait()
	return nil
}
