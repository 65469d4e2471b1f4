#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# run.sh - everything there is to test, from a fresh checkout.
#
# Installs what is missing (as root or through sudo), then builds and runs
#   plain   all suites, quick ones first; the other builds compile behind them, niced,
#           because these tests mostly wait
#   lab     the suites that need an RDMA device, in VMs that have one (tests/lab);
#           meanwhile the plain suite fault, asan, tsan and the fuzz targets run
#   asan    all suites but perf under address and undefined-behaviour sanitizers
#   tsan    unit and integration under the thread sanitizer
#   fuzz    each fuzz target for a while, from its seed corpus
# Under the sanitizers tests that differ from another one only by the transport or
# address family (suite variant) are left out, under the thread sanitizer those as well that
# do the same in the same threads with other calls of the device (suite same-threads).
# A step that fails (install, build, a run without tests) counts as a failed
# test.  So does a test that cannot run for want of some part of the machine,
# unless that part was left out by name.  The last line is the total.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
build_root=$root/build-tests
jobs=$(nproc)
fuzz_seconds=10
leave_out=
only_suite=
passed=0
failed=0
hugepages_before=
lab_pid=
fuzz_pid=
builds_pid=
tool_begun=
asan_begun=
asan_fault_done=
tsan_done=
politely=()         # how to run what should leave the CPUs to the lab
later_fault=        # the plain suite runs while the lab does

# shellcheck source=tests/deps.sh
. "$root/tests/deps.sh"

usage()
{
	cat <<-'END'
	usage: tests/run.sh [--leave-out LIST] [--suite NAME] [--jobs N]
	                    [--build-root DIR] [--fuzz-seconds N]
	  --leave-out LIST    parts of the machine or of this run to do without, by
	                      name, separated by commas: kvm, hugetlb, userfaultfd,
	                      qemu, ipv6, lab, asan, tsan, fuzz
	  --suite NAME        only unit, cli, integration, vmm, fault, perf, lab, ... or fuzz;
	                      or lab-tool: all tests of the lab itself (10 minutes)
	  --jobs N            tests and compilers at a time (default: CPUs)
	  --build-root DIR    where the builds and logs go (default: build-tests/)
	  --fuzz-seconds N    how long each fuzz target runs (default: 10)
	END
}

# take_number OPTION TEXT - the number, or wrong usage
take_number()
{
	[[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "run.sh: $1 needs a number, not '$2'" >&2; exit 2; }
	echo "$2"
}

parse_options()
{
	while [ $# -gt 0 ]; do
		case $1 in
		-h | --help)
			usage
			exit 0
			;;
		--leave-out | --suite | --jobs | --build-root | --fuzz-seconds)
			[ $# -gt 1 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
			;;
		*)
			echo "run.sh: unknown option $1" >&2
			usage >&2
			exit 2
			;;
		esac
		case $1 in
		--leave-out) leave_out=${2// /,} ;;
		--suite) only_suite=$2 ;;
		--jobs) jobs=$(take_number "$1" "$2") || exit 2 ;;
		--build-root) build_root=$2 ;;
		--fuzz-seconds) fuzz_seconds=$(take_number "$1" "$2") || exit 2 ;;
		esac
		shift 2
	done
}

# is_left_out PART
is_left_out()
{
	[[ ,$leave_out, == *,$1,* ]]
}

# wants_suite NAME
wants_suite()
{
	[ -z "$only_suite" ] || [ "$only_suite" = "$1" ]
}

say()
{
	printf '%s\n' "== $*"
}

# step_failed WHAT [LOG] - count a failed step and show the end of its log
step_failed()
{
	failed=$((failed + 1))
	say "FAILED: $1"
	if [ $# -gt 1 ] && [ -f "$2" ]; then
		tail -n 40 "$2"
	fi
}

# raise_resources - what the tests need and root can give; given back at the end
raise_resources()
{
	local now

	now=$(cat /proc/sys/vm/nr_hugepages 2>/dev/null || echo 0)
	if ! is_left_out hugetlb && [ "$now" -lt 64 ]; then
		say "reserving 64 huge pages for the tests (now $now; restored at the end)"
		if as_root sh -c 'echo 64 >/proc/sys/vm/nr_hugepages'; then
			hugepages_before=$now
		else
			say "could not; tests that need huge pages will fail"
		fi
	fi
	if [ "$(ulimit -l)" != unlimited ]; then
		if ulimit -l unlimited 2>/dev/null; then
			say "lifted the limit of locked memory"
		else
			say "locked memory stays limited to $(ulimit -l) KiB"
		fi
	fi
}

restore_resources()
{
	[ -z "$hugepages_before" ] ||
		as_root sh -c "echo $hugepages_before >/proc/sys/vm/nr_hugepages"
	hugepages_before=
}

# leave - whatever the reason: nothing goes on in the background
leave()
{
	[ -z "$lab_pid" ] || kill -TERM -- "-$lab_pid" 2>/dev/null
	[ -z "$fuzz_pid" ] || kill -TERM -- "-$fuzz_pid" 2>/dev/null
	[ -z "$builds_pid" ] || kill -TERM -- "-$builds_pid" 2>/dev/null
	restore_resources
}

# build NAME MESON-OPTION... - configure and compile $build_root/NAME, or of it $build_targets
build()
{
	# shellcheck disable=SC2206 # words are what is wanted
	local targets=(${build_targets:-})
	local name=$1 dir=$build_root/$1 log=$build_root/$1-build.log begin=$SECONDS

	shift
	if [ -f "$dir/build.ninja" ]; then
		meson configure "$dir" "$@" >"$log" 2>&1
	else
		rm -rf "$dir"
		meson setup "$dir" "$root" "$@" >"$log" 2>&1
	fi && ninja -C "$dir" -j "$jobs" "${targets[@]}" >>"$log" 2>&1
	local status=$?
	if [ $status -ne 0 ]; then
		step_failed "build $name" "$log"
		return 1
	fi
	say "built $name ($((SECONDS - begin)) s)"
}

# count_results JSON NAME - add the results of one meson run; print logs of failures
count_results()
{
	local ok bad

	read -r ok bad < <(python3 "$root/tests/results.py" --leave-out "$leave_out" "$1")
	passed=$((passed + ${ok:-0}))
	failed=$((failed + ${bad:-1}))
	say "$2: ${ok:-0} passed, ${bad:-1} failed (log: ${1%.json}.txt)"
}

# has_suite DIR SUITE - is there a test in it?
has_suite()
{
	meson test -C "$1" --no-rebuild --list --suite "$2" 2>/dev/null |
		grep -qvE '^(ninja: |No |$)'
}

# run_suites NAME PARALLEL SUITE... - run suites of one build, at most PARALLEL tests at a time
run_suites()
{
	local name=$1 dir=$build_root/$1 parallel=$2 suite
	local chosen=() without=() words='' base

	shift 2
	for suite in "$@"; do
		if wants_suite "$suite" && has_suite "$dir" "$suite"; then
			chosen+=(--suite "$suite")
			words+="${words:+ }$suite"
		fi
	done
	[ ${#chosen[@]} -gt 0 ] || return 0
	base=testlog-${words// /-}
	for suite in ${not_suite:-}; do
		without+=(--no-suite "$suite")
	done
	rm -f "$dir/meson-logs/$base".*
	"${politely[@]}" "${run_wrapper[@]}" meson test -C "$dir" --no-rebuild --logbase "$base" \
		--num-processes "$parallel" --timeout-multiplier "$timeout_multiplier" \
		"${without[@]}" "${chosen[@]}" >"$dir/meson-logs/$base.out" 2>&1
	if [ ! -s "$dir/meson-logs/$base.json" ]; then
		step_failed "$name $words: no test ran" "$dir/meson-logs/$base.out"
		return
	fi
	count_results "$dir/meson-logs/$base.json" "$name $words"
}

# test_plain - all suites as built for development; the clock is theirs, so perf runs alone
test_plain()
{
	local timeout_multiplier=1
	build plain --buildtype=debugoptimized -Drdma=enabled || return
	builds_begin
	run_suites plain "$jobs" unit cli
	run_suites plain "$jobs" integration
	run_suites plain "$jobs" vmm
	run_suites plain 1 perf
	[ -n "$later_fault" ] || test_plain_fault
}

# test_plain_fault - migrations that go wrong; they mostly wait for timeouts
test_plain_fault()
{
	local timeout_multiplier=1

	later_fault=
	run_suites plain $((2 * jobs)) fault
}

build_asan()
{
	build asan -Doptimization=1 -Ddebug=true -Drdma=enabled -Db_sanitize=address,undefined
}

build_tsan()
{
	build tsan -Doptimization=1 -Ddebug=true -Drdma=enabled -Db_sanitize=thread
}

build_fuzz()
{
	build_targets=fuzzers CC=clang build fuzz --buildtype=debugoptimized -Drdma=enabled -Dfuzz=true
}

# builds_begin - the other builds and a few tests of the lab itself, in the background and
# where nobody else wants the CPU.  Nothing is counted here: the parts build again, which
# does nothing then, and count.
builds_begin()
{
	local part

	[ -z "$only_suite" ] || return 0
	set -m # as lab_begin
	(
		renice -n 19 -p "$BASHPID" >/dev/null
		for part in fuzz asan tsan; do
			is_left_out "$part" || "build_$part"
		done
		renice -n 10 -p "$BASHPID" >/dev/null 2>&1
		is_left_out lab || lab_tool --quick
	) &
	tool_begun=1
	builds_pid=$!
	set +m
}

# builds_end - wait for them
builds_end()
{
	[ -n "$builds_pid" ] || return 0
	wait "$builds_pid"
	builds_pid=
}

# lab_tool [--quick] - tests of the lab itself
lab_tool()
{
	rm -rf "$build_root/lab-tool"
	mkdir -p "$build_root/lab-tool"
	python3 "$root/tests/lab/test_lab.py" "$@" >"$build_root/lab-tool/tool.txt" 2>&1
	echo $? >"$build_root/lab-tool/tool.status"
}

# lab_work LOGS - what the lab runs; nothing is counted here, because it may be a subshell
lab_work()
{
	if [ "$only_suite" = lab-tool ]; then
		lab_tool
		return
	fi
	python3 "$root/tests/lab/run_suite.py" --build "$build_root/plain" --logs "$1" |
		tee "$1/results.txt"
	: >"$1/suites.done"
	[ -n "$tool_begun" ] || lab_tool --quick
}

# lab_begin - the suites that need an RDMA device, in the background
lab_begin()
{
	wants_suite lab || [ "$only_suite" = lab-tool ] || return 0
	if [ "$only_suite" != lab-tool ]; then
		build plain --buildtype=debugoptimized -Drdma=enabled || return
	fi
	rm -rf "$build_root/lab"
	mkdir -p "$build_root/lab"
	set -m # a process group of its own, to be ended as a whole
	lab_work "$build_root/lab" &
	lab_pid=$!
	set +m
}

# lab_suites_end - wait for the suites, and count
lab_suites_end()
{
	local logs=$build_root/lab

	[ -n "$lab_pid" ] && [ "$only_suite" != lab-tool ] || return 0
	while [ ! -e "$logs/suites.done" ] && kill -0 "$lab_pid" 2>/dev/null; do
		sleep 1
	done
	if [ -s "$logs/results.json" ]; then
		count_results "$logs/results.json" lab
	else
		step_failed "lab: no test ran" "$logs/results.txt"
	fi
}

# lab_tool_end - the same for the tests of the lab itself
lab_tool_end()
{
	local logs=$build_root/lab-tool

	[ -n "$lab_pid" ] || return 0
	wait "$lab_pid"
	lab_pid=
	if [ "$(cat "$logs/tool.status" 2>/dev/null)" = 0 ]; then
		passed=$((passed + 1))
		say "lab tool: passed (log: $logs/tool.txt)"
	else
		step_failed "lab tool" "$logs/tool.txt"
	fi
}

# while_lab_runs - what needs no clock.  All but tests that wait most of the time gives way
# to the lab: emulated CPUs that lose theirs spin on locks for one another.
while_lab_runs()
{
	[ -n "$lab_pid" ] && [ -z "$only_suite" ] || return 0
	politely=(nice -n 10)
	run_part fuzz fuzz_begin
	run_part asan test_asan_begin
	run_part tsan test_tsan
	politely=()
	# The lab's last tests wait for timeouts, too.
	test_plain_fault
	run_part asan test_asan_fault
}

# asan_suites PARALLEL SUITE... - under the address sanitizer
asan_suites()
{
	local timeout_multiplier=3 not_suite=variant

	export ASAN_OPTIONS=detect_leaks=1:abort_on_error=1:strict_string_checks=1
	export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
	run_suites asan "$@"
}

# test_asan_begin - what wants the CPUs
test_asan_begin()
{
	asan_begun=1
	build_asan || return
	asan_suites "$jobs" unit cli integration vmm
}

# test_asan_fault - which mostly waits for timeouts
test_asan_fault()
{
	asan_fault_done=1
	build_asan && asan_suites $((2 * jobs)) fault
}

test_asan()
{
	[ -n "$asan_begun" ] || test_asan_begin
	[ -n "$asan_fault_done" ] || test_asan_fault
}

# tsan_suites SUITE... - under the thread sanitizer
tsan_suites()
{
	local timeout_multiplier=5 not_suite='variant same-threads'

	export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
	run_suites tsan "$jobs" "$@"
}

test_tsan()
{
	[ -z "$tsan_done" ] || return 0
	tsan_done=1
	wants_suite unit || wants_suite integration || return 0
	build_tsan && tsan_suites unit integration
}

# fuzz_one TARGET - run one target from its seeds; its log and artifacts stay in the build
fuzz_one()
{
	local target=$1 name dir seeds=()

	name=$(basename "$target")
	dir=$build_root/fuzz/run/$name
	rm -rf "$dir"
	mkdir -p "$dir/corpus"
	for seeds_dir in "$root/tests/fuzz/corpus/$name" "$root/tests/fuzz/corpus/${name#fuzz_}"; do
		[ ! -d "$seeds_dir" ] || seeds+=("$seeds_dir")
	done
	"${politely[@]}" "${run_wrapper[@]}" "$target" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 \
		-artifact_prefix="$dir/" "$dir/corpus" ${seeds[@]+"${seeds[@]}"} \
		>"$dir/log" 2>&1
}

# show_inputs NAME - the inputs that made a target fail, to copy from a log
show_inputs()
{
	local input

	for input in "$build_root/fuzz/run/$1"/{crash,leak,timeout,oom,slow-unit}-*; do
		[ -f "$input" ] || continue
		say "$input (base64):"
		base64 "$input"
	done
}

# fuzz_targets - the targets that were built
fuzz_targets()
{
	find "$build_root/fuzz/tests/fuzz" -maxdepth 1 -type f -executable -name 'fuzz_*' 2>/dev/null |
		sort
}

# fuzz_work PARALLEL - run all targets; nothing is counted here, because it may be a subshell
fuzz_work()
{
	local targets target

	rm -rf "$build_root/fuzz/run"
	mapfile -t targets < <(fuzz_targets)
	for target in ${targets[@]+"${targets[@]}"}; do
		while [ "$(jobs -pr | wc -l)" -ge "$1" ]; do
			wait -n
		done
		(
			fuzz_one "$target"
			echo $? >"$build_root/fuzz/run/$(basename "$target")/status"
		) &
	done
	wait
}

# fuzz_begin - in the background, one target at a time
fuzz_begin()
{
	build_fuzz || return
	set -m # as lab_begin
	fuzz_work 1 &
	fuzz_pid=$!
	set +m
}

# test_fuzz - wait for the targets, or run them now, and count
test_fuzz()
{
	local target name nr=0

	wants_suite fuzz || return 0
	if [ -n "$fuzz_pid" ]; then
		wait "$fuzz_pid"
		fuzz_pid=
	else
		build_fuzz || return
		fuzz_work "$jobs"
	fi
	while read -r target; do
		name=$(basename "$target")
		nr=$((nr + 1))
		if [ "$(cat "$build_root/fuzz/run/$name/status" 2>/dev/null)" = 0 ]; then
			passed=$((passed + 1))
		else
			step_failed "fuzz: $name" "$build_root/fuzz/run/$name/log"
			show_inputs "$name"
		fi
	done < <(fuzz_targets)
	if [ $nr -eq 0 ]; then
		step_failed "fuzz: there is no fuzz target"
	else
		say "fuzz: $nr targets, $fuzz_seconds s each"
	fi
}

# run_part NAME FUNCTION - unless left out by name; its environment stays its own
run_part()
{
	if is_left_out "$1"; then
		say "$1: left out"
	else
		"$2"
	fi
}

main()
{
	local begin=$SECONDS

	parse_options "$@"
	exec </dev/null
	mkdir -p "$build_root" && build_root=$(cd "$build_root" && pwd) || exit 2
	export TERN_TEST_LEAVE_OUT=$leave_out
	trap leave EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	if ! deps_install "${DEPS_BUILD[@]}" "${DEPS_TEST[@]}" >"$build_root/deps.log" 2>&1; then
		step_failed "install the packages" "$build_root/deps.log"
	fi
	if ! is_left_out lab && ! deps_install "${DEPS_LAB[@]}" >>"$build_root/deps.log" 2>&1; then
		step_failed "install the packages of the lab" "$build_root/deps.log"
	fi
	grep '^Installing' "$build_root/deps.log"
	raise_resources
	# The sanitizers want their address ranges free: run without address randomisation.
	run_wrapper=()
	if setarch "$(uname -m)" -R true 2>/dev/null; then
		run_wrapper=(setarch "$(uname -m)" -R)
	fi
	if [ -z "$only_suite" ] && ! is_left_out lab; then
		later_fault=1
	fi
	case $only_suite in
	lab-tool | fuzz) ;;
	*) run_part plain test_plain ;;
	esac
	run_part lab lab_begin
	builds_end
	while_lab_runs
	[ -z "$later_fault" ] || run_part plain test_plain_fault # no lab, after all
	lab_suites_end
	case $only_suite in
	lab-tool | fuzz) ;;
	*)
		run_part asan test_asan
		run_part tsan test_tsan
		;;
	esac
	lab_tool_end
	run_part fuzz test_fuzz
	if [ $((passed + failed)) -eq 0 ]; then
		step_failed "no test ran"
	fi
	say "took $((SECONDS - begin)) s; logs under $build_root"
	restore_resources
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ]
}

main "$@"
