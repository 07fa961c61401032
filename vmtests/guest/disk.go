package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Disk is a block device of the guest.
type Disk struct {
	g    *Guest
	Name string // nvme2n1
}

// Path is its device file.
func (d Disk) Path() string { return "/dev/" + d.Name }

// ID is major:minor, as the tracer names it.
func (d Disk) ID() string {
	d.g.Helper()
	return strings.TrimSpace(d.g.ReadFile(filepath.Join("/sys/class/block", d.Name, "dev")))
}

// NVMe is the scratch disk on NVMe, Virtio the one on virtio-blk.
func (g *Guest) NVMe() Disk { g.Helper(); return g.scratch("iotnvme") }

// Virtio is the scratch disk on virtio-blk.
func (g *Guest) Virtio() Disk {
	g.Helper()
	g.Modprobe("virtio_blk")
	return g.scratch("iotvirtio")
}

// Paths is an NVMe disk with two paths, if the suite asked for one.
func (g *Guest) Paths() Disk { g.Helper(); return g.scratch("iotpaths") }

func (g *Guest) scratch(serial string) Disk {
	g.Helper()
	var name string
	// A machine used in place of a guest may have disks without serial numbers:
	// IOTRACE_TEST_SCRATCH names two spare ones.
	if names := strings.Fields(os.Getenv("IOTRACE_TEST_SCRATCH")); len(names) == 2 && diskBySerial(serial) == "" {
		return Disk{g, names[map[string]int{"iotnvme": 0, "iotvirtio": 1}[serial]]}
	}
	g.Eventually("disk "+serial, func() bool { name = diskBySerial(serial); return name != "" && exists("/dev/"+name) })
	return Disk{g, name}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// Disk names a device that a scenario made itself.
func (g *Guest) Disk(name string) Disk {
	g.Helper()
	g.Eventually("device "+name, func() bool { return exists("/dev/" + name) })
	return Disk{g, name}
}

// Format makes a file system: ext4, xfs, btrfs.
func (d Disk) Format(fstype string, options ...string) {
	d.g.Helper()
	force := map[string]string{"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[fstype]
	args := append([]string{"-q", force}, options...)
	if fstype == "ext4" {
		// No background initialisation: the kernel would write to the disk on its own later.
		args = append(args, "-E", "lazy_itable_init=0,lazy_journal_init=0")
	}
	d.g.Exec("mkfs."+fstype, append(args, d.Path())...)
}

// MountAt mounts the disk, without formatting it, until the scenario's end.
func (d Disk) MountAt(fstype, target, options string) {
	d.g.Helper()
	d.g.Modprobe(fstype)
	if fstype == "ext4" && options == "" {
		// The file system must not write on its own later: tests count every byte.
		options = "noinit_itable"
		if d.g.AtLeast(5, 13) { // from then on the kernel prefetches block bitmaps by default
			options += ",no_prefetch_block_bitmaps"
		}
	}
	d.g.Mount(fstype, d.Path(), target, options)
}

// IOStats are the counters of /proc/diskstats, sectors turned into bytes.
type IOStats struct {
	ReadOps, ReadBytes, WriteOps, WriteBytes, DiscardOps, DiscardBytes, FlushOps, InFlight int64
}

// Sub is what was counted since.
func (s IOStats) Sub(old IOStats) IOStats {
	return IOStats{s.ReadOps - old.ReadOps, s.ReadBytes - old.ReadBytes, s.WriteOps - old.WriteOps, s.WriteBytes - old.WriteBytes,
		s.DiscardOps - old.DiscardOps, s.DiscardBytes - old.DiscardBytes, s.FlushOps - old.FlushOps, 0}
}

// Stats reads the disk's counters once no request is in flight. Kernels that count
// requests in flight by tag no longer include a request whose end has begun, and may
// add it to the counters only after they woke the waiting task. So Stats waits for
// every processor and reads the counters a second time.
func (d Disk) Stats() IOStats {
	d.g.Helper()
	var s IOStats
	idle := func() bool {
		var err error
		s, err = parseDiskStats(d.g.ReadFile("/proc/diskstats"), d.Name)
		if err != nil {
			d.g.Fatal(err)
		}
		return s.InFlight == 0
	}
	d.g.Eventually(d.Name+" idle", func() bool {
		if !idle() {
			return false
		}
		d.g.everyProcessor()
		return idle()
	})
	return s
}

func parseDiskStats(text, name string) (IOStats, error) {
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 14 || f[2] != name {
			continue
		}
		n := make([]int64, 17) // discards came with 4.18, flushes with 5.5
		for i := range n {
			if i+3 < len(f) {
				v, err := strconv.ParseInt(f[i+3], 10, 64)
				if err != nil {
					return IOStats{}, fmt.Errorf("diskstats of %q: %w", name, err)
				}
				n[i] = v
			}
		}
		return IOStats{ReadOps: n[0], ReadBytes: n[2] * 512, WriteOps: n[4], WriteBytes: n[6] * 512,
			InFlight: n[8], DiscardOps: n[11], DiscardBytes: n[13] * 512, FlushOps: n[15]}, nil
	}
	return IOStats{}, fmt.Errorf("diskstats has no device %q", name)
}

// Loop puts a loop device over a file until the scenario's end.
func (g *Guest) Loop(file string, options ...string) Disk {
	g.Helper()
	g.Modprobe("loop")
	dev := strings.TrimSpace(g.Exec("losetup", append(append([]string{"-f", "--show"}, options...), file)...))
	g.Cleanup(func() {
		if out, err := g.Try("losetup", "-d", dev); err != nil {
			g.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return g.Disk(filepath.Base(dev))
}

// DM makes a device-mapper device with this table until the scenario's end. There
// is no udev here: dmsetup makes the node itself.
func (g *Guest) DM(name, table string) Disk {
	g.Helper()
	g.Modprobe("dm_mod")
	g.Exec("dmsetup", "create", name, "--noudevsync", "--table", table)
	g.Cleanup(func() {
		var out string
		if err := poll(patience, func() bool {
			var err error
			out, err = g.Try("dmsetup", "remove", "--noudevsync", name)
			return err == nil
		}); err != nil {
			g.Errorf("dmsetup remove %s: %s", name, out)
		}
	})
	dev, err := os.Readlink("/dev/mapper/" + name)
	if err != nil { // a node of its own, not a link
		minor := strings.TrimSpace(g.Exec("dmsetup", "info", "-c", "--noheadings", "-o", "minor", name))
		return g.Disk("dm-" + minor)
	}
	return g.Disk(filepath.Base(dev))
}

// Sectors is the size of the disk in sectors of 512 bytes.
func (d Disk) Sectors() int64 {
	d.g.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(d.g.ReadFile(filepath.Join("/sys/class/block", d.Name, "size"))), 10, 64)
	if err != nil {
		d.g.Fatal(err)
	}
	return n
}
