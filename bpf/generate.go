// Package bpf holds the programs that run in the kernel, compiled, and the Go
// types of what they share with user space. The C sources are beside the
// generated files; `make generate` makes the latter from the former.
package bpf

//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf Core core.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type loop_file -type issued Block block.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type iface -type device_event -type refusal -type iot_device_action VXLAN vxlan.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types -type offsets -type daemon FUSE fuse.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -go-package bpf -no-global-types NFS nfs.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
