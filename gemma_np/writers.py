"""Vectors to bytes: the formats of `gemma-np embed`, each written while the texts stream in."""

import base64
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from gemma_np.arrays import Float32


class Remembered(Iterable[str]):
    """Texts that pass by once, each kept until its vector is written."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.waiting: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.waiting.append(text)
            yield text


@contextmanager
def destination(name: str | None) -> Iterator[IO[bytes]]:
    """Where output goes: stdout, a device, or a file that appears only when it is complete.

    A regular file is written under another name beside it and renamed at the end; whatever goes wrong before, Ctrl-C
    and a full disk too, an existing file stays as it was and nothing half-written is left.
    """
    if name is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    try:
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    try:
        with open(descriptor, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # mkstemp makes files for the owner alone
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or name) from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)


def numbers(row: Float32) -> str:
    """A vector's entries with commas between. Nine digits are enough to get every float32 back exactly."""
    return ",".join([f"{value:.9g}" for value in row.tolist()])


def write_json(file: IO[bytes], batches: Iterable[Float32], kept: Remembered, dim: int) -> None:
    """One list of lists, a vector per line."""
    before = "["
    for batch in batches:
        for row in batch:
            file.write(f"{before}[{numbers(row)}]".encode())
            before = ",\n"
    file.write(b"[]\n" if before == "[" else b"]\n")


def write_jsonl(file: IO[bytes], batches: Iterable[Float32], kept: Remembered, dim: int) -> None:
    """One object per line: {"text": ..., "embedding": [...]}."""
    for batch in batches:
        for row in batch:
            text = json.dumps(kept.waiting.popleft(), ensure_ascii=False)
            file.write(f'{{"text": {text}, "embedding": [{numbers(row)}]}}\n'.encode())
        file.flush()


def write_csv(file: IO[bytes], batches: Iterable[Float32], kept: Remembered, dim: int) -> None:
    """One vector per line, commas between its entries, no header."""
    for batch in batches:
        for row in batch:
            file.write(f"{numbers(row)}\n".encode())
        file.flush()


def write_base64(file: IO[bytes], batches: Iterable[Float32], kept: Remembered, dim: int) -> None:
    """One vector per line: its float32 entries, little-endian, in base64."""
    for batch in batches:
        for row in batch:
            file.write(base64.b64encode(row.astype("<f4").tobytes()) + b"\n")
        file.flush()


def write_npy(file: IO[bytes], batches: Iterable[Float32], kept: Remembered, dim: int) -> None:
    """NumPy's own format, float32 [texts, dim]. Its header says how many rows follow, so they wait on disk."""
    rows = 0
    with tempfile.TemporaryFile() as spool:
        for batch in batches:
            spool.write(batch.astype("<f4").tobytes())
            rows += len(batch)
        spool.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(spool, file)


WRITERS: dict[str, Callable[[IO[bytes], Iterable[Float32], Remembered, int], None]] = {
    "json": write_json,
    "jsonl": write_jsonl,
    "npy": write_npy,
    "csv": write_csv,
    "base64": write_base64,
}
