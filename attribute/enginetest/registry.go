//go:build integration || vm

package enginetest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Registry is a registry of images on the loopback interface, which engines may pull from
// without TLS. It has as much of the distribution specification as a pull needs.
type Registry struct {
	Address string // host:port, the first part of its images' names

	mu        sync.Mutex
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by tag and by digest
}

const manifestType = "application/vnd.docker.distribution.manifest.v2+json"

// StartRegistry runs a registry until the test ends.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{blobs: map[string][]byte{}, manifests: map[string][]byte{}}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	r.Address = strings.TrimPrefix(s.URL, "http://")
	return r
}

// Push gives a tag to an image of busybox with some text in it, and returns its digest.
// The image that had the tag loses it.
func (r *Registry) Push(t testing.TB, tag, text string) (digest string) {
	t.Helper()
	layer := BusyboxTar(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": []string{"sleep", "100000"}, "Labels": map[string]string{"text": text}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	blob := func(kind string, b []byte) map[string]any {
		return map[string]any{"mediaType": "application/vnd.docker." + kind, "size": len(b), "digest": digestOf(b)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": blob("container.image.v1+json", config),
		"layers": []any{blob("image.rootfs.diff.tar.gzip", packed.Bytes())},
	})
	if err != nil {
		t.Fatal(err)
	}
	digest = digestOf(manifest)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[digestOf(config)], r.blobs[digestOf(packed.Bytes())] = config, packed.Bytes()
	r.manifests[tag], r.manifests[digest] = manifest, manifest
	return digest
}

// ServeHTTP answers a pull.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	switch {
	case req.URL.Path == "/v2/":
	case len(parts) == 3 && parts[1] == "manifests" && r.manifests[parts[2]] != nil:
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", digestOf(r.manifests[parts[2]]))
		_, _ = w.Write(r.manifests[parts[2]])
	case len(parts) == 3 && parts[1] == "blobs" && r.blobs[parts[2]] != nil:
		_, _ = w.Write(r.blobs[parts[2]])
	default:
		http.NotFound(w, req)
	}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
