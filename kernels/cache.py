"""Compiled kernels: found in the user's cache, or compiled once and put there. Loaded with llvmlite; Numba stays out.

A file is a header line (SHA-256 of its name and the rest, in hex) and an object. The name says for which column and
formats it is, and holds a digest of the kernels' source and the compilers' versions: machines and releases may share a
cache, and a file under another's name is not taken for it. Files are written beside and renamed: two processes that
compile at once do each other no harm.
"""

import ctypes
import errno
import hashlib
import logging
import os
import platform
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from .columns import Column
from .plan import ENCODE, FORWARD

log = logging.getLogger("gemma_np")
TIME_LIMIT = 900  # seconds for a compilation, a hundred times what it takes: a compiler that hangs must end


@dataclass(frozen=True)
class Compiled:
    """The entries of a loaded object. They leave the GIL free while they run.

    forward  a pass, by plan and thread, see forward.py
    encode   a text's token ids, by call, see bpe.py
    """

    forward: Callable[[int, int], None]
    encode: Callable[[int], None]


_loaded: dict[tuple[str, tuple[str, ...]], Compiled] = {}


class BuildError(Exception):
    """Kernels cannot be compiled or loaded here; the message says why."""


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


def load(column: Column, formats: tuple[str, ...]) -> Compiled:
    """The kernels for a column and some formats, compiled if need be. Raises BuildError."""
    with _loading:
        if (column.name, formats) not in _loaded:
            _loaded[column.name, formats] = _cached(column, formats) or _compiled(column, formats)
        return _loaded[column.name, formats]


_loading = threading.Lock()


def _unlock() -> None:
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)  # a thread that held the lock does not exist there


def _cached(column: Column, formats: Sequence[str]) -> Compiled | None:
    """What the cache has; None if it has nothing that loads."""
    try:
        path = path_of(column, formats)
    except OSError:
        return None
    code = _read(path)
    if code is None:
        return None
    try:
        return _entered(code)
    except BuildError as error:
        log.warning("%s: %s; kernels are compiled again", path, error)
        return None


def _compiled(column: Column, formats: Sequence[str]) -> Compiled:
    digest()  # tells whether Numba is there
    _say(f"compiling kernels for this machine ({column.name}, {', '.join(formats)}), once; some seconds")
    started = time.monotonic()
    code = _compile(column, formats)
    entries = _entered(code)
    took = f"compiled in {time.monotonic() - started:.1f} s"
    try:
        path = path_of(column, formats)
        _keep(path, code)
    except OSError as error:
        _say(
            f"{took}, but not kept ({error.strerror}: {error.filename}), so each process compiles; GEMMA_NP_CACHE "
            "names another folder"
        )
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


def _keep(path: Path, code: bytes) -> None:
    """Put an object into the cache, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(path.parent, os.stat(path.parent))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_sum(path, code) + b"\n" + code)
        os.chmod(name, 0o644)  # an administrator may compile for all
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _compile(column: Column, formats: Sequence[str]) -> bytes:
    """Compile in a process of its own, see build.py: one that knows this one's packages and none of its settings."""
    code = f"import sys; sys.path += sys.argv[2:]; from {__package__}.build import main; sys.exit(main())"
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "kernels.o"
        try:
            done = subprocess.run(
                [_python(), "-P", "-S", "-c", code, str(out), *_places()],
                cwd=made,  # where no file of the user's is taken for a module or for Numba's settings
                env=environment(column, formats) | {"PYTHONPATH": ""},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIME_LIMIT,
            )
        except OSError as error:
            raise BuildError(f"the compiler did not start: {error}") from None
        except subprocess.TimeoutExpired:
            raise BuildError(f"kernels do not compile: not done after {TIME_LIMIT} s") from None
        if done.returncode < 0:
            raise BuildError(f"kernels do not compile: the compiler was ended by {_signal_name(-done.returncode)}")
        if done.returncode != 0 or not out.is_file():
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise BuildError(f"kernels do not compile: {reason}")
        return out.read_bytes()


def environment(column: Column, formats: Sequence[str]) -> dict[str, str]:
    """What a process that compiles for a column must be started with: the user's settings of Python and Numba are not
    for it."""
    ours = ("PYTHON", "NUMBA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept |= {name: os.environ[name] for name in ("PYTHONHOME", "PYTHONPYCACHEPREFIX") if name in os.environ}
    return kept | {
        "GEMMA_NP_BUILD": column.name,
        "GEMMA_NP_BUILD_FORMATS": " ".join(formats),
        "NUMBA_CPU_NAME": column.cpu or _plain_cpu(),
        "NUMBA_CPU_FEATURES": column.features,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        # build.py optimises all at once; before that, only plain loops gain (a quarter), for a third of the time.
        "NUMBA_OPT": "0" if column.dot else "3",
    }


def _python() -> str:
    """The interpreter. A program that embeds Python, or is frozen, is none: started again, it would work again."""
    own = sys.executable or ""
    if getattr(sys, "frozen", False):
        raise BuildError(f"{own} is a frozen program, and kernels are compiled by a Python interpreter")
    if re.match(r"(python|pypy)[\w.]*$", os.path.basename(own), re.IGNORECASE):
        return own
    named = Path(sys.exec_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    if not named.is_file():
        raise BuildError(f"sys.executable = {sys.executable!r} is no Python interpreter, which compiles kernels")
    return str(named)


def _places() -> list[str]:
    """The folders of the packages that the compiler needs. They come behind the standard library: that a module of the
    user's beside them is called `types` or `random` does no harm."""
    found = []
    for package in (__package__.partition(".")[0], "numba", "llvmlite", "numpy"):
        spec = find_spec(package)
        if spec is None or not spec.origin:
            raise BuildError(f"{package} is not installed")
        found.append(str(Path(spec.origin).absolute().parents[1]))
    return list(dict.fromkeys(found))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _plain_cpu() -> str:
    """What every processor of this machine's kind has."""
    return "x86-64" if platform.machine() in ("x86_64", "AMD64") else "generic"


def _entered(code: bytes) -> Compiled:
    """Object code -> what it holds, to be called."""
    found = places(code, [FORWARD, ENCODE])
    forward = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(found[FORWARD])
    return Compiled(forward, ctypes.CFUNCTYPE(None, ctypes.c_int64)(found[ENCODE]))


def places(code: bytes, names: Sequence[str]) -> dict[str, int]:
    """Object code, made ready to run -> the addresses of its entries."""
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        if _kind(code) != _kind(machine.emit_object(llvm.parse_assembly(""))):
            raise BuildError("compiled kernels do not load: they are for another processor or system")
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        found = {name: engine.get_function_address(name) for name in names}
    except (RuntimeError, OSError) as error:
        raise BuildError(f"compiled kernels do not load: {error}") from None
    if not all(found.values()):
        raise BuildError("compiled kernels have no entry")
    engine.detach()  # never freed: a pass may still run while the interpreter ends
    return found


def _kind(code: bytes) -> bytes:
    """What an object is for: class, byte order and machine of ELF; the processor of Mach-O; the machine of COFF."""
    if code[:4] == b"\x7fELF":
        return code[:7] + code[18:20]
    return code[:8] if code[:4] == b"\xcf\xfa\xed\xfe" else code[:2]


def _say(what: str) -> None:
    if sys.stderr is None:  # print would take stdout
        return
    with suppress(OSError, ValueError):  # closed
        print(f"gemma-np: {what}", file=sys.stderr, flush=True)
