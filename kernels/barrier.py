"""How threads that run one function together share its work: tickets for the items of a step, a barrier after it.

Both live in four int64 that all threads see, a cache line apart: arrivals, the barrier's generation, the next ticket,
and how impatient waiting has become.
"""

import sys
from typing import Any

from llvmlite import ir
from numba import types

from .simd import I32, atomic_add, atomic_get, atomic_set, emit_call, instruction, kernel
from .target import COLUMN

ARRIVED, GENERATION, TICKET, IMPATIENCE = 0, 64, 128, 192  # bytes into the shared memory
# 0.2 to 1 ms, depending on how long the processor's pause takes: longer than threads that all have a core ever wait.
# After that the missing thread has no core, so sleep, and spin only half as long next time (at least 1/32). A wait that
# was short enough doubles the next one again.
SPINS = 20_000
IMPATIENT = 5
NAP = 50  # microseconds


@instruction(types.void, meaning=lambda: None)
def pause(b: Any) -> None:
    """Tell the core that this is a loop that waits."""
    if COLUMN.cpu.startswith("x86"):
        emit_call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif COLUMN.dot == "sdot":
        emit_call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(I32, 1))


@instruction(types.void, meaning=lambda: None)
def sleep(b: Any) -> None:
    """usleep() of the C library; Windows has none. sched_yield() would give the core away for milliseconds; the
    scheduler favours a thread that slept."""
    if sys.platform != "win32":
        emit_call(b, "usleep", I32, ir.Constant(I32, NAP))


@kernel
def draw(shared: int, chunk: int) -> int:
    """The first of the next `chunk` items that no thread has yet."""
    return atomic_add(shared + TICKET, chunk)


@kernel
def meet(shared: int, threads: int) -> None:
    """Wait until all threads are here. The last one puts the tickets back to 0 for the next step."""
    generation = atomic_get(shared + GENERATION)
    if atomic_add(shared + ARRIVED, 1) == threads - 1:
        atomic_set(shared + ARRIVED, 0)
        atomic_set(shared + TICKET, 0)
        atomic_set(shared + GENERATION, generation + 1)
        return
    impatience = atomic_get(shared + IMPATIENCE)
    spins, limit = 0, SPINS >> impatience
    while atomic_get(shared + GENERATION) == generation:
        spins += 1
        if spins < limit:
            pause()
        else:
            sleep()
    if spins >= limit:
        atomic_set(shared + IMPATIENCE, min(impatience + 1, IMPATIENT))
    elif impatience > 0:
        atomic_set(shared + IMPATIENCE, impatience - 1)
