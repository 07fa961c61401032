package guest

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AllocUntouched maps n bytes of anonymous memory and leaves them alone: reading
// them gives the zero page.
func (p *Process) AllocUntouched(n int64) *Mapping {
	p.g.Helper()
	return &Mapping{p, p.call(request{Do: "alloc-untouched", N: n}, false).Addr}
}

// AllocHuge touches n bytes of anonymous memory, in huge pages where the kernel has some.
func (p *Process) AllocHuge(n int64) *Mapping {
	p.g.Helper()
	return &Mapping{p, p.call(request{Do: "alloc-huge", N: n}, false).Addr}
}

// WriteTo writes the first n bytes of the mapping to a file of the same process, in calls of 1 MiB.
func (m *Mapping) WriteTo(f *File, off, n int64) {
	m.p.g.Helper()
	f.all(request{Do: "write-mapped", FD: f.fd, Addr: m.addr, Off: off, N: n, Block: 1 << 20})
}

// ReadFrom reads n bytes of a file of the same process into the mapping, in calls of 1 MiB.
func (m *Mapping) ReadFrom(f *File, off, n int64) {
	m.p.g.Helper()
	f.all(request{Do: "read-mapped", FD: f.fd, Addr: m.addr, Off: off, N: n, Block: 1 << 20})
}

// StartWriteback writes the file's dirty pages and waits for their arrival, as
// sync_file_range(2) does. It does not ask the server to make them stable.
func (f *File) StartWriteback() {
	f.p.g.Helper()
	f.p.call(request{Do: "sync-range", FD: f.fd}, false)
}

const hugePage = 2 << 20

// memory does the requests about memory and ranges that need more than one call.
func (w *workerState) memory(q request) (reply, error) {
	switch q.Do {
	case "alloc-untouched", "alloc-huge":
		b, err := unix.Mmap(-1, 0, int(q.N)+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return reply{}, fmt.Errorf("%d bytes of memory: %w", q.N, err)
		}
		addr := uint64(uintptr(unsafe.Pointer(&b[0])))
		skip := -addr & (hugePage - 1)
		b, addr = b[skip:skip+uint64(q.N)], addr+skip
		if q.Do == "alloc-huge" {
			if err := unix.Madvise(b, unix.MADV_HUGEPAGE); err != nil {
				return reply{}, fmt.Errorf("madvise: %w", err)
			}
			fill(b, uint64(q.N))
		}
		w.maps[addr] = b
		return reply{Addr: addr}, nil
	case "write-mapped", "read-mapped":
		call := unix.Pwrite
		if q.Do == "read-mapped" {
			call = unix.Pread
		}
		b, ok := w.maps[q.Addr]
		if !ok || int64(len(b)) < q.N {
			return reply{}, fmt.Errorf("no mapping of %d bytes at %#x", q.N, q.Addr)
		}
		var done int64
		for done < q.N {
			n, err := call(q.FD, b[done:min(q.N, done+int64(q.Block))], q.Off+done)
			if err != nil || n == 0 {
				return reply{N: done}, fmt.Errorf("%s at %d: %d bytes, %w", q.Do, q.Off+done, n, err)
			}
			done += int64(n)
		}
		return reply{N: done}, nil
	case "sync-range":
		return reply{}, unix.SyncFileRange(q.FD, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	return reply{}, fmt.Errorf("unknown request %q", q.Do)
}
