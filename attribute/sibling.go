package attribute

import (
	"fmt"
	"io/fs"
)

// maxSiblings is the number of cgroups whose outer container is remembered.
const maxSiblings = 1 << 12

// sibling is what the ancestors of a cgroup's processes say: the container whose engine
// made it, although its path is beside that container and not below it (docker run
// --cgroupns=host with a dockerd inside, an engine in its own mount namespace).
type sibling struct {
	around        domain
	parent, outer string // ids of the container around it, and of the outermost one
	outermost     string // key of the latter
}

// sibling returns the container around a cgroup that no runtime of the machine names. It
// never waits: the first call starts a search.
func (rs *runtimes) sibling(c cgroup) (sibling, bool) {
	rs.mu.Lock()
	s, ok := rs.siblings[c.id]
	rs.mu.Unlock()
	if !ok {
		rs.ask("sibling "+c.path, nestedAsk{cgroup: c})
	}
	return s, ok
}

// adopt looks for that container among the ancestors of the process pid of a cgroup. It
// returns the first of them that is in another container, which a runtime knows.
func (rs *runtimes) adopt(c *cgroup, pid int) (from int, around domain, err error) {
	for range maxAncestry {
		if pid <= 1 {
			break
		}
		p := parsePath(rs.pathOf(pid), rs.tree.delegated)
		if p.kind == KindContainer && p.key() != c.place.key() && (p.named || rs.registry.get(p.key()) != nil) {
			s := sibling{around: p.domain.inside(p.id), parent: p.id, outer: p.id, outermost: p.key()}
			if p.outer != "" {
				s.outer, s.outermost = p.outer, p.outermost
			}
			rs.mu.Lock()
			if len(rs.siblings) >= maxSiblings {
				clear(rs.siblings)
			}
			rs.siblings[c.id] = s
			rs.mu.Unlock()
			return pid, s.around, nil
		}
		if pid, err = rs.parentOf(pid); err != nil {
			return 0, domain{}, err
		}
	}
	return 0, domain{}, fmt.Errorf("no ancestor in a known container: %w", fs.ErrNotExist)
}
