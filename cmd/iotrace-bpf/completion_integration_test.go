//go:build integration

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// shell is an interactive one in a terminal.
type shell struct {
	t      *testing.T
	socket string
}

func startShell(t *testing.T, dir string, command ...string) *shell {
	t.Helper()
	s := &shell{t, filepath.Join(t.TempDir(), "tmux")}
	args := []string{"-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "30", "-c", dir, "env", "-i",
		"PATH=" + filepath.Dir(binary(t)) + ":" + os.Getenv("PATH"), "HOME=" + dir, "TERM=screen", "LANG=C.UTF-8"}
	s.tmux(append(args, command...)...)
	t.Cleanup(func() { s.tmux("kill-server") })
	return s
}

func (s *shell) tmux(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", s.socket}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (s *shell) screen() string { return s.tmux("capture-pane", "-p", "-J") }

// until types keys and waits for a text.
func (s *shell) until(want string, keys ...string) {
	s.t.Helper()
	for _, k := range keys {
		if k == "Tab" || k == "Enter" || strings.HasPrefix(k, "C-") {
			s.tmux("send-keys", k)
			continue
		}
		s.tmux("send-keys", "-l", k)
	}
	defer func() {
		if s.t.Failed() {
			s.t.Logf("the screen:\n%s", s.screen())
		}
	}()
	enginetest.Poll(s.t, 20*time.Second, "the screen shows "+want, func() bool { return strings.Contains(s.screen(), want) })
}

// clear drops the line and waits for an empty screen: what is typed while a shell is
// interrupted would get lost.
func (s *shell) clear() {
	s.t.Helper()
	defer func() {
		if s.t.Failed() {
			s.t.Logf("the screen:\n%s", s.screen())
		}
	}()
	s.tmux("send-keys", "C-c")
	enginetest.Poll(s.t, 20*time.Second, "a new prompt", func() bool {
		return slices.ContainsFunc(strings.Split(s.screen(), "\n"), func(line string) bool { return strings.TrimSpace(line) == ">" })
	})
	s.tmux("send-keys", "C-l")
	enginetest.Poll(s.t, 20*time.Second, "an empty screen", func() bool { return strings.TrimSpace(s.screen()) == ">" })
}

// TestCompletionInShells presses the tabulator in real shells.
func TestCompletionInShells(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, dir string) *shell{
		"bash": func(t *testing.T, dir string) *shell {
			s := startShell(t, dir, "bash", "--norc", "--noprofile")
			s.until("ready-1", "PS1='> '; source <(iotrace-bpf completion bash); echo ready-$((0+1))", "Enter")
			return s
		},
		"zsh": func(t *testing.T, dir string) *shell {
			// As a package installs it.
			if err := os.WriteFile(filepath.Join(dir, "_iotrace-bpf"), []byte(mustRun(t, binary(t), "completion", "zsh")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s := startShell(t, dir, "zsh", "-f")
			s.until("ready-1", "PS1='> '; fpath=("+dir+" $fpath); autoload -U compinit; compinit -u -D; echo ready-$((0+1))", "Enter")
			return s
		},
		"fish": func(t *testing.T, dir string) *shell {
			s := startShell(t, dir, "fish", "--no-config")
			s.until("ready-1", "function fish_prompt; echo '> '; end; iotrace-bpf completion fish | source; echo ready-(math 0+1)", "Enter")
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "recording-of-monday"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s := start(t, dir)
			for typed, want := range map[string]string{
				"iotrace-bpf elas":                      "iotrace-bpf elasticsearch X",
				"iotrace-bpf vxlan cl":                  "iotrace-bpf vxlan clean X",
				"iotrace-bpf elasticsearch s":           "iotrace-bpf elasticsearch setup X",
				"iotrace-bpf help vxlan w":              "iotrace-bpf help vxlan watch X",
				"iotrace-bpf check --sou":               "iotrace-bpf check --source X",
				"iotrace-bpf --by project,dev":          "iotrace-bpf --by project,device X",
				"iotrace-bpf --by=project,dev":          "iotrace-bpf --by=project,device X",
				"iotrace-bpf --by lab":                  "iotrace-bpf --by label:X",
				"iotrace-bpf --filter proj":             "iotrace-bpf --filter project=X",
				"iotrace-bpf --filter source=bl":        "iotrace-bpf --filter source=block X",
				"iotrace-bpf replay recording-o":        "iotrace-bpf replay recording-of-monday X",
				"iotrace-bpf --by project --report rec": "iotrace-bpf --by project --report recording-of-monday X",
			} {
				s.until(typed, typed)
				s.until(want, "Tab", "X") // X shows whether a space was added
				s.clear()
			}
			if name == "bash" {
				s.until("elasticsearch", "iotrace-bpf ", "Tab", "Tab")
				return
			}
			s.until("after a question", "iotrace-bpf vxlan ", "Tab", "Tab")
		})
	}
}
