package attribute

import (
	"cmp"
	"container/list"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/distribution/reference"
)

// Text from a runtime may have any size: this much of it is kept.
const (
	maxText       = 1 << 10 // bytes of a name, an image, a path
	maxLabelValue = 4 << 10
	maxLabels     = 256
	maxLabelBytes = 64 << 10 // of all labels of a container
	maxVolumes    = 256      // mounts of a container
	maxFormer     = 4        // former names of a container
	maxContainers = 1 << 14

	maxRecords      = 16 << 20 // bytes of all records of the machine's runtimes
	maxOtherRecords = 6 << 20  // bytes of all records of users' runtimes, and of those in containers
	maxOtherEach    = 3 << 20  // bytes of the records of one of these
)

// container is what a runtime says about one container. A stored record is never
// modified: news replace it.
type container struct {
	key        string // in the registry: the id, unless that is not unique
	id, name   string
	image, tag string
	digest     string // of the image, if it was named by that
	runtime    string
	kind       Kind
	labels     map[string]string
	naming     naming
	cgroupPath string // its cgroup; "" when the id in the path names it
	volumes    []volume

	podName string // of a pod that has no name in labels

	former []formerName // the last ones, the oldest first

	domain  domain // of the runtime: where its word counts
	from    string // the endpoint that reported it
	most    int    // limit of the records of that endpoint
	toldAt  time.Time
	rank    int  // of several endpoints that report a container, the highest rank wins
	partial bool // from an event, which says less than the runtime's list
	goneAt  time.Time
	entry   *list.Element
	size    int // bytes in memory, about
}

// formerName is a name that a container had before it was renamed.
type formerName struct {
	name  string
	until time.Time
}

// volume is one mount of a container, as its runtime set it up.
type volume struct {
	name, driver string // "" for a bind mount
	source       string // on the host
	destination  string // in the container
	fstype       string // "" when the runtime does not say
}

// registry holds what the runtimes report, by container id. Reading it never waits for a
// runtime.
type registry struct {
	projectLabel string
	keep         time.Duration
	now          func() time.Time

	mu      sync.RWMutex
	byID    map[string]*container
	byPath  map[string]*container
	pods    map[string]*container // one record of each pod, by the pod's uid
	held    map[string]holding    // by endpoint
	bytes   [2]int                // of all records: of the machine's runtimes, of others
	gone    *list.List
	refused uint64 // records beyond a limit
}

// holding is what the records of one endpoint take.
type holding struct{ n, bytes int }

func newRegistry(projectLabel string, keep time.Duration, now func() time.Time) *registry {
	return &registry{
		projectLabel: projectLabel, keep: keep, now: now,
		byID: map[string]*container{}, byPath: map[string]*container{}, pods: map[string]*container{},
		held: map[string]holding{}, gone: list.New(),
	}
}

// put stores a record, cut to a bounded size, if there is room for it.
func (g *registry) put(c container) bool {
	if c.id == "" || len(c.id) > maxText {
		return true
	}
	if c.key == "" {
		c.key = c.id
	}
	g.prepare(&c)
	g.mu.Lock()
	defer g.mu.Unlock()
	refused := g.refused
	g.store(&c)
	return g.refused == refused
}

// unlisted ends a list of all containers of an endpoint. Records older than the list are
// gone: those that are listed were put since it began.
func (g *registry) unlisted(from string, began time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire()
	for _, c := range g.byID {
		if c.from == from && c.toldAt.Before(began) {
			g.markGone(c)
		}
	}
}

// removed marks a container gone, if the endpoint is the one that reported it.
func (g *registry) removed(from, key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expire()
	if c := g.byID[key]; c != nil && c.from == from {
		g.markGone(c)
	}
}

func (g *registry) removedAfter(from, key string, when time.Time) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	c := g.byID[key]
	return c != nil && c.from == from && c.goneAt.After(when)
}

// rename gives a container a new name. What it did before then had the former one, for
// which "" stands for the name in the record.
func (g *registry) rename(from, id, former, name string, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.byID[id]; c != nil && c.from == from {
		n := *c
		n.name = clip(name, maxText)
		if former = cmp.Or(clip(former, maxText), c.name); former != "" && former != n.name {
			n.former = append(slices.Clone(c.former[max(0, len(c.former)+1-maxFormer):]), formerName{former, at})
		}
		n.measure()
		g.replace(c, &n)
	}
}

// nameAt returns the name that a container had at a time.
func (c *container) nameAt(when time.Time) string {
	for i := range c.former {
		if when.Before(c.former[i].until) {
			return c.former[i].name
		}
	}
	return c.name
}

// find returns the record of a cgroup: by the id in its path, from a runtime of the same
// domain, else by a record of the machine's runtimes with this cgroup path or one above it.
func (g *registry) find(p *place, path string) *container {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if p.named || p.kind == KindHelper {
		return nil
	}
	if p.id != "" {
		if c := g.byID[p.key()]; c != nil {
			return c
		}
		if p.domain == (domain{}) {
			return nil
		}
		// The machine's runtime may have put it here: docker run --cgroup-parent.
		if c := g.placed(path); c != nil && c.id == p.id {
			return c
		}
		return nil
	}
	if p.sandbox != "" {
		if c := g.byID[p.domain.key(p.sandbox)]; c != nil {
			return c
		}
	}
	if p.kind != KindPod && p.domain == (domain{}) {
		return g.placed(path)
	}
	return nil
}

// placed returns the record with a cgroup path or one above it. The lock is held.
func (g *registry) placed(path string) *container {
	if len(g.byPath) == 0 {
		return nil
	}
	for up := path; len(up) > 1; up = up[:strings.LastIndexByte(up, '/')] {
		if c := g.byPath[up]; c != nil {
			return c
		}
		if strings.LastIndexByte(up, '/') <= 0 {
			break
		}
	}
	return nil
}

func (g *registry) get(id string) *container {
	if id == "" {
		return nil
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byID[id]
}

// namesImage tells whether the record has a name of its image.
func (g *registry) namesImage(key string) bool {
	c := g.get(key)
	return c != nil && !isImageID(c.image)
}

// pod returns a record of a pod of a domain.
func (g *registry) pod(d domain, uid string) *container {
	if uid == "" {
		return nil
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.pods[d.key(uid)]
}

// prepare names the container and bounds its text. It needs no lock.
func (g *registry) prepare(c *container) {
	c.naming = nameByLabels(c.labels, g.projectLabel)
	n := &c.naming
	if n.pod == "" {
		n.pod = c.podName
	}
	for _, s := range []*string{&c.name, &c.image, &c.tag, &n.project, &n.service, &n.pod, &n.namespace, &n.podUID, &n.unit} {
		*s = clip(*s, maxText)
	}
	if c.kind == "" {
		c.kind = KindContainer
		if n.sandbox {
			c.kind = KindPod
		}
	}
	c.labels = clipLabels(c.labels)
	if len(c.volumes) > maxVolumes {
		c.volumes = c.volumes[:maxVolumes]
	}
	c.volumes = slices.Clone(c.volumes)
	for i := range c.volumes {
		v := &c.volumes[i]
		for _, s := range []*string{&v.name, &v.driver, &v.source, &v.destination, &v.fstype} {
			*s = clip(*s, maxText)
		}
	}
	c.measure()
}

// store puts a record in place of what is there. The lock is held.
func (g *registry) store(c *container) {
	g.expire()
	old := g.byID[c.key]
	if old != nil {
		// Among equal ranks the first endpoint wins: otherwise the name would alternate.
		other := old.rank > c.rank || old.rank == c.rank && old.from != c.from
		if old.from == c.from {
			c.keepOf(old)
		}
		if old.goneAt.IsZero() && (other || c.partial && !old.partial) || c.partial && !old.partial && old.from == c.from {
			if old.from == c.from {
				g.revive(old)
			}
			return
		}
	} else if len(g.byID) >= maxContainers || c.most > 0 && g.held[c.from].n >= c.most {
		g.refused++
		return
	}
	if !g.fits(old, c) {
		g.refused++
		if old == nil || old.from != c.from {
			return
		}
		kept := *old // what is new does not fit, but the container is there
		kept.toldAt, kept.entry, kept.goneAt = c.toldAt, nil, time.Time{}
		c = &kept
	}
	g.replace(old, c)
}

// others is the index in bytes of a record.
func (c *container) others() int {
	if c.domain != (domain{}) {
		return 1
	}
	return 0
}

// fits tells whether there is memory for a record in place of an old one, or nil.
func (g *registry) fits(old, c *container) bool {
	total, each := g.bytes[c.others()]+c.size, g.held[c.from].bytes+c.size
	if old != nil && old.others() == c.others() {
		total -= old.size
		if old.from == c.from {
			each -= old.size
		}
	}
	if c.others() == 1 {
		return total <= maxOtherRecords && each <= maxOtherEach
	}
	return total <= maxRecords
}

// measure sets the size of a record.
func (c *container) measure() {
	const str, entry = int(unsafe.Sizeof("")), 40 // of a map of strings: two of them, and what is free
	n := int(unsafe.Sizeof(*c)) + len(c.key) + len(c.id) + len(c.name) + len(c.image) + len(c.tag) + len(c.cgroupPath)
	for i := range c.former {
		n += int(unsafe.Sizeof(c.former[i])) + len(c.former[i].name)
	}
	for k, v := range c.labels {
		n += entry + 2*str + len(k) + len(v)
	}
	for i := range c.volumes {
		v := &c.volumes[i]
		n += int(unsafe.Sizeof(*v)) + len(v.name) + len(v.driver) + len(v.source) + len(v.destination) + len(v.fstype)
	}
	c.size = n
}

// keepOf keeps what an endpoint said before and no longer says.
func (c *container) keepOf(old *container) {
	if c.cgroupPath == "" {
		c.cgroupPath = old.cgroupPath // only the answer about a single container has it
	}
	c.former = old.former // only events say it
	// The list of an engine shows only the id of an image whose name was given to another
	// one, by a build or a pull.
	if isImageID(c.image) && old.image != "" && !isImageID(old.image) {
		c.image, c.tag, c.digest = old.image, old.tag, old.digest
	}
}

func (g *registry) replace(old, c *container) {
	if old != nil {
		g.forget(old)
	}
	g.byID[c.key] = c
	g.hold(c, 1)
	if c.cgroupPath != "" {
		g.byPath[c.cgroupPath] = c
	}
	if uid := c.domain.key(c.naming.podUID); uid != "" {
		// The sandbox has the labels of the pod itself: it is the best record.
		if have := g.pods[uid]; have == nil || have.rank <= c.rank && (c.kind == KindPod || have.kind != KindPod) {
			g.pods[uid] = c
		}
	}
	if !c.goneAt.IsZero() {
		c.entry = g.gone.PushBack(c)
	}
}

// markGone starts the time for which a record of a gone container is kept. The lock is held.
func (g *registry) markGone(c *container) {
	if c.goneAt.IsZero() {
		c.goneAt = g.now()
		c.entry = g.gone.PushBack(c)
	}
}

// revive is the opposite of markGone: the container was started again.
func (g *registry) revive(c *container) {
	if c.entry != nil {
		g.gone.Remove(c.entry)
	}
	c.entry, c.goneAt = nil, time.Time{}
}

func (g *registry) forget(c *container) {
	if c.entry != nil {
		g.gone.Remove(c.entry)
		c.entry = nil
	}
	if g.byID[c.key] == c {
		delete(g.byID, c.key)
		g.hold(c, -1)
	}
	if g.byPath[c.cgroupPath] == c {
		delete(g.byPath, c.cgroupPath)
	}
	if uid := c.domain.key(c.naming.podUID); g.pods[uid] == c {
		delete(g.pods, uid)
	}
}

// hold counts a record: 1 when it comes, -1 when it goes.
func (g *registry) hold(c *container, sign int) {
	h := g.held[c.from]
	h.n, h.bytes = h.n+sign, h.bytes+sign*c.size
	g.bytes[c.others()] += sign * c.size
	if g.held[c.from] = h; h.n <= 0 {
		delete(g.held, c.from)
	}
}

func (g *registry) expire() {
	limit := g.now().Add(-g.keep)
	for e := g.gone.Front(); e != nil && e.Value.(*container).goneAt.Before(limit); e = g.gone.Front() {
		g.forget(e.Value.(*container))
	}
}

// clip returns s as valid UTF-8 of about limit bytes at most. A string that was cut is
// copied, so that a short name does not keep a long answer in memory.
func clip(s string, limit int) string {
	if len(s) > limit {
		s = strings.Clone(s[:limit])
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// clipLabels returns the first maxLabels labels in the order of their keys, each of
// bounded size.
func clipLabels(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	kept := make(map[string]string, min(len(labels), maxLabels))
	size := 0
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		k, v := clip(key, maxText), clip(labels[key], maxLabelValue)
		size += len(k) + len(v)
		if len(kept) == maxLabels || size > maxLabelBytes {
			break
		}
		kept[k] = v
	}
	return kept
}

// setImage sets the image by its reference. A text that is not a reference is the name.
func (c *container) setImage(ref string) { c.image, c.tag, c.digest = splitImage(ref) }

// splitImage splits an image reference into name, tag and digest. An image id, or a text
// that is not a reference, is returned as the name.
func splitImage(ref string) (name, tag, digest string) {
	if isImageID(ref) {
		return ref, "", ""
	}
	r, err := reference.Parse(clip(ref, maxText))
	if err != nil {
		return ref, "", ""
	}
	named, ok := r.(reference.Named)
	if !ok {
		return ref, "", ""
	}
	if tagged, ok := r.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	if digested, ok := r.(reference.Digested); ok {
		digest = digested.Digest().String()
	}
	return named.Name(), tag, digest
}

// isImageID tells whether an image is named by its id only.
func isImageID(ref string) bool { return strings.HasPrefix(ref, "sha256:") || isHex(ref, 64) }
