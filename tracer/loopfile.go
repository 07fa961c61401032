package tracer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loopFile says which file a loop device is over.
type loopFile struct {
	fs     Dev // file system that holds the file
	ino    uint64
	offset uint64 // bytes into the file at which the device begins
	// guessed: found by its path, which may name another file in the mount namespace
	// where it was attached. Then only fs can be trusted.
	guessed bool
}

// errLoopDetached is the answer for a loop device without a file, and for other
// devices.
var errLoopDetached = errors.New("no file is attached")

// errLoopWaits is the answer for a loop device whose file system does not answer.
var errLoopWaits = errors.New("the file system of its backing file does not answer")

// loopPatience is how long to wait for an answer, counted from the question. It is
// short because an interval waits meanwhile.
const loopPatience = 250 * time.Millisecond

// loopDriver asks the kernel which files loop devices are over. The kernel passes
// the question on to the file system (LOOP_GET_STATUS64 calls vfs_getattr). On a
// network file system it is a request to a server, which may never answer, and whose
// answer may make the client drop cached pages. Therefore each attachment is asked
// about once, and in a goroutine of its own.
type loopDriver struct {
	ask      func(node, backing string) (loopFile, error)
	patience time.Duration

	mu    sync.Mutex
	held  bool                     // questions must wait
	asked map[string]*loopQuestion // by sysfs directory of the device
}

type loopQuestion struct {
	attached string // what the question was about: see attachment
	put      time.Time
	answered chan struct{}
	file     loopFile
	err      error
}

// theLoopDriver is the one that every Devices shares.
var theLoopDriver = &loopDriver{ask: askLoop, patience: loopPatience}

// attachment identifies an attachment of a loop device as well as possible without
// a question to the file system: by path and offset of the file, and since 5.15 by a
// number that counts attachments. ok is false when nothing is attached.
func attachment(dir string) (backing, id string, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, "loop", "backing_file"))
	if err != nil || len(b) == 0 {
		return "", "", false
	}
	offset, _ := os.ReadFile(filepath.Join(dir, "loop", "offset"))
	sequence, _ := os.ReadFile(filepath.Join(dir, "diskseq"))
	return strings.TrimSuffix(string(b), "\n"), string(b) + string(offset) + string(sequence), true
}

// file returns the file of a loop device. dir is the device's directory in sysfs,
// node its device file. The error wraps errLoopDetached, errLoopWaits while there is
// no answer yet, or an error of the kernel.
func (l *loopDriver) file(dir, node string) (loopFile, error) {
	backing, id, ok := attachment(dir)
	if !ok {
		return loopFile{}, fmt.Errorf("%s: %w", filepath.Base(dir), errLoopDetached)
	}
	l.mu.Lock()
	if l.held {
		l.mu.Unlock()
		return loopFile{}, fmt.Errorf("%s: not asked yet: %w", filepath.Base(dir), errLoopWaits)
	}
	q := l.asked[dir]
	if q == nil || q.attached != id || q.wait(0) && q.err != nil {
		q = &loopQuestion{attached: id, put: time.Now(), answered: make(chan struct{})}
		if l.asked == nil || len(l.asked) >= maxGoneDevices {
			l.asked = map[string]*loopQuestion{}
		}
		l.asked[dir] = q
		go func() {
			defer close(q.answered)
			q.file, q.err = l.ask(node, backing)
		}()
	}
	l.mu.Unlock()
	if !q.wait(l.patience - time.Since(q.put)) {
		return loopFile{}, fmt.Errorf("%s: %w", filepath.Base(dir), errLoopWaits)
	}
	return q.file, q.err
}

// hold makes questions wait, or allows them.
func (l *loopDriver) hold(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = on
}

// wait tells whether the question was answered within d.
func (q *loopQuestion) wait(d time.Duration) bool {
	select {
	case <-q.answered:
		return true
	default:
	}
	if d <= 0 {
		return false
	}
	select {
	case <-q.answered:
		return true
	case <-time.After(d):
		return q.wait(0) // both may have happened while this goroutine did not run
	}
}

// forget drops the answer for a device, which may be stale: before 5.15 a new attachment
// of the same path looks like the old one. A question without an answer stays open.
func (l *loopDriver) forget(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(dir)
}

// forgetAll drops the answers for all devices.
func (l *loopDriver) forgetAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for dir := range l.asked {
		l.drop(dir)
	}
}

func (l *loopDriver) drop(dir string) {
	if q := l.asked[dir]; q != nil && q.wait(0) {
		delete(l.asked, dir)
	}
}

// askLoop asks the driver. Where the device file cannot be opened it looks at the
// path of the backing file.
func askLoop(node, backing string) (loopFile, error) {
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		defer unix.Close(fd)
		info, err := unix.IoctlLoopGetStatus64(fd)
		if err == nil {
			return loopFile{
				fs: Dev(unix.Major(info.Device)<<20 | unix.Minor(info.Device)), ino: info.Inode, offset: info.Offset,
			}, nil
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(onHost(backing), &st); err != nil {
		return loopFile{}, err
	}
	return loopFile{fs: Dev(unix.Major(st.Dev)<<20 | unix.Minor(st.Dev)), guessed: true}, nil
}
