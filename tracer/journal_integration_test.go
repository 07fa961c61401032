//go:build integration

package tracer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkJournal: what a write costs with and without a tracer, and with one that keeps
// no shares of journals, on a loop device over tmpfs. An operation is a hundred writes.
// bpf-ns/write is the time of our programs by the kernel's run statistics, which are on
// for all three; the log has it by program.
func BenchmarkJournal(b *testing.B) {
	const batch, span = 100, 64 * mib
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	page := unsafe.Slice((*byte)(alignedPage(b)), 4096)
	fsTypes := []string{"ext4"}
	if _, err := exec.LookPath("mkfs.xfs"); err == nil {
		fsTypes = append(fsTypes, "xfs")
	}
	for _, fsType := range fsTypes {
		s := newScratchOf(b, fsType, 512*mib)
		for _, load := range []struct {
			name  string
			flags int
			sync  bool
		}{
			{"fsync", os.O_CREATE | os.O_APPEND, true},
			{"buffered", 0, false},
			{"direct", unix.O_DIRECT, false},
		} {
			for _, tracer := range []string{"none", "without", "with"} {
				b.Run(fmt.Sprintf("%s/%s/tracer=%s", fsType, load.name, tracer), func(b *testing.B) {
					name := filepath.Join(s.dir, load.name)
					if err := os.WriteFile(name, make([]byte, span), 0o600); err != nil {
						b.Fatal(err)
					}
					s.sync()
					f, err := os.OpenFile(name, os.O_WRONLY|load.flags, 0o600)
					if err != nil {
						b.Fatal(err)
					}
					defer f.Close()
					var tr *Tracer
					if tracer != "none" {
						tr = open(b, Options{Latency: true, noJournals: tracer == "without"})
					}
					before := runTimes(b, tr)
					var offset int64
					b.ResetTimer()
					for range b.N {
						for range batch {
							if load.sync {
								_, err = f.Write(page)
							} else {
								_, err = f.WriteAt(page, offset)
							}
							if err == nil && load.sync {
								err = f.Sync()
							}
							if err != nil {
								b.Fatal(err)
							}
							offset = (offset + 4096) % span
						}
					}
					b.StopTimer()
					writes := float64(b.N) * batch
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/writes, "ns/write")
					b.ReportMetric(writes/b.Elapsed().Seconds(), "writes/s")
					var all time.Duration
					for program, after := range runTimes(b, tr) {
						took := after.took - before[program].took
						all += took
						if runs := after.runs - before[program].runs; runs > 0 {
							b.Logf("%-28s %5.2f runs a write, %5d ns each", program, float64(runs)/writes, uint64(took)/runs)
						}
					}
					b.ReportMetric(float64(all.Nanoseconds())/writes, "bpf-ns/write")
				})
			}
		}
	}
}

// alignedPage returns memory that O_DIRECT takes.
func alignedPage(b *testing.B) unsafe.Pointer {
	b.Helper()
	m, err := unix.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := unix.Munmap(m); err != nil {
			b.Error(err)
		}
	})
	return unsafe.Pointer(&m[0])
}

type runTime struct {
	took time.Duration
	runs uint64
}

// runTimes returns what the kernel counted for each program so far.
func runTimes(b *testing.B, tr *Tracer) map[string]runTime {
	b.Helper()
	times := map[string]runTime{}
	if tr == nil {
		return times
	}
	for _, a := range tr.attached() {
		s, err := a.program.Stats()
		if err != nil {
			b.Fatal(err)
		}
		name := strings.TrimPrefix(a.hook.program, "iot_")
		times[name] = runTime{times[name].took + s.Runtime, times[name].runs + s.RunCount}
	}
	return times
}
