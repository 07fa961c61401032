package attribute

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"

	"github.com/docker/docker/client"
)

// Limits of what is read from an engine. A decoder makes up to a hundred times as many
// bytes of a crafted answer, out of empty objects: so single answers are small, and lists
// are decoded one element after the other, into types with few fields.
const (
	maxAnswer  = 256 << 10 // bytes of any answer but a list
	maxEvent   = 256 << 10 // bytes of one event
	maxList    = 16 << 20  // bytes of a list: some 5,000 containers; with more, they are asked about one by one
	maxElement = 256 << 10 // bytes of one element of a list
)

type boundedTransport struct{ *http.Transport }

func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body := &boundedBody{ReadCloser: resp.Body, limit: maxAnswer}
	switch {
	case r.Context().Value(listKey{}) != nil:
		body.limit = maxList
	case path.Base(r.URL.Path) == "events":
		body.limit, body.lines = maxEvent, true
	}
	body.left = body.limit
	resp.Body = body
	return resp, nil
}

// boundedBody returns an error after too many bytes: in all, or since the last end of line
// for an endless stream.
type boundedBody struct {
	io.ReadCloser
	limit, left int
	lines       bool
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if i := bytes.LastIndexByte(p[:n], '\n'); b.lines && i >= 0 {
		b.left = b.limit - (n - i - 1)
	} else {
		b.left -= n
	}
	if b.left < 0 {
		return 0, fmt.Errorf("more than %d bytes: %w", b.limit, errTooLarge)
	}
	return n, err
}

// listKey marks the context of a request whose answer is decoded by elements.
type listKey struct{}

// elements bounds each element of a list.
type elements struct {
	io.Reader
	left int // bytes that may still be read for the current one
}

func (e *elements) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if e.left -= n; e.left < 0 {
		return 0, fmt.Errorf("an element of more than %d bytes: %w", maxElement, errTooLarge)
	}
	return n, err
}

// each asks for a list and calls take with its elements, of which it holds one at a time.
// The path begins with the version of the API, which versioned adds.
func each[T any](ctx context.Context, d *docker, path string, query url.Values, take func(*T)) error {
	u := url.URL{Scheme: "http", Host: "engine", Path: path, RawQuery: query.Encode()}
	if d.socket == "" {
		host, err := client.ParseHostURL(d.client.DaemonHost())
		if err != nil {
			return err
		}
		u.Host, u.Path = host.Host, host.Path+path
	}
	req, err := http.NewRequestWithContext(context.WithValue(ctx, listKey{}, true), http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := d.client.HTTPClient().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the engine answered %q", clip(resp.Status, maxText))
	}
	return garbled(decodeList(resp.Body, take))
}

// decodeList decodes a JSON array, or null for an empty one.
func decodeList[T any](r io.Reader, take func(*T)) error {
	from := &elements{Reader: r, left: maxElement}
	dec := json.NewDecoder(from)
	switch open, err := dec.Token(); {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil:
		return err
	case open == nil:
		return nil
	case open != json.Delim('['):
		return fmt.Errorf("%w: no list", errGarbled)
	}
	for n := 0; dec.More(); n++ {
		if n == maxContainers {
			return fmt.Errorf("more than %d elements: %w", maxContainers, errTooLarge)
		}
		from.left = maxElement
		var v T
		if err := dec.Decode(&v); err != nil {
			return err
		}
		take(&v)
	}
	from.left = maxElement
	_, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// versioned returns a path of the API in the version that the client and the engine agreed
// on at its first call.
func (d *docker) versioned(path string) string { return "/v" + d.client.ClientVersion() + path }

// What is read of the elements of lists; the engine sends many times more.
type (
	listedContainer struct {
		ID              string `json:"Id"`
		Names           []string
		Image           string
		State           string
		Labels          map[string]string
		Mounts          []listedMount
		NetworkSettings struct {
			Networks map[string]struct{ NetworkID string }
		}
	}
	listedMount  struct{ Name, Driver, Source, Destination string }
	listedPlugin struct {
		ID              string `json:"Id"`
		Name            string
		PluginReference string
	}
	listedPod struct {
		ID      string `json:"Id"`
		PodName string
		IsInfra bool
	}
	listedNetwork struct {
		ID      string `json:"Id"`
		Name    string
		Labels  map[string]string
		Options map[string]string
		IPAM    struct{ Config []listedSubnet }
	}
	listedSubnet  struct{ Subnet string }
	listedService struct {
		Spec struct {
			Name         string
			TaskTemplate struct{ Networks []struct{ Target string } }
		}
		Endpoint struct{ VirtualIPs []struct{ NetworkID string } }
	}
	listedTask struct {
		ID     string
		Status struct {
			Timestamp string
			Err       string
		}
		NetworksAttachments []listedAttachment
	}
	listedAttachment struct {
		Network struct {
			ID          string
			IPAMOptions struct{ Configs []listedSubnet }
		}
	}
)
