//go:build integration || vm

package enginetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client connects to the CRI plugin until the test ends.
func (c *Containerd) client(t testing.TB) cri.RuntimeServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return cri.NewRuntimeServiceClient(conn)
}

// parent is the cgroup that the kubelet names for a pod of a QoS class, burstable or
// besteffort.
func (c *Containerd) parent(class, uid string) string {
	if c.systemd {
		return "/kubepods.slice/kubepods-" + class + ".slice/kubepods-" + class + "-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	}
	return "/kubepods/" + class + "/pod" + uid
}

// class is the QoS class of a pod that guarantees nothing.
func class(box *corev1.Container) string {
	if len(box.Resources.Requests)+len(box.Resources.Limits) == 0 {
		return "besteffort"
	}
	return "burstable"
}

// RunningPod is a pod with one container that RunTemplate started.
type RunningPod struct {
	Container string // its id
	Address   string // in the pod's network

	client cri.RuntimeServiceClient
	log    string
	grace  int64
}

// RunTemplate starts a pod as the kubelet does: it translates the template to the CRI. Args
// are added to those of the container. Node is the name of this node. A part of a template
// that it does not know fails the test. A terminal is left out: the CRI's log keeps the two
// outputs apart without one.
func (c *Containerd) RunTemplate(t testing.TB, node, namespace, uid string, template *corev1.PodTemplateSpec, args ...string) *RunningPod {
	t.Helper()
	spec := &template.Spec
	if len(spec.Containers) != 1 || len(spec.InitContainers) > 0 || spec.SecurityContext != nil && !reflect.DeepEqual(*spec.SecurityContext, corev1.PodSecurityContext{}) {
		t.Fatalf("RunTemplate cannot translate this pod: %+v", spec)
	}
	box := &spec.Containers[0]
	p := &RunningPod{client: c.client(t), log: filepath.Join(c.dir, "logs", uid, box.Name), grace: 30}
	if spec.TerminationGracePeriodSeconds != nil {
		p.grace = *spec.TerminationGracePeriodSeconds
	}
	if err := os.MkdirAll(filepath.Dir(p.log), 0o755); err != nil {
		t.Fatal(err)
	}

	// pkg/kubelet/container/helpers.go and pkg/kubelet/kuberuntime of Kubernetes say how.
	name := cmp.Or(template.Name, box.Name+"-x7k2p")
	labels := map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid}
	own := map[string]string{"io.kubernetes.container.name": box.Name}
	for k, v := range labels {
		own[k] = v
	}
	for k, v := range template.Labels {
		labels[k] = v
	}
	namespaces := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
	if spec.HostPID {
		namespaces.Pid = cri.NamespaceMode_NODE
	}
	if spec.HostNetwork {
		namespaces.Network = cri.NamespaceMode_NODE
	}
	if spec.HostIPC {
		namespaces.Ipc = cri.NamespaceMode_NODE
	}
	security := securityContext(t, box.SecurityContext)
	sandbox := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid},
		Labels:   labels, Annotations: template.Annotations, LogDirectory: filepath.Dir(p.log),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    c.parent(class(box), uid),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces, Privileged: security.Privileged},
		},
	}
	if !spec.HostNetwork { // else it has the node's
		sandbox.Hostname = name
	}
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: box.Name}, Image: &cri.ImageSpec{Image: box.Image},
		Command: box.Command, Args: append(append([]string{}, box.Args...), args...),
		Labels: own, LogPath: filepath.Base(p.log),
		Linux: &cri.LinuxContainerConfig{Resources: resources(t, spec, box), SecurityContext: security},
	}
	security.NamespaceOptions = namespaces
	for _, e := range box.Env {
		value := e.Value
		if from := e.ValueFrom; from != nil {
			if from.FieldRef == nil || from.FieldRef.FieldPath != "spec.nodeName" {
				t.Fatalf("RunTemplate cannot translate the variable %+v", e)
			}
			value = node
		}
		config.Envs = append(config.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	for _, m := range box.VolumeMounts {
		mount := &cri.Mount{ContainerPath: m.MountPath, Readonly: m.ReadOnly}
		for _, v := range spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				mount.HostPath = v.HostPath.Path
			}
		}
		if mount.HostPath == "" || m.SubPath != "" {
			t.Fatalf("RunTemplate cannot translate the mount %+v", m)
		}
		if m.MountPropagation != nil {
			mount.Propagation = map[corev1.MountPropagationMode]cri.MountPropagation{
				corev1.MountPropagationNone: cri.MountPropagation_PROPAGATION_PRIVATE, corev1.MountPropagationHostToContainer: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
				corev1.MountPropagationBidirectional: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL,
			}[*m.MountPropagation]
		}
		config.Mounts = append(config.Mounts, mount)
	}

	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	started, err := p.client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removePod(t, p.client, started.PodSandboxId) })
	made, err := p.client.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: started.PodSandboxId, SandboxConfig: sandbox, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p.Container = made.ContainerId
	if _, err := p.client.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.Container}); err != nil {
		t.Fatal(err)
	}
	status, err := p.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: started.PodSandboxId})
	if err != nil {
		t.Fatal(err)
	}
	p.Address = status.Status.GetNetwork().GetIp()
	return p
}

// RemovePod ends a pod that RunPod started, with its network and its mounts.
func (c *Containerd) RemovePod(t testing.TB, sandbox string) {
	t.Helper()
	removePod(t, c.client(t), sandbox)
}

func removePod(t testing.TB, client cri.RuntimeServiceClient, sandbox string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	if _, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Errorf("stopping the pod: %v", err)
	}
	if _, err := client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Errorf("removing the pod: %v", err)
	}
}

// resources translates what a container asks for. The number of shares is that of
// MilliCPUToShares, the score that of a pod which is critical for its node.
func resources(t testing.TB, spec *corev1.PodSpec, box *corev1.Container) *cri.LinuxContainerResources {
	t.Helper()
	r := &cri.LinuxContainerResources{
		CpuShares:          max(2, box.Resources.Requests.Cpu().MilliValue()*1024/1000),
		MemoryLimitInBytes: box.Resources.Limits.Memory().Value(),
		OomScoreAdj:        999,
	}
	if class(box) == "besteffort" {
		r.OomScoreAdj = 1000
	}
	if spec.PriorityClassName == "system-node-critical" {
		r.OomScoreAdj = -997
	}
	if limit := box.Resources.Limits.Cpu().MilliValue(); limit > 0 {
		r.CpuPeriod, r.CpuQuota = 100_000, limit*100
	}
	return r
}

// securityContext translates that of a container. Nothing is hidden from a privileged one.
func securityContext(t testing.TB, s *corev1.SecurityContext) *cri.LinuxContainerSecurityContext {
	t.Helper()
	if s == nil {
		s = &corev1.SecurityContext{}
	}
	profile := func(unconfined bool) *cri.SecurityProfile {
		if unconfined {
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}
	out := &cri.LinuxContainerSecurityContext{
		// What the kubelet hides with procMount "Default".
		MaskedPaths: []string{
			"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
			"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		Seccomp:       profile(s.SeccompProfile != nil && s.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined),
		Apparmor:      profile(s.AppArmorProfile != nil && s.AppArmorProfile.Type == corev1.AppArmorProfileTypeUnconfined),
	}
	if s.RunAsUser != nil {
		out.RunAsUser = &cri.Int64Value{Value: *s.RunAsUser}
	}
	if s.RunAsGroup != nil || s.SELinuxOptions != nil || s.ProcMount != nil {
		t.Fatalf("RunTemplate cannot translate the security context %+v", s)
	}
	if out.Privileged = s.Privileged != nil && *s.Privileged; out.Privileged {
		out.MaskedPaths, out.ReadonlyPaths, out.Seccomp, out.Apparmor = nil, nil, profile(true), profile(true)
	}
	out.ReadonlyRootfs = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
	out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
	if c := s.Capabilities; c != nil {
		out.Capabilities = &cri.Capability{}
		for _, add := range c.Add {
			out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(add))
		}
		for _, drop := range c.Drop {
			out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(drop))
		}
	}
	return out
}

// PID is the process of the container.
func (p *RunningPod) PID(t testing.TB, c *Containerd) string {
	t.Helper()
	return c.Task(t, "k8s.io", p.Container)
}

// Stop ends the container as the kubelet does and returns its exit status.
func (p *RunningPod) Stop(t testing.TB) int32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime+time.Duration(p.grace)*time.Second)
	defer cancel()
	if _, err := p.client.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.Container, Timeout: p.grace}); err != nil {
		t.Fatal(err)
	}
	status, err := p.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.Container})
	if err != nil {
		t.Fatal(err)
	}
	return status.Status.ExitCode
}

// Output returns what the container has printed so far. Each line of the CRI's log is
// TIME STREAM TAG TEXT, with the tag P where the line goes on in the next one.
func (p *RunningPod) Output(t testing.TB) (stdout, stderr string) {
	t.Helper()
	data, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	for line := range bytes.Lines(data) {
		f := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 4)
		if len(f) != 4 || !bytes.HasSuffix(line, []byte("\n")) {
			continue // written at this moment
		}
		to := &out
		if string(f[1]) == "stderr" {
			to = &errs
		}
		to.Write(f[3])
		if string(f[2]) != "P" {
			fmt.Fprintln(to)
		}
	}
	return out.String(), errs.String()
}
