package tracer

import (
	"os"
	"path/filepath"
	"strings"
)

// Leaves returns every leaf device that exists now, for comparison with
// /proc/diskstats.
func (d *Devices) Leaves() ([]Device, error) {
	entries, err := os.ReadDir(filepath.Join(d.sys, "block"))
	if err != nil {
		return nil, err
	}
	var leaves []Device
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(d.sys, "block", e.Name(), "dev"))
		if err != nil {
			continue
		}
		dev, ok := parseDev(strings.TrimSpace(string(raw)))
		if !ok {
			continue
		}
		if found := d.Device(dev); !found.Stacked {
			leaves = append(leaves, found)
		}
	}
	return leaves, nil
}
