package main

import (
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestObeySignals(t *testing.T) {
	const soon, later = time.Millisecond, oneSignal + time.Millisecond
	for _, tt := range []struct {
		name   string
		first  syscall.Signal
		pause  time.Duration
		second syscall.Signal
		exits  []syscall.Signal
	}{
		{"Ctrl-C twice", syscall.SIGINT, later, syscall.SIGINT, []syscall.Signal{syscall.SIGINT}},
		{"another signal at once", syscall.SIGINT, soon, syscall.SIGTERM, []syscall.Signal{syscall.SIGTERM}},
		{"timeout(1) sends twice", syscall.SIGTERM, soon, syscall.SIGTERM, nil},
		{"a terminal that is closed", syscall.SIGHUP, later, syscall.SIGHUP, nil},
		{"a closed terminal, then kill", syscall.SIGHUP, later, syscall.SIGTERM, []syscall.Signal{syscall.SIGTERM}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				signals := make(chan os.Signal)
				ends := 0
				var exits []syscall.Signal
				done := make(chan struct{})
				go func() {
					defer close(done)
					obeySignals(signals, func() { ends++ }, func(s syscall.Signal) { exits = append(exits, s) })
				}()
				signals <- tt.first
				time.Sleep(tt.pause) // of the bubble's clock
				signals <- tt.second
				close(signals)
				<-done
				if ends != 1 || !slices.Equal(exits, tt.exits) {
					t.Errorf("%d ends and exits %v, want one and %v", ends, exits, tt.exits)
				}
			})
		})
	}
}
