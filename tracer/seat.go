package tracer

import (
	"sync"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// seatSection is the section of bpf/core/account.h with the number of a program's seat.
const seatSection = ".rodata.seat"

// maxSeats is IOT_SEATS of bpf/core/types.h: who has this number has no seat.
const maxSeats = uint32(len(bpf.CoreRowCache{}.Seats))

// seats gives each program that books a number of its own: two programs that run on
// one CPU at the same time must not have the same. See iot_sit in bpf/core/account.h.
type seats struct {
	mu    sync.Mutex
	taken map[string]uint32
}

// of returns the seat of a hook. A hook that is loaded again, for a module that was
// loaded again, gets the same one.
func (s *seats) of(h hook) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := h.String() + " " + h.program
	n, ok := s.taken[name]
	if !ok {
		n = min(uint32(len(s.taken)), maxSeats)
		if s.taken == nil {
			s.taken = map[string]uint32{}
		}
		s.taken[name] = n
	}
	return n
}
