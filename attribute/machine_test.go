package attribute

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What Proxmox, LXD and Incus know of their machines is in files.
func TestMachineNames(t *testing.T) {
	files := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		mkdir(t, files, filepath.Dir(name))
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/pve/qemu-server/103.conf", "#name: comment\nboot: order=scsi0\nname: web\nscsi0: local:vm-103,size=8G\n[before]\nname: old\n")
	write("etc/pve/qemu-server/105.conf", "cores: 2\n[snap]\nname: old\n")
	write("etc/pve/lxc/104.conf", "arch: amd64\nhostname: db\n")
	write("var/lib/lxc/web_app/config", "")
	mkdir(t, files, "var/lib/incus/containers/web_app") // both: the plain one is meant
	mkdir(t, files, "var/snap/lxd/common/lxd/logs/shop_web1")
	mkdir(t, files, "run/incus/bank_web1")
	mkdir(t, files, "var/lib/incus/containers/a_b_c")

	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), OnlyListedSockets: true, root: files})
	r.Start(context.Background())
	type names struct{ name, project, rule string }
	for path, want := range map[string]names{
		"/qemu.slice/103.scope":               {"web", "", ""},
		"/qemu.slice/105.scope":               {"105", "", ""},
		"/qemu.slice/106.scope":               {"106", "", ""}, // no configuration
		"/lxc/104/ns/system.slice/db.service": {"db", "", ""},
		"/lxc.payload.web_app":                {"web_app", "", ""},
		"/lxc.payload.other_app":              {"other_app", "", ""}, // no file says that it is LXD's
		"/lxc.payload.shop_web1":              {"web1", "shop", RuleLXD},
		"/lxc.payload.bank_web1":              {"web1", "bank", RuleLXD},
		"/lxc.payload.a_b_c":                  {"a_b_c", "", ""},
		"/lxc.payload._x":                     {"_x", "", ""},
		// A user's and a container's own numbers are others.
		"/user.slice/user-1000.slice/user@1000.service/qemu.slice/103.scope": {"103", "", ""},
		"/lxc.payload.web1/lxc/104": {"104", "", ""},
	} {
		id := uint64(len(path)+1)<<32 + uint64(len(path))
		r.CgroupCreated(id, path)
		get := func() names {
			o := r.Owner(id)
			return names{o.ContainerName, o.Project, o.ProjectRule}
		}
		get()
		poll(t, path+" is "+want.name, func() bool { return get() == want })
		r.CgroupRemoved(id, path)
	}
}

// A configuration that cannot be read delays nothing: the number is shown. A machine that
// was removed keeps its name.
func TestMachineNamesNeverWait(t *testing.T) {
	files := t.TempDir()
	mkdir(t, files, "etc/pve/qemu-server")
	if err := unix.Mkfifo(filepath.Join(files, "etc/pve/qemu-server/103.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClock()
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), OnlyListedSockets: true, root: files, now: c.now})
	r.Start(context.Background())
	r.CgroupCreated(7, "/qemu.slice/103.scope")
	for range 100 {
		if o := r.Owner(7); o.ContainerName != "103" {
			t.Fatalf("got %+v", o)
		}
	}
	fifo, err := os.OpenFile(filepath.Join(files, "etc/pve/qemu-server/103.conf"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fifo.WriteString("name: slow\n"); err != nil {
		t.Fatal(err)
	}
	if err := fifo.Close(); err != nil {
		t.Fatal(err)
	}
	poll(t, "named", func() bool { return r.Owner(7).ContainerName == "slow" })
	if err := os.RemoveAll(filepath.Join(files, "etc")); err != nil {
		t.Fatal(err)
	}
	c.advance(time.Hour)
	r.Owner(7)
	poll(t, "asked again", func() bool { return len(r.machines.todo) == 0 })
	if o := r.Owner(7); o.ContainerName != "slow" {
		t.Errorf("its name is forgotten: %+v", o)
	}
}
