"""Vectors to bytes: the formats of `gemma-np embed`, each written while the texts stream in."""

import base64
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from gemma_np.arrays import Float32
from gemma_np.files.writing import replaced

Batches = Iterable[tuple[list[str], Float32]]  # texts and their vectors, [B, dim]


class Remembered(Iterable[str]):
    """Texts that pass by once, each kept until its vector is there."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.waiting: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.waiting.append(text)
            yield text

    def beside(self, vectors: Iterable[Float32]) -> Batches:
        """Each batch of vectors with its texts, which are forgotten then."""
        for batch in vectors:
            yield [self.waiting.popleft() for _ in batch], batch


@contextmanager
def destination(name: str | None) -> Iterator[IO[bytes]]:
    """Where output goes: stdout, a device, or a file that appears only when it is complete."""
    try:
        if name is None:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif os.path.exists(name) and not os.path.isfile(name):
            with open(name, "wb") as file:
                yield file
        else:
            with replaced(Path(os.path.realpath(name))) as file:  # a link stays a link
                yield file
    except OSError as error:
        # the name of our temporary file would help nobody, and a full disk has none
        where = error.filename if isinstance(error.filename, str) and os.path.exists(error.filename) else None
        raise OSError(error.errno, error.strerror, where or name or "stdout") from None


def numbers(row: Float32) -> str:
    """A vector's entries with commas between. Nine digits are enough to get every float32 back exactly; for JSON "-0"
    is the integer 0, so that zeros are written as 0.0 and -0.0."""
    return ",".join([f"{value:.9g}" if value else str(value) for value in row.tolist()])


def write_json(file: IO[bytes], batches: Batches, dim: int) -> None:
    """One list of lists, a vector per line."""
    before = "["
    for _, batch in batches:
        for row in batch:
            file.write(f"{before}[{numbers(row)}]".encode())
            before = ",\n"
        file.flush()
    file.write(b"[]\n" if before == "[" else b"]\n")


def write_jsonl(file: IO[bytes], batches: Batches, dim: int) -> None:
    """One object per line: {"text": ..., "embedding": [...]}."""
    for texts, batch in batches:
        for text, row in zip(texts, batch, strict=True):
            quoted = json.dumps(text, ensure_ascii=False)
            file.write(f'{{"text": {quoted}, "embedding": [{numbers(row)}]}}\n'.encode())
        file.flush()


def write_csv(file: IO[bytes], batches: Batches, dim: int) -> None:
    """One vector per line, commas between its entries, no header."""
    for _, batch in batches:
        for row in batch:
            file.write(f"{numbers(row)}\n".encode())
        file.flush()


def write_base64(file: IO[bytes], batches: Batches, dim: int) -> None:
    """One vector per line: its float32 entries, little-endian, in base64."""
    for _, batch in batches:
        for row in batch:
            file.write(base64.b64encode(row.astype("<f4").tobytes()) + b"\n")
        file.flush()


def write_npy(file: IO[bytes], batches: Batches, dim: int) -> None:
    """NumPy's own format, float32 [texts, dim]. Its header says how many rows follow, so they wait on disk."""
    rows = 0
    with tempfile.TemporaryFile() as spool:
        for _, batch in batches:
            spool.write(batch.astype("<f4").tobytes())
            rows += len(batch)
        spool.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(spool, file)


WRITERS: dict[str, Callable[[IO[bytes], Batches, int], None]] = {
    "json": write_json,
    "jsonl": write_jsonl,
    "npy": write_npy,
    "csv": write_csv,
    "base64": write_base64,
}
