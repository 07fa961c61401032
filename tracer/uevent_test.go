package tracer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseUevent(t *testing.T) {
	event := func(fields ...string) []byte { return []byte(strings.Join(fields, "\x00") + "\x00") }
	for _, tt := range []struct {
		event []byte
		loop  string
		ok    bool
	}{
		{event("change@/devices/virtual/block/loop7", "ACTION=change", "SUBSYSTEM=block", "DEVNAME=loop7"), "loop7", true},
		{event("add@/devices/virtual/block/zram1", "ACTION=add", "SUBSYSTEM=block"), "", true},
		{event("add@/module/vxlan", "ACTION=add", "SUBSYSTEM=module"), "", false},
		{event("add@/devices/virtual/bdi/253:1", "ACTION=add", "SUBSYSTEM=bdi"), "", false},
		{event("change@/devices/virtual/block/x", "XSUBSYSTEM=block", "SUBSYSTEM=blocks"), "", false},
		{event("libudev", "SUBSYSTEM=block"), "", false}, // what udev sends to its own group
		{nil, "", false},
		{[]byte("add@"), "", false},
		{[]byte("add@/a\x00SUBSYSTEM=block"), "", true}, // cut short
	} {
		if loop, ok := parseUevent(tt.event); loop != tt.loop || ok != tt.ok {
			t.Errorf("%q: %q, %v, want %q, %v", tt.event, loop, ok, tt.loop, tt.ok)
		}
	}
}

// TestLookout: a look is due after each change, until one began late enough to see all
// of it, and after an incomplete look.
func TestLookout(t *testing.T) {
	w := &deviceWatch{}
	l := lookout{watch: w}
	expect := func(when string, want bool) {
		t.Helper()
		if got := l.due(); got != want {
			t.Errorf("%s: due %v", when, got)
		}
	}
	expect("at first", true)
	expect("no change", false)
	w.changed()
	expect("a change", true)
	expect("it may still be under way", true)
	w.at = w.at.Add(-deviceSettle)
	expect("it is over", false)
	l.again()
	expect("the last look was incomplete", true)
	expect("no change", false)
	unwatched := lookout{}
	for range 2 {
		if !unwatched.due() {
			t.Error("without a watch each look is due")
		}
	}
}

// TestDeaf: where one of the signs cannot be read, each poll is a change.
func TestDeaf(t *testing.T) {
	w := &deviceWatch{}
	if w.deaf = w.openSizes(filepath.Join(t.TempDir(), "none")); w.deaf == nil {
		t.Fatal("a file that does not exist was opened")
	}
	l := lookout{watch: w}
	for range 3 {
		w.poll()
		if !l.due() {
			t.Error("no look is due")
		}
	}
}

// TestSizes: a change of any size is seen, whatever their number.
func TestSizes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "partitions")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("   7        0     976563 loop0\n", 1000)
	w := &deviceWatch{}
	write(long)
	if err := w.openSizes(name); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, text := range []string{long, "", " 253        0      32768 zram0\n", long + "x\n"} {
		write(text)
		for range 2 {
			if err := w.readSizes(); err != nil || string(w.now) != text {
				t.Fatalf("%v: %d bytes, want %d", err, len(w.now), len(text))
			}
			w.now, w.last = w.last, w.now
		}
	}
}

// TestDeviceCached: a watched device is looked at once, and again after a change.
func TestDeviceCached(t *testing.T) {
	d := tree(t, map[string]string{"dm-0": "253:0", "loop0": "7:0"}, nil, map[string]string{"loop0": "/no/such/file"})
	w := &deviceWatch{}
	d.look = lookout{watch: w}
	stacked := func(dev Dev, want bool) {
		t.Helper()
		if got := d.Device(dev); got.Stacked != want {
			t.Errorf("%+v, want stacked %v", got, want)
		}
	}
	dm, loop := dev(253, 0), dev(7, 0)
	stacked(dm, false)
	if err := os.Mkdir(filepath.Join(d.sys, "devices", "dm-0", "slaves", "sda"), 0o755); err != nil {
		t.Fatal(err)
	}
	stacked(dm, false) // nothing announced it
	w.changed()
	stacked(dm, true)
	w.at = w.at.Add(-time.Hour)
	stacked(loop, true) // a file that cannot be looked at: rather not twice
	if err := os.WriteFile(filepath.Join(d.sys, "devices", "loop0", "loop", "backing_file"), []byte("/proc/self/status\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stacked(loop, false) // what is not known is asked again without a change
}
