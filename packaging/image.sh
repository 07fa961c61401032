#!/bin/sh
# Makes the container image with the docker command, from the program that a tarball of
# package.sh holds and this machine's CA certificates. It fetches nothing.
#
#   image.sh VERSION [NAME]     NAME is iotrace-bpf:VERSION without more
set -eu
umask 022
cd "$(dirname "$0")/.."
version=${1:?usage: image.sh VERSION [NAME]}
name=${2:-iotrace-bpf:$version}
roots=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
if ! [ -s "$roots" ]; then
	echo "image.sh: no CA certificates in \"$roots\": install ca-certificates, or set CA_CERTIFICATES" >&2
	exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ARCHS=$(${GO:-go} env GOARCH) FORMATS= packaging/package.sh "$version" "$work/package"
mkdir "$work/context"
tar -C "$work/context" --strip-components=1 -xzf "$work"/package/*.tar.gz
cp "$roots" "$work/context/ca-certificates.crt"
docker build --file packaging/Dockerfile --tag "$name" --label org.opencontainers.image.revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
	--build-arg VERSION="$version" --build-arg CREATED="$(date -u -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}" +%Y-%m-%dT%H:%M:%SZ)" "$work/context"
