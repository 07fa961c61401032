package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

var (
	u8  = &btf.Int{Name: "u8", Size: 1}
	u32 = &btf.Int{Name: "u32", Size: 4}
	u64 = &btf.Int{Name: "u64", Size: 8}
	ptr = &btf.Pointer{Target: (*btf.Void)(nil)}
)

// member is a member of a struct at an offset in bytes.
func member(name string, at uint32, t btf.Type) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: btf.Bits(at * 8)}
}

func structure(name string, size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: size, Members: members}
}

// specOf makes kernel types as they are read from a file.
func specOf(t *testing.T, types ...btf.Type) *btf.Spec {
	t.Helper()
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// fuseTypes are the structs as Linux 6.1 has them, or as 7.2 does.
func fuseTypes(channels bool) []btf.Type {
	inArg := structure("fuse_in_arg", 16, member("size", 0, u32), member("value", 8, ptr))
	arg := structure("fuse_arg", 16, member("size", 0, u32), member("value", 8, ptr))
	header := structure("fuse_out_header", 16, member("len", 0, u32), member("error", 4, u32))
	conn := structure("fuse_conn", 1024, member("dev", 700, u32))
	mount := structure("fuse_mount", 48, member("fc", 0, &btf.Pointer{Target: conn}), member("sb", 8, ptr))
	link, args, pages := member("fm", 144, &btf.Pointer{Target: mount}), uint32(24), member("pages", 112, ptr)
	types := []btf.Type{conn, mount}
	if channels {
		channel := structure("fuse_chan", 64, member("conn", 40, &btf.Pointer{Target: conn}))
		link, args, pages = member("chan", 144, &btf.Pointer{Target: channel}), 32, member("folios", 144, ptr)
		types = append(types, channel)
	}
	fuseArgs := structure("fuse_args", 128, member("opcode", 8, u32),
		member("in_args", args, &btf.Array{Type: inArg, Index: u32, Nelems: 4}),
		member("out_args", args+64, &btf.Array{Type: arg, Index: u32, Nelems: 2}))
	ap := structure("fuse_args_pages", 160, member("args", 0, fuseArgs), pages)
	io := structure("fuse_io_priv", 72, member("async", 4, u32), member("iocb", 40, ptr), member("blocking", 64, u8))
	// The part before ap is a union of anonymous structs in the kernel as well.
	reads := &btf.Union{Size: 56, Members: []btf.Member{member("read", 0, structure("", 56, member("attr_ver", 48, u64)))}}
	ioArgs := structure("fuse_io_args", 232, member("", 0, reads), member("ap", 56, ap), member("io", 216, &btf.Pointer{Target: io}))
	page := structure("fuse_writepage_args", 280, member("ia", 0, ioArgs), member("inode", 256, ptr))
	req := structure("fuse_req", 200, member("args", 32, &btf.Pointer{Target: fuseArgs}), member("flags", 48, u64),
		member("out", 96, structure("", 16, member("h", 0, header))), link)
	flags := &btf.Enum{Name: "fuse_req_flag", Size: 4, Values: []btf.EnumValue{{Name: "FR_BACKGROUND", Value: 2}, {Name: "FR_FINISHED", Value: 9}}}
	return append(types, fuseArgs, ap, io, ioArgs, page, req, flags)
}

func TestFUSELayout(t *testing.T) {
	common := bpf.FUSEOffsets{
		ReqArgs: 32, ReqFlags: 48, ReqError: 100, ReqLink: 144, ConnDev: 700, MountConn: 0, MountDev: 700,
		Opcode: 8, Io: 160, Inode: 200, IoAsync: 4, IoBlocking: 64, IoIocb: 40, Background: 1 << 2, Finished: 1 << 9,
	}
	old, channels := common, common
	old.LinkConn, old.InValue, old.OutSize, old.OutValue, old.Pages = 0, 32, 88, 96, 112
	channels.LinkConn, channels.InValue, channels.OutSize, channels.OutValue, channels.Pages = 40, 40, 96, 104, 144
	for name, c := range map[string]struct {
		types []btf.Type
		want  bpf.FUSEOffsets
	}{
		"requests name their mount and pages":     {fuseTypes(false), old},
		"requests name their channel and folios":  {fuseTypes(true), channels},
		"a type twice, once without what we need": {append(fuseTypes(false), structure("fuse_conn", 8)), old},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := fuseLayout(specOf(t, c.types...))
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// A kernel that changed what we depend on must be refused, not misread.
func TestFUSELayoutRefused(t *testing.T) {
	for drop := range fuseTypes(true) {
		types := slices.Delete(fuseTypes(true), drop, drop+1)
		renamed := fuseTypes(true)[drop]
		switch r := renamed.(type) {
		case *btf.Struct:
			r.Name += "_v2"
		case *btf.Enum:
			r.Name += "_v2"
		}
		// Types that are still pointed to come along with their pointers: rename them there.
		for _, t := range types {
			renameAll(t, renamed.TypeName()[:len(renamed.TypeName())-3], map[btf.Type]bool{})
		}
		_, err := fuseLayout(specOf(t, types...))
		if !errors.Is(err, ErrAbsent) {
			t.Errorf("without %q: error %v, want one of a source that is absent", renamed.TypeName(), err)
		}
	}
}

// renameAll renames every struct of that name that a type leads to.
func renameAll(t btf.Type, name string, seen map[btf.Type]bool) {
	if t == nil || seen[t] {
		return
	}
	seen[t] = true
	switch t := t.(type) {
	case *btf.Struct:
		if t.Name == name {
			t.Name += "_v2"
		}
		for _, m := range t.Members {
			renameAll(m.Type, name, seen)
		}
	case *btf.Union:
		for _, m := range t.Members {
			renameAll(m.Type, name, seen)
		}
	case *btf.Pointer:
		renameAll(t.Target, name, seen)
	case *btf.Array:
		renameAll(t.Type, name, seen)
	}
}

// What we assume of 5.10 is what its types would say, were they there: the same
// sources give the same offsets on 6.1 but for the superblock.
func TestFUSELayoutAssumed(t *testing.T) {
	l := fuseLayout510
	if l.Io != l.Pages+24 || l.OutValue != l.OutSize+8 || l.InValue >= l.OutSize || l.ReqError != 96+4 {
		t.Errorf("offsets of 5.10 contradict each other: %+v", l)
	}
	if l.Background != 1<<2 || l.Finished != 1<<9 {
		t.Errorf("flags of 5.10: background %#x, finished %#x", l.Background, l.Finished)
	}
}

func TestFUSESignals(t *testing.T) {
	tracepoints := func() []btf.Type {
		proto := &btf.FuncProto{Return: (*btf.Void)(nil)}
		return append(fuseTypes(true), &btf.Typedef{Name: "btf_trace_fuse_request_send", Type: &btf.Pointer{Target: proto}})
	}
	function := func(name string) []btf.Type {
		return append(fuseTypes(false), &btf.Func{Name: name, Type: &btf.FuncProto{Return: (*btf.Void)(nil)}, Linkage: btf.StaticFunc})
	}
	for name, c := range map[string]struct {
		kernel   fuseKernel
		preempts bool
		want     []string // first choice of each signal, the end of requests first
		optional []bool
	}{
		"tracepoints":    {fuseKernel{types: specOf(t, tracepoints()...)}, false, []string{"raw_tp/fuse_request_end", "fentry/fuse_simple_background", "raw_tp/fuse_request_send"}, []bool{false, true, false}},
		"preempted":      {fuseKernel{types: specOf(t, tracepoints()...)}, true, []string{"kprobe/fuse_request_end", "kprobe/fuse_simple_background", "raw_tp/fuse_request_send", "raw_tp/fuse_request_end", "raw_tp/fuse_request_end", "raw_tp/fuse_request_send", "raw_tp/fuse_request_send"}, []bool{false, true, false, true, true, true, true}},
		"with idmap":     {fuseKernel{types: specOf(t, function("__fuse_simple_request")...)}, false, []string{"fentry/fuse_request_end", "fentry/fuse_simple_background", "fentry/__fuse_simple_request"}, []bool{false, false, false}},
		"module":         {fuseKernel{types: specOf(t, function("fuse_simple_request")...), module: true}, false, []string{"kprobe/fuse_request_end", "kprobe/fuse_simple_background", "kprobe/fuse_simple_request"}, []bool{false, false, false}},
		"module, no BTF": {fuseKernel{module: true, assumed: true}, false, []string{"kprobe/fuse_request_end", "kprobe/fuse_simple_background", "kprobe/fuse_simple_request"}, []bool{false, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := bpf.LoadFUSE()
			if err != nil {
				t.Fatal(err)
			}
			signals := c.kernel.signals(false, c.preempts)
			var got []string
			for i, s := range signals {
				got = append(got, s.hooks[0].String())
				if (s.optional != Limitation{}) != c.optional[i] {
					t.Errorf("%s optional: %+v", got[i], s.optional)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			for _, s := range c.kernel.signals(true, c.preempts) {
				for _, h := range s.hooks {
					for _, p := range []string{h.program, h.entry} {
						if p != "" && spec.Programs[p] == nil {
							t.Errorf("hook %s: the object has no program %q", h, p)
						}
					}
				}
			}
		})
	}
}
