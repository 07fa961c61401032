package recording

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

var update = flag.Bool("update-recording", false, "overwrite testdata/v1.recording: only when the format is meant to change")

// record writes intervals to a new recording.
func record(t testing.TB, path string, opt Options, ivs ...*output.Interval) {
	t.Helper()
	r, err := Create(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, iv := range ivs {
		if err := r.Write(iv); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// replay reads everything that can be read, and the errors on the way.
func replay(t testing.TB, path string) (ivs []*output.Interval, damage []*DamageError) {
	t.Helper()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return drain(t, r)
}

func drain(t testing.TB, r *Reader) (ivs []*output.Interval, damage []*DamageError) {
	t.Helper()
	for {
		iv, err := r.Next()
		var d *DamageError
		switch {
		case errors.Is(err, io.EOF):
			return ivs, damage
		case errors.As(err, &d):
			damage = append(damage, d)
		case err != nil:
			t.Fatal(err)
		default:
			ivs = append(ivs, iv)
		}
	}
}

func mustEqual(t testing.TB, what string, got, want *output.Interval) {
	t.Helper()
	if reflect.DeepEqual(got, want) {
		return
	}
	g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", *want)
	i := 0
	for i < len(g) && i < len(w) && g[i] == w[i] {
		i++
	}
	from := max(0, i-60)
	t.Fatalf("%s differs\n got ...%.200s\nwant ...%.200s", what, g[from:], w[from:])
}

// TestRecordKeepsEverything fills every field of an interval: it fails when a field is
// added to output and not to the recording.
func TestRecordKeepsEverything(t *testing.T) {
	var ivs []*output.Interval
	n := uint64(0)
	for i := range 3 {
		iv := new(output.Interval)
		outputtest.Fill(reflect.ValueOf(iv).Elem(), &n)
		iv.Start = outputtest.Start.Add(time.Duration(i) * time.Minute)
		iv.End = iv.Start.Add(time.Second)
		ivs = append(ivs, iv)
	}
	// The same identities again, with other amounts, and the extremes.
	again := *ivs[0]
	again.Samples = slices.Clone(again.Samples)
	again.Samples[1].Read = output.Amount{Bytes: 1<<64 - 1, Ops: 1<<64 - 1, Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 1<<64 - 1, Count: 1<<64 - 1}}, Sum: 1<<64 - 1, Max: 1<<64 - 1}}
	again.Samples[2] = output.Sample{}
	ivs = append(ivs, &again, &output.Interval{Start: outputtest.Start, End: outputtest.Start})

	path := filepath.Join(t.TempDir(), "all.recording")
	record(t, path, Options{Tool: "v1.2.3", Host: output.Host{Name: "h", ID: "i", Kernel: "k"}}, ivs...)
	got, damage := replay(t, path)
	if len(damage) != 0 || len(got) != len(ivs) {
		t.Fatalf("read %d of %d intervals, damage %v", len(got), len(ivs), damage)
	}
	for i := range ivs {
		mustEqual(t, fmt.Sprintf("interval %d", i), got[i], ivs[i])
	}

	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := r.Header()
	if h.Tool != "v1.2.3" || h.Host != (output.Host{Name: "h", ID: "i", Kernel: "k"}) || h.Version != version || time.Since(h.Start) > time.Hour || h.Path != path {
		t.Errorf("header %+v", h)
	}
}

// TestRecordText: names are bytes, and hostile.
func TestRecordText(t *testing.T) {
	long := strings.Repeat("é", maxString)
	iv := &output.Interval{Start: outputtest.Start, End: outputtest.Start.Add(time.Second)}
	for _, name := range []string{"plain", "\xff\xfe\x00\x1b[2J", "\u202etxt.exe", "<script>", "NaN", long} {
		iv.Samples = append(iv.Samples, output.Sample{Process: output.Process{Name: name}, Container: output.Container{Labels: map[string]string{name: name + "\xff"}}})
	}
	path := filepath.Join(t.TempDir(), "text.recording")
	record(t, path, Options{}, iv)
	got, _ := replay(t, path)
	last := len(iv.Samples) - 1
	cut := long[:maxString]
	iv.Samples[last].Process.Name = cut
	iv.Samples[last].Container.Labels = map[string]string{cut: cut}
	mustEqual(t, "interval", got[0], iv)
}

// TestRecordIsStandard reads a recording with nothing but zstd and CBOR.
func TestRecordIsStandard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.recording")
	rng := rand.New(rand.NewPCG(1, 2))
	owners := outputtest.Owners(rng, 20)
	record(t, path, Options{}, outputtest.BusyInterval(rng, owners, 0, 1), outputtest.BusyInterval(rng, owners, 1, 1))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	items := cbor.NewDecoder(z)
	var h map[string]any
	if err := items.Decode(&h); err != nil || h["format"] != fileFormat || h["version"] != uint64(1) {
		t.Fatalf("header %v, %v", h, err)
	}
	for i := range 2 {
		var iv map[uint64]any
		if err := items.Decode(&iv); err != nil {
			t.Fatalf("interval %d: %v", i, err)
		}
		if got, want := iv[1], uint64(outputtest.Start.Add(time.Duration(i)*time.Second).UnixNano()); got != want {
			t.Errorf("interval %d starts at %v, want %d", i, got, want)
		}
	}
	if err := items.Decode(&h); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last item: %v", err)
	}
}

// TestRecordGolden reads what the first version wrote: it must stay readable.
func TestRecordGolden(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	owners := outputtest.Owners(rng, 12)
	var ivs []*output.Interval
	for i := range 5 {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 0.7))
	}
	path := filepath.Join("testdata", "v1.recording")
	if *update {
		os.Remove(path)
		record(t, path, Options{Tool: "1.0", Keep: -1, Host: ivs[0].Host}, ivs...)
	}
	got, damage := replay(t, path)
	if len(got) != len(ivs) || len(damage) != 0 {
		t.Fatalf("read %d of %d intervals, damage %v", len(got), len(ivs), damage)
	}
	for i := range ivs {
		mustEqual(t, fmt.Sprintf("interval %d", i), got[i], ivs[i])
	}
}

// small is a recording of three intervals, as bytes.
func small(t testing.TB) ([]byte, []*output.Interval) {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	owners := outputtest.Owners(rng, 3)
	var ivs []*output.Interval
	for i := range 3 {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 1))
	}
	path := filepath.Join(t.TempDir(), "small.recording")
	record(t, path, Options{}, ivs...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b, ivs
}

// frames gives the offsets at which intervals end; the first is the header's.
func frames(t testing.TB, b []byte) []int64 {
	t.Helper()
	var ends []int64
	for off := int64(0); off < int64(len(b)); {
		e, body, err := readEntry(bytes.NewReader(b), off)
		if err != nil {
			t.Fatal(err)
		}
		off = body + int64(e.Size)
		ends = append(ends, off)
	}
	return ends
}

// TestRecordTruncated cuts a recording at every byte.
func TestRecordTruncated(t *testing.T) {
	b, ivs := small(t)
	ends := frames(t, b)
	path := filepath.Join(t.TempDir(), "cut.recording")
	for n := range b {
		if err := os.WriteFile(path, b[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if int64(n) < ends[0] {
			if !errors.Is(err, ErrTruncated) {
				t.Fatalf("cut at %d in the header: %v", n, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		want := 0
		for want < len(ivs) && ends[want+1] <= int64(n) {
			want++
		}
		got, damage := drain(t, r)
		if len(got) != want {
			t.Fatalf("cut at %d: read %d intervals, want %d", n, len(got), want)
		}
		for i := range got {
			mustEqual(t, fmt.Sprintf("cut at %d: interval %d", n, i), got[i], ivs[i])
		}
		switch whole := ends[want] == int64(n); {
		case whole && len(damage) != 0:
			t.Fatalf("cut between intervals: %v", damage[0])
		case !whole && (len(damage) != 1 || !errors.Is(damage[0], ErrTruncated) || damage[0].Read != want || damage[0].Offset != ends[want]):
			t.Fatalf("cut at %d: %v", n, damage)
		}
		r.Close()
	}
	// A power cut leaves zeros where data was not written in time.
	if err := os.WriteFile(path, append(b[:ends[1]:ends[1]], make([]byte, 5000)...), 0o600); err != nil {
		t.Fatal(err)
	}
	got, damage := replay(t, path)
	if len(got) != 1 || len(damage) != 1 || !errors.Is(damage[0], ErrTruncated) {
		t.Fatalf("zeros at the end: %d intervals, %v", len(got), damage)
	}
	want := fmt.Sprintf("recording %q is damaged at byte %d, after 1 intervals: zeros instead of an interval: truncated", path, ends[1])
	if damage[0].Error() != want {
		t.Errorf("message\n got %s\nwant %s", damage[0], want)
	}
}

// TestRecordFlippedBits damages each byte in turn.
func TestRecordFlippedBits(t *testing.T) {
	b, all := small(t)
	ends := frames(t, b)
	path := filepath.Join(t.TempDir(), "flipped.recording")
	for n := range b {
		bad := slices.Clone(b)
		bad[n] ^= 1 << (n % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			if int64(n) >= ends[0] {
				t.Fatalf("byte %d, behind the header: %v", n, err)
			}
			continue
		}
		got, damage := drain(t, r)
		ivs := all
		before := 0
		for before < len(ivs) && ends[before+1] <= int64(n) {
			before++
		}
		if len(got) < before {
			t.Fatalf("byte %d: read %d intervals, %d are whole", n, len(got), before)
		}
		for i, iv := range got {
			// Every interval that is delivered is right. One may be missing: with a
			// DamageError, or without one where its kind became an unknown one.
			for !reflect.DeepEqual(iv, ivs[0]) {
				if ivs = ivs[1:]; len(ivs) == 0 {
					t.Fatalf("byte %d: interval %d was never recorded", n, i)
				}
			}
		}
		for i := range before {
			mustEqual(t, "interval before the damage", got[i], all[i])
		}
		for _, d := range damage {
			if !errors.Is(d, ErrCorrupt) && !errors.Is(d, ErrTruncated) {
				t.Fatalf("byte %d: %v", n, d)
			}
		}
		r.Close()
	}
}

// TestRecordLosesOnlyDamage: damage in the middle of an interval hides that interval, and
// those that use a name which it brought, but none of the others.
func TestRecordLosesOnlyDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	owners := outputtest.Owners(rng, 3)
	var ivs []*output.Interval
	for i := range 31 {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 1))
	}
	path := filepath.Join(t.TempDir(), "a.recording")
	record(t, path, Options{}, ivs...)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ends := frames(t, whole)
	for name, damage := range map[string]func(b []byte) []byte{
		"checksum":    func(b []byte) []byte { b[ends[13]-3] ^= 0xff; return b },
		"index entry": func(b []byte) []byte { b[ends[12]+1] ^= 0xff; return b },
		"zeros":       func(b []byte) []byte { clear(b[ends[12]:ends[13]]); return b },
		"half a frame": func(b []byte) []byte {
			return slices.Concat(b[:(ends[12]+ends[13])/2], b[ends[13]:])
		},
		"another file in between": func(b []byte) []byte { return slices.Concat(b[:ends[12]], []byte("not ours"), b[ends[13]:]) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, damage(slices.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			got, damage := replay(t, path)
			if len(damage) == 0 || damage[0].Read != 12 || damage[0].Offset != ends[12] {
				t.Fatalf("damage %+v", damage)
			}
			// Interval 12 may have brought bounds of latencies, which few others use.
			if len(got) < 26 {
				t.Fatalf("read %d of the other 30 intervals, damage %v", len(got), damage)
			}
			want := slices.Delete(slices.Clone(ivs), 12, 13)
			for _, iv := range got {
				for !reflect.DeepEqual(iv, want[0]) {
					if want = want[1:]; len(want) == 0 {
						t.Fatalf("the interval of %v was never recorded", iv.Start)
					}
				}
			}
			t.Logf("%d of 30 intervals", len(got))
		})
	}
}

// TestRecordGoesOnBehindDamage: after the damage of a key frame, reading goes on at the
// next key frame.
func TestRecordGoesOnBehindDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	owners := outputtest.Owners(rng, 3)
	var ivs []*output.Interval
	for i := range 2*keyEvery + 10 {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 1))
	}
	path := filepath.Join(t.TempDir(), "a.recording")
	record(t, path, Options{}, ivs...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ends := frames(t, b)
	b[ends[1]-3] ^= 0xff // in the checksum of the first
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, damage := replay(t, path)
	if len(damage) != 2 || !errors.Is(damage[0], ErrCorrupt) || damage[0].Read != 0 || damage[0].Lost != 1 || damage[0].Offset != ends[0] ||
		damage[1].Read != 1 || damage[1].Lost != keyEvery-1 {
		t.Fatalf("damage %+v", damage)
	}
	want := ivs[keyEvery:]
	if len(got) != len(want) {
		t.Fatalf("read %d intervals, want %d", len(got), len(want))
	}
	for i := range want {
		mustEqual(t, fmt.Sprintf("interval %d", i), got[i], want[i])
	}
	// Seeking to a lost interval reports the damage too, and goes on after it.
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Seek(20); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("in the hole: %v", err)
	}
	if r.Pos() != keyEvery {
		t.Fatalf("goes on at %d, want %d", r.Pos(), keyEvery)
	}
}

// TestRecordSeek reads intervals in random order.
func TestRecordSeek(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	owners := outputtest.Owners(rng, 5)
	path := filepath.Join(t.TempDir(), "a.recording")
	var ivs []*output.Interval
	for i := range 300 {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 0.8))
	}
	record(t, path, Options{}, ivs...)
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Len() != len(ivs) {
		t.Fatalf("%d intervals, want %d", r.Len(), len(ivs))
	}
	for range 200 {
		i := rng.IntN(len(ivs))
		if rng.IntN(2) == 0 {
			if err := r.Seek(i); err != nil {
				t.Fatal(err)
			}
		} else if i = r.Pos(); i == len(ivs) {
			continue
		}
		iv, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		mustEqual(t, fmt.Sprintf("interval %d", i), iv, ivs[i])
		start, end := r.Span(i)
		if !start.Equal(iv.Start) || !end.Equal(iv.End) {
			t.Fatalf("interval %d is from %s to %s, the index says %s to %s", i, iv.Start, iv.End, start, end)
		}
	}
	if got := r.Find(outputtest.Start.Add(100*time.Second + 500*time.Millisecond)); got != 100 {
		t.Errorf("found interval %d, want 100", got)
	}
	if got := r.Find(outputtest.Start.Add(-time.Hour)); got != 0 {
		t.Errorf("found interval %d before the recording, want 0", got)
	}
	if got := r.Find(outputtest.Start.Add(time.Hour)); got != len(ivs) {
		t.Errorf("found interval %d behind the recording, want %d", got, len(ivs))
	}
	for _, i := range []int{-1, len(ivs) + 1} {
		if err := r.Seek(i); err == nil {
			t.Errorf("went to interval %d of %d", i, len(ivs))
		}
	}
}

// TestRecordRotation: parts are bounded, whole by themselves and read in order.
func TestRecordRotation(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	rng := rand.New(rand.NewPCG(11, 12))
	owners := outputtest.Owners(rng, 200)
	path := filepath.Join(t.TempDir(), "a.recording")
	r, err := Create(path, Options{MaxBytes: minBytes, Keep: 3})
	if err != nil {
		t.Fatal(err)
	}
	var ivs []*output.Interval
	for i := 0; r.Stats().Files < 7; i++ {
		ivs = append(ivs, outputtest.BusyInterval(rng, owners, i, 1))
		if err := r.Write(ivs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{path, path + ".1", path + ".2", path + ".3"}; !slices.Equal(names, want) {
		t.Fatalf("files %v, want %v", names, want)
	}
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 || fi.Size() > minBytes {
			t.Errorf("%s: mode %v, %d bytes", name, fi.Mode(), fi.Size())
		}
	}
	got, damage := replay(t, path)
	if len(damage) != 0 || len(got) < 10 {
		t.Fatalf("read %d intervals, damage %v", len(got), damage)
	}
	for i := range got {
		mustEqual(t, fmt.Sprintf("interval %d", i), got[i], ivs[len(ivs)-len(got)+i])
	}
	// One part by itself.
	part, damage := replay(t, path+".2")
	if len(damage) != 0 || len(part) == 0 || len(part) >= len(got) {
		t.Fatalf("part: read %d intervals of %d, damage %v", len(part), len(got), damage)
	}
}

// TestRecordRestart: the recording of a killed writer is kept and read, and its torn end
// does not hide what came later.
func TestRecordRestart(t *testing.T) {
	b, ivs := small(t)
	path := filepath.Join(t.TempDir(), "a.recording")
	if err := os.WriteFile(path, b[:len(b)-7], 0o600); err != nil {
		t.Fatal(err)
	}
	record(t, path, Options{}, ivs[2])
	got, damage := replay(t, path)
	if len(got) != 3 || len(damage) != 1 || !errors.Is(damage[0], ErrTruncated) || damage[0].Path != path+".1" {
		t.Fatalf("read %d intervals, damage %v", len(got), damage)
	}
	for i := range got {
		mustEqual(t, fmt.Sprintf("interval %d", i), got[i], ivs[i])
	}
	// The same host after an upgrade of its kernel, and under another name.
	renamed := filepath.Join(t.TempDir(), "renamed")
	for _, h := range []output.Host{{Name: "web1", ID: "4711", Kernel: "6.12"}, {Name: "web2", ID: "4711", Kernel: "6.18"}} {
		record(t, renamed, Options{Host: h}, ivs[0])
	}
	if got, damage = replay(t, renamed); len(got) != 2 || len(damage) != 0 {
		t.Fatalf("of one machine: read %d intervals, damage %v", len(got), damage)
	}
	// Another host's recording that happens to have the name is not mixed in.
	other := filepath.Join(t.TempDir(), "b")
	record(t, other, Options{Host: output.Host{Name: "other"}}, ivs...)
	if err := os.Rename(other, path+".1"); err != nil {
		t.Fatal(err)
	}
	if got, damage = replay(t, path); len(got) != 1 || len(damage) != 0 {
		t.Fatalf("with another host's: read %d intervals, damage %v", len(got), damage)
	}
}

// TestRecorderRefuses: no other file is overwritten.
func TestRecorderRefuses(t *testing.T) {
	dir := t.TempDir()
	b, _ := small(t)
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	write("taken.recording.3", []byte("the only copy of a thesis"))
	if err := os.Symlink(write("target", b), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	busy, err := Create(filepath.Join(dir, "busy"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	write("thesis", []byte("the only copy of a thesis, and a long one at that"))
	write("kept", b)
	for _, c := range []struct {
		name, want string
		opt        Options
	}{
		{"thesis", "not a recording", Options{}},
		{"taken.recording", fmt.Sprintf("older file %q is not a recording", filepath.Join(dir, "taken.recording.3")), Options{}},
		{"link", "not a regular file", Options{}},
		{"fifo", "not a regular file", Options{}},
		{"busy", "another iotrace-bpf", Options{}},
		{"kept", "older recordings are not kept", Options{Keep: -1}},
		{"none/at/all", "no such file", Options{}},
		{"tiny", "below the minimum", Options{MaxBytes: 17}},
		{"many", "at most 9999", Options{Keep: 10000}},
	} {
		before, _ := os.ReadDir(dir)
		_, err := Create(filepath.Join(dir, c.name), c.opt)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if after, _ := os.ReadDir(dir); len(after) != len(before) {
			t.Errorf("%s: %d files, %d before", c.name, len(after), len(before))
		}
	}
	for _, name := range []string{"thesis", "fifo", "none", "."} {
		if _, err := Open(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	if err := busy.Write(&output.Interval{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if got, damage := replay(t, filepath.Join(dir, "busy")); len(got) != 0 || len(damage) != 0 {
		t.Errorf("recording of nothing: %v, %v", got, damage)
	}
}

// TestRecordLimits: an interval beyond the limits is an error or is cut and counted, and
// the next one is recorded.
func TestRecordLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.recording")
	r, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	good := &output.Interval{Start: outputtest.Start, End: outputtest.Start.Add(time.Second), Samples: []output.Sample{{Project: "shop"}}}
	many := *good
	many.Events = make([]output.Event, maxEvents+5)
	for i := range many.Events {
		many.Events[i] = output.Event{Time: outputtest.Start, Dataset: "iotrace.event", Action: "io", IO: &output.IO{Op: "read", Offset: uint64(i)}}
	}
	unordered := *good
	unordered.Samples = []output.Sample{{Read: output.Amount{Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 2, Count: 1}, {UpTo: 1, Count: 1}}}}}}
	for _, c := range []struct {
		name string
		iv   *output.Interval
		want error
	}{
		{"good", good, nil},
		{"samples", &output.Interval{Start: outputtest.Start, End: outputtest.Start, Samples: make([]output.Sample, maxSamples+1)}, ErrTooLarge},
		{"good", good, nil},
		{"buckets", &unordered, outputtest.ErrAny},
		{"good", good, nil},
		{"no time", &output.Interval{}, outputtest.ErrAny},
		{"events", &many, nil},
	} {
		if err := r.Write(c.iv); (err == nil) != (c.want == nil) || c.want != nil && c.want != outputtest.ErrAny && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if s := r.Stats(); s.Intervals != 4 || s.Failed != 3 || s.Events != 5 {
		t.Errorf("stats %+v", s)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	got, damage := replay(t, path)
	if len(got) != 4 || len(damage) != 0 {
		t.Fatalf("read %d intervals, damage %v", len(got), damage)
	}
	many.Events = many.Events[:maxEvents]
	many.Lost.Exports = 5
	mustEqual(t, "first", got[0], good)
	mustEqual(t, "third", got[2], good)
	mustEqual(t, "last", got[3], &many)
}

// TestRecordNewNames: more names than the tables may hold make a key frame.
func TestRecordNewNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.recording")
	r, err := Create(path, Options{MaxBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range 6 {
		iv := &output.Interval{Start: outputtest.Start, End: outputtest.Start}
		for j := range 100 {
			iv.Samples = append(iv.Samples, output.Sample{Process: output.Process{Name: strconv.Itoa(i*100+j) + strings.Repeat("x", maxString-10)}})
		}
		if err := r.Write(iv); err != nil {
			t.Fatal(err)
		}
	}
	if r.enc.text > maxText/2 {
		t.Errorf("remembers %d bytes of names", r.enc.text)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	got, damage := replay(t, path)
	if len(got) != 6 || len(damage) != 0 {
		t.Fatalf("read %d intervals, damage %v", len(got), damage)
	}
	for i, iv := range got {
		if name := iv.Samples[99].Process.Name; !strings.HasPrefix(name, strconv.Itoa(i*100+99)+"xx") {
			t.Errorf("interval %d: name %.10s", i, name)
		}
	}
}

// TestRecordHostile feeds files that lie about their size.
func TestRecordHostile(t *testing.T) {
	zenc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	mode, _ := cbor.EncOptions{}.EncMode()
	file := func(e fileEntry, plain []byte) []byte {
		b, ends := func() ([]byte, []int64) { b, _ := small(t); return b, frames(t, b) }()
		r := &Writer{zenc: zenc, enc: &encoder{mode: mode}}
		frame, err := r.frame(fileEntry{Kind: e.Kind, Key: true, Start: e.Start, End: e.End}, plain, 0)
		if err != nil {
			t.Fatal(err)
		}
		if e.Plain != 0 { // lie
			z := zenc.EncodeAll(plain, nil)
			e.Size = uint32(len(z))
			head, _ := mode.Marshal(e)
			frame = append([]byte{0x5d, 0x2a, 0x4d, 0x18, byte(len(head)), 0, 0, 0}, head...)
			frame = append(frame, z...)
		}
		return append(b[:ends[1]:ends[1]], frame...)
	}
	marshal := func(v any) []byte {
		b, err := cbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ones := func(n int) []uint64 {
		c := make([]uint64, n)
		for i := range c {
			c[i] = 1
		}
		return c
	}
	entry := fileEntry{Kind: kindInterval}
	lie := entry
	lie.Plain = 1000
	path := filepath.Join(t.TempDir(), "hostile.recording")
	for _, c := range []struct {
		name string
		file []byte
	}{
		{"bomb", file(lie, make([]byte, maxPlain))},
		{"zeros", file(entry, make([]byte, maxPlain))},
		{"array of 2^62", file(entry, []byte{0xa1, 0x0d, 0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0})},
		{"text of 2^62", file(entry, []byte{0xa1, 0x08, 0x81, 0x7b, 0x40, 0, 0, 0, 0, 0, 0, 0})},
		{"nested", file(entry, bytes.Repeat([]byte{0x81}, 1<<20))},
		{"endless", file(entry, []byte{0xbf})},
		{"samples of nothing", file(entry, marshal(map[int]any{1: 0, 2: 0, 14: 1 << 17}))},
		{"rows of nothing", file(entry, marshal(map[int]any{1: 0, 2: 0, 13: ones(maxElements), 14: maxElements}))},
		{"identities", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: 34, 11: ones(maxElements)}))},
		{"width", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: uint64(1) << 63, 11: ones(34)}))},
		{"labels", file(entry, marshal(map[int]any{1: 0, 2: 0, 9: [][]uint64{{1}}}))},
		{"label sets", file(entry, marshal(map[int]any{1: 0, 2: 0, 9: make([][]uint64, maxIdents+1)}))},
		{"events of nothing", file(entry, marshal(map[int]any{1: 0, 2: 0, 23: map[int]any{1: make([]int64, maxElements)}}))},
		{"event of a sample", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: 34, 11: make([]uint64, 34), 13: []int{0}, 14: 1, 23: map[int]any{1: []int{0}, 4: []int{1}}}))},
		{"event of no row", file(entry, marshal(map[int]any{1: 0, 2: 0, 23: map[int]any{1: []int{0}, 4: []uint64{1<<64 - 1}}}))},
		{"two events of a row", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: 34, 11: make([]uint64, 34), 13: []int{0}, 23: map[int]any{1: []int{0, 0}, 4: []int{1, 1}}}))},
		{"row of no event", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: 34, 11: make([]uint64, 34), 13: []int{0}, 23: map[int]any{1: []int{0}}}))},
		{"amounts", file(entry, marshal(map[int]any{1: 0, 2: 0, 15: map[int]any{1: []int{0}}}))},
		{"amounts far", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: 34, 11: make([]uint64, 34), 13: []int{0}, 14: 1, 15: map[int]any{1: []uint64{0, 1<<64 - 1}}}))},
		{"buckets", file(entry, marshal(map[int]any{1: 0, 2: 0, 10: 34, 11: make([]uint64, 34), 12: []int{5}, 13: []int{0}, 14: 1, 15: map[int]any{1: []int{0}, 7: []uint64{1<<64 - 1}, 8: []int{0}, 9: []int{1}}}))},
		{"backwards", file(fileEntry{Kind: kindInterval, Start: 5, End: 5}, marshal(map[int]any{1: 5, 2: 4}))},
		{"vxlan", file(entry, marshal(map[int]any{1: 0, 2: 0, 23: map[int]any{1: []int{0}, 10: []int{1}, 11: 17, 12: make([]int, 16)}}))},
		{"entry", append(file(entry, nil), 0x5d, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 1)},
	} {
		if err := os.WriteFile(path, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ivs, damage := replay(t, path)
		runtime.ReadMemStats(&after)
		// The first is honest, the second is not.
		if len(ivs) != 1 || len(damage) == 0 || !errors.Is(damage[0], ErrCorrupt) || damage[0].Read != 1 {
			t.Errorf("%s: %d intervals, damage %v", c.name, len(ivs), damage)
			continue
		}
		got := after.TotalAlloc - before.TotalAlloc
		t.Logf("%-20s %4d MiB in all: %v", c.name, got>>20, damage[0].Err)
		if got > 64<<20 {
			t.Errorf("%s: allocated %d MiB", c.name, got>>20)
		}
	}
}

// TestRecordLargest reads about the largest interval that fits into 32 MiB. The limits
// keep the memory that a hostile file can use in the order of this.
func TestRecordLargest(t *testing.T) {
	const samples, events = maxSamples, maxEvents
	count := func(n, from, step int) []uint64 {
		c := make([]uint64, n)
		for i := range c {
			c[i] = uint64(from + i*step)
		}
		return c
	}
	const buckets = 1 << 20
	amount := map[int]any{1: []int{0}, 7: []int{buckets}, 8: count(buckets, 0, 1), 9: count(buckets, 1, 0)}
	plain, err := cbor.Marshal(map[int]any{
		1: 0, 2: 0, 10: identWidth, 11: make([]uint64, identWidth), 12: count(buckets, 0, 1),
		13: make([]uint64, samples+events), 14: samples, 15: amount, 16: amount,
		20: count(samples+events, 1, 0), 21: count(samples+events, 1, 0),
		23: map[int]any{1: make([]int64, events), 4: count(events, samples+1, 1), 6: count(events, 1, 0), 7: count(events, 1, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	zenc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	mode, _ := cbor.EncOptions{}.EncMode()
	var w wireInterval
	if err := decMode.Unmarshal(plain, &w); err != nil {
		t.Fatal(err)
	}
	frame, err := (&Writer{zenc: zenc, enc: &encoder{mode: mode}}).frame(fileEntry{Kind: kindInterval, Key: true}, plain, w.memory())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := small(t)
	path := filepath.Join(t.TempDir(), "largest.recording")
	if err := os.WriteFile(path, append(b[:frames(t, b)[0]:frames(t, b)[0]], frame...), 0o600); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ivs, damage := replay(t, path)
	runtime.ReadMemStats(&after)
	if len(ivs) != 1 || len(damage) != 0 || len(ivs[0].Samples) != samples || len(ivs[0].Events) != events {
		t.Fatalf("%d intervals, damage %v", len(ivs), damage)
	}
	got := (after.TotalAlloc - before.TotalAlloc) >> 20
	t.Logf("%d bytes of file, %d MiB of CBOR: %d MiB allocated in all", len(frame), len(plain)>>20, got)
	if got > 1024 {
		t.Errorf("allocated %d MiB", got)
	}
}

// TestRecordVersion: a recording of a later version is an error that says so.
func TestRecordVersion(t *testing.T) {
	zenc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	mode, _ := cbor.EncOptions{}.EncMode()
	path := filepath.Join(t.TempDir(), "a.recording")
	for _, c := range []struct {
		h    fileHeader
		want error
	}{
		{fileHeader{Format: fileFormat, Version: version + 1}, ErrVersion},
		{fileHeader{Format: "somebody else's", Version: 1}, ErrNotRecording},
	} {
		plain, _ := mode.Marshal(c.h)
		frame, err := (&Writer{zenc: zenc, enc: &encoder{mode: mode}}).frame(fileEntry{Kind: kindHeader}, plain, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, frame, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.h, err, c.want)
		}
	}
}

// childMode runs this test binary as a writer in its own process. The environment has
// the case and the path for TestRecorderProcess.
func childMode(t *testing.T, mode, path string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestRecorderProcess$", "-test.v=false")
	cmd.Env = append(os.Environ(), "RECORDER_CASE="+mode, "RECORDER_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestRecorderProcess is the child of the two tests below, and checks by itself
// that recording to /dev/full's directory is an error like any other.
func TestRecorderProcess(t *testing.T) {
	mode, path := os.Getenv("RECORDER_CASE"), os.Getenv("RECORDER_PATH")
	if mode == "" {
		if _, err := Create("/dev/full", Options{}); err == nil {
			t.Error("records to a device")
		}
		return
	}
	rng := rand.New(rand.NewPCG(13, 14))
	owners := outputtest.Owners(rng, 300)
	var limit syscall.Rlimit
	if mode == "full" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 100000, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100000 {
		err := r.Write(outputtest.BusyInterval(rng, owners, i, 1))
		switch {
		case mode == "full" && i == 40:
			if err == nil {
				t.Fatal("the disk was never full")
			}
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
				t.Fatal(err)
			}
		case mode == "full" && i == 60:
			fmt.Printf("%d %d\n", r.Stats().Intervals, r.Stats().Failed)
			os.Exit(0)
		case mode == "full" && err != nil && !errors.Is(err, syscall.EFBIG):
			t.Fatal(err)
		case mode == "killed":
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println(i + 1)
		}
	}
}

// TestRecorderKilled kills a writer, and finds every interval whose Write returned.
func TestRecorderKilled(t *testing.T) {
	for round := range 5 {
		path := filepath.Join(t.TempDir(), "killed.recording")
		cmd := childMode(t, "killed", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				break // the test's own closing words
			}
			if said = n; said == 20+13*round {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if said < 20 {
			t.Fatalf("recorder stopped after %d intervals", said)
		}
		got, _ := replay(t, path)
		if len(got) < said {
			t.Errorf("read %d intervals of %d", len(got), said)
		}
		rng := rand.New(rand.NewPCG(13, 14))
		owners := outputtest.Owners(rng, 300)
		for i := range got {
			mustEqual(t, fmt.Sprintf("interval %d", i), got[i], outputtest.BusyInterval(rng, owners, i, 1))
		}
	}
}

// TestRecorderDiskFull makes the kernel cut a write short: the recording stays readable,
// the losses are counted, and later intervals are written once there is room.
func TestRecorderDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "full.recording")
	out, err := childMode(t, "full", path).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var written, failed int
	if _, err := fmt.Sscan(string(out), &written, &failed); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if written < 22 || failed < 10 || written+failed != 61 {
		t.Errorf("%d written, %d failed", written, failed)
	}
	got, damage := replay(t, path)
	if len(got) != written || len(damage) != 0 {
		t.Errorf("read %d intervals of %d, damage %v", len(got), written, damage)
	}
	rng := rand.New(rand.NewPCG(13, 14))
	owners := outputtest.Owners(rng, 300)
	next := 0
	for i := 0; i <= 60 && next < len(got); i++ {
		if want := outputtest.BusyInterval(rng, owners, i, 1); want.Start.Equal(got[next].Start) {
			mustEqual(t, fmt.Sprintf("interval %d", i), got[next], want)
			next++
		}
	}
	if next != len(got) {
		t.Errorf("%d intervals were never recorded", len(got)-next)
	}
}

// FuzzRecording reads arbitrary bytes as a recording.
func FuzzRecording(f *testing.F) {
	b, _ := small(f)
	f.Add(b)
	f.Add(b[:len(b)-9])
	f.Add([]byte{0x5d, 0x2a, 0x4d, 0x18})
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.recording"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	for _, b := range crafted(f) {
		if len(b) < 4<<10 {
			f.Add(b)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, strconv.Itoa(os.Getpid()))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			return
		}
		defer r.Close()
		n := r.Len()
		ivs, damage := drain(t, r)
		lost := 0
		for _, d := range damage {
			lost += d.Lost
		}
		if len(ivs)+lost != n {
			t.Fatalf("%d intervals read, %d lost, %d in the index", len(ivs), lost, n)
		}
		if w, most := r.work, maxWork(int64(len(b)), int64(n)); w.searched > most.searched || w.plain > most.plain || w.memory > most.memory {
			t.Fatalf("%d bytes cost %+v, more than %+v", len(b), w, most)
		}
		for i := n - 1; i >= 0 && i > n-20; i-- {
			if err := r.Seek(i); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Next(); errors.Is(err, io.EOF) {
				t.Fatalf("end at interval %d of %d", i, n)
			}
		}
	})
}

// FuzzRecordInterval decodes arbitrary CBOR as an interval, which FuzzRecording cannot
// get past the checksum of zstd. The interval is encoded and decoded again and must be
// the same.
func FuzzRecordInterval(f *testing.F) {
	rng := rand.New(rand.NewPCG(15, 16))
	owners := outputtest.Owners(rng, 3)
	var n uint64
	full := new(output.Interval)
	outputtest.Fill(reflect.ValueOf(full).Elem(), &n)
	full.Start, full.End = outputtest.Start, outputtest.Start.Add(time.Second)
	for _, iv := range []*output.Interval{full, outputtest.BusyInterval(rng, owners, 0, 1), {Start: outputtest.Start, End: outputtest.Start}} {
		enc, err := newEncoder()
		if err != nil {
			f.Fatal(err)
		}
		w, err := enc.interval(iv)
		if err != nil {
			f.Fatal(err)
		}
		b, err := enc.mode.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		decode := func(b []byte) *output.Interval {
			var w wireInterval
			if decMode.Unmarshal(b, &w) != nil {
				return nil
			}
			tables := newNameTables()
			if tables.learn(&w, 0) != nil {
				return nil
			}
			iv, err := tables.interval(&w)
			if err != nil {
				return nil
			}
			return iv
		}
		iv := decode(b)
		if iv == nil || iv.Start.Year() < 1970 || iv.Start.Year() > 2200 {
			return
		}
		for i := range iv.Events {
			if y := iv.Events[i].Time.Year(); y < 1970 || y > 2200 {
				return
			}
		}
		enc, err := newEncoder()
		if err != nil {
			t.Fatal(err)
		}
		w, err := enc.interval(iv)
		if err != nil {
			t.Fatal(err)
		}
		again, err := enc.mode.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		got := decode(again)
		if got == nil {
			t.Fatal("does not read what it wrote")
		}
		// Empty label sets and lists become nil.
		if g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", *iv); g != w && !strings.Contains(w, "0x") {
			t.Fatalf("differs\n got %s\nwant %s", g, w)
		}
	})
}

// BenchmarkRecordWrite records intervals of 1,500 groups.
func BenchmarkRecordWrite(b *testing.B) {
	for _, active := range []float64{1, 0.3} {
		b.Run(fmt.Sprintf("active=%v", active), func(b *testing.B) {
			ivs := outputtest.BusyIntervals(active, 64)
			r, err := Create(filepath.Join(b.TempDir(), "a"), Options{MaxBytes: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := r.Write(ivs[i%len(ivs)]); err != nil {
					b.Fatal(err)
				}
			}
			s := r.Stats()
			b.ReportMetric(float64(s.Bytes)/float64(s.Intervals), "B/interval")
		})
	}
}

// BenchmarkRecordEvents records 100,000 single requests in an interval.
func BenchmarkRecordEvents(b *testing.B) {
	rng := rand.New(rand.NewPCG(19, 20))
	owners := outputtest.Owners(rng, 1500)
	iv := outputtest.BusyInterval(rng, owners, 0, 1)
	for i := range 100000 {
		s := owners[rng.IntN(40)]
		ns := 50000 + rng.Uint64N(400000)
		s.Write = output.Amount{Bytes: 4096 << rng.UintN(6), Ops: 1, Latency: output.Latency{Sum: ns, Max: ns}}
		iv.Events = append(iv.Events, output.Event{
			Time: outputtest.Start.Add(time.Duration(i) * 10 * time.Microsecond), Dataset: "iotrace.event", Action: "write",
			IO: &output.IO{Sample: s, Op: "write", Offset: rng.Uint64N(1<<40) &^ 4095, Latency: ns, Basis: "page"},
		})
	}
	r, err := Create(filepath.Join(b.TempDir(), "a"), Options{MaxBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for b.Loop() {
		if err := r.Write(iv); err != nil {
			b.Fatal(err)
		}
	}
	s := r.Stats()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(s.Intervals)/1e5, "ns/event")
	b.ReportMetric(float64(s.Bytes)/float64(s.Intervals)/1e5, "B/event")
}

// BenchmarkRecordRead replays them.
func BenchmarkRecordRead(b *testing.B) {
	ivs := outputtest.BusyIntervals(1, 64)
	path := filepath.Join(b.TempDir(), "a")
	record(b, path, Options{MaxBytes: -1}, ivs...)
	r, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.ReportAllocs()
	for b.Loop() {
		if r.Pos() == r.Len() {
			if err := r.Seek(0); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRecordBack reads backwards, interval by interval, as with a time slider.
func BenchmarkRecordBack(b *testing.B) {
	ivs := outputtest.BusyIntervals(1, 300)
	path := filepath.Join(b.TempDir(), "a")
	record(b, path, Options{MaxBytes: -1}, ivs...)
	r, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	i := 0
	for b.Loop() {
		if i--; i < 0 {
			i = r.Len() - 1
		}
		if err := r.Seek(i); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRecordSize shows what tables and columns save. It compares 128 intervals of
// 1,500 groups as a recording with the same intervals as plain CBOR of the structs of
// output, in zstd frames.
func BenchmarkRecordSize(b *testing.B) {
	for _, active := range []float64{1, 0.3, 0.05} {
		b.Run(fmt.Sprintf("active=%v", active), func(b *testing.B) {
			ivs := outputtest.BusyIntervals(active, 128)
			zenc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
			if err != nil {
				b.Fatal(err)
			}
			defer zenc.Close()
			var plain, raw int
			for _, iv := range ivs {
				c, err := cbor.Marshal(iv)
				if err != nil {
					b.Fatal(err)
				}
				raw += len(c)
				plain += len(zenc.EncodeAll(c, nil))
			}
			var s Stats
			for b.Loop() {
				r, err := Create(filepath.Join(b.TempDir(), "a"), Options{MaxBytes: -1})
				if err != nil {
					b.Fatal(err)
				}
				for _, iv := range ivs {
					if err := r.Write(iv); err != nil {
						b.Fatal(err)
					}
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
				s = r.Stats()
			}
			b.ReportMetric(float64(s.Bytes)/float64(len(ivs)), "B/interval")
			b.ReportMetric(float64(plain)/float64(len(ivs)), "zstd-cbor-B/interval")
			b.ReportMetric(float64(raw)/float64(len(ivs)), "cbor-B/interval")
			b.ReportMetric(float64(s.Bytes)/float64(len(ivs))*3600/(1<<20), "MiB/h")
		})
	}
}

// TestLimitations: several limitations of a source come back one by one. On disk
// they are one text, which is what the first recordings have in this place.
func TestLimitations(t *testing.T) {
	source := func(limitations ...string) output.SourceStatus {
		return output.SourceStatus{Source: output.SourceNFS, Attached: true, Limitations: limitations}
	}
	iv := &output.Interval{Start: outputtest.Start, End: outputtest.Start.Add(time.Second), Sources: []output.SourceStatus{
		source("No retransmissions are counted: Linux 5.14 and newer count them.", "Reads are missing."), source(), source("Reads are missing."),
	}}
	path := filepath.Join(t.TempDir(), "a.recording")
	record(t, path, Options{}, iv)
	got, _ := replay(t, path)
	mustEqual(t, "interval", got[0], iv)

	e, err := newEncoder()
	if err != nil {
		t.Fatal(err)
	}
	w, err := e.interval(iv)
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Sources) != 3*srcWidth {
		t.Fatalf("%d numbers for 3 sources", len(w.Sources))
	}
	if text := string(w.Strings[w.Sources[srcWidth-1]-1]); text != "No retransmissions are counted: Linux 5.14 and newer count them.\nReads are missing." {
		t.Errorf("text on disk %q", text)
	}
}
