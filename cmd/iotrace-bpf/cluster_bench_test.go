//go:build integration && bench

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic/testserver"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

const (
	fleetHosts = 40
	fleetRows  = 13 // documents of a host and interval
	fleetStep  = 10 * time.Second
)

// fleetSamples is what six containers of three projects did on host n, on its disk and on
// one of two NFS servers, and its file systems' metadata.
func fleetSamples(rng *rand.Rand, n int) (all []output.Sample) {
	amount := func() output.Amount {
		a := output.Amount{Ops: 1 + rng.Uint64N(2000)}
		a.Bytes = a.Ops << 12
		for i := range uint64(6) {
			a.Latency.Buckets = append(a.Latency.Buckets, output.Bucket{UpTo: 1<<(16+i) - 1, Count: 1 + a.Ops>>(i+1)})
		}
		a.Latency.Max = 1 << 21
		return a
	}
	for c := range 6 {
		s := output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer,
			Project: []string{"shop", "blog", "wiki"}[c%3], Service: fmt.Sprint("s", c), ProjectRule: "com.docker.compose.project",
			Container: output.Container{ID: fmt.Sprintf("%02d%062d", n, c), Name: fmt.Sprintf("app-%d", c), Runtime: "docker", Image: "example/app", ImageTag: "1.2"},
			Cgroup:    output.Cgroup{ID: uint64(1000 + c), Path: fmt.Sprint("/system.slice/docker-", c, ".scope")},
			Device:    output.Device{ID: "8:0", Name: "sda"}, Mount: output.Mount{Source: "/dev/sda1", Point: "/", FSType: "ext4"},
			Read: amount(), Write: amount()}
		nfs := s
		server := fmt.Sprint("nas", 1+c%2)
		nfs.Source, nfs.Device = output.SourceNFS, output.Device{ID: fmt.Sprint("0:", 50+c%2)}
		nfs.Mount = output.Mount{Source: server + ":/export", Point: "/mnt", FSType: "nfs4", NFSServer: server, NFSExport: "/export", NFSVersion: "4.2", NFSAddress: "10.0.0." + server[3:]}
		nfs.Read, nfs.Write = amount(), amount()
		all = append(all, s, nfs)
	}
	return append(all, output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerKernel, Device: output.Device{ID: "8:0", Name: "sda"},
		Mount: output.Mount{Source: "/dev/sda1", Point: "/", FSType: "ext4"}, Write: amount()})
}

// peakMemory is the most resident memory that a process had, 0 when it has ended. What
// wait tells of that is the parent's where that has more: it is from before the exec.
func peakMemory(pid int) uint64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kib uint64
	if _, err := fmt.Sscanf(after, "%d kB", &kib); err != nil {
		return 0
	}
	return kib << 10
}

// TestBenchCluster is `make bench-cluster`: a time of 40 hosts in a real Elasticsearch, and
// how long its questions take. HOURS says how much of a day there is; a whole one has 4.5
// million documents. It writes its table of BENCHMARKS.md.
func TestBenchCluster(t *testing.T) {
	hours := 24.0
	if h, err := strconv.ParseFloat(os.Getenv("HOURS"), 64); err == nil && h > 0 {
		hours = h
	}
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil && n > 0 {
		rounds = n
	}
	steps := int(hours * float64(time.Hour/fleetStep))
	server := testserver.Elasticsearch(t, nil)
	opt := elastic.Options{URLs: []string{server.URL}, QueueBytes: 64 << 20}
	if err := elastic.Setup(t.Context(), opt, io.Discard); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Truncate(fleetStep)
	since := until.Add(-time.Duration(steps) * fleetStep)

	began := time.Now()
	e, err := elastic.New(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(22, 22))
	group := output.GroupOptions{By: []output.Key{output.KeyContainer, output.KeyDevice, output.KeyMount}, Stacked: true}
	truth := make(map[string]uint64) // bytes on nas1 by project and host
	for i := range steps {
		for n := range fleetHosts {
			iv := &output.Interval{Host: output.Host{Name: fmt.Sprintf("web%02d", n), ID: fmt.Sprintf("%032d", n)},
				Start: since.Add(time.Duration(i) * fleetStep), End: since.Add(time.Duration(i+1) * fleetStep), Samples: fleetSamples(rng, n)}
			for j := range iv.Samples {
				if s := &iv.Samples[j]; s.Mount.NFSServer == "nas1" {
					truth[s.Project+", "+iv.Host.Name] += s.Read.Bytes + s.Write.Bytes
				}
			}
			for d := range ndjson.Documents(output.Group(iv, group), iv, ndjson.Options{}) {
				for e.Stats().QueueBytes > 32<<20 { // until the server has taken some: what does not fit is dropped
					time.Sleep(time.Millisecond)
				}
				if err := e.Ship(d.Type+"-"+d.Dataset+"-"+d.Namespace, d.ID, d.Line); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	shipped := time.Since(began)
	docs, want := server.Count("metrics-iotrace.io-default"), steps*fleetHosts*fleetRows
	if docs != want {
		t.Fatalf("the server has %d documents, %d were shipped; %+v", docs, want, e.Stats())
	}
	server.Ask(http.MethodPost, "/metrics-iotrace.io-default/_forcemerge?max_num_segments=1", "", nil)
	var stored struct {
		All struct {
			Primaries struct {
				Store struct {
					Bytes uint64 `json:"size_in_bytes"`
				}
			}
		} `json:"_all"`
	}
	server.Ask(http.MethodGet, "/metrics-iotrace.io-default/_stats/store", "", &stored)
	perDoc := float64(stored.All.Primaries.Store.Bytes) / float64(docs)

	var out strings.Builder
	loads, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(loads), " ")
	fmt.Fprintf(&out, "%d documents: %d hosts, %d documents each every %v, %s. Elasticsearch with a heap of 512 MiB on the same %d CPUs took them in %s, %.0f a second,\n"+
		"and stores %.0f bytes a document: %s a host and day. Medians of %d; load average %s, of other programs. Written by `make bench-cluster` on %s.\n\n",
		docs, fleetHosts, fleetRows, fleetStep, text.Plural(uint64(steps), "interval", "intervals"), runtime.NumCPU(), shipped.Round(time.Second), float64(docs)/shipped.Seconds(),
		perDoc, text.Size(uint64(perDoc*fleetRows*24*3600/fleetStep.Seconds())), rounds, load, time.Now().UTC().Format(time.DateOnly))
	out.WriteString("| question | `replay --elasticsearch URL` and | time | memory of the program |\n|---|---|---|---|\n")
	all := []string{"--since", since.Format(time.RFC3339), "--until", until.Format(time.RFC3339)}
	last := []string{"--since", until.Add(-10 * time.Minute).Format(time.RFC3339), "--until", until.Format(time.RFC3339)}
	page := filepath.Join(t.TempDir(), "report.html")
	for _, q := range []struct {
		name, shown string
		time, flags []string
	}{
		{"which project loads nas1, on which hosts, now", "`--since 10m`", last, []string{"--filter", "nfs-server=nas1", "--by", "project,host"}},
		{"the same, of all that time", "", all, []string{"--filter", "nfs-server=nas1", "--by", "project,host"}},
		{"projects of all hosts", "", all, []string{"--by", "project"}},
		{"containers of one host", "", all, []string{"--filter", "host=web07", "--by", "container"}},
		{"in twelve steps", "", all, []string{"--by", "project,host", "--interval", fmt.Sprint(int(until.Sub(since).Seconds()) / 12), "--output", "ndjson"}},
		{"as a page", "", all, []string{"--by", "project,host", "--report", page}},
	} {
		var took []time.Duration
		var memory uint64
		args := slices.Concat([]string{"replay", "--elasticsearch", server.URL}, q.time, q.flags)
		for range rounds {
			cmd := exec.Command(binary(t), args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			start := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			for running := true; running; {
				select {
				case err := <-ended:
					if err != nil {
						t.Fatalf("%q: %v: %s", args, err, stderr.String())
					}
					running = false
				case <-time.After(20 * time.Millisecond):
					memory = max(memory, peakMemory(cmd.Process.Pid))
				}
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		flags := slices.DeleteFunc(slices.Clone(q.flags), func(f string) bool { return f == page })
		fmt.Fprintf(&out, "| %s | %s | %.1f s | %s |\n", q.name, strings.TrimSpace(q.shown+" `"+strings.Join(flags, " ")+"`"), took[len(took)/2].Seconds(), text.Size(memory))
	}
	t.Log(out.String())

	var answer, stderr bytes.Buffer
	args := slices.Concat([]string{"replay", "--elasticsearch", server.URL}, all, []string{"--filter", "nfs-server=nas1", "--by", "project,host", "--output", "ndjson"})
	if code := run(t.Context(), args, &answer, &stderr); code != exitOK {
		t.Fatalf("%s", stderr.String())
	}
	for line := range strings.Lines(answer.String()) {
		var d struct {
			Event   struct{ Dataset string }
			Iotrace struct {
				Group       struct{ Name []string }
				Read, Write struct{ Bytes uint64 }
			}
		}
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatal(err)
		}
		name := strings.Join(d.Iotrace.Group.Name, ", ")
		if want, ok := truth[name]; d.Event.Dataset == output.DatasetIO && ok {
			if got := d.Iotrace.Read.Bytes + d.Iotrace.Write.Bytes; got != want {
				t.Errorf("%s: %d bytes on nas1, want %d", name, got, want)
			}
			delete(truth, name)
		}
	}
	if len(truth) > 0 {
		t.Errorf("not in the answer: %v", truth)
	}
	if t.Failed() {
		return
	}
	writeMeasured(t, "measured cluster", out.String()+"\n")
}
