//go:build integration || vm

package enginetest

import (
	"os/exec"
	"testing"
)

// StartSwarm runs a dockerd that is the only node of a swarm, until the test ends. Its
// mounts are those of a machine that systemd booted: shared, but in a mount namespace of
// its own. Port is that of the swarm's managers, on loopback.
func StartSwarm(t testing.TB, port string) *Engine {
	t.Helper()
	e := start(t, "unshare", "--mount", "--propagation", "shared", "dockerd")
	e.Docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:"+port)
	t.Cleanup(func() { // before the engine ends
		if out, err := e.Command("swarm", "leave", "--force").CombinedOutput(); err != nil {
			t.Errorf("leaving the swarm: %v\n%s", err, out)
		}
	})
	return e
}

// daemon is the command of an engine with its flags.
func (e *Engine) daemon(flags ...string) *exec.Cmd {
	all := append(append([]string{}, e.program[1:]...), flags...)
	return exec.Command(e.program[0], all...)
}
