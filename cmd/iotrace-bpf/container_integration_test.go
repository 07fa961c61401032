//go:build integration

package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// imageCapabilities are those of the docker run line in README.md for an engine that
// knows neither CAP_BPF nor CAP_PERFMON.
var imageCapabilities = []string{"SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}

// makeImage makes the image as make image does, and returns its name.
func makeImage(t *testing.T, e *enginetest.Engine) string {
	t.Helper()
	const name = "iotrace-bpf:test"
	cmd := exec.Command(filepath.Join(tree, "packaging", "image.sh"), "v0.9.0", name)
	cmd.Env = append(e.Command().Env, "CGO_ENABLED=0", "DOCKER_BUILDKIT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("image.sh: %v\n%s", err, out)
	}
	return name
}

// TestImage runs the image as users do, in a real engine.
func TestImage(t *testing.T) {
	e := enginetest.Start(t)
	image := makeImage(t, e)
	if got := e.Docker(t, "image", "inspect", "--format", `{{index .Config.Labels "org.opencontainers.image.version"}} {{.Config.User}}`, image); got != "v0.9.0 " {
		t.Errorf("labels and user of the image: %q", got)
	}
	if got := e.Docker(t, "run", "--rm", "--network", "none", image, "version"); !strings.Contains(got, "v0.9.0") {
		t.Errorf("version of the program in the image: %q", got)
	}
	t.Run("sees", func(t *testing.T) { imageSees(t, e, image) })
	t.Run("blind", func(t *testing.T) { imageBlind(t, e, image) })
}

// imageSees: what the image shows from inside of a container is what the program shows
// on the host, byte for byte, with private namespaces and without the host's pids.
func imageSees(t *testing.T, e *enginetest.Engine, image string) {
	lower := newDisk(t, 200)
	lower.format(t, mkExt4()...)
	upper := loopOver(t, filepath.Join(lower.mount, "image"), 64)
	upper.format(t, mkExt4()...)
	e.Docker(t, "volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", "device="+lower.mount, "dbdata")
	const script = `until [ -e /tmp/go ]; do sleep 0.1; done
dd if=/dev/zero of=/data/f bs=4k count=211 conv=fsync && dd if=/dev/zero of=/upper/f bs=4k count=307 oflag=direct && : > /tmp/done; exec sleep 1000`
	for _, name := range []string{"shop", "bank"} {
		e.Run(t, append(project(name, "web"), "--name", name+"-web-1", "--volume", "dbdata:/data", "--volume", upper.mount+":/upper",
			"--workdir", "/tmp", enginetest.Image, "sh", "-c", strings.ReplaceAll(script, "/f ", "/"+name+" "))...)
	}
	t.Cleanup(func() { e.Docker(t, "rm", "--force", "shop-web-1", "bank-web-1") }) // they hold the disks

	flags := []string{"--vxlan=false", "--source", "block", "--interval", "200ms", "--by", "project,container,device,mount,cgroup"}
	outside := trace(t, append([]string{"--docker-host", e.Socket}, flags...)...)
	run := []string{"run", "--rm", "--network", "none", "--cgroupns", "private", "--volume", "/:/host:ro", "--volume", os.TempDir() + ":" + os.TempDir()}
	for _, c := range imageCapabilities {
		run = append(run, "--cap-add", c)
	}
	inside := startNDJSON(t, e.Command(append(append(run, image, "--host-root", "/host", "--docker-host", "unix:///host"+e.Socket), flags...)...))
	for _, name := range []string{"shop", "bank"} {
		e.Docker(t, "exec", name+"-web-1", "touch", "/tmp/go")
	}
	for _, name := range []string{"shop", "bank"} {
		enginetest.Poll(t, time.Minute, name+" wrote", func() bool { return e.Command("exec", name+"-web-1", "test", "-e", "/tmp/done").Run() == nil })
	}
	upper.flush(t)
	lower.flush(t)
	rows := func(r *traced) map[string]total {
		// The journal may go on between the ends of the two: only the containers have finished.
		return rowsOf(r.stop(t), func(d *tracedDoc) bool { return d.Iotrace.Owner == "container" && (lower.match(d) || upper.match(d)) })
	}
	got, want := rows(inside), rows(outside)
	if !maps.Equal(got, want) || len(want) < 4 {
		t.Errorf("inside of a container:\n%s\non the host:\n%s\nstandard error in the container:\n%s", shownTotals(got), shownTotals(want), inside.stderr.String())
	}
	for _, part := range []string{"shop-web-1", "bank-web-1", "dbdata", upper.name(), lower.name()} {
		if !strings.Contains(shownTotals(want), part) {
			t.Errorf("no row names %q:\n%s", part, shownTotals(want))
		}
	}
	if text := inside.stderr.String(); strings.Contains(text, "in this container") {
		t.Errorf("warnings although nothing is missing:\n%s", text)
	}
}

// rowsOf adds up the numbers of the rows to keep, by all that names them.
func rowsOf(docs []tracedDoc, keep func(*tracedDoc) bool) map[string]total {
	all := map[string]total{}
	for i := range docs {
		d := &docs[i]
		if d.Event.Dataset != "iotrace.io" || !keep(d) {
			continue
		}
		key := fmt.Sprint(d.Iotrace.Group.Name, d.Host.Name, d.Host.ID, d.Iotrace.Owner, d.Iotrace.Service.Name, d.Iotrace.Device)
		s := all[key]
		s.read += d.Iotrace.Read.Bytes
		s.write += d.Iotrace.Write.Bytes
		s.metaWrite += d.Iotrace.Write.MetaBytes
		s.writeOps += d.Iotrace.Write.Ops
		all[key] = s
	}
	return all
}

func shownTotals(all map[string]total) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, fmt.Sprintf("%s read %d write %d (meta %d) requests %d", k, all[k].read, all[k].write, all[k].metaWrite, all[k].writeOps))
	}
	return strings.Join(lines, "\n")
}

// imageBlind: what a container without the host's files cannot see it says, with
// the flag that helps; and it names no mount of its own.
func imageBlind(t *testing.T, e *enginetest.Engine, image string) {
	d := newDisk(t, 64)
	d.format(t, mkExt4()...)
	run := []string{"run", "--rm", "--network", "none", "--cgroupns", "private", "--volume", os.TempDir() + ":" + os.TempDir()}
	for _, c := range imageCapabilities {
		run = append(run, "--cap-add", c)
	}
	check, err := e.Command(append(run, image, "check", "--source", "block")...).Output()
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	for _, want := range []string{"pid namespace: its own", "--pid=host", "cgroup namespace: its own", "a part of them", "host.name is the name of this container",
		"--host-name NAME", "host.id is missing", "containers have ids instead of names", "--volume /run/docker.sock"} {
		if !strings.Contains(string(check), want) {
			t.Errorf("check does not say %q:\n%s", want, check)
		}
	}
	r := startNDJSON(t, e.Command(append(run, image, "--vxlan=false", "--source", "block", "--interval", "200ms", "--by", "device,mount", "--host-name", "db7")...))
	if err := os.WriteFile(filepath.Join(d.mount, "f"), make([]byte, 211*4096), 0o600); err != nil {
		t.Fatal(err)
	}
	before := d.stat(t)
	d.flush(t)
	delta := d.stat(t).minus(before)
	docs := r.stop(t)
	if got := sum(docs, d.match).write; got < 211*4096 || got < delta.writeBytes {
		t.Errorf("reported are %d bytes, the disk counted %d", got, delta.writeBytes)
	}
	for i := range docs {
		if name := docs[i].Iotrace.Group.Name; docs[i].Event.Dataset == "iotrace.io" && (len(name) != 2 || !strings.HasSuffix(name[1], "(no mount)") && !strings.HasSuffix(name[1], "(mount unknown)")) {
			t.Errorf("a row has the mount %q, which can only be the container's own", name)
		}
		if docs[i].Host.Name != "db7" || docs[i].Host.ID != "" {
			t.Fatalf("the host is %+v, want the name that was given and no id", docs[i].Host)
		}
	}
	if text := r.stderr.String(); !strings.Contains(text, "mounts and processes have no names") || !strings.Contains(text, "--pid=host") {
		t.Errorf("no warning:\n%s", text)
	}
	said := false
	for i := range docs {
		said = said || slices.Contains(docs[i].Iotrace.Sources["block"].Limitations, "mounts and processes have no names: /proc is not the host's")
	}
	if !said {
		t.Error("no status document says it")
	}
}
