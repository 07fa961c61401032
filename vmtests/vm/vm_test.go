package vm

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

func TestParseTargets(t *testing.T) {
	for _, tt := range []struct {
		name, out string
		want      Mirror
	}{
		{"debian", "http://a.example/debian/ bookworm\nhttp://a.example/debian/ bookworm-updates\nhttp://s.example/sec/ bookworm-security\n",
			Mirror{Archive: "http://a.example/debian", Security: "http://s.example/sec"}},
		{"third parties first", "https://other.example/apt stable-thing\nhttps://x.example nodistro\nhttp://a.example/debian trixie\n",
			Mirror{Archive: "http://a.example/debian"}},
		{"ubuntu", "http://u.example/ubuntu/ noble\nhttp://u.example/ubuntu/ noble-security\n", Mirror{}},
		{"nothing", "", Mirror{}},
		{"noise", "\n \nbookworm\n", Mirror{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseTargets(tt.out); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestCandidates(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-amd64", "linux-image-6.1-cloud-amd64",
		"linux-image-6.1.0-0.deb11.52-cloud-amd64", "linux-image-6.12.100+deb13-cloud-amd64", "linux-image-6.12.95+deb13-cloud-amd64",
		"linux-image-6.12.95+deb13-cloud-amd64-dbg", "linux-image-6.12.95+deb13-cloud-arm64", "linux-image-6.12.95+deb13-arm64-16k", "linux-image-6.12.95+deb13-rt-amd64",
		// split packages: 7.2.13 lost its modules, 7.2.12 is whole
		"linux-image-7.2.13+deb14-cloud-amd64", "linux-base-7.2.13+deb14-cloud-amd64", "linux-binary-7.2.13+deb14-cloud-amd64",
		"linux-image-7.2.12+deb14-cloud-amd64", "linux-base-7.2.12+deb14-cloud-amd64", "linux-binary-7.2.12+deb14-cloud-amd64", "linux-modules-7.2.12+deb14-cloud-amd64",
	}
	// Numbers compare as Debian compares them: 100 is after 95, 56 after 9.
	newer := func(a, b string) bool { return len(a) > len(b) || len(a) == len(b) && a > b }
	for _, tt := range []struct {
		series, flavour, arch string
		want                  []string
	}{
		{"6.1", Cloud, "amd64", []string{"6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"}},
		{"6.12", Cloud, "amd64", []string{"6.12.100+deb13-cloud-amd64", "6.12.95+deb13-cloud-amd64"}},
		{"6.12", Cloud, "arm64", []string{"6.12.95+deb13-cloud-arm64"}},
		{"7.2", Cloud, "amd64", []string{"7.2.12+deb14-cloud-amd64"}},
		{"5.10", Cloud, "amd64", nil},
		{"6.1", Generic, "amd64", []string{"6.1.0-56-amd64"}},
		{"6.12", Generic, "amd64", nil},
		{"6.12", Pages16, "arm64", []string{"6.12.95+deb13-arm64-16k"}},
		{"6.12", RT, "amd64", []string{"6.12.95+deb13-rt-amd64"}},
	} {
		if got := candidates(tt.series, tt.flavour, tt.arch, names, newer); !slices.Equal(got, tt.want) {
			t.Errorf("%s %q %s: got %q, want %q", tt.series, tt.flavour, tt.arch, got, tt.want)
		}
	}
}

func TestSplitSeries(t *testing.T) {
	for release, want := range map[string]bool{
		"5.10.0-46-cloud-amd64": false, "6.1.0-56-cloud-amd64": false, "6.12.117+deb13-cloud-amd64": false, "6.18.15+deb13-cloud-amd64": false,
		"6.19.14+deb13-cloud-amd64": true, "7.0.13+deb13-cloud-amd64": true, "7.3.4+deb13-cloud-amd64": true, "10.1.2-cloud-amd64": true,
	} {
		if got := series619.MatchString(release); got != want {
			t.Errorf("%s: split %v, want %v", release, got, want)
		}
	}
}

func TestTrouble(t *testing.T) {
	for _, tt := range []struct {
		line string
		want bool
	}{
		{"[    3.141592] WARNING: CPU: 0 PID: 1 at kernel/bpf/core.c:12 foo+0x1/0x2", true},
		{"[    3.141592][  T123] WARNING: kernel/bpf/core.c:12 at foo+0x1/0x2, CPU#0", true},
		{"[    0.100000] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on", false},
		{"[    3.141592] BUG: kernel NULL pointer dereference, address: 0000000000000000", true},
		{"[    3.141592] BUG: unable to handle page fault for address: ffff", true},
		{"[    3.141592] Oops: 0000 [#1] SMP", true},
		{"[    3.141592] general protection fault, probably for non-canonical address", true},
		{"[   90.000000] rcu: INFO: rcu_preempt self-detected stall on CPU", true},
		{"[   90.000000] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", true},
		{"[   90.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 120s!", true},
		{"[  120.000000] INFO: task kworker/0:1:12 blocked for more than 120 seconds.", true},
		{"[    3.141592] Kernel panic - not syncing: Fatal exception", true},
		{"[    3.141592] EXT4-fs error (device nvme1n1): ext4_lookup:1234: bad inode", true},
		{"[    3.141592] EXT4-fs (nvme0n1): mounted filesystem without journal", false},
		{"[    3.141592] ------------[ cut here ]------------", true},
		{"[    3.141592] rcu: Hierarchical RCU implementation.", false},
		{"[    3.141592] refcount_t: underflow; use-after-free.", true},
		{"workload_test.go:12: WARNING is not the kernel's", false},
		{"", false},
	} {
		if got := len(Trouble([]byte("boot\r\n"+tt.line+"\r\nend\r\n"))) > 0; got != tt.want {
			t.Errorf("%q: %v, want %v", tt.line, got, tt.want)
		}
	}
}

func TestArgs(t *testing.T) {
	dir := t.TempDir()
	g := Guest{Kernel: Kernel{Arch: "amd64", Image: "k", Modules: "m,odd"}, Root: "r", Initramfs: "i", MemoryMiB: 512, DiskMiB: 3, Accel: TCG, Append: []string{"a=b"}}
	args, err := g.args(dir)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(args, " ")
	// cx16=off is what keeps 6.12 guests from corrupting themselves.
	for _, want := range []string{"max,cx16=off", "-nic none", "-no-reboot", "file=m,,odd", "snapshot=on", "panic=-1", "a=b", "serial=" + SerialRoot} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %s", want, line)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, SerialNVMe+".raw"))
	if err != nil || fi.Size() != 3<<20 {
		t.Errorf("scratch disk: %v, %v", fi, err)
	}
	g.Kernel.Arch = "arm64"
	if args, err = g.args(dir); err != nil || !strings.Contains(strings.Join(args, " "), "console=ttyAMA0") {
		t.Errorf("arm64: %v %v", args, err)
	}
	if _, err := program("mips"); err == nil {
		t.Error("there is a QEMU for an architecture that nothing else knows")
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, []byte("#!program"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "initramfs")
	if err := WriteInitramfs(out, map[string]string{"init": src}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := cpio.NewReader(f)
	found := false
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "init" {
			b, _ := io.ReadAll(r)
			found = string(b) == "#!program" && h.Mode.Perm() == 0o755
		}
	}
	if !found {
		t.Error("the archive has no executable /init with the program's bytes")
	}
	if err := WriteInitramfs(out, map[string]string{"init": src + "-absent"}); err == nil {
		t.Error("an absent program was no error")
	}
}

func TestImageKey(t *testing.T) {
	a := Image{Name: "base", Suite: "bookworm", Packages: []string{"bash"}, Files: map[string]string{"etc/passwd": "root"}}
	same, b := a, a
	b.Files = map[string]string{"etc/passwd": "other"}
	if a.key("amd64") == b.key("amd64") || a.key("amd64") == a.key("arm64") || same.key("amd64") != a.key("amd64") {
		t.Error("an image's name does not follow its contents")
	}
}

// TestLockCache asks for the lock as another process would, while it is held and after.
func TestLockCache(t *testing.T) {
	dir := t.TempDir()
	unlock, err := LockCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("locked by two: %v", err)
	}
	unlock()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("still locked: %v", err)
	}
}

// TestExt4Image makes the same image twice: it must be the same, bit by bit.
func TestExt4Image(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "sub", "file"), []byte(strings.Repeat("x", 100_003)), 0o644); err != nil {
		t.Fatal(err)
	}
	var images [2][]byte
	for i := range images {
		file := filepath.Join(dir, "image")
		if err := ext4Image(t.Context(), tree, file, 1); err != nil {
			t.Fatal(err)
		}
		var err error
		if images[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(images[0], images[1]) {
		t.Error("two images of one tree differ")
	}
}
