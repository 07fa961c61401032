// Package elastic ships documents to Elasticsearch and OpenSearch and installs the
// templates that they need. A spool on disk keeps documents through an outage.
package elastic

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// Options says where documents go, and how much memory, disk and time that may take.
// A limit of 0 means its default; a negative one is an error.
type Options struct {
	// URLs are nodes of one cluster, http or https. They are used in turn.
	URLs        []string
	Credentials Credentials
	// Flavour is the kind of server. FlavourAuto asks the server.
	Flavour Flavour

	// SpoolDir is a directory for documents that the server does not take now; one
	// process at a time can use it. Without it, documents that do not fit into the
	// queue are lost.
	SpoolDir   string
	SpoolBytes int64 // on disk; 256 MiB by default, at least 1 MiB

	QueueBytes     int           // in memory, before the spool; 32 MiB by default
	BatchBytes     int           // of a request, before compression; 4 MiB by default, 64 KiB to 32 MiB
	FlushInterval  time.Duration // longest wait for a full batch; 1 s by default
	RequestTimeout time.Duration // 60 s by default

	// Logger gets a record when delivery begins to fail, at most once a minute, and
	// one when it works again. Without it they are discarded.
	Logger *slog.Logger

	// Setup is used by the function Setup only.
	Setup SetupOptions

	retry, slowRetry retryRange // shorter in tests
}

// retryRange bounds the waits between attempts.
type retryRange struct{ first, max time.Duration }

// fullJitter returns waits that are uniform between 0 and a bound, which starts at
// first and doubles up to max.
func (r retryRange) fullJitter() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: r.first / 2, RandomizationFactor: 1, Multiplier: 2, MaxInterval: r.max / 2}
}

// between returns waits that are uniform between first and max.
func (r retryRange) between() *backoff.ExponentialBackOff {
	mid := (r.first + r.max) / 2
	return &backoff.ExponentialBackOff{InitialInterval: mid, RandomizationFactor: float64(r.max-r.first) / float64(r.max+r.first), Multiplier: 1, MaxInterval: mid}
}

const (
	defaultSpoolBytes     = 256 << 20
	defaultQueueBytes     = 32 << 20
	defaultBatchBytes     = 4 << 20
	minBatchBytes         = 64 << 10
	maxBatchBytes         = 32 << 20
	maxBatchDocs          = 10000
	defaultFlushInterval  = time.Second
	defaultRequestTimeout = time.Minute
	logInterval           = time.Minute
)

func (o *Options) setDefaults() error {
	setDefault(&o.SpoolBytes, defaultSpoolBytes)
	setDefault(&o.QueueBytes, defaultQueueBytes)
	setDefault(&o.BatchBytes, defaultBatchBytes)
	setDefault(&o.FlushInterval, defaultFlushInterval)
	setDefault(&o.RequestTimeout, defaultRequestTimeout)
	setDefault(&o.retry, retryRange{time.Second, time.Minute})
	setDefault(&o.slowRetry, retryRange{30 * time.Second, time.Minute})
	if o.Logger == nil {
		o.Logger = discardLogger()
	}
	switch {
	case o.SpoolBytes < 0 || o.QueueBytes < 0 || o.BatchBytes < 0 || o.FlushInterval < 0 || o.RequestTimeout < 0:
		return errors.New("a limit of the Elasticsearch output is negative")
	case o.BatchBytes < minBatchBytes || o.BatchBytes > maxBatchBytes:
		return fmt.Errorf("batch size %d is not between %d and %d bytes", o.BatchBytes, minBatchBytes, maxBatchBytes)
	case o.QueueBytes < o.BatchBytes:
		return fmt.Errorf("queue of %d bytes is smaller than a batch of %d", o.QueueBytes, o.BatchBytes)
	}
	return nil
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Stats counts documents since New. Accepted plus Recovered is always the sum of
// Delivered, Duplicates, SoftFailures, DeadLettered, Dropped and Pending.
type Stats struct {
	Accepted  uint64 // taken by Ship
	Recovered uint64 // found in the spool when it was opened

	Delivered    uint64 // stored by the server
	Duplicates   uint64 // the server had them already
	SoftFailures uint64 // stored in the failure store of the stream
	DeadLettered uint64 // rejected: see dead-letter.ndjson in the spool directory
	Dropped      uint64 // lost: no room in memory or on disk
	Pending      uint64 // in memory, on disk or being sent

	// Conflicts is the part of Duplicates that the server had before our first
	// attempt: it has a different document of the same series and time.
	Conflicts uint64

	Requests   uint64 // _bulk requests
	Failures   uint64 // requests that failed as a whole
	Retries    uint64 // documents sent again, counted each time
	Spooled    uint64 // the part of Pending that is on disk
	SpoolBytes int64  // disk space in use
	QueueBytes int    // memory in use
	Failing    bool   // the last attempt failed
	LastError  string // of that attempt; safe to print
}

// Lost returns the number of documents that will never be on the server.
func (s *Stats) Lost() uint64 { return s.Dropped + s.DeadLettered }

// Shipper ships documents to data streams of Elasticsearch or OpenSearch. Documents
// wait in memory while the server keeps up. When it does not, they go to the spool:
// a crash of ours then loses about one flush interval. While the server keeps up
// nothing is written to disk, because we measure this host's disks.
//
// A document may be sent several times but is stored once: it has the same id at
// every attempt, and in a time series stream the same dimensions and time. (The
// server compares ids within one backing index: a document that was stored right
// before a rollover, and whose reply was lost, can be stored twice.)
type Shipper struct {
	opt    Options
	log    *slog.Logger
	client *client

	mu       sync.Mutex
	queue    []spooled
	queued   int // bytes in queue
	inFlight int // documents taken from queue or retry: neither answered nor kept elsewhere
	stats    Stats
	closed   bool
	seq      uint64

	run  [8]byte       // makes ids differ between runs and hosts
	full chan struct{} // the queue holds a batch, or is half full

	stop    context.CancelFunc // ends loop at once, and the requests with it
	closing chan struct{}      // closed: loop delivers what is there and ends
	done    chan struct{}      // closed: loop has ended

	// The fields below belong to loop.
	spool      *spool
	dead       *deadLetters
	srv        *server
	retry      []spooled // in memory because no spool takes them
	batchLimit int       // bytes
	spoolTurn  bool      // the next batch comes from the spool
	failing    bool
	spoolBad   bool      // the last write to the spool failed
	loggedAt   time.Time // when the last failure was logged
	logged     bool      // the present failure was logged
	fast, slow *backoff.ExponentialBackOff
	tick       *time.Ticker
}

// New starts a shipper. Limits out of range, credentials that cannot be used and a
// spool that cannot be opened are errors; an unreachable server is not. Cancelling
// ctx does not end the shipper, only Close does: otherwise a signal would cut off
// the documents of the last interval.
func New(ctx context.Context, opt Options) (*Shipper, error) {
	if err := opt.setDefaults(); err != nil {
		return nil, err
	}
	client, err := newClient(opt.URLs, opt.Credentials, opt.Flavour, opt.Logger)
	if err != nil {
		return nil, err
	}
	e := &Shipper{
		opt: opt, log: opt.Logger, client: client,
		full: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
		batchLimit: opt.BatchBytes, fast: opt.retry.fullJitter(), slow: opt.slowRetry.between(),
	}
	if _, err := rand.Read(e.run[:]); err != nil {
		return nil, err
	}
	if opt.SpoolDir != "" {
		var moved string
		if e.spool, moved, err = openSpool(opt.SpoolDir, opt.SpoolBytes); err != nil {
			return nil, err
		}
		if moved != "" {
			e.log.Error("the spool was damaged and its documents are lost", "moved_to", moved)
		}
		e.stats.Recovered = e.spool.docs
		e.stats.Spooled, e.stats.SpoolBytes = e.spool.docs, e.spool.bytes
		e.dead = newDeadLetters(opt.SpoolDir)
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.tick = time.NewTicker(opt.FlushInterval)
	go e.loop(ctx)
	return e, nil
}

// streamName matches names that our data streams may have. They need no escaping in
// JSON.
var streamName = regexp.MustCompile(`^(logs|metrics)-[a-z0-9][a-z0-9._]*-[a-z0-9][a-z0-9._]*$`)

// maxID is how long an id may be: servers take 512 bytes.
const maxID = 64

// Errors of Ship, and ErrClosed after Close.
var (
	ErrClosed  = errors.New("elasticsearch output is closed")
	errShape   = errors.New("document is not one JSON object on one line")
	errTooLong = errors.New("document is longer than a batch")
)

// Ship takes a document for a data stream such as metrics-iotrace.io-default. doc is
// one JSON object on one line, of at most 32 KiB or half of BatchBytes, whichever is
// more. Ship copies doc and never waits: without room it drops the oldest documents
// and counts them. After an error this document was not taken.
//
// A server stores one document of an id. Those of a time series have the id that the
// server makes of dimensions and time. An empty id means one that no other document has.
func (e *Shipper) Ship(stream, id string, doc []byte) error {
	doc = bytes.TrimSuffix(doc, []byte{'\n'})
	switch {
	case len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool { return r < '!' || r > '~' || r == '"' || r == '\\' }):
		return fmt.Errorf("document id %q is not valid", cut(id, 100))
	case len(stream) > 255 || !streamName.MatchString(stream):
		return fmt.Errorf("data stream name %q is not valid", cut(stream, 100))
	case len(doc) < 2 || doc[0] != '{' || doc[len(doc)-1] != '}' || bytes.IndexByte(doc, '\n') >= 0 || bytes.IndexByte(doc, '\r') >= 0:
		return errShape
	case len(doc) > minBatchBytes/2 && len(doc) > e.opt.BatchBytes/2:
		return fmt.Errorf("%w: %d bytes", errTooLong, len(doc))
	}
	d := spooled{Stream: stream, Body: bytes.Clone(doc)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	e.seq++
	if d.ID = id; id == "" {
		d.ID = e.id(e.seq)
	}
	e.stats.Accepted++
	e.enqueue(d)
	// Half of the queue is left for what comes while the spool empties it.
	if e.queued >= min(e.opt.BatchBytes, e.opt.QueueBytes/2) {
		select {
		case e.full <- struct{}{}:
		default:
		}
	}
	return nil
}

func (e *Shipper) id(seq uint64) string {
	var b [16]byte
	copy(b[:], e.run[:])
	binary.BigEndian.PutUint64(b[8:], seq)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// enqueue adds a document and drops the oldest ones that no longer fit.
func (e *Shipper) enqueue(d spooled) {
	e.queue = append(e.queue, d)
	e.queued += d.size()
	n := 0
	for e.queued > e.opt.QueueBytes {
		e.queued -= e.queue[n].size()
		e.queue[n] = spooled{}
		n++
	}
	e.queue = e.queue[n:]
	e.stats.Dropped += uint64(n)
}

// take removes up to max bytes of documents from the queue.
func (e *Shipper) take(max int) []spooled {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, size := 0, 0
	for n < len(e.queue) && n < maxBatchDocs && (n == 0 || size+e.queue[n].size() <= max) {
		size += e.queue[n].size()
		n++
	}
	if n == 0 {
		return nil
	}
	docs := slices.Clone(e.queue[:n])
	clear(e.queue[:n])
	e.queue = e.queue[n:]
	if len(e.queue) == 0 {
		e.queue = nil
	}
	e.queued -= size
	e.inFlight += n
	return docs
}

// Stats returns the counters.
func (e *Shipper) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.QueueBytes = e.queued
	s.Pending = s.Accepted + s.Recovered - s.Delivered - s.Duplicates - s.SoftFailures - s.DeadLettered - s.Dropped
	return s
}

// Close takes no more documents and delivers those it has. Documents that the server
// does not take stay in the spool for the next run; without a spool Close tries again
// until ctx ends. The error says how many documents were lost now because there was
// no spool; documents dropped earlier are in Stats.
func (e *Shipper) Close(ctx context.Context) error {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.mu.Unlock()
	if first {
		close(e.closing)
	}
	select {
	case <-e.done:
	case <-ctx.Done():
	}
	e.stop()
	<-e.done
	if !first {
		return nil
	}
	e.client.close()
	e.tick.Stop()
	var errs []error
	if e.spool != nil {
		errs = append(errs, e.spool.Close(), e.dead.Close())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(e.queue) + e.inFlight; n > 0 {
		e.stats.Dropped += uint64(n)
		e.queue, e.queued, e.inFlight = nil, 0, 0
		errs = append(errs, fmt.Errorf("%d documents were not delivered and are lost", n))
	}
	return errors.Join(errs...)
}

func (e *Shipper) isClosing() bool {
	select {
	case <-e.closing:
		return true
	default:
		return false
	}
}

// loop is the one goroutine that sends and that owns the spool.
func (e *Shipper) loop(ctx context.Context) {
	defer close(e.done)
	defer e.keepAll()
	due := false
	for ctx.Err() == nil {
		docs, fromSpool := e.next(due || e.isClosing())
		if len(docs) > 0 {
			due = false
			if !e.deliver(ctx, docs, fromSpool) && e.isClosing() && e.spool != nil && !e.spoolBad {
				return // the server is unreachable, but the spool has the documents
			}
			continue
		}
		if e.isClosing() {
			return
		}
		select {
		case <-ctx.Done():
		case <-e.closing:
		case <-e.full:
			due = true
		case <-e.tick.C:
			due = true
		}
	}
}

// next returns the documents to send now: first those that have waited longest, but
// after a long outage batches of spool and queue alternate. due means that documents
// in the queue do not wait for a full batch.
func (e *Shipper) next(due bool) (docs []spooled, fromSpool bool) {
	if len(e.retry) > 0 {
		docs, e.retry = e.retry, nil
		return docs, false
	}
	e.mu.Lock()
	ready := e.queued >= e.batchLimit || due && len(e.queue) > 0
	e.mu.Unlock()
	if e.spool != nil && len(e.spool.chunks) > 0 && (e.spoolTurn || !ready) {
		e.spoolTurn = false
		docs, lost, err := e.spool.hold(e.batchLimit)
		e.countSpool(lost)
		if err != nil {
			e.spoolFailed(err)
		}
		if len(docs) > 0 {
			return docs, true
		}
	}
	e.spoolTurn = true
	if !ready {
		return nil, false
	}
	return e.take(e.batchLimit), false
}

// deliver makes one attempt, or several where the server wants smaller requests, and
// waits after a failure. It reports whether every document got a final answer.
func (e *Shipper) deliver(ctx context.Context, docs []spooled, fromSpool bool) bool {
	first := !fromSpool && !e.failing
	pieces := [][]spooled{docs}
	var unsent []spooled
	var failure *bulkResult
	for len(pieces) > 0 && failure == nil {
		piece := pieces[len(pieces)-1]
		pieces = pieces[:len(pieces)-1]
		r := e.attempt(ctx, piece)
		if r.items == nil && r.whole.verdict == verdictSplit && len(piece) > 1 {
			half := len(piece) / 2
			pieces = append(pieces, piece[half:], piece[:half])
			e.batchLimit = max(e.batchLimit/2, minBatchBytes)
			e.log.Warn("the server rejects requests of this size: sending smaller ones", "documents", len(piece), "batch_bytes", e.batchLimit)
			continue
		}
		again := e.count(piece, &r, fromSpool, first)
		unsent = append(unsent, again...)
		if len(again) > 0 {
			failure = &r
		}
	}
	for _, p := range slices.Backward(pieces) {
		unsent = append(unsent, p...)
	}
	// The server rejects documents of a stream without template or privilege until
	// an operator changes that. They go behind all others, which must not wait.
	rejected := failure != nil && failure.items != nil && failure.whole.verdict == verdictConfig
	e.finishBatch(unsent, fromSpool, rejected)
	if failure == nil {
		e.succeeded()
		return true
	}
	slowly := failure.whole.verdict == verdictConfig && !(rejected && len(unsent) < len(docs))
	e.failed(ctx, failure, len(unsent), slowly)
	return false
}

// attempt sends one request. Meanwhile it keeps the queue from overflowing.
func (e *Shipper) attempt(ctx context.Context, docs []spooled) bulkResult {
	ctx, cancel := context.WithTimeout(ctx, e.opt.RequestTimeout)
	defer cancel()
	result := make(chan bulkResult, 1)
	srv := e.srv
	go func() {
		if srv == nil {
			var failed *bulkResult
			if srv, failed = e.prepare(ctx); failed != nil {
				result <- *failed
				return
			}
		}
		r := e.client.bulk(ctx, docs, srv)
		if !r.net {
			e.mu.Lock()
			e.stats.Requests++
			e.mu.Unlock()
		}
		result <- r
	}()
	for {
		select {
		case r := <-result:
			e.srv = srv
			if r.net {
				e.srv = nil // the server may come back as another version
			}
			return r
		case <-e.tick.C:
			if e.failing {
				e.spill()
			}
		case <-e.full:
			e.mu.Lock()
			crowded := e.queued > e.opt.QueueBytes/2
			e.mu.Unlock()
			if crowded || e.failing {
				e.spill()
			}
		}
	}
}

// prepare asks which server this is, before the first request and after every lost
// connection.
func (e *Shipper) prepare(ctx context.Context) (*server, *bulkResult) {
	srv, err := e.client.detect(ctx)
	if err == nil && !srv.requireDataStream() {
		// Such a server would create a plain index for a stream without template.
		err = e.client.checkTemplates(ctx, srv)
	}
	if err == nil {
		return srv, nil
	}
	r := bulkResult{err: err, whole: itemResult{verdict: verdictRetry}}
	if errors.As(err, &r.cause) {
		if s := r.cause.status; s != http.StatusTooManyRequests && s < 500 {
			r.whole.verdict = verdictConfig
		}
	} else {
		r.net = true
	}
	return nil, &r
}

// checkTemplates returns an error if the server has no template of Setup.
func (c *client) checkTemplates(ctx context.Context, srv *server) error {
	const name = "metrics-" + output.DatasetIO
	res, err := esapi.IndicesExistsIndexTemplateRequest{Name: name}.Do(ctx, c)
	if err != nil {
		return err
	}
	rep, err := readReply(res, maxReply)
	if err != nil {
		return err
	}
	switch {
	case rep.status == http.StatusNotFound:
		return &statusError{what: "looking for index template " + name, status: rep.status, reason: "run: iotrace-bpf elasticsearch setup"}
	case rep.status == http.StatusOK, rep.status == http.StatusForbidden, rep.status == http.StatusUnauthorized:
		// A key that may not read templates may still write documents.
		return nil
	}
	return rep.failure("looking for index template " + name)
}

// count counts the answers for docs and returns the documents to send again. first
// says that this is their first attempt.
func (e *Shipper) count(docs []spooled, r *bulkResult, fromSpool, first bool) (again []spooled) {
	var dead []deadLetter
	e.mu.Lock()
	s, final, conflicts := &e.stats, 0, uint64(0)
	for i := range docs {
		it := r.whole
		if r.items != nil {
			it = r.items[i]
		}
		final++
		switch it.verdict {
		case verdictDone:
			s.Delivered++
		case verdictDuplicate:
			s.Duplicates++
			if first {
				conflicts++
			}
		case verdictSoft:
			s.SoftFailures++
		case verdictDead, verdictSplit:
			s.DeadLettered++
			dead = append(dead, deadLetter{Stream: docs[i].Stream, ID: docs[i].ID, Status: it.status, Type: it.kind, Reason: it.reason, Document: docs[i].Body})
		case verdictRetry, verdictConfig:
			final--
			s.Retries++
			again = append(again, docs[i])
			if r.items != nil && r.err == nil {
				r.whole = it
				r.err = &statusError{what: "shipping documents", status: it.status, kind: it.kind, reason: it.reason}
			}
			if it.verdict == verdictConfig {
				r.whole.verdict = verdictConfig
			}
		}
	}
	s.Conflicts += conflicts
	if r.items == nil && r.err != nil {
		s.Failures++
	}
	if !fromSpool {
		e.inFlight -= final
	}
	e.mu.Unlock()
	if conflicts > 0 {
		e.log.Debug("the server has documents of the same series and time and ignores ours", "documents", conflicts)
	}
	if len(dead) > 0 {
		d := &dead[0]
		e.log.Error("the server rejected documents", "documents", len(dead), "stream", d.Stream,
			"status", d.Status, "error", strconv.Quote(cut(d.Type+" "+d.Reason, 300)))
		if e.dead != nil {
			if err := e.dead.write(dead); err != nil {
				e.log.Error("writing rejected documents to "+deadLetterFile+" failed", "error", err)
			}
		}
	}
	return again
}

// finishBatch keeps the unsent documents of a batch: for the next attempt or, with
// last, behind all other documents.
func (e *Shipper) finishBatch(unsent []spooled, fromSpool, last bool) {
	kept := len(unsent) == 0
	if fromSpool {
		var err error
		if kept, err = e.spool.finishBatch(unsent, last); err != nil {
			e.spoolFailed(err)
		}
		if !kept {
			e.mu.Lock()
			e.inFlight += len(unsent)
			e.mu.Unlock()
		}
	} else if !kept && e.spool != nil {
		kept = e.put(unsent)
	}
	switch {
	case kept:
	case last:
		e.requeue(unsent)
	default:
		e.retry = unsent
	}
	e.countSpool(0)
}

// requeue puts documents that are in flight at the end of the queue. Those that do
// not fit are dropped: they push no others out.
func (e *Shipper) requeue(docs []spooled) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inFlight -= len(docs)
	for _, d := range docs {
		if e.queued+d.size() > e.opt.QueueBytes {
			e.stats.Dropped++
			continue
		}
		e.enqueue(d)
	}
}

// put moves documents that are in flight to the spool.
func (e *Shipper) put(docs []spooled) bool {
	dropped, err := e.spool.put(docs)
	e.countSpool(dropped)
	if err != nil {
		e.spoolFailed(err)
		return false
	}
	e.mu.Lock()
	e.inFlight -= len(docs)
	e.mu.Unlock()
	e.spoolBad = false
	return true
}

// spill moves the queue to the spool, if there is one.
func (e *Shipper) spill() {
	for e.spool != nil {
		docs := e.take(e.batchLimit)
		if len(docs) == 0 {
			return
		}
		if !e.put(docs) {
			e.giveBack(docs)
			return
		}
	}
}

// giveBack returns documents to the front of the queue. Without room for all, the
// oldest are dropped.
func (e *Shipper) giveBack(docs []spooled) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inFlight -= len(docs)
	later := e.queue
	e.queue, e.queued = nil, 0
	for _, d := range append(docs, later...) {
		e.enqueue(d)
	}
}

// countSpool takes over the figures of the spool, and counts documents that it lost.
func (e *Shipper) countSpool(lost uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Dropped += lost
	if e.spool != nil {
		e.stats.Spooled, e.stats.SpoolBytes = e.spool.docs, e.spool.bytes
	}
}

// spoolFailed logs once that the spool does not work, and replaces a damaged one.
func (e *Shipper) spoolFailed(err error) {
	if !e.spoolBad {
		e.log.Error("the spool does not work: documents wait in memory only", "error", err)
	}
	e.spoolBad = true
	if !errors.Is(err, errSpoolDamaged) {
		return
	}
	lost, err := e.spool.reset()
	e.countSpool(lost)
	if err != nil {
		e.log.Error("replacing the damaged spool failed: documents wait in memory only", "error", err)
		_ = e.spool.Close()
		e.spool = nil
	}
}

// succeeded ends a failure.
func (e *Shipper) succeeded() {
	e.fast.Reset()
	e.slow.Reset()
	if !e.failing {
		return
	}
	e.failing = false
	e.mu.Lock()
	e.stats.Failing, e.stats.LastError = false, ""
	pending := e.stats
	e.mu.Unlock()
	if e.logged {
		e.log.Info("shipping works again", "server", e.srv.String(), "spool_bytes", pending.SpoolBytes)
	}
	e.logged = false
}

// failed logs once that delivery fails, and waits before the next attempt. Meanwhile
// it moves the queue to the spool.
func (e *Shipper) failed(ctx context.Context, r *bulkResult, n int, slowly bool) {
	text := strconv.Quote(cut(r.err.Error(), 600))
	if se := (*statusError)(nil); errors.As(r.err, &se) {
		text = se.Error() // quotes the server's text already
	}
	e.mu.Lock()
	changed := !e.failing || e.stats.LastError != text
	e.stats.Failing, e.stats.LastError = true, text
	e.mu.Unlock()
	// A server that fails every few seconds must not fill the log.
	if now := time.Now(); changed && now.Sub(e.loggedAt) > logInterval {
		e.log.Error("shipping fails", "error", text, "documents_waiting", n)
		e.loggedAt, e.logged = now, true
	}
	e.failing = true
	wait := e.fast.NextBackOff()
	if slowly {
		wait = e.slow.NextBackOff()
	}
	if r.cause != nil {
		wait = max(wait, r.cause.after)
	}
	e.spill()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	closing := e.closing
	if e.isClosing() && (e.spool == nil || e.spoolBad) {
		closing = nil // the documents cannot stay anywhere: go on until ctx ends
		if r.cause == nil {
			timer.Reset(min(wait, time.Second))
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-closing:
			return
		case <-timer.C:
			return
		case <-e.tick.C:
			e.spill()
		case <-e.full:
			e.spill()
		}
	}
}

// keepAll moves every document in memory to the spool when loop ends.
func (e *Shipper) keepAll() {
	if e.spool == nil {
		return
	}
	e.spool.release()
	if len(e.retry) > 0 && e.put(e.retry) {
		e.retry = nil
	}
	e.spill()
}
