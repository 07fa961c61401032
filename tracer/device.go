package tracer

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// Device is a block device as the kernel has it stacked.
type Device struct {
	Dev  Dev
	Name string // kernel name: sda, dm-0, loop3; "" when the device was gone at the first look
	// Alias is the name that its maker gave it: vg0-data of device mapper, pool/image of
	// Ceph's RBD; "" for all others.
	Alias string
	Head  Dev // the NVMe disk that this hidden path belongs to, whose name Name is; 0 for all others
	// Stacked says that the same bytes count a second time at another block device of
	// this host: device mapper, md, bcache, a loop device over a local file.
	Stacked bool
}

// Devices reads the block devices of this host from sysfs. Devices come, go and
// change their stacking at any time. With a watch, a device is looked at again after a
// change; without one, at each call of Device, with some thirty system calls.
type Devices struct {
	sys, proc string // roots of sysfs and procfs

	// loopFile returns what is known of a loop device's file; nil where nobody looks.
	loopFile func(Dev) (bpf.BlockLoopFile, bool)

	mu    sync.Mutex
	blind bool // nobody can look
	look  lookout
	fresh map[Dev]bool   // devices whose last answer still holds
	last  map[Dev]Device // the last answers, for devices that are gone
}

// NewDevices returns the devices of this host. Nothing watches them: see Tracer.Devices.
func NewDevices() *Devices { return watchedDevices(nil) }

func watchedDevices(w *deviceWatch) *Devices {
	return &Devices{sys: "/sys", proc: onHost("/proc"), look: lookout{watch: w}, last: map[Dev]Device{}}
}

// maxGoneDevices bounds the memory for devices that are gone.
const maxGoneDevices = 4096

// Device describes a device as it is now; one that is gone, as it was last seen.
func (d *Devices) Device(dev Dev) Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.look.due() {
		d.fresh = map[Dev]bool{}
	}
	if d.fresh[dev] {
		return d.last[dev]
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(d.sys, "dev", "block", dev.String()))
	if err != nil {
		if known, ok := d.last[dev]; ok {
			return known
		}
		found := d.nvmePath(dev)
		if found.Head != 0 {
			d.keep(found, true)
		}
		return found
	}
	found := Device{Dev: dev, Name: strings.ReplaceAll(filepath.Base(dir), "!", "/")}
	found.Alias = aliasOf(found.Name, dir)
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	stacked, known := d.loopOverLocal(found.Name, dev)
	// dm, md, bcache and DRBD link the devices below them (bd_link_disk_holder). nbd and rbd
	// have none: their bytes go over a network.
	found.Stacked = len(slaves) > 0 || stacked || isZvol(found.Name)
	if before, ok := d.last[dev]; ok && !found.Stacked && before.Stacked && before.Name == found.Name {
		if _, err := os.Stat(filepath.Join(dir, "loop")); errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(found.Name, "loop") {
			// Detached after its I/O was counted: then it was stacked.
			found.Stacked = true
		}
	}
	d.keep(found, known)
	return found
}

// keep remembers an answer; fresh says that it holds until a device changes.
func (d *Devices) keep(found Device, fresh bool) {
	if len(d.last) >= maxGoneDevices {
		clear(d.last)
		clear(d.fresh)
	}
	d.last[found.Dev] = found
	d.fresh[found.Dev] = fresh
}

// nvmePathName is how the kernel names a path of an NVMe disk with several: instances of
// the subsystem, of the controller, of the disk (nvme_mpath_set_disk_name, in
// drivers/nvme/host/multipath.c). Requests are the paths', and users know the head only.
var nvmePathName = regexp.MustCompile(`^(nvme[0-9]+)c[0-9]+(n[0-9]+)$`)

// nvmePath describes a device that has no directory in sysfs, because it is a hidden
// path of an NVMe disk. /proc/diskstats has its name.
func (d *Devices) nvmePath(dev Dev) Device {
	found := Device{Dev: dev}
	f, err := os.Open(filepath.Join(d.proc, "diskstats"))
	if err != nil {
		return found
	}
	defer f.Close()
	want := strings.Split(dev.String(), ":")
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Fields(sc.Text()); len(fields) > 2 && slices.Equal(fields[:2], want) {
			if m := nvmePathName.FindStringSubmatch(fields[2]); m != nil {
				found.Name = m[1] + m[2]
				raw, _ := os.ReadFile(filepath.Join(d.sys, "block", found.Name, "dev"))
				found.Head, _ = parseDev(strings.TrimSpace(string(raw)))
			}
			break
		}
	}
	return found
}

// aliasOf reads the name that the maker of a device gave it, from its directory in sysfs
// (Documentation/ABI/testing/sysfs-block-dm and sysfs-bus-rbd). An image of RBD is named as
// the command rbd does it: pool/namespace/image@snapshot.
func aliasOf(name, dir string) string {
	attribute := func(file string) string {
		raw, _ := os.ReadFile(filepath.Join(dir, file))
		return strings.TrimRight(string(raw), "\n")
	}
	switch {
	case strings.HasPrefix(name, "dm-"):
		return attribute("dm/name")
	case strings.HasPrefix(name, "rbd"):
		pool, image := attribute("device/pool"), attribute("device/name")
		if pool == "" || image == "" {
			return ""
		}
		if ns := attribute("device/pool_ns"); ns != "" {
			pool += "/" + ns
		}
		if snap := attribute("device/current_snap"); snap != "" && snap != "-" {
			image += "@" + snap
		}
		return pool + "/" + image
	}
	return ""
}

// isZvol tells whether a device is a volume of ZFS, whose pool's disks are counted. It
// has no link to them in sysfs. See ZVOL_DEV_NAME in zvol.h of OpenZFS.
func isZvol(name string) bool {
	number, ok := strings.CutPrefix(name, "zd")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// loopOverLocal tells whether a device is a loop device whose file is on a block device
// of this host. A file in memory or on a network file system leaves the loop device a
// leaf. known is false while no request has shown its file: then its path has to do.
func (d *Devices) loopOverLocal(name string, dev Dev) (local, known bool) {
	if !strings.HasPrefix(name, "loop") {
		return false, true
	}
	path, attached := d.backingFile(name)
	if d.loopFile != nil {
		if file, ok := d.loopFile(dev); ok {
			return onDisk(file), true // of a detached one it is what its I/O went to
		}
	}
	if !attached {
		return false, true
	}
	if d.blind {
		return false, true
	}
	fs, fstype := d.mountOf(path)
	switch fstype {
	case "btrfs", "bcachefs", "zfs", "overlay":
		return true, false
	}
	return fs.Major() != 0 || fstype == "", false // rather not twice
}

// blindToLoops says that the files of loop devices cannot be found.
func (d *Devices) blindToLoops() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blind = true
	clear(d.fresh)
}

// stale has a device looked at again.
func (d *Devices) stale(dev Dev) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.fresh, dev)
}

// number returns the number of a device by its name in sysfs.
func (d *Devices) number(name string) (Dev, bool) {
	raw, err := os.ReadFile(filepath.Join(d.sys, "block", name, "dev"))
	if err != nil {
		return 0, false
	}
	return parseDev(strings.TrimSpace(string(raw)))
}

// inMemory tells whether a file system has no storage below it.
func inMemory(fstype string) bool {
	switch fstype {
	case "tmpfs", "ramfs", "devtmpfs", "rootfs", "hugetlbfs":
		return true
	}
	return false
}
