package attribute

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// overlayAnswers is what the manager of a swarm says when it is not hostile, by the
// last part of the request's path.
var overlayAnswers = map[string]string{
	"info": `{"Swarm":{"NodeID":"n1","ControlAvailable":true,"Cluster":{"DataPathPort":4790}}}`,
	"networks": `[{"Id":"m64nqtdens","Name":"fvov","Driver":"overlay","Labels":{"com.docker.stack.namespace":"shop"},
		"Options":{"com.docker.network.driver.overlay.vxlanid_list":"4097,4098"},
		"IPAM":{"Config":[{"Subnet":"10.0.1.0/24"},{"Subnet":"10.0.2.0/24"}]}}]`,
	"services": `[{"Spec":{"Name":"web","TaskTemplate":{"Networks":[{"Target":"m64nqtdens"}]}},"Endpoint":{"VirtualIPs":[{"NetworkID":"m64nqtdens"}]}}]`,
	"tasks": `[{"ID":"well"},{"ID":"t1","Status":{"Timestamp":"2026-01-02T03:04:05Z","Err":
		"network sandbox join failed: subnet sandbox join failed for \"10.0.1.0/24\": error creating vxlan interface: file exists"},
		"NetworksAttachments":[{"Network":{"ID":"m64nqtdens","IPAMOptions":{"Configs":[{"Subnet":"10.0.1.0/24"}]}}},{"Network":{"ID":"ingress"}}]}]`,
}

func overlayOf(t *testing.T, sockets ...string) (o *Overlay, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	return NewOverlay(Options{DockerSockets: sockets, OnlyListedSockets: true, Log: slog.New(slog.NewTextHandler(log, nil))}), log
}

func TestOverlay(t *testing.T) {
	o, log := overlayOf(t, hostile(t, "honest"))
	o.timeout = patientCall
	got, err := o.Networks(t.Context())
	want := []Network{{
		ID: "m64nqtdens", Name: "fvov", VNIs: []uint32{4097, 4098}, Port: 4790, Stack: "shop", Services: []string{"web"},
		Subnets: []string{"10.0.1.0/24", "10.0.2.0/24"}, Running: 1,
	}}
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("networks %+v, %v\nwant %+v", got, err, want)
	}
	refusals, err := o.Refusals(t.Context())
	if err != nil || len(refusals) != 1 {
		t.Fatalf("refusals %+v, %v", refusals, err)
	}
	if r := refusals[0]; r.Task != "t1" || r.Network != "m64nqtdens" || !strings.HasSuffix(r.Err, "file exists") || r.Time.Year() != 2026 {
		t.Errorf("refusal %+v", r)
	}
	if log.Len() > 0 {
		t.Errorf("logged %q", log)
	}
}

// What an engine does must neither fill the memory nor take longer than a question may.
func TestHostileOverlay(t *testing.T) {
	networks := func(o *Overlay) error { _, err := o.Networks(context.Background()); return err }
	refusals := func(o *Overlay) error { _, err := o.Refusals(context.Background()); return err }
	for _, tt := range []struct {
		mode  string
		ask   func(*Overlay) error
		state State
		cause error // nil for any
	}{
		{"hang", networks, StateHanging, nil},
		{"hang", refusals, StateHanging, nil},
		{"hang up", networks, StateBroken, nil},
		{"babble", networks, StateBroken, nil},
		{"babble", refusals, StateBroken, nil},
		{"endless header", networks, StateBroken, nil},
		{"endless header", refusals, StateBroken, nil},
		{"huge info", networks, StateBroken, nil}, // the client drops the cause
		{"huge info", refusals, StateBroken, nil},
		{"huge networks", networks, StateBroken, errTooLarge},
		{"huge list", networks, StateBroken, errTooLarge},
		{"huge services", networks, StateBroken, errTooLarge},
		{"huge tasks", refusals, StateBroken, errTooLarge},
		{"half of info", networks, StateBroken, nil},
		{"half of networks", networks, StateBroken, errGarbled},
		{"half of tasks", refusals, StateBroken, errGarbled},
		{"hanging networks", networks, StateHanging, nil},
		{"hanging list", networks, StateHanging, nil},
		{"hanging tasks", refusals, StateHanging, nil},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			o, _ := overlayOf(t, hostile(t, tt.mode))
			o.timeout = patientCall
			if tt.state == StateHanging {
				o.timeout = time.Second
			}
			before, began := heap(), time.Now()
			var most uint64
			done := make(chan error, 1)
			go func() { done <- tt.ask(o) }()
			var err error
			for waiting := true; waiting; {
				select {
				case err = <-done:
					waiting = false
				case <-time.After(5 * time.Millisecond):
					most = max(most, heap())
				}
			}
			if err == nil || classify(err) != tt.state || tt.cause != nil && !errors.Is(err, tt.cause) {
				t.Errorf("error %v (%s), want %s, %v", err, classify(err), tt.state, tt.cause)
			}
			if took := time.Since(began); took > o.timeout+patientCall {
				t.Errorf("it took %v", took)
			}
			if limit := uint64(8 * maxList); most > before+limit {
				t.Errorf("memory grew by %d bytes, more than %d", most-before, limit)
			}
		})
	}
}

// The listed engines are asked first, in their order, and one that is passed over is
// logged once.
func TestOverlayPicksEngine(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	honest := hostile(t, "honest")
	o, log := overlayOf(t, absent, honest)
	o.timeout = patientCall
	for range 3 {
		if list, err := o.Networks(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("%d networks, %v", len(list), err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), absent) {
		t.Errorf("%d warnings: %s", n, log)
	}

	o, _ = overlayOf(t)
	o.usual = []string{honest}
	o.timeout = patientCall
	if list, err := o.Networks(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("at the usual place: %d networks, %v", len(list), err)
	}
	o.usual = []string{absent}
	if list, err := o.Networks(t.Context()); !errors.Is(err, ErrNoEngine) || list != nil {
		t.Errorf("without an engine: %v, %v", list, err)
	}
	o, _ = overlayOf(t, absent)
	if _, err := o.Refusals(t.Context()); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoEngine) {
		t.Errorf("the listed engine is absent: %v", err)
	}

	t.Setenv("DOCKER_HOST", "unix://"+honest)
	o, _ = overlayOf(t)
	o.timeout = patientCall
	if list, err := o.Networks(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("with DOCKER_HOST: %d networks, %v", len(list), err)
	}
	// dockerd's own path is asked too: /var/run is not a link to /run everywhere.
	if got := NewOverlay(Options{}).usual; !slices.Equal(got, []string{"/run/docker.sock", "/var/run/docker.sock"}) {
		t.Errorf("the usual places are %q", got)
	}
}

// An engine is found at the second of the usual places, and one that refuses at two
// paths of the same socket is tried once.
func TestOverlayUsualPlaces(t *testing.T) {
	honest := hostile(t, "honest")
	absent := filepath.Join(t.TempDir(), "absent")
	o, log := overlayOf(t)
	o.usual, o.timeout = []string{absent, honest}, patientCall
	if list, err := o.Networks(t.Context()); err != nil || len(list) != 1 || log.Len() != 0 {
		t.Errorf("at the second place: %d networks, %v, log %q", len(list), err, log)
	}

	plain := filepath.Join(t.TempDir(), "plain") // no socket: refused, not absent
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := plain + ".link"
	if err := os.Symlink(plain, link); err != nil {
		t.Fatal(err)
	}
	o.usual = []string{plain, link}
	if _, err := o.Networks(t.Context()); err == nil || strings.Count(err.Error(), "docker engine at") != 1 {
		t.Errorf("one socket at two paths: %v", err)
	}
	// Passed over for one that works: a warning, and no panic, though none is listed.
	o.usual = []string{plain, honest}
	for range 2 {
		if list, err := o.Networks(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("behind one that refuses: %d networks, %v", len(list), err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings: %s", n, log)
	}
}

func TestVNIList(t *testing.T) {
	for text, want := range map[string]string{
		"4097": "[4097]", "4097,4098": "[4097 4098]", "": "[]", "0": "[]", "x": "[]", "4097,": "[4097]", "99999999": "[]", "-1": "[]",
	} {
		if got := fmt.Sprint(vniList(text)); got != want {
			t.Errorf("vniList(%q) = %s, want %s", text, got, want)
		}
	}
}
