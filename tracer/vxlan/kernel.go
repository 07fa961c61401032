package vxlan

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// variant is one way to see something: programs that are attached together.
type variant struct {
	name       string
	programs   []string
	limitation string // what it cannot see; "" when it sees all
}

// life lists the ways to see what happens to devices, the best first. The first that
// attaches is used, whatever the kernel's version.
var life = []variant{
	{name: "fentry/call_netdevice_notifiers_info", programs: []string{bpf.VXLANProgIotNotifyFentry}},
	{name: "kprobe/call_netdevice_notifiers_info", programs: []string{bpf.VXLANProgIotNotifyKprobe}},
	{
		name: "fentry/{register_netdevice,unregister_netdevice_queue}, kprobe/dev_change_net_namespace",
		programs: []string{
			bpf.VXLANProgIotRegisterFexit, bpf.VXLANProgIotUnregisterFentry,
			bpf.VXLANProgIotNetnsKprobe, bpf.VXLANProgIotNetnsReturn,
		},
		limitation: noChanges,
	},
	{
		name: "kprobe/{register_netdevice,unregister_netdevice_queue,dev_change_net_namespace}",
		programs: []string{
			bpf.VXLANProgIotRegisterKprobe, bpf.VXLANProgIotRegisterReturn, bpf.VXLANProgIotUnregisterKprobe,
			bpf.VXLANProgIotNetnsKprobe, bpf.VXLANProgIotNetnsReturn,
		},
		limitation: noChanges,
	},
}

const noRefusals = "no events when the creation of a device is refused"

const noChanges = "no events when a device is renamed or goes UP or DOWN"

// refusals lists the ways to see devices that could not be created, the best first.
var refusals = []variant{
	{name: "fexit/rtnl_newlink", programs: []string{bpf.VXLANProgIotNewlinkFexit}},
	{name: "kprobe/rtnl_newlink", programs: []string{bpf.VXLANProgIotNewlinkKprobe, bpf.VXLANProgIotNewlinkReturn}},
	{
		name: "raw_tp/netlink_extack", programs: []string{bpf.VXLANProgIotNetlinkExtack},
		limitation: "a refused creation is reported only if its VNI was taken, and without its name and VNI",
	},
}

const noUpRefusals = "no events when a device cannot be set UP; one that stays DOWN is reported after the grace period"

// openings lists the ways to see devices that could not be set UP, the best first.
var openings = []variant{
	{name: "fexit/__dev_change_flags", programs: []string{bpf.VXLANProgIotFlagsFexit}},
	{name: "kprobe/__dev_change_flags", programs: []string{bpf.VXLANProgIotFlagsKprobe, bpf.VXLANProgIotFlagsReturn}},
}

// kernel is the feed of the BPF programs of this package.
type kernel struct {
	programs   []*ebpf.Program
	maps       *ebpf.Collection
	closes     []io.Closer
	reader     *ringbuf.Reader
	chosen     []variant
	living     bool // a variant of life is attached, not only one of refusals
	noRefusals bool
	noOpenings bool

	module     string // folder of the module in sysfs
	moduleSeen uint64 // inode number of that folder: it changes with a reload
	drops      atomic.Uint64
}

// newKernel attaches what the kernel allows. It returns an error when that is nothing,
// and a feed together with an error when that is refusals only.
func newKernel(hierarchy uint32, skip []string) (*kernel, error) {
	spec, err := bpf.LoadVXLAN()
	if err != nil {
		return nil, fmt.Errorf("vxlan programs: %w", err)
	}
	if err := spec.Variables[bpf.VXLANVarHierarchyId].Set(hierarchy); err != nil {
		return nil, fmt.Errorf("vxlan programs: %w", err)
	}
	// Before 5.11 maps count as locked memory. If this fails, the maps below fail too.
	_ = rlimit.RemoveMemlock()
	k := &kernel{module: "/sys/module/vxlan"}
	maps := spec.Copy()
	clear(maps.Programs)
	clear(maps.Variables)
	for name := range maps.Maps {
		if strings.HasPrefix(name, ".") { // constants: each program has its own
			delete(maps.Maps, name)
		}
	}
	if k.maps, err = ebpf.NewCollection(maps); err != nil {
		return nil, fmt.Errorf("vxlan maps: %w", err)
	}
	if k.reader, err = ringbuf.NewReader(k.maps.Maps[bpf.VXLANMapDeviceEvents]); err != nil {
		return nil, errors.Join(fmt.Errorf("vxlan events: %w", err), k.close())
	}
	lifeErr := k.choose(spec, life, skip)
	k.living = lifeErr == nil
	if err := k.choose(spec, refusals, skip); err != nil && !k.living {
		return nil, errors.Join(lifeErr, err, k.close())
	} else if err != nil {
		k.noRefusals = true
	}
	k.noOpenings = k.choose(spec, openings, skip) != nil
	k.findModuleData()
	return k, lifeErr
}

// choose attaches the first variant that the kernel takes.
func (k *kernel) choose(spec *ebpf.CollectionSpec, variants []variant, skip []string) error {
	var why []error
	for _, v := range variants {
		if slices.ContainsFunc(skip, func(s string) bool { return strings.HasPrefix(v.name, s) }) {
			continue
		}
		closes, err := k.attach(spec, v)
		if err == nil {
			k.chosen = append(k.chosen, v)
			k.closes = append(k.closes, closes...)
			return nil
		}
		why = append(why, fmt.Errorf("%s: %w", v.name, err))
	}
	if len(why) == 0 {
		return errors.New("no hook left to try")
	}
	return errors.Join(why...)
}

func (k *kernel) attach(spec *ebpf.CollectionSpec, v variant) (closes []io.Closer, err error) {
	defer func() {
		if err != nil {
			for _, c := range slices.Backward(closes) {
				c.Close()
			}
			closes = nil
		}
	}()
	part := spec.Copy()
	for name := range part.Programs {
		if !slices.Contains(v.programs, name) {
			delete(part.Programs, name)
		}
	}
	loaded, err := ebpf.NewCollectionWithOptions(part, ebpf.CollectionOptions{MapReplacements: k.maps.Maps})
	if err != nil {
		return closes, err
	}
	defer loaded.Close() // all but the programs that are detached below
	for _, name := range v.programs {
		l, err := attach(part.Programs[name], loaded.Programs[name])
		if err != nil {
			return closes, err
		}
		closes = append(closes, l)
	}
	for _, name := range v.programs {
		p := loaded.DetachProgram(name)
		k.programs = append(k.programs, p)
		closes = append(closes, p)
	}
	return closes, nil
}

func attach(spec *ebpf.ProgramSpec, prog *ebpf.Program) (link.Link, error) {
	how, _, _ := strings.Cut(spec.SectionName, "/")
	switch how {
	case "fentry", "fexit":
		return link.AttachTracing(link.TracingOptions{Program: prog})
	case "raw_tp":
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: spec.AttachTo, Program: prog})
	}
	probe := link.Kprobe
	if how == "kretprobe" {
		probe = link.Kretprobe
	}
	l, err := probe(spec.AttachTo, prog, nil)
	if errors.Is(err, fs.ErrNotExist) && spec.AttachTo == "__dev_change_net_namespace" {
		// From 5.12 on the shorter name is only a wrapper of that
		// (eeb85a14ee34, "net: Allow to specify ifindex when device is moved to another namespace").
		l, err = probe("dev_change_net_namespace", prog, nil)
	}
	return l, err
}

func (k *kernel) hooks() string {
	names := make([]string, 0, len(k.chosen))
	for _, v := range k.chosen {
		names = append(names, v.name)
	}
	return strings.Join(names, ", ")
}

func (k *kernel) limitations() []string {
	var list []string
	if k.noRefusals {
		list = append(list, noRefusals)
	}
	if k.noOpenings {
		list = append(list, noUpRefusals)
	}
	for _, v := range k.chosen {
		if v.limitation != "" {
			list = append(list, v.limitation)
		}
	}
	return list
}

func (k *kernel) lost() uint64 {
	sum := k.drops.Load()
	var perCPU []uint64
	if k.maps.Maps[bpf.VXLANMapDeviceLosses].Lookup(uint32(0), &perCPU) == nil {
		for _, n := range perCPU {
			sum += n
		}
	}
	for _, p := range k.programs {
		// The kernel skips a program that already runs on that CPU; it counts this since 5.12.
		if stats, err := p.Stats(); err == nil {
			sum += stats.RecursionMisses
		}
	}
	return sum
}

func (k *kernel) close() error {
	var errs []error
	for _, c := range slices.Backward(k.closes) {
		errs = append(errs, c.Close())
	}
	if k.reader != nil {
		errs = append(errs, k.reader.Close())
	}
	if k.maps != nil {
		k.maps.Close()
	}
	return errors.Join(errs...)
}

// modulePeriod is how often to check whether the vxlan module was loaded again: its data
// is then elsewhere.
const modulePeriod = time.Second

func (k *kernel) run(ctx context.Context, out chan<- notice) error {
	// Not a deadline: setting one waits for the read that it should end.
	stop := context.AfterFunc(ctx, func() { _ = k.reader.Close() })
	defer stop()
	moduleDone := make(chan struct{})
	go func() {
		defer close(moduleDone)
		tick := time.NewTicker(modulePeriod)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				k.findModuleData()
			}
		}
	}()
	defer func() { <-moduleDone }()
	var record ringbuf.Record
	for {
		err := k.reader.ReadInto(&record)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("vxlan events: %w", err)
		}
		e, err := decode(record.RawSample, time.Now(), monotonic())
		if err != nil {
			k.drops.Add(1)
			continue
		}
		if e != nil {
			send(ctx, out, notice{event: e})
		}
	}
}

// monotonic returns the clock of the BPF programs' times, in nanoseconds.
func monotonic() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return uint64(ts.Nano())
}

var actions = map[bpf.VXLANIotDeviceAction]Action{
	bpf.VXLANIotDeviceActionIOT_DEVICE_CREATED:    Created,
	bpf.VXLANIotDeviceActionIOT_DEVICE_MOVED:      Moved,
	bpf.VXLANIotDeviceActionIOT_DEVICE_DELETED:    Deleted,
	bpf.VXLANIotDeviceActionIOT_DEVICE_RENAMED:    Renamed,
	bpf.VXLANIotDeviceActionIOT_DEVICE_UP:         WentUp,
	bpf.VXLANIotDeviceActionIOT_DEVICE_DOWN:       Down,
	bpf.VXLANIotDeviceActionIOT_DEVICE_REFUSED:    Refused,
	bpf.VXLANIotDeviceActionIOT_DEVICE_MESSAGE:    Refused,
	bpf.VXLANIotDeviceActionIOT_DEVICE_UP_REFUSED: UpRefused,
}

// vniTaken is the kernel's message when another device holds the VNI
// (drivers/net/vxlan/vxlan_core.c, vxlan_config_validate).
const vniTaken = "A VXLAN device with the specified VNI already exists"

// decode makes an event of a record; nil when the record is not about a vxlan device.
func decode(raw []byte, now time.Time, mono uint64) (*Event, error) {
	var r bpf.VXLANDeviceEvent
	if _, err := binary.Decode(raw, binary.NativeEndian, &r); err != nil {
		return nil, fmt.Errorf("record of %d bytes: %w", len(raw), err)
	}
	action, ok := actions[r.Action]
	if !ok {
		return nil, fmt.Errorf("record of unknown kind %d", r.Action)
	}
	e := &Event{
		Time: now.Add(-time.Duration(mono - r.Time)), Action: action, Device: deviceOf(&r.Device),
		ToNetNS: uint64(r.ToNetns), ToIfindex: int(r.ToIfindex),
		Actor: &Actor{PID: r.Pid, Comm: chars(r.Comm[:]), Cgroup: r.Cgroup},
	}
	if old := chars(r.OldName[:]); old != e.Name {
		e.OldName = old
	}
	if action == UpRefused && r.Error < 0 {
		e.Err = syscall.Errno(-r.Error)
	}
	if action != Refused {
		return e, nil
	}
	var refusal bpf.VXLANRefusal
	if _, err := binary.Decode(raw, binary.NativeEndian, &refusal); err != nil {
		return nil, fmt.Errorf("record of %d bytes: %w", len(raw), err)
	}
	request := refusal.Request[:min(int(refusal.Len), len(refusal.Request))]
	e.Err = syscall.EEXIST
	e.Kind = Kind
	if r.Action == bpf.VXLANIotDeviceActionIOT_DEVICE_MESSAGE {
		e.Message = text(request, len(request))
		if e.Message != vniTaken {
			return nil, nil
		}
		e.Reason = "its VNI is taken; neither the VNI nor the name can be seen on this kernel"
		return e, nil
	}
	asked, err := parseNewLink(request)
	if asked.Kind != Kind {
		return nil, nil // another kind of device, or a request cut short before its kind
	}
	if err != nil && asked.VNI == 0 {
		asked.VNI = refusal.Vni
	}
	e.Name, e.VNI, e.Port, e.Elsewhere = asked.Name, asked.VNI, asked.Port, asked.Elsewhere
	if holder := deviceOf(&refusal.Holder); holder.Ifindex != 0 {
		e.InTheWay = &holder
	}
	return e, nil
}

func deviceOf(d *bpf.VXLANIface) Device {
	return Device{
		Name: chars(d.Name[:]), Kind: Kind, Ifindex: int(d.Ifindex), NetNS: uint64(d.Netns), Underlay: uint64(d.Underlay),
		VNI: d.Vni, Port: uint16(d.Port), Up: d.Flags&unix.IFF_UP != 0,
	}
}

func chars(s []int8) string {
	b := make([]byte, 0, len(s))
	for _, c := range s {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// findModuleData tells the programs where the module keeps its index, so that they can
// go through all of its devices. The place changes when the module is loaded again.
func (k *kernel) findModuleData() {
	var inode uint64
	var st unix.Stat_t
	if unix.Stat(k.module, &st) == nil {
		inode = st.Ino
	}
	if inode == k.moduleSeen {
		return
	}
	var address uint64
	if inode != 0 {
		f, err := os.Open("/proc/kallsyms")
		if err != nil {
			return // only netlink then finds culprits
		}
		address = symbol(f, "vxlan_net_id")
		f.Close()
	}
	if k.maps.Maps[bpf.VXLANMapModuleData].Put(uint32(0), address) == nil {
		k.moduleSeen = inode
	}
}

// symbol returns the address of a symbol in a text like /proc/kallsyms; 0 when it is
// absent or hidden.
func symbol(r io.Reader, name string) uint64 {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		if len(fields) >= 3 && string(fields[2]) == name {
			address, err := strconv.ParseUint(string(fields[0]), 16, 64)
			if err != nil {
				return 0
			}
			return address
		}
	}
	return 0
}
