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
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// request and reply are one line each between a test and its worker process.
type request struct {
	Do    string
	Path  string `json:",omitempty"`
	Flags int    `json:",omitempty"`
	FD    int    `json:",omitempty"`
	To    int    `json:",omitempty"`
	Off   int64  `json:",omitempty"`
	N     int64  `json:",omitempty"`
	Block int    `json:",omitempty"`
	Addr  uint64 `json:",omitempty"`
}

type reply struct {
	N    int64  `json:",omitempty"`
	FD   int    `json:",omitempty"`
	Addr uint64 `json:",omitempty"`
	Err  string `json:",omitempty"`
}

// worker is the main function of processes that do I/O:
//
//	exec CGROUP PROGRAM ARG...   moves itself, then becomes the program
//	serve                        does what standard input says
//	fuse MOUNTPOINT OPTIONS      is a FUSE daemon
func worker(args []string) int {
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "worker: %v\n", err)
		return 125
	}
	if len(args) == 0 {
		return fail(errors.New("no command"))
	}
	switch {
	case args[0] == "exec" && len(args) >= 3:
		if err := enterCgroup(args[1]); err != nil {
			return fail(err)
		}
		program := args[2]
		if p, err := exec.LookPath(program); err == nil {
			program = p
		}
		env := []string{}
		for _, e := range os.Environ() {
			toWorker := args[2] == self() && len(args) > 3 && (args[3] == "serve" || args[3] == "fuse")
			if toWorker || e != envWorker+"=1" {
				env = append(env, e)
			}
		}
		return fail(fmt.Errorf("exec %q: %w", program, syscall.Exec(program, args[2:], env)))
	case args[0] == "fuse":
		if err := fuseDaemon(args[1:]); err != nil {
			return fail(err)
		}
		return 0
	case args[0] == "serve":
		if err := serve(os.Stdin, os.Stdout); err != nil {
			return fail(err)
		}
		return 0
	}
	return fail(fmt.Errorf("unknown command %q", args[0]))
}

func enterCgroup(name string) error {
	if err := makeCgroup(name); err != nil {
		return err
	}
	pid := []byte(strconv.Itoa(os.Getpid()))
	for _, h := range hierarchies() {
		if err := os.WriteFile(filepath.Join(h, name, "cgroup.procs"), pid, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func serve(in io.Reader, out io.Writer) error {
	w := &workerState{maps: map[uint64][]byte{}}
	lines := bufio.NewScanner(in)
	enc := json.NewEncoder(out)
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		r, err := w.do(q)
		if err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

type workerState struct {
	maps map[uint64][]byte // by address
	ring *uring
}

// anonymous memory of this process alone, aligned for direct I/O and touched, so
// that it is charged to this cgroup; noise, so that nothing compresses it away.
func buffer(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("%d bytes of memory: %w", n, err)
	}
	fill(b, uint64(n))
	return b, nil
}

func fill(b []byte, seed uint64) {
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i+8 <= len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		*(*uint64)(unsafe.Pointer(&b[i])) = x
	}
	for i := len(b) &^ 7; i < len(b); i++ {
		b[i] = byte(x) | 1
		x >>= 3
	}
}

func (w *workerState) do(q request) (reply, error) {
	switch q.Do {
	case "open":
		fd, err := unix.Open(q.Path, q.Flags|unix.O_CLOEXEC, 0o644)
		return reply{FD: fd}, pathErr("open", q.Path, err)
	case "close":
		return reply{}, unix.Close(q.FD)
	case "write", "read":
		return w.transfer(q)
	case "burst":
		return w.burst(q)
	case "uring-write", "uring-read":
		return w.uringTransfer(q)
	case "mmap":
		prot := unix.PROT_READ
		if q.Flags != 0 {
			prot |= unix.PROT_WRITE
		}
		b, err := unix.Mmap(q.FD, q.Off, int(q.N), prot, unix.MAP_SHARED)
		if err != nil {
			return reply{}, fmt.Errorf("mmap %d bytes at %d: %w", q.N, q.Off, err)
		}
		addr := uint64(uintptr(unsafe.Pointer(&b[0])))
		w.maps[addr] = b
		return reply{Addr: addr}, nil
	case "touch", "store", "munmap", "msync", "pageout":
		b, ok := w.maps[q.Addr]
		if !ok {
			return reply{}, fmt.Errorf("no mapping at %#x", q.Addr)
		}
		switch q.Do {
		case "touch":
			var sum byte
			for i := 0; i < len(b); i += 4096 {
				sum += b[i]
			}
			return reply{N: int64(sum)}, nil
		case "store":
			fill(b, q.Addr^uint64(q.N))
			return reply{}, nil
		case "msync":
			return reply{}, unix.Msync(b, unix.MS_SYNC)
		case "pageout":
			return reply{}, unix.Madvise(b, unix.MADV_PAGEOUT)
		}
		delete(w.maps, q.Addr)
		return reply{}, unix.Munmap(b)
	case "alloc":
		b, err := buffer(int(q.N))
		if err != nil {
			return reply{}, err
		}
		addr := uint64(uintptr(unsafe.Pointer(&b[0])))
		w.maps[addr] = b
		return reply{Addr: addr}, nil
	case "fsync":
		return reply{}, unix.Fsync(q.FD)
	case "sync":
		unix.Sync()
		return reply{}, nil
	case "truncate":
		return reply{}, unix.Ftruncate(q.FD, q.N)
	case "fallocate":
		return reply{}, unix.Fallocate(q.FD, uint32(q.Flags), q.Off, q.N)
	case "dontneed":
		return reply{}, unix.Fadvise(q.FD, q.Off, q.N, unix.FADV_DONTNEED)
	case "sendfile":
		return w.sendfile(q)
	case "copy":
		return w.copyRange(q)
	}
	return w.memory(q)
}

func pathErr(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", op, path, err)
}

// transfer reads or writes N bytes in blocks, at Off or, where Off is negative,
// at the file's own position. Reading stops at the end of the file.
func (w *workerState) transfer(q request) (reply, error) {
	b, err := buffer(q.Block)
	if err != nil {
		return reply{}, err
	}
	defer unix.Munmap(b)
	var done int64
	for done < q.N {
		n := int(min(q.N-done, int64(len(b))))
		var got int
		switch {
		case q.Do == "write" && q.Off < 0:
			got, err = unix.Write(q.FD, b[:n])
		case q.Do == "write":
			got, err = unix.Pwrite(q.FD, b[:n], q.Off+done)
		case q.Off < 0:
			got, err = unix.Read(q.FD, b[:n])
		default:
			got, err = unix.Pread(q.FD, b[:n], q.Off+done)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return reply{N: done}, fmt.Errorf("%s at %d: %w", q.Do, q.Off+done, err)
		}
		if got == 0 {
			break
		}
		done += int64(got)
	}
	return reply{N: done}, nil
}

// iocb is the kernel's struct iocb (linux/aio_abi.h).
type iocb struct {
	_      [2]uint64 // aio_data, aio_key, aio_rw_flags
	opcode uint16
	_      int16 // aio_reqprio
	fd     uint32
	buf, n uint64
	off    int64
	_      [2]uint64 // reserved, aio_flags, aio_resfd
}

// burst writes N blocks, To bytes apart, all handed to the kernel by one system
// call. Threads would not do: few of them get to run at once.
func (w *workerState) burst(q request) (reply, error) {
	const pwrite = 1
	b, err := buffer(q.Block)
	if err != nil {
		return reply{}, err
	}
	defer unix.Munmap(b)
	var ctx uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(q.N), uintptr(unsafe.Pointer(&ctx)), 0); errno != 0 {
		return reply{}, fmt.Errorf("io_setup: %w", errno)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	blocks, list := make([]iocb, q.N), make([]*iocb, q.N)
	for i := range blocks {
		blocks[i] = iocb{opcode: pwrite, fd: uint32(q.FD), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), n: uint64(len(b)), off: q.Off + int64(i)*int64(q.To)}
		list[i] = &blocks[i]
	}
	for done := 0; done < len(list); {
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, uintptr(len(list)-done), uintptr(unsafe.Pointer(&list[done])))
		if errno != 0 {
			return reply{}, fmt.Errorf("io_submit: %w", errno)
		}
		done += int(n)
	}
	var failed error
	for range list {
		var event struct {
			data, iocb  uint64
			res, second int64
		}
		for {
			_, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0)
			if errno == 0 {
				break
			}
			if errno != unix.EINTR {
				return reply{}, fmt.Errorf("io_getevents: %w", errno)
			}
		}
		switch {
		case event.res < 0:
			failed = errors.Join(failed, unix.Errno(-event.res))
		case event.res != int64(len(b)):
			failed = errors.Join(failed, io.ErrShortWrite)
		}
	}
	return reply{N: q.N}, failed
}

func (w *workerState) sendfile(q request) (reply, error) {
	null, err := unix.Open("/dev/null", unix.O_WRONLY, 0)
	if err != nil {
		return reply{}, err
	}
	defer unix.Close(null)
	var done int64
	for done < q.N {
		off := q.Off + done
		n, err := unix.Sendfile(null, q.FD, &off, int(min(q.N-done, 1<<20)))
		if err != nil {
			return reply{N: done}, fmt.Errorf("sendfile: %w", err)
		}
		if n == 0 {
			break
		}
		done += int64(n)
	}
	return reply{N: done}, nil
}

func (w *workerState) copyRange(q request) (reply, error) {
	var done int64
	for done < q.N {
		n, err := unix.CopyFileRange(q.FD, nil, q.To, nil, int(q.N-done), 0)
		if err != nil {
			return reply{N: done}, fmt.Errorf("copy_file_range: %w", err)
		}
		if n == 0 {
			break
		}
		done += int64(n)
	}
	return reply{N: done}, nil
}
