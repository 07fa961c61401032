package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// ran is what a command line led to.
type ran struct {
	code           int
	stdout, stderr string
}

func runLine(t *testing.T, args ...string) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(context.Background(), args, &stdout, &stderr)
	return ran{code, stdout.String(), stderr.String()}
}

// TestUsageErrors: one clear line, a hint, exit code 2, nothing on standard
// output, and nothing attached.
func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string // in the first line
		hint string // in the second
	}{
		// Words that are not known.
		{"--by nonsense", `--by: unknown key "nonsense"`, ""},
		{"--by projct", `unknown key "projct"`, `did you mean "project"?`},
		{"--by container,proj", `unknown key "proj"`, `did you mean "project"?`},
		{"--by label:", "label", ""},
		{"--sort nonsense", `--sort: unknown column "nonsense"`, ""},
		{"--sort -latncy", `unknown column "latncy"`, `did you mean "latency"?`},
		{"--filter nonsense", "filter", ""},
		{"--filter nonsense=x", "nonsense", ""},
		{"--filter projct=x", `unknown key "projct"`, `did you mean "project"?`},
		{"--filter source=cifs", `unknown source "cifs": use block, nfs, fuse, smb, 9p, ceph`, "iotrace-bpf help"},
		{"--filter source=blck", `unknown source "blck"`, `did you mean "block"?`},
		{"--filter op=wirte", `unknown op "wirte"`, `did you mean "write"?`},
		{"--filter op=z*", `matches nothing`, ""},
		{"--output xml", `unknown output "xml"`, ""},
		{"--output njson", `unknown output "njson"`, `did you mean "ndjson"?`},
		{"--source floppy", `unknown source "floppy"`, ""},
		{"--source fus", `unknown source "fus"`, `did you mean "fuse"?`},
		{"--source=", "name at least one of block", ""},
		{"--level deep", `unknown level "deep"`, ""},
		{"--level wier", `unknown level "wier"`, `did you mean "wire"?`},
		{"--nonsense", `unknown flag "--nonsense"`, ""},
		{"--fliter x", `unknown flag "--fliter"`, `did you mean "--filter"?`},
		{"--elasticsearch-api-key x", `unknown flag "--elasticsearch-api-key"`, `did you mean "--elasticsearch-api-key-file"?`},
		{"--namespace x", `unknown flag "--namespace"`, `did you mean "--data-stream-namespace"?`},
		{"-x", `unknown flag "-x"`, ""},
		{"nonsense", "neither a command nor an interval", ""},
		{"chekc", "neither a command nor an interval", `did you mean "check"?`},
		{"--by project check", `"check" must be the first word`, ""},
		{"vxlan lst", `unknown command of vxlan "lst"`, `did you mean "list"?`},
		{"elasticsearch stup", `unknown command of elasticsearch "stup"`, `did you mean "setup"?`},
		{"help me", `"me"`, ""},
		{"help flgs", `"flgs"`, `did you mean "flags"?`},
		{"completion tcsh", `"tcsh"`, ""},
		{"completion zhs", `"zhs"`, `did you mean "zsh"?`},

		// Values that cannot be.
		{"--interval 0", "too short", ""},
		{"--interval 0s", "interval 0s is too short", ""},
		{"0", "too short", ""},
		{"--interval 5x", `--interval "5x": must be a time: 5 (seconds), 500ms`, ""},
		{"--interval soon", `--interval "soon": must be a time`, ""},
		{"--interval", "--interval needs a value", ""},
		{"--duration -1s", "must not be negative", ""},
		{"--duration 1e300", "must be a time", ""},
		{"--count -1", "must not be negative", ""},
		{"--count x", `--count "x": must be a whole number or the word never`, ""},
		{"--top x", `--top "x": must be a whole number or the word all`, ""},
		{"--cgroup-depth 1.5", "must be a whole number", ""},
		{"--latency=maybe", `--latency "maybe": must be true or false`, ""},
		{"--latency false", `unexpected argument "false"`, "--latency=false"},
		{"--max-groups 0", "--max-groups 0: must be from 1", ""},
		{"--max-groups many", `--max-groups "many": must be a whole number`, ""},
		{`--source "`, `--source "\"": must be a list with commas`, ""},
		{"--events --output ndjson --event-buffer 5000", "power of two", ""},
		{"--events --output ndjson --event-buffer 8Mio", `--event-buffer "8Mio": must be a size such as 64KiB`, ""},
		{"--record f --record-size 1", "must be at least 1MiB", ""},
		{"--record f --record-size -1", "must be a size such as 64KiB, 256MiB or 1GiB, or the word never", ""},
		{"1 0", "count", ""},
		{"1 2 3", `unexpected argument "3"`, ""},
		{"--=x", "is not a flag", ""},

		// Contradictions, and flags that do nothing.
		{"--interval 5 10", `two intervals: "10" and --interval 5s`, ""},
		{"--count 5 1 2", `two counts: "2" and --count 5`, ""},
		{"--by project --by device", "--by is given twice", ""},
		{"-v --verbose", "--verbose is given twice", ""},
		{"--latency=false --latency", "--latency is given twice", ""},
		{"--events", "--events needs --output ndjson", ""},
		{"--by file --output ndjson", "--output would send the paths of files, which may be secret: add --export-files if they may leave this host", ""},
		{"--otlp http://localhost:1 --export-by container,file", "--export-by would send the paths of files, which may be secret: add --export-files if they may leave this host", ""},
		{"--export-files", "--export-files does nothing without --output ndjson, --elasticsearch or --otlp", ""},
		{"--record-size 1GiB", "--record-size does nothing without --record", ""},
		{"--elasticsearch-spool d", "--elasticsearch-spool does nothing without --elasticsearch", ""},
		{"--elasticsearch-ca f", "--elasticsearch-ca does nothing without --elasticsearch", ""},
		{"--event-buffer 8MiB", "--event-buffer does nothing without --events", ""},
		{"--data-stream-namespace x", "does nothing without --output ndjson or --elasticsearch", ""},
		{"--export-label team", "does nothing without --output ndjson or --elasticsearch", ""},

		// Flags of other commands.
		{"check --by project", "--by is not a flag of check, but of tracing", ""},
		{"check 5", `check takes no argument: "5"`, "iotrace-bpf help check shows its flags"},
		{"replay --docker-host x FILE", "--docker-host is not a flag of replay, but of tracing", ""},
		{"--grace 5 1", "--grace is not a flag of tracing, but of vxlan", ""},
		{"vxlan list --yes", "--yes is not a flag of vxlan list, but of vxlan clean", ""},
		{"vxlan --data-stream-namespace x", "does nothing without --output ndjson", ""},
		{"vxlan --grace 0", "longer", ""},
		{"completion", "bash", ""},
		{"version now", `"now"`, ""},
		{"elasticsearch", "the word setup is missing", ""},
		{"elasticsearch setup", "--elasticsearch URL", ""},
		{"elasticsearch setup --print-dashboard --kibana u", "--kibana does nothing with --print-dashboard", ""},
		{"elasticsearch setup --elasticsearch u --retention-days 0", "above 0, or the word forever", ""},
		{"elasticsearch setup --elasticsearch u --elasticsearch-spool d", "not a flag of elasticsearch setup", ""},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := runLine(t, strings.Fields(tt.args)...)
			line, rest, _ := strings.Cut(got.stderr, "\n")
			if got.code != exitUsage {
				t.Errorf("exit code %d, want %d", got.code, exitUsage)
			}
			if !strings.HasPrefix(line, "iotrace-bpf: ") || !strings.Contains(line, tt.want) {
				t.Errorf("standard error %q does not say %q", line, tt.want)
			}
			if strings.Count(rest, "\n") != 1 || !strings.HasPrefix(rest, "hint: ") || !strings.Contains(rest, tt.hint) {
				t.Errorf("after the first line: %q, want one hint with %q", rest, tt.hint)
			}
			if tt.hint == "" && strings.Contains(rest, "did you mean") {
				t.Errorf("a far-fetched %q", rest)
			}
			for _, internal := range []string{"strconv", "time: missing", "time: invalid", "time: unknown", "ParseInt", "invalid argument", "invalid size", "csv", "parse error"} {
				if strings.Contains(got.stderr, internal) {
					t.Errorf("%q shows how it is made: %q", got.stderr, internal)
				}
			}
			if got.stdout != "" {
				t.Errorf("standard output: %q", got.stdout)
			}
		})
	}
}

// parsed gives the options and warnings of a command line that is right.
func parsed(t *testing.T, line string) (*options, []string) {
	t.Helper()
	var o options
	if err := o.parse(strings.Fields(line)); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return &o, o.flags.warnings
}

// TestValues: what a person writes, in all its forms.
func TestValues(t *testing.T) {
	for _, tt := range []struct {
		args string
		get  func(*options) any
		want string
	}{
		{"--interval 5", func(o *options) any { return o.interval }, "5s"},
		{"--interval 0.5", func(o *options) any { return o.interval }, "500ms"},
		{"--interval 1m30s", func(o *options) any { return o.interval }, "1m30s"},
		{"", func(o *options) any { return o.interval }, "1s"},
		{"5", func(o *options) any { return o.interval }, "5s"},
		{"500ms 3", func(o *options) any { return fmt.Sprint(o.interval, o.count) }, "500ms 3"},
		{"--duration 90", func(o *options) any { return o.duration }, "1m30s"},
		{"--duration never", func(o *options) any { return o.duration }, "0s"},
		{"--count never", func(o *options) any { return o.count }, "0"},
		{"--top all", func(o *options) any { return o.group.Top }, "0"},
		{"--top 7", func(o *options) any { return o.group.Top }, "7"},
		{"", func(o *options) any { return o.recordSize }, "268435456"},
		{"--record f --record-size 1GiB", func(o *options) any { return o.recordSize }, "1073741824"},
		{"--record f --record-size 2m", func(o *options) any { return o.recordSize }, "2097152"},
		{"--record f --record-size never", func(o *options) any { return o.recordSize }, "-1"},
		{"--events --output ndjson --event-buffer 64KiB", func(o *options) any { return o.eventBuffer }, "65536"},
		{"--events --output ndjson --event-buffer 4096", func(o *options) any { return o.eventBuffer }, "4096"},
		{"--docker-host /proc --docker-host /sys", func(o *options) any { return o.dockerHosts }, "[/proc /sys]"},
		{"--source nfs --source fuse,block", func(o *options) any { return o.sources }, "[nfs fuse block]"},
		{"--filter source=n*", func(o *options) any { return o.group.Filters }, "[source=n*]"},
	} {
		o, warnings := parsed(t, tt.args)
		if got := fmt.Sprint(tt.get(o)); got != tt.want || len(warnings) > 0 {
			t.Errorf("%s: %s, %q; want %s", tt.args, got, warnings, tt.want)
		}
	}
}

// TestWarnings: what may be meant and does nothing now is said.
func TestWarnings(t *testing.T) {
	here := filepath.Join(t.TempDir(), "sock")
	if err := os.WriteFile(here, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"--docker-host tcp://localhost:2375 --cri " + here, "[]"},
		{"--only-listed-sockets", "[--only-listed-sockets without a socket: no container engine is asked for names]"},
		{"--latency=false --sort latency", "[--sort latency does nothing: latencies are left out]"},
		{"--output table --cgroup-depth 2", "[--cgroup-depth does nothing without --by cgroup]"},
		{"--output table --cgroup-depth 2 --by cgroup", "[]"},
	} {
		if _, warnings := parsed(t, tt.args); fmt.Sprint(warnings) != tt.want {
			t.Errorf("%s: %q, want %s", tt.args, warnings, tt.want)
		}
	}
}

// TestEnvironment: every flag is a variable too, and the flag comes first.
func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name, value string
		args        string
		get         func(*options) any
		want        string
		warning     string
	}{
		{"IOTRACE_BY", "project,device", "", func(o *options) any { return o.group.By }, "[project device]", ""},
		{"IOTRACE_BY", "project", "--by image", func(o *options) any { return o.group.By }, "[image]", ""},
		{"IOTRACE_BY", "", "", func(o *options) any { return o.group.By }, "[container]", ""},
		{"IOTRACE_INTERVAL", "10", "", func(o *options) any { return o.interval }, "10s", ""},
		{"IOTRACE_INTERVAL", "10", "3", func(o *options) any { return o.interval }, "3s", ""},
		{"IOTRACE_LATENCY", "false", "", func(o *options) any { return o.latency }, "false", ""},
		{"IOTRACE_SOURCE", "nfs,fuse", "", func(o *options) any { return o.sources }, "[nfs fuse]", ""},
		{"IOTRACE_SOURCE", "nfs", "--source block", func(o *options) any { return o.sources }, "[block]", ""},
		{"IOTRACE_FILTER", "project=a,b\nop=write\n", "", func(o *options) any { return o.group.Filters }, "[project=a,b op=write]", ""},
		{"IOTRACE_NO_TUI", "true", "", func(o *options) any { return o.noScreen }, "true", ""},
		{"IOTRACE_ELASTICSEARCH_API_KEY_FILE", "k", "--elasticsearch u", func(o *options) any { return o.esAPIKeyFile }, "k", ""},
		{"IOTRACE_ELASTICSEARCH_API_KEY", "secret", "", func(o *options) any { return o.esAPIKeyFile }, "", ""},
		{"IOTRACE_ELASTICSEARCH_PASSWORD", "secret", "", func(o *options) any { return o.esPasswordFile }, "", ""},
		{"IOTRACE_RECORD_SIZE", "1GiB", "", func(o *options) any { return o.recordSize }, "1073741824", "IOTRACE_RECORD_SIZE does nothing without --record"},
		{"IOTRACE_GRACE", "5", "", func(o *options) any { return o.interval }, "1s", ""}, // of vxlan
		{"IOTRACE_INTERVALL", "5", "", func(o *options) any { return o.interval }, "1s", `the environment has IOTRACE_INTERVALL, which no flag belongs to (did you mean "IOTRACE_INTERVAL"?)`},
		{"IOTRACE_SHOES", "5", "", func(o *options) any { return o.interval }, "1s", "the environment has IOTRACE_SHOES, which no flag belongs to"},
		{"IOTRACE_TEST_SHOES", "5", "", func(o *options) any { return o.interval }, "1s", ""},
	} {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			t.Setenv(tt.name, tt.value)
			o, warnings := parsed(t, tt.args)
			if got := fmt.Sprint(tt.get(o)); got != tt.want || strings.Join(warnings, "; ") != tt.warning {
				t.Errorf("%s and warnings %q; want %s, %q", got, warnings, tt.want, tt.warning)
			}
		})
	}
	for name, tt := range map[string]struct{ value, want string }{
		"IOTRACE_TOP":     {"x", `IOTRACE_TOP "x": must be a whole number`},
		"IOTRACE_BY":      {"projct", `IOTRACE_BY: unknown key "projct"`},
		"IOTRACE_LATENCY": {"maybe", `IOTRACE_LATENCY "maybe": must be true or false`},
		"IOTRACE_OUTPUT":  {"xml", `IOTRACE_OUTPUT: unknown output "xml"`},
		"IOTRACE_EVENTS":  {"1", "IOTRACE_EVENTS needs --output ndjson"},
	} {
		t.Run("bad "+name, func(t *testing.T) {
			t.Setenv(name, tt.value)
			if got := runLine(t, "1", "1"); got.code != exitUsage || !strings.Contains(got.stderr, tt.want) {
				t.Errorf("exit code %d, %q; want %q", got.code, got.stderr, tt.want)
			}
		})
	}
	t.Run("warning", func(t *testing.T) {
		t.Setenv("IOTRACE_SHOES", "5")
		got := runLine(t, "replay", incident(t, 1), "--output", "ndjson")
		if got.code != exitOK || got.stderr != "iotrace-bpf: warning: the environment has IOTRACE_SHOES, which no flag belongs to\n" {
			t.Errorf("exit code %d, %q", got.code, got.stderr)
		}
	})
}

// TestFlagsOfCommands: a command refuses each flag that is not on its page, and
// accepts each that is.
func TestFlagsOfCommands(t *testing.T) {
	all := map[string]*pflag.Flag{}
	for _, c := range commands() {
		if c.flags == nil {
			continue
		}
		for _, flag := range c.flags().visible() {
			all[flag.Name] = flag
		}
	}
	for _, c := range commands() {
		if c.flags == nil {
			continue
		}
		page := c.page()
		if c.name == "" {
			page = topics()[0].page()
		}
		for name, flag := range all {
			shown := strings.Contains(page, "\n      --"+name+" ") || strings.Contains(page, "\n  -"+flag.Shorthand+", --"+name+" ")
			if has := c.flags().Lookup(name) != nil; has != shown {
				t.Errorf("%q: --%s is on the page: %v; the command has it: %v", c.name, name, shown, has)
			}
			if name == "help" || name == "version" {
				continue
			}
			// Asking for help as well keeps the command from running.
			args := append(strings.Fields(c.name), "--"+name+"="+example(flag), "--help")
			got := runLine(t, args...)
			if refused := got.code == exitUsage; refused == shown {
				t.Errorf("%q: exit code %d; on the page: %v; %s", args, got.code, shown, got.stderr)
			}
		}
	}
}

// example is a value that a flag takes.
func example(flag *pflag.Flag) string {
	switch flag.Value.Type() {
	case "bool":
		return "true"
	case "string", "stringSlice", "stringArray":
		return "x"
	case "SIZE":
		return "1MiB"
	}
	return "5"
}
