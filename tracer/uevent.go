package tracer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// deviceWatch notices that block devices came, went or changed, without a look at
// sysfs, which takes some 60 system calls per device. It goes by two signs:
//
//   - The kernel's uevents (lib/kobject_uevent.c).
//   - The sizes in /proc/partitions. The kernel announces no change of size from or to
//     zero (set_capacity_and_notify in block/genhd.c), so it says nothing when a zram
//     device is set up. Some kernels also drop the event of a loop device that is
//     attached (repaired by e7bc0010ceb4, "loop: properly send KOBJ_CHANGED uevent for
//     disk device").
//
// Where one of the two cannot be read, everything counts as changed at every poll.
type deviceWatch struct {
	events *os.File // netlink socket; nil where the kernel's events do not arrive
	raw    syscall.RawConn
	sizes  *os.File // /proc/partitions
	deaf   error    // why the signs cannot be read; nil when they can

	// loopChanged gets the kernel name of a loop device that an event is about, and ""
	// when events were lost. It is set before the first poll.
	loopChanged func(name string)

	mu     sync.Mutex
	buf    []byte // for events
	last   []byte // content of sizes at the last poll
	now    []byte
	number uint64    // of the last change
	at     time.Time // of the last change
}

const (
	ueventKernelGroup = 1          // multicast group of the kernel; udev uses 2 (lib/kobject_uevent.c, systemd's sd-device)
	ueventBytes       = 8 << 10    // an event has at most 2 KiB (UEVENT_BUFFER_SIZE) and a path
	initialUserNS     = 0xEFFFFFFD // inode number of the first user namespace: PROC_USER_INIT_INO in include/linux/proc_ns.h
)

// deviceSettle is how long after an event to look at devices again: the kernel announces
// a change of a dm device before it removes the old table from sysfs (do_resume in
// drivers/md/dm-ioctl.c), and the end of a loop device before its file is gone.
const deviceSettle = time.Second

// openDeviceWatch begins to listen. It always returns a watch: one that cannot listen
// says so in deaf.
func openDeviceWatch() *deviceWatch {
	w := &deviceWatch{loopChanged: func(string) {}, buf: make([]byte, ueventBytes)}
	w.deaf = errors.Join(w.listen(), w.openSizes("/proc/partitions"))
	return w
}

func (w *deviceWatch) listen() error {
	if err := hearsEvents("/proc/self/ns/net"); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("socket of uevents: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: ueventKernelGroup}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("listening to uevents: %w", err)
	}
	w.events = os.NewFile(uintptr(fd), "uevents")
	w.raw, err = w.events.SyscallConn()
	return err
}

// hearsEvents tells by its error that a network namespace gets no uevents of devices:
// since 4.18 only those of the first user namespace do (a3498436b3a0, "netns: restrict
// uevents").
func hearsEvents(netNS string) error {
	f, err := os.Open(netNS)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer f.Close()
	owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return fmt.Errorf("owner of %q: %w", netNS, err)
	}
	defer unix.Close(owner)
	var st unix.Stat_t
	if err := unix.Fstat(owner, &st); err != nil {
		return fmt.Errorf("owner of %q: %w", netNS, err)
	}
	if st.Ino != initialUserNS {
		return errors.New("this network namespace belongs to another user namespace, so the kernel sends no uevents of devices to it")
	}
	return nil
}

func (w *deviceWatch) openSizes(name string) (err error) {
	w.sizes, err = os.Open(name)
	return err
}

// Close ends the watch and follow.
func (w *deviceWatch) Close() error {
	var errs []error
	for _, f := range []*os.File{w.events, w.sizes} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// poll reads what happened since the last call: some four system calls.
func (w *deviceWatch) poll() {
	if w.deaf != nil {
		w.changed()
		return
	}
	if err := w.raw.Control(func(fd uintptr) { w.receive(int(fd)) }); err != nil {
		w.changed()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.readSizes(); err != nil || !bytes.Equal(w.now, w.last) {
		w.number++
		w.at = time.Now()
	}
	w.now, w.last = w.last, w.now
}

// readSizes reads the sizes of all devices into now.
func (w *deviceWatch) readSizes() error {
	w.now = w.now[:cap(w.now)]
	for {
		n, err := w.sizes.ReadAt(w.now, 0)
		if errors.Is(err, io.EOF) {
			w.now = w.now[:n]
			return nil
		}
		if err != nil {
			w.now = w.now[:0]
			return err
		}
		w.now = make([]byte, max(4<<10, 2*len(w.now)))
	}
}

// changed counts a change that nothing more is known about.
func (w *deviceWatch) changed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.number++
	w.at = time.Now()
}

// receive reads all events that wait in the socket. It returns whether one of them is
// about a block device.
func (w *deviceWatch) receive(fd int) (about bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		if about {
			w.number++
			w.at = time.Now()
		}
	}()
	for {
		n, from, err := unix.Recvfrom(fd, w.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return about
		case errors.Is(err, unix.ENOBUFS): // the socket was full
			w.loopChanged("")
			about = true
			continue
		case err != nil: // most likely it is being closed
			return about
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel's
		}
		if loop, ok := parseUevent(w.buf[:n]); ok {
			about = true
			if loop != "" {
				w.loopChanged(loop)
			}
		}
	}
}

// parseUevent tells whether an event may change what is known about block devices, and
// names the loop device that it is about. An event is ACTION@DEVPATH and KEY=VALUE
// fields, each with a zero byte behind it.
func parseUevent(event []byte) (loop string, ok bool) {
	head, fields, _ := bytes.Cut(event, []byte{0})
	_, devpath, found := bytes.Cut(head, []byte{'@'})
	if !found {
		return "", false
	}
	for field := range bytes.SplitSeq(fields, []byte{0}) {
		if bytes.Equal(field, []byte("SUBSYSTEM=block")) {
			if name := path.Base(string(devpath)); strings.HasPrefix(name, "loop") {
				loop = name
			}
			return loop, true
		}
	}
	return "", false
}

// follow calls act after each event about a block device, until ctx is done or the watch
// is closed. Where no events arrive, it only waits.
func (w *deviceWatch) follow(ctx context.Context, act func() error) error {
	if w.deaf != nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = w.events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		err := w.raw.Read(func(fd uintptr) bool { return w.receive(int(fd)) })
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading uevents: %w", err)
		}
		if err := act(); err != nil {
			return err
		}
	}
}

// lookout is somebody who looks at devices and wants to do so only after a change.
type lookout struct {
	watch *deviceWatch // nil: everything may have changed at any time
	seen  uint64       // number of the last change before the last look
	began time.Time    // of the last look; zero when another look is due in any case
}

// due tells whether to look. If so, the caller looks at once.
func (l *lookout) due() bool {
	if l.watch == nil {
		return true
	}
	l.watch.mu.Lock()
	number, at := l.watch.number, l.watch.at
	l.watch.mu.Unlock()
	if number == l.seen && !l.began.IsZero() && l.began.Sub(at) >= deviceSettle {
		return false
	}
	l.seen, l.began = number, time.Now()
	return true
}

// again makes the next call of due return true: the look was incomplete.
func (l *lookout) again() { l.began = time.Time{} }
