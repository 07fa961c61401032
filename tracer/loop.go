package tracer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

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
	look  lookout
	known map[Dev]bpf.BlockLoopFile
}

func newLoops(files, outer *ebpf.Map, notes *ebpf.MapSpec, devices *Devices) *loops {
	return &loops{files: files, outer: outer, notes: notes, devices: devices, look: devices.look, known: map[Dev]bpf.BlockLoopFile{}}
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

// scan brings the map up to date with the loop devices that exist, if they may have
// changed since the last scan.
func (l *loops) scan() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.look.due() {
		return nil
	}
	whole, err := l.update()
	if err != nil || !whole {
		l.look.again()
	}
	return err
}

// update looks at all loop devices. whole is false when the file of one is not known.
func (l *loops) update() (whole bool, err error) {
	dirs, err := filepath.Glob(filepath.Join(l.devices.sys, "block", "loop*", "loop"))
	if err != nil {
		return false, err
	}
	whole = true
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
			whole = whole && (err == nil || errors.Is(err, errLoopDetached))
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
		return false, fmt.Errorf("storing the files of loop devices: %w", err)
	}
	return whole, nil
}
