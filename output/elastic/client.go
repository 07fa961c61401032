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
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/elastic/go-elasticsearch/v9/esapi"
)

// Secret is a string that no log, error or JSON shows.
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

// Flavour is the kind of server behind an Elasticsearch URL.
type Flavour string

// The flavours. With FlavourAuto the server is asked.
const (
	FlavourAuto          Flavour = ""
	FlavourElasticsearch Flavour = "elasticsearch"
	FlavourServerless    Flavour = "serverless"
	FlavourOpenSearch    Flavour = "opensearch"
)

// Environment variables that LoadCredentials reads.
const (
	EnvElasticsearchAPIKey       = "IOTRACE_ELASTICSEARCH_API_KEY"
	EnvElasticsearchAPIKeyFile   = "IOTRACE_ELASTICSEARCH_API_KEY_FILE"
	EnvElasticsearchUsername     = "IOTRACE_ELASTICSEARCH_USERNAME"
	EnvElasticsearchPassword     = "IOTRACE_ELASTICSEARCH_PASSWORD"
	EnvElasticsearchPasswordFile = "IOTRACE_ELASTICSEARCH_PASSWORD_FILE"
	EnvElasticsearchCAFile       = "IOTRACE_ELASTICSEARCH_CA_FILE"
	EnvElasticsearchFingerprint  = "IOTRACE_ELASTICSEARCH_CA_FINGERPRINT"
)

// Credentials says who we are and whom we trust.
type Credentials struct {
	// APIKey is "id:key" or its base64 form, which is what Kibana calls encoded.
	APIKey   Secret
	Username string
	Password Secret
	// CAFile is a PEM file with the certificates to trust in place of the
	// system's.
	CAFile string
	// Fingerprint is the SHA-256 digest, in hexadecimal with or without colons,
	// of the server's certificate or of the CA that issued it.
	Fingerprint string
}

// LoadCredentials fills the fields of c that are empty from the environment.
// Secrets can only come from there or from a file, never from a command line,
// which everybody on the host can read. apiKeyFile and passwordFile may be
// empty; they come before the environment.
func (c *Credentials) LoadCredentials(apiKeyFile, passwordFile string, getenv func(string) string) error {
	secret := func(s *Secret, file, fileVar, valueVar string) error {
		if *s != "" {
			return nil
		}
		if file == "" {
			file = getenv(fileVar)
		}
		if file == "" {
			*s = Secret(strings.TrimSpace(getenv(valueVar)))
			return nil
		}
		b, err := readSmallFile(file)
		if err != nil {
			return err
		}
		if *s = Secret(strings.TrimSpace(string(b))); *s == "" {
			return fmt.Errorf("secret file %q is empty", file)
		}
		return nil
	}
	if err := secret(&c.APIKey, apiKeyFile, EnvElasticsearchAPIKeyFile, EnvElasticsearchAPIKey); err != nil {
		return err
	}
	if err := secret(&c.Password, passwordFile, EnvElasticsearchPasswordFile, EnvElasticsearchPassword); err != nil {
		return err
	}
	for field, name := range map[*string]string{
		&c.Username:    EnvElasticsearchUsername,
		&c.CAFile:      EnvElasticsearchCAFile,
		&c.Fingerprint: EnvElasticsearchFingerprint,
	} {
		if *field == "" {
			*field = getenv(name)
		}
	}
	return nil
}

// readSmallFile reads a file that has no reason to be big.
func readSmallFile(name string) ([]byte, error) {
	const limit = 1 << 20
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("file %q is bigger than %d bytes", name, limit)
	}
	return b, nil
}

// client sends single requests. Retries are the shipper's: the transport's
// own have no idea of items.
type client struct {
	*elastictransport.Client
	http    *http.Transport
	flavour Flavour // what the user said
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
		return nil, fmt.Errorf("no password for user %q: set %s or %s", cred.Username, EnvElasticsearchPasswordFile, EnvElasticsearchPassword)
	case cred.Username == "" && cred.Password != "":
		return nil, fmt.Errorf("a password without a user name: set %s", EnvElasticsearchUsername)
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

// encodedAPIKey accepts both forms in which people are given API keys.
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

// parseServerURL reads an http or https URL. Its errors never repeat the text
// as far as it may hold a password.
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
		return nil, fmt.Errorf("the URL of server %q holds a user name: everybody on this host can read a command line; set %s and %s", u.Host, EnvElasticsearchUsername, EnvElasticsearchPasswordFile)
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

// serverTLS makes the TLS configuration. The transport's own support for
// fingerprints is not used: it is content with any certificate of the chain
// that has the fingerprint, and a chain can be padded with a certificate whose
// key the sender does not have. Here, a certificate with the fingerprint
// becomes the only root, and the chain and the name are verified as usual.
func serverTLS(caFile, fingerprint string, servers []*url.URL) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" && fingerprint != "" {
		return nil, errors.New("both a CA file and a fingerprint are given: use one")
	}
	if caFile != "" {
		pem, err := readSmallFile(caFile)
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
	cfg.InsecureSkipVerify = true // VerifyConnection does it
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
			// TLS sends no name for an address: it has to be one of ours.
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

// server is what we know of the server; version is 0.0 where it does not
// tell.
type server struct {
	flavour      Flavour
	major, minor int
	version      string
	modules      map[string]bool // nil where the server does not tell
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

// timeSeries tells whether setup makes metrics-iotrace.io a time series
// stream there. Such streams exist since 8.7; they give back every field of a
// document since 8.15 and took booleans for dimensions soon after. A server
// that keeps its version to itself, as it does to a key without the monitor
// privilege, is taken for a current one.
func (s *server) timeSeries() bool {
	switch s.flavour {
	case FlavourServerless:
		return true
	case FlavourElasticsearch:
		return s.version == "" || s.atLeast(8, 17)
	}
	return false
}

// requireDataStream tells whether _bulk knows require_data_stream; a server
// that does not refuses the request.
func (s *server) requireDataStream() bool {
	return s.flavour == FlavourServerless || s.flavour == FlavourElasticsearch && s.atLeast(8, 13)
}

// hidesSource tells whether _bulk knows include_source_on_error.
func (s *server) hidesSource() bool {
	return s.flavour == FlavourServerless || s.flavour == FlavourElasticsearch && s.atLeast(8, 18)
}

// statusError is a reply that is not what was asked for.
type statusError struct {
	what   string
	status int
	kind   string // error.type of the reply
	reason string
	after  time.Duration // Retry-After
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s: server said %d %s", e.what, e.status, http.StatusText(e.status))
	if e.kind != "" || e.reason != "" {
		// The text is the server's.
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

// maxReply bounds what a broken or hostile server can make us hold.
const maxReply = 64 << 20

func readReply(res *esapi.Response) (*reply, error) {
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxReply+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxReply {
		return nil, fmt.Errorf("server's reply is bigger than %d bytes", maxReply)
	}
	return &reply{status: res.StatusCode, header: res.Header, body: b}, nil
}

// failure makes an error of a reply that is not 2xx.
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

// maxRetryAfter bounds the time for which a server can silence us.
const maxRetryAfter = 10 * time.Minute

// retryAfter reads a Retry-After header: seconds or a date.
func retryAfter(v string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// detect asks the server what it is. An error is a *statusError when the
// server answered.
func (c *client) detect(ctx context.Context) (*server, error) {
	res, err := esapi.InfoRequest{}.Do(ctx, c)
	if err != nil {
		return nil, err
	}
	rep, err := readReply(res)
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
			return nil, &statusError{what: "asking for the server's version", status: rep.status, reason: "this is no Elasticsearch"}
		}
	case rep.status == http.StatusMethodNotAllowed && product,
		rep.status == http.StatusForbidden && (product || srv.flavour != FlavourAuto):
		// A distribution without the root page, or a key that may write and do
		// nothing else: the header tells what it is.
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

// askNodes asks a node for its version and its modules. A node that does not
// tell is no error.
func (c *client) askNodes(ctx context.Context, srv *server) error {
	res, err := esapi.NodesInfoRequest{NodeID: []string{"_local"}, FilterPath: []string{"nodes.*.version", "nodes.*.modules.name"}}.Do(ctx, c)
	if err != nil {
		return err
	}
	rep, err := readReply(res)
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

// lacks tells whether the server is known to be without a module.
func (s *server) lacks(module string) bool { return s.modules != nil && !s.modules[module] }
