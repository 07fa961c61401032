package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/file"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/otlp"
	"github.com/iotrace-bpf/iotrace-bpf/output/prometheus"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
	"github.com/iotrace-bpf/iotrace-bpf/output/report"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
)

// sink is one output. Write gets an interval, and a summary of it that the sink may use.
type sink interface {
	Write(*output.Summary, *output.Interval) error
	Close() error
}

// sinks are all outputs of a run. The main one is standard output or the screen: the run
// ends when it fails. When another one fails, only its own documents are lost, and they
// are counted. None waits for another that is stuck.
type sinks struct {
	main   *outlet
	others []*outlet
	log    *slog.Logger
	ctx    context.Context // of the run: done when the user wants it to end
	late   context.Context // done lastTime after that: nobody waits for standard output any more
	live   bool            // the intervals do not wait, unlike those of a recording
	told   bool            // write has returned the failure of main

	mu   sync.Mutex
	lost uint64 // documents and intervals that outputs lost, since the beginning
}

func newSinks(ctx context.Context, main sink, live bool, log *slog.Logger) *sinks {
	s := &sinks{log: log, ctx: ctx, live: live}
	var giveUp context.CancelFunc
	s.late, giveUp = context.WithCancel(context.Background())
	context.AfterFunc(ctx, func() { time.AfterFunc(lastTime, giveUp) })
	s.main = newOutlet(s, "standard output", main)
	return s
}

// add adds an output before the first interval.
func (s *sinks) add(name string, k sink) *outlet {
	o := newOutlet(s, name, k)
	s.others = append(s.others, o)
	return o
}

// lose counts n losses and returns all.
func (s *sinks) lose(n uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += n
	return s.lost
}

// lossCounter is a sink that counts its lost documents itself, because it may lose them
// after Write.
type lossCounter interface {
	lost() uint64 // documents, since the beginning
}

const (
	// warnInterval is the shortest time between two warnings about the same output.
	warnInterval = time.Minute
	// patience is how long an interval waits for outputs that are behind, all together:
	// the kernel counts on meanwhile, so a slow output costs the length of an interval
	// and no data. An output that is not in time is not waited for until it has caught up.
	patience = time.Second
	// lastTime is how long the end of a run waits for outputs that are stuck.
	lastTime = 30 * time.Second
)

// write hands an interval to all outputs and returns the first error of the main one. Of
// a live run with several outputs it waits patience at most. A replay waits for every output, so that nothing
// is dropped, or until the user wants to end.
func (s *sinks) write(summary *output.Summary, iv *output.Interval) error {
	return s.writePart(summary, iv, iv)
}

// export hands a part of an interval to the exporters, which have intervals of their own.
// It waits for nothing: the next interval does.
func (s *sinks) export(part *output.Interval) {
	for _, o := range s.others {
		if o.exports {
			o.put(job{summary: &output.Summary{}, iv: part})
		}
	}
}

// writePart is write for an interval whose last part alone is new to the exporters; nil
// means that they have all of it.
func (s *sinks) writePart(summary *output.Summary, iv, part *output.Interval) error {
	j := job{summary: summary, iv: iv}
	for _, o := range s.others {
		switch {
		case !o.exports:
			o.put(j)
		case part != nil:
			o.put(job{summary: summary, iv: part})
		}
	}
	if !s.live {
		for _, o := range s.others {
			o.wait(o.idle, s.ctx.Done())
		}
		s.main.put(j)
		s.main.wait(s.main.idle, s.ctx.Done())
		return s.failure()
	}
	s.main.put(j)
	if len(s.others) == 0 {
		// Nobody else is held up, and while this program waits the kernel goes on counting:
		// nothing is lost but time.
		s.main.wait(s.main.idle, s.late.Done())
		return s.failure()
	}
	late, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	catchUp := func(o *outlet, state func() bool) {
		if state() {
			o.stuck = false
		} else if !o.stuck {
			o.stuck = !o.wait(state, late.Done())
		}
	}
	catchUp(s.main, s.main.idle)
	for _, o := range s.others {
		catchUp(o, o.ready)
	}
	return s.failure()
}

// failure returns the error of the main output.
func (s *sinks) failure() error {
	err := s.main.failure()
	s.told = s.told || err != nil
	return err
}

// damage tells a report that a part of its recording cannot be read.
func (s *sinks) damage(err error) {
	for _, o := range s.others {
		o.put(job{do: func(k sink) {
			if page, ok := k.(*reportSink); ok {
				page.report.Damage(err)
			}
		}})
	}
}

// Close closes all outputs, at the same time. It waits lastTime at most for those that
// are stuck, but for the main one of a run that has come to its end by itself as long as
// its reader needs.
func (s *sinks) Close() error {
	all := append([]*outlet{s.main}, s.others...)
	for _, o := range all {
		o.finish()
	}
	late, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer time.AfterFunc(lastTime, cancel).Stop()
	waiting := time.AfterFunc(2*time.Second, func() {
		var names []string
		for _, o := range all {
			if !o.idle() {
				names = append(names, o.name)
			}
		}
		if len(names) > 0 {
			s.log.Warn("the end waits for outputs that are slow or stuck: a second Ctrl-C ends the program at once", "outputs", strings.Join(names, ", "))
		}
	})
	defer waiting.Stop()
	errs := []error{s.main.close(s.late.Done())}
	for _, o := range s.others {
		errs = append(errs, o.close(late.Done()))
	}
	if !s.told {
		errs = append(errs, s.failure())
	}
	return errors.Join(errs...)
}

// live is the origin of intervals that are no recording's.
const live = "live"

// openSinks opens every output that the flags ask for. main is the one on standard
// output.
func (o *options) openSinks(ctx context.Context, main sink, host output.Host, origin string, log *slog.Logger) (_ *sinks, err error) {
	s := newSinks(ctx, main, origin == live, log)
	defer func() {
		if err != nil {
			for _, o := range s.others {
				o.finish()
				<-o.done
			}
		}
	}()
	var es *elastic.Shipper
	if len(o.elasticsearch) > 0 {
		eo, err := o.elasticsearchOptions(log)
		if err != nil {
			return nil, err
		}
		if es, err = elastic.New(ctx, eo); err != nil {
			return nil, err
		}
		var k sink = &elasticsearchSink{es: es, opt: o.documents(), log: log}
		if !o.events {
			k = newExportSink(o, s.live, k.(exporter))
		}
		s.add("--elasticsearch", k).exports = !o.events
	}
	if o.otlp != "" {
		e, err := otlp.New(otlp.Options{URL: o.otlp, Headers: os.Getenv(otlp.EnvHeaders), Version: versionText(), Logger: log})
		if err != nil {
			return nil, err
		}
		s.add("--otlp", newExportSink(o, false, otlpSink{e})).exports = true
	}
	if o.prometheus != "" {
		po := prometheus.Options{Version: versionText(), Logger: log,
			MaxSeries: o.promMaxSeries, IdleTime: o.promIdle, WebConfig: o.promWebConfig}
		if es != nil {
			po.Elasticsearch = func() prometheus.Shipping { return shipping(es.Stats()) }
		}
		p, err := prometheus.New(o.prometheus, po)
		if err != nil {
			return nil, err
		}
		s.add("--prometheus", prometheusSink{p}).exports = true
		level := slog.LevelInfo
		if _, port, err := net.SplitHostPort(p.Addr()); err == nil && !strings.HasSuffix(o.prometheus, port) {
			level = slog.LevelWarn // the system has chosen the port: nobody can know it
		}
		log.Log(ctx, level, "serving metrics", "address", p.Addr())
	}
	if o.record != "" && o.record != recordStdout {
		r, err := recording.Create(o.record, recording.Options{
			MaxBytes: o.recordSize, Tool: versionText(), Host: host,
		})
		if err != nil {
			return nil, err
		}
		s.add("--record", recordingSink{r})
	}
	if o.report != "" {
		r, err := newReportSink(o, host, origin)
		if err != nil {
			return nil, err
		}
		s.add("--report", r)
	}
	return s, nil
}

// documents says how NDJSON documents are made.
func (o *options) documents() ndjson.Options {
	return ndjson.Options{Namespace: o.namespace, ExportLabels: o.exportLabels, ExportFiles: o.exportFiles, Events: o.events}
}

// printer returns the sink of standard output when there is no screen.
func (o *options) printer(stdout io.Writer) sink {
	if o.output == "ndjson" {
		return ndjson.New(stdout, o.documents())
	}
	return terminal.NewTable(stdout, terminal.TableOptions{Group: o.group, Accumulate: o.accumulate, InPlace: o.inPlace})
}

// recordStdout is the FILE of --record that is standard output.
const recordStdout = "-"

// mainSink returns the sink of standard output, which a recording has for itself.
func (o *options) mainSink(stdout io.Writer, host output.Host) (sink, error) {
	if o.record != recordStdout {
		return o.printer(stdout), nil
	}
	r, err := recording.NewStreamWriter(stdout, recording.Options{Tool: versionText(), Host: host})
	if err != nil {
		return nil, err
	}
	return streamSink{r}, nil
}

// notTerminal refuses to write a recording to a terminal.
func notTerminal(stdout io.Writer) error {
	if f, ok := stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return usagef("--record - writes a recording to standard output, which is the terminal: redirect it, or name a file")
	}
	return nil
}

// elasticsearchOptions reads the credentials from files or the environment.
func (o *options) elasticsearchOptions(log *slog.Logger) (elastic.Options, error) {
	eo := elastic.Options{URLs: o.elasticsearch, SpoolDir: o.spool, Logger: log}
	eo.Credentials.CAFile, eo.Credentials.Fingerprint, eo.Credentials.Username = o.esCA, o.esFingerprint, o.esUser
	if err := eo.Credentials.Load(o.esAPIKeyFile, o.esPasswordFile, os.Getenv, log); err != nil {
		return eo, fmt.Errorf("elasticsearch credentials: %w", err)
	}
	return eo, nil
}

// elasticsearchSink ships what NDJSON would print.
type elasticsearchSink struct {
	es       *elastic.Shipper
	opt      ndjson.Options
	log      *slog.Logger
	rejected uint64           // documents that Ship did not take
	before   [2]elastic.Stats // when the last intervals were shipped
	told     bool             // of another instance
}

// Write ships an interval as it is (--events).
func (s *elasticsearchSink) Write(summary *output.Summary, iv *output.Interval) error {
	return s.export(summary, iv)
}

func (s *elasticsearchSink) covered() bool {
	is, was := s.es.Stats(), &s.before[0]
	covered := is.Conflicts-was.Conflicts > is.Delivered-was.Delivered
	if covered && !s.told {
		s.told = true
		s.log.Warn("the server has the documents of this host already, from another instance of this program: " +
			"it takes ours only where that one has none. Is iotrace-bpf running twice with --elasticsearch?")
	}
	return covered
}

func (s *elasticsearchSink) export(summary *output.Summary, iv *output.Interval) error {
	s.before[0], s.before[1] = s.before[1], s.es.Stats()
	var first error // there may be thousands, and all have the same cause
	for d := range ndjson.Documents(summary, iv, s.opt) {
		stream := strings.Join([]string{d.Type, d.Dataset, d.Namespace}, "-")
		if err := s.es.Ship(stream, d.ID, d.Line); err != nil {
			s.rejected++
			if first == nil {
				first = err
			}
		}
	}
	return first
}

func (s *elasticsearchSink) lost() uint64 {
	st := s.es.Stats()
	return st.Lost() + s.rejected
}

// shipping returns what /metrics shows of an Elasticsearch output.
func shipping(s elastic.Stats) prometheus.Shipping {
	return prometheus.Shipping{
		Delivered: s.Delivered, Duplicates: s.Duplicates, SoftFailures: s.SoftFailures, DeadLettered: s.DeadLettered,
		Dropped: s.Dropped, Pending: s.Pending, SpoolBytes: s.SpoolBytes, Failing: s.Failing,
	}
}

// closeTime is how long Close waits for the last documents. The spool keeps those that
// remain.
const closeTime = 10 * time.Second

func (s *elasticsearchSink) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	waiting := time.AfterFunc(time.Second, func() {
		s.log.Warn("waiting for Elasticsearch to take the last documents, up to "+closeTime.String(), "documents", s.es.Stats().Pending)
	})
	defer waiting.Stop()
	err := s.es.Close(ctx)
	if n := s.es.Stats().Pending; n > 0 {
		s.log.Warn("Elasticsearch does not have all documents yet: the next run with this spool delivers the rest", "documents", n)
	}
	return err
}

// otlpSink sends metrics. A receiver keeps what it gets twice: nothing is known of other
// instances.
type otlpSink struct{ *otlp.Exporter }

func (s otlpSink) export(summary *output.Summary, iv *output.Interval) error {
	return s.Export(summary, iv)
}

func (s otlpSink) covered() bool { return false }

func (s otlpSink) lost() uint64 {
	st := s.Stats()
	return st.Lost()
}

func (s otlpSink) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	return s.Exporter.Close(ctx)
}

type prometheusSink struct{ *prometheus.Exporter }

func (s prometheusSink) Write(_ *output.Summary, iv *output.Interval) error {
	s.Observe(iv)
	return nil
}

func (s prometheusSink) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	return s.Exporter.Close(ctx)
}

type recordingSink struct{ *recording.Writer }

func (s recordingSink) Write(_ *output.Summary, iv *output.Interval) error {
	return s.Writer.Write(iv)
}

type streamSink struct{ *recording.StreamWriter }

func (s streamSink) Write(_ *output.Summary, iv *output.Interval) error {
	return s.StreamWriter.Write(iv)
}

// reportSink collects intervals and writes the HTML page on Close.
type reportSink struct {
	report *report.Report
	path   string
}

func newReportSink(o *options, host output.Host, origin string) (*reportSink, error) {
	// A path that cannot be written is an error before the run, not after it.
	if err := file.CanReplace(o.report); err != nil {
		return nil, fmt.Errorf("writing the report: %w", err)
	}
	return &reportSink{path: o.report, report: report.New(o.reportOptions(o.group, host, origin))}, nil
}

// reportOptions says what a page shows of a host.
func (o *options) reportOptions(group output.GroupOptions, host output.Host, origin string) report.Options {
	title := "I/O report"
	if host.Name != "" {
		title += " of " + host.Name
	}
	return report.Options{
		Title: title, By: group.By, Filters: group.Filters, CgroupDepth: group.CgroupDepth, Top: o.top,
		Tool: versionText(), Origin: origin, Location: time.Local, Now: time.Now(), Command: commandLine(),
	}
}

// commandLine is how this program was called, as a shell takes it.
func commandLine() string {
	words := []string{"iotrace-bpf"}
	for _, a := range os.Args[1:] {
		words = append(words, shellWord(a))
	}
	return strings.Join(words, " ")
}

// plainWord are the characters that mean nothing to a shell.
const plainWord = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%"

func (s *reportSink) Write(_ *output.Summary, iv *output.Interval) error {
	s.report.Add(iv)
	return nil
}

func (s *reportSink) Close() error {
	s.report.Made(time.Now())
	return s.report.WriteFile(s.path)
}

// screenSink hands intervals to the screen.
type screenSink struct {
	intervals chan *output.Interval
	gone      <-chan struct{} // closed when the operator has left the screen
}

func (s *screenSink) Write(_ *output.Summary, iv *output.Interval) error {
	select {
	case s.intervals <- iv:
	case <-s.gone:
	}
	return nil
}

func (s *screenSink) Close() error {
	close(s.intervals)
	return nil
}

// messageLines hands log lines to a channel while the screen has the terminal. It drops
// a line when the channel is full.
type messageLines struct {
	lines chan string
	mu    sync.Mutex
	part  strings.Builder // of a line without its end
}

func (w *messageLines) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range p {
		if b != '\n' {
			w.part.WriteByte(b)
			continue
		}
		select {
		case w.lines <- w.part.String():
		default:
		}
		w.part.Reset()
	}
	return len(p), nil
}
