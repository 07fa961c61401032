package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/elastic/go-elasticsearch/v9/esapi"
	"github.com/klauspost/compress/gzip"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// The client library's BulkIndexer is not used: it never retries an item that the
// server answered with 429, does not split a batch that is too big, counts an item
// that went to the failure store as a success, and blocks the caller while its
// queue is full. So this package decides what a reply means, and leaves requests,
// nodes and credentials to the library.

// bulkActionOverhead is the length in bytes of an action line without stream and
// id, with both line feeds.
const bulkActionOverhead = len(`{"create":{"_index":"","_id":""}}`) + 2

// verdict says what happens to a document after an attempt.
type verdict uint8

const (
	verdictDone      verdict = iota // stored
	verdictDuplicate                // stored earlier: the reply to that attempt was lost
	verdictSoft                     // stored, but in the failure store
	verdictRetry                    // server busy or unreachable
	verdictConfig                   // credentials or templates are wrong: retry, slowly
	verdictDead                     // rejected, and would be again
	verdictSplit                    // the request was too big
)

// itemResult is the answer for one document.
type itemResult struct {
	verdict verdict
	status  int
	kind    string
	reason  string
}

// bulkResult is the answer for a request. Without items, whole applies to every
// document.
type bulkResult struct {
	items []itemResult
	whole itemResult
	err   error // why the request as a whole failed, for the log
	cause *statusError
	net   bool // no answer at all
}

// bulkBody writes the documents as a gzipped body of _bulk.
func bulkBody(docs []spooled, srv *server) ([]byte, error) {
	size := 0
	for i := range docs {
		size += docs[i].size()
	}
	var out bytes.Buffer
	out.Grow(size/6 + 512)
	zw, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	timeSeries := srv.timeSeries()
	var line []byte
	for i := range docs {
		d := &docs[i]
		line = append(line[:0], `{"create":{"_index":"`...)
		line = append(line, d.Stream...)
		// A time series stream makes its own ids, from dimensions and time, and
		// rejects ours. A repeated document is a conflict there as well.
		if !timeSeries || !isTimeSeriesStream(d.Stream) {
			line = append(line, `","_id":"`...)
			line = append(line, d.ID...)
		}
		line = append(line, "\"}}\n"...)
		line = append(line, d.Body...)
		line = append(line, '\n')
		if _, err := zw.Write(line); err != nil {
			return nil, err
		}
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// isTimeSeriesStream reports whether Setup makes the stream a time series, on a
// server that has them.
func isTimeSeriesStream(stream string) bool {
	return strings.HasPrefix(stream, "metrics-"+output.DatasetIO+"-")
}

// bulk makes one attempt to deliver docs.
func (c *client) bulk(ctx context.Context, docs []spooled, srv *server) bulkResult {
	body, err := bulkBody(docs, srv)
	if err != nil {
		return bulkResult{whole: itemResult{verdict: verdictRetry}, err: err, net: true}
	}
	yes, no := true, false
	req := esapi.BulkRequest{
		Body:   bytes.NewReader(body),
		Header: http.Header{"Content-Type": {"application/x-ndjson"}, "Content-Encoding": {"gzip"}},
		// Every item has a status, so the filter leaves no item out: the answers
		// keep the order of the documents.
		FilterPath: []string{"errors", "items.*.status", "items.*.error.type", "items.*.error.reason", "items.*.failure_store"},
	}
	if srv.requireDataStream() {
		req.RequireDataStream = &yes
	}
	if srv.hidesSource() {
		req.IncludeSourceOnError = &no
	}
	res, err := req.Do(ctx, c)
	if err != nil {
		return bulkResult{whole: itemResult{verdict: verdictRetry}, err: err, net: true}
	}
	rep, err := readReply(res, 64<<10+maxItemReply*len(docs))
	if err != nil {
		return bulkResult{whole: itemResult{verdict: verdictRetry}, err: err, net: true}
	}
	return classify(rep, len(docs))
}

// classify decides what a reply to a request of n documents means.
func classify(rep *reply, n int) bulkResult {
	if rep.status < 200 || rep.status > 299 {
		e := rep.failure("shipping documents")
		v := requestVerdict(e)
		return bulkResult{whole: itemResult{verdict: v, status: e.status, kind: e.kind, reason: e.reason}, err: e, cause: e}
	}
	items, err := readItems(rep.body, n)
	if err != nil {
		// A proxy answered, not the server. The documents may be stored or not;
		// sending them again does no harm.
		return bulkResult{whole: itemResult{verdict: verdictRetry, status: rep.status}, err: fmt.Errorf("shipping documents: %w", err)}
	}
	return bulkResult{items: items}
}

// readItems reads the answers for n documents, one after the other: their number is not
// known to be right before the end.
func readItems(body []byte, n int) ([]itemResult, error) {
	items := make([]itemResult, 0, n)
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := delim(dec, '{'); err != nil {
		return nil, err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		if key != "items" {
			var other json.RawMessage
			if err := dec.Decode(&other); err != nil {
				return nil, err
			}
			continue
		}
		if err := delim(dec, '['); err != nil {
			return nil, err
		}
		for dec.More() {
			if len(items) == n {
				return nil, fmt.Errorf("reply has more than %d items for as many documents", n)
			}
			var item struct {
				Create struct {
					Status       int    `json:"status"`
					FailureStore string `json:"failure_store"`
					Error        struct {
						Type   string `json:"type"`
						Reason string `json:"reason"`
					} `json:"error"`
				} `json:"create"`
			}
			if err := dec.Decode(&item); err != nil {
				return nil, err
			}
			it := &item.Create
			items = append(items, itemResult{
				verdict: itemVerdict(it.Status, it.Error.Type, it.FailureStore),
				status:  it.Status, kind: it.Error.Type, reason: it.Error.Reason,
			})
		}
		if err := delim(dec, ']'); err != nil {
			return nil, err
		}
	}
	if err := delim(dec, '}'); err != nil {
		return nil, err
	}
	if len(items) != n {
		return nil, fmt.Errorf("reply has %d items for %d documents", len(items), n)
	}
	return items, nil
}

// delim reads the next token, which has to be d.
func delim(dec *json.Decoder, d json.Delim) error {
	t, err := dec.Token()
	if err == nil && t != d {
		err = fmt.Errorf("%v where %v has to be", t, d)
	}
	return err
}

// requestVerdict decides about a reply that concerns the request as a whole.
func requestVerdict(e *statusError) verdict {
	switch s := e.status; {
	case s == http.StatusRequestEntityTooLarge:
		return verdictSplit
	case s == http.StatusTooManyRequests, s >= 500, s == http.StatusRequestTimeout:
		return verdictRetry
	case s == http.StatusBadRequest:
		// Every document was one line of JSON, so this is a bug of ours: the same
		// request would fail each time.
		return verdictDead
	}
	// 401, 403: credentials. 404: no template. 3xx, 405, 406, 415: another kind of
	// server has this URL. All of these need an operator.
	return verdictConfig
}

// itemVerdict decides about a single document of a reply.
func itemVerdict(status int, kind, failureStore string) verdict {
	switch {
	case status >= 200 && status <= 299:
		if failureStore == "used" {
			return verdictSoft
		}
		return verdictDone
	case status == http.StatusConflict:
		return verdictDuplicate
	case status == http.StatusTooManyRequests, status >= 500, status < 100:
		return verdictRetry
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		// A missing privilege, or a read-only index.
		return verdictConfig
	case status == http.StatusNotFound && kind == "index_not_found_exception":
		// The answer to require_data_stream where our template is missing.
		return verdictConfig
	}
	return verdictDead
}
