# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# guest.sh - bring up RDMA in a lab VM and run the command; process 1 of the VM.
#
# The environment has the settings that init lists.  What goes wrong here is
# told to the runner in one sentence, and ends the lab.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

busybox=/run/lab/busybox
# shellcheck source=tests/lab/device.sh
. "$(dirname "$LAB_GUEST")/device.sh"
# The command sees of these only what its own script exports.
export -n LAB_VM LAB_VMS LAB_GUEST LAB_COMMAND LAB_SHARE LAB_KERNEL LAB_MARKER
export -n LAB_MODULES LAB_HUGEPAGES LAB_KEEP

# fail MESSAGE - report and stop; the runner ends the VM
fail()
{
	echo "fail $*" >&3
	sleep infinity
}

rdma_up()
{
	local number=1 why

	[ "$LAB_VM" = a ] || number=2
	why=$(device_add $number 2>&1) || fail "$why"
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
	local go status uptime

	exec 3<>/dev/virtio-ports/lab.ctl
	rdma_up
	extras
	# With the time since the start: a kernel that misjudged its clock is no use.
	read -r uptime _ </proc/uptime
	echo "up $uptime $($busybox dmesg | $busybox grep -o 'tsc: .*' | $busybox tr '\n' ';')" >&3
	read -r go <&3
	[ "$go" = go ] || fail "the runner said '$go' instead of go"
	"run_$LAB_VM"
	$busybox sync
	echo "exit $status" >&3
	sleep infinity
}

main
