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

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
)

// clusterFlags are the flags of a replay from a server.
func (o *options) clusterFlags(fs *pflag.FlagSet) {
	fs.Var(&moment{value: &o.since}, "since", "show what hosts shipped to --elasticsearch since `TIME`: 1h (ago), 2026-03-04 05:06, or RFC 3339")
	fs.Var(&moment{value: &o.until}, "until", "up to `TIME` (default: now)")
	fs.BoolVar(&o.follow, "follow", false, "go on with what hosts ship from now on")
}

// A moment is a flag's point in time: a duration ago, or a date with a time of day.
type moment struct {
	value *time.Time
	text  string
}

func (m *moment) Set(s string) error {
	m.text = s
	if d, err := parseDuration(s); err == nil {
		*m.value = time.Now().Add(-d)
		return nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			*m.value = t
			return nil
		}
	}
	return errors.New(`must be how long ago (30m, 24h) or a time such as "2026-03-04 05:06"`)
}

func (m *moment) String() string { return m.text }

func (m *moment) Type() string { return "TIME" }

const (
	// followLag is how long documents may take from a host to where a search finds them:
	// an export interval, the queue, the refresh of the index.
	followLag = 20 * time.Second
	// followStep is the shortest interval that is followed: what hosts ship by default.
	followStep = 10 * time.Second
	// silentAfter is after how long without documents a host counts as silent.
	silentAfter = time.Minute
	// clusterSteps is about how many intervals the screen and a report show.
	clusterSteps = 60
	// sayHosts is how many hosts are named in warnings of one kind.
	sayHosts = 20
)

// fromCluster tells whether the flags ask for a replay from a server.
func (o *options) fromCluster() bool { return !o.since.IsZero() || o.follow }

// checkCluster looks for contradictions of a replay from a server.
func (o *options) checkCluster(args []string) error {
	for _, a := range args {
		if _, err := parseDuration(a); err != nil {
			return usagef("--since and --follow show what a cluster has, and %q is a recording: leave out one of the two", a)
		}
	}
	switch {
	case o.follow && !o.until.IsZero():
		return usagef("--follow has no end, and --until is one: leave out one of the two")
	case o.events:
		return usagef("--events shows single requests, which are not read from a cluster: leave it out")
	}
	now := time.Now()
	if o.until.IsZero() {
		o.until = now
	}
	if o.since.IsZero() {
		o.since = now
	}
	if o.until.Before(o.since) || !o.follow && o.until.Equal(o.since) {
		return usagef("--until %s is not after --since %s", o.until.Format(time.DateTime), o.since.Format(time.DateTime))
	}
	return nil
}

func keysOf(filters []output.Filter) (keys []output.Key) {
	for _, f := range filters {
		keys = append(keys, f.Key)
	}
	return keys
}

// labels are the container labels that rows and filters need.
func (o *options) labels() (names []string) {
	for _, k := range slices.Concat(o.group.By, keysOf(o.group.Filters)) {
		if name, ok := k.Label(); ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// stepFor divides a time into about clusterSteps intervals of a round length.
func stepFor(d time.Duration) time.Duration {
	for _, step := range []time.Duration{
		10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 6 * time.Hour,
	} {
		if d <= clusterSteps*step {
			return step
		}
	}
	return 24 * time.Hour
}

// replayCluster shows what a server has, through the same flags as a recording.
func (o *options) replayCluster(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	if err := o.positional(args); err != nil {
		return err
	}
	log := o.logger(stderr)
	eo, err := o.elasticsearchOptions(log)
	if err != nil {
		return err
	}
	origin := strings.Join(o.elasticsearch, " ")
	o.elasticsearch = nil // what is read from it does not go there again
	r, err := elastic.OpenReader(ctx, eo, elastic.QueryOptions{
		Namespace: o.namespace, Since: o.since, Until: o.until, Labels: o.labels(), Latency: o.latency,
	})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := o.sayCluster(r, log); err != nil {
		return err
	}
	var host output.Host
	if hosts := r.Hosts(); len(hosts) == 1 {
		host = hosts[0].Host
	}
	f, isFile := stdout.(*os.File)
	screen := isFile && o.report == "" && o.wantsScreen(f)
	step := o.interval
	switch {
	case step > 0:
	case o.follow:
		step = followStep
	case screen || o.report != "" || o.record != "":
		step = stepFor(o.until.Sub(o.since))
	default:
		step = o.until.Sub(o.since) // one table of all
	}
	c := &cluster{ctx: ctx, r: r, next: o.since, end: o.until, step: step, follow: o.follow, log: log, narrow: o.narrow}
	o.flags.sayWarnings(stderr)
	if screen {
		return o.clusterScreen(ctx, c, host, origin, f)
	}
	main := o.printer(stdout)
	if o.report != "" && o.output == "" {
		main = discard{} // the page is the answer
	}
	out, err := o.openSinks(ctx, main, host, origin, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	var rec replayable = c
	if o.joinsClients() {
		clients := newJoined(c, o.narrow)
		defer clients.say(log)
		rec = clients
	}
	return (&replayer{opt: o, out: out}).replay(ctx, rec)
}

// clusterScreen shows a cluster on the screen: the time that was asked for, interval by
// interval, or what comes.
func (o *options) clusterScreen(ctx context.Context, c *cluster, host output.Host, origin string, stdout *os.File) error {
	so := o.screenOptions(host, origin, stdout)
	so.Recording = ""
	if !c.follow {
		so.Replay = narrowed{c.r.Timeline(ctx, c.step), o.narrow}
		if o.joinsClients() {
			so.Replay = joinedTimeline{c.r.Timeline(ctx, c.step), o.narrow, joinedSearches}
		}
		return terminal.RunScreen(ctx, nil, so)
	}
	ctx, cancel := context.WithCancel(ctx)
	messages := &messageLines{lines: make(chan string, 16)}
	so.Notices, c.log, c.ctx = messages.lines, o.logger(messages), ctx
	var rec replayable = c
	if o.joinsClients() {
		rec = newJoined(c, o.narrow)
	}
	intervals := make(chan *output.Interval)
	ended := make(chan error, 1)
	go func() {
		defer close(intervals)
		for {
			iv, err := rec.Next()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				ended <- err
				return
			}
			select {
			case intervals <- iv:
			case <-ctx.Done():
				ended <- nil
				return
			}
		}
	}()
	err := terminal.RunScreen(ctx, intervals, so)
	cancel()
	return errors.Join(err, <-ended)
}

// narrowed is a timeline of which a part is left out.
type narrowed struct {
	terminal.Timeline
	narrow func(*output.Interval)
}

func (n narrowed) Frame(i int) (*output.Interval, error) {
	iv, err := n.Timeline.Frame(i)
	if err == nil {
		n.narrow(iv)
	}
	return iv, err
}

// sayCluster says what makes the numbers of a cluster doubtful, and refuses keys that its
// documents do not have.
func (o *options) sayCluster(r *elastic.Reader, log *slog.Logger) error {
	grain := r.Grain()
	switch {
	case grain == "" && r.Old:
		log.Warn("the documents do not say by which keys they were made: sums are right if all hosts shipped with the same --by, and once")
	case grain != "" && grain != elastic.DefaultGrain:
		log.Warn("hosts ship with other keys than usual, and only these documents are read", "keys", grain)
	case grain != "":
		log.Info("reading", "keys", grain)
	}
	if r.Old && grain != "" {
		log.Warn("documents of an earlier version, which do not say their keys, are left out")
	}
	if grain != "" && o.wants(output.KeyProcess) && !strings.Contains(grain, string(output.KeyProcess)) {
		return usagef("the documents of this cluster have no processes: hosts ship rows by %s", grain)
	}
	if grain != "" && len(o.labels()) > 0 && !slices.Contains(strings.Split(grain, ","), string(output.KeyContainer)) {
		return usagef("the documents of this cluster have no containers, whose labels could be read: hosts ship rows by %s", grain)
	}
	if len(r.Unmapped) > 0 {
		log.Warn("the server's templates are older than this version, and these fields count as absent: iotrace-bpf elasticsearch setup", "fields", strings.Join(r.Unmapped, ","))
	}
	if o.latency && !r.Latencies() {
		log.Info("no latencies: the server has no fields of the type histogram, or no documents with them")
	}
	hosts := r.Hosts()
	if len(hosts) == 0 {
		since, until := r.Range()
		log.Warn("no host shipped anything", "from", since.Format(time.DateTime), "to", until.Format(time.DateTime))
	}
	silent := r.Silent(max(silentAfter, 3*o.interval))
	for i, h := range silent {
		if i == sayHosts {
			log.Warn(fmt.Sprintf("%d more hosts are silent", len(silent)-sayHosts))
			break
		}
		log.Warn("a host is silent: nothing of it is counted after its last document", "host", h.Host.Name, "last", h.Last.Local().Format(time.DateTime))
	}
	said := 0
	for _, h := range hosts {
		if words := h.LostWords(); words != "" {
			if said++; said > sayHosts {
				log.Warn("more hosts have reported losses")
				break
			}
			log.Warn("a host has reported losses", "host", h.Host.Name, "lost", words)
		}
	}
	return nil
}

// cluster are the intervals of a server, one after the other.
type cluster struct {
	ctx       context.Context
	r         *elastic.Reader
	next, end time.Time
	step      time.Duration
	follow    bool
	log       *slog.Logger
	narrow    func(*output.Interval)
}

// Adjust implements replayable; narrow is set already.
func (c *cluster) Adjust(f func(*output.Interval)) { c.narrow = f }

// Close implements replayable; who opened the Reader closes it.
func (c *cluster) Close() error { return nil }

// Next implements replayable. With follow it waits until the documents of the next interval
// have had the time to arrive, and asks again where the server does not answer.
func (c *cluster) Next() (*output.Interval, error) {
	to := c.next.Add(c.step)
	if !c.follow {
		if !c.next.Before(c.end) {
			return nil, io.EOF
		}
		if to.After(c.end) {
			to = c.end
		}
	}
	for {
		if c.follow && !c.wait(time.Until(to.Add(followLag))) {
			return nil, io.EOF
		}
		iv, err := c.r.Interval(c.ctx, c.next, to)
		switch {
		case err == nil:
			c.next = to
			c.narrow(iv)
			return iv, nil
		case c.ctx.Err() != nil:
			return nil, io.EOF
		case !c.follow:
			return nil, err
		}
		c.log.Warn("the server does not answer, and is asked again", "error", err)
		if !c.wait(c.step) {
			return nil, io.EOF
		}
	}
}

// wait waits, and reports whether the run goes on.
func (c *cluster) wait(d time.Duration) bool {
	if d <= 0 {
		return c.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}
