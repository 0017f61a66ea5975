#!/usr/bin/env bash
# Installs what the build and the tests need beyond Go and git, on Debian and as root: only what is missing.
# Elsewhere it prints what to do, and fails.
set -euo pipefail

# Each line: what must be there (a command, a file, a library, or a Python module), and the Debian package that brings it.
needs='
command nft              nftables
command ip               iproute2
command tc               iproute2
command dig              dnsutils
command busybox          busybox-static
command radvd            radvd
command clang            clang
command llvm-strip       llvm
file /usr/include/bpf/bpf_helpers.h libbpf-dev
file /usr/include/linux/bpf.h       linux-libc-dev
python consul            python3-consul
command make             make
command curl             curl
command nsenter          util-linux
command sysctl           procps
command ping             iputils-ping
command node             nodejs
command npm              npm
library liblua5.3.so.0               liblua5.3-0
library libopentracing-c-wrapper.so.0 libopentracing-c-wrapper0
file /usr/lib/cni/bridge containernetworking-plugins
'

export PATH="$PATH:/usr/sbin:/sbin" # where Debian keeps ip, nft and radvd

there() {
	case $1 in
	command) command -v "$2" >/dev/null ;;
	file) test -e "$2" ;;
	library) ldconfig -p | grep -F "$2 " >/dev/null ;;
	python) /usr/bin/python3 -c "import $2" 2>/dev/null ;;
	esac
}

missing() {
	while read -r kind what package; do
		if [ -n "$kind" ] && ! there "$kind" "$what"; then
			echo "$package"
		fi
	done <<<"$needs" | sort -u
}

if ! command -v go >/dev/null; then
	echo "setup: Go is missing. Install the version that go.mod names, or a later one: https://go.dev/dl/" >&2
	exit 1
fi

packages=$(missing | xargs)
if [ -z "$packages" ]; then
	exit 0
fi
# /usr/bin/python3 for the module: a python3 from elsewhere does not see Debian's modules.
install="apt-get install --yes --no-install-recommends $packages"
if ! command -v apt-get >/dev/null; then
	echo "setup: missing here, by their Debian names: $packages" >&2
	echo "setup: install them with this system's own package manager" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: some packages are missing. Run this, then try again:" >&2
	echo "  sudo apt-get update && sudo $install" >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
options=(-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 -q)
try() {
	for pause in 5 15 30 0; do
		"$@" && return
		[ "$pause" = 0 ] || { echo "setup: failed, again in $pause s: $*" >&2; sleep "$pause"; }
	done
	return 1
}
echo "setup: installing $packages"
try apt-get "${options[@]}" update
# shellcheck disable=SC2086 # one word for each package
try apt-get "${options[@]}" install --yes --no-install-recommends $packages

still=$(missing | xargs)
if [ -n "$still" ]; then
	echo "setup: still missing after the installation: $still" >&2
	exit 1
fi
