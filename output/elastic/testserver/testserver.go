// Package testserver runs real servers, Elasticsearch and OpenSearch, for
// tests. They are fetched from Maven Central once, into $IOTRACE_TEST_SERVERS
// or the user's cache directory; that needs maven, unzip and a JDK 17.
package testserver

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

//go:embed fetch.sh
var fetchScript []byte

//go:embed pom.xml
var pom []byte

//go:embed OpenSearch.java
var launcher []byte

const (
	// user is the uid that Elasticsearch runs as: it refuses to run as root.
	user = 65534
	heap = "512m"
	// readyTime is how long a server may take to start on a busy machine.
	readyTime = 3 * time.Minute
)

var fetch = sync.OnceValues(func() (string, error) {
	dir := os.Getenv("IOTRACE_TEST_SERVERS")
	if dir == "" {
		// The server's user must be able to read it: not so in root's own folder.
		cache, err := os.UserCacheDir()
		if err != nil || os.Geteuid() == 0 {
			cache = "/var/cache"
		}
		dir = filepath.Join(cache, "iotrace-bpf", "testservers")
	}
	tmp, err := os.MkdirTemp("", "iotrace-fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for name, b := range map[string][]byte{"fetch.sh": fetchScript, "pom.xml": pom} {
		if err := os.WriteFile(filepath.Join(tmp, name), b, 0o600); err != nil {
			return "", err
		}
	}
	out, err := exec.Command("sh", filepath.Join(tmp, "fetch.sh"), dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("fetching servers: %w: %s", err, out)
	}
	return dir, nil
})

// Server is a server on loopback that can be killed and started again with the
// documents it had.
type Server struct {
	// URL is http or https with a loopback address.
	URL string
	// TimeSeries reports whether the server has time series data streams.
	TimeSeries bool

	t       testing.TB
	auth    *Security
	command func() *exec.Cmd
	user    uint32
	cmd     *exec.Cmd
	exited  chan error
	log     bytes.Buffer
}

// Security makes Elasticsearch ask for passwords and speak TLS.
type Security struct {
	Password  string // of the user elastic and of Writer
	Cert, Key []byte // PEM
	Client    *http.Client
	// Writer is the name of a second user. Role is the definition of its role, as
	// in roles.yml. (This distribution cannot create the system index that API keys
	// need.)
	Writer, Role string
}

// Elasticsearch starts Elasticsearch and waits until it is ready. Without security it
// wants no password.
func Elasticsearch(t testing.TB, security *Security) *Server {
	t.Helper()
	servers, err := fetch()
	if err != nil {
		t.Fatal(err)
	}
	home, dir, port := filepath.Join(servers, "elasticsearch"), directory(t), freePort(t)
	// The server writes a keystore beside its configuration, and refuses a
	// temporary directory that holds it.
	conf, tmp := filepath.Join(dir, "config"), filepath.Join(dir, "tmp")
	if err := os.CopyFS(conf, os.DirFS(filepath.Join(home, "config"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "ES_JAVA_HOME="+javaHome(t), "ES_JAVA_OPTS=-Xms"+heap+" -Xmx"+heap, "CLI_JAVA_OPTS=-Xmx64m",
		"ES_PATH_CONF="+conf, "ES_TMPDIR="+tmp, "HOME="+dir)
	s := &Server{t: t, URL: fmt.Sprintf("http://127.0.0.1:%d", port), TimeSeries: true, auth: security}
	options := []string{"xpack.security.enabled=false"}
	if security != nil {
		s.URL = fmt.Sprintf("https://127.0.0.1:%d", port)
		security.install(t, conf, filepath.Join(home, "bin"), env)
		options = []string{"xpack.security.enabled=true", "xpack.security.transport.ssl.enabled=false", "xpack.security.http.ssl.enabled=true",
			"xpack.security.http.ssl.certificate=http.crt", "xpack.security.http.ssl.key=http.key"}
	}
	if os.Geteuid() == 0 {
		s.user = user
		chown(t, dir)
	}
	options = append(options, "discovery.type=single-node", "network.host=127.0.0.1", "http.port="+strconv.Itoa(port),
		"path.data="+filepath.Join(dir, "data"), "path.logs="+filepath.Join(dir, "logs"),
		// A nearly full disk of the machine must not fail a test.
		"cluster.routing.allocation.disk.threshold_enabled=false")
	s.command = func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(home, "bin", "elasticsearch"), "-E", "transport.port="+strconv.Itoa(freePort(t)))
		for _, o := range options {
			cmd.Args = append(cmd.Args, "-E", o)
		}
		cmd.Env, cmd.Dir = env, dir
		return cmd
	}
	s.Start()
	return s
}

// OpenSearch starts OpenSearch and waits until it is ready.
func OpenSearch(t testing.TB) *Server {
	t.Helper()
	servers, err := fetch()
	if err != nil {
		t.Fatal(err)
	}
	dir, port := directory(t), freePort(t)
	source := filepath.Join(dir, "OpenSearch.java")
	if err := os.WriteFile(source, launcher, 0o644); err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, URL: fmt.Sprintf("http://127.0.0.1:%d", port)}
	s.command = func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(javaHome(t), "bin", "java"), "-Xms"+heap, "-Xmx"+heap, "-Djava.security.manager=allow",
			"-cp", filepath.Join(servers, "opensearch", "*"), source, filepath.Join(dir, "node"), strconv.Itoa(port))
		cmd.Dir = dir
		return cmd
	}
	s.Start()
	return s
}

// install writes certificate, key, role and users to the server's configuration.
func (c *Security) install(t testing.TB, conf, bin string, env []string) {
	for name, b := range map[string][]byte{"http.crt": c.Cert, "http.key": c.Key, "roles.yml": []byte(c.Role)} {
		if err := os.WriteFile(filepath.Join(conf, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(input, name string, args ...string) {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Env, cmd.Stdin = env, strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run(c.Password, "elasticsearch-keystore", "add", "-x", "-f", "bootstrap.password")
	role, _, _ := strings.Cut(c.Role, ":")
	run("", "elasticsearch-users", "useradd", c.Writer, "-p", c.Password, "-r", role)
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func javaHome(t testing.TB) string {
	if h := os.Getenv("JAVA_HOME"); h != "" {
		return h
	}
	java, err := exec.LookPath("java")
	if err != nil {
		t.Fatal(err)
	}
	if java, err = filepath.EvalSymlinks(java); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(java))
}

// directory makes a directory that any user can enter: t.TempDir is below one that
// only root can enter.
func directory(t testing.TB) string {
	dir, err := os.MkdirTemp("", "iotrace-testserver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func chown(t testing.TB, dir string) {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, user, user)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Start runs the server again after Kill and waits until it is ready.
func (s *Server) Start() {
	s.t.Helper()
	s.Launch()
	s.Ready()
}

// Launch runs the server and returns at once.
func (s *Server) Launch() {
	s.t.Helper()
	cmd := s.command()
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	// Its own process group: Elasticsearch's launcher is a second process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.user != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.user, Gid: s.user}
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait(); close(exited) }()
	s.cmd, s.exited = cmd, exited
	s.t.Cleanup(func() {
		select {
		case <-exited: // the kernel may have given the id to another group
		default:
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-exited
		}
	})
}

// Kill ends the server with SIGKILL.
func (s *Server) Kill() {
	s.t.Helper()
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	<-s.exited
}

func (s *Server) do(method, path, body string) (*http.Response, error) {
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if s.auth == nil {
		return http.DefaultClient.Do(req)
	}
	req.SetBasicAuth("elastic", s.auth.Password)
	return s.auth.Client.Do(req)
}

// Ready waits until all indices of the server can be searched.
func (s *Server) Ready() {
	s.t.Helper()
	for deadline := time.Now().Add(readyTime); ; {
		res, err := s.do(http.MethodGet, "/_cluster/health?wait_for_status=yellow&timeout=60s", "")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-s.exited:
			s.t.Fatalf("server ended: %v\n%s", err, s.log.String())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("server is not ready after %v: %v", readyTime, err)
		}
	}
}

// Ask sends a request and decodes the answer, which must be 200 or 201. While the
// server says 503, as it does for an index of which it has no copy yet, the
// request is repeated.
func (s *Server) Ask(method, path, body string, into any) {
	s.t.Helper()
	var b []byte
	for deadline := time.Now().Add(readyTime); ; time.Sleep(50 * time.Millisecond) {
		res, err := s.do(method, path, body)
		if err != nil {
			s.t.Fatal(err)
		}
		b, err = io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		if res.StatusCode == http.StatusOK || res.StatusCode == http.StatusCreated {
			break
		}
		if res.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
			s.t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, b)
		}
	}
	if into == nil {
		return
	}
	if err := json.Unmarshal(b, into); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// Count returns the number of documents in a stream, the newest included; 0
// for a stream that does not exist.
func (s *Server) Count(stream string) int {
	s.t.Helper()
	s.Ask(http.MethodPost, "/"+stream+"/_refresh?ignore_unavailable=true", "", nil)
	var r struct{ Count int }
	s.Ask(http.MethodGet, "/"+stream+"/_count?ignore_unavailable=true", "", &r)
	return r.Count
}

// Sums returns the sum of field by the values of another one, "(none)" where
// there is none, over the documents of query.
func (s *Server) Sums(stream, by, field, query string) map[string]uint64 {
	s.t.Helper()
	s.Ask(http.MethodPost, "/"+stream+"/_refresh?ignore_unavailable=true", "", nil)
	var r struct {
		Aggregations struct {
			Groups struct {
				Buckets []struct {
					Key string
					Sum struct{ Value float64 }
				}
			}
		}
	}
	s.Ask(http.MethodPost, "/"+stream+"/_search?ignore_unavailable=true", fmt.Sprintf(
		`{"size":0,"query":%s,"aggs":{"groups":{"terms":{"field":%q,"size":1000,"missing":"(none)"},"aggs":{"sum":{"sum":{"field":%q}}}}}}`,
		query, by, field), &r)
	sums := make(map[string]uint64)
	for _, b := range r.Aggregations.Groups.Buckets {
		sums[b.Key] = uint64(b.Sum.Value)
	}
	return sums
}
