"""`gemma-np quantize`, `dequantize` and `export-gguf`: a model in other files."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_np.cli.arguments import QUANTIZATIONS, Parser, add_dense, add_model, add_path, file_name, located
from gemma_np.errors import InputError

if TYPE_CHECKING:
    from gemma_np.checkpoint.source import Source

GGUF_FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0")  # as export.MATRIX_TYPES, which come with NumPy


def add_quantize(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument(
        "--format",
        choices=QUANTIZATIONS,
        default="q8_0",
        help="q8_0 (int8, the default), q4_0 (int4) or mixed (int8 for attention, else int4)",
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")
    add_model(parser)
    parser.set_defaults(run=run_quantize)


def run_quantize(arguments: argparse.Namespace) -> None:
    from gemma_np.fidelity import SAMPLE, cosines, float32_vectors
    from gemma_np.pipeline import Pipeline

    source, folder = converted(arguments, arguments.format)
    if source.quantization is None:
        quantized = Pipeline(folder)
        ids, _ = quantized.prepare(SAMPLE)
        found = cosines(float32_vectors(source, ids), quantized.embed_ids(ids))
        print(f"cosine to float32, {len(found)} texts: mean {found.mean():.4f}, lowest {found.min():.4f}")


def add_dequantize(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")
    add_model(parser)
    parser.set_defaults(run=run_dequantize)


def run_dequantize(arguments: argparse.Namespace) -> None:
    converted(arguments, "float32")


def converted(arguments: argparse.Namespace, format: str) -> "tuple[Source, Path]":
    """Write the model to the folder that was named, in another format, and say how large that is."""
    from gemma_np.checkpoint import saving
    from gemma_np.opening import open_source

    source, folder = open_source(*located(arguments)), Path(os.path.expanduser(arguments.output))
    saving.save(source, folder, format)
    nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{arguments.output}: {nbytes / 1e6:.1f} MB, {format}")
    return source, folder


def add_export_gguf(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument(
        "-o", "--output", type=file_name, metavar="FILE", required=True, help="written when all is done"
    )
    parser.add_argument("--format", choices=GGUF_FORMATS, help="of the matrices; default: as they are")
    add_model(parser)
    add_dense(parser)
    parser.set_defaults(run=run_export_gguf)


def run_export_gguf(arguments: argparse.Namespace) -> None:
    from gemma_np.files.writing import replaced
    from gemma_np.gguf.export import export
    from gemma_np.opening import open_source

    path, dense, base = located(arguments)
    source = open_source(path, dense if path.is_file() or dense else None, base)
    output = Path(os.path.realpath(os.path.expanduser(arguments.output)))
    if output.exists() and output.samefile(path):
        raise InputError(f"{output} is the model itself; name another file")
    with replaced(output) as file:
        export(source, file, arguments.format, heads=dense is not False)
        nbytes = file.tell()
    print(f"{arguments.output}: {nbytes / 1e6:.1f} MB, {arguments.format or 'types as they were'}")
