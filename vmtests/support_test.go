//go:build vm

package vmtests

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/guest"
	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

var flagSupport = flag.Bool("support", false, "boot nothing, only compare the declarations of scenarios with "+supportFile)

// supportFile is the table of kernels for users. Every suite owns the section
// named after its source: it holds what the suite declares and what
// iotrace-bpf check said on each kernel, so a claim in it is a test that ran.
const supportFile = "SUPPORT.md"

// checkDir has what iotrace-bpf check said, by line of the matrix.
const checkDir = "testdata/check"

// TestCheck asks the tracer in every guest what it found and chose, with the
// modules of the sources loaded. Cloud kernels have no 9p.
func TestCheck(t *testing.T) {
	s := suite{scenarios: []scenario{{name: "check", run: runCheck, smoke: true}}}
	if guest.Inside() {
		s.test(t)
		return
	}
	if *flagSupport {
		t.Skip("boots guests")
	}
	t.Parallel()
	kernels, err := selected()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			o := s.boot(t, k)
			if o == nil || t.Failed() {
				return
			}
			checkRecorded(t, k, o.tests["check"].output.String())
		})
	}
}

const checkMark = "iotrace-check: "

func runCheck(g *guest.Guest) {
	g.Modprobe("fuse", "nfs", "nfsv3", "nfsv4", "cifs", "ceph", "vxlan")
	if !strings.Contains(g.Exec("uname", "-r"), "-cloud-") {
		g.Modprobe("9p")
	}
	for _, line := range strings.Split(strings.TrimRight(g.Tracer("check"), "\n"), "\n") {
		g.Log(checkMark + line)
	}
}

// checkRecorded compares the lines that say what was chosen; sockets and exact
// versions differ without meaning anything. A source without its module has no line:
// where one was recorded, it is missed.
func checkRecorded(t *testing.T, k Kernel, output string) {
	var lines []string
	for _, line := range strings.Split(output, "\n") {
		_, text, ok := strings.Cut(line, checkMark)
		f := strings.Fields(text)
		if !ok || len(f) < 2 {
			continue
		}
		if f[0] == "cgroups" || f[0] == "source" && len(f) > 2 && f[2] != "absent:" && f[2] != "waiting:" {
			lines = append(lines, strings.Join(f, " "))
		}
	}
	if len(lines) < 2 {
		t.Fatalf("check named no source:\n%s", output)
	}
	got, file := strings.Join(lines, "\n")+"\n", filepath.Join(checkDir, k.Name+".txt")
	want, err := os.ReadFile(file)
	if *flagUpdate {
		err = os.WriteFile(file, []byte(got), 0o644)
		want = []byte(got)
	}
	if errors.Is(err, fs.ErrNotExist) && k.Flavour != vm.Cloud {
		t.Logf("nothing is recorded for this kernel yet (-update records it):\n%s", got)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("iotrace-bpf check says\n%sand %s has\n%s(-update rewrites it)", got, file, want)
	}
}

// hook is what check said about a source on a kernel.
func hook(k Kernel, source string) string {
	b, err := os.ReadFile(filepath.Join(checkDir, k.Name+".txt"))
	if err != nil {
		return "?"
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "source "+source+" "); ok {
			return rest
		}
	}
	return "?"
}

// section renders the table of a source.
func (s suite) section() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| kernel | cgroups | hooks that were chosen | scenarios | not there |\n|---|---|---|---|---|\n")
	for _, k := range Matrix() {
		if _, err := os.Stat(filepath.Join(checkDir, k.Name+".txt")); s.flavour == "" && (k.Flavour != vm.Cloud || k.Asked && err != nil) {
			continue // never looked at as a whole
		}
		if !s.hasModules(k) {
			continue
		}
		var ran int
		var not []string
		for _, sc := range s.scenarios {
			if sc.supports(k) {
				ran++
			} else if !k.Smoke || sc.smoke {
				why := sc.why
				if why == "" {
					why = "since " + sc.since
				}
				not = append(not, sc.name+" ("+why+")")
			}
		}
		h := hook(k, cmp.Or(s.hooks, s.source))
		scenarios := fmt.Sprint(ran)
		if k.Smoke {
			scenarios += " of " + fmt.Sprint(len(s.scenarios))
		}
		if k.Asked {
			scenarios += ", on demand"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", k.Name, k.Cgroup, h, scenarios, strings.Join(not, "; "))
	}
	return b.String()
}

// checkSection holds the suite's section of the table against the declarations.
func (s suite) checkSection(t *testing.T) {
	if s.source == "" {
		return
	}
	if err := s.updateSection(*flagUpdate); err != nil {
		t.Errorf("%v (-args -support -update rewrites it)", err)
	}
}

func (s suite) updateSection(write bool) error {
	text, err := os.ReadFile(supportFile)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+s.source+": written by go test -args -support -update -->\n", "<!-- end of "+s.source+" -->\n"
	re := regexp.MustCompile(`(?s)` + regexp.QuoteMeta(begin) + `.*?` + regexp.QuoteMeta(end))
	now := begin + s.section() + end
	if old := re.FindString(string(text)); old == now {
		return nil
	} else if !write {
		return fmt.Errorf("%s: section %q is not what the suite declares", supportFile, s.source)
	} else if old != "" {
		text = []byte(strings.Replace(string(text), old, now, 1))
	} else {
		text = append(text, "\n## "+s.source+"\n\n"+now...)
	}
	return os.WriteFile(supportFile, text, 0o644)
}

// TestSourcesAreTested: every source that has a BPF program has scenarios and a section.
func TestSourcesAreTested(t *testing.T) {
	if guest.Inside() {
		t.Fatal("this is for the host")
	}
	text, err := os.ReadFile(supportFile)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../bpf/*/*.bpf.c")
	if err != nil || len(files) == 0 {
		t.Fatalf("no BPF programs: %v", err)
	}
	for _, f := range files {
		source := strings.TrimSuffix(filepath.Base(f), ".bpf.c")
		if filepath.Base(filepath.Dir(f)) == "core" {
			continue // what all sources share
		}
		if _, err := os.Stat(source + "_test.go"); err != nil {
			t.Errorf("%s has no %s_test.go here", f, source)
		}
		if !strings.Contains(string(text), "\n## "+source+"\n") {
			t.Errorf("%s has no section %q", supportFile, source)
		}
	}
}

// TestDepsScript checks the list of dependencies without installing any.
func TestDepsScript(t *testing.T) {
	if out, err := exec.Command("sh", "-n", "deps.sh").CombinedOutput(); err != nil {
		t.Errorf("deps.sh: %v\n%s", err, out)
	}
	if out, err := exec.Command("sh", "deps.sh", "nothing").CombinedOutput(); err == nil || !strings.Contains(string(out), "usage:") {
		t.Errorf("deps.sh accepts an unknown word: %v %s", err, out)
	}
}
