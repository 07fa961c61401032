// Package bpf holds the programs that run in the kernel, compiled, and the Go
// types of what they share with user space. The C sources are beside the
// generated files; `make generate` makes the latter from the former.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64,arm64 -cc clang-19 -strip llvm-strip-19 -go-package bpf Host host.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64,arm64 -cc clang-19 -strip llvm-strip-19 -go-package bpf -no-global-types Block block.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64,arm64 -cc clang-19 -strip llvm-strip-19 -go-package bpf -no-global-types -type device -type device_event -type refusal -type iot_device_action VXLAN vxlan.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64,arm64 -cc clang-19 -strip llvm-strip-19 -go-package bpf -no-global-types -type offsets -type daemon FUSE fuse.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I.
