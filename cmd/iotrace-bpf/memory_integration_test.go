//go:build integration

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// memoryCgroup is a new memory cgroup with a limit, of either version.
type memoryCgroup struct {
	dir   string
	limit string // name of the file
	peak  string
}

func newMemoryCgroup(t *testing.T, limit int64) memoryCgroup {
	t.Helper()
	g := memoryCgroup{limit: "memory.limit_in_bytes", peak: "memory.max_usage_in_bytes"}
	root := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(root); err != nil {
		root, g.limit, g.peak = "/sys/fs/cgroup", "memory.max", "memory.peak"
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(root, "iotrace-memory-")
	if err != nil {
		t.Fatal(err)
	}
	g.dir = dir
	t.Cleanup(func() {
		enginetest.Poll(t, 20*time.Second, dir+" is empty", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, g.limit), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		t.Fatal(err)
	}
	return g
}

// peakMiB is the most memory that its processes used at once, the kernel's included.
func (g memoryCgroup) peakMiB(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, g.peak))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n >> 20
}

// TestMemoryLimit runs the program in a memory cgroup with the limit that README names. The kernel kills what does not fit: maps, programs and what the verifier
// needs count as well as the program's own memory.
func TestMemoryLimit(t *testing.T) {
	bin := binary(t)
	newDisk(t, 64).format(t, "mkfs.ext4", "-q") // a journal, as nearly every host has one
	for _, tc := range []struct {
		name  string
		limit int64 // MiB
		args  []string
	}{
		{"default", 64, nil},
		{"record", 80, []string{"--record", filepath.Join(t.TempDir(), "recording")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newMemoryCgroup(t, tc.limit<<20)
			// The shell enters the cgroup before the program begins: nothing of it is counted elsewhere.
			args := append([]string{"-c", `echo $$ > "$1/cgroup.procs" && shift && exec "$@"`, "sh", g.dir, bin, "--output", "ndjson"}, tc.args...)
			out, err := exec.Command("/bin/sh", append(args, "1", "5")...).Output()
			if err != nil {
				t.Fatalf("with %d MiB: %v", tc.limit, err)
			}
			if n := strings.Count(string(out), `"iotrace.status"`); n < 5 {
				t.Errorf("%d status documents, want 5:\n%.500s", n, out)
			}
			t.Logf("peak %d MiB of %d", g.peakMiB(t), tc.limit)
			if maps := lastMapBytes(t, out) >> 20; maps < 1 || maps > g.peakMiB(t) {
				t.Errorf("%d MiB of maps, and the whole cgroup had a peak of %d MiB", maps, g.peakMiB(t))
			}
		})
	}
	// Too little for the maps: an error says which one did not fit, and what helps. Which one
	// that is depends on what the kernel has charged to the cgroup before.
	noMemory := regexp.MustCompile(`not enough memory: making maps: map [a-z_]+: .*cannot allocate memory`)
	t.Run("too small", func(t *testing.T) {
		g := newMemoryCgroup(t, 24<<20)
		cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$1/cgroup.procs" && shift && exec "$@"`, "sh", g.dir, bin, "1", "1")
		out, err := cmd.CombinedOutput()
		if err == nil || !noMemory.Match(out) || !strings.Contains(string(out), "MemoryMax=") {
			t.Errorf("with 24 MiB: %v\n%s", err, out)
		}
	})
}

// lastMapBytes returns iotrace.self.map_bytes of the last status document.
func lastMapBytes(t *testing.T, documents []byte) int64 {
	t.Helper()
	var last int64
	for line := range strings.Lines(string(documents)) {
		var doc struct {
			IOTrace struct {
				Self struct {
					Map int64 `json:"map_bytes"`
				} `json:"self"`
			} `json:"iotrace"`
		}
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		last = max(last, doc.IOTrace.Self.Map)
	}
	return last
}
