package attribute

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
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

// pods fills in what only Podman's own API has: the names of pods, and which containers
// are the infra containers of a pod. On an error the containers stay as they are. A single
// container is asked about by id.
func (d *docker) pods(ctx context.Context, all []container) error {
	query := url.Values{"all": {"true"}}
	if len(all) == 1 {
		query.Set("filters", fmt.Sprintf(`{"id":[%q]}`, all[0].id))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman/v4.0.0/libpod/containers/json?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := d.client.HTTPClient().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var own []struct {
		ID      string `json:"Id"`
		PodName string
		IsInfra bool
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for pods: %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&own); err != nil {
		return fmt.Errorf("asking for pods: %w", garbled(err))
	}
	index := make(map[string]int, len(all))
	for i := range all {
		index[all[i].id] = i
	}
	for _, o := range own {
		i, ok := index[o.ID]
		if !ok || o.PodName == "" {
			continue
		}
		all[i].podName = o.PodName
		if o.IsInfra {
			all[i].kind = KindPod
		}
	}
	return nil
}
