package tracer

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// loops tells the block programs where to look for the files of loop devices, and makes
// the map of notes with which the I/O of the loop driver's kernel thread counts for the
// user of the device.
type loops struct {
	core    *core
	block   *object
	files   *ebpf.Map     // what the programs found
	outer   *ebpf.Map     // has room for the map of notes
	notes   *ebpf.MapSpec // of that map; nil once it is there
	devices *Devices

	mu       sync.Mutex
	look     lookout
	first    *loader // for the first scan; nil afterwards
	told     bool    // the programs know where to look, or never will
	attached bool    // there is a loop device with a file
	found    map[Dev]bpf.BlockLoopFile
	limited  Limitation // to be added to those of the source
}

func newLoops(c *loader, i *issuers, devices *Devices) *loops {
	l := &loops{
		core: c.core, first: c, block: i.block, files: i.block.maps[bpf.BlockMapLoopFiles], outer: c.shared[bpf.CoreMapLoopNotes],
		notes: i.loopNotes, devices: devices, look: devices.look,
	}
	devices.loopFile = l.file
	return l
}

// file returns the file that the last request to a loop device found; false without one.
func (l *loops) file(dev Dev) (f bpf.BlockLoopFile, ok bool) {
	return f, l.files.Lookup(uint32(dev), &f) == nil
}

// changed forgets the file of a loop device that was attached to another one; "" stands
// for each device. What was detached is kept: its I/O may not be reported yet.
func (l *loops) changed(name string) {
	names := []string{name}
	if name == "" {
		names = l.names()
	}
	for _, name := range names {
		if _, ok := l.devices.backingFile(name); !ok {
			continue
		}
		if dev, ok := l.devices.number(name); ok {
			if err := l.files.Delete(uint32(dev)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				l.core.log.Debug("cannot forget the file of a loop device", "device", name, "error", err)
			}
		}
	}
}

// names returns the loop devices that have a file.
func (l *loops) names() (names []string) {
	dirs, _ := filepath.Glob(filepath.Join(l.devices.sys, "block", "loop*", "loop"))
	for _, dir := range dirs {
		names = append(names, filepath.Base(filepath.Dir(dir)))
	}
	return names
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

// scan prepares the programs for loop devices once there are some, and learns what they
// found since the last scan. Where change is nil, limitations wait for the next scan.
func (l *loops) scan(change func(func())) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.first = nil }()
	defer func() {
		if l.limited != (Limitation{}) && change != nil {
			change(func() { l.block.addLimitation(l.limited) })
		}
	}()
	if l.look.due() {
		names := l.names()
		l.attached = len(names) > 0
		if l.attached && !l.told {
			l.tell()
		}
		for _, name := range names {
			// Before the first request nobody knows its file. Its path can belong to
			// another mount namespace, and then it is on a disk more often than not.
			file, _ := l.devices.backingFile(name)
			if _, fstype := l.devices.mountOf(file); !inMemory(fstype) {
				if err := l.keepNotes(); err != nil {
					l.look.again()
					return err
				}
				break
			}
		}
	}
	if !l.attached {
		return nil
	}
	return l.learn()
}

// tell has the programs look for files.
func (l *loops) tell() {
	l.told = true
	err := func() (err error) {
		ld, err := l.core.loaderOr(l.first)
		if err != nil {
			return err
		}
		fields, err := ld.loopFields()
		if err != nil {
			return err
		}
		return l.block.maps[bpf.BlockMapLoopLayout].Update(uint32(0), fields, ebpf.UpdateAny)
	}()
	if err != nil {
		l.devices.blindToLoops()
		l.limited = Limitation{
			Text:   "loop devices count as disks of their own, and once more on the disk that has their file: " + strings.ReplaceAll(err.Error(), "\n", "; "),
			Remedy: "a kernel whose modules have types (CONFIG_DEBUG_INFO_BTF_MODULES=y)",
		}
	}
}

// learn reads what the programs found.
func (l *loops) learn() error {
	found := map[Dev]bpf.BlockLoopFile{}
	devs, files := make([]uint32, l.files.MaxEntries()), make([]bpf.BlockLoopFile, l.files.MaxEntries())
	// In one system call: there may be many loop devices, and this is for each interval.
	n, err := l.files.BatchLookup(new(ebpf.MapBatchCursor), devs, files, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // at the end of the map
		return fmt.Errorf("reading the files of loop devices: %w", err)
	}
	for i, file := range files[:n] {
		dev := Dev(devs[i])
		found[dev] = file
		if file.Notes != 0 {
			if err := l.keepNotes(); err != nil {
				return err
			}
		}
		if before, ok := l.found[dev]; ok && before != file {
			l.devices.stale(dev)
		}
	}
	l.found = found
	return nil
}
