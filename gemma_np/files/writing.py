"""Models to folders, tensor by tensor: nothing half-written is ever seen under the name that was asked for."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from gemma_np.arrays import AnyArray
from gemma_np.errors import InputError
from gemma_np.files.safetensors import BYTES

# Names of a file's tensors, in their order, with safetensors' name of the element type and the shape.
Layout = Mapping[str, tuple[str, tuple[int, ...]]]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name when all is written: it is filled under another name beside, and renamed.

    InputError if there is something already; an empty folder may be there. Whatever goes wrong, Ctrl-C and a full disk
    too, nothing is left.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(f"{path} exists already; name a folder that does not, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".gemma-np-", dir=path.parent))
    try:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o777 & ~umask)  # mkdtemp makes folders for the owner alone
        with suppress(FileNotFoundError):
            path.rmdir()
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_safetensors(path: Path, layout: Layout, parts: Iterable[AnyArray]) -> None:
    """Tensors to a new file, the first at a multiple of 64 bytes.

    parts  all elements in the layout's order, little-endian and row-major, in as many pieces as is convenient
    """
    header, end = {}, 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
        assert file.tell() == 8 + len(text) + end, (file.tell(), end)
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Of a file, in hex; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
