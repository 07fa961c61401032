//go:build integration

package attribute

import (
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// An image keeps the name under which a container was started, although a build or a pull
// gives that name to another image in the middle of a run.
func TestDockerImageNames(t *testing.T) {
	e := enginetest.Start(t)
	reg := enginetest.StartRegistry(t)
	repo := reg.Address + "/app"
	reg.Push(t, "1", "first")
	digest := reg.Push(t, "2", "by its digest")
	e.Import(t, "built:1")
	e.Docker(t, "pull", repo+":1")
	e.Docker(t, "pull", repo+"@"+digest)
	sleep := []string{"sleep", "100000"}
	run := func(image string) string { return e.Run(t, append([]string{image}, sleep...)...) }

	built, pulled, digested := run("built:1"), run(repo+":1"), run(repo+"@"+digest)
	start := func() *Resolver {
		r := startResolver(t, Options{DockerSockets: []string{e.Socket}, OnlyListedSockets: true})
		waitAnswered(t, r)
		return r
	}
	type image struct{ name, tag, digest string }
	check := func(r *Resolver, when string) {
		t.Helper()
		for id, want := range map[string]image{built: {"built", "1", ""}, pulled: {repo, "1", ""}, digested: {repo, "", digest}} {
			var got image
			enginetest.Poll(t, patience, when+": "+want.name+want.tag, func() bool {
				o := ownerOf(t, e, r, id)
				got = image{o.Image, o.ImageTag, o.ImageDigest}
				return got == want
			})
		}
	}
	before := start()
	check(before, "at first")

	// Now the names go to others.
	e.Import(t, "built:1")
	reg.Push(t, "1", "second")
	e.Docker(t, "pull", repo+":1")
	again, pulledAgain := run("built:1"), run(repo+":1")
	for container, want := range map[string]image{again: {"built", "1", ""}, pulledAgain: {repo, "1", ""}} {
		enginetest.Poll(t, patience, "started after the names went", func() bool {
			o := ownerOf(t, e, before, container)
			return image{o.Image, o.ImageTag, o.ImageDigest} == want
		})
	}
	if list := e.Docker(t, "ps", "--filter", "id="+built, "--format", "{{.Image}}"); list == "built:1" {
		t.Fatalf("the engine still says %q of the first container", list)
	}
	// An engine that is reached again is asked for its list.
	e.Docker(t, "rename", built, "renamed")
	enginetest.Poll(t, patience, "asked about after a change", func() bool { return ownerOf(t, e, before, built).ContainerName == "renamed" })
	check(before, "after the names went")
	check(start(), "for a tracer that is started then")
	// Nor does the next list take the names away.
	for _, f := range before.runtimes.feeds {
		f.registry.mu.RLock()
		old := *f.registry.byID[built]
		f.registry.mu.RUnlock()
		d, err := newDocker(e.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.hello(t.Context(), f); err != nil { // agrees on a version of the API
			t.Fatal(err)
		}
		if l := d.list(t.Context(), f); l.err != nil {
			t.Fatal(l.err)
		}
		if err := d.close(); err != nil {
			t.Error(err)
		}
		if o := ownerOf(t, e, before, built); o.Image != old.image {
			t.Errorf("after a list: %+v", o)
		}
	}
	check(before, "after a list")
}
