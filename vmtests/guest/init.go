package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Words of the kernel's command line by which the host talks to init.
const (
	wordCgroup = "iotrace.cgroup" // v1, v2, hybrid
	wordRun    = "iotrace.run"    // test to run
	wordShell  = "iotrace.shell"  // "1": a shell on the console instead
	wordTerm   = "iotrace.term"   // its kind of terminal
	wordSize   = "iotrace.size"   // and size, ROWSxCOLUMNS
	// how long the tests may take before they dump their stacks and fail
	wordTimeout = "iotrace.timeout"
)

// Environment variables that the tests in a guest see.
const (
	envInside = "IOTRACE_TEST_GUEST"
	envWorker = "IOTRACE_TEST_WORKER"
)

// Where init puts the programs of the initramfs.
const (
	programDir = "/opt/iotrace"
	tracerPath = programDir + "/iotrace-bpf"
	testsPath  = programDir + "/vmtests.test"
	workerPath = programDir + "/worker" // init too
)

// EarlyDir is the directory in the initramfs with the modules that lead to the root. Their
// names sort in the order of loading.
const EarlyDir = "modules"

// ExitPrefix begins the last line that a guest reports: the exit status of its
// tests follows. A guest without this line has failed, whatever else it reported.
const ExitPrefix = "iotrace-guest-exit "

// DmesgPrefix begins each line of the kernel log, sent when tests failed.
const DmesgPrefix = "iotrace-guest-dmesg "

// Main lets one static test binary be three programs: the tests themselves, PID
// 1 of a virtual machine, and the worker processes that do the I/O. It returns
// only in the first case. Call it first thing in TestMain.
func Main() {
	switch {
	case os.Getpid() == 1:
		if err := boot(); err != nil {
			fmt.Fprintf(os.Stderr, "init: %v\n", err)
		}
		syscall.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		select {}
	case os.Getenv(envWorker) != "":
		os.Exit(worker(os.Args[1:]))
	case os.Getenv(envUnit) != "":
		testsUnit()
	}
}

// Inside says whether this process runs in a guest (or on a machine used in place of
// one).
func Inside() bool { return os.Getenv(envInside) != "" }

func commandLine() map[string]string {
	words := map[string]string{}
	b, _ := os.ReadFile("/proc/cmdline")
	for _, w := range strings.Fields(string(b)) {
		k, v, _ := strings.Cut(w, "=")
		words[k] = v
	}
	return words
}

type mountPoint struct{ source, target, fstype, data string }

func mountAll(mounts []mountPoint) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount %s on %q: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

// boot is PID 1: it makes a small system, runs the tests and reports.
func boot() error {
	err := mountAll([]mountPoint{{"dev", "/dev", "devtmpfs", ""}, {"proc", "/proc", "proc", ""}, {"sys", "/sys", "sysfs", ""}})
	if err != nil {
		return err
	}
	if err := loadEarly(); err != nil {
		return err
	}
	words := commandLine()
	if err := enterRoot(); err != nil {
		return err
	}
	if words[wordInit] == "systemd" {
		return becomeSystemd()
	}
	if err := mountAll([]mountPoint{
		{"tmpfs", "/run", "tmpfs", ""}, {"tmpfs", "/tmp", "tmpfs", ""}, {"shm", "/dev/shm", "tmpfs", ""},
		{"devpts", "/dev/pts", "devpts", "ptmxmode=0666"},
		{"tracefs", "/sys/kernel/tracing", "tracefs", ""}, {"debugfs", "/sys/kernel/debug", "debugfs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", ""},
	}); err != nil {
		return err
	}
	if err := mountCgroups(words[wordCgroup]); err != nil {
		return err
	}
	for k, v := range map[string]string{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TERM": "linux", "LC_ALL": "C.UTF-8", envInside: "1"} {
		os.Setenv(k, v)
	}
	// No periodic writeback unless a scenario asks for it. It is switched off once
	// and early: the switch itself starts a flush, some time later.
	if err := os.WriteFile("/proc/sys/vm/dirty_writeback_centisecs", []byte(neverFlush), 0o644); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	if words[wordShell] != "" {
		return shell(words)
	}
	port, err := openResults()
	if err != nil {
		return err
	}
	defer port.Close()
	status := runTests(port, words[wordRun], words[wordTimeout])
	if status != 0 {
		sendDmesg(port)
	}
	fmt.Fprintf(port, "\n%s%d\n", ExitPrefix, status)
	return nil
}

// loadEarly loads the modules of the initramfs.
func loadEarly() error {
	files, err := filepath.Glob("/" + EarlyDir + "/*.ko")
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		// Some are for processors of another kind.
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("loading %q: %w", name, err)
		}
		f.Close()
		os.Remove(name) // gives the memory back
	}
	return nil
}

// enterRoot makes the image the root, with the initramfs's programs in it.
func enterRoot() error {
	root, err := waitDisk("iotroot")
	if err != nil {
		return err
	}
	modules, err := waitDisk("iotmodules")
	if err != nil {
		return err
	}
	const newRoot = "/newroot"
	if err := unix.Mount(root, newRoot, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount root %q: %w", root, err)
	}
	if err := unix.Mount(modules, newRoot+"/lib/modules", "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount modules %q: %w", modules, err)
	}
	if err := unix.Mount("programs", newRoot+programDir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %q: %w", programDir, err)
	}
	for from, to := range map[string]string{"/init": workerPath, "/vmtests.test": testsPath, "/iotrace-bpf": tracerPath} {
		if err := copyFile(from, newRoot+to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		os.Remove(from) // gives the memory back
	}
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(d, newRoot+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %q: %w", d, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// diskBySerial returns the device name ("nvme0n1") of the disk, "" if absent.
func diskBySerial(serial string) string {
	dirs, _ := os.ReadDir("/sys/block")
	for _, d := range dirs {
		// A path of an NVMe disk with several has its serial number and no device file.
		if b, _ := os.ReadFile(filepath.Join("/sys/block", d.Name(), "hidden")); strings.TrimSpace(string(b)) == "1" {
			continue
		}
		for _, attr := range []string{"device/serial", "serial"} { // nvme, virtio
			b, err := os.ReadFile(filepath.Join("/sys/block", d.Name(), attr))
			if err == nil && strings.TrimSpace(string(b)) == serial {
				return d.Name()
			}
		}
	}
	return ""
}

func waitDisk(serial string) (string, error) {
	var dev string
	err := poll(time.Minute, func() bool {
		name := diskBySerial(serial)
		dev = "/dev/" + name
		if name == "" {
			return false
		}
		_, err := os.Stat(dev)
		return err == nil
	})
	if err != nil {
		return "", fmt.Errorf("disk with serial %q: %w", serial, err)
	}
	return dev, nil
}

// v1Controllers are mounted one by one, as systemd and Docker expect them.
var v1Controllers = []string{"memory", "blkio", "cpu,cpuacct", "cpuset", "devices", "freezer", "pids", "net_cls,net_prio", "perf_event"}

const cgroupMount = "/sys/fs/cgroup"

func mountCgroups(mode string) error {
	switch mode {
	case "v2", "":
		if err := mountAll([]mountPoint{{"cgroup2", cgroupMount, "cgroup2", ""}}); err != nil {
			return err
		}
		// Without io: writeback then arrives without an owner in the bio, which
		// is the hard case. Tests that want it switch it on. A kernel may have been told to
		// have no memory controller.
		if have, err := os.ReadFile(cgroupMount + "/cgroup.controllers"); err != nil || !slices.Contains(strings.Fields(string(have)), "memory") {
			return err
		}
		return os.WriteFile(cgroupMount+"/cgroup.subtree_control", []byte("+memory"), 0o644)
	case "v1", "hybrid":
		if err := mountAll([]mountPoint{{"tmpfs", cgroupMount, "tmpfs", ""}}); err != nil {
			return err
		}
		for _, c := range v1Controllers {
			if err := mountAll([]mountPoint{{"cgroup", cgroupMount + "/" + c, "cgroup", c}}); err != nil {
				if c == "memory" {
					return err
				}
				os.Remove(cgroupMount + "/" + c) // not in this kernel
			}
		}
		for _, c := range []string{"cpu,cpuacct", "net_cls,net_prio"} {
			for _, one := range strings.Split(c, ",") {
				_ = os.Symlink(c, cgroupMount+"/"+one)
			}
		}
		if mode == "hybrid" {
			return mountAll([]mountPoint{{"cgroup2", cgroupMount + "/unified", "cgroup2", ""}})
		}
		return nil
	}
	return fmt.Errorf("cgroup mode %q is none of v1, v2, hybrid", mode)
}

// openResults loads the port's driver where it is a module and finds the port.
func openResults() (*os.File, error) {
	for _, m := range []string{"virtio_pci", "virtio_console"} {
		if out, err := exec.Command("modprobe", m).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("modprobe %s: %w: %s", m, err, out)
		}
	}
	var port *os.File
	err := poll(time.Minute, func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil || strings.TrimSpace(string(b)) != "iotrace.results" {
				continue
			}
			port, err = os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_WRONLY, 0)
			return err == nil
		}
		return false
	})
	if err != nil {
		return nil, fmt.Errorf("results port: %w", err)
	}
	return port, nil
}

// runTests runs this binary again as the test process, in a cgroup of its own, so
// the root cgroup holds the kernel's threads only.
func runTests(port io.Writer, run, timeout string) int {
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(port, "init: %v\n", err)
		return 1
	}
	// Started by a worker, which moves itself before it becomes the program.
	cmd := inCgroup("driver", testsPath, testArgs(run, timeout)...)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(port, "init: %v\n", err)
		return 1
	}
	w.Close()
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(port, r)
		close(copied)
	}()
	status := reap(cmd.Process.Pid)
	// A daemon that a test left behind may hold the pipe open.
	select {
	case <-copied:
	case <-time.After(5 * time.Second):
	}
	return status
}

func testArgs(run, timeout string) []string {
	return []string{"-test.v=test2json", "-test.run=" + run, "-test.timeout=" + timeout}
}

// reap waits for orphans, as PID 1 must, until pid itself has ended.
func reap(pid int) int {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 1
		case got == pid && ws.Exited():
			return ws.ExitStatus()
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal())
		}
	}
}

func sendDmesg(port io.Writer) {
	out, err := exec.Command("dmesg").Output()
	if err != nil {
		return
	}
	s := bufio.NewScanner(strings.NewReader(string(out)))
	for s.Scan() {
		fmt.Fprintf(port, "%s%s\n", DmesgPrefix, s.Text())
	}
}

// ShellReady is what the console says once the shell reads commands.
const ShellReady = "iotrace-bpf is in PATH; exit ends the machine."

// ShellWords are the words of the command line for a shell on a terminal of this
// kind (TERM, "" if it is none) and size.
func ShellWords(term string, rows, columns int) []string {
	words := []string{wordShell + "=1"}
	if rows > 0 && columns > 0 {
		words = append(words, fmt.Sprintf("%s=%dx%d", wordSize, rows, columns))
	}
	if term != "" && !strings.ContainsFunc(term, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	}) {
		words = append(words, wordTerm+"="+term)
	}
	return words
}

// shell gives a person the console: its own terminal, not /dev/console, which
// can control no session.
func shell(words map[string]string) error {
	name := "console"
	if b, err := os.ReadFile("/sys/class/tty/console/active"); err == nil && len(strings.Fields(string(b))) > 0 {
		f := strings.Fields(string(b))
		name = f[len(f)-1]
	}
	tty, err := os.OpenFile("/dev/"+name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	var size unix.Winsize
	if n, _ := fmt.Sscanf(words[wordSize], "%dx%d", &size.Row, &size.Col); n == 2 {
		if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &size); err != nil {
			return fmt.Errorf("size of %s: %w", tty.Name(), err)
		}
	}
	if words[wordTerm] != "" {
		os.Setenv("TERM", words[wordTerm])
	}
	os.Setenv("PATH", programDir+":"+os.Getenv("PATH"))
	os.Setenv("PS1", `guest:\w# `)
	cmd := exec.CommandContext(context.Background(), "bash", "--norc")
	cmd.Dir = "/root"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	fmt.Fprintf(tty, "\n%s\n", ShellReady)
	if err := cmd.Start(); err != nil {
		return err
	}
	reap(cmd.Process.Pid)
	return nil
}

// poll waits until ok returns true. Nothing in the guest sleeps for readiness.
func poll(limit time.Duration, ok func() bool) error {
	for end := time.Now().Add(limit); ; {
		if ok() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not ready after %s", limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
