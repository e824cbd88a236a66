"""What the machine allows, and how near we come.

    python bench/floor.py CHECKPOINT [--seconds 5]

Measures, on one thread and on all, what no program can exceed: int8 multiply-adds and float32 multiply-adds with all
operands in registers, and reading memory. Then, in the same run, our model, shape by shape, compared with its floor

    max(weight bytes / bandwidth, integer operations / int8 peak + attention operations / float32 peak)

A multiply-add counts as two operations. Integer operations: two for each weight of the trunk's products and token, two
for each weight of the Dense heads and text. Attention: 4 N H for each pair of a query and a key inside its window (a
product with the key, one with the value), float32 in every format. For float32 weights all of it is float32.
The loops are LLVM assembly inside Numba functions, so that what runs is what is meant.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from record import Result, Run, bench_parser, log
from tables import show

I8, I32, I64, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


@dataclass(frozen=True)
class Instruction:
    """One step of an accumulator, as inline assembly: $0 is the accumulator, $1 and $2 the operands. With a scratch
    register, which is an output too and so is numbered before the inputs, $1 is that one, $2 and $3 the operands.

    bits          of a vector; 512 bits leave room for 24 accumulators, fewer registers for 12
    operations    of one step
    accumulators  enough to hide the latency of a step
    """

    name: str
    assembly: str
    registers: str
    bits: int
    operations: int
    accumulators: int
    scratch: int = 0


SCRATCH = "vpmaddubsw $3, $2, $1\n vpmaddwd $2, $1, $1\n vpaddd $1, $0, $0"
INT8 = {  # by the CPU feature that it takes, best first
    "avx512vnni": Instruction("vpdpbusd 512", "vpdpbusd $2, $1, $0", "v", 512, 128, 24),
    "avxvnni": Instruction("vpdpbusd 256", "{vex} vpdpbusd $2, $1, $0", "x", 256, 64, 12),
    "avx2": Instruction("vpmaddubsw, vpmaddwd, vpaddd 256", SCRATCH, "x", 256, 64, 10, scratch=1),
    "dotprod": Instruction("sdot 128", "sdot $0.4s, $1.16b, $2.16b", "w", 128, 32, 24),
}
FLOAT32 = {
    "avx512f": Instruction("vfmadd231ps 512", "vfmadd231ps $2, $1, $0", "v", 512, 32, 24),
    "fma": Instruction("vfmadd231ps 256", "vfmadd231ps $2, $1, $0", "x", 256, 16, 12),
    "neon": Instruction("fmla 128", "fmla $0.4s, $1.4s, $2.4s", "w", 128, 8, 24),
}
READ = Instruction("loads", "", "", 512, 0, 16)  # LLVM splits the vectors where the CPU has shorter ones


def best(instructions: dict[str, Instruction]) -> Instruction | None:
    features = llvm.get_host_cpu_features()
    return next((entry for name, entry in instructions.items() if features.get(name)), None)


def register_loop(step: Instruction) -> Callable[[int], int]:
    """loop(count): `count` steps of each accumulator, which are in registers; returns something of the result."""
    llvm.initialize_native_asmparser()
    lanes = step.bits // 32
    vector = ir.VectorType(I32, lanes)
    inputs = f"{step.registers},{step.registers},0"
    outputs = f"=&{step.registers}" if step.scratch else f"={step.registers}"
    if step.scratch:
        outputs += f",=&{step.registers}"
    result = ir.LiteralStructType([vector, vector]) if step.scratch else vector
    kind = ir.FunctionType(result, [vector] * 3)

    @intrinsic
    def repeat(typing: Any, count: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            # 1.0 as float32 bits, as bytes 0, 0, 128, 63: the float sums stay finite, the byte sums wrap
            operand = ir.Constant(vector, [0x3F800000] * lanes)
            slots = [
                cgutils.alloca_once_value(builder, ir.Constant(vector, [i + 1] * lanes))
                for i in range(step.accumulators)
            ]
            with cgutils.for_range(builder, arguments[0]):
                for slot in slots:
                    values = [operand, operand, builder.load(slot)]
                    out = builder.asm(kind, step.assembly, f"{outputs},{inputs}", values, side_effect=False)
                    builder.store(builder.extract_value(out, 0) if step.scratch else out, slot)
            total = builder.load(slots[0])
            for slot in slots[1:]:
                total = builder.xor(total, builder.load(slot))
            return builder.zext(builder.extract_element(total, ir.Constant(I32, 0)), I64)

        return types.int64(types.int64), generate

    return njit(nogil=True)(lambda count: repeat(count))  # type: ignore[no-any-return]


def read_loop() -> Callable[[int, int], int]:
    """loop(address, count): reads `count` pieces of 1,024 bytes; returns something of them."""
    vector = ir.VectorType(I32, 16)

    @intrinsic
    def read(typing: Any, address: Any, count: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            slots = [
                cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * 16)) for _ in range(READ.accumulators)
            ]
            start = builder.inttoptr(arguments[0], vector.as_pointer())
            with cgutils.for_range(builder, arguments[1]) as loop:
                first = builder.mul(loop.index, ir.Constant(I64, len(slots)))
                for i, slot in enumerate(slots):
                    piece = builder.load(builder.gep(start, [builder.add(first, ir.Constant(I64, i))]), align=64)
                    builder.store(builder.xor(builder.load(slot), piece), slot)
            total = builder.load(slots[0])
            for slot in slots[1:]:
                total = builder.xor(total, builder.load(slot))
            return builder.zext(builder.extract_element(total, ir.Constant(I32, 0)), I64)

        return types.int64(types.int64, types.int64), generate

    return njit(nogil=True)(lambda address, count: read(address, count))  # type: ignore[no-any-return]


def together(threads: int, work: Callable[[int], object], rounds: int) -> list[float]:
    """Seconds of the slowest of some threads that do work(number) at the same time, for each of `rounds`. By the time
    that the threads had the processor: a busy neighbour does not lower a peak.

    Each thread is kept on one core (Linux): new threads may start on the same core, and end before they are moved.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    slowest = []
    for _ in range(rounds):
        barrier = threading.Barrier(threads)
        seconds: list[float] = []

        def run(number: int, barrier: threading.Barrier = barrier, seconds: list[float] = seconds) -> None:
            if cores:
                os.sched_setaffinity(0, {cores[number % len(cores)]})
            barrier.wait()
            start = time.thread_time()
            work(number)
            seconds.append(time.thread_time() - start)

        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        slowest.append(max(seconds))
    return slowest


def register_peak(step: Instruction, threads: int, rounds: int = 10) -> list[float]:
    """Operations per second, of each round."""
    loop = register_loop(step)
    loop(1)  # compiles it

    def seconds(threads: int, count: int, rounds: int) -> list[float]:
        return together(threads, lambda number: loop(count), rounds)

    count = 1000
    while seconds(1, count, 1)[0] < 0.03:
        count *= 2
    operations = threads * count * step.accumulators * step.operations
    return [operations / took for took in seconds(threads, count, rounds)]


def bandwidth(threads: int, megabytes: int = 512, rounds: int = 10) -> list[float]:
    """Bytes per second of reading far more than any cache holds, of each round."""
    loop = read_loop()
    data = np.ones(megabytes << 20, np.uint8)
    start = data.ctypes.data + -data.ctypes.data % 64
    pieces = ((megabytes << 20) - 64) // 1024 // threads
    loop(start, 1)
    seconds = together(threads, lambda number: loop(start + number * pieces * 1024, pieces), rounds)
    return [threads * pieces * 1024 / took for took in seconds]


def peaks(threads: int) -> dict[str, list[float]]:
    """Operations or bytes per second, of each round; the best one is the peak."""
    int8, float32 = best(INT8), best(FLOAT32)
    return {
        "int8": register_peak(int8, threads) if int8 else [float("nan")],
        "float32": register_peak(float32, threads) if float32 else [float("nan")],
        "bandwidth": bandwidth(threads),
    }


def peak_row(threads: int, found: dict[str, list[float]]) -> Result:
    """Of a result's `peaks`: with the instructions that gave them."""
    names = {kind: entry.name for kind, entry in (("int8", best(INT8)), ("float32", best(FLOAT32))) if entry}
    return {"threads": threads, "instructions": names, **found}


BYTES = {"float32": 4, "q8_0": 34 / 32, "q4_0": 18 / 32}  # of a weight, its share of the block's scale included


@dataclass(frozen=True)
class Work:
    """What a call has to do at least. Weights are those of the products; the embedding's rows are next to nothing."""

    weights: int
    products: int
    attention: int


def work_of(model: Any, lengths: list[int]) -> Work:
    """Counted from the model's configuration."""
    config = model.config
    trunk = sum(config.D * layer.H * 2 * (layer.N + layer.K) + 3 * config.D * config.F for layer in config.layers)
    heads = sum(head.inputs * head.outputs for head in model.modules.heads if hasattr(head, "inputs"))
    attention = sum(4 * layer.N * layer.H * pairs(T, layer.radius) for T in lengths for layer in config.layers)
    return Work(trunk + heads, 2 * (trunk * sum(lengths) + heads * len(lengths)), attention)


def pairs(T: int, radius: int | None) -> int:
    """How many (i, j) of [T, T] have abs(i - j) <= radius."""
    reach = T - 1 if radius is None else min(radius, T - 1)
    return T * (2 * reach + 1) - reach * (reach + 1)


def floor_ms(work: Work, kind: str, peak: dict[str, float]) -> tuple[float, float]:
    """Reading and computing, in milliseconds."""
    products = peak["float32" if kind == "float32" else "int8"]
    reading = work.weights * BYTES[kind] / peak["bandwidth"]
    return 1e3 * reading, 1e3 * (work.products / products + work.attention / peak["float32"])


def measure(model: Any, texts: int, tokens: int, seconds: float) -> list[float]:
    """Times in ms of calls with new ids each, for about `seconds`, the first one left out."""
    rng = np.random.default_rng(tokens)
    times: list[float] = []
    while len(times) < 4 or sum(times) < 1e3 * seconds:
        ids = [row.astype(np.int32) for row in rng.integers(256, min(200_000, model.config.V), (texts, tokens))]
        start = time.perf_counter()
        model.embed_ids(ids)
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def shares(checkpoint: str, kinds: list[str], shapes: list[str], threads: int, seconds: float, peak: Any) -> Any:
    from gemma_np import EmbeddingGemma, GemmaError

    for kind in kinds:
        try:
            model = EmbeddingGemma(checkpoint, quantization=None if kind == "float32" else kind, threads=threads)
        except GemmaError as error:
            log(f"{kind}: {error}")
            continue
        for shape in shapes:
            log(f"{kind}, {shape}")
            texts, tokens = map(int, shape.split("x"))
            reading, computing = floor_ms(work_of(model, [tokens] * texts), kind, peak)
            taken = measure(model, texts, tokens, seconds)
            yield {"format": kind, "shape": shape, "reading_ms": reading, "computing_ms": computing, "ms": taken}


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--formats", nargs="+", default=list(BYTES), choices=list(BYTES))
    parser.add_argument("--shapes", nargs="+", default=["1x16", "1x64", "1x256", "1x2048", "32x128"], metavar="SHAPE")
    parser.add_argument("--seconds", type=float, default=5, help="of measuring each shape; default: 5")
    arguments = parser.parse_args()
    run = Run("floor", arguments)
    limits = {threads: peaks(threads) for threads in sorted({1, arguments.threads})}
    peak = {kind: max(rates) for kind, rates in limits[arguments.threads].items()}
    kinds, shapes = arguments.formats, arguments.shapes
    rows = list(shares(arguments.checkpoint, kinds, shapes, arguments.threads, arguments.seconds, peak))
    print(show(run.keep(rows, peaks=[peak_row(*limit) for limit in limits.items()])))


if __name__ == "__main__":
    main()
