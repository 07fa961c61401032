package tracer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

const nfsdName = "nfsd"

// planNFSD looks at this kernel's NFS server.
func planNFSD(c *loader, future bool) (*plan, error) {
	if _, err := os.Stat(sysfs + "/module/nfsd"); err != nil && !future { // exists also when built in: nfsd has parameters
		return nil, &notLoadedError{"nfsd"}
	}
	spec, err := c.read(bpf.NFSDObject(), nil)
	if err != nil {
		return nil, err
	}
	types, sums, err := c.moduleTypes(future, "nfsd", "sunrpc")
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(types), c.types)
	for _, name := range []string{"svc_rqst", "kthread"} {
		if !haveType[*btf.Struct](all, name) {
			return nil, fmt.Errorf("the kernel has no type information about struct %s, which leads to the clients (CONFIG_DEBUG_INFO_BTF_MODULES): %w", name, ErrAbsent)
		}
	}
	limitation := Limitation{}
	if !haveType[*btf.Struct](all, "svc_fh") {
		// Before 5.11 no kernel had type information for modules: see bpf/nfsd/types.h.
		fixed := c.pagesNameOwners()
		if err := spec.Variables[bpf.NFSDVarFixedSvcFh].Set(fixed); err != nil {
			return nil, err
		}
		if !fixed {
			limitation = Limitation{Text: "what NFS clients read and wrote is not split by export", Remedy: "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y"}
		}
	}
	return &plan{spec, nfsdSignals(c.preempts(), limitation), ebpf.ProgramOptions{ExtraRelocationTargets: types}, sums}, nil
}

func nfsdSignals(preempts bool, limitation Limitation) (signals []signal) {
	for _, h := range []struct{ tracepoint, program, redundant, last string }{
		{"nfsd_read_io_done", bpf.NFSDProgIotNfsdRead, bpf.NFSDProgIotNfsdReadRedundant, bpf.NFSDProgIotNfsdReadLast},
		{"nfsd_write_io_done", bpf.NFSDProgIotNfsdWrite, bpf.NFSDProgIotNfsdWriteRedundant, bpf.NFSDProgIotNfsdWriteLast},
	} {
		signals = append(signals, signal{hooks: []hook{{kind: rawTracepoint, target: h.tracepoint, program: h.program, limitation: limitation}}})
		for _, program := range []string{h.redundant, h.last} {
			signals = append(signals, redundant(preempts, hook{kind: rawTracepoint, target: h.tracepoint, program: program})...)
		}
	}
	return append(signals,
		signal{hooks: []hook{{kind: rawTracepoint, target: "svc_stats_latency", program: bpf.NFSDProgIotNfsdReplied}}, optional: Limitation{
			Text: "metadata operations, COMMITs and latencies of NFS clients are not counted", Remedy: "a kernel with the tracepoint sunrpc:svc_stats_latency",
		}},
		signal{hooks: []hook{{kind: rawTracepoint, target: "nfsd_compound_status", program: bpf.NFSDProgIotNfsdCompound}}, optional: Limitation{
			Text: "COMMITs of NFSv4 clients count as metadata operations", Remedy: "a kernel with the tracepoint nfsd:nfsd_compound_status",
		}})
}

var copiesOptional = Limitation{
	Text:   "what a thread of the NFS server reads and writes for a COPY of NFSv4.2 is (unattributed)",
	Remedy: "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y",
}

// Offsets of 5.10, whose modules have no type information: read from the module's code
// (nfsd4_do_async_copy, client_info_show).
const (
	copyClient510    = 248 // nfsd4_copy.cp_clp
	clientAddress510 = 184 // nfs4_client.cl_addr
)

// findCopies tells the programs where such a thread keeps its client: see nfs_copies in
// bpf/core/client.h. The module nfsd is loaded.
func (c *loader) findCopies() error {
	types, _, err := c.moduleTypes(false, nfsdName)
	if err != nil {
		return err
	}
	fields, ok := copyFields(&hopTypes{specs: append(types, c.types), old: c.pagesNameOwners()})
	if !ok {
		return fmt.Errorf("the kernel has no type information about a COPY of NFSv4.2: %w", ErrAbsent)
	}
	return c.shared[bpf.CoreMapNfsCopies].Put(uint32(0), fields)
}

// copyFields finds the client from the data of a thread that copies: struct nfsd4_copy, and in
// newer kernels struct nfsd4_async_copy, which has one in it (measured on 7.3).
func copyFields(known *hopTypes) (bpf.CoreCopyFields, bool) {
	client, address := known.at("nfsd4_copy", copyClient510, "cp_clp"), known.at("nfs4_client", clientAddress510, "cl_addr")
	if len(known.find("nfsd4_async_copy")) > 0 {
		copied := known.at("nfsd4_async_copy", unknownOffset, "cp_copy")
		client = offset{copied.bytes + client.bytes, copied.known && client.known}
	}
	return bpf.CoreCopyFields{Client: uint32(client.bytes), Address: uint32(address.bytes)}, client.known && address.known
}

// findCopies is for a server that runs already, and for one whose module is loaded later.
func (t *Tracer) findCopies(l *loader) {
	if !t.moduleIsLoaded(nfsdName) {
		return
	}
	err := l.findCopies()
	if err == nil {
		return
	}
	t.opt.Log.Debug("the clients of server-side copies are not known", "error", err)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.objects["core"].addLimitation(copiesOptional)
}

// Clients of the NFS server as owners: see bpf/core/client.h.
const (
	clientShift = 60
	clientInet6 = uint64(1) << 59
)

// IsClient tells whether an owner is a client of this host's NFS server.
func IsClient(cgroup uint64) bool { return cgroup>>clientShift == 1 }

// Client returns the address of an owner that IsClient. It is not valid where the owner
// is no client, or not known.
func (t *Tracer) Client(cgroup uint64) netip.Addr {
	switch {
	case !IsClient(cgroup):
		return netip.Addr{}
	case cgroup&clientInet6 == 0:
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], uint32(cgroup))
		return netip.AddrFrom4(b)
	}
	var a bpf.CoreClientAddress
	if err := t.core.shared[bpf.CoreMapNfsClients].Lookup(cgroup, &a); err != nil {
		t.opt.Log.Debug("an NFS client without an address", "error", err)
		return netip.Addr{}
	}
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], a.Word[0])
	binary.NativeEndian.PutUint64(b[8:], a.Word[1])
	return netip.AddrFrom16(b).Unmap()
}

// Export is a number for an exported directory; 0 where it is not known.
type Export uint32

// ExportOf returns the number of a directory by its inode number and the device of its
// superblock, as iot_export in bpf/nfsd/types.h.
func ExportOf(dev Dev, ino uint64) Export {
	hash := (ino ^ uint64(dev)<<32) * 0xD6E8FEB86659FD93
	return Export(hash>>32 | 1)
}
