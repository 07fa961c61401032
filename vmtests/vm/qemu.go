package vm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ResultsPort is the name of the virtio-serial port on which the guest reports.
const ResultsPort = "iotrace.results"

// Serial numbers by which the guest finds its disks: device names depend on
// probing order.
const (
	SerialRoot    = "iotroot"
	SerialModules = "iotmodules"
	SerialNVMe    = "iotnvme"   // scratch disk on NVMe
	SerialVirtio  = "iotvirtio" // scratch disk on virtio-blk
	SerialPaths   = "iotpaths"  // disk with two paths on NVMe, if there is one
)

// Guest is one virtual machine to boot.
type Guest struct {
	Kernel    Kernel
	Root      string // image of BuildImage; the guest's writes to it are discarded
	Initramfs string
	Append    []string // more words for the kernel's command line
	MemoryMiB int
	CPUs      int           // 0 means 2
	DiskMiB   int64         // size of each scratch disk
	Accel     Accel         // how to run it
	BootLimit time.Duration // killed if it has reported nothing by then; 0 sets no limit
	Deadline  time.Duration // killed this long after it began to report
	Console   io.Writer     // everything the kernel says; may be nil
	Results   io.Writer     // everything the guest reports, as it comes
	Terminal  *os.File      // if not nil, what is typed on the console; Ctrl-A X ends QEMU
	Shares    []Share       // directories of this machine on virtiofs
	Paths     bool          // has a disk with two paths
	Network   bool          // it has a network card, behind which HostAddress is this machine
}

// Addresses of a guest with a network card. A server that listens on this
// machine's loopback is reached at HostAddress.
const (
	HostAddress  = "10.0.2.2"
	GuestAddress = "10.0.2.15/24"
)

// Resources is the time that a guest used.
type Resources struct {
	Wall      time.Duration // from QEMU's start to its end
	Boot      time.Duration // until the guest first reported something; 0 if it never did
	Processor time.Duration // of this machine: QEMU's user and system time
}

// Accel is QEMU's way to run guest code.
type Accel string

// KVM runs on the processor, TCG emulates it.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// ErrDeadline means that the guest had to be killed.
var ErrDeadline = errors.New("guest was killed at its deadline")

// ErrNoBoot means that the guest was killed because it had not begun to report.
var ErrNoBoot = errors.New("guest never began to report")

func program(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "qemu-system-x86_64", nil
	case "arm64":
		return "qemu-system-aarch64", nil
	}
	return "", fmt.Errorf("no QEMU known for architecture %q", arch)
}

// args builds QEMU's command line. dir holds scratch files and the results socket.
func (g Guest) args(dir string) ([]string, error) {
	var a []string
	console := "ttyS0"
	switch {
	case g.Kernel.Arch == "arm64" && g.Accel == KVM:
		a, console = append(a, "-machine", "virt", "-cpu", "host"), "ttyAMA0"
	case g.Kernel.Arch == "arm64":
		// pauth-impdef: the architected pointer-authentication hash takes most
		// of an emulated guest's time.
		a, console = append(a, "-machine", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0"
	case g.Accel == KVM:
		a = append(a, "-machine", "q35", "-cpu", "host")
	default:
		// cx16=off: QEMU 7.2 mis-executes cmpxchg16b, and 6.12 guests then
		// corrupt their slabs at random.
		a = append(a, "-machine", "q35", "-cpu", "max,cx16=off")
	}
	a = append(a, "-accel", string(g.Accel), "-smp", fmt.Sprint(cmp.Or(g.CPUs, 2)), "-m", fmt.Sprint(g.MemoryMiB),
		"-nodefaults", "-no-reboot", "-display", "none", "-kernel", g.Kernel.Image, "-initrd", g.Initramfs)
	if g.Network {
		// Without a ROM to boot from, which is in a package of its own.
		a = append(a, "-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile=")
	} else {
		a = append(a, "-nic", "none")
	}
	drive := func(id, file, options string) {
		a = append(a, "-drive", "if=none,id="+id+",format=raw,file="+strings.ReplaceAll(file, ",", ",,")+options)
	}
	drive("root", g.Root, ",snapshot=on")
	drive("modules", g.Kernel.Modules, ",readonly=on")
	a = append(a, "-device", "nvme,drive=root,serial="+SerialRoot, "-device", "nvme,drive=modules,serial="+SerialModules)
	for _, serial := range []string{SerialNVMe, SerialVirtio} {
		file := filepath.Join(dir, serial+".raw")
		f, err := os.Create(file)
		if err != nil {
			return nil, err
		}
		err = f.Truncate(g.DiskMiB << 20)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, err
		}
		drive(serial, file, ",cache=unsafe,discard=unmap")
	}
	a = append(a, "-device", "nvme,drive="+SerialNVMe+",serial="+SerialNVMe,
		"-device", "virtio-blk-pci,drive="+SerialVirtio+",serial="+SerialVirtio,
		"-device", "virtio-scsi-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=results,path="+filepath.Join(dir, "results.sock"),
		"-device", "virtserialport,chardev=results,name="+ResultsPort)
	if g.Paths {
		file := filepath.Join(dir, SerialPaths+".raw")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return nil, err
		}
		if err := os.Truncate(file, 64<<20); err != nil {
			return nil, err
		}
		drive(SerialPaths, file, ",cache=unsafe")
		a = append(a, "-device", "nvme-subsys,id=paths",
			"-device", "nvme,subsys=paths,serial="+SerialPaths, "-device", "nvme,subsys=paths,serial="+SerialPaths,
			"-device", "nvme-ns,drive="+SerialPaths+",nsid=1,shared=on")
	}
	if slices.ContainsFunc(g.Shares, func(s Share) bool { return !s.P9 }) {
		// Another process serves the guest's requests in the guest's memory.
		a = append(a, "-object", fmt.Sprintf("memory-backend-memfd,id=shared,share=on,size=%dM", g.MemoryMiB), "-machine", "memory-backend=shared")
	}
	for i, s := range g.Shares {
		if s.P9 {
			a = append(a, "-fsdev", fmt.Sprintf("local,id=share%d,security_model=none,path=%s", i, strings.ReplaceAll(s.Dir, ",", ",,")),
				"-device", fmt.Sprintf("virtio-9p-pci,fsdev=share%d,mount_tag=%s", i, s.Tag))
			continue
		}
		a = append(a, "-chardev", fmt.Sprintf("socket,id=share%d,path=%s", i, strings.ReplaceAll(s.socket(dir), ",", ",,")),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=share%d,tag=%s", i, s.Tag))
	}
	if g.Terminal != nil {
		a = append(a, "-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console", "-mon", "chardev=console")
	} else {
		a = append(a, "-serial", "stdio")
	}
	// oops=panic and panic=-1 end QEMU at once, so that a broken guest is never waited
	// for. The timeouts are generous, because an emulated processor on a busy machine
	// is slow, not stuck. On such a machine the kernel would also take the processor's
	// clock for broken and switch to a much slower one.
	words := append([]string{"console=" + console, "panic=-1", "oops=panic", "loglevel=5", "rcupdate.rcu_cpu_stall_timeout=90",
		"watchdog_thresh=60", "net.ifnames=0", "mitigations=off", "random.trust_cpu=on", "tsc=reliable"}, g.Append...)
	return append(a, "-append", strings.Join(words, " ")), nil
}

// first notes the time of the first write.
type first struct {
	io.Writer
	at    time.Time // may be read once began is closed
	began chan struct{}
}

func (f *first) Write(b []byte) (int, error) {
	if f.at.IsZero() {
		f.at = time.Now()
		close(f.began)
	}
	return f.Writer.Write(b)
}

// Boot runs the guest to its end. The error says what went wrong with the
// machine itself, not with tests in it.
func (g Guest) Boot(ctx context.Context) (Resources, error) {
	var used Resources
	qemu, err := program(g.Kernel.Arch)
	if err != nil {
		return used, err
	}
	dir, err := os.MkdirTemp("", "iotrace-vm-")
	if err != nil {
		return used, err
	}
	defer os.RemoveAll(dir)
	args, err := g.args(dir)
	if err != nil {
		return used, err
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "results.sock"))
	if err != nil {
		return used, err
	}
	defer ln.Close()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	for _, s := range g.Shares {
		if s.P9 {
			continue
		}
		end, err := s.serve(ctx, dir)
		if err != nil {
			return used, err
		}
		defer end()
	}
	results := &first{Writer: io.Discard, began: make(chan struct{})}
	if g.Results != nil {
		results.Writer = g.Results
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { // ends when QEMU closes its end or the listener is closed
		defer wg.Done()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(results, c)
	}()
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that was killed leaves no guest behind
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = g.Console, &stderr
	if g.Terminal != nil {
		cmd.Stdin = g.Terminal
	}
	begin := time.Now()
	ended := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		var bootLimit <-chan time.Time
		if g.BootLimit > 0 {
			bootLimit = time.After(g.BootLimit)
		}
		// The time to boot says nothing about the tests, so the deadline does not include it.
		select {
		case <-ended:
			return
		case <-bootLimit:
			giveUp(fmt.Errorf("%w in %s", ErrNoBoot, g.BootLimit))
			return
		case <-results.began:
		}
		select {
		case <-ended:
		case <-time.After(g.Deadline):
			giveUp(fmt.Errorf("%w of %s", ErrDeadline, g.Deadline))
		}
	}()
	runErr := cmd.Run()
	close(ended)
	used.Wall = time.Since(begin)
	ln.Close()
	wg.Wait()
	if !results.at.IsZero() {
		used.Boot = results.at.Sub(begin)
	}
	if p := cmd.ProcessState; p != nil {
		used.Processor = p.UserTime() + p.SystemTime()
	}
	if cause := context.Cause(ctx); errors.Is(cause, ErrDeadline) || errors.Is(cause, ErrNoBoot) {
		return used, cause
	}
	if runErr != nil {
		return used, fmt.Errorf("%s: %w\n%s", qemu, runErr, tail(stderr.Bytes(), 2000))
	}
	return used, nil
}

// kvmProbe is the time limit for a kernel's first message under KVM.
const kvmProbe = 15 * time.Second

// Probe finds out whether KVM runs this kernel. A /dev/kvm that can be opened is
// not enough: nested ones start a guest and then fail at some instruction. So Probe
// boots the kernel without a root file system, until it stops because there is
// none.
func Probe(ctx context.Context, k Kernel) Accel {
	hostArch := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}
	out, err := exec.CommandContext(ctx, "uname", "-m").Output()
	if err != nil || hostArch[strings.TrimSpace(string(out))] != k.Arch {
		return TCG
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG
	}
	f.Close()
	qemu, err := program(k.Arch)
	if err != nil {
		return TCG
	}
	machine, console := "q35", "ttyS0"
	if k.Arch == "arm64" {
		machine, console = "virt", "ttyAMA0"
	}
	ctx, cancel := context.WithTimeout(ctx, kvmProbe)
	defer cancel()
	said, err := exec.CommandContext(ctx, qemu, "-machine", machine, "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "512",
		"-nodefaults", "-no-reboot", "-display", "none", "-nic", "none", "-serial", "stdio",
		"-kernel", k.Image, "-append", "panic=-1 console="+console).Output()
	if err != nil || !bytes.Contains(said, []byte("Unable to mount root fs")) {
		return TCG
	}
	return KVM
}
