package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// wordInit on the kernel's command line names the program that is to be PID 1:
// "systemd", or init itself without it.
const wordInit = "iotrace.init"

// SystemdInit is the word for the command line that has a guest run its tests as
// a unit of systemd, which is PID 1 and owns the cgroups.
const SystemdInit = wordInit + "=systemd"

// envUnit marks the process that systemd starts to run the tests.
const envUnit = "IOTRACE_TEST_UNIT"

const systemdFile = "/usr/lib/systemd/systemd"

// testUnit runs the tests in a cgroup of its own, as any service.
const testUnit = `[Unit]
Description=tests of iotrace-bpf
Wants=dbus.socket
After=basic.target dbus.socket
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardOutput=journal+console
StandardError=journal+console
Environment=` + envUnit + `=1 ` + envInside + `=1 HOME=/root TERM=linux LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=` + testsPath + `
`

// testTarget is the target that systemd must reach: a basic system and the tests. A
// machine that cannot reach it powers off without results and has failed.
const testTarget = `[Unit]
Description=tests of iotrace-bpf
Requires=basic.target iotrace-tests.service
After=basic.target
AllowIsolate=yes
OnFailure=poweroff.target
OnFailureJobMode=replace-irreversibly
`

// becomeSystemd replaces this process, PID 1, by systemd. It returns only on
// failure.
func becomeSystemd() error {
	const units = "/etc/systemd/system"
	for name, text := range map[string]string{"iotrace-tests.service": testUnit, "iotrace.target": testTarget} {
		if err := os.MkdirAll(units, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	err := unix.Exec(systemdFile, []string{"systemd", "--unit=iotrace.target", "--show-status=false", "--log-level=warning"},
		[]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=linux"})
	return fmt.Errorf("exec %q: %w", systemdFile, err)
}

// testsUnit is the service: it runs the tests, reports and ends the machine.
func testsUnit() {
	err := serviceTests()
	if err != nil {
		fmt.Fprintf(os.Stderr, "tests: %v\n", err)
	}
	syscall.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1)
}

func serviceTests() error {
	os.Unsetenv(envUnit)
	if err := os.WriteFile("/proc/sys/vm/dirty_writeback_centisecs", []byte(neverFlush), 0o644); err != nil {
		return err
	}
	words := commandLine()
	port, err := openResults()
	if err != nil {
		return err
	}
	defer port.Close()
	cmd := exec.Command(testsPath, testArgs(words[wordRun], words[wordTimeout])...)
	cmd.Stdout, cmd.Stderr = port, port
	status := 0
	if err := cmd.Run(); err != nil {
		status = 1
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			status = exit.ExitCode()
		}
	}
	if status != 0 {
		sendDmesg(port)
		if out, err := exec.Command("journalctl", "--no-pager", "--lines=60", "--priority=warning").Output(); err == nil {
			for line := range strings.Lines(string(out)) {
				fmt.Fprintf(port, "%sjournal: %s", DmesgPrefix, line)
			}
		}
	}
	_, err = fmt.Fprintf(port, "\n%s%d\n", ExitPrefix, status)
	return err
}
