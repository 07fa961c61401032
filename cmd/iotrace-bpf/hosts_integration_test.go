//go:build integration

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// sshHosts is a server of ssh on this machine under the names of several hosts. Each has a
// name and a machine id of its own.
type sshHosts struct {
	dir    string // that every user may read
	binary string
	log    lockedBuffer
}

const nobody = 65534

func newSSHHosts(t *testing.T, names ...string) *sshHosts {
	t.Helper()
	dir, err := os.MkdirTemp("", "iotrace-hosts")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &sshHosts{dir: dir, binary: filepath.Join(dir, "iotrace-bpf")}
	mustRun(t, "cp", binary(t), h.binary)
	for _, p := range []string{dir, "/run/sshd"} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"host", "user"} {
		mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", h.file(key))
	}
	mustRun(t, "cp", h.file("user.pub"), h.file("authorized"))
	if err := os.Chown(h.file("user"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	h.write(t, "sshd_config", fmt.Sprintf(`ListenAddress 127.0.0.1:%d
HostKey %s
AuthorizedKeysFile %s
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
AcceptEnv IOTRACE_* TEST_HOST
`, port, h.file("host"), h.file("authorized")))
	public, err := os.ReadFile(h.file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, "known_hosts", fmt.Sprintf("[127.0.0.1]:%d %s", port, public))
	var config strings.Builder
	for _, n := range names {
		fmt.Fprintf(&config, "Host %s\n  SetEnv TEST_HOST=%s IOTRACE_READY_FILE=%s\n", n, n, h.file("ready-"+n))
	}
	fmt.Fprintf(&config, "Host *\n  HostName 127.0.0.1\n  Port %d\n  User root\n  IdentityFile %s\n  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n",
		port, h.file("user"), h.file("known_hosts"))
	h.write(t, "ssh_config", config.String())

	for i, n := range names {
		h.write(t, "id-"+n, fmt.Sprintf("%032x\n", i+1))
	}
	// A name and a machine id of its own, in namespaces of its own.
	h.write(t, "tracer", fmt.Sprintf(`#!/bin/sh
exec unshare --mount --uts sh -c 'mount --bind "$0/id-$TEST_HOST" /etc/machine-id && hostname "$TEST_HOST" && exec "$0/iotrace-bpf" "$@"' %s "$@"
`, dir))
	if err := os.Chmod(h.file("tracer"), 0o755); err != nil {
		t.Fatal(err)
	}
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", h.file("sshd_config"))
	sshd.Stderr = &h.log
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sshd.Process.Kill()
		sshd.Wait()
		for _, n := range names { // of a test that has failed
			for _, pid := range h.tracers(n) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if t.Failed() {
			t.Logf("sshd:\n%s", h.log.String())
		}
	})
	enginetest.Poll(t, 10*time.Second, "sshd listens", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return h
}

func (h *sshHosts) file(name string) string { return filepath.Join(h.dir, name) }

func (h *sshHosts) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(h.file(name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// command is the program as a user without privileges runs it.
func (h *sshHosts) command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.binary, append([]string{"--hosts-command", h.file("tracer"), "--ssh-config", h.file("ssh_config")}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	return cmd
}

// tracers returns the processes that trace as a host.
func (h *sshHosts) tracers(host string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		exe, _ := os.Readlink(p + "/exe")
		env, _ := os.ReadFile(p + "/environ")
		if exe == h.binary && bytes.Contains(env, []byte("TEST_HOST="+host+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(p))
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h *sshHosts) signal(t *testing.T, host string, sig syscall.Signal) {
	t.Helper()
	pids := h.tracers(host)
	if len(pids) != 1 {
		t.Fatalf("%s has tracers %v", host, pids)
	}
	if err := syscall.Kill(pids[0], sig); err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer may be read while a program writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestHosts runs three tracers by a real ssh and shows them as one. What each counts is what
// the kernel counts, also of the host that hangs for a while. One that is killed is said to
// have ended and holds up nobody. No tracer outlives the program that started it.
func TestHosts(t *testing.T) {
	names := []string{"web1", "web2", "web3"}
	h := newSSHHosts(t, names...)
	d := newDisk(t, 256)
	stderr := &lockedBuffer{}
	r := &traced{done: make(chan struct{})}
	r.keep = func(doc *tracedDoc) bool { return doc.Event.Dataset == "iotrace.io" }
	r.cmd = h.command("--hosts", strings.Join(names, ","), "--output", "ndjson", "--source", "block", "--by", "host,cgroup,device", "--filter", "device="+d.name())
	r.cmd.Stderr = stderr
	r.startWith(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the program said:\n%s", stderr.String())
			dump(t, r.seen())
		}
	})
	for _, n := range names {
		enginetest.Poll(t, time.Minute, n+" traces", func() bool { _, err := os.Stat(h.file("ready-" + n)); return err == nil })
	}
	before := d.stat(t)

	root := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	group := filepath.Join(root, "iotrace-hosts-test")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(group) })
	write := func(mib int) {
		t.Helper()
		mustRun(t, "sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs && exec dd if=/dev/zero of=%s bs=1M count=%d oflag=direct conv=notrunc status=none", group, d.dev, mib))
		d.flush(t)
	}
	of := func(host string) (written uint64) {
		return sum(r.seen(), func(doc *tracedDoc) bool {
			return doc.Host.Name == host && d.match(doc) && strings.HasSuffix(doc.Iotrace.Cgroup.Path, "iotrace-hosts-test")
		}).write
	}
	// A read of the partition table may come beside the writes, but nothing else writes.
	kernel := func() uint64 { return d.stat(t).minus(before).writeBytes }
	exact := func(hosts ...string) {
		t.Helper()
		for _, n := range hosts {
			want := kernel()
			enginetest.Poll(t, 20*time.Second, fmt.Sprintf("%s has the kernel's %d bytes", n, want), func() bool { return of(n) >= want })
			if got := of(n); got != want {
				t.Errorf("%s: %d bytes, the kernel counted %d", n, got, want)
			}
			t.Logf("%s: %d bytes, the kernel counted %d", n, of(n), want)
		}
	}
	said := func(host, what string) {
		t.Helper()
		enginetest.Poll(t, 30*time.Second, host+": "+what, func() bool {
			for line := range strings.Lines(stderr.String()) {
				if strings.Contains(line, "host="+host+"\n") && strings.Contains(line, what) {
					return true
				}
			}
			return false
		})
	}

	write(24)
	exact(names...)

	h.signal(t, "web2", syscall.SIGSTOP)
	held := of("web2")
	write(16)
	exact("web1", "web3")
	said("web2", "has sent nothing for")
	write(8)
	exact("web1", "web3")
	if got := of("web2"); got != held {
		t.Errorf("web2 is stopped and has %d bytes after %d", got, held)
	}
	h.signal(t, "web2", syscall.SIGCONT)
	said("web2", "sends again")
	exact(names...)

	h.signal(t, "web3", syscall.SIGKILL)
	said("web3", "the host has ended: ssh: exit status 255")
	write(32)
	exact("web1", "web2")

	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, 30*time.Second, "no tracer is left", func() bool {
		return len(h.tracers("web1"))+len(h.tracers("web2"))+len(h.tracers("web3")) == 0
	})
	<-r.done
	if r.bad != nil {
		t.Error(r.bad)
	}
}

// TestHostsEnd: a run ends after its count or its time; hosts that cannot start are errors of
// theirs, and of the run when none is left.
func TestHostsEnd(t *testing.T) {
	h := newSSHHosts(t, "web1", "web2")
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"none is left", []string{"--hosts", "web1,web2", "--hosts-command", "echo 'no\033[2Jsuch tracer' >&2; exit 7;"}, 1,
			[]string{"no host is left: web", "exit status 7", "no"}},
		{"no recording", []string{"--hosts", "web1", "--hosts-command", "echo this is something else;"}, 1, []string{"no host is left: web1: what it sent is no recording that can be read"}},
		{"count", []string{"--hosts", "web1,web2", "--hosts-command", h.binary, "--source", "block", "1", "4"}, 0, []string{"has the machine id of web"}},
		{"duration", []string{"--hosts", "web1,web2", "--hosts-command", h.binary, "--source", "block", "--duration", "8"}, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := h.command(append([]string{"--no-tui"}, c.args...)...)
			cmd.Args = append(cmd.Args[:1], cmd.Args[3:]...) // without --hosts-command of the rig
			out, err := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d (%v), want %d\n%s", got, err, c.code, out)
			}
			for _, w := range c.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("%q is missing:\n%s", w, out)
				}
			}
			if bytes.Contains(out, []byte("\033")) {
				t.Errorf("a control character of a host came through: %q", out)
			}
			enginetest.Poll(t, 30*time.Second, "no tracer is left", func() bool { return len(h.tracers("web1"))+len(h.tracers("web2")) == 0 })
		})
	}
}

// TestHostsScreen is the screen over two hosts, until Ctrl-C. The totals on it, what it leaves
// on the terminal and the report have what the kernel counted, host by host, and no tracer is left.
func TestHostsScreen(t *testing.T) {
	names := []string{"web1", "web2"}
	h := newSSHHosts(t, names...)
	d := newDisk(t, 64)
	dir := t.TempDir()
	page := filepath.Join(dir, "report.html")
	program := h.command("--hosts", strings.Join(names, ","), "--source", "block", "--by", "host,device", "--filter", "device="+d.name(), "--interval", "1s", "--report", page)
	// A shell around it, so that the terminal is there after the end. What it runs is in a
	// job of its own, as at a prompt: Ctrl-C is for that job alone.
	s := startShell(t, dir, append([]string{"bash", "-mc", `"$@"; echo "ended with $?"; exec cat`, "bash"}, program.Args...)...)
	defer func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", s.screen())
		}
	}()
	for _, n := range names {
		enginetest.Poll(t, time.Minute, n+" traces", func() bool { _, err := os.Stat(h.file("ready-" + n)); return err == nil })
	}
	s.until("LIVE")

	before := d.stat(t)
	mustRun(t, "dd", "if=/dev/zero", "of="+d.dev, "bs=1M", "count=24", "oflag=direct", "conv=notrunc", "status=none")
	d.flush(t)
	if n := d.stat(t).minus(before).writeBytes; n != 24*mib {
		t.Fatalf("/proc/diskstats has %d bytes", n)
	}
	// each tells whether every host has a line with its disk and its bytes.
	each := func(screen string) bool {
		found := 0
		for line := range strings.Lines(screen) {
			for _, n := range names {
				if f := strings.Fields(line); len(f) > 1 && f[0] == n && f[1] == d.name() && strings.Contains(line, "24.0Mi") {
					found++
				}
			}
		}
		return found == len(names)
	}
	s.until("TOTALS of", "a")
	enginetest.Poll(t, 20*time.Second, "the screen has 24 MiB of each host", func() bool { return each(s.screen()) })

	s.until("ended with 0", "C-c")
	if left := s.screen(); !each(left) || strings.Contains(left, "q quit") {
		t.Errorf("what is left on the terminal:\n%s", left)
	}
	enginetest.Poll(t, 30*time.Second, "no tracer is left", func() bool { return len(h.tracers("web1"))+len(h.tracers("web2")) == 0 })
	html, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(html, []byte("</html>")) {
		t.Fatalf("the report: %v, %d bytes", err, len(html))
	}
	for _, n := range names {
		row, of := "", fmt.Sprintf("<bdi>%s, %s</bdi>", n, d.name())
		for line := range strings.Lines(string(html)) {
			if strings.Contains(line, of) && strings.Contains(strings.ReplaceAll(line, "\u00a0", " "), "24.0 MiB") {
				row = line
			}
		}
		if row == "" {
			t.Errorf("the report has no row of 24.0 MiB for %s", n)
		}
	}
}
