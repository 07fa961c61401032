package tracer

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
)

// mapMemoryAge is how long a sum of map memory is good for. Most maps never change
// their size, and asking the kernel takes a few system calls for each map.
const mapMemoryAge = 30 * time.Second

// mapMemory remembers how much kernel memory the maps take.
type mapMemory struct {
	mu    sync.Mutex
	bytes uint64
	maps  int
	at    time.Time
}

// MapBytes returns the kernel memory of all BPF maps of this tracer in bytes, as the
// kernel tells it in /proc/self/fdinfo: exact since 6.4 (90a5527d7686), before that
// from the sizes of keys and values. It is up to 30 seconds old.
func (t *Tracer) MapBytes() uint64 {
	t.mu.Lock()
	var list []*ebpf.Map
	for _, o := range t.objects {
		list = slices.AppendSeq(list, maps.Values(o.maps))
	}
	t.mu.Unlock()
	c := &t.memory
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.maps == len(list) && time.Since(c.at) < mapMemoryAge {
		return c.bytes
	}
	c.bytes, c.maps, c.at = 0, len(list), time.Now()
	seen := map[ebpf.MapID]bool{}
	for _, m := range list {
		info, err := m.Info()
		if err != nil {
			continue
		}
		if id, ok := info.ID(); ok && !seen[id] { // shared maps are in every object
			seen[id] = true
			bytes, _ := info.Memlock()
			c.bytes += bytes
		}
	}
	return c.bytes
}
