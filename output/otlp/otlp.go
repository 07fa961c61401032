// Package otlp sends intervals as metrics to an OpenTelemetry receiver: OTLP over HTTP,
// as protobuf.
package otlp

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/klauspost/compress/gzip"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// EnvHeaders is the environment variable of the OpenTelemetry specification for headers
// such as Authorization: KEY=VALUE pairs with commas between them, values percent-encoded.
const EnvHeaders = "OTEL_EXPORTER_OTLP_HEADERS"

// Options are the options of New. The zero value of a field is its default.
type Options struct {
	// URL is that of the receiver. Without a path, /v1/metrics is added, as the
	// specification has it.
	URL string
	// Headers are the value of EnvHeaders.
	Headers string
	// QueueBytes bounds the memory of intervals that wait, 16 MiB by default. The oldest
	// are dropped when it is full.
	QueueBytes int
	// Version is that of the instrumentation scope.
	Version string
	// Logger receives failures; nil discards them.
	Logger *slog.Logger

	wait time.Duration // the first one between attempts
}

// Stats counts data points since New.
type Stats struct {
	Delivered uint64
	Rejected  uint64 // by the receiver, for good
	Dropped   uint64 // lost: no room in memory, or no receiver at the end
	Pending   uint64
	Failing   bool // the last attempt failed
}

// Lost is how many data points will never arrive.
func (s *Stats) Lost() uint64 { return s.Rejected + s.Dropped }

// request is the body of one request.
type request struct {
	body   []byte // gzip
	points uint64
}

// Exporter sends metrics. Export and Stats may be called by several goroutines.
type Exporter struct {
	opt    Options
	url    string
	header http.Header
	client *http.Client

	mu     sync.Mutex
	queue  []request
	queued int
	stats  Stats
	closed bool

	more   chan struct{} // has a value when there is work
	end    context.CancelFunc
	done   chan struct{}
	warned time.Time // of loop
}

const (
	defaultQueue   = 16 << 20
	requestTime    = 30 * time.Second
	firstWait      = time.Second
	longestWait    = time.Minute
	maxReply       = 64 << 10 // bytes of an answer that are read
	warnInterval   = time.Minute
	maxRetryHeader = 10 * time.Minute
)

// New starts an exporter. A URL or headers that cannot be used are an error, a receiver
// that cannot be reached is none.
func New(opt Options) (*Exporter, error) {
	u, err := url.Parse(opt.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("OTLP URL %q: want http://HOST:4318 or https://HOST", opt.URL)
	}
	if u.User != nil {
		return nil, fmt.Errorf("OTLP URL with a password: put it into %s, as Authorization=Basic%%20 and the password in Base64", EnvHeaders)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/metrics"
	}
	header, err := parseHeaders(opt.Headers)
	if err != nil {
		return nil, err
	}
	opt.QueueBytes, opt.wait = cmp.Or(opt.QueueBytes, defaultQueue), cmp.Or(opt.wait, firstWait)
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, end := context.WithCancel(context.Background())
	e := &Exporter{
		opt: opt, url: u.String(), header: header, more: make(chan struct{}, 1), end: end, done: make(chan struct{}),
		// A redirect would hand the headers to somebody else.
		client: &http.Client{Timeout: requestTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	go e.loop(ctx)
	return e, nil
}

// parseHeaders reads EnvHeaders. Errors do not quote values, which are secrets.
func parseHeaders(s string) (http.Header, error) {
	h := make(http.Header)
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if key = strings.TrimSpace(key); !ok || key == "" || err != nil || strings.ContainsAny(key+value, "\r\n") {
			return nil, fmt.Errorf("%s: want KEY=VALUE,KEY=VALUE with percent-encoded values", EnvHeaders)
		}
		h.Set(key, value)
	}
	return h, nil
}

// Export takes the rows of an interval. It never waits: without room it drops the oldest
// intervals and counts their data points.
func (e *Exporter) Export(summary *output.Summary, iv *output.Interval) error {
	message, points := metrics(summary, iv, e.opt.Version)
	if points == 0 {
		return nil
	}
	plain, err := proto.Marshal(message)
	if err != nil {
		return fmt.Errorf("encoding metrics: %w", err)
	}
	var body bytes.Buffer
	zw, err := gzip.NewWriterLevel(&body, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err = zw.Write(plain); err == nil {
		err = zw.Close()
	}
	if err != nil {
		return fmt.Errorf("compressing metrics: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		e.stats.Dropped += points
		return errors.New("OTLP output is closed")
	}
	e.queue = append(e.queue, request{body.Bytes(), points})
	e.queued += body.Len()
	e.stats.Pending += points
	for e.queued > e.opt.QueueBytes {
		e.drop()
	}
	e.wake()
	return nil
}

func (e *Exporter) wake() {
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// drop gives the oldest request up. The caller holds e.mu.
func (e *Exporter) drop() {
	r := e.pop()
	e.stats.Dropped += r.points
	e.stats.Pending -= r.points
}

func (e *Exporter) pop() request {
	r := e.queue[0]
	e.queue[0] = request{}
	e.queue = e.queue[1:]
	e.queued -= len(r.body)
	return r
}

// Stats returns the counters.
func (e *Exporter) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

// Close delivers what waits until ctx ends. What is left then is lost, and an error.
func (e *Exporter) Close(ctx context.Context) error {
	e.mu.Lock()
	e.closed = true
	e.wake()
	e.mu.Unlock()
	select {
	case <-e.done:
	case <-ctx.Done():
		e.end()
		<-e.done
	}
	e.end()
	e.mu.Lock()
	defer e.mu.Unlock()
	left := e.stats.Pending
	e.stats.Dropped, e.stats.Pending = e.stats.Dropped+left, 0
	if left > 0 {
		return fmt.Errorf("%d data points were not delivered to %s and are lost", left, e.url)
	}
	return nil
}

// loop sends one request after the other.
func (e *Exporter) loop(ctx context.Context) {
	defer close(e.done)
	for {
		e.mu.Lock()
		if len(e.queue) == 0 {
			closed := e.closed
			e.mu.Unlock()
			if closed {
				return
			}
			select {
			case <-e.more:
			case <-ctx.Done():
				return
			}
			continue
		}
		r := e.pop()
		e.mu.Unlock()
		if !e.deliver(ctx, r) {
			return
		}
	}
}

// refusedError is an answer that would be the same the next time.
type refusedError struct{ error }

// deliver sends r until the receiver has taken or refused it. It returns false when ctx
// has ended before.
func (e *Exporter) deliver(ctx context.Context, r request) bool {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = e.opt.wait, longestWait
	for {
		rejected, after, err := e.send(ctx, r)
		var refused refusedError
		final := err == nil || errors.As(err, &refused)
		e.mu.Lock()
		e.stats.Failing = err != nil
		if final {
			if err != nil {
				rejected = r.points
			}
			rejected = min(rejected, r.points)
			e.stats.Pending -= r.points
			e.stats.Rejected += rejected
			e.stats.Delivered += r.points - rejected
		}
		e.mu.Unlock()
		if err != nil && ctx.Err() == nil && time.Since(e.warned) > warnInterval {
			e.warned = time.Now()
			e.opt.Logger.Warn("sending metrics by OTLP failed", "url", e.url, "error", err, "again", !final)
		}
		if final {
			return true
		}
		next := time.NewTimer(max(wait.NextBackOff(), after))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return false
		}
	}
}

// send makes one attempt. It returns how many data points the receiver refused although
// it took the request, and how long it wants us to wait.
func (e *Exporter) send(ctx context.Context, r request) (rejected uint64, after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(r.body))
	if err != nil {
		return 0, 0, refusedError{err}
	}
	req.Header = e.header.Clone()
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	req.Header.Set("User-Agent", "iotrace-bpf")
	res, err := e.client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		return 0, 0, err
	}
	switch s := res.StatusCode; {
	case s >= 200 && s <= 299:
		rejected, reason := refusedPoints(body)
		if rejected > 0 {
			e.opt.Logger.Warn("the OTLP receiver refused data points", "points", rejected, "reason", reason)
		}
		return rejected, 0, nil
	case s == http.StatusTooManyRequests, s == http.StatusBadGateway, s == http.StatusServiceUnavailable, s == http.StatusGatewayTimeout:
		// Those that the specification lets a client try again.
		if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && n > 0 {
			after = min(time.Duration(n)*time.Second, maxRetryHeader)
		}
		return 0, after, fmt.Errorf("status %s", strconv.Quote(cut(res.Status)))
	}
	return 0, 0, refusedError{fmt.Errorf("status %s", strconv.Quote(cut(res.Status)))}
}

// refusedPoints reads the answer of a receiver that took a request: how many data points it
// refused, and why, quoted.
func refusedPoints(body []byte) (n uint64, reason string) {
	var answer collector.ExportMetricsServiceResponse
	if proto.Unmarshal(body, &answer) != nil {
		return 0, ""
	}
	p := answer.GetPartialSuccess()
	return uint64(max(0, p.GetRejectedDataPoints())), strconv.Quote(cut(p.GetErrorMessage()))
}

// cut bounds what a server says.
func cut(s string) string { return s[:min(len(s), 200)] }
