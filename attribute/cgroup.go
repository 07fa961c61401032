package attribute

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// kernfsHandle is FILEID_KERNFS (include/linux/exportfs.h): the handle of a kernfs
	// node is its 64-bit id in native byte order.
	kernfsHandle = 0xfe

	maxGone    = 1 << 17 // removed cgroups that keep their name
	maxMissing = 1 << 13 // ids that could not be resolved and wait for retryMissing
	maxDepth   = 128     // the kernel allows any depth; nobody uses this many

	retryMissing = 2 * time.Second
	stepPause    = 50 * time.Millisecond // between two steps of a shared walk
	stepDirs     = 256                   // directories read in one step
)

// miss is an id that could not be resolved.
type miss struct {
	until time.Time // when to ask again
	gone  bool      // the kernel has no such cgroup any more
}

// cgroup is one known cgroup. Only goneAt ever changes.
type cgroup struct {
	id     uint64
	path   string
	place  *place
	goneAt time.Time // zero while it lives
}

// tree knows the cgroups of one hierarchy by their ids.
type tree struct {
	root    string // directory of the hierarchy, "" when it is not mounted
	base    string // path of the cgroup at root, "/" unless only a part is mounted
	keep    time.Duration
	now     func() time.Time
	mountFD int    // of root, to open handles; -1 without
	kernfs  bool   // root is a cgroup file system, not a copy of one
	owner   uint32 // uid of root: what others own was delegated
	name    string // of root as the kernel names it below mountFD
	isBare  func(*place) bool

	mu      sync.Mutex
	handles bool // ids can be opened: needs CAP_DAC_READ_SEARCH
	byID    map[uint64]*cgroup
	gone    *list.List // of *cgroup, the longest removed first
	missing map[uint64]miss
	walk    *walk // the shared walk in progress, where ids cannot be opened
	stepAt  time.Time
	bare    uint64 // containers dropped before a runtime named them
	evicted uint64 // names dropped before their time
	looked  uint64 // ids resolved by handle
	stepped uint64 // directories read by shared walks
}

func newTree(root, base string, keep time.Duration, now func() time.Time) *tree {
	t := &tree{
		root: root, base: base, keep: keep, now: now, mountFD: -1,
		byID:    map[uint64]*cgroup{},
		gone:    list.New(),
		missing: map[uint64]miss{},
	}
	if root == "" {
		return t
	}
	t.owner = uidOf(root)
	var st unix.Statfs_t
	if unix.Statfs(root, &st) == nil {
		t.kernfs = st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	if !t.kernfs {
		return t
	}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return t
	}
	t.mountFD = fd
	// Under /proc/1/root, the kernel names it as process 1 does.
	if t.name, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil {
		t.name = root
	}
	if handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH); err == nil && handle.Type() == kernfsHandle && handle.Size() == 8 {
		_, err = t.open(binary.NativeEndian.Uint64(handle.Bytes()))
		t.handles = err == nil
	}
	return t
}

func (t *tree) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handles = false
	if t.mountFD < 0 {
		return nil
	}
	fd := t.mountFD
	t.mountFD = -1
	return unix.Close(fd)
}

// handle opens a cgroup by its id. The kernel answers ESTALE if it has none of this id.
func (t *tree) handle(id uint64) (fd int, err error) {
	var raw [8]byte
	binary.NativeEndian.PutUint64(raw[:], id)
	return unix.OpenByHandleAt(t.mountFD, unix.NewFileHandle(kernfsHandle, raw[:]), unix.O_PATH|unix.O_CLOEXEC)
}

// open asks the kernel for the path of an id. This takes one system call to open and one
// to read the name, whatever the size of the tree.
func (t *tree) open(id uint64) (string, error) {
	fd, err := t.handle(id)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if errors.Is(err, unix.ENAMETOOLONG) {
		name, err = longPath(fd)
	}
	if err != nil {
		return "", err
	}
	rel, ok := strings.CutPrefix(name, strings.TrimSuffix(t.name, "/"))
	if !ok || rel != "" && rel[0] != '/' {
		return "", fmt.Errorf("cgroup %d is at %q, not below %q: %w", id, name, t.root, fs.ErrNotExist)
	}
	return t.absolute(rel), nil
}

// absolute turns a path below root into a path from the root of the hierarchy.
func (t *tree) absolute(rel string) string {
	if t.base != "/" {
		rel = t.base + rel
	}
	if rel == "" {
		return "/"
	}
	return rel
}

// below returns the path below root of a path from the root of the hierarchy.
func (t *tree) below(p string) string { return strings.TrimPrefix(p, strings.TrimSuffix(t.base, "/")) }

// created adds a cgroup from a kernel event. The event cuts off or omits a very long
// path, so the kernel is asked for it while the cgroup exists. If it is gone already, the
// path of the event must do.
func (t *tree) created(id uint64, p string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if t.handles {
		if full, err := t.open(id); err == nil {
			p = full
		}
	}
	if p != "" {
		t.put(id, p)
	}
}

// removed marks a cgroup removed by a kernel event. Its name is kept, because its
// writeback comes later.
func (t *tree) removed(id uint64, p string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	c := t.byID[id]
	if c == nil {
		if p == "" {
			return
		}
		c = t.put(id, p)
	}
	t.markGone(c)
}

// markGone marks a cgroup removed. The lock is held.
func (t *tree) markGone(c *cgroup) {
	if !c.goneAt.IsZero() {
		return
	}
	c.goneAt = t.now()
	t.gone.PushBack(c)
	for t.gone.Len() > maxGone {
		t.drop(t.gone.Front())
		t.evicted++
	}
}

func (t *tree) put(id uint64, p string) *cgroup {
	if c := t.byID[id]; c != nil && c.path == p {
		return c
	}
	pl := parsePath(p, nil)
	if pl.kind != KindCgroup && pl.kind != KindSession && (pl.kind != KindUnit || !inSlices(p, pl.unit)) {
		pl = parsePath(p, t.delegated)
	}
	c := &cgroup{id: id, path: p, place: &pl}
	t.byID[id] = c
	delete(t.missing, id)
	return c
}

// expire drops the names of cgroups that have been gone for longer than keep. The lock is
// held.
func (t *tree) expire() {
	limit := t.now().Add(-t.keep)
	for e := t.gone.Front(); e != nil && e.Value.(*cgroup).goneAt.Before(limit); e = t.gone.Front() {
		t.drop(e)
	}
}

func (t *tree) drop(e *list.Element) {
	c := t.gone.Remove(e).(*cgroup)
	if t.isBare != nil && t.isBare(c.place) {
		t.bare++
	}
	if t.byID[c.id] == c {
		delete(t.byID, c.id)
	}
}

// get returns the cgroup of an id. It asks the kernel about an unknown id.
func (t *tree) get(id uint64) (cgroup, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if c := t.byID[id]; c != nil {
		return *c, true
	}
	if id == 0 || t.root == "" {
		return cgroup{}, false
	}
	now := t.now()
	if m, ok := t.missing[id]; ok && now.Before(m.until) {
		return cgroup{}, false
	}
	gone := false
	if t.handles {
		p, err := t.open(id)
		gone = errors.Is(err, unix.ESTALE)
		if err == nil {
			t.looked++
			return *t.put(id, p), true
		}
		if errors.Is(err, unix.EPERM) {
			t.handles = false // the privilege was dropped: walk from now on
		}
	}
	if !t.handles {
		t.step(now)
		if c := t.byID[id]; c != nil {
			return *c, true
		}
	}
	if len(t.missing) >= maxMissing {
		clear(t.missing)
	}
	if t.handles {
		t.missing[id] = miss{now.Add(retryMissing), gone}
	}
	return cgroup{}, false
}

// isGone tells whether the kernel said about an unresolved id that it has no such cgroup
// any more: it was removed before anybody read its name.
func (t *tree) isGone(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.missing[id].gone
}

// step walks a part of the tree. Where ids cannot be opened, an unknown id must not cost a
// walk of a large tree each time: all callers share one walk, which continues where it
// stopped, with a pause after each step.
func (t *tree) step(now time.Time) {
	if now.Sub(t.stepAt) < stepPause {
		return
	}
	t.stepAt = now
	if t.walk == nil {
		t.walk = &walk{root: t.root, kernfs: t.kernfs, todo: []string{""}}
	}
	for range stepDirs {
		t.stepped++
		more, err := t.walk.next(t.found)
		if err != nil || !more {
			t.walk = nil
			return
		}
	}
}

func (t *tree) found(id uint64, rel string) { t.put(id, t.absolute(rel)) }

// walkAll walks the whole tree, once, at the start.
func (t *tree) walkAll() error {
	if t.root == "" {
		return errNoMount
	}
	w := walk{root: t.root, kernfs: t.kernfs, todo: []string{""}}
	for {
		type entry struct {
			id  uint64
			rel string
		}
		var batch []entry
		more, err := true, error(nil)
		for more && err == nil && len(batch) < 512 {
			more, err = w.next(func(id uint64, rel string) { batch = append(batch, entry{id, rel}) })
		}
		t.mu.Lock()
		for _, e := range batch {
			t.found(e.id, e.rel)
		}
		t.mu.Unlock()
		if err != nil {
			return fmt.Errorf("walking the cgroups at %q: %w", t.root, err)
		}
		if !more {
			return nil
		}
	}
}

// check looks at n random cgroups and marks those gone that no longer exist: the kernel's
// event was lost.
func (t *tree) check(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if t.root == "" {
		return
	}
	for id, c := range t.byID {
		if n--; n < 0 {
			return
		}
		if !c.goneAt.IsZero() {
			continue
		}
		var err error
		if t.handles {
			var fd int
			if fd, err = t.handle(id); err == nil {
				err = unix.Close(fd)
			}
		} else {
			var st unix.Stat_t
			st, err = statBelow(t.root, t.below(c.path))
			if err == nil && st.Ino != id {
				err = unix.ESTALE
			}
		}
		if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
			t.markGone(c)
		}
	}
}

// walk is a walk over directories that can pause after each directory.
type walk struct {
	root   string
	kernfs bool
	todo   []string // paths below root, "" for root itself
	buf    []byte
}

// next reads one directory and calls found with its subdirectories (and root itself). It
// returns false when nothing is left. It skips directories that vanish; only an unreadable
// root is an error.
func (w *walk) next(found func(id uint64, rel string)) (bool, error) {
	if len(w.todo) == 0 {
		return false, nil
	}
	rel := w.todo[len(w.todo)-1]
	w.todo = w.todo[:len(w.todo)-1]
	fd, err := w.open(rel)
	if rel == "" && errors.Is(err, unix.ELOOP) || rel == "" && errors.Is(err, unix.ENOTDIR) {
		fd, err = unix.Open(w.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		if rel == "" {
			return false, err
		}
		return len(w.todo) > 0, nil
	}
	defer unix.Close(fd)
	if rel == "" {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return false, err
		}
		found(st.Ino, "")
	}
	if w.buf == nil {
		w.buf = make([]byte, 32<<10)
	}
	for {
		n, err := unix.Getdents(fd, w.buf)
		if err != nil || n <= 0 {
			return len(w.todo) > 0, nil
		}
		w.entries(fd, rel, w.buf[:n], found)
	}
}

// open opens a directory to read it. A path longer than the kernel takes is opened in
// steps.
func (w *walk) open(rel string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if len(w.root)+len(rel) <= maxPath {
		return unix.Open(w.root+rel, flags, 0)
	}
	fd, err := openBelow(w.root, rel)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return unix.Openat(fd, ".", flags, 0)
}

// entries reads linux_dirent64 records (getdents64(2)). The inode number of a cgroup
// directory is its id, so no further call is needed.
func (w *walk) entries(fd int, rel string, b []byte, found func(uint64, string)) {
	const header = 19 // u64 ino, s64 off, u16 reclen, u8 type, then the name
	for len(b) > header {
		ino := binary.NativeEndian.Uint64(b)
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size <= header || size > len(b) {
			return
		}
		kind := b[18]
		name, _, _ := strings.Cut(string(b[header:size]), "\x00")
		b = b[size:]
		if kind != unix.DT_DIR || name == "." || name == ".." {
			continue
		}
		child := rel + "/" + name
		found(ino, child)
		if strings.Count(child, "/") >= maxDepth {
			continue
		}
		if w.kernfs {
			// A cgroup without children has two links. This saves listing its control
			// files, some sixty.
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Nlink == 2 {
				continue
			}
		}
		w.todo = append(w.todo, child)
	}
}

// process returns the pid of a process in a cgroup.
func (t *tree) process(c *cgroup) (pid int, err error) {
	if t.root == "" {
		return 0, errNoMount
	}
	dir, err := openBelow(t.root, t.below(c.path))
	if err != nil {
		return 0, err
	}
	fd, err := unix.Openat(dir, "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	unix.Close(dir)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: clip(c.path, maxText) + "/cgroup.procs", Err: err}
	}
	f := os.NewFile(uintptr(fd), "cgroup.procs")
	defer f.Close()
	_, err = fmt.Fscan(f, &pid)
	if err == nil && pid == 0 {
		err = fmt.Errorf("processes of %q are outside this PID namespace: %w", c.path, fs.ErrNotExist)
	}
	return pid, err
}
