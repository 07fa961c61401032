package attribute

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	criPoll     = 10 * time.Second // some runtimes have events off by default
	maxStatuses = 512              // containers asked about one by one, per list
	maxHeader   = 64 << 10
)

// criSockets are the sockets where runtimes listen for the kubelet.
func criSockets() []string {
	return []string{
		"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock", "/var/snap/microk8s/common/run/containerd.sock",
		"/run/crio/crio.sock", "/run/cri-dockerd.sock",
	}
}

// criSession is a session with a runtime that serves Kubernetes, over CRI v1.
type criSession struct {
	conn    *grpc.ClientConn
	socket  string
	client  cri.RuntimeServiceClient
	runtime string

	details map[string]*cri.ContainerStatus // what never changes about a container
}

func openCRI(socket string) (session, error) {
	conn, err := dialGRPC(socket)
	if err != nil {
		return nil, err
	}
	return &criSession{conn: conn, socket: socket, client: cri.NewRuntimeServiceClient(conn), details: map[string]*cri.ContainerStatus{}}, nil
}

// dialGRPC prepares a connection to a unix socket; it connects at the first call.
func dialGRPC(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return dialSocket(ctx, path)
		}),
		grpc.WithAuthority("localhost"),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxList)),
	)
	if err != nil {
		return nil, fmt.Errorf("asking the runtime at %q: %w", socket, err)
	}
	return conn, nil
}

// errNotOffered says that a runtime answers but does not offer this API.
var errNotOffered = errors.New("not offered")

// rpcError gives errors of gRPC the same causes as those of all other sessions.
func rpcError(what string, err error) error {
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w: %w", what, context.DeadlineExceeded, err)
	case codes.ResourceExhausted:
		return fmt.Errorf("%s: %w: %w", what, errTooLarge, err)
	case codes.Unimplemented:
		return fmt.Errorf("%s: %w: %w", what, errNotOffered, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (s *criSession) close() error { return s.conn.Close() }

func (s *criSession) follow(ctx context.Context, f *feed) error {
	if err := f.reach(ctx); err != nil {
		return err
	}
	version, err := s.hello(ctx, f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan *cri.ContainerEventResponse, 256)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.events(ctx, events)
	}()
	defer func() { cancel(); <-done }()

	next := newPacer(criPoll)
	defer next.stop()
	for first := true; ; {
		select {
		case <-next.timer.C:
			next.listing()
			if err := s.list(ctx, f); err != nil {
				return err
			}
			if first {
				first = false
				f.ok(s.runtime, version)
				next.news() // the stream of events may have begun after this list: ask for another one
			}
		case e := <-events:
			// An event has the pod and its containers: a container that is gone before the
			// next list still gets its name.
			s.event(f, e)
			next.news()
		case <-f.wanted:
			next.news()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *criSession) hello(ctx context.Context, f *feed) (string, error) {
	ctx, cancel := f.call(ctx)
	defer cancel()
	v, err := s.client.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return "", rpcError("asking for the version", err)
	}
	switch s.runtime = v.RuntimeName; v.RuntimeName {
	case "cri-o", "docker", "containerd":
	default:
		s.runtime = clip(v.RuntimeName, maxText)
	}
	return fmt.Sprintf("%s %s, CRI %s", v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion), nil
}

// events reads events until the runtime ends the stream. Some end it at once because
// events are not enabled: then only the lists remain.
func (s *criSession) events(ctx context.Context, to chan<- *cri.ContainerEventResponse) {
	stream, err := s.client.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return
	}
	var flood throttle
	for {
		flood.take(ctx)
		e, err := stream.Recv()
		if err != nil {
			return
		}
		select {
		case to <- e:
		case <-ctx.Done():
			return
		}
	}
}

func (s *criSession) event(f *feed, e *cri.ContainerEventResponse) {
	p := e.GetPodSandboxStatus()
	if p == nil {
		return
	}
	box := &cri.PodSandbox{Id: p.Id, Metadata: p.Metadata, Labels: p.Labels}
	f.put(s.sandbox(box))
	for _, c := range e.ContainersStatuses {
		s.note(c)
		f.put(s.container(&cri.Container{Id: c.Id, PodSandboxId: p.Id, Metadata: c.Metadata, Image: c.Image, Labels: c.Labels}, box))
	}
}

func (s *criSession) list(ctx context.Context, f *feed) error {
	began := f.now()
	all, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	boxes, err := s.client.ListPodSandbox(all, &cri.ListPodSandboxRequest{})
	if err != nil {
		return rpcError("listing pods", err)
	}
	list, err := s.client.ListContainers(all, &cri.ListContainersRequest{})
	if err != nil {
		return rpcError("listing containers", err)
	}
	var told []container
	byID := make(map[string]*cri.PodSandbox, len(boxes.Items))
	for _, b := range boxes.Items {
		byID[b.Id] = b
		told = append(told, s.sandbox(b))
	}
	alive := make(map[string]bool, len(list.Containers))
	asked := 0
	for _, c := range list.Containers {
		alive[c.Id] = true
		if s.details[c.Id] == nil && asked < maxStatuses {
			asked++
			if err := s.status(ctx, f, c.Id); err != nil {
				return err
			}
		}
		told = append(told, s.container(c, byID[c.PodSandboxId]))
	}
	maps.DeleteFunc(s.details, func(id string, _ *cri.ContainerStatus) bool { return !alive[id] })
	f.sync(told, began)
	return nil
}

// status asks for what the list lacks: the name of the image and the mounts.
func (s *criSession) status(ctx context.Context, f *feed, id string) error {
	ctx, cancel := f.call(ctx)
	defer cancel()
	r, err := s.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	switch status.Code(err) {
	case codes.OK:
		s.note(r.GetStatus())
	case codes.NotFound: // it is gone since the list
	default:
		return rpcError("asking for a container", err)
	}
	return nil
}

func (s *criSession) note(c *cri.ContainerStatus) {
	if c != nil && len(s.details) < maxContainers {
		s.details[c.Id] = &cri.ContainerStatus{Image: c.Image, Mounts: c.Mounts}
	}
}

func (s *criSession) sandbox(b *cri.PodSandbox) container {
	c := container{id: b.Id, runtime: s.runtime, kind: KindPod, labels: b.Labels, name: b.GetMetadata().GetName()}
	c.labels = podLabels(b.Labels, b)
	return c
}

func (s *criSession) container(l *cri.Container, box *cri.PodSandbox) container {
	c := container{id: l.Id, runtime: s.runtime, kind: KindContainer, name: l.GetMetadata().GetName(), labels: podLabels(l.Labels, box)}
	image := l.GetImage()
	if d := s.details[l.Id]; d != nil {
		if d.Image.GetImage() != "" {
			image = d.Image
		}
		for _, m := range d.Mounts {
			v := volume{source: m.HostPath, destination: m.ContainerPath}
			v.name, v.driver = pathVolume(m.HostPath)
			c.volumes = append(c.volumes, v)
		}
	}
	ref := image.GetUserSpecifiedImage()
	if ref == "" {
		ref = image.GetImage()
	}
	c.setImage(ref)
	return c
}

// podLabels adds to a container's labels those of its pod, which the user wrote, and the
// identity of the pod, which only the kubelet writes into labels.
func podLabels(own map[string]string, box *cri.PodSandbox) map[string]string {
	labels := maps.Clone(box.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, own)
	if m := box.GetMetadata(); m != nil {
		for k, v := range map[string]string{
			"io.kubernetes.pod.name": m.Name, "io.kubernetes.pod.namespace": m.Namespace, "io.kubernetes.pod.uid": m.Uid,
		} {
			if labels[k] == "" && v != "" {
				labels[k] = v
			}
		}
	}
	return labels
}
