"""safetensors: files of tensors, mapped into memory, and written. Knows files, not models.

A file is

    8 bytes   n, the header's length, little-endian uint64
    n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    the rest  the tensors one after the other, row-major and little-endian; offsets count from here

Source: https://github.com/huggingface/safetensors (format). We parse it ourselves because mapping needs the offsets,
which the package does not give; the package is the judge of this reader in the tests.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.arrays import AnyArray, Float32
from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import MAX_HEADER, MappedFile, map_file

# Names of a file's tensors, in their order, with safetensors' name of the element type and the shape.
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
# How a tensor's elements lie in the file. bfloat16 is the upper half of a float32; NumPy has no type for it.
FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8},
}


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


def to_bfloat16(w: Float32) -> AnyArray:
    """The upper halves, rounded to nearest, ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(w).view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return np.where(np.isnan(w), bits >> 16 | 64, rounded >> 16).astype("<u2")


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

    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            tensors[name], end = _checked_entry(name, entry, source, 8 + length)
        except ValueError as error:
            raise damaged(str(error)) from None
        spans.append((tensors[name].offset - 8 - length, end, name))
    spans.sort()
    last = size - 8 - length
    for (_, end, before), (begin, _, after) in itertools.pairwise(
        [(0, 0, "the header"), *spans, (last, last, "the file's end")]
    ):
        if begin != end:
            what = "overlap" if begin < end else "leave a gap"
            raise damaged(f"{before} and {after} {what} (byte {end:,} and byte {begin:,} of {last:,})")
    return tensors


def _checked_entry(name: str, entry: Any, source: MappedFile, begin_of_data: int) -> tuple[Tensor, int]:
    """A tensor and the offset of its end, by an entry of the header. ValueError: it is no entry, with the reason."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = isinstance(entry["shape"], list) and all(type(number) is int for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or not isinstance(dtype, str):
        raise ValueError(f"{name} has no valid dtype, shape and data_offsets")
    if len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**60:  # NumPy has no such arrays, not even empty
        raise ValueError(f"{name} has an impossible shape")
    if dtype not in BYTES:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if end - begin != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"{name} of shape {shape} in {dtype} does not fill its {end - begin:,} bytes")
    return Tensor(name, dtype, shape, source, begin_of_data + begin), end


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
