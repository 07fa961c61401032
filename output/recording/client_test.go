package recording

import (
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// TestNFSClientRecorded: the client of an NFS server is the same after a replay.
func TestNFSClientRecorded(t *testing.T) {
	s := output.Sample{
		Source: output.SourceNFSD, Level: output.LevelWire, Owner: output.OwnerNFSClient, NFSClient: output.NFSClient{Address: "fd00::1", Name: "web1"},
		Mount: output.Mount{NFSExport: "/srv/a"}, Read: output.Amount{Bytes: 5, Ops: 1},
	}
	path := filepath.Join(t.TempDir(), "clients.rec")
	start := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	record(t, path, Options{}, &output.Interval{Start: start, End: start.Add(time.Second), Samples: []output.Sample{s}})
	ivs, damage := replay(t, path)
	if len(ivs) != 1 || len(damage) != 0 || !reflect.DeepEqual(ivs[0].Samples, []output.Sample{s}) {
		t.Errorf("replayed %+v, damage %v, want %+v", ivs, damage, s)
	}
}

// TestIdentityBeforeClients: recordings from before there were clients play.
func TestIdentityBeforeClients(t *testing.T) {
	e, err := newEncoder()
	if err != nil {
		t.Fatal(err)
	}
	e.w = &wireInterval{}
	s := output.Sample{Source: output.SourceNFS, Owner: output.OwnerContainer, Mount: output.Mount{NFSServer: "nas1", NFSAddress: "10.0.0.9", NFSPort: 2050}}
	e.ident(&s)
	row := e.w.Idents[:serverWidth]
	w := &wireInterval{Strings: e.w.Strings, Width: serverWidth, Idents: row}
	names := newNameTables()
	if err := names.learn(w, 4096); err != nil {
		t.Fatal(err)
	}
	if got := names.idents[0]; !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, want %+v", got, s)
	}
}
