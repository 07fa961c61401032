package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/pflag"
)

const usageHead = `Shows which container, service or project generates the I/O load.

Usage:
  iotrace-bpf [flags] [INTERVAL [COUNT]]     trace, and report every INTERVAL seconds
  iotrace-bpf vxlan [list|watch|clean]       overlay devices that block networks
  iotrace-bpf replay FILE [INTERVAL [COUNT]] a recording, through the same flags
  iotrace-bpf check                          what this kernel and host offer
  iotrace-bpf elasticsearch setup            templates, lifecycle and dashboard
  iotrace-bpf completion bash|zsh|fish       a completion script for the shell
  iotrace-bpf version                        version of this program
  iotrace-bpf help                           this text

Flags:
`

const usageTail = `
How totals are formed: bytes are counted where they leave the page cache, as a
request to a block device, to an NFS server or to a FUSE daemon, and belong to
the cgroup that dirtied the pages (writes) or asked for them (reads). Of stacked
block devices (device mapper, md, loop over a local file) only the lowest count.
What a FUSE daemon then does to disks or servers belongs to the daemon. What
cannot be named is shown: (kernel) is file-system metadata and journals that the
kernel charges to nobody, (unattributed) has no owner, (other) is what did not
fit into --max-groups.

Examples:
  iotrace-bpf --by project                   who is it?
  iotrace-bpf --by project,device 5          every 5 seconds, by device as well
  iotrace-bpf --by container --filter project=shop --sort write
  iotrace-bpf --by project --output ndjson 1 3 | jq .

Exit status: 0 done, 1 failed, 2 wrong usage, 3 this kernel or these privileges
cannot trace.
`

// usage returns the whole help text.
func usage() string {
	var o options
	return usageHead + o.flags().FlagUsagesWrapped(80) + usageTail
}

func runHelp(_ context.Context, args []string, _, _ io.Writer) error {
	if len(args) > 0 {
		return usagef("help takes no argument: %q", args[0])
	}
	return pflag.ErrHelp
}

// version is set by the linker for releases.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func runVersion(_ context.Context, args []string, stdout, _ io.Writer) error {
	if len(args) > 0 {
		return usagef("version takes no argument: %q", args[0])
	}
	_, err := fmt.Fprintln(stdout, "iotrace-bpf", versionText())
	return err
}
