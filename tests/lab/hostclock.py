# SPDX-License-Identifier: BSD-2-Clause
"""How fast the time stamp counter of this machine runs.

QEMU's software emulation hands this counter to the guest as the guest's own.  A
guest kernel finds out how fast it runs by waiting 10 ms with the PIT.  When QEMU
loses its CPU at the wrong moment there, the kernel takes a part of these 10 ms
for the whole, and from then on its clock runs several times too fast: every
timeout in that VM comes early.  So we measure here, where losing the CPU does no
harm, and tell the kernel (tsc_early_khz=).
"""

import ctypes
import mmap
import platform
import time

# rdtsc; shl $32,%rdx; or %rdx,%rax; ret
RDTSC = bytes.fromhex("0f31" "48c1e220" "4809d0" "c3")
MEASURE_SECONDS = 0.05
TRIES = 20


def reading(rdtsc):
    """The counter and time.monotonic_ns() of one moment, as near as can be had."""
    best = None
    for _ in range(TRIES):
        before = time.monotonic_ns()
        ticks = rdtsc()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, ticks, (before + after) // 2)
    return best[1:]


def tsc_khz():
    """The frequency in kHz, within some hundredths of a percent; None where there is none."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:     # a machine that allows no writable code
        return None
    code.write(RDTSC)
    place = ctypes.c_char.from_buffer(code)
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
    begin_ticks, begin_ns = reading(rdtsc)
    time.sleep(MEASURE_SECONDS)
    end_ticks, end_ns = reading(rdtsc)
    del rdtsc, place
    code.close()
    return (end_ticks - begin_ticks) * 1000000 // (end_ns - begin_ns)
