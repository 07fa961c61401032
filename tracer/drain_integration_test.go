//go:build integration

package tracer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// open returns a tracer of block devices on this machine; it needs root.
func open(tb testing.TB, opt Options) *Tracer {
	tb.Helper()
	opt.Sources = []string{"block"}
	t, err := New(opt)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	if err := t.Begin(); err != nil {
		tb.Fatal(err)
	}
	return t
}

// noMajor is no device's number.
const noMajor = 4095

// fill puts so many rows into the totals map that programs use, as they would.
func fill(tb testing.TB, t *Tracer, groups int) {
	tb.Helper()
	keys := make([]bpf.CoreUsageKey, groups)
	values := make([]bpf.CoreUsage, groups)
	for i := range keys {
		keys[i] = bpf.CoreUsageKey{Cgroup: uint64(i%1500 + 1<<32), Dev: uint32(noMajor<<20 | i/1500), Source: uint8(Block), Op: uint8(Write), Basis: uint8(ByPage)}
		values[i] = bpf.CoreUsage{Bytes: 4096, Ops: 1}
	}
	if _, err := t.usage.inUse.BatchUpdate(keys, values, nil); err != nil {
		tb.Fatal(err)
	}
}

// TestDrain: every row that is in the map comes out once.
func TestDrain(t *testing.T) {
	const groups = 10_000
	tr := open(t, Options{})
	for round := range 3 {
		fill(t, tr, groups)
		iv, err := tr.Read()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range iv.Rows {
			if r.Dev.Major() != noMajor {
				continue // this machine's own I/O
			}
			n++
			if r.Bytes != 4096 || r.Ops != 1 {
				t.Fatalf("round %d: %+v", round, r)
			}
		}
		if n != groups {
			t.Fatalf("round %d: %d rows, want %d", round, n, groups)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name   string
		groups int
		opt    Options
	}{
		{"none", 0, Options{}},
		{"1500", 1500, Options{}},
		{"10000", 10_000, Options{}},
		{"10000-latency", 10_000, Options{Latency: true}},
		{"60000", 60_000, Options{MaxGroups: 65536}},
	} {
		b.Run(c.name, func(b *testing.B) {
			t := open(b, c.opt)
			b.ReportAllocs()
			var took time.Duration
			for range b.N {
				b.StopTimer()
				fill(b, t, c.groups)
				b.StartTimer()
				start := cpuTime(b)
				if _, err := t.Read(); err != nil {
					b.Fatal(err)
				}
				took += cpuTime(b) - start
			}
			b.ReportMetric(took.Seconds()*1e3/float64(b.N), "cpu-ms/op")
		})
	}
}

// producer returns a program that puts one record into the ring each time it runs,
// and a map that counts what went in: a run that a signal interrupts starts over.
func producer(tb testing.TB, ring *ebpf.Map) (*ebpf.Program, *ebpf.Map) {
	tb.Helper()
	produced, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { produced.Close() })
	const size = int16(unsafe.Sizeof(bpf.CoreIoRecord{}))
	insns := asm.Instructions{asm.Mov.Imm(asm.R0, 0)}
	for off := -size; off < 0; off += 8 {
		insns = append(insns, asm.StoreMem(asm.RFP, off, asm.R0, asm.DWord))
	}
	insns = append(insns,
		asm.FnKtimeGetNs.Call(), asm.StoreMem(asm.RFP, -size+int16(unsafe.Offsetof(bpf.CoreIoRecord{}.Time)), asm.R0, asm.DWord),
		asm.StoreImm(asm.RFP, -size+20, int64(Block)|int64(Write)<<8|int64(ByPage)<<16, asm.Word), // source, op, basis
		asm.Mov.Imm(asm.R1, 4096), asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord), // bytes
		asm.LoadMapPtr(asm.R1, ring.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(-size)),
		asm.Mov.Imm(asm.R3, int32(size)), asm.Mov.Imm(asm.R4, 1), // BPF_RB_NO_WAKEUP
		asm.FnRingbufOutput.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"), // the ring is full
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, produced.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: insns})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	return p, produced
}

func produce(tb testing.TB, p *ebpf.Program, n int) {
	tb.Helper()
	if _, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 14), Repeat: uint32(n)}); err != nil {
		tb.Fatal(err)
	}
}

// TestRecords: what is in the ring comes out, all of it, at the latest with FlushRecords.
func TestRecords(t *testing.T) {
	const each = 50_000
	n := uint64(0)
	began := time.Now()
	tr := open(t, Options{Records: func(list []Record) {
		for i := range list {
			if at := list[i].Time; at.Before(began.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
				t.Errorf("a record of %v, at %v", at, time.Now())
			}
			if list[i].Cgroup == 0 && list[i].Dev == 0 && list[i].Bytes == 4096 {
				n++
			}
		}
	}})
	p, produced := producer(t, tr.core.shared[bpf.CoreMapRecords])
	for round := uint64(1); round <= 3; round++ {
		produce(t, p, each)
		if err := tr.FlushRecords(); err != nil {
			t.Fatal(err)
		}
		var in uint64
		if err := produced.Lookup(uint32(0), &in); err != nil {
			t.Fatal(err)
		}
		if n != in || in < round*each {
			t.Fatalf("round %d: %d records came out, %d went in of %d", round, n, in, round*each)
		}
	}
}

// BenchmarkRecords drains the ring, decodes its records and groups them. The
// aim is 5 million records per second and core.
func BenchmarkRecords(b *testing.B) {
	const produced = 100_000
	groups := map[Key]uint64{}
	var gate sync.Mutex // held while the ring is filled: the reader gets one batch and waits
	t := open(b, Options{Records: func(list []Record) {
		gate.Lock()
		defer gate.Unlock()
		for i := range list {
			groups[list[i].Key] += list[i].Bytes
		}
	}})
	p, _ := producer(b, t.core.shared[bpf.CoreMapRecords])
	if err := t.FlushRecords(); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	var took time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		gate.Lock()
		produce(b, p, produced)
		b.StartTimer()
		start := cpuTime(b)
		gate.Unlock()
		if err := t.FlushRecords(); err != nil {
			b.Fatal(err)
		}
		took += cpuTime(b) - start
	}
	b.ReportMetric(float64(produced)*float64(b.N)/took.Seconds()/1e6, "Mrecords/cpu-s")
}

// cpuTime is what this process has used: the machine may be busy with others.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// anyHierarchy returns the number of a cgroup hierarchy and where it is mounted: that of
// the memory controller on cgroup v1, else cgroup2.
func anyHierarchy(t testing.TB) (id int, mount string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		switch {
		case f[2] == "cgroup2" && mount == "":
			mount = f[1]
		case f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "memory"):
			mount = f[1]
			controllers, err := os.ReadFile("/proc/cgroups")
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(controllers), "\nmemory\t")
			if _, err := fmt.Sscan(rest, &id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if mount == "" {
		t.Fatal("no cgroup hierarchy is mounted")
	}
	return id, mount
}

// TestReadNamesFirst: when Read returns, every cgroup that came before its interval ended
// is known, however many events of cgroups wait.
func TestReadNamesFirst(t *testing.T) {
	const n = 200
	hierarchy, mount := anyHierarchy(t)
	parent, err := os.MkdirTemp(mount, "names")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(parent) })
	var mu sync.Mutex
	known := map[string]bool{}
	tr := open(t, Options{Hierarchy: hierarchy, CgroupCreated: func(_ uint64, path string) {
		time.Sleep(time.Millisecond) // a busy machine
		mu.Lock()
		defer mu.Unlock()
		known[filepath.Base(path)] = true
	}})
	for round, read := range []func() (*Interval, error){tr.Read, tr.Read, tr.ReadLast} {
		for i := range n {
			dir := filepath.Join(parent, fmt.Sprintf("%d-%d", round, i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := read(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		for i := range n {
			if name := fmt.Sprintf("%d-%d", round, i); !known[name] {
				t.Errorf("cgroup %q is not known yet; %d are", name, len(known))
				break
			}
		}
		mu.Unlock()
	}
}

// Where the kernel preempts, the thread that reads has a real-time priority, and its own
// again afterwards. This machine may refuse to raise the limit, which matters without
// privileges alone: a tracer that gave them up is in the scenarios of small files.
func TestUnpreempted(t *testing.T) {
	policy := func() uint32 {
		t.Helper()
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a.Policy
	}
	runtime.LockOSThread() // and never again: the thread is marked
	for _, preempting := range []bool{false, true} {
		c := core{preempting: preempting, log: slog.New(slog.DiscardHandler)}
		c.allowRealTime()
		for range 2 {
			want := errors.New("read")
			var during uint32
			if err := c.unpreempted(func() error { during = policy(); return want }); err != want {
				t.Errorf("error %v, want that of reading", err)
			}
			if (during == unix.SCHED_FIFO) != preempting {
				t.Errorf("a kernel that preempts %v: policy %d while reading", preempting, during)
			}
			if after := policy(); after != unix.SCHED_NORMAL {
				t.Errorf("a kernel that preempts %v: policy %d afterwards", preempting, after)
			}
		}
	}
}
