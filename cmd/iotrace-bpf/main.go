// Iotrace-bpf shows which container, service or project generates the I/O load
// of a host: on block devices, NFS, FUSE, SMB, 9p and CephFS. Writeback counts for the cgroup that
// made the pages dirty. See commands.go, or iotrace-bpf help.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// Exit codes, as the help has them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnsupported = 3
)

func main() {
	// A reader that goes away is an error like any other: it must not kill us
	// before we have detached.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	tty, _ := term.GetState(int(os.Stdin.Fd())) // nil: no terminal
	go obeySignals(signals, stop, func(s syscall.Signal) {
		if tty != nil {
			leaveScreen(tty)
		}
		detachNow()
		os.Exit(128 + int(s)) // as a shell has it
	})
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	// An output that hangs in the kernel may keep this process, and with it the pipe: its
	// reader gets the end of it now.
	os.Stdout.Close()
	os.Exit(code)
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, args, err := findCommand(args)
	if err == nil {
		err = c.run(ctx, args, stdout, stderr)
	}
	if errors.Is(err, pflag.ErrHelp) {
		_, err = io.WriteString(stdout, c.page())
	}
	var usage *usageError
	if c != nil && c.name != "" && errors.As(err, &usage) && usage.hint == "" && meantWord(err) == "" {
		usage.hint = "iotrace-bpf help " + c.name + " shows its flags"
	}
	return exitCode(err, stderr)
}

// usageError is a mistake on the command line.
type usageError struct {
	err  error
	hint string // "" points to the help
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// exitError carries a code of its own.
type exitError struct {
	code int
	err  error // nil: everything was said already
}

func (e *exitError) Error() string { return fmt.Sprint(e.err) }
func (e *exitError) Unwrap() error { return e.err }

// exitCode tells the user how it ended: one line, and a hint where there is one.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	say := func(hint string) {
		fmt.Fprintf(stderr, "iotrace-bpf: %s\n", text.Safe(err.Error()))
		if hint != "" {
			fmt.Fprintf(stderr, "hint: %s\n", text.Safe(hint))
		}
	}
	var usage *usageError
	var unsupported *tracer.UnsupportedError
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		if exit.err != nil {
			say("")
		}
		return exit.code
	case errors.As(err, &usage):
		say(cmp.Or(usage.hint, meantWord(err), "iotrace-bpf help shows commands and flags"))
		return exitUsage
	case errors.As(err, &unsupported):
		say(unsupported.Hint)
		return exitUnsupported
	case errors.Is(err, tracer.ErrAbsent):
		say("iotrace-bpf check shows what this host offers")
		return exitUnsupported
	case errors.Is(err, syscall.EPIPE):
		fmt.Fprintln(stderr, "iotrace-bpf: standard output was closed by its reader")
		return exitFailed
	}
	say("")
	return exitFailed
}

// meantWord suggests a word for one that is not of a fixed set.
func meantWord(err error) string {
	var unknown *output.UnknownError
	if !errors.As(err, &unknown) {
		return ""
	}
	return didYouMean("", unknown.Word, unknown.Known)
}
