//go:build integration

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestFUSE compares the rows of FUSE file systems with the requests to their
// daemon, with real containers on them.
func TestFUSE(t *testing.T) {
	engine := enginetest.Start(t)
	t.Run("WriteThrough", func(t *testing.T) { testFUSEProjects(t, engine, guest.FUSEOptions{}) })
	t.Run("WriteBack", func(t *testing.T) { testFUSEProjects(t, engine, guest.FUSEOptions{Writeback: true}) })
	t.Run("Unbuffered", func(t *testing.T) { testFUSEProjects(t, engine, guest.FUSEOptions{DirectIO: true}) })
	t.Run("Bindfs", func(t *testing.T) { testBindfs(t, engine) })
	t.Run("UnderWay", testFUSEUnderWay)
}

// mounted is a FUSE file system that containers use.
type mounted struct {
	dir, id string
	count   func() guest.FUSECount
}

func (m *mounted) match(doc *tracedDoc) bool {
	return doc.Iotrace.Source == "fuse" && doc.Iotrace.Device.ID == m.id
}

func deviceOf(t testing.TB, dir string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
}

func serveFUSE(t testing.TB, o guest.FUSEOptions) *mounted {
	t.Helper()
	o.Backing = t.TempDir()
	dir := t.TempDir()
	s, err := guest.ServeFUSE(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		enginetest.Poll(t, 30*time.Second, "the file system is unmounted", func() bool { return s.Unmount() == nil })
	})
	return &mounted{dir: dir, id: deviceOf(t, dir), count: s.Count}
}

// testFUSEProjects: containers of two projects write and read a FUSE file system
// through a bind mount; an outsider makes the kernel flush.
func testFUSEProjects(t *testing.T, engine *enginetest.Engine, o guest.FUSEOptions) {
	m := serveFUSE(t, o)
	before := m.count()
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "project,service,device", "--source", "fuse", "--interval", "200ms")
	start := func(p, script string) *exec.Cmd {
		args := append([]string{"run", "--rm"}, project(p, "app")...)
		cmd := engine.Command(append(args, "-v", m.dir+":/data", enginetest.Image, "sh", "-c", script)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	wait := func(cmds ...*exec.Cmd) {
		for _, c := range cmds {
			if err := c.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		mustRun(t, "sync", "-f", m.dir)
	}
	wait(start("shop", "dd if=/dev/zero of=/data/shop bs=1M count=23"), start("blog", "dd if=/dev/zero of=/data/blog bs=4000 count=1001"))
	written := m.count()
	// Opening a file makes the kernel forget what it had cached of it.
	wait(start("blog", "cat /data/shop >/dev/null"))
	truth := m.count()
	docs := r.stop(t)

	all := sum(docs, m.match)
	if got, want := all.write, uint64(truth.WriteBytes-before.WriteBytes); got != want {
		t.Errorf("%d bytes written in all rows, the daemon counted %d", got, want)
	}
	if got, want := all.read, uint64(truth.ReadBytes-before.ReadBytes); got != want {
		t.Errorf("%d bytes read in all rows, the daemon counted %d", got, want)
	}
	if got, want := all.writeOps, uint64(truth.WriteOps-before.WriteOps); got != want {
		t.Errorf("%d writes in all rows, the daemon counted %d", got, want)
	}
	if got := uint64(written.WriteBytes - before.WriteBytes); got != 23*mib+1001*4000 {
		t.Errorf("the daemon counted %d bytes written, the containers wrote %d", got, 23*mib+1001*4000)
	}
	by := func(p string) total {
		return sum(docs, func(doc *tracedDoc) bool {
			return m.match(doc) && doc.Iotrace.Project.Name == p && doc.Iotrace.Service.Name == "app"
		})
	}
	if got := by("shop"); got.write != 23*mib || got.read != 0 {
		t.Errorf("shop: %+v, want %d bytes written and none read", got, 23*mib)
	}
	if got := by("blog"); got.write != 1001*4000 || got.read != 23*mib {
		t.Errorf("blog: %+v, want %d bytes written and %d read", got, 1001*4000, 23*mib)
	}
	if t.Failed() {
		dump(t, docs)
	}
}

// testBindfs is the same by mount, with a file system that is not ours.
func testBindfs(t *testing.T, engine *enginetest.Engine) {
	from, dir := t.TempDir(), t.TempDir()
	mustRun(t, "bindfs", from, dir)
	t.Cleanup(func() {
		enginetest.Poll(t, 30*time.Second, "bindfs is unmounted", func() bool { return exec.Command("umount", dir).Run() == nil })
	})
	r := trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "container,mount", "--source", "fuse", "--interval", "200ms")
	engine.Docker(t, "run", "--name", "binder", "-v", dir+":/data", enginetest.Image,
		"sh", "-c", "dd if=/dev/zero of=/data/f bs=1M count=11 && cat /data/f >/dev/null")
	if fi, err := os.Stat(filepath.Join(from, "f")); err != nil || fi.Size() != 11*mib {
		t.Fatalf("the file below: %v, %v", fi, err)
	}
	docs := r.stop(t)
	engine.Docker(t, "rm", "binder")
	got := sum(docs, func(doc *tracedDoc) bool {
		return doc.Iotrace.Source == "fuse" && doc.Container.Name == "binder" && strings.Contains(strings.Join(doc.Iotrace.Group.Name, " "), from)
	})
	if got.write != 11*mib || got.read != 11*mib {
		t.Errorf("container on bindfs: %+v, want 11 MiB written and read", got)
		dump(t, docs)
	}
}

// testFUSEUnderWay: a request that was sent before the tracer started, and is answered
// long after, is not lost: its beginning never was ours.
func testFUSEUnderWay(t *testing.T) {
	serve := func() (dir string, daemon *exec.Cmd) {
		from, dir := t.TempDir(), t.TempDir()
		if err := os.WriteFile(filepath.Join(from, "f"), make([]byte, 4096), 0o644); err != nil {
			t.Fatal(err)
		}
		daemon = exec.Command("bindfs", "-f", from, dir)
		if err := daemon.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			enginetest.Poll(t, 30*time.Second, "bindfs is unmounted", func() bool { return exec.Command("umount", dir).Run() == nil })
			daemon.Wait()
		})
		enginetest.Poll(t, 30*time.Second, "bindfs is mounted", func() bool {
			_, err := os.Stat(filepath.Join(dir, "f"))
			return err == nil
		})
		return dir, daemon
	}
	slow, daemon := serve()
	other, _ := serve()
	control := t.TempDir()
	mustRun(t, "mount", "-t", "fusectl", "none", control)
	t.Cleanup(func() { mustRun(t, "umount", control) })
	_, connection, _ := strings.Cut(deviceOf(t, slow), ":")
	if err := daemon.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Process.Signal(unix.SIGCONT) }) // before it is unmounted
	reader := exec.Command("cat", filepath.Join(slow, "f"))
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	enginetest.Poll(t, 30*time.Second, "the request is under way", func() bool {
		waiting, err := os.ReadFile(filepath.Join(control, connection, "waiting"))
		return err == nil && strings.TrimSpace(string(waiting)) != "0"
	})
	r := trace(t, "--docker-host", "unix:///nonexistent/docker.sock", "--only-listed-sockets", "--by", "device", "--source", "fuse", "--interval", "200ms")
	mustRun(t, "cat", filepath.Join(other, "f")) // a request that is seen sent
	if err := daemon.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := reader.Wait(); err != nil {
		t.Fatal(err)
	}
	docs := r.stop(t)
	if n := lost(docs, "latencies"); n != 0 {
		t.Errorf("%d latencies lost", n)
	}
	if got := sum(docs, func(doc *tracedDoc) bool { return doc.Iotrace.Source == "fuse" }); got.read != 8192 {
		t.Errorf("%d bytes read, want 8192", got.read)
	}
}
