//go:build filebeat

package elastic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/elastic/testserver"
	"github.com/iotrace-bpf/iotrace-bpf/output/ndjson"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// TestIntakeFilebeatRuns runs a real Filebeat, the program in $FILEBEAT, with
// intake/filebeat.yml against a real Elasticsearch that is killed in the middle.
// The tag integration is needed beside filebeat. No other test builds Filebeat,
// which takes 1500 packages; how it was built for this one is in intake/README.md.
func TestIntakeFilebeatRuns(t *testing.T) {
	program := os.Getenv("FILEBEAT")
	if program == "" {
		t.Fatal("$FILEBEAT names no Filebeat")
	}
	s := testserver.Elasticsearch(t, nil)
	if err := Setup(t.Context(), testOptions(t, s.URL), io.Discard); err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	// The distribution of Elasticsearch for tests does not say what it is.
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			proxy.ServeHTTP(w, r)
			return
		}
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, infoES8)
	}))
	defer front.Close()

	dir := t.TempDir()
	lines, err := os.Create(filepath.Join(dir, "iotrace.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	want := newTotals()
	first := make(map[string]map[string]any) // document of a stream
	base := time.Now().Add(-10 * time.Minute).Truncate(time.Millisecond)
	print := func(from, to int) {
		for i := from; i < to; i++ {
			iv := outputtest.Cluster(base.Add(time.Duration(i)*time.Second), uint64(i))
			for j := range iv.Samples {
				if s := &iv.Samples[j]; !s.Device.Stacked {
					name := s.Project
					if name == "" {
						name = "(none)"
					}
					want.written[name] += s.Write.Bytes
				}
			}
			vxlan := output.Event{Time: iv.End, Action: "leaked", VXLAN: &output.VXLAN{Device: "vx-1", VNI: 4096, NetNS: 1 << 63}}
			request := output.Event{Time: iv.End, Action: "write", IO: &output.IO{Op: "write", Sample: iv.Samples[0], Latency: 7}}
			for _, events := range []bool{false, true} {
				if iv.Events = []output.Event{vxlan}; events {
					iv.Events = []output.Event{request}
				}
				for d := range ndjson.Documents(output.Group(iv, output.GroupOptions{By: []output.Key{output.KeyContainer}, Stacked: true}), iv, ndjson.Options{Events: events}) {
					stream := d.Type + "-" + d.Dataset + "-" + d.Namespace
					want.docs[stream]++
					if first[stream] == nil {
						var doc map[string]any
						if err := json.Unmarshal(d.Line, &doc); err != nil {
							t.Fatal(err)
						}
						first[stream] = doc
					}
					if _, err := fmt.Fprintf(lines, "%s\n", bytes.TrimSpace(d.Line)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	filebeat := func(args ...string) *exec.Cmd {
		config, err := filepath.Abs("../intake/filebeat.yml")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, append([]string{"-c", config, "--strict.perms=false", "--path.home", dir, "--path.data", filepath.Join(dir, "data"),
			"--path.logs", filepath.Join(dir, "logs"), "-E", "filebeat.inputs.0.paths.0=" + filepath.Join(dir, "*.ndjson")}, args...)...)
		cmd.Env = append(os.Environ(), "ELASTICSEARCH_URL="+front.URL, "ELASTICSEARCH_API_KEY=id:key")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	print(0, 30)
	for _, args := range [][]string{{"version"}, {"test", "config"}, {"test", "output"}} {
		out, err := filebeat(args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		t.Logf("%s", out)
	}
	cmd := filebeat("-e")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	defer end()
	stored := func() {
		t.Helper()
		for deadline := time.Now().Add(4 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
			short := ""
			for stream, n := range want.docs {
				if got := s.Count(stream); got < n {
					short += fmt.Sprintf("%s has %d of %d\n", stream, got, n)
				}
			}
			if short == "" {
				return
			}
			if time.Now().After(deadline) {
				end()
				t.Fatalf("%s%s", short, log.String())
			}
		}
	}
	stored()
	s.Kill()
	print(30, 60)
	s.Start()
	stored()
	for stream, n := range want.docs {
		if got := s.Count(stream); got != n {
			t.Errorf("%s has %d documents, want %d", stream, got, n)
		}
		var found struct {
			Hits struct {
				Hits []struct {
					Source map[string]any `json:"_source"`
				}
			}
		}
		doc := first[stream]
		query := map[string]any{"bool": map[string]any{"filter": []any{map[string]any{"term": map[string]any{"@timestamp": doc["@timestamp"]}}}}}
		if id := lookup(doc, "iotrace.group.id"); id != nil {
			query["bool"].(map[string]any)["must"] = map[string]any{"term": map[string]any{"iotrace.group.id": id}}
		}
		body, err := json.Marshal(map[string]any{"size": 10, "query": query})
		if err != nil {
			t.Fatal(err)
		}
		s.Ask(http.MethodPost, "/"+stream+"/_search", string(body), &found)
		same := false
		for _, h := range found.Hits.Hits {
			same = same || reflect.DeepEqual(sameShape(h.Source), sameShape(doc))
		}
		if !same {
			t.Errorf("%s: %d documents of that time, none equal to\n%v\n%v", stream, len(found.Hits.Hits), doc, found.Hits.Hits)
		}
	}
	if got := s.Sums(testIO, "iotrace.project.name", "iotrace.write.bytes", `{"bool":{"must_not":[{"term":{"iotrace.device.stacked":true}}]}}`); !maps.Equal(got, want.written) {
		t.Errorf("bytes by project: %v, want %v", got, want.written)
	}
}

// sameShape removes differences that do not matter: Filebeat writes times to the
// millisecond, and a time series returns a list of one value as that value.
func sameShape(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, x := range v {
			m[k] = sameShape(x)
		}
		return m
	case []any:
		if len(v) == 1 {
			return sameShape(v[0])
		}
	case string:
		if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return at.UnixMilli()
		}
	}
	return v
}
