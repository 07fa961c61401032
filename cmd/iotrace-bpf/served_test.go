package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

// twoClients are recordings of two clients with two projects each, and of their server, whose
// disk writes later than they send: in all one part in 100 more than the clients sent.
func twoClients(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	start := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	write := func(name string, samples func(second int) []output.Sample) {
		host := output.Host{Name: name, ID: name + "-id"}
		rec, err := recording.Create(filepath.Join(dir, name+".rec"), recording.Options{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		for k := range 30 {
			at := start.Add(time.Duration(k) * time.Second)
			if err := rec.Write(&output.Interval{Start: at, End: at.Add(time.Second), Host: host, Samples: samples(k)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"web1", "web2"} {
		address := []string{"10.9.1.2", "10.9.2.2"}[i]
		write(name, func(second int) (list []output.Sample) {
			for k, project := range []string{"shop", "bank"} {
				if second/10 == k { // one after the other
					list = append(list, output.Sample{
						Source: output.SourceNFS, Level: output.LevelWire, Owner: output.OwnerContainer, Project: project,
						Container: output.Container{ID: project + name, Name: project + "-db-1"}, NFSClient: output.NFSClient{Address: address},
						Device: output.Device{ID: "0:50"}, Write: output.Amount{Bytes: uint64(i+1) * uint64(k+1) * 100_000, Ops: 1},
						Mount: output.Mount{Source: "nas:/exported", NFSServer: "nas", NFSAddress: "10.9.0.1", NFSExport: "/exported"},
					})
				}
			}
			return list
		})
	}
	write("nas", func(second int) (list []output.Sample) {
		for i, address := range []string{"10.9.1.2", "10.9.2.2"} {
			if second >= 20 {
				list = append(list, output.Sample{
					Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerNFSClient, NFSClient: output.NFSClient{Address: address},
					Device: output.Device{ID: "8:0", Name: "sda"}, Mount: output.Mount{NFSExport: "/srv/exported", NFSAddress: "10.9.0.1"},
					Write: output.Amount{Bytes: uint64(i+1) * 303_000, Ops: 3},
				})
			}
		}
		return list
	})
	return dir
}

// TestReplayBothSides asks recordings of clients and of their server which project loads the
// server's disk.
func TestReplayBothSides(t *testing.T) {
	dir := twoClients(t)
	file := func(name string) string { return filepath.Join(dir, name+".rec") }
	for _, c := range []struct {
		name    string
		files   []string
		args    []string
		want    map[string]uint64
		says    string
		doesNot string
	}{
		{"both sides", []string{dir}, []string{"--source", "block"},
			map[string]uint64{"shop": 3_030_000, "bank": 6_060_000}, "", "NFS clients"},
		{"both sides, in longer intervals", []string{dir, "7s"}, []string{"--source", "block"},
			map[string]uint64{"shop": 3_030_000, "bank": 6_060_000}, "", "NFS clients"},
		{"without a client", []string{file("web1"), file("nas")}, []string{"--source", "block"},
			map[string]uint64{"shop": 1_010_000, "bank": 2_020_000, "nfs client 10.9.2.2, does not report": 6_060_000},
			"5.78MiB of 8.67MiB that this server did for NFS clients (67 %) cannot be told by project", "twice"},
		{"with what the clients sent", []string{dir}, nil,
			map[string]uint64{"shop": 6_030_000, "bank": 12_060_000}, "TOTAL has the same bytes twice", "cannot be told"},
		{"the server alone", []string{file("nas")}, nil, map[string]uint64{"nfs client 10.9.1.2": 3_030_000, "nfs client 10.9.2.2": 6_060_000}, "", "NFS clients"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append(append([]string{"replay"}, c.files...), append([]string{"--output", "ndjson", "--by", "project,nfs-export"}, c.args...)...)
			if code := run(t.Context(), args, &stdout, &stderr); code != exitOK {
				t.Fatalf("exit code %d: %s", code, stderr.String())
			}
			got := map[string]uint64{}
			for line := range strings.Lines(stdout.String()) {
				var d struct {
					Event   struct{ Dataset string }
					Iotrace struct {
						Group struct{ Name []string }
						Write struct{ Bytes uint64 }
					}
				}
				if err := json.Unmarshal([]byte(line), &d); err != nil {
					t.Fatal(err)
				}
				if d.Event.Dataset == output.DatasetIO && d.Iotrace.Write.Bytes > 0 {
					got[d.Iotrace.Group.Name[0]] += d.Iotrace.Write.Bytes
				}
			}
			for project, want := range c.want {
				if n := got[project]; n*1000 < want*999 || n*1000 > want*1001 {
					t.Errorf("%s: %d bytes, want %d", project, n, want)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("rows %v, want %v", got, c.want)
			}
			if !strings.Contains(stderr.String(), c.says) || strings.Contains(stderr.String(), c.doesNot) {
				t.Errorf("says %q", stderr.String())
			}
		})
	}
	all := map[string]uint64{}
	rec, _, timeline, err := openRecordings([]string{dir}, (&options{}).logger(&bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	frames := joinedTimeline{timeline, func(*output.Interval) {}, joinedFrames}
	first, end := frames.Bounds()
	for i := first; i < end; i++ {
		iv, err := frames.Frame(i)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range iv.Samples {
			if s.Source == output.SourceBlock {
				all[s.Project] += s.Write.Bytes
			}
		}
	}
	// Of the 24 intervals before it each one sees only some of what was sent.
	if all["shop"]+all["bank"] != 9_090_000 || all["shop"] < 1_500_000 || all["bank"] < 6_060_000 {
		t.Errorf("on the screen: %v", maps.Clone(all))
	}
}
