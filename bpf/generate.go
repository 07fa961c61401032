// Package bpf holds the programs that run in the kernel, compiled, and the Go
// types of what they share with user space. The C sources are in
// folders beside the generated files: core is what every source shares, the others are
// one for each source. `make generate` makes the generated files from them.
package bpf

//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf Core core/core.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type loop_file -type loop_fields -type hop -type hop_load -type flight -type flight_set -type journal -type journal_fields -type xfs_fields Block block/block.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type iface -type device_event -type refusal -type iot_device_action VXLAN vxlan/vxlan.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type offsets -type daemon FUSE fuse/fuse.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type source_address NFS nfs/nfs.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types SMB smb/smb.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types P9 9p/9p.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types Ceph ceph/ceph.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types NFSD nfsd/nfsd.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type file_name Names core/names.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
