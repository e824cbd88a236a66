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
from typing import IO, NamedTuple

from gemma_np.arrays import Float32
from gemma_np.cli.vectors import COMMENT
from gemma_np.errors import GemmaError
from gemma_np.files.writing import replaced
from gemma_np.outcomes import Outcomes


class Batch(NamedTuple):
    """Some texts, their vectors [B, dim], and what became of each."""

    texts: list[str]
    vectors: Float32
    tokens: list[int]
    truncated: list[bool]
    errors: list[str | None]


Batches = Iterable[Batch]


class About(NamedTuple):
    """What a file says of its vectors: their size, and, in formats that have room for it, the model's fingerprint."""

    dim: int
    fingerprint: str


class Remembered(Iterable[str]):
    """A one-pass stream of texts that remembers each one until its vector arrives."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.waiting: deque[str] = deque()
        self.done = 0  # how many texts are forgotten, and their vectors written

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.waiting.append(text)
            yield text

    def paired_with(self, vectors: Iterable[Float32], outcomes: Outcomes) -> Batches:
        """Each batch of vectors with its texts, which are forgotten then, and what became of them."""
        for batch in vectors:
            here = slice(self.done, self.done + len(batch))
            yield Batch(
                [self.waiting.popleft() for _ in batch],
                batch,
                outcomes.tokens[here].tolist(),
                outcomes.truncated[here].tolist(),
                [outcomes.errors.get(i) for i in range(here.start, here.stop)],
            )
            self.done += len(batch)


def is_streamed(name: str | None) -> bool:
    """Whether output goes to stdout or a device, which have each batch at once, and not to a file."""
    return name is None or (os.path.exists(name) and not os.path.isfile(name))


@contextmanager
def destination(name: str | None) -> Iterator[IO[bytes]]:
    """Where output goes: stdout, a device, or a file that appears only when it is complete.

    Every OSError about it has the name that the user gave, or "stdout".
    """
    real = os.path.realpath(name or "")
    try:
        if name is None:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif is_streamed(name):
            with open(name, "wb") as file:
                yield file
        else:
            with replaced(Path(real)) as file:  # a link stays a link
                yield file
    except OSError as error:
        if error.errno is None or error.filename not in (None, real):
            raise
        raise OSError(error.errno, error.strerror, name or "stdout") from None


def numbers(row: Float32) -> str:
    """A vector's entries, separated by commas. Nine digits give every float32 back exactly. JSON reads "-0" as the
    integer 0, so zeros are written as 0.0 and -0.0."""
    return ",".join([f"{value:.9g}" if value else str(value) for value in row.tolist()])


def listed(row: Float32, error: str | None) -> str:
    """A vector as JSON has it; null for a text without one."""
    return f"[{numbers(row)}]" if error is None else "null"


def write_json(file: IO[bytes], batches: Batches, about: About) -> None:
    """One list of lists, a vector per line."""
    before = "["
    for batch in batches:
        for row, error in zip(batch.vectors, batch.errors, strict=True):
            file.write(f"{before}{listed(row, error)}".encode())
            before = ",\n"
        file.flush()
    file.write(b"[]\n" if before == "[" else b"]\n")


def write_jsonl(file: IO[bytes], batches: Batches, about: About) -> None:
    """One object per line: {"text": ..., "tokens": ..., "truncated": ..., "fingerprint": ..., "embedding": [...]}.

    The fingerprint is in each line, so that files may be cut and joined. A text without a vector has "error" as well.
    """
    for batch in batches:
        for text, row, tokens, truncated, error in zip(*batch, strict=True):
            entry = {"text": text, "tokens": tokens, "truncated": truncated, "fingerprint": about.fingerprint}
            entry |= {} if error is None else {"error": error}
            head = json.dumps(entry, ensure_ascii=False)[:-1]
            file.write(f'{head}, "embedding": {listed(row, error)}}}\n'.encode(errors="backslashreplace"))
        file.flush()


def write_csv(file: IO[bytes], batches: Batches, about: About) -> None:
    """One vector per line, its entries separated by commas, after a comment with the model's fingerprint. np.loadtxt
    skips it, pandas does with comment="#"."""
    file.write(f"{COMMENT}{about.fingerprint}\n".encode())
    for batch in batches:
        for row in batch.vectors:
            file.write(f"{numbers(row)}\n".encode())
        file.flush()


def write_base64(file: IO[bytes], batches: Batches, about: About) -> None:
    """One vector per line: its float32 entries, little-endian, in base64."""
    for batch in batches:
        for row in batch.vectors:
            file.write(base64.b64encode(row.astype("<f4").tobytes()) + b"\n")
        file.flush()


def write_npy(file: IO[bytes], batches: Batches, about: About) -> None:
    """NumPy's own format, float32 [texts, dim]. Its header has the number of rows: it is written again at the end.

    Pipes have no way back. Vectors for them, and for stdout, which may be the end of somebody's file, wait in a
    temporary file.
    """
    if file is sys.stdout.buffer or not file.seekable():
        write_npy_forwards(file, batches, about)
        return
    rows = 0
    file.write(npy_header(rows, about.dim))
    for batch in batches:
        file.write(batch.vectors.astype("<f4").tobytes())
        file.flush()
        rows += len(batch.vectors)
    file.seek(0)
    file.write(npy_header(rows, about.dim))


def write_npy_forwards(file: IO[bytes], batches: Batches, about: About) -> None:
    """The same bytes, nothing before the last vector is there."""
    rows = 0
    with temporary_folder_named():
        spool = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    try:
        for batch in batches:
            with temporary_folder_named():
                spool.write(batch.vectors.astype("<f4").tobytes())
            rows += len(batch.vectors)
        with temporary_folder_named():
            spool.seek(0)
        file.write(npy_header(rows, about.dim))
        shutil.copyfileobj(spool, file)
    finally:
        with suppress(OSError):  # on a full disk closing fails, too
            spool.close()


@contextmanager
def temporary_folder_named() -> Iterator[None]:
    """GemmaError with the folder's name when it cannot be written: OSErrors of unnamed files have none."""
    try:
        yield
    except OSError as error:
        raise GemmaError(
            f"{tempfile.tempdir or 'the temporary folder'}: {error.strerror or error}; vectors for stdout in npy wait "
            "there until their number is known: write them with -o FILE, or name another folder in TMPDIR"
        ) from None


def npy_header(rows: int, dim: int) -> bytes:
    """The format's version 1.0, as np.save writes it: 128 bytes, padded with spaces so that `rows` can change."""
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + shape.ljust(117).encode() + b"\n"


NAMING = ("jsonl", "csv")  # formats that name the model
WRITERS: dict[str, Callable[[IO[bytes], Batches, About], None]] = {
    "json": write_json,
    "jsonl": write_jsonl,
    "npy": write_npy,
    "csv": write_csv,
    "base64": write_base64,
}
