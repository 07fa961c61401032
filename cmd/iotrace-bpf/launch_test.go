package main

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// TestEngineContainer: lines of mount tables as Docker 20.10 and 28, Podman and a machine
// without an engine have them.
func TestEngineContainer(t *testing.T) {
	id := strings.Repeat("0a1b2c3d", 8)
	for name, tt := range map[string]struct{ table, want string }{
		"docker":      {"595 581 8:1 /var/lib/docker/containers/" + id + "/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/sda1 rw\n", id},
		"own disk":    {"20 1 0:1 / / rw - overlay overlay rw\n596 581 8:17 /docker/containers/" + id + "/hostname /etc/hostname rw - ext4 /dev/sdb1 rw\n", id},
		"a volume":    {"595 581 8:1 /srv/containers/" + id + "/x /data rw - ext4 /dev/sda1 rw\n", ""},
		"short":       {"595 581 8:1 /var/lib/docker/containers/" + id[:60] + "/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", ""},
		"not hex":     {"595 581 8:1 /var/lib/docker/containers/" + strings.Repeat("x", 64) + "/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", ""},
		"cut off":     {"595 581 8:1 /var/lib/docker/containers\n", ""},
		"podman":      {"595 581 0:30 /containers/overlay-containers/" + id + "/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n", ""},
		"no engine":   {"22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n", ""},
		"empty table": {"", ""},
	} {
		if got := engineContainer(tt.table); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// TestLaunchUsage: mistakes are said before a container is made.
func TestLaunchUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"launch", "--no-tui"}, "hint: iotrace-bpf help launch"},
		{[]string{"launch", "--", "--bogus"}, "iotrace-bpf: unknown flag \"--bogus\"\nhint: iotrace-bpf help flags shows all flags\n"},
		{[]string{"launch", "--", "--by", "projct"}, "project"},
		{[]string{"launch", "--", "launch"}, "launch cannot launch itself"},
		{[]string{"launch", "--", "check", "--by", "x"}, "--by is not a flag of check"},
		{[]string{"launch", "--", "--no-tui"}, "this is no container of a Docker engine\nhint: launch is for a task of a Docker Swarm"},
	} {
		var stdout, stderr strings.Builder
		if code := run(t.Context(), tt.args, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%q: %d %q %q, want %q", tt.args, code, stdout.String(), stderr.String(), tt.want)
		}
	}
}

// TestLaunchedContainer: the variables of the task are those of the container, which ends
// with its standard input.
func TestLaunchedContainer(t *testing.T) {
	own := container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: "task", Image: "sha256:1", HostConfig: &container.HostConfig{Resources: container.Resources{Memory: 1 << 28, NanoCPUs: 5e8}}},
		Config:            &container.Config{Entrypoint: []string{"/usr/bin/iotrace-bpf"}, Env: []string{"IOTRACE_HOST_NAME=web1"}, Cmd: []string{"launch", "--no-tui"}},
	}
	c := launchedConfig(own, []string{"--no-tui"})
	if got := strings.Join(c.Env, " "); got != "IOTRACE_HOST_NAME=web1 IOTRACE_HOST_ROOT=/host IOTRACE_END_WITH_STDIN=true" {
		t.Errorf("variables: %q", got)
	}
	if len(own.Config.Env) != 1 || c.Image != "sha256:1" || strings.Join(c.Cmd, " ") != "--no-tui" || !c.StdinOnce {
		t.Errorf("%+v", c)
	}
	own.Config.Env = []string{"IOTRACE_HOST_ROOT=/elsewhere"}
	if got := strings.Join(launchedConfig(own, nil).Env, " "); got != "IOTRACE_HOST_ROOT=/elsewhere IOTRACE_END_WITH_STDIN=true" {
		t.Errorf("variables: %q", got)
	}
	if h := launchedHost(own); h.Memory != 1<<28 || h.NanoCPUs != 5e8 || h.Privileged {
		t.Errorf("%+v", h)
	}
}
