"""Which kernels run, and why: one table, and nothing else.

A column is a complete set of kernels for one kind of processor (columns.py). The first whose needs the processor meets
runs; GEMMA_NP_KERNELS names another, or "numpy" for none. `gemma-np info` prints the choice with its reason.
"""

import os
import platform
from dataclasses import dataclass

from .columns import BY_NAME, COLUMNS, Column

NUMPY = "numpy"


@dataclass(frozen=True)
class Choice:
    """The column that runs, None for NumPy alone, and why. `mistake`: what GEMMA_NP_KERNELS says and cannot have."""

    column: Column | None
    reason: str
    mistake: str | None = None

    @property
    def name(self) -> str:
        return self.column.name if self.column else NUMPY


def choose() -> Choice:
    """The column for this process."""
    wish = os.environ.get("GEMMA_NP_KERNELS", "").strip().lower()
    if wish == NUMPY:
        return Choice(None, "GEMMA_NP_KERNELS asks for it")
    try:
        import llvmlite.binding  # noqa: F401
    except (ImportError, OSError) as error:
        return Choice(None, f"llvmlite, which loads compiled kernels, cannot be imported: {error}")
    fits = [column for column in COLUMNS if not lacking(column)]
    if wish and wish in BY_NAME and BY_NAME[wish] in fits:
        return Choice(BY_NAME[wish], "GEMMA_NP_KERNELS asks for it")
    best = fits[0]
    reason = f"the first column that this processor ({platform.machine()}) can run"
    if best.needs:
        reason += f": it has {', '.join(best.needs)}"
    if not wish:
        return Choice(best, reason)
    why = f"this processor lacks {', '.join(lacking(BY_NAME[wish]))}" if wish in BY_NAME else "there is no such column"
    names = ", ".join([*(column.name for column in fits), NUMPY])
    return Choice(best, reason, f"GEMMA_NP_KERNELS = {wish!r}: {why}; expected one of {names}")


def lacking(column: Column) -> list[str]:
    """What this machine lacks for a column."""
    if column.machine and platform.machine() not in column.machine:
        return [f"the architecture ({platform.machine()}, not {column.machine[0]})"]
    if not column.needs:
        return []
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return [name for name in column.needs if not features.get(name)]
