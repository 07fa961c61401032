package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// joinsClients tells whether a replay divides what NFS servers did for clients among the
// owners there: where rows are by export. A new recording and exporters get what was recorded.
func (o *options) joinsClients() bool {
	return o.wants(output.KeyNFSExport) && o.record == "" && !o.exports() && !o.events
}

// joined is a replay in which output.Joiner changes each interval. It is one interval behind.
type joined struct {
	replayable
	joiner *output.Joiner
	narrow func(*output.Interval)
	ahead  *output.Interval
	err    error // behind ahead
	sent   bool  // what clients sent is shown
	done   bool  // and what it became
}

func newJoined(rec replayable, narrow func(*output.Interval)) *joined {
	rec.Adjust(func(*output.Interval) {}) // the joiner needs all sources
	return &joined{replayable: rec, joiner: output.NewJoiner(), narrow: narrow}
}

// merged is a replay with longer intervals.
type merged struct {
	replayable
	merger *output.Merger
}

// Next implements replayable.
func (m *merged) Next() (*output.Interval, error) {
	for {
		iv, err := m.replayable.Next()
		switch {
		case errors.Is(err, io.EOF):
			if rest := m.merger.Flush(); rest != nil {
				return rest, nil
			}
			return nil, err
		case err != nil:
			return nil, err
		}
		if done := m.merger.Add(iv); done != nil {
			return done, nil
		}
	}
}

// Adjust implements replayable.
func (j *joined) Adjust(f func(*output.Interval)) { j.narrow = f }

// Next implements replayable.
func (j *joined) Next() (*output.Interval, error) {
	if j.ahead == nil && j.err == nil {
		j.ahead, j.err = j.replayable.Next()
	}
	if err := j.err; err != nil {
		var damage *recording.DamageError
		if errors.As(err, &damage) {
			j.err = nil // the replay goes on behind it
		}
		return nil, err
	}
	iv := j.ahead
	j.ahead, j.err = j.replayable.Next()
	j.joiner.Join(iv, j.ahead)
	j.narrow(iv)
	j.look(iv)
	return iv, nil
}

// joinedTimeline is a timeline in which each interval is joined with what clients sent in
// some intervals before it.
type joinedTimeline struct {
	terminal.Timeline
	narrow func(*output.Interval)
	before int // intervals
}

const (
	joinedFrames   = 24 // of a recording: two minutes of five seconds each
	joinedSearches = 2  // of a cluster, where each is a search
)

// Frame implements terminal.Timeline. Earlier intervals that cannot be read are left out.
func (t joinedTimeline) Frame(i int) (*output.Interval, error) {
	first, end := t.Bounds()
	at := func(k int) (*output.Interval, error) {
		if k < first || k >= end {
			return nil, nil
		}
		return t.Timeline.Frame(k)
	}
	k := max(first, i-t.before)
	iv, err := at(k)
	j := output.NewJoiner()
	for ; ; k++ {
		next, nextErr := at(k + 1)
		if iv != nil && err == nil {
			c := *iv // the timeline may keep it
			c.Sources = slices.Clone(c.Sources)
			c.Events = slices.Clone(c.Events)
			iv = &c
			j.Join(iv, next)
		}
		if k == i {
			break
		}
		iv, err = next, nextErr
	}
	if err == nil && iv != nil {
		t.narrow(iv)
	}
	return iv, err
}

// look notes whether an interval has bytes as clients sent them, and as a server's disks
// wrote them.
func (j *joined) look(iv *output.Interval) {
	for i := range iv.Samples {
		s := &iv.Samples[i]
		j.sent = j.sent || s.Source == output.SourceNFS && s.NFSClient.Address != ""
		j.done = j.done || s.NFSClient.Host != (output.Host{})
	}
}

// sayClients is how many clients that do not report are named.
const sayClients = 8

// say logs which part of the servers' load has no owner on a client.
func (j *joined) say(log *slog.Logger) {
	for _, t := range j.joiner.Totals() {
		if t.Bytes == 0 {
			continue
		}
		with := log.With("server", t.Host.Name)
		var silent uint64
		for _, n := range t.Silent {
			silent += n
		}
		if silent == 0 {
			with.Info("all that this server did for NFS clients is divided among what the clients report", "bytes", text.Size(t.Bytes))
			continue
		}
		names := slices.SortedFunc(maps.Keys(t.Silent), func(a, b string) int { return cmp.Or(cmp.Compare(t.Silent[b], t.Silent[a]), cmp.Compare(a, b)) })
		var list []string
		for i, name := range names {
			if i == sayClients {
				list = append(list, fmt.Sprintf("%d more", len(names)-i))
				break
			}
			list = append(list, fmt.Sprintf("%s (%s)", text.Safe(name), text.Size(t.Silent[name])))
		}
		with.Warn(fmt.Sprintf("%s of %s that this server did for NFS clients (%.0f %%) cannot be told by project", text.Size(silent), text.Size(t.Bytes), 100*float64(silent)/float64(t.Bytes)),
			"clients", strings.Join(list, "; "))
	}
	if j.sent && j.done {
		log.Warn("TOTAL has the same bytes twice: as clients sent them (nfs) and as the server's disks did (block); --source block shows the disks alone")
	}
}
