//go:build vm

package vmtests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output/schema"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

var (
	flagKernel   = flag.String("kernel", "", "run on these lines of the matrix only, by name or series, separated by commas")
	flagScenario = flag.String("scenario", "", "run only scenarios whose name matches this regular expression")
	flagQuick    = flag.Bool("quick", false, "run only the scenarios marked smoke")
	flagShell    = flag.Bool("shell", false, "give a shell in the guest of the first selected kernel instead of running tests")
	flagImage    = flag.String("image", "base", "root image of the shell")
	flagRefresh  = flag.Bool("refresh", false, "fetch the package lists again, to find newer kernels")
	flagAccel    = flag.String("accel", "", "kvm or tcg; the default is kvm where a kernel boots under it")
	flagUpdate   = flag.Bool("update", false, "rewrite the recorded answers of iotrace-bpf check")
	flagReport   = flag.String("rerun-report", "", "write the guests that were rerun to this file, as JSON")
	flagRerun    = flag.Int("rerun", 0, "rerun up to this many guests in which something failed; the second run decides")
)

// scenario is one test in a guest. Its name is an identifier.
type scenario struct {
	name string
	run  func(*guest.Guest)
	// since is the first kernel series that supports it ("6.12"); it does not run on
	// older ones, and why is shown in SUPPORT.md.
	since string
	// before is the first series that no longer supports it.
	before string
	// cgroup limits it to these modes: "v2", "v1 hybrid".
	cgroup string
	// arch limits it to one architecture, in Debian's words.
	arch string
	why  string
	// smoke marks the few that run on a smoke line of the matrix as well.
	smoke bool
	// quick limits where -quick runs a smoke scenario; nil is every line of its suite.
	quick func(Kernel) bool
}

// suite is the test of one source: what its guests need and what runs in them.
type suite struct {
	source    string
	hooks     string   // source whose hooks its table shows; default source
	image     string   // of images(); default base
	memory    int      // MiB; default 1024
	disk      int64    // MiB of each scratch disk; default 1024
	append    []string // words for the kernel's command line
	deadline  time.Duration
	bootLimit time.Duration
	cpus      int  // default 2
	noTracer  bool // needs no iotrace-bpf
	network   bool // has a network card, which reaches servers on this machine
	shares    []vm.Share
	paths     bool              // has an NVMe disk with two paths: Guest.Paths
	line      string            // the only line of the matrix that it runs on; "" is every line
	flavour   string            // the only kernels with its modules; "" is every flavour
	quick     func(Kernel) bool // the lines on which -quick runs it; nil is every line
	once      bool              // never rerun: it counts on this machine, and would count a second guest too
	scenarios []scenario
}

// never is for what a quick run leaves out.
func never(Kernel) bool { return false }

// onlyOn is for what takes too long for every line of a quick run.
func onlyOn(line string) func(Kernel) bool {
	return func(k Kernel) bool { return k.Name == line }
}

// hasModules tells whether a kernel has the modules that the suite needs.
func (s suite) hasModules(k Kernel) bool { return s.flavour == "" || s.flavour == k.Flavour }

// oldestAndNewest is for what a quick run covers at both ends of the matrix. The line
// between them, which most hosts have, runs the suite of blocks and those of a single
// line. Owners on cgroup v1 are covered by the suite of blocks too, and by the tests on
// this machine if its memory controller is v1's.
func oldestAndNewest(k Kernel) bool { return k.Cgroup != "v1" && k.Name != "6.12" }

// supports says whether a scenario runs on a line of the matrix.
func (s scenario) supports(k Kernel) bool {
	if s.since != "" && seriesLess(k.Series, s.since) || s.before != "" && !seriesLess(k.Series, s.before) {
		return false
	}
	if s.cgroup != "" && !strings.Contains(" "+s.cgroup+" ", " "+k.Cgroup+" ") {
		return false
	}
	if s.arch != "" && s.arch != k.Arch {
		return false
	}
	return !k.Smoke || s.smoke
}

func seriesLess(a, b string) bool {
	var a1, a2, b1, b2 int
	fmt.Sscanf(a, "%d.%d", &a1, &a2)
	fmt.Sscanf(b, "%d.%d", &b1, &b2)
	return a1 < b1 || a1 == b1 && a2 < b2
}

func TestMain(m *testing.M) {
	guest.Main()
	flag.Parse()
	if *flagShell {
		if err := shell(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	status := m.Run()
	if !guest.Inside() {
		if h, err := theHost(); err == nil {
			os.RemoveAll(h.work)
			if len(h.used) > 0 {
				fmt.Print(h.summary())
			}
			if *flagReport != "" {
				if err := h.writeReruns(*flagReport); err != nil {
					fmt.Fprintln(os.Stderr, err)
					status = 1
				}
			}
		}
	}
	os.Exit(status)
}

// test runs the suite: on the host by booting a guest for each kernel, in the
// guest by running the scenarios.
func (s suite) test(t *testing.T) {
	if guest.Inside() {
		k := kernelInside(t)
		for _, sc := range s.scenarios {
			if sc.supports(k) {
				t.Run(sc.name, func(t *testing.T) {
					g := guest.New(t)
					g.Validate = schema.Validate
					sc.run(g)
				})
			}
		}
		return
	}
	s.checkSection(t)
	if *flagSupport {
		return
	}
	t.Parallel() // no suite waits for the last guest of another
	kernels, err := selectedOf(s.flavour)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, k := range kernels {
		if len(s.expected(t, k)) == 0 || s.line != "" && s.line != k.Name || !s.hasModules(k) {
			continue
		}
		ran++
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel() // as many guests at once as -parallel says
			s.boot(t, k)
		})
	}
	if ran == 0 && s.line != "" {
		t.Skipf("runs on %s only, which was not selected", s.line)
	}
	if ran == 0 && s.flavour != "" {
		t.Skipf("runs on kernels of flavour %s only, of which none was selected", s.flavour)
	}
	if ran == 0 && *flagScenario == "" && !*flagQuick {
		t.Error("no kernel of the matrix runs any scenario of this suite")
	}
}

// kernelInside reads this guest's line of the matrix from the running system: its
// series and how cgroups are mounted. This works on a machine outside the matrix
// too.
func kernelInside(t *testing.T) Kernel {
	g := guest.New(t)
	major, minor := g.Kernel()
	k := Kernel{Series: fmt.Sprintf("%d.%d", major, minor), Cgroup: "v2", Arch: runtime.GOARCH, Smoke: strings.Contains(g.ReadFile("/proc/cmdline"), "iotrace.smoke=1")}
	if g.CgroupV1() {
		k.Cgroup = "v1"
		if strings.Contains(g.ReadFile("/proc/mounts"), " cgroup2 ") {
			k.Cgroup = "hybrid"
		}
	}
	return k
}

// selected are the lines that -kernel names. A series stands for its lines with a cloud kernel.
func selected() ([]Kernel, error) { return selectedOf(vm.Cloud) }

// selectedOf is selected for a flavour of a series.
func selectedOf(flavour string) ([]Kernel, error) {
	var out []Kernel
	for _, want := range strings.Split(*flagKernel, ",") {
		known := want == ""
		for _, k := range Matrix() {
			known = known || k.Name == want || k.Series == want
			if k.Name == want || !k.Asked && (want == "" || k.Series == want && k.Flavour == flavour) {
				out = append(out, k)
			}
		}
		if !known {
			return nil, fmt.Errorf("no line of the matrix is called %q", want)
		}
	}
	return out, nil
}

// expected are the names of the scenarios that must run.
func (s suite) expected(t *testing.T, k Kernel) []string {
	re, err := regexp.Compile(*flagScenario)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	if *flagQuick && s.quick != nil && !s.quick(k) {
		return nil
	}
	for _, sc := range s.scenarios {
		if *flagQuick && (!sc.smoke || sc.quick != nil && !sc.quick(k)) {
			continue
		}
		if sc.supports(k) && re.MatchString(sc.name) {
			names = append(names, sc.name)
		}
	}
	return names
}

// host holds what all guests of a run share.
type host struct {
	cache  string
	mirror vm.Mirror
	work   string // removed at the end

	mu    sync.Mutex // guests are prepared one after the other: they share kernels, images and builds
	accel map[string]vm.Accel
	built map[string]error // by file: every program is built once per run, so all guests run the same

	usedMu   sync.Mutex
	used     map[string]*total // by test
	prepared time.Duration     // fetching, building, unpacking
	rerun    []rerun
	booted   []rerun // guests whose kernel died before the first test, and that were booted again
}

// rerun is a guest that ran a second time, and why. The fields are those of the file that
// -rerun-report names.
type rerun struct{ Test, Verdict, Cause string }

// mayRerun says whether a guest may be rerun. It keeps the guest's failures for the
// summary at the end, so they are not overlooked.
func (h *host) mayRerun(test string, failures []string) bool {
	h.usedMu.Lock()
	defer h.usedMu.Unlock()
	if len(h.rerun) >= *flagRerun {
		return false
	}
	h.rerun = append(h.rerun, rerun{test, "not finished", strings.Join(failures, "\n")})
	return true
}

// bootsAgain notes that a guest's kernel died before the first test. The suites of guests
// that must not boot are left out.
func (h *host) bootsAgain(test, line, console string) {
	h.usedMu.Lock()
	defer h.usedMu.Unlock()
	if !strings.HasSuffix(test, "Verdict") {
		h.booted = append(h.booted, rerun{test + "/" + line, "booted", "the kernel died before the first test\n" + lastLines(console, 8)})
	}
}

// ranAgain notes how the second run of a guest ended.
func (h *host) ranAgain(test string, failed bool) {
	h.usedMu.Lock()
	defer h.usedMu.Unlock()
	for i := range h.rerun {
		if h.rerun[i].Test == test {
			h.rerun[i].Verdict = "pass"
			if failed {
				h.rerun[i].Verdict = "fail"
			}
		}
	}
}

// writeReruns writes the file that -rerun-report names.
func (h *host) writeReruns(name string) error {
	h.usedMu.Lock()
	defer h.usedMu.Unlock()
	text, err := json.MarshalIndent(slices.Concat(h.rerun, h.booted), "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// total is the sum of what the guests of one test used.
type total struct {
	guests int
	vm.Resources
}

func (h *host) count(test string, u vm.Resources) {
	h.usedMu.Lock()
	defer h.usedMu.Unlock()
	c := h.used[test]
	if c == nil {
		c = &total{}
		h.used[test] = c
	}
	c.guests++
	c.Wall += u.Wall
	c.Boot += u.Boot
	c.Processor += u.Processor
}

// summary says where the time went.
func (h *host) summary() string {
	h.usedMu.Lock()
	defer h.usedMu.Unlock()
	var b strings.Builder
	var all total
	line := func(name string, c *total) {
		fmt.Fprintf(&b, "%-16s %3d guests  ran %6.0fs, booting %5.0fs of them; processor %6.0fs\n", name, c.guests, c.Wall.Seconds(), c.Boot.Seconds(), c.Processor.Seconds())
	}
	for _, test := range slices.Sorted(maps.Keys(h.used)) {
		c := h.used[test]
		line(test, c)
		all.guests += c.guests
		all.Wall += c.Wall
		all.Boot += c.Boot
		all.Processor += c.Processor
	}
	line("all", &all)
	fmt.Fprintf(&b, "%-16s %.0fs\n", "preparing", h.prepared.Seconds())
	for _, r := range slices.Concat(h.rerun, h.booted) {
		fmt.Fprintf(&b, "failed at first and was rerun, then %s: %s\n%s\n", r.Verdict, r.Test, quoted([]string{r.Cause}))
	}
	return b.String()
}

var theHost = sync.OnceValues(func() (*host, error) {
	ctx := context.Background()
	cache, err := vm.CacheDir()
	if err != nil {
		return nil, err
	}
	m, err := vm.FindMirror(ctx)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "iotrace-vmtests-")
	if err != nil {
		return nil, err
	}
	return &host{cache: cache, mirror: m, work: work, accel: map[string]vm.Accel{}, built: map[string]error{}, used: map[string]*total{}}, nil
})

// bootLimit is longer than any guest takes to boot, even on a busy machine.
const bootLimit = 4 * time.Minute

// bootTries is the number of boots of a guest whose kernel dies before the first test: an
// emulated 7.2 sometimes crashes in its own code patching at 0.9 s, even twice in a row.
const bootTries = 3

// prepare makes everything that a guest of this kernel boots from.
func (h *host) prepare(ctx context.Context, k Kernel, image string, tracer bool) (vm.Guest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	unlock, err := vm.LockCache(h.cache)
	if err != nil {
		return vm.Guest{}, err
	}
	defer unlock()
	begin := time.Now()
	defer func() { h.prepared += time.Since(begin) }()
	kernel, err := vm.FetchKernel(ctx, h.cache, h.mirror, k.Arch, k.Series, k.Flavour, *flagRefresh)
	if err != nil {
		return vm.Guest{}, err
	}
	img, ok := images()[image]
	if !ok {
		return vm.Guest{}, fmt.Errorf("no image is called %q", image)
	}
	root, err := vm.BuildImage(ctx, h.cache, h.mirror, k.Arch, img)
	if err != nil {
		return vm.Guest{}, err
	}
	initramfs, err := h.initramfs(ctx, kernel, tracer)
	if err != nil {
		return vm.Guest{}, err
	}
	g := vm.Guest{Kernel: kernel, Root: root, Initramfs: initramfs, MemoryMiB: 1024, DiskMiB: 1024, Accel: h.acceleration(ctx, kernel),
		Append: []string{"iotrace.cgroup=" + k.Cgroup}, Deadline: 20 * time.Minute, BootLimit: bootLimit}
	if k.Smoke {
		g.Append = append(g.Append, "iotrace.smoke=1")
	}
	return g, nil
}

// initramfs puts the programs of a guest together.
func (h *host) initramfs(ctx context.Context, k vm.Kernel, tracer bool) (string, error) {
	arch := k.Arch
	path := filepath.Join(h.work, "initramfs-"+arch)
	files := map[string]string{"init": filepath.Join(h.work, "worker-"+arch), "vmtests.test": filepath.Join(h.work, "vmtests.test-"+arch)}
	if err := h.build(ctx, arch, files["init"], "build", "-o", files["init"], "./worker"); err != nil {
		return "", err
	}
	if err := h.build(ctx, arch, files["vmtests.test"], "test", "-c", "-tags", "vm bench", "-ldflags", "-s -w", "-o", files["vmtests.test"], "."); err != nil {
		return "", err
	}
	if tracer {
		path += "-tracer"
		files["iotrace-bpf"] = filepath.Join(h.work, "iotrace-bpf-"+arch)
		if err := h.build(ctx, arch, files["iotrace-bpf"], "build", "-trimpath", "-ldflags", "-s -w", "-o", files["iotrace-bpf"], "../cmd/iotrace-bpf"); err != nil {
			return "", err
		}
	}
	if len(k.Early) > 0 {
		path += "-" + k.Release
		for _, m := range k.Early {
			files[filepath.Join(guest.EarlyDir, filepath.Base(m))] = m
		}
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, vm.WriteInitramfs(path, files)
}

// build runs the go command for the guest: static, so that it runs under any root.
func (h *host) build(ctx context.Context, arch, file string, args ...string) error {
	if err, done := h.built[file]; done {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	h.built[file] = err
	return err
}

func (h *host) acceleration(ctx context.Context, k vm.Kernel) vm.Accel {
	if *flagAccel != "" {
		return vm.Accel(*flagAccel)
	}
	if _, ok := h.accel[k.Arch]; !ok {
		h.accel[k.Arch] = vm.Probe(ctx, k)
	}
	return h.accel[k.Arch]
}

// outcome is everything known about one guest after its end.
type outcome struct {
	*guestResults
	console  string
	problems []string // of the guest as a whole; scenarios have their own
	sick     bool     // the machine, not a test
	log      []string
}

// verdict returns why a scenario failed, "" if it passed.
func (o *outcome) verdict(name string) string {
	r := o.tests[name]
	switch {
	case r == nil:
		return "did not run"
	case r.action == "pass":
		return ""
	case r.action == "":
		return "began and never ended\n" + r.output.String()
	}
	// A failure, or a skip: scenarios declare what a kernel cannot do, and never find it
	// out.
	return r.action + "\n" + r.output.String()
}

// failures describes everything that failed.
func (o *outcome) failures(names []string) []string {
	var out []string
	for _, name := range names {
		if bad := o.verdict(name); bad != "" {
			out = append(out, name+": "+bad)
		}
	}
	return append(out, o.problems...)
}

// run boots the guest and judges its results. A scenario without a reported pass
// has failed.
func (s suite) run(ctx context.Context, test string, k Kernel, names []string) (*outcome, error) {
	h, err := theHost()
	if err != nil {
		return nil, err
	}
	image := s.image
	if image == "" {
		image = "base"
	}
	g, err := h.prepare(ctx, k, image, !s.noTracer)
	if err != nil {
		return nil, err
	}
	if s.memory != 0 {
		g.MemoryMiB = s.memory
	}
	if s.disk != 0 {
		g.DiskMiB = s.disk
	}
	if s.deadline != 0 {
		g.Deadline = s.deadline
	}
	if s.bootLimit != 0 {
		g.BootLimit = s.bootLimit
	}
	g.CPUs = s.cpus
	g.Network = s.network
	// The test to run; the scenarios follow behind a slash. The test's own limit
	// is shorter than the guest's, so that it can still show its stacks.
	limit := max(g.Deadline-45*time.Second, 2*g.Deadline/3)
	g.Append = append(append(g.Append, s.append...), "iotrace.run=^"+test+"$/^("+strings.Join(names, "|")+")$", "iotrace.timeout="+limit.String())

	var console, raw bytes.Buffer
	var bootErr error
	o := &outcome{}
	g.Shares, g.Paths = s.shares, s.paths
	for try := 1; ; try++ {
		console.Reset()
		raw.Reset()
		g.Console, g.Results = &console, &raw
		var used vm.Resources
		used, bootErr = g.Boot(ctx)
		h.count(test, used)
		o.log = append(o.log, fmt.Sprintf("kernel %s, %s, %d MiB: guest ran for %s, %s of them to boot; %s of processor time", g.Kernel.Release, g.Accel, g.MemoryMiB,
			used.Wall.Round(100*time.Millisecond), used.Boot.Round(100*time.Millisecond), used.Processor.Round(100*time.Millisecond)))
		// Emulation sometimes kills a kernel early in its life, or lets its processors
		// wait for each other for ever. Once a test has begun, the guest is not booted
		// again.
		if try < bootTries && raw.Len() == 0 && (vm.Panicked(console.Bytes()) || errors.Is(bootErr, vm.ErrNoBoot)) {
			o.log = append(o.log, "the kernel died before the first test; trying again\n"+lastLines(console.String(), 40))
			h.bootsAgain(test, k.Name, console.String())
			continue
		}
		break
	}
	o.guestResults, o.console = parseGuest(raw.Bytes()), console.String()
	bad := vm.Trouble(console.Bytes())
	o.sick = bootErr != nil || !o.exited || len(bad) > 0
	problem := func(format string, args ...any) { o.problems = append(o.problems, fmt.Sprintf(format, args...)) }
	passed := true
	for _, name := range names {
		passed = passed && o.verdict(name) == ""
	}
	for name, r := range o.tests {
		if !slices.Contains(names, name) {
			problem("guest reported a test that was not expected: %s: %s", name, r.action)
		}
	}
	if bootErr != nil {
		problem("guest: %v", bootErr)
	}
	if !o.exited {
		problem("guest never reported the end of its tests")
	} else if o.status != 0 && passed {
		problem("tests in the guest exited with status %d", o.status)
	}
	if len(bad) > 0 {
		problem("the kernel complained:\n%s", strings.Join(bad, "\n"))
	}
	return o, nil
}

// runWithRerun runs the guest, and once more if something failed and mayRerun
// allows it. Then it judges the second guest and logs the failures of the first.
func (s suite) runWithRerun(ctx context.Context, test string, k Kernel, names []string, mayRerun func(failures []string) bool) (*outcome, error) {
	first, err := s.run(ctx, test, k, names)
	if err != nil {
		return nil, err
	}
	failures := first.failures(names)
	if len(failures) == 0 || !mayRerun(failures) {
		return first, nil
	}
	second, err := s.run(ctx, test, k, names)
	if err != nil {
		return nil, err
	}
	first.log = append(first.log, "rerun, because of:\n"+quoted(failures), "its kernel log:\n"+lastLines(first.dmesg.String(), 60))
	if first.sick {
		first.log = append(first.log, "its console:\n"+lastLines(first.console, 120))
	}
	second.log = slices.Concat(first.log, second.log)
	return second, nil
}

// boot runs the suite's guest for one kernel and turns its results into subtests.
func (s suite) boot(t *testing.T, k Kernel) *outcome {
	names := s.expected(t, k)
	h, err := theHost()
	if err != nil {
		t.Fatal(err)
	}
	mayRerun := func(failures []string) bool { return !s.once && h.mayRerun(t.Name(), failures) }
	o, err := s.runWithRerun(t.Context(), t.Name()[:strings.Index(t.Name(), "/")], k, names, mayRerun)
	if err != nil {
		t.Fatal(err)
	}
	h.ranAgain(t.Name(), len(o.failures(names)) > 0)
	for _, line := range o.log {
		t.Log(line)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			if bad := o.verdict(name); bad != "" {
				t.Error(bad)
				return
			}
			t.Logf("%.1fs in the guest\n%s", o.tests[name].elapsed, o.tests[name].output.String())
		})
	}
	for _, p := range o.problems {
		t.Error(p)
	}
	if !t.Failed() {
		return o
	}
	t.Logf("output outside of tests:\n%s", o.outside.String())
	if o.dmesg.Len() > 0 {
		t.Logf("kernel log:\n%s", lastLines(o.dmesg.String(), 60))
	}
	if o.sick {
		t.Logf("console:\n%s", lastLines(o.console, 120))
	}
	return o
}

type guestTest struct {
	action  string
	elapsed float64
	output  strings.Builder
}

type guestResults struct {
	tests   map[string]*guestTest // by the scenario's name
	outside strings.Builder
	dmesg   strings.Builder
	exited  bool
	status  int
}

// parseGuest turns a guest's stream into results. test2json, which the go
// command uses itself, tells test output from test results.
func parseGuest(raw []byte) *guestResults {
	rep := &guestResults{tests: map[string]*guestTest{}}
	var stream bytes.Buffer
	for _, line := range bytes.SplitAfter(raw, []byte("\n")) {
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case strings.HasPrefix(text, guest.ExitPrefix):
			n, err := strconv.Atoi(strings.TrimPrefix(text, guest.ExitPrefix))
			rep.exited, rep.status = err == nil, n
		case strings.HasPrefix(text, guest.DmesgPrefix):
			fmt.Fprintln(&rep.dmesg, strings.TrimPrefix(text, guest.DmesgPrefix))
		default:
			stream.Write(line)
		}
	}
	cmd := exec.Command("go", "tool", "test2json", "-t") // without -t it leaves out how long tests took
	cmd.Stdin = &stream
	out, err := cmd.Output()
	if err != nil {
		fmt.Fprintf(&rep.outside, "test2json: %v\n", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e struct {
			Action, Test, Output string
			Elapsed              float64
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		parts := strings.SplitN(e.Test, "/", 3)
		if len(parts) < 2 {
			rep.outside.WriteString(e.Output)
			continue
		}
		r := rep.tests[parts[1]]
		if r == nil {
			r = &guestTest{}
			rep.tests[parts[1]] = r
		}
		switch {
		case e.Action == "output":
			r.output.WriteString(e.Output)
		case len(parts) == 2 && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip"):
			r.action, r.elapsed = e.Action, e.Elapsed
		case len(parts) == 3 && e.Action == "skip":
			r.output.WriteString("a part of it was skipped: " + parts[2] + "\n")
		}
	}
	return rep
}

// quoted marks the lines of a test's output, to tell them from lines with verdicts.
func quoted(texts []string) string {
	return "| " + strings.ReplaceAll(strings.TrimSpace(strings.Join(texts, "\n")), "\n", "\n| ")
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(s, "\r", ""), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// shell boots the first selected kernel with a shell on this process's terminal. If
// standard input is not a terminal, shell types its contents once the guest's shell
// is ready, and "exit" after them: commands can come from a pipe.
func shell() error {
	h, err := theHost()
	if err != nil {
		return err
	}
	defer os.RemoveAll(h.work)
	kernels, err := selected()
	if err != nil {
		return err
	}
	if _, err := os.Stat("../cmd/iotrace-bpf"); err != nil {
		return errors.New("run this in the folder vmtests: it builds the tracer")
	}
	ctx := context.Background()
	g, err := h.prepare(ctx, kernels[0], *flagImage, true)
	if err != nil {
		return err
	}
	g.MemoryMiB, g.Deadline, g.BootLimit = 2048, 24*time.Hour, 0
	fmt.Printf("kernel %s, %s; Ctrl-A X ends the machine\n", g.Kernel.Release, g.Accel)
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		columns, rows, err := term.GetSize(fd)
		if err != nil {
			return err
		}
		g.Terminal, g.Console = os.Stdin, os.Stdout
		g.Append = append(g.Append, guest.ShellWords(os.Getenv("TERM"), rows, columns)...)
		_, err = g.Boot(ctx)
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	ready := &waitFor{Writer: os.Stdout, text: guest.ShellReady, seen: make(chan struct{})}
	go func() { // ends with this process: a read of standard input cannot be cancelled
		<-ready.seen
		_, _ = io.Copy(w, os.Stdin)
		_, _ = io.WriteString(w, "\nexit\n")
	}()
	g.Terminal, g.Console = r, ready
	g.Append = append(g.Append, guest.ShellWords("dumb", 0, 0)...)
	_, err = g.Boot(ctx)
	return err
}

// waitFor passes on what is written to it and signals when a text has occurred.
type waitFor struct {
	io.Writer
	text string
	past string
	seen chan struct{}
	once sync.Once
}

func (w *waitFor) Write(b []byte) (int, error) {
	w.past += string(b)
	if strings.Contains(w.past, w.text) {
		w.once.Do(func() { close(w.seen) })
	}
	if n := len(w.text); len(w.past) > n {
		w.past = w.past[len(w.past)-n:]
	}
	return w.Writer.Write(b)
}
