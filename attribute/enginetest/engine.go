//go:build integration || vm

// Package enginetest runs real container engines for tests: each one in
// directories of its own, on a unix socket of its own, stopped and cleaned up when
// the test ends. It needs root and Debian's docker.io, podman and busybox-static.
package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// Image is the image that every engine has: a static busybox and nothing else.
	Image = "busybox:test"

	// Bounds, and no claims about speed: an emulated machine is slow.
	startTime = 5 * time.Minute
	stopTime  = time.Minute
)

// Engine is a running dockerd.
type Engine struct {
	Socket string // path of its unix socket

	program []string // dockerd, and what starts it
	dir     string
	log     *os.File

	mu  sync.Mutex
	cmd *exec.Cmd
}

// Start runs a dockerd with Image in it until the test ends. Containers have no
// network but their loopback.
func Start(t testing.TB) *Engine {
	t.Helper()
	return start(t, "dockerd")
}

// StartGVisor is Start with a runtime "runsc": gVisor, whose kernel is a program. It needs
// Debian's runsc.
func StartGVisor(t testing.TB) *Engine {
	t.Helper()
	// On the processor's own page tables it would need KVM, which a test may not have.
	wrapper := filepath.Join(t.TempDir(), "runsc")
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec runsc --platform=ptrace --network=none \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return start(t, "dockerd", "--add-runtime", "runsc="+wrapper)
}

func start(t testing.TB, program ...string) *Engine {
	t.Helper()
	// Not t.TempDir: the path of a unix socket must be short, and what is mounted
	// below must be unmounted before it is removed.
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{Socket: filepath.Join(dir, "docker.sock"), program: program, dir: dir, log: log}
	t.Cleanup(func() {
		e.cleanup(t)
		log.Close()
	})
	e.Boot(t)
	e.Import(t, Image)
	return e
}

// Boot starts the daemon, again after Halt, and waits until it answers.
func (e *Engine) Boot(t testing.TB) {
	t.Helper()
	cmd := e.daemon(
		"--host", "unix://"+e.Socket,
		"--data-root", filepath.Join(e.dir, "data"),
		"--exec-root", filepath.Join(e.dir, "exec"),
		"--pidfile", filepath.Join(e.dir, "pid"),
		"--config-file", filepath.Join(e.dir, "daemon.json"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
		"--default-ulimit", "nofile=1024:1024",
	)
	if err := os.WriteFile(filepath.Join(e.dir, "daemon.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = e.log, e.log
	// A test that is killed takes its engine with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting dockerd: %v", err)
	}
	e.mu.Lock()
	e.cmd = cmd
	e.mu.Unlock()
	var waitErr error // once exited is closed
	exited := make(chan struct{})
	go func() { waitErr = cmd.Wait(); close(exited) }()
	t.Cleanup(func() { e.halt(cmd, exited) })
	Poll(t, startTime, "dockerd answers", func() bool {
		select {
		case <-exited:
			t.Fatalf("dockerd ended: %v\n%s", waitErr, e.Log())
		default:
		}
		return e.ping() == nil
	})
}

// Halt stops the daemon and leaves its socket dead. Its containers stop with it.
func (e *Engine) Halt(t testing.TB) {
	t.Helper()
	e.mu.Lock()
	cmd := e.cmd
	e.mu.Unlock()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stopping dockerd: %v", err)
	}
	Poll(t, stopTime, "dockerd is gone", func() bool { return errors.Is(cmd.Process.Signal(syscall.Signal(0)), os.ErrProcessDone) })
}

// Signal sends a signal to the daemon: SIGSTOP makes its socket one that accepts
// and never answers, SIGCONT ends that.
func (e *Engine) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("sending %v to dockerd: %v", sig, err)
	}
}

// PID is the daemon's process.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cmd.Process.Pid
}

func (e *Engine) halt(cmd *exec.Cmd, exited <-chan struct{}) {
	if cmd.Process.Signal(syscall.SIGTERM) != nil {
		return
	}
	cmd.Process.Signal(syscall.SIGCONT) // a test may have left it stopped
	select {
	case <-exited:
	case <-time.After(stopTime):
		cmd.Process.Kill()
		<-exited
	}
}

func (e *Engine) cleanup(t testing.TB) {
	if t.Failed() {
		t.Logf("end of the engine's log:\n%s", e.Log())
	}
	removeDir(t, e.dir)
}

// removeDir removes a directory and unmounts what is left in it. An engine's
// helpers may outlive it by a moment and still mount there.
func removeDir(t testing.TB, dir string) {
	var err error
	for end := time.Now().Add(stopTime); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
			lines := strings.Split(string(b), "\n")
			for i := len(lines) - 1; i >= 0; i-- {
				if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
					syscall.Unmount(f[4], syscall.MNT_DETACH)
				}
			}
		}
		if err = os.RemoveAll(dir); err == nil {
			return
		}
	}
	t.Errorf("cleaning up: %v", err)
}

// Log returns the end of what the daemon printed.
func (e *Engine) Log() string {
	b, _ := os.ReadFile(e.log.Name())
	if len(b) > 8<<10 {
		b = b[len(b)-8<<10:]
	}
	return string(b)
}

func (e *Engine) ping() error {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", e.Socket)
		},
	}}
	resp, err := c.Get("http://docker/_ping")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping: %s", resp.Status)
	}
	return nil
}

// Command returns a docker command that talks to this engine.
func (e *Engine) Command(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.Socket, "DOCKER_CONFIG="+filepath.Join(e.dir, "client"))
	return cmd
}

// Docker runs a docker command and returns what it printed, without the last end
// of line. The test fails when the command does.
func (e *Engine) Docker(t testing.TB, args ...string) string {
	t.Helper()
	return output(t, e.Command(args...))
}

// Run starts a container in the background (docker run -d with the arguments) and
// returns its id.
func (e *Engine) Run(t testing.TB, args ...string) string {
	t.Helper()
	return e.Docker(t, append([]string{"run", "-d", "--network", "none", "--stop-signal", "KILL"}, args...)...)
}

// Inspect returns the value of a format in docker inspect.
func (e *Engine) Inspect(t testing.TB, id, format string) string {
	t.Helper()
	return e.Docker(t, "inspect", "--format", format, id)
}

// Import makes an image of busybox under a name.
func (e *Engine) Import(t testing.TB, name string) {
	t.Helper()
	cmd := e.Command("import", "--change", `CMD ["sh"]`, "-", name)
	cmd.Stdin = bytes.NewReader(BusyboxTar(t))
	output(t, cmd)
}

// RunNested starts a container with a dockerd of its own, on /run/docker.sock in
// it, and waits until that answers. The programs are the host's, seen read-only.
func (e *Engine) RunNested(t testing.TB, name string, args ...string) string {
	t.Helper()
	const image = "nested:test"
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"usr/", "etc/", "run/", "tmp/", "proc/", "sys/", "dev/", "root/", "var/lib/docker/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{"var/run": "/run"}
	for _, dir := range []string{"bin", "sbin", "lib", "lib32", "lib64"} {
		links[dir] = "usr/" + dir
	}
	for name, to := range links {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	load := e.Command("import", "-", image)
	load.Stdin = &buf
	output(t, load)
	script := `for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,rw $d 2>/dev/null; done
mount -o remount,bind,rw /proc/sys
exec dockerd --host unix:///run/docker.sock --bridge none --iptables=false --ip6tables=false --default-ulimit nofile=1024:1024`
	all := append([]string{
		"--name", name, "--cgroupns", "private", "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE",
		"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--volume", "/usr:/usr:ro", "--volume", "/var/lib/docker", "--tmpfs", "/run", "--tmpfs", "/tmp",
	}, args...)
	id := e.Run(t, append(all, image, "sh", "-c", script)...)
	Poll(t, startTime, "the engine in "+name+" answers", func() bool { return e.Command("exec", id, "docker", "version").Run() == nil })
	load = e.Command("exec", "--interactive", id, "docker", "import", "--change", `CMD ["sh"]`, "-", Image)
	load.Stdin = bytes.NewReader(BusyboxTar(t))
	output(t, load)
	return id
}

// EnablePlugin makes and starts a managed volume plugin and returns its id.
func (e *Engine) EnablePlugin(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("where is this file?")
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "rootfs", "plugin"), ".")
	build.Dir = filepath.Join(filepath.Dir(here), "testdata", "plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output(t, build)
	config := `{"description": "test", "entrypoint": ["/plugin"], "workdir": "/", "network": {"type": "none"},
		"interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"}, "linux": {"capabilities": []}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Docker(t, "plugin", "create", name, dir)
	e.Docker(t, "plugin", "enable", name)
	t.Cleanup(func() { e.Command("plugin", "rm", "--force", name).Run() })
	return e.Docker(t, "plugin", "inspect", "--format", "{{.Id}}", name)
}

// BusyboxTar returns a root file system with a static busybox and all its names.
func BusyboxTar(t testing.TB) []byte {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	names := strings.Fields(output(t, exec.Command("/bin/busybox", "--list")))
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "data/", "proc/", "sys/", "dev/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, bin)
	for _, n := range names {
		if n != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + n, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, errs.String())
	}
	return strings.TrimRight(out.String(), "\n")
}

// Poll waits until ok returns true and fails the test at the deadline.
func Poll(t testing.TB, deadline time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", deadline, what)
		}
	}
}
