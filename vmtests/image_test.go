//go:build vm

package vmtests

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// deployNode is what the DaemonSet says that the node is called.
const deployNode = "guest"

// debugFile is the pod that kubectl debug asks for, in the share with what a release has.
const debugFile = "debug.json"

// recordDebugPod writes it.
func recordDebugPod(t *testing.T, dir string) {
	t.Helper()
	line := enginetest.DebugLine(t, "../packaging/README.md", deployNode)
	text, err := json.Marshal(enginetest.DebugPod(t, "../build/tools/kubectl", deployNode, line))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, debugFile), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// runtimeImage runs the image of a release in every way that packaging/ describes for one
// machine, on a pure cgroup v2 tree where engines give containers a cgroup namespace of
// their own: both lines of docker run, and over CRI the DaemonSet's pod and the one that
// kubectl debug asks for. Beside them a tracer runs on the host. All see the same load: what each says of it is the same, byte
// for byte.
func runtimeImage(g *guest.Guest) {
	g.Modprobe("overlay", "loop", "veth", "virtiofs")
	share := g.TempDir()
	g.Mount("virtiofs", packageTag, share, "")

	// As Debian's units start them: the engine and CRI have one containerd.
	c := enginetest.StartContainerd(g, enginetest.ContainerdOptions{Socket: "/run/containerd/containerd.sock", SystemdCgroup: true, Plugins: "/usr/lib/cni"})
	startDockerd(g, "--containerd", c.Socket)
	busybox := filepath.Join(g.TempDir(), "busybox.tar")
	g.WriteFile(busybox, string(enginetest.ImageArchive(g, enginetest.Image)))
	g.Exec("docker", "load", "--input", busybox)
	set := daemonSet(g, share)
	buildImage(g, share, "iotrace-bpf", set.Spec.Template.Spec.Containers[0].Image)
	archive := filepath.Join(g.TempDir(), "image.tar")
	g.Exec("docker", "save", "--output", archive, set.Spec.Template.Spec.Containers[0].Image)
	c.Ctr(g, "--namespace", "k8s.io", "images", "import", archive)

	// Read before the first tracer starts: the share is a file system that all of them trace.
	lines, debug := dockerLines(g, filepath.Join(share, "README.md")), debugPod(g, share)
	if len(lines) != 2 {
		g.Fatalf("packaging/README.md has %d lines of docker run, want 2", len(lines))
	}

	load := startImageLoad(g, c, share)
	tracers := []imageTracer{traceHost(g)}
	for i, line := range lines {
		tracers = append(tracers, traceDocker(g, fmt.Sprintf("tracer%d", i), line))
	}
	tracers = append(tracers, tracePod(g, c, set), traceDebug(g, c, debug))

	load.run()
	outputs := make([]*guest.Output, len(tracers))
	for i, t := range tracers {
		outputs[i] = t.stop()
	}
	want := load.rows(outputs[0])
	load.complete(outputs[0])
	for i, t := range tracers[1:] {
		if got := load.rows(outputs[i+1]); !maps.Equal(got, want) {
			g.Errorf("%s\nis not what the host says:\n%s", t.name, differences(got, want))
		}
	}
}

// buildImage makes the image by the Dockerfile of a release.
func buildImage(g *guest.Guest, share string, names ...string) {
	g.Helper()
	args := []string{"build", "--quiet", "--network", "none", "--file", filepath.Join(share, "Dockerfile"), "--build-arg", "VERSION=v0.9.0"}
	for _, name := range names {
		args = append(args, "--tag", name)
	}
	g.Exec("docker", append(args, filepath.Join(share, "image"))...)
}

// daemonSet is that of packaging/kubernetes, with the image that its kustomization names.
func daemonSet(g *guest.Guest, share string) *appsv1.DaemonSet {
	g.Helper()
	var set appsv1.DaemonSet
	if err := yaml.UnmarshalStrict([]byte(g.ReadFile(filepath.Join(share, "kubernetes", "daemonset.yaml"))), &set); err != nil {
		g.Fatal(err)
	}
	var kustomization struct {
		Images []struct{ Name, NewName, NewTag string }
	}
	if err := yaml.Unmarshal([]byte(g.ReadFile(filepath.Join(share, "kubernetes", "kustomization.yaml"))), &kustomization); err != nil {
		g.Fatal(err)
	}
	box := &set.Spec.Template.Spec.Containers[0]
	for _, i := range kustomization.Images {
		if i.Name == box.Image {
			box.Image = i.NewName + ":" + i.NewTag
		}
	}
	return &set
}

// dockerLines returns the arguments of the docker run lines in a page, without the terminal.
func dockerLines(g *guest.Guest, page string) (lines [][]string) {
	g.Helper()
	text := strings.ReplaceAll(g.ReadFile(page), "\\\n", " ")
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "docker run --rm -it "); ok {
			lines = append(lines, strings.Fields(rest))
		}
	}
	return lines
}

// imageTracer is a tracer of whose rows the others' must be equal.
type imageTracer struct {
	name string
	stop func() *guest.Output
}

// imageFlags are what is added to the documented arguments.
var imageFlags = []string{"--output", "ndjson", "--by", "project,container,pod,device,mount,cgroup"}

func traceHost(g *guest.Guest) imageTracer {
	g.Helper()
	return imageTracer{"the host", g.Trace(imageFlags[2:]...).Stop}
}

// traceDocker runs one of the documented lines and waits until it prints documents.
func traceDocker(g *guest.Guest, name string, line []string) imageTracer {
	g.Helper()
	dir := g.TempDir()
	var files [2]*os.File
	for i, file := range []string{"stdout", "stderr"} {
		f, err := os.Create(filepath.Join(dir, file))
		if err != nil {
			g.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	cmd := exec.Command("docker", append(append([]string{"run", "--rm", "--name", name}, line...), append(slices.Clone(imageFlags), "--interval", "1s")...)...)
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	g.Cleanup(func() {
		_, _ = g.Try("docker", "rm", "--force", name)
		_ = cmd.Process.Kill()
		if g.Failed() {
			g.Logf("docker run %s:\n%s", strings.Join(line, " "), g.ReadFile(files[1].Name()))
		}
	})
	g.Eventually(name+" prints documents", func() bool {
		select {
		case err := <-ended:
			g.Fatalf("docker run %s: %v\n%s", strings.Join(line, " "), err, g.ReadFile(files[1].Name()))
		default:
		}
		return strings.Contains(g.ReadFile(files[0].Name()), "\n")
	})
	ownCgroupNamespace(g, name, strings.TrimSpace(g.Exec("docker", "inspect", "--format", "{{.State.Pid}}", name)))
	return imageTracer{"docker run " + strings.Join(line, " "), func() *guest.Output {
		g.Helper()
		g.Exec("docker", "kill", "--signal", "INT", name)
		var err error
		g.Eventually(name+" ended", func() bool {
			select {
			case err = <-ended:
				return true
			default:
				return false
			}
		})
		if err != nil {
			g.Errorf("%s: %v", name, err)
		}
		return parsed(g, name, g.ReadFile(files[0].Name()), g.ReadFile(files[1].Name()))
	}}
}

// startPod runs a pod that traces, and shows what it says when the scenario fails.
func startPod(g *guest.Guest, c *enginetest.Containerd, namespace, uid string, template *corev1.PodTemplateSpec, args ...string) *enginetest.RunningPod {
	g.Helper()
	p := c.RunTemplate(g, deployNode, namespace, uid, template, append(slices.Clone(imageFlags), args...)...)
	g.Cleanup(func() {
		if g.Failed() {
			_, errs := p.Output(g)
			g.Logf("standard error of the pod in %s:\n%s", namespace, errs)
		}
	})
	return p
}

// stopPod ends a pod and reads what it printed.
func stopPod(g *guest.Guest, name string, p *enginetest.RunningPod) *guest.Output {
	g.Helper()
	if status := p.Stop(g); status != 0 {
		g.Errorf("%s ended with %d", name, status)
	}
	stdout, stderr := p.Output(g)
	return parsed(g, name, stdout, stderr)
}

// tracePod runs the DaemonSet's pod and waits until its readiness probe succeeds.
func tracePod(g *guest.Guest, c *enginetest.Containerd, set *appsv1.DaemonSet) imageTracer {
	g.Helper()
	p := startPod(g, c, "iotrace-bpf", "7f0e1c52-38ab-4f0e-9d6a-2b1c3d4e5f60", &set.Spec.Template)
	box := &set.Spec.Template.Spec.Containers[0]
	probe := fmt.Sprintf("http://%s:%d%s", p.Address, box.Ports[0].ContainerPort, box.ReadinessProbe.HTTPGet.Path)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	g.Eventually("the pod is ready: "+probe, func() bool {
		resp, err := client.Get(probe)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		out, _ := p.Output(g)
		return err == nil && resp.StatusCode == http.StatusOK && strings.Contains(string(text), "iotrace_") && out != ""
	})
	pid := p.PID(g, c)
	ownCgroupNamespace(g, "the pod", pid)
	limit := box.Resources.Limits.Memory().Value()
	path := strings.TrimPrefix(strings.TrimSpace(g.ReadFile("/proc/"+pid+"/cgroup")), "0::")
	if got := g.Int("/sys/fs/cgroup" + path + "/memory.max"); got != limit {
		g.Errorf("the pod may use %d bytes of memory, the DaemonSet says %d", got, limit)
	}
	status := g.ReadFile("/proc/" + pid + "/status")
	// CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF
	if bounded := field(status, "CapBnd:"); bounded != "000000c000080006" {
		g.Errorf("the pod's capabilities are %s", bounded)
	}
	return imageTracer{"the DaemonSet's pod", func() *guest.Output {
		g.Helper()
		peak := g.Int("/sys/fs/cgroup" + path + "/memory.peak")
		g.Logf("the pod used %.1f MiB at its peak, of %d", float64(peak)/(1<<20), limit>>20)
		return stopPod(g, "the pod", p)
	}}
}

// debugPod is the pod that kubectl debug asks for.
func debugPod(g *guest.Guest, share string) *corev1.Pod {
	g.Helper()
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(g.ReadFile(filepath.Join(share, debugFile))), &pod); err != nil {
		g.Fatal(err)
	}
	return &pod
}

// traceDebug runs that pod and waits until it prints documents.
func traceDebug(g *guest.Guest, c *enginetest.Containerd, pod *corev1.Pod) imageTracer {
	g.Helper()
	p := startPod(g, c, pod.Namespace, "b2f6d0c4-1e7a-4a58-8c39-5d4e3f2a1b0c", &corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}, "--interval", "1s")
	g.Eventually("the pod of kubectl debug prints documents", func() bool { out, _ := p.Output(g); return out != "" })
	return imageTracer{"the pod of kubectl debug", func() *guest.Output { g.Helper(); return stopPod(g, "the pod of kubectl debug", p) }}
}

// parsed reads the output of a tracer in a container, which must not say that the container
// hides something.
func parsed(g *guest.Guest, name, stdout, stderr string) *guest.Output {
	g.Helper()
	out, err := guest.ParseOutput([]byte(stdout))
	if err != nil {
		g.Fatalf("%s: %v", name, err)
	}
	if strings.Contains(stderr, "in this container") {
		g.Errorf("%s warns although nothing is missing:\n%s", name, stderr)
	}
	return out
}

// ownCgroupNamespace fails unless a container's cgroup namespace is its own.
func ownCgroupNamespace(g *guest.Guest, name, pid string) {
	g.Helper()
	theirs, err := os.Readlink("/proc/" + pid + "/ns/cgroup")
	if err != nil {
		g.Fatal(err)
	}
	ours, err := os.Readlink("/proc/self/ns/cgroup")
	if err != nil {
		g.Fatal(err)
	}
	if theirs == ours {
		g.Errorf("%s has the cgroup namespace of the host", name)
	}
}

// imageLoad is what all tracers see: two compose projects and a pod that write to a disk
// and to loop devices over a file on it and over one in memory, and read from virtiofs.
type imageLoad struct {
	g                    *guest.Guest
	disk, upper, private guest.Disk
	share                string // major:minor of the virtiofs
	dir                  string
	writers              []string
	before               map[string]guest.IOStats
}

// Pages of 4096 bytes that each writer writes.
const (
	imageDirect   = 211 // past the cache, to the disk
	imageBuffered = 307 // through it, to the loop device over a file on the disk
	imagePrivate  = 401 // to the file system that only one container has mounted
)

func startImageLoad(g *guest.Guest, c *enginetest.Containerd, share string) *imageLoad {
	g.Helper()
	g.HoldWriteback()
	l := &imageLoad{g: g, disk: g.NVMe(), dir: g.TempDir(), writers: []string{"shop", "bank", "mail"}, share: g.MountDevice(share)}
	file := func(path string) string {
		g.Exec("dd", "if=/dev/zero", "of="+path, "bs=1M", "count=48", "conv=fsync")
		return path
	}
	l.disk.Format("ext4")
	l.disk.MountAt("ext4", "/mnt/data", "")
	l.upper = g.Loop(file("/mnt/data/image"))
	l.upper.Format("ext4")
	l.upper.MountAt("ext4", "/mnt/upper", "")
	l.private = g.Loop(file(filepath.Join(g.TempDir(), "image")))
	l.private.Format("ext4")
	g.Exec("docker", "volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", "device=/mnt/data", "dbdata")
	script := fmt.Sprintf(`set -e
mkdir -p /private
%%s
touch /go/ready-%%[2]s
until [ -e /go/go ]; do sleep 0.1; done
dd if=/dev/zero of=/data/%%[2]s bs=4096 count=%d oflag=direct
dd if=/dev/zero of=/upper/%%[2]s bs=4096 count=%d
dd if=/dev/zero of=/private/%%[2]s bs=4096 count=%d conv=fsync
cat /share/SHA256SUMS /share/*.deb >/dev/null
touch /go/done-%%[2]s
exec sleep 100000
`, imageDirect, imageBuffered, imagePrivate)
	for _, name := range l.writers[:2] {
		args, mount := []string{"run", "--detach", "--network", "none", "--name", name + "-web-1",
			"--label", "com.docker.compose.project=" + name, "--label", "com.docker.compose.service=web",
			"--volume", "dbdata:/data", "--volume", "/mnt/upper:/upper", "--volume", l.dir + ":/go", "--volume", share + ":/share:ro"}, ":"
		if name == "shop" {
			args, mount = append(args, "--privileged"), "mount -t ext4 "+l.private.Path()+" /private"
		}
		g.Exec("docker", append(args, enginetest.Image, "sh", "-c", fmt.Sprintf(script, mount, name))...)
		g.Cleanup(func() { _, _ = g.Try("docker", "rm", "--force", name+"-web-1") })
	}
	_, sandbox := c.RunPod(g, enginetest.Pod{
		Namespace: "mail", Name: "mail-0", UID: "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", Labels: map[string]string{"app.kubernetes.io/name": "imap"},
		Container: "web", Command: []string{"sh", "-c", fmt.Sprintf(script, ":", "mail")},
		Mounts: map[string]string{"/data": "/mnt/data", "/upper": "/mnt/upper", "/go": l.dir, "/share": share},
	})
	g.Cleanup(func() { c.RemovePod(g, sandbox) }) // while it runs, it has the file systems mounted
	l.eventually("ready")
	g.Sync()
	l.before = l.stats()
	return l
}

func (l *imageLoad) disks() []guest.Disk { return []guest.Disk{l.disk, l.upper, l.private} }

func (l *imageLoad) stats() map[string]guest.IOStats {
	all := map[string]guest.IOStats{}
	for _, d := range l.disks() {
		all[d.Name] = d.Stats()
	}
	return all
}

func (l *imageLoad) eventually(what string) {
	l.g.Helper()
	for _, name := range l.writers {
		l.g.Eventually(name+" is "+what, func() bool { _, err := os.Stat(filepath.Join(l.dir, what+"-"+name)); return err == nil })
	}
}

// run lets the load begin and ends when nothing of it is left to be written. A frozen file
// system writes nothing more: the ends of the tracers are a while apart.
func (l *imageLoad) run() {
	g := l.g
	g.Helper()
	g.WriteFile(filepath.Join(l.dir, "go"), "")
	l.eventually("done")
	g.Sync()
	for _, dir := range []string{"/mnt/upper", "/mnt/data"} {
		g.Exec("fsfreeze", "--freeze", dir)
		g.Cleanup(func() { g.Exec("fsfreeze", "--unfreeze", dir) })
	}
}

// rows adds up what a tracer says of the load: all numbers but latencies, which each takes
// from its own clock, by all that names a row.
func (l *imageLoad) rows(r *guest.Output) map[string]int64 {
	l.g.Helper()
	all := map[string]int64{}
	devices := []string{l.disk.ID(), l.upper.ID(), l.private.ID(), l.share}
	for _, d := range r.Where() {
		if !slices.Contains(devices, d.String("iotrace.device.id")) {
			continue
		}
		var identity []string
		for _, field := range slices.Sorted(maps.Keys(d)) {
			if !volatile(field) && !counted(field) {
				identity = append(identity, fmt.Sprintf("%s=%v", field, d[field]))
			}
		}
		for field := range d {
			if counted(field) && d.Int(field) != 0 {
				all[strings.Join(identity, " ")+": "+field] += d.Int(field)
			}
		}
	}
	return all
}

// volatile tells a field that is another one in each interval.
func volatile(field string) bool {
	return field == "@timestamp" || field == "event.start" || field == "event.end" || field == "event.duration" || strings.Contains(field, ".latency.")
}

// counted tells a number that is added up.
func counted(field string) bool {
	for _, part := range []string{"read", "write", "metadata", "flush", "discard", "basis"} {
		if strings.HasPrefix(field, "iotrace."+part+".") && !volatile(field) {
			return true
		}
	}
	return false
}

// complete compares what the host's tracer says with the kernel's counters and with what
// was written.
func (l *imageLoad) complete(r *guest.Output) {
	g := l.g
	g.Helper()
	for _, d := range l.disks() {
		kernel := d.Stats().Sub(l.before[d.Name])
		r.Equal("written to "+d.Name, r.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID()), kernel.WriteBytes)
		r.Equal("read from "+d.Name, r.Sum("iotrace.read.bytes", "iotrace.source", "block", "iotrace.device.id", d.ID()), kernel.ReadBytes)
	}
	for _, name := range l.writers {
		project := []string{"iotrace.source", "block", "iotrace.project.name", name, "iotrace.device.id"}
		data := func(d guest.Disk) int64 {
			at := append(slices.Clone(project), d.ID())
			return r.Sum("iotrace.write.bytes", at...) - r.Sum("iotrace.write.meta_bytes", at...)
		}
		r.Equal(name+" on "+l.upper.Name, data(l.upper), 4096*imageBuffered)
		if name == "shop" {
			r.Equal(name+" on "+l.private.Name, data(l.private), 4096*imagePrivate)
		}
	}
	shown := fmt.Sprint(slices.Sorted(maps.Keys(l.rows(r))))
	for _, part := range []string{"shop-web-1", "bank-web-1", "mail-0", "dbdata", "/private", "virtiofs", l.upper.Name, l.private.Name} {
		if !strings.Contains(shown, part) {
			g.Errorf("no row names %q", part)
		}
	}
}

// differences shows what only one of two tracers says.
func differences(got, want map[string]int64) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got[k] != want[k] {
			fmt.Fprintf(&b, "%d, the host %d: %s\n", got[k], want[k], k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			fmt.Fprintf(&b, "%d, the host nothing: %s\n", got[k], k)
		}
	}
	return b.String()
}
