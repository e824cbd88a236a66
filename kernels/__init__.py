"""Which kernels run, and why: one table, and nothing else.

A column is a complete set of kernels for one kind of machine. This release has one, plain NumPy; `gemma-np info`
prints the column in use with its reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import reference

__all__ = ["COLUMNS", "Column", "active"]


@dataclass(frozen=True)
class Column:
    """A set of kernels and the reason why it runs here."""

    name: str
    reason: str
    linear: Callable[..., Any]


COLUMNS = (
    Column(
        name="numpy",
        reason="float32 products by NumPy's BLAS, the only column of this release; it runs on every machine",
        linear=reference.linear,
    ),
)


def active() -> Column:
    """The column in use."""
    return COLUMNS[0]
