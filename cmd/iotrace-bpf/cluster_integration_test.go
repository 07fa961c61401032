//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic/testserver"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

// busySamples are what containers, a service, the kernel and two clients of the host's own
// NFS server did on host n: to a disk with a volume above it, and to two NFS servers that
// all hosts mount. One of the clients is the third host, the other one reports nothing.
func busySamples(rng *rand.Rand, n int) (all []output.Sample) {
	amount := func() output.Amount {
		return output.Amount{Bytes: 1 + rng.Uint64N(1<<30), Ops: 1 + rng.Uint64N(1000), Errors: rng.Uint64N(2),
			Latency: output.Latency{Buckets: []output.Bucket{{UpTo: 1 << 20, Count: 5}}, Sum: 1 << 20, Max: 1 << 20}}
	}
	disk := output.Device{ID: "8:0", Name: "sda"}
	for c := range 11 {
		if rng.IntN(4) == 0 {
			continue
		}
		s := output.Sample{Level: output.LevelWire, Owner: output.OwnerContainer, Cgroup: output.Cgroup{ID: uint64(1000 + c), Path: fmt.Sprintf("/docker/%d", c)}}
		switch c {
		case 7:
			s.Owner, s.Unit, s.Cgroup.Path = output.OwnerUnit, "cron.service", "/system.slice/cron.service"
		case 8:
			s.Owner, s.Cgroup = output.OwnerKernel, output.Cgroup{}
		case 9, 10:
			s.Owner, s.Cgroup = output.OwnerNFSClient, output.Cgroup{}
			s.NFSClient = output.NFSClient{Address: fmt.Sprintf("10.1.0.%d", 2+10*(c-9)), Name: fmt.Sprintf("desk%d", c)}
		default:
			s.Project, s.Service, s.ProjectRule = []string{"shop", "blog", "wiki"}[c%3], fmt.Sprintf("s%d", c), "com.docker.compose.project"
			s.Container = output.Container{ID: fmt.Sprintf("%d%063d", n, c), Name: fmt.Sprintf("c%d", c), Runtime: "docker", Image: "example/app", ImageTag: "1.2",
				Labels: map[string]string{"com.example.team": []string{"red", "blue"}[c%2], "com.docker.compose.project": s.Project, "secret": "x"}}
			if c == 6 {
				s.Owner, s.Project, s.Service = output.OwnerContainer, "", ""
				s.Pod = output.Pod{Name: "web-0", Namespace: "prod", UID: fmt.Sprint("uid", n)}
			}
		}
		block := s
		block.Source, block.Device, block.Mount = output.SourceBlock, disk, output.Mount{Source: "/dev/sda1", Point: "/", FSType: "ext4"}
		if s.Owner == output.OwnerNFSClient {
			block.Mount.NFSExport, block.Mount.NFSAddress = "/srv/exported", fmt.Sprintf("10.0.0.%d", n)
		}
		block.Read, block.Write, block.Flush = amount(), amount(), output.Amount{Ops: 3}
		block.Discard, block.MetaWriteBytes = output.Amount{Bytes: 4096, Ops: 1}, block.Write.Bytes/2
		above := block
		above.Device = output.Device{ID: "254:0", Name: "dm-0", Stacked: true}
		nfs := s
		server := fmt.Sprintf("nas%d", 1+c%2)
		nfs.Source, nfs.Device = output.SourceNFS, output.Device{ID: fmt.Sprintf("0:%d", 50+c%2+n)}
		nfs.Mount = output.Mount{Source: server + ":/export", Point: "/mnt", FSType: "nfs4", NFSServer: server, NFSExport: "/export", NFSVersion: "4.2", NFSAddress: fmt.Sprintf("10.0.0.%d", c%2), NFSPort: 2049}
		if s.Owner != output.OwnerNFSClient {
			nfs.NFSClient.Address = fmt.Sprintf("10.1.0.%d", n)
		}
		nfs.Read, nfs.Write, nfs.Metadata, nfs.Retransmits = amount(), amount(), output.Amount{Ops: 7}, 1
		all = append(all, block, above, nfs)
		if s.Owner != output.OwnerNFSClient {
			shared := s
			shared.Source, shared.Device = output.Source9P, output.Device{ID: "0:99"}
			shared.Mount = output.Mount{Source: "data", Point: "/shared", FSType: "9p", Transport: "virtio"}
			shared.Read, shared.Write, shared.Metadata = amount(), amount(), output.Amount{Ops: 7}
			all = append(all, shared)
		}
	}
	return all
}

// TestReplayCluster: three hosts ship to a real server, and a replay from it has the bytes
// and operations of the replay of their recordings, by every key, at once and in steps. It
// says which host is silent and which one lost something.
func TestReplayCluster(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(*testing.T) *testserver.Server
	}{
		{"elasticsearch", func(t *testing.T) *testserver.Server { return testserver.Elasticsearch(t, nil) }},
		{"opensearch", func(t *testing.T) *testserver.Server { return testserver.OpenSearch(t) }},
	} {
		t.Run(c.name, func(t *testing.T) { testReplayCluster(t, c.start(t)) })
	}
}

func testReplayCluster(t *testing.T, server *testserver.Server) {
	replay := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var o, e bytes.Buffer
		if code := run(t.Context(), append([]string{"replay"}, args...), &o, &e); code != want {
			t.Fatalf("replay %q: exit code %d, want %d: %s", args, code, want, e.String())
		}
		return o.String(), e.String()
	}
	from := []string{"--elasticsearch", server.URL, "--since", "20m"}
	if _, said := replay(exitFailed, from...); strings.Count(said, "\n") != 1 || !strings.Contains(said, "there is no such data stream") {
		t.Errorf("without templates: %q", said)
	}
	if err := elastic.Setup(t.Context(), elastic.Options{URLs: []string{server.URL}}, io.Discard); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	begin := time.Now().Add(-15 * time.Minute).Truncate(10 * time.Second)
	// Not "20m" again: a slow machine needs longer than the five minutes before the first interval.
	from = []string{"--elasticsearch", server.URL, "--since", begin.Add(-5 * time.Minute).Format(time.RFC3339), "--until", begin.Add(12*time.Minute + 10*time.Second).Format(time.RFC3339)}
	var files []string
	shipped := 0
	ship := []string{"--elasticsearch", server.URL, "--elasticsearch-spool", filepath.Join(dir, "spool"), "--by", "container,device,mount", "--output", "ndjson", "--export-label", "com.example.*"}
	for n, minutes := range []int{12, 12, 3} { // the third falls silent
		rng := rand.New(rand.NewPCG(61, uint64(n)))
		host := output.Host{Name: fmt.Sprintf("web%d", n+1), ID: fmt.Sprintf("%032d", n+1)}
		files = append(files, filepath.Join(dir, host.Name))
		rec, err := recording.Create(files[n], recording.Options{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		for i := range minutes * 6 {
			iv := &output.Interval{Host: host, Samples: busySamples(rng, n),
				Sources: []output.SourceStatus{{Source: output.SourceBlock, Attached: true}, {Source: output.SourceNFS, Attached: true}}}
			iv.Start = begin.Add(time.Duration(i)*10*time.Second + time.Duration(n)*5*time.Second) // clocks 5 s apart
			iv.End = iv.Start.Add(10 * time.Second)
			if n == 1 && i == 7 {
				iv.Lost.Misses = 3
			}
			if err := rec.Write(iv); err != nil {
				t.Fatal(err)
			}
		}
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
		lines, _ := replay(exitOK, append(ship[:len(ship):len(ship)], files[n])...)
		shipped += strings.Count(lines, `"dataset":"iotrace.io"`) / 2 // in event and data_stream
	}
	// What a run could not deliver before its end, the next one with the spool does.
	for range 20 {
		if server.Count("metrics-iotrace.io-default") >= shipped {
			break
		}
		replay(exitOK, append(ship[:len(ship):len(ship)], files[0], "--filter", "container=none")...)
	}
	for _, stream := range []string{"metrics-iotrace.io-default", "logs-iotrace.status-default"} {
		if n := server.Count(stream); n == 0 || stream == "metrics-iotrace.io-default" && n < shipped {
			t.Fatalf("%s has %d documents, %d were shipped", stream, n, shipped)
		}
	}

	// The host ships at wire level: that is what both sides show.
	sums := func(lines string) map[string]uint64 {
		got := map[string]uint64{}
		for line := range strings.Lines(lines) {
			var d struct {
				Event   struct{ Dataset string }
				Iotrace struct {
					Source                                string
					Group                                 struct{ Name []string }
					Device                                struct{ Stacked bool }
					Read, Write, Discard, Flush, Metadata struct{ Bytes, Ops, Errors uint64 }
				}
			}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
			if d.Event.Dataset != output.DatasetIO || d.Iotrace.Device.Stacked {
				continue
			}
			f := &d.Iotrace
			name := strings.Join(f.Group.Name, ", ") + " " + f.Source
			for op, a := range map[string]struct{ Bytes, Ops, Errors uint64 }{"read": f.Read, "write": f.Write, "discard": f.Discard, "flush": f.Flush, "metadata": f.Metadata} {
				got[name+" "+op+" bytes"] += a.Bytes
				got[name+" "+op+" ops"] += a.Ops
				got[name+" "+op+" errors"] += a.Errors
			}
		}
		maps.DeleteFunc(got, func(_ string, n uint64) bool { return n == 0 })
		return got
	}
	bothSides := func(args []string) (map[string]uint64, string) {
		lines, said := replay(exitOK, append(args, "--source", "block", "--by", "project,nfs-client,host", "--filter", "nfs-export=*", "--output", "ndjson")...)
		return sums(lines), said
	}
	// Which projects of the third host load the disks of the other two.
	inFiles, _ := bothSides(append(files[:3:3], "30m"))
	inCluster, said := bothSides(from[:len(from):len(from)])
	if n := inCluster["shop, nfs client desk9 (10.1.0.2), web1 block write bytes"]; n == 0 || !maps.Equal(inCluster, inFiles) {
		t.Errorf("project shop wrote %d bytes to the disk of web1; all of it: %v, the recordings have %v", n, inCluster, inFiles)
	}
	if !strings.Contains(said, "cannot be told by project") || !strings.Contains(said, "10.1.0.12, does not report") {
		t.Errorf("of the client that does not report it says %q", said)
	}

	for _, by := range []string{"host,project", "nfs-server", "project,host", "container", "service", "image", "host,source,op", "host,device", "namespace", "nfs-client", "host,nfs-export", "mount", "label:com.example.team,host", "label:com.docker.compose.project"} {
		recorded, _ := replay(exitOK, append(files[:3:3], "--by", by, "--output", "ndjson")...)
		want := sums(recorded)
		if len(want) == 0 {
			t.Fatalf("by %s: nothing is recorded", by)
		}
		for _, more := range [][]string{nil, {"--interval", "1m"}, {"--interval", "90"}} {
			lines, said := replay(exitOK, append(append(from[:len(from):len(from)], "--by", by, "--output", "ndjson"), more...)...)
			got := sums(lines)
			for k, n := range want {
				if got[k] != n {
					t.Fatalf("by %s %q: %s is %d, the recordings have %d", by, more, k, got[k], n)
				}
			}
			if len(got) != len(want) {
				t.Errorf("by %s %q: %d sums, the recordings have %d", by, more, len(got), len(want))
			}
			if !strings.Contains(said, "host=web3") || strings.Contains(said, "silent: nothing of it is counted after its last document\" host=web2") || !strings.Contains(said, "3 skipped program runs") {
				t.Errorf("by %s: says %q", by, said)
			}
		}
	}

	for _, filter := range []string{"label:com.example.team=red", "label:com.example.team=*"} {
		by := []string{"--by", "host,service", "--filter", filter, "--output", "ndjson"}
		recorded, _ := replay(exitOK, append(files[:3:3], by...)...)
		lines, said := replay(exitOK, append(from[:len(from):len(from)], by...)...)
		if want, got := sums(recorded), sums(lines); len(want) < 10 || !maps.Equal(got, want) {
			t.Errorf("%s: %d sums, the recordings have %d", filter, len(got), len(want))
		}
		if strings.Contains(said, "templates are older") {
			t.Errorf("right after setup: %s", said)
		}
	}
	// A label that nobody exports leaves its rows, and says nothing.
	if lines, _ := replay(exitOK, append(from[:len(from):len(from)], "--by", "label:secret", "--output", "ndjson")...); strings.Contains(lines, `"x"`) || len(sums(lines)) == 0 {
		t.Errorf("by a label that did not leave the hosts:\n%s", lines)
	}

	// The table, the report, another time, and what cannot be.
	table, _ := replay(exitOK, append(from[:len(from):len(from)], "--by", "host", "--filter", "host=web[12]")...)
	if !strings.Contains(table, "\nweb1") || !strings.Contains(table, "\nweb2") || strings.Contains(table, "\nweb3") || !strings.Contains(table, "(filtered out)") {
		t.Errorf("the table is\n%s", table)
	}
	page := filepath.Join(dir, "report.html")
	replay(exitOK, append(from[:len(from):len(from)], "--by", "project,host", "--report", page)...)
	if b, err := os.ReadFile(page); err != nil || !bytes.Contains(b, []byte("web3")) {
		t.Errorf("the report: %v, %d bytes", err, len(b))
	}
	early, _ := replay(exitOK, "--elasticsearch", server.URL, "--since", begin.Format(time.RFC3339), "--until", begin.Add(time.Minute).Format(time.RFC3339), "--by", "host", "--output", "ndjson")
	recorded, _ := replay(exitOK, files[0], "--duration", "60", "--by", "host", "--output", "ndjson")
	if got, want := sums(early)["web1 block write bytes"], sums(recorded)["web1 block write bytes"]; got != want || want == 0 {
		t.Errorf("the first minute of web1 has %d bytes, recorded are %d", got, want)
	}
	if _, said := replay(exitFailed, append(from[:len(from):len(from)], "--data-stream-namespace", "other")...); !strings.Contains(said, "no such data stream") {
		t.Errorf("of another namespace: %q", said)
	}

	// The screen asks step by step.
	r, err := elastic.OpenReader(t.Context(), elastic.Options{URLs: []string{server.URL}}, elastic.QueryOptions{Since: begin.Add(-time.Second), Until: begin.Add(13 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	line := r.Timeline(t.Context(), time.Minute)
	var whole, steps output.Sum
	first, end := line.Bounds()
	for i := end - 1; i >= first; i-- {
		iv, err := line.Frame(i)
		if err != nil {
			t.Fatal(err)
		}
		steps.Add(iv)
	}
	all, err := r.Interval(t.Context(), begin.Add(-time.Second), begin.Add(13*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	whole.Add(all)
	opt := output.GroupOptions{By: []output.Key{output.KeyHost}}
	a, b := output.Group(whole.Interval(), opt).Total.Total, output.Group(steps.Interval(), opt).Total.Total
	if a.Bytes() != b.Bytes() || a.Ops() != b.Ops() || a.Bytes() == 0 || end != 14 {
		t.Errorf("%d steps have %d bytes, the whole has %d", end, b.Bytes(), a.Bytes())
	}
}
