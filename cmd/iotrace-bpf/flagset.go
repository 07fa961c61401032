package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// flagSet holds the flags of one command, in the groups of its help page. Each
// may come from the command line or from the environment.
type flagSet struct {
	*pflag.FlagSet
	command  string // as it is typed: "vxlan list"; "" traces
	groups   []flagGroup
	given    map[string]bool // flags that were on the command line
	warnings []string        // flags that do nothing
}

// flagGroup is a heading of the help page with its flags.
type flagGroup struct {
	heading string
	flags   *pflag.FlagSet
}

func newFlagSet(command string) *flagSet {
	return &flagSet{FlagSet: emptyFlagSet(command), command: command, given: map[string]bool{}}
}

func emptyFlagSet(name string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // exitCode says what is wrong, once
	fs.SortFlags = false
	fs.Usage = func() {}
	return fs
}

// group adds flags under a heading.
func (f *flagSet) group(heading string, define ...func(*pflag.FlagSet)) {
	g := flagGroup{heading, emptyFlagSet(heading)}
	for _, d := range define {
		d(g.flags)
	}
	f.AddFlagSet(g.flags)
	f.groups = append(f.groups, g)
}

// general adds what every command has.
func (f *flagSet) general(define ...func(*pflag.FlagSet)) {
	f.group("Other", append(define, func(fs *pflag.FlagSet) { fs.BoolP("help", "h", false, "show this page") })...)
}

// hide keeps flags that only tests need off the pages.
func hide(fs *pflag.FlagSet, names ...string) {
	for _, name := range names {
		fs.Lookup(name).Hidden = true
	}
}

// visible returns the flags that the command's page shows.
func (f *flagSet) visible() []*pflag.Flag {
	var flags []*pflag.Flag
	f.VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden {
			flags = append(flags, flag)
		}
	})
	return flags
}

// parse reads the command line and then the environment. Errors are usage
// errors or pflag.ErrHelp.
func (f *flagSet) parse(args []string) error {
	err := f.ParseAll(args, func(flag *pflag.Flag, value string) error {
		switch {
		case flag.Name == "help":
			return pflag.ErrHelp
		case f.given[flag.Name] && !isList(flag):
			return usagef("--%s is given twice", flag.Name)
		}
		f.given[flag.Name] = true
		return f.Set(flag.Name, value)
	})
	if err != nil {
		return f.explain(err)
	}
	return f.readEnvironment(os.Environ())
}

// isList tells whether a flag may be repeated.
func isList(flag *pflag.Flag) bool {
	_, ok := flag.Value.(pflag.SliceValue)
	return ok
}

// explain turns an error of pflag's into one for people.
func (f *flagSet) explain(err error) error {
	var usage *usageError
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	var syntax *pflag.InvalidSyntaxError
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return err
	case errors.As(err, &usage):
		return usage
	case errors.As(err, &unknown):
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			return f.unknownFlag("-" + short)
		}
		return f.unknownFlag("--" + unknown.GetSpecifiedName())
	case errors.As(err, &missing):
		return usagef("--%s needs a value", missing.GetFlag().Name)
	case errors.As(err, &invalid):
		return usagef("--%s %q: %w", invalid.GetFlag().Name, invalid.GetValue(), reason(invalid.GetFlag(), invalid.Unwrap()))
	case errors.As(err, &syntax):
		return usagef("%q is not a flag", syntax.GetSpecifiedFlag())
	}
	return &usageError{err: err}
}

// reason says what a value must be. The errors of pflag's own types quote the
// functions of Go that read them.
func reason(flag *pflag.Flag, err error) error {
	switch flag.Value.Type() {
	case "bool":
		return errors.New("must be true or false")
	case "uint32":
		return errors.New("must be a whole number")
	case "stringSlice":
		return errors.New("must be a list with commas; a quotation mark must have its partner")
	}
	return err
}

// unknownFlag says where a flag belongs that this command does not have, or
// which one is meant.
func (f *flagSet) unknownFlag(name string) error {
	long := strings.TrimLeft(name, "-")
	for _, c := range commands() {
		if c.flags == nil || c.name == f.command {
			continue
		}
		if flag := c.flags().Lookup(long); strings.HasPrefix(name, "--") && flag != nil && !flag.Hidden {
			return usagef("%s is not a flag of %s, but of %s", name, describe(f.command), describe(c.name))
		}
	}
	var known []string
	for _, flag := range f.visible() {
		known = append(known, flag.Name)
	}
	return &usageError{fmt.Errorf("unknown flag %q", name), didYouMean("--", long, known)}
}

// describe names a command in a message.
func describe(command string) string {
	if command == "" {
		return "tracing"
	}
	return command
}

const envPrefix = "IOTRACE_"

// envName is the variable that a flag can be set with: IOTRACE_BY for --by.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// foreignVariable tells whether a variable has our prefix and is no flag: the
// credentials, and what the tests of this project use.
func foreignVariable(name string) bool {
	switch name {
	case elastic.EnvAPIKey, elastic.EnvPassword:
		return true
	}
	return strings.HasPrefix(name, envPrefix+"TEST_") || strings.HasPrefix(name, envPrefix+"VM_")
}

// readEnvironment sets the flags that are not on the command line. A variable
// for a flag that only other commands have is not for us; an empty one counts
// as not set.
func (f *flagSet) readEnvironment(environ []string) error {
	environ = slices.DeleteFunc(environ, func(v string) bool { return !strings.HasPrefix(v, envPrefix) })
	if len(environ) == 0 {
		return nil
	}
	slices.Sort(environ) // the order of warnings is the same each time
	flags := envSuffixes()
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		if foreignVariable(name) {
			continue
		}
		bare := strings.TrimPrefix(name, envPrefix)
		if !slices.Contains(flags, bare) {
			warning := fmt.Sprintf("the environment has %s, which no flag belongs to", name)
			if meant := didYouMean(envPrefix, bare, flags); meant != "" {
				warning += " (" + meant + ")"
			}
			f.warnings = append(f.warnings, warning)
			continue
		}
		flag := f.Lookup(strings.ToLower(strings.ReplaceAll(bare, "_", "-")))
		if value == "" || flag == nil || f.given[flag.Name] || flag.Name == "help" || flag.Name == "version" {
			continue
		}
		values := []string{value}
		if flag.Value.Type() == "stringArray" {
			values = strings.Split(strings.TrimSpace(value), "\n")
		}
		for _, value := range values {
			if err := f.Set(flag.Name, value); err != nil {
				var invalid *pflag.InvalidValueError
				if errors.As(err, &invalid) {
					err = reason(flag, invalid.Unwrap())
				}
				return usagef("%s %q: %w", name, value, err)
			}
		}
	}
	return nil
}

// envSuffixes are the flags of all commands, as variables spell them.
func envSuffixes() []string {
	var names []string
	for _, c := range commands() {
		if c.flags != nil {
			c.flags().VisitAll(func(flag *pflag.Flag) { names = append(names, strings.TrimPrefix(envName(flag.Name), envPrefix)) })
		}
	}
	return names
}

// origin names a flag as the user set it: the flag or the variable.
func (f *flagSet) origin(flag string) string {
	if f.Changed(flag) && !f.given[flag] {
		return envName(flag)
	}
	return "--" + flag
}

// needs refuses flags that do nothing without another one. In the environment,
// which may be the same for many runs, they are only warned of.
func (f *flagSet) needs(present bool, without string, flags ...string) error {
	for _, name := range flags {
		if present || !f.Changed(name) {
			continue
		}
		if f.given[name] {
			return usagef("--%s does nothing without %s", name, without)
		}
		f.warnings = append(f.warnings, fmt.Sprintf("%s does nothing without %s", envName(name), without))
	}
	return nil
}

// sayWarnings prints what does nothing.
func (f *flagSet) sayWarnings(w io.Writer) {
	for _, warning := range f.warnings {
		fmt.Fprintf(w, "iotrace-bpf: warning: %s\n", text.Safe(warning))
	}
}
