//go:build vm

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestNFSDJoin asks recordings of two client hosts and of their server: which compose
// projects load the server's disk?
func TestNFSDJoin(t *testing.T) {
	suite{
		image:     "docker",
		memory:    2048,
		deadline:  30 * time.Minute,
		scenarios: []scenario{{name: "both_sides", run: nfsdJoin}},
	}.test(t)
}

// recordAs records on a host of another name and machine id.
func recordAs(g *guest.Guest, host string, n int, source string) (tr *guest.Tracer, file string) {
	g.Helper()
	g.WriteFile("/etc/machine-id", fmt.Sprintf("%032x\n", n))
	file = filepath.Join(g.TempDir(), host+".rec")
	return g.Trace("--source", source, "--record", file, "--host-name", host, "--docker-host", "unix:///var/run/docker.sock", "--only-listed-sockets"), file
}

// nfsdJoin: the guest has one kernel, on which each tracer sees the I/O of all hosts. So the
// clients are recorded one after the other, each while it alone writes, and the server all
// the time.
func nfsdJoin(g *guest.Guest) {
	c := newNFSDCase(g, "4.2", "ext4", false)
	startDocker(g)
	g.Cleanup(func() { _ = os.Remove("/etc/machine-id") })
	server, nas := recordAs(g, "nas", 9, "block")
	before := c.disk.Stats()
	const block = 1_000_003
	type work struct {
		client  *nfsdClient
		project string
		blocks  int64
	}
	all := []work{{c.a, "shop", 24}, {c.a, "bank", 12}, {c.b, "shop", 9}, {c.b, "news", 18}}
	files := map[string]string{}
	for i, client := range []*nfsdClient{c.a, c.b} {
		tr, file := recordAs(g, client.name, i+1, "nfs")
		files[client.name] = file
		for _, w := range all {
			if w.client != client {
				continue
			}
			g.Exec("docker", "run", "--name", w.client.name+"-"+w.project, "--network", "none",
				"--label", "com.docker.compose.project="+w.project, "--label", "com.docker.compose.service=db",
				"--volume", w.client.mount+":/data", "dd:test", "/bin/dd", "if=/dev/zero", "of=/data/"+w.project+w.client.name, fmt.Sprintf("bs=%d", block), fmt.Sprintf("count=%d", w.blocks))
		}
		tr.Stop()
	}
	c.Sync()
	server.Stop()
	diff := c.disk.Stats().Sub(before)
	replay := func(by string, more ...string) (*guest.Output, string) {
		g.Helper()
		args := append([]string{"replay"}, more...)
		args = append(args, "--source", "block", "--filter", "device="+c.disk.Name+"*", "--by", by)
		table, _ := g.TracerOutputs(append(args, "1h")...)
		stdout, stderr := g.TracerOutputs(append(args, "--output", "ndjson")...)
		g.Logf("--by %s:\n%s\n%s", by, table, stderr)
		r, err := guest.ParseOutput([]byte(stdout))
		if err != nil {
			g.Fatal(err)
		}
		return r, stderr
	}
	within := func(what string, got, want int64) {
		g.Helper()
		g.Logf("%s: %d, itself %d", what, got, want)
		if d := got - want; d < -want/50 || d > want/50 {
			g.Errorf("%s: %d bytes on the disk, want %d within 2 %%", what, got, want)
		}
	}
	written := func(r *guest.Output, pairs ...string) int64 {
		return r.Sum("iotrace.write.bytes", append([]string{"iotrace.source", "block", "iotrace.nfs.export", nfsdExport}, pairs...)...)
	}
	r, _ := replay("nfs-client,device", nas) // what the server knows by itself
	for client, blocks := range map[*nfsdClient]int64{c.a: 36, c.b: 27} {
		within(client.name, r.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.nfs.client.address", client.address), blocks*block)
	}
	r, said := replay("project,nfs-client,nfs-export", files["web1"], files["web2"], nas)
	for _, w := range all {
		within(w.project+" on "+w.client.name, written(r, "iotrace.project.name", w.project, "iotrace.nfs.client.address", w.client.address), w.blocks*block)
	}
	if got := r.Sum("iotrace.write.bytes", "iotrace.source", "block"); got != diff.WriteBytes {
		g.Errorf("all rows: %d bytes written, the disk wrote %d", got, diff.WriteBytes)
	}
	if strings.Contains(said, "cannot be told") {
		g.Errorf("with both clients it says %q", said)
	}
	r, _ = replay("project,nfs-export", files["web1"], files["web2"], nas)
	for project, blocks := range map[string]int64{"shop": 33, "bank": 12, "news": 18} {
		within(project, written(r, "iotrace.project.name", project), blocks*block)
	}

	r, said = replay("project,nfs-export", files["web1"], nas)
	within("shop without web2", written(r, "iotrace.project.name", "shop"), 24*block)
	within("bank without web2", written(r, "iotrace.project.name", "bank"), 12*block)
	within("web2 without its recording", written(r, "iotrace.owner", "nfs-client", "iotrace.nfs.client.address", c.b.address), 27*block)
	if n := written(r, "iotrace.project.name", "news"); n != 0 {
		g.Errorf("project news has %d bytes, and nobody reported it", n)
	}
	if got := r.Sum("iotrace.write.bytes", "iotrace.source", "block"); got != diff.WriteBytes {
		g.Errorf("all rows without web2: %d bytes written, the disk wrote %d", got, diff.WriteBytes)
	}
	if !strings.Contains(said, "cannot be told by project") || !strings.Contains(said, c.b.address+", does not report") || strings.Contains(said, c.a.address+",") {
		g.Errorf("without web2 it says %q", said)
	}
}
