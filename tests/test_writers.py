"""Vectors to bytes: exact, streamed, and never half of a file."""

import io
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

from gemma_np.arrays import Float32
from gemma_np.cli import writers
from gemma_np.errors import GemmaError
from gemma_np.outcomes import Outcomes


def batch(texts: list[str], vectors: Float32) -> writers.Batch:
    """Of texts with which nothing is wrong."""
    n = len(texts)
    return writers.Batch(texts, vectors, [1] * n, [False] * n, [None] * n)


def corner_cases() -> Float32:
    """Zeros of both signs, the smallest and the largest float32, neighbours of 1, and random bits."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    special = np.float32([0.0, -0.0, 1, -1, 0.1, 1e-45, 1.1754944e-38, 3.4028235e38, 123456789, 16777216])
    neighbours = np.nextafter(np.float32([1, 1, 0.5]), np.float32([0, 2, 1]))
    return np.concatenate([bits[np.isfinite(bits)], special, neighbours])


def test_numbers_give_every_float32_back() -> None:
    values = corner_cases()
    text = writers.numbers(values)
    for parsed in (json.loads(f"[{text}]"), text.split(",")):
        np.testing.assert_array_equal(np.array(parsed, np.float64).astype(np.float32).view("u4"), values.view("u4"))


@pytest.mark.parametrize("format", writers.WRITERS)
def test_vectors_are_written_while_texts_stream_in(format: str, tmp_path: Path) -> None:
    """A batch is asked for only when the one before is in the file."""
    written = []

    with open(tmp_path / "out", "wb") as file:

        def batches() -> Iterator[writers.Batch]:
            for _ in range(4):
                written.append((tmp_path / "out").stat().st_size)
                yield batch(["a", "b"], np.ones((2, 3), np.float32))

        writers.WRITERS[format](file, batches(), writers.About(3, "f"))
    assert written == sorted(set(written))


def test_texts_are_forgotten_when_their_vectors_are_there() -> None:
    """Otherwise a long run would keep all its texts in memory, whatever the format."""
    kept, outcomes = writers.Remembered(f"text {i}" for i in range(1000)), Outcomes()

    def encode() -> Iterator[Float32]:
        numbers = iter(kept)
        for first, second in zip(numbers, numbers, strict=True):
            outcomes.add([int(first[5:]), int(second[5:])], 500, {})
            yield np.array([[int(first[5:])], [int(second[5:])]], np.float32)

    for texts, vectors, tokens, truncated, errors in kept.paired_with(encode(), outcomes):
        assert texts == [f"text {int(n)}" for n in vectors[:, 0]]
        assert tokens == vectors[:, 0].tolist()
        assert truncated == (vectors[:, 0] > 500).tolist()
        assert errors == [None, None]
        assert not kept.waiting


class Pipe(io.BytesIO):
    """No way back."""

    def seekable(self) -> bool:
        return False

    seek = tell = truncate = None  # type: ignore[assignment]


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 1000])
def test_npy_is_what_numpy_saves(rows: int, tmp_path: Path) -> None:
    """Byte for byte, whether the number of rows was known when the header was written or not."""
    vectors = np.random.default_rng(rows).standard_normal((rows, 5), np.float32)
    expected = io.BytesIO()
    np.save(expected, vectors)
    batches = [batch([""] * len(part), part) for part in np.split(vectors, range(7, rows, 7))]
    about = writers.About(5, "")
    with writers.destination(str(tmp_path / "out.npy")) as file:
        writers.write_npy(file, iter(batches), about)
    assert (tmp_path / "out.npy").read_bytes() == expected.getvalue()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy", mmap_mode="r"), vectors)
    pipe = Pipe()
    writers.write_npy(pipe, iter(batches), about)
    assert pipe.getvalue() == expected.getvalue()


def test_the_header_of_npy_has_room_for_any_number_of_rows() -> None:
    for rows in (0, 10**18):
        header = io.BytesIO(writers.npy_header(rows, 768))
        assert np.lib.format.read_magic(header) == (1, 0)
        assert np.lib.format.read_array_header_1_0(header) == ((rows, 768), False, np.dtype("<f4"))
        assert header.tell() == 128 == len(header.getvalue())


def test_npy_in_a_file_needs_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with writers.destination(str(tmp_path / "out.npy")) as file:
        writers.write_npy(file, [batch(["a"], np.float32([[1, 2]]))], writers.About(2, ""))
        (only,) = tmp_path.iterdir()
        assert only.stat().st_size == 128 + 8  # nothing waits elsewhere
    assert np.load(tmp_path / "out.npy").tolist() == [[1, 2]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("rows", [1, 100_000])  # less than a buffer, and more
def test_a_full_temporary_folder_is_named(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))  # noqa: SIM115
    monkeypatch.setattr(tempfile, "tempdir", "/the/temporary/folder")
    pipe = Pipe()
    said = r"^/the/temporary/folder: No space left on device; .* with -o FILE, or name another folder in TMPDIR$"
    with pytest.raises(GemmaError, match=said):
        writers.write_npy(pipe, [batch([""] * rows, np.zeros((rows, 2), np.float32))], writers.About(2, ""))
    assert pipe.getvalue() == b""


def test_a_temporary_folder_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(GemmaError, match=r"^the temporary folder: No usable temporary directory found in \['/tmp'\]; "):
        writers.write_npy(Pipe(), [], writers.About(2, ""))


def test_json_lines_hold_any_text() -> None:
    texts = ['"', "\\", "\n", "\u2028", "\0", "日本 🪐", ""]
    file = io.BytesIO()
    writers.write_jsonl(file, [batch(texts, np.zeros((len(texts), 1), np.float32))], writers.About(1, "f"))
    lines = file.getvalue().decode().split("\n")[:-1]
    assert [json.loads(line)["text"] for line in lines] == texts
    assert "日本" in file.getvalue().decode()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
@pytest.mark.parametrize("before", [None, "from yesterday"])
def test_whatever_goes_wrong_a_file_is_whole_or_not_there(
    tmp_path: Path, error: BaseException, before: str | None
) -> None:
    path = tmp_path / "out"
    if before is not None:
        path.write_text(before)
    with pytest.raises(type(error)), writers.destination(str(path)) as file:  # noqa: PT012
        file.write(b"half")
        file.flush()
        assert len(os.listdir(tmp_path)) == 1 + (before is not None)  # under another name, in the same folder
        raise error
    assert os.listdir(tmp_path) == ([] if before is None else ["out"])
    assert before is None or path.read_text() == before


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", replace)
    path = tmp_path / "out"
    with pytest.raises(PermissionError) as caught, writers.destination(str(path)) as file:
        file.write(b"all")
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_a_device_is_written_in_place(tmp_path: Path) -> None:
    with writers.destination(os.devnull) as file:
        file.write(b"nothing")
    assert not os.path.isfile(os.devnull)


def test_long_names_can_be_written(tmp_path: Path) -> None:
    name = "".join(repeat("x", 250))  # the longest that most systems have is 255
    with writers.destination(str(tmp_path / name)) as file:
        file.write(b"all")
    assert os.listdir(tmp_path) == [name]
