//go:build integration

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
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

// TestSwarm runs the stack files in a real swarm of one node.
func TestSwarm(t *testing.T) {
	// The engine's mounts are a copy of this machine's: what is mounted later it does not see.
	lower := newDisk(t, 200)
	lower.format(t, mkExt4()...)
	upper := loopOver(t, filepath.Join(lower.mount, "image"), 64)
	upper.format(t, mkExt4()...)
	e := enginetest.StartSwarm(t, freePort(t))
	t.Cleanup(func() { // its copies would keep the disks for as long as any of its processes lives
		for _, d := range []*disk{upper, lower} {
			mustRun(t, "nsenter", "--target", strconv.Itoa(e.PID()), "--mount", "umount", d.mount)
		}
	})
	image := makeImage(t, e)
	t.Run("metrics", func(t *testing.T) { swarmMetrics(t, e, image, lower) })
	t.Run("launch", func(t *testing.T) { swarmLaunch(t, e, image, lower, upper) })
}

// swarmMetrics: the task's /metrics have the bytes of a project, under its name, to the
// byte.
func swarmMetrics(t *testing.T, e *enginetest.Engine, image string, d *disk) {
	port := deployStack(t, e, image, "stack.yml", "iotrace", "command: [\"--no-tui\", \"--interval\", \"1\", \"--docker-host\", \"/host"+e.Socket+"\"]")
	before := d.stat(t)
	e.Docker(t, append(append([]string{"run", "--name", "shop-web-1", "--network", "none", "--volume", d.mount + ":/data"}, project("shop", "web")...),
		enginetest.Image, "dd", "if=/dev/zero", "of=/data/f", "bs=4k", "count=509", "conv=fsync")...)
	d.flush(t)
	const want = 509 * 4096
	wrote := d.stat(t).minus(before).writeBytes
	t.Cleanup(func() { e.Docker(t, "rm", "--force", "shop-web-1") })
	var shop, all uint64
	var metrics string
	enginetest.Poll(t, 30*time.Second, "the metrics have the bytes of the disk", func() bool {
		metrics = scrape(port)
		// The file system's own pages, inodes and directories, belong to the project too.
		shop = counted(t, metrics, "bytes", `project="shop"`, d) - counted(t, metrics, "metadata_bytes", `project="shop"`, d)
		all = counted(t, metrics, "bytes", "", d)
		return all == wrote
	})
	if shop != want {
		t.Errorf("project shop wrote %d bytes, the metrics say %d:\n%s", want, shop, strings.Join(regexp.MustCompile(`(?m)^iotrace_io_.*"`+d.name()+`".*$`).FindAllString(metrics, -1), "\n"))
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

// deployStack deploys a stack file with one setting of its service changed, waits until it
// serves metrics and returns their port. It is removed with the test.
func deployStack(t *testing.T, e *enginetest.Engine, image, file, stack, change string) (port string) {
	t.Helper()
	port = freePort(t)
	// The engine of the test has its socket elsewhere than a user's, and is asked more often.
	override := filepath.Join(t.TempDir(), "override.yml")
	if err := os.WriteFile(override, []byte("version: \"3.8\"\nservices:\n  agent:\n    "+change+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	deploy := e.Command("stack", "deploy", "--resolve-image", "never", "--compose-file", filepath.Join(tree, "packaging", "swarm", file), "--compose-file", override, stack)
	deploy.Env = append(deploy.Env, "IOTRACE_IMAGE="+image, "IOTRACE_PROMETHEUS="+port)
	if out, err := deploy.CombinedOutput(); err != nil || strings.Contains(string(out), "Ignoring") {
		t.Fatalf("docker stack deploy: %v\n%s", err, out)
	}
	service := stack + "_agent"
	t.Cleanup(func() {
		if t.Failed() {
			for _, args := range [][]string{{"service", "ps", "--no-trunc", service}, {"service", "logs", "--tail", "40", service}} {
				out, _ := e.Command(args...).CombinedOutput()
				t.Logf("docker %s:\n%s", strings.Join(args, " "), out)
			}
		}
		e.Docker(t, "stack", "rm", stack)
		enginetest.Poll(t, time.Minute, "the stack's task is gone", func() bool {
			return e.Docker(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.swarm.service.name="+service) == ""
		})
	})
	enginetest.Poll(t, time.Minute, "the task serves metrics", func() bool { return strings.Contains(scrape(port), "\niotrace_intervals_total ") })
	return port
}

// task returns the id of a stack's container, "" while it has none.
func task(t *testing.T, e *enginetest.Engine, stack string) string {
	t.Helper()
	return e.Docker(t, "ps", "--quiet", "--no-trunc", "--filter", "label=com.docker.swarm.service.name="+stack+"_agent")
}

// swarmLaunch runs both stack files beside a tracer on the host. What a
// launched container says of a load is what the host says, byte for byte: also of a loop
// device and of a file system that only one container has mounted. The plain service says
// the same of all but that mount, whose name it cannot see. Nothing is left of a launcher
// that was killed.
func swarmLaunch(t *testing.T, e *enginetest.Engine, image string, lower, upper *disk) {
	private := newDisk(t, 64)
	mustRun(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", private.dev)
	const script = `set -e
mkdir /private && mount -t ext4 -o noinit_itable $0 /private
until [ -e /tmp/go ]; do sleep 0.1; done
dd if=/dev/zero of=/data/f bs=4k count=211 conv=fsync
dd if=/dev/zero of=/upper/f bs=4k count=307 oflag=direct
dd if=/dev/zero of=/private/f bs=4k count=401 conv=fsync
touch /tmp/done
exec sleep 1000`
	e.Run(t, append(project("shop", "web"), "--name", "shop-web-1", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined",
		"--security-opt", "apparmor=unconfined", "--device", private.dev, "--volume", lower.mount+":/data", "--volume", upper.mount+":/upper",
		enginetest.Image, "sh", "-c", script, private.dev)...)
	t.Cleanup(func() { e.Docker(t, "rm", "--force", "shop-web-1") }) // it holds the disks

	flags := []string{"--no-tui", "--vxlan=false", "--source", "block", "--interval", "1", "--by", "project,container,device,mount,cgroup", "--docker-host"}
	command := func(words []string) string {
		list, err := json.Marshal(words)
		if err != nil {
			t.Fatal(err)
		}
		return "command: " + string(list)
	}
	plain := append(append([]string{"--output", "ndjson"}, flags...), "/host"+e.Socket)
	deployStack(t, e, image, "stack.yml", "plain", command(plain))
	port := deployStack(t, e, image, "launch.yml", "launched", command(append([]string{"launch", "--"}, plain...))+
		"\n    volumes: [{type: bind, source: "+e.Socket+", target: /var/run/docker.sock}]\n    deploy: {restart_policy: {delay: 1s}}")
	launched := func() string {
		return e.Docker(t, "ps", "--all", "--quiet", "--no-trunc", "--filter", "label="+launchLabel)
	}
	first, launcher := launched(), task(t, e, "launched")
	for format, want := range map[string]string{
		"{{.HostConfig.PidMode}} {{.HostConfig.NetworkMode}} {{.HostConfig.UTSMode}} {{.HostConfig.CgroupnsMode}} {{.HostConfig.Privileged}}": "host host host host false",
		"{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}":             e.Inspect(t, launcher, "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}"),
		"{{index .Config.Labels \"" + launchLabel + "\"}} {{.Image}}": launcher + " " + e.Inspect(t, launcher, "{{.Image}}"),
	} {
		if got := e.Inspect(t, first, format); got != want || want == "0 0" {
			t.Errorf("the launched container has %s %q, want %q", format, got, want)
		}
	}
	outside := trace(t, append(flags, e.Socket)...)
	inside := func(stack string) []tracedDoc {
		t.Helper()
		text := e.Docker(t, "logs", task(t, e, stack))
		if text == "" {
			return nil
		}
		r := &traced{}
		r.read(bufio.NewReader(strings.NewReader(text + "\n")))
		if r.bad != nil {
			t.Fatalf("bad document: %v", r.bad)
		}
		return r.docs
	}
	// A tracer that starts in the middle of a transaction deals its blocks otherwise than one
	// that saw its beginning: compared is what comes after a commit.
	for _, d := range []*disk{private, upper, lower} {
		d.flush(t)
	}
	committed := time.Now()
	after := func(d *tracedDoc) bool { return d.Event.Start.After(committed) }
	enginetest.Poll(t, time.Minute, "an interval that began after the commit", func() bool {
		for _, docs := range [][]tracedDoc{outside.seen(), inside("plain"), inside("launched")} {
			if len(docs) == 0 || !after(&docs[len(docs)-1]) {
				return false
			}
		}
		return true
	})
	e.Docker(t, "exec", "shop-web-1", "touch", "/tmp/go")
	enginetest.Poll(t, time.Minute, "shop wrote", func() bool { return e.Command("exec", "shop-web-1", "test", "-e", "/tmp/done").Run() == nil })
	for _, d := range []*disk{private, upper, lower} {
		d.flush(t)
	}
	for _, d := range []*disk{upper, lower} { // nothing is written between the ends of the tracers
		mustRun(t, "fsfreeze", "--freeze", d.mount)
		t.Cleanup(func() { mustRun(t, "fsfreeze", "--unfreeze", d.mount) })
	}
	all := func(d *tracedDoc) bool { return after(d) && (lower.match(d) || upper.match(d) || private.match(d)) }
	want := rowsOf(outside.stop(t), all)
	for _, part := range []string{"shop-web-1", "/private", upper.name(), lower.name(), private.name()} {
		if !strings.Contains(shownTotals(want), part) {
			t.Errorf("no row of the host's tracer names %q:\n%s", part, shownTotals(want))
		}
	}
	compare := func(stack string, want map[string]total) {
		t.Helper()
		var got map[string]total
		defer func() {
			if t.Failed() {
				t.Logf("%s:\n%s\nwant:\n%s", stack, shownTotals(got), shownTotals(want))
			}
		}()
		enginetest.Poll(t, 30*time.Second, "the rows of "+stack, func() bool {
			got = rowsOf(inside(stack), all)
			return maps.Equal(got, want)
		})
	}
	compare("launched", want)
	unnamed := map[string]total{}
	for key, n := range want {
		key = strings.ReplaceAll(key, private.dev+" on /private", private.name()+" (mount unknown)")
		s := unnamed[key]
		unnamed[key] = total{read: s.read + n.read, write: s.write + n.write, metaWrite: s.metaWrite + n.metaWrite, writeOps: s.writeOps + n.writeOps}
	}
	compare("plain", unnamed)

	e.Docker(t, "kill", "--signal", "KILL", launcher)
	enginetest.Poll(t, time.Minute, "the container of a killed launcher is removed", func() bool { return !strings.Contains(launched(), first) })
	enginetest.Poll(t, 2*time.Minute, "the next task has launched another one", func() bool { return launched() != "" && strings.Contains(scrape(port), "\niotrace_intervals_total ") })
	e.Docker(t, "stack", "rm", "launched")
	enginetest.Poll(t, time.Minute, "nothing is left of the stack", func() bool { return launched() == "" && task(t, e, "launched") == "" })
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
