//go:build integration

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// TestHelm: the chart is without faults, and gives the objects that kubectl makes of the
// kustomization, but for the namespace, which is helm's. Values change what they name.
func TestHelm(t *testing.T) {
	chart := filepath.Join(tree, "packaging", "helm", "iotrace-bpf")
	if out, err := kubernetesTool(t, "helm", "lint", "--strict", chart).CombinedOutput(); err != nil {
		t.Fatalf("helm lint: %v\n%s", err, out)
	}
	want := rendered(t, kubernetesTool(t, "kubectl", "kustomize", filepath.Join(tree, "packaging", "kubernetes")))
	delete(want, "Namespace")
	got := rendered(t, kubernetesTool(t, "helm", "template", "iotrace-bpf", chart, "--namespace", "iotrace-bpf"))
	if len(want) != 2 || len(got) != 2 {
		t.Fatalf("helm gives %d objects, kubectl %d", len(got), len(want))
	}
	for kind, o := range want {
		if !equality.Semantic.DeepEqual(got[kind], o) {
			t.Errorf("of the %s helm makes\n%+v\nkubectl makes\n%+v", kind, got[kind], o)
		}
	}

	values := filepath.Join(t.TempDir(), "values.yaml")
	const text = `image: {repository: ghcr.io/x/y, tag: v1.2.3}
args: ["--by", "project"]
env: {IOTRACE_PROMETHEUS: 9465, IOTRACE_LATENCY: false}
resources: {limits: {memory: 1Gi}}
tolerations: [{key: a, operator: Exists}]
`
	if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got = rendered(t, kubernetesTool(t, "helm", "template", "iotrace-bpf", chart, "--namespace", "elsewhere", "--values", values))
	set, ok := got["DaemonSet"].(*appsv1.DaemonSet)
	if !ok {
		t.Fatalf("objects: %v", got)
	}
	box := &set.Spec.Template.Spec.Containers[0]
	env := map[string]string{}
	for _, e := range box.Env {
		if _, twice := env[e.Name]; twice {
			t.Errorf("%s is there twice", e.Name)
		}
		env[e.Name] = e.Value
	}
	if set.Namespace != "elsewhere" || box.Image != "ghcr.io/x/y:v1.2.3" || !slices.Equal(box.Args, []string{"--no-tui", "--interval", "10", "--by", "project"}) ||
		env["IOTRACE_PROMETHEUS"] != "9465" || env["IOTRACE_LATENCY"] != "false" || env["IOTRACE_HOST_ROOT"] != "/host" ||
		box.Resources.Limits.Memory().Value() != 1<<30 || len(set.Spec.Template.Spec.Tolerations) != 1 {
		t.Errorf("with values: %+v", set)
	}
}

// TestDebugNode: the line for a look in an incident is one that kubectl takes, and the API
// server what kubectl makes of it: a privileged pod on that node, with the host's pids and
// its files.
func TestDebugNode(t *testing.T) {
	const node = "node-7.example.com"
	line := enginetest.DebugLine(t, filepath.Join(tree, "packaging", "README.md"), node)
	pod := enginetest.DebugPod(t, kubernetesTool(t, "kubectl").Path, node, line)
	if len(pod.Spec.Containers) != 1 {
		t.Fatalf("containers: %+v", pod.Spec.Containers)
	}
	box := &pod.Spec.Containers[0]
	want := corev1.PodSpec{
		NodeName: node, HostPID: true, HostNetwork: true, HostIPC: true, RestartPolicy: corev1.RestartPolicyNever,
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Volumes:     []corev1.Volume{{Name: "host-root", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}},
		Containers: []corev1.Container{{
			Name: "debugger", Image: "registry.example.com/iotrace-bpf", Command: []string{"/usr/bin/iotrace-bpf", "--host-root", "/host"},
			Stdin: true, TTY: true, ImagePullPolicy: box.ImagePullPolicy, TerminationMessagePolicy: corev1.TerminationMessageReadFile,
			VolumeMounts:    []corev1.VolumeMount{{Name: "host-root", MountPath: "/host"}},
			SecurityContext: &corev1.SecurityContext{Privileged: new(true)},
		}},
	}
	if !equality.Semantic.DeepEqual(pod.Spec, want) {
		t.Errorf("kubectl asks for\n%+v\nwant\n%+v", pod.Spec, want)
	}
}

// kubernetesTool is helm or kubectl, which vmtests/deps.sh installs, with a configuration of its own.
func kubernetesTool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(tree, "build", "tools", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run vmtests/deps.sh test", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	return cmd
}

// rendered decodes the objects that a command prints, by kind.
func rendered(t *testing.T, cmd *exec.Cmd) map[string]runtime.Object {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, errs.String())
	}
	objects := map[string]runtime.Object{}
	for _, doc := range bytes.Split(append([]byte("\n"), out...), []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		o, _, err := strictDecoder(t).Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, doc)
		}
		switch o.(type) {
		case *appsv1.DaemonSet, *corev1.ServiceAccount, *corev1.Namespace:
		default:
			t.Errorf("%T is no object of the manifests", o)
		}
		if m, err := meta.Accessor(o); err != nil || m.GetName() != "iotrace-bpf" {
			t.Errorf("%T is called %q: %v", o, m.GetName(), err)
		}
		objects[o.GetObjectKind().GroupVersionKind().Kind] = o
	}
	return objects
}
