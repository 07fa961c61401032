package vmtests

import "github.com/iotrace-bpf/iotrace-bpf/vmtests/vm"

// imageSuite is the Debian release whose programs the guests run. It need not
// match the kernel: all of these work with every kernel of the matrix.
const imageSuite = "bookworm"

// images are the root file systems. Their packages are unpacked, not installed,
// so what install scripts would have made is in files.
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
	return map[string]vm.Image{
		// For the live screen, which wants a terminal.
		"terminal": {Name: "terminal", Suite: imageSuite, Packages: append(base[:len(base):len(base)], "tmux", "ncurses-base"), Files: files, FreeMiB: 64},

		"base":   {Name: "base", Suite: imageSuite, Packages: base, Files: files, FreeMiB: 64},
		"docker": {Name: "docker", Suite: imageSuite, Packages: append(base[:len(base):len(base)], "docker.io", "containerd", "runc", "iptables", "busybox-static", "tar"), Files: docker, FreeMiB: 512},
	}
}
