// Package guest is the side of vmtests that runs inside the virtual machine: it
// is PID 1 there, it does the I/O in cgroups, it runs the tracer and reads its
// rows, and it reads the kernel's own counters to compare with.
//
// A scenario gets a *Guest, which is its testing.T with these helpers. A helper
// that fails ends the scenario, so no error can be forgotten.
package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Guest is one running scenario.
type Guest struct {
	*testing.T
	// Validate, if set, checks every line that a tracer prints.
	Validate func(line []byte) error

	serial  int // of the scenario in this process
	cgroups int // made so far
	loops   int
}

var scenarios atomic.Int64

// New wraps the T of a scenario.
func New(t *testing.T) *Guest { return &Guest{T: t, serial: int(scenarios.Add(1))} }

// Exec runs a program to its end and returns what it printed on standard output;
// a failure ends the scenario and shows all of it.
func (g *Guest) Exec(program string, args ...string) string {
	g.Helper()
	stdout, _ := g.exec(program, args...)
	return stdout
}

func (g *Guest) exec(program string, args ...string) (stdout, stderr string) {
	g.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		g.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// Try is Exec for programs that may fail.
func (g *Guest) Try(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).CombinedOutput()
	return string(out), err
}

// Modprobe loads kernel modules with what they depend on.
func (g *Guest) Modprobe(modules ...string) {
	g.Helper()
	for _, m := range modules {
		if exists("/sys/module/" + strings.ReplaceAll(m, "-", "_")) {
			continue // loaded, or built in and unknown to modprobe
		}
		g.Exec("modprobe", m)
	}
}

// WriteFile writes a file, most often one of the kernel's knobs.
func (g *Guest) WriteFile(path, text string) {
	g.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		g.Fatal(err)
	}
}

// ReadFile returns a file's text.
func (g *Guest) ReadFile(path string) string {
	g.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		g.Fatal(err)
	}
	return string(b)
}

// Knob sets a kernel setting until the scenario's end.
func (g *Guest) Knob(path, value string) {
	g.Helper()
	old := strings.TrimSpace(g.ReadFile(path))
	if _, rest, ok := strings.Cut(old, "["); ok { // one of several that are listed
		old, _, _ = strings.Cut(rest, "]")
	}
	if old == value {
		return // writing some of them has an effect of its own
	}
	g.WriteFile(path, value)
	g.Cleanup(func() {
		if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
			g.Errorf("restore %s: %v", path, err)
		}
	})
}

// neverFlush is an interval of an hour. Zero means never, but makes the kernel
// flush a device without history at once.
const neverFlush = "360000"

// HoldWriteback keeps dirty pages in memory until a sync: no timer and no shortage
// of memory flushes them.
func (g *Guest) HoldWriteback() {
	g.Helper()
	g.Knob("/proc/sys/vm/dirty_writeback_centisecs", neverFlush)
	g.Knob("/proc/sys/vm/dirty_expire_centisecs", "360000")
	g.Knob("/proc/sys/vm/dirty_ratio", "90")
	g.Knob("/proc/sys/vm/dirty_background_ratio", "80")
}

// DropCaches forgets every clean page, so that reads are cold.
func (g *Guest) DropCaches() {
	g.Helper()
	g.Sync()
	// Pages on per-processor lists stay in the cache, and pages that stay return to
	// such a list. Compaction first empties these lists.
	for range 2 {
		g.WriteFile("/proc/sys/vm/compact_memory", "1")
		g.WriteFile("/proc/sys/vm/drop_caches", "3")
	}
}

// Sync flushes all dirty pages, as a process outside all test cgroups, and waits
// until no page is dirty or under writeback. From 6.19 on sync(2) does not wait for
// FUSE, so Sync polls the counters, after each processor has added its own counts.
// It reads the dirty pages first, because a page is under writeback before it is
// clean.
func (g *Guest) Sync() {
	g.Helper()
	unix.Sync()
	g.Eventually("dirty pages written", func() bool {
		g.everyProcessor()
		if g.meminfo("Dirty") > 0 {
			unix.Sync()
			return false
		}
		return g.meminfo("Writeback")+g.meminfo("NFS_Unstable")+g.meminfo("WritebackTmp") == 0
	})
}

// everyProcessor waits until each processor has run a piece of work, which adds its
// own counts to the totals. Interrupts that it was handling have then ended.
func (g *Guest) everyProcessor() {
	g.Helper()
	err := os.WriteFile("/proc/sys/vm/stat_refresh", []byte("1"), 0o644)
	// Up to 5.12 the kernel answers this, after the work, when a counter is negative for a
	// moment.
	if err != nil && !errors.Is(err, unix.EINVAL) {
		g.Fatal(err)
	}
}

// Meminfo returns a line of /proc/meminfo in bytes, 0 if it is not there.
func (g *Guest) Meminfo(field string) int64 { g.Helper(); return g.meminfo(field) }

func (g *Guest) meminfo(field string) int64 {
	g.Helper()
	for _, line := range strings.Split(g.ReadFile("/proc/meminfo"), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// patience bounds every wait. It is no claim about speed: an emulated guest on a
// busy machine is slow, and only one that hangs reaches it.
const patience = 4 * time.Minute

// Eventually polls until ok says so and fails the scenario if it never does.
func (g *Guest) Eventually(what string, ok func() bool) {
	g.Helper()
	if err := poll(patience, ok); err != nil {
		g.Fatalf("%s: %v", what, err)
	}
}

// Kernel returns the running kernel's version as numbers: 6, 12.
func (g *Guest) Kernel() (major, minor int) {
	g.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		g.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		g.Fatal(err)
	}
	return major, minor
}

// AtLeast says whether the kernel is of this version or later. It is for
// differences that are right (a feature that came later), not for excuses: what
// a kernel does not support is declared in the scenario's Since.
func (g *Guest) AtLeast(major, minor int) bool {
	g.Helper()
	a, b := g.Kernel()
	return a > major || a == major && b >= minor
}

// CgroupV1 says whether the memory controller is on version 1.
func (g *Guest) CgroupV1() bool {
	b, _ := os.ReadFile("/proc/mounts")
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup" && hasOption(f[3], "memory") {
			return true
		}
	}
	return false
}

// Mount mounts and, at the scenario's end, unmounts. options are mount(8)'s -o.
func (g *Guest) Mount(fstype, source, target, options string) {
	g.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		g.Fatal(err)
	}
	args := []string{"-t", fstype}
	if options != "" {
		args = append(args, "-o", options)
	}
	g.Exec("mount", append(args, source, target)...)
	g.Cleanup(func() { g.Unmount(target) })
}

// Unmount unmounts what is mounted there, waiting for its last user; it is no error
// if nothing is mounted.
func (g *Guest) Unmount(target string) {
	g.Helper()
	var out string
	err := poll(patience, func() bool {
		if !mounted(target) {
			return true
		}
		var err error
		out, err = g.Try("umount", target)
		return err == nil
	})
	if err != nil {
		g.Errorf("umount %q: %v: %s", target, err, out)
	}
}

// Mounted says whether something is mounted there.
func (g *Guest) Mounted(target string) bool { return mounted(target) }

func mounted(target string) bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 4 && fields[4] == target {
			return true
		}
	}
	return false
}

// MountDevice returns major:minor of the file system at a path, as the tracer names it.
func (g *Guest) MountDevice(path string) string {
	g.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		g.Fatalf("stat %q: %v", path, err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
}

// Int reads a file that holds one number.
func (g *Guest) Int(path string) int64 {
	g.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(g.ReadFile(path)), 10, 64)
	if err != nil {
		g.Fatalf("%s: %v", path, err)
	}
	return n
}
