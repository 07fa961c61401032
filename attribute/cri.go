package attribute

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"time"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	criPoll     = 10 * time.Second // some runtimes have events off by default
	maxStatuses = 512              // containers asked about one by one, per list

	maxPodContainers = 256 // taken from one event
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

	details map[string]criDetail // by container
	size    int                  // bytes of the details
}

// criDetail is what never changes about a container and is not in the list.
type criDetail struct {
	image   string
	volumes []volume
}

const maxDetails = 4 << 20 // bytes that are kept of all details

func (d *criDetail) size() int {
	n := 128 + len(d.image)
	for i := range d.volumes {
		v := &d.volumes[i]
		n += int(unsafe.Sizeof(*v)) + len(v.source) + len(v.destination) + len(v.name) + len(v.driver)
	}
	return n
}

func openCRI(socket string) (session, error) {
	conn, err := dialGRPC(socket)
	if err != nil {
		return nil, err
	}
	return &criSession{conn: conn, socket: socket, client: cri.NewRuntimeServiceClient(conn), details: map[string]criDetail{}}, nil
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
	events := make(chan *cri.ContainerEventResponse, 2)
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
	v, err := s.client.Version(ctx, &cri.VersionRequest{}, single())
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
	stream, err := s.client.GetContainerEvents(ctx, &cri.GetEventsRequest{}, grpc.MaxCallRecvMsgSize(maxEvent))
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
	box.Labels = clipLabels(box.Labels)
	for _, c := range e.ContainersStatuses[:min(len(e.ContainersStatuses), maxPodContainers)] {
		if c == nil {
			continue
		}
		s.note(c)
		f.put(s.container(&cri.Container{Id: c.Id, PodSandboxId: p.Id, Metadata: c.Metadata, Image: c.Image, Labels: c.Labels}, box))
	}
}

func (s *criSession) list(ctx context.Context, f *feed) error {
	told := f.begin()
	all, cancel := f.listCall(ctx)
	defer cancel()
	boxes, err := s.client.ListPodSandbox(all, &cri.ListPodSandboxRequest{})
	if err != nil {
		return rpcError("listing pods", err)
	}
	byID := make(map[string]*cri.PodSandbox, min(len(boxes.Items), maxContainers))
	for _, b := range boxes.Items[:min(len(boxes.Items), maxContainers)] {
		if b == nil {
			continue
		}
		b.Labels = clipLabels(b.Labels) // each container of the pod gets a copy
		byID[b.Id] = b
		told.put(s.sandbox(b))
	}
	boxes = nil
	list, err := s.client.ListContainers(all, &cri.ListContainersRequest{})
	if err != nil {
		return rpcError("listing containers", err)
	}
	containers := list.Containers[:min(len(list.Containers), maxContainers)]
	alive := make(map[string]bool, len(containers))
	asked := 0
	for _, c := range containers {
		if told.full {
			break
		}
		if c == nil || len(c.Id) > maxText {
			continue
		}
		alive[c.Id] = true
		if _, known := s.details[c.Id]; !known && asked < maxStatuses {
			asked++
			if err := s.status(ctx, f, c.Id); err != nil {
				return err
			}
		}
		c.Labels = clipLabels(c.Labels)
		told.put(s.container(c, byID[c.PodSandboxId]))
	}
	for id, d := range s.details {
		if !alive[id] && !told.full {
			s.size -= d.size()
			delete(s.details, id)
		}
	}
	told.end()
	return nil
}

// status asks for what the list lacks: the name of the image and the mounts.
func (s *criSession) status(ctx context.Context, f *feed, id string) error {
	ctx, cancel := f.call(ctx)
	defer cancel()
	r, err := s.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id}, single())
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
	if c == nil || len(c.Id) > maxText {
		return
	}
	d := criDetail{image: clip(imageName(c.Image), maxText)}
	for _, m := range c.Mounts[:min(len(c.Mounts), maxVolumes)] {
		v := volume{source: clip(m.GetHostPath(), maxText), destination: clip(m.GetContainerPath(), maxText)}
		v.name, v.driver = pathVolume(v.source)
		d.volumes = append(d.volumes, v)
	}
	old, known := s.details[c.Id]
	grown := d.size()
	if known {
		grown -= old.size()
	}
	if s.size+grown <= maxDetails {
		s.size += grown
		s.details[c.Id] = d
	}
}

func (s *criSession) sandbox(b *cri.PodSandbox) container {
	c := container{id: b.Id, runtime: s.runtime, kind: KindPod, labels: b.Labels, name: b.GetMetadata().GetName()}
	c.labels = podLabels(b.Labels, b)
	return c
}

func (s *criSession) container(l *cri.Container, box *cri.PodSandbox) container {
	c := container{id: l.Id, runtime: s.runtime, kind: KindContainer, name: l.GetMetadata().GetName(), labels: podLabels(l.Labels, box)}
	d := s.details[l.Id]
	c.volumes = d.volumes
	if c.setImage(d.image); d.image == "" {
		c.setImage(imageName(l.GetImage()))
	}
	return c
}

// imageName returns the name by which the user knows an image.
func imageName(image *cri.ImageSpec) string {
	if image.GetImage() == "" {
		return ""
	}
	return cmp.Or(image.GetUserSpecifiedImage(), image.GetImage())
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
