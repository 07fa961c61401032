//go:build vm

package vmtests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestFaults injects faults under load that no test may inject on its host. Totals
// must still equal /proc/diskstats.
func TestFaults(t *testing.T) {
	suite{
		// It has no source: these scenarios make no promises about kernels.
		scenarios: []scenario{
			{name: "cpu_hotplug", run: faultsHotplug},
			{name: "clock_step", run: faultsClock},
			{name: "module_removed", run: faultsModule},
			{name: "least_privilege", run: faultsPrivilege},
			{name: "record_hangs", run: faultsRecordHangs},
		},
	}.test(t)
}

// load writes to a disk at full speed until it is stopped.
type load struct {
	g   *guest.Guest
	cmd *exec.Cmd
}

func startLoad(g *guest.Guest, d guest.Disk) *load {
	g.Helper()
	before := d.Stats().WriteOps
	cmd := exec.Command("fio", "--name=load", "--thread", "--filename="+d.Path(), "--rw=randwrite", "--bs=4k", "--iodepth=16", "--ioengine=io_uring",
		"--direct=1", "--time_based", "--runtime=600", "--size=64m", "--numjobs=2", "--output=/dev/null")
	if major, _ := g.Kernel(); major < 6 {
		cmd.Args = append(cmd.Args, "--ioengine=psync")
	}
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	l := &load{g, cmd}
	g.Cleanup(l.stop)
	g.Eventually("load", func() bool { return rawWrites(g, d) > before+1000 })
	return l
}

// rawWrites does not wait for an idle disk: under load the disk is never idle.
func rawWrites(g *guest.Guest, d guest.Disk) int64 {
	g.Helper()
	var n int64
	text := g.ReadFile("/sys/block/" + d.Name + "/stat")
	for i, f := range strings.Fields(text) {
		if i == 4 {
			n, _ = strconv.ParseInt(f, 10, 64)
		}
	}
	return n
}

// more waits until n more writes are done.
func (l *load) more(d guest.Disk, n int64) {
	l.g.Helper()
	before := rawWrites(l.g, d)
	l.g.Eventually("more load", func() bool { return rawWrites(l.g, d) > before+n })
}

func (l *load) stop() {
	if l.cmd.ProcessState == nil {
		l.cmd.Process.Signal(os.Interrupt)
		l.cmd.Wait()
	}
}

func faultsHotplug(g *guest.Guest) {
	const knob = "/sys/devices/system/cpu/cpu1/online"
	d := g.NVMe()
	t := traceBlock(g, d)
	l := startLoad(g, d)
	for range 3 {
		g.WriteFile(knob, "0")
		l.more(d, 500)
		g.WriteFile(knob, "1")
		l.more(d, 500)
	}
	l.stop()
	t.stop()
}

func faultsClock(g *guest.Guest) {
	d := g.NVMe()
	t := traceBlock(g, d)
	l := startLoad(g, d)
	step := func(by time.Duration) {
		ts := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			g.Fatal(err)
		}
		l.more(d, 1000)
	}
	step(24 * time.Hour)
	step(-48 * time.Hour)
	step(24 * time.Hour)
	l.stop()
	t.stop()
	for _, doc := range t.Where("event.dataset", "iotrace.status") {
		if n := doc.Int("event.duration"); n < 0 || n > int64(time.Hour) {
			g.Errorf("an interval of %d ns", n)
		}
	}
}

// faultsModule: a driver is unloaded with its disk while the tracer reads the
// disk's counts, and then loaded again.
func faultsModule(g *guest.Guest) {
	scratch := g.NVMe()
	t := traceBlock(g, scratch)
	l := startLoad(g, scratch)
	var wrote int64
	for range 3 {
		g.Exec("modprobe", "null_blk", "nr_devices=1", "gb=1", "queue_mode=2")
		d := g.Disk("nullb0")
		g.Exec("dd", "if=/dev/zero", "of="+d.Path(), "bs=4k", "count=1009", "oflag=direct", "status=none")
		wrote += 1009 * 4096
		g.Exec("modprobe", "-r", "null_blk")
	}
	l.stop()
	g.Sync()
	truth := scratch.Stats().Sub(t.before[0])
	t.Output = t.tr.Stop()
	t.Equal("written to the disk that stays", t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", scratch.ID()), truth.WriteBytes)
	// One disk's completion may interrupt the other's; then the kernel skips its program.
	if n := t.Lost() - t.LostOf("latencies"); n != 0 {
		g.Errorf("lost something other than latencies: %s", t.LostWhat())
	}
	got := t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.name", "nullb0")
	if got != wrote {
		// A disk that is gone before the end of its first interval has a number and no name.
		got = t.Sum("iotrace.write.bytes", "iotrace.source", "block") - t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", scratch.ID())
	}
	t.Equal("written to disks that are gone", got, wrote)
}

// faultsRecordHangs records to an NFS mount whose server goes away: standard output goes on,
// and SIGINT ends the run while the mount still hangs.
func faultsRecordHangs(g *guest.Guest) {
	m := g.NFS("3", "sync") // each write waits for the server
	dir := g.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			g.Fatal(err)
		}
		g.Cleanup(func() { f.Close() })
		return f
	}
	ready, stdout, stderr := filepath.Join(dir, "ready"), file("stdout"), file("stderr")
	cmd := exec.Command(g.Tool(), "--output", "ndjson", "--source", "block", "--vxlan=false", "--interval", "200ms", "--ready-file", ready, "--record", m.File("recording"))
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	g.Cleanup(func() {
		if g.Failed() { // its goroutines say what it waits for
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
			}
			g.Logf("standard error: %s\nstandard output: %s", g.ReadFile(stderr.Name()), g.ReadFile(stdout.Name()))
		}
		_ = cmd.Process.Kill()
	})
	g.Eventually("it is ready", func() bool { _, err := os.Stat(ready); return err == nil })
	g.NFSServerDown()
	up := false
	g.Cleanup(func() {
		if !up {
			g.NFSServerUp()
		}
	})
	status := func() (n int, lost int64) {
		text := g.ReadFile(stdout.Name())
		o, err := guest.ParseOutput([]byte(text[:strings.LastIndexByte(text, '\n')+1]))
		if err != nil {
			g.Fatal(err)
		}
		for _, d := range o.Docs {
			if d.String("event.dataset") != "iotrace.status" {
				continue
			}
			n++
			lost += d.Int("iotrace.lost.exports")
		}
		return n, lost
	}
	g.Eventually("standard output says what the recording lost", func() bool { _, lost := status(); return lost >= 10 })
	before, _ := status()
	g.Eventually("standard output goes on", func() bool { n, _ := status(); return n >= before+5 })
	err := cmd.Process.Signal(os.Interrupt)
	if err != nil {
		g.Fatal(err)
	}
	// It ends, and counts nothing any more. But a thread that waits for an NFS server to
	// take pages cannot be killed, and the kernel keeps what is left of the process as long.
	g.Eventually("its end, while the server is away", func() bool {
		return strings.Contains(g.ReadFile(stderr.Name()), "--record is stuck")
	})
	g.Eventually("none of its programs is left", func() bool {
		n := 0
		eachProgram(g, func(*ebpf.Program, string) { n++ })
		return n == 0
	})
	up = true
	g.NFSServerUp()
	g.Eventually("nothing of the process is left", func() bool {
		select {
		case err = <-ended:
			return true
		default:
			return false
		}
	})
	if err == nil {
		g.Error("it lost intervals and ended with 0")
	}
}

// asUser returns a command that runs the tracer as an ordinary user with these
// capabilities.
func asUser(g *guest.Guest, dir string, caps []uintptr, args ...string) *exec.Cmd {
	cmd := exec.Command(g.Tool(), append([]string{"--output", "ndjson", "--verbose"}, args...)...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
	return cmd
}

// faultsPrivilege: the capabilities of the shipped unit are enough for every
// source. With fewer, the tracer names the missing one.
func faultsPrivilege(g *guest.Guest) {
	if !g.AtLeast(5, 11) { // maps count as locked memory on this kernel; the unit sets LimitMEMLOCK= for it
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
			g.Fatal(err)
		}
		set := func(limit unix.Rlimit) {
			if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
				g.Error(err)
			}
		}
		set(unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
		g.Cleanup(func() { set(limit) })
	}
	dir, err := os.MkdirTemp("", "nobody-")
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		g.Fatal(err)
	}
	refused := func(source, hint string, caps ...uintptr) {
		out, err := asUser(g, dir, caps, "--source", source, "--vxlan=false", "0.1", "1").CombinedOutput()
		var exit *exec.ExitError
		_, hints, _ := strings.Cut(string(out), "hint: ")
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(hints, hint) {
			g.Errorf("%s with %v: %v, want exit status 3 and a hint at %s\n%s", source, caps, err, hint, out)
		}
	}
	refused("block", "CAP_BPF")
	refused("block", "CAP_PERFMON", unix.CAP_BPF)
	refused("block", "CAP_BPF", unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH)
	for _, c := range []struct {
		source string
		open   func() (device, file string)
		flags  int
	}{
		{"block", func() (string, string) { d := g.NVMe(); return d.ID(), d.Path() }, guest.Create | guest.Direct},
		{"nfs", func() (string, string) { m := g.NFS("4.2"); return m.ID(), m.File("a") }, guest.Create},
		{"fuse", func() (string, string) { m := g.FUSE(guest.FUSEOptions{}); return m.ID(), m.File("a") }, guest.Create},
	} {
		g.Run(c.source, func(t *testing.T) {
			device, file := c.open()
			if c.source == "fuse" && !g.AtLeast(6, 12) {
				// These kernels have no tracepoints for FUSE, and Debian's default forbids kprobes
				// without CAP_SYS_ADMIN.
				refused("fuse", "perf_event_paranoid", unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH)
				g.Knob("/proc/sys/kernel/perf_event_paranoid", "2")
			}
			const size = 1009 * 4096
			a := g.Cgroup("a")
			p := a.Process()
			ready := filepath.Join(dir, "ready-"+c.source)
			cmd := asUser(g, dir, []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH},
				"--source", c.source, "--by", "cgroup,device", "--vxlan=false", "--interval", "200ms", "--ready-file", ready)
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			gone := make(chan error, 1)
			go func() { gone <- cmd.Wait() }()
			for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
				if _, err := os.Stat(ready); err == nil {
					break
				}
				select {
				case err := <-gone:
					t.Fatalf("tracer: %v\n%s", err, stderr.String())
				default:
				}
				if time.Since(begin) > 2*time.Minute {
					cmd.Process.Kill()
					t.Fatalf("tracer is not ready: %v\n%s", <-gone, stderr.String())
				}
			}
			f := p.Open(file, c.flags)
			f.Write(0, size)
			f.Fsync()
			f.Close()
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if err := <-gone; err != nil {
				t.Fatalf("tracer: %v\n%s", err, stderr.String())
			}
			r, err := guest.ParseOutput([]byte(stdout.String()))
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Sum("iotrace.write.bytes", "iotrace.source", c.source, "iotrace.device.id", device,
				"iotrace.cgroup.id", fmt.Sprint(a.ID()), "iotrace.cgroup.path", a.Path()); got != size {
				t.Errorf("%d bytes, want %d\n%s\n%s", got, size, stdout.String(), stderr.String())
			}
		})
	}
}
