# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# request.sh - ask the runner, outside the VM, to do something; sourced.

lab_port=/dev/virtio-ports/lab.req

# lab_request WORD... - send the request and wait until it is done.  Requests of
# one VM are done one after the other.  Returns 1, with the reason on stderr, if
# it was refused.
lab_request()
{
	local answer

	if [ ! -e $lab_port ]; then
		echo "${0##*/}: this works inside a lab VM only" >&2
		return 1
	fi
	exec 8>/run/lab/request.lock
	flock 8
	exec 9<>$lab_port
	echo "$*" >&9
	read -r answer <&9
	exec 9<&- 8>&-
	[ "$answer" = ok ] || { echo "${0##*/}: ${answer#error }" >&2; return 1; }
}
