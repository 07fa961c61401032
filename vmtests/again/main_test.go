package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// events is what gotestsum writes of a run in which TestA/one failed and then passed, TestB
// failed twice, and TestC failed and was not run again.
const events = `{"Action":"start","Package":"x/cmd"}
{"Action":"run","Package":"x/cmd","Test":"TestA"}
{"Action":"run","Package":"x/cmd","Test":"TestA/one"}
{"Action":"output","Package":"x/cmd","Test":"TestA/one","Output":"=== RUN   TestA/one\n"}
{"Action":"output","Package":"x/cmd","Test":"TestA/one","Output":"    a_test.go:7: 3 bytes, want 4\n"}
{"Action":"fail","Package":"x/cmd","Test":"TestA/one"}
{"Action":"fail","Package":"x/cmd","Test":"TestA"}
{"Action":"run","Package":"x/cmd","Test":"TestB"}
{"Action":"output","Package":"x/cmd","Test":"TestB","Output":"    b_test.go:9: no answer\n"}
{"Action":"fail","Package":"x/cmd","Test":"TestB"}
{"Action":"run","Package":"x/cmd","Test":"TestC"}
{"Action":"fail","Package":"x/cmd","Test":"TestC"}
{"Action":"pass","Package":"x/cmd","Test":"TestD"}
not of JSON
{"Action":"run","Package":"x/cmd","Test":"TestA"}
{"Action":"run","Package":"x/cmd","Test":"TestA/one"}
{"Action":"pass","Package":"x/cmd","Test":"TestA/one"}
{"Action":"pass","Package":"x/cmd","Test":"TestA"}
{"Action":"run","Package":"x/cmd","Test":"TestB"}
{"Action":"output","Package":"x/cmd","Test":"TestB","Output":"    b_test.go:9: still none\n"}
{"Action":"fail","Package":"x/cmd","Test":"TestB"}
`

func TestAgain(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	history, none := filepath.Join(dir, "history"), filepath.Join(dir, "none")
	integration := write("events", events)
	guests := write("guests", `[{"Test":"TestNFS/6.12","Verdict":"pass","Cause":"read: fail\n`+strings.Repeat(`line\n`, 20)+`"}]`)
	now := time.Date(2026, 11, 30, 20, 0, 0, 0, time.UTC)
	for _, step := range []struct{ events, guests, want string }{
		{none, none, "No test ran a second time.\n"},
		{integration, guests, `3 tests failed at first and ran a second time:
  cmd.TestA/one: then pass
    | a_test.go:7: 3 bytes, want 4
  cmd.TestB: then fail
    | b_test.go:9: no answer
  vmtests.TestNFS/6.12: then pass
    | read: fail
` + strings.Repeat("    | line\n", 11) + "    | (9 more lines in the log)\n"},
		{none, guests, `1 test failed at first and ran a second time:
  vmtests.TestNFS/6.12: then pass
    | read: fail
` + strings.Repeat("    | line\n", 11) + "    | (9 more lines in the log)\n" + "vmtests.TestNFS/6.12 needed a second run in 2 of the last 3 runs: mend it.\n"},
		{none, none, "No test ran a second time.\nvmtests.TestNFS/6.12 needed a second run in 2 of the last 3 runs: mend it.\n"},
		{none, none, "No test ran a second time.\n"},
	} {
		var out strings.Builder
		if err := run(&out, history, step.events, step.guests, now); err != nil {
			t.Fatal(err)
		}
		if out.String() != step.want {
			t.Errorf("it says\n%s\nwant\n%s", out.String(), step.want)
		}
	}
}
