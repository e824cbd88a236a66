"""GGUF files: what the package gguf writes is read, and what cannot be is refused by name, without a crash."""

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_np import CheckpointError
from gemma_np.gguf.file import NUMBERS, TYPES, Texts, open_gguf

CODES = ["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", "", "", "<Q", "<q", "<d"]  # metadata's types by their numbers
HUGE = 2**63 + 1


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def entry(key: str, kind: int, value: Any) -> bytes:
    return text(key) + struct.pack("<I", kind) + (text(value) if kind == 8 else struct.pack(CODES[kind], value))


def array(key: str, kind: int, values: Any) -> bytes:
    items = b"".join(text(value) if kind == 8 else struct.pack(CODES[kind], value) for value in values)
    return text(key) + struct.pack("<IIQ", 9, kind, len(values)) + items


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def whole(*parts: bytes, entries: int = 0, tensors: int = 0, version: int = 3, data: int = 0, align: int = 32) -> bytes:
    """A file of metadata and tensors as they are given, with `data` bytes behind them."""
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)
    return header + bytes(-len(header) % align) + bytes(data)


GOOD = whole(
    entry("general.architecture", 8, "gemma-embedding"),
    array("pieces", 8, ["a", "", "▁the", "x" * 300]),
    array("scores", 6, [0.5, -2.0, 3.0]),
    entry("flag", 7, True),
    tensor("one", (2, 3), 0, 0),
    tensor("two", (32, 2), 8, 32),
    entries=4,
    tensors=2,
    data=32 + 68,
)


def opened(path: Path, content: bytes) -> Any:
    (path / "model.gguf").write_bytes(content)
    return open_gguf(path / "model.gguf")


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    file = opened(tmp_path, GOOD)
    assert file.metadata["general.architecture"] == "gemma-embedding"
    assert list(file.metadata["pieces"]) == [b"a", b"", "▁the".encode(), b"x" * 300]
    assert len(file.metadata["pieces"]) == 4
    text, starts = file.metadata["pieces"].joined()
    assert text.tobytes() == b"a" + "▁the".encode() + b"x" * 300
    assert starts.tolist() == [0, 1, 1, 7, 307]
    assert file.metadata["scores"].tolist() == [0.5, -2.0, 3.0]
    assert file.metadata["flag"] is True
    one, two = file.tensors.values()
    assert (one.dtype, one.shape, one.nbytes) == ("F32", (3, 2), 24)
    assert (two.dtype, two.shape, two.nbytes) == ("Q8_0", (2, 32), 68)
    assert (one.offset, two.offset) == (len(GOOD) - 100, len(GOOD) - 68)


@pytest.mark.parametrize("kind", [kind for kind, code in enumerate(CODES) if code])
def test_every_type_of_metadata_is_read(kind: int, tmp_path: Path) -> None:
    value = {6: 0.25, 7: False, 12: 1e300}.get(kind, 77)
    file = opened(tmp_path, whole(entry("one", kind, value), array("many", kind, [value] * 3), entries=2))
    assert file.metadata["one"] == value
    assert file.metadata["many"].tolist() == [value] * 3


@pytest.mark.parametrize(("version", "align"), [(2, 32), (3, 64)])
def test_both_versions_and_every_alignment_are_read(version: int, align: int, tmp_path: Path) -> None:
    parts = entry("general.alignment", 4, align), tensor("t", (8,), 0, align)
    file = opened(tmp_path, whole(*parts, entries=1, tensors=1, version=version, data=align + 32, align=align))
    assert file.version == version
    assert file.tensors["t"].offset % align == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"GGU", "beyond the file's end"),
        (b"GGML" + GOOD[4:], "begins with b'GGML'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (whole(version=1), "version 1, expected 2 or 3"),
        (whole(version=4), "version 4, expected 2 or 3"),
        (whole(tensors=HUGE), "claims 9,223,372,036,854,775,809 tensors"),
        (whole(entries=2**64 - 1), "claims 18,446,744,073,709,551,615 metadata entries"),
        (whole(entries=100_001), "100,001 metadata entries, and the limit"),
        (whole(struct.pack("<Q", HUGE) + b"key", entries=1), "a key, at byte 32, reaches"),
        (whole(text("key") + struct.pack("<IQ", 8, HUGE), entries=1), "key, at byte"),
        (whole(text("key") + struct.pack("<IIQ", 9, 8, HUGE), entries=1), "key, at byte"),
        (whole(text("key") + struct.pack("<IIQ", 9, 8, 2) + text("a") + bytes(3), entries=1, align=1), "key, at byte"),
        (
            whole(text("key") + struct.pack("<IIQQ", 9, 8, 2, 2**64 - 8) + bytes(64), entries=1),
            "only 1 are in the file",
        ),
        (whole(text("key") + struct.pack("<IIQ", 9, 6, HUGE), entries=1), "key, at byte"),
        (whole(text("key") + struct.pack("<IIQ", 9, 9, 1), entries=1), "array of arrays"),
        (whole(text("key") + struct.pack("<I", 13), bytes(8), entries=1), "key has the unknown type 13"),
        (whole(text(b"\xff") + struct.pack("<I", 0), b"\0", entries=1), "no UTF-8"),
        (whole(entry("a", 0, 1), entry("a", 0, 1), entries=2), "the key 'a' occurs twice"),
        (whole(entry("general.alignment", 4, 0), entries=1), "general.alignment = 0"),
        (whole(entry("general.alignment", 4, 48), entries=1), "general.alignment = 48"),
        (whole(entry("general.alignment", 8, "32"), entries=1), "general.alignment = '32'"),
        (whole(tensor("t", (8,), 0, 0), tensor("t", (8,), 0, 32), tensors=2, data=64), "tensor t occurs twice"),
        (whole(tensor("t", (8,), 0, 0), tensor("u", (9,), 0, 0), tensors=2, data=64), "t and u overlap"),
        (whole(tensor("t", (16,), 0, 0), tensor("u", (8,), 0, 32), tensors=2, data=64), "t and u overlap"),
        (whole(tensor("t", (8,), 0, 32), tensors=1, data=32), "t reaches to byte"),
        (whole(tensor("t", (8,), 0, 2**63), tensors=1, data=32), "t reaches to byte"),
        (whole(tensor("t", (8,), 0, 8), tensors=1, data=64), "no multiple of general.alignment = 32"),
        (whole(tensor("t", (8,), 99, 0), tensors=1, data=32), "t has the unknown type 99"),
        (whole(tensor("t", (33,), 8, 0), tensors=1, data=64), "does not fill the blocks of Q8_0"),
        (whole(tensor("t", (2**40, 2**40), 0, 0), tensors=1, data=64), "impossible shape"),
        (whole(tensor("t", (1, 1, 1, 1, 1), 0, 0), tensors=1, data=64), "t has 5 axes"),
        (whole(tensor("t", (8,), 0, 0)[:-1], tensors=1, align=1), "the offset of t"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, content)
    assert "model.gguf" in str(caught.value)


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            opened(tmp_path, GOOD[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 101), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(GOOD)
    for place, byte in changes:
        content[place] = byte
    try:
        file = opened(tmp_path, bytes(content))
    except CheckpointError:
        return
    for info in file.tensors.values():
        assert 0 < info.offset <= info.offset + info.nbytes <= len(GOOD)


def test_no_claim_makes_the_reader_ask_for_memory_that_the_file_does_not_fill(tmp_path: Path) -> None:
    claims = [
        whole(text("key") + struct.pack("<IIQ", 9, kind, 2**40), bytes(4096), entries=1) for kind in (0, 6, 8, 10)
    ]
    claims.append(whole(text("key") + struct.pack("<IIQ", 9, 8, 512), bytes(4096), entries=1))  # 512 empty texts
    for content in claims:
        tracemalloc.start()
        with suppress(CheckpointError):
            opened(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000, f"{peak:,} bytes for a file of {len(content):,}"


@pytest.mark.parity
def test_types_are_those_of_gguf() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `parity`")
    for number, (name, values, size) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, values, size)


@pytest.mark.parity
def test_what_gguf_writes_is_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `parity`")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma-embedding")
    writer.add_token_list(["<pad>", "a", "▁é", "日本"])
    writer.add_token_scores([0.0, -1.0, -2.5, 3.0])
    writer.add_token_types([3, 1, 1, 4])
    writer.add_sliding_window_pattern([True, False])
    writer.add_rope_freq_base(1e6)
    writer.add_uint64("big", 2**40)
    arrays = {}
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K", "Q4_1"):
        kind = gguf.GGMLQuantizationType(NUMBERS[name])
        arrays[name] = rng.standard_normal((3, 256)).astype(np.float32)
        raw = rng.integers(0, 256, (3, 210), np.uint8) if name == "Q6_K" else gguf.quants.quantize(arrays[name], kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = open_gguf(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    assert set(ours.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        found = [piece.decode() for piece in value] if isinstance(value, Texts) else value
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == expected, key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.dtype, info.offset, info.nbytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            int(tensor.n_bytes),
        )
        assert info.shape == tuple(int(n) for n in tensor.shape[::-1])
