package tracer

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// Which file a loop device is over is in the kernel's own structure: the block programs
// look there at each request (iot_loop_look in bpf/block/stack.h). No device file, no
// permission and no question to a file system is needed, which a server may never answer.

// Magic numbers of file systems: include/uapi/linux/magic.h, and of ZFS
// include/sys/fs/zfs.h in OpenZFS.
const (
	magicBtrfs    = 0x9123683e
	magicBcachefs = 0xca451a4e
	magicOverlay  = 0x794c7630
	magicZFS      = 0x2fc12fc1
)

// onDisk tells whether a file is on a block device of this host. One of a lower layer of
// overlayfs is taken for that.
func onDisk(f bpf.BlockLoopFile) bool {
	switch f.Magic {
	case magicBtrfs, magicBcachefs, magicOverlay, magicZFS:
		return true
	}
	return Dev(f.Fsdev).Major() != 0
}

// backingFile returns the path of the file that a loop device is over, as it was when it
// was attached; false when there is none.
func (d *Devices) backingFile(name string) (string, bool) {
	b, err := os.ReadFile(filepath.Join(d.sys, "block", strings.ReplaceAll(name, "/", "!"), "loop", "backing_file"))
	if err != nil || len(b) == 0 {
		return "", false
	}
	return strings.TrimSuffix(string(b), "\n"), true
}

// mountOf returns device number and type of the file system that a path is on, as the
// mounts of this host have it. It asks no file system.
func (d *Devices) mountOf(file string) (dev Dev, fstype string) {
	f, err := os.Open(filepath.Join(d.proc, mountsPID(), "mountinfo"))
	if err != nil {
		return 0, ""
	}
	defer f.Close()
	longest := -1
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 {
			continue
		}
		point := strings.TrimSuffix(unescapeMount.Replace(fields[4]), "/")
		if !strings.HasPrefix(file, point+"/") || len(point) < longest {
			continue // of two at the same place the later one is on top
		}
		if number, ok := parseDev(fields[2]); ok {
			longest, dev = len(point), number
			fstype, _, _ = strings.Cut(after, " ")
		}
	}
	return dev, fstype
}

// unescapeMount undoes what the kernel does to paths in mountinfo (show_path in
// fs/proc_namespace.c).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// loopFields reads where the fields of struct loop_device are: in the kernel's types or
// its module's.
func (c *loader) loopFields() (bpf.BlockLoopFields, error) {
	t := &hopTypes{specs: []*btf.Spec{c.types}, old: c.chargesPages()} // constants of 5.10
	module, err := c.cache.Module("loop")
	if err == nil {
		t.specs = append(t.specs, module)
	}
	file, start := t.at("loop_device", 240, "lo_backing_file"), t.at("loop_device", 8, "lo_offset")
	if !file.known || !start.known {
		return bpf.BlockLoopFields{}, errors.Join(errors.New("no struct loop_device as expected in the kernel's types"), err)
	}
	return bpf.BlockLoopFields{Known: 1, File: uint32(file.bytes), Offset: uint32(start.bytes)}, nil
}
