"""Folders that appear when they are complete, and safetensors files written tensor by tensor."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_np import InputError
from gemma_np.files.safetensors import open_safetensors, write_safetensors
from gemma_np.files.writing import new_folder, sha256


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep/er/model") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep/er/model").exists()
    assert (tmp_path / "deep/er/model/file").read_text() == "content"
    assert os.listdir(tmp_path / "deep/er") == ["model"]
    os.mkdir(tmp_path / "as made by others")
    assert (tmp_path / "deep/er/model").stat().st_mode == (tmp_path / "as made by others").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_is_left_when_it_fails(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_is_filled_and_a_full_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert os.listdir(tmp_path / "empty") == ["file"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with (
            pytest.raises(InputError, match=f"{name} exists already; name a folder that does not"),
            new_folder(tmp_path / name),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link"]


def test_written_tensors_are_what_safetensors_reads(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(5, dtype=np.uint8)
    empty = np.zeros((0, 4), np.float16)
    layout = {"ä": ("F32", (2, 3)), "b": ("U8", (5,)), "empty": ("F16", (0, 4))}
    write_safetensors(tmp_path / "file", layout, [a.T.copy().T[:1], a[1:], b[:2], b[2:], empty])
    found = load_file(tmp_path / "file")
    assert set(found) == set(layout)
    for name, expected in (("ä", a), ("b", b), ("empty", empty)):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype
    assert open_safetensors(tmp_path / "file")["ä"].offset % 64 == 0
    assert sha256(tmp_path / "file") == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "file", layout, [])
    with pytest.raises(AssertionError):
        write_safetensors(tmp_path / "short", layout, [a])
