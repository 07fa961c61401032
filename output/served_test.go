package output

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	web1 = Host{Name: "web1", ID: "1"}
	web2 = Host{Name: "web2", ID: "2"}
	nas  = Host{Name: "nas", ID: "3"}
	nas2 = Host{Name: "nas2", ID: "4"}
)

// sentBy is what a project on a client sent to, and received from, a mount of a server.
func sentBy(h Host, project, client, server, export string, write, read uint64) Sample {
	return Sample{
		Host: h, Source: SourceNFS, Level: LevelWire, Owner: OwnerContainer, Project: project,
		Container: Container{ID: "id-" + project, Name: project + "-web-1"}, NFSClient: NFSClient{Address: client},
		Device: Device{ID: "0:50"}, Mount: Mount{Source: server + ":" + export, NFSServer: server, NFSAddress: server, NFSExport: export},
		Write: Amount{Bytes: write, Ops: min(write, 1)}, Read: Amount{Bytes: read, Ops: min(read, 1)},
	}
}

// doneFor is what a disk of a server did for a client.
func doneFor(h Host, client, server, export string, write, read uint64) Sample {
	return Sample{
		Host: h, Source: SourceBlock, Level: LevelWire, Owner: OwnerNFSClient, NFSClient: NFSClient{Address: client, Name: "said"},
		Device: Device{ID: "8:0", Name: "sda"}, Mount: Mount{NFSExport: export, NFSAddress: server},
		Write: Amount{Bytes: write, Ops: (write + 4095) / 4096}, Read: Amount{Bytes: read, Ops: (read + 4095) / 4096},
		Basis: BasisBytes{Dirtier: write, Task: read},
	}
}

// joined runs a Joiner over intervals of ten seconds, and returns what the disks wrote and
// read, by owner.
func joined(t *testing.T, intervals ...[]Sample) (written, read map[string]uint64, j *Joiner) {
	t.Helper()
	j = NewJoiner()
	written, read = map[string]uint64{}, map[string]uint64{}
	var list []*Interval
	for i, samples := range intervals {
		start := time.Unix(1000, 0).Add(time.Duration(i) * 10 * time.Second)
		list = append(list, &Interval{Start: start, End: start.Add(10 * time.Second), Samples: samples})
	}
	for i, iv := range list {
		var next *Interval
		if i+1 < len(list) {
			next = list[i+1]
		}
		before := servedSums(iv.Samples)
		j.Join(iv, next)
		if after := servedSums(iv.Samples); after != before {
			t.Errorf("interval %d: %+v became %+v", i, before, after)
		}
		for k := range iv.Samples {
			s := &iv.Samples[k]
			if s.Source == SourceNFS {
				continue
			}
			name := s.Project + " on " + s.NFSClient.Host.Name
			if s.Owner == OwnerNFSClient {
				name = s.NFSClient.Address + ": " + s.NFSClient.Silent
			}
			if s.Write.Bytes > 0 {
				written[name] += s.Write.Bytes
			}
			if s.Read.Bytes > 0 {
				read[name] += s.Read.Bytes
			}
		}
	}
	return written, read, j
}

type servedSum struct {
	write, read, writeOps, readOps, flushes, discards, meta uint64
	basis                                                   BasisBytes
}

func servedSums(list []Sample) (n servedSum) {
	for i := range list {
		if s := &list[i]; s.Source != SourceNFS {
			n.write += s.Write.Bytes
			n.read += s.Read.Bytes
			n.writeOps += s.Write.Ops
			n.readOps += s.Read.Ops
			n.flushes += s.Flush.Ops
			n.discards += s.Discard.Bytes
			n.meta += s.MetaWriteBytes
			n.basis.Add(&s.Basis)
		}
	}
	return n
}

func compareServed(t *testing.T, what string, got, want map[string]uint64) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

const exported = "/srv/exported"

// TestJoiner: what clients sent early and late is written in several intervals, and each
// project has what it sent. A client without a recording keeps its bytes.
func TestJoiner(t *testing.T) {
	send := func(h Host, project, client string, n uint64) Sample {
		return sentBy(h, project, client, "10.9.0.1", exported, n, 0)
	}
	disk := func(client string, n uint64) Sample { return doneFor(nas, client, "10.9.0.1", exported, n, 0) }
	written, _, j := joined(
		t,
		[]Sample{send(web1, "shop", "10.9.1.2", 1000), send(web1, "bank", "10.9.1.2", 3000), send(web2, "shop", "10.9.2.2", 500)},
		nil,
		[]Sample{disk("10.9.1.2", 2000), disk("10.9.2.2", 500), disk("10.9.3.2", 700)},
		[]Sample{send(web1, "news", "10.9.1.2", 6000), disk("10.9.1.2", 4000)},
		[]Sample{disk("10.9.1.2", 4000)},
		[]Sample{disk("10.9.1.2", 100)}, // a journal
	)
	// In interval 3 are left: shop 500, bank 1500, news 6000. Half of it is written, then the
	// other half. Of the last 100, shop sent one part in ten, bank three, news six.
	compareServed(t, "written", written, map[string]uint64{
		"shop on web1": 1010, "bank on web1": 3030, "news on web1": 6060, "shop on web2": 500, "10.9.3.2: does not report": 700,
	})
	totals := j.Totals()
	if len(totals) != 1 || totals[0].Host != nas || totals[0].Bytes != 11300 || !maps.Equal(totals[0].Silent, map[string]uint64{"10.9.3.2, does not report": 700}) {
		t.Errorf("totals %+v", totals)
	}
}

// TestJoinerReads: bytes that a client has in the next interval were read in this one. What
// a disk reads for writes is the writers'.
func TestJoinerReads(t *testing.T) {
	_, read, _ := joined(
		t,
		[]Sample{doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 0, 4096)},
		[]Sample{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", exported, 0, 3000), sentBy(web1, "bank", "10.9.1.2", "10.9.0.1", exported, 0, 1000),
			doneFor(nas, "10.9.2.2", "10.9.0.1", exported, 0, 512), sentBy(web2, "news", "10.9.2.2", "10.9.0.1", exported, 100, 0)},
	)
	compareServed(t, "read", read, map[string]uint64{"shop on web1": 3072, "bank on web1": 1024, "news on web2": 512})
}

// TestJoinerDoubts: where several may be meant, no share is made up.
func TestJoinerDoubts(t *testing.T) {
	shop := sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", exported, 1000, 0)
	for _, c := range []struct {
		name    string
		samples []Sample
		want    map[string]uint64
	}{
		{"behind a translator of addresses", []Sample{shop, doneFor(nas, "192.0.2.1", "10.9.0.1", exported, 10, 0)}, map[string]uint64{"192.0.2.1: does not report": 10}},
		{"two hosts with one address", []Sample{shop, sentBy(web2, "bank", "10.9.1.2", "10.9.0.1", exported, 1, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 10, 0)},
			map[string]uint64{"10.9.1.2: an address of several hosts that report": 10}},
		{"two servers", []Sample{shop, sentBy(web1, "bank", "10.9.1.2", "10.9.9.1", exported, 1000, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 10, 0), doneFor(nas2, "10.9.1.2", "10.9.9.1", exported, 20, 0)},
			map[string]uint64{"shop on web1": 10, "bank on web1": 20}},
		{"two servers, which do not know their addresses", []Sample{shop, sentBy(web1, "bank", "10.9.1.2", "10.9.9.1", exported, 1000, 0), doneFor(nas, "10.9.1.2", "", exported, 10, 0), doneFor(nas2, "10.9.1.2", "", exported, 20, 0)},
			map[string]uint64{"10.9.1.2: a client of several servers, and which of them is meant is not known": 30}},
		{"one of two servers reports, without its address", []Sample{shop, sentBy(web1, "bank", "10.9.1.2", "10.9.9.1", exported, 1000, 0), doneFor(nas, "10.9.1.2", "", exported, 10, 0)},
			map[string]uint64{"10.9.1.2: has mounts of several servers, and which of them is this one is not known": 10}},
		{"the only server, without its address", []Sample{shop, doneFor(nas, "10.9.1.2", "", exported, 10, 0)}, map[string]uint64{"shop on web1": 10}},
		{"another server", []Sample{shop, doneFor(nas, "10.9.1.2", "10.9.7.1", exported, 10, 0)}, map[string]uint64{"10.9.1.2: reports no mount of this server": 10}},
		{"nothing was sent", []Sample{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", exported, 0, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 10, 0)}, map[string]uint64{"10.9.1.2: reports nothing that it sent here": 10}},
		{"an IPv4 address in IPv6", []Sample{shop, doneFor(nas, "::ffff:10.9.1.2", "::ffff:10.9.0.1", exported, 10, 0)}, map[string]uint64{"shop on web1": 10}},
		{"two exports", []Sample{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", "/srv/a", 5, 0), sentBy(web1, "bank", "10.9.1.2", "10.9.0.1", "/srv/b/deep", 5, 0),
			doneFor(nas, "10.9.1.2", "10.9.0.1", "/srv/a", 10, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", "/srv/b", 20, 0)},
			map[string]uint64{"shop on web1": 10, "bank on web1": 20}},
		{"two exports below a pseudo root", []Sample{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", "/a", 5, 0), sentBy(web1, "bank", "10.9.1.2", "10.9.0.1", "/b/deep", 5, 0),
			doneFor(nas, "10.9.1.2", "10.9.0.1", "/srv/a", 10, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", "/srv/b", 20, 0)},
			map[string]uint64{"shop on web1": 10, "bank on web1": 20}},
		{"another export than the one that is mounted", []Sample{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", "/srv/a", 5, 0),
			doneFor(nas, "10.9.1.2", "10.9.0.1", "/srv/a", 10, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", "/srv/b", 20, 0)},
			map[string]uint64{"shop on web1": 10, "10.9.1.2: reports no mount of this export": 20}},
		{"another mount, which has not reached a disk", []Sample{shop, sentBy(web1, "bank", "10.9.1.2", "10.9.0.1", "/data", 5000, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 10, 0)},
			map[string]uint64{"shop on web1": 10}},
		{"the root of NFSv4", []Sample{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", "/", 5, 0), doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 10, 0)}, map[string]uint64{"shop on web1": 10}},
		{"one of several exports of a file system", []Sample{shop, doneFor(nas, "10.9.1.2", "10.9.0.1", "", 10, 0)}, map[string]uint64{"shop on web1": 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			written, _, _ := joined(t, c.samples)
			compareServed(t, "written", written, c.want)
		})
	}
}

// TestJoinerForgets: what was sent minutes ago says nothing about what is written now, and
// takes no memory.
func TestJoinerForgets(t *testing.T) {
	intervals := [][]Sample{{sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", exported, 1000, 0)}}
	for range 30 {
		intervals = append(intervals, nil)
	}
	intervals = append(intervals, []Sample{doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 10, 0)})
	written, _, j := joined(t, intervals...)
	compareServed(t, "written", written, map[string]uint64{"10.9.1.2: reports nothing that it sent here": 10})
	if j.n != 0 || len(j.flows) != 0 || len(j.stores) != 0 {
		t.Errorf("%d flows, %d clients, %d stores are kept", j.n, len(j.flows), len(j.stores))
	}
}

// TestJoinerSums: whatever the clients send, no number of the disks changes (joined compares
// them), and discards stay with the client.
func TestJoinerSums(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var intervals [][]Sample
	for range 200 {
		var list []Sample
		for client := range 3 {
			address := fmt.Sprintf("10.9.%d.2", client)
			for p := range r.IntN(5) {
				list = append(list, sentBy([]Host{web1, web2, {Name: "web3"}}[client], fmt.Sprint("p", p), address, "10.9.0.1", exported, r.Uint64N(1<<40), r.Uint64N(1<<20)))
			}
			s := doneFor(nas, address, "10.9.0.1", exported, r.Uint64N(1<<40), r.Uint64N(1<<20))
			s.Flush.Ops, s.Discard, s.MetaWriteBytes = r.Uint64N(9), Amount{Bytes: 512, Ops: 1}, s.Write.Bytes/3
			list = append(list, s)
		}
		intervals = append(intervals, list)
	}
	joined(t, intervals...)
}

// TestJoinedRows: the storage is on the server and the owner on the client, whatever rows are
// by. Clients that do not report are named.
func TestJoinedRows(t *testing.T) {
	iv := &Interval{Start: time.Unix(1000, 0), End: time.Unix(1010, 0), Samples: []Sample{
		sentBy(web1, "shop", "10.9.1.2", "10.9.0.1", exported, 1000, 0), sentBy(web1, "bank", "10.9.1.2", "10.9.0.1", exported, 3000, 0),
		doneFor(nas, "10.9.1.2", "10.9.0.1", exported, 4096, 0), doneFor(nas, "10.9.3.2", "10.9.0.1", exported, 700, 0),
	}}
	NewJoiner().Join(iv, nil)
	iv.Samples = slices.DeleteFunc(iv.Samples, func(s Sample) bool { return s.Source == SourceNFS })
	for _, c := range []struct{ by, want string }{
		{"project,nfs-export", "bank | /srv/exported (nas) 3072\nshop | /srv/exported (nas) 1024\nnfs client said (10.9.3.2), does not report | /srv/exported (nas) 700"},
		{"container,device", "bank-web-1 (web1) | sda (nas) 3072\nshop-web-1 (web1) | sda (nas) 1024\nnfs client said (10.9.3.2), does not report | sda (nas) 700"},
		{"nfs-client", "nfs client said (10.9.1.2) 4096\nnfs client said (10.9.3.2), does not report 700"},
		{"container,host", "bank-web-1 (web1) | nas 3072\nshop-web-1 (web1) | nas 1024\nnfs client said (10.9.3.2), does not report | nas 700"},
	} {
		keys, err := ParseKeys(c.by)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, r := range Group(iv, GroupOptions{By: keys}).Rows {
			var texts []string
			for _, v := range r.Keys {
				texts = append(texts, v.Text)
			}
			lines = append(lines, fmt.Sprintf("%s %d", strings.Join(texts, " | "), r.Total.Bytes()))
		}
		if got := strings.Join(lines, "\n"); got != c.want {
			t.Errorf("--by %s:\n%s\nwant\n%s", c.by, got, c.want)
		}
	}
}
