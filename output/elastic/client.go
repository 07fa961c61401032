package elastic

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/iotrace-bpf/iotrace-bpf/output/file"
)

// Secret is a string that prints as "(hidden)" in logs, errors and JSON.
type Secret string

// String hides the secret from fmt.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// LogValue hides the secret from log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Flavour is the kind of server behind a URL.
type Flavour string

// The flavours. FlavourAuto means: ask the server.
const (
	FlavourAuto          Flavour = ""
	FlavourElasticsearch Flavour = "elasticsearch"
	FlavourServerless    Flavour = "serverless"
	FlavourOpenSearch    Flavour = "opensearch"
)

// Environment variables that hold secrets themselves. Credentials.Load reads them.
const (
	EnvAPIKey   = "IOTRACE_ELASTICSEARCH_API_KEY"
	EnvPassword = "IOTRACE_ELASTICSEARCH_PASSWORD"
)

// Credentials says how to log in, and which server certificate to trust. At most one
// of API key and user name, and at most one of CA file and fingerprint may be set.
type Credentials struct {
	// APIKey is "id:key" or the base64 form of that, which Kibana calls "encoded".
	APIKey   Secret
	Username string
	Password Secret
	// CAFile is a PEM file of certificates to trust instead of the system's.
	CAFile string
	// Fingerprint is the SHA-256 digest of the server's certificate or of the CA
	// that issued it: 64 hexadecimal digits, with or without colons.
	Fingerprint string
}

// Load fills API key and password where they are empty: from apiKeyFile and
// passwordFile, or, where no file is named, from the environment. Secrets never come
// from a command line, which everybody on the host can read. A file that cannot be
// read, is empty or has more than 1 MiB is an error. One that every user may read is
// logged.
func (c *Credentials) Load(apiKeyFile, passwordFile string, getenv func(string) string, log *slog.Logger) error {
	secret := func(s *Secret, name, variable string) error {
		if *s != "" {
			return nil
		}
		if name == "" {
			*s = Secret(strings.TrimSpace(getenv(variable)))
			return nil
		}
		b, exposed, err := file.ReadSmall(name)
		if err != nil {
			return err
		}
		if exposed {
			log.Warn("every user of this host can read a secret: chmod o= FILE", "file", name)
		}
		if *s = Secret(strings.TrimSpace(string(b))); *s == "" {
			return fmt.Errorf("secret file %q is empty", name)
		}
		return nil
	}
	return errors.Join(secret(&c.APIKey, apiKeyFile, EnvAPIKey), secret(&c.Password, passwordFile, EnvPassword))
}

// client sends single requests. The shipper retries, because the transport would
// repeat whole requests and not single documents.
type client struct {
	*elastictransport.Client
	http    *http.Transport
	flavour Flavour // FlavourAuto unless the user named one
}

const userAgent = "iotrace-bpf"

func newClient(urls []string, cred Credentials, flavour Flavour, log *slog.Logger) (*client, error) {
	if len(urls) == 0 {
		return nil, errors.New("no Elasticsearch URL")
	}
	key, err := encodedAPIKey(cred.APIKey)
	if err != nil {
		return nil, err
	}
	options := []elastictransport.Option{elastictransport.WithUserAgent(userAgent), elastictransport.WithDisableRetry()}
	switch {
	case cred.APIKey != "" && (cred.Username != "" || cred.Password != ""):
		return nil, errors.New("both an API key and a user name or password are given: use one")
	case cred.Username != "" && cred.Password == "":
		return nil, fmt.Errorf("no password for user %q: give --elasticsearch-password-file or set %s", cred.Username, EnvPassword)
	case cred.Username == "" && cred.Password != "":
		return nil, errors.New("a password without a user name: give --elasticsearch-username")
	}
	switch {
	case key != "":
		options = append(options, elastictransport.WithAPIKey(key))
	case cred.Username != "":
		options = append(options, elastictransport.WithBasicAuth(cred.Username, string(cred.Password)))
	}
	secret := cred.APIKey != "" || cred.Password != ""
	var nodes []*url.URL
	for _, raw := range urls {
		u, err := parseServerURL(raw)
		if err != nil {
			return nil, err
		}
		if secret && u.Scheme == "http" && !isLoopback(u.Hostname()) {
			log.Warn("credentials travel unencrypted: use https", "url", u.String())
		}
		nodes = append(nodes, u)
	}
	tlsConfig, err := serverTLS(cred.CAFile, cred.Fingerprint, nodes)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // a short answer could become a long one
		MaxIdleConnsPerHost:   2,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
	c, err := elastictransport.NewClient(append(options, elastictransport.WithURLs(nodes...), elastictransport.WithTransport(transport))...)
	if err != nil {
		return nil, fmt.Errorf("elasticsearch transport: %w", err)
	}
	return &client{Client: c, http: transport, flavour: flavour}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// encodedAPIKey returns the base64 form of either form of an API key.
func encodedAPIKey(key Secret) (string, error) {
	k := string(key)
	if strings.ContainsAny(k, " \t\r\n") {
		return "", errors.New("the API key has white space in it")
	}
	if strings.Contains(k, ":") {
		return base64.StdEncoding.EncodeToString([]byte(k)), nil
	}
	return k, nil
}

// parseServerURL reads an http or https URL. Its errors leave out the part of the
// text that may hold a password.
func parseServerURL(raw string) (*url.URL, error) {
	if !strings.Contains(raw, "://") {
		return nil, errors.New("a server URL must start with http:// or https://")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("a server URL cannot be parsed")
	}
	switch {
	case u.User != nil:
		return nil, fmt.Errorf("the URL of server %q holds a user name: everybody on this host can read a command line; give --elasticsearch-username and --elasticsearch-password-file", u.Host)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("server URL scheme %q is neither http nor https", u.Scheme)
	case u.Hostname() == "":
		return nil, fmt.Errorf("server URL %q names no host", u.String())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("the URL of server %q has a query or fragment", u.Host)
	}
	return u, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// serverTLS makes the TLS configuration. The transport's own fingerprint check is
// not used: it accepts any certificate of the chain that has the fingerprint, and
// an attacker can add the real certificate to a chain of his own without having its
// key. Here the certificate with the fingerprint becomes the only root, and chain
// and name are verified as usual.
func serverTLS(caFile, fingerprint string, servers []*url.URL) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" && fingerprint != "" {
		return nil, errors.New("both a CA file and a fingerprint are given: use one")
	}
	if caFile != "" {
		pem, _, err := file.ReadSmall(caFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %q holds no certificate", caFile)
		}
	}
	if fingerprint == "" {
		return cfg, nil
	}
	want, err := hex.DecodeString(strings.ReplaceAll(fingerprint, ":", ""))
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("fingerprint is not a SHA-256 digest: want %d hexadecimal digits", 2*sha256.Size)
	}
	cfg.InsecureSkipVerify = true // VerifyConnection verifies instead
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		found := false
		for i, cert := range cs.PeerCertificates {
			if sum := sha256.Sum256(cert.Raw); string(sum[:]) == string(want) {
				found = true
				roots.AddCert(cert)
			} else if i > 0 {
				between.AddCert(cert)
			}
		}
		if !found {
			return errors.New("no certificate of the server has the fingerprint")
		}
		names := []string{cs.ServerName}
		if cs.ServerName == "" {
			// TLS sends no server name for an IP address: the certificate must be
			// valid for one of the addresses in our URLs.
			names = names[:0]
			for _, u := range servers {
				names = append(names, u.Hostname())
			}
		}
		var err error
		for _, name := range names {
			_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between})
			if err == nil {
				return nil
			}
		}
		return err
	}
	return cfg, nil
}

// server is what we know of the server.
type server struct {
	flavour      Flavour
	major, minor int             // 0 where the server does not say
	version      string          // "" where the server does not say
	modules      map[string]bool // nil where the server does not say
}

func (s *server) atLeast(major, minor int) bool {
	return s.major > major || s.major == major && s.minor >= minor
}

func (s *server) String() string {
	v := s.version
	if v == "" {
		v = "of unknown version"
	}
	return string(s.flavour) + " " + v
}

// timeSeries reports whether Setup makes metrics-iotrace.io a time series stream on
// this server. Elasticsearch has such streams since 8.7, returns every field of
// their documents since 8.15 and takes booleans as dimensions since 8.17. A server
// does not show its version to a key without the privilege monitor: it counts as a
// current one.
func (s *server) timeSeries() bool {
	switch s.flavour {
	case FlavourServerless:
		return true
	case FlavourElasticsearch:
		return s.version == "" || s.atLeast(8, 17)
	}
	return false
}

// requireDataStream reports whether _bulk knows require_data_stream. Other servers
// reject a request with it.
func (s *server) requireDataStream() bool {
	return s.flavour == FlavourServerless || s.flavour == FlavourElasticsearch && s.atLeast(8, 13)
}

// hidesSource reports whether _bulk knows include_source_on_error.
func (s *server) hidesSource() bool {
	return s.flavour == FlavourServerless || s.flavour == FlavourElasticsearch && s.atLeast(8, 18)
}

// statusError is a reply other than the expected one.
type statusError struct {
	what   string // what we were doing
	status int
	kind   string // error.type of the reply
	reason string
	after  time.Duration // Retry-After
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s: server said %d %s", e.what, e.status, http.StatusText(e.status))
	if e.kind != "" || e.reason != "" {
		// The server chose this text: quote it.
		s += " " + strconv.Quote(cut(strings.TrimSpace(e.kind+" "+e.reason), 500))
	}
	return s
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// reply is a response whose body has been read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// Bounds of replies in bytes, for broken and hostile servers: of a reply to bulk requests
// for each document, which has to hold the reason why it was rejected, and of others.
const (
	maxReply     = 4 << 20
	maxItemReply = 8 << 10
)

// readReply reads a reply of at most limit bytes.
func readReply(res *esapi.Response, limit int) (*reply, error) {
	defer res.Body.Close()
	if how := res.Header.Get("Content-Encoding"); how != "" && how != "identity" {
		return nil, fmt.Errorf("server's reply has the content encoding %q, which was not asked for", cut(how, 40))
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("server's reply is bigger than %d bytes", limit)
	}
	return &reply{status: res.StatusCode, header: res.Header, body: b}, nil
}

// failure returns the error for a reply whose status is not 2xx.
func (r *reply) failure(what string) *statusError {
	e := &statusError{what: what, status: r.status, after: retryAfter(r.header.Get("Retry-After"), time.Now())}
	var doc struct {
		Error json.RawMessage `json:"error"`
	}
	var detail struct{ Type, Reason string }
	if json.Unmarshal(r.body, &doc) == nil && json.Unmarshal(doc.Error, &detail) == nil {
		e.kind, e.reason = detail.Type, detail.Reason
	} else {
		e.reason = cut(string(r.body), 200)
	}
	return e
}

// maxRetryAfter bounds how long a server can make us wait.
const maxRetryAfter = 10 * time.Minute

// retryAfter reads a Retry-After header (RFC 9110): seconds or a date.
func retryAfter(v string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// detect asks the server for flavour and version. The error is a *statusError if the
// server answered.
func (c *client) detect(ctx context.Context) (*server, error) {
	res, err := esapi.InfoRequest{}.Do(ctx, c)
	if err != nil {
		return nil, err
	}
	rep, err := readReply(res, maxReply)
	if err != nil {
		return nil, err
	}
	srv := &server{flavour: c.flavour}
	product := rep.header.Get("X-Elastic-Product") == "Elasticsearch"
	switch {
	case rep.status == http.StatusOK:
		var info struct {
			Version struct {
				Number       string `json:"number"`
				Distribution string `json:"distribution"`
				BuildFlavor  string `json:"build_flavor"`
			} `json:"version"`
		}
		if err := json.Unmarshal(rep.body, &info); err != nil {
			return nil, &statusError{what: "asking for the server's version", status: rep.status, reason: "not a JSON object"}
		}
		srv.setVersion(info.Version.Number)
		switch {
		case srv.flavour != FlavourAuto:
		case info.Version.Distribution == "opensearch":
			srv.flavour = FlavourOpenSearch
		case info.Version.BuildFlavor == "serverless":
			srv.flavour = FlavourServerless
		case info.Version.Number != "":
			srv.flavour = FlavourElasticsearch
		default:
			return nil, &statusError{what: "asking for the server's version", status: rep.status, reason: "this is not Elasticsearch or OpenSearch"}
		}
	case rep.status == http.StatusMethodNotAllowed && product,
		rep.status == http.StatusForbidden && (product || srv.flavour != FlavourAuto):
		// A distribution without the root page, or a key that may only write: the
		// header says which product it is.
		if srv.flavour == FlavourAuto {
			srv.flavour = FlavourElasticsearch
		}
	case rep.status == http.StatusForbidden:
		e := rep.failure("asking for the server's version")
		e.reason += "; give the key the cluster privilege monitor, or say which flavour the server is"
		return nil, e
	default:
		return nil, rep.failure("asking for the server's version")
	}
	if srv.version == "" && rep.status == http.StatusMethodNotAllowed {
		if err := c.askNodes(ctx, srv); err != nil {
			return nil, err
		}
	}
	return srv, nil
}

func (s *server) setVersion(v string) {
	if _, err := fmt.Sscanf(v, "%d.%d", &s.major, &s.minor); err == nil {
		s.version = cut(v, 40)
	}
}

// askNodes asks a node for its version and its modules. A node that does not answer
// the question leaves srv as it is.
func (c *client) askNodes(ctx context.Context, srv *server) error {
	res, err := esapi.NodesInfoRequest{NodeID: []string{"_local"}, FilterPath: []string{"nodes.*.version", "nodes.*.modules.name"}}.Do(ctx, c)
	if err != nil {
		return err
	}
	rep, err := readReply(res, maxReply)
	if err != nil {
		return err
	}
	var info struct {
		Nodes map[string]struct {
			Version string
			Modules []struct{ Name string }
		}
	}
	if rep.status != http.StatusOK || json.Unmarshal(rep.body, &info) != nil {
		return nil
	}
	for _, n := range info.Nodes {
		if srv.version == "" {
			srv.setVersion(n.Version)
		}
		if len(n.Modules) > 0 {
			srv.modules = make(map[string]bool)
		}
		for _, m := range n.Modules {
			srv.modules[m.Name] = true
		}
	}
	return nil
}

// lacks reports whether the server said which modules it has, and module is not one
// of them.
func (s *server) lacks(module string) bool { return s.modules != nil && !s.modules[module] }
