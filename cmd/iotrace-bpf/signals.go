package main

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/term"
)

// oneSignal is the time in which a repeated signal counts as one: timeout(1) of the
// GNU coreutils sends its signal to the program and at once again to the whole process
// group, of which the program is part.
const oneSignal = 250 * time.Millisecond

// obeySignals calls end at the first signal. At a second SIGINT or SIGTERM it calls
// exit, which must not wait for anything: an output may be stuck for ever. The kernel
// removes the BPF programs with the process.
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
