"""The command `gemma-np`: stdout carries data, stderr the rest; exit 2 for usage, 1 for failure, one line each."""

import argparse
import logging
import os
import signal
import sys
import threading
import warnings

from gemma_np import __version__
from gemma_np.cli.arguments import QUANTIZATIONS, UNWRAPPED, Parser, command, failed, load, named_model, positive
from gemma_np.cli.convert import GGUF_FORMATS, run_dequantize, run_export_gguf, run_quantize
from gemma_np.cli.embed import FORMATS, run_embed
from gemma_np.cli.rank import run_rank, run_similarity
from gemma_np.cli.warmup import run_warmup
from gemma_np.errors import GemmaError, InputError


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(format="gemma-np: %(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: print(f"gemma-np: warning: {message}", file=sys.stderr)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  the caller may have closed any of the three
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return failed("stdout is closed; send it to a file, or to /dev/null", 1)
    if not sys.stderr.isatty():  # the hub's progress bars are for people, as ours are
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    arguments = parsed(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what is half-written goes away
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("gemma-np: interrupted", file=sys.stderr)
        return 130
    except InputError as error:
        return failed(error, 2)
    except GemmaError as error:
        return failed(error, 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return failed(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        return failed("there is not enough memory", 1)
    return 0


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Options may stand among the texts, `rank QUERY --top 2 TEXT TEXT`: argparse gives up at the second
    run of texts, so that they come back as unknown here."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    options = rest[: rest.index("--")] if "--" in rest else rest
    if rest and ("texts" not in arguments or any(option.startswith("-") for option in options)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        rest.remove("--") if "--" in rest else None
        arguments.texts += rest
    return arguments


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments; each help ends with an example that runs."""
    top = Parser(
        prog="gemma-np",
        formatter_class=UNWRAPPED,
        description="Text embeddings with EmbeddingGemma, in NumPy.",
        epilog='example:  gemma-np rank "red planet" "Mars is red" "Venus is hot"',
    )
    top.add_argument("--version", action="version", version=f"gemma-np {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    embed = command(commands, "embed", run_embed, "texts to vectors", 'gemma-np embed "a text" "another"')
    embed.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: the lines of FILE or of stdin")
    embed.add_argument("-i", "--input", metavar="FILE", help="a text per line, UTF-8; - is stdin")
    embed.add_argument("-o", "--output", metavar="FILE", help="written when all is done; default: stdout")
    embed.add_argument("--format", choices=FORMATS, default="json", help="default: json, a list of lists")
    embed.add_argument("--prompt-name", metavar="NAME", help="the task: query, document, retrieval_query, ...")
    embed.add_argument("--title", help="the documents' title (implies --prompt-name document)")
    embed.add_argument(
        "--dim",
        type=positive,
        metavar="N",
        help="keep N dimensions (trained: 768, 512, 256, 128; nano: 384 to 64)",
    )

    similarity = command(
        commands,
        "similarity",
        run_similarity,
        "how alike two texts are",
        'gemma-np similarity "a cat" "a kitten"',
    )
    similarity.add_argument("a", metavar="A")
    similarity.add_argument("b", metavar="B")
    similarity.add_argument("--prompt-name", metavar="NAME", help="default: STS, where the model has it")
    similarity.add_argument("--dim", type=positive, metavar="N", help="keep N dimensions")

    rank = command(commands, "rank", run_rank, "texts by their relevance to a query", top.epilog[10:])  # type: ignore[index]
    rank.add_argument("query", metavar="QUERY")
    rank.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: the lines of FILE or of stdin")
    rank.add_argument("-i", "--input", metavar="FILE", help="a text per line, UTF-8; - is stdin")
    rank.add_argument("--top", type=positive, metavar="N", help="print the best N only")
    rank.add_argument("--dim", type=positive, metavar="N", help="keep N dimensions")

    info = command(commands, "info", run_info, "what a model is, and which kernels run", "gemma-np info nano")
    info.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    info.add_argument("--check", action="store_true", help="of a quantised folder: compare files with their checksums")

    quantize = command(
        commands,
        "quantize",
        run_quantize,
        "a model in int8 or int4, in a folder that opens in an instant and with little memory",
        "gemma-np quantize nano --format q4_0 -o nano-q4_0",
    )
    quantize.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    quantize.add_argument(
        "--format",
        choices=QUANTIZATIONS,
        default="q8_0",
        help="q8_0 (int8, the default), q4_0 (int4) or mixed (int8 for attention, else int4)",
    )
    quantize.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")

    dequantize = command(
        commands,
        "dequantize",
        run_dequantize,
        "a quantised folder back to a float32 checkpoint, which sentence-transformers loads",
        "gemma-np dequantize nano -o nano-float32",
    )
    dequantize.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    dequantize.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")

    export_gguf = command(
        commands,
        "export-gguf",
        run_export_gguf,
        "a model in one GGUF file, with Dense heads and tokenizer, for llama.cpp",
        "gemma-np export-gguf google/embeddinggemma-300m --format q8_0 -o embeddinggemma.gguf",
    )
    export_gguf.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    export_gguf.add_argument("-o", "--output", metavar="FILE", required=True, help="written when all is done")
    export_gguf.add_argument("--format", choices=GGUF_FORMATS, help="of the matrices; default: as they are")

    warmup = command(
        commands,
        "warmup",
        run_warmup,
        "compile the kernels now, so that the first text does not wait for it",
        "gemma-np warmup nano --quantization q8_0",
    )
    warmup.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")

    verify = command(
        commands,
        "verify",
        run_verify,
        "does this copy of EmbeddingGemma-300m give the published outputs?",
        "gemma-np verify google/embeddinggemma-300m",
    )
    verify.add_argument("path", nargs="?", metavar="MODEL", help="the same as -m MODEL")
    verify.add_argument("--goldens", metavar="FILE", help="embedding_gemma_goldens.json, to check long texts as well")
    return top


def run_info(arguments: argparse.Namespace) -> None:
    from gemma_np import hub
    from gemma_np.cli import info

    path = hub.locate(named_model(arguments))
    dense = hub.locate(arguments.dense, files=hub.HEADS) if arguments.dense else arguments.dense
    info.report(path, arguments.quantization, arguments.threads, arguments.check, dense)


def run_verify(arguments: argparse.Namespace) -> None:
    from gemma_np.cli import verify

    arguments.model = named_model(arguments)
    verify.report(load(arguments), arguments.model, arguments.goldens)
