package output

// Identity is what all samples of a group have in common. A field is empty if
// they differ in it or if it is not known.
type Identity struct {
	Owner       OwnerKind
	Project     string
	ProjectRule string
	Service     string
	Unit        string
	// See Sample.
	NamedBy, ProjectNamedBy string
	// Container is complete if the group is one container. If it is several, only
	// Image, ImageTag, Digest and Runtime can be set: those that they share.
	Container Container
	Pod       Pod
	Cgroup    Cgroup
	Process   Process
	NFSClient NFSClient
	Device    Device
	Mount     Mount
	File      File
	Host      Host
}

// fieldSet is a set of fields of Identity.
type fieldSet uint32

const (
	fieldOwner fieldSet = 1 << iota
	fieldProject
	fieldService
	fieldUnit
	fieldContainer
	fieldRuntime
	fieldImage
	fieldPod
	fieldNamespace
	fieldCgroup
	fieldProcess
	fieldDevice
	fieldMount
	fieldServer
	fieldExport
	fieldNamedBy
	fieldHost
	fieldNFSClient
	fieldFile

	allFields fieldSet = 1<<iota - 1
)

// differing returns known and the other fields in which a and b differ.
func differing(a, b *Sample, known fieldSet) fieldSet {
	var d fieldSet
	note := func(f fieldSet, same bool) {
		if !same {
			d |= f
		}
	}
	if known == allFields {
		return known
	}
	note(fieldOwner, a.Owner == b.Owner)
	note(fieldProject, a.Project == b.Project && a.ProjectRule == b.ProjectRule && a.ProjectNamedBy == b.ProjectNamedBy)
	note(fieldService, a.Service == b.Service)
	note(fieldNamedBy, a.NamedBy == b.NamedBy)
	note(fieldHost, a.Host == b.Host)
	note(fieldUnit, a.Unit == b.Unit)
	note(fieldContainer, a.Container.ID == b.Container.ID && a.Container.Name == b.Container.Name)
	note(fieldRuntime, a.Container.Runtime == b.Container.Runtime)
	note(fieldImage, a.Container.Image == b.Container.Image && a.Container.ImageTag == b.Container.ImageTag && a.Container.Digest == b.Container.Digest)
	note(fieldPod, a.Pod == b.Pod)
	note(fieldNamespace, a.Pod.Namespace == b.Pod.Namespace)
	note(fieldCgroup, a.Cgroup == b.Cgroup)
	note(fieldProcess, a.Process == b.Process)
	note(fieldNFSClient, a.NFSClient == b.NFSClient)
	note(fieldFile, a.File == b.File)
	note(fieldDevice, a.Device == b.Device)
	note(fieldMount, a.Mount == b.Mount)
	note(fieldServer, a.Mount.NFSServer == b.Mount.NFSServer && a.Mount.NFSAddress == b.Mount.NFSAddress && a.Mount.NFSPort == b.Mount.NFSPort)
	note(fieldExport, a.Mount.NFSExport == b.Mount.NFSExport && a.Mount.NFSServer == b.Mount.NFSServer && (a.Mount.NFSServer != "" || a.Host == b.Host))
	return d | known
}

// common collects what samples have in common.
type common struct {
	first   *Sample // nil for sums
	differs fieldSet
}

func (c *common) add(s *Sample) {
	if c.first == nil {
		c.first = s
		return
	}
	c.differs |= differing(c.first, s, c.differs)
}

func (c *common) join(o *common) {
	if o.first == nil {
		return
	}
	c.add(o.first)
	c.differs |= o.differs
}

func (c *common) identity() Identity {
	if c.first == nil {
		return Identity{}
	}
	return identityOf(c.first, c.differs)
}

// Identity returns what all samples of the row have in common. It is empty for a
// sum such as the total.
func (r *Row) Identity() Identity { return r.common.identity() }

// Identity returns what the samples of one source have in common. That is at
// least as much as what all samples of the row have in common.
func (u *SourceUsage) Identity() Identity { return u.common.identity() }

// Identity returns everything that is known about the owner and place of s.
func (s *Sample) Identity() Identity { return identityOf(s, 0) }

// identityOf returns the fields of s that are not in differs.
func identityOf(s *Sample, differs fieldSet) Identity {
	same := func(f fieldSet) bool { return differs&f == 0 }
	var id Identity
	if same(fieldOwner) {
		id.Owner = s.Owner
	}
	if same(fieldProject) {
		id.Project, id.ProjectRule, id.ProjectNamedBy = s.Project, s.ProjectRule, s.ProjectNamedBy
	}
	// The same service name in two projects means two services.
	if same(fieldService | fieldProject) {
		id.Service = s.Service
	}
	if same(fieldNamedBy) {
		id.NamedBy = s.NamedBy
	}
	if same(fieldUnit) {
		id.Unit = s.Unit
	}
	switch {
	case same(fieldContainer):
		id.Container = s.Container
	default:
		if same(fieldRuntime) {
			id.Container.Runtime = s.Container.Runtime
		}
		if same(fieldImage) {
			id.Container.Image, id.Container.ImageTag, id.Container.Digest = s.Container.Image, s.Container.ImageTag, s.Container.Digest
		}
	}
	switch {
	case same(fieldPod):
		id.Pod = s.Pod
	case same(fieldNamespace):
		id.Pod.Namespace = s.Pod.Namespace
	}
	if same(fieldHost) {
		id.Host = s.Host
	}
	if same(fieldCgroup) {
		id.Cgroup = s.Cgroup
	}
	if same(fieldProcess) {
		id.Process = s.Process
	}
	if same(fieldNFSClient) {
		id.NFSClient = s.NFSClient
	}
	if same(fieldFile) {
		id.File = s.File
	}
	if same(fieldDevice) {
		id.Device = s.Device
	}
	switch {
	case same(fieldMount):
		id.Mount = s.Mount
	default:
		if same(fieldServer) {
			id.Mount.NFSServer, id.Mount.NFSAddress, id.Mount.NFSPort = s.Mount.NFSServer, s.Mount.NFSAddress, s.Mount.NFSPort
		}
		if same(fieldExport) { // a server has one address for each of its clients' networks
			id.Mount.NFSServer, id.Mount.NFSExport = s.Mount.NFSServer, s.Mount.NFSExport
		}
	}
	return id
}
