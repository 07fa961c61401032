package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NFSMount is a mount of the guest's own NFS server.
type NFSMount struct {
	g      *Guest
	Target string
}

// NFSServer starts the server alone.
func (g *Guest) NFSServer() { g.Helper(); g.startServer() }

// startServer starts knfsd with an export on tmpfs, which does no block I/O.
func (g *Guest) startServer() {
	g.Helper()
	g.Modprobe("nfsd", "nfs", "nfsv3", "nfsv4")
	if mounted("/proc/fs/nfsd") && g.Int("/proc/fs/nfsd/threads") > 0 {
		return // by an earlier scenario
	}
	for _, d := range []string{"/var/lib/nfs/v4recovery", "/var/lib/nfs/sm", "/var/lib/nfs/sm.bak", "/var/lib/nfs/rpc_pipefs", "/etc/exports.d", "/run/rpcbind", "/srv"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			g.Fatal(err)
		}
	}
	for _, m := range []mountPoint{{"nfsd", "/proc/fs/nfsd", "nfsd", ""}, {"rpc", "/var/lib/nfs/rpc_pipefs", "rpc_pipefs", ""}, {"srv", "/srv", "tmpfs", "size=80%"}} {
		if mounted(m.target) {
			continue
		}
		if err := mountAll([]mountPoint{m}); err != nil {
			g.Fatal(err)
		}
	}
	for _, f := range []string{"/var/lib/nfs/etab", "/var/lib/nfs/rmtab", "/var/lib/nfs/state"} {
		if !exists(f) {
			g.WriteFile(f, "")
		}
	}
	g.WriteFile("/etc/exports", "/srv *(rw,no_root_squash,insecure,fsid=0,no_subtree_check,async)\n")
	g.Daemon("rpcbind", "-w")
	g.Exec("exportfs", "-r")
	g.Daemon("rpc.mountd")
	g.NFSServerUp()
}

// Daemon starts a program that puts itself into the background, and waits for that.
func (g *Guest) Daemon(program string, args ...string) {
	g.Helper()
	// No pipe: the daemon would hold it open, and waiting would never end.
	log, err := os.CreateTemp("", filepath.Base(program)+"-")
	if err != nil {
		g.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(log.Name())
		g.Fatalf("%s: %v\n%s", program, err, b)
	}
}

// NFSServerDown stops the server's threads, as a crashed or rebooting server
// looks to its clients; NFSServerUp starts them. Open no file in between.
func (g *Guest) NFSServerDown() { g.Helper(); g.Daemon("rpc.nfsd", "0") }

// NFSServerUp starts the server's threads. Clients of version 4 would wait for the grace
// period; no client has locks to reclaim, so NFSServerUp ends it as soon as the server can.
// The lease has its usual length: a client keeps its state when a busy machine stops it for
// a while.
func (g *Guest) NFSServerUp() {
	g.Helper()
	g.Daemon("rpc.nfsd", "-G", "10", "-L", "90", "8")
	g.Eventually("end of the server's grace period", func() bool {
		return os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0o644) == nil ||
			strings.TrimSpace(g.ReadFile("/proc/fs/nfsd/v4_end_grace")) == "Y"
	})
}

// NFS mounts the guest's own server with this version ("3", "4.2") until the
// scenario's end. options are added to mount's -o. Each mount starts with fresh counters.
func (g *Guest) NFS(version string, options ...string) *NFSMount {
	g.Helper()
	g.loops++
	return g.NFSAt(version, fmt.Sprintf("/mnt/nfs%s-%d-%d", version, g.serial, g.loops), options...)
}

// NFSAt is NFS on a directory of the caller's choice.
func (g *Guest) NFSAt(version, target string, options ...string) *NFSMount {
	g.Helper()
	// nosharecache: a mount of its own, not one more view of an older one.
	return g.NFSView("/", version, target, append([]string{"nosharecache"}, options...)...)
}

// NFSMountNow mounts the guest's server, which must run already, by the system call
// alone: the kernel loads the client's modules by itself, and nothing delays the
// first I/O.
func (g *Guest) NFSMountNow(version, target string) *NFSMount {
	g.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		g.Fatal(err)
	}
	fstype, source, options := "nfs4", "127.0.0.1:/", "vers="+version+",addr=127.0.0.1,clientaddr=127.0.0.1,nosharecache"
	if strings.HasPrefix(version, "3") {
		fstype, source, options = "nfs", "127.0.0.1:/srv", "vers=3,addr=127.0.0.1,mountaddr=127.0.0.1,proto=tcp,mountproto=tcp,nolock,nosharecache"
	}
	if err := unix.Mount(source, target, fstype, 0, options); err != nil {
		g.Fatalf("mount %s %s: %v", fstype, source, err)
	}
	g.Cleanup(func() { g.Unmount(target) })
	return &NFSMount{g, target}
}

// NFSView mounts a directory of the server, "/" for all of it. Mounts of the same
// server share a superblock unless the options say otherwise.
func (g *Guest) NFSView(dir, version, target string, options ...string) *NFSMount {
	g.Helper()
	g.startServer()
	m := &NFSMount{g, target}
	o := append([]string{"vers=" + version, "timeo=50", "retrans=3"}, options...)
	source := "127.0.0.1:" + dir
	if strings.HasPrefix(version, "3") {
		o, source = append(o, "nolock", "proto=tcp", "mountproto=tcp"), "127.0.0.1:"+filepath.Join("/srv", dir)
	}
	g.Mount("nfs", source, m.Target, strings.Join(o, ","))
	return m
}

// File is the path of a file on the mount.
func (m *NFSMount) File(name string) string { return filepath.Join(m.Target, name) }

// ID is the mount's anonymous device, major:minor.
func (m *NFSMount) ID() string { m.g.Helper(); return m.g.MountDevice(m.Target) }

// DropCaches writes what is dirty and forgets every clean page, so that reads go to the server.
func (m *NFSMount) DropCaches() { m.g.Helper(); m.g.DropCaches() }

// NFSStats are counters of /proc/self/mountstats.
type NFSStats struct {
	// The "bytes:" line.
	NormalRead, NormalWrite, DirectRead, DirectWrite, ServerRead, ServerWrite int64
	// Operations by name: READ, WRITE, COMMIT, GETATTR, OPEN ...
	Ops map[string]NFSOp
}

// NFSOp is one line of the per-op statistics.
type NFSOp struct {
	Ops, Transmissions, Timeouts, BytesSent, BytesReceived, QueueMS, RTTMS, TotalMS int64
}

// Sub is what was counted since.
func (s NFSStats) Sub(old NFSStats) NFSStats {
	d := NFSStats{s.NormalRead - old.NormalRead, s.NormalWrite - old.NormalWrite, s.DirectRead - old.DirectRead, s.DirectWrite - old.DirectWrite,
		s.ServerRead - old.ServerRead, s.ServerWrite - old.ServerWrite, map[string]NFSOp{}}
	for name, a := range s.Ops {
		b := old.Ops[name]
		d.Ops[name] = NFSOp{a.Ops - b.Ops, a.Transmissions - b.Transmissions, a.Timeouts - b.Timeouts, a.BytesSent - b.BytesSent,
			a.BytesReceived - b.BytesReceived, a.QueueMS - b.QueueMS, a.RTTMS - b.RTTMS, a.TotalMS - b.TotalMS}
	}
	return d
}

// Stats reads the mount's counters.
func (m *NFSMount) Stats() NFSStats {
	m.g.Helper()
	s, err := parseMountStats(m.g.ReadFile("/proc/self/mountstats"), m.Target)
	if err != nil {
		m.g.Fatal(err)
	}
	return s
}

func parseMountStats(text, target string) (NFSStats, error) {
	s := NFSStats{Ops: map[string]NFSOp{}}
	inside, perOp, seen := false, false, false
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) > 4 && f[0] == "device" && f[2] == "mounted":
			inside, perOp = f[4] == target, false
			seen = seen || inside
		case !inside || len(f) == 0:
		case f[0] == "bytes:":
			n, err := numbers(f[1:], 6)
			if err != nil {
				return s, err
			}
			s.NormalRead, s.NormalWrite, s.DirectRead, s.DirectWrite, s.ServerRead, s.ServerWrite = n[0], n[1], n[2], n[3], n[4], n[5]
		case f[0] == "per-op":
			perOp = true
		case perOp && strings.HasSuffix(f[0], ":"):
			n, err := numbers(f[1:], 8)
			if err != nil {
				return s, err
			}
			s.Ops[strings.TrimSuffix(f[0], ":")] = NFSOp{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]}
		}
	}
	if !seen {
		return s, fmt.Errorf("mountstats has no mount at %q", target)
	}
	return s, nil
}

func numbers(fields []string, want int) ([]int64, error) {
	if len(fields) < want {
		return nil, fmt.Errorf("mountstats: %d numbers, want %d: %q", len(fields), want, fields)
	}
	n := make([]int64, want)
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil {
			return nil, fmt.Errorf("mountstats: %w", err)
		}
	}
	return n, nil
}
