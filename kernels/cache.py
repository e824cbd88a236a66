"""Compiled kernels: found in the user's cache, or compiled once and put there. Loaded with llvmlite; Numba stays out.

A file is a header line (SHA-256 of the rest, in hex) and an object. Its name says for which column and formats it is,
and holds a digest of the kernels' source and the compilers' versions: machines and releases may share a cache.
Files are written beside and renamed: two processes that compile at once do each other no harm.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from .columns import Column

log = logging.getLogger("gemma_np")
ENTRY = "gemma_np_forward"
Forward = Callable[[int, int], None]
_engines: list[Any] = []  # the owners of loaded code: it must outlive every call


class BuildError(Exception):
    """Kernels cannot be compiled or loaded here; the message says why."""


def folder() -> Path:
    """Where compiled kernels are kept: $GEMMA_NP_CACHE, else the system's folder for caches."""
    chosen = os.environ.get("GEMMA_NP_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "gemma_np"


@cache
def digest() -> str:
    """Of all that decides what the compiler makes: source, versions, system."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    made_by = (llvmlite.__version__, version("numba"), platform.system(), platform.machine())
    found.update(repr(made_by).encode())
    return found.hexdigest()[:16]


def path_of(column: Column, formats: Sequence[str]) -> Path:
    return folder() / f"{column.name}-{'-'.join(formats)}-{digest()}.o"


@cache
def load(column: Column, formats: tuple[str, ...]) -> Forward:
    """The forward pass for a column and some formats, compiled if need be. Raises BuildError."""
    path = path_of(column, formats)
    code = _read(path)
    if code is None:
        code = _compile(column, formats)
        _keep(path, code)
    return _loaded(code)


def _read(path: Path) -> bytes | None:
    """A cached object; None if there is none, if it is damaged, or if somebody else could have written it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022):
                log.warning("%s can be changed by others and is not used; remove it", path)
                return None
            header, _, code = file.read().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(code).hexdigest().encode() != header:
        log.warning("%s is damaged; kernels are compiled again", path)
        return None
    return code


def _keep(path: Path, code: bytes) -> None:
    """Put an object into the cache, whole or not at all; where that cannot be, say so and go on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _say(
            f"compiled kernels cannot be kept in {path.parent} ({getattr(error, 'strerror', None) or error}), so each "
            "process compiles them; GEMMA_NP_CACHE names another folder"
        )


def _compile(column: Column, formats: Sequence[str]) -> bytes:
    """Compile in a process of its own, see build.py."""
    _say(f"compiling kernels for this machine ({column.name}, {', '.join(formats)}), once; some seconds")
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {
        "GEMMA_NP_BUILD": column.name,
        "GEMMA_NP_BUILD_FORMATS": " ".join(formats),
        "NUMBA_CPU_NAME": column.cpu or _plain_cpu(),
        "NUMBA_CPU_FEATURES": column.features,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    module = f"{__package__}.build"
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "kernels.o"
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", module, str(out)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            raise BuildError(f"the compiler did not start: {error}") from None
        if done.returncode != 0 or not out.is_file():
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise BuildError(f"kernels do not compile: {reason}")
        _say(f"compiled in {time.monotonic() - started:.1f} s, kept in {folder()}")
        return out.read_bytes()


def _plain_cpu() -> str:
    """What every processor of this machine's kind has."""
    return "x86-64" if platform.machine() in ("x86_64", "AMD64") else "generic"


def _loaded(code: bytes) -> Forward:
    """Object code -> a callable that leaves the GIL free while it runs."""
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        engine = llvm.create_mcjit_compiler(
            llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine()
        )
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        place = engine.get_function_address(ENTRY)
    except (RuntimeError, OSError) as error:
        raise BuildError(f"compiled kernels do not load: {error}") from None
    if not place:
        raise BuildError("compiled kernels have no entry")
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(place)


def _say(what: str) -> None:
    print(f"gemma-np: {what}", file=sys.stderr, flush=True)
