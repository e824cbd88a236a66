"""`gemma-np info`: what a model is, and which kernels run it; see description.py."""

import argparse

from gemma_np.cli.arguments import Parser, add_computing, add_dense, add_model, add_path, located


def add_info(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument(
        "--check", action="store_true", help="verify a quantised folder's checksums, print its fingerprint"
    )
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_info)


def run_info(arguments: argparse.Namespace) -> None:
    from gemma_np.cli.description import print_info

    path, dense, base = located(arguments)
    print_info(path, arguments.quantization, arguments.threads, arguments.check, dense, base)
