package attribute

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeProcess makes the files of a process that discover reads.
func fakeProcess(t *testing.T, proc string, pid int, ns, cgroup string, args ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(proc, fmt.Sprint(pid))
	mkdir(t, dir, "ns")
	mkdir(t, dir, "root")
	for name, text := range map[string]string{
		"comm": filepath.Base(args[0]) + "\n", "cmdline": strings.Join(args, "\x00") + "\x00", "cgroup": "0::" + cgroup + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("mnt:["+ns+"]", filepath.Join(dir, "ns/mnt")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func listen(t *testing.T, path string) string {
	t.Helper()
	mkdir(t, filepath.Dir(path))
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path
}

// The command lines and configurations of engines and kubelets say where they listen.
func TestDiscover(t *testing.T) {
	proc, err := os.MkdirTemp("", "p") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(proc) })
	mkdir(t, proc, "self/ns")
	if err := os.Symlink("mnt:[1]", filepath.Join(proc, "self/ns/mnt")); err != nil {
		t.Fatal(err)
	}
	sock := func(name string) string { return listen(t, filepath.Join(proc, "s", name)) }
	second, third, k0s, config, flag := sock("d2.sock"), sock("d3.sock"), sock("k0s.sock"), sock("cfg.sock"), sock("kubelet.sock")
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(proc, name)
		mkdir(t, filepath.Dir(name))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	daemonJSON := write("daemon.json", fmt.Sprintf(`{"hosts": ["unix://%s", "tcp://127.0.0.1:1"]}`, config))
	kubeletYAML := write("kubelet.yaml", "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"unix://"+k0s+"\"\nnested:\n  containerRuntimeEndpoint: unix:///no\n")
	host := func(pid int, args ...string) string {
		return fakeProcess(t, proc, pid, "1", "/system.slice/x.service", args...)
	}
	host(10, "/usr/bin/dockerd", "-H", "unix://"+second, "--host=unix://"+third, "-H", "fd://", "-Hunix:///does/not/exist", "--config-file", daemonJSON)
	host(11, "/usr/bin/kubelet", "--container-runtime-endpoint", flag)
	host(12, "/usr/bin/kubelet", "--config="+kubeletYAML, "--container-runtime-endpoint=")
	host(13, "/usr/bin/containerd", "--address", k0s)
	host(14, "/usr/bin/containerd", "--address")
	toml := write("config.toml", "version = 2\n[ttrpc]\n  address = \"/no\"\n[grpc]\n  address = \""+k0s+"\"\n[debug]\n  address = '/no'\n")
	host(19, "/usr/bin/containerd", "-c", toml)
	dockers := host(20, "/usr/bin/containerd", "--address", second) // dockerd's own
	if err := os.WriteFile(filepath.Join(dockers, "stat"), []byte("20 (containerd) S 10 1 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	host(15, "/bin/sh", "-c", "dockerd -H unix://"+second)
	// In a mount namespace of its own, its paths are in its root.
	own := fakeProcess(t, proc, 16, "2", "/system.slice/snap.docker.service", "dockerd", "-H", "unix:///d.sock")
	listen(t, filepath.Join(own, "root/d.sock"))
	// In a container, and in a user's session: not the machine's.
	inside := fakeProcess(t, proc, 17, "3", "/docker/"+idA, "dockerd", "-H", "unix:///d.sock")
	listen(t, filepath.Join(inside, "root/d.sock"))
	fakeProcess(t, proc, 18, "1", "/docker/"+idA+"/docker/"+idB, "dockerd", "-H", "unix://"+second)

	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), ProcRoot: proc})
	var found []string
	r.runtimes.discover(func(api, socket string) { found = append(found, api+" "+socket) })
	slices.Sort(found)
	want := []string{
		"docker " + second, "docker " + third, "docker " + config, "docker " + own + "/root//d.sock",
		"cri " + flag, "cri " + k0s, "cri " + k0s, "containerd " + k0s, "cri " + k0s, "containerd " + k0s,
	}
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
	// Each is asked once, and listed for the check command.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r.Start(ctx)
	poll(t, "every one is an endpoint", func() bool {
		var sockets []string
		for _, e := range r.Endpoints() {
			sockets = append(sockets, e.Socket)
		}
		return !slices.ContainsFunc([]string{second, third, k0s, config, flag, own + "/root/d.sock"}, func(s string) bool { return !slices.Contains(sockets, s) })
	})
}

// What a daemon calls its configuration is not read if it is no file.
func TestDiscoverReadsFilesOnly(t *testing.T) {
	d := daemon{}
	for _, name := range []string{"/dev/zero", "/proc/self", "relative", "", "/does/not/exist"} {
		if b := d.file(name); b != nil {
			t.Errorf("%q was read: %d bytes", name, len(b))
		}
	}
}
