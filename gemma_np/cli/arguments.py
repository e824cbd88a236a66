"""What commands share: the parser, the model and the texts that its arguments name."""

import argparse
import codecs
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from gemma_np.errors import GemmaError, InputError

if TYPE_CHECKING:
    from gemma_np.embedder import EmbeddingGemma

UNWRAPPED = argparse.RawDescriptionHelpFormatter  # on a narrow terminal too an example can be copied
QUANTIZATIONS = ("q8_0", "q4_0", "mixed")


def failed(why: object, status: int) -> int:
    print(f"gemma-np: error: {' '.join(str(why).split())}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(failed(f"{message}; see {self.prog} --help", 2))


def command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    """A command with the arguments that all have."""
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        formatter_class=UNWRAPPED,
        help=help,
        description=help[0].upper() + help[1:],
        epilog=f"example:  {example.strip()}",
    )
    added.set_defaults(run=run)
    added.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="folder of a checkpoint, a hub id, a GGUF file, or nano (default: GEMMA_NP_MODEL, else nano, the bundled "
        "small model)",
    )
    if name not in ("quantize", "dequantize"):
        heads = added.add_mutually_exclusive_group()
        heads.add_argument(
            "--dense", metavar="MODEL", help="of a GGUF file without Dense heads: the checkpoint that has them"
        )
        heads.add_argument(
            "--no-dense", dest="dense", action="store_false", help="the trunk's vectors, without Dense heads"
        )
        added.set_defaults(dense=None)
    if name in ("quantize", "dequantize", "export-gguf"):  # nothing is computed but a check
        return added
    added.add_argument(
        "--threads", type=positive, metavar="N", help="threads that compute (default: one for each core to be had)"
    )
    added.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        metavar="FORMAT",
        help="q8_0 (int8), q4_0 (int4) or mixed (int8 for attention, else int4); default: float32",
    )
    return added


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a positive integer")
    return int(text)


def load(arguments: argparse.Namespace) -> "EmbeddingGemma":
    from gemma_np.embedder import EmbeddingGemma

    return EmbeddingGemma(
        arguments.model, threads=arguments.threads, quantization=arguments.quantization, dense=arguments.dense
    )


def named_model(arguments: argparse.Namespace) -> str:
    """The model of a command that takes it as an argument as well as with -m."""
    from gemma_np import hub

    if arguments.path and arguments.model:
        raise InputError("the model is given twice; expected MODEL or -m MODEL")
    return str(arguments.path or arguments.model or hub.default_model())


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
