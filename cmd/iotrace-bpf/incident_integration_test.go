//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// TestIncident is an incident as an operator sees it: on one mount, "reports" writes
// 24 MiB every three seconds, "shop" writes 8 MiB that are written back every five,
// "chat" a little all the time, and "import" 20 MiB before it is gone. The totals on the
// screen name the culprit first, whatever it does at the moment, at every size of the
// terminal, and they are what was written.
func TestIncident(t *testing.T) {
	e := enginetest.Start(t)
	d := newDisk(t, 512)
	d.format(t, mkExt4()...)
	dir := t.TempDir()
	ready, record := filepath.Join(dir, "ready"), filepath.Join(dir, "incident.rec")
	// A shell around it, so that the terminal is there after the end.
	s := startShell(t, dir, "sh", "-c", `"$@"; echo "ended with $?"; exec cat`, "sh", binary(t), "--by", "project", "--source", "block", "--filter", "device="+d.name(), "--interval", "1s",
		"--record", record, "--ready-file", ready, "--docker-host", "unix://"+e.Socket, "--only-listed-sockets")
	enginetest.Poll(t, 30*time.Second, "the screen is attached", func() bool { _, err := os.Stat(ready); return err == nil })
	s.until("LIVE")

	defer func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", s.screen())
		}
	}()

	want := map[string]uint64{"reports": 5 * 24 * mib, "shop": 3 * 8 * mib, "chat": 14 * 64 << 10, "import": 20 * mib}
	run := func(project, script string) *exec.Cmd {
		cmd := e.Command("run", "--rm", "--label", "com.docker.compose.project="+project, "--label", "com.docker.compose.service=job",
			"--volume", d.mount+":/data", enginetest.Image, "sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	write := func(file string, kib int, conv string) string {
		return fmt.Sprintf("dd if=/dev/zero of=/data/%s bs=64k count=%d conv=%s status=none", file, kib/64, conv)
	}
	jobs := []*exec.Cmd{
		run("reports", "for i in 1 2 3 4 5; do "+write("reports$i", 24<<10, "fsync")+"; sleep 3; done"),
		run("shop", "for i in 1 2 3; do "+write("shop$i", 8<<10, "notrunc")+"; sleep 5; sync; done"),
		run("chat", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do "+write("chat$i", 64, "fsync")+"; sleep 1; done"),
		run("import", write("import", 20<<10, "fsync")),
	}
	for _, job := range jobs {
		if err := job.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	d.flush(t)

	s.until("TOTALS of", "a")
	order := []string{"reports", "shop", "import", "chat"}
	for _, size := range [][2]int{{60, 15}, {80, 24}, {120, 40}, {200, 50}} {
		s.tmux("resize-window", "-x", fmt.Sprint(size[0]), "-y", fmt.Sprint(size[1]))
		enginetest.Poll(t, 20*time.Second, fmt.Sprintf("the rows in their order on %dx%d", size[0], size[1]), func() bool {
			lines := strings.Split(strings.TrimRight(s.screen(), "\n"), "\n")
			if len(lines) != size[1] || !strings.Contains(lines[len(lines)-1], "q quit") {
				return false
			}
			var names []string
			for _, l := range lines[5:] {
				if f := strings.Fields(l); len(f) > 0 && slices.Contains(order, f[0]) {
					names = append(names, f[0])
				}
			}
			return len(names) > 1 && slices.Equal(names, order[:len(names)]) // on a small one there is no room for all
		})
	}
	// What is marked can be opened although it has ended.
	s.tmux("send-keys", "g")
	s.until("all > project reports", "Enter")
	s.until("reports/job")
	s.until("idle in the last interval", "d")
	s.until(d.name(), "G")
	s.until("SERVICE", "d")
	s.until("wrote iotrace-", "W")
	s.until("ended with 0", "q")
	if left := s.screen(); !strings.Contains(left, "summary of ") || !strings.Contains(left, "reports/job") || strings.Contains(left, "q quit") {
		t.Errorf("what is left on the terminal:\n%s", left)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "iotrace-*.html"))
	if err != nil || len(pages) != 1 {
		t.Fatalf("reports of the screen: %q, %v", pages, err)
	}
	page, err := os.ReadFile(pages[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(page, []byte("reports")) {
		t.Error("the report does not name the culprit")
	}

	// The recording has every byte, and a replay prints the same totals at its end.
	out := mustRun(t, binary(t), "replay", record, "--by", "project", "--filter", "device="+d.name(), "--output", "ndjson")
	got := map[string]uint64{}
	all := map[string]uint64{}
	for line := range strings.Lines(out) {
		var doc tracedDoc
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Event.Dataset == "iotrace.io" && !doc.Iotrace.Device.Stacked {
			got[doc.Iotrace.Project.Name] += doc.Iotrace.Write.Bytes - doc.Iotrace.Write.MetaBytes
			all[doc.Iotrace.Project.Name] += doc.Iotrace.Read.Bytes + doc.Iotrace.Write.Bytes
		}
	}
	for p, bytes := range want {
		if got[p] != bytes {
			t.Errorf("%s wrote %d bytes, want %d", p, got[p], bytes)
		}
	}
	tables := mustRun(t, binary(t), "replay", record, "--by", "project", "--filter", "device="+d.name(), "--output", "table")
	summary := tables[strings.LastIndex(tables, "\nsummary of "):]
	var names []string
	for line := range strings.Lines(summary) {
		f := strings.Fields(line)
		if len(f) > 3 && want[f[0]] > 0 {
			names = append(names, f[0])
			if total := text.Bytes(float64(all[f[0]])); f[3] != total {
				t.Errorf("the summary has %s of %s, want %s:\n%s", f[3], f[0], total, summary)
			}
		}
	}
	if !slices.Equal(names, order) {
		t.Errorf("the summary names %q, want %q:\n%s", names, order, summary)
	}
}
