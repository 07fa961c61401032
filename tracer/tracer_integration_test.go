//go:build integration

package tracer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// openFiles returns what the file descriptors of this process are, sorted.
func openFiles(t *testing.T) []string {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, fd := range fds {
		name, err := os.Readlink(fd)
		if err != nil {
			continue // that of Glob itself
		}
		if strings.HasPrefix(name, "anon_inode:bpf") {
			info, err := os.ReadFile("/proc/self/fdinfo/" + filepath.Base(fd))
			if err != nil {
				t.Fatal(err)
			}
			name += "\n" + string(info)
		}
		files = append(files, name)
	}
	slices.Sort(files)
	return files
}

// TestNothingLeft: closing a tracer closes every link, program and map.
func TestNothingLeft(t *testing.T) {
	var before []string
	for round := range 3 {
		tr, err := New(Options{Latency: true, App: true, ByProcess: true, Records: func([]Record) {}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Read(); err != nil {
			t.Error(err)
		}
		during := openFiles(t)
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
		after := openFiles(t)
		t.Logf("round %d: %d open files, %d after closing", round, len(during), len(after))
		if i := slices.IndexFunc(after, func(f string) bool { return strings.HasPrefix(f, "anon_inode:bpf") }); i >= 0 {
			t.Errorf("still open: %q", after[i])
		}
		if round > 0 && !slices.Equal(before, after) { // some are opened once for the whole process
			t.Errorf("open before:\n%q\nafter:\n%q", before, after)
		}
		before = after
	}
}

// TestSeatsTaken: while another program has a seat, nothing goes into the cache, and
// nothing is lost. The kernel runs the real program for a request at address 0, which
// it cannot read: an operation without bytes on device 0.
func TestSeatsTaken(t *testing.T) {
	const runs = 1000
	tr := open(t, Options{})
	l, err := tr.core.loader()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadBlock()
	if err != nil {
		t.Fatal(err)
	}
	programs, maps, err := l.makeMaps(nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer (&object{maps: maps}).Close()
	hk := hook{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssue}
	p, err := l.loadProgram(spec, programs, hk, maps, ebpf.ProgramOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	mine := tr.core.seats.of(hk)
	for _, tc := range []struct {
		name   string
		taken  []uint32
		cached bool
	}{
		{"none", nil, true},
		{"its own", []uint32{mine}, false},
		{"another", []uint32{maxSeats - 1}, false},
		{"another at the same place of a word", []uint32{(mine + 8) % maxSeats}, false},
		{"all others", slices.DeleteFunc(numbers(maxSeats), func(n uint32) bool { return n == mine }), false},
		{"none again", nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			caches := make([]bpf.CoreRowCache, ebpf.MustPossibleCPU())
			for i := range caches {
				for _, n := range tc.taken {
					caches[i].Seats[n] = 1
				}
			}
			m := tr.core.shared[bpf.CoreMapRowCaches]
			if err := m.Update(tr.generation, caches, ebpf.UpdateAny); err != nil {
				t.Fatal(err)
			}
			for range runs {
				if _, err := p.Run(&ebpf.RunOptions{Context: [2]uint64{}}); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Lookup(tr.generation, &caches); err != nil {
				t.Fatal(err)
			}
			var cached uint64
			for i := range caches {
				for n, seat := range caches[i].Seats {
					if want := slices.Contains(tc.taken, uint32(n)); (seat == 1) != want {
						t.Errorf("CPU %d: seat %d is %d afterwards", i, n, seat)
					}
				}
				for _, row := range caches[i].Usage {
					if row.Key.Source != 0 && row.Key.Dev == 0 {
						cached += row.Value.Ops
					}
				}
			}
			if (cached == runs) != tc.cached || !tc.cached && cached != 0 {
				t.Errorf("%d operations in the cache", cached)
			}
			if ops := opsOfNoDevice(t, tr); ops != runs {
				t.Errorf("%d operations in all, want %d", ops, runs)
			}
		})
	}
}

func numbers(n uint32) (list []uint32) {
	for i := range n {
		list = append(list, i)
	}
	return list
}

// TestExchange: a program with more parts takes the place of one that is attached, and each
// run counts once, before, meanwhile and afterwards.
func TestExchange(t *testing.T) {
	tr := open(t, Options{Latency: true})
	l, err := tr.core.loader()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		parts
		more []parts
	}{
		{parts{}, []parts{{}, {hops: true}, {hops: true}, {journals: true}, allParts}},
		{parts{journals: true}, []parts{{journals: true}, allParts}},
		{allParts, []parts{{hops: true}, {journals: true}}},
	} {
		hk := hook{kind: rawTracepoint, target: "block_rq_issue", program: bpf.BlockProgIotRqIssue}
		i, err := l.loadBlock(p.parts, []signal{{hooks: []hook{hk}}})
		if err != nil {
			t.Fatal(err)
		}
		defer i.block.Close()
		first := i.block.hooks[0]
		if err := first.detach(); err != nil { // only runs of this test
			t.Fatal(err)
		}
		if _, err := tr.Read(); err != nil {
			t.Fatal(err)
		}
		have := p.parts
		for _, more := range p.more {
			if err := i.need(more); err != nil {
				t.Fatal(err)
			}
			have = have.and(more)
			if i.have != have {
				t.Errorf("%+v after %+v: %+v", p.parts, more, i.have)
			}
			const runs = 100
			for range runs {
				if _, err := first.program.Run(&ebpf.RunOptions{Context: [2]uint64{}}); err != nil {
					t.Fatal(err)
				}
			}
			if ops := opsOfNoDevice(t, tr); ops != runs {
				t.Errorf("%+v after %+v: %d operations in %d runs", p.parts, more, ops, runs)
			}
		}
		var id ebpf.ProgramID
		err = i.block.maps[bpf.BlockMapSuccessors].Lookup(uint32(0), &id)
		if exchanged := err == nil; exchanged != (p.parts != allParts) {
			t.Errorf("%+v: a program in its place: %v", p.parts, err)
		}
	}
}

// opsOfNoDevice reads an interval and returns its operations without a device: those of
// programs that were run without a request.
func opsOfNoDevice(t *testing.T, tr *Tracer) (ops uint64) {
	t.Helper()
	iv, err := tr.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range iv.Rows {
		if r.Dev == 0 {
			ops += r.Ops
		}
	}
	return ops
}
