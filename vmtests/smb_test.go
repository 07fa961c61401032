//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestSMB compares the rows of source smb with the client's own counters and with each
// cgroup's I/O, to the byte. The server is samba, in the guest.
func TestSMB(t *testing.T) {
	suite{
		source:   "smb",
		image:    "smb",
		memory:   1536,
		deadline: 40 * time.Minute, // a small file takes five requests, one after the other
		quick:    onlyOn("6.12"),
		scenarios: []scenario{
			{name: "module_loaded_later", run: smbModuleLater, smoke: true}, // before others load it
			{name: "delayed", run: smb("strict", smbDelayed), smoke: true},
			{name: "close", run: smb("strict", smbClose)},
			{name: "direct", run: smb("strict", smbDirect)},
			{name: "uncached", run: smb("none", smbUncached), smoke: true},
			{name: "mapped", run: smb("strict", (*smbCase).mapped)},
			{name: "dead_writer", run: smb("strict", (*smbCase).deadWriter)},
			{name: "overwrite_written", run: smb("strict", (*smbCase).overwrite), smoke: true},
			{name: "alternate_writers", run: smb("strict", (*smbCase).alternate), smoke: true},
			{name: "append", run: smb("strict", (*smbCase).appended)},
			{name: "osync", run: smb("strict", (*smbCase).osync)},
			{name: "read_cold", run: smb("strict", (*smbCase).readCold), smoke: true},
			{name: "read_mmap", run: smb("strict", (*smbCase).readMmap)},
			{name: "read_direct", run: smb("strict", smbReadDirect)},
			{name: "read_ahead", run: smb("strict", smbReadAhead)},
			{name: "writers_64", run: smb("strict", smbWriters64)},
			{name: "files", run: smbFiles, smoke: true},
			{name: "mount", run: smbNamed, smoke: true},
			{name: "server_down", run: smbServerDown},
			{name: "server_gone", run: smbServerGone},
			{name: "umount_force", run: smbUmountForce},
			{name: "server", run: smbServer},
			{name: "small_files", run: smb("strict", (*smbCase).smallFiles)},
		},
	}.test(t)
}

// smbCase is one scenario on one mount, with the bytes that each cgroup wrote and read.
type smbCase struct {
	remoteCase
	m      *guest.SMBMount
	before guest.SMBStats
}

func newSMBCase(g *guest.Guest, cache string, options ...string) *smbCase {
	c := &smbCase{remoteCase: newRemoteCase(g), m: g.SMB(cache, options...)}
	c.file, c.open = c.m.File, c.readers
	c.sent = func() remoteBytes { n := c.counted(); return remoteBytes{n.BytesRead, n.BytesWritten} }
	c.before = g.SMBStats()
	g.Cleanup(func() { // the server's memory is limited
		files, _ := filepath.Glob(filepath.Join(guest.SMBDir, "*"))
		for _, f := range files {
			if err := os.RemoveAll(f); err != nil {
				g.Error(err)
			}
		}
	})
	return c
}

// counted is what the client counted since the scenario's begin.
func (c *smbCase) counted() guest.SMBStats { c.Helper(); return c.SMBStats().Sub(c.before) }

// check compares rows with the client's counters and with the cgroups' I/O.
func (c *smbCase) check(r *guest.Output, id string, want guest.SMBStats) {
	c.Helper()
	for cg, n := range c.wrote {
		r.Equal("written by "+cg.Path(), r.Written("smb", id, cg), n)
	}
	for cg, n := range c.read {
		r.Equal("read by "+cg.Path(), r.Read("smb", id, cg), n)
	}
	sum := func(field string) int64 {
		return r.Sum(field, "iotrace.source", "smb", "iotrace.level", "wire", "iotrace.device.id", id)
	}
	r.Equal("written", sum("iotrace.write.bytes"), want.BytesWritten)
	r.Equal("read", sum("iotrace.read.bytes"), want.BytesRead)
	r.Equal("WRITE operations", sum("iotrace.write.ops"), want.Writes)
	r.Equal("READ operations", sum("iotrace.read.ops"), want.Reads)
	r.Equal("unattributed", sum("iotrace.basis.none"), 0)
	r.Equal("errors", sum("iotrace.write.errors")+sum("iotrace.read.errors"), 0)
	if want.Writes > 0 && sum("iotrace.write.latency.max") == 0 {
		c.Error("no write has a latency")
	}
	lost, skipped := losses(r)
	r.Equal("lost", lost, 0)
	if skipped > 0 {
		c.Logf("the kernel skipped %d runs of programs", skipped)
	}
}

// smb runs a scenario on a mount under one tracer.
func smb(cache string, run func(*smbCase)) func(*guest.Guest) {
	return func(g *guest.Guest) {
		g.HoldWriteback()
		g.SMBServer()
		g.Modprobe("cifs")
		tr := g.Trace(append([]string{"--source", "smb"}, traced...)...)
		c := newSMBCase(g, cache)
		run(c)
		c.Sync()
		id, want := c.m.ID(), c.counted()
		c.check(tr.Stop(), id, want)
	}
}

func smbModuleLater(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	tr := g.Trace(append([]string{"--source", "smb"}, traced...)...)
	c := newSMBCase(g, "strict") // the mount loads the module
	smbDelayed(c)
	c.Sync()
	id, want := c.m.ID(), c.counted()
	c.check(tr.Stop(), id, want)
}

// smbDelayed has an outsider write what two cgroups made dirty.
func smbDelayed(c *smbCase) {
	syncWrites(c.Guest, func() { c.writeBoth(0) }, func() int64 { return c.SMBStats().BytesWritten })
}

func smbClose(c *smbCase) {
	fa, fb := c.writeBoth(0)
	fa.Close()
	fb.Close()
}

func smbDirect(c *smbCase) {
	c.a.Process().Open(c.m.File("a"), guest.Create|guest.Direct).WriteBlocks(0, 4<<20, 1<<20)
	c.b.Process().Open(c.m.File("b"), guest.Create|guest.Direct).WriteBlocks(0, 2<<20, 1<<20)
	c.wrote[c.a], c.wrote[c.b] = 4<<20, 2<<20
}

// smbUncached writes and reads without the page cache.
func smbUncached(c *smbCase) {
	fa, fb := c.writeBoth(0)
	fa.Read(0, bytesA)
	fb.Read(0, bytesB)
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

// prepare makes a file on the server, which the client has not seen.
func (c *smbCase) prepare(name string, n int) {
	c.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i>>12 + i)
	}
	if err := os.WriteFile(filepath.Join(guest.SMBDir, name), data, 0o644); err != nil {
		c.Fatal(err)
	}
}

// readers opens a file of A's and one of B's that are on the server only.
func (c *smbCase) readers(flags int) (fa, fb *guest.File) {
	c.prepare("a", bytesA)
	c.prepare("b", bytesB)
	return c.a.Process().Open(c.m.File("a"), os.O_RDONLY|flags), c.b.Process().Open(c.m.File("b"), os.O_RDONLY|flags)
}

func smbReadDirect(c *smbCase) {
	fa, fb := c.readers(guest.Direct)
	fa.ReadBlocks(0, bytesA+1<<20, 1<<20)
	fb.ReadBlocks(0, bytesB+1<<20, 1<<20)
	c.read[c.a], c.read[c.b] = bytesA, bytesB
}

// smbReadAhead reads the first page: the kernel asks for more.
func smbReadAhead(c *smbCase) {
	fa, fb := c.readers(0)
	fa.ReadBlocks(0, 4096, 4096)
	c.readsAsCounted(c.a)
	fb.ReadBlocks(0, 4096, 4096)
	c.readsAsCounted(c.b)
	if c.read[c.a] < 4096 {
		c.Errorf("the server gave %d bytes for a page", c.read[c.a])
	}
}

func smbWriters64(c *smbCase) {
	for i := range int64(64) {
		cg := c.cgroup("w" + string(rune('0'+i/10)) + string(rune('0'+i%10)))
		n := 100_003 + i*1_013
		cg.Process().Open(c.m.File(filepath.Base(cg.Path())), guest.Create).Write(0, n)
		c.wrote[cg] = n
	}
	c.Sync()
}

// smbNamed groups by mount: server and share are named.
func smbNamed(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	g.Modprobe("cifs")
	tr := g.Trace("--by", "mount")
	c := newSMBCase(g, "strict")
	c.writeBoth(0)
	c.Sync()
	id := c.m.ID()
	r := tr.Stop()
	r.Equal("written to the share", r.Sum("iotrace.write.bytes", "iotrace.source", "smb", "iotrace.device.id", id,
		"iotrace.smb.server", "127.0.0.1", "iotrace.smb.share", "share", "iotrace.mount.source", "//127.0.0.1/share"), bytesA+bytesB)
}

// smbServerDown flushes while the server is down. The client connects again, and repeats the
// requests that had no answer.
func smbServerDown(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	g.Modprobe("cifs")
	tr := g.Trace(append([]string{"--source", "smb"}, traced...)...)
	c := newSMBCase(g, "strict", "hard", "echo_interval=1")
	c.writeBoth(0)
	g.SMBServerDown()
	wait := flushing(g)
	g.SMBServerUp()
	wait()
	g.Sync()
	for name, n := range map[string]int64{"a": bytesA, "b": bytesB} {
		fi, err := os.Stat(filepath.Join(guest.SMBDir, name))
		if err != nil || fi.Size() != n {
			g.Errorf("file %s on the server: %v, %v; want %d bytes", name, fi, err, n)
		}
	}
	id, want := c.m.ID(), c.counted()
	r := tr.Stop()
	for cg, n := range c.wrote {
		r.Equal("written by "+cg.Path(), r.Written("smb", id, cg), n)
	}
	written := r.Sum("iotrace.write.bytes", "iotrace.source", "smb", "iotrace.level", "wire", "iotrace.device.id", id)
	r.Equal("written", written, bytesA+bytesB)
	r.Equal("the client's counter", want.BytesWritten, bytesA+bytesB)
}

// smbServerGone: what a server no longer answers is an error, and no bytes.
func smbServerGone(g *guest.Guest) {
	g.SMBServer()
	g.Modprobe("cifs")
	tr := g.Trace(append([]string{"--source", "smb"}, traced...)...)
	c := newSMBCase(g, "none", "soft", "echo_interval=1")
	c.prepare("b", bytesB)
	f := c.a.Process().Open(c.m.File("b"), os.O_RDONLY)
	f.Read(0, 8192)
	id, before := c.m.ID(), c.counted()
	g.SMBServerDown()
	if f.TryRead(8192, 4096, 4096) == "" {
		g.Error("a read from a server that is gone succeeded")
	}
	g.SMBServerUp()
	r := tr.Stop()
	r.Equal("read", r.Read("smb", id, c.a), before.BytesRead)
	if r.Sum("iotrace.read.errors", "iotrace.source", "smb", "iotrace.device.id", id, "iotrace.cgroup.path", c.a.Path()) < 1 {
		g.Errorf("the read that failed is no error\n%s", r.Table("smb"))
	}
}

// smbUmountForce takes a mount away while its server is down and pages are dirty.
func smbUmountForce(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	g.Modprobe("cifs")
	tr := g.Trace(append([]string{"--source", "smb"}, traced...)...)
	c := newSMBCase(g, "strict", "soft", "echo_interval=1")
	p := c.a.Process()
	p.Open(c.m.File("f"), guest.Create).Write(0, bytesC)
	id := c.m.ID()
	g.SMBServerDown()
	wait := flushing(g)
	_, _ = g.Try("umount", "-f", c.m.Target) // the file keeps the mount busy
	p.Kill()
	_, _ = g.Try("umount", "-l", "-f", c.m.Target)
	wait()
	g.SMBServerUp()
	after := newSMBCase(g, "strict")
	after.a.Process().Open(after.m.File("g"), guest.Create).Write(0, bytesA)
	g.Sync()
	checkNextMount(tr.Stop(), "smb", id, c.a, after.m.ID(), after.a)
}

// smbServer looks at the server: what its disk does for each client is that of the process
// smbd of the client's connection, and smbstatus says which process that is.
func smbServer(g *guest.Guest) {
	g.HoldWriteback()
	g.SMBServer()
	g.Modprobe("cifs")
	disk := g.NVMe()
	disk.Format("ext4")
	disk.MountAt("ext4", guest.SMBDisk, "")
	type client struct {
		address     string
		m           *guest.SMBMount
		write, read int64
	}
	clients := []*client{{address: "10.1.0.1", write: bytesA, read: bytesB}, {address: "10.1.0.2", write: bytesB, read: bytesA}}
	for _, c := range clients {
		g.Exec("ip", "address", "add", c.address+"/32", "dev", "lo")
		g.Cleanup(func() { g.Exec("ip", "address", "del", c.address+"/32", "dev", "lo") })
		c.m = g.SMBShare("//" + c.address + "/disk")
	}
	g.Sync()
	tr := g.Trace("--source", "block", "--by", "process,device")
	before := disk.Stats()
	for _, c := range clients {
		g.Exec("dd", "if=/dev/urandom", "of="+c.m.File(c.address), "bs=1M", "iflag=fullblock,count_bytes", fmt.Sprintf("count=%d", c.write), "status=none")
	}
	g.Sync() // an outsider flushes what the server has in memory
	g.DropCaches()
	for i, c := range clients {
		g.Exec("dd", "if="+c.m.File(clients[1-i].address), "of=/dev/null", "bs=1M", "status=none")
	}
	status := g.Exec("smbstatus", "-p", "-s", "/etc/samba/smb.conf")
	g.Sync()
	r, diff := tr.Stop(), disk.Stats().Sub(before)
	g.Logf("smbstatus -p:\n%s", status)
	of := func(field string, pairs ...string) int64 {
		return r.Sum(field, append([]string{"iotrace.source", "block", "iotrace.device.id", disk.ID()}, pairs...)...)
	}
	r.Equal("written to the disk", of("iotrace.write.bytes"), diff.WriteBytes)
	r.Equal("read from the disk", of("iotrace.read.bytes"), diff.ReadBytes)
	pids := map[string]bool{}
	for _, c := range clients {
		pid := smbdOf(g, status, c.address)
		pids[pid] = true
		mine := []string{"process.name", "smbd", "process.pid", pid}
		wrote, read := of("iotrace.basis.dirtier", mine...), of("iotrace.read.bytes", mine...)
		g.Logf("smbd %s of %s: wrote %d, its client %d; read %d, its client %d", pid, c.address, wrote, c.write, read, c.read)
		r.Within("written for "+c.address, wrote, c.write, 100)
		r.Within("read for "+c.address, read, c.read, 100)
	}
	if len(pids) != len(clients) {
		g.Errorf("the processes of %d clients are %v", len(clients), pids)
	}
}

// smbdOf is the process that smbstatus -p names for a client's address.
func smbdOf(g *guest.Guest, status, address string) (pid string) {
	g.Helper()
	for line := range strings.Lines(status) {
		f := strings.Fields(line)
		if !strings.Contains(line, "ipv4:"+address+":") {
			continue
		}
		if _, err := strconv.Atoi(f[0]); err != nil || pid != "" {
			g.Fatalf("which process serves %s? %q", address, status)
		}
		pid = f[0]
	}
	if pid == "" {
		g.Fatalf("no process serves %s: %q", address, status)
	}
	return pid
}
