//go:build integration

package attribute

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	dcontainer "github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// createMany makes containers that never run: an engine lists them like others.
func createMany(tb testing.TB, e *enginetest.Engine, n int) {
	tb.Helper()
	s, err := openDocker(e.Socket)
	if err != nil {
		tb.Fatal(err)
	}
	defer s.close()
	client := s.(*docker).client
	work := make(chan int)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range work {
				_, err := client.ContainerCreate(context.Background(), &dcontainer.Config{
					Image: enginetest.Image, Cmd: []string{"true"},
					Labels: map[string]string{
						"com.docker.compose.project": fmt.Sprintf("project%d", i%manyProjects), "com.docker.compose.service": "web",
						"com.docker.compose.config-hash": fmt.Sprintf("%064x", i), "com.docker.compose.container-number": "1",
						"com.docker.compose.project.working_dir": "/srv/projects/some/where", "com.docker.compose.version": "2.20.0",
					},
				}, &dcontainer.HostConfig{NetworkMode: "none"}, nil, nil, fmt.Sprintf("project%d-web-%d", i%manyProjects, i))
				if err != nil {
					tb.Errorf("creating container %d: %v", i, err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}

// BenchmarkDockerList is the time from a start to the names of 1,500 containers
// of a real engine, most of which the engine takes.
func BenchmarkDockerList(b *testing.B) {
	e := enginetest.Start(b)
	createMany(b, e, manyContainers)
	b.ResetTimer()
	for range b.N {
		before := live()
		cpu := cpuTime(b)
		r, err := NewResolver(Options{DockerSockets: []string{e.Socket}, OnlyListedSockets: true})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		r.Start(ctx)
		if err := r.WaitAnswered(ctx); err != nil {
			b.Fatal(err)
		}
		if s := r.Stats(); s.Containers != manyContainers {
			b.Fatalf("stats %+v", s)
		}
		b.ReportMetric(float64(cpuTime(b)-cpu)/1e6, "cpu-ms/op")
		b.ReportMetric(float64(live()-before)/manyContainers, "B/container")
		cancel()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(r)
	}
}

// cpuTime returns the processor time that this process took, in nanoseconds.
func cpuTime(tb testing.TB) int64 {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
