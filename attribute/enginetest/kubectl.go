//go:build integration || vm

package enginetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// DebugLine returns the arguments of the line "kubectl debug" in a page, for a node.
func DebugLine(t testing.TB, page, node string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var found [][]string
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "kubectl" && f[1] == "debug" {
			found = append(found, f[1:])
		}
	}
	if len(found) != 1 || found[0][1] != "node/NODE" {
		t.Fatalf("%s has the lines %q, want one of node/NODE", page, found)
	}
	found[0][1] = "node/" + node
	return found[0]
}

// DebugPod runs a line "kubectl debug" with this kubectl and returns the pod that it asks an
// API server for. The server has one node, and refuses a field that the API does not have.
// The line does not wait for the pod, which nobody starts.
func DebugPod(t testing.TB, kubectl, node string, line []string) *corev1.Pod {
	t.Helper()
	s := &apiServer{node: node}
	server := httptest.NewServer(s)
	defer server.Close()
	kubectl, err := filepath.Abs(kubectl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kubectl); err != nil {
		t.Fatalf("%v: run vmtests/deps.sh test", err)
	}
	end := slices.Index(line, "--")
	if end < 0 {
		end = len(line)
	}
	cmd := exec.Command(kubectl, slices.Concat([]string{"--server", server.URL}, line[:end], []string{"--attach=false"}, line[end:])...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "KUBECONFIG=/dev/null")
	out, err := cmd.CombinedOutput()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.err != nil || s.pod == nil {
		t.Fatalf("%s: %v, %v\n%s\nit asked for %q", strings.Join(cmd.Args, " "), err, s.err, out, s.asked)
	}
	return s.pod
}

// apiServer is as much of Kubernetes' API as kubectl debug asks for.
type apiServer struct {
	node string

	mu    sync.Mutex
	asked []string
	pod   *corev1.Pod
	err   error
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := req.Method + " " + req.URL.Path
	s.asked = append(s.asked, what)
	switch what {
	case "GET /api":
		s.answer(w, http.StatusOK, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	case "GET /apis":
		s.answer(w, http.StatusOK, metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}})
	case "GET /api/v1":
		s.answer(w, http.StatusOK, metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "v1",
			APIResources: []metav1.APIResource{
				{Name: "nodes", SingularName: "node", Kind: "Node", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"no"}},
				{Name: "pods", SingularName: "pod", Namespaced: true, Kind: "Pod", Verbs: metav1.Verbs{"create", "get", "list", "watch"}},
			},
		})
	case "GET /api/v1/nodes/" + s.node:
		s.answer(w, http.StatusOK, corev1.Node{
			TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: s.node, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		})
	case "POST /api/v1/namespaces/default/pods":
		body, err := io.ReadAll(req.Body)
		if err == nil {
			s.pod, err = decodePod(body)
		}
		if err != nil {
			s.err = fmt.Errorf("%w: %q", err, body)
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.pod.Namespace = "default"
		s.answer(w, http.StatusCreated, s.pod)
	default:
		http.NotFound(w, req)
	}
}

func (s *apiServer) answer(w http.ResponseWriter, status int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object) // kubectl fails without it
}

// decodePod decodes a pod in the binary form that kubectl sends. Strict field validation
// knows JSON alone; here nothing may be lost on the way back.
func decodePod(text []byte) (*corev1.Pod, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	s := protobuf.NewSerializer(scheme, scheme)
	o, _, err := s.Decode(text, nil, nil)
	if err != nil {
		return nil, err
	}
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("%T is no pod", o)
	}
	var back bytes.Buffer
	if err := s.Encode(pod, &back); err != nil {
		return nil, err
	}
	if !bytes.Equal(back.Bytes(), text) {
		return nil, fmt.Errorf("the API does not have all of it: %q", back.Bytes())
	}
	return pod, nil
}
