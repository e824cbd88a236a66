"""The Arm column's kernels, run on a machine of another kind by qemu-aarch64 (Debian: qemu-user, gcc-aarch64-linux-gnu,
libc6-dev-arm64-cross). Each call's memory is copied to the emulated process (qemu.c) and back."""

import ctypes
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
from exported import EXPORTED, Kernels, Record, address, memory
from gemma_np.kernels.columns import BY_NAME

from gemma_np.arrays import AnyArray

PROGRAM = Path(__file__).with_suffix(".c")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def missing() -> list[str]:
    return [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


class ArmKernels(Kernels):
    """The kernels of an object that arm.py made, in an emulated process of one thread: calls wait for each other."""

    def __init__(self, code: Path, folder: Path) -> None:
        super().__init__(BY_NAME["neon"], code.read_bytes())
        (folder / "kernels.h").write_text("".join(f"KERNEL({name})\n" for name in EXPORTED))
        program = str(folder / "kernels")
        subprocess.run([COMPILER, "-O1", "-static", f"-I{folder}", PROGRAM, code, "-o", program], check=True)
        self._process = subprocess.Popen([EMULATOR, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._one = threading.Lock()

    def load(self) -> None:
        """This process cannot."""

    def run(self, name: str, arguments: tuple[Any, ...]) -> None:
        blocks = {array.ctypes.data: array.nbytes for array in map(whole, memory(arguments))}
        records = [value for value in arguments if isinstance(value, Record)]
        with self._one:
            self._send("Z")
            moved = {start: self._allocate(size) - start for start, size in blocks.items()}

            def there(value: Any) -> int:
                """An array's or record's address there; any other number is the same."""
                place = int(address(value))
                if isinstance(value, np.ndarray | Record):
                    place += next((moved[start] for start, size in blocks.items() if 0 <= place - start < size), 0)
                return place

            for start, size in blocks.items():
                self._send("W", start + moved[start], size, data=ctypes.string_at(start, size))
            for record in records:
                self._send("W", there(record), 8 * len(record.values), *map(there, record.values))
            kinds = EXPORTED[name]
            integers = [there(value) for value, kind in zip(arguments, kinds, strict=True) if kind == "i"]
            floats = [bits_of(value) for value, kind in zip(arguments, kinds, strict=True) if kind == "f"]
            integers, floats = integers + [0] * (13 - len(integers)), floats + [0] * (2 - len(floats))
            self._send("C", list(EXPORTED).index(name), *integers, *floats)
            self._receive(8)
            for start in blocks.keys() - {record.array.ctypes.data for record in records}:
                self._send("R", start + moved[start], blocks[start])
                ctypes.memmove(start, self._receive(blocks[start]), blocks[start])

    def _allocate(self, size: int) -> int:
        self._send("A", size)
        return int.from_bytes(self._receive(8), "little")

    def _send(self, command: str, *numbers: int, data: bytes = b"") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + struct.pack(f"<{len(numbers)}q", *numbers) + data)
        self._process.stdin.flush()

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        assert len(found) == size, f"the emulated process has ended: {self._process.wait()}"
        return found


def whole(array: AnyArray) -> AnyArray:
    """The array that owns the memory: with its guards."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def bits_of(value: float) -> int:
    return int(np.float32(value).view(np.int32))
