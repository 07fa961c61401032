package prometheus

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// large has more metrics than fit into the buffers of a connection.
func large(t *testing.T) *Exporter {
	t.Helper()
	p := servePrometheus(t, Options{})
	iv := &output.Interval{Start: time.Now(), End: time.Now()}
	for i := range 3500 {
		iv.Samples = append(iv.Samples, output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerUnit,
			Unit: fmt.Sprintf("%0250d", i), Write: output.Amount{Bytes: 1, Ops: 1}, Read: output.Amount{Bytes: 1, Ops: 1}})
	}
	p.Observe(iv)
	return p
}

// ask opens a connection, and sends a request that asks for metrics if host is not empty.
func ask(t *testing.T, p *Exporter, host string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if host != "" {
		if _, err := fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestSlowReaders: clients that read no more than the first bytes of their answers hold no
// other one up, from the same address, and lose their connections.
func TestSlowReaders(t *testing.T) {
	p := large(t)
	var slow []net.Conn
	for range 8 {
		c := ask(t, p, "localhost")
		if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c)
	}
	begun := make(chan error, len(slow))
	for _, c := range slow {
		go func() {
			_, err := c.Read(make([]byte, 1))
			begun <- err
		}()
	}
	if err := <-begun; err != nil { // no answer has begun before the first client gives way
		t.Fatal(err)
	}
	// A busy machine takes seconds to make an answer of this size, and each slow client has
	// its turn before ours: we may be refused, as Prometheus may, and ask again.
	refused := 0
	for done := 0; done < 3; {
		res, err := http.Get("http://" + p.Addr() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		switch {
		case err == nil && res.StatusCode == http.StatusOK && strings.Contains(string(body), "iotrace_build_info"):
			done++
		case err == nil && res.StatusCode == http.StatusServiceUnavailable && refused < 3:
			refused++
		default:
			t.Fatalf("an answer of %d bytes, status %d, %v; refused %d times before", len(body), res.StatusCode, err, refused)
		}
	}
}

// TestManyConnections: of ten thousand connections those beyond the limit cost who holds most.
func TestManyConnections(t *testing.T) {
	p := servePrometheus(t, Options{})
	first := ask(t, p, "")
	for range 10_000 {
		ask(t, p, "")
	}
	// All are of one address: the oldest was closed.
	if n, err := first.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of the first connection", n)
	}
	if body, _ := p.scrape(t, "text/plain"); !strings.Contains(string(body), "iotrace_build_info") {
		t.Errorf("an answer of %d bytes", len(body))
	}
}

func TestGreediest(t *testing.T) {
	now := time.Now()
	at := func(address string, seconds int) *place {
		return &place{address: address, since: now.Add(-time.Duration(seconds) * time.Second)}
	}
	honest, old, young := at("192.0.2.1", 100), at("192.0.2.2", 50), at("192.0.2.2", 2)
	all := []*place{young, honest, old}
	if got := greediest(all, time.Second, now); got != old {
		t.Errorf("%+v gives way, not the oldest of the address with most", got)
	}
	old.ended = true
	if got := greediest(all, time.Second, now); got != young {
		t.Errorf("%+v", got)
	}
	if got := greediest([]*place{young}, 3*time.Second, now); got != nil {
		t.Errorf("%+v gives way within its grace", got)
	}
	for remote, want := range map[string]string{"192.0.2.1:99": "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::", "@": "@"} {
		if got := addressOf(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

// TestHostHeader: a page of another name gets nothing through the browser.
func TestHostHeader(t *testing.T) {
	p := servePrometheus(t, Options{})
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:9100": 200, "localhost.": 200, "127.0.0.1": 200, "127.0.0.1:1": 200, "[::1]:80": 200, "[::1]": 200,
		"evil.example": 403, "evil.example:9100": 403, "localhost.evil.example": 403, "192.0.2.1": 403, "127.0.0.1.evil.example": 403,
	} {
		res, err := http.ReadResponse(bufio.NewReader(ask(t, p, host)), nil)
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, res.StatusCode, want)
		}
	}
}
