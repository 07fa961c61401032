package output

import (
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares got with testdata/name.
func golden(t testing.TB, name string, got []byte) {
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

const mib = 1 << 20

// lat is a histogram with n latencies of about ns.
func lat(ns, n uint64) Latency {
	l := Latency{Buckets: []Bucket{{UpTo: ns/2 + ns/4, Count: n - n/10}}, Sum: n * ns / 2, Max: ns}
	if n >= 10 {
		l.Buckets = append(l.Buckets, Bucket{UpTo: ns + ns/4, Count: n / 10})
	}
	return l
}

var (
	diskSDA  = Device{ID: "8:0", Name: "sda"}
	diskDM0  = Device{ID: "253:0", Name: "dm-0", Stacked: true}
	nfsData  = Device{ID: "0:52"}
	fuseData = Device{ID: "0:53"}

	mountNFS = Mount{Source: "nas1:/export/shop", Point: "/var/lib/docker/volumes/shopdata/_data", FSType: "nfs4", Volume: "shopdata",
		Driver: "local", NFSServer: "nas1", NFSExport: "/export/shop", NFSVersion: "4.2"}
	mountFUSE = Mount{Source: "backup@vault:/", Point: "/mnt/vault", FSType: "fuse.sshfs", FUSESubtype: "sshfs", FUSEDaemonPID: 812}
)

func composeContainer(project, service, id string) Sample {
	return Sample{
		Owner: OwnerContainer, Project: project, ProjectRule: "com.docker.compose.project", Service: service,
		Container: Container{
			ID: id + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab"[len(id)-4:], Name: project + "-" + service + "-1",
			Runtime: "docker", Image: "registry.example/" + service, ImageTag: "1.2",
			Labels: map[string]string{"com.docker.compose.project": project, "com.docker.compose.service": service,
				"traefik.http.middlewares.auth.basicauth.users": "admin:$apr1$secret", "com.example.team": project + "-team"},
		},
		Cgroup: Cgroup{ID: 4000 + uint64(id[0]), Path: "/docker/" + id},
	}
}

// with returns s as a sample of what it did on a source.
func (s Sample) with(source Source, d Device, m Mount, read, write uint64) Sample {
	s.Source, s.Level, s.Device, s.Mount = source, LevelWire, d, m
	if read > 0 {
		s.Read = Amount{Bytes: read, Ops: read/65536 + 1, Latency: lat(900_000, read/65536+1)}
	}
	if write > 0 {
		s.Write = Amount{Bytes: write, Ops: write/131072 + 1, Latency: lat(4_000_000, write/131072+1)}
	}
	s.Basis = BasisBytes{Dirtier: write, Page: read}
	return s
}

// shop is an interval on a host with two projects, a container without one, a
// unit, kernel and unattributed bytes, on three sources and a stacked device.
func shop() *Interval {
	db := composeContainer("shop", "db", "aaaa11110000")
	web := composeContainer("shop", "web", "bbbb22220000")
	blog := composeContainer("blog", "web", "cccc33330000")
	lone := Sample{Owner: OwnerContainer, Container: Container{ID: "dddd4444000000000000000000000000000000000000000000000000000000dd",
		Name: "scratch", Runtime: "docker", Image: "debian", ImageTag: "12"}, Cgroup: Cgroup{ID: 77, Path: "/docker/dddd"}}
	unit := Sample{Owner: OwnerUnit, Unit: "postfix.service", Cgroup: Cgroup{ID: 12, Path: "/system.slice/postfix.service"}}
	ext4 := Mount{Source: "/dev/sda1", Point: "/", FSType: "ext4"}
	end := time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

	dbDisk := db.with(SourceBlock, diskSDA, ext4, 3*mib, 90*mib)
	dbDisk.Process = Process{PID: 4321, Name: "postgres"}
	dbDisk.Flush = Amount{Ops: 40, Latency: lat(9_000_000, 40)}
	dbDisk.MetaWriteBytes = 64 << 10
	stacked := db.with(SourceBlock, diskDM0, ext4, 3*mib, 90*mib)
	trim := lone.with(SourceBlock, diskSDA, ext4, 0, 8192)
	trim.Discard = Amount{Bytes: 512 * mib, Ops: 2}
	trim.Write.Errors = 1
	webApp := web.with(SourceNFS, nfsData, mountNFS, 70*mib, 41*mib)
	webApp.Level = LevelApp
	webNFS := web.with(SourceNFS, nfsData, mountNFS, 20*mib, 40*mib)
	webNFS.Metadata = Amount{Ops: 523, Latency: lat(300_000, 523)}
	kernel := Sample{Owner: OwnerKernel}.with(SourceBlock, diskSDA, Mount{}, 0, 512<<10)
	kernel.MetaWriteBytes = kernel.Write.Bytes
	kernel.Basis = BasisBytes{Bio: kernel.Write.Bytes}
	lost := Sample{Owner: OwnerUnattributed}.with(SourceBlock, diskSDA, Mount{}, 4096, 16384)
	lost.Basis = BasisBytes{None: 20480}

	return &Interval{
		Start: end.Add(-2 * time.Second), End: end,
		Host: Host{Name: "web1", ID: "5d1c6a3f0b0e4b9c8a7f6e5d4c3b2a10", Kernel: "6.12.48"},
		Samples: []Sample{
			dbDisk, stacked, webNFS, webApp, trim, kernel, lost,
			blog.with(SourceFUSE, fuseData, mountFUSE, 0, 12*mib),
			blog.with(SourceBlock, diskSDA, ext4, 1000, 0),
			unit.with(SourceBlock, diskSDA, ext4, 0, 300<<10),
		},
		Sources: []SourceStatus{
			{Source: SourceBlock, Attached: true, Hook: "tp_btf/block_rq_issue"},
			{Source: SourceNFS, Attached: true, Hook: "raw_tp/nfs_initiate_write", Cost: "no retransmissions"},
			{Source: SourceFUSE, Attached: true, Hook: "fentry/fuse_send_one"},
		},
		Self: Self{BPFNanos: 3_000_000, CPUNanos: 11_000_000, RSSBytes: 41 * mib},
		Events: []Event{
			{Time: end.Add(-time.Second), Dataset: DatasetVXLAN, Action: "create_failed", VXLAN: &VXLAN{Device: "vx-001002-abcde", Ifindex: 17,
				VNI: 4098, NetNS: 4026531840, Process: Process{PID: 901, Name: "dockerd"}, Network: "shop_default", NetworkID: "abcdefghijkl",
				Stack: "shop", Services: []string{"shop_web", "shop_db"}, Culprit: "vx-001002-fffff", CulpritNetNS: 4026531840,
				Reason: "left behind in the host namespace", Err: "file exists", AgeNanos: 90_000_000_000}},
		},
		Unresolved: 2,
	}
}

// hostileNames are what a container, label, mount or process may be called.
var hostileNames = []string{
	`"quoted" \backslash\`, "new\nline\r\n", "\x1b[31mred\x1b[0m\x07", "\x1b]0;title\x07", "\x9b2J\u009b2J", "tab\there",
	"\u202egnp.exe\u202c", "zero\u200bwidth\u200d", "bad\xff\xfe\xc3utf8", "\xed\xa0\x80", "nul\x00byte", "漢字コンテナ", "e\u0301\u0301\u0301\u0301\u0301\u0301",
	"\u0301leading", "ﷺ", "👩‍👩‍👧‍👦", "\u2028line\u2029sep", "</script>&", "", " ", "(kernel)", "(unattributed)", "TOTAL", "\u3164\u115f", "\U000e0041tag", "a.b.c",
}

// hostile is an interval in which everything that comes from outside is
// hostile.
func hostile() *Interval {
	iv := shop()
	iv.Host = Host{Name: hostileNames[2], ID: hostileNames[8], Kernel: hostileNames[1]}
	iv.Samples, iv.Events = nil, nil
	for i, n := range hostileNames {
		s := composeContainer("p", "s", "eeee5555000"+string(rune('a'+i%26))).with(SourceNFS, nfsData, mountNFS, uint64(i+1)*4096, 4096)
		s.Project, s.Service, s.ProjectRule, s.Unit = n, n, n, n
		s.Container.Name, s.Container.Image, s.Container.ImageTag, s.Container.Runtime = n, n, n, n
		s.Container.Labels = map[string]string{n: n, "com.docker.compose.project": n, "x." + n: n, "x_" + n: "second"}
		s.Pod = Pod{Name: n, Namespace: n, UID: n}
		s.Cgroup = Cgroup{ID: uint64(i) << 40, Path: "/" + n}
		s.Process = Process{PID: uint32(i + 1), Name: n}
		s.Device.Name, s.Device.ID = n, n
		s.Mount = Mount{Source: n, Point: n, FSType: n, Volume: n, Driver: n, NFSServer: n, NFSExport: n, NFSVersion: n, FUSESubtype: n, FUSEDaemonPID: uint32(i)}
		iv.Samples = append(iv.Samples, s)
		owner := s
		iv.Events = append(iv.Events,
			Event{Time: iv.End, Dataset: DatasetEvent, Action: "write", IO: &IO{Sample: s, Op: "write", Offset: 1 << 63, Latency: 5, Basis: "page"}},
			Event{Time: iv.End, Dataset: DatasetVXLAN, Action: "created", VXLAN: &VXLAN{Device: n, Network: n, NetworkID: n, Stack: n,
				Services: []string{n, n}, Culprit: n, Reason: n, Err: n, Process: s.Process, Owner: &owner}})
	}
	return iv
}

// random returns an interval with n samples of few different names, so that
// groups form, and of every owner, level and source.
func random(rng *rand.Rand, n int) *Interval {
	iv := shop()
	iv.Samples = nil
	pick := func(names ...string) string { return names[rng.IntN(len(names))] }
	owners := []OwnerKind{OwnerContainer, OwnerContainer, OwnerContainer, OwnerContainer, OwnerHelper, OwnerPod, OwnerUnit, OwnerCgroup, OwnerKernel, OwnerUnattributed, OwnerOther}
	amount := func() Amount {
		if rng.IntN(3) == 0 {
			return Amount{}
		}
		a := Amount{Ops: 1 + rng.Uint64N(50)}
		a.Bytes, a.Errors = rng.Uint64N(1<<40), rng.Uint64N(a.Ops)
		at := uint64(1)
		for range rng.IntN(4) {
			at += 1 + rng.Uint64N(1000)
			a.Latency.Buckets = append(a.Latency.Buckets, Bucket{UpTo: at, Count: 1 + rng.Uint64N(9)})
			a.Latency.Max = at
		}
		return a
	}
	for range n {
		s := Sample{
			Source: []Source{SourceBlock, SourceNFS, SourceFUSE}[rng.IntN(3)], Level: []Level{LevelWire, LevelWire, "", LevelApp}[rng.IntN(4)],
			Owner: owners[rng.IntN(len(owners))],
			Read:  amount(), Write: amount(), Discard: amount(), Flush: amount(), Metadata: amount(),
			Device: []Device{diskSDA, {ID: "8:16", Name: "sdb"}, diskDM0}[rng.IntN(3)],
			Mount:  []Mount{{}, mountNFS, mountFUSE}[rng.IntN(3)],
		}
		s.Flush.Bytes, s.Metadata.Bytes = 0, 0
		s.MetaReadBytes, s.MetaWriteBytes = s.Read.Bytes/3, s.Write.Bytes/5
		s.Basis = BasisBytes{Dirtier: s.Write.Bytes, Page: s.Read.Bytes, Task: s.Discard.Bytes}
		switch s.Owner {
		case OwnerContainer, OwnerHelper:
			c := composeContainer(pick("shop", "blog", "web"), pick("web", "db"), pick("aaaa1111", "bbbb2222", "cccc3333"))
			s.Project, s.Service, s.Container, s.Cgroup = c.Project, c.Service, c.Container, c.Cgroup
			if rng.IntN(4) == 0 {
				s.Project, s.ProjectRule, s.Service = "", "", ""
			}
			s.Process = Process{PID: 1 + rng.Uint32N(4), Name: pick("dd", "postgres")}
		case OwnerPod:
			s.Pod = Pod{Name: pick("a", "b"), Namespace: pick("prod", "test"), UID: pick("1", "2")}
		case OwnerUnit:
			s.Unit = pick("ssh.service", "web") // one is called like a project
		case OwnerCgroup:
			s.Cgroup = Cgroup{ID: 1 + rng.Uint64N(3), Path: pick("/", "/a/b/c", "/a/b")}
		}
		iv.Samples = append(iv.Samples, s)
	}
	return iv
}

// cpuTime is what this process has used so far, in user space and in the kernel:
// unlike the clock on the wall it means something on a busy machine as well.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportDocs reports n documents by the wall's clock and by the processor's: the
// latter is how many a core manages.
func reportDocs(b *testing.B, n float64, before time.Duration) {
	b.Helper()
	b.ReportMetric(n/b.Elapsed().Seconds(), "docs/s")
	b.ReportMetric(n/(cpuTime(b)-before).Seconds(), "docs/core-s")
}
