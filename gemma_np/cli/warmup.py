"""`gemma-np warmup`: compile the kernels before the first text."""

import argparse

from gemma_np.cli.arguments import load, named_model


def run_warmup(arguments: argparse.Namespace) -> None:
    arguments.model = named_model(arguments)
    model = load(arguments)
    if model.fast is None:
        print(f"nothing to compile: NumPy runs {arguments.model}, because {model.why_not}")
        return
    model.encode("")
    print(f"ready: {model.fast.column.name} with {model.fast.threads} threads, {model.quantization or 'float32'}")
