package attribute

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestClientInfo(t *testing.T) {
	for _, c := range []struct{ info, addr, name string }{
		{"clientid: 0x1\naddress: \"10.1.0.1:812\"\nstatus: confirmed\nname: \"Linux NFSv4.2 web1\"\nminor version: 2\n", "10.1.0.1", "web1"},
		{"address: \"10.1.0.1:812\"\nname: \"Linux NFSv4.1 0a1b-uuid/web1.example.net\"\n", "10.1.0.1", "web1.example.net"},
		{"address: \"10.1.0.1:812\"\nname: \"Linux NFSv4.0 web1/10.1.0.9\"\n", "10.1.0.1", "web1"},
		{"address: \"10.1.0.1:812\"\nname: \"Linux NFSv4.0 10.1.0.1/10.1.0.9 tcp\"\n", "10.1.0.1", ""},
		{"address: \"[fd00::1]:812\"\nname: \"Linux NFSv4.2 web1\"\n", "fd00::1", "web1"},
		{"address: \"[::ffff:10.1.0.1]:812\"\nname: \"Linux NFSv4.2 web1\"\n", "10.1.0.1", "web1"},
		{"address: \"10.1.0.1:812\"\nname: \"\\001\\377binary\"\n", "10.1.0.1", ""},
		{"address: \"10.1.0.1:812\"\nname: \"Linux NFSv4.2 " + strings.Repeat("x", 256) + "\"\n", "10.1.0.1", ""},
		{"name: \"Linux NFSv4.2 web1\"\n", "", ""},
		{"address: 10.1.0.1:812\nname: \"Linux NFSv4.2 web1\"\n", "", ""},
		{"", "", ""},
	} {
		addr, name := parseClientInfo(c.info)
		want, _ := netip.ParseAddr(c.addr)
		if addr != want || name != c.name {
			t.Errorf("%q: %v %q, want %v %q", c.info, addr, name, want, c.name)
		}
	}
}

func TestExportList(t *testing.T) {
	const list = "# Version 1.1\n# Path Client(Flags) # IPs\n" +
		"/srv\t*(rw,fsid=0)\n/srv\t10.0.0.0/8(ro)\n/data/a\\040b\t*(rw)\nbroken line\nrelative\t*(rw)\n"
	if got, want := parseExports(strings.NewReader(list), nil), []string{"/srv", "/data/a b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestServedConnections: on which address of this host its clients come, in the format of
// the kernel on little-endian machines.
func TestServedConnections(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1/net/tcp", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"+
		"   0: 00000000:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"+
		"   1: 0101090A:0801 0201090A:0343 01 00000000:00000000 00:00000000 00000000     0        0 2\n"+
		"   2: 0101090A:0801 0301090A:0343 06 00000000:00000000 00:00000000 00000000     0        0 2\n"+ // ended
		"   3: 0101090A:0016 0401090A:0343 01 00000000:00000000 00:00000000 00000000     0        0 2\n"+ // ssh
		"   4: 0101090A:0801 0501090A:0343 01 00000000:00000000 00:00000000 00000000     0        0 2\n"+
		"   5: 0102090A:4E49 0501090A:0344 01 00000000:00000000 00:00000000 00000000     0        0 2\n"+
		"   6: XX:YY 0501090A:0344 01\n  7: \n")
	write("1/net/tcp6", "  sl\n   0: 090000FD000000000000000001000000:0801 090000FD000000000000000002000000:0343 01 0\n"+
		"   1: 0000000000000000FFFF00000101090A:0801 0000000000000000FFFF00000601090A:0343 01 0\n")
	s := NewServed(Options{ProcRoot: proc}, false)
	defer s.Close()
	if got := s.Address(netip.MustParseAddr("10.9.1.2")); got.IsValid() {
		t.Errorf("%v without a server", got)
	}
	write("fs/nfsd/portlist", "udp 2049\ntcp 2049\ntcp 20041\nrdma 20049\n")
	other := NewServed(Options{ProcRoot: proc}, false)
	defer other.Close()
	for client, want := range map[string]string{
		"10.9.1.2": "10.9.1.1", "10.9.1.3": "", "10.9.1.4": "", "10.9.1.5": "", // the last one talks to two addresses
		"10.9.1.6": "10.9.1.1", "fd00:9::2": "fd00:9::1", "10.9.9.9": "",
	} {
		got := other.Address(netip.MustParseAddr(client))
		if text := map[bool]string{true: got.String()}[got.IsValid()]; text != want {
			t.Errorf("client %s: %q, want %q", client, text, want)
		}
	}
}

// TestServed reads a tree such as a server has.
// TestServedFlushed: the kernel's list is empty after exportfs flushed it, until clients ask
// again. The directories are exported still.
func TestServedFlushed(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"proc/fs/nfsd/exports": "# Version 1.1\n# Path Client(Flags) # IPs\n",
		"var/lib/nfs/etab":     "/srv/a\\040b\t*(rw,sync,fsid=7)\n/srv/gone\t*(rw)\n",
		"srv/a b/file":         "",
	} {
		file = filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := NewServed(Options{ProcRoot: filepath.Join(root, "proc"), HostRoot: root}, false)
	defer s.Close()
	if list := s.Exports(); len(list) != 1 || list[0].Path != "/srv/a b" || list[0].Ino == 0 {
		t.Errorf("exports %+v, want the one that exportfs lists and that is there", list)
	}
}

func TestServed(t *testing.T) {
	dir := t.TempDir()
	exported := filepath.Join(dir, "exported")
	for file, text := range map[string]string{
		"fs/nfsd/clients/3/info": "address: \"10.1.0.1:812\"\nname: \"Linux NFSv4.2 web1\"\n",
		"fs/nfsd/exports":        "# Version 1.1\n" + exported + "\t*(rw)\n/does/not/exist\t*(rw)\n",
		"../exported/file":       "",
	} {
		file = filepath.Join(dir, "proc", file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := NewServed(Options{ProcRoot: filepath.Join(dir, "proc")}, false)
	if s.lookup != nil {
		t.Error("DNS is asked although it is forbidden")
	}
	asked := make(chan string, 8)
	s.lookup = func(_ context.Context, addr string) ([]string, error) {
		asked <- addr
		if addr == "10.1.0.3" {
			return nil, errors.New("no such name")
		}
		return []string{"web2.example.net."}, nil
	}
	defer s.Close()
	var st unix.Stat_t
	if err := unix.Stat(exported, &st); err != nil {
		t.Fatal(err)
	}
	list := s.Exports()
	if len(list) != 1 || list[0].Path != exported || list[0].Ino != st.Ino {
		t.Errorf("exports %+v, want %s with inode %d", list, exported, st.Ino)
	}
	name := func(addr string) string { return s.ClientName(netip.MustParseAddr(addr)) }
	for addr, want := range map[string]string{"10.1.0.1": "web1", "10.1.0.2": "web2.example.net"} {
		poll(t, addr+" is called "+want, func() bool { return name(addr) == want })
	}
	if got := name("10.1.0.3"); got != "" {
		t.Errorf("a name from nowhere: %q", got)
	}
	for {
		if addr := <-asked; addr == "10.1.0.3" {
			break
		}
	}
	if name("10.1.0.3") != "" || name("10.1.0.1") != "web1" {
		t.Error("a failure of DNS changed a name")
	}
}
