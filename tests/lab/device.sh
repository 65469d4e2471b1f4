# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# device.sh - make the RDMA device of a lab VM, and wait until it can be used; sourced.

device=rdma0
rdma=rxe0

# wait_until SECONDS COMMAND... - run COMMAND until it succeeds
wait_until()
{
	local end=$((SECONDS + $1))

	shift
	until "$@"; do
		[ "$SECONDS" -lt "$end" ] || return 1
		/run/lab/busybox sleep 0.02
	done
}

# gids_there NUMBER - has the device the RoCE v2 GIDs of both addresses
gids_there()
{
	local port=/sys/class/infiniband/$rdma/ports/1 gids='' file gid type

	for file in "$port/gids/"*; do
		{ read -r gid <"$file"; } 2>/dev/null || continue
		{ read -r type <"$port/gid_attrs/types/${file##*/}"; } 2>/dev/null || continue
		[ "$type" = "RoCE v2" ] && gids+=" $gid"
	done
	[[ $gids == *0000:ffff:c0a8:4d0$1* && $gids == *fd77:0000:0000:0000:0000:0000:0000:000$1* ]]
}

port_active()
{
	local state

	read -r state </sys/class/infiniband/$rdma/ports/1/state
	[[ $state == *ACTIVE* ]]
}

# device_add NUMBER - of the VM, which is the last part of its addresses.  Returns 1, with
# the reason on stderr, if the device does not come up.
device_add()
{
	if ! rdma link add $rdma type rxe netdev $device; then
		echo "cannot add $rdma on $device" >&2
	elif ! wait_until 20 gids_there "$1"; then
		echo "$rdma has not got the GIDs of its addresses" >&2
	elif ! wait_until 20 port_active; then
		echo "the port of $rdma is not active" >&2
	else
		return 0
	fi
	return 1
}
