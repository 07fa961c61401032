package output_test

import (
	"slices"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// TestNFSClients: a client is one row however it is grouped, local containers keep theirs,
// and an export of this host is no export of another server.
func TestNFSClients(t *testing.T) {
	client := func(name, address, export string, written uint64) output.Sample {
		return output.Sample{
			Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerNFSClient,
			NFSClient: output.NFSClient{Name: name, Address: address}, Device: output.Device{ID: "8:0", Name: "sda"},
			Mount: output.Mount{NFSExport: export}, Write: output.Amount{Bytes: written, Ops: 1},
		}
	}
	local := output.Sample{
		Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer, Container: output.Container{ID: "aaaa", Name: "shop-web-1"},
		Device: output.Device{ID: "8:0", Name: "sda"}, Write: output.Amount{Bytes: 7, Ops: 1},
	}
	remote := local
	remote.Source, remote.Mount = output.SourceNFS, output.Mount{NFSServer: "nas1", NFSExport: "/srv/a"}
	iv := &output.Interval{Samples: []output.Sample{
		client("web1", "10.1.0.1", "/srv/a", 500), client("web1", "10.1.0.1", "/srv/b", 400), client("", "10.1.0.2", "/srv/a", 300),
		client("", "", "", 200), local, remote,
	}}
	web1, other, unknown := "nfs client web1 (10.1.0.1)|0|900", "nfs client 10.1.0.2|0|300", "nfs client (address unknown)|0|200"
	for _, c := range []struct {
		by, filter string
		want       []string
	}{
		{"container", "", []string{web1, other, unknown, "shop-web-1|0|14"}},
		{"project", "", []string{web1, other, unknown, "shop-web-1 (no project)|0|14"}},
		{"process", "nfs-client=*", []string{web1, other, unknown, "(no process)|0|14"}},
		{"nfs-client", "", []string{web1, other, unknown, "shop-web-1 (no nfs-client)|0|14"}},
		{"nfs-client", "nfs-client=web1", []string{web1}},
		{"nfs-client", "nfs-client=10.1.0.2", []string{other}},
		{"nfs-export", "", []string{"/srv/a|0|800", "/srv/b|0|400", unknown, "nas1:/srv/a|0|7", "shop-web-1 (no nfs-export)|0|7"}},
		{"nfs-client", "nfs-export=/srv/b", []string{"nfs client web1 (10.1.0.1)|0|400"}},
	} {
		opt := output.GroupOptions{By: outputtest.Keys(t, c.by)}
		if c.filter != "" {
			f, err := output.ParseFilter(c.filter)
			if err != nil {
				t.Fatal(err)
			}
			opt.Filters = []output.Filter{f}
		}
		if got := outputtest.RowTexts(output.Group(iv, opt).Rows); !slices.Equal(got, c.want) {
			t.Errorf("by %s, filter %q:\n%q, want\n%q", c.by, c.filter, got, c.want)
		}
	}
}
