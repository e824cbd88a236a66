"""The texts of a command, and where its user finds each: texts are numbered from 0 in Python, lines from 1."""

import argparse
import codecs
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gemma_np.cli.arguments import Parser
from gemma_np.errors import GemmaError, InputError

LISTED = 10  # places in a message


def add_texts(parser: Parser) -> None:
    """TEXT ..., and -i FILE."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: the lines of FILE or of stdin")
    parser.add_argument("-i", "--input", metavar="FILE", help="a text per line, UTF-8; - is stdin")


class GivenTexts(Iterable[str]):
    """Texts to be iterated once.

    source  the file whose lines they are, or "stdin"; None: they are arguments
    """

    def __init__(self, each: Iterable[str], source: str | None) -> None:
        self._each = each
        self.source = source

    def __iter__(self) -> Iterator[str]:
        return iter(self._each)

    def places(self, numbers: Sequence[int]) -> str:
        """[1] -> "line 2 of FILE" or "the 2nd TEXT"; [1, 4] -> "lines 2, 5 of FILE" or "the 2nd, 5th TEXT"."""
        more = f", ... ({len(numbers)} in all)" if len(numbers) > LISTED else ""
        if self.source is None:
            return f"the {', '.join(ordinal(i + 1) for i in numbers[:LISTED])}{more} TEXT"
        listed = ", ".join(str(i + 1) for i in numbers[:LISTED])
        return f"line{'s' if len(numbers) > 1 else ''} {listed}{more} of {self.source}"


def ordinal(number: int) -> str:
    """1 -> "1st"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def texts_of(arguments: argparse.Namespace, errors: str = "raise") -> GivenTexts:
    """The texts of a command: its arguments, else the lines of a file or of stdin, one at a time.

    errors  "mark": a line that is no UTF-8 is told by whoever embeds it, not here
    """
    if arguments.texts and arguments.input is not None:
        raise InputError("texts are given as arguments and with -i FILE; expected one of the two")
    if arguments.texts:
        return GivenTexts(arguments.texts, None)
    if arguments.input is None and sys.stdin.isatty():
        raise InputError("no texts; give them as arguments, with -i FILE, or on stdin")
    if arguments.input in (None, "-"):
        return GivenTexts(lines(sys.stdin.buffer, "stdin", errors), "stdin")
    file = Path(arguments.input).open("rb")  # noqa: SIM115  now, before a large model is loaded for nothing
    return GivenTexts(lines(file, arguments.input, errors), arguments.input)


def lines(file: BinaryIO, name: str, errors: str = "raise") -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends; an empty line is an empty text."""
    with file:
        try:
            for number, line in enumerate(file):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield decoded(line, number) if errors == "raise" else line.decode(errors="surrogateescape")
        except OSError as error:
            raise GemmaError(f"{name} cannot be read: {error.strerror or error}") from None


def decoded(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"text {number} is not UTF-8 from its byte {error.start + 1} on; convert the file", text=number
        ) from None


@contextmanager
def placed(places: Callable[[Sequence[int]], str]) -> Iterator[None]:
    """Errors and warnings about texts say where the user finds them, instead of their numbers.

    places  numbers of texts, from 0 -> words, see GivenTexts.places
    """
    show = warnings.showwarning

    def show_placed(message: Any, *rest: Any, **more: Any) -> None:
        if texts := getattr(message, "texts", ()):
            what = str(message).partition("; truncate=False")[0].partition("; return_info=True")[0]  # Python's options
            message = f"{places(texts)}: {what}"
        show(message, *rest, **more)

    warnings.showwarning = show_placed
    try:
        yield
    except InputError as error:
        if error.text is None:
            raise
        raise InputError(str(error).replace(f"text {error.text}", places([error.text]), 1)) from None
    finally:
        warnings.showwarning = show
