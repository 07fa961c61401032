package attribute

// Stats counts what is known and what is not.
type Stats struct {
	Known      int    // cgroups, the removed ones that keep their name included
	Gone       int    // removed cgroups that keep their name
	Evicted    uint64 // names dropped before their time, to bound memory
	Pending    int    // containers in Known that no runtime has named
	Containers int    // containers that the runtimes know
	Refused    uint64 // containers beyond the limit of the registry
	Bare       uint64 // containers whose time ended before a runtime named them
	Lookups    uint64 // ids resolved by handle
	Steps      uint64 // directories looked at because ids could not be asked for
}

// Stats returns the counts of this moment. It looks at every known cgroup once.
func (r *Resolver) Stats() Stats {
	var s Stats
	s.Known, s.Gone = r.tree.counts()
	s.Containers, s.Refused = r.registry.counts()
	r.tree.mu.Lock()
	s.Bare = r.tree.bare
	s.Evicted, s.Lookups, s.Steps = r.tree.evicted, r.tree.looked, r.tree.stepped
	for _, c := range r.tree.byID {
		if r.bare(c.place) {
			s.Pending++
		}
	}
	r.tree.mu.Unlock()
	return s
}

// counts returns how many cgroups are known, and how many of them are gone.
func (t *tree) counts() (known, gone int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	return len(t.byID), t.gone.Len()
}

func (g *registry) counts() (containers int, refused uint64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.byID), g.refused
}
