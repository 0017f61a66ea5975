#!/usr/bin/env bash
# Generates everything again, in a copy of the tree, and fails if a committed file differs from what comes out.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar --exclude=./.git --exclude=./bin --exclude=./dist -cf - . | tar -xf - -C "$copy"
(cd "$copy" && go generate ./...)
if ! diff -r --brief --exclude=.git --exclude=bin --exclude=dist . "$copy" | sed "s|$copy|generated|"; then
	echo "check-generated: the files above are not what \`make generate\` makes of their sources with $(clang --version | head -1)" >&2
	exit 1
fi
