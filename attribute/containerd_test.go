package attribute

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// lateContainerd is a containerd in which a container is created after the first
// list was asked for, and before anybody subscribed to its events.
type lateContainerd struct {
	versionapi.UnimplementedVersionServer
	namespacesapi.UnimplementedNamespacesServer
}

func (lateContainerd) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	time.Sleep(5 * time.Second) // so that the next regular list is later than poll waits
	return &versionapi.VersionResponse{Version: "1"}, nil
}

func (lateContainerd) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	return &namespacesapi.ListNamespacesResponse{Namespaces: []*namespacesapi.Namespace{{Name: "default"}}}, nil
}

type lateContainers struct {
	containersapi.UnimplementedContainersServer
	lists atomic.Int32
}

func (c *lateContainers) ListStream(_ *containersapi.ListContainersRequest, s containersapi.Containers_ListStreamServer) error {
	if c.lists.Add(1) == 1 {
		return nil
	}
	return s.Send(&containersapi.ListContainerMessage{Container: &containersapi.Container{ID: idA, Labels: map[string]string{"nerdctl/name": "late"}}})
}

type silentEvents struct {
	eventsapi.UnimplementedEventsServer
}

func (silentEvents) Subscribe(_ *eventsapi.SubscribeRequest, s eventsapi.Events_SubscribeServer) error {
	<-s.Context().Done()
	return nil
}

// The next regular list would be a minute later.
func TestContainerdListsOnceMore(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "ctrd") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	versionapi.RegisterVersionServer(g, lateContainerd{})
	namespacesapi.RegisterNamespacesServer(g, lateContainerd{})
	containersapi.RegisterContainersServer(g, &lateContainers{})
	eventsapi.RegisterEventsServer(g, silentEvents{})
	go g.Serve(l)
	t.Cleanup(g.Stop)

	r := newTestResolver(t, Options{
		CgroupRoot: t.TempDir(), ContainerdSockets: []string{socket}, OnlyListedSockets: true,
		CallTime: patientCall,
	})
	r.Start(context.Background())
	poll(t, "named", func() bool { c := r.registry.get(idA); return c != nil && c.name == "late" })
}
