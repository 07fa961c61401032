package attribute

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clock is a time that moves when told.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func newClock() *clock { return &clock{time.Unix(1_700_000_000, 0)} }

func mkdir(t testing.TB, parts ...string) (id uint64) {
	t.Helper()
	p := filepath.Join(parts...)
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
	return inode(t, p)
}

func inode(t testing.TB, p string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func newTestResolver(t testing.TB, opts Options) *Resolver {
	t.Helper()
	r, err := NewResolver(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestWalkNamesWhatExists(t *testing.T) {
	root := t.TempDir()
	docker := mkdir(t, root, "docker", idA)
	unit := mkdir(t, root, "system.slice", "ssh.service")
	weird := mkdir(t, root, "we\x1b[2Jird\xff\n")
	if err := os.Symlink(root, filepath.Join(root, "loop")); err != nil {
		t.Fatal(err)
	}
	r := newTestResolver(t, Options{CgroupRoot: root})
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		id   uint64
		want Owner
	}{
		{inode(t, root), Owner{Kind: KindCgroup, Path: "/"}},
		{docker, Owner{Kind: KindContainer, Path: "/docker/" + idA, Runtime: "docker", ContainerID: idA}},
		{unit, Owner{Kind: KindUnit, Path: "/system.slice/ssh.service", Unit: "ssh.service", Project: "ssh.service", ProjectRule: RuleUnit}},
		{weird, Owner{Kind: KindCgroup, Path: "/we\x1b[2Jird\xff\n"}},
		{1<<63 + 5, Owner{}},
		{0, Owner{}},
	} {
		tt.want.Cgroup = tt.id
		if got := r.Owner(tt.id); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tt.want) {
			t.Errorf("Owner(%d)\n got %+v\nwant %+v", tt.id, got, tt.want)
		}
	}
	if s := r.Stats(); s.Known != 6 || s.Pending != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestRemovedCgroupKeepsItsName(t *testing.T) {
	c := newClock()
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), Keep: time.Minute, now: c.now})
	r.CgroupCreated(7, "/docker/"+idA)
	if o := r.Owner(7); o.ContainerID != idA || o.Gone {
		t.Errorf("alive: %+v", o)
	}
	r.CgroupRemoved(7, "/docker/"+idA)
	r.CgroupRemoved(8, "/docker/"+idB) // its creation was before our time
	c.advance(time.Minute)
	for id, want := range map[uint64]string{7: idA, 8: idB} {
		if o := r.Owner(id); o.ContainerID != want || !o.Gone {
			t.Errorf("%d a minute after: %+v", id, o)
		}
	}
	c.advance(time.Second)
	if o := r.Owner(7); o.Kind != KindUnknown {
		t.Errorf("after its time: %+v", o)
	}
	if s := r.Stats(); s.Known != 1 || s.Gone != 0 || s.Bare != 2 { // the root was found meanwhile
		t.Errorf("stats %+v", s)
	}
}

func TestReusedIDNamesTheNewCgroup(t *testing.T) {
	c := newClock()
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), now: c.now})
	r.CgroupCreated(7, "/docker/"+idA)
	r.CgroupRemoved(7, "/docker/"+idA)
	r.CgroupCreated(7, "/docker/"+idB)
	c.advance(time.Hour)
	if o := r.Owner(7); o.ContainerID != idB || o.Gone {
		t.Errorf("got %+v", o)
	}
}

func TestGoneNamesAreBounded(t *testing.T) {
	c := newClock()
	tr := newTree("", "/", time.Minute, c.now)
	for i := range uint64(maxGone + 10) {
		p := fmt.Sprintf("/docker/%064x", i)
		tr.created(i+1, p)
		tr.removed(i+1, p)
	}
	if known, gone := tr.counts(); known != maxGone || gone != maxGone || tr.evicted != 10 {
		t.Errorf("known %d, gone %d, evicted %d", known, gone, tr.evicted)
	}
}

func TestKeepBelowWriteback(t *testing.T) {
	if _, err := NewResolver(Options{CgroupRoot: t.TempDir(), Keep: time.Second}); err == nil {
		t.Error("a second was accepted")
	}
}

// Where ids cannot be opened, unknown ones share one walk, in pieces.
func TestUnknownIDsWalkInPieces(t *testing.T) {
	root := t.TempDir()
	const n = 3 * stepDirs
	var last uint64
	for i := range n {
		last = mkdir(t, root, "docker", fmt.Sprintf("%064x", i))
	}
	c := newClock()
	r := newTestResolver(t, Options{CgroupRoot: root, now: c.now})
	for range 1000 { // within one instant: one piece, however many ask
		r.Owner(1 << 50)
	}
	if s := r.Stats(); s.Steps != stepDirs {
		t.Errorf("%d directories for 1000 questions, want %d", s.Steps, stepDirs)
	}
	for range 4 {
		c.advance(stepPause)
		r.Owner(last)
	}
	if o := r.Owner(last); o.Kind != KindContainer {
		t.Errorf("not found piece by piece: %+v", o)
	}
}

func TestWalkWithoutRoot(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: filepath.Join(t.TempDir(), "nothing")})
	if err := r.Walk(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Walk: %v", err)
	}
	r.CgroupCreated(7, "/docker/"+idA)
	if o := r.Owner(7); o.ContainerID != idA {
		t.Errorf("events alone: %+v", o)
	}
}

func TestLostRemovalIsNoticed(t *testing.T) {
	root := t.TempDir()
	dead := mkdir(t, root, "docker", idA)
	alive := mkdir(t, root, "docker", idB)
	r := newTestResolver(t, Options{CgroupRoot: root})
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "docker", idA)); err != nil {
		t.Fatal(err)
	}
	r.tree.check(100)
	if !r.Owner(dead).Gone || r.Owner(alive).Gone {
		t.Errorf("dead %+v, alive %+v", r.Owner(dead), r.Owner(alive))
	}
}

func TestFindHierarchy(t *testing.T) {
	tests := []struct {
		name, cgroup, mounts string
		want                 Hierarchy
	}{
		{"v2", "0::/user.slice\n",
			"35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
			Hierarchy{Version: 2, Mount: "/sys/fs/cgroup", Root: "/"}},
		{"v1", "9:name=systemd:/\n4:memory:/x\n7:blkio:/\n",
			"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n",
			Hierarchy{ID: 4, Version: 1, Mount: "/sys/fs/cgroup/memory", Root: "/"}},
		{"v1 co-mounted", "4:memory,hugetlb:/x\n",
			"35 31 0:32 / /sys/fs/cgroup/memory,hugetlb rw - cgroup cgroup rw,memory,hugetlb\n",
			Hierarchy{ID: 4, Version: 1, Mount: "/sys/fs/cgroup/memory,hugetlb", Root: "/"}},
		{"hybrid", "4:memory:/\n1:name=systemd:/\n0::/\n",
			"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			Hierarchy{ID: 4, Version: 1, Mount: "/sys/fs/cgroup/memory", Root: "/"}},
		{"memory nowhere", "1:name=systemd:/\n0::/\n",
			"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			Hierarchy{Version: 2, Mount: "/sys/fs/cgroup/unified", Root: "/"}},
		{"not mounted", "4:memory:/\n0::/\n", "22 27 0:21 / /proc rw - proc proc rw\n",
			Hierarchy{ID: 4, Version: 1, Root: "/"}},
		{"whole mount before a part", "0::/\n",
			"35 24 0:30 /../.. /x rw - cgroup2 cgroup2 rw\n36 24 0:30 / /run/copy rw - cgroup2 cgroup2 rw\n37 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n38 24 0:30 / /z rw - cgroup2 cgroup2 rw\n",
			Hierarchy{Version: 2, Mount: "/sys/fs/cgroup", Root: "/"}},
		{"only a part", "0::/\n", "35 24 0:30 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
			Hierarchy{Version: 2, Mount: "/sys/fs/cgroup", Root: "/docker/x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			proc := t.TempDir()
			mkdir(t, proc, "self")
			for name, text := range map[string]string{"cgroup": tt.cgroup, "mountinfo": tt.mounts} {
				if err := os.WriteFile(filepath.Join(proc, "self", name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := FindHierarchy(proc)
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
	if _, err := FindHierarchy(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without cgroups: %v", err)
	}
}

func TestPathsBelowPartialMount(t *testing.T) {
	root := t.TempDir()
	id := mkdir(t, root, "system.slice", "docker-"+idB+".scope")
	tr := newTree(root, "/docker/"+idA, time.Minute, time.Now)
	if err := tr.walkAll(); err != nil {
		t.Fatal(err)
	}
	c, ok := tr.get(id)
	if !ok || c.place.id != idB || c.place.parent != idA {
		t.Errorf("got %+v, place %+v", c, c.place)
	}
	tr.check(100)
	if c, _ := tr.get(id); !c.goneAt.IsZero() {
		t.Error("taken for gone")
	}
}
