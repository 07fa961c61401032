package tracer

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const ring = 8 << 20
	eighth := ring / 8 / recordSize
	for _, c := range []struct {
		name    string
		ring    int
		before  time.Duration // the wait before; 0 is the longest
		records int
		in      time.Duration
		want    time.Duration
	}{
		{"idle", ring, 0, 0, recordsLate, recordsLate},
		{"idle, small ring", 64 << 10, 0, 0, recordsLate, 5 * recordsSoon},
		{"smallest ring", 4096, 0, 0, recordsLate, 5 * recordsSoon},
		{"as expected", ring, 0, eighth, recordsLate, recordsLate},
		{"twice the rate", ring, 0, 2 * eighth, recordsLate, recordsLate / 2},
		{"very fast", ring, 0, 3 * eighth, recordsSoon, recordsSoon},
		{"almost full", ring, 0, 5 * eighth, recordsLate, 0},
		{"slower again", ring, 4 * recordsSoon, 1, 4 * recordsSoon, 8 * recordsSoon},
		{"after a full ring", ring, recordsSoon, 0, recordsSoon, 2 * recordsSoon},
	} {
		p := newPace(c.ring)
		if c.before != 0 {
			p.wait = c.before
		}
		got := p.next(c.records, c.in)
		if diff := got - c.want; diff < -time.Microsecond*10 || diff > time.Microsecond*10 {
			t.Errorf("%s: look again in %v, want %v", c.name, got, c.want)
		}
	}
	// A full ring is looked at again at once, and the wait grows from there.
	p := newPace(ring)
	for range 20 {
		p.next(8*eighth, recordsLate)
	}
	for i := 0; p.wait < p.late; i++ {
		if i > 20 {
			t.Fatalf("still %v between two looks, with nothing to see", p.wait)
		}
		p.next(0, p.wait)
	}
}

// TestBootOf: of several readings the one counts in which the clocks were read
// closest together.
func TestBootOf(t *testing.T) {
	boot := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		gaps []time.Duration // between two readings of any clock
		want time.Duration   // error at most
	}{
		"at once":        {[]time.Duration{0}, 0},
		"held up once":   {[]time.Duration{600 * time.Millisecond, 0, 0}, 0},
		"held up later":  {[]time.Duration{0, 600 * time.Millisecond, 0}, 0},
		"close enough":   {[]time.Duration{400 * time.Microsecond, 400 * time.Microsecond, time.Hour}, 400 * time.Microsecond},
		"held up always": {[]time.Duration{time.Second}, time.Second},
		"held up always, and less once": {
			[]time.Duration{time.Second, time.Second, time.Second, 10 * time.Millisecond, 20 * time.Millisecond, time.Second}, 15 * time.Millisecond,
		},
	} {
		var passed time.Duration
		read := func() time.Duration {
			at := passed
			passed += c.gaps[0]
			if len(c.gaps) > 1 {
				c.gaps = c.gaps[1:]
			}
			return at
		}
		got, err := bootOf(func() (time.Duration, error) { return read(), nil }, func() time.Time { return boot.Add(read()) })
		if wrong := got.Sub(boot).Abs(); err != nil || wrong > c.want {
			t.Errorf("%s: wrong by %v, at most %v are right, %v", name, wrong, c.want, err)
		}
	}
}

// TestFlushAfterFailure: a flush returns even when records cannot be read any more,
// and the ring is not read again.
func TestFlushAfterFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &Tracer{ctx: ctx, flush: make(chan chan struct{}), opt: Options{Log: slog.New(slog.DiscardHandler)}}
	runs := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		tr.drain(ctx, newPace(4096), func() (int, error) {
			runs++
			return 0, errors.New("the ring is broken")
		})
	}()
	for range 3 {
		if err := tr.FlushRecords(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	<-done
	if runs != 1 {
		t.Errorf("read %d times", runs)
	}
}
