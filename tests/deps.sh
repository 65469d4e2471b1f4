# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# deps.sh - install what a script needs; sourced, not run.
#
#   deps_install PACKAGE...     Debian packages; says what it installs, and says
#                               and does nothing when all are there
#   as_root COMMAND...          run as root: directly, or through sudo
#
# Both return non-zero on failure, with the reason on stderr.

# Needed to build the library and the command.
# shellcheck disable=SC2034 # used by the scripts that source this file
DEPS_BUILD=(gcc libc6-dev meson ninja-build pkgconf libnuma-dev libhwloc-dev
	libjansson-dev libibverbs-dev librdmacm-dev)

# Needed besides to build and run all tests.
# shellcheck disable=SC2034
DEPS_TEST=(libcmocka-dev clang libclang-rt-14-dev llvm binutils python3
	qemu-system-x86 util-linux)

# Needed for tests/lab: a VM with RDMA on a machine without, and what runs in it.
# The kernel is fetched by the lab itself.
# shellcheck disable=SC2034
DEPS_LAB=(apt dpkg python3 qemu-system-x86 busybox-static kmod util-linux iproute2
	iputils-ping ibverbs-providers ibverbs-utils rdmacm-utils perftest numactl iperf3)

as_root()
{
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif ! command -v sudo >/dev/null; then
		echo "needs root or sudo: $*" >&2
		return 1
	elif [ -t 2 ]; then
		sudo "$@"
	else
		sudo -n "$@"
	fi
}

# deps_missing PACKAGE... - those not installed, one per line
deps_missing()
{
	local package

	for package in "$@"; do
		dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null |
			grep -q '^install ok installed$' || echo "$package"
	done
}

deps_install()
{
	local missing=()

	if ! command -v dpkg-query >/dev/null; then
		echo "This is no Debian system: make sure to have the like of: $*" >&2
		return 0
	fi
	mapfile -t missing < <(deps_missing "$@")
	[ ${#missing[@]} -gt 0 ] || return 0
	echo "Installing Debian packages: ${missing[*]}"
	# An old package list often names files that are gone: then refresh it and try again.
	deps_apt install "${missing[@]}" >/dev/null 2>&1 ||
		{ as_root apt-get -q update && deps_apt install "${missing[@]}"; }
}

deps_apt()
{
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends "$@" \
		</dev/null
}
