//go:build integration

package prometheus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// These tests run promtool and Prometheus of Debian's package prometheus.

func TestPrometheusPromtool(t *testing.T) {
	p := servePrometheus(t, Options{Version: "test", Elasticsearch: func() Shipping { return Shipping{Delivered: 1} }})
	iv := outputtest.Cluster(time.Now(), 5)
	iv.Events = []output.Event{{Action: "leaked", VXLAN: &output.VXLAN{}}}
	iv.Samples[0].Level = output.LevelApp
	iv.Samples[1].Write.Errors, iv.Samples[1].MetaWriteBytes = 1, 512
	p.Observe(iv)
	body, _ := p.scrape(t, "")
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = bytes.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// TestPrometheusRules evaluates the recording rules and alerts on series whose outcome is
// known.
func TestPrometheusRules(t *testing.T) {
	cmd := exec.Command("promtool", "test", "rules", "rules_test.yml")
	cmd.Dir = "../../packaging/prometheus"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// realPrometheus scrapes a target every quarter of a second.
func realPrometheus(t *testing.T, target string, flags ...string) (query func(expr string) ([]series, error)) {
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte("global: {scrape_interval: 250ms, scrape_timeout: 200ms}\nscrape_configs:\n- job_name: iotrace\n  static_configs: [{targets: ['"+target+"']}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "config", config).CombinedOutput(); err != nil {
		t.Fatalf("promtool check config: %v\n%s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	cmd := exec.Command("prometheus", append(flags, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%.5000s", log.String())
		}
	})
	outputtest.Until(t, "prometheus", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return func(expr string) ([]series, error) {
		res, err := http.Get("http://" + addr + "/api/v1/query?query=" + url.QueryEscape(expr))
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		var reply struct {
			Status, Error string
			Data          struct{ Result []series }
		}
		if err := json.NewDecoder(res.Body).Decode(&reply); err != nil {
			return nil, err
		}
		if reply.Status != "success" {
			return nil, fmt.Errorf("query %q: %s", expr, reply.Error)
		}
		return reply.Data.Result, nil
	}
}

type series struct {
	Metric    map[string]string
	Value     []any
	Histogram []any
}

var grafanaVariable = regexp.MustCompile(`\$\{?\w+`)

// TestGrafanaRealPrometheus runs a real Prometheus that scrapes the exporter,
// without and with native histograms, and runs every query of the dashboard there.
func TestGrafanaRealPrometheus(t *testing.T) {
	for name, flags := range map[string][]string{"fixed buckets": nil, "native histograms": {"--enable-feature=native-histograms"}} {
		t.Run(name, func(t *testing.T) {
			p := servePrometheus(t, Options{Elasticsearch: func() Shipping { return Shipping{Delivered: 1} }})
			query := realPrometheus(t, p.Addr(), flags...)
			written := make(map[string]uint64)
			observe := func() {
				iv := outputtest.Cluster(time.Now(), 1000)
				iv.Events = []output.Event{{Action: "leaked", VXLAN: &output.VXLAN{}}}
				for _, s := range iv.Samples {
					if !s.Device.Stacked {
						written[s.Project] += s.Write.Bytes
					}
				}
				p.Observe(iv)
			}
			observe()
			scrapes := 0.0
			outputtest.Until(t, "twenty scrapes", func() bool {
				observe()
				if r, err := query(`count_over_time(iotrace_intervals_total[1m])`); err == nil && len(r) == 1 {
					fmt.Sscan(r[0].Value[1].(string), &scrapes)
				}
				time.Sleep(50 * time.Millisecond)
				return scrapes >= 20
			})
			// Sums in Prometheus are what was observed.
			outputtest.Until(t, "right sums", func() bool {
				r, err := query(`sum by (project) (iotrace_io_bytes_total{operation="write"})`)
				if err != nil {
					t.Fatal(err)
				}
				right := len(r) == len(written)
				for _, s := range r {
					right = right && s.Value[1] == fmt.Sprint(written[s.Metric["project"]])
				}
				return right
			})
			// After a scrape that timed out, queries find nothing until the next one.
			// I/O goes on meanwhile, because rates would drop to zero otherwise.
			find := func(what, expr string) (r []series) {
				outputtest.Until(t, what+": "+expr, func() bool {
					observe()
					var err error
					if r, err = query(expr); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					return len(r) > 0
				})
				return r
			}
			replace := strings.NewReplacer("$__rate_interval", "30s", "$source", ".*", "$project", ".*", "$host", ".*", "$nfs_server", ".*")
			ran := 0
			for _, panel := range grafanaPanels(t) {
				for _, target := range panel.Targets {
					expr := replace.Replace(target.Expr)
					if v := grafanaVariable.FindString(expr); v != "" {
						t.Errorf("panel %q: variable %s is not known here", panel.Title, v)
					}
					ran++
					for _, s := range find(fmt.Sprintf("panel %q", panel.Title), expr) {
						if len(s.Value) == 2 && (s.Value[1] == "NaN" || s.Value[1] == "+Inf") {
							t.Errorf("panel %q: %s for %v", panel.Title, s.Value[1], s.Metric)
						}
					}
				}
			}
			if ran < 20 {
				t.Errorf("only %d queries", ran)
			}
			// All writes took a power of two just above a millisecond.
			r := find("quantile", `histogram_quantile(0.5, sum(rate(iotrace_io_latency_seconds[30s]))) or histogram_quantile(0.5, sum by (le) (rate(iotrace_io_latency_seconds_bucket[30s])))`)
			if len(r) != 1 {
				t.Fatalf("quantile: %v", r)
			}
			low, high := 0.001, 0.0025 // the fixed bucket
			if flags != nil {
				low, high = 0.00097, 0.00107 // the native one
				if n := find("native histogram", `iotrace_io_latency_seconds`); len(n[0].Histogram) == 0 {
					t.Errorf("no native histogram is stored: %v", n)
				}
			}
			var q float64
			if fmt.Sscan(r[0].Value[1].(string), &q); q < low || q > high {
				t.Errorf("median latency %g, want %g to %g", q, low, high)
			}
		})
	}
}
