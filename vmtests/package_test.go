//go:build vm

package vmtests

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// packageTag is the share that holds what a release has, for the guest to install.
const packageTag = "package"

// packageShare makes the package as a release does. What makes and describes the image
// lies beside it; for the scenario of the image also the pod of kubectl debug.
func packageShare(t *testing.T, image bool) vm.Share {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("../packaging/package.sh", "v0.9.0", dir)
	cmd.Env = append(os.Environ(), "ARCHS=amd64", "FORMATS=deb")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	for _, part := range []string{"../packaging/Dockerfile", "../packaging/README.md", "../packaging/kubernetes", "/etc/ssl/certs/ca-certificates.crt"} {
		if out, err := exec.Command("cp", "-RL", part, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	context := filepath.Join(dir, "image") // what the image is built from, as image.sh has it
	if err := os.Mkdir(context, 0o755); err != nil {
		t.Fatal(err)
	}
	unpack := fmt.Sprintf("tar -C %q --strip-components=1 -xzf %q/*.tar.gz && mv %[2]q/ca-certificates.crt %[1]q/", context, dir)
	if out, err := exec.Command("sh", "-c", unpack).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", unpack, err, out)
	}
	if image {
		recordDebugPod(t, dir)
	}
	return vm.Share{Tag: packageTag, Dir: dir}
}

const (
	packagedUnit    = "iotrace-bpf.service"
	packagedProgram = "/usr/bin/iotrace-bpf"
	packagedState   = "/var/lib/iotrace-bpf"
	packagedReady   = packagedState + "/ready"
)

// runtimePackage installs the package as an administrator does. systemd starts its
// unit, which records a known load as a user of its own; it survives a kill, a restart
// and an upgrade, and nothing is left of it in the end.
func runtimePackage(g *guest.Guest) {
	g.Modprobe("virtiofs")
	share := g.TempDir()
	g.Mount("virtiofs", packageTag, share, "")
	found, err := filepath.Glob(filepath.Join(share, "*.deb"))
	if err != nil || len(found) != 1 {
		g.Fatalf("packages: %q, %v", found, err)
	}
	before := packageLeftovers(g)
	g.Exec("dpkg", "--install", found[0])
	g.Cleanup(func() {
		if g.Failed() {
			out, _ := g.Try("journalctl", "--no-pager", "--lines=60", "--unit", packagedUnit)
			g.Logf("journal of the unit:\n%s", out)
		}
	})
	if out, _ := g.Try("systemctl", "is-enabled", packagedUnit); strings.TrimSpace(out) != "disabled" {
		g.Errorf("after the installation the unit is %q", out)
	}
	if out, _ := g.Try("systemctl", "is-active", packagedUnit); strings.TrimSpace(out) != "inactive" {
		g.Errorf("after the installation the unit is %q", out)
	}
	if out := g.Exec(packagedProgram, "version"); !strings.Contains(out, "v0.9.0") {
		g.Errorf("version: %q", out)
	}
	// A change of the conffile must outlive an upgrade.
	const config = "IOTRACE_INTERVAL=1s\nIOTRACE_BY=cgroup,device\nIOTRACE_READY_FILE=" + packagedReady + "\n"
	g.WriteFile("/etc/default/iotrace-bpf", config)

	g.Exec("systemctl", "enable", "--now", packagedUnit)
	pid := packagedRuns(g, "0")
	status := g.ReadFile("/proc/" + pid + "/status")
	if field(status, "Uid:") == "0" || field(status, "CapBnd:") != "000000c000000004" { // CAP_BPF, CAP_PERFMON, CAP_DAC_READ_SEARCH
		g.Errorf("the process has:\n%s", status)
	}
	disk := g.NVMe()
	var expect int64

	// A kill, a restart and an upgrade: each continues with a new process. So do the examples
	// of drop-ins, and the unit without them.
	steps := []string{"kill", "dropins", "restart", "upgrade"}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"kill", func() { g.Exec("systemctl", "kill", "--signal", "KILL", packagedUnit) }},
		{"dropins", func() { packagedDropIns(g) }},
		{"restart", func() {
			packagedOutputs(g)
			g.Exec("rm", "-r", packagedDropInDir, packagedKey)
			g.Exec("systemctl", "daemon-reload")
			g.Exec("systemctl", "restart", packagedUnit)
		}},
		{"upgrade", func() { g.Exec("dpkg", "--install", newerPackage(g, found[0])) }},
	} {
		if err := os.Remove(packagedReady); err != nil {
			g.Fatal(err)
		}
		step.do()
		pid = packagedRuns(g, pid)
		expect += packagedLoad(g, disk, step.name, 509)
	}
	if got := g.ReadFile("/etc/default/iotrace-bpf"); got != config {
		g.Errorf("the upgrade changed /etc/default/iotrace-bpf: %q", got)
	}
	if out := g.Exec("dpkg-query", "--show", "--showformat", "${Version}", "iotrace-bpf"); out != "99.0.0" {
		g.Errorf("installed is %q", out)
	}
	g.Exec("dpkg", "--remove", "iotrace-bpf") // while it runs
	if out, _ := g.Try("systemctl", "is-active", packagedUnit); strings.TrimSpace(out) != "inactive" {
		g.Errorf("after the removal the unit is %q", out)
	}
	// Only a purge may take the recording.
	rows, err := guest.ParseOutput([]byte(g.Tracer("replay", packagedState+"/recording", "--by", "cgroup,device", "--output", "ndjson")))
	if err != nil {
		g.Fatal(err)
	}
	var written int64
	for _, step := range steps {
		written += rows.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", disk.ID(),
			"iotrace.cgroup.path", "/system.slice/"+packagedLoadUnit(step))
	}
	all := rows.Sum("iotrace.write.bytes", "iotrace.source", "block", "iotrace.device.id", disk.ID())
	if written != expect || all != expect {
		g.Errorf("in the recording the writers have %d bytes and the disk %d, want %d", written, all, expect)
	}
	g.Exec("dpkg", "--purge", "iotrace-bpf")
	if after := packageLeftovers(g); after != before {
		g.Errorf("left after the purge:\n%s\nbefore the installation:\n%s", after, before)
	}
	if out := g.Exec("systemctl", "list-units", "--all", "--plain", "--no-legend", packagedUnit); out != "" {
		g.Errorf("systemd still knows %s", out)
	}
}

const (
	packagedDropInDir = "/etc/systemd/system/" + packagedUnit + ".d"
	packagedKey       = "/etc/iotrace-bpf"
)

// packagedDropIns does what the examples of drop-ins say, with the address of a server that
// does not answer.
func packagedDropIns(g *guest.Guest) {
	g.Helper()
	g.Exec("mkdir", "-p", packagedDropInDir)
	g.Exec("install", "-d", "-m", "0700", packagedKey)
	g.WriteFile(packagedKey+"/api-key", "bm90OmFrZXk=\n")
	g.Exec("chmod", "0600", packagedKey+"/api-key")
	for _, name := range []string{"prometheus.conf", "ship.conf"} {
		text := g.ReadFile("/usr/share/doc/iotrace-bpf/examples/" + name)
		g.WriteFile(packagedDropInDir+"/"+name, strings.ReplaceAll(text, "elastic.example.com", "192.0.2.10"))
	}
	g.Exec("systemctl", "daemon-reload")
	g.Exec("systemctl", "restart", packagedUnit)
}

// packagedOutputs proves the drop-ins: /metrics is served, and documents wait in the spool.
func packagedOutputs(g *guest.Guest) {
	g.Helper()
	g.Eventually("the unit serves /metrics", func() bool {
		resp, err := http.Get("http://127.0.0.1:9464/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(text), "\niotrace_intervals_total ")
	})
	g.Eventually("documents are in the spool", func() bool {
		var size int64
		_ = filepath.WalkDir(packagedState+"/spool", func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					size += info.Size()
				}
			}
			return nil
		})
		return size > 0
	})
}

// packagedRuns waits until the unit runs and traces, as another process than before.
func packagedRuns(g *guest.Guest, before string) string {
	g.Helper()
	pid := before
	g.Eventually("the unit traces as a new process", func() bool {
		pid = strings.TrimSpace(g.Exec("systemctl", "show", "--property", "MainPID", "--value", packagedUnit))
		_, err := os.Stat(packagedReady)
		return pid != before && pid != "0" && err == nil
	})
	return pid
}

func packagedLoadUnit(name string) string { return "load-" + name + ".service" }

// packagedLoad writes pages past the cache from a unit of its own, and returns their
// bytes, which the kernel must have counted too.
func packagedLoad(g *guest.Guest, disk guest.Disk, name string, pages int64) int64 {
	g.Helper()
	before := disk.Stats()
	g.Exec("systemd-run", "--quiet", "--wait", "--collect", "--unit", packagedLoadUnit(name),
		"dd", "if=/dev/zero", "of="+disk.Path(), "bs=4096", fmt.Sprintf("count=%d", pages), "oflag=direct")
	bytes := 4096 * pages
	if got := disk.Stats().Sub(before).WriteBytes; got != bytes {
		g.Fatalf("%s: the disk counted %d bytes, written were %d", name, got, bytes)
	}
	return bytes
}

// newerPackage is the same package with a later version.
func newerPackage(g *guest.Guest, old string) string {
	g.Helper()
	tree, file := filepath.Join(g.TempDir(), "tree"), filepath.Join(g.TempDir(), "newer.deb")
	g.Exec("dpkg-deb", "--raw-extract", old, tree)
	control := filepath.Join(tree, "DEBIAN/control")
	var lines []string
	for line := range strings.Lines(g.ReadFile(control)) {
		if strings.HasPrefix(line, "Version:") {
			line = "Version: 99.0.0\n"
		}
		lines = append(lines, line)
	}
	g.WriteFile(control, strings.Join(lines, ""))
	g.Exec("dpkg-deb", "-Znone", "--build", tree, file)
	return file
}

// packageLeftovers are the files that carry the program's name, outside of the test's
// own directories.
func packageLeftovers(g *guest.Guest) string {
	g.Helper()
	var found []string
	for _, top := range []string{"/etc", "/usr", "/var", "/run"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.Contains(d.Name(), "iotrace-bpf") && !strings.HasPrefix(path, "/var/lib/dpkg/") {
				found = append(found, path)
			}
			return nil
		})
		if err != nil {
			g.Fatal(err)
		}
	}
	return strings.Join(found, "\n")
}

// field returns the first word after a name in the lines of /proc/PID/status.
func field(status, name string) string {
	_, rest, _ := strings.Cut("\n"+status, "\n"+name)
	if f := strings.Fields(rest); len(f) > 0 {
		return f[0]
	}
	return ""
}
