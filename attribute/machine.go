package attribute

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	machineAgain = 30 * time.Second // between two looks at one machine
	maxMachines  = 1 << 12
	maxConfig    = 64 << 10
)

// machines knows what only files say about containers and machines that no runtime
// reports: the name that belongs to a number of Proxmox, and whether an LXC container is
// one of LXD or Incus. The files may be on a file system that hangs (/etc/pve is FUSE):
// they are read in the background.
type machines struct {
	root string // directory that stands for /
	now  func() time.Time
	todo chan machineKey

	mu    sync.Mutex
	known map[machineKey]machineFacts
}

type machineKey struct{ runtime, id string }

type machineFacts struct {
	name, project string // "" when the files do not say it
	asked         time.Time
}

func newMachines(root string, now func() time.Time) *machines {
	return &machines{root: root, now: now, todo: make(chan machineKey, 256), known: map[machineKey]machineFacts{}}
}

// get returns what is known. It never waits: what is not known is looked up.
func (m *machines) get(runtime, id string) machineFacts {
	k := machineKey{runtime, id}
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.known[k]
	if now := m.now(); f.asked.IsZero() || now.Sub(f.asked) >= machineAgain {
		select {
		case m.todo <- k:
			if len(m.known) >= maxMachines {
				clear(m.known)
			}
			f.asked = now
			m.known[k] = f
		default:
		}
	}
	return f
}

func (m *machines) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case k := <-m.todo:
			m.look(k)
		}
	}
}

// look reads the files. What they no longer say is kept: late I/O needs its name.
func (m *machines) look(k machineKey) {
	name, project := m.read(k)
	if name == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.known[k]
	f.name, f.project = clip(name, maxText), clip(project, maxText)
	m.known[k] = f
}

func (m *machines) read(k machineKey) (name, project string) {
	switch {
	case k.runtime == runtimeProxmox:
		return m.config("etc/pve/qemu-server/"+k.id+".conf", "name"), "" // qm.conf(5)
	case isDigits(k.id):
		return m.config("etc/pve/lxc/"+k.id+".conf", "hostname"), "" // pct.conf(5)
	}
	// LXD and Incus write project_instance; neither part has an underscore. An instance of
	// plain LXC may have one.
	project, name, ok := strings.Cut(k.id, "_")
	if !ok || project == "" || name == "" || strings.Contains(name, "_") || m.exists("var/lib/lxc/"+k.id+"/config") {
		return "", ""
	}
	for _, dir := range []string{"var/lib/incus/containers", "var/lib/lxd/containers", "var/snap/lxd/common/lxd/containers",
		"run/incus", "var/log/incus", "var/log/lxd", "var/snap/lxd/common/lxd/logs"} {
		if m.exists(dir + "/" + k.id) {
			return name, project
		}
	}
	return "", ""
}

func (m *machines) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(m.root, path))
	return err == nil
}

// config returns the value of a key in the first section of a configuration of Proxmox.
// Sections behind it are snapshots.
func (m *machines) config(path, key string) string {
	f, err := os.Open(filepath.Join(m.root, path))
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(io.LimitReader(f, maxConfig)); s.Scan() && !strings.HasPrefix(s.Text(), "["); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
