module github.com/iotrace-bpf/iotrace-bpf

go 1.26.0

require (
	github.com/cilium/ebpf v0.22.0 // indirect
	github.com/docker/docker v28.5.2+incompatible // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/term v0.47.0 // indirect
)
