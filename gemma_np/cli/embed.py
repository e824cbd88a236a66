"""`gemma-np embed`: texts to vectors."""

import argparse

from gemma_np.cli.arguments import Parser, add_computing, add_dense, add_model, at_least_one, file_name, loaded
from gemma_np.cli.texts import add_texts, placed, texts_of
from gemma_np.errors import InputError

FORMATS = ("json", "jsonl", "npy", "csv", "base64")  # as writers.WRITERS, which come with NumPy


def add_embed(parser: Parser) -> None:
    add_texts(parser)
    parser.add_argument(
        "-o", "--output", type=file_name, metavar="FILE", help="written when all is done; default: stdout"
    )
    parser.add_argument("--format", choices=FORMATS, default="json", help="default: json, a list of lists")
    parser.add_argument("--prompt-name", metavar="NAME", help="the task: query, document, retrieval_query, ...")
    parser.add_argument("--title", help="the documents' title (implies --prompt-name document)")
    parser.add_argument(
        "--dim", type=at_least_one, metavar="N", help="keep N dimensions (trained: 768, 512, 256, 128; nano: 384 to 64)"
    )
    parser.add_argument(
        "--errors",
        choices=("raise", "mark"),
        default="raise",
        help="mark: go on past a text that cannot be embedded; it gets null in JSON, else NaN. Default: raise",
    )
    add_model(parser)
    add_dense(parser)
    add_computing(parser)
    parser.set_defaults(run=run_embed)


def run_embed(arguments: argparse.Namespace) -> None:
    from gemma_np.cli import writers
    from gemma_np.outcomes import Outcomes
    from gemma_np.prompts import titled

    texts = texts_of(arguments, arguments.errors)
    model = loaded(arguments)
    name = "document" if arguments.title is not None and arguments.prompt_name is None else arguments.prompt_name
    prompt = titled(model.resolve_prompt(name), arguments.title)
    kept, outcomes, wanted = writers.Remembered(texts), Outcomes(), model.wanted(arguments.dim)
    stream = model.stream(kept, prompt, wanted, errors=arguments.errors, outcomes=outcomes)
    batches = kept.paired_with(stream, outcomes)
    fingerprint = model.fingerprint() if arguments.format in writers.NAMING else ""
    about = writers.About(wanted.width, fingerprint)
    with placed(texts.places):
        try:
            with writers.destination(arguments.output) as file:
                writers.WRITERS[arguments.format](file, batches, about)
        except InputError as error:
            if error.text is None:
                raise
            streamed = writers.is_streamed(arguments.output) and arguments.format != "npy"
            written = f"the first {kept.done:,} vectors" if streamed and kept.done else "nothing"
            raise InputError(f"{error}; {written} had been written", text=error.text) from None
