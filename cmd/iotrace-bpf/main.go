// Iotrace-bpf shows which container, service or project generates the I/O load
// of a host: on block devices, NFS and FUSE, with writeback booked on whoever
// dirtied the pages. See usage.go, or iotrace-bpf help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
	"github.com/spf13/pflag"
)

// Exit codes, as the usage text has them.
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// commands are the words that may stand first on the command line; without one
// of them it traces.
func commands() map[string]command {
	return map[string]command{
		"check":         runCheck,
		"version":       runVersion,
		"help":          runHelp,
		"completion":    runCompletion,
		"replay":        runReplay,
		"vxlan":         runVXLAN,
		"elasticsearch": runElasticsearch,
	}
}

// command runs one of the commands.
type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var f command = runTrace
	if len(args) > 0 {
		if c, ok := commands()[args[0]]; ok {
			f, args = c, args[1:]
		}
	}
	return exitCode(f(ctx, args, stdout, stderr), stdout, stderr)
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// exitError carries a code of its own.
type exitError struct {
	code int
	err  error // nil: everything was said already
}

func (e *exitError) Error() string { return fmt.Sprint(e.err) }
func (e *exitError) Unwrap() error { return e.err }

// exitCode tells the user how it ended: one line, and a hint where there is one.
func exitCode(err error, stdout, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Fprint(stdout, usage())
		return exitOK
	}
	say := func(hint string) {
		fmt.Fprintf(stderr, "iotrace-bpf: %s\n", text.Safe(err.Error()))
		if hint != "" {
			fmt.Fprintf(stderr, "hint: %s\n", hint)
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
		say("iotrace-bpf help shows the flags")
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
