#!/bin/sh
# fetch.sh DIRECTORY: puts Elasticsearch and OpenSearch for the integration
# tests into DIRECTORY, from Maven Central. What is there already stays.
# Needs: maven, unzip, a JDK 17 or newer.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=$1
es=8.19.16

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

if [ ! -e "$dir/elasticsearch-$es/.complete" ]; then
	# The distribution that Elasticsearch's own integration tests use: the
	# server with transport, security and licence modules, and no others.
	mvn -B -q dependency:copy -DoutputDirectory="$dir" \
		-Dartifact="org.elasticsearch.distribution.integ-test-zip:elasticsearch:$es:zip"
	rm -rf "$dir/elasticsearch-$es"
	unzip -q "$dir/elasticsearch-$es.zip" -d "$dir"
	rm "$dir/elasticsearch-$es.zip"
	touch "$dir/elasticsearch-$es/.complete"
fi
ln -sfn "elasticsearch-$es" "$dir/elasticsearch"

if ! cmp -s "$here/pom.xml" "$dir/opensearch/pom.xml"; then
	rm -rf "$dir/opensearch"
	mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$dir/opensearch"
	cp "$here/pom.xml" "$dir/opensearch/pom.xml"
fi
