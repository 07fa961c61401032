#!/bin/sh
# Installs what iotrace-bpf is built and tested with. One list for developers'
# machines, CI and the Vagrant boxes.
#
#   deps.sh build   what regenerates the BPF objects (go build needs Go alone)
#   deps.sh test    what the integration tests and the virtual machines need
#   deps.sh guest   the programs that scenarios run, on a machine that stands in
#                   for a guest (a Vagrant box)
#   deps.sh all     everything
#
# Nothing is done for what is installed already, so it is cheap to call always.
set -eu

what=${1:-all}
case $what in
build | test | guest | bench | all) ;;
*)
	echo "usage: $0 build|test|guest|bench|all" >&2
	exit 2
	;;
esac

. /etc/os-release
family=
for id in $ID ${ID_LIKE:-}; do
	case $id in
	debian) family=debian ;;
	fedora | rhel) family=fedora ;;
	suse | opensuse) family=suse ;;
	esac
	[ -n "$family" ] && break
done

wants() { [ "$what" = "$1" ] || [ "$what" = all ]; }
packages=

case $family in
debian)
	guest="kmod e2fsprogs xfsprogs btrfs-progs dmsetup cryptsetup-bin mdadm nfs-kernel-server nfs-common rpcbind fuse3 sshfs bindfs fio iproute2 util-linux"
	if wants build; then packages="$packages clang-19 llvm-19 libbpf-dev"; fi
	if wants test; then
		packages="$packages qemu-system-x86 qemu-system-arm qemu-utils mmdebstrap kmod e2fsprogs xz-utils zstd debian-archive-keyring \
			docker.io fio fuse3 iproute2 ruby vagrant"
		# what the tests on this machine run: engines, file systems, servers, browsers
		packages="$packages bpftool strace systemd busybox-static containerd runc podman conmon catatonit crun netavark aardvark-dns \
			iptables procps psmisc bindfs sshfs openssh-server cryptsetup-bin dmsetup jq tmux unzip ca-certificates \
			prometheus maven openjdk-17-jre-headless chromium fonts-dejavu-core fonts-noto-core fish zsh"
		# virtiofsd: with QEMU up to Debian 12, a package of its own since
		packages="$packages qemu-system-common"
		if apt-cache show virtiofsd >/dev/null 2>&1; then packages="$packages virtiofsd"; fi
	fi
	if wants bench; then packages="$packages fio bpftool bpftrace bpfcc-tools libbpf-tools iotop-c"; fi
	if wants guest; then packages="$packages $guest"; fi
	;;
fedora)
	if wants build; then packages="$packages clang llvm libbpf-devel"; fi
	if wants test; then
		packages="$packages qemu-system-x86 qemu-system-aarch64 qemu-img virtiofsd mmdebstrap apt dpkg debian-keyring kmod e2fsprogs xz zstd fio fuse3 iproute ruby"
	fi
	if wants guest; then
		packages="$packages kmod e2fsprogs xfsprogs device-mapper cryptsetup mdadm nfs-utils rpcbind fuse3 fio iproute util-linux"
	fi
	;;
suse)
	if wants build; then packages="$packages clang llvm libbpf-devel"; fi
	if wants test; then
		echo "$0: the kernel matrix needs apt and mmdebstrap, which $NAME does not have; use 'guest'" >&2
		packages="$packages qemu-x86 kmod e2fsprogs xz zstd fio fuse3 iproute2 ruby"
	fi
	if wants guest; then
		packages="$packages kmod e2fsprogs xfsprogs btrfsprogs device-mapper cryptsetup mdadm nfs-kernel-server nfs-client rpcbind fuse3 sshfs fio iproute2 util-linux"
	fi
	;;
*)
	echo "$0: do not know how to install packages on $NAME" >&2
	exit 1
	;;
esac

as_root=
if [ "$(id -u)" != 0 ]; then as_root=sudo; fi

missing=
for p in $packages; do
	if [ "$family" = debian ]; then
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] && continue
	else
		rpm -q --quiet "$p" && continue
	fi
	missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "$0: installing$missing" >&2

case $family in
debian)
	export DEBIAN_FRONTEND=noninteractive
	$as_root apt-get -q update >&2
	# Recommended packages would start services: an NFS server, mail, a display.
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing >&2
	;;
fedora)
	# What a release does not have (btrfs on Rocky, bindfs) is left out; the
	# scenario that wants it will say so.
	$as_root dnf -q install -y --skip-unavailable $missing >&2 ||
		$as_root dnf -q install -y --setopt=strict=0 $missing >&2
	;;
suse)
	$as_root zypper --non-interactive --quiet install --no-recommends $missing >&2
	;;
esac
