//go:build integration

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDocumentedCommands runs each command of the documents: those of iotrace-bpf
// with the built program, in the order and in the directory in which a reader would,
// but for less long; those of make only as far as make plans them.
func TestDocumentedCommands(t *testing.T) {
	for _, file := range []string{"README.md", "CONTRIBUTING.md"} {
		dir := t.TempDir()
		for _, link := range [][2]string{{binary(t), "iotrace-bpf"}, {mustAbs(t, filepath.Join(tree, "docs")), "docs"}} {
			if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for _, b := range blocks(t, file) {
			for _, c := range b.commands() {
				n++
				t.Run(file+" "+c.text, func(t *testing.T) { runDocumented(t, dir, c.text) })
			}
		}
		if n == 0 {
			t.Errorf("%s has no commands", file)
		}
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func runDocumented(t *testing.T, dir, text string) {
	words := strings.Fields(text)
	switch words[0] {
	case "make":
		mustRun(t, "make", append([]string{"-C", tree, "-n"}, words[1:]...)...)
		return
	case "./iotrace-bpf":
	default:
		t.Fatalf("neither make nor ./iotrace-bpf: %q", text)
	}
	// A live run goes on until Ctrl-C, or for the intervals that it is given: two
	// short ones do.
	sub := ""
	if len(words) > 1 && !strings.HasPrefix(words[1], "-") {
		sub = words[1]
	}
	if sub == "" {
		text = strings.TrimSuffix(text, " 1 60") + " 0.2 2"
	}
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+text)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	endless := strings.HasPrefix(text, "./iotrace-bpf vxlan watch")
	ready := filepath.Join(t.TempDir(), "ready")
	if endless {
		cmd.Args[2] += " --ready-file " + ready
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if endless {
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(ready); err == nil {
				break
			}
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	err := cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); err != nil && !(sub == "vxlan" && code == exitLeaked) {
		t.Errorf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	if (sub == "" || sub == "replay") && !strings.Contains(stdout.String(), "TOTAL") {
		t.Errorf("no table:\n%s%s", stdout.String(), stderr.String())
	}
}

// TestManual makes the manual page. Each flag that README and SECURITY name is in it.
func TestManual(t *testing.T) {
	mustRun(t, "make", "-C", tree, "man")
	page, err := os.ReadFile(filepath.Join(tree, "build", "iotrace-bpf.1"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(page), `\-`, "-")
	if strings.Contains(text, "@OPTIONS@") || strings.Count(text, "\n.TP\n") < 40 {
		t.Errorf("the manual page has no flags:\n%s", text)
	}
	for _, file := range []string{"README.md", "SECURITY.md"} {
		document, err := os.ReadFile(filepath.Join(tree, file))
		if err != nil {
			t.Fatal(err)
		}
		own := regexp.MustCompile("\\bdocker run [^`\n]*").ReplaceAllString(string(document), "") // those flags are Docker's
		for _, flag := range regexp.MustCompile(`--[a-z][a-z-]+`).FindAllString(own, -1) {
			if !regexp.MustCompile(regexp.QuoteMeta(flag) + `\b[^-]`).MatchString(text) {
				t.Errorf("%s names %s, which is not in the manual page", file, flag)
			}
		}
	}
}
