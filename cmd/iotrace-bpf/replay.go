package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
)

// replayable are intervals of the past: a recording, or several as one.
type replayable interface {
	// Next returns the next interval, io.EOF after the last, or a *recording.DamageError.
	Next() (*output.Interval, error)
	// Adjust makes Next change every interval before it returns it.
	Adjust(func(*output.Interval))
	Close() error
}

// runReplay shows recordings, through the same flags as live.
func runReplay(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	opt := newOptions()
	fs := opt.replayFlags()
	if err := opt.parseSet(fs, args); err != nil {
		return err
	}
	if opt.fromCluster() {
		if err := opt.checkCluster(fs.Args()); err != nil {
			return err
		}
		return opt.replayCluster(ctx, fs.Args(), stdout, stderr)
	}
	if fs.NArg() == 0 {
		return usagef("replay needs a recording: iotrace-bpf replay FILE, or - for standard input, or --elasticsearch URL --since 1h")
	}
	names, rest := splitRecordings(fs.Args())
	if len(rest) > 0 {
		if _, err := parseDuration(rest[0]); err != nil {
			return usagef("%q is neither a recording that exists nor an interval in seconds", rest[0])
		}
	}
	if err := opt.positional(rest); err != nil {
		return err
	}
	merge := opt.interval > 0
	log := opt.logger(stderr)
	rec, host, timeline, err := openRecordings(names, log)
	if err != nil {
		return err
	}
	defer rec.Close()
	var clients *joined
	if opt.joinsClients() {
		clients = newJoined(rec, opt.narrow)
		rec, timeline = clients, joinedTimeline{timeline, opt.narrow, joinedFrames}
	} else {
		rec.Adjust(opt.narrow)
	}
	fs.sayWarnings(stderr)
	origin := strings.Join(names, " ")
	if f, ok := stdout.(*os.File); ok && opt.report == "" && opt.wantsScreen(f) {
		if merge {
			return usagef("the screen shows a recording interval by interval: for longer ones add --no-tui")
		}
		so := opt.screenOptions(host, origin, f)
		so.Replay, so.Recording = timeline, ""
		return terminal.RunScreen(ctx, nil, so)
	}
	if opt.record == recordStdout {
		if err := notTerminal(stdout); err != nil {
			return err
		}
	}
	main, err := opt.mainSink(stdout, host)
	if err != nil {
		return err
	}
	if opt.report != "" && opt.output == "" && opt.record != recordStdout {
		main = discard{} // the page is the answer
	}
	out, err := opt.openSinks(ctx, main, host, origin, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	r := replayer{opt: opt, out: out}
	switch {
	case clients != nil:
		if merge { // first, so that all of an interval's bytes are divided by all that was sent in it
			clients.replayable = &merged{clients.replayable, output.NewMerger(opt.interval)}
		}
		defer clients.say(log)
	case merge:
		r.merger = output.NewMerger(opt.interval)
	}
	return r.replay(ctx, rec)
}

// splitRecordings divides the arguments into recordings and [INTERVAL [COUNT]]. The first
// is a recording in any case, and so is each one behind it that exists.
func splitRecordings(args []string) (names, rest []string) {
	n := 1
	for n < len(args) {
		if _, err := os.Stat(args[n]); err != nil && args[n] != "-" {
			break
		}
		n++
	}
	return args[:n], args[n:]
}

// openRecordings opens recordings and directories of recordings. Of several it says what
// each has.
func openRecordings(names []string, log *slog.Logger) (_ replayable, host output.Host, _ terminal.Timeline, err error) {
	var readers []*recording.Reader
	defer func() {
		if err != nil {
			for _, r := range readers {
				r.Close()
			}
		}
	}()
	for _, name := range names {
		files := []string{name}
		if fi, serr := os.Stat(name); serr == nil && fi.IsDir() {
			if files, err = recording.InDirectory(name); err != nil {
				return nil, host, nil, err
			}
		}
		for _, f := range files {
			r, err := openRecording(f)
			if err != nil {
				return nil, host, nil, err
			}
			readers = append(readers, r)
		}
	}
	if len(readers) == 1 {
		return readers[0], readers[0].Header().Host, readers[0].Timeline(), nil
	}
	set, err := recording.NewSet(readers)
	if err != nil {
		return nil, host, nil, err
	}
	for _, c := range set.Coverage() {
		sayCoverage(c, log)
	}
	return set, set.Host(), set, nil
}

// sayCoverage logs what a recording has, and warns of what makes its sums or its times
// doubtful.
func sayCoverage(c recording.Coverage, log *slog.Logger) {
	with := log.With("recording", c.Path, "host", c.Host.Name)
	with.Info("replaying", "from", c.Start.Local().Format(time.DateTime), "to", c.End.Local().Format(time.DateTime))
	if c.Gaps > 0 {
		with.Warn("there are times without numbers of this host", "gaps", c.Gaps, "missing", c.Gap.Round(time.Second).String())
	}
	if c.SetBack > 0 {
		with.Warn("the clock of this host was set back while it was recorded: its times are off against other hosts", "by", c.SetBack.Round(time.Millisecond).String())
	}
	if c.Twice > 0 {
		with.Warn("another recording has the same host at the same time: what both counted counts twice", "for", c.Twice.Round(time.Second).String())
	}
}

// openRecording opens a file and those that it became when it was full, a pipe, or
// standard input.
func openRecording(name string) (*recording.Reader, error) {
	if name == "-" {
		if term.IsTerminal(int(os.Stdin.Fd())) {
			return nil, usagef("replay - reads a recording from standard input, which is the terminal: redirect it, or name a file")
		}
		return recording.OpenPipe(os.Stdin, "standard input")
	}
	if fi, err := os.Stat(name); err == nil && fi.Mode()&os.ModeNamedPipe != 0 {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return recording.OpenPipe(f, name)
	}
	return recording.Open(name)
}

// narrow removes from an interval what a live run with these flags would not have
// traced.
func (o *options) narrow(iv *output.Interval) {
	other := func(s output.Source) bool { return len(o.sources) > 0 && !slices.Contains(o.sources, string(s)) }
	iv.Samples = slices.DeleteFunc(iv.Samples, func(s output.Sample) bool { return other(s.Source) })
	iv.Sources = slices.DeleteFunc(iv.Sources, func(s output.SourceStatus) bool { return other(s.Source) })
	iv.Events = slices.DeleteFunc(iv.Events, func(e output.Event) bool {
		return e.IO != nil && other(e.IO.Sample.Source) || e.VXLAN != nil && !o.vxlan
	})
	if o.latency {
		return
	}
	for i := range iv.Samples {
		s := &iv.Samples[i]
		for _, a := range []*output.Amount{&s.Read, &s.Write, &s.Discard, &s.Flush, &s.Metadata} {
			a.Latency = output.Latency{}
		}
	}
	for i := range iv.Events {
		if io := iv.Events[i].IO; io != nil {
			io.Latency = 0
		}
	}
}

// replayer hands the intervals of a recording to the outputs.
type replayer struct {
	opt    *options
	out    *sinks
	merger *output.Merger // nil: intervals as they were recorded
	n      int            // intervals shown
	start  time.Time      // of the first interval
}

// replay writes every interval. Damage in the file is an error at the end; what
// can be read before and after it is shown.
func (r *replayer) replay(ctx context.Context, rec replayable) error {
	var damaged damages
	for ctx.Err() == nil && !r.enough() {
		iv, err := rec.Next()
		var damage *recording.DamageError
		switch {
		case errors.Is(err, io.EOF):
			return errors.Join(damaged.err(), r.flush())
		case errors.As(err, &damage):
			if damaged.last == damage {
				return errors.Join(damaged.err(), r.flush())
			}
			damaged.add(damage)
			r.out.damage(err)
			continue
		case err != nil:
			return errors.Join(damaged.err(), r.flush(), err)
		}
		if r.start.IsZero() {
			r.start = iv.Start
		}
		if d := r.opt.duration; d > 0 && iv.Start.Sub(r.start) >= d {
			break
		}
		if r.merger != nil {
			iv = r.merger.Add(iv)
		}
		if err := r.write(iv); err != nil {
			return err
		}
	}
	return errors.Join(damaged.err(), r.flush())
}

// damages are the damaged places of a recording. There may be many: one line has to do.
type damages struct {
	first, last *recording.DamageError
	n, lost     int
}

func (d *damages) add(e *recording.DamageError) {
	if d.n == 0 {
		d.first = e
	}
	d.last = e
	d.n++
	d.lost += e.Lost
}

func (d *damages) err() error {
	switch d.n {
	case 0:
		return nil
	case 1:
		return d.first
	}
	return fmt.Errorf("%w (and %d more places, %d intervals lost in all)", d.first, d.n-1, d.lost)
}

func (r *replayer) enough() bool { return r.opt.count > 0 && r.n >= r.opt.count }

// write shows an interval. It does nothing where the merger has none yet.
func (r *replayer) write(iv *output.Interval) error {
	if iv == nil {
		return nil
	}
	r.n++
	return r.out.write(output.Group(iv, r.opt.group), iv)
}

// flush shows what a merger still has.
func (r *replayer) flush() error {
	if r.merger == nil || r.enough() {
		return nil
	}
	return r.write(r.merger.Flush())
}

// discard is a sink that ignores everything.
type discard struct{}

func (discard) Write(*output.Summary, *output.Interval) error { return nil }
func (discard) Close() error                                  { return nil }
