package vmtests

import (
	"slices"

	"github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"
)

// imageSuite is the Debian release whose programs the guests run. It need not
// match the kernel: all of these work with every kernel of the matrix.
const imageSuite = "bookworm"

// benchSuite is the release of the tools that `make bench-vm` compares with.
const benchSuite = "trixie"

// images are the root file systems. Their packages are unpacked, not installed, so
// files holds what install scripts would make.
func images() map[string]vm.Image {
	base := []string{
		"bash", "coreutils", "util-linux", "mount", "grep", "sed", "procps", "kmod", "iproute2", "netbase", "libc-bin",
		"e2fsprogs", "xfsprogs", "btrfs-progs", "dmsetup", "cryptsetup-bin", "mdadm",
		"nfs-kernel-server", "nfs-common", "rpcbind",
		"fuse3", "sshfs", "openssh-server", "openssh-client", "bindfs", "fio",
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\n_rpc:x:101:65534::/run/rpcbind:/usr/sbin/nologin\n" +
			"statd:x:102:65534::/var/lib/nfs:/usr/sbin/nologin\nsshd:x:103:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
		"etc/group":                   "root:x:0:\ndaemon:x:1:\ntty:x:5:\ndisk:x:6:\ndocker:x:110:\nnogroup:x:65534:\n",
		"etc/shadow":                  "root:*:19000:0:99999:7:::\n",
		"etc/nsswitch.conf":           "passwd: files\ngroup: files\nshadow: files\nhosts: files\nprotocols: files\nservices: files\nrpc: files\n",
		"etc/hosts":                   "127.0.0.1 localhost guest\n",
		"etc/hostname":                "guest\n",
		"etc/fstab":                   "",
		"usr/bin/sh":                  "link:bash",
		"etc/mtab":                    "link:/proc/self/mounts",
		"etc/modprobe.d/iotrace.conf": "options scsi_mod scan=sync\n",
	}
	docker := map[string]string{
		"usr/sbin/iptables":         "link:iptables-legacy",
		"usr/sbin/iptables-restore": "link:iptables-legacy-restore",
		"usr/sbin/iptables-save":    "link:iptables-legacy-save",
		"usr/sbin/ip6tables":        "link:ip6tables-legacy",
	}
	for k, v := range files {
		docker[k] = v
	}
	// The image that systemd boots: the parts of a whole system that engines need, a
	// user for rootless engines, and the links that install scripts would make.
	runtimes := map[string]string{
		"etc/passwd": files["etc/passwd"] + "messagebus:x:103:103::/nonexistent:/usr/sbin/nologin\nsystemd-network:x:998:998::/:/usr/sbin/nologin\n" +
			"app:x:1000:1000::/home/app:/bin/bash\n",
		"etc/group":      files["etc/group"] + "messagebus:x:103:\nsystemd-network:x:998:\nsystemd-journal:x:999:\napp:x:1000:\n",
		"etc/shadow":     files["etc/shadow"] + "app:*:19000:0:99999:7:::\n",
		"etc/subuid":     "app:100000:65536\n",
		"etc/subgid":     "app:100000:65536\n",
		"etc/machine-id": "6d0a6f5e000040008000000000000001\n",
		"var/run":        "link:/run",
		"var/lock":       "link:/run/lock",
		// Written by pam-auth-update: enough for a user's own systemd.
		"etc/pam.d/common-account":                 "account required pam_permit.so\n",
		"etc/pam.d/common-auth":                    "auth required pam_permit.so\n",
		"etc/pam.d/common-password":                "password required pam_permit.so\n",
		"etc/pam.d/common-session":                 "session required pam_permit.so\n",
		"etc/pam.d/common-session-noninteractive":  "session required pam_permit.so\n",
		"etc/containers/policy.json":               `{"default": [{"type": "insecureAcceptAnything"}]}` + "\n",
		"etc/systemd/journald.conf.d/iotrace.conf": "[Journal]\nStorage=volatile\nForwardToConsole=no\n",
		// The guest's disks belong to the tests: nothing else may probe them.
		"etc/systemd/system/systemd-udevd.service":            "link:/dev/null",
		"etc/systemd/system/systemd-udevd-control.socket":     "link:/dev/null",
		"etc/systemd/system/systemd-udevd-kernel.socket":      "link:/dev/null",
		"etc/systemd/system/systemd-udev-trigger.service":     "link:/dev/null",
		"etc/systemd/system/systemd-binfmt.service":           "link:/dev/null",
		"etc/systemd/system/systemd-random-seed.service":      "link:/dev/null",
		"etc/systemd/system/systemd-update-utmp.service":      "link:/dev/null",
		"etc/systemd/system/systemd-hwdb-update.service":      "link:/dev/null",
		"etc/systemd/system/systemd-pcrphase-sysinit.service": "link:/dev/null",
		"etc/systemd/system/kmod-static-nodes.service":        "link:/dev/null",
		"etc/systemd/system/dev-hugepages.mount":              "link:/dev/null",
	}
	for k, v := range docker {
		if _, ok := runtimes[k]; !ok {
			runtimes[k] = v
		}
	}
	engine := []string{"docker.io", "containerd", "runc", "iptables", "busybox-static", "tar"}
	samba := []string{"samba", "cifs-utils", "keyutils"}
	cluster := []string{"ceph-mon", "ceph-osd", "ceph-mds", "ceph-common"}
	// The same with LXD's group and the users that its instances are mapped to, and Debian's
	// alternatives of Slurm.
	engines := map[string]string{
		"etc/group":           runtimes["etc/group"] + "lxd:x:111:\n",
		"etc/subuid":          "root:1000000:1000000000\n" + runtimes["etc/subuid"],
		"etc/subgid":          "root:1000000:1000000000\n" + runtimes["etc/subgid"],
		"usr/sbin/slurmctld":  "link:slurmctld-wlm",
		"usr/sbin/slurmd":     "link:slurmd-wlm",
		"usr/sbin/slurmstepd": "link:slurmstepd-wlm",
	}
	for k, v := range runtimes {
		if _, ok := engines[k]; !ok {
			engines[k] = v
		}
	}
	return map[string]vm.Image{
		// From the release with kernel 6.12: older tools look for functions that this kernel
		// does not have.
		"bench": {Name: "bench", Suite: benchSuite, Packages: []string{
			"bash", "coreutils", "util-linux", "mount", "grep", "sed", "procps", "kmod", "iproute2", "netbase", "libc-bin",
			"nfs-kernel-server", "nfs-common", "rpcbind", "fuse3", "fio", "bpftrace", "libbpf-tools",
		}, Files: files, FreeMiB: 64},
		"bench-remote": {Name: "bench-remote", Suite: imageSuite, Packages: slices.Concat(base, samba, cluster, []string{"diod", "bpftrace"}), Files: files, FreeMiB: 256},
		// For the live screen, which needs a terminal.
		"terminal": {Name: "terminal", Suite: imageSuite, Packages: append(base[:len(base):len(base)], "tmux", "ncurses-base"), Files: files, FreeMiB: 64},

		"smb": {Name: "smb", Suite: imageSuite, Packages: slices.Concat(base, samba), Files: files, FreeMiB: 64},

		"9p":   {Name: "9p", Suite: imageSuite, Packages: append(base[:len(base):len(base)], "diod"), Files: files, FreeMiB: 64},
		"ceph": {Name: "ceph", Suite: imageSuite, Packages: slices.Concat(base, cluster), Files: files, FreeMiB: 256},

		"base":   {Name: "base", Suite: imageSuite, Packages: base, Files: files, FreeMiB: 64},
		"docker": {Name: "docker", Suite: imageSuite, Packages: slices.Concat(base, engine), Files: docker, FreeMiB: 512},
		// For volumes of an engine on network file systems other than NFS.
		"docker-remote": {Name: "docker-remote", Suite: imageSuite, Packages: slices.Concat(base, engine, samba, cluster), Files: docker, FreeMiB: 512},
		"runtimes": {Name: "runtimes", Suite: imageSuite, Packages: []string{
			"bash", "coreutils", "util-linux", "mount", "grep", "sed", "procps", "kmod", "iproute2", "netbase", "libc-bin", "e2fsprogs",
			"systemd", "systemd-sysv", "systemd-container", "dbus", "dbus-user-session", "libpam-systemd",
			"docker.io", "containerd", "runc", "crun", "podman", "conmon", "catatonit", "uidmap", "slirp4netns", "rootlesskit", "lxc", "apparmor", "iptables", "busybox-static", "tar", "dpkg", "diffutils",
		}, Files: runtimes, FreeMiB: 512},
		"engines": {Name: "engines", Suite: imageSuite, Packages: []string{
			"bash", "coreutils", "util-linux", "mount", "grep", "sed", "procps", "kmod", "iproute2", "netbase", "libc-bin", "e2fsprogs",
			"systemd", "systemd-sysv", "systemd-container", "dbus", "dbus-user-session", "libpam-systemd", "uidmap", "slirp4netns", "apparmor", "busybox-static", "tar",
			"munge", "slurmctld", "slurmd", "slurm-client", "containerd", "runc", "rootlesskit", "lxd",
		}, Files: engines, FreeMiB: 512},
	}
}
