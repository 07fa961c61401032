package main

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

func TestFindings(t *testing.T) {
	full := findings{
		kernel:    "6.12.1",
		hierarchy: attribute.Hierarchy{Version: 2, Mount: "/sys/fs/cgroup"},
		sources: []tracer.Status{
			{Source: "block", Attached: true, Hooks: []string{"tp_btf/block_rq_issue", "tp_btf/block_rq_complete"}},
			{Source: "nfs", Waiting: true, Reason: `module "nfs" is not loaded`},
			{Source: "fuse", Attached: true, Hooks: []string{"kprobe/fuse_request_end"}, Limitations: []tracer.Limitation{
				{Text: "metadata operations are not counted", Remedy: "a kernel with CONFIG_KPROBE_EVENTS=y"},
				{Text: "devices\x1b[2J have no latency"},
			}},
			{Source: "vxlan", Reason: "no\x1b permission", Limitations: []tracer.Limitation{{Text: "not shown"}}},
		},
		sockets: []attribute.Endpoint{
			{Socket: "/run/docker.sock", Runtime: "docker", State: attribute.StateOK, Version: "20.10", Containers: 1},
			{Socket: "/run/podman/podman.sock", Runtime: "podman", State: attribute.StateOK, Version: "4.3", Containers: 2},
			{Socket: "/run/crio/crio.sock", Runtime: "cri", State: attribute.StateAbsent, Err: fs.ErrNotExist},
			{Socket: "/run/user/1000/docker.sock", Runtime: "docker", State: attribute.StateForbidden, Err: errors.New("permission denied")},
			{Socket: "/run/user/1001/docker.sock", Runtime: "docker", State: attribute.StateOK, Version: "28.0", Containers: 2, User: "1001"},
			{Socket: "/proc/7/root/run/d.sock", Runtime: "docker", State: attribute.StateOK, Version: "27.0", Containers: 1, Inside: strings.Repeat("a", 64)},
		},
	}
	full.untraced = []attribute.Untraced{
		{FSType: "ceph", Points: []string{"/mnt/a", "/mnt/b", "/mnt/c", "/mnt/d", "/mnt/e", "/mnt/f"}},
		{FSType: "cifs", Points: []string{"/mnt/share\x1b[2J"}},
	}
	none := findings{kernel: "5.10.0", hierarchy: attribute.Hierarchy{Version: 1, ID: 4}, sockets: []attribute.Endpoint{
		{Socket: "/run/docker.sock", Runtime: "docker", State: attribute.StateAbsent, Err: fs.ErrNotExist},
	}}
	for _, tt := range []struct {
		name    string
		found   findings
		verbose bool
		want    string
	}{
		{"full", full, false, `
kernel                             6.12.1
cgroups                            version 2, named by hierarchy 0 at /sys/fs/cgroup
source block                       tp_btf/block_rq_issue, tp_btf/block_rq_complete
source nfs                         waiting: module "nfs" is not loaded; traced as soon as it is loaded
source fuse                        kprobe/fuse_request_end
                                   limitation: metadata operations are not counted
                                     lifted by: a kernel with CONFIG_KPROBE_EVENTS=y
                                   limitation: devices\x1b[2J have no latency
source vxlan                       absent: no\x1b permission
not traced                         ceph at /mnt/a, /mnt/b, /mnt/c, /mnt/d and 2 more: its I/O is in no row
not traced                         cifs at /mnt/share\x1b[2J: its I/O is in no row
socket /run/docker.sock            docker: ok, 20.10, 1 container
socket /run/podman/podman.sock     podman: ok, 4.3, 2 containers
socket /run/user/1000/docker.sock  docker: forbidden (permission denied)
socket /run/user/1001/docker.sock  docker: ok, 28.0, 2 containers of user 1001
socket /proc/7/root/run/d.sock     docker: ok, 27.0, 1 container inside container aaaaaaaaaaaa
`},
		{"no socket", none, false, `
kernel   5.10.0
cgroups  version 1, named by hierarchy 4 at (not mounted)
sockets  no container engine found, containers are shown by their ids (1 socket tried: -v lists them)
`},
		{"no socket, verbose", none, true, `
kernel                   5.10.0
cgroups                  version 1, named by hierarchy 4 at (not mounted)
socket /run/docker.sock  docker: absent (file does not exist)
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if err := tt.found.write(&b, tt.verbose); err != nil {
				t.Fatal(err)
			}
			if got := "\n" + b.String(); got != tt.want {
				t.Errorf("got%swant%s", got, tt.want)
			}
		})
	}
	var b strings.Builder
	if err := full.write(&b, true); err != nil || !strings.Contains(b.String(), "/run/crio/crio.sock") {
		t.Errorf("-v leaves out a socket that does not exist: %v\n%s", err, b.String())
	}
}
