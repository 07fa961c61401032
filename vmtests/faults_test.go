//go:build vm

package vmtests

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"testing"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestFaults has things happen to the machine under load that no test may do to
// its host. Totals equal /proc/diskstats all the same.
func TestFaults(t *testing.T) {
	suite{
		// No source of its own: these are no promises about kernels.
		scenarios: []scenario{
			{name: "cpu_hotplug", run: faultsHotplug},
			{name: "clock_step", run: faultsClock},
			{name: "module_removed", run: faultsModule},
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

// rawWrites does not wait for the disk to be idle, which it is not.
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

// more waits until so many more writes are done.
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

// faultsModule: a driver is taken away with its disk, while the tracer looks at
// what the disk did, and comes again.
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
	t.stop()
	got := t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.name", "nullb0")
	if got != wrote {
		// A disk that is gone before its first report has a number and no name.
		got = t.Sum("iotrace.write.bytes", "iotrace.source", "block") - t.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", scratch.ID())
	}
	t.Equal("written to disks that are gone", got, wrote)
}
