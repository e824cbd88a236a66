"""The reader of checkpoint files. The safetensors package is the judge: it writes what we read, and what we accept it
must accept too, with the same bytes."""

import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gemma_np import CheckpointError, EmbeddingGemma
from gemma_np.checkpoint.folder import open_checkpoint
from gemma_np.files.mapped import read_json, read_json_object
from gemma_np.files.safetensors import Tensor, open_safetensors

Parts = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, content


def encoded(header: object, content: bytes = b"") -> bytes:
    """A safetensors file; `header` is JSON text, its bytes, or an object to write as JSON."""
    text = header if isinstance(header, bytes | str) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + content


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(parts: Parts, padding: int = 0) -> bytes:
    """A valid file; `padding` spaces behind its header move the tensors to other addresses."""
    header, content = {}, b""
    for name, (dtype, shape, raw) in parts.items():
        header[name] = entry(dtype, shape, (len(content), len(content) + len(raw)))
        content += raw
    return encoded(json.dumps(header) + " " * padding, content)


def judged(data: bytes) -> Parts:
    """What the package reads."""
    return {name: (it["dtype"], tuple(it["shape"]), bytes(it["data"])) for name, it in safetensors.deserialize(data)}


def found(tensors: dict[str, Tensor]) -> Parts:
    """What we read."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.source.read(tensor.offset, tensor.nbytes))
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for tests that write many files, one after the other."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], dict[str, Tensor]]:
    """Write bytes to a file and open it."""

    def write_and_open(data: bytes) -> dict[str, Tensor]:
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return open_safetensors(path)

    return write_and_open


Open = Callable[[bytes], dict[str, Tensor]]


# ---- values ------------------------------------------------------------------------------------------------------


def test_what_the_package_writes_is_read_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.standard_normal((7, 5), dtype=np.float32),
        "half": rng.standard_normal((3, 2, 4)).astype(np.float16),
        "scalar": np.array(1.5, dtype=np.float32),
        "nothing": np.empty((0, 4), dtype=np.float32),
        "no columns": np.empty((4, 0), dtype=np.float16),
        "ünï / 名": rng.standard_normal(1, dtype=np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = open_safetensors(tmp_path / "model.safetensors")
    assert tensors.keys() == arrays.keys()
    for name, expected in arrays.items():
        assert tensors[name].shape == expected.shape
        read = tensors[name].float32()
        assert (read.dtype, read.shape) == (np.float32, expected.shape)
        np.testing.assert_array_equal(read, expected, err_msg=name)  # equal: float16 fits into float32
    assert found(tensors) == judged((tmp_path / "model.safetensors").read_bytes())


@pytest.mark.parametrize("padding", range(8))
def test_float32_keeps_every_bit_wherever_the_tensor_lies(opened: Open, padding: int) -> None:
    special = [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFABCDEF, 0x00000001, 0x80000000, 0x007FFFFF]
    bits = np.concatenate([special, np.random.default_rng(1).integers(0, 2**32, 1016)]).astype("<u4").reshape(32, 32)
    tensor = opened(file_of({"a": ("F32", (32, 32), bits.tobytes())}, padding))["a"]
    np.testing.assert_array_equal(tensor.float32().view(np.uint32), bits)
    np.testing.assert_array_equal(tensor.rows(np.arange(32)).view(np.uint32), bits)
    # An address that is no multiple of 4 would be read element by element: such a tensor is copied, once.
    assert tensor.float32().flags.aligned
    assert tensor.float32().flags.owndata == bool(tensor.offset % 4)


@pytest.mark.parametrize("padding", [0, 1])
def test_all_65536_values_of_float16_become_the_same_number(opened: Open, padding: int) -> None:
    raw = np.arange(65536, dtype="<u2").tobytes()
    tensor = opened(file_of({"a": ("F16", (256, 256), raw)}, padding))["a"]
    expected = np.array(struct.unpack("<65536e", raw), dtype=np.float32)  # Python's decoder
    for read in (tensor.float32(), tensor.rows(np.arange(256))):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read.ravel(), expected)  # NaN counts as equal to NaN
        np.testing.assert_array_equal(np.signbit(read.ravel()), np.arange(65536) >= 32768)  # -0.0 and -NaN


@pytest.mark.parametrize("padding", [0, 1])
def test_all_65536_values_of_bfloat16_become_the_same_bits(opened: Open, padding: int) -> None:
    bits = np.arange(65536, dtype="<u2").reshape(256, 256)
    tensor = opened(file_of({"a": ("BF16", (256, 256), bits.tobytes())}, padding))["a"]
    expected = struct.unpack("<65536I", b"".join(b"\0\0" + bits.tobytes()[i : i + 2] for i in range(0, 131072, 2)))
    for read in (tensor.float32(), tensor.rows(np.arange(256))):
        assert read.dtype == np.float32
        assert tuple(read.view(np.uint32).ravel()) == expected  # NaN keeps its payload


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("padding", [0, 3])
@given(ids=st.lists(st.integers(0, 10), max_size=30))
def test_rows_are_those_of_the_whole_tensor(scratch: Path, dtype: str, padding: int, ids: list[int]) -> None:
    raw = np.random.default_rng(2).bytes(11 * 6 * (4 if dtype == "F32" else 2))
    path = scratch / "model.safetensors"
    path.write_bytes(file_of({"before": ("U8", (5,), b"12345"), "a": (dtype, (11, 6), raw)}, padding))
    tensor = open_safetensors(path)["a"]
    for which in (np.array(ids, dtype=np.int32), np.array(ids, dtype=np.int64)):
        rows = tensor.rows(which)
        assert (rows.dtype, rows.shape) == (np.float32, (len(ids), 6))
        np.testing.assert_array_equal(rows.view(np.uint32), tensor.float32()[which].view(np.uint32))
        assert rows.flags.writeable  # a new array: changing it cannot change the model
        rows[:] = 0
    np.testing.assert_array_equal(tensor.rows(np.arange(11)).view(np.uint32), tensor.float32().view(np.uint32))


@pytest.mark.parametrize("beyond", [-1, 2])
def test_a_row_that_is_not_there_is_never_read_from_a_neighbour(opened: Open, beyond: int) -> None:
    tensor = opened(file_of({name: ("F32", (2, 2), bytes(16)) for name in "abc"}))["b"]
    with pytest.raises(AssertionError):  # our own mistake: users' ids are checked before
        tensor.rows(np.array([0, beyond]))


def test_the_headers_order_need_not_be_the_files(opened: Open) -> None:
    data = encoded(
        {"b": entry(offsets=(8, 16)), "none": entry(shape=[0], offsets=(8, 8)), "a": entry()}, bytes(range(16))
    )
    tensors = opened(data)
    assert found(tensors) == judged(data)
    assert tensors["a"].source.read(tensors["a"].offset, 8) == bytes(range(8))


@pytest.mark.parametrize("dtype", ["F64", "I8", "I64", "BOOL", "F8_E4M3"])
def test_a_weight_of_another_type_is_refused_by_name(opened: Open, dtype: str) -> None:
    width = {"F64": 8, "I64": 8}.get(dtype, 1)
    tensor = opened(file_of({"norm.weight": (dtype, (2, 3), bytes(6 * width))}))["norm.weight"]
    assert tensor.nbytes == 6 * width
    for use in (tensor.float32, lambda: tensor.rows(np.array([0]))):
        with pytest.raises(CheckpointError, match=rf"norm.weight has dtype {dtype}, expected one of F32, F16, BF16"):
            use()


def test_a_file_closes_when_its_last_tensor_is_gone(opened: Open) -> None:
    tensor = opened(file_of({"a": ("F32", (2,), bytes(8))}))["a"]
    file, values = tensor.source.file, tensor.float32()
    del tensor
    assert file.closed
    np.testing.assert_array_equal(values, 0)  # the array still has its memory


SPARSE = """
import resource, sys
from pathlib import Path
import numpy as np
from gemma_np.files.safetensors import open_safetensors
table = open_safetensors(Path(sys.argv[1]))["embed_tokens.weight"]
V = table.shape[0]
table.rows(np.array([0]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for ids in np.random.default_rng(0).permutation(V)[:20_000].reshape(200, 100):
    table.rows(ids)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024), table.rows(np.array([V - 1]))[0, -1])
"""


def test_rows_of_a_table_of_5_gb_take_no_memory_to_speak_of(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs getrusage, which Windows lacks")
    path, rows = tmp_path / "model.safetensors", 5 * 2**18
    size = rows * 4096
    data = encoded({"embed_tokens.weight": entry("F32", (rows, 1024), (0, size))})
    try:
        with path.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + size)
            file.seek(-4, os.SEEK_END)
            file.write(struct.pack("<f", 1.5))
    except OSError as error:
        pytest.skip(f"the file system takes no file of 5 GB: {error}")
    if path.stat().st_blocks * 512 > 2**28:
        pytest.skip("the file system has no sparse files")
    run = subprocess.run([sys.executable, "-c", SPARSE, str(path)], capture_output=True, text=True, check=True)
    grown, last = run.stdout.split()
    assert float(last) == 1.5  # offsets beyond 2**32 are right
    # 100 rows are 400 kB, three times over in a call. Through the map, 20,000 rows would leave 80 MB at least.
    assert int(grown) < 16e6


# ---- files that are damaged, or meant to harm --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be read|too few"),
        (b"1234567", "7 bytes are too few for a header"),
        (b"<!DOCTYPE html><html>", "its header claims"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "is a Git LFS pointer"),
        (struct.pack("<Q", 2**63) + b"{}", "its header claims 9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "its header claims"),
        (struct.pack("<Q", 3) + b"{}", "its header claims 3 bytes, but the file has 10"),
        (struct.pack("<Q", 0), "not valid JSON"),
        (encoded("{"), "not valid JSON"),
        (encoded("{}\0"), "not valid JSON"),
        (encoded(b'{"a\xff": 1}'), "not valid JSON"),
        (encoded(b"\xef\xbb\xbf{}"), "not valid JSON"),
        (encoded("[" * 100_000), "not valid JSON"),
        (encoded('{"a":' * 50_000), "not valid JSON"),
        (encoded("[]"), "not a JSON object"),
        (encoded('"text"'), "not a JSON object"),
        (encoded("null"), "not a JSON object"),
        (encoded({"__metadata__": 5}), "__metadata__"),
        (encoded({"__metadata__": []}), "__metadata__"),
        (encoded({"__metadata__": {"format": 1}}), "__metadata__"),
        (encoded({"__metadata__": {"format": "\ud800"}}), "not valid JSON"),
        (encoded({"a": None}), "a has no valid"),
        (encoded({"a": "F32"}), "a has no valid"),
        (encoded({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(shape="", offsets=[0, 4])}, bytes(4)), "a has no valid"),
        (encoded({"a": entry(shape={}, offsets=[0, 4])}, bytes(4)), "a has no valid"),
        (encoded({"a": entry(shape=2)}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(shape=[2.0])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(shape=[True, 2])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(shape=["2"])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(shape=[-1, -2])}, bytes(8)), "no size"),
        (encoded({"a": entry(offsets=[0])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(offsets=[0, 8, 8])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(offsets=[0, 8.0])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(offsets=[False, 8])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry(offsets="08")}, bytes(8)), "a has no valid"),
        (encoded('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', bytes(8)), "no size"),
        (encoded({"a": entry(offsets=[-8, 0])}, bytes(8)), "no size"),
        (encoded({"a": entry(offsets=[8, 0])}, bytes(8)), "does not fill"),
        (encoded({"a": entry(offsets=[0, 2**63])}, bytes(8)), "does not fill"),
        (encoded({"a": entry(offsets=[2**63, 2**63 + 8])}, bytes(8)), "leave a gap"),
        (encoded({"a": entry(offsets=[0, 10**400])}, bytes(8)), "no size"),
        (encoded({"a": entry(shape=[2**31, 2**31, 2**31])}, bytes(8)), "impossible shape"),
        (encoded({"a": entry(shape=[0, 2**62], offsets=[0, 0])}), "impossible shape"),
        (encoded({"a": entry(shape=[1] * 65, offsets=[0, 4])}, bytes(4)), "impossible shape"),
        (encoded({"a": entry(shape=[3])}, bytes(8)), "does not fill its 8 bytes"),
        (encoded({"a": entry(shape=[2], offsets=[0, 16])}, bytes(16)), "does not fill its 16 bytes"),
        (encoded({"a": entry("f32")}, bytes(8)), "unknown dtype 'f32'"),
        (encoded({"a": entry("Q4_0")}, bytes(8)), "unknown dtype 'Q4_0'"),
        (encoded({"a": entry(["F32"])}, bytes(8)), "a has no valid"),
        (encoded({"a": entry()}, bytes(7)), "a and the file's end overlap"),
        (encoded({"a": entry()}, bytes(9)), "a and the file's end leave a gap"),
        (encoded({}, bytes(1)), "the header and the file's end leave a gap"),
        (encoded({"a": entry(offsets=[4, 12])}, bytes(12)), "the header and a leave a gap"),
        (encoded({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "a and b overlap"),
        (encoded({"a": entry(), "b": entry()}, bytes(8)), "overlap"),
        (encoded({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "a and b leave a gap"),
        (encoded(json.dumps({"a": entry(), "\ud800": entry(offsets=(8, 16))}), bytes(16)), "not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused_and_the_package_agrees(opened: Open, data: bytes, why: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=why):
            opened(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(data) + 2**20  # whatever sizes it claims; 20: what JSON's own parser may take
    if "impossible" not in why:  # there the package accepts what NumPy cannot hold
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(data)


def test_a_name_that_occurs_twice_is_refused(opened: Open) -> None:
    once = json.dumps(entry())
    with pytest.raises(CheckpointError, match="a name occurs twice"):  # the package takes the last one
        opened(encoded(f'{{"a": {once}, "a": {once}}}', bytes(8)))
    with pytest.raises(CheckpointError, match="a name occurs twice"):
        opened(encoded('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)))


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"claims 150,000,000 bytes.*the limit is 100,000,000"):
            open_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [1, 8, 4096, 8192, 10_000])
def test_a_download_that_broke_off_is_refused(opened: Open, cut: int) -> None:
    data = file_of({f"layers.{i}.weight": ("F32", (32, 32), bytes(4096)) for i in range(4)})  # 4096: a whole tensor
    opened(data)
    with pytest.raises(CheckpointError, match="damaged or no safetensors file, download it again"):
        opened(data[:-cut])


VALID: Parts = {
    "embed_tokens.weight": ("BF16", (3, 4), bytes(range(24))),
    "empty": ("F32", (0, 4), b""),
    "norm": ("F32", (2,), bytes(range(8))),
    "ids": ("I64", (1, 2), bytes(range(16))),
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SIZES = st.integers(-2, 60) | st.sampled_from([2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30])
DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U16", "BOOL", "f32", ""])
FIELDS = {
    "dtype": DTYPES | ANY_JSON,
    "shape": st.lists(SIZES, max_size=4) | ANY_JSON,
    "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | ANY_JSON,
}


@st.composite
def mutated_headers(draw: st.DrawFn) -> bytes:
    """A valid file in which some entries of the header say something else."""
    size = int.from_bytes(file_of(VALID)[:8], "little")
    header: dict[str, Any] = json.loads(file_of(VALID)[8 : 8 + size])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(list(VALID)))
        what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "both", "entry", "remove", "rename", "new"]))
        if what == "both":
            begin, rows = draw(st.integers(0, 48)), draw(st.integers(0, 6))
            header[name] = entry("F32", [rows, 2], [begin, begin + 8 * rows])
        elif what == "entry":
            header[name] = draw(ANY_JSON)
        elif what == "remove":
            header.pop(name, None)
        elif what == "rename":
            header[draw(st.text(max_size=4) | st.just("__metadata__"))] = header.pop(name, None)
        elif what == "new":
            header[draw(st.text(max_size=4) | st.just("__metadata__"))] = draw(ANY_JSON)
        elif isinstance(header.get(name), dict):
            header[name][what] = draw(FIELDS[what])
    return encoded(header, file_of(VALID)[8 + size :])


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """A valid file in which some bytes have changed, went missing or were put in."""
    data = bytearray(file_of(VALID))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 3))
        data[at : at + cut] = draw(
            st.binary(max_size=3) | st.sampled_from(b' "{}[],:-.0123456789eE\\u').map(lambda c: b"%c" % c)
        )
    return bytes(data)


@given(data=mutated_headers() | mutated_bytes())
def test_what_we_accept_the_package_accepts_with_the_same_content(scratch: Path, data: bytes) -> None:
    path = scratch / "model.safetensors"
    path.write_bytes(data)
    try:
        tensors = open_safetensors(path)
    except CheckpointError:
        return
    assert found(tensors) == judged(data)
    for tensor in tensors.values():
        try:
            assert tensor.float32().shape == tensor.shape
        except CheckpointError as error:
            assert "has dtype" in str(error)  # noqa: PT017  # an error is allowed, not expected


@given(parts=st.dictionaries(st.text(), st.tuples(DTYPES.filter(bool), st.lists(st.integers(0, 3), max_size=3))))
def test_whatever_is_valid_is_accepted(scratch: Path, parts: dict[str, tuple[str, list[int]]]) -> None:
    width = {"F64": 8, "F32": 4, "I8": 1, "BOOL": 1}
    parts.pop("__metadata__", None)
    content = {
        name: (dtype, tuple(shape), bytes(int(np.prod(shape)) * width.get(dtype, 2)))
        for name, (dtype, shape) in parts.items()
        if dtype != "f32"
    }
    path = scratch / "model.safetensors"
    path.write_bytes(file_of(content))
    assert found(open_safetensors(path)) == judged(path.read_bytes()) == content


# ---- which file --------------------------------------------------------------------------------------------------


def shards(folder: Path, index: object, files: dict[str, list[str]]) -> None:
    """Files that hold tensors [1] with the file's number, and their index."""
    for i, (file, names) in enumerate(files.items()):
        save_file({name: np.full(1, i, dtype=np.float32) for name in names}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_all_files_of_an_index_make_one_table(tmp_path: Path) -> None:
    index = {
        "metadata": {"total_size": 12},
        "weight_map": {"a": "0.safetensors", "b": "1.safetensors", "c": "0.safetensors"},
    }
    shards(tmp_path, index, {"0.safetensors": ["a", "c"], "1.safetensors": ["b"]})
    tensors = open_checkpoint(tmp_path)
    assert {name: tensor.float32().tolist() for name, tensor in tensors.items()} == {"a": [0], "b": [1], "c": [0]}


def test_the_index_decides_where_a_name_stands_in_several_files(tmp_path: Path) -> None:
    files = {"0.safetensors": ["a", "b"], "1.safetensors": ["a", "b"]}
    shards(tmp_path, {"weight_map": {"a": "0.safetensors", "b": "1.safetensors"}}, files)
    assert {name: tensor.float32()[0] for name, tensor in open_checkpoint(tmp_path).items()} == {"a": 0, "b": 1}


def test_one_file_wins_over_an_index(tmp_path: Path) -> None:
    shards(tmp_path, {"weight_map": {"a": "gone.safetensors"}}, {"model.safetensors": ["a"]})
    assert list(open_checkpoint(tmp_path)) == ["a"]


def test_an_index_must_name_files_that_hold_the_tensors(tmp_path: Path) -> None:
    shards(tmp_path, {"weight_map": {"a": "0.safetensors", "b": "gone.safetensors"}}, {"0.safetensors": ["a"]})
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        open_checkpoint(tmp_path)
    shards(tmp_path, {"weight_map": {"a": "0.safetensors", "b": "0.safetensors"}}, {"0.safetensors": ["a"]})
    with pytest.raises(CheckpointError, match=r"0\.safetensors lacks b, which model\.safetensors\.index\.json places"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "outside", ["../secret.safetensors", "/secret.safetensors", "sub/../../secret.safetensors", "sub/x"]
)
def test_an_index_never_leads_out_of_the_folder(tmp_path: Path, outside: str) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    save_file({"a": np.zeros(1, dtype=np.float32)}, tmp_path / "secret.safetensors")
    shards(folder, {"weight_map": {"a": outside}}, {})
    with pytest.raises(CheckpointError, match="expected the plain name"):
        open_checkpoint(folder)


@pytest.mark.parametrize("file", ["", ".", "..", "nul\0byte", "\ud800", "x" * 5000])
def test_a_file_name_that_is_none_is_refused(tmp_path: Path, file: str) -> None:
    shards(tmp_path, {"weight_map": {"a": file}}, {})
    with pytest.raises(
        CheckpointError, match=r"cannot be read|is missing|expected the plain name|surrogates not allowed"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": None}}, "x"]
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: object) -> None:
    shards(tmp_path, index, {})
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json (has no weight_map|holds a JSON)"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_itself_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, {"weight_map": {"a": "model.safetensors.index.json"}}, {})
    with pytest.raises(CheckpointError, match=r"index\.json: its header claims"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
def test_links_in_a_circle_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("other")
    (tmp_path / "other").symlink_to(name)
    for read in (lambda: open_checkpoint(tmp_path), lambda: read_json(tmp_path / name)):
        with pytest.raises(CheckpointError, match=r"is missing|cannot be read: Too many levels of symbolic links"):
            read()


def test_files_that_are_one_are_read_under_each_name(tmp_path: Path) -> None:
    shards(tmp_path, {"weight_map": {"a": "0.safetensors", "b": "1.safetensors"}}, {"0.safetensors": ["a", "b"]})
    (tmp_path / "1.safetensors").hardlink_to(tmp_path / "0.safetensors")
    assert list(open_checkpoint(tmp_path)) == ["a", "b"]


def test_pickle_files_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"pickle files \(\*\.bin\), which can run any code"):
        open_checkpoint(tmp_path)


def test_a_missing_file_and_a_folder_in_its_place_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(tmp_path)


# ---- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'a': 1}", b'{"a": "\xff\xfe"}', b"[" * 100_000, b"9" * 5000, b"\x80\x02}q\x00."]
)
def test_json_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON .*download it again"):
        read_json(path)


def test_json_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # a file of holes
    tracemalloc.start()
    try:
        with pytest.raises(
            CheckpointError, match=r"config\.json is not valid JSON \(it has more than 100,000,000 bytes"
        ):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_json_is_read_as_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for mark in ("", "\ufeff"):  # some editors on Windows put the mark in front
        path.write_text(mark + '{"prompt": "查询："}', encoding="utf-8")
        assert read_json_object(path) == {"prompt": "查询："}


@pytest.mark.parametrize("content", ["[]", "null", "1", '"text"'])
def test_where_an_object_is_expected_nothing_else_is_taken(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json holds a JSON \w+, expected an object"):
        read_json_object(path)


def test_json_that_is_missing_and_a_folder_in_its_place_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "2_Dense/model.safetensors", "tokenizer.json", "config.json", "model.gguf"]
)
def test_a_git_lfs_pointer_is_named_with_the_cure(writable: Path, name: str) -> None:
    """What `git clone` leaves in place of a large file where git-lfs is not installed."""
    path = writable / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1211486072\n")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is a Git LFS pointer, .*`git lfs pull`"):
        EmbeddingGemma(path if name.endswith(".gguf") else writable)


def test_pickled_weights_of_a_head_are_refused_with_the_reason(writable: Path) -> None:
    (writable / "2_Dense/model.safetensors").rename(writable / "2_Dense/pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"2_Dense has its weights in pickle files .*save the model as"):
        EmbeddingGemma(writable)
