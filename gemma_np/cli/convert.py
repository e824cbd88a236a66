"""`gemma-np quantize`, `dequantize` and `export-gguf`: a model in other files."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_np.cli.arguments import QUANTIZATIONS, Parser, add_dense, add_model, add_path, located, named_model
from gemma_np.errors import InputError

if TYPE_CHECKING:
    from gemma_np.checkpoint.saving import Saved

GGUF_FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0")  # as export.FORMATS, which come with NumPy


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
    saved = converted(arguments, arguments.format)
    print(f"{arguments.output}: {saved.nbytes / 1e6:.1f} MB, {arguments.format}")
    if saved.cosines is not None:
        cosines = saved.cosines
        print(f"cosine to float32, {len(cosines)} texts: mean {cosines.mean():.4f}, lowest {cosines.min():.4f}")


def add_dequantize(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a new folder")
    add_model(parser)
    parser.set_defaults(run=run_dequantize)


def run_dequantize(arguments: argparse.Namespace) -> None:
    print(f"{arguments.output}: {converted(arguments, 'float32').nbytes / 1e6:.1f} MB, float32")


def converted(arguments: argparse.Namespace, format: str) -> "Saved":
    """Write the model to the folder that was named, in another format."""
    from gemma_np import hub
    from gemma_np.checkpoint import saving
    from gemma_np.checkpoint.source import open_source

    source = open_source(hub.locate(named_model(arguments)))
    return saving.save(source, Path(os.path.expanduser(arguments.output)), format)


def add_export_gguf(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="written when all is done")
    parser.add_argument("--format", choices=GGUF_FORMATS, help="of the matrices; default: as they are")
    add_model(parser)
    add_dense(parser)
    parser.set_defaults(run=run_export_gguf)


def run_export_gguf(arguments: argparse.Namespace) -> None:
    from gemma_np.checkpoint.source import open_source
    from gemma_np.files.writing import replaced
    from gemma_np.gguf.export import export

    path, dense = located(arguments)
    source = open_source(path, dense if path.is_file() or dense else None)
    output = Path(os.path.realpath(os.path.expanduser(arguments.output)))
    if output.exists() and output.samefile(path):
        raise InputError(f"{output} is the model itself; name another file")
    with replaced(output) as file:
        export(source, file, arguments.format, heads=dense is not False)
        nbytes = file.tell()
    print(f"{arguments.output}: {nbytes / 1e6:.1f} MB, {arguments.format or 'types as they were'}")
