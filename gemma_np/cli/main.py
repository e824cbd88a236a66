"""The command `gemma-np`: stdout carries data, stderr the rest; exit 2 for usage, 1 for failure, one line each."""

import argparse
import codecs
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from gemma_np import __version__
from gemma_np.errors import GemmaError, InputError

if TYPE_CHECKING:
    from gemma_np.checkpoint.source import Source
    from gemma_np.embedder import EmbeddingGemma

UNWRAPPED = argparse.RawDescriptionHelpFormatter  # on a narrow terminal too an example can be copied
FORMATS = ("json", "jsonl", "npy", "csv", "base64")
QUANTIZATIONS = ("q8_0", "q4_0", "mixed")
GGUF_FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0")


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


def failed(why: object, status: int) -> int:
    print(f"gemma-np: error: {' '.join(str(why).split())}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(failed(f"{message}; see {self.prog} --help", 2))


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


def run_embed(arguments: argparse.Namespace) -> None:
    from gemma_np.cli import writers
    from gemma_np.prompts import titled

    texts = texts_of(arguments)
    model = load(arguments)
    name = "document" if arguments.title is not None and arguments.prompt_name is None else arguments.prompt_name
    prompt = titled(model.resolve_prompt(name), arguments.title)
    kept = writers.Remembered(texts)
    batches = kept.beside(model.stream(kept, prompt, model.wanted(arguments.dim)))
    dim = arguments.dim or model.get_embedding_dimension()
    with writers.destination(arguments.output) as file:
        writers.WRITERS[arguments.format](file, batches, dim)


def run_similarity(arguments: argparse.Namespace) -> None:
    from gemma_np.prompts import known_prompts

    model = load(arguments)
    default = "STS" if "STS" in known_prompts(model.prompts) else None
    a, b = model.encode(
        [arguments.a, arguments.b], prompt_name=arguments.prompt_name or default, truncate_dim=arguments.dim
    )
    print(f"{model.similarity(a, b)[0, 0]:.4f}")


def run_rank(arguments: argparse.Namespace) -> None:
    texts = list(texts_of(arguments))
    model = load(arguments)
    query = model.encode_query(arguments.query, truncate_dim=arguments.dim)
    documents = model.encode_document(texts, truncate_dim=arguments.dim)
    scores = model.similarity(query, documents)[0]
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    for place, i in enumerate(order[: arguments.top], 1):
        print(f"{place:>3}  {scores[i]:7.4f}  {texts[i]}")


def run_info(arguments: argparse.Namespace) -> None:
    from gemma_np import hub
    from gemma_np.cli import info

    path = hub.locate(named_model(arguments))
    dense = hub.locate(arguments.dense, files=hub.HEADS) if arguments.dense else arguments.dense
    info.report(path, arguments.quantization, arguments.threads, arguments.check, dense)


def run_quantize(arguments: argparse.Namespace) -> None:
    from gemma_np.fidelity import SAMPLE, cosines, float32_vectors
    from gemma_np.pipeline import Pipeline

    source, folder = save(arguments, arguments.format)
    if source.quantization is None:
        quantized = Pipeline(folder)
        ids, _ = quantized.prepare(SAMPLE)
        found = cosines(float32_vectors(source, ids), quantized.embed_ids(ids))
        print(f"cosine to float32, {len(found)} texts: mean {found.mean():.4f}, lowest {found.min():.4f}")


def run_dequantize(arguments: argparse.Namespace) -> None:
    save(arguments, "float32")


def save(arguments: argparse.Namespace, format: str) -> tuple["Source", Path]:
    """Write the model that is named to a new folder, and say how large it is."""
    from gemma_np import hub
    from gemma_np.checkpoint import saving
    from gemma_np.opening import open_source

    source, folder = open_source(hub.locate(named_model(arguments))), Path(os.path.expanduser(arguments.output))
    saving.save(source, folder, format)
    nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{arguments.output}: {nbytes / 1e6:.1f} MB, {format}")
    return source, folder


def run_export_gguf(arguments: argparse.Namespace) -> None:
    from gemma_np import hub
    from gemma_np.cli import writers
    from gemma_np.gguf.export import export
    from gemma_np.opening import open_source

    path = hub.locate(named_model(arguments))
    dense = hub.locate(arguments.dense, files=hub.HEADS) if arguments.dense else arguments.dense
    source = open_source(path, dense if path.is_file() or dense else None)
    output = Path(os.path.realpath(os.path.expanduser(arguments.output)))
    if output.exists() and output.samefile(path):
        raise InputError(f"{output} is the model itself; name another file")
    with writers.replaced(output) as file:
        export(source, file, arguments.format, heads=dense is not False)
        nbytes = file.tell()
    print(f"{arguments.output}: {nbytes / 1e6:.1f} MB, {arguments.format or 'types as they were'}")


def run_warmup(arguments: argparse.Namespace) -> None:
    arguments.model = named_model(arguments)
    model = load(arguments)
    if model.fast is None:
        print(f"nothing to compile: NumPy runs {arguments.model}, because {model.why_not}")
        return
    model.encode("")
    print(f"ready: {model.fast.column.name} with {model.fast.threads} threads, {model.quantization or 'float32'}")


def run_verify(arguments: argparse.Namespace) -> None:
    from gemma_np.cli import verify

    arguments.model = named_model(arguments)
    verify.report(load(arguments), arguments.model, arguments.goldens)


def named_model(arguments: argparse.Namespace) -> str:
    """The model of a command that takes it as an argument as well as with -m."""
    from gemma_np import hub

    if arguments.path and arguments.model:
        raise InputError("the model is given twice; expected MODEL or -m MODEL")
    return str(arguments.path or arguments.model or hub.default_model())
