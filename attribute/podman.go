package attribute

import (
	"context"
	"fmt"
	"net/url"

	"github.com/docker/docker/api/types/events"
)

// Podman's names of events, where they differ from Docker's.
const (
	podmanInit   events.Action = "init"
	podmanDied   events.Action = "died"
	podmanRemove events.Action = "remove"
)

// podmanSockets are the usual sockets of Podman with Docker's API (podman.socket): the
// machine's, and each user's.
func podmanSockets() []string {
	return []string{"/run/podman/podman.sock", "/run/user/*/podman/podman.sock"}
}

// pods returns what only Podman's own API has: which pods containers are in, and which of
// them are infra containers. With an id it asks about that container only.
func (d *docker) pods(ctx context.Context, id string) (map[string]listedPod, error) {
	query := url.Values{"all": {"true"}}
	if id != "" {
		query.Set("filters", fmt.Sprintf(`{"id":[%q]}`, id))
	}
	pods := map[string]listedPod{}
	err := each(ctx, d, "/v4.0.0/libpod/containers/json", query, func(p *listedPod) {
		if p.PodName != "" && len(p.ID) <= maxText {
			p.PodName = clip(p.PodName, maxText)
			pods[p.ID] = *p
		}
	})
	if err != nil {
		return nil, fmt.Errorf("asking for pods: %w", err)
	}
	return pods, nil
}

// inPod adds the pod that a container is in, if it is in one.
func (c *container) inPod(p listedPod) {
	if p.PodName == "" {
		return
	}
	c.podName = p.PodName
	if p.IsInfra {
		c.kind = KindPod
	}
}
