package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var quick, slow strings.Builder
		s := newSlowStart(&quick, startPatience)
		s.begin("one")
		time.Sleep(startPatience / 2)
		s.end()
		time.Sleep(startPatience)
		s.begin("two")
		if quick.Len() != 0 {
			t.Errorf("a quick start said %q", quick.String())
		}

		s = newSlowStart(&slow, startPatience)
		s.begin("one")
		s.begin("two\x1b[2J")
		time.Sleep(2 * startPatience)
		s.begin("three")
		time.Sleep(2*startAgain + startAgain/2)
		s.begin("four")
		s.end()
		time.Sleep(startAgain)
		s.begin("five")
		want := "iotrace-bpf: still starting: two\\x1b[2J\n" +
			"iotrace-bpf: still starting: three\n" +
			"iotrace-bpf: still starting: three (for 15s now)\n" +
			"iotrace-bpf: still starting: three (for 30s now)\n" +
			"iotrace-bpf: still starting: four\n"
		if slow.String() != want {
			t.Errorf("a slow start said %q, want %q", slow.String(), want)
		}
	})
}
