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

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
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
// are counted.
type sinks struct {
	main   sink
	others []sink
	log    *slog.Logger

	lost   uint64          // documents that outputs lost, since the beginning
	states map[sink]*state // of main and others
}

// state is what sinks remembers of an output.
type state struct {
	warned   time.Time // when its failure was last logged
	lost     uint64    // documents that it had lost when it was last asked
	reported uint64    // the part of sinks.lost that its intervals have contained
}

// lossCounter is a sink that counts its lost documents itself, because it may lose them
// after Write.
type lossCounter interface {
	lost() uint64 // documents, since the beginning
}

// warnInterval is the shortest time between two warnings about the same output.
const warnInterval = time.Minute

// write hands an interval to all sinks. Its Lost.Exports contains, for each sink, the
// losses of all sinks since that sink's last interval: so the intervals of each sink add
// up to the same loss, even if it writes before the sink that fails.
func (s *sinks) write(summary *output.Summary, iv *output.Interval) error {
	exports := iv.Lost.Exports
	to := func(k sink) error {
		st := s.states[k]
		if st == nil {
			st = &state{}
			s.states[k] = st
		}
		iv.Lost.Exports = exports + s.lost - st.reported
		st.reported = s.lost
		err := k.Write(summary, iv)
		if l, ok := k.(lossCounter); ok {
			now := l.lost()
			s.lost += now - st.lost
			st.lost = now
		} else if err != nil {
			s.lost++
		}
		return err
	}
	for _, k := range s.others {
		if err := to(k); err != nil && time.Since(s.states[k].warned) > warnInterval {
			s.states[k].warned = time.Now()
			s.log.Warn("writing to an output failed", "error", err)
		}
	}
	return to(s.main)
}

func (s *sinks) Close() error {
	errs := []error{s.main.Close()}
	for _, k := range s.others {
		errs = append(errs, k.Close())
	}
	return errors.Join(errs...)
}

// openSinks opens every output that the flags ask for. main is the one on standard
// output.
func (o *options) openSinks(ctx context.Context, main sink, host output.Host, origin string, log *slog.Logger) (_ *sinks, err error) {
	s := &sinks{main: main, log: log, states: map[sink]*state{}}
	defer func() {
		if err != nil {
			for _, k := range s.others {
				k.Close()
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
		s.others = append(s.others, &elasticsearchSink{es: es, opt: o.documents(), log: log})
	}
	if o.prometheus != "" {
		po := prometheus.Options{Version: versionText(), Logger: log}
		if es != nil {
			po.Elasticsearch = func() prometheus.Shipping { return shipping(es.Stats()) }
		}
		p, err := prometheus.New(o.prometheus, po)
		if err != nil {
			return nil, err
		}
		s.others = append(s.others, prometheusSink{p})
		level := slog.LevelInfo
		if _, port, err := net.SplitHostPort(p.Addr()); err == nil && !strings.HasSuffix(o.prometheus, port) {
			level = slog.LevelWarn // the system has chosen the port: nobody can know it
		}
		log.Log(ctx, level, "serving metrics", "address", p.Addr())
	}
	if o.record != "" {
		r, err := recording.Create(o.record, recording.Options{
			MaxBytes: o.recordSize, Tool: versionText(), Host: host,
		})
		if err != nil {
			return nil, err
		}
		s.others = append(s.others, recordingSink{r})
	}
	if o.report != "" {
		r, err := newReportSink(o, host, origin)
		if err != nil {
			return nil, err
		}
		s.others = append(s.others, r)
	}
	return s, nil
}

// documents says how NDJSON documents are made.
func (o *options) documents() ndjson.Options {
	return ndjson.Options{Namespace: o.namespace, ExportLabels: o.exportLabels, Events: o.events}
}

// printer returns the sink of standard output when there is no screen.
func (o *options) printer(stdout io.Writer) sink {
	if o.output == "ndjson" {
		return ndjson.New(stdout, o.documents())
	}
	return terminal.NewTable(stdout, terminal.TableOptions{Group: o.group, Accumulate: o.accumulate, InPlace: o.inPlace})
}

// elasticsearchOptions reads the credentials from files or the environment.
func (o *options) elasticsearchOptions(log *slog.Logger) (elastic.Options, error) {
	eo := elastic.Options{URLs: o.elasticsearch, SpoolDir: o.spool, Logger: log}
	eo.Credentials.CAFile, eo.Credentials.Fingerprint, eo.Credentials.Username = o.esCA, o.esFingerprint, o.esUser
	if err := eo.Credentials.Load(o.esAPIKeyFile, o.esPasswordFile, os.Getenv); err != nil {
		return eo, fmt.Errorf("elasticsearch credentials: %w", err)
	}
	return eo, nil
}

// elasticsearchSink ships what NDJSON would print.
type elasticsearchSink struct {
	es       *elastic.Shipper
	opt      ndjson.Options
	log      *slog.Logger
	rejected uint64 // documents that Ship did not take
}

func (s *elasticsearchSink) Write(summary *output.Summary, iv *output.Interval) error {
	var first error // there may be thousands, and all have the same cause
	for d := range ndjson.Documents(summary, iv, s.opt) {
		stream := strings.Join([]string{d.Type, d.Dataset, d.Namespace}, "-")
		if err := s.es.Ship(stream, d.Line); err != nil {
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

// reportSink collects intervals and writes the HTML page on Close.
type reportSink struct {
	report *report.Report
	file   *os.File
}

func newReportSink(o *options, host output.Host, origin string) (*reportSink, error) {
	// Created now: a path that cannot be written is an error before the run, not after it.
	f, err := os.OpenFile(o.report, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &reportSink{file: f, report: report.New(o.reportOptions(o.group, host, origin))}, nil
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
		if strings.ContainsFunc(a, func(r rune) bool { return !strings.ContainsRune(plainWord, r) }) || a == "" {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
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
	_, err := s.report.WriteTo(s.file)
	if err := errors.Join(err, s.file.Close()); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
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
