package vxlan

import (
	"bytes"
	"encoding/binary"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

func record(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func int8s(s string) (a [16]int8) {
	for i := range len(s) {
		a[i] = int8(s[i])
	}
	return a
}

func kernelEvent(action bpf.VXLANIotDeviceAction) bpf.VXLANDeviceEvent {
	return bpf.VXLANDeviceEvent{
		Action: action, Pid: 7, Time: 4_000_000_000, Cgroup: 1 << 33,
		Device: bpf.VXLANIface{Ifindex: 5, Netns: 4026531840, Underlay: 4026531840, Vni: 4097, Flags: 0x1003, Port: 4789, Name: int8s("vxlan0")},
		Comm:   int8s("dockerd"), ToNetns: 4026532000, ToIfindex: 6, OldName: int8s("vx-001001-m64nq"),
	}
}

func TestDecode(t *testing.T) {
	now := time.Unix(1000, 0)
	e, err := decode(record(t, kernelEvent(bpf.VXLANIotDeviceActionIOT_DEVICE_MOVED)), now, 6_000_000_000)
	if err != nil {
		t.Fatal(err)
	}
	want := Event{
		Time: time.Unix(998, 0), Action: Moved, OldName: "vx-001001-m64nq", ToNetNS: 4026532000, ToIfindex: 6,
		Device: Device{Name: "vxlan0", Kind: Kind, Ifindex: 5, NetNS: 4026531840, Underlay: 4026531840, VNI: 4097, Port: 4789, Up: true},
	}
	actor := *e.Actor
	e.Actor = nil
	if !equal(*e, want) || actor != (Actor{PID: 7, Comm: "dockerd", Cgroup: 1 << 33}) {
		t.Errorf("decode = %+v by %+v, want %+v", e, actor, want)
	}
}

func TestDecodeRefusal(t *testing.T) {
	refusal := func(request []byte) bpf.VXLANRefusal {
		r := bpf.VXLANRefusal{Event: kernelEvent(bpf.VXLANIotDeviceActionIOT_DEVICE_REFUSED), Vni: 77, Len: uint32(len(request))}
		r.Event.Device = bpf.VXLANIface{Netns: 4026531840}
		copy(r.Request[:], request)
		return r
	}
	r := refusal(request(attr(3, []byte("vx-001001-m64nq\x00")), vxlanInfo("vxlan", 4097, 4789)))
	r.Holder = bpf.VXLANIface{Ifindex: 9, Netns: 4026532000, Underlay: 4026531840, Vni: 4097, Name: int8s("hidden")}
	e, err := decode(record(t, r), time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if e.Action != Refused || e.Name != "vx-001001-m64nq" || e.VNI != 4097 || e.Port != 4789 || e.NetNS != 4026531840 || e.Err != syscall.EEXIST ||
		e.InTheWay == nil || e.InTheWay.Name != "hidden" || e.InTheWay.NetNS != 4026532000 {
		t.Errorf("decode = %+v", e)
	}
	for what, request := range map[string][]byte{
		"another kind": request(vxlanInfo("bridge", 4097, 4789)), "no kind": request(attr(3, []byte("br0\x00"))), "nothing": nil,
	} {
		if e, err := decode(record(t, refusal(request)), time.Now(), 0); e != nil || err != nil {
			t.Errorf("%s: %+v, %v", what, e, err)
		}
	}
	message := refusal([]byte(vniTaken + "\x00"))
	message.Event.Action = bpf.VXLANIotDeviceActionIOT_DEVICE_MESSAGE
	if e, err = decode(record(t, message), time.Now(), 0); err != nil || e == nil || e.Message != vniTaken || e.Reason == "" {
		t.Errorf("message: %+v, %v", e, err)
	}
	message = refusal([]byte("A VXLAN device of another mind\x00"))
	message.Event.Action = bpf.VXLANIotDeviceActionIOT_DEVICE_MESSAGE
	if e, err = decode(record(t, message), time.Now(), 0); err != nil || e != nil {
		t.Errorf("another message: %+v, %v", e, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(f, kernelEvent(bpf.VXLANIotDeviceActionIOT_DEVICE_CREATED)))
	f.Add(record(f, bpf.VXLANRefusal{Event: kernelEvent(bpf.VXLANIotDeviceActionIOT_DEVICE_REFUSED), Len: 1 << 31}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decode(raw, time.Now(), 0)
		if err != nil && e != nil {
			t.Errorf("event %+v with error %v", e, err)
		}
		if e != nil && (len(e.Name) > 16 || e.Actor == nil) {
			t.Errorf("event %+v", e)
		}
	})
}

func TestSymbol(t *testing.T) {
	const table = `ffffffff81000000 T _stext
ffffffffc09a1010 b vxlan_net_id_not	[vxlan]
ffffffffc09a1018 b vxlan_net_id	[vxlan]
`
	for text, want := range map[string]uint64{
		table: 0xffffffffc09a1018, "": 0, "0000000000000000 b vxlan_net_id	[vxlan]\n": 0, "zz b vxlan_net_id\n": 0, "vxlan_net_id\n": 0,
	} {
		if got := symbol(strings.NewReader(text), "vxlan_net_id"); got != want {
			t.Errorf("symbol in %q = %#x, want %#x", text, got, want)
		}
	}
}

// TestModelRepairs: events may be older than the look at everything that came
// before them, or be missing.
func TestModelRepairs(t *testing.T) {
	const host, overlay = 100, 200
	now := time.Unix(1000, 0)
	dev := Device{Name: "vx-001001-m64nq", Kind: Kind, Ifindex: 5, NetNS: host, Underlay: host, VNI: 4097, Port: 4789}
	there := dev
	there.NetNS, there.Name, there.Up = overlay, "vxlan0", true
	spaces := map[uint64]Namespace{host: {Inode: host, Host: true}, overlay: {Inode: overlay}}
	m := NewModel(host)
	m.Update(&Snapshot{Time: now, Host: host, Namespaces: spaces, Devices: []Device{there}})
	// How it came there is told late.
	moved := Event{Time: now.Add(-time.Second), Action: Moved, Device: dev, ToNetNS: overlay, ToIfindex: 5, Actor: &Actor{PID: 2}}
	for _, e := range []Event{
		{Time: now.Add(-2 * time.Second), Action: Created, Device: dev, Actor: &Actor{PID: 1}}, moved,
		{Time: now.Add(-time.Second), Action: Renamed, Device: func() Device { d := there; d.Up = false; return d }()},
		{Time: now.Add(-time.Second), Action: WentUp, Device: there},
	} {
		m.Apply(&e)
	}
	list := m.Devices()
	if len(list) != 1 || list[0].Device != there || list[0].Maker == nil || list[0].Maker.PID != 1 || list[0].Mover.PID != 2 || !list[0].DownSince.IsZero() {
		t.Fatalf("devices %+v", list)
	}
	// A namespace that nobody can look into keeps its devices, one that was read does not.
	m.Update(&Snapshot{Time: now, Host: host, Namespaces: map[uint64]Namespace{host: spaces[host]}})
	if len(m.Devices()) != 1 {
		t.Error("a device in a namespace that could not be read was forgotten")
	}
	m.Update(&Snapshot{Time: now, Host: host, Namespaces: spaces})
	if len(m.Devices()) != 0 {
		t.Errorf("devices that are gone: %+v", m.Devices())
	}
	// Whatever was DOWN while events were lost may have been UP.
	m.Update(&Snapshot{Time: now, Host: host, Namespaces: spaces, Devices: []Device{dev}})
	if len(m.Expired(now.Add(11*time.Second), 10*time.Second)) != 1 {
		t.Error("a device that is DOWN for the grace period is not leaked")
	}
	m = NewModel(host)
	m.Update(&Snapshot{Time: now, Host: host, Namespaces: spaces, Devices: []Device{dev}})
	m.MarkStale(now.Add(5 * time.Second))
	if len(m.Expired(now.Add(11*time.Second), 10*time.Second)) != 0 {
		t.Error("a device is leaked although events were lost within the grace period")
	}
}

// TestCulprit: the name comes first, then what the kernel itself found, then the
// VNI in the same underlay and on the same port.
func TestCulprit(t *testing.T) {
	const host, other = 100, 200
	m := NewModel(host)
	devices := []Device{
		{Name: "named", Kind: Kind, Ifindex: 1, NetNS: host, Underlay: host, VNI: 1, Port: 4789},
		{Name: "moved", Kind: Kind, Ifindex: 2, NetNS: other, Underlay: host, VNI: 2, Port: 4789},
		{Name: "port", Kind: Kind, Ifindex: 3, NetNS: host, Underlay: host, VNI: 3, Port: 8472},
		{Name: "own", Kind: Kind, Ifindex: 4, NetNS: other, Underlay: other, VNI: 4, Port: 4789},
	}
	m.Update(&Snapshot{Time: time.Now(), Host: host, Namespaces: map[uint64]Namespace{host: {}, other: {}}, Devices: devices})
	hidden := &Device{Name: "hidden", Kind: Kind, Ifindex: 9, NetNS: 300, Underlay: host, VNI: 9}
	for what, c := range map[string]struct {
		asked     Device
		holder    *Device
		others    []Device
		elsewhere bool
		want      string
	}{
		"name":                           {asked: Device{Name: "named", VNI: 2}, want: "named"},
		"name before the VNI":            {asked: Device{Name: "named", VNI: 9}, holder: hidden, want: "named"},
		"name of another kind":           {asked: Device{Name: "br0", VNI: 77}, others: []Device{{Name: "br0", Kind: "bridge", NetNS: host}}, want: "br0"},
		"VNI, moved":                     {asked: Device{Name: "new", VNI: 2}, want: "moved"},
		"VNI, found by the kernel":       {asked: Device{Name: "new", VNI: 9}, holder: hidden, want: "hidden"},
		"VNI, another port":              {asked: Device{Name: "new", VNI: 3}},
		"VNI, the same other port":       {asked: Device{Name: "new", VNI: 3, Port: 8472}, want: "port"},
		"VNI, another underlay":          {asked: Device{Name: "new", VNI: 4}},
		"name, but in another space":     {asked: Device{Name: "moved", VNI: 77}},
		"name in the space asked for":    {asked: Device{Name: "own", VNI: 77}, elsewhere: true, want: "own"},
		"name here, asked for elsewhere": {asked: Device{Name: "named", VNI: 77}, elsewhere: true},
		"nothing":                        {asked: Device{Name: "new", VNI: 77}},
	} {
		c.asked.NetNS = host
		e := &Event{Time: time.Now(), Action: Refused, Device: c.asked, InTheWay: c.holder, Elsewhere: c.elsewhere}
		got := ""
		if tr := m.CulpritOf(e, c.others); tr != nil {
			got = tr.Name
		}
		if got != c.want {
			t.Errorf("%s: culprit %q, want %q", what, got, c.want)
		}
	}
}
