package vxlan

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func request(attrs ...[]byte) []byte {
	body := make([]byte, 32)
	for _, a := range attrs {
		body = append(body, a...)
	}
	binary.NativeEndian.PutUint32(body, uint32(len(body)))
	binary.NativeEndian.PutUint16(body[4:], unix.RTM_NEWLINK)
	return body
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func vxlanInfo(kind string, vni uint32, port uint16) []byte {
	data := append(attr(iflaVxlanID, u32(vni)), attr(iflaVxlanPort, binary.BigEndian.AppendUint16(nil, port))...)
	return attr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, append(
		attr(iflaInfoKind, []byte(kind)), attr(iflaInfoData|unix.NLA_F_NESTED, data)...))
}

func TestParseNewLink(t *testing.T) {
	full := request(attr(unix.IFLA_IFNAME, []byte("vx-001001-m64nq\x00")), vxlanInfo("vxlan", 4097, 4789))
	for name, c := range map[string]struct {
		in    []byte
		want  newLink
		short bool
	}{
		"docker's":         {full, newLink{Name: "vx-001001-m64nq", Kind: "vxlan", VNI: 4097, Port: 4789}, false},
		"kind with NUL":    {request(vxlanInfo("vxlan\x00", 7, 8472)), newLink{Kind: "vxlan", VNI: 7, Port: 8472}, false},
		"other kind":       {request(vxlanInfo("geneve", 7, 6081)), newLink{Kind: "geneve"}, false},
		"no name, a bare":  {request(), newLink{}, false},
		"other namespace":  {request(attr(unix.IFLA_NET_NS_FD, u32(3)), vxlanInfo("vxlan", 9, 1)), newLink{Kind: "vxlan", VNI: 9, Port: 1, Elsewhere: true}, false},
		"trailing garbage": {append(slices.Clone(full), 1, 2, 3, 4, 5), newLink{Name: "vx-001001-m64nq", Kind: "vxlan", VNI: 4097, Port: 4789}, false},
		"buffer too small": {full[:52], newLink{Name: "vx-001001-m64nq"}, true},
		"attribute of 0":   {request(attr(unix.IFLA_IFNAME, []byte("a\x00")), make([]byte, 8)), newLink{Name: "a"}, true},
		"name too long":    {request(attr(unix.IFLA_IFNAME, []byte("0123456789abcdefghij"))), newLink{Name: "0123456789abcde"}, false},
		"nothing":          {nil, newLink{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseNewLink(c.in)
			if got != c.want || (err != nil) != c.short {
				t.Errorf("parseNewLink = %+v, %v; want %+v, short %v", got, err, c.want, c.short)
			}
		})
	}
}

func FuzzParseNewLink(f *testing.F) {
	f.Add(request(attr(unix.IFLA_IFNAME, []byte("vx-001001-m64nq\x00")), vxlanInfo("vxlan", 4097, 4789)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, _ := parseNewLink(b)
		if len(n.Name) > 15 || len(n.Kind) > 15 {
			t.Errorf("name %q, kind %q are longer than the kernel takes", n.Name, n.Kind)
		}
		if n.Kind != Kind && (n.VNI != 0 || n.Port != 0) {
			t.Errorf("VNI %d, port %d of kind %q", n.VNI, n.Port, n.Kind)
		}
	})
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]struct {
		vni uint32
		id  string
		ok  bool
	}{
		"vx-001001-m64nq":    {4097, "m64nq", true},
		"vx-00ff0a-0a1b2":    {0xff0a, "0a1b2", true},
		"vx-001001-m64n":     {},
		"vx-001001-m64nqt":   {},
		"vx-001001-M64NQ":    {},
		"vx-00FF0A-m64nq":    {},
		"vx-1001-m64nq":      {},
		"vx-001001_m64nq":    {},
		"vx-+01001-m64nq":    {},
		"vx-0x1001-m64nq":    {},
		"vx-000000-m64nq":    {},
		"vx-001001-m64n\x1b": {},
		"flannel.1":          {},
		"vxlan.calico":       {},
		"vxlan0":             {},
		"":                   {},
	} {
		vni, id, ok := ParseName(name)
		if vni != want.vni || id != want.id || ok != want.ok {
			t.Errorf("ParseName(%q) = %d, %q, %v; want %+v", name, vni, id, ok, want)
		}
	}
}

func TestOverlayID(t *testing.T) {
	for path, want := range map[string]string{
		"/run/docker/netns/1-m64nqtdens":  "m64nqtdens",
		"/run/docker/netns/12-m64nqtdens": "m64nqtdens",
		"/run/docker/netns/lb_m64nqtden":  "",
		"/run/docker/netns/ingress_sbox":  "",
		"/run/docker/netns/3f29e1c7a0bd":  "",
		"/run/docker/netns/default":       "",
		"/run/docker/netns/1-":            "",
		"/run/docker/netns/x-m64nqtdens":  "",
		"/run/netns/1-M64NQ":              "",
	} {
		if got := overlayID(path); got != want {
			t.Errorf("overlayID(%q) = %q, want %q", path, got, want)
		}
	}
}
