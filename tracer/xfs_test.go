package tracer

import (
	"maps"
	"path/filepath"
	"testing"
)

// TestXFSList: the directory of XFS in sysfs names the devices that are mounted.
func TestXFSList(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []string
		want    map[Dev]bool
	}{
		{"no module", nil, nil},
		{"none", []string{"stats/stats", "debug/log_recovery_delay"}, map[Dev]bool{}},
		{"several", []string{"stats/stats", "sda1/log/log_tail_lsn", "dm-0/log/log_tail_lsn", "cciss!c0d0/log/log_tail_lsn"},
			map[Dev]bool{8<<20 | 1: true, 253 << 20: true, 104 << 20: true}},
		{"a device that is gone", []string{"sdz/log/log_tail_lsn"}, map[Dev]bool{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &Devices{sys: t.TempDir()}
			for name, dev := range map[string]string{"sda1": "8:1", "dm-0": "253:0", "cciss!c0d0": "104:0"} {
				put(t, filepath.Join(d.sys, "class/block", name, "dev"), dev+"\n")
			}
			for _, name := range c.entries {
				put(t, filepath.Join(d.sys, "fs/xfs", name), "0\n")
			}
			x := newXFSLogs(&loader{core: &core{}}, d)
			found, whole, err := x.list()
			if err != nil || !whole || !maps.Equal(found, c.want) {
				t.Errorf("found %v, whole %v, %v; want %v", found, whole, err, c.want)
			}
			if x.needed() != (len(c.want) > 0) {
				t.Errorf("needed: %v", x.needed())
			}
		})
	}
}
