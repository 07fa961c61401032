package attribute

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// nodeEngine serves a Docker API: header is what a ping says about the swarm, as engines
// since API 1.42 do, and info what older ones say when they are asked.
func nodeEngine(t *testing.T, header, info string) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		if header != "" {
			w.Header().Set("Swarm", header)
		}
	})
	mux.HandleFunc("/v1.41/info", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, info) })
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return socket
}

// TestSwarm: what engines of all ages say about their swarm, and what does not count.
func TestSwarm(t *testing.T) {
	const none = `{"Swarm":{"LocalNodeState":"inactive"}}`
	for name, tt := range map[string]struct {
		header, info, inside string
		want                 bool
	}{
		"worker":                {header: "active/worker", info: none, want: true},
		"joining":               {header: "pending", info: none, want: true},
		"no swarm":              {header: "inactive", info: `{"Swarm":{"LocalNodeState":"active"}}`},
		"old, manager":          {info: `{"Swarm":{"LocalNodeState":"active","ControlAvailable":true}}`, want: true},
		"old, no swarm":         {info: none},
		"old, without swarms":   {info: `{}`},
		"half an answer":        {info: none[:len(none)/2]},
		"not an answer":         {info: `[1]`},
		"inside of a container": {header: "active/manager", info: none, inside: idA},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), OnlyListedSockets: true})
			socket := nodeEngine(t, tt.header, tt.info)
			f := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, socket, domain{path: tt.inside})
			d, err := newDocker(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			for range 2 { // a second answer changes nothing
				d.askSwarm(t.Context(), f)
			}
			ended, cancel := context.WithCancel(t.Context())
			if !tt.want {
				cancel() // what was not said so far is not said any more
			}
			defer cancel()
			if err := r.WaitSwarm(ended); (err == nil) != tt.want {
				t.Errorf("waited: %v, want a swarm %v", err, tt.want)
			}
		})
	}
}
