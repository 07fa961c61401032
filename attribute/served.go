package attribute

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Served knows the clients and the exports of this host's NFS server: what the kernel
// keeps below /proc/fs/nfsd, and what DNS calls the clients. It answers at once with
// what is known; it asks in the background. It is safe for concurrent use.
type Served struct {
	proc, root string
	lookup     func(context.Context, string) ([]string, error) // nil: DNS must not be asked
	log        *slog.Logger
	now        func() time.Time

	cancel context.CancelFunc
	done   sync.WaitGroup
	wake   chan struct{} // capacity 1: something is asked for

	mu      sync.Mutex
	started bool
	asked   map[netip.Addr]*askedClient
	said    map[netip.Addr]string // what clients say about themselves
	exports []ServedExport
	talk    map[netip.Addr]netip.Addr // the address of this host that a client talks to; not valid: several
	talked  time.Time                 // when talk was read
	looked  time.Time                 // when /proc/fs/nfsd was looked at
	listed  time.Time                 // when said was read
}

// askedClient is an address that was asked for.
type askedClient struct {
	said    string // by the client itself
	dns     string
	resolve time.Time // when to ask DNS again
}

// ServedExport is a directory that this host exports.
type ServedExport struct {
	Path string
	Dev  uint64 // of the file system's superblock
	Ino  uint64
}

const (
	servedRefresh    = 5 * time.Second // how old the list of clients and exports may be
	servedDNSTime    = 2 * time.Second // for an answer
	servedDNSKept    = time.Hour
	servedDNSRetry   = 10 * time.Minute // after a failure
	servedMaxClients = 4096
	servedMaxExports = 4096
	servedMaxName    = 255 // of a name in DNS (RFC 1035, section 2.3.4), and of a host
	servedMaxInfo    = 64 << 10
	servedMaxTable   = 64 << 20 // bytes of a table of connections
	servedPort       = 2049     // of NFS servers (RFC 7530, section 3.1)
)

// NewServed makes a Served that reads nothing before it is asked. dns allows it to ask DNS
// for the names of clients, one after the other.
func NewServed(opts Options, dns bool) *Served {
	s := &Served{
		proc: opts.ProcRoot, root: opts.HostRoot, log: opts.Log, now: time.Now,
		wake: make(chan struct{}, 1), asked: map[netip.Addr]*askedClient{},
	}
	if s.proc == "" {
		s.proc = "/proc"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if dns {
		s.lookup = net.DefaultResolver.LookupAddr
	}
	return s
}

// Close ends questions that are on their way.
func (s *Served) Close() {
	s.mu.Lock()
	cancel := s.cancel
	s.started = true // and nothing starts any more
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	s.done.Wait()
}

// ClientName returns what the client at an address calls itself (NFSv4), else what DNS
// calls it; "" while neither is known.
func (s *Served) ClientName(addr netip.Addr) string {
	s.begin()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.asked[addr]
	if c == nil {
		if len(s.asked) >= servedMaxClients {
			return ""
		}
		if s.said[addr] == "" && s.now().Sub(s.listed) > time.Second {
			s.said, s.listed = s.clients(), s.now() // it may have come since
		}
		c = &askedClient{said: s.said[addr]}
		s.asked[addr] = c
	}
	if c.said == "" && s.lookup != nil && s.now().After(c.resolve) || s.now().Sub(s.looked) > servedRefresh {
		s.poke()
	}
	if c.said != "" {
		return c.said
	}
	return c.dns
}

// Exports returns the exported directories, in the order of the kernel's list.
func (s *Served) Exports() []ServedExport {
	s.begin()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.looked) > servedRefresh {
		s.poke()
	}
	return s.exports
}

// Address returns the address of this host that a client of its NFS server talks to. It is
// not valid where that is not known, or where the client talks to several.
func (s *Served) Address(client netip.Addr) netip.Addr {
	s.begin()
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.talk[client]
	if !known && s.now().Sub(s.talked) > time.Second {
		s.talk, s.talked = s.connections(), s.now() // it may have come since
		at = s.talk[client]
	}
	if s.now().Sub(s.looked) > servedRefresh {
		s.poke()
	}
	return at
}

func (s *Served) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// begin starts the background work at the first question. The first look is not in the
// background: the first rows have names then. It reads files of the kernel only.
func (s *Served) begin() {
	s.mu.Lock()
	first := !s.started
	s.started = true
	if first {
		var ctx context.Context
		ctx, s.cancel = context.WithCancel(context.Background())
		s.done.Go(func() { s.work(ctx) })
	}
	s.mu.Unlock()
	if first {
		s.look(s.paths())
	}
}

func (s *Served) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.mu.Lock()
		due := s.now().Sub(s.looked) > servedRefresh
		s.mu.Unlock()
		if due {
			s.look(s.paths())
		}
		for _, addr := range s.nameless() {
			if ctx.Err() != nil {
				return
			}
			s.resolve(ctx, addr)
		}
	}
}

// nameless returns the clients that DNS has to be asked for.
func (s *Served) nameless() (list []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for addr, c := range s.asked {
		if s.lookup != nil && c.said == "" && s.now().After(c.resolve) {
			list = append(list, addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func (s *Served) resolve(ctx context.Context, addr netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, servedDNSTime)
	defer cancel()
	names, err := s.lookup(ctx, addr.String())
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.asked[addr]
	c.resolve = s.now().Add(servedDNSRetry)
	if err != nil {
		s.log.Debug("DNS has no name for an NFS client", "address", addr, "error", err)
		return
	}
	if len(names) > 0 && len(names[0]) <= servedMaxName+1 {
		c.dns, c.resolve = strings.TrimSuffix(names[0], "."), s.now().Add(servedDNSKept)
	}
}

// look takes over what the kernel knows.
func (s *Served) look(exports []string) {
	said, talk := s.clients(), s.connections()
	var list []ServedExport
	for _, p := range exports {
		if e, ok := s.export(p); ok {
			list = append(list, e)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looked, s.listed, s.exports, s.said = s.now(), s.now(), list, said
	s.talk, s.talked = talk, s.now()
	for addr, c := range s.asked {
		if name := said[addr]; name != "" {
			c.said = name // kept when the client is gone: it may come back
		}
	}
}

// clients reads what NFSv4 clients say about themselves, since 5.3 (a204f25e372d in fs/nfsd).
func (s *Served) clients() map[netip.Addr]string {
	names := map[netip.Addr]string{}
	files, _ := filepath.Glob(filepath.Join(s.proc, "fs/nfsd/clients/*/info"))
	for i, file := range files {
		if i >= servedMaxClients {
			break
		}
		f, err := os.Open(file)
		if err != nil {
			continue // gone meanwhile
		}
		data, err := io.ReadAll(io.LimitReader(f, servedMaxInfo))
		f.Close()
		if err != nil {
			continue
		}
		if addr, name := parseClientInfo(string(data)); name != "" {
			names[addr] = name
		}
	}
	return names
}

// parseClientInfo reads a file "info" of an NFSv4 client. Of its two lines that matter, one is
// address: "10.1.0.1:812", the other name: "Linux NFSv4.2 web1". The kernel writes both with
// escapes (seq_quote_mem in fs/seq_file.c). The name is the string by which Linux clients
// name themselves (fs/nfs/nfs4proc.c, nfs4_init_uniform_client_string): behind the version an
// optional unique string with a slash, then the host; with version 4.0 the host, then the
// server's address. Of others no name is known.
func parseClientInfo(info string) (netip.Addr, string) {
	var addr netip.Addr
	name := ""
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "address":
			quoted, err := strconv.Unquote(value)
			if err != nil {
				return netip.Addr{}, ""
			}
			port, err := netip.ParseAddrPort(quoted)
			if err != nil {
				return netip.Addr{}, ""
			}
			addr = port.Addr().Unmap().WithZone("")
		case "name":
			quoted, err := strconv.Unquote(value)
			if err != nil {
				return netip.Addr{}, ""
			}
			name = linuxClient(quoted)
		}
	}
	if !addr.IsValid() {
		return netip.Addr{}, ""
	}
	return addr, name
}

func linuxClient(id string) string {
	rest, ok := strings.CutPrefix(id, "Linux NFSv4.")
	if !ok {
		return ""
	}
	minor, host, _ := strings.Cut(rest, " ")
	if minor == "0" {
		host, _, _ = strings.Cut(host, "/")
	} else {
		host = host[strings.LastIndexByte(host, '/')+1:]
	}
	if _, err := netip.ParseAddr(host); err == nil || len(host) > servedMaxName || strings.ContainsAny(host, " \t\n") {
		return ""
	}
	return host
}

// connections reads who talks to the server's TCP ports, on which address of this host.
func (s *Served) connections() map[netip.Addr]netip.Addr {
	ports := s.ports()
	if len(ports) == 0 {
		return nil // there is no server
	}
	talk := map[netip.Addr]netip.Addr{}
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(filepath.Join(s.proc, "1/net", table)) // of the host's network namespace
		if err != nil {
			s.log.Debug("cannot read the connections of NFS clients", "error", err)
			continue
		}
		parseConnections(io.LimitReader(f, servedMaxTable), ports, talk)
		f.Close()
	}
	return talk
}

// ports reads the TCP ports of the server: lines such as "tcp 2049".
func (s *Served) ports() (ports []uint16) {
	data, err := os.ReadFile(filepath.Join(s.proc, "fs/nfsd/portlist"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		name, port, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(port, 10, 16)
		if strings.HasPrefix(name, "tcp") && err == nil && !slices.Contains(ports, uint16(n)) {
			ports = append(ports, uint16(n))
		}
	}
	return ports
}

// parseConnections reads /proc/net/tcp or tcp6: behind a number the local and the remote
// address, and the state, all in hexadecimal digits (get_tcp4_sock in net/ipv4/tcp_ipv4.c).
func parseConnections(r io.Reader, ports []uint16, talk map[netip.Addr]netip.Addr) {
	const established = "01"
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(talk) < servedMaxClients {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != established {
			continue
		}
		local, ok1 := parseEndpoint(fields[1])
		remote, ok2 := parseEndpoint(fields[2])
		if !ok1 || !ok2 || !slices.Contains(ports, local.Port()) {
			continue
		}
		if at, known := talk[remote.Addr()]; known && at != local.Addr() {
			talk[remote.Addr()] = netip.Addr{}
		} else {
			talk[remote.Addr()] = local.Addr()
		}
	}
}

// parseEndpoint reads 0100007F:0801: words of an address in the machine's byte order, and a port.
func parseEndpoint(text string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	b, bad := hex.DecodeString(address)
	if err != nil || bad != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(b, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), true
}

// paths reads which directories are exported, from two lists. The kernel's has what clients
// asked for in the last half hour (DEFAULT_TTL of nfs-utils), since exportfs flushed it. The
// other one is what exportfs knows, which lacks file systems that are mounted below an
// export (crossmnt).
func (s *Served) paths() (paths []string) {
	for _, list := range []string{filepath.Join(s.proc, "fs/nfsd/exports"), filepath.Join("/", s.root, "var/lib/nfs/etab")} {
		f, err := os.Open(list)
		if err != nil {
			continue // there is no server, or another one than Linux's tools start
		}
		paths = parseExports(io.LimitReader(f, servedMaxTable), paths)
		f.Close()
	}
	return paths
}

// parseExports adds what /proc/fs/nfsd/exports and etab of exportfs list: a path and who may
// mount it in each line, with octal escapes as in mount tables (qword_add in
// net/sunrpc/cache.c).
func parseExports(r io.Reader, paths []string) []string {
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(paths) < servedMaxExports {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		p, _, ok := strings.Cut(lines.Text(), "\t")
		if !ok {
			continue
		}
		if p = unescapeOctal(p); strings.HasPrefix(p, "/") && !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	return paths
}

func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// export finds the inode of an exported directory. The device is that of its mount: a
// subvolume of btrfs says another one about its files.
func (s *Served) export(p string) (ServedExport, bool) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, filepath.Join("/", s.root, p), unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO|unix.STATX_MNT_ID, &st)
	if err != nil {
		s.log.Debug("cannot look at an exported directory", "path", p, "error", err)
		return ServedExport{}, false
	}
	e := ServedExport{Path: p, Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
	if dev, ok := mountDevice("/proc/self/mountinfo", st.Mnt_id); ok && st.Mask&unix.STATX_MNT_ID != 0 {
		e.Dev = dev
	}
	return e, true
}

// mountDevice returns the device of the superblock of a mount.
func mountDevice(table string, id uint64) (uint64, bool) {
	f, err := os.Open(table)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	want := strconv.FormatUint(id, 10)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[0] != want {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		ma, err1 := strconv.ParseUint(major, 10, 32)
		mi, err2 := strconv.ParseUint(minor, 10, 32)
		return unix.Mkdev(uint32(ma), uint32(mi)), err1 == nil && err2 == nil
	}
	return 0, false
}
