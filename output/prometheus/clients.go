package prometheus

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// What clients may take, all together. A scrape needs memory for all metrics until its
// client has read the answer, a connection some kilobytes.
const (
	maxScrapes  = 3
	maxConns    = 64
	scrapeGrace = 2 * time.Second  // a part of an answer may wait for its client this long while others want the place
	scrapeTurn  = 8 * time.Second  // how long a client waits for a place: less than Prometheus waits
	scrapeTime  = 20 * time.Second // for an answer, on a link however slow
)

// place is what a client holds, and what to do when it must give way.
type place struct {
	address string
	since   time.Time // it has waited for its client since then; zero: it does not wait
	end     func()
	ended   bool // end was called
}

// greediest returns the place that has waited for longest, of the address that has most
// of them: others lose nothing by a client that takes all it can get. It returns nil if all
// were ended, or none has waited as long as grace.
func greediest(places []*place, grace time.Duration, now time.Time) *place {
	held := map[string]int{}
	for _, p := range places {
		held[p.address]++
	}
	list := slices.DeleteFunc(slices.Clone(places), func(p *place) bool { return p.ended || p.since.IsZero() || now.Sub(p.since) < grace })
	if len(list) == 0 {
		return nil
	}
	return slices.MinFunc(list, func(a, b *place) int {
		return cmp.Or(cmp.Compare(held[b.address], held[a.address]), a.since.Compare(b.since))
	})
}

// addressOf is the part of a remote address that is the same for all connections of a
// client: a host with one IPv6 address has a whole /64 of them.
func addressOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String()
	}
	return host
}

// scrapes lets maxScrapes clients in at a time. When more come, slow ones give way.
type scrapes struct {
	mu     sync.Mutex
	places []*place
	left   chan struct{} // closed and replaced when a client has left
}

func newScrapes() *scrapes { return &scrapes{left: make(chan struct{})} }

// enter waits for a place. It returns nil when ctx is done before.
func (s *scrapes) enter(ctx context.Context, address string, end func()) *place {
	for {
		s.mu.Lock()
		if len(s.places) < maxScrapes {
			p := &place{address: address, end: end}
			s.places = append(s.places, p)
			s.mu.Unlock()
			return p
		}
		if p := greediest(s.places, scrapeGrace, time.Now()); p != nil {
			p.ended = true
			p.end()
		}
		left := s.left
		s.mu.Unlock()
		select {
		case <-left:
		case <-time.After(scrapeGrace / 4): // one may have become old enough
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *scrapes) leave(p *place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places = slices.DeleteFunc(s.places, func(o *place) bool { return o == p })
	close(s.left)
	s.left = make(chan struct{})
}

// answer is an http.ResponseWriter that notes while it waits for its client.
type answer struct {
	http.ResponseWriter
	scrapes *scrapes
	place   *place
}

func (a *answer) Write(b []byte) (int, error) {
	a.waits(time.Now())
	defer a.waits(time.Time{})
	return a.ResponseWriter.Write(b)
}

func (a *answer) waits(since time.Time) {
	a.scrapes.mu.Lock()
	defer a.scrapes.mu.Unlock()
	a.place.since = since
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// handler bounds how many run next at a time.
func (s *scrapes) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), scrapeTurn)
		defer cancel()
		conn := http.NewResponseController(w)
		p := s.enter(ctx, addressOf(r.RemoteAddr), func() { _ = conn.SetWriteDeadline(time.Now()) })
		if p == nil {
			http.Error(w, "too many scrapes at a time: see who else reads /metrics", http.StatusServiceUnavailable)
			return
		}
		defer s.leave(p)
		next.ServeHTTP(&answer{w, s, p}, r)
	})
}

// conns are the open connections. When there are more than maxConns, one of those that
// have done nothing for longest is closed.
type conns struct {
	mu   sync.Mutex
	open map[net.Conn]*place
}

// state is a http.Server's ConnState.
func (c *conns) state(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.open[conn] = &place{address: addressOf(conn.RemoteAddr().String()), since: time.Now(), end: func() { conn.Close() }}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	default:
		if p := c.open[conn]; p != nil {
			p.since = time.Now()
		}
	}
	if len(c.open) <= maxConns {
		return
	}
	list := make([]*place, 0, len(c.open))
	for o, p := range c.open {
		if o != conn {
			list = append(list, p)
		}
	}
	p := greediest(list, 0, time.Now())
	for o, q := range c.open {
		if p == q {
			delete(c.open, o)
		}
	}
	p.end()
}

// sameHost refuses requests at a loopback address that were made for another name: a web
// page whose name somebody let point to 127.0.0.1 (DNS rebinding) may not read metrics
// through the browser of this machine's user.
func sameHost(listen net.Addr, next http.Handler) http.Handler {
	if a, ok := listen.(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if !strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "metrics are served here for localhost and 127.0.0.1 alone, not for the name in the Host header", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
