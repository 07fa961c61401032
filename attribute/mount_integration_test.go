//go:build integration

package attribute

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// A mount that comes and goes while nobody asks is named afterwards: the kernel
// told of it.
func TestMountNobodyAskedFor(t *testing.T) {
	r := startResolver(t, Options{OnlyListedSockets: true})
	dir := t.TempDir()
	if err := unix.Mount("moment", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	known := func() bool {
		r.mounts.mu.Lock()
		defer r.mounts.mu.Unlock()
		_, ok := r.mounts.host.byDev[dev]
		return ok
	}
	enginetest.Poll(t, patience, "the mount is seen", known)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, patience, "and that it is gone", func() bool { return !known() })
	if m, ok := r.Mount(dev, 0); !ok || m.Source != "moment" || m.Point != dir {
		t.Errorf("Mount(%s) = %+v, %v", dev, m, ok)
	}
}
