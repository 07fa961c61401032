//go:build vm

package vmtests

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// badGuests is a suite of everything that must never pass.
func badGuests() suite {
	return suite{
		noTracer: true,
		scenarios: []scenario{
			{name: "fails", run: func(g *guest.Guest) { g.Error("as it should") }},
			{name: "skips", run: func(g *guest.Guest) { g.Skip("as no scenario may") }},
			{name: "exits", run: func(g *guest.Guest) { os.Exit(0) }},
			{name: "panics", run: func(g *guest.Guest) { panic("as it should") }},
			// Its own timeout cannot end it, because the process is stopped. That may take a
			// moment: another thread may have to take the signal.
			{name: "hangs", run: func(g *guest.Guest) { _ = unix.Kill(os.Getpid(), unix.SIGSTOP); time.Sleep(time.Hour) }},
			{name: "powers_off", run: func(g *guest.Guest) { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }},
			{name: "oopses", run: func(g *guest.Guest) { g.WriteFile("/proc/sysrq-trigger", "c") }},
			{name: "warns", run: func(g *guest.Guest) {
				g.WriteFile("/dev/kmsg", "<4>WARNING: CPU: 0 PID: 1 at kernel/bpf/none.c:1 none+0x0/0x10")
			}},
		},
	}
}

// TestVerdict breaks guests in every way that guests break, and proves that none of
// them counts as passed.
func TestVerdict(t *testing.T) {
	s := badGuests()
	if guest.Inside() {
		s.test(t)
		return
	}
	if *flagSupport {
		t.Skip("boots guests")
	}
	t.Parallel()
	kernels, err := selected()
	if err != nil {
		t.Fatal(err)
	}
	k := kernels[len(kernels)/2]
	k.Smoke = false
	for _, tt := range []struct {
		name, scenario, problem string
		quick                   bool
	}{
		{"fails", "fail", "", true},
		{"skips", "skip", "", false},
		{"exits", "never ended", "", false},
		{"panics", "fail", "", false},
		{"hangs", "never ended", "killed at its deadline", true},
		{"powers_off", "", "never reported the end", false},
		{"oopses", "", "Kernel panic", true},
		{"warns", "", "the kernel complained", true},
		{"not_there", "did not run", "", false},
		{"never_boots", "did not run", "never began to report", true},
	} {
		if *flagQuick && !tt.quick {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			s := s
			switch tt.name {
			case "hangs":
				s.deadline = 15 * time.Second // the test waits for all of it
			case "never_boots":
				s.bootLimit = 100 * time.Millisecond
			}
			run := s.run
			if tt.name == "fails" { // it is rerun
				run = func(ctx context.Context, test string, k Kernel, names []string) (*outcome, error) {
					asked := 0
					o, err := s.runWithRerun(ctx, test, k, names, func(failures []string) bool {
						asked++
						return strings.Contains(strings.Join(failures, "\n"), "as it should")
					})
					if asked != 1 || err == nil && !strings.Contains(strings.Join(o.log, "\n"), "fails: fail") {
						t.Errorf("asked %d times whether to rerun it; log %q", asked, o.log)
					}
					return o, err
				}
			}
			o, err := run(t.Context(), "TestVerdict", k, []string{tt.name})
			if err != nil {
				t.Fatal(err)
			}
			v, problems := o.verdict(tt.name), strings.Join(o.problems, "\n")
			if v == "" && problems == "" {
				t.Fatalf("guest passed\n%s", lastLines(o.console, 30))
			}
			if !strings.Contains(v, tt.scenario) || !strings.Contains(problems, tt.problem) {
				t.Errorf("scenario: %q, problems: %q; want %q and %q", v, problems, tt.scenario, tt.problem)
			}
		})
	}
}

// TestParseGuest parses the streams that a dying guest may leave.
func TestParseGuest(t *testing.T) {
	const run = "\x16=== RUN   TestX\n\x16=== RUN   TestX/a\n"
	const pass = "    \x16--- PASS: TestX/a (0.10s)\n"
	const end = "\x16--- PASS: TestX (0.10s)\n"
	for _, tt := range []struct {
		name, stream, action string
		exited               bool
		status               int
	}{
		{"nothing", "", "-", false, 0},
		{"began", run, "", false, 0},
		{"passed, but the whole never ended", run + pass, "", false, 0},
		{"passed", run + pass + end + "PASS\n\n" + guest.ExitPrefix + "0\n", "pass", true, 0},
		{"no exit status", run + pass + end + guest.ExitPrefix + "\n", "pass", false, 0},
		{"the words in a test's output", run + "--- PASS: TestX/a is what I hoped for\n", "", false, 0},
		{"failed", run + "    \x16--- FAIL: TestX/a (0.10s)\n\x16--- FAIL: TestX (0.10s)\n" + guest.ExitPrefix + "1\n", "fail", true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rep := parseGuest([]byte(tt.stream))
			action := "-"
			if r := rep.tests["a"]; r != nil {
				action = r.action
			}
			if action != tt.action || rep.exited != tt.exited || rep.status != tt.status {
				t.Errorf("action %q, exited %v, status %d; want %q, %v, %d", action, rep.exited, rep.status, tt.action, tt.exited, tt.status)
			}
		})
	}
}
