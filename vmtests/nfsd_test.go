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

// TestNFSD looks at this guest's NFS server, which exports a disk to clients in network
// namespaces: what each client moves, against /proc/net/rpc/nfsd, and what the disk moves
// for each, against /proc/diskstats.
func TestNFSD(t *testing.T) {
	suite{
		memory:   1536,
		deadline: 30 * time.Minute,
		quick:    onlyOn("6.12"),
		scenarios: []scenario{
			{name: "v3_ext4", run: nfsd("3", "ext4")},
			{name: "v42_ext4", run: nfsd("4.2", "ext4"), smoke: true},
			{name: "v3_xfs", run: nfsd("3", "xfs")},
			{name: "v42_btrfs", run: nfsd("4.2", "btrfs")},
			{name: "ipv6", run: nfsdIPv6},
			{name: "commit_by_other", run: nfsdCommitByOther},
			{name: "client_gone", run: nfsdClientGone},
			{name: "copy", run: nfsdCopy}, // the last: on 6.18 the disk stays in use
		},
	}.test(t)
}

// nfsdClient is a client host: a network and a UTS namespace of its own.
type nfsdClient struct {
	g       *guest.Guest
	name    string
	address string
	mount   string
}

// nfsdCase is a server with one exported disk.
type nfsdCase struct {
	*guest.Guest
	version string
	fstype  string
	disk    guest.Disk
	a, b    *nfsdClient
	exports int // how often it was exported: each time the server counts from zero
}

const nfsdExport = "/srv/exported"

func newNFSDCase(g *guest.Guest, version, fstype string, inet6 bool) *nfsdCase {
	g.HoldWriteback()
	c := &nfsdCase{Guest: g, version: version, fstype: fstype, disk: g.NVMe()}
	g.NFSServer()
	g.Modprobe("veth")
	c.disk.Format(fstype)
	c.disk.MountAt(fstype, nfsdExport, "")
	exports := g.ReadFile("/etc/exports")
	c.export("async")
	g.Cleanup(func() {
		g.WriteFile("/etc/exports", exports)
		g.Exec("exportfs", "-r")
		g.Exec("exportfs", "-f")
		g.WriteFile("/proc/fs/nfsd/unlock_filesystem", nfsdExport+"\n") // the kernel wants the line's end
	})
	c.a, c.b = c.client("web1", 1, inet6), c.client("web2", 2, inet6)
	return c
}

// export exports the disk; a COMMIT of an export that is async writes nothing.
func (c *nfsdCase) export(how string) {
	c.Helper()
	exports, _, _ := strings.Cut(c.ReadFile("/etc/exports"), nfsdExport)
	c.WriteFile("/etc/exports", exports+nfsdExport+" *(rw,no_root_squash,insecure,fsid=7,no_subtree_check,"+how+")\n")
	c.Exec("exportfs", "-r")
	c.exports++
}

// client makes a client host and mounts the export there, until the scenario's end.
func (c *nfsdCase) client(name string, n int, inet6 bool) *nfsdClient {
	c.Helper()
	server, address, bits := fmt.Sprintf("10.9.%d.1", n), fmt.Sprintf("10.9.%d.2", n), "/24"
	from := server
	if inet6 {
		server, address, bits = fmt.Sprintf("fd00:9:%d::1", n), fmt.Sprintf("fd00:9:%d::2", n), "/64"
		from = "[" + server + "]"
	}
	k := &nfsdClient{g: c.Guest, name: name, address: address, mount: "/mnt/" + name}
	in, out := "cl"+name, "srv"+name
	c.Exec("ip", "netns", "add", name)
	c.Cleanup(func() { c.Exec("ip", "netns", "del", name) })
	c.Exec("ip", "link", "add", out, "type", "veth", "peer", "name", in, "netns", name)
	c.Exec("ip", "address", "add", server+bits, "dev", out, "nodad")
	c.Exec("ip", "link", "set", out, "up")
	inside := []string{"-n", name}
	c.Exec("ip", append(inside, "address", "add", address+bits, "dev", in, "nodad")...)
	c.Exec("ip", append(inside, "link", "set", in, "up")...)
	c.Exec("ip", append(inside, "link", "set", "lo", "up")...)
	options, source := "vers="+c.version+",nosharecache,timeo=600,retrans=3", from+":"+strings.TrimPrefix(nfsdExport, "/srv")
	if c.version == "3" {
		options, source = options+",nolock,proto=tcp,mountproto=tcp", from+":"+nfsdExport
		if inet6 {
			options = strings.ReplaceAll(options, "proto=tcp", "proto=tcp6")
		}
	}
	if err := os.MkdirAll(k.mount, 0o755); err != nil {
		c.Fatal(err)
	}
	c.Exec("nsenter", "--net=/run/netns/"+name, "unshare", "--uts", "sh", "-c",
		"echo "+name+" >/proc/sys/kernel/hostname && exec mount -t nfs -o "+options+" "+source+" "+k.mount)
	c.Cleanup(func() { c.Unmount(k.mount) })
	return k
}

func (k *nfsdClient) file(name string) string { return filepath.Join(k.mount, name) }

// write writes bytes of a file and waits until the server has them.
func (k *nfsdClient) write(name string, bytes int64, options ...string) {
	k.g.Helper()
	k.g.Exec("dd", append([]string{"if=/dev/urandom", "of=" + k.file(name), "bs=1M", "iflag=fullblock,count_bytes",
		fmt.Sprintf("count=%d", bytes), "conv=notrunc,fsync", "status=none"}, options...)...)
}

func (k *nfsdClient) read(name string) {
	k.g.Helper()
	k.g.Exec("dd", "if="+k.file(name), "of=/dev/null", "bs=1M", "status=none")
}

// served is the line "io" of the server: bytes that it read and wrote for clients.
func (c *nfsdCase) served() (n [2]int64) {
	c.Helper()
	for line := range strings.Lines(c.ReadFile("/proc/net/rpc/nfsd")) {
		if strings.HasPrefix(line, "io ") {
			if _, err := fmt.Sscanf(line, "io %d %d", &n[0], &n[1]); err != nil {
				c.Fatalf("%q: %v", line, err)
			}
		}
	}
	return n
}

// exported is what the server counts for the export: bytes read and written.
func (c *nfsdCase) exported() (n [2]int64) {
	c.Helper()
	inside := false
	for line := range strings.Lines(c.ReadFile("/proc/fs/nfsd/export_stats")) {
		if path, _, ok := strings.Cut(line, "\t"); ok && path != "" {
			inside = path == nfsdExport
		}
		name, number, _ := strings.Cut(strings.TrimSpace(line), ": ")
		i := map[string]int{"io_read": 1, "io_write": 2}[name]
		if !inside || i == 0 {
			continue
		}
		v, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			c.Fatalf("%q: %v", line, err)
		}
		n[i-1] += v
	}
	return n
}

// calls is how many requests of clients the server answered, those that do nothing left out.
func (c *nfsdCase) calls() (n int64) {
	c.Helper()
	for line := range strings.Lines(c.ReadFile("/proc/net/rpc/nfsd")) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "proc3" && fields[0] != "proc4" {
			continue
		}
		for _, f := range fields[3:] { // behind the number of counters, and NULL
			v, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				c.Fatalf("%q: %v", line, err)
			}
			n += v
		}
	}
	return n
}

// nfsdRun is what the clients and the disk do while two tracers look at the same bytes.
type nfsdRun struct {
	c          *nfsdCase
	wire, disk *guest.Tracer
	before     [2]int64
	exported   [2]int64
	exports    int
	calls      int64
	stats      guest.IOStats
}

// nfsdBytes are bytes that a client moves: what it writes and reads, and how much of that
// the server's disk reads. The disk writes all of it.
type nfsdBytes struct{ write, read, diskRead int64 }

func (c *nfsdCase) begin() *nfsdRun {
	c.Helper()
	c.Sync()
	s := &nfsdRun{c: c, wire: c.Trace("--source", "nfsd", "--by", "nfs-client,nfs-export")}
	s.before, s.exported, s.exports, s.calls = c.served(), c.exported(), c.exports, c.calls()
	s.disk = c.Trace("--source", "block", "--by", "nfs-client,nfs-export,device")
	s.stats = c.disk.Stats()
	return s
}

// end compares. The server may be asked for a bit more than a client reads or writes: the
// rest of a page that is overwritten in part. What the disk writes is compared without
// journals, which are shared out too.
func (s *nfsdRun) end(a, b nfsdBytes) {
	c := s.c
	c.Helper()
	c.Sync()
	calls, exported := c.calls()-s.calls, c.exported()
	wire, block := s.wire.Stop(), s.disk.Stop()
	now, stats := c.served(), c.disk.Stats()
	of := func(r *guest.Output, field, source, address string) int64 {
		return r.Sum(field, "iotrace.source", source, "iotrace.nfs.client.address", address, "iotrace.nfs.export", nfsdExport, "client.ip", address)
	}
	wire.Equal("the server's bytes read", wire.Sum("iotrace.read.bytes", "iotrace.source", "nfsd"), now[0]-s.before[0])
	wire.Equal("the server's bytes written", wire.Sum("iotrace.write.bytes", "iotrace.source", "nfsd"), now[1]-s.before[1])
	if s.exports == c.exports {
		mine := []string{"iotrace.source", "nfsd", "iotrace.nfs.export", nfsdExport}
		wire.Equal("bytes read of the export", wire.Sum("iotrace.read.bytes", mine...), exported[0]-s.exported[0])
		wire.Equal("bytes written of the export", wire.Sum("iotrace.write.bytes", mine...), exported[1]-s.exported[1])
	}
	wire.Equal("lost", wire.Lost(), 0)
	var ops int64
	for _, op := range []string{"read", "write", "flush", "metadata"} {
		ops += wire.Sum("iotrace."+op+".ops", "iotrace.source", "nfsd")
	}
	// Clients of NFSv4 renew their leases now and then, also while tracers start and end.
	if d := ops - calls; d < -4 || d > 4 {
		c.Errorf("%d operations, the server answered %d requests", ops, calls)
	}
	for _, k := range []struct {
		*nfsdClient
		want nfsdBytes
	}{{c.a, a}, {c.b, b}} {
		for _, v := range []struct {
			what, source, field string
			out                 *guest.Output
			want                int64
		}{
			{"written over the wire", "nfsd", "iotrace.write.bytes", wire, k.want.write},
			{"read over the wire", "nfsd", "iotrace.read.bytes", wire, k.want.read},
			{"written to the disk", "block", "iotrace.basis.dirtier", block, k.want.write},
			{"read from the disk", "block", "iotrace.read.bytes", block, k.want.diskRead},
		} {
			got := of(v.out, v.field, v.source, k.address)
			c.Logf("%s by %s: %d, itself %d", v.what, k.name, got, v.want)
			v.out.Within(v.what+" by "+k.name, got, v.want, 100)
		}
		mine := func(field string) int64 { return wire.Sum(field, "iotrace.nfs.client.address", k.address) }
		if k.want.write > 0 && (mine("iotrace.metadata.ops") == 0 || mine("iotrace.flush.ops") == 0 || mine("iotrace.write.latency.max") == 0) {
			c.Errorf("%s: %d metadata operations, %d COMMITs, longest writes %d ns", k.name, mine("iotrace.metadata.ops"), mine("iotrace.flush.ops"), mine("iotrace.write.latency.max"))
		}
		if c.version != "3" { // such clients say their name
			wire.Equal("rows of "+k.name+" without its name", int64(len(wire.Where("iotrace.nfs.client.address", k.address, "iotrace.nfs.client.name", ""))), 0)
		}
	}
	sum := func(field string) int64 {
		return block.Sum(field, "iotrace.source", "block", "iotrace.device.id", c.disk.ID())
	}
	block.Equal("read from the disk", sum("iotrace.read.bytes"), stats.ReadBytes-s.stats.ReadBytes)
	block.Equal("written to the disk", sum("iotrace.write.bytes"), stats.WriteBytes-s.stats.WriteBytes)
	for _, op := range []string{"iotrace.read.", "iotrace.write."} { // no other row: neither the root's nor (unattributed)
		owned := func(field, owner string) int64 {
			return block.Sum(op+field, "iotrace.source", "block", "iotrace.device.id", c.disk.ID(), "iotrace.owner", owner)
		}
		all, kernel := sum(op+"bytes"), owned("bytes", "kernel")
		others := all - owned("bytes", "nfs-client") - kernel
		c.Logf("%sbytes of the disk: %d, (kernel) has %d of them, rows of neither clients nor the kernel %d", op, all, kernel, others)
		if c.fstype == "btrfs" {
			// Tree blocks that a commit changes are those of the task that commits, here of sync.
			meta := sum(op+"meta_bytes") - owned("meta_bytes", "nfs-client") - owned("meta_bytes", "kernel")
			c.Logf("%d of them are metadata", meta)
			others -= meta
		}
		block.Within(op+"bytes of clients and (kernel)", all-others, all, 100)
	}
}

func nfsd(version, fstype string) func(*guest.Guest) {
	return func(g *guest.Guest) { newNFSDCase(g, version, fstype, false).run() }
}

func nfsdIPv6(g *guest.Guest) {
	c := newNFSDCase(g, "4.2", "ext4", true)
	s := c.begin()
	c.a.write("a", bytesA)
	c.b.write("b", bytesB)
	s.end(nfsdBytes{write: bytesA}, nfsdBytes{write: bytesB})
}

// nfsdCommitByOther: the COMMIT of one client writes what another one has sent.
func nfsdCommitByOther(g *guest.Guest) {
	c := newNFSDCase(g, "3", "ext4", false)
	s := c.begin()
	c.a.write("a", bytesA)
	c.export("sync")
	c.b.write("a", bytesB, "seek=8") // behind the other's bytes; a COMMIT is for the whole file
	if n := c.disk.Stats().WriteBytes - s.stats.WriteBytes; n < bytesA+bytesB {
		c.Errorf("the COMMIT wrote %d bytes", n)
	}
	s.end(nfsdBytes{write: bytesA}, nfsdBytes{write: bytesB})
}

// nfsdClientGone: a client cannot be reached any more when what it wrote is flushed.
func nfsdClientGone(g *guest.Guest) {
	c := newNFSDCase(g, "4.2", "ext4", false)
	s := c.begin()
	c.a.write("a", bytesA)
	c.b.write("b", bytesB)
	g.Exec("ip", "link", "set", "srv"+c.a.name, "down")
	s.end(nfsdBytes{write: bytesA}, nfsdBytes{write: bytesB})
	g.Exec("ip", "link", "set", "srv"+c.a.name, "up")
}

// nfsdCopy: a copy on the server is nobody's wire bytes. What the disk reads and writes for it
// is the client's, whether the server's thread copies or a thread of its own.
func nfsdCopy(g *guest.Guest) {
	c := newNFSDCase(g, "4.2", "ext4", false)
	c.a.write("source", bytesA)
	c.DropCaches()
	s := c.begin()
	p := g.Cgroup("copier").Process()
	p.Open(c.a.file("source"), os.O_RDONLY).CopyTo(p.Open(c.a.file("copy"), os.O_CREATE|os.O_RDWR), bytesA)
	p.Exit()
	c.Sync()
	wire, block := s.wire.Stop(), s.disk.Stop()
	now, diff := c.served(), c.disk.Stats().Sub(s.stats)
	if diff.WriteBytes < bytesA || diff.ReadBytes < bytesA || now != s.before {
		g.Fatalf("the disk read and wrote %d and %d bytes, and the clients moved %v, before %v: the server did not copy", diff.ReadBytes, diff.WriteBytes, now, s.before)
	}
	wire.Equal("bytes on the wire", wire.Sum("iotrace.write.bytes", "iotrace.source", "nfsd")+wire.Sum("iotrace.read.bytes", "iotrace.source", "nfsd"), 0)
	of := func(field string, pairs ...string) int64 {
		return block.Sum(field, append([]string{"iotrace.source", "block", "iotrace.device.id", c.disk.ID()}, pairs...)...)
	}
	block.Equal("written to the disk", of("iotrace.write.bytes"), diff.WriteBytes)
	block.Equal("read from the disk", of("iotrace.read.bytes"), diff.ReadBytes)
	mine := []string{"iotrace.nfs.client.address", c.a.address, "iotrace.nfs.export", nfsdExport}
	wrote, read := of("iotrace.basis.dirtier", mine...), of("iotrace.read.bytes", mine...)
	g.Logf("of a COPY of %d bytes the client has %d written and %d read", bytesA, wrote, read)
	block.Equal("rows of another client", int64(len(block.Where("iotrace.nfs.client.address", c.b.address))), 0)
	block.Within("written to the disk by "+c.a.name, wrote, bytesA, 100)
	block.Within("read from the disk by "+c.a.name, read, bytesA, 100)
	if major, minor := c.Kernel(); major == 6 && minor == 18 {
		// Its server never closes the files of a COPY: when it is stopped, the kernel warns
		// that the cache nfsd_file still has objects. So nobody can unmount the export.
		c.Exec("umount", "-l", nfsdExport)
	}
}

func (c *nfsdCase) run() {
	s := c.begin()
	c.a.write("a", bytesA)
	c.b.write("b", bytesB)
	c.Sync()
	c.b.write("a", bytesC) // a file of the other's
	c.Sync()
	c.a.write("direct", 4<<20, "oflag=direct")
	c.Sync()
	c.DropCaches()
	c.a.read("b")
	c.b.read("a")
	c.b.read("b") // the server has it in memory
	s.end(nfsdBytes{write: bytesA + 4<<20, read: bytesB, diskRead: bytesB}, nfsdBytes{write: bytesB + bytesC, read: bytesA + bytesB, diskRead: bytesA})
}
