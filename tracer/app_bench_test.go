//go:build integration && bench

package tracer

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// BenchmarkAppOfBlock measures what --level app would cost for a file system on a disk: the
// program that counts calls of FUSE, beside what a task takes to read 4 KiB from the page cache
// of ext4, which is the case that only this level counts.
func BenchmarkAppOfBlock(b *testing.B) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	hierarchy, _ := anyHierarchy(b)
	name := filepath.Join(newScratch(b, 64*mib).dir, "f")
	if err := os.WriteFile(name, make([]byte, mib), 0o600); err != nil {
		b.Fatal(err)
	}
	tr := open(b, Options{Hierarchy: hierarchy, App: true})
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	calls := func(call func(fd int, p []byte, offset int64) (int, error)) float64 {
		best := time.Hour
		for range 9 {
			begin := processTime()
			for i := range int64(50000) {
				if _, err := call(int(f.Fd()), buf, i%256*4096); err != nil {
					b.Fatal(err)
				}
			}
			best = min(best, processTime()-begin)
		}
		return float64(best.Nanoseconds()) / 50000
	}
	l, err := tr.core.loader()
	if err != nil {
		b.Fatal(err)
	}
	spec, err := bpf.LoadFUSE()
	if err != nil {
		b.Fatal(err)
	}
	// Run by hand instead of at the function's exit: some machines let nobody attach there.
	program := spec.Programs[bpf.FUSEProgIotFuseAppRead]
	program.Type, program.AttachType, program.AttachTo = ebpf.RawTracepoint, ebpf.AttachNone, ""
	programs, maps, err := l.makeMaps(nil, spec)
	if err != nil {
		b.Fatal(err)
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{bpf.FUSEProgIotFuseAppRead: programs[bpf.FUSEProgIotFuseAppRead]}
	if err := spec.Variables[bpf.BlockVarSeat].Set(uint32(60)); err != nil {
		b.Fatal(err)
	}
	delete(maps, seatSection) // the program's own
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		b.Fatal(err)
	}
	defer coll.Close()
	counts := coll.Programs[bpf.FUSEProgIotFuseAppRead]
	for b.Loop() {
		b.ReportMetric(calls(unix.Pread), "ns/read")
		b.ReportMetric(calls(unix.Pwrite), "ns/write")
		for range 20000 { // the file cannot be found: its reads fail, which takes as long
			if _, err := counts.Run(&ebpf.RunOptions{Context: []uint64{0, 0, 4096}}); err != nil {
				b.Fatal(err)
			}
		}
		s, err := counts.Stats()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "BPF-ns/call")
	}
}

// processTime is the processor time of this process: other tasks do not disturb it much.
func processTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
