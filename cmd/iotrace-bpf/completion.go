package main

import (
	"bufio"
	"context"
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// completeCommand is what the completion scripts run, with the words up to the
// cursor. It prints a candidate a line: the word, a tab and a description, or
// filesWanted.
const completeCommand = "__complete"

const filesWanted = ":files"

//go:embed completion
var completionScripts embed.FS

func completionFlags() *flagSet { return bareFlags("completion") }

// runCompletion prints the script for a shell.
func runCompletion(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := completionFlags()
	if err := f.parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return usagef("completion takes one shell: bash, zsh or fish")
	}
	shells := commandOf("completion").args
	if !slices.Contains(shells, f.Arg(0)) {
		return usagef("completion: %w", &output.UnknownError{What: "shell", Word: f.Arg(0), Known: shells})
	}
	script, err := completionScripts.ReadFile("completion/iotrace-bpf." + f.Arg(0))
	if err != nil {
		return err
	}
	_, err = stdout.Write(script)
	return err
}

func runComplete(_ context.Context, args []string, stdout, _ io.Writer) error {
	w := bufio.NewWriter(stdout)
	candidates, files := complete(args)
	for _, c := range candidates {
		fmt.Fprintf(w, "%s\t%s\n", c.word, c.about)
	}
	if files {
		fmt.Fprintln(w, filesWanted)
	}
	return w.Flush()
}

// candidate is a word that may stand at the cursor.
type candidate struct{ word, about string }

// complete returns what can stand in place of the last word, or whether it is
// the name of a file.
func complete(words []string) (candidates []candidate, files bool) {
	if len(words) == 0 {
		words = []string{""}
	}
	word, before := words[len(words)-1], words[:len(words)-1]
	c, rest, err := findCommand(before)
	if err != nil || c.name == completeCommand {
		return nil, false
	}
	if c.flags == nil {
		return nil, false
	}
	flags := c.flags()
	given, arguments, pending := readWords(flags, rest)
	switch {
	case pending != nil:
		candidates, files = flagValues(pending, word)
	case strings.HasPrefix(word, "--") && strings.Contains(word, "="):
		name, value, _ := strings.Cut(word, "=")
		flag := flags.Lookup(name[2:])
		if flag == nil {
			return nil, false
		}
		candidates, files = flagValues(flag, value)
		for i := range candidates {
			candidates[i].word = name + "=" + candidates[i].word
		}
	case strings.HasPrefix(word, "-"):
		for _, flag := range flags.visible() {
			if !given[flag.Name] || isList(flag) {
				_, about := pflag.UnquoteUsage(flag)
				candidates = append(candidates, candidate{"--" + flag.Name, about})
			}
		}
	case len(rest) == 0 || c.name == "help":
		candidates = nextWords(c, arguments)
		files = c.files
	case c.files && len(arguments) == 0:
		files = true
	}
	return slices.DeleteFunc(candidates, func(c candidate) bool { return !strings.HasPrefix(c.word, word) }), files
}

// readWords goes through the words before the cursor: which flags are given,
// what else there is, and the flag whose value comes next.
func readWords(f *flagSet, words []string) (given map[string]bool, arguments []string, pending *pflag.Flag) {
	given = map[string]bool{}
	for _, w := range words {
		if pending != nil {
			pending = nil
			continue
		}
		if !strings.HasPrefix(w, "-") {
			arguments = append(arguments, w)
			continue
		}
		name, _, valued := strings.Cut(strings.TrimLeft(w, "-"), "=")
		if flag := f.Lookup(name); flag != nil {
			given[flag.Name] = true
			if !valued && flag.NoOptDefVal == "" {
				pending = flag
			}
		}
	}
	return given, arguments, pending
}

// nextWords are commands, their commands, shells and topics.
func nextWords(c *command, arguments []string) []candidate {
	var next []candidate
	add := func(prefix string, commands []*command) {
		for _, c := range commands {
			word, ok := strings.CutPrefix(c.name, prefix)
			if ok && word != "" && !strings.Contains(word, " ") && word != completeCommand {
				next = append(next, candidate{word, c.summary})
			}
		}
	}
	switch {
	case c.name == "help" && len(arguments) == 0:
		add("", commands())
		add("", topics())
	case c.name == "help":
		add(strings.Join(arguments, " ")+" ", commands())
	case c.name == "":
		add("", commands())
	case c.name == "completion":
		for _, shell := range c.args {
			next = append(next, candidate{shell, ""})
		}
	default:
		add(c.name+" ", commands())
	}
	return next
}

// flagValues completes the value of a flag.
func flagValues(flag *pflag.Flag, word string) (candidates []candidate, files bool) {
	var values []string
	switch flag.Name {
	case "by", "source":
		values = keyWords("")
		if flag.Name == "source" {
			values = tracer.SourceNames()
		}
		// Values before the last comma stay.
		i := strings.LastIndex(word, ",") + 1
		chosen := strings.Split(word[:i], ",")
		values = slices.DeleteFunc(values, func(v string) bool { return slices.Contains(chosen, v) })
		for j := range values {
			values[j] = word[:i] + values[j]
		}
	case "filter":
		key, _, ok := strings.Cut(word, "=")
		if !ok {
			values = keyWords("=")
			break
		}
		for _, v := range output.KeyValues(output.Key(key)) {
			values = append(values, key+"="+v)
		}
	case "sort":
		values = output.SortColumns()
		if strings.HasPrefix(word, "-") {
			for i := range values {
				values[i] = "-" + values[i]
			}
		}
	case "output":
		values = outputNames
	case "level":
		values = output.LevelNames()
	default:
		switch v := flag.Value.(type) {
		case number:
			values = []string{v.word}
		case duration:
			if v.word != "" {
				values = []string{v.word}
			}
		case size:
			if v.word != "" {
				values = []string{v.word}
			}
		}
		if flag.Value.Type() == "bool" {
			values = []string{"true", "false"}
		}
	}
	for _, v := range values {
		candidates = append(candidates, candidate{word: v})
	}
	name, _ := pflag.UnquoteUsage(flag)
	return slices.DeleteFunc(candidates, func(c candidate) bool { return !strings.HasPrefix(c.word, word) }),
		slices.Contains([]string{"FILE", "DIR", "SOCKET"}, name)
}

// keyWords are the keys of --by; that of a label goes on behind its colon.
func keyWords(end string) []string {
	var words []string
	for _, k := range output.KeyNames() {
		if bare, ok := strings.CutSuffix(k, ":KEY"); ok {
			words = append(words, bare+":")
			continue
		}
		words = append(words, k+end)
	}
	return words
}
