package main

import (
	"slices"
	"strings"
	"testing"
)

// TestComplete: what may follow, by the words before the cursor. The last word
// is the one at the cursor.
func TestComplete(t *testing.T) {
	const everything = "*"
	for _, tt := range []struct {
		line  string // a trailing space: nothing is typed of the last word
		want  string // words, or everything
		files bool
	}{
		{"", "check replay vxlan elasticsearch launch completion version help", false},
		{"ch", "check", false},
		{"--by project ch", "", false},
		{"vxlan ", "list watch clean", false},
		{"vxlan w", "watch", false},
		{"vxlan list ", "", false},
		{"elasticsearch ", "setup", false},
		{"completion ", "bash zsh fish", false},
		{"help ", "check replay vxlan elasticsearch launch completion version help flags totals environment", false},
		{"help vxlan ", "list watch clean", false},
		{"replay ", "", true},
		{"replay --by project ", "", true},
		{"replay FILE ", "", false},
		{"--by pr", "project process", false},
		{"--by project,", everything, false},
		{"--by project,de", "project,device", false},
		{"--by project,pro", "project,process", false},
		{"--by=project,de", "--by=project,device", false},
		{"--by la", "label:", false},
		{"--filter pro", "project= process=", false},
		{"--filter source=", "source=block source=nfs source=fuse source=smb source=9p source=ceph source=nfsd", false},
		{"--filter op=w", "op=write", false},
		{"--filter project=", "", false},
		{"--source ", "block nfs fuse smb 9p ceph nfsd", false},
		{"--source nfs,", "nfs,block nfs,fuse nfs,smb nfs,9p nfs,ceph nfs,nfsd", false},
		{"--sort -l", "-latency", false},
		{"--output ", "table ndjson", false},
		{"vxlan watch --output ", "table ndjson", false},
		{"--level ", "wire app both", false},
		{"--top ", "all", false},
		{"--record-size ", "never", false},
		{"--latency=", "--latency=true --latency=false", false},
		{"--record ", "", true},
		{"--record=x", "", true},
		{"--docker-host ", "", true},
		{"--max-g", "--max-groups", false},
		{"--by project --b", "", false},
		{"--filter op=read --fil", "--filter", false},
		{"check --b", "", false},
		{"check --so", "--source", false},
		{"replay --docker", "", false},
		{"vxlan clean --y", "--yes", false},
		{"vxlan list --y", "", false},
		{"elasticsearch setup --ret", "--retention-days", false},
		{"--ready", "", false},
		{"--nonsense x ", "", false},
		{"nonsense ", "", false},
	} {
		got := runLine(t, append([]string{completeCommand}, strings.Split(tt.line, " ")...)...)
		var words []string
		files := false
		for line := range strings.Lines(got.stdout) {
			word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			if files = files || word == filesWanted; word != filesWanted {
				words = append(words, word)
			}
		}
		if tt.want == everything {
			if len(words) < 10 {
				t.Errorf("%q: %q", tt.line, words)
			}
			continue
		}
		if got.code != exitOK || !slices.Equal(words, strings.Fields(tt.want)) || files != tt.files {
			t.Errorf("%q: exit code %d, %q, files %v; want %q, %v", tt.line, got.code, words, files, tt.want, tt.files)
		}
	}
}

// TestDescriptions: commands and flags say what they do.
func TestDescriptions(t *testing.T) {
	for _, words := range [][]string{{""}, {"--"}, {"vxlan", ""}, {"help", ""}, {"vxlan", "clean", "--"}} {
		candidates, _ := complete(words)
		for _, c := range candidates {
			if c.about == "" {
				t.Errorf("%q: %s has no description", words, c.word)
			}
		}
		if len(candidates) == 0 {
			t.Errorf("%q: no candidates", words)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		got := runLine(t, "completion", shell)
		if got.code != exitOK || !strings.Contains(got.stdout, completeCommand) || strings.Contains(got.stdout, "bashcompinit") {
			t.Errorf("%s: %+v", shell, got)
		}
	}
}
