package guest

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uring is the smallest io_uring that does the job: one request at a time. No
// library is used, because the ones for Go bring a scheduler of their own, and
// what matters here is only that the I/O takes this way into the kernel.
type uring struct {
	fd                       int
	sq, cq                   []byte
	sqes                     []byte
	sqTail, sqMask, sqArray  uint32
	cqHead, cqTail, cqMaskAt uint32
	cqes                     uint32
}

type uringOffsets struct {
	head, tail, mask, entries, flags, dropped, array, resv1 uint32
	userAddr                                                uint64
}

type uringCQOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, resv1 uint32
	userAddr                                                uint64
}

type uringParams struct {
	sqEntries, cqEntries, flags, sqCPU, sqIdle, features, wqFD uint32
	resv                                                       [3]uint32
	sq                                                         uringOffsets
	cq                                                         uringCQOffsets
}

type uringSQE struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off, addr     uint64
	length        uint32
	rwFlags       uint32
	userData      uint64
	_             [24]byte
}

// Numbers of the kernel's ABI, io_uring since 5.1, the two operations since 5.6.
const (
	uringOpRead     = 22
	uringOpWrite    = 23
	uringOffSQ      = 0
	uringOffCQ      = 0x8000000
	uringOffSQEs    = 0x10000000
	uringEnterGetEv = 1
)

func newURing() (*uring, error) {
	return setupURing(4, 0, int(unsafe.Sizeof(uringSQE{})))
}

// setupURing makes a ring with this number of entries. sqeSize is the size of one of
// them in bytes, which depends on the flags.
func setupURing(entries, flags uint32, sqeSize int) (*uring, error) {
	p := uringParams{flags: flags}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &uring{fd: int(fd)}
	var err error
	mmap := func(off int64, n int) []byte {
		if err != nil {
			return nil
		}
		var b []byte
		b, err = unix.Mmap(r.fd, off, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		return b
	}
	r.sq = mmap(uringOffSQ, int(p.sq.array+p.sqEntries*4))
	r.cq = mmap(uringOffCQ, int(p.cq.cqes+p.cqEntries*16))
	r.sqes = mmap(uringOffSQEs, int(p.sqEntries)*sqeSize)
	if err != nil {
		unix.Close(r.fd)
		return nil, fmt.Errorf("io_uring mmap: %w", err)
	}
	r.sqTail, r.sqMask, r.sqArray = p.sq.tail, p.sq.mask, p.sq.array
	r.cqHead, r.cqTail, r.cqMaskAt, r.cqes = p.cq.head, p.cq.tail, p.cq.mask, p.cq.cqes
	return r, nil
}

func at32(b []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[off])) }

// submit does one operation and returns its result.
func (r *uring) submit(op uint8, fd int, b []byte, off int64) (int, error) {
	tail := *at32(r.sq, r.sqTail)
	slot := tail & *at32(r.sq, r.sqMask)
	sqe := (*uringSQE)(unsafe.Pointer(&r.sqes[uintptr(slot)*unsafe.Sizeof(uringSQE{})]))
	*sqe = uringSQE{opcode: op, fd: int32(fd), off: uint64(off), addr: uint64(uintptr(unsafe.Pointer(&b[0]))), length: uint32(len(b))}
	*at32(r.sq, r.sqArray+slot*4) = slot
	atomic.StoreUint32(at32(r.sq, r.sqTail), tail+1)
	for submit := uintptr(1); ; submit = 0 {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, uringEnterGetEv, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return 0, fmt.Errorf("io_uring_enter: %w", errno)
		}
		head := atomic.LoadUint32(at32(r.cq, r.cqHead))
		if head == atomic.LoadUint32(at32(r.cq, r.cqTail)) {
			continue
		}
		entry := r.cqes + (head&*at32(r.cq, r.cqMaskAt))*16
		res := int32(*at32(r.cq, entry+8))
		atomic.StoreUint32(at32(r.cq, r.cqHead), head+1)
		if res < 0 {
			return 0, unix.Errno(-res)
		}
		return int(res), nil
	}
}

func (w *workerState) uringTransfer(q request) (reply, error) {
	if w.ring == nil {
		r, err := newURing()
		if err != nil {
			return reply{}, err
		}
		w.ring = r
	}
	b, err := buffer(q.Block)
	if err != nil {
		return reply{}, err
	}
	defer unix.Munmap(b)
	op := uint8(uringOpWrite)
	if q.Do == "uring-read" {
		op = uringOpRead
	}
	var done int64
	for done < q.N {
		n := int(min(q.N-done, int64(len(b))))
		got, err := w.ring.submit(op, q.FD, b[:n], q.Off+done)
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
