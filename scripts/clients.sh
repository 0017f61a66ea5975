#!/usr/bin/env bash
# Brings the programs that the tests run as clients into bin/clients: prometheus and haproxy from Debian's packages, the npm
# package consul, and Prometheus' consul_sd, which Debian leaves out, as a program of its own. The packages are unpacked and not installed, so that this machine gets no services of theirs.
set -euo pipefail
cd "$(dirname "$0")/.."
to=$PWD/bin/clients
mkdir -p "$to"

# unpack PACKAGE FILE: FILE of the package as bin/clients/<its name>.
unpack() {
	local package=$1 file=$2 dir
	[ -x "$to/$(basename "$file")" ] && return
	dir=$(mktemp -d)
	echo "setup: unpacking $package"
	(cd "$dir" && for pause in 5 15 30 0; do
		apt-get -q -o Acquire::Retries=5 -o APT::Sandbox::User=root download "$package" && exit
		[ "$pause" = 0 ] || { sleep "$pause"; apt-get -q update || true; }
	done; exit 1)
	dpkg-deb -x "$dir/$package"_*.deb "$dir/root"
	cp "$dir/root/$file" "$to/"
	rm -rf "$dir"
}

if ! command -v apt-get >/dev/null; then
	for program in prometheus haproxy; do
		if ! [ -x "$to/$program" ]; then
			found=$(command -v "$program") || { echo "setup: install $program with this system's own package manager" >&2; exit 1; }
			ln -s "$found" "$to/$program"
		fi
	done
else
	[ -n "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null | head -n1)" ] || apt-get -q update || true
	unpack prometheus usr/bin/prometheus
	unpack haproxy usr/sbin/haproxy
fi

lock=internal/compat/testdata/node/package-lock.json
if ! cmp -s "$lock" "$to/node/package-lock.json" || ! [ -d "$to/node/node_modules/consul" ]; then
	echo "setup: npm ci (the client library of testdata/node)"
	rm -rf "$to/node"
	mkdir -p "$to/node"
	cp internal/compat/testdata/node/package.json "$lock" "$to/node/"
	(cd "$to/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
fi

(cd internal/compat/testdata/consulsd && CGO_ENABLED=0 go build -trimpath -o "$to/consulsd" .)
