"""The command `gemma-np`: stdout carries data, stderr the rest; exit 2 for usage, 1 for failure, one line each."""

import argparse
import errno
import logging
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from gemma_np import __version__
from gemma_np.cli.arguments import UNWRAPPED, Parser, failed
from gemma_np.errors import GemmaError, GemmaWarning, InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STOPS = ("SIGHUP", "SIGTERM", "SIGXCPU")  # the terminal is closed, `kill`, a limit on CPU time


class Command(NamedTuple):
    """A line of `gemma-np --help`, and where the rest is.

    arguments  module:function, which adds the command's arguments and its `run` to a parser. It is imported when the
               command is used: `info` needs the kernels, and `--help` shall not wait for them
    """

    arguments: str
    help: str
    example: str


COMMANDS = {
    "embed": Command("gemma_np.cli.embed:add_embed", "texts to vectors", 'gemma-np embed "a text" "another"'),
    "similarity": Command(
        "gemma_np.cli.rank:add_similarity", "how alike two texts are", 'gemma-np similarity "a cat" "a kitten"'
    ),
    "rank": Command(
        "gemma_np.cli.rank:add_rank",
        "texts by their relevance to a query",
        'gemma-np rank "red planet" "Mars is red" "Venus is hot"',
    ),
    "split": Command(
        "gemma_np.cli.split:add_split",
        "a long text in pieces that fit the model",
        "gemma-np split book.txt --max-tokens 256 --overlap 32",
    ),
    "info": Command("gemma_np.cli.info:add_info", "what a model is, and which kernels run", "gemma-np info nano"),
    "quantize": Command(
        "gemma_np.cli.convert:add_quantize",
        "a model in int8 or int4, in a folder that opens in an instant and with little memory",
        "gemma-np quantize nano -o nano-q8_0",
    ),
    "dequantize": Command(
        "gemma_np.cli.convert:add_dequantize",
        "a quantised folder back to a float32 checkpoint, which sentence-transformers loads",
        "gemma-np dequantize nano -o nano-float32",
    ),
    "export-gguf": Command(
        "gemma_np.cli.convert:add_export_gguf",
        "a model in one GGUF file, with Dense heads and tokenizer, for llama.cpp",
        "gemma-np export-gguf google/embeddinggemma-300m --format q8_0 -o embeddinggemma.gguf",
    ),
    "warmup": Command(
        "gemma_np.cli.warmup:add_warmup",
        "compile the kernels now, so that the first text does not wait for it",
        "gemma-np warmup nano --quantization q8_0",
    ),
    "verify": Command(
        "gemma_np.cli.verify:add_verify",
        "does this copy of EmbeddingGemma-300m give the published outputs?",
        "gemma-np verify google/embeddinggemma-300m",
    ),
}


class Warned:
    """Prints warnings as one line each, and each once: Python repeats one that comes from another line of code."""

    def __init__(self) -> None:
        self._lines: set[str] = set()

    def __call__(self, message: object, *_: object, **__: object) -> None:
        line = f"gemma-np: warning: {' '.join(str(message).split())}"
        if line not in self._lines:
            self._lines.add(line)
            with suppress(OSError):  # a full stderr ends no run
                print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(format="gemma-np: %(message)s", level=logging.WARNING)
    warnings.showwarning = Warned()
    warnings.simplefilter("always", GemmaWarning)  # one about TEXT 1 is no repetition of one about QUERY
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  the caller may have closed any of the three
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return failed("stdout is closed; send it to a file, or to /dev/null", 1)
    if not sys.stderr.isatty():  # the hub's progress bars are for people, as ours are
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    if threading.current_thread() is threading.main_thread():
        catch_signals()
    return finished(argv)


def catch_signals() -> None:
    """Let the signals in STOPS end a run as Ctrl-C does, so that nothing half-written stays. A signal that is ignored
    stays ignored, as SIGHUP under nohup."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a terminal that closes sends it twice: not while things are tidied up
        sys.exit(128 + number)

    for name in STOPS:
        number = getattr(signal, name, None)  # Windows has not all of them
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def finished(argv: list[str] | None) -> int:
    """Run the command, or print its help; whatever goes wrong is one line and a status."""
    command = "gemma-np"
    try:
        arguments = parsed(argv)
        command += f" {arguments.command}"
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        return 0
    except KeyboardInterrupt:
        print("gemma-np: interrupted", file=sys.stderr)
        return 130
    except InputError as error:
        return failed(error, 2)
    except GemmaError as error:
        return failed(error, 1)
    except OSError as error:
        return failed(where_and_why(error, command), 1)
    except MemoryError:
        return failed("there is not enough memory", 1)
    finally:
        let_go_of_streams()
    return 0


def where_and_why(error: OSError, command: str) -> str:
    """What went wrong, and where. Files that commands write have their names in the error; stdout alone has none."""
    where = error.filename
    if where is None:
        where = "stdout" if error.errno in FULL else command
    where = os.fsdecode(where) if isinstance(where, bytes) else where
    return f"{where}: {error.strerror or str(error) or type(error).__name__}"


def let_go_of_streams() -> None:
    """Python writes what its streams still hold when it ends. What cannot be written would change the status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Options may come between texts, `rank QUERY --top 2 TEXT TEXT`: argparse returns the second run of
    texts as unknown words, which are added to the first here."""
    words = sys.argv[1:] if argv is None else argv
    top = parser(next((word for word in words if not word.startswith("-")), None))
    arguments, rest = top.parse_known_args(words)
    options = rest[: rest.index("--")] if "--" in rest else rest
    if rest and ("texts" not in arguments or any(option.startswith("-") for option in options)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        rest.remove("--") if "--" in rest else None
        arguments.texts += rest
    return arguments


def parser(name: str | None) -> Parser:
    """All commands, of which the one called `name` has its arguments; each help ends with an example that runs."""
    top = Parser(
        prog="gemma-np",
        formatter_class=UNWRAPPED,
        description="Text embeddings with EmbeddingGemma, in NumPy.",
        epilog=f"example:  {COMMANDS['rank'].example}",
    )
    top.add_argument("--version", action="version", version=f"gemma-np {__version__}")
    commands = top.add_subparsers(title="commands", required=True, dest="command", metavar="COMMAND")
    for each, command in COMMANDS.items():
        added = commands.add_parser(
            each,
            formatter_class=UNWRAPPED,
            help=command.help,
            description=command.help[0].upper() + command.help[1:],
            epilog=f"example:  {command.example}",
        )
        if each == name:
            module, function = command.arguments.split(":")
            getattr(import_module(module), function)(added)
    return top
