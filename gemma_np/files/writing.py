"""Models to folders, tensor by tensor: nothing half-written is ever seen under the name that was asked for."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


def sha256(path: Path) -> str:
    """Of a file, in hex; it is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
