"""Compiled kernels: found in the user's cache, or compiled once and put there.

A file is a header line (SHA-256 of its name and the rest, in hex) and an object. The name says for which column and
formats it is, and holds a digest of the kernels' source and the compilers' versions: machines and releases may share a
cache, and a file under another's name is not taken for it. Of several processes that find nothing one compiles, and the
others wait for it (lock.py). A file is written under another name and renamed when it is whole: where processes cannot
wait for each other they do each other no harm.
"""

import errno
import hashlib
import logging
import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import llvmlite

from .columns import Column
from .compiling import compiled
from .lock import alone
from .native import allocate_lock
from .objects import BuildError, Compiled, opened

log = logging.getLogger("gemma_np")
Check = Callable[[Column, tuple[str, ...], Compiled], None]
PATIENCE = 300  # seconds to wait for another process's kernels, ten times what a slow machine takes for its own

_loaded: dict[tuple[str, tuple[str, ...]], Compiled] = {}


def folder() -> Path:
    """Where compiled kernels are kept: $GEMMA_NP_CACHE, else the system's folder for caches. Raises OSError."""
    chosen = os.environ.get("GEMMA_NP_CACHE")
    if not chosen:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        elif sys.platform == "darwin":
            base = "~/Library/Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            base = base if base[0] in "/~" else "~/.cache"  # a relative path is to be ignored, says the standard
        chosen = os.path.join(base, "gemma_np")
    path = os.path.expanduser(chosen)
    if path.startswith("~"):
        raise FileNotFoundError(0, "there is no home directory", chosen)
    return Path(path)


@cache
def digest() -> str:
    """Of all that decides what the compiler makes: source, versions, system."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    made_by = (llvmlite.__version__, _version("numba"), platform.system(), platform.machine())
    found.update(repr(made_by).encode())
    return found.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise BuildError(f"{package} is not installed") from None


def path_of(column: Column, formats: Sequence[str]) -> Path:
    return folder() / f"{column.name}-{'-'.join(formats)}-{digest()}.o"


def kernels_for(column: Column, formats: tuple[str, ...], check: Check | None = None) -> Compiled:
    """The kernels for a column and some formats, compiled if need be. Raises BuildError.

    check   is given kernels that have just been compiled, before they are kept, and raises BuildError for wrong ones
    """
    key = column.name, formats
    lock = _loading
    while not lock.acquire(False):  # asked again and again: the holder may be another greenlet of this thread
        time.sleep(0.01)
    try:
        if key not in _loaded:
            _loaded[key] = _found_or_compiled(column, formats, check)
        return _loaded[key]
    except OSError as error:
        raise BuildError(f"kernels cannot be compiled here: {error}") from error
    finally:
        lock.release()


_loading = allocate_lock()


def _unlock() -> None:
    global _loading
    _loading = allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)  # a thread that held the lock does not exist there


def _found_or_compiled(column: Column, formats: tuple[str, ...], check: Check | None) -> Compiled:
    try:
        path = path_of(column, formats)
        before = _identity(path)
    except OSError:  # nowhere to look for them
        return _compiled(column, formats, check)
    if (found := _found(path)) is not None:
        return found
    with suppress(OSError):
        _make_folder(path.parent)
    what = f"kernels for this machine ({column.name}, {', '.join(formats)})"
    with alone(
        path.with_suffix(".lock"), PATIENCE, lambda: _say(f"{what} are being compiled already; waiting for them")
    ):
        if _identity(path) != before and (found := _found(path)) is not None:
            return found
        return _compiled(column, formats, check)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that takes its place; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _found(path: Path) -> Compiled | None:
    """What the cache has; None if it has nothing that loads."""
    code = _read(path)
    if code is None:
        return None
    try:
        return opened(code)
    except BuildError as error:
        log.warning("%s: %s; kernels are compiled again", path, error)
        return None


def _compiled(column: Column, formats: tuple[str, ...], check: Check | None) -> Compiled:
    digest()  # tells whether Numba is there
    _say(f"compiling kernels for this machine ({column.name}, {', '.join(formats)}), once; some seconds")
    started = time.monotonic()
    code = compiled(column, formats)
    entries = opened(code)
    if check is not None:
        check(column, formats, entries)
    took = f"compiled in {time.monotonic() - started:.1f} s"
    try:
        path = path_of(column, formats)
        _keep(path, code)
    except OSError as error:
        why = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror}, in {path.parent}"
        _say(f"{took}, but not kept ({why}), so each process compiles; GEMMA_NP_CACHE names another folder")
    else:
        _say(f"{took}, kept in {path.parent}")
    return entries


def _read(path: Path) -> bytes | None:
    """A cached object; None if there is none, if it is damaged, or if somebody else could have written it."""
    try:
        with path.open("rb") as file:
            _check_owner(path.parent, os.stat(path.parent))
            _check_owner(path, os.fstat(file.fileno()))
            header, _, code = file.read().partition(b"\n")
    except PermissionError as error:
        if error.errno == errno.EPERM:
            log.warning("%s is not used: %s", error.filename, error.strerror)
        return None
    except OSError:
        return None
    if _sum(path, code) != header:
        log.warning("%s is damaged; kernels are compiled again", path)
        return None
    return code


def _sum(path: Path, code: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\n" + code).hexdigest().encode()


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raise EPERM for a file or folder in which another user could plant code for us to run."""
    if not hasattr(os, "getuid"):
        return
    if status.st_uid not in (os.getuid(), 0):
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    shared = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX  # as /tmp: each may change his own
    if shared or (status.st_mode & stat.S_IWGRP and stat.S_ISREG(status.st_mode)):
        raise PermissionError(errno.EPERM, "other users may change it", str(path))


def _make_folder(path: Path) -> None:
    """Make sure that the cache's folder exists and is nobody else's to change. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(path, os.stat(path))


def _keep(path: Path, code: bytes) -> None:
    """Put an object into the cache, whole or not at all. Raises OSError."""
    _make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_sum(path, code) + b"\n" + code)
        os.chmod(name, 0o644)  # an administrator may compile for all
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _say(what: str) -> None:
    if sys.stderr is None:  # print would take stdout
        return
    with suppress(OSError, ValueError):  # closed
        print(f"gemma-np: {what}", file=sys.stderr, flush=True)
