package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the pages in testdata/help")

// TestPages holds each help page against its file, and within a terminal.
func TestPages(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range append(commands(), topics()...) {
		if c.name == completeCommand {
			continue
		}
		name := strings.ReplaceAll(c.name, " ", "-")
		if name == "" {
			name = "iotrace-bpf"
		}
		t.Run(name, func(t *testing.T) {
			got := runLine(t, append([]string{"help"}, strings.Fields(c.name)...)...)
			if got.code != exitOK || got.stderr != "" {
				t.Fatalf("exit code %d: %s", got.code, got.stderr)
			}
			file := filepath.Join("testdata", "help", name+".txt")
			seen[filepath.Base(file)] = true
			if *update {
				if err := os.WriteFile(file, []byte(got.stdout), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got.stdout != string(want) {
				t.Errorf("the page is not %s (-update writes it):\n%s", file, got.stdout)
			}
			for line := range strings.Lines(got.stdout) {
				if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > pageWidth {
					t.Errorf("a line of %d characters: %q", n, line)
				}
			}
			// The same page by the flag, wherever it stands.
			if c.run == nil {
				return
			}
			for _, help := range []string{"--help", "-h"} {
				if by := runLine(t, append(strings.Fields(c.name), help)...); by != got {
					t.Errorf("%s shows %+v", help, by)
				}
			}
			if c.text == "" && len(c.examples) != 2 {
				t.Errorf("%d examples, want 2", len(c.examples))
			}
		})
	}
	files, err := filepath.Glob(filepath.Join("testdata", "help", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[filepath.Base(f)] {
			t.Errorf("%s is no page's", f)
		}
	}
}

// TestMainPage: one screen, with flags and commands that exist.
func TestMainPage(t *testing.T) {
	if n := strings.Count(mainPage, "\n"); n > 40 {
		t.Errorf("%d lines", n)
	}
	flags := newOptions().traceFlags()
	_, list, _ := strings.Cut(mainPage, "\nFlags (")
	list, rest, _ := strings.Cut(list, "\nCommands (")
	n := 0
	for line := range strings.Lines(list) {
		word, ok := strings.CutPrefix(line, "  --")
		if !ok {
			continue
		}
		n++
		name, _, _ := strings.Cut(word, " ")
		if flags.Lookup(name) == nil {
			t.Errorf("there is no --%s", name)
		}
	}
	if n != 10 {
		t.Errorf("%d flags, want the ten of an incident", n)
	}
	for _, name := range commandNames() {
		if !strings.Contains(rest, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestExamples: each example on a page is a command line that the program takes.
func TestExamples(t *testing.T) {
	for _, c := range append(commands(), topics()...) {
		for line := range strings.Lines(c.page()) {
			words, ok := strings.CutPrefix(strings.TrimSpace(line), "iotrace-bpf ")
			if !ok || strings.ContainsAny(words, "[<") || strings.HasPrefix(words, "completion bash|") || strings.Contains(words, "COMMAND") || strings.HasPrefix(words, "version, help") {
				continue
			}
			words, _, _ = strings.Cut(words, "   ") // what it does
			words, _, _ = strings.Cut(words, "  ")
			words, _, _ = strings.Cut(words, "|")
			words, _, _ = strings.Cut(words, ">")
			if got := runLine(t, append(strings.Fields(words), "--help")...); got.code != exitOK {
				t.Errorf("%s: exit code %d: %s", line, got.code, got.stderr)
			}
			if c.name == "" || c.name == "flags" {
				if err := new(options).parse(strings.Fields(words)); err != nil {
					t.Errorf("%s: %v", line, err)
				}
			}
		}
	}
}

func TestVersion(t *testing.T) {
	want := "iotrace-bpf " + versionText() + "\n"
	for _, args := range [][]string{{"version"}, {"--version"}, {"-V"}, {"--by", "project", "-V"}} {
		if got := runLine(t, args...); got.code != exitOK || got.stdout != want || got.stderr != "" {
			t.Errorf("%q: %+v", args, got)
		}
	}
}
