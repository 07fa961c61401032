//go:build vm && bench

package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// TestBench is `make bench-vm`. It measures in a guest what `make bench` cannot
// measure on its machine: peers that need kprobes, a disk that is the block layer
// alone, network file systems and FUSE, more processors. It writes its part of BENCHMARKS.md.
//
// An emulated guest is slow, and not evenly so: only ratios between programs that
// ran for the same I/Os count.
func TestBench(t *testing.T) {
	all := suite{
		image: "bench", memory: 1600, deadline: 40 * time.Minute,
		scenarios: []scenario{
			{name: "block", run: benchBlock},
			{name: "nfs", run: benchNFS},
			{name: "fuse", run: benchFUSE},
			{name: "scale", run: benchScale},
		},
	}
	// Kernels of the generic flavour have all three clients.
	remote := suite{
		image: "bench-remote", memory: 3584, deadline: 40 * time.Minute, flavour: vm.Generic,
		scenarios: []scenario{
			{name: "smb", run: benchSMB, smoke: true},
			{name: "9p", run: benchP9, smoke: true},
			{name: "ceph", run: benchCeph, smoke: true},
		},
	}
	if guest.Inside() {
		all.scenarios = append(all.scenarios, remote.scenarios...)
		all.test(t)
		return
	}
	kernels, err := selected()
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	table := func(rows []string, head string) {
		if len(rows) == 0 {
			return
		}
		title, columns, _ := strings.Cut(head, "\n")
		fmt.Fprintf(&page, "### %s\n\n%s\n|%s\n", title, columns, strings.Repeat("---|", strings.Count(columns, "|")-1))
		for _, r := range rows {
			fmt.Fprintln(&page, r)
		}
		fmt.Fprintln(&page)
	}
	for _, k := range kernels {
		if k.Flavour != vm.Cloud { // it has no tables but those of its series
			continue
		}
		one := all
		one.scenarios = all.scenarios[:3]
		rows := one.measure(t, k, k.Name)
		var scale []string
		for _, cpus := range []int{1, 2, 4, 8} {
			one.scenarios, one.cpus = all.scenarios[3:], cpus
			r := one.measure(t, k, fmt.Sprintf("%s-%d", k.Name, cpus))
			scale = append(scale, r["scale"]...)
			rows["machine"] = append(rows["machine"], r["machine"]...)
		}
		for _, generic := range Matrix() {
			if generic.Series == k.Series && remote.hasModules(generic) {
				maps.Copy(rows, remote.measure(t, generic, generic.Name))
			}
		}
		if len(rows["machine"]) > 0 {
			fmt.Fprintf(&page, "%s Written by `make bench-vm` on %s.\n\n", rows["machine"][0], time.Now().UTC().Format(time.DateOnly))
		}
		table(rows["block"], "null_blk, 4 KiB random writes and reads, io_uring, O_DIRECT, 32 in flight, all attached at once\n"+
			"| tool | BPF ns per write | ratio | BPF ns per read | ratio |")
		table(rows["nfs"], "NFS 4.2, a stream of 1 MiB writes, then read back, all attached at once\n"+
			"| tool | BPF ns per RPC, writing | ratio | BPF ns per RPC, reading | ratio |")
		table(rows["fuse"], "FUSE, a stream of 1 MiB writes, then read back, all attached at once\n"+
			"| tool | BPF ns per request, writing | ratio | BPF ns per request, reading | ratio |")
		for _, source := range []string{"SMB 3.1.1", "9p over TCP", "CephFS"} {
			table(rows[source], source+", generic kernel, a stream of 1 MiB writes, then read back, all attached at once\n"+
				"| tool | BPF ns per request, writing | ratio | BPF ns per request, reading | ratio |")
		}
		table(scale, "More processors: null_blk with a queue for each, a job of 4 KiB random writes on each\n"+
			"| processors | `--latency=false` ns | `--events` ns | ratio | records lost | kernel memory of `--events` | CPU time of a drain |")
	}
	if t.Failed() || *flagScenario != "" { // a partial run is shown, not written
		t.Log("\n" + page.String())
		return
	}
	const begin, end = "<!-- measured in guests -->\n", "<!-- end of measured in guests -->\n"
	path := filepath.Join("..", "BENCHMARKS.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the tables", path)
	}
	if err := os.WriteFile(path, []byte(head+begin+"\n"+page.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

const benchRow = "BENCH:"

// measure boots a guest and returns the rows that its scenarios reported, by table.
func (s suite) measure(t *testing.T, k Kernel, name string) map[string][]string {
	rows := map[string][]string{}
	if len(s.expected(t, k)) == 0 {
		return rows
	}
	t.Run(name, func(t *testing.T) {
		o := s.boot(t, k)
		for _, r := range o.tests {
			for line := range strings.Lines(r.output.String()) {
				if _, row, ok := strings.Cut(line, benchRow); ok {
					which, text, _ := strings.Cut(row, ":")
					rows[which] = append(rows[which], strings.TrimSpace(text))
				}
			}
		}
	})
	return rows
}

func report(g *guest.Guest, table, format string, args ...any) {
	g.Helper()
	g.Logf("%s%s:%s", benchRow, table, fmt.Sprintf(format, args...))
}

// peer is a tool at work in the guest.
type peer struct {
	name  string
	base  bool // the others are compared with it
	cmd   *exec.Cmd
	ready string // a file that it creates once attached, "" if it creates none
	gone  chan struct{}
	ns    map[string][]float64 // by workload
}

// progCost is what the kernel says of one program.
type progCost struct{ ns, runs uint64 }

// programs reads what the kernel says of the programs that a process holds.
func (p *peer) programs() map[string]progCost {
	found := map[string]progCost{}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.cmd.Process.Pid))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		field := fdinfo(string(data))
		if id := field["prog_id"]; id != "" && field["prog_type"] != "" {
			found[id] = progCost{number(field["run_time_ns"]), number(field["run_cnt"])}
		}
	}
	return found
}

func fdinfo(text string) map[string]string {
	field := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			field[k] = strings.TrimSpace(v)
		}
	}
	return field
}

func number(s string) uint64 { n, _ := strconv.ParseUint(s, 10, 64); return n }

// startPeers starts tools and returns those that got their programs attached.
func startPeers(g *guest.Guest, list []*peer) (up []*peer) {
	g.Helper()
	g.Knob("/proc/sys/kernel/bpf_stats_enabled", "1")
	for _, p := range list {
		if _, err := exec.LookPath(p.cmd.Path); err != nil {
			g.Logf("%s: %v", p.name, err)
			continue
		}
		var said strings.Builder
		p.cmd.Stderr = &said
		if err := p.cmd.Start(); err != nil {
			g.Logf("%s: %v", p.name, err)
			continue
		}
		p.gone, p.ns = make(chan struct{}), map[string][]float64{}
		go func() { _ = p.cmd.Wait(); close(p.gone) }()
		g.Cleanup(p.stop)
		seen, same := 0, 0
		for deadline := time.Now().Add(4 * time.Minute); same < 8 && time.Now().Before(deadline); {
			select {
			case <-p.gone:
				deadline = time.Time{}
				continue
			case <-time.After(250 * time.Millisecond): // between two polls
			}
			n := len(p.programs())
			if n > 0 && n == seen && (p.ready == "" || exists(p.ready)) {
				same++
			} else {
				same = 0
			}
			seen = n
		}
		if same < 8 {
			p.stop()
			g.Logf("%s does not run here: %s", p.name, said.String())
			continue
		}
		up = append(up, p)
	}
	return up
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func (p *peer) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-p.gone:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
}

// charge runs a load, which returns its number of I/Os, and notes the time that the
// programs of each tool took per I/O, in ns.
func charge(g *guest.Guest, peers []*peer, what string, load func() uint64) {
	g.Helper()
	before := make([]map[string]progCost, len(peers))
	for i, p := range peers {
		before[i] = p.programs()
	}
	ios := load()
	if ios == 0 {
		g.Fatalf("%s: no I/O", what)
	}
	for i, p := range peers {
		var ns uint64
		for id, now := range p.programs() {
			ns += now.ns - before[i][id].ns
		}
		p.ns[what] = append(p.ns[what], float64(ns)/float64(ios))
	}
}

// compare reports a row for each tool: its figure for each kind of load, and the
// ratio to the base tool's figure.
func compare(g *guest.Guest, table string, all, up []*peer, loads ...string) {
	g.Helper()
	var base *peer
	for _, p := range up {
		if p.base {
			base = p
		}
	}
	if base == nil {
		g.Fatal("nothing to compare with")
	}
	for _, p := range all {
		if !slices.Contains(up, p) {
			report(g, table, "| %s | does not run here%s", p.name, strings.Repeat(" | ", 2*len(loads)))
			continue
		}
		row := "| " + p.name
		for _, l := range loads {
			row += fmt.Sprintf(" | %.0f | %.2f", middle(p.ns[l]), middle(p.ns[l])/middle(base.ns[l]))
		}
		report(g, table, "%s |", row)
	}
}

func middle(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(list))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

// ourselves returns iotrace-bpf for one source, in each of its modes.
func ourselves(g *guest.Guest, source string) (list []*peer) {
	for i, flags := range [][]string{{"--latency=false"}, nil, {"--events"}} {
		ready := filepath.Join(g.TempDir(), "ready-"+strconv.Itoa(i))
		name := "iotrace-bpf"
		for _, f := range flags {
			name += " `" + f + "`"
		}
		args := append([]string{"--source", source, "--vxlan=false", "--output", "ndjson", "--ready-file", ready}, flags...)
		list = append(list, &peer{name: name, cmd: exec.Command(g.Tool(), args...), ready: ready})
	}
	return list
}

func bpftrace(name, text string) *peer {
	return &peer{name: "bpftrace, " + name, cmd: exec.Command("bpftrace", "-e", text)}
}

func baseline(p *peer) *peer { p.base = true; return p }

func machine(g *guest.Guest) {
	cpu := "unknown CPU"
	for line := range strings.Lines(g.ReadFile("/proc/cpuinfo")) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
		}
	}
	report(g, "machine", "A guest: %s, %d processors, Linux %s, %s.", cpu, runtime.NumCPU(),
		strings.TrimSpace(g.Exec("uname", "-r")), strings.TrimSpace(g.Exec("bpftrace", "--version")))
}

const benchRounds = 5

// nullBlock makes a disk that completes requests and does nothing else.
func nullBlock(g *guest.Guest, queues int) guest.Disk {
	g.Helper()
	g.Exec("modprobe", "null_blk", "nr_devices=1", "gb=1", "queue_mode=2", "submit_queues="+strconv.Itoa(queues))
	g.Cleanup(func() { g.Exec("modprobe", "-r", "null_blk") })
	return g.Disk("nullb0")
}

// randomly loads a disk with random I/O and returns the number of I/Os.
func randomly(g *guest.Guest, d guest.Disk, rw string, jobs int) uint64 {
	g.Helper()
	before := requests(g, d)
	g.Exec("fio", "--name=bench", "--thread", "--filename="+d.Path(), "--rw="+rw, "--bs=4k", "--iodepth=32", "--ioengine=io_uring", "--direct=1",
		"--time_based", "--runtime=3", "--size=512m", "--norandommap", "--numjobs="+strconv.Itoa(jobs), "--group_reporting", "--output=/dev/null")
	return requests(g, d) - before
}

func requests(g *guest.Guest, d guest.Disk) uint64 {
	g.Helper()
	f := strings.Fields(g.ReadFile("/sys/block/" + d.Name + "/stat"))
	return number(f[0]) + number(f[4])
}

func benchBlock(g *guest.Guest) {
	machine(g)
	d := nullBlock(g, runtime.NumCPU())
	all := append(ourselves(g, "block"),
		baseline(bpftrace("bytes by cgroup and device", `tracepoint:block:block_rq_issue { @[cgroup, args->dev] = sum(args->bytes); }`)),
		bpftrace("biosnoop's way on tracepoints", `tracepoint:block:block_rq_issue { @start[args->dev, args->sector] = nsecs; @comm[args->dev, args->sector] = comm; @pid[args->dev, args->sector] = pid; } `+
			`tracepoint:block:block_rq_complete /@start[args->dev, args->sector]/ { printf("%-16s %-7d %d %d %d\n", @comm[args->dev, args->sector], @pid[args->dev, args->sector], args->dev, args->nr_sector, nsecs - @start[args->dev, args->sector]); `+
			`delete(@start[args->dev, args->sector]); delete(@comm[args->dev, args->sector]); delete(@pid[args->dev, args->sector]); }`),
		&peer{name: "biosnoop (libbpf-tools)", cmd: exec.Command("/usr/sbin/biosnoop-libbpf")},
		&peer{name: "biotop (libbpf-tools)", cmd: exec.Command("/usr/sbin/biotop-libbpf", "-C", "1")},
		&peer{name: "biolatency (libbpf-tools)", cmd: exec.Command("/usr/sbin/biolatency-libbpf", "1")},
	)
	up := startPeers(g, all)
	for range benchRounds {
		for _, rw := range []string{"randwrite", "randread"} {
			charge(g, up, rw, func() uint64 { return randomly(g, d, rw, 1) })
		}
	}
	compare(g, "block", all, up, "randwrite", "randread")
}

// stream writes a file and reads it back.
func stream(g *guest.Guest, up []*peer, file string, done func() uint64) {
	g.Helper()
	for range benchRounds {
		charge(g, up, "write", func() uint64 {
			before := done()
			g.Exec("dd", "if=/dev/zero", "of="+file, "bs=1M", "count=96", "conv=fsync", "status=none")
			return done() - before
		})
		g.DropCaches()
		charge(g, up, "read", func() uint64 {
			before := done()
			g.Exec("dd", "if="+file, "of=/dev/null", "bs=1M", "status=none")
			return done() - before
		})
	}
}

func benchNFS(g *guest.Guest) {
	m := g.NFS("4.2")
	all := append(ourselves(g, "nfs"),
		baseline(bpftrace("RPCs of reads and writes by cgroup", `tracepoint:nfs:nfs_initiate_read, tracepoint:nfs:nfs_initiate_write { @[cgroup] = count(); }`)),
		&peer{name: "nfsslower (libbpf-tools)", cmd: exec.Command("/usr/sbin/nfsslower-libbpf", "-m", "0")},
		&peer{name: "nfsdist (libbpf-tools)", cmd: exec.Command("/usr/sbin/nfsdist-libbpf", "1")},
	)
	up := startPeers(g, all)
	stream(g, up, m.File("stream"), func() (n uint64) {
		ours := false
		for line := range strings.Lines(g.ReadFile("/proc/self/mountstats")) {
			f := strings.Fields(line)
			switch {
			case len(f) > 4 && f[0] == "device":
				ours = f[4] == m.Target
			case ours && len(f) > 1 && (f[0] == "READ:" || f[0] == "READ_PLUS:" || f[0] == "WRITE:"):
				n += number(f[1])
			}
		}
		return n
	})
	compare(g, "nfs", all, up, "write", "read")
}

// compareStreams compares a source with a one-liner of bpftrace, while a file is written
// and read back. done counts the source's requests.
func compareStreams(g *guest.Guest, table, source, what, program, file string, done func() uint64) {
	g.Helper()
	all := append(ourselves(g, source), baseline(bpftrace(what, program)))
	up := startPeers(g, all)
	stream(g, up, file, done)
	compare(g, table, all, up, "write", "read")
}

func benchFUSE(g *guest.Guest) {
	m := g.FUSE(guest.FUSEOptions{})
	compareStreams(g, "fuse", "fuse", "requests by cgroup", `tracepoint:fuse:fuse_request_send { @[cgroup] = count(); }`, m.File("stream"), func() uint64 {
		n := m.Count()
		return uint64(n.ReadOps + n.WriteOps)
	})
}

func benchSMB(g *guest.Guest) {
	g.Modprobe("cifs")
	m := g.SMB("strict")
	compareStreams(g, "SMB 3.1.1", "smb", "reads and writes by cgroup", `kprobe:smb2_async_readv, kprobe:smb2_async_writev { @[cgroup] = count(); }`, m.File("stream"), func() uint64 {
		n := g.SMBStats()
		return uint64(n.Reads + n.Writes)
	})
}

func benchP9(g *guest.Guest) {
	server := g.P9Server()
	m := g.P9TCP(server, "loose")
	compareStreams(g, "9p over TCP", "9p", "reads and writes by cgroup", `kprobe:p9_client_read_once, kprobe:p9_client_write { @[cgroup] = count(); }`, m.File("stream"), func() uint64 {
		n := server.Count()
		return uint64(n.ReadOps + n.WriteOps)
	})
}

func benchCeph(g *guest.Guest) {
	g.CephServer()
	m := g.Ceph()
	compareStreams(g, "CephFS", "ceph", "requests to OSDs by cgroup", `kprobe:ceph_osdc_start_request { @[cgroup] = count(); }`, m.File("stream"), func() uint64 {
		n := g.CephStats()
		return uint64(n.Reads + n.Writes)
	})
}

// benchScale: what more processors change.
func benchScale(g *guest.Guest) {
	cpus := runtime.NumCPU()
	d := nullBlock(g, cpus)
	var lost lossCounter
	measure := func(flags ...string) (p *peer, cost float64) {
		ready := filepath.Join(g.TempDir(), "ready")
		args := append([]string{"--source", "block", "--vxlan=false", "--output", "ndjson", "--ready-file", ready}, flags...)
		p = &peer{name: "iotrace-bpf", cmd: exec.Command(g.Tool(), args...), ready: ready}
		p.cmd.Stdout = &lost
		if len(startPeers(g, []*peer{p})) == 0 {
			g.Fatal("the tracer did not start")
		}
		for range benchRounds {
			charge(g, []*peer{p}, "load", func() uint64 { return randomly(g, d, "randwrite", cpus) })
		}
		return p, middle(p.ns["load"])
	}
	p, totals := measure("--latency=false")
	user, system := times(g, p)
	began := time.Now()
	time.Sleep(10 * time.Second) // what is measured: ten intervals without load
	user2, system2 := times(g, p)
	drain := (user2 + system2 - user - system).Seconds() / time.Since(began).Seconds()
	p.stop()
	p, events := measure("--events")
	memory := mapsOf(g, p)
	p.stop()
	report(g, "scale", "| %d | %.0f | %.0f | %.2f | %d of %d | %.1f MiB | %.1f ms |", cpus, totals, events, events/totals,
		lost.records, lost.records+lost.events, float64(memory)/(1<<20), 1000*drain)
}

// lossCounter counts the events and the lost events in the tracer's output.
type lossCounter struct {
	rest            []byte
	events, records uint64
}

func (l *lossCounter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.rest = rest
		switch {
		case bytes.Contains(line, []byte(`"iotrace.event"`)):
			l.events++
		case bytes.Contains(line, []byte(`"iotrace.status"`)):
			var doc struct {
				Iotrace struct{ Lost struct{ Records uint64 } }
			}
			if err := json.Unmarshal(line, &doc); err != nil {
				return 0, err
			}
			l.records += doc.Iotrace.Lost.Records
		}
	}
}

// times returns the CPU time that a process has used so far.
func times(g *guest.Guest, p *peer) (user, system time.Duration) {
	g.Helper()
	_, rest, _ := strings.Cut(g.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)), ") ")
	f := strings.Fields(rest)
	tick := func(s string) time.Duration { return time.Duration(number(s)) * time.Second / 100 }
	return tick(f[11]), tick(f[12])
}

// mapsOf adds up the kernel memory of the maps that a process holds.
func mapsOf(g *guest.Guest, p *peer) (bytes uint64) {
	g.Helper()
	seen := map[string]bool{}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.cmd.Process.Pid))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		field := fdinfo(string(data))
		if id := field["map_id"]; id != "" && !seen[id] {
			seen[id] = true
			bytes += number(field["memlock"])
		}
	}
	return bytes
}
