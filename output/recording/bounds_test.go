package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
)

// crafted are small recordings that want much: by name, each of no more than 2 MiB.
func crafted(t testing.TB) map[string][]byte {
	t.Helper()
	zenc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := small(t)
	header := whole[:frames(t, whole)[0]]
	// frame is an interval as no Writer writes it: nothing is checked and nothing padded.
	frame := func(key bool, content any) []byte {
		plain, err := cbor.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		z := zenc.EncodeAll(plain, nil)
		head, err := cbor.Marshal(fileEntry{Kind: kindInterval, Key: key, Size: uint32(len(z)), Plain: uint32(len(plain))})
		if err != nil {
			t.Fatal(err)
		}
		b := binary.LittleEndian.AppendUint32(nil, skipID)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(head)))
		return append(append(b, head...), z...)
	}
	with := func(frames ...[]byte) []byte { return append(bytes.Clone(header), bytes.Join(frames, nil)...) }
	fill := func(b []byte) []byte { return with(bytes.Repeat(b, (2<<20-len(header))/len(b))) }
	zeros := func(n int) []uint64 { return make([]uint64, n) }

	rows := map[int]any{1: 0, 2: 0, 10: identWidth, 11: zeros(identWidth), 13: zeros(maxSamples), 14: maxSamples}
	idents := map[int]any{1: 0, 2: 0, 10: minIdentWidth, 11: zeros(minIdentWidth * 60000)}
	texts := map[int]any{1: 0, 2: 0, 8: bytes.Split(make([]byte, maxElements), nil)}
	labels := map[int]any{1: 0, 2: 0, 9: make([][]uint64, maxIdents-1)}
	events := map[int]any{1: 0, 2: 0, 23: map[int]any{1: zeros(maxEvents)}}
	// A frame that cannot be read, and one that says how much it defined.
	garbage := frame(true, map[int]any{1: 1})
	holes := frame(false, map[int]any{1: 0, 2: 0, 25: []uint64{maxElements, maxIdents, maxIdents, maxElements, 0}})
	// As dense as the limits allow: 32 bytes for each byte of the file, and as many samples.
	dense := bytes.Clone(header)
	for n := 1; len(dense) < 2<<20-1024; n++ {
		plain, err := cbor.Marshal(map[int]any{1: 0, 2: 0, 8: strings.Split(strings.Repeat("a,", 400), ","), 10: identWidth, 11: zeros(identWidth), 13: zeros(64), 14: 64})
		if err != nil {
			t.Fatal(err)
		}
		z := pad(zenc.EncodeAll(plain, nil), int64(len(plain)), 0)
		head, err := cbor.Marshal(fileEntry{Kind: kindInterval, Key: true, Size: uint32(len(z)), Plain: uint32(len(plain))})
		if err != nil {
			t.Fatal(err)
		}
		dense = binary.LittleEndian.AppendUint32(dense, skipID)
		dense = binary.LittleEndian.AppendUint32(dense, uint32(len(head)))
		dense = append(append(dense, head...), z...)
	}
	magic := binary.LittleEndian.AppendUint32(nil, skipID)
	broken := bytes.Clone(garbage)
	broken[len(magic)] = maxEntry + 1 // its entry is too long

	files := map[string][]byte{
		"one frame of rows":       with(frame(true, rows)),
		"one frame of identities": with(frame(true, idents)),
		"one frame of texts":      with(frame(true, texts)),
		"one frame of label sets": with(frame(true, labels)),
		"one frame of events":     with(frame(true, events)),
		"frames of rows":          fill(frame(true, rows)),
		"frames of identities":    fill(frame(true, idents)),
		"frames of texts":         fill(frame(true, texts)),
		"holes":                   fill(append(bytes.Clone(garbage), holes...)),
		"dense frames":            dense,
		"magics":                  fill(magic),
		"entries without frames":  fill(garbage[:len(garbage)-3]),
		"damage everywhere":       fill(append(bytes.Clone(garbage), broken...)),
		"no key frame":            fill(frame(false, map[int]any{1: 0, 2: 0})),
	}
	for name, b := range files {
		if len(b) > 2<<20 {
			t.Fatalf("%s: %d bytes", name, len(b))
		}
	}
	return files
}

// maxWork is what reading a file of this size may cost, in bytes.
func maxWork(size, intervals int64) work {
	return work{
		searched: size + (maxDamage+2)*(64<<10),
		plain:    plainFactor*size + plainFlat*intervals + maxHeader,
		memory:   memoryFactor*size + memoryFlat*intervals,
	}
}

// TestRecordBounds: a crafted recording of 2 MiB is read within 64 MiB of memory, and its
// bytes bound what is searched, decompressed and built.
func TestRecordBounds(t *testing.T) {
	if path := os.Getenv("RECORDING_BOUNDS"); path != "" {
		readBounded(t, path)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(name, path string) (peak int64) {
		t.Helper()
		cmd := exec.Command(exe, "-test.run=^TestRecordBounds$", "-test.v=false")
		cmd.Env = append(os.Environ(), "RECORDING_BOUNDS="+path, "GOMAXPROCS=2")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		first, rest, _ := strings.Cut(string(out), "\n")
		kib, err := strconv.ParseInt(strings.TrimPrefix(first, "peak "), 10, 64)
		if err != nil {
			t.Fatalf("%s: says %q", name, out)
		}
		work, _, _ := strings.Cut(rest, "\n")
		t.Logf("%-24s %3d MiB, %s", name, kib>>10, work)
		return kib << 10
	}
	whole, _ := small(t)
	honest := filepath.Join(dir, "honest")
	if err := os.WriteFile(honest, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	base := run("honest", honest)
	for name, b := range crafted(t) {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := run(fmt.Sprintf("%s (%d)", name, len(b)), path) - base; got > 64<<20 {
			t.Errorf("%s: %d bytes take %d MiB", name, len(b), got>>20)
		}
	}
}

// readBounded reads a recording, and prints the peak of this process's memory in KiB and
// the work.
func readBounded(t *testing.T, path string) {
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for err = nil; !errors.Is(err, io.EOF); {
		_, err = r.Next()
	}
	var size int64
	for _, p := range r.parts {
		fi, err := p.file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	most := maxWork(size, int64(r.Len()))
	if w := r.work; w.searched > most.searched || w.plain > most.plain || w.memory > most.memory {
		t.Errorf("did %+v, more than %+v", w, most)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	peak, _, _ = strings.Cut(peak, "kB")
	fmt.Printf("peak %s\n%d intervals, %+v\n", strings.TrimSpace(peak), r.Len(), r.work)
}
