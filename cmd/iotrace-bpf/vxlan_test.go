package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// vxlanHost is a network namespace that the commands take for the host's: the
// real one is never touched.
type vxlanHost struct {
	t     *testing.T
	ns    netns.NsHandle
	links *netlink.Handle
	dir   string // of namespace files
}

func newVXLANHost(t *testing.T) *vxlanHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	h := &vxlanHost{t: t, dir: t.TempDir()}
	var err error
	if h.ns, err = newNetNS(); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	if h.links, err = netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.links.Close(); h.ns.Close() })
	return h
}

// newNetNS makes a namespace and leaves the thread where it was.
func newNetNS() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer before.Close()
	made, err := netns.New()
	return made, errors.Join(err, netns.Set(before))
}

func (h *vxlanHost) add(name string, vni, port int) {
	h.t.Helper()
	if err := h.tryAdd(name, vni, port); err != nil {
		h.t.Fatalf("making %q: %v", name, err)
	}
}

func (h *vxlanHost) tryAdd(name string, vni, port int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return h.links.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: port})
}

func (h *vxlanHost) up(name string) {
	h.t.Helper()
	link, err := h.links.LinkByName(name)
	if err == nil {
		err = h.links.LinkSetUp(link)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *vxlanHost) names(but ...string) string {
	h.t.Helper()
	list, err := h.links.LinkList()
	if err != nil {
		h.t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		if name := l.Attrs().Name; l.Type() == "vxlan" && !slices.Contains(but, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// run runs "vxlan" on this host; no engine answers.
func (h *vxlanHost) run(stdin string, args ...string) (code int, stdout, stderr string) {
	h.t.Helper()
	args = append(args, "--host-netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.ns)), "--netns-dir", h.dir,
		"--only-listed-sockets", "--docker-host", filepath.Join(h.dir, "no.sock"))
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	err := runVXLANWith(ctx, args, strings.NewReader(stdin), &out, &errs)
	return exitCode(err, &out, &errs), out.String(), errs.String()
}

func TestVXLANListOfHealthyHost(t *testing.T) {
	h := newVXLANHost(t)
	h.add("flannel.1", 1, 8472)
	h.up("flannel.1")
	code, out, errs := h.run("", "list")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	fields := strings.Fields(strings.Split(out, "\n")[1]) // the host's devices come first
	want := []string{"flannel.1", fields[1], "1", "8472", "host", "UP", fields[6], "-", "foreign"}
	if fmt.Sprint(fields) != fmt.Sprint(want) {
		t.Errorf("row %q, want %q", fields, want)
	}
}

func TestVXLANLeak(t *testing.T) {
	h := newVXLANHost(t)
	h.add("flannel.1", 1, 8472)
	h.add("vx-001001-m64nq", 4097, 4789)
	h.add("vx-001002-zzzzz", 4098, 4789)
	h.up("vx-001002-zzzzz")
	const grace = "300ms"

	code, out, errs := h.run("", "list", "--grace", grace)
	if code != exitLeaked {
		t.Fatalf("list: exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"vx-001001-m64nq", "leaked: left behind DOWN in the host's namespace", "iotrace-bpf vxlan clean deletes it",
		"blocking: UP in the host's namespace", "clean leaves it alone: it is UP",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("list does not say %q:\n%s", want, out)
		}
	}

	code, out, _ = h.run("", "clean", "--grace", grace, "--dry-run")
	if code != exitLeaked || !strings.Contains(out, "1 device would be deleted") {
		t.Errorf("dry run: exit code %d:\n%s", code, out)
	}
	for _, answer := range []string{"", "\n", "n\n", "nope\n", "yess\n"} {
		code, out, _ = h.run(answer, "clean", "--grace", grace)
		if code != exitLeaked || !strings.Contains(out, "delete 1 device? [y/N]") {
			t.Errorf("answer %q: exit code %d:\n%s", answer, code, out)
		}
	}
	if got := h.names(); got != "flannel.1 vx-001001-m64nq vx-001002-zzzzz" {
		t.Fatalf("without a yes these are left: %s", got)
	}
	code, out, _ = h.run("y\n", "clean", "--grace", grace)
	if code != exitLeaked || !strings.Contains(out, "vx-001001-m64nq (ifindex") || !strings.Contains(out, "still leaking or blocking: 1 device") {
		t.Errorf("clean: exit code %d:\n%s", code, out)
	}
	if got := h.names(); got != "flannel.1 vx-001002-zzzzz" {
		t.Errorf("after clean these are left: %s", got)
	}
}

func TestVXLANCleanForScripts(t *testing.T) {
	h := newVXLANHost(t)
	h.add("vx-001001-m64nq", 4097, 4789)
	h.add("vx-001002-m64nq", 4098, 4789)
	code, out, errs := h.run("", "clean", "--yes", "--grace", "200ms", "--output", "ndjson")
	if code != exitOK || h.names() != "" {
		t.Errorf("exit code %d, left %q: %s", code, h.names(), errs)
	}
	events := decodeEvents(t, out)
	if len(events) != 2 {
		t.Fatalf("%d documents: %s", len(events), out)
	}
	for i, e := range events {
		if e.Event.Action != "cleaned" || e.Iotrace.VXLAN.Device != fmt.Sprintf("vx-00100%d-m64nq", i+1) || e.Iotrace.VXLAN.VNI != 4097+i {
			t.Errorf("document %+v", e)
		}
	}
	code, out, _ = h.run("", "clean", "--yes", "--grace", "200ms")
	if code != exitOK || !strings.Contains(out, "nothing to delete") {
		t.Errorf("a clean host: exit code %d:\n%s", code, out)
	}
}

// document is what these tests read of one.
type document struct {
	Event struct{ Dataset, Action, Reason string }
	Data  struct{ Dataset string } `json:"data_stream"`

	Iotrace struct {
		VXLAN struct {
			Device, NetNS string
			Ifindex, VNI  int
			Up            bool
			Age           int64
			Network       struct{ Name, ID string }
			Culprit       string
		}
	}
	Process struct {
		PID  int
		Name string
	}
}

func decodeEvents(t *testing.T, text string) []document {
	t.Helper()
	var list []document
	for line := range strings.Lines(text) {
		var d document
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if d.Event.Dataset != output.DatasetVXLAN || d.Data.Dataset != output.DatasetVXLAN {
			t.Errorf("a document of %q, %q", d.Event.Dataset, d.Data.Dataset)
		}
		list = append(list, d)
	}
	return list
}

func TestVXLANListNDJSON(t *testing.T) {
	h := newVXLANHost(t)
	h.add("vx-001001-m64nq", 4097, 4789)
	h.add("flannel.1", 1, 8472)
	code, out, errs := h.run("", "--output", "ndjson", "--grace", "200ms")
	if code != exitLeaked {
		t.Errorf("exit code %d: %s", code, errs)
	}
	events := decodeEvents(t, out)
	if len(events) != 2 {
		t.Fatalf("%d documents: %s", len(events), out)
	}
	leak := events[0]
	if v := leak.Iotrace.VXLAN; leak.Event.Action != "leaked" || v.Device != "vx-001001-m64nq" || v.VNI != 4097 || v.Up ||
		v.Network.ID != "m64nq" || v.Age < int64(200*time.Millisecond) || leak.Event.Reason == "" {
		t.Errorf("document %+v", leak)
	}
	if v := events[1].Iotrace.VXLAN; events[1].Event.Action != "foreign" || v.Device != "flannel.1" {
		t.Errorf("document %+v", events[1])
	}
}

func TestVXLANWatch(t *testing.T) {
	h := newVXLANHost(t)
	ready := filepath.Join(h.dir, "ready")
	args := []string{
		"watch", "--output", "ndjson", "--netlink", "--grace", "300ms", "--ready-file", ready, "--only-listed-sockets", "--docker-host", filepath.Join(h.dir, "no.sock"),
		"--host-netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.ns)), "--netns-dir", h.dir,
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lines := make(lineWriter, 64)
	var errs bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- runVXLAN(ctx, args, lines, &errs) }()
	for {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("watch ended: %v %s", err, errs.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	h.add("vx-001001-m64nq", 4097, 4789)
	for _, action := range []string{"created", "leaked"} {
		select {
		case line := <-lines:
			e := decodeEvents(t, line)[0]
			if e.Event.Action != action || e.Iotrace.VXLAN.Device != "vx-001001-m64nq" || e.Iotrace.VXLAN.Network.ID != "m64nq" {
				t.Errorf("document %+v, want action %q", e, action)
			}
		case <-ctx.Done():
			t.Fatalf("no event %q: %s", action, errs.String())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("watch: %v", err)
	}
}

// lineWriter hands over what is written.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}

// TestVXLANHostileNames: a device may be called anything but blanks and slashes.
func TestVXLANHostileNames(t *testing.T) {
	h := newVXLANHost(t)
	h.add("\x1b[31m\u202e", 5, 4789)
	_, out, errs := h.run("", "list")
	if strings.ContainsAny(out+errs, "\x1b\u202e") || !strings.Contains(out, `\x1b[31m\u202e`) {
		t.Errorf("list printed %q, %q", out, errs)
	}
	_, out, errs = h.run("", "list", "--output", "ndjson")
	if strings.ContainsAny(out+errs, "\x1b") {
		t.Errorf("list printed %q, %q", out, errs)
	}
}

// TestVXLANReaderGone: a reader that goes away ends the watch.
func TestVXLANReaderGone(t *testing.T) {
	h := newVXLANHost(t)
	h.add("flannel.1", 1, 8472)
	args := []string{
		"list", "--output", "ndjson", "--only-listed-sockets", "--docker-host", filepath.Join(h.dir, "no.sock"),
		"--host-netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.ns)), "--netns-dir", h.dir,
	}
	var errs bytes.Buffer
	if err := runVXLAN(t.Context(), args, goneWriter{}, &errs); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("list to nobody: %v", err)
	}
}

type goneWriter struct{}

func (goneWriter) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestVXLANUsage(t *testing.T) {
	for _, args := range [][]string{
		{"frobnicate"}, {"list", "extra"}, {"list", "--yes"}, {"watch", "--dry-run"}, {"clean", "--duration", "1s"}, {"list", "--netlink"},
		{"--grace", "0s"}, {"--grace", "-1s"}, {"--output", "xml"}, {"clean", "--yes", "--dry-run"}, {"--nonsense"},
	} {
		var out, errs bytes.Buffer
		if code := exitCode(runVXLAN(t.Context(), args, &out, &errs), &out, &errs); code != exitUsage {
			t.Errorf("%q: exit code %d: %s", args, code, errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := exitCode(runVXLAN(t.Context(), []string{"--help"}, &out, &errs), &out, &errs); code != exitOK || !strings.Contains(out.String(), "vxlan clean") {
		t.Errorf("help: exit code %d: %s", code, out.String())
	}
	if strings.Contains(out.String(), "without-hook") {
		t.Error("help shows hidden flags")
	}
}

// TestVXLANNobodyToAsk: without a terminal, clean must not take silence for a yes.
func TestVXLANNobodyToAsk(t *testing.T) {
	h := newVXLANHost(t)
	h.add("vx-001001-m64nq", 4097, 4789)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("y\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	args := []string{
		"clean", "--grace", "200ms", "--only-listed-sockets", "--docker-host", filepath.Join(h.dir, "no.sock"),
		"--host-netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.ns)), "--netns-dir", h.dir,
	}
	var out, errs bytes.Buffer
	if code := exitCode(runVXLANWith(t.Context(), args, r, &out, &errs), &out, &errs); code != exitUsage || h.names() != "vx-001001-m64nq" {
		t.Errorf("exit code %d, left %q: %s", code, h.names(), errs.String())
	}
}
