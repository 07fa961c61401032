package vxlan

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Socket is what has a UDP port open that is no vxlan device.
type Socket struct {
	PID  uint32 // 0 when no process was found that has it
	Comm string
}

func (s Socket) String() string {
	if s.PID == 0 {
		return "a socket of the kernel, or of a process that cannot be seen,"
	}
	return fmt.Sprintf("process %q (pid %d)", s.Comm, s.PID)
}

// sockets returns the ports of overlay devices that something else than a vxlan device has
// open in the host's namespace. While a vxlan device is UP, the port is the kernel's.
func (s *Scanner) sockets(snap *Snapshot) map[uint16]Socket {
	wanted := map[uint16]bool{DefaultPort: true}
	for i := range snap.Devices {
		if d := &snap.Devices[i]; d.Port != 0 && d.Underlay == snap.Host {
			wanted[d.Port] = true
		}
	}
	for i := range snap.Devices {
		if d := &snap.Devices[i]; d.Up && d.Underlay == snap.Host {
			delete(wanted, d.Port)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	open := map[uint16]uint64{}
	_ = within(s.host, func() error { // without the files nothing is known about sockets
		for _, name := range []string{"udp", "udp6"} {
			f, err := os.Open(filepath.Join(s.opts.Proc, "thread-self/net", name))
			if err != nil {
				continue
			}
			readPorts(f, wanted, open)
			f.Close()
		}
		return nil
	})
	if len(open) == 0 {
		return nil
	}
	found := make(map[uint16]Socket, len(open))
	owners := make(map[uint64]Socket, len(open))
	for port, inode := range open {
		owner, known := s.owners[inode]
		if _, err := os.Stat(filepath.Join(s.opts.Proc, strconv.Itoa(int(owner.PID)))); !known || owner.PID == 0 || err != nil {
			owner = s.ownerOf(inode) // the files of all processes, which not every scan has to go through
		}
		found[port], owners[inode] = owner, owner
	}
	s.owners = owners
	return found
}

// readPorts reads /proc/net/udp (Documentation/networking/proc_net_tcp.rst): from the second
// line on "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...",
// with addresses and ports in hex.
func readPorts(r io.Reader, wanted map[uint16]bool, open map[uint16]uint64) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		_, text, found := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(text, 16, 16)
		if !found || err != nil || !wanted[uint16(port)] {
			continue
		}
		if inode, err := strconv.ParseUint(fields[9], 10, 64); err == nil {
			open[uint16(port)] = inode
		}
	}
}

// ownerOf returns the first process that has a socket open.
func (s *Scanner) ownerOf(inode uint64) Socket {
	if inode == 0 {
		return Socket{}
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	processes, err := os.ReadDir(s.opts.Proc)
	if err != nil {
		return Socket{}
	}
	for _, e := range processes {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		dir := filepath.Join(s.opts.Proc, e.Name())
		files, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // it has ended, or it may not be looked at
		}
		for _, f := range files {
			if link, err := os.Readlink(filepath.Join(dir, "fd", f.Name())); err == nil && link == want {
				comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
				return Socket{PID: uint32(pid), Comm: strings.TrimSuffix(string(comm), "\n")}
			}
		}
	}
	return Socket{}
}

// needs tells whether an overlay network uses a UDP port of the host, and which network
// when the engine described it.
func (m *Model) needs(port uint16, networks []Network) (*Network, bool) {
	for i := range networks {
		if dataPort(&networks[i]) == port {
			return &networks[i], true
		}
	}
	for place, t := range m.devices {
		if t.Port == port && t.Underlay == m.host && m.spaces[place.NetNS].Overlay != "" {
			return nil, true
		}
	}
	return nil, false
}

// portHolder says what has the UDP port that a device needs; "" when nothing does. The
// device is nil when that is a socket.
func (m *Model) portHolder(t *Track) (text string, device *Track) {
	if t.Port == 0 || t.Underlay != m.host {
		return "", nil
	}
	for _, other := range m.Devices() {
		if other.Up && other.OwnSocket && other.Port == t.Port && other.Underlay == t.Underlay {
			return fmt.Sprintf("UDP port %d is taken by device %q, which shares it with none (external or gbp)", t.Port, other.Name), other
		}
	}
	if s, taken := m.sockets[t.Port]; taken {
		return fmt.Sprintf("UDP port %d is taken by %s", t.Port, strings.TrimSuffix(s.String(), ",")), nil
	}
	return "", nil
}
