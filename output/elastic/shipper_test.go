package elastic

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// fakeServer stores documents by stream and id like a real one, and fails when a test
// wants it to, which real servers cannot do. What real servers do is tested in
// integration_test.go.
type fakeServer struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	info     string                    // answer to GET /
	docs     map[string]map[string]int // stream -> id -> how often it was created
	bodies   map[string]string         // id -> document
	requests int
	header   http.Header // of the last bulk request
	query    string

	// before may answer a bulk request in place of the server; true: it did.
	before func(n int, w http.ResponseWriter, r *http.Request) bool
	// after may spoil the answer of a request whose documents are stored.
	after func(n int, w http.ResponseWriter) bool
	// item may reject a single document.
	item func(n int, stream, doc string) (status int, kind string)
}

const (
	infoES8        = `{"version":{"number":"8.19.16","build_flavor":"default"}}`
	infoOpenSearch = `{"version":{"number":"2.19.1","distribution":"opensearch"}}`
)

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{t: t, info: infoES8, docs: make(map[string]map[string]int), bodies: make(map[string]string)}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/" && r.Method == http.MethodGet:
		f.mu.Lock()
		info := f.info
		f.mu.Unlock()
		io.WriteString(w, info)
	case r.URL.Path == "/_bulk" && r.Method == http.MethodPost:
		f.bulk(w, r)
	case strings.HasPrefix(r.URL.Path, "/_index_template/") && r.Method == http.MethodHead:
	default:
		http.Error(w, `{"error":"no handler found"}`, http.StatusBadRequest)
	}
}

func (f *fakeServer) bulk(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests++
	n := f.requests
	f.header, f.query = r.Header.Clone(), r.URL.RawQuery
	if f.before != nil && f.before(n, w, r) {
		return
	}
	if r.Header.Get("Content-Encoding") != "gzip" {
		f.t.Errorf("request is not gzipped: %v", r.Header)
	}
	zr, err := gzip.NewReader(r.Body)
	if err != nil {
		f.t.Errorf("reading request: %v", err)
		return
	}
	lines := bufio.NewScanner(zr)
	lines.Buffer(nil, 64<<20)
	type item struct {
		Status int               `json:"status"`
		Error  map[string]string `json:"error,omitempty"`
		Store  string            `json:"failure_store,omitempty"`
	}
	var reply struct {
		Errors bool              `json:"errors"`
		Items  []map[string]item `json:"items"`
	}
	for lines.Scan() {
		var action struct {
			Create struct {
				Index string `json:"_index"`
				ID    string `json:"_id"`
			} `json:"create"`
		}
		if err := json.Unmarshal(lines.Bytes(), &action); err != nil || action.Create.Index == "" {
			f.t.Errorf("action line %q: %v", lines.Text(), err)
		}
		if !lines.Scan() || !json.Valid(lines.Bytes()) {
			f.t.Errorf("document line %q is no JSON", lines.Text())
		}
		stream, id, doc := action.Create.Index, action.Create.ID, lines.Text()
		timeSeries := strings.HasPrefix(stream, "metrics-iotrace.io-") && strings.Contains(f.info, "8.19")
		switch {
		case timeSeries && id != "":
			f.t.Errorf("id %q for a time series stream", id)
		case timeSeries: // dimensions and time: here, all of the document
			sum := sha256.Sum256([]byte(doc))
			id = hex.EncodeToString(sum[:])
		case id == "":
			f.t.Errorf("document without id for stream %q", stream)
		}
		it := item{Status: 201}
		if f.item != nil {
			if status, kind := f.item(n, stream, doc); status != 0 {
				it.Status = status
				if kind == "failure_store" {
					it.Store = "used"
				} else {
					it.Error = map[string]string{"type": kind, "reason": "because"}
				}
			}
		}
		if it.Status == 201 {
			if f.docs[stream] == nil {
				f.docs[stream] = make(map[string]int)
			}
			if f.docs[stream][id] > 0 {
				it = item{Status: 409, Error: map[string]string{"type": "version_conflict_engine_exception"}}
			} else {
				f.docs[stream][id]++
				f.bodies[id] = doc
			}
		}
		reply.Errors = reply.Errors || it.Status > 299
		reply.Items = append(reply.Items, map[string]item{"create": it})
	}
	if f.after != nil && f.after(n, w) {
		return
	}
	json.NewEncoder(w).Encode(reply)
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		c.Close()
	}
}

func (f *fakeServer) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, ids := range f.docs {
		n += len(ids)
	}
	return n
}

const (
	testEvents = "logs-iotrace.event-default"
	testIO     = "metrics-iotrace.io-default"
)

func testDoc(i int) []byte {
	return fmt.Appendf(nil, `{"@timestamp":"2026-01-02T03:04:05.%09dZ","iotrace":{"n":%d,"pad":"%s"}}`+"\n", i, i, strings.Repeat("x", i%97))
}

func testOptions(t *testing.T, url string) Options {
	return Options{
		URLs:          []string{url},
		SpoolDir:      filepath.Join(t.TempDir(), "spool"),
		FlushInterval: 5 * time.Millisecond,
		Logger:        slog.New(slog.NewTextHandler(t.Output(), nil)),
		retry:         retryRange{time.Millisecond, 20 * time.Millisecond},
		slowRetry:     retryRange{5 * time.Millisecond, 10 * time.Millisecond},
	}
}

func start(t *testing.T, opt Options) *Shipper {
	t.Helper()
	e, err := New(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e.Close(ctx)
	})
	return e
}

func ship(t *testing.T, e *Shipper, stream string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := e.Ship(stream, "", testDoc(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func closeAll(t *testing.T, e *Shipper) Stats {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Fatal(err)
	}
	s := e.Stats()
	if got, want := s.Delivered+s.Duplicates+s.SoftFailures+s.DeadLettered+s.Dropped+s.Pending, s.Accepted+s.Recovered; got != want || s.Pending > want {
		t.Errorf("books do not balance: %+v", s)
	}
	return s
}

func TestElasticsearchVerdicts(t *testing.T) {
	for _, c := range []struct {
		status int
		kind   string
		store  string
		want   verdict
	}{
		{200, "", "", verdictDone},
		{201, "", "", verdictDone},
		{201, "", "not_applicable_or_unknown", verdictDone},
		{201, "", "used", verdictSoft},
		{409, "version_conflict_engine_exception", "", verdictDuplicate},
		{429, "es_rejected_execution_exception", "", verdictRetry},
		{500, "", "", verdictRetry},
		{503, "unavailable_shards_exception", "", verdictRetry},
		{0, "", "", verdictRetry},
		{400, "document_parsing_exception", "", verdictDead},
		{400, "timestamp_error", "", verdictDead},
		{404, "document_missing_exception", "", verdictDead},
		{404, "index_not_found_exception", "", verdictConfig},
		{403, "cluster_block_exception", "", verdictConfig},
		{401, "security_exception", "", verdictConfig},
	} {
		if got := itemVerdict(c.status, c.kind, c.store); got != c.want {
			t.Errorf("item %d %q %q: verdict %d, want %d", c.status, c.kind, c.store, got, c.want)
		}
	}
	for status, want := range map[int]verdict{
		301: verdictConfig, 400: verdictDead, 401: verdictConfig, 403: verdictConfig, 404: verdictConfig, 405: verdictConfig,
		406: verdictConfig, 408: verdictRetry, 413: verdictSplit, 429: verdictRetry, 500: verdictRetry, 502: verdictRetry, 503: verdictRetry, 504: verdictRetry,
	} {
		if r := classify(&reply{status: status, header: http.Header{}}, 3); r.items != nil || r.whole.verdict != want || r.err == nil {
			t.Errorf("request %d: %+v, want verdict %d", status, r, want)
		}
	}
	for name, body := range map[string]string{
		"too few items": `{"items":[{"create":{"status":201}}]}`,
		"no JSON":       `<html>welcome</html>`,
		"nothing":       ``,
		"other JSON":    `[1]`,
	} {
		if r := classify(&reply{status: 200, body: []byte(body)}, 2); r.items != nil || r.whole.verdict != verdictRetry || r.err == nil {
			t.Errorf("%s: %+v, want a retry of everything", name, r)
		}
	}
}

func TestElasticsearchRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999": maxRetryAfter,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := retryAfter(v, now); got != want {
			t.Errorf("Retry-After %q: %v, want %v", v, got, want)
		}
	}
}

func TestElasticsearchJitter(t *testing.T) {
	b := retryRange{time.Second, time.Minute}.fullJitter()
	bound := time.Second
	for i := range 10 {
		low, high := time.Hour, time.Duration(0)
		for range 200 {
			c := *b
			d := c.NextBackOff()
			low, high = min(low, d), max(high, d)
		}
		if high > bound+time.Millisecond || high < bound/2 || low > bound/2 {
			t.Errorf("wait %d is between %v and %v, want all of 0 to %v", i, low, high, bound)
		}
		b.NextBackOff()
		bound = min(2*bound, time.Minute)
	}
	s := retryRange{30 * time.Second, time.Minute}.between()
	for range 1000 {
		if d := s.NextBackOff(); d < 30*time.Second || d > time.Minute+time.Millisecond {
			t.Fatalf("slow wait of %v", d)
		}
	}
}

func TestElasticsearchDelivers(t *testing.T) {
	f := newFakeServer(t)
	opt := testOptions(t, f.URL)
	opt.Credentials.APIKey = "id:key"
	e := start(t, opt)
	const n = 2003
	ship(t, e, testEvents, 0, n)
	ship(t, e, testIO, 0, n)
	s := closeAll(t, e)
	if f.count() != 2*n || s.Delivered != 2*n || s.Pending != 0 || s.Lost() != 0 {
		t.Errorf("server has %d documents, want %d; %+v", f.count(), 2*n, s)
	}
	if got, want := f.header.Get("Authorization"), "ApiKey "+base64.StdEncoding.EncodeToString([]byte("id:key")); !strings.EqualFold(got, want) {
		t.Errorf("Authorization %q, want %q", got, want)
	}
	if got := f.header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("Content-Type %q", got)
	}
	for _, want := range []string{"require_data_stream=true", "include_source_on_error=false", url.QueryEscape("items.*.status")} {
		if !strings.Contains(f.query, want) {
			t.Errorf("query %q lacks %q", f.query, want)
		}
	}
	if got := f.bodies[e.id(1)]+"\n" == string(testDoc(0)); !got {
		t.Errorf("document 0 arrived as %q", f.bodies[e.id(1)])
	}
	if err := e.Ship(testEvents, "", testDoc(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Ship after Close: %v", err)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if files, _ := os.ReadDir(opt.SpoolDir); len(files) != 1 {
		t.Errorf("files in the spool directory: %v", files)
	}
}

// TestElasticsearchFaults runs documents through every fault of the table and
// wants each of them stored exactly once.
func TestElasticsearchFaults(t *testing.T) {
	const n = 500
	status := func(code int, until int) func(int, http.ResponseWriter, *http.Request) bool {
		return func(n int, w http.ResponseWriter, _ *http.Request) bool {
			if n <= until {
				w.WriteHeader(code)
			}
			return n <= until
		}
	}
	for _, c := range []struct {
		name   string
		spool  bool
		prep   func(*fakeServer)
		check  func(*testing.T, Stats)
		stored int
	}{
		{name: "request 429", spool: true, prep: func(f *fakeServer) { f.before = status(429, 3) }, stored: n},
		{name: "request 503 without spool", prep: func(f *fakeServer) { f.before = status(503, 3) }, stored: n},
		{name: "request 502", spool: true, prep: func(f *fakeServer) { f.before = status(502, 3) }, stored: n},
		{name: "request 401", spool: true, prep: func(f *fakeServer) { f.before = status(401, 2) }, stored: n},
		{name: "request 404", prep: func(f *fakeServer) { f.before = status(404, 2) }, stored: n},
		{
			name: "reply lost after storing", spool: true, stored: n,
			prep: func(f *fakeServer) {
				f.after = func(n int, w http.ResponseWriter) bool {
					if n <= 2 {
						hangUp(w)
					}
					return n <= 2
				}
			},
			check: func(t *testing.T, s Stats) {
				if s.Duplicates == 0 || s.Conflicts != 0 {
					t.Errorf("duplicates %d, conflicts %d: want some and none", s.Duplicates, s.Conflicts)
				}
			},
		},
		{
			name: "connection cut before reading", stored: n,
			prep: func(f *fakeServer) {
				f.before = func(n int, w http.ResponseWriter, _ *http.Request) bool {
					if n <= 3 {
						hangUp(w)
					}
					return n <= 3
				}
			},
		},
		{
			name: "page of a proxy", spool: true, stored: n,
			prep: func(f *fakeServer) {
				f.before = func(n int, w http.ResponseWriter, _ *http.Request) bool {
					if n <= 2 {
						io.WriteString(w, "<html>sign in</html>")
					}
					return n <= 2
				}
			},
		},
		{
			name: "items turned away with 429", spool: true, stored: n,
			prep: func(f *fakeServer) {
				seen := make(map[string]int)
				f.item = func(_ int, _, doc string) (int, string) {
					seen[doc]++
					if len(doc)%3 == 0 && seen[doc] <= 2 {
						return 429, "es_rejected_execution_exception"
					}
					return 0, ""
				}
			},
			check: func(t *testing.T, s Stats) {
				if s.Retries == 0 || s.Retries > n || s.Duplicates > 0 {
					t.Errorf("only items that were turned away are to be repeated: %+v", s)
				}
			},
		},
		{
			name: "items turned away without spool", stored: n,
			prep: func(f *fakeServer) {
				seen := make(map[string]bool)
				f.item = func(_ int, _, doc string) (int, string) {
					if !seen[doc] && len(doc)%2 == 0 {
						seen[doc] = true
						return 503, "unavailable_shards_exception"
					}
					return 0, ""
				}
			},
		},
		{
			name: "items of a stream without template", spool: true, stored: n,
			prep: func(f *fakeServer) {
				f.item = func(n int, _, doc string) (int, string) {
					if n <= 2 {
						return 404, "index_not_found_exception"
					}
					return 0, ""
				}
			},
		},
		{
			name: "request too big", spool: true, stored: n,
			prep: func(f *fakeServer) {
				f.before = func(_ int, w http.ResponseWriter, r *http.Request) bool {
					zr, _ := gzip.NewReader(r.Body)
					body, _ := io.ReadAll(zr)
					if bytes.Count(body, []byte("\n")) > 2*20 {
						w.WriteHeader(413)
						return true
					}
					var b bytes.Buffer
					zw := gzip.NewWriter(&b)
					zw.Write(body)
					zw.Close()
					r.Body = io.NopCloser(&b)
					return false
				}
			},
		},
		{
			name: "documents refused for good", spool: true, stored: n - n/10,
			prep: func(f *fakeServer) {
				f.item = func(_ int, _, doc string) (int, string) {
					if strings.Contains(doc, `0,"pad"`) {
						return 400, "document_parsing_exception"
					}
					return 0, ""
				}
			},
			check: func(t *testing.T, s Stats) {
				if s.DeadLettered != n/10 {
					t.Errorf("%d dead letters, want %d", s.DeadLettered, n/10)
				}
			},
		},
		{
			name: "failure store", spool: true, stored: 0,
			prep: func(f *fakeServer) {
				f.item = func(int, string, string) (int, string) { return 200, "failure_store" }
			},
			check: func(t *testing.T, s Stats) {
				if s.SoftFailures != n || s.Delivered != 0 {
					t.Errorf("want %d soft failures: %+v", n, s)
				}
			},
		},
		{
			name: "bad request", spool: true, stored: 0,
			prep: func(f *fakeServer) { f.before = status(400, 1<<30) },
			check: func(t *testing.T, s Stats) {
				if s.DeadLettered != n {
					t.Errorf("%d dead letters, want %d", s.DeadLettered, n)
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, stream := range []string{testEvents, testIO} {
				f := newFakeServer(t)
				c.prep(f)
				opt := testOptions(t, f.URL)
				dir := opt.SpoolDir
				if !c.spool {
					opt.SpoolDir = ""
				}
				e := start(t, opt)
				ship(t, e, stream, 0, n)
				outputtest.Until(t, "an empty shipper", func() bool { return e.Stats().Pending == 0 })
				s := closeAll(t, e)
				if f.count() != c.stored || s.Dropped != 0 || s.Accepted != n {
					t.Errorf("%s: server has %d documents, want %d; %+v", stream, f.count(), c.stored, s)
				}
				if c.check != nil {
					c.check(t, s)
				}
				if s.DeadLettered > 0 {
					b, err := os.ReadFile(filepath.Join(dir, deadLetterFile))
					if err != nil || uint64(bytes.Count(b, []byte("\n"))) != s.DeadLettered {
						t.Errorf("dead letter file has %d lines, %v", bytes.Count(b, []byte("\n")), err)
					}
					var l deadLetter
					if err := json.Unmarshal(b[:bytes.IndexByte(b, '\n')], &l); err != nil || l.Status != 400 || l.Stream != stream || len(l.Document) < 10 {
						t.Errorf("dead letter %+v, %v", l, err)
					}
				}
			}
		})
	}
}

// TestElasticsearchOutage has no server at first. The first run ends, and a second
// one with the same spool delivers its documents.
func TestElasticsearchOutage(t *testing.T) {
	f := newFakeServer(t)
	addr := f.Listener.Addr().String()
	f.Server.Close()
	opt := testOptions(t, "http://"+addr)
	const n = 3001
	e := start(t, opt)
	ship(t, e, testEvents, 0, n)
	outputtest.Until(t, "documents on disk", func() bool { return e.Stats().Spooled == n })
	s := closeAll(t, e)
	if s.Pending != n || s.Dropped != 0 {
		t.Fatalf("after Close: %+v", s)
	}
	if _, err := New(t.Context(), Options{URLs: []string{"http://" + addr}, SpoolDir: opt.SpoolDir, SpoolBytes: 1}); err == nil {
		t.Error("a spool limit of one byte is accepted")
	}

	// Now there is one again.
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	f.Server.Start()
	e = start(t, opt)
	ship(t, e, testEvents, n, n+100)
	outputtest.Until(t, "everything", func() bool { return e.Stats().Pending == 0 })
	s = closeAll(t, e)
	if f.count() != n+100 || s.Recovered != n || s.Delivered != n+100 {
		t.Errorf("server has %d documents; %+v", f.count(), s)
	}
	for _, name := range []string{"", spoolFile} {
		st, err := os.Stat(filepath.Join(opt.SpoolDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q has mode %v: others may look at it", name, st.Mode())
		}
	}
}

// TestElasticsearchKilled kills the process during an outage: the next one finds what
// it spooled.
func TestElasticsearchKilled(t *testing.T) {
	const n = 1500
	if dir := os.Getenv("IOTRACE_TEST_SPOOL"); dir != "" {
		opt := testOptions(t, "http://127.0.0.1:1")
		opt.SpoolDir = dir
		e := start(t, opt)
		ship(t, e, testEvents, 0, n)
		outputtest.Until(t, "documents on disk", func() bool { s := e.Stats(); return s.Spooled == n })
		fmt.Println("spooled")
		select {} // to be killed
	}
	opt := testOptions(t, "")
	cmd := exec.Command(os.Args[0], "-test.run=^TestElasticsearchKilled$")
	cmd.Env = append(os.Environ(), "IOTRACE_TEST_SPOOL="+opt.SpoolDir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "spooled" {
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("process ended with %v before it could be killed", err)
	}
	f := newFakeServer(t)
	opt.URLs = []string{f.URL}
	e := start(t, opt)
	outputtest.Until(t, "everything", func() bool { return e.Stats().Pending == 0 })
	if s := closeAll(t, e); f.count() != n || s.Recovered != n {
		t.Errorf("server has %d documents, want %d; %+v", f.count(), n, s)
	}
}

// TestElasticsearchHanging has a server that takes a request and never
// answers: Ship goes on, memory is bounded, documents are on disk.
func TestElasticsearchHanging(t *testing.T) {
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			io.WriteString(w, infoES8)
			return
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer hanging.Close()
	defer close(release)
	opt := testOptions(t, hanging.URL)
	opt.QueueBytes, opt.BatchBytes = 256<<10, minBatchBytes
	e := start(t, opt)
	sent, worst := 0, 0
	outputtest.Until(t, "a megabyte in the spool", func() bool {
		if e.Stats().QueueBytes > opt.QueueBytes/2 {
			return false // a busy disk takes its time; what is asked here is where it all goes
		}
		ship(t, e, testEvents, sent, sent+100)
		sent += 100
		s := e.Stats()
		worst = max(worst, s.QueueBytes)
		return s.Accepted > 20000
	})
	if worst > opt.QueueBytes {
		t.Errorf("queue grew to %d bytes, limit %d", worst, opt.QueueBytes)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
	s := e.Stats()
	if s.Pending+s.Dropped != s.Accepted || s.SpoolBytes == 0 || s.Pending < s.Accepted/2 {
		t.Errorf("after Close: %+v", s)
	}
}

// TestElasticsearchNoRoom has neither server nor spool: the oldest documents are
// dropped, and all are counted.
func TestElasticsearchNoRoom(t *testing.T) {
	opt := testOptions(t, "http://127.0.0.1:1")
	opt.SpoolDir, opt.QueueBytes, opt.BatchBytes = "", minBatchBytes, minBatchBytes
	e := start(t, opt)
	const n = 5000
	ship(t, e, testEvents, 0, n)
	outputtest.Until(t, "a failure", func() bool { return e.Stats().Failing })
	s := e.Stats()
	if s.Dropped == 0 || s.QueueBytes > opt.QueueBytes || s.Dropped+s.Pending != n {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err := e.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("Close with undelivered documents: %v", err)
	}
	if s := e.Stats(); s.Dropped != n || s.Pending != 0 {
		t.Errorf("after Close: %+v", s)
	}
}

func TestElasticsearchRefusesDocuments(t *testing.T) {
	f := newFakeServer(t)
	e := start(t, testOptions(t, f.URL))
	for _, c := range []struct{ stream, doc string }{
		{"", "{}"}, {"plain-index", "{}"}, {"logs-iotrace.event-Default", "{}"}, {"logs-x-y\n", "{}"}, {`logs-x"y-z`, "{}"},
		{testEvents, ""}, {testEvents, "{"}, {testEvents, "[]"}, {testEvents, "{}\n{}"}, {testEvents, "{\r}"},
		{testEvents, "{" + strings.Repeat(" ", 3<<20) + "}"}, {testEvents, "{}\n\n"},
	} {
		if err := e.Ship(c.stream, "", []byte(c.doc)); err == nil {
			t.Errorf("stream %q, document %q: taken", c.stream, cut(c.doc, 20))
		}
	}
	if s := closeAll(t, e); s.Accepted != 0 || f.count() != 0 {
		t.Errorf("%+v", s)
	}
}

func TestElasticsearchFlavours(t *testing.T) {
	for _, c := range []struct {
		name, body  string
		status      int
		product     bool
		force       Flavour
		want        string
		timeSeries  bool
		require     bool
		wantFailure bool
	}{
		{name: "elasticsearch 8.19", body: infoES8, want: "elasticsearch 8.19.16", timeSeries: true, require: true},
		{name: "elasticsearch 9", body: `{"version":{"number":"9.3.0"}}`, want: "elasticsearch 9.3.0", timeSeries: true, require: true},
		{name: "elasticsearch 8.12", body: `{"version":{"number":"8.12.2"}}`, want: "elasticsearch 8.12.2"},
		{name: "elasticsearch 7", body: `{"version":{"number":"7.17.29"}}`, want: "elasticsearch 7.17.29"},
		{name: "serverless", body: `{"version":{"number":"8.11.0","build_flavor":"serverless"}}`, want: "serverless 8.11.0", timeSeries: true, require: true},
		{name: "opensearch", body: infoOpenSearch, want: "opensearch 2.19.1"},
		{name: "opensearch 3", body: `{"version":{"number":"3.1.0","distribution":"opensearch"}}`, want: "opensearch 3.1.0"},
		{name: "writer's key on elasticsearch", status: 403, product: true, body: `{}`, want: "elasticsearch of unknown version", timeSeries: true},
		{name: "writer's key on opensearch", status: 403, body: `{}`, wantFailure: true},
		{name: "given", status: 403, body: `{}`, force: FlavourOpenSearch, want: "opensearch of unknown version"},
		{name: "no JSON", body: `<html>`, wantFailure: true},
		{name: "something else", body: `{"hello":1}`, wantFailure: true},
		{name: "not ready", status: 503, body: `{}`, wantFailure: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c.product {
					w.Header().Set("X-Elastic-Product", "Elasticsearch")
				}
				if c.status != 0 {
					w.WriteHeader(c.status)
				}
				io.WriteString(w, c.body)
			}))
			defer s.Close()
			cl, err := newClient([]string{s.URL}, Credentials{}, c.force, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer cl.close()
			srv, err := cl.detect(t.Context())
			if c.wantFailure {
				var se *statusError
				if !errors.As(err, &se) {
					t.Errorf("error %v, want a statusError", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if srv.String() != c.want || srv.timeSeries() != c.timeSeries || srv.requireDataStream() != c.require {
				t.Errorf("%v, time series %v, require %v", srv, srv.timeSeries(), srv.requireDataStream())
			}
		})
	}
}

// TestElasticsearchSecrets looks for credentials in logs, errors and JSON.
func TestElasticsearchSecrets(t *testing.T) {
	const secret = "s3cr3tValue"
	var logged bytes.Buffer
	var mu sync.Mutex
	log := slog.New(slog.NewJSONHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(b)
	}), &slog.HandlerOptions{Level: slog.LevelDebug}))
	f := newFakeServer(t)
	f.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(401)
		io.WriteString(w, `{"error":{"type":"security_exception","reason":"no\u001b[31m"}}`)
		return true
	}
	opt := testOptions(t, f.URL)
	opt.Logger = log
	opt.Credentials = Credentials{Username: "writer", Password: secret}
	e := start(t, opt)
	ship(t, e, testEvents, 0, 3)
	outputtest.Until(t, "a failure", func() bool { return e.Stats().Failing })
	log.Info("options", "options", opt, "credentials", opt.Credentials)
	text := fmt.Sprintf("%v %+v %#v %s", opt, opt.Credentials, opt.Credentials, e.Stats().LastError)
	mu.Lock()
	text += logged.String()
	mu.Unlock()
	for _, bad := range []string{secret, base64.StdEncoding.EncodeToString([]byte("writer:" + secret)), "\x1b"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q shows in %s", bad, text)
		}
	}
	if !strings.Contains(text, "security_exception") {
		t.Errorf("the log does not say what the server said: %s", text)
	}
	_, err := New(t.Context(), Options{URLs: []string{"https://elastic:" + secret + "@localhost:9200"}})
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("URL with a password: %v", err)
	}
	_, err = New(t.Context(), Options{URLs: []string{"https://elastic:" + secret + "@local host:9200"}})
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("broken URL with a password: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestElasticsearchCredentials(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{EnvAPIKey: "from-env", EnvPassword: "secret"}
	getenv := func(k string) string { return env[k] }
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	var c Credentials
	if err := c.Load("", "", getenv, log); err != nil || c.APIKey != "from-env" || c.Password != "secret" {
		t.Errorf("%#v, %v", string(c.APIKey), err)
	}
	c = Credentials{}
	if err := c.Load(file, "", getenv, log); err != nil || c.APIKey != "from-file" {
		t.Errorf("%q, %v", string(c.APIKey), err)
	}
	c = Credentials{}
	if err := c.Load("", filepath.Join(dir, "absent"), getenv, log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent password file: %v", err)
	}
	if said.Len() > 0 {
		t.Errorf("warnings of private files: %s", &said)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	c = Credentials{}
	if err := c.Load(file, "", getenv, log); err != nil || !strings.Contains(said.String(), "every user of this host can read") || strings.Contains(said.String(), "from-file") {
		t.Errorf("of a file that all can read: %q, %v", &said, err)
	}
	os.WriteFile(file, nil, 0o600)
	c = Credentials{}
	if err := c.Load(file, "", getenv, log); err == nil {
		t.Error("an empty key file is accepted")
	}
	for _, c := range []Credentials{
		{APIKey: "a", Username: "b", Password: "c"}, {Username: "b"}, {Password: "c"}, {APIKey: "a b"},
		{CAFile: file}, {CAFile: filepath.Join(dir, "absent")}, {Fingerprint: "abc"}, {Fingerprint: strings.Repeat("ab", 32), CAFile: file},
	} {
		if e, err := New(t.Context(), Options{URLs: []string{"http://localhost:1"}, Credentials: c}); err == nil {
			e.Close(t.Context())
			t.Errorf("accepted: %+v", c)
		}
	}
	for _, u := range []string{"", "localhost:9200", "ftp://localhost", "http://", "http://h/?q=1"} {
		if e, err := New(t.Context(), Options{URLs: []string{u}}); err == nil {
			e.Close(t.Context())
			t.Errorf("URL %q is accepted", u)
		}
	}
}

// TestElasticsearchRedirect: a redirect would hand the key to somebody else.
func TestElasticsearchRedirect(t *testing.T) {
	var hits int
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits++ }))
	defer thief.Close()
	f := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	defer f.Close()
	opt := testOptions(t, f.URL)
	opt.Credentials.APIKey = "k"
	e := start(t, opt)
	ship(t, e, testEvents, 0, 3)
	outputtest.Until(t, "a failure", func() bool { return e.Stats().Failing })
	if s := closeAll(t, e); hits != 0 || s.Pending != 3 {
		t.Errorf("redirect was followed %d times; %+v", hits, s)
	}
}

// TestElasticsearchCancelled: a signal cancels the context of everything, and
// only then are the last documents made.
func TestElasticsearchCancelled(t *testing.T) {
	f := newFakeServer(t)
	opt := testOptions(t, f.URL)
	opt.SpoolDir, opt.FlushInterval = "", time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	e, err := New(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	ship(t, e, testEvents, 0, 5)
	cancel()
	ship(t, e, testEvents, 5, 10)
	if s := closeAll(t, e); f.count() != 10 || s.Delivered != 10 {
		t.Errorf("server has %d documents; %+v", f.count(), s)
	}
}

// TestElasticsearchRejectedDocuments: one stream has no template, and more documents
// than a request holds. Other streams do not wait for it, and once it has a template
// nothing is lost.
func TestElasticsearchRejectedDocuments(t *testing.T) {
	for _, spool := range []bool{true, false} {
		f := newFakeServer(t)
		installed := false
		f.item = func(_ int, stream, _ string) (int, string) {
			if !installed && stream != testEvents {
				return 404, "index_not_found_exception"
			}
			return 0, ""
		}
		opt := testOptions(t, f.URL)
		opt.BatchBytes, opt.QueueBytes = minBatchBytes, 4<<20
		if !spool {
			opt.SpoolDir = ""
		}
		e := start(t, opt)
		const bad, good = 3000, 500
		ship(t, e, "logs-iotrace.vxlan-default", 0, bad)
		ship(t, e, testEvents, 0, good)
		outputtest.Until(t, "the documents of the stream with a template", func() bool { return e.Stats().Delivered == good })
		ship(t, e, testEvents, good, 2*good)
		outputtest.Until(t, "more of them", func() bool { return e.Stats().Delivered == 2*good })
		if s := e.Stats(); s.Pending != bad {
			t.Errorf("spool %v: %+v", spool, s)
		}
		f.mu.Lock()
		installed = true
		f.mu.Unlock()
		outputtest.Until(t, "the others", func() bool { return e.Stats().Pending == 0 })
		if s := closeAll(t, e); f.count() != bad+2*good || s.Lost() != 0 {
			t.Errorf("spool %v: server has %d documents; %+v", spool, f.count(), s)
		}
	}
}

// TestElasticsearchNodes: a dead node does not hold up the others.
func TestElasticsearchNodes(t *testing.T) {
	f := newFakeServer(t)
	opt := testOptions(t, f.URL)
	opt.URLs = []string{"http://127.0.0.1:1", f.URL}
	e := start(t, opt)
	for i := range 20 {
		ship(t, e, testEvents, 10*i, 10*i+10)
		outputtest.Until(t, "documents stored", func() bool { return e.Stats().Pending == 0 })
	}
	if s := closeAll(t, e); f.count() != 200 || s.Lost() != 0 {
		t.Errorf("server has %d documents; %+v", f.count(), s)
	}
}

// FuzzElasticsearchReply feeds replies of a hostile server: every document
// gets exactly one verdict, and a failure has a reason that is safe to print.
func FuzzElasticsearchReply(f *testing.F) {
	f.Add(200, []byte(`{"errors":true,"items":[{"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"x"}}},{"create":{"status":201}}]}`))
	f.Add(200, []byte(`{"items":[{"create":{"status":201,"failure_store":"used"}},{"create":{"status":409}}]}`))
	f.Add(413, []byte("\x1b[31m"))
	f.Add(503, []byte(`{"error":{"type":"a\u001b","reason":"b"}}`))
	f.Add(404, []byte(`{"error":"no handler"}`))
	f.Add(200, []byte(`{"items":[{"create":null},{}]}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := classify(&reply{status: status, header: http.Header{}, body: body}, 2)
		if r.items != nil && len(r.items) != 2 || r.items == nil && r.err == nil {
			t.Errorf("%+v", r)
		}
		if r.items != nil && (status < 200 || status > 299) {
			t.Errorf("documents taken for stored at status %d", status)
		}
		if r.cause != nil {
			for _, c := range r.cause.Error() {
				if c < ' ' || c == 0x7f {
					t.Errorf("control character in %q", r.cause.Error())
				}
			}
		}
	})
}

// testCA issues certificates.
type testCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newTestCA(t *testing.T) *testCA {
	ca, err := makeTestCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func makeTestCA() (*testCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &testCA{key, cert}, nil
}

func (ca *testCA) issue(t *testing.T, name string, ip net.IP) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{ip}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key}
}

func TestElasticsearchTLS(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	loopback, elsewhere := net.IPv4(127, 0, 0, 1), net.IPv4(192, 0, 2, 1)
	good := ca.issue(t, "es", loopback)
	// An impostor pads its chain with the real CA's certificate, which is public.
	padded := other.issue(t, "es", loopback)
	padded.Certificate = [][]byte{padded.Certificate[0], ca.cert.Raw}
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	print := func(der []byte) string { sum := sha256.Sum256(der); return hex.EncodeToString(sum[:]) }
	colons := func(s string) string {
		var parts []string
		for ; s != ""; s = s[2:] {
			parts = append(parts, strings.ToUpper(s[:2]))
		}
		return strings.Join(parts, ":")
	}
	for _, c := range []struct {
		name string
		cert tls.Certificate
		cred Credentials
		ok   bool
	}{
		{"CA file", good, Credentials{CAFile: caFile}, true},
		{"system roots", good, Credentials{}, false},
		{"fingerprint of the CA", good, Credentials{Fingerprint: print(ca.cert.Raw)}, true},
		{"fingerprint of the certificate", good, Credentials{Fingerprint: colons(print(good.Certificate[0]))}, true},
		{"another fingerprint", good, Credentials{Fingerprint: print(other.cert.Raw)}, false},
		{"padded chain", padded, Credentials{Fingerprint: print(ca.cert.Raw)}, false},
		{"another host", ca.issue(t, "es", elsewhere), Credentials{Fingerprint: print(ca.cert.Raw)}, false},
		{"another CA", other.issue(t, "es", loopback), Credentials{CAFile: caFile}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeServer{t: t, info: infoES8, docs: make(map[string]map[string]int), bodies: make(map[string]string)}
			f.Server = httptest.NewUnstartedServer(f)
			f.Server.TLS = &tls.Config{Certificates: []tls.Certificate{c.cert}}
			f.Server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			f.Server.StartTLS()
			defer f.Server.Close()
			opt := testOptions(t, f.URL)
			c.cred.Username, c.cred.Password = "u", "p"
			opt.Credentials = c.cred
			e := start(t, opt)
			ship(t, e, testEvents, 0, 5)
			outputtest.Until(t, "an answer", func() bool { s := e.Stats(); return s.Failing || s.Pending == 0 })
			if s := e.Stats(); (f.count() == 5) != c.ok || s.Failing == c.ok {
				t.Errorf("server has %d documents; %+v", f.count(), s)
			}
		})
	}
}

func BenchmarkElasticsearchShip(b *testing.B) {
	var got int
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			io.WriteString(w, infoES8)
			return
		}
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			b.Error(err)
			return
		}
		n := 0
		for sc := bufio.NewScanner(zr); sc.Scan(); n++ {
		}
		got += n / 2
		io.WriteString(w, `{"errors":false,"items":[`+strings.TrimSuffix(strings.Repeat(`{"create":{"status":201}},`, n/2), ",")+`]}`)
	}))
	defer s.Close()
	for _, spool := range []bool{false, true} {
		name := "memory"
		if spool {
			name = "spool"
		}
		b.Run(name, func(b *testing.B) {
			got = 0
			opt := Options{URLs: []string{s.URL}, QueueBytes: 64 << 20}
			if spool {
				opt.SpoolDir = b.TempDir()
			}
			e, err := New(b.Context(), opt)
			if err != nil {
				b.Fatal(err)
			}
			doc := bytes.TrimSuffix(benchmarkDoc(), []byte("\n"))
			b.SetBytes(int64(len(doc)))
			before := outputtest.CPUTime(b)
			for b.Loop() {
				for e.Stats().QueueBytes > 32<<20 {
					time.Sleep(time.Millisecond)
				}
				if err := e.Ship(testEvents, "", doc); err != nil {
					b.Fatal(err)
				}
			}
			if err := e.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			if st := e.Stats(); st.Delivered != uint64(b.N) || got != b.N {
				b.Fatalf("server saw %d of %d; %+v", got, b.N, st)
			}
			outputtest.DocRates(b, float64(b.N), before) // the server's work is in it
		})
	}
}

func benchmarkDoc() []byte {
	return []byte(`{"@timestamp":"2026-01-02T03:04:05.678901234Z","ecs":{"version":"9.4.0"},"event":{"kind":"event","category":["host"],"type":["access"],"module":"iotrace","dataset":"iotrace.event","action":"write","outcome":"success","duration":183412},"data_stream":{"type":"logs","dataset":"iotrace.event","namespace":"default"},"host":{"name":"docker-07","id":"0f1e2d3c4b5a69788796a5b4c3d2e1f0","os":{"kernel":"6.12.0-1-amd64"}},"container":{"id":"9b3d1f0c7e5a4b2c9b3d1f0c7e5a4b2c9b3d1f0c7e5a4b2c9b3d1f0c7e5a4b2c","name":"shop-db-1","runtime":"docker","image":{"name":"postgres","tag":["17"]},"labels":{"com_docker_compose_project":"shop","com_docker_compose_service":"db"}},"process":{"pid":12345,"name":"postgres"},"iotrace":{"source":"nfs","level":"wire","owner":"container","project":{"name":"shop","rule":"compose"},"service":{"name":"db"},"op":"write","request":{"bytes":1048576,"offset":73400320,"latency":183412,"basis":"dirtier"}}}` + "\n")
}

// FuzzSearchReply reads what a cluster may answer to a search: numbers stay numbers, and
// what cannot be added up is nothing.
func FuzzSearchReply(f *testing.F) {
	f.Add([]byte(`{"timed_out":false,"_shards":{"failed":0},"aggregations":{"groups":{"after_key":{"host.name":"web1"},"buckets":[
		{"key":{"host.name":"web1","iotrace.owner":null,"iotrace.device.stacked":true},"doc_count":3,"iotrace.read.bytes":{"value":4096.0},"last":{"value":null}}]}}}`))
	f.Add([]byte(`{"timed_out":true,"_shards":{"failed":1,"failures":[{"reason":{"type":"x","reason":"a shard"}}]}}`))
	f.Add([]byte(`{"aggregations":{"groups":{"buckets":[{"key":{"a":1e308},"b":{"value":-1}},{"key":7},{"key":{"a":[]}},null]}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var p page
		if err := readSearch(body, &p); err != nil {
			for _, c := range err.Error() {
				if c < ' ' || c == 0x7f {
					t.Errorf("control character in %q", err)
				}
			}
			return
		}
		for i := range p.Groups.Buckets {
			b := &p.Groups.Buckets[i]
			for name := range b.Sums {
				if b.sum(name) > 1<<63 {
					t.Errorf("%s: %v became %d", name, b.Sums[name], b.sum(name))
				}
			}
			for field := range b.Key {
				_, _, _ = b.text(field), b.number(field), b.flag(field)
			}
		}
	})
}
