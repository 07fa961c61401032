package attribute

import (
	"maps"
	"slices"
)

// networkFileSystems are the kernel's file systems whose data is on another machine, or
// on the host of a virtual machine, and which no source traces, or not on every kernel
// (CephFS, SMB: cifs, smb3; 9p). NFS and all kinds of FUSE, virtiofs among them, have sources.
var networkFileSystems = map[string]bool{
	"9p": true, "afs": true, "beegfs": true, "ceph": true, "cifs": true, "coda": true, "gpfs": true, "lustre": true,
	"pvfs2": true, "smb3": true, "vboxsf": true, "vmhgfs": true, "wekafs": true,
}

// Untraced is a type of network file system that no source traces.
type Untraced struct {
	FSType string
	Points []string // where it is mounted on the host, sorted
}

// Untraced returns the mounted network file systems whose I/O no source sees, by type.
func (r *Resolver) Untraced() []Untraced {
	m := r.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refresh("")
	var list []Untraced
	for _, fstype := range slices.Sorted(maps.Keys(m.host.untraced)) {
		list = append(list, Untraced{fstype, slices.Sorted(slices.Values(m.host.untraced[fstype]))})
	}
	return list
}
