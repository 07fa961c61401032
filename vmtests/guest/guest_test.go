package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseDiskStats(t *testing.T) {
	const text = ` 259       0 nvme0n1 100 1 808 5 20 2 160 7 0 10 12 3 0 4096 1 9 2
   7       0 loop0 1 0 2 0 0 0 0 0 0 0 0
 254       0 vda 5 0 40 0 6 0 48 0 3 0 0
`
	got, err := parseDiskStats(text, "nvme0n1")
	want := IOStats{ReadOps: 100, ReadBytes: 808 * 512, WriteOps: 20, WriteBytes: 160 * 512, DiscardOps: 3, DiscardBytes: 4096 * 512, FlushOps: 9}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if got, err := parseDiskStats(text, "vda"); err != nil || got.InFlight != 3 || got.WriteBytes != 48*512 {
		t.Errorf("old format: %+v, %v", got, err)
	}
	if _, err := parseDiskStats(text, "sda"); err == nil {
		t.Error("a device that is not there was found")
	}
	if _, err := parseDiskStats("1 0 sda x 0 0 0 0 0 0 0 0 0 0 0 0\n", "sda"); err == nil {
		t.Error("a word was taken for a number")
	}
}

func TestParseMountStats(t *testing.T) {
	const text = `device tmpfs mounted on /run with fstype tmpfs
device 127.0.0.1:/srv mounted on /mnt/other with fstype nfs statvers=1.1
	bytes:	1 2 3 4 5 6 7 8
device 127.0.0.1:/ mounted on /mnt/nfs with fstype nfs4 statvers=1.1
	age:	1
	bytes:	10 20 30 40 50 60 7 8
	per-op statistics
	        NULL: 1 1 0 44 24 0 0 0 0
	       WRITE: 3 4 1 600 300 1 2 3 0
device proc mounted on /proc with fstype proc
`
	got, err := parseMountStats(text, "/mnt/nfs")
	if err != nil {
		t.Fatal(err)
	}
	if got.ServerRead != 50 || got.ServerWrite != 60 || got.Ops["WRITE"] != (NFSOp{3, 4, 1, 600, 300, 1, 2, 3}) {
		t.Errorf("got %+v", got)
	}
	if d := got.Sub(got); d.ServerWrite != 0 || d.Ops["WRITE"] != (NFSOp{}) {
		t.Errorf("nothing since: %+v", d)
	}
	if _, err := parseMountStats(text, "/mnt"); err == nil {
		t.Error("a mount that is not there was found")
	}
}

func TestParseReport(t *testing.T) {
	r, err := ParseOutput([]byte(`{"event":{"dataset":"iotrace.io"},"iotrace":{"source":"block","cgroup":{"path":"/a"},"write":{"bytes":18446744073709551,"ops":2}}}
{"event":{"dataset":"iotrace.io"},"iotrace":{"source":"block","cgroup":{"path":"/b"},"write":{"bytes":3}}}
{"event":{"dataset":"iotrace.status"},"iotrace":{"lost":{"records":2,"groups":0}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Sum("iotrace.write.bytes", "iotrace.cgroup.path", "/a"); n != 18446744073709551 {
		t.Errorf("a wrote %d: large numbers lose digits", n)
	}
	if n := len(r.Where("iotrace.write.ops", "*")); n != 1 {
		t.Errorf("%d documents have ops, want 1", n)
	}
	if n := len(r.Where("iotrace.write.ops", "")); n != 1 {
		t.Errorf("%d documents have no ops, want 1", n)
	}
	if r.Lost() != 2 || !strings.Contains(r.LostWhat(), "records:2") {
		t.Errorf("lost %d %s", r.Lost(), r.LostWhat())
	}
	for _, bad := range []string{"{", "[]", "text", `{"a":1} {"b":2`} {
		if _, err := ParseOutput([]byte(bad)); err == nil {
			t.Errorf("%q is NDJSON", bad)
		}
	}
}

// TestWorker drives the worker's own code over a file here: no cgroup, no guest.
func TestWorker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	w := &workerState{maps: map[uint64][]byte{}}
	do := func(q request) reply {
		t.Helper()
		r, err := w.do(q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		return r
	}
	fd := do(request{Do: "open", Path: path, Flags: os.O_CREATE | os.O_RDWR}).FD
	if n := do(request{Do: "write", FD: fd, N: 100_003, Block: 4096}).N; n != 100_003 {
		t.Errorf("wrote %d bytes", n)
	}
	if n := do(request{Do: "read", FD: fd, N: 1 << 20, Block: 4096}).N; n != 100_003 {
		t.Errorf("read %d bytes, want what is there", n)
	}
	m := do(request{Do: "mmap", FD: fd, N: 8192, Flags: 1})
	do(request{Do: "store", Addr: m.Addr})
	do(request{Do: "msync", Addr: m.Addr})
	do(request{Do: "munmap", Addr: m.Addr})
	if n := do(request{Do: "sendfile", FD: fd, N: 50_021}).N; n != 50_021 {
		t.Errorf("sent %d bytes", n)
	}
	do(request{Do: "truncate", FD: fd, N: 17})
	if fi, err := os.Stat(path); err != nil || fi.Size() != 17 {
		t.Errorf("size %v, %v", fi, err)
	}
	do(request{Do: "close", FD: fd})
	if _, err := w.do(request{Do: "write", FD: fd, N: 1, Block: 4096}); err == nil {
		t.Error("a closed file was written")
	}
	if _, err := w.do(request{Do: "touch", Addr: 1}); err == nil {
		t.Error("unmapped memory was touched")
	}
	if _, err := w.do(request{Do: "dance"}); err == nil {
		t.Error("an unknown request was accepted")
	}
}

func TestServe(t *testing.T) {
	var out strings.Builder
	in := `{"Do":"open","Path":"/nonexistent/file"}` + "\n" + `{"Do":"sync"}` + "\n"
	if err := serve(strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var first, second reply
	if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &first) != nil || json.Unmarshal([]byte(lines[1]), &second) != nil {
		t.Fatalf("answers %q", lines)
	}
	if !strings.Contains(first.Err, unix.ENOENT.Error()) || second.Err != "" {
		t.Errorf("answers %q", lines)
	}
	if err := serve(strings.NewReader("no json\n"), &out); err == nil {
		t.Error("a line that is no request was accepted")
	}
}

func TestParseSMBStats(t *testing.T) {
	const text = `Resources in use
CIFS Session: 1
Total vfs operations: 9 maximum at one time: 2

Max requests in flight: 3
1) \\127.0.0.1\share
SMBs: 33
Bytes read: 500  Bytes written: 1200
Open files: 0 total (local), 0 open on server
TreeConnects: 1 total 0 failed
Reads: 3 total 0 failed
Writes: 4 total 1 failed
2) \\127.0.0.1\other
Bytes read: 1  Bytes written: 2
Reads: 1 total 0 failed
Writes: 2 total 0 failed
`
	got, err := parseSMBStats(text)
	if want := (SMBStats{BytesRead: 501, BytesWritten: 1202, Reads: 4, Writes: 6}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseSMBStats("Resources in use\n"); err == nil {
		t.Error("counters without a share were believed")
	}
}

// TestCephWrites reads the client's table of sizes as 6.12 prints it.
func TestCephWrites(t *testing.T) {
	const table = `item          total       avg_sz(bytes)   min_sz(bytes)   max_sz(bytes)  total_sz(bytes)
----------------------------------------------------------------------------------------
read          0           0               0               0              0
write         3           733336          5               1500007        2200008
copyfrom      0           0               0               0              0
`
	if n, bytes, err := cephSizes(table, "write"); n != 3 || bytes != 2200008 || err != nil {
		t.Errorf("%d writes with %d bytes, %v; want 3 with 2200008", n, bytes, err)
	}
	if _, _, err := cephSizes("nothing", "write"); err == nil {
		t.Error("a text without a line of writes is no error")
	}
}
