package tracer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// loops tells the block programs which file each loop device is over. With that,
// the I/O of the loop driver's kernel thread counts for the user of the device.
type loops struct {
	files   *ebpf.Map
	outer   *ebpf.Map     // has room for the map of notes
	notes   *ebpf.MapSpec // of that map; nil once it is there
	devices *Devices

	mu    sync.Mutex
	known map[Dev]bpf.BlockLoopFile
}

func newLoops(files, outer *ebpf.Map, notes *ebpf.MapSpec) *loops {
	return &loops{files: files, outer: outer, notes: notes, devices: NewDevices(), known: map[Dev]bpf.BlockLoopFile{}}
}

// keepNotes makes the map of notes: see loop_notes in bpf/core/note.h.
func (l *loops) keepNotes() error {
	if l.notes == nil {
		return nil
	}
	m, err := ebpf.NewMap(l.notes)
	if err != nil {
		return fmt.Errorf("making the map of loop devices' notes: %w", err)
	}
	defer m.Close() // outer keeps it
	if err := l.outer.Update(uint32(0), m, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("storing the map of loop devices' notes: %w", err)
	}
	l.notes = nil
	return nil
}

// scan brings the map up to date with the loop devices that exist.
func (l *loops) scan() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	dirs, err := filepath.Glob(filepath.Join(l.devices.sys, "block", "loop*", "loop"))
	if err != nil {
		return err
	}
	found := map[Dev]bpf.BlockLoopFile{}
	var types map[Dev]string
	for _, dir := range dirs {
		raw, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
		if err != nil {
			continue // detached meanwhile
		}
		dev, ok := parseDev(strings.TrimSpace(string(raw)))
		if !ok {
			continue
		}
		file, err := l.devices.loopFile(filepath.Base(filepath.Dir(dir)))
		if err != nil || file.guessed {
			continue
		}
		if file.fs.Major() == 0 {
			if types == nil {
				types = l.devices.fileSystems()
			}
			if inMemory(types[file.fs]) {
				continue // its pages cause no I/O, and notes take time
			}
		}
		found[dev] = bpf.BlockLoopFile{Ino: file.ino, Offset: file.offset, Fsdev: uint32(file.fs)}
	}
	var errs []error
	for dev := range l.known {
		if _, ok := found[dev]; !ok {
			if err := l.files.Delete(uint32(dev)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
		}
	}
	for dev, file := range found {
		if l.known[dev] != file {
			if err := l.files.Update(uint32(dev), file, ebpf.UpdateAny); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(found) > 0 {
		errs = append(errs, l.keepNotes())
	}
	l.known = found
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("storing the files of loop devices: %w", err)
	}
	return nil
}

// watch scans whenever the kernel announces that a loop device changed. In a network
// namespace other than the first there are no announcements: there only the scan
// before each interval finds changes.
func (l *loops) watch(ctx context.Context) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	// Announcements are rare: the end of ctx must be noticed between them.
	wait := unix.NsecToTimeval(int64(500 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	buf := make([]byte, 8192)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
				continue
			}
			return err
		}
		if _, name, ok := bytes.Cut(buf[:n], []byte("/block/loop")); ok {
			name, _, _ = bytes.Cut(name, []byte{0})
			// Before 5.15 a new attachment of the same path looks like the old one.
			l.devices.driver.forget(filepath.Join(l.devices.sys, "block", "loop"+string(name)))
			if err := l.scan(); err != nil {
				return err
			}
		}
	}
	return nil
}
