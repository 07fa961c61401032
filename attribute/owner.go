// Package attribute names the owner of a cgroup id in the user's own terms:
// container, service, project, pod, systemd unit. It knows no BPF.
package attribute

// Kind says what a cgroup belongs to.
type Kind string

const (
	KindContainer Kind = "container"
	KindPod       Kind = "pod"     // a pod's own cgroup or its sandbox
	KindHelper    Kind = "helper"  // conmon, shims, monitors: not the workload
	KindUnit      Kind = "unit"    // systemd service, scope, slice
	KindSession   Kind = "session" // login session
	KindMachine   Kind = "machine" // virtual machine
	KindCgroup    Kind = "cgroup"  // anything else, the root included
	KindUnknown   Kind = ""        // the id could not be resolved (yet)
)

// Owner is everything that is known about a cgroup. Empty fields are unknown.
type Owner struct {
	Kind   Kind
	Cgroup uint64 // kernfs id in the hierarchy that names everything
	Path   string // from the hierarchy's root

	Runtime       string
	ContainerID   string
	ContainerName string
	Renamed       bool   // the container has had other names: OwnerAt returns them
	Parent        string // id of the container around this one
	Outer         string // id of the outermost container: Parent, unless they nest deeper
	OuterName     string // name of that container
	Image         string // without tag and digest
	ImageTag      string
	ImageDigest   string            // if the image was named by its digest: sha256:...
	Labels        map[string]string // read-only
	Unit          string            // systemd unit

	Pod, Namespace, PodUID string

	Project     string
	ProjectRule string // the rule that named the project: a Rule constant
	Service     string

	// NamedBy says whose word these names are: "" for the runtimes and the systemd of this
	// machine, "user 1000" for a user's own, "container ID" for a runtime inside a
	// container. Equal names by others mean other things.
	NamedBy        string
	ProjectNamedBy string // the same for Project, which may be that of the container around

	Gone bool // the cgroup was removed; its late I/O still arrives
}
