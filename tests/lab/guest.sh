# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# guest.sh - set up a lab VM and run its command; read by the VM's first process.
#
# The runner's script sets these and reads this file:
#   LAB_VM          a or b
#   LAB_VMS         how many VMs there are
#   LAB_RUN         the VM's folder on the host; has `command`, a script
#   LAB_SHARE       where the shared folder goes
#   LAB_KERNEL      the folder to have as /lib/modules
#   LAB_MARKER      what ends the output streams
#   LAB_MODULES     modules to load besides, by name
#   LAB_HUGEPAGES   huge pages that must be there
#   LAB_KEEP        names below /tmp that stay visible
#
# What goes wrong here is told to the runner in one sentence, and ends the lab.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

device=rdma0
rdma=rxe0

# fail MESSAGE - report and stop; the runner ends the VM
fail()
{
	echo "lab: $*" >/dev/console
	if [ -n "${ctl:-}" ]; then
		echo "fail $*" >&3
		sleep infinity
	fi
	echo o >/proc/sysrq-trigger
	sleep infinity
}

# wait_until SECONDS COMMAND... - run COMMAND until it succeeds
wait_until()
{
	local end=$((SECONDS + $1))

	shift
	until "$@"; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.02
	done
}

# mount_tmp - an empty /tmp, but with the named parts of the host's in it
mount_tmp()
{
	local name

	mkdir -p /run/lab/tmp
	mount --bind /tmp /run/lab/tmp
	mount -t tmpfs -o mode=1777 tmp /tmp || fail "cannot mount /tmp"
	for name in $LAB_KEEP; do
		if [ -d "/run/lab/tmp/$name" ]; then
			mkdir "/tmp/$name"
		elif [ -f "/run/lab/tmp/$name" ]; then
			: >"/tmp/$name"
		else
			continue
		fi
		mount --bind "/run/lab/tmp/$name" "/tmp/$name"
	done
}

mount_all()
{
	mkdir -p /lib/modules
	mount --bind "$LAB_KERNEL" /lib/modules || fail "cannot see the modules in $LAB_KERNEL"
	mount -t tmpfs -o mode=755 run /run || fail "cannot mount /run"
	mkdir /run/lab /run/lock
	mount_tmp
	mkdir -p /dev/pts /dev/shm /dev/hugepages
	mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
	mount -t tmpfs -o mode=1777 shm /dev/shm
	mount -t hugetlbfs hugetlbfs /dev/hugepages
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mkdir -p "$LAB_SHARE"
	mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share "$LAB_SHARE" ||
		fail "cannot mount the shared folder"
	ln -sfn /proc/self/fd /dev/fd
	ln -sfn /proc/self/fd/0 /dev/stdin
	ln -sfn /proc/self/fd/1 /dev/stdout
	ln -sfn /proc/self/fd/2 /dev/stderr
}

# name_ports - /dev/virtio-ports/NAME for each port, as udev would
name_ports()
{
	local port name

	modprobe virtio_console || fail "cannot load virtio_console"
	mkdir -p /dev/virtio-ports
	wait_until 10 ports_named || fail "the virtio-serial ports do not appear"
	for port in /sys/class/virtio-ports/*; do
		read -r name <"$port/name"
		ln -sfn "/dev/${port##*/}" "/dev/virtio-ports/$name"
	done
}

# ports_named - are all ports there, with their names
ports_named()
{
	local nr=4

	[ "$LAB_VM" = a ] || nr=2
	[ "$(cat /sys/class/virtio-ports/*/name 2>/dev/null | grep -c '^lab\.')" -eq $nr ]
}

# add_device - the network interface that rxe sits on
add_device()
{
	if [ "$LAB_VMS" -gt 1 ]; then
		modprobe virtio_net || fail "cannot load virtio_net"
		wait_until 10 test -e /sys/class/net/eth0 || fail "the wire's interface does not appear"
		ip link set eth0 name $device
	else
		modprobe dummy numdummies=0
		ip link add $device type dummy
	fi
	ip link set $device mtu 9000 up || fail "cannot bring $device up"
}

# gids_there NUMBER - has rxe the RoCE v2 GIDs of both addresses
gids_there()
{
	local gids file gid type

	gids=
	for file in "/sys/class/infiniband/$rdma/ports/1/gids/"*; do
		{ read -r gid <"$file"; } 2>/dev/null || continue
		{ read -r type <"${file%/gids/*}/gid_attrs/types/${file##*/}"; } 2>/dev/null ||
			continue
		[ "$type" = "RoCE v2" ] && gids+=" $gid"
	done
	[[ $gids == *0000:ffff:c0a8:4d0$1* && $gids == *fd77:0000:0000:0000:0000:0000:0000:000$1* ]]
}

port_active()
{
	grep -q ACTIVE /sys/class/infiniband/$rdma/ports/1/state
}

rdma_up()
{
	local number=1 other=b

	[ "$LAB_VM" = a ] || { number=2; other=a; }
	ip link set lo up
	add_device
	ip addr add 192.168.77.$number/24 dev $device
	ip addr add fd77::$number/64 dev $device nodad
	modprobe -a rdma_rxe ib_uverbs rdma_ucm || fail "cannot load the RDMA modules"
	rdma link add $rdma type rxe netdev $device || fail "cannot add $rdma on $device"
	wait_until 20 gids_there $number || fail "$rdma has not got the GIDs of its addresses"
	wait_until 20 port_active || fail "the port of $rdma is not active"
	hostname "lab-$LAB_VM"
	printf '%s\n' '127.0.0.1 localhost' '::1 localhost' "127.0.1.1 lab-$LAB_VM" \
		"192.168.77.$number $LAB_VM" "fd77::$number $LAB_VM" >/run/lab/hosts
	[ "$LAB_VMS" -lt 2 ] || printf '%s\n' "192.168.77.$((3 - number)) $other" \
		"fd77::$((3 - number)) $other" >>/run/lab/hosts
	mount --bind /run/lab/hosts /etc/hosts
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
		sleep 0.02
	done
	for pid in /proc/[0-9]*; do
		pid=${pid#/proc/}
		[[ $keep == *" $pid "* ]] || kill -KILL "$pid" 2>/dev/null
	done
}

# run_a - the command with its output to the runner; sets status
run_a()
{
	local out err pid

	exec 5>/dev/virtio-ports/lab.out 6>/dev/virtio-ports/lab.err
	mkfifo /run/lab/out /run/lab/err
	cat /run/lab/out >&5 3>&- 6>&- &
	out=$!
	cat /run/lab/err >&6 3>&- 5>&- &
	err=$!
	setsid bash "$LAB_RUN/command" </dev/null >/run/lab/out 2>/run/lab/err 3>&- 5>&- 6>&- &
	pid=$!
	wait $pid
	status=$?
	end_stragglers $out $err
	wait $out $err
	printf %s "$LAB_MARKER" >&5
	printf %s "$LAB_MARKER" >&6
}

# run_b - the command with its output to the shared folder; sets status
run_b()
{
	setsid bash "$LAB_RUN/command" </dev/null >"$LAB_SHARE/b.out" 2>"$LAB_SHARE/b.err" 3>&- &
	wait $!
	status=$?
	echo $status >"$LAB_SHARE/.b.status"
	mv "$LAB_SHARE/.b.status" "$LAB_SHARE/b.status"
}

main()
{
	local go status

	mount_all
	name_ports
	exec 3<>/dev/virtio-ports/lab.ctl
	ctl=open
	rdma_up
	extras
	echo up >&3
	read -r go <&3
	[ "$go" = go ] || fail "the runner said '$go' instead of go"
	"run_$LAB_VM"
	sync
	echo "exit $status" >&3
	sleep infinity
}

main
