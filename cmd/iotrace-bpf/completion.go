package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// choices are the values that a shell offers for a flag.
func choices() map[string][]string {
	return map[string][]string{
		"by":     output.KeyNames(),
		"sort":   output.SortColumns(),
		"source": tracer.SourceNames(),
		"output": {"table", "ndjson"},
		"level":  {string(output.LevelWire), string(output.LevelApp), string(output.LevelBoth)},
	}
}

// runCompletion writes a completion script made from the flags themselves.
func runCompletion(_ context.Context, args []string, stdout, _ io.Writer) error {
	if len(args) != 1 {
		return usagef("completion takes one shell: bash, zsh or fish")
	}
	var write func(io.Writer) error
	switch args[0] {
	case "bash":
		write = completeBash
	case "zsh":
		write = func(w io.Writer) error {
			if _, err := fmt.Fprintln(w, "#compdef iotrace-bpf\nautoload -U +X bashcompinit && bashcompinit"); err != nil {
				return err
			}
			return completeBash(w)
		}
	case "fish":
		write = completeFish
	default:
		return usagef("completion: unknown shell %q: use bash, zsh or fish", args[0])
	}
	return write(stdout)
}

// words returns the commands and the visible flags.
func words() (cmds, flags []string) {
	var o options
	o.flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, "--"+f.Name)
		}
	})
	return slices.Sorted(maps.Keys(commands())), flags
}

func completeBash(w io.Writer) error {
	cmds, flags := words()
	var b strings.Builder
	b.WriteString("_iotrace_bpf() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n\tcase $prev in\n")
	values := choices()
	for _, flag := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&b, "\t--%s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", flag, strings.Join(values[flag], " "))
	}
	b.WriteString("\tesac\n\tif [[ $cur == -* ]]; then\n")
	fmt.Fprintf(&b, "\t\tCOMPREPLY=($(compgen -W %q -- \"$cur\"))\n", strings.Join(flags, " "))
	b.WriteString("\telif ((COMP_CWORD == 1)); then\n")
	fmt.Fprintf(&b, "\t\tCOMPREPLY=($(compgen -W %q -- \"$cur\"))\n", strings.Join(cmds, " "))
	b.WriteString("\tfi\n}\ncomplete -o default -F _iotrace_bpf iotrace-bpf\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func completeFish(w io.Writer) error {
	cmds, _ := words()
	values := choices()
	var b strings.Builder
	fmt.Fprintf(&b, "complete -c iotrace-bpf -n __fish_use_subcommand -f -a %q\n", strings.Join(cmds, " "))
	var o options
	o.flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		fmt.Fprintf(&b, "complete -c iotrace-bpf -l %s -d %q", f.Name, f.Usage)
		if v := values[f.Name]; v != nil {
			fmt.Fprintf(&b, " -x -a %q", strings.Join(v, " "))
		}
		b.WriteString("\n")
	})
	_, err := io.WriteString(w, b.String())
	return err
}
