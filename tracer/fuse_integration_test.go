//go:build integration

package tracer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// BenchmarkFUSE: the time of our programs for a request to a FUSE daemon that keeps its
// files in memory, by the kernel's run statistics, with and without write-back cache. An
// operation is a file of 16 MiB, written and synced, or read from the daemon. Requests are
// of all kinds: of those while writing, half ask for an attribute.
//
//	go test -tags integration ./tracer -run - -bench FUSE -benchtime 100x
func BenchmarkFUSE(b *testing.B) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	for _, writeback := range []bool{false, true} {
		backing, target := b.TempDir(), b.TempDir()
		if err := unix.Mount("none", backing, "tmpfs", 0, "size=64m"); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = unix.Unmount(backing, unix.MNT_DETACH) })
		server, err := guest.ServeFUSE(target, guest.FUSEOptions{Backing: backing, Writeback: writeback})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := server.Unmount(); err != nil {
				b.Error(err)
			}
		})
		for _, reading := range []bool{false, true} {
			b.Run(fmt.Sprintf("writeback=%v/reading=%v", writeback, reading), func(b *testing.B) {
				hierarchy, _ := anyHierarchy(b)
				tr, err := New(Options{Sources: []string{fuseName}, Latency: true, Hierarchy: hierarchy})
				if err != nil {
					b.Fatal(err)
				}
				defer tr.Close()
				if err := tr.Begin(); err != nil {
					b.Fatal(err)
				}
				f, err := os.Create(filepath.Join(target, "f"))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				buf := make([]byte, 128<<10)
				write := func() {
					for at := int64(0); at < 16*mib; at += int64(len(buf)) {
						if _, err := f.WriteAt(buf, at); err != nil {
							b.Fatal(err)
						}
					}
					if err := f.Sync(); err != nil {
						b.Fatal(err)
					}
				}
				read := func() {
					if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
						b.Fatal(err)
					}
					for at := int64(0); at < 16*mib; at += int64(len(buf)) {
						if _, err := f.ReadAt(buf, at); err != nil {
							b.Fatal(err)
						}
					}
				}
				round := write
				if reading {
					write()
					round = read
				}
				before, data := runTimes(b, tr), server.Count()
				for b.Loop() {
					round()
				}
				data = server.Count().Sub(data)
				if n := data.ReadBytes + data.WriteBytes; n != int64(b.N)*16*mib {
					b.Errorf("the daemon counted %d bytes in %d rounds", n, b.N)
				}
				var took, requests float64
				for program, after := range runTimes(b, tr) {
					t, runs := after.took-before[program].took, after.runs-before[program].runs
					took += float64(t)
					if program == "fuse_request_end" {
						requests = float64(runs)
					}
					if runs > 0 {
						b.Logf("%-28s %6d runs of %5d ns", program, runs, uint64(t)/runs)
					}
				}
				if requests == 0 {
					b.Fatal("no request was seen")
				}
				b.ReportMetric(took/requests, "bpf-ns/request")
				b.ReportMetric(requests/float64(b.N), "requests/op")
				b.ReportMetric(float64(data.ReadOps+data.WriteOps)/float64(b.N), "data/op")
			})
		}
	}
}
