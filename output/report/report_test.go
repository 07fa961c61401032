package report

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

var update = flag.Bool("update-report", false, "write testdata/report.golden.html")

// groupSpec is one owner of the test incident.
type groupSpec struct {
	project, service string
	owner            output.OwnerKind
	source           output.Source
	mount            int
	read, write      func(sec float64) float64 // MiB/s
}

// incident makes n intervals of the length step: a shop with its database and web
// servers on NFS, a nightly backup that floods the disk, batch jobs, a file
// system on FUSE, I/O without owner, a device-mapper stack, and trouble with an
// overlay network. sec in the functions is seconds since the beginning.
func incident(n int, step time.Duration, add func(*output.Interval)) {
	rng := rand.New(rand.NewPCG(21, 22))
	length := step.Seconds() * float64(n)
	wave := func(base, swing, period float64) func(float64) float64 {
		return func(s float64) float64 { return base + swing*math.Sin(2*math.Pi*s/period) }
	}
	burst := func(from, to, rate float64) func(float64) float64 {
		return func(s float64) float64 {
			if f := s / length; f >= from && f < to {
				return rate
			}
			return 0
		}
	}
	specs := []groupSpec{
		{"shop", "db", output.OwnerContainer, output.SourceNFS, 0, wave(14, 6, length/3), wave(22, 9, length/3)},
		{"shop", "web", output.OwnerContainer, output.SourceNFS, 1, wave(5, 2, length/5), wave(1, 0.5, length/5)},
		{"backup", "restic", output.OwnerContainer, output.SourceBlock, 0, burst(0.42, 0.71, 160), burst(0.42, 0.71, 24)},
		{"backup", "upload", output.OwnerContainer, output.SourceNFS, 2, burst(0.5, 0.75, 4), burst(0.5, 0.75, 71)},
		{"analytics", "spark", output.OwnerContainer, output.SourceBlock, 0, wave(9, 8, length/7), wave(12, 11, length/7)},
		{"ci", "runner", output.OwnerContainer, output.SourceBlock, 0, burst(0.1, 0.2, 11), burst(0.1, 0.25, 48)},
		{"media", "transcode", output.OwnerContainer, output.SourceFUSE, 3, wave(6, 3, length/4), burst(0.6, 0.9, 19)},
		{"mail", "dovecot", output.OwnerContainer, output.SourceBlock, 0, wave(1.2, 1, length/9), wave(2.1, 1, length/9)},
		{"wiki", "app", output.OwnerContainer, output.SourceBlock, 0, wave(0.4, 0.2, length/2), wave(0.6, 0.2, length/2)},
		{"chat", "server", output.OwnerContainer, output.SourceBlock, 0, wave(0.3, 0.1, length/2), wave(0.5, 0.2, length/2)},
		{"git", "forge", output.OwnerContainer, output.SourceBlock, 0, wave(0.8, 0.5, length/6), wave(0.4, 0.2, length/6)},
		{"", "", output.OwnerUnit, output.SourceBlock, 0, wave(0.1, 0.05, length), wave(0.3, 0.1, length)},
		{"", "", output.OwnerKernel, output.SourceBlock, 0, wave(0, 0, 1), wave(1.6, 0.4, length/3)},
		{"", "", output.OwnerUnattributed, output.SourceBlock, 0, burst(0.44, 0.7, 0.9), burst(0.44, 0.7, 2.5)},
	}
	mounts := []output.Mount{
		{Source: "filer.example.net:/export/shop-db", Point: "/var/lib/docker/volumes/shop_db/_data", FSType: "nfs4", Volume: "shop_db", NFSServer: "filer.example.net"},
		{Source: "filer.example.net:/export/shop-web", Point: "/srv/shop/htdocs", FSType: "nfs4", NFSServer: "filer.example.net"},
		{Source: "vault.example.net:/backup", Point: "/mnt/vault", FSType: "nfs4", NFSServer: "vault.example.net"},
		{Source: "media@nas.example.net:/films", Point: "/srv/films", FSType: "fuse.sshfs", FUSESubtype: "sshfs"},
	}
	amount := func(mib, median float64) output.Amount {
		bytes := uint64(max(0, mib*(0.8+0.4*rng.Float64())) * step.Seconds() * (1 << 20))
		if bytes < 4096 {
			return output.Amount{}
		}
		a := outputtest.RandomAmount(rng, min(max(1, bytes>>17), 60), median)
		k := max(1, bytes>>17/max(1, a.Ops))
		a.Bytes, a.Ops = bytes, a.Ops*k
		a.Latency.Sum *= k
		for i := range a.Latency.Buckets {
			a.Latency.Buckets[i].Count *= k
		}
		return a
	}
	for i := range n {
		sec := float64(i) * step.Seconds()
		start := outputtest.Start.Add(time.Duration(i) * step)
		if f := sec / length; f > 0.3 && f < 0.33 {
			continue // the tracer was restarted
		}
		busy := 1.0
		if f := sec / length; f > 0.44 && f < 0.7 {
			busy = 14
		}
		iv := &output.Interval{
			Start: start, End: start.Add(step),
			Host: output.Host{Name: "web1.example.net", ID: "4c4c4544004a3510804bb7c04f435831", Kernel: "6.18.5-amd64"},
			Sources: []output.SourceStatus{
				{Source: output.SourceBlock, Attached: true, Hook: "raw_tp/block_rq_issue, raw_tp/block_rq_complete"},
				{Source: output.SourceNFS, Attached: true, Hook: "raw_tp/rpc_stats_latency", Limitations: []string{"a request's owner is that of its first and last page"}},
				{Source: output.SourceFUSE, Attached: sec > 0.2*length, Hook: "fentry/fuse_simple_background", Reason: "module fuse is not loaded"},
			},
			Self: output.Self{CPUNanos: uint64(4e6 * step.Seconds()), BPFNanos: uint64(9e6 * step.Seconds()), RSSBytes: 38 << 20},
		}
		for j, sp := range specs {
			s := output.Sample{
				Source: sp.source, Level: output.LevelWire, Owner: sp.owner, Project: sp.project, ProjectRule: "compose", Service: sp.service,
				Cgroup:  output.Cgroup{ID: uint64(100 + j), Path: fmt.Sprintf("/system.slice/docker-%064x.scope", 7919*(j+1))},
				Device:  output.Device{ID: "259:0", Name: "nvme0n1"},
				Mount:   output.Mount{Source: "/dev/nvme0n1p2", Point: "/", FSType: "ext4"},
				Process: output.Process{PID: uint32(1000 + j), Name: sp.service},
			}
			switch sp.owner {
			case output.OwnerContainer:
				s.Container = output.Container{ID: fmt.Sprintf("%064x", 7919*(j+1)), Name: sp.project + "-" + sp.service + "-1", Runtime: "docker", Image: "registry.example.net/" + sp.service}
			case output.OwnerUnit:
				s.Unit = "systemd-journald.service"
				s.Cgroup.Path = "/system.slice/systemd-journald.service"
			}
			median := 180e3
			if sp.source != output.SourceBlock {
				s.Device = output.Device{ID: fmt.Sprintf("0:%d", 50+sp.mount)}
				s.Mount = mounts[sp.mount]
				median = 900e3
			}
			s.Read, s.Write = amount(sp.read(sec), median*busy), amount(sp.write(sec), 4*median*busy)
			if s.Read.Ops+s.Write.Ops == 0 {
				continue
			}
			s.Basis = output.BasisBytes{Page: s.Read.Bytes + s.Write.Bytes}
			if sp.source == output.SourceNFS {
				s.Basis = output.BasisBytes{Dirtier: s.Read.Bytes + s.Write.Bytes}
			}
			if sp.owner == output.OwnerUnattributed {
				s.Basis = output.BasisBytes{None: s.Read.Bytes + s.Write.Bytes}
			}
			iv.Samples = append(iv.Samples, s)
			if sp.source == output.SourceBlock && sp.owner == output.OwnerContainer {
				st := s
				st.Device = output.Device{ID: "254:0", Name: "dm-0", Stacked: true}
				iv.Samples = append(iv.Samples, st)
			}
		}
		vxlan := func(after time.Duration, action string, v output.VXLAN) {
			iv.Events = append(iv.Events, output.Event{Time: start.Add(after), Dataset: "iotrace.vxlan", Action: action, VXLAN: &v})
		}
		switch i {
		case n / 2:
			iv.Lost.Latencies = 4711
			vxlan(0, "created", output.VXLAN{Device: "vx-001003-qz8ko", VNI: 4099, NetNS: 4026532289, Process: output.Process{PID: 812, Name: "dockerd"}, Network: "shop_default", Stack: "shop", Services: []string{"db", "web"}})
		case n/2 + 2:
			vxlan(0, "moved", output.VXLAN{Device: "vx-001003-qz8ko", VNI: 4099, NetNS: 4026532289, NewNetNS: 4026531840, Process: output.Process{PID: 812, Name: "dockerd"}, Network: "shop_default", Stack: "shop", Reason: "the last container of the network stopped"})
			vxlan(time.Second, "leaked", output.VXLAN{Device: "vx-001003-qz8ko", VNI: 4099, NetNS: 4026531840, Network: "shop_default", Stack: "shop", AgeNanos: 93e9, Reason: "in the host's namespace, and no network uses it"})
			vxlan(2*time.Second, "create_failed", output.VXLAN{Device: "vx-001003-a7dd1", VNI: 4099, NetNS: 4026532301, Process: output.Process{PID: 812, Name: "dockerd"}, Network: "shop_default", Stack: "shop", Err: "file exists", Culprit: "vx-001003-qz8ko", CulpritNetNS: 4026531840})
		case n/2 + 3:
			for k := range 30 {
				s := iv.Samples[k%len(iv.Samples)]
				s.Write, s.Read = output.Amount{Bytes: 131072, Ops: 1}, output.Amount{}
				iv.Events = append(iv.Events, output.Event{Time: start, Dataset: "iotrace.event", Action: "io", IO: &output.IO{Sample: s, Op: "write", Offset: uint64(k) << 30, Latency: uint64(k*k) * 3e5, Basis: "page"}})
			}
		}
		add(iv)
	}
}

// pageOf returns the report of an incident.
func pageOf(opt Options, n int, step time.Duration) *Report {
	r := New(opt)
	incident(n, step, r.Add)
	return r
}

func bytesOf(t testing.TB, r *Report) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := r.WriteTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Errorf("says it wrote %d bytes, wrote %d", n, b.Len())
	}
	return b.Bytes()
}

// TestReportGolden compares the whole page of a short incident.
func TestReportGolden(t *testing.T) {
	r := pageOf(Options{
		Title: "Slow shop, ticket 4711", Tool: "1.0", Origin: "incident.recording", Bins: 16, Top: 5,
		Now: outputtest.Start.Add(24 * time.Hour), Location: time.FixedZone("CET", 3600),
	}, 40, time.Second)
	r.Damage(&recording.DamageError{Path: "incident.recording.1", Offset: 8137, Read: 17, Err: recording.ErrTruncated})
	got := bytesOf(t, r)
	golden := filepath.Join("testdata", "report.golden.html")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
		for i := range g {
			if i >= len(w) || g[i] != w[i] {
				t.Fatalf("line %d\n got %.300s\nwant %.300s", i+1, g[i], strings.Join(w[min(i, len(w)):min(i+1, len(w))], ""))
			}
		}
		t.Fatal("page ends early")
	}
}

// TestReportDemo writes the example page of CONTRIBUTING.
func TestReportDemo(t *testing.T) {
	path := os.Getenv("REPORT_DEMO")
	if path == "" {
		path = filepath.Join(t.TempDir(), "demo.html")
	}
	r := pageOf(Options{Title: "Slow shop on 14 March, ticket 4711", Tool: "1.0", Origin: "web1.recording"}, 5400, 2*time.Second)
	if err := os.WriteFile(path, bytesOf(t, r), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestReportAddsUp: all tables, charts and tiles have the sums of what was added,
// however often bins were merged.
func TestReportAddsUp(t *testing.T) {
	for _, bins := range []int{16, 100, 10000} {
		r := New(Options{Bins: bins, Top: 3})
		var want, stacked output.Usage
		var unattributed uint64
		incident(1000, time.Second, func(iv *output.Interval) {
			for i := range iv.Samples {
				s := &iv.Samples[i]
				switch {
				case s.Device.Stacked:
					stacked.AddSample(s)
				default:
					want.AddSample(s)
				}
				if s.Owner == output.OwnerUnattributed {
					unattributed += s.Read.Bytes + s.Write.Bytes
				}
			}
			r.Add(iv)
		})
		r.flush()
		if n := len(r.bins); n > bins || bins < 1000 && n < bins/2 {
			t.Errorf("%d bins, %d were asked for", n, bins)
		}
		same := func(what string, got, want *output.Usage) {
			t.Helper()
			if g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", *want); g != w {
				t.Errorf("%d bins: %s\n got %.300s\nwant %.300s", bins, what, g, w)
			}
		}
		same("sum of bins", r.total(), &want)
		for _, v := range r.views {
			var sum, below output.Usage
			rows, rest, low := v.top(3)
			if rest != nil {
				rows = append(rows, rest)
			}
			for _, g := range rows {
				sum.Add(&g.usage)
				var b readWrite
				for _, x := range g.bins {
					b.read += x.read
					b.write += x.write
				}
				if b.read != g.usage.Read.Bytes || b.write != g.usage.Write.Bytes {
					t.Errorf("%d bins, by %s: bins of %s hold %+v, not %d and %d", bins, joinKeys(v.by), g.text, b, g.usage.Read.Bytes, g.usage.Write.Bytes)
				}
			}
			same("table by "+joinKeys(v.by), &sum, &want)
			for _, g := range low {
				below.Add(&g.usage)
			}
			if v.stacked {
				same("stacked devices", &below, &stacked)
			} else if len(low) != 0 {
				t.Errorf("stacked devices by %s", joinKeys(v.by))
			}
		}
		p := r.page()
		if got, want := p.Tiles[0].Value, spaced(text.Size(want.Read.Bytes)); got != want {
			t.Errorf("tile says %s were read, not %s", got, want)
		}
		if r.unattr != unattributed || unattributed == 0 {
			t.Errorf("%d bytes without owner, not %d", r.unattr, unattributed)
		}
		if got := r.basis.Dirtier + r.basis.Page + r.basis.Journal + r.basis.Bio + r.basis.Task + r.basis.None; got != want.Bytes() {
			t.Errorf("owners were found for %d bytes of %d", got, want.Bytes())
		}
	}
}

// TestReportFilter: no row includes what a filter leaves out, and a notice says how much it is.
func TestReportFilter(t *testing.T) {
	r := pageOf(Options{Filters: []output.Filter{{Key: output.KeyProject, Pattern: "shop"}}, By: []output.Key{output.KeyService, output.KeyOp}}, 100, time.Second)
	all := pageOf(Options{}, 100, time.Second)
	r.flush()
	all.flush()
	if got, want := r.total().Bytes()+r.filtered.Bytes(), all.total().Bytes(); got != want || r.filtered.Bytes() == 0 {
		t.Errorf("%d bytes shown and left out, want %d", got, want)
	}
	page := string(bytesOf(t, r))
	for _, want := range []string{"project=shop", "Filters leave out " + spaced(text.Size(r.filtered.Bytes())), "Written, by service, op", "shop/db, write"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(page, "restic") {
		t.Error("the page shows what the filter leaves out")
	}
}

// TestReportClock: gaps stay visible, and the time axis continues when the clock
// is set back.
func TestReportClock(t *testing.T) {
	at := func(sec int) *output.Interval {
		s := outputtest.Start.Add(time.Duration(sec) * time.Second)
		return &output.Interval{Start: s, End: s.Add(time.Second), Samples: []output.Sample{{Source: output.SourceBlock, Project: "shop", Write: output.Amount{Bytes: 1 << 20, Ops: 1}}}}
	}
	r := New(Options{Bins: 16})
	for i := range 100 {
		r.Add(at(i))
	}
	for i := range 100 {
		r.Add(at(7300 + i))
	}
	for i := range 50 {
		r.Add(at(3800 + i))
	}
	r.flush()
	if r.shift != 3600*time.Second || r.gap != 7200*time.Second || r.covered != 250*time.Second {
		t.Errorf("set back by %v, gaps of %v, covered %v", r.shift, r.gap, r.covered)
	}
	gaps := 0
	for i, b := range r.bins {
		if b.end.Before(b.start) || i > 0 && b.start.Before(r.bins[i-1].end) {
			t.Errorf("bin %d goes from %s to %s", i, b.start, b.end)
		}
		if b.afterGap {
			gaps++
		}
		if rate := float64(b.total.Write.Bytes) / text.Seconds(b.covered); rate != 1<<20 {
			t.Errorf("bin %d: %v bytes per second, want 1 MiB/s", i, rate)
		}
	}
	if gaps != 1 {
		t.Errorf("%d gaps, want 1", gaps)
	}
	page := string(bytesOf(t, r))
	for _, want := range []string{"nothing recorded for 2h0m0s", "set back by 1h0m0s", "Nothing was recorded for 2h0m0s"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// TestReportBounded adds 16 hours of short-lived containers: memory stays bounded,
// and totals stay exact.
func TestReportBounded(t *testing.T) {
	r := New(Options{})
	var want uint64
	var peak uint64
	const intervals = 6000
	for i := range intervals {
		start := outputtest.Start.Add(time.Duration(i) * 10 * time.Second)
		iv := &output.Interval{Start: start, End: start.Add(10 * time.Second)}
		for j := range 30 {
			n := uint64(1 + i*30 + j)
			iv.Samples = append(iv.Samples, output.Sample{
				Source: output.SourceBlock, Owner: output.OwnerContainer, Project: fmt.Sprintf("job-%d", n%5000), Service: "run",
				Container: output.Container{ID: fmt.Sprintf("%064x", n)}, Device: output.Device{ID: "8:0"},
				Write: output.Amount{Bytes: n, Ops: 1, Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 1000 << (n % 20), Count: 1}}, Sum: n, Max: n}},
			})
			want += n
		}
		r.Add(iv)
		if i%2000 == 1999 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if peak == 0 {
				peak = m.HeapAlloc
			}
			if m.HeapAlloc > peak+peak/2+32<<20 {
				t.Errorf("after %d intervals: %d MiB, %d MiB after the first 2000", i+1, m.HeapAlloc>>20, peak>>20)
			}
		}
	}
	r.flush()
	if got := r.total().Bytes(); got != want {
		t.Errorf("total of %d bytes, want %d", got, want)
	}
	for _, v := range r.views {
		rows, rest, _ := v.top(20)
		sum := rest
		if sum == nil {
			sum = &group{}
		}
		for _, g := range rows {
			sum.absorb(g)
		}
		if sum.usage.Bytes() != want || sum.usage.Ops() != intervals*30 {
			t.Errorf("by %s: %d bytes, %d operations", joinKeys(v.by), sum.usage.Bytes(), sum.usage.Ops())
		}
		if n := sum.usage.Write.Latency.Count(); n != intervals*30 {
			t.Errorf("by %s: %d latencies", joinKeys(v.by), n)
		}
		if len(v.groups) > maxGroups {
			t.Errorf("by %s: %d groups", joinKeys(v.by), len(v.groups))
		}
	}
	page := bytesOf(t, r)
	if !bytes.Contains(page, []byte("By container there were too many groups")) {
		t.Error("the page does not say that groups were added up")
	}
	if len(page) > 1<<20 {
		t.Errorf("page of %d bytes", len(page))
	}
}

// place is a link to a place on the page itself.
var place = regexp.MustCompile(`^#[a-z0-9]+$`)

// TestReportHostile parses the page as a browser does and looks for anything that
// does not come from the template.
func TestReportHostile(t *testing.T) {
	r := New(hostileOptions())
	for _, iv := range hostileIntervals() {
		r.Add(iv)
	}
	r.Damage(errors.New(hostile[0]))
	b := bytesOf(t, r)
	if len(b) > 1<<20 {
		t.Errorf("page of %d bytes", len(b))
	}
	doc, err := html.Parse(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	elements := map[string]int{}
	var shown strings.Builder
	var walk func(n *html.Node)
	walk = func(n *html.Node) {
		switch n.Type {
		case html.ElementNode:
			elements[n.Data]++
			for _, a := range n.Attr {
				switch k := strings.ToLower(a.Key); {
				case strings.HasPrefix(k, "on"), k == "src", k == "srcset", k == "style", k == "action", k == "srcdoc", strings.HasSuffix(k, "href") && a.Val != "data:," && !place.MatchString(a.Val):
					t.Errorf("<%s %s=%.60q>", n.Data, k, a.Val)
				case k == "fill" && strings.Contains(a.Val, "url(") && !strings.HasPrefix(a.Val, "url(#"):
					t.Errorf("<%s %s=%.60q>", n.Data, k, a.Val)
				case k == "title":
					shown.WriteString(a.Val + "\n")
				}
			}
		case html.TextNode:
			if n.Parent.Data != "style" {
				shown.WriteString(n.Data + "\n")
			}
		case html.CommentNode:
			t.Errorf("comment %.60q", n.Data)
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(doc)
	own := strings.Fields("html head meta link title style body header h1 dl div dt dd bdi p main ul li section h2 h3 figure figcaption svg defs pattern rect line text path table thead tbody tr th td span footer code nav a")
	for _, e := range own {
		delete(elements, e)
	}
	if len(elements) != 0 {
		t.Errorf("elements that the template does not have: %v", elements)
	}
	for _, c := range shown.String() {
		if c != '\n' && c != '\u00a0' && c != '\t' && !text.Visible(c) {
			t.Errorf("character %U reaches the page", c)
			break
		}
	}
	for _, want := range []string{"<script>", "</style>", `\u202e`, `\x1b`} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("the page does not show %q", want)
		}
	}
}

// hostile are names that an attacker may give a container.
var hostile = []string{
	`<script>window.pwned=1</script><img src="http://127.0.0.1:9/x.png" onerror="window.pwned=2">`,
	`</style></title></svg></bdi><script>window.pwned=3</script>`,
	`"><svg/onload=window.pwned=4><a href="javascript:window.pwned=5">x</a>`,
	`' onmouseover='window.pwned=6' style='background:url(http://127.0.0.1:9/y)`,
	"\u202etxt.exe\u2066 \u200fשלום عالم", "\x1b[2J\x1b]0;x\x07\xff\xfe", "{{.}} ${7*7} <!-- --> ]]>",
	strings.Repeat("W", 64<<10), strings.Repeat("<b>", 20000), strings.Repeat("\u0301", 5000), "",
}

func hostileOptions() Options {
	h := hostile
	return Options{
		Title: h[0], Tool: h[1], Origin: h[2], Top: 40,
		By: []output.Key{output.KeyProject, output.KeyLabel("x")}, Filters: []output.Filter{{Key: output.KeyLabel(h[3]), Pattern: "*"}},
	}
}

// hostileIntervals returns intervals with such names in every text field.
func hostileIntervals() []*output.Interval {
	var ivs []*output.Interval
	for i := range 30 {
		iv := new(output.Interval)
		n := uint64(i)
		outputtest.Fill(reflect.ValueOf(iv).Elem(), &n)
		k := i
		poison(reflect.ValueOf(iv).Elem(), &k)
		iv.Start = outputtest.Start.Add(time.Duration(i) * time.Second)
		iv.End = iv.Start.Add(time.Second)
		for j := range iv.Samples {
			s := &iv.Samples[j]
			s.Level, s.Device.Stacked = output.LevelWire, j == 2
			if i%3 != 0 {
				s.Source = output.SourceBlock
			}
			s.Read.Bytes, s.Write.Bytes = uint64(1+i)<<20, uint64(1+j)<<22
			s.Read.Latency = output.Latency{Buckets: []output.Bucket{{UpTo: 1 << 20, Count: 3}, {UpTo: 1 << 24, Count: 1}}, Max: 1 << 23}
			s.Write.Latency = s.Read.Latency
		}
		ivs = append(ivs, iv)
	}
	return ivs
}

// poison replaces every string below v.
func poison(v reflect.Value, n *int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hostile[*n%len(hostile)])
		*n++
	case reflect.Pointer:
		poison(v.Elem(), n)
	case reflect.Slice:
		for i := range v.Len() {
			poison(v.Index(i), n)
		}
	case reflect.Map:
		v.SetMapIndex(reflect.ValueOf("x"), reflect.ValueOf(hostile[*n%len(hostile)]))
		*n++
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			poison(v.Field(i), n)
		}
	}
}

// TestReportLatencyBounds: a histogram with too many bounds becomes coarser, but
// keeps all latencies.
func TestReportLatencyBounds(t *testing.T) {
	r := New(Options{})
	for i := range 20 {
		s := outputtest.Start.Add(time.Duration(i) * time.Second)
		iv := &output.Interval{Start: s, End: s.Add(time.Second), Samples: []output.Sample{{Source: output.SourceNFS, Project: "shop"}}}
		l := &iv.Samples[0].Read.Latency
		for j := range 5000 {
			l.Buckets = append(l.Buckets, output.Bucket{UpTo: uint64(1000 + 20*j + i), Count: 1})
		}
		l.Max = 101000 + uint64(i)
		iv.Samples[0].Read.Ops = 5000
		r.Add(iv)
	}
	r.flush()
	l := &r.total().Read.Latency
	if l.Count() != 100000 {
		t.Errorf("%d latencies, want 100000", l.Count())
	}
	for _, g := range r.views[0].groups {
		if n := len(g.usage.Read.Latency.Buckets); n > maxBuckets {
			t.Errorf("%d buckets", n)
		}
		if q := g.usage.Read.Latency.Quantile(0.5); q < 50000 || q > 54000 {
			t.Errorf("median of %d ns, want about 51000", q)
		}
	}
}

// failingWriter fails after n bytes.
type failingWriter struct{ n int }

func (w *failingWriter) Write(b []byte) (int, error) {
	if len(b) > w.n {
		n := w.n
		w.n = 0
		return n, outputtest.ErrAny
	}
	w.n -= len(b)
	return len(b), nil
}

// TestReportWriteTo: errors are returned, and a report can be written twice.
func TestReportWriteTo(t *testing.T) {
	r := pageOf(Options{}, 50, time.Second)
	first := bytesOf(t, r)
	if !bytes.Equal(first, bytesOf(t, r)) {
		t.Error("written twice, the page differs")
	}
	for _, n := range []int{0, 100, len(first) / 2, len(first) - 1} {
		if got, err := r.WriteTo(&failingWriter{n}); !errors.Is(err, outputtest.ErrAny) || got != int64(n) {
			t.Errorf("room for %d bytes: wrote %d, %v", n, got, err)
		}
	}
	incident(10, time.Second, func(iv *output.Interval) {
		iv.Start, iv.End = iv.Start.Add(time.Hour), iv.End.Add(time.Hour)
		r.Add(iv)
	})
	if more := bytesOf(t, r); bytes.Equal(first, more) {
		t.Error("what was added after the first page is not in the second")
	}
	empty := string(bytesOf(t, New(Options{Title: "Nothing"})))
	if !strings.Contains(empty, "no interval was recorded") || strings.Contains(empty, "<figure") {
		t.Error("the page of nothing does not say so")
	}
	// Intervals without any I/O are not the same as no intervals.
	idle := New(Options{})
	idle.Add(&output.Interval{Start: outputtest.Start, End: outputtest.Start.Add(time.Second)})
	if page := string(bytesOf(t, idle)); !strings.Contains(page, "No bytes were read or written") || strings.Contains(page, "NaN") {
		t.Error("the page of an idle host does not say so")
	}
}

// TestReportWriteFile: the file is complete or absent, and no temporary file stays.
func TestReportWriteFile(t *testing.T) {
	r := pageOf(Options{}, 20, time.Second)
	want := bytesOf(t, r)
	dir := t.TempDir()
	path := filepath.Join(dir, "out.html")
	for range 2 {
		if err := r.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d: %v", len(got), len(want), err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	// A directory cannot be replaced by a file.
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{filepath.Join(dir, "taken"), filepath.Join(dir, "none", "out.html")} {
		if err := r.WriteFile(bad); err == nil || !strings.Contains(err.Error(), strconv.Quote(bad)) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("left behind: %v", names)
	}
}

// TestReportRecording: the page of a replayed recording equals the page of the live
// run.
func TestReportRecording(t *testing.T) {
	opt := Options{Title: "both ways"}
	live, replayed := New(opt), New(opt)
	path := filepath.Join(t.TempDir(), "a.recording")
	rec, err := recording.Create(path, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	incident(300, time.Second, func(iv *output.Interval) {
		live.Add(iv)
		if err := rec.Write(iv); err != nil {
			t.Fatal(err)
		}
	})
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := recording.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		iv, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		replayed.Add(iv)
	}
	if a, b := bytesOf(t, live), bytesOf(t, replayed); !bytes.Equal(a, b) {
		t.Error("the page of the recording differs from that of the live run")
	}
}

func TestReportTicks(t *testing.T) {
	for _, c := range []struct {
		top  float64
		want string
	}{
		{0.7, "0 0.2B/s 0.4B/s 0.6B/s 0.8B/s"},
		{999, "0 200B/s 400B/s 600B/s 800B/s 1000B/s"},
		{1000, "0 0.2KiB/s 0.4KiB/s 0.6KiB/s 0.8KiB/s 1KiB/s"},
		{160 << 20, "0 50MiB/s 100MiB/s 150MiB/s 200MiB/s"},
		{1010 << 10, "0 0.2MiB/s 0.4MiB/s 0.6MiB/s 0.8MiB/s 1MiB/s"},
		{1 << 63, "0 2EiB/s 4EiB/s 6EiB/s 8EiB/s"},
		{math.Inf(1), ""},
		{0, ""},
		{math.NaN(), ""},
	} {
		var got []string
		for _, v := range rateTicks(c.top) {
			got = append(got, strings.ReplaceAll(v.text, "\u00a0", ""))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("up to %v: %s, want %s", c.top, s, c.want)
		}
	}
	for _, c := range []struct {
		length time.Duration
		want   string
	}{
		{10 * time.Second, "09:26:54"},
		{3 * time.Hour, "09:30"},
		{40 * time.Hour, "14 Mar 12:00"},
		{400 * 24 * time.Hour, ""},
		{0, ""},
	} {
		got := timeTicks(outputtest.Start, outputtest.Start.Add(c.length), time.UTC)
		if len(got) > 10 {
			t.Errorf("%v: %d ticks", c.length, len(got))
		}
		found := c.want == ""
		for _, k := range got {
			found = found || k.Text == c.want
		}
		if !found {
			t.Errorf("%v: ticks %v, want %s among them", c.length, got, c.want)
		}
	}
}

// FuzzReport makes pages of arbitrary contents of a recording.
func FuzzReport(f *testing.F) {
	for i, h := range hostile {
		f.Add(h, uint64(i)<<40, uint64(1)<<63, int64(i)*1e9, uint16(i))
	}
	f.Fuzz(func(t *testing.T, text string, a, b uint64, ns int64, shape uint16) {
		r := New(Options{Title: text, Bins: 16, Top: 2})
		start := outputtest.Start
		for i := range 1 + int(shape%40) {
			s := output.Sample{Source: output.Source(text), Owner: output.OwnerContainer, Project: text, Container: output.Container{ID: text + fmt.Sprint(i%5)}}
			s.Read = output.Amount{Bytes: a, Ops: b, Latency: output.Latency{Buckets: []output.Bucket{{UpTo: a, Count: 1 + b%8}}, Sum: b, Max: a}}
			s.Write = output.Amount{Bytes: b, Ops: a}
			r.Add(&output.Interval{Start: start, End: start.Add(time.Duration(ns) % time.Hour), Samples: []output.Sample{s}})
			start = start.Add(time.Duration(ns) % (1000 * time.Hour))
		}
		var out bytes.Buffer
		if _, err := r.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		page := out.String()
		if strings.Contains(page, "ZgotmplZ") || strings.Count(page, "<script") != 0 {
			t.Fatal("something got through")
		}
		for _, d := range regexp.MustCompile(` (?:d|x|y|width)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			if strings.ContainsAny(d[1], "INn") {
				t.Fatalf("coordinate %.80s", d[1])
			}
		}
	})
}

// BenchmarkReportAdd adds intervals of 1,500 groups.
func BenchmarkReportAdd(b *testing.B) {
	ivs := outputtest.BusyIntervals(1, 64)
	r := New(Options{})
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		iv := *ivs[n%len(ivs)]
		iv.Start = outputtest.Start.Add(time.Duration(n) * time.Second)
		iv.End = iv.Start.Add(time.Second)
		r.Add(&iv)
		n++
	}
}

// BenchmarkReportWrite writes the page of three hours.
func BenchmarkReportWrite(b *testing.B) {
	r := pageOf(Options{}, 5400, 2*time.Second)
	b.ReportAllocs()
	for b.Loop() {
		n, err := r.WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n), "B/page")
	}
}

// TestReportHeadlines: the page says who writes, who reads, who is slow, when it was
// worst, and what each NFS server was asked.
func TestReportHeadlines(t *testing.T) {
	r := New(Options{Command: "iotrace-bpf --report x.html 1 60"})
	for range 3 {
		r.Add(outputtest.Shop())
	}
	r.flush()
	v := r.verdict(r.total())
	var got []string
	for _, h := range v {
		got = append(got, h.Question+" "+h.Answer)
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{
		"Who writes? shop wrote 390 MiB, 91.0 % of all", "Next is blog with 8.4 %.",
		"Who reads? shop read 69.0 MiB, 100.0 % of all", "Who is slow? ",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the headlines do not say %q:\n%s", want, all)
		}
	}
	page := string(bytesOf(t, r))
	for _, want := range []string{"iotrace-bpf --report x.html 1 60", "By process", "postgres[4321]", `id="servers"`, "nas1", "shop-web-1, 100.0 %", `id="peaks"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	if p := string(bytesOf(t, New(Options{}))); strings.Contains(p, `id="servers"`) || strings.Contains(p, "By process") {
		t.Error("an empty page has tables")
	}
}

// TestReportKeepsApart: what differs in one thing alone, host, file or NFS client, has a row
// and bytes of its own, and so has what was counted before the recording is another host's.
func TestReportKeepsApart(t *testing.T) {
	sample := func(n uint64) output.Sample {
		return output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerKernel, Device: output.Device{ID: "8:0", Name: "sda"},
			Write: output.Amount{Bytes: n << 20, Ops: n}}
	}
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	interval := func(i int, host output.Host, samples ...output.Sample) *output.Interval {
		return &output.Interval{Host: host, Start: start.Add(time.Duration(i) * time.Second), End: start.Add(time.Duration(i+1) * time.Second), Samples: samples}
	}
	a, b := sample(11), sample(5)
	for _, c := range []struct {
		name string
		by   output.Key
		make func() []*output.Interval
	}{
		{"hosts of one interval", output.KeyHost, func() []*output.Interval {
			a.Host, b.Host = output.Host{Name: "web1"}, output.Host{Name: "web2"}
			return []*output.Interval{interval(0, output.Host{}, a, b)}
		}},
		{"hosts one after the other", output.KeyHost, func() []*output.Interval {
			one, two := output.Host{Name: "web1"}, output.Host{Name: "web2"}
			return []*output.Interval{interval(0, one, sample(6)), interval(1, two, sample(5)), interval(2, one, sample(5))}
		}},
		{"files", output.KeyFile, func() []*output.Interval {
			a.File, b.File = output.File{Kind: output.FileRegular, Path: "/web1"}, output.File{Kind: output.FileRegular, Path: "/web2"}
			return []*output.Interval{interval(0, output.Host{}, a, b)}
		}},
		{"clients", output.KeyNFSClient, func() []*output.Interval {
			a.Source, b.Source, a.Owner, b.Owner = output.SourceNFSD, output.SourceNFSD, output.OwnerNFSClient, output.OwnerNFSClient
			a.NFSClient, b.NFSClient = output.NFSClient{Address: "10.0.0.1", Name: "web1"}, output.NFSClient{Address: "10.0.0.2", Name: "web2"}
			return []*output.Interval{interval(0, output.Host{}, a, b)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b = sample(11), sample(5)
			r := New(Options{By: []output.Key{c.by}})
			for _, iv := range c.make() {
				r.Add(iv)
			}
			r.flush()
			got := map[string]uint64{}
			for _, g := range r.views[0].groups {
				got[regexp.MustCompile("web[12]").FindString(g.text)] += g.usage.Write.Bytes >> 20
			}
			if want := map[string]uint64{"web1": 11, "web2": 5}; !maps.Equal(got, want) {
				t.Errorf("rows %v, want %v", got, want)
			}
		})
	}
}
