package prometheus

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// TestPrometheusWebConfig: with a web configuration nobody reads without its password and
// without TLS.
func TestPrometheusWebConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	hash, err := bcrypt.GenerateFromPassword([]byte("let me in"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	write("web.yml", fmt.Appendf(nil, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\nbasic_auth_users: {scraper: %q}\n", hash))
	p := servePrometheus(t, Options{WebConfig: filepath.Join(dir, "web.yml")})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	for _, c := range []struct {
		url, user, password string
		status              int
	}{
		{"https://", "", "", http.StatusUnauthorized},
		{"https://", "scraper", "wrong", http.StatusUnauthorized},
		{"https://", "other", "let me in", http.StatusUnauthorized},
		{"https://", "scraper", "let me in", http.StatusOK},
		{"http://", "scraper", "let me in", http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url+p.Addr()+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.user != "" {
			req.SetBasicAuth(c.user, c.password)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != c.status || (c.status == http.StatusOK) != bytes.Contains(body, []byte("iotrace_build_info")) {
			t.Errorf("%+v: status %d, %v, %.100s", c, res.StatusCode, err, body)
		}
	}
	write("bad.yml", []byte("tls_server_config: {cert_file: nothing.pem, key_file: key.pem}\n"))
	for _, name := range []string{"bad.yml", "absent.yml"} {
		if _, err := New("127.0.0.1:0", Options{WebConfig: filepath.Join(dir, name)}); err == nil || !strings.Contains(err.Error(), "web configuration") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
