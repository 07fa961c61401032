//go:build integration

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// holdings is what a running iotrace-bpf holds.
type holdings struct {
	files, links, maps, programs, goroutines int

	mapBytes uint64 // of the kernel, for maps (memlock in /proc/PID/fdinfo)
	heap     uint64 // in use, of Go
	anon     uint64 // RssAnon: what it has of the machine's memory, files left out
}

func (h holdings) String() string {
	return fmt.Sprintf("%d files, %d links, %d maps (%d KiB), %d programs, %d goroutines, heap %.1f MiB, anonymous memory %.1f MiB",
		h.files, h.links, h.maps, h.mapBytes>>10, h.programs, h.goroutines, inMiB(h.heap), inMiB(h.anon))
}

func inMiB(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// fdInfo matches the lines by which the kernel describes a descriptor of BPF
// (bpf_map_show_fdinfo, bpf_prog_show_fdinfo, bpf_link_show_fdinfo).
var fdInfo = regexp.MustCompile(`(?m)^(link_id|map_id|prog_id|memlock):\s*(\d+)$`)

// soaked is the program under test.
type soaked struct {
	*traced
	port string
}

// look reads what the program holds now.
func (s soaked) look(t *testing.T) (h holdings) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	fds, err := os.ReadDir(proc + "fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	h.files = len(fds)
	links, maps, programs := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, fd := range fds {
		text, err := os.ReadFile(filepath.Join(proc, "fdinfo", fd.Name()))
		if err != nil {
			h.files-- // closed meanwhile
			continue
		}
		found := map[string]string{}
		for _, m := range fdInfo.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = m[2]
		}
		switch {
		case found["link_id"] != "":
			links[found["link_id"]] = true
		case found["map_id"] != "" && !maps[found["map_id"]]:
			maps[found["map_id"]] = true
			h.mapBytes += decimal(t, found["memlock"])
		case found["prog_id"] != "":
			programs[found["prog_id"]] = true
		}
	}
	h.links, h.maps, h.programs = len(links), len(maps), len(programs)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	h.anon = decimal(t, field(t, string(status), `(?m)^RssAnon:\s*(\d+) kB$`)) << 10
	metrics := scrapeOnce(t, s.port)
	h.goroutines = int(decimal(t, field(t, metrics, `(?m)^go_goroutines (\d+)$`)))
	heap, err := strconv.ParseFloat(field(t, metrics, `(?m)^go_memstats_heap_alloc_bytes (\S+)$`), 64)
	if err != nil {
		t.Fatal(err)
	}
	h.heap = uint64(heap)
	return h
}

// least is what the program holds when it holds least within a window of looks: what comes
// and goes with an interval, a scrape or Go's garbage is left out.
func (s soaked) least(t *testing.T) holdings {
	t.Helper()
	least := s.look(t)
	for range 15 {
		time.Sleep(200 * time.Millisecond) // the interval of polls
		h := s.look(t)
		least.files, least.goroutines = min(least.files, h.files), min(least.goroutines, h.goroutines)
		least.links, least.maps, least.programs = min(least.links, h.links), min(least.maps, h.maps), min(least.programs, h.programs)
		least.mapBytes, least.heap, least.anon = min(least.mapBytes, h.mapBytes), min(least.heap, h.heap), min(least.anon, h.anon)
	}
	return least
}

func field(t *testing.T, text, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in\n%.2000s", pattern, text)
	}
	return m[1]
}

func decimal(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// scrapeOnce is scrape of a program that must answer, on a connection that is not kept.
func scrapeOnce(t *testing.T, port string) (metrics string) {
	t.Helper()
	enginetest.Poll(t, 30*time.Second, "/metrics answers", func() bool { metrics = scrape(port); return metrics != "" })
	return metrics
}

// TestChurn runs the program through all that comes and goes on a host: containers of two
// projects, cgroups, loop devices, mounts of five kinds, namespaces with overlay devices, and
// restarts of the engine. Afterwards it holds what it held before. One round more than the
// first two in make integration, as many as fit into half an hour in make soak (SOAK=30m).
func TestChurn(t *testing.T) {
	length := time.Duration(0)
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	engine := enginetest.Start(t)
	port := freePort(t)
	// In a swarm overlay devices are watched as well.
	engine.Docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:"+freePort(t))
	dir := t.TempDir()
	s := soaked{port: port, traced: trace(t, "--docker-host", "unix://"+engine.Socket, "--only-listed-sockets", "--interval", "500ms", "--vxlan",
		"--by", "project,service,device", "--prometheus", "127.0.0.1:"+port, "--record", filepath.Join(dir, "recording"), "--record-size", "8MiB", "--prometheus-idle", "1m")}
	s.keepLast()
	c := churn{engine: engine, dir: filepath.Join(dir, "mnt")}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(c.dir, unix.MNT_DETACH) }) // after a failure
	// What is allocated or opened once is so in the first rounds.
	warm := 2
	if length > 0 {
		warm = 20
	}
	for range warm {
		c.round(t)
	}
	enginetest.Poll(t, time.Minute, "overlay devices are watched", func() bool {
		docs := s.seen()
		return len(docs) > 0 && lastStatus(t, docs).Iotrace.Sources["vxlan"].Attached
	})
	before := s.least(t)
	t.Logf("before: %v", before)
	begin, logged := time.Now(), time.Now()
	for {
		c.round(t)
		if time.Since(begin) >= length {
			break
		}
		if time.Since(logged) > 5*time.Minute {
			logged = time.Now()
			t.Logf("after %s and %d rounds: %v", time.Since(begin).Round(time.Second), c.rounds, s.least(t))
		}
	}
	// What the program remembers of ended containers expires after five minutes.
	var after holdings
	const few = 2 // connections that are closed a moment later
	same := func() bool {
		return after.files <= before.files+few && after.goroutines <= before.goroutines+few &&
			after.links <= before.links && after.maps <= before.maps && after.programs <= before.programs && after.mapBytes <= before.mapBytes+before.mapBytes/50 &&
			after.heap <= before.heap+4<<20 && after.anon <= before.anon+8<<20
	}
	for end := time.Now().Add(7 * time.Minute); ; {
		if after = s.least(t); same() || time.Now().After(end) {
			break
		}
	}
	t.Logf("after %d rounds in %s: %v", c.rounds, time.Since(begin).Round(time.Second), after)
	if !same() {
		t.Errorf("it holds more than before: %v\nbefore: %v", after, before)
	}
	if after.links < before.links || after.programs < before.programs {
		t.Errorf("hooks are gone: %v\nbefore: %v", after, before)
	}
	docs := s.stop(t)
	for name, n := range lastStatus(t, docs).Iotrace.Lost {
		if n != 0 {
			t.Errorf("lost %s: %d", name, n)
		}
	}
}

// keepLast drops all documents but the last status: those of half an hour fill memory.
func (s soaked) keepLast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = func(d *tracedDoc) bool { return d.Event.Dataset == "iotrace.status" }
}

func lastStatus(t *testing.T, docs []tracedDoc) *tracedDoc {
	t.Helper()
	for _, d := range slices.Backward(docs) {
		if d.Event.Dataset == "iotrace.status" {
			return &d
		}
	}
	t.Fatal("no status document")
	return nil
}

// churn lets things come and go.
type churn struct {
	engine *enginetest.Engine
	dir    string // where its disk is mounted
	rounds int
}

// restartEvery is the number of rounds between restarts of the engine: it takes longer than
// all the rest.
const restartEvery = 10

func (c *churn) round(t *testing.T) {
	t.Helper()
	// A disk with a journal, and containers that write to it. It is a new one each time: where
	// another mount namespace still has the old one mounted, two would write to one file.
	image := fmt.Sprintf("%s.%d", c.dir, c.rounds)
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20)); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mkfs.ext4", "-q", image)
	dev := mustRun(t, "losetup", "--find", "--show", image)
	mustRun(t, "mount", dev, c.dir)
	for _, p := range []string{"shop", "blog"} {
		args := append([]string{"run", "--rm", "--network", "none", "--volume", c.dir + ":/data"}, project(p, fmt.Sprint("round", c.rounds))...)
		c.engine.Docker(t, append(args, enginetest.Image, "dd", "if=/dev/zero", "of=/data/"+p, "bs=64k", "count=20", "conv=fsync")...)
	}
	c.cgroups(t)
	c.mounts(t)
	mustRun(t, "umount", c.dir)
	mustRun(t, "losetup", "--detach", dev)
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	c.overlay(t)
	if c.rounds%restartEvery == 0 {
		c.engine.Halt(t)
		c.engine.Boot(t)
	}
	c.rounds++
}

// cgroups makes and removes cgroups, and a process in one of them writes.
func (c *churn) cgroups(t *testing.T) {
	t.Helper()
	root := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	parent, err := os.MkdirTemp(root, "iotrace-soak-")
	if err != nil {
		t.Fatal(err)
	}
	const n = 50
	for i := range n {
		if err := os.Mkdir(filepath.Join(parent, strconv.Itoa(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "sh", "-c", `echo $$ > "$0/7/cgroup.procs" && exec dd if=/dev/zero of="$1/own" bs=4k count=100 conv=fsync status=none`, parent, c.dir)
	for i := range n {
		enginetest.Poll(t, 20*time.Second, "the cgroup is empty", func() bool { return os.Remove(filepath.Join(parent, strconv.Itoa(i))) == nil })
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
}

// mounts mounts tmpfs, a bind mount, an overlay and a FUSE file system, and writes to each.
func (c *churn) mounts(t *testing.T) {
	t.Helper()
	base, err := os.MkdirTemp("", "soak")
	if err != nil {
		t.Fatal(err)
	}
	dir := func(name string) string {
		path := filepath.Join(base, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tmp := dir("tmp")
	mustRun(t, "mount", "-t", "tmpfs", "none", tmp)
	upper, work := dir("tmp/upper"), dir("tmp/work")
	mustRun(t, "mount", "-t", "overlay", "-o", "lowerdir="+dir("lower")+",upperdir="+upper+",workdir="+work, "none", dir("merged"))
	mustRun(t, "mount", "--bind", c.dir, dir("bound"))
	f, err := guest.ServeFUSE(dir("fuse"), guest.FUSEOptions{Backing: dir("backing")})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tmp", "merged", "bound", "fuse"} {
		if err := os.WriteFile(filepath.Join(base, name, "file"), make([]byte, 100<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	enginetest.Poll(t, 30*time.Second, "the file system is unmounted", func() bool { return f.Unmount() == nil })
	mustRun(t, "umount", dir("bound"), dir("merged"), tmp)
	if err := os.RemoveAll(base); err != nil {
		t.Fatal(err)
	}
}

// overlay moves an overlay device through a namespace, which then dies with it.
func (c *churn) overlay(t *testing.T) {
	t.Helper()
	mustRun(t, "ip", "netns", "add", "iotrace-soak")
	vni := strconv.Itoa(0x500000 + c.rounds%100)
	mustRun(t, "ip", "link", "add", "iotsoak", "type", "vxlan", "id", vni, "dstport", "4799")
	mustRun(t, "ip", "link", "set", "iotsoak", "netns", "iotrace-soak")
	mustRun(t, "ip", "-n", "iotrace-soak", "link", "set", "iotsoak", "up")
	mustRun(t, "ip", "netns", "del", "iotrace-soak")
}
