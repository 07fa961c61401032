package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// TestUsageErrors: one clear line, a hint, exit code 2, nothing on standard
// output, and nothing attached.
func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string // in the first line
	}{
		{"--by nonsense", `unknown key "nonsense"`},
		{"--by label:", "label"},
		{"--interval 0", "too short"},
		{"--interval 0s", "interval 0s is too short"},
		{"0", "too short"},
		{"nonsense", "neither a command nor an interval"},
		{"1 0", "count"},
		{"1 2 3", `unexpected argument "3"`},
		{"--count -1", "negative"},
		{"--duration -1s", "negative"},
		{"--sort nonsense", "nonsense"},
		{"--filter nonsense", "filter"},
		{"--filter nonsense=x", "nonsense"},
		{"--output xml", `unknown output "xml"`},
		{"--source floppy", `unknown source "floppy"`},
		{"--events", "--events needs --output ndjson"},
		{"--nonsense", "unknown flag: --nonsense"},
		{"--max-groups 0", "--max-groups"},
		{"--event-buffer 5000", "power of two"},
		{"--level deep", "deep"},
		{"completion", "bash"},
		{"completion tcsh", `"tcsh"`},
		{"version now", `"now"`},
		{"help me", `"me"`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), strings.Fields(tt.args), &stdout, &stderr)
			line, rest, _ := strings.Cut(stderr.String(), "\n")
			if code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			if !strings.HasPrefix(line, "iotrace-bpf: ") || !strings.Contains(line, tt.want) {
				t.Errorf("standard error %q does not say %q", line, tt.want)
			}
			if strings.Count(rest, "\n") != 1 || !strings.HasPrefix(rest, "hint: ") {
				t.Errorf("after the first line: %q, want one hint", rest)
			}
			if stdout.Len() != 0 {
				t.Errorf("standard output: %q", stdout.String())
			}
		})
	}
}

// TestHelp: help goes to standard output, names every visible flag and fits a
// terminal.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"check", "--help"}} {
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), args, &stdout, &stderr); code != exitOK {
			t.Errorf("%v: exit code %d: %s", args, code, stderr.String())
		}
		_, flags := words()
		for _, f := range flags {
			if !strings.Contains(stdout.String(), f) {
				t.Errorf("%v: %s is missing", args, f)
			}
		}
		for line := range strings.Lines(stdout.String()) {
			if n := len(strings.TrimRight(line, "\n")); n > 100 {
				t.Errorf("%v: a line of %d characters: %q", args, n, line)
			}
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), []string{"completion", shell}, &stdout, &stderr); code != exitOK {
			t.Fatalf("%s: exit code %d: %s", shell, code, stderr.String())
		}
		for _, want := range []string{"check", "project", "ndjson"} {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: %q is missing", shell, want)
			}
		}
	}
}
