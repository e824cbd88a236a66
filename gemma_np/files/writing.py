"""Models to folders, tensor by tensor: nothing half-written is ever seen under the name that was asked for."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gemma_np.errors import InputError


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


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A new content for a file: written under another name beside it, and renamed at the end.

    Whatever goes wrong before, Ctrl-C and a full disk too, an existing file stays as it was and nothing half-written is
    left. The new file has the old one's permissions.
    """
    descriptor, beside = tempfile.mkstemp(prefix=".gemma-np-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask
        os.chmod(beside, mode)  # mkstemp makes files for the owner alone
        os.replace(beside, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)


def sha256(path: Path) -> str:
    """Of a file, in hex; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
