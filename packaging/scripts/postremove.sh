#!/bin/sh
# deb: "remove", "purge", "upgrade" and others; rpm: 0 or 1. Recordings are kept
# until a purge: an rpm has none, so they are removed by hand.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
case $1 in
purge)
	rm -rf /var/lib/iotrace-bpf /var/lib/private/iotrace-bpf
	;;
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl reset-failed iotrace-bpf.service 2>/dev/null || true
	fi
	;;
esac
