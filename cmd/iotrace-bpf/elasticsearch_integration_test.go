//go:build integration

package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic/testserver"
)

// TestElasticsearch: containers write while the server is killed, and before it is back
// a first run ends and a second one begins. In the end the server has the bytes that the
// disk counted and that standard output showed.
func TestElasticsearch(t *testing.T) {
	server := testserver.Elasticsearch(t, nil)
	setup := mustRun(t, binary(t), "elasticsearch", "setup", "--elasticsearch", server.URL)
	if !strings.Contains(setup, "index template metrics-iotrace.io: installed") {
		t.Fatalf("setup said:\n%s", setup)
	}
	engine := enginetest.Start(t)
	d := newDisk(t, 400)
	d.format(t, mkExt4()...)
	before := d.stat(t)

	spool := filepath.Join(t.TempDir(), "spool")
	start := func() *traced {
		return trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", "project,device", "--source", "block", "--interval", "200ms",
			"--elasticsearch", server.URL, "--elasticsearch-spool", spool, "--export-interval", "1s")
	}
	write := func(p string, mibs int) {
		args := append([]string{"run", "--rm"}, project(p, "db")...)
		out, err := engine.Command(append(args, "-v", d.mount+":/data", enginetest.Image, "dd", "if=/dev/zero", "of=/data/"+p, "bs=1M",
			fmt.Sprintf("count=%d", mibs))...).CombinedOutput()
		if err != nil {
			t.Fatalf("container: %v\n%s", err, out)
		}
		unix.Sync()
	}
	const stream = "metrics-iotrace.io-default"
	onDisk := fmt.Sprintf(`{"term":{"iotrace.device.name":%q}}`, d.name())

	r := start()
	write("shop", 61)
	enginetest.Poll(t, time.Minute, "the first documents are on the server", func() bool {
		return server.Sums(stream, "iotrace.project.name", "iotrace.write.bytes", onDisk)["shop"] >= 61*mib
	})
	server.Kill()
	write("blog", 43)
	d.flush(t)
	docs := r.stop(t)
	r = start()
	write("shop", 7)
	server.Launch()
	write("wiki", 11)
	server.Ready()
	d.flush(t)
	docs = append(docs, r.stop(t)...)
	delta := d.stat(t).minus(before)

	// The second run may have ended before it had delivered everything. Another one,
	// without rows of its own, delivers what is in the spool.
	total := func(m map[string]uint64) (n uint64) {
		for _, v := range m {
			n += v
		}
		return n
	}
	for range 5 {
		if total(server.Sums(stream, "iotrace.project.name", "iotrace.write.bytes", onDisk)) >= delta.writeBytes {
			break
		}
		docs = append(docs, trace(t, "--source", "block", "--filter", "device=none", "--interval", "200ms",
			"--elasticsearch", server.URL, "--elasticsearch-spool", spool).stop(t)...)
	}

	want := map[string]uint64{}
	for i := range docs {
		if doc := &docs[i]; doc.Event.Dataset == "iotrace.io" && d.match(doc) {
			name := doc.Iotrace.Project.Name
			if name == "" {
				name = "(none)"
			}
			want[name] += doc.Iotrace.Write.Bytes
		}
	}
	got := server.Sums(stream, "iotrace.project.name", "iotrace.write.bytes", onDisk)
	maps.DeleteFunc(got, func(_ string, n uint64) bool { return n == 0 })
	maps.DeleteFunc(want, func(_ string, n uint64) bool { return n == 0 })
	if !maps.Equal(got, want) {
		t.Errorf("server has %v, standard output had %v", got, want)
	}
	if n := total(got); n != delta.writeBytes {
		t.Errorf("server has %d bytes, /proc/diskstats %d", n, delta.writeBytes)
	}
	for p, mibs := range map[string]uint64{"shop": 68, "blog": 43, "wiki": 11} {
		near(t, p, got[p], mibs*mib)
	}
}

// TestElasticsearchTwoInstances: two instances with different rows on their screens
// export the same host to the same stream. The server takes every document once.
func TestElasticsearchTwoInstances(t *testing.T) {
	server := testserver.Elasticsearch(t, nil)
	mustRun(t, binary(t), "elasticsearch", "setup", "--elasticsearch", server.URL)
	engine := enginetest.Start(t)
	d := newDisk(t, 400)
	d.format(t, mkExt4()...)

	start := func(by string) *traced {
		return trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--by", by, "--source", "block", "--interval", "700ms",
			"--elasticsearch", server.URL, "--export-interval", "2s")
	}
	const stream = "metrics-iotrace.io-default"
	onDisk := fmt.Sprintf(`{"bool":{"filter":[{"term":{"iotrace.grain":"container,device,mount"}},{"term":{"iotrace.device.stacked":false}},{"term":{"iotrace.device.name":%q}}]}}`, d.name())
	sums := func() map[string]uint64 {
		m := server.Sums(stream, "iotrace.project.name", "iotrace.write.bytes", onDisk)
		maps.DeleteFunc(m, func(_ string, n uint64) bool { return n == 0 })
		return m
	}
	write := func(p string, mibs int) {
		args := append([]string{"run", "--rm"}, project(p, "db")...)
		out, err := engine.Command(append(args, "-v", d.mount+":/data", enginetest.Image, "dd", "if=/dev/zero", "of=/data/"+p, "bs=1M",
			fmt.Sprintf("count=%d", mibs))...).CombinedOutput()
		if err != nil {
			t.Fatalf("container: %v\n%s", err, out)
		}
		d.flush(t)
	}

	before := d.stat(t)
	first := start("container")
	second := start("process,mount")
	intervals := func(n int) {
		const status = "logs-iotrace.status-default"
		n += server.Count(status)
		enginetest.Poll(t, time.Minute, "more intervals are on the server", func() bool { return server.Count(status) >= n })
	}
	intervals(4) // each knows of the other now
	write("shop", 31)
	write("blog", 17)
	write("shop", 5)
	want := d.stat(t).minus(before).writeBytes
	total := func() (n uint64) {
		for _, v := range sums() {
			n += v
		}
		return n
	}
	enginetest.Poll(t, time.Minute, "all bytes are on the server", func() bool { return total() >= want })
	intervals(3) // the second one is late
	first.stop(t)
	second.stop(t)
	got := sums()
	if n := total(); n != want {
		t.Errorf("the server has %d bytes (%v), /proc/diskstats %d", n, got, want)
	}
	near(t, "shop", got["shop"], 36*mib)
	near(t, "blog", got["blog"], 17*mib)
	if said := first.stderr.String() + second.stderr.String(); !strings.Contains(said, "another instance of this program") {
		t.Errorf("nobody warns of the other instance: %q", said)
	}
}
