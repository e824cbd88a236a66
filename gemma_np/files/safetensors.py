"""The bytes of a checkpoint: JSON files, and safetensors mapped into memory. Knows files, not models.

A safetensors file is

    8 bytes   n, the header's length, little-endian uint64
    n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    the rest  the tensors one behind the other, row-major and little-endian; offsets count from here

Source: https://github.com/huggingface/safetensors (format). We parse it ourselves because mapping needs the offsets,
which the package does not give; the package is the judge of this reader in the tests.
"""

import errno
import itertools
import json
import math
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gemma_np.arrays import AnyArray, Float32
from gemma_np.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes of JSON; the safetensors package has the same limit
MAX_DEPTH = 100  # of JSON files; Python's own limit depends on who calls

# How a tensor's elements lie in the file. bfloat16 is the upper half of a float32; NumPy has no type for it.
FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8},
}


def read_json(path: Path) -> Any:
    """The content of a JSON file; CheckpointError when it is missing or no JSON."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_HEADER:
                raise ValueError(f"it has more than {MAX_HEADER:,} bytes")
            content = json.loads(file.read())
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
        self.file.close()  # with the last tensor; arrays keep the map alive, which has a handle of its own

    def read(self, offset: int, length: int) -> bytes:
        """A copy of some bytes. Where the system can, it is read past the map: a page of a map that is touched counts
        as resident memory, with many neighbours that the system maps along with it."""
        if hasattr(os, "pread"):
            found = os.pread(self.file.fileno(), length, offset)
        else:
            found = self.map[offset : offset + length]
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


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a file. Nothing is read before it is asked for.

    name     as in the file
    dtype    safetensors' name of the element type: F32, BF16, F16, ...
    shape    row-major
    source   the file
    offset   where the tensor begins in the file, bytes
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: MappedFile
    offset: int

    @property
    def format(self) -> str:
        """As quantize.py names it."""
        return "f32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]

    @property
    def path(self) -> Path:
        return self.source.path

    def stored_dtype(self) -> np.dtype[Any]:
        """How the elements lie in the file, bfloat16 as uint16; CheckpointError for a type that we do not serve."""
        if self.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.path}: {self.name} has dtype {self.dtype}, expected one of {', '.join(FLOATS)}; "
                "convert the checkpoint to one of these"
            )
        return FLOATS[self.dtype]

    def float32(self) -> Float32:
        """All elements, exactly: mapped without a copy where the file has aligned float32, else converted."""
        dtype = self.stored_dtype()
        flat: AnyArray = np.frombuffer(self.source.map, dtype, count=math.prod(self.shape), offset=self.offset)
        stored = flat.reshape(self.shape)
        if self.dtype == "F32" and stored.flags.aligned and stored.dtype.isnative:
            return stored
        converted = to_float32(stored)
        self.let_go()
        return converted

    def let_go(self) -> None:
        """Its pages do not count as resident memory any more, until they are read again."""
        self.source.let_go(self.offset, self.nbytes)

    def rows(self, ids: AnyArray) -> Float32:  # [T] -> [T, I]
        """Some rows of a [V, I] tensor, exactly, as a new array; the others are not read, so that a table of gigabytes
        never counts as resident memory, whichever rows a long run touches."""
        dtype, length = self.stored_dtype(), self.nbytes // self.shape[0]
        return to_float32(self.source.rows(ids, self.offset, length, self.shape[0]).view(dtype))


def to_float32(stored: AnyArray) -> Float32:
    """float32, float16 or bfloat16 (as uint16) elements as native float32; every value is kept exactly."""
    if stored.dtype.kind == "u":
        widened = stored.astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    return stored.astype(np.float32)


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file and check its header.

    returns  every tensor by name, in the file's order
    raises   CheckpointError: missing, truncated, a header that is no header, tensors that overlap, leave gaps, or
             reach beyond the file
    """

    def damaged(why: str) -> CheckpointError:
        return CheckpointError(f"{path}: {why}; the file is damaged or no safetensors file, download it again")

    source = map_file(path)
    size = len(source.map)
    if size < 8:
        raise damaged(f"{size} bytes are too few for a header")
    length = int.from_bytes(source.map[:8], "little")
    if length > min(size - 8, MAX_HEADER):
        raise damaged(f"its header claims {length:,} bytes, but the file has {size:,} and the limit is {MAX_HEADER:,}")
    try:
        header = json.loads(source.map[8 : 8 + length].decode(), object_pairs_hook=_no_duplicates, parse_int=_size)
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values())
    ):
        raise damaged("its __metadata__ is not an object of strings")

    tensors = {}
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = isinstance(entry["shape"], list) and all(type(number) is int for number in (*shape, begin, end))
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole or not isinstance(dtype, str):
            raise damaged(f"{name} has no valid dtype, shape and data_offsets")
        if len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**60:  # NumPy has no such arrays, not even empty
            raise damaged(f"{name} has an impossible shape")
        if dtype not in BYTES:
            raise damaged(f"{name} has the unknown dtype {dtype!r}")
        if end - begin != math.prod(shape) * BYTES[dtype]:
            raise damaged(f"{name} of shape {shape} in {dtype} does not fill its {end - begin:,} bytes")
        spans.append((begin, end, name))
        tensors[name] = Tensor(name, dtype, shape, source, 8 + length + begin)
    spans.sort()
    last = size - 8 - length
    for (_, end, before), (begin, _, after) in itertools.pairwise(
        [(0, 0, "the header"), *spans, (last, last, "the file's end")]
    ):
        if begin != end:
            what = "overlap" if begin < end else "leave a gap"
            raise damaged(f"{before} and {after} {what} (byte {end:,} and byte {begin:,} of {last:,})")
    return tensors


def map_file(path: Path) -> MappedFile:
    """Open a file and map it; CheckpointError when it is missing, empty or unreadable."""
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open_regular(path))
            mapped = MappedFile(path, file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            stack.pop_all()  # from here on the file is MappedFile's to close
            return mapped
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint folder needs it") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file, or a path that no system can have
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For json: an object whose keys are all different, and all of whose strings are Unicode."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice")
    "".join(text for pair in pairs for text in pair if isinstance(text, str)).encode()  # refuses lone surrogates
    return content


def _size(digits: str) -> int:
    """For json: a whole number that a file's size or offset can be."""
    if digits.startswith("-") or len(digits) > 19:
        raise ValueError(f"{digits[:20]} is no size")
    return int(digits)


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Map `model.safetensors`, or all the files that `model.safetensors.index.json` names, into one table."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.isfile(single) or not os.path.isfile(index):  # os.path: False for a path that cannot be
        if not os.path.isfile(single) and any(folder.glob("*.bin")):
            raise CheckpointError(
                f"{folder} has its weights in pickle files (*.bin), which can run any code when they are opened; "
                "save the model as model.safetensors"
            )
        return open_safetensors(single)

    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; download it again")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a plain file name beside it")
        for name, tensor in open_safetensors(folder / file).items():
            if weight_map.get(name) == file:  # the index decides where a name occurs in several files
                tensors[name] = tensor
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(f"{folder / weight_map[absent[0]]} lacks {absent[0]}, which {index.name} places there")
    return tensors
