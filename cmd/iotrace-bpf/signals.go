package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// oneSignal is the time in which a repeated signal counts as one: timeout(1) of the
// GNU coreutils sends its signal to the program and at once again to the whole process
// group, of which the program is part.
const oneSignal = 250 * time.Millisecond

// obeySignals calls end at the first signal. At a second SIGINT or SIGTERM it calls
// exit, which must not wait for anything: an output may be stuck for ever.
func obeySignals(signals <-chan os.Signal, end func(), exit func(syscall.Signal)) {
	var first os.Signal
	var at time.Time
	for s := range signals {
		switch {
		case first == nil:
			first, at = s, time.Now()
			end()
		case s == syscall.SIGHUP || s == first && time.Since(at) < oneSignal:
		default:
			exit(s.(syscall.Signal))
		}
	}
}

// detachNow closes BPF programs and what attaches them, and waits for that a moment at most. The
// kernel does so at the end of a process, but that may not come: a thread that writes to
// a frozen file system sleeps until that thaws, and no signal wakes it.
func detachNow() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		list, _ := os.ReadDir("/proc/self/fd")
		for _, e := range list {
			what, _ := os.Readlink("/proc/self/fd/" + e.Name())
			if strings.HasPrefix(what, "anon_inode:bpf") || what == "anon_inode:[perf_event]" {
				if fd, err := strconv.Atoi(e.Name()); err == nil {
					_ = unix.Close(fd)
				}
			}
		}
	}()
	select {
	case <-closed:
	case <-time.After(time.Second):
	}
}

// leaveScreen gives the terminal back as it was. It waits a moment at most: the
// terminal may be what is stuck.
func leaveScreen(before *term.State) {
	_ = term.Restore(int(os.Stdin.Fd()), before)
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		// No mouse, no bracketed paste, the normal screen, a cursor: xterm, ctlseqs.
		_, _ = os.Stdout.WriteString("\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1049l\x1b[?25h\x1b[m\r\n")
	}()
	select {
	case <-written:
	case <-time.After(100 * time.Millisecond):
	}
}
