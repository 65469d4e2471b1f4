#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# demo.sh - from a fresh checkout to a live migration: installs what is missing,
# builds the project in build/ and moves a running guest between two processes: one under
# KVM where that may be used, else the synthetic guest of `tern bench`.
# Arguments go to `tern bench`.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/deps.sh
. "$root/tests/deps.sh"

deps_install "${DEPS_BUILD[@]}"
cd "$root"
if [ ! -f build/build.ninja ]; then
	echo "Configuring build/ ..."
	meson setup build --buildtype=release -Dtests=false -Dwerror=false >/dev/null ||
		{ tail -n 20 build/meson-logs/meson-log.txt >&2; exit 1; }
fi
echo "Compiling ..."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
meson compile -C build >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }

if [ $# -eq 0 ] && [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
	cat <<-'END'

	A guest of 1 GiB counts under KVM, moves to another process, and goes on
	counting there; no number is missing and none comes twice.
	  perf/demo_vm.py build/src/vmm/tern-vm

	END
	perf/demo_vm.py build/src/vmm/tern-vm
	exit
fi
if [ $# -eq 0 ]; then
	cat <<-'END'

	A guest of 1 GiB runs in one process while its memory moves to another; the
	guest goes on there, and every page is checked against what it must hold.
	  build/src/cli/tern bench
	END
fi
echo
build/src/cli/tern bench "$@"
