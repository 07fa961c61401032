package attribute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	dcontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

const (
	listTime     = 20 * time.Second       // limit of a list at first: thousands of containers take seconds
	pingTime     = 10 * time.Second       // between two pings
	listAgain    = 5 * time.Minute        // between two lists: events may get lost
	inspectDelay = 250 * time.Millisecond // a container that is gone by then has its name from its event
	maxInspects  = 1024                   // containers that wait to be asked about
	inspectTries = 4                      // failures in a row
)

// machineDockerSockets are the usual sockets of the engine that serves the whole
// machine. dockerd listens at the second one, which is the first wherever /var/run is a
// link to /run: a socket is asked once.
func machineDockerSockets() []string {
	return []string{"/run/docker.sock", "/var/run/docker.sock"}
}

// dockerSockets are the usual sockets of Docker: the machine's, and each user's.
func dockerSockets() []string {
	return append(machineDockerSockets(), "/run/user/*/docker.sock")
}

// docker is a session with an engine that speaks Docker's API.
type docker struct {
	client  *client.Client
	socket  string // "" when the engine is not behind a unix socket
	runtime string
	asking  atomic.Bool // a question about the swarm is under way
}

// openDocker opens a session with the engine at a path or at a remote address such as
// tcp://127.0.0.1:2375.
func openDocker(socket string) (session, error) { return newDocker(socket) }

func newDocker(socket string) (*docker, error) {
	d := &docker{runtime: runtimeDocker}
	host := socket
	if isPath(socket) {
		host, d.socket = "unix://"+socket, socket
	}
	c, err := client.NewClientWithOpts(client.WithHost(host), bounded(d.socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("asking the engine at %q: %w", socket, err)
	}
	d.client = c
	return d, nil
}

// bounded limits what the client reads to more than an honest engine sends.
func bounded(socket string) client.Opt {
	return func(c *client.Client) error {
		t, ok := c.HTTPClient().Transport.(*http.Transport)
		if !ok {
			return fmt.Errorf("unexpected transport %T", c.HTTPClient().Transport)
		}
		t.MaxResponseHeaderBytes = 64 << 10
		t.DisableCompression = true // the size of a compressed answer is not known
		t.DisableKeepAlives = true  // connecting to a local socket is cheap
		if socket != "" {
			t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := dialSocket(ctx, socket)
				if err != nil {
					return nil, err
				}
				return newAskFirst(c), nil
			}
		}
		return client.WithHTTPClient(&http.Client{
			Transport:     boundedTransport{t},
			CheckRedirect: client.CheckRedirect,
		})(c)
	}
}

// askFirst is a connection that reads nothing before the first request is written:
// net/http would log what a server sends before that.
type askFirst struct {
	net.Conn
	asked chan struct{}
	once  sync.Once
}

func newAskFirst(c net.Conn) *askFirst { return &askFirst{Conn: c, asked: make(chan struct{})} }

func (c *askFirst) Read(p []byte) (int, error) {
	<-c.asked
	return c.Conn.Read(p)
}

func (c *askFirst) Write(p []byte) (int, error) {
	c.once.Do(func() { close(c.asked) })
	return c.Conn.Write(p)
}

func (c *askFirst) Close() error {
	c.once.Do(func() { close(c.asked) })
	return c.Conn.Close()
}

func (d *docker) close() error { return d.client.Close() }

func (d *docker) follow(ctx context.Context, f *feed) error {
	if d.socket != "" {
		if err := f.reach(ctx); err != nil {
			return err
		}
	}
	version, err := d.hello(ctx, f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// Events first, then the list: nothing is missed between the two.
	opened := f.now()
	messages, errs, err := d.events(ctx, f)
	if err != nil {
		return err
	}
	if f.since == "" {
		f.since = stamp(opened.UnixNano())
	}
	work := newInspector(d, f)
	defer work.wait()
	work.start(ctx)

	lists := make(chan listing, 1)
	var listers sync.WaitGroup
	defer listers.Wait()
	defer cancel()
	list := func() {
		listers.Go(func() { lists <- d.list(ctx, f) })
	}
	if d.runtime == runtimePodman {
		f.node(swarm.LocalNodeStateInactive)
	}
	askSwarm := func() {
		if d.runtime != runtimePodman && d.asking.CompareAndSwap(false, true) {
			listers.Go(func() {
				defer d.asking.Store(false)
				d.askSwarm(ctx, f)
			})
		}
	}
	askSwarm()
	list()
	listing := true
	first := true
	var flood throttle
	ping := time.NewTicker(pingTime)
	defer ping.Stop()
	again := time.NewTicker(listAgain)
	defer again.Stop()
	due := time.NewTicker(inspectDelay)
	defer due.Stop()
	for {
		select {
		case m := <-messages:
			flood.take(ctx)
			if m.Type == events.NetworkEventType {
				askSwarm() // joining a swarm makes the networks ingress and docker_gwbridge
			}
			d.event(f, work, m)
		case err := <-errs:
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("the engine ended the stream of events: %w", err)
			}
			return fmt.Errorf("following events: %w", garbled(err))
		case l := <-lists:
			listing = false
			switch {
			case errors.Is(l.err, errTooLarge):
				// Ask instead about the containers whose cgroups are seen.
				f.log.Warn("the list of containers is too large: asking about single containers", "socket", shown(f.socket))
			case l.err != nil:
				return l.err
			default:
				for _, id := range l.unnamed {
					work.add(id, f.now()) // the name went to another image, but the container keeps its own
				}
			}
			if first {
				first = false
				f.ok(d.runtime, version)
			}
		case <-due.C:
			if work.flush(f.now()) && !listing {
				listing = true
				list()
			}
		case id := <-f.wanted:
			work.add(id, f.now())
		case <-again.C:
			if !listing {
				listing = true
				list()
			}
		case <-ping.C:
			if err := d.ping(ctx, f); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hello asks the engine what it is.
func (d *docker) hello(ctx context.Context, f *feed) (string, error) {
	ctx, cancel := f.call(ctx)
	defer cancel()
	v, err := d.client.ServerVersion(ctx)
	if err != nil {
		return "", fmt.Errorf("asking for the version: %w", garbled(err))
	}
	name := v.Platform.Name
	for _, c := range v.Components {
		if strings.HasPrefix(c.Name, "Podman") {
			name, d.runtime = c.Name, runtimePodman
		}
	}
	if name == "" {
		name = "Docker Engine"
	}
	if v.Version == "" {
		return "", fmt.Errorf("asking for the version: no version in it: %w", errGarbled)
	}
	return fmt.Sprintf("%s %s, API %s", name, v.Version, v.APIVersion), nil
}

func (d *docker) ping(ctx context.Context, f *feed) error {
	_, err := d.pingSwarm(ctx, f)
	return err
}

// pingSwarm pings the engine. Since API 1.42 the answer says whether it is a node of a
// swarm.
func (d *docker) pingSwarm(ctx context.Context, f *feed) (said bool, err error) {
	ctx, cancel := f.call(ctx)
	defer cancel()
	answer, err := d.client.Ping(ctx)
	if err != nil || answer.SwarmStatus == nil {
		return false, err
	}
	f.node(answer.SwarmStatus.NodeState)
	return true, nil
}

// askSwarm asks the engine whether it is a node of a swarm. An engine that does not answer
// is asked again after the next network that it makes, and when it is reached again.
func (d *docker) askSwarm(ctx context.Context, f *feed) {
	said, err := d.pingSwarm(ctx, f)
	if err == nil && !said {
		ctx, cancel := f.call(ctx)
		defer cancel()
		info, infoErr := d.client.Info(ctx)
		if err = infoErr; err == nil {
			f.node(info.Swarm.LocalNodeState)
		}
	}
	if err != nil && ctx.Err() == nil {
		f.log.Debug("not known whether the engine is in a swarm", "socket", shown(f.socket), "error", clip(garbled(err).Error(), maxText))
	}
}

// node takes the state of an engine as a node of a swarm. One that is joining counts.
func (f *feed) node(state swarm.LocalNodeState) {
	if state == "" {
		return
	}
	if f.inSwarm != nil && state != swarm.LocalNodeStateInactive {
		f.inSwarm()
	}
	f.swarmOne.Do(func() { close(f.swarmed) })
}

// events opens the stream of events. The client waits for the header of the answer: this
// needs a deadline, but the stream itself must not have one.
func (d *docker) events(ctx context.Context, f *feed) (<-chan events.Message, <-chan error, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(f.callTime(), func() { cancel(errHanging) })
	want := filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("type", string(events.PluginEventType)),
		filters.Arg("type", string(events.NetworkEventType)),
	)
	// Without a filter, health checks alone make hundreds of events per second on a large
	// host.
	for _, action := range []events.Action{
		events.ActionCreate, events.ActionStart, events.ActionDie, events.ActionDestroy, events.ActionRename, events.ActionEnable,
		podmanDied, podmanRemove, podmanInit,
	} {
		want.Add("event", string(action))
	}
	messages, errs := d.client.Events(ctx, events.ListOptions{Since: f.since, Filters: want})
	if !timer.Stop() {
		return nil, nil, fmt.Errorf("opening the stream of events: %w", errHanging)
	}
	return messages, errs, nil
}

type listing struct {
	unnamed []string // containers whose image is known by its id only
	err     error
}

// list asks for all containers, also stopped ones: their late writeback may still come.
// Managed plugins are containers that only the list of plugins names.
func (d *docker) list(ctx context.Context, f *feed) (l listing) {
	ctx, cancel := f.listCall(ctx)
	defer cancel()
	all := f.begin()
	pods := map[string]listedPod{}
	if d.runtime == runtimePodman {
		pods, _ = d.pods(ctx, "") // on an error, containers keep their names from Docker's API
	}
	err := each(ctx, d, d.versioned("/containers/json"), url.Values{"all": {"1"}}, func(s *listedContainer) {
		c := container{id: s.ID, runtime: d.runtime, labels: s.Labels, volumes: listedVolumes(s.Mounts)}
		c.setImage(s.Image)
		if len(s.Names) > 0 {
			c.name = strings.TrimPrefix(ownName(s.Names), "/")
		}
		c.inPod(pods[s.ID])
		all.put(c)
		if isImageID(c.image) && len(c.id) <= maxText && len(l.unnamed) < maxInspects && !f.registry.namesImage(f.key(c.id)) {
			l.unnamed = append(l.unnamed, c.id)
		}
	})
	if err != nil {
		l.err = fmt.Errorf("listing containers: %w", err)
		return l
	}
	if d.runtime != runtimePodman {
		// An engine without plugins still has containers.
		_ = each(ctx, d, d.versioned("/plugins"), nil, func(p *listedPlugin) {
			all.put(pluginContainer(p.ID, p.Name, p.PluginReference))
		})
	}
	all.end()
	return l
}

func pluginContainer(id, name, ref string) container {
	c := container{id: id, name: name, runtime: runtimePlugin}
	c.setImage(ref)
	return c
}

// ownName picks the container's own name: others come from links.
func ownName(names []string) string {
	for _, n := range names {
		if strings.Count(n, "/") == 1 {
			return n
		}
	}
	return names[0]
}

func listedVolumes(mounts []listedMount) []volume {
	var vs []volume
	for _, m := range mounts[:min(len(mounts), maxVolumes)] {
		vs = append(vs, volume{name: m.Name, driver: m.Driver, source: m.Source, destination: m.Destination})
	}
	return vs
}

func dockerVolumes(mounts []dcontainer.MountPoint) []volume {
	var vs []volume
	for _, m := range mounts {
		vs = append(vs, volume{name: m.Name, driver: m.Driver, source: m.Source, destination: m.Destination})
	}
	return vs
}

// inspect asks about one container, or about a plugin if there is no such container. An
// error comes with what is known so far.
func (d *docker) inspect(ctx context.Context, f *feed, id string) (container, error) {
	ctx, cancel := f.call(ctx)
	defer cancel()
	in, err := d.client.ContainerInspect(ctx, id)
	if errdefs.IsNotFound(err) {
		p, _, perr := d.client.PluginInspectWithRaw(ctx, id)
		switch {
		case errors.Is(perr, context.DeadlineExceeded):
			return container{}, fmt.Errorf("inspecting a plugin: %w", perr)
		case perr != nil || p == nil:
			return container{}, err
		}
		return pluginContainer(p.ID, p.Name, p.PluginReference), nil
	}
	if err != nil {
		return container{}, fmt.Errorf("inspecting a container: %w", garbled(err))
	}
	c := container{runtime: d.runtime, volumes: dockerVolumes(in.Mounts)}
	if in.ContainerJSONBase != nil {
		c.id, c.name = in.ID, strings.TrimPrefix(in.Name, "/")
		if in.State != nil && in.State.Pid > 0 {
			c.cgroupPath = f.cgroupOf(in.State.Pid, in.ID)
		}
	}
	if in.Config != nil {
		c.labels = in.Config.Labels
		c.setImage(in.Config.Image)
	}
	if d.runtime == runtimePodman {
		var pods map[string]listedPod
		pods, err = d.pods(ctx, c.id)
		c.inPod(pods[c.id])
	}
	return c, err
}

// event handles one event. Its attributes are the container's labels mixed with those of
// the engine: enough to name a container that is gone before it can be inspected.
func (d *docker) event(f *feed, work *inspector, m events.Message) {
	if m.TimeNano > 0 {
		f.since = stamp(m.TimeNano)
	}
	id := m.Actor.ID
	if m.Type == events.PluginEventType {
		work.add(id, f.now())
		return
	}
	if m.Type != events.ContainerEventType && m.Type != "" {
		return
	}
	switch m.Action {
	case events.ActionCreate, events.ActionStart, podmanInit:
		f.put(d.partial(m))
		work.add(id, f.now())
	case events.ActionDie, podmanDied:
		f.put(d.partial(m)) // the create event may be lost
		work.drop(id)
	case events.ActionDestroy, podmanRemove:
		work.removed(id)
		f.removed(id)
	case events.ActionRename:
		a := m.Actor.Attributes
		f.rename(id, strings.TrimPrefix(a["oldName"], "/"), strings.TrimPrefix(a["name"], "/"), time.Unix(0, m.TimeNano))
		work.add(id, f.now())
	}
}

// stamp formats a time, in ns since 1970, for engines: seconds with nine decimals.
func stamp(nanos int64) string { return fmt.Sprintf("%d.%09d", nanos/1e9, nanos%1e9) }

// engineAttributes are added to a container's labels in an event. They hide labels of the
// same name, which are known again from the next list.
var engineAttributes = [...]string{"name", "image", "exitCode", "containerExitCode", "signal", "execDuration", "execID", "oldName", "podId"}

func (d *docker) partial(m events.Message) container {
	labels := maps.Clone(m.Actor.Attributes)
	c := container{id: m.Actor.ID, name: strings.TrimPrefix(labels["name"], "/"), runtime: d.runtime, partial: true}
	c.setImage(labels["image"])
	for _, k := range engineAttributes {
		delete(labels, k)
	}
	c.labels = labels
	return c
}

// inspector asks about single containers, one after the other.
type inspector struct {
	d       *docker
	f       *feed
	pending map[string]time.Time // when to ask, by container id
	queue   chan string
	full    bool
	done    chan struct{}

	mu     sync.Mutex // held while an answer is stored
	asking string     // id of the current question; "" when its answer is no longer wanted
}

func newInspector(d *docker, f *feed) *inspector {
	return &inspector{d: d, f: f, pending: map[string]time.Time{}, queue: make(chan string, maxInspects), done: make(chan struct{})}
}

func (w *inspector) add(id string, now time.Time) {
	if id == "" || len(id) > maxText {
		return
	}
	if len(w.pending) >= maxInspects {
		w.full = true
		return
	}
	w.pending[id] = now.Add(inspectDelay)
}

func (w *inspector) drop(id string) { delete(w.pending, id) }

// removed is called before a container is marked gone: an answer on its way must not
// bring it back.
func (w *inspector) removed(id string) {
	w.drop(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asking == id {
		w.asking = ""
	}
}

// ask asks about one container and stores the answer.
func (w *inspector) ask(ctx context.Context, id string) error {
	w.mu.Lock()
	w.asking = id
	w.mu.Unlock()
	c, err := w.d.inspect(ctx, w.f, id)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asking == "" {
		return nil
	}
	w.f.put(c)
	return err
}

// flush queues the questions that are due. It returns true when there are so many that a
// list is better.
func (w *inspector) flush(now time.Time) (tooMany bool) {
	tooMany, w.full = w.full, false
	for id, due := range w.pending {
		if now.Before(due) {
			continue
		}
		delete(w.pending, id)
		select {
		case w.queue <- id:
		default:
			tooMany = true
		}
	}
	return tooMany
}

func (w *inspector) start(ctx context.Context) {
	go func() {
		defer close(w.done)
		tries := map[string]int{} // failures, by id
		for {
			if len(tries) >= maxInspects {
				clear(tries) // it holds containers that died before they were asked about again
			}
			select {
			case <-ctx.Done():
				return
			case id := <-w.queue:
				err := w.ask(ctx, id)
				if err == nil || errdefs.IsNotFound(err) || ctx.Err() != nil {
					delete(tries, id)
					continue
				}
				// The next list is minutes away, so ask again, but not forever. Pings find an
				// engine that hangs.
				if tries[id]++; tries[id] >= inspectTries {
					delete(tries, id)
					continue
				}
				select {
				case w.f.wanted <- id:
				default:
				}
			}
		}
	}()
}

func (w *inspector) wait() { <-w.done }

// garbled adds the cause errGarbled to errors about the JSON of an answer.
func garbled(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if errors.As(err, &syntax) || errors.As(err, &kind) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errGarbled, err)
	}
	return err
}
