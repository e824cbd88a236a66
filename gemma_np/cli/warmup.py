"""`gemma-np warmup`: compile the kernels before the first text."""

import argparse

from gemma_np.cli.arguments import Parser, add_computing, add_dense, add_model, add_path, loaded, named_model


def add_warmup(parser: Parser) -> None:
    add_path(parser)
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_warmup)


def run_warmup(arguments: argparse.Namespace) -> None:
    arguments.model = named_model(arguments)
    model = loaded(arguments)
    if model.fast is None:
        print(f"nothing to compile: NumPy runs {arguments.model}, because {model.why_not}")
        return
    model.encode("")
    print(f"ready: {model.fast.column.name} with {model.fast.threads} threads, {model.quantization or 'float32'}")
