#!/bin/sh
# Makes the files of a release in build/package: deb, rpm and a tarball for each
# architecture, an SBOM for each program, SHA256SUMS. It needs Go alone. The same
# commit gives the same bytes: all times are the commit's.
#
#   package.sh VERSION [DIRECTORY]     VERSION as git describe --tags --always prints it
#
# ARCHS and FORMATS in the environment make fewer of them. With FORMATS empty there are
# tarballs alone.
set -eu
umask 022
cd "$(dirname "$0")/.."
version=${1:?usage: package.sh VERSION [DIRECTORY]}
out=${2:-build/package}
go=${GO:-go}
archs=${ARCHS:-amd64 arm64}
formats=${FORMATS-deb rpm}
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0
sbom=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
TZ=UTC LC_ALL=C
export SOURCE_DATE_EPOCH TZ LC_ALL

# v1.2.3 is 1.2.3, v1.2.3-rc1 is 1.2.3~rc1, which is older; 4 commits later it is
# 1.2.3+4.gHASH, and without any tag 0.0.0+gHASH.
PACKAGE_VERSION=$(echo "${version#v}" | sed -E '
	s/-dirty$/.dirty/
	s/-([0-9]+)-(g[0-9a-f]+)/+\1.\2/
	s/^([0-9]+\.[0-9]+\.[0-9]+)-/\1~/
	/^[0-9]+\.[0-9]+/!s/^/0.0.0+g/')
case $PACKAGE_VERSION in
*[!A-Za-z0-9.+~]* | "")
	echo "package.sh: version \"$version\" does not fit a package: use v1.2.3 or v1.2.3-rc1" >&2
	exit 2
	;;
esac
export PACKAGE_VERSION

rm -rf "$out"
mkdir -p "$out"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# same sets every time in a tree to the commit's.
same() { find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }

# licences prints the licences of all modules that are linked in.
licences() {
	$go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/iotrace-bpf | sort -u |
		while read -r module release dir; do
			printf '\n==== %s %s\n' "$module" "$release"
			for f in "$dir"/LICEN[CS]E* "$dir"/COPYING* "$dir"/NOTICE*; do
				if [ -f "$f" ]; then printf '\n' && cat "$f"; fi
			done
		done
	printf '\n==== The Go programming language\n\n'
	cat "$($go env GOROOT)/LICENSE"
}

# What is the same on every architecture.
common=$stage/common
doc=$common/usr/share/doc/iotrace-bpf
share=$common/usr/share/iotrace-bpf
mkdir -p "$doc/examples" "$share/elastic" "$common/completion" "$common/etc/default" \
	"$common/usr/lib/systemd/system" "$common/usr/share/man/man1" \
	"$common/usr/share/bash-completion/completions" "$common/usr/share/fish/vendor_completions.d"
for arch in $archs $($go env GOARCH); do
	[ -e "$stage/iotrace-bpf-$arch" ] ||
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch $go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$stage/iotrace-bpf-$arch" ./cmd/iotrace-bpf
done
ln -s "iotrace-bpf-$($go env GOARCH)" "$stage/native"
"$stage/native" completion bash >"$common/usr/share/bash-completion/completions/iotrace-bpf"
"$stage/native" completion fish >"$common/usr/share/fish/vendor_completions.d/iotrace-bpf.fish"
"$stage/native" completion zsh >"$common/completion/_iotrace-bpf"
"$stage/native" help flags >"$stage/flags.txt"
awk -f packaging/manual.awk "$stage/flags.txt" packaging/iotrace-bpf.1.in | gzip -9n >"$common/usr/share/man/man1/iotrace-bpf.1.gz"
cp packaging/iotrace-bpf.service "$common/usr/lib/systemd/system/"
cp packaging/iotrace-bpf.default "$common/etc/default/iotrace-bpf"
cp README.md SECURITY.md "$doc/"
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
{
	printf 'iotrace-bpf: Apache-2.0. Its BPF programs: GPL-2.0-only OR BSD-2-Clause.\n\n'
	cat LICENSE
	printf '\n==== bpf/\n\n'
	cat bpf/LICENSE
} >"$doc/copyright"
licences | gzip -9n >"$doc/third-party-licences.gz"
cp packaging/ship.conf packaging/prometheus.conf "$doc/examples/"
cp -R output/grafana output/schema "$share/"
cp -R output/intake "$share/intake"
cp packaging/prometheus/rules.yml "$share/prometheus-rules.yml"
cp -R packaging/zabbix packaging/ansible "$share/"
cp -R output/elastic/component output/elastic/index output/elastic/lifecycle output/elastic/kibana.ndjson "$share/elastic/"
find "$share" -name '*.go' -delete

if [ -n "$formats" ]; then
	GOBIN=$stage/tools $go install -trimpath "$nfpm"
	GOBIN=$stage/tools $go install -trimpath "$sbom"
fi

for PACKAGE_ARCH in $archs; do
	STAGE=$stage/$PACKAGE_ARCH
	export PACKAGE_ARCH STAGE
	cp -R "$common" "$STAGE"
	mkdir -p "$STAGE/usr/bin"
	cp "$stage/iotrace-bpf-$PACKAGE_ARCH" "$STAGE/usr/bin/iotrace-bpf"
	same "$STAGE"
	for format in $formats; do
		"$stage/tools/nfpm" package --config packaging/nfpm.yaml --packager $format --target "$out/" >&2
	done

	# The tarball: what the packages hold, to be unpacked anywhere.
	name=iotrace-bpf-$PACKAGE_VERSION-linux-$PACKAGE_ARCH
	tree=$stage/tar-$PACKAGE_ARCH/$name
	mkdir -p "$tree/completion"
	cp -R "$STAGE/usr/bin/iotrace-bpf" "$STAGE"/usr/share/doc/iotrace-bpf/* "$tree/"
	gzip -d <"$STAGE/usr/share/man/man1/iotrace-bpf.1.gz" >"$tree/iotrace-bpf.1"
	cp "$STAGE/usr/lib/systemd/system/iotrace-bpf.service" "$STAGE/etc/default/iotrace-bpf" "$tree/examples/"
	cp "$STAGE/completion/_iotrace-bpf" "$STAGE/usr/share/bash-completion/completions/iotrace-bpf" \
		"$STAGE/usr/share/fish/vendor_completions.d/iotrace-bpf.fish" "$tree/completion/"
	cp -R "$STAGE/usr/share/iotrace-bpf" "$tree/share"
	same "$tree"
	tar -C "$stage/tar-$PACKAGE_ARCH" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
		gzip -9n >"$out/$name.tar.gz"

	[ -n "$formats" ] || continue
	"$stage/tools/cyclonedx-gomod" bin -json -noserial -version "$version" -output "$stage/sbom.json" "$STAGE/usr/bin/iotrace-bpf" >&2
	sed -E "s/^(    \"timestamp\": \").*\"/\1$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)\"/" "$stage/sbom.json" >"$out/$name.cdx.json"
done
(cd "$out" && sha256sum -- * >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
