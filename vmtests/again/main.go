// Again prints the tests that failed at first in a run of "make test" and ran a second time,
// each with its cause, and keeps a history of the last runs: who is in it twice is not to be
// run again, but mended.
//
//	again HISTORY EVENTS GUESTS
//
// EVENTS is what gotestsum --jsonfile wrote, GUESTS what the guests' tests wrote with
// -rerun-report. A file that is not there has nothing to tell: its tests did not run.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: again HISTORY EVENTS GUESTS")
		os.Exit(2)
	}
	if err := run(os.Stdout, os.Args[1], os.Args[2], os.Args[3], time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "again:", err)
		os.Exit(1)
	}
}

// failure is a test that failed, and ran again if there is a verdict.
type failure struct {
	test    string
	verdict string // of the second run: pass or fail; "" when there was none
	cause   []string
}

const (
	causeLines = 12 // of each test; the log has all of them
	runsKept   = 3
	runsBad    = 2 // of these
)

func run(w io.Writer, history, events, guests string, now time.Time) error {
	var list []failure
	err := read(events, func(r io.Reader) (err error) { list, err = failures(r); return err })
	if err != nil {
		return err
	}
	err = read(guests, func(r io.Reader) error { return json.NewDecoder(r).Decode(&guestFailures{&list}) })
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(f failure) bool { return f.verdict == "" })
	if len(list) == 0 {
		fmt.Fprintln(w, "No test ran a second time.")
	} else {
		fmt.Fprintf(w, "%s failed at first and ran a second time:\n", plural(len(list)))
	}
	for _, f := range list {
		fmt.Fprintf(w, "  %s: then %s\n", f.test, f.verdict)
		for _, line := range f.cause {
			fmt.Fprintf(w, "    | %s\n", line)
		}
	}
	return remember(w, history, list, now)
}

func plural(n int) string {
	if n == 1 {
		return "1 test"
	}
	return fmt.Sprint(n, " tests")
}

// read reads a file, if it is there.
func read(name string, f func(io.Reader) error) error {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := f(file); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// failures returns the tests that failed in a stream of test2json, in the order of their
// names. A test whose subtests failed is not a cause of its own.
func failures(r io.Reader) ([]failure, error) {
	type key struct{ pkg, test string }
	type state struct {
		output  []string
		failed  bool
		verdict string // after a failure
		cause   []string
	}
	tests := map[key]*state{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		var e struct{ Action, Package, Test, Output string }
		if json.Unmarshal(line, &e) != nil || e.Test == "" {
			continue // of a package as a whole, or of the build
		}
		s := tests[key{e.Package, e.Test}]
		if s == nil {
			s = &state{}
			tests[key{e.Package, e.Test}] = s
		}
		switch e.Action {
		case "run":
			s.output = nil
		case "output":
			if text := strings.TrimRight(e.Output, "\n"); !strings.HasPrefix(strings.TrimSpace(text), "=== ") {
				s.output = append(s.output, strings.TrimSpace(text))
			}
		case "pass", "fail":
			if s.failed {
				s.verdict = e.Action
			} else if e.Action == "fail" {
				s.failed, s.cause = true, s.output
			}
		}
	}
	var list []failure
	for _, k := range slices.SortedFunc(maps.Keys(tests), func(a, b key) int {
		return strings.Compare(a.pkg+" "+a.test, b.pkg+" "+b.test)
	}) {
		s := tests[k]
		if !s.failed {
			continue
		}
		inside := false
		for other, o := range tests {
			inside = inside || o.failed && other.pkg == k.pkg && strings.HasPrefix(other.test, k.test+"/")
		}
		if !inside {
			list = append(list, failure{k.pkg[strings.LastIndex(k.pkg, "/")+1:] + "." + k.test, s.verdict, shortened(s.cause)})
		}
	}
	return list, nil
}

// guestFailures reads what the guests' tests wrote into a list.
type guestFailures struct{ list *[]failure }

func (g *guestFailures) UnmarshalJSON(b []byte) error {
	var guests []struct {
		Test, Verdict string
		Cause         string
	}
	if err := json.Unmarshal(b, &guests); err != nil {
		return err
	}
	for _, x := range guests {
		*g.list = append(*g.list, failure{"vmtests." + x.Test, x.Verdict, shortened(strings.Split(strings.TrimSpace(x.Cause), "\n"))})
	}
	return nil
}

// shortened keeps the first lines.
func shortened(lines []string) []string {
	if more := len(lines) - causeLines; more > 0 {
		return append(slices.Clone(lines[:causeLines]), fmt.Sprintf("(%d more lines in the log)", more))
	}
	return lines
}

// remember adds this run to the history, a line for each, and names who is in too many of
// the last ones.
func remember(w io.Writer, name string, list []failure, now time.Time) error {
	var runs []string
	err := read(name, func(r io.Reader) error {
		text, err := io.ReadAll(r)
		runs = strings.Split(strings.TrimSpace(string(text)), "\n")
		return err
	})
	if err != nil {
		return err
	}
	line := now.UTC().Format(time.RFC3339)
	for _, f := range list {
		line += "\t" + f.test
	}
	runs = slices.DeleteFunc(append(runs, line), func(s string) bool { return s == "" })
	runs = runs[max(0, len(runs)-runsKept):]
	count := map[string]int{}
	for _, r := range runs {
		for _, test := range strings.Split(r, "\t")[1:] {
			count[test]++
		}
	}
	for _, test := range slices.Sorted(maps.Keys(count)) {
		if count[test] >= runsBad {
			fmt.Fprintf(w, "%s needed a second run in %d of the last %d runs: mend it.\n", test, count[test], len(runs))
		}
	}
	return os.WriteFile(name, []byte(strings.Join(runs, "\n")+"\n"), 0o644)
}
