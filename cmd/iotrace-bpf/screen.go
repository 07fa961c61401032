package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
	"github.com/iotrace-bpf/iotrace-bpf/output/report"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
)

// screenOptions are the options of the screen that live runs and replays share.
func (o *options) screenOptions(host output.Host, origin string, stdout *os.File) terminal.ScreenOptions {
	return terminal.ScreenOptions{
		Group: o.group, Accumulate: o.accumulate, Labels: o.exportLabels, Recording: o.record, Output: stdout,
		Report: func(t terminal.Timeline, group output.GroupOptions) (string, error) {
			return o.reportOf(t, group, host, origin)
		},
	}
}

// reportOf writes a page about the intervals that the screen can show, in the current
// directory.
func (o *options) reportOf(t terminal.Timeline, group output.GroupOptions, host output.Host, origin string) (string, error) {
	ro := o.reportOptions(group, host, origin)
	// A row that was drilled down to is exactly one: a filter by its name comes close.
	for _, p := range group.Pins {
		ro.Filters = append(ro.Filters, output.ExactFilter(p))
	}
	r := report.New(ro)
	first, end := t.Bounds()
	for i := first; i < end; i++ {
		iv, err := t.Frame(i)
		if err != nil {
			r.Damage(err)
			continue
		}
		r.Add(iv)
	}
	name := "iotrace-" + time.Now().Format("20060102-150405") + ".html"
	return name, briefly(func() error { return r.WriteFile(name) })
}

// keyTime is how long a key on the screen waits for a file.
const keyTime = 5 * time.Second

// briefly runs f, which may go on when it takes too long: the screen must obey its keys.
func briefly(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(keyTime):
		return fmt.Errorf("the file system has not answered for %v, and is still waited for", keyTime)
	}
}

// recordSwitch is a recording that the operator starts and stops on the screen.
type recordSwitch struct {
	opt  *options
	host output.Host

	mu   sync.Mutex
	rec  *recording.Writer // nil while off
	name string
}

// Switch starts or stops the recording and returns the name of its file.
func (s *recordSwitch) Switch(start bool) (name string, err error) {
	type answer struct {
		name string
		err  error
	}
	answers := make(chan answer, 1)
	if err := briefly(func() error {
		name, err := s.turn(start)
		answers <- answer{name, err}
		return nil
	}); err != nil {
		return "", err
	}
	a := <-answers
	return a.name, a.err
}

func (s *recordSwitch) turn(start bool) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !start {
		return s.name, s.stop()
	}
	if s.rec != nil {
		return s.name, nil
	}
	name := "iotrace-" + time.Now().Format("20060102-150405") + ".rec"
	rec, err := recording.Create(name, recording.Options{MaxBytes: s.opt.recordSize, Tool: versionText(), Host: s.host})
	if err != nil {
		return "", err
	}
	s.rec, s.name = rec, name
	return name, nil
}

func (s *recordSwitch) stop() error {
	if s.rec == nil {
		return nil
	}
	err := s.rec.Close()
	s.rec = nil
	return err
}

func (s *recordSwitch) Write(_ *output.Summary, iv *output.Interval) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec == nil {
		return nil
	}
	return s.rec.Write(iv)
}

func (s *recordSwitch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop()
}

// errRecording is the answer to R on the screen while --record writes.
var errRecording = errors.New("--record writes a recording until the end of the run")

// recordFrom returns what the screen calls to start and stop a recording.
func (o *options) recordFrom(s *recordSwitch) func(bool) (string, error) {
	return func(start bool) (string, error) {
		if o.record != "" {
			return "", errRecording
		}
		return s.Switch(start)
	}
}
