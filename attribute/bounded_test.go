package attribute

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	ctypes "github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxPeak is what a process that asks a crafted server may take at its peak, with
// everything else that is in it.
const maxPeak = 64 << 20

// crafted answers are small on the wire and large in memory. Those of Docker are a part of
// a request's path and what is said there: an opening, something that is repeated, and an
// end. A %d is a running number.
var crafted = map[string]struct {
	path, open, part, end string
	bytes                 int
}{
	"version":         {"/version", `{"Version":"1","Components":[{}`, `,{}`, `]}`, 64 << 20},
	"info":            {"/info", `{"Swarm":{"RemoteManagers":[{}`, `,{}`, `]}}`, 64 << 20},
	"list":            {"/containers/json", `[{}`, `,{}`, `]`, 15 << 20},
	"list of numbers": {"/containers/json", `[0`, `,0`, `]`, 15 << 20},
	"ids":             {"/containers/json", `[{"Id":"x"}`, `,{"Id":"%d"}`, `]`, 15 << 20},
	"labels":          {"/containers/json", `[{"Id":"x","Labels":{"x":""`, `,"%d":""`, `}}]`, 15 << 20},
	"many labels":     {"/containers/json", `[{}`, `,{"Id":"%d","Labels":{"a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":"","j":""}}`, `]`, 15 << 20},
	"names":           {"/containers/json", `[{"Id":"x","Names":[""`, `,""`, `]}]`, 15 << 20},
	"mounts":          {"/containers/json", `[{"Id":"x","Mounts":[{}`, `,{}`, `]}]`, 15 << 20},
	"plugins":         {"/plugins", `[{}`, `,{}`, `]`, 15 << 20},
	"inspect":         {"/" + idB + "/json", `{"Id":"` + idB + `","Mounts":[{}`, `,{}`, `]}`, 250 << 10},
	"huge inspect":    {"/" + idB + "/json", `{"Id":"` + idB + `","Mounts":[{}`, `,{}`, `]}`, 64 << 20},
	"event":           {"/events", `{"Type":"container","Action":"start","Actor":{"ID":"x","Attributes":{"x":""`, `,"%d":""`, `}}}` + "\n", 250 << 10},
	"fat events": {"/events", "", `{"Type":"container","Action":"start","Actor":{"ID":"%d","Attributes":{"name":"n","a":"` + strings.Repeat("x", maxLabelValue) +
		`","b":"` + strings.Repeat("x", maxLabelValue) + `"}}}` + "\n", "", 64 << 20},
	"networks":   {"/networks", `[{}`, `,{}`, `]`, 15 << 20},
	"subnets":    {"/networks", `[{"Id":"x","IPAM":{"Config":[{}`, `,{}`, `]}}]`, 15 << 20},
	"VNIs":       {"/networks", `[{"Id":"x","Options":{"com.docker.network.driver.overlay.vxlanid_list":"1`, `,1`, `"}}]`, 15 << 20},
	"services":   {"/services", `[{}`, `,{}`, `]`, 15 << 20},
	"tasks":      {"/tasks", `[{}`, `,{}`, `]`, 15 << 20},
	"attachment": {"/tasks", `[{"NetworksAttachments":[{}`, `,{}`, `]}]`, 15 << 20},
}

// craftDocker serves one crafted answer, and honest ones else. It says "served" when the
// client has hung up on the crafted one.
func craftDocker(what string, l net.Listener) error {
	c := crafted[what]
	var once sync.Once
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, c.path) {
			if what == "inspect" { // the client reads until the end
				w.Header().Set("Content-Length", strconv.Itoa(len(c.open)+c.bytes/len(c.part)*len(c.part)+len(c.end)))
			}
			buf := bufio.NewWriterSize(w, 1<<16)
			buf.WriteString(c.open)
			for n, i := 0, 0; n+len(c.part) <= c.bytes; i++ {
				part := strings.Replace(c.part, "%d", strconv.Itoa(i), 1)
				if _, err := buf.WriteString(part); err != nil {
					break
				}
				n += len(part)
			}
			buf.WriteString(c.end)
			buf.Flush()
			w.(http.Flusher).Flush()
			if c.path != "/events" { // a stream of events never ends
				<-r.Context().Done()
			}
			once.Do(func() { fmt.Println("served") })
			return
		}
		switch path := r.URL.Path; {
		case path == "/_ping":
			w.Header().Set("Api-Version", "1.41")
		case strings.HasSuffix(path, "/version"):
			io.WriteString(w, `{"Version":"20.10.24","ApiVersion":"1.41"}`)
		case strings.HasSuffix(path, "/info"):
			io.WriteString(w, overlayAnswers["info"])
		case strings.HasSuffix(path, "/events"):
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(path, "/"+idB+"/json"):
			io.WriteString(w, `{"Id":"`+idB+`"}`)
		default:
			io.WriteString(w, `[]`)
		}
	}))
}

func many[T any](v T, n int) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = v
	}
	return all
}

func numbered(n int) map[string]string {
	m := make(map[string]string, n)
	for i := range n {
		m[strconv.Itoa(i)] = ""
	}
	return m
}

// craftedCRI is a CRI runtime with crafted answers.
type craftedCRI struct {
	cri.UnimplementedRuntimeServiceServer
	mode string
}

func (h craftedCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "crio-like", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (h craftedCRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	switch h.mode {
	case "pods":
		return &cri.ListPodSandboxResponse{Items: many(&cri.PodSandbox{}, maxMessage/2-1)}, nil
	case "pods that fit":
		return &cri.ListPodSandboxResponse{Items: many(&cri.PodSandbox{Id: "12345678901234567890"}, maxMessage/24-1)}, nil
	case "pod labels":
		return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{Id: "p", Labels: numbered(3000)}}}, nil
	case "label map":
		return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{Id: "p", Labels: numbered(500_000)}}}, nil
	}
	return &cri.ListPodSandboxResponse{}, nil
}

func (h craftedCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	r := &cri.ListContainersResponse{}
	switch h.mode {
	case "pod labels", "statuses":
		for i := range 30_000 { // each takes the pod's labels
			r.Containers = append(r.Containers, &cri.Container{Id: fmt.Sprintf("%030d", i), PodSandboxId: "p"})
		}
	}
	return r, nil
}

func (h craftedCRI) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	s := &cri.ContainerStatus{Id: r.ContainerId}
	if h.mode == "statuses" {
		s.Mounts = many(&cri.Mount{HostPath: strings.Repeat("x", 3<<10)}, 300)
	}
	return &cri.ContainerStatusResponse{Status: s}, nil
}

func (h craftedCRI) GetContainerEvents(_ *cri.GetEventsRequest, s cri.RuntimeService_GetContainerEventsServer) error {
	if h.mode == "events" {
		for i := range 40 {
			e := &cri.ContainerEventResponse{PodSandboxStatus: &cri.PodSandboxStatus{Id: "p" + strconv.Itoa(i), Labels: numbered(2000)}}
			for j := range 1000 {
				e.ContainersStatuses = append(e.ContainersStatuses, &cri.ContainerStatus{Id: fmt.Sprintf("%d-%d", i, j), Image: &cri.ImageSpec{Image: strings.Repeat("x", 150)}})
			}
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
	fmt.Println("served")
	<-s.Context().Done()
	return nil
}

// craftedContainerd is containerd with crafted answers.
type craftedContainerd struct {
	versionapi.UnimplementedVersionServer
	containersapi.UnimplementedContainersServer
	eventsapi.UnimplementedEventsServer
	mode string
}

// Both services have a method List.
type containerdSpaces struct {
	namespacesapi.UnimplementedNamespacesServer
	mode string
}

func (h craftedContainerd) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "1"}, nil
}

func (h containerdSpaces) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	if h.mode == "namespaces" {
		return &namespacesapi.ListNamespacesResponse{Namespaces: many(&namespacesapi.Namespace{}, maxSingle/2-1)}, nil
	}
	return &namespacesapi.ListNamespacesResponse{Namespaces: []*namespacesapi.Namespace{{Name: "default"}}}, nil
}

func (h craftedContainerd) ListStream(_ *containersapi.ListContainersRequest, s containersapi.Containers_ListStreamServer) error {
	c := &containersapi.Container{}
	switch h.mode {
	case "containers":
		c.Labels = map[string]string{"a": strings.Repeat("x", 900<<10)}
		for i := range 250 {
			c.Labels[strconv.Itoa(i)] = strings.Repeat("x", 250)
		}
	case "specs":
		c.Spec = &anypb.Any{Value: []byte(`{"mounts":[{}` + strings.Repeat(`,{}`, maxSpec/3-10) + `]}`)}
	case "huge specs":
		c.Spec = &anypb.Any{Value: []byte(`{"mounts":[{}` + strings.Repeat(`,{}`, 300<<10) + `]}`)}
	default:
		return nil
	}
	for i := range 50 {
		c.ID = strconv.Itoa(i)
		if err := s.Send(&containersapi.ListContainerMessage{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

func (h craftedContainerd) Get(_ context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{ID: r.ID, Labels: numbered(3000)}}, nil
}

func (h craftedContainerd) Subscribe(_ *eventsapi.SubscribeRequest, s eventsapi.Events_SubscribeServer) error {
	if h.mode == "events" {
		for i := range 100 {
			e, err := proto.Marshal(&eventtypes.ContainerCreate{ID: strconv.Itoa(i), Image: strings.Repeat("x", 250<<10)})
			if err != nil {
				return err
			}
			if err := s.Send(&ctypes.Envelope{Namespace: "default", Topic: "/containers/create", Event: &anypb.Any{Value: e}}); err != nil {
				return err
			}
		}
	}
	fmt.Println("served")
	<-s.Context().Done()
	return nil
}

func craftContainerd(mode string, l net.Listener) error {
	g := grpc.NewServer()
	h := craftedContainerd{mode: mode}
	versionapi.RegisterVersionServer(g, h)
	namespacesapi.RegisterNamespacesServer(g, containerdSpaces{mode: mode})
	containersapi.RegisterContainersServer(g, h)
	eventsapi.RegisterEventsServer(g, h)
	return g.Serve(l)
}

// ask is the process whose memory is measured. It asks a socket, says what came of it, and
// its peak when it may end.
func ask(api, socket string) error {
	debug.SetGCPercent(50) // as the program does
	opts := Options{OnlyListedSockets: true, CgroupRoot: os.TempDir(), CallTime: patientCall}
	var found string
	switch api {
	case "networks", "refusals":
		opts.DockerSockets = []string{socket}
		o := NewOverlay(opts)
		_, err := o.Networks(context.Background())
		if api == "refusals" {
			_, err = o.Refusals(context.Background())
		}
		found = fmt.Sprint(err)
	default:
		sockets := map[string]*[]string{apiDocker: &opts.DockerSockets, apiCRI: &opts.CRISockets, apiContainerd: &opts.ContainerdSockets}
		*sockets[api] = []string{socket}
		r, err := NewResolver(opts)
		if err != nil {
			return err
		}
		defer r.Close()
		r.Start(context.Background())
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := r.WaitAnswered(ctx); err != nil {
			return err
		}
		r.runtimes.wanted(idB)
		e := r.Endpoints()[0]
		found = string(e.State)
		if errors.Is(e.Err, errTooLarge) {
			found += ", too large"
		}
	}
	fmt.Println(found)
	io.Copy(io.Discard, os.Stdin)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	fmt.Println(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(string(status))[1])
	return nil
}

// TestCraftedAnswers: what a server says costs no more memory than what an honest one
// says. Each is a process of its own, and so is who asks.
func TestCraftedAnswers(t *testing.T) {
	for _, tt := range []struct{ api, mode, found string }{
		{apiDocker, "version", "broken"}, // the client drops the cause
		{apiDocker, "list", "ok"},        // single containers can still be asked about
		{apiDocker, "list of numbers", "broken"},
		{apiDocker, "ids", "ok"},
		{apiDocker, "labels", "ok"},
		{apiDocker, "many labels", "ok"},
		{apiDocker, "names", "ok"},
		{apiDocker, "mounts", "ok"},
		{apiDocker, "plugins", "ok"},
		{apiDocker, "inspect", "ok"},
		{apiDocker, "huge inspect", "ok"},
		{apiDocker, "event", "ok"},
		{apiDocker, "fat events", "ok"},
		{"networks", "info", "large"},
		{"networks", "networks", "large"},
		{"networks", "subnets", "large"},
		{"networks", "VNIs", "large"},
		{"networks", "services", "large"},
		{"refusals", "tasks", "large"},
		{"refusals", "attachment", "large"},
		{apiCRI, "pods", "broken, too large"},
		{apiCRI, "pods that fit", "broken, too large"},
		{apiCRI, "label map", "broken, too large"},
		{apiCRI, "pod labels", "ok"},
		{apiCRI, "statuses", "ok"},
		{apiCRI, "events", "ok"},
		{apiContainerd, "namespaces", "broken, too large"},
		{apiContainerd, "containers", "ok"},
		{apiContainerd, "specs", "ok"},
		{apiContainerd, "huge specs", "ok"},
		{apiContainerd, "events", "ok"},
	} {
		t.Run(tt.api+"/"+tt.mode, func(t *testing.T) {
			t.Parallel()
			server := tt.api
			if server == "networks" || server == "refusals" {
				server = apiDocker
			}
			socket, said := craftedServer(t, server+" crafted "+tt.mode)
			cmd := exec.Command(os.Args[0], socket)
			cmd.Env = append(os.Environ(), hostileEnv+"=ask "+tt.api)
			cmd.Stderr = os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			answers := bufio.NewScanner(stdout)
			if !answers.Scan() || !strings.Contains(answers.Text(), tt.found) {
				t.Errorf("found %q, want %q", answers.Text(), tt.found)
			}
			if server == apiDocker || tt.mode == "events" {
				if line, err := said.ReadString('\n'); line != "served\n" {
					t.Fatalf("the crafted answer was not asked for: %q, %v", line, err)
				}
			}
			stdin.Close()
			answers.Scan()
			peak, err := strconv.Atoi(answers.Text())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("peak %d MiB", peak>>10)
			if peak<<10 > maxPeak {
				t.Errorf("it took %d MiB", peak>>10)
			}
		})
	}
}

func craftedServer(t *testing.T, mode string) (socket string, said *bufio.Reader) {
	t.Helper()
	dir, err := os.MkdirTemp("", "crafted") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = dir + "/s"
	_, said = startHostile(t, mode, socket)
	return socket, said
}

// FuzzList: a list of anything is decoded or refused, and every reader gets the same error.
func FuzzList(f *testing.F) {
	for _, seed := range []string{`[]`, `null`, `[{"Id":"a","Labels":{"b":"c"}}]`, `[{"Id":1}]`, `[`, ``, `{}`, `[{},`, `[{"NetworkSettings":{"Networks":{"a":null}}}]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var streamed []listedContainer
		err := decodeList(strings.NewReader(string(data)), func(c *listedContainer) { streamed = append(streamed, *c) })
		var whole []listedContainer
		dec := json.NewDecoder(strings.NewReader(string(data)))
		if want := dec.Decode(&whole); want == nil && err != nil || want != nil && err == nil {
			t.Fatalf("decoded by elements: %v, at once: %v", err, want)
		}
		if err == nil && fmt.Sprintf("%+v", streamed) != fmt.Sprintf("%+v", whole) {
			t.Fatalf("decoded by elements: %+v, at once: %+v", streamed, whole)
		}
	})
}

// FuzzMessages: an answer that is not refused for its messages is decoded as gRPC's own
// codec does.
func FuzzMessages(f *testing.F) {
	honest, err := proto.Marshal(&cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{Id: "a", Labels: map[string]string{"b": "c"}, Metadata: &cri.PodSandboxMetadata{Name: "d"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(honest)
	f.Add([]byte{0x0a, 0x00, 0x0a})
	f.Fuzz(func(t *testing.T, data []byte) {
		left := messagesFree + len(data)/messageBytes
		m := &cri.ListPodSandboxResponse{}
		err := countMessages(data, m.ProtoReflect().Descriptor(), messagesDepth, &left)
		if want := proto.Unmarshal(data, m); err != nil && want == nil && !errors.Is(err, errTooLarge) {
			t.Fatalf("refused with %v, decoded as %v", err, m)
		}
		if err == nil && len(m.Items) > messagesFree+len(data)/messageBytes {
			t.Fatalf("%d messages in %d bytes", len(m.Items), len(data))
		}
	})
}
