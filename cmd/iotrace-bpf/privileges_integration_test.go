//go:build integration

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// shipped builds the program as `make build` does: without C, which dropping
// privileges needs.
func shipped(t *testing.T) string {
	t.Helper()
	return built(t, "CGO_ENABLED=0")
}

func built(t *testing.T, env string) string {
	t.Helper()
	path := filepath.Join(openDir(t), "iotrace-bpf")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return path
}

// openDir returns a directory that everybody may write to.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "iotrace-bpf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startNDJSON starts a command that is iotrace-bpf, and returns once it is attached.
func startNDJSON(t *testing.T, cmd *exec.Cmd) *traced {
	t.Helper()
	ready := filepath.Join(openDir(t), "ready")
	cmd.Args = append(cmd.Args, "--output", "ndjson", "--ready-file", ready)
	r := &traced{cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &r.stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		r.read(bufio.NewReader(stdout))
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-r.done; cmd.Wait() })
	enginetest.Poll(t, 30*time.Second, "iotrace-bpf is attached", func() bool {
		select {
		case <-r.done:
			t.Fatalf("iotrace-bpf ended early:\n%s", r.stderr.String())
		default:
		}
		_, err := os.Stat(ready)
		return err == nil
	})
	return r
}

// asNobody gives a command an ordinary user and these capabilities.
func asNobody(cmd *exec.Cmd, caps ...uintptr) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
	return cmd
}

// TestLeastPrivilege: two capabilities are enough to trace, a third to name, and
// the numbers are as good as root's.
func TestLeastPrivilege(t *testing.T) {
	bin := shipped(t)
	for _, missing := range []struct {
		name string
		caps []uintptr
	}{
		{"nothing", nil},
		{"CAP_PERFMON", []uintptr{unix.CAP_BPF}},
		{"CAP_BPF", []uintptr{unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH}},
	} {
		got := finish(t, asNobody(exec.Command(bin, "--vxlan=false", "0.1", "1"), missing.caps...))
		oneLine(t, got, exitUnsupported, "permission")
		if !strings.Contains(got.stderr, "CAP_BPF") || !strings.Contains(got.stderr, "CAP_PERFMON") {
			t.Errorf("without %s: no hint: %q", missing.name, got.stderr)
		}
	}
	for _, caps := range [][]uintptr{
		{unix.CAP_BPF, unix.CAP_PERFMON},
		{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH},
	} {
		t.Run(fmt.Sprint(len(caps)), func(t *testing.T) {
			lower := newDisk(t, 300)
			lower.format(t, mkExt4()...)
			upper := loopOver(t, filepath.Join(lower.mount, "image"), 64)
			o := newOwners(t, upper, 100, 50)
			before := lower.stat(t)
			r := startNDJSON(t, asNobody(exec.Command(bin, "--vxlan=false", "--by", "cgroup,device", "--interval", "200ms"), caps...))
			o.begin(t)
			o.expect(t, "done")
			upper.flush(t)
			lower.flush(t)
			docs := r.stop(t)
			delta := lower.stat(t).minus(before)
			if all := sum(docs, lower.match); all.write != delta.writeBytes || all.read != delta.readBytes || delta.writeBytes == 0 {
				t.Errorf("rows: %d written, %d read; /proc/diskstats: %d, %d", all.write, all.read, delta.writeBytes, delta.readBytes)
			}
			for i, id := range o.ids {
				mine := func(doc *tracedDoc) bool {
					return upper.match(doc) && doc.Iotrace.Cgroup.ID == id && strings.HasSuffix(o.cgroups[i], doc.Iotrace.Cgroup.Path)
				}
				if got := sum(docs, mine).write; got != o.bytes(i) {
					t.Fatalf("cgroup %s (%s) wrote %d bytes, reported are %d", id, o.cgroups[i], o.bytes(i), got)
				}
			}
		})
	}
}

// TestPrivilegesDropped: root's other powers are gone once everything is
// attached, from every thread, and the numbers go on.
func TestPrivilegesDropped(t *testing.T) {
	bin := shipped(t)
	bit := func(caps ...uint) (mask uint64) {
		for _, c := range caps {
			mask |= 1 << c
		}
		return mask
	}
	base := bit(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_PTRACE, unix.CAP_SYSLOG)
	field := regexp.MustCompile(`(?m)^(CapEff|CapPrm|NoNewPrivs|Seccomp):\s*(\S+)$`)
	for _, c := range []struct {
		flags []string
		want  uint64
	}{
		{[]string{"--vxlan=false", "--source", "block"}, base},
		{[]string{"--only-listed-sockets", "--source", "block"}, base}, // no engine, no swarm
		{[]string{"--vxlan", "--source", "block"}, base | bit(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_BROADCAST)},
	} {
		t.Run(strings.Join(c.flags[:1], " "), func(t *testing.T) {
			d := newDisk(t, 64)
			before := d.stat(t)
			r := startNDJSON(t, exec.Command(bin, append([]string{"--by", "device", "--interval", "100ms"}, c.flags...)...))
			enginetest.Poll(t, 10*time.Second, "every thread has given up what it does not need", func() bool {
				tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", r.cmd.Process.Pid))
				if err != nil || len(tasks) == 0 {
					t.Fatalf("no threads: %v", err)
				}
				for _, task := range tasks {
					data, err := os.ReadFile(task)
					if err != nil {
						continue // it ended
					}
					for _, m := range field.FindAllStringSubmatch(string(data), -1) {
						n, err := strconv.ParseUint(m[2], 16, 64)
						if err != nil {
							t.Fatal(err)
						}
						want := c.want
						switch m[1] {
						case "NoNewPrivs":
							want = 1
						case "Seccomp":
							want = unix.SECCOMP_MODE_FILTER
						}
						if n != want {
							return false
						}
					}
				}
				return true
			})
			mustRun(t, "dd", "if=/dev/zero", "of="+d.dev, "bs=4k", "count=10007", "oflag=direct")
			d.flush(t)
			equalDiskstats(t, d, r.stop(t), before)
		})
	}
}

// TestPrivilegesKept: a program that was built with cgo cannot drop privileges. It
// says so and traces.
func TestPrivilegesKept(t *testing.T) {
	for env, warns := range map[string]bool{"CGO_ENABLED=1": true, "CGO_ENABLED=0": false} {
		got := finish(t, exec.Command(built(t, env), "--vxlan=false", "--source", "block", "0.1", "1"))
		if got.code != exitOK || strings.Contains(got.stderr, "built with cgo") != warns {
			t.Errorf("%s: exit code %d, want a warning: %v\n%s", env, got.code, warns, got.stderr)
		}
	}
}

// TestNothingListens: by default no socket waits for connections.
func TestNothingListens(t *testing.T) {
	r := trace(t, "--interval", "100ms")
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", r.cmd.Process.Pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("no open files: %v", err)
	}
	sockets := map[string]bool{}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil {
			if inode, ok := strings.CutPrefix(target, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	const listening = "0A"
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		data, err := os.ReadFile("/proc/net/" + table)
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			switch {
			case table == "unix" && len(f) > 6 && sockets[f[6]] && f[3] == "00010000", // __SO_ACCEPTCON
				table != "unix" && len(f) > 9 && sockets[f[9]] && (f[3] == listening || strings.HasPrefix(table, "udp")):
				t.Errorf("listens: %s", line)
			}
		}
	}
	r.stop(t)
}

// TestUnit holds the systemd unit to what systemd says of it and of its hardening. A real
// systemd starts the unit, also with its drop-ins, in the guest of TestRuntimes.
func TestUnit(t *testing.T) {
	unit := filepath.Join("..", "..", "packaging", "iotrace-bpf.service")
	out := mustRun(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unit)
	if !strings.Contains(out, "OK") {
		t.Errorf("systemd-analyze says:\n%s", out)
	}
	// What the unit names must be there for verify: so it looks at a copy.
	data, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), "/usr/bin/iotrace-bpf", binary(t))
	text = regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(text, "")
	copied := filepath.Join(t.TempDir(), "iotrace-bpf.service")
	if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(copied+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dropIn := range []string{"ship.conf", "prometheus.conf"} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(unit), dropIn))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied+".d", dropIn), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := mustRun(t, "systemd-analyze", "verify", "--man=no", copied); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
}
