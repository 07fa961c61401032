//go:build vm

package vmtests

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
)

// TestOneProcessor starts the tracer where nothing else runs while the kernel checks its
// programs: on one emulated processor of the newest kernel.
func TestOneProcessor(t *testing.T) {
	suite{
		line:      "7.3",
		cpus:      1,
		scenarios: []scenario{{name: "start", run: oneProcessorStart}},
	}.test(t)
}

// oneProcessorStart starts every source, with the module of each loaded and a journal
// mounted. The start says what it does, step after step, and then every byte is counted.
func oneProcessorStart(g *guest.Guest) {
	g.Modprobe("fuse", "nfs", "nfsv3", "nfsv4", "cifs", "vxlan", "btrfs", "dm-mod")
	if n := strings.Count("\n"+g.ReadFile("/proc/cpuinfo"), "\nprocessor"); n != 1 {
		g.Fatalf("%d processors", n)
	}
	d := g.NVMe()
	mountScratch(g, d, "ext4")
	g.Sync()
	b := &blockTrace{g: g, disks: []guest.Disk{d}}
	b.earlier = b.stats()
	b.tr = g.Trace("--by", "cgroup,device", "--vxlan")
	b.before = b.stats()
	said := regexp.MustCompile(`(?m)^iotrace-bpf: still starting: (.*)$`).FindAllString(b.tr.Stderr(), -1)
	g.Logf("it said while it started:\n%s", strings.Join(said, "\n"))
	// The first second goes without a word, and each of these steps takes longer here.
	at := 0
	for _, step := range []string{"source block", "source nfs", "source fuse", "source smb", "looking at the cgroups"} {
		found := slices.IndexFunc(said[at:], func(line string) bool { return strings.Contains(line, step) })
		if found < 0 {
			g.Errorf("no word about %q, or not in its turn, in %q", step, said)
			break
		}
		at += found
	}
	c := g.Cgroup("c")
	c.Process().Open("/mnt/scratch/f", guest.Create).Write(0, sizeB)
	raw := c.Process().Open(g.Virtio().Path(), os.O_RDWR|guest.Direct)
	raw.WriteBlocks(0, 97*4096, 4096)
	b.stop()
	b.Equal("c wrote to the raw disk", b.wrote(g.Virtio(), c), 97*4096)
	b.Within("c wrote to the file", b.wrote(d, c), sizeB, 50)
}
