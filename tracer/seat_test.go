package tracer

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// A small model of the seats in bpf/core/account.h: two words of four seats. seatRun is a
// run of a program, between two of its loads and stores.
const (
	modelWords = 2
	modelLanes = 4
)

type (
	modelSeats [modelWords * modelLanes]uint8
	seatRun    struct {
		seat int
		at   int // the next step
		sum  [modelLanes]uint8
	}
)

// Steps of a run. From seatLook on each step reads one word.
const (
	seatCheck = iota
	seatTake
	seatLook
	seatInside = seatLook + modelWords // it changes the cache
	seatRise   = seatInside + 1
	seatDone   = seatRise + 1
)

// sit is iot_sit, what follows it, and iot_rise.
func (r *seatRun) sit(seats *modelSeats) {
	switch {
	case r.at == seatCheck && seats[r.seat] != 0:
		r.at = seatDone
		return
	case r.at == seatTake:
		seats[r.seat] = 1
	case r.at >= seatLook && r.at < seatInside:
		word := r.at - seatLook
		for i := range modelLanes {
			r.sum[i] += seats[word*modelLanes+i]
		}
		var alone [modelLanes]uint8
		alone[r.seat%modelLanes] = 1
		if r.at == seatInside-1 && r.sum != alone {
			r.at = seatRise
			return
		}
	case r.at == seatRise:
		seats[r.seat] = 0
	}
	r.at++
}

// busy is what was there before: one flag for all, checked and then set.
func (r *seatRun) busy(seats *modelSeats) {
	switch r.at {
	case seatCheck:
		if seats[0] != 0 {
			r.at = seatDone
			return
		}
	case seatTake:
		seats[0] = 1
		r.at = seatInside
		return
	case seatRise:
		seats[0] = 0
	}
	r.at++
}

const modelRuns = 4

type seatState struct {
	seats modelSeats
	runs  [modelRuns]seatRun
	n     int // runs that were begun
}

// seatModel tries every order of steps that a kernel allows.
type seatModel struct {
	step  func(*seatRun, *modelSeats)
	begin []int // seats of the runs, in the order in which they begin
	stack bool  // a run that begins interrupts the others: they go on after its end

	seen    map[seatState]bool
	two     bool // two runs were inside at once
	left    bool // a seat stayed taken after the end of all
	entered int  // states with a run inside
}

func (m *seatModel) explore(s seatState) {
	if m.seen[s] {
		return
	}
	m.seen[s] = true
	inside, live := 0, false
	for i := range s.n {
		if s.runs[i].at == seatInside {
			inside++
		}
		live = live || s.runs[i].at != seatDone
	}
	m.entered += inside
	m.two = m.two || inside > 1
	m.left = m.left || !live && s.seats != modelSeats{}
	if s.n < len(m.begin) {
		next := s
		next.runs[s.n] = seatRun{seat: m.begin[s.n]}
		next.n++
		twice := slices.ContainsFunc(s.runs[:s.n], func(r seatRun) bool { return r.at != seatDone && r.seat == m.begin[s.n] })
		if m.stack || !twice { // a kernel that preempts programs skips this one
			m.explore(next)
		}
	}
	for i := s.n - 1; i >= 0; i-- {
		if s.runs[i].at == seatDone {
			continue
		}
		next := s
		m.step(&next.runs[i], &next.seats)
		m.explore(next)
		if m.stack {
			break
		}
	}
}

// TestSeats tries every order of steps of programs on one CPU: at most one is inside
// at a time, and no seat stays taken. Seats 0 and 4 are at the same place of two
// words.
func TestSeats(t *testing.T) {
	for name, m := range map[string]*seatModel{
		"preempted":              {step: (*seatRun).sit, begin: []int{0, 4, 1, 5}},
		"preempted, and again":   {step: (*seatRun).sit, begin: []int{0, 4, 0, 4}},
		"interrupted":            {step: (*seatRun).sit, begin: []int{0, 4, 1, 5}, stack: true},
		"interrupted by itself":  {step: (*seatRun).sit, begin: []int{0, 0, 4, 0}, stack: true},
		"interrupted, one flag":  {step: (*seatRun).busy, begin: []int{0, 0, 4, 0}, stack: true},
		"preempted, one flag":    {step: (*seatRun).busy, begin: []int{0, 4}},
		"one after another":      {step: (*seatRun).sit, begin: []int{0}},
		"preempted, three seats": {step: (*seatRun).sit, begin: []int{0, 1, 0, 2}},
	} {
		m.seen = map[seatState]bool{}
		m.explore(seatState{})
		if want := name == "preempted, one flag"; m.two != want {
			t.Errorf("%s: two inside at once: %v, want %v", name, m.two, want)
		}
		if m.left || m.entered == 0 {
			t.Errorf("%s: a seat stays taken: %v; %d states with one inside", name, m.left, m.entered)
		}
		t.Logf("%s: %d states, %d with a program inside", name, len(m.seen), m.entered)
	}
}

// TestSeatOf: no two hooks share a seat, and a hook keeps its own.
func TestSeatOf(t *testing.T) {
	var s seats
	a := hook{kind: kprobe, target: "f", program: "p"}
	b := hook{kind: kprobe, target: "g", program: "p"}
	if s.of(a) != 0 || s.of(b) != 1 || s.of(a) != 0 {
		t.Errorf("seats %v", s.taken)
	}
	for i := range 2 * maxSeats {
		s.of(hook{active: int(i), target: string(rune('a' + i))})
	}
	if got := s.of(hook{kind: fexit}); got != maxSeats {
		t.Errorf("seat %d when all are taken, want none (%d)", got, maxSeats)
	}
}

// books tells whether a program needs a seat.
func books(p *ebpf.ProgramSpec) bool {
	return slices.ContainsFunc(p.Instructions, func(i asm.Instruction) bool { return i.Reference() == seatSection })
}

// TestEnoughSeats: even if every program that books were loaded, with all its
// alternatives, each would have a seat.
func TestEnoughSeats(t *testing.T) {
	n := 0
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"core": bpf.LoadCore, "block": bpf.LoadBlock, "nfs": bpf.LoadNFS, "fuse": bpf.LoadFUSE, "smb": bpf.LoadSMB, "9p": bpf.LoadP9, "ceph": bpf.LoadCeph,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		book := 0
		for _, p := range spec.Programs {
			if books(p) {
				book++
			}
		}
		t.Logf("%s: %d of %d programs book", name, book, len(spec.Programs))
		if (book == 0) != (name == "core") {
			t.Errorf("%s: %d programs book", name, book)
		}
		n += book
	}
	if n > int(maxSeats) {
		t.Errorf("%d programs that book, and %d seats", n, maxSeats)
	}
}
