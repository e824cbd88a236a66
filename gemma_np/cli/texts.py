"""The texts of a command: its arguments, or the lines of a file or of stdin."""

import argparse
import codecs
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from gemma_np.cli.arguments import Parser
from gemma_np.errors import GemmaError, InputError


def add_texts(parser: Parser) -> None:
    """TEXT ..., and -i FILE."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: the lines of FILE or of stdin")
    parser.add_argument("-i", "--input", metavar="FILE", help="a text per line, UTF-8; - is stdin")


def texts_of(arguments: argparse.Namespace) -> Iterable[str]:
    """The texts of a command: its arguments, else the lines of a file or of stdin, one at a time."""
    if arguments.texts and arguments.input is not None:
        raise InputError("texts are given as arguments and with -i FILE; expected one of the two")
    if arguments.texts:
        return list(arguments.texts)
    if arguments.input is None and sys.stdin.isatty():
        raise InputError("no texts; give them as arguments, with -i FILE, or on stdin")
    if arguments.input in (None, "-"):
        return lines(sys.stdin.buffer, "stdin")
    return lines(Path(arguments.input).open("rb"), arguments.input)  # now, before a large model is loaded for nothing


def lines(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends; an empty line is an empty text."""
    number = 0
    with file:
        try:
            for line in file:
                number += 1
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            where = f"{name}, line {number}: byte {error.start + 1}"
            raise InputError(f"{where} is not UTF-8; convert the file") from None
        except OSError as error:
            raise GemmaError(f"{name} cannot be read: {error.strerror}") from None
