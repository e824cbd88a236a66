"""`gemma-np verify`: does a copy of EmbeddingGemma-300m give the published outputs? See published.py."""

import argparse

from gemma_np.cli.arguments import Parser, add_computing, add_dense, add_model, add_path, loaded, named_model


def add_verify(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument("--goldens", metavar="FILE", help="embedding_gemma_goldens.json, to check long texts as well")
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_verify)


def run_verify(arguments: argparse.Namespace) -> None:
    from gemma_np.cli.published import print_checks

    arguments.model = named_model(arguments)
    print_checks(loaded(arguments), arguments.model, arguments.goldens)
