"""`gemma-np split`: long texts in pieces that fit the model."""

import argparse
import json
import sys
from pathlib import Path

from gemma_np.cli.arguments import Parser, add_dense, add_model, at_least_one
from gemma_np.errors import InputError


def add_split(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="one text, UTF-8; default: stdin")
    parser.add_argument(
        "--max-tokens", type=at_least_one, metavar="N", help="of a piece, prompt included; default: the model's"
    )
    parser.add_argument(
        "--overlap", type=at_least_one, default=0, metavar="N", help="tokens that two neighbours share; default: 0"
    )
    parser.add_argument("--prompt-name", default="document", metavar="NAME", help="of the pieces; default: document")
    add_model(parser)
    add_dense(parser)
    parser.set_defaults(run=run_split, threads=None, quantization=None)


def run_split(arguments: argparse.Namespace) -> None:
    """One JSON object a piece: its text, its place in FILE in characters, and its tokens."""
    from gemma_np.cli.arguments import loaded

    raw = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{arguments.file} is not UTF-8 from its byte {error.start + 1} on; convert it") from None
    model = loaded(arguments)
    for piece in model.split(text, arguments.max_tokens, arguments.overlap, arguments.prompt_name):
        print(json.dumps(piece._asdict(), ensure_ascii=False))
