package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Tracer is a running iotrace-bpf.
type Tracer struct {
	g       *Guest
	cmd     *exec.Cmd
	dir     string
	stopped bool
	exited  chan error
}

// tracerFile is the shipped binary. On a machine used in place of a guest it is
// found in PATH.
func tracerFile() string {
	if exists(tracerPath) {
		return tracerPath
	}
	if p := os.Getenv("IOTRACE_TEST_BPF"); p != "" {
		return p
	}
	return "iotrace-bpf"
}

// Tool is the shipped binary, to be run with a command of its own.
func (g *Guest) Tool() string { return tracerFile() }

// Trace starts the tracer with NDJSON output, an interval of one second and these
// arguments, and waits until it says that every program is attached. If the
// scenario fails, Trace shows the tracer's standard error.
func (g *Guest) Trace(args ...string) *Tracer {
	g.Helper()
	tr := &Tracer{g: g, dir: g.TempDir()}
	ready := filepath.Join(tr.dir, "ready")
	tr.cmd = exec.Command(tracerFile(), append([]string{"--output", "ndjson", "--interval", "1s", "--verbose", "--ready-file", ready}, args...)...)
	stdout, err := os.Create(tr.file("stdout"))
	if err != nil {
		g.Fatal(err)
	}
	defer stdout.Close()
	stderr, err := os.Create(tr.file("stderr"))
	if err != nil {
		g.Fatal(err)
	}
	defer stderr.Close()
	tr.cmd.Stdout, tr.cmd.Stderr = stdout, stderr
	begin := time.Now()
	if err := tr.cmd.Start(); err != nil {
		g.Fatalf("tracer: %v", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- tr.cmd.Wait() }()
	g.Cleanup(func() {
		if !tr.stopped {
			_ = tr.cmd.Process.Kill()
			<-exited
		}
		if g.Failed() {
			b, _ := os.ReadFile(tr.file("stderr"))
			g.Logf("tracer's standard error:\n%s", b)
		}
	})
	var died error
	err = poll(patience, func() bool {
		select {
		case died = <-exited:
			exited <- died
			return true
		default:
			return exists(ready)
		}
	})
	if err == nil && !exists(ready) {
		err = fmt.Errorf("it ended before it was ready: %v", died)
	}
	if err != nil {
		g.Fatalf("tracer %s: %v", strings.Join(args, " "), err)
	}
	g.Logf("tracer was ready after %s", time.Since(begin).Round(100*time.Millisecond))
	tr.exited = exited
	return tr
}

// Tracer runs iotrace-bpf with these arguments to its end and returns what it
// printed on standard output; a failure ends the scenario.
func (g *Guest) Tracer(args ...string) string {
	g.Helper()
	stdout, _ := g.TracerOutputs(args...)
	return stdout
}

// TracerOutputs is Tracer that also returns what was printed on standard error.
func (g *Guest) TracerOutputs(args ...string) (stdout, stderr string) {
	g.Helper()
	return g.exec(tracerFile(), args...)
}

func (tr *Tracer) file(name string) string { return filepath.Join(tr.dir, name) }

// PID is the tracer's process.
func (tr *Tracer) PID() int { return tr.cmd.Process.Pid }

// Stop asks the tracer to end, as Ctrl-C does, and returns its output. Any exit
// status but 0 fails the scenario.
func (tr *Tracer) Stop() *Output {
	tr.g.Helper()
	if tr.stopped {
		tr.g.Fatal("tracer was stopped already")
	}
	if err := tr.cmd.Process.Signal(syscall.SIGINT); err != nil {
		tr.g.Fatalf("tracer is gone: %v", err)
	}
	var ended error
	tr.g.Eventually("tracer's end", func() bool {
		select {
		case ended = <-tr.exited:
			tr.stopped = true
			return true
		default:
			return false
		}
	})
	if ended != nil {
		tr.g.Errorf("tracer: %v", ended)
	}
	out, err := os.ReadFile(tr.file("stdout"))
	if err != nil {
		tr.g.Fatal(err)
	}
	r, err := ParseOutput(out)
	if err != nil {
		tr.g.Fatalf("tracer's output: %v", err)
	}
	tr.g.validate(out)
	r.g = tr.g
	return r
}

// validate fails the scenario with the first line that Validate refuses.
func (g *Guest) validate(out []byte) {
	g.Helper()
	if g.Validate == nil {
		return
	}
	for line := range bytes.Lines(out) {
		if err := g.Validate(line); err != nil {
			g.Errorf("tracer's output: %v\n%s", err, line)
			return
		}
	}
}

// Now returns the tracer's output so far.
func (tr *Tracer) Now() *Output {
	tr.g.Helper()
	out, err := os.ReadFile(tr.file("stdout"))
	if err != nil {
		tr.g.Fatal(err)
	}
	if i := bytes.LastIndexByte(out, '\n'); i >= 0 {
		out = out[:i+1]
	} else {
		out = nil
	}
	r, err := ParseOutput(out)
	if err != nil {
		tr.g.Fatalf("tracer's output: %v", err)
	}
	r.g = tr.g
	return r
}

// Stdout is what it printed on standard output so far.
func (tr *Tracer) Stdout() string { return tr.g.ReadFile(tr.file("stdout")) }

// Stderr is what it said on standard error so far.
func (tr *Tracer) Stderr() string { return tr.g.ReadFile(tr.file("stderr")) }

// Doc is one document of the output, with dotted keys: "iotrace.read.bytes".
type Doc map[string]any

// String returns a field's text, "" if it is not there.
func (d Doc) String(key string) string { s, _ := d[key].(string); return s }

// Int returns a field's number, 0 if it is not there.
func (d Doc) Int(key string) int64 {
	n, ok := d[key].(json.Number)
	if !ok {
		return 0
	}
	v, _ := n.Int64()
	return v
}

// Output is all that one run of the tracer printed.
type Output struct {
	g    *Guest
	Docs []Doc

	shown bool
}

// ParseOutput reads NDJSON. Every line must be one object.
func ParseOutput(out []byte) (*Output, error) {
	r := &Output{}
	for i, line := range bytes.Split(out, []byte("\n")) {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.UseNumber()
		var v map[string]any
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("line %d is no JSON object: %w: %q", i+1, err, line)
		}
		if dec.More() {
			return nil, fmt.Errorf("line %d is more than one JSON object: %q", i+1, line)
		}
		d := Doc{}
		flatten(d, "", v)
		r.Docs = append(r.Docs, d)
	}
	return r, nil
}

func flatten(d Doc, prefix string, v map[string]any) {
	for k, x := range v {
		if m, ok := x.(map[string]any); ok {
			flatten(d, prefix+k+".", m)
			continue
		}
		d[prefix+k] = x
	}
}

// Where selects documents of iotrace.io by pairs of field and value. "*" matches
// any value, and "" an absent field.
func (r *Output) Where(pairs ...string) []Doc {
	var found []Doc
next:
	for _, d := range r.Docs {
		if d.String("event.dataset") != "iotrace.io" {
			continue
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			v, ok := d[pairs[i]]
			switch pairs[i+1] {
			case "*":
				if !ok {
					continue next
				}
			case "":
				if ok && fmt.Sprint(v) != "" {
					continue next
				}
			default:
				if !ok || fmt.Sprint(v) != pairs[i+1] {
					continue next
				}
			}
		}
		found = append(found, d)
	}
	return found
}

// Sum adds a field up over the documents that Where selects.
func (r *Output) Sum(field string, pairs ...string) int64 {
	var n int64
	for _, d := range r.Where(pairs...) {
		n += d.Int(field)
	}
	return n
}

// Written is the number of bytes that a cgroup wrote to a device or mount
// (major:minor), by one source.
func (r *Output) Written(source, device string, c *Cgroup) int64 {
	return r.Sum("iotrace.write.bytes", "iotrace.source", source, "iotrace.device.id", device, "iotrace.cgroup.path", c.Path())
}

// Read is the number of bytes that a cgroup read from a device or mount (major:minor),
// by one source.
func (r *Output) Read(source, device string, c *Cgroup) int64 {
	return r.Sum("iotrace.read.bytes", "iotrace.source", source, "iotrace.device.id", device, "iotrace.cgroup.path", c.Path())
}

// Table renders the rows of a source for the message of a failed comparison.
func (r *Output) Table(source string) string {
	type key struct{ owner, device string }
	type sum struct {
		rb, ro, wb, wo int64
		basis          map[string]int64
	}
	var order []key
	rows := map[key]*sum{}
	for _, d := range r.Where("iotrace.source", source) {
		owner := d.String("iotrace.cgroup.path")
		if owner == "" {
			owner = "(" + d.String("iotrace.owner") + ")"
		}
		k := key{owner, d.String("iotrace.device.id") + " " + d.String("iotrace.device.name")}
		if rows[k] == nil {
			rows[k] = &sum{basis: map[string]int64{}}
			order = append(order, k)
		}
		rows[k].rb += d.Int("iotrace.read.bytes")
		rows[k].ro += d.Int("iotrace.read.ops")
		rows[k].wb += d.Int("iotrace.write.bytes")
		rows[k].wo += d.Int("iotrace.write.ops")
		for field := range d {
			if basis, ok := strings.CutPrefix(field, "iotrace.basis."); ok {
				rows[k].basis[basis] += d.Int(field)
			}
		}
	}
	var b strings.Builder
	for _, k := range order {
		s := rows[k]
		fmt.Fprintf(&b, "%-40s %-16s read %d in %d, write %d in %d, by %v\n", k.owner, k.device, s.rb, s.ro, s.wb, s.wo, s.basis)
	}
	return b.String()
}

// Lost adds up the loss counters of the status documents: I/O that the BPF programs
// did not count or could not name.
func (r *Output) Lost() int64 {
	var n int64
	for _, v := range r.lost() {
		n += v
	}
	return n
}

// LostOf is one of those counters.
func (r *Output) LostOf(counter string) int64 { return r.lost()[counter] }

// LostWhat names those counters, for a message.
func (r *Output) LostWhat() string { return fmt.Sprint(r.lost()) }

func (r *Output) lost() map[string]int64 {
	lost := map[string]int64{}
	for _, d := range r.Docs {
		if d.String("event.dataset") != "iotrace.status" {
			continue
		}
		for k := range d {
			if n := d.Int(k); strings.HasPrefix(k, "iotrace.lost.") && n != 0 {
				lost[strings.TrimPrefix(k, "iotrace.lost.")] += n
			}
		}
	}
	return lost
}

// Equal fails the scenario if got is not want, and shows all rows once.
func (r *Output) Equal(what string, got, want int64) {
	r.g.Helper()
	if got != want {
		r.g.Errorf("%s: %d, want %d (difference %d)", what, got, want, got-want)
		r.show()
	}
}

// Within fails the scenario if got differs from want by more than want/part. It is
// for amounts that the kernel itself rounds, such as read-ahead and metadata.
func (r *Output) Within(what string, got, want, part int64) {
	r.g.Helper()
	if d := got - want; d > want/part || d < -want/part {
		r.g.Errorf("%s: %d, want %d within 1/%d (difference %d)", what, got, want, part, d)
		r.show()
	}
}

func (r *Output) show() {
	r.g.Helper()
	if r.shown {
		return
	}
	r.shown = true
	for _, source := range []string{"block", "nfs", "fuse", "smb", "9p", "ceph", "nfsd"} {
		if t := r.Table(source); t != "" {
			r.g.Logf("%s rows:\n%s", source, t)
		}
	}
}
