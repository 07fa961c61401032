#!/bin/sh
# deb: "configure" and the version before; rpm: 1 when it is installed, 2 or more
# when it replaces another version. The unit stays off until it is enabled.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# A running recorder continues with the new program, in its own recording.
	systemctl try-restart iotrace-bpf.service
fi
