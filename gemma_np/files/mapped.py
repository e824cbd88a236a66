"""Files: mapped into memory, or read as JSON with limits. CheckpointError says what is wrong with one."""

import errno
import itertools
import json
import mmap
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gemma_np.arrays import AnyArray
from gemma_np.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes of JSON; the safetensors package has the same limit
MAX_DEPTH = 100  # of JSON files; Python's own limit depends on who calls
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> Any:
    """The content of a JSON file; CheckpointError when it is missing or no JSON."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_HEADER:
                raise ValueError(f"it has more than {MAX_HEADER:,} bytes")
            text = file.read()
        refuse_pointer(path, text)
        content = json.loads(text)
        _check_json(content)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint folder needs it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bytes that are no UTF-8, an impossible path
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError for what is none: a pipe would block, a device never ends."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.open("rb")


def refuse_pointer(path: Path, begin: bytes) -> None:
    """CheckpointError for the three lines that stand for a large file in a clone that was made without git-lfs."""
    if begin.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, three lines that stand for the file itself; run `git lfs install` and "
            f"`git lfs pull` in {path.parent}, or download the model again"
        )


def _check_json(content: Any, depth: int = 0) -> None:
    """ValueError for what cannot be shown in a message: lone surrogates, and lists in lists without end."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(content, str):
        content.encode()
    elif isinstance(content, list | dict):
        for value in content if isinstance(content, list) else itertools.chain(content, content.values()):
            _check_json(value, depth + 1)


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that must hold an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, expected an object in braces")
    return content


@dataclass(frozen=True, eq=False)
class MappedFile:
    """A file, open for reading and mapped into memory as a whole."""

    path: Path
    file: BinaryIO
    map: mmap.mmap

    def __del__(self) -> None:
        self.file.close()  # with the last tensor; arrays keep the map alive, which has its own handle

    def read(self, offset: int, length: int) -> bytes:
        """A copy of some bytes. Where the system can, it is read past the map: a page of a map that is touched counts
        as resident memory, with many neighbours that the system maps along with it."""
        try:
            whole = hasattr(os, "pread")
            found = os.pread(self.file.fileno(), length, offset) if whole else self.map[offset : offset + length]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        if len(found) < length:
            raise CheckpointError(f"{self.path} was cut to less than {offset + length:,} bytes while it was in use")
        return found

    def rows(self, ids: AnyArray, offset: int, length: int, count: int) -> NDArray[np.uint8]:  # [T] -> [T, length]
        """Some rows of a table, each read once.

        offset   where the table begins, bytes
        length   of a row, bytes
        count    how many rows the table has
        """
        wanted, place = np.unique(ids, return_inverse=True)
        assert not wanted.size or 0 <= wanted[0] <= wanted[-1] < count  # else: another tensor's bytes
        stored = b"".join(self.read(offset + row * length, length) for row in wanted.tolist())
        return np.frombuffer(stored, np.uint8).reshape(len(wanted), length)[place]

    def let_go(self, offset: int, length: int) -> None:
        """Give the mapped pages of some bytes back; they come from the file again when they are read again."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end and hasattr(self.map, "madvise"):
            self.map.madvise(mmap.MADV_DONTNEED, first, end - first)


def map_file(path: Path) -> MappedFile:
    """Open a file and map it; CheckpointError when it is missing, empty or unreadable."""
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open_regular(path))
            mapped = MappedFile(path, file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            stack.pop_all()  # from here on the file is MappedFile's to close
            refuse_pointer(path, mapped.map[: len(LFS_POINTER)])
            return mapped
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint folder needs it") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file, or a path that no system can have
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
