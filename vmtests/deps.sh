#!/bin/sh
# Installs what building and testing need, from Debian's or Ubuntu's packages (or
# the nearest equivalents of Fedora's, Rocky's, Alma's and openSUSE's): the one
# list of dependencies, used by the Makefile, by CI and by the Vagrantfile.
#
#	deps.sh build    to regenerate the BPF objects (go build needs nothing of it)
#	deps.sh test     to run every test on this machine and in QEMU
#	deps.sh bench    to compare with other tools
set -eu

build="clang-19 llvm-19 libbpf-dev make"
# engines and file systems that tests run on this machine
native="bpftool busybox-static docker.io podman iptables iproute2 kmod procps psmisc e2fsprogs fio fuse3 bindfs sshfs openssh-server jq tmux unzip ca-certificates"
# servers and browsers that outputs are tested with
outputs="prometheus maven openjdk-17-jre-headless chromium fish zsh"
# guests
guests="qemu-system-x86 qemu-utils apt-utils cpio e2fsprogs mmdebstrap squashfs-tools xz-utils zstd ruby"
bench="bpftrace bpfcc-tools libbpf-tools iotop-c"

missing() {
	for p in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || echo "$p"
	done
}

debian() {
	# Not available everywhere: Debian 11 has no clang-19, Ubuntu calls some otherwise.
	want=$(missing "$@")
	[ -n "$want" ] || return 0
	sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	$sudo apt-get update -qq
	# shellcheck disable=SC2086 # a list
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq -y --no-install-recommends $want >/dev/null
}

rpm() {
	echo "deps.sh: on this distribution only 'build' is supported: install clang, llvm, libbpf-devel and make" >&2
	exit 1
}

what=${1-test}
command -v apt-get >/dev/null || rpm
case $what in
build) debian $build ;;
test) debian $build $native $outputs $guests ;;
bench) debian $build $native $bench ;;
*)
	echo "usage: deps.sh build|test|bench" >&2
	exit 2
	;;
esac
