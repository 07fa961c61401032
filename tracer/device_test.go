package tracer

import (
	"os"
	"path/filepath"
	"testing"
)

// tree is a sysfs of the given devices: names, their numbers, and what they lie on.
func tree(t *testing.T, devices map[string]string, slaves map[string][]string, loops map[string]string) *Devices {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "dev", "block"), 0o755))
	for name, dev := range devices {
		dir := filepath.Join(root, "devices", name)
		must(os.MkdirAll(filepath.Join(dir, "slaves"), 0o755))
		must(os.WriteFile(filepath.Join(dir, "dev"), []byte(dev+"\n"), 0o644))
		for _, s := range slaves[name] {
			must(os.Mkdir(filepath.Join(dir, "slaves", s), 0o755))
		}
		if file, ok := loops[name]; ok {
			must(os.Mkdir(filepath.Join(dir, "loop"), 0o755))
			must(os.WriteFile(filepath.Join(dir, "loop", "backing_file"), []byte(file+"\n"), 0o644))
		}
		must(os.Symlink(dir, filepath.Join(root, "dev", "block", dev)))
		must(os.MkdirAll(filepath.Join(root, "block"), 0o755))
		must(os.Symlink(dir, filepath.Join(root, "block", name)))
	}
	return &Devices{sys: root, proc: "/proc", last: map[Dev]Device{}}
}

func dev(major, minor uint32) Dev { return Dev(major<<20 | minor) }

func TestDevices(t *testing.T) {
	d := tree(t,
		map[string]string{
			"sda": "8:0", "sdb": "8:16", "md0": "9:0", "dm-0": "253:0", "dm-1": "253:1",
			"drbd0": "147:0", "bcache0": "251:0", "nbd0": "43:0", "rbd0": "252:0",
			"cciss!c0d0": "104:0", "loop0": "7:0", "loop1": "7:1", "loop2": "7:2",
		},
		map[string][]string{"md0": {"sda", "sdb"}, "dm-0": {"md0"}, "drbd0": {"sda"}, "bcache0": {"sda", "sdb"}},
		map[string]string{"loop0": "/proc/self/status", "loop2": "/no/such/file"},
	)
	for _, tt := range []struct {
		dev     Dev
		name    string
		stacked bool
	}{
		{dev(8, 0), "sda", false},
		{dev(9, 0), "md0", true},
		{dev(253, 0), "dm-0", true},
		{dev(253, 1), "dm-1", false}, // a target without a device below: zero, error
		{dev(147, 0), "drbd0", true},
		{dev(251, 0), "bcache0", true},
		{dev(43, 0), "nbd0", false}, // over a network
		{dev(252, 0), "rbd0", false},
		{dev(104, 0), "cciss/c0d0", false}, // sysfs writes ! for /
		{dev(7, 0), "loop0", false},        // over a file of no block device
		{dev(7, 1), "loop1", false},        // not attached
		{dev(7, 2), "loop2", true},         // over a file that cannot be looked at: rather not twice
		{dev(259, 4095), "", false},        // not there
	} {
		if got := d.Device(tt.dev); got.Name != tt.name || got.Stacked != tt.stacked || got.Dev != tt.dev {
			t.Errorf("%v: %+v, want %q, stacked %v", tt.dev, got, tt.name, tt.stacked)
		}
	}
	leaves, err := d.Leaves()
	if err != nil {
		t.Fatal(err)
	}
	if len(leaves) != 8 {
		t.Errorf("leaves %+v, want 8", leaves)
	}
}

// TestDeviceGone: what was known of a device that is gone still counts.
// TestDeviceAlias: the names that device mapper's and RBD's devices were given.
func TestDeviceAlias(t *testing.T) {
	d := tree(t, map[string]string{"sda": "8:0", "dm-0": "253:0", "rbd0": "252:0", "rbd1": "252:16", "rbd2": "252:32"}, nil, nil)
	for file, text := range map[string]string{
		"dm-0/dm/name": "vg0-data", "sda/device/name": "something else",
		"rbd0/device/pool": "k8s", "rbd0/device/name": "csi-vol-1", "rbd0/device/pool_ns": "", "rbd0/device/current_snap": "-",
		"rbd1/device/pool": "k8s", "rbd1/device/name": "db", "rbd1/device/pool_ns": "shop", "rbd1/device/current_snap": "monday",
	} {
		file = filepath.Join(d.sys, "devices", file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for of, want := range map[Dev]string{
		dev(8, 0): "", dev(253, 0): "vg0-data", dev(252, 0): "k8s/csi-vol-1", dev(252, 16): "k8s/shop/db@monday", dev(252, 32): "",
	} {
		if got := d.Device(of).Alias; got != want {
			t.Errorf("%v is called %q, want %q", of, got, want)
		}
	}
}

func TestDeviceGone(t *testing.T) {
	d := tree(t, map[string]string{"dm-0": "253:0", "sda": "8:0"}, map[string][]string{"dm-0": {"sda"}}, nil)
	if got := d.Device(dev(253, 0)); !got.Stacked {
		t.Fatalf("%+v", got)
	}
	if err := os.Remove(filepath.Join(d.sys, "dev", "block", "253:0")); err != nil {
		t.Fatal(err)
	}
	if got := d.Device(dev(253, 0)); !got.Stacked || got.Name != "dm-0" {
		t.Errorf("%+v, want what was known", got)
	}
}

func TestNVMePath(t *testing.T) {
	d := tree(t, map[string]string{"nvme0n1": "259:0", "nvme2n1": "259:3", "zd0": "230:0", "zdx": "8:0"}, nil, nil)
	d.proc = t.TempDir()
	stats := " 259       0 nvme0n1 1 0 8\n 259       3 nvme2n1 1 0 8\n 259       2 nvme2c2n1 1 0 8\n 259       4 nvme9c1n1 1 0 8\n 259       5 odd 1 0 8\n"
	if err := os.WriteFile(filepath.Join(d.proc, "diskstats"), []byte(stats), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Device{
		{Dev: dev(259, 2), Name: "nvme2n1", Head: dev(259, 3)},
		{Dev: dev(259, 3), Name: "nvme2n1"},
		{Dev: dev(259, 4), Name: "nvme9n1"}, // its head is gone
		{Dev: dev(259, 5)},
		{Dev: dev(259, 6)},
		{Dev: dev(230, 0), Name: "zd0", Stacked: true},
		{Dev: dev(8, 0), Name: "zdx"},
	} {
		if got := d.Device(want.Dev); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}
