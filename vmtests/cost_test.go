//go:build vm

package vmtests

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// costRounds is the number of rounds of a measurement. The lowest value counts,
// because in the other rounds the guest may have lost its processor.
const costRounds = 5

// measureCost returns the time that our programs take per request, in nanoseconds,
// from the kernel's run statistics, which must be on. round makes requests, and
// count returns the number of requests so far. Programs whose names begin with one
// of prefixes belong to a request; the others are only logged.
func measureCost(g *guest.Guest, prefixes []string, count func() int64, round func()) float64 {
	g.Helper()
	type share struct{ runs, ns float64 } // per request
	least := map[string]share{}
	for range costRounds {
		before, n := programCosts(g), -count()
		round()
		n += count()
		if n <= 0 {
			g.Fatalf("%d requests in a round", n)
		}
		for name, p := range programCosts(g) {
			runs := float64(p.runs - before[name].runs)
			if runs <= 0 {
				continue
			}
			now := share{runs / float64(n), float64(p.spent-before[name].spent) / runs}
			if old, ok := least[name]; !ok || now.ns < old.ns {
				least[name] = now
			}
		}
	}
	var total float64
	for _, name := range slices.Sorted(maps.Keys(least)) {
		s, note := least[name], "  (not counted)"
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			total += s.runs * s.ns
			note = ""
		}
		g.Logf("%-28s %5.2f runs per request, %7.0f ns each%s", name, s.runs, s.ns, note)
	}
	if total == 0 {
		g.Errorf("no program %q ever ran", prefixes)
	}
	g.Logf("total per request: %.0f ns", total)
	return total
}

// blockCost measures direct writes of 4 KiB to a disk, as the base of comparisons.
func blockCost(g *guest.Guest, disk guest.Disk) float64 {
	g.Helper()
	f := g.Cgroup("blockcost").Process().Open(disk.Path(), os.O_RDWR|guest.Direct)
	defer f.Close()
	return measureCost(g, []string{"iot_rq_"}, func() int64 { return disk.Stats().WriteOps },
		func() { f.WriteBlocks(0, 1000*4096, 4096) })
}

// runsOf counts the runs of the programs that one of the prefixes names, without
// redundant ones.
func runsOf(g *guest.Guest, prefixes ...string) (n int64) {
	g.Helper()
	for name, c := range programCosts(g) {
		if !strings.HasSuffix(name, "_redundant") && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			n += c.runs
		}
	}
	return n
}

type programCost struct{ runs, spent int64 }

// programCosts asks the kernel about every program of ours that ran.
func programCosts(g *guest.Guest) map[string]programCost {
	g.Helper()
	costs := map[string]programCost{}
	eachProgram(g, func(p *ebpf.Program, name string) {
		if s, err := p.Stats(); err == nil && s.RunCount > 0 {
			c := costs[name]
			costs[name] = programCost{c.runs + int64(s.RunCount), c.spent + int64(s.Runtime)}
		}
	})
	return costs
}

// eachProgram calls f with every program of ours that the kernel has, and its name.
func eachProgram(g *guest.Guest, f func(p *ebpf.Program, name string)) {
	g.Helper()
	var id ebpf.ProgramID
	for {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err != nil {
			g.Fatal(err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone already
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, "iot_") {
			f(p, info.Name)
		}
		p.Close()
	}
}
