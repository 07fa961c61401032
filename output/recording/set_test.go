package recording

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// shifted is an interval as another host would have recorded it.
func shifted(iv *output.Interval, host output.Host, by time.Duration) *output.Interval {
	iv.Host, iv.Start, iv.End = host, iv.Start.Add(by), iv.End.Add(by)
	return iv
}

// setOf makes recordings that are hard to join: two of web1 at the same time, web2 with a gap
// and a clock that is 5 s ahead, web3 every 10 s and only at the end.
func setOf(t *testing.T) (paths []string) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(51, 52))
	owners := outputtest.Owners(rng, 40)
	host := func(n int) output.Host {
		return output.Host{Name: fmt.Sprintf("web%d", n), ID: fmt.Sprintf("%032d", n), Kernel: "6.12.0"}
	}
	write := func(name string, h output.Host, ivs []*output.Interval) {
		path := filepath.Join(dir, name)
		w, err := Create(path, Options{Host: h, MaxBytes: minBytes, Keep: 99})
		if err != nil {
			t.Fatal(err)
		}
		for _, iv := range ivs {
			if err := w.Write(iv); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	busy := func(n int, h output.Host, by time.Duration, leave func(int) bool) (ivs []*output.Interval) {
		for i := range n {
			iv := outputtest.BusyInterval(rng, owners, i, 0.7)
			iv.Lost = output.Lost{Bytes: 3, Misses: 1}
			iv.Events = []output.Event{{Time: iv.Start.Add(by), Dataset: output.DatasetVXLAN, Action: "created", VXLAN: &output.VXLAN{Device: h.Name}}}
			if leave == nil || !leave(i) {
				ivs = append(ivs, shifted(iv, h, by))
			}
		}
		return ivs
	}
	write("web1-a", host(1), busy(90, host(1), 0, nil))
	write("web1-b", host(1), busy(60, host(1), 20*time.Second+300*time.Millisecond, nil))
	write("web2", host(2), busy(90, host(2), 5*time.Second+700*time.Millisecond, func(i int) bool { return i >= 30 && i < 45 }))
	var slow []*output.Interval
	m := output.NewMerger(10 * time.Second)
	for _, iv := range busy(40, host(3), 70*time.Second, nil) {
		if done := m.Add(iv); done != nil {
			slow = append(slow, done)
		}
	}
	write("web3", host(3), append(slow, m.Flush()))
	return paths
}

// openSet opens paths as a Set that is closed at the end of the test.
func openSet(t *testing.T, paths []string) *Set {
	t.Helper()
	var readers []*Reader
	for _, p := range paths {
		r, err := Open(p)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	s, err := NewSet(readers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// sums are bytes and operations of each host and project, level and source.
func sums(total map[string]uint64, iv *output.Interval) {
	opt := output.GroupOptions{By: []output.Key{output.KeyHost, output.KeyProject}, Level: output.LevelBoth, Stacked: true}
	for _, r := range output.Group(iv, opt).Rows {
		for _, u := range r.Sources {
			for _, op := range output.Ops {
				total[fmt.Sprint(r.Text(), u.Source, u.Level, op, "bytes")] += u.Amount(op).Bytes
				total[fmt.Sprint(r.Text(), u.Source, u.Level, op, "ops")] += u.Amount(op).Ops
				total[fmt.Sprint(r.Text(), u.Source, u.Level, op, "latencies")] += u.Amount(op).Latency.Count()
			}
		}
	}
	total["lost"] += iv.Lost.Bytes + iv.Lost.Misses
	total["events"] += uint64(len(iv.Events))
	total["cpu"] += iv.Self.CPUNanos
}

func wantSums(t *testing.T, what string, got, want map[string]uint64) {
	t.Helper()
	if len(want) < 100 {
		t.Fatalf("%d sums", len(want))
	}
	for k, n := range want {
		if got[k] != n {
			t.Fatalf("%s: %s is %d, want %d", what, k, got[k], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d sums, want %d", what, len(got), len(want))
	}
}

// TestSetSums: recordings together have the sums of each of them, to the byte: read forwards,
// as frames from the end, merged into longer intervals, summed up, and recorded again.
func TestSetSums(t *testing.T) {
	paths := setOf(t)
	want := map[string]uint64{}
	for _, p := range paths {
		ivs, damage := replay(t, p)
		if len(damage) > 0 {
			t.Fatal(damage)
		}
		for _, iv := range ivs {
			sums(want, iv)
		}
	}
	s := openSet(t, paths)
	got, long := map[string]uint64{}, map[string]uint64{}
	again := filepath.Join(t.TempDir(), "again")
	w, err := Create(again, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var sum output.Sum
	m := output.NewMerger(20 * time.Second)
	var last time.Time
	n := 0
	for ; ; n++ {
		iv, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if iv.Start.Before(last) || iv.Host != (output.Host{}) {
			t.Fatalf("interval %d starts at %v, the one before ended at %v; host %+v", n, iv.Start, last, iv.Host)
		}
		last = iv.End
		sums(got, iv)
		sum.Add(iv)
		if err := w.Write(iv); err != nil {
			t.Fatal(err)
		}
		if done := m.Add(iv); done != nil {
			sums(long, done)
		}
	}
	sums(long, m.Flush())
	wantSums(t, "forwards", got, want)
	wantSums(t, "merged", long, want)
	whole := map[string]uint64{}
	sums(whole, sum.Interval())
	whole["events"] = want["events"] // a Sum has none
	wantSums(t, "summed up", whole, want)

	frames := map[string]uint64{}
	first, end := s.Bounds()
	if end != n || first != 0 {
		t.Errorf("%d frames, %d intervals", end, n)
	}
	for i := end - 1; i >= 0; i-- {
		iv, err := s.Frame(i)
		if err != nil {
			t.Fatal(err)
		}
		sums(frames, iv)
	}
	wantSums(t, "frames", frames, want)

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	recorded := map[string]uint64{}
	ivs, damage := replay(t, again)
	if len(damage) > 0 {
		t.Fatal(damage)
	}
	for _, iv := range ivs {
		sums(recorded, iv)
		for _, e := range iv.Events {
			if e.Host.Name != e.VXLAN.Device {
				t.Fatalf("an event of %s is recorded of %q", e.VXLAN.Device, e.Host.Name)
			}
		}
	}
	wantSums(t, "recorded", recorded, want)
}

// TestSetRows: what is one host's own is a row for each host, what hosts share is one row.
func TestSetRows(t *testing.T) {
	s := openSet(t, setOf(t))
	var sum output.Sum
	for {
		iv, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sum.Add(iv)
	}
	for by, local := range map[string]bool{"container": true, "device": true, "process": true, "cgroup": true, "image": false, "nfs-server": false} {
		hosts := map[string]int{}
		for _, r := range output.Group(sum.Interval(), output.GroupOptions{By: outputtest.Keys(t, by)}).Rows {
			for _, h := range []string{"web1", "web2", "web3"} {
				if strings.HasSuffix(r.Text(), " ("+h+")") {
					hosts[h]++
				}
			}
		}
		if local != (len(hosts) == 3) {
			t.Errorf("by %s: rows of hosts %v", by, hosts)
		}
	}
	only := output.Group(sum.Interval(), output.GroupOptions{By: outputtest.Keys(t, "host"), Filters: outputtest.Filters(t, "host=web[12]")})
	if got := outputtest.RowTexts(only.Rows); len(got) != 2 || !strings.HasPrefix(got[0], "web") || strings.Contains(strings.Join(got, ""), "web3") || only.Filtered == nil {
		t.Errorf("of web1 and web2: %q", got)
	}
}

// TestSetCoverage: gaps and double counting are named, and a file twice is refused.
func TestSetCoverage(t *testing.T) {
	paths := setOf(t)
	s := openSet(t, paths)
	c := s.Coverage()
	if c[0].Gaps != 0 || c[0].Twice != 0 {
		t.Errorf("web1: %+v", c[0])
	}
	if c[1].Twice < 59*time.Second || c[1].Twice > 61*time.Second {
		t.Errorf("the second of web1: %+v", c[1])
	}
	if c[2].Gaps != 1 || c[2].Gap < 14*time.Second || c[2].Gap > 16*time.Second || c[2].Host.Name != "web2" {
		t.Errorf("web2: %+v", c[2])
	}
	if found, err := InDirectory(filepath.Dir(paths[0])); err != nil || !slices.Equal(found, paths) {
		t.Errorf("the directory has %q, %v", found, err)
	}
	if _, err := InDirectory(t.TempDir()); err == nil {
		t.Error("an empty directory is no error")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(paths[0], link); err != nil {
		t.Fatal(err)
	}
	a, err := Open(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := NewSet([]*Reader{a, b}); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Errorf("the same file twice: %v", err)
	}
}

// TestSetDamage: damage to one recording leaves the others, and is reported once.
func TestSetDamage(t *testing.T) {
	paths := setOf(t)
	b, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0xff
	b = b[:len(b)-3]
	if err := os.WriteFile(paths[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{}
	var alone []*DamageError
	for _, p := range paths {
		ivs, damage := replay(t, p)
		alone = append(alone, damage...)
		for _, iv := range ivs {
			sums(want, iv)
		}
	}
	s := openSet(t, paths)
	got := map[string]uint64{}
	damaged := 0
	for {
		iv, err := s.Next()
		var damage *DamageError
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.As(err, &damage) {
			damaged++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		sums(got, iv)
	}
	wantSums(t, "damaged", got, want)
	if len(alone) == 0 || damaged != len(alone) {
		t.Errorf("%d places of damage, %d in the recording alone", damaged, len(alone))
	}
}
