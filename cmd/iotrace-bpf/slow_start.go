package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// startPatience is how long a start may take without a word.
const startPatience = time.Second

// slowStart says what a start is doing, once it takes long: under emulation, or on a
// host that is short of processors, the kernel needs seconds to verify the programs.
type slowStart struct {
	mu    sync.Mutex
	w     io.Writer
	step  string
	slow  bool
	ended bool
	timer *time.Timer
}

func newSlowStart(w io.Writer, patience time.Duration) *slowStart {
	s := &slowStart{w: w}
	s.timer = time.AfterFunc(patience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.slow = true
		s.say()
	})
	return s
}

// begin notes the next step, and says it where the start is slow already.
func (s *slowStart) begin(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step = step
	if s.slow {
		s.say()
	}
}

func (s *slowStart) say() {
	if s.step != "" && !s.ended {
		fmt.Fprintf(s.w, "iotrace-bpf: still starting: %s\n", text.Safe(s.step))
	}
}

// end says nothing more.
func (s *slowStart) end() {
	s.timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}
