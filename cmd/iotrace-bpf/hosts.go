package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
	"github.com/iotrace-bpf/iotrace-bpf/output/terminal"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

const (
	maxHosts = 256
	// maxHostLine and maxHostLines bound what is shown of a host's standard error.
	maxHostLine, maxHostLines = 300, 20
	// lastOfHosts is how long the end waits for the last intervals of hosts.
	lastOfHosts = 5 * time.Second
	// remoteTracer is the command on hosts, before its flags.
	remoteTracer = "sudo -n iotrace-bpf"
)

// hostsFlags are the flags of tracing other hosts.
func (o *options) hostsFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.hosts, "hosts", nil, "trace the hosts in `LIST` instead of this machine: ssh starts iotrace-bpf there, and it ends with this run")
	fs.StringVar(&o.hostsCommand, "hosts-command", remoteTracer, "start it there with this shell `COMMAND`; flags are added")
	fs.StringVar(&o.sshConfig, "ssh-config", "", "let ssh read this configuration `FILE` instead of the user's (ssh -F)")
}

// checkHosts looks for flags that make no sense for other hosts.
func (o *options) checkHosts() error {
	f := o.flags
	if err := f.needs(len(o.hosts) > 0, "--hosts", "hosts-command", "ssh-config"); err != nil {
		return err
	}
	if o.record == recordStdout {
		const alone = "--record - writes the recording alone to standard output: leave out %s"
		if o.output != "" {
			return usagef(alone, f.origin("output"))
		}
		if f.Changed("record-size") {
			return usagef(alone, f.origin("record-size"))
		}
	}
	if !f.Changed("hosts") {
		return nil
	}
	if len(o.hosts) == 0 || len(o.hosts) > maxHosts {
		return usagef("%s: from 1 to %d hosts", f.origin("hosts"), maxHosts)
	}
	for i, h := range o.hosts {
		switch {
		case h == "" || strings.HasPrefix(h, "-") || strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r == 0x7f }):
			return usagef("%s: %q is not the name of a host", f.origin("hosts"), h)
		case slices.Contains(o.hosts[:i], h):
			return usagef("%s: %s is there twice: its numbers would count twice", f.origin("hosts"), h)
		}
	}
	if strings.TrimSpace(o.hostsCommand) == "" {
		return usagef("%s is empty: it starts iotrace-bpf on the hosts", f.origin("hosts-command"))
	}
	const ships = "each host ships itself: give the flag to iotrace-bpf there"
	for _, c := range []struct {
		name string
		set  bool
		hint string
	}{
		{"record", o.record != "", "a recording is of one host: use --record there, and iotrace-bpf replay for all"},
		{"events", o.events, "see the requests of a host with iotrace-bpf --events there"},
		{"elasticsearch", len(o.elasticsearch) > 0, ships},
		{"otlp", o.otlp != "", ships},
		{"prometheus", o.prometheus != "", ships},
	} {
		if c.set {
			return &usageError{fmt.Errorf("%s does not go with --hosts", f.origin(c.name)), c.hint}
		}
	}
	return nil
}

// collecting are the flags that decide what a host counts and how it names it.
const collecting = "source level latency vxlan exclude-self max-groups docker-host cri containerd only-listed-sockets project-label no-dns"

// remoteCommand is what the shell of a host runs. The user's command is a shell's already;
// each flag behind it is one word, whatever is in it.
func (o *options) remoteCommand() string {
	args := []string{"--record", recordStdout, "--end-with-stdin", "--interval", o.interval.String()}
	if o.wantsFiles() {
		args = append(args, "--by", "file")
	}
	for _, name := range strings.Fields(collecting) {
		f := o.flags.Lookup(name)
		if !f.Changed {
			continue
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			args = append(args, "--"+name+"="+v)
		}
	}
	words := []string{o.hostsCommand}
	for _, a := range args {
		words = append(words, shellWord(a))
	}
	return strings.Join(words, " ")
}

// shellWord quotes a word for a POSIX shell where that is needed.
func shellWord(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(plainWord, r) }) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// arrival is an interval of a host, or its end.
type arrival struct {
	host   int
	of     output.Host
	iv     *output.Interval // nil: the host has ended
	reason string           // why it ended
	failed bool
}

// remote is one ssh.
type remote struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr *hostLines
}

// startRemote starts ssh. Its standard input is a pipe that this process holds: the tracer
// ends when that is closed, also when this process is killed. A session of its own keeps
// ssh off the terminal, and Ctrl-C off ssh: the last interval comes through it.
func (o *options) startRemote(i int, arrivals chan<- arrival, gone <-chan struct{}, log *slog.Logger) (*remote, error) {
	name := o.hosts[i]
	args := []string{"-T", "-x", "-a", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes", "-o", "EscapeChar=none"}
	if o.sshConfig != "" {
		args = append(args, "-F", o.sshConfig)
	}
	r := &remote{name: name, stderr: &hostLines{name: name, log: log}}
	r.cmd = exec.Command("ssh", append(args, "--", name, o.remoteCommand())...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r.cmd.Stderr = r.stderr
	r.cmd.WaitDelay = time.Second // a shared connection of ssh keeps standard error open
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r.stdin = stdin
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, &usageError{err, "--hosts needs the program ssh: install openssh-client"}
		}
		return nil, err
	}
	go func() {
		err := r.read(i, stdout, arrivals, gone)
		if err != nil {
			_ = r.cmd.Process.Kill() // nothing that follows could be read
		}
		wait := r.cmd.Wait()
		a := arrival{host: i, reason: r.why(err, wait), failed: err != nil || wait != nil}
		select {
		case arrivals <- a:
		case <-gone:
		}
	}()
	return r, nil
}

// read hands on the intervals of a host until its end.
func (r *remote) read(i int, stdout io.Reader, arrivals chan<- arrival, gone <-chan struct{}) error {
	in, err := recording.NewStreamReader(stdout)
	if errors.Is(err, recording.ErrTruncated) {
		return nil // it ended before it began: ssh says why
	}
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		iv, err := in.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, recording.ErrTruncated) {
			return nil // a connection that breaks may cut an interval
		}
		if err != nil {
			return err
		}
		select {
		case arrivals <- arrival{host: i, of: in.Header().Host, iv: iv}:
		case <-gone:
			return nil
		}
	}
}

// why says in a few words how a host ended.
func (r *remote) why(read, wait error) string {
	if read != nil {
		return "what it sent is no recording that can be read: " + text.Safe(read.Error())
	}
	state := "ended"
	if wait != nil {
		state = "ssh: " + wait.Error()
	}
	if last := r.stderr.last(); last != "" {
		state += ": " + last
	}
	return state
}

// hostLines shows the standard error of a host line by line. What a host says is cleaned
// and limited.
type hostLines struct {
	name string
	log  *slog.Logger

	mu    sync.Mutex
	part  []byte
	final string // the last line
	n     int
}

func (l *hostLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range p {
		if b == '\n' {
			l.line()
		} else if len(l.part) < maxHostLine {
			l.part = append(l.part, b)
		}
	}
	return len(p), nil
}

func (l *hostLines) line() {
	line := strings.TrimSpace(text.Safe(strings.ToValidUTF8(strings.TrimRight(string(l.part), "\r"), "?")))
	l.part = l.part[:0]
	if line == "" {
		return
	}
	l.final = line
	switch l.n++; {
	case l.n <= maxHostLines:
		l.log.Warn(line, "host", l.name)
	case l.n == maxHostLines+1:
		l.log.Warn("the host says more, which is not shown", "host", l.name)
	}
}

// last returns the last line.
func (l *hostLines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.part) > 0 {
		l.line()
	}
	return l.final
}

// runHosts shows what other hosts count. It loads nothing into this kernel and needs no
// privilege.
func (o *options) runHosts(ctx context.Context, stdout io.Writer, file *os.File, stderr io.Writer, messages <-chan string) error {
	log := o.logger(stderr)
	if !o.screen {
		return o.gatherInto(ctx, o.printer(stdout), log)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	show := &screenSink{intervals: make(chan *output.Interval), gone: ctx.Done()}
	ended := make(chan error, 1)
	go func() { ended <- o.gatherInto(ctx, show, log) }()
	so := o.screenOptions(output.Host{}, live, file)
	so.Notices = messages
	so.Record = func(bool) (string, error) {
		return "", errors.New("a recording is of one host: use --record there")
	}
	err := terminal.RunScreen(ctx, show.intervals, so)
	cancel()
	return errors.Join(err, <-ended)
}

// gatherInto starts the hosts and writes to main and to a report until the end.
func (o *options) gatherInto(ctx context.Context, main sink, log *slog.Logger) error {
	out, err := o.openSinks(ctx, main, output.Host{}, live, log)
	if err != nil {
		return err
	}
	return errors.Join(o.gather(ctx, out, log), out.Close())
}

// gather joins the intervals of all hosts until the end: by count, by duration, by the
// user, or because no host is left.
func (o *options) gather(ctx context.Context, out *sinks, log *slog.Logger) error {
	arrivals, gone := make(chan arrival), make(chan struct{})
	var remotes []*remote
	defer func() {
		close(gone)
		for _, r := range remotes {
			r.stdin.Close()
			_ = r.cmd.Process.Kill() // has no effect on one that has ended
		}
	}()
	for i := range o.hosts {
		r, err := o.startRemote(i, arrivals, gone, log)
		if err != nil {
			return err
		}
		remotes = append(remotes, r)
	}
	g := newGathering(o.hosts, o.interval, time.Now(), func(host, what string) { log.Warn(what, "host", host) })
	shown, left := 0, len(remotes)
	show := func(iv *output.Interval) error {
		if iv == nil {
			return nil
		}
		shown++
		return out.write(output.Group(iv, o.group), iv)
	}
	var end, late <-chan time.Time
	if o.duration > 0 {
		end = time.After(o.duration)
	}
	stop := ctx.Done()
	ending := false
	finish := func() {
		ending, stop, end = true, nil, nil
		for _, r := range remotes {
			r.stdin.Close()
		}
		late = time.After(lastOfHosts)
	}
	var lastReason string
	for left > 0 {
		wait := time.NewTimer(g.next(time.Now()))
		var done *output.Interval
		select {
		case a := <-arrivals:
			if a.iv != nil {
				o.narrow(a.iv)
				done = g.arrive(a.host, a.of, a.iv, time.Now())
				break
			}
			left--
			lastReason = o.hosts[a.host] + ": " + a.reason
			if !ending {
				log.Warn("the host has ended: "+a.reason, "host", o.hosts[a.host])
			}
			done = g.leave(a.host, time.Now())
		case <-wait.C:
			done = g.look(time.Now())
		case <-stop:
			finish()
		case <-end:
			finish()
		case <-late:
			log.Warn("the end does not wait any longer for hosts that do not answer", "hosts", left)
			left = 0
		case <-out.main.failed:
			wait.Stop()
			return out.failure()
		}
		wait.Stop()
		if err := show(done); err != nil {
			return err
		}
		if !ending && o.count > 0 && shown >= o.count {
			return nil
		}
	}
	if err := show(g.flush(time.Now())); err != nil {
		return err
	}
	if !ending {
		return fmt.Errorf("no host is left: %s", cmp.Or(lastReason, "all have ended"))
	}
	return nil
}
