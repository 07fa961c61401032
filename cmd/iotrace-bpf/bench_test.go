//go:build integration && bench

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// TestBench is `make bench`. It compares this program with its peers in one run, as
// medians of several rounds, and writes the tables of BENCHMARKS.md.
//
// The tools take turns within each round, so other load on the machine affects all
// of them alike. Only one is attached at a time, except in the table that says
// otherwise.
func TestBench(t *testing.T) {
	b := &bench{t: t, rounds: 5, load: 2 * time.Second}
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil && n > 0 {
		b.rounds = n
	}
	var out strings.Builder
	began := time.Now()
	fmt.Fprintf(&out, "%s\n\n", b.machine())
	only := os.Getenv("ONLY") // some tables, printed and not written
	for _, part := range []struct {
		name string
		run  func(*strings.Builder)
	}{
		{"block", b.blockTable},
		{"rates", b.rates},
		{"together", b.together},
		{"buffered", b.buffered},
		{"files", b.smallFiles},
		{"starts", b.starts},
		{"resident", b.resident},
		{"maps", b.maps},
	} {
		if only == "" || slices.Contains(strings.Split(only, ","), part.name) {
			part.run(&out)
			t.Logf("%s: %v so far\n%s", part.name, time.Since(began).Round(time.Second), out.String())
		}
	}
	if t.Failed() || only != "" {
		return
	}
	writeMeasured(t, "measured", out.String())
}

// writeMeasured puts tables into their place in BENCHMARKS.md, between two comments.
func writeMeasured(t *testing.T, place, tables string) {
	t.Helper()
	begin, end := "<!-- "+place+" -->\n", "<!-- end of "+place+" -->\n"
	path := filepath.Join("..", "..", "BENCHMARKS.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the tables", path)
	}
	if err := os.WriteFile(path, []byte(head+begin+"\n"+tables+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

type bench struct {
	t      *testing.T
	rounds int
	load   time.Duration
}

func (b *bench) machine() string {
	cpu := "unknown CPU"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(data); m != nil {
			cpu = string(m[1])
		}
	}
	memory := "?"
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib float64
		if _, err := fmt.Sscanf(string(data), "MemTotal: %f kB", &kib); err == nil {
			memory = fmt.Sprintf("%.0f GiB", kib/(1<<20))
		}
	}
	loads, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(loads), " ")
	return fmt.Sprintf("%s, %d CPUs, %s, Linux %s, %s, %s; %d rounds of %v, medians; load average %s. Written by `make bench` on %s.",
		cpu, runtime.NumCPU(), memory, mustRun(b.t, "uname", "-r"), mustRun(b.t, "fio", "--version"),
		mustRun(b.t, "bpftrace", "--version"), b.rounds, b.load, load, time.Now().UTC().Format(time.DateOnly))
}

// tool is a tool to compare.
type tool struct {
	name string
	args []string // without: no tracer at all
	bpf  bool     // it has BPF programs
}

const (
	oneLiner = `tracepoint:block:block_rq_issue { @[cgroup, args->dev] = sum(args->bytes); }`
	// What biosnoop does, on the tracepoints that every kernel has: a hash of
	// starts, a line for each request.
	snoop = `tracepoint:block:block_rq_issue { @start[args->dev, args->sector] = nsecs; @comm[args->dev, args->sector] = comm; @pid[args->dev, args->sector] = pid; } ` +
		`tracepoint:block:block_rq_complete /@start[args->dev, args->sector]/ { printf("%-16s %-7d %d %d %d\n", @comm[args->dev, args->sector], @pid[args->dev, args->sector], args->dev, args->nr_sector, nsecs - @start[args->dev, args->sector]); ` +
		`delete(@start[args->dev, args->sector]); delete(@comm[args->dev, args->sector]); delete(@pid[args->dev, args->sector]); }`
)

func ours(b *bench, flags ...string) []string {
	return append([]string{binary(b.t), "--source", "block", "--vxlan=false", "--output", "ndjson"}, flags...)
}

func (b *bench) tools() []tool {
	return []tool{
		{"no tracer", nil, false},
		{"iotrace-bpf `--latency=false`", ours(b, "--latency=false"), true},
		{"iotrace-bpf", ours(b), true},
		{"iotrace-bpf `--by process`", ours(b, "--by", "process"), true},
		{"iotrace-bpf `--events`", ours(b, "--events"), true},
		{"bpftrace one-liner, bytes by cgroup and device", []string{"bpftrace", "-e", oneLiner}, true},
		{"bpftrace, biosnoop's way on tracepoints", []string{"bpftrace", "-e", snoop}, true},
		{"biotop (bcc)", []string{"biotop-bpfcc", "1"}, true},
		{"biosnoop (bcc)", []string{"biosnoop-bpfcc"}, true},
		{"biolatency (bcc)", []string{"biolatency-bpfcc", "1"}, true},
		{"biotop (libbpf-tools)", []string{"/usr/sbin/biotop", "1"}, true},
		{"biosnoop (libbpf-tools)", []string{"/usr/sbin/biosnoop"}, true},
		{"biolatency (libbpf-tools)", []string{"/usr/sbin/biolatency", "1"}, true},
		{"iotop-c", []string{"iotop-c", "-b", "-o", "-d", "1"}, false},
	}
}

// program is a BPF program as bpftool has it.
type program struct {
	ID   int
	Name string
	Time float64 `json:"run_time_ns"`
	Runs float64 `json:"run_cnt"`
}

func bpfPrograms(t testing.TB) map[int]program {
	t.Helper()
	var list []program
	if err := json.Unmarshal([]byte(mustRun(t, "bpftool", "prog", "show", "-j")), &list); err != nil {
		t.Fatal(err)
	}
	byID := map[int]program{}
	for _, p := range list {
		byID[p.ID] = p
	}
	return byID
}

// running is a tool at work.
type running struct {
	tool
	cmd      *exec.Cmd
	out      *bytes.Buffer
	programs []int
}

// start runs a tool and returns once its programs are loaded, or nil if they never
// are.
func (b *bench) start(tl tool) *running {
	b.t.Helper()
	r := &running{tool: tl, out: &bytes.Buffer{}}
	if tl.args == nil {
		return r
	}
	before := bpfPrograms(b.t)
	r.cmd = exec.Command(tl.args[0], tl.args[1:]...)
	ready := ""
	if tl.args[0] == binary(b.t) {
		ready = filepath.Join(b.t.TempDir(), "ready")
		r.cmd.Args = append(r.cmd.Args, "--ready-file", ready)
	}
	// The tool prints into a pipe with a reader, as it would into a terminal.
	r.cmd.Stdout, r.cmd.Stderr = &capped{buf: r.out}, &capped{buf: r.out}
	r.cmd.Env = append(os.Environ(), "PYTHONUNBUFFERED=1", "BPFTRACE_STRLEN=64")
	if err := r.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { r.cmd.Wait(); close(gone) }()
	stable := 0
	deadline := time.Now().Add(40 * time.Second)
	for stable < 4 && time.Now().Before(deadline) {
		select {
		case <-gone:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		var now []int
		for id := range bpfPrograms(b.t) {
			if _, ok := before[id]; !ok {
				now = append(now, id)
			}
		}
		slices.Sort(now)
		if ready != "" {
			if _, err := os.Stat(ready); err == nil {
				stable = 4 // the tool says that it is attached
			}
		} else if (len(now) > 0 || !tl.bpf) && slices.Equal(now, r.programs) {
			stable++
		} else {
			stable = 0
		}
		r.programs = now
	}
	if stable < 4 {
		r.stop()
		return nil
	}
	return r
}

func (r *running) stop() {
	if r.cmd == nil {
		return
	}
	r.cmd.Process.Signal(os.Interrupt)
	for range 100 {
		if r.cmd.Process.Signal(syscall.Signal(0)) != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.cmd.Process.Kill()
}

// capped keeps the first 64 MiB written to it and discards the rest.
type capped struct{ buf *bytes.Buffer }

func (w *capped) Write(p []byte) (int, error) {
	if w.buf.Len() < 64<<20 {
		w.buf.Write(p)
	}
	return len(p), nil
}

// cpu returns the user and system time of a process.
func (r *running) cpu() (user, system time.Duration) {
	if r.cmd == nil {
		return 0, 0
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	ticks := func(s string) time.Duration {
		n, _ := strconv.Atoi(s)
		return time.Duration(n) * time.Second / 100
	}
	return ticks(f[11]), ticks(f[12])
}

// rss returns the resident memory of a process in MiB.
func (r *running) rss() float64 {
	if r.cmd == nil {
		return 0
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	var kib float64
	fmt.Sscan(rest, &kib)
	return kib / 1024
}

// stats returns the kernel's figures of the tool's programs.
func (r *running) stats(t testing.TB) map[int]program {
	mine := map[int]program{}
	all := bpfPrograms(t)
	for _, id := range r.programs {
		mine[id] = all[id]
	}
	return mine
}

// perIO returns the time per I/O, in ns, of the programs that ran for these I/Os.
// Programs that ran seldom belong to other work of the machine and are left out.
func (r *running) perIO(t testing.TB, before map[int]program, ios float64) (ns float64) {
	for id, now := range r.stats(t) {
		was := before[id]
		if runs := now.Runs - was.Runs; runs > ios/2 {
			ns += (now.Time - was.Time) / runs
		}
	}
	return ns
}

func setStats(t testing.TB, on bool) {
	t.Helper()
	value := "0"
	if on {
		value = "1"
	}
	if err := os.WriteFile("/proc/sys/kernel/bpf_stats_enabled", []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// result is one measurement.
type result struct {
	iops, ns, user, system, rss float64
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(list))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

func pick(list []result, f func(result) float64) float64 {
	var values []float64
	for _, r := range list {
		values = append(values, f(r))
	}
	return median(values)
}

// fio loads the disk and returns I/O per second and the number of I/Os.
func (b *bench) fio(d *disk, rw string) (rate, ios float64) {
	b.t.Helper()
	before := d.stat(b.t)
	mustRun(b.t, "fio", "--name=bench", "--filename="+d.dev, "--rw="+rw, "--bs=4k", "--iodepth=64", "--ioengine=io_uring", "--direct=1",
		"--time_based", fmt.Sprintf("--runtime=%dms", b.load.Milliseconds()), "--norandommap", "--output-format=terse")
	delta := d.stat(b.t).minus(before)
	ios = float64(delta.reads + delta.writes)
	return ios / b.load.Seconds(), ios
}

// measure runs one load under a tool.
func (b *bench) measure(r *running, d *disk, rw string) result {
	before := r.stats(b.t)
	user, system := r.cpu()
	rate, ios := b.fio(d, rw)
	user2, system2 := r.cpu()
	return result{
		iops: rate, ns: r.perIO(b.t, before, ios), rss: r.rss(),
		user: 100 * (user2 - user).Seconds() / b.load.Seconds(), system: 100 * (system2 - system).Seconds() / b.load.Seconds(),
	}
}

// blockTable: random I/O of 4 KiB, one tool after the other.
func (b *bench) blockTable(out *strings.Builder) {
	d := newDisk(b.t, 512)
	mustRun(b.t, "dd", "if=/dev/zero", "of="+d.dev, "bs=1M", "count=512", "oflag=direct") // no holes to read
	unusable := map[string]bool{}
	for _, rw := range []string{"randwrite", "randread"} {
		timed, counted := map[string][]result{}, map[string][]result{}
		for range max(3, b.rounds/2) {
			for _, tl := range b.tools() {
				if unusable[tl.name] || rw == "randread" && strings.Contains(tl.name, "process") {
					continue
				}
				r := b.start(tl)
				if r == nil && len(timed[tl.name]) == 0 {
					unusable[tl.name] = true
				}
				if r == nil {
					continue
				}
				setStats(b.t, false)
				m := b.measure(r, d, rw)
				if tl.bpf {
					setStats(b.t, true)
					counted[tl.name] = append(counted[tl.name], b.measure(r, d, rw))
					setStats(b.t, false)
				}
				r.stop()
				timed[tl.name] = append(timed[tl.name], m)
			}
		}
		fmt.Fprintf(out, "### fio 4 KiB %s, io_uring, O_DIRECT, 64 in flight, loop over tmpfs\n\n", map[string]string{"randwrite": "random writes", "randread": "random reads"}[rw])
		fmt.Fprint(out, "| tool | I/O per second | BPF ns per I/O | user CPU | system CPU | resident |\n|---|---|---|---|---|---|\n")
		for _, tl := range b.tools() {
			m := timed[tl.name]
			if unusable[tl.name] {
				if rw == "randwrite" {
					fmt.Fprintf(out, "| %s | cannot run on this kernel | | | | |\n", tl.name)
				}
				continue
			}
			if len(m) == 0 {
				continue
			}
			rate := pick(m, func(r result) float64 { return r.iops })
			row := []string{tl.name, fmt.Sprintf("%.0f", rate), "", "", "", ""}
			if tl.args != nil {
				row[3] = fmt.Sprintf("%.1f %%", pick(m, func(r result) float64 { return r.user }))
				row[4] = fmt.Sprintf("%.1f %%", pick(m, func(r result) float64 { return r.system }))
				row[5] = fmt.Sprintf("%.0f MiB", pick(m, func(r result) float64 { return r.rss }))
			}
			if tl.bpf {
				row[2] = fmt.Sprintf("%.0f", pick(counted[tl.name], func(r result) float64 { return r.ns }))
			}
			fmt.Fprintf(out, "| %s |\n", strings.Join(row, " | "))
		}
		fmt.Fprintln(out)
	}
}

// rates measures by how much a tool lowers the rate. Two CPUs do the load and all
// other work of the machine, so one comparison says little. It is repeated many
// times, each a short run between two runs without the tool, and the table shows
// the confidence interval.
func (b *bench) rates(out *strings.Builder) {
	d := newDisk(b.t, 512)
	load := b.load
	b.load = 1500 * time.Millisecond
	defer func() { b.load = load }()
	pairs := max(12, 3*b.rounds)
	lost := map[string][]float64{}
	tools := []tool{
		{"no tracer, to see what chance does", nil, false},
		{"iotrace-bpf `--latency=false`", ours(b, "--latency=false"), true},
		{"iotrace-bpf", ours(b), true},
		{"iotrace-bpf `--events`", ours(b, "--events"), true},
		{"bpftrace one-liner, bytes by cgroup and device", []string{"bpftrace", "-e", oneLiner}, true},
	}
	before, _ := b.fio(d, "randwrite")
	for range pairs {
		for _, tl := range tools {
			r := b.start(tl)
			if r == nil {
				b.t.Fatalf("%s did not start", tl.name)
			}
			with, _ := b.fio(d, "randwrite")
			r.stop()
			after, _ := b.fio(d, "randwrite")
			lost[tl.name] = append(lost[tl.name], 100*(1-with/((before+after)/2)))
			before = after
		}
	}
	fmt.Fprintf(out, "### Rate lost, random writes, %d times between two runs without\n\n| tool | rate lost, median | 95 %% sure that it is in |\n|---|---|---|\n", pairs)
	for _, tl := range tools {
		low, high := confidence(lost[tl.name])
		fmt.Fprintf(out, "| %s | %.1f %% | %.1f %% to %.1f %% |\n", tl.name, median(lost[tl.name]), low, high)
	}
	fmt.Fprintln(out)
}

// confidence returns the bounds of the median's 95 % confidence interval for any
// distribution: the order statistics of the sign test. It needs at least six values.
func confidence(list []float64) (low, high float64) {
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	p, below, k := math.Pow(0.5, float64(n)), 0.0, 0
	for below+p <= 0.025 {
		below += p
		p *= float64(n-k) / float64(k+1)
		k++
	}
	k = max(k, 1)
	return s[k-1], s[n-k]
}

// together attaches all at once: the same I/Os, the same noise.
func (b *bench) together(out *strings.Builder) {
	d := newDisk(b.t, 512)
	setStats(b.t, true)
	defer setStats(b.t, false)
	var all []*running
	for _, tl := range b.tools() {
		if !tl.bpf || strings.Contains(tl.name, "process") {
			continue
		}
		if r := b.start(tl); r != nil {
			all = append(all, r)
		}
	}
	ns := map[string][]float64{}
	for range b.rounds {
		var before []map[int]program
		for _, r := range all {
			before = append(before, r.stats(b.t))
		}
		_, ios := b.fio(d, "randwrite")
		for i, r := range all {
			ns[r.name] = append(ns[r.name], r.perIO(b.t, before[i], ios))
		}
	}
	base := math.NaN()
	for _, r := range all {
		if r.args[0] == "bpftrace" && math.IsNaN(base) {
			base = median(ns[r.name])
		}
	}
	fmt.Fprint(out, "### All attached at once, random writes\n\n| tool | BPF ns per I/O | ratio |\n|---|---|---|\n")
	for _, r := range all {
		fmt.Fprintf(out, "| %s | %.0f | %.2f |\n", r.name, median(ns[r.name]), median(ns[r.name])/base)
		r.stop()
	}
	fmt.Fprintln(out)
}

// writer is a process in a cgroup of its own, on every hierarchy that tools look at.
type writer struct {
	name   string // of the process
	bin    string
	ids    map[string]bool // of its cgroups
	dirs   []string
	amount uint64
}

func (b *bench) newWriter(name string, amount uint64) *writer {
	b.t.Helper()
	h, err := attribute.FindHierarchy("")
	if err != nil {
		b.t.Fatal(err)
	}
	w := &writer{name: name, amount: amount, bin: filepath.Join(b.t.TempDir(), name), ids: map[string]bool{}}
	data, err := os.ReadFile("/bin/dd")
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(w.bin, data, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for _, top := range []string{h.Mount, "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(top, "bench-"+name)
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { os.Remove(dir) })
		w.dirs = append(w.dirs, dir)
		w.ids[strconv.FormatUint(inode(b.t, dir), 10)] = true
	}
	return w
}

// write returns a command that writes a file as this owner.
func (w *writer) write(file string) *exec.Cmd {
	var join strings.Builder
	for _, d := range w.dirs {
		fmt.Fprintf(&join, "echo $$ >%s/cgroup.procs; ", d)
	}
	// Write over some seconds, so a tool that polls once a second can see it.
	return exec.Command("sh", "-c", join.String()+fmt.Sprintf("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c %d /dev/zero; sleep 0.25; done | exec %s iflag=fullblock of=%s bs=1M status=none",
		w.amount/12, w.bin, file))
}

// buffered: two owners write into the page cache, a third party calls sync. How
// many bytes does each tool show under the wrong name?
func (b *bench) buffered(out *strings.Builder) {
	d := newDisk(b.t, 900)
	d.format(b.t, mkExt4()...)
	a, c := b.newWriter("ioalpha", 192<<20), b.newWriter("iobeta", 96<<20)
	type attribution struct {
		tool
		count func(text string, w *writer) uint64
	}
	biosnoopLine := func(text string, w *writer) (n uint64) {
		for line := range strings.Lines(text) {
			var comm string
			var pid, dev, sectors uint64
			if _, err := fmt.Sscan(line, &comm, &pid, &dev, &sectors); err == nil && comm == w.name {
				n += sectors * 512
			}
		}
		return n
	}
	iotopLine := func(text string, w *writer) (n uint64) {
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			// TID PRIO USER READ K/s WRITE K/s ... COMMAND
			if len(f) > 7 && f[4] == "K/s" && f[6] == "K/s" && strings.HasSuffix(strings.TrimSpace(line), w.name) {
				kib, _ := strconv.ParseFloat(f[5], 64)
				n += uint64(kib * 1024)
			}
		}
		return n
	}
	cases := []attribution{
		{tool{"iotrace-bpf `--by cgroup`", ours(b, "--by", "cgroup,device", "--interval", "200ms"), true}, func(text string, w *writer) (n uint64) {
			for line := range strings.Lines(text) {
				var doc tracedDoc
				if json.Unmarshal([]byte(line), &doc) == nil && d.match(&doc) && w.ids[doc.Iotrace.Cgroup.ID] {
					n += doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes
				}
			}
			return n
		}},
		{tool{"iotrace-bpf `--by process`", ours(b, "--by", "process,device", "--interval", "200ms"), true}, func(text string, w *writer) (n uint64) {
			for line := range strings.Lines(text) {
				var doc tracedDoc
				if json.Unmarshal([]byte(line), &doc) == nil && d.match(&doc) && doc.Process.Name == w.name {
					n += doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes
				}
			}
			return n
		}},
		{tool{"bpftrace one-liner", []string{"bpftrace", "-e", oneLiner}, true}, func(text string, w *writer) (n uint64) {
			for line := range strings.Lines(text) {
				var id, dev, bytes uint64
				if _, err := fmt.Sscanf(line, "@[%d, %d]: %d", &id, &dev, &bytes); err == nil && w.ids[strconv.FormatUint(id, 10)] {
					n += bytes
				}
			}
			return n
		}},
		{tool{"bpftrace, biosnoop's way on tracepoints", []string{"bpftrace", "-e", snoop}, true}, biosnoopLine},
		{tool{"iotop-c", []string{"iotop-c", "-b", "-o", "-k", "-d", "1"}, false}, iotopLine},
	}
	fmt.Fprintf(out, "### Buffered sequential writes, two cgroups, %d and %d MiB, written back by `sync` of a third\n\n", a.amount>>20, c.amount>>20)
	fmt.Fprint(out, "| tool | under the first | under the second | bytes under a wrong name |\n|---|---|---|---|\n")
	wrong := map[string][3][]float64{}
	for range max(3, b.rounds/2) {
		for _, x := range cases {
			r := b.start(x.tool)
			if r == nil {
				continue
			}
			first, second := a.write(filepath.Join(d.mount, "a")), c.write(filepath.Join(d.mount, "b"))
			for _, cmd := range []*exec.Cmd{first, second} {
				if err := cmd.Start(); err != nil {
					b.t.Fatal(err)
				}
			}
			for _, cmd := range []*exec.Cmd{first, second} {
				if err := cmd.Wait(); err != nil {
					b.t.Fatal(err)
				}
			}
			d.flush(b.t)
			time.Sleep(1200 * time.Millisecond) // tools with a fixed interval of a second
			r.stop()
			na, nc := x.count(r.out.String(), a), x.count(r.out.String(), c)
			e := wrong[x.name]
			e[0] = append(e[0], float64(na))
			e[1] = append(e[1], float64(nc))
			e[2] = append(e[2], math.Abs(float64(a.amount)-float64(na))+math.Abs(float64(c.amount)-float64(nc)))
			wrong[x.name] = e
			os.Remove(filepath.Join(d.mount, "a"))
			os.Remove(filepath.Join(d.mount, "b"))
			d.flush(b.t)
		}
	}
	for _, x := range cases {
		e, ok := wrong[x.name]
		if !ok {
			continue
		}
		fmt.Fprintf(out, "| %s | %.1f MiB | %.1f MiB | %.0f (%.1f %%) |\n", x.name, median(e[0])/mib, median(e[1])/mib, median(e[2]),
			100*median(e[2])/float64(a.amount+c.amount))
	}
	fmt.Fprintln(out)
}

// smallFiles: many small files made and written back, each time without the tool
// right before.
func (b *bench) smallFiles(out *strings.Builder) {
	const files = 20_000
	d := newDisk(b.t, 400)
	d.format(b.t, append(mkExt4(), "-b", "4096")...) // as where a disk has more than 512 MiB
	content := bytes.Repeat([]byte("x"), 4096)
	run := func() float64 {
		dir := filepath.Join(d.mount, "files")
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.t.Fatal(err)
		}
		start := time.Now()
		for i := range files {
			if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), content, 0o644); err != nil {
				b.t.Fatal(err)
			}
		}
		unix.Sync()
		n := time.Since(start).Seconds()
		if err := os.RemoveAll(dir); err != nil {
			b.t.Fatal(err)
		}
		d.flush(b.t)
		return n
	}
	rate, lost, ns := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	tools := slices.DeleteFunc(b.tools(), func(tl tool) bool {
		return !strings.HasPrefix(tl.name, "iotrace") && !strings.HasPrefix(tl.name, "bpftrace")
	})
	setStats(b.t, false)
	run() // the file system's own structures, once
	var quiet []float64
	for range max(6, 2*b.rounds) {
		for _, tl := range tools {
			without := run()
			quiet = append(quiet, files/without)
			r := b.start(tl)
			if r == nil {
				continue
			}
			with := run()
			rate[tl.name] = append(rate[tl.name], files/with)
			lost[tl.name] = append(lost[tl.name], 100*(1-without/with))
			setStats(b.t, true)
			before := r.stats(b.t)
			run()
			var total float64
			for id, now := range r.stats(b.t) {
				total += now.Time - before[id].Time
			}
			ns[tl.name] = append(ns[tl.name], total/files)
			setStats(b.t, false)
			r.stop()
		}
	}
	fmt.Fprintf(out, "### %d files of 4 KiB, made, written back, removed, ext4\n\n| tool | files per second | rate lost, and where that is with 95 %% | BPF ns per file |\n|---|---|---|---|\n", files)
	fmt.Fprintf(out, "| no tracer | %.0f |  |  |\n", median(quiet))
	for _, tl := range tools {
		if len(rate[tl.name]) > 0 {
			low, high := confidence(lost[tl.name])
			fmt.Fprintf(out, "| %s | %.0f | %.1f %% (%.1f to %.1f) | %.0f |\n", tl.name, median(rate[tl.name]), median(lost[tl.name]), low, high, median(ns[tl.name]))
		}
	}
	fmt.Fprintln(out)
}

// starts: from the command to its first number, and the memory then.
func (b *bench) starts(out *strings.Builder) {
	h, err := attribute.FindHierarchy("")
	if err != nil {
		b.t.Fatal(err)
	}
	fmt.Fprint(out, "### From the command to the first number\n\n| tool | containers | ms | resident |\n|---|---|---|---|\n")
	var made []string
	defer func() {
		for _, dir := range slices.Backward(made) {
			os.Remove(dir)
		}
	}()
	parent, err := os.MkdirTemp(h.Mount, "bench")
	if err != nil {
		b.t.Fatal(err)
	}
	made = append(made, parent)
	for _, n := range []int{5, 1500} {
		for i := len(made) - 1; i < n; i++ {
			dir := filepath.Join(parent, fmt.Sprintf("docker-%064x.scope", i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.t.Fatal(err)
			}
			made = append(made, dir)
		}
		for _, tl := range []tool{
			{"iotrace-bpf, all sources", []string{binary(b.t), "--output", "ndjson", "--interval", "10ms"}, true},
			{"bpftrace one-liner, printed every 10 ms", []string{"bpftrace", "-e", oneLiner + ` interval:ms:10 { print(@); printf("\n"); }`}, true},
			{"iotop-c", []string{"iotop-c", "-b", "-d", "1"}, false},
		} {
			var ms, rss []float64
			for range b.rounds {
				cmd := exec.Command(tl.args[0], tl.args[1:]...)
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					b.t.Fatal(err)
				}
				start := time.Now()
				if err := cmd.Start(); err != nil {
					b.t.Fatal(err)
				}
				in := bufio.NewReader(stdout)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						b.t.Fatalf("%s: no number: %v", tl.name, err)
					}
					if !strings.HasPrefix(line, "Attaching") {
						break
					}
				}
				ms = append(ms, float64(time.Since(start).Microseconds())/1000)
				rss = append(rss, (&running{cmd: cmd}).rss())
				cmd.Process.Kill()
				cmd.Wait()
			}
			fmt.Fprintf(out, "| %s | %d | %.0f | %.0f MiB |\n", tl.name, n, median(ms), median(rss))
		}
	}
	fmt.Fprintln(out)
}

// resident is the memory of a run with 1,500 containers that do I/O all the time.
func (b *bench) resident(out *strings.Builder) {
	d := newDisk(b.t, 256)
	o := newOwners(b.t, d, 1500, 500)
	r := b.start(tool{"iotrace-bpf", ours(b, "--interval", "200ms"), true})
	if r == nil {
		b.t.Fatal("iotrace-bpf did not start")
	}
	o.begin(b.t)
	enginetest.Poll(b.t, 10*time.Second, "an interval with all of them", func() bool { return r.out.Len() > 1500*300 })
	done := make(chan struct{})
	go func() { o.expect(b.t, "done"); close(done) }()
	var rss []float64
	for busy := true; busy; {
		select {
		case <-done:
			busy = false
		case <-time.After(100 * time.Millisecond):
			rss = append(rss, r.rss())
		}
	}
	fmt.Fprintf(out, "With 1,500 cgroups that do I/O for %.0f s, reported five times a second: %.0f MiB resident at the end, %.0f MiB at the most.\n\n",
		float64(len(rss))/10, median(rss[len(rss)*3/4:]), slices.Max(rss))
	r.stop()
}

// maps is the kernel memory of our maps, and the size of the binary.
func (b *bench) maps(out *strings.Builder) {
	fmt.Fprintf(out, "### Kernel memory of the maps, %d possible CPUs\n\n| flags | MiB |\n|---|---|\n", runtime.NumCPU())
	for _, flags := range [][]string{{"--latency=false"}, nil, {"--events"}, {"--max-groups", "65536"}, {"--by", "process"}} {
		r := b.start(tool{"", ours(b, flags...), true})
		if r == nil {
			b.t.Fatal("iotrace-bpf did not start")
		}
		bytes := mapMemory(b.t, r.cmd.Process.Pid)
		r.stop()
		fmt.Fprintf(out, "| `%s` | %.1f |\n", strings.Join(append([]string{"iotrace-bpf --source block"}, flags...), " "), float64(bytes)/mib)
	}
	info, err := os.Stat(filepath.Join("..", "..", "iotrace-bpf"))
	if err != nil {
		b.t.Fatal(err)
	}
	fmt.Fprintf(out, "\nThe binary, as `make build` makes it: %.1f MB.\n\n", float64(info.Size())/1e6)
}

// mapMemory adds up what the kernel says of the maps that a process has open.
func mapMemory(t testing.TB, pid int) (bytes uint64) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		info := map[string]string{}
		for line := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(line, ":"); ok {
				info[k] = strings.TrimSpace(v)
			}
		}
		if id := info["map_id"]; id != "" && !seen[id] {
			seen[id] = true
			n, err := strconv.ParseUint(info["memlock"], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			bytes += n
		}
	}
	return bytes
}
