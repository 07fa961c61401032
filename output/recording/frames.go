package recording

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Timeline gives a recording to a screen.
func Timeline(r *Recording) output.Timeline { return timeline{r} }

// timeline is the intervals of a recording, decoded when they are asked
// for.
type timeline struct{ r *Recording }

func (f timeline) Bounds() (first, end int) { return 0, f.r.Len() }

func (f timeline) Span(i int) (start, end time.Time) { return f.r.Span(i) }

func (f timeline) Frame(i int) (*output.Interval, error) {
	if err := f.r.Seek(i); err != nil {
		return nil, err
	}
	iv, err := f.r.Next()
	var damage *DamageError
	if errors.As(err, &damage) {
		// Told once; what is behind may be the one that was asked for.
		iv, err = f.r.Next()
	}
	switch {
	case err != nil && damage != nil:
		return nil, damage
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("interval %d is behind the end of the recording", i)
	case err != nil:
		return nil, err
	case f.r.Pos() != i+1:
		return nil, damageOf(damage, i)
	}
	return iv, nil
}

func damageOf(d *DamageError, i int) error {
	if d != nil {
		return d
	}
	return fmt.Errorf("interval %d of the recording cannot be read", i)
}
