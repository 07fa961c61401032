package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mirror is where Debian packages come from. Nothing in this project names a
// host: the values are read from the machine's own apt configuration, or given.
type Mirror struct {
	Archive  string // base address of the archive
	Security string // base address of the security archive; may be empty
	Keyring  string // file with the archive's keys
}

// Environment variables that override what apt's configuration says.
const (
	EnvMirror   = "IOTRACE_VM_MIRROR"
	EnvSecurity = "IOTRACE_VM_SECURITY_MIRROR"
	EnvKeyring  = "IOTRACE_VM_KEYRING"
	EnvCache    = "IOTRACE_VM_CACHE"
)

// ErrNoMirror means that apt's configuration names no Debian mirror.
var ErrNoMirror = errors.New("no Debian mirror in apt's configuration: set " + EnvMirror)

// debianSuites tells a Debian mirror from one of a derivative, whose suites
// have other names.
var debianSuites = map[string]bool{
	"bullseye": true, "bookworm": true, "trixie": true, "forky": true, "duke": true,
	"sid": true, "stable": true, "testing": true, "unstable": true, "oldstable": true,
}

// FindMirror asks apt for the mirror that this machine uses. apt reads both of
// its source formats itself, so there is no parser of ours to disagree with it.
func FindMirror(ctx context.Context) (Mirror, error) {
	m := Mirror{Archive: os.Getenv(EnvMirror), Security: os.Getenv(EnvSecurity), Keyring: os.Getenv(EnvKeyring)}
	if m.Archive == "" {
		out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
			"--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages").Output()
		if err != nil {
			return Mirror{}, fmt.Errorf("asking apt for its mirrors: %w", err)
		}
		found := parseTargets(string(out))
		m.Archive = found.Archive
		if m.Security == "" {
			m.Security = found.Security
		}
	}
	if m.Archive == "" {
		return Mirror{}, ErrNoMirror
	}
	if m.Keyring == "" {
		m.Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	}
	if _, err := os.Stat(m.Keyring); err != nil {
		return Mirror{}, fmt.Errorf("keyring of the Debian archive (package debian-archive-keyring, or set %s): %w", EnvKeyring, err)
	}
	return m, nil
}

func parseTargets(out string) Mirror {
	var m Mirror
	for _, line := range strings.Split(out, "\n") {
		uri, suite, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		uri = strings.TrimSuffix(uri, "/")
		base, security := strings.CutSuffix(suite, "-security")
		switch {
		case security && debianSuites[base] && m.Security == "":
			m.Security = uri
		case debianSuites[suite] && m.Archive == "":
			m.Archive = uri
		}
	}
	return m
}

// CacheDir is where kernels, packages and images are kept between runs.
func CacheDir() (string, error) {
	dir := os.Getenv(EnvCache)
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no cache directory (set %s): %w", EnvCache, err)
		}
		dir = filepath.Join(base, "iotrace-bpf")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, nil
}

// LockCache waits until no other process fills the cache directory, and keeps others
// from it until the function returned is called.
func LockCache(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %q: %w", f.Name(), err)
		}
	}
}

// kernelSuites are all suites whose kernels a matrix line may ask for; the ones
// that a mirror does not hold are left out.
var kernelSuites = []string{
	"bullseye", "bullseye-updates", "bookworm", "bookworm-updates", "bookworm-backports",
	"trixie", "trixie-updates", "trixie-backports", "forky", "sid",
}

var securitySuites = []string{"bullseye-security", "bookworm-security", "trixie-security"}

// archive is a private apt: its own sources, lists, cache and package database.
// It is used to look up and to download, never to install: apt would hand its
// choice to the machine's dpkg, private configuration or not.
type archive struct {
	dir    string
	arch   string
	mirror Mirror
}

// listsMaxAge is how old package lists may be before they are fetched again.
const listsMaxAge = 24 * time.Hour

// openArchive prepares the private apt for one architecture ("amd64", "arm64").
// The lists are fetched when they are absent, older than a day, or refresh is set.
func openArchive(ctx context.Context, cache, arch string, m Mirror, refresh bool) (*archive, error) {
	a := &archive{dir: filepath.Join(cache, "apt-"+arch), arch: arch, mirror: m}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	stamp := filepath.Join(a.dir, "updated")
	if fi, err := os.Stat(stamp); err == nil && !refresh && time.Since(fi.ModTime()) < listsMaxAge {
		return a, nil
	}
	if err := a.configure(a.suitesHeld(ctx)); err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, "apt-get", "-q", "update"); err != nil {
		return nil, err
	}
	return a, os.WriteFile(stamp, nil, 0o644)
}

type suite struct{ base, name string }

// suitesHeld tries each suite by itself, because one absent suite makes apt fail
// for all. Each try fetches one small file.
func (a *archive) suitesHeld(ctx context.Context) []suite {
	var want, held []suite
	for _, s := range kernelSuites {
		want = append(want, suite{a.mirror.Archive, s})
	}
	if a.mirror.Security != "" {
		for _, s := range securitySuites {
			want = append(want, suite{a.mirror.Security, s})
		}
	}
	if err := a.configure(want); err != nil {
		return want
	}
	out, _ := a.run(ctx, "apt-get", "-q", "update")
	for _, s := range want {
		// "Err:16 http://... bullseye-backports Release": apt says so itself.
		if !bytes.Contains(out, []byte(" "+s.name+" Release' ")) {
			held = append(held, s)
		}
	}
	return held
}

func (a *archive) configure(suites []suite) error {
	var src strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&src, "deb [arch=%s signed-by=%s] %s %s main\n", a.arch, a.mirror.Keyring, s.base, s.name)
	}
	conf := strings.Join([]string{
		"#clear APT::Update::Post-Invoke;",
		"#clear APT::Update::Post-Invoke-Success;",
		"#clear Acquire::IndexTargets::deb::DEP-11;",
		`Dir::State "` + a.dir + `/state/";`,
		`Dir::State::status "` + a.dir + `/status";`,
		`Dir::Cache "` + a.dir + `/cache/";`,
		`Dir::Etc::sourcelist "` + a.dir + `/etc/sources.list";`,
		`Dir::Etc::sourceparts "-";`,
		`Dir::Etc::preferencesparts "-";`,
		`Dir::Bin::dpkg "/bin/false";`, // whatever happens: nothing gets installed
		`#clear APT::Architectures;`,
		`APT::Architecture "` + a.arch + `";`,
		`APT::Architectures { "` + a.arch + `"; };`,
		`APT::Sandbox::User "root";`,
		`Acquire::Languages "none";`,
		`Acquire::Retries "3";`,
		`Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";`,
		`Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";`,
	}, "\n") + "\n"
	for name, text := range map[string]string{"status": "", "apt.conf": conf, "etc/sources.list": src.String()} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// run starts one apt program under the private configuration. The output holds
// both streams, also when it fails.
func (a *archive) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C")
	cmd.Dir = filepath.Join(a.dir, "cache", "archives")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(out.Bytes(), 2000))
	}
	return out.Bytes(), nil
}

// packages lists the names that begin with prefix.
func (a *archive) packages(ctx context.Context, prefix string) ([]string, error) {
	out, err := a.run(ctx, "apt-cache", "pkgnames", prefix)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(out)), nil
}

// download fetches one package, checked by apt against the signed lists, and
// returns the file. A file that is there already is not fetched again.
func (a *archive) download(ctx context.Context, name string) (string, error) {
	if _, err := a.run(ctx, "apt-get", "-q", "download", name); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(a.dir, "cache", "archives", name+"_*.deb"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("package %q was downloaded but is not there (%v)", name, err)
	}
	newest, when := "", time.Time{}
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil && (newest == "" || fi.ModTime().After(when)) {
			newest, when = f, fi.ModTime()
		}
	}
	return newest, nil
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}
