"""Every kernel by itself, for tests and bench/bench_kernels.py: as C functions of any column, or as Python.

    kernels = Kernels(column, compiled(column))      in a process of its own, some seconds
    kernels.norm_row(x, n, weight, eps, out, 0)      arrays stand for their addresses

With NUMBA_DISABLE_JIT=1 `Kernels(None)` has the same functions as Python, and an access outside the arrays of a call is
an IndexError. As a program this file compiles what it exports:  python tests/exported.py OUT.o
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gemma_np.kernels import compiling, objects
from gemma_np.kernels.columns import Column
from gemma_np.kernels.plan import FORMATS

from gemma_np.arrays import AnyArray

# The arguments of every kernel: i an int64, number or address, f a float32.
EXPORTED = {
    "exp_row": "iii",
    "gelu_row": "iii",
    "half_row": "iii",
    "inverse_rms_of": "iifi",
    "put_row": "iiii",
    "norm_row": "iiifii",
    "add_norm_row": "iiiif",
    "norm_rotate": "iiifiifi",
    "norm_each": "iiiifii",
    "rotate_each": "iiiifiifi",
    "geglu_row": "iiii",
    "tile_f32": "iiiiiiiii",
    "tile_q8_0": "iiiiiiiiiii",
    "few_q8_0": "iiiiiiiiiii",
    "first_q4_0": "iiiiiiiiiii",
    "tile_q4_0": "iiiiiiiiiii",
    "few_q4_0": "iiiiiiiiiii",
    "mask_row": "iii",
    "softmax_step": "iiii",
    "attend": "iiiiiiiiiiiii",
    "product": "iiiiiiii",
    "geglu_product": "iiiiiiiii",
    "pool": "ii",
    "draw_and_meet": "iiii",
}


def entries() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """For build.py: the kernels, and small ones around functions of vectors, with their types."""
    from gemma_np.kernels import attention, barrier, build, forward, products, rows, simd, tiles
    from gemma_np.kernels.simd import get_half, kernel, load, set_float, set_int, store
    from numba import types

    exp, gelu, inverse_rms = rows.exp, rows.gelu_tanh, rows.inverse_rms
    norm_row, norm_rotate, row_size = rows.norm_row, rows.norm_rotate, products.row_size
    tile_floats = tiles.tile_floats
    draw, meet = barrier.draw, barrier.meet

    @kernel
    def exp_row(x: int, n: int, out: int) -> None:
        for i in range(0, 4 * n, 64):
            store(out + i, exp(load(x + i)))

    @kernel
    def gelu_row(x: int, n: int, out: int) -> None:
        for i in range(0, 4 * n, 64):
            store(out + i, gelu(load(x + i)))

    @kernel
    def half_row(x: int, n: int, out: int) -> None:
        for i in range(n):
            set_float(out + 4 * i, get_half(x + 2 * i))

    @kernel
    def norm_each(x: int, count: int, n: int, weight: int, eps: Any, out: int, rounded: int) -> None:
        for i in range(count):
            norm_row(x + 4 * i * n, n, weight, eps, out + i * row_size(n, rounded), rounded)

    @kernel
    def rotate_each(
        x: int, count: int, n: int, weight: int, eps: Any, cos: int, sin: int, scale: Any, out: int
    ) -> None:
        for i in range(count):
            norm_rotate(x + 4 * i * n, n, weight, eps, cos, sin, scale, out + 4 * i * n)

    @kernel
    def inverse_rms_of(x: int, n: int, eps: Any, out: int) -> None:
        set_float(out, inverse_rms(x, n, eps))

    @kernel
    def tile_f32(a: int, lda: int, w: int, across: int, down: int, n: int, out: int, ldo: int, factors: int) -> None:
        tile_floats(a, lda, w, across, down, n, out, ldo, factors)

    def called(tile: Any) -> Any:
        @kernel
        def call(
            a: int, lda: int, w: int, across: int, s: int, s_across: int, n: int, out: int, ldo: int, ahead: int, p: int
        ) -> None:
            tile(a, lda, w, across, s, s_across, n, out, ldo, ahead, p)

        return call

    @kernel
    def draw_and_meet(shared: int, threads: int, items: int, out: int) -> None:
        """Three steps of `items` items: each item, once drawn, is counted in out[step, item] by adding 1."""
        for step in range(3):
            item = draw(shared, 1)
            while item < items:
                place = out + 8 * (step * items + item)
                set_int(place, simd.get_int(place) + 1)
                item = draw(shared, 1)
            meet(shared, threads)

    made = {**vars(rows), **vars(attention), **vars(products), **vars(forward), **locals()}
    made |= {name: called(getattr(tiles, name)) for name in EXPORTED if name.endswith(("q8_0", "q4_0"))}
    kinds = {"i": types.int64, "f": types.float32}
    found = {name: (made[name], tuple(kinds[kind] for kind in letters)) for name, letters in EXPORTED.items()}
    return {**found, **build.shipped()}


def compiled(column: Column) -> bytes:
    """The object code of all kernels for a column."""
    return finished(start(column))


def start(column: Column) -> tuple[Any, Any]:
    """Begin to compile; two columns may do so side by side."""
    folder = tempfile.TemporaryDirectory()
    command = [sys.executable, "-P", __file__, f"{folder.name}/kernels.o"]
    environment = compiling.environment(column, FORMATS)
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True), folder


def finished(started: tuple[Any, Any]) -> bytes:
    process, folder = started
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    code = Path(folder.name, "kernels.o").read_bytes()
    folder.cleanup()
    return code


class Record:
    """A record of int64 fields, as plan.py names them: of numbers, of arrays and of other records' addresses."""

    def __init__(self, names: Iterable[str], **fields: Any) -> None:
        self.values = [fields.get(name, 0) for name in names]
        self.array = np.array([address(value) for value in self.values], np.int64)


def address(value: Any) -> Any:
    """What a kernel is given for a value."""
    value = value.array if isinstance(value, Record) else value
    return value.ctypes.data if isinstance(value, np.ndarray) else value


def memory(values: Iterable[Any]) -> list[AnyArray]:
    """All arrays that a call's arguments name, records and what they name included."""
    found = []
    for value in values:
        if isinstance(value, Record):
            found += [value.array, *memory(value.values)]
        elif isinstance(value, np.ndarray) and value.size:
            found.append(value)
    return found


class Kernels:
    """All kernels of a column, called by name; afterwards the guards of every array made with `room` must be whole."""

    def __init__(self, column: Column | None, code: bytes = b"") -> None:
        self.name = column.name if column else "python"
        self.code = code
        rows, vectors = column.tile if column else (1, 1)
        self.tile = rows, 16 * vectors  # rows and outputs
        self.few = column.few if column else 1
        rows, vectors = column.floats if column else (2, 1)
        self.floats = rows, 16 * vectors
        self._rooms: list[tuple[Any, int, int]] = []
        self.load()

    def load(self) -> None:
        """Make the functions that `run` calls."""
        self._functions = callables(self.code) if self.code else as_python()

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in EXPORTED:
            raise AttributeError(name)

        def call(*arguments: Any) -> None:
            assert len(arguments) == len(EXPORTED[name]), f"{name} has arguments {EXPORTED[name]}"
            self.run(name, arguments)
            self.check_guards(name)

        return call

    def bound(self, name: str, *arguments: Any) -> Callable[[], None]:
        """A compiled kernel with its arguments, to be called again and again, without checks."""
        function, places = self._functions[name], [address(value) for value in arguments]
        return lambda: function(*places)

    def run(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self.code:
            from gemma_np.kernels.simd import lend

            lend(*memory(arguments))
            kinds = EXPORTED[name]
            arguments = tuple(np.float32(a) if kind == "f" else a for a, kind in zip(arguments, kinds, strict=True))
        self._functions[name](*map(address, arguments))

    def room(self, shape: Any, dtype: Any = np.float32, fill: Any = None) -> AnyArray:
        """An array that starts at a multiple of 64 bytes, with bytes around it that nobody may touch."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(size + 2 * GUARD + 64, PATTERN, np.uint8)
        first = GUARD + (-raw.ctypes.data - GUARD) % 64
        self._rooms.append((weakref.ref(raw), first, first + size))
        array = raw[first : first + size].view(dtype).reshape(shape)
        if fill is not None:
            array[...] = fill
        return array

    def check_guards(self, name: str) -> None:
        living = [(reference(), first, last) for reference, first, last in self._rooms]
        self._rooms = [entry for entry in self._rooms if entry[0]() is not None]
        for raw, first, last in living:
            if raw is None:
                continue
            for what, bytes_ in (("before", raw[:first]), ("behind", raw[last:])):
                assert (bytes_ == PATTERN).all(), f"{name} wrote {what} an array of {last - first} bytes"


GUARD, PATTERN = 4096, 0xA5


def callables(code: bytes) -> Mapping[str, Any]:
    """The functions of an object. The GIL is free while they run."""
    kinds: dict[str, Any] = {"i": ctypes.c_int64, "f": ctypes.c_float}
    return {
        name: ctypes.CFUNCTYPE(None, *(kinds[kind] for kind in EXPORTED[name]))(place)
        for name, place in objects.places(code, list(EXPORTED)).items()
    }


def as_python() -> Mapping[str, Any]:
    assert os.environ.get("NUMBA_DISABLE_JIT") == "1"
    return {name: function for name, (function, _) in entries().items()}


def undefined(code: bytes) -> set[str]:
    """What an ELF object asks of others: symbols of no section, read from its symbol table."""

    def number(place: int, size: int) -> int:
        return int.from_bytes(code[place : place + size], "little")

    assert code[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    table, size, count = number(40, 8), number(58, 2), number(60, 2)
    sections = [table + i * size for i in range(count)]
    symbols = next(place for place in sections if number(place + 4, 4) == 2)
    names = number(sections[number(symbols + 40, 4)] + 24, 8)
    first, length = number(symbols + 24, 8), number(symbols + 32, 8)
    found = set()
    for entry in range(first, first + length, 24):
        start = names + number(entry, 4)
        name = code[start : code.index(b"\0", start)].decode()
        if name and number(entry + 6, 2) == 0:
            found.add(name)
    return found


if __name__ == "__main__":
    from gemma_np.kernels.build import build

    Path(sys.argv[1]).write_bytes(build(entries()))
