package attribute

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	containerdPoll = time.Minute // events report what comes in between
	maxSpec        = 64 << 10    // bytes of a container's OCI specification that are read
)

// machineContainerdSockets are where containerd listens for ctr and nerdctl.
func machineContainerdSockets() []string {
	return []string{"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock", "/var/snap/microk8s/common/run/containerd.sock"}
}

// containerdSockets are those, and that of each user's own containerd. It has a /run of its
// own, where containerd-rootless.sh of nerdctl mounts this directory over /run/containerd.
func containerdSockets() []string {
	return append(machineContainerdSockets(), "/run/user/*/containerd/containerd.sock")
}

// containerdSession is a session with containerd itself. It knows the containers of ctr
// and nerdctl, and those of Kubernetes where CRI is not available.
type containerdSession struct {
	conn   *grpc.ClientConn
	socket string
}

func openContainerd(socket string) (session, error) {
	conn, err := dialGRPC(socket)
	if err != nil {
		return nil, err
	}
	return &containerdSession{conn, socket}, nil
}

func (s *containerdSession) close() error { return s.conn.Close() }

func (s *containerdSession) follow(ctx context.Context, f *feed) error {
	if err := f.reach(ctx); err != nil {
		return err
	}
	version, err := s.hello(ctx, f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan containerdEvent, 256)
	ended := make(chan error, 1)
	go func() { ended <- s.events(ctx, events) }()
	defer func() { cancel(); <-ended }()

	next := newPacer(containerdPoll)
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
				f.ok(runtimeContainerd, version)
				next.news() // the subscription may have begun after this list: ask for another one
			}
		case e := <-events:
			s.event(ctx, f, e)
		case <-f.wanted:
			next.news()
		case err := <-ended:
			ended <- err
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *containerdSession) hello(ctx context.Context, f *feed) (string, error) {
	ctx, cancel := f.call(ctx)
	defer cancel()
	v, err := versionapi.NewVersionClient(s.conn).Version(ctx, &emptypb.Empty{}, single())
	if err != nil {
		return "", rpcError("asking for the version", err)
	}
	return "containerd " + v.Version, nil
}

// foreign tells the namespaces whose containers are Docker's: the engine knows more.
func foreign(namespace string) bool { return namespace == "moby" || namespace == "plugins.moby" }

func in(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

func (s *containerdSession) list(ctx context.Context, f *feed) error {
	all := f.begin()
	ctx, cancel := f.listCall(ctx)
	defer cancel()
	spaces, err := namespacesapi.NewNamespacesClient(s.conn).List(ctx, &namespacesapi.ListNamespacesRequest{}, single())
	if err != nil {
		return rpcError("listing namespaces", err)
	}
	for _, ns := range spaces.Namespaces {
		if foreign(ns.Name) {
			continue
		}
		stream, err := containersapi.NewContainersClient(s.conn).ListStream(in(ctx, ns.Name), &containersapi.ListContainersRequest{}, single())
		if err != nil {
			return rpcError("listing containers", err)
		}
		for all.n < maxContainers && !all.full {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return rpcError("listing containers", err)
			}
			if c := m.GetContainer(); c != nil {
				all.put(containerdContainer(ns.Name, c))
			}
		}
	}
	all.end()
	return nil
}

func (s *containerdSession) events(ctx context.Context, to chan<- containerdEvent) error {
	stream, err := eventsapi.NewEventsClient(s.conn).Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{`topic=="/containers/create"`, `topic=="/containers/update"`, `topic=="/containers/delete"`},
	}, grpc.MaxCallRecvMsgSize(maxEvent))
	if err != nil {
		return rpcError("following events", err)
	}
	var flood throttle
	for {
		flood.take(ctx)
		e, err := stream.Recv()
		if err != nil {
			return rpcError("following events", err)
		}
		id := eventID(e)
		if foreign(e.Namespace) || id == "" || len(id) > maxText || len(e.Namespace) > maxText {
			continue
		}
		select {
		case to <- containerdEvent{e.Namespace, id, e.Topic == "/containers/delete"}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// containerdEvent is what is kept of an event while it waits.
type containerdEvent struct {
	namespace, id string
	removed       bool
}

func (s *containerdSession) event(ctx context.Context, f *feed, e containerdEvent) {
	if e.removed {
		f.removed(containerKey(e.namespace, e.id))
		return
	}
	ctx, cancel := f.call(in(ctx, e.namespace))
	defer cancel()
	r, err := containersapi.NewContainersClient(s.conn).Get(ctx, &containersapi.GetContainerRequest{ID: e.id}, single())
	if err != nil || r.Container == nil {
		return // it is gone already, or in the next list
	}
	f.put(containerdContainer(e.namespace, r.Container))
	if e.namespace == "k8s.io" {
		f.nudge(e.id) // CRI knows more, but may send no events
	}
}

// eventID returns the id of the container that an event is about.
func eventID(e *types.Envelope) string {
	var m interface {
		proto.Message
		GetID() string
	}
	switch e.Topic {
	case "/containers/create":
		m = &eventtypes.ContainerCreate{}
	case "/containers/update":
		m = &eventtypes.ContainerUpdate{}
	case "/containers/delete":
		m = &eventtypes.ContainerDelete{}
	default:
		return ""
	}
	if e.Event == nil || proto.Unmarshal(e.Event.Value, m) != nil {
		return ""
	}
	return m.GetID()
}

// containerKey returns the key of a container in the registry. Ids that people choose are
// unique only within their namespace.
func containerKey(namespace, id string) string {
	if isHex(id, 64) {
		return id
	}
	return namespace + "/" + id
}

func containerdContainer(namespace string, m *containersapi.Container) container {
	c := container{
		key: containerKey(namespace, m.ID), id: m.ID, runtime: runtimeContainerd, labels: m.Labels,
		name: first(m.Labels, "nerdctl/name", "io.kubernetes.container.name"),
	}
	if c.name == "" && !isHex(m.ID, 64) {
		c.name = m.ID
	}
	c.setImage(m.Image)
	var spec struct {
		Linux  struct{ CgroupsPath string }
		Mounts []struct{ Destination, Type, Source string }
	}
	if m.Spec == nil || len(m.Spec.Value) > maxSpec || json.Unmarshal(m.Spec.Value, &spec) != nil {
		return c
	}
	// "slice:prefix:id" is not needed: the resulting path contains the id.
	if strings.HasPrefix(spec.Linux.CgroupsPath, "/") {
		c.cgroupPath = clip(spec.Linux.CgroupsPath, maxText)
	}
	for _, mount := range spec.Mounts {
		if len(c.volumes) == maxVolumes {
			break
		}
		if mount.Type != "bind" && mount.Type != "rbind" {
			continue
		}
		v := volume{source: mount.Source, destination: mount.Destination}
		v.name, v.driver = pathVolume(mount.Source)
		c.volumes = append(c.volumes, v)
	}
	return c
}
