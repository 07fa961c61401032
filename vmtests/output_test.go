//go:build vm

package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/iotrace-bpf/iotrace-bpf/output/elastic/testserver"
	"github.com/iotrace-bpf/iotrace-bpf/output/schema"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// outputLine is the line of the matrix for everything below. Outputs do not depend on
// the kernel, and each guest has a server of its own: several at once are too much for
// a small machine. Where this line is not selected, the first one that is takes its place.
const outputLine = "6.12"

// TestOutput switches every output on at once. Two owners load an NFS server and a
// disk in a guest, while a real Elasticsearch on this machine is killed and
// restarted and the live screen is shown. The recording is replayed by other keys,
// in the guest as a normal user and here. Then every output must have the bytes of
// each owner that mountstats and diskstats have.
func TestOutput(t *testing.T) {
	s := suite{
		image: "terminal", memory: 2048, network: true, once: true, deadline: 25 * time.Minute,
		scenarios: []scenario{
			{name: "everything_at_once", run: outputEverything, smoke: true},
			{name: "recorder_killed", run: outputKilled, smoke: true},
		},
	}
	if guest.Inside() {
		s.test(t)
		return
	}
	if *flagSupport {
		t.Skip("boots guests")
	}
	kernels, err := selected()
	if err != nil {
		t.Fatal(err)
	}
	only := max(0, slices.IndexFunc(kernels, func(k Kernel) bool { return k.Name == outputLine }))
	for _, k := range kernels[only : only+1] {
		if len(s.expected(t, k)) == 0 {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			h := newOutputHost(t)
			s := s
			s.append = []string{outputWord + "=" + h.address()}
			s.boot(t, k)
			if !t.Failed() && slices.Contains(s.expected(t, k), "everything_at_once") {
				h.check(t)
			}
		})
	}
}

// outputWord is the word of the kernel's command line that says where the host's
// server is.
const outputWord = "iotrace.host"

// outputMount is what the guest mounts of its NFS server.
const outputMount = "127.0.0.1:/"

// Paths of the host's server that are not Elasticsearch's.
const (
	outputKeep   = "/-/keep/"
	outputKill   = "/-/kill"
	outputLaunch = "/-/launch"
)

// outputHost serves the guest from this machine: it passes requests on to
// Elasticsearch, can kill it, and keeps the guest's files, which are checked here,
// where the tools are.
type outputHost struct {
	server *testserver.Server
	front  *httptest.Server

	mu   sync.Mutex
	kept map[string][]byte
}

func newOutputHost(t *testing.T) *outputHost {
	h := &outputHost{server: testserver.Elasticsearch(t, nil), kept: map[string][]byte{}}
	target, err := url.Parse(h.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	})
	mux.HandleFunc("PUT "+outputKeep+"{name}", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.kept[r.PathValue("name")] = b
	})
	// If these fail, the guest gets no answer and its scenario ends.
	mux.HandleFunc("POST "+outputKill, func(http.ResponseWriter, *http.Request) { h.server.Kill() })
	mux.HandleFunc("POST "+outputLaunch, func(http.ResponseWriter, *http.Request) { h.server.Launch() })
	h.front = httptest.NewServer(mux)
	t.Cleanup(h.front.Close)
	return h
}

func (h *outputHost) address() string {
	_, port, _ := strings.Cut(strings.TrimPrefix(h.front.URL, "http://"), ":")
	return vm.HostAddress + ":" + port
}

// outputTruth is what really happened.
type outputTruth struct {
	Namespace string // of the data streams
	Rows      []outputRow
}

// outputRow is what one owner did to one device.
type outputRow struct {
	Cgroup    string // path
	Label     string // that names the owner to Prometheus: container or unit
	Name      string // its value
	Source    string
	Device    string // major:minor
	Shown     string // the device, as tables have it: a disk's name, what is mounted of a server
	Read      int64
	Written   int64
	Container string // id, "" for a unit
}

// outputGuest is the guest's side.
type outputGuest struct {
	*guest.Guest
	host string // URL
	dir  string // every user may enter it
	http http.Client
	tr   *guest.Tracer
}

// outputMetrics is where the tracer serves metrics in the guest.
const outputMetrics = "127.0.0.1:9464"

// Files that the guest hands over.
const (
	outputFileTruth     = "truth.json"
	outputFileNDJSON    = "documents.ndjson"
	outputFileMetrics   = "metrics.txt"
	outputFileRecording = "incident.recording"
	outputFileLive      = "live.html"
	outputFileReplay    = "replay.html"
)

func outputEverything(g *guest.Guest) {
	o := newOutputGuest(g)
	g.HoldWriteback()
	d, m := g.NVMe(), g.NFS("4.2")
	const id = "4f0c0ffee0000000000000000000000000000000000000000000000000c0ffee"
	shop, cron := g.CgroupAt("docker-"+id+".scope"), g.CgroupAt("cron.service")
	ps, pc := shop.Process(), cron.Process()
	shopOnDisk := ps.Open(d.Path(), os.O_RDWR|guest.Direct)
	cronOnDisk := pc.Open(d.Path(), os.O_RDWR|guest.Direct)
	truth := outputTruth{Namespace: "vm", Rows: []outputRow{
		{Cgroup: shop.Path(), Label: "container", Name: id[:12], Container: id, Source: "nfs", Device: m.ID(), Shown: outputMount},
		{Cgroup: shop.Path(), Label: "container", Name: id[:12], Container: id, Source: "block", Device: d.ID(), Shown: d.Name},
		{Cgroup: cron.Path(), Label: "unit", Name: "cron.service", Source: "nfs", Device: m.ID(), Shown: outputMount},
		{Cgroup: cron.Path(), Label: "unit", Name: "cron.service", Source: "block", Device: d.ID(), Shown: d.Name},
	}}
	shopNFS, shopBlock, cronNFS, cronBlock := &truth.Rows[0], &truth.Rows[1], &truth.Rows[2], &truth.Rows[3]

	setup := g.Tracer("elasticsearch", "setup", "--elasticsearch", o.host)
	if !strings.Contains(setup, "index template metrics-iotrace.io: installed") {
		g.Fatalf("setup said:\n%s", setup)
	}
	recording, live := filepath.Join(o.dir, outputFileRecording), filepath.Join(o.dir, outputFileLive)
	spool := []string{"--elasticsearch", o.host, "--elasticsearch-spool", filepath.Join(o.dir, "spool"), "--data-stream-namespace", truth.Namespace}
	beforeNFS, beforeDisk := m.Stats(), d.Stats()
	o.tr = g.Trace(append([]string{"--by", "cgroup,device", "--record", recording, "--report", live, "--prometheus", outputMetrics}, spool...)...)

	o.until("metrics are served", func() bool { // outputs are opened after programs are attached
		res, err := o.http.Get("http://" + outputMetrics + "/metrics")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})

	// All is well.
	ps.Open(m.File("orders"), guest.Create).Write(0, 5_000_011)
	shopNFS.Written += 5_000_011
	shopOnDisk.WriteBlocks(0, 101*4096, 64<<10)
	shopBlock.Written += 101 * 4096
	g.Sync()
	o.until("the first documents are delivered", func() bool {
		return o.metric("iotrace_elasticsearch_documents_total", "outcome", "delivered") > 0 && o.metric("iotrace_elasticsearch_failing") == 0
	})

	// The server dies. The load continues, and the screen shows it.
	o.post(outputKill)
	pc.Open(m.File("backup"), guest.Create).Write(0, 3_000_017)
	cronNFS.Written += 3_000_017
	cronOnDisk.WriteBlocks(16<<20, 67*4096, 4096)
	cronBlock.Written += 67 * 4096
	g.Sync()
	outputLiveScreen(o, id[:12], func() {
		shopOnDisk.WriteBlocks(0, 3*4096, 4096)
		shopBlock.Written += 3 * 4096
		cronOnDisk.ReadBlocks(0, 5*4096, 4096)
		cronBlock.Read += 5 * 4096
	})
	o.until("documents wait on disk", func() bool {
		return o.metric("iotrace_elasticsearch_failing") == 1 && o.metric("iotrace_elasticsearch_spool_bytes") > 0
	})
	o.post(outputLaunch)
	m.DropCaches()
	pc.Open(m.File("orders"), os.O_RDONLY).Read(0, 5_000_011)
	cronNFS.Read += 5_000_011
	shopOnDisk.ReadBlocks(16<<20, 31*4096, 4096)
	shopBlock.Read += 31 * 4096
	g.Sync()

	// The kernel's own counters say the same.
	nfs, disk := m.Stats().Sub(beforeNFS), d.Stats().Sub(beforeDisk)
	for _, c := range []struct {
		what      string
		got, want int64
	}{
		{"written to NFS", shopNFS.Written + cronNFS.Written, nfs.ServerWrite}, {"read from NFS", shopNFS.Read + cronNFS.Read, nfs.ServerRead},
		{"written to disk", shopBlock.Written + cronBlock.Written, disk.WriteBytes}, {"read from disk", shopBlock.Read + cronBlock.Read, disk.ReadBytes},
	} {
		if c.got != c.want || c.want == 0 {
			g.Errorf("%s: %d bytes, the kernel counted %d", c.what, c.got, c.want)
		}
	}
	o.until("the last interval is printed", func() bool {
		r := o.tr.Now()
		return r.Sum("iotrace.read.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID()) == disk.ReadBytes &&
			r.Sum("iotrace.read.bytes", "iotrace.source", "nfs", "iotrace.device.id", m.ID()) == nfs.ServerRead
	})
	o.until("nothing waits for the server any more", func() bool {
		return o.metric("iotrace_elasticsearch_failing") == 0 && o.metric("iotrace_elasticsearch_spool_bytes") == 0
	})
	o.keep(outputFileMetrics, []byte(o.scrape()))
	r := o.tr.Stop()
	lost, skipped := losses(r)
	r.Equal("lost", lost, 0)
	if skipped > 0 {
		g.Logf("the kernel skipped %d runs of programs", skipped)
	}
	documents := o.tr.Stdout()
	// The next run delivers the documents that this run left behind, even if it has
	// none of its own. A slow server may leave some of that run, too.
	for rest := true; rest; {
		stdout, stderr := g.TracerOutputs(append([]string{"--output", "ndjson", "--source", "block", "--filter", "device=none", "--interval", "1s", "--count", "2"}, spool...)...)
		documents += stdout
		rest = strings.Contains(stderr, "does not have all documents yet")
	}
	for i := range truth.Rows {
		row := &truth.Rows[i]
		at := []string{"iotrace.source", row.Source, "iotrace.device.id", row.Device, "iotrace.cgroup.path", row.Cgroup}
		r.Equal(row.Name+" wrote, "+row.Source, r.Sum("iotrace.write.bytes", at...), row.Written)
		r.Equal(row.Name+" read, "+row.Source, r.Sum("iotrace.read.bytes", at...), row.Read)
	}

	outputReplay(o, recording, truth)
	b, err := json.Marshal(truth)
	if err != nil {
		g.Fatal(err)
	}
	o.keep(outputFileTruth, b)
	o.keep(outputFileNDJSON, []byte(documents))
	for _, name := range []string{outputFileRecording, outputFileLive, outputFileReplay} {
		o.keep(name, []byte(g.ReadFile(filepath.Join(o.dir, name))))
	}
}

// outputKilled kills the tracer and expects in the recording everything that it had
// printed.
func outputKilled(g *guest.Guest) {
	m, a := g.NFS("3"), g.Cgroup("a")
	recording := filepath.Join(g.TempDir(), "recording")
	tr := g.Trace("--by", "cgroup,device", "--source", "nfs", "--record", recording)
	p := a.Process()
	var want int64
	for i, n := range []int64{1_000_003, 2_000_029} {
		p.Open(m.File(fmt.Sprint("f", i)), guest.Create).Write(0, n)
		g.Sync()
		want += n
		g.Eventually("the bytes are printed", func() bool { return tr.Now().Written("nfs", m.ID(), a) == want })
	}
	if err := syscall.Kill(tr.PID(), syscall.SIGKILL); err != nil {
		g.Fatal(err)
	}
	// After a kill the recording is whole up to its end, and the replay has nothing to
	// warn about.
	r, err := guest.ParseOutput([]byte(g.Tracer("replay", recording, "--by", "cgroup,device", "--output", "ndjson")))
	if err != nil {
		g.Fatal(err)
	}
	if got := r.Written("nfs", m.ID(), a); got != want {
		g.Errorf("the recording has %d bytes, want %d", got, want)
	}
	if stats := m.Stats(); stats.ServerWrite != want {
		g.Errorf("the client counted %d bytes, want %d", stats.ServerWrite, want)
	}
}

func newOutputGuest(g *guest.Guest) *outputGuest {
	o := &outputGuest{Guest: g, http: http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}}
	for _, w := range strings.Fields(g.ReadFile("/proc/cmdline")) {
		if at, ok := strings.CutPrefix(w, outputWord+"="); ok {
			o.host = "http://" + at
		}
	}
	if o.host == "" { // in a guest of the matrix, where it is always there, this counts as failed
		g.Skip("the servers for this are on the host of the matrix's guests")
	}
	g.Modprobe("virtio_net")
	g.Exec("ip", "address", "add", vm.GuestAddress, "dev", "eth0")
	g.Exec("ip", "link", "set", "eth0", "up")
	dir, err := os.MkdirTemp("", "output")
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		g.Fatal(err)
	}
	o.dir = dir
	return o
}

// until is Eventually with a longer limit: a server starts slowly on a machine that
// is busy with emulation.
func (o *outputGuest) until(what string, ok func() bool) {
	o.Helper()
	for end := time.Now().Add(6 * time.Minute); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			o.Fatalf("waited in vain: %s\n%s", what, o.tr.Stderr())
		}
	}
}

func (o *outputGuest) do(method, url string, body []byte) []byte {
	o.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		o.Fatal(err)
	}
	res, err := o.http.Do(req)
	if err != nil {
		o.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		o.Fatalf("%s %s: %s, %v\n%s", method, url, res.Status, err, b)
	}
	return b
}

func (o *outputGuest) post(path string) { o.Helper(); o.do(http.MethodPost, o.host+path, nil) }

func (o *outputGuest) keep(name string, b []byte) {
	o.Helper()
	if len(b) == 0 {
		o.Errorf("%s is empty", name)
	}
	o.do(http.MethodPut, o.host+outputKeep+name, b)
}

func (o *outputGuest) scrape() string {
	o.Helper()
	return string(o.do(http.MethodGet, "http://"+outputMetrics+"/metrics", nil))
}

// metric is the sum of a metric's series that have these labels.
func (o *outputGuest) metric(name string, labels ...string) float64 {
	o.Helper()
	sum, err := metricSum(o.scrape(), name, labels...)
	if err != nil {
		o.Fatal(err)
	}
	return sum
}

func metricSum(scrape, name string, labels ...string) (float64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(scrape))
	if err != nil {
		return 0, err
	}
	f := families[name]
	if f == nil {
		return 0, fmt.Errorf("no metric is called %s", name)
	}
	var sum float64
next:
	for _, m := range f.Metric {
		for i := 0; i+1 < len(labels); i += 2 {
			if !slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == labels[i] && l.GetValue() == labels[i+1] }) {
				continue next
			}
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum, nil
}

// outputReplay slices the recording by other keys than it was made with, as a
// normal user: to documents, to a page and on the screen.
func outputReplay(o *outputGuest, recording string, truth outputTruth) {
	const nobody = 65534
	mine := filepath.Join(o.dir, "nobody")
	if err := os.Mkdir(mine, 0o755); err != nil {
		o.Fatal(err)
	}
	incident := filepath.Join(mine, "incident")
	if err := os.WriteFile(incident, []byte(o.ReadFile(recording)), 0o600); err != nil {
		o.Fatal(err)
	}
	for _, path := range []string{mine, incident} {
		if err := os.Chown(path, nobody, nobody); err != nil {
			o.Fatal(err)
		}
	}
	replay := func(args ...string) string {
		o.Helper()
		cmd := exec.Command(o.Tool(), append([]string{"replay", incident}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Dir = mine
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil || errs.Len() > 0 {
			o.Fatalf("replay %s: %v\n%s", strings.Join(args, " "), err, errs.String())
		}
		return out.String()
	}
	ndjson := func(args ...string) *guest.Output {
		o.Helper()
		r, err := guest.ParseOutput([]byte(replay(append(args, "--output", "ndjson")...)))
		if err != nil {
			o.Fatal(err)
		}
		return r
	}
	byContainer, bySource := ndjson("--by", "container"), ndjson("--by", "source", "--filter", "device="+truth.Rows[1].Shown)
	var written int64
	for _, row := range truth.Rows {
		at := []string{"iotrace.source", row.Source, "iotrace.unit.name", row.Name}
		if row.Container != "" {
			at = []string{"iotrace.source", row.Source, "container.id", row.Container}
		}
		for field, want := range map[string]int64{"iotrace.write.bytes": row.Written, "iotrace.read.bytes": row.Read} {
			if got := byContainer.Sum(field, at...); got != want {
				o.Errorf("replayed by container, %s of %s on %s: %d, want %d", field, row.Name, row.Source, got, want)
			}
		}
		if row.Source == "block" {
			written += row.Written
		}
	}
	if got := bySource.Sum("iotrace.write.bytes"); got != written {
		o.Errorf("replayed by source, of the disk: %d bytes written, want %d", got, written)
	}
	if out := replay("--by", "cgroup,device", "--report", filepath.Join(mine, "page")); out != "" {
		o.Errorf("replay with a page as its answer printed %q", out)
	}
	if err := os.Rename(filepath.Join(mine, "page"), filepath.Join(o.dir, outputFileReplay)); err != nil {
		o.Fatal(err)
	}

	s := newOutputScreen(o, "setpriv --reuid=65534 --regid=65534 --clear-groups "+o.Tool()+" replay "+incident)
	s.has("REPLAY", "TOTAL")
	s.keys("Space", "Home") // it plays until it is stopped
	first := s.has("PAUSED", " 1/")
	s.keys("Right")
	second := s.has("PAUSED", " 2/")
	// Two intervals may end within a second, and a day may end between them.
	if a, b := outputClock(o, first), outputClock(o, second); (b.Sub(a)+24*time.Hour)%(24*time.Hour) > 12*time.Hour {
		s.g.Errorf("the slider went from %s to %s", a.Format(time.TimeOnly), b.Format(time.TimeOnly))
	}
	s.load = func() { s.keys("Right") }
	s.has(truth.Rows[0].Name, "cron.service")
	s.load = nil
	s.typed("b")
	s.has("group by")
	s.keys("Down", "Enter") // the one after container
	s.has("PAUSED", "PROCESS")
	s.keys("q")
	s.restored()
}

// outputLiveScreen checks the live screen of a run of its own, under load.
func outputLiveScreen(o *outputGuest, container string, load func()) {
	s := newOutputScreen(o, o.Tool())
	s.load = load
	s.has("LIVE", container, "cron.service", "TOTAL", "q quit")
	rows := func(screen string) (names []string) {
		for _, line := range strings.Split(screen, "\n") {
			if f := strings.Fields(line); len(f) > 1 && (f[0] == container || f[0] == "cron.service") {
				names = append(names, f[0])
			}
		}
		return names
	}
	// First the row of the reader is on top, then that of the writer.
	s.typed("r")
	s.wait("sorted by read", func(screen string) bool {
		return slices.Equal(rows(screen), []string{"cron.service", container})
	})
	s.typed("w")
	s.wait("sorted by write", func(screen string) bool {
		return slices.Equal(rows(screen), []string{container, "cron.service"})
	})
	s.typed("/cron")
	s.wait("filtered", func(screen string) bool { return slices.Equal(rows(screen), []string{"cron.service"}) })
	s.keys("Enter", "Enter") // takes the filter, and then goes down
	s.wait("drilled down", func(screen string) bool {
		return strings.Contains(screen, "all > container cron.service") && strings.Contains(screen, "PROCESS")
	})
	s.typed("?")
	s.has("the marked row consists of")
	s.typed("xq")
	s.restored()
	s.load = nil
}

// outputClock is the time of day that the first line shows.
func outputClock(o *outputGuest, screen string) time.Time {
	o.Helper()
	line, _, _ := strings.Cut(screen, "\n")
	at, err := time.Parse(time.TimeOnly, regexp.MustCompile(`\d\d:\d\d:\d\d`).FindString(line))
	if err != nil {
		o.Errorf("no time of day on %q: %v", line, err)
	}
	return at
}

// outputScreen is a program in a terminal.
type outputScreen struct {
	g      *outputGuest
	socket string
	dir    string
	load   func() // makes I/O for the program to show, before each poll
}

func newOutputScreen(o *outputGuest, command string) *outputScreen {
	o.Helper()
	dir, err := os.MkdirTemp("", "tmux")
	if err != nil {
		o.Fatal(err)
	}
	s := &outputScreen{g: o, socket: filepath.Join(dir, "s"), dir: dir}
	o.Cleanup(func() {
		_, _ = o.Try("tmux", "-S", s.socket, "kill-server")
		os.RemoveAll(dir)
	})
	script := "cd " + dir + "\nstty -g >before\n" + command + "\necho $? >status\nstty -g >after\ntouch ended\nexec sleep 100000\n"
	o.WriteFile(filepath.Join(dir, "run"), script)
	o.Exec("tmux", "-f", "/dev/null", "-S", s.socket, "new-session", "-d", "-x", "140", "-y", "40", "sh "+filepath.Join(dir, "run"))
	return s
}

func (s *outputScreen) tmux(args ...string) string {
	s.g.Helper()
	return s.g.Exec("tmux", append([]string{"-u", "-S", s.socket}, args...)...)
}

func (s *outputScreen) keys(names ...string) {
	s.g.Helper()
	s.tmux(append([]string{"send-keys"}, names...)...)
}

func (s *outputScreen) typed(text string) { s.g.Helper(); s.tmux("send-keys", "-l", text) }

func (s *outputScreen) wait(what string, ok func(screen string) bool) string {
	s.g.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if s.load != nil {
			s.load()
		}
		screen := s.tmux("capture-pane", "-p")
		if ok(screen) {
			return screen
		}
		if time.Now().After(end) {
			s.g.Fatalf("waited in vain: %s; the screen shows\n%s", what, screen)
		}
	}
}

func (s *outputScreen) has(parts ...string) string {
	s.g.Helper()
	return s.wait(fmt.Sprintf("%q", parts), func(screen string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(screen, p) })
	})
}

// restored waits for the program's end. It must succeed and leave the terminal as it
// was.
func (s *outputScreen) restored() {
	s.g.Helper()
	s.wait("the end of the program", func(string) bool {
		_, err := os.Stat(filepath.Join(s.dir, "ended"))
		return err == nil
	})
	read := func(name string) string { return s.g.ReadFile(filepath.Join(s.dir, name)) }
	if read("status") != "0\n" || read("before") != read("after") {
		s.g.Errorf("exit status %q, modes of the terminal %q, before %q", read("status"), read("after"), read("before"))
	}
	if got := strings.TrimSpace(s.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}")); got != "0 1" {
		s.g.Errorf("alternate screen and cursor are %q", got)
	}
}

// check compares every output with the guest's I/O, here on the host.
func (h *outputHost) check(t *testing.T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var truth outputTruth
	if err := json.Unmarshal(h.kept[outputFileTruth], &truth); err != nil || len(truth.Rows) != 4 {
		t.Fatalf("%d rows, %v", len(truth.Rows), err)
	}
	t.Run("documents", func(t *testing.T) { h.checkDocuments(t, truth) })
	t.Run("prometheus", func(t *testing.T) { h.checkMetrics(t, truth) })
	t.Run("recording", func(t *testing.T) { h.checkRecording(t, truth) })
	t.Run("pages", func(t *testing.T) { h.checkPages(t, truth) })
}

// checkDocuments checks every line against its schema, and compares the server's
// documents with the lines.
func (h *outputHost) checkDocuments(t *testing.T, truth outputTruth) {
	r, err := guest.ParseOutput(h.kept[outputFileNDJSON])
	if err != nil {
		t.Fatal(err)
	}
	streams := map[string]int{}
	for i, line := range bytes.Split(bytes.TrimSpace(h.kept[outputFileNDJSON]), []byte("\n")) {
		if err := schema.Validate(line); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
		d := r.Docs[i]
		streams[d.String("data_stream.type")+"-"+d.String("data_stream.dataset")+"-"+d.String("data_stream.namespace")]++
	}
	h.server.Ready()
	io := "metrics-iotrace.io-" + truth.Namespace
	status := "logs-iotrace.status-" + truth.Namespace
	if streams[io] == 0 || streams[status] == 0 {
		t.Errorf("documents %v", streams)
	}
	for stream, want := range streams {
		// Totals for servers have intervals and rows of their own.
		got, own := h.server.Count(stream), stream == io || stream == status
		if own && got == 0 || !own && got != want {
			t.Errorf("%s has %d documents, %d were printed", stream, got, want)
		}
	}
	t.Logf("documents %v", streams)
	for _, row := range truth.Rows {
		query := fmt.Sprintf(`{"bool":{"filter":[{"term":{"iotrace.source":%q}},{"term":{"iotrace.device.id":%q}}]}}`, row.Source, row.Device)
		for field, want := range map[string]int64{"iotrace.write.bytes": row.Written, "iotrace.read.bytes": row.Read} {
			if got := h.server.Sums(io, "iotrace.cgroup.path", field, query)[row.Cgroup]; int64(got) != want {
				t.Errorf("server has %s %d for %s on %s, want %d", field, got, row.Cgroup, row.Source, want)
			}
		}
	}
}

func (h *outputHost) checkMetrics(t *testing.T, truth outputTruth) {
	scrape := h.kept[outputFileMetrics]
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = bytes.NewReader(scrape)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	for _, row := range truth.Rows {
		for operation, want := range map[string]int64{"write": row.Written, "read": row.Read} {
			labels := []string{row.Label, row.Name, "source", row.Source, "operation", operation}
			got, err := metricSum(string(scrape), "iotrace_io_bytes_total", labels...)
			if err != nil || int64(got) != want {
				t.Errorf("iotrace_io_bytes_total%v: %.0f, %v, want %d", labels, got, err, want)
			}
		}
	}
}

// checkRecording replays on a machine that never ran the workload.
func (h *outputHost) checkRecording(t *testing.T, truth outputTruth) {
	file := filepath.Join(t.TempDir(), "incident")
	if err := os.WriteFile(file, h.kept[outputFileRecording], 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "run", "../cmd/iotrace-bpf", "replay", file, "--by", "device,op", "--output", "ndjson")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("replay: %v\n%s", err, errs.String())
	}
	r, err := guest.ParseOutput(out)
	if err != nil {
		t.Fatal(err)
	}
	read, written := map[string]int64{}, map[string]int64{}
	for _, row := range truth.Rows {
		read[row.Device] += row.Read
		written[row.Device] += row.Written
	}
	for device := range read {
		at := []string{"iotrace.device.id", device}
		if a, b := r.Sum("iotrace.read.bytes", at...), r.Sum("iotrace.write.bytes", at...); a != read[device] || b != written[device] {
			t.Errorf("device %s: %d read, %d written, want %d and %d", device, a, b, read[device], written[device])
		}
	}
	if hosts := r.Where("host.name", "guest"); len(hosts) == 0 || len(hosts) != len(r.Where()) {
		t.Errorf("%d documents of %d are of the machine that was recorded", len(hosts), len(r.Where()))
	}
}

var (
	outputPageRow  = regexp.MustCompile(`<tr[^>]*><th scope="row"><bdi(?: title="([^"]*)")?>([^<]*)</bdi></th>(.*?)</tr>`)
	outputPageCell = regexp.MustCompile(`<td class="n"[^>]*>([^<]*)</td>`)
	outputPageSize = regexp.MustCompile(`^([0-9.]+)\x{a0}([KMGT]i)?B$`)
)

// checkPages looks for the owners' bytes, to the three digits that a page shows.
func (h *outputHost) checkPages(t *testing.T, truth outputTruth) {
	for _, name := range []string{outputFileLive, outputFileReplay} {
		page := string(h.kept[name])
		if !strings.HasSuffix(strings.TrimSpace(page), "</html>") || regexp.MustCompile(`(?i)(src|href)="?(https?:)?//`).MatchString(page) {
			t.Errorf("%s is cut off or refers to something else", name)
		}
		rows := map[string][]string{}
		for _, m := range outputPageRow.FindAllStringSubmatch(page, -1) {
			text := m[2]
			if m[1] != "" {
				text = m[1]
			}
			var cells []string
			for _, c := range outputPageCell.FindAllStringSubmatch(m[3], -1) {
				cells = append(cells, html.UnescapeString(c[1]))
			}
			if text = html.UnescapeString(text); rows[text] == nil {
				rows[text] = cells // the first table is the one of --by
			}
		}
		for _, row := range truth.Rows {
			cells := rows[row.Cgroup+", "+row.Shown]
			if len(cells) < 3 {
				t.Errorf("%s has no row for %s, %s: %q", name, row.Cgroup, row.Shown, slices.Sorted(maps.Keys(rows)))
				continue
			}
			for i, want := range []int64{row.Read, row.Written} { // behind the share
				if got, off := outputPageBytes(t, cells[1+i]), float64(want)/200; got < float64(want)-off || got > float64(want)+off {
					t.Errorf("%s, %s, %s: %q, want %d bytes", name, row.Cgroup, row.Shown, cells[1+i], want)
				}
			}
		}
	}
}

func outputPageBytes(t *testing.T, cell string) float64 {
	m := outputPageSize.FindStringSubmatch(cell)
	if m == nil {
		if n, err := strconv.ParseFloat(cell, 64); err == nil {
			return n
		}
		return 0
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Errorf("%q: %v", cell, err)
	}
	for _, unit := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if m[2] == "" {
			return n
		}
		n *= 1024
		if unit == m[2] {
			return n
		}
	}
	return n
}
