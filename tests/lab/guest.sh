# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# guest.sh - bring up RDMA in a lab VM and run the command; process 1 of the VM.
#
# The environment has the settings that init lists.  What goes wrong here is
# told to the runner in one sentence, and ends the lab.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

device=rdma0
rdma=rxe0
busybox=/run/lab/busybox
# The command sees of these only what its own script exports.
export -n LAB_VM LAB_VMS LAB_GUEST LAB_COMMAND LAB_SHARE LAB_KERNEL LAB_MARKER
export -n LAB_MODULES LAB_HUGEPAGES LAB_KEEP

# fail MESSAGE - report and stop; the runner ends the VM
fail()
{
	echo "fail $*" >&3
	sleep infinity
}

# wait_until SECONDS COMMAND... - run COMMAND until it succeeds
wait_until()
{
	local end=$((SECONDS + $1))

	shift
	until "$@"; do
		[ "$SECONDS" -lt "$end" ] || return 1
		$busybox sleep 0.02
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

rdma_up()
{
	local number=1

	[ "$LAB_VM" = a ] || number=2
	rdma link add $rdma type rxe netdev $device || fail "cannot add $rdma on $device"
	wait_until 20 gids_there $number || fail "$rdma has not got the GIDs of its addresses"
	wait_until 20 port_active || fail "the port of $rdma is not active"
}

extras()
{
	local module there

	for module in $LAB_MODULES; do
		modprobe "$module" || fail "cannot load the module $module"
	done
	read -r there </proc/sys/vm/nr_hugepages
	[ "$there" -ge "$LAB_HUGEPAGES" ] ||
		fail "got $there of $LAB_HUGEPAGES huge pages; give the VM more memory"
	ulimit -l unlimited
	ulimit -n 65536
}

# end_stragglers PID... - give those that still hold the output a moment, then
# end every process but the ones named: they only copy what is left
end_stragglers()
{
	local i pid keep=" 1 $* "

	for ((i = 0; i < 50; i++)); do
		kill -0 "$@" 2>/dev/null || return 0
		$busybox sleep 0.02
	done
	for pid in /proc/[0-9]*; do
		pid=${pid#/proc/}
		[[ $keep == *" $pid "* ]] || kill -KILL "$pid" 2>/dev/null
	done
}

# run_a - the command with its output to the runner; sets status
run_a()
{
	local out err

	exec 5>/dev/virtio-ports/lab.out 6>/dev/virtio-ports/lab.err
	$busybox mkfifo /run/lab/out /run/lab/err
	$busybox cat /run/lab/out >&5 3>&- 6>&- &
	out=$!
	$busybox cat /run/lab/err >&6 3>&- 5>&- &
	err=$!
	$busybox setsid bash "$LAB_COMMAND" </dev/null >/run/lab/out 2>/run/lab/err \
		3>&- 5>&- 6>&- &
	wait $!
	status=$?
	end_stragglers $out $err
	wait $out $err
	printf %s "$LAB_MARKER" >&5
	printf %s "$LAB_MARKER" >&6
}

# run_b - the command with its output to the shared folder; sets status
run_b()
{
	$busybox setsid bash "$LAB_COMMAND" </dev/null >"$LAB_SHARE/b.out" 2>"$LAB_SHARE/b.err" \
		3>&- &
	wait $!
	status=$?
	echo $status >"$LAB_SHARE/.b.status"
	mv "$LAB_SHARE/.b.status" "$LAB_SHARE/b.status"
}

main()
{
	local go status

	exec 3<>/dev/virtio-ports/lab.ctl
	rdma_up
	extras
	echo up >&3
	read -r go <&3
	[ "$go" = go ] || fail "the runner said '$go' instead of go"
	"run_$LAB_VM"
	$busybox sync
	echo "exit $status" >&3
	sleep infinity
}

main
