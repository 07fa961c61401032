package attribute

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const hostMounts = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
22 27 0:21 / /proc rw - proc proc rw
60 27 0:50 / /mnt/data rw - nfs4 nas.example:/exports/data rw,vers=4.2,rsize=1048576,addr=192.0.2.9
61 27 0:51 / /mnt/v6 rw - nfs [2001:db8::1]:/exports/v6 rw,vers=3,addr=2001:db8::1
62 27 0:52 / /var/lib/docker/volumes/shared/_data rw - nfs4 :/exports/shared rw,vers=4.1,addr=192.0.2.9
63 27 0:53 / /mnt/ssh rw - fuse.sshfs ann@host:/srv rw,user_id=0
64 27 0:54 / /var/lib/kubelet/pods/UID/volumes/kubernetes.io~csi/pvc-7/mount rw - ext4 /dev/sdb rw
65 27 0:55 / /mnt/with\040space\012line rw - fuse.glusterfs gl\011uster:/v rw
66 27 0:56 / /mnt/plain rw - fuse /dev/fuse rw
67 27 0:50 /sub /mnt/bind rw - nfs4 nas.example:/exports/data rw,vers=4.2,addr=192.0.2.9
68 27 0:57 /vol/shop /var/lib/docker/volumes/shop/_data rw - nfs4 :/vol/shop rw,vers=4.2,addr=192.0.2.9
69 27 0:57 /vol/bank /var/lib/docker/volumes/bank/_data rw - nfs4 :/vol/bank rw,vers=4.2,addr=192.0.2.9
70 27 0:57 /vol/bank/in /mnt/in rw - nfs4 :/vol/bank/in rw,vers=4.2,addr=192.0.2.9
71 27 0:58 / /mnt/whole rw - nfs nas.example:/whole rw,vers=3,addr=192.0.2.9
72 27 0:58 / /mnt/part rw - nfs nas.example:/whole/part rw,vers=3,addr=192.0.2.9
`

// mountHost returns a resolver on a host with these mounts, and its proc.
func mountHost(t *testing.T) (r *Resolver, proc, root string) {
	t.Helper()
	proc, root = t.TempDir(), t.TempDir()
	mkdir(t, proc, "1")
	text := strings.ReplaceAll(hostMounts, "UID", uidP)
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return newTestResolver(t, Options{CgroupRoot: root, ProcRoot: proc}), proc, root
}

// TestTransportOf9P: the kernel names it among the options.
func TestTransportOf9P(t *testing.T) {
	for options, want := range map[string]string{
		"rw,access=client,trans=virtio":                              "virtio",
		"rw,sync,dirsync,access=any,msize=65536,trans=tcp,port=5640": "tcp",
		"rw": "",
	} {
		got := mounted{source: "share", fstype: "9p", options: options}.mount()
		if want := (Mount{Source: "share", FSType: "9p", Transport: want}); got != want {
			t.Errorf("%s: %+v, want %+v", options, got, want)
		}
	}
}

func TestMountOfTheHost(t *testing.T) {
	r, _, _ := mountHost(t)
	for dev, want := range map[string]Mount{
		"254:0": {Source: "/dev/vda", Point: "/", FSType: "ext4"},
		"0:50":  {Source: "nas.example:/exports/data", Point: "/mnt/data", FSType: "nfs4", NFSServer: "nas.example", NFSExport: "/exports/data", NFSVersion: "4.2", NFSAddress: "192.0.2.9"},
		"0:51":  {Source: "[2001:db8::1]:/exports/v6", Point: "/mnt/v6", FSType: "nfs", NFSServer: "2001:db8::1", NFSExport: "/exports/v6", NFSVersion: "3", NFSAddress: "2001:db8::1"},
		"0:52": {Source: ":/exports/shared", Point: "/var/lib/docker/volumes/shared/_data", FSType: "nfs4", Volume: "shared",
			NFSServer: "192.0.2.9", NFSExport: "/exports/shared", NFSVersion: "4.1", NFSAddress: "192.0.2.9"},
		"0:53": {Source: "ann@host:/srv", Point: "/mnt/ssh", FSType: "fuse.sshfs", FUSESubtype: "sshfs"},
		"0:54": {Source: "/dev/sdb", Point: "/var/lib/kubelet/pods/" + uidP + "/volumes/kubernetes.io~csi/pvc-7/mount", FSType: "ext4", Volume: "pvc-7", Driver: "kubernetes.io~csi"},
		"0:55": {Source: "gl\tuster:/v", Point: "/mnt/with space\nline", FSType: "fuse.glusterfs", FUSESubtype: "glusterfs"},
		"0:56": {Source: "/dev/fuse", Point: "/mnt/plain", FSType: "fuse"},
	} {
		if got, ok := r.Mount(dev, 0); !ok || got != want {
			t.Errorf("Mount(%s)\n got %+v, %v\nwant %+v", dev, got, ok, want)
		}
	}
	for _, dev := range []string{"0:21", "0:99", "", "nonsense"} {
		if got, ok := r.Mount(dev, 0); ok {
			t.Errorf("Mount(%q) = %+v", dev, got)
		}
	}
}

func TestMountOfAContainer(t *testing.T) {
	r, proc, root := mountHost(t)
	id := mkdir(t, root, "docker", idA)
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	r.registry.put(container{id: idA, from: "test", volumes: []volume{
		{name: "shared", driver: "local", source: "/var/lib/docker/volumes/shared/_data", destination: "/data"},
		{source: "/mnt/ssh/dir", destination: "/ssh"},
		{name: "one", driver: "local", source: "/var/lib/docker/volumes/one/_data", destination: "/one"},
		{name: "two", driver: "local", source: "/var/lib/docker/volumes/two/_data", destination: "/two"},
		{name: "inner", driver: "rclone", source: "", destination: "/inner"},
	}})
	// What the container mounted itself, only its own table has.
	write := func(name, text string) {
		t.Helper()
		mkdir(t, filepath.Dir(name))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(root, "docker", idA, "cgroup.procs"), "77\n78\n")
	write(filepath.Join(proc, "77/mountinfo"), "90 80 0:70 / /inner rw - fuse.rclone remote: rw\n91 80 0:50 / /here rw - nfs4 x:/y rw\n")

	for dev, want := range map[string]Mount{
		"0:52": {Source: ":/exports/shared", Point: "/data", FSType: "nfs4", Volume: "shared", Driver: "local",
			NFSServer: "192.0.2.9", NFSExport: "/exports/shared", NFSVersion: "4.1", NFSAddress: "192.0.2.9"},
		"0:53": {Source: "ann@host:/srv", Point: "/ssh", FSType: "fuse.sshfs", FUSESubtype: "sshfs"},
		// Two volumes on it, and no telling them apart.
		"254:0": {Source: "/dev/vda", Point: "/one|/two", FSType: "ext4", Volume: "one|two", Driver: "local"},
		"0:70":  {Source: "remote:", Point: "/inner", FSType: "fuse.rclone", Volume: "inner", Driver: "rclone", FUSESubtype: "rclone"},
	} {
		if got, ok := r.Mount(dev, id); !ok || got != want {
			t.Errorf("Mount(%s)\n got %+v, %v\nwant %+v", dev, got, ok, want)
		}
	}
	reads := r.mounts.reads
	for range 100 {
		r.Mount("0:70", id)
		r.Mount("0:99", id)
		r.Mount("0:99", 0)
	}
	if r.mounts.reads != reads {
		t.Errorf("%d tables read for questions that were answered before", r.mounts.reads-reads)
	}
	r.CgroupRemoved(id, "")
	if got, ok := r.Mount("0:52", id); !ok || got.Volume != "shared" {
		t.Errorf("late writeback of a container that is gone: %+v, %v", got, ok)
	}
}

// Two directories of one NFS server, one superblock: each container's volume says
// which of the two it is.
func TestVolumesOfOneSuperblock(t *testing.T) {
	r, proc, root := mountHost(t)
	nfs := "70 27 0:71 /a /var/lib/docker/volumes/a/_data rw - nfs4 nas:/exports/a rw,vers=4.2,addr=192.0.2.9\n" +
		"71 27 0:71 /b /var/lib/docker/volumes/b/_data rw - nfs4 nas:/exports/b rw,vers=4.2,addr=192.0.2.9\n"
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(hostMounts+nfs), 0o600); err != nil {
		t.Fatal(err)
	}
	data := func(name, at string) volume {
		return volume{name: name, driver: "local", source: "/var/lib/docker/volumes/" + name + "/_data", destination: at}
	}
	for i, tt := range []struct {
		volumes []volume
		want    Mount
	}{
		{[]volume{data("a", "/data")}, Mount{Source: "nas:/exports/a", Point: "/data", Volume: "a", NFSExport: "/exports/a"}},
		{[]volume{data("b", "/data")}, Mount{Source: "nas:/exports/b", Point: "/data", Volume: "b", NFSExport: "/exports/b"}},
		{[]volume{data("b", "/1"), data("b", "/2")}, Mount{Source: "nas:/exports/b", Point: "/1|/2", Volume: "b|b", NFSExport: "/exports/b"}},
		{[]volume{data("b", "/b"), data("a", "/a")}, Mount{Source: "nas:/exports/a|nas:/exports/b", Point: "/a|/b", Volume: "a|b", NFSExport: "/exports/a|/exports/b"}},
	} {
		name := strings.Repeat(strconv.Itoa(i), 64)
		id := mkdir(t, root, "docker", name)
		r.CgroupCreated(id, "/docker/"+name)
		r.registry.put(container{id: name, from: "test", volumes: tt.volumes})
		tt.want.FSType, tt.want.Driver, tt.want.NFSServer, tt.want.NFSVersion, tt.want.NFSAddress = "nfs4", "local", "nas", "4.2", "192.0.2.9"
		if got, ok := r.Mount("0:71", id); !ok || got != tt.want {
			t.Errorf("volumes %+v\n got %+v, %v\nwant %+v", tt.volumes, got, ok, tt.want)
		}
	}
}

// A volume is unmounted with its container, before anyone asked for it.
func TestMountThatIsNoMore(t *testing.T) {
	c := newClock()
	proc, root := t.TempDir(), t.TempDir()
	mkdir(t, proc, "1")
	table := func(more string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(hostMounts+more), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newTestResolver(t, Options{CgroupRoot: root, ProcRoot: proc, now: c.now})
	changed := func(more string) {
		t.Helper()
		table(more)
		c.advance(watchEvery)
		r.mounts.mu.Lock()
		r.mounts.dirty, r.mounts.cost = true, 0 // a file in a directory is never said to have changed
		r.mounts.mu.Unlock()
		r.mounts.follow()
	}
	id := mkdir(t, root, "docker", idA)
	r.CgroupCreated(id, "/docker/"+idA)
	r.registry.put(container{id: idA, from: "test", toldAt: c.now(), volumes: []volume{{name: "job", driver: "local", source: "/var/lib/docker/volumes/job/_data", destination: "/out"}}})
	table("")
	r.mounts.follow()
	changed("70 27 0:80 /job /var/lib/docker/volumes/job/_data rw - nfs4 nas:/exports/job rw,vers=4.2,addr=192.0.2.9\n")
	changed("")
	r.CgroupRemoved(id, "")
	want := Mount{Source: "nas:/exports/job", Point: "/out", FSType: "nfs4", Volume: "job", Driver: "local", NFSServer: "nas", NFSExport: "/exports/job", NFSVersion: "4.2", NFSAddress: "192.0.2.9"}
	if got, ok := r.Mount("0:80", id); !ok || got != want {
		t.Errorf("got %+v, %v\nwant %+v", got, ok, want)
	}
	// The number is given to another file system, and later nobody has it.
	changed("71 27 0:80 / /mnt/new rw - nfs4 nas:/exports/new rw,vers=4.2\n")
	if got, _ := r.Mount("0:80", 0); got.Point != "/mnt/new" {
		t.Errorf("reused: %+v", got)
	}
	changed("")
	c.advance(r.registry.keep + time.Minute)
	changed("72 27 0:81 / /mnt/other rw - ext4 /dev/sdb rw\n")
	if got, ok := r.Mount("0:80", id); ok {
		t.Errorf("remembered for ever: %+v", got)
	}
}

// Where a container's own files are on the device as well, they may be what was
// written. They still are when the container is gone.
func TestVolumesOnOneDevice(t *testing.T) {
	r, proc, root := mountHost(t)
	overlay := "68 27 0:60 / /var/lib/docker/overlay2/X/merged rw - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/mnt/ssd/layers/X/diff,workdir=/w\n" +
		"69 27 8:1 / /mnt/ssd rw - xfs /dev/sda1 rw\n"
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(hostMounts+overlay), 0o600); err != nil {
		t.Fatal(err)
	}
	const ssd = "8:1"
	for i, tt := range []struct {
		volumes []volume
		want    Mount
	}{
		{nil, Mount{Point: "/mnt/ssd"}},
		{[]volume{{source: "/mnt/ssd/data", destination: "/data"}}, Mount{Point: "/|/data", Volume: "/|/data"}},
		{[]volume{{name: "b", driver: "local", source: "/mnt/ssd/b", destination: "/b"}, {name: "a", driver: "local", source: "/mnt/ssd/a", destination: "/z"}},
			Mount{Point: "/|/b|/z", Volume: "/|b|a"}},
		{[]volume{{source: "/mnt/ssd/hosts", destination: "/etc/hosts"}, {source: "/elsewhere", destination: "/data"}}, Mount{Point: "/mnt/ssd"}},
		{[]volume{{source: "/mnt/ssd/pods/u/volumes/kubernetes.io~csi/pvc-2/mount", destination: "/pg"}}, Mount{Point: "/|/pg", Volume: "/|pvc-2"}},
		{[]volume{{source: "/mnt/ssd/1", destination: "/1"}, {source: "/mnt/ssd/2", destination: "/2"}, {source: "/mnt/ssd/3", destination: "/3"},
			{source: "/mnt/ssd/4", destination: "/4"}, {source: "/mnt/ssd/5", destination: "/5"}}, Mount{Point: "/|/1|/2|/3|+2", Volume: "/|/1|/2|/3|+2"}},
	} {
		container1 := strings.Repeat(strconv.Itoa(i), 64)
		id := mkdir(t, root, "docker", container1)
		r.CgroupCreated(id, "/docker/"+container1)
		r.registry.put(container{id: container1, from: "test", volumes: tt.volumes})
		tt.want.Source, tt.want.FSType = "/dev/sda1", "xfs"
		if got, ok := r.Mount(ssd, id); !ok || got != tt.want {
			t.Errorf("volumes %+v\n got %+v, %v\nwant %+v", tt.volumes, got, ok, tt.want)
		}
	}
	// The overlay is unmounted with its container, whose pages are still dirty.
	id := mkdir(t, root, "docker", idA)
	r.CgroupCreated(id, "/docker/"+idA)
	r.registry.put(container{id: idA, from: "test", volumes: []volume{{name: "v", source: "/mnt/ssd/v", destination: "/v"}}})
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(hostMounts+"69 27 8:1 / /mnt/ssd rw - xfs /dev/sda1 rw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.mounts.dirty, r.mounts.loaded = true, r.mounts.loaded.Add(-reloadKnown)
	r.CgroupRemoved(id, "")
	if got, _ := r.Mount(ssd, id); got.Volume != "/|v" || r.mounts.reads != 2 {
		t.Errorf("when it is gone: %+v, %d tables read", got, r.mounts.reads)
	}
}

// TestMountsThatShareADevice holds that no export is named that it may not have
// been: what is known of all of them is, and all of it where the container has
// one of them.
func TestMountsThatShareADevice(t *testing.T) {
	r, _, root := mountHost(t)
	idC, idD := strings.Repeat("c", 64), strings.Repeat("d", 64)
	shop, bank, both, twice, other := mkdir(t, root, "docker", idA), mkdir(t, root, "docker", idB), mkdir(t, root, "docker", idC),
		mkdir(t, root, "docker", idD), mkdir(t, root, "system.slice")
	if err := r.Walk(); err != nil {
		t.Fatal(err)
	}
	v := func(name, destination string) volume {
		return volume{name: name, driver: "local", source: "/var/lib/docker/volumes/" + name + "/_data", destination: destination}
	}
	r.registry.put(container{id: idA, from: "test", volumes: []volume{v("shop", "/data")}})
	r.registry.put(container{id: idB, from: "test", volumes: []volume{v("bank", "/data")}})
	r.registry.put(container{id: idC, from: "test", volumes: []volume{v("shop", "/s"), v("bank", "/b")}})
	r.registry.put(container{id: idD, from: "test", volumes: []volume{{source: "/mnt/in/x", destination: "/x"}, {source: "/mnt/in/y", destination: "/y"}}})
	nfs := func(source, export, point, volume string) Mount {
		m := Mount{Source: source, Point: point, FSType: "nfs4", Volume: volume, NFSServer: "192.0.2.9", NFSExport: export, NFSVersion: "4.2", NFSAddress: "192.0.2.9"}
		if strings.HasPrefix(volume, "bank") || volume == "shop" {
			m.Driver = "local"
		}
		return m
	}
	for _, tc := range []struct {
		name   string
		cgroup uint64
		dev    string
		want   Mount
	}{
		{"one of them", shop, "0:57", nfs(":/vol/shop", "/vol/shop", "/data", "shop")},
		{"the other", bank, "0:57", nfs(":/vol/bank", "/vol/bank", "/data", "bank")},
		{"both", both, "0:57", nfs(":/vol/bank|:/vol/shop", "/vol/bank|/vol/shop", "/b|/s", "bank|shop")},
		{"one, in two places", twice, "0:57", nfs(":/vol/bank/in", "/vol/bank/in", "/x|/y", "/x|/y")},
		{"no container", other, "0:57", nfs(":/vol/", "/vol/", "", "")},
		{"nobody", 0, "0:57", nfs(":/vol/", "/vol/", "", "")},
		{"one within the other", 0, "0:58", Mount{Source: "nas.example:/whole", FSType: "nfs", NFSServer: "nas.example", NFSExport: "/whole", NFSVersion: "3", NFSAddress: "192.0.2.9"}},
		{"a bind alone", 0, "0:50", Mount{Source: "nas.example:/exports/data", Point: "/mnt/data", FSType: "nfs4", NFSServer: "nas.example", NFSExport: "/exports/data", NFSVersion: "4.2", NFSAddress: "192.0.2.9"}},
	} {
		if got, ok := r.Mount(tc.dev, tc.cgroup); !ok || got != tc.want {
			t.Errorf("%s\n got %+v, %v\nwant %+v", tc.name, got, ok, tc.want)
		}
	}
}

func TestMountTableIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range maxOwnMounts + 100 {
		n := strconv.Itoa(i)
		b.WriteString(n + " 1 0:" + n + " / /" + n + strings.Repeat("x", 3000) + " rw - tmpfs tmpfs rw\n")
	}
	name := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := readTable(name, maxOwnMounts)
	if err != nil || len(table.byDev) != maxOwnMounts {
		t.Errorf("%d devices, %v", len(table.byDev), err)
	}
	for point := range table.byPoint {
		if len(point) > maxText {
			t.Fatalf("mount point of %d bytes", len(point))
		}
	}
}

func TestMountNamespacesAreBounded(t *testing.T) {
	r, _, root := mountHost(t)
	for i := range maxNamespaces + 50 {
		id := mkdir(t, root, "docker", strconv.Itoa(i))
		r.CgroupCreated(id, "/docker/"+strconv.Itoa(i))
		r.Mount("0:99", id)
	}
	if n := len(r.mounts.own); n > maxNamespaces {
		t.Errorf("%d tables kept", n)
	}
}

func TestVolumeOfAPath(t *testing.T) {
	for path, want := range map[string][2]string{
		"/var/lib/docker/volumes/db/_data":                                   {"db", ""},
		"/home/a/.local/share/containers/storage/volumes/db/_data":           {"db", ""},
		"/var/lib/kubelet/pods/u/volumes/kubernetes.io~nfs/pv-1":             {"pv-1", "kubernetes.io~nfs"},
		"/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-2/mount/deep": {"pvc-2", "kubernetes.io~csi"},
		"/srv/volumes/x": {"", ""},
		"/volumes/":      {"", ""},
		"":               {"", ""},
	} {
		if name, driver := pathVolume(path); name != want[0] || driver != want[1] {
			t.Errorf("pathVolume(%q) = %q, %q; want %q", path, name, driver, want)
		}
	}
}

// What others did with the processor while the table was read is no cost of reading.
func TestMountCost(t *testing.T) {
	proc := t.TempDir()
	mkdir(t, proc, "1")
	name := filepath.Join(proc, "1/mountinfo")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), ProcRoot: proc})
	r.mounts.name = name
	const stall = 500 * time.Millisecond
	written := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			time.Sleep(stall)
			_, err = f.WriteString(hostMounts)
			err = errors.Join(err, f.Close())
		}
		written <- err
	}()
	r.mounts.read()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if m := r.mounts; m.reads != 1 || m.cost >= stall {
		t.Errorf("read %d times, at a cost of %v of which %v were waiting", m.reads, m.cost, stall)
	}
}

// TestNFSServersBehindTunnels has the lines of mounts of EFS with TLS and of an ssh tunnel: one
// address for all, and a port for each.
func TestNFSServersBehindTunnels(t *testing.T) {
	proc := t.TempDir()
	mkdir(t, proc, "1")
	const options = ",namlen=255,hard,noresvport,proto=tcp,port=%d,timeo=600,retrans=2,sec=sys,clientaddr=127.0.0.1,local_lock=none,addr=127.0.0.1\n"
	table := "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n" +
		fmt.Sprintf("80 27 0:80 / /mnt/efs1 rw,relatime shared:40 - nfs4 127.0.0.1:/ rw,vers=4.1,rsize=1048576,wsize=1048576"+options, 20117) +
		fmt.Sprintf("81 27 0:81 / /mnt/efs2 rw,relatime shared:41 - nfs4 127.0.0.1:/ rw,vers=4.1,rsize=1048576,wsize=1048576"+options, 20118) +
		"82 27 0:82 / /mnt/v3 rw,relatime - nfs nas:/v3 rw,vers=3,rsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys," +
		"mountaddr=192.0.2.9,mountvers=3,mountport=20048,mountproto=udp,local_lock=none,addr=192.0.2.9\n" +
		"83 27 0:83 / /mnt/v6 rw,relatime - nfs4 [::1]:/x rw,vers=4.2,proto=tcp6,port=12049,clientaddr=::1,addr=::1\n"
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newTestResolver(t, Options{CgroupRoot: t.TempDir(), ProcRoot: proc})
	type server struct {
		name, address string
		port          uint16
	}
	for dev, want := range map[string]server{
		"0:80": {"127.0.0.1", "127.0.0.1", 20117}, "0:81": {"127.0.0.1", "127.0.0.1", 20118},
		"0:82": {"nas", "192.0.2.9", 0}, "0:83": {"::1", "::1", 12049},
	} {
		m, ok := r.Mount(dev, 0)
		if got := (server{m.NFSServer, m.NFSAddress, m.NFSPort}); !ok || got != want {
			t.Errorf("%s: got %+v, want %+v", dev, got, want)
		}
	}
}
