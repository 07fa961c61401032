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
	"path/filepath"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The test binary is also the hostile process: with this variable set it is no
// test but listens on the socket it is given and misbehaves in the way named.
const hostileEnv = "ATTRIBUTE_TEST_HOSTILE"

func TestMain(m *testing.M) {
	os.Unsetenv("DOCKER_HOST") // the tests say which sockets are asked
	if mode := os.Getenv(hostileEnv); mode != "" {
		if err := misbehave(mode, os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const (
	huge        = 100 << 20
	slowVersion = 200 * time.Millisecond
)

// stream writes n bytes of text without an end of line.
func stream(w io.Writer, n int) {
	chunk := strings.Repeat("x", 1<<16)
	for ; n > 0; n -= len(chunk) {
		if _, err := io.WriteString(w, chunk); err != nil {
			return
		}
	}
}

func misbehave(mode, socket string) error {
	if mode == "forbidden" { // the client itself, as a user who may not
		return lookAsNobody(socket)
	}
	if api, ok := strings.CutPrefix(mode, "ask "); ok {
		return ask(api, socket)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	fmt.Println("listening") // the parent process waits for this line
	if api, what, ok := strings.Cut(mode, " crafted "); ok {
		switch api {
		case apiDocker:
			return craftDocker(what, l)
		case apiContainerd:
			return craftContainerd(what, l)
		}
		g := grpc.NewServer()
		cri.RegisterRuntimeServiceServer(g, craftedCRI{mode: what})
		return g.Serve(l)
	}
	raw := map[string]func(net.Conn){
		"hang":    func(c net.Conn) { io.Copy(io.Discard, c) }, // reads all and says nothing
		"hang up": func(c net.Conn) { c.Close() },
		"babble":  func(c net.Conn) { stream(c, huge); c.Close() },
		"endless header": func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
			stream(c, huge)
		},
	}
	if f := raw[mode]; f != nil {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go f(c)
		}
	}
	if strings.HasPrefix(mode, "cri ") {
		g := grpc.NewServer(grpc.MaxSendMsgSize(2 * huge))
		cri.RegisterRuntimeServiceServer(g, hostileCRI{mode: strings.TrimPrefix(mode, "cri ")})
		return g.Serve(l)
	}
	var inspects atomic.Int32
	version := `{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12","Platform":{"Name":""}}`
	list := `[{"Id":"` + idA + `","Names":["/a"],"Image":"i","State":"running","NetworkSettings":{"Networks":{"fvov":{"NetworkID":"m64nqtdens"}}}}]`
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("/v1.41/version", func(w http.ResponseWriter, _ *http.Request) {
		switch mode {
		case "half a version":
			io.WriteString(w, version[:len(version)/2])
		case "huge version":
			io.WriteString(w, `{"Version":"`)
			stream(w, huge)
		case "other JSON":
			io.WriteString(w, `[1,2,3]`)
		case "slow version":
			time.Sleep(slowVersion)
			io.WriteString(w, version)
		default:
			io.WriteString(w, version)
		}
	})
	mux.HandleFunc("/v1.41/containers/json", func(w http.ResponseWriter, r *http.Request) {
		switch mode {
		case "half a list":
			io.WriteString(w, list[:len(list)/2])
		case "huge list":
			io.WriteString(w, `[{"Id":"`)
			stream(w, huge)
		case "hanging list":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			io.WriteString(w, list)
		}
	})
	for what, answer := range overlayAnswers {
		mux.HandleFunc("/v1.41/"+what, func(w http.ResponseWriter, r *http.Request) {
			switch mode {
			case "half of " + what:
				io.WriteString(w, answer[:len(answer)/2])
			case "huge " + what:
				io.WriteString(w, answer[:1]+`"`)
				stream(w, huge)
			case "hanging " + what:
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			default:
				io.WriteString(w, answer)
			}
		})
	}
	mux.HandleFunc("/v1.41/containers/{id}/json", func(w http.ResponseWriter, r *http.Request) {
		if mode == "slow inspects" && inspects.Add(1) < inspectTries {
			<-r.Context().Done()
			return
		}
		fmt.Fprintf(w, `{"Id":%q,"Name":"/asked for","Config":{"Image":"i","Labels":{}}}`, r.PathValue("id"))
	})
	mux.HandleFunc("/v1.41/plugins", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `[]`) })
	mux.HandleFunc("/v1.41/events", func(w http.ResponseWriter, r *http.Request) {
		switch mode {
		case "no events":
			<-r.Context().Done()
			return
		case "huge event":
			w.(http.Flusher).Flush()
			io.WriteString(w, `{"Type":"`)
			stream(w, huge)
			return
		case "half an event":
			io.WriteString(w, `{"Type":"container","Act`)
			return
		case "flood of events":
			for i := 0; ; i++ {
				_, err := fmt.Fprintf(w, `{"Type":"container","Action":"start","Actor":{"ID":"%064x","Attributes":{"name":"n","image":"i"}},"timeNano":%d}`+"\n", i%3000, i+1)
				if err != nil {
					return
				}
			}
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	return http.Serve(l, mux)
}

// hostileCRI is a CRI runtime that misbehaves.
type hostileCRI struct {
	cri.UnimplementedRuntimeServiceServer
	mode string
}

func (h hostileCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	v := &cri.VersionResponse{RuntimeName: "crio-like", RuntimeVersion: "1", RuntimeApiVersion: "v1"}
	if h.mode == "huge version" {
		v.RuntimeVersion = strings.Repeat("x", maxList+1)
	}
	return v, nil
}

func (h hostileCRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{nil, {Id: idB}}}, nil // metadata is missing
}

func (h hostileCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	c := &cri.Container{Id: idA, PodSandboxId: "none", Metadata: &cri.ContainerMetadata{Name: "a"}}
	if h.mode == "huge list" {
		c.Labels = map[string]string{"x": strings.Repeat("x", huge)}
	}
	return &cri.ListContainersResponse{Containers: []*cri.Container{c}}, nil
}

func (h hostileCRI) ContainerStatus(context.Context, *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	if h.mode == "hanging status" {
		select {} // not until the call's end: it carries the caller's deadline, and an answer then may still be in time
	}
	return &cri.ContainerStatusResponse{}, nil // without a status
}

func (h hostileCRI) GetContainerEvents(_ *cri.GetEventsRequest, s cri.RuntimeService_GetContainerEventsServer) error {
	if h.mode != "strange events" {
		return nil // as CRI-O does, where events are off
	}
	for s.Context().Err() == nil {
		for _, e := range []*cri.ContainerEventResponse{{}, {PodSandboxStatus: &cri.PodSandboxStatus{Id: "p"}, ContainersStatuses: []*cri.ContainerStatus{nil, {}}}} {
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// hostile starts a misbehaving process and returns its socket.
func hostile(t *testing.T, mode string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hostile") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	runHostile(t, mode, socket)
	return socket
}

func runHostile(t *testing.T, mode, socket string) *exec.Cmd {
	t.Helper()
	cmd, _ := startHostile(t, mode, socket)
	return cmd
}

// startHostile returns once the process listens, and with what it says after that.
func startHostile(t *testing.T, mode, socket string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], socket)
	cmd.Env = append(os.Environ(), hostileEnv+"="+mode)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); err != nil || line != "listening\n" {
		t.Fatalf("the hostile process said %q: %v", line, err)
	}
	return cmd, said
}

func lookAsNobody(socket string) error {
	if os.Getuid() == 0 {
		if err := syscall.Setgid(65534); err != nil {
			return err
		}
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
	}
	e, err := look(Options{DockerSockets: []string{socket}, OnlyListedSockets: true}, socket)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(e.State)
}

// look returns what a resolver finds at a socket.
func look(opts Options, socket string) (Endpoint, error) {
	opts.CgroupRoot = os.TempDir()
	r, err := NewResolver(opts)
	if err != nil {
		return Endpoint{}, err
	}
	defer r.Close()
	r.Start(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.WaitAnswered(ctx); err != nil {
		return Endpoint{}, err
	}
	for _, e := range r.Endpoints() {
		if e.Socket == socket {
			return e, nil
		}
	}
	return Endpoint{}, fmt.Errorf("no endpoint %q in %+v", socket, r.Endpoints())
}

// patientCall is how long a call to a runtime that answers may take: a busy machine
// must not make one that hangs of it.
const patientCall = 10 * callTime

func timeFor(want State) time.Duration {
	if want == StateHanging {
		return callTime
	}
	return patientCall
}

func TestHostileSockets(t *testing.T) {
	tests := []struct {
		mode  string
		state State
		cause error // nil for any
	}{
		{"honest", StateOK, nil},
		{"hang", StateHanging, nil},
		{"hang up", StateBroken, nil},
		{"babble", StateBroken, nil},
		{"endless header", StateBroken, nil},
		{"half a version", StateBroken, errGarbled},
		{"huge version", StateBroken, errTooLarge},
		{"other JSON", StateBroken, errGarbled},
		{"half a list", StateBroken, errGarbled},
		{"huge list", StateOK, nil}, // single containers can still be asked for
		{"no events", StateHanging, errHanging},
	}
	for _, tt := range tests {
		t.Run(tt.mode, func(t *testing.T) {
			t.Parallel()
			socket := hostile(t, tt.mode)
			e, err := look(Options{DockerSockets: []string{socket}, OnlyListedSockets: true, CallTime: timeFor(tt.state)}, socket)
			if err != nil {
				t.Fatal(err)
			}
			if e.State != tt.state || tt.cause != nil && !errors.Is(e.Err, tt.cause) {
				t.Errorf("state %q, error %v; want %q, %v", e.State, e.Err, tt.state, tt.cause)
			}
		})
	}
}

func TestHostileCRI(t *testing.T) {
	tests := []struct {
		mode  string
		state State
		cause error // nil for any
	}{
		{"cri honest", StateOK, nil},
		{"cri strange events", StateOK, nil},
		{"cri huge version", StateBroken, errTooLarge},
		{"cri huge list", StateBroken, errTooLarge},
		{"cri hanging status", StateHanging, nil},
		{"honest", StateBroken, nil}, // an engine that speaks HTTP only
		{"hang", StateHanging, nil},
		{"hang up", StateBroken, nil},
		{"babble", StateBroken, nil},
	}
	for _, tt := range tests {
		t.Run(tt.mode, func(t *testing.T) {
			t.Parallel()
			socket := hostile(t, tt.mode)
			e, err := look(Options{CRISockets: []string{socket}, OnlyListedSockets: true, CallTime: timeFor(tt.state)}, socket)
			if err != nil {
				t.Fatal(err)
			}
			if e.State != tt.state || tt.cause != nil && !errors.Is(e.Err, tt.cause) {
				t.Errorf("state %q, error %v; want %q, %v", e.State, e.Err, tt.state, tt.cause)
			}
		})
	}
	t.Run("containerd", func(t *testing.T) { // a CRI runtime that is no containerd
		socket := hostile(t, "cri honest")
		e, err := look(Options{ContainerdSockets: []string{socket}, OnlyListedSockets: true, CallTime: timeFor(StateNotOffered)}, socket)
		if err != nil || e.State != StateNotOffered {
			t.Errorf("state %q, %v", e.State, err)
		}
	})
}

func TestSocketsThatAreNone(t *testing.T) {
	dir := t.TempDir()
	file, sub, stale := filepath.Join(dir, "file"), filepath.Join(dir, "dir"), filepath.Join(dir, "stale")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mkdir(t, sub)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for socket, want := range map[string]State{
		filepath.Join(dir, "absent"): StateAbsent,
		file:                         StateNoSocket,
		sub:                          StateNoSocket,
		stale:                        StateRefused,
	} {
		if e, err := look(Options{DockerSockets: []string{socket}, OnlyListedSockets: true}, socket); err != nil || e.State != want {
			t.Errorf("%s: state %q (%v), %v; want %q", filepath.Base(socket), e.State, e.Err, err, want)
		}
	}
}

func TestForbiddenSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "forbidden")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(socket, 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], socket)
	cmd.Env = append(os.Environ(), hostileEnv+"=forbidden")
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != `"forbidden"` {
		t.Errorf("state %s, %v", out, err)
	}
}

// Numbers do not wait for names: an owner is there at once, and names itself when
// a runtime that answers takes the place of one that hangs.
func TestOwnerWhileHanging(t *testing.T) {
	socket := hostile(t, "hang")
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{socket}, OnlyListedSockets: true})
	r.Start(context.Background())
	r.CgroupCreated(7, "/docker/"+idA)
	for range 1000 {
		if o := r.Owner(7); o.ContainerID != idA || o.ContainerName != "" {
			t.Fatalf("got %+v", o)
		}
	}
	poll(t, "found hanging", func() bool { return state(r) == StateHanging })
	if s := r.Stats(); s.Pending != 1 {
		t.Errorf("stats %+v", s)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	honest := runHostile(t, "honest", socket)
	poll(t, "named", func() bool { return r.Owner(7).ContainerName == "a" })
	if s := r.Stats(); s.Pending != 0 {
		t.Errorf("stats %+v", s)
	}

	// It dies, and comes back. A container is known before the answer is complete.
	poll(t, "well", func() bool { return state(r) == StateOK })
	honest.Process.Kill()
	poll(t, "death noticed", func() bool { return state(r) != StateOK })
	if o := r.Owner(7); o.ContainerName != "a" {
		t.Errorf("name forgotten: %+v", o)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	runHostile(t, "honest", socket)
	poll(t, "well again", func() bool { return state(r) == StateOK })
}

// An engine that is slower than it may be is given more time until it answers.
func TestSlowEngine(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{hostile(t, "slow version")}, OnlyListedSockets: true, CallTime: slowVersion / 10})
	r.Start(context.Background())
	poll(t, "answered", func() bool { return state(r) == StateOK })
}

func TestCallLimit(t *testing.T) {
	p := callLimit{callTime, callTime}
	for i, step := range []struct {
		answered bool
		state    State
		want     time.Duration
	}{
		{false, StateHanging, 6 * time.Second},
		{false, StateRefused, 6 * time.Second},
		{false, StateHanging, 12 * time.Second},
		{false, StateHanging, 24 * time.Second},
		{false, StateHanging, 30 * time.Second},
		{false, StateHanging, 30 * time.Second},
		{true, StateHanging, 3 * time.Second},
	} {
		if p.after(step.answered, step.state); p.now != step.want {
			t.Errorf("step %d: %v, want %v", i, p.now, step.want)
		}
	}
	f := &feed{}
	for call, want := range map[time.Duration]time.Duration{callTime: listTime, callTimeMost: listCalls * callTimeMost} {
		f.limit.now = call
		ctx, cancel := f.listCall(t.Context())
		if end, _ := ctx.Deadline(); time.Until(end) > want || time.Until(end) < want/2 {
			t.Errorf("a list of a runtime that has %v for a call may take until %v", call, end)
		}
		cancel()
	}
	long := callLimit{time.Minute, time.Minute}
	if long.after(false, StateHanging); long.now != time.Minute {
		t.Errorf("a minute became %v", long.now)
	}
}

// An engine that tells too much at once is asked for what was seen.
func TestHugeListAsksForSingleContainers(t *testing.T) {
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{hostile(t, "huge list")}, OnlyListedSockets: true})
	r.Start(context.Background())
	r.CgroupCreated(7, "/some/parent/"+idB)
	poll(t, "named", func() bool { return r.Owner(7).ContainerName == "asked for" })
}

// A container that the engine was slow to tell of is asked for again, and not just
// when somebody asks us for it.
func TestSlowInspectIsRepeated(t *testing.T) {
	t.Parallel()
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{hostile(t, "slow inspects")}, OnlyListedSockets: true})
	r.Start(context.Background())
	poll(t, "the engine answered", func() bool { return state(r) == StateOK })
	r.runtimes.wanted(idB)
	poll(t, "named", func() bool { c := r.registry.get(idB); return c != nil && c.name == "asked for" })
}

func TestHostileEventsAreBounded(t *testing.T) {
	for _, mode := range []string{"huge event", "half an event", "flood of events", "hanging list", "huge list", "huge version", "babble", "endless header"} {
		t.Run(mode, func(t *testing.T) {
			r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{hostile(t, mode)}, OnlyListedSockets: true})
			before := heap()
			r.Start(context.Background())
			var most uint64
			rounds := 0
			poll(t, "three rounds of it", func() bool {
				most = max(most, heap())
				switch mode {
				case "flood of events":
					return r.Stats().Containers >= 3000
				case "hanging list":
					return state(r) == StateConnecting
				case "huge list":
					return state(r) == StateOK
				}
				if state(r) == StateBroken {
					rounds++
				}
				return rounds == 30
			})
			if limit := uint64(8 * maxList); most > before+limit {
				t.Errorf("memory grew by %d bytes, more than %d", most-before, limit)
			}
		})
	}
}

// state returns the state of the socket that the resolver was given.
func state(r *Resolver) State {
	for _, e := range r.Endpoints() {
		if e.Socket == r.opts.DockerSockets[0] {
			return e.State
		}
	}
	return ""
}

// heap returns the bytes that the process holds for the Go heap, used or not.
func heap() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64()
}

func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// What an engine said of a container before it removed it is no news afterwards.
func TestAnswerAfterRemoval(t *testing.T) {
	dir, err := os.MkdirTemp("", "engine") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("/v1.41/containers/{id}/json", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") == idA {
			close(asked)
			<-answer
		}
		fmt.Fprintf(w, `{"Id":%q,"Name":"/asked for","Config":{"Image":"i","Labels":{}}}`, r.PathValue("id"))
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })

	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), DockerSockets: []string{socket}, OnlyListedSockets: true})
	f := r.runtimes.add(&runtimeSpec{name: runtimeDocker}, socket, domain{})
	s, err := openDocker(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	d := s.(*docker)
	ctx, cancel := context.WithCancel(context.Background())
	work := newInspector(d, f)
	work.start(ctx)
	defer work.wait()
	defer cancel()
	event := func(action events.Action) {
		d.event(f, work, events.Message{Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: idA, Attributes: map[string]string{"name": "a"}}})
	}
	event(events.ActionCreate)
	work.queue <- idA
	<-asked
	event(events.ActionDestroy)
	close(answer)
	work.queue <- idB // one after the other
	poll(t, "the next one is known", func() bool { return r.registry.get(idB) != nil })
	r.registry.mu.RLock()
	defer r.registry.mu.RUnlock()
	if c := r.registry.byID[idA]; c == nil || c.goneAt.IsZero() {
		t.Errorf("%+v is there again", c)
	}
}
