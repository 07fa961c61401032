//go:build integration

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// TestSwarm deploys the stack file in a real swarm of one node. The task's /metrics have
// the bytes of a project, under its name, to the byte.
func TestSwarm(t *testing.T) {
	d := newDisk(t, 64)
	d.format(t, mkExt4()...)
	e := enginetest.StartSwarm(t, freePort(t))
	image := makeImage(t, e)
	port := freePort(t)
	faster := filepath.Join(t.TempDir(), "faster.yml")
	// The engine of the test has its socket elsewhere than a user's.
	override := "version: \"3.8\"\nservices:\n  agent:\n    command: [\"--no-tui\", \"--interval\", \"1\", \"--docker-host\", \"/host" + e.Socket + "\"]\n"
	if err := os.WriteFile(faster, []byte(override), 0o600); err != nil {
		t.Fatal(err)
	}
	deploy := e.Command("stack", "deploy", "--resolve-image", "never", "--compose-file", filepath.Join(tree, "packaging", "swarm", "stack.yml"), "--compose-file", faster, "iotrace")
	deploy.Env = append(deploy.Env, "IOTRACE_IMAGE="+image, "IOTRACE_PROMETHEUS="+port)
	if out, err := deploy.CombinedOutput(); err != nil || strings.Contains(string(out), "Ignoring") {
		t.Fatalf("docker stack deploy: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, args := range [][]string{{"service", "ps", "--no-trunc", "iotrace_agent"}, {"service", "logs", "iotrace_agent"}} {
				out, _ := e.Command(args...).CombinedOutput()
				t.Logf("docker %s:\n%s", strings.Join(args, " "), out)
			}
		}
		e.Docker(t, "stack", "rm", "iotrace")
		enginetest.Poll(t, time.Minute, "the stack's task is gone", func() bool {
			return e.Docker(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.swarm.service.name=iotrace_agent") == ""
		})
	})
	var metrics string
	enginetest.Poll(t, time.Minute, "the task serves metrics", func() bool {
		metrics = scrape(port)
		return strings.Contains(metrics, "\niotrace_intervals_total ")
	})
	before := d.stat(t)
	e.Docker(t, append(append([]string{"run", "--name", "shop-web-1", "--network", "none", "--volume", d.mount + ":/data"}, project("shop", "web")...),
		enginetest.Image, "dd", "if=/dev/zero", "of=/data/f", "bs=4k", "count=509", "conv=fsync")...)
	d.flush(t)
	const want = 509 * 4096
	wrote := d.stat(t).minus(before).writeBytes
	var shop, all uint64
	enginetest.Poll(t, 30*time.Second, "the metrics have the bytes of the disk", func() bool {
		metrics = scrape(port)
		// The file system's own pages, inodes and directories, belong to the project too.
		shop = counted(t, metrics, "bytes", `project="shop"`, d) - counted(t, metrics, "metadata_bytes", `project="shop"`, d)
		all = counted(t, metrics, "bytes", "", d)
		return all == wrote
	})
	if shop != want {
		t.Errorf("project shop wrote %d bytes, the metrics say %d", want, shop)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{fmt.Sprintf("host=%q", name), fmt.Sprintf("host_id=%q", strings.TrimSpace(string(id)))} {
		if !regexp.MustCompile(`(?m)^iotrace_host_info\{.*` + regexp.QuoteMeta(label)).MatchString(metrics) {
			t.Errorf("the host has not %s", label)
		}
	}
}

// counted adds up the bytes, or metadata_bytes, written to a disk in the series that have
// a label.
func counted(t *testing.T, metrics, what, label string, d *disk) (sum uint64) {
	t.Helper()
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "iotrace_io_"+what+"_total{") && strings.Contains(line, `device="`+d.name()+`"`) && strings.Contains(line, `operation="write"`) && strings.Contains(line, label) {
			n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, "}")+1:]), 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			sum += uint64(n)
		}
	}
	return sum
}

// scrape returns /metrics on this machine, "" while nothing answers.
func scrape(port string) string {
	resp, err := http.Get("http://127.0.0.1:" + port + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(text)
}

// freePort returns a port of loopback where nothing listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
