//go:build vm

package vmtests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVagrantfile checks what can be checked without booting boxes: vagrant's
// own validation, or Ruby's syntax check where vagrant is not packaged.
// Providers' settings are left out: their plugins need a hypervisor.
func TestVagrantfile(t *testing.T) {
	file, err := filepath.Abs("../Vagrantfile")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "vmtests/deps.sh") {
		t.Error("the boxes do not use the one list of dependencies, vmtests/deps.sh")
	}
	cmd := exec.Command("vagrant", "validate", "--ignore-provider")
	if _, err := exec.LookPath("vagrant"); err != nil {
		cmd = exec.Command("ruby", "-c", file)
		if _, err := exec.LookPath("ruby"); err != nil {
			t.Fatal("neither vagrant nor ruby is installed: run vmtests/deps.sh test")
		}
	}
	// Vagrant writes its state beside the file or where this says.
	cmd.Env = append(os.Environ(), "VAGRANT_CWD="+filepath.Dir(file), "VAGRANT_DOTFILE_PATH="+t.TempDir(),
		"VAGRANT_HOME="+t.TempDir(), "VAGRANT_CHECKPOINT_DISABLE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}
