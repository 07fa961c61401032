package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// SMBMount is a mount of the guest's own samba.
type SMBMount struct {
	g      *Guest
	Target string
}

// SMBDir is the directory that samba shares as "share". It is on tmpfs, which does no
// block I/O. SMBDisk is the one that it shares as "disk", where a scenario mounts a disk.
const (
	SMBDir  = "/srv-smb"
	SMBDisk = "/srv-smb-disk"
)

const smbConf = `[global]
server role = standalone server
map to guest = bad user
guest account = root
disable netbios = yes
smb ports = 445
load printers = no
disable spoolss = yes
log level = 0
[share]
path = ` + SMBDir + `
read only = no
guest ok = yes
force user = root
[disk]
path = ` + SMBDisk + `
read only = no
guest ok = yes
force user = root
`

// SMBServer starts samba. It does not load the client's module.
func (g *Guest) SMBServer() {
	g.Helper()
	if g.smbListens() {
		return // started by an earlier scenario
	}
	for _, d := range []string{SMBDir, "/var/lib/samba/private", "/run/samba", "/var/log/samba", "/var/cache/samba", "/etc/samba"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			g.Fatal(err)
		}
	}
	if !mounted(SMBDir) {
		if err := mountAll([]mountPoint{{"smb", SMBDir, "tmpfs", "size=80%"}}); err != nil {
			g.Fatal(err)
		}
	}
	g.WriteFile("/etc/samba/smb.conf", smbConf)
	g.Daemon("smbd", "-D", "-s", "/etc/samba/smb.conf")
	g.Eventually("samba listening", g.smbListens)
}

// SMBServerDown ends samba as kill -9 does: connections break. Open no file before
// SMBServerUp.
func (g *Guest) SMBServerDown() {
	g.Helper()
	g.Exec("pkill", "-KILL", "-x", "smbd")
	g.Eventually("samba ended", func() bool { return !g.smbListens() })
}

// SMBServerUp starts samba again.
func (g *Guest) SMBServerUp() {
	g.Helper()
	if err := os.RemoveAll("/run/samba/smbd.pid"); err != nil {
		g.Fatal(err)
	}
	g.SMBServer()
}

// smbListens tells whether something listens on port 445 (01BD); state 0A is LISTEN.
func (g *Guest) smbListens() bool {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, _ := os.ReadFile(table)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], ":01BD") && f[3] == "0A" {
				return true
			}
		}
	}
	return false
}

// SMB mounts the share until the scenario's end. cache is strict, none or loose. options
// are added to mount's -o. Each mount has a connection and counters of its own.
func (g *Guest) SMB(cache string, options ...string) *SMBMount {
	g.Helper()
	return g.SMBShare("//127.0.0.1/share", append([]string{"cache=" + cache}, options...)...)
}

// SMBShare is SMB of any share, at any of this guest's addresses. The client's address is
// the same one.
func (g *Guest) SMBShare(share string, options ...string) *SMBMount {
	g.Helper()
	g.SMBServer()
	g.loops++
	m := &SMBMount{g, fmt.Sprintf("/mnt/smb-%d-%d", g.serial, g.loops)}
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		g.Fatal(err)
	}
	o := strings.Join(append([]string{"guest", "vers=3.1.1", "nosharesock"}, options...), ",")
	// On a machine that is stopped for seconds either side may give up on the other.
	g.Eventually("mounting the share", func() bool {
		_, err := g.Try("mount", "-t", "cifs", "-o", o, share, m.Target)
		return err == nil
	})
	g.Cleanup(func() { g.Unmount(m.Target) })
	return m
}

// File is the path of a file on the mount.
func (m *SMBMount) File(name string) string { return filepath.Join(m.Target, name) }

// ID is the mount's anonymous device, major:minor.
func (m *SMBMount) ID() string { m.g.Helper(); return m.g.MountDevice(m.Target) }

// SMBStats are the client's own counters of a share, all mounts of it together.
type SMBStats struct{ BytesRead, BytesWritten, Reads, Writes int64 }

// Sub is what was counted since.
func (s SMBStats) Sub(old SMBStats) SMBStats {
	return SMBStats{s.BytesRead - old.BytesRead, s.BytesWritten - old.BytesWritten, s.Reads - old.Reads, s.Writes - old.Writes}
}

var (
	smbBytes = regexp.MustCompile(`Bytes read: (\d+)\s+Bytes written: (\d+)`)
	smbOps   = regexp.MustCompile(`(?m)^\s*(Reads|Writes): (\d+) (?:sent|total)`)
)

// SMBStats reads the client's counters. Those of a mount are gone once it is unmounted.
func (g *Guest) SMBStats() SMBStats {
	g.Helper()
	s, err := parseSMBStats(g.ReadFile("/proc/fs/cifs/Stats"))
	if err != nil {
		g.Fatal(err)
	}
	return s
}

func parseSMBStats(text string) (SMBStats, error) {
	var s SMBStats
	number := func(digits string) int64 { n, _ := strconv.ParseInt(digits, 10, 64); return n }
	bytes := smbBytes.FindAllStringSubmatch(text, -1)
	for _, b := range bytes {
		s.BytesRead += number(b[1])
		s.BytesWritten += number(b[2])
	}
	ops := smbOps.FindAllStringSubmatch(text, -1)
	for _, o := range ops {
		if o[1] == "Reads" {
			s.Reads += number(o[2])
		} else {
			s.Writes += number(o[2])
		}
	}
	if len(bytes) == 0 || len(ops) == 0 {
		return s, fmt.Errorf("the counters of no share: %q", text)
	}
	return s, nil
}
