package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
)

const (
	launchLabel = "io.iotrace-bpf.launcher" // whose value is the id of the container that launched this one
	launchSetup = time.Minute               // limit of each step until the other container runs
	// launchStop is the time that it has to end, in seconds. Engines kill the launcher after
	// 10 seconds.
	launchStop = 8
)

const launchAbout = `For a task of a Docker Swarm, which cannot have the host's namespaces. It needs
the engine's socket, /var/run/docker.sock, and nothing else. It starts a second
container of its own image on this host, with the host's pids, network, host
name, cgroups and files, which runs iotrace-bpf with ARGUMENTS. It has the
variables and volumes of the task, and its limits of memory and CPU.

What the second container prints, the task prints. It ends with the task, also
when the task is killed, and is removed then. The task ends with its exit code.

Who may use the engine's socket is root on this host.
`

func launchFlags() *flagSet { return bareFlags("launch") }

// runLaunch is "iotrace-bpf launch".
func runLaunch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := launchFlags()
	if err := f.parse(args); err != nil {
		return err
	}
	args = f.Args()
	if err := checkLaunched(args); err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	id := engineContainer(string(table))
	if id == "" {
		return &usageError{errors.New("launch: this is no container of a Docker engine"),
			"launch is for a task of a Docker Swarm: packaging/swarm/launch.yml; elsewhere run iotrace-bpf without it"}
	}
	engine, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return fmt.Errorf("launch: the engine's address: %w", err)
	}
	defer engine.Close()
	status, err := launch(ctx, engine, id, args, stdout, stderr)
	if err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	if status != 0 {
		return &exitError{code: status}
	}
	return nil
}

// checkLaunched parses the command line of the other container: a mistake is better said
// here than by a container that comes and goes.
func checkLaunched(args []string) error {
	c, rest, err := findCommand(args)
	if err != nil {
		return err
	}
	switch c.name {
	case "":
		err = new(options).parse(rest)
	case "launch":
		err = usagef("launch cannot launch itself")
	default:
		err = c.flags().parse(rest)
	}
	var usage *usageError
	if errors.As(err, &usage) {
		usage.hint = cmp.Or(usage.hint, meantWord(err), "iotrace-bpf help flags shows all flags")
	}
	return err
}

// engineContainer returns the id of the container in whose mount table an engine has put
// its /etc/hostname, which is a file in the directory of the container; "" if none did.
func engineContainer(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != "/etc/hostname" && f[4] != "/etc/hosts" && f[4] != "/etc/resolv.conf" {
			continue
		}
		parts := strings.Split(f[3], "/")
		if i := slices.Index(parts, "containers"); i >= 0 && i+1 < len(parts) && isContainerID(parts[i+1]) {
			return parts[i+1]
		}
	}
	return ""
}

func isContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// launch runs a container beside the container id until it ends, and returns its exit
// status.
func launch(ctx context.Context, engine *client.Client, id string, args []string, stdout, stderr io.Writer) (int, error) {
	setup, cancel := context.WithTimeout(ctx, launchSetup)
	defer cancel()
	own, err := engine.ContainerInspect(setup, id)
	if client.IsErrConnectionFailed(err) {
		return 0, &usageError{err, "mount the engine's socket into this container: --volume /var/run/docker.sock:/var/run/docker.sock"}
	} else if err != nil {
		return 0, fmt.Errorf("asking the engine about this container: %w", err)
	}
	if err := removeStale(setup, engine, id); err != nil {
		return 0, err
	}
	made, err := engine.ContainerCreate(setup, launchedConfig(own, args), launchedHost(own), nil, nil, "")
	if err != nil {
		return 0, fmt.Errorf("making a container: %w", err)
	}
	// From here on the container is removed in any case: by the engine once it has ended,
	// and by remove before it runs.
	remove := func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), launchSetup)
		defer cancel()
		_ = engine.ContainerRemove(late, made.ID, container.RemoveOptions{Force: true})
	}
	streams, err := engine.ContainerAttach(setup, made.ID, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		remove()
		return 0, fmt.Errorf("attaching to the container: %w", err)
	}
	defer streams.Close() // its standard input ends then, and with that the container
	ended, failed := engine.ContainerWait(context.WithoutCancel(ctx), made.ID, container.WaitConditionNextExit)
	if err := engine.ContainerStart(setup, made.ID, container.StartOptions{}); err != nil {
		remove()
		return 0, fmt.Errorf("starting the container: %w", err)
	}
	copied := make(chan error, 1)
	go func() {
		_, err := stdcopy.StdCopy(stdout, stderr, streams.Reader)
		copied <- err
	}()
	stop := context.AfterFunc(ctx, func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), launchSetup)
		defer cancel()
		seconds := launchStop
		_ = engine.ContainerStop(late, made.ID, container.StopOptions{Timeout: &seconds})
	})
	defer stop()
	select {
	case end := <-ended:
		<-copied // the streams end with the container
		if end.Error != nil {
			return 0, errors.New(end.Error.Message)
		}
		return int(end.StatusCode), nil
	case err := <-failed:
		return 0, fmt.Errorf("the engine is gone: %w", err)
	}
}

// launchedConfig is what runs in the container: the image of this one with arguments of its
// own, until its standard input ends.
func launchedConfig(own container.InspectResponse, args []string) *container.Config {
	env := slices.Clone(own.Config.Env)
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "IOTRACE_HOST_ROOT=") }) {
		env = append(env, "IOTRACE_HOST_ROOT=/host")
	}
	return &container.Config{
		Image: own.Image, Entrypoint: own.Config.Entrypoint, Cmd: args, Env: append(env, "IOTRACE_END_WITH_STDIN=true"),
		Labels:    map[string]string{launchLabel: own.ID},
		OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	}
}

// launchedHost is what the container has of the host: what a service cannot have.
func launchedHost(own container.InspectResponse) *container.HostConfig {
	h := &container.HostConfig{
		PidMode: "host", NetworkMode: "host", UTSMode: "host", CgroupnsMode: container.CgroupnsModeHost,
		// Docker 20.10 knows neither CAP_BPF nor CAP_PERFMON: CAP_SYS_ADMIN stands for them.
		CapDrop: []string{"ALL"},
		CapAdd:  []string{"SYS_ADMIN", "SYS_PTRACE", "SYSLOG", "DAC_READ_SEARCH", "DAC_OVERRIDE", "NET_ADMIN", "NET_BROADCAST"},
		// The profile of engines hides the mounts of processes that have no profile.
		SecurityOpt:    []string{"apparmor=unconfined", "no-new-privileges"},
		ReadonlyRootfs: true,
		Binds:          []string{"/:/host:ro,rslave"},
		VolumesFrom:    []string{own.ID},
		LogConfig:      container.LogConfig{Type: "none"}, // the task's log has it
		AutoRemove:     true,
	}
	if own.HostConfig != nil {
		r := own.HostConfig.Resources
		h.Resources = container.Resources{Memory: r.Memory, NanoCPUs: r.NanoCPUs, CPUShares: r.CPUShares, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, PidsLimit: r.PidsLimit}
	}
	return h
}

// removeStale removes containers whose launcher does not run any more. The engine removes
// them in time, but for one that was killed itself.
func removeStale(ctx context.Context, engine *client.Client, id string) error {
	list, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", launchLabel))})
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	for _, c := range list {
		if by := c.Labels[launchLabel]; by != id {
			launcher, err := engine.ContainerInspect(ctx, by)
			if err == nil && launcher.State != nil && launcher.State.Running || err != nil && !errdefs.IsNotFound(err) {
				continue
			}
		}
		if err := engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			return fmt.Errorf("removing what a killed launcher left: container %q: %w", cmp.Or(strings.Join(c.Names, " "), c.ID), err)
		}
	}
	return nil
}
