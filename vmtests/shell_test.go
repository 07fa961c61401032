//go:build vm

package vmtests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// shellCommand is make vmtest-shell: this program, with -shell.
func shellCommand(t *testing.T) *exec.Cmd {
	t.Helper()
	if guest.Inside() {
		t.Fatal("this is for the host")
	}
	kernels, err := selected()
	if err != nil {
		t.Fatal(err)
	}
	program, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), program, "-shell", "-kernel", kernels[len(kernels)/2].Name)
}

// TestShell types commands into the guest's shell: from a pipe, and on a terminal.
func TestShell(t *testing.T) {
	if *flagSupport {
		t.Skip("boots guests")
	}
	t.Parallel()
	t.Run("pipe", func(t *testing.T) {
		cmd := shellCommand(t)
		// First keep the kernel off the console: its messages would mix with the others.
		cmd.Stdin = strings.NewReader("dmesg -n 1\niotrace-bpf check | grep '^source block'\necho \"status $? of PID $$, init $(readlink /proc/1/exe | wc -l)\"\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, want := range []string{`(?m)^source block +\S+`, `(?m)^status 0 of PID \d+, init`} {
			if !regexp.MustCompile(want).Match(bytes.ReplaceAll(out, []byte("\r"), nil)) {
				t.Errorf("the console did not say %s:\n%s", want, out)
			}
		}
	})
	t.Run("terminal", func(t *testing.T) {
		pty, name := openPTY(t)
		tty, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 37, Col: 113}); err != nil {
			t.Fatal(err)
		}
		cmd := shellCommand(t)
		cmd.Env = append(os.Environ(), "TERM=xterm-256color")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		p := newExpecter(t, pty)
		// Kernels and images may have to be fetched first, here or by the process that has
		// locked the cache.
		p.await(`Ctrl-A X ends the machine`, nil)
		p.expect(`guest:\S*# `)
		p.send("dmesg -n 1\r") // the kernel's messages would mix with the others
		p.expect(`guest:\S*# `)
		p.send("echo size $(stty size) term $TERM\r")
		p.expect(`(?m)(^|\r)size 37 113 term xterm-256color\r*$`)
		// Ctrl-C ends what runs in the guest, and neither the shell nor QEMU.
		p.send("sh -c 'echo began $((1+1)); exec sleep 3600'\r")
		p.expect(`(?m)(^|\r)began 2\r*$`)
		p.send("\x03")
		p.expect(`guest:\S*# `)
		p.send("echo $((6*7)) apples\r")
		p.expect(`(?m)(^|\r)42 apples\r*$`)
		p.send("iotrace-bpf --no-tui --source block 1 1; echo it said $?\r")
		p.expect(`(?m)it said 0\r*$`) // after what the table left on the line
		p.send("exit\r")
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, p.all())
		}
	})
}

func openPTY(t *testing.T) (pty *os.File, tty string) {
	t.Helper()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pty.Close() })
	if err := unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(int(pty.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return pty, fmt.Sprintf("/dev/pts/%d", n)
}

// expecter types and waits for answers.
type expecter struct {
	t    *testing.T
	w    io.Writer
	more chan []byte
	said []byte
	from int // end of the last match
}

func newExpecter(t *testing.T, f *os.File) *expecter {
	p := &expecter{t: t, w: f, more: make(chan []byte, 1024)}
	go func() { // ends when the other side is closed
		defer close(p.more)
		for {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if err != nil {
				return
			}
			p.more <- b[:n]
		}
	}()
	return p
}

func (p *expecter) all() string { return string(p.said) }

func (p *expecter) send(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.w, text); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits until the terminal shows a match after the last one.
func (p *expecter) expect(pattern string) {
	p.t.Helper()
	p.await(pattern, time.After(5*time.Minute))
}

// await is expect with the caller's limit; a nil channel sets no limit.
func (p *expecter) await(pattern string, limit <-chan time.Time) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	for {
		if at := re.FindIndex(p.said[p.from:]); at != nil {
			p.from += at[1]
			return
		}
		select {
		case b, ok := <-p.more:
			if !ok {
				p.t.Fatalf("the terminal was closed before it showed %s:\n%s", pattern, p.said)
			}
			p.said = append(p.said, b...)
		case <-limit:
			p.t.Fatalf("the terminal never showed %s:\n%s", pattern, p.said)
		}
	}
}
