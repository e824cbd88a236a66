"""Folders that appear when they are complete, and safetensors files written tensor by tensor."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_np import InputError
from gemma_np.files.safetensors import open_safetensors, write_safetensors
from gemma_np.files.writing import new_folder, replaced, sha256


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


def test_nothing_is_left_of_the_folders_above_when_it_fails(tmp_path: Path) -> None:
    """Those that were there before stay, empty or not."""

    def fail(path: Path) -> None:
        with new_folder(path) as folder:
            assert folder.parent.is_dir()
            raise OverflowError

    (tmp_path / "before").mkdir()
    for name in ("a/b", "a/b/c/d", "before/b", "before/b/c"):
        with pytest.raises(OverflowError):
            fail(tmp_path / name)
        assert [path.name for path in tmp_path.rglob("*")] == ["before"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):
        fail(tmp_path / "file/b/c")
    assert sorted(os.listdir(tmp_path)) == ["before", "file"]


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


@contextmanager
def small_disk(nbytes: int) -> Iterator[None]:
    """No file may be longer, as if the disk were full then: the system refuses to write."""
    resource = pytest.importorskip("resource", reason="this system has no limit on a file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_file(path: Path, content: bytes) -> None:
    with replaced(path) as file:
        file.write(content)


def write_folder(path: Path, content: bytes) -> None:
    with new_folder(path) as folder:
        (folder / "file").write_bytes(content)


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_full_disk_names_what_was_asked_for(write: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    with small_disk(1000), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path / "out", bytes(100_000))
    assert caught.value.filename == str(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_copy_that_does_not_fit_names_the_copy(tmp_path: Path) -> None:
    """shutil names the source first."""

    def copy() -> None:
        with new_folder(tmp_path / "out") as folder:
            shutil.copyfile(tmp_path / "source", folder / "copy")

    (tmp_path / "source").write_bytes(bytes(100_000))
    with small_disk(1000), pytest.raises(OSError, match="File too large") as caught:
        copy()
    assert caught.value.filename == str(tmp_path / "out" / "copy")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_place_that_is_not_there_is_named_as_asked_for(write: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists") as caught:
        write(tmp_path / "file" / "out", b"")
    assert ".gemma-np-" not in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)


def test_an_error_about_something_else_keeps_its_name(tmp_path: Path) -> None:
    for manager in (new_folder, replaced):
        with pytest.raises(FileNotFoundError) as caught, manager(tmp_path / "out"):
            (tmp_path / "elsewhere").read_bytes()
        assert caught.value.filename == str(tmp_path / "elsewhere")
    assert os.listdir(tmp_path) == []


def test_permissions_are_the_old_files_or_those_of_any_new_file(tmp_path: Path) -> None:
    """And the process's umask is never touched: other threads make files, too."""
    for umask in (0o022, 0o027, 0o077):
        before = os.umask(umask)
        try:
            (tmp_path / "by others").touch()
            (tmp_path / "folder by others").mkdir()
            write_file(tmp_path / "new", b"")
            write_folder(tmp_path / "folder", b"")
            for old in (0o600, 0o640, 0o444, 0o666):
                (tmp_path / "old").touch()
                (tmp_path / "old").chmod(old)
                write_file(tmp_path / "old", b"new")
                assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == old
                (tmp_path / "old").unlink()
        finally:
            os.umask(before)
        for ours, theirs in (("new", "by others"), ("folder", "folder by others")):
            assert (tmp_path / ours).stat().st_mode == (tmp_path / theirs).stat().st_mode
        for path in list(tmp_path.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_what_a_killed_run_left_hinders_no_later_one(tmp_path: Path) -> None:
    """`kill -9` cannot be caught: the hidden file stays, says whose it is, and is not mistaken for the output."""
    code = "import os, sys; from gemma_np.files.writing import *; from pathlib import Path\n"
    for manager in ("replaced", "new_folder"):
        path = tmp_path / manager / "output"
        path.parent.mkdir()
        killed = f"with {manager}(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-c", code + killed, str(path)])
        (left,) = os.listdir(path.parent)
        assert left.startswith(".output.gemma-np-")
        write_file(path, b"") if manager == "replaced" else write_folder(path, b"")
        assert set(os.listdir(path.parent)) == {left, "output"}


@pytest.mark.parametrize("letter", ["x", "é", "日", "🪐"])
def test_the_longest_names_can_be_written(letter: str, tmp_path: Path) -> None:
    for write in (write_file, write_folder):
        name = letter * (250 // len(letter.encode()))  # most systems have 255 bytes
        write(tmp_path / write.__name__ / name, b"") if write is write_folder else write(tmp_path / name, b"")
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    """`export-gguf -o /dev/null`, by root, would make a file of it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"{name} is no regular file and would be replaced by one; name another"):
            write_file(tmp_path / name, b"")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_without_a_name_of_its_own_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is no name for a new folder"), new_folder(Path(name)):
        pass
