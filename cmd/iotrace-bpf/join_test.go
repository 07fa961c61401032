package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// manyRows returns the reads and writes of n containers on a disk.
func manyRows(tb testing.TB, containers int) (*joiner, []tracer.Row) {
	tb.Helper()
	r, err := attribute.NewResolver(attribute.Options{CgroupRoot: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	j := &joiner{
		resolver: r, devices: tracer.NewDevices(), comm: pidText,
		mount: func(tracer.Dev, uint64) output.Mount { return output.Mount{} },
	}
	var rows []tracer.Row
	for i := range uint64(containers) {
		r.CgroupCreated(i+2, fmt.Sprintf("/system.slice/docker-%064x.scope", i))
		for _, op := range []tracer.Op{tracer.Read, tracer.Write} {
			rows = append(rows, tracer.Row{
				Key:   tracer.Key{Source: tracer.Block, Op: op, Basis: tracer.ByPage, Cgroup: i + 2, Dev: 7 << 20},
				Bytes: 4096, Ops: 1, Latency: tracer.Latency{Sum: 1000, Max: 1000, Buckets: []tracer.Bucket{{UpTo: 1023, Count: 1}}},
			})
		}
	}
	return j, rows
}

// TestSamplesOfMany: each container is one sample with its reads and writes.
func TestSamplesOfMany(t *testing.T) {
	j, rows := manyRows(t, 1500)
	samples := j.samples(rows, time.Now())
	if len(samples) != 1500 {
		t.Fatalf("%d samples", len(samples))
	}
	for i := range samples {
		s := &samples[i]
		if s.Read.Bytes != 4096 || s.Write.Bytes != 4096 || s.Owner != output.OwnerContainer || s.Device.ID != "7:0" {
			t.Fatalf("%+v", s)
		}
	}
	iv := &output.Interval{Start: time.Now(), End: time.Now(), Samples: samples}
	by, err := output.ParseKeys("container")
	if err != nil {
		t.Fatal(err)
	}
	if summary := output.Group(iv, output.GroupOptions{By: by}); len(summary.Rows) != 1500 || summary.Total.Total.Bytes() != 1500*8192 {
		t.Errorf("%d rows, %d bytes", len(summary.Rows), summary.Total.Total.Bytes())
	}
}

// TestUnnamed: a container with no more than an id counts once, even with I/O on
// several devices.
func TestUnnamed(t *testing.T) {
	j, rows := manyRows(t, 3)
	for _, dev := range []tracer.Dev{7 << 20, 8 << 20} {
		for _, cgroup := range []uint64{99, tracer.CgroupKernel, tracer.CgroupNone, tracer.CgroupOther} {
			rows = append(rows, tracer.Row{Key: tracer.Key{Source: tracer.Block, Op: tracer.Write, Cgroup: cgroup, Dev: dev}, Bytes: 4096, Ops: 1})
		}
	}
	for id, path := range map[uint64]string{
		100: "/system.slice/cron.service", 101: "/machine.slice/machine-shop.scope", 102: "/kubepods/pod0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
	} {
		j.resolver.CgroupCreated(id, path)
		rows = append(rows, tracer.Row{Key: tracer.Key{Source: tracer.Block, Op: tracer.Write, Cgroup: id, Dev: 7 << 20}, Bytes: 4096, Ops: 1})
	}
	// Three containers that no runtime knows, an id without a path, a pod; the unit and
	// the machine have names.
	if n := unnamed(j.samples(rows, time.Now())); n != 5 {
		t.Errorf("%d unnamed, want 5", n)
	}
}

// BenchmarkJoin measures an interval of 1,500 containers, from the kernel's numbers
// to the rows.
func BenchmarkJoin(b *testing.B) {
	j, rows := manyRows(b, 1500)
	by, err := output.ParseKeys("container")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		iv := &output.Interval{Samples: j.samples(rows, time.Now())}
		output.Group(iv, output.GroupOptions{By: by})
	}
}

// TestMountOfDirectIO: a request that names no file system has the mount on its device.
func TestMountOfDirectIO(t *testing.T) {
	j, _ := manyRows(t, 1)
	j.byMount = true
	j.mount = func(dev tracer.Dev, _ uint64) output.Mount {
		return map[tracer.Dev]output.Mount{7<<20 | 1: {Source: "/dev/loop1", Point: "/srv"}, 8<<20 | 1: {Source: "/dev/sda1", Point: "/"}}[dev]
	}
	for _, tt := range []struct {
		dev, fsdev tracer.Dev
		want       string
	}{
		{7<<20 | 1, 0, "/dev/loop1 on /srv"},
		{8 << 20, 8<<20 | 1, "/dev/sda1 on /"},
		{8 << 20, 0, "8:0 (mount unknown)"},
	} {
		s := j.identity(&tracer.Key{Source: tracer.Block, Cgroup: 2, Dev: tt.dev, FSDev: tt.fsdev}, time.Now(), map[tracer.Dev]tracer.Device{8 << 20: {}})
		s.Device.Name = ""
		if got := output.MountText(&s); got != tt.want {
			t.Errorf("device %v, file system %v: %q, want %q", tt.dev, tt.fsdev, got, tt.want)
		}
	}
}

// TestCountsApp: an empty table is an error that says why.
func TestCountsApp(t *testing.T) {
	block := tracer.Status{Source: "block", Attached: true}
	absent := tracer.Status{Source: "nfs", Reason: "no module"}
	fuse := tracer.Status{Source: "fuse", Attached: true}
	if err := countsApp([]tracer.Status{block, absent, fuse}); err != nil {
		t.Errorf("with FUSE: %v", err)
	}
	err := countsApp([]tracer.Status{block, absent})
	if err == nil {
		t.Fatal("no error without a source that can count")
	}
	for _, want := range []string{"block counts requests", "nfs is absent: no module", "--level both"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// TestNamedByInSamples: a sample says whose word its names are, and of a cgroup that is
// gone that it is.
func TestNamedByInSamples(t *testing.T) {
	j, _ := manyRows(t, 0)
	var rows []tracer.Row
	for id, path := range map[uint64]string{
		100: "/system.slice/docker-" + strings.Repeat("a", 64) + ".scope",
		101: "/user.slice/user-1000.slice/user@1000.service/docker-" + strings.Repeat("a", 64) + ".scope",
	} {
		j.resolver.CgroupCreated(id, path)
		rows = append(rows, tracer.Row{Key: tracer.Key{Source: tracer.Block, Op: tracer.Write, Cgroup: id, Dev: 7 << 20}, Bytes: 4096, Ops: 1})
	}
	samples := j.samples(rows, time.Now())
	if len(samples) != 2 || samples[0].NamedBy != "" || samples[1].NamedBy != "user 1000" {
		t.Fatalf("%+v", samples)
	}
	by, err := output.ParseKeys("container")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range output.Group(&output.Interval{Samples: samples}, output.GroupOptions{By: by}).Rows {
		names = append(names, r.Text())
	}
	if want := []string{"aaaaaaaaaaaa", "aaaaaaaaaaaa (user 1000)"}; !slices.Equal(names, want) {
		t.Errorf("rows %q, want %q", names, want)
	}
}

// TestUntraced: SMB, 9p and CephFS are not traced only where their sources were wanted and
// are not there.
func TestUntraced(t *testing.T) {
	all := []attribute.Untraced{{FSType: "afs"}, {FSType: "ceph"}, {FSType: "cifs"}, {FSType: "smb3"}, {FSType: "9p"}}
	for _, tt := range []struct {
		sources []tracer.Status
		want    int
	}{
		{[]tracer.Status{{Source: "smb", Attached: true}}, 1},
		{[]tracer.Status{{Source: "smb", Waiting: true, Reason: "module \"cifs\" is not loaded"}}, 1},
		{[]tracer.Status{{Source: "block", Attached: true}}, 1},
		{[]tracer.Status{{Source: "smb", Reason: "no type information"}}, 3},
		{[]tracer.Status{{Source: "9p", Reason: "no type information"}, {Source: "smb", Attached: true}}, 2},
		{[]tracer.Status{{Source: "smb", Attached: true}, {Source: "ceph", Reason: "no type information"}}, 2},
	} {
		if got := withoutTraced(slices.Clone(all), tt.sources); len(got) != tt.want {
			t.Errorf("%+v: %+v is not traced, want %d", tt.sources, got, tt.want)
		}
	}
}
