package attribute

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/client"
)

// errRemote is the cause of errors about addresses that are not asked for names.
var errRemote = errors.New("names come from unix sockets only")

// parseSocket reads a path or an address of the form unix:///PATH and returns the
// absolute path. Docker's API is also spoken over tcp://HOST:PORT without TLS
// (remote): such an address is returned as it is. Other schemes give errRemote.
func parseSocket(text string, remote bool) (string, error) {
	scheme, path, found := strings.Cut(text, "://")
	switch {
	case !found:
		path = text
	case scheme == "unix":
	case remote && (scheme == "tcp" || scheme == "http"):
		if _, err := client.ParseHostURL(text); err != nil {
			return "", fmt.Errorf("socket %q: %w", text, err)
		}
		return text, nil
	case remote:
		return "", fmt.Errorf("socket %q: %w, or from tcp:// without TLS", text, errRemote)
	default:
		return "", fmt.Errorf("socket %q: %w", text, errRemote)
	}
	if path == "" {
		return "", fmt.Errorf("socket %q: no path in it", text)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("socket %q: %w", text, err)
	}
	return path, nil
}

// listedDocker returns the Docker sockets that the user named, by option first, then
// by DOCKER_HOST. It logs each that cannot be used.
func (o *Options) listedDocker() []string {
	const env = client.EnvOverrideHost // DOCKER_HOST
	return o.listed(o.listed(nil, "option", o.DockerSockets, true), env, []string{os.Getenv(env)}, true)
}

// listed adds to a list the sockets that the user named, each once. It logs each that
// cannot be used.
func (o *Options) listed(list []string, source string, texts []string, remote bool) []string {
	for _, text := range texts {
		if text == "" {
			continue
		}
		socket, err := parseSocket(text, remote)
		if err != nil {
			o.Log.Warn("this address cannot be asked for names", "from", source, "error", err)
		} else if !slices.Contains(list, socket) {
			list = append(list, socket)
		}
	}
	return list
}

// isPath tells a unix socket from a remote address.
func isPath(socket string) bool { return strings.HasPrefix(socket, "/") }

// exists tells whether there is something at a socket's path, and returns the path
// without symbolic links: /var/run is /run, and one socket is asked once. A remote
// address is always there.
func exists(socket string) (string, bool) {
	if !isPath(socket) {
		return socket, true
	}
	if strings.Contains(socket, "//") { // links in another root lead nowhere in ours
		path, done, err := socketPath(socket)
		if err != nil {
			return socket, !errors.Is(err, fs.ErrNotExist)
		}
		defer done()
		_, err = os.Stat(path)
		return socket, !errors.Is(err, fs.ErrNotExist)
	}
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return socket, false
	}
	if real, err := filepath.EvalSymlinks(socket); err == nil {
		socket = real
	}
	return socket, true
}

// present returns the sockets of a runtime that exist: the listed ones first. One that
// has several paths is returned once.
func (s *runtimeSpec) present() []string {
	var found []string
	var files []os.FileInfo
	for _, socket := range s.places() {
		socket, ok := exists(socket)
		if !ok {
			continue
		}
		if file, err := statSocket(socket); err == nil {
			if slices.ContainsFunc(files, func(f os.FileInfo) bool { return os.SameFile(f, file) }) {
				continue
			}
			files = append(files, file)
		}
		found = append(found, socket)
	}
	return found
}

// statSocket describes the file of a socket.
func statSocket(socket string) (os.FileInfo, error) {
	if !isPath(socket) {
		return nil, fmt.Errorf("%q is no file: %w", socket, errors.ErrUnsupported)
	}
	path, done, err := socketPath(socket)
	if err != nil {
		return nil, err
	}
	defer done()
	return os.Stat(path)
}

// onHost returns paths as paths below the root of the host.
func onHost(root string, paths []string) []string {
	below := make([]string, len(paths))
	for i, p := range paths {
		below[i] = inRoot(strings.TrimSuffix(root, "/"), p)
	}
	return below
}

// pathInRoot returns the path of a socket within the root that it was looked up in.
func pathInRoot(socket string) string {
	if _, path, ok := strings.Cut(socket, "//"); ok {
		return "/" + path
	}
	return socket
}

// absent returns the sockets of a runtime that do not exist, by option or at a fixed
// place.
func (s *runtimeSpec) absent() []string {
	var missing []string
	add := func(socket string) {
		if _, ok := exists(socket); !ok && !slices.Contains(missing, socket) {
			missing = append(missing, socket)
		}
	}
	for _, socket := range s.listed {
		add(socket)
	}
	for _, pattern := range s.usual {
		if !strings.ContainsAny(pattern, "*?[") {
			add(pattern)
		}
	}
	return missing
}

// places returns the listed sockets and those that the patterns match.
func (s *runtimeSpec) places() []string {
	all := slices.Clone(s.listed)
	for _, pattern := range s.usual {
		root, _, below := strings.Cut(pattern, "//")
		paths, _ := filepath.Glob(filepath.Clean(pattern)) // the patterns are ours: none is malformed
		if below {
			for i, p := range paths {
				paths[i] = inRoot(root, strings.TrimPrefix(p, root))
			}
		}
		all = append(all, paths...)
	}
	return all
}
