package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

const (
	// startPatience is how long a start may take without a word.
	startPatience = time.Second
	// startAgain is how long one step of it may take without another word.
	startAgain = 15 * time.Second
)

// slowStart says what a start is doing, once it takes long: under emulation, or on a
// host that is short of processors, the kernel needs a minute to verify the programs.
type slowStart struct {
	mu    sync.Mutex
	w     io.Writer
	step  string
	since time.Time // when the step began
	slow  bool
	ended bool
	timer *time.Timer
}

func newSlowStart(w io.Writer, patience time.Duration) *slowStart {
	s := &slowStart{w: w}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(patience, s.late)
	return s
}

// late says the step that takes long, and says it again after a while.
func (s *slowStart) late() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.slow = true
	s.say()
	s.timer.Reset(startAgain)
}

// begin notes the next step, and says it where the start is slow already.
func (s *slowStart) begin(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step, s.since = step, time.Now()
	if s.slow && !s.ended {
		s.say()
		s.timer.Reset(startAgain)
	}
}

func (s *slowStart) say() {
	if s.step == "" {
		return
	}
	line := "iotrace-bpf: still starting: " + text.Safe(s.step)
	if took := time.Since(s.since).Round(time.Second); took >= startAgain {
		line += fmt.Sprintf(" (for %s now)", took)
	}
	fmt.Fprintln(s.w, line)
}

// end says nothing more.
func (s *slowStart) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
	s.ended = true
}
