package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/yaml"
)

// strictDecoder decodes objects as the API server does with strict field validation: a
// field that the API does not have is an error.
func strictDecoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}

// manifests decodes the files that the kustomization lists.
func manifests(t *testing.T) (objects []runtime.Object) {
	t.Helper()
	dir := filepath.Join(tree, "packaging", "kubernetes")
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var kustomization struct {
		APIVersion, Kind, Namespace string
		Resources                   []string
		Images                      []struct{ Name, NewName, NewTag string }
	}
	if err := yaml.UnmarshalStrict(text, &kustomization); err != nil {
		t.Fatalf("kustomization.yaml: %v", err)
	}
	for _, file := range kustomization.Resources {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range bytes.Split(text, []byte("\n---\n")) {
			o, _, err := strictDecoder(t).Decode(doc, nil, nil)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			objects = append(objects, o)
		}
	}
	return objects
}

// TestKubernetes: the manifests are what the API accepts, and ask for no more than the
// program uses.
func TestKubernetes(t *testing.T) {
	var set *appsv1.DaemonSet
	kinds := map[string]int{}
	for _, o := range manifests(t) {
		kinds[o.GetObjectKind().GroupVersionKind().Kind]++
		if d, ok := o.(*appsv1.DaemonSet); ok {
			set = d
		}
	}
	if set == nil || kinds["Namespace"] != 1 || kinds["ServiceAccount"] != 1 || len(kinds) != 3 {
		t.Fatalf("kinds: %v", kinds)
	}
	pod := &set.Spec.Template
	for key, value := range set.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("the selector's label %q is not the pod's", key)
		}
	}
	if len(pod.Spec.Containers) != 1 || !pod.Spec.HostPID || pod.Spec.HostNetwork || pod.Spec.HostIPC {
		t.Errorf("the pod: %+v", pod.Spec)
	}
	c := &pod.Spec.Containers[0]
	caps := c.SecurityContext.Capabilities
	if !slices.Equal(caps.Drop, []corev1.Capability{"ALL"}) ||
		!slices.Equal(caps.Add, []corev1.Capability{"BPF", "PERFMON", "DAC_READ_SEARCH", "SYS_PTRACE", "DAC_OVERRIDE"}) || c.SecurityContext.Privileged != nil {
		t.Errorf("the pod's security context: %+v", c.SecurityContext)
	}
	for _, m := range c.VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("%s may be written", m.MountPath)
		}
	}
	var o options
	if err := o.parse(c.Args); err != nil {
		t.Errorf("arguments %q: %v", c.Args, err)
	}
	for _, e := range c.Env {
		flag := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(e.Name, "IOTRACE_")), "_", "-")
		if o.flags.Lookup(flag) == nil {
			t.Errorf("%s is the variable of no flag", e.Name)
		}
	}
}

// TestDeployedVariables: what units, stack file and drop-in set are flags that exist.
func TestDeployedVariables(t *testing.T) {
	var o options
	if err := o.parse(nil); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"iotrace-bpf.service", "iotrace-bpf.default", "ship.conf", "prometheus.conf", "swarm/stack.yml", "swarm/launch.yml", "kubernetes/daemonset.yaml"} {
		text, err := os.ReadFile(filepath.Join(tree, "packaging", file))
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`\bIOTRACE_[A-Z_]+`).FindAllString(string(text), -1)
		if len(names) == 0 {
			t.Errorf("%s sets no variable", file)
		}
		for _, name := range names {
			flag := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "IOTRACE_")), "_", "-")
			if name != "IOTRACE_IMAGE" && o.flags.Lookup(flag) == nil { // the image is the stack file's own
				t.Errorf("%s: %s is the variable of no flag", file, name)
			}
		}
	}
}
