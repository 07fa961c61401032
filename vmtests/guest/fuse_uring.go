package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FUSE over io_uring (Linux 6.14): requests come as completions of commands that
// wait in a ring, not through /dev/fuse. No library for Go speaks it yet, but
// go-fuse can be asked to answer a request that it did not read itself.

// The protocol: include/uapi/linux/fuse.h.
const (
	fuseInitExt       = 1 << 30 // in InitOut.flags
	fuseOverURing     = 1 << 9  // in InitOut.flags2: bit 41
	initOutFlags      = 16 + 12 // from the start of a reply
	initOutFlags2     = 16 + 32
	initOutSize       = 16 + 64
	uringInOut        = 0 // in struct fuse_uring_req_header
	uringOpIn         = 128
	uringPayloadSize  = 256 + 16
	uringCommitID     = 256 + 8
	uringHeaderSize   = 288
	uringRegister     = 1
	uringCommit       = 2
	uringOpCommand    = 46 // IORING_OP_URING_CMD
	uringSetupSQE128  = 1 << 10
	fuseInHeaderSize  = 40
	fuseOutHeaderSize = 16
)

// uringEntry is a place for one request of one queue.
type uringEntry struct {
	queue   uint16
	header  []byte
	payload []byte
	iov     []byte // two struct iovec, which the kernel reads
}

// commandRing is an io_uring whose submissions carry commands of 80 bytes.
type commandRing struct {
	uring
	submitted uint32
}

func newCommandRing(entries uint32) (*commandRing, error) {
	r, err := setupURing(entries, uringSetupSQE128, 128)
	if err != nil {
		return nil, err
	}
	return &commandRing{uring: *r}, nil
}

// command puts a command for an entry into the ring.
func (r *commandRing) command(dev int, op uint32, e *uringEntry, index, commit uint64) {
	tail := *at32(r.sq, r.sqTail)
	slot := tail & *at32(r.sq, r.sqMask)
	sqe := r.sqes[slot*128 : slot*128+128]
	clear(sqe)
	sqe[0] = uringOpCommand
	binary.NativeEndian.PutUint32(sqe[4:], uint32(dev))
	binary.NativeEndian.PutUint32(sqe[8:], op)
	if op == uringRegister {
		binary.NativeEndian.PutUint64(sqe[16:], uint64(uintptr(unsafe.Pointer(&e.iov[0]))))
		binary.NativeEndian.PutUint32(sqe[24:], 2)
	}
	binary.NativeEndian.PutUint64(sqe[32:], index)
	binary.NativeEndian.PutUint64(sqe[48+8:], commit) // struct fuse_uring_cmd_req
	binary.NativeEndian.PutUint16(sqe[48+16:], e.queue)
	*at32(r.sq, r.sqArray+slot*4) = slot
	atomic.StoreUint32(at32(r.sq, r.sqTail), tail+1)
	r.submitted++
}

// wait submits what there is and returns the next completion.
func (r *commandRing) wait() (index uint64, result int32, err error) {
	for {
		head := atomic.LoadUint32(at32(r.cq, r.cqHead))
		if r.submitted == 0 && head != atomic.LoadUint32(at32(r.cq, r.cqTail)) {
			entry := r.cqes + (head&*at32(r.cq, r.cqMaskAt))*16
			index = binary.NativeEndian.Uint64(r.cq[entry:])
			result = int32(*at32(r.cq, entry+8))
			atomic.StoreUint32(at32(r.cq, r.cqHead), head+1)
			return index, result, nil
		}
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.submitted), 1, uringEnterGetEv, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return 0, 0, fmt.Errorf("io_uring_enter: %w", errno)
		}
		if errno == 0 {
			r.submitted -= uint32(n)
		}
	}
}

// uringFUSE answers for a mount over a ring.
type uringFUSE struct {
	dev      int
	protocol *fuse.ProtocolServer
	maxWrite int
	done     chan struct{}
	requests atomic.Int64 // that came over the ring
}

// possibleCPUs is how many queues the kernel wants.
func possibleCPUs() (int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	if i := strings.LastIndexAny(text, "-,"); i >= 0 {
		text = text[i+1:]
	}
	var last int
	if _, err := fmt.Sscanf(text, "%d", &last); err != nil {
		return 0, fmt.Errorf("possible processors %q: %w", text, err)
	}
	return last + 1, nil
}

// serveURing mounts, agrees with the kernel on io_uring and returns once requests come that way.
func serveURing(target string, files fuse.RawFileSystem, mo *fuse.MountOptions) (*uringFUSE, error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev)
	if err := unix.Mount("counting", target, "fuse.counting", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(dev)
		return nil, fmt.Errorf("mount %q: %w", target, err)
	}
	s := &uringFUSE{dev: dev, protocol: fuse.NewProtocolServer(files, mo), maxWrite: 128 << 10, done: make(chan struct{})}
	if mo.MaxWrite > 0 {
		s.maxWrite = mo.MaxWrite
	}
	if err := s.init(); err != nil {
		return nil, err
	}
	ring, entries, err := s.register()
	if err != nil {
		return nil, err
	}
	go s.readDevice() // what still comes the old way: forgets, and all before the ring is ready
	go func() {
		runtime.LockOSThread()
		s.serve(ring, entries)
	}()
	return s, nil
}

// init answers the first request, with io_uring added to what is agreed on.
func (s *uringFUSE) init() error {
	in, out := make([]byte, s.maxWrite+8192), make([]byte, 8192)
	n, err := unix.Read(s.dev, in)
	if err != nil {
		return fmt.Errorf("reading INIT: %w", err)
	}
	n, status := s.protocol.HandleRequest([][]byte{in[:n]}, [][]byte{out})
	if !status.Ok() || n < initOutFlags2+4 {
		return fmt.Errorf("answering INIT: %v, %d bytes", status, n)
	}
	for at, bit := range map[int]uint32{initOutFlags: fuseInitExt, initOutFlags2: fuseOverURing} {
		binary.NativeEndian.PutUint32(out[at:], binary.NativeEndian.Uint32(out[at:])|bit)
	}
	if _, err := unix.Write(s.dev, out[:n]); err != nil {
		return fmt.Errorf("answering INIT: %w", err)
	}
	return nil
}

const uringDepth = 4 // entries of a queue

func (s *uringFUSE) register() (*commandRing, []*uringEntry, error) {
	queues, err := possibleCPUs()
	if err != nil {
		return nil, nil, err
	}
	entries := queues * uringDepth
	depth := uint32(1)
	for depth < uint32(entries) {
		depth *= 2
	}
	ring, err := newCommandRing(depth)
	if err != nil {
		return nil, nil, err
	}
	list := make([]*uringEntry, entries)
	for i := range list {
		// Outside of Go's heap: the kernel keeps the addresses.
		b, err := unix.Mmap(-1, 0, 4096+s.maxWrite+4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return nil, nil, err
		}
		e := &uringEntry{queue: uint16(i / uringDepth), header: b[:uringHeaderSize], iov: b[1024 : 1024+32], payload: b[4096:]}
		for j, part := range [][]byte{e.header, e.payload} {
			binary.NativeEndian.PutUint64(e.iov[16*j:], uint64(uintptr(unsafe.Pointer(&part[0]))))
			binary.NativeEndian.PutUint64(e.iov[16*j+8:], uint64(len(part)))
		}
		list[i] = e
		ring.command(s.dev, uringRegister, e, uint64(i), 0)
	}
	return ring, list, nil
}

// serve answers until the mount is gone.
func (s *uringFUSE) serve(ring *commandRing, entries []*uringEntry) {
	defer close(s.done)
	out := make([]byte, s.maxWrite+8192)
	gone := 0
	for gone < len(entries) {
		i, result, err := ring.wait()
		if err != nil {
			fmt.Fprintf(os.Stderr, "fuse over io_uring: %v\n", err)
			return
		}
		if result < 0 {
			if errno := unix.Errno(-result); errno != unix.ENOTCONN && errno != unix.ECONNABORTED {
				fmt.Fprintf(os.Stderr, "fuse over io_uring: entry %d: %v\n", i, errno)
			}
			gone++
			continue
		}
		s.requests.Add(1)
		e := entries[i]
		size := int(binary.NativeEndian.Uint32(e.header[uringPayloadSize:]))
		length := int(binary.NativeEndian.Uint32(e.header[uringInOut:]))
		first := length - fuseInHeaderSize - size
		if size > len(e.payload) || first < 0 || first > uringOpIn {
			fmt.Fprintf(os.Stderr, "fuse over io_uring: request of %d bytes with %d of payload\n", length, size)
			return
		}
		unique := append([]byte(nil), e.header[uringInOut+8:uringInOut+16]...)
		n, status := s.protocol.HandleRequest([][]byte{
			append([]byte(nil), e.header[uringInOut:uringInOut+fuseInHeaderSize]...),
			append([]byte(nil), e.header[uringOpIn:uringOpIn+first]...),
			append([]byte(nil), e.payload[:size]...),
		}, [][]byte{out})
		if !status.Ok() || n < fuseOutHeaderSize {
			clear(out[:fuseOutHeaderSize])
			eio := int32(unix.EIO)
			binary.NativeEndian.PutUint32(out[4:], uint32(-eio))
			n = fuseOutHeaderSize
		}
		copy(out[8:16], unique)
		copy(e.header[uringInOut:], out[:fuseOutHeaderSize])
		copy(e.payload, out[fuseOutHeaderSize:n])
		binary.NativeEndian.PutUint32(e.header[uringPayloadSize:], uint32(n-fuseOutHeaderSize))
		ring.command(s.dev, uringCommit, e, i, binary.NativeEndian.Uint64(e.header[uringCommitID:]))
	}
}

// readDevice answers what comes through /dev/fuse.
func (s *uringFUSE) readDevice() {
	in, out := make([]byte, s.maxWrite+8192), make([]byte, s.maxWrite+8192)
	for {
		n, err := unix.Read(s.dev, in)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return
		}
		n, status := s.protocol.HandleRequest([][]byte{in[:n]}, [][]byte{out})
		if status.Ok() && n > 0 {
			_, _ = unix.Write(s.dev, out[:n])
		}
	}
}
