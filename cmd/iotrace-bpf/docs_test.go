package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var tree = filepath.Join("..", "..")

// block is a fenced block of a document that holds commands.
type block struct {
	file   string
	kind   string // sh or console
	lines  []string
	number int // of the line that opens it
}

// blocks returns the fenced sh and console blocks of a document in the root of the tree.
func blocks(t *testing.T, file string) (found []block) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tree, file))
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "```") && inside:
			inside = false
		case strings.HasPrefix(line, "```"):
			inside = true
			found = append(found, block{file: file, kind: strings.TrimPrefix(line, "```"), number: i + 1})
		case inside:
			b := &found[len(found)-1]
			b.lines = append(b.lines, line)
		}
	}
	kept := found[:0]
	for _, b := range found {
		if b.kind == "sh" || b.kind == "console" {
			kept = append(kept, b)
		}
	}
	return kept
}

// commands returns the commands of a block without prompt, sudo and comment, and
// below each of them the output that the document shows.
func (b block) commands() (cmds []documented) {
	for _, line := range b.lines {
		text, prompt := strings.CutPrefix(line, "$ ")
		if b.kind == "console" && !prompt {
			if len(cmds) > 0 {
				c := &cmds[len(cmds)-1]
				c.output = append(c.output, line)
			}
			continue
		}
		text, _, _ = strings.Cut(text, " #")
		text = strings.TrimPrefix(strings.TrimSpace(text), "sudo ")
		if text != "" {
			cmds = append(cmds, documented{text: text})
		}
	}
	return cmds
}

type documented struct {
	text   string
	output []string
}

// TestReadmeIsShort: somebody in an incident reads it.
func TestReadmeIsShort(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(tree, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte("\n")); n > 190 {
		t.Errorf("README.md has %d lines, want at most 190", n)
	}
	first, _, _ := strings.Cut(string(text), "\n## ")
	for _, want := range []string{"docs/screen.png", "make run", "root"} {
		if !strings.Contains(first, want) {
			t.Errorf("the first screen of README.md does not show %q", want)
		}
	}
}

// TestReadmeOutput: the tables of README.md are what a replay of the committed
// recording prints, in one of its intervals.
func TestReadmeOutput(t *testing.T) {
	recording := filepath.Join(tree, "docs", "incident.rec")
	n := 0
	for _, b := range blocks(t, "README.md") {
		for _, c := range b.commands() {
			if len(c.output) == 0 {
				continue
			}
			n++
			args, ok := strings.CutPrefix(c.text, "./iotrace-bpf ")
			if !ok {
				t.Errorf("README.md:%d: %q has an output and is not iotrace-bpf", b.number, c.text)
				continue
			}
			var stdout, stderr bytes.Buffer
			if code := run(context.Background(), append([]string{"replay", recording}, strings.Fields(args)...), &stdout, &stderr); code != exitOK {
				t.Errorf("README.md:%d: %q on the recording: exit code %d: %s", b.number, c.text, code, stderr.String())
				continue
			}
			if !holds(stdout.String(), c.output) {
				t.Errorf("README.md:%d: no interval of the recording gives what is shown below %q", b.number, c.text)
			}
		}
	}
	if n < 3 {
		t.Errorf("README.md shows the output of %d commands, want that of the incident", n)
	}
}

// holds tells whether one of the tables has all of the lines.
func holds(tables string, lines []string) bool {
	for _, table := range strings.Split(tables, "\n\n") {
		all := true
		for _, line := range lines {
			all = all && strings.Contains("\n"+table+"\n", "\n"+line+"\n")
		}
		if all {
			return true
		}
	}
	return false
}

var (
	link    = regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	anchor  = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// TestLinks: each relative link of each document leads to a file, and to a heading
// where it names one.
func TestLinks(t *testing.T) {
	n := 0
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "build" || strings.HasPrefix(d.Name(), ".") && path != tree) {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target, fragment := m[1], strings.TrimPrefix(m[2], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			n++
			to := path
			if target != "" {
				to = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: link to %s: %v", path, target, err)
			} else if fragment != "" && !hasHeading(t, to, fragment) {
				t.Errorf("%s: link to %s: no heading %q", path, target, fragment)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 10 {
		t.Errorf("%d links were found", n)
	}
}

// hasHeading tells whether a document has a heading that GitHub gives this anchor.
func hasHeading(t *testing.T, path, fragment string) bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range heading.FindAllStringSubmatch(string(text), -1) {
		if strings.ReplaceAll(anchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-") == fragment {
			return true
		}
	}
	return false
}
