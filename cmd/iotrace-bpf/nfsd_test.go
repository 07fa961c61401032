package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

// TestClientSamples: a client is no cgroup, and rows of two exports are two samples. Both
// sides say which address the client has and which one the server.
func TestClientSamples(t *testing.T) {
	j, _ := manyRows(t, 1)
	const client = 1<<60 | 0x0200010a
	j.client = func(owner uint64) output.NFSClient {
		if owner != client {
			t.Errorf("%#x is asked for as a client", owner)
		}
		return output.NFSClient{Address: "10.1.0.2", Name: "web1"}
	}
	j.mount = func(tracer.Dev, uint64) output.Mount {
		return output.Mount{Source: "nas:/x", NFSServer: "nas", NFSExport: "/x", NFSAddress: "10.0.0.9", NFSPort: 2050}
	}
	j.export = func(k *tracer.Key) string { return map[tracer.Export]string{5: "/srv/a", 6: "/srv/b"}[k.Export] }
	j.source = func(dev tracer.Dev) string { return map[tracer.Dev]string{7 << 20: "10.0.0.2"}[dev] }
	j.listen = func(client string) string { return map[string]string{"10.1.0.2": "10.1.0.1"}[client] }
	row := func(source tracer.Source, cgroup uint64, export tracer.Export) tracer.Row {
		return tracer.Row{Key: tracer.Key{Source: source, Op: tracer.Write, Basis: tracer.ByTask, Cgroup: cgroup, Dev: 7 << 20, Export: export}, Bytes: 10, Ops: 1}
	}
	list := j.samples([]tracer.Row{row(tracer.NFSD, client, 5), row(tracer.NFSD, client, 6), row(tracer.NFSD, client, 5), row(tracer.NFS, 2, 0), row(tracer.Block, client, 0)}, time.Now())
	var got []string
	for i := range list {
		s := &list[i]
		got = append(got, strings.Join([]string{string(s.Source), string(s.Owner), s.NFSClient.Name, s.NFSClient.Address + ">" + s.Mount.NFSAddress, s.Mount.NFSServer, s.Mount.NFSExport, strings.Repeat("+", int(s.Write.Ops))}, " "))
	}
	slices.Sort(got)
	want := []string{"block nfs-client web1 10.1.0.2>10.1.0.1   +", "nfs container  10.0.0.2>10.0.0.9 nas /x +",
		"nfsd nfs-client web1 10.1.0.2>10.1.0.1  /srv/a ++", "nfsd nfs-client web1 10.1.0.2>10.1.0.1  /srv/b +"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if n := unnamed(list); n != 1 { // the container, which no runtime has named
		t.Errorf("%d cgroups without a name, want 1: a client is none", n)
	}
}

// TestSourceNFSDAlone: its bytes must not be added to those of the disks below.
func TestSourceNFSDAlone(t *testing.T) {
	var opt options
	err := opt.parse([]string{"--source", "block,nfsd"})
	if err == nil || !strings.Contains(err.Error(), "nfsd must be the only source") {
		t.Errorf("error %v", err)
	}
	opt = options{}
	if err := opt.parse([]string{"--source", "nfsd", "--by", "nfs-client"}); err != nil {
		t.Error(err)
	}
}
