package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
)

func TestHostsFlags(t *testing.T) {
	for _, c := range []struct{ args, want, hint string }{
		{"--hosts -oProxyCommand=x", "not the name of a host", ""},
		{"--hosts a,,b", "not the name of a host", ""},
		{"--hosts a,b,a", "a is there twice", ""},
		{"--hosts a --record x.rec", "--record does not go with --hosts", "replay"},
		{"--hosts a --elasticsearch http://localhost:9200", "--elasticsearch does not go with --hosts", "each host ships itself"},
		{"--hosts a --otlp http://localhost:4318", "--otlp does not go with --hosts", "each host ships itself"},
		{"--hosts a --prometheus 9100", "--prometheus does not go with --hosts", "each host ships itself"},
		{"--hosts a --events --output ndjson", "--events does not go with --hosts", "--events there"},
		{"--ssh-config x", "--ssh-config does nothing without --hosts", ""},
		{"--record - --output ndjson", "leave out --output", ""},
	} {
		var o options
		err := o.parse(strings.Fields(c.args))
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) || !strings.Contains(usage.hint, c.hint) {
			t.Errorf("%s: %v, want %q with hint %q", c.args, err, c.want, c.hint)
		}
	}
}

// TestRemoteCommand lets a shell read the command: each flag is one word there.
func TestRemoteCommand(t *testing.T) {
	var o options
	if err := o.parse([]string{"--hosts", "a", "--hosts-command", `printf '%s\n'`, "--source", "block,nfs", "--level", "both", "--latency=false",
		"--docker-host", "unix:///it's a; $(touch x) `y` \"z\"", "--docker-host", "b", "--by", "project", "2"}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", o.remoteCommand()).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "--record\n-\n--end-with-stdin\n--interval\n2s\n--source=block\n--source=nfs\n--level=both\n--latency=false\n" +
		"--docker-host=unix:///it's a; $(touch x) `y` \"z\"\n--docker-host=b\n"
	if string(out) != want {
		t.Errorf("%q\nwant\n%q", out, want)
	}
}

// TestHostLines: what a host says is cleaned, cut and limited.
func TestHostLines(t *testing.T) {
	var b bytes.Buffer
	l := &hostLines{name: "web1", log: slog.New(slog.NewTextHandler(&b, nil))}
	for range 1000 {
		if _, err := l.Write([]byte("\x1b[2Jhello\x07 " + strings.Repeat("x", 10_000) + "\r\n\n")); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.String(), "\n"); n != maxHostLines+1 {
		t.Errorf("%d lines", n)
	}
	if b.Len() > 2*maxHostLines*maxHostLine || strings.ContainsAny(b.String(), "\x1b\x07") || !strings.Contains(b.String(), "host=web1") {
		t.Errorf("%d bytes: %.500q", b.Len(), b.String())
	}
	if _, err := l.Write([]byte("no end of line")); err != nil {
		t.Fatal(err)
	}
	if got := l.last(); got != "no end of line" {
		t.Errorf("last line %q", got)
	}
}
