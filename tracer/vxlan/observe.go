package vxlan

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors of Observer.Delete: nothing was deleted, and nothing went wrong.
var (
	ErrGone    = errors.New("it is gone already")
	ErrChanged = errors.New("another device is in its place")
)

// KeptError says why a device was not deleted.
type KeptError struct{ Reason string }

func (e *KeptError) Error() string { return "kept: " + e.Reason }

// Observer knows for how long devices have been DOWN because it watches them: no
// snapshot tells it.
type Observer struct {
	watcher *Watcher
	scanner *Scanner
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // of the watch, once done is closed
}

// Observe looks at every device. If one looks leaked, it watches for the grace period
// before it returns. It watches by rtnetlink, whatever opts.Backend says, until it is
// closed.
func Observe(ctx context.Context, opts WatchOptions) (*Observer, error) {
	opts.Backend = Netlink
	w, err := NewWatcher(opts)
	if err != nil {
		return nil, err
	}
	scanner, err := NewScanner(opts.Scan)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o := &Observer{watcher: w, scanner: scanner, cancel: cancel, done: make(chan struct{})}
	pending := !w.model.NextExpiry(w.grace).IsZero()
	go func() {
		defer close(o.done)
		o.err = w.Run(running, func(Event) {})
	}()
	if !pending {
		return o, nil
	}
	// Long enough for every candidate so far. One that changes meanwhile stays younger
	// than the grace period.
	wait := time.NewTimer(w.grace)
	defer wait.Stop()
	select {
	case <-wait.C:
		return o, nil
	case <-o.done:
		err = o.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, o.Close())
}

// Close ends the watch.
func (o *Observer) Close() error {
	o.cancel()
	<-o.done
	return errors.Join(o.watcher.Close(), o.scanner.Close())
}

// Host returns the inode number of the host's namespace.
func (o *Observer) Host() uint64 { return o.scanner.Host() }

// look returns the present state, with the history that was watched.
func (o *Observer) look() (*Model, *Snapshot, error) {
	select {
	case <-o.done:
		return nil, nil, fmt.Errorf("watching devices: %w", errors.Join(o.err, errors.New("the watch has ended")))
	default:
	}
	snap, err := o.scanner.Scan()
	if err != nil {
		return nil, nil, err
	}
	m := NewModel(o.scanner.Host())
	m.Update(snap)
	o.watcher.mu.Lock()
	m.inherit(o.watcher.model)
	o.watcher.mu.Unlock()
	return m, snap, nil
}

// Findings returns the verdicts on all devices now, and the number of namespaces that
// could not be read.
func (o *Observer) Findings(networks []Network) (findings []Finding, unreadable int, err error) {
	m, snap, err := o.look()
	if err != nil {
		return nil, 0, err
	}
	findings = Judge(m, networks, time.Now(), o.watcher.grace)
	mono := time.Duration(monotonic())
	for i := range findings {
		f := &findings[i]
		if f.NetNS != m.host || !f.Seen {
			continue
		}
		// udev knows the age, but not how long the device has been DOWN.
		if age, ok := o.scanner.udevAge(f.Ifindex, mono); ok && age > f.Age {
			f.Age, f.AtLeast = age, false
		}
	}
	return findings, snap.Unreadable, nil
}

// Delete deletes a device that was found to be leaked, if it still is: it scans
// everything again, and checks the device itself by its ifindex immediately before.
// Networks are the present ones of the engine.
//
// The error is ErrGone, ErrChanged or a *KeptError when nothing was deleted and nothing
// went wrong.
func (o *Observer) Delete(f Finding, networks []Network) error {
	m, _, err := o.look()
	if err != nil {
		return err
	}
	t := m.At(Place{f.NetNS, f.Ifindex})
	switch {
	case f.NetNS != m.host:
		return &KeptError{"it is outside the host's namespace"}
	case t == nil:
		return ErrGone
	case t.Name != f.Name || t.VNI != f.VNI || t.Port != f.Port:
		return ErrChanged
	}
	now := judge(m, t, networks, time.Now(), o.watcher.grace)
	switch {
	case now.Keep != "":
		return &KeptError{now.Keep}
	case now.Verdict != IsLeaked:
		return &KeptError{now.Reason}
	}
	link, err := o.scanner.links.LinkByIndex(f.Ifindex)
	if err != nil {
		return fmt.Errorf("looking at %q again: %w", f.Name, err)
	}
	last := device(link, m.host)
	switch {
	case last.Up:
		return &KeptError{"it is UP"}
	case last != t.Device:
		return ErrChanged
	}
	if err := o.scanner.links.LinkDel(link); err != nil {
		return fmt.Errorf("deleting %q: %w", f.Name, err)
	}
	return nil
}
