"""Kernels compiled to object code, in a process of its own: build.py, started with no settings of the user's."""

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .columns import Column
from .objects import BuildError

TIME_LIMIT = 900  # seconds for a compilation, a hundred times what it takes: a compiler that hangs must end


def compiled(column: Column, formats: Sequence[str]) -> bytes:
    """Object code for a column and some formats. Raises BuildError.

    The process knows this one's packages and none of its settings. The object comes through a pipe: there may be no
    folder that can be written.
    """
    code = f"import sys; sys.path += sys.argv[1:]; from {__package__}.build import deliver; deliver()"
    try:
        done = subprocess.run(
            [_python(), "-P", "-S", "-c", code, *_places()],
            cwd=Path(__file__).parent,  # where no file of the user's is taken for Numba's settings
            env=environment(column, formats) | {"PYTHONPATH": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT,
        )
    except (OSError, TypeError) as error:  # TypeError: gevent's subprocess in a thread other than the main one
        raise BuildError(f"the compiler did not start: {error}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"kernels do not compile: not done after {TIME_LIMIT} s") from None
    if done.returncode < 0:
        raise BuildError(f"kernels do not compile: the compiler was ended by {_signal_name(-done.returncode)}")
    if done.returncode != 0 or not done.stdout:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BuildError(f"kernels do not compile: {lines[-1] if lines else f'status {done.returncode}'}")
    return done.stdout


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
    """The folders of the packages that the compiler needs. They come after the standard library, so a module of the
    user's that is called `types` or `random` does no harm there."""
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
