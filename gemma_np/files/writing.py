"""Files and folders that appear when they are complete, and checksums."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gemma_np.errors import InputError

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears when all is written: it is filled under a hidden name, and renamed at the end.

    InputError if there is something already; an empty folder may be there. Folders above it are made. Whatever goes
    wrong, Ctrl-C and a full disk too, nothing is left, nor of those. Every OSError about the folder has its name, not
    the hidden one.
    """
    if not path.name or path.name == "..":
        raise InputError(f"{path} is no name for a new folder; name one that does not exist yet")
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(f"{path} exists already; name a folder that does not, or remove it first")
    hidden, above = _hidden(path), [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _naming(path, hidden):
            hidden.mkdir()
            yield hidden
            with suppress(FileNotFoundError):
                path.rmdir()
            hidden.rename(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        for parent in above:
            with suppress(OSError):
                parent.rmdir()  # it is empty unless the new folder, or somebody else's, is in it


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A new content for a file: written under a hidden name in the same folder, and renamed at the end.

    Whatever goes wrong before, Ctrl-C and a full disk too, an existing file stays as it was and nothing half-written is
    left. InputError for a device, a pipe or a folder. The new file has the old one's permissions. Every OSError about
    the file has its name, not the hidden one.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file and would be replaced by one; name another")
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    hidden = _hidden(path)
    with _naming(path, hidden):
        descriptor = os.open(hidden, NEW, 0o666 if mode is None else mode)  # without what the umask forbids
        try:
            with open(descriptor, "wb") as file:
                yield file
            if mode is not None:
                hidden.chmod(mode)
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    """Where something is written before it has its name: no other run uses the same.

    Only `kill -9`, SIGQUIT or a power cut leave it. Later runs neither read it nor fail because of it. They do not
    remove it either: its run may be alive, on another machine perhaps. The name tells the user what it was to become.
    """
    return path.with_name(f".{path.name[:50]}.gemma-np-{os.urandom(6).hex()}")  # within 255 bytes, in any script


@contextmanager
def _naming(path: Path, hidden: Path) -> Iterator[None]:
    """OSErrors get the name that the caller gave. A full disk's have none, or the source's where a file is copied."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename2, error.filename) if isinstance(name, str | os.PathLike)]
        ours = [Path(name) for name in names if Path(name).is_relative_to(hidden)]
        if error.errno is None or (names and not ours):
            raise
        raise OSError(error.errno, error.strerror, str(path / ours[0].relative_to(hidden) if ours else path)) from None


def sha256(path: Path) -> str:
    """Of a file, in hex; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
