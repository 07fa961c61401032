package attribute

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The size that was asked for: what runs on one cluster, on one host.
const (
	manyContainers = 1500
	manyProjects   = 300
	manyCgroups    = 10_000
)

func manyRecords() []container {
	all := make([]container, manyContainers)
	for i := range all {
		all[i] = container{
			id: fmt.Sprintf("%064x", i), name: fmt.Sprintf("project%d-web-%d", i%manyProjects, i), runtime: runtimeDocker,
			image: "registry.example/team/app", tag: "v1", from: "bench", rank: 1,
			labels: map[string]string{
				"com.docker.compose.project": fmt.Sprintf("project%d", i%manyProjects), "com.docker.compose.service": "web",
				"com.docker.compose.config-hash": fmt.Sprintf("%064x", i), "com.docker.compose.container-number": "1",
				"com.docker.compose.project.working_dir": "/srv/projects/some/where", "org.opencontainers.image.version": "24.04",
			},
			volumes: []volume{{name: fmt.Sprintf("v%d", i), driver: "local", source: fmt.Sprintf("/var/lib/docker/volumes/v%d/_data", i), destination: "/data"}},
		}
	}
	return all
}

func putAll(g *registry, all []container) {
	for _, c := range all {
		g.put(c)
	}
}

// full returns a resolver that knows manyCgroups, manyContainers of them
// containers.
func full(tb testing.TB) *Resolver {
	tb.Helper()
	r, err := NewResolver(Options{CgroupRoot: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	for i := range uint64(manyCgroups) {
		if i < manyContainers {
			r.CgroupCreated(i+2, fmt.Sprintf("/system.slice/docker-%064x.scope", i))
		} else {
			r.CgroupCreated(i+2, fmt.Sprintf("/system.slice/system-worker.slice/worker@%d.service", i))
		}
	}
	putAll(r.registry, manyRecords())
	return r
}

// 300 projects of 1,500 containers are told apart, and nothing is missing.
func TestManyContainers(t *testing.T) {
	r := full(t)
	projects := map[string]int{}
	for i := range uint64(manyContainers) {
		projects[r.Owner(i+2).Project]++
	}
	if len(projects) != manyProjects {
		t.Errorf("%d projects", len(projects))
	}
	for p, n := range projects {
		if n != manyContainers/manyProjects {
			t.Errorf("project %q has %d containers", p, n)
		}
	}
	if s := r.Stats(); s.Known != manyCgroups || s.Pending != 0 || s.Containers != manyContainers {
		t.Errorf("stats %+v", s)
	}
}

// Cgroups that come and go cost neither a walk nor memory.
func TestChurnWalksNothing(t *testing.T) {
	c := newClock()
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), now: c.now})
	var most int
	for i := range uint64(100 * 600) { // ten minutes of 100 a second
		p := fmt.Sprintf("/docker/%064x", i)
		r.CgroupCreated(i+2, p)
		if o := r.Owner(i + 2); o.Kind != KindContainer {
			t.Fatalf("got %+v", o)
		}
		r.CgroupRemoved(i+2, p)
		if i%100 == 99 {
			c.advance(1e9)
			s := r.Stats()
			most = max(most, s.Known)
			if s.Steps != 0 || s.Lookups != 0 || s.Evicted != 0 {
				t.Fatalf("stats %+v", s)
			}
		}
	}
	if limit := 100 * (int(defaultKeep.Seconds()) + 2); most > limit {
		t.Errorf("%d names kept, more than %d", most, limit)
	}
}

// BenchmarkOwner is one interval's naming: every container once.
func BenchmarkOwner(b *testing.B) {
	r := full(b)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		r.Owner(uint64(i%manyContainers) + 2)
	}
}

func BenchmarkChurn(b *testing.B) {
	r := full(b)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		id, p := uint64(1<<32+i), fmt.Sprintf("/docker/%064x", i)
		r.CgroupCreated(id, p)
		r.Owner(id)
		r.CgroupRemoved(id, p)
	}
}

func BenchmarkStats(b *testing.B) {
	r := full(b)
	b.ResetTimer()
	for range b.N {
		r.Stats()
	}
}

// BenchmarkSync is what a full list of an engine costs us.
func BenchmarkSync(b *testing.B) {
	r := full(b)
	all := manyRecords()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		putAll(r.registry, all)
	}
}

// BenchmarkMemory reports the bytes that a cgroup and a container cost.
func BenchmarkMemory(b *testing.B) {
	for range b.N {
		before := live()
		r, err := NewResolver(Options{CgroupRoot: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		for i := range uint64(manyCgroups) {
			r.CgroupCreated(i+2, fmt.Sprintf("/system.slice/docker-%064x.scope", i))
		}
		cgroups := live()
		putAll(r.registry, manyRecords())
		containers := live()
		b.ReportMetric(float64(cgroups-before)/manyCgroups, "B/cgroup")
		b.ReportMetric(float64(containers-cgroups)/manyContainers, "B/container")
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func live() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// realTree makes cgroups in this machine's hierarchy; it needs root.
func realTree(b *testing.B, n int) (h Hierarchy, ids []uint64) {
	b.Helper()
	h, err := FindHierarchy("")
	if err != nil {
		b.Fatal(err)
	}
	top := filepath.Join(h.Mount, fmt.Sprintf("iotrace-bench-%d", os.Getpid()))
	if err := os.Mkdir(top, 0o755); err != nil {
		b.Skipf("making cgroups: %v", err)
	}
	var dirs []string
	b.Cleanup(func() {
		for i := len(dirs) - 1; i >= 0; i-- {
			os.Remove(dirs[i])
		}
		if err := os.Remove(top); err != nil {
			b.Error(err)
		}
	})
	for i := range n {
		parent := filepath.Join(top, fmt.Sprintf("slice%d", i/100))
		if i%100 == 0 {
			if err := os.Mkdir(parent, 0o755); err != nil {
				b.Fatal(err)
			}
			dirs = append(dirs, parent)
		}
		dir := filepath.Join(parent, fmt.Sprintf("%064x", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		dirs = append(dirs, dir)
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			b.Fatal(err)
		}
		ids = append(ids, st.Ino)
	}
	return h, ids
}

// BenchmarkRealWalk is the walk at the start over 10,000 real cgroups.
func BenchmarkRealWalk(b *testing.B) {
	_, ids := realTree(b, manyCgroups)
	b.ResetTimer()
	for range b.N {
		r, err := NewResolver(Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Walk(); err != nil {
			b.Fatal(err)
		}
		if o := r.Owner(ids[0]); o.Kind != KindContainer {
			b.Fatalf("got %+v", o)
		}
		r.Close()
	}
}

// BenchmarkRealUnknown resolves ids that no event told of, among 10,000 real
// cgroups.
func BenchmarkRealUnknown(b *testing.B) {
	_, ids := realTree(b, manyCgroups)
	r, err := NewResolver(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.ResetTimer()
	for i := range b.N {
		id := ids[i%len(ids)]
		if o := r.Owner(id); o.Kind != KindContainer {
			b.Fatalf("got %+v", o)
		}
		r.tree.mu.Lock()
		delete(r.tree.byID, id)
		r.tree.mu.Unlock()
	}
}

// BenchmarkRealCheck is the second's look at a few cgroups.
func BenchmarkRealCheck(b *testing.B) {
	realTree(b, manyCgroups)
	r, err := NewResolver(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if err := r.Walk(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		r.tree.check(checkCount)
	}
}
