package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Share is a directory of this machine that the guest can mount as virtiofs, or as 9p.
type Share struct {
	Tag       string // what the guest mounts
	Dir       string
	P9        bool      // as 9p, which QEMU itself serves
	Writeback bool      // the guest may collect writes in its page cache
	Log       io.Writer // if not nil, what the daemon says of every request
}

func (s Share) socket(dir string) string { return filepath.Join(dir, "virtiofs-"+s.Tag+".sock") }

// virtiofsd finds the daemon, which no distribution puts into PATH.
func virtiofsd() (string, error) {
	for _, p := range []string{"virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"} {
		if file, err := exec.LookPath(p); err == nil {
			return file, nil
		}
	}
	return "", errors.New("no virtiofsd (Debian: in qemu-system-common up to 12, then in virtiofsd)")
}

// shareReady is the time limit for a daemon to make its socket.
const shareReady = time.Minute

// serve starts the daemon of a share for one guest. The returned function ends it.
// The daemon also ends by itself when the guest is gone.
func (s Share) serve(ctx context.Context, dir string) (func(), error) {
	program, err := virtiofsd()
	if err != nil {
		return nil, err
	}
	writeback := "no_writeback"
	if s.Writeback {
		writeback = "writeback"
	}
	// These options are those of QEMU's daemon; its successor still takes them.
	cmd := exec.CommandContext(ctx, program, "--socket-path="+s.socket(dir), "-o", "source="+s.Dir, "-o", "cache=auto", "-o", writeback, "-o", "allow_direct_io", "-o", "sandbox=chroot")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	var to io.Writer = &said
	if s.Log != nil {
		cmd.Args = append(cmd.Args, "-d")
		to = s.Log
	}
	cmd.Stdout, cmd.Stderr = to, to
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("share %q: %w", s.Tag, err)
	}
	ended := make(chan struct{})
	var waitErr error
	go func() { // ends with the process, which end kills
		waitErr = cmd.Wait()
		close(ended)
	}()
	end := func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	for limit := time.Now().Add(shareReady); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(s.socket(dir)); err == nil {
			return end, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			end()
			return nil, err
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("share %q: %s ended: %v\n%s", s.Tag, program, waitErr, tail(said.Bytes(), 2000))
		default:
		}
		if time.Now().After(limit) {
			end()
			return nil, fmt.Errorf("share %q: %s made no socket in %s\n%s", s.Tag, program, shareReady, tail(said.Bytes(), 2000))
		}
	}
}
