package output

import "testing"

// TestIdentityOfExport: an export that clients reach at several addresses of its server
// keeps its path, and equal paths of two servers are not one export.
func TestIdentityOfExport(t *testing.T) {
	nas := Host{Name: "nas"}
	sample := func(host Host, server, address, export string) Sample {
		return Sample{Host: host, Mount: Mount{NFSServer: server, NFSAddress: address, NFSExport: export}}
	}
	for name, c := range map[string]struct {
		a, b Sample
		want Mount
	}{
		"two addresses of a server":   {sample(nas, "", "10.9.1.1", "/srv"), sample(nas, "", "10.9.2.1", "/srv"), Mount{NFSExport: "/srv"}},
		"two exports":                 {sample(nas, "", "10.9.1.1", "/srv"), sample(nas, "", "10.9.1.1", "/home"), Mount{NFSAddress: "10.9.1.1"}},
		"two servers":                 {sample(nas, "", "10.9.1.1", "/srv"), sample(Host{Name: "nas2"}, "", "10.9.2.1", "/srv"), Mount{}},
		"mounts of it on two hosts":   {sample(Host{Name: "a"}, "nas", "10.9.1.1", "/srv"), sample(Host{Name: "b"}, "nas", "10.9.2.1", "/srv"), Mount{NFSServer: "nas", NFSExport: "/srv"}},
		"mounts of different servers": {sample(nas, "nas", "10.9.1.1", "/srv"), sample(nas, "nas2", "10.9.2.1", "/srv"), Mount{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := identityOf(&c.a, differing(&c.a, &c.b, 0)).Mount; got != c.want {
				t.Errorf("mount %+v, want %+v", got, c.want)
			}
		})
	}
}
