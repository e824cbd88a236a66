"""README's table for those who come from sentence-transformers: each row is said by the test that holds it true."""

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])
ROWS: list[tuple[str, str]] = []


def row(what: str, here: str) -> Callable[[Test], Test]:
    """The row that a test stands for; the table has them in the order of the tests."""
    ROWS.append((what, here))
    return lambda test: test
