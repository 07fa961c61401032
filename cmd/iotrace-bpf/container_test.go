package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// fakeHost is a directory that looks like the root of a host.
func fakeHost(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, body := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// Lines of /proc/2/stat: kthreadd, and a program of a container that calls itself so.
const (
	kthreaddStat = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 0 0 0 18446744073709551615 0\n"
	hostileStat  = "2 (kthreadd) S 0 2 2 0 -1 4194560 70 0 0 0 0 0 0 0 20 0 1 0 0 0 0 18446744073709551615 0\n"
)

func TestHostProc(t *testing.T) {
	for _, tt := range []struct {
		name, stat string
		want       bool
	}{
		{"host", kthreaddStat, true},
		{"container", hostileStat, false},
		{"cut off", "2 (kthreadd) S 0", false},
		{"no number", "2 (x) S 0 0 0 0 -1 many", false},
		{"parentheses in the name", "2 (a) 1 2 3 4 5 6 2129984) S 0 2 2 0 -1 4194560 70", false},
		{"empty", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := fakeHost(t, map[string]string{"proc/2/stat": tt.stat})
			if got := hostProc(filepath.Join(root, "proc")); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if hostProc(t.TempDir()) {
		t.Error("a directory without processes counts as the host's")
	}
}

func TestHostRoot(t *testing.T) {
	for _, tt := range []struct{ root, want, hint string }{
		{t.TempDir(), "no directory", "docker run --volume /:"},
		{"host", "absolute path", ""},
	} {
		_, err := viewHost(tt.root)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(usage.hint, tt.hint) {
			t.Errorf("--host-root %q: %v", tt.root, err)
		}
	}
	root := fakeHost(t, map[string]string{
		"proc/2/stat": kthreaddStat, "proc/1/mountinfo": "25 1 252:7 / / rw - ext4 /dev/vda1 rw\n",
		"etc/machine-id": "3d1219c7c4c5404aaa1f6d2a48adfda4\n", "etc/hostname": "# a comment\n\ndb7\n",
	})
	v, err := viewHost(root + "/")
	if err != nil {
		t.Fatal(err)
	}
	v.own["uts"] = true
	if !v.proc || !v.contained() || v.path("/etc") != root+"/etc" {
		t.Errorf("view: %+v", v)
	}
	h, known := v.describe("")
	if h.Name != "db7" || h.ID != "3d1219c7c4c5404aaa1f6d2a48adfda4" || h.Kernel == "" || !known {
		t.Errorf("host: %+v, name known: %v", h, known)
	}
	if h, known := v.describe("web3"); h.Name != "web3" || !known {
		t.Errorf("with --host-name: %+v, name known: %v", h, known)
	}
	if err := os.Remove(filepath.Join(root, "etc/hostname")); err != nil {
		t.Fatal(err)
	}
	if h, known := v.describe(""); h.Name == "" || known {
		t.Errorf("without a name: %+v, name known: %v", h, known)
	}
	o := v.attributeOptions(attribute.Options{})
	if o.HostRoot != root || o.ProcRoot != root+"/proc" || o.NoHostProc {
		t.Errorf("names are looked for with %+v", o)
	}
}

// TestSights: each part of the host that a container hides has its cost and its cure.
func TestSights(t *testing.T) {
	root := fakeHost(t, map[string]string{"proc/2/stat": hostileStat})
	blind, err := viewHost(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"pid", "cgroup", "uts", "user"} {
		blind.own[ns] = true
	}
	all := blind.sights(attribute.Hierarchy{Version: 2, Mount: root, Root: "/"}, false, true)
	loud := map[string]bool{"pid namespace": true, "host's cgroups": true, "UTS namespace": true, "user namespace": true}
	warned := 0
	for _, s := range all {
		if loud[s.what] && (s.cost == "" || s.cure == "" || !s.loud) {
			t.Errorf("%s: %+v", s.what, s)
		}
		if s.loud && s.cost != "" {
			warned++
		}
		if s.cost != "" && s.cure == "" {
			t.Errorf("%s has no cure: %+v", s.what, s)
		}
	}
	if got := limitations(all); len(got) != warned || warned < len(loud) {
		t.Errorf("%d warnings of %d", len(got), warned)
	}
	if s := noEngine([]attribute.Endpoint{{Socket: "/run/docker.sock", Err: os.ErrNotExist}}); s.cost == "" || s.cure == "" {
		t.Errorf("without an engine: %+v", s)
	}
	if s := noEngine([]attribute.Endpoint{{Socket: "/run/docker.sock", State: attribute.StateOK}}); s.cost != "" {
		t.Errorf("with an engine: %+v", s)
	}

	var out bytes.Buffer
	f := findings{kernel: "6.12.1", container: []sight{
		{what: "pid namespace", found: "the host's"},
		{what: "machine id", found: "not\x1b[2J there", cost: "host.id is missing", cure: "a mount"},
	}}
	if err := f.write(&out, false); err != nil {
		t.Fatal(err)
	}
	want := "container  pid namespace: the host's\n           machine id: " + text.Safe("not\x1b[2J there") +
		"\n             limitation: host.id is missing\n               lifted by: a mount\n"
	if !strings.HasSuffix(out.String(), want) {
		t.Errorf("check prints\n%s\nwant at its end\n%s", out.String(), want)
	}
}
