//go:build integration

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packages makes the packages for amd64 as a release does, from one commit, and returns
// their directory.
func packages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(filepath.Join(tree, "packaging", "package.sh"), "v0.9.0-rc1", dir)
	cmd.Env = append(os.Environ(), "ARCHS=amd64", "SOURCE_DATE_EPOCH=1790000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return dir
}

// TestPackages: the same commit gives the same bytes; deb, rpm and tarball hold the same
// files, and the scripts of the rpm run.
func TestPackages(t *testing.T) {
	dir, again := packages(t), packages(t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		one, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if other, err := os.ReadFile(filepath.Join(again, e.Name())); err != nil || !bytes.Equal(one, other) {
			t.Errorf("%s is not the same when it is made again: %v", e.Name(), err)
		}
	}
	const deb, rpm = "iotrace-bpf_0.9.0~rc1_amd64.deb", "iotrace-bpf-0.9.0~rc1-1.x86_64.rpm"
	const tarball, sbom = "iotrace-bpf-0.9.0~rc1-linux-amd64.tar.gz", "iotrace-bpf-0.9.0~rc1-linux-amd64.cdx.json"
	want := []string{"SHA256SUMS", rpm, sbom, tarball, deb}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Fatalf("made are %q, want %q", names, want)
	}
	sums := exec.Command("sha256sum", "--strict", "--check", "SHA256SUMS")
	sums.Dir = dir
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, sbom)); err != nil || !bytes.Contains(text, []byte("pkg:golang/github.com/cilium/ebpf@")) {
		t.Errorf("the SBOM does not list the modules: %v", err)
	}

	unpacked := t.TempDir()
	mustRun(t, "dpkg-deb", "--extract", filepath.Join(dir, deb), filepath.Join(unpacked, "deb"))
	if err := os.Mkdir(filepath.Join(unpacked, "rpm"), 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "sh", "-c", fmt.Sprintf("cd %q && rpm2cpio %q | cpio --quiet --no-absolute-filenames -idm", filepath.Join(unpacked, "rpm"), filepath.Join(dir, rpm)))
	mustRun(t, "tar", "-C", unpacked, "-xf", filepath.Join(dir, tarball))
	program := map[string]string{
		"deb": "deb/usr/bin/iotrace-bpf", "rpm": "rpm/usr/bin/iotrace-bpf", "tarball": strings.TrimSuffix(tarball, ".tar.gz") + "/iotrace-bpf",
	}
	for kind, path := range program {
		if out := mustRun(t, filepath.Join(unpacked, path), "version"); !strings.Contains(out, "v0.9.0-rc1") {
			t.Errorf("version of the program in the %s: %q", kind, out)
		}
	}
	for _, file := range []string{
		"usr/lib/systemd/system/iotrace-bpf.service", "etc/default/iotrace-bpf", "usr/share/man/man1/iotrace-bpf.1.gz",
		"usr/share/bash-completion/completions/iotrace-bpf", "usr/share/fish/vendor_completions.d/iotrace-bpf.fish",
		"usr/share/iotrace-bpf/grafana/iotrace.json", "usr/share/doc/iotrace-bpf/copyright", "usr/share/doc/iotrace-bpf/examples/ship.conf",
	} {
		if out, err := exec.Command("cmp", filepath.Join(unpacked, "deb", file), filepath.Join(unpacked, "rpm", file)).CombinedOutput(); err != nil {
			t.Errorf("deb and rpm differ: %s", out)
		}
	}

	// The rpm in a root of its own, with its scripts: install, upgrade over itself, erase.
	root := rpmRoot(t)
	rpmRun := func(args ...string) {
		t.Helper()
		mustRun(t, "rpm", append([]string{"--root", root, "--nodeps"}, args...)...)
	}
	rpmRun("--install", filepath.Join(dir, rpm))
	config := filepath.Join(root, "etc/default/iotrace-bpf")
	if err := os.WriteFile(config, []byte("IOTRACE_INTERVAL=1s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rpmRun("--upgrade", "--force", filepath.Join(dir, rpm))
	if text, err := os.ReadFile(config); err != nil || string(text) != "IOTRACE_INTERVAL=1s\n" {
		t.Errorf("the upgrade changed the configuration: %q, %v", text, err)
	}
	rpmRun("--erase", "iotrace-bpf")
	log, err := os.ReadFile(filepath.Join(root, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	const calls = `daemon-reload
try-restart iotrace-bpf.service
daemon-reload
try-restart iotrace-bpf.service
daemon-reload
disable --now iotrace-bpf.service
daemon-reload
reset-failed iotrace-bpf.service
`
	if string(log) != calls {
		t.Errorf("the scripts called systemctl with\n%s\nwant\n%s", log, calls)
	}
	left, err := exec.Command("find", root, "-name", "*iotrace*", "-not", "-name", "*.rpmsave").Output()
	if err != nil || len(left) > 0 {
		t.Errorf("left after the removal: %s %v", left, err)
	}
}

// rpmRoot is a root directory with a shell, a systemctl that writes down its arguments,
// and a running systemd as the scripts see it.
func rpmRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "usr/bin", "run/systemd/system", "var/lib/rpm", "tmp", "etc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"bin/sh": busybox, "bin/systemctl": []byte("#!/bin/sh\necho \"$@\" >>/calls\n"), "dev/null": nil,
	} {
		if err := os.WriteFile(filepath.Join(root, name), body, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "rpm", "--root", root, "--initdb")
	return root
}
