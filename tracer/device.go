package tracer

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Device is a block device as the kernel has it stacked.
type Device struct {
	Dev  Dev
	Name string // kernel name: sda, dm-0, loop3; empty when the device is gone unseen
	// Stacked tells that the bytes arrive a second time at another block device
	// of this host: device mapper, md, bcache, a loop device over a local file.
	Stacked bool
}

// Devices reads the block devices of this host from sysfs. Devices come, go and
// are stacked anew at any time: so each is looked at again whenever it did I/O,
// which takes a few system calls.
type Devices struct {
	sys, dev, proc string      // roots of sysfs, devtmpfs and procfs
	driver         *loopDriver // says which files loop devices are over

	mu   sync.Mutex
	last map[Dev]Device // what was seen last, for devices that are gone
}

// NewDevices returns the devices of this host.
func NewDevices() *Devices {
	return &Devices{sys: "/sys", dev: "/dev", proc: "/proc", driver: theLoopDriver, last: map[Dev]Device{}}
}

// maxGoneDevices bounds the memory for devices that are gone.
const maxGoneDevices = 4096

// Device returns what is known about a device now, or what was known when it
// was last there.
func (d *Devices) Device(dev Dev) Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, err := filepath.EvalSymlinks(filepath.Join(d.sys, "dev", "block", dev.String()))
	if err != nil {
		if known, ok := d.last[dev]; ok {
			return known
		}
		return Device{Dev: dev}
	}
	found := Device{Dev: dev, Name: strings.ReplaceAll(filepath.Base(dir), "!", "/")}
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	found.Stacked = len(slaves) > 0 || d.loopOverLocal(found.Name)
	if known, ok := d.last[dev]; ok && !found.Stacked && known.Stacked && known.Name == found.Name {
		if _, err := os.Stat(filepath.Join(dir, "loop")); errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(found.Name, "loop") {
			// Detached since its I/O was counted: that was still stacked.
			found.Stacked = true
		}
	}
	if len(d.last) >= maxGoneDevices {
		clear(d.last)
	}
	d.last[dev] = found
	return found
}

// loopOverLocal tells whether a device is a loop device whose backing file is on
// a block device of this host. A file in memory or on a network file system
// leaves the loop device a leaf.
func (d *Devices) loopOverLocal(name string) bool {
	file, err := d.loopFile(name)
	if err != nil {
		// Where its backing file is, if it has one, cannot be seen: rather not count it twice.
		return !errors.Is(err, errLoopDetached)
	}
	return file.fs.Major() != 0 || d.anonymousIsLocal(file.fs)
}

// loopFile returns which file a loop device is over: see loopDriver.
func (d *Devices) loopFile(name string) (loopFile, error) {
	return d.driver.file(filepath.Join(d.sys, "block", name), filepath.Join(d.dev, name))
}

// anonymousIsLocal tells whether a file system without a device number of its
// own lives on block devices all the same, as btrfs, bcachefs and ZFS do, and
// overlayfs over any of them.
func (d *Devices) anonymousIsLocal(dev Dev) bool {
	switch d.fileSystems()[dev] {
	case "btrfs", "bcachefs", "zfs", "overlay":
		return true
	}
	return false
}

// fileSystems returns the type of every file system that is mounted here.
func (d *Devices) fileSystems() map[Dev]string {
	types := map[Dev]string{}
	f, err := os.Open(filepath.Join(d.proc, "self", "mountinfo"))
	if err != nil {
		return types
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 3 {
			continue
		}
		if dev, ok := parseDev(fields[2]); ok {
			types[dev], _, _ = strings.Cut(after, " ")
		}
	}
	return types
}

// inMemory tells whether a file system asks no storage for anything.
func inMemory(fstype string) bool {
	switch fstype {
	case "tmpfs", "ramfs", "devtmpfs", "rootfs", "hugetlbfs":
		return true
	}
	return false
}
