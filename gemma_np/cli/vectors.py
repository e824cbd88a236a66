"""Files of vectors, as `gemma-np embed` writes them, read back: jsonl, csv and npy."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gemma_np.arrays import Float32
from gemma_np.errors import GemmaError, InputError

COMMENT = "# gemma_np fingerprint "  # before a csv file's first vector


@dataclass
class Vectors:
    """rows [B, dim], the text of each where the file has it, and the fingerprint of the model that made them."""

    path: str
    rows: Float32
    texts: list[str] = field(default_factory=list)
    fingerprint: str | None = None

    def label(self, i: int) -> str:
        """A row for people: its text, or its place."""
        return self.texts[i] if self.texts else f"row {i + 1} of {self.path}"


def read_vectors(path: str) -> Vectors:
    """A file by its ending: .npy, .csv, else a JSON object a line. InputError says what is wrong, and in which line."""
    try:
        found = _npy(path) if path.endswith(".npy") else _lines(path)
    except OSError as error:
        raise GemmaError(f"{path} cannot be read: {error.strerror or error}") from None
    if not len(found.rows):
        raise InputError(f"{path} holds no vectors")
    if not np.isfinite(found.rows).all():
        row = int(np.flatnonzero(~np.isfinite(found.rows).all(axis=1))[0])
        raise InputError(f"{path}: vector {row + 1} is not finite: its text had no vector; take it out")
    return found


def check_same_model(one: str | None, other: str | None, what: str, whose: str) -> None:
    """InputError for vectors of two models, which cannot be compared; None: a file does not say."""
    if one is not None and other is not None and one != other:
        raise InputError(
            f"{what} and {whose} were made by two models, whose vectors cannot be compared: fingerprints {one} and "
            f"{other}; embed both with one model"
        )


def _npy(path: str) -> Vectors:
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a file of NumPy: {error}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        shape = getattr(rows, "shape", None)
        raise InputError(
            f"{path} holds {getattr(rows, 'dtype', type(rows))} of shape {shape}, expected floats [B, dim]"
        )
    return Vectors(path, rows.astype(np.float32))


def _lines(path: str) -> Vectors:
    """csv or jsonl, line by line."""
    found = Vectors(path, np.empty((0, 0), np.float32))
    rows: list[Float32] = []
    for number, line in enumerate(_decoded(path), 1):
        try:
            row = _csv_row(line, found) if path.endswith(".csv") else _json_row(line, found, f"line {number} of {path}")
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"line {number} of {path} is no vector as gemma-np embed writes it ({error})") from None
        if row is None:
            continue
        if row.ndim != 1 or not row.size or (rows and len(row) != len(rows[0])):
            expected = f"{len(rows[0])} numbers, as before" if rows else "numbers"
            raise InputError(f"line {number} of {path} has shape {row.shape}, expected {expected}")
        rows.append(row)
    found.rows = np.stack(rows) if rows else found.rows
    return found


def _decoded(path: str) -> Iterator[str]:
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise InputError(f"line {number} of {path} is not UTF-8") from None


def _csv_row(line: str, found: Vectors) -> Float32 | None:
    if line.startswith(COMMENT):
        check_same_model(found.fingerprint, line.removeprefix(COMMENT), "a part", f"another of {found.path}")
        found.fingerprint = line.removeprefix(COMMENT)
    return np.array(line.split(","), np.float32) if line and not line.startswith("#") else None


def _json_row(line: str, found: Vectors, where: str) -> Float32 | None:
    if not line:
        return None
    entry = json.loads(line)
    if entry["embedding"] is None:
        raise InputError(f"{where} has no vector ({entry.get('error')}); take it out")
    check_same_model(found.fingerprint, entry.get("fingerprint"), where, "those before it")
    found.fingerprint = found.fingerprint or entry.get("fingerprint")
    found.texts.append(str(entry.get("text", where)))
    return np.array(entry["embedding"], np.float32)
