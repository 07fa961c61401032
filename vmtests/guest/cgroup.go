package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// hierarchies returns the mounted cgroup hierarchies; the first is the memory
// controller's, and owners are named by it.
func hierarchies() []string {
	b, _ := os.ReadFile("/proc/mounts")
	var memory string
	var rest []string
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		switch {
		case f[2] == "cgroup" && hasOption(f[3], "memory"):
			memory = f[1]
		case f[2] == "cgroup" || f[2] == "cgroup2":
			rest = append(rest, f[1])
		}
	}
	if memory == "" { // v2 only: its mount is all there is
		return rest
	}
	return append([]string{memory}, rest...)
}

func hasOption(options, want string) bool {
	for _, o := range strings.Split(options, ",") {
		if o == want {
			return true
		}
	}
	return false
}

// Cgroup is a cgroup of one scenario, in every hierarchy that is mounted.
type Cgroup struct {
	g    *Guest
	name string
}

// Cgroup makes a cgroup. A number follows the name in its path, so late writeback
// of one scenario is never mistaken for that of the next.
func (g *Guest) Cgroup(name string) *Cgroup {
	g.Helper()
	g.cgroups++
	return g.CgroupAt(fmt.Sprintf("%s-%d-%d", name, os.Getpid(), g.cgroups+g.serial*100))
}

// CgroupAt makes a cgroup with exactly this name, for names with a meaning: those
// of containers and units.
func (g *Guest) CgroupAt(name string) *Cgroup {
	g.Helper()
	c := &Cgroup{g: g, name: name}
	if err := makeCgroup(c.name); err != nil {
		g.Fatalf("cgroup %q: %v", c.name, err)
	}
	g.Cleanup(func() { c.remove() })
	return c
}

func makeCgroup(name string) error {
	for _, h := range hierarchies() {
		dir := filepath.Join(h, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// A v1 cpuset accepts no task before it has processors and memory.
		for _, attr := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(h, attr)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, attr), b, 0o644)
			}
		}
	}
	return nil
}

// Path is the value of iotrace.cgroup.path for this cgroup.
func (c *Cgroup) Path() string { return "/" + c.name }

// ID is the number of the cgroup in the memory controller's hierarchy.
func (c *Cgroup) ID() uint64 {
	c.g.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(hierarchies()[0], c.name), &st); err != nil {
		c.g.Fatalf("id of cgroup %q: %v", c.name, err)
	}
	return st.Ino
}

// File is the path of one of its control files, in the memory controller's hierarchy.
func (c *Cgroup) File(name string) string { return filepath.Join(hierarchies()[0], c.name, name) }

// Remove removes the cgroup, which must have no process left, and waits until it is gone.
func (c *Cgroup) Remove() {
	c.g.Helper()
	if err := c.remove(); err != nil {
		c.g.Fatalf("remove cgroup %q: %v", c.name, err)
	}
}

func (c *Cgroup) remove() error {
	var last error
	for _, h := range hierarchies() {
		dir := filepath.Join(h, c.name)
		err := poll(20*time.Second, func() bool {
			last = os.Remove(dir)
			return last == nil || os.IsNotExist(last)
		})
		if err != nil {
			return last
		}
	}
	return nil
}

// inCgroup is a command that first moves itself into the cgroup and only then
// becomes the program, so that all of its memory is charged there.
func inCgroup(name string, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(self(), append([]string{"exec", name, program}, args...)...)
	cmd.Env = append(os.Environ(), envWorker+"=1")
	return cmd
}

// self is the program of the workers: command worker in a guest, this program on a
// machine used in place of a guest.
func self() string {
	if _, err := os.Stat(workerPath); err == nil {
		return workerPath
	}
	return "/proc/self/exe"
}

// Command is a program to be run in the cgroup, not yet started. It is killed at the scenario's end.
func (c *Cgroup) Command(program string, args ...string) *exec.Cmd {
	cmd := inCgroup(c.name, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: 0, Setpgid: true}
	c.g.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		}
	})
	return cmd
}

// Run runs a program in the cgroup to its end and returns what it printed; a
// failure ends the scenario.
func (c *Cgroup) Run(program string, args ...string) string {
	c.g.Helper()
	out, err := c.Command(program, args...).CombinedOutput()
	if err != nil {
		c.g.Fatalf("%s %s in cgroup %q: %v\n%s", program, strings.Join(args, " "), c.name, err, out)
	}
	return string(out)
}

// LimitMemory limits the memory of the cgroup, in bytes; the excess goes to swap.
func (c *Cgroup) LimitMemory(n int64) {
	c.g.Helper()
	limit := "memory.max"
	if c.g.CgroupV1() {
		limit = "memory.limit_in_bytes"
	}
	c.g.WriteFile(c.File(limit), fmt.Sprint(n))
}
