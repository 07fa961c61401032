package tracer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// delayedKprobe is a kprobe on a function of a module that need not be loaded. Each
// time the kernel loads the module, it sets the probe before the module's first
// instruction. Only events that are defined by name (kprobe_events) can do that.
type delayedKprobe struct {
	tracefs, name string
	place         string // MODULE:FUNCTION
	fd            int
}

// probeGroup begins the group name of our events; the pid follows.
const probeGroup = "iotrace_bpf_"

func newDelayedKprobe(tracefs, module, function string, program *ebpf.Program) (*delayedKprobe, error) {
	if tracefs == "" {
		return nil, errors.New("tracefs is not mounted")
	}
	k := &delayedKprobe{tracefs: tracefs, name: probeGroup + strconv.Itoa(os.Getpid()) + "/" + function + "_" + strconv.Itoa(program.FD()),
		place: module + ":" + function, fd: -1}
	if err := k.define("p:" + k.name + " " + k.place); err != nil {
		return nil, err
	}
	fail := func(err error) (*delayedKprobe, error) { return nil, errors.Join(err, k.Close()) }
	text, err := os.ReadFile(filepath.Join(tracefs, "events", k.name, "id"))
	if err != nil {
		return fail(fmt.Errorf("reading the id of the probe: %w", err))
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fail(fmt.Errorf("reading the id of the probe: %w", err))
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Sample_type: unix.PERF_SAMPLE_RAW, Sample: 1, Wakeup: 1}
	attr.Size = uint32(unix.PERF_ATTR_SIZE_VER1)
	if k.fd, err = unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC); err != nil {
		k.fd = -1
		return fail(fmt.Errorf("opening the probe: %w", err))
	}
	if err := unix.IoctlSetInt(k.fd, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		return fail(fmt.Errorf("attaching to the probe: %w", err))
	}
	if err := unix.IoctlSetInt(k.fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		return fail(fmt.Errorf("enabling the probe: %w", err))
	}
	return k, nil
}

// define writes a line to the kernel's list of probes.
func (k *delayedKprobe) define(line string) error {
	f, err := os.OpenFile(filepath.Join(k.tracefs, "kprobe_events"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("defining a probe: %w", err)
	}
	_, err = f.WriteString(line)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("defining probe %q: %w", line, err)
	}
	return nil
}

// verify returns an error if the module, which is loaded by now, has no such function. The
// kernel does not say so of a probe that waited; it refuses another one, which runs nothing.
func (k *delayedKprobe) verify() error {
	again := delayedKprobe{tracefs: k.tracefs, name: k.name + "_again", fd: -1}
	if err := again.define("p:" + again.name + " " + k.place); err != nil {
		return err
	}
	return again.Close()
}

// Close removes the probe.
func (k *delayedKprobe) Close() error {
	var err error
	if k.fd >= 0 {
		err = unix.Close(k.fd)
		k.fd = -1
	}
	return errors.Join(err, k.define("-:"+k.name))
}

// clearProbes removes the probes that killed processes of this program left behind.
// Probes of a living process are in use.
func clearProbes(tracefs, proc string) {
	groups, _ := filepath.Glob(filepath.Join(tracefs, "events", probeGroup+"*"))
	for _, dir := range groups {
		group := filepath.Base(dir)
		pid := strings.TrimPrefix(group, probeGroup)
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(proc, pid)); err == nil {
			continue
		}
		events, _ := filepath.Glob(filepath.Join(dir, "*", "id"))
		for _, e := range events {
			k := delayedKprobe{tracefs: tracefs, name: group + "/" + filepath.Base(filepath.Dir(e)), fd: -1}
			_ = k.Close()
		}
	}
}
