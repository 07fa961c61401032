//go:build integration && bench

package tracer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkFiles measures what --by file costs in the kernel, and that it costs nothing
// when it is off: BPF time for each request, and what the verifier processes at the start.
//
//	go test -tags 'integration bench' ./tracer -run - -bench Files -benchtime 3x
func BenchmarkFiles(b *testing.B) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	for _, load := range []struct {
		name string
		run  func(b *testing.B, dir string)
	}{
		{"direct 4 KiB writes", func(b *testing.B, dir string) {
			fd, err := unix.Open(filepath.Join(dir, "direct"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(fd)
			page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Munmap(page)
			for i := range int64(20000) {
				if _, err := unix.Pwrite(fd, page, i%4096*4096); err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"10000 small files", func(b *testing.B, dir string) {
			for i := range 10000 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 4096), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			unix.Sync()
		}},
		{"one file of 128 MiB", func(b *testing.B, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 128*mib), 0o600); err != nil {
				b.Fatal(err)
			}
			unix.Sync()
		}},
	} {
		for _, opt := range []struct {
			name string
			Options
			on bool
		}{
			{"off", Options{}, false},
			{"by mount", Options{ByMount: true}, false},
			{"may be asked for", Options{ByMount: true, ByFile: true}, false},
			{"on", Options{ByFile: true}, true},
		} {
			b.Run(load.name+"/"+opt.name, func(b *testing.B) {
				hierarchy, _ := anyHierarchy(b)
				opt.Options.Hierarchy, opt.Options.Latency = hierarchy, true
				dir := newScratch(b, 512*mib).dir
				tr := open(b, opt.Options)
				if opt.on {
					if err := tr.CountFiles(true); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := tr.Read(); err != nil {
					b.Fatal(err)
				}
				var verified uint32
				for _, a := range tr.attached() {
					if info, err := a.program.Info(); err == nil {
						n, _ := info.VerifiedInstructions()
						verified += n
					}
				}
				var nanos, ops, runs, files uint64
				var named time.Duration
				for b.Loop() {
					load.run(b, dir)
					iv, err := tr.Read()
					if err != nil {
						b.Fatal(err)
					}
					nanos, runs = nanos+iv.BPFNanos, runs+iv.BPFRuns
					begin := time.Now()
					for _, r := range iv.Rows {
						ops += r.Ops
						if _, ok := tr.File(r.File); ok {
							files++
						}
					}
					named += time.Since(begin)
				}
				b.ReportMetric(float64(nanos)/float64(ops), "BPF-ns/request")
				b.ReportMetric(float64(nanos)/float64(runs), "BPF-ns/run")
				b.ReportMetric(float64(verified), "verified")
				if files > 0 {
					b.ReportMetric(float64(named.Nanoseconds())/float64(files), "ns/name")
				}
			})
		}
	}
}
