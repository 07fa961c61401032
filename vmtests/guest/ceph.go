package guest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CephMount is a mount of the guest's own Ceph cluster.
type CephMount struct {
	g      *Guest
	Target string
}

// CephMonitor is the address of the cluster's only monitor.
const CephMonitor = "127.0.0.1:6789"

const (
	cephID  = "6d0a6f5e-0000-4000-8000-000000000002"
	cephOSD = "6d0a6f5e-0000-4000-8000-0000000000aa"
)

// cephConf is for one monitor, one OSD that keeps all in memory, and one metadata server.
// Waits are long, because an emulated guest may stop for seconds.
const cephConf = `[global]
fsid = ` + cephID + `
mon host = v1:` + CephMonitor + `
mon initial members = a
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2
mon cluster log to file = false
mon osd down out interval = 0
mon lease = 60
mon election timeout = 60
paxos propose interval = 0.1
paxos min wait = 0.05
osd objectstore = memstore
memstore device bytes = 1073741824
osd heartbeat grace = 600
osd class update on start = false
osd crush update on start = false
mds beacon grace = 600
mds session timeout = 600
log to file = true
log file = /var/log/ceph/$name.log
debug ms = 0
ms bind ipv6 = false
ms bind msgr2 = false
admin socket = /run/ceph/$cluster-$name.asok
`

// cephPatience is for steps of the cluster's start, each of which takes most of a minute
// in an emulated guest.
const cephPatience = 10 * time.Minute

// CephServer starts a cluster with a file system. It does not load the client's module.
func (g *Guest) CephServer() {
	g.Helper()
	if exists("/run/ceph/up") {
		return // started by an earlier scenario
	}
	begin := time.Now()
	if err := mountAll([]mountPoint{{"ceph", "/var/lib/ceph", "tmpfs", "size=60%"}}); err != nil {
		g.Fatal(err)
	}
	for _, d := range []string{"/etc/ceph", "/run/ceph", "/var/log/ceph", "/var/lib/ceph/mon/ceph-a", "/var/lib/ceph/osd/ceph-0", "/var/lib/ceph/mds/ceph-a", "/var/lib/ceph/crash", "/var/lib/ceph/tmp"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			g.Fatal(err)
		}
	}
	g.WriteFile("/etc/ceph/ceph.conf", cephConf)
	asRoot := func(args ...string) []string { return append(args, "--setuser", "root", "--setgroup", "root") }
	g.Exec("monmaptool", "--create", "--clobber", "--fsid", cephID, "--addv", "a", "[v1:"+CephMonitor+"]", "/tmp/monmap")
	g.Daemon("ceph-mon", asRoot("--mkfs", "-i", "a", "--monmap", "/tmp/monmap")...)
	g.Daemon("ceph-mon", asRoot("-i", "a")...)
	g.Daemon("ceph-osd", asRoot("--mkfs", "-i", "0", "--osd-uuid", cephOSD, "--no-mon-config")...)
	// One process for all commands: it is Python, and takes 20 s to start.
	g.cephCommands("osd new "+cephOSD, "osd crush add osd.0 1 root=default host=guest", "osd pool create meta 4", "osd pool create data 4", "fs new cephfs meta data")
	g.Daemon("ceph-osd", asRoot("-i", "0")...)
	g.Daemon("ceph-mds", asRoot("-i", "a")...)
	if err := poll(cephPatience, func() bool {
		var s struct{ State string }
		return g.cephAsk("mds.a", "status", &s) == nil && s.State == "up:active"
	}); err != nil {
		logs, _ := exec.Command("sh", "-c", "tail -n 20 /var/log/ceph/*.log").CombinedOutput()
		g.Fatalf("the metadata server did not start: %v\n%s", err, logs)
	}
	g.WriteFile("/run/ceph/up", "")
	g.Logf("the cluster was up after %s", time.Since(begin).Round(time.Second))
}

// CephOSD sends a signal to the OSD: STOP, and it answers no request until CONT.
func (g *Guest) CephOSD(signal string) {
	g.Helper()
	g.Exec("pkill", "-"+signal, "-x", "ceph-osd")
	if signal == "STOP" {
		g.Cleanup(func() { g.Exec("pkill", "-CONT", "-x", "ceph-osd") })
	}
}

func (g *Guest) cephCommands(lines ...string) {
	g.Helper()
	cmd := exec.Command("ceph")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "Error") {
		g.Fatalf("ceph: %v\n%s", err, out)
	}
}

// cephAsk sends a command to the admin socket of a daemon.
func (g *Guest) cephAsk(daemon, command string, answer any) error {
	conn, err := net.Dial("unix", "/run/ceph/ceph-"+daemon+".asok")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	request, err := json.Marshal(map[string]string{"prefix": command})
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(request, 0)); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	text := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, text); err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

// Ceph mounts the file system until the scenario's end.
func (g *Guest) Ceph(options ...string) *CephMount {
	g.Helper()
	g.CephServer()
	g.loops++
	m := &CephMount{g, fmt.Sprintf("/mnt/ceph-%d-%d", g.serial, g.loops)}
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		g.Fatal(err)
	}
	o := strings.Join(append([]string{"name=admin", "mount_timeout=300"}, options...), ",")
	g.Eventually("mounting the file system", func() bool {
		_, err := g.Try("mount", "-i", "-t", "ceph", "-o", o, CephMonitor+":/", m.Target)
		return err == nil
	})
	g.Cleanup(func() { g.Unmount(m.Target) })
	return m
}

// File is the path of a file on the mount.
func (m *CephMount) File(name string) string { return filepath.Join(m.Target, name) }

// ID is the mount's anonymous device, major:minor.
func (m *CephMount) ID() string { m.g.Helper(); return m.g.MountDevice(m.Target) }

// CephStats are what the client counts of writes, and what the OSD sent to all of its
// clients: the metadata server, once it is up, only writes. Clients count the bytes of
// writes since 5.14; Counted says whether this one does.
type CephStats struct {
	BytesWritten, Writes, Reads, BytesSent int64
	Counted                                bool
}

// Sub is what was counted since.
func (s CephStats) Sub(old CephStats) CephStats {
	return CephStats{s.BytesWritten - old.BytesWritten, s.Writes - old.Writes, s.Reads - old.Reads, s.BytesSent - old.BytesSent, s.Counted}
}

// CephStats reads the counters of all mounts together and of the OSD. Those of a mount are
// gone once it is unmounted.
func (g *Guest) CephStats() CephStats {
	g.Helper()
	var s CephStats
	files, err := filepath.Glob("/sys/kernel/debug/ceph/*/metrics/size")
	s.Counted = g.AtLeast(5, 14)
	if err != nil || (len(files) > 0) != s.Counted {
		g.Fatalf("the client's counters are %q: %v", files, err)
	}
	for _, f := range files {
		sizes := g.ReadFile(f)
		n, bytes, err := cephSizes(sizes, "write")
		if err != nil {
			g.Fatalf("%s: %v", f, err)
		}
		s.Writes += n
		s.BytesWritten += bytes
		if n, _, err = cephSizes(sizes, "read"); err != nil {
			g.Fatalf("%s: %v", f, err)
		}
		s.Reads += n
	}
	var perf struct {
		OSD struct {
			Out int64 `json:"op_r_out_bytes"`
		}
	}
	if err := g.cephAsk("osd.0", "perf dump", &perf); err != nil {
		g.Fatalf("asking the OSD: %v", err)
	}
	s.BytesSent = perf.OSD.Out
	return s
}

// cephSizes returns the number and the bytes of reads or writes in the client's table of sizes.
func cephSizes(text, kind string) (n, bytes int64, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != kind {
			continue
		}
		if n, err = strconv.ParseInt(f[1], 10, 64); err != nil {
			return 0, 0, err
		}
		bytes, err = strconv.ParseInt(f[len(f)-1], 10, 64)
		return n, bytes, err
	}
	return 0, 0, fmt.Errorf("no line of %ss: %q", kind, text)
}
