//go:build integration || vm

package enginetest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Podman is a running podman service.
type Podman struct {
	Socket string // path of its unix socket, with Docker's API and its own

	dir string
	uid uint32 // of its user
}

// StartPodman runs a podman service with Image in it until the test ends.
func StartPodman(t testing.TB) *Podman {
	t.Helper()
	return startPodman(t, 0)
}

// StartRootlessPodman does the same as a user, in a user namespace of his.
func StartRootlessPodman(t testing.TB, uid uint32) *Podman {
	t.Helper()
	return startPodman(t, uid)
}

func startPodman(t testing.TB, uid uint32) *Podman {
	t.Helper()
	dir, err := os.MkdirTemp("", "podman")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(uid), int(uid)); err != nil {
		t.Fatal(err)
	}
	p := &Podman{Socket: filepath.Join(dir, "podman.sock"), dir: dir, uid: uid}
	// The limits of the test itself may not be raised everywhere.
	conf := "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "containers.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := p.Command("system", "service", "--time=0", "unix://"+p.Socket)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGTERM, true
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting podman: %v", err)
	}
	var waitErr error // once exited is closed
	exited := make(chan struct{})
	go func() { waitErr = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		p.Command("pod", "rm", "--force", "--all", "--time", "0").Run()
		p.Command("rm", "--force", "--all", "--time", "0").Run()
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(stopTime):
			cmd.Process.Kill()
			<-exited
		}
		p.endRest()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("end of podman's log:\n%s", b[max(0, len(b)-8<<10):])
		}
		log.Close()
		removeDir(t, dir)
	})
	Poll(t, startTime, "podman answers", func() bool {
		select {
		case <-exited:
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("podman ended: %v\n%s", waitErr, b)
		default:
		}
		c, err := net.Dial("unix", p.Socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	load := p.Command("load")
	load.Stdin = bytes.NewReader(ImageArchive(t, "docker.io/library/"+Image))
	output(t, load)
	return p
}

// endRest ends what a service leaves behind that runs as a user: its second process in
// the user namespace, and those that hold the namespace for later commands. All of them
// work in the service's directory.
func (p *Podman) endRest() {
	if p.uid == 0 {
		return
	}
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if dir, err := os.Readlink(link); err != nil || dir != p.dir {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Command returns a podman command on this service's containers.
func (p *Podman) Command(args ...string) *exec.Cmd {
	driver := "overlay"
	if p.uid != 0 {
		driver = "vfs"
	}
	cmd := exec.Command("podman", append([]string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"), "--tmpdir", filepath.Join(p.dir, "tmp"),
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", driver, "--runtime", "runc",
	}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if p.uid != 0 {
		cmd.Dir = p.dir
		cmd.Env = append(cmd.Env, "HOME="+p.dir, "XDG_RUNTIME_DIR="+p.dir, "DBUS_SESSION_BUS_ADDRESS=")
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.uid, Gid: p.uid}
	}
	return cmd
}

// Podman runs a podman command and returns what it printed. The test fails when
// the command does.
func (p *Podman) Podman(t testing.TB, args ...string) string {
	t.Helper()
	return output(t, p.Command(args...))
}
