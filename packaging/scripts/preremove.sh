#!/bin/sh
# deb: "remove", "upgrade" and others; rpm: 0 when it is removed, 1 when another
# version replaces it.
set -e
case $1 in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now iotrace-bpf.service
	fi
	;;
esac
