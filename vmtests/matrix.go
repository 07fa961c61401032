package vmtests

import "github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"

// Kernel is one line of the matrix: a kernel series of Debian and the way its
// cgroups are mounted. The tests take the newest kernel of a series that the mirror
// holds completely.
type Kernel struct {
	Name    string // the name for -kernel and KERNEL=, and of subtests
	Series  string // "6.12"
	Cgroup  string // v2, v1 (memory and the rest on v1, no v2), hybrid (v1 and an empty v2)
	Arch    string // Debian's name
	Flavour string // of Debian's kernels: vm.Cloud, vm.Generic ...
	Smoke   bool   // runs only the scenarios marked smoke
	Asked   bool   // runs only when asked for by name
	Why     string // why this kernel is tested
}

// Matrix is every kernel that the tests run on. A series stands for its lines with a cloud
// kernel; the others run by their names, and where all lines do.
func Matrix() []Kernel {
	return []Kernel{
		{Name: "5.10", Series: "5.10", Cgroup: "v2", Arch: "amd64", Why: "oldest supported; no BTF of modules, no fuse tracepoints, page->mem_cgroup, rlimit memlock"},
		{Name: "5.10-v1", Series: "5.10", Cgroup: "v1", Arch: "amd64", Why: "memory controller on v1, no v2 at all"},
		{Name: "6.1", Series: "6.1", Cgroup: "v2", Arch: "amd64", Why: "first with BTF of modules; folios, memcg_data"},
		{Name: "6.1-v1", Series: "6.1", Cgroup: "v1", Arch: "amd64", Why: "Debian's last series with the memory controller on v1"},
		{Name: "6.1-hybrid", Series: "6.1", Cgroup: "hybrid", Arch: "amd64", Smoke: true, Why: "v1 controllers and an empty v2, as older systemd mounts them"},
		{Name: "6.12", Series: "6.12", Cgroup: "v2", Arch: "amd64", Why: "fuse built in, fuse tracepoints, large folios on NFS"},
		{Name: "6.18", Series: "6.18", Cgroup: "v2", Arch: "amd64", Why: "fuse writeback carries page-cache folios; module BTF repeats core types"},
		{Name: "7.2", Series: "7.2", Cgroup: "v2", Arch: "amd64", Why: "page-cache pages carry an obj_cgroup, reparented at rmdir; fuse channels"},
		{Name: "7.3", Series: "7.3", Cgroup: "v2", Arch: "amd64", Why: "newest series"},
		{Name: "6.12-arm64", Series: "6.12", Cgroup: "v2", Arch: "arm64", Asked: true, Why: "another architecture, with the cross-built binary"},
		{Name: "6.12-arm64-16k", Series: "6.12", Cgroup: "v2", Arch: "arm64", Flavour: vm.Pages16, Asked: true, Why: "pages of 16 KiB"},
		{Name: "5.10-generic", Series: "5.10", Cgroup: "v2", Arch: "amd64", Flavour: vm.Generic, Asked: true, Smoke: true, Why: "9p without type information of modules"},
		{Name: "6.1-generic", Series: "6.1", Cgroup: "v2", Arch: "amd64", Flavour: vm.Generic, Asked: true, Smoke: true, Why: "9p that writes single pages, before netfs"},
		{Name: "7.3-generic", Series: "7.3", Cgroup: "v2", Arch: "amd64", Flavour: vm.Generic, Asked: true, Smoke: true, Why: "modules that cloud kernels lack, newest series"},
		{Name: "6.12-generic", Series: "6.12", Cgroup: "v2", Arch: "amd64", Flavour: vm.Generic, Smoke: true, Why: "modules that cloud kernels lack; ext4 and nvme are modules"},
		{Name: "6.12-rt", Series: "6.12", Cgroup: "v2", Arch: "amd64", Flavour: vm.RT, Smoke: true, Why: "PREEMPT_RT: locks sleep, interrupts are threads"},
	}
}
