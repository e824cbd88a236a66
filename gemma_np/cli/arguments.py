"""What commands share: the parser, and the arguments that name a model and say how it runs."""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from gemma_np.errors import InputError

if TYPE_CHECKING:
    from gemma_np.embedder import EmbeddingGemma

UNWRAPPED = argparse.RawDescriptionHelpFormatter  # on a narrow terminal too an example can be copied
QUANTIZATIONS = ("q8_0", "q4_0", "mixed")  # as quantize.QUANTIZATIONS, which comes with NumPy: --help is quick


def failed(why: object, status: int) -> int:
    """An error as one line on stderr; returns the status."""
    with suppress(OSError):  # where stderr is full, too, the status is all that can be said
        print(f"gemma-np: error: {' '.join(str(why).split())}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(failed(f"{message}; see {self.prog} --help", 2))

    def _print_message(self, message: str, file: Any = None) -> None:
        """How argparse prints --help and --version. Its own ignores that they cannot be written."""
        print(message, end="", file=file, flush=True)


def at_least_one(text: str) -> int:
    """The type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a positive integer")
    return int(text)


def file_name(text: str) -> str:
    """The type of an option that names a file to write. `x/` names a folder, and a path would lose its slash."""
    if os.path.basename(text) in ("", ".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} names a folder, expected a file")
    return text


def add_model(parser: Parser) -> None:
    """-m and --base, which all commands have."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="folder of a checkpoint or a LoRA adapter, a hub id (owner/name:Q8_0 is one of its GGUF files), a GGUF "
        "file, or nano, the small model in the package (./nano is a folder); default: GEMMA_NP_MODEL, else nano",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="of a LoRA adapter: the checkpoint that it changes; default: as the adapter says",
    )


def add_path(parser: Parser) -> None:
    """The model as an argument, for commands that take no texts; see named_model."""
    parser.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")


def add_dense(parser: Parser) -> None:
    """--dense and --no-dense, for commands that open GGUF files; see located."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--dense", metavar="MODEL", help="of a GGUF file without Dense heads: the checkpoint that has them"
    )
    either.add_argument(
        "--no-dense", dest="dense", action="store_false", help="the trunk's vectors, without Dense heads"
    )
    parser.set_defaults(dense=None)


def add_computing(parser: Parser) -> None:
    """--threads and --quantization, for commands that run the model."""
    parser.add_argument(
        "--threads", type=at_least_one, metavar="N", help="threads that compute (default: one for each core to be had)"
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        metavar="FORMAT",
        help="q8_0 (int8), q4_0 (int4) or mixed (int8 for attention, else int4); default: float32",
    )


def named_model(arguments: argparse.Namespace) -> str:
    """The model of a command that takes it as an argument as well as with -m."""
    from gemma_np import hub

    if arguments.path and arguments.model:
        raise InputError("the model is given twice; expected MODEL or -m MODEL")
    return str(arguments.path or arguments.model or hub.default_model())


class Located(NamedTuple):
    """Where a model is, and what belongs to it elsewhere, as opening.open_source takes it."""

    path: Path
    dense: Path | Literal[False] | None
    base: Path | None


def located(arguments: argparse.Namespace) -> Located:
    """Where the model is, its Dense heads and an adapter's base, if they are elsewhere."""
    from gemma_np import hub

    path, dense = hub.locate(named_model(arguments)), getattr(arguments, "dense", None)
    heads = hub.locate(dense, files=hub.HEADS) if dense else dense
    return Located(path, heads, hub.base_of(path, arguments.base))


def loaded(arguments: argparse.Namespace) -> "EmbeddingGemma":
    """The model, ready to run."""
    from gemma_np.embedder import EmbeddingGemma

    return EmbeddingGemma(
        arguments.model,
        threads=arguments.threads,
        quantization=arguments.quantization,
        dense=arguments.dense,
        base=arguments.base,
    )
