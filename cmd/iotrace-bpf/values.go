package main

import (
	"errors"
	"strconv"
	"time"

	"github.com/docker/go-units"
)

// A duration is a flag's time. A number alone means seconds, as the positional
// INTERVAL does.
type duration struct {
	value *time.Duration
	word  string // stands for 0; "" where there is no such word
}

func (d duration) Set(s string) (err error) {
	if d.word != "" && s == d.word {
		*d.value = 0
		return nil
	}
	*d.value, err = parseDuration(s)
	return err
}

func (d duration) String() string {
	if d.value == nil || *d.value == 0 {
		return d.word
	}
	return d.value.String()
}

func (d duration) Type() string { return "TIME" }

var errDuration = errors.New("must be a time: 5 (seconds), 500ms, 30s, 10m or 1h30m")

// parseDuration reads seconds, or a number with a unit.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		const most = 1e9 // seconds: some 30 years, and no overflow
		seconds, err := strconv.ParseFloat(s, 64)
		if err != nil || !(seconds > -most && seconds < most) {
			return 0, errDuration
		}
		d = time.Duration(seconds * float64(time.Second))
	}
	if d < 0 {
		return 0, errors.New("must not be negative")
	}
	return d, nil
}

// A number is a flag's whole number from 0 on, or the word that stands for
// special.
type number struct {
	value   *int
	word    string
	special int
}

func (n number) Set(s string) error {
	if s == n.word {
		*n.value = n.special
		return nil
	}
	v, err := strconv.Atoi(s)
	switch {
	case err != nil:
		return errors.New("must be a whole number or the word " + n.word)
	case v < 0:
		return errors.New("must not be negative")
	}
	*n.value = v
	return nil
}

func (n number) String() string {
	if n.value == nil || *n.value == n.special {
		return n.word
	}
	return strconv.Itoa(*n.value)
}

func (n number) Type() string { return "N" }

// A size is a flag's number of bytes, always with factors of 1024. The word
// stands for -1.
type size struct {
	value *int64
	word  string // "" where there is no such word
}

func (v size) Set(s string) error {
	if v.word != "" && s == v.word {
		*v.value = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 || n > 1<<50 {
		text := "must be a size such as 64KiB, 256MiB or 1GiB"
		if v.word != "" {
			text += ", or the word " + v.word
		}
		return errors.New(text)
	}
	*v.value = n
	return nil
}

func (v size) String() string {
	switch {
	case v.value == nil:
		return ""
	case *v.value == -1:
		return v.word
	}
	return units.BytesSize(float64(*v.value))
}

func (v size) Type() string { return "SIZE" }
