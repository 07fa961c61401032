package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// pageWidth is how wide a help page may be, in characters.
const pageWidth = 80

// environmentText ends the page of each command that has flags.
const environmentText = `
Environment variables can set each flag: "iotrace-bpf help environment".
`

// page returns the help page of a command.
func (c *command) page() string {
	if c.text != "" {
		return c.text
	}
	var b strings.Builder
	b.WriteString(c.summary + ".\n\nUsage:\n")
	for _, line := range c.usage {
		fmt.Fprintf(&b, "  iotrace-bpf %s\n", line)
	}
	if c.about != "" {
		b.WriteString("\n" + c.about)
	}
	if c.flags != nil {
		for _, g := range c.flags().groups {
			fmt.Fprintf(&b, "\n%s:\n%s", g.heading, g.flags.FlagUsagesWrapped(pageWidth))
		}
	}
	b.WriteString("\nExamples:\n")
	for _, line := range c.examples {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if c.flags != nil && len(c.flags().visible()) > 1 {
		b.WriteString(environmentText)
	}
	if c.exit != "" {
		b.WriteString("\n" + c.exit)
	}
	return b.String()
}

// runHelp shows a page: help, help COMMAND or help TOPIC.
func runHelp(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := helpFlags()
	if err := f.parse(args); err != nil {
		return err
	}
	name := strings.Join(f.Args(), " ")
	var known []string
	for _, c := range append(commands(), topics()...) {
		switch c.name {
		case completeCommand: // has no page
		case name:
			_, err := io.WriteString(stdout, c.page())
			return err
		default:
			known = append(known, c.name)
		}
	}
	known = slices.DeleteFunc(known, func(k string) bool { return k == "" })
	return usagef("help: %w", &output.UnknownError{What: "command or topic", Word: name, Known: known})
}

func helpFlags() *flagSet    { return bareFlags("help") }
func versionFlags() *flagSet { return bareFlags("version") }

// bareFlags are those of a command that needs none.
func bareFlags(command string) *flagSet {
	f := newFlagSet(command)
	f.general()
	return f
}

// version is set by the linker for releases.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func runVersion(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := versionFlags()
	if err := f.parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return usagef("version takes no argument: %q", f.Arg(0))
	}
	return writeVersion(stdout)
}

func writeVersion(w io.Writer) error {
	_, err := fmt.Fprintln(w, "iotrace-bpf", versionText())
	return err
}
