package output

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

var reportUpdate = flag.Bool("update-report", false, "write testdata/report.golden.html anew")

// reportGroupSpec is a container of the incident that the tests report on.
type reportGroupSpec struct {
	project, service string
	owner            OwnerKind
	source           Source
	mount            int
	read, write      func(sec float64) float64 // MiB/s
}

// reportIncident makes n intervals, step apart: a shop with its database and
// web servers on NFS, a nightly backup that floods the disk, batch jobs, a file
// system on FUSE, I/O without owner, a device-mapper stack, and trouble with an
// overlay network. sec in the functions is seconds since the beginning.
func reportIncident(n int, step time.Duration, add func(*Interval)) {
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
	specs := []reportGroupSpec{
		{"shop", "db", OwnerContainer, SourceNFS, 0, wave(14, 6, length/3), wave(22, 9, length/3)},
		{"shop", "web", OwnerContainer, SourceNFS, 1, wave(5, 2, length/5), wave(1, 0.5, length/5)},
		{"backup", "restic", OwnerContainer, SourceBlock, 0, burst(0.42, 0.71, 160), burst(0.42, 0.71, 24)},
		{"backup", "upload", OwnerContainer, SourceNFS, 2, burst(0.5, 0.75, 4), burst(0.5, 0.75, 71)},
		{"analytics", "spark", OwnerContainer, SourceBlock, 0, wave(9, 8, length/7), wave(12, 11, length/7)},
		{"ci", "runner", OwnerContainer, SourceBlock, 0, burst(0.1, 0.2, 11), burst(0.1, 0.25, 48)},
		{"media", "transcode", OwnerContainer, SourceFUSE, 3, wave(6, 3, length/4), burst(0.6, 0.9, 19)},
		{"mail", "dovecot", OwnerContainer, SourceBlock, 0, wave(1.2, 1, length/9), wave(2.1, 1, length/9)},
		{"wiki", "app", OwnerContainer, SourceBlock, 0, wave(0.4, 0.2, length/2), wave(0.6, 0.2, length/2)},
		{"chat", "server", OwnerContainer, SourceBlock, 0, wave(0.3, 0.1, length/2), wave(0.5, 0.2, length/2)},
		{"git", "forge", OwnerContainer, SourceBlock, 0, wave(0.8, 0.5, length/6), wave(0.4, 0.2, length/6)},
		{"", "", OwnerUnit, SourceBlock, 0, wave(0.1, 0.05, length), wave(0.3, 0.1, length)},
		{"", "", OwnerKernel, SourceBlock, 0, wave(0, 0, 1), wave(1.6, 0.4, length/3)},
		{"", "", OwnerUnattributed, SourceBlock, 0, burst(0.44, 0.7, 0.9), burst(0.44, 0.7, 2.5)},
	}
	mounts := []Mount{
		{Source: "filer.example.net:/export/shop-db", Point: "/var/lib/docker/volumes/shop_db/_data", FSType: "nfs4", Volume: "shop_db", NFSServer: "filer.example.net"},
		{Source: "filer.example.net:/export/shop-web", Point: "/srv/shop/htdocs", FSType: "nfs4", NFSServer: "filer.example.net"},
		{Source: "vault.example.net:/backup", Point: "/mnt/vault", FSType: "nfs4", NFSServer: "vault.example.net"},
		{Source: "media@nas.example.net:/films", Point: "/srv/films", FSType: "fuse.sshfs", FUSESubtype: "sshfs"},
	}
	amount := func(mib, median float64) Amount {
		bytes := uint64(max(0, mib*(0.8+0.4*rng.Float64())) * step.Seconds() * (1 << 20))
		if bytes < 4096 {
			return Amount{}
		}
		a := recordAmount(rng, min(max(1, bytes>>17), 60), median)
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
		start := recordStart.Add(time.Duration(i) * step)
		if f := sec / length; f > 0.3 && f < 0.33 {
			continue // the tracer was restarted
		}
		busy := 1.0
		if f := sec / length; f > 0.44 && f < 0.7 {
			busy = 14
		}
		iv := &Interval{
			Start: start, End: start.Add(step),
			Host: Host{Name: "web1.example.net", ID: "4c4c4544004a3510804bb7c04f435831", Kernel: "6.18.5-amd64"},
			Sources: []SourceStatus{
				{Source: SourceBlock, Attached: true, Hook: "raw_tp/block_rq_issue, raw_tp/block_rq_complete"},
				{Source: SourceNFS, Attached: true, Hook: "raw_tp/rpc_stats_latency", Cost: "a request's owner is that of its first and last page"},
				{Source: SourceFUSE, Attached: sec > 0.2*length, Hook: "fentry/fuse_simple_background", Reason: "module fuse is not loaded"},
			},
			Self: Self{CPUNanos: uint64(4e6 * step.Seconds()), BPFNanos: uint64(9e6 * step.Seconds()), RSSBytes: 38 << 20},
		}
		for j, sp := range specs {
			s := Sample{
				Source: sp.source, Level: LevelWire, Owner: sp.owner, Project: sp.project, ProjectRule: "compose", Service: sp.service,
				Cgroup:  Cgroup{ID: uint64(100 + j), Path: fmt.Sprintf("/system.slice/docker-%064x.scope", 7919*(j+1))},
				Device:  Device{ID: "259:0", Name: "nvme0n1"},
				Mount:   Mount{Source: "/dev/nvme0n1p2", Point: "/", FSType: "ext4"},
				Process: Process{PID: uint32(1000 + j), Name: sp.service},
			}
			switch sp.owner {
			case OwnerContainer:
				s.Container = Container{ID: fmt.Sprintf("%064x", 7919*(j+1)), Name: sp.project + "-" + sp.service + "-1", Runtime: "docker", Image: "registry.example.net/" + sp.service}
			case OwnerUnit:
				s.Unit = "systemd-journald.service"
				s.Cgroup.Path = "/system.slice/systemd-journald.service"
			}
			median := 180e3
			if sp.source != SourceBlock {
				s.Device = Device{ID: fmt.Sprintf("0:%d", 50+sp.mount)}
				s.Mount = mounts[sp.mount]
				median = 900e3
			}
			s.Read, s.Write = amount(sp.read(sec), median*busy), amount(sp.write(sec), 4*median*busy)
			if s.Read.Ops+s.Write.Ops == 0 {
				continue
			}
			s.Basis = BasisBytes{Page: s.Read.Bytes + s.Write.Bytes}
			if sp.source == SourceNFS {
				s.Basis = BasisBytes{Dirtier: s.Read.Bytes + s.Write.Bytes}
			}
			if sp.owner == OwnerUnattributed {
				s.Basis = BasisBytes{None: s.Read.Bytes + s.Write.Bytes}
			}
			iv.Samples = append(iv.Samples, s)
			if sp.source == SourceBlock && sp.owner == OwnerContainer {
				st := s
				st.Device = Device{ID: "254:0", Name: "dm-0", Stacked: true}
				iv.Samples = append(iv.Samples, st)
			}
		}
		vxlan := func(after time.Duration, action string, v VXLAN) {
			iv.Events = append(iv.Events, Event{Time: start.Add(after), Dataset: "iotrace.vxlan", Action: action, VXLAN: &v})
		}
		switch i {
		case n / 2:
			iv.Lost.Latencies = 4711
			vxlan(0, "created", VXLAN{Device: "vx-001003-qz8ko", VNI: 4099, NetNS: 4026532289, Process: Process{PID: 812, Name: "dockerd"}, Network: "shop_default", Stack: "shop", Services: []string{"db", "web"}})
		case n/2 + 2:
			vxlan(0, "moved", VXLAN{Device: "vx-001003-qz8ko", VNI: 4099, NetNS: 4026532289, NewNetNS: 4026531840, Process: Process{PID: 812, Name: "dockerd"}, Network: "shop_default", Stack: "shop", Reason: "the last container of the network stopped"})
			vxlan(time.Second, "leaked", VXLAN{Device: "vx-001003-qz8ko", VNI: 4099, NetNS: 4026531840, Network: "shop_default", Stack: "shop", AgeNanos: 93e9, Reason: "in the host's namespace, and no network uses it"})
			vxlan(2*time.Second, "create_failed", VXLAN{Device: "vx-001003-a7dd1", VNI: 4099, NetNS: 4026532301, Process: Process{PID: 812, Name: "dockerd"}, Network: "shop_default", Stack: "shop", Err: "file exists", Culprit: "vx-001003-qz8ko", CulpritNetNS: 4026531840})
		case n/2 + 3:
			for k := range 30 {
				s := iv.Samples[k%len(iv.Samples)]
				s.Write, s.Read = Amount{Bytes: 131072, Ops: 1}, Amount{}
				iv.Events = append(iv.Events, Event{Time: start, Dataset: "iotrace.event", Action: "io", IO: &IO{Sample: s, Op: "write", Offset: uint64(k) << 30, Latency: uint64(k*k) * 3e5, Basis: "page"}})
			}
		}
		add(iv)
	}
}

// reportOf reports on an incident.
func reportOf(opt HTMLReportOptions, n int, step time.Duration) *HTMLReport {
	r := NewHTMLReport(opt)
	reportIncident(n, step, r.Add)
	return r
}

func reportBytesOf(t testing.TB, r *HTMLReport) []byte {
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

// TestReportGolden holds the whole page of a short incident.
func TestReportGolden(t *testing.T) {
	r := reportOf(HTMLReportOptions{
		Title: "Slow shop, ticket 4711", Tool: "1.0", Origin: "incident.recording", Bins: 16, Top: 5,
		Now: recordStart.Add(24 * time.Hour), Location: time.FixedZone("CET", 3600),
	}, 40, time.Second)
	r.Damage(&DamageError{Path: "incident.recording.1", Offset: 8137, Read: 17, Err: ErrTruncated})
	got := reportBytesOf(t, r)
	golden := filepath.Join("testdata", "report.golden.html")
	if *reportUpdate {
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

// TestReportDemo writes the page that CONTRIBUTING suggests to look at.
func TestReportDemo(t *testing.T) {
	path := os.Getenv("REPORT_DEMO")
	if path == "" {
		path = filepath.Join(t.TempDir(), "demo.html")
	}
	r := reportOf(HTMLReportOptions{Title: "Slow shop on 14 March, ticket 4711", Tool: "1.0", Origin: "web1.recording"}, 5400, 2*time.Second)
	if err := os.WriteFile(path, reportBytesOf(t, r), 0o644); err != nil {
		t.Fatal(err)
	}
}

var _ = []any{errors.New, io.EOF, regexp.MustCompile, runtime.GC, html.Parse}
