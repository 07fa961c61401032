package elastic

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
)

// TestHostileReplies answers a request for one document with what would take gigabytes:
// what it takes has to do with the document.
func TestHostileReplies(t *testing.T) {
	item := `{"create":{"status":201}},`
	many := `{"items":[` + strings.Repeat(`{},`, 20<<20/3) + `{}]}`
	long := `{"took":"` + strings.Repeat("x", 20<<20) + `"}`
	var bomb bytes.Buffer
	zw := gzip.NewWriter(&bomb)
	for range 64 {
		_, _ = io.WriteString(zw, strings.Repeat(item, 1<<20/len(item)))
	}
	zw.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"gzip": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "" {
				t.Errorf("the request accepts %q", r.Header.Get("Accept-Encoding"))
			}
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		},
		"many items":     func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, many) },
		"one long value": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, long) },
		"many small items": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"items":[`+strings.Repeat(`{},`, 10000)+`{}]}`)
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, many); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodHead {
					answer(w, r)
				}
			}))
			defer srv.Close()
			c, err := newClient([]string{srv.URL}, Credentials{}, FlavourElasticsearch, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			b := []spooled{{Stream: "logs-iotrace.io-default", ID: "1", Body: []byte(`{}`)}}
			res, err := c.Perform(mustRequest(t, srv.URL))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close() // the connection is there, and its buffers
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got := c.bulk(t.Context(), b, &server{flavour: FlavourElasticsearch, major: 9})
			runtime.ReadMemStats(&after)
			if got.err == nil || got.items != nil || got.whole.verdict != verdictRetry {
				t.Errorf("%+v", got)
			}
			// The server's part is in it: it writes from memory that is there already.
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

func mustRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodHead, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
