//go:build integration || vm

package enginetest

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Slurm is a cluster of this machine alone, which keeps jobs in cgroups.
type Slurm struct{ dir string }

// StartSlurm runs a cluster until the test ends, with Debian's slurmctld, slurmd and munge.
// cgroup is the version of the memory controller's hierarchy.
func StartSlurm(t testing.TB, cgroup int) *Slurm {
	t.Helper()
	dir, err := os.MkdirTemp("", "slurm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeDir(t, dir) })
	s := &Slurm{dir: dir}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(host, ".")
	key := make([]byte, 128)
	_, _ = rand.Read(key)
	files := map[string]string{
		"key": string(key),
		"slurm.conf": fmt.Sprintf(`ClusterName=test
SlurmctldHost=%[1]s(%[2]s)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=%[3]s/munge.socket
SlurmctldPort=%[4]d
SlurmdPort=%[5]d
StateSaveLocation=%[3]s
SlurmdSpoolDir=%[3]s
SlurmctldPidFile=%[3]s/slurmctld.pid
SlurmdPidFile=%[3]s/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName=%[1]s NodeAddr=%[2]s State=UNKNOWN
PartitionName=main Nodes=%[1]s Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
`, host, address(t), dir, freePort(t), freePort(t)),
		"cgroup.conf": fmt.Sprintf("CgroupPlugin=cgroup/v%d\nConstrainRAMSpace=yes\n", cgroup),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	s.run(t, "munged", "--foreground", "--force", "--key-file", file("key"), "--socket", file("munge.socket"),
		"--pid-file", file("munge.pid"), "--seed-file", file("munge.seed"), "--log-file", file("munge.log"))
	Poll(t, startTime, "munged listens", func() bool { _, err := os.Stat(file("munge.socket")); return err == nil })
	s.run(t, "slurmctld", "-D", "-f", file("slurm.conf"))
	// The plugin for version 2 keeps jobs in a scope of systemd's, and wants slurmd to be in a
	// unit with Delegate=, as Debian's slurmd.service is.
	slurmd := []string{"slurmd", "-D", "-f", file("slurm.conf")}
	if cgroup == 2 {
		slurmd = append([]string{"systemd-run", "--scope", "--quiet", "--unit=slurmd", "--property=Delegate=yes"}, slurmd...)
		t.Cleanup(func() { exec.Command("systemctl", "stop", "*slurmstepd.scope").Run() })
	}
	s.run(t, slurmd[0], slurmd[1:]...)
	Poll(t, startTime, "the node is idle", func() bool {
		out, _ := s.command("sinfo", "--noheader", "--format", "%t").Output()
		return strings.TrimSpace(string(out)) == "idle"
	})
	return s
}

func (s *Slurm) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+filepath.Join(s.dir, "slurm.conf"))
	return cmd
}

// run runs a daemon until the test ends.
func (s *Slurm) run(t testing.TB, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(s.dir, name+".out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(stopTime, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
		if b, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("end of what %s printed:\n%s", name, b[max(0, len(b)-4<<10):])
		}
		log.Close()
	})
}

// Submit submits a job that runs a shell script and returns its number. It is cancelled
// when the test ends.
func (s *Slurm) Submit(t testing.TB, name, script string) string {
	t.Helper()
	cmd := s.command("sbatch", "--parsable", "--ntasks=1", "--output=/dev/null", "--chdir=/", "--job-name", name)
	cmd.Stdin = strings.NewReader("#!/bin/sh\n" + script)
	id := output(t, cmd)
	t.Cleanup(func() {
		s.command("scancel", "--signal=KILL", "--full", id).Run()
		Poll(t, stopTime, "job "+id+" ended", func() bool {
			out, err := s.command("squeue", "--noheader", "--jobs", id).Output()
			return err != nil || len(out) == 0
		})
	})
	return id
}

// address returns an address of this machine that is not loopback: Slurm takes no other.
func address(t testing.TB) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no IPv4 address but loopback")
	return ""
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
