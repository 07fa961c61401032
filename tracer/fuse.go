package tracer

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// planFUSE looks at this kernel's FUSE.
func planFUSE(c *loader, future bool) (*plan, error) {
	kernel, err := c.findFUSE(future)
	if err != nil {
		return nil, err
	}
	signals := kernel.signals(c.opt.App, c.preempts())
	spec, err := c.read(bpf.FUSEObject(), signals)
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[bpf.FUSEVarLayout].Set(kernel.layout); err != nil {
		return nil, fmt.Errorf("setting the layout: %w", err)
	}
	if err := spec.Variables[bpf.FUSEVarLayoutAssumed].Set(kernel.assumed); err != nil {
		return nil, fmt.Errorf("setting the layout: %w", err)
	}
	return &plan{spec, signals, ebpf.ProgramOptions{}, kernel.sums}, nil
}

// fuseKernel is what this kernel's FUSE is like.
type fuseKernel struct {
	types   *btf.Spec // nil where it has none
	sums    typesSum
	module  bool // not built into the kernel
	layout  bpf.FUSEOffsets
	assumed bool // the layout was not read from types
}

// findFUSE looks for FUSE in the kernel and in its modules. The error wraps
// ErrAbsent where this kernel has no FUSE that we can trace.
func (c *loader) findFUSE(future bool) (*fuseKernel, error) {
	k := &fuseKernel{types: c.types}
	if !c.haveFunc("fuse_request_end") {
		if _, err := os.Stat(sysfs + "/module/fuse"); err != nil && !future {
			return nil, &notLoadedError{fuseName}
		}
		types, sums, err := c.moduleTypes(future, fuseName)
		if err != nil {
			return nil, err
		}
		k.module, k.sums = true, sums
		if len(types) == 0 {
			return k, c.assumeFUSE(k)
		}
		k.types = types[0]
	}
	var err error
	k.layout, err = fuseLayout(k.types)
	return k, err
}

// assumeFUSE sets the layout of FUSE's structs for 5.10, the only kernel series
// that we support whose modules have no type information. The programs check each
// request against it.
func (c *loader) assumeFUSE(k *fuseKernel) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("asking for the kernel's release: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	if !strings.HasPrefix(release, "5.10.") {
		return fmt.Errorf("module %q has no type information, and its layout in kernel %q is not known: %w", fuseName, release, ErrAbsent)
	}
	dev, err := offsetIn(c.types, "super_block", "s_dev")
	if err != nil {
		return err
	}
	k.types, k.assumed, k.layout = nil, true, fuseLayout510
	k.layout.ConnDev, k.layout.MountDev = dev, dev
	return nil
}

// fuseLayout510 is the layout of Linux 5.10 on 64-bit machines, where the
// device number is that of the superblock.
var fuseLayout510 = bpf.FUSEOffsets{
	ReqArgs: 32, ReqFlags: 48, ReqError: 100, ReqLink: 144,
	LinkConn: 16, MountConn: 16,
	Opcode: 8, InValue: 32, OutSize: 72, OutValue: 80,
	Pages: 112, Io: 136, Inode: 200, IoAsync: 4, IoIocb: 48, IoBlocking: 64,
	Background: 1 << 2, Finished: 1 << 9,
}

// fuseLayout reads the layout of fuse's structs from their types. Two things
// changed since 5.10, and the members that exist tell which kernel this is: pages
// became folios, and since 7.2 a request names its channel instead of its mount.
func fuseLayout(types *btf.Spec) (bpf.FUSEOffsets, error) {
	var l bpf.FUSEOffsets
	var errs []error
	get := func(name string, path ...string) uint16 {
		off, err := offsetIn(types, name, path...)
		if err != nil {
			errs = append(errs, err)
		}
		return off
	}
	has := func(name, member string) bool {
		_, err := offsetIn(types, name, member)
		return err == nil
	}
	l.ReqArgs = get("fuse_req", "args")
	l.ReqFlags = get("fuse_req", "flags")
	if has("fuse_req", "create_time") {
		l.ReqCreated = get("fuse_req", "create_time")
	}
	l.ReqError = get("fuse_req", "out", "h", "error")
	if has("fuse_req", "chan") {
		l.ReqLink = get("fuse_req", "chan")
		l.LinkConn = get("fuse_chan", "conn")
	} else {
		l.ReqLink = get("fuse_req", "fm")
		l.LinkConn = get("fuse_mount", "fc")
	}
	l.ConnDev = get("fuse_conn", "dev")
	l.MountConn = get("fuse_mount", "fc")
	l.MountDev = l.ConnDev
	l.Opcode = get("fuse_args", "opcode")
	l.InValue = get("fuse_args", "in_args", "value")
	l.OutSize = get("fuse_args", "out_args", "size")
	l.OutValue = get("fuse_args", "out_args", "value")
	if has("fuse_args_pages", "folios") {
		l.Pages = get("fuse_args_pages", "folios")
	} else {
		l.Pages = get("fuse_args_pages", "pages")
	}
	ap := get("fuse_io_args", "ap")
	l.Io = get("fuse_io_args", "io") - ap
	l.Inode = get("fuse_writepage_args", "inode") - ap
	l.IoAsync = get("fuse_io_priv", "async")
	l.IoIocb = get("fuse_io_priv", "iocb")
	l.IoBlocking = get("fuse_io_priv", "blocking")
	for name, mask := range map[string]*uint16{"FR_BACKGROUND": &l.Background, "FR_FINISHED": &l.Finished} {
		bit, err := enumValue(types, "fuse_req_flag", name)
		if err != nil || bit > 15 {
			errs = append(errs, fmt.Errorf("no %q among the flags of requests: %w", name, errors.Join(err, ErrAbsent)))
			continue
		}
		*mask = 1 << bit
	}
	return l, errors.Join(errs...)
}

// offsetIn returns the offset in bytes of a struct's member, by its path; of an
// array it takes the first element. Modules of some kernels have a struct several
// times, each time the same. The error wraps ErrAbsent.
func offsetIn(types *btf.Spec, name string, path ...string) (uint16, error) {
	found, err := types.AnyTypesByName(name)
	if err != nil {
		return 0, fmt.Errorf("no struct %q: %w", name, errors.Join(err, ErrAbsent))
	}
	for _, t := range found {
		if _, ok := t.(*btf.Struct); !ok {
			continue
		}
		bits, ok := offsetBits(t, path)
		if ok && bits%8 == 0 && bits/8 <= math.MaxUint16 {
			return uint16(bits / 8), nil
		}
	}
	return 0, fmt.Errorf("no member %q in struct %q: %w", strings.Join(path, "."), name, ErrAbsent)
}

func offsetBits(t btf.Type, path []string) (btf.Bits, bool) {
	if len(path) == 0 {
		return 0, true
	}
	t = btf.UnderlyingType(t)
	if array, ok := t.(*btf.Array); ok {
		return offsetBits(array.Type, path)
	}
	var members []btf.Member
	switch t := t.(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		rest := path
		if m.Name != "" {
			if m.Name != path[0] {
				continue
			}
			rest = path[1:]
		}
		if bits, ok := offsetBits(m.Type, rest); ok {
			return m.Offset + bits, true
		}
	}
	return 0, false
}

func enumValue(types *btf.Spec, enum, name string) (uint64, error) {
	found, err := types.AnyTypesByName(enum)
	if err != nil {
		return 0, err
	}
	for _, t := range found {
		e, ok := t.(*btf.Enum)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			if v.Name == name {
				return v.Value, nil
			}
		}
	}
	return 0, fmt.Errorf("no value %q in enum %q", name, enum)
}

// has tells whether the types have a function, or a tracepoint by its typedef.
func (k *fuseKernel) has(name string) bool {
	if k.types == nil {
		return false
	}
	found, err := k.types.AnyTypesByName(name)
	return err == nil && len(found) > 0
}

var (
	fuseWaited = Limitation{
		Text: "a background request that waits in the queue (max_background) counts for the owner of its pages; " +
			"without pages it is unattributed",
		Remedy: needsFunctions,
	}
	fuseAppMissing = Limitation{
		Text:   "the application level (--level app) is not counted on FUSE",
		Remedy: needsFunctions,
	}
)

// signals returns the hooks to try. With tracepoints, the functions add only who
// submitted a background request; without tracepoints, functions are all there is.
// A kernel that preempts programs on tracepoints skips others meanwhile: there the
// function is the first choice for ends, because a request whose end was missed is
// not counted at all.
func (k *fuseKernel) signals(app, preempts bool) []signal {
	// The kernel cannot unload a module that an fentry program is attached to, and
	// skips the program while another run of it is preempted. A kprobe has neither
	// fault: it is skipped only while this process is preempted in a system call on a
	// map.
	probes := func(function, fentryProgram, kprobeProgram string) []hook {
		hooks := []hook{
			{kind: fentry, target: function, program: fentryProgram},
			{kind: kprobe, target: function, program: kprobeProgram},
		}
		if k.module || preempts {
			hooks[0], hooks[1] = hooks[1], hooks[0]
		}
		return hooks
	}
	end := signal{hooks: probes("fuse_request_end", bpf.FUSEProgIotFuseEndFentry, bpf.FUSEProgIotFuseEndKprobe)}
	background := signal{hooks: probes("fuse_simple_background",
		bpf.FUSEProgIotFuseBackgroundFentry, bpf.FUSEProgIotFuseBackgroundKprobe)}
	var send signal
	switch {
	case k.hasTracepoints():
		send.hooks = []hook{{kind: rawTracepoint, target: "fuse_request_send", program: bpf.FUSEProgIotFuseRequestSend}}
		end.hooks = []hook{{kind: rawTracepoint, target: "fuse_request_end", program: bpf.FUSEProgIotFuseRequestEnd}}
		if preempts {
			end.hooks = slices.Insert(end.hooks, 0, hook{kind: kprobe, target: "fuse_request_end", program: bpf.FUSEProgIotFuseRequestEndKprobe})
		}
		background.optional = fuseWaited
	case k.has("__fuse_simple_request"):
		send.hooks = probes("__fuse_simple_request",
			bpf.FUSEProgIotFuseRequestIdmapFentry, bpf.FUSEProgIotFuseRequestIdmapKprobe)
	default:
		send.hooks = probes("fuse_simple_request", bpf.FUSEProgIotFuseRequestFentry, bpf.FUSEProgIotFuseRequestKprobe)
	}
	// The end first: a request must not be sent and answered unseen while we attach.
	signals := append([]signal{end, background, send}, k.redundant(preempts)...)
	if app {
		signals = append(signals, k.appSignals()...)
	}
	return signals
}

// hasTracepoints tells whether tracepoints see requests: since 6.12.
func (k *fuseKernel) hasTracepoints() bool { return k.has("btf_trace_fuse_request_send") }

// redundant returns the second and third programs at the tracepoints. There is a third
// one because the second can be skipped as well: it may be preempted itself, and while
// this process reads maps kprobes are skipped too.
func (k *fuseKernel) redundant(preempts bool) []signal {
	if !k.hasTracepoints() {
		return nil
	}
	var signals []signal
	for _, h := range []hook{
		{kind: rawTracepoint, target: "fuse_request_end", program: bpf.FUSEProgIotFuseRequestEndSecond},
		{kind: rawTracepoint, target: "fuse_request_end", program: bpf.FUSEProgIotFuseRequestEndThird},
		{kind: rawTracepoint, target: "fuse_request_send", program: bpf.FUSEProgIotFuseRequestSendSecond},
		{kind: rawTracepoint, target: "fuse_request_send", program: bpf.FUSEProgIotFuseRequestSendThird},
	} {
		signals = append(signals, redundant(preempts, h)...)
	}
	return signals
}

func (k *fuseKernel) appSignals() []signal {
	calls := func(function, fexitProgram, enter, leave string) signal {
		hooks := []hook{
			{kind: fexit, target: function, program: fexitProgram},
			{
				kind: kretprobe, target: function, program: leave, entry: enter,
				limitation: Limitation{
					Text:   "the application level (--level app) misses calls when more run at once than the kernel's return probes can follow",
					Remedy: "a kernel with FUSE built in and CONFIG_FUNCTION_TRACER=y",
				},
			},
		}
		if k.module {
			hooks[0], hooks[1] = hooks[1], hooks[0]
		}
		return signal{hooks: hooks, optional: fuseAppMissing}
	}
	signals := []signal{
		calls("fuse_file_read_iter", bpf.FUSEProgIotFuseAppRead, bpf.FUSEProgIotFuseAppIterEnter, bpf.FUSEProgIotFuseAppReadLeave),
		calls("fuse_file_write_iter", bpf.FUSEProgIotFuseAppWrite, bpf.FUSEProgIotFuseAppIterEnter, bpf.FUSEProgIotFuseAppWriteLeave),
	}
	// Before 6.5 sendfile and splice read through fuse_file_read_iter.
	if k.has("fuse_splice_read") {
		signals = append(signals, calls("fuse_splice_read",
			bpf.FUSEProgIotFuseAppSplice, bpf.FUSEProgIotFuseAppSpliceEnter, bpf.FUSEProgIotFuseAppReadLeave))
	}
	return signals
}

// FUSEDaemons returns the pid of the process that answers for each FUSE file
// system used since New. Where several processes answer, it is the one that
// answered most requests.
func (t *Tracer) FUSEDaemons() map[Dev]uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	daemons := map[Dev]uint32{}
	o := t.objects[fuseName]
	if o == nil {
		return daemons
	}
	most := map[Dev]uint64{}
	var key bpf.FUSEDaemon
	var answered uint64
	it := o.maps[bpf.FUSEMapDaemons].Iterate()
	for it.Next(&key, &answered) {
		if dev := Dev(key.Dev); answered > most[dev] {
			most[dev], daemons[dev] = answered, key.Pid
		}
	}
	if err := it.Err(); err != nil {
		t.opt.Log.Debug("cannot read the FUSE daemons", "error", err)
	}
	return daemons
}

const fuseName = "fuse"
