package guest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is a process in a cgroup that does I/O when told, one call at a time,
// and keeps its files open in between: closing one flushes it on NFS.
type Process struct {
	g     *Guest
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	err   bytes.Buffer
	ended bool
}

// Process starts one. It moves into the cgroup and then executes itself again, so
// all of its memory is charged there. It ends with the scenario at the latest.
func (c *Cgroup) Process() *Process {
	c.g.Helper()
	p := &Process{g: c.g, cmd: c.Command(self(), "serve")}
	// One of Go's own signals would make sendfile(2) drop the bytes it has read and read
	// them again.
	p.cmd.Env = append(p.cmd.Env, "GODEBUG=asyncpreemptoff=1")
	in, err := p.cmd.StdinPipe()
	if err != nil {
		c.g.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		c.g.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	p.cmd.Stderr = &p.err
	if err := p.cmd.Start(); err != nil {
		c.g.Fatalf("worker: %v", err)
	}
	p.call(request{Do: "dontneed", FD: -1}, true) // answers once it is up
	return p
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

func (p *Process) call(q request, mayFail bool) reply {
	p.g.Helper()
	p.send(q)
	return p.receive(q, mayFail)
}

func (p *Process) send(q request) {
	p.g.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		p.g.Fatal(err)
	}
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		p.g.Fatalf("worker %d died before %s: %v\n%s", p.PID(), q.Do, err, p.err.String())
	}
}

func (p *Process) receive(q request, mayFail bool) reply {
	p.g.Helper()
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.g.Fatalf("worker %d died in %s: %v\n%s", p.PID(), q.Do, err, p.err.String())
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		p.g.Fatalf("worker %d said %q: %v", p.PID(), line, err)
	}
	if r.Err != "" && !mayFail {
		p.g.Fatalf("worker %d: %s", p.PID(), r.Err)
	}
	return r
}

// Waiting says whether a thread of the process waits in the kernel for a FUSE
// daemon: for the answer to its request, or for a page that is being read.
func (p *Process) Waiting() bool {
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(p.PID()) + "/task/*")
	for _, t := range tasks {
		stack, _ := os.ReadFile(t + "/stack")
		if strings.Contains(string(stack), "fuse") {
			return true
		}
		stat, _ := os.ReadFile(t + "/stat")
		_, rest, _ := strings.Cut(string(stat), ") ")
		if strings.HasPrefix(rest, "D") {
			return true
		}
	}
	return false
}

// Exit ends the process; its files are closed by the kernel.
func (p *Process) Exit() {
	p.g.Helper()
	if p.ended {
		return
	}
	p.ended = true
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.g.Fatalf("worker: %v\n%s", err, p.err.String())
	}
}

// Kill ends the process as kill -9 does.
func (p *Process) Kill() {
	if !p.ended {
		p.ended = true
		_ = syscall.Kill(p.PID(), syscall.SIGKILL)
		_ = p.cmd.Wait()
	}
}

// Sync is sync(2), in this process.
func (p *Process) Sync() { p.g.Helper(); p.call(request{Do: "sync"}, false) }

// Alloc touches n bytes of anonymous memory.
func (p *Process) Alloc(n int64) *Mapping {
	p.g.Helper()
	return &Mapping{p, p.call(request{Do: "alloc", N: n}, false).Addr}
}

// File is a file that a process has open.
type File struct {
	p  *Process
	fd int
}

// Flags for Open besides those of package os.
const (
	Direct = unix.O_DIRECT
	Create = os.O_CREATE | os.O_RDWR
)

// Open opens a file with the flags of open(2).
func (p *Process) Open(path string, flags int) *File {
	p.g.Helper()
	return &File{p, p.call(request{Do: "open", Path: path, Flags: flags}, false).FD}
}

// Default block of one read or write call.
const block = 64 << 10

// Write writes n bytes at off in calls of 64 KiB.
func (f *File) Write(off, n int64) { f.p.g.Helper(); f.WriteBlocks(off, n, block) }

// WriteBlocks writes n bytes at off, size bytes a call.
func (f *File) WriteBlocks(off, n int64, size int) {
	f.p.g.Helper()
	f.all(request{Do: "write", FD: f.fd, Off: off, N: n, Block: size})
}

// Append writes n bytes at the file's own position.
func (f *File) Append(n int64) {
	f.p.g.Helper()
	f.all(request{Do: "write", FD: f.fd, Off: -1, N: n, Block: block})
}

// Read reads n bytes at off in calls of 64 KiB; fewer at the end of the file. It returns how many.
func (f *File) Read(off, n int64) int64 { f.p.g.Helper(); return f.ReadBlocks(off, n, block) }

// ReadBlocks is Read in calls of size bytes.
func (f *File) ReadBlocks(off, n int64, size int) int64 {
	f.p.g.Helper()
	return f.p.call(request{Do: "read", FD: f.fd, Off: off, N: n, Block: size}, false).N
}

// WriteURing and ReadURing go through io_uring.
func (f *File) WriteURing(off, n int64, size int) {
	f.p.g.Helper()
	f.all(request{Do: "uring-write", FD: f.fd, Off: off, N: n, Block: size})
}

// ReadURing reads through io_uring.
func (f *File) ReadURing(off, n int64, size int) {
	f.p.g.Helper()
	f.all(request{Do: "uring-read", FD: f.fd, Off: off, N: n, Block: size})
}

// Burst begins to write count blocks of size bytes, all at once, the first at off
// and each stride behind the one before. The function returned waits for them;
// the process does nothing else until then.
func (f *File) Burst(off, count, stride int64, size int) func() {
	f.p.g.Helper()
	q := request{Do: "burst", FD: f.fd, Off: off, N: count, To: int(stride), Block: size}
	f.p.send(q)
	return func() { f.p.g.Helper(); f.p.receive(q, false) }
}

func (f *File) all(q request) {
	f.p.g.Helper()
	if r := f.p.call(q, false); r.N != q.N {
		f.p.g.Fatalf("%s did %d of %d bytes", q.Do, r.N, q.N)
	}
}

// TryWrite writes as Write does, in blocks of size, and returns the error's text, "" for none.
func (f *File) TryWrite(off, n int64, size int) string {
	f.p.g.Helper()
	return f.p.call(request{Do: "write", FD: f.fd, Off: off, N: n, Block: size}, true).Err
}

// TryRead reads as Read does, in blocks of size, and returns the error's text, "" for none.
func (f *File) TryRead(off, n int64, size int) string {
	f.p.g.Helper()
	return f.p.call(request{Do: "read", FD: f.fd, Off: off, N: n, Block: size}, true).Err
}

// TryFsync is Fsync; it returns the error's text, "" for none.
func (f *File) TryFsync() string {
	f.p.g.Helper()
	return f.p.call(request{Do: "fsync", FD: f.fd}, true).Err
}

// Sendfile sends n bytes from off to nowhere.
func (f *File) Sendfile(off, n int64) {
	f.p.g.Helper()
	f.all(request{Do: "sendfile", FD: f.fd, Off: off, N: n})
}

// CopyTo is copy_file_range(2) of n bytes, positions of the files.
func (f *File) CopyTo(to *File, n int64) {
	f.p.g.Helper()
	f.all(request{Do: "copy", FD: f.fd, To: to.fd, N: n})
}

// Fsync, Close, Truncate and Fallocate are the system calls.
func (f *File) Fsync() { f.p.g.Helper(); f.p.call(request{Do: "fsync", FD: f.fd}, false) }

// Close closes the file; on NFS and FUSE that flushes it.
func (f *File) Close() { f.p.g.Helper(); f.p.call(request{Do: "close", FD: f.fd}, false) }

// Truncate sets the size.
func (f *File) Truncate(n int64) {
	f.p.g.Helper()
	f.p.call(request{Do: "truncate", FD: f.fd, N: n}, false)
}

// Fallocate is fallocate(2).
func (f *File) Fallocate(mode int, off, n int64) {
	f.p.g.Helper()
	f.p.call(request{Do: "fallocate", FD: f.fd, Flags: mode, Off: off, N: n}, false)
}

// DontNeed drops clean cached pages of the file.
func (f *File) DontNeed() { f.p.g.Helper(); f.p.call(request{Do: "dontneed", FD: f.fd}, false) }

// Mapping is memory of a process: of a file, shared, or anonymous.
type Mapping struct {
	p    *Process
	addr uint64
}

// Map maps n bytes of the file at off for reading and writing.
func (f *File) Map(off, n int64) *Mapping {
	f.p.g.Helper()
	return &Mapping{f.p, f.p.call(request{Do: "mmap", FD: f.fd, Off: off, N: n, Flags: 1}, false).Addr}
}

// MapRead maps n bytes of the file at off for reading.
func (f *File) MapRead(off, n int64) *Mapping {
	f.p.g.Helper()
	return &Mapping{f.p, f.p.call(request{Do: "mmap", FD: f.fd, Off: off, N: n}, false).Addr}
}

func (m *Mapping) do(what string) {
	m.p.g.Helper()
	m.p.call(request{Do: what, Addr: m.addr}, false)
}

// Store writes every byte of the mapping.
func (m *Mapping) Store() { m.p.g.Helper(); m.do("store") }

// Touch reads one byte of every page.
func (m *Mapping) Touch() { m.p.g.Helper(); m.do("touch") }

// Msync is msync(MS_SYNC).
func (m *Mapping) Msync() { m.p.g.Helper(); m.do("msync") }

// PageOut asks the kernel to reclaim the memory now: anonymous memory goes to swap.
func (m *Mapping) PageOut() { m.p.g.Helper(); m.do("pageout") }

// Unmap gives the memory back.
func (m *Mapping) Unmap() { m.p.g.Helper(); m.do("munmap") }
