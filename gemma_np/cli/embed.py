"""`gemma-np embed`: texts to vectors."""

import argparse

from gemma_np.cli.arguments import load, texts_of

FORMATS = ("json", "jsonl", "npy", "csv", "base64")


def run_embed(arguments: argparse.Namespace) -> None:
    from gemma_np.cli import writers
    from gemma_np.prompts import titled

    texts = texts_of(arguments)
    model = load(arguments)
    name = "document" if arguments.title is not None and arguments.prompt_name is None else arguments.prompt_name
    prompt = titled(model.resolve_prompt(name), arguments.title)
    kept = writers.Remembered(texts)
    batches = kept.beside(model.stream(kept, prompt, truncate_dim=arguments.dim))
    dim = arguments.dim or model.get_embedding_dimension()
    with writers.destination(arguments.output) as file:
        writers.WRITERS[arguments.format](file, batches, dim)
