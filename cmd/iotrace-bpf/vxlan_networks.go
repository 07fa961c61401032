package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute"
	"github.com/iotrace-bpf/iotrace-bpf/tracer/vxlan"
)

// vxlanNetworks keeps what the engine last said about its overlay networks, and asks
// again when that is old. Without an engine there are no networks: the devices
// themselves then have to tell.
type vxlanNetworks struct {
	engine *attribute.Overlay
	log    *slog.Logger

	mu     sync.Mutex
	list   []vxlan.Network
	asked  time.Time
	failed time.Time // when it last did not answer
	said   string    // the last warning: each is logged once
}

// networksAge is how old an answer of the engine may be in a watch.
const networksAge = 30 * time.Second

func newVXLANNetworks(names attribute.Options) *vxlanNetworks {
	return &vxlanNetworks{engine: attribute.NewOverlay(names), log: names.Log}
}

// warn logs that the engine gave no answer, once for each reason. A machine without an
// engine is no reason to warn.
func (n *vxlanNetworks) warn(err error) {
	if errors.Is(err, attribute.ErrNoEngine) {
		return
	}
	if text := err.Error(); text != n.said {
		n.said = text
		n.log.Warn("the names of networks are not known", "error", text)
	}
}

// get returns the networks by an answer that is at most that old; nil when the engine
// has never answered. An engine that did not answer is not asked again for a while,
// unless age is 0.
func (n *vxlanNetworks) get(ctx context.Context, age time.Duration) []vxlan.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.asked) < age || age > 0 && time.Since(n.failed) < networksAge {
		return n.list
	}
	found, err := n.engine.Networks(ctx)
	if err != nil {
		if n.failed = time.Now(); ctx.Err() == nil {
			n.warn(err)
		}
		return n.list
	}
	n.list = make([]vxlan.Network, 0, len(found)) // not nil: an engine without networks has answered
	for _, f := range found {
		n.list = append(n.list, vxlan.Network(f))
	}
	n.asked, n.failed = time.Now(), time.Time{}
	return n.list
}

// refusals returns the starts that the engine knows to be refused.
func (n *vxlanNetworks) refusals(ctx context.Context) []attribute.Refusal {
	list, err := n.engine.Refusals(ctx)
	if err != nil && ctx.Err() == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.warn(err)
	}
	return list
}

// find returns the network that a device belongs to; nil when none is known.
func (n *vxlanNetworks) find(ctx context.Context, name string, vni uint32) *vxlan.Network {
	_, id, named := vxlan.ParseName(name)
	among := func(list []vxlan.Network) *vxlan.Network {
		for i := range list {
			f := &list[i]
			if named && strings.HasPrefix(f.ID, id) || !named && vni != 0 && slices.Contains(f.VNIs, vni) {
				return f
			}
		}
		return nil
	}
	if f := among(n.get(ctx, networksAge)); f != nil {
		return f
	}
	return among(n.get(ctx, time.Second)) // it may be newer than the last answer
}
