// Package outputtest holds what the tests of several outputs share: intervals to
// write, and checks of what was written.
package outputtest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Cluster returns the second that ends at end on a host with three projects of four
// containers each: their I/O on a disk, on the same disk seen through a stacked
// device, and on NFS. The same seed gives the same amounts.
func Cluster(end time.Time, seed uint64) *output.Interval {
	iv := &output.Interval{Start: end.Add(-time.Second), End: end, Host: output.Host{Name: "host-1", ID: "0123456789abcdef", Kernel: "6.12.0"},
		Sources: []output.SourceStatus{{Source: output.SourceBlock, Attached: true, Hook: "raw_tp/block_rq_issue"}, {Source: output.SourceFUSE, Reason: "no module"}},
		Lost:    output.Lost{Latencies: 1}, Self: output.Self{CPUNanos: 1000, RSSBytes: 1 << 20}}
	add := func(s output.Sample, n uint64) {
		s.Level = output.LevelWire
		s.Write = output.Amount{Bytes: n * 4096, Ops: n, Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 1 << 20, Count: n}}, Sum: n << 19, Max: 1 << 20}}
		s.Read = output.Amount{Bytes: n * 512, Ops: n/2 + 1}
		s.Basis = output.BasisBytes{Dirtier: s.Write.Bytes, Task: s.Read.Bytes}
		iv.Samples = append(iv.Samples, s)
	}
	for p := range uint64(3) {
		for c := range uint64(4) {
			s := output.Sample{Source: output.SourceBlock, Owner: output.OwnerContainer, Project: fmt.Sprint("project-", p), ProjectRule: "compose", Service: fmt.Sprint("service-", c),
				Container: output.Container{ID: fmt.Sprintf("%064x", p*16+c+1), Name: fmt.Sprintf("p%d-c%d", p, c), Runtime: "docker", Image: "app", ImageTag: "1",
					Labels: map[string]string{"com.docker.compose.project": fmt.Sprint("project-", p), "team": fmt.Sprint("team-", c%2), "secret": "no"}},
				Cgroup: output.Cgroup{ID: 1<<63 + p*16 + c, Path: fmt.Sprintf("/docker/%d-%d", p, c)}, Process: output.Process{PID: uint32(100*p + c + 1), Name: "app"}}
			s.Device = output.Device{ID: "8:0", Name: "sda"}
			add(s, seed+p*31+c)
			s.Device = output.Device{ID: "253:0", Name: "dm-0", Stacked: true}
			add(s, seed+p*31+c)
			s.Source, s.Device = output.SourceNFS, output.Device{ID: "0:52"}
			s.Mount = output.Mount{Source: fmt.Sprintf("nas:/vol%d", c%2), Point: "/data", FSType: "nfs4", Volume: fmt.Sprint("vol", c%2), NFSServer: "nas", NFSExport: "/vol", NFSVersion: "4.2"}
			add(s, seed+p*17+c)
		}
	}
	add(output.Sample{Source: output.SourceBlock, Owner: output.OwnerUnattributed, Device: output.Device{ID: "8:0", Name: "sda"}}, seed)
	add(output.Sample{Source: output.SourceBlock, Owner: output.OwnerUnit, Unit: "cron.service", Cgroup: output.Cgroup{ID: 77, Path: "/system.slice/cron.service"}, Device: output.Device{ID: "8:0", Name: "sda"}}, seed)
	return iv
}

// Until waits until cond holds. After a minute the test fails and says what it was
// waiting for.
func Until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within a minute", what)
		}
	}
}

var update = flag.Bool("update", false, "write golden files")

// Golden compares got with the file testdata/NAME of the package under test; the
// flag -update writes the file instead.
func Golden(t testing.TB, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got) {
		t.Errorf("%s differs (-update writes it)\n--- want\n%s--- got\n%s", path, want, got)
	}
}

// MiB is a mebibyte in bytes.
const MiB = 1 << 20

// AllKeys returns every key of --by except label:KEY.
func AllKeys() (keys []output.Key) {
	for _, name := range output.KeyNames() {
		if k, err := output.ParseKey(name); err == nil && name != "label:KEY" {
			keys = append(keys, k)
		}
	}
	return keys
}

// lat returns a histogram of n latencies of up to ns.
func lat(ns, n uint64) output.Latency {
	l := output.Latency{Buckets: []output.Bucket{{UpTo: ns/2 + ns/4, Count: n - n/10}}, Sum: n * ns / 2, Max: ns}
	if n >= 10 {
		l.Buckets = append(l.Buckets, output.Bucket{UpTo: ns + ns/4, Count: n / 10})
	}
	return l
}

// DiskSDA is the disk of Shop, SameNames and Random.
var DiskSDA = output.Device{ID: "8:0", Name: "sda"}

var (
	diskDM0  = output.Device{ID: "253:0", Name: "dm-0", Stacked: true}
	nfsData  = output.Device{ID: "0:52"}
	fuseData = output.Device{ID: "0:53"}

	mountNFS = output.Mount{Source: "nas1:/export/shop", Point: "/var/lib/docker/volumes/shopdata/_data", FSType: "nfs4", Volume: "shopdata",
		Driver: "local", NFSServer: "nas1", NFSExport: "/export/shop", NFSVersion: "4.2"}
	mountFUSE = output.Mount{Source: "backup@vault:/", Point: "/mnt/vault", FSType: "fuse.sshfs", FUSESubtype: "sshfs", FUSEDaemonPID: 812}
)

// files are of all kinds.
var files = []output.File{
	{}, {Kind: output.FileMetadata}, {Kind: output.FileUnknown}, {Kind: output.FileNone},
	{Kind: output.FileRegular, Path: "/srv/data/a", Inside: "/data/a", Inode: 12, Links: 1},
	{Kind: output.FileRegular, Path: "/srv/data/b", Inode: 1 << 40, Links: 2},
	{Kind: output.FileRegular, Path: "/d/c", Inode: 13, Removed: true, Partial: true},
	{Kind: output.FileRegular, Inode: 14},
	{Kind: output.FileRegular, Path: "/var/lib/docker/containers/1/1-json.log", Inode: 15, Links: 1, LogOf: "shop/web"},
}

// ComposeContainer returns a sample without I/O of a Docker container that Compose
// started, with labels that must not leave the host among its labels. id is the
// beginning of the container's id, at least four characters.
func ComposeContainer(project, service, id string) output.Sample {
	return output.Sample{
		Owner: output.OwnerContainer, Project: project, ProjectRule: "com.docker.compose.project", Service: service,
		Container: output.Container{
			ID: id + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab"[len(id)-4:], Name: project + "-" + service + "-1",
			Runtime: "docker", Image: "registry.example/" + service, ImageTag: "1.2",
			Labels: map[string]string{"com.docker.compose.project": project, "com.docker.compose.service": service,
				"traefik.http.middlewares.auth.basicauth.users": "admin:$apr1$secret", "com.example.team": project + "-team"},
		},
		Cgroup: output.Cgroup{ID: 4000 + uint64(id[0]), Path: "/docker/" + id},
	}
}

// WithIO returns s with so many bytes read and written on a device and mount, with
// operations, latencies and basis to go with them.
func WithIO(s output.Sample, source output.Source, d output.Device, m output.Mount, read, write uint64) output.Sample {
	s.Source, s.Level, s.Device, s.Mount = source, output.LevelWire, d, m
	if read > 0 {
		s.Read = output.Amount{Bytes: read, Ops: read/65536 + 1, Latency: lat(900_000, read/65536+1)}
	}
	if write > 0 {
		s.Write = output.Amount{Bytes: write, Ops: write/131072 + 1, Latency: lat(4_000_000, write/131072+1)}
	}
	s.Basis = output.BasisBytes{Dirtier: write, Page: read}
	return s
}

// Shop returns an interval of two seconds on a host with two projects, a container
// without a project, a unit, bytes of the kernel and unattributed bytes, on three
// sources and a stacked device, and with one vxlan event. Most golden files show it.
func Shop() *output.Interval {
	db := ComposeContainer("shop", "db", "aaaa11110000")
	web := ComposeContainer("shop", "web", "bbbb22220000")
	blog := ComposeContainer("blog", "web", "cccc33330000")
	lone := output.Sample{Owner: output.OwnerContainer, Container: output.Container{ID: "dddd4444000000000000000000000000000000000000000000000000000000dd",
		Name: "scratch", Runtime: "docker", Image: "debian", ImageTag: "12"}, Cgroup: output.Cgroup{ID: 77, Path: "/docker/dddd"}}
	unit := output.Sample{Owner: output.OwnerUnit, Unit: "postfix.service", Cgroup: output.Cgroup{ID: 12, Path: "/system.slice/postfix.service"}}
	ext4 := output.Mount{Source: "/dev/sda1", Point: "/", FSType: "ext4"}
	end := time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

	dbDisk := WithIO(db, output.SourceBlock, DiskSDA, ext4, 3*MiB, 90*MiB)
	dbDisk.Process = output.Process{PID: 4321, Name: "postgres"}
	dbDisk.Flush = output.Amount{Ops: 40, Latency: lat(9_000_000, 40)}
	dbDisk.MetaWriteBytes = 64 << 10
	stacked := WithIO(db, output.SourceBlock, diskDM0, ext4, 3*MiB, 90*MiB)
	trim := WithIO(lone, output.SourceBlock, DiskSDA, ext4, 0, 8192)
	trim.Discard = output.Amount{Bytes: 512 * MiB, Ops: 2}
	trim.Write.Errors = 1
	webApp := WithIO(web, output.SourceNFS, nfsData, mountNFS, 70*MiB, 41*MiB)
	webApp.Level = output.LevelApp
	webNFS := WithIO(web, output.SourceNFS, nfsData, mountNFS, 20*MiB, 40*MiB)
	webNFS.Metadata = output.Amount{Ops: 523, Latency: lat(300_000, 523)}
	kernel := WithIO(output.Sample{Owner: output.OwnerKernel}, output.SourceBlock, DiskSDA, output.Mount{}, 0, 512<<10)
	kernel.MetaWriteBytes = kernel.Write.Bytes
	kernel.Basis = output.BasisBytes{Journal: kernel.Write.Bytes}
	lost := WithIO(output.Sample{Owner: output.OwnerUnattributed}, output.SourceBlock, DiskSDA, output.Mount{}, 4096, 16384)
	lost.Basis = output.BasisBytes{None: 20480}

	return &output.Interval{
		Start: end.Add(-2 * time.Second), End: end,
		Host: output.Host{Name: "web1", ID: "5d1c6a3f0b0e4b9c8a7f6e5d4c3b2a10", Kernel: "6.12.48"},
		Samples: []output.Sample{
			dbDisk, stacked, webNFS, webApp, trim, kernel, lost,
			WithIO(blog, output.SourceFUSE, fuseData, mountFUSE, 0, 12*MiB),
			WithIO(blog, output.SourceBlock, DiskSDA, ext4, 1000, 0),
			WithIO(unit, output.SourceBlock, DiskSDA, ext4, 0, 300<<10),
		},
		Sources: []output.SourceStatus{
			{Source: output.SourceBlock, Attached: true, Hook: "tp_btf/block_rq_issue"},
			{Source: output.SourceNFS, Attached: true, Hook: "raw_tp/nfs_initiate_write", Limitations: []string{"no retransmissions"}},
			{Source: output.SourceFUSE, Attached: true, Hook: "fentry/fuse_send_one"},
		},
		Self: output.Self{BPFNanos: 3_000_000, CPUNanos: 11_000_000, RSSBytes: 41 * MiB, MapBytes: 17 * MiB},
		Events: []output.Event{
			{Time: end.Add(-time.Second), Dataset: output.DatasetVXLAN, Action: "create_failed", VXLAN: &output.VXLAN{Device: "vx-001002-abcde", Ifindex: 17,
				VNI: 4098, NetNS: 4026531840, Process: output.Process{PID: 901, Name: "dockerd"}, Network: "shop_default", NetworkID: "abcdefghijkl",
				Stack: "shop", Services: []string{"shop_web", "shop_db"}, Culprit: "vx-001002-fffff", CulpritNetNS: 4026531840,
				Reason: "left behind in the host namespace", Err: "file exists", AgeNanos: 90_000_000_000}},
		},
		Unresolved: 2,
	}
}

// HostileNames are names that a container, label, mount or process may have and
// that an output must not pass on as they are: control and bidi characters, text
// that is not UTF-8, markup, our own words.
var HostileNames = []string{
	`"quoted" \backslash\`, "new\nline\r\n", "\x1b[31mred\x1b[0m\x07", "\x1b]0;title\x07", "\x9b2J\u009b2J", "tab\there",
	"\u202egnp.exe\u202c", "zero\u200bwidth\u200d", "bad\xff\xfe\xc3utf8", "\xed\xa0\x80", "nul\x00byte", "漢字コンテナ", "e\u0301\u0301\u0301\u0301\u0301\u0301",
	"\u0301leading", "ﷺ", "👩‍👩‍👧‍👦", "\u2028line\u2029sep", "</script>&", "", " ", "(kernel)", "(unattributed)", "TOTAL", "\u3164\u115f", "\U000e0041tag", "a.b.c",
}

// Hostile returns an interval in which every text that comes from outside is one of
// HostileNames.
func Hostile() *output.Interval {
	iv := Shop()
	iv.Host = output.Host{Name: HostileNames[2], ID: HostileNames[8], Kernel: HostileNames[1]}
	iv.Samples, iv.Events = nil, nil
	for i, n := range HostileNames {
		s := WithIO(ComposeContainer("p", "s", "eeee5555000"+string(rune('a'+i%26))), output.SourceNFS, nfsData, mountNFS, uint64(i+1)*4096, 4096)
		s.Project, s.Service, s.ProjectRule, s.Unit = n, n, n, n
		s.Container.Name, s.Container.Image, s.Container.ImageTag, s.Container.Digest, s.Container.Runtime = n, n, n, n, n
		s.Container.Labels = map[string]string{n: n, "com.docker.compose.project": n, "x." + n: n, "x_" + n: "second"}
		s.Pod = output.Pod{Name: n, Namespace: n, UID: n}
		s.Cgroup = output.Cgroup{ID: uint64(i) << 40, Path: "/" + n}
		s.Process = output.Process{PID: uint32(i + 1), Name: n}
		s.Device.Name, s.Device.ID, s.Device.Alias = n, n, n
		s.Mount = output.Mount{Source: n, Point: n, FSType: n, Volume: n, Driver: n, NFSServer: n, NFSExport: n, NFSVersion: n, NFSAddress: n, FUSESubtype: n, FUSEDaemonPID: uint32(i), Transport: n}
		s.File = output.File{Kind: output.FileRegular, Path: "/" + n, Inside: n, Inode: uint64(i), Links: uint32(i), Removed: i%2 == 1, Partial: i%3 == 1, LogOf: n}
		iv.Samples = append(iv.Samples, s)
		owner := s
		iv.Events = append(iv.Events,
			output.Event{Time: iv.End, Dataset: output.DatasetEvent, Action: "write", IO: &output.IO{Sample: s, Op: "write", Offset: 1 << 63, Latency: 5, Basis: "page"}},
			output.Event{Time: iv.End, Dataset: output.DatasetVXLAN, Action: "created", VXLAN: &output.VXLAN{Device: n, Network: n, NetworkID: n, Stack: n,
				Services: []string{n, n}, Culprit: n, Reason: n, Err: n, Process: s.Process, Owner: &owner}})
	}
	return iv
}

// Random returns an interval with n samples of every owner, level and source. Their
// names are few, so that several samples fall into one group.
func Random(rng *rand.Rand, n int) *output.Interval {
	iv := Shop()
	iv.Samples = nil
	pick := func(names ...string) string { return names[rng.IntN(len(names))] }
	owners := []output.OwnerKind{output.OwnerContainer, output.OwnerContainer, output.OwnerContainer, output.OwnerContainer, output.OwnerHelper, output.OwnerPod, output.OwnerUnit, output.OwnerCgroup, output.OwnerKernel, output.OwnerUnattributed, output.OwnerOther}
	amount := func() output.Amount {
		if rng.IntN(3) == 0 {
			return output.Amount{}
		}
		a := output.Amount{Ops: 1 + rng.Uint64N(50)}
		a.Bytes, a.Errors = rng.Uint64N(1<<40), rng.Uint64N(a.Ops)
		at := uint64(1)
		for range rng.IntN(4) {
			at += 1 + rng.Uint64N(1000)
			a.Latency.Buckets = append(a.Latency.Buckets, output.Bucket{UpTo: at, Count: 1 + rng.Uint64N(9)})
			a.Latency.Max = at
		}
		return a
	}
	for range n {
		s := output.Sample{
			Source: []output.Source{output.SourceBlock, output.SourceNFS, output.SourceFUSE}[rng.IntN(3)], Level: []output.Level{output.LevelWire, output.LevelWire, "", output.LevelApp}[rng.IntN(4)],
			Owner: owners[rng.IntN(len(owners))],
			Read:  amount(), Write: amount(), Discard: amount(), Flush: amount(), Metadata: amount(),
			Device: []output.Device{DiskSDA, {ID: "8:16", Name: "sdb"}, diskDM0}[rng.IntN(3)],
			Mount:  []output.Mount{{}, mountNFS, mountFUSE}[rng.IntN(3)],
			File:   files[rng.IntN(len(files))],
		}
		s.Flush.Bytes, s.Metadata.Bytes = 0, 0
		s.MetaReadBytes, s.MetaWriteBytes = s.Read.Bytes/3, s.Write.Bytes/5
		s.Basis = output.BasisBytes{Dirtier: s.Write.Bytes, Page: s.Read.Bytes, Task: s.Discard.Bytes}
		switch s.Owner {
		case output.OwnerContainer, output.OwnerHelper:
			c := ComposeContainer(pick("shop", "blog", "web"), pick("web", "db"), pick("aaaa1111", "bbbb2222", "cccc3333"))
			s.Project, s.Service, s.Container, s.Cgroup = c.Project, c.Service, c.Container, c.Cgroup
			if rng.IntN(4) == 0 {
				s.Project, s.ProjectRule, s.Service = "", "", ""
			}
			s.Process = output.Process{PID: 1 + rng.Uint32N(4), Name: pick("dd", "postgres")}
		case output.OwnerPod:
			s.Pod = output.Pod{Name: pick("a", "b"), Namespace: pick("prod", "test"), UID: pick("1", "2")}
		case output.OwnerUnit:
			s.Unit = pick("ssh.service", "web") // one is called like a project
		case output.OwnerCgroup:
			s.Cgroup = output.Cgroup{ID: 1 + rng.Uint64N(3), Path: pick("/", "/a/b/c", "/a/b")}
		}
		iv.Samples = append(iv.Samples, s)
	}
	return iv
}

// CPUTime returns the processor time that this process has used so far, in user
// space and in the kernel. Unlike the time on the wall it does not depend on what
// else the machine does.
func CPUTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// DocRates adds two rates to a benchmark that made n documents: docs/s of the wall
// clock, and docs/core-s of the processor time since before, which CPUTime returned.
func DocRates(b *testing.B, n float64, before time.Duration) {
	b.Helper()
	b.ReportMetric(n/b.Elapsed().Seconds(), "docs/s")
	b.ReportMetric(n/(CPUTime(b)-before).Seconds(), "docs/core-s")
}

// SameNames returns an interval with containers, a helper and a unit of the same
// name, and a container whose name is "(kernel)".
func SameNames() *output.Interval {
	a := WithIO(ComposeContainer("p", "s", "aaaa11110000"), output.SourceBlock, DiskSDA, output.Mount{}, 1, 0)
	b := WithIO(ComposeContainer("p", "s", "bbbb22220000"), output.SourceBlock, DiskSDA, output.Mount{}, 2, 0)
	kernel := WithIO(output.Sample{Owner: output.OwnerKernel}, output.SourceBlock, DiskSDA, output.Mount{}, 4, 0)
	liar := WithIO(ComposeContainer("p", "s", "cccc33330000"), output.SourceBlock, DiskSDA, output.Mount{}, 8, 0)
	liar.Container.Name = "(kernel)"
	helper := WithIO(a, output.SourceBlock, DiskSDA, output.Mount{}, 16, 0)
	helper.Owner = output.OwnerHelper
	unit := WithIO(output.Sample{Owner: output.OwnerUnit, Unit: a.Container.Name}, output.SourceBlock, DiskSDA, output.Mount{}, 32, 0)
	return &output.Interval{Samples: []output.Sample{a, b, kernel, liar, helper, unit, a}}
}

// Keys parses the argument of --by.
func Keys(t testing.TB, s string) []output.Key {
	t.Helper()
	k, err := output.ParseKeys(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Filters parses arguments of --filter, one filter each.
func Filters(t testing.TB, list ...string) (fs []output.Filter) {
	t.Helper()
	for _, s := range list {
		f, err := output.ParseFilter(s)
		if err != nil {
			t.Fatal(err)
		}
		fs = append(fs, f)
	}
	return fs
}

// RowTexts returns "NAME|READ|WRITTEN" of every row, in bytes.
func RowTexts(rows []output.Row) (out []string) {
	for i := range rows {
		r := &rows[i]
		out = append(out, fmt.Sprintf("%s|%d|%d", r.Text(), r.Total.Read.Bytes, r.Total.Write.Bytes))
	}
	return out
}

func pointers(rows []output.Row) (out []*output.Row) {
	for i := range rows {
		out = append(out, &rows[i])
	}
	return out
}

// CheckTotals checks that the rows, the rest and the filtered bytes of a summary add
// up to its total, and the total to the samples of the interval, in every field.
func CheckTotals(t *testing.T, summary *output.Summary, iv *output.Interval, opt output.GroupOptions) {
	t.Helper()
	var sum output.Row
	for _, r := range append([]*output.Row{summary.Rest, summary.Filtered}, pointers(summary.Rows)...) {
		if r != nil {
			sum.Total.Add(&r.Total)
			sum.App.Add(&r.App)
		}
	}
	if !reflect.DeepEqual(sum.Total, summary.Total.Total) || !reflect.DeepEqual(sum.App, summary.Total.App) {
		t.Errorf("rows sum up to\n%+v\ntotal is\n%+v", sum.Total, summary.Total.Total)
	}
	var want, app output.Usage
	for i := range iv.Samples {
		s := &iv.Samples[i]
		switch {
		case s.Device.Stacked:
		case s.Level == output.LevelApp:
			app.AddSample(s)
		default:
			want.AddSample(s)
		}
	}
	got := summary.Total.Total
	switch opt.Level {
	case output.LevelApp:
		want, got = app, summary.Total.App
		if summary.Total.Total.Ops() != 0 {
			t.Error("wire requests among those of programs")
		}
	case output.LevelBoth:
		if summary.Total.App.Bytes() != app.Bytes() {
			t.Errorf("programs did %d bytes, want %d", summary.Total.App.Bytes(), app.Bytes())
		}
	default:
		if summary.Total.App.Ops() != 0 {
			t.Error("requests of programs among those on the wire")
		}
	}
	if got.BasisUnknown {
		got.Basis, got.BasisUnknown, want.Basis = output.BasisBytes{}, false, output.BasisBytes{}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("total is\n%+v\nsamples hold\n%+v", got, want)
	}
}

// Start is when the first BusyInterval begins.
var Start = time.Date(2026, 3, 14, 9, 26, 53, 589793238, time.UTC)

// BusyInterval returns second i, counted from Start, of a busy host: some of owners
// do much, most do little. Each of them does something with the probability active.
func BusyInterval(rng *rand.Rand, owners []output.Sample, i int, active float64) *output.Interval {
	start := Start.Add(time.Duration(i) * time.Second)
	iv := &output.Interval{
		Start: start, End: start.Add(time.Second + time.Duration(rng.IntN(2e6))),
		Host: output.Host{Name: "web1.example.net", ID: "4c4c4544004a3510804bb7c04f435831", Kernel: "6.18.5-amd64"},
		Sources: []output.SourceStatus{
			{Source: output.SourceBlock, Attached: true, Hook: "raw_tp/block_rq_issue, raw_tp/block_rq_complete"},
			{Source: output.SourceNFS, Attached: true, Hook: "raw_tp/rpc_stats_latency", Limitations: []string{"the last page decides for a whole request"}},
			{Source: output.SourceFUSE, Reason: "module fuse is not loaded"},
		},
		Self: output.Self{CPUNanos: 3e6 + rng.Uint64N(1e6), RSSBytes: 41 << 20},
	}
	for j := range owners {
		if rng.Float64() >= active {
			continue
		}
		s := owners[j]
		scale := 1 + 20000/uint64(1+j)
		s.Read = RandomAmount(rng, rng.Uint64N(1+scale), 120e3)
		s.Write = RandomAmount(rng, rng.Uint64N(1+scale), 900e3)
		if rng.IntN(4) == 0 {
			s.Flush = RandomAmount(rng, 1+rng.Uint64N(3), 2e6)
			s.Flush.Bytes = 0
		}
		s.Basis = output.BasisBytes{Page: s.Read.Bytes + s.Write.Bytes}
		if s.Source == output.SourceNFS {
			s.Basis = output.BasisBytes{Dirtier: s.Write.Bytes, Page: s.Read.Bytes}
			s.Metadata = RandomAmount(rng, rng.Uint64N(20), 300e3)
			s.Metadata.Bytes = 0
		}
		iv.Samples = append(iv.Samples, s)
	}
	// The tracer reads them from a hash map, in no order.
	rng.Shuffle(len(iv.Samples), func(a, b int) { iv.Samples[a], iv.Samples[b] = iv.Samples[b], iv.Samples[a] })
	return iv
}

// RandomAmount returns an amount of ops requests whose latencies are spread around
// median, in ns, in buckets as the tracer has them: four for each power of two.
func RandomAmount(rng *rand.Rand, ops uint64, median float64) output.Amount {
	a := output.Amount{Ops: ops}
	counts := map[uint64]uint64{}
	for range min(ops, 400) {
		a.Bytes += 4096 << rng.UintN(6)
		ns := uint64(median * (0.2 + rng.ExpFloat64()))
		bound := uint64(1)
		for bound < ns {
			bound *= 2
		}
		for q := bound / 2; q < bound; q += bound / 8 {
			if ns <= q {
				bound = q
				break
			}
		}
		counts[bound]++
		a.Latency.Sum += ns
		a.Latency.Max = max(a.Latency.Max, ns)
	}
	for _, b := range slices.Sorted(bounds(counts)) {
		a.Latency.Buckets = append(a.Latency.Buckets, output.Bucket{UpTo: b, Count: counts[b]})
	}
	return a
}

func bounds(m map[uint64]uint64) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// Owners returns n samples without I/O, each of another container: services of 40
// Compose projects on a disk and on five NFS mounts, with a dozen labels each.
func Owners(rng *rand.Rand, n int) []output.Sample {
	owners := make([]output.Sample, n)
	for i := range owners {
		project, service := fmt.Sprintf("project-%02d", i%40), fmt.Sprintf("service-%d", i%7)
		id := fmt.Sprintf("%016x%016x%016x%016x", rng.Uint64(), rng.Uint64(), rng.Uint64(), rng.Uint64())
		name := fmt.Sprintf("%s-%s-%d", project, service, i)
		s := output.Sample{
			Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer,
			Project: project, ProjectRule: "compose", Service: service,
			Container: output.Container{ID: id, Name: name, Runtime: "docker", Image: "registry.example.net/" + service, ImageTag: "1." + strconv.Itoa(i%9), Labels: map[string]string{
				"com.docker.compose.project":              project,
				"com.docker.compose.service":              service,
				"com.docker.compose.container-number":     strconv.Itoa(i),
				"com.docker.compose.oneoff":               "False",
				"com.docker.compose.version":              "2.40.3",
				"com.docker.compose.config-hash":          id[:32] + id[16:48],
				"com.docker.compose.project.working_dir":  "/srv/" + project,
				"com.docker.compose.project.config_files": "/srv/" + project + "/compose.yaml",
				"org.opencontainers.image.created":        "2026-02-11T08:00:12Z",
				"org.opencontainers.image.revision":       id[:40],
				"maintainer":                              "ops@example.net",
			}},
			Cgroup: output.Cgroup{ID: 4000 + uint64(i), Path: "/system.slice/docker-" + id + ".scope"},
			Device: output.Device{ID: "259:0", Name: "nvme0n1"},
			Mount:  output.Mount{Source: "/dev/nvme0n1p2", Point: "/", FSType: "ext4"},
		}
		if i%3 == 0 {
			m := i % 5
			s.Source = output.SourceNFS
			s.Device = output.Device{ID: fmt.Sprintf("0:%d", 50+m)}
			s.Mount = output.Mount{
				Source: fmt.Sprintf("filer.example.net:/export/%s-%d", project, m), Point: fmt.Sprintf("/var/lib/docker/volumes/%s-%d/_data", project, m),
				FSType: "nfs4", Volume: fmt.Sprintf("%s-%d", project, m), Driver: "local", NFSServer: "filer.example.net", NFSExport: "/export/" + project, NFSVersion: "4.2",
			}
		}
		owners[i] = s
	}
	return owners
}

// Fill sets every field below v to another value, never to zero, and every bool to
// true. n counts the values: calls that share it share no values.
func Fill(v reflect.Value, n *uint64) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(*n)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		Fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range v.Len() {
			Fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 3 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			Fill(key, n)
			Fill(value, n)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(Start.Add(time.Duration(*n) * time.Hour)))
			return
		}
		for i := range v.NumField() {
			Fill(v.Field(i), n)
		}
	default:
		panic("outputtest.Fill has no value of type " + v.Type().String())
	}
}

// ErrAny is an error for code that passes errors on.
var ErrAny = errors.New("any error")

// BusyIntervals returns n BusyIntervals of the same 1,500 owners, the same at every
// call.
func BusyIntervals(active float64, n int) []*output.Interval {
	rng := rand.New(rand.NewPCG(17, 18))
	owners := Owners(rng, 1500)
	var ivs []*output.Interval
	for i := range n {
		ivs = append(ivs, BusyInterval(rng, owners, i, active))
	}
	return ivs
}

// CheckSafe fails unless s is UTF-8 without control, format and bidi characters, which
// a terminal would act upon.
func CheckSafe(t testing.TB, s string) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Errorf("%q is not UTF-8", s)
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Bidi_Control, r) || unicode.In(r, unicode.Zl, unicode.Zp) {
			t.Errorf("%+q holds %U", s, r)
		}
	}
}

// BrokenWriters returns files to which a write fails, with the error of each: a pipe
// without a reader (EPIPE) and a full device (ENOSPC).
func BrokenWriters(t testing.TB) map[*os.File]error {
	t.Helper()
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close() })
	r.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { full.Close() })
	return map[*os.File]error{pipe: syscall.EPIPE, full: syscall.ENOSPC}
}
